"""Tissue in grey under what a scanner draws over it in colour: letters, calipers, Doppler, the tint of a display."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dicom_sr.regions import Box
from models.pixels import Frame

COLOURED = 40  # a channel differs this much from another: text, calipers or Doppler, not tissue
MOST_COLOUR = 0.25  # of a region's pixels: with more, colour hides the tissue, unless it is the display's tint
DARK = 30  # the largest channel of pixels too dark to have a hue
GREY_BELOW, TINT_BELOW = 0.1, 0.7  # saturation of the display, that of its median pixel: grey, tinted, in full colour
TINT_WIDTH = 0.2  # saturation of tissue on a tinted display differs by less from the median
TINT_DEGREE = 3  # a tint is a smooth curve of brightness
REPAIR_PX = (15, 45, 135)  # coloured pixels take the mean of the grey ones this near; the first that finds some
ENOUGH_GREY = 0.05  # of such a neighbourhood


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
    seen = ~rim[inside]
    repaired, open_ = frame.grey[inside].astype(np.float32), rim[inside]
    values = np.where(seen, repaired, 0)
    repaired[open_] = np.median(repaired[seen]) if seen.any() else 0  # never black: that would look like a lesion
    for wide in reversed(REPAIR_PX):  # the nearest has the last word
        share = ndimage.uniform_filter(seen.astype(np.float32), wide)
        fill = open_ & (share > ENOUGH_GREY)
        repaired[fill] = (ndimage.uniform_filter(values, wide) / np.maximum(share, ENOUGH_GREY))[fill]
    whole = frame.grey.copy()
    whole[inside] = repaired.clip(0, 255)
    return whole, covered


def drawn_over(rgb: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """uint8 (y, x, 3) and its luma (y, x) -> bool (y, x): pixels in colour, apart from an all-over tint.

    A tint colours every pixel alike; letters, calipers and Doppler only some of them, or in colours of their own.
    """
    brightest = rgb.max(axis=-1)
    saturation = np.ptp(rgb, axis=-1) / np.maximum(brightest, 1)
    lit = brightest > DARK
    display = float(np.median(saturation[lit])) if lit.any() else 0.0
    if not GREY_BELOW <= display < TINT_BELOW:
        return np.ptp(rgb, axis=-1) > COLOURED
    alike = lit & (np.abs(saturation - display) < TINT_WIDTH)
    return np.abs(rgb - tint(rgb[alike], grey[alike])[grey]).max(axis=-1) > COLOURED


def tint(rgb: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """(n, 3) and (n,) -> (256, 3): the colour that goes with each grey value, as a smooth curve through all pixels."""
    counts = np.bincount(grey, minlength=256)
    seen = np.flatnonzero(counts)
    degree = min(TINT_DEGREE, len(seen) - 1)
    curve = np.empty((256, 3))
    for channel in range(3):
        mean = np.bincount(grey, rgb[..., channel], minlength=256)[seen] / counts[seen]
        line = np.polynomial.Polynomial.fit(seen, mean, degree, domain=[0, 255], w=np.sqrt(counts[seen]))
        curve[:, channel] = line(np.arange(256))
    return curve
