"""The books of the soak find what they are there to find."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.fault.books import Arrived, Books, series_of
from tests.fault.cheap import figure_of
from tests.fault.page import FUZZ, PAGE, page, section
from tests.fault.results import load, measured_on
from tests.harness import ROOT

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


@pytest.mark.parametrize("found", [[], ["its memory grew by 86 MB"], ["one", "two"]])
def test_the_page_says_what_a_run_found_and_on_what(found: list[str]) -> None:
    entry = {"crashes": 0, "found": found, "load_began": load(), **measured_on()}
    told = "\n".join(section("", {"crashes": "crashes"}, entry))
    assert [line for line in told.splitlines() if line.startswith("- ")] == [f"- {each}" for each in found]
    assert ("Nothing was found." in told) is not bool(found)
    assert f"{os.cpu_count()} cores, load {entry['load_began']:.1f} when it began, {entry['load']:.1f} when it" in told
    assert entry["commit"] in told


def test_every_run_puts_its_figures_where_the_page_is_written_from() -> None:
    [line] = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m tests.fuzz" in line]
    assert f"--json {FUZZ.relative_to(ROOT)}" in line
