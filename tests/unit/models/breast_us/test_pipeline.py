"""The breast pipeline on phantoms: the lesion is found where it is, in the units the header gives, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UltrasoundMultiFrameImageStorage

from dicom_sr import codes
from dicom_sr.findings import Finding, Findings
from models.breast_us.pipeline import NAME, BreastUltrasound, Prediction
from models.breast_us.tissue import tissue
from models.phantoms import Lesion
from models.phantoms.breast import breast_ultrasound, ultrasound_dicom
from models.pipeline import UnfitInput
from models.read import read_ultrasound
from models.training.evaluation.metrics import iou

SHAPE = (470, 560)


@pytest.fixture(scope="module")
def pipeline() -> BreastUltrasound:
    return BreastUltrasound("cpu", {"threads": 1})


def run(pipeline: BreastUltrasound, *files: Path) -> Findings:
    return pipeline.run(list(files), lambda fraction, doing: None)


def on_grid(thing: Finding | Lesion, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    grid = np.zeros(shape, bool)
    _, y, x = thing.offset_zyx
    _, high, wide = thing.mask.shape
    grid[y : y + high, x : x + wide] = thing.mask[0]
    return grid


def value(finding: Finding, name: object) -> tuple[float, str]:
    (found,) = [m for m in finding.measurements if m.name == name]
    return found.value, found.unit.value


def edited(source: Path, target: Path, **attributes: object) -> Path:
    """A copy of the file with attributes changed; None takes one away."""
    image = dcmread(source)
    for keyword, changed in attributes.items():
        if changed is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, changed)
    image.save_as(target)
    return target


@pytest.mark.parametrize("seed", range(1, 7))
def test_the_phantom_lesion_is_found_and_measured(pipeline: BreastUltrasound, tmp_path: Path, seed: int) -> None:
    truth = breast_ultrasound(tmp_path, seed=seed)
    findings = run(pipeline, *truth.files)
    (finding,), (lesion,) = findings.findings, truth.lesions
    assert iou(on_grid(finding), on_grid(lesion)) > 0.7
    assert value(finding, codes.LONG_AXIS) == (pytest.approx(lesion.long_axis_mm, rel=0.2), "mm")
    assert value(finding, codes.SHORT_AXIS) == (pytest.approx(lesion.short_axis_mm, rel=0.2), "mm")
    true_mm2 = np.pi / 4 * lesion.long_axis_mm * lesion.short_axis_mm
    assert value(finding, codes.AREA) == (pytest.approx(true_mm2, rel=0.3), "mm2")
    assert sum(m.value for m in findings.measurements) == pytest.approx(100, abs=0.2)
    assert findings.geometry == "image"
    assert [text for text in findings.warnings if "more probable than malignant" not in text] == []


def test_same_files_same_findings_whatever_their_order(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    files = breast_ultrasound(tmp_path, seed=3, images=3).files
    one, other = run(pipeline, *files), run(pipeline, *reversed(files))
    assert one.images == other.images
    assert [f.offset_zyx for f in one.findings] == [f.offset_zyx for f in other.findings]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(one.findings, other.findings, strict=True))


def test_every_image_of_a_series_gets_its_own_finding(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    truth = breast_ultrasound(tmp_path, seed=3, images=3)
    findings = run(pipeline, *truth.files)
    uids = [dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in truth.files]
    assert [image.sop_instance_uid for image in findings.images] == uids
    assert [f.number for f in findings.findings] == [1, 2, 3]
    by_image = sorted(findings.findings, key=lambda finding: finding.offset_zyx[0])
    for finding, lesion in zip(by_image, truth.lesions, strict=True):
        assert finding.key_image == finding.offset_zyx[0] == lesion.offset_zyx[0]
        assert iou(on_grid(finding), on_grid(lesion)) > 0.5
        assert {m.name.meaning for m in finding.measurements} >= {"Probability of benign", "Probability of cancer"}
    assert findings.measurements == ()  # of which image would they be?


def test_twice_the_spacing_is_twice_the_size(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    (path,) = breast_ultrasound(tmp_path, seed=3).files
    (small,) = run(pipeline, path).findings
    wide = dcmread(path)
    wide.SequenceOfUltrasoundRegions[0].PhysicalDeltaX *= 2
    wide.SequenceOfUltrasoundRegions[0].PhysicalDeltaY *= 2
    wide.save_as(tmp_path / "wide.dcm")
    (large,) = run(pipeline, tmp_path / "wide.dcm").findings
    assert np.array_equal(small.mask, large.mask)
    assert value(large, codes.LONG_AXIS)[0] == pytest.approx(2 * value(small, codes.LONG_AXIS)[0], abs=0.11)
    assert value(large, codes.AREA)[0] == pytest.approx(4 * value(small, codes.AREA)[0], abs=0.3)


def test_without_calibration_sizes_are_in_pixels_and_a_warning_says_so(
    pipeline: BreastUltrasound, tmp_path: Path
) -> None:
    (path,) = breast_ultrasound(tmp_path, seed=3).files
    (calibrated,) = run(pipeline, path).findings
    findings = run(pipeline, edited(path, tmp_path / "bare.dcm", SequenceOfUltrasoundRegions=None))
    long_px, unit = value(findings.findings[0], codes.LONG_AXIS)
    assert unit == "{pixels}"
    assert long_px * 0.085 == pytest.approx(value(calibrated, codes.LONG_AXIS)[0], abs=0.1)
    assert any("no calibration" in text for text in findings.warnings)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"Laterality": "L"}, codes.LEFT),
        ({"Laterality": "R"}, codes.RIGHT),
        ({"Laterality": "L", "ImageLaterality": "R"}, codes.RIGHT),
        ({"Laterality": ""}, None),
        ({"Laterality": None}, None),
    ],
)
def test_the_side_is_the_headers(
    pipeline: BreastUltrasound, tmp_path: Path, attributes: dict[str, str | None], expected: object
) -> None:
    (path,) = breast_ultrasound(tmp_path, seed=3).files
    (finding,) = run(pipeline, edited(path, tmp_path / "side.dcm", **attributes)).findings
    assert finding.laterality == expected
    assert finding.type == codes.MASS
    assert finding.site == codes.BREAST


def test_a_lesion_outside_the_tissue_region_is_not_reported(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    truth = breast_ultrasound(tmp_path, seed=3)
    image = dcmread(truth.files[0])
    screen = np.zeros((600, 1200), np.uint8)  # the picture in a corner of a screen, a second one beside it
    screen[100:570, 20:580] = image.pixel_array
    screen[100:570, 620:1180] = image.pixel_array
    image.PixelData, (image.Rows, image.Columns) = screen.tobytes(), screen.shape
    region = image.SequenceOfUltrasoundRegions[0]
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 620, 100
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 1179, 569
    image.save_as(tmp_path / "screen.dcm")
    (finding,) = run(pipeline, tmp_path / "screen.dcm").findings
    expected = np.zeros(screen.shape, bool)
    expected[100:570, 620:1180] = on_grid(truth.lesions[0])
    assert iou(on_grid(finding, (600, 1200)), expected) > 0.7


def test_burned_in_colour_changes_little(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    truth = breast_ultrasound(tmp_path, seed=3)
    image = dcmread(truth.files[0])
    image_grey = image.pixel_array
    rgb = np.repeat(image_grey[..., None], 3, axis=-1)
    _, y, x = truth.lesions[0].offset_zyx
    rgb[y : y + 4, x - 40 : x + 60] = rgb[y - 10 : y + 40, x : x + 4] = (255, 220, 0)  # calipers
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.PixelData = rgb.tobytes()
    image.save_as(tmp_path / "colour.dcm")
    clip = read_ultrasound(tmp_path / "colour.dcm")
    (frame,) = clip.frames()
    over = np.ptp(rgb, axis=-1) > 0
    changed = np.abs(frame.grey[over] - image_grey[over].astype(float)).mean()
    repaired = np.abs(tissue(frame, clip.regions[0].box)[0][over] - image_grey[over].astype(float)).mean()
    assert repaired < changed / 2  # what is left is speckle
    (plain,), (marked,) = run(pipeline, *truth.files).findings, run(pipeline, tmp_path / "colour.dcm").findings
    assert iou(on_grid(plain), on_grid(marked)) > 0.85


def test_of_a_cine_the_frame_that_shows_the_lesion_is_reported(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    with_lesion = breast_ultrasound(tmp_path / "a", seed=3)
    empty = dcmread(breast_ultrasound(tmp_path / "b", seed=3, lesions=False).files[0]).pixel_array
    cine = dcmread(with_lesion.files[0])
    cine.PixelData = np.stack([empty, empty, cine.pixel_array, empty]).tobytes()
    cine.NumberOfFrames = 4
    cine.SOPClassUID = cine.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    cine.save_as(tmp_path / "cine.dcm")
    findings = run(pipeline, tmp_path / "cine.dcm")
    assert [image.frame for image in findings.images] == [1, 2, 3, 4]
    (finding,) = findings.findings
    assert findings.images[finding.key_image].frame == 3
    assert iou(on_grid(finding), on_grid(with_lesion.lesions[0])) > 0.7


def test_normal_means_no_findings_and_its_probability_is_said(
    pipeline: BreastUltrasound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = breast_ultrasound(tmp_path, seed=1, lesions=False).files
    nothing = Prediction(np.zeros(SHAPE, np.float32), np.array([0.95, 0.04, 0.01]), np.zeros(SHAPE, bool))
    monkeypatch.setattr(pipeline, "look", lambda grey, region=None: nothing)
    findings = run(pipeline, *files)
    assert findings.findings == ()
    assert [(m.name.meaning, m.value) for m in findings.measurements] == [
        ("Probability of normal", 95.0),
        ("Probability of benign", 4.0),
        ("Probability of cancer", 1.0),
    ]


def test_most_empty_phantoms_stay_empty(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    findings = run(pipeline, *breast_ultrasound(tmp_path, seed=1, images=6, lesions=False).files)
    assert len(findings.findings) <= 2


def test_a_thumbnail_is_refused_in_words(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    tiny: Dataset = ultrasound_dicom(np.full((40, 300), 90, np.uint8), spacing_mm=None, patient_id="P1")
    tiny.save_as(tmp_path / "tiny.dcm", enforce_file_format=True)
    with pytest.raises(UnfitInput, match="40 x 300 pixels, at least 64 x 64"):
        run(pipeline, tmp_path / "tiny.dcm")
    with pytest.raises(UnfitInput, match="no images"):
        run(pipeline)


def test_another_body_part_is_doubted(pipeline: BreastUltrasound, tmp_path: Path) -> None:
    (path,) = breast_ultrasound(tmp_path, seed=3).files
    assert any(
        "LIVER" in w for w in run(pipeline, edited(path, tmp_path / "liver.dcm", BodyPartExamined="LIVER")).warnings
    )


def test_the_card_names_the_weights(pipeline: BreastUltrasound) -> None:
    b, c = pipeline.card.weights_sha256.values()
    assert pipeline.card.name == NAME
    assert pipeline.card.algorithm.version.endswith(f"{b[:8]}.{c[:8]}")
    assert pipeline.card.intended_use.endswith("Research use only, not for diagnostic use.")
