"""The DICOM listener: C-ECHO, C-STORE and storage commitment over pynetdicom."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import structlog
from pynetdicom import AE, _config, evt
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import register_uid, uid_to_service_class

from dicom_sr.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.association import SUCCESS
from pacs_node.commitment import PUSH_MODEL
from pacs_node.commitment import TRANSFER_SYNTAXES as COMMITMENT_SYNTAXES
from pacs_node.errors import NodeError, NotReadable, ReceiveError, SpoolFull, Told, TooLarge, WrongSopClass
from pacs_node.receive import spool
from pacs_node.receive.accept import (
    TRANSFER_SYNTAXES,
    VERIFICATION,
    Callers,
    Rejection,
    accepted_for,
    preferred,
    why_no_room,
)
from pacs_node.receive.commitment import CommitmentService
from pacs_node.receive.spool import Announced, Fate, Kept, Spool
from pacs_node.receive.transfer import Answer, Incoming, ProtocolError, StoreRequest
from pacs_node.receive.upper_layer import AcceptedAssociation, Server
from pacs_node.records import AssociationEnd, Instance, Refusal
from pacs_node.tls import Certified, Renewed

log = structlog.get_logger(__name__)

_config.LOG_HANDLER_LEVEL = "none"  # pynetdicom would put every message into words, wanted or not

CANNOT_UNDERSTAND = 0xC000  # PS3.4 Table B.2-1
COERCION = 0xB000  # the one warning for "stored, but not as you sent it": PS3.4 Table B.2-1
REFUSALS = {
    NotReadable.status: "unreadable",
    TooLarge.status: "too large",
    WrongSopClass.status: "wrong SOP class",
    SpoolFull.status: "not stored now",
}
AFTER_ABORT_S = 5.0  # what an aborted association gets to finish the instance in hand


@dataclass(frozen=True)
class ListenerSettings:
    ae_title: str
    host: str
    port: int  # 0: any free one, see Listener.port
    allowed: frozenset[str]  # calling AE titles that may send
    reporters: frozenset[str] = frozenset()  # those that may only report on storage commitments we asked for
    _: KW_ONLY
    max_associations: int
    most_per_peer: int = 1 << 30  # of these, under one AE title and from one address
    max_pdu: int  # bytes
    network_timeout_s: float  # of silence on an open association, and for one PDU to come in whole
    acse_timeout_s: float  # from connection to A-ASSOCIATE-RQ: the ARTIM timer of PS3.8 9.1.5
    dimse_timeout_s: float
    calls_from: Mapping[str, Collection[str]] = field(default_factory=dict)  # AE title -> its hosts; without: from any
    modalities: frozenset[str] = frozenset()  # whose images are accepted besides those of CT and ultrasound
    tls: Renewed | None = None  # what is shown at the port with TLS
    tls_port: int = 0  # 0: any free one
    certified: Mapping[str, Collection[Certified]] = field(default_factory=dict)  # AE title -> what it must show


class Listener:
    """Takes in instances. The sender hears 0x0000 once one is durable in the spool and `on_stored` has returned.

    on_stored: called with each instance that is durable in the spool, again for one sent again: it must be idempotent.
    A NodeError from it is answered as a failure. on_association_end: after the last on_stored of that association.
    audit: name of the event and its facts, no patient values. now: UTC, aware. commitment: None: not offered.
    on_refused: called with what was not taken in, before the sender hears of it; it must neither raise nor block.
    elsewhere: told the caller of each association that is open here, AE title and address; who has those that are open
    in other processes of the same node.
    """

    def __init__(
        self,
        settings: ListenerSettings,
        spool: Spool,
        on_stored: Callable[[Instance], None],
        on_association_end: Callable[[AssociationEnd], None],
        audit: Callable[[str, Mapping[str, Any]], None],
        now: Callable[[], datetime],
        commitment: CommitmentService | None = None,
        on_refused: Callable[[Refusal], None] = lambda refusal: None,
        elsewhere: Callable[[Sequence[tuple[str, str]]], Sequence[tuple[str, str]]] = lambda here: (),
    ) -> None:
        self.commitment = commitment
        self._server: Server | None = None
        self._secured: Server | None = None  # the one with TLS
        self._ever_accepted: frozenset[str] = frozenset()  # an open association keeps what it was promised
        self.take_up(settings)
        self._spool = spool
        self._on_stored = on_stored
        self._on_association_end = on_association_end
        self._audit = audit
        self._on_refused = on_refused
        self._elsewhere = elsewhere
        self._now = now
        self._draining = False
        self._open: dict[AcceptedAssociation, _Sender] = {}
        self._ending: set[AcceptedAssociation] = set()  # no longer open, on_association_end still to be told
        self._change = threading.Condition()
        self._serial = itertools.count(1)
        self._began = ""

    def take_up(self, settings: ListenerSettings, door: socket.socket | None = None) -> None:
        """From the next association on: who may send what, limits, what is shown with TLS, and where: door, instead of
        the port without TLS. Those that are open go on as they were accepted."""
        self.settings = settings
        _register(settings)
        senders = Callers(settings.ae_title, settings.allowed, settings.calls_from, certified=settings.certified)
        self._welcome = _Welcome(
            senders,
            replace(senders, allowed=settings.allowed | settings.reporters),
            frozenset(accepted_for(settings.modalities)),
        )
        self._ever_accepted |= self._welcome.accepted
        for server in (self._server, self._secured):
            if server is not None:
                server.take_up(_application_entity(settings), settings.max_associations, settings.tls)
        if door is not None and self._draining:
            door.close()
        elif door is not None and self._server is not None:
            former, self._server = self._server, self._listening(settings.port, door, None)
            former.shutdown()
            log.info("listener.moved", host=settings.host, port=self.port)

    def start(self, door: socket.socket | None = None) -> None:
        """Bind and listen, or wait at a door that listens already. Raises OSError when the port is taken."""
        self._draining = False
        self._server = self._listening(self.settings.port, door, None)
        log.info("listener.started", ae_title=self.settings.ae_title, host=self.settings.host, port=self.port)

    def start_tls(self, door: socket.socket | None = None) -> None:
        """As `start`, the port with TLS, which `settings.tls` must be there for."""
        assert self.settings.tls is not None
        self._draining = False
        self._secured = self._listening(self.settings.tls_port, door, self.settings.tls)
        log.info("listener.started-tls", ae_title=self.settings.ae_title, host=self.settings.host, port=self.tls_port)

    def _listening(self, port: int, door: socket.socket | None, tls: Renewed | None) -> Server:
        self._began = self._began or f"{self._now():%Y%m%dT%H%M%S%f}-{os.getpid()}"
        handlers: list[tuple[evt.EventType, Callable[[evt.Event], Any]]] = [
            (evt.EVT_REQUESTED, self.on_requested),
        ]
        if self.commitment is not None:
            handlers += [
                (evt.EVT_N_ACTION, self.commitment.on_action),
                (evt.EVT_N_EVENT_REPORT, self.commitment.on_event_report),
            ]
        server = Server(
            _application_entity(self.settings),
            (self.settings.host, port),
            handlers,
            self.on_called,
            self.on_store,
            self.on_ended,
            self.settings.max_associations,
            door,
            tls,
            self.on_not_secured,
        )
        name = "dicom" if tls is None else "dicom-tls"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name=name, daemon=True).start()
        return server

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        if self._server is None:
            raise RuntimeError("the listener is not started")
        return int(self._server.server_address[1])

    @property
    def tls_port(self) -> int:
        """The port with TLS, once started."""
        if self._secured is None:
            raise RuntimeError("the listener is not started with TLS")
        return int(self._secured.server_address[1])

    @property
    def open_associations(self) -> frozenset[str]:
        """The ids of the associations that senders hold open now."""
        with self._change:
            return frozenset(sender.association for sender in self._open.values())

    @property
    def trouble(self) -> list[str]:
        """Why nobody can come in, in words."""
        said = (server.trouble for server in (self._server, self._secured) if server is not None)
        return [each for each in said if each is not None]

    def stop(self, drain_s: float) -> None:
        """Refuse new associations, let the open ones go on for up to `drain_s`, then abort them."""
        servers = [server for server in (self._server, self._secured) if server is not None]
        if not servers:
            return
        self._draining = True
        for server in servers:
            server.shutdown()
        with self._change:
            if not self._change.wait_for(self._idle, timeout=drain_s):
                for association in list(self._open):
                    association.abort(block=False)
                if not self._change.wait_for(self._idle, timeout=AFTER_ABORT_S):
                    for association in list(self._open):  # they wait for a peer that is silent midway
                        association.upper_layer.connection.hang_up()
                    self._change.wait_for(self._idle, timeout=AFTER_ABORT_S)
        log.info("listener.stopped", aborted=len(self._open))
        self._server = self._secured = None
        self._began = ""

    def on_not_secured(self, address: str, words: str) -> None:
        """Somebody came to the port with TLS, and none came about."""
        self._audit("tls-failed", {"from": address, "words": words})
        self._on_refused(Refusal("TLS failed", self._now(), "", address, words))

    def on_called(self, association: AcceptedAssociation, calling: str, called: str) -> bool:
        """Whether the rest of a request with these AE titles is worth a look; else the association is rejected."""
        rejection = self._welcome.reporters.why_no_caller(calling, called)
        if rejection is not None:
            self._reject(association, calling, called, rejection)
        return rejection is None

    def on_requested(self, event: evt.Event) -> None:
        """Accept or reject an association before anything else is negotiated."""
        association = cast(AcceptedAssociation, event.assoc)
        request = cast(A_ASSOCIATE, association.requestor.primitive)
        calling, called = str(request.calling_ae_title).strip(), str(request.called_ae_title).strip()
        proposed = {str(context.abstract_syntax) for context in request.presentation_context_definition_list}
        reports = self.commitment is not None and PUSH_MODEL in proposed
        address = str(association.requestor.address)
        # before the lock is taken: a host name may have to be resolved
        welcome = self._welcome
        callers = welcome.reporters if reports else welcome.senders
        rejection = callers.why_rejected(calling, called, address, association.upper_layer.connection.shown)
        with self._change:
            limits = self.settings.max_associations, self.settings.most_per_peer
            rejection = rejection or why_no_room((calling, address), self._held(), *limits, self._draining)
            if rejection is None:
                self._open[association] = sender = _Sender(f"{self._began}-{next(self._serial)}", calling, address)
                self._elsewhere(self._held_here())
                offered = welcome.accepted if calling in welcome.senders.allowed else frozenset()
                offered = offered | ({VERIFICATION, PUSH_MODEL} if reports else {VERIFICATION})
                association.acceptor.supported_contexts = _supported(request, offered)
        if rejection is None:
            facts = {"calling_ae": calling, "from": address, "association": sender.association}
            self._audit("association-opened", facts)
            return
        self._reject(association, calling, called, rejection)

    def _reject(self, association: AcceptedAssociation, calling: str, called: str, rejection: Rejection) -> None:
        address = str(association.requestor.address)
        association.acse.send_reject(rejection.result, rejection.source, rejection.reason)
        self._audit(
            "association-rejected",
            {
                "calling_ae": calling,
                "called_ae": called,
                "from": address,
                "result": rejection.result,
                "source": rejection.source,
                "reason": rejection.reason,
                "words": rejection.words,
            },
        )
        self._on_refused(Refusal("association rejected", self._now(), calling, address, rejection.words))

    def on_store(self, association: AcceptedAssociation, request: StoreRequest) -> Incoming:
        """Take in the data set of one C-STORE. Raises ProtocolError where its presentation context was not accepted."""
        contexts = {context.context_id: context for context in association.accepted_contexts}
        if request.context_id not in contexts:
            raise ProtocolError(f"a C-STORE in presentation context {request.context_id}, which was not accepted")
        context, sender = contexts[request.context_id], self._open[association]
        if str(context.abstract_syntax) not in self._ever_accepted:
            raise ProtocolError(f"a C-STORE in a presentation context for {context.abstract_syntax}")
        announced = Announced(
            request.sop_class_uid,
            request.sop_instance_uid,
            str(context.transfer_syntax[0]),
            sender.association,
            sender.calling_ae,
        )
        return _Store(self, association, request, str(context.abstract_syntax), self._spool.begin(announced))

    def answer(self, store: _Store) -> Answer:
        """Answer one C-STORE. 0x0000 is a promise: we will not lose this instance."""
        try:
            if store.request.sop_class_uid != store.abstract_syntax:
                raise WrongSopClass(
                    f"the command says {store.request.sop_class_uid} in a presentation context for "
                    f"{store.abstract_syntax}"
                )
            kept = store.incoming.keep(self._now, self._on_stored)
        except ReceiveError as error:
            return self._refuse(store, error.status, str(error), error.kept, error.series_uid)
        except (NodeError, OSError) as error:  # ours, not the sender's: it may send again
            return self._refuse(store, SpoolFull.status, f"cannot store now: {error}")
        except Exception as error:  # noqa: BLE001 - the edge of a room: whatever it is, the sender keeps its image
            told = Told.of(error)
            log.error("store failed", error=told.words, trace=told.trace)
            return self._refuse(store, CANNOT_UNDERSTAND, f"cannot be stored: {told.words}", kind="not stored now")
        finally:
            store.incoming.drop()
        if kept.fate is Fate.ASIDE:
            facts = {"sop_instance_uid": kept.instance.sop_instance_uid, "file": kept.aside.name if kept.aside else ""}
            self._audit("instance-kept-aside", {**facts, "calling_ae": self._open[store.association].calling_ae})
            self._note(store, "kept aside", why_aside(kept), kept.aside, kept.series_uid)
            return Answer(COERCION, "other data is stored under this UID; kept aside")
        return Answer(SUCCESS)

    def on_ended(self, association: AcceptedAssociation) -> None:
        """The thread of an association is through."""
        with self._change:
            sender = self._open.pop(association, None)
            if sender is None:
                return
            self._elsewhere(self._held_here())
            self._ending.add(association)
        try:
            self._on_association_end(
                AssociationEnd(sender.association, sender.calling_ae, association.is_released, self._now())
            )
        finally:
            with self._change:
                self._ending.discard(association)
                self._change.notify_all()

    def _held_here(self) -> list[tuple[str, str]]:
        return [(sender.calling_ae, sender.address) for sender in self._open.values()]

    def _held(self) -> list[tuple[str, str]]:
        """AE title and address of each association that is open, in any process."""
        here = self._held_here()
        return [*here, *self._elsewhere(here)]

    def _idle(self) -> bool:
        return not self._open and not self._ending

    def _refuse(
        self,
        store: _Store,
        status: int,
        reason: str,
        kept: Path | None = None,
        series_uid: str = "",
        kind: str | None = None,
    ) -> Answer:
        self._note(store, kind or REFUSALS[status], reason, kept, series_uid)
        facts = {"calling_ae": self._open[store.association].calling_ae, "status": f"0x{status:04X}", "words": reason}
        self._audit("instance-refused", facts)
        return Answer(status, reason)

    def _note(self, store: _Store, kind: str, reason: str, kept: Path | None, series_uid: str = "") -> None:
        self._on_refused(
            Refusal(
                kind,
                self._now(),
                self._open[store.association].calling_ae,
                str(store.association.requestor.address),
                reason,
                store.request.sop_instance_uid,
                series_uid,
                str(kept.relative_to(self._spool.root)) if kept is not None else "",
            )
        )


@dataclass(frozen=True)
class _Store:
    """One C-STORE under way."""

    listener: Listener
    association: AcceptedAssociation
    request: StoreRequest
    abstract_syntax: str
    incoming: spool.Incoming

    def write(self, fragment: memoryview) -> None:
        self.incoming.write(fragment)
        if self.incoming.size > 2 * self.incoming.largest:
            raise ProtocolError("a data set without end")

    def end(self) -> Answer:
        return self.listener.answer(self)

    def drop(self) -> None:
        self.incoming.drop()


@dataclass(frozen=True)
class _Welcome:
    """Whom the listener takes associations from, and which SOP classes."""

    senders: Callers
    reporters: Callers  # on a storage commitment that we asked for; senders among them
    accepted: frozenset[str]


@dataclass(frozen=True)
class _Sender:
    association: str  # its id
    calling_ae: str
    address: str


def _application_entity(settings: ListenerSettings) -> AE:
    """Ourselves, as pynetdicom wants to know us."""
    ae = AE(settings.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = settings.max_pdu
    ae.maximum_associations = 1 << 30  # Listener.on_requested counts, and answers by its own table
    ae.network_timeout = settings.network_timeout_s
    ae.acse_timeout = settings.acse_timeout_s
    ae.dimse_timeout = settings.dimse_timeout_s
    ae.add_supported_context(VERIFICATION)  # the others depend on what is proposed: see _supported
    return ae


def _register(settings: ListenerSettings) -> None:
    for uid, name in accepted_for(settings.modalities).items():
        if uid_to_service_class(uid) is not StorageServiceClass:  # pynetdicom does not know the retired ones
            register_uid(uid, "".join(filter(str.isalnum, name)), StorageServiceClass)


def _supported(request: A_ASSOCIATE, offered: Collection[str]) -> list[PresentationContext]:
    """What we offer of what is proposed, each SOP class with the transfer syntax to choose first in front."""
    proposed: dict[str, list[str]] = {}
    for context in request.presentation_context_definition_list:
        proposed.setdefault(str(context.abstract_syntax), []).extend(map(str, context.transfer_syntax))
    supported = [
        build_context(uid, preferred(syntaxes) or list(TRANSFER_SYNTAXES))
        for uid, syntaxes in proposed.items()
        if uid in offered and uid != PUSH_MODEL
    ]
    if PUSH_MODEL in proposed and PUSH_MODEL in offered:
        context = build_context(PUSH_MODEL, list(COMMITMENT_SYNTAXES))
        context.scu_role = context.scp_role = True  # a destination that reports comes as SCP: PS3.4 J.3.3
        supported.append(context)
    return supported


def why_aside(kept: Kept) -> str:
    first = kept.instance.series_uid
    where = "in the same series" if first == kept.series_uid else f"in series {first}"
    return f"other data is stored under this SOP Instance UID, {where}; this object is kept aside and not used"
