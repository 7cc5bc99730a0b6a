"""The life of a series as the spans of one trace: when it came, was judged, ran and arrived. It names no patient, and
no UID: of what images say nothing is told but their modality, and that only if it is one that models are for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dicom_sr.modalities import IMAGE_CLASSES

Value = str | int | float | bool

FAILED = ("failed", "not judged")  # outcomes that are errors; what is refused is not fit, and that is an answer


@dataclass(frozen=True)
class Closing:
    """A series was found complete: what had come, and when it was decided and judged."""

    first_arrival: datetime
    last_arrival: datetime
    decided_at: datetime
    judged_at: datetime
    images: int  # since it was closed before; 0: they are not here any more
    bytes: int


@dataclass(frozen=True)
class Ended:
    """A job that has ended, as its row has it."""

    id: str
    kind: str  # infer, send, confirm
    pipeline: str
    route: str
    destination: str | None
    state: str
    priority: int
    attempt: int
    executor: str | None
    error: str | None  # class of the error that it failed by
    created_at: datetime
    started_at: datetime | None  # of the last attempt
    finished_at: datetime
    facts: Mapping[str, Any] = field(default_factory=dict)
    stored: int = 0  # objects of a send
    refused: int = 0
    arrived: int = 0  # objects of a confirm
    unproven: int = 0


@dataclass(frozen=True)
class Life:
    """What became of a series, from its first image, or from where it was told of last, until it came to rest."""

    series_uid: str
    key: str  # at random; "": it has none yet
    number: int  # traces that were told of it before
    event: int  # id of its latest event
    modality: str
    sender: str
    revision: int
    judged: bool
    closings: tuple[Closing, ...]
    jobs: tuple[Ended, ...]
    asked_again: tuple[datetime, ...] = ()  # by a person

    @property
    def trace_id(self) -> bytes:
        """The same however often it is told."""
        return trace_id(self.key, self.number)

    @property
    def ended_at(self) -> datetime:
        return max([*(job.finished_at for job in self.jobs), *(each.judged_at for each in self.closings)])

    @property
    def outcome(self) -> str:
        """How it ended, in a word."""
        states = {job.state for job in self.jobs}
        if not self.jobs:
            return "not routed" if self.judged else "not judged"
        for state in ("failed", "refused"):
            if state in states:
                return state
        if states == {"superseded"}:
            return "superseded"
        confirms = [job for job in self.jobs if job.kind == "confirm"]
        if confirms and not any(job.unproven for job in confirms):
            return "arrived"
        return "sent" if any(job.kind == "send" for job in self.jobs) else "done"


@dataclass(frozen=True)
class Span:
    """One step. place: its own and those of the spans that it is in, which make its id."""

    place: tuple[str, ...]
    name: str
    began: datetime
    ended: datetime
    facts: Mapping[str, Value | None] = field(default_factory=dict)
    error: str | None = None

    def id_in(self, trace: bytes) -> bytes:
        return span_id(trace, self.place)

    def parent_in(self, trace: bytes) -> bytes:
        """Empty of the first."""
        return span_id(trace, self.place[:-1]) if len(self.place) > 1 else b""


def trace_id(key: str, number: int) -> bytes:
    """16 bytes, never all zero (W3C Trace Context 3.2.2.3)."""
    return hashlib.sha256(f"{key} {number}".encode()).digest()[:16]


def span_id(trace: bytes, place: tuple[str, ...]) -> bytes:
    return hashlib.sha256(trace + "/".join(place).encode()).digest()[:8]


def is_sampled(trace: bytes, fraction: float) -> bool:
    """Whether a trace is among those that are told: of the same ids always the same ones."""
    return int.from_bytes(trace[8:], "big") < fraction * 2**64


def spans_of(life: Life, priorities: Mapping[int, str]) -> list[Span]:
    """The series itself, then its steps in their order. A clock that was set back makes a step of no length."""
    steps = [*_closings(life), *(span for job in life.jobs for span in _job(life, job, priorities))]
    outcome = life.outcome
    facts: dict[str, Value | None] = {
        "modality": life.modality if life.modality in IMAGE_CLASSES else "other",
        "sender": life.sender,
        "images": sum(each.images for each in life.closings),
        "bytes": sum(each.bytes for each in life.closings),
        "revision": life.revision,
        "life": life.number + 1,
        "outcome": outcome,
    }
    began, ended = min(span.began for span in steps), max(span.ended for span in steps)
    why = next((job.error for job in life.jobs if job.state == "failed" and job.error), outcome)
    return [Span(("series",), "series", began, ended, facts, why if outcome in FAILED else None), *steps]


def _closings(life: Life) -> Iterator[Span]:
    for number, each in enumerate(life.closings):
        of = f"{number}"
        last = max(each.first_arrival, each.last_arrival)
        decided = max(last, each.decided_at)
        came: dict[str, Value | None] = {"images": each.images, "bytes": each.bytes}
        yield Span(("series", f"receive {of}"), "receive", each.first_arrival, last, came)
        yield Span(("series", f"quiet {of}"), "quiet", last, decided)
        error = None if life.judged or each is not life.closings[-1] else "NotJudged"
        yield Span(("series", f"judge {of}"), "judge", decided, max(decided, each.judged_at), error=error)


def _job(life: Life, job: Ended, priorities: Mapping[int, str]) -> Iterator[Span]:
    at = ("series", f"job {job.id}")
    ended = job.finished_at
    made = min(_made(life, job), ended)
    began = min(max(made, job.started_at), ended) if job.started_at is not None else None
    facts: dict[str, Value | None] = {
        "kind": job.kind,
        "pipeline": job.pipeline,
        "route": job.route,
        "destination": job.destination,
        "outcome": job.state,
        "attempts": job.attempt,
        "priority": priorities.get(job.priority, ""),
        "worker": job.executor,
        **_counts(job),
    }
    yield Span(at, _name(job), made, ended, facts, (job.error or "failed") if job.state == "failed" else None)
    yield Span((*at, "queued"), "queued", made, began or ended)
    if began is None:
        return
    yield Span((*at, "run"), "run", began, ended)
    if job.kind == "infer":
        yield from _inference((*at, "run"), job, began)


def _inference(at: tuple[str, ...], job: Ended, began: datetime) -> Iterator[Span]:
    """What of a run the model took, and what the results; in between earlier studies are fetched and compared."""
    model_s, encode_s = job.facts.get("seconds"), job.facts.get("encode_seconds")
    if isinstance(model_s, int | float):
        ended = min(job.finished_at, began + timedelta(seconds=max(0.0, model_s)))
        yield Span((*at, "model"), "model", began, ended, {"seconds": float(model_s)})
    if isinstance(encode_s, int | float):
        start = max(began, job.finished_at - timedelta(seconds=max(0.0, encode_s)))
        yield Span((*at, "encode"), "encode", start, job.finished_at, {"seconds": float(encode_s)})


def _made(life: Life, job: Ended) -> datetime:
    """When its wait began; of one that was told of before, when somebody asked for it again."""
    since = min([*(each.first_arrival for each in life.closings), *life.asked_again], default=job.finished_at)
    if not life.number or job.created_at >= since:
        return job.created_at
    began = job.started_at or job.finished_at
    return max((at for at in life.asked_again if at <= began), default=began)


def _name(job: Ended) -> str:
    return {"send": f"send to {job.destination}", "confirm": f"confirm at {job.destination}"}.get(
        job.kind, f"{job.kind} {job.pipeline}"
    )


def _counts(job: Ended) -> dict[str, Value | None]:
    if job.kind == "send":
        return {"stored": job.stored, "refused": job.refused}
    return {"arrived": job.arrived, "unproven": job.unproven} if job.kind == "confirm" else {}
