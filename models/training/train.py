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
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from models.training.recipe import RecipeModule, TrainConfig
from models.training.trainer import train
from models.weights import WeightsError

RECIPES = {
    "ccfam_fpn": "models.training.lung_nodule.ccfam_fpn.recipe",
    "nodulenet": "models.training.lung_nodule.nodulenet.recipe",
    "nodule_baseline": "models.training.lung_nodule.baselines.recipe",
    "residual_unet": "models.training.lung_nodule.residual_unet.recipe",
    "malignancy": "models.training.lung_nodule.malignancy.recipe",
    "lymph_node": "models.training.lymph_node.recipe",
    "breast_us": "models.training.breast_us.recipe",
    "breast_us_hospitals": "models.training.breast_us.two_hospitals",
    "breast_us_published": "models.training.breast_us.published",
}

AnyConfig = TypeVar("AnyConfig", bound=TrainConfig)


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
