"""Figures of each hospital on answers whose figures are known by hand; and what is chosen, chosen on val alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.breast_us.pipeline import Prediction
from models.nets.breast_triple import CLASSES
from models.training.breast_us import judge_hospitals
from models.training.breast_us.hospitals import Picture
from models.training.breast_us.judge_hospitals import SHOWN, Told, ask, figures, operating_point, page, tables
from models.training.breast_us.judged import Judged
from models.training.evaluation.metrics import bootstrap


def row(name: str, label: int, shares: tuple[float, float, float], dice: float = 0.8, empty: bool = False) -> Judged:
    return Judged(name, label, shares, dice, dice, dice, None, empty)


ROWS = [
    row("busi/normal/1.png", 0, (0.8, 0.1, 0.1), 1.0, empty=True),
    row("busi/normal/2.png", 0, (0.2, 0.7, 0.1), 0.0),
    row("busi/benign/1.png", 1, (0.1, 0.8, 0.1)),
    row("busi/benign/2.png", 1, (0.1, 0.3, 0.6), 0.4),
    row("busi/malignant/1.png", 2, (0.1, 0.2, 0.7)),
    row("busi/malignant/2.png", 2, (0.6, 0.3, 0.1), 0.0, empty=True),
]


def test_figures_are_those_worked_out_by_hand() -> None:
    made = {name: one.value for name, one in figures(Told(ROWS, list("abcdef")), point=0.25).items()}
    assert made["Dice, lesion images"] == pytest.approx((0.8 + 0.4 + 0.8 + 0) / 4)
    assert made["lesion images with Dice above 0.5"] == 0.5
    assert made["normal images without a finding"] == 0.5
    assert made["lesion images without a finding"] == 0.25
    assert made["accuracy"] == 0.5
    # suspicion: benign 1/9, 2/3; malignant 7/9, 1/4: of four pairs three are in order
    assert made["AUC, malignant against benign"] == 0.75
    assert made["sensitivity for malignant, most probable class"] == 0.5
    assert made["cancers called normal"] == 0.5
    assert made["sensitivity at the operating point"] == 1.0
    assert made["specificity at the operating point, benign"] == 0.5


def test_a_hospital_without_normals_has_no_figure_of_them() -> None:
    told = Told([one for one in ROWS if one.label], list("cdef"))
    assert not any("normal against" in name or "normal images" in name for name in figures(told))


def test_families_are_drawn_whole() -> None:
    """Twins that are both right or both wrong make the interval wider than four strangers do."""
    rows = [row(f"busi/benign/{i}.png", 1, (0.1, 0.8, 0.1) if i < 20 else (0.8, 0.1, 0.1)) for i in range(40)]
    twins = figures(Told(rows, [str(i // 10) for i in range(40)]))["accuracy"]
    strangers = figures(Told(rows, [str(i) for i in range(40)]))["accuracy"]
    assert twins.high - twins.low > 1.5 * (strangers.high - strangers.low)


@pytest.mark.parametrize("count", [1, 7, 20, 40])
def test_the_operating_point_reaches_the_wanted_sensitivity(count: int) -> None:
    rng = np.random.default_rng(count)
    rows = [row(str(i), 1 + i % 2, (0, 1 - p, p)) for i, p in enumerate(rng.uniform(0, 1, 2 * count))]
    told = Told(rows, [one.name for one in rows])
    point = operating_point(told)
    reached = (told.suspicion[told.labels == 2] >= point).mean()
    assert reached >= judge_hospitals.WANTED
    above = np.sort(told.suspicion[told.labels == 2])
    assert not (above > point).all()  # no larger one would do
    assert point in above


class Always:
    """Answers every picture alike and counts."""

    def __init__(self) -> None:
        self.asked = 0

    def look(self, pixels: np.ndarray) -> Prediction:
        self.asked += 1
        return Prediction(np.zeros(pixels.shape, np.float32), np.array([0.2, 0.5, 0.3]), np.zeros(pixels.shape, bool))


def pictures() -> list[Picture]:
    rng = np.random.default_rng(0)
    found = []
    for name in ("busi/normal/1.png", "busi/benign/1.png", "bus_bra/malignant/bus_0001-l.jpg"):
        mask = np.zeros((60, 80), bool)
        mask[20:40, 30:60] = "normal" not in name
        kind = CLASSES.index(name.split("/")[1])
        found.append(Picture(name, kind, rng.integers(20, 180, mask.shape).astype(np.uint8), mask))
    return found


def test_a_killed_run_asks_only_for_the_rest(tmp_path: Path) -> None:
    file, pipeline = tmp_path / "val_as_it_is.jsonl", Always()
    ask(pipeline, pictures()[:2], "as it is", file)  # type: ignore[arg-type]
    ask(pipeline, pictures(), "as it is", file)  # type: ignore[arg-type]
    assert pipeline.asked == 3
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == [one.name for one in pictures()]


def test_tables_choose_on_val_and_show_each_hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of test are such that a choice by them would be another one."""
    monkeypatch.setattr(judge_hospitals, "bootstrap", partial(bootstrap, rounds=20))
    names = [f"{h}/{c}/{i}" for h in ("busi", "bus_bra") for c in ("benign", "malignant") for i in range(6)]
    known = [Picture(n, CLASSES.index(n.split("/")[1]), np.zeros((8, 8), np.uint8), np.eye(8) > 0) for n in names]
    for part, cancer in (("val", 0.7), ("test", 0.2)):
        chosen = [n for n in names if int(n[-1]) % 2 == (part == "test")]
        rows = [
            row(n, known[0].label + ("malignant" in n), (0, 1 - p, p))
            for n in chosen
            for p in [cancer * ("malignant" in n) + 0.1]
        ]
        (tmp_path / f"{part}_as_it_is.jsonl").write_text("".join(json.dumps(asdict(r)) + "\n" for r in rows))
    made = tables(known, tmp_path)
    assert made["operating point"] == pytest.approx(0.8)
    assert made["test"]["as it is"]["busi"]["figures"]["sensitivity at the operating point"]["value"] == 0
    assert made["val"]["as it is"]["bus_bra"]["figures"]["sensitivity at the operating point"]["value"] == 1
    both = made["test"]["as it is"]["both"]
    assert both["images"] == sum(made["test"]["as it is"][h]["images"] for h in ("busi", "bus_bra"))
    assert both["figures"]["sensitivity at the operating point"]["value"] == 0
    text = page(made, "title")
    assert text.index("## test") < text.index("## val")
    assert "class priors" not in made


def at_random(count: int, seed: int) -> Told:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([1, 1, 1], count)
    return Told(
        [row(f"busi/{i}", i % 3, tuple(one)) for i, one in enumerate(shares.tolist())], list(map(str, range(count)))
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_prior_is_taken_off_before_another_is_put_on(seed: int) -> None:
    """At the served prior nothing changes; from any to any other the order of suspicion stays."""
    told = at_random(30, seed)
    served = judge_hospitals.priors(judge_hospitals.TRAINED_ON)
    np.testing.assert_allclose(judge_hospitals.at_prior(told, served[judge_hospitals.SERVED_PRIOR]).shares, told.shares)
    for prior in np.random.default_rng(seed).dirichlet([1, 1, 1], 4):
        other = judge_hospitals.at_prior(told, prior)
        np.testing.assert_allclose(other.shares.sum(axis=1), 1)
        assert (np.argsort(other.suspicion) == np.argsort(told.suspicion)).all()
        back = judge_hospitals.at_prior(other, served[judge_hospitals.SERVED_PRIOR] ** 2 / prior)
        np.testing.assert_allclose(back.shares, told.shares)


def test_priors_are_told_of_each_hospital_on_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_hospitals, "bootstrap", partial(bootstrap, rounds=20))
    known = [Picture(one.name, one.label, np.zeros((8, 8), np.uint8), np.eye(8) > 0) for one in ROWS]
    (tmp_path / "val_as_it_is.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in ROWS))
    made = tables(known, tmp_path, {"normal": 0, "benign": 1, "malignant": 1})
    told = made["class priors, val"]
    assert next(iter(told)) == judge_hospitals.SERVED_PRIOR
    assert told[judge_hospitals.SERVED_PRIOR]["busi"]["accuracy"]["value"] == 0.5
    without_normals = told["the mix of the images learnt from"]["busi"]
    assert without_normals[judge_hospitals.NORMALS]["value"] == without_normals["cancers called normal"]["value"] == 0
    *_, table = page(made, "title").split("other class priors\n\n")
    assert {line.count("|") for line in table.strip().splitlines()} == {len(judge_hospitals.BY_CLASS) + 4}
    assert len(table.strip().splitlines()) == 2 + 3


@pytest.mark.parametrize("seed", range(3))
def test_macro_auc_is_the_mean_of_each_class_against_the_others(seed: int) -> None:
    told = at_random(60, seed)
    pairs = [
        np.mean([a > b for a in told.shares[told.labels == c, c] for b in told.shares[told.labels != c, c]])
        for c in range(3)
    ]
    assert figures(told)["macro AUC, one against rest"].value == pytest.approx(np.mean(pairs))


def test_pictures_are_shown_otherwise_and_their_masks_fit() -> None:
    for one in pictures():
        for name, show in SHOWN.items():
            pixels, mask = show(one, np.random.default_rng(1))
            assert pixels.shape == mask.shape
            assert pixels.dtype == np.uint8
            assert mask.sum() == one.mask.sum()
            assert (name == "as it is") == np.array_equal(pixels, one.pixels) or name == "white marks painted over"


def test_white_marks_are_gone() -> None:
    one = pictures()[1]
    one.pixels[10:12, 10:30] = 255
    cleaned, _ = SHOWN["white marks painted over"](one, np.random.default_rng(0))
    assert cleaned.max() < 235 <= one.pixels.max()
