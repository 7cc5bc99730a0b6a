"""From a network's score to a probability: a logistic with slope and offset (Platt 1999), fitted on other nodules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from models.lung_nodule.odds import log_odds
from models.training.evaluation.metrics import Interval, bootstrap, calibration_error


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


def decisions(chance: np.ndarray, truth: np.ndarray, patients: Sequence[str]) -> dict[str, Interval]:
    """Probabilities (n,) at 0.5 against bool (n,), and how well calibrated they are; intervals over patients."""
    said = chance >= 0.5

    def ece(rows: np.ndarray) -> float:
        return calibration_error(np.maximum(chance, 1 - chance)[rows], (said == truth)[rows])

    return {
        "accuracy": bootstrap(lambda rows: float((said == truth)[rows].mean()), patients),
        "sensitivity": bootstrap(lambda rows: float(said[rows][truth[rows]].mean()), patients),
        "specificity": bootstrap(lambda rows: float((~said)[rows][~truth[rows]].mean()), patients),
        "calibration error": bootstrap(ece, patients),
    }


def _columns(scores: np.ndarray, more: Sequence[np.ndarray]) -> np.ndarray:
    scores = np.asarray(scores, float)
    if ((scores >= 0) & (scores <= 1)).all():
        scores = log_odds(scores)
    return np.column_stack([scores, *more, np.ones(len(scores))])
