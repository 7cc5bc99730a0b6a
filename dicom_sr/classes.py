"""Which class an image or a lesion is of, by the probabilities that a result states of each: the likeliest."""

from __future__ import annotations

from collections.abc import Sequence

from dicom_sr import codes
from dicom_sr.findings import Measurement

CLASSES = {  # the concept of a probability -> the class that it is of; the gravest last
    "PNORMAL": "normal",
    "PBENIGN": "benign",
    codes.PROBABILITY_OF_CANCER.value: "malignant",
}


def likeliest(measurements: Sequence[Measurement]) -> tuple[str, Measurement] | None:
    """The class and its probability, of two alike the graver; None where there are not several to choose from."""
    graver = list(CLASSES)
    shares = [each for each in measurements if each.name.value in CLASSES]
    if len(shares) < 2:
        return None
    most = max(shares, key=lambda each: (each.value, graver.index(each.name.value)))
    return CLASSES[most.name.value], most
