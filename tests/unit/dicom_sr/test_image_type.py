"""What Image Type says in the words of many vendors, from their conformance statements and public files."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from dicom_sr.frames import ALSO_IN, FRAME_TYPE, Frame
from dicom_sr.image_type import why_no_picture, why_no_slice

SLICES = [
    r"ORIGINAL\PRIMARY\AXIAL",
    r"ORIGINAL\PRIMARY\AXIAL\CT_SOM5 SPI",
    r"ORIGINAL\PRIMARY\AXIAL\CT_SOM7 SPI DUAL",
    r"ORIGINAL\PRIMARY\AXIAL\CT_SOM5 SEQ",
    r"ORIGINAL\PRIMARY\AXIAL\HELIX",
    r"DERIVED\PRIMARY\AXIAL",
    r"DERIVED\PRIMARY\REFORMATTED\MPR",
    r"ORIGINAL\PRIMARY\VOLUME\NONE",
    r"ORIGINAL\PRIMARY\AXIAL\CHEST_TO_PELVIS",
    r"ORIGINAL\PRIMARY\AXIAL\LOW_DOSE",
    "",
]
OTHERS = {
    "localizer": [r"ORIGINAL\PRIMARY\LOCALIZER", r"ORIGINAL\PRIMARY\AXIAL\CT_SOM5 TOP", r"ORIGINAL\PRIMARY\SCOUT"],
    "maximum intensity projection": [
        r"DERIVED\PRIMARY\AXIAL\CT_SOM5 MIP",
        r"DERIVED\SECONDARY\AXIAL\MIP THICK",
        r"DERIVED\SECONDARY\REFORMATTED\MIP",
        r"DERIVED\SECONDARY\AXIAL\CT_SOM8 MIP",
        r"DERIVED\PRIMARY\AXIAL\MAXIP",
        r"DERIVED\PRIMARY\VOLUME\MAX_IP",
        r"DERIVED\PRIMARY\AXIAL\THICKMIP",
        r"DERIVED\PRIMARY\AXIAL\MIP10MM",
        r"derived\primary\axial\mip",
    ],
    "minimum intensity projection": [
        r"DERIVED\SECONDARY\MINIP THICK",
        r"DERIVED\PRIMARY\VOLUME\MIN_IP",
        r"DERIVED\PRIMARY\AXIAL\MinIP",
        r"DERIVED\PRIMARY\AXIAL\MIN-MIP",
    ],
    "average of several slices": [
        r"DERIVED\SECONDARY\REFORMATTED\AVERAGE",
        r"DERIVED\PRIMARY\AXIAL\CT_SOM5 AVG",
        r"DERIVED\PRIMARY\VOLUME\MEAN",
        r"DERIVED\PRIMARY\AXIAL\RAY-SUM",
        r"DERIVED\PRIMARY\AXIAL\AVERAGE_IP",
    ],
    "projection": [r"DERIVED\SECONDARY\PROJECTION IMAGE\CSA", r"DERIVED\PRIMARY\PROJECTION"],
    "thick reformatted slice": [r"DERIVED\SECONDARY\MPR THICK", r"DERIVED\PRIMARY\REFORMATTED\THICK_MPR"],
    "rendering": [r"DERIVED\SECONDARY\VRT", r"DERIVED\SECONDARY\SSD", r"DERIVED\PRIMARY\VOLUME\VOLUME_RENDER"],
    "subtraction": [r"DERIVED\PRIMARY\AXIAL\SUBTRACTION", r"DERIVED\PRIMARY\AXIAL\CT_SOM7 SUB"],
    "dose page": [r"DERIVED\SECONDARY\OTHER\DOSE_INFO", r"ORIGINAL\PRIMARY\DOSE"],
    "summary or report page": [r"DERIVED\SECONDARY\SUMMARY", r"ORIGINAL\PRIMARY\AXIAL\CT_SOM5 PROT"],
    "screen capture": [r"DERIVED\SECONDARY\SCREEN SAVE", r"DERIVED\SECONDARY\SCREENSAVE"],
    "functional or material map": [r"DERIVED\PRIMARY\AXIAL\CT_SOM5 CBF", r"DERIVED\PRIMARY\AXIAL\GSI IODINE"],
    "made after the examination of other images": [r"DERIVED\SECONDARY\AXIAL", r"DERIVED\SECONDARY\REFORMATTED"],
}


def image(**attributes: object) -> Dataset:
    header = Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    return header


@pytest.mark.parametrize("words", SLICES)
def test_what_is_a_slice(words: str) -> None:
    assert why_no_slice(Frame(image(ImageType=words.split("\\") if words else None), None)) is None


@pytest.mark.parametrize(("meaning", "words"), [(meaning, each) for meaning, every in OTHERS.items() for each in every])
def test_what_is_none_and_what_it_is(meaning: str, words: str) -> None:
    why = why_no_slice(Frame(image(ImageType=words.split("\\")), None))
    assert why is not None
    assert why.startswith(f"{meaning} (ImageType is '")


@pytest.mark.parametrize("frame_type", [each for every in OTHERS.values() for each in every])
def test_the_type_of_a_frame_counts_as_that_of_an_image(frame_type: str) -> None:
    group, own = image(FrameType=frame_type.split("\\")), Dataset()
    own.CTImageFrameTypeSequence = [group]
    why = why_no_slice(Frame(image(ImageType=["MIXED", "PRIMARY", "VOLUME", "MIXED"]), 3, (own,)))
    assert why is not None
    assert "FrameType is" in why


@pytest.mark.parametrize("macro", [FRAME_TYPE, *ALSO_IN[FRAME_TYPE]])
@pytest.mark.parametrize("shared", [False, True])
def test_a_frame_of_every_modality_says_its_type_in_a_sequence_of_its_own(macro: str, shared: bool) -> None:
    layers = Dataset(), Dataset()
    for said in (
        {"FrameType": ["DERIVED", "PRIMARY", "PROJECTION", "MIP"]},
        {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "VolumeBasedCalculationTechnique": "MAX_IP"},
        {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "VolumetricProperties": "DISTORTED"},
    ):
        setattr(layers[shared], macro, [image(**said)])
        frame = Frame(image(ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "MIXED"]), 2, layers)
        for reconstructed in (False, True):
            assert why_no_slice(frame, reconstructed=reconstructed) is not None


@pytest.mark.parametrize(
    ("keyword", "value", "meaning"),
    [
        ("VolumeBasedCalculationTechnique", "MAX_IP", "maximum intensity projection"),
        ("VolumeBasedCalculationTechnique", "MIN_IP", "minimum intensity projection"),
        ("VolumeBasedCalculationTechnique", "VOLUME_RENDER", "rendering"),
        ("VolumeBasedCalculationTechnique", "CURVED_MPR", "curved reformation"),
        ("VolumetricProperties", "SAMPLED", "projection"),
        ("VolumetricProperties", "DISTORTED", "curved reformation"),
        ("QualityControlImage", "YES", "phantom for quality control"),
    ],
)
def test_what_other_attributes_say(keyword: str, value: str, meaning: str) -> None:
    plain = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    why = why_no_slice(Frame(image(ImageType=plain, **{keyword: value}), None))
    assert why is not None
    assert why.startswith(meaning)
    assert keyword in why
    own = Dataset()
    own.CTImageFrameTypeSequence = [
        image(FrameType=plain, **({} if keyword == "QualityControlImage" else {keyword: value}))
    ]
    top = {"QualityControlImage": value} if keyword == "QualityControlImage" else {}
    assert (why_no_slice(Frame(image(ImageType=plain, **top), 1, (own,))) or "").startswith(meaning)


@pytest.mark.parametrize("value", ["NONE", "MPR", "NO", "VOLUME", ""])
def test_and_what_says_nothing_against_a_slice(value: str) -> None:
    header = image(ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], VolumeBasedCalculationTechnique=value)
    header.VolumetricProperties = header.QualityControlImage = value
    assert why_no_slice(Frame(header, None)) is None


def test_an_ultrasound_is_a_picture_unless_it_is_a_page_or_a_phantom() -> None:
    for words in (r"ORIGINAL\PRIMARY\SMALL PARTS\0001", r"DERIVED\SECONDARY\TABLE", r"DERIVED\PRIMARY", ""):
        picture = image(ImageType=words.split("\\") if words else None)
        assert (why_no_picture(picture) is None) == (r"\TABLE" not in words)
    assert "summary or report page" in (why_no_picture(image(ImageType=["DERIVED", "SECONDARY", "REPORT"])) or "")
    assert "quality control" in (why_no_picture(image(QualityControlImage="YES")) or "")
