"""NoduleNet's baselines: they see its crops, learn from its boxes and masks, and are judged by its rule."""

import dataclasses

import numpy as np
import pytest
import torch
from rich.console import Console

from models import weights
from models.layers.boxes import around, iou
from models.lung_nodule.nodulenet.proposals import with_margin
from models.training.lung_nodule.baselines import recipe as baselines
from models.training.lung_nodule.baselines.recipe import Config, search
from models.training.lung_nodule.baselines.retinanet import (
    ANCHORS_MM,
    LEVEL_SCALES,
    FocalLossPerPositive,
    NoduleRetinaNet,
)
from models.training.lung_nodule.baselines.unet import NoduleUNet, in_boxes, pieces
from models.training.lung_nodule.data.scans import Lesion, Scan
from models.training.lung_nodule.nodulenet import recipe as nodulenet
from models.training.lung_nodule.nodulenet.evaluate import curve
from models.training.lung_nodule.nodulenet.losses import focal_loss
from models.training.trainer import train
from tests.scan_sets import scan_set

NETWORKS = ("retinanet", "unet")


def scan_with(centres, shape=(64, 64, 64), radius=5, seed=0, wall=4):
    """Noise of lung in a block of soft tissue, with balls in it."""
    hu = np.random.default_rng(seed).normal(-850, 30, shape)
    lungs = np.zeros(shape, bool)
    lungs[wall:-wall, wall:-wall, wall:-wall] = True
    hu[~lungs] = 40
    places = np.indices(shape)
    lesions = []
    for centre in centres:
        ball = sum((axis - c) ** 2 for axis, c in zip(places, centre, strict=True)) <= radius**2
        hu[ball] = 300  # brighter than all else
        lesions.append(Lesion.of(ball))
    return Scan("a", "p", hu.astype(np.int16), lungs, tuple(lesions), semi_synthetic=True)


def small(network, tmp_path, **changes):
    parts = {"a": ("train", scan_with([(30, 30, 30)])), "b": ("val", scan_with([(36, 30, 28)], seed=1))}
    data = scan_set(tmp_path / "set", parts)
    config = Config(network=network, width=8, crop=32, crops=4, batch=2, epochs=2, cache=str(tmp_path / "cache"))
    return baselines.build(data, dataclasses.replace(config, **changes))


def batch_of(boxes, ignored=(), side=64):
    """One crop with balls of lung nodules in the boxes (z0, y0, x0, z1, y1, x1)."""
    masks = torch.zeros(1, 1, side, side, side, dtype=torch.uint8)
    for number, (z0, y0, x0, z1, y1, x1) in enumerate(boxes, start=1):
        masks[0, 0, z0:z1, y0:y1, x0:x1] = number
    rows = [torch.tensor(each, dtype=torch.float32).reshape(-1, 6) for each in (boxes, ignored)]
    image = torch.where(masks > 0, 0.3, -0.6) + 0.05 * torch.randn(
        masks.shape, generator=torch.Generator().manual_seed(1)
    )
    return {"image": image, "masks": masks, "boxes": with_margin(rows[0])[None], "ignored": with_margin(rows[1])[None]}


# ------------------------------------------------------------------------------------------------------------ anchors


@pytest.mark.parametrize("diameter_mm", [3, 4, 5, 7, 10, 14, 20, 28, 40])
def test_the_anchors_cover_3_to_40_mm(diameter_mm):
    sides = torch.tensor([side * scale for scale in LEVEL_SCALES for side in ANCHORS_MM])
    middle = torch.zeros(len(sides), 3)
    nodule = around(torch.zeros(1, 3), torch.full((1, 3), float(diameter_mm)))
    assert iou(around(middle, sides[:, None].expand(-1, 3)), nodule).max() > 0.4


@pytest.mark.parametrize("diameter_mm", [3, 6, 12, 24, 40])
@pytest.mark.parametrize("start", [10, 11, 12, 13])
def test_every_nodule_has_anchors_to_learn_from_wherever_it_lies(diameter_mm, start):
    net, seen = NoduleRetinaNet(8).train(), []
    match = net.compute_anchor_matched_idxs
    net.compute_anchor_matched_idxs = lambda *given: seen.append((given[0][0], match(*given)[0])) or [seen[-1][1]]
    box = [start, start + 1, start + 2, *(start + n + diameter_mm for n in range(3))]
    net.loss(batch_of([box]))
    anchors, matched = seen[0]
    assert (matched == 0).any()
    overlap = iou(anchors[matched == 0], torch.tensor([box], dtype=torch.float32))
    assert overlap.max() > 0.1  # of 3 mm on a grid of 4 no more can be asked


def test_an_anchor_is_centred_on_its_place_to_the_voxel_in_a_volume_of_any_size():
    net = NoduleRetinaNet(8)
    with torch.autocast("cpu", torch.bfloat16):
        answers = net.network(torch.zeros(1, 1, 320, 32, 32))
    assert {one.dtype for maps in answers.values() for one in maps} == {torch.float32}
    (anchors,) = net.anchor_generator(torch.zeros(1, 1, 320, 32, 32), answers["classification"])
    last = anchors[(79 * 64 + 63) * len(ANCHORS_MM)]  # the last place of the finest level: stride 4, 80 x 8 x 8
    assert last.tolist() == [316, 28, 28, 320, 32, 32]


def test_what_is_to_be_ignored_is_neither_nodule_nor_background():
    net = NoduleRetinaNet(8).train()
    seen = []
    match = net.compute_anchor_matched_idxs
    net.compute_anchor_matched_idxs = lambda *given: seen.append((given[0][0], match(*given)[0])) or [seen[-1][1]]
    net.loss(batch_of([[8, 8, 8, 16, 16, 16]], ignored=[[40, 40, 40, 50, 50, 50]]))
    anchors, matched = seen[0]
    on = iou(anchors, torch.tensor([[40.0, 40, 40, 50, 50, 50]]))[:, 0] >= 0.02
    assert on.any()
    assert set(matched[on].tolist()) == {-2}
    assert (matched[~on] != -2).all()
    net.loss(batch_of([], ignored=[]))
    assert (seen[1][1] == -1).all()  # all background


def test_the_focal_loss_is_a_sum_per_positive_as_nodulenets_is():
    logits = torch.linspace(-6, 3, 1000)[:, None]
    truth = torch.zeros(1000, 1)
    truth[[3, 500, 990]] = 1
    torch.testing.assert_close(FocalLossPerPositive()(logits, truth), focal_loss(logits.T, truth.T))


# ------------------------------------------------------------------------------------------------------------- voxels


def test_voxels_of_a_cut_off_nodule_teach_the_unet_nothing():
    net = NoduleUNet(8).eval()
    learnt = batch_of([[8, 8, 8, 16, 16, 16]], ignored=[[40, 40, 40, 50, 50, 50]])
    net.loss(learnt).backward()
    other = dict(learnt, ignored=torch.zeros(1, 0, 6))
    assert net.loss(other) != net.loss(learnt)
    inside = in_boxes(learnt["ignored"], learnt["masks"].shape)
    assert int(inside.sum()) == 1000
    assert inside[0, 0, 40:50, 40:50, 40:50].all()


def test_pieces_have_their_largest_and_their_mean_probability():
    probability = np.zeros((9, 9, 9), np.float32)
    probability[1, 1, 1:4] = 0.6, 0.9, 0.6
    probability[7, 7, 7] = 0.2
    largest, mean = pieces(probability, 0.1)
    assert [one.centre_zyx for one in largest] == [(1, 1, 2), (7, 7, 7)]
    assert [one.score for one in largest] == pytest.approx([0.9, 0.2])
    assert [one.score for one in mean] == pytest.approx([0.7, 0.2])
    assert len(pieces(probability, 0.5)[0]) == 1


# -------------------------------------------------------------------------------------------------------------- marks


class Knows(NoduleUNet):
    """A U-Net whose answer is the brightest voxels: on these phantoms the truth."""

    def forward(self, x):
        return torch.where(x > 0.5, 20.0, -20.0)


class SaysNothing(NoduleUNet):
    def forward(self, x):
        return torch.full_like(x, -20.0)


def test_a_perfect_answer_finds_everything_and_an_empty_one_nothing():
    scans = [scan_with([(40, 42, 44), (60, 58, 52)], shape=(90, 86, 94), seed=seed, wall=24) for seed in range(2)]
    for net, sensitivity in ((Knows(8), 1.0), (SaysNothing(8), 0.0)):
        found = [search(net, scan) for scan in scans]
        for rule in found[0]:
            assert curve([one[rule] for one in found], scans, rounds=1).at[0.125].value == sensitivity, rule


def test_a_box_of_the_retinanet_is_a_mark_where_the_box_lies(monkeypatch):
    scan = scan_with([(40, 42, 60)], shape=(90, 86, 94), wall=24)  # what is seen begins 16 before the lungs, at 8
    net = NoduleRetinaNet(8).eval()
    box = torch.tensor([[27.0, 29, 47, 38, 40, 58]])  # voxels 27 to 37 along z: the middle is voxel 32
    monkeypatch.setattr(net, "forward", lambda image: [{"boxes": box, "labels_scores": torch.tensor([0.9])}])
    (mark,) = search(net, scan)["boxes"]
    assert mark.centre_zyx == (40, 42, 60)
    assert curve([[mark]], [scan], rounds=1).at[0.125].value == 1
    monkeypatch.setattr(net, "forward", lambda image: [{"boxes": box[:0], "labels_scores": torch.zeros(0)}])
    assert curve([search(net, scan)["boxes"]], [scan], rounds=1).at[8].value == 0


# ----------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("network", NETWORKS)
def test_two_steps_lower_the_loss(network):
    torch.manual_seed(3)
    net = baselines.NETWORKS[network](8).train()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4)
    batch, losses = batch_of([[20, 20, 20, 32, 32, 32]]), []
    for _ in range(3):
        loss = net.loss(batch)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert 0 < losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_baseline_sees_the_crops_that_nodulenet_sees(network, tmp_path):
    made = small(network, tmp_path)
    alike = {"crop": 32, "crops": 4, "batch": 2, "cache": str(tmp_path / "cache")}
    other = nodulenet.build(tmp_path / "set", nodulenet.Config(**alike, epochs=2))
    for mine, theirs in zip(made.batches("train", 1), other.batches("train", 1), strict=True):
        assert torch.equal(mine["image"], theirs["image"])
        assert torch.equal(mine["boxes"], theirs["boxes"])


@pytest.mark.parametrize("network", NETWORKS)
def test_a_baseline_trains_and_its_weights_load(network, tmp_path):
    made = small(network, tmp_path)
    path = train(made, tmp_path / "out", console=Console(quiet=True))
    assert path.name == f"nodule_{network}_w8.safetensors"
    loaded = weights.load(path, made.preprocessing, made.split_sha256)
    net = loaded.into(made.network(loaded.about["config"]))
    assert 0 <= made.evaluate(net, "val")["cpm"] <= 1


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="retinanet, unet"):
        Config(network="resnet")
