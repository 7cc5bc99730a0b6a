"""The phantom and the wrapped picture are DICOM that others accept, and their truth is what the pixels show."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from models.phantoms.breast import breast_cine, breast_ultrasound, ultrasound_dicom
from models.read import read_ultrasound
from tests.harness import need


def complaints(path: Path) -> list[str]:
    told = subprocess.run(
        [need("dciodvfy", beside_python=True), str(path)], capture_output=True, text=True, check=False
    ).stderr
    return [line for line in told.splitlines() if line.startswith(("Error", "Warning"))]


def test_dciodvfy_has_nothing_to_say(tmp_path: Path) -> None:
    for path in breast_ultrasound(tmp_path, seed=2, images=2).files:
        assert complaints(path) == []


@pytest.mark.parametrize("colour", [False, True])
def test_dciodvfy_has_nothing_to_say_of_a_cine(tmp_path: Path, colour: bool) -> None:
    spacings_mm = ((0.4, 0.4), (0.3, 0.5))
    (path,) = breast_cine(tmp_path, frames=3, shape=(75, 91), spacings_mm=spacings_mm, colour=colour).files
    assert complaints(path) == []
    clip = read_ultrasound(path)
    assert [region.box for region in clip.regions] == [(0, 0, 90, 74), (103, 0, 193, 74)]
    assert [region.spacing_mm for region in clip.regions] == [pytest.approx(mm) for mm in spacings_mm]
    assert [ref.frame for ref in clip.images] == [1, 2, 3]


def test_the_lesion_of_a_cine_moves_grows_and_vanishes(tmp_path: Path) -> None:
    truth = breast_cine(tmp_path, seed=3, frames=10, shape=(150, 180), spacings_mm=((0.26, 0.26),))
    pixels, (lesion,) = dcmread(truth.files[0]).pixel_array, truth.lesions
    z, y, x = lesion.offset_zyx
    areas = lesion.mask.sum(axis=(1, 2))
    assert 0 < z < z + len(areas) < 10  # not yet there, and gone
    assert 0 < areas.argmax() < len(areas) - 1
    columns = [np.flatnonzero(mask.any(axis=0)).mean() for mask in lesion.mask]
    assert np.all(np.diff(columns) > 0)
    assert areas.max() * 0.26**2 == pytest.approx(np.pi / 4 * lesion.long_axis_mm * lesion.short_axis_mm, rel=0.03)
    for k, mask in enumerate(lesion.mask):  # dark where it is, and only while it is there
        patch = pixels[:, y : y + mask.shape[0], x : x + mask.shape[1]][:, mask]
        assert patch[z + k].mean() < 0.6 * patch[[0, -1]].mean()


def test_same_seed_same_cine(tmp_path: Path) -> None:
    one, again, other = (
        breast_cine(tmp_path / name, seed=seed, frames=3, shape=(80, 90), spacings_mm=((0.5, 0.5),)).files[0]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one.read_bytes() == again.read_bytes()
    assert dcmread(one).PixelData != dcmread(other).PixelData


def test_a_wrapped_picture_is_valid_and_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (101, 103), dtype=np.uint8)  # an odd number of bytes
    path = tmp_path / "wrapped.dcm"
    ultrasound_dicom(pixels, spacing_mm=(0.1, 0.2), patient_id="P7", laterality="R").save_as(
        path, enforce_file_format=True
    )
    assert complaints(path) == []
    clip = read_ultrasound(path)
    (frame,), (region,) = clip.frames(), clip.regions
    assert np.array_equal(frame.grey, pixels)
    assert region.spacing_mm == pytest.approx((0.1, 0.2))
    assert region.box == (0, 0, 102, 100)


def test_an_uncalibrated_picture_has_no_spacing(tmp_path: Path) -> None:
    path = tmp_path / "bare.dcm"
    bare = ultrasound_dicom(np.zeros((80, 80), np.uint8), spacing_mm=None, patient_id="P7")
    bare.save_as(path, enforce_file_format=True)
    assert [region.spacing_mm for region in read_ultrasound(path).regions] == [None]


def test_patients_series_and_numbers_are_told_apart() -> None:
    def make(**of: object) -> tuple[str, str, str]:
        told = {"patient_id": "P1", "series": "1", "number": 1} | of
        one = ultrasound_dicom(np.zeros((80, 80), np.uint8), spacing_mm=None, **told)  # type: ignore[arg-type]
        return one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID

    first = make()
    assert make() == first
    assert [a == b for a, b in zip(first, make(number=2), strict=True)] == [True, True, False]
    assert [a == b for a, b in zip(first, make(series="2"), strict=True)] == [True, False, False]
    assert [a == b for a, b in zip(first, make(patient_id="P2"), strict=True)] == [False, False, False]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_lesion_is_dark_where_the_truth_says(tmp_path: Path, seed: int) -> None:
    truth = breast_ultrasound(tmp_path, seed=seed)
    pixels, (lesion,) = dcmread(truth.files[0]).pixel_array, truth.lesions
    _, y, x = lesion.offset_zyx
    _, high, wide = lesion.mask.shape
    inside = pixels[y : y + high, x : x + wide][lesion.mask[0]]
    beside = pixels[y : y + high, [*range(x - 30, x - 5), *range(x + wide + 5, x + wide + 30)]]
    assert inside.mean() < 0.6 * beside.mean()
    area_mm2 = lesion.mask.sum() * 0.085**2
    assert area_mm2 == pytest.approx(np.pi / 4 * lesion.long_axis_mm * lesion.short_axis_mm, rel=0.01)


def test_speckle_is_correlated_more_across_than_along_the_beam(tmp_path: Path) -> None:
    pixels = dcmread(breast_ultrasound(tmp_path, seed=4, lesions=False).files[0]).pixel_array.astype(float)
    patch = pixels[120:220, 200:400] - pixels[120:220, 200:400].mean()
    along, across = (patch[3:] * patch[:-3]).mean(), (patch[:, 3:] * patch[:, :-3]).mean()
    assert 0 < along < across


def test_same_seed_same_file_other_seed_other_picture(tmp_path: Path) -> None:
    one, again, other = (breast_ultrasound(tmp_path / n, seed=s).files[0] for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert one.read_bytes() == again.read_bytes()
    assert dcmread(one).PixelData != dcmread(other).PixelData
