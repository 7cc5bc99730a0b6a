"""What a person pauses does not begin, all else does; what runs ends; nothing is lost, and nothing comes twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Notify
from pacs_node.audit import told
from pacs_node.devices import Devices
from pacs_node.ledger import Ledger
from pacs_node.ledger.tables import job_table, queue_table
from pacs_node.notify import World, wrong_now
from pacs_node.records import NEXT, STAT, Job, Pause
from tests.unit.node.test_facts import Story
from tests.unit.node.test_jobs import Gate, Running, now

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MOST = dict.fromkeys(("infer", "send", "confirm", "report"), 99)
HOUR = timedelta(hours=1)

# kind, pipeline and destination of each
JOBS = st.tuples(st.sampled_from(sorted(MOST)), st.sampled_from("PQ"), st.sampled_from(["pacs", "archive"]))
THINGS = (("destination", "pacs"), ("destination", "P"), ("pipeline", "P"), ("pipeline", "pacs"), ("device", "P"))
# what is paused, since and until when, in hours from now
PAUSES = st.dictionaries(st.sampled_from(THINGS), st.sampled_from([None, -0.5, 1.0]))


def should_wait(job: Job, paused: set[tuple[str, str]]) -> bool:
    """By hand: what docs/watching.md says of it."""
    if job.kind == "infer":
        return ("pipeline", job.pipeline) in paused
    return job.kind != "report" and ("destination", job.destination) in paused


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(f"sqlite:///{folder}/node.sqlite", folder)
    ledger.migrate()
    yield ledger
    ledger.close()


def made(number: int, kind: str, pipeline: str, destination: str, priority: int = 5) -> Job:
    to = None if kind == "infer" else destination
    job = Job(f"j{number}", kind, f"1.{number}", "1.8", 1, pipeline, "r", priority, T0, sender="CT1", destination=to)
    return replace(
        job, send_job="s" if kind == "confirm" else None, transaction_uid="1.9" if kind == "report" else None
    )


@settings(max_examples=60, deadline=None)
@given(jobs=st.lists(JOBS, min_size=1, max_size=8), pauses=PAUSES)
def test_all_begins_that_is_not_paused_and_nothing_else(
    shared: Ledger, jobs: list[tuple[str, str, str]], pauses: dict[tuple[str, str], float | None]
) -> None:
    with shared._begin() as db:
        for table in (job_table, queue_table):
            db.execute(table.delete())
        number = count()
        all_jobs = [made(next(number), *each) for each in jobs]
        for job in all_jobs:
            shared._add_job(db, job)
    for kind, name in THINGS:
        shared.resume(kind, name, T0)
    for (kind, name), hours in pauses.items():
        shared.pause(Pause(kind, name, T0 - HOUR, "ada", "", None if hours is None else T0 + hours * HOUR))
    on = {thing for thing, hours in pauses.items() if hours is None or hours > 0}
    held = {job.id for job in all_jobs if should_wait(job, on)}
    free = {job.id for job in all_jobs} - held

    assert {job.id for job in shared.due_jobs(T0, MOST, 3600)} == free
    shown = [job for queue in shared.queues(T0, 99, 3600) for job in queue["jobs"]]
    assert Counter(job["job"] for job in shown) == Counter(held | free), "each is shown once"
    assert {job["job"] for job in shown if "is paused by ada" in job["why"]} == held
    assert {job["job"] for job in shown if job["place"] is None} == held
    for job in all_jobs:
        assert shared.begin(job, "w1", T0) is (job.id in free), "given to the engine before"
    after = T0 + 2 * HOUR
    forever = {thing for thing, hours in pauses.items() if hours is None}
    waiting = {job.id for job in all_jobs if job.id in held and not should_wait(job, forever)}
    assert {job.id for job in shared.due_jobs(after, MOST, 3600)} == waiting, "a pause with an end has ended"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    running.engine.start()
    yield running
    running.stages.release.set()
    running.engine.stop(1)
    running.ledger.close()


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    story.receive()
    yield story
    story.node.stop()


def sends(running: Running) -> list[str]:
    return [name for name, _ in running.stages.sent]


def test_a_paused_destination_gets_nothing_more_and_then_all_of_it_once(running: Running) -> None:
    """The engine has been given some sends already when the pause comes."""
    running.stages.hanging.add("pacs")
    for name in "1234":
        running.add(name, send_to=("pacs",))
    running.wait(lambda: len(running.ledger.running_jobs()) == 1 and running.ledger.number_running("infer") == 0)
    running.wait(lambda: sum(job.kind == "send" for job in running.ledger.open_jobs()) == 4)
    running.ledger.pause(Pause("destination", "pacs", now(), "ada", "maintenance"))
    running.stages.release.set()
    running.add("5", send_to=("pacs", "archive"))
    running.wait(lambda: sends(running).count("archive") == 1)
    running.wait(lambda: not running.ledger.running_jobs())
    for _ in range(3):
        running.engine.sweep()
    assert Counter(sends(running)) == {"pacs": 1, "archive": 1}, "the send that ran has ended, no other has begun"
    [queue] = running.ledger.queues(now(), 9, 3600)
    assert {job["why"].partition(" since")[0] for job in queue["jobs"]} == {"sending to pacs is paused by ada"}
    assert running.ledger.resume("destination", "pacs", now())
    running.wait(lambda: running.states() == {"done"})
    assert Counter(sends(running)) == {"pacs": 5, "archive": 1}
    assert len(set(running.stages.sent)) == 6, "no object was sent twice"
    events = {event["event"] for uid in "12345" for event in running.ledger.series(f"1.{uid}")["timeline"]}
    assert "taken over" not in events, "it was no worker's fault"


def test_a_pause_is_there_after_a_restart(tmp_path: Path) -> None:
    before = Running(tmp_path)
    before.engine.start()
    before.ledger.pause(Pause("pipeline", "lung-nodule", now(), "ada"))
    before.add("7")
    before.engine.stop(1)
    before.ledger.close()
    after = Running(tmp_path)
    after.engine.start()
    try:
        for _ in range(3):
            after.engine.sweep()
        assert [job.state for job in after.ledger.open_jobs()] == ["queued"]
        assert after.ledger.resume("pipeline", "lung-nodule", now())
        after.wait(lambda: after.states() == {"done"})
        assert len(after.stages.sent) == 1
    finally:
        after.stages.release.set()
        after.engine.stop(1)
        after.ledger.close()


def test_no_inference_begins_while_every_device_is_paused(running: Running) -> None:
    order, left = Gate(running), threading.Event()
    running.engine.devices_left = lambda pauses: int(left.is_set())
    running.engine.sweep()
    running.add("1", send_to=("pacs",))
    job = running.ledger.open_jobs()[0]
    running.engine._submit(job)  # as one that was handed out a moment before
    running.wait(lambda: running.ledger.job("1").generation == 2)
    for _ in range(3):
        running.engine.sweep()
    assert order.begun == []
    left.set()
    order.gate.set()
    running.engine.wake()
    running.wait(lambda: running.states() == {"done"})
    assert order.begun == ["1"]


def test_a_paused_device_is_passed_over_on_its_machine_alone() -> None:
    devices = Devices(["cpu", "cuda:0"], 1.0)
    for pauses, machine, left in (
        ([], "m1", 2),
        (["cuda:0@m2"], "m1", 2),
        (["cuda:0@m1"], "m1", 1),
        (["cpu"], "m2", 1),
    ):
        names = [Pause("device", name, T0, "ada") for name in pauses]
        assert devices.heed([*names, Pause("pipeline", "cpu", T0, "ada")], machine) == left
        free = [device.name for device in devices.all if not device.paused]
        assert [devices._fit(None, 1)[0].name for _ in range(2)] == [free[0]] * 2
        assert [each["state"] for each in devices.facts()] == [
            "idle" if device.name in free else "paused" for device in devices.all
        ]


@pytest.mark.parametrize("kind", ["send", "infer"])
def test_what_a_person_wants_next_passes_all_that_waits(running: Running, kind: str) -> None:
    """Also what the engine was given before it."""
    order = Gate(running)
    running.stages.hanging.add("pacs")
    if kind == "send":
        order.gate.set()
    for name in "1234":
        running.add(name, priority=STAT if name == "2" else 5)
    of_kind = [job for job in running.ledger.open_jobs() if job.kind == kind]
    running.wait(lambda: kind == "infer" or sum(job.kind == "send" for job in running.ledger.open_jobs()) == 4)
    running.wait(lambda: any(job.kind == kind for job in running.ledger.running_jobs()))
    if kind == "send":
        running.wait(lambda: not any(job.kind == "infer" for job in running.ledger.open_jobs()))
    for _ in range(2):
        running.engine.sweep()
    of_kind = [job for job in running.ledger.open_jobs() if job.kind == kind]
    [first] = [job for job in of_kind if job.state == "running"]
    assert running.ledger.hurry(first.id, NEXT, "ada", now()) == "it does not wait: it is running"
    waiting = [job for job in of_kind if job.state != "running"]
    chosen = [
        max(waiting, key=lambda job: (job.priority, job.series_uid)),
        min(waiting, key=lambda job: job.series_uid),
    ]
    for job in chosen:
        assert running.ledger.hurry(job.id, NEXT, "ada", now()) is None
    places = {job["job"]: job["place"] for queue in running.ledger.queues(now(), 9, 3600) for job in queue["jobs"]}
    assert [places[job.id] for job in reversed(chosen)] == [1, 2]
    order.gate.set()
    running.stages.release.set()
    running.wait(lambda: running.states() == {"done"})
    done = [job for one in running.ledger.series_list(9) for job in running.ledger.series(one["series_uid"])["jobs"]]
    began = sorted((job["started_at"], job["id"]) for job in done if job["kind"] == kind)
    assert [job for _, job in began][1:3] == [job.id for job in reversed(chosen)]
    assert len(running.stages.sent) == len(set(running.stages.sent)) == 4


def test_stat_and_what_cannot_be_hurried(running: Running) -> None:
    order = Gate(running)
    running.add("1")
    running.wait(lambda: order.begun == ["1"])
    running.add("2")
    running.add("3", sender="CT2")
    assert running.ledger.hurry("3", STAT, "ada", now()) is None
    assert running.ledger.hurry("3", STAT, "ada", now()) == "it is STAT already"
    assert running.ledger.hurry("nobody", STAT, "ada", now()) == "there is no such job"
    order.gate.set()
    running.wait(lambda: running.states() == {"done"})
    assert order.begun == ["1", "3", "2"]
    assert running.ledger.hurry("3", NEXT, "ada", now()) == "it does not wait: it is done"
    said = [event["text"] for event in running.ledger.series("1.3")["timeline"] if event["event"] == "priority"]
    assert said == ["infer lung-nodule: STAT, asked for by ada"]
    sent = [job for job in running.ledger.series("1.3")["jobs"] if job["kind"] == "send"]
    assert [job["priority"] for job in sent] == [STAT], "its results go as urgently"


@pytest.mark.parametrize("thing", ["pipeline breast-us", "destination results", "device auto"])
def test_a_pause_is_said_and_is_no_fault(story: Story, thing: str) -> None:
    kind, _, name = thing.partition(" ")
    job = story.one("infer")
    if kind == "destination":
        send = story.node.flow._send_job(job, "results")
        story.end(job, "done", "1 finding", send)
        job = send
    story.facts.since -= 1000
    assert story.facts.pause(kind, name, "ada", "a new driver") is None
    story.now.time += timedelta(hours=5)
    health = story.facts.health()
    assert (health["status"], health["reasons"]) == ("ok", [])
    [said] = health["paused"]
    assert "a new driver" in said
    assert "ada" not in said, "whoever asks is not known"
    [shown] = [each for each in story.facts.series(story.uid)["jobs"] if each["id"] == job.id]
    assert shown["paused"] == story.facts.pauses()[0]["words"]
    assert "by ada" in shown["paused"]
    [queue] = story.facts.queue(9)
    assert [(each["place"], each["why"]) for each in queue["jobs"]] == [(None, shown["paused"])]
    assert story.facts.resume(kind, name, "bob")
    assert not story.facts.resume(kind, name, "bob")
    if kind != "device":  # those have no row in the ledger that says since when the inferences wait
        assert story.status == "ok", "its turn has just come"
    story.now.time += timedelta(hours=2)
    assert story.status == "degraded", "nobody holds it any more, and it does not begin"
    story.node.audit.flush()
    events = [told(line) for line in story.node.audit.trail.backwards()]
    of_it = [(event["who"], event["about"]) for event in events if event is not None and thing in event["about"]]
    assert of_it == [(["bob"], [thing]), (["ada"], [thing])]


@pytest.mark.parametrize(
    ("kind", "name", "more"),
    [
        ("disk", "results", {}),
        ("destination", "nobody", {}),
        ("pipeline", "results", {}),
        ("device", "cuda:9@there", {}),
        ("destination", "results", {"hours": 0}),
        ("destination", "results", {"hours": float("nan")}),
        ("destination", "results", {"hours": float("inf")}),
        ("destination", "results", {"reason": "x" * 201}),
        ("destination", "results", {"reason": "two\nlines"}),
    ],
)
def test_what_cannot_be_paused_is_said(story: Story, kind: str, name: str, more: dict[str, object]) -> None:
    assert story.facts.pause(kind, name, "ada", **more)  # type: ignore[arg-type]
    assert story.facts.pauses() == []


def test_a_forgotten_pause_is_a_notice_until_it_ends() -> None:
    about = Notify.model_validate({"name": "on-call", "urls": ["json://127.0.0.1/"], "paused_h": 3})
    pause = Pause("destination", "pacs", T0, "ada", "maintenance")
    for hours, expected in ((2.9, []), (3.1, ["pause destination pacs"])):
        assert list(wrong_now(about, World(T0 + hours * HOUR, paused=[pause]), {})) == expected
    assert "maintenance" in wrong_now(about, World(T0 + 4 * HOUR, paused=[pause]), {})["pause destination pacs"]


def test_no_notice_says_that_a_paused_destination_takes_nothing(story: Story) -> None:
    infer = story.one("infer")
    send = story.node.flow._send_job(infer, "results")
    story.end(infer, "done", "1 finding", send)
    story.begin(send)
    assert story.ledger.retry_later(send, "the folder is away", story.now(), [], story.now())
    story.now.time += HOUR
    assert [name for name, _, _ in story.node._world(story.facts).down] == ["results"]
    assert story.facts.pause("destination", "results", "ada") is None
    world = story.node._world(story.facts)
    assert (world.down, [each.name for each in world.paused]) == ([], ["results"])


def test_the_pages_are_told_of_a_pause_as_of_any_change(story: Story) -> None:
    stamps = [story.facts.stamp()]
    assert story.facts.pause("destination", "results", "ada") is None
    stamps.append(story.facts.stamp())
    assert story.facts.resume("destination", "results", "ada")
    stamps.append(story.facts.stamp())
    assert story.facts.hurry(story.one("infer").id, STAT, "ada") is None
    stamps.append(story.facts.stamp())
    assert len(set(stamps)) == 4
    assert all(stamp.isprintable() and " " not in stamp for stamp in stamps), "a header of the browser holds it"
