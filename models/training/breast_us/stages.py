"""One stage after the other, each from the weights of the one before.

    python -m models.training.breast_us.stages breast_us --data busi.zip \
        --out runs/ours              # A and B as one, then C
    python -m models.training.breast_us.stages breast_us_published --data busi.zip \
        --out runs/paper   # A, then B, then C

A killed run goes on where it was. C is named in the JSON beside B, and so used by the pipeline, only if on val it is at
least as good as B alone, in accuracy and in AUC.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from models.training.breast_us.data import Labelled, read_busi
from models.training.breast_us.recipe import BreastRecipe, Config, Stage, divide
from models.training.breast_us.triple_files import attach
from models.training.files import write_text
from models.training.recipe import Recipe
from models.training.train import RECIPES, changes_of, configured
from models.training.trainer import train
from models.weights import WeightsError

PLANS: Mapping[str, tuple[Stage, ...]] = {
    "breast_us": ("joint", "fusion"),
    "breast_us_published": ("segmentation", "classification", "fusion"),
}
SMALL_EPOCHS = 12  # of the small C: seven numbers have settled by then


@dataclass(frozen=True)
class Trained:
    """Where the weights lie, and whether C is used with them."""

    weights: Path  # of B
    fused: bool


def train_stages(
    images: list[Labelled], config: Config, plan: Sequence[Stage], out: Path, device: str = "cpu"
) -> Trained:
    """Train every stage of the plan under out/STAGE, going on after a kill. One of them classifies.

    Raises SystemExit when `out` holds stages of another training; WeightsError and ValueError as a training.
    """
    claim(out / "stages.json", {"config": asdict(config), "plan": list(plan), "split": divide(images, config)[1]})
    done: dict[Stage, Path] = {}
    for stage in plan:
        wanted = replace(config, stage=stage, start="", masks="")
        if stage == "classification" and "segmentation" in done:
            wanted = replace(wanted, start=str(done["segmentation"]))
        if stage == "fusion":
            masks = str(done["segmentation"]) if "segmentation" in done else ""
            wanted = replace(wanted, start=str(classifier(done)), masks=masks)
            if config.fusion == "small":
                wanted = replace(wanted, epochs=min(config.epochs, SMALL_EPOCHS), schedule="cosine")
        done[stage] = train(cast(Recipe, BreastRecipe(images, wanted)), out / stage, resume=True, device=device)
    weights, fused = classifier(done), False
    if "segmentation" in done:
        attach(done["segmentation"], weights, "segmentation")
    if "fusion" in done:
        fused = as_good(json.loads(done["fusion"].with_suffix(".json").read_text("utf-8"))["metrics"])
        if fused:
            attach(done["fusion"], weights, "fusion")
    return Trained(weights, fused)


def claim(path: Path, what: Mapping[str, Any]) -> None:
    """Mark a folder as that of this training, or find it marked so. Raises SystemExit when it is of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write(path, what)
        return
    before = json.loads(path.read_text("utf-8"))
    now = json.loads(json.dumps(what))
    if before != now:
        changed = sorted(
            name
            for name in {*before["config"], *now["config"]}
            if before["config"].get(name) != now["config"].get(name)
        )
        raise SystemExit(
            f"{path.parent} holds {path.stem} of another training (different:"
            f" {', '.join(changed) or 'images or stages'}); give another --out, or the same settings to go on"
        )


def write(path: Path, document: Mapping[str, Any]) -> None:
    """A document as JSON, whole or not at all."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def classifier(done: Mapping[Stage, Path]) -> Path:
    """B, or A and B as one."""
    for stage in ("joint", "classification"):
        if stage in done:
            return done[stage]
    raise ValueError("the plan has neither stage joint nor stage classification before its end")


def as_good(metrics: Mapping[str, float]) -> bool:
    """Whether C, by the figures beside its weights, is at least as good as B alone on val."""
    return all(metrics[f"val_{name}"] >= metrics[f"val_alone_{name}"] for name in ("accuracy", "auc"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.breast_us.stages", description="Train A, B and C.")
    parser.add_argument("system", choices=sorted(PLANS))
    parser.add_argument("--data", type=Path, required=True, help="the images, as models.training.train reads them")
    parser.add_argument("--out", type=Path, required=True, help="a folder; each stage has one of its own in it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter of all stages"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)

    torch.set_num_threads(given.threads)
    base = import_module(RECIPES[given.system]).Config()
    try:
        config = configured(base, changes_of(given.set))
        assert isinstance(config, Config)
        trained = train_stages(read_busi(given.data), config, PLANS[given.system], given.out, given.device)
    except (ValueError, WeightsError, FloatingPointError) as error:
        raise SystemExit(str(error)) from error
    print(trained.weights, "with fusion" if trained.fused else "without fusion: on val it was not as good as B alone")


if __name__ == "__main__":
    main(sys.argv[1:])
