"""Figures that the cards quote. Masks are numpy bool; intervals are bootstraps over patients, not over slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2|A∩B| / (|A|+|B|); two empty masks agree: 1."""
    total = int(predicted.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2 * int((predicted & truth).sum()) / total


def iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """|A∩B| / |A∪B|; two empty masks agree: 1."""
    union = int((predicted | truth).sum())
    return 1.0 if union == 0 else int((predicted & truth).sum()) / union


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney), ties counted half; nan when one class is absent."""
    positive = positive.astype(bool)
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        return float("nan")
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(size) - (size - 1) / 2  # mean rank of each group of ties, from 1
    return float((rank[group][positive].sum() - n * (n + 1) / 2) / (n * m))


def accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of equal labels."""
    return float((predicted == truth).mean())


def macro_f1(predicted: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Mean over classes of 2TP / (2TP + FP + FN); a class that neither has is left out."""
    scores = []
    for c in range(classes):
        p, t = predicted == c, truth == c
        if p.any() or t.any():
            scores.append(dice(p, t))
    return float(np.mean(scores))


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error, Guo 2017 (arXiv:1706.04599): mean |confidence - accuracy| over equal-width bins."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for b in np.unique(which):
        inside = which == b
        error += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return float(error)


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def rounded(self, digits: int) -> dict[str, float]:
        return {name: round(number, digits) for name, number in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Judgement:
    """Figures of weights on a split, and what they depend on."""

    figures: Mapping[str, Interval]
    split: str
    split_sha256: str
    weights: Mapping[str, str]  # SHA-256 of each file -> its name
    choices: Mapping[str, float | str | Sequence[float]]  # threshold, flips and the like
    judged: Mapping[str, int]  # how many there were of what: "patients"

    def document(self) -> dict[str, Any]:
        """What figures.json holds."""
        about = asdict(self)
        del about["figures"]
        return {**about, "figures": rounded(self.figures)}


def rounded(figures: Mapping[str, Interval], digits: int = 4) -> dict[str, dict[str, float]]:
    return {name: one.rounded(digits) for name, one in figures.items()}


def count_words(parts: Mapping[str, Sized]) -> str:
    """How many there are in each part of a split, in words: "384 in train, 55 in val"."""
    return ", ".join(f"{len(part)} in {name}" for name, part in parts.items())


def bootstrap(
    figure: Callable[[np.ndarray], float], patients: Sequence[str], *, rounds: int = 1000, seed: int = 2024
) -> Interval:
    """`figure(rows)` of all rows, with the 2.5 and 97.5 percentiles over `rounds` draws of whole patients.

    patients: the patient of each row; pass distinct names where patients are unknown, and say so beside the figure.
    """
    values = [figure(rows) for rows in draws(patients, rounds, seed)]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return Interval(float(figure(np.arange(len(patients)))), float(low), float(high))


def interval(values: Sequence[float] | np.ndarray, patients: Sequence[str]) -> Interval:
    """The mean of the values, with its interval over patients."""
    figures = np.asarray(values, dtype=float)
    return bootstrap(lambda rows: float(figures[rows].mean()), patients)


def draws(patients: Sequence[str], rounds: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of as many patients as there are, drawn with repetition, `rounds` times."""
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(owner))[:-1])
    random = np.random.default_rng(seed)
    for _ in range(rounds):
        picked = random.integers(0, len(names), len(names))
        yield np.concatenate([rows_of[i] for i in picked])
