"""Breast ultrasound: a U-Net with CBAM (A), class heads on top of it (B), and the fusion of both answers (C).

A finds the lesion, B names the image normal, benign or malignant, C weighs B's answer with what A saw.
Attention: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521.
U-Net: Ronneberger et al., MICCAI 2015, arXiv:1505.04597.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.layers.attention import CBAM
from models.nets.efficientnet_lite import HEAD, EfficientNetLite, LiteConfig

CLASSES = ("normal", "benign", "malignant")

LEVELS = 5  # encoder outputs; the image is halved between them
STEP_PX = 2 ** (LEVELS - 1)  # height and width must be multiples of this
LITE_STEP_PX = 2 * STEP_PX  # and of this with a lite encoder, which halves the image once more
ABSENCE_GRID = 64  # the decoder's logits as head B sees them
MASK_GRID = 32  # the mask as C sees it

Encoder = Literal["plain", "lite0", "lite1", "lite2"]
Heads = Literal["pooled", "literal", "lesion", "joint"]


@dataclass(frozen=True)
class TripleConfig:
    """width 64 is the published network (A: 31 211 705 parameters). `encoder` "lite0" to "lite2" puts EfficientNet-Lite
    in the place of the plain encoder; `width` is then that of the decoder's last level."""

    encoder: Encoder = "plain"
    width: int = 64
    reduction: int = 16  # CBAM channel MLP: c -> c / reduction -> c
    smoothing: bool = True
    attention: bool = True
    heads: Heads = "pooled"
    size: int = 256  # only heads="literal" is tied to it
    dropout: float = 0.0  # before the class head on the bottleneck
    drop_path: float = 0.0  # of a lite encoder
    attended: bool = False  # B reads the deepest CBAM's output, as published; a plain encoder's always does

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> TripleConfig:
        """The network of a training, from the configuration stored beside its weights."""
        return cls(**{field.name: about[field.name] for field in fields(cls) if field.name in about})


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


class LiteSegmentationNet(nn.Module):
    """A with an encoder that has seen other images before: same attention, decoder and smoothing.

    Its finest map has half the image's side, so the logits are enlarged twice before they are smoothed.
    """

    def __init__(self, config: TripleConfig) -> None:
        super().__init__()
        self.encoder = EfficientNetLite(LiteConfig(int(config.encoder.removeprefix("lite")), config.drop_path))
        channels = self.encoder.channels
        widths = [config.width * factor for factor in (1, 2, 4, 8)]  # at 1/2, 1/4, 1/8, 1/16
        self.attention = nn.ModuleList(CBAM(c, config.reduction) for c in channels) if config.attention else None
        below = [*widths[1:], channels[-1]]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, c, 2, stride=2) for b, c in reversed([*zip(below, widths, strict=True)])
        )
        self.decoder = nn.ModuleList(
            DoubleConv(skip + c, c) for skip, c in reversed([*zip(channels[:-1], widths, strict=True)])
        )
        self.to_logits = nn.Conv2d(config.width, 1, 1)
        self.smoothing = Smoothing() if config.smoothing else None
        self.attended = config.attended

    def see(self, image: torch.Tensor) -> Seen:
        """(B, 1, H, W), H and W multiples of 32 -> Seen"""
        skips = self.encoder(image)
        deepest = skips[-1]
        if self.attention is not None:
            *gates, last = self.attention
            skips = [*(x + gate(x) for x, gate in zip(skips, gates, strict=False)), last(deepest)]
        y = skips.pop()
        if self.attended:
            deepest = y
        for up, block in zip(self.up, self.decoder, strict=True):
            y = block(torch.cat([skips.pop(), up(y)], dim=1))
        logits = F.interpolate(self.to_logits(y), scale_factor=2, mode="bilinear")
        smooth = logits if self.smoothing is None else self.smoothing(logits)
        return Seen(mask_logits=smooth, decoder_logits=logits, bottleneck=self.encoder.head(deepest))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) -> mask logits (B, 1, H, W)"""
        return self.see(image).mask_logits


def segmentation_net(config: TripleConfig) -> SegmentationNet | LiteSegmentationNet:
    """A, with the encoder that the configuration names."""
    return SegmentationNet(config) if config.encoder == "plain" else LiteSegmentationNet(config)


class ClassificationNet(nn.Module):
    """B. The same network with two linear heads: lesion absent (from the decoder), benign and malignant (bottleneck).

    Weights may start from A: `net.body.load_state_dict(a.state_dict())`.
    """

    def __init__(self, config: TripleConfig = TripleConfig()) -> None:
        super().__init__()
        plain = config.encoder == "plain"
        self.body = segmentation_net(config)
        self.features = HEAD_FEATURES[config.heads]
        self.joint = config.heads == "joint"  # absence is judged from what both heads see
        deepest = config.width * 2 ** (LEVELS - 1) if plain else HEAD
        inputs = {
            "pooled": (ABSENCE_GRID**2, deepest),
            "literal": (config.size**2, deepest * (config.size // (STEP_PX if plain else LITE_STEP_PX)) ** 2),
            "lesion": (3, 2 * deepest),
            "joint": (3 + 2 * deepest, 2 * deepest),
        }
        self.absent = nn.Linear(inputs[config.heads][0], 1)
        self.kind = nn.Linear(inputs[config.heads][1], 2)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1, H, W) -> mask logits (B, 1, H, W), class logits (B, 3) in the order of CLASSES"""
        seen = self.body.see(image)
        x1, x2 = self.features(seen)
        x2 = self.dropout(x2)
        if self.joint:
            x1 = torch.cat([x1, x2], dim=1)
        return seen.mask_logits, torch.cat([self.absent(x1), self.kind(x2)], dim=1)


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


HEAD_FEATURES = {"pooled": pooled, "literal": literal, "lesion": lesion, "joint": lesion}


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

    def q(self, mask: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """mask probability (B, 1, H, W), class probabilities (B, 3) -> q (B, 3) in float32, rows sum to 1"""
        with torch.autocast(classes.device.type, enabled=False):  # a few small products, and probabilities near 0 and 1
            grid = F.adaptive_avg_pool2d(mask.float(), MASK_GRID).flatten(1)  # (B, 1024)
            return joined(self.lesion(grid), self.kind(classes.float()))

    def forward(self, mask: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """mask probability (B, 1, H, W), class probabilities (B, 3) -> q, or its softmax (B, 3)"""
        q = self.q(mask, classes)
        return q.softmax(dim=1) if self.softmax_out else q

    def departure(self) -> torch.Tensor:
        """The squared distance of the weights from where they began: nothing to hold on to here."""
        return torch.zeros(())


class SmallFusion(nn.Module):
    """C for a few hundred images: seven numbers instead of 279 011, and the same product at the end.

    It starts as B's very answer. What it may learn is how far B's odds of a lesion should give way to three numbers of
    the mask (is anything marked, how surely, how much of the image), and to sharpen or soften benign against malignant.
    """

    def __init__(self, softmax_out: bool = False) -> None:
        super().__init__()
        self.softmax_out = softmax_out
        self.lesion = nn.Linear(4, 1)
        self.kind = nn.Linear(1, 1)
        self.begin()

    def begin(self) -> None:
        with torch.no_grad():
            for weights, value in zip(self.parameters(), self.first(), strict=True):
                weights.copy_(value)

    @staticmethod
    def first() -> tuple[torch.Tensor, ...]:
        """The weights with which q is what B said."""
        return torch.tensor([[1.0, 0, 0, 0]]), torch.zeros(1), torch.ones(1, 1), torch.zeros(1)

    def q(self, mask: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """mask probability (B, 1, H, W), class probabilities (B, 3) -> q (B, 3) in float32, rows sum to 1"""
        with torch.autocast(classes.device.type, enabled=False):
            mask, log_p = mask.float(), classes.float().clamp(min=1e-6).log()  # 1e-6: finite, and below any threshold
            grid = F.adaptive_avg_pool2d(mask, MASK_GRID).flatten(1)  # (B, 1024)
            odds = torch.logsumexp(log_p[:, 1:], 1) - log_p[:, 0]  # of a lesion, as B sees it (B,)
            seen = torch.stack([odds, mask.amax((1, 2, 3)), grid.amax(1), grid.mean(1).sqrt()], dim=1)  # (B, 4)
            malignant = self.kind((log_p[:, 2] - log_p[:, 1])[:, None])  # (B, 1)
            return joined(self.lesion(seen), torch.cat([torch.zeros_like(malignant), malignant], dim=1))

    def forward(self, mask: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """mask probability (B, 1, H, W), class probabilities (B, 3) -> q, or its softmax (B, 3)"""
        q = self.q(mask, classes)
        return q.softmax(dim=1) if self.softmax_out else q

    def departure(self) -> torch.Tensor:
        """The squared distance of the weights from where they began."""
        pairs = zip(self.parameters(), self.first(), strict=True)
        return torch.stack([(now - then.to(now.device)).square().sum() for now, then in pairs]).sum()


def joined(lesion: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
    """Logit of a lesion (B, 1), logits of benign and malignant (B, 2) -> q = (1 - p, F1 p, F2 p), rows sum to 1"""
    p = torch.sigmoid(lesion)
    return torch.cat([torch.sigmoid(-lesion), p * kind.softmax(dim=1)], dim=1)


Fusion = Literal["published", "small"]
FUSIONS: Mapping[str, type[FusionNet | SmallFusion]] = {"published": FusionNet, "small": SmallFusion}


class Triple(nn.Module):
    """A, B and C as one. Without A the mask is that of B's own decoder, without C the classes are B's."""

    def __init__(
        self,
        b: ClassificationNet,
        a: SegmentationNet | LiteSegmentationNet | None = None,
        c: FusionNet | SmallFusion | None = None,
    ) -> None:
        super().__init__()
        self.a, self.b, self.c = a, b, c

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1, H, W) -> mask logits (B, 1, H, W), class logits (B, 3), both float32; those of C are log q"""
        mask, classes = self.b(image)
        if self.a is not None:
            mask = self.a(image)
        mask, classes = mask.float(), classes.float()
        if self.c is None:
            return mask, classes
        return mask, self.c(mask.sigmoid(), classes.softmax(dim=1)).clamp(min=1e-7).log()
