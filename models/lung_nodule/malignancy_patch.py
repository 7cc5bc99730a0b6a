"""What is looked at when a nodule's suspicion is rated: HU to a patch, for training and serving alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.patches import NETWORK_SHAPE, PatchConfig, patch

NODULE = PatchConfig((-1000.0, 400.0), (1.5, 1.0, 1.0))


def nodule_patch(
    hu: np.ndarray,
    mask: np.ndarray,
    offset_zyx: tuple[int, int, int],
    spacing_mm: Sequence[float],
    shape: tuple[int, int, int] = NETWORK_SHAPE,
    config: PatchConfig = NODULE,
) -> np.ndarray:
    """HU (z, y, x) of a volume, the nodule's bool mask (d, h, w) at offset_zyx, not empty -> float32 `shape` in [0, 1].

    Only the slices that the mask is on are looked at, and the outer two are repeated beyond them: half of the volumes
    that were learnt from end with the nodule, and a network that saw more in the rest would learn which are which.
    """
    places = np.argwhere(mask) + offset_zyx
    first, last = int(places[:, 0].min()), int(places[:, 0].max())
    z, y, x = places.mean(axis=0).tolist()
    return patch(hu[first : last + 1], (z - first, y, x), spacing_mm, config, shape)
