"""HU and lungs on 1 mm -> what NoduleNet sees. Training and inference share this file, so they cannot drift apart."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from models.grid import box_of
from models.morphology import convex_hull, within_steps

WINDOW_HU = (-1200, 600)  # -> 0..255
OUTSIDE = 170  # grey beyond the lungs and their rim: soft tissue of 0 HU
BONE = 210  # brighter than this in the rim is bone, and is made OUTSIDE
HULL_GROWTH = 1.5  # a lung of a slice becomes its convex hull unless that is so much larger
RIM_MM = 10  # around the lungs, steps along the axes
PREPROCESSING = "nodulenet-hu-1200..600-hull1.5-rim10/1"  # change it with every change here: weights state theirs

MARGIN_MM = 8.0  # by so much the sides of a box exceed the nodule's own


def greys() -> np.ndarray:
    """(65536,) uint8: the grey of each HU, by its 16 bits"""
    hu = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
    low, high = WINDOW_HU
    return np.rint(np.linspace(0, 255, high - low + 1)).astype(np.uint8)[np.clip(hu, low, high) - low]


GREY = greys()
GREY_IN_RIM = np.where(GREY > BONE, OUTSIDE, GREY).astype(np.uint8)


def prepare(hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """int16 HU and bool (z, y, x) of 1 mm -> uint8 of the same shape, OUTSIDE wherever there is no lung"""
    grey = np.full(hu.shape, OUTSIDE, np.uint8)
    near = box_of(lungs, RIM_MM)
    if near is None:
        return grey
    inside = hulls(lungs[near])
    rim = within_steps(inside, RIM_MM)
    for out, values, lung, around in zip(grey[near], hu[near], inside, rim, strict=True):  # slices stay in the cache
        bits = values.view(np.uint16)
        out[...] = np.where(lung, GREY[bits], np.where(around, GREY_IN_RIM[bits], OUTSIDE))
    return grey


def network_input(grey: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
    """uint8 -> float or bfloat16, which holds each of these numbers exactly; 0 for 128"""
    return grey.to(kind).sub_(128).div_(128)


def hulls(lungs: np.ndarray) -> np.ndarray:
    """Each piece of each slice as its convex hull, where that does not grow it too much: bool (z, y, x), same shape

    That brings nodules at the pleura and vessels at the hilum back in.
    """
    out = lungs.copy()
    for z in np.flatnonzero(lungs.any(axis=(1, 2))):
        labels, _ = ndimage.label(lungs[z])
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            piece = labels[box] == label
            if min(piece.shape) < 3:  # a line has no hull
                continue
            hull = convex_hull(piece)
            if hull.sum() <= HULL_GROWTH * piece.sum():
                out[z][box] |= hull
    return out
