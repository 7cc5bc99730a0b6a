"""FROC by LUNA16's rule, against a brute force that tries every threshold, and worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.evaluation.froc import RATES, Mark, events_of, froc


@dataclass(frozen=True)
class Ball:
    centre_zyx: tuple[float, float, float]
    diameter_mm: float


def at(x: float, score: float) -> Mark:
    return Mark((0.0, 0.0, x), score)


def ball(x: float, diameter: float = 6.0) -> Ball:
    return Ball((0.0, 0.0, x), diameter)


def test_worked_by_hand() -> None:
    """Two scans, three lesions. Marks by score: .9 hit, .8 false, .7 hit again (ignored), .6 hit, .5 false."""
    found = [[at(1, 0.9), at(-2, 0.7), at(50, 0.8)], [at(20, 0.6), at(90, 0.5)]]
    truth = [[ball(0)], [ball(20), ball(60)]]
    result = froc(found, truth, rounds=10)
    assert (result.scans, result.lesions) == (2, 3)
    assert result.thresholds.tolist() == [0.9, 0.8, 0.6, 0.5]
    assert result.false_positives.tolist() == [0, 0.5, 0.5, 1.0]
    assert result.sensitivity == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert [result.at[rate].value for rate in RATES] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert result.cpm.value == pytest.approx((1 / 3 * 2 + 2 / 3 * 5) / 7)


def test_the_radius_is_the_border() -> None:
    """A mark at the radius itself is outside: LUNA16's script compares with <."""
    inside, outside = (froc([[at(x, 1.0)]], [[ball(0)]], rounds=1).at[8].value for x in (2.999, 3.0))
    assert (inside, outside) == (1.0, 0.0)


def test_one_mark_may_hit_two_lesions() -> None:
    assert froc([[at(1, 0.5)]], [[ball(0), ball(2)]], rounds=1).cpm.value == 1.0


def test_irrelevant_findings_count_neither_way() -> None:
    found, truth = [[at(0, 0.5), at(30, 0.9)]], [[ball(0)]]
    assert froc(found, truth, rounds=1).at[1 / 8].value == 0.0
    assert froc(found, truth, irrelevant=[[ball(30)]], rounds=1).at[1 / 8].value == 1.0


def test_false_positives_are_counted_per_whole_scan() -> None:
    """Two halves of a scan with a false positive each: two per scan, not one."""
    found, truth = [[at(0, 0.5), at(50, 0.9)], [at(50, 0.9)]], [[ball(0)], []]
    assert froc(found, truth, rounds=1).at[1.0].value == 1.0
    halves = froc(found, truth, shares=[0.5, 0.5], rounds=1)
    assert halves.at[1.0].value == 0.0
    assert halves.at[2.0].value == 1.0
    assert halves.false_positives.tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="share"):
        froc(found, truth, shares=[0.5, 0.0])


def test_equal_scores_come_together() -> None:
    """No threshold lies between equal scores: the lesion comes only with its 8 false positives, whatever the order."""
    false = [at(100 + 10 * i, 0.5) for i in range(8)]
    for marks in ([at(0, 0.5), *false], [*false, at(0, 0.5)]):
        result = froc([marks], [[ball(0)]], rounds=1)
        assert [result.at[rate].value for rate in RATES] == [0, 0, 0, 0, 0, 0, 1]


def test_nothing_found() -> None:
    result = froc([[], []], [[ball(0)], []], rounds=5)
    assert result.cpm.value == 0.0
    assert result.thresholds.size == 0


@pytest.mark.parametrize(
    ("found", "truth", "word"),
    [([[]], [], "1 scans"), ([[]], [[]], "no scan has a lesion"), ([[at(0, np.nan)]], [[ball(0)]], "score")],
)
def test_what_cannot_be_measured_is_refused(found: list, truth: list, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        froc(found, truth)


@st.composite
def scans(draw: st.DrawFn) -> list[tuple]:
    """Marks with few distinct scores, lesions and irrelevant findings of one to four scans, crowded."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def place() -> tuple[float, float, float]:
        z, y, x = random.integers(0, 8, 3)
        return float(z), float(y), float(x)

    def balls(count: int) -> list[Ball]:
        return [Ball(place(), float(random.uniform(1, 8))) for _ in range(count)]

    return [
        (
            [Mark(place(), float(random.choice([0.1, 0.2, 0.5, 0.9]))) for _ in range(draw(st.integers(0, 12)))],
            balls(draw(st.integers(0 if scan else 1, 3))),
            balls(draw(st.integers(0, 1))),
        )
        for scan in range(draw(st.integers(1, 4)))
    ]


def brute_force(scans: Sequence[tuple], rate: float) -> float:
    """Every threshold by itself, mark by mark, lesion by lesion."""

    def hits(mark: Mark, sphere: Ball) -> bool:
        return sum((a - b) ** 2 for a, b in zip(mark.centre_zyx, sphere.centre_zyx, strict=True)) ** 0.5 < (
            sphere.diameter_mm / 2
        )

    best = 0.0
    for threshold in {mark.score for found, _, _ in scans for mark in found}:
        kept = [([m for m in found if m.score >= threshold], truth, neither) for found, truth, neither in scans]
        hit = sum(any(hits(m, one) for m in found) for found, truth, _ in kept for one in truth)
        false = sum(
            not any(hits(m, one) for one in [*truth, *neither]) for found, truth, neither in kept for m in found
        )
        if false / len(scans) <= rate:
            best = max(best, hit / sum(len(truth) for _, truth, _ in scans))
    return best


@settings(deadline=None)
@given(scans())
@pytest.mark.filterwarnings("ignore:All-NaN")  # a draw of two scans without lesions
def test_as_brute_force(scans: list[tuple]) -> None:
    found, truth, neither = ([*column] for column in zip(*scans, strict=True))
    result = froc(found, truth, irrelevant=neither, rounds=2)
    for rate in RATES:
        assert result.at[rate].value == pytest.approx(brute_force(scans, rate))
    assert result.cpm.value == pytest.approx(np.mean([brute_force(scans, rate) for rate in RATES]))
    assert (np.diff(result.false_positives) >= 0).all()
    assert (np.diff(result.sensitivity) >= 0).all()


def test_bootstraps_draw_scans() -> None:
    """Half of the scans are found: the interval holds one half and is as wide as a binomial's; the seed fixes it."""
    found = [[at(0, 1.0)] if i % 2 else [] for i in range(40)]
    truth = [[ball(0)]] * 40
    first, again = froc(found, truth).cpm, froc(found, truth).cpm
    assert first == again
    assert first.value == 0.5
    assert first.low == pytest.approx(0.5 - 1.96 * 0.079, abs=0.03)
    assert first.high == pytest.approx(0.5 + 1.96 * 0.079, abs=0.03)
    together = froc(found, truth, groups=["a", "b"] * 20).cpm  # two patients: all, none, or half is found
    assert (together.low, together.high) == (0.0, 1.0)


def test_pasted_lesions_are_drawn_by_their_owners_crossed_with_the_scans() -> None:
    """Twenty scans show the nodules of two patients, one always found: the scans agree, the patients do not."""
    found, truth = [[at(0, 1.0)]] * 20, [[ball(0), ball(50)]] * 20
    assert froc(found, truth).cpm == froc(found, truth, groups=["a", "b"] * 10).cpm  # as if all were certain
    crossed = froc(found, truth, lesion_groups=[["p", "q"]] * 20).cpm
    assert (crossed.value, crossed.low, crossed.high) == (0.5, 0.0, 1.0)
    own = froc(found, truth, lesion_groups=[[f"p{i}", f"q{i}"] for i in range(20)]).cpm
    assert 0 < own.low < 0.5 < own.high < 1


def test_a_false_positive_is_drawn_with_its_scan_and_not_with_an_owner() -> None:
    found = [[at(0, 0.5), at(90, 0.9)], [at(0, 0.5)]]
    one_owner = froc(found, [[ball(0)], [ball(0)]], lesion_groups=[["p"], ["p"]]).at[1 / 8]
    assert (one_owner.value, one_owner.low, one_owner.high) == (0.0, 0.0, 1.0)  # without the first scan all is found


def test_each_pasted_lesion_has_an_owner() -> None:
    with pytest.raises(ValueError, match="name one for each lesion"):
        froc([[]], [[ball(0), ball(9)]], lesion_groups=[["p"]])


@settings(deadline=None)
@given(scans())
@pytest.mark.filterwarnings("ignore:All-NaN")
def test_lesions_drawn_with_their_scans_give_the_plain_curve(scans: list[tuple]) -> None:
    """Lesions that count as often as their scans give the plain curve: each hit knows its lesion."""
    found, truth, neither = ([*column] for column in zip(*scans, strict=True))
    events = events_of(found, truth, neither, [1.0] * len(truth))
    times = np.arange(1, len(truth) + 1)
    plain, crossed = events.curve(times), events.curve(times, np.repeat(times, events.lesions))
    for one, other in zip(plain, crossed, strict=True):
        np.testing.assert_allclose(one, other)
