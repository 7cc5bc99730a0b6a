"""Numbers as a person would say them: 84 mm2, not 83.947847343776. A report holds these and no finer ones, because
the rest of the digits says nothing: pixels are half a millimetre wide, and an algorithm's certainty is no measurement.

    mm                 one decimal
    mm2, mm3, %        whole from 10 on, else one decimal
    HU, days, counts   whole
    pixels             whole from 10 on, else one decimal
    any other unit     four significant digits
"""

from __future__ import annotations

from dataclasses import replace

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.findings import Measurement

WHOLE = {codes.HU, codes.DAYS, codes.LESIONS, codes.FRAMES}
WHOLE_FROM_10 = {codes.MM2, codes.MM3, codes.PERCENT, codes.PIXELS}


def rounded(value: float, unit: Code) -> float:
    """Halves go away from zero, as readers round."""
    if unit in WHOLE or (unit in WHOLE_FROM_10 and abs(value) >= 9.95):
        return _to_decimals(value, 0)
    if unit == codes.MM or unit in WHOLE_FROM_10:
        return _to_decimals(value, 1)
    return float(f"{value:.4g}")


def as_said(measurement: Measurement) -> Measurement:
    return replace(measurement, value=rounded(measurement.value, measurement.unit))


def decimal(value: float, unit: Code) -> str:
    """As a Numeric Value (DS) holds it."""
    return f"{rounded(value, unit):.10g}"


def state(number: Dataset, value: float, unit: Code) -> None:
    """Write the value into a NUM item, as the decimal text alone: it is exact."""
    for stated in number.MeasuredValueSequence:
        stated.NumericValue = decimal(value, unit)
        stated.pop("FloatingPointValue", None)


def in_words(value: float, unit: Code) -> str:
    """'12.3 mm', '-33 HU', '87 %', '3'."""
    number = decimal(value, unit)
    word = "HU" if unit == codes.HU else unit.value.strip("{}")
    return number if unit in (codes.NO_UNITS, codes.LESIONS, codes.FRAMES) else f"{number} {word}"


def _to_decimals(value: float, decimals: int) -> float:
    return float(f"{value + (1e-9 if value >= 0 else -1e-9):.{decimals}f}") + 0.0  # + 0.0: no -0
