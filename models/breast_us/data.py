"""BUSI: read, grouped into families of near-duplicates, split, prepared and varied.

Al-Dhabyani et al., "Dataset of breast ultrasound images", Data in Brief 28 (2020) 104863, CC BY 4.0.
BUSI carries no patient ids. Two images of one patient may stand in two splits unless they look alike: images whose
perceptual hashes nearly agree form a family and stay together, and a family with two labels is left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.fft import dctn
from torch.nn import functional as F

from models.nets.breast_triple import CLASSES

SPLIT_FILE = Path(__file__).with_name("split.json")
SHARES: Mapping[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}
SPLIT_SEED = 3

PREPROCESSING = "letterbox-1"  # changes whenever prepare or normalise do

HASH_SIDE = 32  # the image, shrunk, before its cosine transform
HASH_BITS = 8  # the 8 x 8 lowest frequencies, less the mean, give 63 bits
ALIKE_BITS = 8  # hashes that differ in no more bits than this are one family

# Of the grey values 0..1 of the training split.
GREY_MEAN, GREY_STD = 0.330, 0.222


@dataclass(frozen=True, eq=False)
class Labelled:
    name: str  # "benign/1.png"
    label: int  # index into CLASSES
    pixels: np.ndarray  # (h, w) uint8
    mask: np.ndarray  # (h, w) bool, the union of all lesions


def read_busi(archive: Path) -> list[Labelled]:
    """Every image of the archive, in the order of its index.csv."""
    with zipfile.ZipFile(archive) as z:
        rows = csv.DictReader(io.TextIOWrapper(z.open("index.csv"), "utf-8"))
        return [
            Labelled(
                name=row["file"],
                label=CLASSES.index(row["class"]),
                pixels=_grey(z, row["file"]),
                mask=_grey(z, row["file"].removesuffix(".png") + "_mask.png") > 127,
            )
            for row in rows
        ]


def _grey(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file, Image.open(file) as image:
        return np.asarray(image.convert("L"))


# ---- the split


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """(h, w) uint8 -> 63 bools: which low frequencies are stronger than their median."""
    small = Image.fromarray(pixels).resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BILINEAR)
    low = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:HASH_BITS, :HASH_BITS].ravel()[1:]
    return low > np.median(low)


def families(images: Sequence[Labelled]) -> list[list[int]]:
    """Indices of images grouped so that near-duplicates, and their near-duplicates, share a group."""
    hashes = np.stack([perceptual_hash(image.pixels) for image in images])
    family = np.arange(len(images))
    for i, own in enumerate(hashes):
        for j in np.flatnonzero((hashes[i + 1 :] != own).sum(axis=1) <= ALIKE_BITS) + i + 1:
            family[family == family[j]] = family[i]
    return [np.flatnonzero(family == f).tolist() for f in np.unique(family)]


def make_split(images: Sequence[Labelled], seed: int = SPLIT_SEED) -> dict[str, list[str]]:
    """Names of train, val and test, stratified by class with families kept whole; "left_out" holds label conflicts."""
    return _shared_out(images, SHARES, seed)


def folds(images: Sequence[Labelled], k: int = 5, seed: int = SPLIT_SEED) -> dict[str, list[str]]:
    """Names of "fold 1" to "fold k" of the cross-validation, like make_split; their digest is split_sha256 of this."""
    if k < 2:
        raise ValueError(f"{k} folds: at least 2 are needed")
    return _shared_out(images, {f"fold {i + 1}": 1 / k for i in range(k)}, seed)


def _shared_out(images: Sequence[Labelled], shares: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Names of each part, stratified by class with families kept whole; "left_out" holds label conflicts."""
    split: dict[str, list[str]] = {part: [] for part in (*shares, "left_out")}
    groups = families(images)
    for label in range(len(CLASSES)):
        own = [g for g in groups if {images[i].label for i in g} == {label}]
        wanted = {part: share * sum(map(len, own)) for part, share in shares.items()}
        order = np.random.default_rng(seed).permutation(len(own))
        for group in sorted((own[k] for k in order), key=len, reverse=True):  # large ones first: they fit worst last
            part = max(wanted, key=lambda p: wanted[p] / shares[p])
            wanted[part] -= len(group)
            split[part] += [images[i].name for i in group]
    split["left_out"] = [images[i].name for g in groups if len({images[i].label for i in g}) > 1 for i in g]
    return {part: sorted(names) for part, names in split.items()}


def split_sha256(split: Mapping[str, Sequence[str]]) -> str:
    """Digest of the names and their parts; a checkpoint carries it, so that nobody tests on what it has seen."""
    return hashlib.sha256(json.dumps(split, sort_keys=True).encode()).hexdigest()


def read_split() -> dict[str, list[str]]:
    """The split that ships with the code. Raises ValueError when the file was edited by hand."""
    stored = json.loads(SPLIT_FILE.read_text("utf-8"))
    if split_sha256(stored["split"]) != stored["sha256"]:
        raise ValueError(f"{SPLIT_FILE} does not match its own SHA-256; make it again with write_split")
    return stored["split"]


def write_split(images: Sequence[Labelled]) -> None:
    split = make_split(images)
    document = {"seed": SPLIT_SEED, "sha256": split_sha256(split), "split": split}
    SPLIT_FILE.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


# ---- one image, ready for the network


@dataclass(frozen=True)
class Letterbox:
    """How an image of `source` rows and columns sits in a square of `size`: whole, centred, black bars around it."""

    source: tuple[int, int]
    size: int

    @property
    def inner(self) -> tuple[int, int]:
        """Rows and columns the image takes inside the square."""
        scale = self.size / max(self.source)
        return max(1, round(self.source[0] * scale)), max(1, round(self.source[1] * scale))

    @property
    def corner(self) -> tuple[int, int]:
        return (self.size - self.inner[0]) // 2, (self.size - self.inner[1]) // 2

    def put(self, image: torch.Tensor) -> torch.Tensor:
        """(h, w) float -> (size, size)"""
        inner = F.interpolate(image[None, None], self.inner, mode="bilinear", antialias=True)[0, 0]
        top, left = self.corner
        return F.pad(inner, (left, self.size - left - self.inner[1], top, self.size - top - self.inner[0]))

    def take_back(self, image: torch.Tensor) -> torch.Tensor:
        """(size, size) float -> (h, w), on the source's own pixel grid"""
        (top, left), (rows, columns) = self.corner, self.inner
        inner = image[top : top + rows, left : left + columns]
        return F.interpolate(inner[None, None], self.source, mode="bilinear", antialias=True)[0, 0]


def prepare(pixels: np.ndarray, size: int) -> tuple[torch.Tensor, Letterbox]:
    """(h, w) uint8 -> grey 0..1 (size, size), and the way back. Not yet normalised."""
    box = Letterbox((pixels.shape[0], pixels.shape[1]), size)
    return box.put(torch.from_numpy(pixels.astype(np.float32)) / 255), box


def prepare_mask(mask: np.ndarray, size: int) -> torch.Tensor:
    """(h, w) bool -> 0 or 1, (size, size)"""
    box = Letterbox((mask.shape[0], mask.shape[1]), size)
    return (box.put(torch.from_numpy(mask.astype(np.float32))) > 0.5).float()


def normalise(grey: torch.Tensor) -> torch.Tensor:
    """Grey 0..1 -> mean 0 and deviation 1 over the training images."""
    return (grey - GREY_MEAN) / GREY_STD


# ---- variation: the same lesion as another machine, hand and gain setting would show it


@dataclass(frozen=True)
class Variation:
    """Ranges are drawn uniformly. No vertical flip: depth has meaning."""

    rotate_deg: float = 12.0
    zoom: tuple[float, float] = (0.75, 1.3)
    stretch: float = 0.12  # of width against height
    shift: float = 0.1  # of the side
    contrast: tuple[float, float] = (0.7, 1.35)
    brightness: float = 0.12
    gamma: tuple[float, float] = (0.7, 1.4)
    noise: float = 0.03
    erase: float = 0.25  # how often
    erase_side: tuple[float, float] = (0.08, 0.25)  # of the side


def vary(
    grey: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator, how: Variation
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 1, S, S) grey 0..1 and mask 0/1 -> the same, varied image by image"""
    count, side = grey.shape[0], grey.shape[-1]
    draw = lambda low, high: torch.from_numpy(rng.uniform(low, high, count)).float()  # noqa: E731
    per_image = lambda values: values.view(-1, 1, 1, 1)  # noqa: E731

    angle = torch.deg2rad(draw(-how.rotate_deg, how.rotate_deg))
    zoom, stretch = 1 / draw(*how.zoom), 1 + draw(-how.stretch, how.stretch)
    mirror = torch.from_numpy(rng.choice([-1.0, 1.0], count)).float()
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [cos * mirror * stretch, -sin, draw(-how.shift, how.shift) * 2]
    columns = [sin * mirror * stretch, cos, draw(-how.shift, how.shift) * 2]
    affine = torch.stack([torch.stack(rows, -1), torch.stack(columns, -1)], dim=1)  # (B, 2, 3)
    grid = F.affine_grid(affine, list(grey.shape), align_corners=False)
    both = F.grid_sample(torch.cat([grey, mask], dim=1), grid, align_corners=False)
    grey, mask = both[:, :1], (both[:, 1:] > 0.5).float()

    inside = grey > 0  # the bars stay black
    grey = grey.clamp(0, 1) ** per_image(draw(*how.gamma))
    grey = (grey - 0.5) * per_image(draw(*how.contrast)) + 0.5 + per_image(draw(-how.brightness, how.brightness))
    grey = grey + torch.from_numpy(rng.normal(size=grey.shape)).float() * per_image(draw(0, how.noise))
    grey = torch.where(inside, grey.clamp(0, 1), 0.0)

    for i in np.flatnonzero(rng.random(count) < how.erase):
        height, width = (rng.uniform(*how.erase_side, 2) * side).astype(int)
        top, left = rng.integers(0, side - height), rng.integers(0, side - width)
        grey[i, :, top : top + height, left : left + width] = rng.random()  # the mask keeps what was hidden
    return grey, mask
