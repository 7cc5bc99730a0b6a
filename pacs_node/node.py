"""Builds the node from its settings: the only wiring. What happens in which order is in `flow.py`."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
import ssl
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import structlog
import uvicorn
from prometheus_client import CollectorRegistry

from config import Config
from config.certificates import Unusable, certificates
from models import forms
from pacs_node import __version__, observe
from pacs_node.accounts import ADMIN, READER, VIEWER, Accounts
from pacs_node.assembler import Assembler
from pacs_node.audit import Transfers
from pacs_node.durable import write_whole
from pacs_node.errors import AlreadyRunning, LedgerUnavailable, SettingsRefused
from pacs_node.facts import NodeFacts
from pacs_node.flow import Flow, RetryPolicy
from pacs_node.heartbeat import Heartbeat, own_address
from pacs_node.identity import Identity
from pacs_node.intake import Intake
from pacs_node.jobs import Engine
from pacs_node.ledger import MOST_REFUSALS, Ledger
from pacs_node.loop import Loop, describe
from pacs_node.notify import Notifier, World
from pacs_node.off_peak import OffPeak
from pacs_node.patients import Patients
from pacs_node.peers import calls_from, certified, tls_files, why_not_believed
from pacs_node.pulse import Way
from pacs_node.receive.accept import most_per_peer
from pacs_node.receive.commitment import CommitmentService
from pacs_node.receive.scp import Listener, ListenerSettings, why_aside
from pacs_node.receive.spool import Spool
from pacs_node.receive.upper_layer import LISTEN_BACKLOG
from pacs_node.receivers import ASSEMBLER, ENGINE, Counts, Doors, Receivers
from pacs_node.records import (
    HEARTBEAT_AE,
    AssociationEnd,
    CommitmentReport,
    CommitmentRequest,
    Instance,
    Refusal,
)
from pacs_node.retention import Retention
from pacs_node.returned import Returned
from pacs_node.settings import LiveSettings
from pacs_node.settings_desk import SettingsDesk
from pacs_node.settings_trial import Trial
from pacs_node.stages import WiredStages, Wiring
from pacs_node.start_up import hold, listening_on, must_be_whole, must_be_writable, must_not_be_open
from pacs_node.syslog import audit_of
from pacs_node.system import state_of
from pacs_node.tls import Renewed
from pacs_node.viewing import Viewing
from pacs_node.web.app import create_app
from pacs_node.web.certificate import Certificate
from pacs_node.web.connection import Connection

if TYPE_CHECKING:
    from pacs_node.traces import Traces
    from pacs_node.web.oidc import SingleSignOn

log = structlog.get_logger()

FOLLOW_EVERY_S = 2.0
AFTER_CUT_S = 5.0  # what an interrupted job gets to be put back
NOTE_EVERY_S = 5.0  # what was refused while the ledger was away is noted this often
ALONE_S = 120.0  # a data folder of which nothing was heard for this long receives no more
ALONE_EVERY_S = 10.0
RENEW_BEFORE = timedelta(days=7)  # `/health` says so
ENGINE_POLL_S = 0.1  # how soon a new job is noticed
LATE_S = 5.0  # a sweep that takes so much longer than two should is told of: the job engine, or its database, hangs


def utc_now() -> datetime:
    return datetime.now(UTC)


def single_sign_on_of(config: Config) -> SingleSignOn | None:
    """Raises CannotStart."""
    asked = config.oidc
    if not asked.issuer:
        return None
    from pacs_node.web.oidc import Provider, SingleSignOn  # 15 MB, for who has one

    secret = asked.client_secret.get_secret_value() if asked.client_secret is not None else None
    roles = {ADMIN: asked.admins, READER: asked.readers, VIEWER: asked.viewers}
    return SingleSignOn(
        Provider(asked.issuer, asked.client_id, secret, asked.name_claim, asked.role_claim, roles, asked.issuer_ca)
    )


def traces_of(config: Config, ledger: Ledger, now: Callable[[], datetime]) -> Traces | None:
    """Raises CannotStart."""
    if not config.traces.endpoint:
        return None
    from pacs_node.traces import Traces

    return Traces(config.traces, config.node.ae_title, ledger, now)


SAME_FILE = "; what the file says was told when it was changed, or a secret that stands elsewhere is another one"


class Node:
    """The whole node in one process, or its worker alone.

    file: of the settings, where they may be changed while it runs. at: called with the name of every step of
    `flow.STEPS` as it is reached; fault tests stop the process there.
    """

    def __init__(
        self,
        config: Config,
        *,
        file: Path | None = None,
        now: Callable[[], datetime] = utc_now,
        at: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.config, self.now = config, now
        self.started_at, self.stopping = now(), False
        data_dir = config.node.data_dir
        must_be_writable(data_dir)
        must_be_whole(data_dir)
        self.ledger = Ledger(config.database.url, data_dir)
        self.audit, self.syslog = audit_of(config, now)
        self.transfers = Transfers(self.audit)
        self.stages = WiredStages(config, self.ledger, now, self.audit)
        self.settings = (
            LiveSettings(file, config, self.ledger, self.stages.known, self.ready, now, self.audit)
            if file is not None
            else None
        )
        # One worker per SQLite file, so its name can stay the same and it finds its own jobs again at once.
        alone = self.ledger.embedded
        self.executor = "local" if alone else f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.off_peak = OffPeak(lambda: self.config, now)
        self.flow = Flow(
            self.ledger,
            self.stages,
            {
                kind: RetryPolicy(config.jobs.send_backoff_s, config.jobs.send_backoff_max_s, attempts)
                for kind, attempts in (
                    ("infer", config.jobs.max_attempts),
                    ("send", config.jobs.max_attempts),
                    ("confirm", config.jobs.confirm_attempts),
                    ("report", config.jobs.confirm_attempts),
                )
            },
            poison_limit=config.jobs.poison_limit,
            now=now,
            jitter=random.Random(),
            executor=self.executor,
            infer_attempts=config.jobs.infer_attempts,
            await_report_s=config.jobs.await_report_s,
            at=at,
            closed=self.off_peak.closed,
            rested_s=self.off_peak.rested_s,
        )
        self.intake = Intake(self.ledger, self._indexed, at, self._kept_twice, lambda: self.spool.close_unused())
        receive = config.receive
        self.spool = Spool(data_dir / "spool", receive.keep_free_gb, self.intake.find, receive.largest_mb << 20)
        self.retention = Retention(
            config, self.ledger, self.spool, self.stages.store, self.let_go, self.settle, now, self.audit
        )
        self.viewing = Viewing(
            data_dir,
            int(config.web.viewer_gb * 1e9),
            self.stages.unpacked,
            self.stages.here,
            gone=lambda series_uid: self.ledger.why_gone(series_uid) is not None,
            confined=config.infer.confine,
            keep_free_bytes=int(config.receive.keep_free_gb * 1e9),
        )
        self.listener: Listener | None = None
        self.receivers: Receivers | None = None  # instead of it, where several processes receive
        self._woken: Callable[[str], None] = self._wake_here
        self._held = ExitStack()  # what a process that receives does not write to while its parent deletes
        self.engine: Engine | None = None
        self._web: uvicorn.Server | None = None
        self._certificate: Certificate | None = None
        self.notifier: Notifier | None = None
        self.traces: Traces | None = None
        self._threads: list[threading.Thread] = []
        self.heartbeat = Heartbeat(config, self.ledger, now, self._modality_of, self._delete_phantom)
        self.flow.heartbeat = self._heartbeat_way
        self.patients = Patients(lambda: self.identity, self.ledger, self.stages, now)
        self.flow.patient_of = lambda header: self.identity.of_header(header)
        self.assembler = Assembler(config, self.ledger, self.flow, now, self.connected, self.wake, settle=self.settle)
        self.returned = Returned(self.ledger, self.stages, now, confined=config.infer.confine)
        self._not_noted: deque[Refusal] = deque(maxlen=MOST_REFUSALS)
        web = config.web
        self.accounts = Accounts(
            self.ledger,
            now,
            idle_min=web.idle_min,
            longest_h=web.longest_h,
            audit=self.audit,
            single_sign_on=bool(config.oidc.issuer),
        )
        self._refusals = Loop("refusals", self._note_refusals, NOTE_EVERY_S)
        self._following = Loop("settings", self._follow, FOLLOW_EVERY_S)
        self._started = False
        self._displaced = False  # another data folder receives into this database
        self._alone = Loop("receiving", self._receive_alone, ALONE_EVERY_S)
        self._lock: IO[str] | None = None  # of the jobs, and of what is received
        self._receiving: IO[str] | None = None

    # ---- start and stop

    def start(self, *, listen: bool = True, work: bool = True, web: bool = True) -> None:
        """Raises AlreadyRunning, LedgerTooOld, LedgerUnavailable; CannotStart when a port or folder cannot be had."""
        self.stages.receives = listen
        self.traces = traces_of(self.config, self.ledger, self.now) if listen else None
        self.audit.loop.start()
        if self.syslog is not None:
            self.syslog.start()
        if work:
            self._lock = hold(self.config.node.data_dir / "worker.lock") if self.ledger.embedded else None
        self.ledger.migrate()
        if listen:
            self._receiving = hold(self.config.node.data_dir / "spool.lock")
            if not self.ledger.embedded:
                self._receive_alone()
                self._alone.start()
            self.patients.begin()
            self.retention.resume()  # before what it left on the disk is taken for images that have come
            self.take_in_found()
            if self.config.receive.processes == 1:
                self.start_receiving()
            else:
                self._start_receivers(self._receiving.fileno())
            self.assembler.loop.start()
            self.retention.loop.start()
            self.heartbeat.loop.start()
            self.returned.loop.start()
            self.patients.loop.start()
            if self.traces is not None:
                self.traces.loop.start()
        if self.settings is not None:
            self.settings.started(receives=listen)
        self.stages.behind = self._behind
        self.stages.not_followed = lambda: self.settings.not_followed if self.settings is not None else None
        if self._follows_another:
            self._behind()
            self._following.start()
        if web:
            self._start_web()
        if listen:
            self._tell_whom_the_settings_name()
        if work:
            self._start_engine()
        self._tell_of_settings()
        self.audit("application-started", {"words": f"pacs-node {__version__}"})
        self._started = True
        log.info("node started", version=__version__, listen=listen, work=work, web=web)

    def _end_audit(self) -> None:
        if self._started:
            self.audit("application-stopped", {"words": f"pacs-node {__version__}"})
        self.audit.stop()
        if self.syslog is not None:
            self.syslog.stop()

    def stop(self) -> None:
        """Drain: senders and running jobs get `drain_s` to end; everything else is taken up at the next start."""
        self.stopping = True
        self.heartbeat.loop.stop()
        if self.traces is not None:
            self.traces.stop()
        drain_s = self.config.receive.drain_s
        if self.listener is not None:
            self.listener.stop(drain_s)
        if self.receivers is not None:
            self.receivers.stop(drain_s)
        if self.engine is not None:
            cut_short = threading.Timer(drain_s, self.stages.inference.close)
            cut_short.start()
            self.engine.stop(drain_s + AFTER_CUT_S)
            cut_short.cancel()
        self.stages.inference.close()
        self.viewing.close()
        if self.notifier is not None:
            self.notifier.stop()
        if self._web is not None:
            self._web.should_exit = True
        if self._certificate is not None:
            self._certificate.loop.stop()
        self.retention.loop.stop()
        self.returned.loop.stop()
        self.patients.loop.stop()
        self._following.stop()
        self.assembler.loop.stop()
        self._put_down()
        self._alone.stop()
        if self._receiving is not None and not self.ledger.embedded:
            with suppress(LedgerUnavailable):
                self.ledger.receive_no_more(self._folder_id())
        for thread in self._threads:
            thread.join(timeout=10)
        self.assembler.shut_down()
        self._end_audit()
        self.ledger.close()
        for lock in (self._lock, self._receiving):
            if lock is not None:
                lock.close()
        log.info("node stopped")

    @cached_property
    def identity(self) -> Identity:
        """Raises CannotStart, OSError."""
        return Identity.of(self.config.node.data_dir)

    # ---- new settings

    def ready(self, config: Config) -> Callable[[], None]:
        """Makes everything that new settings need; gives what takes them up, which no association and no job notices.
        Raises CannotStart."""
        wiring = self.stages.wiring(config)
        tls = self._shown_to_callers(config)
        door = self._new_door(config)
        return lambda: self.assembler.between_series(lambda: self._take_up(wiring, tls, door))

    def _shown_to_callers(self, config: Config) -> Renewed | None:
        """Raises CannotStart when its files cannot be used."""
        if not config.tls.dicom_tls_port or not self.listening:
            return None
        if self.listener is not None and tls_files(config) == tls_files(self.config):
            return self.listener.settings.tls
        return Renewed(tls_files(config), calls=False)

    def _new_door(self, config: Config) -> socket.socket | None:
        """Where senders come in from now on, if that is elsewhere. Raises CannotStart when it cannot be had."""
        new, old = config.node, self.config.node
        if self.listener is None or (new.dicom_host, new.dicom_port) == (old.dicom_host, old.dicom_port):
            return None
        with listening_on("dicom_port", new.dicom_port, "dicom_host", new.dicom_host):
            return socket.create_server((new.dicom_host, new.dicom_port), backlog=LISTEN_BACKLOG)

    def take_up(self, config: Config) -> None:
        """New settings, at once. Raises CannotStart; then the former ones stay."""
        self.ready(config)()

    def _take_up(self, wiring: Wiring, tls: Renewed | None, door: socket.socket | None) -> None:
        known, config = {repr(each) for each in self._pipelines()}, wiring.config
        self.config = self.assembler.config = self.heartbeat.config = config
        self.stages.wire(wiring)
        self.flow.ahead.forget()
        self.retention.take_up(config)
        self.spool.keep_free_gb, self.spool.largest = config.receive.keep_free_gb, config.receive.largest_mb << 20
        self.viewing.keep_free_bytes = int(config.receive.keep_free_gb * 1e9)
        if self.listener is not None:
            self.listener.take_up(self._listener_settings(tls), door)
        if self.receivers is not None:
            self.receivers.take_up(partial(Node, config), config)
        if self._started and self.listening:  # not in a process that receives for another
            self._tell_whom_the_settings_name()
        new = [each for each in self._pipelines() if repr(each) not in known]
        if self.engine is not None and new:
            self.stages.inference.warm(new)

    @property
    def _follows_another(self) -> bool:
        return not self.stages.receives and self.settings is not None and self.config.jobs.follow

    def _follow(self) -> None:
        self._behind()

    def _behind(self) -> str | None:
        """None, or why the settings of this machine may lack what another one knows. Raises LedgerUnavailable."""
        if self.stages.receives:
            return None
        if self.settings is None or not self._follows_another:
            return f"{socket.gethostname()} has settings of its own"
        return self.settings.follow()

    def reload(self) -> None:
        """Take up the settings file as it is now; the log and /health say what is wrong with one that is wrong."""
        try:
            if self.settings is not None:
                self.settings.reload(self._who_reloads(self.settings))
        except SettingsRefused:
            pass  # the log has it
        except Exception as error:  # noqa: BLE001 - the edge of what a signal asks for: the node goes on
            log.error("settings not taken up", error=describe(error))

    def _who_reloads(self, settings: LiveSettings) -> str:
        with suppress(LedgerUnavailable):  # what is in force matters more than who has said so
            return settings.who_asks()
        return ""

    def desk(self) -> SettingsDesk | None:
        """What the pages ask of the settings; None where they are of no file."""
        if self.settings is None:
            return None
        return SettingsDesk(self.settings, Trial(self.stages, self.ledger, self.now), lambda: self.config)

    def _heartbeat_way(self) -> Way | None:
        beats = self.config.heartbeat
        return Way(beats.route, beats.to) if beats.every_minutes else None

    def _modality_of(self, route: str) -> frozenset[str]:
        return self.stages.cards[route].modality

    def _delete_phantom(self, series_uid: str) -> str | None:
        try:
            return self.retention.delete_asked(series_uid, "the heartbeat", phantom=True)
        except OSError as error:
            return describe(error)

    def _pipelines(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Of the routes, with what they are told."""
        return [(route.pipeline, route.options) for route in self.config.routes]

    # ---- start and stop, in parts

    def _receive_alone(self) -> None:
        """Raises AlreadyRunning: two machines would each close series whose images the other has."""
        self._displaced = not self.ledger.receive_alone(self._folder_id(), ALONE_S)
        self._must_be_alone()

    def _must_be_alone(self) -> None:
        if self._displaced:
            raise AlreadyRunning(
                "another data folder receives into this database: give this one a database of its own, or stop the "
                f"other and wait for {ALONE_S:g} s"
            )

    def _folder_id(self) -> str:
        """Of the data folder, whatever machine has it."""
        path = self.config.node.data_dir / "spool.id"
        if not path.exists():
            write_whole(path, lambda file: file.write(uuid.uuid4().hex.encode()), replace=False)
        return path.read_text()

    def _thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def start_receiving(
        self,
        doors: Doors = (None, None),
        counts: Counts | None = None,
        woken: Callable[[str], None] | None = None,
    ) -> None:
        """In this process. Of one among several: doors are where all of them listen, counts of the associations in all
        of them, woken is called when something is for the ASSEMBLER or the ENGINE of the parent."""
        if woken is not None:  # one among several: the parent's trail is its own, in the same files
            self.audit.loop.start()
        self._woken = woken or self._wake_here
        self._start_listener(doors, counts)
        self.intake.loop.start()

    def stop_receiving(self, drain_s: float) -> None:
        if self.listener is not None:
            self.listener.stop(drain_s)
        self._put_down()
        self.audit.stop()
        self.ledger.close()

    def _put_down(self) -> None:
        """What was received and refused, once nobody sends any more. What the ledger does not take is found at the
        next start."""
        for loop in (self.intake.loop, self._refusals):
            loop.stop()
        with suppress(LedgerUnavailable):
            self._note_refusals()
            self.intake.flush()
        self.spool.close()

    def _start_receivers(self, lock: int) -> None:
        host, tls = self.config.node.dicom_host, self.config.tls

        def door(key: str, port: int, table: str) -> socket.socket:
            with listening_on(key, port, "dicom_host", host, table):
                return socket.create_server((host, port), backlog=LISTEN_BACKLOG)

        plain = None if tls.only_tls else door("dicom_port", self.config.node.dicom_port, "node")
        secured = door("dicom_tls_port", tls.dicom_tls_port, "tls") if tls.dicom_tls_port else None
        self.receivers = Receivers(
            partial(Node, self.config), self.config.receive.processes, self._wake_here, self._receiver_ended
        )
        self.receivers.start((plain, secured), lock)
        self._refusals.start()

    def take_in_found(self) -> None:
        """What is durable on the disk since before the start, and has no row. Nobody receives yet."""
        if not self.intake.take_in_found(self.spool.scan(self.ledger.indexed_up_to(), self._damaged)):
            return
        try:
            self._note_refusals()  # while what they tell of would be found once more
        except Exception as error:  # noqa: BLE001  its loop tells of it; the next start finds what they tell of
            log.warning("refusals.not-noted", error=describe(error))
            return
        self.spool.cut_off(self.ledger.indexed_up_to())

    def _receiver_ended(self, pid: int) -> None:
        """What it promised and had no time to index."""
        with self.retention.alone:
            self.retention.resume()  # before what it left on the disk is taken for images that have come
            known = self.ledger.indexed_up_to()
            self.intake.take_in_found(self.spool.scan(known, self._damaged, of_process=pid))
        self.assembler.loop.wake()

    def _wake_here(self, whom: str) -> None:
        if whom == ASSEMBLER:
            self.assembler.loop.wake()
        else:
            self.wake()

    def _listener_settings(self, tls: Renewed | None) -> ListenerSettings:
        node, receive = self.config.node, self.config.receive
        allowed = frozenset(
            [
                *(peer.ae_title for peer in self.config.peers if peer.may_send and peer.ae_title),
                *([HEARTBEAT_AE] if self.config.heartbeat.every_minutes else ()),
            ]
        )
        reporters = frozenset(peer.ae_title for peer in self.config.peers if peer.host and peer.ae_title)
        most = receive.max_associations
        return ListenerSettings(
            ae_title=node.ae_title,
            host=node.dicom_host,
            port=node.dicom_port,
            allowed=allowed,
            reporters=reporters,
            max_associations=most,
            most_per_peer=most_per_peer(receive.max_associations_per_peer, most, allowed | reporters),
            max_pdu=receive.max_pdu,
            network_timeout_s=receive.network_timeout_s,
            acse_timeout_s=receive.acse_timeout_s,
            dimse_timeout_s=receive.dimse_timeout_s,
            calls_from={**calls_from(self.config), HEARTBEAT_AE: (own_address(self.config),)},
            modalities=self.stages.modalities,
            tls=tls,
            tls_port=self.config.tls.dicom_tls_port,
            certified=certified(self.config),
        )

    def _start_listener(self, doors: Doors, counts: Counts | None) -> None:
        node, tls = self.config.node, self.config.tls
        renewed = Renewed(tls_files(self.config), calls=False) if tls.dicom_tls_port else None
        commitment = CommitmentService(
            on_request=self._commitment_asked,
            judge=self._judge_commitment,
            on_reported=lambda request: self.ledger.mark_reported(request, self.now()),
            on_report=self._commitment_reported,
            audit=self.audit,
        )
        self.listener = Listener(
            self._listener_settings(renewed),
            self.spool,
            self._stored,
            self._sender_left,
            self._heard,
            self.now,
            commitment,
            self._refused,
            elsewhere=counts.elsewhere if counts is not None else lambda here: (),
        )
        plain, secured = doors
        if not tls.only_tls:
            with listening_on("dicom_port", node.dicom_port, "dicom_host", node.dicom_host):
                self.listener.start(plain)
        if tls.dicom_tls_port:
            with listening_on("dicom_tls_port", tls.dicom_tls_port, "dicom_host", node.dicom_host, "tls"):
                self.listener.start_tls(secured)
        self._refusals.start()

    def _start_engine(self) -> None:
        jobs = self.config.jobs
        self.engine = Engine(
            self.ledger,
            self.flow,
            executor=self.executor,
            infer_slots=len(self.config.infer.names),
            send_slots=2,
            sweep_s=jobs.sweep_s,
            lease_s=jobs.lease_s,
            poison_limit=jobs.poison_limit,
            poll_s=ENGINE_POLL_S,
            now=self.now,
            overtaken_s=jobs.overtaken_s,
            devices_left=partial(self.stages.inference.heed, machine=socket.gethostname()),
            devices=lambda: [{**each, "machine": socket.gethostname()} for each in self.devices()],
        )
        self.engine.start()
        inference = self.stages.inference
        (inference.prepare if self.config.infer.tune else inference.warm)(self._pipelines())

    def _start_web(self) -> None:
        if self.ledger.embedded:  # else others may be at work in the same folder
            self.viewing.clear_unfinished()
        node, settings = self.config.node, self.config.web
        must_not_be_open(self.config, has_users=not self.accounts.open)
        machine = socket.gethostname()
        names = (node.web_host, machine, machine.partition(".")[0], *node.web_names)
        secure = bool(settings.certificate) or settings.behind_proxy
        facts = NodeFacts(self)
        app = create_app(
            facts,
            self.figures(facts),
            names,
            self.accounts,
            self.audit,
            secure=secure,
            single_sign_on=single_sign_on_of(self.config),
            desk=self.desk(),
            language=settings.language,
        )
        with listening_on(
            "web_port", node.web_port, "web_host", node.web_host
        ):  # here, so that a taken port stops start-up
            door = socket.create_server((node.web_host, node.web_port))
        # for every browser that comes in by it: asyncio does so only where a socket names its protocol, and on a
        # connection that is kept a page comes 40 ms late without
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        served = uvicorn.Config(
            app,
            http=Connection,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=3,
            proxy_headers=settings.behind_proxy,  # who asks, for the limits of attempts
            forwarded_allow_ips=list(settings.proxies),  # else the environment could say "*"
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
        )
        if settings.certificate is not None and settings.key is not None:
            self._certificate = Certificate(settings.certificate, settings.key)
            served.load()
            self._certificate.serve(cast(ssl.SSLContext, served.ssl))
        self._web = uvicorn.Server(served)
        web = self._web
        self._thread("web", lambda: web.run(sockets=[door]))

    def _tell_whom_the_settings_name(self) -> None:
        """Of what is wrong, from now on."""
        if self.notifier is not None:
            self.notifier.take_up(self.config.notices)
            return
        if not self.config.notices:
            return
        jobs = self.config.jobs
        longest_s = jobs.infer_timeout_s + 2 * self.config.priors.timeout_s + jobs.lease_s
        name = f"pacs-node {self.config.node.ae_title}"
        world = partial(self._world, NodeFacts(self))  # one, which knows for how long it has looked
        self.notifier = Notifier(self.config.notices, self.ledger, world, name, longest_s)
        self.notifier.loop.start()

    def _world(self, facts: NodeFacts) -> World:
        """What somebody may have to be told of."""
        now = self.now()
        state, health = facts.system(), facts.health()
        return World(
            now,
            trouble=health["reasons"] if health["status"] == "trouble" else (),
            failed=facts.failed_tasks(),
            down=[each for each in self.ledger.failing_sends(now) if not facts.is_paused(each[0])],
            paused=self.ledger.pauses(now),
            heartbeat=self.heartbeat.trouble(),
            full_in_days=state["disk"]["full_in_days"],
            certificates=[(each["what"], each["days"]) for each in state["certificates"]],
            drifts={
                f"{each.pipeline} {each.version} {each.what}": each.words for each in facts.drifting() if each.beyond
            },
        )

    def figures(self, facts: NodeFacts) -> CollectorRegistry:
        """What /metrics tells: read at the moment it is asked."""
        of_the_ledger = observe.LedgerCollector(
            self.ledger.counts,
            lambda: len(self.connected()),
            self.spool.root,
            self.ledger.arrival_counts,
            self.ledger.refusal_counts,
            lambda: self.retention.sizes,
            self.audit_figures,
            self.ledger.studies,
            facts.drifting,
            lambda: self.traces.counts if self.traces is not None else {},
        )
        as_a_whole = observe.SystemCollector(
            self.ledger.durations, lambda: state_of(self), lambda: facts.health()["status"]
        )
        return observe.registry(of_the_ledger, as_a_whole)

    def trouble(self) -> list[str]:
        """What makes the node unfit to receive or to work, in words; nothing of a node that is well."""
        loops = [self.assembler.loop, self.retention.loop, self.returned.loop, self._alone]
        loops += [self.engine.sweeper, self.engine.forgetter] if self.engine is not None else []
        own = (*(loop.trouble for loop in loops), self.assembler.trouble)
        said = [*self.trouble_of_receiving(), *(trouble for trouble in own if trouble is not None)]
        said += self.receivers.trouble if self.receivers is not None else []
        free_gb = shutil.disk_usage(self.spool.root).free / 1e9
        if free_gb < self.config.receive.keep_free_gb:
            said.append(f"{free_gb:.1f} GB are free where images are kept: senders are answered 0xA700")
        return said

    def trouble_of_receiving(self) -> list[str]:
        """In this process."""
        said = (self.intake.loop.trouble, self._refusals.trouble, self.audit.trouble, self.spool.trouble)
        doors = self.listener.trouble if self.listener is not None else []
        return [*doors, *(trouble for trouble in said if trouble is not None)]

    # ---- what drives the flow, and what is told of it

    @property
    def listening(self) -> bool:
        return self.listener is not None or self.receivers is not None

    @property
    def working(self) -> bool:
        return self.engine is not None

    def rejected(self, job_id: str) -> Path:
        return self.stages.rejects_of(job_id)

    def devices(self) -> list[dict[str, Any]]:
        """Those of this process."""
        unused = {} if self.working else {"state": "not used"}
        return [{**each, **unused} for each in self.stages.inference.facts()]

    def inference(self) -> dict[str, Any]:
        """The devices of this process, and the forms in which networks are served."""
        kept = forms.load(self.stages.inference.forms_at).values()
        return {
            "devices": self.devices(),
            "forms": [{name: value for name, value in asdict(each).items() if name != "key"} for each in kept],
        }

    def ailing(self) -> list[str]:
        """What rests because it fails, while others work; a certificate of ours that nobody will take for long; and who
        could not be told."""
        told = self.notifier.trouble() if self.notifier is not None else []
        away = self.syslog.trouble if self.syslog is not None else None
        traces = self.traces.trouble if self.traces is not None else None
        late = self.engine.sweeper.late(LATE_S + 2 * self.config.jobs.sweep_s) if self.engine is not None else None
        told = [*told, *(each for each in (away, self.audit.ailing, traces, late) if each is not None)]
        told += [*self._heartbeat_fails(), *filter(None, [self.patients.loop.trouble])]
        return [*self.stages.inference.trouble(), *self._certificate_ends(), *told]

    def _heartbeat_fails(self) -> list[str]:
        with suppress(LedgerUnavailable):  # health says so itself
            return [each for each in (self.heartbeat.trouble(), self.heartbeat.loop.trouble) if each is not None]
        return []

    def _certificate_ends(self) -> Iterator[str]:
        """Of the certificates that we show: to peers, to browsers, and to the syslog server."""
        for setting, file in (
            ("own_certificate in [tls]", self.config.tls.own_certificate),
            ("certificate in [web]", self.config.web.certificate),
            ("syslog_certificate in [audit]", self.config.audit.syslog_certificate),
        ):
            if file is not None and (words := self._why_not_good(file)):
                yield f"{setting} {words}"

    def _why_not_good(self, file: Path) -> str | None:
        try:
            [own, *_] = certificates(file)
        except Unusable:
            return "cannot be read: the one before is in use; pacs-node check says more"
        return own.why_not_valid(self.now()) or own.why_renew(self.now(), RENEW_BEFORE)

    def audit_figures(self) -> dict[str, int]:
        """Messages of the audit trail that are lost, and bytes of it that the syslog server has not got."""
        lost, unsent = (self.syslog.lost, self.syslog.unsent) if self.syslog is not None else (0, 0)
        return {"lost": self.audit.lost + lost, "unsent": unsent}

    def _tell_of_settings(self) -> None:
        """Who changed a settings file nobody knows; that it is another than at the last start can be told."""
        kept = self.audit.trail.folder / "settings.sha256"
        now = hashlib.sha256(self.config.model_dump_json().encode()).hexdigest()
        before = kept.read_text() if kept.exists() else ""
        if now != before:
            write_whole(kept, lambda file: file.write(now.encode()), mode=0o600)
        if before not in ("", now):
            changes = self.settings.since_last_start if self.settings is not None else []
            words = "the settings are not those of the last start" + ("" if changes else SAME_FILE)
            self.audit("configuration-changed", {"what": "node.toml", "words": words, "changes": changes})

    def rerun(self, series_uid: str, route: str | None = None) -> str | None:
        """Run a closed series again; None, or why not."""
        return self.assembler.rerun(series_uid, route)

    def connected(self) -> frozenset[str]:
        if self.receivers is not None:
            return self.receivers.connected()
        return self.listener.open_associations if self.listener is not None else frozenset()

    @contextmanager
    def let_go(self, series_uid: str) -> Iterator[list[Path] | None]:
        """As Spool.let_go, of all processes that receive."""
        with self.receivers.let_go(series_uid) if self.receivers is not None else nullcontext(True) as free:
            if not free:
                yield None
                return
            with self.spool.let_go(series_uid) as files:
                yield files

    def let_go_here(self, series_uid: str) -> bool:
        """Until `go_on`: see Receivers.let_go."""
        files = self._held.enter_context(self.spool.let_go(series_uid))
        self.intake.flush()
        return files is not None

    def go_on(self) -> None:
        self._held.close()

    def settle(self) -> None:
        """The ledger has all that has come by now. Raises LedgerUnavailable; AlreadyRunning, and closes no series."""
        self._must_be_alone()
        self.intake.flush()
        if self.receivers is not None:
            self.receivers.settle()

    def _indexed(self, instances: Sequence[Instance]) -> None:
        self.spool.indexed(instances)
        self.assembler.arrived()

    def _refused(self, refusal: Refusal) -> None:
        """Noted for a thread of its own: a ledger that is slow or away must not hold a sender up."""
        self._not_noted.append(refusal)
        self._refusals.wake()

    def _kept_twice(self, first: Instance, second: Instance) -> None:
        """Two processes that receive were sent images under one UID at the same time, or one was killed in between, or
        the ledger was away and could not say what it has."""
        kept = self.spool.compare(first, second)
        if kept.aside is not None:
            file = str(kept.aside.relative_to(self.spool.root))
            words = why_aside(kept)
            uids = second.sop_instance_uid, second.series_uid
            self._refused(Refusal("kept aside", self.now(), second.calling_ae, "", words, *uids, file))

    def _damaged(self, path: Path, reason: str) -> None:
        file = str(path.relative_to(self.spool.root))
        self._refused(Refusal("damaged", self.now(), "", "", reason, file=file))

    def _note_refusals(self) -> None:
        while self._not_noted:
            refusal = self._not_noted.popleft()
            try:
                of_peer = bool(refusal.calling_ae) and refusal.calling_ae in {p.ae_title for p in self.config.peers}
                self.ledger.note_refusal(refusal, of_peer=of_peer)
            except LedgerUnavailable:
                self._not_noted.appendleft(refusal)
                raise
            except Exception:
                self._not_noted.append(refusal)  # behind the others, so that it cannot hold them up
                raise

    def _heard(self, event: str, facts: Mapping[str, Any]) -> None:
        """The listener speaks to the audit trail."""
        if event == "association-opened":
            self.transfers.opened(facts["association"], facts["calling_ae"], facts["from"])
        self.audit(event, facts)

    def _stored(self, instance: Instance) -> None:
        self.intake.stored(instance)
        self.transfers.stored(instance)

    def _sender_left(self, end: AssociationEnd) -> None:
        self.transfers.left(end)
        self.intake.left(end)
        self._woken(ASSEMBLER)

    def _judge_commitment(self, request: CommitmentRequest) -> CommitmentReport:
        self.intake.flush()
        return self.stages.judge_commitment(request)

    def _commitment_asked(self, request: CommitmentRequest) -> None:
        self.intake.flush()
        self.flow.commitment_asked(request)
        self._woken(ENGINE)

    def _commitment_reported(self, report: CommitmentReport, calling_ae: str, address: str) -> bool:
        """Raises TryAgain when it cannot be said now whether it comes from where the destination is."""
        job = self.ledger.asked_for(report.transaction_uid)
        if job is None:
            return False
        why_not = why_not_believed(self.config, job.destination or "", calling_ae, address)
        if why_not is not None:
            self.ledger.report_not_believed(job, why_not, self.now())
            return False
        known = self.ledger.commitment_reported(report, calling_ae, self.now())
        self._woken(ENGINE)
        return known

    def wake(self) -> None:
        if self.engine is not None:
            self.engine.wake()
