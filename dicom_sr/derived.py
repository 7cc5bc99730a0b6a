"""What the forms of a result share: findings as SEG and SR tell them, and the header of an object made of another.

A derived object says what its original says to peers that do not take the original. Its dates are the original's and
its UIDs derive from the original's, so that making it twice makes the same bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from highdicom.color import CIELabColor
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from dicom_sr import read
from dicom_sr.codes import CERTAINTY
from dicom_sr.copies import ALWAYS_COPIED, COPIED_IF_PRESENT, coded
from dicom_sr.findings import ImageRef
from dicom_sr.header import OF_ONE_ANALYSIS, series_description
from dicom_sr.report import CONTOUR
from dicom_sr.source import EncodingError
from dicom_sr.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, child_uid


@dataclass(frozen=True, eq=False)
class Results:
    """The objects of one analysis as they were stored, and the headers of the images they speak of."""

    segmentations: tuple[Dataset, ...]
    report: Dataset
    sources: Mapping[str, Dataset]  # SOP Instance UID -> header

    def source(self, ref: ImageRef) -> Dataset:
        """Raises EncodingError if the image is not there any more."""
        if ref.sop_instance_uid not in self.sources:
            raise EncodingError(f"image {ref.sop_instance_uid}, which the results speak of, is not stored here")
        return self.sources[ref.sop_instance_uid]


@dataclass(frozen=True, eq=False)
class Marked:
    """One finding as a Segmentation and the report tell it."""

    segment: read.Segment
    colour: tuple[int, int, int]  # RGB
    certainty: float  # per cent; 0 where the report does not say
    key: ImageRef  # the image it was measured on
    calipers: tuple[read.Line, ...]
    group: read.Group | None  # its numbers


def mark_findings(segmentation: Dataset, report: Dataset) -> list[Marked]:
    """The findings of one Segmentation, in the order of their segments; of a report its boxes, which have none."""
    if "SegmentSequence" not in segmentation:
        return _boxes(report)
    groups = read.groups(report)
    by_name = {group.tracking_id: group for group in groups}
    numbers = {group.tracking_uid: group for group in groups if group.template in ("1410", "1411")}
    found = []
    for item, segment in zip(segmentation.SegmentSequence, read.segments(segmentation), strict=True):
        if not segment.masks:
            continue
        group = numbers.get(segment.tracking_uid)
        contour = by_name.get(f"{CONTOUR}:{segment.label}")
        lines = (contour.lines if contour else ()) or (group.lines if group else ())
        _, largest = max(
            ((np.count_nonzero(mask), ref) for ref, mask in segment.masks.items()), key=lambda pair: pair[0]
        )
        found.append(
            Marked(
                segment=segment,
                colour=_rgb(item),
                certainty=next((m.value for m in group.measurements if m.name == CERTAINTY), 0.0) if group else 0.0,
                key=next((line.image for line in lines if line.image in segment.masks), largest),
                calipers=tuple(read.axes_of(group, groups).values()) if group else (),
                group=group,
            )
        )
    return found


BOX_COLOUR = (255, 200, 0)


def _boxes(report: Dataset) -> list[Marked]:
    found = []
    for number, group in enumerate((each for each in read.groups(report) if read.is_boxed(each)), start=1):
        box, *calipers = group.lines
        (x0, y0), (x1, y1) = box.points.min(axis=0), box.points.max(axis=0)
        mask = np.zeros((round(y1), round(x1)), bool)  # only its outline is drawn
        mask[round(y0) :, round(x0) :] = True
        nothing = Code("", "", "")
        segment = read.Segment(
            number,
            group.tracking_id,
            group.tracking_uid,
            group.category or nothing,
            group.type or nothing,
            group.site,
            group.laterality,
            {box.image: mask},
        )
        certainty = next((m.value for m in group.measurements if m.name == CERTAINTY), 0.0)
        found.append(Marked(segment, BOX_COLOUR, certainty, box.image, tuple(calipers), group))
    return found


def derived(
    original: Dataset,
    *,
    sop_class_uid: str,
    modality: str,
    role: str,
    series_number: int,
    number: int = 1,
    called: str = "",
) -> Dataset:
    """A data set of the original's patient, study, maker and dates, in a series of its own.

    role            what is made of the original; its UIDs derive from this and the original's
    series_number   of the first object of this kind; several originals have several series
    number          the instance number, where there are several of one original
    called          what the series' description calls it; default: its modality
    """
    result = Dataset()
    for keyword in (*OF_ONE_ANALYSIS, *ALWAYS_COPIED, *COPIED_IF_PRESENT):
        if keyword in original:
            result[keyword] = copy.deepcopy(original[keyword])
    result.SOPClassUID = sop_class_uid
    result.SOPInstanceUID = child_uid(original.SOPInstanceUID, f"{role} {number}")
    result.SeriesInstanceUID = child_uid(original.SeriesInstanceUID, f"{role} series")
    result.Modality = modality
    result.SeriesNumber = series_number + int(original.SeriesNumber) % 100
    result.SeriesDescription = series_description(
        str(original.ManufacturerModelName), called or modality, int(original.InstanceNumber)
    )
    result.InstanceNumber = number
    with_file_meta(result)
    return result


def with_file_meta(dataset: Dataset) -> None:
    """New file meta information for the data set's SOP class and instance."""
    meta = dataset.file_meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME


def another(original: Dataset, role: str) -> Dataset:
    """A copy under UIDs of its own, to be changed."""
    result = copy.deepcopy(original)
    result.SOPInstanceUID = child_uid(original.SOPInstanceUID, role)
    result.SeriesInstanceUID = child_uid(original.SeriesInstanceUID, f"{role} series")
    with_file_meta(result)
    return result


def say_body_part(dataset: Dataset, sources: Collection[Dataset]) -> None:
    """Body Part Examined and Laterality of the General Series module, as far as the sources agree on them.

    Laterality is Type 2C: empty is right only where it is unknown, absent only where the body part is not paired.
    """
    for keyword in ("BodyPartExamined", "Laterality"):
        values = {coded(source, keyword) for source in sources}
        if len(values) == 1 and "" not in values:
            setattr(dataset, keyword, values.pop())
    if "BodyPartExamined" not in dataset and "Laterality" not in dataset:
        dataset.Laterality = None


def _rgb(segment: Dataset) -> tuple[int, int, int]:
    lab = segment.get("RecommendedDisplayCIELabValue")
    if lab is None:
        return 255, 200, 0
    red, green, blue = CIELabColor.from_dicom_value(list(lab)).to_rgb(clip=True)
    return int(red), int(green), int(blue)
