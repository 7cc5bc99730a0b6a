"""Backbones of other families for the detector on slices, to be compared with its own ResNet-50 under one budget.

VGG16 with batch norm (Simonyan 2014, arXiv:1409.1556), ResNet-18 (He 2016), EfficientNet-B0 (Tan 2019,
arXiv:1905.11946) and MobileNetV3-Large (Howard 2019, arXiv:1905.02244), each without what classifies. At full width and
depth they have the published numbers of parameters; `width` scales channels as it does ResNet-50's, and so does `depth`
the blocks of each stage. Nothing is pretrained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

Family = Literal["vgg16", "resnet18", "efficientnet-b0", "mobilenet-v3-l"]
RESNET_50 = (3, 4, 6, 3)  # blocks of its stages, of which `depth` takes a fraction


class Blocks(NamedTuple):
    """Parts of a backbone: what halves the sides once or twice, the stages of C2 to C5, and their channels."""

    root: nn.Module
    stages: Sequence[nn.Module]
    channels: Sequence[int]


def normed(
    channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution and batch norm; the map keeps its size over the stride."""
    pad = dilation * (kernel - 1) // 2
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, pad, dilation, groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


def build(family: Family, channels_in: int, scale: float, depth: Sequence[int]) -> Blocks:
    """A backbone that sees so many channels. scale: of the published channels; depth: as ResNet-50's."""
    makers: dict[Family, Callable[[int, float, Sequence[float]], Blocks]] = {
        "vgg16": vgg16,
        "resnet18": resnet18,
        "efficientnet-b0": efficientnet_b0,
        "mobilenet-v3-l": mobilenet_v3_l,
    }
    return makers[family](channels_in, scale, [mine / full for mine, full in zip(depth, RESNET_50, strict=True)])


def fraction(count: int, part: float) -> int:
    """So many of the published blocks, one at least."""
    return max(1, math.ceil(count * part - 1e-9))


def divisible(channels: float) -> int:
    """The multiple of 8 next to it, not below nine tenths of it: Howard 2019."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


# ------------------------------------------------------------------------------------------------------ VGG, ResNet


def vgg16(channels_in: int, scale: float, parts: Sequence[float]) -> Blocks:
    def stage(channels_in: int, channels: int, count: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for index in range(count):
            layers += [normed(channels if index else channels_in, channels, 3), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    first = round(64 * scale)
    channels = [round(c * scale) for c in (128, 256, 512, 512)]
    counts = [fraction(n, part) for n, part in zip((2, 3, 3, 3), parts, strict=True)]
    stages = [stage(*each) for each in zip([first, *channels[:-1]], channels, counts, strict=True)]
    return Blocks(stage(channels_in, first, fraction(2, parts[0])), stages, channels)


class BasicBlock(nn.Module):
    """Two 3x3, the first strides."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            normed(channels_in, channels, 3, stride), nn.ReLU(inplace=True), normed(channels, channels, 3)
        )
        same = stride == 1 and channels_in == channels
        self.skip = nn.Identity() if same else normed(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H/stride, W/stride)"""
        return F.relu(self.branch(x) + self.skip(x))


def resnet18(channels_in: int, scale: float, parts: Sequence[float]) -> Blocks:
    first = round(64 * scale)
    root = nn.Sequential(normed(channels_in, first, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))
    channels, before, stages = [first << stage for stage in range(4)], first, []
    for number, (now, part) in enumerate(zip(channels, parts, strict=True)):
        blocks = []
        for index in range(fraction(2, part)):
            blocks.append(BasicBlock(before, now, 2 if number and not index else 1))
            before = now
        stages.append(nn.Sequential(*blocks))
    return Blocks(root, stages, channels)


# --------------------------------------------------------------------------------------- EfficientNet, MobileNetV3


class Inverted(NamedTuple):
    """A row of the published tables: kernel, channels between and behind, those of its squeeze (0: none), and how it
    is activated."""

    kernel: int
    between: int
    out: int
    squeeze: int
    activation: type[nn.Module]


class SqueezeExcite(nn.Module):
    """Hu 2018, with the activations of the network around it."""

    def __init__(self, channels: int, hidden: int, activation: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), activation(), nn.Conv2d(hidden, channels, 1), gate())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return x * self.mlp(x.mean(dim=(2, 3), keepdim=True))


class InvertedResidual(nn.Module):
    """1x1 to more channels, a convolution of each, squeeze and excitation, 1x1 to few: Sandler 2018 and after."""

    def __init__(self, channels_in: int, row: Inverted, stride: int, squeeze: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if row.between != channels_in:
            layers += [normed(channels_in, row.between), row.activation()]
        layers += [normed(row.between, row.between, row.kernel, stride, groups=row.between), row.activation()]
        layers += [squeeze(row.between, row.squeeze)] if row.squeeze else []
        self.branch = nn.Sequential(*layers, normed(row.between, row.out))
        self.same = stride == 1 and channels_in == row.out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H/stride, W/stride)"""
        return x + self.branch(x) if self.same else self.branch(x)


def inverted(
    root: nn.Sequential,
    channels: int,
    tables: Sequence[Sequence[Inverted]],
    parts: Sequence[float],
    squeeze: Callable[[int, int], nn.Module],
) -> Blocks:
    """The stages of C2 to C5, each of the last rows of its table; the first block of each strides."""
    stages = []
    for table, part in zip(tables, parts, strict=True):
        blocks = []
        for index, row in enumerate(table[-fraction(len(table), part) :]):
            blocks.append(InvertedResidual(channels, row, 1 if index else 2, squeeze))
            channels = row.out
        stages.append(nn.Sequential(*blocks))
    return Blocks(root, stages, [table[-1].out for table in tables])


def efficientnet_b0(channels_in: int, scale: float, parts: Sequence[float]) -> Blocks:
    # of each stage: (repeats, kernel, channels)
    published = (((2, 3, 24),), ((2, 5, 40),), ((3, 3, 80), (3, 5, 112)), ((4, 5, 192), (1, 3, 320)))

    def squeeze(channels: int, hidden: int) -> nn.Module:
        return SqueezeExcite(channels, hidden, nn.SiLU, nn.Sigmoid)

    stem, first = divisible(32 * scale), divisible(16 * scale)
    root = nn.Sequential(
        *(normed(channels_in, stem, 3, 2), nn.SiLU()),
        InvertedResidual(stem, Inverted(3, stem, first, max(1, stem // 4), nn.SiLU), 1, squeeze),
    )
    tables, before = [], first
    for stage in published:
        rows = []
        for repeats, kernel, channels in stage:
            for _ in range(repeats):
                now = divisible(channels * scale)
                rows.append(Inverted(kernel, 6 * before, now, max(1, before // 4), nn.SiLU))
                before = now
        tables.append(rows)
    return inverted(root, first, tables, parts, squeeze)


def mobilenet_v3_l(channels_in: int, scale: float, parts: Sequence[float]) -> Blocks:
    # of each stage: (kernel, channels between, channels, squeeze and excitation)
    published = (
        ((3, 64, 24, False), (3, 72, 24, False)),
        ((5, 72, 40, True), (5, 120, 40, True), (5, 120, 40, True)),
        (
            *((3, 240, 80, False), (3, 200, 80, False), (3, 184, 80, False), (3, 184, 80, False)),
            *((3, 480, 112, True), (3, 672, 112, True)),
        ),
        ((5, 672, 160, True), (5, 960, 160, True), (5, 960, 160, True)),
    )

    def squeeze(channels: int, hidden: int) -> nn.Module:
        return SqueezeExcite(channels, hidden, nn.ReLU, nn.Hardsigmoid)

    first = divisible(16 * scale)
    root = nn.Sequential(
        *(normed(channels_in, first, 3, 2), nn.Hardswish()),
        InvertedResidual(first, Inverted(3, first, first, 0, nn.ReLU), 1, squeeze),
    )
    tables = [
        [
            Inverted(
                kernel,
                divisible(between * scale),
                divisible(channels * scale),
                divisible(divisible(between * scale) / 4) if gated else 0,
                nn.ReLU if number < 2 else nn.Hardswish,
            )
            for kernel, between, channels, gated in stage
        ]
        for number, stage in enumerate(published)
    ]
    return inverted(root, first, tables, parts, squeeze)
