"""docs/inputs.md: what is taken, set aside or refused, and why; printed from the tables that decide it.

python -m pacs_node.inputs > docs/inputs.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from pydicom.uid import UID

from dicom_sr.copies import COPIED_IF_PRESENT, HOW_REMOVED, MUST_BE_EQUAL, WHOSE_TRIAL
from dicom_sr.frames import ALSO_IN, FRAME_TYPE, MACROS, MOST_FRAMES, UNASSIGNED
from dicom_sr.image_type import MEANINGS, NO_SLICE, OF_PICTURES, PROPERTIES, SECONDARY, TECHNIQUES
from dicom_sr.modalities import CT_CLASSES, IMAGE_CLASSES, ULTRASOUND_CLASSES
from dicom_sr.regions import PIXEL_MM
from dicom_sr.slices import GREY, HOUNSFIELD, IN_COLOUR, MOST_PIXELS, MOST_VOXELS, OBLIQUE_DEGREES, UNEVEN, UNEVEN_MM
from models import PIPELINES, catalogue
from models.image_pixel import COLOURS
from models.pipeline import Requirements
from models.pixels import GREY_IF
from pacs_node.assemble.acquisitions import CLEAR, OF_A_PHASE, PAUSE_S, RECONSTRUCTIONS
from pacs_node.assemble.geometry import CROOKED_MM, FEW_DOUBLES, GAP
from pacs_node.receive.accept import DECODED, KEPT_ONLY

HEAD = """# What is taken, set aside or refused

Printed by `python -m pacs_node.inputs` from the tables that decide it; a test holds this page against them.

Three moments can end an image's way: **receipt** (the sender hears a DIMSE status, the page of refused objects keeps
the reason), the **verdict** on a complete series (an image is set aside, or the series refused; nothing has been
analysed yet), and the **gate** after the analysis, which looks at our own objects only. Every reason names the
attribute by its keyword. One bad image never voids the others: it is set aside, and what is left is judged.

Headers are read as they are meant: an element whose VR is not its own is decoded by what its bytes are, single frames
and functional groups are read alike, and what an analysis does not need may be unreadable.
"""


def page() -> str:
    parts = (_receipt, _identity, _required, _ct, _ultrasound, _others, _pixels, _copies)
    return "\n".join([HEAD, *(line for part in parts for line in part())]).rstrip() + "\n"


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {left} | {right} |" for left, right in rows), ""]


def _names(uids: Iterable[str]) -> str:
    return ", ".join(sorted(UID(uid).name.removesuffix(" Storage") for uid in uids))


def _keywords(keywords: Iterable[str]) -> str:
    return ", ".join(f"`{keyword}`" for keyword in keywords)


def _one_of(keywords: Iterable[str]) -> str:
    return " or ".join(f"`{keyword}`" for keyword in keywords)


def _receipt() -> list[str]:
    return [
        "## At receipt",
        "",
        *_table(
            ("what arrives", "what happens"),
            [
                (f"{_keywords(('SOPClassUID', 'SOPInstanceUID', 'StudyInstanceUID', 'SeriesInstanceUID'))}: digits"
                 " and dots, at most 64; components may begin with 0", "taken in"),
                ("one of them missing, empty, doubled or something else", "refused, 0xC000"),
                ("they differ from the C-STORE command", "refused, 0xC000; of another SOP Class 0xA900"),
                ("a data set that ends in the middle of an element", "refused, 0xC000"),
                ("encodings that break PS3.5 and that pydicom reads whole", "taken in"),
                ("other bytes under a SOP Instance UID that is here already", "kept aside, 0xB000"),
            ],
        ),
    ]  # fmt: skip


def _identity() -> list[str]:
    return [
        "## Whose it is",
        "",
        "Refused at the verdict: a series whose images differ in `StudyInstanceUID`, in `PatientID`, or in an"
        " `IssuerOfPatientID` that they state. Compared as PS3.5 6.2 says, without padding. So is one whose images"
        " state two dates of birth (`PatientBirthDate`) or sexes (`PatientSex`, M and F), however they are written, or"
        " without `PatientID` two names (`PatientName`, its first component group).",
        "",
    ]


def _ct() -> list[str]:
    meanings = [(meaning, _keywords(words)) for meaning, words in MEANINGS.items()]
    return [
        "## CT",
        "",
        f"SOP Classes: {_names(CT_CLASSES)}. Where the attributes of a frame are looked for: "
        + ", ".join(f"`{keyword}` in `{macro}`" for keyword, macro in MACROS.items())
        + f"; of MR and PET those of `{FRAME_TYPE}` in {_keywords(ALSO_IN[FRAME_TYPE])}"
        + f"; others also in {_keywords(UNASSIGNED)}, and at the top.",
        "",
        *_table(
            ("an image is set aside", "because"),
            [
                (_keywords(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                            "RescaleIntercept", "FrameOfReferenceUID", "Rows", "Columns", "BitsAllocated"))
                 + " missing, empty, or no numbers", "it could only be guessed where it lies and what its values mean"),
                (f"`RescaleType` other than {', '.join(sorted(HOUNSFIELD - {''}))} or empty",
                 "its values are not Hounsfield units (PS3.3 C.11.1.1.2)"),
                (f"`SamplesPerPixel` other than 1, `PhotometricInterpretation` other than {GREY}1 and {GREY}2,"
                 f" `PixelPresentation` of a frame {' or '.join(sorted(IN_COLOUR))}", "it is in colour"),
                ("`QualityControlImage` YES", "it is a phantom"),
                *((f"`VolumeBasedCalculationTechnique` {value}", f"it is a {meaning}")
                  for value, meaning in TECHNIQUES.items()),
                *((f"`VolumetricProperties` {value}", f"it is a {meaning.split(' (')[0]}")
                  for value, meaning in PROPERTIES.items()),
                ("`ImageType`, second value SECONDARY", f"it was {SECONDARY}"),
                ("another frame of reference, orientation, size or pixel spacing than most", "it is of another volume"),
                (f"the place of another one, up to {FEW_DOUBLES:.0%} of all", "it was sent twice under another UID"),
            ],
        ),
        "Words of `ImageType` or `FrameType` that say what else an image is; in upper or lower case, with or without"
        " digits, and joined to others:",
        "",
        *_table(("it is a", "words"), meanings),
        *_table(
            ("a series is refused", "unless"),
            [
                ("no axial slices, where the card requires them", f"at most {OBLIQUE_DEGREES:g} degrees from axial"),
                ("fewer slices than the card requires, or `[assemble] min_slices` in its place", "the number"),
                ("gantry tilt, where the card limits it", "at most so many degrees"),
                ("slices shifted sideways", f"at most {CROOKED_MM:g} mm"),
                ("a slice missing", f"steps below {GAP:g} times the distance"),
                ("irregular spacing", f"within {UNEVEN:.0%}, or {UNEVEN_MM:g} mm"),
                ("two volumes, phases or reconstructions", "the second has fewer slices than are required"),
                ("all images state one position", "never"),
                ("a part of a concatenation missing", "never"),
                ("slices of several acquisitions alternate (`AcquisitionNumber`, `IrradiationEventUID`, pauses of"
                 f" {PAUSE_S:g} s in `AcquisitionTime` or another `AcquisitionDate`, `ContrastBolusAgent`, `KVP`,"
                 f" {_keywords(OF_A_PHASE)})",
                 f"one has {CLEAR} times as many slices as the next: it alone is analysed, and the report says so"),
                (f"more than {MOST_VOXELS:.3g} voxels", "never"),
            ],
        ),
        "Said in the verdict and in the report, and analysed: acquisitions that follow each other, several"
        f" {' or '.join(RECONSTRUCTIONS.values())} ({_keywords(RECONSTRUCTIONS)}).",
        "",
        "Slice Thickness may be missing. Where it is, the Segmentation states the distance between the slices instead.",
        "",
    ]  # fmt: skip


def _required() -> list[str]:
    """Of the node's own pipelines; an installed one states its own."""
    rows = [
        (f"`{card.name}`", f"{', '.join(sorted(card.modality))}: {', '.join(_asked(card.requires))}")
        for card in catalogue().cards
        if card.name in PIPELINES
    ]
    return [
        "## What a pipeline requires",
        "",
        "Its card says it, and the verdict holds every series against the card of the route's pipeline: an image of"
        " another SOP Class or body part than the card takes is set aside; `BodyPartExamined` that is empty is let in.",
        "",
        *_table(("pipeline", "requires"), rows),
    ]


def _asked(requires: Requirements) -> Iterator[str]:
    yield "slices that form a volume" if requires.volume else "images"
    if requires.axial:
        yield "axial"
    if requires.min_slices > 1:
        yield f"at least {requires.min_slices}"
    if requires.max_tilt_deg is not None:
        yield f"tilted by at most {requires.max_tilt_deg:g} degrees"
    if requires.hounsfield:
        yield "in Hounsfield units"
    if requires.calibrated:
        yield "that say how large a pixel is"


def _others() -> list[str]:
    further = {modality: classes for modality, classes in IMAGE_CLASSES.items() if modality not in ("CT", "US")}
    return [
        "## MR, PET and radiographs",
        "",
        "Accepted and judged when an installed pipeline takes them, or the pipeline of a route; else refused as any"
        " other modality.",
        "",
        *_table(
            ("modality", "SOP Classes"),
            [(modality, _names(classes)) for modality, classes in further.items()],
        ),
        "MR and PET volumes are judged as CT is, except that values need no rescaling and may be a map, a difference or"
        f" an average; no slice is only: {', '.join(sorted(NO_SLICE))}.",
        "",
        *_table(
            ("a radiograph has", "its millimetres are"),
            [
                ("`PixelSpacingCalibrationType` GEOMETRY or FIDUCIAL, or a `PixelSpacing` that is not"
                 " `ImagerPixelSpacing`", "those of the patient, as its maker corrected them"),
                ("`PixelSpacing` that is `ImagerPixelSpacing`, or alone",
                 "those of the detector, and the report says so"),
                ("`ImagerPixelSpacing` only", "those of the detector, and the report says so"),
                ("neither", "none: sizes in pixels"),
            ],
        ),
    ]  # fmt: skip


def _ultrasound() -> list[str]:
    return [
        "## Ultrasound",
        "",
        f"SOP Classes: {_names(ULTRASOUND_CLASSES)}.",
        "",
        *_table(
            ("an image or clip", "what happens"),
            [
                ("`Rows`, `Columns`, `BitsAllocated` missing or no numbers", "set aside"),
                (f"`NumberOfFrames` no whole number from 1 to {MOST_FRAMES}", "set aside"),
                (f"`ImageType` says {' or '.join(sorted(OF_PICTURES))}; `QualityControlImage` YES", "set aside"),
                ("its regions show no tissue in two dimensions", "set aside"),
                ("`SequenceOfUltrasoundRegions` in cm", "calibrated region by region"),
                ("no region, `PixelSpacing`", "calibrated by it"),
                (f"neither, or a pixel outside {PIXEL_MM[0]:g} to {PIXEL_MM[1]:g} mm, or numbers that are none",
                 "analysed; sizes in pixels, and the report says why"),
                ("`InstanceNumber` no number", "analysed; it only sorts"),
            ],
        ),
    ]  # fmt: skip


def _pixels() -> list[str]:
    return [
        "## Pixels",
        "",
        "Before the verdict the attributes of the Image Pixel module are held against the bytes: the length of native"
        " pixels, the number of fragments and frames, and what each compressed frame says of its own size, components"
        " and precision. A contradiction sets the image aside.",
        "",
        *_table(
            ("transfer syntax", "what happens"),
            [
                *((name, "decoded") for name in DECODED.values()),
                *((name, "kept; set aside at the verdict") for name in KEPT_ONLY.values()),
            ],
        ),
        f"Photometric interpretations: {', '.join(COLOURS)}. At most {MOST_PIXELS} pixels a frame. Values may lie above"
        " bit 0 (`HighBit`), and padding may be wider than `BitsStored`; colour of a JPEG is what its stream says. A"
        f" picture of three samples that is grey ({GREY_IF:.0%} of its pixels) only if they are read as another colour"
        " space or in another `PlanarConfiguration` than is said is read so.",
        "",
    ]


def _copies() -> list[str]:
    return [
        "## What results copy",
        "",
        f"Equal to the source, as it stands: {_keywords(MUST_BE_EQUAL)}, and every UID that is referred to.",
        "",
        "Copied where they are values of their VR, else mended or left out, with a warning: "
        f"{_keywords(keyword for keyword in COPIED_IF_PRESENT if keyword not in MUST_BE_EQUAL)},"
        " `LossyImageCompressionRatio`. What has no value is not copied; nor is what its module does not allow: an item"
        " without what it must say, more than one issuer, an identity removed nobody says how"
        f" ({_keywords(HOW_REMOVED)}), a clinical trial without {' and without '.join(map(_one_of, WHOSE_TRIAL))}.",
        "",
        "Text that its character set does not decode is read as UTF-8 or Latin-1, so that no letter is lost, with a"
        " warning.",
        "",
    ]


if __name__ == "__main__":
    sys.stdout.write(page())
