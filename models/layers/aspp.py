"""Atrous spatial pyramid pooling, Chen 2017 (arXiv:1706.05587), in the form of the residual U-Net's fusion block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ASPP(nn.Module):
    """A 1x1 branch, dilated 3x3 branches and an image-pool branch, each c -> c/2 with bias and ReLU, then 1x1 to c.

    The default rates fit an 8x8 map: DeepLab's (6, 12, 18, 24) would see little but padding there.
    """

    def __init__(self, channels: int, rates: tuple[int, ...] = (1, 2, 4, 6)) -> None:
        super().__init__()
        half = channels // 2
        self.point = nn.Conv2d(channels, half, 1)
        self.dilated = nn.ModuleList(nn.Conv2d(channels, half, 3, padding=rate, dilation=rate) for rate in rates)
        self.pooled = nn.Conv2d(channels, half, 1)
        self.fuse = nn.Conv2d((2 + len(rates)) * half, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        image = F.relu(self.pooled(F.adaptive_avg_pool2d(x, 1)))  # (B, C/2, 1, 1); bilinear from 1x1 is a broadcast
        branches = [
            F.relu(self.point(x)),
            *(F.relu(conv(x)) for conv in self.dilated),
            image.expand(-1, -1, *x.shape[2:]),
        ]
        return self.fuse(torch.cat(branches, dim=1))
