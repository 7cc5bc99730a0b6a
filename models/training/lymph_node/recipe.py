"""How recurrent attention is trained on candidates of lymph nodes.

    python -m models.training.lymph_node.make_phantoms --region mediastinum --out FOLDER      # semi-synthetic
    python -m models.training.train lymph_node --data FOLDER --out runs/nodes
    python -m models.training.train lymph_node --data TCIA --out runs/nodes --set region=abdomen

FOLDER is either what make_phantoms wrote, or TCIA's CT Lymph Nodes: annotations as published, and the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from models.training.lymph_node.sources import read_any
from models.training.lymph_node.tcia import REGIONS
from models.training.recipe import must_be_known
from models.training.recurrent_attention.cross_validate import fold_recipe
from models.training.recurrent_attention.recipe import CandidateRecipe
from models.training.recurrent_attention.recipe import Config as RecurrentConfig


@dataclass(frozen=True)
class Config(RecurrentConfig):
    region: str = "mediastinum"  # or "abdomen": the source trains each by itself; or "pooled"
    folds: int = 3
    fold: int = 0  # whose patients are left for the test

    def __post_init__(self) -> None:
        super().__post_init__()
        must_be_known(self, {"region": (*REGIONS.values(), "pooled")})


def build(data: Path, config: Config) -> CandidateRecipe:
    made = read_any(data, cast(Any, config.region))
    return fold_recipe("lymph_node", made.candidates, config.folds, config.fold, config, made.digest)
