"""Routes with hours, and fallbacks, over a whole node: what may wait, waits and says so; what may not, never does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydicom import Dataset
from starlette.testclient import TestClient

from config import Config, load, problems
from models import catalogue
from pacs_node.facts import OVERDUE_AFTER_S, NodeFacts
from pacs_node.flow import with_fallbacks
from pacs_node.ledger import Ledger
from pacs_node.node import Node
from pacs_node.records import STAT, Evidence, Instance, Job, OpenSeries
from pacs_node.settings_trial import Trial
from pacs_node.web.app import create_app
from tests.factories import us_image

NOON = datetime(2026, 6, 3, 10, 0, tzinfo=UTC)  # a Wednesday, 12:00 in Berlin
WORDS = "waits for the hours of its route, 19:00-07:00, from 2026-06-03 19:00 CEST on"
TOML = """
[node]
data_dir = "data"
[jobs]
time_zone = "Europe/Berlin"
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "night"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["results"]
hours = "19:00-07:00"
"""
REST = """
[[route]]
name = "rest"
match = { Modality = ["US", "CT"] }
pipeline = "breast-us"
send_to = ["results"]
fallback = true
options = { threads = 1 }
"""


class Story:
    """A node to which ultrasound series come; what would begin is asked for, and nothing runs."""

    def __init__(self, folder: Path, toml: str = TOML) -> None:
        self.folder, self.time, self.number = folder, NOON, 0
        self.node = Node(self.config(toml), now=self.now)
        self.ledger, self.facts = self.node.ledger, NodeFacts(self.node, monotonic=lambda: self.time.timestamp())
        self.ledger.migrate()

    def config(self, toml: str) -> Config:
        (self.folder / "node.toml").write_text(toml)
        return load(self.folder / "node.toml", catalogue())

    def now(self) -> datetime:
        return self.time

    def receive(self, **tags: Any) -> list[Job]:
        self.number += 1
        image: Dataset = us_image(name=f"series {self.number}")
        for keyword, value in tags.items():
            setattr(image, keyword, value)
        path = self.folder / f"{self.number}.dcm"
        image.save_as(path, enforce_file_format=True)
        uid, study = str(image.SeriesInstanceUID), str(image.StudyInstanceUID)
        uids = (str(image.SOPInstanceUID), str(image.SOPClassUID), uid, study)
        syntax = str(image.file_meta.TransferSyntaxUID)
        self.ledger.take_in(Instance(*uids, syntax, path, path.stat().st_size, self.time, "a", "US1"))
        return self.node.flow.close(OpenSeries(uid, study, Evidence(self.time, 1), ("US1",)), "quiet")

    def due(self, most: int = 9) -> list[str]:
        """What may begin now."""
        due = self.ledger.due_jobs(self.time, {"infer": most, "send": most}, 3600, self.node.off_peak.closed())
        return [job.id for job in due]

    def wire(self, toml: str) -> None:
        """Other settings, while it runs."""
        config = self.config(toml)
        self.node.stages.wire(self.node.stages.wiring(config))
        self.node.config = config

    def page(self, address: str) -> str:
        app = create_app(self.facts, CollectorRegistry(), ["testserver"], None)
        return TestClient(app).get(address, headers={"accept": "text/html"}).text


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    yield story
    story.node.stop()


def test_what_is_not_urgent_waits_for_its_hours(story: Story) -> None:
    [low] = story.receive(RequestedProcedurePriority="LOW")
    [routine] = story.receive()
    [high] = story.receive(RequestedProcedurePriority="HIGH")
    [stat] = story.receive(RequestedProcedurePriority="STAT")
    assert story.due() == [stat.id, high.id]
    assert story.due(1) == [stat.id], "of the first of all, not of those that wait"
    story.time = datetime(2026, 6, 3, 16, 59, 59, tzinfo=UTC)
    assert story.due() == [stat.id, high.id]
    story.time += timedelta(seconds=1)
    assert story.due() == [stat.id, high.id, routine.id, low.id]
    story.time = datetime(2026, 6, 4, 5, 0, tzinfo=UTC)
    assert story.due() == [stat.id, high.id]


def test_those_that_wait_hold_up_nothing_else_of_their_priority(story: Story) -> None:
    """Hundreds of them are before it in the queue."""
    for _ in range(12):
        story.receive()
    story.wire(TOML + REST.replace("fallback = true", "").replace('["US", "CT"]', '"US"').replace("rest", "day"))
    jobs = story.receive()
    [day] = [job.id for job in jobs if job.route == "day"]
    assert story.due(1) == [day]


def test_it_is_said_what_a_job_waits_for(story: Story) -> None:
    [job] = story.receive()
    shown = story.facts.series(job.series_uid)
    assert shown is not None
    assert [each["rests"] for each in shown["jobs"]] == [WORDS]
    [queue] = story.facts.queue(9)
    assert [(each["job"], each["place"], each["why"]) for each in queue["jobs"]] == [(job.id, None, WORDS)]
    assert WORDS in story.page(f"/series/{job.series_uid}")
    assert WORDS in story.page("/queue")
    story.time = NOON + timedelta(hours=8)
    shown = story.facts.series(job.series_uid)
    assert shown is not None
    assert [each["rests"] for each in shown["jobs"]] == [None]
    [queue] = story.facts.queue(9)
    assert [each["place"] for each in queue["jobs"]] == [1]


def test_health_knows_that_it_waits_and_not_that_it_is_stuck(story: Story) -> None:
    story.receive()
    for hours in (0, 1, 3, 6.9, 7.01, 7.9):  # its hours begin after seven
        story.time = NOON + timedelta(hours=hours)
        assert not story.facts._late()["is overdue"], hours
        assert not [why for why in story.facts.health()["reasons"] if "overdue" in why], hours
    story.time = NOON + timedelta(hours=6.9)
    assert story.facts.health()["status"] == "ok"
    infer_s = story.node.config.jobs.infer_timeout_s
    story.time = NOON + timedelta(hours=7, seconds=OVERDUE_AFTER_S + infer_s + 1)
    assert [why for why in story.facts.health()["reasons"] if "stands still" in why], "nobody works in its hours"


def test_what_waits_has_no_age(story: Story) -> None:
    story.receive()
    story.time = NOON + timedelta(hours=5)
    [queue] = story.facts.system()["backlog"]
    assert (queue["waiting"], queue["oldest_at"], queue["oldest_s"]) == (1, None, 0.0)
    story.receive(RequestedProcedurePriority="STAT")
    story.time += timedelta(seconds=30)
    [queue] = story.facts.system()["backlog"]
    assert (queue["waiting"], queue["oldest_s"]) == (2, 30.0)
    story.time = NOON + timedelta(hours=9)
    [queue] = story.facts.system()["backlog"]
    assert queue["oldest_s"] == 9 * 3600.0


def test_what_was_handed_out_before_its_hours_ended_does_not_begin_after(story: Story) -> None:
    [job] = story.receive()
    story.time = datetime(2026, 6, 4, 5, 0, tzinfo=UTC)
    story.node.flow.run(job.id, job.generation, job.attempt)
    now = story.ledger.job(job.id)
    assert now is not None
    assert (now.state, now.generation, now.attempt, now.crashes) == ("queued", 2, 1, 0)
    story.time = datetime(2026, 6, 4, 17, 0, tzinfo=UTC)
    assert story.due() == [job.id]


def test_a_job_that_takes_its_worker_down_is_given_up_however_many_nights_it_has(story: Story) -> None:
    [job] = story.receive()
    for night in range(10):
        story.time = NOON + timedelta(days=night, hours=8)
        now = story.ledger.job(job.id)
        assert now is not None
        if now.state == "failed":
            break
        if now.crashes >= story.node.config.jobs.poison_limit:
            story.node.flow.run(now.id, now.generation, now.attempt)
            continue
        assert story.ledger.begin(now, "w", story.time)
        running = story.ledger.job(job.id)
        assert running is not None
        again = story.ledger.take_over(running, "worker w has died", story.time)
        assert again is not None
        story.time += timedelta(hours=14)
        story.node.flow.run(again.id, again.generation, again.attempt)
    ended = story.ledger.job(job.id)
    assert ended is not None
    assert ended.state == "failed"
    assert "the worker died" in ended.reason


def test_new_hours_are_those_of_what_waits_already(story: Story) -> None:
    [job] = story.receive()
    assert story.due() == []
    story.wire(TOML.replace("19:00-07:00", "Wed 12:00-13:00"))
    assert story.due() == [job.id]
    story.wire(TOML.replace("19:00-07:00", "Thu"))
    assert story.due() == []
    story.wire(TOML.replace('hours = "19:00-07:00"', ""))
    assert story.due() == [job.id]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('"19:00-07:00"', '"19-7"', "node.toml:14: 'hours' in [[route]] 'night': '19-7' is no span of hours, such as"),
        ('"19:00-07:00"', "19", "'hours' in [[route]] 'night' must be a text in quotes, not 19"),
        ('"19:00-07:00"', '"19:00-07:00"\npriority = "stat"', "[[route]] 'night': hours are for what is not urgent"),
        ("Europe/Berlin", "Europe/Berlim", "'time_zone' in [jobs]: no time zone 'Europe/Berlim' is known here"),
        ("Europe/Berlin", "../etc/passwd", "'time_zone' in [jobs]: no time zone"),
        ("Europe/Berlin", "Europe", "'time_zone' in [jobs]: no time zone"),
    ],
)
def test_check_says_what_is_wrong_with_hours(tmp_path: Path, before: str, after: str, words: str) -> None:
    (tmp_path / "node.toml").write_text(TOML.replace(before, after))
    said = [str(each) for each in problems(tmp_path / "node.toml", catalogue()) if each.severity == "error"]
    assert any(words in line for line in said), said


# Fallbacks ------------------------------------------------------------------------------------------------------------


def test_a_fallback_takes_what_no_other_route_takes(story: Story) -> None:
    story.wire(TOML.replace('Modality = "US"', 'Modality = "US", Manufacturer = "A"') + REST)
    assert [job.route for job in story.receive(Manufacturer="A")] == ["night"]
    jobs = story.receive(Manufacturer="B")
    assert [job.route for job in jobs] == ["rest"]
    story.wire(TOML + REST)
    [job] = story.receive()
    shown = story.facts.series(job.series_uid)
    assert shown is not None
    assert {each["rule"]: each["why_not"] for each in shown["rules"]} == {
        "night": None,
        "rest": "is a fallback, and 'night' takes the series",
    }
    assert "is a fallback, and &#39;night&#39; takes the series" in story.page(f"/series/{job.series_uid}")


def test_fallbacks_do_not_count_against_each_other_and_say_their_own_reason_first() -> None:
    fallbacks = [("a", True, False, None), ("b", True, False, "no")]
    late = "is a fallback, and 'c' takes the series"
    assert with_fallbacks([*fallbacks, ("c", False, False, "no")]) == [None, "no", "no"]
    assert with_fallbacks([*fallbacks, ("c", False, False, None)]) == [late, "no", None]
    assert with_fallbacks([*fallbacks, ("c", False, True, None)]) == [None, "no", None], (
        "nobody gets what a shadow says"
    )


def test_a_fallback_takes_no_results(story: Story) -> None:
    """The loop guard is no route that takes it."""
    story.wire(TOML + REST)
    assert story.receive(Manufacturer="pacs-node") == []


def test_it_is_tried_beforehand(story: Story) -> None:
    story.receive(Manufacturer="B")
    trial = Trial(story.node.stages, story.ledger, story.now)
    then = story.config(TOML + REST)
    said = {each.route: each for each in trial.on_file(story.folder / "1.dcm", then)}
    assert said["night"].terms == ("runs in its hours, 19:00-07:00, unless it is urgent",)
    assert (said["rest"].then, said["rest"].change) == ("is a fallback, and 'night' takes the series", "")
    then = story.config(TOML.replace('Modality = "US"', 'Modality = "US", Manufacturer = "A"') + REST)
    said = {each.route: each for each in trial.on_file(story.folder / "1.dcm", then)}
    assert (said["night"].change, said["rest"].change) == ("less", "more")
    assert said["rest"].terms == ("no other route takes it, and this one is a fallback",)


def test_check_warns_of_a_fallback_that_never_runs(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(TOML.replace('match = { Modality = "US" }', "match = {}") + REST)
    said = [str(each) for each in problems(tmp_path / "node.toml", catalogue()) if "fallback" in str(each)]
    never = "[[route]] 'rest' is a fallback and never runs: [[route]] 'night' takes every series"
    assert said == [f"node.toml:21: warning: {never}"]


def test_an_urgent_job_is_what_records_and_sql_both_say(ledger: Ledger) -> None:
    jobs = [
        Job(f"{kind}{number}{route}", kind, "1.2", "1.3", 1, "p", route, number, NOON, destination=place)
        for kind, place in (("infer", None), ("send", "x"))
        for number in (1, 3, 5, 7)
        for route in ("a", "b")
    ]
    with ledger._begin() as db:
        for job in jobs:
            ledger._add_job(db, job)
    due = {job.id for job in ledger.due_jobs(NOON, {"infer": 99, "send": 99}, 3600, {"a"})}
    assert due == {job.id for job in jobs if not job.rests({"a"})}
    assert {job.id for job in jobs} - due == {"infer5a", "infer7a"}


def test_rest_that_is_meant_is_in_no_wait_and_no_turnaround_and_has_a_figure_of_its_own(story: Story) -> None:
    [job] = story.receive()
    assert story.node.off_peak.rested_s("night", story.time - timedelta(days=1)) == 43200.0, "twelve hours of a day"
    story.time = datetime(2026, 6, 3, 17, 2, tzinfo=UTC)  # two minutes after the hours have begun
    rested_s = 7 * 3600.0
    assert story.node.off_peak.rested_s("night", job.created_at) == rested_s
    assert story.node.off_peak.rested_s("no hours", job.created_at) == 0.0
    assert story.ledger.begin(job, "w", story.time, rested_s)
    send = story.node.flow._send_job(job, "results")
    assert story.ledger.finish(job, "done", "", story.time, follow_up=[send])
    assert story.ledger.begin(send, "w", story.time)
    story.time += timedelta(minutes=1)
    assert story.ledger.finish(send, "done", "", story.time)
    seconds = {what: took for (what, _), (_, took) in story.ledger.durations().items()}
    assert seconds.items() >= {"wait": 120.0, "rest": rested_s, "turnaround": 180.0}.items()
    [series] = story.ledger.series_list(9)
    assert series["turnaround_s"] == 180.0


def test_a_rest_counts_once_however_often_a_job_begins_and_a_failure_is_none(story: Story) -> None:
    [job] = story.receive()
    rested_s = 7 * 3600.0
    story.time = datetime(2026, 6, 3, 17, 0, tzinfo=UTC)
    for _ in range(3):
        assert story.ledger.begin(job, "w", story.time, rested_s)
        story.ledger.put_back(job, "stopped", story.time)
        [job] = [each for each in [story.ledger.job(job.id)] if each is not None]
    assert story.ledger.begin(job, "w", story.time, rested_s)
    assert story.ledger.finish(job, "failed", "no", story.time)
    story.time += timedelta(days=3)  # it lies failed: nobody meant that
    assert story.ledger.run_again(job.id, story.time)
    [job] = [each for each in [story.ledger.job(job.id)] if each is not None]
    assert story.ledger.begin(job, "w", story.time, story.node.off_peak.rested_s("night", job.created_at))
    send = story.node.flow._send_job(job, "results")
    assert story.ledger.finish(job, "done", "", story.time, follow_up=[send])
    assert story.ledger.begin(send, "w", story.time)
    assert story.ledger.finish(send, "done", "", story.time)
    seconds = {what: (count, took) for (what, _), (count, took) in times(story).items()}
    assert seconds["rest"] == (1, rested_s)
    assert seconds["turnaround"] == (1, 3 * 86400.0)


def test_what_is_made_urgent_has_rested_until_then(story: Story) -> None:
    [job] = story.receive()
    story.time = datetime(2026, 6, 3, 16, 0, tzinfo=UTC)
    assert story.facts.hurry(job.id, STAT, "ada") is None
    story.time += timedelta(minutes=5)
    [job] = [each for each in [story.ledger.job(job.id)] if each is not None]
    assert not job.may_rest
    assert story.ledger.begin(job, "w", story.time)
    send = story.node.flow._send_job(job, "results")
    assert story.ledger.finish(job, "done", "", story.time, follow_up=[send])
    assert story.ledger.begin(send, "w", story.time)
    assert story.ledger.finish(send, "done", "", story.time)
    assert [took for (what, _), took in times(story).items() if what == "turnaround"] == [(1, 300.0)]


def times(story: Story) -> dict[tuple[str, str], tuple[int, float]]:
    """Of each duration how many there were, and their sum in seconds."""
    return {key: (steps[-1], took) for key, (steps, took) in story.ledger.durations().items()}


def test_a_job_that_is_run_says_how_long_it_has_rested(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[float] = []
    monkeypatch.setattr(Ledger, "begin", lambda ledger, job, executor, now, rested_s: said.append(rested_s))
    [routine] = story.receive()
    [stat] = story.receive(RequestedProcedurePriority="STAT")
    story.time = datetime(2026, 6, 3, 17, 0, tzinfo=UTC)
    for job in (routine, stat):
        story.node.flow.run(job.id, job.generation, job.attempt)
    assert said == [7 * 3600.0, 0.0]
