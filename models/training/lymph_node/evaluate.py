"""Figures of lymph-node candidates: AUC over candidates, FROC over scans, sensitivity at 3 false positives.

    python -m models.training.lymph_node.evaluate --data FOLDER --region mediastinum --runs runs/nodes

Three-fold cross-validation by patient, each candidate scored by the network that never saw its patient. A node that no
candidate hits counts as missed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from models.training.evaluation.froc import Events
from models.training.evaluation.metrics import Interval, auc, bootstrap, draws, rounded
from models.training.evaluation.provenance import of_trainings
from models.training.evaluation.tables import sheet, show
from models.training.files import write_text
from models.training.lymph_node.recipe import Config
from models.training.lymph_node.sources import Place, Set, read_any
from models.training.lymph_node.tcia import REGIONS, Region
from models.training.recurrent_attention.cross_validate import out_of_fold
from models.training.train import changes_of, configured

AT = (1.0, 3.0, 6.0)  # false positives a scan
SOURCE: dict[str, dict[str, tuple[float, float]]] = {  # AUC, sensitivity at 3 FP, of the source's table
    "CifarNet": {"mediastinum": (0.91, 0.70), "abdomen": (0.81, 0.44)},
    "AlexNet-ImNet": {"mediastinum": (0.89, 0.63), "abdomen": (0.80, 0.41)},
    "AlexNet-RI-H": {"mediastinum": (0.94, 0.79), "abdomen": (0.92, 0.67)},
    "AlexNet-TL-H": {"mediastinum": (0.94, 0.81), "abdomen": (0.92, 0.69)},
    "GoogLeNet-RI-H": {"mediastinum": (0.85, 0.61), "abdomen": (0.80, 0.48)},
    "GoogLeNet-TL-H": {"mediastinum": (0.94, 0.81), "abdomen": (0.92, 0.70)},
    "AlexNet-RI-L": {"mediastinum": (0.94, 0.77), "abdomen": (0.88, 0.61)},
    "GoogLeNet-RI-L": {"mediastinum": (0.95, 0.85), "abdomen": (0.91, 0.69)},
    "LN-STRA": {"mediastinum": (0.95, 0.87), "abdomen": (0.92, 0.82)},
}


def events_of(places: Sequence[Place], scores: np.ndarray, nodes: Mapping[str, int]) -> tuple[Events, list[str]]:
    """Best score of each node that is hit, and each candidate that hits none; and the scans in order."""
    scans = sorted(nodes)
    best: dict[tuple[str, int], float] = {}
    rows: list[tuple[float, int, bool]] = []
    for place, score in zip(places, scores, strict=True):
        if place.node is None:
            rows.append((float(score), scans.index(place.scan), False))
        else:
            key = (place.scan, place.node)
            best[key] = max(best.get(key, -np.inf), float(score))
    rows += [(score, scans.index(scan), True) for (scan, _), score in best.items()]
    rows.sort(key=lambda row: -row[0])
    score, scan, is_hit = (np.array(column) for column in zip(*rows, strict=True))
    counts = np.array([nodes[name] for name in scans])
    return Events(score.astype(float), scan.astype(int), is_hit.astype(bool), counts, np.ones(len(scans))), scans


def figures_of(made: Set, scores: np.ndarray) -> dict[str, Interval]:
    """Each with the 95 % interval over patients (a scan each)."""
    labels, patients = made.candidates.labels, list(made.candidates.patients)
    out = {"AUC over candidates": bootstrap(lambda rows: auc(scores[rows], labels[rows] == 1), patients)}
    events, scans = events_of(made.places, scores, made.nodes)
    everything = events.at(AT, np.ones(len(scans)))
    drawn = np.array(
        [events.at(AT, np.bincount(rows, minlength=len(scans)).astype(float)) for rows in draws(scans, 1000, 2024)]
    )
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    for rate, value, a, b in zip(AT, everything, low, high, strict=True):
        out[f"sensitivity at {rate:g} FP/scan"] = Interval(float(value), float(a), float(b))
    hit = len({(place.scan, place.node) for place in made.places if place.node is not None})
    proposed = hit / sum(made.nodes.values())
    out["nodes that a candidate hits"] = Interval(proposed, proposed, proposed)
    return out


ROWS: dict[str, dict[str, str]] = {
    "recurrent attention": {},
    "the LSTM without attention, 9 slices": {"attention": "none"},
    "the LSTM without attention, 1 slice": {"attention": "none", "slices": "1"},
}


def write_page(out: Path, results: Mapping[str, Any]) -> Path:
    """docs/results/lymph_node.md from lymph_node.json."""
    parts = [
        "# Lymph nodes: recurrent attention beside its source",
        "**No real image of a lymph node was used for any figure of ours.** Ours are semi-synthetic: candidates that"
        " our generator proposes on phantoms of contrast-enhanced CT (vessels, airways, bowel;"
        " `models/phantoms/lymph_nodes.py`), three-fold cross-validation by phantom. The source's are of 176 real"
        " patients (TCIA CT Lymph Nodes) and its candidates. The two cannot be compared: ours show that the network,"
        " its training and its evaluation work.",
    ]
    names = ["AUC over candidates", *(f"sensitivity at {rate:g} FP/scan" for rate in AT)]
    for region in ("mediastinum", "abdomen"):
        if region not in results:
            continue
        about = results[region]
        parts.append(f"## {region.capitalize()}")
        parts.append(
            f"{about['scans']} phantoms, {about['nodes']} nodes, {about['candidates']} candidates,"
            f" {about['positive']} of them positive; a candidate hits {about['proposed']:.0%} of the nodes. 95 %"
            " intervals over phantoms."
        )
        lines = [[name, *(_cell(row["figures"][each]) for each in names)] for name, row in about["rows"].items()]
        parts.append(sheet(["semi-synthetic, ours", *names], lines))
        parts.append(
            sheet(
                ["real patients, the source's Fig. 9", "AUC over candidates", "sensitivity at 3 FP/scan"],
                [[name, f"{row[region][0]:.2f}", f"{row[region][1]:.2f}"] for name, row in SOURCE.items()],
            )
        )
    parts.append(
        "H, L: 256 and 64 pixels; RI: random weights; TL: from ImageNet. What else differs: the source's feature"
        " extractor is Inception-V3 with ImageNet weights, ours a small network that learns from scratch; the source"
        " takes native voxels, ours 1 mm; our trainings are short (see lymph_node.json)."
    )
    path = out / "lymph_node.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _cell(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cross-validate recurrent attention on lymph-node candidates.")
    parser.add_argument("--data", type=Path, required=True, help="what make_phantoms wrote, or TCIA's collection")
    parser.add_argument("--region", choices=sorted(REGIONS.values()), required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    made = read_any(given.data, cast(Region, given.region))
    path = given.out / "lymph_node.json"
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}
    rows = {}
    for number, (name, changes) in enumerate(ROWS.items()):
        config = configured(Config(region=given.region), changes_of(given.set) | changes)
        scores = out_of_fold(
            "lymph_node",
            made.candidates,
            config,
            given.runs / given.region / f"row{number}",
            folds=given.folds,
            digest=made.digest,
            device=given.device,
        )
        figures = figures_of(made, scores)
        show(f"{given.region}, {name}", figures)
        rows[name] = {"figures": rounded(figures), "config": asdict(config)}
    hit = len({(place.scan, place.node) for place in made.places if place.node is not None})
    results[given.region] = {
        "semi_synthetic": made.semi_synthetic,
        "data": made.digest,
        "scans": len(made.nodes),
        "nodes": sum(made.nodes.values()),
        "candidates": len(made.places),
        "positive": int(made.candidates.labels.sum()),
        "proposed": hit / sum(made.nodes.values()),
        "folds": given.folds,
        "rows": rows,
        "provenance": of_trainings(given.runs / given.region, {"candidates": made.digest}),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    if not made.semi_synthetic:  # the page is of phantoms, and says so in every line
        real = given.out / f"lymph_node_real_{given.region}.json"
        write_text(real, json.dumps(results[given.region], indent=1) + "\n")
        print(real)
        return
    write_text(path, json.dumps(results, indent=1) + "\n")
    print(write_page(given.out, results))


if __name__ == "__main__":
    main()
