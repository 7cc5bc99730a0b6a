"""Findings of a kind, as [[notify]] and [[route.also]] ask for them: what reports call them, and how large they are.

What was found is told by facts of an inference: `number_of` findings of each kind, `largest_mm`, of each kind the
largest, and `unsized`, the kinds of those whose size in millimetres nobody knows. These are not known to be smaller
than anything. `categories` says the same two of the findings of each category that is suggested, or class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from dicom_sr import codes
from dicom_sr.classes import CLASSES
from dicom_sr.findings import Evaluation, Finding, Findings, Measurement
from dicom_sr.importance import size
from pacs_node.records import Also

SYSTEMS = "Lung-RADS", "BI-RADS"
HELD = "it holds earlier results, which these replace"


def sizes(findings: Findings) -> dict[str, Any]:
    """{"number_of", "largest_mm", "unsized", "categories"}, the last three where there is something to say."""
    numbers = Counter(finding.type.meaning for finding in findings.findings)
    of: dict[str, list[Finding]] = {}
    for finding in findings.findings:
        for name in {*map(category_of, finding.evaluations), class_of(finding, findings)} - {None}:
            of.setdefault(str(name), []).append(finding)
    categories = {name: _extents(of[name]) for name in sorted(of)}
    said = {"categories": categories} if categories else {}
    return {"number_of": dict(numbers)} | _extents(findings.findings) | said


def _extents(findings: Sequence[Finding]) -> dict[str, Any]:
    """{"largest_mm", "unsized"}; rounded as reports say it."""
    largest: dict[str, float] = {}
    unsized = set()
    for finding in findings:
        in_mm, extent = size(finding)
        kind = finding.type.meaning
        if in_mm:
            largest[kind] = max(round(extent, 1), largest.get(kind, 0.0))
        else:
            unsized.add(kind)
    return ({"largest_mm": largest} if largest else {}) | ({"unsized": sorted(unsized)} if unsized else {})


class OfKind(Protocol):
    """A condition: `[[notify]]`, `[[route.also]]`, records.Also."""

    @property
    def kinds(self) -> Sequence[str]: ...  # none: of any
    @property
    def min_size_mm(self) -> float: ...
    @property
    def categories(self) -> Sequence[str]: ...  # none: of any, and of none


def category_of(evaluation: Evaluation) -> str | None:
    """ "Lung-RADS 4A" or "BI-RADS 4C" of one that is suggested; None: it suggests none of these."""
    suggested, value = evaluation.name.meaning.startswith(codes.SUGGESTED), evaluation.value.meaning
    system = next((each for each in SYSTEMS if suggested and each in evaluation.name.meaning.split()), None)
    return f"{system} {value.removeprefix(system).partition(' - ')[0].strip()}" if system else None


def class_of(finding: Finding, findings: Findings) -> str | None:
    """The likeliest class of a lesion of the breast; None: that is not stated of this one.

    Of several lesions of one view the shares of all classes are stated of the one that decides, of others P(cancer).
    """
    own, whole = (_shares(each.measurements) for each in (finding, findings))
    cancer = own.get("malignant")
    if len(own) < len(CLASSES) and cancer is not None:
        own = whole if cancer == whole.get("malignant") else {"malignant": cancer, "": 100 - cancer}
    order = ["", *CLASSES]  # of two alike the graver, as in dicom_sr.classes
    return max(own, key=lambda each: (own[each], order.index(each)), default="") or None


def _shares(measurements: Sequence[Measurement]) -> dict[str, float]:
    named = {each.name: each.value for each in measurements}
    return {name: named[code] for name, code in CLASSES.items() if code in named}


def of_kind(facts: Mapping[str, Any], wanted: OfKind) -> list[str]:
    """What was found of these kinds and categories from this size on, in words; empty: nothing. One finding has to be
    all of it; one without a category is of none.

    >>> of_kind({"largest_mm": {"Nodule": 9.2}}, Also((), ["Nodule"], 8))
    ['Nodule of 9.2 mm']
    """
    if not wanted.categories:
        return _sized(facts, wanted)
    asked = {each.casefold() for each in wanted.categories}
    of_categories = sorted((facts.get("categories") or {}).items())
    such = (
        (name, words) for name, of_it in of_categories if name.casefold() in asked for words in _sized(of_it, wanted)
    )
    return [f"{words}, {name}" for name, words in such]


def _sized(facts: Mapping[str, Any], wanted: OfKind) -> list[str]:
    found = {kind: f"{kind} of unknown size" for kind in facts.get("unsized") or ()}
    largest: Mapping[str, float] = facts.get("largest_mm") or {}
    found |= {kind: f"{kind} of {mm:g} mm" for kind, mm in largest.items() if mm >= wanted.min_size_mm}
    kinds = {kind.casefold() for kind in wanted.kinds}
    return [words for kind, words in sorted(found.items()) if not kinds or kind.casefold() in kinds]


def wish(wanted: OfKind) -> str:
    """What is asked for, in words: "Nodule or Mass of at least 8 mm, Lung-RADS 4A"."""
    which = " or ".join(wanted.kinds) or "finding"
    sized = f"{which} of at least {wanted.min_size_mm:g} mm" if wanted.min_size_mm else which
    return f"{sized}, {' or '.join(wanted.categories)}" if wanted.categories else sized


def as_well(send_to: Sequence[str], wanted: OfKind) -> str:
    """Who gets the results of a route as well, and when, in words."""
    return f"to {' and '.join(send_to)} as well, if found: {wish(wanted)}"


def decided(also: Sequence[Also], facts: Mapping[str, Any], held_by: Collection[str]) -> list[dict[str, Any]]:
    """Whether each further destination of a job gets its results, and why: {"to", "sent", "why"}.

    held_by: who holds earlier results of the same. What these say is void now, so that they must hear of it.
    """
    said: dict[str, dict[str, Any]] = {}
    for one in also:
        found = of_kind(facts, one)
        why = ", ".join(found) or f"no {wish(one)}"
        for place in one.send_to:
            before = said.get(place)
            if before is None or (found and not before["sent"]):
                said[place] = {"to": place, "sent": bool(found), "why": why}
            elif bool(found) == before["sent"]:
                said[place] = {**before, "why": f"{before['why']}; {why}"}
    for place, each in said.items():
        if not each["sent"] and place in held_by:
            said[place] = {"to": place, "sent": True, "why": f"{each['why']}, but {HELD}"}
    return list(said.values())
