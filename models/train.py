"""One training loop for every model system.

    python -m models.train lung_nodule --data slices.zip --out runs/lung --epochs 30 --set lr=0.001
    python -m models.train lung_nodule --data slices.zip --out runs/lung --epochs 30 --resume    # after a kill

Each epoch leaves `last.pt` (model, EMA, optimiser, epoch, random state) and a line of `log.csv`; the best epoch's EMA
weights are exported as fp16 safetensors with a JSON beside them that says where they come from.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn

from models.recipe import Recipe, RecipeModule, TrainConfig
from models.weights import WeightsError

RECIPES = {
    "lung_nodule": "models.lung_nodule.recipe",
    "breast_us": "models.breast_us.recipe",
    "breast_us_published": "models.breast_us.published",
}


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
    recipe: Recipe, out: Path, *, resume: bool = False, device: str = "cpu", console: Console | None = None
) -> Path:
    """Train to the last epoch and return the path of the best weights. A killed training resumes to the same result."""
    config, console = recipe.config, console or Console()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True
    model = recipe.model().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(model, config.ema_decay)
    optimiser = recipe.optimiser(model)
    peaks = [group["lr"] for group in optimiser.param_groups]
    counts = [recipe.steps(epoch) for epoch in range(config.epochs)]
    warm_up, total = config.warm_up_epochs * counts[0], sum(counts)
    plateau = plateaus(optimiser) if config.schedule == "plateau" else None

    first, best = 0, -math.inf
    if resume and (out / "last.pt").exists():
        state = torch.load(out / "last.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        if plateau is not None:
            plateau.load_state_dict(state["plateau"])
        torch.set_rng_state(state["rng"])
        first, best = state["epoch"] + 1, state["best"]
        console.print(f"resumed after epoch {first}, best score {best:.4f}")

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, refresh_per_second=2,
    )  # fmt: skip
    with bar:
        for epoch in range(first, config.epochs):
            if plateau is not None and optimiser.param_groups[0]["lr"] <= 1.001 * config.lr_floor:  # but for rounding
                break
            start, losses = time.monotonic(), 0.0
            task = bar.add_task(f"epoch {epoch + 1}/{config.epochs}", total=counts[epoch])
            model.train()
            for index, batch in enumerate(recipe.batches("train", epoch)):
                step = sum(counts[:epoch]) + index
                if plateau is None:
                    for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                        group["lr"] = peak * rate(step, warm_up, total)
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.bf16):
                    loss = recipe.loss(model, on_device(batch, device))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                optimiser.step()
                average.update(model, step)
                losses += loss.item()
                bar.update(
                    task, advance=1, description=f"epoch {epoch + 1}/{config.epochs} loss {losses / (index + 1):.4f}"
                )
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.bf16):
                figures = recipe.evaluate(average.model, "val")
            row = {"epoch": epoch + 1, "loss": losses / counts[epoch], **figures, "seconds": time.monotonic() - start}
            bar.console.print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
            append_row(out / "log.csv", row, fresh=epoch == 0)
            if figures["score"] > best:
                best = figures["score"]
                export(recipe, average.model, {f"val_{name}": value for name, value in figures.items()}, epoch, out)
            state = {name: part.state_dict() for name, part in (("model", model), ("average", average.model))}
            state |= {"optimiser": optimiser.state_dict(), "epoch": epoch, "best": best, "rng": torch.get_rng_state()}
            if plateau is not None:
                plateau.step(row["loss"])
                state |= {"optimiser": optimiser.state_dict(), "plateau": plateau.state_dict()}
            save_state(out / "last.pt", state)
    return out / f"{recipe.name}.safetensors"


def on_device(batch: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
    """The batch on the device, images channels-last like the model."""
    return {
        name: t.to(device, memory_format=torch.channels_last) if t.dim() == 4 else t.to(device)
        for name, t in batch.items()
    }


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all: a kill while writing leaves the former checkpoint."""
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def append_row(path: Path, row: Mapping[str, float], *, fresh: bool) -> None:
    with path.open("w" if fresh else "a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def export(recipe: Recipe, model: nn.Module, metrics: Mapping[str, float], epoch: int, out: Path) -> Path:
    """Write the weights as fp16 safetensors and, beside them, where they come from. Returns the weights' path.

    Buffers stay float32: a batch-norm variance can exceed 65504, the largest fp16.
    """
    path = out / f"{recipe.name}.safetensors"
    learnt = {name for name, _ in model.named_parameters()}
    half = {name: (t.half() if name in learnt else t).contiguous().cpu() for name, t in model.state_dict().items()}
    spoilt = [name for name, t in half.items() if not torch.isfinite(t).all()]
    if spoilt:
        raise OverflowError(f"{', '.join(spoilt)} hold numbers that fp16 cannot; nothing was exported")
    save_file(half, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    sidecar = {
        "name": recipe.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": asdict(recipe.config),
        "epoch": epoch + 1,
        "metrics": dict(metrics),
        "split_sha256": recipe.split_sha256,
        "preprocessing": recipe.preprocessing,
        "git_sha": git_sha(),
        "torch": torch.__version__,
    }
    path.with_suffix(".json").write_text(json.dumps(sidecar, indent=2) + "\n")
    return path


def git_sha() -> str:
    """The commit of the code that trained, or "unknown" outside a checkout."""
    here = Path(__file__).parent
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def configured(base: TrainConfig, changes: Mapping[str, str]) -> TrainConfig:
    """The config with named fields changed; read as the field's type. Raises SystemExit on an unknown name."""
    known = {field.name: field for field in fields(base)}
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train one model system.")
    parser.add_argument("system", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="the zip of training data, read in place")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and weights")
    parser.add_argument("--epochs")
    parser.add_argument("--width")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other hyper-parameter")
    parser.add_argument("--resume", action="store_true", help="go on after the last finished epoch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)

    torch.set_num_threads(given.threads)
    changes = dict(pair.split("=", 1) for pair in given.set)
    changes |= {name: value for name in ("epochs", "width") if (value := getattr(given, name)) is not None}
    module = cast(RecipeModule, import_module(RECIPES[given.system]))
    try:
        recipe = module.build(given.data, configured(module.Config(), changes))
    except (ValueError, WeightsError) as error:
        raise SystemExit(str(error)) from error
    print(train(recipe, given.out, resume=given.resume, device=given.device))


if __name__ == "__main__":
    main(sys.argv[1:])
