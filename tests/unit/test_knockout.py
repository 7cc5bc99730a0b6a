"""Every attribute of every kind of image damaged in every way, in one image and in all: what then?

Either the result is right, in mm and HU, or there is a refusal, at receipt or in the verdict, in words that name the
attribute by its keyword. Never a crash, never a refusal after that, never a number that nobody gave. No network here:
what is found is given, and what is written of it is held against what is known of the phantom.

`make knockout` runs them all; the tests draw some of them, the same each time.
"""

from __future__ import annotations

import copy
import os
import random
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from dicom_sr import EncodingError, attributes, check_objects, codes, read
from dicom_sr.derived import Results
from dicom_sr.findings import Finding, Findings
from dicom_sr.forms import ALL_FRAMES, KEY_IMAGES, KEY_OBJECTS, LABEL_MAP, Profile, forms_of
from dicom_sr.not_run import not_run_reports
from dicom_sr.source import headers_by_uid, plane
from models import catalogue
from models.breast_us.pipeline import doubts, usable_regions
from models.pipeline import UnfitInput
from models.pixels import why_not
from models.read import read_ct, read_ultrasound
from pacs_node.assemble.geometry import judge
from pacs_node.errors import ReceiveError
from pacs_node.receive.header import identify
from pacs_node.receive.spool import Announced, _check_against_command
from pacs_node.records import Verdict
from pacs_node.route import Rule, route
from tests.factories import ct_series, enhanced_ct, us_image
from tests.knockout import Element, Place, at, changed, damages, path_of, places, put_together, taken_apart
from tests.results import ct_findings, nodule, us_findings

WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SPACING_MM = (2.5, 0.75, 0.75)
SHAPE = (7, 20, 24)
US_SPACING_MM = (0.25, 0.25)
MIN_SLICES = 5
EVERY = os.environ.get("KNOCKOUT") == "all"
DRAWN = 160  # of each kind of image, where not all are run
FORMS_OF_ONE_IN = 8  # damages, where not all are run: a dozen objects take longer than all the rest
KINDS = ("ct", "enhanced", "enhanced shared", "legacy", "ultrasound", "cine")

# Names that stand for others: what is wrong inside is said of what holds it, or of what it is needed for.
STANDS_FOR = {
    "PixelData": {"PixelData"},
    "PixelMeasuresSequence": {"PixelSpacing"},
    "PlanePositionSequence": {"ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient"},
    "PixelValueTransformationSequence": {"RescaleSlope", "RescaleIntercept"},
    "SharedFunctionalGroupsSequence": {"PixelSpacing", "ImageOrientationPatient", "RescaleSlope"},
    "PerFrameFunctionalGroupsSequence": {"PerFrameFunctionalGroupsSequence"},
}


@dataclass(frozen=True)
class Sound:
    """An unharmed series, and what is known of it."""

    images: tuple[Dataset, ...]
    elements: tuple[tuple[Element, ...], ...]
    hu: np.ndarray | None  # (z, y, x) of a CT
    pixels: np.ndarray | None  # (frames, rows, columns[, 3]) of an ultrasound

    @property
    def is_ct(self) -> bool:
        return self.hu is not None


@cache
def sound(kind: str) -> Sound:
    more: dict[str, Any] = {"IssuerOfPatientID": "HOSPITAL", "PatientAge": "066Y", "PatientWeight": "70.5"}
    if kind in ("ultrasound", "cine"):
        more |= {"PixelSpacing": ["0.25", "0.25"], "BodyPartExamined": "BREAST", "LossyImageCompression": "01"}
        more |= {"LossyImageCompressionRatio": "10", "LossyImageCompressionMethod": "ISO_10918_1"}
        cine = {"frames": 3, "colour": True} if kind == "cine" else {}
        image = us_image(shape=(72, 96), spacing_mm=US_SPACING_MM, **cine, **more)
        pixels = image.pixel_array if kind == "cine" else image.pixel_array[np.newaxis]
        return Sound((image,), (taken_apart(image),), None, pixels)
    more |= {"ContrastBolusAgent": "IOMERON", "QualityControlImage": "NO", "LossyImageCompression": "00"}
    series = ct_series(shape=SHAPE, spacing_mm=SPACING_MM, **more)
    hu = np.stack([image.pixel_array + int(image.RescaleIntercept) for image in series]).astype(np.int16)
    if kind != "ct":
        series = [enhanced_ct(series, legacy=kind == "legacy", shared=kind == "enhanced shared")]
    return Sound(tuple(series), tuple(taken_apart(image) for image in series), hu, None)


@dataclass(frozen=True)
class Damage:
    """One attribute harmed in one way, in these images of a series."""

    kind: str
    place: Place
    name: str
    instead: Element | None
    images: tuple[int, ...]

    @property
    def path(self) -> list[str]:
        return path_of(sound(self.kind).elements[self.images[0]], self.place)

    def __str__(self) -> str:
        where = "all" if len(self.images) > 1 or len(sound(self.kind).images) == 1 else f"image {self.images[0]}"
        return f"{self.kind}: {'.'.join(self.path)} {self.name} in {where}"


def every_damage(kind: str) -> Iterator[Damage]:
    elements = sound(kind).elements
    every = tuple(range(len(elements)))
    for place in places(elements[0]):
        for number, (name, instead) in enumerate(damages(at(elements[0], place))):
            yield Damage(kind, place, name, instead, every)
            if len(every) > 1:
                one = (3, 6)[number % 2]  # in the middle or at the end
                for name_there, there in damages(at(elements[one], place)):
                    if name_there == name:
                        yield Damage(kind, place, name, there, (one,))


@cache
def drawn(kind: str) -> list[Damage]:
    every = list(every_damage(kind))
    return every if EVERY else random.Random(f"knock-out {kind}").sample(every, min(DRAWN, len(every)))


# ------------------------------------------------------------------------------------------------- what the node does


@dataclass
class Outcome:
    """What became of a damaged series. `said`: everything it was told by refusals, warnings and verdicts."""

    said: list[str]
    verdict: Verdict | None = None
    all_forms: bool = True  # whether every form of the results is made, too


def run(damage: Damage, folder: Path) -> Outcome:
    """As the node does it: receive, judge, read, encode, check. Raises AssertionError for what must not be."""
    base = sound(damage.kind)
    outcome = Outcome([], all_forms=EVERY or zlib.crc32(str(damage).encode()) % FORMS_OF_ONE_IN == 0)
    paths: list[Path] = []
    for index, elements in enumerate(base.elements):
        if index in damage.images:
            instead = damage.instead
            if len(damage.images) > 1 and instead is not None:  # its own value, harmed alike
                own = dict(damages(at(elements, damage.place)))
                instead = own.get(damage.name, instead)
            elements = changed(elements, damage.place, instead)
        path = folder / f"{index}.dcm"
        if why := received(base.images[index], put_together(elements), path):
            outcome.said.append(why)
        else:
            paths.append(path)
    if not paths:
        return outcome
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    faults = {
        attributes.text(header, "SOPInstanceUID"): why
        for header, path in zip(headers, paths, strict=True)
        if (why := why_not(path, header))
    }
    verdict = outcome.verdict = judge(headers, catalogue().cards, min_slices=MIN_SLICES, faults=faults)
    outcome.said += [verdict.reason, *verdict.set_aside.values()]
    rules = [Rule("all", {"Modality": ["CT", "US"], "SliceThickness": {"max": 5}}, "lung-nodule", ("pacs",))]
    outcome.said += [why for _, why in route(rules, headers[0]) if why]
    if not verdict.fit:
        not_run(headers, verdict.reason)
        return outcome
    of = {attributes.text(header, "SOPInstanceUID"): path for header, path in zip(headers, paths, strict=True)}
    files = [of[uid] for uid in verdict.use]
    try:
        (right_volume if base.is_ct else right_clip)(base, files, outcome)
    except UnfitInput as late:
        raise AssertionError(f"refused after the verdict: {late}") from late
    return outcome


def received(image: Dataset, data_set: bytes, path: Path) -> str | None:
    """None, or why the listener refuses it; the file as the spool would keep it."""
    uid, sop_class, syntax = str(image.SOPInstanceUID), str(image.SOPClassUID), "1.2.840.10008.1.2.1"
    try:
        announced = Announced(sop_class, uid, syntax, "a", "SENDER")
        identity = identify(data_set, syntax)
        _check_against_command(identity, announced)
    except ReceiveError as refusal:
        return str(refusal)
    if identity.series_uid != image.SeriesInstanceUID:
        return "SeriesInstanceUID: it is of another series"
    meta = copy.deepcopy(image.file_meta)
    buffer = BytesIO()
    pydicom.filewriter.write_file_meta_info(buffer, meta)
    path.write_bytes(bytes(128) + b"DICM" + buffer.getvalue() + data_set)
    return None


def not_run(headers: Sequence[Dataset], reason: str) -> None:
    """A refusal can be said by a report to each patient's study, unless no image can be pointed at."""
    try:
        reports = not_run_reports("lung-nodule", "", reason, headers, version="0", when=WHEN)
    except EncodingError as error:
        assert "no image of the series has rows and columns" in str(error)  # noqa: PT017
        return
    for report in reports:
        buffer = BytesIO()
        report.save_as(buffer, enforce_file_format=True)
        assert read.not_analysed(report) == reason
    assert len({str(report.SOPInstanceUID) for report in reports}) == len(reports)


def every_form(objects: Sequence[Dataset], headers: Sequence[Dataset], shape: tuple[int, int]) -> None:
    """What a destination may be sent instead can be made, too, and written; or says in words why it cannot."""
    segmentations = tuple(each for each in objects if each.Modality == "SEG")
    results = Results(segmentations, objects[-1], headers_by_uid(headers))
    known = [(each, form) for each in objects for form in forms_of(each.SOPClassUID, Profile(viewer="ohif"))]
    known += [(objects[-1], KEY_OBJECTS), (objects[0], KEY_IMAGES), (objects[0], LABEL_MAP), (objects[0], ALL_FRAMES)]
    for original, form in known:
        try:
            made = form.make(original, results, lambda ref: np.zeros((*shape, 3), np.uint8))
        except EncodingError:
            continue  # in words: the next form is tried
        except (ValueError, TypeError, AttributeError, KeyError):
            assert form.name == "Grayscale Softcopy Presentation State"
            continue
        for dataset in made:
            dataset.save_as(BytesIO(), enforce_file_format=True)


def right_volume(base: Sound, files: Sequence[Path], outcome: Outcome) -> None:
    """The volume is the unharmed one, less slices at its ends; so are the objects made of it."""
    assert base.hu is not None
    volume = read_ct(files)
    first = round((volume.affine[2, 3] + 300.0) / SPACING_MM[0])
    known = base.hu[first : first + len(volume.hu)]
    np.testing.assert_array_equal(volume.hu, known)
    np.testing.assert_allclose(volume.spacing_mm, SPACING_MM, atol=1e-6)
    np.testing.assert_allclose(volume.position_lps_mm((0, 0, 0)), (-120, -110, -300 + first * SPACING_MM[0]), atol=1e-6)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    finding = sized(nodule(1, (2, 5, 8)), volume.voxel_mm3)
    findings = replace(ct_findings([]), findings=(finding,), images=volume.images)
    segmentation, report = encoded(findings, headers, outcome)
    between = 0.0
    for frame in range(int(segmentation.NumberOfFrames)):
        place = plane(segmentation, frame + 1)
        assert place.spacing_mm is not None and place.position is not None  # noqa: PT018
        assert [float(mm) for mm in place.spacing_mm] == list(SPACING_MM[1:])
        assert float(place.position[2]) == pytest.approx(-300 + (first + 2 + frame) * SPACING_MM[0], abs=1e-6)
        measures = read.functional_group(segmentation, frame, "PixelMeasuresSequence")
        assert float(measures.SliceThickness) == SPACING_MM[0]  # the phantom's own, or how far its slices lie apart
        between = float(measures.SpacingBetweenSlices)
    assert between == pytest.approx(SPACING_MM[0])
    said = [m.value for g in read.groups(report) for m in g.measurements if m.name == codes.VOXEL_VOLUME]
    assert said == [float(round(finding.mask.sum() * np.prod(SPACING_MM)))]


def right_clip(base: Sound, files: Sequence[Path], outcome: Outcome) -> None:
    """The pictures are the unharmed ones, calibrated as they were or, said aloud, not at all."""
    assert base.pixels is not None
    (file,) = files
    clip = read_ultrasound(file)
    frames = [frame.grey if frame.rgb is None else frame.rgb for frame in clip.frames()]
    np.testing.assert_array_equal(np.stack(frames), base.pixels)
    regions = usable_regions(clip)
    outcome.said += doubts(clip, [])
    for region in regions:
        if region.spacing_mm is None:
            assert outcome.verdict is not None
            assert "without calibration: sizes in pixels" in outcome.verdict.reason
        else:
            np.testing.assert_allclose(region.spacing_mm, US_SPACING_MM, rtol=1e-9)
    header = pydicom.dcmread(file, stop_before_pixels=True)
    finding = nodule(1, (0, 20, 30), measurements=())
    mask = finding.mask[1:2]
    one = replace(finding, mask=mask, key_image=0, long_axis=None, short_axis=None)
    segmentation, _ = encoded(replace(us_findings([]), findings=(one,), images=clip.images), [header], outcome)
    spacing_mm = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    calibrated = [region for region in regions if region.holds(31, 22) and region.spacing_mm]
    assert [float(mm) for mm in spacing_mm] == (list(US_SPACING_MM) if calibrated else [1, 1])


def sized(finding: Finding, voxel_mm3: float) -> Finding:
    """The finding with the volume that it has on these voxels."""
    volume = next(m for m in finding.measurements if m.name == codes.VOXEL_VOLUME)
    value = float(round(finding.mask.sum() * voxel_mm3))
    others = [m for m in finding.measurements if m is not volume]
    return replace(finding, measurements=(*others, replace(volume, value=value)))


def encoded(findings: Findings, headers: Sequence[Dataset], outcome: Outcome) -> tuple[Dataset, Dataset]:
    """(SEG, SR), read back from their bytes; whose they are is what the source says."""
    objects, faults = check_objects(findings, headers, when=WHEN, revision=1)
    outcome.said += [str(fault) for fault in faults]
    if outcome.all_forms:
        every_form(objects, headers, (objects[0].Rows, objects[0].Columns))
    back = []
    for dataset in objects:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        buffer.seek(0)
        back.append(pydicom.dcmread(buffer))
        for keyword in ("StudyInstanceUID", "PatientID"):
            assert attributes.texts(back[-1], keyword) == attributes.texts(headers[0], keyword), keyword
    return back[0], back[-1]


# ---------------------------------------------------------------------------------------------------- what is promised


def names(outcome: Outcome, damage: Damage) -> bool:
    """Whether what was said names the attribute, or what it stands for, by its keyword."""
    wanted = set(damage.path)
    wanted |= {other for keyword in damage.path for other in STANDS_FOR.get(keyword, ())}
    return any(keyword in sentence for sentence in outcome.said for keyword in wanted if keyword)


@pytest.mark.parametrize("kind", KINDS)
def test_the_unharmed_series_gives_a_result(kind: str, tmp_path: Path) -> None:
    place = next(p for p in places(sound(kind).elements[0]) if path_of(sound(kind).elements[0], p) == ["SeriesNumber"])
    element = at(sound(kind).elements[0], place)
    outcome = run(Damage(kind, place, "as it was", element, (0,)), tmp_path)
    assert outcome.verdict is not None
    assert outcome.verdict.fit, outcome.said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_right_result_or_a_refusal_that_names_the_attribute(kind: str, part: int, tmp_path: Path) -> None:
    failures: list[str] = []
    counts: Counter[str] = Counter()
    for damage in drawn(kind)[part::4]:
        try:
            outcome = run(damage, tmp_path)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not be: all of them are told together
            failures.append(f"{damage}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        fit = outcome.verdict is not None and outcome.verdict.fit
        counts["a result" if fit else "refused"] += 1
        if not fit and not names(outcome, damage):
            failures.append(f"{damage}: refused without its name: {outcome.said}")
    print(kind, dict(counts))
    assert not failures, f"{len(failures)} of {len(drawn(kind)[part::4])}:\n" + "\n".join(failures)
    assert counts["a result"] and counts["refused"]  # noqa: PT018 - a test that only ever sees one of them sees nothing
