"""Suspicion in the node: of each finding a probability that is called by its name, and where the network looked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom_sr import codes
from dicom_sr.findings import Finding, Measurement
from models import build, catalogue, weights
from models.candidate_server import CandidateServer
from models.lung_nodule.malignancy import CHECKPOINTS, Suspicion, mean_diameter_mm, with_suspicion
from models.lung_nodule.malignancy_patch import NODULE
from models.lung_nodule.options import Options
from models.measure import measure_nodule
from models.options import BadOptions
from models.patches import SOFT_TISSUE
from models.phantoms import chest_ct
from models.read import Volume
from models.runtime import Runtime
from models.weights import WeightsError
from tests.results import nodule

CPU = Runtime.choose("cpu", threads=1)


def chest_with_balls() -> tuple[Volume, list[Finding]]:
    """A large and a small ball in lung, and their findings as the pipeline measures them."""
    hu = np.full((30, 90, 90), -850, np.int16)
    found = []
    volume = Volume(hu, (), (2.0, 0.7, 0.7), np.diag([2.0, 0.7, 0.7, 1.0]), ())
    for number, (centre, radius_mm) in enumerate((((15, 25, 25), 10.0), ((15, 65, 65), 2.5)), start=1):
        away = np.indices(hu.shape) - np.array(centre)[:, None, None, None]
        mask = ((away * np.array([2.0, 0.7, 0.7])[:, None, None, None]) ** 2).sum(axis=0) < radius_mm**2
        hu[mask] = 30
        z, y, x = (slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(mask))
        one = nodule(number, (z.start, y.start, x.start), mask[z, y, x])
        sizes = measure_nodule(one.mask, one.offset_zyx, volume)
        found.append(replace(one, measurements=sizes.measurements, key_image=sizes.key_image))
    return volume, found


def test_a_large_nodule_is_more_suspicious_than_a_small_one() -> None:
    volume, found = chest_with_balls()
    rated = Suspicion(None, CPU)(volume, found)
    large, small = rated.probability
    assert 0 <= small < large <= 1
    again = Suspicion(None, CPU)(volume, found[::-1])
    assert again.probability[::-1] == pytest.approx(rated.probability, abs=1e-5)
    told = with_suspicion(found, rated)
    for one, probability in zip(told, rated.probability, strict=True):
        [said] = [m for m in one.measurements if m.name == codes.PROBABILITY_OF_CANCER]
        assert said == Measurement(codes.PROBABILITY_OF_CANCER, round(100 * probability, 1), codes.PERCENT)


def test_the_shipped_networks_are_of_one_recipe_and_calibrated() -> None:
    loaded = [weights.load(weights.packed("lung_nodule", name), NODULE.preprocessing) for name in CHECKPOINTS]
    assert len({one.sha256 for one in loaded}) == len(loaded)
    assert len({one.about["split_sha256"] for one in loaded}) == 1
    seeds = {one.about["config"]["seed"] for one in loaded}
    assert len(seeds) == len(loaded)
    assert len({json.dumps({**one.about["config"], "seed": 0}) for one in loaded}) == 1
    assert len({json.dumps(one.about["calibration"]) for one in loaded}) == 1


def test_the_probability_grows_with_the_score_and_is_the_written_logistic() -> None:
    served = Suspicion(None, CPU)
    slope, of_size, offset = served.fitted
    scores = [1.5, 3.0, 4.5] if served.networks[0].rating else [0.1, 0.5, 0.9]
    chances = [served.probability(score, 10.0) for score in scores]
    assert chances == sorted(chances)
    odds = scores[1] if served.networks[0].rating else 0.0
    assert chances[1] == pytest.approx(1 / (1 + np.exp(-(slope * odds + of_size * np.log(10.0) + offset))))


def test_weights_without_a_calibration_are_not_served(tmp_path: Path) -> None:
    source = weights.packed("lung_nodule", CHECKPOINTS[0])
    for each in (source, source.with_suffix(".json")):
        shutil.copy(each, tmp_path / each.name)
    about = json.loads((tmp_path / f"{source.stem}.json").read_text())
    del about["calibration"]
    (tmp_path / f"{source.stem}.json").write_text(json.dumps(about))
    with pytest.raises(WeightsError, match="is not calibrated"):
        Suspicion([tmp_path / source.name], CPU)


def test_one_of_several_is_not_served_with_the_calibration_of_all(tmp_path: Path) -> None:
    source = weights.packed("lung_nodule", CHECKPOINTS[0])
    with pytest.raises(WeightsError, match="calibrated together with others"):
        Suspicion([source], CPU)


def test_weights_of_other_patches_are_refused() -> None:
    with pytest.raises(WeightsError, match="was trained on preprocessing"):
        CandidateServer(weights.packed("lung_nodule", CHECKPOINTS[0]), SOFT_TISSUE, CPU)


def test_attention_without_suspicion_is_refused_in_words() -> None:
    with pytest.raises(BadOptions, match="attention is without effect unless malignancy = true"):
        Options.read({"attention": True})
    assert Options.read({}).malignancy is False


def test_the_mean_diameter_is_the_one_that_is_reported() -> None:
    _, found = chest_with_balls()
    assert [mean_diameter_mm(one) for one in found] == pytest.approx([20.0, 5.0], abs=0.7)


@pytest.mark.timeout(300)
def test_lung_nodule_says_it_of_every_finding_and_by_whom(tmp_path: Path) -> None:
    """The whole pipeline: probability, the sentence, and a picture of each finding, in the order of the report."""
    truth = chest_ct(tmp_path, seed=11, slices=60, size=320, spacing_mm=(3.0, 1.1, 1.1), nodules=3)
    asked = {"malignancy": True, "attention": True, "views": 1, "threads": 1}
    pipeline = build(catalogue().declared["lung-nodule"], "cpu", asked)
    assert {name for name in pipeline.card.weights_sha256 if name.startswith("malignancy")} == set(CHECKPOINTS)
    result = pipeline.run(truth.files, lambda fraction, words: None)
    assert result.findings
    chances = []
    for one in result.findings:
        [said] = [m for m in one.measurements if m.name == codes.PROBABILITY_OF_CANCER]
        chances.append(round(said.value))
    assert chances == sorted(chances, reverse=True), "the likelier cancer comes first"
    assert any("not histology" in warning and "calibrated on" in warning for warning in result.warnings)
    assert codes.PROBABILITY_OF_CANCER not in result.not_calibrated
    assert [one.finding for one in result.pictures] == [one.number for one in result.findings]
    plain = build(catalogue().declared["lung-nodule"], "cpu", {"views": 1, "threads": 1})
    assert plain.card.algorithm.version != pipeline.card.algorithm.version
