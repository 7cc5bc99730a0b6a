"""Pans over a picture whose lesion is known: what keeps its number, what changes it, what is missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom_sr.findings import Findings
from models.breast_us.pipeline import BreastUltrasound
from models.phantoms.breast import breast_ultrasound
from models.read import read_ultrasound
from models.training.breast_us.hospitals import Picture
from models.training.breast_us.pans import DICE, FRAMES, KEPT, OTHERS, SWITCHES, Pan, chosen, judged


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Picture:
    truth = breast_ultrasound(tmp_path_factory.mktemp("breast"), seed=3)
    (frame,) = read_ultrasound(truth.files[0]).frames([0])
    pixels = frame.grey
    lesion = truth.lesions[0]
    mask = np.zeros(pixels.shape, bool)
    _, y, x = lesion.offset_zyx
    mask[y : y + lesion.mask.shape[1], x : x + lesion.mask.shape[2]] = lesion.mask[0]
    return Picture("busi/benign/1.png", 1, pixels, mask)


@pytest.fixture(scope="module")
def pan(picture: Picture) -> Pan:
    made = Pan.over(picture)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def found(pan: Pan, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    path: Path = tmp_path_factory.mktemp("pan") / "pan.dcm"
    pan.save(path)
    return BreastUltrasound("cpu", {"threads": 1}).run([path], lambda _share, _what: None)


def test_the_window_goes_from_corner_to_corner_and_takes_the_truth_along(picture: Picture, pan: Pan) -> None:
    rows, columns = pan.frames.shape[1:]
    assert len(pan.frames) == FRAMES
    np.testing.assert_array_equal(pan.frames[0], picture.pixels[:rows, :columns])
    np.testing.assert_array_equal(pan.frames[-1], picture.pixels[-rows:, -columns:])
    np.testing.assert_array_equal(pan.truth[-1], picture.mask[-rows:, -columns:])


def test_a_frame_with_less_than_half_of_the_lesion_is_not_in_view(picture: Picture) -> None:
    corner = np.zeros_like(picture.mask)
    corner[:20, :20] = True
    made = Pan.over(replace(picture, mask=corner))
    assert made is not None
    assert made.in_view[0]
    assert not made.in_view[-1]
    assert Pan.over(replace(picture, pixels=picture.pixels[:80], mask=corner[:80])) is None


def test_a_phantoms_lesion_keeps_its_number(pan: Pan, found: Findings) -> None:
    told = judged(pan, found)
    assert told[KEPT] > 0.9
    assert told[SWITCHES] == 0
    assert told[DICE] > 0.8


def test_a_lesion_that_gets_another_number_half_way_has_changed_it_once(pan: Pan, found: Findings) -> None:
    one = found.findings[0]
    half = FRAMES // 2 - one.offset_zyx[0]
    z, y, x = one.offset_zyx
    first, second = replace(one, mask=one.mask[:half]), replace(one, number=9, mask=one.mask[half:],
                                                               offset_zyx=(z + half, y, x))  # fmt: skip
    whole, told = judged(pan, found), judged(pan, replace(found, findings=(first, second)))
    assert told[SWITCHES] == 1
    assert told[KEPT] < 0.8
    assert told[DICE] == pytest.approx(whole[DICE])


def test_what_is_nowhere_on_the_lesion_is_another_finding_and_a_refused_pan_is_all_missed(
    pan: Pan, found: Findings
) -> None:
    one = found.findings[0]
    away = replace(one, number=2, mask=np.ones((1, 3, 3), bool), offset_zyx=(0, 0, 0))
    assert judged(pan, replace(found, findings=(one, away)))[OTHERS] == 1
    assert judged(pan, None) == {KEPT: 0.0, SWITCHES: 0.0, DICE: 0.0, OTHERS: 0.0}


def test_one_picture_of_each_family_is_taken(picture: Picture) -> None:
    same = [replace(picture, name=f"busi/benign/{n}.png") for n in (1, 2, 3)]
    assert [family for family, _ in chosen(same, ["a", "a", "b"])] == ["a", "b"]
