"""Rules for a Segmentation: its frames, where they lie in mm, and what viewers need of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from dicom_sr import read
from dicom_sr.findings import Finding, ImageRef
from dicom_sr.rules.subject import Subject
from dicom_sr.seg import NOT_CALIBRATED, first_pixel, tracking_uid
from dicom_sr.source import Plane, plane

GEOMETRY_TOLERANCE_MM = 0.001  # what OHIF allows between a segmentation and its image
EVEN_SPACING_TOLERANCE = 0.1  # of a slice distance: positions are often rounded to 0.1 mm


def segments(subject: Subject) -> Iterator[str]:
    numbers = [int(segment.SegmentNumber) for segment in subject.dataset.SegmentSequence]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"segments are numbered {numbers}, not from 1 by 1"


def tracked(subject: Subject) -> Iterator[str]:
    for segment in subject.dataset.SegmentSequence:
        for keyword in ("TrackingID", "TrackingUID"):
            if not segment.get(keyword):
                yield f"segment {segment.get('SegmentNumber')}: {keyword} has no value"


def binary(subject: Subject) -> Iterator[str]:
    dataset = subject.dataset
    if (dataset.get("SegmentationType"), dataset.BitsAllocated) != ("BINARY", 1):
        kind = dataset.get("SegmentationType")
        yield f"it is {kind} of {dataset.BitsAllocated} bits; OHIF and Slicer read BINARY of 1"


def functional_groups(subject: Subject) -> Iterator[str]:
    """Each macro once for every frame: shared, or in the frame's own groups, PS3.3 C.7.6.16.1.1."""
    dataset = subject.dataset
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(own) != len(subject.frames):
        yield f"{len(own)} functional groups for {len(subject.frames)} frames"
        return
    if len(dataset.get("SharedFunctionalGroupsSequence") or []) != 1:
        yield "it has no shared functional groups"
        return
    for macro, inside in MACROS.items():
        if macro == "PlanePositionSequence" and "FrameOfReferenceUID" not in dataset:
            continue
        for number, groups in enumerate(own, 1):
            if macro in groups and macro in subject.shared:
                yield f"{macro} of frame {number} is both shared and its own"
            item = read.functional_group(dataset, number - 1, macro)
            lacking = [keyword for keyword in inside if keyword not in item or item[keyword].is_empty]
            if lacking:
                yield f"frame {number}: {macro} has no {' and no '.join(lacking)}"


# PS3.3 C.7.6.16.2: macro -> its Type 1 attributes. Derivation Image has a rule of its own.
MACROS = {
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "FrameContentSequence": ("DimensionIndexValues",),
    "SegmentIdentificationSequence": ("ReferencedSegmentNumber",),
}


def derivation(subject: Subject) -> Iterator[str]:
    """Weasis and OHIF place a frame by the image it names."""
    for frame in subject.frames:
        derivation = read.functional_group(subject.dataset, frame, "DerivationImageSequence")
        images = list(derivation.get("SourceImageSequence") or ())
        if len(images) != 1 or not images[0].get("ReferencedSOPInstanceUID"):
            yield f"frame {frame + 1} does not say which image it was drawn on"
        elif not images[0].get("PurposeOfReferenceCodeSequence") or not derivation.get("DerivationCodeSequence"):
            yield f"frame {frame + 1} does not say how it was derived"


def described_segment(subject: Subject) -> Iterator[str]:
    numbers = {int(segment.SegmentNumber) for segment in subject.dataset.SegmentSequence}
    used = set()
    for frame in subject.frames:
        number = read.functional_group(subject.dataset, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber
        used.add(number)
        if number not in numbers:
            yield f"frame {frame + 1} is of segment {number}, which is not described"
    for number in sorted(numbers - used):
        yield f"segment {number} has no frame"


def dimensions(subject: Subject) -> Iterator[str]:
    """Dimension Index Values count what the frame says, PS3.3 C.7.6.17: Slicer and OHIF sort by them."""
    seen = set()
    for frame in subject.frames:
        values = read.functional_group(subject.dataset, frame, "FrameContentSequence")["DimensionIndexValues"]
        index = tuple(int(v) for v in (values.value if values.VM > 1 else [values.value]))
        number = read.functional_group(subject.dataset, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber
        if len(index) != len(subject.dataset.DimensionIndexSequence) or index[0] != number or index in seen:
            yield f"frame {frame + 1} has the Dimension Index Values {index}, which are another's or not its segment's"
        seen.add(index)


def pixel_data(subject: Subject) -> Iterator[str]:
    dataset = subject.dataset
    bits = len(subject.frames) * int(dataset.Rows) * int(dataset.Columns)
    length = -(-bits // 8) + (-(-bits // 8)) % 2
    if len(dataset.get("PixelData") or b"") != length:
        size = len(dataset.get("PixelData") or b"")
        yield f"Pixel Data has {size} bytes, {len(subject.frames)} frames need {length}"


def common_instance_reference(subject: Subject) -> Iterator[str]:
    """Referenced Series Sequence names every image that a frame names, in its series, and nothing else."""
    named = {
        (str(series.get("SeriesInstanceUID")), str(item.get("ReferencedSOPInstanceUID")))
        for series in subject.dataset.get("ReferencedSeriesSequence") or ()
        for item in series.get("ReferencedInstanceSequence") or ()
    }
    drawn_on = {read.frame_source(subject.dataset, frame).sop_instance_uid for frame in subject.frames}
    wanted = {(str(subject.known[uid].SeriesInstanceUID), uid) for uid in drawn_on}
    for _, uid in sorted(wanted - named):
        yield f"{uid} is referred to, but is not in the Referenced Series Sequence under its series"
    for _, uid in sorted(named - wanted):
        yield f"{uid} is in the Referenced Series Sequence, but no frame refers to it"


def one_series(subject: Subject) -> Iterator[str]:
    series = subject.dataset.ReferencedSeriesSequence
    if len(series) > 1:
        yield f"it refers to {len(series)} series; OHIF lays it over the first only"


def shared_planes(subject: Subject) -> Iterator[str]:
    if "FrameOfReferenceUID" not in subject.dataset:
        for macro in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if macro not in subject.shared:
                yield f"{macro} is not in the shared functional groups; OHIF shows a black page without"


def even_planes(subject: Subject) -> Iterator[str]:
    """3D Slicer (ITK) lays the frames into a volume with one slice distance."""
    between_mm = subject.between_mm
    if "FrameOfReferenceUID" not in subject.dataset or not between_mm:
        return
    along = np.array([place.along_normal_mm() for place in subject.frame_places]) / between_mm
    steps = along - along[0]
    if np.abs(steps - np.round(steps)).max() > EVEN_SPACING_TOLERANCE:
        yield "its frames are not evenly spaced; 3D Slicer shows them with one slice distance"


def segment_names(subject: Subject) -> Iterator[str]:
    names = [str(segment.get("SegmentLabel")) for segment in subject.dataset.SegmentSequence]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"several segments are called {name}; 3D Slicer tells them by their names"


def on_its_image(subject: Subject) -> Iterator[str]:
    for frame in subject.frames:
        ref = read.frame_source(subject.dataset, frame)
        for what in _misplaced(subject, frame, subject.known[ref.sop_instance_uid], ref):
            yield f"frame {frame + 1} does not lie on its source image: {what}"


def _misplaced(subject: Subject, frame: int, header: Dataset, ref: ImageRef) -> Iterator[str]:
    """How a frame lies elsewhere than its source image, corner by corner, in mm."""
    dataset = subject.dataset
    source = plane(header, ref.frame)
    mask = None if source.is_in_space else read.frame_mask(dataset, frame)
    if mask is not None and mask.any():  # an ultrasound image is calibrated region by region
        source = plane(header, ref.frame, first_pixel(mask, (0, 0)))
    if (dataset.Rows, dataset.Columns) != (source.rows, source.columns):
        yield f"it has {dataset.Rows} x {dataset.Columns} pixels, the image {source.rows} x {source.columns}"
        return
    if str(dataset.get("FrameOfReferenceUID") or "") != (source.frame_of_reference_uid or "") and source.is_in_space:
        yield "another frame of reference"
        return
    mine = subject.frame_places[frame]
    if not source.is_in_space:
        calibrated = source.spacing_mm or (NOT_CALIBRATED if mask is not None and mask.any() else mine.spacing_mm)
        if mine.spacing_mm != calibrated:
            yield f"pixel spacing {mine.spacing_mm}, the image has {source.spacing_mm}"
        return
    off_mm, (row, column) = _off_mm(mine, source)
    if not off_mm <= GEOMETRY_TOLERANCE_MM:
        yield f"pixel (row {row}, column {column}) is {off_mm:.3f} mm away"


def _off_mm(mine: Plane, source: Plane) -> tuple[float, tuple[int, int]]:
    """The first corner that is not where it should be, else the first: how far off, and which."""
    corners = ((0, 0), (0, source.columns - 1), (source.rows - 1, 0))
    apart = np.linalg.norm(_corners(mine) - _corners(source), axis=-1)
    first = int(np.argmax(~(apart <= GEOMETRY_TOLERANCE_MM)))
    return float(apart[first]), corners[first]


def round_trip(subject: Subject) -> Iterator[str]:
    """Read from its bytes, every frame lies, by its own position in mm, where the finding was: voxel by voxel.

    One finding may lie in several Segmentations: they count together. Without a frame of reference a frame is placed by
    the image it names, as viewers do.
    """
    findings, dataset = subject.findings, subject.dataset
    if findings is None:
        return
    series_uid = str(subject.known[findings.images[0].sop_instance_uid].SeriesInstanceUID)
    meant = {tracking_uid(findings, f, series_uid, int(dataset.InstanceNumber)): f for f in findings.findings}
    places = subject.places
    drawn: dict[str, dict[int, _Part]] = {}
    for segmentation in subject.segmentations or [dataset]:
        for tracked, index, mask in _drawn(_read_back(subject, segmentation), places, findings.images):
            drawn.setdefault(tracked, {})[index] = _part(mask)
    for segment in dataset.SegmentSequence:
        name = f"segment {segment.SegmentNumber} ({segment.SegmentLabel})"
        finding = meant.get(segment.TrackingUID)
        masks = drawn.get(segment.TrackingUID, {})
        if finding is None or not _same_mask(masks, finding):
            yield f"{name} reads back as another mask" + _moved(masks, finding, places)


def _read_back(subject: Subject, segmentation: Dataset) -> Dataset:
    return pydicom.dcmread(BytesIO(subject.files.of(segmentation)))


def _drawn(
    segmentation: Dataset, places: Sequence[Plane], images: Sequence[ImageRef]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """(Tracking UID, index of the image where it lies or -1 if nowhere, mask) of every frame with a pixel set."""
    in_space = "FrameOfReferenceUID" in segmentation
    corners = np.array([_corners(place) for place in places])
    uids = {int(segment.SegmentNumber): str(segment.TrackingUID) for segment in segmentation.SegmentSequence}
    for frame in range(int(segmentation.NumberOfFrames)):
        mask = read.frame_mask(segmentation, frame)
        if not mask.any():
            continue
        number = read.functional_group(segmentation, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber
        if in_space:
            apart = np.linalg.norm(corners - _corners(plane(segmentation, frame + 1)), axis=-1).max(axis=-1)
            index = int(apart.argmin()) if apart.min() <= GEOMETRY_TOLERANCE_MM else -1
        else:
            ref = read.frame_source(segmentation, frame)
            index = images.index(ref) if ref in images else -1
        yield uids.get(int(number), ""), index, mask


def _corners(place: Plane) -> np.ndarray:
    """(3 corners, 3) in mm; infinitely far away where a plane has no place in space."""
    if not place.is_in_space:
        return np.full((3, 3), np.inf)
    last_row, last_column = place.rows - 1, place.columns - 1
    return np.array([place.point_lps_mm(*c) for c in ((0, 0), (0, last_column), (last_row, 0))])


class _Part(NamedTuple):
    """What is set of a mask, and where that begins: of hundreds of frames no more is held."""

    row: int
    column: int
    pixels: np.ndarray

    def indices(self) -> np.ndarray:
        """(n, 2): row and column of every pixel that is set."""
        return np.argwhere(self.pixels) + np.array([self.row, self.column])


def _part(mask: np.ndarray, row: int = 0, column: int = 0) -> _Part:
    """Of a mask with a pixel set, whose first pixel is at (row, column)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _Part(row + int(rows[0]), column + int(columns[0]), box.copy())


def _same_mask(drawn: dict[int, _Part], finding: Finding) -> bool:
    z, y, x = finding.offset_zyx
    meant = {z + k: _part(mask, y, x) for k, mask in enumerate(finding.mask) if mask.any()}
    return set(drawn) == set(meant) and all(
        (part.row, part.column) == (meant[k].row, meant[k].column) and np.array_equal(part.pixels, meant[k].pixels)
        for k, part in drawn.items()
    )


def _moved(drawn: dict[int, _Part], finding: Finding | None, places: Sequence[Plane]) -> str:
    """By how much, where both lie in space: voxels, and mm between the centroids."""
    placed = {k: part for k, part in drawn.items() if k >= 0}
    if finding is None or not placed or not places[0].is_in_space:
        return ""
    z, y, x = finding.offset_zyx
    was = [places[z + k].point_lps_mm(y + r, x + c) for k, r, c in np.argwhere(finding.mask)]
    is_now = [places[k].point_lps_mm(r, c) for k, part in placed.items() for r, c in part.indices()]
    off_mm = float(np.linalg.norm(np.mean(was, axis=0) - np.mean(is_now, axis=0)))
    return f": {len(is_now)} voxels instead of {len(was)}, its centroid {off_mm:.2f} mm away"
