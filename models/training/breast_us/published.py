"""The recipe of the paper, as far as it is told: `python -m models.training.train breast_us_published`.

Plain encoder, 31 211 705 parameters in A; Adam at 2e-4, a tenth of it whenever the loss stops falling, until 2e-8.
Sizes of heads and fusion, the starting rate and the patience are ours, because the paper is silent. The whole image is
seen in the letterbox of models/breast_us/letterbox.py instead of a centre crop, so that a lesion at the border counts,
too.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.nets.breast_triple import Encoder, Fusion, Heads
from models.training.breast_us import recipe
from models.training.breast_us.recipe import build
from models.training.recipe import Schedule

__all__ = ["Config", "build"]


@dataclass(frozen=True)
class Config(recipe.Config):
    stage: recipe.Stage = "segmentation"
    width: int = 64
    encoder: Encoder = "plain"
    size: int = 256
    heads: Heads = "pooled"
    epochs: int = 400  # at most: the plateaus stop earlier
    schedule: Schedule = "plateau"
    optimiser: str = "adam"
    lr: float = 2e-4
    weight_decay: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    bce_weight: float = 0.0
    label_smoothing: float = 0.0
    variation: str = "published"
    fusion: Fusion = "published"
