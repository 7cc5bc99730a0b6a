"""What is black all round a picture is cut, whatever its sides; letters do not hold it, and tissue is never cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.breast_us.margins import LEAST_KEPT, without_margins

sides = st.integers(0, 60)


def tissue(seed: int, rows: int = 90, columns: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (rows, columns)).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 99), st.integers(0, 5))
def test_margins_are_cut_exactly(top: int, bottom: int, left: int, right: int, seed: int, black: int) -> None:
    picture = np.pad(tissue(seed), ((top, bottom), (left, right)), constant_values=black)
    rows, columns = without_margins(picture)
    assert (rows.start, rows.stop, columns.start, columns.stop) == (top, top + 90, left, left + 120)


def test_a_letter_in_the_margin_does_not_hold_it() -> None:
    picture = np.pad(tissue(1), ((40, 0), (0, 50)))
    picture[10:20, 30:34] = 255
    picture[60:62, 130:150] = 255
    assert without_margins(picture) == (slice(40, 130), slice(0, 120))


def test_a_dark_picture_stays_whole() -> None:
    for picture in (np.zeros((80, 100), np.uint8), np.pad(tissue(2, 10, 12), 60)):
        assert min(picture.shape) * LEAST_KEPT > 10 or not picture.any()
        assert without_margins(picture) == (slice(0, picture.shape[0]), slice(0, picture.shape[1]))
