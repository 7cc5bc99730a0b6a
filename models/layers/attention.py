"""Attention gates: small modules that weigh channels and places of a 2-D feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze-and-excitation, Roy 2018 (arXiv:1803.02579); c^2 + c parameters.

    The two gated maps are summed; ratio 2 and no bias, as in the residual U-Net of Model 2.
    """

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // ratio, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // ratio, channels, 1, bias=False),
        )
        self.place = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        # x·c + x·s = x·(c + s): one pass over the map instead of three
        return x * (torch.sigmoid(self.channel(x)) + torch.sigmoid(self.place(x)))


class CBAM(nn.Module):
    """Channel gate, then spatial gate: Woo et al. 2018 (arXiv:1807.06521), sections 3.1 and 3.2."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.place = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        mean, peak = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        x = x * torch.sigmoid(self.mlp(mean) + self.mlp(peak))
        across = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)  # (B, 2, H, W)
        return x * torch.sigmoid(self.place(across))
