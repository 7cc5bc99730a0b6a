"""Whom a listening node believes: everybody who could report on what it asked, from every address, under every id that
can be known; and who gets in under whose AE title."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pynetdicom import AE, build_role
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel, Verification
from starlette.testclient import TestClient

from config import load
from models import catalogue
from pacs_node.commitment import PUSH_MODEL_INSTANCE, event_information
from pacs_node.errors import TryAgain
from pacs_node.facts import NodeFacts
from pacs_node.node import Node
from pacs_node.peers import why_not_believed
from pacs_node.records import CommitmentReport, Instance, Job, Receipt, Result, Sent, Verdict
from pacs_node.web.app import create_app
from tests.harness import free_port

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RESULT = ((SEG, "2.1"),)

TITLES = {"PACS": "the destination that was asked", "OTHER": "another destination", "SENDER": "may send", "NOBODY": ""}
ADDRESSES = {"127.0.0.2": "of PACS", "127.0.0.3": "of OTHER", "127.0.0.1": "of nobody"}

SETTINGS = """
[node]
ae_title = "NODE"
dicom_host = "127.0.0.1"
dicom_port = {port}
data_dir = "data"
[receive]
keep_free_gb = 0.0
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
{sender}
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.2"
port = 104
{pacs}
[[peer]]
name = "other"
ae_title = "OTHER"
host = "127.0.0.3"
port = 104
"""


class Asked:
    """A node that listens; its destination PACS has been asked for the storage commitment of one result."""

    def __init__(self, folder: Path, sender: str = "", pacs: str = "") -> None:
        folder.mkdir(exist_ok=True)
        (folder / "node.toml").write_text(SETTINGS.format(port=free_port(), sender=sender, pacs=pacs))
        self.node = Node(load(folder / "node.toml", catalogue()))
        self.node.start(work=False, web=False)
        self.ledger, now = self.node.ledger, self.node.now()
        self.ledger.take_in(Instance("1.1", "c", "1.9", "1.8", "t", Path("/x"), 1, now, "a", "SENDER"))
        infer = Job("j", "infer", "1.9", "1.8", 1, "breast-us", "r", 5, now, ("pacs",))
        self.ledger.close_series(
            "1.9", arrived=1, because="quiet", modality="US", description="", verdict=Verdict(True, "fit"), rules=[],
            jobs=[infer], revision=1, now=now,
        )  # fmt: skip
        send = self.node.flow._send_job(infer, "pacs")
        self.confirm = self.node.flow._confirm_job(send)
        self.ledger.begin(infer, "w", now)
        results = [Result("2.1", SEG, folder / "seg.dcm")]
        self.ledger.finish(infer, "done", "1 finding", now, results=results, follow_up=[send])
        self.ledger.begin(send, "w", now)
        stored = [Receipt("2.1", True, 0, "0x0000 Success", now, SEG)]
        self.ledger.finish(send, "done", "1 stored", now, receipts=stored, follow_up=[self.confirm])

    def ask(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """The Transaction UID that the destination heard."""
        heard: list[str] = []
        check = self.node.stages.arrival_checks["pacs"]
        monkeypatch.setattr(check, "ask_commitment", lambda uid, sent: heard.append(uid))
        monkeypatch.setattr(self.node.stages, "sent", lambda *_: [Sent(SEG, "2.1", "1.8", "1.9")])
        self.node.flow.run(self.confirm.id, 1, 1)
        [uid] = heard
        return uid

    def state(self) -> tuple[str, list[str]]:
        """Of the confirm job, and what the series' story says of reports."""
        facts = self.ledger.series("1.9")
        assert facts is not None
        [job] = [job for job in facts["jobs"] if job["kind"] == "confirm"]
        told = [event["event"] for event in facts["timeline"] if event["event"] in ("committed", "report not believed")]
        return job["state"], told

    def report(self, calling: str, address: str, uid: str) -> int | None:
        """The status of the answer; None: the caller was not let in."""
        ae = AE(calling)
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = ae.associate(
            "127.0.0.1", self.node.listener.port, ae_title="NODE", ext_neg=[role], bind_address=(address, 0)
        )
        if not association.is_established:
            # pynetdicom takes a quick rejection for a failed connection now and then
            assert association.is_rejected or association.is_aborted
            return None
        kind, told = event_information(CommitmentReport(uid, RESULT))
        answer, _ = association.send_n_event_report(told, kind, StorageCommitmentPushModel, PUSH_MODEL_INSTANCE)
        association.release()
        return int(answer.Status)


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Any]:
    nodes: list[Asked] = []

    def start(**peers: str) -> Asked:
        nodes.append(Asked(tmp_path / str(len(nodes)), **peers))
        return nodes[-1]

    yield start
    for each in nodes:
        each.node.stop()


def everything_shown(asked: Asked) -> str:
    """All that the node's pages and its JSON say."""
    app = create_app(NodeFacts(asked.node), CollectorRegistry(), ("testserver",))
    web = TestClient(app)
    names = {"uid": "1.9", "id": asked.confirm.id, "name": "01-SEG.dcm"}
    addresses = [
        re.sub(r"{(\w+)}", lambda name: names[name[1]], route.path)
        for route in app.routes
        if "GET" in (getattr(route, "methods", None) or ())
    ]
    assert len(addresses) > 10
    return "\n".join(web.get(address).text for address in addresses)


def guesses(asked: Asked) -> list[str]:
    """Every id that the node shows, and every Transaction UID that could be made of one."""
    ids: set[str] = set()

    def gather(value: Any) -> None:
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            gather(each)
        if isinstance(value, str) and re.fullmatch(r"[\w.-]{1,64}", value):
            ids.add(value)

    gather(json.loads(json.dumps(asked.ledger.series("1.9"))))
    assert {asked.confirm.id, "2.1", "1.9", "1.8"} <= ids
    made = [
        f"2.25.{int.from_bytes(hashlib.sha256(f'storage commitment|{job}|{number}'.encode()).digest()[:16], 'big')}"
        for job in sorted(ids)
        if re.fullmatch(r"[0-9a-f]{16,}", job)
        for number in (0, 1)
    ]
    assert made
    return [*made, *sorted(each for each in ids if re.fullmatch(r"[0-9.]+", each))]


def test_nobody_who_was_not_asked_is_believed_wherever_he_calls_from_and_whatever_he_knows(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every title x every address x the right Transaction UID and every one that could be guessed."""
    node = asked()
    uid = node.ask(monkeypatch)
    assert node.state() == ("waiting", [])
    assert uid not in everything_shown(node)
    known = guesses(node)
    assert uid not in known
    for title, address in itertools.product(TITLES, ADDRESSES):
        for guess in known if (title, address) == ("PACS", "127.0.0.2") else known[:2]:
            assert node.report(title, address, guess) == (None if title == "NOBODY" else 0x0115)
    assert node.state() == ("waiting", [])
    refused = 0
    for title, address in itertools.product(TITLES, ADDRESSES):
        if (title, address) != ("PACS", "127.0.0.2"):
            assert node.report(title, address, uid) == (None if title == "NOBODY" else 0x0115), (title, address)
            refused += title != "NOBODY"
    assert node.state() == ("waiting", ["report not believed"] * refused)
    assert node.report("PACS", "127.0.0.2", uid) == 0x0000
    assert node.state() == ("queued", [*["report not believed"] * refused, "committed"])
    node.node.flow.run(node.confirm.id, 2, 1)
    facts = node.ledger.series("1.9")
    assert facts["jobs"][-1]["reason"] == "arrived: storage commitment"


def test_a_report_may_come_from_another_address_that_the_settings_name(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = asked(pacs='calls_from = ["127.0.0.3"]')
    uid = node.ask(monkeypatch)
    assert node.report("PACS", "127.0.0.2", uid) is None  # its title is not even let in from there
    assert node.report("PACS", "127.0.0.3", uid) == 0x0000


def test_after_a_restart_the_report_still_finds_its_job(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = asked()
    uid = node.ask(monkeypatch)
    node.node.stop()
    node.node = Node(node.node.config)
    node.ledger = node.node.ledger
    node.node.start(work=False, web=False)
    assert node.report("PACS", "127.0.0.2", uid) == 0x0000
    assert node.state() == ("queued", ["committed"])


def test_a_host_that_cannot_be_resolved_now_is_no_reason_to_believe(asked: Any, tmp_path: Path) -> None:
    config = asked(pacs='calls_from = ["no.such.host.invalid"]').node.config
    with pytest.raises(TryAgain, match=r"no\.such\.host\.invalid cannot be resolved now"):
        why_not_believed(config, "pacs", "PACS", "127.0.0.2")
    assert why_not_believed(config, "pacs", "OTHER", "127.0.0.2") is not None
    assert why_not_believed(config, "gone", "PACS", "127.0.0.2") is not None


@pytest.mark.parametrize("setting", ["", 'calls_from = ["127.0.0.2", "localhost"]', 'calls_from = ["127.0.0.2"]'])
def test_a_title_is_let_in_from_its_hosts_alone_whatever_it_proposes(asked: Any, setting: str) -> None:
    node = asked(sender=setting)
    proposals = ([Verification], [CTImageStorage], [StorageCommitmentPushModel, CTImageStorage])
    for (address, classes), title in itertools.product(itertools.product(ADDRESSES, proposals), ("SENDER", "NOBODY")):
        ae = AE(title)
        for sop_class in classes:
            ae.add_requested_context(sop_class)
        association = ae.associate("127.0.0.1", node.node.listener.port, ae_title="NODE", bind_address=(address, 0))
        let_in = not setting or address == "127.0.0.2" or ("localhost" in setting and address == "127.0.0.1")
        assert association.is_established is (let_in and title == "SENDER"), (address, classes, title)
        if association.is_established:
            association.release()
    node.node._note_refusals()
    said = [each["reason"] for each in node.ledger.refusals(100) if each["calling_ae"] == "SENDER"]
    assert bool(said) is bool(setting)
    assert all("'SENDER' calls from 127.0.0." in each and "(calls_from)" in each for each in said)
