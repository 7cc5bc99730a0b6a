"""Breast ultrasound: a U-Net with CBAM (A), class heads on top of it (B), and the fusion of both answers (C).

A finds the lesion, B names the image normal, benign or malignant, C weighs B's answer with what A saw.
Attention: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521.
U-Net: Ronneberger et al., MICCAI 2015, arXiv:1505.04597.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.layers.attention import CBAM

CLASSES = ("normal", "benign", "malignant")

LEVELS = 5  # encoder outputs; the image is halved between them
STEP_PX = 2 ** (LEVELS - 1)  # height and width must be multiples of this
ABSENCE_GRID = 64  # the decoder's logits as head B sees them
MASK_GRID = 32  # the mask as C sees it


@dataclass(frozen=True)
class TripleConfig:
    """width 64 is the full network (A: 31 211 705 parameters); 16 is the one trained here."""

    width: int = 64
    reduction: int = 16  # CBAM channel MLP: c -> c / reduction -> c
    smoothing: bool = True
    attention: bool = True
    heads: Literal["pooled", "literal", "lesion"] = "pooled"
    size: int = 256  # only heads="literal" is tied to it
    dropout: float = 0.0  # before the class head on the bottleneck


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Smoothing(nn.Module):
    """Four small convolutions over the logits: 142 parameters, at first nearly the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.widen1 = nn.Conv2d(1, 2, 5, padding=2)
        self.narrow1 = nn.Conv2d(2, 1, 5, padding=2)
        self.widen2 = nn.Conv2d(1, 2, 3, padding=1)
        self.narrow2 = nn.Conv2d(2, 1, 3, padding=1)
        for conv in (self.widen1, self.narrow1, self.widen2, self.narrow2):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            centre = conv.kernel_size[0] // 2
            with torch.no_grad():
                conv.weight[0, 0, centre, centre] = 1.0

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) -> (B, 1, H, W)"""
        logits = self.narrow1(F.leaky_relu(self.widen1(logits), 0.1))
        return self.narrow2(F.leaky_relu(self.widen2(logits), 0.1))


@dataclass(frozen=True)
class Seen:
    """What A computes on its way: the heads of B start from here."""

    mask_logits: torch.Tensor  # (B, 1, H, W), after smoothing
    decoder_logits: torch.Tensor  # (B, 1, H, W), before smoothing
    bottleneck: torch.Tensor  # (B, 16 width, H/16, W/16)


class SegmentationNet(nn.Module):
    """A. U-Net; CBAM on every encoder output, with a residual on the four skips and without on the bottleneck."""

    def __init__(self, config: TripleConfig = TripleConfig()) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(LEVELS)]
        self.encoder = nn.ModuleList(
            DoubleConv(inputs, outputs) for inputs, outputs in zip([1, *widths[:-1]], widths, strict=True)
        )
        self.attention = nn.ModuleList(CBAM(c, config.reduction) for c in widths) if config.attention else None
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in reversed(widths[:-1]))
        self.decoder = nn.ModuleList(DoubleConv(2 * c, c) for c in reversed(widths[:-1]))
        self.to_logits = nn.Conv2d(config.width, 1, 1)
        self.smoothing = Smoothing() if config.smoothing else None

    def see(self, image: torch.Tensor) -> Seen:
        """(B, 1, H, W), H and W multiples of 16 -> Seen"""
        skips: list[torch.Tensor] = []
        x = image
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))  # (B, width 2^level, H/2^level, W/2^level)
            skips.append(x)
            if self.attention is not None:
                attended = self.attention[level](x)
                skips[level] = attended if level == LEVELS - 1 else x + attended
        bottleneck = y = skips.pop()
        for up, block in zip(self.up, self.decoder, strict=True):
            y = block(torch.cat([skips.pop(), up(y)], dim=1))
        logits = self.to_logits(y)
        smooth = logits if self.smoothing is None else self.smoothing(logits)
        return Seen(mask_logits=smooth, decoder_logits=logits, bottleneck=bottleneck)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) -> mask logits (B, 1, H, W)"""
        return self.see(image).mask_logits


class ClassificationNet(nn.Module):
    """B. The same network with two linear heads: lesion absent (from the decoder), benign and malignant (bottleneck).

    Weights may start from A: `net.body.load_state_dict(a.state_dict())`.
    """

    def __init__(self, config: TripleConfig = TripleConfig()) -> None:
        super().__init__()
        self.body = SegmentationNet(config)
        self.features = HEAD_FEATURES[config.heads]
        deepest = config.width * 2 ** (LEVELS - 1)
        inputs = {
            "pooled": (ABSENCE_GRID**2, deepest),
            "literal": (config.size**2, deepest * (config.size // STEP_PX) ** 2),
            "lesion": (3, 2 * deepest),
        }
        self.absent = nn.Linear(inputs[config.heads][0], 1)
        self.kind = nn.Linear(inputs[config.heads][1], 2)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1, H, W) -> mask logits (B, 1, H, W), class logits (B, 3) in the order of CLASSES"""
        seen = self.body.see(image)
        x1, x2 = self.features(seen)
        return seen.mask_logits, torch.cat([self.absent(x1), self.kind(self.dropout(x2))], dim=1)


def pooled(seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (B, 4096), (B, 16 width)"""
    return F.adaptive_avg_pool2d(seen.decoder_logits, ABSENCE_GRID).flatten(1), seen.bottleneck.mean(dim=(2, 3))


def literal(seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (B, H W), (B, 16 width H/16 W/16)"""
    return seen.decoder_logits.flatten(1), seen.bottleneck.flatten(1)


def lesion(seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (B, 3), (B, 32 width): for few images. Three numbers say whether anything was marked; the bottleneck is
    averaged over the image and over the marked lesion, whose weights the classes may not bend (detached)."""
    marked = torch.sigmoid(seen.decoder_logits)  # (B, 1, H, W)
    x1 = torch.cat([seen.decoder_logits.amax((2, 3)) / 4, marked.amax((2, 3)), marked.mean((2, 3)).sqrt()], dim=1)
    rows, columns = seen.bottleneck.shape[2:]
    weight = F.adaptive_avg_pool2d(marked.detach(), (rows, columns)) + 1e-4
    inside = (seen.bottleneck * weight).sum((2, 3)) / weight.sum((2, 3))  # (B, 16 width)
    return x1, torch.cat([seen.bottleneck.mean(dim=(2, 3)), inside], dim=1)


HEAD_FEATURES = {"pooled": pooled, "literal": literal, "lesion": lesion}


class FusionNet(nn.Module):
    """C. P(lesion) read from A's mask times benign : malignant read from B's classes. A and B stay frozen."""

    def __init__(self, softmax_out: bool = False) -> None:
        super().__init__()
        self.softmax_out = softmax_out  # the printed formula: same arg-max, but no class can pass 0.576
        self.lesion = nn.Sequential(
            nn.Linear(MASK_GRID**2, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(64, 1),
        )
        self.kind = nn.Sequential(nn.Linear(len(CLASSES), 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, mask: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """mask probability (B, 1, H, W), class probabilities (B, 3) -> q (B, 3), rows sum to 1"""
        grid = F.adaptive_avg_pool2d(mask, MASK_GRID).flatten(1)  # (B, 1024)
        lesion = torch.sigmoid(self.lesion(grid))  # (B, 1)
        q = torch.cat([1 - lesion, lesion * self.kind(classes).softmax(dim=1)], dim=1)
        return q.softmax(dim=1) if self.softmax_out else q
