"""From the slices of a candidate to an answer: a feature extractor for each slice, then recurrent attention over all.

The source's extractor is Inception-V3 up to Mixed_7a with ImageNet weights, frozen. Where those are not at hand, a
small network learns features of as many cells from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nets.inception import CHANNELS as INCEPTION_CHANNELS
from models.nets.inception import SIDE as INCEPTION_SIDE
from models.nets.inception import InceptionV3
from models.nets.recurrent_attention import Answer, RecurrentAttention, RecurrentAttentionConfig
from models.patches import SLICES

Backbone = Literal["small-cnn", "inception-v3"]


@dataclass(frozen=True)
class CandidateNetConfig(RecurrentAttentionConfig):
    """The feature extractor, and what comes after it; `features` follows from the extractor.

    backbone   "inception-v3" is the source's; "small-cnn" is ours, 4 * width channels
    width      of small-cnn: channels at full resolution
    frozen     the extractor does not learn; for one that comes with weights
    """

    backbone: Backbone = "small-cnn"
    width: int = 16
    frozen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slices > SLICES:
            raise ValueError(f"slices={self.slices}: a patch has {SLICES}")

    @property
    def recurrent(self) -> RecurrentAttentionConfig:
        """Of what comes after the extractor, whose channels it knows."""
        features = INCEPTION_CHANNELS if self.backbone == "inception-v3" else 4 * self.width
        shared = {one.name: getattr(self, one.name) for one in fields(RecurrentAttentionConfig)}
        return RecurrentAttentionConfig(**{**shared, "features": features})


class SmallCNN(nn.Sequential):
    """(N, 1, 32, 32) in [0, 1] -> (N, 4 * width, 8, 8)"""

    def __init__(self, width: int) -> None:
        layers: list[nn.Module] = []
        inputs = 1
        for outputs, stride in ((width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2), (4 * width, 1)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs
        super().__init__(*layers)


class GreyInception(InceptionV3):
    """(N, 1, 32, 32) in [0, 1] -> (N, 1280, 8, 8): enlarged, in three channels, scaled as the weights expect."""

    def forward(self, x: Tensor) -> Tensor:
        large = F.interpolate(x, size=(INCEPTION_SIDE, INCEPTION_SIDE), mode="bilinear", align_corners=False)
        return super().forward((2 * large - 1).expand(-1, 3, -1, -1))


class CandidateNet(nn.Module):
    """Patches of candidates -> what each step says of them; the last step's answer counts."""

    def __init__(self, config: CandidateNetConfig, weights: Path | None = None) -> None:
        """weights: published ones of inception-v3, as safetensors. Raises WeightsError."""
        super().__init__()
        self.config = config
        self.backbone: nn.Module = GreyInception() if config.backbone == "inception-v3" else SmallCNN(config.width)
        if weights is not None:
            if not isinstance(self.backbone, GreyInception):
                raise ValueError(f"{config.backbone} has no published weights; only inception-v3 has")
            self.backbone.read(weights)
        self.backbone.requires_grad_(not config.frozen)
        self.recurrent = RecurrentAttention(config.recurrent)

    def train(self, mode: bool = True) -> CandidateNet:
        """As of any module; batch norms of a frozen extractor keep what they know."""
        super().train(mode)
        if self.config.frozen:
            self.backbone.eval()
        return self

    def forward(self, patches: Tensor) -> Answer:
        """(B, slices, 32, 32) in [0, 1] -> Answer

        Of more slices than the network was made for those in the middle count.
        """
        beyond = (patches.shape[1] - self.config.slices) // 2
        patches = patches[:, beyond : beyond + self.config.slices]
        maps = self.backbone(patches.flatten(0, 1)[:, None])  # (B * slices, features, 8, 8)
        return self.recurrent(maps.unflatten(0, patches.shape[:2]))


def probability(answer: Answer) -> Tensor:
    """Of the last step: (B, steps, 2) -> (B,)"""
    return torch.softmax(answer.logits[:, -1].float(), dim=1)[:, 1]
