"""Boxes against counting voxels, and suppression against the rule written out, in two and three dimensions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.boxes import clip, decode, encode, iou, nms

SIDE = 9  # of the image that boxes are drawn into


@st.composite
def boxes(draw, d, *, least=0, most=8, at_least=1):
    """(n, 2d) of whole numbers, sides from `least` on"""
    rows = draw(st.lists(st.lists(st.tuples(st.integers(0, SIDE), st.integers(0, SIDE)), min_size=d, max_size=d),
                         min_size=at_least, max_size=most))  # fmt: skip
    spans = np.sort(np.array(rows).reshape(-1, d, 2), axis=2)
    spans[..., 1] = np.maximum(spans[..., 1], spans[..., 0] + least)
    return torch.tensor(np.concatenate([spans[..., 0], spans[..., 1]], axis=1), dtype=torch.float32)


def drawn(box):
    """The box as a set of voxels"""
    starts, ends = box.long().chunk(2)
    return set(itertools.product(*(range(int(a), int(b)) for a, b in zip(starts, ends, strict=True))))


def counted(a, b):
    both, either = drawn(a) & drawn(b), drawn(a) | drawn(b)
    return len(both) / len(either) if either else 0.0


@pytest.mark.parametrize("d", [2, 3])
def test_iou_is_what_counting_voxels_gives(d):
    @settings(max_examples=60, deadline=None)
    @given(boxes(d), boxes(d))
    def hold(a, b):
        truth = torch.tensor([[counted(one, other) for other in b] for one in a])
        torch.testing.assert_close(iou(a, b), truth)

    hold()


@pytest.mark.parametrize("d", [2, 3])
def test_suppression_is_the_rule_written_out(d):
    @settings(max_examples=60, deadline=None)
    @given(boxes(d, most=12), st.data(), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    def hold(found, data, threshold):
        scores = data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=len(found), max_size=len(found)))
        kept = []
        for place in sorted(range(len(found)), key=lambda place: (-scores[place], place)):
            if all(counted(found[place], found[other]) <= threshold + 1e-6 for other in kept):
                kept.append(place)
        assert nms(found, torch.tensor(scores), threshold).tolist() == kept

    hold()


def test_suppression_of_nothing_is_nothing():
    kept = nms(torch.zeros(0, 6), torch.zeros(0), 0.1)
    assert kept.shape == (0,)
    assert kept.dtype == torch.long


@pytest.mark.parametrize("d", [2, 3])
def test_decode_undoes_encode(d):
    @settings(max_examples=60, deadline=None)
    @given(boxes(d, least=1), boxes(d, least=1))
    def hold(found, anchors):
        count = min(len(found), len(anchors))
        found, anchors = found[:count], anchors[:count]
        torch.testing.assert_close(decode(encode(found, anchors), anchors), found, atol=1e-4, rtol=1e-4)

    hold()


def test_deltas_are_in_sides_of_the_anchor():
    """By hand: the centre is 2 further down and 3 to the left, the sides twice and half as long."""
    anchor, box = torch.tensor([[10.0, 10, 14, 16]]), torch.tensor([[10.0, 8.5, 18, 11.5]])
    wanted = torch.tensor([[2 / 4, -3 / 6, np.log(2), np.log(0.5)]], dtype=torch.float32)
    torch.testing.assert_close(encode(box, anchor), wanted)


def test_a_wild_delta_stays_finite():
    assert decode(torch.full((1, 6), 1e4), torch.tensor([[0.0, 0, 0, 5, 5, 5]])).isfinite().all()


@pytest.mark.parametrize("d", [2, 3])
def test_clipping_cuts_off_what_lies_outside_and_nothing_else(d):
    @settings(max_examples=60, deadline=None)
    @given(boxes(d))
    def hold(found):
        moved = found - 3  # some stick out at the start, all within 9 at the end
        shape = tuple(range(3, 3 + d))
        image = drawn(torch.tensor([*[0] * d, *shape]))
        for box, cut in zip(moved, clip(moved, shape), strict=True):
            assert drawn(cut) == drawn(box) & image

    hold()
