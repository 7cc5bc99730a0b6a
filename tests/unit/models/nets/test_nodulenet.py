"""NoduleNet is the network its paper describes: the parameter counts decide, and the shapes of what it says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.nets.nodulenet import (
    ANCHORS_MM,
    NoduleNet,
    NoduleNetConfig,
    align_boxes,
    anchor_boxes,
    flat,
    fold_batchnorm,
    roi_crops,
)


def count(module):
    return sum(p.numel() for p in module.parameters())


def on_paper(**flags):
    with torch.device("meta"):
        return NoduleNet(NoduleNetConfig(**flags))


def test_width_24_has_the_published_number_of_parameters():
    net = on_paper()
    parts = {"backbone": 5_346_872, "rpn": 10_531, "rcnn": 11_374_862, "outliner": 610_817}
    assert {name: count(getattr(net, name)) for name in parts} == parts
    assert count(net) == sum(parts.values())


def test_the_ablations_change_what_they_are_about_alone():
    plain, pyramid, coupled = on_paper(), on_paper(fpn=True), on_paper(coupled=True)
    laterals, smoothing = 3 * (64 * 128 + 128), 3 * (27 * 128 * 128 + 128)
    assert count(pyramid) - count(plain) == laterals + smoothing
    assert count(coupled) == count(plain)


def test_half_width_fits_into_a_shipped_checkpoint():
    assert 2 * count(on_paper(width=12, fpn=True)) < 25e6  # bytes, as fp16


@pytest.mark.parametrize(
    ("flags", "sides"),
    [
        ({}, [(32, 5)]),
        ({"coupled": True}, [(32, 5)]),
        ({"fpn": True}, [(32, 2), (16, 1), (8, 2)]),
    ],
)
def test_a_volume_gives_the_published_shapes(flags, sides):
    """Width 4 for speed: no side of these depends on it, the channels of a crop do (8 here, 64 at full width)."""
    net = NoduleNet(NoduleNetConfig(width=4, **flags)).eval()
    with torch.inference_mode():
        levels, maps = net(torch.zeros(1, 1, 128, 128, 128))
        assert [tuple(level.logits.shape) for level in levels] == [(1, n, n, n, a, 1) for n, a in sides]
        assert [tuple(level.deltas.shape) for level in levels] == [(1, n, n, n, a, 6) for n, a in sides]
        anchors, logits, deltas = flat(levels)
        assert logits.shape == (1, len(anchors))
        assert deltas.shape == (1, len(anchors), 6)
        boxes = torch.tensor([[3.0, 3, 3, 25, 25, 25], [100, 100, 100, 128, 128, 128]])
        assert roi_crops(maps.roi[0], boxes).shape == (2, 8, 7, 7, 7)
        said, moved = net.judge(maps, 0, boxes)
        assert (said.shape, moved.shape) == ((2, 2), (2, 2, 6))
        assert net.outline(maps, torch.zeros(1, 1, 128, 128, 128), 0, [0, 4, 8, 16, 20, 28]).shape == (16, 16, 20)


def test_full_width_cuts_64_channels_from_the_encoder():
    net = on_paper()
    assert net.rcnn.shared[0].in_features == 64 * 7 * 7 * 7
    assert net.backbone.down[1][-1].main[-2].out_channels == 64


def test_anchors_stand_at_the_middles_of_their_cells():
    """Centres at index 1.5 + 4k, which is 2 + 4k from the border; cubes; in the order of the flattened logits."""
    boxes = anchor_boxes((2, 3, 4), 4, ANCHORS_MM).reshape(2, 3, 4, 5, 6)
    middle = (boxes[..., :3] + boxes[..., 3:]) / 2 - 0.5
    for z, y, x in np.ndindex(2, 3, 4):
        assert middle[z, y, x].tolist() == [[1.5 + 4 * z, 1.5 + 4 * y, 1.5 + 4 * x]] * 5
    assert (boxes[1, 2, 3, :, 3:] - boxes[1, 2, 3, :, :3]).tolist() == [[side] * 3 for side in ANCHORS_MM]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 45, width=32), min_size=6, max_size=6))
def test_an_aligned_box_is_the_smallest_of_whole_cells_in_the_image(numbers):
    spans = np.sort(np.array(numbers, np.float32).reshape(2, 3), axis=0)
    (box,) = align_boxes(torch.from_numpy(spans.reshape(1, 6)), (32, 16, 48)).tolist()
    for low, high, n, start, end in zip(*spans, (32, 16, 48), box[:3], box[3:], strict=True):
        cells = [k for k in range(n // 4) if max(low, 4 * k) < min(high, 4 * k + 4)]  # those it touches
        if cells:
            assert (start, end) == (4 * cells[0], 4 * cells[-1] + 4)
        assert 0 <= start < end <= n
        assert start % 4 == end % 4 == 0


def test_a_crop_holds_the_largest_value_of_each_of_its_parts():
    features = torch.rand(3, 12, 9, 10, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[4.0, 0, 8, 40, 36, 20], [17, 17, 17, 18, 18, 18]])
    for crop, (z, y, x) in zip(
        roi_crops(features, boxes),
        ((slice(1, 10), slice(0, 9), slice(2, 5)), (slice(4, 5), slice(4, 5), slice(4, 5))),
        strict=True,
    ):
        part = features[:, z, y, x]
        for place in np.ndindex(7, 7, 7):
            cells = tuple(slice(i * n // 7, -(-(i + 1) * n // 7)) for i, n in zip(place, part.shape[1:], strict=True))
            assert torch.equal(crop[(slice(None), *place)], part[(slice(None), *cells)].amax(dim=(1, 2, 3)))


@pytest.mark.parametrize("fpn", [False, True])
def test_folding_changes_no_answer(fpn):
    torch.manual_seed(0)
    net = NoduleNet(NoduleNetConfig(width=4, fpn=fpn))
    image = torch.randn(1, 1, 32, 32, 48)
    with torch.no_grad():
        for _ in range(3):
            net(image)  # statistics other than those at birth
        net.eval()
        served = fold_batchnorm(net)
        assert not any(isinstance(part, torch.nn.BatchNorm3d) for part in served.modules())
        (truth, maps), (said, served_maps) = net(image), served(image)
        for one, other in zip(truth, said, strict=True):
            torch.testing.assert_close(one.logits, other.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(net.fine(maps), served.fine(served_maps), atol=1e-4, rtol=1e-4)


def test_with_a_pyramid_the_decoder_is_not_asked_before_somebody_outlines():
    net = NoduleNet(NoduleNetConfig(width=4, fpn=True)).eval()
    with torch.inference_mode():
        _, maps = net(torch.zeros(1, 1, 32, 32, 32))
        assert maps.fine is None
        assert net.fine(maps) is net.fine(maps)


def test_a_side_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(32, 40, 32\) voxels.*multiple of 16"):
        NoduleNet(NoduleNetConfig(width=4))(torch.zeros(1, 1, 32, 40, 32))


def test_focal_training_starts_from_its_prior():
    torch.manual_seed(0)
    levels, _ = NoduleNet(NoduleNetConfig(width=4, focal=True))(torch.randn(1, 1, 32, 32, 32))
    assert 0.005 < levels[0].logits.detach().sigmoid().median().item() < 0.02
