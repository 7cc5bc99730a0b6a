"""The node on one page: what happens to an instance, in what order, and what survives a power cut after each step.

    stored -> closed -> inferred -> encoded -> sent -> arrived

Each step ends in one durable act (a file renamed, a transaction committed). Killed between two steps, the node
takes up at the last durable act; every step may run twice, because result UIDs derive from what they describe.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from dicom_sr import attributes
from dicom_sr.reading import weight
from dicom_sr.returned import CLASSES
from pacs_node.ahead import Ahead
from pacs_node.confirm import ArrivalCheck, Confirm
from pacs_node.editions import next_revision, same_objects, unchanged
from pacs_node.errors import (
    Await,
    EditionChanged,
    GiveUp,
    Interrupted,
    JobError,
    LedgerUnavailable,
    NotJudged,
    OutOfMemory,
    ProcessDied,
    Refused,
    StoreAway,
    TakenOver,
    Told,
    TryAgain,
    Unforeseen,
    may_pass,
)
from pacs_node.kinds import decided, sizes
from pacs_node.outcomes import Counted, outcome
from pacs_node.pulse import Way, is_marked, why_none
from pacs_node.records import (
    HEARTBEAT_AE,
    Also,
    CommitmentReport,
    CommitmentRequest,
    Edition,
    Instance,
    Job,
    Needs,
    OpenSeries,
    Package,
    Receipt,
    Result,
    Sent,
    Stored,
    Verdict,
)
from pacs_node.silence import Silence

if TYPE_CHECKING:
    from pydicom import Dataset

    from dicom_sr.findings import Findings
    from pacs_node.ledger import Ledger

log = structlog.get_logger()

# Where a fault test may stop the process; each name is the moment just after (or before) a durable act.
STEPS = (
    "instance stored",  # an instance is durable, its 0x0000 not yet sent
    "instance indexed",  # its row is committed
    "closing",  # everything about the series is decided, nothing written
    "closed",  # verdict, rules and jobs are committed, no engine knows of them
    "infer begun",
    "inferred",  # findings are kept with the job: no error from here on repeats the inference
    "compared",  # what came of the comparison with an earlier study is kept with the job, if the route asks for one
    "encoded",  # result files are renamed, no row knows of them
    "infer done",  # results and send jobs are committed
    "send begun",
    "sent",  # the destination has answered, no receipt is written
    "send done",
    "confirm begun",
    "commitment asked",  # the peer has our N-ACTION, no row says so
    "confirm done",
)
STORE_AGAIN_S = 30.0  # before a job tries again for which the object store was away
OUT_OF_MEMORY_ATTEMPTS = 2  # more do not cure it, whatever the settings allow
REPORT_AFTER_S = 2.0  # a sender that asks for storage commitment may be told on its own association until then


class Stages(Protocol):
    """What the flow needs from the stages; `stages.py` wires them.

    `infer` keeps what it answers with the job, and answers the same when the job runs again.
    """

    def decide(self, series: OpenSeries, now: datetime) -> str | None: ...
    def headers(self, instances: Sequence[Instance], files: Sequence[Path]) -> list[Dataset]: ...
    def judge(self, headers: Sequence[Dataset]) -> Verdict: ...
    def matches(self, header: Dataset) -> list[RouteMatch]: ...
    def study(self, study_uid: str, without: str) -> list[Dataset]: ...
    def missing(self, needs: Mapping[str, Any], others: Sequence[Dataset]) -> list[str]: ...
    def share(self, instances: Sequence[Instance]) -> None: ...
    def unpacked(
        self, name: str, images: Sequence[Stored], *, whole: bool = False
    ) -> AbstractContextManager[list[Path]]: ...
    def sources(self, files: Sequence[Path]) -> AbstractContextManager[Callable[[], list[Dataset]]]: ...
    def infer(
        self, job: Job, images: Sequence[Stored], files: Sequence[Path], progress: Callable[[float, str], None]
    ) -> Findings: ...
    def compare(self, job: Job, findings: Findings, files: Sequence[Path]) -> Findings: ...
    def places(self, findings: Findings, files: Mapping[str, Path]) -> dict[str, Any] | None: ...
    def encode(self, job: Job, findings: Findings, sources: Sequence[Dataset], edition: Edition) -> list[Result]: ...
    def reports_not_run(self, job: Job) -> bool: ...
    def is_shadow(self, route: str) -> bool: ...
    def encode_not_run(
        self, job: Job, reason: str, instances: Sequence[Instance], edition: Edition
    ) -> list[Result]: ...
    def deliver(self, destination: str, package: Package) -> list[Receipt]: ...
    def arrival_check(self, destination: str) -> ArrivalCheck | None: ...
    def sent(self, paths: Sequence[Path], stored: frozenset[str]) -> list[Sent]: ...
    def judge_commitment(self, request: CommitmentRequest) -> CommitmentReport: ...
    def report(self, calling_ae: str, report: CommitmentReport) -> None: ...


@dataclass(frozen=True)
class RouteMatch:
    """What one rule says about one series."""

    rule: str
    why_not: str | None
    pipeline: str
    send_to: tuple[str, ...]
    priority: int
    options: Mapping[str, Any]
    priors: str | None = None
    also: tuple[Also, ...] = ()
    shadow: bool = False
    needs: Needs | None = None
    fallback: bool = False


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait between two attempts, and how often."""

    base_s: float
    max_s: float
    max_attempts: int

    def delay_s(self, attempt: int, jitter: random.Random) -> float:
        """Exponential backoff with full jitter on its upper half: between 50 % and 100 % of base * 2^(attempt-1)."""
        ceiling = min(self.max_s, self.base_s * 2 ** min(attempt - 1, 30))
        return ceiling * (0.5 + 0.5 * jitter.random())


class Flow:
    """The story of a series. Every effect is in a room or in the ledger; here is only the order."""

    def __init__(
        self,
        ledger: Ledger,
        stages: Stages,
        retry_policies: Mapping[str, RetryPolicy],
        *,
        poison_limit: int,
        now: Callable[[], datetime],
        jitter: random.Random,
        executor: str,
        infer_attempts: int = 3,
        await_report_s: float = 900.0,
        at: Callable[[str], None] = lambda step: None,
        closed: Callable[[], Mapping[str, str]] = dict,
        rested_s: Callable[[str, datetime], float] = lambda route, since: 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger, self.stages, self.retry_policies, self.poison_limit = ledger, stages, retry_policies, poison_limit
        self.now, self.jitter, self.executor, self.at = now, jitter, executor, at
        self.rested_s = rested_s  # of a route, since when: how long its hours were not
        self.closed = closed  # routes whose hours are not now -> what their jobs wait for
        # of inferences whose process ended; a disk or a database that fails is waited for as a destination is
        self.most_attempts: Mapping[type[TryAgain], int] = {
            ProcessDied: infer_attempts,
            OutOfMemory: min(infer_attempts, OUT_OF_MEMORY_ATTEMPTS),
        }
        self.silence = Silence(monotonic)
        self.ahead = Ahead(self._judge, lambda judged: weight(judged[0]))
        self._open: list[OpenSeries] = []  # at the last look
        self.heartbeat: Callable[[], Way | None] = lambda: None  # which way a heartbeat goes, if there are any
        self.patient_of: Callable[[Dataset], Collection[str] | None] = lambda header: None  # hashes, see identity.py
        self.confirm = Confirm(ledger, stages, await_report_s, now, at)
        self.work = {"infer": self._infer, "send": self._send, "confirm": self._confirm, "report": self._report}

    @property
    def longest_wait_s(self) -> float:
        """The longest that a job may be told to wait for its next attempt."""
        return max(
            REPORT_AFTER_S,
            STORE_AGAIN_S,
            self.confirm.await_report_s,
            *(policy.max_s for policy in self.retry_policies.values()),
        )

    # ---- a series closes, is judged and routed

    def receiving(self, connected: frozenset[str]) -> list[OpenSeries]:
        """The open series, and what is known of each now. `connected`: ids of the associations that are open."""
        return self.silence.measured(self.ledger.open_series(connected), self.now())

    def complete(self, connected: frozenset[str]) -> list[tuple[OpenSeries, str]]:
        """The open series whose evidence says that they are complete, and why."""
        self._open = self.receiving(connected)
        decided = [(each, self._why_complete(each)) for each in self._open]
        return [(each, because) for each, because in decided if because is not None]

    def may_be_complete(self) -> OpenSeries | None:
        """One that was open at the last look, and should be judged while it is waited whether more comes."""
        return self.ahead.due(self._open, self.now())

    def judge_ahead(self, series: OpenSeries) -> None:
        self.ahead.look(series, self.ledger.instances(series.series_uid))

    def _why_complete(self, series: OpenSeries) -> str | None:
        """One series that cannot be decided on holds up no other: it is set aside, in the error's words."""
        try:
            return self.stages.decide(series, self.now())
        except Exception as error:  # noqa: BLE001 - the edge of a room: whatever it is, it is this series' own
            told = Told.of(error)
            log.error("series undecided", series=series.series_uid, error=told.words, trace=told.trace)
            with suppress(Exception):  # else it is undecided again at the next look, and the next series decided now
                because = "it cannot be decided whether it is complete"
                self.set_aside(series, because, f"could not be judged: {told.words}")
            return None

    def close(self, series: OpenSeries, because: str) -> list[Job]:
        """Judge and route a complete series; the jobs that follow, none if another image came meanwhile.

        Raises NotJudged for what nobody foresaw in its images. Of any other error waiting may cure it.
        """
        decided_at = self.now()
        instances = self.ledger.instances(series.series_uid)
        header, verdict, matches = self._judged(instances)
        revision = self.ledger.revision(series.series_uid) + 1
        now = self.now()  # one time for all jobs: routes that ask for the same make the same bytes
        sender = instances[0].calling_ae if instances else ""
        jobs = [self._infer_job(series, match, revision, now, sender) for match in matches if match.why_not is None]
        jobs = self._as_the_study_is(jobs, verdict)
        complete = self._completed_by(series, header)
        if jobs:
            self.stages.share(instances)  # before another machine may take one
        self.at("closing")
        closed = self.ledger.close_series(
            series.series_uid,
            arrived=len(instances),
            because=because,
            modality=attributes.text(header, "Modality"),
            description=attributes.text(header, "SeriesDescription"),
            verdict=verdict,
            rules=_rules(matches),
            jobs=jobs,
            complete=complete,
            revision=revision,
            now=now,
            decided_at=decided_at,
            returned=any(instance.sop_class_uid in CLASSES for instance in instances),
            patient=self.patient_of(header),
        )
        self.at("closed")
        return jobs if closed else []

    def rerun(self, series_uid: str, route: str | None = None) -> str | None:
        """Run a closed series again as if it had just closed: today's models, rules and judgement. Why not, or None.

        route   only what this one asks for
        """
        instances = self.ledger.instances(series_uid)
        if not instances:
            return self.ledger.why_gone(series_uid) or f"there are no images of series {series_uid}"
        if any(instance.calling_ae == HEARTBEAT_AE for instance in instances):
            return "it is a heartbeat of the node: the next one comes by itself"
        _, verdict, matches = self._judged(instances)
        revision, now = self.ledger.revision(series_uid), self.now()
        wanted = [match for match in matches if match.why_not is None and route in (None, match.rule)]
        if not wanted:
            said = [f"{match.rule}: {match.why_not}" for match in matches if route in (None, match.rule)]
            why = "no rule matches" if route is None else f"route '{route}' does not match"
            return f"{why}: {'; '.join(said)}" if said else f"{why}: the settings have none"
        self.stages.share(instances)
        jobs = [self._infer_job(instances[0], match, revision, now, "", "again", now.isoformat()) for match in wanted]
        started = self.ledger.run_series_again(
            series_uid,
            arrived=len(instances),
            revision=revision,
            verdict=verdict,
            rules=_rules(matches),
            jobs=self._as_the_study_is(jobs, verdict),
            now=now,
        )
        return (
            None
            if started
            else "it still receives images, or is being worked on; ask again when that has ended, or retry its jobs"
        )

    def _as_the_study_is(self, jobs: Sequence[Job], verdict: Verdict) -> list[Job]:
        """Those that need other series of the study wait for what of these is not here; unless nothing will be run."""
        return [
            job if job.needs is None or not verdict.of(job.route).fit else self._waits(job, job.needs) for job in jobs
        ]

    def _waits(self, job: Job, needs: Mapping[str, Any]) -> Job:
        lacks = self._lacking(job, lambda: self.stages.study(job.study_uid, job.series_uid))
        if lacks is None:
            return job  # it asks again when it runs, and ends in the words of the error
        if not lacks:
            return replace(job, study="complete")
        until = job.created_at + timedelta(minutes=needs["wait_minutes"])
        reason = f"waits for {' and '.join(lacks)} of the study"
        return replace(job, study="waiting", waits_until=until, not_before=until, reason=reason)

    def _completed_by(self, series: OpenSeries, header: Dataset) -> list[Job]:
        """Jobs of the study that need no more than this series, which is about to close."""
        return [
            job
            for job in self.ledger.waiting_in_study(series.study_uid)
            if job.needs is not None
            and job.series_uid != series.series_uid
            and self._lacking(job, partial(self._with, header, job, series.series_uid)) == []
        ]

    def _lacking(self, job: Job, others: Callable[[], list[Dataset]]) -> list[str] | None:
        """What is not here of what a job needs; None if that cannot be told: the series that closes is another's."""
        try:
            return self.stages.missing(job.needs or {}, others())
        except (LedgerUnavailable, TryAgain):
            raise
        except Exception as error:  # the edge of a job: whatever it is, the job says it when it runs
            if isinstance(error, OSError) and may_pass(error):
                raise
            told = Told.of(error)
            log.error("study not looked at", job=job.id, series=job.series_uid, error=told.words, trace=told.trace)
            return None

    def _with(self, header: Dataset, job: Job, closing: str) -> list[Dataset]:
        """The other series of a job's study, the one that closes as its header says it."""
        others = self.stages.study(job.study_uid, job.series_uid)
        return [header, *(each for each in others if attributes.text(each, "SeriesInstanceUID") != closing)]

    def _judged(self, instances: Sequence[Instance]) -> tuple[Dataset, Verdict, list[RouteMatch]]:
        """The header that stands for the series, whether it is fit, and what the rules say. Raises NotJudged."""
        try:
            header, verdict, matches = self.ahead.answer(instances) or self._judge(instances)
        except (LedgerUnavailable, TryAgain):
            raise
        except Exception as error:  # the edge of judging: whatever a header holds, it is this series' own
            if isinstance(error, OSError) and may_pass(error):
                raise
            raise NotJudged("the series could not be judged") from error
        return header, self._told_of_deleted(verdict, instances), matches  # not its own: the ledger may fail

    def _judge(self, instances: Sequence[Instance]) -> tuple[Dataset, Verdict, list[RouteMatch]]:
        name = f"{_id('judge', *(instance.series_uid for instance in instances[:1]))}.0"
        with self.stages.unpacked(name, [instance.stored for instance in instances]) as files:
            headers = self.stages.headers(instances, files)
            verdict = self.stages.judge(headers)
        header = _foremost(headers, verdict)
        matches = {match.rule: match for match in self.stages.matches(header)}
        for route, own in verdict.of_routes.items():  # by the images that it would use
            if own.use[:1] != verdict.use[:1]:
                others = self.stages.matches(_foremost(headers, own if own.fit else verdict))
                matches |= {match.rule: match for match in others if match.rule == route}
        senders = {instance.calling_ae for instance in instances}
        known = self._of_heartbeat(senders, headers, list(matches.values()))
        said = with_fallbacks([(each.rule, each.fallback, each.shadow, each.why_not) for each in known])
        decided = [replace(match, why_not=why_not) for match, why_not in zip(known, said, strict=True)]
        asking = {match.rule for match in decided if match.why_not is None}
        taken = {route: own for route, own in verdict.of_routes.items() if route in asking}
        return header, replace(verdict, of_routes=taken), decided

    def _of_heartbeat(
        self, senders: Collection[str], headers: Sequence[Dataset], matches: list[RouteMatch]
    ) -> list[RouteMatch]:
        """What the rules say of a series, if it is or pretends to be a heartbeat of the node: see pulse.py."""
        patients = {attributes.text(header, "PatientID") for header in headers}
        if not is_marked(senders, patients):
            return matches
        refused, way = why_none(senders, patients), self.heartbeat()
        if refused is None and way is None:
            refused = "it is a heartbeat of the node, which the settings do not ask for any more"
        if refused is not None or way is None:
            return [replace(match, why_not=refused) for match in matches]
        other = f"it is a heartbeat of the node, which goes the way of route '{way.route}'"
        return [
            replace(match, send_to=(way.to,), also=(), priors=None, needs=None)
            if match.rule == way.route
            else replace(match, why_not=match.why_not or other)
            for match in matches
        ]

    def _told_of_deleted(self, verdict: Verdict, instances: Sequence[Instance]) -> Verdict:
        """Where retention has deleted more images of the series than have come since, a reader must know."""
        deleted = self.ledger.deleted(instances[0].series_uid) if instances else None
        if deleted is None or deleted[1] <= len(instances):
            return verdict
        text = (
            f"{deleted[1]} images of the series were deleted here on {deleted[0]:%Y-%m-%d}, {len(instances)} came since"
        )
        told = {route: replace(own, remarks=(*own.remarks, text)) for route, own in verdict.of_routes.items()}
        return replace(verdict, remarks=(*verdict.remarks, text), of_routes=told)

    def set_aside(self, series: OpenSeries, because: str, reason: str) -> None:
        """Close a series that cannot even be judged, so that it holds up no other. Another image opens it again."""
        self.ledger.close_series(
            series.series_uid,
            arrived=series.evidence.arrived,
            because=because,
            modality="",
            description="",
            verdict=Verdict(False, reason),
            rules=[],
            jobs=[],
            revision=self.ledger.revision(series.series_uid) + 1,
            now=self.now(),
        )

    def _infer_job(
        self, series: OpenSeries | Instance, match: RouteMatch, revision: int, now: datetime, sender: str, *again: str
    ) -> Job:
        return Job(
            id=_id("infer", series.series_uid, str(revision), match.rule, *again),
            kind="infer",
            series_uid=series.series_uid,
            study_uid=series.study_uid,
            revision=revision,
            pipeline=match.pipeline,
            route=match.rule,
            priority=match.priority,
            send_to=() if match.shadow else match.send_to,
            also=() if match.shadow else match.also,
            options=match.options,
            priors=match.priors,
            shadow=match.shadow,
            needs=None if match.needs is None else _needs_row(match.needs),
            sender=sender,
            created_at=now,
        )

    # ---- a job runs: once begun it always ends in a state and a reason

    def run(self, job_id: str, generation: int, attempt: int) -> float | None:
        """One attempt of one job. The seconds to wait before the next attempt, or None when there is none."""
        job = self.ledger.job(job_id)
        if job is None or (job.generation, job.attempt) != (generation, attempt):
            return None
        if job.crashes >= self.poison_limit:
            last = f"; the last reason was: {job.reason}" if job.reason else ""
            reason = f"the worker died {job.crashes} times while running this job{last}"
            self.ledger.give_up(job, reason, self.now())
            return None
        if job.rests(self.closed()):  # it was handed out, and the hours of its route have ended since
            self.ledger.let_go(job)
            return None
        rested_s = self.rested_s(job.route, job.created_at) if job.may_rest else 0.0
        if not self.ledger.begin(job, self.executor, self.now(), rested_s):
            return None
        try:
            with _step(f"the {job.kind} job"):  # what no step of its own has named
                self.work[job.kind](job)
        except Refused as refusal:
            self.ledger.finish(job, "refused", str(refusal), self.now())
        except GiveUp as failure:
            self._said_once(job, failure)
            error = kind_of(failure)
            self.ledger.finish(job, "failed", str(failure), self.now(), receipts=failure.receipts, error=error)
        except TakenOver as late:
            log.warning("job taken over while it was sent", job=job.id, series=job.series_uid)
            self.ledger.retry_later(
                job, str(late), self.now(), late.receipts, self.now()
            )  # notes what was stored, only
        except Interrupted:
            self.ledger.put_back(job, "the node was stopped while it ran", self.now())
        except TryAgain as failure:
            return self._again(job, failure)
        except LedgerUnavailable as failure:
            return self._again(job, TryAgain(str(failure)))  # it may be back already; if not, the sweeper comes round
        return None

    def _said_once(self, job: Job, failure: JobError) -> None:
        """An error that nobody foresaw is one event of the log, with its trace."""
        if isinstance(failure, Unforeseen):
            log.error(
                "step failed",
                job=job.id,
                kind=job.kind,
                series=job.series_uid,
                step=failure.step,
                error=str(failure),
                trace=failure.trace,
            )

    def _infer(self, job: Job) -> None:
        self.at("infer begun")
        try:
            verdict, images = self._input(job)
            if job.needs is not None:
                with _step("looking for the rest of the study"):
                    verdict = self._study_of(job, job.needs, verdict)
            with ExitStack() as stack:
                with _step("unpacking"):
                    files = stack.enter_context(self.stages.unpacked(f"{job.id}.{job.generation}", images, whole=True))
                self._analyse(job, verdict, images, files)
        except Refused as refusal:
            self._refuse(job, str(refusal))
        self.at("infer done")

    def _study_of(self, job: Job, needs: Mapping[str, Any], verdict: Verdict) -> Verdict:
        """The verdict, with what is missing of the study if it is to run without. Raises Refused, and Await."""
        lacks = self.stages.missing(needs, self.stages.study(job.study_uid, job.series_uid))
        if not lacks:
            self.ledger.note_study(job, "complete")
            return verdict
        words = f"{' and '.join(lacks)} of the study"
        if job.waits_until is not None and self.now() < job.waits_until:
            raise Await(f"waits for {words}", job.waits_until, counts=False)
        if needs["if_incomplete"] == "skip":
            self.ledger.note_study(job, "skipped")
            raise Refused(f"skipped: {words} did not come within {needs['wait_minutes']:g} minutes")
        self.ledger.note_study(job, "incomplete")
        return replace(verdict, remarks=(*verdict.remarks, f"analysed without {words}, which did not come in time"))

    def _analyse(self, job: Job, verdict: Verdict, images: Sequence[Stored], files: Sequence[Path]) -> None:
        def progress(fraction: float, text: str) -> None:
            with suppress(LedgerUnavailable):  # nobody is harmed by a bar that stands still
                self.ledger.progress(job, fraction, text)

        with self.stages.sources(files) as sources:
            with _step("inference"):
                findings = self.stages.infer(job, images, files, progress)
            self.at("inferred")
            with _step("the comparison with an earlier study"):
                findings = verdict.told(self.stages.compare(job, findings, files))
            self.at("compared")
            count = len(findings.findings)
            self._answer(
                job,
                findings.algorithm.version,
                lambda edition: self.stages.encode(job, findings, sources(), edition),
                state="done",
                reason=f"{count} finding{'' if count == 1 else 's'}",
                warnings=list(findings.warnings),
                facts={**findings.facts, **sizes(findings)},
                places=self.stages.places(findings, dict(zip(verdict.use, files, strict=True))),
                counted=_counted(job, findings, files),
            )

    def _refuse(self, job: Job, reason: str) -> None:
        """The input is not fit. Said on the page; and, if the route wants it, by a report to the destinations."""
        if not self.stages.reports_not_run(job):
            self.ledger.finish(job, "refused", reason, self.now())
            return
        instances = self.ledger.instances(job.series_uid)
        try:
            self._answer(
                job,
                "",  # of no algorithm: whether it is the same report again, its bytes say
                lambda edition: self.stages.encode_not_run(job, reason, instances, edition),
                state="refused",
                reason=reason,
            )
        except GiveUp as failure:  # the series is refused all the same; that no report says so is said with it
            self._said_once(job, failure)
            log.warning("no report of what was not run", job=job.id, series=job.series_uid, reason=str(failure))
            warning = f"no report says that it was not run: {failure}"
            self.ledger.finish(job, "refused", reason, self.now(), warnings=[warning])

    def _answer(
        self,
        job: Job,
        version: str,
        write: Callable[[Edition], list[Result]],
        *,
        state: str,
        warnings: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        **said: Any,
    ) -> None:
        """Write the results, as the edition that is there already if nothing has changed, and end the job with them."""
        analysed, began = state == "done", time.monotonic()
        while True:
            earlier = self.ledger.editions(job)
            also = decided(job.also, facts or {}, {place for each in earlier for place in each.released_to})
            edition = unchanged(earlier, job, version, analysed=analysed)
            with _step("encoding"):
                results = write(edition) if edition else []
                if edition is None or not same_objects(results, edition.objects):
                    edition = next_revision(earlier, job, version, analysed=analysed)
                    results = write(edition)
            self.at("encoded")
            try:
                self.ledger.finish(
                    job,
                    state,
                    now=self.now(),
                    results=results,
                    follow_up=self._sends(job, also) if results else [],
                    edition=replace(edition, objects=tuple(results)) if results else None,
                    warnings=[*warnings, *(remark for result in results for remark in result.remarks)],
                    facts=_told(facts, also, time.monotonic() - began),
                    **said,
                )
            except EditionChanged:
                continue  # a destination has got earlier results meanwhile: these replace them too
            return

    def _input(self, job: Job) -> tuple[Verdict, list[Stored]]:
        """The verdict on the series, and the images that it lets through, in its order. Raises Refused."""
        verdict = self.ledger.verdict(job.series_uid, job.route)
        if verdict is None or not verdict.fit:
            raise Refused(f"not run: {verdict.reason if verdict else 'the series was never judged'}")
        by_uid = {instance.sop_instance_uid: instance.stored for instance in self.ledger.instances(job.series_uid)}
        gone = [uid for uid in verdict.use if uid not in by_uid]
        if gone:
            raise Refused(f"not run: {len(gone)} of its images are not stored here, the first is {gone[0]}")
        return verdict, [by_uid[uid] for uid in verdict.use]

    def _sources(self, job: Job) -> dict[str, Stored]:
        """The images the results were made of: those that the verdict lets through, if it does."""
        by_uid = {instance.sop_instance_uid: instance.stored for instance in self.ledger.instances(job.series_uid)}
        verdict = self.ledger.verdict(job.series_uid, job.route)
        if verdict is None or not verdict.fit:
            return by_uid
        return {uid: by_uid[uid] for uid in verdict.use if uid in by_uid}

    def _sends(self, job: Job, also: Sequence[Mapping[str, Any]]) -> list[Job]:
        """None of a shadow, wherever its route would send to."""
        further = [each["to"] for each in also if each["sent"]]
        return [] if job.shadow else [self._send_job(job, place) for place in (*job.send_to, *further)]

    def _send_job(self, job: Job, destination: str) -> Job:
        return Job(
            id=_id("send", job.id, str(job.generation), destination),
            kind="send",
            series_uid=job.series_uid,
            study_uid=job.study_uid,
            revision=job.revision,
            pipeline=job.pipeline,
            route=job.route,
            priority=job.priority,
            shadow=job.shadow,
            sender=job.sender,
            destination=destination,
            infer_job=job.id,
            created_at=self.now(),
        )

    def _send(self, job: Job) -> None:
        self.at("send begun")
        assert job.destination is not None
        assert job.infer_job is not None
        if job.shadow or self.stages.is_shadow(job.route):
            raise Refused(f"not sent: route '{job.route}' is a shadow, and nothing of a shadow leaves the node")
        paths = tuple(result.path for result in self.ledger.results(job.infer_job))
        package = Package(job.id, paths, self._sources(job), lambda: self._is_ours(job), job.study_uid)
        with _step("sending"):
            receipts = self.stages.deliver(job.destination, package)
        self.at("sent")
        stored = sum(receipt.stored for receipt in receipts)
        confirm = self._confirm_job(job) if self.stages.arrival_check(job.destination) is not None else None
        self.ledger.finish(
            job,
            "done",
            f"{stored} objects stored",
            self.now(),
            receipts=receipts,
            follow_up=[confirm] if confirm else [],
        )
        self.at("send done")

    def _is_ours(self, job: Job) -> bool:
        """Asked before each object: this worker may have stood still for so long that another has taken the job."""
        try:
            return self.ledger.is_ours(job)
        except LedgerUnavailable:  # nobody can take it over either
            return True

    def _confirm_job(self, send: Job) -> Job:
        return replace(
            send,
            id=_id("confirm", send.id, str(send.generation)),
            kind="confirm",
            infer_job=None,
            send_job=send.id,
            created_at=self.now(),
            state="queued",
            generation=1,
            attempt=1,
            crashes=0,
            executor=None,
            reason="",
        )

    def _confirm(self, job: Job) -> None:
        self.at("confirm begun")
        with _step("asking whether the results arrived"):
            ending = self.confirm(job, last=job.attempt >= self.retry_policies[job.kind].max_attempts)
        self.ledger.finish(job, ending.state, ending.reason, self.now(), arrivals=ending.arrivals)
        self.at("confirm done")

    # ---- a sender asks for storage commitment of its images

    def commitment_asked(self, request: CommitmentRequest) -> None:
        """The request has its row, and a job that reports; only then may the sender hear 0x0000."""
        now = self.now()
        known = self.ledger.kept_instances([uid for _, uid in request.wanted[:1]])  # the job is shown with this series
        job = Job(
            id=_id("report", request.calling_ae, request.transaction_uid, now.isoformat()),
            kind="report",
            series_uid=known[0].series_uid if known else "",
            study_uid=known[0].study_uid if known else "",
            revision=self.ledger.revision(known[0].series_uid) if known else 0,
            pipeline="storage commitment",
            route="",
            priority=5,
            sender=request.calling_ae,
            destination=request.calling_ae,
            transaction_uid=request.transaction_uid,
            not_before=now + timedelta(seconds=REPORT_AFTER_S),
            created_at=now,
        )
        self.ledger.commitment_asked(request, job, now)

    def _report(self, job: Job) -> None:
        assert job.destination is not None
        assert job.transaction_uid is not None
        request = self.ledger.unreported(job.destination, job.transaction_uid)
        if request is None:
            self.ledger.finish(job, "done", "reported on the sender's own association", self.now())
            return
        with _step("the report of a storage commitment"):
            report = self.stages.judge_commitment(request)
            self.stages.report(job.destination, report)
        self.ledger.mark_reported(request, self.now())
        said = f"reported: {len(report.committed)} instances kept, {len(report.failed)} not"
        self.ledger.finish(job, "done", said, self.now())

    def _again(self, job: Job, failure: TryAgain) -> float | None:
        if isinstance(failure, Await):
            waits = self.ledger.retry_later(job, str(failure), failure.until, (), self.now(), counts=failure.counts)
            return (failure.until - self.now()).total_seconds() if waits else None
        error = kind_of(failure)
        if isinstance(failure, StoreAway):  # it says nothing of this job: however long it takes
            until = self.now() + timedelta(seconds=STORE_AGAIN_S)
            waits = self.ledger.retry_later(
                job, str(failure), until, failure.receipts, self.now(), counts=False, error=error
            )
            return STORE_AGAIN_S if waits else None
        policy = self.retry_policies[job.kind]
        most = min(policy.max_attempts, self.most_attempts.get(type(failure), policy.max_attempts))
        if job.attempt >= most:
            reason = f"gave up after {job.attempt} attempts: {failure}"
            self.ledger.finish(job, "failed", reason, self.now(), receipts=failure.receipts, error=error)
            return None
        delay_s = policy.delay_s(job.attempt, self.jitter)
        until = self.now() + timedelta(seconds=delay_s)
        waits = self.ledger.retry_later(job, str(failure), until, failure.receipts, self.now(), error=error)
        return delay_s if waits else None


@contextmanager
def _step(name: str) -> Iterator[None]:
    """One step of a job, in the words of its reason. What nobody foresaw in it ends the job, at once and only it.

    Raises Unforeseen; TryAgain for a network that fails and a disk that is full or gone; JobErrors as they are.
    """
    try:
        yield
    except (JobError, LedgerUnavailable, EditionChanged):
        raise
    except OSError as error:
        told = Told.of(error)
        if may_pass(error):
            raise TryAgain(f"{name}: {told.words}") from error
        raise Unforeseen(name, told) from error
    except Exception as error:  # the edge of a room: every error has an end, in its own words
        raise Unforeseen(name, Told.of(error)) from error


def kind_of(error: JobError) -> str:
    """The class of an error; of one that nobody foresaw, of that which it was."""
    return type(error.__cause__ if isinstance(error, Unforeseen) and error.__cause__ else error).__name__[:64]


def _counted(job: Job, findings: Findings, files: Sequence[Path]) -> dict[str, Counted] | None:
    """What the figures of its pipeline are told of a job."""
    if not job.counts:
        return None
    try:
        return outcome(findings, files[0])
    except Exception as error:  # noqa: BLE001 - the edge of the statistics: no result is kept back for them
        told = Told.of(error)
        log.error("series not counted", job=job.id, series=job.series_uid, error=told.words, trace=told.trace)
        return None


def _foremost(headers: Sequence[Dataset], verdict: Verdict) -> Dataset:
    """The header that stands for the series: of the first image that is used, if one is."""
    return next((h for h in headers if attributes.text(h, "SOPInstanceUID") in verdict.use[:1]), headers[0])


def _needs_row(needs: Needs) -> dict[str, Any]:
    return {
        "series": [dict(match) for match in needs.series],
        "wait_minutes": needs.wait_minutes,
        "if_incomplete": needs.if_incomplete,
    }


def with_fallbacks(said: Sequence[tuple[str, bool, bool, str | None]]) -> list[str | None]:
    """(route, is it a fallback, is it a shadow, why not) of all routes -> why not: a fallback is for what no other
    route takes. What a shadow takes nobody gets."""
    live = (name for name, fallback, shadow, why_not in said if why_not is None and not fallback and not shadow)
    taken = next(live, None)
    too_late = None if taken is None else f"is a fallback, and '{taken}' takes the series"
    return [why_not or (too_late if fallback else None) for _, fallback, _, why_not in said]


def _rules(matches: Sequence[RouteMatch]) -> list[dict[str, Any]]:
    return [{"rule": m.rule, "matched": m.why_not is None, "why_not": m.why_not} for m in matches]


def _id(*parts: str) -> str:
    """The same job, asked for twice, is one row."""
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]


def _told(facts: Mapping[str, Any] | None, also: Sequence[Mapping[str, Any]], encode_s: float) -> dict[str, Any] | None:
    """The facts of a job; of one that made no findings who got its report as well."""
    said = {"also": list(also)} if also else {}
    return {**facts, **said, "encode_seconds": round(encode_s, 3)} if facts is not None else said or None
