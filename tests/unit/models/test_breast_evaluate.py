"""The figures of the breast card on answers whose figures are known by hand."""

from __future__ import annotations

import numpy as np

from models.breast_us.evaluate import judge
from models.breast_us.pipeline import Look


def look(classes: tuple[float, float, float], marked: slice | None, whole: slice | None = None) -> Look:
    lesion, probability = np.zeros((10, 10), bool), np.zeros((10, 10), np.float32)
    if marked is not None:
        lesion[marked] = True
    if whole is not None or marked is not None:
        probability[whole or marked] = 0.9
    return Look(probability, np.array(classes), lesion)


def mask(rows: slice | None) -> np.ndarray:
    one = np.zeros((10, 10), bool)
    if rows is not None:
        one[rows] = True
    return one


def test_figures_are_those_worked_out_by_hand() -> None:
    looks = [
        look((0.8, 0.1, 0.1), None),  # normal, called normal, empty
        look((0.2, 0.7, 0.1), slice(0, 2)),  # normal, called benign, marked
        look((0.1, 0.8, 0.1), slice(0, 4)),  # benign, right, all of it
        look((0.1, 0.3, 0.6), slice(0, 4), slice(0, 8)),  # malignant, right; the whole mask is twice as large
        look((0.6, 0.2, 0.2), None, slice(0, 4)),  # malignant, called normal: the lesion was seen but not reported
    ]
    truth = [mask(None), mask(None), mask(slice(0, 4)), mask(slice(0, 4)), mask(slice(0, 4))]
    figures = judge(looks, truth, np.array([0, 0, 1, 2, 2]))
    assert figures["Dice, lesion images"].value == (1 + 1 + 0) / 3
    assert figures["IoU, lesion images"].value == (1 + 1 + 0) / 3
    assert np.isclose(figures["Dice, lesion images, network's whole mask"].value, (1 + 8 / 12 + 1) / 3)
    assert figures["normal images without a finding"].value == 0.5
    assert figures["accuracy"].value == 0.6
    # malignant 0.6 and 0.2 against 0.1, 0.1, 0.1
    assert figures["AUC, malignant against rest"].value == 1.0
    accuracy = figures["accuracy"]
    assert 0 <= accuracy.low < accuracy.value < accuracy.high <= 1
