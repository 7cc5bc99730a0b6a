"""What came of one series, in the steps in which it is counted: how many findings, how large, how certain, how fast;
and what the images were like, for numbers drift with them. Counted, it names no series and no patient."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from pydicom.errors import InvalidDicomError

from dicom_sr import attributes
from dicom_sr.findings import Findings
from dicom_sr.frames import frames
from dicom_sr.importance import size
from dicom_sr.reading import read_header

# what is counted -> from where to where each step reaches; the last is open. Sizes: the limits at which a nodule is
# managed otherwise (Fleischner Society, MacMahon et al., Radiology 2017), and a mass from 30 mm
STEPS: dict[str, tuple[float, ...]] = {
    "findings": (1, 2, 3, 5, 10, 20),
    "size": (4, 6, 8, 10, 15, 20, 30),
    "certainty": (10, 20, 30, 40, 50, 60, 70, 80, 90),
    "seconds": (1, 2, 5, 10, 20, 60, 120, 300, 600),
    "thickness": (0.8, 1.1, 1.6, 2.1, 2.6, 3.1, 4.1, 5.1),
}
UNITS = {"findings": "", "size": "mm", "certainty": "%", "seconds": "s", "thickness": "mm"}
WORDS = {  # of what is counted
    "findings": "findings in a series",
    "size": "size of the largest finding",
    "certainty": "certainty of the most certain finding",
    "seconds": "duration of the inference",
    "positive": "series with a finding",
    "thickness": "Slice Thickness",
    "kernel": "Convolution Kernel",
    "manufacturer": "Manufacturer",
}
DRIFTS = ("positive", "size", "certainty", "thickness", "kernel", "manufacturer")  # held against the first weeks
LONGEST = 32  # characters of a text of a header
NONE = "none"


@dataclass(frozen=True)
class Counted:
    """value: its step or text, as it is counted; number: what is added up, 0 of texts."""

    value: str
    number: float = 0.0


def step_of(what: str, number: float) -> str:
    return str(bisect_right(STEPS[what], number))


def in_words(what: str, value: str) -> str:
    """ "6 to 8 mm" of a step; a text as it is."""
    if what not in STEPS or not value.isdigit():
        return value
    steps, step, unit = STEPS[what], int(value), f" {UNITS[what]}".rstrip()
    if step == 0:
        return f"below {steps[0]:g}{unit}" if what != "findings" else "0"
    if step >= len(steps):
        return f"{steps[-1]:g}{unit} and more"
    whole = what == "findings"
    last = steps[step] - 1 if whole else steps[step]
    return f"{steps[step - 1]:g}" if whole and last == steps[step - 1] else f"{steps[step - 1]:g} to {last:g}{unit}"


def outcome(findings: Findings, image: Path) -> dict[str, Counted]:
    """What is counted of these findings and of an image that they were made of."""
    found = findings.findings
    sizes = [extent for in_mm, extent in map(size, found) if in_mm]
    certain = [100 * each.certainty for each in found if each.certainty is not None]
    seconds = findings.facts.get("seconds")
    numbers = {"findings": float(len(found)), "size": max(sizes, default=None), "certainty": max(certain, default=None)}
    if isinstance(seconds, int | float):
        numbers["seconds"] = float(seconds)
    told = {what: Counted(step_of(what, n), n) for what, n in numbers.items() if n is not None}
    return told | {"positive": Counted("yes" if found else "no")} | _of_header(image)


def _of_header(image: Path) -> dict[str, Counted]:
    """Of one that cannot be read nothing."""
    try:
        frame = next(iter(frames(read_header(image))))
    except (*attributes.UNREADABLE, attributes.BadAttribute, InvalidDicomError, OSError, StopIteration):
        return {}
    texts = {what: attributes.text(frame.holder(keyword), keyword) for what, keyword in TEXTS.items()}
    counted = {what: Counted(text[:LONGEST] or NONE) for what, text in texts.items()}
    try:
        mm = attributes.number(frame.holder("SliceThickness"), "SliceThickness")
    except attributes.BadAttribute:
        return counted
    return counted | {"thickness": Counted(step_of("thickness", mm), mm)}


TEXTS = {"kernel": "ConvolutionKernel", "manufacturer": "Manufacturer"}
