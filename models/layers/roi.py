"""What a two-stage detector does with proposed boxes in two dimensions, on torch alone: drop repeats, read features.

Boxes are rows of y0, x0, y1, x1 as in `boxes`: edges, so that the first pixel of an image reaches from 0 to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.boxes import iou

SAMPLES = 2  # points per side of a bin: He 2017 (arXiv:1703.06870), section 3


def survivors(boxes: Tensor, threshold: float) -> Tensor:
    """(B, n, 4), the most certain first -> bool (B, n): `boxes.nms` of each list, all lists at once.

    A box survives unless an earlier survivor overlaps it by an IoU above the threshold. That is a fixed point, reached
    from "all survive" after as many rounds as the longest chain of suppressions is long (Zheng 2020, arXiv:2005.03572).
    """
    repeats = (iou(boxes, boxes) > threshold).triu(1)  # [i, j]: i comes first and covers j
    alive = torch.ones(boxes.shape[:-1], dtype=torch.bool, device=boxes.device)
    while True:
        now = ~(repeats & alive[:, :, None]).any(dim=1)
        if torch.equal(now, alive):
            return alive
        alive = now


def roi_align(features: Tensor, boxes: Tensor, image: Tensor, stride: float, size: int = 7) -> Tensor:
    """(B, C, H, W), boxes (k, 4) in pixels of the input, int (k,) which image -> float32 (k, C, size, size)

    Each of size x size bins is the mean of SAMPLES x SAMPLES points, read bilinearly between the middles of the cells,
    without any rounding of the box; beyond the outermost middles the map goes on as it ends. Places in half precision
    would be off by pixels: all is done in float32.
    """
    features, boxes = features.float(), boxes.float()
    points = size * SAMPLES
    inside = (torch.arange(points, dtype=boxes.dtype, device=boxes.device) + 0.5) / points
    start, end = (boxes / stride).chunk(2, dim=-1)  # (k, 2) in cells
    at = start[:, None] + inside[:, None] * (end - start)[:, None]  # (k, points, 2)
    height, width = features.shape[2:]
    grid_y, grid_x = 2 * at[..., 0] / height - 1, 2 * at[..., 1] / width - 1  # -1 and 1 are the map's edges
    # (k, points, points, 2) of x, y
    grid = torch.stack(torch.broadcast_tensors(grid_x[:, None, :], grid_y[:, :, None]), dim=-1)
    out = features.new_zeros(len(boxes), features.shape[1], size, size)
    for b in range(len(features)):
        mine = (image == b).nonzero()[:, 0]
        if len(mine):
            wide = grid[mine].flatten(0, 1)[None]  # (1, k_b · points, points, 2)
            read = F.grid_sample(features[b : b + 1], wide, "bilinear", "border", align_corners=False)
            bins = F.avg_pool2d(read, SAMPLES)[0]  # (C, k_b · size, size)
            out = out.index_copy(0, mine, bins.unflatten(1, (len(mine), size)).transpose(0, 1))
    return out
