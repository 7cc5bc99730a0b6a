"""Which test images look like training images, and what is told without them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from models.phantoms.breast import breast_picture
from models.training.breast_us.judge_hospitals import Told
from models.training.breast_us.judged import Judged
from models.training.breast_us.near_training import RULES, alike, told_apart


def tissue(seed: int) -> np.ndarray:
    return breast_picture(np.random.default_rng(seed), (200, 240), (0.2, 0.2), None, 6.0)


def test_a_part_of_a_training_image_is_a_look_alike_and_another_is_none() -> None:
    known = [tissue(1), tissue(2)]
    found = alike([known[1][10:190, 12:228], tissue(3)], known)
    assert list(found) == list(RULES)
    np.testing.assert_array_equal(found[RULES[0]], [True, False])
    for strict, loose in pairwise(RULES):
        assert not (found[strict] & ~found[loose]).any()


def test_test_images_that_resemble_only_each_other_are_kept() -> None:
    twins = [tissue(5), tissue(5)]
    assert not alike(twins, [tissue(6)])[RULES[0]].any()


def test_figures_are_told_without_the_look_alikes_and_of_them_alone() -> None:
    dices = (0.9, 0.8, 0.1)
    rows = [Judged(f"busi/benign/{n}.png", 1, (0.1, 0.8, 0.1), d, d, d, None, False) for n, d in enumerate(dices)]
    made = told_apart(Told(rows, list("abc")), {(0.7, 10): np.array([True, True, False])})
    dice = {name: (one["images"], one["Dice, lesion images"]["value"]) for name, one in made.items()}
    assert dice == {
        "all": (3, 0.6),
        "without, above 0.7 or 10 bits": (1, 0.1),
        "these alone, above 0.7 or 10 bits": (2, 0.85),
    }
    nothing = told_apart(Told(rows, list("abc")), {(0.7, 10): np.zeros(3, bool)})
    assert nothing["these alone, above 0.7 or 10 bits"] == {"images": 0}
