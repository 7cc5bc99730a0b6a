"""The training loop: learns, resumes to the same result, exports what was best."""

import dataclasses
import hashlib
import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from models.recipe import TrainConfig
from models.soup import blended
from models.train import configured, rate, train


class Line:
    """y = 3x with noise from (seed, epoch): small enough to train in a blink, random enough to notice a bad resume."""

    name, split_sha256, preprocessing = "line", "1" * 64, "none/1"

    def __init__(self, stop_after=None):
        self.config = TrainConfig(epochs=4, lr=0.05, ema_decay=0.9, bf16=False, warm_up_epochs=1)
        self.stop_after = stop_after

    def model(self):
        return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Linear(8, 1))  # dropout needs the saved random state

    def optimiser(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.config.lr)

    def steps(self, epoch):
        return 6

    def batches(self, split, epoch):
        random = torch.Generator().manual_seed(self.config.seed + epoch)
        for index in range(6):
            if (epoch, index) == self.stop_after:
                raise KeyboardInterrupt
            x = torch.randn(16, 1, generator=random)
            yield {"x": x, "y": 3 * x + 0.1 * torch.randn(16, 1, generator=random)}

    def loss(self, model, batch):
        return (model(batch["x"]) - batch["y"]).square().mean()

    @torch.inference_mode()
    def evaluate(self, model, split):
        x = torch.linspace(-1, 1, 9)[:, None]
        return {"score": -(model(x) - 3 * x).square().mean().item()}


def quiet():
    return Console(file=io.StringIO())


def test_a_killed_training_resumes_to_the_same_result(tmp_path):
    whole = train(Line(), tmp_path / "whole", console=quiet())
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop_after=(2, 3)), tmp_path / "killed", console=quiet())
    torch.manual_seed(99)  # whatever another process would start with
    again = train(Line(), tmp_path / "killed", resume=True, console=quiet())
    one, two = (torch.load(p.parent / "last.pt", weights_only=True) for p in (whole, again))
    for name in one["model"]:
        assert torch.equal(one["model"][name], two["model"][name]), name
        assert torch.equal(one["average"][name], two["average"][name]), name
    assert whole.read_bytes() == again.read_bytes()
    once, twice = ((p.parent / "log.csv").read_text().splitlines() for p in (whole, again))
    assert [row.rsplit(",", 1)[0] for row in once] == [row.rsplit(",", 1)[0] for row in twice]  # but for the seconds


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


def test_a_misspelt_hyper_parameter_stops_with_the_known_names():
    changed = configured(TrainConfig(), {"lr": "0.1", "bf16": "false", "epochs": "7"})
    assert dataclasses.asdict(changed) | {} == dataclasses.asdict(TrainConfig(lr=0.1, bf16=False, epochs=7))
    with pytest.raises(SystemExit, match="no hyper-parameter 'epoch'"):
        configured(TrainConfig(), {"epoch": "7"})


def test_a_soup_lies_between_its_checkpoints():
    first = {"w": torch.tensor([0.0, 4.0]), "count": torch.tensor(3)}
    second = {"w": torch.tensor([8.0, 0.0]), "count": torch.tensor(9)}
    mixed = blended(first, second, 0.25)
    assert mixed["w"].tolist() == [2.0, 3.0]
    assert mixed["count"] == 9
