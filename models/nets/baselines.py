"""The networks that a nodule training can choose from: the residual U-Net, and those it is compared with.

TransUNet: Chen 2021 (arXiv:2102.04306); the others are in monai_unets.py. Width 64 is the full size of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from models.layers.vit import ViT
from models.nets.residual_unet import (
    FULL_WIDTH,
    STEP_PX,
    ResidualUNet,
    ResidualUNetConfig,
    ResidualUnit,
    check_size,
    doubled,
)

Net = Literal["residual_unet", "unet", "attention_unet", "transunet"]


class TransUNet(nn.Module):
    """A convolutional encoder, ViT-B on its map at 1/16, and the cascaded upsampler with skips at 1/2, 1/4 and 1/8.

    Of its source it has the plan, the channels and the transformer; the convolutions are our residual units instead of
    a ResNet-50 that has seen ImageNet.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.root = nn.Sequential(
            nn.Conv2d(1, w, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(w), nn.ReLU(inplace=True)
        )
        self.encoder = nn.ModuleList(ResidualUnit(i, o) for i, o in ((w, 4 * w), (4 * w, 8 * w), (8 * w, 16 * w)))
        self.vit = ViT(16 * w, width=768 * w // FULL_WIDTH, depth=12, heads=12, mlp=3072 * w // FULL_WIDTH)
        self.narrow = ResidualUnit(16 * w, 8 * w)
        last = max(4, w // 4)  # 16 at full width
        self.decoder = nn.ModuleList(
            ResidualUnit(i, o) for i, o in ((16 * w, 4 * w), (8 * w, 2 * w), (3 * w, w), (w, last))
        )
        self.head = nn.Conv2d(last, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] -> logits (B, 1, H, W)"""
        check_size(x, STEP_PX)
        skips = [self.root(x)]  # (B, w, H/2, W/2)
        for unit in self.encoder:
            skips.append(unit(nn.functional.max_pool2d(skips[-1], 2)))
        x = self.narrow(self.vit(skips.pop()))  # (B, 8w, H/16, W/16)
        for unit in self.decoder:
            x = doubled(x)
            x = unit(torch.cat([x, skips.pop()], dim=1) if skips else x)
        return self.head(x)


def build_net(about: Mapping[str, Any]) -> nn.Module:
    """The network that a configuration names, with fresh weights: (B, 1, H, W) in [0, 1] -> logits (B, 1, H, W).

    about: `net`, `width` and the fields of ResidualUNetConfig; others are not looked at. Without `net` it is a residual
    U-Net, as every configuration stored before there was a choice. Raises ValueError when the name is unknown, or what
    only the residual U-Net has is asked of another.
    """
    net = about.get("net", "residual_unet")
    if net not in get_args(Net):
        raise ValueError(f"no network {net!r}; known: {', '.join(get_args(Net))}")
    config = ResidualUNetConfig.of(about)
    if net == "residual_unet":
        return ResidualUNet(config)
    if config != ResidualUNetConfig(width=config.width):
        raise ValueError(f"{net} has no scSE, ViT or encoder to choose: only residual_unet has")
    if net == "transunet":
        return TransUNet(config.width)
    from models.nets.monai_unets import (
        AttentionUNet,
        UNet,
    )  # MONAI takes seconds to load, and the node needs none of it

    return UNet(config.width) if net == "unet" else AttentionUNet(config.width)
