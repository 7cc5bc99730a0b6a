"""The split of two hospitals: no case in two parts, no look-alike in two, nothing tested on that was trained on."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.nets.breast_triple import CLASSES
from models.training.breast_us import hospitals, two_hospitals
from models.training.breast_us.calibrate import unlearnt
from models.training.breast_us.data import SHARES, read_busi, read_split, split_sha256
from models.training.breast_us.hospitals import Picture, make_split, read_hospitals_split
from models.training.breast_us.triple_files import parts_for
from models.training.breast_us.two_hospitals import Config, HospitalsRecipe, begun
from models.weights import WeightsError, load, packed

BLACK = np.zeros((8, 8), np.uint8)


@pytest.fixture(scope="module")
def document() -> dict:  # type: ignore[type-arg]
    return read_hospitals_split()


@pytest.fixture(scope="module")
def home(document: dict) -> dict[str, str]:  # type: ignore[type-arg]
    return {name: part for part, names in document["split"].items() for name in names}


def test_every_picture_is_in_one_part(document: dict, home: dict[str, str]) -> None:  # type: ignore[type-arg]
    assert len(home) == sum(map(len, document["split"].values())) == 629 + 1534
    assert set(document["split"]["left_out"]) == set(document["left_out"])


def test_families_and_cases_stay_together(document: dict, home: dict[str, str]) -> None:  # type: ignore[type-arg]
    for family in document["families"]:
        assert len({home[name] for name in family}) == 1, family
    cases: dict[str, set[str]] = {}
    for name, part in home.items():
        if name.startswith("bus_bra"):
            cases.setdefault(name.split("/")[2].split("-")[0], set()).add(part)
    assert all(len(parts) == 1 for parts in cases.values())


def test_look_alikes_never_stand_in_two_parts(document: dict, home: dict[str, str]) -> None:  # type: ignore[type-arg]
    for one, other, how in document["look_alikes"]:
        assert home[one] == home[other] or "left_out" in (home[one], home[other]), (one, other, how)


def test_nothing_that_the_shipped_weights_learnt_from_is_tested_on(home: dict[str, str]) -> None:
    former = read_split()
    assert {home[f"busi/{name}"] for name in former["train"]} <= {"train", "left_out"}
    assert {home[f"busi/{name}"] for name in former["val"]} <= {"train", "val", "left_out"}


def test_classes_of_bus_bra_are_shared_out_alike(document: dict) -> None:  # type: ignore[type-arg]
    counts = {
        part: Counter(n.split("/")[1] for n in document["split"][part] if n.startswith("bus_bra")) for part in SHARES
    }
    for label, total in (("benign", 1038), ("malignant", 496)):
        for part, share in SHARES.items():
            assert abs(counts[part][label] - share * total) < 0.03 * total


def test_an_edited_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = hospitals.SPLIT_FILE.read_text("utf-8")
    document = json.loads(text)
    document["split"]["train"].append(document["split"]["test"].pop())
    edited = tmp_path / "split.json"
    edited.write_text(json.dumps(document), "utf-8")
    monkeypatch.setattr(hospitals, "SPLIT_FILE", edited)
    with pytest.raises(ValueError, match="does not match its own SHA-256"):
        read_hospitals_split()


def test_the_code_makes_the_stored_split_from_its_look_alikes(shared_data: Path, document: dict) -> None:  # type: ignore[type-arg]
    """All but the comparison of pixels, which takes minutes."""
    pictures = sorted(listed(shared_data / "busi.zip") + listed(shared_data / "bus_bra.zip"), key=lambda one: one.name)
    place = {one.name: i for i, one in enumerate(pictures)}
    pairs = {tuple(sorted((place[a], place[b]))): how for a, b, how in document["look_alikes"]}
    made = make_split(pictures, pairs)  # type: ignore[arg-type]
    assert {name: made[name] for name in ("split", "families", "left_out")} == {
        name: document[name] for name in ("split", "families", "left_out")
    }


def listed(archive: Path) -> list[Picture]:
    with zipfile.ZipFile(archive) as content:
        rows = list(csv.DictReader(io.StringIO(content.read("index.csv").decode())))
    return [
        Picture(
            f"{archive.stem}/{row['file']}",
            CLASSES.index(row["file"].split("/")[0]),
            BLACK,
            BLACK > 0,
            case=row.get("case", ""),
            device=row.get("device", "").split(" @")[0],
        )
        for row in rows
    ]


# ---- what is trained on it


@pytest.fixture(scope="module")
def recipe(document: dict) -> HospitalsRecipe:  # type: ignore[type-arg]
    """Noise under the names of the split, a few of each hospital and class; a square lesion unless normal."""
    rng = np.random.default_rng(0)
    pictures = []
    for part in ("train", "val"):
        seen: Counter[str] = Counter()
        for name in document["split"][part]:
            kind = "/".join(name.split("/")[:2])
            seen[kind] += 1
            if seen[kind] > 12:
                continue
            mask = np.zeros((64, 96), bool)
            mask[20:40, 10:30] = "normal" not in name
            pixels = rng.integers(20, 200, mask.shape).astype(np.uint8)
            pictures.append(Picture(name, CLASSES.index(name.split("/")[1]), pixels, mask))
    config = Config(size=64, batch=8, per_epoch=32, width=4, pretrained=False, frozen=2)
    return HospitalsRecipe(pictures, config)


def test_each_hospital_is_half_of_every_batch(recipe: HospitalsRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(
        two_hospitals, "vary", lambda grey, mask, label, rng: (drawn.append(grey), (grey, mask, label))[1]
    )
    grey, _, _ = recipe.prepared("train")
    of = [one.name.split("/")[0] for one in recipe.images["train"]]
    key = {row.numpy().tobytes(): hospital for row, hospital in zip(grey, of, strict=True)}
    assert len(list(recipe.batches("train", 3))) == recipe.steps(3) == 4
    for batch in drawn:
        assert Counter(key[row.numpy().tobytes()] for row in batch) == {"busi": 4, "bus_bra": 4}


def test_an_epoch_is_the_same_each_time_and_another_one_is_not(recipe: HospitalsRecipe) -> None:
    first, again, other = (next(recipe.batches("train", epoch)) for epoch in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], other["image"])


def test_frozen_stages_get_no_gradient_and_the_others_do(recipe: HospitalsRecipe) -> None:
    net = recipe.model().train()
    recipe.loss(net, next(recipe.batches("train", 0))).backward()
    touched = {name for name, weights in net.named_parameters() if weights.grad is not None}
    still = {name for name, _ in net.named_parameters()} - touched
    assert still == {
        n
        for n, _ in net.named_parameters()
        if n.startswith(("body.encoder.stem", "body.encoder.stages.0.", "body.encoder.stages.1."))
    }


def test_each_hospital_is_judged_by_itself(recipe: HospitalsRecipe) -> None:
    figures = recipe.evaluate(recipe.model().eval(), "val")
    assert {"busi_dice", "busi_auc", "bus_bra_dice", "bus_bra_auc"} <= set(figures)
    assert figures["score"] == pytest.approx(
        sum(figures[f"{h}_{f}"] for h in ("busi", "bus_bra") for f in ("dice", "auc"))
    )


def copied(folder: Path, split_sha256: str) -> Path:
    """The shipped weights as if they had learnt on this split."""
    weights, shipped = folder / "w.safetensors", packed("breast_us", "breast_triple_lite0_w16")
    weights.write_bytes(shipped.read_bytes())
    about = json.loads(shipped.with_suffix(".json").read_text())
    weights.with_suffix(".json").write_text(json.dumps({**about, "split_sha256": split_sha256}))
    return weights


def test_fusion_learns_on_both_hospitals_and_leaves_what_it_stands_on_alone(
    recipe: HospitalsRecipe,
    document: dict,
    tmp_path: Path,  # type: ignore[type-arg]
) -> None:
    """It sees what B was trained to see, begins as B's very answer and is judged beside it."""
    start = copied(tmp_path, document["sha256"])
    pictures = [one for part in ("train", "val") for one in recipe.images[part]]
    fusing = HospitalsRecipe(pictures, replace(recipe.config, stage="fusion", start=str(start)))  # type: ignore[arg-type]
    assert fusing.name == "breast_fusion_small"
    assert fusing.config.size == load(start).about["config"]["size"]
    net = fusing.model()
    figures = fusing.evaluate(net, "val")
    assert figures["accuracy"] == figures["alone_accuracy"]
    assert figures["nll"] == pytest.approx(figures["alone_nll"], rel=1e-3)
    fusing.loss(net, next(fusing.batches("train", 0))).backward()
    assert all(one.grad is not None for one in net.parameters())
    assert fusing.frozen is not None
    assert not any(one.requires_grad for one in fusing.frozen.parameters())
    with pytest.raises(WeightsError, match="fusion needs start=PATH"):
        HospitalsRecipe(pictures, replace(recipe.config, stage="fusion", start=""))  # type: ignore[arg-type]


def test_weights_that_know_what_is_tested_on_do_not_start(document: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    shipped = copied(tmp_path, split_sha256(read_split()))
    images = {part: [Picture(name, 1, BLACK, BLACK > 0) for name in names] for part, names in document["split"].items()}
    assert begun(shipped, images).sha256
    learnt = read_split()["train"][0]
    images["test"].append(Picture(f"busi/{learnt}", 1, BLACK, BLACK > 0))
    with pytest.raises(WeightsError, match="has seen busi/"):
        begun(shipped, images)
    with pytest.raises(WeightsError, match="not known here"):
        begun(copied(tmp_path, "0" * 64), images)


def test_a_hospital_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="hospitals is 'rio'"):
        replace(Config(), hospitals="rio")  # type: ignore[arg-type]


def test_weights_of_both_hospitals_are_judged_on_what_neither_they_nor_their_start_learnt(
    shared_data: Path,
    tmp_path: Path,
    document: dict,  # type: ignore[type-arg]
) -> None:
    """BUSI's images go where the split of both hospitals has them, and none that was learnt from calibrates."""
    busi = read_busi(shared_data / "busi.zip")
    weights = copied(tmp_path, document["sha256"])
    found = parts_for([weights], busi)
    for part in ("train", "val", "test"):
        assert {f"busi/{one.name}" for one in found[part]} == {
            name for name in document["split"][part] if name.startswith("busi/")
        }
    with pytest.raises(WeightsError, match="learnt from"):
        unlearnt([weights], busi, "all")
    assert unlearnt([weights], busi, "val") == found["val"]
