"""The 1 mm grid that three-dimensional networks see, and the way back.

Voxel 0 of it has the centre of voxel 0 of the volume; axes are the volume's own. So index i of the volume's grid is
i * spacing_mm here, and nothing is extrapolated: the last voxel lies at or before the volume's last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NEARLY = 1e-6  # of a voxel: what floating point takes off a whole number


def first_voxel(offset_zyx: Sequence[float], spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """The first voxel of 1 mm at or after voxel offset_zyx of the volume."""
    z, y, x = (int(np.ceil(o * mm - NEARLY)) for o, mm in zip(offset_zyx, spacing_mm, strict=True))
    return z, y, x


def isotropic(values: np.ndarray, spacing_mm: Sequence[float], offset_zyx: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """(z, y, x) on voxels of spacing_mm -> on voxels of 1 mm, linear along each axis (order 1); of the same type.

    values may be a box of a larger volume that starts at its voxel offset_zyx; the result starts at first_voxel of it,
    on the grid of that whole volume. bool: True where half or more would be. Integers are rounded. Slice by slice: no
    more than the result and three slices are held.
    """
    (below, share), *in_plane = (
        weights(size, mm, offset, first)
        for size, mm, offset, first in zip(
            values.shape, spacing_mm, offset_zyx, first_voxel(offset_zyx, spacing_mm), strict=True
        )
    )
    out = np.empty((len(below), *(len(index) for index, _ in in_plane)), values.dtype)
    held: dict[int, np.ndarray] = {}
    for z in range(len(out)):
        pair = int(below[z]), min(int(below[z]) + 1, len(values) - 1)
        held = {k: held[k] if k in held else flat(values[k], in_plane) for k in pair}
        between = held[pair[0]] + (held[pair[1]] - held[pair[0]]) * share[z]
        if values.dtype == bool:
            out[z] = between >= 0.5
        else:
            out[z] = np.rint(between) if values.dtype.kind in "iu" else between
    return out


def weights(size: int, mm: float, offset: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each new voxel the old one below it (the last but one at the end), and the way from it to the next, 0..1."""
    count = int((offset + size - 1) * mm + NEARLY) - first + 1
    place = np.clip((first + np.arange(count)) / mm - offset, 0, size - 1)
    below = np.clip(place.astype(int), 0, max(size - 2, 0))
    return below, (place - below).astype(np.float32)


def flat(image: np.ndarray, in_plane: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """One slice (y, x) on the new rows and columns, float32."""
    (row, down), (column, across) = in_plane
    image = image.astype(np.float32)
    image = image[row] + (image[np.minimum(row + 1, len(image) - 1)] - image[row]) * down[:, None]
    beyond = np.minimum(column + 1, image.shape[1] - 1)
    return image[:, column] + (image[:, beyond] - image[:, column]) * across
