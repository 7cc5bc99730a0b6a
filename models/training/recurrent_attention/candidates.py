"""Candidates to learn from: patches a little larger than the network sees, turned and moved as they are cut."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.patches import NETWORK_SHAPE, PatchConfig

STORED_SHAPE = (13, 48, 48)  # what is kept of each: turned by 20 degrees, enlarged and moved the network's part fits in
TURN_DEG, SHIFT_PX, SCALE, JITTER_HU = 20.0, 3.0, (0.9, 1.1), 20.0


@dataclass(frozen=True, eq=False)
class Candidates:
    """patches (n, *STORED_SHAPE) float16 in [0, 1]; of each its patient, its name, 0 or 1, and its rating if any.

    labels    int (n,); NEITHER: counts in no class, but has a rating
    ratings   float (n,), or None
    """

    patches: np.ndarray
    labels: np.ndarray
    patients: Sequence[str]
    names: Sequence[str]
    config: PatchConfig
    ratings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, patients: Sequence[str]) -> np.ndarray:
        """Indices of those of these patients, in order."""
        wanted = set(patients)
        return np.array([i for i, patient in enumerate(self.patients) if patient in wanted], int)


NEITHER = -1


def balanced(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As many indices of each class as the smaller one has, drawn anew each time, in random order."""
    each = [np.flatnonzero(labels == label) for label in (0, 1)]
    count = min(map(len, each))
    return random.permutation(np.concatenate([random.permutation(one)[:count] for one in each]))


def cut(patches: Tensor, config: PatchConfig, random: np.random.Generator | None = None) -> Tensor:
    """(B, *STORED_SHAPE) -> (B, *NETWORK_SHAPE) in [0, 1], from the middle; varied, if there is something random.

    Varied: mirrored along each axis, turned by up to 20 degrees and scaled in the plane, moved by up to 3 pixels in it,
    all HU raised or lowered together.
    """
    patches = patches.float()
    count = len(patches)
    if random is None:
        return patches[
            :, *(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(STORED_SHAPE, NETWORK_SHAPE, strict=True))
        ]
    z, y, x = torch.meshgrid(*(torch.arange(size) - (size - 1) / 2 for size in NETWORK_SHAPE), indexing="ij")
    flips = torch.from_numpy(random.choice([-1.0, 1.0], (count, 3))).float()[:, :, None, None, None]
    angle, scale = random.uniform(-TURN_DEG, TURN_DEG, count), 1 / random.uniform(*SCALE, count)
    turn = np.exp(1j * np.deg2rad(angle)) * scale
    cos, sin = (torch.from_numpy(part.copy()).float()[:, None, None, None] for part in (turn.real, turn.imag))
    shift = torch.from_numpy(random.uniform(-SHIFT_PX, SHIFT_PX, (count, 2))).float()[:, :, None, None, None]
    places = [
        (x * cos - y * sin) * flips[:, 2] + shift[:, 1],
        (x * sin + y * cos) * flips[:, 1] + shift[:, 0],
        z * flips[:, 0],
    ]
    sizes = reversed(STORED_SHAPE)
    grid = torch.stack([place / ((size - 1) / 2) for place, size in zip(places, sizes, strict=True)], dim=-1)
    drawn = F.grid_sample(patches[:, None], grid, mode="bilinear", padding_mode="border", align_corners=True)[:, 0]
    low, high = config.window_hu
    jitter = torch.from_numpy(random.uniform(-JITTER_HU, JITTER_HU, count) / (high - low)).float()
    return (drawn + jitter[:, None, None, None]).clamp(0, 1)


def split_into_folds(patients: Sequence[str], positive: Mapping[str, bool], folds: int, seed: int) -> list[list[str]]:
    """Patients dealt to folds, those with a positive candidate and those without each evenly; the same for a seed."""
    names = sorted(set(patients))
    order = sorted(names, key=lambda name: (not positive[name], zlib.crc32(f"{seed} {name}".encode())))
    return [sorted(order[fold::folds]) for fold in range(folds)]
