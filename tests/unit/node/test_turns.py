"""Who is next, over any arrivals: STAT first, each sender in its own order, none held up by another, none for ever."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from pacs_node.ledger import Ledger, engine
from pacs_node.ledger.queues import in_order_of_queues
from pacs_node.ledger.tables import job_table
from pacs_node.records import NEXT, Job
from pacs_node.turns import EVERY, begun, in_order, turn_of

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EVER_S = 3.0  # overtaken for so long: a start of EVERY
STEP_S = 1.0  # that one start takes
PRIORITIES = (1, 3, 5, 7)

# what comes before each start: (sender, priority)
ARRIVALS = st.lists(
    st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from(PRIORITIES)), max_size=4), min_size=1, max_size=30
)


def job(name: str, sender: str, priority: int, at: datetime = T0, **changes: object) -> Job:
    made = Job(name, "infer", f"1.{name}", "1.8", 1, "lung-nodule", "r", priority, at, ("pacs",), sender=sender)
    return replace(made, **changes)  # type: ignore[arg-type]


class Line:
    """A queue, as the ledger keeps it."""

    def __init__(self) -> None:
        self.waiting: dict[str, Job] = {}
        self.overtaken: dict[int, int] = {}
        self.on: dict[int, int] = {}
        self.latest: dict[tuple[int, str], int] = {}
        self.begun: list[tuple[Job, datetime, list[Job]]] = []  # with what waited then

    def add(self, made: Job) -> None:
        place = made.priority, made.sender
        turn = self.latest[place] = turn_of(self.on.get(made.priority, 1), self.latest.get(place))
        self.waiting[made.id] = replace(made, turn=turn)
        self.overtaken.setdefault(made.priority, 0)

    def start(self, now: datetime) -> None:
        waiting = list(self.waiting.values())
        for one in in_order(waiting, self.overtaken, now, EVER_S, 1):
            self.begun.append((one.job, now, waiting))
            del self.waiting[one.job.id]
            self.overtaken = begun(self.overtaken, one.job.priority, ())
            self.on[one.job.priority] = max(self.on.get(one.job.priority, 1), one.job.turn)


def run(arrivals: list[list[tuple[str, int]]]) -> list[tuple[Job, datetime, list[Job]]]:
    line, number, now = Line(), count(), T0
    for some in arrivals:
        for sender, priority in some:
            line.add(job(f"{next(number):04}", sender, priority, now))
        line.start(now)
        now += timedelta(seconds=STEP_S)
    while line.waiting:
        line.start(now)
        now += timedelta(seconds=STEP_S)
    return line.begun


@given(ARRIVALS)
def test_every_job_begins_once_and_each_senders_in_their_order(arrivals: list[list[tuple[str, int]]]) -> None:
    story = run(arrivals)
    assert len({one.id for one, *_ in story}) == len(story) == sum(map(len, arrivals))
    of: dict[tuple[str, int], list[str]] = defaultdict(list)
    for one, *_ in story:
        of[one.sender, one.priority].append(one.id)
    assert all(names == sorted(names) for names in of.values())


@given(ARRIVALS)
def test_stat_is_first_but_for_one_start_in_four(arrivals: list[list[tuple[str, int]]]) -> None:
    stats = EVERY
    for one, now, waiting in run(arrivals):
        if one.priority == min(other.priority for other in waiting):
            stats += one.priority == 1
            continue
        assert now - one.created_at >= timedelta(seconds=EVER_S)
        assert stats >= EVERY - 1 or all(other.priority > 1 for other in waiting)
        stats = 0


@given(ARRIVALS, st.lists(st.integers(0, 99), min_size=1, max_size=9))
def test_what_a_person_wants_next_is_before_all(arrivals: list[list[tuple[str, int]]], wanted: list[int]) -> None:
    """Also before what is owed a start, because more urgent jobs have overtaken it for too long."""
    waiting = [
        job(f"{n}", sender, priority) for n, (sender, priority) in enumerate(each for a in arrivals for each in a)
    ]
    for number in wanted if waiting else ():
        chosen = waiting[number % len(waiting)]
        waiting[waiting.index(chosen)] = replace(chosen, priority=NEXT)
    nexts = sum(one.priority == NEXT for one in waiting)
    overtaken = dict.fromkeys(PRIORITIES, EVERY)
    order = in_order(waiting, overtaken, T0 + timedelta(days=1), EVER_S, len(waiting))
    assert [one.job.priority for one in order[:nexts]] == [NEXT] * nexts
    assert len(order) == len(waiting)


@given(ARRIVALS, st.integers(0, 3))
def test_one_sender_waits_for_at_most_two_of_another(arrivals: list[list[tuple[str, int]]], which: int) -> None:
    """Between two of its own starts, while it has some waiting; however many the other has."""
    story = [each for each in run(arrivals) if each[0].priority == PRIORITIES[which]]
    ahead: Counter[tuple[str, str]] = Counter()
    for one, _, waiting in story:
        others = {other.sender for other in waiting if other.priority == one.priority} - {one.sender}
        for other in "ABCD":
            ahead[other, one.sender] = 0 if other not in others else ahead[other, one.sender] + 1
            assert ahead[other, one.sender] <= 2, (other, one)
            ahead[one.sender, other] = 0


@given(st.integers(2, 30), st.integers(0, 30), st.integers(2, 30))
def test_whoever_comes_late_makes_up_for_nothing(there: int, done: int, late: int) -> None:
    """Many from one; after some of them as many from another: from then on both take turns."""
    line = Line()
    for n in range(there + done):
        line.add(job(f"a{n:03}", "A", 5))
    for _ in range(done):
        line.start(T0)
    for n in range(late):
        line.add(job(f"b{n:03}", "B", 5))
    for _ in range(2 * min(there, late)):
        line.start(T0)
    senders = "".join(one.sender for one, *_ in line.begun[done:])
    assert "AAA" not in senders
    assert "BBB" not in senders


@given(st.integers(1, 200), st.sampled_from([3, 5, 7]))
def test_nothing_waits_for_ever(before: int, priority: int) -> None:
    """STAT without end: the last of a backlog still begins, in four starts for each that is older."""
    line, now, number = Line(), T0, count()
    for _ in range(before % 7 + 1):
        line.add(job(f"old{next(number):03}", "A", priority, now))
    left = len(line.waiting)
    for _ in range(int(EVER_S / STEP_S) + EVERY * (left + 1)):
        line.add(job(f"stat{next(number):03}", "B", 1, now))
        line.start(now)
        now += timedelta(seconds=STEP_S)
    assert not any(name.startswith("old") for name in line.waiting)


# ---------------------------------------------------------------------------------------- the same, in the ledger


@contextmanager
def emptied(ledger: Ledger) -> Iterator[Ledger]:
    with ledger._begin() as db:
        for table in ("job", "queue", "event"):
            db.execute(sa.text(f"DELETE FROM {table}"))
    yield ledger


def add(ledger: Ledger, *jobs: Job) -> None:
    with ledger._begin() as db:
        for one in jobs:
            ledger._add_job(db, one)


def test_the_ledger_keeps_the_same_order(ledger: Ledger) -> None:
    @settings(max_examples=12, deadline=None)
    @given(ARRIVALS)
    def holds(arrivals: list[list[tuple[str, int]]]) -> None:
        arrivals = arrivals[:10]
        wanted, found, now, number = [one.id for one, *_ in run(arrivals)], [], T0, count()
        with emptied(ledger):
            for some in [*arrivals, *([()] * len(wanted))]:
                add(ledger, *(job(f"{next(number):04}", *each, now) for each in some))
                for one in ledger.due_jobs(now, {"infer": 1}, EVER_S):
                    assert ledger.begin(one, "w", now)
                    found.append(one.id)
                now += timedelta(seconds=STEP_S)
        assert found == wanted

    holds()


def test_a_single_series_does_not_wait_for_the_thousands_of_another(ledger: Ledger) -> None:
    add(ledger, *(job(f"{n:04}", "ARCHIVE", 5) for n in range(300)))
    for _ in range(3):
        [one] = ledger.due_jobs(T0, {"infer": 1}, 3600)
        assert ledger.begin(one, "w", T0)
    add(ledger, job("single", "CT1", 5, T0 + timedelta(hours=2)), job("stat", "ARCHIVE", 1, T0 + timedelta(hours=2)))
    first = [one.id for one in ledger.due_jobs(T0 + timedelta(hours=2), {"infer": 4}, 3600)]
    assert first == ["stat", "single", "0003", "0004"]
    [queue] = ledger.queues(T0, 3, 3600)
    assert (queue["waiting"], len(queue["jobs"])) == (299, 6)
    assert [(one["job"], one["place"]) for one in queue["jobs"][2:5]] == [("0002", None), ("stat", 1), ("single", 2)]
    assert [one["why"] for one in queue["jobs"][3:5]] == ["STAT, turn 1 of ARCHIVE", "routine, turn 3 of CT1"]


def test_turns_that_nobody_takes_are_given_again(ledger: Ledger) -> None:
    """A sender whose jobs late images made void is not put behind for them."""
    add(ledger, *(job(f"{n}", "CT1", 5) for n in range(3)))
    with ledger._begin() as db:
        db.execute(sa.update(job_table).values(state="superseded"))
    add(ledger, job("next", "CT1", 5))
    assert ledger.job("next").turn == 1


def test_several_workers_begin_every_job(ledger: Ledger) -> None:
    """Two receive, two work, on three queues of three classes, all at once: none waits for another for ever."""
    number, begun_jobs = 24, set[str]()
    others = [Ledger(ledger.url, ledger.root) for _ in range(4)]

    def receive(place: int) -> None:
        for n in range(number):
            kinds = [("send", "pacs"), ("send", "archive"), ("infer", None)][:: 1 if place else -1]
            with others[place]._begin() as db:
                for one in in_order_of_queues(
                    job(f"{place}{kind}{at}{n:02}", f"S{place}", (1, 5, 7)[n % 3], kind=kind, destination=at)
                    for kind, at in kinds
                ):
                    others[place]._add_job(db, one)

    def work(place: int) -> None:
        while len(begun_jobs) < 2 * 3 * number:
            for one in others[place].due_jobs(T0, {"infer": 2, "send": 2}, 3600):
                if others[place].begin(one, f"w{place}", T0):
                    begun_jobs.add(one.id)  # that it is begun once is the engine's part

    with ThreadPoolExecutor(4) as threads:
        tasks = [threads.submit(receive, 0), threads.submit(receive, 1)]
        tasks += [threads.submit(work, 2), threads.submit(work, 3)]
        for task in tasks:
            task.result(60)
    assert not ledger.due_jobs(T0, {"infer": 9, "send": 9}, 3600)
    assert {ledger.job(name).state for name in begun_jobs} == {"running"}
    for other in others:
        other.close()


def test_what_waits_when_the_node_is_upgraded_is_given_turns(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/old.sqlite", tmp_path)
    alembic = Config()
    alembic.set_main_option("script_location", str(Path(engine.__file__).with_name("migrations")))
    alembic.attributes["engine"] = ledger.engine
    command.upgrade(alembic, "0010")
    old = {"study_uid": "1.8", "revision": 1, "pipeline": "p", "route": "r", "options": "{}", "send_to": "[]"}
    old |= {"generation": 1, "attempt": 1, "crashes": 0, "reason": "", "progress": 0, "progress_text": ""}
    old |= {"warnings": "[]", "facts": "{}", "priority": 5, "kind": "infer", "state": "queued"}
    with ledger.engine.begin() as db:
        for n in range(4):
            sender = "CT1" if n == 3 else "ARCHIVE"
            row = {**old, "id": f"{n}", "series_uid": f"1.{n}", "created_at": f"2026-01-02T03:04:0{n}.000000+00:00"}
            names = ", ".join(row)
            db.execute(sa.text(f"INSERT INTO job ({names}) VALUES ({', '.join(f':{name}' for name in row)})"), row)
            image = {"uid": f"1.{n}.1", "series": f"1.{n}", "at": row["created_at"], "ae": sender}
            db.execute(
                sa.text(
                    "INSERT INTO instance (sop_instance_uid, sop_class_uid, series_uid, study_uid, transfer_syntax_uid,"
                    " path, size, received_at, association, calling_ae)"
                    " VALUES (:uid, 'c', :series, '1.8', 't', '/x', 1, :at, 'a', :ae)"
                ),
                image,
            )
    ledger.migrate()
    try:
        assert [one.id for one in ledger.due_jobs(T0, {"infer": 9}, 3600)] == ["0", "3", "1", "2"]
        add(ledger, job("new", "CT1", 5))
        assert ledger.job("new").turn == 1
    finally:
        ledger.close()
