"""Headers and pixels without sense: what read.py refuses, by name and before memory is taken. No network here."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import RLELossless

from dicom_sr.regions import pixel_spacing_mm
from models.breast_us.pipeline import readable
from models.phantoms.breast import ultrasound_dicom
from models.phantoms.chest import ct_dicom
from models.pipeline import UnfitInput
from models.pixels import AIR_HU
from models.read import read_ct, read_ultrasound
from tests.factories import ct_series

EVERY_EXAMPLE = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---------------------------------------------------------------------------------------------------------- CT


def ct(hu: np.ndarray, spacing_mm=(2.0, 0.7, 0.7)) -> list[Dataset]:
    affine = np.diag([spacing_mm[2], spacing_mm[1], spacing_mm[0], 1.0])[:, [2, 1, 0, 3]]
    return [ct_dicom(one, affine, z, "HFS", patient_id="BAD", series="bad input") for z, one in enumerate(hu)]


def saved(folder: Path, datasets: list[Dataset]) -> list[Path]:
    paths = [folder / f"{z}.dcm" for z in range(len(datasets))]
    for path, dataset in zip(paths, datasets, strict=True):
        dataset.save_as(path, enforce_file_format=True)
    return paths


RAMP = (np.arange(6 * 7).reshape(6, 7) * 40 - 1000).astype(np.int16)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"RescaleSlope": ""}, "RescaleSlope is empty"),
        ({"RescaleSlope": "nan"}, "RescaleSlope is 'nan'"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"RescaleIntercept": "inf"}, "RescaleIntercept is 'inf'"),
        ({"PixelSpacing": ["nan", "0.7"]}, r"PixelSpacing is 'nan\\0.7'; 2 numbers are needed"),
        ({"PixelSpacing": "0.7"}, "PixelSpacing is '0.7'; 2 numbers are needed"),
        ({"PixelSpacing": ""}, "PixelSpacing is empty"),
        ({"ImagePositionPatient": ["0", "nan", "3"]}, "ImagePositionPatient is .*3 numbers are needed"),
        ({"ImageOrientationPatient": ["1", "0", "0", "0", "inf", "0"]}, "ImageOrientationPatient is .*6 numbers"),
        ({"Rows": None}, "Rows is missing"),
        ({"Columns": 0}, "Columns is 0; it must be at least 1"),
        ({"SOPInstanceUID": None}, "SOPInstanceUID"),
        ({"PixelData": None}, "cannot be decoded"),
    ],
)
def test_a_ct_header_without_sense_is_refused_by_name(tmp_path, values, reason):
    datasets = ct(np.stack([RAMP] * 3))
    paths = saved(tmp_path, datasets)
    image = datasets[1]
    for keyword, value in values.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    image.preamble = b"\0" * 128
    image.save_as(paths[1])
    with pytest.raises(UnfitInput, match=reason):
        read_ct(paths)


def test_an_instance_number_that_is_none_only_sorts(tmp_path):
    """pydicom hands out text where a number belongs; the text comes from another writer."""
    image = ultrasound_dicom(np.zeros((80, 90), np.uint8), spacing_mm=None, patient_id="BAD")
    image.InstanceNumber = 717273
    (path,) = saved(tmp_path, [image])
    data = path.read_bytes()
    assert data.count(b"717273") == 1
    path.write_bytes(data.replace(b"717273", b"xxxxxx"))
    clips, unusable = readable([path])
    assert (len(clips), unusable) == (1, [])


@pytest.mark.parametrize("bad", [0, 7, 4])
def test_an_image_that_cannot_be_decoded_is_left_out_where_the_others_are_a_volume(tmp_path, bad):
    """At an end the others are read, and it is said; in the middle a slice would be missing."""
    images = ct_series(tmp_path, shape=(8, 16, 16), transfer_syntax=RLELossless)
    spoilt = tmp_path / f"{bad:04d}.dcm"
    data = spoilt.read_bytes()
    head = data.index(struct.pack("<16L", 2, *struct.unpack("<15L", data[data.index(b"\x02\0\0\0\x40\0\0\0") :][4:64])))
    spoilt.write_bytes(
        data[:head] + struct.pack("<16L", 2, 64, 66, *[0] * 13) + data[head + 64 :]
    )  # segments of 2 bytes
    paths = sorted(tmp_path.glob("*.dcm"))
    if bad == 4:
        with pytest.raises(UnfitInput, match=rf"image {images[bad].SOPInstanceUID}.*without it a slice is missing"):
            read_ct(paths)
        return
    volume = read_ct(paths)
    assert len(volume.hu) == 7
    (remark,) = volume.remarks
    assert str(images[bad].SOPInstanceUID) in remark
    assert volume.position_lps_mm((0, 0, 0))[2] == pytest.approx(-300 + 2.5 * (bad == 0))


def as_float(datasets: list[Dataset], values: np.ndarray) -> list[Dataset]:
    """Float Pixel Data (PS3.3 C.7.6.24) in place of Pixel Data."""
    for dataset, one in zip(datasets, values, strict=True):
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(dataset, keyword)
        dataset.BitsAllocated, dataset.FloatPixelData = 32, one.astype("<f4").tobytes()
    return datasets


def test_float_pixels_are_hounsfield_units_unless_they_are_no_numbers(tmp_path):
    values = np.stack([RAMP] * 3).astype(np.float32)
    values[0, 0, 0] = 1e9
    hu = read_ct(saved(tmp_path, as_float(ct(np.stack([RAMP] * 3)), values))).hu
    assert hu[0, 0, 0] == 32767
    np.testing.assert_array_equal(hu[1:], values[1:])
    for bad in (np.nan, np.inf):
        values[1, 2, 3] = bad
        datasets = as_float(ct(np.stack([RAMP] * 3)), values)
        with pytest.raises(UnfitInput, match=r"image [0-9.]+: .*some pixels are no numbers"):
            read_ct(saved(tmp_path, datasets))
    values[1, 2, 3] = -5000
    datasets = as_float(ct(np.stack([RAMP] * 3)), values)
    for dataset in datasets:
        dataset.FloatPixelPaddingValue = -5000.0
    assert read_ct(saved(tmp_path, datasets)).hu[1, 2, 3] == AIR_HU


@EVERY_EXAMPLE
@given(st.sampled_from([-1.0, -0.5, -2.0, 0.25, 1.0]), st.integers(-1200, 1200), st.booleans())
def test_any_slope_gives_the_same_hounsfield_units(tmp_path, slope, intercept, inverse):
    """A negative slope too; and MONOCHROME1 is about display, never about HU (PS3.3 C.7.6.3.1.2)."""
    truth = np.stack([RAMP * 2] * 3)
    datasets = ct(truth)
    for dataset, hu in zip(datasets, truth, strict=True):
        stored = ((hu - 2 * (intercept // 2)) / slope).astype("<i2")
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelData = (
            slope,
            2 * (intercept // 2),
            stored.tobytes(),
        )
        dataset.PhotometricInterpretation = "MONOCHROME1" if inverse else "MONOCHROME2"
    np.testing.assert_array_equal(read_ct(saved(tmp_path, datasets)).hu, truth)


@EVERY_EXAMPLE
@given(st.integers(10, 16), st.booleans(), st.integers(0, 2**16 - 1))
def test_garbage_above_the_stored_bits_is_not_seen(tmp_path, bits, signed, garbage):
    truth = np.stack([RAMP // 4] * 3)  # -250 to 160
    datasets = ct(truth)
    for dataset, hu in zip(datasets, truth, strict=True):
        intercept = 0 if signed else -250
        stored = (hu.astype(int) - intercept) & ((1 << bits) - 1) | (garbage & ~((1 << bits) - 1))
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, int(signed)
        dataset.RescaleIntercept, dataset.PixelData = intercept, stored.astype("<u2").tobytes()
    np.testing.assert_array_equal(read_ct(saved(tmp_path, datasets)).hu, truth)


def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path):
    datasets = ct(np.stack([RAMP] * 5))
    for dataset in datasets:
        dataset.Rows = dataset.Columns = 65535
    paths = saved(tmp_path, datasets)
    screen = ultrasound_dicom(np.zeros((80, 90), np.uint8), spacing_mm=None, patient_id="BAD")
    screen.Rows = screen.Columns = 65535
    screen.save_as(tmp_path / "us.dcm", enforce_file_format=True)
    tracemalloc.start()
    with pytest.raises(UnfitInput, match=r"Rows x Columns is 65535 x 65535 pixels, at most"):
        read_ct(paths)
    with pytest.raises(UnfitInput, match="Rows x Columns is 65535 x 65535 pixels, at most"):
        read_ultrasound(tmp_path / "us.dcm")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "value", [["nan", "0.1"], ["0.1", "nan"], ["inf", "0.1"], ["0", "0.1"], "0.1", ["-1", "0.1"], ""]
)
def test_a_pixel_spacing_that_is_none_calibrates_nothing(value):
    header = Dataset()
    header.PixelSpacing = value
    assert pixel_spacing_mm(header) is None
