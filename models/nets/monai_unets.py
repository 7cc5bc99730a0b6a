"""MONAI's U-Net and Attention U-Net in the sizes of the comparison: Ronneberger 2015 (arXiv:1505.04597) and
Oktay 2018 (arXiv:1804.03999)."""

from __future__ import annotations

from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor

from models.nets.residual_unet import STAGES, STEP_PX, check_size


class UNet(BasicUNet):
    """Batch norm and ReLU as in the comparison's other networks; 64 to 1024 channels at width 64."""

    def __init__(self, width: int) -> None:
        channels = [width * stage for stage in STAGES]
        super().__init__(2, 1, 1, (*channels, width), act=("RELU", {"inplace": True}), norm="batch", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] -> logits (B, 1, H, W)"""
        check_size(x, STEP_PX)
        return super().forward(x)


class AttentionUNet(AttentionUnet):
    """U-Net whose skips are weighed by what the decoder has seen; 64 to 1024 channels at width 64."""

    def __init__(self, width: int) -> None:
        super().__init__(2, 1, 1, [width * stage for stage in STAGES], strides=(2, 2, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] -> logits (B, 1, H, W)"""
        check_size(x, STEP_PX)
        return super().forward(x)
