"""Segmentation -> the same in another writing: as a Label Map, or with the empty frames too.

For destinations whose viewers want it so. The report refers to a Segmentation by its UID, so it is turned to the
other one (`retargeted`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, SegmentationStorage

from dicom_sr import attributes, read
from dicom_sr.derived import Results, another, with_file_meta
from dicom_sr.findings import ImageRef
from dicom_sr.header import image_reference, references
from dicom_sr.source import EncodingError, Plane, plane

LABEL_MAP_SEGMENTATION_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")  # PS3.4 B.5, younger than pydicom's dictionary
SEGMENT_CLASSES = (SegmentationStorage, LABEL_MAP_SEGMENTATION_STORAGE)  # what has segments that a report can refer to


def label_map(segmentation: Dataset) -> Dataset:
    """Label Map Segmentation IOD, PS3.3 A.51: one frame per image, its values are segment numbers, 0 is background.

    Raises EncodingError when findings overlap: a pixel has one label.
    """
    if segmentation.get("SegmentsOverlap") == "YES":
        raise EncodingError("findings overlap, and a pixel of a label map has one label")
    result = another(segmentation, "label map")
    result.SOPClassUID = LABEL_MAP_SEGMENTATION_STORAGE
    with_file_meta(result)
    images: dict[ImageRef, int] = {}  # image -> the first frame on it
    frames = int(segmentation.NumberOfFrames)
    for frame in range(frames):
        images.setdefault(read.frame_source(segmentation, frame), frame)
    ranks = [int(_content(segmentation, frame).DimensionIndexValues[1]) for frame in images.values()]
    order = [ref for _, ref in sorted(zip(ranks, images, strict=True), key=lambda pair: pair[0])]

    label = np.uint8 if len(segmentation.SegmentSequence) < 256 else np.dtype("<u2")
    pixels = np.zeros((len(order), int(segmentation.Rows), int(segmentation.Columns)), label)
    place = {ref: k for k, ref in enumerate(order)}
    for segment in read.segments(segmentation):
        for ref, mask in segment.masks.items():
            pixels[place[ref]][mask] = segment.number

    result.SegmentationType = "LABELMAP"
    result.SegmentsOverlap = "NO"
    result.BitsAllocated = result.BitsStored = 8 * pixels.itemsize
    result.HighBit = result.BitsStored - 1
    result.PixelPaddingValue = 0  # the background, which no segment describes
    result["PixelPaddingValue"].VR = "US"
    result.NumberOfFrames = len(order)
    groups = []
    for ref in order:
        own = copy.deepcopy(segmentation.PerFrameFunctionalGroupsSequence[images[ref]])
        own.pop("SegmentIdentificationSequence", None)
        content = own.FrameContentSequence[0]
        content.DimensionIndexValues = [content.DimensionIndexValues[1]]
        groups.append(own)
    result.PerFrameFunctionalGroupsSequence = groups
    result.DimensionIndexSequence = [copy.deepcopy(segmentation.DimensionIndexSequence[1])]
    result.SharedFunctionalGroupsSequence[0].pop("SegmentIdentificationSequence", None)
    data = pixels.tobytes()
    result.PixelData = data + b"\0" * (len(data) % 2)
    result["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    return result


def with_empty_frames(segmentation: Dataset, results: Results) -> Dataset:
    """The same segments with a frame for every image of their grid. Raises EncodingError if an image is not there."""
    frames = range(int(segmentation.NumberOfFrames))
    first = read.frame_source(segmentation, 0)
    like = plane(results.source(first), first.frame)
    grid = sorted(
        (ref for ref in _images(results) if _fits(plane(results.source(ref), ref.frame), like)),
        key=lambda ref: _rank(ref, results),
    )
    missing = {read.frame_source(segmentation, frame) for frame in frames} - set(grid)
    if missing:
        raise EncodingError("the images do not lie on one grid, so no frame can be empty between them")

    masks = {segment.number: segment.masks for segment in read.segments(segmentation)}
    empty = np.zeros((like.rows, like.columns), bool)
    result = another(segmentation, "with empty frames")
    groups, pixels = [], []
    for number in sorted(masks):
        for rank, ref in enumerate(grid, start=1):
            groups.append(_frame(segmentation, number, rank, ref, results))
            pixels.append(masks[number].get(ref, empty))
    result.PerFrameFunctionalGroupsSequence = groups
    shared = result.SharedFunctionalGroupsSequence[0]
    shared.pop("SegmentIdentificationSequence", None)
    result.NumberOfFrames = len(groups)
    result.ReferencedSeriesSequence = references(
        {ref.sop_instance_uid: (ref.sop_class_uid, str(results.source(ref).SeriesInstanceUID)) for ref in grid}
    )
    eights = (np.stack(pixels[k : k + 8]).ravel() for k in range(0, len(pixels), 8))  # eight frames end on a byte
    data = b"".join(np.packbits(eight, bitorder="little").tobytes() for eight in eights)
    result.PixelData = data + b"\0" * (len(data) % 2)
    result["PixelData"].VR = "OB"
    return result


def retarget(report: Dataset, instead: Mapping[str, Dataset]) -> Dataset:
    """The report under UIDs of its own, with every reference to a Segmentation turned to the one that was sent.

    instead   SOP Instance UID of a Segmentation that the report refers to -> the one to refer to
    """
    result = another(report, "for " + " ".join(str(instead[uid].SOPInstanceUID) for uid in sorted(instead)))
    for item in _items(result):
        other = instead.get(str(item.get("ReferencedSOPInstanceUID")))
        if other is not None:
            item.ReferencedSOPInstanceUID = other.SOPInstanceUID
            item.ReferencedSOPClassUID = other.SOPClassUID
    for study in result.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            uids = {str(item.ReferencedSOPInstanceUID) for item in series.ReferencedSOPSequence}
            for other in instead.values():
                if str(other.SOPInstanceUID) in uids:  # a Segmentation is alone in its series
                    series.SeriesInstanceUID = other.SeriesInstanceUID
    return result


def _images(results: Results) -> Iterator[ImageRef]:
    for uid, header in results.sources.items():
        frames = range(1, int(header.NumberOfFrames) + 1) if "NumberOfFrames" in header else (None,)
        yield from (ImageRef(str(header.SOPClassUID), uid, frame) for frame in frames)


def _fits(place: Plane, like: Plane) -> bool:
    """Whether two are of one size, and in one space and orientation, or of one calibration where there is none."""
    same = replace(place, position=like.position, thickness_mm=like.thickness_mm) == like
    return same and (place.position is None) == (like.position is None)


def _rank(ref: ImageRef, results: Results) -> tuple[float, int, str, int]:
    header = results.source(ref)
    place = plane(header, ref.frame)
    along = place.along_normal_mm() if place.is_in_space else 0.0
    return along, attributes.whole_or(header, "InstanceNumber", 0), ref.sop_instance_uid, ref.frame or 0


def _frame(segmentation: Dataset, segment: int, rank: int, ref: ImageRef, results: Results) -> Dataset:
    """The functional groups of one segment on one image, on the pattern of the Segmentation's first frame."""
    groups = copy.deepcopy(segmentation.PerFrameFunctionalGroupsSequence[0])
    content = groups.FrameContentSequence[0]
    content.DimensionIndexValues = [segment, rank]
    if "InStackPositionNumber" in content:
        content.InStackPositionNumber = rank
    groups.SegmentIdentificationSequence = [Dataset()]
    groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber = segment
    source = groups.DerivationImageSequence[0].SourceImageSequence[0]
    source.update(image_reference(ref))
    if "PlanePositionSequence" in groups:
        place = plane(results.source(ref), ref.frame)
        groups.PlanePositionSequence[0].ImagePositionPatient = list(place.position or ())
    return groups


def _content(segmentation: Dataset, frame: int) -> Dataset:
    return read.functional_group(segmentation, frame, "FrameContentSequence")


def _items(dataset: Dataset) -> Iterator[Dataset]:
    """Every item of every sequence, however deep."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _items(item)
