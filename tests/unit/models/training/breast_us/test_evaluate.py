"""The figures of the breast card on answers whose figures are known by hand."""

from __future__ import annotations

import numpy as np

from models.breast_us.pipeline import Prediction
from models.training.breast_us.data import Labelled
from models.training.breast_us.evaluate import hd95, judge
from models.training.breast_us.judged import Judged
from models.training.breast_us.worst_cases import burned_in, contrast, worst_cases


def look(classes: tuple[float, float, float], marked: slice | None, whole: slice | None = None) -> Prediction:
    lesion, probability = np.zeros((10, 10), bool), np.zeros((10, 10), np.float32)
    if marked is not None:
        lesion[marked] = True
    if whole is not None or marked is not None:
        probability[whole or marked] = 0.9
    return Prediction(probability, np.array(classes), lesion)


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


def test_hd95_is_the_distance_that_a_border_was_moved() -> None:
    truth, moved = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    truth[10:20, 10:20] = moved[10:20, 13:23] = True
    assert hd95(truth, truth) == 0
    assert hd95(moved, truth) == hd95(truth, moved) == 3
    assert hd95(moved, np.zeros_like(truth)) is None
    assert hd95(np.zeros_like(truth), truth) is None


def test_one_far_speck_among_many_pixels_is_beyond_the_95th_percentile() -> None:
    truth = np.zeros((80, 80), bool)
    truth[10:40, 10:40] = True
    speckled = truth.copy()
    speckled[70, 70] = True
    assert hd95(speckled, truth) == 0


def test_the_worst_cases_are_those_of_least_dice_with_their_reasons() -> None:
    rng = np.random.default_rng(0)
    speckle = rng.integers(60, 100, (100, 100)).astype(np.uint8)
    truth = np.zeros((100, 100), bool)
    truth[0:60, 20:60] = True
    dark = np.where(truth, speckle // 3, speckle).astype(np.uint8)
    marked = dark.copy()
    marked[30, 15:65] = 255  # a caliper's line
    images = {
        "benign/1.png": Labelled("benign/1.png", 1, marked, truth),
        "malignant/1.png": Labelled("malignant/1.png", 2, dark, truth),
        "normal/1.png": Labelled("normal/1.png", 0, speckle, np.zeros_like(truth)),
    }
    rows = [
        Judged("benign/1.png", 1, (0.7, 0.2, 0.1), 0.0, 0.0, 0.0, None, True),
        Judged("malignant/1.png", 2, (0.1, 0.2, 0.7), 0.9, 0.9, 0.82, 2.0, False),
        Judged("normal/1.png", 0, (0.2, 0.7, 0.1), 0.0, 0.0, 0.0, None, False),
    ]
    *_, first, second = worst_cases(rows, images, 2).splitlines()
    assert first.startswith("| benign/1.png | benign | normal (0.70) | 0.00 | 24.0% | yes |")
    assert first.endswith("| yes | called normal, so nothing was reported; cut by the border; burned-in marks |")
    assert second.startswith("| normal/1.png | normal | benign (0.70) | 0.00 | none | no |  | no |")
    assert second.endswith("| marked although normal |")
    assert not burned_in(dark, truth)
    assert (contrast(dark, truth) or 0) > 2 > (contrast(speckle, truth) or 9)
