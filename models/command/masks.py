"""What a command marks, brought to the grid of the images: NIfTI label maps and DICOM Segmentations.

Nothing is resampled. A mask may have its axes in another order or direction than the images, as NIfTI files of other
tools do; its voxels must be the images' voxels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from nibabel.filebasedimages import ImageFileError
from pydicom import Dataset
from pydicom.pixels import pixel_array
from pydicom.sr.coding import Code

from dicom_sr import attributes
from dicom_sr.attributes import UNREADABLE
from dicom_sr.labelmap import SEGMENT_CLASSES
from dicom_sr.read import Segment, frame_mask, frame_source, functional_group, segments_described
from models.label_map import Marked, marked_labels
from models.labels import Label
from models.pipeline import BadOutput
from models.read import Volume

SAME_PLACE_MM = 0.1  # how far a voxel of a mask may lie from that of the images: files round positions
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's axes to the right and the front, DICOM's to the left and the back
HALF = 0.5  # of the largest value of a FRACTIONAL segment: from there on it counts as marked


# ------------------------------------------------------------------------------------------------------------- NIfTI


def nifti_marks(path: Path, volume: Volume, labels: Mapping[int, Label]) -> list[Marked]:
    """What a NIfTI label map marks. Raises BadOutput."""
    called = path.name
    try:
        image: Any = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise BadOutput(f"{called} cannot be read as NIfTI: {type(error).__name__}") from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3 or not np.issubdtype(values.dtype, np.number):
        raise BadOutput(f"{called} is no label map: {values.ndim} dimensions of {values.dtype}, not 3 of numbers")
    if not int(image.header["qform_code"]) and not int(image.header["sform_code"]):
        raise BadOutput(f"{called} does not say where it lies in the patient (neither qform nor sform)")
    return marked_labels(on_the_grid(values, LPS @ image.affine, volume, called), labels, called)


def on_the_grid(values: np.ndarray, affine: np.ndarray, volume: Volume, called: str) -> np.ndarray:
    """Values (i, j, k) that lie by `affine` (LPS, mm) -> (z, y, x) of the volume, axes swapped and turned as need be.

    Raises BadOutput when their voxels are not those of the volume.
    """
    to_index = np.linalg.inv(volume.affine) @ affine  # (i, j, k) -> (z, y, x)
    turned = np.rint(to_index[:3, :3])
    if not np.array_equal(np.abs(turned).sum(axis=0), [1, 1, 1]) or abs(round(np.linalg.det(turned))) != 1:
        raise BadOutput(f"{called} lies on another grid than the images: turned, or of another spacing")
    order = [int(np.abs(turned[axis]).argmax()) for axis in range(3)]  # of i, j, k for z, y, x
    if (shape := tuple(values.shape[axis] for axis in order)) != volume.values.shape:
        raise BadOutput(
            f"{called} has {_size(shape)} voxels, the images {_size(volume.values.shape)} (slices, rows, columns)"
        )
    apart = _farthest_mm(to_index, turned, values.shape, volume)
    if apart > SAME_PLACE_MM:
        raise BadOutput(
            f"{called} lies {apart:.2f} mm beside the images, at most {SAME_PLACE_MM:g} mm is allowed: it was made on"
            " another grid, and nothing is resampled"
        )
    signs = [turned[axis, source] for axis, source in enumerate(order)]
    return values.transpose(order)[tuple(slice(None, None, -1 if sign < 0 else 1) for sign in signs)]


def _farthest_mm(to_index: np.ndarray, turned: np.ndarray, shape: tuple[int, ...], volume: Volume) -> float:
    """Over all corners, how far a voxel of the mask lies from the voxel of the images that it becomes."""
    last = np.array(shape) - 1.0
    corners = np.array(np.meshgrid(*[(0.0, end) for end in last], indexing="ij")).reshape(3, -1)
    wanted = turned @ corners
    wanted -= wanted.min(axis=1, keepdims=True)  # an axis that is turned round begins at its end
    found = to_index[:3, :3] @ corners + to_index[:3, 3:]
    return float(np.linalg.norm(volume.affine[:3, :3] @ (found - wanted), axis=0).max())


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


# ------------------------------------------------------------------------------------------------ DICOM Segmentation


def read_dicom(path: Path) -> Dataset:
    try:
        return pydicom.dcmread(path)
    except (*UNREADABLE, OSError, pydicom.errors.InvalidDicomError) as error:
        raise BadOutput(f"{path.name} cannot be read as DICOM: {type(error).__name__}") from error


def is_segmentation(dataset: Dataset) -> bool:
    return dataset.get("SOPClassUID") in SEGMENT_CLASSES


def segmentation_marks(
    dataset: Dataset, called: str, volume: Volume, labels: Mapping[int, Label]
) -> tuple[list[Marked], list[str]]:
    """What a Segmentation marks, and remarks. Segments are named by the table, else by their own codes.

    Raises BadOutput, also when it was not drawn on these images.
    """
    try:
        return _marks(dataset, called, volume, labels)
    except (*UNREADABLE, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BadOutput(f"{called} is no Segmentation that can be read: {type(error).__name__}") from error


def _marks(
    dataset: Dataset, called: str, volume: Volume, labels: Mapping[int, Label]
) -> tuple[list[Marked], list[str]]:
    source = attributes.text(volume.headers[0], "FrameOfReferenceUID")
    if attributes.text(dataset, "FrameOfReferenceUID") != source:
        raise BadOutput(f"{called} has another frame of reference than the images: it was not drawn on them")
    shape = int(dataset.Rows), int(dataset.Columns)
    if shape != volume.values.shape[1:]:
        raise BadOutput(
            f"{called} has {_size(shape)} pixels, the images {_size(volume.values.shape[1:])} (rows, columns)"
        )
    described = {segment.number: segment for segment in segments_described(dataset)}
    masks: dict[int, np.ndarray] = {}
    for frame, (place, flips) in enumerate(_placed(dataset, called, volume)):
        for number, mask in _frame_masks(dataset, frame):
            whole = masks.setdefault(number, np.zeros(volume.values.shape, bool))
            whole[place] |= mask[flips]
    if unknown := sorted(masks.keys() - described.keys() - labels.keys()):
        raise BadOutput(f"{called} marks segment {unknown[0]}, which it does not describe")
    marked = [
        Marked.cut(number, labels[number] if number in labels else _label(described[number], called), mask)
        for number, mask in sorted(masks.items())
    ]
    fractional = dataset.get("SegmentationType") == "FRACTIONAL"
    return marked, [f"{called} is fractional: what is at least half counts as marked"] if fractional else []


def _placed(dataset: Dataset, called: str, volume: Volume) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Of each frame: z in the volume, and how its rows and columns are turned to those of the volume."""
    by_ref = {(ref.sop_instance_uid, ref.frame or 1): z for z, ref in enumerate(volume.images)}
    forward = slice(None)
    for frame in range(int(dataset.NumberOfFrames)):
        position = functional_group(dataset, frame, "PlanePositionSequence").get("ImagePositionPatient")
        if position is None:
            ref = frame_source(dataset, frame)
            z = by_ref.get((ref.sop_instance_uid, ref.frame or 1))
            if z is None:
                raise BadOutput(f"frame {frame + 1} of {called} refers to an image that is not of this series")
            yield z, (forward, forward)
            continue
        z, up, left = _place(_frame_affine(dataset, frame, position), volume, f"frame {frame + 1} of {called}")
        yield z, (slice(None, None, -1 if up else 1), slice(None, None, -1 if left else 1))


def _frame_affine(dataset: Dataset, frame: int, position: Any) -> np.ndarray:
    """4x4, (0, row, column, 1) of a frame -> patient position in mm, LPS."""
    cosines = np.array(functional_group(dataset, frame, "PlaneOrientationSequence").ImageOrientationPatient, float)
    between = np.array(functional_group(dataset, frame, "PixelMeasuresSequence").PixelSpacing, float)
    affine = np.eye(4)
    affine[:3, 0] = 0.0
    affine[:3, 1] = cosines[3:] * between[0]
    affine[:3, 2] = cosines[:3] * between[1]
    affine[:3, 3] = np.array(position, float)
    return affine


def _place(affine: np.ndarray, volume: Volume, called: str) -> tuple[int, bool, bool]:
    """z in the volume, and whether rows and columns run against its own.

    Raises BadOutput when the frame does not lie on one of the slices, pixel on pixel.
    """
    _, rows, columns = volume.values.shape
    to_index = np.linalg.inv(volume.affine) @ affine
    corners = np.array([[0, 0, 0, 1], [0, rows - 1, 0, 1], [0, 0, columns - 1, 1]], float).T
    found = (to_index @ corners)[:3]
    z, up, left = round(float(found[0, 0])), bool(to_index[1, 1] < 0), bool(to_index[2, 2] < 0)
    if not 0 <= z < len(volume.images):
        raise BadOutput(f"{called} lies beyond the images")
    row, down = (rows - 1, 1 - rows) if up else (0, rows - 1)
    column, across = (columns - 1, 1 - columns) if left else (0, columns - 1)
    wanted = np.array([[z, z, z], [row, row + down, row], [column, column, column + across]], float)
    apart = float(np.linalg.norm(volume.affine[:3, :3] @ (found - wanted), axis=0).max())
    if apart > SAME_PLACE_MM:
        raise BadOutput(
            f"{called} lies {apart:.2f} mm beside the nearest image, at most {SAME_PLACE_MM:g} mm is allowed: turned,"
            " of another spacing, or drawn on another series; nothing is resampled"
        )
    return z, up, left


def _frame_masks(dataset: Dataset, frame: int) -> Iterator[tuple[int, np.ndarray]]:
    """(segment number, bool (rows, columns)) of what a frame marks."""
    if dataset.get("SegmentationType") == "LABELMAP":
        picture = pixel_array(dataset, index=frame)
        yield from ((int(number), picture == number) for number in np.unique(picture) if number)
        return
    number = int(functional_group(dataset, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
    if dataset.SegmentationType == "FRACTIONAL":
        mask = pixel_array(dataset, index=frame) >= HALF * int(dataset.MaximumFractionalValue)
    elif dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        mask = pixel_array(dataset, index=frame) > 0
    else:
        mask = frame_mask(dataset, frame)
    if mask.any():
        yield number, mask


def _label(segment: Segment, called: str) -> Label:
    """The name and the codes that a segment has of itself."""

    def words(code: Code) -> list[str]:
        return [code.value, code.scheme_designator, code.meaning]

    try:
        return Label(
            name=segment.label.strip()[:48],
            type=words(segment.type),
            category=words(segment.category),
            site=None if segment.site is None else words(segment.site),
        )
    except ValueError as error:
        why = str(error).splitlines()[-2].strip() if "\n" in str(error) else str(error)
        raise BadOutput(
            f"segment {segment.number} of {called} cannot be named by its own codes"
            f" ({why.removeprefix('Value error, ')}); name it in [route.options.labels.{segment.number}]"
        ) from error
