"""What a detector says: detections on voxels of 1 mm, and candidates on the source grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from models.grid import Soft, box_at

AROUND_MM = 16  # of scan around the lungs that is looked at


@dataclass(frozen=True, eq=False)
class Detection3D:
    """What may be a nodule, in voxels of the grid of 1 mm.

    centre_zyx   of the box as predicted, as an index: 0 is the middle of the first voxel
    box          whole voxels, starts then ends, ends excluded: of the mask, or of the box when there is none
    mask         bool, fills `box`; None when the mask head was not asked or marked nothing
    score        mean of the probabilities of both heads, or the RPN's while there is no other; see link.certainty for
                 what the detector on slices found
    rpn, rcnn    the heads' probabilities; rcnn is None while that head has not learnt
    soft         what the mask head says round `mask`; None where that is None
    """

    centre_zyx: tuple[float, float, float]
    box: tuple[int, int, int, int, int, int]
    mask: np.ndarray | None
    score: float
    rpn: float
    rcnn: float | None
    soft: Soft | None = None


class Detections(list[Detection3D]):
    """The most certain first, and how they were found.

    remarks   what did not go as planned, in words for the reader: windows made smaller, another device
    window    voxels along a side of the windows, or 0: the lungs in one piece
    device    and precision: "cpu bf16"
    """

    def __init__(self, found: Sequence[Detection3D], *, remarks: Sequence[str], window: int, device: str) -> None:
        super().__init__(found)
        self.remarks, self.window, self.device = tuple(remarks), window, device


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True, eq=False)
class Candidate:
    """Something that may be a nodule, as a detector marked it; on the source grid, the smallest box that holds it."""

    mask: np.ndarray  # bool (d, h, w); of a detector that gives boxes only, the ellipsoid in the box
    offset_zyx: tuple[int, int, int]
    certainty: float
    soft: Soft | None = None  # on the source grid, of a detector that gives one

    @property
    def box(self) -> tuple[slice, slice, slice]:
        z, y, x = box_at(self.offset_zyx, self.mask.shape)
        return z, y, x

    @property
    def centre_zyx(self) -> tuple[int, int, int]:
        """The voxel nearest to the centre of mass that belongs to the mask: that of a crescent lies outside it."""
        places = np.argwhere(self.mask)
        z, y, x = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()] + self.offset_zyx
        return int(z), int(y), int(x)

    def with_mask(self, mask: np.ndarray, corner_zyx: Sequence[int]) -> Candidate:
        """The same detection with another mask, bool (d, h, w) at corner_zyx, not empty; cut to its smallest box."""
        (tight,) = ndimage.find_objects(mask.astype(np.uint8))
        z, y, x = (int(c) + part.start for c, part in zip(corner_zyx, tight, strict=True))
        return Candidate(mask[tight], (z, y, x), self.certainty, self.soft)


@dataclass(frozen=True, eq=False)
class Marked:
    """What a detector found.

    candidates   on the source grid, in no order
    remarks      what the reader should know of how they were found, in words
    facts        the same for the web page
    """

    candidates: list[Candidate]
    remarks: tuple[str, ...]
    facts: dict[str, str | float]
