"""The operating point: from which share of malignant a lesion is told of, although another class is more probable.

The most probable class takes the mix of the training images for granted and calls cancers benign. A point chosen on
val, in the JSON beside the weights (`"operating_point"`), is the share of benign and malignant together that
95 % of the cancers of val reach. The report says so in words; it changes no class and no probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.breast_us.birads import apply_temperature
from models.nets.breast_triple import CLASSES
from models.weights import WeightsError

BENIGN, MALIGNANT = CLASSES.index("benign"), CLASSES.index("malignant")


def point_of(sidecars: Sequence[Mapping[str, Any]], temperature: float | None) -> float | None:
    """Of one set of weights whose JSON states it, at the temperature of what is reported; of several, None.

    Raises WeightsError for anything that is no share.
    """
    if len(sidecars) != 1 or (stated := sidecars[0].get("operating_point")) is None:
        return None
    if not isinstance(stated, int | float) or not 0 < stated < 1:
        raise WeightsError(f"operating_point is {stated!r}; state a number between 0 and 1, or leave it out")
    if temperature is None:
        return float(stated)
    return float(apply_temperature(np.array([1 - stated, stated]), temperature)[1])


def suspicion(classes: np.ndarray) -> float:
    """Probabilities (3,) in the order of CLASSES -> malignant's share of benign and malignant together."""
    return float(classes[MALIGNANT] / max(classes[BENIGN] + classes[MALIGNANT], 1e-9))


def words(label: str, classes: np.ndarray, point: float | None) -> list[str]:
    """What the report says of a lesion that reaches the point with another class as its most probable one."""
    if point is None or classes[MALIGNANT] == classes.max() or suspicion(classes) < point:
        return []
    return [
        f"{label}: {CLASSES[classes.argmax()]} is more probable than malignant, but of benign and malignant together"
        f" malignant has {suspicion(classes):.0%}; 95 % of the cancers of the validation images have {point:.0%} or"
        " more"
    ]
