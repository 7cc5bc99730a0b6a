"""The 1 mm grid that three-dimensional networks see, and the way back.

Voxel 0 of it has the centre of voxel 0 of the volume; axes are the volume's own. So index i of the volume's grid is
i * spacing_mm here, and nothing is extrapolated: the last voxel lies at or before the volume's last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

NEARLY = 1e-6  # of a voxel: what floating point takes off a whole number


@dataclass(frozen=True, eq=False)
class Soft:
    """A probability of nodule, float32 (d, h, w), in a box of a grid that starts at voxel start_zyx; 0 beyond."""

    values: np.ndarray
    start_zyx: tuple[int, int, int]

    @property
    def box(self) -> tuple[slice, ...]:
        """Where it lies in the grid."""
        return box_at(self.start_zyx, self.values.shape)

    def moved(self, by: Sequence[int]) -> Soft:
        """The same on a grid whose voxel 0 is voxel -by of this one."""
        z, y, x = (int(s + b) for s, b in zip(self.start_zyx, by, strict=True))
        return Soft(self.values, (z, y, x))

    def on_source(self, spacing_mm: Sequence[float], shape: Sequence[int]) -> Soft | None:
        """From voxels of 1 mm to those of spacing_mm, linear along each axis. None when none lies in the box."""
        values = np.pad(self.values, 1)
        corner = np.array(self.start_zyx) - 1
        first, last = voxels_within(corner, values.shape, spacing_mm, shape)
        if (last < first).any():
            return None
        places = [np.arange(a, b + 1) * mm - c for a, b, mm, c in zip(first, last, spacing_mm, corner, strict=True)]
        z, y, x = (int(o) for o in first)
        return Soft(sampled(values, places), (z, y, x))


def box_at(start: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """Where an array of that shape lies that starts there."""
    return tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))


def in_both(one: Sequence[slice], other: Sequence[slice]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What two boxes have in common, counted from the start of each; None when nothing."""
    common = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)]
    if any(low >= high for low, high in common):
        return None
    mine, theirs = (
        tuple(slice(low - part.start, high - part.start) for (low, high), part in zip(common, box, strict=True))
        for box in (one, other)
    )
    return mine, theirs


def in_common(one: np.ndarray, one_start: Sequence[int], other: np.ndarray, other_start: Sequence[int]) -> int:
    """How many voxels two bool masks share, each in a box of its own that starts there."""
    if not (both := in_both(box_at(one_start, one.shape), box_at(other_start, other.shape))):
        return 0
    mine, theirs = both
    return int((one[mine] & other[theirs]).sum())


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
    """For each new voxel the old one below it (the last but one at the end), and the way from it to the next, 0..1."""
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


def on_source(
    mask: np.ndarray, start_zyx: Sequence[int], spacing_mm: Sequence[float], shape: Sequence[int]
) -> tuple[np.ndarray, tuple[int, int, int]] | None:
    """The way back: a bool mask on voxels of 1 mm -> one on voxels of spacing_mm, and where its box starts there.

    start_zyx   of the mask on the 1 mm grid of the whole volume
    shape       of the whole volume on its own grid; what lies beyond is cut off

    Linear along each axis, True from one half on. What lies between two slices, thinner than they are apart, goes to
    the nearest one as its middle looks. None when nothing is left.
    """
    values = np.pad(mask, 1).astype(np.float32)
    corner = np.array(start_zyx) - 1  # of the padded mask
    first, last = voxels_within(corner, values.shape, spacing_mm, shape)
    middle = np.argwhere(mask).mean(axis=0) + start_zyx
    between = last < first  # no slice, row or column of the source falls into the mask's box
    first[between] = last[between] = np.rint(middle / spacing_mm).astype(int)[between]
    if (last < first).any() or (first < 0).any() or (last >= shape).any():
        return None
    places = [np.arange(a, b + 1) * mm - c for a, b, mm, c in zip(first, last, spacing_mm, corner, strict=True)]
    found = sampled(values, places) >= 0.5
    if not found.any():
        inner = middle - corner
        nearest = [int(np.abs(line - m).argmin()) for line, m in zip(places, inner, strict=True)]
        z = np.rint(inner[:1])
        found[nearest[0]] = sampled(values, [z, *places[1:]])[0] >= 0.5
        found[tuple(nearest)] = True
    z, y, x = (int(o) for o in first)
    return found, (z, y, x)


def voxels_within(
    corner: np.ndarray, size: Sequence[int], spacing_mm: Sequence[float], shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel of the source, of `shape`, along each axis in a box of 1 mm; last < first: none is."""
    first = np.maximum(np.ceil(corner / spacing_mm - NEARLY).astype(int), 0)
    last = np.minimum(np.floor((corner + size - 1) / spacing_mm + NEARLY).astype(int), np.array(shape) - 1)
    return first, last


def sampled(values: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    """float32 (z, y, x) at fractional indices along each axis, linear, nothing beyond."""
    for axis, at in enumerate(places):
        below = np.clip(np.floor(at).astype(int), 0, values.shape[axis] - 1)
        above = np.minimum(below + 1, values.shape[axis] - 1)
        share = np.expand_dims((at - below).clip(0, 1).astype(np.float32), [a for a in range(3) if a != axis])
        values = np.take(values, below, axis) * (1 - share) + np.take(values, above, axis) * share
    return values


def box_of(mask: np.ndarray, margin: int) -> tuple[slice, ...] | None:
    """The smallest box that holds a bool volume, wider by the margin and cut to the volume; None when it is empty."""
    (found,) = ndimage.find_objects(mask.astype(np.uint8)) or [None]
    return None if found is None else widened(found, margin, mask.shape)


def widened(box: Sequence[slice], margin: int, shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, shape, strict=True))
