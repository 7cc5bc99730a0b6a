"""The command that puts NoduleNet's detection beside its baselines, with small trainings on small chests."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from models.training.evaluation.provenance import faults
from models.training.lung_nodule.baselines import recipe as baselines
from models.training.lung_nodule.data.scans import Lesion, Scan
from models.training.lung_nodule.figures import baselines as figures
from models.training.lung_nodule.nodulenet import recipe as nodulenet
from models.training.trainer import train
from tests.scan_sets import scan_set


def chest(seed: int) -> Scan:
    """Noise of lung in a block of soft tissue, with one ball in it."""
    shape, middle = (48, 64, 64), (24, 30, 34)
    lungs = np.zeros(shape, bool)
    lungs[4:-4, 4:-4, 4:-4] = True
    hu = np.where(lungs, np.random.default_rng(seed).normal(-850, 30, shape), 40)
    ball = sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), middle, strict=True)) <= 25
    hu[ball] = 40
    return Scan(f"chest-{seed}", "p", hu.astype(np.int16), lungs, (Lesion.of(ball),), semi_synthetic=True)


@pytest.fixture
def trained(tmp_path):
    """The set, and the weights of NoduleNet and of both baselines."""
    data = scan_set(tmp_path / "set", {name: (name, chest(seed)) for seed, name in enumerate(("train", "val", "test"))})
    alike = {"crop": 32, "crops": 2, "batch": 2, "epochs": 1, "val_scans": 1, "cache": str(tmp_path / "cache")}
    recipes = [
        nodulenet.build(data, nodulenet.Config(width=8, amp=True, focal=True, rcnn_from=0, mask_from=1, **alike)),
        baselines.build(data, baselines.Config(network="retinanet", width=8, **alike)),
        baselines.build(data, baselines.Config(network="unet", width=8, **alike)),
    ]
    return data, [train(one, tmp_path / one.name, console=Console(quiet=True)) for one in recipes]


def told(data, paths, tmp_path):
    weights = [word for path in paths for word in ("--weights", str(path))]
    return ["--set", str(data), "--marks", str(tmp_path / "marks"), "--out", str(tmp_path), *weights]


def test_nodulenet_and_its_baselines_are_judged_side_by_side(trained, tmp_path, capsys):
    data, paths = trained
    figures.main([*told(data, paths, tmp_path), "--val-only"])
    assert not (tmp_path / "lung_baselines.json").exists()
    assert {path.stem.rsplit("-", 1)[1] for path in (tmp_path / "marks").iterdir()} == {"val"}
    figures.main(told(data, paths, tmp_path))
    made = json.loads((tmp_path / "lung_baselines.json").read_text())
    assert list(made["systems"]) == ["NoduleNet", "RetinaNet (MONAI)", "U-Net (MONAI)"]
    assert (made["scans"], made["lesions"], made["budget"]["crops"]) == (1, 1, 2)
    for one in made["systems"].values():
        assert one["val"][one["rule"]] == max(one["val"].values())
        assert one["training_minutes"] >= 0
    assert len(made["systems"]["U-Net (MONAI)"]["val"]) == 8
    assert list(faults(made)) == []
    said = (tmp_path / "lung_baselines.md").read_text()
    assert said.strip() in capsys.readouterr().out
    assert "1 semi-synthetic scans of the test split, 1 semi-synthetic nodules" in said


def test_the_rule_of_marks_is_chosen_on_val_alone(trained, tmp_path):
    """Marks that are kept are not made again: those of val are best by one rule, those of the test by another."""
    data, paths = trained
    figures.main([*told(data, paths[2:], tmp_path), "--val-only"])
    (val,) = (tmp_path / "marks").iterdir()
    kept = json.loads(val.read_text())
    rules = list(kept["marks"])
    hit = [[{"centre_zyx": [24.0, 30.0, 34.0], "score": 0.9}]]
    for path, best in ((val, rules[3]), (val.with_name(val.name.replace("val", "test")), rules[5])):
        path.write_text(json.dumps({"seconds": 1, "marks": {rule: hit if rule == best else [[]] for rule in rules}}))
    figures.main(told(data, paths[2:], tmp_path))
    one = json.loads((tmp_path / "lung_baselines.json").read_text())["systems"]["U-Net (MONAI)"]
    assert one["rule"] == rules[3]
    assert one["froc"]["CPM"]["value"] == 0  # for what was best on the test was not asked


def test_trainings_of_different_budgets_are_not_put_side_by_side(trained, tmp_path):
    data, paths = trained
    alike = {"crop": 32, "crops": 2, "batch": 2, "val_scans": 1, "cache": str(tmp_path / "cache")}
    longer = baselines.build(data, baselines.Config(network="unet", width=8, epochs=2, **alike))
    path = train(longer, tmp_path / "longer", console=Console(quiet=True))
    with pytest.raises(ValueError, match="epochs is not the same in all trainings"):
        figures.main(told(data, [paths[1], path], tmp_path))
