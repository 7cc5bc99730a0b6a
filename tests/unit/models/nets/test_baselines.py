"""Whatever network a configuration names: same size out, every weight learns, the same seed gives the same network."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from models.nets.baselines import build_net
from models.nets.efficientnet_lite import EfficientNetLite, LiteConfig, from_imagenet, imagenet_weights
from models.training.losses import bce_dice_loss
from models.training.lung_nodule.residual_unet.recipe import Config, NoduleRecipe, named
from models.training.train import configured
from models.weights import WeightsError

NETS = {
    "Model 2": {},
    "Model 1": {"vit": True, "vit_depth": 2},
    "all gates": {"scse": "encoder+decoder+bottleneck"},
    "lite0": {"encoder": "lite0"},
    "lite2 with ViT": {"encoder": "lite2", "vit": True, "vit_depth": 2},
    "unet": {"net": "unet"},
    "attention_unet": {"net": "attention_unet"},
    "transunet": {"net": "transunet"},
}
SIZES = [(128, 128), (64, 64), (96, 96), (64, 96)]


@pytest.fixture(params=NETS)
def about(request):
    return {"width": 4, **NETS[request.param]}


def test_the_logits_have_the_size_of_the_image(about):
    net = build_net(about).eval()
    with torch.inference_mode():
        for size in SIZES:
            assert net(torch.rand(2, 1, *size)).shape == (2, 1, *size)


def test_another_size_is_refused_in_words(about):
    step = 32 if "encoder" in about else 16
    net = build_net(about).eval()
    with pytest.raises(ValueError, match=f"64 x {64 + step // 2} pixels.*multiples of {step}"):
        net(torch.rand(1, 1, 64, 64 + step // 2))


def test_every_weight_learns(about):
    torch.manual_seed(0)
    net = build_net(about)
    logits = net(torch.rand(2, 1, 64, 64))
    bce_dice_loss(logits, (torch.rand_like(logits) > 0.5).float()).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    # what nothing depends on has gradients of zero; so has, by chance, a narrow ReLU layer, but no whole block
    blocks = [(name, [*block.parameters()]) for name, block in net.named_modules() if name.count(".") < 2]
    assert [name for name, own in blocks if own and not any(p.grad.any() for p in own)] == []


def test_the_same_seed_gives_the_same_network(about):
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(torch.cat([p.detach().flatten() for p in build_net(about).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_few_images_are_learnt_by_heart(about):
    torch.manual_seed(3)
    net = build_net(about)
    truth = torch.zeros(2, 1, 32, 32)
    truth[0, 0, 6:16, 8:20] = 1
    truth[1, 0, 14:26, 10:18] = 1
    image = 0.4 * truth + 0.3 * torch.rand(2, 1, 32, 32)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    first = None
    for _ in range(150):  # most need 20
        loss = bce_dice_loss(net(image), truth)
        first = first or loss.item()
        if loss.item() < 0.4 * first:
            return
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    pytest.fail(f"the loss fell from {first:.2f} to {loss.item():.2f} only")


@pytest.mark.parametrize(("net", "published"), [("unet", 31e6), ("attention_unet", 32e6), ("transunet", 105e6)])
def test_the_baselines_are_of_the_size_they_are_known_for(net, published):
    """U-Net 31.0 M; Attention U-Net about 34.9 M in its authors' code, MONAI's has fewer; R50-ViT-B TransUNet 105 M."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_net({"net": net, "width": 64}).parameters())
    assert parameters == pytest.approx(published, rel=0.25)


def test_an_unknown_network_and_a_choice_it_has_not_are_refused():
    with pytest.raises(ValueError, match="no network 'unett'; known: residual_unet, unet"):
        build_net({"net": "unett"})
    with pytest.raises(ValueError, match="unet has no scSE, ViT or encoder to choose"):
        build_net({"net": "unet", "width": 4, "vit": True})


def test_a_node_does_not_load_monai_for_its_network():
    code = (
        "import sys; from models.nets.baselines import build_net; build_net({'width': 4});"
        " sys.exit('monai' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[4]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# --------------------------------------------------------------------------------------------------------- recipe


def recipe(**changes):
    """The recipe without its data: networks and optimisers need none."""
    made = object.__new__(NoduleRecipe)
    made.config = replace(Config(), width=4, **changes)
    return made


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"width": 16}, "residual_unet_w16"),
        ({"width": 8, "vit": True}, "residual_unet_vit_w8"),
        ({"width": 8, "vit": True, "scse": "encoder"}, "residual_unet_vit_w8"),
        ({"width": 8, "vit": True, "keep_scse": True}, "residual_unet_vit_keep_scse_w8"),
        ({"encoder": "lite0", "width": 16}, "residual_unet_lite0_w16"),
        ({"scse": "bottleneck+encoder", "width": 16}, "residual_unet_w16"),
        ({"scse": "decoder+encoder", "width": 16}, "residual_unet_scse_encoder_decoder_w16"),
        ({"scse": "none", "width": 16}, "residual_unet_scse_none_w16"),
        ({"net": "unet", "width": 16}, "unet_w16"),
    ],
)
def test_a_training_is_called_by_how_it_departs_from_model_2(changes, name):
    assert named(replace(Config(), **changes)) == name


def test_the_stored_configuration_builds_the_network_that_was_trained(about):
    changes = {name: value for name, value in about.items() if name != "width"}
    trained = recipe(pretrained=False, **changes)
    stored = json.loads(json.dumps(asdict(trained.config)))  # as the sidecar holds it
    shapes = [{n: t.shape for n, t in net.state_dict().items()} for net in (trained.model(), build_net(stored))]
    assert shapes[0] == shapes[1]


def test_the_dilations_can_be_chosen_on_the_command_line():
    assert configured(Config(), {"rates": "1,2,3"}).rates == (1, 2, 3)


def test_a_learnt_encoder_learns_more_slowly_and_nothing_else_does():
    trained = recipe(encoder="lite0", encoder_rate=0.25, lr=0.02)
    model = build_net(asdict(trained.config))
    fast, slow = trained.optimiser(model).param_groups
    assert (fast["lr"], slow["lr"]) == (0.02, 0.005)
    assert {id(p) for p in slow["params"]} == {id(p) for p in model.lite.parameters()}
    assert len(fast["params"]) + len(slow["params"]) == len([*model.parameters()])
    assert len(recipe(encoder="lite0", pretrained=False).optimiser(model).param_groups) == 1
    assert len(recipe().optimiser(recipe().model()).param_groups) == 1


def test_a_pretrained_encoder_holds_the_weights_of_imagenet():
    try:
        path = imagenet_weights(0)
    except WeightsError as error:
        pytest.skip(str(error))
    learnt = from_imagenet(EfficientNetLite(LiteConfig(0)), path).state_dict()
    own = recipe(encoder="lite0").model().lite.state_dict()
    assert set(learnt) - set(own) == {n for n in learnt if n.startswith("head.")}
    assert all(torch.equal(t, learnt[n]) for n, t in own.items())
