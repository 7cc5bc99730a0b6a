"""Findings -> the objects to send. The one call the node makes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydicom.dataset import Dataset

from dicom_sr.findings import Findings
from dicom_sr.report import report
from dicom_sr.seg import segmentations
from dicom_sr.source import EncodingError
from dicom_sr.validate import problems

__all__ = ["EncodingError", "encode"]


def encode(
    findings: Findings,
    sources: Sequence[Dataset],
    *,
    when: datetime,
    revision: int = 1,
    omit_empty_frames: bool = True,
) -> list[Dataset]:
    """Segmentations, then the report that refers to them: the order to send them in. Checked; ready for save_as.

    sources             headers of the images (read with stop_before_pixels), in any order
    when                goes into the dates; the clock is not looked at, so that equal arguments give equal bytes
    revision            1, or more when late images changed the series: other UIDs, same findings numbering
    omit_empty_frames   False for destinations whose viewer misplaces a Segmentation with gaps

    Raises EncodingError: a source is missing, a mask does not fit, or a finished object fails a check.
    """
    segs = segmentations(findings, sources, when=when, revision=revision, omit_empty_frames=omit_empty_frames)
    finished = [*segs, report(findings, sources, when=when, revision=revision, segmentations=segs)]
    wrong = [
        f"{dataset.Modality}: {problem}"
        for dataset in finished
        for problem in problems(dataset, sources, findings=findings, segmentations=segs)
    ]
    if wrong:
        raise EncodingError("; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""))
    return finished
