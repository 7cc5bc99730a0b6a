"""What the pipeline answered for one image, held against the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Judged:
    """One image: what was answered, held against the truth. Goes to JSON as it is."""

    name: str
    label: int
    shares: tuple[float, ...]  # probabilities in the order of CLASSES
    dice: float  # of the lesion reported
    raw_dice: float  # of all that the network marked
    iou: float
    hd95_px: float | None  # None: one of the two masks is empty
    empty: bool  # nothing was reported

    @property
    def called(self) -> int:
        return int(np.argmax(self.shares))
