"""What a detector on slices is worth: AP, AR, Jaccard and F1, with bootstraps over patients.

AP at IoU 0.5: area under the envelope of precision over recall, every recall counts (PASCAL VOC 2010). AR: the share of
nodules found, mean over IoU 0.5, 0.55, ..., 0.95 (Lin 2014, COCO). The source does not say how its Jaccard and F1 are
made: F1 here counts boxes at IoU 0.5, Jaccard is the overlap of the areas covered by found and by true boxes, mean over
the slices that have either; both of boxes above a working score, in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.layers.boxes import iou
from models.training.evaluation.metrics import Interval, bootstrap

OVERLAPS = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2).tolist())  # Lin 2014


@dataclass(frozen=True, eq=False)
class Found:
    """One image: boxes (n, 4) with scores (n,), the most certain first, and true boxes (m, 4)."""

    boxes: np.ndarray
    scores: np.ndarray
    truth: np.ndarray


def hits(found: Found, overlap: float) -> np.ndarray:
    """bool (n,): which boxes find a nodule. The most certain choose first, each the free nodule it overlaps most."""
    hit = np.zeros(len(found.boxes), bool)
    if not len(found.truth) or not len(hit):
        return hit
    shared = iou(torch.from_numpy(found.boxes), torch.from_numpy(found.truth)).numpy().copy()
    for i, row in enumerate(shared):
        which = row.argmax()
        if row[which] >= overlap:
            hit[i] = True
            shared[:, which] = -1.0
    return hit


class Marks:
    """All boxes of a set of images, in the order of their scores."""

    def __init__(self, every: Sequence[Found]) -> None:
        self.truths = np.array([len(one.truth) for one in every])
        owner = np.repeat(np.arange(len(every)), [len(one.scores) for one in every])
        scores = np.concatenate([one.scores for one in every]) if every else np.zeros(0)
        order = np.argsort(-scores, kind="stable")
        self.scores, self.owner = scores[order], owner[order]
        self.hit = {overlap: np.concatenate([hits(one, overlap) for one in every])[order] for overlap in OVERLAPS}
        self.at_half = self.hit[OVERLAPS[0]]
        self.last = np.flatnonzero(
            np.diff(self.scores, append=-1.0)
        )  # of each run of equal scores: no score parts them

    def average_precision(self, rows: np.ndarray) -> float:
        """AP at one IoU over the images `rows`, which may repeat; nan without a nodule."""
        weight = np.bincount(rows, minlength=len(self.truths))
        truths = float((weight * self.truths).sum())
        mine = weight[self.owner]
        right, wrong = np.cumsum(mine * self.at_half)[self.last], np.cumsum(mine * ~self.at_half)[self.last]
        if not truths:
            return float("nan")
        precision = right / np.maximum(right + wrong, 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float((np.diff(right, prepend=0) * envelope).sum() / truths)

    def average_recall(self, rows: np.ndarray) -> float:
        weight = np.bincount(rows, minlength=len(self.truths))
        truths = float((weight * self.truths).sum())
        found = [(weight[self.owner] * hit).sum() for hit in self.hit.values()]
        return float(np.mean(found) / truths) if truths else float("nan")

    def counts(self, score: float) -> np.ndarray:
        """int (images, 3): right, wrong and missed at a working score"""
        above = self.scores >= score
        right = np.bincount(self.owner[above & self.at_half], minlength=len(self.truths))
        wrong = np.bincount(self.owner[above & ~self.at_half], minlength=len(self.truths))
        return np.stack([right, wrong, self.truths - right], axis=1)

    def working_score(self) -> float:
        """The score of most F1; 0.5 when nothing is found at any."""
        right, wrong = np.cumsum(self.at_half)[self.last], np.cumsum(~self.at_half)[self.last]
        if not len(right) or not right[-1]:
            return 0.5
        return float(self.scores[self.last[np.argmax(right / (right + wrong + self.truths.sum()))]])


def f1(counts: np.ndarray) -> float:
    """Right, wrong, missed (n, 3) -> percent; nan where there is nothing to find and nothing found"""
    right, wrong, missed = (float(total) for total in counts.sum(axis=0))
    total = 2 * right + wrong + missed
    return 200 * right / total if total else float("nan")


def overlap_of_areas(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard of what two lists of boxes (n, 4), (m, 4) cover; nan when they cover nothing."""
    edges = [np.unique(np.concatenate([a[:, axis::2].ravel(), b[:, axis::2].ravel()])) for axis in (0, 1)]
    cells = np.outer(*(np.diff(one) for one in edges))  # the boxes' edges cut the plane into a grid of cells

    def covered(boxes: np.ndarray) -> np.ndarray:
        mask = np.zeros(cells.shape, bool)
        for y0, x0, y1, x1 in boxes:
            (top, bottom), (left, right) = np.searchsorted(edges[0], (y0, y1)), np.searchsorted(edges[1], (x0, x1))
            mask[top:bottom, left:right] = True
        return mask

    first, second = covered(a), covered(b)
    union = cells[first | second].sum()
    return float(cells[first & second].sum() / union) if union else float("nan")


def judge(every: Sequence[Found], patients: Sequence[str], working_score: float) -> dict[str, Interval]:
    """The four figures, with 95 % intervals over patients (of each image).

    Raises ValueError when no image has a nodule.
    """
    marks = Marks(every)
    if not marks.truths.sum():
        raise ValueError("no image has a nodule: there is nothing to judge a detector by")
    counts = marks.counts(working_score)
    areas = np.array([overlap_of_areas(one.boxes[one.scores >= working_score], one.truth) for one in every])
    return {
        "AP@0.5": bootstrap(marks.average_precision, patients),
        "AR@[.5:.95]": bootstrap(marks.average_recall, patients),
        "Jaccard": bootstrap(lambda rows: 100 * mean_of_numbers(areas[rows]), patients),
        "F1": bootstrap(lambda rows: f1(counts[rows]), patients),
    }


def mean_of_numbers(values: np.ndarray) -> float:
    """The mean without nan; nan when nothing is left."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else float("nan")
