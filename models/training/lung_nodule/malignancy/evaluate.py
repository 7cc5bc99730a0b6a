"""The networks that are served, on the stored split: calibrated on val, judged on test as they are served.

    python -m models.training.lung_nodule.malignancy.evaluate --data lidc_voi3d.zip --weights A B C --calibrate
    python -m models.training.lung_nodule.malignancy.evaluate --data lidc_voi3d.zip --out docs/results

The first fits the logistic of score and diameter on the val patients and writes it beside the weights; the second looks
at the test patients. Each such look is counted: add a line to docs/results/looks.csv before.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models import weights
from models.lung_nodule.malignancy import CHECKPOINTS, Suspicion
from models.measure import axial
from models.runtime import Runtime
from models.training.evaluation.metrics import Interval, auc, bootstrap, rounded
from models.training.evaluation.provenance import digests, write_figures
from models.training.evaluation.tables import show
from models.training.export import note
from models.training.lung_nodule.data.semisynthetic import donor_names, read_donor
from models.training.lung_nodule.data.slices import split_of
from models.training.lung_nodule.malignancy.calibration import decisions, fit_logistic, logistic
from models.training.lung_nodule.malignancy.data import INDETERMINATE, read_nodules
from models.training.recurrent_attention.candidates import NEITHER, Candidates, cut
from models.weights import WeightsError


def diameters_mm(path: Path, names: Sequence[str]) -> np.ndarray:
    """Mean diameters of the readers' masks, measured as the pipeline measures."""
    wanted = set(names)
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in donor_names(archive):
            donor = read_donor(archive, name)
            if donor.name in wanted:
                found[donor.name] = axial(donor.mask, donor.spacing_mm)[1].mean_mm
    return np.array([found[name] for name in names])


def scores_of(
    paths: Sequence[Path], candidates: Candidates, rows: np.ndarray, device: str, split_sha256: str
) -> np.ndarray:
    """(n,) the mean of what the networks say, as served. Raises WeightsError for those that learnt on another split."""
    for path in paths:
        weights.load(path, candidates.config.preprocessing, split_sha256)
    import torch

    from models.candidate_server import CandidateServer

    patches = cut(torch.from_numpy(candidates.patches[rows]), candidates.config).numpy()
    runtime = Runtime.choose(device)
    return np.mean([CandidateServer(path, candidates.config, runtime)(patches).probability for path in paths], axis=0)


def in_part(candidates: Candidates, patients: Sequence[str]) -> np.ndarray:
    rows = candidates.of(patients)
    return rows[candidates.labels[rows] != NEITHER]


def figures(
    chance: np.ndarray, scores: np.ndarray, sizes: np.ndarray, truth: np.ndarray, patients: Sequence[str]
) -> dict[str, Interval]:
    """chance: as served; scores: of the networks alone; sizes: mean diameters. Each (n,), over nodules of one class."""
    return {
        "AUC": bootstrap(lambda rows: auc(chance[rows], truth[rows]), patients),
        "AUC, networks alone": bootstrap(lambda rows: auc(scores[rows], truth[rows]), patients),
        "AUC, diameter alone": bootstrap(lambda rows: auc(sizes[rows], truth[rows]), patients),
        "AUC less that of the diameter alone": bootstrap(
            lambda rows: auc(chance[rows], truth[rows]) - auc(sizes[rows], truth[rows]), patients
        ),
        **decisions(chance, truth, patients),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Calibrate and judge the networks that rate suspicion.")
    parser.add_argument("--data", type=Path, required=True, help="the zip of nodule volumes with metadata.xlsx")
    parser.add_argument("--weights", type=Path, nargs="+", help="default: the shipped ones")
    parser.add_argument("--calibrate", action="store_true", help="fit on val and write it beside the weights")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--out", type=Path, help="folder for malignancy_served.json")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    paths = given.weights or [weights.packed("lung_nodule", name) for name in CHECKPOINTS]
    candidates, rated = read_nodules(given.data)
    split, split_sha256 = split_of(sorted(set(candidates.patients)))
    try:
        if given.calibrate:
            calibrate(given.data, paths, candidates, split["val"], given.device, split_sha256)
            return
        document = judge(given.data, paths, candidates, split[given.split], given.device, split_sha256)
    except WeightsError as error:
        raise SystemExit(str(error)) from error
    show(f"malignancy, {given.split} split", {name: Interval(**one) for name, one in document["figures"].items()})
    if given.out:
        document |= {"split": given.split, "split_sha256": split_sha256, "ratings": len(rated)}
        loaded = {path.stem: weights.load(path).sha256 for path in paths}
        write_figures(given.out / "malignancy_served.json", document, loaded, digests([given.data]))


def calibrate(
    data: Path, paths: Sequence[Path], candidates: Candidates, patients: Sequence[str], device: str, split_sha256: str
) -> None:
    rows = in_part(candidates, patients)
    scores = scores_of(paths, candidates, rows, device, split_sha256)
    sizes = np.log(diameters_mm(data, [candidates.names[i] for i in rows.tolist()]))
    fitted = fit_logistic(scores, candidates.labels[rows], sizes)
    together = sorted(weights.load(path).sha256 for path in paths)
    for path in paths:
        note(
            path,
            {
                "calibration": {
                    "logistic": [round(one, 5) for one in fitted],
                    "nodules": len(rows),
                    "networks": together,  # whose mean it was fitted to, by SHA-256
                }
            },
        )
    reached = auc(logistic(scores, fitted, sizes), candidates.labels[rows] == 1)
    print(f"{fitted} on {len(rows)} nodules of val, AUC {reached:.3f}")


def judge(
    data: Path, paths: Sequence[Path], candidates: Candidates, patients: Sequence[str], device: str, split_sha256: str
) -> dict[str, Any]:
    rows = in_part(candidates, patients)
    names = [candidates.names[i] for i in rows.tolist()]
    whose = [candidates.patients[i] for i in rows.tolist()]
    scores = scores_of(paths, candidates, rows, device, split_sha256)
    sizes = diameters_mm(data, names)
    served = Suspicion(paths, Runtime.choose(device))
    chance = np.array([served.probability(float(a), float(b)) for a, b in zip(scores, sizes, strict=True)])
    found = figures(chance, scores, sizes, candidates.labels[rows] == 1, whose)
    return {
        "figures": rounded(found),
        "nodules": dict(zip(names, np.round(chance, 4).tolist(), strict=True)),
        "positive": int((candidates.labels[rows] == 1).sum()),
        "patients": len(set(whose)),
        "above": INDETERMINATE,
        "calibration": weights.load(paths[0]).about["calibration"],
    }


if __name__ == "__main__":
    main()
