"""monai-bundle: a published bundle marks what it marks there where it lies in the patient, or says why not."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor
from pydicom import Dataset

from dicom_sr import codes, encode
from dicom_sr.findings import Findings
from dicom_sr.read import segments, summary
from dicom_sr.validate import problems
from models.monai_bundle.bundle import digest, importable
from models.monai_bundle.pipeline import MonaiBundle
from models.options import BadOptions, WeightsError
from models.pipeline import BadOutput
from models.read import read_ct
from pacs_node.errors import GiveUp
from pacs_node.infer import Inference
from tests.bundles import LABELS, NETWORK, threshold_bundle
from tests.factories import ct_series

WHEN = datetime(2026, 3, 1, 12, 0)
SPACING_MM = (2.5, 0.8, 0.7)


def bright_block() -> np.ndarray:
    """HU (z, y, x) of a body with a block of 200 HU that is off every middle, and of another size in each direction."""
    hu = np.full((20, 48, 40), -1000, np.int16)
    hu[2:18, 6:42, 5:35] = 40
    hu[5:11, 10:22, 20:31] = 200
    return hu


def run(bundle: Path, series: Sequence[Dataset], labels: Mapping[str, Any] | None = None) -> Findings:
    pipeline = MonaiBundle("cpu", {"bundle": str(bundle), "labels": labels or LABELS})
    return pipeline.run([Path(str(image.filename)) for image in series], lambda *_: None)


def centre_lps_mm(findings: Findings, series: Sequence[Dataset]) -> np.ndarray:
    """Of the one finding, in the patient, by the headers of the images that it names."""
    [finding] = findings.findings
    places = []
    headers = {str(image.SOPInstanceUID): image for image in series}
    for z, y, x in np.argwhere(finding.mask) + finding.offset_zyx:
        image = headers[findings.images[z].sop_instance_uid]
        row, column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, image.PixelSpacing)
        origin = np.array(image.ImagePositionPatient, float)
        places.append(origin + row * between_columns * x + column * between_rows * y)
    return np.mean(places, axis=0)


def true_centre_lps_mm(hu: np.ndarray, series: Sequence[Dataset]) -> np.ndarray:
    """Where the voxels of 200 HU lie; series[z] shows hu[z]."""
    places = []
    for z, y, x in np.argwhere(hu == 200):
        row, column = np.array(series[z].ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, series[z].PixelSpacing)
        places.append(
            np.array(series[z].ImagePositionPatient, float) + row * between_columns * x + column * between_rows * y
        )
    return np.mean(places, axis=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("bundles") / "threshold")


@pytest.fixture(scope="module")
def own_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("bundles") / "own_grid", pixdim=None)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("orientation", ["HFS", "FFS", "HFP", "coronal", "oblique"])
def test_it_marks_every_voxel_where_it_lies(own_grid: Path, tmp_path: Path, orientation: str, descending: bool) -> None:
    """A bundle that does not resample, only turns to RAS: its mask is the threshold, voxel by voxel."""
    hu = bright_block()
    series = ct_series(tmp_path, voxels=hu, spacing_mm=SPACING_MM, orientation=orientation, descending=descending)
    findings = run(own_grid, series)
    [finding] = findings.findings
    volume = read_ct([Path(str(image.filename)) for image in series])
    whole = np.zeros(hu.shape, bool)
    z, y, x = finding.offset_zyx
    d, h, w = finding.mask.shape
    whole[z : z + d, y : y + h, x : x + w] = finding.mask
    assert np.array_equal(whole, volume.hu == 200)
    assert findings.images == volume.images
    assert centre_lps_mm(findings, series) == pytest.approx(true_centre_lps_mm(hu, series), abs=1e-6)
    measured = {m.name: m.value for m in finding.measurements}
    assert measured[codes.VOXEL_VOLUME] == round(6 * 12 * 11 * 2.5 * 0.8 * 0.7)
    assert measured[codes.MEAN_HU] == 200.0


@pytest.mark.parametrize("orientation", ["HFS", "FFS", "sagittal", "oblique"])
def test_a_resampling_bundle_comes_back_to_the_grid(bundle: Path, tmp_path: Path, orientation: str) -> None:
    hu = bright_block()
    series = ct_series(tmp_path, voxels=hu, spacing_mm=SPACING_MM, orientation=orientation)
    findings = run(bundle, series)
    assert findings.warnings == ()
    assert len(findings.images) == len(series)
    apart = centre_lps_mm(findings, series) - true_centre_lps_mm(hu, series)
    assert np.abs(apart).max() < 1.0, apart  # its voxels are 1.5 x 1.5 x 2.0 mm
    [finding] = findings.findings
    true_ml = (hu == 200).sum() * np.prod(SPACING_MM)
    assert finding.mask.sum() * np.prod(SPACING_MM) == pytest.approx(true_ml, rel=0.35)


def test_one_that_leaves_the_way_back_to_its_writer_is_brought_back_and_that_is_said(tmp_path: Path) -> None:
    """Many bundles have no Invertd: SaveImaged resamples. It is not run here."""
    hu = bright_block()
    (tmp_path / "ct").mkdir()
    series = ct_series(tmp_path / "ct", voxels=hu, spacing_mm=SPACING_MM, orientation="FFS")
    root = threshold_bundle(tmp_path / "bundle", inverts=False)
    findings = run(root, series)
    assert "brought back there by nearest neighbour" in findings.warnings[0]
    assert np.abs(centre_lps_mm(findings, series) - true_centre_lps_mm(hu, series)).max() < 1.25
    assert not (root / "eval").exists()


def test_its_results_are_valid_segmentations_and_reports(bundle: Path, tmp_path: Path) -> None:
    series = ct_series(tmp_path, voxels=bright_block(), spacing_mm=SPACING_MM)
    labels = {"1": {**LABELS["1"], "colour": "#9d6ca2", "measure": ["volume", "diameters", "intensity"]}}
    findings = run(bundle, series, labels)
    objects = encode(findings, series, when=WHEN)
    segmentation, report = objects
    assert (segmentation.Modality, report.Modality) == ("SEG", "SR")
    for each in objects:
        assert problems(each, series, findings=findings, segmentations=[segmentation]) == []
    [segment] = segments(segmentation)
    assert segment.label == "Bright"
    assert segment.type.value == "78961009"
    assert segmentation.SegmentSequence[0].SegmentAlgorithmName == "MONAI bundle Threshold"
    assert sum(mask.sum() for mask in segment.masks.values()) == findings.findings[0].mask.sum()
    assert "Certainty" not in str(report)  # a label map states none
    lightness = segmentation.SegmentSequence[0].RecommendedDisplayCIELabValue
    plain = encode(run(bundle, series), series, when=WHEN)[0].SegmentSequence[0].RecommendedDisplayCIELabValue
    assert lightness != plain


def test_nothing_found_is_said_of_what_was_looked_for(bundle: Path, tmp_path: Path) -> None:
    series = ct_series(tmp_path, voxels=np.full((20, 32, 32), -1000))
    findings = run(bundle, series)
    assert findings.findings == ()
    [report] = encode(findings, series, when=WHEN)
    assert problems(report, series, findings=findings) == []
    assert summary(report) == "No spleen found."


def test_several_labels_are_named_and_what_is_lacking_is_said(own_grid: Path, tmp_path: Path) -> None:
    hu = np.full((20, 48, 40), -1000, np.int16)
    hu[4:9, 5:19, 5:19] = 200
    series = ct_series(tmp_path, voxels=hu)
    table = {**LABELS, "2": {"name": "Liver", "type": ["10200004", "SCT", "Liver"]}}
    findings = run(own_grid, series, table)
    assert findings.warnings == ("not found: Liver",)
    report = encode(findings, series, when=WHEN)[-1]
    assert summary(report).startswith("1 bright found. It is Bright: ")
    empty = ct_series(tmp_path / "empty", voxels=np.full((20, 32, 32), -1000), name="empty")
    [report] = encode(run(own_grid, empty, table), empty, when=WHEN)
    assert summary(report) == "No anatomical structure found."


def test_a_configuration_may_be_yaml(tmp_path: Path) -> None:
    root = threshold_bundle(tmp_path / "bundle", pixdim=None)
    path = root / "configs" / "inference.json"
    path.with_suffix(".yaml").write_text(yaml.safe_dump(json.loads(path.read_text())))
    path.unlink()
    series = ct_series(tmp_path / "ct", voxels=bright_block())
    assert run(root, series).findings[0].mask.sum() == (bright_block() == 200).sum()


def test_parts_of_a_label_can_be_findings_of_their_own(own_grid: Path, tmp_path: Path) -> None:
    hu = np.full((20, 48, 40), -1000, np.int16)
    hu[4:6, 5:9, 5:9] = 200
    hu[10:15, 20:30, 20:30] = 200
    series = ct_series(tmp_path, voxels=hu)
    lesions = {
        "name": "Lesion",
        "type": ["52988006", "SCT", "Lesion"],
        "category": ["49755003", "SCT", "Morphologically Abnormal Structure"],
        "site": ["10200004", "SCT", "Liver"],
        "separate": True,
    }
    findings = run(own_grid, series, {"1": lesions})
    assert [finding.label for finding in findings.findings] == ["Lesion 1", "Lesion 2"]
    assert [int(finding.mask.sum()) for finding in findings.findings] == [500, 32]
    for each in (objects := encode(findings, series, when=WHEN)):
        assert problems(each, series, findings=findings, segmentations=objects[:1]) == []


def test_the_same_bundle_says_the_same(bundle: Path, tmp_path: Path) -> None:
    series = ct_series(tmp_path, voxels=bright_block())
    once, twice = run(bundle, series), run(bundle, series)
    objects = [encode(replace(each, facts={}), series, when=WHEN) for each in (once, twice)]
    assert objects[0] == objects[1]
    assert [each.SOPInstanceUID for each in objects[0]] == [each.SOPInstanceUID for each in objects[1]]


def test_any_change_of_the_bundle_is_another_version(tmp_path: Path) -> None:
    one, other = threshold_bundle(tmp_path / "a"), threshold_bundle(tmp_path / "b")
    assert digest(one) == digest(other)
    (other / "docs").mkdir()
    (other / "docs" / "README.md").write_text("words")
    assert digest(one) == digest(other)
    (other / "scripts").mkdir()
    (other / "scripts" / "__init__.py").write_text("")
    assert digest(one) != digest(other)
    linked, weights = threshold_bundle(tmp_path / "d"), tmp_path / "weights"
    (linked / "models").rename(weights)
    (linked / "models").symlink_to(weights)
    before = digest(linked)
    assert before == digest(threshold_bundle(tmp_path / "e"))
    (weights / "model.pt").write_bytes(b"other weights")
    assert digest(linked) != before, "weights in a linked folder count as well"
    (linked / "scripts").symlink_to(linked)
    assert digest(linked) != before, "a circle of links ends"
    third = threshold_bundle(tmp_path / "c", threshold=101.0)
    assert digest(third) != digest(one)
    versions = {MonaiBundle("cpu", {"bundle": str(b), "labels": LABELS}).card.algorithm.version for b in (one, third)}
    assert len(versions) == 2
    assert all(version.startswith("0.1.0+0.1.0+") for version in versions)


def test_modules_of_two_bundles_are_not_mixed_up(tmp_path: Path) -> None:
    """Each has a package `scripts`, as published bundles do."""
    made = []
    for name, threshold in (("a", 100.0), ("b", 300.0)):
        network = {"_target_": "scripts.net.Shifted", "by": threshold}
        root = threshold_bundle(tmp_path / name, pixdim=None, changes={"network_def": network})
        (root / "scripts").mkdir()
        (root / "scripts" / "__init__.py").write_text("")
        sign = "above" if name == "a" else "below"
        (root / "scripts" / "net.py").write_text(MODULE.format(sign=sign))
        torch.save({}, root / "models" / "model.pt")
        made.append(MonaiBundle("cpu", {"bundle": str(root), "labels": LABELS}))
    assert [pipeline.bundle.network.sign for pipeline in made] == ["above", "below"]
    with importable(tmp_path / "b"):
        assert import_module("scripts.net").SIGN == "below"
    assert "scripts.net" not in sys.modules


MODULE = """
import torch

SIGN = "{sign}"


class Shifted(torch.nn.Module):
    sign = SIGN

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x - self.by], dim=1)
"""


# ------------------------------------------------------------------------------------------------- what is refused


def started(root: Path, **options: Any) -> MonaiBundle:
    return MonaiBundle("cpu", {"bundle": str(root), "labels": LABELS, **options})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network_def": {"_target_": "NoSuchNet"}}, "'network_def' in inference.json of the bundle cannot be made"),
        ({"network_def": "$1 / 0"}, "cannot be made: ZeroDivisionError"),
        ({"network_def": 7}, "is no network but int"),
        ({"preprocessing": {"_target_": "Compose", "transforms": []}}, "loads no image: it has no LoadImaged"),
        (
            {"preprocessing": {"_target_": "LoadImaged", "keys": ["t1", "t2"]}},
            "loads t1, t2; only one series can be given",
        ),
    ],
)
def test_a_bundle_that_cannot_be_run_says_why_at_start(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    root = threshold_bundle(tmp_path / "bundle", changes=changes)
    with pytest.raises(BadOptions, match=said):
        started(root)


@pytest.mark.parametrize("lacking", ["preprocessing", "postprocessing", "network_def"])
def test_a_bundle_without_a_part_says_which(tmp_path: Path, lacking: str) -> None:
    root = threshold_bundle(tmp_path / "bundle")
    path = root / "configs" / "inference.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != lacking}))
    with pytest.raises(BadOptions, match=f"has no '{lacking}'"):
        started(root)


def test_options_are_checked_with_the_settings(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    with pytest.raises(BadOptions, match="must be an absolute path"):
        started(Path("bundle"))
    with pytest.raises(BadOptions, match="is no MONAI bundle: it has no folder 'configs'"):
        started(tmp_path / "nowhere")
    with pytest.raises(BadOptions, match=r"has no configs/inference\.json"):
        started(tmp_path)
    root = threshold_bundle(tmp_path / "bundle")
    for labels, said in [
        ({}, "at least 1 item"),
        ({"one": LABELS["1"]}, "'one' is no label"),
        ({"1": {**LABELS["1"], "type": ["78961009", "SRT", "Spleen"]}}, "SRT is retired"),
        ({"1": {**LABELS["1"], "colour": "red"}}, "colour 'red' of 'Bright' must be like"),
        ({"1": LABELS["1"], "2": LABELS["1"]}, "two labels are called 'Bright'"),
        (
            {"1": {**LABELS["1"], "category": ["49755003", "SCT", "Morphologically Abnormal Structure"]}},
            "say with 'site' where it lies",
        ),
    ]:
        with pytest.raises(BadOptions, match=said):
            started(root, labels=labels)


def test_broken_files_are_refused_in_words(tmp_path: Path) -> None:
    root = threshold_bundle(tmp_path / "bundle")
    (root / "configs" / "inference.json").write_text("{ no json")
    with pytest.raises(BadOptions, match=r"inference\.json cannot be used"):
        started(root)


def test_weights_are_tensors_that_fit_or_are_refused(tmp_path: Path) -> None:
    root = threshold_bundle(tmp_path / "bundle")
    weights = root / "models" / "model.pt"
    whole = weights.read_bytes()
    weights.unlink()
    with pytest.raises(WeightsError, match=r"model\.pt is missing"):
        started(root)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        started(root)
    torch.save({"model": {"weight": torch.zeros(3)}}, weights)
    with pytest.raises(WeightsError, match="the weights do not fit 'network_def'"):
        started(root)
    torch.save({"model": 3}, weights)
    with pytest.raises(WeightsError, match="is no state_dict"):
        started(root)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)  # type: ignore[attr-defined]


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_would_run_code_are_not_opened(tmp_path: Path, zipped: bool) -> None:
    root = threshold_bundle(tmp_path / "bundle")
    trap = Trap()
    trap.path = tmp_path / "sprung"  # type: ignore[attr-defined]
    if zipped:
        torch.save({"model": trap}, root / "models" / "model.pt")
    else:
        (root / "models" / "model.pt").write_bytes(pickle.dumps({"model": trap}))
    with pytest.raises(WeightsError, match="holds more than tensors"):
        started(root)
    assert not (tmp_path / "sprung").exists()


def test_torchscript_weights_are_run_too(tmp_path: Path) -> None:
    from monai.networks.nets import UNet

    from tests.bundles import threshold_weights

    root = threshold_bundle(tmp_path / "bundle", pixdim=None)
    (root / "models" / "model.pt").unlink()
    network = UNet(**NETWORK).eval()
    network.load_state_dict(threshold_weights(100.0))
    torch.jit.trace(network, torch.zeros(1, 1, 32, 32, 16)).save(root / "models" / "model.ts")
    (tmp_path / "ct").mkdir()
    series = ct_series(tmp_path / "ct", voxels=bright_block())
    [finding] = run(root, series).findings
    assert finding.mask.sum() == (bright_block() == 200).sum()


SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
SEVENS = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * 7"}


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ([SOFTMAX], "has 2 channels, and their values are not 0 and 1: probabilities, no masks"),
        (
            [SOFTMAX, ARGMAX, SEVENS],
            r"holds label 7; the table of the route names 1\. Name each in",
        ),
        (
            [{"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x[1:] / 3"}],
            "which are no whole numbers",
        ),
        (
            [{"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x[:1, 1:]"}],
            "does not return to their grid, and nothing is resampled here",
        ),
        ([{"_target_": "DeleteItemsd", "keys": "pred"}], "leaves no 'pred'"),
    ],
)
def test_an_answer_that_is_no_label_map_is_refused_in_words(
    tmp_path: Path, transforms: list[dict[str, Any]], said: str
) -> None:
    back = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    root = threshold_bundle(
        tmp_path / "bundle",
        pixdim=None,
        changes={"postprocessing": {"_target_": "Compose", "transforms": [back, *transforms]}},
    )
    (tmp_path / "ct").mkdir()
    series = ct_series(tmp_path / "ct", voxels=bright_block())
    with pytest.raises(BadOutput, match=said):
        run(root, series)


def test_the_inference_process_runs_it_and_tells_its_reasons(bundle: Path, tmp_path: Path) -> None:
    series = ct_series(tmp_path, voxels=bright_block(), spacing_mm=SPACING_MM)
    files = [Path(str(image.filename)) for image in series]
    inference = Inference("cpu", 60)
    try:
        options = {"bundle": str(bundle), "labels": LABELS, "threads": 1}
        findings = inference.run("monai-bundle", options, files, lambda *_: None)
        assert [finding.label for finding in findings.findings] == ["Bright"]
        (tmp_path / "bad").mkdir()
        other = threshold_bundle(tmp_path / "bad" / "bundle")
        labels = {"2": LABELS["1"]}
        with pytest.raises(GiveUp, match="the bundle's label map holds label 1; the table of the route names 2"):
            inference.run("monai-bundle", {"bundle": str(other), "labels": labels}, files, lambda *_: None)
        (other / "models" / "model.pt").unlink()
        with pytest.raises(GiveUp, match=r"model\.pt is missing"):
            inference.run("monai-bundle", {"bundle": str(other), "labels": LABELS}, files, lambda *_: None)
    finally:
        inference.stop()


def test_a_label_map_of_turned_axes_is_not_used(own_grid: Path) -> None:
    """With square images two opposite corners are the same when rows and columns change places."""
    started = MonaiBundle("cpu", {"bundle": str(own_grid), "labels": LABELS})
    source = SimpleNamespace(shape=(40, 40, 20), affine=np.diag([0.7, 0.7, 2.5, 1.0]))
    swapped = source.affine[:, [1, 0, 2, 3]]
    answer = torch.zeros(1, 40, 40, 20)
    started.bundle._refuse_moved(MetaTensor(answer, affine=torch.tensor(source.affine)), source)
    with pytest.raises(BadOutput, match="beside the images"):
        started.bundle._refuse_moved(MetaTensor(answer, affine=torch.tensor(swapped)), source)
