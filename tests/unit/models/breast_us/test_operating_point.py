"""The operating point is told of exactly the lesions that reach it with another class as the most probable one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.breast_us.birads import apply_temperature
from models.breast_us.operating_point import point_of, suspicion, words
from models.breast_us.pipeline import WEIGHTS
from models.weights import WeightsError, packed
from tests.unit.test_figures import RESULTS

shares = st.lists(st.floats(0.001, 1), min_size=3, max_size=3).map(lambda three: np.array(three) / sum(three))
points = st.floats(0.01, 0.99)


@given(shares, points)
def test_it_is_said_of_what_reaches_it_and_of_nothing_else(classes: np.ndarray, point: float) -> None:
    said = words("Lesion 2", classes, point)
    below = classes[2] < point * (classes[1] + classes[2])
    assert bool(said) == (classes[2] < classes.max() and not below) or np.isclose(suspicion(classes), point)
    for text in said:
        assert text.startswith("Lesion 2: ")
        assert ("normal" if classes[0] >= classes[1] else "benign") in text.split("more probable")[0]
        assert f"{suspicion(classes):.0%}" in text


@given(shares, points, st.floats(0.3, 3))
def test_a_temperature_changes_nothing_of_it(classes: np.ndarray, point: float, temperature: float) -> None:
    at_one, at_other = (point_of([{"operating_point": point}], t) for t in (None, temperature))
    tempered = apply_temperature(classes, temperature)
    assert at_one == point
    if not np.isclose(suspicion(classes), point, atol=1e-6) and not np.isclose(*np.sort(classes)[1:]):
        assert bool(words("x", classes, at_one)) == bool(words("x", tempered, at_other))


@pytest.mark.parametrize("stated", [0, 1, -0.1, 1.5, "0.2", True, [0.2]])
def test_what_is_no_share_is_refused(stated: object) -> None:
    with pytest.raises(WeightsError, match="operating_point"):
        point_of([{"operating_point": stated}], None)


@pytest.mark.parametrize("sidecars", [[], [{}], [{"operating_point": None}], [{"operating_point": 0.2}] * 2])
def test_without_one_point_for_these_weights_nothing_is_said(sidecars: list) -> None:
    assert point_of(sidecars, None) is None
    assert words("x", np.array([0.1, 0.5, 0.4]), None) == []


def test_the_shipped_point_is_the_one_that_val_chose() -> None:
    """Not above it: then fewer cancers of val would reach it."""
    (name,) = WEIGHTS
    stated = json.loads(packed("breast_us", name).with_suffix(".json").read_text())["operating_point"]
    chosen = json.loads((RESULTS / "breast_us_hospitals.json").read_text())["operating point"]
    assert chosen - 0.001 < stated <= chosen
