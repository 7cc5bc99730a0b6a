"""Figures of lymph-node as it is served: by hand, and that the operating point is what it says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.training.lymph_node.served import Outcome, dice, figures


def test_figures_by_hand() -> None:
    outcomes = [
        Outcome("a", ((10.0, 11.0), (8.0, None)), (0.9,), 2),
        Outcome("b", ((12.0, 9.0),), (0.7,), 0),
    ]
    found = figures(outcomes)
    assert found["nodes found"].value == pytest.approx(2 / 3)
    assert found["false marks per scan"].value == 1.0
    assert found["Dice of those found"].value == pytest.approx(0.8)
    assert found["short axis less the true one, mm, mean"].value == pytest.approx(-1.0)
    assert found["short axis within 2 mm"].value == 0.5


@pytest.mark.parametrize(
    ("offset", "expected"), [((2, 3, 4), 1.0), ((2, 3, 6), 0.5), ((2, 3, 8), 0.0), ((9, 9, 9), 0.0)]
)
def test_overlap_of_two_boxes(offset: tuple[int, int, int], expected: float) -> None:
    def thing(at: tuple[int, int, int]) -> Any:
        return SimpleNamespace(mask=np.ones((3, 4, 4), bool), offset_zyx=at)

    assert dice(thing((2, 3, 4)), thing(offset)) == pytest.approx(expected)
