"""A report that says why a series was not analysed: a reader of the PACS must not take silence for "nothing found"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import highdicom as hd
from pydicom.dataset import Dataset

from dicom_sr import attributes, codes
from dicom_sr.attributes import BadAttribute
from dicom_sr.findings import Algorithm, Evaluation, Findings, ImageRef, Measurement
from dicom_sr.frames import count, rows_and_columns
from dicom_sr.header import series_description
from dicom_sr.report import REASON, Group, _comment, _edge, _evaluations, _Report
from dicom_sr.revision import Written, name_predecessors
from dicom_sr.source import EncodingError, identity_differs, person
from dicom_sr.validate import Rejected, faults

NOT_ANALYSED = "Not analysed"
WHOSE = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")


def not_run_reports(
    pipeline: str,
    variant: str,
    reason: str,
    sources: Sequence[Dataset],
    *,
    replaces: Sequence[Written] = (),
    **said: Any,
) -> list[Dataset]:
    """A report for each patient and study that images of the series name: usually one. As `not_run_report`."""
    of: dict[tuple[str, ...], list[Dataset]] = {}
    named = [header for header in sources if _can_be_named(header)]
    several = identity_differs(named) is not None
    for header in named:
        whose = tuple("\\".join(attributes.texts(header, keyword)) for keyword in WHOSE)
        of.setdefault((*whose, *(person(header).values() if several else ())), []).append(header)
    groups = sorted(of.items(), key=lambda item: (-len(item[1]), item[0])) or [((), [])]
    return [
        not_run_report(
            pipeline,
            " ".join(filter(None, (variant, f"of {number}" if number else ""))),  # UIDs of its own
            reason,
            images,
            replaces=replaces if number == 0 else (),
            **said,
        )
        for number, (_, images) in enumerate(groups)
    ]


def not_run_report(
    pipeline: str,
    variant: str,
    reason: str,
    sources: Sequence[Dataset],
    *,
    version: str,
    when: datetime,
    revision: int = 1,
    replaces: Sequence[Written] = (),
) -> Dataset:
    """A TID 1500 report with one TID 1501 group: Summary of Analyses = Not Attempted (CID 6042), and the reason.

    sources   headers of the series' images in any order, of one patient and study; those without rows and columns, or
              without the UIDs that name them, are left out
    version   of the node, which says it: no algorithm was asked

    The group holds a number with coordinates round an image, because OHIF draws nothing of a report without.
    Raises EncodingError if there is no image to say it of; Rejected if the report fails a check.
    """
    images = sorted(
        (header for header in sources if _can_be_named(header)),
        key=lambda header: (attributes.text(header, "InstanceNumber"), attributes.text(header, "SOPInstanceUID")),
    )
    findings = Findings(
        pipeline=pipeline,
        geometry="image",
        images=tuple(_ref(header) for header in images),
        findings=(),
        algorithm=Algorithm("pacs-node", version),
        variant=f"{variant} not run".strip(),
    )
    if not images:
        raise EncodingError("no image of the series has rows and columns to point at")
    document = _NotRun(findings, images, when, revision, (), reason).document()
    document.SeriesDescription = series_description(f"not analysed by {pipeline}", "SR", revision)
    name_predecessors(document, replaces)
    found = faults(document, images, replaces=replaces)
    if any(fault.severity == "error" for fault in found):
        raise Rejected([document], found)
    return document


def _can_be_named(header: Dataset) -> bool:
    """Whether a report can point at it: it says which image it is, and how large."""
    try:
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            attributes.uid(header, keyword)
        rows_and_columns(header)
    except BadAttribute:
        return False
    return True


class _NotRun(_Report):
    looked = False

    def __init__(
        self,
        findings: Findings,
        sources: Sequence[Dataset],
        when: datetime,
        revision: int,
        segmentations: Sequence[Dataset],
        reason: str,
    ) -> None:
        super().__init__(findings, sources, when, revision, segmentations)
        self.reason = reason

    def summary(self) -> str:
        return f"{NOT_ANALYSED} by {self.findings.pipeline}: {self.reason}."

    def groups(self) -> Iterator[Group]:
        """TID 1501, made as `whole` makes its own: never a count of findings, for nobody looked."""
        findings, middle = self.findings, len(self.headers) // 2
        edge = self.on(middle, _edge(self.headers[middle]))
        arrived = Measurement(codes.NUMBER_OF_FRAMES, len(findings.images), codes.FRAMES)
        group = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(self.uid("not run"), NOT_ANALYSED),
            measurements=[self.number(arrived, [edge])],
            qualitative_evaluations=_evaluations([Evaluation(codes.SUMMARY_OF_ANALYSES, codes.NOT_ATTEMPTED)]),
        )
        for text in (f"{NOT_ANALYSED} by {findings.pipeline}", f"{REASON}{self.reason}"):
            group[0].ContentSequence.append(_comment(text))
        yield group


def _ref(header: Dataset) -> ImageRef:
    try:
        frame = 1 if count(header) else None
    except BadAttribute:  # how many frames it has may be why it was not run
        frame = None
    return ImageRef(attributes.text(header, "SOPClassUID"), attributes.text(header, "SOPInstanceUID"), frame)
