"""How the breast ultrasound network is trained: A and B as one, from an encoder that has seen other images before.

    python -m models.train breast_us --data busi.zip --out runs/breast
    python -m models.train breast_us --data busi.zip --out runs/plain --set encoder=plain --width 64    # as published

Departures from the published recipe, each for the sake of 432 training images and two cores: EfficientNet-Lite learnt
on ImageNet in the place of the plain encoder; one network for both tasks instead of two; the whole image in a letterbox
instead of a centre crop; AdamW with a cosine instead of Adam with plateaus; heads that look at the marked lesion;
cross-entropy added to the Tversky loss; affine variation beside the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.breast_us.data import (
    PREPROCESSING,
    Labelled,
    Strategy,
    Variation,
    normalise,
    parts,
    prepare,
    prepare_mask,
    read_busi,
    vary,
)
from models.losses import class_distillation, mask_distillation, mean_probability, tversky_loss
from models.metrics import accuracy, auc
from models.nets.breast_triple import CLASSES, ClassificationNet, Encoder, Heads, TripleConfig
from models.nets.efficientnet_lite import EfficientNetLite, from_imagenet, imagenet_weights
from models.recipe import TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    epochs: int = 40
    batch: int = 16
    lr: float = 1.5e-3
    encoder_rate: float = 0.3  # learning rate of a learnt encoder, of that of the rest
    weight_decay: float = 0.02
    warm_up_epochs: float = 2.0
    ema_decay: float = 0.98
    size: int = 224  # side of the letterbox, here and in the pipeline; a multiple of SIDE_STEP
    encoder: Encoder = "lite0"
    pretrained: bool = True  # a lite encoder starts from ImageNet
    heads: Heads = "joint"
    smoothing: bool = True
    attention: bool = True
    dropout: float = 0.4
    drop_path: float = 0.1
    mask_weight: float = 1.0  # Tversky
    bce_weight: float = 0.5
    class_weight: float = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.0  # share of the batches in which each image is blended with another
    mixup_alpha: float = 0.4  # of the Beta distribution the blend is drawn from
    split: Strategy = "stored"  # or "fresh": see data.parts

    @property
    def starts_learnt(self) -> bool:
        return self.pretrained and self.encoder != "plain"


class BreastRecipe:
    preprocessing = PREPROCESSING

    def __init__(self, images: list[Labelled], config: Config) -> None:
        self.config = config
        self.name = f"breast_triple_{config.encoder}_w{config.width}"
        self.images, self.split_sha256 = parts(images, config.split)
        counts = np.bincount([image.label for image in self.images["train"]], minlength=len(CLASSES))
        self.class_weights = torch.tensor(counts.mean() / counts, dtype=torch.float32)  # inverse to frequency

    def model(self) -> nn.Module:
        model = self.network(asdict(self.config))
        encoder = model.body.encoder
        if isinstance(encoder, EfficientNetLite) and self.config.starts_learnt:
            from_imagenet(encoder, imagenet_weights(encoder.version))
        return model

    def network(self, config: Mapping[str, Any]) -> ClassificationNet:
        return ClassificationNet(TripleConfig.of(config))

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        slow: list[Tensor] = []
        fast: list[Tensor] = []
        for name, weights in model.named_parameters():
            (slow if config.starts_learnt and ".encoder." in name else fast).append(weights)
        groups: list[dict[str, Any]] = [{"params": fast}]
        if slow:
            groups.append({"params": slow, "lr": config.lr * config.encoder_rate})
        return torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)

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
            image, mask = vary(grey[chosen], masks[chosen], rng, Variation())
            batch = {"image": normalise(image), "mask": mask, "label": F.one_hot(labels[chosen], len(CLASSES)).float()}
            yield blended(batch, rng, self.config.mixup_alpha) if rng.random() < self.config.mixup else batch

    def lesson(self, teachers: Sequence[nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks, classes = zip(*(teacher(batch["image"]) for teacher in teachers), strict=True)
        shares = torch.stack([each.float().softmax(dim=1) for each in classes])
        return {"taught_mask": mean_probability(list(masks)), "taught_classes": shares.mean(dim=0)}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        mask, classes = model(batch["image"])
        config, weights = self.config, self.class_weights.to(classes.device)
        loss = (
            config.mask_weight * tversky_loss(mask, batch["mask"])
            + config.bce_weight * F.binary_cross_entropy_with_logits(mask.float(), batch["mask"])
            + config.class_weight
            * F.cross_entropy(classes.float(), batch["label"], weights, label_smoothing=config.label_smoothing)
        )
        if "taught_mask" in batch:
            taught = mask_distillation(mask, batch["taught_mask"])
            taught = taught + config.class_weight * class_distillation(classes, batch["taught_classes"])
            loss = torch.lerp(loss, taught, config.distil)
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Quick figures on the network's own grid; models/evaluate.py judges the pipeline on the source's grid."""
        dice, shares, labels = [], [], []
        for batch in self.batches(split, 0):
            image = batch["image"].to(next(model.parameters()).device, memory_format=torch.channels_last)
            mask, classes = model(image)
            found, truth = mask.cpu().float() > 0, batch["mask"] > 0.5
            overlap = 2 * (found & truth).sum((1, 2, 3)) / (found.sum((1, 2, 3)) + truth.sum((1, 2, 3))).clamp(min=1)
            dice += overlap[batch["label"] > 0].tolist()
            shares.append(classes.cpu().float().softmax(dim=1).numpy())
            labels.append(batch["label"].numpy())
        share, label = np.concatenate(shares), np.concatenate(labels)
        areas = [auc(share[:, c], label == c) for c in range(len(CLASSES))]
        right = accuracy(share.argmax(1), label)
        figures = {"dice": float(np.mean(dice)), "accuracy": right, "auc": float(np.mean(areas))}
        # accuracy of 63 images moves in steps of 1.6 %; the area says the same more finely, whatever the calibration
        return {**figures, "score": figures["dice"] + figures["auc"]}


def blended(batch: Mapping[str, Tensor], rng: np.random.Generator, alpha: float) -> dict[str, Tensor]:
    """Mixup, Zhang 2018 (arXiv:1710.09412): images, masks and classes of a batch, each blended with the next one's."""
    share = float(rng.beta(alpha, alpha))
    return {name: torch.lerp(values, values.roll(1, 0), 1 - share) for name, values in batch.items()}


def build(data: Path, config: Config) -> BreastRecipe:
    return BreastRecipe(read_busi(data), config)
