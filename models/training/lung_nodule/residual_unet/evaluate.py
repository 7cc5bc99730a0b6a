"""The figures that CARD.md quotes: the network as the pipeline runs it, on crops of patients it has not learned from.

Crops show a nodule and its surroundings; what the pipeline finds in whole scans is another question, see CARD.md.
"""

from __future__ import annotations

import io
import itertools
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from models import weights
from models.lung_nodule.options import Options
from models.lung_nodule.preprocess import PREPROCESSING, SIDE, WINDOW_HU
from models.lung_nodule.sliding_unet import CHECKPOINT
from models.nets.baselines import build_net
from models.runtime import Runtime
from models.training.evaluation.ensemble import DIHEDRAL, PLAIN, Ensemble
from models.training.evaluation.metrics import Interval, Judgement, bootstrap, count_words, dice, interval, iou
from models.training.files import write_text
from models.training.layouts import open_root
from models.training.lung_nodule.data.crops import index_of
from models.training.lung_nodule.data.slices import Slices, Strategy
from models.training.lung_nodule.residual_unet.recipe import middle
from models.training.lung_nodule.residual_unet.slice_outcomes import central, correct, outcomes
from models.weights import WeightsError

RING_PX = 3  # width of the surroundings that a nodule's contrast is measured against
READERS = 4  # of each LIDC study


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
    """Figures with 95 % intervals over patients, on every crop in which at least 2 readers marked a nodule and on crops
    without.

    paths     weights whose mean probability is judged; the shipped ones when not given
    flips     show each crop in all 8 turned and mirrored ways; the pipeline does not
    out       folder for worst_cases.md
    strategy  of data.split_of; when not given, the one that the weights were trained with
    cache     folder for the crops of whole scans

    Raises ValueError for a split without crops; WeightsError for weights that are missing, spoilt, or learnt on another
    split or another crop size.
    """
    judged = list(paths or [weights.packed("lung_nodule", CHECKPOINT)])
    slices = slices_for(judged, data, strategy, cache)
    if not len(slices.index[split]):
        raise ValueError(f"{data} has no crop with a nodule for split {split}; there are {count_words(slices.index)}")
    ensemble, crop, centred = load_ensemble(judged, device, slices.split_sha256, flips)
    start = time.perf_counter()
    looked = look(slices, split, ensemble, crop, centred=centred)
    seconds = (time.perf_counter() - start) / len(looked.truth)
    marks = raters(data, looked.index, crop)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "worst_cases.md", worst(looked, marks))
    has = np.flatnonzero(looked.truth.any(axis=(1, 2)))
    figures = judge(looked.predicted[has], looked.truth[has], [name for name in looked.nodules if name])
    figures |= rule(looked.predicted, looked.truth, looked.patients)
    if marks is not None:
        figures |= between_readers(marks[has], looked.truth[has], [looked.patients[i] for i in has])
    return Judgement(
        {**figures, "seconds per crop": Interval(seconds, seconds, seconds)},
        split=split,
        split_sha256=slices.split_sha256,
        weights={(one := weights.load(path)).sha256: one.name for path in judged},
        choices={
            "threshold": Options().threshold,
            "flips": flips,
            "crop": crop,
            "centred": centred,
            "runtime": str(ensemble.runtime),
        },
        judged={"crops": len(looked.truth), "crops with a nodule": len(has), "patients": len(set(looked.patients))},
    )


def slices_for(paths: Sequence[Path], data: Path, strategy: str | None, cache: Path | None) -> Slices:
    """The data as these weights know them: patients of whom the stored split names none are "unseen" to weights of that
    split. Raises WeightsError when the weights contradict each other, or nothing says whose the scans are."""
    abouts = [weights.load(path).about for path in paths]
    stated = {str(about["config"].get("split", "stored")) for about in abouts} if strategy is None else {strategy}
    if len(stated) > 1:
        raise WeightsError(f"these weights learnt on splits made in other ways: {', '.join(sorted(stated))}")
    chosen = cast(Strategy, stated.pop())
    size = max(SIDE, *(int(about["config"].get("crop", SIDE)) for about in abouts))
    slices = Slices(data, size=size, cache=cache, strategy=chosen, anew=False)
    if all(about.get("split_sha256") == slices.split_sha256 for about in abouts):
        if any(re.fullmatch(r"[0-9.]+", patient) for patient in slices.split["unseen"]):  # LUNA16 names series only
            raise WeightsError(f"{data} does not name its patients, and these weights may know them: add metadata.csv")
        return slices
    return Slices(data, size=size, cache=cache, strategy=chosen)


def load_ensemble(
    paths: Sequence[Path], device: str, split_sha256: str, flips: bool = False
) -> tuple[Ensemble, int, bool]:
    """The networks of several weights as one, the side of the crops that they all learnt from, and whether they answer
    for the middle of a crop alone."""
    loaded = [weights.load(path, PREPROCESSING, split_sha256) for path in paths]
    kinds = {(int(one.about["config"].get("crop", 128)), bool(one.about["config"].get("centred"))) for one in loaded}
    if len(kinds) > 1:
        words = " and ".join(f"{'centred ' * centred}crops of {crop} pixels" for crop, centred in sorted(kinds))
        raise WeightsError(f"these weights learnt from {words}: judge them one by one")
    nets = [one.into(build_net(one.about["config"])) for one in loaded]
    return Ensemble(nets, Runtime.choose(device), DIHEDRAL if flips else PLAIN), *kinds.pop()


@dataclass(frozen=True, eq=False)
class Looked:
    """What the network marked, in n crops; those with a nodule first."""

    predicted: np.ndarray  # bool (n, h, w)
    truth: np.ndarray  # bool (n, h, w)
    hu: np.ndarray  # float32 (n, h, w)
    patients: list[str]
    nodules: list[str]  # "patient/nodule"; "" for a crop without
    index: np.ndarray  # int (n), place of the crop in the data's own order


def look(slices: Slices, split: str, ensemble: Ensemble, crop: int = 128, *, centred: bool = False) -> Looked:
    """Every crop of the split that holds a nodule, and those without, cut to the middle `crop` pixels.

    Of what a centred network marks, only the pieces at the middle count: the crop was cut for these.
    """
    threshold = Options().threshold
    predicted, truth, hu, index = [], [], [], []
    for batch in itertools.chain(slices.fixed(split), slices.negatives(split)):
        image, mask = (middle(batch[name], crop) for name in ("image", "mask"))
        marked = (ensemble.probability(image) > threshold)[:, 0].numpy()
        predicted.append(np.stack([central(one) for one in marked]) if centred else marked)
        truth.append(mask[:, 0].numpy().astype(bool))
        hu.append(in_hu(image)[:, 0].numpy())
        index.append(batch["index"].numpy())
    order = np.concatenate(index)
    masks = np.concatenate(truth)
    names = [slices.nodules[i] if mask.any() else "" for i, mask in zip(order, masks, strict=True)]
    return Looked(
        np.concatenate(predicted), masks, np.concatenate(hu), [slices.patients[i] for i in order], names, order
    )


def in_hu(image: Tensor) -> Tensor:
    """Network input back to HU, as far as its window goes."""
    low, high = WINDOW_HU
    return low + image * (high - low)


def raters(data: Path, rows: np.ndarray, crop: int = 128) -> np.ndarray | None:
    """uint8 (n, crop, crop), bit r set = reader r marked the pixel, of the given rows of a set of crops (index.csv).

    None when the data are of another layout: there only the number of readers is kept.
    """
    root = open_root(data)
    files = index_of(root)
    if files is None:
        return None
    marks = []
    for row in (files[i] for i in rows):
        file = root / row["patient"] / row["nodule"] / row["file"].replace(".png", "_raters.png")
        marks.append(np.asarray(Image.open(io.BytesIO(file.read_bytes()))))
    return middle(torch.from_numpy(np.stack(marks))[:, None], crop)[:, 0].numpy()


def rule(predicted: np.ndarray, truth: np.ndarray, patients: Sequence[str]) -> dict[str, Interval]:
    """The figures of the source's tables: mean overlap of all slices (nothing marked where nothing is: 1), counts."""
    called = outcomes(predicted, truth)
    pairs = list(zip(predicted, truth, strict=True))
    figures = {
        "IoU, all slices": interval([iou(p, t) for p, t in pairs], patients),
        "Dice, all slices": interval([dice(p, t) for p, t in pairs], patients),
        "accuracy": interval(correct(called), patients),
    }
    for name in ("TP", "TN", "FP", "FN"):
        is_one = (called == name).astype(float)
        figures[name] = bootstrap(lambda rows, is_one=is_one: float(is_one[rows].sum()), patients)  # type: ignore[misc]
    return figures


def between_readers(marks: np.ndarray, truth: np.ndarray, patients: Sequence[str]) -> dict[str, Interval]:
    """How well the readers agree, on slices that at least two of them marked. marks as from `raters`.

    Against the consensus a reader agrees with a mask that is partly that reader's own: it flatters the readers.
    """
    pairwise, against, owners = [], [], []
    for bits, consensus, patient in zip(marks, truth, patients, strict=True):
        readers = by_reader(bits)
        if len(readers) > 1:
            pairwise.append(np.mean([dice(a, b) for a, b in itertools.combinations(readers, 2)]))
            against.append(np.mean([dice(one, consensus) for one in readers]))
            owners.append(patient)
    if not owners:
        return {}
    return {
        "Dice between two readers": interval(np.array(pairwise), owners),
        "Dice of a reader against the consensus": interval(np.array(against), owners),
    }


def by_reader(bits: np.ndarray) -> list[np.ndarray]:
    """The mask of each reader who marked anything: uint8 (h, w) -> bool (h, w) each."""
    masks = [(bits >> reader & 1).astype(bool) for reader in range(8)]
    return [mask for mask in masks if mask.any()]


def worst(looked: Looked, marks: np.ndarray | None, count: int = 10) -> str:
    """The slices of least IoU, more wrong pixels first, as a Markdown table that says by rule why each is hard."""
    overlap = np.array([iou(p, t) for p, t in zip(looked.predicted, looked.truth, strict=True)])
    wrong = (looked.predicted ^ looked.truth).sum(axis=(1, 2))
    lines = [
        "| nodule | crop | IoU | nodule, pixels | marked, pixels | readers | contrast, HU | likely reason |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for i in np.lexsort((-wrong, overlap))[:count]:
        truth, predicted = looked.truth[i], looked.predicted[i]
        readers = by_reader(marks[i]) if marks is not None and truth.any() else None
        contrast = contrast_hu(looked.hu[i], truth)
        cells = [
            looked.nodules[i] or f"none, {looked.patients[i]}",
            str(looked.index[i]),
            f"{overlap[i]:.2f}",
            str(int(truth.sum())),
            str(int(predicted.sum())),
            "" if readers is None else f"{len(readers)} of {READERS}",
            "" if contrast is None else f"{contrast:.0f}",
            "; ".join(reasons(truth, readers, contrast)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def reasons(truth: np.ndarray, readers: Sequence[np.ndarray] | None, contrast: float | None) -> list[str]:
    """Why a slice is hard, by rule."""
    if not truth.any():
        return ["no reader marked anything here"]
    edge = np.concatenate([truth[[0, -1]].ravel(), truth[:, [0, -1]].ravel()])
    table = (
        (readers is not None and len(readers) < 3, "fewer than 3 readers marked this slice"),
        (
            readers is not None
            and len(readers) > 1
            and np.mean([dice(a, b) for a, b in itertools.combinations(readers, 2)]) < 0.6,
            "the readers' outlines differ (mean Dice below 0.6)",
        ),
        (truth.sum() < 30, "small: less than 30 pixels"),
        (bool(edge.any()), "touches the border of the crop"),
        (contrast is not None and contrast < 200, "little contrast: less than 200 HU"),
    )
    return [words for holds, words in table if holds] or ["none of the rules"]


def contrast_hu(hu: np.ndarray, mask: np.ndarray) -> float | None:
    """Mean of the mask less that of a ring of RING_PX round it; None where either is empty."""
    ring = ndimage.binary_dilation(mask, iterations=RING_PX) & ~mask
    return float(hu[mask].mean() - hu[ring].mean()) if mask.any() and ring.any() else None


def judge(predicted: np.ndarray, truth: np.ndarray, nodules: list[str]) -> dict[str, Interval]:
    """Overlap per slice and per nodule. predicted, truth: bool (n, h, w); nodules: "patient/nodule" of each slice."""
    patients = [nodule.split("/")[0] for nodule in nodules]
    at_nodule = np.stack([touching(p, t) for p, t in zip(predicted, truth, strict=True)])
    members: dict[str, list[int]] = defaultdict(list)
    for row, nodule in enumerate(nodules):
        members[nodule].append(row)
    by_slice = {
        "Dice, nodule slices": [dice(p, t) for p, t in zip(predicted, truth, strict=True)],
        "IoU, nodule slices": [iou(p, t) for p, t in zip(predicted, truth, strict=True)],
        "Dice, nodule slices, piece at the nodule only": [dice(p, t) for p, t in zip(at_nodule, truth, strict=True)],
        "nodule slices touched by a mark": at_nodule.any(axis=(1, 2)).astype(float),
        "nodule slices with IoU of 0.5 or more": [
            float(iou(p, t) >= 0.5) for p, t in zip(predicted, truth, strict=True)
        ],
        "marks elsewhere, per slice": [
            float(ndimage.label(p & ~a)[1]) for p, a in zip(predicted, at_nodule, strict=True)
        ],
    }
    by_nodule = {
        "Dice, whole nodules": [dice(predicted[rows], truth[rows]) for rows in members.values()],
    }

    return {name: interval(values, patients) for name, values in by_slice.items()} | {
        name: interval(values, [nodule.split("/")[0] for nodule in members]) for name, values in by_nodule.items()
    }


def touching(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The 8-connected pieces of a bool mask (h, w) that touch the truth."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.isin(labels, np.unique(labels[truth & mask])) & mask
