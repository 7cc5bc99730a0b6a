"""The Image Pixel attributes (PS3.3 C.7.6.3) of a header, whatever it holds: read as numbers, or refused in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID

from dicom_sr import attributes
from dicom_sr.attributes import BadAttribute
from dicom_sr.frames import count as frame_count
from dicom_sr.reading import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from dicom_sr.slices import MOST_PIXELS

# What pydicom and its plugins raise on what they cannot read: damaged, truncated, of a syntax without a plugin, or a
# header with a value missing or of no sense. (An OverflowError is an infinite number where a whole one belongs.)
UNREADABLE = (
    *(ValueError, RuntimeError, AttributeError, KeyError, TypeError),
    *(EOFError, OSError, NotImplementedError, OverflowError),
)

RLE_LOSSLESS = "1.2.840.10008.1.2.5"  # PS3.5 A.4.2
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"  # PS3.5 A.4
DEFLATED_IMAGE_FRAME = "1.2.840.10008.1.2.8.1"  # PS3.5 A.4

NATIVE = frozenset(
    {
        IMPLICIT_VR_LITTLE_ENDIAN,
        "1.2.840.10008.1.2.1",  # Explicit VR Little Endian, PS3.5 A.2
        EXPLICIT_VR_BIG_ENDIAN,
        DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    }
)
JPEG = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 57, 70))  # PS3.5 A.4.1
JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in (80, 81))  # PS3.5 A.4.3
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in (90, 91, 201, 202, 203))  # PS3.5 A.4.4 and 10.18
WHOLE_WORDS = frozenset({*NATIVE, RLE_LOSSLESS, ENCAPSULATED_UNCOMPRESSED, DEFLATED_IMAGE_FRAME})  # all bits allocated
DECODED = WHOLE_WORDS | JPEG | JPEG_LS | JPEG_2000

NEWER_THAN_PYDICOM = {  # PS3.6 Table A-1
    DEFLATED_IMAGE_FRAME: "Deflated Image Frame Compression",
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}

# Photometric Interpretation -> (Samples per Pixel, the transfer syntaxes it occurs in): PS3.3 C.7.6.3.1.2, PS3.5 8.2.
# HSV, ARGB and CMYK are retired; the partial ones are those of video.
COLOURS: dict[str, tuple[int, frozenset[str]]] = {
    "MONOCHROME1": (1, DECODED),
    "MONOCHROME2": (1, DECODED),
    "PALETTE COLOR": (1, DECODED),
    "RGB": (3, DECODED),
    "YBR_FULL": (3, DECODED),
    "YBR_FULL_422": (3, DECODED - {ENCAPSULATED_UNCOMPRESSED, DEFLATED_IMAGE_FRAME}),
    "YBR_ICT": (3, JPEG_2000),
    "YBR_RCT": (3, JPEG_2000),
}


class Unusable(ValueError):
    """Why pixels cannot be used, naming the attribute by its keyword."""


@dataclass(frozen=True)
class ImagePixel:
    """What the header says of its pixels, in itself without contradiction."""

    syntax: str  # Transfer Syntax UID
    rows: int
    columns: int
    frames: int
    samples: int
    colours: str  # Photometric Interpretation
    planar: int
    allocated: int  # bits, of these four of a sample
    stored: int
    high: int
    signed: bool

    @property
    def shift(self) -> int:
        """How far above bit 0 a value lies: 0 since PS3.5 2014, anything before (8.1.1)."""
        return self.high + 1 - self.stored

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


def value(header: Dataset, keyword: str) -> Any:
    """Its one value; None when it is missing or empty. Raises Unusable when it cannot be read, or has several."""
    try:
        found = attributes.values(header, keyword)
    except BadAttribute as bad:
        raise Unusable(str(bad)) from bad
    if len(found) > 1:
        raise Unusable(f"{keyword} has {len(found)} values, one is needed")
    return found[0] if found else None


def whole(header: Dataset, keyword: str, default: int | None = None, *, needed_by: str = "") -> int:
    """Its value as a whole number, in whatever VR it stands. Raises Unusable."""
    if value(header, keyword) is None:
        if default is not None:
            return default
        raise Unusable(f"{keyword} is {'empty' if keyword in header else 'missing'}{needed_by}")
    try:
        return attributes.whole(header, keyword)
    except BadAttribute as bad:
        raise Unusable(str(bad)) from bad


def text(header: Dataset, keyword: str) -> str:
    """Its value as text. Raises Unusable."""
    one = value(header, keyword)
    if one is None:
        raise Unusable(f"{keyword} is {'empty' if keyword in header else 'missing'}")
    return str(one).strip(" \0")


def transfer_syntax(header: Dataset) -> str:
    """Raises Unusable for one that is missing, or that nothing here decodes."""
    syntax = text(getattr(header, "file_meta", None) or Dataset(), "TransferSyntaxUID")
    if syntax not in DECODED:
        called = syntax_name(syntax)
        called = f"{called} ({syntax})" if called != syntax else "none that is known here"
        raise Unusable(f"TransferSyntaxUID is {called}: its pixels are not decoded; send the images uncompressed")
    return syntax


def syntax_name(syntax: str) -> str:
    """As in PS3.6 Table A-1, without remarks; the UID itself of an unknown one."""
    return NEWER_THAN_PYDICOM.get(syntax) or UID(syntax).name.split(" (")[0]


def image_pixel(header: Dataset, *, floats: int = 0) -> ImagePixel:
    """Raises Unusable. floats: bits of Float (32) or Double Float Pixel Data (64), whose bits nothing describes."""
    syntax = transfer_syntax(header)
    rows, columns = whole(header, "Rows"), whole(header, "Columns")
    for keyword, number in (("Rows", rows), ("Columns", columns)):
        if not 1 <= number <= 0xFFFF:
            raise Unusable(f"{keyword} is {number}, there is no picture")
    if rows * columns > MOST_PIXELS:
        raise Unusable(
            f"Rows x Columns is {rows} x {columns}, at most {MOST_PIXELS} pixels can be held;"
            " send the picture in the size of the screen"
        )
    try:
        frames = frame_count(header) or 1
    except BadAttribute as bad:
        raise Unusable(str(bad)) from bad
    samples, colours = whole(header, "SamplesPerPixel"), text(header, "PhotometricInterpretation")
    if colours not in COLOURS:
        raise Unusable(f"PhotometricInterpretation is none of {', '.join(COLOURS)}")
    belongs, where = COLOURS[colours]
    if samples != belongs:
        raise Unusable(f"SamplesPerPixel is {samples}, PhotometricInterpretation {colours} has {belongs}")
    if syntax not in where:
        raise Unusable(f"PhotometricInterpretation {colours} belongs to another TransferSyntaxUID than {syntax}")
    planar = 0
    if samples > 1 and syntax in WHOLE_WORDS and syntax != RLE_LOSSLESS:  # the others have their own order
        planar = whole(header, "PlanarConfiguration")
        if planar not in (0, 1):
            raise Unusable(f"PlanarConfiguration is {planar}, it must be 0 or 1")
    allocated = whole(header, "BitsAllocated")
    if floats:
        if allocated != floats:
            raise Unusable(f"BitsAllocated is {allocated}, floating point pixels have {floats} bits")
        return ImagePixel(syntax, rows, columns, frames, samples, colours, planar, floats, floats, floats - 1, False)
    if allocated not in (1, 8, 16, 32):
        raise Unusable(f"BitsAllocated is {allocated}, it must be 1, 8, 16 or 32")
    stored = whole(header, "BitsStored")
    if not 1 <= stored <= allocated:
        raise Unusable(f"BitsStored is {stored} of BitsAllocated {allocated}")
    known = stored == allocated or syntax not in WHOLE_WORDS  # then there is one place where a value can lie
    high = whole(header, "HighBit", stored - 1 if known else None, needed_by=", where a value lies is unknown")
    if not stored <= high + 1 <= allocated:
        raise Unusable(f"HighBit is {high}, BitsStored {stored}, BitsAllocated {allocated}: they contradict each other")
    signed = whole(header, "PixelRepresentation", 0 if samples > 1 else None)
    if signed not in (0, 1):
        raise Unusable(f"PixelRepresentation is {signed}, it must be 0 or 1")
    return ImagePixel(syntax, rows, columns, frames, samples, colours, planar, allocated, stored, high, bool(signed))
