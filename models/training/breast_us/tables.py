"""The ablations of the breast triple, one cross-validation each (folds.py), all on the same folds under one budget.

    python -m models.training.evaluation.evaluate breast_us --data busi.zip --table --budget small

The source of the triple states no figure, so the rows are to be compared with each other.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch

from models.breast_us.pipeline import BreastUltrasound
from models.nets.breast_triple import ClassificationNet, TripleConfig
from models.phantoms import breast_ultrasound
from models.training.breast_us import published
from models.training.breast_us.cross_validate import validate
from models.training.breast_us.data import read_busi, split_sha256
from models.training.breast_us.fold_splits import rotation
from models.training.breast_us.recipe import Config, Stage
from models.training.evaluation.metrics import Interval
from models.training.evaluation.tables import Result, Row, Study, Table, digest, with_reasons
from models.training.plots import save_grid
from models.training.train import configured

FIGURES = {
    "Dice, lesion images": ".3f",
    "IoU, lesion images": ".3f",
    "normal images without a finding": ".3f",
    "accuracy": ".3f",
    "macro AUC, one against rest": ".3f",
    "expected calibration error": ".3f",
}

BUDGETS: Mapping[str, Mapping[str, str]] = {
    # what one core does in seven minutes a row; masks of fewer epochs are not worth comparing
    "small": {"folds": "2", "size": "128", "epochs": "20", "encoder_rate": "1"},
    # five folds of the recipe as it ships
    "full": {"folds": "5"},
}

ALONE = "B alone, without C"  # the figures of OURS without C: nothing is trained again
PUBLISHED = "the paper's networks and recipe"
OURS, LITERAL, PUBLISHED_C = "A and B as one, with C", "literal heads", "C of the source on the same weights"
STAGES = "A, then B, then C"
PLANS: Mapping[str, tuple[Stage, ...]] = {  # of the rows that are more than one training
    OURS: ("joint", "fusion"),
    PUBLISHED_C: ("joint", "fusion"),
    STAGES: ("segmentation", "classification", "fusion"),
    PUBLISHED: ("segmentation", "classification", "fusion"),
    ALONE: ("joint", "fusion"),
}

TABLES = (
    Table(
        "Parts of the triple",
        (
            Row(OURS),
            Row(ALONE),
            Row(PUBLISHED_C, {"fusion": "published"}),
            Row(STAGES),
            Row(PUBLISHED),
            Row("no smoothing", {"smoothing": "false"}),
            Row("no CBAM", {"attention": "false"}),
        ),
        "C answers in the folds where, on val, it is at least as good as B alone in accuracy and AUC; else B does.",
    ),
    Table(
        "Class heads",
        (
            Row("pooled heads", {"heads": "pooled"}),
            Row(LITERAL, {"heads": "literal"}),
            Row("heads that see the lesion", {"heads": "lesion"}),
        ),
        'The network that ships has heads of kind "joint", as in the rows above.',
    ),
    Table(
        "Encoder, and chance",
        (
            Row("plain encoder", {"encoder": "plain"}),
            Row("lite0 from nothing", {"pretrained": "false"}),
            Row("lite2", {"encoder": "lite2"}),
            Row("another seed", {"seed": "2025"}),
        ),
        "The last row says how much of a difference is chance.",
    ),
)


def tables_of(budget: str) -> tuple[Table, ...]:
    """The tables under a budget: the paper's networks are nothing for two cores."""
    if budget == "full":
        return TABLES
    return with_reasons(TABLES, lambda row: "needs a GPU: --budget full" if row.name == PUBLISHED else "")


class BreastStudy:
    """See models.training.evaluation.tables.Study."""

    name = "breast_us"
    title = "Breast triple: what each part is worth"
    figures: Mapping[str, str] = FIGURES

    def __init__(self, data: Path, budget: str, changes: Mapping[str, str], device: str) -> None:
        self.device = device
        self.tables: Sequence[Table] = tables_of(budget)
        self.images = read_busi(data)
        self.changes = {**BUDGETS[budget], **changes}
        common = configured(Config(), self.changes)
        self.splits = [split_sha256(rotation(self.images, common.folds, fold)) for fold in range(common.folds)]
        said = ", ".join(f"{name} {value}" for name, value in self.changes.items())
        self.about = (
            f"Budget `{budget}`, the same for every row, with the same seed: {said}. Cross-validation over"
            f" {len(self.images)} images in {common.folds} folds, figures pooled over images tested on; images"
            " whose near-duplicates have another label are left out. BUSI names no patients: families of look-alikes"
            " stay in one fold, but two images of one patient may stand in two, so every figure may be too good. 95 %"
            " intervals by 1000 bootstraps over images."
        )

    def config(self, row: Row) -> Config:
        base = published.Config() if row.name == PUBLISHED else Config()
        return configured(base, {**self.changes, **row.changes})

    def plan(self, row: Row) -> tuple[Stage, ...]:
        return PLANS.get(row.name, ("joint",))

    def settings(self, row: Row) -> Mapping[str, Any]:
        said = {"config": asdict(self.config(row)), "plan": self.plan(row), "splits": self.splits, "judged_by": 1}
        return {**said, "without": "fusion"} if row.name == ALONE else said

    def result(self, row: Row, folder: Path) -> Result:
        config = self.config(row)
        if row.name == ALONE:
            folder = folder.with_name(digest(self.settings(Row(OURS)))[:12])
        made = validate(self.images, config, self.plan(row), folder, self.device)
        if row.name == ALONE:
            said = json.loads((folder / "figures.json").read_text("utf-8"))
            made = {name: Interval(**one) for name, one in said.get("figures without C", said["figures"]).items()}
        figures: dict[str, Interval] = {name: made[name] for name in FIGURES}
        with torch.device("meta"):
            net = ClassificationNet(TripleConfig.of(asdict(config)))
        return Result(figures, {"parameters": sum(weights.numel() for weights in net.parameters())})

    def illustrate(self, folders: Mapping[str, Path], out: Path) -> Sequence[Path]:
        """Phantoms: image, truth and what the first fold's network of the first row marks."""
        found = sorted(folders[OURS].glob("fold0/joint/breast_triple_*.safetensors")) if OURS in folders else []
        if not found:
            return []
        pipeline = BreastUltrasound(self.device, weights=found[:1])
        rows = [[picture / 255, truth, pipeline.look(picture).lesion] for picture, truth in phantom_pictures()]
        path = out / f"{self.name}_phantoms.png"
        save_grid(path, ["phantom", "truth", "A and B as one"], rows)
        return [path]


def phantom_pictures(count: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Grey values and the lesion of synthetic breast images, (480, 480) each."""
    with tempfile.TemporaryDirectory() as folder:
        truth = breast_ultrasound(Path(folder), seed=3, images=count, shape=(480, 480))
        pictures = [pydicom.dcmread(file).pixel_array for file in truth.files]
    masks = np.zeros((count, 480, 480), bool)
    for lesion in truth.lesions:
        z, y, x = lesion.offset_zyx
        masks[z, y : y + lesion.mask.shape[1], x : x + lesion.mask.shape[2]] = lesion.mask[0]
    return [*zip(pictures, masks, strict=True)]


def study(data: Path, budget: str, changes: Mapping[str, str], device: str) -> Study:
    return BreastStudy(data, budget, changes, device)
