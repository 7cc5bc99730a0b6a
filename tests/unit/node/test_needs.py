"""A route that needs other series of the study: it waits for them, across restarts, and runs exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from pydicom import Dataset

from config import load
from models import catalogue
from pacs_node.facts import NodeFacts
from pacs_node.node import Node
from pacs_node.records import Evidence, Instance, Job, OpenSeries
from pacs_node.route import missing
from pacs_node.settings_trial import Trial
from tests.factories import us_image
from tests.unit.node.test_shadow import Model

TOML = """
[node]
data_dir = "data"
[infer]
tune = false
[[peer]]
name = "files"
folder = "out"
[[route]]
name = "both"
match = {{ SeriesDescription = "left" }}
pipeline = "breast-us"
send_to = ["files"]
[route.needs]
series = [{series}]
wait_minutes = 60
if_incomplete = "{otherwise}"
"""
RIGHT = '{ SeriesDescription = "right", Modality = "US" }'
STUDY = "2.25.77"
KINDS = ("infer", "send", "confirm", "report")


class Story:
    """A node to which the series of one study come, moved by hand."""

    def __init__(self, folder: Path, series: str = RIGHT, otherwise: str = "skip") -> None:
        self.folder, self.time, self.images = folder, datetime(2026, 1, 2, 3, 0, tzinfo=UTC), 0
        (folder / "node.toml").write_text(TOML.format(series=series, otherwise=otherwise))
        self.start()
        self.node.ledger.migrate()

    def start(self) -> None:
        self.node = Node(load(self.folder / "node.toml", catalogue()), now=self.now, file=self.folder / "node.toml")
        self.node.stages.inference = Model()  # type: ignore[assignment]
        self.facts, self.ledger = NodeFacts(self.node), self.node.ledger

    def restart(self) -> None:
        self.node.stop()
        self.start()

    def now(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time

    def image(self, description: str, study: str = STUDY) -> Dataset:
        self.images += 1
        image = us_image()
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"2.25.{self.images}"
        image.StudyInstanceUID, image.SeriesInstanceUID = study, self.uid(description)
        image.SeriesDescription = description
        return image

    def uid(self, description: str) -> str:
        return f"2.25.1{''.join(str(ord(each)) for each in description)}"

    def arrive(self, description: str, study: str = STUDY) -> OpenSeries:
        """It is here, and not closed."""
        image = self.image(description, study)
        path = self.folder / f"{self.images}.dcm"
        image.save_as(path, enforce_file_format=True)
        uids = (str(image.SOPInstanceUID), str(image.SOPClassUID), str(image.SeriesInstanceUID), study)
        syntax = str(image.file_meta.TransferSyntaxUID)
        self.ledger.take_in(Instance(*uids, syntax, path, path.stat().st_size, self.now(), "a", "US1"))
        arrived = len(self.ledger.instances(uids[2]))
        return OpenSeries(uids[2], study, Evidence(self.now(), arrived), ("US1",))

    def come(self, description: str, study: str = STUDY) -> None:
        self.node.flow.close(self.arrive(description, study), "quiet")

    def work(self) -> list[Job]:
        """All that is due runs."""
        ran = []
        while due := self.ledger.due_jobs(self.now(), dict.fromkeys(KINDS, 1), 3600):
            ran.append(due[0])
            self.node.flow.run(due[0].id, due[0].generation, due[0].attempt)
        return ran

    def series(self, description: str = "left") -> dict[str, Any]:
        series = self.ledger.series(self.uid(description))
        assert series is not None
        return series

    def job(self) -> dict[str, Any]:
        """The one that has not been superseded: there is exactly one."""
        jobs = [job for job in self.series()["jobs"] if job["kind"] == "infer" and job["state"] != "superseded"]
        assert len(jobs) == 1
        return jobs[0]

    def sends(self) -> int:
        return len([job for job in self.series()["jobs"] if job["kind"] == "send"])


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    yield story
    story.node.stop()


LACKS = "a series with SeriesDescription right, Modality US of the study"


@pytest.mark.parametrize("order", list(permutations(["left", "right", "other"])), ids="-".join)
@pytest.mark.parametrize("restarts", [False, True])
def test_in_any_order_it_runs_once_when_all_are_here(story: Story, order: Sequence[str], restarts: bool) -> None:
    for number, description in enumerate(order, start=1):
        story.come(description)
        if restarts:
            story.restart()
        ran = [job for job in story.work() if job.kind == "infer"]
        assert bool(ran) == ({"left", "right"} <= set(order[:number]) and description != "other")
    assert (story.job()["state"], story.job()["study"], story.sends()) == ("done", "complete", 1)


def test_two_that_arrive_at_once_make_one_job(story: Story) -> None:
    both = story.arrive("left"), story.arrive("right")
    for series in both:
        story.node.flow.close(series, "quiet")
    story.work()
    assert (story.job()["state"], story.sends()) == ("done", 1)


def test_what_still_receives_is_waited_for(story: Story) -> None:
    right = story.arrive("right")
    story.come("left")
    story.work()
    assert (story.job()["state"], story.job()["reason"]) == ("queued", f"waits for {LACKS}")
    story.node.flow.close(right, "quiet")
    story.work()
    assert story.job()["state"] == "done"


def test_another_study_is_no_help(story: Story) -> None:
    story.come("right", "2.25.78")
    story.come("left")
    assert story.work() == []
    assert story.job()["study"] == "waiting"


def test_a_study_that_stays_incomplete_is_skipped_said_and_counted(story: Story) -> None:
    story.come("left")
    story.work()
    story.restart()
    story.time += timedelta(minutes=59)
    assert story.work() == []
    assert story.facts.health()["infer"]["queued"] == 1
    story.time += timedelta(minutes=2)
    story.work()
    assert (story.job()["state"], story.sends()) == ("refused", 0)
    assert story.job()["reason"] == f"skipped: {LACKS} did not come within 60 minutes"
    assert story.ledger.studies() == [("both", "skipped", 1)]
    figures = generate_latest(story.node.figures(story.facts)).decode()
    assert 'pacs_node_studies{route="both",study="skipped"} 1.0' in figures


def test_what_comes_late_is_said_and_run_when_a_person_asks(story: Story) -> None:
    story.come("left")
    story.time += timedelta(minutes=61)
    story.work()
    story.come("right")
    assert story.work() == []
    said = [event["text"] for event in story.series()["timeline"] if event["event"] == "study"]
    assert said == [f"route both: series {story.uid('right')} came after the wait had ended; run it again to have both"]
    assert story.facts.retry(story.job()["id"]) is None
    story.work()
    assert (story.job()["state"], story.job()["study"]) == ("done", "complete")


def test_it_runs_without_if_it_may_and_the_report_says_so(tmp_path: Path) -> None:
    story = Story(tmp_path, otherwise="run")
    story.come("left")
    story.work()
    assert story.job()["state"] == "queued"
    story.time += timedelta(minutes=61)
    story.work()
    assert (story.job()["state"], story.job()["study"], story.sends()) == ("done", "incomplete", 1)
    assert story.job()["warnings"] == [f"analysed without {LACKS}, which did not come in time"]
    story.node.stop()


def test_a_person_who_retries_too_early_is_told_what_is_waited_for(story: Story) -> None:
    story.come("left")
    until = story.job()["not_before"]
    assert story.facts.retry(story.job()["id"]) is None
    story.work()
    assert (story.job()["state"], story.job()["not_before"]) == ("waiting", until)
    assert story.job()["attempts"] == 1
    story.come("right")
    story.work()
    assert story.job()["state"] == "done"


def test_late_images_begin_the_wait_again_and_there_is_one_job(story: Story) -> None:
    story.come("left")
    story.time += timedelta(minutes=50)
    story.come("left")
    story.time += timedelta(minutes=50)
    assert story.work() == []
    story.come("right")
    story.work()
    assert (story.job()["state"], story.job()["revision"]) == ("done", 2)


def test_who_waits_for_a_study_is_no_trouble(story: Story) -> None:
    story.come("left")
    story.node.config = story.node.config.model_copy(
        update={"jobs": story.node.config.jobs.model_copy(update={"infer_timeout_s": 1.0})}
    )
    before = story.facts.health()["reasons"]
    with story.ledger._begin() as db:
        db.exec_driver_sql("UPDATE job SET waits_until = '2026-01-03T03:00:00+00:00', not_before = waits_until")
    story.time += timedelta(hours=5)
    assert story.facts.health()["reasons"] == before
    assert story.ledger.end_impossible_waits(story.now(), 1.0) == []


def test_an_unfit_series_is_refused_at_once(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = story.node.stages.judge

    def unfit(headers: Sequence[Dataset]) -> Any:
        from dataclasses import replace

        return replace(judge(headers), fit=False, reason="no breast", of_routes={})

    monkeypatch.setattr(story.node.stages, "judge", unfit)
    story.come("left")
    story.work()
    assert (story.job()["state"], story.job()["reason"]) == ("refused", "not run: no breast")


def test_the_trial_says_what_would_be_waited_for(story: Story) -> None:
    trial = Trial(story.node.stages, story.ledger, story.now)
    story.come("left")
    found = trial.on_series(story.uid("left"), story.node.config)
    assert found is not None
    assert found[1][0].waits == (LACKS.removesuffix(" of the study"),)
    assert trial.on_the_last(1, story.node.config).routes[0].waits == 1
    story.come("right")
    found = trial.on_series(story.uid("left"), story.node.config)
    assert found is not None
    assert found[1][0].waits == ()


# ---- one series is not two of those that are needed


@given(
    needs=st.lists(st.sets(st.sampled_from("abc"), min_size=1), max_size=4),
    others=st.lists(st.sampled_from("abcd"), max_size=5),
)
def test_as_few_as_can_be_are_missing(needs: list[set[str]], others: list[str]) -> None:
    headers = []
    for each in others:
        header = Dataset()
        header.SeriesDescription = each
        headers.append(header)
    least = min(
        sum(other is None or other not in need for need, other in zip(needs, chosen, strict=False))
        for chosen in permutations([*others, *[None] * len(needs)], len(needs))
    )
    assert len(missing([{"SeriesDescription": sorted(need)} for need in needs], headers)) == least


def test_no_patient_is_named_in_what_is_missing() -> None:
    assert missing([{"PatientID": "4711"}], []) == ["a series with PatientID as the route says"]


# ---- settings


def problems(tmp_path: Path, needs: str) -> list[str]:
    text = TOML.format(series=RIGHT, otherwise="skip").partition("[route.needs]")[0] + needs
    (tmp_path / "node.toml").write_text(text)
    from config import check

    return [str(each) for each in check(tmp_path / "node.toml", catalogue())[1] if each.severity == "error"]


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ("[route.needs]\nwait_minutes = 5", "'needs' in [[route]] 'both' needs 'series'"),
        ("[route.needs]\nseries = []", "'needs.series' in [[route]] 'both' must not be empty"),
        (
            "[route.needs]\nseries = [{}]\nwait_minute = 5",
            "no setting 'wait_minute' in 'needs' of a [[route]]; did you mean 'wait_minutes'?",
        ),
        (
            "[route.needs]\nseries = [{}]\nif_incomplete = 'wait'",
            "'needs.if_incomplete' in [[route]] 'both' must be 'skip' or 'run', not 'wait'",
        ),
        (
            "[route.needs]\nseries = [{}]\nwait_minutes = 0",
            "'needs.wait_minutes' in [[route]] 'both' must be more than 0, not 0",
        ),
        (
            "[route.needs]\nseries = [{}, {Modalty = 'CT'}]",
            "[[route]] 'both': needs: series 2: no DICOM keyword 'Modalty'; did you mean 'Modality'?",
        ),
        (
            "[route.needs]\nseries = [{SliceThickness = '<3'}]",
            "[[route]] 'both': needs: series 1: SliceThickness holds numbers, and is never the text '<3'; "
            "write SliceThickness = { max = 3 }",
        ),
        ("shadow = true\npriors = 'files'", "[[route]] 'both': a shadow sends nothing to anybody, not even a question"),
    ],
)
def test_what_is_wrong_is_said_exactly(tmp_path: Path, needs: str, words: str) -> None:
    assert any(words in each for each in problems(tmp_path, needs)), problems(tmp_path, needs)


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    assert problems(tmp_path, f"[route.needs]\nseries = [{RIGHT}]\nif_incomplete = 'run'") == []
