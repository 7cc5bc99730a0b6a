"""How the nodule network is judged: the source's counting, readers among themselves, worst cases, views of an image."""

import csv
import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn

from models.lung_nodule.sliding_unet import CHECKPOINT
from models.runtime import Runtime
from models.training.evaluation import evaluate as command
from models.training.evaluation.ensemble import DIHEDRAL, Ensemble
from models.training.evaluation.metrics import iou
from models.training.export import Origin, export
from models.training.lung_nodule.data.slices import NEGATIVES, stored_split
from models.training.lung_nodule.residual_unet.evaluate import (
    Looked,
    between_readers,
    look,
    raters,
    reasons,
    rule,
    worst,
)
from models.training.lung_nodule.residual_unet.recipe import Config, NoduleRecipe, middle
from models.training.lung_nodule.residual_unet.slice_outcomes import CENTRE_PX, central, outcomes
from models.weights import packed


def masks(*rows):
    """Strings of 0 and 1 -> bool (n, 1, w)"""
    return np.array([[[c == "1" for c in row]] for row in rows])


def test_every_corner_of_the_rule():
    truth = masks("0000", "0000", "1100", "1100", "1100", "1110", "1111")
    marked = masks("0000", "0001", "1100", "0000", "0011", "1000", "0110")
    assert outcomes(marked, truth).tolist() == ["TN", "FP", "TP", "FN", "FN", "FN", "TP"]  # the last: exactly 0.5
    figures = rule(marked, truth, list("abcdefg"))
    assert {name: figures[name].value for name in ("TP", "TN", "FP", "FN")} == {"TP": 2, "TN": 1, "FP": 1, "FN": 3}
    assert figures["accuracy"].value == pytest.approx(3 / 7)
    assert figures["IoU, all slices"].value == pytest.approx((1 + 0 + 1 + 0 + 0 + 1 / 3 + 1 / 2) / 7)
    assert figures["Dice, all slices"].value == pytest.approx((1 + 0 + 1 + 0 + 0 + 1 / 2 + 2 / 3) / 7)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=12))
def test_every_slice_is_counted_once_and_on_its_side(pairs):
    marked, truth = (masks(*(f"{pair[side]:04b}" for pair in pairs)) for side in (0, 1))
    called = outcomes(marked, truth).tolist()
    positives = sum(t.any() for t in truth)
    assert called.count("TP") + called.count("FN") == positives
    assert called.count("TN") + called.count("FP") == len(pairs) - positives
    for one, p, t in zip(called, marked, truth, strict=True):
        assert (one == "TP") == (bool(t.any()) and iou(p, t) >= 0.5)
        assert (one == "TN") == (not t.any() and not p.any())


def test_intervals_come_from_patients_not_from_slices():
    marked, truth = masks(*["1100"] * 10, *["0000"] * 10), masks(*["1100"] * 20)
    one = rule(marked, truth, ["a"] * 20)["accuracy"]
    two = rule(marked, truth, ["a"] * 10 + ["b"] * 10)["accuracy"]
    many = rule(marked, truth, [str(i) for i in range(20)])["accuracy"]
    assert (one.low, one.value, one.high) == (0.5, 0.5, 0.5)
    assert (two.low, two.value, two.high) == (0.0, 0.5, 1.0)
    assert 0.0 < many.low < 0.5 < many.high < 1.0


def test_readers_are_compared_with_each_other_and_with_their_consensus():
    marks = np.array([[[0b011, 0b011, 0b001, 0b000]], [[0b100, 0, 0, 0]]], np.uint8)  # a lone reader is left out
    consensus = np.array([[[True, True, False, False]], [[False] * 4]])
    figures = between_readers(marks, consensus, ["a", "b"])
    assert figures["Dice between two readers"].value == pytest.approx(2 * 2 / 5)
    assert figures["Dice of a reader against the consensus"].value == pytest.approx((4 / 5 + 1) / 2)
    assert between_readers(marks[1:], consensus[1:], ["b"]) == {}


def test_the_worst_cases_come_first_each_with_its_reason():
    truth = np.zeros((3, 8, 8), bool)
    truth[0, 2:5, 2:5] = truth[1, 0:3, 2:5] = True
    marked = truth.copy()
    marked[1] = False
    marked[2, 4:, 4:] = True  # where no reader marked anything: 16 wrong pixels, worse than the 9 of the one missed
    hu = np.where(truth, 100.0, -700.0).astype(np.float32)
    looked = Looked(marked, truth, hu, ["a", "b", "c"], ["a/1", "b/1", ""], np.array([5, 6, 7]))
    lines = worst(looked, np.where(truth, 1, 0).astype(np.uint8), 2).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| none, c | 7 | 0.00 | 0 | 16 |")
    assert "no reader marked anything here" in lines[2]
    assert lines[3].startswith("| b/1 | 6 | 0.00 | 9 | 0 | 1 of 4 | 800 |")
    assert "fewer than 3 readers" in lines[3]
    assert "small" in lines[3]
    assert "border" in lines[3]
    assert "contrast" not in lines[3]


def test_reasons_are_none_for_a_plain_nodule():
    truth = np.zeros((20, 20), bool)
    truth[5:15, 5:15] = True
    assert reasons(truth, [truth] * 4, 800.0) == ["none of the rules"]
    assert reasons(truth, [truth, ~truth, truth], 50.0) == [
        "the readers' outlines differ (mean Dice below 0.6)",
        "little contrast: less than 200 HU",
    ]


class Shifted(nn.Module):
    """Says of each pixel what it is, and in the upper row something else: sees which way up an image is."""

    def forward(self, x):
        x = x.clone()
        x[:, :, 0] = 9.0
        return x


def test_views_are_turned_back_before_they_are_averaged():
    images = torch.randn(2, 1, 6, 6)
    runtime = Runtime(torch.device("cpu"), bf16=False)
    same = Ensemble([nn.Identity()], runtime, DIHEDRAL).probability(images)
    assert torch.allclose(same, images.sigmoid())
    turned = Ensemble([Shifted()], runtime, DIHEDRAL).probability(torch.zeros(1, 1, 6, 6))[0, 0]
    high, low = torch.tensor([9.0, 0.0]).sigmoid().tolist()
    assert turned[0, 2:4].tolist() == pytest.approx([(2 * high + 6 * low) / 8] * 2)  # each edge is up in two views
    assert torch.allclose(turned, turned.rot90())
    assert torch.allclose(turned, turned.flip(1))
    both = Ensemble([nn.Identity(), Shifted()], runtime).probability(torch.zeros(1, 1, 6, 6))[0, 0]
    assert float(both[0, 0]) == pytest.approx((high + low) / 2)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Discs of two patients of the test split, two readers each, in the layout of the LIDC crops."""
    path = tmp_path_factory.mktemp("data") / "slices.zip"
    y, x = np.indices((128, 128)) - 64
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["patient", "nodule", "file"])
    with zipfile.ZipFile(path, "w") as z:
        for patient in stored_split()[0]["test"][:2]:
            for n, radius in enumerate((6, 9)):
                disc = np.hypot(y, x) < radius
                bits = disc * 1 + (np.hypot(y, x) < radius - 1) * 2
                for name, pixels in ((f"slice-{n}.png", 40 + 180 * disc), (f"slice-{n}_raters.png", bits)):
                    with z.open(f"{patient}/nodule-0/{name}", "w") as file:
                        Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
                writer.writerow([patient, "nodule-0", f"slice-{n}.png"])
        z.writestr("index.csv", table.getvalue())
    return path


def test_the_middle_of_a_crop_is_no_larger_than_the_crop():
    assert middle(torch.arange(36.0).reshape(1, 1, 6, 6), 2).flatten().tolist() == [14, 15, 20, 21]
    with pytest.raises(ValueError, match="crops of 256 pixels cannot be cut from stored ones of 128"):
        middle(torch.zeros(1, 1, 128, 128), 256)


def test_the_readers_marks_come_from_a_zip_or_a_folder(archive, tmp_path):
    with zipfile.ZipFile(archive) as z:
        z.extractall(tmp_path)
    rows = np.array([3, 0])
    from_zip = raters(archive, rows)
    assert from_zip.shape == (2, 128, 128)
    assert np.array_equal(from_zip, raters(tmp_path, rows))
    assert np.array_equal(from_zip[:, 48:80, 48:80], raters(archive, rows, crop=32))
    assert set(np.unique(from_zip)) == {0, 1, 3}
    with zipfile.ZipFile(archive) as z:
        z.extractall(tmp_path / "outer" / "crops")
    assert np.array_equal(
        from_zip, raters(tmp_path / "outer", rows)
    )  # read like the crops: an outer folder is stepped into
    (tmp_path / "LIDC").mkdir()
    assert raters(tmp_path / "LIDC", rows) is None


def test_the_command_measures_the_shipped_weights(archive, tmp_path, capsys):
    command.main(["residual_unet", "--data", str(archive), "--out", str(tmp_path)])
    document = json.loads((tmp_path / "figures.json").read_text())
    figures = document["figures"]
    shipped = packed("lung_nodule", CHECKPOINT)
    assert document["weights"] == {hashlib.sha256(shipped.read_bytes()).hexdigest(): CHECKPOINT}
    assert (document["split"], document["split_sha256"]) == ("test", stored_split()[1])
    assert document["choices"].items() >= {"threshold": 0.5, "flips": False, "crop": 128, "centred": False}.items()
    assert document["judged"] == {"crops": 4 + round(4 * NEGATIVES), "crops with a nodule": 4, "patients": 2}
    assert figures["TP"]["value"] + figures["FN"]["value"] == 4
    assert figures["Dice, nodule slices"]["value"] > 0.5  # bright discs are found
    assert figures["Dice between two readers"]["value"] == pytest.approx(0.88, abs=0.06)
    assert "| contrast, HU |" in (tmp_path / "worst_cases.md").read_text()
    assert "accuracy" in capsys.readouterr().out


def test_the_shipped_weights_are_judged_on_patients_that_they_do_not_know(archive, tmp_path):
    """A collection of strangers is unseen to them; val it has none."""
    with zipfile.ZipFile(archive) as z:
        z.extractall(tmp_path)
    table = tmp_path / "index.csv"
    text = table.read_text()
    for number, patient in enumerate(stored_split()[0]["test"][:2]):
        (tmp_path / patient).rename(tmp_path / f"STRANGER-{number}")
        text = text.replace(patient, f"STRANGER-{number}")
    table.write_text(text)
    command.main(["residual_unet", "--data", str(tmp_path), "--split", "unseen", "--out", str(tmp_path / "out")])
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())["figures"]
    assert figures["TP"]["value"] + figures["FN"]["value"] == 4
    with pytest.raises(SystemExit, match="no crop with a nodule for split val"):
        command.main(["residual_unet", "--data", str(tmp_path), "--split", "val"])
    with pytest.raises(SystemExit, match="another split"):
        command.main(["residual_unet", "--data", str(tmp_path), "--strategy", "fresh"])
    (tmp_path / "STRANGER-1").rename(tmp_path / "1.3.6.1.4.1.14519")  # a series: whose?
    table.write_text(text.replace("STRANGER-1", "1.3.6.1.4.1.14519"))
    with pytest.raises(SystemExit, match="does not name its patients"):
        command.main(["residual_unet", "--data", str(tmp_path), "--split", "unseen"])


def test_the_figures_name_every_weights_that_they_are_of(archive, tmp_path):
    """Two of one name are two; shown in all views, the figures are others and say so."""
    shipped, both = packed("lung_nodule", CHECKPOINT), []
    about = json.loads(shipped.with_suffix(".json").read_text())
    for folder, level in (("a", 1.0), ("b", 0.5)):
        (tmp_path / folder).mkdir()
        both.append(tmp_path / folder / "same_name.safetensors")
        content = save({name: (t * level).to(t.dtype) for name, t in load_file(shipped).items()})
        both[-1].write_bytes(content)
        about["sha256"] = hashlib.sha256(content).hexdigest()
        both[-1].with_suffix(".json").write_text(json.dumps(about))
    given = ["--data", str(archive), "--weights", *map(str, both), "--flips", "--out", str(tmp_path / "out")]
    command.main(["residual_unet", *given])
    document = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert document["weights"] == {hashlib.sha256(p.read_bytes()).hexdigest(): "same_name" for p in both}
    assert len(document["weights"]) == 2
    assert document["choices"]["flips"] is True


def test_the_command_refuses_weights_that_are_not_there(archive, tmp_path):
    with pytest.raises(SystemExit, match="is missing"):
        command.main(["residual_unet", "--data", str(archive), "--weights", str(tmp_path / "none.safetensors")])


class Scripted(nn.Module):
    """Marks what is bright, or nothing: has a parameter, for the recipe asks on which device it is."""

    def __init__(self, level):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, x):
        return x - self.level


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("level", [-1.0, 0.3, 0.5, 2.0])
def test_an_epoch_is_chosen_by_the_figures_that_the_tables_judge(archive, level, centred):
    """The recipe's score is the mean of the IoU and the accuracy that the evaluation finds on the same slices."""
    crop = 64 if centred else 128
    recipe, net = NoduleRecipe(archive, Config(centred=centred, crop=crop)), Scripted(level)
    chosen_by = recipe.evaluate(net, "test")
    ensemble = Ensemble([net], Runtime(torch.device("cpu"), bf16=False))
    looked = look(recipe.slices, "test", ensemble, crop, centred=centred)
    judged = rule(looked.predicted, looked.truth, looked.patients)
    assert judged["TN"].value + judged["FP"].value > 0
    assert chosen_by["iou"] == pytest.approx(judged["IoU, all slices"].value)
    assert chosen_by["accuracy"] == pytest.approx(judged["accuracy"].value)
    assert chosen_by["score"] == pytest.approx((chosen_by["iou"] + chosen_by["accuracy"]) / 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 63), st.integers(0, 63), st.integers(1, 9), st.integers(1, 9))
def test_of_a_centred_network_only_the_piece_at_the_middle_counts(row, column, height, width):
    mask = np.zeros((64, 64), bool)
    mask[row : row + height, column : column + width] = True
    kept = central(mask)
    near = slice(32 - CENTRE_PX, 32 + CENTRE_PX)
    assert kept.tolist() == (mask.tolist() if mask[near, near].any() else np.zeros_like(mask).tolist())
    mask[0, 0] = True  # another piece, unless it joins the first
    assert central(mask)[0, 0] == (mask[near, near].any() and row <= 1 and column <= 1)


def test_weights_of_both_kinds_are_not_judged_as_one(archive, tmp_path):
    paths = []
    for centred in (False, True):
        recipe = NoduleRecipe(archive, Config(width=4, centred=centred, crop=64))
        export(recipe, recipe.model(), {}, 0, tmp_path, Origin())
        paths.append(str(tmp_path / f"{recipe.name}.safetensors"))
    assert len(set(paths)) == 2
    with pytest.raises(SystemExit, match="crops of 64 pixels and centred crops of 64 pixels: judge them one by one"):
        command.main(["residual_unet", "--data", str(archive), "--weights", *paths])
