"""The border at half height is that of the thing; what readers add to it is told in millimetres."""

import gzip
import io
import zipfile

import nibabel
import numpy as np
import pytest

from models.measure import calipers
from models.training.lung_nodule.data.slices import stored_split
from models.training.lung_nodule.figures import borders


def disc(diameter_mm: float, spacing_mm: float, side: int = 61) -> np.ndarray:
    rows, columns = np.indices((side, side)) - side // 2
    return np.hypot(rows, columns) * spacing_mm <= diameter_mm / 2


@pytest.mark.parametrize("wider_mm", [0.0, 1.0, 2.0])
def test_what_readers_drew_beyond_the_border_is_found(wider_mm):
    spacing_mm = (0.5, 0.5)
    thing = disc(10, 0.5)
    half, middle_hu = borders.at_half_height(np.where(thing, 30.0, -860.0), disc(10 + wider_mm, 0.5), spacing_mm)
    assert middle_hu == 30
    assert np.array_equal(half, thing)
    assert calipers(disc(10 + wider_mm, 0.5), spacing_mm).long_mm - calipers(half, spacing_mm).long_mm == pytest.approx(
        wider_mm, abs=0.5
    )


def test_the_border_of_blurred_discs_is_where_they_end():
    off_mm = borders.off_on_discs(np.random.default_rng(1))
    assert len(off_mm) == len(borders.DISC_MM) * len(borders.DISC_SPACING_MM) * len(borders.BLUR_MM)
    assert abs(np.mean(off_mm)) < 0.3


def test_a_dense_thing_beside_the_nodule_is_not_it():
    thing = disc(6, 0.7)
    hu = np.where(thing | np.roll(disc(9, 0.7), 12, axis=1), 30.0, -860.0)
    half, _ = borders.at_half_height(hu, thing, (0.7, 0.7))
    assert half[:, : 30 + 7].sum() >= thing.sum()
    assert half.sum() < 2 * thing.sum()


@pytest.mark.parametrize("hu", [-860.0, 30.0], ids=["all lung", "all soft"])
def test_nothing_denser_than_the_lung_is_no_border(hu):
    with pytest.raises(ValueError, match="denser"):
        borders.at_half_height(np.full((61, 61), hu), disc(8, 0.7), (0.7, 0.7))


def test_only_patients_of_the_split_are_looked_at_and_the_readers_surplus_is_told(tmp_path):
    split = stored_split()[0]
    archive = tmp_path / "volumes.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for patient in (split["val"][0], split["val"][1], split["test"][0]):
            hu = np.stack([np.where(disc(10, 0.5), 30.0, -860.0)] * 3)
            for folder, values in (("image", hu), ("nodule_mask", np.stack([disc(12, 0.5)] * 3))):
                image = nibabel.Nifti1Image(values.transpose(2, 1, 0).astype(np.float32), np.diag([0.5, 0.5, 1.0, 1]))
                content = io.BytesIO(image.to_bytes())
                file.writestr(f"{folder}/{patient}_1.nii.gz", gzip.compress(content.getvalue()))
    found = borders.figures(archive, "val")
    told = found["readers' outline less the border at half height"]
    assert told["all"]["nodules"] == told["middle from 0 HU on"]["nodules"] == 2
    assert told["all"]["long axis, mm"]["value"] == pytest.approx(2, abs=0.3)
    assert "middle below -300 HU" not in told
