"""The figures that CARD.md quotes: the pipeline, as the node runs it, on the images of a split it has not learned from.

BUSI has no patient ids: intervals come from drawing images, not patients, and are narrower than they should be.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from models.breast_us.data import parts, read_busi
from models.breast_us.pipeline import INSIDE, BreastUltrasound, Look
from models.metrics import Interval, accuracy, auc, bootstrap, calibration_error, dice, iou, macro_f1
from models.nets.breast_triple import CLASSES

NORMAL, MALIGNANT = CLASSES.index("normal"), CLASSES.index("malignant")


def evaluate(archive: Path, device: str = "cpu", split: str = "test") -> dict[str, Interval]:
    """Figure -> value and 95 % interval over images; "seconds per image" has no interval of its own."""
    images = parts(read_busi(archive))[0][split]
    pipeline = BreastUltrasound(device)
    pipeline.warm()
    start = time.perf_counter()
    looks = [pipeline.look(image.pixels) for image in images]
    seconds = (time.perf_counter() - start) / len(images)
    figures = judge(looks, [image.mask for image in images], np.array([image.label for image in images]))
    return {**figures, "seconds per image": Interval(seconds, seconds, seconds)}


def judge(looks: list[Look], masks: list[np.ndarray], labels: np.ndarray) -> dict[str, Interval]:
    """Overlap over images with a lesion, empty masks over normal images, classes over all."""
    shares = np.stack([look.classes for look in looks])
    called = shares.argmax(axis=1)
    normal, has_lesion = labels == NORMAL, labels != NORMAL
    reported = np.array([dice(look.lesion, mask) for look, mask in zip(looks, masks, strict=True)])
    raw = np.array([dice(look.probability > INSIDE, mask) for look, mask in zip(looks, masks, strict=True)])
    overlap = np.array([iou(look.lesion, mask) for look, mask in zip(looks, masks, strict=True)])
    empty = np.array([not look.lesion.any() for look in looks])

    def over(chosen: np.ndarray, values: np.ndarray) -> Interval:
        rows = np.flatnonzero(chosen)
        return bootstrap(lambda drawn: float(values[rows[drawn]].mean()), [str(row) for row in rows])

    def one_against_rest(rows: np.ndarray) -> float:
        return float(np.mean([auc(shares[rows, label], labels[rows] == label) for label in range(len(CLASSES))]))

    everyone = [str(row) for row in range(len(labels))]
    return {
        "Dice, lesion images": over(has_lesion, reported),
        "Dice, lesion images, network's whole mask": over(has_lesion, raw),
        "IoU, lesion images": over(has_lesion, overlap),
        "lesion images with Dice above 0.5": over(has_lesion, (reported > 0.5).astype(float)),
        "normal images without a finding": over(normal, empty.astype(float)),
        "accuracy": bootstrap(lambda rows: accuracy(called[rows], labels[rows]), everyone),
        "sensitivity for malignant": over(labels == MALIGNANT, (called == MALIGNANT).astype(float)),
        "specificity for malignant": over(labels != MALIGNANT, (called != MALIGNANT).astype(float)),
        "macro F1": bootstrap(lambda rows: macro_f1(called[rows], labels[rows], len(CLASSES)), everyone),
        "macro AUC, one against rest": bootstrap(one_against_rest, everyone),
        "AUC, malignant against rest": bootstrap(
            lambda rows: auc(shares[rows, MALIGNANT], labels[rows] == MALIGNANT), everyone
        ),
        "expected calibration error": bootstrap(
            lambda rows: calibration_error(shares[rows].max(axis=1), called[rows] == labels[rows]), everyone
        ),
    }
