"""The breast data: a split nobody can leak through, a letterbox that comes back, variation that moves all together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from models.breast_us.letterbox import Letterbox, prepare
from models.breast_us.pipeline import TRAINED_ON
from models.nets.breast_triple import CLASSES
from models.training.breast_us import data
from models.training.breast_us.data import Labelled, Variation, families, make_split, vary


def image(seed: int, label: int, change: int = 0, name: str = "") -> Labelled:
    """A random landscape; `change` disturbs it as little as a second export of the same frame would."""
    rng = np.random.default_rng(seed)
    pixels = ndimage.gaussian_filter(rng.normal(size=(60, 80)), 4)
    pixels = (pixels - pixels.min()) / np.ptp(pixels) * 250
    pixels = pixels + np.random.default_rng(change).normal(0, 2, pixels.shape) * (change > 0)
    return Labelled(name or f"{label}/{seed}-{change}", label, pixels.clip(0, 255).astype(np.uint8), pixels > 200)


@pytest.fixture(scope="module")
def collection() -> list[Labelled]:
    """100 images, every fifth exported twice; one of the twins contradicts its label."""
    images = [image(seed, seed % 3) for seed in range(100)]
    images += [image(seed, seed % 3, change=1) for seed in range(0, 100, 5)]
    return [*images, image(7, 2, change=2)]  # seed 7 is of class 1


def test_look_alikes_are_found_and_nothing_else(collection: list[Labelled]) -> None:
    groups = {frozenset(collection[i].name for i in group) for group in families(collection) if len(group) > 1}
    twins = {frozenset({f"{s % 3}/{s}-0", f"{s % 3}/{s}-1"}) for s in range(0, 100, 5)}
    assert groups == twins | {frozenset({"1/7-0", "2/7-2"})}


def test_split_keeps_families_whole_and_leaves_contradictions_out(collection: list[Labelled]) -> None:
    split = make_split(collection)
    part_of = {name: part for part, names in split.items() for name in names}
    assert len(part_of) == len(collection) == sum(map(len, split.values()))
    assert all(part_of[f"{s % 3}/{s}-0"] == part_of[f"{s % 3}/{s}-1"] for s in range(0, 100, 5))
    assert sorted(split["left_out"]) == ["1/7-0", "2/7-2"]
    assert make_split(collection) == split


def test_split_is_stratified(collection: list[Labelled]) -> None:
    split = make_split(collection)
    label_of = {one.name: one.label for one in collection}
    for label in range(3):
        own = sum(label_of[n] == label for part in ("train", "val", "test") for n in split[part])
        for part, share in data.SHARES.items():
            assert abs(sum(label_of[n] == label for n in split[part]) - share * own) < 2.5


def test_the_shipped_split_vouches_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = data.read_split()
    names = [name for part in split.values() for name in part]
    assert len(names) == len(set(names)) == 629  # the images of the archive, each in one part
    edited = tmp_path / "split.json"
    edited.write_text(data.SPLIT_FILE.read_text("utf-8").replace(split["test"][0], split["test"][0] + "x"), "utf-8")
    monkeypatch.setattr(data, "SPLIT_FILE", edited)
    with pytest.raises(ValueError, match="does not match its own SHA-256"):
        data.read_split()


def test_the_pipeline_knows_how_many_images_of_each_class_were_learnt_from() -> None:
    classes = [name.split("/")[0] for name in data.read_split()["train"]]
    assert {label: classes.count(label) for label in CLASSES} == TRAINED_ON


def test_the_shipped_split_is_the_one_the_code_makes(shared_data: Path) -> None:
    assert make_split(data.read_busi(shared_data / "busi.zip")) == data.read_split()


@pytest.mark.parametrize("source", [(320, 480), (512, 200), (97, 97)])
def test_a_mask_comes_back_to_its_own_pixels(source: tuple[int, int]) -> None:
    y, x = np.indices(source)
    disc = (np.hypot(y - source[0] * 0.3, x - source[1] * 0.6) < min(source) * 0.2).astype(np.float32)
    box = Letterbox(source, 160)
    back = box.take_back(box.put(torch.from_numpy(disc))).numpy() > 0.5
    assert back.shape == source
    overlap = 2 * (back & (disc > 0)).sum() / (back.sum() + disc.sum())
    assert overlap > 0.95


def test_letterbox_keeps_the_proportions() -> None:
    grey, box = prepare(np.full((100, 200), 255, np.uint8), 64)
    assert box.inner == (32, 64)
    assert grey.shape == (64, 64)
    assert (grey[:16] == 0).all()
    assert (grey[16:48] > 0.99).all()


def test_variation_moves_image_and_mask_together() -> None:
    mask = torch.zeros(8, 1, 64, 64)
    mask[:, :, 20:40, 10:30] = 1
    grey = 0.2 + 0.6 * mask
    how = Variation(contrast=(1, 1), brightness=0, gamma=(1, 1), noise=0, erase=0)
    moved, moved_mask = vary(grey, mask, np.random.default_rng(0), how)
    assert not torch.equal(moved_mask, mask)
    assert ((moved > 0.5) == (moved_mask > 0.5)).float().mean() > 0.99
    again = vary(grey, mask, np.random.default_rng(0), how)
    assert torch.equal(again[0], moved)


def test_no_vertical_flip() -> None:
    grey = torch.linspace(0.1, 0.9, 64).view(1, 1, 64, 1).expand(32, 1, 64, 64)  # brighter with depth
    varied, _ = vary(grey, torch.zeros_like(grey), np.random.default_rng(1), Variation(erase=0))
    above, below = varied[:, :, 16:28].mean((1, 2, 3)), varied[:, :, 36:48].mean((1, 2, 3))
    assert (below > above).all()
