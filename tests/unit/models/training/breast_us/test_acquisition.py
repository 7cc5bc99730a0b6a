"""Variation over hospitals: what is cut out is what is said of it, and nothing is drawn where nothing is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.breast_us.acquisition import Acquisition, cut_out, paint_calipers, tone, vary

SIDE = 64
seeds = st.integers(0, 10_000)
quick = settings(max_examples=25, deadline=None)


def batch(seed: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Letterboxed noise with a lesion of any size and place in each but the first."""
    rng = np.random.default_rng(seed)
    grey, mask = torch.zeros(count, 1, SIDE, SIDE), torch.zeros(count, 1, SIDE, SIDE)
    grey[:, :, 8:56] = torch.from_numpy(rng.uniform(0.1, 0.9, (count, 1, 48, SIDE))).float()
    for i in range(1, count):
        wide, high = rng.integers(6, 40, 2)
        left, top = rng.integers(0, SIDE - wide), rng.integers(8, 57 - min(high, 48))
        mask[i, 0, top : min(top + high, 56), left : left + wide] = 1
    return grey, mask, torch.tensor([0] + [1 + i % 2 for i in range(1, count)])


@quick
@given(seeds)
def test_shapes_ranges_and_classes_hold(seed: int) -> None:
    grey, mask, label = batch(seed)
    before = grey.clone()
    shown, marked, said = vary(grey, mask, label, np.random.default_rng(seed))
    assert shown.shape == marked.shape == grey.shape
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    assert set(marked.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(grey, before)  # the cache of the training is not written to
    for i in range(len(label)):
        assert said[i] in (0, label[i])
        if said[i] == 0:
            assert not marked[i].any()


@quick
@given(seeds)
def test_what_is_called_normal_shows_nothing_of_the_lesion(seed: int) -> None:
    grey, mask, label = batch(seed)
    always = replace(Acquisition(), beside=1.0, cut=0.0)
    shown, marked, said, _, scale = cut_out(grey, mask, label, np.random.default_rng(seed), always)
    for i in range(1, len(label)):
        columns = mask[i, 0].any(0).nonzero()
        room = max(int(columns[0]), SIDE - 1 - int(columns[-1])) - 4
        assert (said[i] == 0) == (room >= 0.4 * SIDE)
        if said[i] == 0:
            assert not marked[i].any()
            assert not (shown[i] * mask[i]).any()
            assert shown[i].any()
            assert 0.4 <= scale[i] <= 1


@quick
@given(seeds)
def test_a_cut_keeps_the_class_and_half_of_the_lesion(seed: int) -> None:
    grey, mask, label = batch(seed)
    always = replace(Acquisition(), beside=0.0, cut=1.0)
    _, marked, said, _, _ = cut_out(grey, mask, label, np.random.default_rng(seed), always)
    assert torch.equal(said, label)
    assert (marked.sum((1, 2, 3)) >= 0.5 * mask.sum((1, 2, 3))).all()
    assert (marked <= mask).all()


@quick
@given(seeds)
def test_black_margins_stay_black(seed: int) -> None:
    grey, _, _ = batch(seed)
    rng = np.random.default_rng(seed)
    assert not tone(grey, rng, replace(Acquisition(), coarse=1.0))[:, :, [*range(8), *range(56, SIDE)]].any()


@quick
@given(seeds)
def test_calipers_are_few_bright_pixels_and_change_no_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grey = np.full((SIDE, SIDE), 0.3, np.float32)
    lesion = np.zeros((SIDE, SIDE), bool)
    lesion[20:40, 15:50] = seed % 2
    paint_calipers(grey, lesion, rng)
    painted = grey != np.float32(0.3)
    assert 6 <= painted.sum() < 0.06 * painted.size
    assert (grey[painted] >= 0.8).all()
