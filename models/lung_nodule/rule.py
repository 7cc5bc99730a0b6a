"""The rule by which the residual U-Net's source counts slices; the tables and the choice of the best epoch share it."""

from __future__ import annotations

import numpy as np

from models.metrics import iou

HIT = 0.5  # least IoU of a slice that counts as found


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
