"""Builds the node from its settings: the only wiring. What happens in which order is in `flow.py`."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import shutil
import socket
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pydicom
import structlog
import uvicorn
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from config import Config, Peer
from dicom_sr.attributes import UNREADABLE
from dicom_sr.changes import Comparison
from dicom_sr.findings import Findings
from dicom_sr.forms import Profile
from models import PIPELINES
from models.pixels import faults
from pacs_node import __version__, kept, observe, priors
from pacs_node.assemble.evidence import expected_count
from pacs_node.assemble.geometry import judge
from pacs_node.assemble.series import Close, decide
from pacs_node.commitment import judged
from pacs_node.confirm import Witness
from pacs_node.deliver.arrival import DimseWitness, sent_objects
from pacs_node.deliver.destination import Destination
from pacs_node.deliver.dimse import DimseDestination
from pacs_node.deliver.dimse import Peer as DicomPeer
from pacs_node.deliver.folder import FolderDestination
from pacs_node.deliver.stow import QidoWitness, StowDestination, WebPeer
from pacs_node.encode import REJECTION_NOTE, ResultForms, encode_not_run, encode_results, variant_of
from pacs_node.errors import (
    AlreadyRunning,
    CannotStart,
    GiveUp,
    JobError,
    LedgerUnavailable,
    Refused,
    Told,
    TryAgain,
    Unforeseen,
)
from pacs_node.flow import Flow, Patience, RouteMatch
from pacs_node.infer import Inference
from pacs_node.jobs import Engine
from pacs_node.ledger import MOST_REFUSALS, Ledger
from pacs_node.loop import Loop
from pacs_node.receive.commitment import CommitmentService, bring_report
from pacs_node.receive.scp import Listener, ListenerSettings
from pacs_node.receive.spool import Spool
from pacs_node.records import (
    REFUSAL_KINDS,
    Answer,
    AssociationEnd,
    CommitmentReport,
    CommitmentRequest,
    Edition,
    Instance,
    Job,
    OpenSeries,
    Package,
    Receipt,
    Refusal,
    Result,
    Sent,
    Verdict,
)
from pacs_node.route import Rule, route
from pacs_node.web.app import create_app

log = structlog.get_logger()

ASSEMBLE_EVERY_S = 0.5
AFTER_CUT_S = 5.0  # what an interrupted job gets to be put back
SETTLED_S = 2.0  # of silence before the sender is asked: it may still be taking in the series itself
NOTE_EVERY_S = 5.0  # what was refused while the ledger was away is noted this often
MOST_UNKEPT = 32  # jobs whose findings are held in memory while no disk takes them
ENGINE_POLL_S = 0.1  # how soon a new job is noticed


def utc_now() -> datetime:
    return datetime.now(UTC)


class JoinedRooms:
    """The rooms of `flow.Rooms`, joined to the settings."""

    def __init__(self, config: Config, ledger: Ledger, now: Callable[[], datetime]) -> None:
        self.config, self.ledger, self.now = config, ledger, now
        self.rules = [
            Rule(r.name, r.match, r.pipeline, r.send_to, r.priority_number, r.options, r.priors) for r in config.routes
        ]
        self.destinations = {
            peer.name: _destination(config, peer.name, ledger) for peer in config.peers if peer.reachable
        }
        witnesses = {peer.name: _witness(config, peer) for peer in config.peers if peer.reachable}
        self.witnesses = {name: witness for name, witness in witnesses.items() if witness is not None}
        self.inference = Inference(config.infer.device, config.jobs.infer_timeout_s)
        self.results = config.node.data_dir / "results"
        self.rejected = config.node.data_dir / "rejected"
        self.unkept: dict[Path, Findings] = {}  # that could not be written down

    def decide(self, series: OpenSeries, now: datetime) -> str | None:
        waits = self.config.assemble
        decision = decide(
            series.evidence,
            now,
            quiet_s=waits.quiet_s,
            quiet_unreleased_s=waits.quiet_unreleased_s,
            max_wait_s=waits.max_wait_s,
        )
        return decision.because if isinstance(decision, Close) else None

    def headers(self, instances: Sequence[Instance]) -> list[Dataset]:
        return [_header(instance) for instance in instances]

    def judge(self, headers: Sequence[Dataset]) -> Verdict:
        return judge(headers, min_slices=self.config.assemble.min_slices, faults=faults(headers))

    def matches(self, header: Dataset) -> list[RouteMatch]:
        return [
            RouteMatch(rule.name, why_not, rule.pipeline, rule.send_to, rule.priority, rule.options, rule.priors)
            for rule, why_not in route(self.rules, header)
        ]

    def infer(self, job: Job, files: Sequence[Path], progress: Callable[[float, str], None]) -> Findings:
        """The findings, kept with the job: when it runs again they are inferred again only if what is asked, or the
        algorithm, is another."""
        path = self.results / job.id / f"findings-{kept.asked(job.pipeline, job.options, files)[:16]}.npz"
        known = self.unkept.get(path) or kept.read(path)
        if known is not None and known.algorithm.version == self.inference.version(job.pipeline, job.options):
            return known
        findings = self.inference.run(job.pipeline, job.options, files, progress)
        try:
            return kept.keep(path, findings)
        except OSError as error:  # the disk is full: encoding waits for room, and finds them here
            log.warning("findings not kept", job=job.id, error=error.strerror)
            self.unkept[path] = kept.load(kept.dump(findings))
            for oldest in list(self.unkept)[:-MOST_UNKEPT]:
                del self.unkept[oldest]
            return self.unkept[path]

    def compare(self, job: Job, findings: Findings, files: Sequence[Path]) -> Findings:
        """The findings with what became of them since an earlier study; with a warning where that cannot be told."""
        if job.priors is None:
            return findings
        of = priors.digest(findings)
        path = self.results / job.id / f"comparison-{of[:16]}.json"
        outcome = priors.kept(path, of)
        if outcome is None:
            try:
                outcome = priors.Outcome(self._compared(job, job.priors, findings, files), of=of)
            except (priors.NoComparison, Refused, TryAgain, GiveUp) as reason:
                if isinstance(reason, Unforeseen):  # an event of its own: the job goes on without a comparison
                    log.error("comparison failed", job=job.id, error=str(reason), trace=reason.trace)
                outcome = priors.Outcome(why_not=str(reason), of=of)
            outcome = priors.keep(path, outcome)
        return outcome.told(findings)

    def _compared(self, job: Job, peer_name: str, findings: Findings, files: Sequence[Path]) -> Comparison:
        """Fetch, judge, compare; what was fetched is gone afterwards. Raises NoComparison or a JobError: why not."""
        peer = next((peer for peer in self.config.peers if peer.name == peer_name), None)
        if peer is None or peer.ae_title is None or peer.host is None or peer.port is None:
            raise priors.NoComparison(f"the settings have no peer '{peer_name}' that can be asked for earlier studies")
        archive = priors.Archive(peer.name, peer.ae_title, peer.host, peer.port, self.config.node.ae_title)
        limits = self.config.priors
        root = self.config.node.data_dir / "priors"
        folder = root / f"{job.id}.{job.generation}"
        for left_behind in root.glob(f"{job.id}.*"):  # by a run of this job that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            header = pydicom.dcmread(files[0], stop_before_pixels=True)
            prior = priors.fetch(
                archive, header, job.pipeline, folder, max_age_days=limits.max_age_days, timeout_s=limits.timeout_s
            )
            headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in prior.images]
            verdict = judge(headers, min_slices=self.config.assemble.min_slices)
            if not verdict.fit:
                raise priors.NoComparison(f"the earlier CT is not fit: {verdict.reason}")
            of = {str(each.SOPInstanceUID): path for each, path in zip(headers, prior.images, strict=True)}
            usable = replace(prior, images=tuple(of[uid] for uid in verdict.use))
            return self.inference.compare(job.pipeline, findings, files, usable, limits.timeout_s)
        except (priors.NoComparison, JobError, LedgerUnavailable):
            raise
        except OSError as error:
            raise priors.NoComparison(f"{folder} cannot be written or read: {error.strerror}") from error
        except Exception as error:  # an earlier study is another's data: whatever it holds, this result goes out
            raise Unforeseen("the comparison", Told.of(error)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def encode(self, job: Job, findings: Findings, files: Sequence[Path], edition: Edition) -> list[Result]:
        return encode_results(
            replace(findings, variant=variant_of(job.asked)),
            files,
            self._folder(job),
            when=edition.dated,
            revision=edition.number,
            replaces=edition.replaces,
            note=any(self._wants_note(name) for name in job.send_to),
            rejected=self.rejected / job.id,
        )

    def reports_not_run(self, job: Job) -> bool:
        return any(route.name == job.route and route.report_not_run for route in self.config.routes)

    def encode_not_run(self, job: Job, reason: str, instances: Sequence[Instance], edition: Edition) -> list[Result]:
        return encode_not_run(
            job.pipeline,
            variant_of(job.asked),
            reason,
            instances,
            self._folder(job),
            version=__version__,
            edition=edition,
            rejected=self.rejected / job.id,
        )

    def deliver(self, destination: str, package: Package) -> list[Receipt]:
        if destination not in self.destinations:
            raise GiveUp(f"the settings have no peer '{destination}' that results can be sent to")
        if not self._wants_note(destination):
            package = replace(package, paths=tuple(path for path in package.paths if REJECTION_NOTE not in path.name))
        return self.destinations[destination].deliver(package, self.now)

    def _folder(self, job: Job) -> Path:
        return self.results / job.id / str(job.generation)  # a worker taken for dead writes beside its successor

    def _wants_note(self, name: str) -> bool:
        return any(peer.name == name and peer.reject_replaced for peer in self.config.peers)

    def witness(self, destination: str) -> Witness | None:
        return self.witnesses.get(destination)

    def sent(self, paths: Sequence[Path], stored: frozenset[str]) -> list[Sent]:
        # with their neighbours: what was sent instead of a result lies beside it
        folders = sorted({path.parent for path in paths})
        return sent_objects([*paths, *(file for folder in folders for file in sorted(folder.rglob("*.dcm")))], stored)

    def judge_commitment(self, request: CommitmentRequest) -> CommitmentReport:
        """What of it we hold durably: the row is committed and the file is there."""
        kept = self.ledger.kept([uid for _, uid in request.wanted])
        held = {each.sop_instance_uid: each.sop_class_uid for each in kept if each.path.is_file()}
        return judged(request.transaction_uid, request.wanted, held)

    def report(self, calling_ae: str, report: CommitmentReport) -> None:
        peer = next((p for p in self.config.peers if p.ae_title == calling_ae and p.host and p.port), None)
        if peer is None or peer.host is None or peer.port is None:
            raise GiveUp(f"the settings have no host and port for {calling_ae}, so its report cannot be brought to it")
        bring_report(
            report,
            our_ae=self.config.node.ae_title,
            their_ae=calling_ae,
            host=peer.host,
            port=peer.port,
            timeout_s=self.config.receive.dimse_timeout_s,
        )


class Node:
    """The whole node in one process, or its worker alone.

    at: called with the name of every step of `flow.STEPS` as it is reached; fault tests stop the process there.
    """

    def __init__(
        self, config: Config, *, now: Callable[[], datetime] = utc_now, at: Callable[[str], None] = lambda step: None
    ) -> None:
        self.config, self.now = config, now
        data_dir = config.node.data_dir
        _writable(data_dir)
        self.ledger = Ledger(config.database.url)
        self.rooms = JoinedRooms(config, self.ledger, now)
        # One worker per SQLite file, so its name can stay the same and it finds its own jobs again at once.
        alone = self.ledger.embedded
        self.executor = "local" if alone else f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self.flow = Flow(
            self.ledger,
            self.rooms,
            {
                kind: Patience(config.jobs.send_backoff_s, config.jobs.send_backoff_max_s, attempts)
                for kind, attempts in (
                    ("infer", config.jobs.infer_attempts),
                    ("send", config.jobs.max_attempts),
                    ("confirm", config.jobs.confirm_attempts),
                    ("report", config.jobs.confirm_attempts),
                )
            },
            poison_limit=config.jobs.poison_limit,
            now=now,
            dice=random.Random(),
            executor=self.executor,
            await_report_s=config.jobs.await_report_s,
            at=at,
        )
        self.spool = Spool(data_dir / "spool", config.receive.keep_free_gb)
        self.listener: Listener | None = None
        self.engine: Engine | None = None
        self._web: uvicorn.Server | None = None
        self._threads: list[threading.Thread] = []
        self._assembler = Loop("assembler", self._assemble, ASSEMBLE_EVERY_S)
        self._not_noted: deque[Refusal] = deque(maxlen=MOST_REFUSALS)
        self._refusals = Loop("refusals", self._note_refusals, NOTE_EVERY_S)
        self._lock: IO[str] | None = None
        self._asked: dict[str, int] = {}  # series -> instances that had arrived when its peer was asked
        self._closer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="close")
        self._askers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="ask-peer")

    # ---- start and stop

    def start(self, *, listen: bool = True, work: bool = True, web: bool = True) -> None:
        """Raises AlreadyRunning, LedgerTooOld, LedgerUnavailable; CannotStart when a port or folder cannot be had."""
        if work:
            self._lock = _lock(self.config.node.data_dir / "worker.lock") if self.ledger.embedded else None
        self.ledger.migrate()
        if listen:
            for instance in self.spool.scan(self.ledger.known_paths(), self._damaged):
                self.flow.stored(instance)  # durable on disk, but its row was never written
            self._start_listener()
            self._assembler.start()
        if web:
            self._start_web()
        if work:
            self._start_engine()
        log.info("node started", version=__version__, listen=listen, work=work, web=web)

    def stop(self) -> None:
        """Drain: senders and running jobs get `drain_s` to end; everything else is taken up at the next start."""
        drain_s = self.config.receive.drain_s
        if self.listener is not None:
            self.listener.stop(drain_s)
        if self.engine is not None:
            cut_short = threading.Timer(drain_s, self.rooms.inference.close)
            cut_short.start()
            self.engine.stop(drain_s + AFTER_CUT_S)
            cut_short.cancel()
        self.rooms.inference.close()
        if self._web is not None:
            self._web.should_exit = True
        self._assembler.stop()
        self._refusals.stop()
        with suppress(LedgerUnavailable):
            self._note_refusals()
        for thread in self._threads:
            thread.join(timeout=10)
        self._closer.shutdown(wait=True)
        self._askers.shutdown(wait=False, cancel_futures=True)
        self.ledger.close()
        if self._lock is not None:
            self._lock.close()
        log.info("node stopped")

    def _thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _start_listener(self) -> None:
        node, receive = self.config.node, self.config.receive
        settings = ListenerSettings(
            ae_title=node.ae_title,
            host=node.dicom_host,
            port=node.dicom_port,
            allowed=frozenset(peer.ae_title for peer in self.config.peers if peer.may_send and peer.ae_title),
            reporters=frozenset(peer.ae_title for peer in self.config.peers if peer.host and peer.ae_title),
            max_associations=receive.max_associations,
            max_pdu=receive.max_pdu,
            network_timeout_s=receive.network_timeout_s,
            acse_timeout_s=receive.acse_timeout_s,
            dimse_timeout_s=receive.dimse_timeout_s,
        )
        commitment = CommitmentService(
            on_request=self._commitment_asked,
            judge=self.rooms.judge_commitment,
            on_reported=lambda request: self.ledger.reported(request, self.now()),
            on_report=self._commitment_reported,
            audit=observe.audit,
        )
        self.listener = Listener(
            settings,
            self.spool,
            self.flow.stored,
            self._sender_left,
            observe.audit,
            self.now,
            commitment,
            self._refused,
        )
        with _port("dicom_port", node.dicom_port, "dicom_host", node.dicom_host):
            self.listener.start()
        self._refusals.start()

    def _start_engine(self) -> None:
        jobs = self.config.jobs
        self.engine = Engine(
            self.ledger,
            self.flow,
            executor=self.executor,
            infer_slots=1,
            send_slots=2,
            sweep_s=jobs.sweep_s,
            lease_s=jobs.lease_s,
            poison_limit=jobs.poison_limit,
            poll_s=ENGINE_POLL_S,
            now=self.now,
        )
        self.engine.start()
        self.rooms.inference.warm([(route.pipeline, route.options) for route in self.config.routes])

    def _start_web(self) -> None:
        collector = observe.LedgerCollector(
            self.ledger.counts,
            lambda: len(self._connected()),
            self.spool.root,
            self.ledger.arrival_counts,
            self.ledger.refusal_counts,
        )
        node = self.config.node
        app = create_app(NodeFacts(self), observe.registry(collector), (node.web_host, *node.web_names))
        with _port("web_port", node.web_port, "web_host", node.web_host):  # here, so that a taken port stops start-up
            door = socket.create_server((node.web_host, node.web_port))
        self._web = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=3))
        web = self._web
        self._thread("web", lambda: web.run(sockets=[door]))

    def trouble(self) -> list[str]:
        """What makes the node unfit to receive or to work, in words; nothing of a node that is well."""
        loops = [self._assembler, self._refusals, *([self.engine.sweeper] if self.engine is not None else [])]
        said = [loop.trouble for loop in loops if loop.trouble is not None]
        free_gb = shutil.disk_usage(self.spool.root).free / 1e9
        if free_gb < self.config.receive.keep_free_gb:
            said.append(f"{free_gb:.1f} GB are free where images are kept: senders are answered 0xA700")
        return said

    # ---- what drives the flow

    def _connected(self) -> frozenset[str]:
        return self.listener.open_associations if self.listener is not None else frozenset()

    def _refused(self, refusal: Refusal) -> None:
        """Noted for a thread of its own: a ledger that is slow or away must not hold a sender up."""
        self._not_noted.append(refusal)
        self._refusals.wake()

    def _damaged(self, path: Path, reason: str) -> None:
        file = str(path.relative_to(self.spool.root))
        self._refused(Refusal("damaged", self.now(), "", "", reason, file=file))

    def _note_refusals(self) -> None:
        while self._not_noted:
            refusal = self._not_noted.popleft()
            try:
                self.ledger.refused(refusal)
            except LedgerUnavailable:
                self._not_noted.appendleft(refusal)
                raise

    def _sender_left(self, end: AssociationEnd) -> None:
        self.flow.sender_left(end)
        self._assembler.wake()

    def _commitment_asked(self, request: CommitmentRequest) -> None:
        self.flow.commitment_asked(request)
        self._wake()

    def _commitment_reported(self, report: CommitmentReport, calling_ae: str) -> bool:
        known = self.ledger.commitment_reported(report, calling_ae, self.now())
        self._wake()
        return known

    def _wake(self) -> None:
        if self.engine is not None:
            self.engine.wake()

    def _assemble(self) -> None:
        if self.config.assemble.ask_peer:
            self._ask_peers()
        for series, because in self.flow.complete(self._connected()):
            self._close(series, because)

    def _close(self, series: OpenSeries, because: str) -> None:
        """One series that cannot be handled must not stop the next: its error is its own."""
        closing = self._closer.submit(self.flow.close, series, because)
        error = closing.exception()
        if isinstance(error, LedgerUnavailable):
            raise error
        if error is not None:
            self.flow.set_aside(series, because, _not_judged(series.series_uid, error))
        elif closing.result():
            self._wake()

    def rerun(self, series_uid: str, route: str | None = None) -> str | None:
        """Run a closed series again, or why not. One that cannot even be judged says so, and stops no other."""
        asked = self._closer.submit(self.flow.rerun, series_uid, route)
        error = asked.exception()
        if isinstance(error, LedgerUnavailable):
            raise error
        if error is not None:
            return _not_judged(series_uid, error)
        if asked.result() is None:
            self._wake()
        return asked.result()

    def _ask_peers(self) -> None:
        """How many images has the series? Asked beside the assembler, so that a dead peer holds nothing up."""
        by_title = {peer.ae_title: peer for peer in self.config.peers if peer.host is not None}
        for series in self.ledger.open_series(self._connected()):
            evidence = series.evidence
            settled = (self.now() - evidence.last_arrival).total_seconds() >= SETTLED_S
            if not settled or self._asked.get(series.series_uid) == evidence.arrived:
                continue
            peers = [by_title[title] for title in series.calling_aes if title in by_title]
            if peers:
                self._asked[series.series_uid] = evidence.arrived
                self._askers.submit(self._ask, peers[0], series)

    def _ask(self, peer: Any, series: OpenSeries) -> None:
        count = expected_count(
            peer.host,
            peer.port,
            self.config.node.ae_title,
            peer.ae_title,
            series.study_uid,
            series.series_uid,
            self.config.receive.acse_timeout_s,
        )
        if count is not None:
            self.ledger.expect(series.series_uid, series.evidence.arrived, count, peer.name)
            self._assembler.wake()


def _not_judged(series_uid: str, error: BaseException) -> str:
    """The reason, in the error's words; the log has its trace."""
    told = Told.of(error)
    log.error("series could not be judged", series=series_uid, error=told.words, trace=told.trace)
    return f"could not be judged: {told.words}"


OVERDUE_AFTER_S = 3600.0  # a job that has not ended an hour after its time is named by /health
ATTENTION = 20  # jobs that /health names one by one
TASKS = {  # kind of job -> what it does, in words
    "infer": "{pipeline}",
    "send": "sending to {destination}",
    "confirm": "proving arrival at {destination}",
    "report": "reporting on storage commitment to {destination}",
}


def in_need(jobs: Sequence[dict[str, Any]], said: str) -> list[str]:
    """One sentence for each task that these jobs, the most telling first, are about."""
    of: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        of.setdefault(TASKS[job["kind"]].format(**job), []).append(job)
    return [
        f"{task} {said} ({len(group)} job{'' if len(group) == 1 else 's'}): {group[0]['reason'] or group[0]['state']}"
        for task, group in of.items()
    ]


class NodeFacts:
    """What the web pages ask. Nothing of it names a path of this machine."""

    def __init__(self, node: Node) -> None:
        self.node = node
        config = node.config
        named = [(config.node.data_dir, "data_dir"), (Path(config.database.url.partition(":///")[2]), "the database")]
        named += [(peer.folder, f"the folder of '{peer.name}'") for peer in config.peers if peer.folder is not None]
        # the longest first: a folder of results may lie within data_dir
        self._named = sorted(((str(path), name) for path, name in named), key=lambda each: -len(each[0]))

    def _without_paths(self, value: Any) -> Any:
        """The same value, with the settings' own folders called by their names in every text."""
        if isinstance(value, dict):
            return {key: self._without_paths(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._without_paths(each) for each in value]
        if isinstance(value, str):
            for path, name in self._named:
                value = value.replace(path, name) if len(path) > 1 else value
        return value

    def health(self) -> dict[str, Any]:
        """ "trouble": unfit to receive or to work. "degraded": it does both, but a job needs a person."""
        node = self.node
        trouble, needs, attention = node.trouble(), [], []
        counts: dict[str, Any] = {}
        try:
            counts = node.ledger.counts()
            failed, late = node.ledger.unresolved(), node.ledger.overdue(self._due())
            needs = [*in_need(failed, "has failed for good"), *in_need(late, "is overdue")]
            attention = [*failed, *late][:ATTENTION]
        except LedgerUnavailable as error:
            trouble.append(str(error))
        facts = {
            "status": "trouble" if trouble else "degraded" if needs else "ok",
            "reasons": [*trouble, *needs],
            "attention": attention,
            "version": __version__,
            "ae_title": node.config.node.ae_title,
            "dicom_port": node.config.node.dicom_port,
            "open_associations": len(node._connected()),
            "listening": node.listener is not None,
            "working": node.engine is not None,
            "pipelines": sorted(PIPELINES),
            **counts,
        }
        return self._without_paths(facts)

    def _due(self) -> dict[str, datetime]:
        """For each kind of job: made before this, it should have ended by now."""
        jobs = self.node.config.jobs
        own_s = {"infer": jobs.infer_timeout_s, "send": 0.0, "confirm": jobs.await_report_s, "report": 0.0}
        return {kind: self.node.now() - timedelta(seconds=OVERDUE_AFTER_S + s) for kind, s in own_s.items()}

    def routes(self) -> list[str]:
        return [route.name for route in self.node.config.routes]

    def series_list(self, limit: int, before: datetime | None = None) -> list[dict[str, Any]]:
        return self._without_paths(self.node.ledger.series_list(limit, before))

    def series(self, uid: str) -> dict[str, Any] | None:
        return self._without_paths(self.node.ledger.series(uid))

    def destinations(self) -> list[dict[str, Any]]:
        """Every peer that results are sent to, and what it accepted and refused."""
        config = self.node.config
        facts = []
        for peer in config.peers:
            if not peer.reachable:
                continue
            memory = LedgerMemory(self.node.ledger, peer, config.node.ae_title)
            facts.append(
                {
                    "name": peer.name,
                    "where": "a folder"
                    if peer.folder
                    else peer.dicomweb_url or f"{peer.ae_title} at {peer.host}:{peer.port}",
                    "segmentation": peer.segmentation,
                    "omit_empty_frames": peer.omit_empty_frames,
                    "key_objects": peer.key_objects,
                    "key_images": peer.key_images,
                    "answers": [
                        {
                            "sop_class_uid": answer.sop_class_uid,
                            "transfer_syntax_uid": answer.transfer_syntax_uid,
                            "refused": answer.refused,
                            "at": answer.at.isoformat(timespec="milliseconds"),
                            "asked_again_at": memory.asked_again_at(answer).isoformat(timespec="milliseconds")
                            if answer.refused is not None
                            else None,
                        }
                        for answer in memory.answers()
                    ],
                }
            )
        return facts

    def refusals(self, limit: int) -> dict[str, Any]:
        counts = self.node.ledger.refusal_counts()
        return {
            "counts": {kind: {**count, "means": REFUSAL_KINDS.get(kind, "")} for kind, count in counts.items()},
            "refusals": self.node.ledger.refusals(limit),
        }

    def retry(self, job_id: str) -> bool:
        started = self.node.ledger.run_again(job_id, self.node.now())
        if started:
            self.node._wake()
        return started

    def dismiss(self, job_id: str) -> bool:
        return self.node.ledger.dismiss(job_id, self.node.now())

    def rerun(self, series_uid: str) -> str | None:
        return self._without_paths(self.node.rerun(series_uid))

    def rerun_many(self, route: str | None, since: datetime | None) -> dict[str, str | None]:
        """Series Instance UID -> None, or why it is not run again.

        since   every closed series whose last image came then or later; without it, every series `route` has taken
        route   only what this one asks for
        """
        ledger, wanted = self.node.ledger, []
        if since is not None:
            wanted = ledger.series_since(since)
        elif route is not None:
            wanted = ledger.series_of_route(route)
        return self._without_paths({uid: self.node.rerun(uid, route) for uid in wanted})

    def rejected(self, job_id: str) -> dict[str, Path]:
        job = self.node.ledger.job(job_id)
        folder = self.node.rooms.rejected / job_id
        if job is None or job.state != "failed" or not folder.is_dir():
            return {}
        return {path.name: path for path in sorted(folder.glob("*.dcm"))}


def _header(instance: Instance) -> Dataset:
    """Its header; of one that cannot be read, what the listener knew: the verdict will set it aside."""
    try:
        return pydicom.dcmread(instance.path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, *UNREADABLE) as error:
        log.warning("header unreadable", instance=instance.sop_instance_uid, error=type(error).__name__)
        known = Dataset()
        known.SOPClassUID, known.SOPInstanceUID = instance.sop_class_uid, instance.sop_instance_uid
        known.StudyInstanceUID, known.SeriesInstanceUID = instance.study_uid, instance.series_uid
        return known


class LedgerMemory:
    """What one destination accepts, as the ledger has it. Other settings of the peer, or another calling AE title:
    everything is asked anew."""

    def __init__(self, ledger: Ledger, peer: Peer, calling_ae: str) -> None:
        self.ledger, self.peer = ledger, peer
        self.settings = hashlib.sha256(f"{calling_ae} {peer.model_dump_json()}".encode()).hexdigest()

    def answers(self) -> list[Answer]:
        return self.ledger.answers(self.peer.name, self.settings)

    def asked_again_at(self, answer: Answer) -> datetime:
        return answer.at + timedelta(hours=self.peer.ask_again_h)

    def refusals(self, now: datetime) -> dict[tuple[str, str], str]:
        return {
            (answer.sop_class_uid, answer.transfer_syntax_uid): f"{answer.refused} (asked {answer.at:%Y-%m-%d %H:%M})"
            for answer in self.answers()
            if answer.refused is not None and now < self.asked_again_at(answer)
        }

    def remember(self, answers: Sequence[Answer]) -> None:
        with suppress(LedgerUnavailable):  # an aid: without it more is asked next time
            self.ledger.remember_answers(self.peer.name, self.settings, answers)


def _profile(peer: Peer) -> Profile:
    return Profile(
        label_map=peer.segmentation == "LABELMAP",
        omit_empty_frames=peer.omit_empty_frames,
        key_objects=peer.key_objects,
        key_images=peer.key_images,
        viewer=peer.viewer,
    )


def _destination(config: Config, name: str, ledger: Ledger) -> Destination:
    peer = config.peer(name)
    forms = ResultForms(_profile(peer))
    if peer.folder is not None:
        return FolderDestination(name, peer.folder, forms)
    if peer.dicomweb_url is not None:
        with _certificates(peer):
            return StowDestination(_web_peer(config, peer), forms)
    return DimseDestination(_dicom_peer(config, peer), forms, LedgerMemory(ledger, peer, config.node.ae_title))


def _witness(config: Config, peer: Peer) -> Witness | None:
    """Whom to ask whether results arrived; None: nobody is asked."""
    if peer.folder is not None or peer.confirm == "none":
        return None
    if peer.dicomweb_url is not None:
        with _certificates(peer):
            return QidoWitness(_web_peer(config, peer))
    ways = {"auto": (True, True), "commitment": (True, False), "query": (False, True)}
    commits, queries = ways[peer.confirm]
    return DimseWitness(_dicom_peer(config, peer), commits=commits, queries=queries)


def _dicom_peer(config: Config, peer: Peer) -> DicomPeer:
    assert peer.ae_title is not None  # the settings promise all three of a peer that is reachable
    assert peer.host is not None
    assert peer.port is not None
    return DicomPeer(
        peer.name, peer.ae_title, peer.host, peer.port, config.node.ae_title, timeout_s=config.receive.dimse_timeout_s
    )


def _web_peer(config: Config, peer: Peer) -> WebPeer:
    assert peer.dicomweb_url is not None
    return WebPeer(
        peer.name,
        peer.dicomweb_url,
        config.receive.dimse_timeout_s,
        token=peer.dicomweb_token.get_secret_value() if peer.dicomweb_token else None,
        user=peer.dicomweb_user,
        password=peer.dicomweb_password.get_secret_value() if peer.dicomweb_password else None,
        verify=peer.dicomweb_verify,
        ca_file=peer.dicomweb_ca,
    )


@contextmanager
def _port(port_key: str, port: int, host_key: str, host: str) -> Iterator[None]:
    """Raises CannotStart with the setting to change when a port cannot be listened on."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            why = f"port {port} of {host} is taken by another program: stop that one, or change {port_key} in [node]"
        elif number in (errno.EACCES, errno.EPERM):
            why = f"port {port} may not be opened by this user: change {port_key} in [node] to one above 1023"
        else:
            said = error.strerror if isinstance(error, OSError) else error
            why = f"{host_key} {host!r} in [node] is no address of this machine ({said}): correct {host_key}"
        raise CannotStart(why) from error


@contextmanager
def _certificates(peer: Peer) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else "no certificate in it"
        raise CannotStart(
            f"peer '{peer.name}': dicomweb_ca {peer.dicomweb_ca} cannot be used ({why.lower()}): correct dicomweb_ca"
        ) from error


def _writable(data_dir: Path) -> None:
    """Raises CannotStart unless the node can keep things there."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise CannotStart(
            f"data_dir {data_dir} in [node] cannot be written ({(error.strerror or '').lower()}): "
            "make it a folder that this user may write to, or name another one"
        ) from error


def _lock(path: Path) -> IO[str]:
    """Hold the data folder for one worker. Raises AlreadyRunning."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise AlreadyRunning(
            f"{path.parent} is in use by another worker (process {holder}); "
            "stop it, or use PostgreSQL to run several workers"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
