"""Attention gates: small modules that weigh channels and places of a 2-D feature map.

Those that `attention` builds by name are plugged into the residual branch of a ResNet's blocks: any can stand for any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attention = Literal["plain", "se", "eca", "cbam", "scse", "coord", "ccasm", "ccapm"]


@dataclass(frozen=True)
class Reading:
    """How the equations of CCAPM and CCASM are read where their source leaves a choice: docs/decisions.md.

    literal_add  the gate itself is the module's answer, as F + out is written; else the map times the gate
    kernel       of the convolutions along rows and columns; odd
    pool_avg     CCAPM: the average pooling of equation 13, 3 along rows and columns, before the sigmoid
    halved       CCAPM: half the sum of the two sigmoids, a gate; else the sum as written
    squeeze      CCAPM: 1x1 to fewer channels, norm, ReLU, a second 1x1; else one 1x1 and a norm, as written

    Raises ValueError for an even kernel.
    """

    literal_add: bool = False
    kernel: int = 7
    pool_avg: bool = True
    halved: bool = True
    squeeze: bool = True

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: an even kernel has no middle")


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze-and-excitation, Roy 2018 (arXiv:1803.02579); c^2 + c parameters.

    The two gated maps are summed; ratio 2 and no bias, as in the residual U-Net of Model 2.
    """

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // ratio, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // ratio, channels, 1, bias=False),
        )
        self.place = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        # x·c + x·s = x·(c + s): one pass over the map instead of three
        return x * (torch.sigmoid(self.channel(x)) + torch.sigmoid(self.place(x)))


class CBAM(nn.Module):
    """Channel gate, then spatial gate: Woo et al. 2018 (arXiv:1807.06521), sections 3.1 and 3.2."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.place = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        mean, peak = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        x = x * torch.sigmoid(self.mlp(mean) + self.mlp(peak))
        across = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)  # (B, 2, H, W)
        return x * torch.sigmoid(self.place(across))


class Gate(nn.Module):
    """x times a gate with values in (0, 1] that a subclass makes of x: (B, C, H, W) -> broadcastable to that."""

    def gate(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return x * self.gate(x)


class SE(Gate):
    """Squeeze-and-excitation, Hu 2018 (arXiv:1709.01507)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1))

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)"""
        return torch.sigmoid(self.mlp(x.mean(dim=(2, 3), keepdim=True)))


class ECA(Gate):
    """A channel sees its neighbours only: Wang 2020 (arXiv:1910.03151), with the width of its equation 12."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        near = int((math.log2(channels) + 1) / 2)
        kernel = near if near % 2 else near + 1
        self.across = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)"""
        mean = x.mean(dim=(2, 3))[:, None]  # (B, 1, C)
        return torch.sigmoid(self.across(mean))[:, 0, :, None, None]


class CoordinateAttention(Gate):
    """A gate for each row times one for each column: Hou 2021 (arXiv:2103.02907), with its reduction of 32."""

    def __init__(self, channels: int, reduction: int = 32) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.squeeze = nn.Sequential(nn.Conv1d(channels, hidden, 1), nn.BatchNorm1d(hidden), nn.Hardswish())
        self.rows, self.columns = nn.Conv1d(hidden, channels, 1), nn.Conv1d(hidden, channels, 1)

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        both = self.squeeze(torch.cat([x.mean(dim=3), x.mean(dim=2)], dim=2))  # (B, m, H + W)
        h, w = both.split(x.shape[2:], dim=2)
        return torch.sigmoid(self.rows(h))[..., None] * torch.sigmoid(self.columns(w))[..., None, :]


class ChannelGate(Gate):
    """The first half of CBAM: one gate a channel, from its mean and its peak."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)"""
        mean, peak = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        return torch.sigmoid(self.mlp(mean) + self.mlp(peak))


class CoordinateGates(nn.Module):
    """One gate for each row and one for each column of a channel: depth-wise convolutions of the means along them.

    The source's equations 5 and 6 mix the two axes up; here e_h runs along the rows, e_w along the columns.
    """

    def __init__(self, channels: int, kernel: int = 7) -> None:
        super().__init__()
        self.rows, self.columns = (
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> e_h (B, C, H, 1), e_w (B, C, 1, W)"""
        e_h, e_w = torch.sigmoid(self.rows(x.mean(dim=3))), torch.sigmoid(self.columns(x.mean(dim=2)))
        return e_h[..., None], e_w[..., None, :]


class ChannelCoordinate(Gate):
    """What CCAPM and CCASM share. With literal_add the features reach the block's sum through their gate alone."""

    def __init__(self, channels: int, reduction: int = 16, reading: Reading = Reading()) -> None:
        super().__init__()
        self.hidden = max(8, channels // reduction)
        self.channel = ChannelGate(channels, self.hidden)
        self.places = CoordinateGates(channels, reading.kernel)
        self.reading = reading

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        gate = self.gate(x)
        return gate if self.reading.literal_add else x * gate


class CCAPM(ChannelCoordinate):
    """Channel-coordinate attention, parallel: rows and columns of the channel-gated map, squeezed together.

    The source's equations 11 to 14. The sum of the two sigmoids is halved, so that it is a gate; a literal addition
    takes the sum.
    """

    def __init__(self, channels: int, reduction: int = 16, reading: Reading = Reading()) -> None:
        super().__init__(channels, reduction, reading)
        between = self.hidden if reading.squeeze else channels
        joined = [nn.Conv1d(channels, between, 1, bias=False), nn.BatchNorm1d(between)]
        self.squeeze = nn.Sequential(*joined, *([nn.ReLU(inplace=True)] if reading.squeeze else []))
        self.rows, self.columns = (
            nn.Conv1d(self.hidden, channels, 1) if reading.squeeze else nn.Identity() for _ in range(2)
        )
        self.pool = nn.AvgPool1d(3, stride=1, padding=1) if reading.pool_avg else nn.Identity()

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        e_h, e_w = self.places(x)
        gated = self.channel(x)
        # mean_W(e_h · xc) = e_h · mean_W(xc): a gate of the rows does not vary along them
        f_h, f_w = gated.mean(dim=3) * e_h[..., 0], gated.mean(dim=2) * e_w[..., 0, :]  # (B, C, H), (B, C, W)
        h, w = self.squeeze(torch.cat([f_h, f_w], dim=2)).split(x.shape[2:], dim=2)
        a_h, a_w = torch.sigmoid(self.pool(self.rows(h))), torch.sigmoid(self.pool(self.columns(w)))
        both = a_h[..., None] + a_w[..., None, :]
        return 0.5 * both if self.reading.halved and not self.reading.literal_add else both


class CCASM(ChannelCoordinate):
    """Channel-coordinate attention, serial: the outer product of the gates of rows and columns, then a channel gate."""

    def __init__(self, channels: int, reduction: int = 16, reading: Reading = Reading()) -> None:
        super().__init__(channels, reduction, reading)
        self.mix = nn.Sequential(
            nn.Conv2d(channels, self.hidden, 1, bias=False),
            nn.BatchNorm2d(self.hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.hidden, channels, 1),
            nn.AvgPool2d(3, stride=1, padding=1),
        )
        self.smooth = nn.AvgPool2d(3, stride=1, padding=1)

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        e_h, e_w = self.places(x)
        return torch.sigmoid(self.smooth(self.channel(self.mix(e_h * e_w))))


def attention(kind: Attention, channels: int, reduction: int = 16, reading: Reading = Reading()) -> nn.Module:
    """The named module for a map of so many channels; "plain" does nothing. ECA, scSE and coordinate attention keep
    their own reductions.

    Raises ValueError for another name, or a literal addition of what is not channel-coordinate."""
    if kind in ("ccapm", "ccasm"):
        return {"ccapm": CCAPM, "ccasm": CCASM}[kind](channels, reduction, reading)
    if reading.literal_add:
        raise ValueError(f"literal_add is about ccapm and ccasm, not about {kind}")
    match kind:
        case "plain":
            return nn.Identity()
        case "se":
            return SE(channels, reduction)
        case "eca":
            return ECA(channels)
        case "cbam":
            return CBAM(channels, reduction)
        case "scse":
            return SCSE(channels)
        case "coord":
            return CoordinateAttention(channels)
    raise ValueError(f"no attention {kind!r}; known: {', '.join(get_args(Attention))}")
