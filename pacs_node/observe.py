"""What the node says about itself: events, figures and the audit trail. Names and ids, never patient values."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO, cast

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pacs_node.errors import Told
from pacs_node.records import DURATIONS, JOB_KINDS, REFUSAL_KINDS, STEPS_S, device_at

log = structlog.get_logger()


class Compared(Protocol):
    @property
    def psi(self) -> float: ...
    @property
    def by_chance(self) -> float: ...


class Drifting(Protocol):
    """What of a version of a pipeline is held against its first weeks: see pipeline_facts.py."""

    @property
    def pipeline(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def drift(self) -> Compared: ...


class StandardError:
    """Standard error as it is now, which may be full or gone: an event is lost then, and the work goes on.

    Each thread's line is written whole: libraries and we ourselves log at the same time, by different ways.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self) -> None:
        self._begun = threading.local()  # .text: of a line that has no end yet

    def write(self, text: str) -> int:
        line = getattr(self._begun, "text", "") + text
        self._begun.text = "" if line.endswith("\n") else line
        if not self._begun.text:
            with self._one_at_a_time, suppress(OSError, ValueError):  # ValueError: it is closed
                sys.stderr.write(line)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def start_logging(*, plain: bool) -> None:
    """Events to standard error: for people when `plain`, else one JSON object a line."""
    told = logging.StreamHandler(cast(TextIO, StandardError()))  # what libraries say, through the same stream
    told.setFormatter(logging.Formatter("%(name)s: %(message)s") if plain else _one_line())
    logging.basicConfig(handlers=[told], level=logging.WARNING)
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it prints data sets; our own events say what matters
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes values; what it cannot read is refused in words
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is no HTTP; our own errors the pages tell
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if plain else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, StandardError())),
        cache_logger_on_first_use=True,
    )


def is_plain() -> bool:
    """Whether events are told for people."""
    return isinstance(structlog.get_config()["processors"][-1], structlog.dev.ConsoleRenderer)


def hear_everything() -> None:
    """What Python itself would print becomes an event, too: an error that nobody catches, what a library warns of."""
    threading.excepthook, sys.excepthook, sys.unraisablehook = _thread_ended, _ended, _unraisable
    warnings.showwarning = _warned


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        _tell("thread ended", ended.exc_value, thread=ended.thread.name if ended.thread is not None else "")


def _ended(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    _tell("node ended", error)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is not None:
        _tell("error passed over", args.exc_value)


def _tell(event: str, error: BaseException, **facts: str) -> None:
    told = Told.of(error)
    log.error(event, error=told.words, trace=told.trace, **facts)


def _warned(  # its signature is that of warnings.showwarning
    message: Warning | str,  # noqa: ARG001
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """What a library warns of, without its words: pydicom's quote the value of the element."""
    log.warning("a library warned", kind=category.__name__, place=f"{Path(filename).name}:{lineno}")


def _one_line() -> logging.Formatter:
    """What libraries log as one JSON object a line, a traceback within it."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _told,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )


def _told(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor: an exception as words that quote no value, and the lines that it came through."""
    info = event.pop("exc_info", None)
    error = info[1] if isinstance(info, tuple) else info if isinstance(info, BaseException) else None
    if error is not None:
        told = Told.of(error)
        event["exception"], event["trace"] = told.words, told.trace
    return event


def audit(event: str, facts: Mapping[str, Any]) -> None:
    """The line of the log beside the message of the audit trail, see audit.py."""
    log.info("audit", audit_event=event, **facts)


class LedgerCollector(Collector):
    """Figures read from the ledger at the moment they are asked for: nothing to keep in step."""

    def __init__(
        self,
        counts: Callable[[], dict[str, dict[str, int]]],
        connected: Callable[[], int],
        spool: Path,
        arrivals: Callable[[], list[tuple[str, str, str, int]]],
        refusals: Callable[[], Mapping[str, Mapping[str, Any]]],
        kept: Callable[[], Mapping[str, int | None]],
        audit: Callable[[], Mapping[str, int]] = lambda: {"lost": 0, "unsent": 0},
        studies: Callable[[], list[tuple[str, str, int]]] = list,
        drifting: Callable[[], Iterable[Drifting]] = lambda: (),
        traces: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self.counts, self.connected, self.spool, self.arrivals = counts, connected, spool, arrivals
        self.refusals, self.kept, self.audit, self.studies = refusals, kept, audit, studies
        self.drifting, self.traces = drifting, traces

    def collect(self) -> Iterator[Metric]:
        counts = self.counts()
        series = GaugeMetricFamily("pacs_node_series", "Series by state", labels=["state"])
        for state, number in counts["series"].items():
            series.add_metric([state], number)
        yield series
        jobs = GaugeMetricFamily("pacs_node_jobs", "Jobs by kind and state", labels=["kind", "state"])
        for kind in counts.keys() - {"series"}:
            for state, number in counts[kind].items():
                jobs.add_metric([kind, state], number)
        yield jobs
        studies = GaugeMetricFamily(
            "pacs_node_studies",
            "Jobs that need other series of their study, by how it was: waiting, complete, incomplete, skipped",
            labels=["route", "study"],
        )
        for route, study, number in self.studies():
            studies.add_metric([route, study], number)
        yield studies
        arrivals = CounterMetricFamily(
            "pacs_node_arrivals",
            "Objects that a destination was asked about: arrived (yes, no, not proven), and how that is known",
            labels=["destination", "arrived", "how"],
        )
        for destination, arrived, how, number in self.arrivals():
            arrivals.add_metric([destination, arrived, how], number)
        yield arrivals
        refusals = CounterMetricFamily(
            "pacs_node_refused", "What was refused or kept aside at receipt, by kind", labels=["kind"]
        )
        counted = self.refusals()
        for kind in REFUSAL_KINDS:  # none is a figure, too: an alert needs it
            refusals.add_metric([kind], counted.get(kind, {"number": 0})["number"])
        yield refusals
        yield GaugeMetricFamily("pacs_node_associations", "Open associations", value=self.connected())
        kept = GaugeMetricFamily("pacs_node_kept_bytes", "Bytes that are kept, as last measured", labels=["what"])
        for what, size in self.kept().items():
            kept.add_metric([what], float("nan") if size is None else size)
        yield kept
        trail = self.audit()
        yield CounterMetricFamily("pacs_node_audit_lost", "Messages of the audit trail that are lost", trail["lost"])
        yield GaugeMetricFamily(
            "pacs_node_audit_unsent_bytes", "Bytes of the audit trail that wait for the syslog server", trail["unsent"]
        )
        yield self._traces()
        yield from self._drift()
        yield GaugeMetricFamily("pacs_node_free_bytes", "Free bytes where images are kept", value=_free(self.spool))

    def _traces(self) -> Metric:
        words = "Traces of series: told to the collector, left out because it was away for too long, not taken by it"
        told = CounterMetricFamily("pacs_node_traces", words, labels=["how"])
        for how, number in (self.traces() or {"told": 0}).items():
            told.add_metric([how], number)
        return told

    def _drift(self) -> Iterator[Metric]:
        nothing = {"pipeline": "", "version": "", "what": ""}, float("nan")
        told = [({"pipeline": d.pipeline, "version": d.version, "what": d.what}, d.drift) for d in self.drifting()]
        words = "Population stability index: the last weeks of a pipeline against its first"
        psi = [(labels, each.psi) for labels, each in told]
        yield _labelled("pacs_node_pipeline_drift", words, psi or [nothing])
        words = "What the index stays below, 95 of 100 times, where nothing has changed"
        yield _labelled(
            "pacs_node_pipeline_drift_by_chance",
            words,
            [(labels, each.by_chance) for labels, each in told] or [nothing],
        )


class SystemCollector(Collector):
    """Figures of the node as a whole: how long things take, what is old, when which peer was heard of.

    durations: as the ledger has them; state: of system.py; health: "ok", "degraded" or "trouble".
    """

    def __init__(
        self,
        durations: Callable[[], Mapping[tuple[str, str], tuple[list[int], float]]],
        state: Callable[[], Mapping[str, Any]],
        health: Callable[[], str],
    ) -> None:
        self.durations, self.state, self.health = durations, state, health

    def collect(self) -> Iterator[Metric]:
        yield self._durations()
        state = self.state()
        yield _labelled(
            "pacs_node_build_info",
            "1: what runs here",
            [({name: str(state[name]) for name in ("version", "python", "database", "schema")}, 1.0)],
        )
        health = self.health()
        yield _labelled(
            "pacs_node_health",
            "1 for what /health says",
            [({"status": each}, float(each == health)) for each in ("ok", "degraded", "trouble")],
        )
        yield from self._devices(state["devices"])
        yield _labelled(
            "pacs_node_oldest_job_age_seconds",
            "Since the oldest job of a queue that has not ended was made; 0: there is none",
            [
                ({"kind": each}, max((q["oldest_s"] for q in state["backlog"] if q["kind"] == each), default=0.0))
                for each in JOB_KINDS
            ],
        )
        yield from self._peers(state["peers"])
        days = state["disk"]["full_in_days"]
        yield GaugeMetricFamily("pacs_node_disk_full_days", "Until the disk is full", value=_known(days))
        made = state["backup"]["at"] if state["backup"] is not None else None
        yield GaugeMetricFamily("pacs_node_backup_timestamp_seconds", "The last backup", value=_seconds(made))
        yield _labelled(
            "pacs_node_certificate_expiry_timestamp_seconds",
            "Until when a certificate of the node is good",
            [({"what": each["what"]}, _seconds(each["until"])) for each in state["certificates"]]
            or [({"what": "web"}, float("nan"))],
        )
        beat = state["heartbeat"] or {"state": "", "seconds": None, "began_at": None}
        arrived = {"arrived": 1.0, "failed": 0.0}.get(beat["state"], float("nan"))
        yield GaugeMetricFamily("pacs_node_heartbeat_arrived", "1: the last heartbeat arrived, 0: it failed", arrived)
        took = _known(beat["seconds"])
        yield GaugeMetricFamily("pacs_node_heartbeat_seconds", "From sending a phantom to its proof of arrival", took)
        began = _seconds(beat["began_at"])
        yield GaugeMetricFamily("pacs_node_heartbeat_timestamp_seconds", "When the last heartbeat began", began)
        ahead = _known(state["clock_ahead_s"])
        yield GaugeMetricFamily("pacs_node_database_clock_ahead_seconds", "The database's clock and ours", value=ahead)

    def _durations(self) -> Metric:
        told = HistogramMetricFamily("pacs_node_duration_seconds", "How long it took", labels=["what", "name"])
        measured = self.durations()
        none: dict[tuple[str, str], tuple[list[int], float]] = {
            (what, ""): ([0] * (len(STEPS_S) + 1), 0.0) for what in DURATIONS if what not in {w for w, _ in measured}
        }
        for (what, name), (counts, seconds) in {**none, **measured}.items():
            steps = [*(f"{step:g}" for step in STEPS_S), "+Inf"]
            told.add_metric([what, name], list(zip(steps, counts, strict=True)), seconds)
        return told

    def _devices(self, devices: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
        named = [
            ({"number": str(number), "device": device_at(each["device"], each["machine"])}, each)
            for number, each in enumerate(devices)
        ]
        info = [({**labels, "state": each["state"]}, 1.0) for labels, each in named]
        yield _labelled("pacs_node_device_info", "1: each inference process, and what it does", info)
        held = [(labels, float(each["held_mb"] << 20)) for labels, each in named]
        yield _labelled("pacs_node_device_held_bytes", "Main memory that an inference process holds", held)

    def _peers(self, peers: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
        for name, words, key in (
            ("pacs_node_peer_received_timestamp_seconds", "When its latest series began to come", "received_at"),
            ("pacs_node_peer_sent_timestamp_seconds", "When a send to it last ended well", "sent_at"),
        ):
            yield _labelled(name, words, [({"peer": each["name"]}, _seconds(each[key])) for each in peers])
        refused = CounterMetricFamily(
            "pacs_node_peer_refused", "What was refused or kept aside of the AE title of a peer", labels=["peer"]
        )
        for each in peers:  # none is a figure, too: an alert needs it
            refused.add_metric([each["name"]], each["refused"])
        yield refused


def _labelled(name: str, words: str, values: list[tuple[dict[str, str], float]]) -> Metric:
    told = GaugeMetricFamily(name, words, labels=list(values[0][0]) if values else [])
    for labels, value in values:
        told.add_metric(list(labels.values()), value)
    return told


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


def _seconds(time: str | None) -> float:
    """Since 1970, of an ISO 8601 time."""
    return float("nan") if time is None else datetime.fromisoformat(time).timestamp()


def registry(*collectors: Collector) -> CollectorRegistry:
    figures = CollectorRegistry()
    for collector in collectors:
        figures.register(collector)
    return figures


def _free(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(folder).free
