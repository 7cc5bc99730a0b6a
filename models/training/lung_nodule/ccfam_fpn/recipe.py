"""How the detector on slices is trained: CCFAM-FPN on LIDC slices with boxes, by patient.

--set attention=se --set fpn=false       any of plain, se, eca, cbam, coord, ccasm, ccapm; with or without pyramid
--set depth=1,1,1,1 --width 16           a small one, for processors
--set chests=FOLDER                      whole chests as well, for one that is to serve: see data/scans.py
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from models.layers.attention import Attention
from models.lung_nodule.preprocess import PREPROCESSING, SIDE
from models.nets.ccfam_fpn import CCFAMFPN, CCFAMConfig, Encoder, Placement
from models.nets.other_backbones import Family
from models.training.lung_nodule.ccfam_fpn.average_precision import Found, Marks, f1
from models.training.lung_nodule.ccfam_fpn.chest_windows import Chests, together
from models.training.lung_nodule.ccfam_fpn.data import Stacks, Window
from models.training.lung_nodule.data.scans import Scans
from models.training.lung_nodule.data.slices import Slices, Strategy
from models.training.recipe import TrainConfig, must_be_known, sgd_or_adamw

Optimiser = Literal["sgd", "adamw"]
LOOKED_AT = 32  # windows at a time, when judged


@dataclass(frozen=True)
class Config(TrainConfig):
    width: int = 64
    epochs: int = 36
    batch: int = 8
    lr: float = 0.01
    weight_decay: float = 1e-4
    optimiser: Optimiser = "sgd"
    clip_norm: float = 10.0
    depth: tuple[int, ...] = (3, 4, 6, 3)  # this and the next sixteen: see CCFAMConfig
    encoder: Encoder = "resnet50"
    attention: Attention = "ccapm"
    placement: Placement = "block"
    reduction: int = 16
    literal_add: bool = False
    gate_kernel: int = 7
    pool_avg: bool = True
    halved: bool = True
    squeeze: bool = True
    fpn: bool = True
    slices: int = 3
    stem: int = 32
    anchors: tuple[int, ...] = (8, 16, 32, 64)
    samples: int = 256
    rois: int = 128
    proposals: tuple[int, ...] = (2000, 1000)
    window: int = 96  # side of what it learns from and is judged on, cut from the stored crops
    share: float = 1.0  # of the crops that an epoch sees
    negatives: float = 0.34  # share of windows without nodule
    val_crops: int = 300  # with a nodule, evenly spaced; the whole split is for the test
    chests: str = ""  # folder of whole scans; windows of theirs are added to each batch then, and judged on val
    chest_share: float = 1.0  # so many of them, of a batch
    split: Strategy = "stored"  # or "fresh": see data.split_of
    cache: str = ""  # folder for what is cut from whole scans; layouts.CACHE when empty

    @property
    def chest_batch(self) -> int:
        return round(self.batch * self.chest_share)

    def __post_init__(self) -> None:
        super().__post_init__()
        encoders = ("resnet50", *get_args(Family))
        known = {"encoder": encoders, "attention": get_args(Attention), "placement": get_args(Placement)}
        must_be_known(self, {**known, "optimiser": get_args(Optimiser)})


class DetectorRecipe:
    """Recipe of `models.training.train ccfam_fpn`."""

    preprocessing = PREPROCESSING

    def __init__(self, data: Path, config: Config) -> None:
        self.slices = Slices(data, cache=Path(config.cache) if config.cache else None, strategy=config.split)
        self.split_sha256 = self.slices.split_sha256
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take other hyper-parameters, on the same data. Raises ValueError for chests of another split."""
        self.stacks = Stacks(self.slices, config.slices, config.window)
        self.chests: dict[str, Chests] = {}
        if config.chests:
            cache = Path(config.cache) if config.cache else None
            scans = Scans(Path(config.chests), cache=cache, strategy=config.split)
            if scans.split_sha256 != self.split_sha256:
                raise ValueError("the chests are split by other patients than the crops: one may show another's test")
            if config.window >= SIDE:
                raise ValueError(
                    f"window={config.window} with chests: less than {SIDE}, or all are mirrored at the edges"
                )
            if config.chest_batch < 1:
                raise ValueError(f"chest_share={config.chest_share} of a batch of {config.batch} is not one window")
            self.chests = {split: Chests(scans, split, config.slices, cache) for split in ("train", "val")}
            config = replace(config, chests=scans.digest)  # what is told of a training names the set, not its place
        self.config = config
        neck = "fpn" if config.fpn else "single"
        kind = config.attention if config.encoder == "resnet50" else config.encoder
        self.name = f"ccfam_{kind}_{neck}_w{config.width}"

    def model(self) -> nn.Module:
        return self.network(asdict(self.config))

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        return CCFAMFPN(CCFAMConfig.of(config))

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        return sgd_or_adamw(self.config.optimiser, model, self.config)

    def crops(self) -> int:
        return round(self.config.share * len(self.slices.index["train"]))

    def steps(self, epoch: int) -> int:
        return self.crops() // self.config.batch

    def batches(self, split: str, epoch: int) -> Iterator[dict[str, Tensor]]:
        config = self.config
        seed = config.seed * 1000 + epoch
        drawn = self.stacks.augmented(
            split, seed=seed, batch=config.batch, crops=self.crops(), negatives=config.negatives
        )
        if not self.chests:
            return drawn
        more = self.chests[split].augmented(seed=seed, batch=config.chest_batch, side=config.window)
        return map(together, drawn, more)

    def distillation_targets(self, teachers: Sequence[nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ValueError("ccfam_fpn learns from no teachers: leave out --teacher")

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        assert isinstance(model, CCFAMFPN)
        return torch.stack([*model.losses(batch["image"], batch["boxes"]).values()]).sum()

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """AP at IoU 0.5, which is the score, AR, F1 in percent, and the score at which F1 is greatest here.

        Of "val" an even sample of at most val_crops slices with a nodule, and as many without as belong to them; with
        chests also all their windows.
        """
        windows = self.stacks.windows(split, self.config.val_crops if split == "val" else None)
        if split in self.chests:
            windows = itertools.chain(windows, self.chests[split].windows(self.config.window))
        every, _ = detect_all(model, windows)
        marks, rows = Marks(every), torch.arange(len(every)).numpy()
        working = marks.working_score()
        ap = marks.average_precision(rows)
        recall, best = marks.average_recall(rows), f1(marks.counts(working))
        return {"score": ap, "ap": ap, "ar": recall, "f1": best, "working_score": working}


@torch.inference_mode()
def detect_all(model: nn.Module, windows: Iterable[Window]) -> tuple[list[Found], list[str]]:
    """What a detector finds in windows, and the patient of each."""
    device = next(model.parameters()).device
    every, patients, rest = [], [], iter(windows)
    while batch := list(itertools.islice(rest, LOOKED_AT)):
        images = torch.stack([one.image for one in batch]).to(device, memory_format=torch.channels_last)
        for found, one in zip(model(images), batch, strict=True):
            every.append(Found(found.boxes.cpu().float().numpy(), found.scores.cpu().numpy(), one.boxes))
            patients.append(one.patient)
    return every, patients


def build(data: Path, config: Config) -> DetectorRecipe:
    return DetectorRecipe(data, config)
