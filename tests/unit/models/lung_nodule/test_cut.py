"""Which candidates are looked at when there are more than a report may hold."""

from __future__ import annotations

import numpy as np
import pytest

from models.lung_nodule.detections import Candidate
from models.lung_nodule.pipeline import cut


def candidates(sides: list[int]) -> list[Candidate]:
    """The most certain first, as cubes of these sides."""
    return [Candidate(np.ones((side,) * 3, bool), (0, 0, place), 1 - place / 100) for place, side in enumerate(sides)]


@pytest.mark.parametrize("large", [30, 35, 39])
def test_the_largest_is_kept_though_it_is_the_least_certain(large: int) -> None:
    every = candidates([3] * 40)
    every[large] = candidates([3] * large + [20])[large]
    kept = cut(every, [True] * 40, 30)
    assert len(kept) == 30
    assert every[large] in kept
    assert kept[:27] == every[:27]


def test_nothing_is_cut_where_there_is_room_and_what_is_unfit_takes_no_place_for_its_size() -> None:
    every = candidates([3] * 40)
    assert cut(every[:30], [True] * 30, 30) == every[:30]
    every[39] = candidates([3] * 39 + [50])[39]
    assert every[39] not in cut(every, [True] * 39 + [False], 30)
    assert len(cut(every, [True] * 20 + [False] * 20, 30)) == 30
    assert len(cut(every, [True] * 40, 1)) == 1
