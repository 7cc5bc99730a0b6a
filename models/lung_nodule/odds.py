"""Probabilities as log odds: in their mean one that is sure counts for more than one that hesitates."""

from __future__ import annotations

import numpy as np
from scipy.special import logit

SUREST = 1e-4  # a probability nearer to 0 or 1 than this counts as this


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Always finite."""
    return logit(np.clip(probability, SUREST, 1 - SUREST))
