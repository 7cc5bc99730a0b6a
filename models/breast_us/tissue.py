"""Tissue in grey under what a scanner draws over it in colour: letters, calipers, Doppler, the tint of a display."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dicom_sr.regions import Box
from models.read import Frame

COLOURED = 40  # a channel differs this much from another: text, calipers or Doppler, not tissue
MOST_COLOUR = 0.25  # of a region's pixels: with more, colour hides the tissue, unless it is the display's tint
TINT_DEGREE = 3  # a tint is a smooth curve of brightness, Doppler is not
TINT_LEFT = 0.2  # of the coloured pixels may lie off that curve
REPAIR_PX = 15  # coloured pixels take the mean of the grey ones this near


def tissue(frame: Frame, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Grey uint8 (rows, columns) with colour inside the box replaced by the grey round it, and bool: where that was.

    A tinted display is grey as it is. White letters and calipers cannot be told from tissue and stay.
    """
    covered = np.zeros(frame.grey.shape, bool)
    if frame.rgb is None:
        return frame.grey, covered
    x0, y0, x1, y1 = box
    inside = slice(y0, y1 + 1), slice(x0, x1 + 1)
    covered[inside] = drawn_over(frame.rgb[inside], frame.grey[inside])
    if not covered.any():
        return frame.grey, covered
    rim = ndimage.binary_dilation(covered, iterations=2)  # the blurred rim of letters
    share = ndimage.uniform_filter((~rim).astype(np.float32), REPAIR_PX)
    level = ndimage.uniform_filter(np.where(rim, 0, frame.grey).astype(np.float32), REPAIR_PX)
    repaired = np.where(rim, level / np.maximum(share, 1e-3), frame.grey)
    return repaired.clip(0, 255).astype(np.uint8), covered


def drawn_over(rgb: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """uint8 (y, x, 3) and its luma (y, x) -> bool (y, x): pixels in colour, apart from an all-over tint."""
    coloured = np.ptp(rgb, axis=-1) > COLOURED
    if coloured.mean() <= MOST_COLOUR:
        return coloured
    off_tint = np.abs(rgb - tint(rgb, grey)[grey]).max(axis=-1) > COLOURED
    return off_tint if off_tint.sum() <= TINT_LEFT * coloured.sum() else coloured


def tint(rgb: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """(256, 3): the colour that best goes with each grey value, as a smooth curve through all pixels."""
    counts = np.bincount(grey.ravel(), minlength=256)
    seen = np.flatnonzero(counts)
    degree = min(TINT_DEGREE, len(seen) - 1)
    curve = np.empty((256, 3))
    for channel in range(3):
        mean = np.bincount(grey.ravel(), rgb[..., channel].ravel(), minlength=256)[seen] / counts[seen]
        line = np.polynomial.Polynomial.fit(seen, mean, degree, domain=[0, 255], w=np.sqrt(counts[seen]))
        curve[:, channel] = line(np.arange(256))
    return curve
