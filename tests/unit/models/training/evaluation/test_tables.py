"""Tables of small trainings: a row that is there is not trained again, a killed one goes on, beside the paper."""

import dataclasses
import itertools
import json
import re

import pytest
import torch

from models.nets.breast_triple import ClassificationNet, TripleConfig
from models.training.breast_us import tables as breast
from models.training.breast_us.recipe import Config as BreastConfig
from models.training.evaluation import tables
from models.training.evaluation.metrics import Interval
from models.training.evaluation.tables import Result, Row, Table, digest
from models.training.lung_nodule.residual_unet import recipe as lung
from models.training.lung_nodule.residual_unet.tables import BUDGETS, TABLES, phantom_crops
from models.training.train import configured
from models.training.trainer import train
from tests.unit.models.training.test_train import Line, quiet


class Lines:
    """Two learning rates of a training that takes a blink."""

    name, title, about = "lines", "Lines", "Budget: none to speak of."
    rows = (Row("slow", {"lr": "0.01"}, {"score": -0.5}), Row("fast", {"lr": "0.1"}), Row("huge", why_not="no GPU"))
    tables = (Table("Rates", rows, "Two of them."), Table("The fast one again", (rows[1],)))

    def __init__(self, *, stop=None, **changes):
        self.stop, self.changes = stop, changes
        self.figures = {"score": ".2f", "epochs": ".0f"}
        self.trained = []  # (row, batches that were seen)

    def recipe(self, row):
        stop_after = (2, 3) if row.name == self.stop else None
        config = configured(Line(**self.changes).config, row.changes)
        return Line(stop_after, **dataclasses.asdict(config))

    def settings(self, row):
        return dataclasses.asdict(self.recipe(row).config)

    def result(self, row, folder):
        recipe = self.recipe(row)
        path = train(recipe, folder, resume=True, console=quiet())
        self.trained.append((row.name, recipe.seen))
        score = json.loads(path.with_suffix(".json").read_text())["metrics"]["val_score"]
        return Result({"score": Interval(score, score - 0.25, score + 0.25)}, {"parameters": 1234567})

    def illustrate(self, folders, out):
        names = " ".join(sorted(folders))
        for name in ("lines_x.png", "lines_y.svg"):
            (out / name).write_text(names)
        return [out / "lines_x.png", out / "lines_y.svg"]


EPOCH_S = 30


def test_a_killed_table_goes_on_and_trains_nothing_twice(tmp_path, monkeypatch):
    clock = itertools.count(step=EPOCH_S)  # looked at when an epoch begins, and when it has been learnt
    monkeypatch.setattr("models.training.trainer.time.monotonic", lambda: float(next(clock)))
    out, runs = tmp_path / "out", tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        tables.run(Lines(stop="fast"), out, runs, quiet())
    assert "not run yet" in (out / "lines.md").read_text()
    again = Lines()
    path = tables.run(again, out, runs, quiet())
    assert again.trained == [("fast", 12)]  # of 24 batches two epochs had been learnt; "slow" was there
    made = {one["row"]: one for one in json.loads((out / "lines.json").read_text()).values()}
    assert made["fast"]["seconds"] == made["slow"]["seconds"] == 4 * EPOCH_S  # of all four epochs, not of the last two
    third = Lines()
    tables.run(third, out, runs, quiet())
    assert third.trained == []
    other = Lines(seed=7)
    tables.run(other, out, runs, quiet())
    assert [name for name, _ in other.trained] == ["slow", "fast"]
    assert len(json.loads((out / "lines.json").read_text())) == 4
    text = path.read_text()
    rates, alone = text.split("## The fast one again")
    assert "score, paper" in rates
    assert "paper" not in alone  # it states no figure of that table
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| slow")]
    assert cells[0][2] == "-0.50"
    assert re.fullmatch(r"-\d\.\d\d \(-\d\.\d\d to -?\d\.\d\d\)", cells[0][3])
    assert cells[0][4] == "1 234 567"
    assert "| huge |  | no GPU |" in text
    assert "![lines_x](lines_x.png)" in text
    assert "epochs" not in text  # a column that neither has is left out


def test_pictures_stay_where_not_every_row_was_trained_here(tmp_path):
    """The results of another machine, whose trainings are not here, with one row missing: it is trained, no more.
    A study whose name goes on has pictures of its own."""
    out = tmp_path / "out"
    tables.run(Lines(), out, tmp_path / "there", quiet())
    assert (out / "lines_x.png").read_text() == "fast slow"
    (out / "lines_short_x.png").write_bytes(b"")
    made = json.loads((out / "lines.json").read_text())
    (out / "lines.json").write_text(json.dumps({key: one for key, one in made.items() if one["row"] != "fast"}))
    again = Lines()
    text = tables.run(again, out, tmp_path / "here", quiet()).read_text()
    assert [name for name, _ in again.trained] == ["fast"]
    assert (out / "lines_x.png").read_text() == "fast slow"
    assert re.findall(r"!\[\w+\]\(([\w.]+)\)", text) == ["lines_x.png", "lines_y.svg"]


def test_without_pictures_they_are_drawn_of_what_is_here(tmp_path):
    out = tmp_path / "out"
    tables.run(Lines(), out, tmp_path / "there", quiet())
    (out / "lines_x.png").unlink()
    (out / "lines_y.svg").unlink()
    made = json.loads((out / "lines.json").read_text())
    (out / "lines.json").write_text(json.dumps({key: one for key, one in made.items() if one["row"] != "fast"}))
    tables.run(Lines(), out, tmp_path / "here", quiet())
    assert (out / "lines_x.png").read_text() == "fast"


def test_the_digest_knows_settings_by_what_they_are():
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_the_papers_counts_are_of_its_test_slices():
    """2717 slices with a nodule and 1377 without; Model 1 has one without too many, as printed."""
    scse, networks, sizes = TABLES
    for row in scse.rows:
        assert row.paper["TP"] + row.paper["FN"] == 2717
        assert row.paper["TN"] + row.paper["FP"] == (1378 if "Model 1" in row.name else 1377)
    stated = {row.name: round(100 * row.paper["accuracy"], 2) for row in scse.rows}
    assert stated["encoder"] == 93.31
    assert stated["encoder + bottleneck (Model 2)"] == 94.04
    assert [row.paper["IoU, all slices"] for row in networks.rows] == [0.781, 0.814, 0.808]
    assert [row.name for row in sizes.rows] == ["512", "256", "128", "96", "64", "32"]


def test_every_row_is_a_training_that_exists():
    for budget in BUDGETS.values():
        for table in TABLES:
            for row in table.rows:
                lung.NoduleRecipe.network(
                    None, dataclasses.asdict(configured(lung.Config(), {**budget, **row.changes}))
                )


def test_pictures_are_of_phantoms_with_the_nodule_in_the_middle():
    crops = phantom_crops(64, count=2)
    assert len(crops) == 2
    for image, mask in crops:
        assert image.shape == mask.shape == (64, 64)
        assert 0 <= image.min() < image.max() <= 1
        assert mask[26:38, 26:38].any()
        assert image[mask].mean() > image[~mask].mean()


def test_every_row_of_the_breast_table_is_a_training_that_exists():
    names = [row.name for table in breast.TABLES for row in table.rows]
    assert len(set(names)) == len(names)
    assert breast.PLANS.keys() <= set(names)
    assert [row.name for table in breast.tables_of("small") for row in table.rows if row.why_not] == [breast.PUBLISHED]
    assert not any(row.why_not for table in breast.tables_of("full") for row in table.rows)
    configs = [
        configured(BreastConfig(), {**budget, **row.changes})
        for budget in breast.BUDGETS.values()
        for table in breast.TABLES
        for row in table.rows
    ]
    for config in configs:
        with torch.device("meta"):
            net = ClassificationNet(TripleConfig.of(dataclasses.asdict(config)))
            assert net.absent.out_features + net.kind.out_features == 3


def test_pictures_of_the_breast_table_show_a_dark_lesion():
    for picture, mask in breast.phantom_pictures(count=2):
        assert picture.shape == mask.shape == (480, 480)
        assert 0 < mask.mean() < 0.2
        assert picture[mask].mean() < picture[~mask].mean()


def test_b_alone_is_the_first_row_of_the_breast_table_without_c(tmp_path, monkeypatch):
    study = object.__new__(breast.BreastStudy)
    study.images, study.changes, study.splits, study.device = [], {}, [], "cpu"
    shown = {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in breast.FIGURES}
    trained = []

    def validate(images, config, plan, folder, device):
        trained.append(folder)
        folder.mkdir(exist_ok=True)
        (folder / "figures.json").write_text(json.dumps({"figures": {}, "figures without C": shown}))
        return dict.fromkeys(breast.FIGURES, Interval(0.9, 0.8, 1.0))

    monkeypatch.setattr(breast, "validate", validate)
    folders = {name: tmp_path / digest(study.settings(Row(name)))[:12] for name in (breast.OURS, breast.ALONE)}
    made = {name: study.result(Row(name), folder).figures["accuracy"].value for name, folder in folders.items()}
    assert made == {breast.OURS: 0.9, breast.ALONE: 0.5}
    assert trained == [folders[breast.OURS]] * 2 != [folders[breast.ALONE]] * 2


def test_pictures_of_the_breast_table_are_by_b(tmp_path, monkeypatch):
    class Judge(Exception):
        pass

    def pipeline(device, weights):
        raise Judge(weights[0].name)

    (tmp_path / "fold0/joint").mkdir(parents=True)
    for name in ("breast_fusion_small", "breast_triple_lite0_w16"):
        (tmp_path / f"fold0/joint/{name}.safetensors").touch()
    monkeypatch.setattr(breast, "BreastUltrasound", pipeline)
    study = object.__new__(breast.BreastStudy)
    study.device = "cpu"
    with pytest.raises(Judge, match="breast_triple_lite0_w16"):
        study.illustrate({breast.OURS: tmp_path}, tmp_path)
