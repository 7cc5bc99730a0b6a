"""Detection-driven segmentation: the residual U-Net looks again at each detection, now in the middle of its crop.

Square crops round the detection's centre, on each of its slices and on those beyond until nothing is
marked any more, become one stack; the 26-connected piece at the centre is the nodule. Any detector will do: what the
sliding window marked, or a network in three dimensions. A mask that cannot be trusted is not taken: the detection then
keeps its own, and `Refined.why_not` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.special import expit
from torch import Tensor

from models.grid import in_both
from models.lung_nodule.detections import NEIGHBOURS, Candidate
from models.lung_nodule.odds import log_odds
from models.lung_nodule.preprocess import SIDE, TRAINED_MM, is_native, window
from models.pixels import AIR_HU
from models.read import Volume

Network = Callable[[Tensor], Tensor]  # (B, 1, side, side) in [0, 1] -> probability of nodule, same shape, any device

BATCH = 32
MARGIN_MM = 2.0  # slices this far beyond what is marked are looked at, too
REACH_MM = 20.0  # what goes on further than this beyond the detection is a vessel
SAME = 0.5  # of the smaller mask in common with another: two detections of one nodule
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))  # of a crop's rows and columns


@dataclass(frozen=True)
class Mix:
    """How far a detector's own outline counts in the refinement: `fraction` of the mean of both log odds.

    threshold   of the probability that this mean is

    Beyond the box of its outline a detector says no: only what the network is sure of is nodule there.
    """

    fraction: float
    threshold: float


@dataclass(frozen=True, eq=False)
class Refined:
    """A detection with the mask of the refinement, or with its own and the reason."""

    candidate: Candidate
    why_not: str | None


def refine(
    volume: Volume,
    detections: Sequence[Candidate],
    network: Network,
    *,
    side: int = SIDE,
    threshold: float = 0.5,
    flips: bool = False,
    within_mm: float | None = None,
    mix: Mix | None = None,
) -> list[Refined]:
    """One Refined for each detection, in their order, on the source grid.

    network     see Network; crops come in HU windowed as in training, on pixels of a size it knows
    side        of its crops, pixels
    threshold   of its probability
    flips       average over the crop and its mirror images: four times the work
    within_mm   of the detection's own mask, where that can be trusted; what is marked beyond is something else
    mix         for detections that come with a probability; the others are outlined by the network alone
    """
    looks = [
        Refinement(volume, detection, side, within_mm, mix if detection.soft else None) for detection in detections
    ]
    wanted = [(look, z) for look in looks for z in look.first()]
    while wanted:  # all crops of all detections, batch by batch; then what lies beyond them
        for start in range(0, len(wanted), BATCH):
            part = wanted[start : start + BATCH]
            crops = torch.stack([look.crop(z) for look, z in part])
            for (look, z), probability in zip(part, averaged(network, crops, flips), strict=True):
                look.keep(z, probability, threshold)
        wanted = [(look, z) for look in looks for z in look.further()]
    return [look.result() for look in looks]


def averaged(network: Network, crops: Tensor, flips: bool) -> Tensor:
    """(B, 1, side, side) -> probability on the cpu, float32, same shape"""
    answers = [network(crops.flip(axes)).flip(axes).float().cpu() for axes in (FLIPS if flips else FLIPS[:1])]
    return torch.stack(answers).mean(dim=0)


def patch(spacing_mm: Sequence[float], side: int = SIDE) -> tuple[int, int]:
    """Rows and columns of the source that make a crop of side x side pixels of a size the network knows."""
    if is_native(spacing_mm):
        return side, side
    rows, columns = (max(1, round(side * TRAINED_MM / mm)) for mm in spacing_mm)
    return rows, columns


@dataclass(eq=False)
class Refinement:
    """The crops of one detection, and what the network marked on them so far: slices that follow on each other."""

    volume: Volume
    detection: Candidate
    side: int = SIDE
    within_mm: float | None = None
    mix: Mix | None = None
    marked: dict[int, np.ndarray] = field(default_factory=dict)  # z -> bool (rows, columns) of `inside`

    def __post_init__(self) -> None:
        self.centre = self.detection.centre_zyx
        self.shape = patch(self.volume.spacing_mm[1:], self.side)
        self.corner = tuple(c - n // 2 for c, n in zip(self.centre[1:], self.shape, strict=True))
        size = self.volume.hu.shape[1:]
        low = [max(0, c) for c in self.corner]
        high = [min(n, c + p) for n, c, p in zip(size, self.corner, self.shape, strict=True)]
        self.inside = slice(low[0], high[0]), slice(low[1], high[1])  # the patch as far as it lies in the image
        step_mm = self.volume.spacing_mm[0]
        self.margin, self.reach = max(1, ceil(MARGIN_MM / step_mm)), max(1, ceil(REACH_MM / step_mm))
        self.near: dict[int, np.ndarray] | None = None if self.within_mm is None else self.neighbourhood(self.within_mm)

    def neighbourhood(self, within_mm: float) -> dict[int, np.ndarray]:
        """z -> bool (rows, columns) of `inside`: no farther than that from the detection's mask."""
        more = ceil(within_mm / self.volume.spacing_mm[0])
        extent = self.detection.box[0]
        slices = range(max(0, extent.start - more), min(len(self.volume.hu), extent.stop + more))
        whole = slice(slices.start, slices.stop), *self.inside
        away = np.ones([part.stop - part.start for part in whole], bool)
        both = in_both(whole, self.detection.box)
        assert both is not None  # its centre is in the middle of `inside`
        here, there = both
        away[here] = ~self.detection.mask[there]
        distance_mm = ndimage.distance_transform_edt(away, sampling=self.volume.spacing_mm)
        return dict(zip(slices, distance_mm <= within_mm, strict=True))

    @property
    def part(self) -> tuple[slice, slice]:
        """`inside`, counted from the patch's corner."""
        rows, columns = (slice(s.start - c, s.stop - c) for s, c in zip(self.inside, self.corner, strict=True))
        return rows, columns

    def crop(self, z: int) -> Tensor:
        """(1, side, side) in [0, 1]; beyond the image: air"""
        hu = np.full(self.shape, AIR_HU, np.float32)
        hu[self.part] = self.volume.hu[z][self.inside]
        return window(self.resized(torch.from_numpy(hu)[None], (self.side, self.side)))

    def keep(self, z: int, probability: Tensor, threshold: float) -> None:
        """probability: (1, side, side) of the crop on slice z"""
        on_source = self.resized(probability, self.shape)[0].numpy()[self.part]
        if self.mix is not None:
            on_source = expit((1 - self.mix.fraction) * log_odds(on_source) + self.mix.fraction * log_odds(self.own(z)))
            threshold = self.mix.threshold
        self.marked[z] = on_source > threshold
        if self.near is not None:
            self.marked[z] &= self.near.get(z, np.bool_(False))

    def own(self, z: int) -> np.ndarray:
        """What the detector said of `inside` on slice z: float32 (rows, columns)"""
        assert self.detection.soft is not None
        slab = slice(z, z + 1), *self.inside
        out = np.zeros([part.stop - part.start for part in slab], np.float32)
        if both := in_both(slab, self.detection.soft.box):
            here, there = both
            out[here] = self.detection.soft.values[there]
        return out[0]

    @staticmethod
    def resized(image: Tensor, shape: tuple[int, int]) -> Tensor:
        """(1, h, w) -> (1, *shape)"""
        if tuple(image.shape[1:]) == shape:
            return image
        shrinks = any(to < of for to, of in zip(shape, image.shape[1:], strict=True))
        return F.interpolate(image[None], shape, mode="bilinear", align_corners=False, antialias=shrinks)[0]

    def first(self) -> range:
        """The detection's slices, and the margin."""
        z = self.detection.box[0]
        return range(max(0, z.start - self.margin), min(len(self.volume.hu), z.stop + self.margin))

    def further(self) -> Iterator[int]:
        """The next slices beyond those on which the nodule goes on, as far as `reach`."""
        piece = self.piece()
        if piece is None:
            return
        first, last, extent = min(self.marked), max(self.marked), self.detection.box[0]
        if piece[0].any():
            yield from range(max(0, extent.start - self.reach, first - self.margin), first)
        if piece[-1].any():
            yield from range(last + 1, min(len(self.volume.hu), extent.stop + self.reach, last + 1 + self.margin))

    def piece(self) -> np.ndarray | None:
        """bool (slices, rows, columns): the largest 26-connected piece at or beside the centre, or None."""
        first = min(self.marked)
        labels, _ = ndimage.label([self.marked[z] for z in sorted(self.marked)], structure=NEIGHBOURS)
        starts = first, self.inside[0].start, self.inside[1].start
        middle = [c - start for c, start in zip(self.centre, starts, strict=True)]
        sizes = np.bincount(labels.ravel())
        touching = np.unique(labels[tuple(slice(max(0, m - 1), m + 2) for m in middle)])
        piece: np.ndarray = labels == max(touching, key=lambda label: sizes[label] if label else 0)
        return piece if touching.any() else None

    def result(self) -> Refined:
        piece = self.piece()
        if piece is None:
            return Refined(self.detection, "nothing was marked at its centre")
        size = self.volume.hu.shape[1:]
        for axis, (seen, most, corner) in enumerate(zip(self.inside, size, self.corner, strict=True), start=1):
            places = np.flatnonzero(piece.any(axis=tuple({0, 1, 2} - {axis})))
            at_start, at_end = places[0] == 0, places[-1] == piece.shape[axis] - 1
            if (at_start and corner > 0) or (at_end and seen.stop < most):
                return Refined(self.detection, "what was marked runs out of the crop")
        first, last = min(self.marked), max(self.marked)
        if (piece[0].any() and first > 0) or (piece[-1].any() and last < len(self.volume.hu) - 1):
            return Refined(self.detection, f"what was marked goes on for more than {REACH_MM:g} mm beyond it")
        corner_zyx = first, self.inside[0].start, self.inside[1].start
        return Refined(self.detection.with_mask(piece, corner_zyx), None)


def distinct(refined: Sequence[Refined]) -> list[Refined]:
    """Each nodule once and each voxel in one mask at most, the more certain first.

    Of two that share SAME of the smaller mask the more certain stays. A smaller overlap is the more certain one's; the
    other keeps its largest piece.
    """
    kept: list[Refined] = []
    for one in sorted(refined, key=lambda r: (-round(r.candidate.certainty, 4), r.candidate.offset_zyx)):
        candidate, own = one.candidate, one.candidate.mask.copy()
        same = False
        for other in kept:
            both = in_both(candidate.box, other.candidate.box)
            if both is None:
                continue
            mine, theirs = both
            common = candidate.mask[mine] & other.candidate.mask[theirs]
            same = same or common.sum() >= SAME * min(candidate.mask.sum(), other.candidate.mask.sum())
            own[mine] &= ~common
        if same or not own.any():
            continue
        if own.sum() < candidate.mask.sum():
            labels, _ = ndimage.label(own, structure=NEIGHBOURS)
            own = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
            candidate = candidate.with_mask(own, candidate.offset_zyx)
        kept.append(Refined(candidate, one.why_not))
    return kept
