"""A node with TLS: its ports, its processes, its peers."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config import load
from models import catalogue
from pacs_node import system
from pacs_node.errors import CannotStart
from pacs_node.node import Node
from pacs_node.settings import in_force
from tests.certificates import Authority, Identity
from tests.factories import ct_series
from tests.harness import free_port, wait_for
from tests.parrot import ASSOCIATE_AC, ASSOCIATE_RJ, RELEASE_RP, Parrot
from tests.unit.receive.conftest import encoded

SETTINGS = """
[node]
ae_title = "NODE"
data_dir = "data"
dicom_host = "127.0.0.1"
dicom_port = {plain}
[tls]
dicom_tls_port = {secured}
only_tls = {only}
own_certificate = "{certificates}/node.crt"
own_key = "{certificates}/node.key"
trusted = "{certificates}/hospital-ca.pem"
[receive]
processes = {processes}
max_associations = 3
max_associations_per_peer = 3
keep_free_gb = 0.0
drain_s = 1.0
[assemble]
quiet_s = 0.5
[[peer]]
name = "scanner"
ae_title = "ME"
may_send = true
tls = true
tls_name = "scanner.example"
[[peer]]
name = "old"
ae_title = "OLD"
may_send = true
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 104
tls = true
tls_fingerprints = ["{fingerprint}"]
"""


@pytest.fixture(scope="module")
def scanner(certificates: Path) -> Identity:
    return Identity(certificates / "scanner.crt", certificates / "scanner.key")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder)
    authority.issue("node")
    authority.issue("scanner", names=["scanner.example"])
    return folder


@pytest.fixture
def started(tmp_path: Path, certificates: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start(**settings: Any) -> Node:
        values = {"plain": free_port(), "secured": free_port(), "only": "false", "processes": 1, **settings}
        text = SETTINGS.format(certificates=certificates, fingerprint="ab:" * 31 + "ab", **values)
        (tmp_path / "node.toml").write_text(text)
        nodes.append(Node(load(tmp_path / "node.toml", catalogue())))
        nodes[-1].start(work=False, web=False)
        return nodes[-1]

    yield start
    for node in nodes:
        node.stop()


@pytest.mark.parametrize("processes", [1, 2])
def test_both_ports_lead_to_one_node(
    started: Callable[..., Node], scanner: Identity, certificates: Path, processes: int
) -> None:
    node = started(processes=processes)
    images = ct_series(shape=(12, 16, 16))
    plain, secured = node.config.node.dicom_port, node.config.tls.dicom_tls_port
    tls = scanner.caller(certificates / "hospital-ca.pem")
    for number, image in enumerate(images):
        port, calling, context = (secured, "ME", tls) if number % 2 else (plain, "OLD", None)
        with Parrot(port, tls=context) as parrot:
            assert parrot.associate(calling)[0] == ASSOCIATE_AC
            assert parrot.store(image.SOPInstanceUID, encoded(image)) == 0x0000
            assert parrot.release() == RELEASE_RP
    node.settle()
    held = node.ledger.instances(images[0].SeriesInstanceUID)
    assert {each.sop_instance_uid for each in held} == {image.SOPInstanceUID for image in images}
    assert {each.calling_ae for each in held} == {"ME", "OLD"}
    with Parrot(plain) as parrot:
        assert parrot.associate("ME")[0] == ASSOCIATE_RJ, "its settings ask for TLS"
    with Parrot(secured, tls=tls) as one, Parrot(secured, tls=tls) as two, Parrot(plain) as three:
        assert [one.associate()[0], two.associate()[0], three.associate("OLD")[0]] == [ASSOCIATE_AC] * 3
        for port, calling, context in ((secured, "ME", tls), (plain, "OLD", None)):
            with Parrot(port, tls=context) as fourth:
                assert fourth.associate(calling)[0] == ASSOCIATE_RJ, "they are counted together"
    wait_for(lambda: not node.connected(), 10, "the end of all associations")
    with pytest.raises(ssl.SSLError), Parrot(secured, tls=nameless()) as parrot:
        parrot.associate()
    if processes == 1:
        wait_for(lambda: any(each["kind"] == "TLS failed" for each in refusals(node)), 5, "the refusal")
    assert node.trouble() == []


def refusals(node: Node) -> list[dict[str, Any]]:
    node._note_refusals()
    return node.ledger.refusals(100)


def nameless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_the_port_without_can_be_closed(started: Callable[..., Node], scanner: Identity, certificates: Path) -> None:
    node = started(only="true")
    with pytest.raises(ConnectionRefusedError):
        Parrot(node.config.node.dicom_port)
    with Parrot(node.config.tls.dicom_tls_port, tls=scanner.caller(certificates / "hospital-ca.pem")) as parrot:
        assert parrot.associate()[0] == ASSOCIATE_AC


@pytest.mark.parametrize("processes", [1, 2])
def test_another_certificate_is_shown_from_the_next_association_on(
    started: Callable[..., Node], tmp_path: Path, processes: int
) -> None:
    """Other files in the settings, not other bytes in the same files."""
    node = started(processes=processes)
    (tmp_path / "other").mkdir()
    issued = Authority(tmp_path / "other").issue("second")
    own = {"own_certificate": issued.certificate, "own_key": issued.key}
    asked = node.config.model_copy(update={"tls": node.config.tls.model_copy(update=own)})
    before = shown_at(node.config.tls.dicom_tls_port)
    config, waiting = in_force(node.config, asked)
    assert waiting == ()
    node.take_up(config)
    after = shown_at(node.config.tls.dicom_tls_port)
    assert before != after
    assert hashlib.sha256(after).hexdigest() == issued.fingerprint
    broken = config.model_copy(update={"tls": config.tls.model_copy(update={"own_key": tmp_path / "none.key"})})
    with pytest.raises(CannotStart, match=r"certificates in \[tls\] cannot be used"):
        node.take_up(broken)
    assert shown_at(node.config.tls.dicom_tls_port) == after


def shown_at(port: int) -> bytes:
    """What a listener shows to who asks for nothing more; DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as secured:
        return secured.getpeercert(binary_form=True) or b""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_port_that_is_taken_is_said_with_its_setting(started: Callable[..., Node], processes: int) -> None:
    taken = r"change dicom_tls_port in \[tls\]"
    with socket.create_server(("127.0.0.1", 0)) as door, pytest.raises(CannotStart, match=taken):
        started(secured=door.getsockname()[1], processes=processes)


WHOSE = {"own_certificate in [tls]": "dicom", "certificate in [web]": "web", "syslog_certificate in [audit]": "syslog"}


@pytest.mark.parametrize("whose", WHOSE)
def test_health_says_when_our_certificate_ends(started: Callable[..., Node], certificates: Path, whose: str) -> None:
    node = started()
    setting, _, table = whose.replace("[", "").replace("]", "").split()
    plain = node.config.tls.model_copy(update={"own_certificate": None})
    node.config = node.config.model_copy(update={"tls": plain})
    shown = getattr(node.config, table).model_copy(update={setting: certificates / "node.crt"})
    node.config = node.config.model_copy(update={table: shown})
    [(what, until)] = system.certificates(node.config)
    assert what == WHOSE[whose]
    assert until is not None
    assert [89, 90].count((until - datetime.now(UTC)).days), "for the system page, metrics and notices"
    said = [[], ["ends on 20"], ["has expired on 20"]]
    for days, words in zip((30, 85, 91), said, strict=True):  # it ends in 90
        node.now = lambda days=days: datetime.now(UTC) + timedelta(days=days)
        assert len(node.ailing()) == len(words)
        assert all(f"{whose} {word}" in reason for word, reason in zip(words, node.ailing(), strict=True))
        assert str(certificates) not in str(node.ailing()), "no page names a path"


def test_every_way_to_a_peer_with_tls_has_it(started: Callable[..., Node]) -> None:
    """Whoever opens an association has it from one of these."""
    stages = started().stages
    for peer in (stages.dicom_peers["pacs"], stages.destinations["pacs"].peer, stages.arrival_checks["pacs"].peer):  # type: ignore[attr-defined]
        assert peer.tls is not None
        assert peer.tls.fingerprints == {"ab" * 32}
        assert str(peer) == "pacs (PACS at 127.0.0.1:104 with TLS)"
