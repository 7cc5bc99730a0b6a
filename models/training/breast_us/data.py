"""BUSI: read, grouped into families of near-duplicates, split, prepared and varied.

Al-Dhabyani et al., "Dataset of breast ultrasound images", Data in Brief 28 (2020) 104863, CC BY 4.0.
Read from a zip or a folder, as published (original sizes, a file per lesion) or with an index.csv (a union mask).
BUSI carries no patient ids. Two images of one patient may stand in two splits unless they look alike: images whose
perceptual hashes nearly agree form a family and stay together, and a family with two labels is left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from scipy.fft import dctn
from torch.nn import functional as F

from models.breast_us.letterbox import Letterbox
from models.nets.breast_triple import CLASSES
from models.training.layouts import Root, UnknownLayout, open_root

SPLIT_FILE = Path(__file__).with_name("split.json")
HASH_FILE = Path(__file__).with_name("hashes.json")  # of the images of the split
SHARES: Mapping[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}
SPLIT_SEED = 3

HASH_SIDE = 32  # the image, shrunk, before its cosine transform
HASH_BITS = 8  # the 8 x 8 lowest frequencies, less the mean, give 63 bits
ALIKE_BITS = 8  # hashes that differ in no more bits than this are one family


@dataclass(frozen=True, eq=False)
class Labelled:
    name: str  # "benign/1.png"
    label: int  # index into CLASSES
    pixels: np.ndarray  # (h, w) uint8
    mask: np.ndarray  # (h, w) bool, the union of all lesions


LAYOUTS = """\
  with an index (zip or folder)     index.csv with file, class; class/n.png and class/n_mask.png
  as published (zip or folder)      benign, malignant, normal: "benign (n).png", "benign (n)_mask.png", and
                                    "..._mask_1.png" where there is more than one lesion"""
PUBLISHED = re.compile(r"(?P<name>[a-z]+ \((?P<number>\d+)\))\.png")  # "benign (12).png"


def read_busi(path: Path) -> list[Labelled]:
    """Every image, in the order of its index.csv or of class and number. Raises UnknownLayout in words.

    An image is named "benign/12.png" in either layout: the numbers are those of the publication. Colours are read as
    grey; several masks of one image are joined; a published image keeps its size, and an image without a mask of
    its own has an empty one only if it is normal.
    """
    root = open_root(path)
    if (root / "index.csv").is_file():
        rows = list(csv.DictReader(io.StringIO((root / "index.csv").read_text("utf-8"))))
        if rows and {"file", "class"} <= set(rows[0]):
            return [_labelled(root, row["file"], row["class"]) for row in rows]
    folders = {one.name.lower(): one for one in root.iterdir() if one.is_dir()}
    if not set(CLASSES) <= set(folders):
        raise UnknownLayout(
            f"{path} holds neither an index.csv nor the three classes' folders. Known layouts:\n{LAYOUTS}"
        )
    images = [image for label in sorted(CLASSES) for image in _published(folders[label], label)]
    if not images:
        raise UnknownLayout(f"{path}: no image is named as published. Known layouts:\n{LAYOUTS}")
    return images


def _labelled(root: Root, file: str, label: str) -> Labelled:
    mask = root / f"{file.removesuffix('.png')}_mask.png"
    return Labelled(file, CLASSES.index(label), _grey(root / file), _grey(mask) > 127)


def _published(folder: Root, label: str) -> list[Labelled]:
    files = {one.name: one for one in folder.iterdir()}
    found = sorted((int(m["number"]), m["name"]) for name in files if (m := PUBLISHED.fullmatch(name)))
    images = []
    for number, name in found:
        pixels = _grey(files[f"{name}.png"])
        masks = [_grey(one) > 127 for other, one in files.items() if other.startswith(f"{name}_mask")]
        if not masks and label != "normal":
            raise UnknownLayout(f"{label}/{name}.png has no mask; fetch the set again")
        for mask in masks:
            if mask.shape != pixels.shape:
                raise UnknownLayout(f"{label}/{name}.png is {pixels.shape}, its mask {mask.shape}; fetch the set again")
        union = np.logical_or.reduce(masks) if masks else np.zeros(pixels.shape, bool)
        images.append(Labelled(f"{label}/{number}.png", CLASSES.index(label), pixels, union))
    return images


def _grey(path: Root) -> np.ndarray:
    with path.open("rb") as file, Image.open(file) as image:
        return np.asarray(image.convert("L"))


# ---- the split


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """(h, w) uint8 -> 63 bools: which low frequencies are stronger than their median."""
    small = Image.fromarray(pixels).resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BILINEAR)
    low = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:HASH_BITS, :HASH_BITS].ravel()[1:]
    return low > np.median(low)


def families(images: Sequence[Labelled]) -> list[list[int]]:
    """Indices of images grouped so that near-duplicates, and their near-duplicates, share a group."""
    return _alike(np.stack([perceptual_hash(image.pixels) for image in images]))


def _alike(hashes: np.ndarray) -> list[list[int]]:
    family = np.arange(len(hashes))
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
    in_order = sorted(images, key=lambda image: image.name)
    return _shared_out(in_order, {f"fold {i + 1}": 1 / k for i in range(k)}, seed)


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


Strategy = Literal["stored", "fresh"]


def known_hashes() -> dict[str, np.ndarray]:
    """The perceptual hash of every image of the stored split."""
    stored = json.loads(HASH_FILE.read_text("utf-8"))
    return {name: np.array([bit == "1" for bit in f"{int(text, 16):063b}"]) for name, text in stored.items()}


def parts(
    images: Sequence[Labelled],
    strategy: Strategy = "stored",
    *,
    anew: bool = True,
    stored: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, list[Labelled]], str]:
    """Images of train, val, test, unseen and left_out, and the SHA-256 of the split that says so.

    "stored": the shipped split, for images that have a stored name and still look as they did. Another image that
    looks like one of them goes where that one is, or is left out when its label or several relatives contradict. The
    rest is "unseen", and part of "test" too: it is never trained on. When strategy is "fresh", or no image is known
    and `anew`, all are split with make_split; weights trained on another split must not be evaluated on that one.
    stored: another split of the same images, in the place of the shipped one.
    """
    if strategy not in get_args(Strategy):
        raise ValueError(f"no strategy {strategy!r} for the split; known: {', '.join(get_args(Strategy))}")
    images = sorted(images, key=lambda image: image.name)
    split: Mapping[str, Sequence[str]] = read_split() if stored is None else stored
    hashes = known_hashes()
    home = {name: part for part, names in split.items() for name in names}
    own = np.stack([perceptual_hash(image.pixels) for image in images])
    known = np.array(
        [
            image.name in home and int((mine != hashes[image.name]).sum()) <= ALIKE_BITS
            for image, mine in zip(images, own, strict=True)
        ]
    )
    if strategy == "fresh" or (anew and not known.any()):
        split = make_split(images)
        home = {name: part for part, names in split.items() for name in names}
        placed = {part: [image for image in images if home[image.name] == part] for part in split}
        return {**placed, "unseen": []}, split_sha256(split)
    found: dict[str, list[Labelled]] = {part: [] for part in (*split, "unseen")}
    names = list(hashes)
    # stored ones first, whether or not they are here: a stranger may resemble an image that only the weights have seen
    groups = _alike(np.concatenate([np.stack([hashes[name] for name in names]), own]))
    family = {member: group for group in groups for member in group}
    for i, image in enumerate(images):
        if known[i]:
            found[home[image.name]].append(image)
            continue
        relatives = [member for member in family[len(names) + i] if member < len(names)]
        homes = {home[names[member]] for member in relatives}
        labels = {names[member].split("/")[0] for member in relatives} | {
            CLASSES[images[member - len(names)].label] for member in family[len(names) + i] if member >= len(names)
        }
        if len(labels | {CLASSES[image.label]}) > 1 or len(homes) > 1:
            found["left_out"].append(image)
        elif homes:
            found[homes.pop()].append(image)
        else:
            found["unseen"].append(image)
    found["test"] = sorted(found["test"] + found["unseen"], key=lambda image: image.name)
    return found, split_sha256(split)


def write_split(images: Sequence[Labelled]) -> None:
    split = make_split(images)
    document = {"seed": SPLIT_SEED, "sha256": split_sha256(split), "split": split}
    SPLIT_FILE.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    hashes = {image.name: perceptual_hash(image.pixels) for image in images}
    text = {name: f"{int(''.join('01'[int(bit)] for bit in bits), 2):016x}" for name, bits in hashes.items()}
    HASH_FILE.write_text(json.dumps(text, indent=0) + "\n", "utf-8")


# ---- one image, ready for the network


def prepare_mask(mask: np.ndarray, size: int) -> torch.Tensor:
    """(h, w) bool -> 0 or 1, (size, size)"""
    box = Letterbox((mask.shape[0], mask.shape[1]), size)
    return (box.put(torch.from_numpy(mask.astype(np.float32))) > 0.5).float()


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
