"""NoduleNet's data, targets, training and whole-volume inference: places to the voxel, nothing twice, nothing lost."""

import copy
import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from scipy import ndimage

from models.layers.boxes import centres, encode
from models.lung_nodule.detections import Detection3D
from models.lung_nodule.nodulenet import detect as infer
from models.lung_nodule.nodulenet.detect import DetectOptions, detect, windows
from models.lung_nodule.nodulenet.mirrored import VIEWS, MirroredViews
from models.lung_nodule.nodulenet.preprocess import OUTSIDE, hulls, network_input, prepare
from models.lung_nodule.nodulenet.proposals import with_margin, without_margin
from models.nets.nodulenet import ANCHORS_MM, MASK, RCNN, Level, NoduleNet, NoduleNetConfig, anchor_boxes
from models.runtime import Runtime, channels_last
from models.training import soup
from models.training.evaluation import tables
from models.training.evaluation.tables import Table
from models.training.layouts import UnknownLayout
from models.training.lung_nodule.data.scans import INDEX, Lesion, Scan
from models.training.lung_nodule.nodulenet import recipe
from models.training.lung_nodule.nodulenet.data import (
    LESION,
    Prepared,
    PreparedScans,
    View,
    crops,
    cut_out,
    degrade,
    ground_glass,
    make_batches,
    random_matrix,
    thicker,
    view_of,
)
from models.training.lung_nodule.nodulenet.evaluate import Mark, curve, evaluate
from models.training.lung_nodule.nodulenet.hard_negatives import wrongly_marked
from models.training.lung_nodule.nodulenet.losses import box_loss, class_loss, focal_loss, hard_cross_entropy
from models.training.lung_nodule.nodulenet.recipe import NoduleNetRecipe
from models.training.lung_nodule.nodulenet.tables import study
from models.training.lung_nodule.nodulenet.targets import NEGATIVE, NEITHER, POSITIVE, label_anchors, sample_rois
from models.training.trainer import train
from tests.scan_sets import scan_set


def scan_with(centres, shape=(64, 64, 64), radius=5, seed=0):
    """Noise of lung in a block of soft tissue, with balls in it."""
    hu = np.random.default_rng(seed).normal(-850, 30, shape)
    lungs = np.zeros(shape, bool)
    lungs[4:-4, 4:-4, 4:-4] = True
    hu[~lungs] = 40
    places = np.indices(shape)
    lesions = []
    for centre in centres:
        ball = sum((axis - c) ** 2 for axis, c in zip(places, centre, strict=True)) <= radius**2
        hu[ball] = 40
        lesions.append(Lesion.of(ball))
    return Scan("a", "p", hu.astype(np.int16), lungs, tuple(lesions), semi_synthetic=True)


# ----------------------------------------------------------------------------------------------------- preprocessing


def test_grey_values_are_the_published_window():
    lungs = np.zeros((30, 40, 40), bool)
    lungs[12:18, 15:25, 15:25] = True
    for hu, grey in ((-3000, 0), (-1200, 0), (-300, 128), (0, 170), (599, 255), (3000, 255)):
        assert prepare(np.full(lungs.shape, hu, np.int16), lungs)[15, 20, 20] == grey
    assert network_input(torch.tensor([0, 128, 255])).tolist() == [-1, 0, 127 / 128]


def test_the_rim_is_ten_dilations_and_has_no_bone():
    lungs = np.zeros((50, 50, 50), bool)
    lungs[20:27, 22:29, 21:26] = True
    rim = ndimage.binary_dilation(lungs, iterations=10)
    soft, bone = (prepare(np.full(lungs.shape, hu, np.int16), lungs) for hu in (-900, 500))
    np.testing.assert_array_equal(soft != OUTSIDE, rim)
    np.testing.assert_array_equal(bone != OUTSIDE, lungs)  # bright within the lungs, too, may be a nodule


def test_a_nodule_at_the_pleura_is_brought_back_but_the_mediastinum_is_not():
    lung = np.zeros((3, 60, 60), bool)
    lung[:, 10:50, 5:17] = True
    notched = lung.copy()
    notched[:, 25:35, 5:12] = False  # a nodule at the chest wall
    np.testing.assert_array_equal(hulls(notched), lung)
    both = lung | lung[:, :, ::-1]
    np.testing.assert_array_equal(hulls(both), both)  # each lung by itself
    horseshoe = both.copy()
    horseshoe[:, 10:12, 17:43] = True  # joined: its hull would be much larger
    np.testing.assert_array_equal(hulls(horseshoe)[:, 12:], both[:, 12:])


def test_no_lungs_nothing_seen():
    assert (prepare(np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), bool)) == OUTSIDE).all()


# -------------------------------------------------------------------------------------------------------------- data


def test_a_crop_as_it_lies_is_the_scan_itself():
    scan = Prepared.of(scan_with([(30, 34, 28)]))
    crop = cut_out(scan, View(np.array([31.5] * 3), np.eye(3), 64))
    torch.testing.assert_close(crop.image[0], network_input(torch.from_numpy(scan.grey)), atol=1e-3, rtol=0)
    np.testing.assert_array_equal(crop.masks[0].numpy() == 1, scan.regions == LESION)
    assert crop.boxes.tolist() == [[21, 25, 19, 40, 44, 38]]  # 11 voxels wide, and 4 on each side


def test_a_dense_nodule_becomes_ground_glass_and_nothing_else_changes():
    """HU of 40 in lung of -850 becomes -850 + 0.15..0.5 * 890; what is faint, far or beyond the lungs stays."""
    scan = scan_with([(20, 20, 20), (44, 44, 44)])
    faint = scan.lesions[1]
    scan.hu[faint.box][faint.mask] = -650
    crop = cut_out(Prepared.of(scan), View(np.array([31.5] * 3), np.eye(3), 64))

    def hu(image, places):
        return (image[0].numpy()[places] + 1) * 128 / 255 * 1800 - 1200

    dense, other = (crop.masks[0].numpy() == number for number in (1, 2))
    away = ndimage.distance_transform_edt(~dense)
    medians = []
    for seed in range(20):
        thin = ground_glass(crop.image, crop.masks, np.random.default_rng(seed))
        np.testing.assert_array_equal(thin[0].numpy()[away >= 3], crop.image[0].numpy()[away >= 3])
        medians.append(np.median(hu(thin, dense)))
        assert 15 < hu(thin, dense).std() < 45  # of lung 30
    assert -727 < min(medians) < -650
    assert -500 < max(medians) < -398
    assert np.median(hu(crop.image, other)) == pytest.approx(-650, abs=8)
    assert (crop.image[0].numpy()[dense] > 0.2).all()  # the crop itself is what it was
    cut = crop.image.clone()
    cut[..., 20:] = (OUTSIDE - 128) / 128
    thin = ground_glass(cut, crop.masks, np.random.default_rng(0))
    assert torch.equal(thin[..., 20:], cut[..., 20:])
    assert not torch.equal(thin, cut)


def test_faint_nodules_come_more_often_and_dense_ones_as_ground_glass(tmp_path):
    scan = scan_with([(20, 20, 20), (44, 44, 44)])
    faint = scan.lesions[1]
    scan.hu[faint.box][faint.mask] = -650
    scan_set(tmp_path, {"a": ("train", scan)})
    config = recipe.Config(
        width=4, crop=32, batch=1, crops=24, background_fraction=0.0, degrade_prob=0.0, cache=str(tmp_path / "cache")
    )

    def dense(config):
        """Crops whose nodule is brighter than -300 HU."""
        drawn = NoduleNetRecipe(tmp_path, config).batches("train", 0)
        return sum(float(one["image"][one["masks"] == 1].median()) > 0 for one in drawn)

    assert dense(config) == 12
    assert dense(dataclasses.replace(config, faint_times=3)) == 6
    assert dense(dataclasses.replace(config, glass_prob=1.0)) == 0


@pytest.mark.parametrize("voxels", [1, 2, 3, 5])
def test_thick_slices_are_means_and_stay_in_place(voxels):
    """A gradient along z is its own mean; a single bright plane is spread over its slice and its neighbours' halves."""
    ramp = torch.arange(60.0)[None, :, None, None].expand(1, 60, 3, 4).clone()
    inner = slice(voxels, 60 - voxels)
    torch.testing.assert_close(thicker(ramp, voxels)[:, inner], ramp[:, inner], atol=1e-4, rtol=0)
    plane = torch.zeros(1, 60, 3, 4)
    plane[:, 31] = 1
    spread = thicker(plane, voxels)
    assert spread.sum().item() == pytest.approx(plane.sum().item(), rel=1e-5)
    places = torch.arange(60.0)[:, None, None]
    middle = float((spread[0] * places).sum() / spread.sum())
    assert abs(middle - 31) <= (voxels - 1) / 2 + 1e-4
    assert spread.max() <= 1 / voxels + 1e-6


def test_a_degraded_crop_is_darker_lung_or_noisier_but_its_outside_stays():
    image = network_input(torch.full((1, 24, 24, 24), 50.0))
    image[:, :, :8] = network_input(torch.tensor(OUTSIDE))
    worse = [degrade(image, np.random.default_rng(seed)) for seed in range(8)]
    for one in worse:
        assert torch.equal(one[:, :, :8], image[:, :, :8])
        change = (one - image)[:, :, 10:]
        assert abs(change.mean()) < 0.04
        assert change.std() < 0.07
    assert len({float(one.mean()) for one in worse}) == 8
    assert torch.equal(worse[3], degrade(image, np.random.default_rng(3)))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_turned_crop_shows_the_nodule_where_the_view_says(seed):
    """The mask's middle, brought back by the view, is the nodule's; its box holds it; image and mask agree."""
    rng = np.random.default_rng(seed)
    (lesion,) = (scan := scan_with([(30, 26, 40)], radius=7)).lesions
    view = view_of(lesion.box, random_matrix(rng), 48, rng)
    crop = cut_out(Prepared.of(scan), view)
    found = np.argwhere(crop.masks[0].numpy())
    np.testing.assert_allclose(view.places(found).mean(axis=0), lesion.centre_zyx, atol=0.5)
    volume = len(found) * abs(np.linalg.det(view.matrix))
    assert volume == pytest.approx(lesion.mask.sum(), rel=0.2)
    (box,) = crop.boxes.tolist()
    assert box == [*(found.min(axis=0) - 4), *(found.max(axis=0) + 5)]
    inside = crop.image[0][crop.masks[0] == 1]
    assert inside.median() > 0.2  # soft tissue; lung is below -0.4
    assert found.min() >= 10  # the safety of 12 voxels, but for rounding
    assert found.max() < 38


def test_beyond_the_scan_is_soft_tissue():
    crop = cut_out(Prepared.of(scan_with([])), View(np.array([0.0, 0, 0]), np.eye(3), 32))
    assert (crop.image[0, :10] == (OUTSIDE - 128) / 128).all()


def test_a_nodule_cut_off_or_irrelevant_is_learnt_neither_way():
    scan = scan_with([(30, 34, 28), (30, 34, 47)])
    near = View(np.array([31.5, 31.5, 31.5]), np.eye(3), 32)  # from 16 to 47: the second is cut
    crop = cut_out(Prepared.of(scan), near)
    assert (len(crop.boxes), len(crop.ignored)) == (1, 1)
    neither = Scan("a", "p", scan.hu, scan.lungs, (), True, irrelevant=scan.lesions[:1])
    crop = cut_out(Prepared.of(neither), near)
    assert (len(crop.boxes), len(crop.ignored), int(crop.masks.sum())) == (0, 1, 0)


def test_crops_follow_from_their_seed_and_every_nodule_has_its_turn(tmp_path):
    loads = []

    def load(name):
        loads.append(name)
        return scan_with([(20, 20, 20), (40, 40, 40), (20, 40, 40)])

    scans = PreparedScans(["a"], load, tmp_path / "cache")
    lesions = scans.lesions()
    assert len(lesions) == 3
    one, two, other = (
        list(crops(scans, lesions, seed=seed, count=4, side=32, background_fraction=0.25))
        for seed in ((1, 0), (1, 0), (1, 1))
    )
    assert all(torch.equal(a.image, b.image) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))
    list(
        crops(
            PreparedScans(["a"], load, tmp_path / "cache"),
            lesions,
            seed=(1, 0),
            count=1,
            side=32,
            background_fraction=0,
        )
    )
    assert loads == ["a"]  # prepared once, kept
    batches = list(make_batches(iter(one), 3))
    assert len(batches) == 1  # whole ones only
    assert batches[0]["image"].shape == (3, 1, 32, 32, 32)
    assert batches[0]["boxes"].shape[::2] == (3, 6)


# ----------------------------------------------------------------------------------------------------------- targets


def overlap(a, b):
    """IoU of two boxes of numbers, written out."""
    shared = np.prod([max(0, min(a[3 + i], b[3 + i]) - max(a[i], b[i])) for i in range(3)])
    volumes = [np.prod([box[3 + i] - box[i] for i in range(3)]) for box in (a, b)]
    return shared / (sum(volumes) - shared)


whole_boxes = st.lists(
    st.tuples(*[st.integers(0, 20)] * 3, *[st.integers(1, 16)] * 3).map(
        lambda n: [float(v) for v in (*n[:3], *(a + s for a, s in zip(n[:3], n[3:], strict=True)))]
    ),
    max_size=5,
)


@settings(max_examples=80, deadline=None)
@given(whole_boxes.filter(len), whole_boxes, whole_boxes)
def test_labels_are_the_rule_written_out(anchors, boxes, ignored):
    labels, which = label_anchors(*(torch.tensor(each).reshape(-1, 6) for each in (anchors, boxes, ignored)))
    best = [max((overlap(a, b) for a in anchors), default=0) for b in boxes]
    for anchor, label, held in zip(anchors, labels.tolist(), which.tolist(), strict=True):
        mine = [overlap(anchor, box) for box in boxes]
        forced = [b for b, (o, top) in enumerate(zip(mine, best, strict=True)) if o > 0 and abs(o - top) < 1e-7]
        if forced or max(mine, default=0) >= 0.5 - 1e-7:
            assert label == POSITIVE
            assert mine[held] == pytest.approx(max(mine[b] for b in forced) if forced else max(mine))
        elif max([*mine, *(overlap(anchor, box) for box in ignored)], default=0) >= 0.02:
            assert label == NEITHER
        else:
            assert label == NEGATIVE


def test_rois_hold_the_nodules_and_what_is_surely_none():
    torch.manual_seed(0)
    nodule, ignored = torch.tensor([[10.0, 10, 10, 20, 20, 20]]), torch.tensor([[60.0, 60, 60, 70, 70, 70]])
    near = nodule + torch.tensor([1.0, 0, 0, 1, 0, 0])  # IoU 0.82
    half = nodule + torch.tensor([6.0, 0, 0, 6, 0, 0])  # 0.25: neither
    far = torch.arange(90.0, 190)[:, None] + torch.tensor([0.0, 0, 0, 9, 9, 9])
    rois, truth, which = sample_rois(torch.cat([near, half, ignored, far]), nodule, ignored)
    assert len(rois) == 64
    assert {tuple(box) for box in rois[truth == 1].tolist()} == {tuple(nodule[0].tolist()), tuple(near[0].tolist())}
    assert (rois[truth == 0][:, 0] >= 90).all()
    assert (which[truth == 1] == 0).all()
    rois, truth, _ = sample_rois(nodule.repeat(100, 1), nodule, ignored[:0])
    assert len(rois) == int(truth.sum()) == 32


# ------------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("axes", VIEWS)
def test_a_mirrored_scan_gives_the_mirrored_answer(learnt, axes):
    """Four views are a group: whichever of them the scan is, the same are averaged. One view knows no such thing."""
    scan = scan_with([(30, 34, 28), (24, 20, 44)])
    hu, lungs = (np.ascontiguousarray(np.flip(each, axes)) for each in (scan.hu, scan.lungs))
    plain = Runtime(torch.device("cpu"), bf16=False)
    window = infer.Window((0, 0, 0), scan.hu.shape, (-np.inf,) * 3, (np.inf,) * 3)

    def found(hu, lungs, views):
        options = DetectOptions(views=views)
        seen = infer.detect_window(learnt[0], prepare(hu, lungs), window, plain, options, lambda _share, _what: None)
        return sorted((one for _, one in seen), key=lambda one: -one.score)

    there, here = found(hu, lungs, 4), found(scan.hu, scan.lungs, 4)
    assert len(there) == len(here) > 1
    for a, b in zip(there, here, strict=True):
        assert (a.score, a.rpn, a.rcnn) == pytest.approx((b.score, b.rpn, b.rcnn), abs=1e-4)
        back = [63 - c if axis in axes else c for axis, c in enumerate(a.centre_zyx)]
        np.testing.assert_allclose(back, b.centre_zyx, atol=1e-2)
    np.testing.assert_array_equal(np.flip(there[0].mask, axes), here[0].mask)
    if axes:
        alone = [found(*each, 1)[0].score for each in ((hu, lungs), (scan.hu, scan.lungs))]
        assert abs(alone[0] - alone[1]) > 1e-4


def looked_at(net, scan, options):
    """All of a scan in one window, as it is."""
    plain = Runtime(torch.device("cpu"), bf16=False)
    window = infer.Window((0, 0, 0), scan.hu.shape, (-np.inf,) * 3, (np.inf,) * 3)
    grey = prepare(scan.hu, scan.lungs)
    return infer.once(infer.detect_window(net, grey, window, plain, options, lambda _share, _what: None))


def test_the_closer_look_at_what_is_no_larger_is_the_look_at_all_of_it(learnt):
    """A scan of 64 voxels: one window has all of it, and each of its marks is what four whole views say."""
    net, scan = channels_last(infer.fold_batchnorm(learnt[0])), scan_with([(30, 34, 28), (24, 20, 44)])
    plain, four = Runtime(torch.device("cpu"), bf16=False), DetectOptions(views=4)
    grey = prepare(scan.hu, scan.lungs)
    found = infer.detect_windows(net, grey, scan.lungs, 0, plain, four, lambda _share, _what: None)
    wanted = infer.distinct([one for _, one in looked_at(net, scan, four)])
    assert [one.score for one in found] == [one.score for one in wanted]
    assert found[0].score > infer.CLOSER
    for one, other in zip(found, wanted, strict=True):
        assert (one.box, one.rpn, one.rcnn, one.mask is None) == (other.box, other.rpn, other.rcnn, other.mask is None)
        np.testing.assert_array_equal(one.mask, other.mask)
    far = dataclasses.replace(four, closer=2.0)
    first = infer.detect_windows(net, grey, scan.lungs, 0, plain, far, lambda _share, _what: None)
    alone = [one for _, one in looked_at(net, scan, DetectOptions(stage=RCNN))]
    assert [(one.score, one.box, one.mask) for one in first] == [(one.score, one.box, None) for one in alone]


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(20, 300)] * 3),
    st.lists(st.tuples(*[st.floats(0, 1)] * 3, st.floats(4, 60)), max_size=30),
    st.integers(1, 40),
)
def test_each_place_is_in_the_middle_of_a_closer_look(shape, places, most):
    """... unless there are too many; no look leaves what the first one saw, and its steps are the first one's."""
    boxes = [
        torch.tensor([p * n + s * side / 2 for s in (-1, 1) for p, n in zip(where, shape, strict=True)])
        for *where, side in places
    ]
    close = infer.closer_windows(boxes, shape, most)
    assert len(close) <= most
    seen = [infer.multiple(n) for n in shape]
    for window in close:
        assert all(
            a % 16 == 0 and a >= 0 and a + n <= m for a, n, m in zip(window.start, window.shape, seen, strict=True)
        )
    if len(close) < most:
        assert all(any(window.owns(box) for window in close) for box in boxes)
    for box in boxes[: 1 if close else 0]:
        middle, size = centres(box), torch.tensor(close[0].shape)
        inside = middle - torch.tensor(close[0].start)
        at_edge = torch.tensor(
            [a == 0 or a + n == m for a, n, m in zip(close[0].start, close[0].shape, seen, strict=True)]
        )
        assert (((inside >= size / 4) & (inside <= 3 * size / 4)) | at_edge).all()


def test_one_view_is_the_network_itself_and_five_are_refused(learnt):
    net = learnt[0]
    image = torch.randn(1, 1, 32, 48, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        looks, (levels, maps) = MirroredViews(net, image), net(image)
        boxes = torch.tensor([[4.0, 8, 4, 20, 30, 22]])
        logits, deltas = net.judge(maps, 0, boxes)
        probability, shifts = looks.judge(boxes)
        outline = net.outline(maps, image, 0, [4, 8, 4, 20, 32, 24])
        torch.testing.assert_close(looks.outline([4, 8, 4, 20, 32, 24]), outline)
    for one, other in zip(looks.levels, levels, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.deltas, other.deltas)
    torch.testing.assert_close(probability, logits.softmax(dim=1)[:, 1])
    torch.testing.assert_close(shifts, deltas[:, 1])
    with pytest.raises(ValueError, match="1 to 4"):
        MirroredViews(net, image, 5)


# --------------------------------------------------------------------------------------------------------- mistakes


def test_what_is_marked_and_is_no_nodule_is_listed_and_looked_at_again(learnt, tmp_path):
    """A ball that the network knows: a mistake while it is neither a lesion nor irrelevant."""
    known = scan_with([(30, 34, 28)])
    scan = dataclasses.replace(known, lesions=())
    (place, *_) = wrongly_marked(learnt[0], scan)
    np.testing.assert_allclose(place, (30, 34, 28), atol=3)
    for other in (known, dataclasses.replace(scan, irrelevant=known.lesions)):
        assert all(np.linalg.norm(np.subtract(each, place)) > 5 for each in wrongly_marked(learnt[0], other))

    scan_set(tmp_path, {"a": ("train", scan)})
    config = recipe.Config(
        width=4, crop=32, batch=1, crops=24, background_fraction=1.0, degrade_prob=0.0, cache=str(tmp_path / "cache")
    )
    hard = tmp_path / "hard.json"
    digest = NoduleNetRecipe(tmp_path, config).scans.digest
    hard.write_text(json.dumps({"scans_sha256": digest, "places": {"a": [place]}}))

    def showing(config):
        """Crops with the ball or a part of it, and none of what is beyond the lung."""
        batches = NoduleNetRecipe(tmp_path, config).batches("train", 0)
        bright = [int((one["image"] > 0.2).sum()) for one in batches]
        return sum(100 < voxels < 1200 for voxels in bright)

    assert showing(dataclasses.replace(config, hard_negatives=str(hard))) >= showing(config) + 5
    told = [
        NoduleNetRecipe(tmp_path, dataclasses.replace(config, hard_negatives=str(hard))).config.hard_negatives
        for _ in range(2)
    ]
    hard.write_text(json.dumps({"scans_sha256": digest, "places": {"a": []}}))
    told.append(NoduleNetRecipe(tmp_path, dataclasses.replace(config, hard_negatives=str(hard))).config.hard_negatives)
    assert told[0] == told[1] != told[2]  # another list at the same place is another training
    for text in ("{}", "no JSON", "[]", None):
        hard.unlink() if text is None else hard.write_text(text)
        with pytest.raises(ValueError, match=r"hard\.json is no list of models\.training\.\S+\.hard_negatives"):
            NoduleNetRecipe(tmp_path, dataclasses.replace(config, hard_negatives=str(hard)))
    hard.write_text(json.dumps({"scans_sha256": "another", "places": {}}))
    with pytest.raises(ValueError, match=r"hard\.json was made of other scans"):
        NoduleNetRecipe(tmp_path, dataclasses.replace(config, hard_negatives=str(hard)))


def test_a_training_with_hard_negatives_is_averaged_with_another(tmp_path):
    """last.pt names the list by its digest, and its weights are of three dimensions."""
    data, hard = tmp_path / "set", tmp_path / "hard.json"
    data.mkdir()
    scan = scan_with([(30, 34, 28)])
    scan_set(data, {"a": ("train", scan), "b": ("val", scan)})
    config = recipe.Config(
        width=4, crop=32, batch=1, crops=2, epochs=1, rcnn_from=0, mask_from=1, val_scans=1, cache=str(tmp_path)
    )
    digest = NoduleNetRecipe(data, config).scans.digest
    hard.write_text(json.dumps({"scans_sha256": digest, "places": {"a": [(30, 34, 28)]}}))
    for number, name in enumerate("ab"):
        each = dataclasses.replace(config, hard_negatives=str(hard), seed=number)
        train(NoduleNetRecipe(data, each), tmp_path / name, console=Console(file=io.StringIO()))
    given = ["nodulenet", "--data", str(data), "--share", "0.5", "--out", str(tmp_path / "soup")]
    soup.main(
        [*given, "--first", str(tmp_path / "a/nodulenet_w4.safetensors"), "--second", str(tmp_path / "b/last.pt")]
    )
    one, two, mean = (load_file(tmp_path / name / "nodulenet_w4.safetensors") for name in ("a", "b", "soup"))
    for name in ("rpn.shared.weight", "rcnn.logits.weight"):
        torch.testing.assert_close(mean[name].float(), (one[name].float() + two[name].float()) / 2, atol=1e-3, rtol=0)
        assert not torch.equal(one[name], two[name])


def test_the_margin_comes_and_goes():
    boxes = torch.tensor([[10.0, 20, 30, 15, 29, 36]])
    assert with_margin(boxes).tolist() == [[6, 16, 26, 19, 33, 40]]
    torch.testing.assert_close(without_margin(with_margin(boxes)), boxes)


def test_losses_by_hand():
    logits, labels = torch.tensor([[2.0, -1.0, 0.5, -3.0, 1.0]]), torch.tensor([[1, 0, 0, 0, -1]])
    p = 1 / (1 + np.exp(-logits[0].numpy().astype(float)))
    focal = -0.25 * (1 - p[0]) ** 2 * np.log(p[0]) - sum(0.75 * p[i] ** 2 * np.log(1 - p[i]) for i in (1, 2, 3))
    assert focal_loss(logits, labels).item() == pytest.approx(focal, rel=1e-5)
    many = torch.cat([logits, torch.full((1, 20), -9.0)], dim=1)  # easy negatives beyond the hardest three
    crossed = 0.5 * -np.log(p[0]) - 0.5 * np.mean([np.log(1 - p[i]) for i in (1, 2, 3)])
    padded = torch.cat([labels, torch.zeros(1, 20, dtype=torch.long)], dim=1)
    assert hard_cross_entropy(many, padded).item() == pytest.approx(crossed, rel=1e-5)
    two = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    equal = 0.5 * (np.log(1 + np.exp(1)) + np.log(1 + np.exp(-1)))  # one nodule weighs as much as three others
    assert class_loss(two, torch.tensor([1, 0, 0, 0])).item() == pytest.approx(equal, rel=1e-5)
    assert box_loss(torch.tensor([[0.5] * 6, [3.0] * 6]), torch.zeros(2, 6)).item() == pytest.approx(
        6 * (0.125 + 2.5) / 2
    )


def test_nothing_to_learn_costs_nothing_and_is_no_nan():
    nothing = torch.zeros(1, 4, requires_grad=True)
    labels = torch.full((1, 4), NEITHER)
    for loss in (focal_loss(nothing, labels), hard_cross_entropy(nothing, labels), box_loss(nothing[:0], nothing[:0])):
        assert loss.item() == 0


# --------------------------------------------------------------------------------------------------- a trained network


@pytest.fixture(scope="module")
def learnt():
    """A small network that has learnt one scan by heart, heads one after the other; and the loss before and after."""
    torch.manual_seed(0)
    config = recipe.Config(width=4, fpn=True)
    net = channels_last(NoduleNet(NoduleNetConfig(4, focal=True, fpn=True))).train()
    scan = scan_with([(30, 34, 28)])
    batch = next(make_batches(iter([cut_out(Prepared.of(scan), View(np.array([31.5] * 3), np.eye(3), 64))]), 1))
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    runtime, said = Runtime.choose("cpu"), []
    for step in range(120):
        batch["stage"] = torch.tensor(1 + (step >= 40) + (step >= 60))
        with runtime.precision():
            parts = recipe.losses(net, batch, config)
            loss = sum(parts.values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5)
        optimiser.step()
        said.append({name: part.item() for name, part in parts.items()})
    net.stage.fill_(MASK)
    return net.eval(), said


def test_a_training_on_one_scan_learns_it_by_heart(learnt):
    net, said = learnt
    assert [set(said[step]) for step in (0, 40)] == [{"rpn_class", "rpn_box"}, {*said[0], "rcnn_class", "rcnn_box"}]
    assert said[-1]["rpn_class"] < 0.1 * said[0]["rpn_class"]
    assert said[-1]["rcnn_class"] < 0.1 * said[40]["rcnn_class"]
    assert np.mean([one["mask"] for one in said[-5:]]) < said[60]["mask"] - 0.05
    scan = scan_with([(30, 34, 28)])
    best = detect(net, scan.hu, scan.lungs)[0]
    np.testing.assert_allclose(best.centre_zyx, (30, 34, 28), atol=2)
    assert min(best.score, best.rpn, best.rcnn) > 0.5
    assert best.mask.shape == tuple(b - a for a, b in zip(best.box[:3], best.box[3:], strict=True))
    assert recipe.dice_of([best], scan.lesions[0]) > 0.7
    wide = [(37, 3), (20, 0), (0, 51)]
    other = detect(net, np.pad(scan.hu, wide, constant_values=40), np.pad(scan.lungs, wide))[0]
    for one in (best, other):
        starts = zip(one.box[:3], one.box[3:], one.soft.start_zyx, strict=True)
        tight = tuple(slice(low - start, high - start) for low, high, start in starts)
        np.testing.assert_array_equal(one.soft.values[tight] > 0.5, one.mask)


def test_a_mask_head_that_learns_alone_changes_no_box_and_no_probability(learnt, tmp_path):
    net = copy.deepcopy(learnt[0]).train()
    config = recipe.Config(width=4, mask_alone=True, crop=32, batch=1, crops=4, cache=str(tmp_path / "cache"))
    scan = scan_with([(30, 34, 28)])
    scan_set(tmp_path, {"a": ("train", scan)})
    teaching = NoduleNetRecipe(tmp_path, config)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    anywhere = (
        dataclasses.replace(config, background_fraction=share) for share in (0.0, 1.0)
    )  # with masks to learn, and without
    for each in anywhere:
        teaching.configure(each)
        for batch in teaching.batches("train", 0):
            loss = teaching.loss(net, batch | {"stage": torch.tensor(MASK)})
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    changed = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    changed_backbone = {
        name.split(".")[1]
        for name, value in net.state_dict().items()
        if name.startswith("backbone") and not torch.equal(value, before[name])
    }
    assert changed == {"backbone", "outliner"}
    assert changed_backbone == {"up", "join"}
    old, new = (detect(one.eval(), scan.hu, scan.lungs)[0] for one in (learnt[0], net))
    assert (old.score, old.rpn, old.rcnn, old.centre_zyx) == (new.score, new.rpn, new.rcnn, new.centre_zyx)
    with pytest.raises(ValueError, match="needs fpn"):
        teaching.configure(dataclasses.replace(config, fpn=False))
    with pytest.raises(ValueError, match="mask_from must be below 1"):
        teaching.configure(dataclasses.replace(config, mask_from=1.0))


def test_the_same_scan_gives_the_same_answer(learnt):
    scan = scan_with([(30, 34, 28)])
    one, two = (detect(learnt[0], scan.hu, scan.lungs) for _ in range(2))
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert (a.centre_zyx, a.box, a.score, a.rpn, a.rcnn) == (b.centre_zyx, b.box, b.score, b.rpn, b.rcnn)
        np.testing.assert_array_equal(a.mask, b.mask)


class Ideal(NoduleNet):
    """Proposes the exact box, with margin, of every small bright thing in what it is shown, cut off or not."""

    def forward(self, image):
        _, maps = super().forward(image)
        shape = [side // 4 for side in image.shape[2:]]
        logits, deltas = torch.full((1, *shape, 5, 1), -9.0), torch.zeros(1, *shape, 5, 6)
        anchors = anchor_boxes(shape, 4, ANCHORS_MM).reshape(*shape, 5, 6)
        labels, _ = ndimage.label(image[0, 0].float().numpy() > 0)
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            if (labels[box] == label).sum() < 1000:
                found = with_margin(torch.tensor([*(s.start for s in box), *(s.stop for s in box)]).float())
                place = tuple((s.start + s.stop) // 8 for s in box)
                logits[(0, *place, 2)] = 5.0
                deltas[(0, *place, 2)] = encode(found, anchors[(*place, 2)])
        return [Level(4, ANCHORS_MM, logits, deltas)], maps


@pytest.mark.parametrize("x", [38, 40, 47, 48, 55, 56, 64, 70, 79])  # windows of 64 over 112 voxels meet at 48 and 64
def test_a_nodule_on_a_seam_is_found_once_and_where_it_is(x):
    scan = scan_with([(30, 32, x)], shape=(64, 64, 112))
    for side in (0, 64):
        found = detect(Ideal(NoduleNetConfig(4)), scan.hu, scan.lungs, options=DetectOptions(window=side))
        assert found.window == side
        assert len(found) == 1
        np.testing.assert_allclose(found[0].centre_zyx, (30, 32, x), atol=0.1)
        assert found[0].box == (25, 27, x - 5, 36, 38, x + 6)


def test_places_are_those_of_the_volume_not_of_the_lungs():
    scan = scan_with([(30, 34, 28)])
    wide = [(37, 3), (20, 0), (0, 51)]
    hu, lungs = np.pad(scan.hu, wide, constant_values=40), np.pad(scan.lungs, wide)
    (one,) = detect(Ideal(NoduleNetConfig(4)), hu, lungs)
    np.testing.assert_allclose(one.centre_zyx, (67, 54, 28), atol=0.1)
    assert one.box == (62, 49, 23, 73, 60, 34)


def test_progress_counts_and_never_goes_back(learnt):
    net, scan = learnt[0], scan_with([(30, 34, 28)])
    said, four = [], DetectOptions(views=4)
    detect(net, scan.hu, scan.lungs, options=four, progress=lambda share, words: said.append((share, words)))
    words = [text.partition(": ")[2] for _, text in said if ": " in text]
    outlines = [text for text in words if text.startswith("outline")]
    assert words.index("fine map 4 of 4") < words.index(outlines[0])
    assert {text.partition(":")[0] for _, text in said} >= {"window 1 of 1", "place 1 of 1"}
    assert outlines == [f"outline {n} of {len(outlines)}" for n in range(1, len(outlines) + 1)]
    assert [share for share, _ in said] == sorted(share for share, _ in said)


def test_without_lungs_nothing_is_looked_at():
    assert detect(NoduleNet(NoduleNetConfig(4)), np.zeros((20, 20, 20), np.int16), np.zeros((20, 20, 20), bool)) == []


def test_heads_that_have_not_learnt_are_not_asked(learnt):
    net = copy.deepcopy(learnt[0])
    net.stage.fill_(1)
    scan = scan_with([(30, 34, 28)])
    best = detect(net, scan.hu, scan.lungs)[0]
    assert (best.rcnn, best.mask, best.score) == (None, None, best.rpn)
    np.testing.assert_allclose(best.centre_zyx, (30, 34, 28), atol=3)


class Hungry(Ideal):
    """Runs out of memory with more than so many voxels."""

    most, error = 64 * 64 * 160, torch.OutOfMemoryError("no")

    def forward(self, image):
        if image.numel() > self.most:
            raise self.error
        return super().forward(image)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory: ...")]
)
def test_out_of_memory_means_smaller_windows_and_words(monkeypatch, error):
    monkeypatch.setattr(Hungry, "error", error)
    hungry = Hungry(NoduleNetConfig(4))
    scan = scan_with([(30, 32, 90)], shape=(64, 64, 250))
    found = detect(hungry, scan.hu, scan.lungs)
    assert found.window == 160
    assert found.remarks == (
        "the lungs in one piece did not fit into the memory of cpu; tried again in less",
        "windows of 208 voxels did not fit into the memory of cpu; tried again in less",
    )
    (one,) = found
    np.testing.assert_allclose(one.centre_zyx, (30, 32, 90), atol=0.1)
    monkeypatch.setattr(Hungry, "most", 0)
    with pytest.raises(torch.OutOfMemoryError, match="windows of 96 voxels"):
        detect(hungry, scan.hu, scan.lungs)


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch):
    monkeypatch.setattr(Hungry, "error", RuntimeError("shapes do not match"))
    monkeypatch.setattr(Hungry, "most", 0)
    hungry = Hungry(NoduleNetConfig(4))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        detect(hungry, *(getattr(scan_with([]), name) for name in ("hu", "lungs")))


def test_a_full_gpu_hands_over_to_the_processor(monkeypatch):
    """No GPU here: one that is out of memory whatever the window."""
    tried = []

    def detect_windows(model, grey, lungs, side, runtime, options, progress):
        tried.append((runtime.device.type, side))
        if runtime.device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return []

    choices = iter([Runtime(torch.device("cuda:0"), True), Runtime(torch.device("cuda:0"), True)])
    monkeypatch.setattr(infer, "detect_windows", detect_windows)
    monkeypatch.setattr(
        infer.Runtime, "choose", classmethod(lambda cls, device: next(choices, Runtime(torch.device("cpu"), False)))
    )
    scan = scan_with([], shape=(64, 64, 100))
    found = detect(NoduleNet(NoduleNetConfig(4)), scan.hu, scan.lungs, options=DetectOptions(memory_gb=1))
    assert tried == [("cuda", 0), ("cuda", 96), ("cpu", 0)]
    assert found.device == "cpu fp32"
    assert [remark.split(";")[0] for remark in found.remarks] == [
        "the lungs in one piece did not fit into the memory of cuda:0",
        "windows of 96 voxels did not fit into the memory of cuda:0",
    ]


def test_less_memory_means_smaller_windows_from_the_start():
    net, runtime = NoduleNet(NoduleNetConfig(4)), Runtime(torch.device("cpu"), True)
    sides = {
        gb: infer.sides_to_try(net, (300, 330, 330), runtime, DetectOptions(memory_gb=gb)) for gb in (9, 0.05, 0.01)
    }
    assert sides[9] == [0, 208, 160, 128, 96]
    assert 0 < sides[0.05][0] < 208 + 1
    assert sides[0.01] == [96]


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 400)] * 3), st.sampled_from([0, 96, 128, 208]))
def test_windows_cover_everything_and_share_their_seams(shape, side):
    laid = windows(shape, side)
    for axis, n in enumerate(shape):
        line = sorted({(w.start[axis], w.shape[axis], w.own_from[axis], w.own_to[axis]) for w in laid})
        assert all(start % 16 == 0 and length % 16 == 0 for start, length, *_ in line)
        assert line[0][0] == 0
        assert line[-1][0] + line[-1][1] >= n
        for (a, length, _, own_to), (b, _, own_from, _) in itertools.pairwise(line):
            assert a + length - b >= 32  # in common
            assert own_to - own_from == 8  # a centre near the middle of the seam counts in both
            assert b <= own_from < own_to <= a + length
    assert len(laid) == len({w.start for w in laid})


# ---------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of scans as models.training.lung_nodule.data.semisynthetic writes them, tiny."""
    parts = {"a": "train", "b": "train", "c": "val", "d": "test"}
    scans = {
        name: (part, scan_with([(20, 20, 20), (38, 36, 40)], shape=(48, 48, 56), radius=4, seed=seed))
        for seed, (name, part) in enumerate(parts.items())
    }
    return scan_set(tmp_path_factory.mktemp("scans"), scans)


def tiny(folder, cache, **changes):
    settings = {"width": 4, "epochs": 3, "crops": 4, "batch": 2, "crop": 32, "rcnn_from": 0.3, "mask_from": 0.6}
    return recipe.build(folder, recipe.Config(**settings | {"cache": str(cache), "lr": 3e-3} | changes))


def test_heads_learn_in_their_turn_and_a_killed_training_goes_on_at_its_stage(folder, tmp_path):
    one = tiny(folder, tmp_path)
    assert [one.stage(epoch) for epoch in range(3)] == [1, 2, 3]
    quiet = Console(file=io.StringIO())
    weights = train(one, tmp_path / "whole", console=quiet)
    log = [line.split(",") for line in (tmp_path / "whole" / "log.csv").read_text().splitlines()]
    assert [float(row[log[0].index("stage")]) for row in log[1:]] == [1, 2, 3]
    scores = [float(row[log[0].index("score")]) for row in log[1:]]
    assert scores == sorted(scores)
    assert int(load_file(weights)["stage"]) == MASK  # serving knows which heads to ask

    class Killed(Exception):
        pass

    stopped = tiny(folder, tmp_path)
    really = stopped.batches

    def batches(split, epoch):
        if epoch == 2:
            raise Killed
        return really(split, epoch)

    stopped.batches = batches
    with pytest.raises(Killed):
        train(stopped, tmp_path / "again", console=quiet)
    torch.manual_seed(99)
    train(tiny(folder, tmp_path), tmp_path / "again", resume=True, console=quiet)
    first, state = (torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "again"))
    assert state["epoch"] == 2
    assert int(state["model"]["stage"]) == MASK
    for name, values in first["model"].items():
        torch.testing.assert_close(state["model"][name], values, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("changes", [{"focal": False}, {"fpn": False}, {"coupled": True}])
def test_each_ablation_takes_a_step_with_all_heads(folder, tmp_path, changes):
    one = tiny(folder, tmp_path, rcnn_from=0.0, mask_from=0.0, background_fraction=0.0, **changes)
    torch.manual_seed(0)
    net = one.model().train()
    one.loss(net, next(one.batches("train", 0))).backward()
    idle = [name for name, weights in net.named_parameters() if weights.grad is None]
    assert idle == []


def test_names_tell_the_ablations_apart(folder, tmp_path):
    names = {
        recipe.named(recipe.Config(**changes))
        for changes in ({}, {"focal": False}, {"fpn": False}, {"coupled": True}, {"width": 24})
    }
    assert names == {
        "nodulenet_w12",
        "nodulenet_ohem_w12",
        "nodulenet_nofpn_w12",
        "nodulenet_coupled_w12",
        "nodulenet_w24",
    }


def test_a_wrong_setting_is_refused_in_words(folder, tmp_path):
    with pytest.raises(ValueError, match="optimiser='lion': adamw or sgd"):
        tiny(folder, tmp_path, optimiser="lion")
    with pytest.raises(ValueError, match="crop=100: a multiple of 16"):
        tiny(folder, tmp_path, crop=100)


def test_figures_of_known_detections():
    """One nodule found with a perfect mask, one missed, one false mark: by hand."""
    scan = scan_with([(20, 20, 20), (40, 40, 40)])
    first = scan.lesions[0]
    box = (*first.offset_zyx, *(o + n for o, n in zip(first.offset_zyx, first.mask.shape, strict=True)))
    hit = Detection3D(first.centre_zyx, box, first.mask, 0.9, 0.9, 0.9)
    false = Detection3D((50.0, 10.0, 10.0), (49, 9, 9, 51, 11, 11), None, 0.5, 0.5, 0.5)
    figures = recipe.judgement([[hit, false]], [scan], MASK)
    assert figures["dice"] == 1
    assert figures["found"] == figures["cpm"] == figures["sensitivity_at_1"] == 0.5
    assert figures["score"] == pytest.approx((2 + 0.75) / 3)


def test_evaluation_and_table_judge_every_head_on_scans_that_nobody_learnt_from(folder, tmp_path):
    """The command's own path: trained in a moment, judged on the test, and not trained again."""
    changes = {
        "width": "4",
        "crop": "32",
        "batch": "2",
        "crops": "2",
        "epochs": "1",
        "rcnn_from": "0",
        "mask_from": "0",
    }
    made = study(folder, "small", {**changes, "cache": str(tmp_path / "cache")}, "cpu")
    made.tables = [Table("one", made.tables[0].rows[:2])]
    path = tables.run(made, tmp_path / "out", tmp_path / "runs", console=Console(file=io.StringIO()))
    first = path.read_text()
    assert "semi-synthetic" in first
    assert first.count("| focal loss, pyramid") == 1
    results = json.loads(path.with_suffix(".json").read_text())
    assert len(results) == 2
    assert {"RPN: CPM", "RCNN: CPM", "mean of both: CPM"} <= set(next(iter(results.values()))["figures"])
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.safetensors")}
    assert tables.run(made, tmp_path / "out", tmp_path / "runs", console=Console(file=io.StringIO())) == path
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.safetensors")}

    (weights_, *_) = before
    judged = evaluate(folder, paths=[weights_])
    assert judged.judged["scans"] == 1
    assert judged.judged["nodules"] == 2
    assert judged.choices["nodules"] == "semi-synthetic"
    assert judged.choices["views"] == 1
    assert evaluate(folder, paths=[weights_], flips=True).choices["views"] == 4
    with pytest.raises(ValueError, match="one training"):
        evaluate(folder, paths=[weights_, weights_])
    (folder / INDEX).write_text((folder / INDEX).read_text().replace("5" * 64, "6" * 64))
    with pytest.raises(UnknownLayout, match="changed after the set was made"):
        evaluate(folder, paths=[weights_])


def test_a_curve_counts_false_marks_per_whole_chest():
    """Half a chest with one false mark above the hit: two per chest, so nothing is found at one per chest."""
    scan = dataclasses.replace(scan_with([(20, 20, 20)]), share=0.5)
    seen = [Mark((50.0, 50.0, 50.0), 0.9), Mark(scan.lesions[0].centre_zyx, 0.8)]
    at = curve([seen], [scan], rounds=1).at
    assert [at[rate].value for rate in (1, 2, 4)] == [0, 1, 1]
    own = dataclasses.replace(scan, irrelevant=(Lesion.of(np.pad(np.ones((9, 9, 9), bool), ((46, 9),) * 3)),))
    lenient, strict = (curve([seen], [own], rounds=1, strict=strict).at for strict in (False, True))
    assert [lenient[1].value, strict[1].value] == [1, 0]
    half = recipe.judgement([[Detection3D(m.centre_zyx, (0,) * 6, None, m.score, 0, 0) for m in seen]], [scan], 1)
    assert half["sensitivity_at_1"] == 0
