"""How the breast ultrasound network is trained: A and B as one, coarse images first, then the working size.

    python -m models.train breast_us --data busi.zip --out runs/breast

Departures from the published recipe, each for the sake of 432 training images and two cores: one network for both
tasks instead of two; the whole image in a letterbox instead of a centre crop; AdamW with a cosine instead of Adam with
plateaus; heads that look at the marked lesion; cross-entropy added to the Tversky loss; affine variation beside the
published ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.breast_us.data import (
    PREPROCESSING,
    Labelled,
    Variation,
    normalise,
    prepare,
    prepare_mask,
    read_busi,
    read_split,
    split_sha256,
    vary,
)
from models.losses import tversky_loss
from models.nets.breast_triple import CLASSES, STEP_PX, ClassificationNet, TripleConfig
from models.recipe import TrainConfig

# From this share of the epochs on, images have this share of the working size: early epochs are cheap.
GROWTH = ((0.0, 0.5), (0.35, 0.7), (0.75, 1.0))


@dataclass(frozen=True)
class Config(TrainConfig):
    epochs: int = 140
    batch: int = 16
    lr: float = 1.5e-3
    weight_decay: float = 0.02
    warm_up_epochs: float = 4.0
    ema_decay: float = 0.99
    size: int = 160  # side of the letterbox, here and in the pipeline
    mask_weight: float = 1.0  # Tversky
    bce_weight: float = 0.5
    class_weight: float = 1.0
    label_smoothing: float = 0.05
    dropout: float = 0.3


class BreastRecipe:
    preprocessing = PREPROCESSING

    def __init__(self, images: list[Labelled], config: Config) -> None:
        self.config = config
        self.name = f"breast_triple_w{config.width}"
        split = read_split()
        self.split_sha256 = split_sha256(split)
        by_name = {image.name: image for image in images}
        self.images = {part: [by_name[name] for name in split[part]] for part in ("train", "val", "test")}
        counts = np.bincount([image.label for image in self.images["train"]], minlength=len(CLASSES))
        self.class_weights = torch.tensor(counts.mean() / counts, dtype=torch.float32)  # inverse to frequency

    def model(self) -> nn.Module:
        return ClassificationNet(TripleConfig(self.config.width, heads="lesion", dropout=self.config.dropout))

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), self.config.lr, weight_decay=self.config.weight_decay)

    def steps(self, epoch: int) -> int:
        return len(self.images["train"]) // self.config.batch

    def size(self, epoch: int) -> int:
        """Side of the square in this epoch."""
        share = max(of_size for start, of_size in GROWTH if epoch >= start * self.config.epochs)
        return round(self.config.size * share / STEP_PX) * STEP_PX

    @cache  # noqa: B019  the recipe lives as long as the training
    def prepared(self, split: str, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Grey 0..1 and masks (N, 1, size, size), labels (N)"""
        images = self.images[split]
        grey = torch.stack([prepare(image.pixels, size)[0] for image in images])[:, None]
        masks = torch.stack([prepare_mask(image.mask, size) for image in images])[:, None]
        return grey, masks, torch.tensor([image.label for image in images])

    def batches(self, split: str, epoch: int) -> Iterator[dict[str, Tensor]]:
        grey, masks, labels = self.prepared(split, self.size(epoch))
        if split != "train":
            for chunk in torch.arange(len(labels)).split(self.config.batch):
                yield {"image": normalise(grey[chunk]), "mask": masks[chunk], "label": labels[chunk]}
            return
        rng = np.random.default_rng((self.config.seed, epoch))
        order = rng.permutation(len(labels))[: self.steps(epoch) * self.config.batch]
        for chosen in order.reshape(-1, self.config.batch):
            image, mask = vary(grey[chosen], masks[chosen], rng, Variation())
            yield {"image": normalise(image), "mask": mask, "label": labels[chosen]}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        mask, classes = model(batch["image"])
        config, weights = self.config, self.class_weights.to(classes.device)
        return (
            config.mask_weight * tversky_loss(mask, batch["mask"])
            + config.bce_weight * F.binary_cross_entropy_with_logits(mask.float(), batch["mask"])
            + config.class_weight
            * F.cross_entropy(classes.float(), batch["label"], weights, label_smoothing=config.label_smoothing)
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Quick figures on the network's own grid; models/evaluate.py judges the pipeline on the source's grid."""
        dice, losses, right = [], [], []
        last = self.config.epochs - 1  # always at the working size: coarse epochs must not win by easier images
        for batch in self.batches(split, last):
            image = batch["image"].to(next(model.parameters()).device, memory_format=torch.channels_last)
            mask, classes = model(image)
            found, truth = mask.cpu().float() > 0, batch["mask"] > 0.5
            overlap = 2 * (found & truth).sum((1, 2, 3)) / (found.sum((1, 2, 3)) + truth.sum((1, 2, 3))).clamp(min=1)
            dice += overlap[batch["label"] > 0].tolist()
            classes = classes.cpu().float()
            losses += F.cross_entropy(classes, batch["label"], reduction="none").tolist()
            right += (classes.argmax(1) == batch["label"]).tolist()
        figures = {"dice": np.mean(dice), "accuracy": np.mean(right), "cross_entropy": np.mean(losses)}
        # accuracy of 63 images moves in steps of 1.6 %; the cross-entropy says the same more finely
        score = figures["dice"] + figures["accuracy"] - figures["cross_entropy"]
        return {name: float(value) for name, value in {**figures, "score": score}.items()}


def build(data: Path, config: Config) -> BreastRecipe:
    return BreastRecipe(read_busi(data), config)
