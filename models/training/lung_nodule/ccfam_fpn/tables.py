"""The source's Tables 3 and 4, and the readings of its equations, row by row and seed by seed under one budget.

    python -m models.training.evaluation.evaluate ccfam_fpn --data slices.zip --table --budget small
    python -m models.training.evaluation.evaluate ccfam_fpn --data slices.zip --table --budget short

The source judges 950 whole slices of patients it may have learnt from, we windows of slices of strangers: rows are to
be compared with each other first, and with the source's second.
"""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.training.evaluation.metrics import Interval, rounded
from models.training.evaluation.tables import Figures, Result, Row, Study, Table
from models.training.files import write_text
from models.training.lung_nodule.ccfam_fpn.average_precision import judge
from models.training.lung_nodule.ccfam_fpn.evaluate import load_detector, seen
from models.training.lung_nodule.ccfam_fpn.recipe import Config, DetectorRecipe
from models.training.lung_nodule.residual_unet.tables import phantom_crops
from models.training.plots import curves, save_grid
from models.training.train import configured
from models.training.trainer import train

FIGURES = {"AP@0.5": ".4f", "AR@[.5:.95]": ".4f", "Jaccard": ".2f", "F1": ".2f"}
SEEDS = 3  # trainings of each row that does not say otherwise
CURVES = {"mAP on val": "ap", "recall on val": "ar"}  # title -> column of a training's log

BUDGETS: Mapping[str, Mapping[str, str]] = {
    # what one core does in about two minutes a training: enough to see a detector learn, not to tell close ones apart
    "small": {
        "width": "16", "depth": "1,1,1,1", "window": "64", "batch": "8", "proposals": "100,50", "samples": "64",
        "rois": "32", "optimiser": "adamw", "lr": "0.002", "epochs": "2", "warm_up_epochs": "0.3",
        "ema_decay": "0.98", "val_crops": "100",
    },
    # a fifth of that in four epochs, so that there is a curve: readings and backbones beside each other
    "short": {
        "width": "16", "depth": "1,1,1,1", "window": "64", "batch": "8", "proposals": "100,50", "samples": "64",
        "rois": "32", "optimiser": "adamw", "lr": "0.002", "epochs": "4", "share": "0.1", "warm_up_epochs": "1",
        "ema_decay": "0.98", "val_crops": "60",
    },
    # the source's ResNet-50, for a GPU; what it does not state is Faster R-CNN's
    "full": {
        "width": "64", "depth": "3,4,6,3", "window": "96", "batch": "8", "optimiser": "sgd", "lr": "0.01",
        "epochs": "36", "weight_decay": "0.0001",
    },
}  # fmt: skip


def stated(ap: float, recall: float, jaccard: float, f1: float) -> dict[str, float]:
    """A line of the source's table."""
    return dict(zip(FIGURES, (ap, recall, jaccard, f1), strict=True))


KINDS = {"plain": "ResNet", "se": "+ SE", "coord": "+ coordinate", "eca": "+ ECA", "cbam": "+ CBAM"}
OURS = {"scse": "ResSCBlock", "ccasm": "CCASM", "ccapm": "CCAPM"}
ALONE = {
    "plain": stated(0.7765, 0.4542, 78.16, 79.72),
    "se": stated(0.7785, 0.4655, 78.59, 80.23),
    "coord": stated(0.7239, 0.4284, 73.87, 75.33),
    "eca": stated(0.7452, 0.4281, 75.27, 77.37),
    "cbam": stated(0.6524, 0.4187, 67.07, 68.36),
    "scse": stated(0.8328, 0.4575, 84.11, 82.02),
    "ccasm": stated(0.8351, 0.4572, 84.67, 85.31),
    "ccapm": stated(0.8421, 0.4599, 85.56, 86.43),
}
PYRAMID = {
    "scse": stated(0.8308, 0.4565, 83.23, 83.87),
    "ccasm": stated(0.8238, 0.4542, 82.39, 83.15),
    "ccapm": stated(0.8468, 0.4632, 84.67, 85.78),
}
BACKBONES = {
    "VGG16": ("vgg16", stated(0.6164, 0.3820, 67.03, 67.92)),
    "ResNet18": ("resnet18", stated(0.7615, 0.4403, 77.23, 77.89)),
    "ResNet50": ("resnet50", stated(0.7915, 0.4522, 79.13, 80.12)),
    "EfficientNet-B0": ("efficientnet-b0", stated(0.7322, 0.4211, 74.18, 75.61)),
    "MobileNetV3-L": ("mobilenet-v3-l", stated(0.6457, 0.3879, 64.78, 65.02)),
}
WITHOUT, WITH = "CCAPM + FPN, without pool_avg", "CCAPM + FPN, with pool_avg"
READINGS = {
    "nothing squeezed: one 1x1, no ReLU": {"squeeze": "false"},
    "the sum of the sigmoids, not halved": {"halved": "false"},
    "F + out: the gate added": {"literal_add": "true"},
    "kernel 3 along rows and columns": {"gate_kernel": "3"},
    "behind each stage, not in each block": {"placement": "stage"},
}
# What a training had before there was a choice: where a row has the same, its settings do not speak of it
FORMER = {
    "encoder": "resnet50", "placement": "block", "gate_kernel": 7, "pool_avg": False, "halved": True, "squeeze": True
}  # fmt: skip


def rows(fpn: bool, paper: Mapping[str, Mapping[str, float]]) -> tuple[Row, ...]:
    """One row for each attention."""
    changes = {"fpn": "true" if fpn else "false", "pool_avg": "false"}
    return tuple(
        Row(name + (" + FPN" if fpn else ""), {"attention": kind, **changes}, paper.get(kind, {}))
        for kind, name in (KINDS | OURS).items()
    )


def readings(of_pair: Mapping[str, str], seeds: Mapping[str, str]) -> tuple[Row, ...]:
    """The pair with and without the pooling, and with it every other reading; how many seeds the two have, and each of
    the others."""
    pair = [Row(name, {"pool_avg": pool, **of_pair}) for name, pool in ((WITHOUT, "false"), (WITH, "true"))]
    return *pair, *(Row(name, {**changes, **seeds}) for name, changes in READINGS.items())


def backbones(seeds: Mapping[str, str]) -> tuple[Row, ...]:
    """Table 4 but for CCAPM, which stands among the readings."""
    plain = [
        Row(name, {"encoder": encoder, "attention": "plain", "pool_avg": "false", **seeds}, paper)
        for name, (encoder, paper) in BACKBONES.items()
    ]
    gated = {"ResSCBlock + FPN": "scse", "CCASM + FPN": "ccasm"}
    return *plain, *(
        Row(name, {"attention": kind, "pool_avg": "false", **seeds}, PYRAMID[kind]) for name, kind in gated.items()
    )


def pooled(figures: Mapping[str, Figures]) -> str:
    """What the pooling of equation 13 does, by the means over the seeds and whether their ranges overlap."""
    if WITHOUT not in figures or WITH not in figures:
        return "Whether pool_avg helps here: the pair was not run."
    said = []
    for figure, form in FIGURES.items():
        without, with_it = figures[WITHOUT][figure], figures[WITH][figure]
        apart = max(without["low"], with_it["low"]) > min(without["high"], with_it["high"])
        said.append(
            f"{figure} {with_it['value']:{form}} with, {without['value']:{form}} without"
            f" (the seeds' ranges {'do not overlap' if apart else 'overlap'})"
        )
    return f"**pool_avg**: {'; '.join(said)}."


def wins(figures: Mapping[str, Figures]) -> str:
    """Whether CCAPM wins, from the rows that were made: by the means over the seeds, and whether the seeds agree."""
    ours = next((name for name in figures if name.startswith(OURS["ccapm"])), None)
    others = [name for name in figures if name != ours]
    if ours is None or not others:
        return "Whether CCAPM wins here: too few rows were run to say."
    said, won = [], 0
    for figure, form in FIGURES.items():
        best = max(others, key=lambda name: figures[name][figure]["value"])
        mine, theirs = figures[ours][figure], figures[best][figure]
        better = mine["value"] > theirs["value"]
        won += better
        apart = max(mine["low"], theirs["low"]) > min(mine["high"], theirs["high"])
        said.append(
            f"{figure} {mine['value']:{form}} against {theirs['value']:{form}} of {best}"
            f" ({'higher' if better else 'not higher'}, the seeds' ranges {'do not overlap' if apart else 'overlap'})"
        )
    verdict = {len(FIGURES): "CCAPM wins here by every figure", 0: "CCAPM does not win here by any figure"}
    head = verdict.get(won, f"CCAPM wins here by {won} of {len(FIGURES)} figures")
    return f"**{head}**, against the best of the {len(others)} other rows that were run: {'; '.join(said)}."


WITHOUT_POOLING = "CCAPM is without the average pooling of equation 13 here: its readings stand in tables of their own."
SOURCE = (
    Table(
        "ResNet with each attention",
        rows(False, ALONE),
        "Without pyramid the heads stand on C5, whose last stage is dilated instead of strided (stride 16). The source"
        f" does not define its ResSCBlock; it is read as scSE. {WITHOUT_POOLING}",
        wins,
    ),
    Table(
        "The same with the pyramid",
        rows(True, PYRAMID),
        "The source calls its CCAPM best everywhere; by its own figures SE has the best recall without pyramid, and"
        f" with it CCASM falls below ResSCBlock. {WITHOUT_POOLING}",
        wins,
    ),
)


def choices(budget: str) -> tuple[Table, ...]:
    """The readings and Table 4; short: with one seed but for the pair that is asked about."""
    short = budget == "short"
    of_pair, seeds = ({"seeds": "2"}, {"seeds": "1"}) if short else ({}, {})
    one = " The first two rows have two seeds, the others one: their brackets hold no range." if short else ""
    return (
        Table(
            "Readings of CCAPM",
            readings(of_pair, seeds),
            "All with the pyramid; each row below the second differs from the second in what its name says. The source"
            f" prints one figure for CCAPM + FPN: AP .8468, AR .4632, Jaccard 84.67, F1 85.78.{one}",
            pooled,
        ),
        Table(
            "Table 4: backbones",
            backbones(seeds),
            "All with the pyramid, although the source names it with CCASM and CCAPM alone: so that rows differ in"
            " their backbone. Width and depth of each are scaled as ResNet-50's, nothing is pretrained. Its ResSCBlock"
            f" is read as scSE in every block. CCAPM + FPN stands in the table above."
            f"{' One seed each.' if short else ''}",
        ),
    )


TABLES = {"small": (*SOURCE, *choices("small")), "full": (*SOURCE, *choices("full")), "short": choices("short")}


class DetectorStudy:
    """See models.training.evaluation.tables.Study."""

    figures: Mapping[str, str] = FIGURES

    def __init__(self, data: Path, budget: str, changes: Mapping[str, str], device: str) -> None:
        self.device = device
        short = budget == "short"
        self.name = "ccfam_fpn_short" if short else "ccfam_fpn"
        self.title = "CCFAM-FPN: readings of its equations, backbones" if short else "CCFAM-FPN: the source's tables"
        self.tables: Sequence[Table] = TABLES[budget]
        self.changes = {**BUDGETS[budget], **changes}
        if "chests" in self.changes:
            raise ValueError("the table compares detectors on crops: leave out chests")
        self.first = DetectorRecipe(data, configured(Config(), self.changes))
        said = ", ".join(f"{name} {value}" for name, value in self.changes.items())
        crops = {split: len(self.first.slices.index[split]) for split in ("train", "val", "test")}
        side = self.changes["window"]
        self.about = (
            f"Budget `{budget}`, the same for every row: {said}. Each row is trained from nothing, with {SEEDS} seeds"
            " where nothing else is said:"
            " its figures are the mean, in brackets the least and the greatest of the seeds; the 95 % intervals of each"
            " seed, by 1000 bootstraps over patients, are in the JSON. Slices with a nodule:"
            f" {crops['train']} to learn from, {crops['val']} to choose the epoch and the working score by,"
            f" {crops['test']} to judge; the test has slices without nodule too, all of patients the network has not"
            f" seen (split `{self.first.split_sha256[:12]}`). Images are windows of {side} x {side} pixels of stored"
            " crops of 128 x 128 with the nodule anywhere in them, not whole slices of 512 x 512 as in the source:"
            " there is less to be mistaken for a nodule. AP and AR as in COCO with one class; F1 counts boxes at IoU"
            " 0.5, Jaccard is the overlap of the areas of found and true boxes, both above the score of most F1 on val,"
            " in percent; the source does not say how it makes the two. A row that is not run yet was left for lack of"
            " time: the command trains it."
        )

    def config(self, row: Row) -> Config:
        changes = {**self.changes, **row.changes}
        changes.pop("seeds", None)
        return configured(Config(), changes)

    def settings(self, row: Row) -> Mapping[str, Any]:
        known = {"split_sha256": self.first.split_sha256, "preprocessing": self.first.preprocessing}
        config = asdict(self.config(row))
        del config["cache"]  # where the crops of whole scans lie on this machine
        del config["chests"], config["chest_share"]  # none, see __init__
        config = {name: value for name, value in config.items() if FORMER.get(name, ...) != value}
        return {"config": config, "seeds": seeds_of(row), "judged_by": 1, **known}

    def result(self, row: Row, folder: Path) -> Result:
        config = self.config(row)
        seeds = [config.seed + number for number in range(seeds_of(row))]
        each = [self.trained(replace(config, seed=seed), folder / f"seed{seed}") for seed in seeds]
        figures = {name: spread([one["figures"][name]["value"] for one in each]) for name in FIGURES}
        facts = {"parameters": each[0]["parameters"], "seeds": [one["figures"] for one in each]}
        return Result(figures, facts | {"by epoch": by_epoch(folder)})

    def trained(self, config: Config, folder: Path) -> dict[str, Any]:
        """Figures with their intervals, and the parameters, of one seed; what is there is neither trained nor judged
        again."""
        path = folder / "figures.json"
        if not path.exists():
            recipe = copy.copy(self.first)  # the data are read once
            recipe.configure(config)
            recipe.name = "row"
            detector = load_detector(
                train(recipe, folder, resume=True, device=self.device), self.device, recipe.split_sha256
            )
            judged = judge(*seen(detector, recipe.slices, "test"), detector.working_score)
            parameters = sum(weights.numel() for weights in detector.net.parameters())
            made = {"figures": rounded(judged, 5), "parameters": parameters}
            write_text(path, json.dumps(made, indent=1) + "\n")
        return json.loads(path.read_text("utf-8"))

    def illustrate(self, folders: Mapping[str, Path], out: Path) -> Sequence[Path]:
        """Nodules of a phantom: image, truth and the box of every row's first seed, filled in by its certainty."""
        side = int(self.changes["window"])
        found = {name: sorted(folder.glob("seed*/row.safetensors")) for name, folder in folders.items()}
        nets = {
            name: load_detector(paths[0], self.device, self.first.split_sha256).net
            for name, paths in found.items()
            if paths
        }
        lines = []
        for image, truth in phantom_crops(side):
            line = [image, truth]
            for net in nets.values():
                batch = torch.from_numpy(image)[None, None].expand(1, net.config.slices, -1, -1)
                (seen,) = net(batch.to(next(net.parameters()).device))
                drawn = np.zeros(image.shape, np.float32)
                for box, score in reversed([*zip(seen.boxes.tolist(), seen.scores.tolist(), strict=True)]):
                    top, left, bottom, right = (round(edge) for edge in box)
                    drawn[top:bottom, left:right] = score
                line.append(drawn)
            lines.append(line)
        path = out / f"{self.name}_phantoms.png"
        save_grid(path, ["phantom", "truth", *nets], lines)
        logs = {name: by_epoch(folder) for name, folder in folders.items()}
        panels = {title: {name: log[column] for name, log in logs.items() if log} for title, column in CURVES.items()}
        write_text(out / f"{self.name}_epochs.svg", curves(panels))
        return [path, out / f"{self.name}_epochs.svg"]


def seeds_of(row: Row) -> int:
    return int(row.changes.get("seeds", SEEDS))


def by_epoch(folder: Path) -> dict[str, list[float]]:
    """AP and AR on val after each epoch, the mean over the seeds trained in the folder."""
    logs = [[*csv.DictReader(path.read_text("utf-8").splitlines())] for path in sorted(folder.glob("seed*/log.csv"))]
    if not logs:
        return {}
    return {
        column: [round(float(np.mean([float(row[column]) for row in epoch])), 5) for epoch in zip(*logs, strict=False)]
        for column in CURVES.values()
    }


def spread(values: Sequence[float]) -> Interval:
    """The mean, with the least and the greatest."""
    return Interval(float(np.mean(values)), min(values), max(values))


def study(data: Path, budget: str, changes: Mapping[str, str], device: str) -> Study:
    return DetectorStudy(data, budget, changes, device)
