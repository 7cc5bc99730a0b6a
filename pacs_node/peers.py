"""A peer of the settings as a destination, and as whom to ask whether results arrived."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from config import Config, Peer
from pacs_node.association import Peer as DicomPeer
from pacs_node.confirm import ArrivalCheck
from pacs_node.deliver.arrival import DimseArrivalCheck
from pacs_node.deliver.destination import Destination, Forms
from pacs_node.deliver.dimse import DimseDestination
from pacs_node.deliver.folder import FolderDestination
from pacs_node.deliver.stow import QidoArrivalCheck, StowDestination, WebPeer
from pacs_node.errors import (
    CannotStart,
    LedgerUnavailable,
    TryAgain,
)
from pacs_node.ledger import Ledger
from pacs_node.receive.address import why_elsewhere
from pacs_node.records import Answer, Form, Offer, Package, Prepared, moment
from pacs_node.tls import Called, Certified, Files

if TYPE_CHECKING:
    from dicom_sr.forms import Profile


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
            (answer.sop_class_uid, answer.transfer_syntax_uid): f"{answer.refused} (asked {moment(answer.at)})"
            for answer in self.answers()
            # an answer of the future was given before the clock was set back: nobody knows how old it is
            if answer.refused is not None and answer.at <= now < self.asked_again_at(answer)
        }

    def remember(self, answers: Sequence[Answer]) -> None:
        with suppress(LedgerUnavailable):  # an aid: without it more is asked next time
            self.ledger.remember_answers(self.peer.name, self.settings, answers)


class FormsFor:
    """The forms of our results for one peer. What makes them takes 30 MB: it is loaded for the first that is sent."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    @cached_property
    def _forms(self) -> Forms:
        from pacs_node.encode import ResultForms

        return ResultForms(profile_of(self.peer))

    def offers(self, package: Package) -> Iterator[Offer]:
        return self._forms.offers(package)

    def prepare(self, package: Package, offer: Offer, form: Form, sent: Mapping[Path, Sequence[Path]]) -> Prepared:
        return self._forms.prepare(package, offer, form, sent)


def profile_of(peer: Peer) -> Profile:
    from dicom_sr.forms import Profile

    return Profile(
        label_map=peer.segmentation == "LABELMAP",
        omit_empty_frames=peer.omit_empty_frames,
        key_objects=peer.key_objects,
        key_images=peer.key_images,
        viewer=peer.viewer,
    )


def destination_of(config: Config, name: str, ledger: Ledger) -> Destination:
    peer = config.peer(name)
    forms = FormsFor(peer)
    if peer.folder is not None:
        return FolderDestination(name, peer.folder, forms, peer.readable_by)
    if peer.dicomweb_url is not None:
        with _certificates(peer):
            return StowDestination(web_peer(config, peer), forms)
    return DimseDestination(dicom_peer(config, peer), forms, LedgerMemory(ledger, peer, config.node.ae_title))


def arrival_check_of(config: Config, peer: Peer) -> ArrivalCheck | None:
    """Whom to ask whether results arrived; None: nobody is asked."""
    if peer.folder is not None or peer.confirm == "none":
        return None
    if peer.dicomweb_url is not None:
        with _certificates(peer):
            return QidoArrivalCheck(web_peer(config, peer))
    ways = {"auto": (True, True), "commitment": (True, False), "query": (False, True)}
    commits, queries = ways[peer.confirm]
    return DimseArrivalCheck(dicom_peer(config, peer), commits=commits, queries=queries)


def calls_from(config: Config) -> dict[str, tuple[str, ...]]:
    """AE title -> the hosts that the settings say it calls from. Peers that share a title share them."""
    hosts: dict[str, tuple[str, ...]] = {}
    for peer in config.peers:
        if peer.ae_title is not None and peer.calls_from:
            hosts[peer.ae_title] = (*hosts.get(peer.ae_title, ()), *peer.calls_from)
    return hosts


def certified(config: Config) -> dict[str, list[Certified]]:
    """AE title -> what its certificate must be, of the titles that must come with TLS; none where no port has it."""
    wanted: dict[str, list[Certified]] = {}
    for peer in config.peers if config.tls.dicom_tls_port else ():
        if peer.tls and peer.ae_title is not None:
            shows = Certified(frozenset(peer.tls_fingerprints), peer.tls_name)
            wanted.setdefault(peer.ae_title, []).append(shows)
    return wanted


def tls_files(config: Config) -> Files:
    return Files(config.tls.own_certificate, config.tls.own_key, config.tls.trusted)


def why_not_believed(config: Config, destination: str, calling_ae: str, address: str) -> str | None:
    """None: a report on a storage commitment comes from the destination that was asked for it.

    Raises TryAgain when its host cannot be resolved now.
    """
    peer = next((peer for peer in config.peers if peer.name == destination), None)
    if peer is None or peer.ae_title != calling_ae or peer.host is None:
        return f"{calling_ae!r} at {address} reported on what '{destination}' was asked"
    elsewhere = why_elsewhere(address, peer.calls_from or (peer.host,))
    if elsewhere is None:
        return None
    words = f"a report of '{destination}' came {elsewhere.words}"
    if not elsewhere.sure:
        raise TryAgain(words)
    return f"{words}; if it is one of its addresses, add it to calls_from"


def dicom_peer(config: Config, peer: Peer, timeout_s: float | None = None) -> DicomPeer:
    """One that has a host. timeout_s: default, `dimse_timeout_s`. Raises CannotStart for certificates that cannot be
    used."""
    assert peer.ae_title is not None  # the settings promise all three of a peer that is reachable
    assert peer.host is not None
    assert peer.port is not None
    fingerprints = frozenset(peer.tls_fingerprints)
    return DicomPeer(
        peer.name,
        peer.ae_title,
        peer.host,
        peer.port,
        config.node.ae_title,
        timeout_s or config.receive.dimse_timeout_s,
        Called(tls_files(config), peer.tls_name or peer.host, fingerprints) if peer.tls else None,
    )


def web_peer(config: Config, peer: Peer) -> WebPeer:
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
def _certificates(peer: Peer) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else "no certificate in it"
        raise CannotStart(
            f"peer '{peer.name}': dicomweb_ca {peer.dicomweb_ca} cannot be used ({why.lower()}): correct dicomweb_ca"
        ) from error
