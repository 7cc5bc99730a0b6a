"""From what NoduleNet says at every place to boxes, in training and inference alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.layers.boxes import around, centres, clip, decode, nms, sides
from models.lung_nodule.nodulenet.preprocess import MARGIN_MM
from models.nets.nodulenet import Level, flat

OVERLAP = 0.1  # IoU above which of two boxes the less certain goes: in training and in test
CONSIDERED = 2000  # boxes, the most certain, before overlapping ones go


@torch.no_grad()
def proposals(
    levels: Sequence[Level], image: int, shape: Sequence[int], *, min_score: float, max_proposals: int
) -> tuple[Tensor, Tensor]:
    """Boxes (n, 6) in one image of the batch, of `shape` voxels, and their RPN probability (n,), descending.

    min_score       probability
    max_proposals   boxes
    """
    anchors, logits, deltas = flat(levels)
    score = logits[image].sigmoid()
    likely = (score > min_score).nonzero()[:, 0]
    # a stable sort, not topk: of equal scores the earlier, on every device
    order = likely[score[likely].argsort(descending=True, stable=True)[:CONSIDERED]]
    boxes = clip(decode(deltas[image, order], anchors[order]), shape)
    whole = (sides(boxes) >= 1).all(dim=1)  # what lies beyond the border has been clipped away
    boxes, score = boxes[whole], score[order][whole]
    kept = nms(boxes, score, OVERLAP)[:max_proposals]
    return boxes[kept], score[kept]


def with_margin(boxes: Tensor) -> Tensor:
    """Nodules' own boxes (..., 6) -> what the network learns to give"""
    return around(centres(boxes), sides(boxes) + MARGIN_MM)


def without_margin(boxes: Tensor) -> Tensor:
    """What `with_margin` undoes; no side falls below 2 voxels"""
    return around(centres(boxes), (sides(boxes) - MARGIN_MM).clamp_min(2))
