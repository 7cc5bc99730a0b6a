"""The refinement of each detection: where its mask lies, what is kept of it, and when it is not believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from dicom_sr import codes
from models.grid import Soft
from models.lung_nodule.detections import Candidate
from models.lung_nodule.odds import SUREST
from models.lung_nodule.pipeline import LungNodule, outlines_kept
from models.lung_nodule.preprocess import SIDE
from models.lung_nodule.refine import BATCH, REACH_MM, Mix, Refined, Refinement, distinct, patch, refine
from models.phantoms import chest_ct
from models.read import Volume, read_ct
from models.training.evaluation.metrics import dice

AIR, TISSUE = -850, 40


def volume(inside: np.ndarray, spacing_mm=(2.0, 0.7, 0.7)) -> Volume:
    """Tissue where `inside`, lung elsewhere."""
    return Volume(np.where(inside, TISSUE, AIR).astype(np.int16), (), spacing_mm, np.diag([*spacing_mm, 1.0]), ())


def ball(shape, centre, radius_mm, spacing_mm) -> np.ndarray:
    away = (np.moveaxis(np.indices(shape), 0, -1) - centre) * spacing_mm
    return (away**2).sum(axis=-1) <= radius_mm**2


def detection(mask: np.ndarray, certainty=0.9) -> Candidate:
    return Candidate(mask, (0, 0, 0), certainty).with_mask(mask, (0, 0, 0))


def at(centre, certainty=0.9) -> Candidate:
    return Candidate(np.ones((1, 1, 1), bool), tuple(centre), certainty)


def bright(crops: Tensor) -> Tensor:
    """A network that marks tissue: what it marks must come back on the tissue's voxels."""
    assert crops.shape[1] == 1
    assert crops.shape[2:] in ((SIDE, SIDE), (64, 64))
    assert len(crops) <= BATCH
    assert 0 <= float(crops.min()) <= float(crops.max()) <= 1
    return ((crops - 0.4) * 20).sigmoid()


def painted(candidate: Candidate, shape) -> np.ndarray:
    out = np.zeros(shape, bool)
    out[candidate.box] = candidate.mask
    return out


@settings(max_examples=12, deadline=None)
@given(
    centre=st.tuples(st.integers(0, 9), st.integers(0, 149), st.integers(0, 139)),
    radius_mm=st.floats(3, 12),
    z_mm=st.sampled_from([0.6, 1.25, 2.5, 5.0]),
    in_plane=st.sampled_from([(0.7, 0.7), (0.5, 0.9), (0.3, 0.3), (1.6, 1.6), (0.35, 1.4)]),
    side=st.sampled_from([64, SIDE]),
)
def test_the_mask_lies_on_the_tissue_however_the_grid_is(centre, radius_mm, z_mm, in_plane, side):
    """At the border of the image and of the scan too, on pixels that are resampled and on those that are not."""
    shape, spacing_mm = (10, 150, 140), (z_mm, *in_plane)
    truth = ball(shape, centre, radius_mm, spacing_mm)
    (one,) = refine(volume(truth, spacing_mm), [at(centre)], bright, side=side)
    fits = all(2 * radius_mm < (n - 4) * mm for n, mm in zip(patch(in_plane, side), in_plane, strict=True))
    if not fits and one.why_not is not None:
        assert one.why_not == "what was marked runs out of the crop"
        return
    assert one.why_not is None
    got = painted(one.candidate, shape)
    if patch(in_plane, side) == (side, side):
        np.testing.assert_array_equal(got, truth)
    else:  # half a crop's pixel of border may be lost or won, and nothing on the other side of it
        in_air = np.pad(truth, ((0, 0), (1, 1), (1, 1)))  # so that the image's own border is a border, too
        inner = ndimage.distance_transform_edt(in_air, sampling=spacing_mm)[:, 1:-1, 1:-1]
        outer = ndimage.distance_transform_edt(~truth, sampling=spacing_mm)
        assert got[inner > 1.0 + max(in_plane)].all()
        assert not got[outer > 1.0 + max(in_plane)].any()
        assert dice(got, truth) > 0.8
    assert one.candidate.certainty == 0.9
    for axis in range(3):
        assert one.candidate.mask.any(axis=tuple({0, 1, 2} - {axis}))[[0, -1]].all()  # the smallest box


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_scan_has_mirrored_masks(axis, flips):
    """Slices in reverse, rows and columns flipped: nothing knows a direction."""
    shape, spacing_mm = (16, 160, 150), (2.5, 0.6, 0.8)
    truth = ball(shape, (5, 50, 100), 9, spacing_mm) & ~ball(shape, (3, 40, 95), 4, spacing_mm)
    (one,) = refine(volume(truth, spacing_mm), [detection(truth)], bright, flips=flips)
    turned = np.flip(truth, axis)
    (other,) = refine(volume(turned, spacing_mm), [detection(turned)], bright, flips=flips)
    np.testing.assert_array_equal(painted(one.candidate, shape), truth)
    np.testing.assert_array_equal(painted(other.candidate, shape), turned)


def test_flips_turn_each_answer_back():
    """A network that sees only the lower right quarter of its crop sees all of it by its mirror images."""

    def quarter(crops: Tensor) -> Tensor:
        answer = torch.zeros_like(crops)
        answer[..., SIDE // 2 :, SIDE // 2 :] = bright(crops)[..., SIDE // 2 :, SIDE // 2 :]
        return answer

    shape = (9, 200, 200)
    truth = ball(shape, (4, 90, 110), 8, (2.0, 0.7, 0.7))
    (one,) = refine(volume(truth), [detection(truth)], quarter, flips=True, threshold=0.2)
    np.testing.assert_array_equal(painted(one.candidate, shape), truth)


def test_it_looks_beyond_the_detection_until_nothing_is_marked():
    shape = (40, 150, 150)
    truth = ball(shape, (20, 75, 75), 15, (1.0, 0.7, 0.7))
    seen: list[int] = []

    def counting(crops: Tensor) -> Tensor:
        seen.append(len(crops))
        return bright(crops)

    (one,) = refine(volume(truth, (1.0, 0.7, 0.7)), [at((20, 75, 75))], counting)
    np.testing.assert_array_equal(painted(one.candidate, shape), truth)
    assert sum(seen) < 31 + 2 * 2 + 2 * 2  # the nodule, the margin, and what the last step takes too many


def test_all_crops_of_all_detections_share_batches():
    shape = (12, 200, 200)
    centres = [(6, y, x) for y in (40, 100, 160) for x in (40, 100, 160)]
    truth = np.any([ball(shape, c, 5, (2.0, 0.7, 0.7)) for c in centres], axis=0)
    sizes: list[int] = []

    def counting(crops: Tensor) -> Tensor:
        sizes.append(len(crops))
        return bright(crops)

    labels, count = ndimage.label(truth)
    found = refine(volume(truth), [detection(labels == n) for n in range(1, count + 1)], counting)
    assert count == len(found) == 9
    np.testing.assert_array_equal(np.any([painted(one.candidate, shape) for one in found], axis=0), truth)
    assert sizes == [BATCH, 9 * 7 - BATCH]  # 5 slices and a margin of one on each side; at once


def test_only_the_piece_at_the_centre_is_kept_and_diagonal_neighbours_belong_to_it():
    truth = np.zeros((9, 150, 150), bool)
    truth[4, 70:76, 70:76] = True
    truth[5, 76:80, 76:80] = True  # touches by a corner only
    other = truth.copy()
    other[4, 70:76, 90:100] = True  # another nodule in the same crop
    (one,) = refine(volume(other), [at((4, 72, 72))], bright)
    np.testing.assert_array_equal(painted(one.candidate, truth.shape), truth)
    (beside,) = refine(volume(other), [at((4, 69, 69))], bright)  # one voxel off still touches
    np.testing.assert_array_equal(painted(beside.candidate, truth.shape), truth)


def test_a_crescent_is_looked_at_where_it_is():
    """The centre of mass of a crescent lies outside it."""
    shape, spacing_mm = (9, 150, 150), (2.0, 0.7, 0.7)
    truth = ball(shape, (4, 75, 75), 8, spacing_mm) & ~ball(shape, (4, 75, 81), 10, spacing_mm)
    assert truth[detection(truth).centre_zyx]
    (one,) = refine(volume(truth, spacing_mm), [detection(truth)], bright)
    np.testing.assert_array_equal(painted(one.candidate, shape), truth)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (lambda shape: np.zeros(shape, bool), "nothing was marked at its centre"),
        (lambda shape: ball(shape, (30, 100, 130), 8, (1.0, 0.7, 0.7)), "nothing was marked at its centre"),
        (lambda shape: np.ones(shape, bool), "runs out of the crop"),
        (lambda shape: ball(shape, (30, 100, 100), 3, (0.01, 0.7, 0.7)), "more than 20 mm"),
    ],
)
def test_a_detection_keeps_its_own_mask_when_the_look_is_no_good_and_says_why(inside, reason):
    shape = (60, 200, 200)
    own = detection(ball(shape, (30, 100, 100), 4, (1.0, 0.7, 0.7)))
    tissue = inside(shape)
    (one,) = refine(volume(tissue, (1.0, 0.7, 0.7)), [own], bright)
    assert one.candidate is own
    assert reason in one.why_not
    assert REACH_MM == 20.0


@pytest.mark.parametrize("answer", [float("nan"), 0.0])
def test_a_network_without_an_answer_changes_nothing(answer):
    own = at((4, 40, 40))
    (one,) = refine(volume(np.ones((9, 80, 80), bool)), [own], lambda crops: torch.full_like(crops, answer))
    assert one.candidate is own
    assert refine(volume(np.ones((9, 80, 80), bool)), [], bright) == []


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 700), (5, 700, 3), (2, 40, 40), (3, 128, 127)])
@pytest.mark.parametrize("spacing_mm", [(1.0, 0.7, 0.7), (5.0, 0.2, 2.0)])
def test_images_smaller_than_a_crop_and_of_odd_shapes(shape, spacing_mm):
    """Everything is tissue: it is all marked, unless it reaches out of a crop that does not hold the image."""
    centre = tuple(n // 2 for n in shape)
    (one,) = refine(volume(np.ones(shape, bool), spacing_mm), [at(centre)], bright)
    if one.why_not is None:
        assert painted(one.candidate, shape).mean() > 0.9
    elif "runs out" in one.why_not:
        assert any(n > p // 2 for n, p in zip(shape[1:], patch(spacing_mm[1:]), strict=True))
    else:
        assert min(shape[1:]) <= 3  # on fine pixels: less than one of the network's, half of it air
        assert spacing_mm[1] == 0.2


# --------------------------------------------------------------------------------------------- one mask for a nodule


def square(z, y, x, side=6, certainty=0.9) -> Refined:
    return Refined(Candidate(np.ones((3, side, side), bool), (z, y, x), certainty), None)


def test_of_two_detections_of_one_nodule_the_more_certain_stays():
    low, high, far = square(0, 10, 10, certainty=0.6), square(0, 12, 10, certainty=0.8), square(0, 40, 40)
    for order in ([low, high, far], [far, high, low], [high, low, far]):
        assert [one.candidate for one in distinct(order)] == [far.candidate, high.candidate]
    inside = square(1, 12, 12, side=2, certainty=0.95)  # a smaller one within a larger one is the same nodule
    assert [one.candidate for one in distinct([high, inside])] == [inside.candidate]


def test_two_detections_that_refine_into_one_nodule_become_one():
    shape, spacing_mm = (12, 150, 150), (2.0, 0.7, 0.7)
    truth = ball(shape, (6, 75, 75), 8, spacing_mm)
    found = refine(volume(truth, spacing_mm), [at((6, 72, 75), 0.7), at((6, 78, 75), 0.9)], bright)
    (one,) = distinct(found)
    assert one.candidate.certainty == 0.9
    np.testing.assert_array_equal(painted(one.candidate, shape), truth)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 14), st.integers(0, 14), st.integers(1, 8), st.floats(0.5, 1)),
        max_size=7,
    )
)
def test_no_voxel_lies_in_two_masks_and_nothing_certain_is_lost(squares):
    given_ = [square(z, y, x, side, certainty) for z, y, x, side, certainty in squares]
    kept = distinct(given_)
    shape = (7, 22, 22)
    total = np.zeros(shape, int)
    for one in kept:
        total += painted(one.candidate, shape)
        assert one.candidate.mask.any()
        _, pieces = ndimage.label(one.candidate.mask, structure=np.ones((3, 3, 3)))
        assert pieces == 1
    assert total.max(initial=0) <= 1
    certainties = [round(one.candidate.certainty, 4) for one in kept]
    assert certainties == sorted(certainties, reverse=True)
    assert bool(kept) == bool(given_)
    if given_:
        assert kept[0].candidate.certainty == pytest.approx(max(one.candidate.certainty for one in given_), abs=1e-4)
    assert [(r.candidate.offset_zyx, r.candidate.mask.shape) for r in distinct(given_[::-1])] == [
        (r.candidate.offset_zyx, r.candidate.mask.shape) for r in kept
    ] or len({r.candidate.certainty for r in given_}) < len(given_)


def test_the_report_says_which_outlines_are_the_first_ones():
    refined = [square(0, 0, 0), Refined(at((0, 0, 0)), "a"), Refined(at((0, 0, 0)), "b"), Refined(at((0, 0, 0)), "a")]
    said = outlines_kept(refined)
    assert [text.split(":")[0] for text in said] == ["Nodule 2, Nodule 4", "Nodule 3"]
    assert said[0].endswith("(a)")
    assert outlines_kept([square(0, 0, 0)]) == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1, 9))
def test_a_second_look_goes_no_farther_than_it_may(seed, within_mm):
    """A network that marks everything: what is left is all within so many mm of the detection, on every slice of it."""
    rng = np.random.default_rng(seed)
    spacing = (float(rng.uniform(0.8, 4)), *rng.uniform(0.5, 1.1, 2).tolist())
    shape = (30, 90, 90)
    mask = ndimage.binary_dilation(rng.random((5, 6, 7)) < 0.1, iterations=2)
    start = rng.integers(0, np.array(shape) - mask.shape)
    detection = Candidate(mask, (0, 0, 0), 0.7).with_mask(mask, start.tolist())
    volume = Volume(np.zeros(shape, np.int16), (), spacing, np.diag([*spacing, 1.0]), ())
    (one,) = refine(volume, [detection], lambda batch: torch.ones_like(batch), side=64, within_mm=within_mm)
    away = ndimage.distance_transform_edt(~painted(detection, shape), sampling=spacing)
    drawn = painted(one.candidate, shape)
    if one.why_not is None:
        assert (away[drawn] <= within_mm + 1e-6).all()
        labels, _ = ndimage.label(away <= within_mm, structure=np.ones((3, 3, 3)))
        np.testing.assert_array_equal(drawn, labels == labels[detection.centre_zyx])
    else:
        np.testing.assert_array_equal(drawn, painted(detection, shape))


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.integers(-3, 12), st.integers(-20, 60), st.integers(-20, 60)),
    st.tuples(st.integers(1, 12), st.integers(1, 70), st.integers(1, 70)),
    st.integers(0, 2**32 - 1),
)
def test_the_detectors_own_outline_counts_for_its_share_and_where_it_lies(start, size, seed):
    """Against the mean of log odds written out as odds: a network that says 0.4 everywhere and a detector."""
    shape, spacing_mm, centre = (10, 64, 64), (2.0, 0.7, 0.7), (4, 32, 32)
    soft = Soft(np.random.default_rng(seed).random(size, np.float32), start)
    own = np.zeros([n + 140 for n in shape], np.float32)
    own[tuple(slice(70 + a, 70 + a + n) for a, n in zip(start, size, strict=True))] = soft.values
    kept = np.clip(own[70:-70, 70:-70, 70:-70].astype(float), SUREST, 1 - SUREST)
    odds = (0.4 / 0.6) ** 0.75 * (kept / (1 - kept)) ** 0.25
    wanted = odds / (1 + odds) > 0.45
    labels, _ = ndimage.label(wanted, structure=np.ones((3, 3, 3)))
    one = Candidate(np.ones((1, 1, 1), bool), centre, 0.9, soft)

    def doubtful(crops: Tensor) -> Tensor:
        return torch.full_like(crops, 0.4)

    mix = Mix(fraction=0.25, threshold=0.45)
    look = Refinement(volume(np.zeros(shape, bool), spacing_mm), one, 64, None, mix)
    for z in range(shape[0]):
        look.keep(z, doubtful(look.crop(z)), 0.5)
        np.testing.assert_array_equal(look.marked[z], wanted[z])
    (mixed,) = refine(volume(np.zeros(shape, bool), spacing_mm), [one], doubtful, side=64, threshold=0.6, mix=mix)
    near = labels[3:6, 31:34, 31:34]
    assert (mixed.why_not == "nothing was marked at its centre") == (not near.any())
    plain = at(centre)  # a detector without an outline of its own: the network's threshold is as it was
    (alone,) = refine(volume(np.zeros(shape, bool), spacing_mm), [plain], doubtful, side=64, threshold=0.6, mix=mix)
    assert alone.why_not == "nothing was marked at its centre"


# ------------------------------------------------------------------------------------------- with the network itself


def errors_mm(truth, refine_: bool) -> tuple[list[float], int]:
    """Error of the mean diameter of each phantom nodule that is found, and how many findings there are."""
    found = LungNodule("cpu", {"threads": 1, "refine": refine_}).run(truth.files, lambda _fraction, _what: None)
    scan = read_ct(truth.files)
    errors = []
    for lesion in truth.lesions:
        at_place = [
            f
            for f in found.findings
            if f.mask.shape and painted(Candidate(f.mask, f.offset_zyx, 1.0), scan.hu.shape)[middle(lesion)]
        ]
        (one,) = at_place  # one finding for one nodule
        (diameter,) = (m.value for m in one.measurements if m.name == codes.MEAN_DIAMETER)
        errors.append(diameter - (lesion.long_axis_mm + lesion.short_axis_mm) / 2)
    return errors, len(found.findings)


def middle(lesion) -> tuple[int, ...]:
    return tuple(o + n // 2 for o, n in zip(lesion.offset_zyx, lesion.mask.shape, strict=True))


def test_phantom_nodules_keep_their_size_and_their_place(tmp_path):
    truth = chest_ct(tmp_path, seed=3, slices=18, size=320, spacing_mm=(2.5, 1.1, 1.1), order="shuffled", nodules=2)
    before, count = errors_mm(truth, refine_=False)
    after, still = errors_mm(truth, refine_=True)
    assert 0 < still <= count
    assert np.abs(after).max() <= max(np.abs(before).max(), 2.2)  # two pixels
