"""What every shipped checkpoint makes of a few phantoms, through the pipeline that serves it.

    python -m models.training.evaluation.shipped --write    # after a meant change of weights or pipelines

No figure of merit: six phantoms tell little of how good a network is. They tell that the weights and what stands around
them are those that the cards' figures were measured with: a test computes them again and holds them against the file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dicom_sr import codes
from dicom_sr.findings import Finding
from models import build, catalogue
from models.breast_us.pipeline import BreastUltrasound
from models.grid import in_common
from models.phantoms import Lesion, Truth, breast_ultrasound, chest_ct, lymph_node_ct
from models.training.evaluation.provenance import NONE, write_figures

FILE = Path(__file__).parents[3] / "docs" / "results" / "shipped.json"
PICTURES = (np.zeros((200, 300), np.uint8), np.tile(np.arange(256, dtype=np.uint8), (200, 1)))  # of no breast
HIT = 0.3  # Dice of a finding with the lesion that it is of


@dataclass(frozen=True)
class Case:
    """A pipeline with what a route may tell it, and the phantom that it is shown."""

    pipeline: str
    phantom: Callable[[Path], Truth]
    options: Mapping[str, Any] = field(default_factory=dict)


CHEST = partial(chest_ct, seed=9, slices=32, size=256, spacing_mm=(2.5, 1.1, 1.1), nodules=3)
THIN_CHEST = partial(chest_ct, seed=9, slices=14, size=256, spacing_mm=(2.5, 1.1, 1.1), nodules=2)
CASES = {
    "nodulenet, with suspicion": Case("lung-nodule", CHEST, {"malignancy": True}),
    "nodulenet, refined by model-1": Case("lung-nodule", THIN_CHEST, {"refiner": "model-1"}),
    "ccfam-fpn": Case("lung-nodule", CHEST, {"detector": "ccfam-fpn"}),
    "sliding-unet": Case("lung-nodule", THIN_CHEST, {"detector": "sliding-unet"}),
    "lymph-node": Case(
        "lymph-node",
        partial(lymph_node_ct, seed=9, slices=24, size=220, spacing_mm=(2.5, 1.5, 1.5), nodes=2),
        {"experimental": True},
    ),
    "breast-us": Case("breast-us", partial(breast_ultrasound, seed=9, images=3)),
}


def figures(case: Case) -> dict[str, Any]:
    """Of one case: the digests of its weights, what was found and how well it was outlined, certainties and sizes."""
    pipeline = build(catalogue().declared[case.pipeline], "cpu", case.options)
    with tempfile.TemporaryDirectory() as folder:
        truth = case.phantom(Path(folder))
        found = pipeline.run(truth.files, lambda fraction, words: None).findings
    overlaps = np.array([[dice(lesion, one) for one in found] for lesion in truth.lesions]).reshape(-1, len(found))
    hits = overlaps.max(axis=1, initial=0) >= HIT
    of_lesions = sorted(set(overlaps.argmax(axis=1)[hits].tolist())) if len(found) else []
    taken = [found[i] for i in of_lesions]
    weights = dict(pipeline.card.weights_sha256)
    familiar = {}
    if isinstance(pipeline, BreastUltrasound) and pipeline.suitability is not None:
        weights["suitability"] = pipeline.suitability.sha256
        familiar = {"unfamiliar by": [round(pipeline.suitability.judge(each).distance, 4) for each in PICTURES]}
    return {
        "weights": weights,
        "lesions": len(truth.lesions),
        "found": int(hits.sum()),
        "other findings": len(found) - len(taken),
        "Dice": [round(float(overlaps[:, i].max()), 4) for i in of_lesions],
        "certainty": [round(float(one.certainty or 0), 4) for one in taken],
        "numbers": [_numbers(one) for one in taken],
        **familiar,
    }


def _numbers(finding: Finding) -> dict[str, float]:
    """What is measured of it in mm, and the probabilities that are said of it."""
    wanted = (codes.LONG_AXIS, codes.SHORT_AXIS, codes.PROBABILITY_OF_CANCER)
    return {one.name.meaning: round(one.value, 3) for one in finding.measurements if one.name in wanted}


def dice(lesion: Lesion, finding: Finding) -> float:
    """Overlap of two masks, each in a box of its own on the source grid."""
    shared = in_common(lesion.mask, lesion.offset_zyx, finding.mask, finding.offset_zyx)
    return float(2 * shared / (lesion.mask.sum() + finding.mask.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into {FILE.name}; else they are printed")
    made = {name: figures(case) for name, case in CASES.items()}
    weights = {name: sha256 for one in made.values() for name, sha256 in one["weights"].items()}
    if parser.parse_args().write:
        write_figures(FILE, made, weights, NONE)
    else:
        print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
