"""The breast network: its size against the specification, its shapes, and what flows through it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.layers.attention import CBAM
from models.nets.breast_triple import (
    CLASSES,
    ClassificationNet,
    Encoder,
    FusionNet,
    SegmentationNet,
    Smoothing,
    TripleConfig,
)

SMALL = TripleConfig(width=4)


@pytest.fixture
def on_paper() -> Iterator[None]:
    """Networks with shapes but without weights: the full one is built in no time."""
    with torch.device("meta"):
        yield


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.usefixtures("on_paper")
def test_the_full_network_has_the_parameters_of_the_specification() -> None:
    assert count(SegmentationNet(TripleConfig(width=64))) == 31_211_705


@pytest.mark.usefixtures("on_paper")
def test_the_heads_add_4097_and_2050_parameters() -> None:
    assert count(ClassificationNet(TripleConfig(width=64))) == 31_211_705 + 4097 + 2050


def test_smoothing_has_142_parameters_and_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    smoothing = Smoothing()
    logits = torch.randn(2, 1, 32, 32) + 3  # mostly positive: LeakyReLU passes them
    assert count(smoothing) == 142
    assert torch.corrcoef(torch.stack([logits.flatten(), smoothing(logits).flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("shape", [(256, 256), (128, 192)])
def test_mask_and_classes_have_the_shapes_promised(shape: tuple[int, int]) -> None:
    net = ClassificationNet(SMALL).eval()
    with torch.no_grad():
        mask, classes = net(torch.randn(2, 1, *shape))
    assert mask.shape == (2, 1, *shape)
    assert classes.shape == (2, len(CLASSES))


@pytest.mark.parametrize("encoder", ["lite0", "lite2"])
def test_with_an_encoder_of_its_own_the_network_keeps_its_shapes_and_every_weight_learns(encoder: Encoder) -> None:
    net = ClassificationNet(TripleConfig(encoder=encoder, width=4, heads="joint"))
    mask, classes = net(torch.randn(2, 1, 64, 96))
    assert mask.shape == (2, 1, 64, 96)
    assert classes.shape == (2, len(CLASSES))
    (mask.mean() + classes.logsumexp(1).mean()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_a_network_is_built_from_what_its_training_stored() -> None:
    stored = {"encoder": "lite2", "width": 8, "heads": "joint", "lr": 0.1, "epochs": 3}
    assert TripleConfig.of(stored) == TripleConfig(encoder="lite2", width=8, heads="joint")


def test_literal_heads_flatten_the_whole_maps() -> None:
    net = ClassificationNet(TripleConfig(width=4, heads="literal", size=64))
    assert net.absent.in_features == 64 * 64
    assert net.kind.in_features == 64 * (64 // 16) ** 2
    assert net(torch.randn(2, 1, 64, 64))[1].shape == (2, 3)


@pytest.mark.usefixtures("on_paper")
def test_the_literal_heads_of_the_full_network_are_those_of_the_specification() -> None:
    net = ClassificationNet(TripleConfig(width=64, heads="literal"))
    assert (net.absent.in_features, net.kind.in_features) == (65_536, 262_144)


def test_both_tasks_reach_every_weight() -> None:
    net = ClassificationNet(SMALL)
    mask, classes = net(torch.randn(2, 1, 32, 32))
    (mask.mean() + classes.logsumexp(1).mean()).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.usefixtures("on_paper")
@pytest.mark.parametrize(("without", "fewer"), [({"smoothing": False}, 142), ({"attention": False}, 175_082)])
def test_ablations_take_away_exactly_their_part(without: dict[str, bool], fewer: int) -> None:
    # CBAM at width 64: 2 c^2 / 16 for c = 64 ... 1024, and five 7x7x2 kernels
    assert count(SegmentationNet()) - count(SegmentationNet(TripleConfig(**without))) == fewer  # type: ignore[arg-type]


def test_the_bottleneck_attention_has_no_residual_but_the_skips_have() -> None:
    net = SegmentationNet(SMALL).eval()
    assert net.attention is not None
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        for gate in net.attention:
            gate.place.weight.zero_()
            gate.mlp[0].weight.zero_()  # both gates now say 0.5, so CBAM(x) = x / 4
        plain = SegmentationNet(TripleConfig(width=4, attention=False)).eval()
        plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("attention")})
        assert torch.allclose(net.see(image).bottleneck, plain.see(image).bottleneck / 4, atol=1e-6)


def test_cbam_only_weakens() -> None:
    x = torch.rand(2, 32, 9, 11)
    out = CBAM(32)(x)
    assert out.shape == x.shape
    assert ((out > 0) & (out < x)).all()


def test_fusion_gives_probabilities_and_the_printed_softmax_keeps_their_order() -> None:
    torch.manual_seed(1)
    fusion = FusionNet().eval()
    mask, classes = torch.rand(4, 1, 256, 256), torch.randn(4, 3).softmax(1)
    q = fusion(mask, classes)
    fusion.softmax_out = True
    printed = fusion(mask, classes)
    assert torch.allclose(q.sum(1), torch.ones(4))
    assert (printed.argmax(1) == q.argmax(1)).all()
    assert printed.max() <= 0.577  # e / (e + 2): what an extra softmax leaves of certainty
    assert 270_000 < count(fusion) < 290_000
