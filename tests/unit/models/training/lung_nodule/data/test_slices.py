"""The training data: split by patient, brought back to Hounsfield units, cut without losing the nodule."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from models.training.lung_nodule.data.calibrate import match
from models.training.lung_nodule.data.hounsfield import HU_RANGE, Population
from models.training.lung_nodule.data.slices import (
    SPLIT,
    Slices,
    cut_centre,
    jittered,
    placement,
    split_patients,
    stored_split,
)
from models.training.lung_nodule.residual_unet.evaluate import judge


def test_the_split_is_by_patient_and_stored():
    split, sha256 = stored_split()
    assert sha256 == hashlib.sha256(SPLIT.read_bytes()).hexdigest()
    names = [set(patients) for patients in split.values()]
    assert len(set.union(*names)) == sum(len(part) for part in names)  # nobody is in two splits
    assert [len(part) for part in names] == [384, 55, 110]  # 70/10/20 of 549
    assert split_patients(sorted(set.union(*names))) == split


def test_every_crop_has_a_range_of_hounsfield_units():
    rows = list(csv.DictReader(HU_RANGE.open()))
    assert len(rows) == 7722
    low, high = (np.array([float(row[name]) for row in rows]) for name in ("hu_of_0", "hu_of_255"))
    assert (high - low > 300).all()
    assert np.median(low) == pytest.approx(-1000, abs=60)  # air or lung is the darkest thing of nearly every crop
    assert np.mean([row["found_by"] == "match" for row in rows]) > 0.75


def test_a_stretched_crop_is_matched_to_its_volume():
    random = np.random.default_rng(0)
    hu = random.normal(-700, 200, (128, 128)).round()
    low, high = hu.min(), hu.max()
    grey = ((hu - low) / (high - low) * 255).round().astype(np.uint8)
    volume = np.stack([random.normal(-700, 200, (40, 44)), hu[30:70, 50:94]]).astype(np.float32)
    score, (found_low, found_high) = match(grey, volume)
    assert score > 0.995
    assert (found_low, found_high) == (pytest.approx(low, abs=3), pytest.approx(high, abs=3))
    assert match(grey, volume[:1])[0] < 0.5


def test_an_unmatched_crop_gets_the_most_likely_range():
    random = np.random.default_rng(1)

    def crop(low, high):
        tissue = np.where(
            random.random((128, 128)) < 0.6, random.normal(-850, 40, (128, 128)), random.normal(40, 30, (128, 128))
        )
        return np.clip((tissue - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)

    ranges = np.array([[-1024.0, high] for high in (300, 600, 900, 1200)])
    population = Population.of(np.stack([crop(*r) for r in ranges]), ranges)
    low, high = population.fit(crop(-1024, 760))
    at_zero_hu = low + (high - low) * (1024 / (1024 + 760))
    assert abs(at_zero_hu) < 40


@pytest.mark.parametrize("size", [64, 80, 96, 112, 128])
def test_cuts_keep_the_nodule_or_avoid_it_on_purpose(size):
    random = np.random.default_rng(2)
    mask = np.zeros((128, 128), bool)
    mask[60:70, 58:66] = True
    kept = np.array([cut_centre(mask, size, random, negatives=0.0)[:2] for _ in range(100)])
    assert (np.abs(kept - [64.5, 61.5]) < size / 2 + 5).all()
    assert kept.std(axis=0).min() > 6
    avoiding = np.stack([cut_centre(mask, size, random, negatives=1.0) for _ in range(50)])
    masks = torch.from_numpy(mask)[None, None].float().expand(50, 1, 128, 128)
    grid = placement(avoiding, size, random)
    cut = torch.nn.functional.grid_sample(masks, grid, "bilinear", "reflection", align_corners=False) > 0.5
    assert cut.flatten(1).any(1).float().mean() < 0.25  # the random scale brings a few back, marked as what they are


def test_image_and_mask_are_moved_alike():
    random = np.random.default_rng(3)
    image = torch.zeros(6, 1, 128, 128)
    image[:, :, 50:80, 40:60] = 1000
    grid = placement(np.array([[64.0, 64.0, 1.0]] * 6), 64, random)
    cut = torch.nn.functional.grid_sample(image, grid, "bilinear", "reflection", align_corners=False)
    assert cut.shape == (6, 1, 64, 64)
    share = (cut > 500).float().mean().item() * 64**2  # scaled by 0.85..1.15, turned, flipped: the area stays near
    assert 250 < share < 900
    assert len({tuple((c > 500).any(dim=1)[0].nonzero().ravel().tolist()) for c in cut}) > 2


@pytest.fixture(scope="module")
def around_a_nodule(tmp_path_factory):
    """Ten crops, alike: a bright square of 16 pixels in the middle; of its rows 1, 2, 3, 4 readers marked a quarter."""
    path = tmp_path_factory.mktemp("crops") / "crops.zip"
    image = np.full((128, 128), 20, np.uint8)
    image[56:72, 56:72] = 230
    raters = np.zeros((128, 128), np.uint8)
    for readers in range(1, 5):
        raters[52 + 4 * readers : 56 + 4 * readers, 56:72] = 2**readers - 1
    with zipfile.ZipFile(path, "w") as archive:
        lines = ["patient,nodule,file"]
        for i in range(10):
            lines.append(f"P{i},nodule-0,slice-0.png")
            for name, pixels in (("slice-0", image), ("slice-0_raters", raters)):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "png")
                archive.writestr(f"P{i}/nodule-0/{name}.png", buffer.getvalue())
        archive.writestr("index.csv", "\n".join(lines) + "\n")
    return Slices(path)


def test_a_centred_crop_has_its_nodule_in_the_middle_and_says_how_readers_agree(around_a_nodule):
    (batch,) = around_a_nodule.centred("train", seed=1, size=64, batch=7, negatives=0.0, shift=4.0)
    image, mask, agreement = batch["image"], batch["mask"], batch["agreement"]
    assert image.shape == mask.shape == agreement.shape == (7, 1, 64, 64)
    for one, truth in zip(image[:, 0], mask[:, 0], strict=True):
        places = truth.nonzero().float()
        off = (places.mean(0) - 31.5).numpy()  # the middle of what two or more marked lies 2 pixels below the square's
        assert np.abs(off).max() < 4 * 1.25 + 2 * 1.25 + 0.5
        assert 16 * 12 * 0.6 < len(places) < 16 * 12 * 1.7  # scaled by 0.82 to 1.22
        assert one[truth].mean() > one[~truth].mean() + 0.3  # moved alike
    # linear interpolation bends the border of the mask by less than a pixel
    assert agreement[mask].min() > 0.3
    assert agreement[~mask].max() < 0.75
    assert {round(value, 2) for value in agreement.unique().tolist()} >= {0.0, 0.2, 0.75, 0.95, 1.0}
    angles = {tuple(np.round(truth[0].nonzero().float().std(0).numpy(), 1)) for truth in mask}
    assert len(angles) > 3  # turned by angles of their own


def test_a_share_of_centred_crops_is_without_a_nodule(around_a_nodule):
    (batch,) = around_a_nodule.centred("train", seed=1, size=64, batch=6, negatives=0.5, shift=4.0)
    assert batch["mask"].flatten(1).any(1).tolist() == [False] * 3 + [True] * 3
    assert batch["agreement"][:3].max() == 0
    again = next(around_a_nodule.centred("train", seed=1, size=64, batch=6, negatives=0.5, shift=4.0))
    assert torch.equal(batch["image"], again["image"])


def test_other_scanners_change_contrast_but_not_the_picture():
    random = np.random.default_rng(4)
    hu = torch.full((64, 1, 32, 32), -850.0)
    hu[:, :, 8:24, 8:24] = 40
    other = jittered(hu, random)
    inside, outside = other[:, :, 10:22, 10:22].mean((1, 2, 3)), other[:, :, :6].mean((1, 2, 3))
    assert ((inside - outside) > 700).all()
    assert 10 < outside.std() < 80


def test_figures_of_answers_known_by_hand():
    truth = np.zeros((3, 20, 20), bool)
    truth[:, 5:9, 5:9] = True  # 16 pixels on each of three slices, two nodules
    predicted = truth.copy()
    predicted[1, 5:9, 5:7] = False  # half of it: Dice 2/3, IoU 1/2
    predicted[2] = False
    predicted[2, 15, 15] = True  # only a mark elsewhere
    found = judge(predicted, truth, ["a/1", "a/1", "b/1"])
    assert found["Dice, nodule slices"].value == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["IoU, nodule slices"].value == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["marks elsewhere, per slice"].value == pytest.approx(1 / 3)
    assert found["nodule slices touched by a mark"].value == pytest.approx(2 / 3)
    assert found["Dice, whole nodules"].value == pytest.approx((48 / 56 + 0) / 2)
