"""Findings -> the objects to send. The one call the node makes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydicom.dataset import Dataset

from dicom_sr import attributes
from dicom_sr.capture import pictures
from dicom_sr.copies import ratio_and_method, remarks
from dicom_sr.files import Files
from dicom_sr.findings import Findings
from dicom_sr.report import report
from dicom_sr.revision import Written, name_predecessors, rejection_note
from dicom_sr.seg import segmentations
from dicom_sr.source import EncodingError, source_headers
from dicom_sr.validate import Fault, Rejected, faults

__all__ = ["EncodingError", "Fault", "Rejected", "Written", "check_objects", "encode"]


def encode(
    findings: Findings,
    sources: Sequence[Dataset],
    *,
    when: datetime,
    revision: int = 1,
    omit_empty_frames: bool = True,
    replaces: Sequence[Written] = (),
) -> list[Dataset]:
    """Segmentations, then the report that refers to them, then pictures: the order to send them in. Checked; ready for
    save_as.

    sources             headers of the images (read with stop_before_pixels), in any order
    when                goes into the dates; the clock is not looked at, so that equal arguments give equal bytes
    revision            1, or more when late images or another algorithm made it another: other UIDs, same numbering
    omit_empty_frames   False for destinations whose viewer misplaces a Segmentation with gaps
    replaces            objects of earlier revisions that are void now; the report names their reports as predecessors

    Raises EncodingError: a source is missing, a mask does not fit; Rejected: a finished object fails a check.
    """
    finished, _ = check_objects(
        findings, sources, when=when, revision=revision, omit_empty_frames=omit_empty_frames, replaces=replaces
    )
    return finished


def check_objects(
    findings: Findings,
    sources: Sequence[Dataset],
    *,
    when: datetime,
    revision: int = 1,
    omit_empty_frames: bool = True,
    replaces: Sequence[Written] = (),
    note: bool = False,
    files: Files | None = None,
) -> tuple[list[Dataset], list[Fault]]:
    """As `encode`; and the warnings of the checks.

    note    a last object rejects what is replaced, if anything is, see `revision.rejection_note`
    files   takes the files that are made for the checks
    """
    files = files or Files()
    segs = segmentations(findings, sources, when=when, revision=revision, omit_empty_frames=omit_empty_frames)
    document = report(findings, sources, when=when, revision=revision, segmentations=segs)
    name_predecessors(document, replaces)
    drawn = pictures(findings, document, sources)
    finished = [*segs, document, *drawn, *([rejection_note(document, replaces)] if note and replaces else [])]
    found = [
        Fault(fault.rule, fault.severity, f"{dataset.Modality}: {fault.text}")
        for dataset in finished
        for fault in faults(dataset, sources, findings=findings, segmentations=segs, replaces=replaces, files=files)
    ]
    if any(fault.severity == "error" for fault in found):
        raise Rejected(finished, found)
    return finished, [*_of_copies(findings, sources), *found]


def _of_copies(findings: Findings, sources: Sequence[Dataset]) -> list[Fault]:
    """What is odd about what the objects copy from their source, for people to look at."""
    source = source_headers(findings, sources)[0]
    _, ratio = ratio_and_method(source) if attributes.text(source, "LossyImageCompression") == "01" else ([], None)
    return [
        Fault("copied from the images", "warning", text) for text in (*remarks(source), *([ratio] if ratio else []))
    ]
