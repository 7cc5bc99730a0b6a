"""Findings -> Segmentation IOD, PS3.3 A.51: BINARY, one segment per finding.

Written with pydicom alone, because one way must serve CT, single ultrasound images and clips: images without a
frame of reference have no plane positions, and each frame is placed by the source image it names.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

import numpy as np
from highdicom.color import CIELabColor
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage
from pydicom.valuerep import format_number_as_ds

from dicom_sr import attributes, codes
from dicom_sr.copies import ratio_and_method
from dicom_sr.findings import Algorithm, Finding, Findings, ImageRef
from dicom_sr.header import RESEARCH_ONLY, code_item, image_reference, references, result_header
from dicom_sr.regions import tissue_regions
from dicom_sr.source import EncodingError, Plane, between_mm, plane, source_headers
from dicom_sr.uids import child_uid, result_uid

# Dimension index pointers: (Dimension Index Pointer, Functional Group Pointer, label)
SEGMENT_NUMBER = (0x0062000B, 0x0062000A, "Segment Number")
POSITION_IN_SPACE = (0x00200032, 0x00209113, "Image Position Patient")
POSITION_IN_STACK = (0x00209057, 0x00209111, "In-Stack Position Number")

# Slice Thickness is Type 1C where frames lie in space. A source that says none (it may: Type 2) still says by positions
# how far its slices lie apart, and each frame stands for as much. A picture without a place has no thickness, but
# highdicom reads no Pixel Measures without the attribute.
NO_THICKNESS = "1"
NOT_CALIBRATED = ("1", "1")  # Pixel Spacing where the source has none; the report warns that sizes are in pixels


@dataclass(frozen=True)
class _Image:
    """One source image that may carry segments; of an ultrasound image, what is calibrated alike on it."""

    index: int  # into Findings.images
    ref: ImageRef
    series_uid: str
    plane: Plane
    findings: frozenset[int] | None = None  # numbers of those that lie where this calibration holds; None: all


@dataclass(frozen=True)
class _Frame:
    segment: int  # from 1, in the Segmentation
    finding: Finding
    image: _Image
    rank: int  # from 1, of the image among those of the Segmentation


def segmentations(
    findings: Findings,
    sources: Sequence[Dataset],
    *,
    when: datetime,
    revision: int = 1,
    omit_empty_frames: bool = True,
) -> list[Dataset]:
    """The masks as Segmentations: one for a CT series; none if nothing was found, or nothing that has a mask.

    Images that cannot share one (other size, calibration or frame of reference: ultrasound images of one series)
    have one each, in a series of its own; so have the regions of one ultrasound image that are calibrated differently.
    `sources` are headers in any order; pixels are not looked at.

    omit_empty_frames   False writes a frame for every image of the grid, as some viewers want it

    Raises EncodingError if a source is missing, or a mask is empty or leaves its image.
    """
    headers = source_headers(findings, sources)
    images = [
        _Image(index, ref, attributes.text(header, "SeriesInstanceUID"), plane(header, ref.frame))
        for index, (ref, header) in enumerate(zip(findings.images, headers, strict=True))
    ]
    for finding in findings.findings:
        _check(finding, images)
    drawn = [finding for finding in findings.findings if finding.extent == "mask"]
    between = between_mm([image.plane for image in images]) if findings.geometry == "volume" else None
    images = [part for image in images for part in _calibrations(image, headers[image.index], drawn)]

    objects: list[Dataset] = []
    for together in _grids(images):
        marked = [finding for finding in drawn if any(_touches(finding, image) for image in together)]
        if not marked:
            continue
        frames = _frames(marked, together, omit_empty_frames)
        segmentation = result_header(
            findings,
            headers[0],
            sop_class_uid=SegmentationStorage,
            modality="SEG",
            when=when,
            revision=revision,
            number=len(objects),
        )
        _describe_image(segmentation, headers[frames[0].image.index], frames)
        segmentation.SegmentSequence = [
            _segment(number, finding, findings, headers[0], revision) for number, finding in enumerate(marked, 1)
        ]
        _functional_groups(segmentation, frames, between)
        segmentation.ReferencedSeriesSequence = references(
            {f.image.ref.sop_instance_uid: (f.image.ref.sop_class_uid, f.image.series_uid) for f in frames}
        )
        segmentation.PixelData = _packed(frames)
        segmentation["PixelData"].VR = "OB"
        objects.append(segmentation)
    return objects


def tracking_uid(findings: Findings, finding: Finding, source_series_uid: str, revision: int) -> str:
    """What ties a finding's segment to its measurements."""
    return result_uid(
        source_series_uid, findings.said_by, findings.algorithm.version, revision, "finding", finding.number
    )


def plane_mask(finding: Finding, image: int, rows: int, columns: int) -> np.ndarray:
    """The finding on images[image]: bool (rows, columns)."""
    z, y, x = finding.offset_zyx
    depth, height, width = finding.mask.shape
    whole = np.zeros((rows, columns), dtype=bool)
    if z <= image < z + depth:
        whole[y : y + height, x : x + width] = finding.mask[image - z]
    return whole


# ------------------------------------------------------------------------------------------------- which frames


def _check(finding: Finding, images: Sequence[_Image]) -> None:
    name = f"finding {finding.number} ({finding.label})"
    if not 0 <= finding.key_image < len(images):
        raise EncodingError(f"{name} has the key image {finding.key_image}; there are {len(images)}")
    if finding.extent == "none":
        return
    if finding.mask.ndim != 3 or not finding.mask.any():
        raise EncodingError(f"{name} has an empty mask")
    first, last = finding.offset_zyx[0], finding.offset_zyx[0] + finding.mask.shape[0]
    if first < 0 or last > len(images):
        raise EncodingError(f"{name} reaches over images {first}..{last - 1}; there are {len(images)}")
    for image in images[first:last]:
        for axis, size, what in ((1, image.plane.rows, "row"), (2, image.plane.columns, "column")):
            begin = finding.offset_zyx[axis]
            end = begin + finding.mask.shape[axis]
            if begin < 0 or end > size:
                raise EncodingError(f"{name} reaches over {what} {begin}..{end - 1}; image {image.index} has {size}")


def _calibrations(image: _Image, header: Dataset, findings: Sequence[Finding]) -> list[_Image]:
    """An image whose regions of tissue are calibrated differently counts once for each calibration in use."""
    if len({region.spacing_mm for region in tissue_regions(header)}) < 2:
        return [image]
    parts: dict[Plane, set[int]] = {}
    for finding in findings:
        if _touches(finding, image):
            at = first_pixel(finding.mask[image.index - finding.offset_zyx[0]], finding.offset_zyx[1:])
            parts.setdefault(plane(header, image.ref.frame, at), set()).add(finding.number)
    return [replace(image, plane=place, findings=frozenset(those)) for place, those in parts.items()] or [image]


def first_pixel(mask: np.ndarray, offset_yx: tuple[int, ...]) -> tuple[int, int]:
    """(x, y) of the first pixel of a 2-D mask: a lesion lies in one region, so one pixel tells which."""
    y, x = np.argwhere(mask)[0].tolist()
    return x + offset_yx[1], y + offset_yx[0]


def _grids(images: Sequence[_Image]) -> Iterable[list[_Image]]:
    """Images that one Segmentation can hold: of one size, and one space or one calibration."""
    grids: dict[object, list[_Image]] = {}
    for image in images:
        place = image.plane
        space = place.frame_of_reference_uid if place.is_in_space else (None, place.spacing_mm)
        grids.setdefault((place.rows, place.columns, space), []).append(image)
    return grids.values()


def _touches(finding: Finding, image: _Image) -> bool:
    if image.findings is not None and finding.number not in image.findings:
        return False
    slice_ = image.index - finding.offset_zyx[0]
    return 0 <= slice_ < finding.mask.shape[0] and bool(finding.mask[slice_].any())


def _frames(marked: Sequence[Finding], images: Sequence[_Image], omit_empty_frames: bool) -> list[_Frame]:
    """By segment, then by position along the normal (in space), or by the order of the images (without)."""
    used = [image for image in images if not omit_empty_frames or any(_touches(f, image) for f in marked)]
    if used[0].plane.is_in_space:
        used.sort(key=lambda image: image.plane.along_normal_mm())
    return [
        _Frame(segment, finding, image, rank)
        for segment, finding in enumerate(marked, 1)
        for rank, image in enumerate(used, 1)
        if not omit_empty_frames or _touches(finding, image)
    ]


# ---------------------------------------------------------------------------------------------- how they are written


def _describe_image(segmentation: Dataset, source: Dataset, frames: Sequence[_Frame]) -> None:
    """Frame of Reference, General Image, Segmentation Image and Multi-frame modules."""
    place = frames[0].image.plane
    if place.is_in_space:
        segmentation.FrameOfReferenceUID = place.frame_of_reference_uid
        segmentation.PositionReferenceIndicator = _indicator(source)
    else:
        segmentation.PatientOrientation = None  # Type 2C where frames have no plane position
    segmentation.ImageType = ["DERIVED", "PRIMARY"]
    segmentation.ContentLabel = "SEGMENTATION"
    segmentation.ContentDescription = RESEARCH_ONLY
    segmentation.ContentCreatorName = None
    segmentation.SegmentationType = "BINARY"  # not LABELMAP: findings may overlap, and older viewers know no other
    segmentation.SegmentsOverlap = "YES" if _overlap(frames) else "NO"
    segmentation.SamplesPerPixel = 1
    segmentation.PhotometricInterpretation = "MONOCHROME2"
    segmentation.PixelRepresentation = 0
    segmentation.BitsAllocated = segmentation.BitsStored = 1
    segmentation.HighBit = 0
    segmentation.Rows, segmentation.Columns = place.rows, place.columns
    segmentation.NumberOfFrames = len(frames)
    # a mask of a lossy image shares its loss, PS3.3 C.7.6.1.1.5
    segmentation.LossyImageCompression = "01" if attributes.text(source, "LossyImageCompression") == "01" else "00"
    if segmentation.LossyImageCompression == "01":
        for element in ratio_and_method(source)[0]:
            segmentation.add(element)


def _indicator(source: Dataset) -> str | None:
    """Position Reference Indicator, Type 2: empty where the source has none that can be written."""
    text = attributes.text(source, "PositionReferenceIndicator")
    return text if text.isascii() and text.isprintable() and 0 < len(text) <= 64 else None


def _overlap(frames: Sequence[_Frame]) -> bool:
    of_image: dict[int, list[_Frame]] = {}
    for frame in frames:
        of_image.setdefault(frame.image.index, []).append(frame)
    return any(_share_a_pixel(together) for together in of_image.values() if len(together) > 1)


def _share_a_pixel(frames: Sequence[_Frame]) -> bool:
    """Of one image."""
    place = frames[0].image.plane
    taken = np.zeros((place.rows, place.columns), dtype=bool)
    for frame in frames:
        mask = plane_mask(frame.finding, frame.image.index, place.rows, place.columns)
        if (taken & mask).any():
            return True
        taken |= mask
    return False


def _segment(number: int, finding: Finding, findings: Findings, source: Dataset, revision: int) -> Dataset:
    """Segment Description Macro, PS3.3 Table C.8.20-4."""
    segment = Dataset()
    segment.SegmentNumber = number
    segment.SegmentLabel = finding.label[:64]
    segment.SegmentAlgorithmType = "AUTOMATIC"
    segment.SegmentAlgorithmName = findings.algorithm.name[:64]
    segment.SegmentationAlgorithmIdentificationSequence = [_algorithm(findings.algorithm)]
    segment.SegmentedPropertyCategoryCodeSequence = [code_item(finding.category)]
    segment.SegmentedPropertyTypeCodeSequence = [code_item(finding.type)]
    region = code_item(finding.site)
    if finding.laterality is not None:
        region.AnatomicRegionModifierSequence = [code_item(finding.laterality)]
    segment.AnatomicRegionSequence = [region]
    segment.TrackingID = finding.label
    segment.TrackingUID = tracking_uid(findings, finding, attributes.text(source, "SeriesInstanceUID"), revision)
    segment.RecommendedDisplayCIELabValue = _cielab(finding.colour or _colour(number))
    return segment


def _algorithm(algorithm: Algorithm) -> Dataset:
    """Algorithm Identification Macro, PS3.3 Table 10-19."""
    item = Dataset()
    item.AlgorithmFamilyCodeSequence = [code_item(algorithm.family)]
    item.AlgorithmName = algorithm.name
    item.AlgorithmVersion = algorithm.version
    return item


def _cielab(rgb: tuple[int, int, int]) -> list[int]:
    return [int(v) for v in CIELabColor.from_rgb(*rgb).value]


def _colour(number: int) -> tuple[int, int, int]:
    """A colour for each segment: hues a golden angle apart, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb((0.08 + 0.381966 * (number - 1)) % 1, 0.85, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def _functional_groups(segmentation: Dataset, frames: Sequence[_Frame], between_mm: float | None) -> None:
    """Multi-frame Functional Groups and Multi-frame Dimension modules.

    Pixel Measures and Plane Orientation go to the shared groups for ultrasound too: OHIF shows a black page without.
    """
    in_space = frames[0].image.plane.is_in_space
    organization = child_uid(segmentation.SOPInstanceUID, "dimension organization")
    segmentation.DimensionOrganizationSequence = [Dataset()]
    segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    segmentation.DimensionIndexSequence = [
        _dimension(organization, *pointers)
        for pointers in (SEGMENT_NUMBER, POSITION_IN_SPACE if in_space else POSITION_IN_STACK)
    ]

    shared = Dataset()
    planes = [frame.image.plane for frame in frames]
    same_measures = len({(place.spacing_mm, place.thickness_mm) for place in planes}) == 1
    same_orientation = len({place.orientation for place in planes}) == 1
    if same_measures:
        shared.PixelMeasuresSequence = [_measures(planes[0], between_mm)]
    if same_orientation:
        shared.PlaneOrientationSequence = [_orientation(planes[0])]
    segmentation.SharedFunctionalGroupsSequence = [shared]

    per_frame = []
    for frame in frames:
        groups = Dataset()
        content = Dataset()
        content.DimensionIndexValues = [frame.segment, frame.rank]
        if in_space:
            position = Dataset()
            position.ImagePositionPatient = list(frame.image.plane.position or ())
            groups.PlanePositionSequence = [position]
        else:
            content.StackID = "1"
            content.InStackPositionNumber = frame.rank
        groups.FrameContentSequence = [content]
        groups.SegmentIdentificationSequence = [Dataset()]
        groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber = frame.segment
        groups.DerivationImageSequence = [_derivation(frame.image.ref)]
        if not same_measures:
            groups.PixelMeasuresSequence = [_measures(frame.image.plane, between_mm)]
        if not same_orientation:
            groups.PlaneOrientationSequence = [_orientation(frame.image.plane)]
        per_frame.append(groups)
    segmentation.PerFrameFunctionalGroupsSequence = per_frame


def _dimension(organization: str, pointer: int, group: int, label: str) -> Dataset:
    item = Dataset()
    item.DimensionOrganizationUID = organization
    item.DimensionIndexPointer = pointer
    item.FunctionalGroupPointer = group
    item.DimensionDescriptionLabel = label
    return item


def _measures(place: Plane, between_mm: float | None) -> Dataset:
    """Pixel Measures Macro, PS3.3 C.7.6.16.2.1."""
    item = Dataset()
    item.PixelSpacing = list(place.spacing_mm or NOT_CALIBRATED)
    if not place.is_in_space:
        item.SliceThickness = NO_THICKNESS
        return item
    apart = format_number_as_ds(round(between_mm, 6)) if between_mm else None
    if place.thickness_mm or apart:
        item.SliceThickness = place.thickness_mm or apart
    if apart:
        item.SpacingBetweenSlices = apart
    return item


def _orientation(place: Plane) -> Dataset:
    item = Dataset()
    item.ImageOrientationPatient = list(place.orientation or ("1", "0", "0", "0", "1", "0"))
    return item


def _derivation(ref: ImageRef) -> Dataset:
    """Derivation Image Macro, PS3.3 Table C.7.6.16-7: viewers place a frame by the image it names."""
    source = image_reference(ref)
    source.SpatialLocationsPreserved = "YES"
    source.PurposeOfReferenceCodeSequence = [code_item(codes.SOURCE_IMAGE_FOR_PROCESSING)]
    item = Dataset()
    item.DerivationCodeSequence = [code_item(codes.SEGMENTATION_DERIVATION)]
    item.SourceImageSequence = [source]
    return item


def _packed(frames: Sequence[_Frame]) -> bytes:
    """Bits of all frames without gaps, first pixel in the lowest bit (PS3.5 8.1.1 and D.1), padded to even length."""

    def masks() -> Iterator[np.ndarray]:
        for frame in frames:
            place = frame.image.plane
            yield plane_mask(frame.finding, frame.image.index, place.rows, place.columns)

    every = masks()
    chunks = []
    while eight := list(islice(every, 8)):  # eight frames of any size end on a byte
        chunks.append(np.packbits(np.stack(eight).ravel(), bitorder="little").tobytes())
    data = b"".join(chunks)
    return data + b"\0" * (len(data) % 2)
