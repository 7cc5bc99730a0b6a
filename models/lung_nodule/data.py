"""LIDC crops for training: read once from the zip, split by patient, brought back to Hounsfield units, augmented."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.lung_nodule.preprocess import window

HERE = Path(__file__).parent
HU_RANGE = HERE / "hu_range.csv"  # HU of grey 0 and 255 of every crop, in the order of index.csv: see calibrate.py
SPLIT = HERE / "split.json"  # patients of each split
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}

MAJORITY = 2  # a pixel is nodule when at least 2 of 4 readers marked it: 50 % consensus


@dataclass(frozen=True, eq=False)
class Crops:
    """All crops of the zip in the order of its index.csv."""

    images: np.ndarray  # uint8 (n, 128, 128), each stretched to its own minimum and maximum
    votes: np.ndarray  # uint8 (n, 128, 128), how many readers marked the pixel
    patients: list[str]
    nodules: list[str]

    @classmethod
    def read(cls, archive: Path) -> Crops:
        """Decode every crop of lidc_slices_128.zip (250 MB of memory)."""
        with zipfile.ZipFile(archive) as z:
            rows = list(csv.DictReader(io.StringIO(z.read("index.csv").decode())))
            images = np.empty((len(rows), 128, 128), np.uint8)
            votes = np.empty_like(images)
            for index, row in enumerate(rows):
                path = f"{row['patient']}/{row['nodule']}/{row['file']}"
                images[index] = np.asarray(Image.open(io.BytesIO(z.read(path))))
                raters = np.asarray(Image.open(io.BytesIO(z.read(path.replace(".png", "_raters.png")))))
                votes[index] = np.unpackbits(raters[..., None], axis=-1).sum(-1)  # bit r set = reader r
        return cls(
            images, votes, [row["patient"] for row in rows], [f"{row['patient']}/{row['nodule']}" for row in rows]
        )


def split_patients(patients: list[str], seed: int = 2024) -> dict[str, list[str]]:
    """Patients at random into 70/10/20; the same for every file that shares these patients."""
    names = sorted(set(patients))
    order = np.random.default_rng(seed).permutation(len(names))
    cuts = np.cumsum([round(SHARES[name] * len(names)) for name in ("train", "val")])
    parts = np.split(order, cuts)
    return {name: sorted(names[i] for i in part) for name, part in zip(SHARES, parts, strict=True)}


def stored_split() -> tuple[dict[str, list[str]], str]:
    """The split that the shipped weights were trained with, and the SHA-256 of its file."""
    text = SPLIT.read_bytes()
    return json.loads(text), hashlib.sha256(text).hexdigest()


class Slices:
    """Crops as network input: float (n, 1, 128, 128) in [0, 1] and masks, one index list per split."""

    def __init__(self, archive: Path) -> None:
        crops = Crops.read(archive)
        with HU_RANGE.open() as file:
            ranges = np.array(
                [[float(row["hu_of_0"]), float(row["hu_of_255"])] for row in csv.DictReader(file)], np.float32
            )
        self.images, self.ranges = torch.from_numpy(crops.images), torch.from_numpy(ranges)
        self.masks = torch.from_numpy(crops.votes >= MAJORITY)
        self.patients, self.nodules = crops.patients, crops.nodules
        split, self.split_sha256 = stored_split()
        home = {patient: name for name, patients in split.items() for patient in patients}
        # A crop that one reader alone marked is neither nodule nor background: left out.
        agreed = self.masks.flatten(1).any(1).numpy()
        self.index = {
            name: np.array([i for i, patient in enumerate(crops.patients) if home[patient] == name and agreed[i]])
            for name in split
        }

    def hu(self, index: np.ndarray) -> Tensor:
        """float32 (n, 1, 128, 128) in Hounsfield units."""
        low, high = self.ranges[index].T[..., None, None, None]
        return low + self.images[index][:, None].float() * ((high - low) / 255)

    def fixed(self, split: str) -> Iterator[dict[str, Tensor]]:
        """Every crop of a split once, as it is."""
        return self.crops(self.index[split])

    def crops(self, order: np.ndarray, batch: int = 64) -> Iterator[dict[str, Tensor]]:
        """The given crops as they are; "index" says which."""
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            yield {"image": window(self.hu(part)), "mask": self.masks[part][:, None], "index": torch.from_numpy(part)}

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
            masks = self.masks[part][:, None].float()
            cuts = np.stack([cut_centre(mask[0].numpy() > 0, size, random, negatives) for mask in masks])
            grid = placement(cuts, size, random)
            image = F.grid_sample(self.hu(part), grid, "bilinear", "reflection", align_corners=False)
            mask = F.grid_sample(masks, grid, "bilinear", "reflection", align_corners=False) > 0.5
            yield {"image": window(jittered(image, random)), "mask": mask, "index": torch.from_numpy(part)}


def cut_centre(
    mask: np.ndarray, size: int, random: np.random.Generator, negatives: float
) -> tuple[float, float, float]:
    """(row, column, zoom) of a cut: any place of it is equally likely for the nodule, or the cut avoids the nodule.

    A cut as large as the crop can avoid the nodule only beyond the crop's edge, where the crop is mirrored: it is laid
    on the edge and takes in three quarters of its usual reach. Nodules sit in the middle of their crops.
    """
    rows, columns = np.nonzero(mask)
    half, full = size / 2, mask.shape[0]
    if random.random() < negatives:
        if size >= full:
            place = [random.choice([0.0, full - 1.0]), random.uniform(0.15 * full, 0.85 * full)]
            row, column = random.permutation(place)
            return row, column, 0.75
        for _ in range(20):  # up to a quarter of the cut may lie beyond the crop
            row, column = random.uniform(half / 2, full - half / 2, 2)
            apart = (np.abs(rows - row) > half + 2) | (np.abs(columns - column) > half + 2)
            if apart.all():
                return row, column, 1.0
    reach = 0.4 * size if size < full else 0.25 * size
    pick = random.integers(len(rows))
    row, column = rows[pick] + random.uniform(-reach, reach), columns[pick] + random.uniform(-reach, reach)
    if size < full:  # stay on the crop where it is large enough
        row, column = np.clip(row, half, full - half), np.clip(column, half, full - half)
    return row, column, 1.0


def placement(cuts: np.ndarray, size: int, random: np.random.Generator) -> Tensor:
    """(n, 3) of row, column, zoom -> sampling grid (n, size, size, 2): quarter turns, flips, scale 0.85..1.15."""
    n = len(cuts)
    angle = random.integers(0, 4, n) * (np.pi / 2)
    scale = random.uniform(0.85, 1.15, n) * cuts[:, 2]
    flip = random.choice([-1.0, 1.0], n)
    turn = np.stack([np.cos(angle) * flip, -np.sin(angle), np.sin(angle) * flip, np.cos(angle)], -1).reshape(n, 2, 2)
    theta = np.zeros((n, 2, 3))
    theta[:, :, :2] = turn * (scale * size / 128)[:, None, None]
    theta[:, :, 2] = (2 * (cuts[:, 1::-1] + 0.5) / 128) - 1  # (x, y) in [-1, 1]
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


def write_split(archive: Path) -> None:
    """Draw the split anew and store it; needed once."""
    SPLIT.write_text(json.dumps(split_patients(Crops.read(archive).patients), indent=0) + "\n")
