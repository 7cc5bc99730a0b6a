"""Average the weights of two checkpoints of one training: Wortsman 2022 (arXiv:2203.05482), Rame 2022 for the share.

    python -m models.training.soup residual_unet --data x.zip --first a/last.pt --second b/last.pt --share 0.25 \
        --out runs/soup
    python -m models.training.soup breast_us_hospitals --data FOLDER --first start.safetensors \
        --second runs/hospitals/breast_triple_lite0_w16.safetensors --share 0.5 --out runs/soup

Of exported weights, what a training started from and what came of it can be averaged too. Useful when a later phase of
a training gives up some of what an earlier one was good at: between the two lies a line of compromises that costs no
training. The share is chosen on the validation split.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from models.runtime import channels_last, trained_in
from models.training.export import Origin, export
from models.training.recipe import RecipeModule
from models.training.train import RECIPES, configured
from models.training.trainer import changed, half_precision
from models.weights import WeightsError, load


def blended(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """(1 - share)·first + share·second; counters are taken from the second."""
    return {
        name: torch.lerp(t, second[name], share) if t.is_floating_point() else second[name] for name, t in first.items()
    }


def read(path: Path) -> dict[str, Any]:
    """What last.pt holds; exported weights hold less of it, and what they stood on is not compared.

    Raises WeightsError.
    """
    if path.suffix != ".safetensors":
        return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    found = load(path)
    tensors = found.as_float32()
    config = {name: value for name, value in found.about["config"].items() if not stands_on(name)}
    told = {name: found.about[name] for name in ("split_sha256", "preprocessing")}
    origin = asdict(Origin(init={found.sha256: found.name}))
    return {**told, "config": config, "model": tensors, "average": tensors, "epoch": found.about["epoch"] - 1,
            "origin": origin}  # fmt: skip


def stands_on(name: str) -> bool:
    """Is this hyper-parameter a file of weights or masks, or its SHA-256?"""
    return name in ("start", "masks") or name.endswith("_sha256")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.soup", description="Average two checkpoints.")
    parser.add_argument("system", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--first", type=Path, required=True, help="last.pt of a training, or weights it exported")
    parser.add_argument("--second", type=Path, required=True, help="the same of that training later, or of the next")
    parser.add_argument("--share", type=float, required=True, help="of the second, 0..1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width")
    given = parser.parse_args(arguments)

    module = cast(RecipeModule, import_module(RECIPES[given.system]))
    files = (given.first, given.second)
    try:
        states = [read(path) for path in files]
        before = states[1].get("config", {})  # none: a checkpoint from before configs, see --width
        before = {name: value for name, value in before.items() if name != "hard_negatives"}  # a digest, not the file
        config = replace(module.Config(), **before)
        recipe = module.build(given.data, configured(config, {"width": given.width} if given.width else {}))
        model = recipe.model().eval()
        for path, state in zip(files, states, strict=True):
            for change in changed(recipe, model, state, path):
                print(f"{path}: {change}")
    except (ValueError, WeightsError) as error:
        raise SystemExit(str(error)) from error
    model.load_state_dict(blended(states[0]["average"], states[1]["average"], given.share))
    channels_last(model, trained_in("cpu"))
    half = half_precision("cpu", recipe.config.amp)
    with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
        figures = recipe.evaluate(model, "val")
    given.out.mkdir(parents=True, exist_ok=True)
    metrics = {f"val_{name}": value for name, value in figures.items()}
    metrics |= {"soup_share": given.share, "soup_first_epoch": states[0]["epoch"] + 1}
    origin = Origin(**states[1].get("origin", {}))
    origin.init |= states[0].get("origin", {}).get("init", {})
    print(figures, export(recipe, model, metrics, states[1]["epoch"], given.out, origin))


if __name__ == "__main__":
    main(sys.argv[1:])
