"""The detector on slices: it learns by heart, finds the right places, and boxes are where the anchors say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from models.layers.attention import CCAPM, attention
from models.layers.boxes import iou
from models.lung_nodule.ccfam_fpn.detect import network
from models.nets.ccfam_fpn import CCFAMFPN, CCFAMConfig, anchors_of, sample
from models.weights import load, packed

TINY = CCFAMConfig(width=8, depth=(1, 1, 1, 1), proposals=(60, 30), samples=64, rois=32)
NONE = torch.zeros(1, 4)


def discs(count=4, side=64, slices=3):
    """Images with one bright disc each, but the last, and their boxes."""
    random = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images, boxes = 0.1 * torch.rand(count, slices, side, side, generator=random), []
    for image in images[:-1]:
        cy, cx = (torch.rand(2, generator=random) * (side - 24) + 12).round()
        radius = 4 + 4 * float(torch.rand(1, generator=random))
        disc = (y + 0.5 - cy) ** 2 + (x + 0.5 - cx) ** 2 <= radius**2
        image[:, disc] += 0.7
        rows, columns = disc.any(dim=1).nonzero()[:, 0], disc.any(dim=0).nonzero()[:, 0]
        boxes.append(torch.tensor([[rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]]).float())
    return images, torch.stack([*boxes, NONE])


@pytest.mark.parametrize(("fpn", "steps"), [(True, 160), (False, 160)])
def test_it_learns_a_few_images_by_heart_and_finds_their_discs(fpn, steps):
    torch.manual_seed(0)
    net = CCFAMFPN(replace(TINY, fpn=fpn)).train()
    images, boxes = discs()
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        total = torch.stack([*net.losses(images, boxes).values()]).sum()
        total.backward()
        optimiser.step()
    with torch.no_grad():  # the norms' running means are of few steps only: judge with those of the batch
        found = net(images)
    for one, box in zip(found[:-1], boxes[:-1], strict=True):
        assert iou(one.boxes[:1], box) > 0.5
        assert one.scores[0] > 0.5
    assert not (found[-1].scores > 0.5).any()


@pytest.mark.parametrize("kind", ["plain", "se", "eca", "cbam", "scse", "coord", "ccasm", "ccapm"])
@pytest.mark.parametrize("fpn", [True, False])
def test_every_weight_of_any_detector_learns(kind, fpn):
    torch.manual_seed(0)
    net = CCFAMFPN(replace(TINY, attention=kind, fpn=fpn))
    torch.stack([*net.losses(*discs()).values()]).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert [
        n for n, p in net.named_modules() if [*p.parameters()] and not any(q.grad.any() for q in p.parameters())
    ] == []


@pytest.mark.parametrize("slices", [1, 3, 32])
def test_any_number_of_slices_and_any_size_of_image(slices):
    net = CCFAMFPN(replace(TINY, slices=slices, stem=0 if slices == 32 else 32)).eval()
    for found in net(torch.rand(2, slices, 70, 51)):
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([70.0, 51, 70, 51])).all()
        assert (found.scores.diff() <= 0).all()
        assert found.scores.shape == found.proposed.shape == found.boxes.shape[:1]


def test_images_without_nodule_give_losses_that_are_numbers():
    net = CCFAMFPN(TINY)
    losses = net.losses(torch.rand(2, 3, 64, 64), NONE.expand(2, 1, 4))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["shift"].item() == losses["fit"].item() == 0.0


def test_what_one_image_says_does_not_depend_on_the_others():
    torch.manual_seed(0)
    net = CCFAMFPN(TINY).eval()
    images, _ = discs()
    alone, together = net(images[1:2])[0], net(images)[1]
    assert torch.allclose(alone.boxes, together.boxes, atol=1e-3)
    assert torch.allclose(alone.scores, together.scores, atol=1e-5)


def test_anchors_lie_round_the_middles_of_the_cells():
    anchors = anchors_of((3, 5), 8, (16,)).view(3, 5, 3, 4)
    assert anchors[0, 0, 1].tolist() == [-4.0, -4.0, 12.0, 12.0]
    assert anchors[2, 4, 1].tolist() == [12.0, 28.0, 28.0, 44.0]
    height, width = (anchors[1, 1, :, 2:] - anchors[1, 1, :, :2]).T
    assert (height / width).tolist() == pytest.approx([0.5, 1.0, 2.0])
    assert (height * width).tolist() == pytest.approx([256.0] * 3)


def test_a_nodule_that_no_anchor_fits_teaches_its_nearest_all_the_same():
    """3 x 40 pixels: no IoU of 0.7 with any anchor. The first stage must learn of it, or it would never be proposed."""
    torch.manual_seed(0)
    net = CCFAMFPN(TINY)
    truth = torch.tensor([[[30.0, 10.0, 33.0, 50.0]]])
    anchors = torch.cat(
        [anchors_of((64 // s, 64 // s), s, (a,)) for s, a in zip((4, 8, 16, 32), (8, 16, 32, 64), strict=True)]
    )
    assert iou(anchors, truth[0]).max() < 0.3
    deltas = torch.zeros(1, len(anchors), 4, requires_grad=True)
    losses = net.first_losses(torch.zeros(1, len(anchors)), deltas, anchors, truth)
    losses["shift"].backward()
    taught = deltas.grad[0].abs().sum(dim=1).nonzero()[:, 0]
    assert len(taught) >= 1
    assert torch.allclose(iou(anchors[taught], truth[0]), iou(anchors, truth[0]).max())


def test_samples_are_as_many_as_asked_for_and_half_hits_at_most():
    torch.manual_seed(0)
    hit = torch.zeros(2, 500, dtype=torch.bool)
    hit[0, :100], hit[1, :3] = True, True
    chosen, missed = sample(hit, ~hit, 64, 0.5)
    assert chosen.sum(dim=1).tolist() == [32, 3]
    assert missed.sum(dim=1).tolist() == [32, 61]
    assert not (chosen & ~hit).any()
    assert not (missed & hit).any()


def test_the_attention_is_in_every_block_behind_its_last_norm():
    net = CCFAMFPN(CCFAMConfig(width=8, depth=(2, 1, 3, 1), attention="se"))
    blocks = [block for stage in net.backbone.stages for block in stage]
    assert len(blocks) == 7
    kind = type(attention("se", 32))
    assert all(isinstance(block.branch[-1], kind) for block in blocks)


def test_behind_a_stage_the_attention_adds_to_its_map():
    """F + out: the stage's map and what the attention makes of it."""
    net = CCFAMFPN(CCFAMConfig(width=8, depth=(2, 1, 1, 1), placement="stage")).eval()
    for stage in net.backbone.stages:
        blocks, added = [*stage][:-1], stage[-1]
        assert all(isinstance(block.branch[-1], torch.nn.Identity) for block in blocks)
        x = torch.randn(1, blocks[-1].branch[-2][0].out_channels, 6, 6)
        assert torch.allclose(added(x), x + x * added.gate.gate(x))


def test_weights_that_do_not_speak_of_pool_avg_are_without_it():
    """The shipped ones, and whatever was trained before there was a choice."""
    stored = asdict(TINY)
    del stored["pool_avg"]
    assert not CCFAMConfig.of(json.loads(json.dumps(stored))).pool_avg
    shipped = network(load(packed("lung_nodule", "ccfam_ccapm_fpn_w16")))
    gates = [part for part in shipped.modules() if isinstance(part, CCAPM)]
    assert len(gates) == 4
    assert all(isinstance(gate.pool, torch.nn.Identity) for gate in gates)


def test_a_stored_configuration_builds_the_same_network():
    config = CCFAMConfig(width=8, depth=(1, 2, 1, 1), attention="coord", fpn=False, proposals=(50, 20))
    stored = json.loads(json.dumps(asdict(config) | {"lr": 0.1}))
    assert CCFAMConfig.of(stored) == config
    with pytest.raises(ValueError, match="give 4 numbers each"):
        CCFAMConfig(depth=(1, 1, 1))
