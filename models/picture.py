"""Key images as a radiologist would capture them: the picture, the outline round the finding, caliper lines, a caption.

Same rows and columns as the source. Only pixels: whoever writes them as DICOM says whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from dicom_sr import codes
from dicom_sr.findings import Axis, Finding, Findings, ImageRef
from dicom_sr.header import RESEARCH_ONLY
from dicom_sr.seg import plane_mask
from models.pipeline import UnfitInput
from models.read import header_of, planes_of, read_ultrasound, rescaled, stored_values

LUNG_WINDOW_HU = (-600.0, 1500.0)  # centre, width
OUTLINE = (255, 210, 0)  # one hue for lines that nature does not draw, in CT and ultrasound alike
LONG, SHORT = (0, 255, 160), (255, 120, 255)
TEXT, TEXT_GROUND = (255, 255, 255), (0, 0, 0)
DASH_PX, GAP_PX = 3.0, 3.0  # so that what lies under a caliper line can still be seen
TICK_PX = 5.0  # half of the bar at a caliper's end
TEXT_PX, LINE_PX = 12, 15


@dataclass(frozen=True, eq=False)
class KeyPicture:
    """One finding on its key image: rgb uint8 (rows, columns, 3)."""

    finding: int  # its number
    image: ImageRef
    rgb: np.ndarray


def key_pictures(findings: Findings, files: Sequence[Path]) -> list[KeyPicture]:
    """A picture of every finding, in their order, from the files they were found in (any order, others do no harm).

    CT in the lung window, ultrasound as it is. Raises UnfitInput when a file is missing or cannot be read.
    """
    paths = {str(header.SOPInstanceUID): path for path in files for header in [header_of(path)]}
    made = []
    for finding in findings.findings:
        ref = findings.images[finding.key_image]
        if ref.sop_instance_uid not in paths:
            raise UnfitInput(f"{finding.label}: its key image {ref.sop_instance_uid} is not among the files")
        path = paths[ref.sop_instance_uid]
        pixels = ultrasound_pixels(path, ref.frame) if findings.geometry == "image" else ct_pixels(path, ref.frame)
        made.append(KeyPicture(finding.number, ref, drawn(pixels, finding, caption(finding))))
    return made


def ultrasound_pixels(path: Path, frame: int | None) -> np.ndarray:
    """uint8 (rows, columns), or (rows, columns, 3) where the source has colour; frame is 1-based."""
    (shown,) = read_ultrasound(path).frames([(frame or 1) - 1])
    return shown.grey if shown.rgb is None else shown.rgb


def ct_pixels(path: Path, frame: int | None, window_hu: tuple[float, float] = LUNG_WINDOW_HU) -> np.ndarray:
    """uint8 (rows, columns) of a CT slice, windowed; frame is 1-based, of an Enhanced CT image."""
    plane = planes_of(header_of(path))[(frame or 1) - 1]
    (stored,) = stored_values(path, [] if plane.frame is None else [plane.frame])
    hu = np.empty(plane.shape, np.int16)
    rescaled(stored, plane, out=hu)
    return windowed(hu, *window_hu)


def windowed(hu: np.ndarray, centre: float, width: float) -> np.ndarray:
    """HU -> uint8 0..255, linear between the window's ends (the LINEAR_EXACT function, PS3.3 C.11.2.1.3.2)."""
    share = (hu.astype(np.float32) - np.float32(centre)) / np.float32(width) + np.float32(0.5)
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


def drawn(pixels: np.ndarray, finding: Finding, caption: Sequence[str] = ()) -> np.ndarray:
    """uint8 (rows, columns) or (rows, columns, 3) -> RGB (rows, columns, 3) with outline, calipers and caption.

    The outline runs on the pixels just outside the mask, so that the finding itself stays to be seen. Axes are drawn
    on their own image only: `pixels` must be the finding's key image.
    """
    rgb = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels.copy()
    mask = plane_mask(finding, finding.key_image, *rgb.shape[:2])
    rgb[ndimage.binary_dilation(mask, iterations=1) & ~mask] = OUTLINE
    canvas = Image.fromarray(rgb)
    pen = ImageDraw.Draw(canvas)
    for axis, colour in ((finding.long_axis, LONG), (finding.short_axis, SHORT)):
        if axis is not None and axis.image == finding.key_image:
            caliper(pen, axis, colour)
    write(pen, caption, mask)
    return np.asarray(canvas)


def caliper(pen: ImageDraw.ImageDraw, axis: Axis, colour: tuple[int, int, int]) -> None:
    """A dashed line with a bar at each end. Axis coordinates count from the outer corner of the first pixel."""
    start, end = np.array(axis.start_xy) - 0.5, np.array(axis.end_xy) - 0.5
    length = float(np.linalg.norm(end - start))
    if length == 0:
        return
    along = (end - start) / length
    across = np.array([-along[1], along[0]]) * TICK_PX
    for place in np.arange(0.0, length, DASH_PX + GAP_PX):
        ends = start + along * place, start + along * min(place + DASH_PX, length)
        pen.line([tuple(point.tolist()) for point in ends], fill=colour)
    for point in (start, end):
        pen.line([tuple((point - across).tolist()), tuple((point + across).tolist())], fill=colour)


def caption(finding: Finding) -> list[str]:
    """What stands on the picture: the finding, its axes, and what may not be done with it."""
    axes = [m for m in finding.measurements if m.name in (codes.LONG_AXIS, codes.SHORT_AXIS) and m.derivation is None]
    sizes = " x ".join(f"{m.value:g}" for m in axes)
    unit = "mm" if axes and axes[0].unit == codes.MM else "pixels"
    return [f"{finding.label}: {sizes} {unit}" if axes else finding.label, RESEARCH_ONLY]


def write(pen: ImageDraw.ImageDraw, lines: Sequence[str], mask: np.ndarray) -> None:
    """White on black in the lower left corner, where scanners seldom write; in the upper one if the finding is low."""
    font = ImageFont.load_default(TEXT_PX)
    high = len(lines) * LINE_PX
    top = 0 if mask[-high - 1 :].any() and not mask[: high + 1].any() else mask.shape[0] - high
    for place, line in enumerate(lines):
        corner = (2, top + place * LINE_PX)
        pen.rectangle(pen.textbbox(corner, line, font=font), fill=TEXT_GROUND)
        pen.text(corner, line, fill=TEXT, font=font)
