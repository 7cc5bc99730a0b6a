"""The rule by which the residual U-Net's source counts slices; the tables and the choice of the best epoch share it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from models.training.evaluation.metrics import iou

HIT = 0.5  # least IoU of a slice that counts as found
CENTRE_PX = 8  # what comes this near to the middle of a crop is the finding the crop was cut for


def outcomes(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """ "TP", "FN", "TN" or "FP" of each slice: bool (n, h, w) twice -> str (n).

    A slice with a nodule is TP when its IoU is at least HIT, else FN; one without is TN when nothing is marked.
    """
    found = []
    for p, t in zip(predicted, truth, strict=True):
        if t.any():
            found.append("TP" if iou(p, t) >= HIT else "FN")
        else:
            found.append("FP" if p.any() else "TN")
    return np.array(found, dtype="U2")


def correct(called: np.ndarray) -> np.ndarray:
    """Outcomes -> bool (n): what the source's accuracy is the share of."""
    return np.isin(called, ("TP", "TN"))


def central(mask: np.ndarray) -> np.ndarray:
    """bool (h, w) -> the same: the 8-connected pieces that reach into the 2·CENTRE_PX pixels round the middle."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    middle = tuple(slice(n // 2 - CENTRE_PX, n // 2 + CENTRE_PX) for n in mask.shape)
    there = np.unique(labels[middle])
    return np.isin(labels, there[there > 0])
