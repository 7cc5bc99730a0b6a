"""What a chest is made of: body, lungs, vessels and nodules, as shapes in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from models.phantoms.truth import Lesion

LUNG_HU, SOFT_HU, FAT_HU, BLOOD_HU, BONE_HU, MARROW_HU = -860.0, 45.0, -95.0, 50.0, 480.0, 180.0
EDGE_MM = 0.45  # how fast a small object fades into what surrounds it

# Ellipsoids of the body in patient mm, LPS round the middle of the chest: centre, half axes, HU; painted in this order.
BODY: tuple[tuple[tuple[float, float, float], tuple[float, float, float], float], ...] = (
    ((0, 0, 0), (165, 112, 900), FAT_HU),
    ((0, 2, 0), (153, 101, 900), SOFT_HU),
    ((-76, 4, -5), (62, 86, 128), LUNG_HU),  # right lung
    ((76, 4, -5), (62, 86, 128), LUNG_HU),
    ((26, -32, -40), (52, 44, 58), BLOOD_HU),  # heart
    ((0, -86, 0), (18, 7, 900), BONE_HU),  # sternum
    ((0, 82, 0), (24, 22, 900), BONE_HU),  # vertebrae
    ((0, 82, 0), (21, 19, 900), MARROW_HU),
    ((24, 56, 0), (12, 12, 900), BLOOD_HU),  # aorta
    ((0, 20, 70), (9, 9, 75), -1000.0),  # trachea
)

LUNGS = BODY[2:4]


@dataclass(frozen=True)
class Ball:
    """A nodule: an ellipsoid with a bumpy surface."""

    centre_mm: np.ndarray
    half_axes_mm: np.ndarray
    bumps: np.ndarray  # unit vectors (n, 3)
    heights: np.ndarray  # (n,), share of the radius
    hu: float

    def depth_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) in LPS -> about how far inside the surface, negative outside."""
        scaled = (points_mm - self.centre_mm) / self.half_axes_mm
        radius = np.linalg.norm(scaled, axis=-1)
        direction = scaled / np.maximum(radius, 1e-6)[..., None]
        surface = 1 + np.exp(5 * (direction @ self.bumps.T - 1)) @ self.heights
        return (surface - radius) * float(self.half_axes_mm.mean())


@dataclass(frozen=True)
class Tube:
    """A piece of vessel."""

    start_mm: np.ndarray
    end_mm: np.ndarray
    radius_mm: float

    def depth_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) in LPS -> how far inside the wall, negative outside."""
        along = self.end_mm - self.start_mm
        share = np.clip((points_mm - self.start_mm) @ along / (along @ along), 0, 1)
        return self.radius_mm - np.linalg.norm(points_mm - self.start_mm - share[..., None] * along, axis=-1)


@dataclass(frozen=True, eq=False)
class Grid:
    """The scan's own grid: (z, y, x, 1) -> LPS mm by `affine`; z ascends along the slice normal."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def box(self, corner_mm: np.ndarray, reach_mm: float) -> tuple[slice, ...]:
        """The voxels within reach of a point, clipped to the grid; empty slices if none."""
        middle = np.linalg.inv(self.affine) @ [*corner_mm, 1]
        reach = reach_mm / np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(
            slice(int(np.clip(np.floor(m - r), 0, n)), int(np.clip(np.ceil(m + r) + 1, 0, n)))
            for m, r, n in zip(middle[:3], reach, self.shape, strict=True)
        )

    def points(self, box: tuple[slice, ...], shift_z: float = 0.0) -> np.ndarray:
        """LPS of the voxels' centres, (d, h, w, 3); shift_z in slices."""
        z, y, x = (np.arange(s.start, s.stop, dtype=float) for s in box)
        zyx = np.stack(np.meshgrid(z + shift_z, y, x, indexing="ij"), -1)
        return zyx @ self.affine[:3, :3].T + self.affine[:3, 3]


def vessel_tree(rng: np.random.Generator, side: int, thinnest_mm: float = 0.6) -> list[Tube]:
    """Vessels of one lung, from the hilum outwards, each branch thinner (Murray 1926, exponent 2.7)."""
    centre, half_axes, _ = LUNGS[0 if side < 0 else 1]
    tubes: list[Tube] = []
    ends = [
        (np.array([side * 10.0, 8.0, 5.0]), unit(np.array([side * 1.3, y, z])), 3.2)
        for y, z in ((-0.7, 0.9), (0.8, 0.8), (-0.3, -0.2), (0.7, -1.0), (-0.9, -0.9))
    ]
    while ends:
        start, direction, radius = ends.pop()
        end = start + direction * (6 + radius * rng.uniform(3.5, 7.5))
        if radius < thinnest_mm or np.linalg.norm((end - centre) / np.subtract(half_axes, 4)) > 1:
            continue
        tubes.append(Tube(start, end, radius))
        share = rng.uniform(0.35, 0.65)
        for part in (share, 1 - share):
            turned = unit(direction + rng.normal(0, 0.42, 3))
            ends.append((end, turned, radius * float(part) ** (1 / 2.7)))
    return tubes


def paint_tubes(hu: np.ndarray, grid: Grid, tubes: Sequence[Tube], value: float, into_hu: float) -> None:
    """Many tubes at once, where the picture is below into_hu (or above value, if value is the lower): soft edges.

    By points along their axes, half a radius apart, each of which marks the voxels round it: a hundredth of the voxels
    that the box of a slanting tube has.
    """
    share = np.zeros(hu.size, np.float32)
    mm = np.linalg.norm(grid.affine[:3, :3], axis=0)
    to_index = np.linalg.inv(grid.affine)
    radii = np.array([tube.radius_mm for tube in tubes])
    widest = np.quantile(radii, [0.5, 0.9, 1.0])  # three groups: the cube of voxels to look at depends on the radius
    for low, high in zip([-1.0, *widest], widest, strict=False):
        group = [tube for tube in tubes if low < tube.radius_mm <= high]
        points, radius = [], []
        for tube in group:
            count = 2 + int(np.linalg.norm(tube.end_mm - tube.start_mm) / max(0.5 * tube.radius_mm, 0.4))
            way = np.linspace(0, 1, count)[:, None]
            points.append(tube.start_mm + way * (tube.end_mm - tube.start_mm))
            radius.append(np.full(count, tube.radius_mm))
        if not points:
            continue
        index = np.concatenate(points) @ to_index[:3, :3].T + to_index[:3, 3]
        r = np.concatenate(radius).astype(np.float32)
        base = np.rint(index).astype(int)
        reach = np.ceil((high + 2 * EDGE_MM) / mm).astype(int)
        for offset in np.ndindex(*(2 * reach + 1)):
            voxel = base + offset - reach
            away = ((voxel - index) @ grid.affine[:3, :3].T).astype(np.float32)
            depth = r - np.sqrt((away * away).sum(axis=1))
            near = (depth > -2.5 * EDGE_MM) & ((voxel >= 0) & (voxel < grid.shape)).all(axis=1)
            flat = np.ravel_multi_index(tuple(voxel[near].T), grid.shape)
            np.maximum.at(share, flat, 1 / (1 + np.exp(-depth[near] / EDGE_MM)))
    share = share.reshape(grid.shape)
    if value < into_hu:
        hu += np.where(hu < into_hu, np.minimum(value - hu, 0), 0) * share
    else:
        hu += np.where(hu < into_hu, value - hu, 0) * share


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def place_nodules(
    rng: np.random.Generator,
    grid: Grid,
    vessels: list[Tube],
    count: int,
    radii_mm: tuple[float, float] = (3.0, 10.0),
) -> list[Ball]:
    """Nodules inside the lungs and the scan, apart from each other and from large vessels; radii_mm: from and to.

    Raises ValueError when the scan has no room for so many.
    """
    balls: list[Ball] = []
    heart_centre, heart_axes, _ = BODY[4]
    for attempt in range(200 * count):
        if len(balls) == count:
            return balls
        centre, half_axes, _ = LUNGS[attempt % 2]
        radius = rng.uniform(*radii_mm)
        place = centre + unit(rng.normal(size=3)) * half_axes * rng.random() ** (1 / 3)
        index = (np.linalg.inv(grid.affine) @ [*place, 1])[:3]
        margin = (radius + 4) / np.linalg.norm(grid.affine[:3, :3], axis=0)
        free = (
            np.linalg.norm((place - centre) / (np.array(half_axes) - radius - 3)) < 1
            and np.linalg.norm((place - heart_centre) / (np.array(heart_axes) + radius + 4)) > 1
            and bool(((index > margin) & (index < np.array(grid.shape) - 1 - margin)).all())
            and all(np.linalg.norm(place - other.centre_mm) > 30 for other in balls)
            and all(tube.depth_mm(place) < -radius - 2.5 for tube in vessels if tube.radius_mm > 1.1)
        )
        if free:
            bumps = rng.normal(size=(7, 3))
            balls.append(
                Ball(
                    centre_mm=place,
                    half_axes_mm=radius * rng.uniform(0.85, 1.15, 3),
                    bumps=bumps / np.linalg.norm(bumps, axis=1, keepdims=True),
                    heights=rng.uniform(-0.12, 0.16, 7),
                    hu=float(rng.uniform(0, 50)),
                )
            )
    if len(balls) < count:
        raise ValueError(
            f"no room for {count} nodules in this scan, {len(balls)} fit; use more slices or fewer nodules"
        )
    return balls


@dataclass(frozen=True, eq=False)
class Detail:
    """What else there is in a lung: small vessels, airways beside the larger ones, fissures, uneven parenchyma."""

    vessels: tuple[Tube, ...]
    airways: tuple[Tube, ...]  # outer walls
    fissures: np.ndarray  # (n, 7): side, then z = a + b·x + c·y and a wave of height h and length l with its phase
    unevenness: np.ndarray  # (8, 8, 8) over LUNGS, HU

    @classmethod
    def of(cls, seed: int) -> Detail:
        rng = np.random.default_rng((seed, 79))
        vessels, airways = [], []
        for side in (-1, 1):
            tree = vessel_tree(rng, side, thinnest_mm=0.35)
            vessels += tree
            beside = unit(rng.normal(size=3))
            root = np.array([side * 10.0, 20.0, -3.0])
            airways.append(Tube(np.array([0.0, 20.0, 8.0]), root, 7.0))  # main bronchus
            for tube in tree:
                if tube.radius_mm > 1.0:  # an airway goes with each artery, about as wide (Hansell 2008)
                    shift = beside * 2.4 * tube.radius_mm
                    airways.append(Tube(tube.start_mm + shift, tube.end_mm + shift, 1.15 * tube.radius_mm))
                    if np.linalg.norm(tube.start_mm - [side * 10.0, 8.0, 5.0]) < 1:
                        airways.append(Tube(root, tube.start_mm + shift, 1.3 * tube.radius_mm))
        oblique = [(s, rng.uniform(-25, -5), 0.0, rng.uniform(-1.3, -0.9)) for s in (-1, 1)]
        horizontal = [(-1, rng.uniform(0, 20), rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1))]
        waves = rng.uniform((2.0, 80.0, 0.0), (7.0, 160.0, 6.28), (3, 3))
        fissures = np.hstack([np.array([*oblique, *horizontal]), waves])
        return cls(tuple(vessels), tuple(airways), fissures, rng.normal(0, 22.0, (8, 8, 8)))


def ball_lesion(ball: Ball, grid: Grid, pose: np.ndarray | None = None) -> Lesion:
    """What is true about a nodule: its voxels, and its axes in the image plane through its middle.

    grid   as the body sees it; pose brings the nodule's centre from there to LPS
    """
    centre = ball.centre_mm if pose is None else (pose @ [*ball.centre_mm, 1])[:3]
    box = grid.box(ball.centre_mm, 1.8 * float(ball.half_axes_mm.max()) + 3)
    inside = ball.depth_mm(grid.points(box)) >= 0
    (tight,) = ndimage.find_objects(inside.astype(np.uint8))
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    down, across = (unit(grid.affine[:3, axis]) for axis in (1, 2))
    rays = np.outer(np.cos(angles), across) + np.outer(np.sin(angles), down)
    lengths = np.linspace(0, 1.8 * float(ball.half_axes_mm.max()), 600)
    depth = ball.depth_mm(ball.centre_mm + rays[:, None] * lengths[None, :, None])
    edge = lengths[(depth >= 0).sum(axis=1) - 1]
    outline = np.stack([np.cos(angles), np.sin(angles)], -1) * edge[:, None]
    distance = np.linalg.norm(outline[:, None] - outline[None], axis=-1)
    i, j = np.unravel_index(int(distance.argmax()), distance.shape)
    along = unit(outline[j] - outline[i])
    across_long = outline @ np.array([-along[1], along[0]])
    return Lesion(
        mask=inside[tight],
        offset_zyx=tuple(b.start + t.start for b, t in zip(box, tight, strict=True)),
        long_axis_mm=float(distance.max()),
        short_axis_mm=float(np.ptp(across_long)),
        centre_lps_mm=tuple(float(v) for v in centre),  # type: ignore[arg-type]
        hu=ball.hu,
    )
