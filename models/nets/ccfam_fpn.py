"""CCFAM-FPN: a two-stage detector of nodules on axial slices; ResNet with channel-coordinate attention, pyramid, RPN.

Faster R-CNN (Ren 2015, arXiv:1506.01497) on a feature pyramid (Lin 2017, arXiv:1612.03144). At width 64 and depth
3, 4, 6, 3 the backbone is ResNet-50 (He 2016): 23 508 032 parameters without stem and attention, 30 069 152 with CCAPM,
28 796 576 with CCASM; `width` scales every channel count. Pre- and postprocessing are inside: what is trained is what
serves. Boxes are rows of y0, x0, y1, x1 in pixels, as in models.layers.boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.attention import Attention, Reading, attention
from models.layers.boxes import around, clip, decode, encode, iou, nms, sides
from models.layers.roi import roi_align, survivors
from models.nets.other_backbones import Family, build, normed

Encoder = Family | Literal["resnet50"]
Placement = Literal["block", "stage"]
FULL_WIDTH = 64
EXPANSION = 4  # of a bottleneck
RATIOS = (0.5, 1.0, 2.0)  # height : width of the anchors
STRIDES = (4, 8, 16, 32)  # of C2 to C5
ALONE_STRIDE = 16  # of C5 without pyramid: its last stage is dilated instead of strided
CLEAR, NOTHING = 0.7, 0.3  # IoU from which an anchor is a nodule's, and below which it is nobody's
HIT = 0.5  # IoU from which a proposal is a nodule's
REPEAT, FINAL_REPEAT = 0.7, 0.3  # IoU of the suppression of proposals, and of detections
CANONICAL = 224.0  # side of a box that is read on P4: Lin 2017, equation 1
HEAD_SCALE = (
    10.0,
    10.0,
    5.0,
    5.0,
)  # on the deltas of the second stage: Girshick 2015, section 3.3 (normalised targets)
BETA = 1 / 9  # where smooth L1 turns linear: Ren 2015
SMALLEST = 1.0  # pixels a side; a proposal below that is none


@dataclass(frozen=True)
class CCFAMConfig:
    """The defaults are the source's network, read as docs/decisions.md says.

    encoder     the backbone; attention stands in resnet50 alone, and what has no pyramid is one
    placement   of the attention: in every block before its addition, or behind each of the four stages
    literal_add, gate_kernel, pool_avg, halved, squeeze: see models.layers.attention.Reading
    slices      neighbouring slices that are the channels of an image; the one in the middle is looked at
    stem        channels of a convolution before ResNet's own; 0: ResNet's own sees the slices
    anchors     pixels a side; one for each level of the pyramid
    samples     anchors an image that the first stage learns from, half of them nodules' at most
    rois        proposals an image that the second stage learns from, a quarter of them nodules' at most
    proposals   that pass the first stage, in training and in use

    Raises ValueError when depth or anchors are not four, for a reading that cannot be, and for attention in another
    backbone or one without pyramid.
    """

    width: int = FULL_WIDTH
    depth: tuple[int, ...] = (3, 4, 6, 3)
    encoder: Encoder = "resnet50"
    attention: Attention = "ccapm"
    placement: Placement = "block"
    reduction: int = 16
    literal_add: bool = False
    gate_kernel: int = 7
    pool_avg: bool = True
    halved: bool = True
    squeeze: bool = True
    fpn: bool = True
    slices: int = 3
    stem: int = 32
    anchors: tuple[int, ...] = (8, 16, 32, 64)
    samples: int = 256
    rois: int = 128
    proposals: tuple[int, ...] = (2000, 1000)
    least_score: float = 0.05

    def __post_init__(self) -> None:
        if len(self.depth) != len(STRIDES) or len(self.anchors) != len(STRIDES):
            raise ValueError(f"depth {self.depth} and anchors {self.anchors}: give {len(STRIDES)} numbers each")
        if self.encoder != "resnet50" and (self.attention != "plain" or not self.fpn):
            raise ValueError(f"{self.encoder} has neither attention nor a dilated stage: attention=plain, fpn=true")
        _ = self.reading

    @property
    def reading(self) -> Reading:
        return Reading(self.literal_add, self.gate_kernel, self.pool_avg, self.halved, self.squeeze)

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> CCFAMConfig:
        """The network of a training, from the configuration stored beside its weights; where that does not speak of
        pool_avg it is older than the choice, and without."""
        given: dict[str, Any] = {"pool_avg": False}
        given |= {field.name: about[field.name] for field in fields(cls) if field.name in about}
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}  # JSON: lists only
        return cls(**given)


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found on one image, the most certain first: boxes (n, 4), and (n,) of the second stage and the first."""

    boxes: Tensor
    scores: Tensor
    proposed: Tensor


# ------------------------------------------------------------------------------------------------------ backbone


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides), 1x1, then the attention: on the residual branch, after its last norm."""

    def __init__(
        self, channels_in: int, inner: int, gate: nn.Module, *, stride: int = 1, dilation: int = 1, project: bool
    ) -> None:
        super().__init__()
        out = EXPANSION * inner
        self.branch = nn.Sequential(
            *(normed(channels_in, inner, 1), nn.ReLU(inplace=True)),
            *(normed(inner, inner, 3, stride, dilation), nn.ReLU(inplace=True)),
            normed(inner, out, 1),
            gate,
        )
        self.skip = normed(channels_in, out, 1, stride) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, 4·inner, H/stride, W/stride)"""
        return F.relu(self.branch(x) + self.skip(x))


class Added(nn.Module):
    """Attention behind a stage: the stage's map and what the attention makes of it, summed."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return x + self.gate(x)


class Backbone(nn.Module):
    """C2 to C5. ResNet of bottlenecks: 4, 8, 16 and 32 times the width in channels."""

    def __init__(self, config: CCFAMConfig) -> None:
        super().__init__()
        w = config.width
        before = config.stem * w // FULL_WIDTH
        stem = [normed(config.slices, before, 3), nn.ReLU(inplace=True)] if before else []
        make = self._resnet50 if config.encoder == "resnet50" else self._other
        root, stages, self.channels = make(config, before or config.slices)
        self.root = nn.Sequential(*stem, *root)
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _other(config: CCFAMConfig, channels: int) -> tuple[list[nn.Module], list[nn.Module], list[int]]:
        assert config.encoder != "resnet50"
        made = build(config.encoder, channels, config.width / FULL_WIDTH, config.depth)
        return [made.root], [*made.stages], [*made.channels]

    @staticmethod
    def _resnet50(config: CCFAMConfig, channels: int) -> tuple[list[nn.Module], list[nn.Module], list[int]]:
        w = config.width
        root = [normed(channels, w, 7, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
        stages: list[nn.Module] = []
        channels = w
        for stage, depth in enumerate(config.depth):
            inner, dilated = w << stage, stage == 3 and not config.fpn
            out = EXPANSION * inner
            blocks: list[nn.Module] = []
            for block in range(depth):
                within = config.placement == "block"
                gate = attention(config.attention, out, config.reduction, config.reading) if within else nn.Identity()
                stride = 2 if stage and block == 0 and not dilated else 1
                blocks.append(
                    Bottleneck(channels, inner, gate, stride=stride, dilation=2 if dilated else 1, project=block == 0)
                )
                channels = out
            if config.placement == "stage":
                blocks.append(Added(attention(config.attention, out, config.reduction, config.reading)))
            stages.append(nn.Sequential(*blocks))
        return root, stages, [EXPANSION * w << stage for stage in range(len(stages))]

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, slices, H, W) -> C2..C5: 1/4, 1/8, 1/16 and 1/32 of the sides; C5 without pyramid 1/16"""
        maps = [self.root(image)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class Pyramid(nn.Module):
    """Every level the same channels, with what the deeper levels know: nearest doubling, sum, 3x3."""

    def __init__(self, channels_in: Sequence[int], channels: int) -> None:
        super().__init__()
        self.across = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in channels_in)
        self.out = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in channels_in)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """C2..C5 -> P2..P5 (B, channels, H, W) of the same sides"""
        levels = [across(x) for across, x in zip(self.across, maps, strict=True)]
        for deep in range(len(levels) - 1, 0, -1):
            upper = levels[deep - 1]
            levels[deep - 1] = upper + F.interpolate(levels[deep], size=upper.shape[2:], mode="nearest")
        return [out(x) for out, x in zip(self.out, levels, strict=True)]


class Single(nn.Module):
    """No pyramid: C5 alone."""

    def __init__(self, channels_in: Sequence[int], channels: int) -> None:
        super().__init__()
        self.across = nn.Conv2d(channels_in[-1], channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """C2..C5 -> [(B, channels, H/16, W/16)]"""
        return [self.across(maps[-1])]


# ------------------------------------------------------------------------------------------------------ the detector


class CCFAMFPN(nn.Module):
    """Slices in, Detections out; `losses` is what a training descends."""

    def __init__(self, config: CCFAMConfig = CCFAMConfig()) -> None:
        super().__init__()
        self.config = config
        neck, mapping = (n * config.width // FULL_WIDTH for n in (256, 1024))
        self.backbone = Backbone(config)
        self.neck = (Pyramid if config.fpn else Single)(self.backbone.channels, neck)
        self.strides = STRIDES if config.fpn else (ALONE_STRIDE,)
        self.sizes = [(side,) for side in config.anchors] if config.fpn else [config.anchors]
        kinds = len(RATIOS) * len(self.sizes[0])
        self.look = nn.Conv2d(neck, neck, 3, padding=1)
        self.objectness, self.shift = nn.Conv2d(neck, kinds, 1), nn.Conv2d(neck, 4 * kinds, 1)
        self.mapping = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(neck * 7 * 7, mapping), nn.ReLU(inplace=True)),
            *(nn.Linear(mapping, mapping), nn.ReLU(inplace=True)),
        )
        self.nodule, self.fit = nn.Linear(mapping, 1), nn.Linear(mapping, 4)
        for part, deviation in (
            *((self.look, 0.01), (self.objectness, 0.01), (self.shift, 0.01)),
            *((self.nodule, 0.01), (self.fit, 0.001)),  # Girshick 2015, section 4.1
        ):
            nn.init.normal_(part.weight, std=deviation)
            nn.init.zeros_(part.get_parameter("bias"))

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Detections]:
        """(B, slices, H, W) in [0, 1] -> what is found on the middle slice of each"""
        levels = self.neck(self.backbone(image))
        logits, deltas, anchors = self.first(levels)
        boxes, proposed, there = self.proposals(logits, deltas, anchors, image.shape[2:], self.config.proposals[1])
        b, n = boxes.shape[:2]
        certain, shifts = self.second(
            levels, boxes.flatten(0, 1), torch.arange(b, device=image.device).repeat_interleave(n)
        )
        scores = torch.where(there, certain.sigmoid().view(b, n), 0.0)
        shifts = shifts.view(b, n, 4) / shifts.new_tensor(HEAD_SCALE)
        fitted = clip(decode(shifts, boxes), image.shape[2:])
        found = []
        for box, score, first in zip(fitted, scores, proposed.sigmoid(), strict=True):
            some = ((score >= self.config.least_score) & (sides(box) >= SMALLEST).all(dim=1)).nonzero()[:, 0]
            kept = some[nms(box[some], score[some], FINAL_REPEAT)]
            found.append(Detections(box[kept], score[kept], first[kept]))
        return found

    def losses(self, image: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """(B, slices, H, W) and true boxes (B, m, 4), of which those without area are none -> the four losses"""
        levels = self.neck(self.backbone(image))
        logits, deltas, anchors = self.first(levels)
        with torch.no_grad():
            boxes, _, there = self.proposals(logits, deltas, anchors, image.shape[2:], self.config.proposals[0])
            boxes = torch.cat([boxes, truth], dim=1)  # the truth too, or the second stage would see no nodule at first
            there = torch.cat([there, (sides(truth) > 0).all(dim=2)], dim=1)
        return self.first_losses(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors), truth) | (
            self.second_losses(levels, boxes, there, truth)
        )

    def first(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Maps -> of each level logits (B, n), deltas (B, n, 4) and anchors (n, 4), n = places x kinds"""
        logits, deltas, anchors = [], [], []
        for x, stride, sizes in zip(levels, self.strides, self.sizes, strict=True):
            seen = F.relu(self.look(x))
            logits.append(self.objectness(seen).permute(0, 2, 3, 1).flatten(1).float())
            deltas.append(self.shift(seen).permute(0, 2, 3, 1).reshape(len(x), -1, 4).float())
            anchors.append(anchors_of(x.shape[2:], stride, sizes).to(x.device))
        return logits, deltas, anchors

    def proposals(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        shape: Sequence[int],
        most: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The `most` likeliest boxes (B, n, 4) of all levels, their logits (B, n), and bool (B, n): is there one"""
        every, likely = [], []
        for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
            top, index = logit.topk(min(most, logit.shape[1]), dim=1)
            box = clip(decode(picked(delta, index), anchor[index]), shape)
            alive = survivors(box, REPEAT) & (sides(box) >= SMALLEST).all(dim=2)
            every.append(box)
            likely.append(top.masked_fill(~alive, -torch.inf))
        likelihood = torch.cat(likely, dim=1)
        best, index = likelihood.topk(min(most, likelihood.shape[1]), dim=1)
        return picked(torch.cat(every, dim=1), index), best, best > -torch.inf

    def first_losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """(B, n), (B, n, 4), (n, 4), (B, m, 4): whether an anchor is a nodule's, and where that lies"""
        b, m = truth.shape[:2]
        overlap = iou(anchors, truth.flatten(0, 1)).view(-1, b, m).transpose(0, 1)  # (B, n, m)
        best, which = overlap.max(dim=2)
        nearest = overlap.amax(dim=1, keepdim=True)  # (B, 1, m): no nodule goes without an anchor
        hit = (best >= CLEAR) | ((overlap == nearest) & (nearest > 0)).any(dim=2)
        hit, miss = sample(hit, (best < NOTHING) & ~hit, self.config.samples, 0.5)
        chosen = hit | miss
        targets = encode(picked(truth, which)[hit], anchors.expand(b, -1, -1)[hit])
        count = chosen.sum().clamp_min(1)
        return {
            "objectness": F.binary_cross_entropy_with_logits(logits[chosen], hit[chosen].float()),
            "shift": F.smooth_l1_loss(deltas[hit], targets, reduction="sum", beta=BETA) / count,
        }

    def second_losses(self, levels: Sequence[Tensor], boxes: Tensor, there: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Maps, proposals (B, n, 4), bool (B, n) whether they are any, truth (B, m, 4)"""
        overlap = torch.stack([iou(a, b) for a, b in zip(boxes, truth, strict=True)])  # (B, n, m)
        best, which = overlap.max(dim=2)
        hit, miss = sample(there & (best >= HIT), there & (best < HIT), self.config.rois, 0.25)
        image, place = (hit | miss).nonzero(as_tuple=True)
        logits, shifts = self.second(levels, boxes[image, place], image)
        is_hit = hit[image, place]
        targets = encode(truth[image, which[image, place]][is_hit], boxes[image, place][is_hit])
        targets = targets * targets.new_tensor(HEAD_SCALE)
        return {
            "nodule": F.binary_cross_entropy_with_logits(logits, is_hit.float()),
            "fit": F.smooth_l1_loss(shifts[is_hit], targets, reduction="sum", beta=BETA) / max(1, len(image)),
        }

    def second(self, levels: Sequence[Tensor], boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps, boxes (k, 4), int (k,) of which image -> logits (k,), deltas · HEAD_SCALE (k, 4)"""
        level = torch.zeros_like(image)
        if len(levels) > 1:
            side = sides(boxes).prod(dim=1).sqrt().clamp_min(SMALLEST)
            level = (4 + (side / CANONICAL).log2()).floor().clamp(2, 5).long() - 2
        read = boxes.new_zeros(len(boxes), levels[0].shape[1], 7, 7)
        for place, (x, stride) in enumerate(zip(levels, self.strides, strict=True)):
            mine = (level == place).nonzero()[:, 0]
            if len(mine):
                read = read.index_copy(0, mine, roi_align(x, boxes[mine], image[mine], stride))
        mapped = self.mapping(read)
        return self.nodule(mapped)[:, 0].float(), self.fit(mapped).float()


def anchors_of(shape: Sequence[int], stride: int, sizes: Sequence[int]) -> Tensor:
    """Boxes (H · W · kinds, 4) round the middles of a map's cells, in pixels of the image; kinds run fastest."""
    ratio = torch.tensor(RATIOS).sqrt()
    kinds = torch.cat([side * torch.stack([ratio, 1 / ratio], dim=1) for side in sizes])  # (kinds, 2) height, width
    y, x = ((torch.arange(n) + 0.5) * stride for n in shape)
    middles = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)  # (H, W, 2)
    return around(middles[:, :, None], kinds).flatten(0, 2)


def picked(values: Tensor, index: Tensor) -> Tensor:
    """(B, n, 4), int (B, k) -> (B, k, 4)"""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def sample(hit: Tensor, miss: Tensor, count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """At most count · fraction of the hits and as many misses as fill `count`, by chance: bool (B, n) each"""
    hit = at_random(hit, torch.full_like(hit[:, 0], round(count * fraction), dtype=torch.long))
    return hit, at_random(miss, count - hit.sum(dim=1))


def at_random(candidates: Tensor, most: Tensor) -> Tensor:
    """bool (B, n), int (B,) -> at most so many of each row"""
    draw = torch.rand(candidates.shape, device=candidates.device).masked_fill(~candidates, 2.0)
    return candidates & (draw.argsort(dim=1).argsort(dim=1) < most[:, None])
