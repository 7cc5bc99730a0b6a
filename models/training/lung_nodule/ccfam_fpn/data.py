"""Slices with boxes round their nodules, for a detector: the crops of ..data.slices, neighbours as channels.

The set of crops shows 128 x 128 pixels round a nodule, never a whole slice, and the nodule in their middle. So windows
smaller than the crops are cut, anywhere as long as the nodule is in them: nobody learns, or is judged on, the middle.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from models.lung_nodule.preprocess import window
from models.training.lung_nodule.data.slices import Free, Slices, cut_centre, evenly, jittered, mirrored, placement

GAP_PX = 4  # pieces of a mask nearer than this are one nodule
SLIVER_PX = 2  # what a window cuts off from a nodule narrower than this is no nodule any more


@dataclass(frozen=True, eq=False)
class Window:
    """One image to judge a detector on: float (channels, side, side) in [0, 1], true boxes (m, 4), whose it is."""

    image: Tensor
    boxes: np.ndarray
    patient: str


class Stacks:
    """Slices with their neighbours as channels, in windows of `side` pixels."""

    def __init__(self, slices: Slices, channels: int, side: int) -> None:
        if side > slices.images.shape[-1]:
            raise ValueError(f"windows of {side} pixels cannot be cut from crops of {slices.images.shape[-1]}")
        self.slices, self.side = slices, side
        self.beside = neighbours(slices.nodules, slices.marked, channels)

    def hu(self, index: np.ndarray) -> Tensor:
        """float32 (n, channels, s, s) in Hounsfield units"""
        n, channels = len(index), self.beside.shape[1]
        return self.slices.hu(self.beside[index].ravel())[:, 0].unflatten(0, (n, channels))

    def augmented(
        self, split: str, *, seed: int, batch: int, crops: int, negatives: float
    ) -> Iterator[dict[str, Tensor]]:
        """`crops` windows in random order, turned, mirrored, scaled, shifted and of other scanners, as in Slices; a
        share of about `negatives` without nodule. "image" (n, channels, side, side); "boxes" (n, m, 4), of which those
        without area are none."""
        random = np.random.default_rng(seed)
        order = random.permutation(self.slices.index[split])[:crops]
        for start in range(0, len(order) - batch + 1, batch):
            part = order[start : start + batch]
            yield vary(self.hu(part), self.slices.masks(part), self.side, random, negatives)

    def windows(self, split: str, most: int | None = None) -> Iterator[Window]:
        """Every slice of a split that has a nodule, in a fixed window that holds it, then those without.

        most    an even sample of so many with a nodule, and of those without as many as belong to them
        """
        order = self.slices.index[split]
        free = self.slices.free(split)
        if most is not None and most < len(order):
            share = most / len(order)
            order, kept = (evenly(np.arange(n), round(n * share)) for n in (len(order), len(free)))
            order, free = self.slices.index[split][order], [free[i] for i in kept]
        for i in order:
            mask = self.slices.masks(np.array([i]))[0].numpy()
            rows, columns = self.placed(int(i), mask)
            yield self.cut(int(i), self.hu(np.array([i]))[0], rows, columns, boxes_of(mask[rows, columns]))
        for part in free:
            rows, columns = self.placed(part.crop, np.zeros(self.slices.votes.shape[1:], bool))
            yield self.cut(part.crop, self.strip(part), rows, columns, np.zeros((0, 4), np.float32))

    def strip(self, part: Free) -> Tensor:
        """A slice without nodule in HU (channels, s, s): see Slices.negatives"""
        return torch.stack([mirrored(one, part) for one in self.hu(np.array([part.crop]))[0]])

    def cut(self, index: int, hu: Tensor, rows: slice, columns: slice, boxes: np.ndarray) -> Window:
        return Window(window(hu[:, rows, columns]), boxes, self.slices.patients[index])

    def placed(self, index: int, mask: np.ndarray) -> tuple[slice, slice]:
        """Rows and columns of the crop's window: by chance, always the same, and round the whole mask if that fits."""
        random = np.random.default_rng(zlib.crc32(f"window of {index}".encode()))
        places = []
        for axis in (0, 1):
            marked, most = np.flatnonzero(mask.any(axis=1 - axis)), mask.shape[axis] - self.side
            low, high = (0, most) if not len(marked) else (max(0, marked[-1] + 1 - self.side), min(most, marked[0]))
            start = int(random.integers(low, high + 1)) if low <= high else most // 2
            places.append(slice(start, start + self.side))
        return places[0], places[1]


def vary(hu: Tensor, masks: Tensor, side: int, random: np.random.Generator, negatives: float) -> dict[str, Tensor]:
    """A batch of Stacks.augmented of images (n, channels, s, s) in HU with masks (n, s, s).

    Of one without nodule any place is shown, and hardly anything beyond its edge, where it is mirrored: that must not
    tell which has none.
    """
    full = masks.shape[-1]
    cuts = [
        cut_centre(mask.numpy() > 0, side, random, negatives)
        if mask.any()
        else (*random.uniform(side / 2, full - side / 2, 2), 1.0)
        for mask in masks
    ]
    grid = placement(np.stack(cuts), side, random, full)
    image = F.grid_sample(hu, grid, "bilinear", "reflection", align_corners=False)
    moved = F.grid_sample(masks[:, None].float(), grid, "bilinear", "reflection", align_corners=False)[:, 0] > 0.5
    return {"image": window(jittered(image, random)), "boxes": padded([boxes_of(mask) for mask in moved.numpy()])}


def neighbours(nodules: list[str], marked: np.ndarray, channels: int) -> np.ndarray:
    """int (n, channels): the crops that are the channels of each, itself in the middle; the last one again at an end.

    Crops are neighbours when they follow each other, are named after the same nodule, and what the readers marked in
    them overlaps: so are those of a nodule from slice to slice, and windows elsewhere in the lungs are not.
    """
    names = np.array(nodules)
    (top, bottom, left, right), (after_top, after_bottom, after_left, after_right) = marked[:-1].T, marked[1:].T
    overlap = (np.maximum(top, after_top) < np.minimum(bottom, after_bottom)) & (
        np.maximum(left, after_left) < np.minimum(right, after_right)
    )
    follows = (names[:-1] == names[1:]) & (top >= 0) & (after_top >= 0) & overlap
    onward, back = np.append(follows, False), np.insert(follows, 0, False)
    middle = channels // 2
    index = np.empty((len(names), channels), int)
    index[:, middle] = np.arange(len(names))
    for place in range(middle + 1, channels):
        index[:, place] = index[:, place - 1] + onward[index[:, place - 1]]
    for place in range(middle - 1, -1, -1):
        index[:, place] = index[:, place + 1] - back[index[:, place + 1]]
    return index


def boxes_of(mask: np.ndarray) -> np.ndarray:
    """bool (h, w) -> float32 (m, 4), one box round each nodule: pieces within GAP_PX are one, slivers are none."""
    if not mask.any():
        return np.zeros((0, 4), np.float32)
    near = ndimage.distance_transform_edt(~mask) < GAP_PX / 2
    labels, _ = ndimage.label(near, structure=np.ones((3, 3)))
    found = cast(list[tuple[slice, slice]], ndimage.find_objects(np.where(mask, labels, 0)))
    boxes = np.array([[y.start, x.start, y.stop, x.stop] for y, x in found], np.float32)
    return boxes[((boxes[:, 2:] - boxes[:, :2]) >= SLIVER_PX).all(axis=1)]


def padded(boxes: list[np.ndarray]) -> Tensor:
    """Lists of boxes (m, 4) -> (n, longest, 4), zeros behind the shorter ones"""
    out = torch.zeros(len(boxes), max(1, *(len(one) for one in boxes)), 4)
    for row, one in zip(out, boxes, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    return out
