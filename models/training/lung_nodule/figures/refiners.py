"""Model 1 and Model 2 of the residual U-Net's source side by side, as the refinement serves them.

    python -m models.training.lung_nodule.figures.refiners --data lidc_slices_128.zip
    python -m models.training.lung_nodule.figures.refiners --data lidc_slices_128.zip --split val --weights NAME=FILE

Parameters, MB of the file, processor time of a crop on one thread (networks take turns, the least of ROUNDS), figures
by the source's rule on crops of the split's patients, and how they differ from Model 2's on the same crops, with 95 %
intervals by 1000 bootstraps over patients. --weights adds rows, such as a network that was trained from nothing like
the other one. On the test split it is a look. Writes lung_refiners.json and .md into --out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import weights
from models.lung_nodule.pipeline import REFINERS
from models.lung_nodule.sliding_unet import BATCH, ServedUNet
from models.nets.baselines import build_net
from models.runtime import Runtime
from models.training.evaluation.metrics import Interval, dice, interval, iou, rounded
from models.training.evaluation.provenance import digests, write_figures
from models.training.evaluation.tables import cell, sheet
from models.training.files import write_text
from models.training.lung_nodule.residual_unet.evaluate import Looked, load_ensemble, look, slices_for
from models.training.lung_nodule.residual_unet.slice_outcomes import correct, outcomes

ROUNDS = 7
BASE = "model-2"
SHOWN = ("IoU, all slices", "accuracy", "Dice, nodule slices", "left empty")


def by_slice(looked: Looked) -> dict[str, np.ndarray]:
    """Name of a figure -> its value in each slice that it is of, NaN in the others; float (n)."""
    pairs = list(zip(looked.predicted, looked.truth, strict=True))
    has = looked.truth.any(axis=(1, 2))
    empty = ~looked.predicted.any(axis=(1, 2))
    return {
        "IoU, all slices": np.array([iou(p, t) for p, t in pairs]),
        "accuracy": correct(outcomes(looked.predicted, looked.truth)).astype(float),
        "Dice, nodule slices": np.where(has, [dice(p, t) for p, t in pairs], np.nan),
        "left empty": np.where(has, np.nan, empty.astype(float)),
    }


def mean(values: np.ndarray, patients: Sequence[str]) -> Interval:
    """Of the slices that have a value, with its interval over patients."""
    there = np.flatnonzero(~np.isnan(values)).tolist()
    return interval(values[there], [patients[i] for i in there])


def compared(looks: Mapping[str, Looked]) -> dict[str, dict[str, Any]]:
    """Of each network its figures, and of the others how they differ from BASE's on the same slices."""
    values = {name: by_slice(one) for name, one in looks.items()}
    made: dict[str, dict[str, Any]] = {}
    for name, one in looks.items():
        made[name] = {"figures": rounded({what: mean(values[name][what], one.patients) for what in SHOWN})}
        if name != BASE:
            more = {what: mean(values[name][what] - values[BASE][what], one.patients) for what in SHOWN}
            made[name]["more than Model 2"] = rounded(more)
    return made


def costs(paths: Mapping[str, Path], runtime: Runtime) -> dict[str, dict[str, float]]:
    """Parameters, MB of the file, and ms of processor time for a crop in a batch of BATCH."""
    served = {name: ServedUNet.at(str(path), "", runtime, compiled=False) for name, path in paths.items()}
    least = dict.fromkeys(served, np.inf)
    for turn in range(ROUNDS + 1):  # the first one of each allocates
        for name, one in served.items():
            crops = torch.rand(BATCH, 1, one.side, one.side, generator=torch.Generator().manual_seed(turn))
            began = time.process_time()
            one(crops)
            if turn:
                least[name] = min(least[name], (time.process_time() - began) * 1000 / BATCH)
    return {
        name: {
            "parameters": sum(each.numel() for each in build_net(one.loaded.about["config"]).parameters()),
            "MB": round(paths[name].stat().st_size / 1e6, 1),
            "ms": round(least[name], 2),
        }
        for name, one in served.items()
    }


def page(made: Mapping[str, Any]) -> str:
    """The Markdown of what was measured."""
    names = [*made["networks"]]
    rows = [
        ["parameters", *(f"{made['networks'][name]['parameters']:,}".replace(",", " ") for name in names)],
        ["MB as fp16", *(f"{made['networks'][name]['MB']:.1f}" for name in names)],
        ["ms of a crop of 64 x 64, one thread", *(f"{made['networks'][name]['ms']:.2f}" for name in names)],
    ]
    rows += [[what, *(cell(made["networks"][name]["figures"][what], ".3f") for name in names)] for what in SHOWN]
    rows += [
        [
            f"{what}, more than Model 2",
            *(cell(made["networks"][name].get("more than Model 2", {}).get(what), ".3f") for name in names),
        ]
        for what in SHOWN
    ]
    return (
        "\n\n".join(
            [
                "# The refinement's networks: Model 1 (with a ViT) and Model 2 of the source",
                f"LIDC-IDRI, {made['patients']} patients of the {made['split']} split, {made['slices']} slices; 95 %"
                " intervals by 1000 bootstraps over patients. Accuracy is by the source's rule; left empty is the share"
                f" of slices without nodule in which nothing is marked. Served as {made['runtime']}; the time is of the"
                " processor, the least of several turns.",
                sheet(["", *names], rows),
            ]
        )
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the set of crops")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE", help="another row; repeat it for more"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args(arguments)
    shipped = sorted(REFINERS.items(), reverse=True)
    paths: dict[str, Path] = {name: weights.packed("lung_nodule", file) for name, file in shipped}
    paths |= {name: Path(file) for name, file in (one.split("=", 1) for one in given.weights)}
    slices = slices_for([*paths.values()], given.data, None, None)
    looks = {}
    for name, path in paths.items():
        ensemble, crop, centred = load_ensemble([path], "cpu", slices.split_sha256)
        looks[name] = look(slices, given.split, ensemble, crop, centred=centred)
    runtime = Runtime.choose("cpu", threads=1)
    cost = costs(paths, runtime)
    made = {
        "split": given.split,
        "split_sha256": slices.split_sha256,
        "runtime": str(runtime),
        "slices": len(looks[BASE].truth),
        "patients": len(set(looks[BASE].patients)),
        "networks": {name: cost[name] | one for name, one in compared(looks).items()},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "lung_refiners.json"
    digest = {name: weights.load(one).sha256 for name, one in paths.items()}
    write_figures(path, made, digest, digests([given.data]))
    write_text(path.with_suffix(".md"), page(made))
    print(page(made))


if __name__ == "__main__":
    main()
