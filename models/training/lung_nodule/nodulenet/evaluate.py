"""The figures of NoduleNet on whole scans that it has not learned from.

python -m models.training.evaluation.evaluate nodulenet --data FOLDER --weights runs/nodulenet/nodulenet_w12.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from models import weights
from models.lung_nodule.nodulenet.detect import DetectOptions, detect, network
from models.lung_nodule.nodulenet.mirrored import VIEWS
from models.lung_nodule.nodulenet.preprocess import PREPROCESSING
from models.nets.nodulenet import MASK, RCNN, RPN, NoduleNet
from models.runtime import Runtime
from models.training.evaluation.froc import Froc, froc
from models.training.evaluation.metrics import Interval, Judgement, bootstrap, count_words
from models.training.lung_nodule.data.scans import Scan, Scans
from models.training.lung_nodule.data.slices import Strategy
from models.training.lung_nodule.nodulenet.recipe import dice_of
from models.weights import Weights

CHECKPOINT = "nodulenet_w12"
ALONE, SECOND, MEAN = "RPN", "RCNN", "mean of both"
NOTHING = np.zeros((0, 0, 0), np.int16)


@dataclass(frozen=True)
class Mark:
    """A detection as models.training.evaluation.froc wants it, in voxels of 1 mm."""

    centre_zyx: tuple[float, float, float]
    score: float


def marks(net: NoduleNet, scan: Scan, views: int = 1) -> dict[str, list[Mark]]:
    """By the RPN alone; and of the boxes of the RCNN head by its own probability and by the mean of both, as served."""
    first = detect(net, scan.hu, scan.lungs, options=DetectOptions(stage=RPN, views=views))
    found = {ALONE: [Mark(one.centre_zyx, one.rpn) for one in first]}
    if int(net.stage) >= RCNN:
        both = detect(net, scan.hu, scan.lungs, options=DetectOptions(stage=RCNN, views=views))
        found[SECOND] = [Mark(one.centre_zyx, one.rcnn or 0.0) for one in both]
        found[MEAN] = [Mark(one.centre_zyx, one.score) for one in both]
    return found


def curve(
    found: Sequence[Sequence[Mark]],
    scans: Sequence[Scan],
    rounds: int = 1000,
    strict: bool = False,
    donors: Sequence[Sequence[str]] | None = None,
) -> Froc:
    """By LUNA16's rule, false positives per whole chest.

    strict   a mark on an irrelevant finding is a mistake
    donors   of each scan of a semi-synthetic set, the patient of each nodule

    Bootstraps draw patients. Of a semi-synthetic set they draw backgrounds and donors, crossed; scans where the donors
    are not told, which takes scans that show one lung again for independent.
    """
    return froc(
        found,
        [scan.lesions for scan in scans],
        irrelevant=None if strict else [scan.irrelevant for scan in scans],
        shares=[scan.share for scan in scans],
        groups=[owner(scan) if donors is None else scan.patient for scan in scans],
        lesion_groups=donors,
        rounds=rounds,
    )


def owner(scan: Scan) -> str:
    """What bootstraps draw together."""
    return scan.name if scan.semi_synthetic else scan.patient


def without_voxels(scan: Scan) -> Scan:
    """For the volumes of many do not fit into memory."""
    return replace(scan, hu=NOTHING, lungs=NOTHING)


def load_net(path: Path, split_sha256: str | None = None) -> tuple[Weights, NoduleNet]:
    """Raises WeightsError when they are another network's, do not fit, or learnt on another split."""
    loaded = weights.load(path, PREPROCESSING, split_sha256)
    return loaded, network(loaded)


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
    """FROC of each head, and Dice of what is found, with 95 % intervals.

    paths     the weights to judge, one file; the shipped ones when not given
    flips     four views of each scan are averaged, as the node does by default
    strategy  of data.split_of
    cache     folder for the scans of public collections, brought to 1 mm

    Raises ValueError for a split without lesions, or a request that cannot be met; WeightsError for weights that are
    missing, spoilt, or learnt on another split.
    """
    if paths and len(paths) > 1:
        raise ValueError("nodulenet: name the weights of one training with --weights")
    views = len(VIEWS) if flips else 1
    scans = Scans(data, cache=cache, strategy=cast(Strategy, strategy or "stored"), anew=False)
    path = paths[0] if paths else weights.packed("lung_nodule", CHECKPOINT)
    loaded, net = load_net(path, scans.split_sha256)
    net.to(Runtime.choose(device).device)
    found: dict[str, list[list[Mark]]] = {}
    judged: list[Scan] = []
    overlap: list[tuple[str, float]] = []
    for name in scans.split[split]:
        scan = scans.load(name)
        for head, one in marks(net, scan, views).items():
            found.setdefault(head, []).append(one)
        judged.append(without_voxels(scan))
        if int(net.stage) >= MASK:
            outlined = detect(net, scan.hu, scan.lungs, options=DetectOptions(views=views, closer=0.0))
            shared = [dice_of(outlined, lesion) for lesion in scan.lesions]
            overlap += [(owner(scan), value) for value in shared if value is not None]
    if not any(scan.lesions for scan in judged):
        raise ValueError(f"{data} has no scan with a nodule for split {split}; there are {count_words(scans.split)}")
    figures: dict[str, Interval] = {}
    for head, each in found.items():
        figures |= {f"{head}: {name}": one for name, one in curve(each, judged).figures().items()}
    if overlap:
        values = np.array([value for _, value in overlap])
        owners = [owner for owner, _ in overlap]
        figures["Dice of the nodules found"] = bootstrap(lambda rows: float(values[rows].mean()), owners)
    kind = "semi-synthetic" if all(scan.semi_synthetic for scan in judged) else "real"
    choices: Mapping[str, str | int] = {
        "nodules": kind,
        "device": device,
        "views": views,
        "intervals over": "scans" if kind == "semi-synthetic" else "patients",
    }
    return Judgement(
        figures,
        split=split,
        split_sha256=scans.split_sha256,
        weights={loaded.sha256: loaded.name},
        choices=choices,
        judged={"scans": len(judged), "nodules": sum(len(scan.lesions) for scan in judged), "outlined": len(overlap)},
    )
