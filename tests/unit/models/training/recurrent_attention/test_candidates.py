"""What is learnt from: evenly drawn, varied within what is said, and split so that no patient is on two sides."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.patches import NETWORK_SHAPE, SOFT_TISSUE
from models.training.recurrent_attention.candidates import (
    STORED_SHAPE,
    Candidates,
    balanced,
    cut,
    split_into_folds,
)
from models.training.recurrent_attention.cross_validate import fold_parts


def test_without_chance_the_middle_is_cut() -> None:
    patches = torch.rand(2, *STORED_SHAPE)
    assert cut(patches, SOFT_TISSUE).shape == (2, *NETWORK_SHAPE)
    torch.testing.assert_close(cut(patches, SOFT_TISSUE), patches[:, 2:11, 8:40, 8:40])


@given(st.integers(0, 2**32 - 1))
def test_varied_patches_stay_where_they_are_looked_at(seed: int) -> None:
    """A bright ball in the middle stays near it, whatever is turned, moved and scaled; values stay in range."""
    patches = torch.zeros(3, *STORED_SHAPE)
    patches[:, 4:9, 20:28, 20:28] = 0.6
    varied = cut(patches, SOFT_TISSUE, np.random.default_rng(seed))
    assert varied.shape == (3, *NETWORK_SHAPE)
    assert (varied >= 0).all()
    assert (varied <= 1).all()
    bright = (varied > 0.3).float()
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    for one in bright.sum(dim=1):
        assert abs(float((one * y).sum() / one.sum()) - 15.5) < 4
        assert abs(float((one * x).sum() / one.sum()) - 15.5) < 4


def test_the_same_chance_gives_the_same_patches_and_another_others() -> None:
    patches = torch.rand(2, *STORED_SHAPE)
    first, again, other = (cut(patches, SOFT_TISSUE, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_epoch_has_as_many_of_either_class_and_resamples_the_larger() -> None:
    labels = np.array([1] * 7 + [0] * 40)
    drawn = [balanced(labels, np.random.default_rng(epoch)) for epoch in range(3)]
    for one in drawn:
        assert (labels[one] == 1).sum() == (labels[one] == 0).sum() == 7
        assert len(set(one.tolist())) == 14
    assert len({tuple(sorted(one[labels[one] == 0].tolist())) for one in drawn}) == 3


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=10, max_size=80),
    st.integers(2, 5),
)
def test_no_patient_is_in_two_parts_and_none_is_lost(rows: list[tuple[int, bool]], folds: int) -> None:
    patients = [f"P{number}" for number, _ in rows]
    labels = np.array([int(positive) for _, positive in rows])
    patches = np.zeros((len(rows), 1, 1, 1), np.float16)
    candidates = Candidates(patches, labels, patients, patients, SOFT_TISSUE)
    tests = []
    for fold in range(folds):
        parts = fold_parts(candidates, folds, fold)
        everyone = [patient for part in parts.values() for patient in part]
        assert sorted(everyone) == sorted(set(patients))
        tests += parts["test"]
    assert sorted(tests) == sorted(set(patients))


def test_patients_with_a_positive_candidate_are_dealt_evenly() -> None:
    patients = [f"P{number}" for number in range(40)]
    positive = {patient: number < 10 for number, patient in enumerate(patients)}
    dealt = split_into_folds(patients, positive, 5, 1)
    assert [sum(positive[patient] for patient in part) for part in dealt] == [2] * 5
    assert dealt == split_into_folds(patients[::-1], positive, 5, 1)
    assert dealt != split_into_folds(patients, positive, 5, 2)


def test_indices_of_patients() -> None:
    patches = np.zeros((4, 1, 1, 1), np.float16)
    candidates = Candidates(patches, np.zeros(4, int), ["a", "b", "a", "c"], list("wxyz"), SOFT_TISSUE)
    assert candidates.of(["a", "c"]).tolist() == [0, 2, 3]
    assert candidates.of([]).tolist() == []
