"""The life of each series told to a collector of OpenTelemetry, as OTLP over HTTP: spans as protobuf.

What there is to tell stands in the ledger, and so does what was told: a collector that is away holds nothing up, loses
nothing for a day, and a restart begins where the last one ended. What is told twice has the same ids.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import structlog

from config import Traces as Settings
from pacs_node import __version__
from pacs_node.association import why_unreachable
from pacs_node.errors import CannotStart, NodeError
from pacs_node.in_time import InTime
from pacs_node.ledger import Ledger
from pacs_node.loop import Loop
from pacs_node.records import PRIORITY_NAMES
from pacs_node.spans import Life, Span, Value, is_sampled, spans_of

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

log = structlog.get_logger()

LOOK_EVERY_S = 5.0
AGAIN_AFTER_S = 30.0
PATIENCE_S = 5.0  # for the connection, and for each piece of an answer
WHOLE_S = 10.0  # for a whole answer
EVENTS = 500  # of the ledger that are looked at together
SERIES = 50  # that are told together
MOST_ANSWER = 1 << 16  # bytes of an answer; one of a collector that has taken all is empty
KEPT = timedelta(hours=24)  # what ended longer ago is told no more: what waits has an end
SETTLED = timedelta(seconds=30)  # a transaction that began before an event may end after it
MARK = "traces"  # of the ledger: the event from which on is told, and the one up to which all was
TYPE = "application/x-protobuf"  # OTLP 1.10, "OTLP/HTTP Request"
NEEDS = "endpoint in [traces] needs the package opentelemetry-proto: pip install 'pacs-node[traces]'"


class Away(NodeError):
    """The collector cannot be reached, or does not take what it is told now."""


class NotTaken(Away):
    """It was reached, and takes this request not even later."""


def must_be_installed() -> None:
    """Raises CannotStart."""
    try:
        import opentelemetry.proto.collector.trace.v1.trace_service_pb2  # noqa: F401
    except ImportError as error:
        raise CannotStart(NEEDS) from error


class Traces:
    """Tells what has come to rest, from the first start with a collector on.

    Raises CannotStart where the library is not installed, or the certificates cannot be used.
    """

    def __init__(self, settings: Settings, ae_title: str, ledger: Ledger, now: Callable[[], datetime]) -> None:
        must_be_installed()
        self.settings, self.ae_title, self.ledger, self.now = settings, ae_title, ledger, now
        self.loop = Loop("traces", self.look, AGAIN_AFTER_S)
        self.away: str | None = None
        self.counts = {"told": 0, "left out": 0, "not taken": 0}  # series
        self._place = urlsplit(settings.endpoint).netloc
        self._in_time: InTime | None = None
        self._stopping = False
        try:
            context = ssl.create_default_context(cafile=settings.ca)
        except (OSError, ssl.SSLError) as error:
            raise CannotStart(f"ca in [traces] cannot be used: {error}") from error
        self._client = httpx.Client(
            headers={**settings.header_values, "Content-Type": TYPE, "Accept-Encoding": "identity"},
            verify=context,
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_keepalive_connections=0),  # each request knows the connection it is on
            trust_env=False,  # proxies and .netrc would be settings that no settings file shows
        )

    def stop(self) -> None:
        """At once: what is not told is told after the next start."""
        self._stopping = True
        in_time = self._in_time  # once: the loop sets it
        if in_time is not None:
            in_time.hang_up()
        self.loop.stop()
        self._client.close()

    @property
    def trouble(self) -> str | None:
        """None, or that the collector is away, for /health."""
        return self.away or self.loop.trouble

    # ---- what there is to tell

    def look(self) -> float | None:
        """The seconds until the next look; None while the collector is away: as long as the loop waits. Raises
        LedgerUnavailable."""
        mark = self.ledger.marks().get(MARK)
        if mark is None:
            newest = self.ledger.newest_event()
            self._mark(newest, newest)
            return LOOK_EVERY_S
        since, after = (int(event) for event in mark["text"].split())
        try:
            self._tell_from(since, after)
        except Away as error:
            self._is_away(str(error))
            return None
        self._is_back()
        return LOOK_EVERY_S

    def _tell_from(self, since: int, after: int) -> None:
        """What ended behind this event, of all that was since the other one. Raises Away."""
        while not self._stopping:
            events = self.ledger.events_after(after, EVENTS)
            found = (self.ledger.life(uid, since) for uid in dict.fromkeys(uid for _, _, uid in events))
            lives = [life for life in found if life is not None]
            for start in range(0, len(lives), SERIES):
                self._tell([self._named(life, since) for life in lives[start : start + SERIES]])
            settled = after
            for number, at, _ in events:
                if timedelta() <= self.now() - at < SETTLED:
                    break
                settled = number
            if settled != after:
                self._mark(since, settled)
            if len(events) < EVENTS or settled == after:
                return
            after = settled

    def _named(self, life: Life, since: int) -> Life:
        return life if life.key else replace(life, key=self.ledger.trace_key(life.series_uid, since))

    def _tell(self, lives: Sequence[Life]) -> None:
        """Raises Away."""
        sampled = [life for life in lives if is_sampled(life.trace_id, self.settings.fraction)]
        late = [life for life in sampled if self.now() - life.ended_at > KEPT]
        self._told([life for life in lives if life not in sampled], None)
        self._told(late, "left out")
        wanted = [life for life in sampled if life not in late]
        if not wanted:
            return
        try:
            self._send(wanted)
            self._told(wanted, "told")
        except NotTaken:
            self._tell_each(wanted)

    def _tell_each(self, lives: Sequence[Life]) -> None:
        """One of them is not taken, or all: then it is not the trace that is wrong. Raises Away."""
        refused: list[Life] = []
        for life in lives:
            try:
                self._send([life])
                self._told([life], "told")
            except NotTaken as error:
                refused.append(life)
                why = error
        if len(refused) == len(lives):
            raise why
        for life in refused:
            log.warning("trace not taken", trace=life.trace_id.hex(), error=str(why))
        self._told(refused, "not taken")

    def _told(self, lives: Sequence[Life], how: str | None) -> None:
        if lives:
            self.ledger.traces_told(lives)
        if how is not None:
            self.counts[how] += len(lives)

    def _mark(self, since: int, after: int) -> None:
        self.ledger.mark(MARK, self.now(), f"{since} {after}")

    # ---- how it is told

    def _send(self, lives: Sequence[Life]) -> None:
        """Raises Away, NotTaken."""
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

        request = service.ExportTraceServiceRequest(resource_spans=[self._resource_spans(lives)])
        status, kind, body = self._post(request.SerializeToString())
        if status in (400, 413, 422):
            raise NotTaken(f"it answers HTTP {status}")
        if not 200 <= status < 300:
            raise Away(f"it answers HTTP {status}")
        if kind.startswith("application/json"):
            return
        try:
            rejected = service.ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans
        except DecodeError as error:
            raise Away(f"it answers HTTP {status} with what is no OTLP") from error
        if rejected:
            log.warning("spans not taken", collector=self._place, spans=rejected)

    def _post(self, content: bytes) -> tuple[int, str, bytes]:
        """Status, Content-Type and body of the answer. Raises Away."""
        with InTime(WHOLE_S) as in_time:
            self._in_time = in_time
            try:
                return self._answer(content, in_time)
            except httpx.TimeoutException as error:
                raise Away(f"no answer within {PATIENCE_S:g} s") from error
            except httpx.RemoteProtocolError as error:
                raise Away("no answer that ends" if in_time.over else "it breaks off, or speaks no HTTP") from error
            except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as error:
                raise Away(why_unreachable(error, PATIENCE_S)) from error
            finally:
                self._in_time = None

    def _answer(self, content: bytes, in_time: InTime) -> tuple[int, str, bytes]:
        asked = self._client.stream("POST", self.settings.endpoint, content=content, extensions={"trace": in_time})
        with asked as answer:
            body = bytearray()
            for piece in answer.iter_raw():
                body += piece
                if len(body) > MOST_ANSWER:
                    raise Away(f"it answers more than {MOST_ANSWER >> 10} KiB")
            return answer.status_code, answer.headers.get("Content-Type", ""), bytes(body)

    def _resource_spans(self, lives: Sequence[Life]) -> ResourceSpans:
        from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
        from opentelemetry.proto.resource.v1.resource_pb2 import Resource
        from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

        of_node = {
            "service.name": self.settings.service_name,
            "service.instance.id": self.settings.instance or self.ae_title,
            "service.version": __version__,
        }
        spans = [message(span, life.trace_id) for life in lives for span in spans_of(life, PRIORITY_NAMES)]
        scope = InstrumentationScope(name="pacs_node", version=__version__)
        return ResourceSpans(
            resource=Resource(attributes=attributes(of_node)), scope_spans=[ScopeSpans(scope=scope, spans=spans)]
        )

    # ---- what is said of it

    def _is_away(self, why: str) -> None:
        if self._stopping:
            return
        if self.away is None:
            log.warning("collector of traces away", collector=self._place, error=why)
        self.away = (
            f"the collector of traces {self._place} takes none ({why}): they wait in the ledger, for a day at most"
        )

    def _is_back(self) -> None:
        if self.away is not None:
            log.info("collector of traces is back", collector=self._place)
            self.away = None


def message(span: Span, trace: bytes) -> Any:
    """A span as protobuf."""
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
    from opentelemetry.proto.trace.v1.trace_pb2 import Status

    failed = {"error.type": span.error} if span.error is not None else {}
    return Message(
        trace_id=trace,
        span_id=span.id_in(trace),
        parent_span_id=span.parent_in(trace),
        name=span.name,
        kind=Message.SPAN_KIND_INTERNAL,
        start_time_unix_nano=nanoseconds(span.began),
        end_time_unix_nano=nanoseconds(span.ended),
        attributes=attributes({**{f"pacs_node.{name}": value for name, value in span.facts.items()}, **failed}),
        status=Status(code=Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_UNSET),
    )


def attributes(values: dict[str, Any]) -> list[Any]:
    """Those that have a value, as protobuf."""
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

    return [KeyValue(key=name, value=_any(value)) for name, value in values.items() if value not in (None, "")]


def _any(value: Value) -> Any:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue

    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return AnyValue(double_value=value) if isinstance(value, float) else AnyValue(string_value=value)


def nanoseconds(at: datetime) -> int:
    """Since 1970, to the microsecond."""
    whole, part = int(at.timestamp()), at.microsecond
    return (whole * 1_000_000 + part) * 1000
