"""Which class an image or a lesion is of, by the probabilities that a result states of each: the likeliest."""

from __future__ import annotations

from collections.abc import Sequence

from dicom_sr import codes
from dicom_sr.findings import Measurement

CLASSES = {  # the class -> the concept of its probability; the gravest last
    "normal": codes.PROBABILITY_OF_NORMAL,
    "benign": codes.PROBABILITY_OF_BENIGN,
    "malignant": codes.PROBABILITY_OF_CANCER,
}
OF = {code.value: name for name, code in CLASSES.items()}


def likeliest(measurements: Sequence[Measurement]) -> tuple[str, Measurement] | None:
    """The class and its probability, of two alike the graver; None where there are not several to choose from."""
    graver = list(OF)
    shares = [each for each in measurements if each.name.value in OF]
    if len(shares) < 2:
        return None
    most = max(shares, key=lambda each: (each.value, graver.index(each.name.value)))
    return OF[most.name.value], most
