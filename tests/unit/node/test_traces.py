"""Traces of series: told whole, once and in time to a collector; whatever it does, nothing is held up or lost, and no
byte names a patient."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pydantic import SecretStr
from pydicom import Dataset
from pydicom.datadict import DicomDictionary
from structlog.testing import capture_logs

from config import ConfigError, load, problems
from config import Traces as Settings
from pacs_node import traces as module
from pacs_node.errors import CannotStart, Refused, TryAgain
from pacs_node.ledger import Ledger
from pacs_node.records import HEARTBEAT_AE, PRIORITY_NAMES, OpenSeries
from pacs_node.spans import Closing, Ended, Life, is_sampled, spans_of, trace_id
from pacs_node.traces import KEPT, LOOK_EVERY_S, Traces
from tests.certificates import Authority
from tests.collector import IN_PART, TAKEN, WRONG, Collector, answering, facts
from tests.fault.test_stages import TOML, Bench, raising
from tests.harness import free_port, wait_for

MARKED = "ZZQ"  # in every text that an image can say
TEXTS = ("PN", "LO", "SH", "LT", "ST", "UT", "UC", "AS", "CS", "AE")
NEEDED = {"Modality", "SpecificCharacterSet", "ImageType", "PhotometricInterpretation", "PixelSpacingCalibrationType"}


class Clock:
    """Every look at it takes a second."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time


class Traced(Bench):
    """A bench whose series are told to a collector, from the first on."""

    def __init__(self, folder: Path, url: str, toml: str = TOML, **given: Any) -> None:
        self.clock = Clock()
        super().__init__(folder, toml, self.clock)
        self.settings = Settings(endpoint=url, **given)
        self.traces = self.started()
        self.traces.look()

    def started(self) -> Traces:
        return Traces(self.settings, "PACSNODE", self.node.ledger, self.clock)

    def ended(self, name: str, images: int = 1, spoil: Callable[[Dataset], Any] = lambda image: None) -> OpenSeries:
        """A series that came, was closed, and whose jobs ran as far as they go."""
        for number in range(1, images + 1):
            series = self.take_in(name, spoil, number)
        self.close(series)
        self.run_all()
        return series

    def look_later(self) -> float | None:
        """When nothing is younger than a transaction may take."""
        self.clock.time += module.SETTLED
        return self.traces.look()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def bench(tmp_path: Path, collector: Collector) -> Iterator[Traced]:
    bench = Traced(tmp_path, collector.url)
    yield bench
    bench.traces.stop()
    bench.node.stop()


def root(spans: Sequence[Span]) -> Span:
    [first] = [span for span in spans if not span.parent_span_id]
    return first


def named(spans: Sequence[Span], name: str) -> Span:
    [span] = [span for span in spans if span.name == name]
    return span


def is_whole(spans: Sequence[Span]) -> bool:
    """One tree, in one time."""
    known = {span.span_id: span for span in spans}
    first = root(spans)
    return (
        len(known) == len(spans)
        and len({span.trace_id for span in spans}) == 1
        and all(len(span.trace_id) == 16 and len(span.span_id) == 8 for span in spans)
        and all(span.parent_span_id in known for span in spans if span is not first)
        and all(span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)
        and first.start_time_unix_nano == min(span.start_time_unix_nano for span in spans)
        and first.end_time_unix_nano == max(span.end_time_unix_nano for span in spans)
    )


# ---- what is told


def test_a_life_is_told_whole_and_once(bench: Traced, collector: Collector) -> None:
    series = bench.take_in("us", number=1)
    assert bench.traces.look() == LOOK_EVERY_S
    bench.take_in("us", number=2)
    bench.close(series)
    bench.run_all(["infer"])
    assert bench.look_later() == LOOK_EVERY_S
    assert collector.bodies == [], "it goes on"
    bench.run_all()
    for _ in range(3):
        assert bench.look_later() == LOOK_EVERY_S
    [spans] = collector.traces().values()
    assert len(spans) == len(collector.spans)
    assert is_whole(spans)
    steps = ["series", "receive", "quiet", "judge", "infer breast-us", "queued", "run", "encode"]
    steps += ["send to results", "queued", "run", "confirm at results", "queued", "run"]
    assert [span.name for span in spans] == steps
    size = sum(path.stat().st_size for path in bench.folder.glob("us*.dcm"))
    assert facts(root(spans)) == {
        "modality": "US",
        "sender": "US1",
        "images": 2,
        "bytes": size,
        "revision": 1,
        "life": 1,
        "outcome": "arrived",
    }
    said = {"pipeline": "breast-us", "route": "breast", "outcome": "done", "attempts": 1, "priority": "routine"}
    sent = facts(named(spans, "send to results"))
    assert sent.items() >= {**said, "kind": "send", "destination": "results", "refused": 0}.items()
    assert sent["stored"] == facts(named(spans, "confirm at results"))["arrived"] > 0
    assert [span.status.code for span in spans] == [Status.STATUS_CODE_UNSET] * len(spans)
    [of_node] = [request.resource_spans[0].resource for request in collector.requests]
    assert facts(of_node)["service.name"] == "pacs-node"  # type: ignore[arg-type]
    assert facts(of_node)["service.instance.id"] == "PACSNODE"  # type: ignore[arg-type]
    assert bench.traces.counts == {"told": 1, "left out": 0, "not taken": 0}


def test_the_same_series_has_another_id_elsewhere(bench: Traced, collector: Collector, tmp_path: Path) -> None:
    """No id of a trace is made of a UID."""
    (tmp_path / "other").mkdir()
    other = Traced(tmp_path / "other", collector.url)
    for each in (bench, other):
        each.ended("us")
        each.look_later()
    assert len(collector.traces()) == 2
    other.node.stop()


def fails(bench: Traced) -> str:
    """... in words that quote the patient."""
    bench.node.stages.infer = raising(ValueError(f"PatientName is '{MARKED}'"))  # type: ignore[method-assign]
    bench.ended("us", spoil=marked)
    return "failed"


def refused(bench: Traced) -> str:
    bench.node.stages.infer = raising(Refused(f"the patient is {MARKED}"))  # type: ignore[method-assign]
    bench.ended("us", spoil=marked)
    return "refused"


def never_routed(bench: Traced) -> str:
    def of_another_kind(image: Dataset) -> None:
        marked(image)
        image.Modality = f"{MARKED}OT"

    bench.ended("us", spoil=of_another_kind)
    return "not routed"


def not_judged(bench: Traced) -> str:
    bench.node.stages.judge = raising(KeyError(MARKED))  # type: ignore[method-assign]
    bench.ended("us", spoil=marked)
    return "not judged"


def given_up(bench: Traced) -> str:
    bench.node.stages.deliver = raising(TryAgain(f"it does not take {MARKED}"))  # type: ignore[method-assign]
    bench.ended("us", spoil=marked)
    bench.run_all(attempts=bench.node.config.jobs.max_attempts)
    return "failed"


def later_images(bench: Traced) -> str:
    series = bench.take_in("us", marked, 1)
    bench.close(series)
    bench.ended("us", 2, spoil=marked)
    return "arrived"


def arrives(bench: Traced) -> str:
    bench.ended("us", 3, spoil=marked)
    return "arrived"


LIVES = [arrives, fails, refused, never_routed, not_judged, given_up, later_images]


def marked(image: Dataset) -> None:
    """Every attribute that is a text says who it is about, and those that an image need not have, too."""
    for tag, (vr, multiplicity, *_, keyword) in DicomDictionary.items():
        standard = tag < 0x00430000 and not keyword.startswith("Private")
        if vr in TEXTS and multiplicity == "1" and keyword and standard and keyword not in NEEDED and tag > 0x0007FFFF:
            setattr(image, keyword, "042Y" if vr == "AS" else f"{MARKED}^{keyword[:8].upper()}"[:16])
    image.PatientID = image.AccessionNumber = MARKED
    image.PatientBirthDate = "19550203"


@pytest.mark.parametrize("happens", LIVES, ids=lambda happens: happens.__name__)
def test_no_byte_names_a_patient_however_it_ends(
    bench: Traced, collector: Collector, happens: Callable[[Traced], str]
) -> None:
    outcome = happens(bench)
    assert bench.look_later() == LOOK_EVERY_S
    [spans] = collector.traces().values()
    assert is_whole(spans)
    assert facts(root(spans))["outcome"] == outcome
    wrong = outcome in ("failed", "not judged")
    assert (root(spans).status.code == Status.STATUS_CODE_ERROR) is wrong
    [body] = collector.bodies
    assert MARKED.encode() not in body
    assert b"19550203" not in body
    uids = [series["series_uid"] for series in bench.node.ledger.series_list(9)]
    uids += [series["study_uid"] for series in bench.node.ledger.series_list(9)]
    uids += [each.sop_instance_uid for uid in uids for each in bench.node.ledger.instances(uid)]
    assert len(uids) > 2
    assert [uid for uid in uids if uid.encode() in body] == []


def test_of_an_error_its_class_is_told(bench: Traced, collector: Collector) -> None:
    fails(bench)
    bench.node.stages.infer = raising(Refused("not axial"))  # type: ignore[method-assign]
    bench.ended("second")
    bench.traces.look()
    jobs = [facts(span) for span in collector.spans if span.name == "infer breast-us"]
    assert [(job["outcome"], job.get("error.type")) for job in jobs] == [("failed", "ValueError"), ("refused", None)]


def test_later_images_make_one_life_with_two_closings(bench: Traced, collector: Collector) -> None:
    later_images(bench)
    bench.traces.look()
    [spans] = collector.traces().values()
    assert [facts(span)["images"] for span in spans if span.name == "receive"] == [1, 1]
    assert facts(root(spans))["images"] == 2
    states = [facts(span)["outcome"] for span in spans if span.name == "infer breast-us"]
    assert states == ["superseded", "done"]


@pytest.mark.parametrize("how", ["retried", "run again", "more images"])
def test_what_comes_after_is_a_trace_of_its_own(bench: Traced, collector: Collector, how: str) -> None:
    infer = bench.node.stages.infer
    if how == "retried":
        bench.node.stages.infer = raising(ValueError("no"))  # type: ignore[method-assign]
    series = bench.ended("us")
    bench.look_later()
    [first] = collector.traces()
    bench.clock.time += timedelta(hours=3)
    bench.node.stages.infer = infer  # type: ignore[method-assign]
    if how == "retried":
        assert bench.node.ledger.run_again(bench.jobs(series)["infer"]["id"], bench.clock())
        bench.run_all()
    elif how == "run again":
        assert bench.node.flow.rerun(series.series_uid) is None
        bench.run_all()
    else:
        bench.ended("us", 2)
    for _ in range(2):
        bench.look_later()
    told = collector.traces()
    [second] = told.keys() - {first}
    assert is_whole(told[second])
    assert facts(root(told[second]))["life"] == 2
    assert facts(root(told[second]))["outcome"] == "arrived"
    took = root(told[second]).end_time_unix_nano - root(told[second]).start_time_unix_nano
    assert took < 3600e9, "what was told before is no part of it"
    assert {span.span_id for span in told[first]}.isdisjoint({span.span_id for span in told[second]})


def test_what_was_before_the_first_start_is_not_told(tmp_path: Path, collector: Collector) -> None:
    bench = Traced(tmp_path, collector.url)
    with bench.node.ledger._begin() as db:
        db.exec_driver_sql("DELETE FROM mark")
    bench.ended("before")
    open_then = bench.take_in("then")
    bench.traces.look()
    bench.close(open_then)
    bench.run_all()
    bench.look_later()
    [spans] = collector.traces().values()
    assert facts(root(spans))["images"] == 1
    assert [each.name for each in spans].count("judge") == 1
    bench.node.stop()


def test_no_heartbeat_and_no_shadow_is_told(bench: Traced, collector: Collector) -> None:
    series = bench.ended("us")
    with bench.node.ledger._begin() as db:
        db.exec_driver_sql("UPDATE series SET sender = ?", (HEARTBEAT_AE,))
    bench.traces.look()
    assert collector.bodies == []
    with bench.node.ledger._begin() as db:
        db.exec_driver_sql("UPDATE series SET sender = 'US1'")
        db.exec_driver_sql("UPDATE job SET shadow = 1 WHERE kind = 'infer'")
    bench.traces.look()
    assert "infer breast-us" not in {span.name for span in collector.spans}
    assert bench.node.ledger.series(series.series_uid) is not None


# ---- a collector that is not well


@pytest.mark.parametrize("how", [*WRONG, "down"])
def test_whatever_it_does_all_is_told_when_it_is_well(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    monkeypatch.setattr(module, "WHOLE_S", 0.6)
    port = free_port()
    bench = Traced(tmp_path, f"http://localhost:{port}/v1/traces", headers="Authorization=Bearer%20hush")
    names = ["one", "two", "three"]
    with capture_logs() as events:
        if how == "down":
            for name in names:
                bench.ended(name)
                assert bench.look_later() is None
        else:
            with Collector(port) as unwell:
                unwell.answer = WRONG[how]
                for name in names:
                    bench.ended(name)
                    assert bench.look_later() is None
                assert unwell.bodies
    assert [event["event"] for event in events if "collector" in event["event"]] == ["collector of traces away"]
    assert bench.traces.trouble is not None
    assert bench.traces.trouble.startswith(f"the collector of traces localhost:{port} takes none (")
    assert "hush" not in f"{events} {bench.traces.trouble}"
    bench.node.traces = bench.traces
    assert bench.traces.trouble in bench.node.ailing()
    with Collector(port) as well:
        assert bench.look_later() == LOOK_EVERY_S
        assert bench.traces.trouble is None
        assert len(well.traces()) == len(names)
        assert all(is_whole(spans) for spans in well.traces().values())
        bench.look_later()
        assert len(well.spans) == sum(map(len, well.traces().values())), "once"
    assert bench.traces.counts == {"told": 3, "left out": 0, "not taken": 0}
    bench.traces.stop()
    bench.node.stop()


def test_killed_before_it_is_written_down_it_is_told_again_under_the_same_ids(
    bench: Traced, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.ended("one", 2)
    with monkeypatch.context() as killed:
        killed.setattr(Ledger, "traces_told", raising(SystemExit()))
        with pytest.raises(SystemExit):
            bench.traces.look()
    bench.traces = bench.started()
    bench.look_later()
    assert [spans.SerializeToString() for spans in collector.requests[:1]] == [
        spans.SerializeToString() for spans in collector.requests[1:]
    ]


def test_one_that_is_not_taken_holds_up_no_other(bench: Traced, collector: Collector) -> None:
    bench.node.stages.infer = raising(ValueError("no"))  # type: ignore[method-assign]
    bench.ended("failed one")
    bench.node.stages.infer = type(bench.node.stages).infer.__get__(bench.node.stages)  # type: ignore[method-assign]
    bench.ended("two")
    bench.ended("three")

    def but_failures(request: Any) -> None:
        bad = b"ValueError" in collector.bodies[-1]
        if not bad:
            collector.taken.append(collector.bodies[-1])
        (answering(400) if bad else TAKEN)(request)

    collector.answer = but_failures
    assert bench.look_later() == LOOK_EVERY_S
    assert len(collector.traces()) == 2
    assert bench.traces.counts == {"told": 2, "left out": 0, "not taken": 1}
    asked = len(collector.bodies)
    bench.look_later()
    assert len(collector.bodies) == asked


def test_spans_that_are_rejected_are_not_told_again(bench: Traced, collector: Collector) -> None:
    bench.ended("one")
    collector.answer = answering(200, IN_PART.SerializeToString())
    with capture_logs() as events:
        bench.look_later()
        bench.look_later()
    assert [(event["event"], event["spans"]) for event in events if "spans" in event] == [("spans not taken", 3)]
    assert len(collector.bodies) == 1


def test_what_waits_has_an_end(bench: Traced, collector: Collector) -> None:
    bench.ended("old")
    bench.clock.time += KEPT + timedelta(minutes=1)
    bench.ended("new")
    bench.look_later()
    assert len(collector.traces()) == 1
    assert bench.traces.counts == {"told": 1, "left out": 1, "not taken": 0}


def test_many_are_told_in_pieces_and_none_is_left_out(
    bench: Traced, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVENTS", 7)
    monkeypatch.setattr(module, "SERIES", 2)
    for number in range(9):
        bench.ended(f"{number}")
    bench.look_later()
    assert len(collector.traces()) == 9
    assert len(collector.bodies) >= 5


def test_headers_are_sent_and_certificates_believed_only_if_they_are_good(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    with Collector(identity=authority.issue("localhost")) as collector:
        bench = Traced(tmp_path, collector.url, headers="Authorization=Bearer%20hush, X-Tenant=a")
        bench.ended("one")
        assert bench.look_later() is None
        assert "certificate" in str(bench.traces.trouble)
        for ca, taken in ((other, 0), (authority, 1)):
            bench.traces.stop()
            bench.settings = bench.settings.model_copy(update={"ca": ca.certificate})
            bench.traces = bench.started()
            bench.look_later()
            assert len(collector.taken) == taken
        assert collector.headers[0].items() >= {"Authorization": "Bearer hush", "X-Tenant": "a"}.items()
    bench.traces.stop()
    bench.node.stop()


# ---- the spans of any life

TIMES = st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 3)).map(lambda at: at.replace(tzinfo=UTC))
CLOSINGS = st.builds(Closing, TIMES, TIMES, TIMES, TIMES, st.integers(0, 9), st.integers(0, 9))
JOBS = st.builds(
    Ended,
    id=st.uuids().map(str),
    kind=st.sampled_from(["infer", "send", "confirm"]),
    pipeline=st.just("p"),
    route=st.just("r"),
    destination=st.sampled_from([None, "d"]),
    state=st.sampled_from(["done", "failed", "refused", "superseded"]),
    priority=st.sampled_from([*PRIORITY_NAMES, 77]),
    attempt=st.integers(1, 9),
    executor=st.none() | st.just("w"),
    error=st.none() | st.just("ValueError"),
    created_at=TIMES,
    started_at=st.none() | TIMES,
    finished_at=TIMES,
    facts=st.fixed_dictionaries({}, optional={"seconds": st.floats(-9, 1e6), "encode_seconds": st.just("x")}),
)
ANY_LIFE = st.builds(
    Life,
    series_uid=st.just("1.2.3"),
    key=st.text("0123456789abcdef", min_size=32, max_size=32),
    number=st.integers(0, 3),
    event=st.just(1),
    modality=st.sampled_from(["CT", "", "DOE^JANE"]),
    sender=st.just("US1"),
    revision=st.just(1),
    judged=st.booleans(),
    closings=st.lists(CLOSINGS, max_size=3).map(tuple),
    jobs=st.lists(JOBS, max_size=5).map(tuple),
    asked_again=st.lists(TIMES, max_size=2).map(tuple),
).filter(lambda life: bool(life.jobs or life.closings))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_LIFE)
def test_the_spans_of_any_life_are_one_tree_whatever_the_clock_does(life: Life) -> None:
    messages = [module.message(span, life.trace_id) for span in spans_of(life, PRIORITY_NAMES)]
    assert is_whole(messages)
    said = b"".join(message.SerializeToString() for message in messages)
    assert b"DOE" not in said
    assert b"1.2.3" not in said


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5).map(sorted))
def test_a_larger_fraction_tells_all_that_a_smaller_one_does(fractions: list[float]) -> None:
    ids = [trace_id(f"{number}", 0) for number in range(200)]
    told = [{each for each in ids if is_sampled(each, fraction)} for fraction in (0.0, *fractions, 1.0)]
    assert told[0] == set()
    assert told[-1] == set(ids)
    assert all(fewer <= more for fewer, more in pairwise(told))


def test_a_fraction_is_about_as_much_as_it_says() -> None:
    ids = [trace_id(f"{number}", 0) for number in range(4000)]
    assert 900 < sum(is_sampled(each, 0.25) for each in ids) < 1100


def test_what_is_not_among_the_fraction_is_not_told_later(tmp_path: Path, collector: Collector) -> None:
    bench = Traced(tmp_path, collector.url, fraction=0.0)
    bench.ended("one")
    bench.look_later()
    bench.settings = bench.settings.model_copy(update={"fraction": 1.0})
    bench.traces = bench.started()
    bench.look_later()
    assert collector.bodies == []
    bench.node.stop()


# ---- settings


def test_a_node_that_tells_nobody_loads_nothing_for_it() -> None:
    code = "import sys, pacs_node.node; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_without_the_package_it_is_said_in_words(bench: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.trace.v1.trace_service_pb2", None)
    with pytest.raises(CannotStart, match=r"pip install 'pacs-node\[traces\]'"):
        bench.started()


GOOD = ["http://collector:4318/v1/traces", "https://traces.example/otlp/v1/traces", "http://[::1]:4318/v1/traces"]
BAD = {
    "collector:4318": "needs http:// or https://",
    "grpc://collector:4317/": "needs http:// or https://",
    "http://collector:4318": "names no path; most collectors have http://collector:4318/v1/traces",
    "http://collector:99999/v1/traces": "has a port that is no number",
    "https://user:hush@collector/v1/traces": "neither user, query nor fragment",
    "https://collector/v1/traces?key=hush": "neither user, query nor fragment",
}


@pytest.mark.parametrize("url", GOOD)
def test_an_address_is_taken(tmp_path: Path, url: str) -> None:
    (tmp_path / "node.toml").write_text(f'[traces]\nendpoint = "{url}"\n')
    assert load(tmp_path / "node.toml").traces.endpoint == url


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_address_is_said(tmp_path: Path, url: str) -> None:
    (tmp_path / "node.toml").write_text(f'[traces]\nendpoint = "{url}"\n')
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "node.toml")
    assert BAD[url] in str(refused.value)


@pytest.mark.parametrize("headers", ["hush", "a=", "a b=c", "a=%0d%0ahush", "a=b,", "=hush"])
def test_what_is_no_header_is_said_and_not_quoted(tmp_path: Path, headers: str) -> None:
    (tmp_path / "node.toml").write_text(f'[traces]\nendpoint = "{GOOD[0]}"\nheaders = "{headers}"\n')
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "node.toml")
    assert "is name=value, with a comma between two" in str(refused.value)
    assert "hush" not in str(refused.value)


def test_headers_that_anybody_could_read_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(f'[traces]\nendpoint = "{GOOD[0]}"\nheaders = "a=b"\n')
    assert any("crosses the network for all to read" in str(each) for each in problems(tmp_path / "node.toml"))
    (tmp_path / "node.toml").write_text(f'[traces]\nendpoint = "{GOOD[1]}"\nheaders = "a=b"\n')
    assert not any("crosses the network" in str(each) for each in problems(tmp_path / "node.toml"))
    assert Settings(endpoint=GOOD[1], headers=SecretStr("a=b%2Cc, d=e")).header_values == {"a": "b,c", "d": "e"}


def test_a_setting_without_an_endpoint_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("[traces]\nfraction = 0.5\n")
    with pytest.raises(ConfigError, match="fraction needs an endpoint"):
        load(tmp_path / "node.toml")


def test_a_collector_that_is_away_is_asked_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the loop, which looks often while all is well."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    with Collector() as unwell:
        unwell.answer = answering(500)
        bench = Traced(tmp_path, unwell.url)
        bench.ended("one")
        bench.clock.time += module.SETTLED
        bench.traces.loop.start()
        try:
            wait_for(lambda: bench.traces.away, 20, "the collector to be found away")
            asked = len(unwell.bodies)
            time.sleep(1.0)
            assert len(unwell.bodies) == asked
        finally:
            bench.traces.stop()
