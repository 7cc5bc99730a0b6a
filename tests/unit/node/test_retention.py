"""Retention: what may go and what not, in words; and that a kill, or an image that comes meanwhile, loses nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import SegmentationStorage
from starlette.testclient import TestClient
from typer.testing import CliRunner

from config import load
from models import catalogue
from pacs_node import fsck, observe, retention
from pacs_node.cli import app
from pacs_node.editions import next_revision
from pacs_node.facts import NodeFacts
from pacs_node.ledger import Ledger
from pacs_node.node import Node
from pacs_node.records import (
    ArrivalProof,
    CommitmentReport,
    CommitmentRequest,
    Job,
    Receipt,
    Refusal,
    Result,
)
from pacs_node.retention import Aside, Decision, Disk
from pacs_node.web.app import create_app
from tests.factories import ct_series, us_image
from tests.unit.receive.conftest import arrival, encoded

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TOML = """
[node]
data_dir = "data"
[receive]
keep_free_gb = 0.0
[retention]
keep_days = 30
{settings}
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 4242
may_send = true
[[peer]]
name = "files"
folder = "out"
[[route]]
name = "breast"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = {send_to}
"""


@cache
def empty_ledger() -> bytes:
    """Its tables are made once, not for each test."""
    with TemporaryDirectory() as folder:
        ledger = Ledger(f"sqlite:///{folder}/node.sqlite", folder)
        ledger.migrate()
        ledger.close()
        return Path(folder, "node.sqlite").read_bytes()


class Story:
    """A node that is moved by hand: its spool, ledger and flow are the real ones, the models and the PACS scripted."""

    def __init__(self, folder: Path, settings: str = "", send_to: str = '["pacs"]') -> None:
        self.folder, self.time = folder, T0
        self.file = folder / "node.toml"
        self.file.write_text(TOML.format(settings=settings, send_to=send_to))
        (folder / "data").mkdir(mode=0o700)
        (folder / "data" / "node.sqlite").write_bytes(empty_ledger())
        self.node = self.new_node()
        self.node.ledger.migrate()
        self.images = 0

    def new_node(self) -> Node:
        return Node(load(self.file, catalogue()), now=self.now)

    def now(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time

    @property
    def uid(self) -> str:
        return str(us_image(name="kept").SeriesInstanceUID)

    def image(self, image: Dataset | None = None) -> None:
        self.images += 1
        image = image or us_image(name="kept", number=self.images)
        came = arrival(image, encoded(image))
        incoming = self.node.spool.begin(came.announced)
        incoming.write(came.data_set)
        incoming.keep(self.now, self.node.intake.stored)
        self.node.intake.flush()

    def close(self) -> list[Job]:
        [open_series] = self.node.ledger.open_series(frozenset())
        return self.node.flow.close(open_series, "quiet")

    def end(self, job: Job, state: str, reason: str = "", **made: Any) -> None:
        assert self.node.ledger.begin(job, "w", self.now())
        assert self.node.ledger.finish(job, state, reason, self.now(), **made)

    def infer(self, job: Job) -> list[Job]:
        """It ends with a result; the jobs that send it."""
        folder = self.node.stages.results / job.id / "1"
        folder.mkdir(parents=True)
        (folder / "01-SEG.dcm").write_bytes(b"a result")
        (folder.parent / "findings-1.npz").write_bytes(b"its findings")
        result = Result(f"2.25.{job.revision}9", SegmentationStorage, folder / "01-SEG.dcm", sha256=SHA)
        sends = [self.node.flow._send_job(job, place) for place in job.send_to]
        edition = next_revision(self.node.ledger.editions(job), job, "1", analysed=True)
        edition = replace(edition, objects=(result,))
        self.end(job, "done", "1 finding", results=[result], follow_up=sends, edition=edition)
        return sends

    def send(self, job: Job) -> Job:
        """It is stored; the job that proves it, of which a folder needs none."""
        confirm = self.node.flow._confirm_job(job)
        receipt = Receipt("2.25.19", True, 0, "0x0000 Success", self.now(), SegmentationStorage)
        follow_up = [] if job.destination == "files" else [confirm]
        self.end(job, "done", "1 objects stored", receipts=[receipt], follow_up=follow_up)
        return confirm

    def confirm(self, job: Job, *, arrived: bool | None) -> None:
        proof = ArrivalProof("2.25.19", arrived, "C-FIND", "found", self.now())
        self.end(job, "failed" if arrived is False else "done", "it says so", arrivals=[proof])

    def arrive(self) -> None:
        """Everything happens as it should."""
        [job] = self.close()
        for send in self.infer(job):
            confirm = self.send(send)
            if send.destination != "files":
                self.confirm(confirm, arrived=True)

    def later(self, days: float = 31) -> None:
        self.time += timedelta(days=days)

    def run(self) -> list[Decision]:
        return [each for each in self.node.retention.a_pass() if isinstance(each, Decision)]

    def decided(self) -> list[Decision]:
        return [each for each in self.node.retention.plan() if isinstance(each, Decision)]

    def faults(self) -> list[fsck.Fault]:
        return list(fsck.faults(self.folder / "data", self.node.ledger, self.node.stages.store))

    def series(self) -> dict[str, Any]:
        facts = NodeFacts(self.node).series(self.uid)
        assert facts is not None
        return facts

    def kept_files(self) -> list[Path]:
        kept = (self.folder / "data" / name for name in ("spool", "results", "rejected"))
        return [path for folder in kept for path in folder.rglob("*") if path.is_file()]


SHA = hashlib.sha256(b"a result").hexdigest()


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    story.image()
    story.image()
    yield story
    story.node.stop()


# ---- what may go


def no_route(story: Story) -> None:
    story.node.flow.stages.rules.clear()  # type: ignore[attr-defined]
    story.close()


def refused(story: Story) -> None:
    [job] = story.close()
    story.end(job, "refused", "not run: no lesion")


def inference_failed(story: Story) -> None:
    [job] = story.close()
    story.end(job, "failed", "out of memory")


def send_failed(story: Story) -> Job:
    [job] = story.close()
    [send] = story.infer(job)
    story.end(send, "failed", "0xA900")
    return send


def send_dismissed(story: Story) -> None:
    assert story.node.ledger.dismiss(send_failed(story).id, story.now())


def failed_and_run_again(story: Story) -> None:
    send_failed(story)
    assert story.node.flow.rerun(story.uid) is None
    [job] = story.node.ledger.open_jobs()
    [send] = story.infer(job)
    story.confirm(story.send(send), arrived=True)


def proven(arrived: bool | None) -> Callable[[Story], None]:
    def happens(story: Story) -> None:
        [job] = story.close()
        [send] = story.infer(job)
        story.confirm(story.send(send), arrived=arrived)

    return happens


def never_asked(story: Story) -> None:
    [job] = story.close()
    [send] = story.infer(job)
    receipt = Receipt("2.25.19", True, 0, "0x0000 Success", story.now())
    story.end(send, "done", "1 stored", receipts=[receipt])


def relied_on(story: Story) -> None:
    story.arrive()
    image = us_image(name="kept", number=1)
    wanted = ((str(image.SOPClassUID), str(image.SOPInstanceUID)),)
    request = CommitmentRequest("2.25.7", "CT1", wanted)
    story.node.flow.commitment_asked(request)
    [report] = story.node.ledger.open_jobs()
    story.end(report, "done", "reported")


def late_image_refused(story: Story) -> None:
    """Of the earlier images results arrived; of all together none were made."""
    story.arrive()
    story.image()
    [job] = story.close()
    story.end(job, "refused", "not run: no lesion")


OUTCOMES: dict[str, tuple[Callable[[Story], object], str, str]] = {
    # what happened -> the word that lets it go without a proof ("" where there is a proof), why it stays
    "arrived": (Story.arrive, "", ""),
    "run again, and arrived": (failed_and_run_again, "", ""),
    "arrived, then refused": (late_image_refused, "", ""),
    "no route": (no_route, "no results", "no route took it"),
    "refused": (refused, "no results", "breast-us: not run: no lesion"),
    "inference failed": (inference_failed, "failed", "breast-us failed: out of memory"),
    "send failed": (send_failed, "failed", "its results are not at pacs: 0xA900"),
    "send dismissed": (send_dismissed, "failed", "its results are not at pacs: dismissed; it had failed: 0xA900"),
    "did not arrive": (proven(False), "failed", "its results did not arrive at pacs: it says so"),
    "not proven": (proven(None), "not proven", "nothing proves that its results arrived at pacs"),
    "never asked": (never_asked, "not proven", "nothing proves that its results arrived at pacs"),
    "relied on": (
        relied_on,
        "committed",
        "CT1 asked for storage commitment of its images and relies on them",
    ),
}
WORDS = ("no results", "not proven", "failed", "committed")


@pytest.mark.parametrize("what", OUTCOMES)
def test_only_what_is_proven_goes_or_what_may_go_unproven(story: Story, what: str) -> None:
    happens, word, why = OUTCOMES[what]
    happens(story)
    story.later()
    [decision] = story.decided()
    assert (decision.goes, decision.why if why else "") == (not word, why)
    settings = story.node.retention.settings
    for allowed in WORDS:
        story.node.retention.settings = settings.model_copy(update={"without_proof": (allowed,)})
        assert [each.goes for each in story.decided()] == [allowed == word or not word], allowed
    others = tuple(each for each in WORDS if each != word)
    story.node.retention.settings = settings.model_copy(update={"without_proof": others})
    assert [each.goes for each in story.run()] == ([] if word else [True])


@pytest.mark.parametrize("what", OUTCOMES)
def test_a_person_deletes_what_is_proven_and_nothing_else(story: Story, what: str) -> None:
    happens, word, why = OUTCOMES[what]
    assert NodeFacts(story.node).bulk("delete", [story.uid], "ada") == {story.uid: "it still receives images"}
    happens(story)
    kept = len(story.kept_files())
    said = NodeFacts(story.node).bulk("delete", [story.uid, "1.2.3"], "ada")
    assert said["1.2.3"] == "there is none to delete"
    if word:
        assert said[story.uid]
        assert (why or "") in str(said[story.uid])
        assert (story.series()["state"], len(story.kept_files())) == ("closed", kept)
    else:
        assert said[story.uid] is None
        assert story.series()["state"] == "deleted"
        assert not [file for file in story.kept_files() if file.suffix == ".pack"]
        [told] = [each for each in story.series()["timeline"] if each["event"] == "deleted"]
        assert "ada asked for it; its results arrived at pacs" in told["text"]


def test_a_person_waits_for_a_backup(story: Story) -> None:
    story.arrive()
    with retention.exclusively(story.folder / "data" / retention.FILES_LOCK, wait=False):
        said = NodeFacts(story.node).bulk("delete", [story.uid], "ada")[story.uid]
    assert said == "a backup, or retention, is at work; try again in a while"
    assert story.series()["state"] == "closed"


def test_one_destination_of_two_is_not_enough(tmp_path: Path) -> None:
    story = Story(tmp_path, send_to='["files", "pacs"]')
    story.image()
    [job] = story.close()
    to_files, to_pacs = sorted(story.infer(job), key=lambda send: send.destination or "")
    story.send(to_files)
    story.confirm(story.send(to_pacs), arrived=None)
    story.later()
    [decision] = story.decided()
    assert decision.why == "nothing proves that its results arrived at pacs"


def test_a_folder_needs_no_other_proof(tmp_path: Path) -> None:
    story = Story(tmp_path, send_to='["files"]')
    story.image()
    story.arrive()
    story.later()
    [gone] = story.run()
    assert gone.why == "its last image came 31 days before; its results arrived at files"


@pytest.mark.parametrize("done", [0, 1, 2])
def test_nothing_goes_while_something_is_open(story: Story, done: int) -> None:
    """However much may go unproven: the inference, the send, the proof that it arrived."""
    story.node.retention.settings = story.node.retention.settings.model_copy(update={"without_proof": WORDS})
    [job] = story.close()
    if done:
        [job] = story.infer(job)
    if done == 2:
        job = story.send(job)
    story.later()
    [decision] = story.decided()
    assert (decision.goes, decision.why.rpartition(" is ")[2]) == (False, "queued")
    assert story.node.ledger.begin(job, "w", story.now())
    assert story.decided()[0].why.endswith(" is running")
    assert story.run() == []


def test_what_still_receives_is_not_looked_at(story: Story) -> None:
    story.arrive()
    story.image()
    story.later()
    assert story.decided() == story.run() == []


def test_age_and_marks_of_the_disk(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without either nothing goes; between its two marks the disk asks for nothing by itself, and then till the second
    for the oldest."""
    story.arrive()
    [young] = story.decided()
    assert (young.goes, young.why) == (False, "neither its age nor the disk asks for it")
    assert story.run() == []
    for number in range(3):
        other = us_image(name=f"other{number}")
        story.later(1)
        story.image(other)
        story.arrive()
    settings = story.node.retention.settings
    marks = {"keep_days": 0, "start_used_percent": 80.0, "stop_used_percent": 70.0}
    story.node.retention.settings = settings.model_copy(update=marks)
    used = 75
    monkeypatch.setattr(story.node.retention, "_disk", lambda: Disk(100, 100 - used))
    assert [each.goes for each in story.decided()] == [False] * 4
    assert story.run() == []
    used = 81
    delete = story.node.retention._delete

    def frees_six(decision: Decision) -> bool:
        nonlocal used
        used -= 6
        return delete(decision)

    monkeypatch.setattr(story.node.retention, "_delete", frees_six)
    gone = story.run()
    assert [each.holding.series_uid for each in gone] == [
        story.uid,
        str(us_image(name="other0").SeriesInstanceUID),
    ]
    assert gone[0].why.startswith("81 % of the disk are used; its results arrived at pacs")
    used = 90
    assert len(story.run()) == 2
    assert (
        story.node.retention.short
        == "78 % of the disk are used, and retention finds nothing more to delete; 0 closed series stay"
    )
    assert story.node.retention.short in NodeFacts(story.node).health()["reasons"]
    assert Disk(100, 1).above(0, 0) is None


# ---- what has gone


def test_a_series_that_went_is_gone_everywhere_and_says_so(story: Story, capfd: pytest.CaptureFixture[str]) -> None:
    story.arrive()
    failed = send_of(story)
    story.later()
    assert story.kept_files()
    observe.start_logging(plain=False)
    [gone] = story.run()
    assert story.kept_files() == []
    assert list((story.folder / "data" / "spool" / "instances").iterdir()) == []
    assert story.faults() == story.node.ledger.deletions() == []
    facts = story.series()
    assert (facts["state"], facts["instances"], facts["deleted_images"]) == ("deleted", 0, 2)
    [event] = [each for each in facts["timeline"] if each["event"] == "deleted"]
    assert event["text"] == f"2 images ({retention.in_words(gone.size)} with results) by retention: {gone.why}"
    assert '"audit_event": "instances-deleted"' in capfd.readouterr().err
    told = "its images were deleted here on 2026-02-02; send them again to have them analysed again"
    web = TestClient(create_app(NodeFacts(story.node), observe.registry(Nothing()), ("testserver",)))
    page = web.get(f"/series/{story.uid}").text
    assert "2 images deleted here on 2026-02-02" in page
    assert "<button>" not in page
    for address in (f"/api/series/{story.uid}/rerun", f"/api/jobs/{failed}/retry"):
        answer = web.post(address)
        assert (answer.status_code, answer.json()["error"]) == (409, told), address
    assert web.post("/api/rerun?route=breast").json()["not"] == {story.uid: told}
    assert NodeFacts(story.node).health()["status"] == "ok"


class Nothing:
    def collect(self) -> Iterator[Any]:
        return iter(())


def send_of(story: Story) -> str:
    return next(job["id"] for job in story.series()["jobs"] if job["kind"] == "send")


def test_what_comes_again_is_analysed_again_and_told_to_be_a_part(story: Story) -> None:
    """One image of two: a new revision of the series, whose report says so; then the other, and it does not."""
    story.arrive()
    story.later()
    assert story.run()
    story.images = 0
    story.image()
    assert story.series()["state"] == "receiving"
    [job] = story.close()
    assert (job.revision, story.series()["instances"]) == (2, 1)
    verdict, stored = story.node.flow._input(job)
    assert len(stored) == 1
    assert verdict.remarks == ("2 images of the series were deleted here on 2026-02-02, 1 came since",)
    [send] = story.infer(job)
    story.confirm(story.send(send), arrived=True)
    [edition] = [e for e in story.node.ledger.editions(job) if e.result_revision == 2]
    assert [each.sop_instance_uid for each in edition.replaces] == ["2.25.19"], "the earlier one, whose file is gone"
    story.image()
    [job] = story.close()
    assert story.node.flow._input(job)[0].remarks == ()
    assert story.faults() == []


def test_a_report_that_comes_too_late_wakes_nobody(story: Story) -> None:
    [job] = story.close()
    [send] = story.infer(job)
    confirm = story.send(send)
    story.node.ledger.begin_commitment(confirm, "2.25.8", story.now())
    story.confirm(confirm, arrived=True)
    story.later()
    assert story.run()
    report = CommitmentReport("2.25.8", (), ((SegmentationStorage, "2.25.19", 0x0112),))
    assert story.node.ledger.commitment_reported(report, "PACS", story.now())
    assert story.node.ledger.open_jobs() == []
    assert story.series()["timeline"][-1]["event"] == "committed"


# ---- what comes meanwhile, and a kill


def come_again(story: Story) -> Dataset:
    image = us_image(name="kept", number=9)
    story.image(image)
    return image


@pytest.mark.parametrize("step", retention.STEPS)
def test_an_image_that_comes_meanwhile_is_kept(story: Story, step: str) -> None:
    story.arrive()
    story.later()

    def at(now: str) -> None:
        if now == step:
            come_again(story)

    story.node.retention.at = at
    assert [each.goes for each in story.run()] == ([] if step == "deleting" else [True])
    there = {each.sop_instance_uid for each in story.node.ledger.instances(story.uid)}
    assert str(us_image(name="kept", number=9).SOPInstanceUID) in there
    assert len(there) == (3 if step == "deleting" else 1)
    assert story.series()["state"] == "receiving"
    assert story.faults() == []


def test_senders_that_go_on_all_the_while_lose_nothing(story: Story) -> None:
    """They send the same images of a series again and again, and it is deleted again and again: what the ledger names
    is there, each time, and at the end all that was answered last."""
    story.node.retention.settings = story.node.retention.settings.model_copy(update={"without_proof": WORDS})
    story.node.flow.stages.rules.clear()  # type: ignore[attr-defined]
    images = [us_image(name="kept", number=number) for number in range(1, 9)]
    sent = [arrival(image, encoded(image)) for image in images]
    stop, failed = threading.Event(), list[BaseException]()

    def send(number: int) -> None:
        try:
            while not stop.is_set():
                for each in sent[number::2]:
                    incoming = story.node.spool.begin(each.announced)
                    incoming.write(each.data_set)
                    incoming.keep(lambda: T0, story.node.intake.stored)
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(2)]
    for sender in senders:
        sender.start()
    gone = 0
    story.later()
    for _ in range(12):
        story.node.intake.flush()
        for open_series in story.node.ledger.open_series(frozenset()):
            story.node.flow.close(open_series, "quiet")
        gone += len(story.run())
        with story.node.spool.let_go(story.uid) as files:  # nobody writes now
            story.node.intake.flush()
            assert [fault for fault in story.faults() if fault.kind == fsck.LOST] == []
        assert files is None or isinstance(files, list)
    stop.set()
    for sender in senders:
        sender.join()
    story.node.intake.flush()
    assert failed == []
    assert gone > 1
    there = {each.sop_instance_uid for each in story.node.ledger.instances(story.uid)}
    for each in sent:
        incoming = story.node.spool.begin(each.announced)
        incoming.write(each.data_set)
        incoming.keep(lambda: T0, story.node.intake.stored)
        there.add(each.announced.sop_instance_uid)
    story.node.intake.flush()
    assert {each.sop_instance_uid for each in story.node.ledger.instances(story.uid)} == there
    assert [fault for fault in story.faults() if fault.kind in (fsck.LOST, fsck.NOT_INDEXED)] == []


def test_a_series_to_which_an_image_is_being_written_stays(story: Story) -> None:
    story.arrive()
    story.later()
    [large] = ct_series(shape=(1, 256, 256), name="large")
    large.SeriesInstanceUID, large.StudyInstanceUID = story.uid, us_image(name="kept").StudyInstanceUID
    came = arrival(large, encoded(large))
    incoming = story.node.spool.begin(came.announced)
    incoming.write(came.data_set)
    assert story.run() == []
    incoming.drop()
    assert len(story.run()) == 1


CALLS = ("unlink", "rmdir", "fsync", "open")


def delete_until(call: int, story: Story) -> int:
    """Fork a process that deletes, and dies before its `call`-th system call or step: the signal that ended it, or how
    many there were."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def made_mortal(*arguments: Any, **options: Any) -> Any:
            count()
            return real(*arguments, **options)

        return made_mortal

    node = story.new_node()
    node.retention.at = count
    for name in CALLS:
        setattr(os, name, mortal(getattr(os, name)))
    node.ledger.deletion_done = mortal(node.ledger.deletion_done)  # type: ignore[method-assign]
    list(node.retention.a_pass())
    os._exit(made)


def test_killed_at_every_call(story: Story) -> None:
    """After the next start the series is there whole, or gone without a trace; and nothing is taken in as new."""
    story.arrive()
    story.later()
    story.node.ledger.close()
    data, before = story.folder / "data", story.folder / "before"
    shutil.copytree(data, before)
    last = delete_until(1 << 30, story)
    assert last > 10
    states = []
    for call in range(1, last + 1):
        shutil.rmtree(data)
        shutil.copytree(before, data)
        assert delete_until(call, story) == -signal.SIGKILL
        story.node = story.new_node()
        harmed = [fault for fault in story.faults() if fault.kind in (fsck.LOST, fsck.NOT_INDEXED)]
        assert harmed == [], f"call {call}"
        story.node.retention.resume()
        story.node.intake.take_in_found(story.node.spool.scan(story.node.ledger.indexed_up_to()))
        states.append(story.series()["state"])
        assert len(story.node.ledger.instances(story.uid)) == (2 if states[-1] == "closed" else 0)
        assert bool(story.kept_files()) == (states[-1] == "closed")
        assert story.node.ledger.deletions() == []
        assert len(story.run()) == (states[-1] == "closed")
        assert story.kept_files() == []
        story.node.ledger.close()
    assert states == sorted(states), "closed, and from some call on deleted"
    assert set(states) == {"closed", "deleted"}


# ---- what belongs to no series


def test_what_is_no_image_goes_by_its_own_settings(tmp_path: Path) -> None:
    story = Story(tmp_path, "aside_days = 7\ntimeline_days = 60")
    story.image()
    story.arrive()
    spool = tmp_path / "data" / "spool"
    for name in ("aside/a.dcm", "unreadable/b.dcm", "unreadable/new.dcm"):
        (spool / name).write_bytes(b"x")
    for folder in ("work/0123.1", "work/young.1", "priors/4567.1"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    refusal = Refusal("kept aside", T0, "CT1", "127.0.0.1", "other bytes", "2.25.1", story.uid, "aside/a.dcm")
    story.node.ledger.note_refusal(refusal)
    story.later(40)
    old = T0.timestamp()
    for name in ("spool/aside/a.dcm", "spool/unreadable/b.dcm", "work/0123.1", "priors/4567.1"):
        os.utime(tmp_path / "data" / name, (old, old))
    for name in ("spool/unreadable/new.dcm", "work/young.1"):
        os.utime(tmp_path / "data" / name, (story.time.timestamp(),) * 2)
    assert story.run()
    left = {path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").glob("*/*")}
    assert {name for name in left if name.startswith(("work", "priors"))} == {"work/young.1"}
    assert [path.name for path in spool.rglob("*.dcm")] == ["new.dcm"]
    [told] = story.node.ledger.refusals(10)
    assert told["file"] == ""
    assert told["reason"].startswith("other bytes; its bytes were deleted on 2026-02-11 by retention, after 7 days")
    events = [each["event"] for each in story.series()["timeline"]]
    assert events.count("deleted") == 2
    story.later(61)
    story.run()
    assert {each["event"] for each in story.series()["timeline"]} == {"deleted"}
    with story.node.ledger.engine.connect() as db:
        assert db.execute(sa.text("SELECT count(*) FROM association")).scalar() == 0


class SmallDisk:
    """What lies in the data folder is on a disk of so many bytes, and nothing else is."""

    def __init__(self, story: Story, monkeypatch: pytest.MonkeyPatch, total: int, **marks: float) -> None:
        self.story, self.total = story, total
        monkeypatch.setattr(story.node.retention, "_disk", self.measure)
        settings = story.node.retention.settings.model_copy(update={"keep_days": 0, **marks})
        story.node.retention.settings = settings

    def measure(self) -> Disk:
        files = [path for folder in ("spool", "results") for path in (self.story.folder / "data" / folder).rglob("*")]
        return Disk(self.total, self.total - sum(path.stat().st_size for path in files if path.is_file()))


def kept_aside(story: Story, size: int, number: int) -> list[str]:
    """Files of the kinds that are kept aside, a refusal for each, a day apart; their names, the oldest first."""
    names = []
    for count in range(number):
        name = ("aside/{}.dcm", "unreadable/{}.dcm", "unreadable/{}.txt")[count % 3].format(count)
        path = story.node.spool.root / name
        path.write_bytes(bytes(size))
        os.utime(path, ((story.time - timedelta(days=number - count)).timestamp(),) * 2)
        story.node.ledger.note_refusal(Refusal("unreadable", T0, "CT1", "127.0.0.1", "cut off", file=name))
        names.append(name)
    return names


def left(story: Story) -> set[str]:
    root = story.node.spool.root
    return {path.relative_to(root).as_posix() for kind in ("aside", "unreadable") for path in (root / kind).iterdir()}


def test_a_full_disk_asks_for_what_was_kept_aside_before_any_series(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest first, until the second mark; each one is an event, and its refusal says what became of its bytes. Of
    what came a moment ago the refusal may not be written yet: it stays. Then series go."""
    story.arrive()
    events: list[tuple[str, Any]] = []
    monkeypatch.setattr(story.node.retention, "audit", lambda event, facts: events.append((event, facts)))
    names = kept_aside(story, 1 << 20, 9)
    disk = SmallDisk(story, monkeypatch, 12 << 20, start_used_percent=80.0, stop_used_percent=70.0)
    assert disk.measure().above(80.0, 0) is None
    assert list(story.node.retention._aside_goes()) == [], "the mark has not been passed"
    names += kept_aside(story, (1 << 20) + 1, 12)[9:]  # some of them again, and three more
    went = [each.what for each in story.node.retention.plan() if isinstance(each, Aside)]
    assert left(story) == set(names)
    assert [each for each in story.node.retention.a_pass() if isinstance(each, Decision)] == []
    assert went == names[: len(went)]
    assert 0 < len(went) < len(names)
    assert left(story) == set(names) - set(went)
    assert disk.measure().above(70.0, 0) is None
    assert [(event, facts["file"]) for event, facts in events] == [("refused-bytes-deleted", name) for name in went]
    assert all("of the disk are used" in facts["why"] for _, facts in events)
    told = {row["reason"] for row in story.node.ledger.refusals(100) if not row["file"]}
    assert len(told) >= 1
    assert all("its bytes were deleted on" in reason for reason in told)
    assert {row["file"] for row in story.node.ledger.refusals(100)} - {""} == left(story)
    for name in left(story):
        os.utime(story.node.spool.root / name, (story.time.timestamp(),) * 2)
    disk.total = 1 << 20
    [gone] = story.run()
    assert gone.holding.series_uid == story.uid
    assert left(story) == set(names) - set(went)


def test_what_is_kept_aside_is_looked_at_each_time_while_the_disk_is_full(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else may go: the next look at all series is an hour away, and a sender of what cannot be read goes on."""
    [job] = story.close()
    story.end(job, "failed", "out of memory")
    disk = SmallDisk(story, monkeypatch, 2, start_used_percent=80.0, stop_used_percent=70.0)
    story.node.retention.tick()
    assert story.node.retention.short is not None
    for _ in range(2):
        assert kept_aside(story, 100, 4)
        story.node.retention.tick()
        assert left(story) == set()
        assert story.node.retention.short is not None
    assert kept_aside(story, 1 << 20, 4)
    disk.total = 5 << 19  # without some of them it is well again
    story.node.retention.tick()
    assert left(story)
    assert story.node.retention.short is None


def test_the_command_tells_of_what_is_kept_aside(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    story.arrive()
    story.file.write_text(story.file.read_text().replace("keep_days = 30", "keep_days = 30\naside_days = 3"))
    kept_aside(story, 1000, 5)
    for name in left(story):
        number = int(Path(name).stem)
        os.utime(story.node.spool.root / name, (datetime.now(UTC).timestamp() - 86400 * (5.5 - number),) * 2)
    story.node.ledger.close()
    words = ["retention", "--config", str(story.file)]
    said = CliRunner().invoke(app, words).stdout.splitlines()
    assert said[0] == "goes: aside/0.dcm, 0.0 MB: after 3 days"
    assert [line.split(",")[0] for line in said[1:3]] == ["goes: unreadable/1.dcm", "goes: unreadable/2.txt"]
    assert said[-1].startswith("1 series and 3 files kept aside, ")
    assert len(left(story)) == 5
    done = CliRunner().invoke(app, [*words, "--delete"]).stdout.splitlines()
    assert [line for line in done if line.startswith("deleted: ")][:3] == [
        line.replace("goes", "deleted", 1) for line in said[:3]
    ]
    assert left(story) == {"aside/3.dcm", "unreadable/4.dcm"}


def test_sizes_and_the_forecast(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    story.arrive()
    story.node.retention.measure()
    sizes = story.node.retention.sizes
    on_disk = sum(path.stat().st_size for path in (story.folder / "data" / "spool").rglob("*.pack"))
    assert (sizes["images"], sizes["results"]) == (on_disk, len(b"a result") + len(b"its findings"))
    assert sizes["database"]
    came = sum(each.size for each in story.node.ledger.instances(story.uid))
    monkeypatch.setattr(story.node.retention, "_disk", lambda: Disk(came * 100, came * 20))
    story.node.retention.measure()
    assert story.node.retention.full_in_days == 20.0  # all of it came today
    story.later(8)
    story.node.retention.measure()
    assert story.node.retention.full_in_days is None


# ---- the command


def test_the_command_says_what_goes_and_what_stays_and_does_it_if_told(story: Story) -> None:
    story.arrive()
    other = us_image(name="other")
    story.image(other)
    [job] = story.close()
    story.end(job, "failed", "out of memory")
    story.node.now = datetime.now  # type: ignore[assignment]
    story.node.ledger.close()
    words = ["retention", "--config", str(story.file)]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    goes, stays, summary = said.stdout.splitlines()
    assert goes.startswith(f"goes: {story.uid}: 2 images, ")
    assert goes.endswith("; its results arrived at pacs")
    assert stays.startswith(f"stays: {other.SeriesInstanceUID}: 1 images, ")
    assert stays.endswith(": breast-us failed: out of memory")
    assert summary.endswith(" would go; 1 stay")
    assert story.series()["state"] == "closed"
    done = CliRunner().invoke(app, [*words, "--delete"])
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, goes.replace("goes", "deleted", 1)), done.output
    assert story.series()["state"] == "deleted"
