"""Boxes on slices: what is learnt from, how it is judged, and how boxes become findings in the volume."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import zipfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from scipy import ndimage

from models.lung_nodule import preprocess
from models.lung_nodule.ccfam_fpn.detect import LungsFirst, SliceOptions, detect, stack_channels
from models.lung_nodule.ccfam_fpn.link import ELONGATED, SliceBoxes, certainty, link_boxes
from models.nets.ccfam_fpn import CCFAMFPN, CCFAMConfig, Detections
from models.nets.other_backbones import Family
from models.training.evaluation import evaluate as command
from models.training.evaluation.tables import digest
from models.training.lung_nodule.ccfam_fpn.average_precision import (
    OVERLAPS,
    Found,
    Marks,
    f1,
    hits,
    judge,
    overlap_of_areas,
)
from models.training.lung_nodule.ccfam_fpn.chest_windows import PER_SCAN, Chests, together, windows_of
from models.training.lung_nodule.ccfam_fpn.data import Stacks, boxes_of, neighbours, vary
from models.training.lung_nodule.ccfam_fpn.recipe import Config, DetectorRecipe, detect_all
from models.training.lung_nodule.ccfam_fpn.tables import (
    BUDGETS,
    FIGURES,
    TABLES,
    WITH,
    WITHOUT,
    DetectorStudy,
    pooled,
    wins,
)
from models.training.lung_nodule.data.scans import Lesion, Scan, Scans
from models.training.lung_nodule.data.slices import Slices
from models.training.recipe import TrainConfig
from models.training.train import configured
from models.training.trainer import train
from models.weights import WeightsError
from tests.scan_sets import scan_set

# ------------------------------------------------------------------------------------------------------------ data


def crops_zip(folder, patients=8, slices=3, side=128):
    """A set of crops as docs/training.md describes it: in each slice a bright disc, larger than the one before."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    path, rows = folder / "crops.zip", []
    with zipfile.ZipFile(path, "w") as store:
        for patient in range(patients):
            for number in range(slices):
                disc = (y - 60) ** 2 + (x - 66) ** 2 <= (5 + number) ** 2
                image = (random.integers(0, 60, (side, side)) + 150 * disc + 10 * number).astype(np.uint8)
                image.ravel()[:2] = 0, 255  # the whole range: grey values stay what they are
                name = f"P{patient}/nodule-0/slice-{number}"
                for end, pixels in ((".png", image), ("_raters.png", np.where(disc, 15, 0).astype(np.uint8))):
                    file = io.BytesIO()
                    Image.fromarray(pixels).save(file, "PNG")
                    store.writestr(name + end, file.getvalue())
                rows.append({"patient": f"P{patient}", "nodule": "nodule-0", "file": f"slice-{number}.png"})
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        store.writestr("index.csv", table.getvalue())
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return crops_zip(tmp_path_factory.mktemp("crops"))


@pytest.fixture(scope="module")
def slices(data):
    return Slices(data)


def test_neighbours_are_slices_of_the_same_nodule(slices):
    index = neighbours(slices.nodules, slices.marked, 5)
    assert index[:4].tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 2], [0, 1, 2, 2, 2], [3, 3, 3, 4, 5]]
    assert neighbours(slices.nodules, slices.marked, 1)[:, 0].tolist() == [*range(len(slices.nodules))]


def test_windows_elsewhere_in_the_lungs_are_no_neighbours():
    """Crops of one name, but elsewhere, or not marked by anybody: they follow each other in the list only."""
    marked = np.array([[10, 20, 10, 20], [12, 22, 9, 19], [80, 90, 80, 90], [-1] * 4, [-1] * 4])
    index = neighbours(["a"] * 5, marked, 3)
    assert index.tolist() == [[0, 0, 1], [0, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]


def test_pieces_of_a_nodule_are_one_box_and_mirror_images_are_two():
    mask = np.zeros((40, 40), bool)
    mask[10:14, 10:14] = mask[15:18, 15:17] = True  # a gap of a pixel
    mask[30:34, 30:35] = True
    mask[2, 2:9] = True  # a sliver
    assert sorted(boxes_of(mask).tolist()) == [[10, 10, 18, 17], [30, 30, 34, 35]]
    assert boxes_of(np.zeros((4, 4), bool)).shape == (0, 4)


def test_channels_are_the_neighbouring_slices_and_boxes_hold_the_marks(slices):
    stacks = Stacks(slices, 3, 64)
    seen = [*stacks.windows("test")]
    with_nodule = [one for one in seen if len(one.boxes)]
    assert 0 < len(with_nodule) < len(seen)
    assert {one.image.shape for one in seen} == {(3, 64, 64)}
    starts = set()
    for one in with_nodule:
        (box,) = one.boxes.astype(int)
        top, left, bottom, right = box
        inside = one.image[1, top:bottom, left:right].mean()
        outside = (one.image[1].sum() - one.image[1, top:bottom, left:right].sum()) / (64 * 64 - (bottom - top) ** 2)
        assert inside > outside + 0.2
        assert bottom - top == right - left  # the whole disc, not cut off
        starts.add((int(top), int(left)))
    assert len(starts) > len(with_nodule) / 2  # not always in the middle
    again = [one.boxes.tolist() for one in stacks.windows("test")]
    assert again == [one.boxes.tolist() for one in seen]
    raw = stacks.hu(np.array([1]))[0]
    assert torch.equal(raw, slices.hu(np.array([0, 1, 2]))[:, 0])


def test_an_even_sample_keeps_the_share_without_nodule(slices):
    stacks = Stacks(slices, 3, 64)
    whole, some = [*stacks.windows("train")], [*stacks.windows("train", most=5)]
    counts = [(sum(len(one.boxes) > 0 for one in part), len(part)) for part in (whole, some)]
    assert counts[1][0] == 5
    assert counts[1][1] - 5 == pytest.approx(5 / counts[0][0] * (counts[0][1] - counts[0][0]), abs=1)


def test_learnt_windows_are_varied_and_the_same_for_the_same_seed(slices):
    stacks = Stacks(slices, 3, 64)

    def drawn(seed):
        return [*stacks.augmented("train", seed=seed, batch=4, crops=12, negatives=0.3)]

    first, same, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, same, strict=True) for name in ("image", "boxes"))
    assert not torch.equal(first[0]["image"], other[0]["image"])
    boxes = torch.cat([batch["boxes"].flatten(0, 1) for batch in first + other])
    real = boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]
    assert len(real) > 0
    assert (real >= 0).all()
    assert (real <= 64).all()
    assert real[:, :2].std(dim=0).min() > 5
    for batch in first:
        for image, row in zip(batch["image"], batch["boxes"], strict=True):
            for top, left, bottom, right in row.int().tolist():
                if bottom > top:  # brighter than the rest of its window
                    assert image[1, top:bottom, left:right].mean() > image[1].mean() + 0.1


def test_windows_larger_than_the_crops_are_refused(slices):
    with pytest.raises(ValueError, match="windows of 160 pixels cannot be cut from crops of 128"):
        Stacks(slices, 3, 160)


# --------------------------------------------------------------------------------------------------------- figures


def found(boxes, scores, truth):
    return Found(
        *(
            np.array(part, np.float32).reshape(-1, *shape)
            for part, shape in ((boxes, (4,)), (scores, ()), (truth, (4,)))
        )
    )


SQUARE = [0, 0, 10, 10]
HALF = [0, 0, 10, 6]  # IoU 0.6 with SQUARE
AWAY = [50, 50, 60, 60]
NOTHING = found([], [], [])


def rows(count):
    return np.arange(count)


def test_a_box_finds_a_nodule_once():
    one = found([SQUARE, HALF, AWAY], [0.9, 0.8, 0.7], [SQUARE])
    assert hits(one, 0.5).tolist() == [True, False, False]
    assert hits(found([HALF, SQUARE], [0.9, 0.8], [SQUARE]), 0.5).tolist() == [True, False]
    assert hits(found([HALF, SQUARE], [0.9, 0.8], [SQUARE]), 0.65).tolist() == [False, True]


def test_average_precision_by_hand():
    """Right, wrong, right of three nodules: recall 1/3 at precision 1, 2/3 at 2/3, the third is never found."""
    images = [
        found([SQUARE], [0.9], [SQUARE]),
        found([AWAY, SQUARE], [0.8, 0.7], [SQUARE]),
        found([], [], [SQUARE]),
    ]
    marks = Marks(images)
    assert marks.average_precision(rows(3)) == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert marks.average_recall(rows(3)) == pytest.approx(2 / 3)
    # the first two cost nothing below 0.9; from 0.7 on two are right, one is wrong, one is missed
    assert marks.counts(0.85).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert marks.counts(0.0).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert f1(marks.counts(0.0)) == pytest.approx(100 * 4 / 6)
    assert marks.working_score() == pytest.approx(0.7)
    # two of each image but the last
    assert marks.average_precision(np.array([0, 0, 1, 1])) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


def test_average_recall_counts_how_well_a_box_fits():
    marks = Marks([found([HALF], [0.9], [SQUARE])])  # found at IoU 0.5, 0.55 and 0.6
    assert marks.average_recall(rows(1)) == pytest.approx(3 / 10)


def test_envelope_recalls_later_precision():
    """Wrong, right, right of two: the precision at the lower recall is that of the higher one."""
    marks = Marks([found([AWAY, SQUARE], [0.9, 0.8], [SQUARE]), found([SQUARE], [0.7], [SQUARE])])
    assert marks.average_precision(rows(2)) == pytest.approx(2 / 3)


def slow_average_precision(images, overlap=0.5):
    """By the definition: at every score the precision and recall of the boxes above; the greatest precision at each
    recall or beyond, summed over the steps of the recall."""
    truths = sum(len(one.truth) for one in images)
    points = []
    for score in sorted({float(s) for one in images for s in one.scores}, reverse=True):
        right = wrong = 0
        for one in images:
            free = [*range(len(one.truth))]
            for box, its in zip(one.boxes, one.scores, strict=True):
                if its >= score:
                    overlaps = [(slow_iou(box, one.truth[t]), t) for t in free]
                    best = max(overlaps, key=lambda pair: (pair[0], -pair[1]), default=(0, None))
                    if best[0] >= overlap:
                        free.remove(best[1])
                        right += 1
                    else:
                        wrong += 1
        points.append((right / truths, right / (right + wrong)))
    area = before = 0.0
    for recall, _ in points:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


def slow_iou(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, height) * max(0, width)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def chance_images(seed, count=6):
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        truth = [[y, x, y + 8, x + 8] for y, x in random.integers(0, 12, (random.integers(0, 3), 2))]
        boxes = [[y, x, y + h, x + w] for y, x, h, w in random.integers(4, 12, (random.integers(0, 5), 4))]
        scores = np.sort(random.permutation(1000)[: len(boxes)] / 1000)[::-1]
        images.append(found(boxes, scores, truth))
    return [*images, found([SQUARE], [0.0005 * seed / 10_000], [SQUARE])]


@example(163)  # equal scores, one right and one wrong
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_average_precision_is_what_its_definition_says(seed):
    images = chance_images(seed)
    assert Marks(images).average_precision(rows(len(images))) == pytest.approx(slow_average_precision(images), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_areas_overlap_as_pixels_do(seed):
    random = np.random.default_rng(seed)
    lists = [
        np.array([[y, x, y + h, x + w] for y, x, h, w in random.integers(1, 9, (n, 4))]).reshape(-1, 4) for n in (2, 3)
    ]
    masks = np.zeros((2, 20, 20), bool)
    for mask, boxes in zip(masks, lists, strict=True):
        for top, left, bottom, right in boxes:
            mask[top:bottom, left:right] = True
    assert overlap_of_areas(*lists) == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def test_slices_with_a_wrong_box_alone_lower_the_jaccard_and_empty_ones_do_not_count():
    truth = [found([SQUARE], [0.9], [SQUARE])] * 2
    assert judge([*truth, NOTHING], ["a", "b", "c"], 0.5)["Jaccard"].value == 100
    assert judge([*truth, found([AWAY], [0.9], [])], ["a", "b", "c"], 0.5)["Jaccard"].value == pytest.approx(200 / 3)
    assert judge([*truth, found([AWAY], [0.4], [])], ["a", "b", "c"], 0.5)["Jaccard"].value == 100


def test_figures_have_intervals_over_patients():
    images = [found([SQUARE], [0.9], [SQUARE]), found([AWAY], [0.8], [SQUARE])] * 10
    figures = judge(images, ["a", "b"] * 10, 0.5)
    assert set(figures) == set(FIGURES)
    assert (figures["F1"].low, figures["F1"].value, figures["F1"].high) == (0, 50, 100)  # two patients: all or nothing
    with pytest.raises(ValueError, match="no image has a nodule"):
        judge([NOTHING], ["a"], 0.5)


# -------------------------------------------------------------------------------------------------- boxes to findings


def slice_boxes(boxes, scores=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.array([0.9] * len(boxes) if scores is None else scores, np.float32)
    return SliceBoxes(boxes, scores, scores / 2)


def balls(spacing_mm, every, pixel_mm=0.7):
    """The boxes that a perfect detector gives: of each ball ((z, y, x), radius) in mm those of its discs."""
    out = {}
    for z in range(round(40 / spacing_mm)):
        boxes = []
        for (cz, cy, cx), radius in every:
            squared = radius**2 - (z * spacing_mm - cz) ** 2
            if squared > (pixel_mm / 2) ** 2:
                side = squared**0.5
                # as an index the middle of pixel 0 is 0, its edges are 0 and 1 in boxes
                boxes.append(
                    [
                        (cy - side) / pixel_mm + 0.5,
                        (cx - side) / pixel_mm + 0.5,
                        (cy + side) / pixel_mm + 0.5,
                        (cx + side) / pixel_mm + 0.5,
                    ]
                )
        out[z] = slice_boxes(boxes)
    return out


def centres_mm(findings, spacing_mm, pixel_mm=0.7):
    return [np.array(one.centre_zyx) * (spacing_mm, pixel_mm, pixel_mm) for one in findings]


SPACINGS = st.sampled_from([0.6, 1.0, 2.5, 5.0])
PLACE = st.tuples(st.floats(12, 24), st.floats(20, 60), st.floats(20, 60))


@example(5.0, (12.0, 30.0, 30.0), 6.0)
@settings(deadline=None, max_examples=40)
@given(SPACINGS, PLACE, st.floats(3.0, 12.0))
def test_a_ball_through_the_slices_is_one_finding_at_its_place(spacing_mm, place, radius):
    """At 5 mm a ball below 6 mm of radius may show in one slice, or in two of discs too unlike to be linked."""
    radius = max(radius, 6.0) if spacing_mm == 5.0 else radius
    (one,) = link_boxes(balls(spacing_mm, [(place, radius)]))
    (centre,) = centres_mm([one], spacing_mm)
    assert np.linalg.norm(centre - place) < 2.0
    assert np.abs(centre - place)[1:].max() < 1e-3
    assert one.box[0] <= one.centre_zyx[0] < one.box[3]
    assert (one.rcnn, one.rpn) == (pytest.approx(0.9), pytest.approx(0.45))


@settings(deadline=None, max_examples=40)
@given(SPACINGS, PLACE, st.floats(6, 10), st.floats(0, 2 * np.pi), st.floats(1, 20))
def test_two_balls_apart_stay_two(spacing_mm, place, radius, angle, gap):
    shift = (2 * radius * 2**0.5 + gap) * np.array([0.0, np.sin(angle), np.cos(angle)])
    other = tuple((np.array(place) + shift).tolist())
    findings = centres_mm(link_boxes(balls(spacing_mm, [(place, radius), (other, radius)])), spacing_mm)
    assert len(findings) == 2
    for truth in (place, other):
        assert min(np.linalg.norm(one - truth) for one in findings) < 2.0


def test_two_balls_above_each_other_stay_two():
    findings = link_boxes(balls(1.0, [((12.0, 30.0, 30.0), 5.0), ((26.0, 30.0, 30.0), 5.0)]))
    assert [round(one.centre_zyx[0]) for one in findings] == [12, 26]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_slices_and_boxes_does_not_matter(seed, shuffle):
    random = np.random.default_rng(seed)
    found = {}
    for z in range(8):
        start = random.integers(0, 20, (4, 2))
        found[z] = slice_boxes(np.concatenate([start, start + random.integers(4, 12, (4, 2))], 1), random.random(4))
    mixed = [*found.items()]
    shuffle.shuffle(mixed)
    turned = {}
    for z, one in mixed:
        order = [*range(4)]
        shuffle.shuffle(order)
        turned[z] = SliceBoxes(one.boxes[order], one.scores[order], one.proposed[order])

    def said(findings):
        return [(one.centre_zyx, one.box, one.score, one.rpn) for one in findings]

    assert said(link_boxes(turned)) == said(link_boxes(found))


def test_a_box_on_one_slice_alone_is_no_finding_and_a_gap_parts_two():
    assert link_boxes({3: slice_boxes([SQUARE])}) == []
    assert link_boxes({3: slice_boxes([SQUARE]), 5: slice_boxes([SQUARE])}) == []
    assert len(link_boxes({z: slice_boxes([SQUARE]) for z in (1, 2, 4, 5)})) == 2
    assert link_boxes({1: slice_boxes([SQUARE]), 2: slice_boxes([AWAY])}) == []
    assert link_boxes({}) == []


def test_the_centre_is_weighed_by_scores_and_areas():
    (one,) = link_boxes({0: slice_boxes([[0, 0, 20, 10]], [0.9]), 1: slice_boxes([[10, 0, 20, 10]], [0.3])})
    first, second = 0.9 * 200, 0.3 * 100
    assert one.centre_zyx == pytest.approx((second / (first + second), (first * 9.5 + second * 14.5) / 210, 4.5))
    assert one.box == (0, 0, 0, 2, 20, 10)
    assert (one.rpn, one.rcnn) == (pytest.approx(0.45), pytest.approx(0.9))


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 12), st.floats(0.05, 0.99), PLACE)
def test_a_ball_is_as_certain_as_its_surest_boxes_and_a_vessel_is_less(radius, score, place):
    """On voxels of 1 mm. The vessel is as wide as the ball and runs straight or aslant, the disc is flat."""

    def certain(boxes):
        (one,) = link_boxes({z: slice_boxes([box], [score]) for z, box in enumerate(boxes)})
        return one.score

    middle = np.array(place[1:])

    def box(radius, shift=0.0):
        return [*(middle + shift - radius), *(middle + shift + radius)]

    discs = [box(each) for each in np.sqrt(radius**2 - (np.arange(2 * radius) + 0.5 - radius) ** 2)]
    ball = certain(discs)
    width = 2 * (radius**2 - 0.25) ** 0.5  # of the two discs beside its middle: it lies between slices
    odds = score / (1 - score) * (width / (2 * radius)) ** ELONGATED
    assert ball == pytest.approx(odds / (1 + odds), abs=1e-5)
    assert ball == pytest.approx(score, abs=0.01)
    straight, longer = ([box(radius)] * (times * 2 * radius) for times in (3, 5))
    slanting = [box(radius, 0.4 * z) for z in range(3 * 2 * radius)]
    flat = [box(radius)] * max(2, radius // 2)
    assert certain(longer) < certain(straight) < ball
    assert certain(slanting) < certain(straight)
    assert certain(flat) < ball
    assert certain(discs[::-1]) == pytest.approx(ball)  # head first or feet first


def test_certainty_rises_with_the_scores_and_falls_with_the_shape():
    """By hand: three slices 3 wide are as long as wide; the surest three of four count; e^2 for twice as long."""
    square = np.array([[0.0, 0, 3, 3]] * 3)
    assert certainty(np.array([0.5, 0.5, 0.5]), square) == pytest.approx(0.5)
    assert certainty(np.array([0.8, 0.8, 0.8]), square) == pytest.approx(0.8)
    assert certainty(np.array([0.8, 0.5, 0.2]), square) == pytest.approx(0.5)
    assert certainty(np.array([0.5] * 6), np.repeat(square, 2, axis=0)) == pytest.approx(1 / (1 + 2**2))
    assert certainty(np.array([0.5, 0.5]), np.array([[0.0, 0, 4, 4]] * 2)) == pytest.approx(1 / (1 + 2**2))
    four = np.array([[0.0, 0, 4, 4]] * 4)
    assert certainty(np.array([0.01, 0.7, 0.7, 0.7]), four) == pytest.approx(0.7)
    aslant = square + np.array([[0, 0, 0, 0], [0, 1, 0, 1], [0, 3, 0, 3]])  # one width aside
    assert certainty(np.array([0.5] * 3), aslant) == pytest.approx(1 / (1 + np.e**2))
    assert 0 < certainty(np.zeros(3), square) < certainty(np.ones(3), square) < 1


# --------------------------------------------------------------------------------------------------- whole volumes


class Bright(torch.nn.Module):
    """Stands for a trained network where only geometry is asked: a box round each bright piece of the middle slice."""

    def __init__(self, channels=3):
        super().__init__()
        self.config = CCFAMConfig(width=8, slices=channels)
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        out = []
        for image in images:
            middle = image[self.config.slices // 2].numpy()
            labels, _ = ndimage.label(middle > 0.55)  # above -230 HU
            boxes = [[y.start, x.start, y.stop, x.stop] for y, x in ndimage.find_objects(labels)]
            tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            out.append(Detections(tensor, torch.full((len(boxes),), 0.9), torch.full((len(boxes),), 0.8)))
        return out


def chest(places, radius=5.0, shape=(40, 90, 110)):
    """HU and lungs of 1 mm: air in a box of something denser, with balls of soft tissue in it."""
    hu = np.full(shape, -400, np.int16)
    lungs = np.zeros(shape, bool)
    lungs[4:36, 20:72, 18:93] = True
    hu[lungs] = -850
    z, y, x = np.indices(shape)
    for cz, cy, cx in places:
        hu[(z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = 30
    return hu, lungs


def test_a_ball_in_the_lungs_is_found_at_its_place():
    places = [(12, 40, 30), (22, 60, 80), (30, 33, 55)]
    hu, lungs = chest(places)
    told = []
    found = detect(Bright(), hu, lungs, progress=lambda fraction, words: told.append((fraction, words)))
    assert len(found) == 3
    for place in places:
        assert min(np.linalg.norm(np.subtract(one.centre_zyx, place)) for one in found) < 1.0
    for one in found:
        assert [b - a for a, b in zip(one.box[:3], one.box[3:], strict=True)] == pytest.approx([11, 11, 11], abs=2)
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert found.remarks == ()


def test_batches_change_nothing_and_a_scan_without_lungs_has_nothing():
    hu, lungs = chest([(12, 40, 30), (22, 60, 80)])
    said = [
        [(one.centre_zyx, one.score) for one in detect(Bright(), hu, lungs, options=SliceOptions(batch=batch))]
        for batch in (1, 5, 64)
    ]
    assert said[0] == said[1] == said[2]
    assert detect(Bright(), hu, np.zeros_like(lungs)) == []


def test_what_is_bright_beyond_the_lungs_is_not_reported():
    hu, lungs = chest([(20, 11, 50), (20, 40, 50)])  # the first 9 mm beside the lungs
    (found,) = detect(Bright(), hu, lungs)
    assert found.centre_zyx == pytest.approx((20, 40, 50), abs=0.5)
    assert len(detect(Bright(), hu, np.ones_like(lungs))) == 2


def test_lungs_first_drops_boxes_shows_nothing_else_or_does_nothing():
    """Bright beside the lungs: near them (seen, dropped), and beyond their rim (where air is shown, if asked for)."""
    hu, lungs = chest([(20, 14, 50), (20, 40, 50)], shape=(40, 110, 110))
    hu[17:24, 90:98, 46:54] = 30  # 18 mm below the lungs
    seen = {}
    for way in get_args(LungsFirst):
        net = Bright()
        net.register_forward_pre_hook(lambda _net, given, way=way: seen.setdefault(way, []).append(given[0].clone()))
        seen[f"found {way}"] = detect(net, hu, lungs, options=SliceOptions(lungs_first=way))
    assert [len(seen[f"found {way}"]) for way in ("boxes", "image", "no")] == [1, 1, 3]
    # rows of 0.7 mm from 16 mm above the lungs: these lie 11 to 15 mm below them
    wall = {way: torch.cat(seen[way])[:, 1, 114:118] for way in ("boxes", "image")}
    assert float(wall["boxes"].max()) > 0.4
    assert float(wall["image"].max()) == 0.0
    assert torch.cat(seen["image"])[:, 1].max() > 0.7  # what lies in the lungs is shown as it is
    assert len(torch.cat(seen["no"])) == 40 > len(torch.cat(seen["boxes"])) == 32


class Narrow(Bright):
    """Memory for so many slices only."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def test_too_little_memory_takes_fewer_slices_and_says_so():
    hu, lungs = chest([(12, 40, 30), (22, 60, 80)])
    model = Narrow(2)
    found = detect(model, hu, lungs, options=SliceOptions(batch=8))
    assert [one.centre_zyx for one in found] == [one.centre_zyx for one in detect(Bright(), hu, lungs)]
    assert max(model.batches) == 2
    assert len(found.remarks) == 2
    assert "8 slices together did not fit into the memory of cpu" in found.remarks[0]
    with pytest.raises(torch.OutOfMemoryError, match="no memory for a single slice"):
        detect(Narrow(0), hu, lungs)


def test_slices_are_shown_with_their_neighbours_at_the_trained_size():
    hu = np.stack([np.full((64, 70), 100 * z - 1000, np.int16) for z in range(5)])
    images = stack_channels(hu, np.array([0, 2]), 3, slice(0, 64), slice(0, 70))
    assert images.shape == (2, 3, 96, 128)  # 91 and 100 pixels of 0.7 mm, and air up to multiples of 32
    assert (images[:, :, :91, :100].mean(dim=(2, 3)) * 1400 - 1000).tolist() == [
        pytest.approx([-1000, -1000, -900], abs=0.1),
        pytest.approx([-900, -800, -700], abs=0.1),
    ]
    assert not images[:, :, 91:].any()


# ---------------------------------------------------------------------------------------- trainings and their tables

RESULTS = Path(command.__file__).parents[3] / "docs" / "results"
TINY = {
    "width": "8", "depth": "1,1,1,1", "window": "64", "batch": "4", "epochs": "1", "proposals": "20,10", "rois": "8",
    "samples": "16", "optimiser": "adamw", "lr": "0.002", "val_crops": "4", "share": "0.5",
}  # fmt: skip


def quiet():
    return Console(file=io.StringIO())


def test_a_detector_is_trained_kept_and_judged(data, tmp_path, capsys):
    recipe = DetectorRecipe(data, configured(Config(), TINY))
    path = train(recipe, tmp_path / "run", console=quiet())
    assert path.name == "ccfam_ccapm_fpn_w8.safetensors"
    assert {"score", "ap", "ar", "f1"} <= {
        name.removeprefix("val_") for name in json.loads(path.with_suffix(".json").read_text())["metrics"]
    }
    command.main(["ccfam_fpn", "--data", str(data), "--weights", str(path), "--out", str(tmp_path / "judged")])
    document = json.loads((tmp_path / "judged/figures.json").read_text())
    figures = document["figures"]
    assert document["judged"]["windows"] > document["judged"]["windows with a nodule"] > 0
    assert set(FIGURES) <= set(figures)
    assert all(0 <= figures[name]["value"] <= 100 for name in FIGURES)
    with pytest.raises(SystemExit, match="name the weights of one training"):
        command.main(["ccfam_fpn", "--data", str(data)])
    with pytest.raises(ValueError, match="learns from no teachers"):
        recipe.distillation_targets([], {})


def test_a_misspelt_attention_is_refused_before_the_data_are_read():
    with pytest.raises(ValueError, match="attention is 'ccapn', must be one of plain, se,"):
        configured(Config(), {"attention": "ccapn"})


def test_weights_of_another_network_are_refused(data, tmp_path):
    from models.training.lung_nodule.ccfam_fpn.evaluate import load_detector
    from models.weights import packed

    with pytest.raises(WeightsError, match="no detector of ccfam_fpn"):
        load_detector(packed("lung_nodule", "residual_unet_w16"), "cpu")


def test_the_network_serves_as_it_is_judged(slices):
    """`looked` gives every window its own boxes, whatever it is in a batch with."""
    torch.manual_seed(0)
    net = CCFAMFPN(CCFAMConfig(width=8, depth=(1, 1, 1, 1), proposals=(20, 10), least_score=0.0)).eval()
    windows = [*itertools.islice(Stacks(slices, 3, 64).windows("test"), 4)]
    every, patients = detect_all(net, windows)
    assert patients == [one.patient for one in windows]
    for one, window in zip(every, windows, strict=True):
        (alone,), _ = detect_all(net, [window])
        assert np.allclose(alone.scores, one.scores, atol=1e-5)
        assert np.array_equal(one.truth, window.boxes)


def test_a_row_is_trained_with_every_seed_and_goes_on_where_it_was_killed(data, tmp_path, monkeypatch):
    from models.training.lung_nodule.ccfam_fpn import tables

    study = DetectorStudy(data, "small", TINY, "cpu")
    row = TABLES["small"][1].rows[-1]
    assert row.name == "CCAPM + FPN"
    trained = []

    def one(recipe, folder, **options):
        trained.append(recipe.config.seed)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(recipe, folder, console=quiet(), **options)

    monkeypatch.setattr(tables, "train", one)
    crop = np.random.default_rng(0).random((64, 64), np.float32)
    monkeypatch.setattr(tables, "phantom_crops", lambda side: [(crop, crop > 0.9)] * 4)
    with pytest.raises(KeyboardInterrupt):
        study.result(row, tmp_path)
    result = study.result(row, tmp_path)
    assert trained == [2024, 2025, 2025, 2026]  # the first seed was there
    each = [one["AP@0.5"]["value"] for one in result.facts["seeds"]]
    figure = result.figures["AP@0.5"]
    assert (figure.low, figure.value, figure.high) == (min(each), pytest.approx(np.mean(each)), max(each))
    picture, curves = study.illustrate({row.name: tmp_path}, tmp_path)
    assert Image.open(picture).size[1] > 4 * 128
    logs = [[*csv.DictReader((tmp_path / f"seed{seed}" / "log.csv").open())] for seed in (2024, 2025, 2026)]
    by_epoch = result.facts["by epoch"]
    assert by_epoch["ap"] == pytest.approx([np.mean([float(log[0]["ap"]) for log in logs])], abs=1e-5)
    assert row.name in curves.read_text()


def test_every_row_is_a_training_that_exists():
    assert set(TABLES) == set(BUDGETS)
    assert TABLES["small"][2:] == TABLES["full"][2:]
    for name, tables in TABLES.items():
        for number, table in enumerate(tables[:-2]):  # of the attentions; behind them readings and backbones
            assert [row.changes["attention"] for row in table.rows] == [
                "plain", "se", "coord", "eca", "cbam", "scse", "ccasm", "ccapm",
            ]  # fmt: skip
            assert {row.changes["fpn"] for row in table.rows} == {"true" if number else "false"}
        assert {row.changes["encoder"] for row in tables[-1].rows if "encoder" in row.changes} == {
            "resnet50", *get_args(Family),
        }  # fmt: skip
        told = [row for table in tables[-2:] for row in table.rows]
        assert len({tuple(sorted(row.changes.items())) for row in told}) == len(told)
        for row in (row for table in tables for row in table.rows):
            changes = {key: value for key, value in row.changes.items() if key != "seeds"}
            with torch.device("meta"):
                CCFAMFPN(CCFAMConfig.of(dataclasses.asdict(configured(Config(), {**BUDGETS[name], **changes}))))


def test_what_was_trained_before_there_was_a_choice_is_not_trained_again(data):
    """Rows are known by their settings; those of the stored results must not have changed by a new option."""
    known = set(json.loads((RESULTS / "ccfam_fpn.json").read_text("utf-8")))
    study = DetectorStudy(data, "small", {}, "cpu")
    study.first.split_sha256 = "7213541a2fa75edeb9158c781c43b6fd605b15cc130f9455ca74ae36b0404664"
    made = {digest(study.settings(row)): row.name for table in study.tables for row in table.rows}
    assert known <= set(made)
    assert WITH in set(made.values()) - {made[key] for key in known}


def test_the_verdict_follows_from_the_figures():
    def row(value, half=0.01):
        return {name: {"value": value, "low": value - half, "high": value + half} for name in FIGURES}

    won = wins({"ResNet": row(0.5), "+ SE": row(0.6), "CCAPM": row(0.7)})
    assert won.startswith("**CCAPM wins here by every figure**")
    assert "AP@0.5 0.7000 against 0.6000 of + SE (higher, the seeds' ranges do not overlap)" in won
    lost = wins({"ResNet": row(0.5), "+ SE": row(0.705), "CCAPM": row(0.7)})
    assert lost.startswith("**CCAPM does not win here by any figure**")
    assert "not higher, the seeds' ranges overlap" in lost
    mixed = wins({"ResNet": row(0.5) | {"F1": row(0.9)["F1"]}, "CCAPM": row(0.7)})
    assert mixed.startswith("**CCAPM wins here by 3 of 4 figures**")
    assert "too few rows" in wins({"ResNet": row(0.5)})
    assert "too few rows" in wins({"CCAPM": row(0.5)})
    assert "the pair was not run" in pooled({WITH: row(0.5)})
    assert "AP@0.5 0.7000 with, 0.5000 without (the seeds' ranges do not overlap)" in pooled(
        {WITHOUT: row(0.5), WITH: row(0.7)}
    )


def test_defaults_are_those_of_the_network():
    """One place says what the network is; the training must not say otherwise."""
    assert CCFAMConfig.of(dataclasses.asdict(Config())) == CCFAMConfig()
    assert isinstance(Config(), TrainConfig)
    assert OVERLAPS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


# ---------------------------------------------------------------------------------------- windows of whole chests


def chests_of(folder, split_sha256, scans):
    """A set of scans in a folder, the first for validation."""
    parts = {one.name: ("train" if number else "val", one) for number, one in enumerate(scans)}
    return scan_set(folder, parts, split_sha256)


def chest_scan(name, nodules, others=(), shape=(40, 100, 110)):
    """A ball of 12 mm at each place; of `others` nobody says whether they are nodules."""
    hu, lungs = chest([*nodules, *others], shape=shape)
    hu[~lungs] = -850
    balls, _ = ndimage.label(hu == 30)
    lesions = {tuple(place): Lesion.of(balls == balls[place]) for place in [*nodules, *others]}
    known = tuple(lesions[place] for place in nodules)
    return Scan(name, name, hu, lungs, known, True, irrelevant=tuple(lesions[place] for place in others))


def test_windows_of_chests_show_what_the_node_shows_with_boxes_where_the_nodules_are():
    scan = chest_scan("a", [(12, 40, 30), (28, 55, 80)], others=[(20, 30, 70)])
    images, masks = windows_of(scan, 3)
    assert images.shape == (PER_SCAN, 3, 128, 128)
    assert 0.4 < masks.any(axis=(1, 2)).mean() < 1
    for image, mask in zip(images, masks, strict=True):
        clear = abs(image[1] + 410) > 1  # half soft tissue, half lung
        np.testing.assert_array_equal(mask[clear], image[1][clear] > -410)  # each nodule, where it is
        assert abs(int((image[0] > -410).sum()) - int(mask.sum())) < 150  # the slice beside it
    again, _ = windows_of(scan, 3)
    np.testing.assert_array_equal(images, again)
    starts = {tuple(np.argwhere(mask)[0]) for mask in masks if mask.any()}
    assert len(starts) > PER_SCAN / 4  # anywhere in the window


def test_windows_of_what_is_no_chest_are_refused():
    with pytest.raises(ValueError, match=r"a has \(80, 110\) voxels in a slice, a window has 90: no chest"):
        windows_of(chest_scan("a", [], shape=(40, 80, 110)), 3)
    dark = chest_scan("a", [])
    with pytest.raises(ValueError, match="no lungs in a"):
        windows_of(dataclasses.replace(dark, lungs=np.zeros_like(dark.lungs)), 3)
    everywhere = Lesion.of(np.ones(dark.hu.shape, bool))
    with pytest.raises(ValueError, match="no place in a without irrelevant findings"):
        windows_of(dataclasses.replace(dark, irrelevant=(everywhere,)), 3)


def test_a_detector_learns_from_chests_too(data, slices, tmp_path):
    scans = [chest_scan("a", [(12, 40, 30)]), chest_scan("b", [(28, 55, 80)]), chest_scan("c", [])]
    folder = chests_of(tmp_path / "chests", slices.split_sha256, scans)
    changes = TINY | {"chests": str(folder), "chest_share": "0.5", "cache": str(tmp_path / "cache")}
    recipe = DetectorRecipe(data, configured(Config(), changes))
    plain = DetectorRecipe(data, configured(Config(), TINY))
    first, same = [*recipe.batches("train", 0)], [*recipe.batches("train", 0)]
    assert len(first) == recipe.steps(0) == plain.steps(0)
    for batch, again, alone in zip(first, same, plain.batches("train", 0), strict=True):
        assert batch["image"].shape == (6, 3, 64, 64)  # four crops, as without chests, and two of the chests
        assert batch["boxes"].shape[0] == 6
        assert torch.equal(batch["image"], again["image"])
        assert torch.equal(batch["image"][:4], alone["image"])
        assert torch.equal(batch["boxes"][:4, : alone["boxes"].shape[1]], alone["boxes"])
    chests = recipe.chests
    assert len(chests["train"].images) == 2 * PER_SCAN
    seen = [*chests["val"].windows(64)]
    assert {one.patient for one in seen} == {"a"}
    assert {one.image.shape for one in seen} == {(3, 64, 64)}
    for one, hu, mask in zip(seen, chests["val"].images, chests["val"].masks, strict=True):
        assert torch.equal(one.image, preprocess.window(torch.from_numpy(hu[:, 32:96, 32:96].astype(np.float32))))
        assert one.boxes.tolist() == boxes_of(mask[32:96, 32:96]).tolist()
    path = train(recipe, tmp_path / "run", console=quiet())
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["config"]["chests"] == Scans(folder).digest  # the set, not where it lay
    assert math.isfinite(told["metrics"]["val_score"])
    with pytest.raises(ValueError, match=r"chest_share=0\.1 of a batch of 4 is not one window"):
        DetectorRecipe(data, configured(Config(), changes | {"chest_share": "0.1"}))
    with pytest.raises(ValueError, match="window=128 with chests: less than 128"):
        DetectorRecipe(data, configured(Config(), changes | {"window": "128"}))
    with pytest.raises(ValueError, match="leave out chests"):
        DetectorStudy(data, "small", changes, "cpu")
    other = chests_of(tmp_path / "other", "5" * 64, scans)
    with pytest.raises(ValueError, match="split by other patients than the crops"):
        DetectorRecipe(data, configured(Config(), TINY | {"chests": str(other)}))


def test_every_window_of_a_chest_has_its_turn_with_its_own_mask(slices, tmp_path, monkeypatch):
    folder = chests_of(tmp_path / "chests", slices.split_sha256, [chest_scan(name, [(12, 40, 30)]) for name in "ab"])
    chests = Chests(Scans(folder), "train", 3, tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(
            "models.training.lung_nodule.ccfam_fpn.chest_windows.vary",
            lambda hu, masks, *_rest, **_more: [*zip(hu, masks, strict=True)],
        )
        batches = chests.augmented(seed=1, batch=16, side=64)
        drawn = [one for _ in range(12) for one in next(batches)]  # 192 of 64: three times
    turns = [(hu.numpy().tobytes(), mask.numpy().tobytes()) for hu, mask in drawn]
    there = sorted(
        (hu.astype(np.float32).tobytes(), mask.tobytes()) for hu, mask in zip(chests.images, chests.masks, strict=True)
    )
    for start in (0, 64, 128):
        assert sorted(turns[start : start + 64]) == there
    batch = next(chests.augmented(seed=1, batch=24, side=64))
    shown = [
        (image[1, top:bottom, left:right].mean(), image[1].mean())
        for image, row in zip(batch["image"], batch["boxes"].int().tolist(), strict=True)
        for top, left, bottom, right in row
        if bottom > top
    ]
    assert len(shown) > 5
    assert all(nodule > around + 0.1 for nodule, around in shown)


def test_windows_of_chests_are_cut_once_and_anew_for_another_set_or_split(slices, tmp_path, monkeypatch):
    cut = []

    def windows(scan, channels):
        cut.append(scan.name)
        if scan.name == killed:
            raise KeyboardInterrupt
        return windows_of(scan, channels)

    monkeypatch.setattr("models.training.lung_nodule.ccfam_fpn.chest_windows.windows_of", windows)
    scans = [chest_scan(name, [(12, 40, 30)]) for name in "abc"]
    folder, cache = chests_of(tmp_path / "chests", slices.split_sha256, scans), tmp_path / "cache"
    killed = "c"
    with pytest.raises(KeyboardInterrupt):
        Chests(Scans(folder), "train", 3, cache)
    killed = None
    first = Chests(Scans(folder), "train", 3, cache)
    again = Chests(Scans(folder), "train", 3, cache)
    assert cut == ["b", "c", "b", "c"]  # what was killed left nothing to be taken for whole
    np.testing.assert_array_equal(first.images, again.images)
    Chests(Scans(folder), "val", 3, cache)
    Chests(Scans(folder), "train", 1, cache)
    assert cut[4:] == ["a", "b", "c"]
    other = Scans(folder)
    other.split = {"train": ["a", "c"], "val": []}
    Chests(other, "train", 3, cache)
    assert cut[7:] == ["a", "c"]
    with pytest.raises(ValueError, match="no scan of val in"):
        Chests(other, "val", 3, cache)


def test_a_window_without_nodule_shows_nothing_mirrored(monkeypatch):
    """A slope keeps its direction. What scaling shows beyond the edge, mirrored for all alike, is a few pixels."""
    for name in ("jittered", "window"):
        monkeypatch.setattr(f"models.training.lung_nodule.ccfam_fpn.data.{name}", lambda hu, *_random: hu)
    hu = (torch.arange(128.0)[:, None] + 1000 * torch.arange(128.0)).expand(64, 3, 128, 128)
    batch = vary(hu, torch.zeros(64, 128, 128, dtype=torch.bool), 96, np.random.default_rng(0), negatives=0.0)
    assert not batch["boxes"].any()
    inner = batch["image"][:, :, 8:-8, 8:-8]
    for steps in (inner.diff(dim=2), inner.diff(dim=3)):
        assert ((steps > 0.5).flatten(1).all(dim=1) | (steps < -0.5).flatten(1).all(dim=1)).all()
    assert inner.flatten(1).mean(dim=1).std() > 5000  # not always the same place


@given(st.integers(1, 5), st.integers(1, 5))
def test_two_batches_as_one_keep_their_boxes(m, k):
    one = {"image": torch.zeros(2, 3, 4, 4), "boxes": torch.rand(2, m, 4)}
    other = {"image": torch.ones(1, 3, 4, 4), "boxes": torch.rand(1, k, 4)}
    both = together(one, other)
    assert torch.equal(both["image"], torch.cat([one["image"], other["image"]]))
    assert torch.equal(both["boxes"][:2, :m], one["boxes"])
    assert torch.equal(both["boxes"][2:, :k], other["boxes"])
    assert both["boxes"].sum() == pytest.approx(one["boxes"].sum() + other["boxes"].sum())
    assert both["boxes"].shape == (3, max(m, k), 4)
