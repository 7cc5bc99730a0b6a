"""Slices of one grid that were not made in one go: several passes of the scanner, phases of contrast, kernels.

one after the other along the patient     joined, and said: what lies at the seam may be cut or doubled
alternating                               two breaths in one volume: only the one that is clearly meant is used, and
                                          said; where that is not clear, nothing is
several kernels or thicknesses in one      used, and said: the texture differs, places do not
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from dicom_sr import attributes
from dicom_sr.attributes import BadAttribute
from dicom_sr.slices import SAME_PLACE_MM, Slice

MOST_NAMED, LONGEST_LABEL = 10, 64  # acquisitions that a reason names, and characters of each name
CLEAR = 2  # times as many slices as any other: then it is clear which acquisition is meant
SEQUENTIAL = 4  # more acquisitions than this in a row: a scanner that counts each rotation, nothing to say
PAUSE_S = 10.0  # without a slice: another pass of the scanner; a chest takes less in one
STRAY = 0.1  # of the slices: so few that say otherwise about contrast are a slip of the pen
OF_A_PHASE = ("TemporalPositionIdentifier", "TemporalPositionIndex", "NominalPercentageOfCardiacPhase")
TELLS_APART = (
    *("AcquisitionNumber", "AcquisitionTime", "ConvolutionKernel", "ContrastBolusAgent", "KVP", "SliceThickness"),
    *OF_A_PHASE,
)
RECONSTRUCTIONS = {"ConvolutionKernel": "reconstruction kernels", "SliceThickness": "slice thicknesses"}


class Mixed(Exception):
    """Slices of several acquisitions alternate; the message says which, and by which attribute they are told apart."""


@dataclass(frozen=True)
class Chosen:
    """The slices to use; what to say of them; why the others are not used."""

    slices: tuple[Slice, ...]
    remarks: tuple[str, ...] = ()
    why_aside: str = ""


def one_acquisition(slices: Sequence[Slice]) -> Chosen:
    """The slices of one acquisition, or of several that follow each other. Raises Mixed."""
    remarks: list[str] = []
    for keyword, tell in (
        ("AcquisitionNumber", _numbers),
        ("IrradiationEventUID", _events),
        ("AcquisitionTime", _passes),
        ("ContrastBolusAgent", _contrast),
        ("KVP", _numbers_of("KVP")),
        *((keyword, _numbers_of(keyword)) for keyword in OF_A_PHASE),
    ):
        labels = tell(slices)
        counts = Counter(labels[id(one)] for one in slices if id(one) in labels).most_common()
        if len(counts) < 2:
            continue
        named = ", ".join(f"{label[:LONGEST_LABEL]} ({count} slices)" for label, count in sorted(counts)[:MOST_NAMED])
        named += f" and {len(counts) - MOST_NAMED} more" if len(counts) > MOST_NAMED else ""
        runs = _runs(slices, labels)
        if runs <= len(counts):
            if len(counts) <= SEQUENTIAL and not remarks:  # number, event and time tell of the same seam
                remarks.append(f"{len(counts)} acquisitions follow each other ({keyword}: {named}): look at the seams")
            continue
        (largest, many), (_, next_many) = counts[:2]
        if many < CLEAR * next_many:
            raise Mixed(
                f"slices of {len(counts)} acquisitions alternate, and nothing says which is meant ({keyword}: {named})"
            )
        kept = tuple(one for one in slices if labels.get(id(one), largest) == largest)
        remarks.append(
            f"slices of {len(counts)} acquisitions alternate ({named}): only {keyword} {largest} is analysed"
        )
        return Chosen(kept, (*remarks, *_reconstructions(kept)), f"of another acquisition ({keyword})")
    return Chosen(tuple(slices), (*remarks, *_reconstructions(slices)))


def acquisition_of(one: Slice) -> str:
    """What tells one acquisition from another, as far as the header says it."""
    return _number(one) or one.frame.text("IrradiationEventUID")


def _number(one: Slice) -> str:
    keyword = "FrameAcquisitionNumber" if one.frame.layers else "AcquisitionNumber"
    try:
        return str(attributes.whole(one.frame.holder(keyword), keyword))
    except BadAttribute:
        return ""  # what is unreadable tells nothing apart


def _numbers(slices: Sequence[Slice]) -> dict[int, str]:
    return _known(slices, _number)


def _numbers_of(keyword: str) -> Callable[[Sequence[Slice]], dict[int, str]]:
    """By the number that each slice says; where it is none, the slice goes with its neighbours."""
    return lambda slices: _known(slices, lambda one: _as_number(one, keyword))


def _as_number(one: Slice, keyword: str) -> str:
    """ "120" of 120, 120.0 and 1.2e2; empty where it is no number."""
    try:
        return f"{one.frame.numbers(keyword, 1)[0]:g}"
    except BadAttribute:
        return ""


def _events(slices: Sequence[Slice]) -> dict[int, str]:
    return _known(slices, lambda one: one.frame.text("IrradiationEventUID"))


def _passes(slices: Sequence[Slice]) -> dict[int, str]:
    """By the pauses between the times of the slices; nothing where not all say one."""
    seconds = {id(one): at for one in slices if (at := _seconds(one)) is not None}
    if len(seconds) < len(slices):
        return {}
    order = sorted(slices, key=lambda one: seconds[id(one)])
    labels: dict[int, str] = {}
    number, last = 1, seconds[id(order[0])]
    for one in order:
        number += seconds[id(one)] - last > PAUSE_S
        last = seconds[id(one)]
        labels[id(one)] = f"pass {number}"
    return labels


def _contrast(slices: Sequence[Slice]) -> dict[int, str]:
    labels = {id(one): one.frame.text("ContrastBolusAgent") or "none" for one in slices}
    counts = Counter(labels.values())
    return {key: label for key, label in labels.items() if counts[label] > STRAY * len(slices)}


def _reconstructions(slices: Sequence[Slice]) -> list[str]:
    remarks = []
    for keyword, called in RECONSTRUCTIONS.items():
        counts = Counter(_as_number(one, keyword) or "\\".join(one.frame.texts(keyword)) for one in slices)
        counts.pop("", None)
        if len(counts) > 1:
            named = ", ".join(f"{each} ({count} slices)" for each, count in sorted(counts.items())[:4])
            remarks.append(f"slices of {len(counts)} {called} in one volume ({keyword}: {named})")
    return remarks


def _known(slices: Sequence[Slice], tell: Callable[[Slice], str]) -> dict[int, str]:
    return {id(one): label for one in slices if (label := tell(one))}


def _runs(slices: Sequence[Slice], labels: dict[int, str]) -> int:
    """How often the label changes along the patient, plus one. Slices without a label go with their neighbours, and
    where acquisitions overlap, place by place, they do not alternate."""
    normal = slices[0].normal
    places: list[tuple[float, set[str]]] = []
    for one in sorted((one for one in slices if id(one) in labels), key=lambda one: float(one.position @ normal)):
        along = float(one.position @ normal)
        if not places or along - places[-1][0] > SAME_PLACE_MM:
            places.append((along, set()))
        places[-1][1].add(labels[id(one)])
    single = [next(iter(here)) for _, here in places if len(here) == 1]
    return sum(one != other for one, other in pairwise(single)) + 1


def _seconds(one: Slice) -> float | None:
    """Acquisition time in seconds: that in (Frame)AcquisitionDateTime (DT), or AcquisitionTime (TM) of AcquisitionDate;
    of its day alone where no day is said."""
    for keyword in ("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime"):
        whole = one.frame.text(keyword)
        of_day = keyword == "AcquisitionTime"
        day, digits = (one.frame.text("AcquisitionDate"), whole) if of_day else (whole[:8], whole[8:])
        if len(digits) >= 6 and digits[:6].isascii() and digits[:6].isdigit():
            fraction = digits[6:].split("+")[0].split("-")[0]
            tail = float(f"0{fraction}") if fraction.startswith(".") and fraction[1:].isdigit() else 0.0
            return _days(day) * 86400 + int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:6]) + tail
    return None


def _days(day: str) -> int:
    """Of a DA, from the first of all; 0 where it is none."""
    try:
        return date.fromisoformat(day).toordinal()
    except ValueError:
        return 0
