"""Temperature: less surprise, the same class, and no claim where it made things worse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.breast_us.calibrate import RANGE, Calibration, at, fit, nll, write


def drawn(seed: int, sharpened: float, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from probabilities, and those probabilities made `sharpened` times too sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.2, (count, 3))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random(count)[:, None] > true.cumsum(1)).sum(1).clip(max=2)
    raised = true**sharpened
    return raised / raised.sum(1, keepdims=True), labels


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), sharpened=st.floats(0.3, 6.0), count=st.integers(1, 80))
def test_temperature_never_raises_the_nll_and_keeps_every_class(seed: int, sharpened: float, count: int) -> None:
    shares, labels = drawn(seed, sharpened, count)
    found = fit(shares, labels)
    after = at(shares, found.temperature)
    assert RANGE[0] <= found.temperature <= RANGE[1]
    assert nll(after, labels) <= nll(shares, labels) + 1e-6
    assert (after.argmax(1) == shares.argmax(1)).all()
    np.testing.assert_allclose(after.sum(1), 1)


def test_the_temperature_is_found_again() -> None:
    found = fit(*drawn(1, 2.5, 4000))
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert found.nll[1] < found.nll[0]
    assert found.ece[1] < 0.03 < found.ece[0]
    assert found.helps
    assert fit(*drawn(2, 1.0, 4000)).temperature == pytest.approx(1, rel=0.1)
    with pytest.raises(ValueError, match="no images"):
        fit(np.zeros((0, 3)), np.zeros(0, int))


@pytest.mark.parametrize(("ece", "calibrated"), [((0.1, 0.05), True), ((0.1, 0.1), True), ((0.05, 0.06), False)])
def test_the_json_claims_calibration_only_where_the_error_did_not_grow(
    tmp_path: Path, ece: tuple[float, float], calibrated: bool
) -> None:
    weights = tmp_path / "net.safetensors"
    weights.with_suffix(".json").write_text(json.dumps({"sha256": "x", "config": {"width": 4}}))
    write([weights], Calibration(1.7, 63, (0.6, 0.5), ece), "BUSI val")
    about = json.loads(weights.with_suffix(".json").read_text())
    assert about["calibrated"] is calibrated
    assert (about["temperature"], about["calibrated_on"]) == (1.7, "BUSI val")
    assert about["calibration"] == {"images": 63, "nll": [0.6, 0.5], "ece": list(ece)}
    assert (about["sha256"], about["config"]) == ("x", {"width": 4})  # the rest stays
