"""Boxes on slices linked to findings in the volume: what overlaps from slice to slice is one nodule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit

from models.layers.boxes import iou
from models.lung_nodule.detections import Detection3D
from models.lung_nodule.odds import log_odds

OVERLAP = 0.3  # IoU from which boxes of neighbouring slices are of one nodule
LEAST_SLICES = 2  # a box that no neighbour bears out is no finding
DECIDING = 3  # slices: the surest say how certain a finding is
ELONGATED, SLANTED = 2.0, 2.0  # log odds that it loses for what is no ball, chosen on val


@dataclass(frozen=True, eq=False)
class SliceBoxes:
    """What was found on one slice: boxes (n, 4) in pixels, and (n,) of the second stage and of the first."""

    boxes: np.ndarray
    scores: np.ndarray
    proposed: np.ndarray


@dataclass(frozen=True)
class Link:
    """Box `index` of slice z."""

    z: int
    index: int


def link_boxes(slices: Mapping[int, SliceBoxes]) -> list[Detection3D]:
    """Boxes by slice, in any order -> findings on the grid of these slices and pixels, the most certain first.

    Boxes of neighbouring slices are paired by falling IoU, each with one at most. The centre is the mean of the boxes'
    centres, weighed by score times area: by score alone a thin slice at a pole would count as much as the middle, and
    the centre of a ball in slices of 5 mm be up to 2.5 mm off. score is its `certainty`, rcnn that of the surest box,
    rpn its first stage's.
    """
    following: dict[Link, Link] = {}
    for z in sorted(slices):
        if z + 1 in slices:
            for a, b in pairs(slices[z].boxes, slices[z + 1].boxes):
                following[Link(z, a)] = Link(z + 1, b)
    reached = set(following.values())
    found = []
    for start in following:
        if start not in reached:
            chain = [start]
            while (after := following.get(chain[-1])) is not None:
                chain.append(after)
            if len(chain) >= LEAST_SLICES:
                found.append(finding(chain, slices))
    return sorted(found, key=lambda one: (-one.score, one.centre_zyx))


def pairs(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """Which boxes of two neighbouring slices are of one nodule: those that overlap most choose first."""
    overlap = iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    candidates = [(-float(overlap[i, j]), tuple(a[i]), tuple(b[j]), i, j) for i, j in np.argwhere(overlap >= OVERLAP)]
    chosen: dict[int, int] = {}
    for _, _, _, i, j in sorted(candidates):  # among equals by place, so that the order in the lists does not matter
        if i not in chosen and j not in chosen.values():
            chosen[int(i)] = int(j)
    return [*chosen.items()]


def finding(chain: Sequence[Link], slices: Mapping[int, SliceBoxes]) -> Detection3D:
    boxes = np.stack([slices[one.z].boxes[one.index] for one in chain]).astype(float)
    scores = np.array([slices[one.z].scores[one.index] for one in chain], float)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5  # of boxes pixel 0 is from 0 to 1, as an index its middle is 0
    weights = scores * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    places = np.column_stack([[one.z for one in chain], middles])
    z, y, x = (float(mean) for mean in np.average(places, axis=0, weights=weights))
    surest = int(scores.argmax())
    top, left = (int(edge) for edge in np.floor(boxes[:, :2].min(axis=0)))
    bottom, right = (int(edge) for edge in np.ceil(boxes[:, 2:].max(axis=0)))
    box = (chain[0].z, top, left, chain[-1].z + 1, bottom, right)
    proposed = float(slices[chain[surest].z].proposed[chain[surest].index])
    return Detection3D((z, y, x), box, None, certainty(scores, boxes), proposed, float(scores[surest]))


def certainty(scores: np.ndarray, boxes: np.ndarray) -> float:
    """How surely boxes (n, 4) with scores (n,) are a nodule, on slices that follow each other as far apart as pixels.

    The mean log odds of the DECIDING surest boxes, less ELONGATED times the log of how many times the whole is longer
    than wide or wider than long, and SLANTED times its way from the first box to the last in widths: on a slice a
    vessel is as round as a nodule.
    """
    width = float(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1).max()))
    way = float(np.linalg.norm(boxes[-1].reshape(2, 2).mean(axis=0) - boxes[0].reshape(2, 2).mean(axis=0)))
    odds = log_odds(np.sort(scores)[-DECIDING:]).mean()
    return float(expit(odds - ELONGATED * abs(np.log(len(boxes) / width)) - SLANTED * way / width))
