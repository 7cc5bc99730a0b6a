"""The order of findings in every report, Segmentation and page: what a reader should look at first comes first.

1. what grew since the study before, then what is new there and at least 4 mm (a new solid nodule below that is
   Lung-RADS v2022 category 2)
2. the likelier cancer, where an algorithm states a probability for each lesion
3. the larger: mean diameter, else long axis, in whole millimetres, as guidelines have it
4. by type: part-solid, solid, non-solid, without a type (the risk of nodules of one size, McWilliams, NEJM 369:910)
5. the more certain
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.findings import Finding, Findings

NEW_FROM_MM = 4.0  # mean diameter
TYPES = (codes.PART_SOLID, codes.SOLID, codes.NON_SOLID)


def importance(finding: Finding) -> tuple[float, ...]:
    """Larger is more important; to be compared with that of other findings of the same result."""
    said = {evaluation.value for evaluation in finding.evaluations}
    grew = codes.INCREASE_IN_SIZE in said
    new = codes.NEW_FINDING in said and size(finding)[1] >= NEW_FROM_MM
    cancer = _value(finding, codes.PROBABILITY_OF_CANCER) or 0.0
    in_mm, extent = size(finding)
    kind = next((len(TYPES) - place for place, code in enumerate(TYPES) if code in said), 0)
    return (
        2.0 if grew else 1.0 if new else 0.0,
        round(cancer),
        in_mm,
        int(extent + 0.5),
        kind,
        round(finding.certainty or 0.0, 4),
        extent,
    )


def size(finding: Finding) -> tuple[float, float]:
    """(1 in millimetres, 0 in pixels; mean diameter, else long axis, else 0)."""
    for name, derivation in ((codes.MEAN_DIAMETER, codes.MEAN), (codes.LONG_AXIS, None)):
        for measurement in finding.measurements:
            if (measurement.name, measurement.derivation) == (name, derivation):
                return float(measurement.unit == codes.MM), measurement.value
    return 0.0, 0.0


def by_importance(findings: Sequence[Finding]) -> list[Finding]:
    """The most important first; equal ones stay in their order."""
    return sorted(findings, key=importance, reverse=True)


def renumber(findings: Findings) -> Findings:
    """The findings by importance, numbered so; labels that end in their number, warnings that name
    them, and pictures of them follow."""
    ordered = by_importance(findings.findings)
    places = {finding.number: number for number, finding in enumerate(ordered, start=1)}
    labels = {}
    numbered = []
    for number, finding in enumerate(ordered, start=1):
        stem, _, last = finding.label.rpartition(" ")
        label = f"{stem} {number}" if last == str(finding.number) else finding.label
        labels[finding.label] = label
        numbered.append(replace(finding, number=number, label=label))
    named = re.compile("|".join(rf"\b{re.escape(label)}\b" for label in labels) or "(?!)")
    warnings = tuple(named.sub(lambda found: labels[found[0]], warning) for warning in findings.warnings)
    pictures = sorted((replace(one, finding=places[one.finding]) for one in findings.pictures), key=lambda p: p.finding)
    return replace(findings, findings=tuple(numbered), warnings=warnings, pictures=tuple(pictures))


def _value(finding: Finding, name: Code) -> float | None:
    return next((m.value for m in finding.measurements if m.name == name), None)
