"""One training loop for every model system.

    python -m models.training.train residual_unet --data slices.zip --out runs/lung --epochs 30 --set lr=0.001
    python -m models.training.train residual_unet --data slices.zip --out runs/lung --epochs 30 \
        --resume    # after a kill
    python -m models.training.train residual_unet --data slices.zip --out runs/small --width 16 \
        --teacher big.safetensors

Each epoch leaves `last.pt` (model, EMA, optimiser, epoch, random state), a line of `log.csv` and `training.svg`; the
best epoch's EMA weights are exported as fp16 safetensors with a JSON beside them that says where they come from.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import Tensor, nn

from models import weights
from models.runtime import Runtime, channels_last, trained_in
from models.training.files import replacing, write_text
from models.training.plots import training_curves
from models.training.recipe import Recipe, RecipeModule, TrainConfig
from models.weights import WeightsError

RECIPES = {
    "ccfam_fpn": "models.training.lung_nodule.ccfam_fpn.recipe",
    "nodulenet": "models.training.lung_nodule.nodulenet.recipe",
    "residual_unet": "models.training.lung_nodule.residual_unet.recipe",
    "breast_us": "models.training.breast_us.recipe",
    "breast_us_published": "models.training.breast_us.published",
}

AnyConfig = TypeVar("AnyConfig", bound=TrainConfig)


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
    config, console = recipe.config, console or Console()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    half = half_precision(device, config.amp)
    torch.backends.cudnn.benchmark = True
    model, origin, tutors = recipe.model(), Origin(), []
    if init is not None:
        start = weights.load(init, recipe.preprocessing, recipe.split_sha256)
        start.start(model)
        origin.init = {start.sha256: start.name}
    for path in teachers:
        taught = weights.load(path, recipe.preprocessing, recipe.split_sha256)
        tutor = taught.into(recipe.network(taught.about["config"]))
        tutors.append(channels_last(tutor.to(device), trained_in(device)))
        origin.teachers[taught.sha256] = taught.name
    channels_last(model.to(device), trained_in(device))
    average = Average(model, config.ema_decay)
    optimiser = recipe.optimiser(model)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=half is torch.float16)
    peaks = [group["lr"] for group in optimiser.param_groups]
    counts = [recipe.steps(epoch) for epoch in range(config.epochs)]
    if not all(counts):
        raise ValueError(f"{recipe.name}: fewer images to learn from than a batch of {config.batch}; see --set batch")
    warm_up, total = config.warm_up_epochs * counts[0], sum(counts)
    plateau = plateaus(optimiser) if config.schedule == "plateau" else None

    first, best, best_epoch = 0, -math.inf, -1
    if resume and (out / "last.pt").exists():
        state = torch.load(out / "last.pt", map_location="cpu", weights_only=True)
        origin = origin.continued(state.get("origin"), out)
        for change in changed(recipe, model, state, out / "last.pt"):
            console.print(f"not as before: {change}")
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        if scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        if plateau is not None:
            plateau.load_state_dict(state["plateau"])
        set_random_state(state)
        first, best = state["epoch"] + 1, state["best"]
        best_epoch = state.get("best_epoch", state["epoch"])
        console.print(f"resumed after epoch {first}, best score {best:.4f}")
    log = Log(out, first, tensorboard)

    def precision() -> torch.autocast:
        return torch.autocast(torch.device(device).type, half or torch.bfloat16, enabled=half is not None)

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, refresh_per_second=2,
    )  # fmt: skip
    with bar, log:
        for epoch in range(first, config.epochs):
            if config.patience and epoch - 1 - best_epoch >= config.patience:
                bar.console.print(f"stopped: no better score than {best:.4g} of epoch {best_epoch + 1} since")
                break
            if plateau is not None and optimiser.param_groups[0]["lr"] <= 1.001 * config.lr_floor:  # but for rounding
                break
            start_s, losses = time.monotonic(), 0.0
            task = bar.add_task(f"epoch {epoch + 1}/{config.epochs}", total=counts[epoch])
            model.train()
            for index, batch in enumerate(recipe.batches("train", epoch)):
                step = sum(counts[:epoch]) + index
                if plateau is None:
                    for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                        group["lr"] = peak * rate(step, warm_up, total)
                batch = on_device(batch, device)
                with precision():
                    if tutors:
                        with torch.no_grad():
                            batch |= recipe.distillation_targets(tutors, batch)
                    loss = recipe.loss(model, batch)
                optimiser.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.unscale_(optimiser)
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                scaler.step(optimiser)
                scaler.update()
                average.update(model, step)
                losses += loss.item()
                if not math.isfinite(losses):
                    raise FloatingPointError(
                        f"the loss is {loss.item()} in step {index + 1} of epoch {epoch + 1}; last.pt is of the epoch"
                        " before: go on with a smaller lr or amp=false"
                    )
                said = f"epoch {epoch + 1}/{config.epochs} loss {losses / (index + 1):.4f}"
                bar.update(task, advance=1, description=said + (f" best score {best:.4f}" if best_epoch >= 0 else ""))
            with precision():
                figures = recipe.evaluate(average.model, "val")
            if not math.isfinite(figures["score"]):
                said = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                raise ValueError(
                    f"{recipe.name}: no score on val ({said}): it holds too few images, or none of a class; give more"
                    " or make fewer folds"
                )
            row = {"epoch": epoch + 1, "loss": losses / counts[epoch], **figures, "seconds": time.monotonic() - start_s}
            bar.remove_task(task)
            bar.console.print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
            if figures["score"] > best:
                best, best_epoch = figures["score"], epoch
                metrics = {f"val_{name}": value for name, value in figures.items()}
                export(recipe, average.model, metrics, epoch, out, origin)
            log.add(row)
            if plateau is not None:
                plateau.step(row["loss"])
            state = {name: part.state_dict() for name, part in (("model", model), ("average", average.model))}
            state |= {"optimiser": optimiser.state_dict(), "scaler": scaler.state_dict(), "origin": asdict(origin)}
            state |= {"epoch": epoch, "best": best, "best_epoch": best_epoch, **random_state()}
            state |= {"split_sha256": recipe.split_sha256, "preprocessing": recipe.preprocessing}
            state |= {"config": asdict(config)}
            state |= {"plateau": plateau.state_dict()} if plateau is not None else {}
            save_state(out / "last.pt", state)
    return out / f"{recipe.name}.safetensors"


@dataclass
class Origin:
    """What a training started from and learnt from besides its data: SHA-256 of the weights -> their name."""

    init: dict[str, str] = field(default_factory=dict)
    teachers: dict[str, str] = field(default_factory=dict)

    def continued(self, stored: Mapping[str, Any] | None, out: Path) -> Origin:
        """The stored one, if this is the same training. Raises WeightsError when the teachers have changed."""
        before = Origin(**(stored or {}))
        if before.teachers.keys() != self.teachers.keys():
            told = ", ".join(f"{name} ({sha256[:12]})" for sha256, name in before.teachers.items())
            raise WeightsError(
                f"{out / 'last.pt'} was trained with {told or 'no teacher'}; go on with the same, or start in another"
                " folder"
            )
        return before


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


class Log:
    """log.csv, training.svg and, if asked for, TensorBoard's files: one row an epoch, written anew with each."""

    def __init__(self, out: Path, first: int, tensorboard: bool) -> None:
        self.out, self.rows = out, list[Mapping[str, Any]]()
        if first and (out / "log.csv").exists():
            with (out / "log.csv").open(newline="") as file:  # a kill may have left the row of an unfinished epoch
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= first]
        self.board = board(out / "tensorboard", first) if tensorboard else None

    def add(self, row: Mapping[str, float]) -> None:
        self.rows.append(row)
        with replacing(self.out / "log.csv") as new, new.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row), restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
        write_text(self.out / "training.svg", training_curves(self.rows))
        if self.board is not None:
            for name, value in row.items():
                if name != "epoch":
                    self.board.add_scalar(name, value, int(row["epoch"]))
            self.board.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()


def board(folder: Path, first: int) -> Any:
    """TensorBoard's writer; what it holds of epochs after `first` is struck out. Raises SystemExit if not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SystemExit(
            f"--tensorboard needs the package tensorboard ({error}): pip install -e .[train], or read log.csv"
        ) from error
    return SummaryWriter(str(folder), purge_step=first + 1)


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


def export(
    recipe: Recipe,
    model: nn.Module,
    metrics: Mapping[str, float],
    epoch: int,
    out: Path,
    origin: Origin | None = None,
) -> Path:
    """Write the weights as fp16 safetensors and, beside them, where they come from. Returns the weights' path.

    Buffers stay float32: a batch-norm variance can exceed 65504, the largest fp16. A kill leaves both files as they
    were, or, in the moment between them, two that weights.load refuses by SHA-256 and that a resume writes again.
    """
    path = out / f"{recipe.name}.safetensors"
    learnt = {name for name, _ in model.named_parameters()}
    half = {name: (t.half() if name in learnt else t).contiguous().cpu() for name, t in model.state_dict().items()}
    spoilt = [name for name, t in half.items() if not torch.isfinite(t).all()]
    if spoilt:
        raise OverflowError(f"{', '.join(spoilt)} hold numbers that fp16 cannot; nothing was exported")
    content = save(half)
    sidecar = {
        "name": recipe.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": asdict(recipe.config),
        "epoch": epoch + 1,
        "metrics": dict(metrics),
        "split_sha256": recipe.split_sha256,
        "preprocessing": recipe.preprocessing,
        **{name: what for name, what in asdict(origin or Origin()).items() if what},
        "git_sha": git_sha(),
        "torch": torch.__version__,
    }
    with replacing(path) as tensors, replacing(path.with_suffix(".json")) as about:  # both written, then both replaced
        tensors.write_bytes(content)
        about.write_text(json.dumps(sidecar, indent=2) + "\n", "utf-8")
    return path


def git_sha() -> str:
    """The commit of the code that trained, or "unknown" outside a checkout."""
    here = Path(__file__).parent
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def configured(base: AnyConfig, changes: Mapping[str, str]) -> AnyConfig:
    """The config with named fields changed; read as the field's type. Raises SystemExit on an unknown name."""
    known = {one.name: one for one in fields(base)}
    values: dict[str, Any] = {}
    for name, text in changes.items():
        if name not in known:
            raise SystemExit(f"no hyper-parameter {name!r}; known: {', '.join(known)}")
        kind = type(getattr(base, name))
        if kind is tuple:
            values[name] = tuple(int(part) for part in text.split(","))
        else:
            values[name] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
    return replace(base, **values)


def changes_of(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, as after --set. Raises ValueError for anything else."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"--set {wrong[0]}: write NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.train", description="Train one model system.")
    parser.add_argument("system", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="the training data: a zip, read in place, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and weights")
    parser.add_argument("--epochs")
    parser.add_argument("--width")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other hyper-parameter")
    parser.add_argument("--init", type=Path, metavar="WEIGHTS", help="start from these (.safetensors)")
    parser.add_argument(
        "--teacher",
        type=paths,
        default=[],
        metavar="WEIGHTS[,WEIGHTS...]",
        help="networks whose mean answer is learnt too",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files too")
    parser.add_argument("--resume", action="store_true", help="go on after the last finished epoch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)

    torch.set_num_threads(given.threads)
    module = cast(RecipeModule, import_module(RECIPES[given.system]))
    try:
        changes = changes_of(given.set)
        changes |= {name: value for name in ("epochs", "width") if (value := getattr(given, name)) is not None}
        recipe = module.build(given.data, configured(module.Config(), changes))
        path = train(
            recipe,
            given.out,
            resume=given.resume,
            device=given.device,
            init=given.init,
            teachers=given.teacher,
            tensorboard=given.tensorboard,
        )
    except (ValueError, WeightsError, FloatingPointError) as error:
        raise SystemExit(str(error)) from error
    print(path)


def paths(text: str) -> list[Path]:
    """a.safetensors,b.safetensors"""
    return [Path(part) for part in text.split(",")]


if __name__ == "__main__":
    main(sys.argv[1:])
