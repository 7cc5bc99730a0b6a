"""A contrast-enhanced chest or abdomen with lymph nodes in its fat, among vessels, airways and bowel that look alike.

Organs are shapes in mm, LPS round the middle of the scan, and vary with the seed. HU are those of a portal venous scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from models.phantoms.chest import KERNELS, chest_grid, ct_dicom, paint, scanned, written
from models.phantoms.chest_anatomy import (
    BONE_HU,
    EDGE_MM,
    FAT_HU,
    LUNG_HU,
    MARROW_HU,
    SOFT_HU,
    Ball,
    Grid,
    Tube,
    ball_lesion,
    paint_tubes,
    unit,
    vessel_tree,
)
from models.phantoms.truth import Truth

Region = Literal["mediastinum", "abdomen"]
Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float], float]  # centre, half axes, HU

ARTERY_HU, VEIN_HU, LIVER_HU, SPLEEN_HU, KIDNEY_HU, GAS_HU = 165.0, 150.0, 110.0, 120.0, 170.0, -980.0
NODE_HU = (60.0, 105.0)
SHORT_AXIS_MM = (6.0, 22.0)
IN_FAT = 0.8  # share of a node that must lie in fat: nodes touch vessels, but do not lie in them
APART_MM = 6.0  # between two nodes
THICK_MM = 3.5  # radius of a tube
BOWEL_MM = (112.0, 62.0, 900.0)  # half axes of where bowel lies, about its middle
UNENHANCED_HU = 50.0  # of vessels and organs without contrast agent

CHEST: tuple[Ellipsoid, ...] = (
    ((0, 0, 0), (172, 116, 900), FAT_HU),
    ((0, 2, 0), (160, 105, 900), SOFT_HU),
    ((0, 0, 0), (52, 86, 900), FAT_HU),  # of the mediastinum
    ((-86, 2, -5), (46, 74, 150), LUNG_HU),  # right lung
    ((86, 2, -5), (46, 74, 150), LUNG_HU),
    ((18, -34, -75), (58, 44, 56), SOFT_HU + 50),  # heart muscle
    ((14, -32, -75), (44, 32, 44), VEIN_HU),  # its blood
    ((4, -66, 35), (13, 6, 26), 15.0),  # what is left of the thymus
    ((0, -90, 0), (18, 7, 900), BONE_HU),  # sternum
    ((0, 84, 0), (24, 22, 900), BONE_HU),  # vertebrae
    ((0, 84, 0), (21, 19, 900), MARROW_HU),
)
ABDOMEN: tuple[Ellipsoid, ...] = (
    ((0, 0, 0), (175, 122, 900), FAT_HU),
    ((0, 2, 0), (155, 104, 900), SOFT_HU + 10),
    ((0, -4, 0), (142, 90, 900), FAT_HU),  # round the bowel
    ((-36, 56, 0), (22, 22, 900), SOFT_HU + 15),  # psoas
    ((36, 56, 0), (22, 22, 900), SOFT_HU + 15),
    ((-78, -14, 75), (60, 66, 70), LIVER_HU),
    ((96, 26, 80), (30, 38, 46), SPLEEN_HU),
    ((-66, 44, 5), (24, 24, 54), KIDNEY_HU),
    ((66, 44, 10), (24, 24, 54), KIDNEY_HU),
    ((48, -46, 70), (44, 28, 34), 25.0),  # stomach
    ((0, 84, 0), (26, 24, 900), BONE_HU),
    ((0, 84, 0), (23, 21, 900), MARROW_HU),
)


@dataclass(frozen=True)
class Painted:
    """Tubes of one HU, and below which HU they are seen: a vessel covers fat, but not bone."""

    tubes: tuple[Tube, ...]
    hu: float
    into_hu: float


def lymph_node_ct(
    folder: Path,
    *,
    seed: int = 1,
    region: Region = "mediastinum",
    slices: int = 90,
    size: int = 400,
    spacing_mm: tuple[float, float, float] = (2.0, 0.9, 0.9),
    nodes: int = 5,
    contrast: bool = True,
    orientation: str = "HFS",
    patient_id: str = "PHANTOM-LN-1",
    study_date: str = "20260101",
    balls: Sequence[Ball] | None = None,
) -> Truth:
    """One CT series with `nodes` lymph nodes of 6 to 22 mm short axis. The same arguments make the same files.

    spacing_mm   between slices, rows, columns
    contrast     whether vessels and organs are enhanced; the header says so, too
    balls        the nodes themselves, instead of drawn ones
    """
    rng = np.random.default_rng((seed, 80))
    grid = chest_grid(slices, size, spacing_mm, orientation)
    hu, balls = _painted(rng, grid, region, nodes, contrast=contrast, balls=balls)
    hu = scanned(rng, hu, KERNELS["soft"])
    series = f"{region} {seed} {slices} {size} {spacing_mm} {nodes} {contrast} {orientation} {len(balls)}"
    images = [ct_dicom(hu[z], grid.affine, z, orientation, patient_id=patient_id, series=series) for z in range(slices)]
    for image in images:
        image.StudyDescription = f"CT {region}"
        image.SeriesDescription = f"{region.capitalize()}, {'venous' if contrast else 'native'}"
        image.BodyPartExamined = "CHEST" if region == "mediastinum" else "ABDOMEN"
        image.WindowCenter, image.WindowWidth = 40, 400
        image.PatientName = "Phantom^Nodes"
        if contrast:
            image.ContrastBolusAgent = "phantom"
    files = written(folder, images, np.arange(slices), rng.permutation(slices), study_date)
    return Truth(files, tuple(ball_lesion(ball, grid) for ball in balls))


def lymph_node_volume(
    seed: int,
    region: Region,
    *,
    shape: tuple[int, int, int] = (110, 340, 340),
    spacing_mm: tuple[float, float, float] = (1.6, 1.05, 1.05),
    nodes: int = 6,
) -> tuple[np.ndarray, Grid, list[Ball]]:
    """The same without files: int16 HU (z, y, x), their grid, and the nodes in it."""
    rng = np.random.default_rng((seed, 81))
    grid = chest_grid(shape[0], shape[1:], spacing_mm, "HFS")
    hu, balls = _painted(rng, grid, region, nodes, contrast=True)
    return scanned(rng, hu, KERNELS["soft"]), grid, balls


def _painted(
    rng: np.random.Generator,
    grid: Grid,
    region: Region,
    nodes: int,
    *,
    contrast: bool,
    balls: Sequence[Ball] | None = None,
) -> tuple[np.ndarray, list[Ball]]:
    """float HU without noise, and the nodes."""
    shapes, tubes = (chest_parts if region == "mediastinum" else abdomen_parts)(rng)
    if not contrast:
        shapes = [(centre, axes, min(hu, UNENHANCED_HU) if axes[2] < 900 else hu) for centre, axes, hu in shapes]
        tubes = [replace(one, hu=UNENHANCED_HU, into_hu=35.0) if one.hu > 100 else one for one in tubes]
    hu = np.empty(grid.shape, np.float32)
    zyx = np.indices(grid.shape[1:]).reshape(2, -1)
    for z in range(grid.shape[0]):
        points = grid.affine[:3, :3] @ np.vstack([np.full(zyx.shape[1], z), zyx]) + grid.affine[:3, 3:]
        _paint_slice(hu[z], points.reshape(3, *grid.shape[1:]).astype(np.float32), shapes)
    for one in tubes:
        thin = [tube for tube in one.tubes if tube.radius_mm < THICK_MM]
        if thin:
            paint_tubes(hu, grid, thin, one.hu, one.into_hu)
        paint_thick(hu, grid, [tube for tube in one.tubes if tube.radius_mm >= THICK_MM], one.hu, one.into_hu)
    placed = list(balls) if balls is not None else place_nodes(rng, grid, hu, nodes, region)
    for ball in placed:
        paint(hu, grid, ball, ball.hu)
    return hu, placed


def _paint_slice(image: np.ndarray, points: np.ndarray, shapes: Sequence[Ellipsoid]) -> None:
    image[...] = -1000.0
    heights = points[2].min(), points[2].max()
    for (cx, cy, cz), (rx, ry, rz), value in shapes:
        if heights[0] < cz + rz and heights[1] > cz - rz:  # most organs are on few slices
            away = ((points[0] - cx) / rx) ** 2 + ((points[1] - cy) / ry) ** 2 + ((points[2] - cz) / rz) ** 2
            np.copyto(image, np.float32(value), where=away < 1)


def paint_thick(hu: np.ndarray, grid: Grid, tubes: Sequence[Tube], value: float, into_hu: float) -> None:
    """As `paint_tubes`, in boxes round short pieces of them: what is quick for thin tubes is slow for these."""
    covered = np.zeros(grid.shape, np.float32)
    for tube in tubes:
        along = tube.end_mm - tube.start_mm
        count = max(1, round(float(np.linalg.norm(along)) / (2 * tube.radius_mm)))
        for piece in range(count):
            start, end = (tube.start_mm + along * (part / count) for part in (piece, piece + 1))
            box = grid.box((start + end) / 2, float(np.linalg.norm(along)) / count / 2 + tube.radius_mm + 3 * EDGE_MM)
            if all(part.stop > part.start for part in box):
                depth = Tube(start, end, tube.radius_mm).depth_mm(grid.points(box))
                covered[box] = np.maximum(covered[box], 1 / (1 + np.exp(-depth / EDGE_MM)))
    change = np.minimum(value - hu, 0) if value < into_hu else value - hu
    hu += np.where(hu < into_hu, change, 0) * covered


def varied(rng: np.random.Generator, shapes: Sequence[Ellipsoid]) -> list[Ellipsoid]:
    """As of another patient: places, sizes and HU differ; what runs through all slices stays where it is."""
    out: list[Ellipsoid] = []
    for (x, y, z), axes, hu in shapes:
        through = axes[2] >= 900
        dx, dy, dz = (0.0, 0.0, 0.0) if through else rng.uniform(-5, 5, 3)
        a, b, c = np.array(axes) * (1.0 if through else rng.uniform(0.88, 1.12))
        moved = (float(x + dx), float(y + dy), float(z + dz))
        out.append(
            (moved, (float(a), float(b), float(c)), hu if through or hu < -500 else hu + float(rng.normal(0, 5)))
        )
    return out


def line(*points: Sequence[float] | np.ndarray, radius_mm: float) -> list[Tube]:
    """Tubes from point to point."""
    placed = [np.array(point, float) for point in points]
    return [Tube(a, b, radius_mm) for a, b in pairwise(placed)]


def chest_parts(rng: np.random.Generator) -> tuple[list[Ellipsoid], list[Painted]]:
    """Organs and tubes of a mediastinum."""

    def near(x: float, y: float, z: float, by: float = 3.0) -> np.ndarray:
        return np.array([x, y, z]) + rng.uniform(-by, by, 3)

    wide = rng.uniform(0.9, 1.1)
    root, top, arch_end = near(-10, -22, -30), near(-10, -20, 45), near(22, 44, 40)
    arch = [top, near(-2, -8, 62), near(12, 20, 62), arch_end]
    carina = near(0, 26, 18)
    left, right = near(38, 24, -14), near(-36, 24, -12)
    trunk = near(16, -26, -20)
    arteries = [
        *line(root, *arch, radius_mm=14.5 * wide),
        *line(arch_end, (22, 56, 10), (20, 58, -200), radius_mm=11.5 * wide),
        *line(arch[1], near(-14, -14, 130), radius_mm=6.0),
        *line(arch[2], near(14, 4, 130), radius_mm=4.2),
        *line(arch_end, near(26, 26, 130), radius_mm=5.2),
        *line(trunk, near(16, -14, 6), (44, 12, 8), radius_mm=12.0 * wide),
        *line(near(16, -14, 6), (-20, 0, -2), (-46, 10, -6), radius_mm=10.0 * wide),
    ]
    veins = [
        *line(near(-30, -18, 130), near(-28, -16, 30), (-26, -16, -40), radius_mm=9.0 * wide),
        *line((30, -34, 130), near(-20, -40, 72), near(-28, -18, 60), radius_mm=6.0),
        *line((-10, 60, -200), (-10, 60, 10), near(-14, 56, 36), near(-24, 10, 38), radius_mm=3.6),
        *(tube for side in (-1, 1) for tube in vessel_tree(rng, side)),
        *small_vessels(rng, 14, (46, 78, 130)),
    ]
    airway = [
        *line(carina + np.array([0.0, 0.0, 130.0]), carina, radius_mm=9.0),
        *line(left, carina, right, radius_mm=6.8),
    ]
    gullet = line((4, 44, 140), near(2, 46, 20), near(10, 44, -60), (14, 40, -200), radius_mm=6.5)
    return varied(rng, CHEST), [
        Painted(tuple(gullet), SOFT_HU, 30.0),
        Painted(tuple(veins), VEIN_HU, 120.0),
        Painted(tuple(arteries), ARTERY_HU, 140.0),
        Painted(tuple(airway), 10.0, -30.0),
        Painted(tuple(replace(tube, radius_mm=0.84 * tube.radius_mm) for tube in airway), GAS_HU, 300.0),
    ]


def abdomen_parts(rng: np.random.Generator) -> tuple[list[Ellipsoid], list[Painted]]:
    """Organs and tubes of an abdomen."""

    def near(x: float, y: float, z: float, by: float = 4.0) -> np.ndarray:
        return np.array([x, y, z]) + rng.uniform(-by, by, 3)

    arteries = [
        *line((10, 50, 200), near(8, 48, 0), near(4, 50, -60), radius_mm=9.5),
        *line(near(4, 50, -60), (38, 40, -140), radius_mm=5.0),
        *line(near(4, 50, -60), (-34, 40, -140), radius_mm=5.0),
        *line(near(8, 40, 40), near(6, 10, 10), near(-8, -20, -50), radius_mm=3.8),
        *line(near(8, 42, 60), near(40, 10, 76), (80, 20, 80), radius_mm=3.4),
    ]
    veins = [
        *line((-20, 46, 200), near(-18, 46, 0), near(-10, 52, -70), radius_mm=11.0),
        *line(near(-10, 0, 40), near(-4, 6, 0), near(-16, -20, -50), radius_mm=5.6),
        *line(near(-10, 0, 40), (-56, -6, 70), radius_mm=6.5),
        *line(near(-10, 0, 40), near(40, 18, 66), (86, 24, 80), radius_mm=4.6),
        *line(near(-18, 46, 16), (-52, 44, 8), radius_mm=4.6),
        *line(near(-18, 46, 18), near(8, 34, 16), (54, 44, 10), radius_mm=4.6),
        *small_vessels(rng, 40, (110, 60, 120)),
    ]
    pancreas = line(near(-26, 6, 20), near(0, 0, 34), near(38, 10, 50), near(70, 20, 62), radius_mm=9.0)
    loops = [bowel(rng, radius_mm=float(rng.uniform(8, 13))) for _ in range(7)]
    colon = [
        line((-118, 10, 60), (-120, 14, -40), (-112, 8, -130), radius_mm=18.0),
        line((118, 20, 70), (122, 20, -30), (110, 14, -130), radius_mm=17.0),
    ]
    painted = [Painted(tuple(pancreas), 90.0, 60.0)]
    for loop in (*loops, *colon):
        content = rng.choice([12.0, 25.0, GAS_HU, 280.0], p=[0.4, 0.3, 0.2, 0.1])
        inner = tuple(replace(tube, radius_mm=tube.radius_mm - 2.2) for tube in loop)
        painted += [Painted(tuple(loop), 75.0, 60.0), Painted(inner, float(content), 120.0)]
    return varied(rng, ABDOMEN), [
        *painted,
        Painted(tuple(veins), VEIN_HU, 120.0),
        Painted(tuple(arteries), ARTERY_HU, 140.0),
    ]


def small_vessels(rng: np.random.Generator, count: int, reach_mm: tuple[float, float, float]) -> list[Tube]:
    """Short crooked pieces of 1 to 3 mm radius anywhere in a box about the middle."""
    tubes: list[Tube] = []
    for _ in range(count):
        at = rng.uniform(-1, 1, 3) * reach_mm
        way, radius = unit(rng.normal(size=3)), float(rng.uniform(1.0, 3.0))
        for _ in range(int(rng.integers(2, 6))):
            way = unit(way + rng.normal(0, 0.35, 3))
            tubes.append(Tube(at, at + way * rng.uniform(8, 16), radius))
            at = tubes[-1].end_mm
    return tubes


def bowel(rng: np.random.Generator, radius_mm: float) -> list[Tube]:
    """A loop that winds through the front of the abdomen."""
    at = np.array([rng.uniform(-90, 90), rng.uniform(-55, -5), rng.uniform(-110, 40)])
    way = unit(rng.normal(size=3))
    points = [at]
    for _ in range(12):
        way = unit(way + rng.normal(0, 0.55, 3) - 0.006 * (at - [0, -30, -40]))
        if np.linalg.norm((at + way * 14 - [0, -10, 0]) / BOWEL_MM) > 1:
            way = unit(np.array([0, -10, at[2]]) - at)
        at = at + way * 14
        points.append(at)
    return line(*points, radius_mm=radius_mm)


def place_nodes(rng: np.random.Generator, grid: Grid, hu: np.ndarray, count: int, region: Region) -> list[Ball]:
    """Nodes in the fat of the mediastinum or round the great vessels and the bowel's, apart from each other.

    Raises ValueError when there is no room for so many.
    """
    reach = np.array([40.0, 70.0, 0.0] if region == "mediastinum" else [85.0, 62.0, 0.0])
    reach[2] = 0.5 * grid.shape[0] * np.linalg.norm(grid.affine[:3, 0]) - 14
    middle = np.array([0.0, 0.0, 0.0])
    balls: list[Ball] = []
    for _ in range(400 * count):
        if len(balls) == count:
            return balls
        short = float(rng.uniform(*SHORT_AXIS_MM)) * float(rng.uniform(0.6, 1.0))
        short = max(short, SHORT_AXIS_MM[0])
        axes = 0.5 * short * np.array([1.0, rng.uniform(1.0, 1.7), rng.uniform(0.9, 1.8)])
        axes[:2] = rng.permutation(axes[:2])
        bumps = rng.normal(size=(5, 3))
        ball = Ball(
            centre_mm=middle + rng.uniform(-1, 1, 3) * reach,
            half_axes_mm=axes,
            bumps=bumps / np.linalg.norm(bumps, axis=1, keepdims=True),
            heights=rng.uniform(-0.08, 0.08, 5),
            hu=float(rng.uniform(*NODE_HU)),
        )
        box = grid.box(ball.centre_mm, 1.3 * float(axes.max()) + 2)
        if any(part.stop - part.start < 3 for part in box):
            continue
        inside = ball.depth_mm(grid.points(box)) >= 0
        fat = np.abs(hu[box] - FAT_HU) < 20
        apart = all(
            np.linalg.norm(ball.centre_mm - other.centre_mm) > axes.max() + other.half_axes_mm.max() + APART_MM
            for other in balls
        )
        if inside.any() and apart and fat[inside].mean() >= IN_FAT and bool(fat[_middle(inside)]):
            balls.append(ball)
    if len(balls) < count:
        raise ValueError(f"no room for {count} lymph nodes in this scan, {len(balls)} fit; ask for fewer")
    return balls


def _middle(inside: np.ndarray) -> tuple[int, ...]:
    return tuple(round(float(at.mean())) for at in np.nonzero(inside))
