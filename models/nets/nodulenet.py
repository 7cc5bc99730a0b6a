"""NoduleNet: detection, decoupled false-positive reduction and segmentation of nodules in volumes of 1 mm.

Tang 2019 (arXiv:1907.11320). At width 24 every part has exactly the published number of parameters; `width` scales
every channel count. Focal loss (Lin 2017, arXiv:1708.02002) and a feature pyramid (Lin 2017, arXiv:1612.03144) are
flags.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.layers.boxes import around, clip

FULL_WIDTH = 24
STEP = 16  # voxels; every side of an input is a multiple of this
STRIDE = 4  # of the maps that boxes are proposed on and cut from
ROI_SIDE = 7
ANCHORS_MM = (5.0, 10.0, 20.0, 30.0, 50.0)  # cubes; a voxel is 1 mm
PYRAMID = ((4, (0, 1)), (8, (2,)), (16, (3, 4)))  # stride of a level -> which of ANCHORS_MM it proposes
PRIOR = 0.01  # of an anchor to be a nodule, at the start of a training with focal loss: its section 4.1

RPN, RCNN, MASK = 1, 2, 3  # stages of a training: each has learnt those before it, too


@dataclass(frozen=True)
class NoduleNetConfig:
    """The defaults are the published network.

    focal     the RPN is trained with focal loss; the network differs by where its logits start
    fpn       boxes are proposed on three levels of a pyramid over the encoder, not on the decoder's one map
    coupled   the RCNN head looks at the very map that the RPN classifies, not at the encoder's own: for the ablation
    """

    width: int = FULL_WIDTH
    focal: bool = False
    fpn: bool = False
    coupled: bool = False

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> NoduleNetConfig:
        """The network of a training, from the configuration stored beside its weights."""
        return cls(**{field.name: about[field.name] for field in fields(cls) if field.name in about})

    def channels(self, full: int) -> int:
        """So many channels at full width, here: the nearest multiple of 8, which processors take at a time."""
        return max(8, 8 * round(full * self.width / FULL_WIDTH / 8))

    @property
    def levels(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Stride of each map that boxes are proposed on, and which of ANCHORS_MM there."""
        return PYRAMID if self.fpn else ((STRIDE, tuple(range(len(ANCHORS_MM)))),)


@dataclass(frozen=True, eq=False)
class Level:
    """What the RPN says of one map: a box at each place for each of its anchors."""

    stride: int
    sides_mm: tuple[float, ...]
    logits: Tensor  # (B, d, h, w, anchors, 1)
    deltas: Tensor  # (B, d, h, w, anchors, 6), see models.layers.boxes

    @property
    def anchors(self) -> Tensor:
        """(d * h * w * anchors, 6) boxes in voxels of the input, in the order of `logits` when flattened."""
        return anchor_boxes(self.logits.shape[1:4], self.stride, self.sides_mm, self.logits.device)


def anchor_boxes(
    shape: Sequence[int], stride: int, sides_mm: Sequence[float], device: torch.device | str = "cpu"
) -> Tensor:
    """Cubes round the middle of each cell: that of the first four voxels is 2 from the border, at index 1.5."""
    lines = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) * stride for n in shape]
    middles = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)  # (d, h, w, 3)
    sides = torch.tensor(sides_mm, device=device)
    middles = middles[..., None, :].expand(-1, -1, -1, len(sides_mm), -1)  # (d, h, w, anchors, 3)
    return around(middles, sides[:, None].expand_as(middles)).reshape(-1, 6)


def flat(levels: Sequence[Level]) -> tuple[Tensor, Tensor, Tensor]:
    """All maps in one: anchors (N, 6), logits (B, N), deltas (B, N, 6)"""
    anchors = torch.cat([level.anchors for level in levels])
    logits = torch.cat([level.logits.flatten(1) for level in levels], dim=1)
    deltas = torch.cat([level.deltas.flatten(1, 4) for level in levels], dim=1)
    return anchors, logits, deltas


@dataclass(eq=False)
class Maps:
    """What the backbone makes of (B, 1, D, H, W); the numbers are strides."""

    half: Tensor
    quarter: Tensor
    eighth: Tensor
    sixteenth: Tensor
    fine: Tensor | None = None  # the decoder's, stride 4; None until somebody needs it
    roi: Tensor | None = None  # what the RCNN head cuts from, stride 4


class ResBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, added to the input (through a conv1-BN when the channels change), ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv3d(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm3d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels_out, channels_out, 3, padding=1),
            nn.BatchNorm3d(channels_out),
        )
        self.skip: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.skip = nn.Sequential(nn.Conv3d(channels_in, channels_out, 1), nn.BatchNorm3d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, d, h, w) -> (B, C_out, d, h, w)"""
        return self.main(x).add_(self.skip(x)).relu_()


def blocks(channels_in: int, channels_out: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels_out if place else channels_in, channels_out) for place in range(count)))


def doubled(channels: int) -> nn.Sequential:
    """Twice the side, learnt."""
    return nn.Sequential(
        nn.ConvTranspose3d(channels, channels, 2, stride=2), nn.BatchNorm3d(channels), nn.ReLU(inplace=True)
    )


class Backbone(nn.Module):
    """U-Net of residual blocks, from the whole side to a sixteenth and back to a quarter."""

    def __init__(self, config: NoduleNetConfig) -> None:
        super().__init__()
        c24, c32, c64, c128 = map(config.channels, (24, 32, 64, 128))
        self.pre = nn.Sequential(
            nn.Conv3d(1, c24, 3, stride=2, padding=1),
            nn.BatchNorm3d(c24),
            nn.ReLU(inplace=True),
            nn.Conv3d(c24, c24, 3, padding=1),
            nn.BatchNorm3d(c24),
            nn.ReLU(inplace=True),
        )
        self.down = nn.ModuleList([blocks(c24, c32, 2), blocks(c32, c64, 2), blocks(c64, c64, 3), blocks(c64, c64, 3)])
        self.up = nn.ModuleList([doubled(c64), doubled(c64)])
        self.join = nn.ModuleList([blocks(2 * c64, c64, 3), blocks(2 * c64, c128, 3)])

    def encode(self, image: Tensor) -> Maps:
        """(B, 1, D, H, W) -> 32 channels at half of the side, 64 at a quarter, an eighth and a sixteenth"""
        first, *later = self.down
        x = image
        for layer in (*self.pre, *cast(nn.Sequential, first)):  # one by one: a call of all would hold its input
            x = layer(x)
        maps = [x]
        for stage in later:
            maps.append(stage(F.max_pool3d(maps[-1], 2)))
        return Maps(*maps)

    def decode(self, maps: Maps) -> Tensor:
        """-> (B, 128, D/4, H/4, W/4)"""
        x = maps.sixteenth
        for up, join, beside in zip(self.up, self.join, (maps.eighth, maps.quarter), strict=True):
            x = join(torch.cat([up(x), beside], dim=1))
        return x


class Pyramid(nn.Module):
    """Top-down pyramid over the encoder's three deepest maps, in three dimensions."""

    def __init__(self, config: NoduleNetConfig) -> None:
        super().__init__()
        c64, c128 = config.channels(64), config.channels(128)
        self.lateral = nn.ModuleList(nn.Conv3d(c64, c128, 1) for _ in PYRAMID)
        self.smooth = nn.ModuleList(nn.Conv3d(c128, c128, 3, padding=1) for _ in PYRAMID)
        for one in (*self.lateral, *self.smooth):  # no batch norm follows that would scale them
            nn.init.kaiming_normal_(one.weight, nonlinearity="linear")

    def forward(self, maps: Maps) -> list[Tensor]:
        """-> (B, 128, ...) at strides 4, 8 and 16"""
        x = [lateral(m) for lateral, m in zip(self.lateral, (maps.quarter, maps.eighth, maps.sixteenth), strict=True)]
        for finer, coarser in ((1, 2), (0, 1)):
            x[finer] = x[finer] + F.interpolate(x[coarser], scale_factor=2.0, mode="nearest")
        return [smooth(m) for smooth, m in zip(self.smooth, x, strict=True)]


def small(*lasts: nn.Conv3d | nn.Linear) -> None:
    """Last layers that start with hardly an opinion, as in Faster R-CNN: large first errors kill the ReLUs before."""
    for last in lasts:
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]


class RPNHead(nn.Module):
    """The region proposal network: the same weights at each level, in float32, for bfloat16 would round the boxes."""

    def __init__(self, config: NoduleNetConfig) -> None:
        super().__init__()
        c64, c128 = config.channels(64), config.channels(128)
        self.levels = config.levels
        self.shared = nn.Conv3d(c128, c64, 1)
        self.logits = nn.Conv3d(c64, len(ANCHORS_MM), 1)
        self.deltas = nn.Conv3d(c64, 6 * len(ANCHORS_MM), 1)
        nn.init.kaiming_normal_(self.shared.weight, nonlinearity="relu")  # no batch norm follows that would scale it
        small(self.logits, self.deltas)
        if config.focal:
            nn.init.constant_(self.logits.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Level], Tensor]:
        """(B, 128, d, h, w) of each level -> what is proposed there, and the finest's features (B, 64, d, h, w)"""
        levels, hidden = [], []
        with torch.autocast(maps[0].device.type, enabled=False):
            for (stride, which), x in zip(self.levels, maps, strict=True):
                hidden.append(F.relu(self.shared(x.float())))
                logits = self.logits(hidden[-1]).movedim(1, -1)[..., which, None]  # (B, d, h, w, anchors, 1)
                deltas = self.deltas(hidden[-1]).movedim(1, -1).unflatten(-1, (len(ANCHORS_MM), 6))[..., which, :]
                levels.append(Level(stride, tuple(ANCHORS_MM[place] for place in which), logits, deltas))
        return levels, hidden[0]


class BoxHead(nn.Module):
    """The RCNN head: is it a nodule, and where exactly; in float32."""

    def __init__(self, config: NoduleNetConfig) -> None:
        super().__init__()
        c64, c256, c512 = map(config.channels, (64, 256, 512))
        self.shared = nn.Sequential(
            nn.Linear(c64 * ROI_SIDE**3, c512), nn.ReLU(inplace=True), nn.Linear(c512, c256), nn.ReLU(inplace=True)
        )
        self.logits = nn.Linear(c256, 2)
        self.deltas = nn.Linear(c256, 12)
        small(self.logits, self.deltas)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 64, 7, 7, 7) -> logits (n, 2) of no nodule and nodule, deltas (n, 2, 6) of each"""
        with torch.autocast(crops.device.type, enabled=False):
            x = self.shared(crops.float().flatten(1))
            return self.logits(x), self.deltas(x).unflatten(1, (2, 6))


class MaskHead(nn.Module):
    """The mask head: from the decoder's map up to the image, one box at a time."""

    def __init__(self, config: NoduleNetConfig) -> None:
        super().__init__()
        c32, c64, c128 = map(config.channels, (32, 64, 128))
        self.to_half, self.with_half, self.to_whole, self.with_image = (
            nn.Sequential(
                nn.Conv3d(channels, c64, 3, padding=1), nn.InstanceNorm3d(c64, affine=True), nn.ReLU(inplace=True)
            )
            for channels in (c128, c64 + c32, c64, c64 + 1)
        )
        self.logits = nn.Conv3d(c64, 1, 1)

    def forward(self, fine: Tensor, half: Tensor, image: Tensor) -> Tensor:
        """Crops of one box, (1, 128, d/4, ...), (1, 32, d/2, ...), (1, 1, d, h, w) -> logits (1, 1, d, h, w)"""
        x = self.to_half(twice(fine))
        x = self.with_half(torch.cat([x, half], dim=1))
        x = self.to_whole(twice(x))
        return self.logits(self.with_image(torch.cat([x, image.to(x.dtype)], dim=1)))


def twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)


class NoduleNet(nn.Module):
    """Volumes of 1 mm, prepared as in models.lung_nodule.nodulenet.preprocess, each side a multiple of 16."""

    stage: Tensor

    def __init__(self, config: NoduleNetConfig = NoduleNetConfig()) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.pyramid = Pyramid(config) if config.fpn else None
        self.rpn = RPNHead(config)
        self.rcnn = BoxHead(config)
        self.outliner = MaskHead(config)
        self.register_buffer("stage", torch.tensor(RPN))  # which heads have learnt: those later are not to be asked

    def keep_detection(self) -> None:
        """From now on nothing of this network learns but the mask head and the decoder, which with a pyramid nobody
        else needs: its boxes and probabilities stay what they are."""
        assert self.pyramid is not None
        for part in (self.backbone.pre, self.backbone.down, self.pyramid, self.rpn, self.rcnn):
            part.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> tuple[list[Level], Maps]:
        """(B, 1, D, H, W) -> what the RPN says at each level, and the maps that the other heads cut from"""
        if any(side % STEP for side in image.shape[2:]):
            raise ValueError(
                f"a volume of {tuple(image.shape[2:])} voxels does not fit this network: pad every side to a multiple"
                f" of {STEP}"
            )
        maps = self.backbone.encode(image)
        levels, shared = self.rpn(self.pyramid(maps) if self.pyramid is not None else [self.fine(maps)])
        maps.roi = shared if self.config.coupled else maps.quarter
        return levels, maps

    def fine(self, maps: Maps) -> Tensor:
        """The decoder's map. With a pyramid nobody but the mask head needs it, so it is made when asked for."""
        if maps.fine is None:
            maps.fine = self.backbone.decode(maps)
        return maps.fine

    def judge(self, maps: Maps, image: int, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (n, 6) in voxels of one image of the batch -> as of BoxHead"""
        assert maps.roi is not None
        return self.rcnn(roi_crops(maps.roi[image], boxes))

    def outline(self, maps: Maps, images: Tensor, image: int, box: Sequence[int]) -> Tensor:
        """Logits (d, h, w) of the box, six whole numbers of `aligned`, in one image of the batch."""
        crops = [
            x[(slice(image, image + 1), slice(None), *cut(box, stride))]
            for x, stride in ((self.fine(maps), 4), (maps.half, 2), (images, 1))
        ]
        return self.outliner(*crops)[0, 0].float()


def cut(box: Sequence[int], stride: int = 1) -> tuple[slice, slice, slice]:
    """Where a box of whole numbers lies in a map of that stride."""
    z, y, x = (slice(a // stride, b // stride) for a, b in zip(box[:3], box[3:], strict=True))
    return z, y, x


def align_boxes(boxes: Tensor, shape: Sequence[int], stride: int = STRIDE) -> Tensor:
    """Boxes (n, 6) moved outwards to whole multiples of the stride, and cut to an image of `shape`; none is empty."""
    starts, ends = (clip(boxes, shape) / stride).chunk(2, dim=-1)
    most = torch.tensor(shape, device=boxes.device) // stride
    low = starts.floor().long().minimum(most - 1)
    high = ends.ceil().long().maximum(low + 1).minimum(most)
    return torch.cat([low, high], dim=-1) * stride


def roi_crops(features: Tensor, boxes: Tensor) -> Tensor:
    """(C, d, h, w) at STRIDE, boxes (n, 6) in voxels of the image -> (n, C, 7, 7, 7), the maximum of each part"""
    shape = [STRIDE * side for side in features.shape[1:]]
    if not len(boxes):
        return features.new_zeros(0, len(features), ROI_SIDE, ROI_SIDE, ROI_SIDE)
    return torch.stack(
        [
            F.adaptive_max_pool3d(features[(slice(None), *cut(box, STRIDE))], ROI_SIDE)
            for box in align_boxes(boxes, shape).tolist()
        ]
    )


def fold_batchnorm(model: NoduleNet) -> NoduleNet:
    """A copy to be served: batch norms taken into the convolutions before them, the same answers."""
    served = copy.deepcopy(model).eval().requires_grad_(False)
    for part in served.modules():
        if isinstance(part, nn.Sequential):
            for place, (first, second) in enumerate(zip(list(part), list(part)[1:], strict=False)):
                if isinstance(first, nn.Conv3d | nn.ConvTranspose3d) and isinstance(second, nn.BatchNorm3d):
                    part[place] = fuse_conv_bn_eval(first, second, transpose=isinstance(first, nn.ConvTranspose3d))
                    part[place + 1] = nn.Identity()
    return served
