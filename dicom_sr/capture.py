"""Key images with outlines and calipers, and the report as pages, as Secondary Capture Image IOD, PS3.3 A.8.1.

The last form of a result: every archive takes it and every viewer shows it. The drawing lies in the pixels, and so
does the sentence that says what it is not for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_sr import attributes, codes, read
from dicom_sr.copies import ratio_and_method
from dicom_sr.derived import Marked, Results, derived, mark_findings, say_body_part
from dicom_sr.findings import Findings, ImageRef
from dicom_sr.header import RESEARCH_ONLY, code_item, image_reference
from dicom_sr.outline import outlines
from dicom_sr.plain_sr import sentences
from dicom_sr.source import headers_by_uid, plane

Pixels = Callable[[ImageRef], np.ndarray]  # an image as it is displayed: uint8 (rows, columns, 3)

Colour = tuple[int, int, int]  # RGB

MOST = 10  # key images of one Segmentation
FOREMOST = 3  # of a volume, where they come beside the Segmentation
SMALLEST_SIDE = 512  # smaller images are enlarged by a whole number, so that lines are thinner than what they enclose
TEXT_SIZE, TEXT_LINE = 16, 20  # pixels
MARGIN = 10  # pixels
SWATCH = 24  # pixels, a line of a legend
FONT = ImageFont.load_default(TEXT_SIZE)  # comes with Pillow; Latin letters only
PAGE = (1024, 768)  # rows, columns of a page of text
DIRECTIONS = re.compile(r"[RLAPHF]{1,3}")  # PS3.3 C.7.6.1.1.1
TOWARDS = (("R", "L"), ("A", "P"), ("F", "H"))  # against and along the x, y and z axes, PS3.3 C.7.6.1.1.1
CALLED = {"page": "report", "picture": "explanation"}  # role -> what the series is called
CALIPER = (255, 255, 0)
WHITE = (255, 255, 255)


def key_images(
    segmentation: Dataset, results: Results, pixels: Pixels, *, most: int = MOST, role: str = "key image"
) -> list[Dataset]:
    """One capture per finding of a Segmentation, or per box of a report, in the order of their numbers, at most `most`:
    its key image with outline, axes and numbers, and a legend."""
    every = mark_findings(segmentation, results.report)
    note = f"The first {most} of {len(every)} findings" if len(every) > most else ""
    texts = {sentence.about: sentence.text for sentence in sentences(results.report) if sentence.about}
    captures = []
    for number, finding in enumerate(every[:most], start=1):
        source = results.source(finding.key)
        words = [texts.get(finding.segment.tracking_uid, finding.segment.label), *([f"{note}."] if note else [])]
        drawn = with_words(drawing(pixels(finding.key), finding), words, legend(finding))
        capture = _capture(segmentation, drawn, role, 9500, number, note)
        capture.PatientOrientation = patient_orientation(source, finding.key.frame)
        say_body_part(capture, [source])
        capture.SourceImageSequence = [_source(finding.key)]
        _say_lossy(capture, source)
        captures.append(capture)
    return captures


def foremost_key_images(segmentation: Dataset, results: Results, pixels: Pixels) -> list[Dataset]:
    """Key images that come beside the Segmentation: of a volume the FOREMOST findings, of clips and images all."""
    most = FOREMOST if "FrameOfReferenceUID" in segmentation else MOST
    return key_images(segmentation, results, pixels, most=most, role="foremost key image")


def legend(finding: Marked) -> list[tuple[str, Colour]]:
    """What the lines of a drawing are, each with its colour."""
    boxed = finding.group is not None and read.is_boxed(finding.group)
    lines = [(f"{'box round' if boxed else 'outline of'} {finding.segment.label}", finding.colour)]
    if any(line.image == finding.key for line in finding.calipers):
        lines.append(("long and short axis", CALIPER))
    return lines


def pages(report: Dataset, results: Results) -> list[Dataset]:
    """The sentences of the report, white on black, as many pages as it takes."""
    rows, columns = PAGE
    drawn_on = (line.image for group in read.groups(report) for line in group.lines)
    shown = [results.source(ref) for ref in list(drawn_on)[:1]]
    lines = [line for sentence in sentences(report) for line in (*_wrapped(sentence.text, columns), "")]
    tall = rows // TEXT_LINE - 4
    captures = []
    for number, first in enumerate(range(0, len(lines), tall), start=1):
        of = -(-len(lines) // tall)
        head = f"AI report, page {number} of {of}. {RESEARCH_ONLY}."
        canvas = Image.new("RGB", (columns, rows))
        _write(canvas, [head, "", *lines[first : first + tall]], top=TEXT_LINE)
        capture = _capture(report, np.asarray(canvas), "page", 9550, number, "")
        capture.PatientOrientation = None
        say_body_part(capture, shown)
        captures.append(capture)
    return captures


def scale_of(rows: int, columns: int) -> int:
    """How many pixels of a drawing one pixel of the image takes in each direction."""
    return max(1, -(-SMALLEST_SIDE // max(rows, columns)))


def drawing(pixels: np.ndarray, finding: Marked) -> np.ndarray:
    """uint8 (rows, columns, 3) -> (rows * k, columns * k, 3), k = scale_of: outlines and calipers drawn over it.

    A point (column, row) of the image, (0, 0) being the outer corner of the first pixel, is drawn at k times that.
    """
    k = scale_of(*pixels.shape[:2])
    canvas = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (pixels.shape[1] * k, pixels.shape[0] * k), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(canvas)
    mask = finding.segment.masks.get(finding.key)
    for loops in [] if mask is None else outlines(mask):
        for loop in loops:
            _line(pen, loop * k, finding.colour)
    for line in finding.calipers:
        if line.image == finding.key:
            _line(pen, line.points * k, CALIPER)
    return np.asarray(canvas)


def with_words(drawn: np.ndarray, words: Sequence[str], key: Sequence[tuple[str, Colour]] = ()) -> np.ndarray:
    """The drawing with a black band below it, so that nothing of the image is covered: the legend, its colours as
    short lines, then the text, the research sentence last."""
    lines = [line for text in (*words, f"{RESEARCH_ONLY}.") for line in _wrapped(text, drawn.shape[1])]
    tall = TEXT_LINE * (len(key) + len(lines) + 1)
    canvas = Image.new("RGB", (drawn.shape[1], drawn.shape[0] + tall))
    canvas.paste(Image.fromarray(drawn), (0, 0))
    top = drawn.shape[0] + TEXT_LINE // 2
    pen = ImageDraw.Draw(canvas)
    for text, colour in key:
        pen.line([(MARGIN, top + TEXT_LINE // 2), (MARGIN + SWATCH, top + TEXT_LINE // 2)], fill=colour, width=3)
        pen.text((2 * MARGIN + SWATCH, top), text, fill=WHITE, font=FONT)
        top += TEXT_LINE
    _write(canvas, lines, top=top)
    return np.asarray(canvas)


def patient_orientation(source: Dataset, frame: int | None = None) -> list[str] | None:
    """Patient Orientation of an image or frame, PS3.3 C.7.6.1.1.1: its own, else from its cosines, else unknown."""
    own = attributes.texts(source, "PatientOrientation")
    if len(own) == 2 and all(DIRECTIONS.fullmatch(each) for each in own):
        return own
    cosines = plane(source, frame).orientation
    if cosines is None:
        return None
    return [_letters(cosines[:3]), _letters(cosines[3:])]


def _letters(direction: Sequence[str]) -> str:
    """Towards where in the patient, the main direction first: L, or PF."""
    sizes = [abs(float(x)) for x in direction]
    letters = [TOWARDS[axis][float(x) > 0] for axis, x in enumerate(direction)]
    return "".join(letters[axis] for axis in sorted(range(3), key=lambda axis: -sizes[axis]) if sizes[axis] > 1e-4)


def _line(pen: ImageDraw.ImageDraw, points: np.ndarray, colour: Colour) -> None:
    # Pillow's (0, 0) is the centre of the first pixel
    pen.line([(x - 0.5, y - 0.5) for x, y in points.tolist()], fill=colour, width=1)


def _write(canvas: Image.Image, lines: Sequence[str], top: int) -> None:
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        pen.text((MARGIN, top + number * TEXT_LINE), line, fill=WHITE, font=FONT)


def _wrapped(text: str, columns: int) -> list[str]:
    """The text in lines that fit into so many columns of pixels; a word is never broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if FONT.getlength(longer) > columns - 2 * MARGIN and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def pictures(findings: Findings, report: Dataset, sources: Sequence[Dataset]) -> list[Dataset]:
    """What the pipeline drew beside its findings, each of the image that its finding was measured on."""
    headers = headers_by_uid(sources)
    by_number = {finding.number: finding for finding in findings.findings}
    captures = []
    for number, picture in enumerate(findings.pictures, start=1):
        finding = by_number[picture.finding]
        key = findings.images[finding.key_image]
        words = f"{finding.label}: {picture.title}"
        capture = _capture(report, with_words(picture.pixels, [words]), "picture", 9600, number, words)
        capture.PatientOrientation = None  # several images side by side
        say_body_part(capture, [headers[key.sop_instance_uid]])
        capture.SourceImageSequence = [_source(key)]
        _say_lossy(capture, headers[key.sop_instance_uid])
        captures.append(capture)
    return captures


def _say_lossy(capture: Dataset, source: Dataset) -> None:
    """What is drawn on or made of lossy pixels is lossy, PS3.3 C.7.6.1.1.5."""
    if attributes.text(source, "LossyImageCompression") == "01":
        capture.LossyImageCompression = "01"
        for element in ratio_and_method(source)[0]:
            capture.add(element)


def _capture(original: Dataset, rgb: np.ndarray, role: str, series_number: int, number: int, note: str) -> Dataset:
    capture = derived(
        original,
        sop_class_uid=SecondaryCaptureImageStorage,
        modality="OT",
        role=role,
        series_number=series_number,
        number=number,
        called=CALLED.get(role, "key images"),
    )
    capture.ConversionType = "WSD"  # Workstation, PS3.3 C.8.6.1
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = original.ContentDate, original.ContentTime
    capture.ContentDate, capture.ContentTime = original.ContentDate, original.ContentTime
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "YES"
    capture.DerivationDescription = f"Drawn from {original.Modality}. {RESEARCH_ONLY}."
    if note:
        capture.ImageComments = note
    capture.SamplesPerPixel = 3
    capture.PhotometricInterpretation = "RGB"
    capture.PlanarConfiguration = 0
    capture.Rows, capture.Columns = rgb.shape[:2]
    capture.BitsAllocated = capture.BitsStored = 8
    capture.HighBit, capture.PixelRepresentation = 7, 0
    data = rgb.tobytes()
    capture.PixelData = data + b"\0" * (len(data) % 2)
    capture["PixelData"].VR = "OB"
    return capture


def _source(ref: ImageRef) -> Dataset:
    item = image_reference(ref)
    item.PurposeOfReferenceCodeSequence = [code_item(codes.SOURCE_IMAGE_FOR_PROCESSING)]
    return item
