"""Key pictures: outline and calipers lie where the finding lies, and the rest of the picture is the source's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from dicom_sr.findings import Axis, Finding, ImageRef
from models.measure import measure_lesion
from models.phantoms import Ellipse, Sweep, breast_cine, ct_dicom
from models.picture import LINE_PX, LONG, OUTLINE, SHORT, caption, drawn, key_pictures, windowed
from models.pipeline import UnfitInput
from tests.factories import ct_series, us_image
from tests.results import ball, ct_findings, mass, nodule, us_findings

SHAPE = (80, 100)


def where(rgb: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (rgb == colour).all(axis=-1)


def found(box: tuple[int, int, int, int]) -> tuple[Finding, np.ndarray]:
    """A measured disc in the box (y, x, height, width), and its mask on the whole picture."""
    y, x, height, width = box
    mask = ball(1, height, width)
    finding = mass(1, (0, y, x), mask)
    sizes = measure_lesion(mask[0], (y, x), 0, (0.2, 0.1))
    whole = np.zeros(SHAPE, bool)
    whole[y : y + height, x : x + width] = mask[0]
    return replace(finding, long_axis=sizes.long_axis, short_axis=sizes.short_axis), whole


boxes = st.tuples(st.integers(2, 40), st.integers(2, 50), st.integers(5, 35), st.integers(5, 45))


@settings(deadline=None, max_examples=40)
@given(boxes, st.booleans())
def test_the_outline_goes_round_the_mask_and_hides_none_of_it(box: tuple[int, int, int, int], colour: bool) -> None:
    finding, whole = found(box)
    finding = replace(finding, long_axis=None, short_axis=None)
    pixels = np.full((*SHAPE, 3), 90, np.uint8) if colour else np.full(SHAPE, 90, np.uint8)
    rgb = drawn(pixels, finding)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (*SHAPE, 3)
    ring = where(rgb, OUTLINE)
    assert not (ring & whole).any()
    assert (rgb[~ring] == 90).all()
    padded = np.pad(whole, 1)
    beside = padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
    np.testing.assert_array_equal(ring, beside & ~whole)
    assert (pixels == 90).all()  # the source is left as it was


@settings(deadline=None, max_examples=40)
@given(boxes)
def test_caliper_lines_run_between_the_ends_of_the_axes(box: tuple[int, int, int, int]) -> None:
    finding, _ = found(box)
    rgb = drawn(np.full(SHAPE, 90, np.uint8), finding)
    for axis, colour in ((finding.long_axis, LONG), (finding.short_axis, SHORT)):
        assert axis is not None
        points = np.argwhere(where(rgb, colour))[:, ::-1] + 0.5  # centres, (column, row) from the outer corner
        start, end = np.array(axis.start_xy), np.array(axis.end_xy)
        along = (end - start) / np.linalg.norm(end - start)
        place = (points - start) @ along
        aside = np.abs((points - start) @ [-along[1], along[0]])
        assert aside.max() <= 5 + 1.5  # the bars at the ends
        if colour == SHORT:  # drawn last: nothing lies over it
            reach = np.linalg.norm(end - start)
            assert place.min() == pytest.approx(0, abs=1.5)
            assert place.max() == pytest.approx(reach, abs=1.5)


def test_an_axis_of_another_image_is_not_drawn() -> None:
    finding, _ = found((20, 20, 20, 30))
    assert finding.long_axis is not None
    elsewhere = replace(finding, long_axis=Axis(3, finding.long_axis.start_xy, finding.long_axis.end_xy))
    rgb = drawn(np.zeros(SHAPE, np.uint8), elsewhere)
    assert not where(rgb, LONG).any()
    assert where(rgb, SHORT).any()


@pytest.mark.parametrize(("top", "low"), [(10, True), (52, False)])
def test_the_caption_keeps_off_the_finding(top: int, low: bool) -> None:
    finding, whole = found((top, 10, 24, 30))
    plain = drawn(np.full(SHAPE, 90, np.uint8), finding)
    rgb = drawn(np.full(SHAPE, 90, np.uint8), finding, caption(finding))
    written = (rgb != plain).any(axis=-1)
    assert written.any()
    assert not (written & whole).any()
    assert written[-2 * LINE_PX :].any() == low
    assert written[: 2 * LINE_PX].any() == (not low)


def test_the_caption_says_what_it_is_and_what_it_is_not_for() -> None:
    finding, _ = found((20, 20, 20, 30))
    assert caption(finding) == ["Mass 1: 3.5 x 2.5 mm", "Research use only, not for diagnostic use"]
    assert caption(replace(finding, measurements=()))[0] == "Mass 1"


def test_a_window_is_linear_between_its_ends() -> None:
    hu = np.array([-3000, -1350, -600, 150, 3000])
    np.testing.assert_array_equal(windowed(hu, -600, 1500), [0, 0, 128, 255, 255])


def test_the_key_frame_of_a_cine_is_the_one_that_is_shown(tmp_path: Path) -> None:
    sweep = Sweep(1, 3, Ellipse(20, 16, (6, 4), 0), drift_mm=4)
    truth = breast_cine(tmp_path, frames=5, shape=SHAPE, spacings_mm=((0.4, 0.4),), sweeps=(sweep,), colour=True)
    clip = us_image(frames=5, shape=SHAPE)
    source = dcmread(truth.files[0])
    clip.SOPInstanceUID = source.SOPInstanceUID
    (lesion,) = truth.lesions
    finding = mass(1, lesion.offset_zyx, lesion.mask)
    assert finding.key_image == 2  # where the phantom's lesion is largest
    (picture,) = key_pictures(us_findings([clip], finding), truth.files)
    assert picture.image == ImageRef(str(clip.SOPClassUID), str(source.SOPInstanceUID), 3)
    plain = drawn(source.pixel_array[2], finding, caption(finding))
    np.testing.assert_array_equal(picture.rgb, plain)


def test_a_ct_slice_is_shown_in_the_lung_window(tmp_path: Path) -> None:
    images = ct_series(tmp_path, shape=(6, 80, 100))
    finding = nodule(1, (2, 20, 30), ball(3, 12, 14))
    findings = ct_findings(images, finding)
    (picture,) = key_pictures(findings, [Path(image.filename) for image in reversed(images)])
    assert picture.image == findings.images[3]
    hu = images[3].pixel_array.astype(int) - 1024
    expected = drawn(windowed(hu, -600, 1500), finding, caption(finding))
    np.testing.assert_array_equal(picture.rgb, expected)
    assert where(picture.rgb, OUTLINE).sum() > 20
    with pytest.raises(UnfitInput, match=r"key image .* is not among the files"):
        key_pictures(findings, [Path(image.filename) for image in images if image is not images[3]])


def test_slices_with_their_own_rescale_are_windowed_in_hu(tmp_path: Path) -> None:
    hu = np.full((32, 40), -600, np.int16)
    affine = np.diag([2.5, 0.7, 0.7, 1.0])[:, [2, 1, 0, 3]]
    image = ct_dicom(hu, affine, 0, "HFS", patient_id="P", series="s")
    image.RescaleIntercept, image.RescaleSlope = -1000, 2
    image.PixelData = ((hu + 1000) // 2).astype("<i2").tobytes()
    image.save_as(tmp_path / "0.dcm", enforce_file_format=True)
    findings = ct_findings([image], nodule(1, (0, 5, 5), ball(1, 6, 6)))
    (picture,) = key_pictures(findings, [tmp_path / "0.dcm"])
    assert (picture.rgb[0, 20] == 128).all()  # the middle of the window
