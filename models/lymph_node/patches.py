"""A candidate as the recurrent network sees it: nine slices of 32 x 32 pixels, the candidate in the middle.

Training and serving share this file, so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import ndimage

SLICES, SIDE = 9, 32
WINDOW_HU = (-160.0, 240.0)  # soft tissue
STEP_MM = 1.0  # between slices, rows and columns
PREPROCESSING = "lymph-node 9x32x32 at 1 mm, hu-160..240/1"  # change it with every change of what is done here
COARSE_MM = 2.5  # slices further apart than this show less than the network was made for

Mode = Literal["resampled", "native"]


def patch(
    hu: np.ndarray, centre_zyx: Sequence[float], spacing_mm: Sequence[float], mode: Mode = "resampled"
) -> np.ndarray:
    """HU (z, y, x) -> float32 (9, 32, 32) in [0, 1], around an index that need not be whole.

    spacing_mm   between slices, rows and columns
    mode         "native": the scan's own voxels, whatever their size, as in the source

    What lies beyond the scan is its edge, repeated.
    """
    steps = [STEP_MM / mm for mm in spacing_mm] if mode == "resampled" else [1.0] * 3
    lines = [
        centre + step * (np.arange(count) - (count - 1) / 2)
        for centre, step, count in zip(centre_zyx, steps, (SLICES, SIDE, SIDE), strict=True)
    ]
    # only the box that is needed: a whole chest would be turned into float for each of its candidates
    box = [slice(*_reach(line, size)) for line, size in zip(lines, hu.shape, strict=True)]
    inside = [line - part.start for line, part in zip(lines, box, strict=True)]
    values = ndimage.map_coordinates(
        hu[tuple(box)].astype(np.float32), np.meshgrid(*inside, indexing="ij"), order=1, mode="nearest"
    )
    low, high = WINDOW_HU
    return ((values - low) / (high - low)).clip(0, 1).astype(np.float32)


def _reach(line: np.ndarray, size: int) -> tuple[int, int]:
    """First and last but one voxel that the line touches, within the scan and never none."""
    first = int(np.clip(np.floor(line[0]), 0, size - 1))
    return first, int(np.clip(np.ceil(line[-1]) + 1, first + 1, size))
