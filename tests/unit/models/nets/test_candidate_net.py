"""From patches to an answer: both extractors, what learns and what does not, and weights that come from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.nets.candidate_net import CandidateNet, CandidateNetConfig, GreyInception, probability
from models.nets.inception import InceptionV3
from models.nets.recurrent_attention import attention_loss
from models.weights import WeightsError

SMALL = CandidateNetConfig(width=2, embedding=6, hidden=8)


def test_inception_is_the_one_that_the_source_counts() -> None:
    """10 664 160 parameters up to Mixed_7a, and 1280 maps of 8 x 8 for images of 299 to 329 pixels."""
    net = InceptionV3().eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == 10_664_160
    with torch.no_grad():
        for side in (299, 329):
            assert net(torch.zeros(1, 3, side, side)).shape == (1, 1280, 8, 8)


def test_both_extractors_give_eight_by_eight_cells() -> None:
    with torch.no_grad():
        for backbone in ("small-cnn", "inception-v3"):
            net = CandidateNet(CandidateNetConfig(backbone=backbone, width=2, embedding=6, hidden=8)).eval()  # type: ignore[arg-type]
            answer = net(torch.rand(2, 9, 32, 32))
            assert answer.logits.shape == (2, 8, 2)
            assert answer.spatial.shape == (2, 8, 64)
            torch.testing.assert_close(answer.temporal.sum(dim=2), torch.ones(2, 8))
            assert ((probability(answer) > 0) & (probability(answer) < 1)).all()


def test_of_nine_slices_a_network_for_one_sees_the_middle() -> None:
    net = CandidateNet(CandidateNetConfig(width=2, embedding=6, hidden=8, slices=1, attention="none")).eval()
    patches = torch.rand(3, 9, 32, 32)
    changed = patches.clone()
    changed[:, [0, 1, 2, 3, 5, 6, 7, 8]] = 0.0
    with torch.no_grad():
        torch.testing.assert_close(net(patches).logits, net(changed).logits)
        changed[:, 4] = 0.0
        assert not torch.allclose(net(patches).logits, net(changed).logits)


def test_gradients_reach_the_first_layer_of_the_extractor() -> None:
    net = CandidateNet(SMALL).train()
    attention_loss(net.recurrent, net(torch.rand(4, 9, 32, 32)), torch.tensor([0, 1, 0, 1])).backward()
    without = [name for name, one in net.named_parameters() if one.grad is None or not one.grad.abs().sum()]
    assert not [name for name in without if not name.endswith("bias")]


def test_a_frozen_extractor_neither_learns_nor_forgets() -> None:
    net = CandidateNet(CandidateNetConfig(width=2, embedding=6, hidden=8, frozen=True)).train()
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    attention_loss(net.recurrent, net(torch.rand(4, 9, 32, 32)), torch.tensor([0, 1, 0, 1])).backward()
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert net.recurrent.training
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())


def test_published_weights_are_taken_and_what_comes_after_is_not(tmp_path: Path) -> None:
    torch.manual_seed(4)
    there = InceptionV3().eval()
    tensors = {name: value.contiguous() for name, value in there.state_dict().items()}
    save_file({**tensors, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "inception.safetensors")
    net = CandidateNet(
        CandidateNetConfig(backbone="inception-v3", frozen=True), tmp_path / "inception.safetensors"
    ).eval()
    assert isinstance(net.backbone, GreyInception)
    for name, value in net.backbone.state_dict().items():
        torch.testing.assert_close(value, tensors[name])


@pytest.mark.parametrize("what", ["missing", "of another network", "no safetensors"])
def test_weights_that_do_not_fit_are_refused_in_words(tmp_path: Path, what: str) -> None:
    path = tmp_path / "inception.safetensors"
    if what == "of another network":
        save_file({"conv.weight": torch.zeros(3)}, path)
    elif what == "no safetensors":
        path.write_bytes(b"PK not weights")
    with pytest.raises(WeightsError, match=r"inception\.safetensors"):
        CandidateNet(CandidateNetConfig(backbone="inception-v3"), path)


def test_only_inception_takes_published_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="small-cnn has no published weights"):
        CandidateNet(SMALL, tmp_path / "any.safetensors")
