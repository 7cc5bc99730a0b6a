"""The figures that CARD.md quotes: the network as the pipeline runs it, on crops of patients it has not learned from.

Crops show a nodule and its surroundings; what the pipeline finds in whole scans is another question, see CARD.md.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from models.lung_nodule.data import Slices
from models.lung_nodule.pipeline import LungNodule, Options
from models.metrics import Interval, bootstrap, dice, iou


def evaluate(archive: Path, device: str = "cpu", split: str = "test") -> dict[str, Interval]:
    """Figure -> value and 95 % interval over patients, on every crop in which at least 2 readers marked a nodule."""
    slices, pipeline = Slices(archive), LungNodule(device)
    threshold = Options().threshold
    start = time.perf_counter()
    predicted, truth, order = [], [], []
    for batch in slices.fixed(split):
        predicted.append(pipeline.probabilities_of(batch["image"])[:, 0].cpu().numpy() > threshold)
        truth.append(batch["mask"][:, 0].numpy())
        order.append(batch["index"].numpy())
    seconds = (time.perf_counter() - start) / len(slices.index[split])
    figures = judge(
        np.concatenate(predicted),
        np.concatenate(truth),
        [slices.nodules[i] for i in np.concatenate(order)],
    )
    empty, owners = [], []
    for batch in slices.augmented(split, seed=0, size=128, batch=25, crops=len(slices.index[split]), negatives=1.0):
        free = ~batch["mask"].flatten(1).any(1).numpy()
        marked = (pipeline.probabilities_of(batch["image"]) > threshold).flatten(1).any(1).cpu().numpy()
        empty += (~marked[free]).tolist()
        owners += [slices.patients[i] for i in batch["index"].numpy()[free]]
    figures["cuts without nodule left empty"] = interval(empty, owners)
    return {**figures, "seconds per crop": Interval(seconds, seconds, seconds)}


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


def interval(values: Sequence[float] | np.ndarray, patients: Sequence[str]) -> Interval:
    """The mean of the values, with its interval over patients."""
    figures = np.asarray(values, dtype=float)
    return bootstrap(lambda rows: float(figures[rows].mean()), patients)


def touching(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The 8-connected pieces of a bool mask (h, w) that touch the truth."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.isin(labels, np.unique(labels[truth & mask])) & mask
