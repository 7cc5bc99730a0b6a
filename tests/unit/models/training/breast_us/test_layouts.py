"""BUSI in either layout: the same pixels and masks, and no near-duplicate in two parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.nets.breast_triple import CLASSES
from models.phantoms.breast import Ellipse, breast_picture
from models.training.breast_us import data
from models.training.breast_us.data import Labelled, folds, parts, read_busi, split_sha256
from models.training.layouts import UnknownLayout

SPACING_MM = (0.25, 0.25)


def picture(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A breast phantom of a size of its own, the mask of its lesion, and that of a second one."""
    rng = np.random.default_rng(seed)
    shape = (90 + 7 * (seed % 3), 120 + 5 * (seed % 4))
    lesion = Ellipse(rng.uniform(10, 16), rng.uniform(10, 14), (4.0, 2.5), rng.uniform(-20, 20))
    y, x = (np.indices(shape) + 0.5) * 0.25
    second = Ellipse(22.0, 17.0, (2.0, 1.5), 0.0)
    return breast_picture(rng, shape, SPACING_MM, lesion, 6.0), lesion.radius(x, y) <= 1, second.radius(x, y) <= 1


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each class as published: RGB, some with two masks; 10 comes after 2."""
    folder = tmp_path_factory.mktemp("busi") / "Dataset_BUSI_with_GT"
    for c, label in enumerate(("benign", "malignant", "normal")):
        (folder / label).mkdir(parents=True)
        for number in (2, 10):
            pixels, mask, second = picture(10 * c + number)
            stem = folder / label / f"{label} ({number})"
            Image.fromarray(np.repeat(pixels[..., None], 3, axis=-1)).save(f"{stem}.png")
            Image.fromarray((mask if label != "normal" else mask * False).astype(bool)).save(f"{stem}_mask.png")
            if label == "benign":
                Image.fromarray(np.where(second, 255, 0).astype(np.uint8)).save(f"{stem}_mask_1.png")
    return folder.parent


def test_published_images_are_read_with_all_their_masks(published: Path) -> None:
    images = {image.name: image for image in read_busi(published)}
    assert list(images) == [f"{label}/{n}.png" for label in sorted(CLASSES) for n in (2, 10)]
    for c, label in enumerate(("benign", "malignant", "normal")):
        for number in (2, 10):
            pixels, mask, second = picture(10 * c + number)
            truth = mask | second if label == "benign" else mask if label == "malignant" else mask & False
            one = images[f"{label}/{number}.png"]
            np.testing.assert_array_equal(one.pixels, pixels)
            np.testing.assert_array_equal(one.mask, truth)
            assert CLASSES[one.label] == label


def test_zip_folder_and_index_give_the_same(published: Path, tmp_path: Path) -> None:
    images = read_busi(published)
    shutil.make_archive(str(tmp_path / "busi"), "zip", published)
    rows = ["file,class"]
    for image in images:
        path = tmp_path / "indexed" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.pixels).save(path)
        Image.fromarray(np.where(image.mask, 255, 0).astype(np.uint8)).save(f"{path}"[:-4] + "_mask.png")
        rows.append(f"{image.name},{CLASSES[image.label]}")
    (tmp_path / "indexed" / "index.csv").write_text("\n".join(rows) + "\n")
    shutil.make_archive(str(tmp_path / "indexed"), "zip", tmp_path / "indexed")
    for path in (tmp_path / "busi.zip", tmp_path / "indexed", tmp_path / "indexed.zip"):
        for one, other in zip(images, read_busi(path), strict=True):
            assert (one.name, one.label) == (other.name, other.label)
            np.testing.assert_array_equal(one.pixels, other.pixels)
            np.testing.assert_array_equal(one.mask, other.mask)


def test_what_is_missing_is_said(published: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(published, tmp_path / "copy")) / "Dataset_BUSI_with_GT"
    (copy / "malignant" / "malignant (2)_mask.png").unlink()
    with pytest.raises(UnknownLayout, match=r"malignant/malignant \(2\)\.png has no mask"):
        read_busi(copy)
    Image.fromarray(np.zeros((5, 5), bool)).save(copy / "malignant" / "malignant (2)_mask.png")
    with pytest.raises(UnknownLayout, match=r"its mask \(5, 5\)"):
        read_busi(copy)
    shutil.rmtree(copy / "normal")
    with pytest.raises(UnknownLayout, match=r"neither an index\.csv nor the three classes"):
        read_busi(copy)


def image(name: str, seed: int, change: int = 0) -> Labelled:
    """Low-frequency noise, so that equal seeds look alike and others do not."""
    low = np.random.default_rng(seed).normal(size=(8, 8))
    pixels = np.asarray(Image.fromarray(low.astype(np.float32)).resize((64, 48), Image.Resampling.BICUBIC))
    pixels = (pixels - pixels.min()) / np.ptp(pixels) * 250
    pixels = pixels + np.random.default_rng(change).normal(0, 2, pixels.shape) * (change > 0)
    label = CLASSES.index(name.split("/")[0])
    return Labelled(name, label, pixels.clip(0, 255).astype(np.uint8), pixels > 200)


KNOWN = [image(f"{CLASSES[n % 3]}/{n}.png", n) for n in range(30)]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A shipped split of 30 images."""
    monkeypatch.setattr(data, "SPLIT_FILE", tmp_path / "split.json")
    monkeypatch.setattr(data, "HASH_FILE", tmp_path / "hashes.json")
    data.write_split(KNOWN)
    return data.read_split()


def named(placed: dict[str, list[Labelled]]) -> dict[str, list[str]]:
    return {part: [image.name for image in images] for part, images in placed.items()}


def test_known_images_stay_and_strangers_are_unseen(stored: dict[str, list[str]]) -> None:
    placed, sha256 = parts(KNOWN[::-1])
    assert named(placed) == {**stored, "unseen": []}
    assert sha256 == split_sha256(stored)
    placed, sha256 = parts([*KNOWN, image("benign/900.png", 900)])
    assert named(placed)["unseen"] == ["benign/900.png"]
    assert named(placed)["test"] == sorted([*stored["test"], "benign/900.png"])
    assert named(placed)["train"] == stored["train"]
    assert sha256 == split_sha256(stored)


def test_a_near_duplicate_goes_where_its_relative_is(stored: dict[str, list[str]]) -> None:
    for part in ("train", "val", "test"):
        relative = next(one for one in KNOWN if one.name == stored[part][0])
        seed = int(relative.name.split("/")[1].removesuffix(".png"))
        twin = image(f"{relative.name.split('/')[0]}/800.png", seed, change=1)
        assert twin.name in named(parts([*KNOWN, twin])[0])[part]
        without = [one for one in KNOWN if one is not relative]  # the weights have seen it, the site has not
        placed = named(parts([*without, twin])[0])
        assert twin.name in placed[part]
        assert twin.name not in placed["unseen"]
        contradicting = image(f"{CLASSES[(relative.label + 1) % 3]}/801.png", seed, change=1)
        assert contradicting.name in named(parts([*KNOWN, contradicting])[0])["left_out"]


def test_another_image_under_a_known_name_is_a_stranger(stored: dict[str, list[str]]) -> None:
    name = stored["train"][0]
    other = [one for one in KNOWN if one.name != name] + [image(name, 950)]
    placed = named(parts(other)[0])
    assert name in placed["unseen"]
    assert name not in placed["train"]


def test_a_new_collection_is_split_anew(stored: dict[str, list[str]]) -> None:
    strangers = [image(f"{CLASSES[n % 3]}/{n}.png", n) for n in range(1000, 1040)]
    placed, sha256 = parts(strangers)
    assert named(placed) == {**data.make_split(strangers), "unseen": []}
    judged, stored_sha256 = parts(strangers, anew=False)  # to weights of the stored split
    names = sorted(image.name for image in strangers)
    assert named(judged)["unseen"] == named(judged)["test"] == names
    assert stored_sha256 == split_sha256(stored)
    assert sha256 != split_sha256(stored)
    assert parts(strangers, "fresh")[1] == sha256
    assert parts(KNOWN, "fresh")[1] == parts(KNOWN[::-1], "fresh")[1]  # the same images, the same split
    with pytest.raises(ValueError, match="no strategy"):
        parts(KNOWN, "new")  # type: ignore[arg-type]


@given(st.integers(2, 6), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=8, max_size=40))
@settings(max_examples=25, deadline=None)
def test_folds_keep_families_whole_and_classes_even(k: int, drawn: list[tuple[int, int]]) -> None:
    """Seeds drawn twice are near-duplicates."""
    images = [image(f"{CLASSES[label]}/{n}.png", seed, change=n) for n, (seed, label) in enumerate(drawn)]
    found = folds(images, k)
    home = {name: part for part, names in found.items() for name in names}
    assert len(home) == len(images) == sum(map(len, found.values()))
    groups = data.families(images)
    assert all(len({home[images[i].name] for i in group}) == 1 for group in groups)
    for label in range(len(CLASSES)):
        own = [g for g in groups if {images[i].label for i in g} == {label}]
        counts = [sum(name.startswith(CLASSES[label]) for name in found[f"fold {i + 1}"]) for i in range(k)]
        assert max(counts) - min(counts) <= max(map(len, own), default=0)
    assert folds(images[::-1], k) == found
    with pytest.raises(ValueError, match="at least 2"):
        folds(images, 1)


def test_the_published_sizes_are_recognised(shared_data: Path) -> None:
    """Images of the archive, enlarged as the originals are, still are the ones of the stored split."""
    images = read_busi(shared_data / "busi.zip")
    large = [
        Labelled(one.name, one.label, np.asarray(Image.fromarray(one.pixels).resize((560, 470))), one.mask)
        for one in images[::25]
    ]
    split = data.read_split()
    placed, sha256 = parts(large)
    assert not placed["unseen"]
    assert sha256 == split_sha256(split)
    assert all({image.name for image in placed[part]} <= set(split[part]) for part in split)
    assert set(json.loads(data.HASH_FILE.read_text())) == {image.name for image in images}
    assert named(parts(images)[0]) == {**split, "unseen": []}
    found = folds(images)
    assert max(len(found[f"fold {i}"]) for i in range(1, 6)) <= 125
