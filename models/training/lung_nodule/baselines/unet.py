"""A plain U-Net in three dimensions that outlines nodules, on the voxels and crops of NoduleNet: a baseline.

MONAI's UNet without residual units: with them its last ones see a single channel, and in a short training say nothing
for long. Its stride is 2 from the first layer on. Dice and cross-entropy; marks are connected pieces of what is
probable enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet
from scipy import ndimage
from torch import Tensor, nn

from models.lung_nodule.nodulenet.proposals import without_margin
from models.nets.nodulenet import PRIOR
from models.training.lung_nodule.nodulenet.evaluate import Mark
from models.training.lung_nodule.nodulenet.targets import present

THRESHOLDS = (0.1, 0.3, 0.5, 0.7)  # of the probability from which a voxel belongs to a piece; val chooses
SURE = 30.0  # a logit that no loss can move


class NoduleUNet(UNet):
    """(B, 1, D, H, W) -> logits (B, 1, D, H, W), and how it learns from NoduleNet's batches."""

    multiple = 16  # voxels; every side of an input is a multiple of this

    def __init__(self, width: int) -> None:
        super().__init__(3, 1, 1, [width * 2**level for level in range(5)], [2, 2, 2, 2], norm="batch")
        *_, last = (part for part in self.modules() if isinstance(part, nn.ConvTranspose3d))
        nn.init.constant_(cast(Tensor, last.bias), math.log(PRIOR / (1 - PRIOR)))
        self.dice_and_cross_entropy = DiceCELoss(sigmoid=True, batch=True)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """A batch of models.training.lung_nodule.nodulenet.data.make_batches -> scalar.

        Dice is of the whole batch: a crop without nodule has none.
        """
        truth = (batch["masks"] > 0).float()
        logits = self(batch["image"]).float()
        neither = in_boxes(batch["ignored"], truth.shape) & (truth == 0)
        return cast(Tensor, self.dice_and_cross_entropy(logits.masked_fill(neither, -SURE), truth))

    def answers(self, image: Tensor) -> dict[str, list[Mark]]:
        """(1, 1, D, H, W) in eval mode -> marks, by the rule that made them."""
        probability = self(image)[0, 0].float().sigmoid().cpu().numpy()
        found = {}
        for threshold in THRESHOLDS:
            largest, mean = pieces(probability, threshold)
            found[f"largest probability from {threshold} on"] = largest
            found[f"mean probability from {threshold} on"] = mean
        return found


def in_boxes(boxes: Tensor, shape: torch.Size) -> Tensor:
    """bool (B, 1, D, H, W): within the boxes (B, most, 6) of a batch, taken without their margin"""
    inside = torch.zeros(shape, dtype=torch.bool, device=boxes.device)
    for image, each in zip(inside, boxes, strict=True):
        for box in without_margin(present(each)):
            starts, ends = box[:3].floor().clamp_min(0).int().tolist(), box[3:].ceil().clamp_min(0).int().tolist()
            image[(0, *(slice(a, b) for a, b in zip(starts, ends, strict=True)))] = True
    return inside


def pieces(probability: np.ndarray, threshold: float) -> tuple[list[Mark], list[Mark]]:
    """26-connected pieces of (z, y, x) above the threshold as marks at their centroids: by largest, by mean value."""
    labels, count = ndimage.label(probability > threshold, np.ones((3, 3, 3)))
    where = np.nonzero(labels)
    piece, value = labels[where] - 1, probability[where]
    voxels = np.bincount(piece, minlength=count)
    centroids = np.stack([np.bincount(piece, axis, count) / voxels for axis in where], axis=1).tolist()
    most = np.zeros(count)
    np.maximum.at(most, piece, value)
    largest, mean = (
        [Mark((z, y, x), score) for (z, y, x), score in zip(centroids, scores.tolist(), strict=True)]
        for scores in (most, np.bincount(piece, value, count) / voxels)
    )
    return largest, mean
