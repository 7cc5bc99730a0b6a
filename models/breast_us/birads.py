"""A BI-RADS category as a suggestion, and only of weights whose probabilities were calibrated.

The sidecar of calibrated weights says `"calibrated": true, "temperature": T, "calibrated_on": "..."`. Even then a
category follows only when the route asks for it: one temperature makes probabilities softer or sharper, it does not
know how many images of a clinic show a cancer. The probabilities assume BUSI's mix (27 % malignant).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydicom.sr.coding import Code

from dicom_sr.findings import Evaluation
from models.weights import WeightsError

# Not (111005, DCM, "Assessment Category"): that is a physician's, and a reader of reports would take it for one.
SUGGESTED = Code("SUGGESTEDBIRADS", "99PACSNODE", "Suggested BI-RADS category, to be confirmed")

# ACR BI-RADS Atlas 5th ed. (2013), ultrasound: likelihood of cancer up to and including; codes of CID 6027, PS3.16.
# Category 2 is 3's neighbour below; a probability cannot tell them apart, so the more cautious one is suggested.
CATEGORIES = (
    (0.02, Code("397143007", "SCT", "3 - Probably Benign")),
    (0.10, Code("MA.II.A.5.4A", "BI", "4A - Low suspicion", "4.0")),
    (0.50, Code("MA.II.A.5.4B", "BI", "4B - Intermediate suspicion", "4.0")),
    (0.95, Code("MA.II.A.5.4C", "BI", "4C - Moderate suspicion", "4.0")),  # 5 begins at 0.95 itself
    (1.00, Code("397145000", "SCT", "5 - Highly suggestive of malignancy")),
)


def temperature_of(sidecars: Sequence[Mapping[str, Any]]) -> float | None:
    """The temperature of weights that are calibrated, all of them; else None.

    Raises WeightsError when they contradict each other or state none: then nobody knows what was calibrated.
    """
    if not sidecars or not all(about.get("calibrated") is True for about in sidecars):
        return None
    temperatures = {about.get("temperature") for about in sidecars}
    (temperature, *others) = temperatures
    if others or isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
        raise WeightsError(
            f"the weights are called calibrated, but their temperature is {sorted(map(str, temperatures))};"
            ' state one number above zero, or set "calibrated" to false'
        )
    return float(temperature)


def apply_temperature(shares: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (classes,) that sum to 1 -> the same at a temperature: softmax(log p / T)."""
    raised = np.asarray(shares, float) ** (1 / temperature)
    return raised / raised.sum()


def suggestion(malignant: float) -> Evaluation:
    """The category that goes with a calibrated probability of cancer, 0..1."""
    for most, category in CATEGORIES[:-1]:
        if malignant < most or (malignant == most and most != 0.95):
            return Evaluation(SUGGESTED, category)
    return Evaluation(SUGGESTED, CATEGORIES[-1][1])
