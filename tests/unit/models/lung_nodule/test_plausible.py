"""What is no chest CT is refused in words that say what was seen; what is one and lies oddly is told of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from scipy import ndimage

from models.lung_nodule.lungs import find_lungs
from models.lung_nodule.pipeline import LungNodule
from models.lung_nodule.plausible import MIRRORED, UPSIDE_DOWN, doubts, refuse_no_hounsfield, upright
from models.phantoms.chest import chest_ct
from models.pipeline import UnfitInput
from models.read import Volume

MM = (2.5, 2.0, 2.0)
LINES = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip((60, 190, 190), MM, strict=True)]
Z, Y, X = np.meshgrid(*LINES, indexing="ij")
AFFINE = np.array([[0, 0, 2.0, -189], [0, 2.0, 0, -189], [2.5, 0, 0, -73.75], [0, 0, 0, 1]])


def inside(centre: Sequence[float], half_axes: Sequence[float]) -> np.ndarray:
    """bool (z, y, x): an ellipsoid in mm, (x, y, z); without a third half axis a cylinder along the body"""
    places = zip((X, Y, Z), centre, half_axes, strict=False)
    return sum(((at - middle) / half) ** 2 for at, middle, half in places) < 1


def scanned(hu: np.ndarray) -> Volume:
    """With a scanner's blur and noise: every wall is mixed with the air beside it."""
    noisy = ndimage.gaussian_filter(hu, (0.4, 0.6, 0.6)) + np.random.default_rng(1).normal(0, 20, hu.shape)
    return Volume(np.clip(np.rint(noisy), -1024, 3071).astype(np.int16), (), MM, AFFINE, ())


def air() -> np.ndarray:
    return np.full(Z.shape, -1000.0)


def body() -> np.ndarray:
    hu = air()
    hu[inside((0, 0), (160, 110))] = -95
    hu[inside((0, 2), (140, 95))] = 45
    hu[inside((0, 82), (24, 14))] = 300
    return hu


def chest(heart: float = 1, up: float = 1) -> np.ndarray:
    """heart: -1 mirrors it to the right; up: -1 draws it head down"""
    hu = body()
    for side in (-1, 1):
        hu[inside((72 * side, 4, 0), (58, 80, 90))] = -860
    hu[inside((26 * heart, -30, -40 * up), (50, 44, 50))] = 45
    hu[inside((0, 20), (9, 9)) & (up * Z > -5)] = -1000  # windpipe
    return hu


def head() -> np.ndarray:
    hu = air()
    for half, value in ((0, 1000), (8, 35)):
        hu[inside((0, 0, 0), (75 - half, 95 - half, 120 - half))] = value
    for x in (-20, 0, 20):
        hu[inside((x, -60, -30), (12, 14, 20))] = -1000
    hu[inside((0, 10), (8, 10)) & (Z < -30)] = -1000
    return hu


def limb() -> np.ndarray:
    hu = air()
    for radius, value in ((60, -90), (50, 50), (14, 900)):
        hu[inside((0, 0), (radius, radius))] = value
    return hu


def abdomen(content_hu: float, loops: int, radius_mm: float) -> np.ndarray:
    hu, rng = body(), np.random.default_rng(3)
    for _ in range(loops):
        centre = rng.uniform((-100, -60, -60), (100, 20, 60))
        hu[inside(centre, (radius_mm, 0.8 * radius_mm, 1.3 * radius_mm))] = content_hu
    return hu


def water_with_holes(radius_mm: float, holes: int) -> np.ndarray:
    hu = air()
    hu[inside((0, 0), (100, 100))] = 0
    for angle in np.linspace(0, 2 * np.pi, holes, endpoint=False):
        hu[inside((60 * np.cos(angle), 60 * np.sin(angle)), (radius_mm, radius_mm))] = -1000
    return hu


def box() -> np.ndarray:
    hu = air()
    for half, value in ((0, 100.0), (8, -1000.0)):
        hu[(abs(X) < 120 - half) & (abs(Y) < 90 - half) & (abs(Z) < 60 - half)] = value
    return hu


def foam() -> np.ndarray:
    return np.where((abs(X) < 120) & (abs(Y) < 90), -850.0, -1000.0)


NO_LUNGS = {
    "head": head(),
    "limb": limb(),
    "bowel gas in few loops": abdomen(-1000, 20, 30),
    "bowel gas in many": abdomen(-1000, 80, 12),
    "stool": abdomen(-550, 14, 22),
    "water with wide holes": water_with_holes(18, 8),
    "water with narrow holes": water_with_holes(5, 31),
    "box full of air": box(),
}


def told(volume: Volume) -> list[str]:
    """As the pipeline asks: what it is told of, or UnfitInput."""
    refuse_no_hounsfield(volume.hu)
    return doubts(volume, find_lungs(volume))


@pytest.mark.parametrize("name", NO_LUNGS)
def test_what_holds_no_lung_is_refused(name: str) -> None:
    with pytest.raises(UnfitInput, match=r"no lungs found.*is this a chest CT\? Send the series"):
        told(scanned(NO_LUNGS[name]))


def test_gas_that_is_no_lung_is_named_with_its_density() -> None:
    with pytest.raises(UnfitInput, match=r"darker or denser than lung \(\d+ ml of -99\d HU"):
        told(scanned(NO_LUNGS["bowel gas in few loops"]))


def mr() -> np.ndarray:
    chest_hu = chest()
    return np.select([chest_hu < -900, chest_hu < -320, chest_hu < 0], [0.0, 60.0, 800.0], 400.0)


@pytest.mark.parametrize(
    ("hu", "said"),
    [
        pytest.param(chest() + 1024, "no air: .*has -?[0-9]+ HU.*check Rescale Intercept", id="intercept is missing"),
        pytest.param(np.maximum(chest() - 1024, -1024), "no tissue: .*check Rescale", id="intercept counts twice"),
        pytest.param(chest() + 300, "tissue has 3.. HU in the median.*check Rescale", id="300 HU too much"),
        pytest.param(chest() - 300, "tissue has -2.. HU in the median.*check Rescale", id="300 HU too little"),
        pytest.param(mr(), "no air: .*Modality", id="MR as CT"),
        pytest.param(foam(), "no tissue: .*nothing but air", id="foam"),
    ],
)
def test_what_is_not_in_hounsfield_units_is_refused_and_the_header_named(hu: np.ndarray, said: str) -> None:
    with pytest.raises(UnfitInput, match=said):
        told(scanned(hu))


WHOLE = scanned(chest())


def cut(volume: Volume, z: slice = slice(None), x: slice = slice(None)) -> Volume:
    return Volume(np.ascontiguousarray(volume.hu[z, :, x]), (), volume.spacing_mm, volume.affine, ())


@pytest.mark.parametrize(
    "volume",
    [WHOLE, *(cut(WHOLE, z=half) for half in (slice(30, None), slice(30))),
     *(cut(WHOLE, x=half) for half in (slice(95), slice(95, None)))],
    ids=["whole", "upper half", "lower half", "right half", "left half"],
)  # fmt: skip
def test_a_chest_and_any_half_of_it_pass_without_a_word(volume: Volume) -> None:
    assert told(volume) == []


def test_emphysema_and_dense_lungs_are_lungs() -> None:
    for lung_hu in (-950, -600):
        assert told(scanned(np.where(chest() == -860, lung_hu, chest()))) == []


def test_lung_bases_alone_are_told_of() -> None:
    hu = body()
    for side in (-1, 1):
        hu[inside((90 * side, 40, 74), (26, 34, 100))] = -860
    (words,) = told(scanned(hu))
    assert "may be an abdomen" in words


def mirrored(volume: Volume) -> Volume:
    """The same picture under a header that exchanges right and left."""
    return replace(volume, affine=np.diag([-1.0, 1, 1, 1]) @ volume.affine)


def test_a_mirrored_heart_and_a_chest_upside_down_are_told_of() -> None:
    assert told(scanned(chest(heart=-1))) == [MIRRORED]
    assert told(mirrored(WHOLE)) == [MIRRORED]
    assert told(mirrored(scanned(chest(heart=-1)))) == []
    assert told(scanned(chest(up=-1))) == [UPSIDE_DOWN]


def test_upright_goes_by_the_header_whatever_the_axes_are() -> None:
    values = np.arange(24).reshape(2, 3, 4)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(upright(values, affine), values)
    affine[:3, :3] = [[0, -1, 0], [0, 0, 1], [-1, 0, 0]]
    np.testing.assert_array_equal(upright(values, affine), values[::-1, ::-1].transpose(0, 2, 1))


def test_the_pipeline_refuses_and_tells(tmp_path: Path) -> None:
    """A series of files, with its rescale taken away and its rows mirrored."""
    pipeline = LungNodule("cpu", {"threads": 1, "refine": False})
    truth = chest_ct(tmp_path, seed=3, slices=18, size=320, spacing_mm=(2.5, 1.1, 1.1), nodules=1)
    silent = lambda _share, _what: None  # noqa: E731
    assert MIRRORED not in pipeline.run(truth.files, silent).warnings
    images = [dcmread(file) for file in truth.files]
    for file, image in zip(truth.files, images, strict=True):
        image.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
        image.save_as(file)
    assert MIRRORED in pipeline.run(truth.files, silent).warnings
    for file, image in zip(truth.files, images, strict=True):
        image.RescaleIntercept = 1024
        image.save_as(file)
    with pytest.raises(UnfitInput, match="no Hounsfield units"):
        pipeline.run(truth.files, silent)
    with pytest.raises(UnfitInput, match="1 slices are too few"):
        pipeline.run(truth.files[:1], silent)
