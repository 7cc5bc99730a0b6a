"""A BI-RADS category is suggested by calibrated weights only."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.breast_us.birads import SUGGESTED, apply_temperature, suggestion, temperature_of
from models.breast_us.pipeline import WEIGHTS
from models.weights import WeightsError, packed

# ACR BI-RADS Atlas 5th ed.: 3 up to 2 %, 4A above 2 to 10, 4B above 10 to 50, 4C above 50 to below 95, 5 from 95 %
BOUNDS = [
    *[(p, "3") for p in (0.0, 0.01, 0.02)],
    *[(p, "4A") for p in (0.0201, 0.05, 0.10)],
    *[(p, "4B") for p in (0.1001, 0.3, 0.50)],
    *[(p, "4C") for p in (0.5001, 0.8, 0.9499)],
    *[(p, "5") for p in (0.95, 0.99, 1.0)],
]


@pytest.mark.parametrize(("malignant", "category"), BOUNDS)
def test_categories_at_every_boundary(malignant: float, category: str) -> None:
    said = suggestion(malignant)
    assert said.value.meaning.startswith(f"{category} - ")
    assert said.name == SUGGESTED
    assert "Suggested" in said.name.meaning
    assert "to be confirmed" in said.name.meaning
    assert len(said.name.value) <= 16  # SH
    assert max(len(said.name.meaning), len(said.value.meaning)) <= 64  # LO


def test_only_calibrated_weights_have_a_temperature() -> None:
    calibrated = {"calibrated": True, "temperature": 1.7}
    assert temperature_of([calibrated]) == 1.7
    assert temperature_of([calibrated, dict(calibrated)]) == 1.7
    for others in ({}, {"temperature": 1.7}, {"calibrated": False, "temperature": 1.7}, {"calibrated": "yes"}):
        assert temperature_of([others]) is None
        assert temperature_of([calibrated, others]) is None
    assert temperature_of([]) is None


@pytest.mark.parametrize("temperature", [None, 0, -1, "1.5", True])
def test_calibrated_without_a_temperature_is_refused(temperature: object) -> None:
    with pytest.raises(WeightsError, match="state one number above zero"):
        temperature_of([{"calibrated": True, "temperature": temperature}])


def test_networks_with_different_temperatures_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"'1\.2', '1\.3'"):
        temperature_of([{"calibrated": True, "temperature": t} for t in (1.2, 1.3)])


def test_temperature_is_that_of_the_logits() -> None:
    logits = np.array([0.3, 2.0, -1.0])

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum()

    np.testing.assert_allclose(apply_temperature(softmax(logits), 2.5), softmax(logits / 2.5))
    np.testing.assert_allclose(apply_temperature(softmax(logits), 1.0), softmax(logits))
    np.testing.assert_allclose(apply_temperature(np.array([1.0, 0.0, 0.0]), 2.0), [1, 0, 0])


def test_what_the_shipped_weights_say_of_themselves() -> None:
    sidecars = [json.loads(packed("breast_us", name).with_suffix(".json").read_text()) for name in WEIGHTS]
    assert (temperature_of(sidecars) is None) == (not all(about.get("calibrated") for about in sidecars))
