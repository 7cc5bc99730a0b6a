"""The marked voxel comes back at the same patient position, in mm, in SEG and in SR, whatever the orientation.

Positions are computed here from the source images by the Standard's equation, and from the results by highdicom,
which did not write the Segmentation.
"""

from __future__ import annotations

from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_sr import encode, read
from dicom_sr.findings import Findings
from tests.factories import ORIENTATIONS, ct_series, header, point_lps_mm
from tests.results import WHEN, ct_findings, nodule

VOXEL = (6, 9, 23)  # index z, y, x: not in the middle of anything, so that no flip or swap goes unseen
SERIES: dict[str, dict[str, Any]] = {
    **{name: {"orientation": name} for name in ORIENTATIONS},
    "descending": {"descending": True},
    "shuffled instance numbers": {"shuffled_instance_numbers": True},
    "descending, oblique, shuffled": {
        "orientation": "oblique",
        "descending": True,
        "shuffled_instance_numbers": True,
    },
    "tilted": {"gantry_tilt_degrees": 12.0},
    "unequal pixels": {"spacing_mm": (3.0, 0.5, 0.9), "orientation": "sagittal"},
}


def marked(images: list[Dataset]) -> tuple[Findings, np.ndarray]:
    """A single voxel, and where it is in the patient."""
    findings = ct_findings(images, nodule(1, VOXEL, np.ones((1, 1, 1), dtype=bool)))
    z, y, x = VOXEL
    return findings, point_lps_mm(images[z], y, x)


def results(findings: Findings, images: list[Dataset]) -> tuple[Dataset, Dataset]:
    """Encoded from headers in another order than the findings', as a folder would give them."""
    order = np.random.default_rng(3).permutation(len(images))
    segmentation, report = encode(findings, [header(images[k]) for k in order], when=WHEN)
    return segmentation, report


@pytest.mark.parametrize("series", SERIES)
def test_seg_marks_the_same_place(series: str) -> None:
    images = ct_series(**SERIES[series])
    findings, place_mm = marked(images)
    segmentation, _ = results(findings, images)

    theirs = hd.seg.Segmentation.from_dataset(segmentation)
    pixels = theirs.pixel_array.reshape(-1, int(theirs.Rows), int(theirs.Columns))
    ((frame, row, column),) = np.argwhere(pixels)
    groups = segmentation.PerFrameFunctionalGroupsSequence[frame]
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    to_patient = hd.spatial.PixelToReferenceTransformer(
        image_position=groups.PlanePositionSequence[0].ImagePositionPatient,
        image_orientation=shared.PlaneOrientationSequence[0].ImageOrientationPatient,
        pixel_spacing=shared.PixelMeasuresSequence[0].PixelSpacing,
    )
    np.testing.assert_allclose(to_patient(np.array([[column, row]]))[0], place_mm, atol=1e-3)
    assert segmentation.FrameOfReferenceUID == images[0].FrameOfReferenceUID


@pytest.mark.parametrize("series", SERIES)
def test_sr_outlines_the_same_place(series: str) -> None:
    images = ct_series(**SERIES[series])
    findings, place_mm = marked(images)
    _, report = results(findings, images)

    by_uid = {image.SOPInstanceUID: image for image in images}
    contour = read.groups(report)[0].lines[0]
    to_patient = hd.spatial.ImageToReferenceTransformer.for_image(by_uid[contour.image.sop_instance_uid])
    middle = contour.points[:-1].mean(axis=0, keepdims=True)  # of the pixel's four corners
    np.testing.assert_allclose(to_patient(middle)[0], place_mm, atol=1e-3)


@pytest.mark.parametrize("series", SERIES)
def test_every_frame_lies_on_the_image_it_names(series: str) -> None:
    images = ct_series(**SERIES[series])
    findings = ct_findings(images, nodule(1, (2, 4, 5), np.ones((7, 3, 2), dtype=bool)))
    segmentation, _ = results(findings, images)

    by_uid = {image.SOPInstanceUID: image for image in images}
    assert segmentation.NumberOfFrames == 7
    for frame in range(7):
        source = by_uid[read.frame_source(segmentation, frame).sop_instance_uid]
        position = read.functional_group(segmentation, frame, "PlanePositionSequence").ImagePositionPatient
        orientation = read.functional_group(segmentation, frame, "PlaneOrientationSequence").ImageOrientationPatient
        assert position == source.ImagePositionPatient
        assert orientation == source.ImageOrientationPatient


@pytest.mark.parametrize("series", SERIES)
def test_highdicom_lays_the_mask_on_the_source_images(series: str) -> None:
    """An independent reader finds the mask by source image, and nothing elsewhere."""
    images = ct_series(**SERIES[series])
    findings = ct_findings(images, nodule(1, (2, 4, 5)), nodule(2, (7, 11, 20)))
    segmentation, _ = results(findings, images)

    theirs = hd.seg.Segmentation.from_dataset(segmentation)
    stack = theirs.get_pixels_by_source_instance(
        [image.SOPInstanceUID for image in images],
        assert_missing_frames_are_empty=True,
    )
    for k, finding in enumerate(findings.findings):
        whole = np.zeros(stack.shape[:3], dtype=bool)
        z, y, x = finding.offset_zyx
        depth, height, width = finding.mask.shape
        whole[z : z + depth, y : y + height, x : x + width] = finding.mask
        np.testing.assert_array_equal(stack[..., k].astype(bool), whole)
