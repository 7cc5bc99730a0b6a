"""Crops of whole scans for NoduleNet: around a nodule or anywhere in the lungs, turned, mirrored and scaled at random.

A share of them is degraded, too: as if the scanner had been noisier, calibrated otherwise, or its slices thicker. And
in a share of them dense nodules are thinned to ground glass, which is rare in LIDC-IDRI.

A scan is prepared once and kept as two files of bytes, which are mapped, not read: a crop touches its own part only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from models.lung_nodule.nodulenet.preprocess import OUTSIDE, PREPROCESSING, WINDOW_HU, network_input, prepare
from models.lung_nodule.nodulenet.proposals import with_margin
from models.training.files import replacing
from models.training.lung_nodule.data.scans import Scan

LUNG = 1  # in a volume of regions; below it nothing
LESION, IRRELEVANT = 2, 128  # the first of each; a scan has at most 126
SAFETY = 12  # voxels between a nodule and the border of its crop
ZOOM = (0.75, 1.25)
NOISE = (0.0, 0.06)  # standard deviation, of network input: up to 54 HU
OFFSET = (-0.03, 0.03)  # up to 27 HU
SLICES_MM = (1, 2, 3, 4, 5)  # as thick as these
FAINT_HU = -500.0  # a nodule with a median below it is faint: ground glass, or small
GLASS = (0.15, 0.5)  # what is left of a dense nodule's excess over its lung: -720 to -425 HU of 0 in lung of -850
FADE = 2.0  # voxels beyond a mask, over which thinning fades out
AROUND = 10.0  # voxels beyond a mask whose lung a thinned nodule comes near to


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as crops are cut from it, uint8 (z, y, x): what the network sees, and what lies where (LUNG, ...)."""

    grey: np.ndarray
    regions: np.ndarray

    @classmethod
    def of(cls, scan: Scan) -> Prepared:
        """Raises ValueError for a scan with more findings than a byte can tell apart."""
        if max(len(scan.lesions), len(scan.irrelevant)) > IRRELEVANT - LESION:
            raise ValueError(
                f"{scan.name} has {len(scan.lesions)} lesions, at most {IRRELEVANT - LESION} are told apart"
            )
        regions = scan.lungs.astype(np.uint8) * LUNG
        for first, findings in ((IRRELEVANT, scan.irrelevant), (LESION, scan.lesions)):
            for number, one in enumerate(findings, start=first):
                regions[one.box][one.mask] = number
        return cls(prepare(scan.hu, scan.lungs), regions)

    def lesions(self) -> dict[int, tuple[slice, ...]]:
        """Number of each lesion -> its box"""
        found = ndimage.find_objects(self.regions, max_label=IRRELEVANT - 1)
        return {number: box for number, box in enumerate(found, start=1) if number >= LESION and box is not None}


Place = tuple[str, int, tuple[slice, ...]]  # of a lesion: the scan's name, its number there, its box


class PreparedScans:
    """Prepared scans by name, each made once and kept in a folder named after what it was made of."""

    def __init__(self, names: Sequence[str], load: Callable[[str], Scan], cache: Path) -> None:
        self.names, self.load, self.cache = names, load, cache

    def __getitem__(self, name: str) -> Prepared:
        key = hashlib.sha256(name.encode()).hexdigest()[:16]
        paths = [self.cache / f"{key}.{kind}.npy" for kind in ("grey", "regions")]
        if not all(path.exists() for path in paths):
            self.cache.mkdir(parents=True, exist_ok=True)
            made = Prepared.of(self.load(name))
            for path, volume in zip(paths, (made.grey, made.regions), strict=True):
                with replacing(path) as new, new.open("wb") as file:
                    np.save(file, volume)
        return Prepared(*(np.load(path, mmap_mode="r") for path in paths))

    def lesions(self) -> list[Place]:
        """All lesions of all scans."""
        return [(name, number, box) for name in self.names for number, box in self[name].lesions().items()]

    def faint(self, lesions: Sequence[Place]) -> list[Place]:
        """Those of these whose median is below FAINT_HU."""
        below = np.interp(FAINT_HU, WINDOW_HU, (0, 255))

        def median(name: str, number: int, box: tuple[slice, ...]) -> float:
            scan = self[name]
            return float(np.median(scan.grey[box][scan.regions[box] == number]))

        return [one for one in lesions if median(*one) < below]


def cache_name(folder: Path, names: Sequence[str]) -> str:
    """Digest of the folder that keeps the scans of a set prepared: another set, or another preparation, has another."""
    index = folder / "index.json"
    what = [str(folder.resolve()), PREPROCESSING, *names, index.read_text("utf-8") if index.is_file() else ""]
    return "nodulenet-" + hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- crops


@dataclass(frozen=True, eq=False)
class Crop:
    """A cube cut from a scan.

    image     float32 (1, side, side, side), the network's input
    masks     uint8, same shape: 0, or which of `boxes` from 1
    boxes     (m, 6) of the nodules whose middle lies in the crop, with the margin that the network learns
    ignored   (k, 6) of what is to be learnt neither way: nodules cut off, irrelevant findings
    """

    image: Tensor
    masks: Tensor
    boxes: Tensor
    ignored: Tensor


@dataclass(frozen=True, eq=False)
class View:
    """How a crop lies in its scan: voxel o of the crop shows place `centre + matrix @ (o - middle of the crop)`."""

    centre: np.ndarray  # (3,)
    matrix: np.ndarray  # (3, 3)
    side: int

    def places(self, o: np.ndarray) -> np.ndarray:
        return self.centre + (o - (self.side - 1) / 2) @ self.matrix.T


def random_matrix(rng: np.random.Generator) -> np.ndarray:
    """Turned by 0 to 180 degrees in the plane, mirrored in y and x at random, scaled alike in all directions."""
    angle = rng.uniform(0, np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    mirror = np.diag([1, *rng.choice([-1, 1], 2)])
    return turn @ mirror / rng.uniform(*ZOOM)


def view_of(box: Sequence[slice], matrix: np.ndarray, side: int, rng: np.random.Generator) -> View:
    """A view with the box at a random place in it, SAFETY voxels from the border; in the middle if there is no room."""
    middle = np.array([(s.start + s.stop - 1) / 2 for s in box])
    half = np.abs(np.linalg.inv(matrix)) @ [(s.stop - s.start) / 2 for s in box]  # extent in the crop, at most
    room = np.maximum(0, side / 2 - half - SAFETY)
    shift = rng.uniform(-room, room)  # of the box's middle from the crop's
    return View(middle - matrix @ shift, matrix, side)


def cut_out(scan: Prepared, view: View) -> Crop:
    """Cut and resample: grey values linearly, regions by the nearest voxel; OUTSIDE beyond the scan."""
    grey, regions = sample(scan, view)
    masks = np.zeros_like(regions)
    boxes, ignored = [], []
    for number, place in enumerate(ndimage.find_objects(regions), start=1):
        if number < LESION or place is None:
            continue
        found = [float(s.start) for s in place] + [float(s.stop) for s in place]
        ends_inside = all(s.start > 0 and s.stop < view.side for s in place)
        if number < IRRELEVANT and ends_inside:
            boxes.append(found)
            masks[place][regions[place] == number] = len(boxes)
        else:
            ignored.append(found)
    return Crop(
        image=network_input(torch.from_numpy(grey))[None],
        masks=torch.from_numpy(masks)[None],
        boxes=with_margin(torch.tensor(boxes).reshape(-1, 6)),
        ignored=with_margin(torch.tensor(ignored).reshape(-1, 6)),
    )


def sample(scan: Prepared, view: View) -> tuple[np.ndarray, np.ndarray]:
    """float32 grey values and uint8 regions (side, side, side) of a view"""
    corners = view.places(np.array(np.meshgrid(*[[0, view.side - 1]] * 3)).reshape(3, -1).T)
    shape = np.array(scan.grey.shape)
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, shape - 2)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, low + 2, shape)
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    # grid_sample wants x, y, z from -1 to 1 between the middles of the first and the last voxel
    scale = 2 / (high - low - 1)
    theta = scale[:, None] * view.matrix * (view.side - 1) / 2
    start = scale * (view.centre - low) - 1
    affine = torch.from_numpy(np.concatenate([theta[::-1, ::-1], start[::-1, None]], axis=1)).float()
    grid = F.affine_grid(affine[None], [1, 1, *[view.side] * 3], align_corners=True)

    def taken(volume: np.ndarray, mode: str, beyond: int) -> np.ndarray:
        values = torch.from_numpy(volume[part].astype(np.float32))[None, None] - beyond
        return (F.grid_sample(values, grid, mode, "zeros", align_corners=True)[0, 0] + beyond).numpy()

    return taken(scan.grey, "bilinear", OUTSIDE), taken(scan.regions, "nearest", 0).astype(np.uint8)


def degrade(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Network input (1, d, h, w) of a worse scanner: thicker slices, another offset, more noise; OUTSIDE stays."""
    outside = image == network_input(torch.tensor(OUTSIDE))
    worse = thicker(image, int(rng.choice(SLICES_MM)))
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32))
    worse = worse + float(rng.uniform(*OFFSET)) + float(rng.uniform(*NOISE)) * noise
    return torch.where(outside, image, worse)


def ground_glass(image: Tensor, masks: Tensor, rng: np.random.Generator) -> Tensor:
    """Network input (1, d, h, w) with its dense nodules thinned to ground glass; OUTSIDE and faint nodules stay.

    masks   (1, d, h, w) as of Crop. Up to the first voxel beyond a mask a share (GLASS) of what a voxel is above the
            median of the lung around is left, and the noise that goes with the rest is put back.
    """
    values = image[0].numpy().copy()
    inside = values != float(network_input(torch.tensor(OUTSIDE)))
    dark = float(network_input(torch.tensor(np.interp(FAINT_HU, WINDOW_HU, (0, 255)))))
    for number in range(1, int(masks.max()) + 1):
        mask = masks[0].numpy() == number
        away = ndimage.distance_transform_edt(~mask)
        lung = values[inside & (away > FADE) & (away < AROUND) & (values < dark)]
        if not lung.size or np.median(values[mask]) < dark:
            continue
        middle = np.median(lung)
        deviation = 1.4826 * np.median(np.abs(lung - middle))  # robust: vessels are no noise
        grain = ndimage.gaussian_filter(rng.standard_normal(values.shape, np.float32), 0.7)
        left = rng.uniform(*GLASS)
        thin = middle + left * (values - middle) + np.sqrt(1 - left**2) * deviation * grain / grain.std()
        values += np.where(inside, np.clip((FADE + 1 - away) / FADE, 0, 1), 0) * (thin - values)
    return torch.from_numpy(values)[None]


def thicker(image: Tensor, voxels: int) -> Tensor:
    """(1, d, h, w) as slices of so many voxels show it: each their mean, linear between their middles."""
    depth = image.shape[1]
    lines = image[0].flatten(1).T[:, None]  # (h * w, 1, d)
    slices = F.avg_pool1d(lines, voxels, ceil_mode=True)
    lines = F.interpolate(slices, scale_factor=float(voxels), mode="linear", align_corners=False)[..., :depth]
    return lines[:, 0].T.reshape(image.shape)


# ----------------------------------------------------------------------------------------------------------- batches


def mistakes(path: Path, digest: str) -> list[tuple[str, tuple[float, float, float]]]:
    """(scan, place) of each mistake in a file of hard_negatives.py. Raises ValueError in words for another file, or
    one of other scans."""
    try:
        said = json.loads(path.read_text("utf-8"))
        places, made_of = said["places"], said["scans_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no list of models.training.lung_nodule.nodulenet.hard_negatives: {error!r}"
        ) from error
    if made_of != digest:
        raise ValueError(f"{path.name} was made of other scans than these; make it anew")
    return [(name, (z, y, x)) for name, each in places.items() for z, y, x in each]


def crops(
    scans: PreparedScans,
    lesions: Sequence[Place],
    *,
    seed: Sequence[int],
    count: int,
    side: int,
    background_fraction: float,
    degrade_prob: float = 0.0,
    glass_prob: float = 0.0,
    hard_negatives: Sequence[tuple[str, tuple[float, float, float]]] = (),
) -> Iterator[Crop]:
    """So many crops, augmented, the same for the same seed. Every lesion's turn comes before any comes twice.

    background_fraction   of the crops: round a random place in the lungs of a random scan, not round a nodule
    degrade_prob          of a crop to be `degraded`
    glass_prob            of a crop round a nodule to have its dense nodules thinned to ground glass
    hard_negatives        scans and places that every second background crop shows, at a random place in it
    """
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(count):
        matrix = random_matrix(rng)
        if rng.random() < background_fraction or not lesions:
            if hard_negatives and rng.random() < 0.5:
                name, place = hard_negatives[int(rng.integers(len(hard_negatives)))]
                view = view_of([slice(c, c + 1) for c in map(round, place)], matrix, side, rng)
            else:
                name = scans.names[int(rng.integers(len(scans.names)))]
                view = View(place_in_lungs(scans[name].regions, rng), matrix, side)
            crop = cut_out(scans[name], view)
        else:
            order = order or rng.permutation(len(lesions)).tolist()
            name, _, box = lesions[order.pop()]
            crop = cut_out(scans[name], view_of(box, matrix, side, rng))
            if glass_prob and rng.random() < glass_prob:
                crop = replace(crop, image=ground_glass(crop.image, crop.masks, rng))
        yield replace(crop, image=degrade(crop.image, rng)) if rng.random() < degrade_prob else crop


def place_in_lungs(regions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for _ in range(1000):
        place = rng.integers(regions.shape)
        if regions[tuple(place)]:
            return place.astype(float)
    return np.array(regions.shape) / 2  # hardly any lung: crops of such a scan are alike anyway


def make_batches(one_by_one: Iterator[Crop], size: int) -> Iterator[dict[str, Tensor]]:
    """Whole batches: image, masks (B, 1, side, side, side); boxes, ignored (B, most, 6), filled up with zeros"""
    held: list[Crop] = []
    for crop in one_by_one:
        held.append(crop)
        if len(held) == size:
            yield {
                "image": torch.stack([one.image for one in held]),
                "masks": torch.stack([one.masks for one in held]),
                "boxes": torch.nn.utils.rnn.pad_sequence([one.boxes for one in held], batch_first=True),
                "ignored": torch.nn.utils.rnn.pad_sequence([one.ignored for one in held], batch_first=True),
            }
            held = []
