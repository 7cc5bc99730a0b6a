"""Which series goes to which pipeline: rules over DICOM keywords, each answering with the first reason why not.

    Modality = "CT"                                   this text; case and outer spaces do not count
    BodyPartExamined = ["CHEST", "LUNG"]              any of these
    SliceThickness = { max = 3.0 }                    a number within bounds, bounds included
    SeriesDescription = { regex = "lung|chest" }      found somewhere in the text; case does not count
    ContrastBolusAgent = { absent = true }            missing or empty; { present = true } is the opposite
    "SequenceOfUltrasoundRegions.RegionDataType" = 1  any item of the sequence

Of a tag with several values one is enough, and of an enhanced image one of its frames, in whose functional groups the
tag is looked for. Numbers are compared as numbers wherever the rule or the tag has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isclose
from typing import Any

import re2
from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag

from dicom_sr import attributes
from dicom_sr.frames import holders
from pacs_node.privacy import identifies
from pacs_node.records import SHADOW, Also, Needs

OURS = "pacs-node"  # what our results carry as Manufacturer

RESULT_MODALITIES = {"SEG", "SR", "KO", "PR"}
RESULT_CLASSES = {  # by the root of the SOP Class UID, PS3.4 Table B.5-1; for a PACS that rewrites Modality
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.66.": "a segmentation or registration",
    "1.2.840.10008.5.1.4.1.1.88.": "a structured report or key object",
}

# VR -> most characters of a value, PS3.5 Table 6.2-1: an expression sees no more of it
LONGEST = {"AE": 16, "AS": 4, "CS": 16, "DA": 8, "DT": 26, "LO": 64, "LT": 10240, "PN": 3 * 64 + 2}
LONGEST |= {"SH": 16, "ST": 1024, "TM": 14, "UI": 64}
LONGEST_OF_OTHERS = 10240  # UC, UT and UR may be as long as anybody likes; a number whose end is cut is another one
MOST_SHOWN, LONGEST_SHOWN = 8, 64  # values in a reason, and characters of each

STAT, ROUTINE = 1, 5
# Requested Procedure Priority (0040,1003), PS3.3 C.4.11
REQUESTED = {"STAT": STAT, "HIGH": 3, "ROUTINE": ROUTINE, "MEDIUM": ROUTINE, "LOW": 7}

YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # VR AS, PS3.5 Table 6.2-1


@dataclass(frozen=True)
class Rule:
    """A route of the settings. `match` holds DICOM keywords (or dotted paths) and conditions; all must hold."""

    name: str
    match: Mapping[str, Any]
    pipeline: str
    send_to: tuple[str, ...]
    priority: int = ROUTINE
    options: Mapping[str, Any] = field(default_factory=dict)
    priors: str | None = None  # the peer to ask for earlier studies
    also: tuple[Also, ...] = ()  # who gets results with a finding of a kind as well
    shadow: bool = False  # its results go nowhere
    needs: Needs | None = None  # other series of the study that it waits for
    hours: str = ""  # at which its jobs run, unless they are urgent
    fallback: bool = False  # only for what no other route takes
    report_not_run: bool = False  # of what its pipeline refuses: a report that says why

    def why_not(self, header: Dataset) -> str | None:
        """None, or the first condition that fails, in words and without patient values.

        >>> Rule("chest", {"Modality": "CT"}, "lung-nodule", ("pacs",)).why_not(header)
        'Modality is MR, rule wants CT'
        """
        reasons = (_why_not(header, path, condition) for path, condition in self.match.items())
        return next((reason for reason in reasons if reason), None)


def missing(series: Sequence[Mapping[str, Any]], others: Sequence[Dataset]) -> list[str]:
    """Of the series that a route needs, those that are not among the others of the study, in words. One series is not
    two of them: what is missing is the least that it can be (augmenting paths, Kuhn 1955)."""
    fits = [[number for number, header in enumerate(others) if _takes(match, header)] for match in series]
    of: dict[int, int] = {}  # other series -> the need that it is for

    def found(need: int, seen: set[int]) -> bool:
        for other in fits[need]:
            if other not in seen:
                seen.add(other)
                if other not in of or found(of[other], seen):
                    of[other] = need
                    return True
        return False

    return [wishes(match) for need, match in enumerate(series) if not found(need, set())]


def _takes(match: Mapping[str, Any], header: Dataset) -> bool:
    return not any(_why_not(header, path, condition) for path, condition in match.items())


def wishes(match: Mapping[str, Any]) -> str:
    """What a route wants of a series, in words and without patient values."""
    said = [f"{path} {'as the route says' if identifying(path) else wish(wanted)}" for path, wanted in match.items()]
    return "a series with " + ", ".join(said) if said else "any other series"


def route(rules: Iterable[Rule], header: Dataset) -> list[tuple[Rule, str | None]]:
    """What every rule says about one series, in the order of the rules; None means that it matches."""
    guard = not_ours(header)
    return [(rule, guard or rule.why_not(header)) for rule in rules]


def priority_of(rule: Rule, header: Dataset) -> int:
    """What the rule says; where that is routine, what the images say that was requested. A shadow is always last."""
    if rule.shadow:
        return SHADOW
    if rule.priority != ROUTINE:
        return rule.priority
    requests = [header, *attributes.items(header, "RequestAttributesSequence")]
    asked = (attributes.text(each, "RequestedProcedurePriority").upper() for each in requests)
    return min((REQUESTED[each] for each in asked if each in REQUESTED), default=ROUTINE)


def not_ours(header: Dataset) -> str | None:
    """The loop guard: None for a source image; for a result the reason why it never starts a pipeline."""
    makers = [header, *attributes.items(header, "ContributingEquipmentSequence")]
    if any(_folded(attributes.text(maker, "Manufacturer")) == OURS for maker in makers):
        return f"made by {OURS} itself; results never start a pipeline"
    modality = attributes.text(header, "Modality")
    if modality in RESULT_MODALITIES:
        return f"Modality is {modality}; results never start a pipeline"
    uid = attributes.text(header, "SOPClassUID")
    kind = next((kind for root, kind in RESULT_CLASSES.items() if uid.startswith(root)), None)
    return f"is {kind}; results never start a pipeline" if kind else None


def _why_not(header: Dataset, path: str, condition: Any) -> str | None:
    try:
        keywords = path.split(".")
        cut = isinstance(condition, Mapping) and "regex" in condition
        said_in = holders(header, keywords[0])
        values = _values(said_in, keywords, cut=cut)
    except attributes.UNREADABLE:
        return f"{path} cannot be read"
    except attributes.BadAttribute as bad:
        return str(bad)
    if _holds(values, condition):
        return None
    if len(said_in) > 1:  # frames say the same again and again
        values = list({str(value): value for value in values}.values())
    if condition == {"absent": True}:
        return f"{path} is present, rule wants it absent"
    if not values:
        return f"{path} is missing, rule wants {'any value' if identifying(path) else wish(condition)}"
    if identifying(path):
        return f"{path} differs from what the rule wants"
    shown = ", ".join(_cut(str(value), LONGEST_SHOWN) for value in values[:MOST_SHOWN])
    more = f" and {len(values) - MOST_SHOWN} more" if len(values) > MOST_SHOWN else ""
    return f"{path} is {shown}{more}, rule wants {wish(condition)}"


def _values(items: Sequence[Dataset], keywords: Sequence[str], *, cut: bool) -> list[Any]:
    """Every value at a path, through all items of the sequences on the way; empty ones are left out.

    cut   as texts, none longer than its VR allows
    """
    found: list[Any] = []
    for item in items:
        element = attributes.element(item, keywords[0])
        if element is None:
            continue
        value = element.value
        if isinstance(value, Items):
            found += _values(value, keywords[1:], cut=cut) if len(keywords) > 1 else list(value)
        elif len(keywords) == 1:
            several = isinstance(value, MultiValue | list | tuple)
            here = [each for each in (value if several else [value]) if each is not None and str(each).strip()]
            vr = dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else element.VR  # not what a sender says
            most = LONGEST.get(vr, LONGEST_OF_OTHERS)
            found += [_cut(str(each), most) for each in here] if cut else here
    return found


def _cut(text: str, most: int) -> str:
    """Without the spaces round it, which do not count."""
    return text.strip()[:most]


def _holds(values: Sequence[Any], condition: Any) -> bool:
    match condition:
        case {"absent": True}:
            return not values
        case {"present": True}:
            return bool(values)
        case {"regex": str(pattern)}:
            # RE2: its time grows with the text alone, whatever the pattern; it takes no half of a surrogate pair
            texts = (str(value).strip().encode("utf-8", "replace").decode() for value in values)
            return any(re2.search(f"(?i){pattern}", text) for text in texts)
        case {"min": _} | {"max": _}:
            numbers = [number for value in values if (number := _number(value)) is not None]
            return any(condition.get("min", -inf) <= number <= condition.get("max", inf) for number in numbers)
        case list() | tuple():
            return any(_same(value, wanted) for value in values for wanted in condition)
        case str() | int() | float():
            return any(_same(value, condition) for value in values)
        case _:
            raise ValueError(f"no such condition: {condition!r}")


def _same(value: Any, wanted: str | float) -> bool:
    if isinstance(wanted, str) and isinstance(value, str):
        return _folded(value) == _folded(wanted)
    number, wanted_number = _number(value), _number(wanted)
    if number is None or wanted_number is None:
        return _folded(value) == _folded(wanted)
    return isclose(number, wanted_number, rel_tol=1e-9)


def _folded(value: Any) -> str:
    return str(value).strip().casefold()


def _number(value: Any) -> float | None:
    """A number, a text that reads as one, or an age in years; else None."""
    text = str(value).strip()
    if re.fullmatch(r"\d{3}[DWMY]", text):
        return int(text[:3]) * YEARS[text[3]]
    try:
        return float(text)
    except ValueError:
        return None


def wish(condition: Any) -> str:
    """What a rule wants of an attribute, in words."""
    match condition:
        case {"present": True}:
            return "any value"
        case {"regex": pattern}:
            return f"/{pattern}/"
        case {"min": low, "max": high}:
            return f"{low} to {high}"
        case {"min": low}:
            return f"at least {low}"
        case {"max": high}:
            return f"at most {high}"
        case list() | tuple():
            return " or ".join(str(wanted) for wanted in condition)
        case _:
            return str(condition)


def identifying(path: str) -> bool:
    """Would a value at this path tell who the patient is?"""
    tags = [tag_for_keyword(keyword) for keyword in path.split(".")]
    return any(identifies(Tag(tag)) for tag in tags if tag is not None)
