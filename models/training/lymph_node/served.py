"""The network that is served: its operating point on candidates it never saw, and the whole pipeline on new phantoms.

    python -m models.training.lymph_node.served --data FOLDER --weights A.safetensors --operating-point
    python -m models.training.lymph_node.served --out docs/results

FOLDER holds phantoms in `mediastinum` and `abdomen`, as the weights were trained on; the first command writes the
certainty at which the test fold has three false positives a scan beside the weights. The second makes phantoms of seeds
that no training has, as DICOM files, and runs the pipeline with its defaults; it also draws where the network looked at
the surest node, as attention.png. Semi-synthetic, all of it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from dicom_sr import codes
from dicom_sr.findings import Finding
from models import weights
from models.candidate_server import CandidateServer
from models.grid import in_common
from models.lymph_node.pipeline import CHECKPOINT, LymphNode
from models.phantoms import Lesion, lymph_node_ct
from models.phantoms.lymph_nodes import Region
from models.runtime import Runtime
from models.training.evaluation.metrics import Interval, bootstrap, rounded
from models.training.evaluation.provenance import NONE, write_figures
from models.training.evaluation.tables import show
from models.training.export import note
from models.training.lymph_node.evaluate import events_of
from models.training.lymph_node.recipe import Config
from models.training.lymph_node.sources import read_any
from models.training.lymph_node.tcia import REGIONS
from models.training.recurrent_attention.candidates import cut
from models.training.recurrent_attention.cross_validate import fold_recipe

FIRST_SEED, PHANTOMS = 5000, 8  # of each region; trainings begin at 1000
FALSE_POSITIVES = 3.0  # a scan
HIT = 0.3  # Dice of a finding with the node that it is of


@dataclass(frozen=True)
class Outcome:
    """One phantom: short axes in mm of its nodes, true and as found (None: missed), Dice of those, and other marks."""

    name: str
    short_mm: tuple[tuple[float, float | None], ...]
    dice: tuple[float, ...]
    false_marks: int


def operating_point(data: Path, path: Path) -> float:
    """Certainty at which the test fold of the training has three false positives a scan; written beside the weights."""
    import torch

    about = weights.load(path).about["config"]
    made = read_any(data, about["region"])
    config = Config(**{name: about[name] for name in ("region", "folds", "fold", "rating", "network")})
    recipe = fold_recipe("lymph_node", made.candidates, config.folds, config.fold, config, made.digest)
    weights.load(path, recipe.preprocessing, recipe.split_sha256)  # else it may have learnt from what it is judged on
    rows = recipe.parts["test"]
    patches = cut(torch.from_numpy(made.candidates.patches[rows]), made.candidates.config).numpy()
    scores = CandidateServer(path, made.candidates.config, Runtime.choose("cpu"))(patches).probability
    places = [made.places[i] for i in rows.tolist()]
    scans = {place.scan for place in places}
    events, _ = events_of(places, scores, {scan: count for scan, count in made.nodes.items() if scan in scans})
    thresholds, false, sensitivity = events.curve(np.ones(len(scans)))
    at = int(np.searchsorted(false, FALSE_POSITIVES, side="right")) - 1
    certainty = round(float(thresholds[at]), 4)
    note(path, {"operating_point": {"certainty": certainty, "sensitivity": round(float(sensitivity[at]), 4)}})
    return certainty


def judge(region: Region, seed: int, pipeline: LymphNode) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        truth = lymph_node_ct(Path(folder), seed=seed, region=region)
        found = pipeline.run(truth.files, lambda fraction, words: None).findings
    rows: list[tuple[float, float | None]] = []
    dices: list[float] = []
    taken: set[int] = set()
    for lesion in truth.lesions:
        best = max(found, key=lambda one: dice(lesion, one), default=None)
        if best is None or dice(lesion, best) < HIT:
            rows.append((lesion.short_axis_mm, None))
            continue
        taken.add(best.number)
        rows.append((lesion.short_axis_mm, short_axis_mm(best)))
        dices.append(dice(lesion, best))
    return Outcome(f"{region}-{seed}", tuple(rows), tuple(dices), len(found) - len(taken))


def short_axis_mm(finding: Finding) -> float:
    return next(one.value for one in finding.measurements if one.name == codes.SHORT_AXIS)


def dice(lesion: Lesion, finding: Finding) -> float:
    """Overlap of two masks, each in a box of its own on the source grid."""
    shared = in_common(lesion.mask, lesion.offset_zyx, finding.mask, finding.offset_zyx)
    return float(2 * shared / (lesion.mask.sum() + finding.mask.sum()))


def figures(outcomes: Sequence[Outcome]) -> dict[str, Interval]:
    """With 95 % intervals over phantoms."""
    names = [one.name for one in outcomes]

    def of(rows: np.ndarray) -> list[Outcome]:
        return [outcomes[i] for i in rows.tolist()]

    def sensitivity(rows: np.ndarray) -> float:
        return float(np.mean([found is not None for one in of(rows) for _, found in one.short_mm]))

    def errors(rows: np.ndarray) -> np.ndarray:
        return np.array([found - true for one in of(rows) for true, found in one.short_mm if found is not None])

    return {
        "nodes found": bootstrap(sensitivity, names),
        "false marks per scan": bootstrap(lambda rows: float(np.mean([one.false_marks for one in of(rows)])), names),
        "Dice of those found": bootstrap(lambda rows: float(np.mean([d for one in of(rows) for d in one.dice])), names),
        "short axis less the true one, mm, mean": bootstrap(lambda rows: float(errors(rows).mean()), names),
        "short axis within 2 mm": bootstrap(lambda rows: float((np.abs(errors(rows)) <= 2).mean()), names),
    }


def draw(path: Path, out: Path) -> None:
    """Where the network looked at the surest node of a phantom."""
    pipeline = LymphNode("cpu", {"experimental": True, "checkpoint": str(path), "attention": True})
    with tempfile.TemporaryDirectory() as folder:
        found = pipeline.run(lymph_node_ct(Path(folder), seed=FIRST_SEED).files, lambda fraction, words: None)
    surest = max(found.findings, key=lambda one: one.certainty or 0.0).number
    picture = next(one for one in found.pictures if one.finding == surest)
    Image.fromarray(picture.pixels).save(out, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Judge lymph-node as it is served.")
    parser.add_argument("--data", type=Path, help="with --operating-point: what the weights were trained on")
    parser.add_argument("--weights", type=Path, default=weights.packed("lymph_node", CHECKPOINT))
    parser.add_argument("--operating-point", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--phantoms", type=int, default=PHANTOMS, help="of each region")
    given = parser.parse_args(arguments)
    if given.operating_point:
        if given.data is None:
            parser.error("--operating-point needs --data")
        print(f"certainty {operating_point(given.data, given.weights)}")
        return
    pipeline = LymphNode("cpu", {"experimental": True, "checkpoint": str(given.weights)})
    loaded = weights.load(given.weights)
    document: dict[str, Any] = {"semi_synthetic": True}
    for region in REGIONS.values():
        seeds = range(FIRST_SEED, FIRST_SEED + given.phantoms)
        outcomes = [judge(region, seed, pipeline) for seed in track(seeds, f"phantoms of the {region}")]
        found = figures(outcomes)
        show(f"lymph-node as served, {region}, semi-synthetic", found)
        nodes = sum(len(one.short_mm) for one in outcomes)
        document[region] = {"phantoms": len(outcomes), "nodes": nodes, "figures": rounded(found)}
    given.out.mkdir(parents=True, exist_ok=True)
    draw(given.weights, given.out / "attention.png")
    write_figures(given.out / "lymph_node_served.json", document, {loaded.name: loaded.sha256}, NONE)


if __name__ == "__main__":
    main()
