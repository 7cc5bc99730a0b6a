"""Five folds by patient and three seeds of every row, each nodule judged by networks that never saw its patient.

    python -m models.training.lung_nodule.malignancy.study --data lidc_voi3d.zip --runs runs/malignancy

Rows: recurrent attention; the same LSTM without attention on nine slices and on one; a 3-D ResNet-18 with as many
parameters and epochs; recurrent attention that learns the rating; and the diameter alone, which learns nothing. Writes
docs/results/malignancy.json, with every score, and malignancy.md. Killed, it goes on. What the rows are compared on
are the same draws of patients (paired bootstrap).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.training.evaluation.metrics import Interval, auc, bootstrap
from models.training.evaluation.provenance import digests, of_trainings
from models.training.evaluation.tables import sheet
from models.training.files import write_text
from models.training.lung_nodule.malignancy.calibration import decisions, fit_logistic, logistic
from models.training.lung_nodule.malignancy.data import read_nodules
from models.training.lung_nodule.malignancy.recipe import Config
from models.training.recurrent_attention.candidates import NEITHER
from models.training.recurrent_attention.cross_validate import fold_parts, seeds_of
from models.training.train import changes_of, configured

FOLDS, SEEDS = 5, (1, 2, 3)
GOAL_AUC = 0.92
DIAMETER = "diameter alone"
BOTH = "recurrent attention and the diameter"
ROWS: dict[str, dict[str, str]] = {
    "recurrent attention": {},
    "recurrent attention, rating": {"rating": "true", "epochs": "6"},  # of twice as many nodules: as many steps
    "the LSTM without attention, 9 slices": {"attention": "none"},
    "the LSTM without attention, 1 slice": {"attention": "none", "slices": "1"},
    "3-D ResNet-18": {"network": "resnet18", "amp": "false"},  # bfloat16 of 3-D convolutions is not to be trusted
}
ABOUT = """\
**Radiologist-rated suspicion, not histology.** {nodules} nodules of {patients} patients of LIDC-IDRI (Armato 2011,
TCIA, CC BY 3.0), rated 1 to 5 by up to four radiologists; above 3 is suspicious ({positive}), below 3 is not
({negative}), {neither} of rating 3 are in neither class (only the row "rating" learns from them). The table of the
volumes holds a whole number for each nodule, not the mean of the readers itself.

Five folds by patient, three seeds; each nodule is scored by networks that never saw its patient, as served (the mean
over eight mirrored views). AUC: the mean of the seeds' figures with its 95 % interval over patients (1000 draws).
The differences to recurrent attention are of the same draws. "Seeds together", and all
that follows it: of the mean of the three networks' answers. The settings were tried on folds of these patients."""


def difference(one: np.ndarray, other: np.ndarray, labels: np.ndarray, patients: Sequence[str]) -> Interval:
    """AUC of `one` less that of `other`, means over seeds (seeds, n), paired."""

    def figure(rows: np.ndarray) -> float:
        return mean_auc(one, labels, rows) - mean_auc(other, labels, rows)

    return bootstrap(figure, patients)


def mean_auc(scores: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> float:
    return float(np.mean([auc(each[rows], labels[rows] == 1) for each in scores]))


def calibrated(scores: np.ndarray, labels: np.ndarray, folds: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) -> probabilities (n,): the logistic of each fold is fitted on the other folds."""
    out = np.zeros(len(scores))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(scores)), fold)
        out[fold] = logistic(scores[fold], fit_logistic(scores[rest], labels[rest]))
    return out


def with_diameter(
    scores: np.ndarray, diameters_mm: np.ndarray, labels: np.ndarray, folds: Sequence[np.ndarray]
) -> np.ndarray:
    """(seeds, n) and (n,) -> probabilities (seeds, n): a logistic of both, of each fold fitted on the other folds."""
    out = np.zeros_like(scores)
    for row, each in zip(out, scores, strict=True):
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(each)), fold)
            fitted = fit_logistic(each[rest], labels[rest], np.log(diameters_mm[rest]))
            row[fold] = logistic(each[fold], fitted, np.log(diameters_mm[fold]))
    return out


def figures_of(
    scores: np.ndarray, labels: np.ndarray, patients: Sequence[str], folds: Sequence[np.ndarray]
) -> dict[str, Interval]:
    """Of (seeds, n) scores of nodules that are in a class."""
    together = scores.mean(axis=0)
    chance = calibrated(together, labels, folds)
    truth = labels == 1
    return {
        "AUC": bootstrap(lambda rows: mean_auc(scores, labels, rows), patients),
        "AUC, seeds together": bootstrap(lambda rows: auc(together[rows], truth[rows]), patients),
        **decisions(chance, truth, patients),
    }


def study(data: Path, runs: Path, changes: Mapping[str, str], device: str, rows: Sequence[str]) -> dict[str, Any]:
    """Train what is missing of the rows, and judge all of them."""
    candidates, rated = read_nodules(data)
    names = [row.name for row in rated]
    told = json.dumps([asdict(row) for row in rated]) + candidates.config.preprocessing
    digest = hashlib.sha256(told.encode() + candidates.patches.tobytes()).hexdigest()
    kept = np.flatnonzero(candidates.labels != NEITHER)
    labels, patients = candidates.labels[kept], [candidates.patients[i] for i in kept.tolist()]
    parts = [set(fold_parts(candidates, FOLDS, fold)["test"]) for fold in range(FOLDS)]
    folds = [np.array([i for i, patient in enumerate(patients) if patient in part]) for part in parts]
    scores: dict[str, np.ndarray] = {DIAMETER: np.array([[rated[i].diameter_mm for i in kept]])}
    configs: dict[str, Any] = {}
    for name in rows:
        config = configured(Config(), {**changes, **ROWS[name]})
        configs[name] = asdict(config)
        here = runs / hashlib.sha256(name.encode()).hexdigest()[:8]
        every = seeds_of("malignancy", candidates, config, here, SEEDS, folds=FOLDS, digest=digest, device=device)
        scores[name] = np.round(every[:, kept], 5)  # as the file holds them: every figure can be made from it again
    first = next(iter(ROWS))
    if first in scores:
        scores[BOTH] = np.round(with_diameter(scores[first], scores[DIAMETER][0], labels, folds), 5)
    told_rows = {}
    for name, said in scores.items():
        figures = figures_of(said, labels, patients, folds)
        if name != first and first in scores:
            figures["AUC, recurrent attention less this"] = difference(scores[first], said, labels, patients)
        if name == BOTH:
            figures["AUC, this less diameter alone"] = difference(said, scores[DIAMETER], labels, patients)
        told_rows[name] = {
            "figures": {key: one.rounded(4) for key, one in figures.items()},
            "auc_of_each_seed": [round(auc(each, labels == 1), 4) for each in said],
            "auc_of_each_fold": [round(auc(said.mean(axis=0)[fold], labels[fold] == 1), 4) for fold in folds],
            "scores": said.tolist(),
            "config": configs.get(name, {}),
        }
    return {
        "data": digest,
        "torch": torch.__version__,
        "folds": FOLDS,
        "seeds": list(SEEDS),
        "patches": candidates.config.preprocessing,
        "nodules": [names[i] for i in kept],
        "labels": labels.tolist(),
        "counts": {
            "nodules": len(candidates),
            "patients": len(set(candidates.patients)),
            "positive": int((labels == 1).sum()),
            "negative": int((labels == 0).sum()),
            "neither": int((candidates.labels == NEITHER).sum()),
        },
        "rows": told_rows,
    }


def page(results: Mapping[str, Any]) -> str:
    """malignancy.md of malignancy.json."""
    columns = [
        "AUC",
        "AUC, recurrent attention less this",
        "AUC, this less diameter alone",
        "AUC, seeds together",
        "accuracy",
        "sensitivity",
        "specificity",
        "calibration error",
    ]
    lines = []
    for name, row in sorted(results["rows"].items(), key=lambda pair: -pair[1]["figures"]["AUC"]["value"]):
        each = ", ".join(f"{value:.3f}" for value in row["auc_of_each_seed"])
        lines.append([name, *(_cell(row["figures"].get(column)) for column in columns), each])
    parts = [
        "# How suspicious radiologists find a nodule: recurrent attention on LIDC-IDRI",
        verdict(results),
        ABOUT.format(**results["counts"]),
        sheet(["", *columns, "AUC of each seed"], lines),
        "Accuracy, sensitivity and specificity are at a probability of 0.5, after a logistic that was fitted on the"
        " other folds; the calibration error (ten bins) is of those probabilities. The diameter is the readers' own, of"
        " the same outlines that the nodule was cut by.",
        "Made by `python -m models.training.lung_nodule.malignancy.study`; every score is in malignancy.json.",
    ]
    return "\n\n".join(parts) + "\n"


def verdict(results: Mapping[str, Any]) -> str:
    """What follows, in words: against the goal, and against each other row."""
    rows = results["rows"]
    first = next(iter(ROWS))
    if first not in rows:
        return f"Without {first} nothing is compared."
    own = rows[first]["figures"]["AUC"]
    reached = "reached" if own["value"] >= GOAL_AUC else "not reached"
    words = [f"Recurrent attention: AUC {_cell(own)}; the goal of {GOAL_AUC} is {reached}."]
    for name, row in rows.items():
        if name != first:
            gap = row["figures"]["AUC, recurrent attention less this"]
            if gap["low"] > 0:
                words.append(f"It is better than {name} by {_cell(gap)}.")
            elif gap["high"] < 0:
                words.append(f"It is worse than {name}: {_cell(gap)}.")
            else:
                words.append(f"No difference to {name} is shown: {_cell(gap)}.")
    return " ".join(words)


def _cell(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return ""
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cross-validate the networks that rate suspicion.")
    parser.add_argument("--data", type=Path, required=True, help="the zip of nodule volumes with metadata.xlsx")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--rows", default=",".join(ROWS), help="of the table, with commas between; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of every row")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    names = split_names(given.rows)
    results = study(given.data, given.runs, changes_of(given.set), given.device, names)
    given.out.mkdir(parents=True, exist_ok=True)
    said = of_trainings(given.runs, digests([given.data]))
    write_text(given.out / "malignancy.json", json.dumps({**results, "provenance": said}) + "\n")
    write_text(given.out / "malignancy.md", page(results))
    print(given.out / "malignancy.md")


def split_names(text: str) -> list[str]:
    """Names of rows in a list with commas, some of which have commas in them. Raises SystemExit for one unknown."""
    left, found = text, []
    while left:
        name = next((name for name in sorted(ROWS, key=len, reverse=True) if left.startswith(name)), None)
        if name is None:
            raise SystemExit(f"no row {left!r}; known: {'; '.join(ROWS)}")
        found.append(name)
        left = left[len(name) :].removeprefix(",")
    return found


if __name__ == "__main__":
    main()
