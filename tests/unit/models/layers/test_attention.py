"""Attention for ResNet's residual branch: any in the place of any, gates that are gates, the stated sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from models.layers.attention import CCAPM, CCASM, Attention, CoordinateGates, Reading, attention
from models.nets.ccfam_fpn import Backbone, CCFAMConfig

KINDS = get_args(Attention)
GATED = [kind for kind in KINDS if kind not in ("plain", "cbam", "scse")]  # CBAM gates twice, scSE sums two gates
READINGS = [Reading(), *(replace(Reading(), **{name: False}) for name in ("pool_avg", "squeeze")), Reading(kernel=3)]
# without fc: the source's sizes; and those that the modules' own papers lead to (SE-ResNet-50 has 28 088 024 with its
# fc of 2 049 000, ECA adds 86 weights)
PARAMETERS = {
    "plain": 23_508_032,
    "ccapm": 30_069_152,
    "ccasm": 28_796_576,
    "se": 28_088_024 - 2_049_000,
    "eca": 23_508_032 + 86,
}


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize(("kind", "count"), PARAMETERS.items())
def test_a_resnet_50_with_it_has_the_stated_number_of_parameters(kind, count):
    with torch.device("meta"):
        backbone = Backbone(CCFAMConfig(attention=kind, stem=0))
    assert sum(p.numel() for p in backbone.parameters()) == count


@pytest.mark.parametrize("shape", [(2, 32, 6, 6), (2, 32, 5, 9), (3, 64, 11, 4)])
def test_maps_keep_their_shape(kind, shape):
    assert attention(kind, shape[1])(torch.randn(shape)).shape == shape


@pytest.mark.parametrize("kind", GATED)
def test_the_gate_is_above_nought_and_at_most_one(kind):
    torch.manual_seed(0)
    module = attention(kind, 32).train()
    gate = module.gate(4 * torch.randn(4, 32, 5, 9)).detach().expand(4, 32, 5, 9)
    assert 0 < float(gate.min()) <= float(gate.max()) <= 1
    assert float(gate.std()) > 0


def test_gradients_reach_every_weight_and_the_map(kind):
    module = attention(kind, 32)
    x = torch.randn(4, 32, 6, 7, requires_grad=True)
    module(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_channels_see_as_many_others_as_the_names_promise(kind):
    module = attention(kind, 32).eval()
    x = torch.randn(1, 32, 9, 9)
    moved = x.clone()
    moved[0, 3, 4, 4] += 30.0
    changed = ((module(moved) - module(x)).abs() > 1e-7)[0].flatten(1).any(dim=1)
    if kind in ("plain", "eca"):  # itself; for 32 channels the kernel of ECA is 3 wide
        assert changed.nonzero()[:, 0].tolist() == ([3] if kind == "plain" else [2, 3, 4])
    else:
        assert changed.sum() > 16


def test_rows_gate_rows_and_columns_gate_columns():
    """A map bright in row 10 only: the rows' gate knows the row, the columns' gate is the same but for the ends."""
    gates = CoordinateGates(8).eval()
    torch.nn.init.ones_(gates.rows.weight)
    torch.nn.init.ones_(gates.columns.weight)
    x = torch.zeros(1, 8, 21, 15)
    x[:, :, 10] = 1.0
    e_h, e_w = gates(x)
    assert (e_h.shape, e_w.shape) == ((1, 8, 21, 1), (1, 8, 1, 15))
    assert (e_h[0, 0, 7:14, 0] > e_h[0, 0, 0, 0]).all()  # kernel of 7 round row 10
    assert torch.allclose(e_h[0, 0, [6, 14], 0], e_h[0, 0, 0, 0])
    assert torch.allclose(e_w[0, 0, 0, 3:12], e_w[0, 0, 0, 7])


@pytest.mark.parametrize(("module", "most"), [(CCAPM, 2.0), (CCASM, 1.0)])
def test_a_literal_addition_answers_with_the_gate(module, most):
    torch.manual_seed(0)
    plain, literal = module(32).eval(), module(32, reading=Reading(literal_add=True)).eval()
    literal.load_state_dict(plain.state_dict())
    x = torch.randn(2, 32, 5, 7)
    assert torch.allclose(plain(x), x * literal(x) / most)
    assert 0 < float(literal(x).detach().min()) <= float(literal(x).detach().max()) <= most


def test_what_cannot_be_built_is_refused_in_words():
    with pytest.raises(ValueError, match="no attention 'sse'; known: plain, se,"):
        attention("sse", 32)
    with pytest.raises(ValueError, match="about ccapm and ccasm, not about se"):
        attention("se", 32, reading=Reading(literal_add=True))
    with pytest.raises(ValueError, match="kernel=4: an even kernel has no middle"):
        Reading(kernel=4)


def parts_of(module: CCAPM, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands before the pooling for rows and for columns, (B, C, H) and (B, C, W)."""
    seen = []
    hooks = [part.register_forward_hook(lambda _m, _i, out: seen.append(out)) for part in (module.rows, module.columns)]
    module.gate(x)
    for hook in hooks:
        hook.remove()
    return seen[0], seen[1]


@pytest.mark.parametrize("squeeze", [True, False])
def test_pool_avg_is_the_mean_of_three_neighbours_before_the_sigmoid(squeeze):
    """Equation 13; beyond the ends is nought, as in CCASM."""
    torch.manual_seed(0)
    x = torch.randn(2, 32, 5, 9)
    module = CCAPM(32, reading=Reading(squeeze=squeeze)).eval()
    means = []
    for part in parts_of(module, x):
        padded = nn.functional.pad(part, (1, 1))
        means.append(torch.sigmoid((padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]) / 3))
    assert torch.allclose(module.gate(x), 0.5 * (means[0][..., None] + means[1][..., None, :]), atol=1e-6)
    without = CCAPM(32, reading=Reading(squeeze=squeeze, pool_avg=False)).eval()
    without.load_state_dict(module.state_dict())  # it has no weights of its own
    assert not torch.allclose(without.gate(x), module.gate(x), atol=1e-4)


@pytest.mark.parametrize("reading", READINGS)
def test_every_reading_is_a_gate_whose_weights_all_learn(reading):
    torch.manual_seed(0)
    module = CCAPM(32, reading=reading)
    gate = module.gate(4 * torch.randn(4, 32, 5, 9))
    gate.square().sum().backward()
    assert gate.shape == (4, 32, 5, 9)
    assert 0 < float(gate.detach().min()) <= float(gate.detach().max()) <= 1
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_nothing_squeezed_is_one_convolution_without_relu():
    module = CCAPM(32, reading=Reading(squeeze=False))
    assert [type(part) for part in module.squeeze] == [nn.Conv1d, nn.BatchNorm1d]
    assert module.squeeze[0].weight.shape == (32, 32, 1)
    assert isinstance(module.rows, nn.Identity)


def test_a_sum_is_twice_the_half_of_it():
    torch.manual_seed(0)
    half, whole = CCAPM(32).eval(), CCAPM(32, reading=Reading(halved=False)).eval()
    whole.load_state_dict(half.state_dict())
    x = torch.randn(2, 32, 5, 7)
    assert torch.allclose(whole(x), 2 * half(x))
