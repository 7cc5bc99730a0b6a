"""The port with TLS: who is let in and who is not, and that those who are not cost the others nothing."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from structlog.testing import capture_logs

from pacs_node.errors import CannotStart
from pacs_node.receive.upper_layer import MOST_WAITING_OF_ONE
from pacs_node.tls import Certified, Files, Renewed
from tests.certificates import Authority, Identity
from tests.harness import wait_for
from tests.parrot import ABORT, ASSOCIATE_AC, ASSOCIATE_RJ, CT, EXPLICIT_LE, RELEASE_RP, Parrot, associate_rq, pdu
from tests.unit.receive.conftest import Node, data_set_of
from tests.unit.receive.test_upper_layer import BEFORE, BODIES, UNKNOWN, UNRECOGNIZED, WITHIN, answered

Start = Callable[..., Node]


class Site:
    """A hospital's authority, the node's certificate and those of senders, good and bad."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.node = self.authority.issue("node")
        self.sender = self.authority.issue("sender", names=["scanner.hospital.example", "10.0.0.7"])
        self.other = self.authority.issue("other", names=["*.ward.example"])
        self.expired = self.authority.issue("expired", days=(-9, -1))
        self.early = self.authority.issue("early", days=(1, 9))
        self.weak = self.authority.issue("weak", bits=1024)
        self.stranger = Authority(folder, "elsewhere").issue("stranger")

    def shown(self) -> Renewed:
        return Renewed(Files(self.node.certificate, self.node.key, self.authority.certificate), calls=False)

    def caller(self, who: Identity | None = None, **settings: Any) -> ssl.SSLContext:
        return (who or self.sender).caller(self.authority.certificate, **settings)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secured(start: Start, site: Site) -> Node:
    return start(tls=site.shown())


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_comes_with_tls_is_kept_as_ever(
    secured: Node, site: Site, image: Dataset, data_set: bytes, version: ssl.TLSVersion
) -> None:
    large = data_set + b"\xe0\x7f\x11\x00OB\0\0" + (1 << 20).to_bytes(4, "little") + os.urandom(1 << 20)  # many records
    with Parrot(secured.tls_port, tls=site.caller(maximum_version=version)) as parrot:
        assert parrot.connection.version() == {771: "TLSv1.2", 772: "TLSv1.3"}[version]  # type: ignore[attr-defined]
        assert parrot.associate()[0] == ASSOCIATE_AC
        assert parrot.store(image.SOPInstanceUID, large) == 0x0000
        assert parrot.store(image.SOPInstanceUID, large) == 0x0000
        assert parrot.release() == RELEASE_RP
    wait_for(lambda: secured.ends, 5, "the end of the association")
    assert secured.ends[0].released
    assert data_set_of(secured.stored[0]) == large
    assert secured.refused == []


@pytest.mark.parametrize(("within", "kind"), [*((False, kind) for kind in BEFORE), *((True, kind) for kind in WITHIN)])
def test_each_pdu_in_each_state_is_answered_as_without_tls(secured: Node, site: Site, kind: int, within: bool) -> None:
    with Parrot(secured.tls_port, tls=site.caller()) as parrot:
        if within:
            assert parrot.associate()[0] == ASSOCIATE_AC
        parrot.say(pdu(kind, BODIES[kind]))
        assert answered(parrot) == (WITHIN if within else BEFORE)[kind]


def old_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def nameless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def static_rsa(site: Site) -> ssl.SSLContext:
    context = site.caller(maximum_version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("AES128-GCM-SHA256")
    return context


HANDSHAKES: dict[str, tuple[Callable[[Site], ssl.SSLContext], str]] = {  # who calls, and what is said of it
    "no certificate": (lambda site: nameless(), "the other side shows no certificate"),
    "an unknown authority's": (lambda site: site.caller(site.stranger), "certificate verify failed: unable to get"),
    "an expired one": (lambda site: site.caller(site.expired), "certificate verify failed: certificate has expired"),
    "one of tomorrow": (
        lambda site: site.caller(site.early),
        "verify failed: certificate is not yet valid",
    ),
    "TLS 1.1": (lambda site: old_tls(), "the other side knows no TLS 1.2 or later"),
    "no forward secrecy": (static_rsa, "the other side offers no cipher suite of RFC 9325"),
}
SAID = {  # bytes that are no TLS, and what is said of them
    "DICOM": (associate_rq("ME", "NODE", CT, (EXPLICIT_LE,)), "what came is no TLS"),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", "what came is HTTP"),
    "garbage": (bytes(range(200, 256)), "what came is no TLS"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("who", HANDSHAKES)
def test_who_does_not_come_through_the_handshake(secured: Node, site: Site, who: str, version: ssl.TLSVersion) -> None:
    """It hears so by an alert; `/refusals` says why."""
    make, words = HANDSHAKES[who]
    context = make(site)
    if context.maximum_version == ssl.TLSVersion.MAXIMUM_SUPPORTED:
        context.maximum_version = version
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"), Parrot(secured.tls_port, tls=context) as parrot:
        parrot.associate()  # with TLS 1.3 a caller is through before its certificate is looked at
    [refusal] = wait_for(lambda: secured.refused, 5, "the refusal")
    assert (refusal.kind, refusal.address) == ("TLS failed", "127.0.0.1")
    assert words in refusal.reason
    assert [event for event, _ in secured.audit] == ["tls-failed"]
    is_served(secured, site)


def test_a_key_that_is_too_short_is_refused(secured: Node, site: Site) -> None:
    caller = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    caller.check_hostname, caller.verify_mode = False, ssl.CERT_NONE
    caller.set_ciphers("DEFAULT:@SECLEVEL=0")
    caller.load_cert_chain(site.weak.certificate, site.weak.key)
    with pytest.raises(ssl.SSLError), Parrot(secured.tls_port, tls=caller) as parrot:
        parrot.associate()
    [refusal] = wait_for(lambda: secured.refused, 5, "the refusal")
    assert "key too small" in refusal.reason or "key too weak" in refusal.reason


@pytest.mark.parametrize("what", SAID)
def test_what_is_no_tls(secured: Node, site: Site, what: str) -> None:
    said, words = SAID[what]
    with Parrot(secured.tls_port) as parrot:
        parrot.say(said)
        parrot.hear()
    [refusal] = wait_for(lambda: secured.refused, 5, "the refusal")
    assert words in refusal.reason
    is_served(secured, site)


def test_tls_at_the_port_without(secured: Node, site: Site) -> None:
    with capture_logs() as events, pytest.raises(ssl.SSLError):
        Parrot(secured.port, tls=site.caller())
    wait_for(lambda: any("TLS, at a port without it" in str(event) for event in events), 5, "the line of the log")


def is_served(node: Node, site: Site) -> None:
    """A sender with a good certificate, and one without TLS at the other port."""
    for port, tls in ((node.tls_port, site.caller()), (node.port, None)):
        with Parrot(port, tls=tls) as parrot:
            assert parrot.associate()[0] == ASSOCIATE_AC
            assert parrot.release() == RELEASE_RP


def test_strangers_who_never_shake_hands_keep_nobody_out(start: Start, site: Site) -> None:
    """As many as may wait of one address: the next is closed at this port, and served at the other; all are gone once
    their time is over."""
    node = start(tls=site.shown(), acse_timeout_s=4, max_associations=4)
    with Parrot(node.tls_port, tls=site.caller()) as honest:
        assert honest.associate()[0] == ASSOCIATE_AC
        silent = [socket.create_connection(("127.0.0.1", node.tls_port)) for _ in range(MOST_WAITING_OF_ONE)]
        silent[0].sendall(b"\x16\x03\x01\x02\x00\x01")  # a handshake that never goes on
        server = node.listener._secured
        assert server is not None
        wait_for(lambda: len(server._connected) == MOST_WAITING_OF_ONE + 1, 5, "all of them")
        with pytest.raises(OSError, match=r".*"):
            Parrot(node.tls_port, tls=site.caller())
        with Parrot(node.port) as other:
            assert other.associate()[0] == ASSOCIATE_AC
        for stranger in silent:
            stranger.settimeout(20)
            assert stranger.recv(1) == b"", "closed by the node"
            stranger.close()
        wait_for(lambda: len(server._connected) == 1, 20, "room")
        assert honest.release() == RELEASE_RP
    is_served(node, site)
    assert node.refused == []


def test_who_leaves_within_the_handshake_is_not_worth_a_word(secured: Node, site: Site) -> None:
    with capture_logs() as events:
        with socket.create_connection(("127.0.0.1", secured.tls_port)):
            pass
        server = secured.listener._secured
        assert server is not None
        wait_for(lambda: not server._connected, 5, "the end")
        is_served(secured, site)
    assert secured.refused == []
    assert not [event for event in events if event["log_level"] != "info"]


def test_after_an_abort_the_peer_hears_it_though_it_goes_on_sending(secured: Node, site: Site) -> None:
    with Parrot(secured.tls_port, tls=site.caller()) as parrot:
        parrot.associate()
        parrot.say(pdu(UNKNOWN, bytes(4)) + bytes(1 << 17))
        assert answered(parrot) == (ABORT, UNRECOGNIZED)


def test_a_stop_ends_those_who_are_silent(secured: Node, site: Site) -> None:
    with Parrot(secured.tls_port, tls=site.caller()) as parrot:
        assert parrot.associate()[0] == ASSOCIATE_AC
        secured.listener.stop(drain_s=0)
        assert parrot.hear()[0] == ABORT
        assert parrot.hear()[0] == 0, "and closes"
    assert [end.released for end in secured.ends] == [False]
    assert not [thread for thread in threading.enumerate() if thread.name == "dicom-tls"]


def test_silence_on_an_open_association_is_as_long_as_it_may_be(start: Start, site: Site) -> None:
    node = start(tls=site.shown(), network_timeout_s=0.5)
    with Parrot(node.tls_port, tls=site.caller()) as parrot:
        assert parrot.associate()[0] == ASSOCIATE_AC
        assert parrot.hear()[0] == ABORT


# Who may use which title ------------------------------------------------------------------------------------------

ME = {  # what the settings say of the title ME, and who may then use it, of SENDER, OTHER and PLAIN
    "nothing": (lambda site: {}, {"sender", "other", "plain"}),
    "tls": (lambda site: {"ME": [Certified()]}, {"sender", "other"}),
    "its name": (lambda site: {"ME": [Certified(name="Scanner.hospital.example.")]}, {"sender"}),
    "its address": (lambda site: {"ME": [Certified(name="10.0.0.7")]}, {"sender"}),
    "a name below a star": (lambda site: {"ME": [Certified(name="us1.ward.example")]}, {"other"}),
    "a name further below": (lambda site: {"ME": [Certified(name="a.us1.ward.example")]}, set()),
    "the common name, where there are others": (lambda site: {"ME": [Certified(name="sender")]}, set()),
    "its fingerprint": (lambda site: {"ME": [Certified(frozenset({site.sender.fingerprint}))]}, {"sender"}),
    "two fingerprints": (
        lambda site: {"ME": [Certified(frozenset({site.sender.fingerprint, site.other.fingerprint}))]},
        {"sender", "other"},
    ),
    "two peers": (
        lambda site: {"ME": [Certified(name="10.0.0.7"), Certified(frozenset({site.other.fingerprint}))]},
        {"sender", "other"},
    ),
    "another title's": (lambda site: {"YOU": [Certified(name="10.0.0.7")]}, {"sender", "other", "plain"}),
}


@pytest.mark.parametrize("settings", ME)
def test_a_title_is_let_in_with_its_certificate_alone(start: Start, site: Site, settings: str) -> None:
    certified, may = ME[settings]
    node = start(tls=site.shown(), certified=certified(site))
    callers = {"sender": site.caller(), "other": site.caller(site.other), "plain": None}
    for name, tls in callers.items():
        with Parrot(node.port if tls is None else node.tls_port, tls=tls) as parrot:
            kind, body = parrot.associate()
            assert kind == (ASSOCIATE_AC if name in may else ASSOCIATE_RJ), name
            if name not in may:
                assert tuple(body[1:4]) == (1, 1, 3), "permanent: calling AE title not recognized"
    told = [refusal.reason for refusal in node.refused]
    assert len(told) == len(callers) - len(may)
    assert all(reason.startswith("'ME' calls with") for reason in told)


# Renewed files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def renewable(site: Site, tmp_path: Path) -> tuple[Identity, Renewed]:
    mine = Identity(tmp_path / "mine.crt", tmp_path / "mine.key")
    replaced(mine, site.node)
    return mine, Renewed(Files(mine.certificate, mine.key, site.authority.certificate), calls=False)


def replaced(mine: Identity, by: Identity) -> None:
    """As a tool that renews does it: another file under the same name."""
    for old, new in ((mine.certificate, by.certificate), (mine.key, by.key)):
        shutil.copy(new, old.with_suffix(".new"))
        old.with_suffix(".new").replace(old)


def test_renewed_files_are_taken_up_by_the_next_connection(
    start: Start, site: Site, renewable: tuple[Identity, Renewed]
) -> None:
    mine, tls = renewable
    node = start(tls=tls)
    with Parrot(node.tls_port, tls=site.caller()) as before:
        assert before.associate()[0] == ASSOCIATE_AC
        assert seen(before) == site.node.certificate.read_text()
        replaced(mine, site.other)
        with Parrot(node.tls_port, tls=site.caller()) as after:
            assert seen(after) == site.other.certificate.read_text()
        assert before.release() == RELEASE_RP, "an association that stands goes on"


def seen(parrot: Parrot) -> str:
    return ssl.DER_cert_to_PEM_cert(parrot.connection.getpeercert(binary_form=True))  # type: ignore[attr-defined]


@pytest.mark.parametrize("harm", ["gone", "empty", "another key", "no certificate"])
def test_files_that_cannot_be_used_are_told_once_and_the_ones_before_stay(
    start: Start, site: Site, renewable: tuple[Identity, Renewed], harm: str
) -> None:
    mine, tls = renewable
    node = start(tls=tls)
    if harm == "gone":
        mine.key.unlink()
    elif harm == "another key":
        shutil.copy(site.sender.key, mine.key)
    else:
        mine.certificate.write_text("" if harm == "empty" else "no certificate")
    with capture_logs() as events:
        is_served(node, site)
        is_served(node, site)
    told = [event["event"] for event in events if event["event"].startswith("tls.")]
    assert told == ["tls.certificates-not-taken"]
    replaced(mine, site.other)
    with Parrot(node.tls_port, tls=site.caller()) as after:
        assert seen(after) == site.other.certificate.read_text()


@pytest.mark.parametrize("harm", ["gone", "another key"])
def test_a_start_with_files_that_cannot_be_used_fails_in_words(site: Site, harm: str, tmp_path: Path) -> None:
    key = tmp_path / "none.key" if harm == "gone" else site.sender.key
    with pytest.raises(CannotStart, match=r"the certificates in \[tls\] cannot be used: (.*no such file|key values)"):
        Renewed(Files(site.node.certificate, key, site.authority.certificate), calls=False)
