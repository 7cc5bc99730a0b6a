"""What a reader wants to know first: how many, the largest and where, and what changed since the study before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_sr import attributes, codes
from dicom_sr.findings import Finding, Findings, ImageRef
from dicom_sr.importance import size
from dicom_sr.rounding import decimal, in_words

NAMED_CHANGES = 3  # in full; the others are counted
NAMED = 10  # findings of different kinds, by their names; the others are counted


def summary(findings: Findings, headers: Sequence[Dataset]) -> str:
    """Sentences; `headers` are those of `findings.images`, in their order."""
    return " ".join(_sentences(findings, headers))


def image_name(header: Dataset, ref: ImageRef) -> str:
    """As viewers number it: 'image 45', 'frame 17', 'image 3, frame 17'; 'an image' if it has no number."""
    number = _number(header)
    if ref.frame is None:
        return f"image {number}" if number else "an image without a number"
    if "PerFrameFunctionalGroupsSequence" in header or not number:
        return f"frame {ref.frame}"
    return f"image {number}, frame {ref.frame}"


def _number(header: Dataset) -> str:
    """Instance Number as viewers show it; none where it is no number."""
    number = attributes.whole_or(header, "InstanceNumber", -1)
    return str(number) if number >= 0 else ""


def where(finding: Finding) -> str:
    """'right lung'."""
    return place(finding.site, finding.laterality)


def place(site: Code | None, laterality: Code | None) -> str:
    words = [code.meaning.lower() for code in (laterality, site) if code is not None]
    return " ".join(words)


def sizes(finding: Finding) -> str:
    """'12.3 x 9.8 mm', or what there is of it."""
    axes = [m for name in (codes.LONG_AXIS, codes.SHORT_AXIS) for m in finding.measurements if m.name == name]
    axes = [m for m in axes if m.derivation is None]
    if len(axes) == 2 and axes[0].unit == axes[1].unit:
        return f"{decimal(axes[0].value, axes[0].unit)} x {in_words(axes[1].value, axes[1].unit)}"
    return in_words(axes[0].value, axes[0].unit) if axes else ""


def _sentences(findings: Findings, headers: Sequence[Dataset]) -> Iterator[str]:
    found = findings.findings
    what = findings.sought.meaning.lower() if findings.sought is not None else "finding"
    if findings.sought is None and not found:
        yield from _of_the_whole(findings)
    elif not found:
        yield f"No {what} found" + (f" in the {place(findings.sought_site, None)}." if findings.sought_site else ".")
    else:
        yield f"{_counted(found, what)} found."
        largest = max(found, key=size)
        facts = [
            where(largest),
            sizes(largest),
            image_name(headers[largest.key_image], findings.images[largest.key_image]),
        ]
        head = "It is" if len(found) == 1 else "The largest is"
        yield f"{head} {largest.label}: {', '.join(fact for fact in facts if fact)}."
    if findings.compared_with is not None:
        yield from _changes(findings, found)


def _of_the_whole(findings: Findings) -> Iterator[str]:
    """What a classifier says, or a measurement of the whole: nothing was sought, so nothing is absent."""
    for evaluation in findings.evaluations:
        yield f"{evaluation.name.meaning}: {evaluation.value.meaning.lower()}."
    for measurement in findings.measurements:
        yield f"{measurement.name.meaning}: {in_words(measurement.value, measurement.unit)}."


def _counted(found: Sequence[Finding], sought: str) -> str:
    """'3 nodules'; of findings with names of their own '2 findings (Left kidney, Spleen)'."""
    stems = {_stem(finding) for finding in found}
    if len(found) > 1 and len(stems) > 1:
        names = [finding.label for finding in found]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"{len(found)} findings ({', '.join(names[:NAMED])}{more})"
    what = stems.pop().lower() or sought
    return f"{len(found)} {what}{'' if len(found) == 1 else 'es' if what.endswith('s') else 's'}"


def _stem(finding: Finding) -> str:
    """A label without the number at its end: 'Nodule' of 'Nodule 3'."""
    stem, _, last = finding.label.rpartition(" ")
    return stem if last.isdecimal() else finding.label


def _changes(findings: Findings, found: Sequence[Finding]) -> Iterator[str]:
    compared = findings.compared_with
    assert compared is not None
    yield f"Compared with the study of {compared.study_date.isoformat()}, {compared.days} days before:"
    kinds = [
        ("grew", codes.INCREASE_IN_SIZE),
        ("new", codes.NEW_FINDING),
        ("shrank", codes.DECREASE_IN_SIZE),
        ("unchanged", codes.NO_SIGNIFICANT_CHANGE),
    ]
    told = []
    for word, code in kinds:
        labels = [f.label for f in found if any(e.value == code for e in f.evaluations)]
        if labels:
            more = f" and {len(labels) - NAMED_CHANGES} more" if len(labels) > NAMED_CHANGES else ""
            told.append(f"{word}: {', '.join(labels[:NAMED_CHANGES])}{more}")
    if compared.no_longer_found:
        told.append(f"no longer found: {compared.no_longer_found}")
    yield ("; ".join(told) or "nothing to compare") + "."
