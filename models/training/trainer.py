"""One training loop for every model system: an epoch at a time, and after a kill from the last one on."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from models import weights
from models.runtime import Runtime, channels_last, trained_in
from models.training.export import Origin, export
from models.training.files import replacing
from models.training.log import Log
from models.training.recipe import Recipe
from models.weights import WeightsError


class Average:
    """Exponential moving average of a model's weights; buffers (batch-norm statistics) are averaged too."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in one step; the first steps weigh more, or the average would remember the random start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, now in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)


def rate(step: float, warm_up: float, total: float) -> float:
    """Factor on the peak learning rate: linear warm-up, then half a cosine down to 1 %."""
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1.0, total - warm_up)))


STEP_EPOCHS = 25


def stepped_rate(epoch: int, peak: float, floor: float) -> float:
    """Factor on the peak learning rate: a tenth after every STEP_EPOCHS epochs, never below the floor."""
    return max(0.1 ** (epoch // STEP_EPOCHS), min(1.0, floor / peak))


def plateaus(optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """A tenth of the rate after more than eight epochs in which the training loss did not fall by 1e-4."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.1, patience=8, threshold=1e-4, threshold_mode="abs"
    )


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    console: Console | None = None,
    init: Path | None = None,
    teachers: Sequence[Path] = (),
    tensorboard: bool = False,
) -> Path:
    """Train to the last epoch and return the path of the best weights. A killed training resumes to the same result.

    init       weights to start from, of the same network
    teachers   weights of networks of the same system, which each batch is shown too: see Recipe.distillation_targets

    Raises WeightsError for an `init` or a teacher that is missing, spoilt, or learnt on another split, and when a
    training is resumed with other teachers, another split, preprocessing or network, or on other weights;
    FloatingPointError when the loss is no number any more.
    """
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, device, init, teachers)
    if resume and (out / "last.pt").exists():
        trainer.take_up(out / "last.pt", console)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, refresh_per_second=2,
    )  # fmt: skip
    with bar, Log(out, trainer.first, tensorboard) as log:
        for epoch in range(trainer.first, recipe.config.epochs):
            if why := trainer.why_stop(epoch):
                bar.console.print(why)
                break
            began = time.monotonic()
            loss = trainer.learn(epoch, bar)
            figures = trainer.validate()
            row = {"epoch": epoch + 1, "loss": loss, **figures, "seconds": time.monotonic() - began}
            bar.console.print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
            if recipe.config.keep_last or figures["score"] > trainer.best:
                trainer.best, trainer.best_epoch = figures["score"], epoch
                metrics = {f"val_{name}": value for name, value in figures.items()}
                export(recipe, trainer.average.model, metrics, epoch, out, trainer.origin)
            log.add(row)
            if trainer.plateau is not None:
                trainer.plateau.step(loss)
            save_state(out / "last.pt", trainer.state(epoch))
    return out / f"{recipe.name}.safetensors"


class Trainer:
    """The parts of one training, and where it stands: `first` is the next epoch, `best` the score so far."""

    def __init__(self, recipe: Recipe, device: str, init: Path | None, teachers: Sequence[Path]) -> None:
        """Raises WeightsError, and ValueError for a set too small for one batch."""
        config = recipe.config
        self.recipe, self.device = recipe, device
        torch.manual_seed(config.seed)
        torch.backends.cudnn.benchmark = True
        self.half = half_precision(device, config.amp)
        self.model, self.origin = recipe.model(), Origin()
        if init is not None:
            start = weights.load(init, recipe.preprocessing, recipe.split_sha256)
            start.start(self.model)
            self.origin.init = {start.sha256: start.name}
        self.tutors = [self._tutor(path) for path in teachers]
        channels_last(self.model.to(device), trained_in(device))
        self.average = Average(self.model, config.ema_decay)
        self.optimiser = recipe.optimiser(self.model)
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=self.half is torch.float16)
        self.peaks = [group["lr"] for group in self.optimiser.param_groups]
        self.counts = [recipe.steps(epoch) for epoch in range(config.epochs)]
        if not all(self.counts):
            few = f"fewer images to learn from than a batch of {config.batch}"
            raise ValueError(f"{recipe.name}: {few}; see --set batch")
        self.plateau = plateaus(self.optimiser) if config.schedule == "plateau" else None
        self.first, self.best, self.best_epoch = 0, -math.inf, -1

    def _tutor(self, path: Path) -> nn.Module:
        taught = weights.load(path, self.recipe.preprocessing, self.recipe.split_sha256)
        tutor = taught.into(self.recipe.network(taught.about["config"]))
        self.origin.teachers[taught.sha256] = taught.name
        return channels_last(tutor.to(self.device), trained_in(self.device))

    def take_up(self, path: Path, console: Console) -> None:
        """Go on after the epoch of a checkpoint. Raises WeightsError when it is of another training."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.origin = self.origin.continued(state.get("origin"), path.parent)
        for change in changed(self.recipe, self.model, state, path):
            console.print(f"not as before: {change}")
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])
        set_random_state(state)
        self.first, self.best = state["epoch"] + 1, state["best"]
        self.best_epoch = state.get("best_epoch", state["epoch"])
        console.print(f"resumed after epoch {self.first}, best score {self.best:.4f}")

    def state(self, epoch: int) -> dict[str, Any]:
        """All that `take_up` needs after this epoch."""
        parts: dict[str, Any] = {"model": self.model, "average": self.average.model}
        parts |= {"optimiser": self.optimiser, "scaler": self.scaler}
        parts |= {"plateau": self.plateau} if self.plateau is not None else {}
        return {
            **{name: part.state_dict() for name, part in parts.items()},
            "origin": asdict(self.origin),
            "epoch": epoch,
            "best": self.best,
            "best_epoch": self.best_epoch,
            **random_state(),
            "split_sha256": self.recipe.split_sha256,
            "preprocessing": self.recipe.preprocessing,
            "config": asdict(self.recipe.config),
        }

    def why_stop(self, epoch: int) -> str | None:
        """None, or why no further epoch is worth its time."""
        config = self.recipe.config
        if config.patience and epoch - 1 - self.best_epoch >= config.patience:
            return f"stopped: no better score than {self.best:.4g} of epoch {self.best_epoch + 1} since"
        lr = self.optimiser.param_groups[0]["lr"]
        if self.plateau is not None and lr <= 1.001 * config.lr_floor:  # but for rounding
            return f"stopped: the learning rate has come down to {lr:.3g}"
        return None

    def learn(self, epoch: int, bar: Progress) -> float:
        """One epoch over the training split; its mean loss. Raises FloatingPointError."""
        count, losses = self.counts[epoch], 0.0
        what = f"epoch {epoch + 1}/{self.recipe.config.epochs}"
        task = bar.add_task(what, total=count)
        self.model.train()
        for index, batch in enumerate(self.recipe.batches("train", epoch)):
            loss = self._step(epoch, sum(self.counts[:epoch]) + index, on_device(batch, self.device))
            losses += loss
            if not math.isfinite(losses):
                raise FloatingPointError(
                    f"the loss is {loss} in step {index + 1} of epoch {epoch + 1}; last.pt is of the epoch"
                    " before: go on with a smaller lr or amp=false"
                )
            best = f" best score {self.best:.4f}" if self.best_epoch >= 0 else ""
            bar.update(task, advance=1, description=f"{what} loss {losses / (index + 1):.4f}{best}")
        bar.remove_task(task)
        return losses / count

    def _step(self, epoch: int, step: int, batch: dict[str, Tensor]) -> float:
        """Descend once; the loss."""
        config = self.recipe.config
        if self.plateau is None:
            warm_up, total = config.warm_up_epochs * self.counts[0], sum(self.counts)
            for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
                stepping = config.schedule == "step"
                group["lr"] = peak * (
                    stepped_rate(epoch, peak, config.lr_floor) if stepping else rate(step, warm_up, total)
                )
        with self._precision():
            if self.tutors:
                with torch.no_grad():
                    batch |= self.recipe.distillation_targets(self.tutors, batch)
            loss = self.recipe.loss(self.model, batch)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.average.update(self.model, step)
        return loss.item()

    def validate(self) -> dict[str, float]:
        """The figures of the averaged weights on val. Raises ValueError when they give no score."""
        with self._precision():
            figures = self.recipe.evaluate(self.average.model, "val")
        if not math.isfinite(figures["score"]):
            said = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            raise ValueError(
                f"{self.recipe.name}: no score on val ({said}): it holds too few images, or none of a class; give more"
                " or make fewer folds"
            )
        return figures

    def _precision(self) -> torch.autocast:
        half = self.half or torch.bfloat16
        return torch.autocast(torch.device(self.device).type, half, enabled=self.half is not None)


def changed(recipe: Recipe, model: nn.Module, state: Mapping[str, Any], path: Path) -> list[str]:
    """In what a checkpoint (last.pt at `path`) is of another training than this recipe's, in words.

    Raises WeightsError when it is of another split, preprocessing or network, or stands on other weights: to go on with
    it would spoil the test or mix two trainings. What an old checkpoint does not state is not compared.
    """
    instead = "go on with what it was trained with, or start in another folder"
    for name, word in (("split_sha256", "split"), ("preprocessing", "preprocessing")):
        mine, theirs = getattr(recipe, name), state.get(name)
        if theirs not in (None, mine):
            raise WeightsError(f"{path} learnt on another {word} ({theirs[:20]}, here {mine[:20]}); {instead}")
    before, now = state.get("config", {}), asdict(recipe.config)
    differing = {
        name: f"{name} was {before[name]}, is {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    }
    said = ", ".join(differing.values())
    if any(name.endswith("_sha256") for name in differing):
        raise WeightsError(f"{path} stands on other weights ({said}); {instead}")
    shapes = [{name: t.shape for name, t in one.items()} for one in (state["model"], model.state_dict())]
    if shapes[0] != shapes[1] or (before and repr(recipe.network(before)) != repr(model)):
        raise WeightsError(f"{path} is of another network ({said or 'of other shapes'}); {instead}")
    return list(differing.values())


def half_precision(device: str, wanted: bool) -> torch.dtype | None:
    """bfloat16 where the device multiplies it, else float16 on a GPU; None on other processors: slower than float32."""
    if not wanted:
        return None
    if Runtime.choose(device).bf16:
        return torch.bfloat16
    return torch.float16 if torch.device(device).type == "cuda" else None


def random_state() -> dict[str, Any]:
    """What the next random number depends on, of the CPU and of all GPUs."""
    return {"rng": torch.get_rng_state()} | (
        {"cuda_rng": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {}
    )


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["rng"])
    if torch.cuda.is_available() and "cuda_rng" in state:
        torch.cuda.set_rng_state_all(state["cuda_rng"])


def on_device(batch: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
    """The batch on the device, images channels-last like the model."""
    formats = trained_in(device)
    return {
        name: t.to(device, memory_format=formats[t.ndim]) if t.ndim in formats else t.to(device)
        for name, t in batch.items()
    }


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all: a kill while writing leaves the former checkpoint."""
    with replacing(path) as new:
        torch.save(state, new)
