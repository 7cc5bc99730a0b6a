"""A, B and C one after the other, on a handful of small phantoms: what starts from what, and what may not change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from models.breast_us import pipeline
from models.breast_us.pipeline import INSIDE, BreastUltrasound
from models.nets.breast_triple import CLASSES, ClassificationNet
from models.phantoms.breast import Ellipse, breast_picture
from models.training.breast_us import calibrate as temperature
from models.training.breast_us import cross_validate as folds
from models.training.breast_us import evaluate, published, stages
from models.training.breast_us.data import Labelled, families, parts
from models.training.breast_us.fold_splits import rotation
from models.training.breast_us.recipe import BreastRecipe, Config
from models.training.breast_us.stages import as_good, train_stages
from models.training.breast_us.triple_files import attach
from models.training.export import note
from models.training.trainer import train
from models.weights import WeightsError, load

TINY = Config(
    encoder="plain", width=4, size=64, batch=4, epochs=1, heads="lesion", folds=2, fold=0, dropout=0.0, warm_up_epochs=0
)


def phantom(label: int, number: int) -> Labelled:
    """A breast with a lesion unless normal, under a gain of its own, so that no two look alike."""
    rng = np.random.default_rng((label, number))
    shape, spacing_mm = (72, 96), (0.5, 0.4)
    wide = rng.uniform(5, 9)
    lesion = Ellipse(rng.uniform(12, 26), rng.uniform(14, 20), (wide, 0.7 * wide), rng.uniform(-20, 20))
    gain = ndimage.gaussian_filter(rng.normal(size=shape), 10)
    pixels = breast_picture(rng, shape, spacing_mm, lesion if label else None, 6.0 if label == 1 else -8.0)
    y, x = (np.indices(shape) + 0.5) * np.reshape(spacing_mm, (2, 1, 1))
    mask = lesion.radius(x, y) <= 1 if label else np.zeros(shape, bool)
    shown = np.clip(0.6 * pixels + 60 + 50 * gain / gain.std(), 0, 255).astype(np.uint8)
    return Labelled(f"{CLASSES[label]}/{number}.png", label, shown, mask)


@pytest.fixture(scope="module")
def images() -> list[Labelled]:
    return [phantom(label, number) for label in range(3) for number in range(8)]


@pytest.fixture(scope="module")
def trained(images: list[Labelled], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of every stage on one split."""
    root = tmp_path_factory.mktemp("stages")
    a = train(BreastRecipe(images, replace(TINY, stage="segmentation")), root / "a")
    b = train(BreastRecipe(images, replace(TINY, stage="classification", start=str(a))), root / "b")
    c = train(BreastRecipe(images, replace(TINY, stage="fusion", start=str(b), masks=str(a))), root / "c")
    return {"a": a, "b": b, "c": c}


def test_b_starts_from_the_exact_weights_of_a(images: list[Labelled], trained: dict[str, Path]) -> None:
    net = BreastRecipe(images, replace(TINY, stage="classification", start=str(trained["a"]))).model()
    assert isinstance(net, ClassificationNet)
    stored = load(trained["a"]).tensors
    assert stored.keys() == net.body.state_dict().keys()
    for name, values in net.body.state_dict().items():
        assert torch.equal(values, stored[name].to(values.dtype)), name
    assert all(weights.requires_grad for weights in net.parameters())
    assert any(
        not torch.equal(load(trained["b"]).tensors[f"body.{name}"], t) for name, t in stored.items()
    )  # it learns


@pytest.mark.parametrize("fusion", ["small", "published"])
def test_while_c_learns_a_and_b_do_not_change_by_one_bit(
    images: list[Labelled], trained: dict[str, Path], tmp_path: Path, fusion: str
) -> None:
    wanted = replace(TINY, stage="fusion", start=str(trained["b"]), masks=str(trained["a"]), fusion=fusion)
    recipe = BreastRecipe(images, wanted)
    assert recipe.frozen is not None
    before = {name: t.clone() for name, t in recipe.frozen.state_dict().items()}
    fresh = {name: t.clone() for name, t in recipe.model().state_dict().items()}
    path = train(recipe, tmp_path)
    after = recipe.frozen.state_dict()
    assert before.keys() == after.keys()
    assert [name for name, t in before.items() if not torch.equal(t, after[name])] == []
    assert not any("b." in name or "a." in name for name in load(path).tensors)  # C's file is C alone
    assert any(not torch.equal(t.float(), fresh[name]) for name, t in load(path).tensors.items())


def test_figures_of_c_stand_beside_those_of_b_alone(trained: dict[str, Path]) -> None:
    metrics = json.loads(trained["c"].with_suffix(".json").read_text())["metrics"]
    assert {"val_auc", "val_alone_auc", "val_accuracy", "val_alone_accuracy", "val_nll"} <= metrics.keys()
    assert as_good({"val_auc": 0.9, "val_alone_auc": 0.9, "val_accuracy": 0.8, "val_alone_accuracy": 0.7})
    assert not as_good({"val_auc": 0.9, "val_alone_auc": 0.91, "val_accuracy": 0.8, "val_alone_accuracy": 0.7})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"stage": "classification", "start": "b"},
            "holds weights of stage classification; stage=classification takes",
        ),
        ({"stage": "fusion", "start": "a"}, "takes those of stage joint or classification"),
        ({"stage": "fusion"}, "needs start=PATH"),
        ({"stage": "fusion", "start": "b", "masks": "b"}, "takes those of stage segmentation"),
        ({"stage": "joint", "start": "a"}, "not from weights of ours"),
        ({"stage": "classification", "start": "a", "masks": "a"}, "only stage=fusion"),
        ({"stage": "classification", "start": "a", "fold": 1}, "was trained on another split"),
        ({"stage": "classification", "start": "a", "width": 8}, "width is 4 there and 8 here"),
        ({"stage": "classification", "start": "a", "attention": False}, "attention is True there and False here"),
        ({"stage": "classification", "start": "nowhere"}, "is missing"),
    ],
)
def test_wrong_weights_to_start_from_are_refused_in_words(
    images: list[Labelled], trained: dict[str, Path], tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    paths = {**trained, "nowhere": tmp_path / "none.safetensors"}
    named = {k: str(paths[v]) if k in ("start", "masks") else v for k, v in changes.items()}  # type: ignore[index]
    with pytest.raises(WeightsError, match=why):
        BreastRecipe(images, replace(TINY, **named))  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"stage": "C"}, {"fusion": "large"}, {"fold": 2}, {"schedule": "steps"}])
def test_a_value_that_no_field_knows_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(TINY, **changes)  # type: ignore[arg-type]


def test_the_published_recipe_has_the_numbers_of_the_paper() -> None:
    config = published.Config()
    assert (config.encoder, config.width, config.size, config.heads) == ("plain", 64, 256, "pooled")
    assert (config.optimiser, config.lr, config.schedule, config.lr_floor) == ("adam", 2e-4, "plateau", 2e-8)
    assert (config.bce_weight, config.mask_weight, config.auxiliary_weight) == (0, 1, 0.3)


# ---- the pipeline with parts


@pytest.fixture
def shipped(trained: dict[str, Path], tmp_path: Path) -> Path:
    """B in a folder, with A and C beside it."""
    for path in trained.values():
        for one in (path, path.with_suffix(".json")):
            (tmp_path / one.name).write_bytes(one.read_bytes())
    b = tmp_path / trained["b"].name
    attach(trained["a"], b, "segmentation")
    attach(trained["c"], b, "fusion")
    return b


def test_the_pipeline_uses_a_and_c_when_they_are_named(
    trained: dict[str, Path], shipped: Path, images: list[Labelled]
) -> None:
    whole, alone = BreastUltrasound("cpu", weights=[shipped]), BreastUltrasound("cpu", weights=[trained["b"]])
    assert list(whole.card.weights_sha256) == [trained[part].stem for part in "bac"]
    assert whole.card.algorithm.version != alone.card.algorithm.version
    one, other = whole.look(images[12].pixels), alone.look(images[12].pixels)
    assert not np.array_equal(one.classes, other.classes)
    assert not np.array_equal(one.probability, other.probability)
    without = BreastUltrasound("cpu", weights=[shipped], fusion=False)
    assert list(without.card.weights_sha256) == [trained[part].stem for part in "ba"]
    np.testing.assert_allclose(without.look(images[12].pixels).classes, other.classes, atol=1e-6)


def test_parts_that_were_not_trained_together_are_refused(trained: dict[str, Path], shipped: Path) -> None:
    note(shipped, {"segmentation": None})  # C was trained on the mask of A
    with pytest.raises(WeightsError, match="train it again on these"):
        BreastUltrasound("cpu", weights=[shipped])
    about = json.loads(shipped.with_name(trained["c"].name).with_suffix(".json").read_text())
    about["config"]["start_sha256"] = "0" * 64
    shipped.with_name(trained["c"].name).with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(WeightsError, match="was trained beside weights 000000000000"):
        BreastUltrasound("cpu", weights=[shipped])
    shipped.with_name(trained["c"].name).unlink()
    with pytest.raises(WeightsError, match="is missing"):
        BreastUltrasound("cpu", weights=[shipped])


@pytest.mark.parametrize(
    ("said", "asked", "suggests"),
    [
        ({}, False, False),
        ({}, True, False),
        ({"calibrated": True, "temperature": 1.5, "calibrated_on": "BUSI val"}, False, False),
        ({"calibrated": True, "temperature": 1.5, "calibrated_on": "BUSI val"}, True, True),
        ({"calibrated": True, "temperature": 1.5, "calibrated_here": True}, False, False),  # of an earlier version
        ({"calibrated": False, "temperature": 1.5}, True, False),
    ],
)
def test_a_category_needs_calibration_and_a_site_that_stands_for_it(
    shipped: Path, said: dict[str, object], asked: bool, suggests: bool
) -> None:
    note(shipped, said)
    node = BreastUltrasound("cpu", {"suggest_birads": asked}, weights=[shipped])
    assert node.suggests is suggests
    assert (node.temperature is not None) == (said.get("calibrated") is True)
    assert ("T1.5" in node.card.algorithm.version) == (said.get("calibrated") is True)


def test_what_is_reported_decides_whether_an_image_is_normal(
    shipped: Path, images: list[Labelled], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = BreastUltrasound("cpu", weights=[shipped], fusion=False)
    node.prior = np.ones(3)
    mask = images[12].mask.astype(np.float32)
    for classes, normal in (([0.45, 0.3, 0.25], True), ([0.42, 0.5, 0.08], False), ([0.3, 0.3, 0.4], False)):
        shares = np.array(classes)
        monkeypatch.setattr(node, "answer", lambda grey, size, shares=shares: (mask, shares))
        for node.temperature in (None, 2.0):  # changes how sure it is, and not what is most probable
            told = node.look(images[12].pixels)
            assert bool(node.said(shares).argmax() == 0) is normal
            assert np.array_equal(told.lesion, np.zeros_like(told.lesion) if normal else images[12].mask)
            np.testing.assert_allclose(told.classes, shares)  # what a temperature is fitted on


def test_a_route_names_weights_of_the_site(shipped: Path, tmp_path: Path) -> None:
    assert shipped.stem in BreastUltrasound("cpu", {"checkpoint": str(shipped)}).card.weights_sha256
    with pytest.raises(WeightsError, match="is missing"):
        BreastUltrasound("cpu", {"checkpoint": str(tmp_path / "none.safetensors")})


def test_weights_of_different_sizes_do_not_answer_together(trained: dict[str, Path], tmp_path: Path) -> None:
    for one in (trained["b"], trained["b"].with_suffix(".json")):
        (tmp_path / one.name).write_bytes(one.read_bytes())
    other = tmp_path / trained["b"].name
    note(other, {"config": {**load(other).about["config"], "size": 96}})
    with pytest.raises(WeightsError, match=r"pictures of \[64, 96\] pixels"):
        BreastUltrasound("cpu", weights=[trained["b"], other])


@pytest.mark.parametrize(
    ("stage", "teacher", "why"),
    [
        ("segmentation", "b", "stage segmentation takes no --teacher"),
        ("fusion", "b", "stage fusion takes no --teacher"),
        ("classification", "a", "a --teacher must be of stage joint or classification"),
        ("joint", "c", "a --teacher must be of stage joint or classification"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_in_words(
    images: list[Labelled], trained: dict[str, Path], tmp_path: Path, stage: str, teacher: str, why: str
) -> None:
    wanted = replace(TINY, stage=stage, start=str(trained["b"]) if stage == "fusion" else "")
    with pytest.raises(ValueError, match=why):
        train(BreastRecipe(images, wanted), tmp_path, teachers=[trained[teacher]])
    assert not (tmp_path / "last.pt").exists()


# ---- evaluation


@pytest.fixture(scope="module")
def own(images: list[Labelled], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the split that `parts` makes of the phantoms, of which none is of BUSI."""
    return train(BreastRecipe(images, replace(TINY, fold=-1)), tmp_path_factory.mktemp("own"))


@pytest.fixture
def archive(images: list[Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that reads as the phantoms."""
    for module in (evaluate, temperature):
        monkeypatch.setattr(module, "read_busi", lambda path: images)
    return tmp_path / "phantoms.zip"


def test_weights_are_judged_on_their_own_split_and_the_worst_cases_are_written(
    images: list[Labelled], own: Path, archive: Path, tmp_path: Path
) -> None:
    judgement = evaluate.evaluate(archive, "cpu", "test", paths=[own], out=tmp_path / "judged")
    assert {"Dice, lesion images", "accuracy", "seconds per image"} <= judgement.figures.keys()
    found, split_sha256 = parts(images)
    assert (judgement.split, judgement.split_sha256) == ("test", split_sha256)
    assert judgement.weights == {hashlib.sha256(own.read_bytes()).hexdigest(): own.stem}
    assert judgement.choices["mask threshold"] == INSIDE
    assert judgement.judged == {"images": len(found["test"])}
    rows = (tmp_path / "judged/worst_cases.md").read_text().splitlines()[2:]
    assert sorted(row.split(" | ")[0].removeprefix("| ") for row in rows) == sorted(one.name for one in found["test"])


def test_weights_that_may_know_the_images_are_not_judged_on_them(trained: dict[str, Path], archive: Path) -> None:
    with pytest.raises(WeightsError, match="learnt on another split"):
        evaluate.evaluate(archive, "cpu", "test", paths=[trained["b"]])  # of a fold


def test_the_shipped_weights_are_judged_on_images_that_they_do_not_know(archive: Path) -> None:
    every, same = (evaluate.evaluate(archive, "cpu", split) for split in ("unseen", "test"))
    assert every.figures["Dice, lesion images"] == same.figures["Dice, lesion images"]
    with pytest.raises(ValueError, match="no image for split val"):
        evaluate.evaluate(archive, "cpu", "val")


def test_an_evaluation_that_cannot_be_is_refused_in_words(own: Path, archive: Path) -> None:
    with pytest.raises(ValueError, match=r"no image for split unseen: of its 24 there are \d+ in train"):
        evaluate.evaluate(archive, "cpu", "unseen", paths=[own])
    with pytest.raises(ValueError, match="takes no --flips"):
        evaluate.evaluate(archive, "cpu", "test", paths=[own], flips=True)
    with pytest.raises(ValueError, match="takes no --cache"):
        evaluate.evaluate(archive, "cpu", "test", paths=[own], cache=archive)
    with pytest.raises(ValueError, match="no strategy 'other'"):
        evaluate.evaluate(archive, "cpu", "test", paths=[own], strategy="other")


def test_a_temperature_is_fitted_on_images_that_were_not_learned(
    images: list[Labelled], own: Path, trained: dict[str, Path], archive: Path
) -> None:
    found, _ = parts(images)
    assert temperature.unlearnt([own], images, "val") == found["val"]
    with pytest.raises(WeightsError, match=f"learnt from {len(found['train'])} of these images"):
        temperature.unlearnt([own], images, "all")
    with pytest.raises(SystemExit, match="learnt on another split"):
        temperature.main(["--data", str(archive), "--weights", str(trained["b"])])
    others = [phantom(label, number) for label in range(3) for number in range(50, 52)]
    assert temperature.unlearnt([own], others, "all") == others
    before = own.with_suffix(".json").read_text()
    temperature.main(["--data", str(archive), "--weights", str(own)])
    about = json.loads(own.with_suffix(".json").read_text())
    assert (about["calibrated_on"], about["calibration"]["images"]) == ("phantoms.zip, val", len(found["val"]))
    own.with_suffix(".json").write_text(before)


# ---- folds


def test_every_image_is_tested_once_and_on_what_was_not_learned(images: list[Labelled]) -> None:
    twin = replace(images[3], name="normal/twin.png")
    conflict = replace(images[9], name="malignant/twin.png", label=2)
    many = [*images, twin, conflict]
    splits = [rotation(many, 3, fold) for fold in range(3)]
    left_out = {"benign/1.png", "malignant/twin.png"}
    tested = [name for split in splits for name in split["test"]]
    assert sorted(tested) == sorted({image.name for image in many} - left_out)
    for split in splits:
        parts = [set(split[part]) for part in ("train", "val", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(many) - len(left_out)
        assert all({name.split("/")[0] for name in part} == set(CLASSES) for part in parts)
        assert [("normal/3.png" in part) == ("normal/twin.png" in part) for part in parts] == [True] * 3
    assert len(families(images)) == len(images)  # the phantoms themselves do not look alike


def test_a_killed_cross_validation_goes_on_to_the_same_figures(
    images: list[Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ("joint", "fusion")
    folds.validate(images, TINY, plan, tmp_path / "whole")
    began: list[str] = []

    def killed(recipe: BreastRecipe, out: Path, **how: object) -> Path:
        began.append(f"{out.parent.name}/{out.name}")
        if len(began) == 3:
            raise KeyboardInterrupt
        return train(recipe, out, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("models.training.breast_us.stages.train", killed)
    with pytest.raises(KeyboardInterrupt):
        folds.validate(images, TINY, plan, tmp_path / "killed")
    assert not (tmp_path / "killed" / "figures.json").exists()
    folds.validate(images, TINY, plan, tmp_path / "killed")
    assert began == ["fold0/joint", "fold0/fusion", "fold1/joint", "fold1/joint", "fold1/fusion"]
    one, two = (json.loads((tmp_path / run / "figures.json").read_text()) for run in ("whole", "killed"))
    assert one == two
    assert one["images"] == len(images)
    assert (tmp_path / "whole/worst.md").read_text().count("\n") == 2 + 10
    with pytest.raises(SystemExit, match=r"different: lr"):
        folds.validate(images, replace(TINY, lr=1e-4), plan, tmp_path / "whole")


def test_stages_in_a_row_leave_b_with_its_parts(images: list[Labelled], tmp_path: Path) -> None:
    done = train_stages(images, TINY, ("segmentation", "classification", "fusion"), tmp_path)
    about = json.loads(done.weights.with_suffix(".json").read_text())
    assert about["segmentation"] == "breast_segmentation_plain_w4"
    assert (about.get("fusion") == "breast_fusion_small") == done.fused
    BreastUltrasound("cpu", weights=[done.weights])
    again = train_stages(images, TINY, ("segmentation", "classification", "fusion"), tmp_path)
    assert again == done
    with pytest.raises(SystemExit, match=r"stages of another training \(different: lr\)"):
        train_stages(images, replace(TINY, lr=1e-4), ("segmentation", "classification", "fusion"), tmp_path)
    with pytest.raises(SystemExit, match="different: images or stages"):
        train_stages(images[1:], TINY, ("segmentation", "classification", "fusion"), tmp_path)
    assert pipeline.version(["a" * 64], None) == "a" * 8


@pytest.mark.parametrize("command", [stages.main, folds.main])
@pytest.mark.parametrize(
    ("said", "why"),
    [(["--set", "epochs"], "--set epochs: write NAME=VALUE"), ([], "does not exist; give the zip or the folder")],
)
def test_commands_say_in_words_what_they_cannot_do(
    command: Callable[[list[str]], None], said: list[str], why: str, tmp_path: Path
) -> None:
    system = ["breast_us"] if command is stages.main else []
    with pytest.raises(SystemExit, match=why):
        command([*system, "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--threads", "1", *said])
