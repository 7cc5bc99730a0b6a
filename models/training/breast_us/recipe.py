"""How the breast ultrasound networks are trained. A and B as one, from an encoder that has seen other images before:

    python -m models.training.train breast_us --data busi.zip --out runs/breast

or one after the other, each stage from the weights of the one before; `breast_us_published` in the place of `breast_us`
takes the hyper-parameters of the paper (published.py), and models.training.breast_us.stages does all in one go:

    python -m models.training.train breast_us --data busi.zip --out runs/a --set stage=segmentation
    python -m models.training.train breast_us --data busi.zip --out runs/b --set stage=classification \
        --set start=A.safetensors
    python -m models.training.train breast_us --data busi.zip --out runs/c --set stage=fusion --set start=B.safetensors

Departures from the published recipe, each for the sake of 432 training images and two cores: EfficientNet-Lite learnt
on ImageNet in the place of the plain encoder; one network for both tasks instead of two; the whole image in a letterbox
instead of a centre crop; AdamW with a cosine instead of Adam with plateaus; heads that look at the marked lesion;
cross-entropy added to the Tversky loss; affine variation beside the published ones; a fusion of seven numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.breast_us.letterbox import PREPROCESSING, normalise, prepare
from models.nets.breast_triple import (
    CLASSES,
    FUSIONS,
    ClassificationNet,
    Encoder,
    Fusion,
    FusionNet,
    Heads,
    LiteSegmentationNet,
    SegmentationNet,
    SmallFusion,
    Triple,
    TripleConfig,
    segmentation_net,
)
from models.nets.efficientnet_lite import EfficientNetLite, from_imagenet, imagenet_weights
from models.training.breast_us.data import (
    Labelled,
    Strategy,
    Variation,
    parts,
    prepare_mask,
    read_busi,
    split_sha256,
    vary,
)
from models.training.breast_us.fold_splits import rotation
from models.training.evaluation.metrics import accuracy, auc
from models.training.losses import class_distillation, mask_distillation, mean_probability, tversky_loss
from models.training.recipe import TrainConfig, must_be_known
from models.weights import Weights, WeightsError, load

Stage = Literal["segmentation", "classification", "joint", "fusion"]

# stage -> what it may start from, and must if it cannot do without
STARTS: Mapping[Stage, tuple[Stage, ...]] = {
    "segmentation": (),
    "joint": (),
    "classification": ("segmentation",),
    "fusion": ("joint", "classification"),
}

TAUGHT: tuple[Stage, ...] = ("joint", "classification")  # learn from a teacher, and may be one


@dataclass(frozen=True)
class Config(TrainConfig):
    stage: Stage = "joint"  # A alone; B from A; A and B as one; C on top of either, which then stay as they are
    start: str = ""  # weights that "classification" or "fusion" begin with
    start_sha256: str = ""  # of `start`, filled in: says later whether the parts belong together
    masks: str = ""  # weights of A whose mask "fusion" sees; else that of the network of `start`
    masks_sha256: str = ""
    epochs: int = 40
    batch: int = 16
    lr: float = 1.5e-3
    encoder_rate: float = 0.3  # learning rate of a learnt encoder, of that of the rest
    optimiser: str = "adamw"  # or "adam"
    weight_decay: float = 0.02
    warm_up_epochs: float = 2.0
    ema_decay: float = 0.98
    size: int = 224  # side of the letterbox, here and in the pipeline; a multiple of LITE_STEP_PX
    encoder: Encoder = "lite0"
    pretrained: bool = True  # a lite encoder starts from ImageNet
    heads: Heads = "joint"
    smoothing: bool = True
    attention: bool = True
    dropout: float = 0.4
    drop_path: float = 0.1
    attended: bool = True  # see TripleConfig
    mask_weight: float = 1.0  # of the Tversky loss
    bce_weight: float = 0.5  # of the mask's cross-entropy, against the Tversky loss
    auxiliary_weight: float = 0.3  # of both in the stage "classification"
    class_weight: float = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.0  # share of the batches in which each image is blended with another
    mixup_alpha: float = 0.4  # of the Beta distribution the blend is drawn from
    split: Strategy = "stored"  # or "fresh": see data.parts
    variation: str = "strong"  # a name in VARIATIONS
    fusion: Fusion = "small"  # C of seven numbers; "published" has 279 011
    fusion_pull: float = 0.01  # holds a small C near B's own answer
    fusion_lr: float = 0.02  # of a small C, whose seven numbers move on the scale of one
    softmax_out: bool = False  # C as printed: a softmax over q
    folds: int = 5
    fold: int = -1  # of `folds` for cross-validation, from 0; -1: the split that ships with the code

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {
            "stage": get_args(Stage),
            "encoder": get_args(Encoder),
            "heads": get_args(Heads),
            "fusion": get_args(Fusion),
            "optimiser": tuple(OPTIMISERS),
            "variation": tuple(VARIATIONS),
        }
        must_be_known(self, known)
        if not -1 <= self.fold < self.folds:
            raise ValueError(f"fold is {self.fold}, must be -1 or one of the {self.folds} folds from 0")

    @property
    def starts_learnt(self) -> bool:
        return self.pretrained and self.encoder != "plain"


OPTIMISERS: Mapping[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
VARIATIONS: Mapping[str, Variation] = {
    "strong": Variation(),
    # what the paper varies: grey values, a part erased, left and right. Its random crop is a shift here. A factor of
    # 0.8 to 1.2 on a mean of 0.33 is +-0.066 of brightness.
    "published": Variation(
        rotate_deg=0, zoom=(1, 1), stretch=0, shift=0.06, contrast=(0.8, 1.2), brightness=0.066, gamma=(0.8, 1.2),
        noise=0.02,
    ),
    # for two cores' worth of longer trainings: another hand, a deeper or shallower setting, a worse machine
    "stronger": Variation(
        rotate_deg=20, zoom=(0.65, 1.5), stretch=0.2, shift=0.15, contrast=(0.6, 1.5), brightness=0.18,
        gamma=(0.6, 1.6), noise=0.05, erase=0.4,
    ),
}  # fmt: skip


class BreastRecipe:
    preprocessing = PREPROCESSING

    def __init__(self, images: list[Labelled], config: Config) -> None:
        self.images, self.split_sha256 = divide(images, config)
        self.start = self.read_start(config.start, config.stage, STARTS[config.stage])
        self.masks = None
        if config.masks:
            if config.stage != "fusion":
                raise WeightsError(f"masks={config.masks}: only stage=fusion takes the mask of another network")
            self.masks = self.read_start(config.masks, config.stage, ("segmentation",))
        if self.start is not None and config.stage == "classification":
            differing = differences(config, self.start.about["config"])
            if differing:
                raise WeightsError(f"{config.start} is of another network than this training: {differing}")
        self.config = replace(
            config,
            start_sha256=self.start.sha256 if self.start else "",
            masks_sha256=self.masks.sha256 if self.masks else "",
            # C sees what its A and B were trained to see
            size=self.start.about["config"]["size"] if self.start and config.stage == "fusion" else config.size,
        )
        self.name = named(config)
        counts = np.bincount([image.label for image in self.images["train"]], minlength=len(CLASSES))
        frequency = torch.tensor(np.maximum(counts, 1) / counts.mean(), dtype=torch.float32)
        self.class_weights = 1 / frequency
        self.frozen = self.parts().eval().requires_grad_(False) if config.stage == "fusion" else None

    def read_start(self, path: str, stage: Stage, allowed: tuple[Stage, ...]) -> Weights | None:
        """The weights to begin with. Raises WeightsError, in words, when a stage cannot begin with them."""
        if not path:
            if allowed and stage == "fusion":
                raise WeightsError("stage=fusion needs start=PATH, weights of stage joint or classification")
            return None
        if not allowed:
            raise WeightsError(
                f"start={path}: stage={stage} starts from ImageNet or from nothing, not from weights of ours"
            )
        weights = load(Path(path), self.preprocessing)
        theirs = weights.about.get("config", {}).get("stage", "joint")  # weights from before there were stages
        if theirs not in allowed:
            raise WeightsError(
                f"{path} holds weights of stage {theirs}; stage={stage} takes those of stage {' or '.join(allowed)}"
            )
        if weights.about.get("split_sha256") != self.split_sha256:
            raise WeightsError(
                f"{path} was trained on another split: it may have seen what this training is tested on;"
                " train it on the same split and fold"
            )
        return weights

    def parts(self) -> Triple:
        """B, and A if it is one of its own, as C sees them."""
        assert self.start is not None
        b = ClassificationNet(TripleConfig.of(self.start.about["config"]))
        self.start.into(b)
        if self.masks is None:
            return Triple(b)
        a = segmentation_net(TripleConfig.of(self.masks.about["config"]))
        self.masks.into(a)
        return Triple(b, a)

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """The network of a checkpoint of this system, by the config in the JSON beside it; its weights are to come."""
        stage = config.get("stage", "joint")
        if stage == "fusion":
            return FUSIONS[config["fusion"]](config.get("softmax_out", False))
        about = TripleConfig.of(config)
        return segmentation_net(about) if stage == "segmentation" else ClassificationNet(about)

    def model(self) -> nn.Module:
        model = self.network(asdict(self.config))
        if self.config.stage == "fusion":
            return model
        body = model.body if isinstance(model, ClassificationNet) else model
        if self.start is not None:
            self.start.into(body)
            return model.requires_grad_(True)
        if isinstance(body.encoder, EfficientNetLite) and self.config.starts_learnt:
            from_imagenet(body.encoder, imagenet_weights(body.encoder.version))
        return model

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        slow: list[Tensor] = []
        fast: list[Tensor] = []
        for name, weights in model.named_parameters():
            (slow if config.starts_learnt and "encoder." in name else fast).append(weights)
        groups: list[dict[str, Any]] = [{"params": fast}]
        if slow:
            groups.append({"params": slow, "lr": config.lr * config.encoder_rate})
        if config.stage == "fusion" and config.fusion == "small":  # not towards zero: `departure` pulls it towards B
            return OPTIMISERS[config.optimiser](groups, lr=config.fusion_lr, weight_decay=0.0)  # type: ignore[call-arg]
        return OPTIMISERS[config.optimiser](groups, lr=config.lr, weight_decay=config.weight_decay)  # type: ignore[call-arg]

    def steps(self, epoch: int) -> int:
        return len(self.images["train"]) // self.config.batch

    @cache  # noqa: B019  the recipe lives as long as the training
    def prepared(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Grey 0..1 and masks (N, 1, size, size), labels (N)"""
        images, size = self.images[split], self.config.size
        grey = torch.stack([prepare(image.pixels, size)[0] for image in images])[:, None]
        masks = torch.stack([prepare_mask(image.mask, size) for image in images])[:, None]
        return grey, masks, torch.tensor([image.label for image in images])

    def batches(self, split: str, epoch: int) -> Iterator[dict[str, Tensor]]:
        grey, masks, labels = self.prepared(split)
        if split != "train":
            for chunk in torch.arange(len(labels)).split(self.config.batch):
                yield {"image": normalise(grey[chunk]), "mask": masks[chunk], "label": labels[chunk]}
            return
        rng = np.random.default_rng((self.config.seed, epoch))
        order = rng.permutation(len(labels))[: self.steps(epoch) * self.config.batch]
        for chosen in order.reshape(-1, self.config.batch):
            image, mask = vary(grey[chosen], masks[chosen], rng, VARIATIONS[self.config.variation])
            batch = {"image": normalise(image), "mask": mask, "label": F.one_hot(labels[chosen], len(CLASSES)).float()}
            yield blended(batch, rng, self.config.mixup_alpha) if rng.random() < self.config.mixup else batch

    def distillation_targets(self, teachers: Sequence[nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raises ValueError for a stage that takes no teacher, and for a teacher that says nothing of the classes."""
        if self.config.stage not in TAUGHT:
            raise ValueError(f"stage {self.config.stage} takes no --teacher; {' and '.join(TAUGHT)} do")
        silent = SegmentationNet | LiteSegmentationNet | FusionNet | SmallFusion
        if any(isinstance(teacher, silent) for teacher in teachers):
            raise ValueError(f"a --teacher must be of stage {' or '.join(TAUGHT)}: others say nothing of the classes")
        masks, classes = zip(*(teacher(batch["image"]) for teacher in teachers), strict=True)
        shares = torch.stack([each.float().softmax(dim=1) for each in classes])
        return {"teacher_mask": mean_probability(list(masks)), "teacher_classes": shares.mean(dim=0)}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        config = self.config
        if config.stage == "fusion":
            q = model.q(*self.seen(batch["image"]))  # type: ignore[operator]
            return self.nll(q, batch["label"]) + config.fusion_pull * model.departure()  # type: ignore[operator]
        if config.stage == "segmentation":
            return self.mask_loss(model(batch["image"]), batch["mask"])
        mask, classes = model(batch["image"])
        weights = self.class_weights.to(classes.device)
        loss = F.cross_entropy(classes.float(), batch["label"], weights, label_smoothing=config.label_smoothing)
        share = config.auxiliary_weight if config.stage == "classification" else 1.0
        loss = config.class_weight * loss + share * self.mask_loss(mask, batch["mask"])
        if "teacher_mask" in batch:
            taught = config.class_weight * class_distillation(classes, batch["teacher_classes"])
            loss = torch.lerp(loss, taught + share * mask_distillation(mask, batch["teacher_mask"]), config.distil)
        return loss

    def mask_loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Tversky and cross-entropy: (B, 1, H, W), (B, 1, H, W) -> scalar"""
        cross = F.binary_cross_entropy_with_logits(logits.float(), mask)
        return self.config.mask_weight * tversky_loss(logits, mask) + self.config.bce_weight * cross

    def nll(self, q: Tensor, label: Tensor) -> Tensor:
        """-log q of the true class, classes weighed like B's: (B, 3), one-hot (B, 3) -> scalar"""
        weights = label * self.class_weights.to(q.device)
        return -(weights * q.clamp(min=1e-7).log()).sum() / weights.sum()

    def seen(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What A and B say, which C may not change: (B, 1, H, W) -> probabilities (B, 1, H, W), (B, 3)"""
        assert self.frozen is not None
        with torch.no_grad():
            mask, classes = self.frozen.to(image.device)(image)
        return mask.sigmoid(), classes.softmax(dim=1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Quick figures on the network's own grid; evaluate.py judges the pipeline on the source's."""
        stage = self.config.stage
        dice, empty, shares, alone, labels = [], [], [], [], []
        for batch in self.batches(split, 0):
            image = batch["image"].to(next(model.parameters()).device, memory_format=torch.channels_last)
            labels.append(batch["label"])
            if stage == "fusion":
                mask, classes = self.seen(image)
                shares.append(model(mask, classes).cpu().float())
                alone.append(classes.cpu().float())
                continue
            answer = model(image)
            mask = answer if stage == "segmentation" else answer[0]
            found, truth = mask.cpu().float() > 0, batch["mask"] > 0.5
            overlap = 2 * (found & truth).sum((1, 2, 3)) / (found.sum((1, 2, 3)) + truth.sum((1, 2, 3))).clamp(min=1)
            dice += overlap[batch["label"] > 0].tolist()
            empty += (~found.flatten(1).any(1))[batch["label"] == 0].tolist()
            if stage != "segmentation":
                shares.append(answer[1].cpu().float().softmax(dim=1))
        label = torch.cat(labels)
        if stage == "segmentation":
            return {"dice": float(np.mean(dice)), "empty": float(np.mean(empty)), "score": float(np.mean(dice))}
        figures = self.class_figures(torch.cat(shares), label)
        if stage == "fusion":
            figures |= {f"alone_{name}": value for name, value in self.class_figures(torch.cat(alone), label).items()}
            return {**figures, "score": -figures["nll"]}
        figures = {"dice": float(np.mean(dice)), "accuracy": figures["accuracy"], "auc": figures["auc"]}
        if stage == "classification":
            return {**figures, "score": figures["auc"] + self.config.auxiliary_weight * figures["dice"]}
        # accuracy of 63 images moves in steps of 1.6 %; the area says the same more finely, whatever the calibration
        return {**figures, "score": figures["dice"] + figures["auc"]}

    def class_figures(self, shares: Tensor, label: Tensor) -> dict[str, float]:
        """(N, 3), (N) -> accuracy, macro AUC and weighed NLL"""
        share, truth = shares.numpy(), label.numpy()
        areas = [auc(share[:, c], truth == c) for c in range(len(CLASSES))]
        nll = self.nll(shares, F.one_hot(label, len(CLASSES)).float())
        return {"accuracy": accuracy(share.argmax(1), truth), "auc": float(np.mean(areas)), "nll": nll.item()}


def divide(images: list[Labelled], config: Config) -> tuple[dict[str, list[Labelled]], str]:
    """The images of train, val and test, and the digest of the split that says so."""
    if config.fold < 0:
        return parts(images, config.split)
    split = rotation(images, config.folds, config.fold)
    by_name = {image.name: image for image in images}
    return {part: [by_name[name] for name in split[part]] for part in ("train", "val", "test")}, split_sha256(split)


def named(config: Config) -> str:
    """What a training's files are called: the stage, and the network of it."""
    kind = config.fusion if config.stage == "fusion" else f"{config.encoder}_w{config.width}"
    return f"breast_{'triple' if config.stage == 'joint' else config.stage}_{kind}"


def differences(config: Config, theirs: Mapping[str, Any]) -> str:
    """In what the network of `theirs` is another than that of `config`, in words; heads do not count: A has none."""
    own, other = TripleConfig.of(asdict(config)), TripleConfig.of(theirs)
    shapes = ("encoder", "width", "reduction", "smoothing", "attention")
    return ", ".join(
        f"{name} is {getattr(other, name)} there and {getattr(own, name)} here"
        for name in shapes
        if getattr(own, name) != getattr(other, name)
    )


def blended(batch: Mapping[str, Tensor], rng: np.random.Generator, alpha: float) -> dict[str, Tensor]:
    """Mixup, Zhang 2018 (arXiv:1710.09412): images, masks and classes of a batch, each blended with the next one's."""
    share = float(rng.beta(alpha, alpha))
    return {name: torch.lerp(values, values.roll(1, 0), 1 - share) for name, values in batch.items()}


def build(data: Path, config: Config) -> BreastRecipe:
    return BreastRecipe(read_busi(data), config)
