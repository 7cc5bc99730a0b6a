"""Windows of whole chests, for a detector that has seen nothing but crops round nodules: what else slices show.

As `infer` shows them: on voxels of 1 mm, resampled to TRAINED_MM, neighbours as channels. Cut once and kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.progress import track
from torch import Tensor

from models.lung_nodule.ccfam_fpn.detect import at_trained_size, with_neighbours
from models.lung_nodule.preprocess import SIDE, TRAINED_MM, window
from models.training.files import filling
from models.training.layouts import CACHE
from models.training.lung_nodule.ccfam_fpn.data import Window, boxes_of, vary
from models.training.lung_nodule.data.scans import Scan, Scans

SIDE_MM = round(SIDE * TRAINED_MM)  # 90 voxels of 1 mm make SIDE pixels
PER_SCAN = 64  # windows, half of them with a nodule where there is one
TRIES = 100  # places tried for a window
VERSION = 2  # of how they are cut


class Chests:
    """Windows of one part of a set of scans, SIDE x SIDE pixels, each with its neighbours as `channels`."""

    def __init__(self, scans: Scans, split: str, channels: int, cache: Path | None = None) -> None:
        """Raises ValueError for a part without scans, and what windows_of does."""
        self.names = scans.split[split]
        if not self.names:
            raise ValueError(f"no scan of {split} in {scans.folder}")
        made_of = [VERSION, str(scans.folder.resolve()), scans.digest, self.names, channels, SIDE_MM, PER_SCAN]
        digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        folder = (cache or CACHE).expanduser() / f"chests-{digest[:16]}"
        if not folder.exists():
            count = len(self.names) * PER_SCAN
            with filling(folder) as new:
                images = open_memmap(new / "images.npy", "w+", np.int16, (count, channels, SIDE, SIDE))
                masks = open_memmap(new / "masks.npy", "w+", bool, (count, SIDE, SIDE))
                for number, name in enumerate(track(self.names, f"windows of {split} chests")):
                    part = slice(number * PER_SCAN, (number + 1) * PER_SCAN)
                    images[part], masks[part] = windows_of(scans.load(name), channels)
                images.flush()
                masks.flush()
        self.images = np.load(folder / "images.npy", mmap_mode="r")  # int16 (n, channels, SIDE, SIDE)
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")  # bool (n, SIDE, SIDE)

    def augmented(self, *, seed: int, batch: int, side: int) -> Iterator[dict[str, Tensor]]:
        """Batches without end, as data.Stacks makes them; every window's turn comes before any comes twice."""
        random = np.random.default_rng((seed, VERSION))
        order: list[int] = []
        while True:
            while len(order) < batch:
                order += random.permutation(len(self.images)).tolist()
            part, order = np.sort(order[:batch]), order[batch:]
            hu = torch.from_numpy(self.images[part].astype(np.float32))
            yield vary(hu, torch.from_numpy(self.masks[part]), side, random, negatives=0.0)

    def windows(self, side: int) -> Iterator[Window]:
        """The middle of each."""
        middle = slice((SIDE - side) // 2, (SIDE + side) // 2)
        for number, (hu, mask) in enumerate(zip(self.images, self.masks, strict=True)):
            image = window(torch.from_numpy(hu[:, middle, middle].astype(np.float32)))
            yield Window(image, boxes_of(mask[middle, middle]), self.names[number // PER_SCAN])


def windows_of(scan: Scan, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """int16 HU (PER_SCAN, channels, SIDE, SIDE), bool masks (PER_SCAN, SIDE, SIDE) of the nodules on the middle slice.

    The same for the same scan. None shows an irrelevant finding on its middle slice.

    Raises ValueError for a scan smaller than a window, without lungs, or with irrelevant findings everywhere.
    """
    if min(scan.hu.shape[1:]) < SIDE_MM:
        raise ValueError(f"{scan.name} has {scan.hu.shape[1:]} voxels in a slice, a window has {SIDE_MM}: no chest")
    if not scan.lungs.any():
        raise ValueError(f"no lungs in {scan.name}")
    random = np.random.default_rng([*hashlib.sha256(scan.name.encode()).digest()])
    marked, barred = np.zeros(scan.hu.shape, bool), np.zeros(scan.hu.shape, bool)
    for volume, findings in ((marked, scan.lesions), (barred, scan.irrelevant)):
        for one in findings:
            volume[one.box] |= one.mask
    lungs, nodules = np.argwhere(scan.lungs), [np.argwhere(one.mask) + one.offset_zyx for one in scan.lesions]
    images, masks = [], []
    for number in range(PER_SCAN):
        nodule = nodules[random.integers(len(nodules))] if nodules and number % 2 else lungs
        for tried in range(TRIES):
            near = nodule if tried < TRIES // 2 else lungs
            z, *place = near[random.integers(len(near))]
            shift = random.integers(-(SIDE_MM // 4), SIDE_MM // 4 + 1, 2)
            corner = np.clip(place + shift - SIDE_MM // 2, 0, np.array(scan.hu.shape[1:]) - SIDE_MM)
            rows, columns = (slice(c, c + SIDE_MM) for c in corner.tolist())
            if not barred[z, rows, columns].any():
                break
        else:
            raise ValueError(f"no place in {scan.name} without irrelevant findings")
        hu = at_trained_size(with_neighbours(scan.hu, np.array([z]), channels, rows, columns))[0]
        mask = at_trained_size(torch.from_numpy(marked[z, rows, columns].astype(np.float32))[None, None])[0, 0]
        images.append(hu.round().to(torch.int16).numpy())
        masks.append((mask >= 0.5).numpy())
    return np.stack(images), np.stack(masks)


def together(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two batches as one."""
    boxes = torch.nn.utils.rnn.pad_sequence([*one["boxes"], *other["boxes"]], batch_first=True)
    return {"image": torch.cat([one["image"], other["image"]]), "boxes": boxes}
