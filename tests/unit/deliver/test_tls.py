"""What we open over TLS: which certificates of a peer are believed, and what is said of the others."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    UltrasoundImageStorage,
    Verification,
)

from pacs_node.association import Peer
from pacs_node.deliver.destination import Deferred
from pacs_node.deliver.dimse import echo
from pacs_node.errors import NodeError, TryAgain
from pacs_node.tls import Called, Files
from tests.certificates import Authority, Identity
from tests.unit.deliver import test_network as callers

SERVICES = (Verification, CTImageStorage, UltrasoundImageStorage, StudyRootQueryRetrieveInformationModelFind)


server = callers.server  # a fixture


class Site:
    """The node's certificate, and those that a PACS at 127.0.0.1 may show."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.node = self.authority.issue("node", names=["node.example"])
        self.good = self.authority.issue("pacs")
        self.named = self.authority.issue("named", names=["pacs.example"])
        self.expired = self.authority.issue("expired", days=(-9, -1))
        self.stranger = Authority(folder, "elsewhere").issue("stranger")

    def files(self, *, own: bool = True) -> Files:
        mine = (self.node.certificate, self.node.key) if own else (None, None)
        return Files(*mine, self.authority.certificate)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("certificates"))


@dataclass
class Pacs:
    port: int
    callers: list[str] = field(default_factory=list)  # the certificate of each association's caller, if any


@pytest.fixture
def pacs(site: Site) -> Iterator[Callable[..., Pacs]]:
    """pacs(the certificate that it shows; wants_ours, versions) -> it, with every service that we ask for."""
    servers: list[Any] = []

    def start(who: Identity, wants_ours: bool = True, highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Pacs:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(who.certificate, who.key)
        context.load_verify_locations(site.authority.certificate)
        context.verify_mode = ssl.CERT_REQUIRED if wants_ours else ssl.CERT_NONE
        context.maximum_version = highest
        ae = AE("PACS")
        for service in (
            Verification,
            CTImageStorage,
            UltrasoundImageStorage,
            StudyRootQueryRetrieveInformationModelFind,
        ):
            ae.add_supported_context(service)
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
        us = Pacs(0)

        def opened(event: evt.Event) -> None:
            socket = event.assoc.dul.socket.socket
            shown = socket.getpeercert() if isinstance(socket, ssl.SSLSocket) else {}
            us.callers.append(dict(entry[0] for entry in shown["subject"])["commonName"] if shown else "")

        def commit(event: evt.Event) -> tuple[int, None]:
            return 0x0000, None

        handlers = [
            (evt.EVT_ACCEPTED, opened),
            (evt.EVT_C_STORE, lambda event: 0x0000),
            (evt.EVT_C_FIND, lambda event: iter([(0xFF00, counted(event.identifier))])),
            (evt.EVT_N_ACTION, commit),
            (evt.EVT_N_EVENT_REPORT, commit),
        ]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context)
        servers.append(server)
        us.port = server.server_address[1]
        return us

    yield start
    for server in servers:
        threading.Thread(target=server.shutdown).start()  # takes half a second: do not wait for it


def counted(identifier: Dataset) -> Dataset:
    found = Dataset()
    found.QueryRetrieveLevel = identifier.QueryRetrieveLevel
    found.StudyInstanceUID, found.SeriesInstanceUID = "1.8", "1.9"
    found.NumberOfSeriesRelatedInstances = 7
    return found


def peer(pacs: Pacs, tls: Called | None) -> Peer:
    return Peer("pacs", "PACS", "127.0.0.1", pacs.port, "NODE", 10, tls)


@pytest.mark.parametrize("highest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("caller", sorted(callers.DIMSE.keys() - {"send"}))
def test_every_caller_of_a_peer_with_tls_comes_with_it(
    pacs: Callable[..., Pacs],
    site: Site,
    caller: str,
    highest: ssl.TLSVersion,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`send` has an address alone, and no settings."""
    there = pacs(site.good, highest=highest)
    called = Called(site.files(), "127.0.0.1")
    monkeypatch.setattr(callers, "peer", lambda where: peer(there, called))
    with suppress(NodeError, AssertionError):  # what each thinks of so little in a PACS is its own matter
        callers.DIMSE[caller](callers.Address("127.0.0.1", there.port), tmp_path)
    assert set(there.callers) == {"node"}


def made(site: Site, name: str = "127.0.0.1", fingerprints: frozenset[str] = frozenset(), own: bool = True) -> Called:
    return Called(site.files(own=own), name, fingerprints)


# what the PACS shows, how it is called, and what is said; "" where it is believed
BELIEVED: dict[str, tuple[Callable[[Site], Identity], Callable[[Site], Called], str]] = {
    "its host": (lambda s: s.good, made, ""),
    "another name": (lambda s: s.named, made, r"certificate verify failed: IP address mismatch"),
    "tls_name": (lambda s: s.named, lambda s: made(s, "pacs.example"), ""),
    "another tls_name": (lambda s: s.named, lambda s: made(s, "ris.example"), r"verify failed: Hostname mismatch"),
    "expired": (lambda s: s.expired, made, r"certificate verify failed: certificate has expired"),
    "of an unknown authority": (lambda s: s.stranger, made, r"verify failed: unable to get local issuer certificate"),
    "its fingerprint": (lambda s: s.good, lambda s: made(s, fingerprints=frozenset({s.good.fingerprint})), ""),
    "that of an unknown authority, by fingerprint": (
        lambda s: s.stranger,
        lambda s: made(s, fingerprints=frozenset({s.stranger.fingerprint})),
        "",
    ),
    "expired, by fingerprint": (
        lambda s: s.expired,
        lambda s: made(s, "ris.example", frozenset({s.good.fingerprint, s.expired.fingerprint})),
        "",
    ),
    "another one than the fingerprint's": (
        lambda s: s.named,
        lambda s: made(s, fingerprints=frozenset({s.good.fingerprint})),
        r"cannot be reached: its certificate is [0-9a-f]{64}, none of its tls_fingerprints",
    ),
    "one that wants ours, which we have not": (
        lambda s: s.good,
        lambda s: made(s, own=False),
        r"TLS failed: the other side (wants to see a certificate|has no cipher suite of ours, or wants to see)",
    ),
}


@pytest.mark.parametrize("highest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("case", BELIEVED)
def test_whom_we_believe(pacs: Callable[..., Pacs], site: Site, case: str, highest: ssl.TLSVersion) -> None:
    shows, called, words = BELIEVED[case]
    there = pacs(shows(site), highest=highest)
    if not words:
        assert "answered" in echo(peer(there, called(site)))
        return
    with pytest.raises(Deferred, match=words) as caught:
        echo(peer(there, called(site)))
    assert "pacs (PACS at 127.0.0.1:" in str(caught.value)
    assert " with TLS) cannot be reached: " in str(caught.value)


def test_a_pacs_that_does_not_ask_for_ours(pacs: Callable[..., Pacs], site: Site) -> None:
    there = pacs(site.good, wants_ours=False)
    assert "answered" in echo(peer(there, made(site, own=False)))


def test_one_side_without_tls(pacs: Callable[..., Pacs], site: Site) -> None:
    there = pacs(site.good)
    with pytest.raises(Deferred, match=r"cannot be reached: it aborted the association request, or did not answer"):
        echo(replace(peer(there, None), timeout_s=2))


@pytest.mark.parametrize("caller", sorted(callers.DIMSE.keys() - {"send"}))
@pytest.mark.parametrize("server", ["says garbage", "closes", "resets", "is silent", "aborts"], indirect=True)
def test_every_caller_with_tls_survives_servers_without(
    server: callers.Address, site: Site, caller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = Called(site.files(), "127.0.0.1")
    monkeypatch.setattr(
        callers, "peer", lambda where: Peer("pacs", "PACS", where.host, where.port, "NODE", callers.TIMEOUT_S, called)
    )
    with pytest.raises(TryAgain, match="cannot be reached: "):
        callers.DIMSE[caller](server, tmp_path)
