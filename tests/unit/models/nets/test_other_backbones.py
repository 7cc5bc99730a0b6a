"""The backbones of other families: as many parameters as published, levels where the pyramid expects them."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from models.nets.ccfam_fpn import CCFAMFPN, Backbone, CCFAMConfig
from models.nets.other_backbones import Family, divisible

FAMILIES = get_args(Family)
SMALL = CCFAMConfig(width=16, depth=(1, 1, 1, 1), attention="plain", proposals=(60, 30), samples=64, rois=32)
# the published networks less what classifies, and VGG16 less the 4224 biases that its norms make needless
PUBLISHED = {
    "vgg16": 138_365_992 - 123_642_856 - 4224,
    "resnet18": 11_689_512 - 513_000,
    "efficientnet-b0": 5_288_548 - 1_281_000 - 412_160,
    "mobilenet-v3-l": 5_483_032 - 1_230_080 - 1_281_000 - 155_520,
}


@pytest.mark.parametrize(("family", "count"), PUBLISHED.items())
def test_it_has_the_published_number_of_parameters(family, count):
    with torch.device("meta"):
        backbone = Backbone(CCFAMConfig(encoder=family, attention="plain", stem=0))
    assert sum(p.numel() for p in backbone.parameters()) == count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_levels_lie_where_the_pyramid_expects_them(family, shape):
    torch.manual_seed(0)
    backbone = Backbone(replace(SMALL, encoder=family)).eval()
    levels = backbone(torch.rand(1, 3, *shape))
    assert [tuple(one.shape[1:]) for one in levels] == [
        (channels, shape[0] // stride, shape[1] // stride)
        for channels, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_on_it_learns_in_every_weight(family):
    torch.manual_seed(0)
    net = CCFAMFPN(replace(SMALL, encoder=family)).train()
    truth = torch.tensor([[[20.0, 20.0, 36.0, 34.0]], [[8.0, 30.0, 20.0, 44.0]]])
    sum(net.losses(torch.rand(2, 3, 64, 64), truth).values()).backward()
    assert [name for name, p in net.backbone.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert len(net.eval()(torch.rand(2, 3, 64, 64))) == 2


@pytest.mark.parametrize("changes", [{"attention": "ccapm"}, {"fpn": False}])
def test_what_only_resnet_50_has_is_refused(changes):
    with pytest.raises(ValueError, match="vgg16 has neither attention nor a dilated stage"):
        replace(SMALL, encoder="vgg16", **changes)


def test_channels_are_multiples_of_eight_not_far_below():
    made = [divisible(value) for value in range(1, 400)]
    assert all(one % 8 == 0 and one >= 0.9 * value for value, one in enumerate(made, start=1))
    assert made[:8] == [8] * 8
    assert all(one - value < 12 for value, one in enumerate(made, start=1))
