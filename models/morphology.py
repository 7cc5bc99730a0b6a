"""Dilations of bool arrays, eight voxels to a byte, and holes of slices: what `scipy.ndimage` says, in less time.

The last axis is packed; a step along it shifts bits, a step along another one moves whole bytes.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

IN_PLANE = np.array([np.zeros((3, 3)), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3))], bool)


def within_steps(mask: np.ndarray, steps: int) -> np.ndarray:
    """bool: where something True is at most so many steps along the axes away."""
    bits = np.packbits(mask, axis=-1)
    for _ in range(steps):
        wider = _beside(bits)
        for axis in range(mask.ndim - 1):
            low, high = _along(axis, slice(None, -1)), _along(axis, slice(1, None))
            wider[low] |= bits[high]
            wider[high] |= bits[low]
        bits = wider
    return _unpacked(bits, mask.shape[-1])


def within_radius(mask: np.ndarray, radius: float) -> np.ndarray:
    """bool (..., y, x): where something True of the same slice is at most `radius` pixels away."""
    rows = np.arange(int(radius) + 1)
    reach = [int((np.sqrt(rows**2 + row**2) <= radius).sum()) - 1 for row in rows]  # columns, at each distance in rows
    wider = [np.packbits(mask, axis=-1)]
    for _ in range(reach[0]):
        wider.append(_beside(wider[-1]))
    out = wider[reach[0]].copy()
    for row in rows[1:]:
        out[..., row:, :] |= wider[reach[row]][..., : -row or None, :]
        out[..., :-row, :] |= wider[reach[row]][..., row:, :]
    return _unpacked(out, mask.shape[-1])


def closed(mask: np.ndarray, radius: float) -> np.ndarray:
    """bool (z, y, x): each slice closed by a disc of that radius in pixels, holes filled."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8)) or [None]
    if box is None:
        return mask.copy()
    margin = int(radius) + 2
    wide = np.pad(mask[box], ((0, 0), (margin, margin), (margin, margin)))
    out = np.zeros_like(mask)
    back = ~within_radius(~within_radius(wide, radius), radius)
    out[box] = filled(back | wide)[:, margin:-margin, margin:-margin]
    return out


def eroded(mask: np.ndarray) -> np.ndarray:
    """bool (z, y, x): one pixel off each slice, but not where it is cut off by the image's edge."""
    out = mask.copy()
    out[:, 1:] &= mask[:, :-1]
    out[:, :-1] &= mask[:, 1:]
    out[:, :, 1:] &= mask[:, :, :-1]
    out[:, :, :-1] &= mask[:, :, 1:]
    return out


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected component of a bool volume; all False stays so."""
    labels, count = ndimage.label(mask)
    return mask if count == 0 else labels == 1 + int(sizes(labels, count)[1:].argmax())


def filled(mask: np.ndarray) -> np.ndarray:
    """bool (z, y, x): each slice without holes: what does not reach its edge along rows and columns."""
    labels, count = ndimage.label(~mask, structure=IN_PLANE)
    inside = np.ones(count + 1, bool)
    for edge in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        inside[edge.ravel()] = False
    inside[0] = True  # the mask itself
    return inside[labels]


def convex_hull(piece: np.ndarray) -> np.ndarray:
    """bool (y, x), something in each row -> pixels whose middle lies in the convex hull of the piece's, each pixel a
    diamond that reaches to the middles of its sides (as in `skimage.morphology.convex_hull_image`); exact."""
    width = piece.shape[1]
    first = _hull_begins(piece.argmax(axis=1))
    last = width - 1 - _hull_begins(piece[:, ::-1].argmax(axis=1))
    columns = np.arange(width)
    return (columns >= first[:, None]) & (columns <= last[:, None])


def _hull_begins(first: np.ndarray) -> np.ndarray:
    """The first column in the hull of each row, from that in the piece; whole numbers, for they are of half pixels."""
    x = np.empty(2 * len(first) + 1, np.int64)  # half a pixel before, at and after the middle of each row
    x[0], x[1::2], x[2:-1:2], x[-1] = 2 * first[0], 2 * first - 1, 2 * np.minimum(first[:-1], first[1:]), 2 * first[-1]
    corners = np.arange(len(x))
    while True:  # until none lies on or beyond the line between its neighbours
        y, at = corners, x[corners]
        inner = (at[1:-1] - at[:-2]) * (y[2:] - y[1:-1]) >= (at[2:] - at[1:-1]) * (y[1:-1] - y[:-2])
        if not inner.any():
            break
        corners = corners[np.concatenate([[True], ~inner, [True]])]
    middles = np.arange(1, len(x), 2)
    side = np.searchsorted(corners, middles, side="right") - 1
    y, to_y, at, to_x = corners[side], corners[side + 1], x[corners[side]], x[corners[side + 1]]
    return -(-(at * (to_y - y) + (to_x - at) * (middles - y)) // (2 * (to_y - y)))


def sizes(labels: np.ndarray, count: int) -> np.ndarray:
    """Voxels of each label, 0 to count, of an array of three dimensions; slice by slice, for bincount copies."""
    return sum((np.bincount(one.ravel(), minlength=count + 1) for one in labels), np.zeros(count + 1, np.int64))


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, part)


def _beside(bits: np.ndarray) -> np.ndarray:
    """Packed: each voxel and its two neighbours along the last axis."""
    out = bits | bits << 1 | bits >> 1
    out[..., :-1] |= bits[..., 1:] >> 7
    out[..., 1:] |= bits[..., :-1] << 7
    return out


def _unpacked(bits: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(bits, axis=-1, count=count).view(bool)
