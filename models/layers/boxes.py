"""Boxes in any number of dimensions, on torch alone: overlap, suppression, and the numbers a detector predicts.

A box is a row of 2d floats: its starts, then its ends, axes in array order ((y, x) or (z, y, x)), ends excluded: that
of voxels 3 to 5 is 3, 6. Deltas are as in R-CNN (Girshick 2014): the shift of the centre in sides of the anchor, then
the logarithm of the ratio of the sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_GROWTH = math.log(1000 / 16)  # a side grows at most so much: exp() of a wild logit must stay finite


def sides(boxes: Tensor) -> Tensor:
    """(..., 2d) -> lengths (..., d)"""
    starts, ends = boxes.chunk(2, dim=-1)
    return ends - starts


def centres(boxes: Tensor) -> Tensor:
    """(..., 2d) -> (..., d)"""
    starts, ends = boxes.chunk(2, dim=-1)
    return (starts + ends) / 2


def around(centre: Tensor, side: Tensor) -> Tensor:
    """Centres (..., d) and lengths (..., d) -> boxes (..., 2d)"""
    return torch.cat([centre - side / 2, centre + side / 2], dim=-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., n, 2d), (..., m, 2d) -> (..., n, m) intersection over union; 0 where both are empty"""
    (a0, a1), (b0, b1) = a[..., :, None, :].chunk(2, dim=-1), b[..., None, :, :].chunk(2, dim=-1)
    shared = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp_min(0).prod(dim=-1)
    union = sides(a).prod(dim=-1)[..., :, None] + sides(b).prod(dim=-1)[..., None, :] - shared
    return torch.where(union > 0, shared / union, 0.0)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices (k,) of the boxes (n, 2d) that no kept one of higher score overlaps by an IoU above the threshold.

    The most certain first; of equal scores the earlier index.
    """
    left = scores.argsort(descending=True, stable=True)
    kept = []
    while len(left):
        kept.append(left[0])
        apart = iou(boxes[left[:1]], boxes[left[1:]])[0] <= threshold
        left = left[1:][apart]
    return torch.stack(kept) if kept else left


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(..., 2d), (..., 2d) -> deltas (..., 2d): (dz/d, dy/h, dx/w, log d, log h, log w). Sides must be above 0."""
    side = sides(anchors)
    return torch.cat([(centres(boxes) - centres(anchors)) / side, (sides(boxes) / side).log()], dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """What `encode` undoes: (..., 2d), (..., 2d) -> boxes (..., 2d)"""
    shift, growth = deltas.chunk(2, dim=-1)
    side = sides(anchors)
    return around(centres(anchors) + shift * side, side * growth.clamp_max(MOST_GROWTH).exp())


def clip(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Boxes (..., 2d) cut to an image of `shape`; one that lies outside becomes empty at the border."""
    most = torch.tensor([*shape, *shape], dtype=boxes.dtype, device=boxes.device)
    return boxes.clamp_min(0).minimum(most)
