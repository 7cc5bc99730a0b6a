"""What is no breast ultrasound is not looked at, or doubted in words; breasts and the phantoms of them are not."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_sr.regions import Region
from models.breast_us.pipeline import WEIGHTS, BreastUltrasound, View
from models.breast_us.suitability import FOREIGN, Familiar, Verdict, curved_probe, fan_shaped
from models.phantoms.breast import breast_ultrasound
from models.pipeline import UnfitInput
from models.training.breast_us.familiarity import fitted, noises
from models.weights import WeightsError, packed


@pytest.fixture(scope="module")
def pipeline() -> BreastUltrasound:
    return BreastUltrasound("cpu", {"threads": 1})


def shown(picture: np.ndarray, folder: Path, **attributes: object) -> Path:
    """A phantom's file with another picture in it."""
    source = breast_ultrasound(folder, seed=1, images=1, shape=(300, 400)).files[0]
    image = dcmread(source)
    image.PixelData = picture.astype(np.uint8).tobytes()
    image.Rows, image.Columns = picture.shape
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    image.save_as(source)
    return source


def test_noise_is_not_looked_at(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    with pytest.raises(UnfitInput, match=FOREIGN):
        pipeline.run([shown(noises(1)[0], tmp_path)], lambda fraction, doing: None)


def test_a_strange_picture_among_breasts_is_left_out_and_said(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    breast = breast_ultrasound(tmp_path / "breast", seed=2, images=1, shape=(300, 400)).files[0]
    findings = pipeline.run([breast, shown(noises(1)[0], tmp_path / "noise")], lambda fraction, doing: None)
    assert len(findings.images) == 1
    assert any(FOREIGN in text for text in findings.warnings)


def test_other_ultrasound_is_refused_or_doubted(pipeline: BreastUltrasound, shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "us_dicom.zip") as content:
        content.extractall(tmp_path)
    files = sorted(one for one in tmp_path.rglob("*") if one.is_file() and "frames" not in one.name)  # cines: slow
    assert len(files) == 6
    refused = 0
    for file in files:
        try:
            findings = pipeline.run([file], lambda fraction, doing: None)
        except UnfitInput as why:
            refused += FOREIGN in str(why)
        else:
            assert any("looks unlike the breast images" in text for text in findings.warnings), file.name
    assert refused >= 3


def test_a_curved_probe_is_told_by_the_header(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    file = breast_ultrasound(tmp_path, seed=2, images=1).files[0]
    image = dcmread(file)
    image.TransducerType = "CURVED LINEAR"
    image.save_as(file)
    findings = pipeline.run([file], lambda fraction, doing: None)
    assert any("the picture is a fan" in text for text in findings.warnings)


@pytest.mark.parametrize(
    ("kind", "told"), [("LINEAR", ""), ("", ""), ("SECTOR_PHASED", "SECTOR_PHASED"), ("curved linear", "curved linear")]
)
def test_which_probes_are_not_for_breasts(kind: str, told: str) -> None:
    header = Dataset()
    header.TransducerType = kind
    assert curved_probe(header) == told


# ---- the outline

opening = st.floats(35, 80)
radius = st.floats(0.0, 0.35)


@settings(max_examples=30, deadline=None)
@given(opening, radius, st.integers(0, 40), st.integers(0, 99))
def test_fans_are_fans(degrees: float, inner: float, margin: int, seed: int) -> None:
    """A sector with its apex above, of any opening and inner radius, in a screen with a letter in a corner."""
    y, x = np.indices((240, 320))
    down, across = (y + 240 * inner / (1 - inner) * 0.3) / 240, (x - 160) / 240
    depth, angle = np.hypot(down, across), np.degrees(np.arctan2(np.abs(across), down))
    inside = (angle < degrees / 2) & (depth > inner) & (depth < 1)
    picture = np.where(inside, np.random.default_rng(seed).integers(30, 200, y.shape), 0).astype(np.uint8)
    picture[4:12, 4:10] = 255
    assert fan_shaped(np.pad(picture, margin))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.floats(0, 0.15), st.integers(0, 99))
def test_rectangles_and_steered_pictures_are_not(above: int, beside: int, slant: float, seed: int) -> None:
    """Also where the sides lean outwards, as with a wide field of view."""
    y, x = np.indices((240, 320))
    inside = np.abs(x - 160) < 160 * (1 - slant * (1 - y / 240))
    picture = np.where(inside, np.random.default_rng(seed).integers(30, 200, y.shape), 0).astype(np.uint8)
    picture[200:] //= 8  # dark depth
    assert not fan_shaped(np.pad(picture, ((above, 0), (beside, beside))))


def test_a_black_picture_is_no_fan() -> None:
    assert not fan_shaped(np.zeros((100, 100), np.uint8))


# ---- the distance


def test_the_distance_is_mahalanobis_where_nothing_is_left_out() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    of, others = rng.normal(size=(2, 4000, 6)) @ mixing + 5
    kind = fitted(of, others, components=5)
    assert isinstance(kind, Familiar)
    centred = others - of.mean(axis=0)
    exact = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(np.cov(of.T)), centred)
    near = kind.distance(others) * kind.limit
    # five components in the mean, the sixth as the rest: each weighs as in the sum, but for the mean over five
    along = ((others - kind.mean) / kind.scale) @ kind.basis
    within = (along**2 / kind.variance).sum(axis=1)
    assert np.allclose(near**2, within / 5 + (exact - within), rtol=0.05, atol=0.05)


def test_one_in_a_hundred_passes_the_limit() -> None:
    of, others = np.random.default_rng(1).normal(size=(2, 1000, 8))
    assert (fitted(of, others, components=4).distance(others) > 1).sum() == 10


def test_features_of_other_weights_are_refused(tmp_path: Path) -> None:
    source = packed("breast_us", WEIGHTS[0])
    about = json.loads(source.with_suffix(".json").read_text())
    named = about["suitability"]
    for name in (source.stem, named, about["fusion"]):
        for suffix in (".safetensors", ".json"):
            shutil.copy(source.with_name(name + suffix), tmp_path)
    beside = tmp_path / f"{named}.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "weights_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="fitted to other weights"):
        BreastUltrasound("cpu", weights=[tmp_path / source.name])
    beside.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        BreastUltrasound("cpu", weights=[tmp_path / source.name])


def test_an_unfamiliar_fan_is_foreign_and_a_familiar_one_is_not(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    breast = dcmread(breast_ultrasound(tmp_path, seed=4, images=1).files[0]).pixel_array
    judge = pipeline.suitability
    assert judge is not None
    assert not judge.judge(breast, curved=True).foreign
    strict = replace(judge, known=[replace(kind, limit=kind.limit / 10) for kind in judge.known], foreign=1e9)
    assert strict.judge(breast, curved=True).foreign
    assert not strict.judge(breast, curved=False).foreign


@pytest.mark.parametrize(
    ("strange", "judged", "foreign"), [(0, 0, False), (0, 5, False), (2, 5, False), (3, 5, True), (1, 1, True)]
)
def test_most_of_the_frames_decide(strange: int, judged: int, foreign: bool) -> None:
    verdicts = [Verdict(2.0, fan=False, foreign=number < strange) for number in range(judged)]
    assert View(Region((0, 0, 9, 9), None), verdicts=verdicts).is_foreign == foreign
