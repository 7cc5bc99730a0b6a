"""From a network's score to a probability: a logistic with slope and offset (Platt 1999), fitted on other nodules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

EDGE = 1e-4  # probabilities nearer to 0 or 1 are taken as this, before their log odds


def fit_logistic(scores: np.ndarray, labels: np.ndarray, *more: np.ndarray) -> tuple[float, ...]:
    """(n,) scores in (0, 1) or of any scale, (n,) 0 or 1 -> slopes and the offset of least negative log likelihood.

    Scores in [0, 1] are taken by their log odds, others as they are. more: other numbers (n,) that count, as they are.
    """
    x, y = _columns(scores, more), labels.astype(float)

    def cost(parts: np.ndarray) -> float:
        z = x @ parts
        return float(np.mean(np.logaddexp(0, z) - y * z)) + 1e-6 * float(parts @ parts)

    return tuple(float(part) for part in minimize(cost, np.zeros(x.shape[1]), method="BFGS").x)


def logistic(scores: np.ndarray, fitted: Sequence[float], *more: np.ndarray) -> np.ndarray:
    """Probabilities (n,) by what `fit_logistic` has found."""
    return expit(_columns(scores, more) @ np.array(fitted))


def _columns(scores: np.ndarray, more: Sequence[np.ndarray]) -> np.ndarray:
    scores = np.asarray(scores, float)
    if ((scores >= 0) & (scores <= 1)).all():
        scores = logit(np.clip(scores, EDGE, 1 - EDGE))
    return np.column_stack([scores, *more, np.ones(len(scores))])
