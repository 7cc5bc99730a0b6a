"""One lesion is one finding: following outlines from frame to frame, and the frame that is measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.breast_us.cine import (
    NEAR_MM,
    OUT_OF_SIGHT,
    Sighting,
    distance_mm,
    key_sighting,
    link,
    masks_by_image,
    settle,
)

SHAPE = (80, 120)
MM = (0.5, 0.25)  # per row, per column


def seen(image: int, centre_yx: tuple[float, float], radius: float = 6, certainty: float = 0.8) -> Sighting:
    y, x = np.indices(SHAPE)
    disc = np.hypot(y - centre_yx[0], x - centre_yx[1]) <= radius
    return Sighting.of(image, disc, certainty, np.array([0.1, 0.6, 0.3]), 0.0, False)


def frames(tracks: list[list[Sighting]]) -> list[list[int]]:
    return [[sighting.image for sighting in track] for track in tracks]


def test_a_lesion_that_drifts_is_one() -> None:
    drifting = [seen(k, (40, 20 + 8 * k)) for k in range(10)]  # 2 mm a frame, 18 mm in all
    assert frames(link(drifting, MM)) == [list(range(10))]


def test_rows_and_columns_have_their_own_millimetres() -> None:
    """28 pixels are 7 mm across but 14 mm down, and only one of that is near."""
    assert distance_mm(seen(0, (20, 20)), seen(1, (20, 48)), MM) == pytest.approx(7)
    assert len(link([seen(0, (20, 20)), seen(1, (20, 48))], MM)) == 1
    assert len(link([seen(0, (20, 20)), seen(1, (48, 20))], MM)) == 2


def test_two_lesions_by_turns_are_two() -> None:
    """The network outlines the most evident one of a region, and that may change from frame to frame."""
    left, right = (40, 20), (40, 90)  # 17.5 mm apart
    shown = [seen(k, left if k % 2 else right) for k in range(8)]
    assert frames(link(shown, MM)) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_the_nearer_of_two_goes_on() -> None:
    for x, expected in ((36, [[0, 2], [1]]), (44, [[0], [1, 2]])):  # both are within reach
        assert frames(link([seen(0, (40, 20)), seen(1, (40, 60)), seen(2, (40, x))], MM)) == expected


def test_a_large_lesion_is_followed_by_overlap_when_its_centre_jumps() -> None:
    far = (NEAR_MM + 1) / MM[1]  # 36 pixels
    assert len(link([seen(0, (40, 35), 32), seen(1, (40, 35 + far), 32)], MM)) == 1
    assert len(link([seen(0, (40, 35), 8), seen(1, (40, 35 + far), 8)], MM)) == 2


@pytest.mark.parametrize("missed", range(OUT_OF_SIGHT + 3))
def test_out_of_sight_for_a_while_is_still_the_same(missed: int) -> None:
    tracks = link([seen(0, (40, 20)), seen(1 + missed, (40, 22))], MM)
    assert len(tracks) == (1 if missed <= OUT_OF_SIGHT else 2)


def test_a_single_mark_among_many_frames_is_passing_unless_nothing_else_is_there() -> None:
    lesion = [seen(k, (40, 20)) for k in (3, 4, 5)]
    speck = seen(7, (40, 90), 3)
    lasting, passing = settle(link([*lesion, speck], MM), looked_at=10)
    assert (frames(lasting), frames(passing)) == ([[3, 4, 5]], [[7]])
    specks = [speck, seen(9, (40, 20), 5)]
    lasting, passing = settle(link(specks, MM), looked_at=10)
    assert (frames(lasting), frames(passing)) == ([[9]], [[7]])  # the weightier one
    lasting, passing = settle(link([speck], MM), looked_at=1)
    assert (frames(lasting), passing) == ([[7]], [])
    assert settle([], looked_at=10) == ([], [])


def test_the_key_frame_is_large_and_certain() -> None:
    track = [seen(k, (40, 40), radius) for k, radius in enumerate((5, 7, 9, 8, 6))]
    assert key_sighting(track).image == 2
    track[2] = seen(2, (40, 40), 9, certainty=0.5)
    assert key_sighting(track).image == 3
    assert key_sighting([seen(4, (40, 40)), seen(5, (40, 40))]).image == 4  # of equals the first


def test_one_leaking_outline_is_not_the_key_frame() -> None:
    radii = (5, 6, 7, 20, 8, 7.5, 7)  # frame 3 leaked
    track = [seen(k, (40, 40), radius, certainty=0.7 if radius == 20 else 0.9) for k, radius in enumerate(radii)]
    assert key_sighting(track).image == 4


def test_no_frame_is_counted_twice_and_none_is_lost() -> None:
    rng = np.random.default_rng(1)
    shown = [seen(k, (rng.uniform(10, 70), rng.uniform(10, 110)), 4) for k in range(40)]
    assert sorted(k for track in frames(link(shown, MM)) for k in track) == list(range(40))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(10, 69), st.integers(10, 109), st.integers(1, 9)),
        min_size=1,
        max_size=6,
    )
)
def test_masks_come_back_pixel_by_pixel_on_their_frames(steps: list[tuple[int, int, int, int]]) -> None:
    image, track = 0, []
    for step, y, x, radius in steps:
        image += step
        track.append(seen(image, (y, x), radius))
    masks, (z, y, x) = masks_by_image(track)
    whole = np.zeros((image + 1, *SHAPE), bool)
    _, high, wide = masks.shape
    whole[z : z + len(masks), y : y + high, x : x + wide] = masks
    at = {sighting.image: sighting for sighting in track}
    for k, shown in enumerate(whole):
        assert shown.sum() == (at[k].area if k in at else 0)
        if k in at:
            np.testing.assert_allclose(np.argwhere(shown).mean(axis=0), at[k].centre_yx)
    assert all(masks.any(axis=axes).take(end) for axes in ((1, 2), (0, 2), (0, 1)) for end in (0, -1))  # no room left


@settings(deadline=None, max_examples=40)
@given(*[st.tuples(st.integers(10, 69), st.integers(10, 109), st.integers(1, 9)) for _ in range(2)])
def test_overlap_is_the_share_of_the_smaller(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    y, x = np.indices(SHAPE)
    discs = [np.hypot(y - cy, x - cx) <= radius for cy, cx, radius in (one, other)]
    expected = (discs[0] & discs[1]).sum() / min(disc.sum() for disc in discs)
    a, b = (seen(0, (cy, cx), radius) for cy, cx, radius in (one, other))
    assert a.overlap(b) == b.overlap(a) == pytest.approx(expected)
