"""The training loop: learns, resumes to the same result, stops early, learns from teachers, exports what was best."""

import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from models import weights
from models.training import soup
from models.training.breast_us import recipe as breast
from models.training.export import export
from models.training.lung_nodule.residual_unet import recipe as lung
from models.training.plots import curves, save_grid, training_curves
from models.training.recipe import TrainConfig
from models.training.soup import blended
from models.training.train import configured
from models.training.trainer import rate, save_state, train
from models.weights import WeightsError

ROOT = Path(__file__).resolve().parents[4]


class Line:
    """y = 3x with noise from (seed, epoch): small enough to train in a blink, random enough to notice a bad resume."""

    name, split_sha256, preprocessing = "line", "1" * 64, "none/1"

    def __init__(self, stop_after=None, *, kill=False, **changes):
        self.config = TrainConfig(**{"epochs": 4, "lr": 0.05, "ema_decay": 0.9, "amp": False, **changes})
        self.stop_after, self.kill = stop_after, kill
        self.seen = 0  # batches

    def model(self):
        return self.network({})

    def network(self, config):
        return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Linear(8, 1))  # dropout needs the saved random state

    def optimiser(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.config.lr)

    def steps(self, epoch):
        return 6

    def batches(self, split, epoch):
        random = torch.Generator().manual_seed(self.config.seed + epoch)
        for index in range(6):
            if (epoch, index) == self.stop_after:
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise KeyboardInterrupt
            self.seen += 1
            x = torch.randn(16, 1, generator=random)
            yield {"x": x, "y": 3 * x + 0.1 * torch.randn(16, 1, generator=random)}

    def distillation_targets(self, teachers, batch):
        return {"taught": torch.stack([teacher(batch["x"]) for teacher in teachers]).mean(0)}

    def loss(self, model, batch):
        answer = model(batch["x"])
        loss = (answer - batch["y"]).square().mean()
        if "taught" in batch:
            loss = torch.lerp(loss, (answer - batch["taught"]).square().mean(), self.config.distil)
        return loss

    @torch.inference_mode()
    def evaluate(self, model, split):
        x = torch.linspace(-1, 1, 9)[:, None]
        return {"score": -(model(x) - 3 * x).square().mean().item()}


def quiet():
    return Console(file=io.StringIO())


def test_a_training_that_cannot_be_judged_or_has_no_batch_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(Line, "evaluate", lambda *_: {"auc": math.nan, "score": math.nan})
    with pytest.raises(ValueError, match=r"no score on val \(auc nan, score nan\)"):
        train(Line(), tmp_path, console=quiet())
    monkeypatch.setattr(Line, "steps", lambda *_: 0)
    with pytest.raises(ValueError, match="fewer images to learn from than a batch of 32"):
        train(Line(), tmp_path, console=quiet())


def same(one, two):
    """Two folders hold the same training."""
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in (one, two)]
    for name in states[0]["model"]:
        assert torch.equal(states[0]["model"][name], states[1]["model"][name]), name
        assert torch.equal(states[0]["average"][name], states[1]["average"][name]), name
    assert (one / "line.safetensors").read_bytes() == (two / "line.safetensors").read_bytes()
    logs = [(folder / "log.csv").read_text().splitlines() for folder in (one, two)]
    assert [row.rsplit(",", 1)[0] for row in logs[0]] == [row.rsplit(",", 1)[0] for row in logs[1]]  # but the seconds


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training that nothing stopped."""
    return train(Line(), tmp_path_factory.mktemp("whole"), console=quiet()).parent


def test_an_interrupted_training_resumes_to_the_same_result(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop_after=(2, 3)), tmp_path, console=quiet())
    torch.manual_seed(99)  # whatever another process would start with
    train(Line(), tmp_path, resume=True, console=quiet())
    same(whole, tmp_path)


def test_a_process_killed_in_an_epoch_resumes_to_the_same_result(tmp_path, whole):
    code = (
        "import sys, pathlib; from tests.unit.models.training.test_train import Line, quiet, train;"
        "train(Line(stop_after=(1, 4), kill=True), pathlib.Path(sys.argv[1]), console=quiet())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    train(Line(), tmp_path, resume=True, console=quiet())
    same(whole, tmp_path)


def test_killed_between_the_log_and_the_state_an_epoch_stands_in_the_log_once(tmp_path, whole, monkeypatch):
    def save(path, state, really=save_state):
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        really(path, state)

    with monkeypatch.context() as patch:
        patch.setattr("models.training.trainer.save_state", save)
        with pytest.raises(KeyboardInterrupt):
            train(Line(), tmp_path, console=quiet())
    train(Line(), tmp_path, resume=True, console=quiet())
    same(whole, tmp_path)


class Killed(BaseException):
    """Nothing is tidied up after it but what `finally` does."""


@pytest.mark.parametrize("moment", [1, 2])
def test_killed_within_an_export_weights_never_stand_beside_the_json_of_others_unnoticed(
    tmp_path, whole, monkeypatch, moment
):
    """Before the first of the two files is replaced, the former weights are whole; between them, both are refused."""
    replaced = []

    def replace(new, path, really=os.replace):
        if (tmp_path / "last.pt").exists() and Path(path).stem == "line":  # an export of a later epoch
            replaced.append(path)
            if len(replaced) == moment:
                raise Killed
        really(new, path)

    with monkeypatch.context() as patch:
        patch.setattr("models.training.files.os.replace", replace)
        with pytest.raises(Killed):
            train(Line(), tmp_path, console=quiet())
    path = tmp_path / "line.safetensors"
    if moment == 1:
        assert weights.load(path).about["epoch"] == 1
    else:
        with pytest.raises(WeightsError, match="SHA-256"):
            weights.load(path)
    train(Line(), tmp_path, resume=True, console=quiet())
    same(whole, tmp_path)
    assert weights.load(path).about["epoch"] == weights.load(whole / "line.safetensors").about["epoch"]


@pytest.mark.parametrize("name", ["last.pt", "line.safetensors", "line.json", "log.csv", "training.svg"])
def test_killed_while_a_file_is_written_its_former_is_whole(tmp_path, name, monkeypatch):
    """Whatever the training leaves is written beside, and then put in its place."""
    train(Line(epochs=1), tmp_path, console=quiet())
    before = (tmp_path / name).read_bytes()
    kept = []

    def replace(new, path, really=os.replace):
        if Path(path).name == name:
            kept.append((tmp_path / name).read_bytes())
            assert Path(new).stat().st_size > 0
            raise Killed
        really(new, path)

    monkeypatch.setattr("models.training.files.os.replace", replace)
    with pytest.raises(Killed):
        train(Line(epochs=4), tmp_path, resume=True, console=quiet())
    assert [before] == kept == [(tmp_path / name).read_bytes()]


def test_half_precision_with_a_scaled_loss_learns_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("models.training.trainer.half_precision", lambda device, wanted: torch.float16)
    path = train(Line(), tmp_path / "whole", console=quiet())
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop_after=(2, 3)), tmp_path / "killed", console=quiet())
    train(Line(), tmp_path / "killed", resume=True, console=quiet())
    same(tmp_path / "whole", tmp_path / "killed")
    assert torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["scaler"]["scale"] > 1
    assert json.loads(path.with_suffix(".json").read_text())["metrics"]["val_score"] > -1.0


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [("split_sha256", "2" * 64, "another split"), ("preprocessing", "none/2", "another preprocessing")],
)
def test_a_training_does_not_go_on_with_other_data(tmp_path, whole, attribute, value, words):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "line.json").read_text()
    other = Line(epochs=6)
    setattr(other, attribute, value)
    with pytest.raises(WeightsError, match=words):
        train(other, tmp_path, resume=True, console=quiet())
    assert other.seen == 0
    assert (tmp_path / "line.json").read_text() == before


def test_a_training_does_not_go_on_with_another_network(tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)

    class Bent(Line):
        def network(self, config):
            return Line().network({}) if config.get("width") == 16 else nn.Sequential(*Line().network({}), nn.ReLU())

        def model(self):
            return self.network(dataclasses.asdict(self.config))

    with pytest.raises(WeightsError, match=r"another network \(width was 16, is 8\)"):  # of the same shapes
        train(Bent(width=8), tmp_path, resume=True, console=quiet())


def test_a_training_goes_on_with_other_hyper_parameters_and_says_so(tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    said = io.StringIO()
    train(Line(epochs=5, lr=0.01), tmp_path, resume=True, console=Console(file=said, width=200))
    assert "not as before: epochs was 4, is 5" in said.getvalue()
    assert "lr was 0.05, is 0.01" in said.getvalue()


def test_a_checkpoint_from_before_it_said_what_it_is_of_still_resumes(tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    for name in ("config", "split_sha256", "preprocessing"):
        del state[name]
    torch.save(state, tmp_path / "last.pt")
    recipe = Line(epochs=5)
    train(recipe, tmp_path, resume=True, console=quiet())
    assert recipe.seen == 6
    torch.save(state | {"model": nn.Linear(2, 2).state_dict()}, tmp_path / "last.pt")
    with pytest.raises(WeightsError, match="another network"):
        train(recipe, tmp_path, resume=True, console=quiet())


class LineModule:
    """In the place of a recipe's module; data "other" is split otherwise."""

    Config = TrainConfig

    @staticmethod
    def build(data, config):
        recipe = Line(**dataclasses.asdict(config))
        recipe.split_sha256 = "2" * 64 if data == Path("other") else "1" * 64
        return recipe


def test_a_soup_of_another_split_is_refused(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(soup, "import_module", lambda name: LineModule)
    last, out = str(whole / "last.pt"), tmp_path / "out"
    given = ["residual_unet", "--first", last, "--second", last, "--share", "0.5", "--out", str(out)]
    with pytest.raises(SystemExit, match="another split"):
        soup.main([*given, "--data", "other"])
    assert not out.exists()
    soup.main([*given, "--data", "same"])
    assert json.loads((out / "line.json").read_text())["config"]["ema_decay"] == 0.9  # that of the checkpoints


def test_a_soup_of_exported_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(soup, "import_module", lambda name: LineModule)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = constant(tmp_path / "a", 4.0), constant(tmp_path / "b", 8.0)
    given = ["residual_unet", "--first", str(first), "--second", str(second), "--share", "0.25", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="another split"):
        soup.main([*given, "--data", "other"])
    soup.main([*given, "--data", "same"])
    assert load_file(tmp_path / "line.safetensors")["2.bias"].item() == 5.0
    about = json.loads((tmp_path / "line.json").read_text())
    assert set(about["init"]) == {hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)}


class Fading(Line):
    """Its score rises until the second epoch and falls from there."""

    def evaluate(self, model, split):
        self.epoch = getattr(self, "epoch", -1) + 1
        return {"score": [0.1, 0.5, 0.4, 0.3, 0.2, 0.1][self.epoch]}


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 4), (5, 6)])
def test_a_training_stops_when_patience_ends(tmp_path, patience, epochs):
    path = train(Fading(epochs=6, patience=patience), tmp_path, console=quiet())
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + epochs
    assert json.loads(path.with_suffix(".json").read_text())["epoch"] == 2
    again = Fading(epochs=6, patience=patience)
    train(again, tmp_path, resume=True, console=quiet())
    assert again.seen == 0


def test_a_loss_that_is_no_number_stops_in_words(tmp_path):
    class Broken(Line):
        def loss(self, model, batch):
            return super().loss(model, batch) * float("nan")

    with pytest.raises(FloatingPointError, match="step 1 of epoch 1"):
        train(Broken(), tmp_path, console=quiet())


def test_a_training_starts_from_weights_and_says_so(tmp_path, whole):
    path = train(Line(epochs=1, lr=1e-9), tmp_path, console=quiet(), init=whole / "line.safetensors")
    before, after = load_file(whole / "line.safetensors"), load_file(path)
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in before)
    sha256 = hashlib.sha256((whole / "line.safetensors").read_bytes()).hexdigest()
    assert json.loads(path.with_suffix(".json").read_text())["init"] == {sha256: "line"}


def constant(folder, value):
    """Weights of a Line that always says `value`."""
    net = Line().model()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(net[2].bias, value)
    return export(Line(), net, {}, 0, folder)


def test_a_student_follows_the_mean_of_its_teachers(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    teachers = [constant(tmp_path / "a", 4.0), constant(tmp_path / "b", 6.0)]
    path = train(Line(distil=1.0, epochs=12, lr=0.2), tmp_path / "student", console=quiet(), teachers=teachers)
    student = Line().model().eval()  # of the last epoch: the best one is that which is nearest to the data
    student.load_state_dict(torch.load(tmp_path / "student" / "last.pt", weights_only=True)["average"])
    x = torch.linspace(-1, 1, 9)[:, None]
    assert (student(x) - 5).abs().mean() < 1 < (3 * x - 5).abs().mean()
    stated = json.loads(path.with_suffix(".json").read_text())["teachers"]
    assert list(stated) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in teachers]
    with pytest.raises(WeightsError, match=r"was trained with line .*, line .*; go on with the same"):
        train(Line(distil=1.0, epochs=13, lr=0.2), tmp_path / "student", console=quiet(), resume=True)


@pytest.mark.parametrize("how", ["init", "teachers"])
def test_wrong_or_missing_weights_are_refused_before_anything_is_trained(tmp_path, whole, how):
    def attempt(path):
        recipe = Line()
        recipe.split_sha256 = "2" * 64 if "other" in str(path) else "1" * 64
        try:
            train(recipe, tmp_path / "out", console=quiet(), **{how: path if how == "init" else [path]})
        finally:
            assert recipe.seen == 0

    with pytest.raises(WeightsError, match="is missing"):
        attempt(tmp_path / "none.safetensors")
    for suffix in (".safetensors", ".json"):
        for name in ("spoilt", "other"):
            shutil.copy(whole / f"line{suffix}", tmp_path / f"{name}{suffix}")
    content = bytearray((tmp_path / "spoilt.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "spoilt.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256"):
        attempt(tmp_path / "spoilt.safetensors")
    with pytest.raises(WeightsError, match="another split"):
        attempt(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="do not fit"):
        attempt(export(Line(), nn.Linear(2, 2), {}, 0, tmp_path))


class MaskAndClasses(nn.Module):
    """(B, 1, H, W) -> mask logits, class logits (B, 3)"""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.mask, self.classes = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x):
        return 4 * self.mask(x), 4 * self.classes(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


def only_mask(seed):
    torch.manual_seed(seed)
    return nn.Conv2d(1, 1, 3, padding=1)


def nodule_recipe(distil):
    recipe = object.__new__(lung.NoduleRecipe)  # without its data
    recipe.config = lung.Config(distil=distil)
    return recipe, only_mask


def breast_recipe(distil):
    recipe = object.__new__(breast.BreastRecipe)
    recipe.config, recipe.class_weights = breast.Config(distil=distil), torch.ones(3)
    return recipe, MaskAndClasses


@pytest.mark.parametrize("system", [nodule_recipe, breast_recipe])
def test_distillation_lowers_the_distance_to_the_teachers(system):
    """The recipes' own loss: with a lesson, the student ends nearer to what the teachers say of the same images."""
    distances = []
    for distil in (0.0, 1.0):
        recipe, net = system(distil)
        torch.manual_seed(5)
        teachers = [net(1).eval(), net(2).eval()]
        image, label = torch.randn(8, 1, 16, 16), torch.eye(3)[torch.arange(8) % 3]
        batch = {"image": image, "mask": (torch.rand(8, 1, 16, 16) < 0.2).float(), "label": label}
        with torch.no_grad():
            distillation_targets = recipe.distillation_targets(teachers, batch)
        assert all(0 <= float(values.min()) <= float(values.max()) <= 1 for values in distillation_targets.values())
        student = net(3)
        optimiser = torch.optim.Adam(student.parameters(), 0.05)
        for _ in range(60):
            optimiser.zero_grad()
            recipe.loss(student, batch | distillation_targets).backward()
            optimiser.step()
        with torch.no_grad():
            said = recipe.distillation_targets([student], batch)
        distances.append(
            {name: float((said[name] - distillation_targets[name]).abs().mean()) for name in distillation_targets}
        )
    assert all(distances[1][name] < 0.6 * distances[0][name] for name in distances[0]), distances


def test_the_plot_beside_the_checkpoint_is_a_picture_of_the_log(whole):
    tree = ElementTree.parse(whole / "training.svg")
    words = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"loss, training", "loss", "validation", "score", "1", "4"} <= set(words)
    lines = [e.get("d") for e in tree.iter("{http://www.w3.org/2000/svg}path") if e.get("stroke-width") == "2"]
    assert [line.count("L") + line.count("M") for line in lines] == [4, 4]  # four epochs each


def test_a_figure_of_nought_is_drawn_and_a_missing_one_is_not():
    rows = [{"epoch": "1", "loss": "0.5", "score": "0.0", "new": ""}, {"epoch": 2, "loss": 0.0, "score": 0, "new": 1.0}]
    tree = ElementTree.fromstring(training_curves(rows))
    lines = [e.get("d") for e in tree.iter("{http://www.w3.org/2000/svg}path") if e.get("stroke-width") == "2"]
    assert [line.count("L") + line.count("M") for line in lines] == [2, 2, 1]


def test_a_plot_leaves_gaps_and_escapes_names():
    tree = ElementTree.fromstring(curves({"a < b": {"x & y": [1.0, float("nan"), 2.0, 3.0], "empty": [float("nan")]}}))
    drawn = [e.get("d") for e in tree.iter("{http://www.w3.org/2000/svg}path") if e.get("stroke-width") == "2"]
    assert [(d.count("M"), d.count("L")) for d in drawn] == [(2, 1), (0, 0)]
    assert ElementTree.fromstring(curves({"nothing": {}})) is not None


def test_a_grid_of_pictures_holds_each_in_its_place(tmp_path):
    from PIL import Image

    save_grid(tmp_path / "grid.png", ["image", "mask"], [[np.zeros((4, 4)), np.ones((4, 4), bool)]], side=8)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (20 + 12, 4 + 2 * 12)
    assert (sheet[20:28, 4:12] == 0).all()
    assert (sheet[20:28, 16:24] == 255).all()


def test_tensorboard_is_told_the_same_figures(tmp_path, whole):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="not installed")
    train(Line(), tmp_path, console=quiet(), tensorboard=True)
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [row.split(",")[1] for row in (whole / "log.csv").read_text().splitlines()[1:]]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([float(loss) for loss in losses])


def test_tensorboard_that_is_not_installed_is_asked_for_in_words(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit, match="needs the package tensorboard"):
        train(Line(), tmp_path, console=quiet(), tensorboard=True)


def test_it_learns_and_exports_the_best_epoch_in_half_precision(tmp_path):
    recipe = Line()
    path = train(recipe, tmp_path, console=quiet())
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["metrics"]["val_score"] > -1.0 > Line().evaluate(recipe.model(), "val")["score"]
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(t.dtype == torch.float16 for t in load_file(path).values())
    scores = [float(line.split(",")[2]) for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert about["metrics"]["val_score"] == max(scores)
    assert about["epoch"] == 1 + scores.index(max(scores))


def test_learning_rate_warms_up_and_falls():
    assert [round(rate(step, 3, 10), 3) for step in (0, 2, 3, 10)] == [0.25, 0.75, 1.0, 0.01]


class Stuck(Line):
    """A loss that never falls."""

    def __init__(self):
        super().__init__()
        self.config = dataclasses.replace(self.config, schedule="plateau", lr=2e-4, epochs=60)
        self.rates = []

    def optimiser(self, model):
        self.own = super().optimiser(model)
        return self.own

    def steps(self, epoch):
        return 1

    def batches(self, split, epoch):
        self.rates.append(self.own.param_groups[0]["lr"])
        yield {"x": torch.ones(2, 1)}

    def loss(self, model, batch):
        return 1 + 0 * model(batch["x"]).sum()


def test_plateaus_lower_the_rate_to_a_tenth_and_end_the_training(tmp_path):
    recipe = Stuck()
    train(recipe, tmp_path, console=quiet())
    # the first epoch is the best; nine without a better one later the rate falls; at 2e-8 it ends
    assert [round(rate, 12) for rate in recipe.rates] == [2e-4] * 10 + [2e-5] * 9 + [2e-6] * 9 + [2e-7] * 9
    again = Stuck()
    train(again, tmp_path, resume=True, console=quiet())
    assert again.rates == []


@pytest.mark.parametrize("config", [TrainConfig(), lung.Config(), breast.Config()])
def test_a_misspelt_schedule_is_refused_before_anything_is_read(config):
    assert configured(config, {"schedule": "plateau"}).schedule == "plateau"
    with pytest.raises(ValueError, match="schedule is 'cosin', must be one of cosine, plateau"):
        configured(config, {"schedule": "cosin"})


def test_a_misspelt_hyper_parameter_stops_with_the_known_names():
    changed = configured(TrainConfig(), {"lr": "0.1", "amp": "false", "epochs": "7"})
    assert dataclasses.asdict(changed) | {} == dataclasses.asdict(TrainConfig(lr=0.1, amp=False, epochs=7))
    with pytest.raises(SystemExit, match="no hyper-parameter 'epoch'"):
        configured(TrainConfig(), {"epoch": "7"})


def test_a_soup_lies_between_its_checkpoints():
    first = {"w": torch.tensor([0.0, 4.0]), "count": torch.tensor(3)}
    second = {"w": torch.tensor([8.0, 0.0]), "count": torch.tensor(9)}
    mixed = blended(first, second, 0.25)
    assert mixed["w"].tolist() == [2.0, 3.0]
    assert mixed["count"] == 9
