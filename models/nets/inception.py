"""Inception-V3 up to and including Mixed_7a: the feature maps that the recurrent network's source looks at.

Szegedy 2016 (arXiv:1512.00567). Layers are named as in torchvision's inception_v3, so that its published weights, saved
as safetensors, fit; what comes after Mixed_7a is not built and not read.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from models.weights import WeightsError

CHANNELS = 1280
SIDE = 299  # of the image; its map is then 8 x 8


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')"""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class InceptionA(nn.Module):
    """35 x 35: four branches side by side."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 64, 1)
        self.branch5x5_1 = BasicConv2d(inputs, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 224 + pooled, H, W)"""
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch5x5_2(self.branch5x5_1(x)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                self.branch_pool(F.avg_pool2d(x, 3, 1, 1)),
            ],
            dim=1,
        )


class InceptionB(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 480 + inputs, (H - 1) / 2, (W - 1) / 2)"""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], dim=1)


class InceptionC(nn.Module):
    """17 x 17: convolutions of 7 in one direction, then in the other."""

    def __init__(self, inputs: int, narrow: int) -> None:
        super().__init__()

        def row(inputs: int, outputs: int) -> BasicConv2d:
            return BasicConv2d(inputs, outputs, (1, 7), padding=(0, 3))

        def column(inputs: int, outputs: int) -> BasicConv2d:
            return BasicConv2d(inputs, outputs, (7, 1), padding=(3, 0))

        self.branch1x1 = BasicConv2d(inputs, 192, 1)
        self.branch7x7_1 = BasicConv2d(inputs, narrow, 1)
        self.branch7x7_2 = row(narrow, narrow)
        self.branch7x7_3 = column(narrow, 192)
        self.branch7x7dbl_1 = BasicConv2d(inputs, narrow, 1)
        self.branch7x7dbl_2 = column(narrow, narrow)
        self.branch7x7dbl_3 = row(narrow, narrow)
        self.branch7x7dbl_4 = column(narrow, narrow)
        self.branch7x7dbl_5 = row(narrow, 192)
        self.branch_pool = BasicConv2d(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 768, H, W)"""
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
                self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
                self.branch_pool(F.avg_pool2d(x, 3, 1, 1)),
            ],
            dim=1,
        )


class InceptionD(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = BasicConv2d(inputs, 192, 1)
        self.branch3x3_2 = BasicConv2d(192, 320, 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(inputs, 192, 1)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 512 + inputs, (H - 1) / 2, (W - 1) / 2)"""
        wide = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat(
            [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(wide), F.max_pool2d(x, 3, 2)], dim=1
        )


class InceptionV3(nn.Sequential):
    """(B, 3, 299, 299) in [-1, 1] -> (B, 1280, 8, 8)"""

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {
            "Conv2d_1a_3x3": BasicConv2d(3, 32, 3, stride=2),
            "Conv2d_2a_3x3": BasicConv2d(32, 32, 3),
            "Conv2d_2b_3x3": BasicConv2d(32, 64, 3, padding=1),
            "maxpool1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": BasicConv2d(64, 80, 1),
            "Conv2d_4a_3x3": BasicConv2d(80, 192, 3),
            "maxpool2": nn.MaxPool2d(3, 2),
            "Mixed_5b": InceptionA(192, 32),
            "Mixed_5c": InceptionA(256, 64),
            "Mixed_5d": InceptionA(288, 64),
            "Mixed_6a": InceptionB(288),
            "Mixed_6b": InceptionC(768, 128),
            "Mixed_6c": InceptionC(768, 160),
            "Mixed_6d": InceptionC(768, 160),
            "Mixed_6e": InceptionC(768, 192),
            "Mixed_7a": InceptionD(768),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)

    def read(self, path: Path) -> None:
        """Take published weights, as safetensors. Raises WeightsError when they are missing or of another network."""
        try:
            with safe_open(path, "pt") as file:
                there = set(file.keys())
                wanted = {name for name in self.state_dict() if not name.endswith("num_batches_tracked")}
                if missing := sorted(wanted - there):
                    raise WeightsError(f"{path} lacks {missing[0]} of Inception-V3; give torchvision's as safetensors")
                self.load_state_dict({name: file.get_tensor(name) for name in wanted}, strict=False)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise WeightsError(f"{path} holds no weights of Inception-V3: {error}") from error
