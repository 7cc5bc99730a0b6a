"""Findings of a kind, as [[notify]] and [[route.also]] ask for them: what reports call them, and how large they are.

What was found is told by facts of an inference: `number_of` findings of each kind, `largest_mm`, of each kind the
largest, and `unsized`, the kinds of those whose size in millimetres nobody knows. These are not known to be smaller
than anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dicom_sr.findings import Findings
from dicom_sr.importance import size
from pacs_node.records import Also

HELD = "it holds earlier results, which these replace"


def sizes(findings: Findings) -> dict[str, Any]:
    """{"number_of", "largest_mm", "unsized"}, the last two where there is something to say; rounded as reports say
    it."""
    largest: dict[str, float] = {}
    unsized = set()
    numbers = Counter(finding.type.meaning for finding in findings.findings)
    for finding in findings.findings:
        in_mm, extent = size(finding)
        kind = finding.type.meaning
        if in_mm:
            largest[kind] = max(round(extent, 1), largest.get(kind, 0.0))
        else:
            unsized.add(kind)
    return (
        {"number_of": dict(numbers)}
        | ({"largest_mm": largest} if largest else {})
        | ({"unsized": sorted(unsized)} if unsized else {})
    )


def of_kind(facts: Mapping[str, Any], kinds: Collection[str] = (), min_size_mm: float = 0.0) -> list[str]:
    """What was found of these kinds (none: of any) from this size on, in words; empty: nothing.

    >>> of_kind({"largest_mm": {"Nodule": 9.2}}, ["Nodule"], 8)
    ['Nodule of 9.2 mm']
    """
    found = {kind: f"{kind} of unknown size" for kind in facts.get("unsized") or ()}
    largest: Mapping[str, float] = facts.get("largest_mm") or {}
    found |= {kind: f"{kind} of {mm:g} mm" for kind, mm in largest.items() if mm >= min_size_mm}
    wanted = {kind.casefold() for kind in kinds}
    return [words for kind, words in sorted(found.items()) if not wanted or kind.casefold() in wanted]


def wish(kinds: Sequence[str], min_size_mm: float) -> str:
    """What is asked for, in words: "Nodule or Mass of at least 8 mm"."""
    which = " or ".join(kinds) or "finding"
    return f"{which} of at least {min_size_mm:g} mm" if min_size_mm else which


def as_well(send_to: Sequence[str], kinds: Sequence[str], min_size_mm: float) -> str:
    """Who gets the results of a route as well, and when, in words."""
    return f"to {' and '.join(send_to)} as well, if found: {wish(kinds, min_size_mm)}"


def decided(also: Sequence[Also], facts: Mapping[str, Any], held_by: Collection[str]) -> list[dict[str, Any]]:
    """Whether each further destination of a job gets its results, and why: {"to", "sent", "why"}.

    held_by: who holds earlier results of the same. What these say is void now, so that they must hear of it.
    """
    said: dict[str, dict[str, Any]] = {}
    for one in also:
        found = of_kind(facts, one.kinds, one.min_size_mm)
        why = ", ".join(found) or f"no {wish(one.kinds, one.min_size_mm)}"
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
