"""The wall clock jumps by hours: series close and jobs run when they have waited for long enough, and no sooner."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from structlog.testing import capture_logs

from pacs_node.assemble.series import Close, decide
from pacs_node.errors import TryAgain
from pacs_node.flow import Flow, RetryPolicy, RouteMatch
from pacs_node.jobs import Engine
from pacs_node.ledger import Ledger
from pacs_node.records import Evidence, Instance, OpenSeries, Package, Receipt, Verdict
from pacs_node.silence import Silence
from tests.harness import wait_for
from tests.unit.node.test_jobs import ScriptedRooms

QUIET_S = 0.3
PLACES = ("receiving", "closing", "inferring", "sending", "waiting")
CASES = [*product(PLACES, (5 * 60, -5 * 60)), ("waiting", -10)]  # the last one is shorter than the longest backoff


class Clock:
    """The machine's clock, which somebody sets."""

    def __init__(self) -> None:
        self.shift = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.shift


class Rooms(ScriptedRooms):
    """Rooms in which the clock jumps when a test says so."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(folder)
        self.clock, self.jump_in, self.jump = clock, "", timedelta(0)
        self.first = True

    def at(self, place: str) -> None:
        if self.jump_in == place:
            self.jump_in = ""
            self.clock.shift += self.jump

    def decide(self, series: OpenSeries, now: datetime) -> str | None:
        decision = decide(series.evidence, now, quiet_s=QUIET_S, quiet_unreleased_s=QUIET_S, max_wait_s=QUIET_S)
        return decision.because if isinstance(decision, Close) else None

    def headers(self, instances: Sequence[Instance], files: Sequence[Path]) -> list[Dataset]:
        self.at("closing")
        return [Dataset() for _ in instances]

    def judge(self, headers: Sequence[Dataset]) -> Verdict:
        return Verdict(True, "fit")

    def matches(self, header: Dataset) -> list[RouteMatch]:
        return [RouteMatch("r", None, "lung-nodule", ("pacs",), 5, {})]

    def infer(self, *arguments: Any) -> Any:
        self.at("inferring")
        return super().infer(*arguments)

    def deliver(self, destination: str, package: Package) -> list[Receipt]:
        self.at("sending")
        if self.first:
            self.first = False
            raise TryAgain("pacs does not answer")
        return super().deliver(destination, package)


class Living:
    """A node without listener and pages."""

    def __init__(self, folder: Path, clock: Clock, backoff_s: float = 0.3) -> None:
        self.clock, self.rooms = clock, Rooms(folder, clock)
        self.ledger = Ledger(f"sqlite:///{folder}/node.sqlite", folder)
        self.ledger.migrate()
        policy = RetryPolicy(backoff_s, backoff_s, 50)
        self.flow = Flow(self.ledger, self.rooms, {"infer": policy, "send": policy}, poison_limit=5, now=clock,
                         jitter=random.Random(1), executor="w1", await_report_s=900)  # fmt: skip
        self.engine = Engine(self.ledger, self.flow, executor="w1", infer_slots=1, send_slots=1, sweep_s=0.5,
                             lease_s=30, poison_limit=5, poll_s=0.05, now=clock)  # fmt: skip
        self.engine.start()

    def stop(self) -> None:
        self.engine.stop(1)
        self.ledger.close()

    def receive(self, series: str) -> None:
        image = Instance(f"{series}.1", "c", series, "1.8", "t", Path("/x"), 1, self.clock(), "a", "CT1")
        self.ledger.take_in(image)

    def assemble(self) -> None:
        for series, because in self.flow.complete(frozenset()):
            self.flow.close(series, because)

    def state(self, series: str, kind: str) -> str:
        facts = self.ledger.series(series)
        assert facts is not None
        return next((job["state"] for job in facts["jobs"] if job["kind"] == kind), "none yet")

    def until(self, series: str, kind: str, state: str) -> None:
        def there() -> bool:
            self.assemble()
            return self.state(series, kind) == state

        wait_for(there, 30, f"{kind} of {series} {state}: {self.ledger.series(series)}")


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    living = Living(tmp_path_factory.mktemp("node"), Clock())
    yield living
    living.stop()


@pytest.mark.parametrize(("place", "minutes"), CASES)
def test_whenever_the_clock_jumps_everything_gets_done(living: Living, place: str, minutes: int) -> None:
    series = f"1.{place}.{minutes}"
    living.rooms.first, living.rooms.jump_in, living.rooms.jump = True, place, timedelta(minutes=minutes)
    living.receive(series)
    if place == "receiving":
        living.assemble()
        living.rooms.at("receiving")
        assert living.flow.complete(frozenset()) == [], "silent for a moment, whatever the clock says"
    if place == "waiting":
        living.until(series, "send", "waiting")
        living.rooms.at("waiting")
    living.until(series, "send", "done")
    assert living.rooms.jump_in == "", "it has jumped"


def test_a_clock_that_is_set_back_between_two_starts(tmp_path: Path) -> None:
    """An open series and a job that waits, from before, look as if they came in the future."""
    clock = Clock()
    first = Living(tmp_path, clock, backoff_s=600)
    first.receive("1.waits")
    first.until("1.waits", "send", "waiting")
    first.receive("1.open")
    first.stop()
    clock.shift -= timedelta(hours=5)
    with capture_logs() as events:
        second = Living(tmp_path, clock)
        second.rooms.first = False
        try:
            for series in ("1.waits", "1.open"):
                second.until(series, "send", "done")
        finally:
            second.stop()
    said = [event for event in events if event["event"] == "clock was set back"]
    assert {key for event in said for key in event} >= {"series", "job"}, "one of each"
    [told] = [each["text"] for each in second.ledger.series("1.waits")["timeline"] if each["event"] == "clock"]
    assert told.endswith("s ahead, so the clock was set back; it runs now")


# ------------------------------------------------------------------------------------------------------- in numbers

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def opened(arrived: int, last: datetime) -> OpenSeries:
    return OpenSeries("1.9", "1.8", Evidence(last, arrived), ("CT1",))


# (monotonic, wall clock, images, wall clock when the last one came, seconds of silence)
LOOKS = {
    "as it should be": [(100, 100, 1, 90, 10), (105, 105, 1, 90, 15), (110, 110, 2, 108, 2)],
    "forth while it is open": [(100, 100, 1, 99, 1), (105, 18105, 1, 99, 6), (110, 18110, 2, 18109, 1)],
    "back while it is open": [(100, 100, 1, 99, 1), (105, -17895, 1, 99, 6), (110, -17890, 2, -17891, 1)],
    "forth between an image and the look": [(100, 100, 1, 99, 1), (101, 18101, 2, 100.5, 1)],
    "back between an image and the look": [
        (100, 100, 1, 99, 1),
        (101, -17899, 2, 100.5, 0),
        (103, -17897, 2, 100.5, 2),
    ],
    "back before the start": [(5, 100, 1, 18000, 0), (9, 104, 1, 18000, 4)],
    "long ago": [(5, 18000, 1, 100, 17900), (9, 18004, 1, 100, 17904)],
}


@pytest.mark.parametrize("name", LOOKS)
def test_silence_is_measured_by_a_clock_that_nobody_sets(name: str) -> None:
    at = [0.0]
    silence = Silence(monotonic=lambda: at[0])
    for monotonic, wall, images, last, expected in LOOKS[name]:
        at[0] = monotonic
        now = T0 + timedelta(seconds=wall)
        [series] = silence.measured([opened(images, T0 + timedelta(seconds=last))], now)
        assert (now - series.evidence.last_arrival).total_seconds() == pytest.approx(expected), (monotonic, wall)


def test_a_series_that_opens_after_the_first_look_was_not_silent_before_it() -> None:
    at = [50.0]
    silence = Silence(monotonic=lambda: at[0])
    assert silence.measured([], T0) == []
    at[0] = 51.0
    [series] = silence.measured([opened(1, T0)], T0 + timedelta(hours=5))  # the clock was set forth in this second
    assert T0 + timedelta(hours=5) - series.evidence.last_arrival == timedelta(seconds=1)
