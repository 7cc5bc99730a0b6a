"""The chest phantom: valid DICOM, and its truth agrees with its own headers and pixels."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from pydicom import dcmread

from models.phantoms import chest_ct
from models.read import read_ct
from tests.harness import need

SMALL = {"slices": 18, "size": 160, "spacing_mm": (2.5, 2.2, 2.2), "nodules": 2}


@pytest.mark.parametrize("orientation", ["HFS", "FFS", "HFP", "HFDR", "FFDL", "oblique", "sagittal", "coronal"])
def test_truth_lies_where_pixels_and_headers_say(tmp_path, orientation):
    shape = (
        {"slices": 60, "size": 110, "spacing_mm": (3.0, 3.0, 3.0)} if orientation in ("sagittal", "coronal") else SMALL
    )
    truth = chest_ct(tmp_path, seed=5, orientation=orientation, order="shuffled", **{**shape, "nodules": 2})
    volume = read_ct(sorted(tmp_path.iterdir()))
    assert [ref.sop_instance_uid for ref in volume.images] == [str(dcmread(f).SOPInstanceUID) for f in truth.files]
    for lesion in truth.lesions:
        inside = np.argwhere(lesion.mask) + lesion.offset_zyx
        assert volume.position_lps_mm(inside.mean(axis=0).tolist()) == pytest.approx(lesion.centre_lps_mm, abs=1.5)
        core = volume.hu[tuple(np.round(inside.mean(axis=0)).astype(int))]
        assert core > (lesion.hu - 850) / 2  # in the middle of a nodule it is nearer to nodule than to lung
        assert 5 < lesion.short_axis_mm <= lesion.long_axis_mm < 26
        # ImagePositionPatient and the cosines of the very file, worked out by hand (PS3.3 equation C.7.6.2.1-1)
        z, row, column = inside[0]
        header = dcmread(truth.files[z])
        cosines, (row_mm, column_mm) = np.array(header.ImageOrientationPatient, float), header.PixelSpacing
        by_hand = header.ImagePositionPatient + cosines[:3] * column_mm * column + cosines[3:] * row_mm * row
        assert np.linalg.norm(by_hand - np.array(lesion.centre_lps_mm)) < 16


def test_the_same_arguments_make_the_same_files_and_names_do_not_tell_the_order(tmp_path):
    one, two = (chest_ct(tmp_path / name, seed=2, **SMALL) for name in "ab")
    assert [f.read_bytes() for f in one.files] == [f.read_bytes() for f in two.files]
    assert [f.name for f in one.files] != sorted(f.name for f in one.files)
    other = chest_ct(tmp_path / "c", seed=3, **SMALL)
    assert dcmread(other.files[0]).SeriesInstanceUID != dcmread(one.files[0]).SeriesInstanceUID


def test_instance_numbers_may_descend(tmp_path):
    files = chest_ct(tmp_path, seed=2, order="descending", **SMALL).files
    assert [dcmread(f).InstanceNumber for f in files] == list(range(18, 0, -1))


def test_a_scan_without_room_says_so(tmp_path):
    with pytest.raises(ValueError, match="no room for 40 nodules"):
        chest_ct(tmp_path, seed=1, **{**SMALL, "nodules": 40})


def test_dciodvfy_finds_no_error(tmp_path):
    program = need("dciodvfy", beside_python=True)
    for path in chest_ct(tmp_path, seed=1, **SMALL).files[::9]:
        said = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in said.stdout + said.stderr
