"""Proposals: repeats are dropped as boxes.nms drops them, and features are read where the box says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.boxes import nms
from models.layers.roi import SAMPLES, roi_align, survivors


def some_boxes(seed, count, side=40.0):
    random = torch.Generator().manual_seed(seed)
    start = torch.rand(count, 2, generator=random) * side * 0.7
    return torch.cat([start, start + 0.5 + torch.rand(count, 2, generator=random) * side * 0.3], dim=1)


def bilinear(cells, y, x):
    """A map (H, W) at a place in cells, of which the first has its middle at 0.5: by the definition, point by point."""
    height, width = len(cells), len(cells[0])
    y, x = min(max(y - 0.5, 0.0), height - 1.0), min(max(x - 0.5, 0.0), width - 1.0)
    top, left = min(math.floor(y), height - 2), min(math.floor(x), width - 2)
    a, b = y - top, x - left
    return (
        cells[top][left] * (1 - a) * (1 - b)
        + cells[top][left + 1] * (1 - a) * b
        + cells[top + 1][left] * a * (1 - b)
        + cells[top + 1][left + 1] * a * b
    )


def by_definition(features, box, stride, size):
    """roi_align of one box, in plain loops."""
    y0, x0, y1, x1 = (float(edge) / stride for edge in box)
    out = torch.zeros(len(features), size, size)
    for c, cells in enumerate(features.tolist()):
        for row in range(size):
            for column in range(size):
                points = [
                    bilinear(
                        cells,
                        y0 + (y1 - y0) * (row + (i + 0.5) / SAMPLES) / size,
                        x0 + (x1 - x0) * (column + (j + 0.5) / SAMPLES) / size,
                    )
                    for i in range(SAMPLES)
                    for j in range(SAMPLES)
                ]
                out[c, row, column] = sum(points) / len(points)
    return out


@pytest.mark.parametrize(("height", "width", "stride"), [(10, 10, 4.0), (7, 13, 4.0), (5, 9, 8.0)])
def test_roi_align_reads_what_its_definition_says(height, width, stride):
    torch.manual_seed(1)
    features = torch.randn(3, 2, height, width)
    boxes = some_boxes(2, 12, side=min(height, width) * stride)
    boxes[-1] = torch.tensor([0.0, 0.0, height * stride, width * stride])  # the whole image, to its edges
    image = torch.arange(12) % 3
    read = roi_align(features, boxes, image, stride)
    for one, box, b in zip(read, boxes, image, strict=True):
        assert torch.allclose(one, by_definition(features[b], box, stride, 7), atol=1e-5)


def test_roi_align_of_a_ramp_is_the_middle_of_each_bin():
    """A map whose value is its own place in the input: each bin must answer with where it lies, in pixels."""
    stride, size = 4.0, 7
    middles = (torch.arange(16) + 0.5) * stride
    ramp = torch.stack([middles[:, None].expand(16, 16), middles[None].expand(16, 16)])[None]
    box = torch.tensor([[9.0, 14.5, 37.0, 50.25]])
    y, x = roi_align(ramp, box, torch.tensor([0]), stride, size)[0]
    bins = (torch.arange(size) + 0.5) / size
    assert torch.allclose(y, (9.0 + 28.0 * bins)[:, None].expand(size, size), atol=1e-4)
    assert torch.allclose(x, (14.5 + 35.75 * bins)[None].expand(size, size), atol=1e-4)


def test_roi_align_passes_gradients_to_the_images_of_its_boxes_only():
    features = torch.randn(3, 2, 8, 8, requires_grad=True)
    roi_align(features, some_boxes(0, 4, 32.0), torch.tensor([0, 2, 2, 0]), 4.0).sum().backward()
    assert [bool(part.any()) for part in features.grad] == [True, False, True]


def test_no_box_reads_nothing():
    read = roi_align(torch.randn(2, 5, 8, 8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 4.0)
    assert read.shape == (0, 5, 7, 7)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0.1, 0.3, 0.5, 0.7]))
def test_all_lists_are_thinned_as_one_by_one(seed, count, threshold):
    lists = torch.stack([some_boxes(seed + k, count, side=20.0) for k in range(3)])
    falling = torch.linspace(1, 0.1, count)
    for boxes, alive in zip(lists, survivors(lists, threshold), strict=True):
        assert alive.nonzero()[:, 0].tolist() == sorted(nms(boxes, falling, threshold).tolist())


def test_a_chain_of_overlaps_keeps_every_second():
    """1 covers 2, which is gone and covers nothing: 3 stays."""
    starts = torch.arange(7.0) * 3
    chain = torch.stack([torch.zeros(7), starts, torch.full((7,), 10.0), starts + 10], dim=1)[None]  # IoU 7/13, 4/16
    assert survivors(chain, 0.5)[0].tolist() == [True, False, True, False, True, False, True]


def test_empty_boxes_suppress_nothing():
    lists = torch.tensor([[[5.0, 5, 5, 5], [5, 5, 5, 5], [4, 4, 6, 6]]])
    assert survivors(lists, 0.5).all()
