"""The same place is found again mirrored, cut, brightened and framed; strangers are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from models.training.breast_us.hospitals import ALIKE, ALIKE_BITS
from models.training.breast_us.look_alikes import correlated, grouped, hashed_alike


def landscape(seed: int) -> np.ndarray:
    """Structure of several sizes under what all pictures share: bright above, dark below. (160, 200) uint8"""
    rng = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(rng.normal(size=(160, 200)), size) * size for size in (2, 4, 8, 16)]
    depth = np.linspace(1, 0, 160)[:, None]
    picture = np.sum(layers, axis=0) / np.std(np.sum(layers, axis=0)) * 35 + 60 + 120 * depth
    return picture.clip(11, 250).astype(np.uint8)


CHANGES = {
    "mirrored": lambda p: p[:, ::-1],
    "without its rim": lambda p: p[14:-14, 18:-18],
    "mirrored and cut": lambda p: p[:, ::-1][8:-20, 10:-26],
    "brighter": lambda p: (p * 0.7 + 70).astype(np.uint8),
    "framed": lambda p: np.pad(p, ((30, 0), (10, 50))),
}


@pytest.fixture(scope="module")
def found() -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Eight strangers, then the first ones changed in each way."""
    pictures = [landscape(seed) for seed in range(8)]
    pictures += [change(pictures[seed]) for seed, change in enumerate(CHANGES.values())]
    return {pair for pair, value in correlated(pictures).items() if value > ALIKE}, hashed_alike(pictures, ALIKE_BITS)


@pytest.mark.parametrize("number", range(len(CHANGES)), ids=CHANGES)
def test_the_same_place_is_known_again(found: tuple[set[tuple[int, int]], ...], number: int) -> None:
    assert (number, 8 + number) in found[0] | found[1]


def test_strangers_are_not_alike(found: tuple[set[tuple[int, int]], ...]) -> None:
    assert (found[0] | found[1]) <= {(number, 8 + number) for number in range(len(CHANGES))}


def test_groups_join_whoever_is_linked() -> None:
    assert grouped(6, [(0, 1), (3, 4), (1, 3)]) == [[0, 1, 3, 4], [2], [5]] or grouped(6, [(0, 1), (3, 4), (1, 3)]) == [
        [2],
        [0, 1, 3, 4],
        [5],
    ]
