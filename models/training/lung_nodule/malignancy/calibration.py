"""From a network's score to a probability: a logistic with slope and offset (Platt 1999), fitted on other nodules."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

EDGE = 1e-4  # probabilities nearer to 0 or 1 are taken as this, before their log odds


def fit_logistic(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(n,) scores in (0, 1) or of any scale, (n,) 0 or 1 -> (slope, offset) of least negative log likelihood.

    Scores in [0, 1] are taken by their log odds, others as they are.
    """
    x, y = _scale(scores), labels.astype(float)

    def cost(parts: np.ndarray) -> float:
        z = parts[0] * x + parts[1]
        return float(np.mean(np.logaddexp(0, z) - y * z)) + 1e-6 * float(parts @ parts)

    found = minimize(cost, np.array([1.0 / max(float(x.std()), 1e-6), 0.0]), method="BFGS")
    return float(found.x[0]), float(found.x[1])


def logistic(scores: np.ndarray, fitted: tuple[float, float]) -> np.ndarray:
    return expit(fitted[0] * _scale(scores) + fitted[1])


def _scale(scores: np.ndarray) -> np.ndarray:
    inside = bool(((scores >= 0) & (scores <= 1)).all())
    return logit(np.clip(scores, EDGE, 1 - EDGE)) if inside else np.asarray(scores, float)
