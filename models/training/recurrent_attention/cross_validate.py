"""k trainings on candidates, each judged on the patients that it never saw: a score for every candidate.

Killed, it goes on: a finished fold is not trained again, a fold begun goes on after its last epoch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from models import weights
from models.training.files import write_text
from models.training.recurrent_attention.candidates import Candidates, split_into_folds
from models.training.recurrent_attention.recipe import CandidateRecipe, Config
from models.training.trainer import train

VAL_FRACTION = 10  # one patient of so many of a fold's others is left for watching the training
FOLD_SEED = 2024  # the same for every row of a table and every seed: figures are compared in pairs


def fold_parts(candidates: Candidates, folds: int, fold: int) -> dict[str, list[str]]:
    """Patients of train, val and test, patients with a positive candidate dealt evenly."""
    positive = dict.fromkeys(candidates.patients, False)
    for patient, label in zip(candidates.patients, candidates.labels, strict=True):
        positive[patient] |= bool(label == 1)
    dealt = split_into_folds(candidates.patients, positive, folds, FOLD_SEED)
    others = [patient for number, part in enumerate(dealt) if number != fold for patient in part]
    val, *train_parts = split_into_folds(others, positive, VAL_FRACTION, FOLD_SEED + 1 + fold)
    return {"train": sorted(p for part in train_parts for p in part), "val": val, "test": dealt[fold]}


def fold_recipe(
    system: str, candidates: Candidates, folds: int, fold: int, config: Config, digest: str
) -> CandidateRecipe:
    return CandidateRecipe(
        system, candidates, fold_parts(candidates, folds, fold), f"{digest} fold {fold} of {folds}", config
    )


def out_of_fold(
    system: str,
    candidates: Candidates,
    config: Config,
    out: Path,
    *,
    folds: int,
    digest: str,
    device: str = "cpu",
    console: Console | None = None,
) -> np.ndarray:
    """float (n,): what the network that never saw its patient says of each candidate; nan of those in no class.

    digest: of the data. Raises SystemExit when `out` holds folds of another training.
    """
    scores = np.full(len(candidates), np.nan)
    asked = {"config": asdict(config), "folds": folds, "data": digest, "patches": candidates.config.preprocessing}
    for fold in range(folds):
        recipe = fold_recipe(system, candidates, folds, fold, config, digest)
        here = out / f"fold{fold}"
        finished = here / "scores.json"
        rows = recipe.parts["test"]
        if finished.exists():
            kept = json.loads(finished.read_text("utf-8"))
            if kept["asked"] != asked:
                raise SystemExit(f"{here} holds a fold of another training; name another folder")
            scores[rows] = kept["scores"]
            continue
        path = train(recipe, here, resume=True, device=device, console=console)
        loaded = weights.load(path)
        model = loaded.into(recipe.network(loaded.about["config"])).to(device)
        scores[rows] = recipe.predict(model, rows, flips=True)
        write_text(finished, json.dumps({"asked": asked, "scores": scores[rows].tolist()}) + "\n")
        (here / "last.pt").unlink(missing_ok=True)
    return scores


def seeds_of(
    system: str,
    candidates: Candidates,
    config: Config,
    out: Path,
    seeds: Sequence[int],
    *,
    folds: int,
    digest: str,
    device: str = "cpu",
) -> np.ndarray:
    """(seeds, n) of `out_of_fold`, a row for each seed."""
    rows = [
        out_of_fold(
            system,
            candidates,
            replace(config, seed=seed),
            out / f"seed{seed}",
            folds=folds,
            digest=digest,
            device=device,
        )
        for seed in seeds
    ]
    return np.stack(rows)
