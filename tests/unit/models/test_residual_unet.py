"""The nodule network is the one its source describes: the parameter count decides."""

import pytest
import torch

from models.layers.aspp import ASPP
from models.layers.attention import SCSE
from models.losses import bce_dice_loss, dice_loss, tversky_loss
from models.nets.residual_unet import ResidualUNet


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_width_64_has_the_published_number_of_parameters():
    with torch.device("meta"):  # counted without allocating 273 MB
        assert count(ResidualUNet(64)) == 71_538_433


@pytest.mark.parametrize(
    ("channels", "parameters"), [(64, 4_160), (128, 16_512), (256, 65_792), (512, 262_656), (1024, 1_049_600)]
)
def test_scse_has_the_published_number_of_parameters(channels, parameters):
    with torch.device("meta"):
        assert count(SCSE(channels)) == parameters


def test_fusion_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert count(ASPP(1024)) == 23_071_744


def test_same_size_out_and_gradient_everywhere():
    net = ResidualUNet(4)
    logits = net(torch.rand(2, 1, 128, 128))
    assert logits.shape == (2, 1, 128, 128)
    bce_dice_loss(logits, torch.zeros_like(logits)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_scse_gates_are_a_sum_of_channel_and_place():
    gate = SCSE(4).eval()
    for p in gate.parameters():
        torch.nn.init.zeros_(p)
    x = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(gate(x), x)  # sigmoid(0) + sigmoid(0) = 1


def test_losses_of_perfect_empty_and_wrong_answers():
    truth = torch.zeros(2, 1, 8, 8)
    truth[0, 0, 2:5, 2:5] = 1
    sure = 40 * truth - 20
    for loss in (dice_loss, tversky_loss, bce_dice_loss, lambda a, b: dice_loss(a, b, per_image=True)):
        assert loss(sure, truth).item() == pytest.approx(0, abs=1e-3)
        assert loss(-sure, truth).item() > 0.8
    assert dice_loss(torch.full((1, 1, 2, 2), 20.0), torch.ones(1, 1, 2, 2)).item() == pytest.approx(0, abs=1e-6)
    # 2·TP/(2·TP + FP + FN) by hand: TP 4, FP 4, FN 0, smooth 1 -> 1 - 9/13
    half = torch.full((1, 1, 2, 4), 20.0)
    target = torch.tensor([[[[1.0, 1, 0, 0], [1, 1, 0, 0]]]])
    assert dice_loss(half, target).item() == pytest.approx(1 - 9 / 13, abs=1e-5)
    assert tversky_loss(half, target).item() == pytest.approx(1 - 5 / 7, abs=1e-5)  # (4+1)/(4+0.5·4+1)
