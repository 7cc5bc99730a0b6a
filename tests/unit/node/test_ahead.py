"""Judging ahead: the same verdict as at closing, of the same images by the same rules, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from config import load
from dicom_sr.reading import weight
from models import catalogue
from pacs_node.ahead import MORE, SILENT_S, Ahead
from pacs_node.assemble.series import Evidence
from pacs_node.node import Node
from pacs_node.records import Instance, OpenSeries
from tests.factories import us_image

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
LONG = timedelta(seconds=SILENT_S)


def images(count: int, series: str = "1.2") -> list[Instance]:
    return [
        Instance(f"{series}.{n}", "c", series, "1", "t", Path("/pack"), 10, NOON, "a", "CT1", offset=10 * n)
        for n in range(count)
    ]


def silent(count: int, series: str = "1.2") -> OpenSeries:
    return OpenSeries(series, "1", Evidence(arrived=count, last_arrival=NOON - LONG, released=True), ("CT1",))


def test_what_is_answered_is_the_judgement_of_exactly_these_images() -> None:
    ahead = Ahead(lambda instances: [each.sop_instance_uid for each in instances])
    known = images(3)
    ahead.look(silent(3), known)
    assert ahead.answer(images(3)) == [each.sop_instance_uid for each in known]
    moved = replace(known[2], offset=5)
    for other in (known[:2], images(4), known[::-1], [*known[:2], moved], images(3, "1.3"), []):
        assert ahead.answer(other) is None
    ahead.forget()
    assert ahead.answer(known) is None


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_a_series_that_trickles_in_is_judged_of_at_most_twice_its_images(portions: list[int]) -> None:
    judged: list[int] = []
    ahead = Ahead(lambda instances: judged.append(len(instances)))
    arrived = 0
    for portion in portions:
        arrived += portion
        due = ahead.due([silent(arrived)], NOON)
        if due is not None:
            ahead.look(due, images(arrived))
    assert judged[0] == portions[0]
    assert sum(judged) <= MORE * arrived
    assert all(later >= MORE * former for former, later in pairwise(judged))


def test_only_what_is_silent_is_judged_and_what_is_closed_is_forgotten() -> None:
    ahead: Ahead[int] = Ahead(len)
    assert ahead.due([silent(2)], NOON - timedelta(milliseconds=1)) is None
    ahead.look(silent(2), images(2))
    assert ahead.due([silent(2)], NOON) is None
    assert ahead.due([silent(2, "1.3"), silent(2)], NOON) == silent(2, "1.3")
    assert ahead.answer(images(2)) == 2
    ahead.due([], NOON)
    assert ahead.answer(images(2)) is None


def test_an_error_is_left_to_the_closing() -> None:
    def judge(instances: Sequence[Instance]) -> int:
        raise ZeroDivisionError

    ahead = Ahead(judge)
    ahead.look(silent(2), images(2))
    assert ahead.answer(images(2)) is None
    assert ahead.due([silent(3)], NOON) is None, "not tried without end"


def test_what_is_kept_of_all_series_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender who leaves series with large headers open would fill the memory; closing judges them as ever."""
    monkeypatch.setattr("pacs_node.ahead.MOST_KEPT", 10)
    ahead: Ahead[int] = Ahead(len, weigh=lambda judged: judged)
    kept = {"1.1": 4, "1.2": 5, "1.3": 2, "1.4": 1}
    for uid, count in kept.items():
        ahead.look(silent(count, uid), images(count, uid))
    answers = {uid: ahead.answer(images(count, uid)) for uid, count in kept.items()}
    assert answers == {"1.1": 4, "1.2": 5, "1.3": None, "1.4": 1}
    assert ahead.due([silent(2, "1.3")], NOON) is None, "not judged again and again"
    ahead.look(silent(2, "1.3"), images(2, "1.3"))
    assert ahead.answer(images(2, "1.3")) == 2, "the others are closed"


def test_a_header_weighs_what_its_items_do() -> None:
    light, heavy, long = us_image(), us_image(), us_image()
    heavy.RequestAttributesSequence = [Dataset() for _ in range(1000)]
    for item in heavy.RequestAttributesSequence:
        item.ScheduledProcedureStepID = "1"
    long.ImageComments = "x" * 10_000
    assert weight(heavy) - weight(light) > 1000 * 64
    assert weight(long) - weight(light) >= 10_000


TOML = """
[infer]
tune = false
[assemble]
quiet_s = 600.0
quiet_unreleased_s = 600.0
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["results"]
"""


class Waiting:
    """A node whose series have come, and are waited for; every call of judging is noted."""

    def __init__(self, folder: Path) -> None:
        (folder / "node.toml").write_text(TOML)
        self.file = folder / "node.toml"
        self.node = Node(load(self.file, catalogue()), now=lambda: NOON)
        self.node.ledger.migrate()
        self.folder, self.judged = folder, 0
        judge = self.node.stages.judge

        def counted(headers: Sequence[object]) -> object:
            self.judged += 1
            return judge(headers)  # type: ignore[arg-type]

        self.node.stages.judge = counted  # type: ignore[method-assign, assignment]

    def receive(self, name: str) -> None:
        image = us_image(SOPInstanceUID=f"2.25.{len(name)}")
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        path = self.folder / f"{name}.dcm"
        image.save_as(path, enforce_file_format=True)
        uids = [str(image[k].value) for k in ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")]
        self.node.ledger.take_in(Instance(*uids, "1.2.840.10008.1.2.1", path, 1, NOON, "a", "US1"))  # type: ignore[call-arg]
        self.series = uids[2]

    def look(self) -> None:
        assert self.node.flow.complete(frozenset()) == []
        due = self.node.flow.may_be_complete()
        if due is not None:
            self.node.flow.judge_ahead(due)

    def fall_silent(self) -> None:
        """By the clock that silence is measured with."""
        self.look()
        assert self.judged == 0, "it is not silent yet"
        clock = self.node.flow.silence.monotonic
        self.node.flow.silence.monotonic = lambda: clock() + 1
        self.look()
        assert self.judged == 1

    def close(self) -> dict[str, object]:
        [series] = self.node.flow.receiving(frozenset())
        self.node.flow.close(series, "told so")
        facts = self.node.ledger.series(series.series_uid)
        assert facts is not None
        assert facts["state"] == "closed"
        return facts


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    waiting = Waiting(tmp_path)
    yield waiting
    waiting.node.stop()


def test_closing_judges_nothing_again(waiting: Waiting) -> None:
    waiting.receive("a")
    waiting.fall_silent()
    waiting.look()
    facts = waiting.close()
    assert waiting.judged == 1
    assert [(rule["rule"], rule["matched"]) for rule in facts["rules"]] == [("breast", True)]  # type: ignore[attr-defined]


def test_another_image_is_judged_with_the_others(waiting: Waiting) -> None:
    waiting.receive("a")
    waiting.fall_silent()
    waiting.receive("aa")
    facts = waiting.close()
    assert waiting.judged == 2
    assert facts["instances"] == 2


def test_other_rules_are_asked_again(waiting: Waiting) -> None:
    waiting.receive("a")
    waiting.fall_silent()
    waiting.file.write_text(TOML.replace('Modality = "US"', 'Modality = "US", BodyPartExamined = "ABDOMEN"'))
    waiting.node.take_up(load(waiting.file, catalogue()))
    facts = waiting.close()
    assert facts["jobs"] == []
    assert [(rule["rule"], rule["matched"]) for rule in facts["rules"]] == [("breast", False)]  # type: ignore[attr-defined]
