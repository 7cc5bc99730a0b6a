"""Cross-validation: k trainings, each judged on the images that it never saw, and the figures of all images pooled.

    python -m models.training.breast_us.cross_validate --data busi.zip --out runs/folds --folds 5
    python -m models.training.breast_us.cross_validate --data busi.zip --out runs/plain \
        --set encoder=plain     # one row of a table

Killed, it goes on: a finished fold is not trained again, a fold begun goes on after its last epoch. Each fold's
temperature is fitted on its own val images and applied to its test images, so that the calibration error "at the
temperature" is of images that neither the network nor the temperature has seen. BUSI has no patient ids: families of
near-duplicates stay in one fold, but two images of one patient may stand in two.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from models.breast_us.pipeline import BreastUltrasound
from models.training.breast_us.calibrate import at, fit
from models.training.breast_us.data import Labelled, read_busi, split_sha256
from models.training.breast_us.evaluate import calibration, judge_one, pooled
from models.training.breast_us.fold_splits import rotation
from models.training.breast_us.judged import Judged
from models.training.breast_us.recipe import Config, Stage
from models.training.breast_us.stages import PLANS, claim, train_stages, write
from models.training.breast_us.worst_cases import worst_cases
from models.training.evaluation.metrics import Interval, rounded
from models.training.evaluation.provenance import NOT_RECORDED, digests, of_trainings
from models.training.evaluation.tables import show
from models.training.files import write_text
from models.training.train import RECIPES, changes_of, configured
from models.weights import WeightsError


def cross_validate(
    data: Path,
    out: Path,
    k: int = 5,
    changes: Mapping[str, str] | None = None,
    device: str = "cpu",
    *,
    system: str = "breast_us",
    plan: Sequence[Stage] | None = None,
) -> dict[str, Interval]:
    """Figure -> value and 95 % interval, over every image of the data; also written to out/figures.json, the ten worst
    cases to out/worst.md. Raises SystemExit when `out` holds folds of another training."""
    images = read_busi(data)
    base = import_module(RECIPES[system]).Config()
    config = configured(base, changes or {})
    assert isinstance(config, Config)
    return validate(images, replace(config, folds=k), plan or PLANS[system], out, device, digests([data]))


def validate(
    images: list[Labelled],
    config: Config,
    plan: Sequence[Stage],
    out: Path,
    device: str = "cpu",
    data: Mapping[str, str] | None = None,
) -> dict[str, Interval]:
    """See cross_validate."""
    splits = [rotation(images, config.folds, fold) for fold in range(config.folds)]
    claim(
        out / "folds.json",
        {"config": asdict(config), "plan": list(plan), "splits": [split_sha256(split) for split in splits]},
    )
    rows: list[Judged] = []
    alone: list[Judged] = []  # the same without C
    tempered: list[np.ndarray] = []
    temperatures: list[float] = []
    fused = 0
    for fold, split in enumerate(splits):
        here = out / f"fold{fold}"
        finished = here / "judged.json"
        if not finished.exists():
            trained = train_stages(images, replace(config, fold=fold), plan, here, device)
            write(finished, judge_fold(images, split, trained.weights, trained.fused, device))
        said = json.loads(finished.read_text("utf-8"))
        own = read_rows(said["images"])
        rows += own
        alone += read_rows(said["alone"]) if said["fused"] else own
        fused += said["fused"]
        temperatures.append(said["temperature"])
        tempered.append(at(np.array([row.shares for row in own]), said["temperature"]))
    figures = pooled(rows)
    labels = np.array([row.label for row in rows])
    figures["expected calibration error, at the temperature"] = calibration(np.concatenate(tempered), labels)
    document = {
        "images": len(rows),
        "folds": config.folds,
        "folds with C": fused,
        "temperatures": temperatures,
        "figures": rounded(figures),
    }
    if fused:
        document["figures without C"] = rounded(pooled(alone))
    document["provenance"] = of_trainings(out, data or NOT_RECORDED)
    write(out / "figures.json", document)
    write_text(out / "worst.md", worst_cases(rows, {image.name: image for image in images}))
    return figures


def read_rows(rows: Sequence[Mapping[str, Any]]) -> list[Judged]:
    return [Judged(**{**row, "shares": tuple(row["shares"])}) for row in rows]


def judge_fold(
    images: Sequence[Labelled], split: Mapping[str, Sequence[str]], weights: Path, fused: bool, device: str
) -> dict[str, Any]:
    """What the pipeline with these weights says of the fold's test images, also without C where there is one, and the
    temperature that val asks for."""
    pipeline = BreastUltrasound(device, weights=[weights])
    by_name = {image.name: image for image in images}
    val, test = ([by_name[name] for name in split[part]] for part in ("val", "test"))
    shares = np.stack([pipeline.look(image.pixels).classes for image in val])
    calibrated = fit(shares, np.array([image.label for image in val]))
    said: dict[str, Any] = {"temperature": calibrated.temperature, "fused": fused, "images": answers(pipeline, test)}
    if fused:
        said["alone"] = answers(BreastUltrasound(device, weights=[weights], fusion=False), test)
    return said


def answers(pipeline: BreastUltrasound, images: Sequence[Labelled]) -> list[dict[str, Any]]:
    return [asdict(judge_one(image.name, image.label, pipeline.look(image.pixels), image.mask)) for image in images]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.training.breast_us.cross_validate", description="Cross-validate."
    )
    parser.add_argument("--system", default="breast_us", choices=sorted(PLANS))
    parser.add_argument("--data", type=Path, required=True, help="the images, as models.training.train reads them")
    parser.add_argument("--out", type=Path, required=True, help="a folder; each fold has one of its own in it")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter")
    parser.add_argument("--plan", help='stages in order, "joint" or "segmentation,classification,fusion"')
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)

    torch.set_num_threads(given.threads)
    plan = cast("list[Stage]", given.plan.split(",")) if given.plan else None
    try:
        figures = cross_validate(
            given.data, given.out, given.folds, changes_of(given.set), given.device, system=given.system, plan=plan
        )
    except (ValueError, WeightsError, FloatingPointError) as error:
        raise SystemExit(str(error)) from error
    show(f"{given.system}, {given.folds} folds, every image tested once", figures)


if __name__ == "__main__":
    main(sys.argv[1:])
