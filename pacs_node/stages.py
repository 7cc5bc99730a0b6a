"""The stages that the flow goes through, wired to the settings."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from config import Config, Peer, Route
from dicom_sr.attributes import UNREADABLE
from dicom_sr.changes import Comparison
from dicom_sr.findings import Findings
from dicom_sr.reading import CutOff, Room, TooMuch, read_header
from models import catalogue
from models.pipeline import Card
from models.pixels import faults
from pacs_node import __version__, kept, pack, priors
from pacs_node.assemble.geometry import card_for, judge
from pacs_node.assemble.series import Close, decide
from pacs_node.association import Peer as DicomPeer
from pacs_node.commitment import judge_request
from pacs_node.confirm import ArrivalCheck
from pacs_node.deliver.arrival import sent_objects
from pacs_node.deliver.destination import Destination
from pacs_node.devices import Devices
from pacs_node.errors import (
    Await,
    GiveUp,
    JobError,
    LedgerUnavailable,
    Refused,
    StoreAway,
    Told,
    TryAgain,
    Unforeseen,
    may_pass,
)
from pacs_node.flow import RouteMatch
from pacs_node.ledger import Ledger
from pacs_node.memory import Peaks
from pacs_node.peers import arrival_check_of, destination_of, dicom_peer
from pacs_node.receive.commitment import bring_report
from pacs_node.records import (
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
    WhenAsked,
)
from pacs_node.route import Rule, missing, priority_of, route
from pacs_node.shadow import places_of
from pacs_node.sources import Sources, read_meanwhile
from pacs_node.store import Bucket, ObjectStore, SharedFolder, Store, clear_forgotten

log = structlog.get_logger()

PATIENCE = 5  # times that a series is closed later because the disk fails; then it is judged without those images
ELSEWHERE = timedelta(seconds=30)  # until a job that this machine cannot do is offered again, to any
MOST_UNKEPT = 32  # jobs whose findings are held in memory while no disk takes them


def devices_of(config: Config, *, known_forms: bool = True) -> Devices:
    """What inferences run on. known_forms: the forms that are kept count; else all are measured anew."""
    folder = config.node.data_dir / "inference"
    devices = Devices(
        config.infer.names,
        config.jobs.infer_timeout_s,
        memory_gb=config.infer.memory_gb,
        confined=config.infer.confine,
        peaks=Peaks(folder / "memory.json"),
        forms_at=folder / "forms.json",
        reads=[config.node.data_dir / name for name in ("work", "priors")],
    )
    if not known_forms:
        for device in devices.all:
            device.inference.forms_at = None
    return devices


@dataclass(frozen=True)
class Wiring:
    """What settings make of peers and routes."""

    config: Config
    rules: list[Rule]
    destinations: dict[str, Destination]
    arrival_checks: dict[str, ArrivalCheck]
    cards: dict[str, Card]  # of each route
    dicom_peers: dict[str, DicomPeer]


class WiredStages:
    """The stages of `flow.Stages`, wired to the settings."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        now: Callable[[], datetime],
        audit: Callable[[str, Mapping[str, Any]], None] = lambda event, facts: None,
    ) -> None:
        self.ledger, self.now, self.audit = ledger, now, audit
        self.known = catalogue()
        self.dicom_peers: dict[str, DicomPeer] = {}
        self.inference = devices_of(config)
        self.reported: dict[str, bool] = {}  # route -> its report_not_run, also of those that are gone: jobs may not be
        self.shadows: frozenset[str] = frozenset()  # routes that are shadows, or were when they went
        self.wire(self.wiring(config))
        self.store = store_of(config)
        self.behind: Callable[[], str | None] = lambda: None  # why these settings may lack what another machine knows
        self.not_followed: Callable[[], str | None] = lambda: None  # why what that one says now is not in force here
        self.receives = True  # whether this machine is the one that the images come to
        self.results = config.node.data_dir / "results"
        self.work = config.node.data_dir / "work"
        self.rejected = config.node.data_dir / "rejected"
        self.patience: dict[str, int] = {}  # with the disk, for each series
        self.unkept: dict[tuple[str, str], Findings] = {}  # by job and request: those that could not be written down

    def wiring(self, config: Config) -> Wiring:
        """Everything that settings need, made; nothing is changed. Raises CannotStart."""
        reachable = [peer for peer in config.peers if peer.reachable]
        checks = {peer.name: arrival_check_of(config, peer) for peer in reachable}
        return Wiring(
            config,
            rules_of(config),
            {peer.name: destination_of(config, peer.name, self.ledger) for peer in reachable},
            {name: check for name, check in checks.items() if check is not None},
            # the live ones first: what is said of a series is not said by a shadow, if another route takes it
            {
                route.name: self.known.card(route.pipeline, route.options)
                for route in sorted(config.routes, key=lambda each: each.shadow)
            },
            {peer.name: dicom_peer(config, peer) for peer in config.peers if peer.host is not None},
        )

    def wire(self, wiring: Wiring) -> None:
        """From now on. A series must not be judged meanwhile: its verdict and its rules belong together."""
        self.dicom_peers = {**self.dicom_peers, **wiring.dicom_peers}  # a job may be about to ask one that is gone
        self.config, self.rules, self.cards = wiring.config, wiring.rules, wiring.cards
        self.destinations, self.arrival_checks = wiring.destinations, wiring.arrival_checks
        self.other_cards = self.known.cards
        self.modalities = frozenset(
            each for card in (*self.cards.values(), *self.other_cards) for each in card.modality
        )
        self.reported = {**self.reported, **{route.name: route.report_not_run for route in self.config.routes}}
        self.shadows = self.shadows | {route.name for route in self.config.routes if route.shadow}
        self.shadows -= {route.name for route in self.config.routes if not route.shadow}

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

    def headers(self, instances: Sequence[Instance], files: Sequence[Path]) -> list[Dataset]:
        """Of the images that can be read, then of those that cannot. Raises OSError while waiting may cure that."""
        room = Room()
        known = [header_of(instance, path, room) for instance, path in zip(instances, files, strict=True)]
        unread = [header for header in known if isinstance(header, Unread)]
        series_uid = instances[0].series_uid if instances else ""
        patience = self.patience.get(series_uid, PATIENCE)
        if patience and (passing := next(filter(None, (each.passing for each in unread)), None)):
            self.patience[series_uid] = patience - 1
            raise passing
        self.patience.pop(series_uid, None)
        return [*(header for header in known if not isinstance(header, Unread)), *unread]

    def judge(self, headers: Sequence[Dataset]) -> Verdict:
        """By the first pipeline of a route that takes such images; and for each route whose own says another thing."""
        not_read = unread(headers)
        headers = [header for header in headers if not isinstance(header, Unread)]
        broken = faults(headers)
        cards = [*self.cards.values(), *self.other_cards]
        verdict, judged_by = self._verdict(headers, cards, broken), card_for(headers, cards)
        others = {route: card for route, card in self.cards.items() if card != judged_by}
        own = {route: self._verdict(headers, [card], broken) for route, card in others.items()}
        of_routes = {route: without(not_read, said) for route, said in own.items() if said != verdict}
        return replace(without(not_read, verdict), of_routes=of_routes)

    def _verdict(self, headers: Sequence[Dataset], cards: Sequence[Card], broken: Mapping[str, str]) -> Verdict:
        return judge(headers, cards, min_slices=self.config.assemble.min_slices or None, faults=broken)

    def matches(self, header: Dataset) -> list[RouteMatch]:
        return [
            RouteMatch(
                rule.name,
                why_not,
                rule.pipeline,
                rule.send_to,
                priority_of(rule, header),
                rule.options,
                rule.priors,
                rule.also,
                rule.shadow,
                rule.needs,
                rule.fallback,
            )
            for rule, why_not in route(self.rules, header)
        ]

    def study(self, study_uid: str, without: str) -> list[Dataset]:
        """Of every closed series of a study but this one a header that stands for it; none of what cannot be read."""
        images = [
            image
            for received in self.ledger.received_of_study(study_uid)
            if received.series_uid != without and (image := self.ledger.an_image_of(received)) is not None
        ]
        name = f"study-{uuid.uuid4().hex[:16]}.0"
        with self.unpacked(name, [image.stored for image in images]) as files:
            known = [header_of(image, path) for image, path in zip(images, files, strict=True)]
        return [header for header in known if not isinstance(header, Unread)]

    def missing(self, needs: Mapping[str, Any], others: Sequence[Dataset]) -> list[str]:
        return missing(needs["series"], others)

    @contextmanager
    def unpacked(self, name: str, images: Sequence[Stored], *, whole: bool = False) -> Iterator[list[Path]]:
        """Images as files, for as long as somebody works on them. Raises TryAgain where there is no room for them, and,
        if they have to be whole, while the disk does not give them."""
        self._clear_away(self.work, name.partition(".")[0])
        with ExitStack() as stack, self._copies(self.work / name) as folder:
            try:
                here = self.store.at_hand(images, folder)
                files = stack.enter_context(pack.unpacked(here, folder, whole=whole))
            except OSError as error:
                raise TryAgain(
                    f"its images cannot be unpacked below {self.work}: {error.strerror}; free or mount the disk"
                ) from error
            yield files

    def _clear_away(self, root: Path, job_id: str) -> None:
        """What earlier runs of a job left behind when they were killed. Where there are several workers, one that was
        taken for dead may still be at work in its own."""
        for left_behind in root.glob(f"{job_id}.*") if self.ledger.embedded else ():
            shutil.rmtree(left_behind, ignore_errors=True)
        clear_forgotten(root, self.now().timestamp())

    @contextmanager
    def _copies(self, folder: Path) -> Iterator[Path]:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def share(self, instances: Sequence[Instance]) -> None:
        """From now on every machine has these images at hand."""
        ends: dict[Path, int] = {}
        for each in instances:
            if pack.is_there(each.stored):  # what is lost here may be shared since before
                ends[each.path] = max(ends.get(each.path, 0), each.offset + each.size)
        for path, end in ends.items():
            self.store.share(path, end)

    def _results_of(self, job_id: str) -> AbstractContextManager[Path]:
        return self.store.folder(self.results / job_id, self.work)

    def infer(
        self, job: Job, images: Sequence[Stored], files: Sequence[Path], progress: Callable[[float, str], None]
    ) -> Findings:
        """The findings, kept with the job: when it runs again they are inferred again only if what is asked, or the
        algorithm, is another."""
        if job.pipeline not in self.known.options and not self.receives:
            words = f"waits for a machine that has the pipeline '{job.pipeline}'"
            raise Await(words, self.now() + ELSEWHERE, counts=False)
        name = f"findings-{kept.request_digest(job.pipeline, job.options, images)[:16]}.npz"
        known = self.unkept.get((job.id, name))
        if known is None:
            with self._results_of(job.id) as folder:
                known = kept.load_kept(folder / name)
        if known is not None and known.algorithm.version == self.inference.version(job.pipeline, job.options):
            return known
        findings = self.inference.run(job.pipeline, job.options, files, progress)
        try:
            with self._results_of(job.id) as folder:
                return kept.keep(folder / name, findings)
        except (OSError, StoreAway) as error:  # encoding waits for room, or for the store, and finds them here
            log.warning("findings not kept", job=job.id, error=getattr(error, "strerror", None) or str(error))
            self.unkept[job.id, name] = kept.load(kept.dump(findings))
            for oldest in list(self.unkept)[:-MOST_UNKEPT]:
                del self.unkept[oldest]
            return self.unkept[job.id, name]

    def compare(self, job: Job, findings: Findings, files: Sequence[Path]) -> Findings:
        """The findings with what became of them since an earlier study; with a warning where that cannot be told."""
        if job.priors is None:
            return findings
        of = priors.digest(findings)
        with self._results_of(job.id) as folder:
            path = folder / f"comparison-{of[:16]}.json"
            outcome = priors.load_outcome(path, of)
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
        archive = self.dicom_peers[peer.name]
        limits = self.config.priors
        root = self.config.node.data_dir / "priors"
        folder = root / f"{job.id}.{job.generation}"
        self._clear_away(root, job.id)
        try:
            folder.mkdir(parents=True)
            header = read_header(files[0])
            prior = priors.fetch(
                archive, header, job.pipeline, folder, max_age_days=limits.max_age_days, timeout_s=limits.timeout_s
            )
            headers = [read_header(path) for path in prior.images]
            verdict = self._verdict(headers, [self.known.card(job.pipeline, job.options)], {})
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

    def sources(self, files: Sequence[Path]) -> AbstractContextManager[Sources]:
        return read_meanwhile(files)

    def encode(self, job: Job, findings: Findings, sources: Sequence[Dataset], edition: Edition) -> list[Result]:
        from pacs_node.encode import encode_results, variant_of  # 30 MB, for who has a result

        with self._rejects(job) as rejected, self._results_of(job.id) as folder:
            written = encode_results(
                replace(findings, variant=variant_of(job.asked)),
                sources,
                folder / str(job.generation),
                when=edition.dated,
                revision=edition.result_revision,
                replaces=edition.replaces,
                note=any(self._wants_note(name) for name in job.destinations),
                rejected=rejected,
            )
        return self._of(written, folder, job.id)

    def reports_not_run(self, job: Job) -> bool:
        return self.reported.get(job.route, False)

    def is_shadow(self, route: str) -> bool:
        return route in self.shadows

    def places(self, findings: Findings, files: Mapping[str, Path]) -> dict[str, Any] | None:
        """Where what was found lies, in figures, to be compared with what another route says; None, with a line in the
        log, where that cannot be told: the result goes out all the same. files: by SOP Instance UID."""
        try:
            return places_of(findings, lambda uid: read_header(files[uid]))
        except Exception as error:  # noqa: BLE001 - the edge of an aid: whatever a header holds
            log.warning("places not noted", pipeline=findings.pipeline, error=Told.of(error).words)
            return None

    def encode_not_run(self, job: Job, reason: str, instances: Sequence[Instance], edition: Edition) -> list[Result]:
        from pacs_node.encode import encode_not_run, variant_of

        copies = self.work / f"{job.id}.{job.generation}.not-run"
        with self._copies(copies), self._rejects(job) as rejected, self._results_of(job.id) as folder:
            here = self.store.at_hand([instance.stored for instance in instances], copies)
            known = zip(instances, here, strict=True)
            written = encode_not_run(
                job.pipeline,
                variant_of(job.asked),
                reason,
                [replace(each, path=at.path, offset=at.offset, size=at.size) for each, at in known],
                folder / str(job.generation),
                version=__version__,
                edition=edition,
                rejected=rejected,
            )
        return self._of(written, folder, job.id)

    @contextmanager
    def _rejects(self, job: Job) -> Iterator[Path]:
        """Where objects are kept that do not pass the checks: the pages may be served by another machine."""
        folder = self.rejected / job.id
        try:
            yield folder
        except GiveUp:
            try:
                for file in sorted(folder.glob("*")):
                    self.store.share(file, file.stat().st_size)
            except (StoreAway, OSError) as error:  # the job's end is told all the same
                log.warning("rejected objects not shared", job=job.id, error=str(error))
            raise

    def rejects_of(self, job_id: str) -> Path:
        """The folder of the objects of a job that were held back, here if it can be had."""
        folder = self.rejected / job_id
        if not folder.is_dir():
            try:
                self.store.bring(folder)
            except (StoreAway, OSError) as error:
                log.warning("rejected objects not brought here", job=job_id, error=str(error))
        return folder

    def _of(self, results: Sequence[Result], folder: Path, job_id: str) -> list[Result]:
        """The same results, where they lie for good."""
        return [replace(result, path=self.results / job_id / result.path.relative_to(folder)) for result in results]

    def deliver(self, destination: str, package: Package) -> list[Receipt]:
        self._must_know(destination)
        to = self.destinations.get(destination)  # once: settings may change meanwhile
        peer = next((each for each in self.config.peers if each.name == destination), None)
        if to is None or peer is None:
            raise GiveUp(f"the settings have no peer '{destination}' that results can be sent to")
        if not peer.reject_replaced:
            from pacs_node.encode import REJECTION_NOTE

            package = replace(package, paths=tuple(path for path in package.paths if REJECTION_NOTE not in path.name))
        copies = self.work / f"{package.job}.{os.getpid()}"
        receipts: list[Receipt] = []
        try:
            with self._copies(copies), self.here(package.paths) as paths:
                here = replace(package, paths=paths, sources=self._brought(package.sources, copies))
                with self._told_of(peer, package.study_uid, receipts):
                    receipts += to.deliver(here, self.now)
        except StoreAway as away:
            raise StoreAway(str(away), (*receipts, *away.receipts)) from away
        return receipts

    def _must_know(self, destination: str) -> None:
        """Raises Await where another machine may know a peer that this one does not, or knows as it was."""
        if destination in self.destinations and self.not_followed() is None:
            return
        if (why := self.behind()) and (destination not in self.destinations or self.not_followed()):
            words = f"waits for a machine that knows the peer '{destination}': {why}"
            raise Await(words, self.now() + ELSEWHERE, counts=False)

    @contextmanager
    def _told_of(self, peer: Peer, study_uid: str, receipts: list[Receipt]) -> Iterator[None]:
        """The audit trail is told what goes to a destination, and what did not get there."""
        done = "exported" if peer.folder is not None else "sent"
        where = {"to_ae": peer.ae_title or peer.name, "host": peer.host or urlsplit(peer.dicomweb_url or "").hostname}
        facts = {"study": study_uid, "folder": str(peer.folder)} if peer.folder else {"study": study_uid, **where}
        if peer.folder is None:
            self.audit("sending-begun", facts)
        stored: Sequence[Receipt] = receipts
        try:
            yield
        except JobError as failure:
            stored = [receipt for receipt in failure.receipts if receipt.stored]
            self.audit(f"instances-not-{done}", {**facts, "words": str(failure)})
            raise
        finally:
            if stored:
                objects = Counter(receipt.sop_class_uid or "unknown" for receipt in stored)
                self.audit(f"instances-{done}", {**facts, "objects": dict(objects)})

    def _brought(self, images: Mapping[str, Stored], folder: Path) -> Mapping[str, Stored]:
        """The images that results speak of, each brought here when it is asked for. Raises StoreAway then."""
        numbers = itertools.count()
        return WhenAsked(images, lambda image: self.store.at_hand([image], folder / f"{next(numbers):05d}")[0])

    @contextmanager
    def here(self, paths: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
        """Results of one job, where this machine can read them."""
        if not paths or not paths[0].is_relative_to(self.results):
            yield tuple(paths)
            return
        home = self.results / paths[0].relative_to(self.results).parts[0]
        with self.store.folder(home, self.work) as folder:
            yield tuple(folder / path.relative_to(home) for path in paths)

    def _wants_note(self, name: str) -> bool:
        return any(peer.name == name and peer.reject_replaced for peer in self.config.peers)

    def arrival_check(self, destination: str) -> ArrivalCheck | None:
        self._must_know(destination)
        return self.arrival_checks.get(destination)

    def sent(self, paths: Sequence[Path], stored: frozenset[str]) -> list[Sent]:
        # with their neighbours: what was sent instead of a result lies beside it
        with self.here(paths) as here:
            folders = sorted({path.parent for path in here})
            beside = [file for folder in folders for file in sorted(folder.rglob("*.dcm"))]
            return sent_objects([*here, *beside], stored)

    def judge_commitment(self, request: CommitmentRequest) -> CommitmentReport:
        """What of it we hold durably: the row is committed and the file is there."""
        kept = self.ledger.kept_instances([uid for _, uid in request.wanted])
        there = self.store.held([each.stored for each in kept])
        held = {each.sop_instance_uid: each.sop_class_uid for each in kept if each.stored in there}
        if len(held) < len(kept) and not self.receives:
            raise StoreAway(f"{len(kept) - len(held)} of the images are not shared yet; it is asked again")
        return judge_request(request.transaction_uid, request.wanted, held)

    def report(self, calling_ae: str, report: CommitmentReport) -> None:
        peer = next((p for p in self.config.peers if p.ae_title == calling_ae and p.host and p.port), None)
        if peer is None or peer.host is None or peer.port is None:
            raise GiveUp(f"the settings have no host and port for {calling_ae}, so its report cannot be brought to it")
        bring_report(report, self.dicom_peers[peer.name])


def rules_of(config: Config) -> list[Rule]:
    return [
        Rule(
            r.name,
            r.match,
            r.pipeline,
            r.send_to,
            r.priority_number,
            r.options,
            r.priors,
            _also(r),
            r.shadow,
            _needs(r),
            r.hours,
            r.fallback,
            r.report_not_run,
        )
        for r in config.routes
    ]


def _also(route: Route) -> tuple[Also, ...]:
    return tuple(Also(each.send_to, each.kinds, each.min_size_mm, each.categories) for each in route.also)


def _needs(route: Route) -> Needs | None:
    given = route.needs
    return None if given is None else Needs(given.series, given.wait_minutes, given.if_incomplete)


def store_of(config: Config) -> Store:
    """Raises CannotStart."""
    asked = config.store
    if asked.kind == "folder":
        return SharedFolder()
    return ObjectStore(
        Bucket(
            name=asked.bucket,
            endpoint=asked.endpoint or None,
            region=asked.region,
            prefix=asked.prefix,
            access_key_id=asked.access_key_id or None,
            secret_access_key=asked.secret_access_key.get_secret_value() if asked.secret_access_key else None,
            certificates=asked.certificates,
        ),
        config.node.data_dir,
    )


class Unread(Dataset):
    """What the listener knew of an image whose file cannot be read, and why not."""

    def __init__(self, instance: Instance, why: str, passing: OSError | None = None) -> None:
        """passing: the error, if waiting may cure it"""
        super().__init__()
        self.SOPClassUID, self.SOPInstanceUID = instance.sop_class_uid, instance.sop_instance_uid
        self.StudyInstanceUID, self.SeriesInstanceUID = instance.study_uid, instance.series_uid
        self.why, self.passing = why, passing


def unread(headers: Sequence[Dataset]) -> dict[str, str]:
    """SOP Instance UID -> why its header could not be read."""
    return {str(each.SOPInstanceUID): each.why for each in headers if isinstance(each, Unread)}


def header_of(instance: Instance, path: Path, room: Room | None = None) -> Dataset:
    """Its header; Unread of one that cannot be read: the verdict sets it aside. path: its file, or a copy."""
    why, passing = "its stored file cannot be read: ", None
    try:
        there = path.stat().st_size
        if there >= instance.size:
            return read_header(path, room)
        # a part may read as a whole one; where all is stored, the disk would not give it just now
        why += f"of {instance.size} bytes {there} are there"
        passing = _not_given(instance)
    except FileNotFoundError as error:  # of a copy: it could not be made
        why += error.strerror or type(error).__name__
        passing = _not_given(instance)
    except OSError as error:
        why += error.strerror or type(error).__name__
        passing = error if may_pass(error) else None
    except TooMuch as error:
        why = str(error)
    except CutOff as error:
        why = f"its header ends within an item: {error}"
    except InvalidDicomError:
        why += "it is no DICOM file any more"
    except UNREADABLE as error:
        why += Told.of(error).words
    log.warning("header unreadable", instance=instance.sop_instance_uid, why=why)
    return Unread(instance, why, passing)


def _not_given(instance: Instance) -> OSError | None:
    """That the disk did not give it; None: it is not stored any more."""
    return OSError(errno.EIO, os.strerror(errno.EIO)) if pack.is_there(instance.stored) else None


def without(unread: Mapping[str, str], verdict: Verdict) -> Verdict:
    """The verdict on the images that can be read, and what is said of the others."""
    if not unread:
        return verdict
    why = f"{len(unread)} set aside: {next(iter(unread.values()))}"
    return replace(verdict, reason=f"{verdict.reason}; {why}", set_aside={**verdict.set_aside, **unread})
