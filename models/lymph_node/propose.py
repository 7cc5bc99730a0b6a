"""Candidates: what is round and dense as a lymph node, among fat. Many of them are vessels, bowel or muscle.

Second derivatives of how node-like each voxel's HU are, at several scales: a ball bends down in all three directions, a
vessel in two (selective enhancement, Li, Sone and Doi, Med. Phys. 30 (2003) 2040-2051). No learning: there are no
images of lymph nodes here to learn from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from models.lymph_node.regions import GRID_MM, Region, Searched

NODE_HU = (-40.0, 10.0, 130.0, 190.0)  # not a node below and above, surely one between the inner two
SCALES_MM = (2.2, 3.2, 4.6, 6.6)  # sigma: balls of about 4, 6, 8 and 11 mm radius
RADIUS = 3**0.5  # of a ball, in sigmas at which it answers most
APART_MM = 6.0  # between candidates
MOST = 60  # of a scan: recall grows little beyond, see CARD.md


@dataclass(frozen=True)
class Proposal:
    """centre_mm along the volume's own axes from its voxel 0; radius_mm of a ball of its size; response: the higher,
    the rounder."""

    centre_mm: tuple[float, float, float]
    radius_mm: float
    response: float
    region: Region

    def centre_zyx(self, spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        """As an index of the volume."""
        z, y, x = (mm / step for mm, step in zip(self.centre_mm, spacing_mm, strict=True))
        return z, y, x


def propose(searched: Searched, most: int = MOST) -> list[Proposal]:
    """At most so many, the roundest first."""
    likeness = node_likeness(searched.hu)
    where = searched.both
    best = np.zeros(likeness.shape, np.float32)
    scale = np.zeros(likeness.shape, np.float32)
    for sigma_mm in SCALES_MM:
        response = blobness(likeness, sigma_mm / GRID_MM, where)
        scale[response > best] = sigma_mm
        best = np.maximum(best, response)
    window = 2 * round(APART_MM / GRID_MM / 2) + 1
    peaks = np.argwhere((best == ndimage.maximum_filter(best, window)) & (best > 0))
    order = np.argsort(-best[tuple(peaks.T)], kind="stable")[:most]
    found = []
    for z, y, x in peaks[order].tolist():
        place = (z * GRID_MM, y * GRID_MM, x * GRID_MM)
        found.append(Proposal(place, RADIUS * float(scale[z, y, x]), float(best[z, y, x]), searched.region((z, y, x))))
    return found


def node_likeness(hu: np.ndarray) -> np.ndarray:
    """HU -> float32 0..1: soft tissue as nodes have it is 1, fat, air, contrast and bone 0."""
    none, low, high, no_more = NODE_HU
    rising, falling = (hu - none) / (low - none), (no_more - hu) / (no_more - high)
    return np.minimum(rising, falling).clip(0, 1).astype(np.float32)


def blobness(image: np.ndarray, sigma: float, where: np.ndarray) -> np.ndarray:
    """float32 (z, y, x), scale-normalised; 0 outside `where` and where it does not bend down in every direction."""
    out = np.zeros(image.shape, np.float32)
    if not where.any():
        return out
    inside = np.nonzero(where)
    hessian = np.empty((len(inside[0]), 3, 3), np.float32)
    for i in range(3):
        for j in range(i, 3):
            order = [0, 0, 0]
            order[i] += 1
            order[j] += 1
            second = ndimage.gaussian_filter(image, sigma, order=order, mode="nearest", truncate=3.0)
            hessian[:, i, j] = hessian[:, j, i] = second[inside] * sigma**2
    bends = np.linalg.eigvalsh(hessian)  # ascending: the strongest bend down first
    strongest, weakest = -bends[:, 0], -bends[:, 2]
    out[inside] = np.where(weakest > 0, weakest**2 / np.maximum(strongest, 1e-6), 0)
    return out
