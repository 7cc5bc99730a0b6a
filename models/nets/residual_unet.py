"""Residual U-Net with scSE gates and multi-scale fusion: nodule segmentation on axial crops (its source's Models 1, 2).

At width 64 Model 2 has exactly 71 538 433 parameters, the figure its source states; `width` scales every channel count.
Residual units: Zhang 2018 (arXiv:1711.10684) with 3x3 skip; scSE: Roy 2018; pyramid: Chen 2017; ViT: Dosovitskiy 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.aspp import ASPP
from models.layers.attention import SCSE
from models.layers.vit import ViT
from models.nets.efficientnet_lite import IMAGENET_GREY, EfficientNetLite, LiteConfig

STAGES = (1, 2, 4, 8, 16)  # channels of the five levels as multiples of the width: 64, 128, 256, 512, 1024
STEP_PX = 16  # height and width must be multiples of this
LITE_STEP_PX = 32  # and of this with a lite encoder, which halves the image once more
FULL_WIDTH = 64  # the width for which the sizes of the ViT are stated
PLACES = ("encoder", "decoder", "bottleneck")  # where scSE gates can be

Encoder = Literal["plain", "lite0", "lite1", "lite2"]


@dataclass(frozen=True)
class ResidualUNetConfig:
    """The defaults are Model 2. Model 1 is `vit=True`: the ViT takes the place of the scSE in the bottleneck, unless
    `keep_scse` puts that before it. The sizes of the ViT are those at width 64 and scale with the width.

    `encoder` "lite0" to "lite2" puts EfficientNet-Lite, below a unit of full resolution, in the place of the encoder.
    Raises ValueError when `scse` names no place, or `keep_scse` is asked for without a ViT.
    """

    width: int = FULL_WIDTH
    scse: str = "encoder+bottleneck"  # any of PLACES joined by "+", or "none"
    vit: bool = False
    keep_scse: bool = False
    vit_width: int = 768
    vit_depth: int = 6
    vit_heads: int = 12
    vit_mlp: int = 3072
    rates: tuple[int, ...] = (1, 2, 4, 6)  # dilations of the pyramid
    encoder: Encoder = "plain"
    drop_path: float = 0.0  # of a lite encoder

    def __post_init__(self) -> None:
        if self.scse != "none" and not set(self.scse.split("+")) <= set(PLACES):
            raise ValueError(f"scse={self.scse!r}: join any of {', '.join(PLACES)} by '+', or say none")
        if self.keep_scse and not self.vit:
            raise ValueError("keep_scse is about the scSE before a ViT: set vit too, or name the bottleneck in scse")

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> ResidualUNetConfig:
        """The network of a training, from the configuration stored beside its weights."""
        given = {field.name: about[field.name] for field in fields(cls) if field.name in about}
        return cls(**given | {"rates": tuple(given.get("rates", cls.rates))})  # JSON knows lists only

    @property
    def gated(self) -> frozenset[str]:
        """The places that have scSE gates."""
        places = frozenset(PLACES) & frozenset(self.scse.split("+"))
        if not self.vit:
            return places
        return places | {"bottleneck"} if self.keep_scse else places - {"bottleneck"}


def check_size(x: Tensor, step: int) -> None:
    """Raise ValueError unless height and width of (B, C, H, W) are multiples of `step`."""
    height, width = x.shape[2:]
    if height % step or width % step:
        raise ValueError(
            f"an image of {height} x {width} pixels does not fit this network: pad or crop both sides to multiples of"
            f" {step}"
        )


class ResidualUnit(nn.Module):
    """Pre-activation unit: [BN-ReLU]-conv-BN-ReLU-conv plus a conv3-BN skip; the first unit has no leading BN-ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, first: bool = False) -> None:
        super().__init__()
        lead: list[nn.Module] = [] if first else [nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True)]
        self.main = nn.Sequential(
            *lead,
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        self.skip = nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)"""
        return self.main(x) + self.skip(x)


def doubled(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W)"""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def scse(channels: int, wanted: bool) -> nn.Module:
    return SCSE(channels) if wanted else nn.Identity()


class ResidualUNet(nn.Module):
    """One channel in, one logit map out, same size: multiples of 16 pixels, with a lite encoder of 32."""

    def __init__(self, config: ResidualUNetConfig = ResidualUNetConfig()) -> None:
        super().__init__()
        c = [config.width * stage for stage in STAGES]
        if config.encoder == "plain":
            self.lite, self.step_px = None, STEP_PX
            units = [*zip([1, *c], c, strict=False)]
            outputs = skips = c[:4]
        else:
            self.lite = EfficientNetLite(
                LiteConfig(int(config.encoder.removeprefix("lite")), config.drop_path, head=False)
            )
            self.step_px = LITE_STEP_PX
            outputs = [c[0], *self.lite.channels]
            units = [(1, c[0]), (sum(outputs[-2:]), c[4])]
            skips = outputs[:4]
        self.encoder = nn.ModuleList(ResidualUnit(i, o, first=place == 0) for place, (i, o) in enumerate(units))
        gated = config.gated
        self.gates = nn.ModuleList(scse(channels, "encoder" in gated) for channels in outputs)
        self.gates.append(scse(c[4], "bottleneck" in gated))
        width, mlp = (n * config.width // FULL_WIDTH for n in (config.vit_width, config.vit_mlp))
        sizes = {"width": width, "depth": config.vit_depth, "heads": config.vit_heads, "mlp": mlp}
        self.vit = ViT(c[4], **sizes) if config.vit else nn.Identity()
        self.fusion = ASPP(c[4], config.rates)
        self.decoder = nn.ModuleList(ResidualUnit(c[level + 1] + skips[level], c[level]) for level in (3, 2, 1, 0))
        self.decoder_gates = nn.ModuleList(scse(c[level], "decoder" in gated) for level in (3, 2, 1, 0))
        self.head = nn.Conv2d(config.width, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] -> logits (B, 1, H, W)"""
        check_size(image, self.step_px)
        skips = self.encode(image)
        x = self.fusion(self.vit(skips.pop()))  # (B, 16w, H/16, W/16)
        for unit, gate in zip(self.decoder, self.decoder_gates, strict=True):
            x = gate(unit(torch.cat([doubled(x), skips.pop()], dim=1)))
        return self.head(x)

    def encode(self, image: Tensor) -> list[Tensor]:
        """(B, 1, H, W) -> gated maps of all, 1/2, 1/4, 1/8 and (the bottleneck, 16w channels) 1/16 of the side"""
        if self.lite is not None:
            return self.encode_learnt(self.lite, image)
        maps: list[Tensor] = []
        for unit, gate in zip(self.encoder, self.gates, strict=True):
            maps.append(gate(unit(F.max_pool2d(maps[-1], 2) if maps else image)))
        return maps

    def encode_learnt(self, lite: EfficientNetLite, image: Tensor) -> list[Tensor]:
        """As `encode`. The last two maps are joined at 1/16: ViT and pyramid see 8x8 places as in the plain net."""
        first, join = self.encoder
        mean, deviation = IMAGENET_GREY
        outputs = [first(image), *lite((image - mean) / deviation)]
        *gates, last = self.gates
        *maps, sixteenth, deepest = (gate(x) for gate, x in zip(gates, outputs, strict=True))
        return [*maps, last(join(torch.cat([sixteenth, doubled(deepest)], dim=1)))]
