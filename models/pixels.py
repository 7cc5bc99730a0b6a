"""The bytes of Pixel Data -> stored values, Hounsfield units or grey values. Whose pixels they are, `read.py` knows.

Every transfer syntax that pydicom and its installed decoder plugins know is read; what cannot be is refused in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_color_lut, iter_pixels, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from models.pipeline import UnfitInput

AIR_HU = -1024  # what padding outside the reconstruction circle is set to

# What pydicom and its plugins raise on what they cannot read: damaged, truncated, of a syntax without a plugin, or a
# header with a value missing or of no sense. (An OverflowError is an infinite number where a whole one belongs.)
UNREADABLE = (
    *(ValueError, RuntimeError, AttributeError, KeyError, TypeError),
    *(EOFError, OSError, NotImplementedError, OverflowError),
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of an ultrasound: grey uint8 (y, x); rgb uint8 (y, x, 3) when the source has colour, else None."""

    grey: np.ndarray
    rgb: np.ndarray | None


# ---------------------------------------------------------------------------------------------------------- CT


def stored_values(path: Path, frames: list[int]) -> Iterator[np.ndarray]:
    """Stored pixel values, frame by frame. Raises UnfitInput when they cannot be decoded."""
    try:
        source = dcmread(path)  # not by path: pydicom would not inflate a deflated data set then
        if frames:
            yield from iter_pixels(source, indices=frames, raw=True)
        else:
            yield pixel_array(source, raw=True)
    except UNREADABLE as error:
        raise UnfitInput(f"{path.name}: the pixels cannot be decoded: {error}") from error


def rescaled(stored: np.ndarray, header: Dataset, slope: float, intercept: float, out: np.ndarray) -> None:
    """Stored values -> HU (y, x) by the slice's own slope and intercept; padding becomes air.

    MONOCHROME1 changes only how a CT is displayed, not what its values mean (PS3.3 C.7.6.3.1.2): nothing to invert.
    """
    if stored.dtype.kind == "f":  # Float Pixel Data, PS3.3 C.7.6.24
        padding = stored == header.get("FloatPixelPaddingValue")
        if not np.isfinite(stored[~padding]).all():
            raise ValueError("some pixels are no numbers (NaN or infinite); export the CT anew")
    else:
        stored, padding = whole_numbers(stored, header)
    values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    values[padding] = AIR_HU
    out[...] = np.clip(np.rint(values), -32768, 32767)


def whole_numbers(stored: np.ndarray, header: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Stored values without what lies above BitsStored, and bool (y, x) of padding."""
    unused = stored.dtype.itemsize * 8 - int(header.BitsStored)
    if unused > 0 and int(header.HighBit) == int(header.BitsStored) - 1:  # bits above BitsStored may hold an overlay
        stored = (stored << unused) >> unused
    return stored, padded(stored, header)


def padded(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """bool (y, x) of padding pixels (PS3.3 C.7.5.1.1.2). The values' VR may disagree with the pixels' sign."""
    if header.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    bits = int(header.BitsAllocated)

    def as_stored(value: int) -> int:
        value &= (1 << bits) - 1
        return value - (1 << bits) if int(header.PixelRepresentation) and value >> (bits - 1) else value

    one = as_stored(int(header.PixelPaddingValue))
    limit = header.get("PixelPaddingRangeLimit")
    other = one if limit is None else as_stored(int(limit))
    return (stored >= min(one, other)) & (stored <= max(one, other))


# ------------------------------------------------------------------------------------------------- ultrasound


def ultrasound_frames(path: Path, header: Dataset, indices: Sequence[int]) -> Iterator[Frame]:
    """Pixels of an ultrasound as grey values, and as RGB where they have colour. Overlay planes are not drawn in."""
    colours = str(header.PhotometricInterpretation)
    inflated = header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian  # pydicom inflates whole files only
    shape = int(header.Rows), int(header.Columns)
    try:
        for pixels in iter_pixels(dcmread(path) if inflated else path, indices=list(indices)):  # YBR becomes RGB here
            if colours == "PALETTE COLOR":
                pixels = apply_color_lut(pixels, header)
            if pixels.shape[:2] != shape:
                raise UnfitInput(f"{path.name}: pixels are {pixels.shape[:2]}, the header says {shape}")
            if pixels.dtype.kind == "f":
                raise UnfitInput(f"{path.name}: Float Pixel Data is no ultrasound; whole grey values are needed")
            bits = pixels.dtype.itemsize * 8 if colours == "PALETTE COLOR" else int(header.BitsStored)
            pixels = eight_bits(pixels, bits, signed=bool(header.get("PixelRepresentation")))
            if colours == "MONOCHROME1":
                pixels = 255 - pixels
            yield Frame(grey(pixels), pixels) if pixels.ndim == 3 else Frame(pixels, None)
    except UNREADABLE as error:
        raise UnfitInput(f"{path.name}: the pixels cannot be decoded: {error}") from error


def eight_bits(pixels: np.ndarray, bits: int, *, signed: bool) -> np.ndarray:
    """Scale stored values of `bits` bits to uint8 0..255. pydicom drops what lay above them, an old overlay."""
    if pixels.dtype == np.uint8 and bits == 8:
        return pixels
    values = pixels.astype(np.int64) + ((1 << (bits - 1)) if signed else 0)
    return (values * 255 // ((1 << bits) - 1)).astype(np.uint8)


def grey(rgb: np.ndarray) -> np.ndarray:
    """uint8 (y, x, 3) -> (y, x), luma of ITU-R BT.601"""
    out = np.empty(rgb.shape[:2], np.uint8)
    np.rint(rgb @ np.array([0.299, 0.587, 0.114], np.float32), out=out, casting="unsafe")
    return out
