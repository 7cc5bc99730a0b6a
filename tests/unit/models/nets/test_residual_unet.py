"""The nodule network is the one its source describes: the parameter counts decide, and its shipped weights."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from models import weights
from models.layers.aspp import ASPP
from models.layers.attention import SCSE
from models.layers.vit import ViT
from models.nets.baselines import build_net
from models.nets.residual_unet import ResidualUNet, ResidualUNetConfig
from models.training.losses import bce_dice_loss, dice_loss, tversky_loss

UNIONS = [
    "+".join(places) or "none"
    for n in range(4)
    for places in itertools.combinations(("encoder", "decoder", "bottleneck"), n)
]


def count(module):
    return sum(p.numel() for p in module.parameters())


def on_paper(**flags):
    with torch.device("meta"):  # counted without allocating 273 MB
        return ResidualUNet(ResidualUNetConfig(**flags))


@pytest.mark.parametrize(
    ("flags", "parameters"),
    [
        ({}, 71_538_433),  # Model 2
        ({"scse": "encoder", "vit": True}, 114_641_409),  # Model 1
        ({"vit": True}, 114_641_409),  # the ViT takes the place of the gate in the bottleneck
        ({"scse": "encoder", "vit": True, "keep_scse": True}, 115_691_009),
        ({"vit": True, "vit_width": 512, "vit_depth": 14, "vit_mlp": 2048, "vit_heads": 8}, 115_706_113),
        ({"vit": True, "vit_width": 1024, "vit_depth": 8, "vit_mlp": 512, "vit_heads": 16}, 114_676_481),
    ],
)
def test_width_64_has_the_published_number_of_parameters(flags, parameters):
    assert count(on_paper(**flags)) == parameters


@pytest.mark.parametrize(
    ("channels", "parameters"), [(64, 4_160), (128, 16_512), (256, 65_792), (512, 262_656), (1024, 1_049_600)]
)
def test_scse_has_the_published_number_of_parameters(channels, parameters):
    with torch.device("meta"):
        assert count(SCSE(channels)) == parameters


def test_fusion_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert count(ASPP(1024)) == 23_071_744


@pytest.mark.parametrize("scse", UNIONS)
def test_each_union_of_scse_places_has_exactly_its_gates(scse):
    """c^2 + c parameters each; nothing else of the network depends on the places."""
    sizes = {"encoder": (64, 128, 256, 512), "decoder": (512, 256, 128, 64), "bottleneck": (1024,), "none": ()}
    net = on_paper(scse=scse)
    gates = {name: m for name, m in net.named_modules() if isinstance(m, SCSE)}
    expected = {
        "encoder": ["gates.0", "gates.1", "gates.2", "gates.3"],
        "decoder": [f"decoder_gates.{i}" for i in range(4)],
        "bottleneck": ["gates.4"],
        "none": [],
    }
    assert sorted(gates) == sorted(name for place in scse.split("+") for name in expected[place])
    channels = [c for place in scse.split("+") for c in sizes[place]]
    assert count(net) - count(on_paper(scse="none")) == sum(c * c + c for c in channels)
    without = [name for name in net.state_dict() if "gates" not in name]
    assert without == list(on_paper(scse="none").state_dict())


@pytest.mark.parametrize("scse", UNIONS[1:])
def test_every_gate_that_is_there_is_used(scse):
    torch.manual_seed(0)
    net = ResidualUNet(ResidualUNetConfig(width=4, scse=scse)).eval()
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        before = net(x)
        for name, module in net.named_modules():
            if isinstance(module, SCSE):
                module.place.weight.add_(1.0)
                after = net(x)
                assert not torch.equal(after, before), name
                before = after


@pytest.mark.parametrize("encoder", ["plain", "lite0"])
def test_no_gate_at_all_is_possible(encoder):
    net = ResidualUNet(ResidualUNetConfig(width=4, scse="none", encoder=encoder))
    assert not any(isinstance(m, SCSE) for m in net.modules())
    assert net.eval()(torch.rand(1, 1, 32, 64)).shape == (1, 1, 32, 64)


@pytest.mark.parametrize(("flags", "why"), [({"scse": "encodr"}, "encodr"), ({"keep_scse": True}, "set vit too")])
def test_a_misspelt_place_or_a_flag_without_effect_is_refused(flags, why):
    with pytest.raises(ValueError, match=why):
        ResidualUNetConfig(**flags)


def test_a_network_is_built_from_what_its_training_stored():
    stored = {"width": 8, "vit": True, "rates": [1, 2], "encoder": "lite1", "lr": 0.1, "epochs": 3}
    assert ResidualUNetConfig.of(stored) == ResidualUNetConfig(8, vit=True, rates=(1, 2), encoder="lite1")
    assert ResidualUNetConfig.of({"width": 16}) == ResidualUNetConfig(16)


def test_the_vit_scales_with_the_width_and_its_heads_divide_it():
    vit = on_paper(width=16, vit=True).vit
    assert (vit.enter.out_channels, vit.blocks[0].linear1.out_features, len(vit.blocks)) == (192, 768, 6)
    assert vit.blocks[0].self_attn.num_heads == 12
    assert on_paper(width=16, vit=True, vit_width=512).vit.blocks[0].self_attn.num_heads == 4  # 12 does not divide 128


def test_places_learnt_on_8x8_are_interpolated_on_other_maps():
    """With all else equal, what a token sees of its place is the bilinear value of the learnt map."""
    vit = ViT(4, width=6, depth=0, heads=1, mlp=8)
    with torch.no_grad():
        vit.enter.weight.zero_()
        vit.enter.bias.zero_()
        vit.place.copy_(torch.arange(8.0)[:, None].expand(1, 6, 8, 8) * torch.arange(1.0, 7)[:, None, None])
    seen = []
    vit.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for height, width in ((8, 8), (4, 4), (4, 6)):
        assert vit(torch.rand(1, 4, height, width)).shape == (1, 4, height, width)
    whole, half, oblong = (tokens[0, :, 0].detach() for tokens in seen)  # rows 0..7 of the first feature
    torch.testing.assert_close(whole.reshape(8, 8)[:, 3], torch.arange(8.0))
    torch.testing.assert_close(half.reshape(4, 4)[:, 3], torch.tensor([0.5, 2.5, 4.5, 6.5]))  # between two rows each
    torch.testing.assert_close(oblong.reshape(4, 6)[:, 5], torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_every_token_of_the_vit_hears_of_every_other():
    torch.manual_seed(0)
    vit = ViT(4, width=24, depth=2, heads=12, mlp=48).eval()
    one = torch.rand(1, 4, 8, 8)
    two = one.clone()
    two[0, :, 0, 0] += 5  # one corner
    assert ((vit(one) - vit(two)).abs().amax(dim=1) > 0).all()


# ------------------------------------------------------------------------------------------------ shipped weights


def published(tensors, x):
    """Model 2 once more, written down from the specification and the names of the tensors alone."""

    def conv(name, x, **how):
        return F.conv2d(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), **how)

    def norm(name, x):
        t = [tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *t)

    def unit(name, x, *, first=False):
        m, y = f"{name}.main", x if first else F.relu(norm(f"{name}.main.0", x))
        a, b, c = (0, 1, 3) if first else (2, 3, 5)
        y = conv(f"{m}.{c}", F.relu(norm(f"{m}.{b}", conv(f"{m}.{a}", y, padding=1))), padding=1)
        return y + norm(f"{name}.skip.1", conv(f"{name}.skip.0", x, padding=1))

    def gate(name, x):
        squeezed = F.relu(conv(f"{name}.channel.1", F.adaptive_avg_pool2d(x, 1)))
        return x * (torch.sigmoid(conv(f"{name}.channel.3", squeezed)) + torch.sigmoid(conv(f"{name}.place", x)))

    skips = []
    for level in range(5):
        x = gate(f"gates.{level}", unit(f"encoder.{level}", F.max_pool2d(x, 2) if level else x, first=level == 0))
        skips.append(x)
    x = skips.pop()
    pooled = F.relu(conv("fusion.pooled", F.adaptive_avg_pool2d(x, 1))).expand(-1, -1, *x.shape[2:])
    dilated = [F.relu(conv(f"fusion.dilated.{i}", x, padding=r, dilation=r)) for i, r in enumerate((1, 2, 4, 6))]
    x = conv("fusion.fuse", torch.cat([F.relu(conv("fusion.point", x)), *dilated, pooled], dim=1))
    for level in range(4):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = unit(f"decoder.{level}", torch.cat([x, skips.pop()], dim=1))
    return conv("head", x)


def test_the_shipped_weights_answer_as_model_2_does_bit_by_bit():
    loaded = weights.load(weights.packed("lung_nodule", "residual_unet_w16"))
    net = loaded.into(build_net(loaded.about["config"]))
    image = (torch.arange(2 * 128 * 128).reshape(2, 1, 128, 128) * 7919 % 1009) / 1009
    with torch.inference_mode():
        logits = net(image)
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in loaded.tensors.items()}
        assert torch.equal(logits, published(tensors, image))
    # the same image through the code that shipped with the weights
    assert logits.mean().item() == pytest.approx(-13.6949, abs=1e-3)
    assert logits[0, 0, 64, 64].item() == pytest.approx(-16.9186, abs=1e-3)
    assert logits[1, 0, 10, 100].item() == pytest.approx(-12.7552, abs=1e-3)


# --------------------------------------------------------------------------------------------------------- losses


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
