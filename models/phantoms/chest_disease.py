"""Diseases of the lung for the chest phantom, placed as in patients; a seed and a severity say which one exactly.

Terms and shapes are those of Hansell et al., "Fleischner Society: glossary of terms for thoracic imaging", Radiology
246 (2008) 697-722. All places are in the body's own mm (LPS), so that any grid shows the same disease. Lungs keep their
outline: neither the volume that emphysema gains nor the one that fibrosis and collapse lose is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from models.phantoms.chest_anatomy import LUNGS, Grid, Tube, paint_tubes, unit, vessel_tree

Kind = Literal["emphysema", "fibrosis", "consolidation", "effusion"]
KINDS: tuple[Kind, ...] = get_args(Kind)

AERATED_BELOW_HU = -500.0  # what a disease of the lung may change
SOLID_ABOVE_HU = -150.0  # what has no air left in it
BRONCHUS_HU = -920.0  # air in a bronchus of a few mm, mixed with its wall

EMPHYSEMA_HU = -970.0  # below the -950 HU that define it: Gevenois et al., Am J Respir Crit Care Med 154 (1996) 187
LOBULE_MM = 9.0  # between centrilobular lucencies; secondary lobules are 10 to 25 mm wide, with several each
LUCENCY_MM = (2.0, 5.0)  # radius: up to 1 cm across (Hansell 2008)
BULLA_MM = (6.0, 20.0)  # radius: more than 1 cm across, wall below 1 mm (Hansell 2008)
BULLA_HU, BULLA_WALL_HU = -990.0, -650.0

CYST_MM = 6.0  # between honeycomb cysts, which are 3 to 10 mm across with walls of 1 to 3 mm (Hansell 2008)
CYST_HU, CYST_WALL_HU = -880.0, -120.0
RETICULE_MM = 8.0  # between the lines of reticulation
LINE_HU, BETWEEN_LINES_HU = -250.0, -640.0  # interstitial disease: -600 to -250 HU, Podolanczuk, ERJ 48 (2016) 1442
WALL_MM = 1.5

CONSOLIDATION_HU = (20.0, 45.0)  # as muscle without contrast; the vessels in it are hidden (Hansell 2008)
EFFUSION_HU = (0.0, 20.0)  # transudates and exudates overlap there: Abramowitz et al., AJR 192 (2009) 618
COLLAPSE_HU = (28.0, 45.0)  # passive atelectasis, denser than the fluid that it floats in
MENISCUS_MM, MENISCUS_WIDTH_MM = 18.0, 8.0  # by how much fluid climbs at the pleura, and how fast that fades


@dataclass(frozen=True)
class Disease:
    """severity: from 0, hardly anything, to 1, among the worst that are scanned."""

    kind: Kind
    severity: float
    seed: int


@dataclass(frozen=True, eq=False)
class Voxels:
    """Aerated voxels of a slice, n of one lung, in the body's mm.

    xyz      (n, 3)
    depth    (n,) mm below the pleura, about
    height   (n,) from -1 at the base to 1 at the apex
    side     -1 of the right lung, 1 of the left one
    """

    xyz: np.ndarray
    depth: np.ndarray
    height: np.ndarray
    side: int


Fill = Callable[[np.ndarray, Voxels], np.ndarray]  # (n,) HU -> (n,) HU
Painter = tuple[Fill, tuple[Tube, ...]]  # and bronchi that hold air in what is filled


def paint_disease(hu: np.ndarray, grid: Grid, disease: Disease) -> None:
    """Into float32 HU (z, y, x) of a body with lungs, in place, before vessels, nodules, blur and noise.

    Nothing outside the lungs changes. Raises ValueError for a severity that is not from 0 to 1.
    """
    if not 0 <= disease.severity <= 1:
        raise ValueError(f"severity {disease.severity:g} of {disease.kind}: give a number from 0 to 1")
    rng = np.random.default_rng((disease.seed, 81, KINDS.index(disease.kind)))
    fill, bronchi = PAINTERS[disease.kind](rng, disease.severity)
    lungs = np.zeros(hu.shape, bool)
    for z, where, voxels in lung_voxels(hu, grid):
        hu[z][where] = fill(hu[z][where], voxels)
        lungs[z][where] = True
    if bronchi:
        aired = hu.copy()
        paint_tubes(aired, grid, bronchi, BRONCHUS_HU, 100.0)
        hu[lungs] = aired[lungs]


def lung_voxels(hu: np.ndarray, grid: Grid) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray], Voxels]]:
    """(slice, rows and columns, what they are) of each lung in each slice that shows it."""
    for z in range(hu.shape[0]):
        rows, columns = np.nonzero(hu[z] < AERATED_BELOW_HU)
        if not len(rows):
            continue
        index = np.stack([np.full(len(rows), z), rows, columns], axis=1)
        xyz = (index @ grid.affine[:3, :3].T + grid.affine[:3, 3]).astype(np.float32)
        for centre, half_axes, _ in LUNGS:
            scaled = ((xyz - centre) / half_axes).astype(np.float32)
            radius = np.linalg.norm(scaled, axis=1)
            inside = radius < 1
            if inside.any():
                slope = np.linalg.norm(scaled / half_axes, axis=1) / np.maximum(radius, 1e-3)
                depth = (1 - radius) / np.maximum(slope, 1e-4)
                voxels = Voxels(xyz[inside], depth[inside], scaled[inside, 2], int(np.sign(centre[0])))
                yield z, (rows[inside], columns[inside]), voxels


# ----------------------------------------------------------------------------------------------------------- diseases


def emphysema(rng: np.random.Generator, severity: float) -> Painter:
    """Centrilobular lucencies, mostly of the upper lobes, and subpleural bullae."""
    centres = cells(rng, LOBULE_MM)
    tree, radii, wanted = KDTree(centres), rng.uniform(*LUCENCY_MM, len(centres)), rng.random(len(centres))
    bullae = []
    for number in range(round(10 * severity)):
        centre, half_axes, _ = LUNGS[number % 2]
        radius = rng.uniform(*BULLA_MM) * (0.5 + 0.5 * severity)
        outwards = unit(np.array([rng.normal(), rng.normal(), abs(rng.normal()) + 0.6]))  # to the apex
        surface = outwards / np.linalg.norm(outwards / half_axes)
        bullae.append((np.asarray(centre + surface - outwards * (radius + 1), np.float32), radius))

    def fill(hu: np.ndarray, at: Voxels) -> np.ndarray:
        away, nearest = tree.query(at.xyz)
        upper = np.clip(0.25 + 0.75 * (at.height + 0.6), 0.1, 1)
        share = fading(radii[nearest] * (0.8 + 0.7 * severity) - away) * (wanted[nearest] < 1.3 * severity * upper)
        out = hu - 25 * severity + (EMPHYSEMA_HU - hu) * share
        for centre, radius in bullae:
            depth = radius - np.linalg.norm(at.xyz - centre, axis=1)
            out += (BULLA_WALL_HU - out) * fading(depth + 0.8)
            out += (BULLA_HU - out) * fading(depth)
        return out

    return fill, ()


def fibrosis(rng: np.random.Generator, severity: float) -> Painter:
    """Reticulation and, below the pleura of the bases, honeycombing with traction bronchiectasis: the pattern of UIP
    (Raghu et al., Am J Respir Crit Care Med 198 (2018) e44)."""
    lines, cysts = KDTree(cells(rng, RETICULE_MM)), KDTree(cells(rng, CYST_MM))
    patches = Field(rng, 30.0)
    bronchi = []
    for number in range(round(24 * severity)):  # widened, crooked, near the pleura, where normal ones are not seen
        centre, half_axes, _ = LUNGS[number % 2]
        towards = unit(np.array([rng.normal(), abs(rng.normal()), -abs(rng.normal()) - 0.4]))
        end = centre + 0.92 * towards / np.linalg.norm(towards / half_axes)
        for _ in range(4):
            start = end - 9 * unit(towards + rng.normal(0, 0.35, 3))
            bronchi.append(Tube(start, end, float(rng.uniform(1.5, 3.5))))
            end = start

    def fill(hu: np.ndarray, at: Voxels) -> np.ndarray:
        basal = np.clip(0.55 + 0.9 * severity - (at.height + 1), 0, 1)  # the lowest first
        zone = (8 + 30 * severity) * basal * (1 + 0.5 * patches(at.xyz)) - at.depth
        honeycombed = (4 + 20 * severity) * basal * (1 + 0.5 * patches(at.xyz)) - 6 - at.depth
        touched = zone > -3
        out = hu.copy()
        for tree, depth, wall_hu, inner_hu in (
            (lines, zone, LINE_HU, BETWEEN_LINES_HU),
            (cysts, honeycombed, CYST_WALL_HU, CYST_HU),
        ):
            distances, _ = tree.query(at.xyz[touched], k=2)
            wall = fading(WALL_MM - (distances[:, 1] - distances[:, 0]))
            made = inner_hu + (wall_hu - inner_hu) * wall
            out[touched] += (made - out[touched]) * fading(depth[touched] / 2)
        return out

    return fill, tuple(bronchi)


def consolidation(rng: np.random.Generator, severity: float) -> Painter:
    """A lower lobe filled from the back and below, or patches of both lungs; bronchi in it hold air.

    Which of both the seed says. No patch is round: round pneumonia would be a nodule.
    """
    value, ragged = rng.uniform(*CONSOLIDATION_HU), Field(rng, 16.0)
    side = int(rng.choice([-1, 1]))
    lobar = bool(rng.random() < 0.5)
    bronchi = tuple(
        Tube(one.start_mm, one.end_mm, 0.9 * one.radius_mm)
        for which in ((side,) if lobar else (-1, 1))
        for one in vessel_tree(rng, which, thinnest_mm=0.9)
    )
    patches = []
    for number in range(2 + round(6 * severity)):  # long ones along the pleura, each two or three times as long as wide
        centre, half_axes, _ = LUNGS[number % 2]
        outwards = unit(rng.normal((0, 0.5, -0.4)))
        middle = np.asarray(centre + 0.75 * outwards * half_axes, np.float32)
        patches.append((middle, np.float32(rng.permutation([1.0, 1.5, 2.6]) * rng.uniform(9, 14) * (0.7 + severity))))

    def fill(hu: np.ndarray, at: Voxels) -> np.ndarray:
        x, y, z = at.xyz.T
        if lobar:
            if at.side != side:
                return hu
            below_fissure = (5 + 1.1 * (y - 4) - z) / 1.49  # from high at the back to low in front
            filled = 0.7 * (y - z) - 125 + 135 * severity + 12 * ragged(at.xyz)
            depth = np.minimum(below_fissure, filled / 2)
        else:
            depth = np.full(len(x), -1e3, np.float32)
            for middle, axes in patches:
                radius = np.linalg.norm((at.xyz - middle) / axes, axis=1)
                depth = np.maximum(depth, (1 + 0.6 * ragged(at.xyz) - radius) * axes.min())
        hazy = np.minimum(hu + 350 * fading(depth / 3 + 1.5), np.maximum(hu, -450))  # ground glass round it
        return hazy + (value - hazy) * fading(depth)

    return fill, bronchi


def effusion(rng: np.random.Generator, severity: float) -> Painter:
    """Free fluid behind the lung of a patient on the back, deepest at the base, climbing at the pleura; the lung in
    front of it has collapsed. One side or both, as the seed says."""
    fluid, collapsed = rng.uniform(*EFFUSION_HU), rng.uniform(*COLLAPSE_HU)
    side = int(rng.choice([-1, 1]))
    deep_mm = {side: 130 * severity, -side: 130 * severity * float(rng.choice([0.0, 0.6]))}
    band_mm, ragged = 4 + 22 * severity, Field(rng, 25.0)

    def fill(hu: np.ndarray, at: Voxels) -> np.ndarray:
        deepest = deep_mm[at.side]
        if not deepest:
            return hu
        (_, cy, _), (_, ry, _), _ = LUNGS[0]
        surface = cy + ry - deepest * (0.85 - 0.3 * at.height)
        in_fluid = at.xyz[:, 1] - surface + MENISCUS_MM * np.exp(-at.depth / MENISCUS_WIDTH_MM) - MENISCUS_MM / 3
        in_collapse = in_fluid + band_mm * (1 + 0.35 * ragged(at.xyz))
        hazy = np.minimum(hu + 300 * fading(in_collapse / 4 + 1.5), np.maximum(hu, -500))
        out = hazy + (collapsed - hazy) * fading(in_collapse)
        return out + (fluid - out) * fading(in_fluid)

    return fill, ()


PAINTERS: Mapping[Kind, Callable[[np.random.Generator, float], Painter]] = {
    "emphysema": emphysema,
    "fibrosis": fibrosis,
    "consolidation": consolidation,
    "effusion": effusion,
}


# -------------------------------------------------------------------------------------------------------------- parts


class Field:
    """A smooth random number, about from -1 to 1, for each place; so many mm from one hill to the next, about."""

    def __init__(self, rng: np.random.Generator, scale_mm: float) -> None:
        self.scale_mm = scale_mm
        self.values = rng.uniform(-1.4, 1.4, [int(400 / scale_mm) + 2] * 3).astype(np.float32)

    def __call__(self, xyz: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(self.values, (xyz + 200).T / self.scale_mm, order=1, mode="nearest")


def cells(rng: np.random.Generator, apart_mm: float) -> np.ndarray:
    """(n, 3) places all over both lungs, one in each cube of so many mm, anywhere in it."""
    low, high = np.array([-140.0, -84.0, -135.0]), np.array([140.0, 92.0, 125.0])
    count = np.ceil((high - low) / apart_mm).astype(int)
    corners = np.moveaxis(np.indices(count), 0, -1).reshape(-1, 3)
    return low + (corners + rng.random(corners.shape)) * apart_mm


def fading(depth_mm: np.ndarray) -> np.ndarray:
    """How much of a thing shows so deep below its surface: one half there, all or nothing 2 mm farther."""
    return 1 / (1 + np.exp(-np.clip(depth_mm, -15, 15) / 0.6))
