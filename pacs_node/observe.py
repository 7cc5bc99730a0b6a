"""What the node says about itself: events, figures and the audit trail. Names and ids, never patient values."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pacs_node.errors import Told
from pacs_node.records import REFUSAL_KINDS

log = structlog.get_logger()


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
    ) -> None:
        self.counts, self.connected, self.spool, self.arrivals = counts, connected, spool, arrivals
        self.refusals, self.kept, self.audit = refusals, kept, audit

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
        yield GaugeMetricFamily("pacs_node_free_bytes", "Free bytes where images are kept", value=_free(self.spool))


def registry(collector: Collector) -> CollectorRegistry:
    figures = CollectorRegistry()
    figures.register(collector)
    return figures


def _free(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(folder).free
