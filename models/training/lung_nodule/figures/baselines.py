"""NoduleNet's detection beside its baselines, each trained from nothing under one budget on the same crops.

    python -m models.training.lung_nodule.figures.baselines --set FOLDER --marks runs/marks --out docs/results \\
        --weights runs/nodulenet/nodulenet_w12.safetensors --weights runs/retinanet/nodule_retinanet_w16.safetensors \\
        --weights runs/unet/nodule_unet_w16.safetensors

FROC on whole scans by LUNA16's rule. A network may have several rules that turn its answers into marks; val chooses
one, and the certainty for each rate of false positives. On the test split it is a look. Marks are kept in --marks, by
the weights' digest, so that a run that was stopped goes on. Writes lung_baselines.json and .md into --out.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import track

from models import weights
from models.lung_nodule.nodulenet.detect import DetectOptions, detect, network
from models.lung_nodule.nodulenet.preprocess import PREPROCESSING
from models.nets.nodulenet import RCNN, NoduleNet
from models.training.evaluation.metrics import rounded
from models.training.evaluation.provenance import write_figures
from models.training.evaluation.tables import cell, sheet
from models.training.files import write_text
from models.training.lung_nodule.baselines.recipe import NETWORKS, Baseline, search
from models.training.lung_nodule.data.scans import Scan, Scans
from models.training.lung_nodule.figures.detectors import rates, working_point
from models.training.lung_nodule.nodulenet.evaluate import Mark, curve, without_voxels
from models.weights import Weights

NAMES = {"retinanet": "RetinaNet (MONAI)", "unet": "U-Net (MONAI)"}
NODULENET = "NoduleNet"
ALIKE = ("crop", "batch", "crops", "epochs", "background_fraction", "degrade_prob", "lr", "amp", "seed", "val_scans")
WORKING = (1, 2, 4)  # false positives per chest

Marks = list[list[Mark]]  # of each scan


@dataclass(frozen=True, eq=False)
class System:
    """One training's weights, and how they mark a scan: by the rule that makes marks of the network's answers."""

    name: str
    loaded: Weights
    mark: Callable[[Scan], dict[str, list[Mark]]]
    log: Path

    @classmethod
    def of(cls, path: Path, split_sha256: str) -> System:
        """Raises WeightsError for weights that are spoilt or learnt on another split."""
        loaded = weights.load(path, PREPROCESSING, split_sha256)
        config = loaded.about["config"]
        if "network" not in config:
            net = network(loaded)
            return cls(NODULENET, loaded, lambda scan: nodulenet_marks(net, scan), path.with_name("log.csv"))
        baseline = cast(Baseline, loaded.into(NETWORKS[config["network"]](config["width"])))
        return cls(NAMES[config["network"]], loaded, lambda scan: search(baseline, scan), path.with_name("log.csv"))


def nodulenet_marks(net: NoduleNet, scan: Scan) -> dict[str, list[Mark]]:
    """By the mean of both heads, as served, and by the RCNN head alone; with one view of each closer look."""
    both = detect(net, scan.hu, scan.lungs, options=DetectOptions(stage=RCNN))
    return {
        "mean of both heads": [Mark(one.centre_zyx, one.score) for one in both],
        "RCNN head": [Mark(one.centre_zyx, one.rcnn or 0.0) for one in both],
    }


def marked(system: System, scans: Scans, split: str, kept: Path) -> tuple[dict[str, Marks], float]:
    """Marks by rule on each scan of a split, and the processor's seconds a scan; made once and kept as a file."""
    path = kept / f"{system.loaded.sha256[:16]}-{scans.digest[:16]}-{split}.json"
    if not path.is_file():
        found: dict[str, Marks] = {}
        began = time.process_time()
        for name in track(scans.split[split], f"{system.name}, {split}"):
            for rule, marks in system.mark(scans.load(name)).items():
                found.setdefault(rule, []).append(marks)
        seconds = (time.process_time() - began) / len(scans.split[split])
        listed = {rule: [[asdict(one) for one in each] for each in marks] for rule, marks in found.items()}
        kept.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"seconds": seconds, "marks": listed}))
    read = json.loads(path.read_text("utf-8"))
    return {
        rule: [[Mark(tuple(one["centre_zyx"]), one["score"]) for one in each] for each in marks]
        for rule, marks in read["marks"].items()
    }, read["seconds"]


def judged(system: System, scans: Scans, truth: Mapping[str, Sequence[Scan]], kept: Path) -> dict[str, Any]:
    """What is told of one system, as JSON: the rule that val chose, its curve on the test, and what it cost."""
    on_val, _ = marked(system, scans, "val", kept)
    val = {rule: curve(marks, truth["val"], rounds=1) for rule, marks in on_val.items()}
    rule = max(val, key=lambda one: val[one].cpm.value)
    on_test, seconds = marked(system, scans, "test", kept)
    with system.log.open(encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    return {
        "rule": rule,
        "froc": rounded(curve(on_test[rule], truth["test"]).figures()),
        "strict": rounded(curve(on_test[rule], truth["test"], strict=True).figures()),
        "val": {name: round(one.cpm.value, 4) for name, one in val.items()},
        "working_points": [round(working_point(val[rule], rate), 3) for rate in WORKING],
        "parameters": system.loaded.about["parameters"],
        "epoch": system.loaded.about["epoch"],
        "epochs": len(epochs),
        "seconds_a_scan": round(seconds, 2),
        "training_minutes": round(sum(float(one["seconds"]) for one in epochs) / 60, 1),
        "trained_at": system.loaded.about["git_sha"],
    }


def budget(systems: Sequence[System]) -> dict[str, Any]:
    """The settings that all trainings share. Raises ValueError when they differ in one."""
    said = [{name: one.loaded.about["config"][name] for name in ALIKE} for one in systems]
    for name in ALIKE:
        if len({each[name] for each in said}) > 1:
            raise ValueError(f"{name} is not the same in all trainings: {[each[name] for each in said]}")
    return said[0]


def page(made: Mapping[str, Any]) -> str:
    """The Markdown of what was measured."""
    kind, shared = "semi-synthetic" if made["semi_synthetic"] else "real", made["budget"]
    systems: Mapping[str, Mapping[str, Any]] = made["systems"]
    rows = [
        [
            name,
            one["rule"],
            f"{one['parameters']:,}".replace(",", " "),
            f"{one['epoch']} of {one['epochs']}",
            f"{one['training_minutes']:.0f}",
            f"{1000 * one['seconds_a_scan']:.0f}",
            f"{one['val'][one['rule']]:.3f}",
            cell(one["froc"]["CPM"], ".3f"),
            cell(one["strict"]["CPM"], ".3f"),
        ]
        for name, one in systems.items()
    ]
    parts = [
        "# NoduleNet's detection beside two baselines under one budget",
        f"Each was trained from nothing on the same {shared['crops'] * shared['epochs']} crops of {shared['crop']}"
        f" voxels ({shared['epochs']} epochs of {shared['crops']}, batches of {shared['batch']}, peak rate"
        f" {shared['lr']:g}), one seed: what chance does to a training is not in the intervals. The epoch was chosen on"
        f" {shared['val_scans']} scans of val, the rule of marks on all of it. None of these weights is served or"
        " shipped. NoduleNet looks a second time, closer, at what its first look marks; the baselines look once.",
        f"{made['scans']} {kind} scans of the test split, {made['lesions']} {kind} nodules; rule and rates of LUNA16,"
        " false positives per whole chest; 95 % intervals by 1000 bootstraps over scans. In the last column marks on"
        " the backgrounds' own opacities count as mistakes. Minutes are of the wall, on cores that other work used,"
        " too, with the look at val after each epoch; milliseconds are of one processor thread and include reading the"
        " scan.",
        sheet(
            [
                "",
                "marks",
                "parameters",
                "epoch",
                "minutes of training",
                "ms a scan",
                f"CPM, val ({kind})",
                f"CPM ({kind})",
                "strictly",
            ],
            rows,
        ),
        rates({name: one["froc"] for name, one in systems.items()}, kind),
        f"Each rule of marks, CPM on val ({kind}):",
        sheet(
            ["", "marks", "CPM, val"],
            [
                [name, rule, f"{value:.3f}"]
                for name, one in systems.items()
                for rule, value in sorted(one["val"].items(), key=lambda each: -each[1])
            ],
        ),
        f"Least certainty with at most 1, 2 and 4 false positives per chest on val ({kind}):",
        sheet(["", *map(str, WORKING)], [[name, *map(str, one["working_points"])] for name, one in systems.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of whole scans")
    parser.add_argument("--weights", type=Path, action="append", required=True, help="of one training; repeat it")
    parser.add_argument("--marks", type=Path, required=True, help="folder that keeps what was marked")
    parser.add_argument("--val-only", action="store_true", help="mark the scans of val, write nothing: no look")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scans = Scans(given.set)
    systems = [System.of(path, scans.split_sha256) for path in given.weights]
    if given.val_only:
        for system in systems:
            marked(system, scans, "val", given.marks)
        return
    truth = {part: [without_voxels(scans.load(name)) for name in scans.split[part]] for part in ("val", "test")}
    made = {
        "semi_synthetic": scans.semi_synthetic,
        "split_sha256": scans.split_sha256,
        "scans": len(truth["test"]),
        "lesions": sum(len(scan.lesions) for scan in truth["test"]),
        "budget": budget(systems),
        "systems": {system.name: judged(system, scans, truth, given.marks) for system in systems},
    }
    digests = {f"{system.loaded.name}, not shipped": system.loaded.sha256 for system in systems}
    write_figures(given.out / "lung_baselines.json", made, digests, {"scans": scans.digest})
    write_text(given.out / "lung_baselines.md", page(made))
    print(page(made))


if __name__ == "__main__":
    main()
