"""The breast network: its size against the specification, its shapes, and what flows through it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.attention import CBAM
from models.nets.breast_triple import (
    CLASSES,
    FUSIONS,
    ClassificationNet,
    Encoder,
    FusionNet,
    SegmentationNet,
    SmallFusion,
    Smoothing,
    Triple,
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


@pytest.mark.parametrize(("encoder", "attended"), [("plain", False), ("lite0", True), ("lite0", False)])
def test_benign_or_malignant_is_read_from_the_deepest_attention_as_published(encoder: Encoder, attended: bool) -> None:
    """Shut the deepest CBAM, and the head sees the same of every image; only weights made before it was so have
    something left to see."""
    net = ClassificationNet(TripleConfig(encoder=encoder, width=4, heads="pooled", attended=attended)).eval()
    gates = net.body.attention
    assert gates is not None
    gates[-1].register_forward_hook(lambda _gate, _taken, given: torch.zeros_like(given))
    with torch.no_grad():
        first, second = (net.features(net.body.see(torch.randn(1, 1, 64, 64)))[1] for _ in range(2))
    assert torch.equal(first, second) == (attended or encoder == "plain")


def test_cbam_only_weakens() -> None:
    x = torch.rand(2, 32, 9, 11)
    out = CBAM(32)(x)
    assert out.shape == x.shape
    assert ((out > 0) & (out < x)).all()


@pytest.mark.usefixtures("on_paper")
def test_the_full_network_has_five_cbam_modules_and_one_smoothing_module() -> None:
    net = SegmentationNet(TripleConfig(width=64))
    assert [m.mlp[0].in_channels for m in net.modules() if isinstance(m, CBAM)] == [64, 128, 256, 512, 1024]
    assert sum(isinstance(m, Smoothing) for m in net.modules()) == 1


def test_fusion_has_the_parameters_worked_out_by_hand() -> None:
    # 1024 -> 256 -> 64 -> 1 and 3 -> 16 -> 2, with biases
    assert count(FusionNet()) == (1024 * 256 + 256) + (256 * 64 + 64) + (64 + 1) + (3 * 16 + 16) + (16 * 2 + 2)
    assert count(SmallFusion()) == 7


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(["published", "small"]), seed=st.integers(0, 10**6), scale=st.floats(0.1, 30.0))
def test_fusion_gives_probabilities_and_the_printed_softmax_keeps_their_order(
    kind: str, seed: int, scale: float
) -> None:
    torch.manual_seed(seed)
    fusion = FUSIONS[kind]().eval()
    with torch.no_grad():
        for weights in fusion.parameters():  # whatever a training makes of them
            weights.add_(torch.randn_like(weights) * 0.1 * scale)
        mask, classes = torch.rand(4, 1, 64, 64), (scale * torch.randn(4, 3)).softmax(1)
        q = fusion(mask, classes)
        fusion.softmax_out = True
        printed = fusion(mask, classes)
    assert torch.allclose(q.sum(1), torch.ones(4), atol=1e-6)
    assert (q >= 0).all()
    # the order is kept down to what float32 can tell apart
    assert torch.allclose(q.gather(1, printed.argmax(1, keepdim=True)), q.amax(1, keepdim=True), atol=1e-6)
    assert printed.max() <= 0.577  # e / (e + 2): what an extra softmax leaves of certainty


def test_a_small_fusion_starts_as_the_very_answer_of_b() -> None:
    torch.manual_seed(1)
    fusion = SmallFusion()
    mask, classes = torch.rand(8, 1, 64, 64), torch.randn(8, 3).softmax(1)
    assert torch.allclose(fusion(mask, classes), classes, atol=1e-6)
    assert fusion.departure() == 0
    with torch.no_grad():
        fusion.lesion.bias.add_(2.0)
    assert fusion.departure() == 4.0
    assert (fusion(mask, classes)[:, 0] < classes[:, 0]).all()


def test_the_triple_answers_with_the_mask_of_a_and_the_classes_of_c() -> None:
    torch.manual_seed(2)
    a, b, c = SegmentationNet(SMALL), ClassificationNet(SMALL), FusionNet()
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        mask, classes = Triple(b).eval()(image)
        logits, z = b(image)
        assert torch.equal(mask, logits)
        assert torch.equal(classes, z)
        mask, classes = Triple(b, a, c).eval()(image)
        assert torch.equal(mask, a(image))
        assert torch.allclose(classes.softmax(1), c(mask.sigmoid(), z.softmax(1)), atol=1e-6)
