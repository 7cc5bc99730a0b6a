"""One window seen by NoduleNet as it is and mirrored; what it says is the mean, in the window's own directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.nets.nodulenet import Level, Maps, NoduleNet

VIEWS: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (1, 2))  # axes that are mirrored: y and x, as in training


@dataclass(frozen=True, eq=False)
class MirroredView:
    """What the network saw, (1, 1, D, H, W) mirrored along axes (0 for z), and the maps it made of it."""

    axes: tuple[int, ...]
    image: Tensor
    maps: Maps


class MirroredViews:
    """levels   what the RPN says of the window: the mean of the logits and of the deltas of all looks"""

    def __init__(self, model: NoduleNet, image: Tensor, count: int = 1) -> None:
        """image: (1, 1, D, H, W); count: 1 to 4 of VIEWS. Raises ValueError for another."""
        if not 1 <= count <= len(VIEWS):
            raise ValueError(f"{count} views: 1 to {len(VIEWS)} are known")
        self.model, self.shape = model, image.shape[2:]
        self.looks, said = [], []
        for axes in VIEWS[:count]:
            seen = image.flip([axis + 2 for axis in axes])
            levels, maps = model(seen)
            self.looks.append(MirroredView(axes, seen, maps))
            said.append([turned_back(level, axes) for level in levels])
        self.levels = said[0] if count == 1 else [mean(same) for same in zip(*said, strict=True)]

    def judge(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (n, 6) in voxels of the window -> probability of a nodule (n,), deltas (n, 6) if it is one"""
        probabilities, deltas = [], []
        for look in self.looks:
            logits, each = self.model.judge(look.maps, 0, mirrored(boxes, look.axes, self.shape))
            probabilities.append(logits.softmax(dim=1)[:, 1])
            deltas.append(each[:, 1] * signs(look.axes, each.device))
        return torch.stack(probabilities).mean(dim=0), torch.stack(deltas).mean(dim=0)

    def outline(self, box: Sequence[int]) -> Tensor:
        """Logits (d, h, w) of a box of nodulenet.aligned"""
        logits = []
        for look in self.looks:
            there = mirrored(torch.tensor([list(box)]), look.axes, self.shape)[0].tolist()
            logits.append(self.model.outline(look.maps, look.image, 0, there).flip(look.axes))
        return torch.stack(logits).mean(dim=0)


def turned_back(level: Level, axes: tuple[int, ...]) -> Level:
    """What was said of a mirrored window, as of the window itself."""
    if not axes:
        return level
    there = [axis + 1 for axis in axes]
    deltas = level.deltas.flip(there) * signs(axes, level.deltas.device)
    return Level(level.stride, level.sides_mm, level.logits.flip(there), deltas)


def mean(levels: Sequence[Level]) -> Level:
    """The mean of the same level in several views."""
    logits, deltas = (
        torch.stack(each).mean(dim=0) for each in ([one.logits for one in levels], [one.deltas for one in levels])
    )
    return Level(levels[0].stride, levels[0].sides_mm, logits, deltas)


def mirrored(boxes: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Boxes (n, 6) in voxels of a window -> where they lie in the mirrored one"""
    there = boxes.clone()
    for axis in axes:
        there[:, axis], there[:, axis + 3] = shape[axis] - boxes[:, axis + 3], shape[axis] - boxes[:, axis]
    return there


def signs(axes: Sequence[int], device: torch.device) -> Tensor:
    """(6,) that deltas are multiplied by to mirror them: the shift changes its sign, the growth does not."""
    return torch.tensor([-1.0 if axis in axes else 1.0 for axis in range(6)], device=device)
