"""How far sizes are off, on shapes whose size is known by hand; and the margin that follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.lung_nodule.detections import Candidate
from models.phantoms.chest_anatomy import Ball
from models.read import Volume
from models.training.lung_nodule.figures.sizes import (
    BORDER,
    SERVED,
    WHAT,
    Known,
    Off,
    Size,
    back_and_forth,
    ball_mm3,
    document,
    half_height,
    margin_mm,
    summary,
)

MM = (1.0, 0.5, 0.5)


def ball(radius_mm: float, spacing_mm: tuple[float, float, float] = MM) -> np.ndarray:
    line = [np.arange(-round(12 / mm), round(12 / mm) + 1) * mm for mm in spacing_mm]
    return np.linalg.norm(np.meshgrid(*line, indexing="ij"), axis=0) <= radius_mm


def known(radius_mm: float = 5.0) -> Known:
    mask = ball(radius_mm)
    hu = np.where(mask, 40, -860).astype(np.int16)
    volume = Volume(hu, (), MM, np.diag([*MM, 1.0]), ())
    one = Candidate(mask, (0, 0, 0), 1.0).with_mask(mask, (0, 0, 0))
    return Known(volume, mask, (0, 0, 0), Size.of(mask, MM), "A", one)


def test_a_ball_has_the_size_that_geometry_gives_it() -> None:
    size = Size.of(ball(6), MM)
    assert (size.long_mm, size.short_mm) == (pytest.approx(12, abs=0.3), pytest.approx(12, abs=0.3))
    assert size.mm3 == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.03)
    smooth = Ball(np.zeros(3), np.array([6.0, 4.0, 5.0]), np.zeros((0, 3)), np.zeros(0), 0.0)
    assert ball_mm3(smooth) == pytest.approx(4 / 3 * np.pi * 120, rel=0.01)


def test_what_is_off_is_larger_than_the_truth() -> None:
    told = Size(10, 8, 300).off(Size(9, 8.5, 200))
    assert told == dict(zip(WHAT, (1, -0.5, 0.25, pytest.approx(50)), strict=True))


def test_the_way_to_one_millimetre_and_back_keeps_a_ball_and_is_where_it_was() -> None:
    one = known()
    there = back_and_forth(one)
    assert there is not None
    assert one.dice(there) > 0.9


def test_the_border_at_half_height_is_that_of_the_picture_not_of_the_outline() -> None:
    one = known(5.0)
    wide = Candidate(ball(6.0), (0, 0, 0), 1.0)
    lines = half_height(one, wide)
    assert lines is not None
    assert lines[0] == pytest.approx(10, abs=0.4)
    lung = replace(one, volume=replace(one.volume, values=np.full_like(one.volume.hu, -860)))
    assert half_height(lung, wide) is None


def off(mean_mm: float, group: str, true_mm: float = 8.0) -> Off:
    values = dict.fromkeys(WHAT, 0.0) | {"mean diameter, mm": mean_mm, "Dice": 0.8}
    return Off(group, group, true_mm, {SERVED: values, BORDER: {"mean diameter, mm": 0.0}})


def test_the_margin_is_that_of_the_worse_group_to_the_next_tenth() -> None:
    near = [off(mm, "A") for mm in (0.1, -0.2, 0.3, -0.4, 5.0)]
    far = [off(mm, "B") for mm in (1.0, -1.21, 1.1, 0.9, 9.0)]
    assert margin_mm([near]) == pytest.approx(0.4)
    assert margin_mm([near, far]) == margin_mm([far, near]) == pytest.approx(1.3)


def test_of_one_slab_alone_the_interval_is_over_its_nodules() -> None:
    some = [off(mm, "A") for mm in (0.0, 1.0, 2.0, 3.0, 4.0)]
    told = summary(some, SERVED)["mean diameter, mm"]
    assert told["value"] == 2.0
    assert told["low"] < 2.0 < told["high"]


def test_the_document_tells_groups_bands_and_what_was_not_reported() -> None:
    made = document(
        {"readers": [off(0.5, "A"), off(0.7, "B", 12)], "phantoms": [off(1.0, "C")]}, {"readers": 3, "phantoms": 1}
    )
    assert (made["readers"]["nodules"], made["readers"]["reported"]) == (3, 2)
    assert [*made["readers"]["as served, by size"]] == ["6 to 10 mm", "from 10 mm on"]
    assert made["phantoms"]["as served, by spacing and kernel"]["C"]["mean diameter, mm"]["value"] == 1.0
