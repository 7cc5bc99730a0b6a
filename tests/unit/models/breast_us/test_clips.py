"""Cines and screens with several pictures through the whole pipeline, against the phantom's truth: which lesion, on
which frame, how large by which calibration."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_sr import codes, encode, read
from dicom_sr.findings import Finding, Findings
from models.breast_us.pipeline import MOST_FRAMES, BreastUltrasound, Prediction, spread_evenly
from models.phantoms import Lesion, Truth
from models.phantoms.breast import Ellipse, Sweep, breast_cine, breast_ultrasound
from models.pipeline import UnfitInput
from models.training.evaluation.metrics import iou
from tests.harness import need

WHEN = datetime(2026, 3, 1, 12, 30, 5)
SHAPE = (180, 220)
FRAMES = 9
SPACINGS_MM = ((0.2, 0.2), (0.25, 0.16))  # the right picture has anisotropic pixels


def lesion(x_mm: float) -> Sweep:
    return Sweep(2, 6, Ellipse(x_mm, 16.0, (6.5, 4.5), 8.0), drift_mm=6.0)


@pytest.fixture(scope="module")
def pipeline() -> BreastUltrasound:
    return BreastUltrasound("cpu", {"threads": 1})


@pytest.fixture(scope="module")
def dual(pipeline: BreastUltrasound, tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, Findings]:
    """Two pictures on one screen, a lesion in each."""
    folder = tmp_path_factory.mktemp("dual")
    truth = breast_cine(
        folder,
        seed=1,
        frames=FRAMES,
        shape=SHAPE,
        spacings_mm=SPACINGS_MM,
        sweeps=(lesion(22), lesion(17)),
    )
    return truth, run(pipeline, *truth.files)


def run(pipeline: BreastUltrasound, *files: Path) -> Findings:
    return pipeline.run(list(files), lambda fraction, doing: None)


def by_frame(thing: Finding | Lesion, frames: int, shape: tuple[int, int]) -> np.ndarray:
    """bool (frames, rows, columns)"""
    whole = np.zeros((frames, *shape), bool)
    z, y, x = thing.offset_zyx
    d, h, w = thing.mask.shape
    whole[z : z + d, y : y + h, x : x + w] = thing.mask
    return whole


def value(finding: Finding, name: object) -> tuple[float, str]:
    (found,) = [m for m in finding.measurements if m.name == name]
    return found.value, found.unit.value


def left_to_right(findings: Findings) -> list[Finding]:
    """As the pictures stand on the screen; their numbers follow importance."""
    return sorted(findings.findings, key=lambda finding: finding.offset_zyx[2])


def test_two_lesions_in_two_pictures_are_two_each_on_its_frames(dual: tuple[Truth, Findings]) -> None:
    truth, findings = dual
    screen = (SHAPE[0], 2 * SHAPE[1] + 12)
    assert [image.frame for image in findings.images] == list(range(1, FRAMES + 1))
    assert [f.label for f in findings.findings] == ["Lesion 1", "Lesion 2"]
    for finding, meant in zip(left_to_right(findings), truth.lesions, strict=True):
        mine, theirs = (by_frame(thing, FRAMES, screen) for thing in (finding, meant))
        assert iou(mine, theirs) > 0.7
        on = {k + 1 for k in range(FRAMES) if theirs[k].any()}
        assert on == {3, 4, 5, 6, 7}
        assert {k + 1 for k in range(FRAMES) if mine[k].any()} >= on - {3, 7}  # the small ends may be missed
        assert findings.images[finding.key_image].frame in (4, 5, 6)  # largest on frame 5
        assert all(iou(mine[k - 1], theirs[k - 1]) > 0.6 for k in (4, 5, 6))


def test_each_picture_is_measured_by_its_own_calibration(dual: tuple[Truth, Findings]) -> None:
    truth, findings = dual
    for finding, meant, (down, across) in zip(left_to_right(findings), truth.lesions, SPACINGS_MM, strict=True):
        assert value(finding, codes.LONG_AXIS) == (pytest.approx(meant.long_axis_mm, rel=0.15), "mm")
        assert value(finding, codes.SHORT_AXIS) == (pytest.approx(meant.short_axis_mm, rel=0.2), "mm")
        pixels = finding.mask[finding.key_image - finding.offset_zyx[0]].sum()
        assert value(finding, codes.AREA) == (pytest.approx(pixels * down * across, abs=0.06), "mm2")


def test_no_outline_leaves_its_picture(dual: tuple[Truth, Findings]) -> None:
    left, right = left_to_right(dual[1])
    assert left.offset_zyx[2] + left.mask.shape[2] <= SHAPE[1]
    assert right.offset_zyx[2] >= SHAPE[1] + 12


def test_report_and_segmentations_name_the_same_frames(dual: tuple[Truth, Findings]) -> None:
    truth, findings = dual
    *segs, report = encode(findings, [dcmread(truth.files[0], stop_before_pixels=True)], when=WHEN)
    spacings = [
        tuple(map(float, s.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing)) for s in segs
    ]
    assert spacings == [pytest.approx(spacing_mm) for spacing_mm in SPACINGS_MM]
    told = [group for group in read.groups(report) if group.template == "1410"]
    remarks = read.comments(report)
    marked = {segment.label: segment for segmentation in segs for segment in read.segments(segmentation)}
    assert len(marked) == len(segs) == 2
    for finding, group in zip(findings.findings, told, strict=True):
        segment = marked[finding.label]
        on = [findings.images[finding.offset_zyx[0] + k].frame for k, mask in enumerate(finding.mask) if mask.any()]
        assert sorted(ref.frame or 0 for ref in segment.masks) == on
        assert group.lines[0].image == findings.images[finding.key_image]
        assert group.tracking_uid == segment.tracking_uid
        x, y = group.lines[0].points.T
        key = segment.masks[group.lines[0].image]
        rows, columns = np.flatnonzero(key.any(axis=1)), np.flatnonzero(key.any(axis=0))
        assert (x.min(), x.max()) == (columns[0], columns[-1] + 1)
        assert (y.min(), y.max()) == (rows[0], rows[-1] + 1)
        said = f"{finding.label}: outlined on {len(on)} frames from {on[0]} to {on[-1]}"
        assert any(text.startswith(said) for text in remarks), remarks


def test_same_cine_same_findings(pipeline: BreastUltrasound, dual: tuple[Truth, Findings]) -> None:
    truth, first = dual
    again = run(pipeline, *truth.files)
    for one, other in zip(first.findings, again.findings, strict=True):
        assert np.array_equal(one.mask, other.mask)
        assert (one.key_image, one.measurements) == (other.key_image, other.measurements)


# ------------------------------------------------------------------ what the network says is given, and the rest ours


@pytest.fixture
def cine(tmp_path: Path) -> Truth:
    """Grey noise would do: in these tests the network is told what to see."""
    return breast_cine(tmp_path, seed=2, frames=4, shape=(100, 120), sweeps=(None,), colour=True)


def marks(
    *boxes: tuple[slice, slice] | None,
    shape: tuple[int, int] = (100, 120),
    classes: tuple[float, float, float] = (0.1, 0.3, 0.6),
) -> Callable[..., Prediction]:
    """A stand-in for the network: on the first frame it marks the first box, and so on."""
    left = iter(boxes)

    def look(grey: np.ndarray, region: object = None) -> Prediction:
        lesion = np.zeros(shape, bool)
        box = next(left)
        if box is not None:
            lesion[box] = True
        return Prediction(lesion * np.float32(0.8), np.array(classes), lesion)

    return look


HERE, THERE = (slice(20, 40), slice(20, 50)), (slice(70, 95), slice(80, 110))


def edited(source: Path, **attributes: object) -> Path:
    image = dcmread(source)
    for keyword, changed in attributes.items():
        setattr(image, keyword, changed)
    image.save_as(source)
    return source


def test_a_mark_on_one_frame_only_is_said_but_no_finding(
    pipeline: BreastUltrasound, cine: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "look", marks(HERE, THERE, HERE, None))
    findings = run(pipeline, *cine.files)
    (only,) = findings.findings
    assert [bool(mask.any()) for mask in only.mask] == [True, False, True]
    assert any("single frames were not reported (frame 2)" in text for text in findings.warnings)


@pytest.mark.parametrize("temperature", [None, 1.0, 2.0])
def test_a_category_is_suggested_by_calibrated_weights_only(
    pipeline: BreastUltrasound, cine: Truth, monkeypatch: pytest.MonkeyPatch, temperature: float | None
) -> None:
    monkeypatch.setattr(pipeline, "look", marks(HERE, HERE, HERE, None))
    monkeypatch.setattr(pipeline, "temperature", temperature)
    monkeypatch.setattr(pipeline, "suggests", temperature is not None)
    findings = run(pipeline, *cine.files)
    (only,) = findings.findings
    suggested = [e.value.meaning[:2] for e in only.evaluations if "BI-RADS" in e.name.meaning]
    (percent,) = [m.value for m in only.measurements if m.name == codes.PROBABILITY_OF_CANCER]
    if temperature is None:
        assert suggested == []
        assert percent == 60.0
    else:
        root = np.array([0.1, 0.3, 0.6]) ** (1 / temperature)
        assert percent == pytest.approx(100 * root[2] / root.sum(), abs=0.06)
        assert suggested == ["4C" if percent > 50 else "4B"]
        *_, report = encode(findings, [dcmread(cine.files[0], stop_before_pixels=True)], when=WHEN)
        (group,) = [group for group in read.groups(report) if group.template == "1410"]
        assert group.evaluations == only.evaluations


@pytest.mark.parametrize(("malignant", "told"), [(0.1, False), (0.3, True), (0.6, False)])
def test_a_lesion_called_benign_at_the_operating_point_is_told_of(
    pipeline: BreastUltrasound, cine: Truth, monkeypatch: pytest.MonkeyPatch, malignant: float, told: bool
) -> None:
    """In the report's warnings; of what is malignant by its most probable class there is nothing to add."""
    monkeypatch.setattr(pipeline, "look", marks(HERE, HERE, HERE, None, classes=(0.1, 0.9 - malignant, malignant)))
    findings = run(pipeline, *cine.files)
    said = [text for text in findings.warnings if "of the cancers of the validation images" in text]
    assert [text.split(",")[0] for text in said] == ["Lesion 1: benign is more probable than malignant"] * told
    *_, report = encode(findings, [dcmread(cine.files[0], stop_before_pixels=True)], when=WHEN)
    assert ("of the cancers of the validation images" in report.to_json()) == told


def test_the_shipped_weights_suggest_nothing_while_they_are_not_calibrated(
    pipeline: BreastUltrasound, dual: tuple[Truth, Findings]
) -> None:
    suggested = [e for f in dual[1].findings for e in f.evaluations if "BI-RADS" in e.name.meaning]
    assert bool(suggested) == pipeline.suggests


def test_colour_flow_on_some_frames(pipeline: BreastUltrasound, cine: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    image = dcmread(cine.files[0])
    pixels = image.pixel_array.copy()
    pixels[1:3, 10:90, 10:100] = (220, 40, 0)  # most of the picture of frames 2 and 3
    pixels[3, 20:40, 20:30] = (0, 60, 230)  # a third of the lesion of frame 4
    edited(cine.files[0], PixelData=pixels.tobytes())
    monkeypatch.setattr(pipeline, "look", marks(None, HERE))  # frames 1 and 4
    findings = run(pipeline, *cine.files)
    assert [ref.frame for ref in findings.images] == [1, 4]
    assert findings.images[findings.findings[0].key_image].frame == 4
    assert any("2 of 4 frames were not looked at: colour" in text for text in findings.warnings)
    assert any(text.startswith("Lesion 1: 33% of it lies under burned-in colour") for text in findings.warnings)


def test_a_mark_where_colour_was_painted_over_is_not_believed(
    pipeline: BreastUltrasound, cine: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = dcmread(cine.files[0]).pixel_array.copy()
    pixels[:, 20:40, 20:37] = (220, 40, 0)  # 17 of the 30 columns
    edited(cine.files[0], PixelData=pixels.tobytes())
    monkeypatch.setattr(pipeline, "look", marks(HERE, HERE, None, THERE))
    findings = run(pipeline, *cine.files)
    (only,) = findings.findings
    assert findings.images[only.key_image].frame == 4
    assert any("mostly under burned-in colour was not reported" in text for text in findings.warnings)


def test_colour_on_every_frame_is_refused_in_words(pipeline: BreastUltrasound, cine: Truth) -> None:
    pixels = dcmread(cine.files[0]).pixel_array.copy()
    pixels[:, 10:90, 10:100] = (220, 40, 0)
    with pytest.raises(UnfitInput, match=r"colour .* hides the tissue"):
        run(pipeline, edited(cine.files[0], PixelData=pixels.tobytes()))


def test_an_image_without_tissue_is_refused_in_words(pipeline: BreastUltrasound, cine: Truth) -> None:
    spectrum = dcmread(cine.files[0]).SequenceOfUltrasoundRegions[0]
    spectrum.RegionSpatialFormat, spectrum.RegionDataType = 3, 3
    with pytest.raises(UnfitInput, match="no region shows 2-D tissue in grey, only spectrum PW Doppler"):
        run(pipeline, edited(cine.files[0], SequenceOfUltrasoundRegions=[spectrum]))


def test_one_unusable_image_does_not_spoil_the_others(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    files = breast_ultrasound(tmp_path, seed=3, images=3, shape=(180, 220), spacing_mm=0.2).files
    damaged = dcmread(files[1])
    damaged.PixelData = damaged.PixelData[:100]
    damaged.save_as(files[1])
    spectrum: Dataset = dcmread(files[2])
    spectrum.SequenceOfUltrasoundRegions[0].RegionDataType = 3
    spectrum.save_as(files[2])
    findings = run(pipeline, *files)
    assert [ref.sop_instance_uid for ref in findings.images] == [dcmread(files[0]).SOPInstanceUID]
    assert any(
        w.startswith("not looked at: image number 2: image ") and "the pixels cannot be decoded" in w
        for w in findings.warnings
    )
    assert any("not looked at: image number 3: no region shows 2-D tissue" in w for w in findings.warnings)


def test_what_another_region_covers_is_cut_off_and_said(
    pipeline: BreastUltrasound, cine: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = dcmread(cine.files[0])
    tissue = image.SequenceOfUltrasoundRegions[0]
    tissue.RegionFlags = 1  # low priority
    trace = Dataset()
    trace.RegionSpatialFormat, trace.RegionDataType, trace.RegionFlags = 4, 0xA, 0
    trace.PhysicalUnitsXDirection, trace.PhysicalUnitsYDirection = 4, 0
    trace.PhysicalDeltaX, trace.PhysicalDeltaY = 0.01, 0.0
    trace.RegionLocationMinX0, trace.RegionLocationMinY0 = 0, 85
    trace.RegionLocationMaxX1, trace.RegionLocationMaxY1 = 119, 99
    monkeypatch.setattr(pipeline, "look", marks(None, THERE, THERE, None))
    findings = run(pipeline, edited(cine.files[0], SequenceOfUltrasoundRegions=[tissue, trace]))
    (only,) = findings.findings
    assert only.offset_zyx[1:] == (70, 80)
    assert only.mask.shape[1:] == (15, 30)  # not 25 rows
    assert any("runs into another region" in text for text in findings.warnings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PhysicalDeltaY": -0.013}, "counts depth upwards"),
        ({"PhysicalDeltaX": 1.3, "PhysicalDeltaY": 1.3}, "mm high; doubt the sizes"),
        ({"PhysicalUnitsYDirection": 4}, "no calibration"),
    ],
)
def test_doubtful_calibration_is_said(
    pipeline: BreastUltrasound,
    cine: Truth,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, float],
    said: str,
) -> None:
    monkeypatch.setattr(pipeline, "look", marks(None, None, None, None))
    regions = dcmread(cine.files[0]).SequenceOfUltrasoundRegions
    for keyword, changed in change.items():
        setattr(regions[0], keyword, changed)
    findings = run(pipeline, edited(cine.files[0], SequenceOfUltrasoundRegions=list(regions)))
    assert any(said in text for text in findings.warnings), findings.warnings


def test_pixel_spacing_that_disagrees_is_said(
    pipeline: BreastUltrasound, cine: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "look", marks(*[None] * 8))
    assert not any("disagree" in w for w in run(pipeline, edited(cine.files[0], PixelSpacing=[0.13, 0.13])).warnings)
    assert any("disagree" in w for w in run(pipeline, edited(cine.files[0], PixelSpacing=[0.2, 0.13])).warnings)


def test_of_a_long_cine_a_stated_number_of_frames_is_looked_at(
    pipeline: BreastUltrasound, cine: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 3 * MOST_FRAMES + 7
    pixels = np.resize(dcmread(cine.files[0]).pixel_array, (count, 100, 120, 3))
    looked: list[np.ndarray] = []

    def look(grey: np.ndarray, region: object = None) -> Prediction:
        looked.append(grey)
        return marks(None)(grey)

    monkeypatch.setattr(pipeline, "look", look)
    findings = run(pipeline, edited(cine.files[0], PixelData=pixels.tobytes(), NumberOfFrames=count))
    assert len(looked) == len(findings.images) == MOST_FRAMES
    frames = [ref.frame or 0 for ref in findings.images]
    assert (frames[0], frames[-1]) == (1, count)
    assert set(np.diff(frames)) <= {3, 4}
    assert any(f"of {count} frames {MOST_FRAMES}, evenly spread" in text for text in findings.warnings)


def test_spread_is_even_and_never_repeats() -> None:
    for count in range(1, 200):
        chosen = spread_evenly(count, 48)
        assert len(chosen) == len(set(chosen)) == min(count, 48)
        assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_a_real_cine_goes_through_as_a_whole(
    pipeline: BreastUltrasound, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """34 frames, JPEG, a tissue region of anisotropic pixels and an ECG. Of a heart: refused; asked
    all the same, the network answers, and what it finds is not judged."""
    with zipfile.ZipFile(shared_data / "us_dicom.zip") as archive:
        path = Path(archive.extract("orthanc_Issue16_34frames.dcm", tmp_path))
    with pytest.raises(UnfitInput, match="does not look like an ultrasound image of a breast"):
        run(pipeline, path)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "suitability", None)
        findings = run(pipeline, path)
    assert 0 < len(findings.images) <= 34
    header = dcmread(path, stop_before_pixels=True)
    *segmentations, report = encode(findings, [header], when=WHEN)  # through the gate
    for dataset in segmentations:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert [float(mm) for mm in measures.PixelSpacing] == pytest.approx([0.2285714, 0.2857143], rel=1e-5)
    for dataset in (*segmentations, report):
        dataset.save_as(tmp_path / "result.dcm", enforce_file_format=True)
        judge = [need("dciodvfy", beside_python=True), str(tmp_path / "result.dcm")]
        told = subprocess.run(judge, capture_output=True, text=True, check=False).stderr
        assert "Error" not in told, told
    for finding in findings.findings:
        assert finding.offset_zyx[1] + finding.mask.shape[1] <= 354  # above the ECG
