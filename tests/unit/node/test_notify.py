"""What is new is told at once, what lasts seldom, that it is well again once; a restart repeats nothing, and nothing
waits for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy as sa
import structlog
from aiosmtpd.controller import Controller
from typer.testing import CliRunner

from config import Notify
from config.schema import About
from pacs_node import notify
from pacs_node.cli import app
from pacs_node.errors import LedgerUnavailable
from pacs_node.ledger import Ledger
from pacs_node.ledger.tables import job_table, series_table
from pacs_node.notify import Notifier, NotTold, World, deliver, found, planned, unknown_addresses, wrong_now
from pacs_node.records import Notice, Pause, Result
from tests.harness import free_port, wait_for

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
SECRET = "a-password-of-somebody"
ALL = get_args(About)


def receiver(**settings: Any) -> Notify:
    return Notify.model_validate({"name": "on-call", "urls": [f"json://u:{SECRET}@127.0.0.1:1/"], **settings})


WRONG = World(  # everything at once
    NOON,
    trouble=("the disk is full",),
    failed={"sending to pacs": "sending to pacs has failed for good (2 jobs): refused"},
    down=[("pacs", NOON - timedelta(minutes=31), "does not answer")],
    full_in_days=6.9,
    certificates=[("web", 14), ("other", None)],
    drifts={"lung-nodule 1 kernel": "lung-nodule 1: Convolution Kernel drifts"},
    silent={"CT from CT2": "no CT from CT2 since 2026-03-14 09:40 UTC, normally 6 an hour"},
    paused=[Pause("device", "cpu", NOON - timedelta(hours=13), "ada")],
    heartbeat="the heartbeat failed",
)
KEYS = {
    "node": "node",
    "jobs": "jobs sending to pacs",
    "destination": "destination pacs",
    "disk": "disk",
    "certificate": "certificate web",
    "silence": "silence CT from CT2",
    "pause": "pause device cpu",
    "heartbeat": "heartbeat",
    "drift": "drift lung-nodule 1 kernel",
}


def test_each_kind_is_told_to_those_who_want_it() -> None:
    assert {*KEYS, "finding"} == set(ALL)
    for kind, key in KEYS.items():
        assert wrong_now(receiver(about=[kind]), WRONG, {}).keys() == {key}
    assert wrong_now(receiver(about=["finding"]), WRONG, {}) == {}
    assert wrong_now(receiver(), WRONG, {}).keys() == set(KEYS.values()), "all of them without being asked"
    assert wrong_now(receiver(about=ALL), World(NOON), {}) == {}


@pytest.mark.parametrize(
    "almost",
    [
        replace(WRONG, down=[("pacs", NOON - timedelta(minutes=29), "does not answer")]),
        replace(WRONG, full_in_days=7.1),
        replace(WRONG, certificates=[("web", 15)]),
    ],
)
def test_what_is_not_bad_enough_yet_is_not_told(almost: World) -> None:
    assert len(wrong_now(receiver(), almost, {})) == len(KEYS) - 1


def test_new_lasting_and_well_again() -> None:
    again = timedelta(hours=24)
    first = planned({}, {"disk": "full in 6 days"}, again, NOON)
    assert (first.lines, first.wrong) == (("full in 6 days",), 1)
    told = dict(first.noted)
    for hours in (1, 23.9):
        assert planned(told, {"disk": "full in 5 days"}, again, NOON + timedelta(hours=hours)).lines == ()
    later = planned(told, {"disk": "full in 5 days"}, again, NOON + again)
    assert later.lines[0].endswith(": full in 5 days")
    assert later.lines[0].startswith("still, since 2026-03-02 12:00 UTC: ")
    told |= dict(later.noted)
    assert planned(told, {"disk": "full in 5 days"}, again, NOON + 1.9 * again).lines == ()
    over = planned(told, {}, again, NOON + 2 * again)
    assert (over.lines, over.wrong, over.over) == (("well again: full in 5 days",), 0, ("disk",))


def test_a_silence_lasts_into_hours_at_which_nothing_ever_comes_and_ends_when_something_does() -> None:
    told = {KEYS["silence"]: Notice("no CT from CT2", NOON, NOON)}
    night = replace(WRONG, silent={}, heard={"CT from CT2": NOON - timedelta(hours=2)}, now=NOON + timedelta(hours=9))
    assert wrong_now(receiver(about=["silence"]), night, told) == {KEYS["silence"]: "no CT from CT2"}
    back = replace(night, heard={"CT from CT2": NOON + timedelta(hours=10)})
    assert wrong_now(receiver(about=["silence"]), back, told) == {}


def job(number: int, pipeline: str = "lung-nodule", **sizes: float) -> dict[str, Any]:
    facts: Mapping[str, Any] = {"seconds": 1.0} | ({"largest_mm": sizes} if sizes else {})
    return {"id": f"j{number}", "series_uid": f"1.2.{number}", "pipeline": pipeline, "facts": facts}


@pytest.mark.parametrize(
    ("settings", "which"),
    [
        ({}, {1, 2, 3}),
        ({"min_size_mm": 15.0}, {2}),
        ({"kinds": ["Mass"]}, {2}),
        ({"kinds": ["Nodule"], "min_size_mm": 15.0}, set()),
        ({"pipelines": ["breast-us"]}, {3}),
    ],
)
def test_findings_are_told_by_pipeline_kind_and_size(settings: dict[str, Any], which: set[int]) -> None:
    jobs = [job(1, Nodule=6.0), job(2, Nodule=12.0, Mass=31.5), job(3, "breast-us", Nodule=9.0), job(4)]
    told = found(receiver(about=["finding"], **settings), jobs)
    assert told.keys() == {f"finding j{number}" for number in which}
    if settings.get("min_size_mm") and which:
        assert told == {"finding j2": "lung-nodule found: Mass of 31.5 mm; series 1.2.2"}


# With a ledger --------------------------------------------------------------------------------------------------------


class Inbox:
    """Takes messages; refuses them while it is told to."""

    def __init__(self) -> None:
        self.refuses: Exception | None = None
        self.messages: list[tuple[str, str]] = []

    def __call__(self, urls: Sequence[str], title: str, body: str) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.messages.append((title, body))


class Watched:
    """A node that is watched; `world` is what is wrong with it."""

    def __init__(self, ledger: Ledger, *receivers: Notify) -> None:
        self.ledger, self.receivers, self.world, self.inbox = ledger, receivers or (receiver(),), World(NOON), Inbox()
        self.start()

    def start(self) -> None:
        self.notifier = Notifier(self.receivers, self.ledger, lambda: self.world, "pacs-node AI", 1800, self.inbox)

    def look(self, world: World) -> list[tuple[str, str]]:
        """What is told."""
        self.world, before = world, len(self.inbox.messages)
        self.notifier.look()
        return self.inbox.messages[before:]


def test_a_restart_repeats_nothing_and_forgets_nothing(ledger: Ledger) -> None:
    watched = Watched(ledger)
    quiet = replace(WRONG, silent={})
    [(title, body)] = watched.look(quiet)
    assert title == f"pacs-node AI: {len(KEYS) - 1} things to see to"
    assert len(body.splitlines()) == len(KEYS) - 1
    watched.start()
    assert watched.look(replace(quiet, now=NOON + timedelta(hours=1))) == []
    [(title, body)] = watched.look(World(NOON + timedelta(hours=2)))
    assert title == "pacs-node AI: well again"
    assert body.count("- well again: ") == len(KEYS) - 1
    assert watched.look(World(NOON + timedelta(hours=3))) == []
    assert ledger.notices("on-call") == {}


def test_nobody_is_told_again_because_the_ledger_takes_no_writes(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told of, once, to everybody; and once that it is well again."""

    def full(*_: Any) -> None:
        raise LedgerUnavailable("the database does not answer")

    watched, told = Watched(ledger, receiver(name="first"), receiver(name="second")), ledger.told
    monkeypatch.setattr(ledger, "told", full)
    said = []
    for minute in range(3):
        with pytest.raises(LedgerUnavailable):
            watched.look(World(NOON + timedelta(minutes=minute), trouble=("the disk is full",)))
        said.append(len(watched.inbox.messages))
    assert said == [2, 2, 2]
    monkeypatch.setattr(ledger, "told", told)
    assert len(watched.look(World(NOON + timedelta(hours=1)))) == 2
    assert (ledger.notices("first"), ledger.notices("second")) == ({}, {})


def test_a_destination_that_takes_nothing_is_told_though_an_older_send_to_it_waits(ledger: Ledger) -> None:
    """Since the first one that failed after the last one that succeeded; one that others overtook hides nothing."""
    job = {"kind": "send", "series_uid": "1.2", "study_uid": "1.3", "revision": 1, "pipeline": "p", "route": "r"}
    job |= {"options": {}, "send_to": [], "destination": "pacs", "priority": 5, "warnings": [], "facts": {}}

    def add(name: str, hours_ago: float, state: str, ended_hours_ago: float | None = None, attempt: int = 20) -> None:
        made = NOON - timedelta(hours=hours_ago)
        ended = None if ended_hours_ago is None else NOON - timedelta(hours=ended_hours_ago)
        own = {"id": name, "created_at": made, "started_at": made, "finished_at": ended, "attempt": attempt}
        with ledger.engine.begin() as db:
            db.execute(sa.insert(job_table).values(**job, **own, state=state, reason=f"{name}: no answer"))

    add("old", 50, "waiting")
    assert ledger.failing_sends(NOON) == [("pacs", NOON - timedelta(hours=50), "old: no answer")]
    add("went through", 49, "done", 48)
    assert ledger.failing_sends(NOON) == [], "it takes what is sent since"
    add("first of many", 40, "waiting")
    add("second", 39, "queued")
    add("new", 1, "queued", attempt=1)
    assert ledger.failing_sends(NOON) == [("pacs", NOON - timedelta(hours=40), "first of many: no answer")]


def test_what_nobody_wants_to_hear_of_any_more_is_not_called_well() -> None:
    told = {"disk": Notice("full in 2 days", NOON, NOON), "node": Notice("it is down", NOON, NOON)}
    plan = planned(told, {}, timedelta(hours=24), NOON, ("node",))
    assert (plan.lines, set(plan.over)) == (("well again: it is down",), {"disk", "node"})


@pytest.mark.parametrize("error", [NotTold("address 1 of urls did not take the message"), OSError(SECRET)])
def test_what_could_not_be_told_is_told_later(ledger: Ledger, error: Exception) -> None:
    watched = Watched(ledger)
    watched.inbox.refuses = error
    with structlog.testing.capture_logs() as logs:
        assert watched.look(replace(WRONG, silent={})) == []
    assert "on-call could not be told" in watched.notifier.troubles["on-call"]
    assert watched.notifier.trouble() == [watched.notifier.troubles["on-call"]]
    assert SECRET not in str(watched.notifier.troubles) + str(logs)
    watched.inbox.refuses = None
    assert len(watched.look(replace(WRONG, silent={}))) == 1
    assert watched.notifier.troubles == {}


def test_one_receiver_that_cannot_be_told_does_not_keep_another_from_it(ledger: Ledger) -> None:
    class OneIsAway(Inbox):
        def __call__(self, urls: Sequence[str], title: str, body: str) -> None:
            if "away" in urls[0]:
                raise NotTold("away")
            super().__call__(urls, title, body)

    watched = Watched(ledger, receiver(name="first", urls=["json://away/"]), receiver(name="second"))
    watched.inbox = OneIsAway()
    watched.start()
    assert len(watched.look(replace(WRONG, silent={}))) == 1
    assert watched.notifier.troubles.keys() == {"first"}


def test_a_stop_does_not_wait_for_a_message_on_its_way(ledger: Ledger) -> None:
    watched, going, over = Watched(ledger), threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        going.set()
        over.wait(60)

    watched.notifier.send = slow
    watched.world = replace(WRONG, silent={})
    watched.notifier.loop.start()
    assert going.wait(30)
    began = time.monotonic()
    watched.notifier.stop()
    assert time.monotonic() - began < 30, "it waited for the message"
    over.set()
    assert ledger.notices("on-call") == {}, "what was not told is not noted"


def test_a_message_that_takes_too_long_is_given_up(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "LONGEST_S", 0.1)
    watched, over = Watched(ledger), threading.Event()
    watched.notifier.send = lambda *_: over.wait(60)
    watched.look(replace(WRONG, silent={}))
    assert "it took too long" in watched.notifier.troubles["on-call"]
    over.set()


def test_a_sender_that_stops_is_missed_and_heard_again(ledger: Ledger) -> None:
    """From rows of the list of series, through weeks of a habit."""
    stopped = NOON - timedelta(hours=5)
    came = [NOON - timedelta(days=7 * week, hours=hour) for week in range(6) for hour in range(10)]
    came = [at for at in came if at <= stopped]
    series = {"study_uid": "1.3", "state": "closed", "description": "", "arrived": 1, "revision": 1}
    series |= {"deleted_images": 0}

    def add(number: int, at: datetime, sender: str = "CT2") -> None:
        own = {"series_uid": f"1.2.{sender}.{number}", "first_arrival": at, "last_arrival": at, "sender": sender}
        with ledger.engine.begin() as db:
            db.execute(sa.insert(series_table).values(**series, **own, modality="CT"))

    for number, at in enumerate(came):
        add(number, at)
        add(number, at, "CT3")
    add(1000, NOON - timedelta(minutes=5), "CT3")
    watched = Watched(ledger, receiver(about=["silence"]))
    assert watched.look(World(NOON - timedelta(hours=2))) == []
    watched.start()  # it learns again
    [(_, body)] = watched.look(World(NOON))
    assert "no CT from CT2 since" in body
    assert "CT3" not in body
    watched.start()
    add(1001, NOON + timedelta(hours=2))
    [(_, body)] = watched.look(World(NOON + timedelta(hours=2, minutes=1)))
    assert body.startswith("- well again: no CT from CT2 since")


def test_findings_are_told_once_and_none_of_before(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(1, Nodule=20.0)]
    asked: list[datetime] = []

    def inferred(since: datetime, began: datetime) -> list[dict[str, Any]]:
        asked.append(since)
        return jobs

    monkeypatch.setattr(ledger, "inferred_since", inferred)
    watched = Watched(ledger, receiver(about=["finding"]))
    assert watched.look(World(NOON)) == []
    jobs[:] = [job(2, Nodule=20.0)]
    [(title, body)] = watched.look(World(NOON + timedelta(minutes=1)))
    assert (title, body) == (
        "pacs-node AI: 1 thing to see to",
        "- lung-nodule found: Nodule of 20 mm; series 1.2.2",
    )
    watched.start()
    assert watched.look(World(NOON + timedelta(minutes=2))) == []
    jobs[:] = [job(3, Nodule=20.0)]  # it runs again, with the same outcome
    same = Result("2.25.1", "1.2.840.10008.5.1.4.1.1.88.34", Path("1.dcm"))
    monkeypatch.setattr(ledger, "results", lambda job_id: [same])
    assert len(watched.look(World(NOON + timedelta(minutes=3)))) == 1
    jobs[:] = [job(4, Nodule=20.0)]
    assert watched.look(World(NOON + timedelta(minutes=4))) == []
    jobs.clear()
    assert watched.look(World(NOON + timedelta(days=8))) == [], "that it is over is no news"
    assert ledger.notices("on-call") == {}
    assert asked[0] < NOON


# To real servers ------------------------------------------------------------------------------------------------------


class Mailbox:
    """An SMTP server's handler that keeps what it is sent."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802  aiosmtpd's name
        self.mails.append(envelope)
        return "250 kept"


@pytest.fixture
def mailbox() -> Iterator[tuple[str, Mailbox]]:
    box = Mailbox()
    server = Controller(box, hostname="127.0.0.1", port=free_port())
    server.start()
    yield f"mailto://127.0.0.1:{server.port}?from=node@example.org&to=oncall@example.org&mode=insecure", box
    server.stop()


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    got: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200 if "fine" in self.path else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}/fine", got
    server.shutdown()
    server.server_close()


def test_a_mail_and_a_webhook_arrive(mailbox: tuple[str, Mailbox], webhook: tuple[str, list[dict[str, Any]]]) -> None:
    deliver([mailbox[0], webhook[0]], "pacs-node AI: 1 thing to see to", "- no CT from CT2 since 09:40 UTC")
    [mail] = mailbox[1].mails
    assert mail.rcpt_tos == ["oncall@example.org"]
    assert "no CT from CT2 since 09:40 UTC" in mail.content.decode()
    [told] = webhook[1]
    assert (told["title"], told["message"]) == (
        "pacs-node AI: 1 thing to see to",
        "- no CT from CT2 since 09:40 UTC",
    )


def test_where_one_of_several_takes_it_the_others_are_in_the_log(webhook: tuple[str, list[dict[str, Any]]]) -> None:
    with structlog.testing.capture_logs() as logs:
        deliver([webhook[0].replace("fine", f"bad/{SECRET}"), webhook[0]], "t", "b")
    assert [each["error"] for each in logs] == ["address 1 of urls did not take the message"]
    with pytest.raises(NotTold, match="address 1 of urls did not take the message") as failed:
        deliver([webhook[0].replace("fine", f"bad/{SECRET}")], "t", "b")
    assert SECRET not in str(failed.value)


def test_an_address_of_no_service_is_said_without_it() -> None:
    [words] = unknown_addresses(receiver(urls=["json://127.0.0.1/", f"nosuch://{SECRET}@x"]))
    assert words.startswith("[[notify]] 'on-call': address 2 of urls is none that Apprise knows")
    assert SECRET not in words


TOML = """
[node]
data_dir = "data"
[[notify]]
name = "on-call"
urls = ["{url}"]
"""


def test_the_command_tries_everybody(tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]]) -> None:
    file = tmp_path / "node.toml"
    file.write_text(TOML.format(url=webhook[0]))
    done = CliRunner().invoke(app, ["notify", "--config", str(file), "--test"])
    assert (done.exit_code, done.output) == (
        0,
        "on-call: told of node, jobs, destination, disk, certificate, silence, pause, heartbeat, drift\n",
    )
    assert webhook[1][0]["title"] == "pacs-node PACSNODE: a test"
    file.write_text(TOML.format(url=webhook[0].replace("fine", SECRET)))
    done = CliRunner().invoke(app, ["notify", "--config", str(file), "--test"])
    assert (done.exit_code, SECRET in done.output) == (1, False)
    assert "on-call: not reached: address 1 of urls did not take the message" in done.output
    lasting = CliRunner().invoke(app, ["notify", "--config", str(file)])
    assert (lasting.exit_code, lasting.output.count("\n")) == (0, 1)
    file.write_text('[node]\ndata_dir = "data"\n')
    done = CliRunner().invoke(app, ["notify", "--config", str(file)])
    assert done.exit_code == 1


def test_the_loop_tells_by_itself(ledger: Ledger) -> None:
    watched = Watched(ledger)
    watched.world = replace(WRONG, silent={})
    watched.notifier.loop.start()
    wait_for(lambda: watched.inbox.messages, 30, "a message")
    watched.notifier.stop()
