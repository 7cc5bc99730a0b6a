"""The bytes of Pixel Data -> stored values, Hounsfield units or grey values. Whose pixels they are, `read.py` knows.

Every transfer syntax that pydicom and its installed decoder plugins know is read, and two more that need none. What the
header says is held against the bytes before anything is decoded (`why_not`): a picture that could come out wrong is
refused in words. Pixel Data is found by parsing, decoded frame by frame, and never held in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.errors import InvalidDicomError
from pydicom.pixels import convert_color_space, get_decoder
from pydicom.uid import UID
from rle.rle import decode_segment

from dicom_sr import attributes
from dicom_sr.modalities import VOLUME_CLASSES
from dicom_sr.reading import EXPLICIT_VR_BIG_ENDIAN
from models import codestream
from models.frames import FLOAT_BITS, Located, frames_of, inflate, joined, locate
from models.image_pixel import (
    DECODED,
    DEFLATED_IMAGE_FRAME,
    ENCAPSULATED_UNCOMPRESSED,
    JPEG,
    JPEG_2000,
    JPEG_LS,
    NATIVE,
    RLE_LOSSLESS,
    UNREADABLE,
    WHOLE_WORDS,
    ImagePixel,
    Unusable,
    image_pixel,
    syntax_name,
    transfer_syntax,
    value,
    whole,
)
from models.palette import Palette, palette
from models.pipeline import UnfitInput

__all__ = ["AIR_HU", "DECODED", "UNREADABLE", "Frame", "faults", "name_image", "why_not"]

# pydicom's decoder plugins to be asked, in this order, where its own order does not do: Pillow changes the signed
# components of JPEG 2000, and CharLS (pyjpegls) takes an eighth of libjpeg's time and notices what is cut off.
PLUGINS = dict.fromkeys(JPEG_2000, ("pylibjpeg",)) | dict.fromkeys(JPEG_LS, ("pyjpegls", "pylibjpeg"))

FREELY_UNPACKED = 1 << 26  # bytes that an RLE segment may become before they are counted
# A picture that is grey nearly everywhere if its samples are read in one way, and not in the way that is said, is meant
# in the former. 150 pictures of BUSI: 1.00 as they are, at most 0.48 in another PlanarConfiguration and 0.11 as YCbCr.
GREY_WITHIN = 4  # the channels differ by as much, or chroma from its middle: what compression leaves of grey
GREY_IF, NOT_GREY_IF = 0.75, 0.7  # share of the pixels
UNEVEN = 0.02  # so many of all must differ from the one beside them
AIR_HU = -1024  # what padding outside the reconstruction circle is set to


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of an ultrasound: grey uint8 (y, x); rgb uint8 (y, x, 3) when the source has colour, else None."""

    grey: np.ndarray
    rgb: np.ndarray | None


def name_image(header: Dataset) -> str:
    """An image as people and archives can find it: by its SOP Instance UID, else its number."""
    for keyword, words in (("SOPInstanceUID", "image"), ("InstanceNumber", "image number")):
        try:
            one = value(header, keyword)
        except Unusable:
            continue
        if one is not None:
            return f"{words} {one}"
    return "an image without SOPInstanceUID"


# --------------------------------------------------------------------------------------------------- can it be used?


def why_not(path: Path, header: Dataset) -> str | None:
    """None, or why the pixels of this file cannot be used, naming the attribute by its keyword.

    header: of the same file, read up to the pixels. Decoded is at most the first frame, of RLE, of Deflated Image Frame
    and where High Bit is unusual: about a millisecond for a file. Never raises, whatever the header holds.
    """
    try:
        Pixels(path, header).check()
    except Unusable as reason:
        return str(reason)
    except (InvalidDicomError, *UNREADABLE) as error:
        return f"PixelData cannot be read: {_words(error)}"
    return None


def faults(headers: Iterable[Dataset]) -> dict[str, str]:
    """SOP Instance UID -> why the pixels of that image cannot be used. headers: as they were read from their files."""
    found = {}
    for header in headers:
        filename = getattr(header, "filename", None)
        if filename and (why := why_not(Path(str(filename)), header)):
            found[attributes.text(header, "SOPInstanceUID")] = why
    return found


def _words(error: Exception) -> str:
    """What a decoder says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Pixels:
    """The pixels of one file, and what its header says of them. Raises Unusable when the two contradict each other."""

    def __init__(self, path: Path, header: Dataset) -> None:
        syntax = transfer_syntax(header)
        self.located: Located = locate(path, syntax)
        self.is_float = self.located.keyword != "PixelData"
        self.says: ImagePixel = image_pixel(header, floats=FLOAT_BITS[self.located.keyword])
        self.big_endian = syntax == EXPLICIT_VR_BIG_ENDIAN
        of_volume = attributes.text(header, "Modality") in VOLUME_CLASSES
        if self.is_float and not of_volume:
            raise Unusable(f"{self.located.keyword}: Float Pixel Data is no ultrasound; whole grey values are needed")
        if self.is_float and self.says.samples != 1:
            raise Unusable(f"SamplesPerPixel is {self.says.samples}, {self.located.keyword} has 1")
        if of_volume:
            padding(header)
        self.palette: Palette | None = None
        if self.says.colours == "PALETTE COLOR":
            self.palette = palette(header, signed=self.says.signed, big_endian=self.big_endian)
        self._planes = bool(self.says.planar)
        self._ycbcr: bool | None = None  # as the pixels say
        self._fragments: list[list[memoryview]] = []
        self._halved = False  # native YBR_FULL_422: two pixels share their colour
        if syntax in NATIVE:
            self._measure()
        else:
            self._fragments = frames_of(self.located, syntax, self.says.frames)

    # ---- held against the bytes

    def check(self) -> None:
        """Raises Unusable when a frame is not what the header says, as far as can be seen without decoding it."""
        for index in range(len(self._fragments)):
            self._look_at(index)
        odd = self.says.shift and not self.is_float
        if odd or self.says.syntax in (RLE_LOSSLESS, DEFLATED_IMAGE_FRAME):
            significant(self.words(0), self.says)

    @property
    def frame_bytes(self) -> int:
        """The size of one uncompressed frame, rounded up: frames of one bit a pixel follow each other within a byte."""
        says = self.says
        samples = 2 if self._halved else says.samples
        return -(-says.pixels * samples * says.allocated // 8)

    def _measure(self) -> None:
        """The length of native pixels. PS3.5 8.2 pads to an even length; some writers pad a little more."""
        says, located = self.says, self.located
        if located.encapsulated:
            raise Unusable(f"TransferSyntaxUID is {says.syntax}, and PixelData is encapsulated")
        have = len(located.data)
        needs = []
        for self._halved in (True, False) if says.colours == "YBR_FULL_422" else (False,):
            need = self.frame_bytes * says.frames
            if says.allocated == 1:
                need = -(-says.pixels * says.samples * says.frames // 8)
            # less than a row or a column, whichever has fewer bytes: else Rows or Columns may be what is wrong
            spare = max(2, min(says.rows, says.columns) * says.allocated // 8)
            if need <= have < need + spare:
                return
            needs.append(need)
        raise Unusable(
            f"{located.keyword} has {have} bytes, {needs[-1]} are needed for NumberOfFrames {says.frames} of Rows x"
            f" Columns {says.rows} x {says.columns}, SamplesPerPixel {says.samples}, BitsAllocated {says.allocated}"
        )

    def _look_at(self, index: int) -> codestream.Codestream | None:
        """What a compressed frame says of itself. Raises Unusable when it differs from what the header says."""
        says, frame = self.says, self._frame(index)
        try:
            if says.syntax == RLE_LOSSLESS:
                segments, needed = len(codestream.rle(frame)), says.samples * says.allocated // 8
                if segments != needed:
                    raise Unusable(
                        f"PixelData has {segments} RLE segments, SamplesPerPixel {says.samples} and BitsAllocated"
                        f" {says.allocated} make {needed}"
                    )
                return None
            if says.syntax == ENCAPSULATED_UNCOMPRESSED:
                self._sized(index, len(frame))
            if says.syntax in WHOLE_WORDS:
                return None
            seen = codestream.j2k(frame) if says.syntax in JPEG_2000 else codestream.jpeg(frame)
        except Unusable:
            raise
        except ValueError as error:
            raise Unusable(f"PixelData {self._of(index)} is no {syntax_name(says.syntax)}: {error}") from error
        for keyword, theirs, ours in (
            ("Rows", seen.rows, says.rows),
            ("Columns", seen.columns, says.columns),
            ("SamplesPerPixel", seen.samples, says.samples),
        ):
            if theirs is not None and theirs != ours:
                raise Unusable(f"{keyword} is {ours}, PixelData {self._of(index)} has {theirs}")
        if seen.precision > says.allocated:
            raise Unusable(
                f"BitsAllocated is {says.allocated}, PixelData {self._of(index)} has {seen.precision} bits a sample"
            )
        if seen.precision < says.stored and says.signed and not seen.signed:
            raise Unusable(
                f"BitsStored is {says.stored}, with a sign, PixelData {self._of(index)} has {seen.precision} bits"
            )
        if says.stored < seen.precision < says.high + 1:
            raise Unusable(f"HighBit is {says.high}, PixelData {self._of(index)} has {seen.precision} bits a sample")
        return seen

    def _frame(self, index: int) -> bytes | memoryview:
        return joined(self._fragments[index])

    def _of(self, index: int) -> str:
        return f"(7FE0,0010), frame {index + 1}," if self.says.frames > 1 else "(7FE0,0010)"

    # ---- decoded

    def words(self, index: int) -> np.ndarray:
        """Frame `index` (from 0) as it would lie in native Pixel Data: (y, x) or (y, x, 3), unsigned words of Bits
        Allocated, or floats. Raises Unusable when it cannot be decoded."""
        if not 0 <= index < self.says.frames:
            raise Unusable(f"NumberOfFrames is {self.says.frames}, there is no frame {index + 1}")
        if self.says.syntax in NATIVE:
            return self._native(index)
        seen = self._look_at(index)
        try:
            if self.says.syntax == RLE_LOSSLESS:
                return self._run_length(index)
            if seen is None:
                return self._uncompressed(index)
            return self._in_place(self._decoded(index, seen), seen)
        except Unusable:
            raise
        except UNREADABLE as error:
            syntax = syntax_name(self.says.syntax)
            raise Unusable(f"PixelData {self._of(index)} cannot be decoded as {syntax}: {_words(error)}") from error

    def ycbcr(self, index: int) -> bool:
        """Whether the three samples of `words` are YCbCr. Of a JPEG its own marks count, not what the header says;
        before both what `believe_pixels` has found."""
        if self._ycbcr is not None:
            return self._ycbcr
        seen = self._look_at(index) if self.says.syntax in JPEG else None
        if seen is not None and seen.ycbcr is not None:
            return seen.ycbcr
        return self.says.colours in ("YBR_FULL", "YBR_FULL_422")

    def believe_pixels(self) -> None:
        """Read the three samples of every frame as the first frame is grey, where it is not if they are read as header
        and marks say: their PhotometricInterpretation or PlanarConfiguration is wrong. Raises Unusable."""
        said = self._planes, self.ycbcr(0)
        whole_words = self.says.syntax in WHOLE_WORDS - {RLE_LOSSLESS} and not self._halved
        grey_if: dict[tuple[bool, bool], float] = {}
        for planes in (said[0], not said[0]) if whole_words else said[:1]:
            self._planes = planes
            shown = eight_bits(significant(self.words(0), self.says), self.says.stored, signed=self.says.signed)
            shares = {(planes, ycbcr): grey_share(shown, ycbcr) for ycbcr in (False, True)}
            if planes == said[0] and ((as_said := shares[said]) is None or as_said > NOT_GREY_IF):
                return
            grey_if |= {way: share or 0.0 for way, share in shares.items()}
        best = max(grey_if, key=lambda way: grey_if[way])
        if grey_if[best] < GREY_IF:
            best = said
        self._planes, self._ycbcr = best[0], best[1] if best != said else None

    def _native(self, index: int) -> np.ndarray:
        says, data = self.says, self.located.data
        if says.allocated == 1:
            first = index * says.pixels
            bits = np.frombuffer(data[first // 8 : (first + says.pixels + 7) // 8], np.uint8)
            some = np.unpackbits(bits, bitorder="little")[first % 8 :][: says.pixels]  # PS3.5 8.1.1
            return some.reshape(says.rows, says.columns)
        size, at = self.frame_bytes, index * self.frame_bytes
        if self.big_endian and says.allocated == 8 and self.located.vr == "OW":  # PS3.5 7.3: words, their bytes turned
            begin, end = at // 2 * 2, min(-(-(at + size) // 2) * 2, len(data) // 2 * 2)
            turned = np.frombuffer(data[begin:end], ">u2").astype("<u2").tobytes()
            return self._arranged(turned[at - begin : at - begin + size])
        return self._arranged(data[at : at + size])

    def _arranged(self, frame: bytes | memoryview) -> np.ndarray:
        """Uncompressed bytes of one frame -> (y, x) or (y, x, samples), in this machine's byte order."""
        says = self.says
        kind = np.dtype(f"{'>' if self.big_endian else '<'}{'f' if self.is_float else 'u'}{says.allocated // 8}")
        flat = np.frombuffer(frame, kind)
        flat = flat if kind.isnative else flat.astype(kind.newbyteorder("="))
        if self._halved:  # Y Y Cb Cr: PS3.3 C.7.6.3.1.2
            pairs = flat.reshape(says.rows, -1, 4)
            y, colour = pairs[..., :2], pairs[..., np.newaxis, 2:]
            return np.concatenate([y[..., np.newaxis], np.repeat(colour, 2, axis=2)], axis=-1).reshape(
                says.rows, says.columns, 3
            )
        if says.samples == 1:
            return flat.reshape(says.rows, says.columns)
        if self._planes:
            return flat.reshape(says.samples, says.rows, says.columns).transpose(1, 2, 0)
        return flat.reshape(says.rows, says.columns, says.samples)

    def _uncompressed(self, index: int) -> np.ndarray:
        """The bytes of a frame in Encapsulated Uncompressed or Deflated Image Frame."""
        size, frame = self.frame_bytes, self._frame(index)
        if self.says.syntax == DEFLATED_IMAGE_FRAME:
            frame = memoryview(inflate(frame, size + 2))
            self._sized(index, len(frame))
        if self.says.allocated == 1:
            bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[: self.says.pixels]
            return bits.reshape(self.says.rows, self.says.columns)
        return self._arranged(frame[:size])

    def _sized(self, index: int, have: int) -> None:
        if not self.frame_bytes <= have <= self.frame_bytes + 2:
            raise Unusable(
                f"PixelData {self._of(index)} has {have} bytes, Rows, Columns, SamplesPerPixel and BitsAllocated make"
                f" {self.frame_bytes}"
            )

    def _run_length(self, index: int) -> np.ndarray:
        """PS3.5 Annex G: a segment for each byte of each sample, the most significant first."""
        says, spare = self.says, max(2, min(self.says.rows, self.says.columns))
        segments = codestream.rle(self._frame(index))
        for segment in segments:  # before memory is taken: two bytes of one become at most 128 pixels
            most = 64 * len(segment)
            if most > FREELY_UNPACKED:
                most = codestream.unpacked(segment, says.pixels + spare)
                if most >= says.pixels + spare:
                    raise Unusable(f"PixelData {self._of(index)} has an RLE segment of more than Rows x Columns pixels")
            if most < says.pixels:
                raise Unusable(
                    f"PixelData {self._of(index)} has at most {most} pixels in an RLE segment, Rows x Columns make"
                    f" {says.rows} x {says.columns}"
                )
        out = np.zeros((says.samples, says.pixels), f"u{says.allocated // 8}")
        for number, segment in enumerate(segments):
            plane = np.frombuffer(decode_segment(bytes(segment)), np.uint8)
            if not says.pixels <= len(plane) < says.pixels + spare:
                raise Unusable(
                    f"PixelData {self._of(index)} has {len(plane)} pixels in an RLE segment, Rows x Columns make"
                    f" {says.rows} x {says.columns}"
                )
            sample, byte = divmod(number, says.allocated // 8)
            out[sample] = out[sample] << np.array(8 if byte else 0, out.dtype) | plane[: says.pixels].astype(out.dtype)
        shaped = out.reshape(says.samples, says.rows, says.columns)
        return shaped[0] if says.samples == 1 else shaped.transpose(1, 2, 0)

    def _decoded(self, index: int, seen: codestream.Codestream) -> np.ndarray:
        """The components of a JPEG, JPEG-LS or JPEG 2000 frame as its decoder gives them, without change of colour."""
        says = self.says
        container = 8 if seen.precision <= 8 else 16 if seen.precision <= 16 else 32
        colours = "YBR_FULL" if says.syntax in JPEG else "RGB"  # the former tells Pillow to leave them as they are
        options: dict[str, Any] = {
            "rows": says.rows,
            "columns": says.columns,
            "number_of_frames": 1,
            "samples_per_pixel": says.samples,
            "photometric_interpretation": "MONOCHROME2" if says.samples == 1 else colours,
            "planar_configuration": 0,
            "bits_allocated": container,
            "bits_stored": seen.precision,
            "pixel_representation": 0,
            "pixel_keyword": "PixelData",
            "apply_j2k_sign_correction": False,
            "apply_jls_sign_correction": False,
            "correct_unused_bits": False,
        }
        source = encapsulate([bytes(self._frame(index))], has_bot=False)
        decoder = get_decoder(UID(says.syntax))
        plugins = PLUGINS.get(says.syntax, ("",))
        for plugin in plugins:
            try:
                pixels, _ = decoder.as_array(source, raw=True, index=0, decoding_plugin=plugin, **options)
                break
            except UNREADABLE:
                if plugin == plugins[-1]:
                    raise
        if pixels.shape[:2] != (says.rows, says.columns):
            raise Unusable(f"pixels are {pixels.shape[:2]}, Rows x Columns {says.rows} x {says.columns}")
        return np.asarray(pixels)

    def _in_place(self, pixels: np.ndarray, seen: codestream.Codestream) -> np.ndarray:
        """Components of `precision` bits -> words of Bits Allocated with the value below High Bit."""
        says = self.says
        words = pixels.view(f"u{pixels.dtype.itemsize}").astype(f"u{max(pixels.dtype.itemsize, says.allocated // 8)}")
        if seen.precision > says.stored:
            return words  # the whole word was compressed, with what lies round the value
        if seen.precision < says.stored and says.signed:
            words = _extended(words, seen.precision)
        mask = np.array((1 << says.stored) - 1, words.dtype)
        return (words & mask) << np.array(says.shift, words.dtype)


def _extended(words: np.ndarray, bits: int) -> np.ndarray:
    """The sign of numbers of `bits` bits repeated above them."""
    unused = words.dtype.itemsize * 8 - bits
    signed = words.view(f"i{words.dtype.itemsize}")
    return ((signed << unused) >> unused).view(words.dtype)


def significant(words: np.ndarray, says: ImagePixel) -> np.ndarray:
    """Words -> values: what lies above High Bit is dropped (an old overlay, PS3.5 8.1.1 up to 2013), what lies below is
    shifted out. Raises Unusable when something does lie below: then High Bit or Bits Stored is wrong."""
    if words.dtype.kind == "f":
        return words
    size = words.dtype.itemsize * 8
    if says.shift and (words & np.array((1 << says.shift) - 1, words.dtype)).any():
        raise Unusable(f"HighBit is {says.high} with BitsStored {says.stored}, but the bits below it are in use")
    above = size - says.high - 1
    if above:
        words = words << np.array(above, words.dtype)
    if says.signed:
        words = words.view(f"i{words.dtype.itemsize}")
    unused = size - says.stored
    return words >> np.array(unused, words.dtype) if unused else words


def grey_share(samples: np.ndarray, ycbcr: bool) -> float | None:
    """Of uint8 (y, x, 3), the share of pixels without colour, if they are YCbCr or RGB; of those that differ from the
    one beside them, for in even areas planes read as pixels look grey, too. None where these are too few to tell."""
    some = samples[::2].astype(np.int16)
    uneven = np.abs(np.diff(some, axis=1)).max(axis=-1) > GREY_WITHIN
    off = np.abs(some[..., 1:] - 128).max(axis=-1) if ycbcr else np.ptp(some, axis=-1)
    grey = off[:, 1:][uneven] <= GREY_WITHIN
    return float(grey.mean()) if len(grey) > UNEVEN * off.size else None


def _opened(path: Path, header: Dataset) -> Pixels:
    """Raises UnfitInput, naming the image."""
    try:
        return Pixels(path, header)
    except (InvalidDicomError, *UNREADABLE) as error:
        raise UnfitInput(f"{name_image(header)}: the pixels cannot be decoded: {_words(error)}") from error


# ---------------------------------------------------------------------------------------------------------- CT


def stored_values(path: Path, header: Dataset, frames: list[int]) -> Iterator[np.ndarray]:
    """Stored pixel values, frame by frame: unsigned words of Bits Allocated as in native Pixel Data, or floats; what
    they mean, `rescaled` knows. frames: from 0; none: the only one. Raises UnfitInput when they cannot be decoded."""
    pixels = _opened(path, header)
    try:
        for frame in frames or [0]:
            yield pixels.words(frame)
    except UNREADABLE as error:
        raise UnfitInput(f"{name_image(header)}: the pixels cannot be decoded: {_words(error)}") from error


def rescaled(stored: np.ndarray, header: Dataset, slope: float, intercept: float, out: np.ndarray) -> None:
    """Stored values -> HU (y, x) by the slice's own slope and intercept; padding becomes air. Into floats: what the
    scanner's values mean, unrounded; padding becomes 0.

    MONOCHROME1 changes only how a CT is displayed, not what its values mean (PS3.3 C.7.6.3.1.2): nothing to invert.
    """
    if stored.dtype.kind == "f":  # Float Pixel Data, PS3.3 C.7.6.24
        outside = stored == value(header, "FloatPixelPaddingValue")
        if not np.isfinite(stored[~outside]).all():
            raise ValueError("some pixels are no numbers (NaN or infinite); export the CT anew")
    else:
        says, limits = image_pixel(header), padding(header)
        if stored.dtype == np.uint16 and out.dtype == np.int16 and not says.shift:
            out[...] = _table(says, limits, slope, intercept)[stored]
            return
        stored, outside = whole_numbers(stored, says, limits)
    _linear(stored, outside, slope, intercept, out)


def _linear(values: np.ndarray, outside: np.ndarray, slope: float, intercept: float, out: np.ndarray) -> None:
    rescaled_values = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if out.dtype.kind == "f":
        rescaled_values[outside] = 0
        out[...] = rescaled_values
        return
    rescaled_values[outside] = AIR_HU
    out[...] = np.clip(np.rint(rescaled_values), -32768, 32767)


@lru_cache(maxsize=16)
def _table(says: ImagePixel, limits: tuple[int, int] | None, slope: float, intercept: float) -> np.ndarray:
    """(65536,) HU of every word there can be: a look at it takes a fifth of the time, and slices are often alike."""
    out = np.empty(1 << 16, np.int16)
    _linear(*whole_numbers(np.arange(1 << 16, dtype=np.uint16), says, limits), slope, intercept, out)
    return out


def whole_numbers(words: np.ndarray, says: ImagePixel, limits: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Words -> the values in them, and bool, where they are padding (PS3.3 C.7.5.1.1.2), between `limits`.

    Padding is looked for in the words as they lie, because it may need more bits than Bits Stored, and in the values.
    The VR of the padding value may disagree with the sign of the pixels.
    """
    values = significant(words, says)
    if limits is None:
        return values, np.zeros(words.shape, bool)
    one, other = sorted(_as_word(limit, says) for limit in limits)
    raw = words.view(f"i{words.dtype.itemsize}") if says.signed else words
    return values, ((raw >= one) & (raw <= other)) | ((values >= one) & (values <= other))


def padding(header: Dataset) -> tuple[int, int] | None:
    """Pixel Padding Value and the other end of its range. Raises Unusable when they cannot be read."""
    if value(header, "PixelPaddingValue") is None:
        return None
    one = whole(header, "PixelPaddingValue")
    return one, whole(header, "PixelPaddingRangeLimit", one)


def _as_word(number: int, says: ImagePixel) -> int:
    """A padding value with the sign that the pixels have."""
    number &= (1 << says.allocated) - 1
    return number - (1 << says.allocated) if says.signed and number >> (says.allocated - 1) else number


# ------------------------------------------------------------------------------------------------- ultrasound


def ultrasound_frames(path: Path, header: Dataset, indices: Sequence[int]) -> Iterator[Frame]:
    """Pixels of an ultrasound as grey values, and as RGB where they have colour. Overlay planes are not drawn in."""
    pixels = _opened(path, header)
    says = pixels.says
    try:
        if says.samples == 3:
            pixels.believe_pixels()
        for index in indices:
            if pixels.is_float:
                raise Unusable("Float Pixel Data is no ultrasound; whole grey values are needed")
            values = significant(pixels.words(index), says)
            if pixels.palette is not None:
                shown = pixels.palette(values)
            else:
                shown = eight_bits(values, says.stored, signed=says.signed)
            if says.samples == 3 and pixels.ycbcr(index):
                shown = convert_color_space(shown, "YBR_FULL", "RGB")
            if says.colours == "MONOCHROME1":
                shown = 255 - shown
            yield Frame(grey(shown), shown) if shown.ndim == 3 else Frame(shown, None)
    except UNREADABLE as error:
        raise UnfitInput(f"{name_image(header)}: the pixels cannot be decoded: {_words(error)}") from error


def grey_values(path: Path, header: Dataset, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Pixels of an image without colour, all bits that are stored: float32 (y, x), the brighter the larger."""
    pixels = _opened(path, header)
    says = pixels.says
    try:
        for index in indices:
            if says.samples != 1 or pixels.palette is not None or pixels.is_float:
                raise Unusable(f"PhotometricInterpretation is {says.colours}; whole grey values are needed")
            values = significant(pixels.words(index), says).astype(np.float32)
            darkest = -(1 << says.stored - 1) if says.signed else 0
            yield darkest + (1 << says.stored) - 1 + darkest - values if says.colours == "MONOCHROME1" else values
    except UNREADABLE as error:
        raise UnfitInput(f"{name_image(header)}: the pixels cannot be decoded: {_words(error)}") from error


def eight_bits(pixels: np.ndarray, bits: int, *, signed: bool) -> np.ndarray:
    """Scale values of `bits` bits to uint8 0..255."""
    if pixels.dtype == np.uint8 and bits == 8:
        return pixels
    values = pixels.astype(np.int64) + ((1 << (bits - 1)) if signed else 0)
    return (values * 255 // ((1 << bits) - 1)).astype(np.uint8)


def grey(rgb: np.ndarray) -> np.ndarray:
    """uint8 (y, x, 3) -> (y, x), luma of ITU-R BT.601"""
    out = np.empty(rgb.shape[:2], np.uint8)
    np.rint(rgb @ np.array([0.299, 0.587, 0.114], np.float32), out=out, casting="unsafe")
    return out
