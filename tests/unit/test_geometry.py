"""What is fit for inference, what is set aside, what is refused; each in words."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
)

from dicom_sr.findings import Algorithm
from models import catalogue
from models.pipeline import Card, Requirements
from pacs_node.assemble.geometry import judge
from pacs_node.records import Verdict
from tests.factories import ct_series, enhanced_ct, header, us_image

CARDS = catalogue().cards  # of the node's own pipelines
SMALL = {"shape": (10, 4, 6)}
LOCALIZER = "localizer (ImageType is 'ORIGINAL\\PRIMARY\\LOCALIZER')"


def series(**knobs: Any) -> list[Dataset]:
    return [header(image) for image in ct_series(**{**SMALL, **knobs})]


def verdict(headers: Sequence[Dataset], min_slices: int = 8) -> Verdict:
    return judge(headers, CARDS, min_slices=min_slices)


def uids(headers: Sequence[Dataset]) -> tuple[str, ...]:
    return tuple(str(h.SOPInstanceUID) for h in headers)


@pytest.mark.parametrize("orientation", ["HFS", "FFS", "HFP", "oblique"])
@pytest.mark.parametrize("descending", [False, True])
def test_an_axial_volume_is_used_in_ascending_order_along_its_normal(orientation: str, descending: bool) -> None:
    headers = series(orientation=orientation, descending=descending, shuffled_instance_numbers=True)
    result = verdict(headers)
    assert result.fit, result.reason
    assert result.reason == "10 axial slices, 2.5 mm apart"
    assert result.use == uids(headers[::-1] if descending else headers)
    assert result.set_aside == {}
    assert result.facts["spacing_mm"] == 2.5
    assert result.facts["tilt_degrees"] == 0


@pytest.mark.parametrize("orientation", ["sagittal", "coronal"])
def test_other_planes_are_refused(orientation: str) -> None:
    assert verdict(series(orientation=orientation)).reason == f"{orientation} slices; axial ones are needed"


def test_a_plane_near_none_is_oblique() -> None:
    cosines = (1, 0, 0, 0, float(np.cos(0.8)), float(np.sin(0.8)))
    assert verdict(series(orientation=cosines)).reason == "oblique slices; axial ones are needed"


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"gantry_tilt_degrees": 12}, "gantry tilt of 12.0 degrees: the slices are shifted against each other"),
        ({"gantry_tilt_degrees": -1}, "gantry tilt of 1.0 degrees: the slices are shifted against each other"),
        ({"missing": [5]}, "1 slice missing between -290.0 and -285.0 mm"),
        (
            {"shape": (20, 4, 6), "missing": [5, 6, 17]},
            "3 slices missing between -290.0 and -282.5 mm, -260.0 and -255.0 mm",
        ),
        ({"missing": [0, 1, 2]}, "7 usable slices, at least 8 are needed"),
        (
            {"shape": (7, 4, 6), "localizer": True},
            f"7 usable slices, at least 8 are needed; 1 set aside: {LOCALIZER}",
        ),
        (
            {"duplicate_position": range(10)},
            "10 slices more than the 10 positions: several phases or reconstructions in one series",
        ),
        ({"Modality": "MR"}, "Modality is MR; only CT and US can be judged"),
        ({"ImagePositionPatient": None}, "no usable images; 10 set aside: ImagePositionPatient is missing"),
        ({"FrameOfReferenceUID": None}, "no usable images; 10 set aside: FrameOfReferenceUID is missing"),
        ({"RescaleSlope": None}, "no usable images; 10 set aside: RescaleSlope is missing"),
        ({"Rows": None}, "no usable images; 10 set aside: Rows is missing"),
        (
            {"PixelSpacing": ["0", "1"]},
            "no usable images; 10 set aside: PixelSpacing is 0 x 1 mm; it must be above zero",
        ),
        ({"PixelSpacing": "1"}, "no usable images; 10 set aside: PixelSpacing is '1'; 2 numbers are needed"),
        (
            {"RescaleType": "Z_EFF"},
            "no usable images; 10 set aside: pixel values are Z_EFF, not Hounsfield units (RescaleType)",
        ),
        ({"SamplesPerPixel": 3}, "no usable images; 10 set aside: is in colour (SamplesPerPixel is not 1)"),
        (
            {"orientation": (1, 0, 0, 0.5, 1, 0)},
            "no usable images; 10 set aside: ImageOrientationPatient is not two perpendicular unit vectors",
        ),
        (
            {"SOPClassUID": SecondaryCaptureImageStorage},
            "no usable images; 10 set aside: Secondary Capture Image Storage is not a CT image (SOPClassUID)",
        ),
    ],
)
def test_what_is_refused_and_why(knobs: dict[str, Any], reason: str) -> None:
    result = verdict(series(**knobs))
    assert result.reason == reason
    assert not result.fit
    assert result.use == ()


def test_a_slice_that_leaves_the_line_is_refused() -> None:
    headers = series()
    headers[7].ImagePositionPatient[0] += 12
    assert verdict(headers).reason == "slices are shifted sideways by up to 12.0 mm"


def test_irregular_spacing_is_refused_and_rounded_positions_are_not() -> None:
    headers = series()
    headers[7].ImagePositionPatient[2] += 0.4
    assert verdict(headers).reason == "irregular spacing: slices are 2.1 to 2.9 mm apart"

    headers = series(spacing_mm=(0.625, 0.75, 0.75))
    for image in headers:
        image.ImagePositionPatient[2] = f"{float(image.ImagePositionPatient[2]):.1f}"
    assert verdict(headers).fit


def aside(headers: list[Dataset], reason: str, count: int = 1) -> Verdict:
    """The verdict, after checking that exactly the last `count` images are set aside for this reason."""
    result = verdict(headers)
    assert result.fit, result.reason
    assert result.set_aside == dict.fromkeys(uids(headers[-count:]), reason)
    assert result.use == uids(headers[:-count])
    return result


def test_a_localizer_is_set_aside() -> None:
    result = aside(series(localizer=True), LOCALIZER)
    assert result.reason == f"10 axial slices, 2.5 mm apart; 1 set aside: {LOCALIZER}"


def test_a_repeated_image_is_set_aside() -> None:
    headers = series(duplicate_position=[3])
    result = verdict(headers)
    assert result.fit
    assert list(result.set_aside.values()) == ["another image has the same position"]
    assert set(result.set_aside) < set(uids([headers[3], headers[-1]]))


def test_of_two_images_at_one_place_the_larger_acquisition_stays() -> None:
    headers = series(duplicate_position=[3])
    for twin in headers[-1:]:
        twin.AcquisitionNumber = 2
    aside(headers, "another image has the same position")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"FrameOfReferenceUID": "1.2.3"}, "another frame of reference (FrameOfReferenceUID)"),
        ({"Rows": 8}, "another size (Rows, Columns): 8 x 6 pixels, not 4 x 6"),
        ({"PixelSpacing": ["0.5", "0.5"]}, "another pixel spacing (PixelSpacing): 0.5 x 0.5 mm, not 0.75 x 0.75"),
        (
            {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
            "another orientation (ImageOrientationPatient): coronal, not axial",
        ),
        ({"ImageOrientationPatient": [0, 1, 0, -1, 0, 0]}, "another orientation (ImageOrientationPatient): turned"),
        (
            {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]},
            "maximum intensity projection (ImageType is 'DERIVED\\SECONDARY\\AXIAL\\MIP')",
        ),
        ({"Modality": "SR"}, "Modality is SR, not CT"),
        (
            {"NumberOfFrames": 3},
            "PerFrameFunctionalGroupsSequence is missing: nothing says where the 3 frames lie (NumberOfFrames)",
        ),
    ],
)
def test_an_image_that_does_not_belong_is_set_aside(change: dict[str, Any], reason: str) -> None:
    headers = series()
    for keyword, value in change.items():
        setattr(headers[-1], keyword, value)
    aside(headers, reason)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("colours", ["PALETTE COLOR", "palette color ", "RGB", "YBR_FULL", "MONOCHROME1", "", None])
def test_values_that_are_places_in_a_table_of_colours_are_no_hounsfield_units(modality: str, colours: str) -> None:
    """One sample for each pixel, and still a colour: a map of perfusion, under the SOP Class of slices."""
    headers = series() if modality == "CT" else slices_of(modality)
    headers[-1].PhotometricInterpretation = colours
    result = judge(headers, [*CARDS, card(modality, ANY_VOLUME)], min_slices=8)
    assert result.fit
    if not colours or colours.startswith("MONOCHROME"):
        assert result.set_aside == {}, "nothing speaks against it"
    else:
        (why,) = result.set_aside.values()
        assert why == f"is in colour (PhotometricInterpretation is '{colours.strip().upper()}')"


def of_the_same_study(headers: list[Dataset]) -> list[Dataset]:
    for image in headers:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(image, keyword, series()[0][keyword].value)
    return headers


def test_two_volumes_in_one_series_are_refused() -> None:
    headers = series() + of_the_same_study(series(name="other", PixelSpacing=["0.5", "0.5"]))
    result = verdict(headers)
    assert not result.fit
    assert result.reason.startswith(
        "2 volumes in one series: 10 of 20 slices have another pixel spacing (PixelSpacing): "
    )


def test_a_smaller_axial_volume_is_preferred_to_a_larger_coronal_one() -> None:
    result = verdict(series() + of_the_same_study(series(name="reformatted", shape=(12, 4, 6), orientation="coronal")))
    assert result.fit
    assert result.use == uids(series())
    assert len(result.set_aside) == 12


def test_a_file_that_cannot_be_read_voids_no_other() -> None:
    """All that is known of it is what the listener knew: not even whose it is."""
    headers = series()
    known = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(known, keyword, headers[-1][keyword].value)
    aside([*headers[:-1], known], "Modality is not given, not CT")


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "IssuerOfPatientID"])
@pytest.mark.parametrize("build", [lambda: series(), lambda: [clinic(number=1), clinic(number=2)]])
def test_images_of_two_patients_or_studies_are_refused(keyword: str, build: Callable[[], list[Dataset]]) -> None:
    headers = build()
    for image in headers:
        image.IssuerOfPatientID = "HOSPITAL"
    setattr(headers[-1], keyword, f"{headers[0][keyword].value} ")  # padding says nothing, PS3.5 6.2
    assert verdict(headers).fit
    setattr(headers[-1], keyword, "1.2.3")
    assert not verdict(headers).fit
    assert f"2 different values of {keyword}" in verdict(headers).reason
    assert "1.2.3" not in verdict(headers).reason


TWO_PEOPLE = [  # Patient ID, keyword, what one says, what the other says; are they two?
    ("TEST-1", "PatientBirthDate", "19600101", "19700101", True),
    ("TEST-1", "PatientBirthDate", "19600101", "1960.01.01", False),
    ("TEST-1", "PatientBirthDate", "19600101", "00000000", False),
    ("TEST-1", "PatientBirthDate", "19600101", None, False),
    ("TEST-1", "PatientSex", "F", "M", True),
    ("TEST-1", "PatientSex", "F", "female", False),
    ("TEST-1", "PatientSex", "F", "O", False),
    ("TEST-1", "PatientSex", "F", "", False),
    ("TEST-1", "PatientName", "Doe^Jane", "Married^Jane", False),
    ("", "PatientName", "Doe^Jane", "Roe^Richard", True),
    (None, "PatientName", "Doe^Jane", "Roe^Richard", True),
    ("", "PatientName", "Doe^Jane", "DOE^JANE^^^", False),
    ("", "PatientName", "Doe^Jane", "Doe^Jane=\u5c71\u7530^\u592a\u90ce", False),
    ("", "PatientName", "Doe^Jane", "", False),
    ("", "PatientBirthDate", "19600101", "19700101", True),
]


@pytest.mark.parametrize(("number", "keyword", "one", "other", "two"), TWO_PEOPLE)
@pytest.mark.parametrize("build", [lambda: series(), lambda: [clinic(number=1), clinic(number=2)]])
def test_two_people_under_one_number_or_none_are_refused(
    build: Callable[[], list[Dataset]], number: str | None, keyword: str, one: str, other: str | None, two: bool
) -> None:
    headers = build()
    for image in headers:
        image.SpecificCharacterSet = "ISO_IR 192"
        image.PatientID = number
        setattr(image, keyword, one)
    setattr(headers[-1], keyword, other)
    result = verdict(headers)
    assert result.fit != two, result.reason
    assert (f"2 different values of {keyword}; results belong to one patient" in result.reason) == two
    for name in ("Roe", "19700101", "Married"):
        assert name not in result.reason


def test_an_image_that_does_not_say_the_issuer_may_be_of_any() -> None:
    headers = series()
    headers[3].IssuerOfPatientID = "HOSPITAL"
    assert verdict(headers).fit


def test_nothing_at_all() -> None:
    assert verdict([]) == Verdict(False, "no images")


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_numbers_that_are_none_are_a_reason_not_a_crash(keyword: str) -> None:
    headers = series()
    for value in (b"north ", b"nan ", b"1\\2\\3\\4 "):
        tag = headers[-1][keyword].tag
        headers[-1][tag] = RawDataElement(tag, "DS", len(value), value, 0, False, True)
        result = verdict(headers)
        assert result.fit
        assert result.set_aside.keys() == {headers[-1].SOPInstanceUID}
        assert f"{keyword} is " in result.reason


@pytest.mark.parametrize("keyword", ["Rows", "BitsAllocated", "SamplesPerPixel"])
def test_bytes_that_do_not_fit_their_vr_are_a_reason_not_a_crash(keyword: str) -> None:
    for headers in (series(), [clinic(number=1), clinic(number=2)]):
        tag = headers[-1][keyword].tag
        headers[-1][tag] = RawDataElement(tag, "US", 3, b"123", 0, False, True)
        result = verdict(headers)
        assert result.fit
        if keyword != "SamplesPerPixel" or headers[0].Modality == "CT":
            assert result.set_aside == {headers[-1].SOPInstanceUID: f"{keyword} cannot be read"}


# One multi-frame image ---------------------------------------------------------------------------------------------


def enhanced(headers: Sequence[Dataset]) -> Dataset:
    """The same slices as the frames of one Enhanced CT image, PS3.3 A.38 as far as geometry goes."""

    def item(source: Dataset, *keywords: str) -> list[Dataset]:
        group = Dataset()
        for keyword in keywords:
            setattr(group, keyword, copy.deepcopy(source.get(keyword)))
        return [group]

    image = Dataset()
    for keyword in ("Modality", "Rows", "Columns", "BitsAllocated", "FrameOfReferenceUID", "ImageType"):
        setattr(image, keyword, headers[0].get(keyword))
    image.SOPClassUID, image.SOPInstanceUID = EnhancedCTImageStorage, "1.2.3.4"
    image.NumberOfFrames = len(headers)
    shared = Dataset()
    shared.PlaneOrientationSequence = item(headers[0], "ImageOrientationPatient")
    shared.PixelMeasuresSequence = item(headers[0], "PixelSpacing")
    shared.PixelValueTransformationSequence = item(headers[0], "RescaleSlope", "RescaleIntercept")
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for source in headers:
        frame = Dataset()
        frame.PlanePositionSequence = item(source, "ImagePositionPatient")
        frame.CTImageFrameTypeSequence = item(Dataset(), "FrameType")
        frame.CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    return image


def test_one_enhanced_image_is_a_volume() -> None:
    result = verdict([enhanced(series())])
    assert (result.fit, result.use, result.reason) == (True, ("1.2.3.4",), "10 axial slices, 2.5 mm apart")


@pytest.mark.parametrize("presented", ["COLOR", "TRUE_COLOR", "MONOCHROME", ""])
@pytest.mark.parametrize("shared", [False, True])
def test_a_frame_in_colour_is_no_slice(presented: str, shared: bool) -> None:
    """A supplemental palette: values from some one on are colours, PS3.3 C.7.6.19."""
    image = enhanced_ct(ct_series(**SMALL), shared=shared)
    groups = image.SharedFunctionalGroupsSequence if shared else image.PerFrameFunctionalGroupsSequence
    for group in groups:
        group.CTImageFrameTypeSequence[0].PixelPresentation = presented
    reason = verdict([image]).reason
    assert verdict([image]).fit == (presented in ("MONOCHROME", ""))
    assert f"frame 1: is in colour (PixelPresentation is {presented})" in reason or verdict([image]).fit


def test_an_enhanced_image_is_judged_frame_by_frame() -> None:
    assert "gantry tilt of 12.0" in verdict([enhanced(series(gantry_tilt_degrees=12))]).reason
    assert "1 slice missing" in verdict([enhanced(series(missing=[4]))]).reason
    assert "several phases" in verdict([enhanced(series(duplicate_position=[4]))]).reason
    scout = enhanced(series())
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.PerFrameFunctionalGroupsSequence[2].CTImageFrameTypeSequence[0].FrameType = kind
    reason = "frame 3: localizer (FrameType is 'ORIGINAL\\PRIMARY\\LOCALIZER')"
    assert verdict([scout]).reason == f"no usable images; 1 set aside: {reason}"
    torn = enhanced(series())
    turned = Dataset()
    turned.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    torn.PerFrameFunctionalGroupsSequence[2].PlaneOrientationSequence = [turned]
    assert verdict([torn]).reason.startswith("the frames of one image do not belong together: another orientation")


# Properties --------------------------------------------------------------------------------------------------------


@cache
def plain() -> list[Dataset]:
    return series(localizer=True, duplicate_position=[3])


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(12)), st.randoms())
def test_the_order_of_arrival_and_the_instance_numbers_do_not_matter(order: list[int], dice: Any) -> None:
    headers = [copy.copy(plain()[k]) for k in order]
    for image in headers:
        image.InstanceNumber = dice.randrange(1000)
    assert verdict(headers) == verdict(plain())


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 10), st.tuples(*[st.floats(-500, 500)] * 3), st.booleans())
def test_any_even_axial_volume_is_fit(spacing_mm: float, origin: tuple[float, float, float], descending: bool) -> None:
    headers = series(spacing_mm=(spacing_mm, 0.7, 0.7), origin_lps_mm=origin, descending=descending)
    result = verdict(headers)
    assert result.fit, result.reason
    assert result.facts["spacing_mm"] == pytest.approx(spacing_mm, abs=1e-3)
    assert result.use == uids(headers[::-1] if descending else headers)


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(1, 8), min_size=1, max_size=2))
def test_any_missing_slice_is_noticed(missing: set[int]) -> None:
    result = verdict(series(missing=sorted(missing)))
    assert not result.fit
    assert result.reason.startswith(f"{len(missing)} slice")
    assert result.facts["missing_positions"] == len(missing)


@settings(max_examples=15, deadline=None)
@given(st.floats(-30, 30))
def test_tilt_is_measured(degrees: float) -> None:
    result = verdict(series(gantry_tilt_degrees=degrees))
    assert result.facts["tilt_degrees"] == pytest.approx(abs(degrees), abs=0.02)
    assert result.fit == (result.facts["tilt_degrees"] <= 0.5)


def damage(image: Dataset, keyword: str) -> None:
    del image[keyword]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from([e.keyword for e in plain()[0]])), max_size=6))
def test_every_image_is_used_or_set_aside_whatever_is_missing(damages: list[tuple[int, str]]) -> None:
    headers = [copy.deepcopy(image) for image in plain()]
    for index, keyword in damages:
        if keyword in headers[index] and keyword != "SOPInstanceUID":
            damage(headers[index], keyword)
    result = verdict(headers)
    assert result.reason
    if result.fit:
        assert sorted([*result.use, *result.set_aside]) == sorted(uids(headers))


# Ultrasound --------------------------------------------------------------------------------------------------------


def clinic(*, number: int, time: str = "1015", **knobs: Any) -> Dataset:
    return header(us_image(number=number, shape=(8, 8), ContentTime=time, **knobs))


def test_ultrasound_images_are_used_in_order_of_time() -> None:
    first, second, clip = (
        clinic(number=9, time="0900"),
        clinic(number=1, time="1000"),
        clinic(number=2, frames=3, time="11"),
    )
    result = verdict([clip, second, first])
    assert (result.fit, result.reason) == (True, "2 images and 1 clip of 3 frames")
    assert result.use == uids([first, second, clip])


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: [clinic(number=1)], "1 image"),
        (lambda: [clinic(number=1, spacing_mm=None)], "1 image; 1 without calibration: sizes in pixels"),
        (lambda: [clinic(number=1, calibrated_by="pixel_spacing")], "1 image"),
        (lambda: [clinic(number=1, SOPClassUID="1.2.840.10008.5.1.4.1.1.6")], "1 image"),
        (
            lambda: [clinic(number=1), clinic(number=2, Rows=None)],
            "1 image; 1 set aside: Rows is missing",
        ),
    ],
)
def test_usable_ultrasound(build: Callable[[], list[Dataset]], reason: str) -> None:
    result = verdict(build())
    assert (result.fit, result.reason) == (True, reason)


def test_ultrasound_without_a_usable_image_is_refused() -> None:
    result = verdict([clinic(number=1, Rows=None), clinic(number=2, Rows=None), clinic(number=3, Modality="SR")])
    assert not result.fit
    assert result.reason == ("no usable images; 3 set aside: Rows is missing (2), Modality is SR, not US (1)")


# What pipelines require ---------------------------------------------------------------------------------------------


def card(modality: str = "CT", requires: Requirements | None = None, **changes: Any) -> Card:
    said = Card("t", frozenset({modality}), Algorithm("t", "1"), "Research use only, not for diagnostic use.")
    return replace(said, requires=requires or Requirements(), **changes)


ANY_VOLUME = Requirements(volume=True)


def slices_of(modality: str, **knobs: Any) -> list[Dataset]:
    """As `series`, of a modality whose values nothing rescales."""
    images = series(**knobs)
    for image in images:
        image.Modality = modality
        image.SOPClassUID = {"MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}[modality]
        image.ImageType = ["DERIVED", "SECONDARY", "ADC"]  # a map is a volume, too
        del image.RescaleSlope, image.RescaleIntercept, image.RescaleType
    return images


@pytest.mark.parametrize(
    ("knobs", "asked", "refused"),
    [
        ({"orientation": "coronal"}, {"axial": True}, "coronal slices; axial ones are needed"),
        ({"gantry_tilt_degrees": 12.0}, {"max_tilt_deg": 5.0}, "gantry tilt of 12.0 degrees"),
        ({}, {"min_slices": 11}, "10 usable slices, at least 11 are needed"),
    ],
)
def test_what_one_pipeline_requires_is_no_law_for_another(
    knobs: dict[str, Any], asked: dict[str, Any], refused: str
) -> None:
    headers = series(**knobs)
    strict = judge(headers, [card(requires=Requirements(volume=True, hounsfield=True, **asked))])
    assert not strict.fit
    assert refused in strict.reason
    loose = judge(headers, [card(requires=Requirements(volume=True, hounsfield=True))])
    assert loose.fit, loose.reason
    assert re.fullmatch(r"10 slices, 2\.\d+ mm apart", loose.reason)
    assert judge(headers, [card(requires=Requirements(volume=True, min_slices=99))], min_slices=5).fit == loose.fit


def test_a_missing_slice_is_refused_whoever_asks_for_a_volume() -> None:
    headers = series()
    del headers[4]
    assert "1 slice missing" in judge(headers, [card(requires=ANY_VOLUME)]).reason
    assert judge(headers, [card()]).reason == "9 images", "a pipeline of single images"


@pytest.mark.parametrize("modality", ["MR", "PT"])
def test_slices_of_other_modalities_are_judged_when_a_pipeline_takes_them(modality: str) -> None:
    headers = slices_of(modality, orientation="sagittal")
    assert judge(headers, CARDS).reason == f"Modality is {modality}; only CT and US can be judged"
    result = judge(headers, [*CARDS, card(modality, ANY_VOLUME)])
    assert (result.fit, result.reason) == (True, "10 slices, 2.5 mm apart")
    assert result.facts["orientation"] == "sagittal"
    assert "a CT image" not in str(result.set_aside)


def test_what_is_no_slice_of_an_mr_is_set_aside() -> None:
    headers = slices_of("MR")
    headers[0].ImageType = ["DERIVED", "SECONDARY", "MIP"]
    headers[1].SOPClassUID = SecondaryCaptureImageStorage
    result = judge(headers, [card("MR", ANY_VOLUME)])
    assert set(result.set_aside.values()) == {
        "maximum intensity projection (ImageType is 'DERIVED\\SECONDARY\\MIP')",
        "Secondary Capture Image Storage is not an MR image (SOPClassUID)",
    }


def test_images_outside_a_card_are_set_aside_and_a_series_of_them_refused() -> None:
    chest = card(body_part=frozenset({"Chest"}), requires=ANY_VOLUME)
    headers = series(BodyPartExamined="FOOT")
    result = judge(headers, [chest])
    assert (result.fit, len(result.set_aside)) == (False, 10)
    assert result.reason == "no usable images; 10 set aside: BodyPartExamined is FOOT, t takes Chest"
    for header_ in headers[:9]:
        header_.BodyPartExamined = "chest"
    assert judge(headers, [chest]).reason.startswith("9 slices")
    del headers[9].BodyPartExamined
    assert judge(headers, [chest]).reason.startswith("10 slices"), "nothing speaks against it"
    enhanced_only = card(sop_classes=frozenset({EnhancedCTImageStorage}), requires=ANY_VOLUME)
    assert "CT Image Storage is none that t takes (SOPClassUID)" in judge(headers, [enhanced_only]).reason


def radiograph(number: int = 1, **attributes: Any) -> Dataset:
    image = clinic(number=number)
    image.Modality, image.SOPClassUID = "DX", DigitalXRayImageStorageForPresentation
    for keyword in ("SequenceOfUltrasoundRegions", "PixelSpacing"):
        image.pop(keyword, None)
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


AT_DETECTOR = "sizes are those of the shadow on the detector, larger than in the patient"


@pytest.mark.parametrize(
    ("attributes", "remark"),
    [
        ({"ImagerPixelSpacing": [0.15, 0.15]}, f"{AT_DETECTOR} (there is ImagerPixelSpacing only)"),
        (
            {"PixelSpacing": [0.15, 0.15], "ImagerPixelSpacing": [0.15, 0.15]},
            f"{AT_DETECTOR} (PixelSpacing is ImagerPixelSpacing)",
        ),
        ({"PixelSpacing": [0.15, 0.15]}, f"{AT_DETECTOR} (nothing says how PixelSpacing was calibrated)"),
        ({"PixelSpacing": [0.13, 0.13], "ImagerPixelSpacing": [0.15, 0.15]}, None),
        ({"PixelSpacing": [0.15, 0.15], "PixelSpacingCalibrationType": "FIDUCIAL"}, None),
    ],
)
def test_millimetres_of_a_radiograph_are_those_of_its_detector_unless_it_says_otherwise(
    attributes: dict[str, Any], remark: str | None
) -> None:
    result = judge([radiograph(**attributes)], [card("DX")])
    assert result.fit
    assert result.facts["uncalibrated"] == 0
    assert result.remarks == ((remark,) if remark else ())


def test_a_radiograph_without_a_size_is_refused_where_one_is_required() -> None:
    images = [radiograph(1), radiograph(2, ImagerPixelSpacing=[0.15, 0.15])]
    assert judge(images, [card("DX")]).reason.startswith("2 images; 1 without calibration: sizes in pixels")
    result = judge(images, [card("DX", Requirements(calibrated=True))])
    assert result.use == (str(images[1].SOPInstanceUID),)
    assert "Modality is DX; t needs a volume" in judge(images, [card("DX", ANY_VOLUME)]).reason
