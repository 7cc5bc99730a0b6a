"""An image as the breast-us networks see it: whole, in a square, in grey of mean 0. Training and serving share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

PREPROCESSING = "letterbox-1"  # changes whenever prepare or normalise do

# Of the grey values 0..1 of the training split.
GREY_MEAN, GREY_STD = 0.330, 0.222


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


def normalise(grey: torch.Tensor) -> torch.Tensor:
    """Grey 0..1 -> mean 0 and deviation 1 over the training images."""
    return (grey - GREY_MEAN) / GREY_STD
