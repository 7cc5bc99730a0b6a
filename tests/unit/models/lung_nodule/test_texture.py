"""Nodule type on bodies whose make is known, and on LIDC nodules that readers judged."""

import gzip
import json
import re
import zipfile

import numpy as np
import pytest
from scipy import ndimage

from dicom_sr import codes
from models.lung_nodule.texture import texture
from models.measure import axial
from models.read import Volume
from models.training.lung_nodule.data.slices import SPLIT

TYPES = [codes.NON_SOLID, codes.PART_SOLID, codes.SOLID]
LUNG, GROUND_GLASS, TISSUE = -860, -600, 30


def body(total_mm, core_mm, spacing=(1.25, 0.7, 0.7), noise_hu=40.0, seed=0):
    """A ball of ground glass with a solid ball in its middle, as a scanner blurs it; and its mask."""
    shape = tuple(int(2 * (total_mm / 2 + 6) / s) | 1 for s in spacing)
    place = (np.stack(np.indices(shape), -1) - (np.array(shape) - 1) / 2) * spacing
    radius = np.linalg.norm(place, axis=-1)
    hu = np.where(radius < core_mm / 2, TISSUE, np.where(radius < total_mm / 2, GROUND_GLASS, LUNG)).astype(float)
    hu = ndimage.gaussian_filter(hu, [0.45 / s for s in spacing])
    hu += np.random.default_rng(seed).normal(0, noise_hu, shape)
    affine = np.diag([*spacing, 1.0])
    return radius < total_mm / 2, Volume(np.rint(hu).astype(np.int16), (), spacing, affine, ())


def kind(total_mm, core_mm, **more):
    mask, volume = body(total_mm, core_mm, **more)
    found = texture(mask, (0, 0, 0), volume)
    assert found is not None
    return found.type.meaning.split()[0], axial(found.core, volume.spacing_mm)[1].mean_mm if found.core.any() else 0.0


@pytest.mark.parametrize("spacing", [(0.625, 0.5, 0.5), (1.25, 0.7, 0.7), (2.5, 0.8, 0.8)])
@pytest.mark.parametrize("mm", [6, 10, 20])
def test_solid_balls_and_balls_of_ground_glass(mm, spacing):
    assert kind(mm, mm, spacing=spacing)[0] == "solid"
    assert kind(mm, 0, spacing=spacing) == ("non-solid", 0.0)


@pytest.mark.parametrize("spacing", [(0.625, 0.5, 0.5), (1.25, 0.7, 0.7), (2.5, 0.8, 0.8)])
@pytest.mark.parametrize(("total_mm", "core_mm"), [(12, 6), (16, 8), (20, 8), (30, 6), (30, 20)])
def test_a_solid_core_in_ground_glass_is_measured(total_mm, core_mm, spacing):
    name, found_mm = kind(total_mm, core_mm, spacing=spacing)
    assert name == "part-solid"
    assert found_mm == pytest.approx(core_mm, abs=1.0)


def test_a_large_core_is_never_lost_in_a_larger_nodule():
    """6 % of 30 mm is a core of nearly 12 mm: by the share alone it would go."""
    assert kind(30, 10)[0] == "part-solid"


def test_noise_makes_no_core():
    for seed in range(5):
        assert kind(12, 0, noise_hu=90.0, seed=seed)[0] == "non-solid"


def test_thick_slices_have_no_type():
    mask, volume = body(10, 10, spacing=(3.5, 0.7, 0.7))
    assert texture(mask, (0, 0, 0), volume) is None


def test_a_mask_at_the_edge_of_the_scan_has_a_type():
    mask, volume = body(10, 10)
    half = volume.hu.shape[1] // 2
    cut = Volume(volume.hu[:, half:, half:], (), volume.spacing_mm, volume.affine, ())
    found = texture(mask[:, half:, half:], (0, 0, 0), cut)
    assert found is not None
    assert found.type == codes.SOLID


def test_the_place_of_the_mask_in_the_scan_counts():
    mask, volume = body(12, 6)
    wide = np.pad(volume.hu, ((3, 4), (5, 6), (7, 8)), constant_values=LUNG)
    found = texture(mask, (3, 5, 7), Volume(wide, (), volume.spacing_mm, volume.affine, ()))
    assert found is not None
    assert found.type == codes.PART_SOLID
    np.testing.assert_array_equal(found.core, texture(mask, (0, 0, 0), volume).core)


def readers(archive):
    """LIDC volume -> the readers' texture, 1 (non-solid) to 5 (solid), out of metadata.xlsx, a zip of XML."""
    with archive.open("metadata.xlsx") as raw, zipfile.ZipFile(raw) as book:
        words = re.findall(r"<si>.*?<t[^>]*>([^<]*)</t>.*?</si>", book.read("xl/sharedStrings.xml").decode(), re.DOTALL)
        sheet = book.read("xl/worksheets/sheet1.xml").decode()
    cells = [
        dict(re.findall(r'<c r="([A-Z]+)\d+"[^>]*><v>([^<]*)</v>', row))
        for row in re.findall(r"<row .*?</row>", sheet, re.DOTALL)
    ]
    column = {words[int(value)]: place for place, value in cells[0].items()}
    return {
        f"{words[int(row[column['patient_id']])]}_R_{int(float(row[column['nodule_id']]))}": float(
            row[column["Texture_value"]]
        )
        for row in cells[1:]
        if column["patient_id"] in row
    }


def test_readers_of_lidc_mostly_agree(shared_data):
    """The figures of CARD.md: validation and test patients, the readers' masks."""
    nibabel = pytest.importorskip("nibabel")
    split = json.loads((SPLIT).read_text())
    others = {*split["val"], *split["test"]}
    table = np.zeros((3, 3), int)
    with zipfile.ZipFile(shared_data / "lidc_voi3d.zip") as archive:
        for name, judged in readers(archive).items():
            if name[:14] not in others or f"image/{name}.nii.gz" not in archive.namelist():
                continue
            image, marked = (
                nibabel.Nifti1Image.from_bytes(gzip.decompress(archive.read(f"{kind}/{name}.nii.gz")))
                for kind in ("image", "nodule_mask")
            )
            hu, mask = (np.asarray(part.dataobj).transpose(2, 1, 0) for part in (image, marked))
            spacing = tuple(float(mm) for mm in image.header.get_zooms()[::-1])
            volume = Volume(hu.astype(np.int16), (), spacing, np.diag([*spacing, 1.0]), ())
            if found := texture(mask > 0, (0, 0, 0), volume):
                table[[1, 1, 2, 3, 3][int(judged) - 1] - 1, TYPES.index(found.type)] += 1
    assert table.sum() > 200
    assert table.tolist() == [[10, 4, 2], [1, 2, 4], [2, 20, 174]]  # rows: the readers' type; columns: ours
