"""What an image is, by what its header says: a slice as it was reconstructed, or something made of such slices.

Vendors write the same thing in many words: "MIP", "CT_SOM5 MIP", "MIP THICK", "CSA MIP", "MAX_IP", "MAXIP". So the
values of Image Type are taken apart into words, and a word counts wherever it stands. What is not known to be anything
else is taken for a slice: an empty Image Type says nothing against it.
"""

from __future__ import annotations

import re
from itertools import pairwise

from pydicom.dataset import Dataset

from dicom_sr import attributes
from dicom_sr.frames import Frame

# word -> what it says the image is. PS3.3 C.7.6.1.1.2, C.8.2.1.1.1, C.8.16.1 (Frame Type) and vendors' conformance
# statements (Canon, GE, Philips, Siemens, United Imaging); joined pairs are looked up as one word, too.
MEANINGS: dict[str, tuple[str, ...]] = {
    "localizer": ("LOCALIZER", "LOCALISER", "TOP", "TOPO", "TOPOGRAM", "SCOUT", "SCANOGRAM", "SURVIEW"),
    "maximum intensity projection": ("MIP", "MIPS", "MAXIP", "MAXIMUM", "TMIP"),
    "minimum intensity projection": ("MINIP", "MNIP", "MINMIP", "MINIMUM"),
    "average of several slices": (
        *("AVERAGE", "AVERAGED", "AVG", "AVE", "AVIP", "AVEIP", "AIP", "MEAN", "MEANIP", "MEDIAN"),
        *("RAYSUM", "SUM", "SLAB"),
    ),
    "projection": ("PROJECTION", "PROJ", "DRR"),
    "thick reformatted slice": ("THICK", "MPRTHICK"),
    "rendering": (
        "VRT",
        "VR",
        "SSD",
        "RENDERED",
        "RENDERING",
        "RENDER",
        "VOLREN",
        "SURFACE",
        "ENDOSCOPIC",
        "FLYTHROUGH",
    ),
    "curved reformation": ("CURVED", "CPR", "CMPR"),
    "subtraction": ("SUBTRACTION", "SUBTRACTED", "SUBTRACT", "SUB", "SUBTR", "DSA", "MASKED"),
    "computed from several images": ("ADDITION", "MULTIPLICATION", "DIVISION", "QUANTITY", "DEVIATION", "DIFFERENCE"),
    "functional or material map": (
        *("PERFUSION", "CBF", "CBV", "MTT", "TTP", "TMAX", "PARAMETRIC", "MAP", "IODINE", "MATERIAL", "ELECTRON"),
        *("ZEFF", "RHO", "CALCIUM", "VNCA", "PERMEABILITY"),
    ),
    "summary or report page": (
        *("SUMMARY", "REPORT", "PROTOCOL", "PROT", "WORKSHEET", "EVIDENCE", "CHART", "GRAPH", "TABLE", "TEXT"),
    ),
    "dose page": ("DOSE", "DOSEREPORT", "DLP", "CTDI"),
    "screen capture": ("SCREEN", "SCREENSHOT", "SCREENSAVE", "CAPTURE", "WINSC", "SNAPSHOT", "SECONDARYCAPTURE"),
}
SECONDARY = "made after the examination of other images"  # Image Type value 2, PS3.3 C.7.6.1.1.2
WORDS = {word: meaning for meaning, words in MEANINGS.items() for word in words}
JOINED = {  # two words side by side that mean something only together
    ("MAX", "IP"): "maximum intensity projection",
    ("MIN", "IP"): "minimum intensity projection",
    ("MIN", "MIP"): "minimum intensity projection",
    ("Z", "EFF"): "functional or material map",
    ("RAY", "SUM"): "average of several slices",
    ("VOLUME", "RENDER"): "rendering",
    ("SURFACE", "RENDER"): "rendering",
    ("STD", "DEVIATION"): "computed from several images",
}
PARTS = ("MINIP", "MIP", "LOCALIZER", "TOPOGRAM", "AVERAGE", "SUBTRACT")  # of words run together: "THICKMIP"
OF_PICTURES = {"summary or report page", "dose page"}  # what an ultrasound can be of these
NO_SLICE = {  # of any modality; the others are slices too, of other values: a map, a difference, an average
    *("localizer", "maximum intensity projection", "minimum intensity projection", "projection", "rendering"),
    *("curved reformation", "summary or report page", "dose page", "screen capture"),
}

# Volume Based Calculation Technique (0008,9207), PS3.3 C.8.16.2.1.3: what is no plain slice. MPR is one, resampled.
TECHNIQUES = {
    "MAX_IP": "maximum intensity projection",
    "MIN_IP": "minimum intensity projection",
    "VOLUME_RENDER": "rendering",
    "SURFACE_RENDER": "rendering",
    "CURVED_MPR": "curved reformation",
    "MIXED": "mixture of slices and other images",
}
# Volumetric Properties (0008,9206), PS3.3 C.8.16.2.1.2: what does not hold the values of a volume
PROPERTIES = {
    "SAMPLED": "projection (VolumetricProperties is SAMPLED)",
    "DISTORTED": "curved reformation (VolumetricProperties is DISTORTED)",
}


def why_no_slice(frame: Frame, *, reconstructed: bool = True) -> str | None:
    """None, or what an image (or frame) is instead of a slice, and which attribute says so.

    reconstructed   it must be a slice of a CT as it was reconstructed; else any that lies in its place
    """
    if attributes.text(frame.header, "QualityControlImage").upper() == "YES":
        return "phantom for quality control (QualityControlImage is YES)"
    for keyword in ("FrameType", "ImageType") if frame.number is not None else ("ImageType",):
        values = frame.texts(keyword)
        meaning = meaning_of(values)
        if meaning is None and reconstructed and len(values) > 1 and values[1].upper() == "SECONDARY":
            meaning = SECONDARY
        if not reconstructed and meaning not in NO_SLICE:
            meaning = None
        if meaning is not None:
            return f"{meaning} ({keyword} is {attributes.shown(values)})"
        if values and keyword == "FrameType":
            break  # the image's own type sums up all of its frames
    technique = frame.text("VolumeBasedCalculationTechnique").upper()
    if technique in TECHNIQUES:
        return f"{TECHNIQUES[technique]} (VolumeBasedCalculationTechnique is {technique})"
    return PROPERTIES.get(frame.text("VolumetricProperties").upper())


def why_no_picture(header: Dataset) -> str | None:
    """None, or what an ultrasound image is instead of a picture of tissue, and which attribute says so."""
    if attributes.text(header, "QualityControlImage").upper() == "YES":
        return "phantom for quality control (QualityControlImage is YES)"
    values = attributes.texts(header, "ImageType")
    meaning = meaning_of(values[2:])  # the first two are the Standard's own; the body part is no word of these
    return f"{meaning} (ImageType is {attributes.shown(values)})" if meaning in OF_PICTURES else None


def meaning_of(values: list[str]) -> str | None:
    """What the words of an Image Type say that the image is; None when no word says anything."""
    for value in values:
        value = re.sub(r"LOW[ _-]DOSE", "LOWDOSE", value.upper())  # how it was scanned, not what it shows
        words = [word for word in re.split(r"[^A-Z]+", value) if word]
        for pair in pairwise(words):
            if pair in JOINED:
                return JOINED[pair]
        for word in words:
            meaning = WORDS.get(word) or next((WORDS[part] for part in PARTS if part in word), None)
            if meaning is not None:
                return meaning
    return None
