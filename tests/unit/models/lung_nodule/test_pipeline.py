"""The lung-nodule pipeline: phantom nodules come back where they are, in whatever way the patient lay."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydicom import dcmread

from dicom_sr import codes, encode, read
from dicom_sr.findings import Evaluation, Findings
from dicom_sr.importance import by_importance
from models import weights
from models.lung_nodule.detections import Candidate, Marked
from models.lung_nodule.lungs import Lungs, find_lungs
from models.lung_nodule.options import Options
from models.lung_nodule.pipeline import REFINERS, LungNodule, finding
from models.lung_nodule.preprocess import PREPROCESSING, SIDE, window
from models.lung_nodule.rules import axes_of_inertia, like_no_nodule, soft_tissue_around, unfit
from models.lung_nodule.sliding_unet import SlidingUNet, candidates, resampled, tiles
from models.nets.baselines import build_net
from models.options import BadOptions
from models.phantoms import Truth
from models.phantoms.chest import PATIENT_POSITIONS, chest_ct
from models.pipeline import UnfitInput
from models.read import Volume, read_ct
from models.training.evaluation.shipped import dice
from models.training.export import export
from models.training.lung_nodule.residual_unet.recipe import Config
from models.training.train import configured
from models.weights import WeightsError
from tests.harness import need
from tests.results import WHEN, assert_same

SIZES = (
    codes.LONG_AXIS,
    codes.SHORT_AXIS,
    codes.MEAN_DIAMETER,
    codes.MAX_3D_DIAMETER,
    codes.VOXEL_VOLUME,
    codes.MESH_VOLUME,
)


@pytest.fixture(scope="module")
def pipeline() -> LungNodule:
    return LungNodule("cpu", {"threads": 1})


def phantom(folder: Path, orientation: str, order: str = "shuffled") -> Truth:
    """Two nodules in a thin slab on coarse pixels: a few seconds."""
    return chest_ct(
        folder, seed=3, slices=18, size=320, spacing_mm=(2.5, 1.1, 1.1), orientation=orientation, order=order, nodules=2
    )


def silent(_fraction: float, _what: str) -> None:
    pass


@pytest.mark.parametrize("orientation", ["HFS", "FFS", "HFP"])
def test_nodules_come_back_at_their_place_in_the_patient(pipeline, tmp_path, orientation):
    truth = phantom(tmp_path, orientation)
    told: list[float] = []
    found = pipeline.run(sorted(tmp_path.iterdir()), lambda fraction, _: told.append(fraction))
    volume = read_ct(truth.files)
    assert [ref.sop_instance_uid for ref in found.images] == [str(dcmread(f).SOPInstanceUID) for f in truth.files]
    for lesion in truth.lesions:
        best = min(found.findings, key=lambda f: np.linalg.norm(np.subtract(centre(f, volume), lesion.centre_lps_mm)))
        assert np.linalg.norm(np.subtract(centre(best, volume), lesion.centre_lps_mm)) < 2.0
        side = codes.LEFT if lesion.centre_lps_mm[0] > 0 else codes.RIGHT
        assert best.laterality in ((side,) if abs(lesion.centre_lps_mm[0]) > 25 else (side, None))
        values = {m.name: m.value for m in best.measurements}
        assert values[codes.LONG_AXIS] == pytest.approx(lesion.long_axis_mm, abs=3.5)
    assert told == sorted(told)
    assert told[-1] == 1.0


def what_is_said(folder: Path, orientation: str):
    """(place, numbers, words) of each true nodule of the phantom, measured on its true mask."""
    truth = phantom(folder, orientation)
    volume = read_ct(truth.files)
    lungs = find_lungs(volume)
    said = []
    for lesion in truth.lesions:
        found = finding(1, Candidate(lesion.mask, lesion.offset_zyx, 0.9), volume, lungs)
        values = {m.name: m.value for m in found.measurements}
        assert values[codes.LONG_AXIS] == pytest.approx(lesion.long_axis_mm, abs=1.1)  # one pixel
        assert values[codes.SHORT_AXIS] == pytest.approx(lesion.short_axis_mm, abs=1.1)
        assert values[codes.MEAN_HU] < lesion.hu + 20
        assert found.laterality == (codes.LEFT if lesion.centre_lps_mm[0] > 0 else codes.RIGHT)
        assert found.site == codes.LUNG  # no lobe is guessed
        assert Evaluation(codes.NODULE_TYPE, codes.SOLID) in found.evaluations
        said.append((lesion.centre_lps_mm, values, found.evaluations))
    return said


@pytest.fixture(scope="module")
def supine(tmp_path_factory):
    return what_is_said(tmp_path_factory.mktemp("supine"), "HFS")


@pytest.mark.parametrize("orientation", PATIENT_POSITIONS[1:])
def test_what_is_said_of_a_nodule_is_the_same_however_the_patient_lies(supine, tmp_path, orientation):
    """Sizes, type and side to the digit; HU and pleura as far as the scan is another: noise, and the lungs' grid."""
    for (here, mine, my_words), (there, theirs, their_words) in zip(
        supine, what_is_said(tmp_path, orientation), strict=True
    ):
        assert here == pytest.approx(there)
        assert my_words == their_words
        for code in SIZES:
            assert mine[code] == theirs[code]
        assert mine[codes.MEAN_HU] == pytest.approx(theirs[codes.MEAN_HU], abs=8)
        assert mine.get(codes.PLEURA_DISTANCE, -9) == pytest.approx(theirs.get(codes.PLEURA_DISTANCE, -9), abs=1)


def run_on_truth(truth: Truth, monkeypatch, **options) -> Findings:
    """The pipeline with a detector that knows the truth: what is tested is all that comes after it."""

    pipeline = LungNodule("cpu", {"threads": 1, **options})
    known = [Candidate(lesion.mask, lesion.offset_zyx, 0.94) for lesion in truth.lesions]
    monkeypatch.setattr(type(pipeline.detector), "__call__", lambda *_: Marked(known, (), {}))
    return pipeline.run(truth.files, silent)


@pytest.mark.parametrize("purpose", ["screening", "incidental", None])
def test_categories_are_suggested_only_for_the_purpose_the_route_names(tmp_path, monkeypatch, purpose):
    found = run_on_truth(phantom(tmp_path, "HFS"), monkeypatch, purpose=purpose)
    assert len(found.findings) == 2
    withheld = " ".join(text for text in found.warnings if text.startswith("No category"))
    suggested = 0
    for one in found.findings:
        names = [e.name.meaning for e in one.evaluations]
        assert names[:2] == ["Texture", "Rule of the nodule type"]
        expected = {"screening": ["Suggested Lung-RADS"], "incidental": ["Suggested Fleischner"] * 2, None: []}[purpose]
        if one.label in withheld:  # its size is too near to a step
            expected = []
        assert len(names) - 2 == len(expected)
        assert all(name.startswith(start) for name, start in zip(names[2:], expected, strict=True))
        suggested += len(expected)
    assert (suggested > 0) == (purpose is not None)
    assert any("to be confirmed by the radiologist" in text for text in found.warnings) == (purpose is not None)


def test_on_thick_slices_neither_type_nor_category_is_stated(tmp_path, monkeypatch):
    truth = chest_ct(tmp_path, seed=3, slices=12, size=200, spacing_mm=(4.0, 1.8, 1.8), nodules=1)
    found = run_on_truth(truth, monkeypatch, purpose="screening")
    assert [one.evaluations for one in found.findings] == [()]
    assert any("no nodule type is stated" in text for text in found.warnings)


def test_a_part_solid_nodule_has_its_solid_part_measured():
    spacing = (1.0, 0.7, 0.7)
    hu = np.where(ball((4, 4, 4)), 30, np.where(ball((9, 9, 9)), -600, -860)).astype(np.int16)
    volume = Volume(hu, (), spacing, np.diag([*spacing, 1.0]), ())
    lungs = Lungs(np.ones(hu.shape, bool), 4000.0, None)
    (candidate,) = candidates(np.where(ball((9, 9, 9)), 240, 0).astype(np.uint8), Options())
    found = finding(1, candidate, volume, lungs)
    values = {m.name: m.value for m in found.measurements}
    assert Evaluation(codes.NODULE_TYPE, codes.PART_SOLID) in found.evaluations
    assert values[codes.SOLID_DIAMETER] == pytest.approx(8, abs=0.7)
    assert values[codes.MEAN_DIAMETER] == pytest.approx(18, abs=0.7)
    assert found.laterality is None  # nothing tells the sides here


@pytest.mark.parametrize("purpose", ["screening", "incidental"])
def test_everything_measured_is_in_the_report_and_comes_back(tmp_path, monkeypatch, purpose):
    truth = phantom(tmp_path, "HFS")
    found = run_on_truth(truth, monkeypatch, purpose=purpose)
    headers = [dcmread(file, stop_before_pixels=True) for file in truth.files]
    *segmentations, report = encode(found, headers, when=WHEN)
    again = read.findings(report, segmentations, found.images)
    assert_same(again, found)
    for one in again.findings:
        names = [m.name for m in one.measurements]
        assert {*SIZES, codes.MEAN_HU, codes.SD_HU, codes.MIN_HU, codes.MAX_HU} <= set(names)
    program = need("dciodvfy", beside_python=True)
    for number, dataset in enumerate((*segmentations, report)):
        path = tmp_path / f"result-{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        said = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in said.stdout + said.stderr


def centre(finding, volume: Volume):
    index = np.array(finding.offset_zyx) + np.argwhere(finding.mask).mean(axis=0)
    return volume.position_lps_mm(index.tolist())


def test_the_same_files_give_the_same_findings_and_keep_the_contract(pipeline, tmp_path):
    files = phantom(tmp_path, "FFP").files
    one, two = pipeline.run(files, silent), pipeline.run(files[::-1], silent)
    assert len(one.findings) == len(two.findings) > 0
    for a, b in zip(one.findings, two.findings, strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)
        assert (a.offset_zyx, a.measurements, a.certainty, a.label) == (
            b.offset_zyx,
            b.measurements,
            b.certainty,
            b.label,
        )
    assert [f.number for f in one.findings] == list(range(1, len(one.findings) + 1))
    assert list(one.findings) == by_importance(one.findings)
    for each in one.findings:
        assert each.mask.dtype == bool
        for axis in range(3):
            assert each.mask.any(axis=tuple({0, 1, 2} - {axis}))[[0, -1]].all()  # the smallest box
        assert each.key_image == each.offset_zyx[0] + each.mask.sum(axis=(1, 2)).argmax()
        assert 0.5 <= each.certainty <= 1
        assert each.long_axis.image == each.short_axis.image == each.key_image
    assert one.algorithm == pipeline.card.algorithm
    assert next(iter(pipeline.card.weights_sha256.values())).startswith(one.algorithm.version.split("+")[1])
    assert pipeline.card.intended_use.endswith("Research use only, not for diagnostic use.")


def test_other_views_and_chests_without_lungs_are_refused_in_words(pipeline, tmp_path):
    with pytest.raises(UnfitInput, match="not axial"):
        pipeline.run(phantom(tmp_path / "a", "coronal").files, silent)
    with pytest.raises(UnfitInput, match="too few"):
        pipeline.run(phantom(tmp_path / "b", "HFS").files[:3], silent)


def test_sliding_puts_every_pixel_back_where_it_was():
    """With a network that gives back its input, blending must give back the image, also at its very edge."""
    sliding = LungNodule("cpu", {"threads": 1, "detector": "sliding-unet"}).detector
    assert isinstance(sliding, SlidingUNet)
    sliding.look = dataclasses.replace(sliding.look, net=lambda batch: (batch,))
    image = torch.from_numpy(np.random.default_rng(0).uniform(-1000, 400, (150, 210)).astype(np.float32))
    lung = np.zeros((150, 210), bool)
    lung[:90, 20:] = True
    got, windows = sliding.slide(image, lung)
    torch.testing.assert_close(got[lung], torch.sigmoid(window(image.clone()))[lung], atol=1e-3, rtol=0)
    assert windows == 6
    assert next(tiles(lung)) == (0, 20)


def test_the_second_look_has_weights_of_its_own(pipeline):
    once = LungNodule("cpu", {"threads": 1, "refine": False})
    assert once.refiner is None
    (shipped,) = once.card.weights_sha256
    assert pipeline.refiner.side == 64
    assert list(pipeline.card.weights_sha256) == [shipped, REFINERS["model-2"]]
    assert once.card.algorithm.version != pipeline.card.algorithm.version  # the report says which it was
    once.warm()
    pipeline.warm()


@pytest.mark.parametrize("changes", [{"vit": "true", "scse": "encoder"}, {"scse": "encoder+bottleneck"}])
def test_refinement_takes_either_model_of_the_source(tmp_path, changes):
    """Model 1 (ViT) and Model 2 by `refine_checkpoint`, as a training writes them; untrained: any outline will do."""
    config = configured(Config(), {"width": "8", "crop": "64", "centred": "true", **changes})
    torch.manual_seed(0)
    net = build_net(dataclasses.asdict(config))
    recipe = SimpleNamespace(name="other", config=config, split_sha256="5" * 64, preprocessing=PREPROCESSING)
    path = export(recipe, net, {}, 0, tmp_path)
    pipeline = LungNodule("cpu", {"threads": 1, "refine_checkpoint": str(path)})
    assert pipeline.refiner.side == 64
    digest = pipeline.card.weights_sha256["other"]
    assert digest == weights.load(path).sha256
    found = pipeline.run(phantom(tmp_path / "ct", "HFS").files, silent)
    assert found.algorithm.version.endswith(digest[:8])
    assert len(found.findings) >= 2
    crops = torch.rand(2, 1, 64, 64)
    expected = torch.sigmoid(weights.load(path).into(build_net(dataclasses.asdict(config)))(crops))
    torch.testing.assert_close(pipeline.refiner(crops), expected, atol=0.1, rtol=0)  # bfloat16, where there is one


@pytest.mark.parametrize(("refiner", "vit"), [("model-1", True), ("model-2", False)])
def test_a_route_chooses_between_the_models_of_the_source(tmp_path, refiner, vit):
    """Both ship; the report's version and the weights on the page say which outlined."""
    pipeline = LungNodule("cpu", {"threads": 1, "refiner": refiner})
    assert list(pipeline.card.weights_sha256)[1] == REFINERS[refiner]
    config = pipeline.refiner.loaded.about["config"]
    assert (config["vit"], config["centred"], pipeline.refiner.side) == (vit, True, 64)
    truth = phantom(tmp_path, "HFS")
    found = pipeline.run(truth.files, silent)
    assert found.algorithm.version.endswith(pipeline.refiner.loaded.sha256[:8])
    overlaps = [max(dice(lesion, one) for one in found.findings) for lesion in truth.lesions]
    assert min(overlaps) > 0.6, overlaps


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            ({"refine": False, name: value}, f"{name} is without effect where refine = false")
            for name, value in (("refiner", "model-1"), ("refine_checkpoint", "a"), ("refine_flips", True))
        ),
        ({"refiner": "model-2", "refine_checkpoint": "a"}, "refiner is without effect beside refine_checkpoint"),
        ({"refiner": "model-3"}, "model-1"),
    ],
)
def test_what_would_be_without_effect_on_the_outlines_is_refused(options, said):
    with pytest.raises(BadOptions, match=said):
        Options.read(options)


def test_weights_of_the_second_look_are_refused_for_the_first():
    path = weights.packed("lung_nodule", REFINERS["model-2"])
    with pytest.raises(WeightsError, match="learnt on crops of 64 pixels, not of 128"):
        LungNodule("cpu", {"detector": "sliding-unet", "checkpoint": str(path)})


def test_pixels_of_unknown_size_are_resampled():
    hu, lung = np.zeros((100, 200), np.int16), np.ones((100, 200), bool)
    assert resampled(hu, lung, (0.7, 0.7))[0].shape == (100, 200)
    image, mask = resampled(hu, lung, (0.35, 1.4))
    assert image.shape == mask.shape == (50, 400)


def test_candidates_join_in_three_dimensions_and_need_a_peak():
    probability = np.zeros((4, 20, 20), np.uint8)
    probability[0, 5, 5], probability[1, 6, 6] = 250, 200  # diagonal neighbours: one piece
    probability[3, 15:18, 15:18] = 150  # above the threshold, below the peak
    (only,) = candidates(probability, Options())
    assert only.offset_zyx == (0, 5, 5)
    assert only.mask.sum() == 2
    assert only.certainty == pytest.approx(225 / 255)


def test_a_vessel_goes_on_where_a_nodule_ends():
    spacing, affine = (1.0, 0.7, 0.7), np.diag([1.0, 0.7, 0.7, 1.0])
    mask = ball((5, 5, 5))
    (candidate,) = candidates(np.where(mask, 240, 0).astype(np.uint8), Options())
    lungs = Lungs(np.ones(mask.shape, bool), 4000.0, None)

    def around(tissue):
        return soft_tissue_around(candidate, Volume(np.where(tissue, 40, -850), (), spacing, affine, ()), lungs)

    assert around(mask) == 0
    assert around(mask | ball((30, 2, 2))) == pytest.approx(2 * np.pi * 2**2 / (4 * np.pi * 7**2), abs=0.03)
    assert around(ball((30, 12, 12))) > 0.9
    assert around(np.ones_like(mask)) == 1


def ball(radii_mm, spacing=(1.0, 0.7, 0.7), shape=(40, 80, 80)):
    points = np.stack(np.indices(shape), -1) * spacing - (np.array(shape) // 2) * np.array(spacing)
    return ((points / radii_mm) ** 2).sum(-1) <= 1


@pytest.mark.parametrize(
    ("radii_mm", "in_lung", "reason"),
    [
        ((5, 5, 5), True, None),
        ((5, 6, 8), True, None),
        ((1, 1, 1), True, "below 4 mm"),
        ((19, 25, 25), True, "above 40 mm"),
        ((18, 2.5, 2.5), True, "longer than wide"),
        ((0.5, 4, 4), True, "one slice only"),
        ((2.1, 14, 14), True, "wider than thick"),
        ((5, 5, 5), False, "inside the lungs"),
    ],
)
def test_what_is_no_nodule_and_why(radii_mm, in_lung, reason):
    mask = ball(radii_mm)
    spacing = (1.0, 0.7, 0.7)
    affine = np.diag([*spacing, 1.0])
    probability = np.where(mask, 240, 0).astype(np.uint8)
    volume = Volume(np.where(mask, 40, -850).astype(np.int16), (), spacing, affine, ())
    (candidate,) = candidates(probability, Options())
    lungs = Lungs(np.full(mask.shape, in_lung), 4000.0, None)
    options = Options(detector="sliding-unet")
    said = unfit(candidate, volume, lungs, options) or like_no_nodule(candidate, volume, lungs, options)
    assert said is None if reason is None else reason in said


@pytest.mark.parametrize("radii_mm", [(6, 6, 6), (12, 4, 4), (4, 6, 12)])
def test_axes_of_known_bodies(radii_mm):
    # the variance of a uniform ellipsoid along an axis is a fifth of the half axis squared
    expected = [r / 5**0.5 for r in sorted(radii_mm)]
    assert axes_of_inertia(ball(radii_mm), (1.0, 0.7, 0.7)) == pytest.approx(expected, rel=0.06)


def test_window_is_that_of_the_training():
    torch.testing.assert_close(window(torch.tensor([-3000.0, -1000, -300, 400, 3000])), torch.tensor([0, 0, 0.5, 1, 1]))
    assert SIDE == 128


def test_the_real_chest_ct_is_read_and_answered(pipeline, shared_data, tmp_path):
    """A quarter of the scan: sizes and places must make sense; nobody has read this scan for nodules."""
    import zipfile

    with zipfile.ZipFile(shared_data / "ct_CMB-CRC-MSB-01068.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".dcm"))[40:52]:
            archive.extract(name, tmp_path)
    found = pipeline.run(sorted(tmp_path.rglob("*.dcm")), silent)
    assert len(found.images) == 12
    assert 300 < found.facts["lungs_ml"] < 1500
    for each in found.findings:
        values = {m.name: m.value for m in each.measurements}
        assert 3.9 <= values[codes.MEAN_DIAMETER] <= 40.1
