"""How recurrent attention learns radiologists' suspicion, on the stored split of LIDC-IDRI's patients.

    python -m models.training.train malignancy --data lidc_voi3d.zip --out runs/malignancy
    python -m models.training.train malignancy --data lidc_voi3d.zip --out runs/rating --set rating=true

The source's schedule is made for thousands of candidates; on some hundred nodules AdamW with a cosine reached more on
the validation patients, and is the default here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.training.lung_nodule.data.slices import split_of
from models.training.lung_nodule.malignancy.data import read_nodules
from models.training.recipe import Schedule
from models.training.recurrent_attention.recipe import CandidateRecipe
from models.training.recurrent_attention.recipe import Config as RecurrentConfig


@dataclass(frozen=True)
class Config(RecurrentConfig):
    epochs: int = 12
    lr: float = 1e-3
    schedule: Schedule = "cosine"
    optimiser: str = "adamw"
    weight_decay: float = 0.01
    ema_decay: float = 0.98
    amp: bool = True


def build(data: Path, config: Config) -> CandidateRecipe:
    candidates, _ = read_nodules(data)
    split, split_sha256 = split_of(sorted(set(candidates.patients)))
    return CandidateRecipe("malignancy", candidates, split, split_sha256, config)
