"""The figures of a detector on slices, on patients it has not learned from.

python -m models.training.evaluation.evaluate ccfam_fpn --data slices.zip \
    --weights runs/ccfam/ccfam_ccapm_fpn_w64.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models import weights
from models.lung_nodule.ccfam_fpn.detect import network
from models.lung_nodule.preprocess import PREPROCESSING
from models.nets.ccfam_fpn import CCFAMFPN
from models.runtime import Runtime
from models.training.evaluation.metrics import Judgement, count_words
from models.training.lung_nodule.ccfam_fpn.average_precision import Found, judge
from models.training.lung_nodule.ccfam_fpn.data import Stacks
from models.training.lung_nodule.ccfam_fpn.recipe import detect_all
from models.training.lung_nodule.data.slices import Slices
from models.training.lung_nodule.residual_unet.evaluate import slices_for


@dataclass(frozen=True, eq=False)
class Detector:
    """A trained network with what its training states: its windows and the score of most F1 on val."""

    net: CCFAMFPN
    window: int
    working_score: float


def evaluate(
    data: Path,
    device: str = "cpu",
    split: str = "test",
    *,
    paths: Sequence[Path] | None = None,
    flips: bool = False,
    out: Path | None = None,
    strategy: str | None = None,
    cache: Path | None = None,
) -> Judgement:
    """Figures with 95 % intervals over patients, on windows of slices with a nodule and without.

    paths     the weights to judge, one file; those that are shipped must be named, too
    flips     refused: a detector is judged as it serves
    strategy  of data.split_of; when not given, the one that the weights were trained with
    cache     folder for the crops of whole scans

    Raises ValueError for a split without nodules, or a request that cannot be met; WeightsError for weights that are
    missing, spoilt, or learnt on another split.
    """
    if not paths or len(paths) > 1 or flips:
        raise ValueError("ccfam_fpn: name the weights of one training with --weights, without --flips")
    slices = slices_for(paths, data, strategy, cache)
    detector = load_detector(paths[0], device, slices.split_sha256)
    every, patients = seen(detector, slices, split)
    loaded = weights.load(paths[0])
    return Judgement(
        judge(every, patients, detector.working_score),
        split=split,
        split_sha256=slices.split_sha256,
        weights={loaded.sha256: loaded.name},
        choices={"window": detector.window, "working score": detector.working_score, "device": device},
        judged={
            "windows": len(every),
            "windows with a nodule": sum(len(one.truth) > 0 for one in every),
            "patients": len(set(patients)),
        },
    )


def load_detector(path: Path, device: str, split_sha256: str | None = None) -> Detector:
    """A detector of the training ccfam_fpn. Raises WeightsError when it is another network's, or does not fit."""
    loaded = weights.load(path, PREPROCESSING, split_sha256)
    net = network(loaded)
    working = float(loaded.about["metrics"]["val_working_score"])
    chosen = Runtime.choose(device).device
    net.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Detector(net, int(loaded.about["config"]["window"]), working)


def seen(detector: Detector, slices: Slices, split: str) -> tuple[list[Found], list[str]]:
    """What the detector finds in every window of a split, and the patient of each. Raises ValueError for no nodule."""
    if not len(slices.index[split]):
        raise ValueError(f"no slice with a nodule for split {split}; there are {count_words(slices.index)}")
    stacks = Stacks(slices, detector.net.config.slices, detector.window)
    return detect_all(detector.net, stacks.windows(split))
