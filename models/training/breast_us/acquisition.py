"""Variation for pictures of several hospitals: another place cut out, another machine, another hand, marks drawn in.

What `data.vary` varies, and beside it: a part of the picture cut out (a lesion may then lie at the border, and tissue
beside a lesion is a picture without one), gain that changes with depth, speckle, a coarser machine, calipers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NORMAL = 0  # index into CLASSES
GAP_PX = 4  # between a lesion and what is cut out beside it


@dataclass(frozen=True)
class Acquisition:
    """Ranges are drawn uniformly, shares say how often. No vertical flip: depth has meaning."""

    beside: float = 0.15  # of pictures with a lesion: only tissue to its left or right, which is then called normal
    least_beside: float = 0.4  # of the picture's width: a narrower strip is not used
    cut: float = 0.35  # of the others: part of the width and height
    cut_wide: tuple[float, float] = (0.45, 1.0)
    cut_high: tuple[float, float] = (0.7, 1.0)
    least_lesion: float = 0.5  # of its pixels must stay, else the picture is left whole
    rotate_deg: float = 12.0
    zoom: tuple[float, float] = (0.7, 1.35)  # below 1: black margins all round
    stretch: float = 0.15
    shift: float = 0.1
    contrast: tuple[float, float] = (0.75, 1.3)
    brightness: float = 0.08
    gamma: tuple[float, float] = (0.7, 1.4)
    depth_gain: float = 0.25  # brighter by this at the top and darker at the bottom, or the reverse
    speckle: float = 0.12
    noise: float = 0.03
    coarse: float = 0.25
    coarse_scale: tuple[float, float] = (0.45, 0.9)
    calipers: float = 0.3
    erase: float = 0.2
    erase_side: tuple[float, float] = (0.08, 0.22)


def vary(
    grey: Tensor, mask: Tensor, label: Tensor, rng: np.random.Generator, how: Acquisition = Acquisition()
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 1, S, S) grey 0..1 and mask 0/1, (B) classes -> the same, varied picture by picture"""
    grey, mask, label, centre, scale = cut_out(grey, mask, label, rng, how)
    grey, mask = moved(grey, mask, centre, scale, rng, how)
    return marked(tone(grey, rng, how), mask, rng, how), mask, label


# ---- what of the picture is shown


def cut_out(
    grey: Tensor, mask: Tensor, label: Tensor, rng: np.random.Generator, how: Acquisition
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Black outside the part that is shown; its centre (B, 2) x, y in -1..1 and its longer side as a share (B)."""
    grey, mask, label = grey.clone(), mask.clone(), label.clone()
    side = grey.shape[-1]
    centres, scales = np.zeros((len(grey), 2)), np.ones(len(grey))
    for i in range(len(grey)):
        inside, lesion = (grey[i, 0] > 0).numpy(), mask[i, 0].numpy() > 0.5
        box = beside(inside, lesion, rng, how) if lesion.any() and rng.random() < how.beside else None
        if box is not None:
            label[i] = NORMAL
        elif rng.random() < how.cut:
            box = somewhere(inside, lesion, rng, how)
        if box is None:
            continue
        x0, y0, x1, y1 = box
        shown = torch.zeros_like(grey[i])
        shown[:, y0:y1, x0:x1] = 1
        grey[i] *= shown
        mask[i] *= shown
        centres[i] = (x0 + x1) / side - 1, (y0 + y1) / side - 1
        scales[i] = max(x1 - x0, y1 - y0) / side
    return grey, mask, label, torch.from_numpy(centres).float(), torch.from_numpy(scales).float()


Box = tuple[int, int, int, int]  # x0, y0, x1, y1; the last two exclusive


def extent(inside: np.ndarray) -> Box:
    """bool (S, S) -> the box of what is true; the whole square when nothing is."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return 0, 0, inside.shape[1], inside.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def beside(inside: np.ndarray, lesion: np.ndarray, rng: np.random.Generator, how: Acquisition) -> Box | None:
    """The whole height beside the lesion, on the wider side or, where both are wide enough, on either."""
    x0, y0, x1, y1 = extent(inside)
    left, _, right, _ = extent(lesion)
    strips = [(x0, y0, left - GAP_PX, y1), (right + GAP_PX, y0, x1, y1)]
    wide = [strip for strip in strips if strip[2] - strip[0] >= how.least_beside * (x1 - x0)]
    return wide[rng.integers(len(wide))] if wide else None


def somewhere(inside: np.ndarray, lesion: np.ndarray, rng: np.random.Generator, how: Acquisition) -> Box | None:
    """A part of the picture with at least so much of the lesion; None when the draw has less of it."""
    x0, y0, x1, y1 = extent(inside)
    wide = round((x1 - x0) * rng.uniform(*how.cut_wide))
    high = round((y1 - y0) * rng.uniform(*how.cut_high))
    left = x0 + int(rng.integers(0, x1 - x0 - wide + 1))
    top = y0 + int(rng.integers(0, y1 - y0 - high + 1))
    kept = lesion[top : top + high, left : left + wide].sum()
    return (left, top, left + wide, top + high) if kept >= how.least_lesion * lesion.sum() else None


# ---- another hand


def moved(
    grey: Tensor, mask: Tensor, centre: Tensor, scale: Tensor, rng: np.random.Generator, how: Acquisition
) -> tuple[Tensor, Tensor]:
    """Turned, mirrored, stretched and shifted, what is shown filling the square."""
    count = len(grey)
    draw = lambda low, high: torch.from_numpy(rng.uniform(low, high, count)).float()  # noqa: E731
    angle = torch.deg2rad(draw(-how.rotate_deg, how.rotate_deg))
    zoom, stretch = scale / draw(*how.zoom), 1 + draw(-how.stretch, how.stretch)
    mirror = torch.from_numpy(rng.choice([-1.0, 1.0], count)).float()
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    across, down = (draw(-how.shift, how.shift) * 2 * scale for _ in range(2))
    rows = [cos * mirror * stretch, -sin, centre[:, 0] + across]
    columns = [sin * mirror * stretch, cos, centre[:, 1] + down]
    affine = torch.stack([torch.stack(rows, -1), torch.stack(columns, -1)], dim=1)  # (B, 2, 3)
    grid = F.affine_grid(affine, list(grey.shape), align_corners=False)
    both = F.grid_sample(torch.cat([grey, mask], dim=1), grid, align_corners=False)
    return both[:, :1], (both[:, 1:] > 0.5).float()


# ---- another machine


def tone(grey: Tensor, rng: np.random.Generator, how: Acquisition) -> Tensor:
    """Grey values as other settings and another machine would show them; what is black all round stays so."""
    count, side = grey.shape[0], grey.shape[-1]
    draw = lambda low, high: torch.from_numpy(rng.uniform(low, high, count)).float().view(-1, 1, 1, 1)  # noqa: E731
    normal = lambda *shape: torch.from_numpy(rng.normal(size=shape)).float()  # noqa: E731
    inside = grey > 0
    grey = grey.clamp(0, 1) ** draw(*how.gamma)
    grey = (grey - 0.5) * draw(*how.contrast) + 0.5 + draw(-how.brightness, how.brightness)
    depth = torch.linspace(1, -1, side).view(1, 1, side, 1)
    grey = grey * (1 + draw(-how.depth_gain, how.depth_gain) * depth)
    grains = F.avg_pool2d(normal(count, 1, side, side), 3, stride=1, padding=1) * 3  # as fine as speckle, deviation 1
    grey = grey * (1 + grains * draw(0, how.speckle)) + normal(count, 1, side, side) * draw(0, how.noise)
    for i in np.flatnonzero(rng.random(count) < how.coarse):
        small = F.interpolate(grey[i : i + 1], scale_factor=rng.uniform(*how.coarse_scale), mode="area")
        grey[i : i + 1] = F.interpolate(small, (side, side), mode="bilinear")
    return torch.where(inside, grey.clamp(0, 1), 0.0)


# ---- what is drawn over it


def marked(grey: Tensor, mask: Tensor, rng: np.random.Generator, how: Acquisition) -> Tensor:
    """Calipers at the lesion or anywhere, and blocks that hide a part: neither may say what a lesion is."""
    count, side = grey.shape[0], grey.shape[-1]
    for i in np.flatnonzero(rng.random(count) < how.calipers):
        lesion = mask[i, 0].numpy() > 0.5
        paint_calipers(grey[i, 0].numpy(), lesion, rng)
    for i in np.flatnonzero(rng.random(count) < how.erase):
        height, width = (rng.uniform(*how.erase_side, 2) * side).astype(int)
        top, left = rng.integers(0, side - height), rng.integers(0, side - width)
        grey[i, :, top : top + height, left : left + width] = rng.random()
    return grey


def paint_calipers(grey: np.ndarray, lesion: np.ndarray, rng: np.random.Generator) -> None:
    """Crosses at both ends of one or two diameters, some with a dotted line between: (S, S) 0..1, changed in place.

    At the lesion's borders, give or take; at a place drawn anywhere when there is none, and now and then when there is.
    """
    side = len(grey)
    if lesion.any() and rng.random() < 0.7:
        x0, y0, x1, y1 = extent(lesion)
    else:
        wide, high = rng.uniform(0.1, 0.5, 2) * side
        x0, y0 = int(rng.uniform(0, side - wide)), int(rng.uniform(0, side - high))
        x1, y1 = int(x0 + wide), int(y0 + high)
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    diameters = [((x0, middle_y), (x1, middle_y)), ((middle_x, y0), (middle_x, y1))]
    arm, bright, dotted = int(rng.integers(2, 5)), rng.uniform(0.8, 1.0), rng.random() < 0.5
    for start, end in diameters[: rng.integers(1, 3)]:
        a, b = np.add(start, rng.normal(0, 3, 2)), np.add(end, rng.normal(0, 3, 2))
        for place in (a, b):
            x, y = np.rint(place).astype(int)
            grey[clip(y, side), max(0, x - arm) : max(0, x + arm + 1)] = bright
            grey[max(0, y - arm) : max(0, y + arm + 1), clip(x, side)] = bright
        if dotted:
            steps = max(2, int(np.hypot(*(b - a)) / 4))
            x, y = np.rint(np.linspace(a, b, steps)).astype(int).clip(0, side - 1).T
            grey[y, x] = bright


def clip(index: int, side: int) -> int:
    return int(min(max(index, 0), side - 1))
