"""A candidate as the recurrent network sees it: nine slices of 32 x 32 pixels, the candidate in the middle.

Training and serving share this file, so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

SLICES, SIDE = 9, 32
NETWORK_SHAPE = (SLICES, SIDE, SIDE)

Mode = Literal["resampled", "native"]


@dataclass(frozen=True)
class PatchConfig:
    """How HU become a patch.

    window_hu   low and high, which become 0 and 1
    step_mm     between slices, rows and columns of the patch
    mode        "native": the scan's own voxels, whatever their size, as in the source
    """

    window_hu: tuple[float, float]
    step_mm: tuple[float, float, float]
    mode: Mode = "resampled"

    @property
    def preprocessing(self) -> str:
        """What weights remember of it; weights that learnt from other patches are refused."""
        steps = "native" if self.mode == "native" else "x".join(f"{mm:g}" for mm in self.step_mm) + " mm"
        low, high = self.window_hu
        return f"patch {SLICES}x{SIDE}x{SIDE} of {steps}, hu{low:g}..{high:g}/1"


SOFT_TISSUE = PatchConfig((-160.0, 240.0), (1.0, 1.0, 1.0))  # lymph nodes


def patch(
    hu: np.ndarray,
    centre_zyx: Sequence[float],
    spacing_mm: Sequence[float],
    config: PatchConfig = SOFT_TISSUE,
    shape: tuple[int, int, int] = NETWORK_SHAPE,
) -> np.ndarray:
    """HU (z, y, x) -> float32 `shape` in [0, 1], around an index that need not be whole.

    spacing_mm   of hu, between slices, rows and columns
    shape        of what the network sees, or larger: trainings turn and move a larger one

    What lies beyond the scan is its edge, repeated.
    """
    steps = [1.0] * 3
    if config.mode == "resampled":
        steps = [step / mm for step, mm in zip(config.step_mm, spacing_mm, strict=True)]
    lines = [
        centre + step * (np.arange(count) - (count - 1) / 2)
        for centre, step, count in zip(centre_zyx, steps, shape, strict=True)
    ]
    # only the box that is needed: a whole chest would be turned into float for each of its candidates
    box = [slice(*_reach(line, size)) for line, size in zip(lines, hu.shape, strict=True)]
    inside = [line - part.start for line, part in zip(lines, box, strict=True)]
    values = ndimage.map_coordinates(
        hu[tuple(box)].astype(np.float32), np.meshgrid(*inside, indexing="ij"), order=1, mode="nearest"
    )
    low, high = config.window_hu
    return ((values - low) / (high - low)).clip(0, 1).astype(np.float32)


def _reach(line: np.ndarray, size: int) -> tuple[int, int]:
    """First and last but one voxel that the line touches, within the scan and never none."""
    first = int(np.clip(np.floor(line[0]), 0, size - 1))
    return first, int(np.clip(np.ceil(line[-1]) + 1, first + 1, size))
