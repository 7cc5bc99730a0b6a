"""What the pages and /health are told: which jobs need a person, and nothing that names a path of the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from config import Notify, load
from models import catalogue
from pacs_node import notify
from pacs_node.facts import NodeFacts
from pacs_node.ledger.tables import feedback_table
from pacs_node.node import Node
from pacs_node.records import FORMS, JOB_KINDS, Evidence, Instance, Job, OpenSeries, Receipt, Result, Wanted, moment
from tests.factories import us_image
from tests.harness import wait_for

TOML = """
[node]
data_dir = "store"
[[peer]]
name = "results"
folder = "out/results"
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["results"]
[[route]]
name = "chest"
match = { Modality = "CT" }
pipeline = "lung-nodule"
send_to = ["results"]
"""


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time


class Story:
    """A node of one ultrasound series, moved by hand."""

    def __init__(self, folder: Path) -> None:
        (folder / "node.toml").write_text(TOML)
        self.folder, self.now = folder, Clock()
        self.node = Node(load(folder / "node.toml", catalogue()), now=self.now)
        self.node.ledger.migrate()
        self.facts, self.ledger = NodeFacts(self.node), self.node.ledger
        self.uid = str(us_image().SeriesInstanceUID)

    def receive(self, number: int = 1) -> None:
        image = us_image()
        path = self.folder / f"us{number}.dcm"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number}"
        image.save_as(path, enforce_file_format=True)
        uids = f"2.25.{number}", str(image.SOPClassUID), self.uid, str(image.StudyInstanceUID)
        self.ledger.take_in(Instance(*uids, "1.2.840.10008.1.2.1", path, 1, self.now(), "a", "US1"))
        series = OpenSeries(self.uid, uids[3], Evidence(self.now(), number), ("US1",))
        assert self.node.flow.close(series, "quiet")

    def one(self, kind: str) -> Job:
        return next(job for job in self.ledger.open_jobs() if job.kind == kind)

    def add(self, job: Job) -> None:
        with self.ledger._begin() as db:
            self.ledger._add_job(db, job)

    def begin(self, job: Job) -> None:
        self.ledger.renew_lease("w1", 3600)
        assert self.ledger.begin(job, "w1", self.now())

    def end(self, job: Job, state: str, reason: str, *follow: Job, begun: bool = False) -> None:
        if not begun:
            self.begin(job)
        made = [Result("2.25.9", "1.2.840.10008.5.1.4.1.1.66.4", self.folder / "store" / "x.dcm")] if follow else []
        assert self.ledger.finish(job, state, reason, self.now(), results=made, follow_up=follow)

    def fail(self, kind: str, reason: str = "0xA900 Data Set does not match SOP Class") -> Job:
        """Let the job of this kind fail for good, those before it end well."""
        flow = self.node.flow
        infer = self.one("infer")
        if kind == "infer":
            self.end(infer, "failed", reason)
            return infer
        send = flow._send_job(infer, "results")
        self.end(infer, "done", "1 finding", send)
        if kind == "send":
            self.end(send, "failed", reason)
            return send
        confirm = flow._confirm_job(send)
        self.end(send, "done", "1 objects stored", confirm)
        self.end(confirm, "failed", reason)
        return confirm

    @property
    def status(self) -> str:
        return str(self.facts.health()["status"])


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    story.receive()
    yield story
    story.node.stop()


def test_an_open_page_learns_of_trouble_that_no_row_tells_of(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    facts = NodeFacts(story.node, monotonic=lambda: seconds[0])
    stamp = facts.stamp()
    seconds[0] += 60
    assert facts.stamp() == stamp, "nothing has happened"
    monkeypatch.setattr(Node, "ailing", lambda node: ["cuda:0 rests"])
    seconds[0] += 60
    troubled = facts.stamp()
    assert troubled != stamp
    monkeypatch.undo()
    seconds[0] += 60
    assert facts.stamp() == stamp, "well again"
    monkeypatch.setattr(Node, "ailing", lambda node: [f"sweeper has not come round for {seconds[0]:.0f} s"])
    seconds[0] += 60
    stands = facts.stamp()
    seconds[0] += 60
    assert facts.stamp() == stands != stamp, "it lasts, and that is no news"


def test_many_are_retried_and_the_rest_is_said(story: Story) -> None:
    nothing = {story.uid: "nothing of it has failed or waits"}
    assert story.facts.bulk("retry", [story.uid], "ada") == nothing
    job = story.fail("send")
    assert story.facts.bulk("retry", story.facts.series_uids(Wanted(trouble=True)), "ada") == {story.uid: None}
    assert story.one("send").id == job.id
    assert story.facts.bulk("retry", story.facts.series_uids(Wanted(trouble=True)), "ada") == {}
    assert story.facts.bulk("retry", ["1.2.3"], "ada") == {"1.2.3": "nothing of it has failed or waits"}


def test_many_are_run_again_and_of_each_it_is_said_why_not(story: Story) -> None:
    said = story.facts.bulk("rerun", [story.uid, "1.2.3"], "ada")
    assert said.keys() == {story.uid, "1.2.3"}
    assert all(said.values()), "one is being worked on, and one is not there"
    story.fail("infer")
    assert story.facts.bulk("rerun", [story.uid], "ada") == {story.uid: None}
    assert story.one("infer").sender == ""


def test_however_many_need_a_person_they_are_counted_and_few_are_named(story: Story) -> None:
    """50 sends that failed and 40 that wait for a destination since yesterday, as after a weekend without a PACS."""
    story.fail("send", "results does not answer")
    [failed] = story.ledger.unresolved()
    job = story.ledger.job(failed["job"])
    assert job is not None
    for number in range(49):
        story.add(replace(job, id=f"failed-{number}", route=f"r{number}"))
    long_ago = story.now.time - timedelta(days=1)
    waiting = replace(job, state="waiting", reason="it rests", created_at=long_ago, not_before=story.now.time)
    story.now.time += timedelta(hours=1)
    for number in range(40):
        story.add(replace(waiting, id=f"waiting-{number}", created_at=long_ago + timedelta(seconds=number)))
    health = story.facts.health()
    assert [why for why in health["reasons"] if "results" in why] == [
        "sending to results has failed for good (50 jobs): results does not answer",
        "sending to results is overdue (40 jobs): it rests",
    ]
    assert len(health["attention"]) == 20
    assert [len(jobs) for jobs in (story.ledger.unresolved(), *story.facts._late().values())] == [20, 0, 0, 20, 0]
    assert story.facts._late()["is overdue"][0]["job"] == "waiting-0"


def test_what_was_sent_is_found_by_who_made_it_and_who_sent_it(story: Story) -> None:
    """Of what lies beside the results that alone which a destination has taken."""
    infer = story.one("infer")
    send = story.node.flow._send_job(infer, "results")
    story.end(infer, "done", "1 finding", send)
    [result] = story.ledger.results(infer.id)
    result.path.parent.mkdir(parents=True, exist_ok=True)
    result.path.write_bytes(b"result")
    for number, uid in enumerate(("2.25.10", "2.25.11")):
        folder = result.path.parent / FORMS / f"form-{number}"
        folder.mkdir(parents=True)
        image = us_image()
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = uid
        image.save_as(folder / "01-OT.dcm", enforce_file_format=True)
    story.begin(send)
    of = "1.2.840.10008.5.1.4.1.1.7"
    receipts = [
        Receipt(uid, uid != "2.25.11", 0, "", story.now(), of) for uid in ("2.25.9", "2.25.10", "2.25.11", "2.25.12")
    ]
    assert story.ledger.finish(send, "done", "sent", story.now(), receipts=receipts)
    form = (result.path.parent / FORMS / "form-0" / "01-OT.dcm").read_bytes()
    for job in (infer.id, send.id):
        assert story.facts.result_file(job, "2.25.9.dcm") == b"result"
        assert story.facts.result_file(job, "2.25.10.dcm") == form
        assert story.facts.result_file(job, "2.25.11.dcm") is None, "no destination has it"
        assert story.facts.result_file(job, "2.25.12.dcm") is None, "it is not here"
    assert story.facts.result_file("nobody", "2.25.9.dcm") is None
    there = [(each["job"], each["sop_instance_uid"]) for each in story.facts.results_of(story.uid)]
    assert there == [(infer.id, uid) for uid in ("2.25.9", "2.25.10", "2.25.12")]


def test_devices_of_workers_on_other_machines_are_told_and_can_be_paused(story: Story) -> None:
    theirs = {**story.node.devices()[0], "device": "cuda:0", "loaded": ["lung-nodule"], "machine": "gpu2"}
    story.ledger.renew_lease(story.node.executor, 60, [{**theirs, "device": "mine"}])
    story.ledger.renew_lease("gpu2-1", 60, [theirs])
    story.ledger.renew_lease("gone", -1, [{**theirs, "machine": "gone"}])
    story.ledger.renew_lease("before", 60)
    own = [{**each, "machine": ""} for each in story.node.devices()]
    assert story.facts.system()["devices"] == [*own, theirs]
    assert story.facts.can_pause()["device"] == [*(each["device"] for each in own), "cuda:0@gpu2"]
    assert story.facts.pause("device", "cuda:0@gpu2", "ana") is None
    assert story.facts.pause("device", "cuda:7@gpu2", "ana") is not None
    assert story.facts.health()["status"] == "ok", "our own go on"
    story.ledger.renew_lease("gpu2-1", 60, [{**theirs, "state": "running"}])
    assert story.facts.system()["devices"][-1]["state"] == "running"


def test_ready_is_not_while_it_starts_or_stops_or_is_in_trouble(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    assert story.facts.ready() == {"ready": False, "reasons": ["nothing listens for senders yet"]}
    monkeypatch.setattr(Node, "listening", True)
    assert story.facts.ready() == {"ready": True, "reasons": []}
    story.node.stopping = True
    assert story.facts.ready() == {"ready": False, "reasons": ["the node is stopping"]}
    story.node.stopping = False
    monkeypatch.setattr(Node, "trouble", lambda self: ["the disk is full"])
    ready = story.facts.ready()
    assert not ready["ready"]
    assert ready["reasons"][0] == "the disk is full"


@pytest.mark.parametrize("kind", ["infer", "send", "confirm"])
def test_what_failed_is_told_by_task(story: Story, kind: str) -> None:
    story.fail(kind, f"{story.folder}/out/results is full")
    [(task, words)] = story.facts.failed_tasks().items()
    assert task == TASK[kind]
    assert words == f"{TASK[kind]} has failed for good (1 job): the folder of 'results' is full"


def test_a_node_tells_of_what_failed_and_of_a_destination_that_takes_nothing(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[tuple[str, str]] = []
    monkeypatch.setattr(notify, "deliver", lambda urls, title, body: messages.append((title, body)))
    send = story.node.flow._send_job(story.one("infer"), "results")
    story.end(story.one("infer"), "done", "1 finding", send)
    story.begin(send)
    assert story.ledger.retry_later(send, "the folder is away", story.now(), [], story.now())
    story.now.time += timedelta(minutes=31)
    told = Notify.model_validate({"name": "on-call", "urls": ["json://127.0.0.1/"]})
    story.node.config = story.node.config.model_copy(update={"notices": (told,)})
    assert story.node._world(NodeFacts(story.node)).down == [("results", send.created_at, "the folder is away")]
    story.node._tell_whom_the_settings_name()
    try:
        wait_for(lambda: messages, 60, "a message")
    finally:
        assert story.node.notifier is not None
        story.node.notifier.stop()
    [(title, body)] = messages
    assert title == "pacs-node PACSNODE: 1 thing to see to"
    assert re.fullmatch(r"- results has taken nothing since \S+ \S+ UTC: the folder is away", body)


TASK = {"infer": "breast-us", "send": "sending to results", "confirm": "proving arrival at results"}


@pytest.mark.parametrize("kind", TASK)
def test_a_job_that_failed_for_good_is_said_until_somebody_deals_with_it(story: Story, kind: str) -> None:
    assert story.status == "ok"
    job = story.fail(kind)
    health = story.facts.health()
    assert health["status"] == "degraded"
    words = f"{TASK[kind]} has failed for good (1 job): 0xA900 Data Set does not match SOP Class"
    assert health["reasons"] == [words]
    [named] = health["attention"]
    assert (named["job"], named["series_uid"], named["state"]) == (job.id, story.uid, "failed")
    assert story.facts.retry(job.id) is None
    assert story.status == "ok", "it runs again"
    story.end(story.one(kind), "failed", "again")
    assert story.facts.health()["reasons"] == [f"{TASK[kind]} has failed for good (1 job): again"]
    assert story.facts.dismiss(job.id)
    assert story.status == "ok"
    assert not story.facts.dismiss(job.id)
    assert story.facts.retry(job.id) == "no such job, or it cannot be run again in its state"
    [shown] = [each for each in story.facts.series(story.uid)["jobs"] if each["id"] == job.id]
    assert (shown["state"], shown["reason"]) == ("superseded", "dismissed; it had failed: again")


@pytest.mark.parametrize("kind", TASK)
def test_a_series_that_was_run_again_is_dealt_with(story: Story, kind: str) -> None:
    story.fail(kind)
    assert story.facts.rerun(story.uid) is None
    infer = story.one("infer")
    send = story.node.flow._send_job(infer, "results")
    story.end(infer, "done", "1 finding", send)
    story.end(send, "done", "1 objects stored", story.node.flow._confirm_job(send))
    assert story.status == "ok"
    story.end(story.one("confirm"), "failed", "not there")
    assert story.facts.health()["reasons"] == ["proving arrival at results has failed for good (1 job): not there"]


def test_late_images_deal_with_what_failed_before(story: Story) -> None:
    story.fail("send")
    story.receive(2)
    assert story.status == "ok"
    story.fail("infer")
    assert len(story.facts.health()["attention"]) == 1


def test_a_refusal_is_no_trouble(story: Story) -> None:
    story.end(story.one("infer"), "refused", "no calibration")
    assert story.status == "ok"


def test_overdue_jobs_are_named(story: Story) -> None:
    assert set(story.facts._due()) == set(story.facts._limits()) == set(JOB_KINDS)
    infer = story.one("infer")
    story.begin(infer)
    story.now.time += timedelta(minutes=48)
    assert story.status == "ok", "an inference may take infer_timeout_s, half an hour by default, and a comparison more"
    story.now.time += timedelta(minutes=2)
    health = story.facts.health()
    assert health["status"] == "degraded"
    assert health["reasons"] == ["breast-us runs for longer than it may (1 job): running"]
    send = story.node.flow._send_job(infer, "results")
    story.end(infer, "done", "1 finding", send)
    assert story.status == "ok"
    story.now.time += timedelta(minutes=61)
    story.begin(send)
    assert story.ledger.retry_later(send, "results does not answer", story.now() + timedelta(hours=1), (), story.now())
    assert story.facts.health()["reasons"] == ["sending to results is overdue (1 job): results does not answer"]


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_a_job_that_fails_and_is_tried_again_is_named_until_it_ends(story: Story, kind: str) -> None:
    if kind != "infer":
        story.end(story.one("infer"), "done", "1 finding")
        story.add(other(kind, "results"))
    job, later = story.one(kind), story.now() + timedelta(hours=1)
    story.begin(job)
    assert story.ledger.retry_later(job, "it has to wait for a report", later, (), story.now())
    story.now.time += timedelta(seconds=30)
    assert story.status == "ok", "to wait is not to fail"
    job = story.one(kind)
    story.begin(job)
    assert story.ledger.retry_later(job, "the disk is full", later, (), story.now(), error="TryAgain")
    health = story.facts.health()
    assert health["status"] == "degraded"
    [reason] = health["reasons"]
    assert reason.endswith("fails and is tried again (1 job): the disk is full")
    assert health["attention"][0]["job"] == job.id
    job = story.one(kind)
    story.begin(job)
    assert story.status == "degraded", "it runs, and nobody knows what will come of it"
    assert story.ledger.finish(job, "done", "", story.now())
    assert story.status == "ok"


def test_a_job_that_failed_a_moment_ago_or_is_paused_needs_nobody(story: Story) -> None:
    send = story.node.flow._send_job(story.one("infer"), "results")
    story.end(story.one("infer"), "done", "1 finding", send)
    story.begin(send)
    assert story.ledger.retry_later(send, "away", story.now() + timedelta(hours=1), (), story.now(), error="TryAgain")
    assert story.status == "ok", "it is younger than a sweep"
    story.now.time += timedelta(seconds=30)
    assert story.status == "degraded"
    assert story.facts.pause("destination", "results", "", "it is moved") is None
    assert story.status == "ok"
    assert story.facts.resume("destination", "results", "")
    assert story.ledger.run_again(send.id, story.now())
    assert story.status == "ok", "somebody has seen to it"


def other(kind: str, destination: str | None) -> Job:
    return Job(
        "other", kind, "1.2", "1.3", 1, "p", "r", 5, datetime(2026, 1, 2, 3, tzinfo=UTC), destination=destination
    )


def test_that_no_worker_lives_has_a_line_of_its_own(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that receives for others, at once, and until one of them lives."""

    def said() -> list[str]:
        return [each for each in story.facts.health()["reasons"] if each.startswith("no worker has taken work")]

    assert not said(), "nobody receives here either"
    monkeypatch.setattr(Node, "listening", True)
    assert ["no worker has taken work yet" in each for each in said()] == [True]
    assert story.status == "degraded", "it receives"
    story.ledger.renew_lease("w1", 3600)
    assert not said()
    send = story.node.flow._send_job(story.one("infer"), "results")
    story.end(story.one("infer"), "done", "1 finding", send)
    story.now.time += timedelta(hours=1)
    story.begin(send)
    story.ledger.give_up_lease("w1")
    assert [f"since {moment(story.now.time)}, and none lives" in each for each in said()] == [True]
    monkeypatch.setattr(Node, "working", True)
    assert not said(), "it works itself"


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_a_job_whose_queue_does_not_explain_why_it_waits_is_named(story: Story, kind: str) -> None:
    """It stands still: it may begin, nothing of its queue runs, and nothing has begun since."""
    destination = None if kind == "infer" else "results"
    story.end(story.one("infer"), "done", "1 finding")
    waits = replace(other(kind, destination), id="waits", created_at=story.now())
    story.add(waits)
    story.facts.since -= 1000
    assert story.status == "ok", "just made"
    story.now.time += timedelta(minutes=2)
    assert story.facts.health()["attention"][0]["job"] == "waits"
    [reason] = story.facts.health()["reasons"]
    assert "stands still (1 job): queued" in reason
    story.facts.since += 1000
    assert story.status == "ok", "the node has just started: it takes up what was left"
    story.facts.since -= 1000
    elsewhere = replace(other(kind, "elsewhere"), id="elsewhere")
    story.add(elsewhere)
    story.begin(elsewhere)
    assert story.status == "degraded", "another queue moves"
    before = other(kind, destination)
    story.add(before)
    story.begin(before)
    assert story.status == "ok", "its turn will come"
    story.now.time += timedelta(minutes=10)
    assert story.status == "ok", "that one takes long"
    story.end(before, "failed", "so", begun=True)
    assert story.facts.dismiss("other")
    assert story.status == "ok", "its turn has just come"
    story.now.time += timedelta(minutes=2)
    story.ledger.renew_lease("w1", 60)
    assert story.status == "degraded"
    story.begin(waits)
    assert story.status == "ok"
    story.ledger.retry_later(waits, "down", story.now() + timedelta(minutes=9), (), story.now())
    assert story.status == "ok", "its time has not come"
    story.end(elsewhere, "done", "so", begun=True)
    story.now.time += timedelta(minutes=20)
    assert story.facts.health()["attention"][0]["job"] == "waits"


def test_a_job_whose_worker_is_gone_is_named(story: Story) -> None:
    """There is no other that would take it over."""
    story.begin(story.one("infer"))
    story.ledger.give_up_lease("w1")
    assert story.status == "ok", "somebody may still take it over"
    story.now.time += timedelta(minutes=2)
    assert story.facts.health()["reasons"] == ["breast-us runs for longer than it may (1 job): running"]
    story.ledger.renew_lease("w1", 60)
    assert story.status == "ok"


@pytest.mark.parametrize("what", ["series", "queued", "running"])
def test_a_clock_that_was_set_back_is_said_as_long_as_there_is_work_of_the_future(story: Story, what: str) -> None:
    infer = story.one("infer")
    if what == "series":
        image = Instance("2.25.2", "c", story.uid, "1.3", "t", Path("/x"), 1, story.now(), "a", "US1")
        story.end(infer, "done", "1 finding")
        story.ledger.take_in(image)
    elif what == "running":
        story.begin(infer)
    story.now.time -= timedelta(hours=5)
    health = story.facts.health()
    assert health["status"] == "degraded"
    [reason] = health["reasons"]
    assert reason.endswith("lie up to 5.0 h ahead: the clock was set back; they are worked on as ever")
    story.now.time += timedelta(hours=5)
    assert story.status == "ok"


def test_trouble_is_what_makes_the_node_unfit(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    story.fail("send")
    monkeypatch.setattr(story.node, "trouble", lambda: ["0.1 GB are free"])
    health = story.facts.health()
    assert health["status"] == "trouble"
    assert health["reasons"][0] == "0.1 GB are free"
    assert len(health["reasons"]) == 2


def test_nothing_the_pages_are_told_names_a_path(story: Story) -> None:
    """Also where an error's own words do: results, folders and the database are called by their settings' names."""
    root = str(story.folder)
    places = (story.folder / "store" / "results" / "a.dcm", story.folder / "out" / "results", story.folder / "store")
    said = "; ".join(f"{place} cannot be written" for place in places)
    job = story.fail("send", said)
    database = story.node.config.database.url
    story.receive(2)
    story.fail("infer", f"{database} does not answer")
    told = [
        story.facts.health(),
        story.facts.series(story.uid),
        story.facts.series_list(10),
        story.facts.destinations(),
    ]
    assert root not in json.dumps(told)
    [shown] = [each for each in told[1]["jobs"] if each["id"] == job.id]
    assert shown["reason"] == (
        "data_dir/results/a.dcm cannot be written; the folder of 'results' cannot be written; "
        "data_dir cannot be written"
    )
    assert "sqlite:///the database does not answer" in told[0]["reasons"][0]
    assert all("path" not in result for each in told[1]["jobs"] for result in each["results"])


def test_many_are_run_again_by_day_or_by_route(story: Story) -> None:
    facts, early = story.facts, datetime(2026, 1, 1, tzinfo=UTC)
    story.end(story.one("infer"), "done", "1 finding")
    assert facts.routes() == ["breast", "chest"]
    assert facts.rerun_many(None, datetime(2026, 1, 3, tzinfo=UTC)) == {}
    no = {story.uid: "route 'chest' does not match: chest: Modality is US, rule wants CT"}
    assert facts.rerun_many("chest", early) == no
    assert facts.rerun_many("chest", None) == {}, "it has taken none"
    assert facts.rerun_many(None, early) == {story.uid: None}
    busy = facts.rerun_many("breast", None)
    assert "being worked on" in str(busy[story.uid])


def test_a_series_no_rule_matched_says_why_not_when_it_is_run_again(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.node.stages.rules = [rule for rule in story.node.stages.rules if rule.name == "chest"]
    with pytest.raises(AssertionError):
        story.receive()  # closed, and no job came of it
    assert story.facts.rerun(story.uid) == "no rule matches: chest: Modality is US, rule wants CT"
    story.node.stages.rules = []
    assert story.facts.rerun(story.uid) == "no rule matches: the settings have none"


def test_one_series_that_cannot_be_judged_stops_no_other(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret value")

    monkeypatch.setattr(story.node.flow, "rerun", broken)
    assert (story.facts.rerun(story.uid) or "").startswith("could not be judged: KeyError")


def test_a_mean_dice_is_rounded_once_by_who_shows_it(tmp_path: Path) -> None:
    """Rounded before, and again to two digits, each tenth of a thousandth above a half is another number there than
    beside the finding."""
    story = Story(tmp_path)
    told = {f"{n:04}": n / 10_000 for n in range(1, 10_000)}
    row = {
        "at": story.now(),
        "reader": "",
        "series_uid": "1",
        "job": "1",
        "pipeline": "p",
        "kind": "edited",
        "label": "",
    }
    with story.ledger.engine.begin() as db:
        db.execute(sa.insert(feedback_table), [{**row, "version": name, "dice": dice} for name, dice in told.items()])
    counted = {each["version"]: each["dice"] for each in story.facts.feedback_counts()}
    assert [name for name, dice in told.items() if f"{counted[name]:.2f}" != f"{dice:.2f}"] == []
