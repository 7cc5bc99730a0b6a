"""The breast network trained over two hospitals, each half of every batch.

    python -m models.training.train breast_us_hospitals --data FOLDER --out runs/hospitals \
        --set start=models/breast_us/breast_triple_lite0_w16.safetensors
    python -m models.training.train breast_us_hospitals --data FOLDER --out runs/rio \
        --set hospitals=bus_bra    # one hospital, from ImageNet: to be tested on the other

FOLDER holds busi.zip and bus_bra.zip. The class "normal" is known from Cairo only; were it learnt as it comes, "another
hospital" would mean "a lesion". So of both hospitals a share of the pictures with a lesion is cut to the tissue beside
it and called normal, and others are cut as narrow with their lesion (acquisition.py). Those cuts are not normal
breasts: what is said of normal images can be tested in Cairo alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.breast_us.letterbox import PREPROCESSING, normalise
from models.nets.breast_triple import CLASSES, ClassificationNet, LiteSegmentationNet, TripleConfig
from models.training.breast_us.acquisition import vary
from models.training.breast_us.data import read_split, split_sha256
from models.training.breast_us.hospitals import HOSPITALS, Picture, divided, read_hospitals, read_hospitals_split
from models.training.breast_us.recipe import BreastRecipe, named
from models.training.breast_us.recipe import Config as JointConfig
from models.training.evaluation.metrics import accuracy, auc
from models.training.recipe import must_be_known
from models.weights import Weights, WeightsError, load

Trained = Literal["both", "busi", "bus_bra"]
BUSI_FILE, BUS_BRA_FILE = "busi.zip", "bus_bra.zip"
NORMALS_SEEN = 0.15  # of what is shown of BUS-BRA: tissue beside lesions


@dataclass(frozen=True)
class Config(JointConfig):
    hospitals: Trained = "both"  # to train on and to choose the epoch by; the other one is then never seen
    per_epoch: int = 640  # images shown, of each hospital as many; an epoch is what a kill costs at most
    frozen: int = 0  # of the encoder's first stages with the stem: half of the time goes there
    epochs: int = 28
    lr: float = 1e-3
    warm_up_epochs: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        must_be_known(self, {"hospitals": get_args(Trained), "stage": ("joint", "fusion")})

    @property
    def seen(self) -> tuple[str, ...]:
        return HOSPITALS if self.hospitals == "both" else (self.hospitals,)


class HospitalsRecipe(BreastRecipe):
    """See models.training.recipe.Recipe."""

    preprocessing = PREPROCESSING

    def __init__(self, pictures: list[Picture], config: Config) -> None:
        self.images, self.split_sha256 = divided(pictures, config.seen)  # type: ignore[assignment]
        self.masks = None
        fuses = config.stage == "fusion"
        if fuses and not config.start:
            raise WeightsError("stage=fusion needs start=PATH, weights of this recipe")
        self.start = begun(Path(config.start), self.images) if config.start else None
        self.config: Config = replace(config, start_sha256=self.start.sha256 if self.start else "")
        if fuses and self.start:  # C sees what B was trained to see
            self.config = replace(self.config, size=self.start.about["config"]["size"])
        self.name = named(config)
        self.frozen = self.parts().eval().requires_grad_(False) if fuses else None
        self.class_weights = 1 / torch.tensor(self.frequencies(), dtype=torch.float32)

    def frequencies(self) -> np.ndarray:
        """How often a class is shown, 1 in the mean: the hospitals alike, cuts beside lesions counted as normal."""
        shown = []
        for hospital in self.config.seen:
            labels = [one.label for one in self.of(hospital)]
            share = np.bincount(labels, minlength=len(CLASSES)) / len(labels)
            shown.append(share if share[0] else np.array([NORMALS_SEEN, *(1 - NORMALS_SEEN) * share[1:]]))
        return np.mean(shown, axis=0) * len(CLASSES)

    def of(self, hospital: str, split: str = "train") -> list[Picture]:
        return [one for one in self.images[split] if isinstance(one, Picture) and one.hospital == hospital]

    def model(self) -> nn.Module:
        """The whole network from `start`; without it the encoder from ImageNet, the rest fresh. Or C on top of it."""
        if self.config.stage == "fusion":
            return super().model()
        if self.start is None:
            net = super().model()
        else:
            net = self.start.start(ClassificationNet(TripleConfig.of(asdict(self.config)))).requires_grad_(True)
        if self.config.frozen:  # batch norm still follows what it is shown: the statistics of other scanners are others
            assert isinstance(net, ClassificationNet)
            assert isinstance(net.body, LiteSegmentationNet)
            encoder = net.body.encoder
            for part in (encoder.stem, *list(encoder.stages)[: self.config.frozen]):
                part.requires_grad_(False)
        return net

    def steps(self, epoch: int) -> int:
        return self.config.per_epoch // self.config.batch

    def batches(self, split: str, epoch: int) -> Iterator[dict[str, Tensor]]:
        if split != "train":
            yield from super().batches(split, epoch)
            return
        grey, masks, labels = self.prepared("train")
        rng = np.random.default_rng((self.config.seed, epoch))
        of = np.array([one.name.split("/")[0] for one in self.images["train"]])
        each = self.config.batch // len(self.config.seen)
        drawn = [
            endless(np.flatnonzero(of == hospital), each * self.steps(epoch), rng) for hospital in self.config.seen
        ]
        for step in range(self.steps(epoch)):
            chosen = np.concatenate([own[step * each : (step + 1) * each] for own in drawn])
            image, mask, label = vary(grey[chosen], masks[chosen], labels[chosen], rng)
            yield {"image": normalise(image), "mask": mask, "label": F.one_hot(label, len(CLASSES)).float()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Figures of each hospital on the network's own grid; the score takes Dice and AUC of each alike. Of C its
        class figures beside those of B alone, of both hospitals together."""
        if self.config.stage == "fusion":
            return super().evaluate(model, split)
        found, shares = [], []
        for batch in self.batches(split, 0):
            image = batch["image"].to(next(model.parameters()).device, memory_format=torch.channels_last)
            mask, classes = model(image)
            found.append(mask.cpu().float() > 0)
            shares.append(classes.cpu().float().softmax(dim=1))
        _, masks, labels = self.prepared(split)
        marked, truth = torch.cat(found), masks > 0.5
        overlap = 2 * (marked & truth).sum((1, 2, 3)) / (marked.sum((1, 2, 3)) + truth.sum((1, 2, 3))).clamp(min=1)
        share, label = torch.cat(shares).numpy(), labels.numpy()
        of = np.array([one.name.split("/")[0] for one in self.images[split]])
        figures: dict[str, float] = {}
        for hospital in self.config.seen:
            own, lesions = of == hospital, (of == hospital) & (label > 0)
            figures[f"{hospital}_dice"] = float(overlap.numpy()[lesions].mean())
            areas = [auc(share[own, c], label[own] == c) for c in range(len(CLASSES))]
            figures[f"{hospital}_auc"] = float(np.nanmean(areas if (label[own] == 0).any() else areas[2:]))
            figures[f"{hospital}_accuracy"] = accuracy(share[own].argmax(1), label[own])
        score = sum(value for name, value in figures.items() if not name.endswith("accuracy"))
        return {**figures, "score": score}


def begun(path: Path, images: Mapping[str, list[Any]]) -> Weights:
    """Weights to start from. Raises WeightsError when they learnt from, or were chosen by, an image of test or val."""
    weights = load(path, PREPROCESSING)
    stored = read_split()
    if weights.about.get("split_sha256") == read_hospitals_split()["sha256"]:
        return weights  # test was kept from them, and they were chosen by the same val
    if weights.about.get("split_sha256") != split_sha256(stored):
        raise WeightsError(f"{path} was trained on a split that is not known here; it may have seen what is tested on")
    learnt = {f"busi/{name}" for name in stored["train"]}
    chosen_by = {f"busi/{name}" for name in stored["val"]}
    seen = {one.name for one in images["val"]} & learnt | {one.name for one in images["test"]} & (learnt | chosen_by)
    if seen:
        raise WeightsError(f"{path} has seen {min(seen)} and {len(seen) - 1} more of what would be tested on")
    return weights


def endless(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many of the rows, none a second time before all were drawn."""
    return np.concatenate([rng.permutation(rows) for _ in range(-(-count // len(rows)))])[:count]


def build(data: Path, config: Config) -> HospitalsRecipe:
    return HospitalsRecipe(read_hospitals(data / BUSI_FILE, data / BUS_BRA_FILE), config)
