"""How the lung-nodule network is trained: the residual U-Net, or one it is compared with, on LIDC crops, by patient,
small cuts first.

    --set vit=true                                   Model 1: a ViT in the bottleneck
    --set scse=encoder+decoder                       gates elsewhere: any union of encoder, decoder, bottleneck, or none
    --set encoder=lite0 --set encoder_rate=0.3       an encoder that has seen ImageNet, for few data
    --set net=transunet                              or unet, attention_unet
    --set centred=true --set crop=64                 for the refinement of a detection: see refine.py

The first epochs see 64x64 cuts: four times as many nodules a second, and room for cuts without any. The rest see
128x128, as the pipeline's windows are, and learn there what around a nodule is none.

A centred network sees what a detector found in the middle of its crop, in training too, and answers for the middle:
what it marks elsewhere is another finding's, and is left out when it is judged, as refine.py leaves it out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.lung_nodule.preprocess import PREPROCESSING, SIDE
from models.nets.baselines import Net, build_net
from models.nets.efficientnet_lite import EfficientNetLite, from_imagenet, imagenet_weights
from models.nets.residual_unet import PLACES, Encoder, ResidualUNetConfig
from models.training.evaluation.metrics import dice, iou
from models.training.losses import bce_dice_loss, mask_distillation, mean_probability
from models.training.lung_nodule.data.slices import NEGATIVES, Slices, Strategy, evenly
from models.training.lung_nodule.residual_unet.slice_outcomes import central, correct, outcomes
from models.training.recipe import TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    epochs: int = 20
    batch: int = 16  # of 128x128; small cuts come twice as many at a time
    lr: float = 1.5e-3
    ema_decay: float = 0.995
    net: Net = "residual_unet"
    scse: str = "encoder+bottleneck"  # this and the next eight: see ResidualUNetConfig
    vit: bool = False
    keep_scse: bool = False
    vit_width: int = 768
    vit_depth: int = 6
    vit_heads: int = 12
    vit_mlp: int = 3072
    rates: tuple[int, ...] = (1, 2, 4, 6)
    encoder: Encoder = "plain"
    drop_path: float = 0.0
    pretrained: bool = True  # a lite encoder starts from ImageNet
    encoder_rate: float = 0.3  # learning rate of a learnt encoder, of that of the rest
    crop: int = 128  # side of the crops it learns from and is judged on: what is cut from the middle of the stored ones
    small_cut: int = 64
    small_epochs: float = 0.3  # share of the epochs on small cuts
    large_share: float = 0.5  # share of the crops that an epoch of 128x128 sees: they take four times as long
    dice_per_image: bool = True  # small sections of a nodule count as much as large ones, as they do in the figures
    negatives: float = 0.25  # share of small cuts without nodule
    large_negatives: float = (
        0.4  # share of whole cuts without: a scan has far more windows without nodule than with one
    )
    centred: bool = False  # the finding is in the middle of the crop; the phases and cuts above are then not used
    shift: float = 4.0  # pixels by which a detector may miss the middle
    agreement: bool = True  # a centred network learns from how many readers marked a pixel, not only from the majority
    val_crops: int = 400  # evenly spaced; the whole split is for the test
    split: Strategy = "stored"  # or "fresh": see data.split_of
    cache: str = ""  # folder for the crops of whole scans; layouts.CACHE when empty


class NoduleRecipe:
    """Recipe of `models.training.train residual_unet`."""

    preprocessing = PREPROCESSING

    def __init__(self, data: Path, config: Config) -> None:
        self.config = config
        self.name = named(config)
        cache = Path(config.cache) if config.cache else None
        self.slices = Slices(data, size=max(SIDE, config.crop), cache=cache, strategy=config.split)
        self.split_sha256 = self.slices.split_sha256

    def model(self) -> nn.Module:
        model = self.network(asdict(self.config))
        lite = getattr(model, "lite", None)
        if isinstance(lite, EfficientNetLite) and self.config.pretrained:
            from_imagenet(lite, imagenet_weights(lite.version))
        return model

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        return build_net(config)

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        slow: list[Tensor] = []
        fast: list[Tensor] = []
        for name, weights in model.named_parameters():
            (slow if config.pretrained and name.startswith("lite.") else fast).append(weights)
        groups: list[dict[str, Any]] = [{"params": fast}]
        if slow:
            groups.append({"params": slow, "lr": config.lr * config.encoder_rate})
        return torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)

    def cut(self, epoch: int) -> tuple[int, int, int]:
        """(side, batch, number of crops) of the epoch's cuts."""
        crops = len(self.slices.index["train"])
        if self.config.centred:
            return self.config.crop, self.config.batch, crops
        if epoch < round(self.config.small_epochs * self.config.epochs):
            return self.config.small_cut, 2 * self.config.batch, crops
        return self.config.crop, self.config.batch, round(self.config.large_share * crops)

    def steps(self, epoch: int) -> int:
        _, batch, crops = self.cut(epoch)
        return crops // batch

    def batches(self, split: str, epoch: int) -> Iterator[dict[str, Tensor]]:
        if split != "train":
            return self.slices.fixed(split)
        size, batch, crops = self.cut(epoch)
        seed = self.config.seed * 1000 + epoch
        if self.config.centred:
            share, shift = self.config.negatives, self.config.shift
            return self.slices.centred(split, seed=seed, size=size, batch=batch, negatives=share, shift=shift)
        negatives = self.config.negatives if size < 128 else self.config.large_negatives
        return self.slices.augmented(split, seed=seed, size=size, batch=batch, crops=crops, negatives=negatives)

    def distillation_targets(self, teachers: Sequence[nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"teacher_mask": mean_probability([teacher(batch["image"]) for teacher in teachers])}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        logits = model(batch["image"])
        soft = self.config.agreement and "agreement" in batch
        truth = batch["agreement"] if soft else batch["mask"]
        loss = bce_dice_loss(logits, truth, per_image=self.config.dice_per_image)
        if "teacher_mask" in batch:
            loss = torch.lerp(loss, mask_distillation(logits, batch["teacher_mask"]), self.config.distil)
        return loss

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """The figures that the tables judge by, at threshold 0.5: IoU over all slices and accuracy by the rule; score:
        their mean. Beside them the mean Dice over nodule slices, and the share of slices without that are left empty.

        Of "val" an even sample of at most val_crops slices with a nodule, and as many without as belong to them.
        """
        device = next(model.parameters()).device
        order = self.slices.index[split]
        if split == "val":
            order = evenly(order, self.config.val_crops)
        overlap, ious, called = [], [], []
        for batch in itertools.chain(
            self.slices.crops(order), self.slices.negatives(split, most=round(NEGATIVES * len(order)))
        ):
            image, mask = (middle(batch[name], self.config.crop) for name in ("image", "mask"))
            predicted, truth = (model(image.to(device)) > 0)[:, 0].cpu().numpy(), mask[:, 0].numpy()
            if self.config.centred:
                predicted = np.stack([central(one) for one in predicted])
            overlap += [dice(p, t) for p, t in zip(predicted, truth, strict=True) if t.any()]
            ious += [iou(p, t) for p, t in zip(predicted, truth, strict=True)]
            called += outcomes(predicted, truth).tolist()
        outcome = np.array(called)
        figures = {
            "iou": float(np.mean(ious)),
            "accuracy": float(correct(outcome).mean()),
            "dice": float(np.mean(overlap)),
            "left_empty": float((outcome[np.isin(outcome, ("TN", "FP"))] == "TN").mean()),
        }
        return {"score": (figures["iou"] + figures["accuracy"]) / 2, **figures}


def named(config: Config) -> str:
    """What a training's files are called: the network, how it departs from Model 2, and its width."""
    own = ResidualUNetConfig.of(asdict(config))
    parts: list[str] = [config.net, *([own.encoder] if own.encoder != "plain" else [])]
    parts += [part for part, there in (("vit", own.vit), ("keep_scse", own.keep_scse)) if there]
    if own.gated != ResidualUNetConfig(vit=own.vit, keep_scse=own.keep_scse).gated:
        parts += ["scse", *([place for place in PLACES if place in own.gated] or ["none"])]
    parts += ["centred"] if config.centred else []
    return "_".join([*parts, f"w{config.width}"])


def middle(images: Tensor, side: int) -> Tensor:
    """The middle of images: (B, C, H, W) -> (B, C, side, side). A nodule lies in the middle of its crop.

    Raises ValueError when the images are smaller.
    """
    if side > min(images.shape[-2:]):
        raise ValueError(f"crops of {side} pixels cannot be cut from stored ones of {min(images.shape[-2:])}")
    top, left = ((size - side) // 2 for size in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def build(data: Path, config: Config) -> NoduleRecipe:
    return NoduleRecipe(data, config)
