"""What the anchors and the boxes of a crop are to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.boxes import iou

POSITIVE, NEGATIVE, NEITHER = 1, 0, -1
ANCHOR_IOU = (0.02, 0.5)  # negative below, positive from there on
ROI_IOU = (0.1, 0.5)
ROIS = 64  # of an image, at most half of them nodules


def present(boxes: Tensor) -> Tensor:
    """(m, 6) -> those that are boxes: rows of zeros fill up a batch."""
    return boxes[(boxes != 0).any(dim=1)]


def label_anchors(anchors: Tensor, boxes: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:
    """POSITIVE, NEGATIVE or NEITHER of each anchor (n,), and which box it is held against (n,).

    anchors   (n, 6)
    boxes     (m, 6) of the nodules; each has at least one positive: its best anchors, however poor
    ignored   (k, 6) of what is to be learnt neither way
    """
    labels = torch.full((len(anchors),), NEGATIVE, device=anchors.device)
    which = torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
    if len(ignored):
        labels[iou(anchors, ignored).amax(dim=1) >= ANCHOR_IOU[0]] = NEITHER
    if not len(boxes):
        return labels, which
    overlap = iou(anchors, boxes)
    best, which = overlap.max(dim=1)
    labels[best >= ANCHOR_IOU[0]] = NEITHER
    labels[best >= ANCHOR_IOU[1]] = POSITIVE
    nearest = (overlap == overlap.amax(dim=0)) & (overlap > 0)  # (n, m) best anchors of each box, equals too
    labels[nearest.any(dim=1)] = POSITIVE
    which = torch.where(nearest.any(dim=1), (overlap * nearest).argmax(dim=1), which)
    return labels, which


def choose(mask: Tensor, most: int) -> Tensor:
    """Indices of at most so many True places (n,), at random."""
    places = mask.nonzero()[:, 0]
    return places[torch.randperm(len(places), device=mask.device)[:most]]


def sample_rois(proposed: Tensor, boxes: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 6) that the RCNN head learns from, whether each is a nodule (n,), and which one (n,).

    The nodules' own boxes are among them. Of what overlaps a nodule, or what is ignored, by less than half but not
    little, nothing is learnt.
    """
    rois = torch.cat([proposed, boxes])
    if len(boxes):
        best, which = iou(rois, boxes).max(dim=1)
    else:
        best, which = rois.new_zeros(len(rois)), torch.zeros(len(rois), dtype=torch.long, device=rois.device)
    background = best < ROI_IOU[0]
    if len(ignored) and len(rois):
        background &= iou(rois, ignored).amax(dim=1) < ROI_IOU[0]
    nodules = choose(best >= ROI_IOU[1], ROIS // 2)
    others = choose(background, ROIS - len(nodules))
    taken = torch.cat([nodules, others])
    truth = torch.cat([torch.ones_like(nodules), torch.zeros_like(others)])
    return rois[taken], truth, which[taken]
