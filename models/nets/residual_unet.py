"""Residual U-Net with scSE gates and multi-scale fusion: nodule segmentation on axial crops (Model 2 of its source).

At width 64 it has exactly 71 538 433 parameters, the figure its source states; `width` scales every channel count.
Residual units: Zhang 2018 (arXiv:1711.10684) with 3x3 skip; scSE: Roy 2018; pyramid: Chen 2017.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.aspp import ASPP
from models.layers.attention import SCSE

STAGES = (1, 2, 4, 8, 16)  # channels of the five levels as multiples of the width: 64, 128, 256, 512, 1024


class ResidualUnit(nn.Module):
    """Pre-activation unit: [BN-ReLU]-conv-BN-ReLU-conv plus a conv3-BN skip; the first unit has no leading BN-ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, first: bool = False) -> None:
        super().__init__()
        lead: list[nn.Module] = [] if first else [nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True)]
        self.main = nn.Sequential(
            *lead,
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        self.skip = nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)"""
        return self.main(x) + self.skip(x)


class ResidualUNet(nn.Module):
    """One channel in, one logit map out, same size; height and width must be multiples of 16."""

    def __init__(self, width: int = 64, rates: tuple[int, ...] = (1, 2, 4, 6)) -> None:
        super().__init__()
        c = [width * stage for stage in STAGES]
        self.encoder = nn.ModuleList(
            ResidualUnit(i, o, first=level == 0) for level, (i, o) in enumerate(zip([1, *c], c, strict=False))
        )
        self.gates = nn.ModuleList(SCSE(channels) for channels in c)
        self.fusion = ASPP(c[4], rates)
        self.decoder = nn.ModuleList(ResidualUnit(c[level + 1] + c[level], c[level]) for level in (3, 2, 1, 0))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] -> logits (B, 1, H, W)"""
        skips: list[Tensor] = []
        for unit, gate in zip(self.encoder, self.gates, strict=True):
            x = gate(unit(F.max_pool2d(x, 2) if skips else x))
            skips.append(x)
        x = self.fusion(skips.pop())  # (B, 16w, H/16, W/16)
        for unit in self.decoder:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = unit(torch.cat([x, skips.pop()], dim=1))
        return self.head(x)
