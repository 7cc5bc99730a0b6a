"""NoduleNet's ablations, each row trained under one budget and judged on the same whole scans.

python -m models.training.evaluation.evaluate nodulenet --data FOLDER --table --budget small
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.lung_nodule.nodulenet.preprocess import PREPROCESSING
from models.training.evaluation.metrics import Interval, count_words
from models.training.evaluation.tables import Result, Row, Study, Table
from models.training.lung_nodule.nodulenet.evaluate import ALONE, MEAN, SECOND, evaluate
from models.training.lung_nodule.nodulenet.recipe import Config, NoduleNetRecipe
from models.training.train import configured
from models.training.trainer import train

FIGURES = {
    f"{ALONE}: CPM": ".3f",
    f"{SECOND}: CPM": ".3f",
    f"{MEAN}: CPM": ".3f",
    f"{MEAN}: sensitivity at 1 FP/scan": ".3f",
    "Dice of the nodules found": ".3f",
}

BUDGETS: Mapping[str, Mapping[str, str]] = {
    # what one core does in about eight minutes a row; without masks, whose loss disturbs the boxes
    "small": {
        "width": "8", "crop": "64", "batch": "4", "crops": "320", "epochs": "10", "rcnn_from": "0.5", "mask_from": "1",
        "val_scans": "3",
    },
    # for a GPU: as published but for what the rows change
    "full": {"width": "24", "crop": "128", "batch": "16", "crops": "1600", "epochs": "200", "amp": "true"},
}  # fmt: skip

TABLES = (
    Table(
        "Parts of NoduleNet",
        (
            Row("focal loss, pyramid, decoupled head"),
            Row("hard negatives and cross-entropy instead of focal loss", {"focal": "false"}),
            Row("boxes from the decoder's map instead of a pyramid", {"fpn": "false"}),
            Row("RCNN head on the map that the RPN classifies (coupled)", {"coupled": "true"}),
            Row("neither focal loss nor pyramid, as published", {"focal": "false", "fpn": "false"}),
        ),
    ),
)


class NoduleNetStudy:
    """See models.training.evaluation.tables.Study."""

    name = "nodulenet"
    title = "NoduleNet: what each part is worth"
    figures: Mapping[str, str] = FIGURES
    tables: Sequence[Table] = TABLES

    def __init__(self, data: Path, budget: str, changes: Mapping[str, str], device: str) -> None:
        self.data, self.device = data, device
        self.changes = {**BUDGETS[budget], **changes}
        self.first = NoduleNetRecipe(data, configured(Config(), self.changes))
        scans = self.first.scans
        kind, drawn = ("semi-synthetic scans", "scans") if scans.semi_synthetic else ("scans", "patients")
        said = ", ".join(f"{name} {value}" for name, value in self.changes.items() if name != "cache")
        self.about = (
            f"Budget `{budget}`, the same for every row: {said}. Whole {kind}: {count_words(scans.split)}. Figures"
            f"{' (semi-synthetic)' if scans.semi_synthetic else ''} are of the test, by LUNA16's rule with false"
            f" positives per whole chest; 95 % intervals by 1000 bootstraps over {drawn}. One seed each: what chance"
            " does is not in the intervals."
        )

    def config(self, row: Row) -> Config:
        return configured(Config(), {**self.changes, **row.changes})

    def settings(self, row: Row) -> Mapping[str, Any]:
        config = asdict(self.config(row))
        del config["cache"]  # where prepared scans lie on this machine
        known = {
            "split_sha256": self.first.split_sha256,
            "preprocessing": PREPROCESSING,
            "scans": self.first.scans.digest,
        }
        return {"config": config, "judged_by": 1, **known}

    def result(self, row: Row, folder: Path) -> Result:
        recipe = copy.copy(self.first)  # the data are prepared once
        recipe.configure(self.config(row))
        best = train(recipe, folder, resume=True, device=self.device)
        judged = evaluate(self.data, self.device, paths=[best])
        figures: dict[str, Interval] = {name: judged.figures[name] for name in FIGURES if name in judged.figures}
        return Result(figures, {"parameters": sum(weights.numel() for weights in recipe.model().parameters())})

    def illustrate(self, folders: Mapping[str, Path], out: Path) -> Sequence[Path]:
        """None: a phantom's picture says nothing of a curve."""
        return []


def study(data: Path, budget: str, changes: Mapping[str, str], device: str) -> Study:
    return NoduleNetStudy(data, budget, changes, device)
