"""A vision transformer on a feature map, each place a token: Dosovitskiy 2021 (arXiv:2010.11929)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID = 8  # places are learnt for the 8x8 map of a 128x128 image at 1/16


class ViT(nn.Module):
    """1x1 to `width`, learnt places, `depth` blocks of pre-norm attention and GELU MLP, norm, 1x1 back to `channels`.

    `heads` is lowered to a divisor of `width` where it is none. On a map of another size than 8x8 the learnt places are
    interpolated bilinearly.
    """

    def __init__(self, channels: int, *, width: int = 768, depth: int = 6, heads: int = 12, mlp: int = 3072) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 1)
        self.place = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width, GRID, GRID), std=0.02))
        # not nn.TransformerEncoder: its layers are copies of one and would all start with the same weights
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width,
                    math.gcd(heads, width),
                    mlp,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        size = x.shape[2:]
        place: Tensor = self.place
        if size != place.shape[2:]:
            place = F.interpolate(place, size, mode="bilinear", align_corners=False)
        tokens = (self.enter(x) + place).flatten(2).transpose(1, 2)  # (B, H·W, width)
        tokens = self.norm(self.blocks(tokens))
        return self.leave(tokens.transpose(1, 2).unflatten(2, size))
