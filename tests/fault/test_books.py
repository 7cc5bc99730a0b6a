"""The books of the soak find what they are there to find."""

from __future__ import annotations

from dataclasses import replace

from tests.fault.books import Arrived, Books, series_of
from tests.fault.cheap import figure_of
from tests.fault.page import PAGE, page

IMAGES = series_of("book", range(1, 4), size=8)
ALL = frozenset(each.sop_instance_uid for each in IMAGES)


def books() -> Books:
    told = {each.sop_instance_uid: each for each in IMAGES}
    return Books(sent=dict(told), told=told)


def report(uid: str, images: frozenset[str] = ALL, replaces: frozenset[str] = frozenset()) -> Arrived:
    pixels = (each.pixels for each in IMAGES if each.sop_instance_uid in images)
    return Arrived(uid, images, figure_of(pixels), replaces, {"content"}, 1)


def balance(*reports: Arrived) -> tuple[int, int, int]:
    """(lost, duplicate, differing)"""
    known, arrived = books(), {each.uid: each for each in reports}
    return len(known.missing(arrived)), len(known.duplicates(arrived)), len(known.differing(arrived))


def test_the_balance() -> None:
    two = frozenset(sorted(ALL)[:2])
    assert balance(report("1")) == (0, 0, 0)
    assert balance() == (3, 0, 0)
    assert balance(report("1", two)) == (1, 0, 0)
    assert balance(report("1"), report("2")) == (0, 1, 0), "beside one that says the same"
    assert balance(report("1", two), report("2")) == (0, 1, 0), "both are in force"
    assert balance(report("1", two), report("2", replaces=frozenset("1"))) == (0, 0, 0)
    assert balance(report("1"), report("2", replaces=frozenset("1"))) == (0, 1, 0), "replaced for nothing"
    assert balance(replace(report("1"), figure=1.0)) == (0, 0, 1)
    assert balance(replace(report("1"), contents={"one", "other"})) == (0, 0, 1)
    assert balance(replace(report("1"), times=2)) == (0, 0, 0), "the same object may come again"


def test_the_page_is_written_from_the_results() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.fault.page"
