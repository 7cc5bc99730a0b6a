"""The chest phantom: valid DICOM, and its truth agrees with its own headers and pixels."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from pydicom import dcmread

from models.phantoms.chest import KERNELS, chest_ct, chest_volume
from models.phantoms.chest_anatomy import BLOOD_HU, LUNG_HU, Grid, Tube, paint_tubes
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


SPACINGS = [  # slices, (slice spacing, rows, columns) mm, orientation, origin
    (12, (5.0, 2.0, 2.0), "HFS", (0.0, 0.0, 0.0)),
    (20, (2.5, 2.4, 1.9), "FFS", (-212.5, 80.25, -1204.0)),
    (46, (1.0, 1.9, 2.4), "HFS", (-212.5, 80.25, -1204.0)),
    (76, (0.6, 2.0, 2.0), "FFS", (3.125, -77.0, 512.5)),
]


@pytest.mark.parametrize(("slices", "spacing_mm", "orientation", "origin_mm"), SPACINGS)
@pytest.mark.parametrize("kernel", ["soft", "sharp"])
def test_any_grid_shows_the_nodule_at_its_true_position(tmp_path, slices, spacing_mm, orientation, origin_mm, kernel):
    truth = chest_ct(
        tmp_path,
        seed=5,
        slices=slices,
        size=180,
        spacing_mm=spacing_mm,
        orientation=orientation,
        origin_mm=origin_mm,
        kernel=kernel,
        detail=True,
        nodules=1,
    )
    volume = read_ct(truth.files)
    assert volume.spacing_mm == pytest.approx(spacing_mm, abs=1e-6)
    (lesion,) = truth.lesions
    box = tuple(slice(o, o + n) for o, n in zip(lesion.offset_zyx, lesion.mask.shape, strict=True))
    bright = (volume.hu[box] > -400) & lesion.mask
    seen = np.argwhere(bright).mean(axis=0) + lesion.offset_zyx
    assert np.linalg.norm(np.subtract(volume.position_lps_mm(seen), lesion.centre_lps_mm)) < 2
    assert volume.hu[box][lesion.mask].mean() > -350  # lungs have -860; slices of 5 mm blur it


def test_another_origin_moves_positions_only(tmp_path):
    here, there = (
        chest_ct(tmp_path / name, seed=2, **SMALL, origin_mm=origin)
        for name, origin in (("a", (0.0, 0.0, 0.0)), ("b", (10.0, -20.0, 30.0)))
    )
    one, other = read_ct(here.files), read_ct(there.files)
    assert np.array_equal(one.hu, other.hu)
    assert other.affine[:3, 3] - one.affine[:3, 3] == pytest.approx([10, -20, 30])
    for a, b in zip(here.lesions, there.lesions, strict=True):
        assert np.subtract(b.centre_lps_mm, a.centre_lps_mm) == pytest.approx([10, -20, 30])
    assert one.headers[0].SeriesInstanceUID != other.headers[0].SeriesInstanceUID


def test_the_detailed_chest_has_vessels_and_the_noise_of_its_kernel():
    shape = {"shape": (60, 130, 170), "spacing_mm": (2.0, 2.0, 2.0)}
    soft, sharp = (chest_volume(4, kernel=name, **shape)[0] for name in ("soft", "sharp"))
    again, affine = chest_volume(4, kernel="soft", **shape)
    assert np.array_equal(soft, again)
    assert affine[:3, 3] == pytest.approx([-169, -117, -59])
    lung = np.abs(soft - LUNG_HU) < 90
    assert 1.5 < lung.sum() * 8 / 1e6 < 4  # litres, of 12 cm of lung
    outside = np.s_[:, :6, :6]  # air
    for hu, name in ((soft, "soft"), (sharp, "sharp")):
        assert hu[outside].std() == pytest.approx(KERNELS[name].noise_hu, rel=0.6)  # cut off at -1024 below
    other, _ = chest_volume(5, kernel="soft", **shape)
    assert not np.array_equal(soft, other)
    lungs_box = soft[20:40, 45:85, 35:75]  # of the right lung
    assert (lungs_box > BLOOD_HU - 300).mean() > 0.002  # vessels


def test_many_tubes_at_once_are_as_wide_as_they_should_be():
    """An airway, its wall and its lumen, slanting through an anisotropic grid; nothing changes beyond the wall."""
    affine = np.diag([2.0, 0.8, 0.8, 1.0])[[2, 1, 0, 3]]  # (z, y, x) -> LPS
    grid = Grid((20, 50, 50), affine)
    start, end = np.array([12.0, 14.0, 8.0]), np.array([28.0, 26.0, 30.0])
    hu = np.full(grid.shape, LUNG_HU, np.float32)
    paint_tubes(hu, grid, [Tube(start, end, 4.0), Tube(start, start + 1, 0.5)], 0.0, LUNG_HU + 60)
    paint_tubes(hu, grid, [Tube(start, end, 2.8)], -1000.0, 0.0)
    depth = Tube(start, end, 4.0).depth_mm(grid.points(tuple(slice(0, n) for n in grid.shape)))
    assert (hu[depth > 3] < -930).all()
    assert hu[np.abs(depth - 0.7) < 0.2].mean() > -500
    assert (hu[depth < -2.5] == LUNG_HU).all()
