"""The encoder that starts from ImageNet: its published size, its maps, and where learnt weights land."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.nets.efficientnet_lite import (
    HEAD,
    STEM,
    EfficientNetLite,
    LiteConfig,
    SameConv,
    from_imagenet,
    imagenet_weights,
)
from models.weights import WeightsError


@pytest.mark.parametrize(("version", "published"), [(0, 4_652_008), (1, 5_416_680), (2, 6_092_072)])
def test_with_its_classifier_it_has_the_published_parameters(version: int, published: int) -> None:
    with torch.device("meta"):
        own = sum(p.numel() for p in EfficientNetLite(LiteConfig(version)).parameters())
    colours = 2 * STEM * 9  # its stem reads three colours, ours one grey
    classifier = HEAD * 1000 + 1000
    assert own + colours + classifier == published


@pytest.mark.parametrize("side", [64, 96])
def test_each_map_has_half_the_side_of_the_one_before(side: int) -> None:
    net = EfficientNetLite().eval()
    maps = net(torch.randn(1, 1, side, side))
    assert [m.shape[2] for m in maps] == [side // 2**k for k in range(1, 6)]
    assert [m.shape[1] for m in maps] == net.channels


def test_padding_goes_to_the_end_where_the_stride_leaves_an_odd_pixel() -> None:
    conv = SameConv(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    ramp = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert conv(ramp)[0, 0, 0, 0] == ramp[0, 0, :3, :3].sum()  # nothing was added before the first pixel


def colour_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """As the packages store it: three colours, other names, a classifier at the end."""
    torch.manual_seed(5)
    state = {
        f"_x{i}": torch.randn_like(t.float()).to(t.dtype)
        for i, t in enumerate(EfficientNetLite().state_dict().values())
    }
    state["_x0"] = torch.randn(STEM, 3, 3, 3)
    state["_fc.weight"] = torch.randn(10, HEAD)
    torch.save(state, path)
    return state


def test_a_grey_image_counts_as_three_equal_colours(tmp_path: Path) -> None:
    state = colour_checkpoint(tmp_path / "w.pth")
    net = from_imagenet(EfficientNetLite(), tmp_path / "w.pth")
    grey = torch.randn(1, 1, 8, 8)
    padded = torch.nn.functional.pad(grey.expand(1, 3, 8, 8), (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, state["_x0"], stride=2)
    torch.testing.assert_close(net.stem[0](grey), expected)
    own = list(net.state_dict().values())
    assert all(torch.equal(t, state[f"_x{i}"]) for i, t in enumerate(own) if i > 0)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    colour_checkpoint(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="not of this network"):
        from_imagenet(EfficientNetLite(LiteConfig(2)), tmp_path / "w.pth")


def test_a_missing_package_is_named() -> None:
    with pytest.raises(WeightsError, match="efficientnet-lite9-pytorch-model"):
        imagenet_weights(9)
