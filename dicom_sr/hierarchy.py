"""Hierarchical SOP Instance Reference Macro, PS3.3 Table C.17-3: instances named by study and series, and read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pydicom.dataset import Dataset


class Named(NamedTuple):
    """One instance that a document names."""

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str


def hierarchy(instances: Iterable[Named]) -> list[Dataset]:
    """Instances -> the items of such a sequence; studies, series and instances in the order of their first mention."""
    studies: dict[str, Dataset] = {}
    series: dict[tuple[str, str], Dataset] = {}
    for each in instances:
        if each.study_uid not in studies:
            study = studies[each.study_uid] = Dataset()
            study.StudyInstanceUID = each.study_uid
            study.ReferencedSeriesSequence = []
        if each[:2] not in series:
            one = series[each[:2]] = Dataset()
            one.SeriesInstanceUID = each.series_uid
            one.ReferencedSOPSequence = []
            studies[each.study_uid].ReferencedSeriesSequence.append(one)
        item = Dataset()
        item.ReferencedSOPClassUID = each.sop_class_uid
        item.ReferencedSOPInstanceUID = each.sop_instance_uid
        series[each[:2]].ReferencedSOPSequence.append(item)
    return list(studies.values())


def named_in(document: Dataset, keyword: str) -> Iterator[Named]:
    """The inverse, for a document's "PredecessorDocumentsSequence" or one of its evidence sequences; none if absent."""
    for study in document.get(keyword) or ():
        for series in study.ReferencedSeriesSequence:
            for item in series.ReferencedSOPSequence:
                yield Named(
                    str(study.get("StudyInstanceUID", "")),  # a peer may have left it out
                    str(series.SeriesInstanceUID),
                    str(item.ReferencedSOPClassUID),
                    str(item.ReferencedSOPInstanceUID),
                )
