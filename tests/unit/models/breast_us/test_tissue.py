"""What is drawn over tissue in colour, and what is only the tint of a display."""

from __future__ import annotations

import numpy as np
import pytest

from models.breast_us.tissue import MOST_COLOUR, tissue
from models.pixels import Frame, grey

SHAPE = (120, 160)
BOX = (0, 0, 159, 119)
SPECKLE = np.clip(np.random.default_rng(0).rayleigh(45, SHAPE), 0, 255).astype(np.uint8)
TINTS = {
    "sepia": lambda v: (v, 0.85 * v, 0.55 * v),
    "blue": lambda v: (0.55 * v, 0.75 * v, v),
    "warm": lambda v: (255 * (v / 255) ** 0.8, v, 255 * (v / 255) ** 1.25),
}


def frame(rgb: np.ndarray) -> Frame:
    rgb = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return Frame(grey(rgb), rgb)


def shown(tint: str | None = None) -> np.ndarray:
    value = SPECKLE.astype(float)
    return np.stack(TINTS[tint](value) if tint else (value, value, value), -1)


def test_grey_stays_as_it_is() -> None:
    for picture in (Frame(SPECKLE, None), frame(shown())):
        repaired, covered = tissue(picture, BOX)
        np.testing.assert_array_equal(repaired, picture.grey)
        assert not covered.any()


@pytest.mark.parametrize("tint", TINTS)
def test_a_tinted_display_is_grey_as_it_is(tint: str) -> None:
    picture = frame(shown(tint))
    assert (np.ptp(picture.rgb, axis=-1) > 40).mean() > 0.1
    repaired, covered = tissue(picture, BOX)
    assert covered.mean() < 0.001
    assert (repaired != picture.grey).mean() < 0.03


@pytest.mark.parametrize("tint", [None, "sepia"])
def test_calipers_are_painted_over(tint: str | None) -> None:
    rgb = shown(tint)
    clean = frame(rgb).grey.astype(float)
    rgb[60, 40:120] = rgb[30:90, 80] = (60, 255, 60)
    repaired, covered = tissue(frame(rgb), BOX)
    lines = np.zeros(SHAPE, bool)
    lines[60, 40:120] = lines[30:90, 80] = True
    assert covered[lines].mean() > 0.95
    assert covered[~lines].mean() < 0.001
    before = np.abs(frame(rgb).grey[lines] - clean[lines]).mean()
    assert np.abs(repaired[lines] - clean[lines]).mean() < before / 2


@pytest.mark.parametrize("tint", [None, "sepia"])
@pytest.mark.parametrize("kind", ["flow", "power", "elastography"])
@pytest.mark.parametrize("wide", [100, 150])  # half of the picture, or nearly all
def test_colour_that_hides_the_tissue_is_told_from_a_tint(kind: str, tint: str | None, wide: int) -> None:
    rgb = shown(tint)
    rng = np.random.default_rng(3)
    box = rgb[10:110, 5 : 5 + wide]
    strength = rng.uniform(0.4, 1, box.shape[:2])[..., None]
    if kind == "flow":  # towards the probe red, away from it blue
        away = np.indices(box.shape[:2])[1][..., None] > 60
        box[...] = np.where(away, (0, 60, 255), (255, 30, 0)) * strength
    elif kind == "power":
        box[...] = np.array((255, 140, 0)) * strength
    else:
        hue = rng.uniform(0, 1, box.shape[:2])[..., None]
        box[...] = 0.5 * box + 0.5 * 255 * np.concatenate([hue, 1 - abs(2 * hue - 1), 1 - hue], axis=-1)
    _, covered = tissue(frame(rgb), BOX)
    assert covered.mean() > MOST_COLOUR


@pytest.mark.parametrize("wide", [4, 20, 60])
def test_what_is_painted_over_is_no_black_hole(wide: int) -> None:
    """A network takes a black patch for a lesion."""
    rgb = shown()
    rgb[30 : 30 + wide, 40 : 40 + wide] = (255, 60, 0)
    repaired, covered = tissue(frame(rgb), BOX)
    assert covered.sum() == wide * wide
    patch = repaired[30 : 30 + wide, 40 : 40 + wide]
    assert patch.mean() == pytest.approx(SPECKLE.mean(), rel=0.15)
    assert patch.min() > 0.5 * SPECKLE.mean()
    np.testing.assert_array_equal(repaired[:20], SPECKLE[:20])


def test_only_the_region_is_looked_at() -> None:
    rgb = shown()
    rgb[:, 80:] = (255, 0, 0)  # another picture on the screen
    picture = frame(rgb)
    repaired, covered = tissue(picture, (0, 0, 79, 119))
    assert not covered.any()
    np.testing.assert_array_equal(repaired, picture.grey)
