"""The stages that the flow goes through, wired to the settings."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import structlog
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from config import Config
from dicom_sr.attributes import UNREADABLE
from dicom_sr.changes import Comparison
from dicom_sr.findings import Findings
from dicom_sr.reading import Room, TooMuch, read_header
from models import catalogue
from models.pipeline import Card
from models.pixels import faults
from pacs_node import __version__, kept, pack, priors
from pacs_node.assemble.geometry import card_for, judge
from pacs_node.assemble.series import Close, decide
from pacs_node.commitment import judge_request
from pacs_node.confirm import ArrivalCheck
from pacs_node.deliver.arrival import sent_objects
from pacs_node.errors import (
    GiveUp,
    JobError,
    LedgerUnavailable,
    Refused,
    Told,
    TryAgain,
    Unforeseen,
    may_pass,
)
from pacs_node.flow import RouteMatch
from pacs_node.infer import Inference
from pacs_node.ledger import Ledger
from pacs_node.peers import arrival_check_of, destination_of
from pacs_node.receive.commitment import bring_report
from pacs_node.records import (
    CommitmentReport,
    CommitmentRequest,
    Edition,
    Instance,
    Job,
    OpenSeries,
    Package,
    Receipt,
    Result,
    Sent,
    Stored,
    Verdict,
)
from pacs_node.route import Rule, route

log = structlog.get_logger()

PATIENCE = 5  # times that a series is closed later because the disk fails; then it is judged without those images
MOST_UNKEPT = 32  # jobs whose findings are held in memory while no disk takes them


class WiredStages:
    """The stages of `flow.Stages`, wired to the settings."""

    def __init__(self, config: Config, ledger: Ledger, now: Callable[[], datetime]) -> None:
        self.config, self.ledger, self.now = config, ledger, now
        self.rules = [
            Rule(r.name, r.match, r.pipeline, r.send_to, r.priority_number, r.options, r.priors) for r in config.routes
        ]
        self.destinations = {
            peer.name: destination_of(config, peer.name, ledger) for peer in config.peers if peer.reachable
        }
        arrival_checks = {peer.name: arrival_check_of(config, peer) for peer in config.peers if peer.reachable}
        self.arrival_checks = {
            name: arrival_check for name, arrival_check in arrival_checks.items() if arrival_check is not None
        }
        self.inference = Inference(
            config.infer.device,
            config.jobs.infer_timeout_s,
            memory_gb=config.infer.memory_gb,
            confined=config.infer.confine,
        )
        known = self.known = catalogue()
        self.cards = {route.name: known.card(route.pipeline, route.options) for route in config.routes}
        self.other_cards = known.cards
        self.modalities = frozenset(each for card in (*self.cards.values(), *known.cards) for each in card.modality)
        self.results = config.node.data_dir / "results"
        self.rejected = config.node.data_dir / "rejected"
        self.patience: dict[str, int] = {}  # with the disk, for each series
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
            RouteMatch(rule.name, why_not, rule.pipeline, rule.send_to, rule.priority, rule.options, rule.priors)
            for rule, why_not in route(self.rules, header)
        ]

    @contextmanager
    def unpacked(self, name: str, images: Sequence[Stored]) -> Iterator[list[Path]]:
        """Images as files, for as long as somebody works on them. Raises TryAgain where there is no room for them."""
        root = self.config.node.data_dir / "work"
        for left_behind in root.glob(f"{name.partition('.')[0]}.*"):  # by a process that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        with ExitStack() as stack:
            try:
                files = stack.enter_context(pack.unpacked(images, root / name))
            except OSError as error:
                raise TryAgain(
                    f"its images cannot be unpacked below {root}: {error.strerror}; free the disk"
                ) from error
            yield files

    def infer(
        self, job: Job, images: Sequence[Stored], files: Sequence[Path], progress: Callable[[float, str], None]
    ) -> Findings:
        """The findings, kept with the job: when it runs again they are inferred again only if what is asked, or the
        algorithm, is another."""
        path = self.results / job.id / f"findings-{kept.request_digest(job.pipeline, job.options, images)[:16]}.npz"
        known = self.unkept.get(path) or kept.load_kept(path)
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
        archive = priors.Archive(peer.name, peer.ae_title, peer.host, peer.port, self.config.node.ae_title)
        limits = self.config.priors
        root = self.config.node.data_dir / "priors"
        folder = root / f"{job.id}.{job.generation}"
        for left_behind in root.glob(f"{job.id}.*"):  # by a run of this job that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
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

    def encode(self, job: Job, findings: Findings, files: Sequence[Path], edition: Edition) -> list[Result]:
        from pacs_node.encode import encode_results, variant_of  # 30 MB, for who has a result

        return encode_results(
            replace(findings, variant=variant_of(job.asked)),
            files,
            self._folder(job),
            when=edition.dated,
            revision=edition.result_revision,
            replaces=edition.replaces,
            note=any(self._wants_note(name) for name in job.send_to),
            rejected=self.rejected / job.id,
        )

    def reports_not_run(self, job: Job) -> bool:
        return any(route.name == job.route and route.report_not_run for route in self.config.routes)

    def encode_not_run(self, job: Job, reason: str, instances: Sequence[Instance], edition: Edition) -> list[Result]:
        from pacs_node.encode import encode_not_run, variant_of

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
            from pacs_node.encode import REJECTION_NOTE

            package = replace(package, paths=tuple(path for path in package.paths if REJECTION_NOTE not in path.name))
        return self.destinations[destination].deliver(package, self.now)

    def _folder(self, job: Job) -> Path:
        return self.results / job.id / str(job.generation)  # a worker taken for dead writes beside its successor

    def _wants_note(self, name: str) -> bool:
        return any(peer.name == name and peer.reject_replaced for peer in self.config.peers)

    def arrival_check(self, destination: str) -> ArrivalCheck | None:
        return self.arrival_checks.get(destination)

    def sent(self, paths: Sequence[Path], stored: frozenset[str]) -> list[Sent]:
        # with their neighbours: what was sent instead of a result lies beside it
        folders = sorted({path.parent for path in paths})
        return sent_objects([*paths, *(file for folder in folders for file in sorted(folder.rglob("*.dcm")))], stored)

    def judge_commitment(self, request: CommitmentRequest) -> CommitmentReport:
        """What of it we hold durably: the row is committed and the file is there."""
        kept = self.ledger.kept_instances([uid for _, uid in request.wanted])
        held = {each.sop_instance_uid: each.sop_class_uid for each in kept if pack.is_there(each.stored)}
        return judge_request(request.transaction_uid, request.wanted, held)

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
        passing = OSError(errno.EIO, os.strerror(errno.EIO)) if pack.is_there(instance.stored) else None
    except OSError as error:
        why += error.strerror or type(error).__name__
        passing = error if may_pass(error) else None
    except TooMuch as error:
        why = str(error)
    except InvalidDicomError:
        why += "it is no DICOM file any more"
    except UNREADABLE as error:
        why += Told.of(error).words
    log.warning("header unreadable", instance=instance.sop_instance_uid, why=why)
    return Unread(instance, why, passing)


def without(unread: Mapping[str, str], verdict: Verdict) -> Verdict:
    """The verdict on the images that can be read, and what is said of the others."""
    if not unread:
        return verdict
    why = f"{len(unread)} set aside: {next(iter(unread.values()))}"
    return replace(verdict, reason=f"{verdict.reason}; {why}", set_aside={**verdict.set_aside, **unread})
