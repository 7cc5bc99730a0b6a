"""What is not taken in at the door stands in the ledger, on a page and in a figure; a ledger that is away holds no
sender up."""

from __future__ import annotations

import copy
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from pydicom.dataset import Dataset

from config import load
from models import catalogue
from pacs_node import observe, pack
from pacs_node.errors import LedgerUnavailable
from pacs_node.facts import NodeFacts
from pacs_node.ledger import Ledger
from pacs_node.node import Node
from pacs_node.records import REFUSAL_KINDS, Refusal
from tests.factories import ct_series
from tests.parrot import ASSOCIATE_RJ, Parrot
from tests.unit.receive.conftest import encoded

T0 = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


def until(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], Node]]:
    """A node that listens and does nothing else."""
    nodes: list[Node] = []
    (tmp_path / "node.toml").write_text(f"""
[node]
ae_title = "NODE"
data_dir = "data"
dicom_host = "127.0.0.1"
dicom_port = {free_port()}
[receive]
keep_free_gb = 0.0
[[peer]]
name = "scanner"
ae_title = "ME"
may_send = true
""")

    def make() -> Node:
        node = Node(load(tmp_path / "node.toml", catalogue()))
        node.start(work=False, web=False)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.stop()


@pytest.fixture
def image() -> Dataset:
    return ct_series(shape=(1, 16, 16))[0]


def metric(node: Node) -> str:
    collector = observe.LedgerCollector(
        node.ledger.counts, lambda: 0, node.spool.root, node.ledger.arrival_counts, node.ledger.refusal_counts, dict
    )
    return generate_latest(observe.registry(collector)).decode()


def test_each_kind_stands_with_peer_reason_and_time(make: Callable[[], Node], image: Dataset) -> None:
    node = make()
    assert node.listener is not None
    port = node.listener.port
    other = copy.deepcopy(image)  # the same SOP Instance UID in another series: a whole series may vanish so
    other.SeriesInstanceUID = "2.25.77"
    with Parrot(port) as parrot:
        assert parrot.associate(calling="STRANGER")[0] == ASSOCIATE_RJ
    with Parrot(port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, encoded(image)) == 0x0000
        assert parrot.store(image.SOPInstanceUID, encoded(other)) == 0xB000
        assert parrot.store("1.2.99", encoded(image)[:-30]) == 0xC000
        assert parrot.store(image.SOPInstanceUID, encoded(image).replace(b"4.1.1.2\0", b"4.1.1.4\0")) == 0xA900
        node.spool.keep_free_gb = 1e9
        assert parrot.store("1.2.98", encoded(image)) == 0xA700
        node.spool.largest = len(encoded(image)) - 10
        assert parrot.store("1.2.97", encoded(image)) == 0xC001
    until(lambda: len(node.ledger.refusals(10)) == 6)
    shown = NodeFacts(node).refusals(10)
    newest = {refusal["kind"]: refusal for refusal in shown["refusals"]}
    elsewhere = {"damaged", "TLS failed"}  # at start-up, at the port with TLS
    assert set(newest) == set(REFUSAL_KINDS) - elsewhere
    assert {refusal["address"] for refusal in newest.values()} == {"127.0.0.1"}
    assert newest.pop("association rejected") | {"id": 0, "at": ""} == {
        "id": 0,
        "at": "",
        "kind": "association rejected",
        "calling_ae": "STRANGER",
        "address": "127.0.0.1",
        "sop_instance_uid": "",
        "series_uid": "",
        "reason": "'STRANGER' is no peer that may send",
        "file": "",
    }
    assert {refusal["calling_ae"] for refusal in newest.values()} == {"ME"}
    aside = newest["kept aside"]
    assert (aside["sop_instance_uid"], aside["series_uid"]) == (image.SOPInstanceUID, "2.25.77")
    assert image.SeriesInstanceUID in aside["reason"]
    assert "cut off" in newest["unreadable"]["reason"]
    assert newest["unreadable"]["sop_instance_uid"] == "1.2.99"
    assert newest["unreadable"]["series_uid"] == newest["wrong SOP class"]["series_uid"] == image.SeriesInstanceUID
    for kind in ("kept aside", "unreadable", "wrong SOP class"):
        assert (node.spool.root / newest[kind]["file"]).is_file()
        assert not newest[kind]["file"].startswith("/")
    assert shown["counts"]["kept aside"]["number"] == 1
    figures = metric(node)
    assert 'pacs_node_refused_total{kind="association rejected"} 1.0' in figures
    assert 'pacs_node_refused_total{kind="damaged"} 0.0' in figures


def test_a_damaged_file_is_told_at_start_up(make: Callable[[], Node], image: Dataset) -> None:
    node = make()
    assert node.listener is not None
    with Parrot(node.listener.port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, encoded(image)) == 0x0000
    until(lambda: node.ledger.instances(image.SeriesInstanceUID))
    [kept] = node.ledger.instances(image.SeriesInstanceUID)
    node.stop()
    spoilt = kept.path.with_name("0" * 64 + ".dcm")  # holds another instance than its name says
    spoilt.write_bytes(pack.content(kept.stored))
    node = make()
    until(lambda: node.ledger.refusals(10))
    [refusal] = node.ledger.refusals(10)
    assert (refusal["kind"], refusal["file"]) == ("damaged", f"unreadable/{'0' * 64}.dcm")


def test_a_ledger_that_is_away_holds_no_sender_up_and_is_told_later(
    make: Callable[[], Node], image: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make()
    assert node.listener is not None

    def away(*_: object, **__: object) -> None:
        time.sleep(0.2)
        raise LedgerUnavailable("the database does not answer")

    monkeypatch.setattr(Ledger, "note_refusal", away)
    with Parrot(node.listener.port) as parrot:
        parrot.associate()
        for number in range(3):
            assert parrot.store(f"1.2.{number}", encoded(image)[:-30]) == 0xC000
        assert parrot.store(image.SOPInstanceUID, encoded(image)) == 0x0000
    until(lambda: node.trouble())
    monkeypatch.undo()
    node._refusals.wake()
    until(lambda: len(node.ledger.refusals(10)) == 3)
    told = [refusal["sop_instance_uid"] for refusal in node.ledger.refusals(10)]
    assert told == ["1.2.2", "1.2.1", "1.2.0"]


def test_the_newest_are_kept_and_all_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.ledger.refusals.MOST_REFUSALS", 5)
    ledger = Ledger(f"sqlite:///{tmp_path}/node.sqlite", tmp_path)
    ledger.migrate()
    for number in range(12):
        at = T0 + timedelta(seconds=number)
        ledger.note_refusal(Refusal("unreadable", at, "ME\0", "10.0.0.9", f"reason {number}", f"1.2.{number}"))
    ledger.note_refusal(Refusal("kept aside", T0, "ME", "10.0.0.9", "another"))
    assert [row["reason"] for row in ledger.refusals(100)] == ["another", *(f"reason {n}" for n in (11, 10, 9, 8))]
    assert [row["calling_ae"] for row in ledger.refusals(2)] == ["ME", "ME"]
    counts = ledger.refusal_counts()
    assert {kind: count["number"] for kind, count in counts.items()} == {"unreadable": 12, "kept aside": 1}
    assert counts["unreadable"]["latest"].startswith("2026-03-14T12:00:11")
    ledger.close()


def test_the_count_of_a_peer_lasts_through_a_flood_of_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never falls, however many others come, and whatever they call themselves; and they add no label and no row."""
    monkeypatch.setattr("pacs_node.ledger.refusals.MOST_REFUSALS", 5)
    told = Refusing(tmp_path)
    try:
        counts = []
        for number in range(40):
            title = "CT1" if number % 10 == 0 else f"STRANGER{number}" if number % 10 < 9 else ""
            told.node._refused(Refusal("association rejected", T0, title, "10.0.0.9", "rejected"))
            told.node._note_refusals()
            counts.append(told.refused())
        assert [each["ct"] for each in counts] == [number // 10 + 1 for number in range(40)]
        assert all(each == {"ct": each["ct"], "us": 0.0} for each in counts), "of peers alone, also those with none"
        assert told.node.ledger.refused_of_peers() == {"CT1": 4}
    finally:
        told.node.stop()
    again = Refusing(tmp_path)
    try:
        assert again.refused() == {"ct": 4.0, "us": 0.0}, "after a restart"
    finally:
        again.node.stop()


class Refusing:
    """A node that knows two senders, and what Prometheus reads of it."""

    def __init__(self, folder: Path) -> None:
        peers = "".join(
            f'[[peer]]\nname = "{name}"\nae_title = "{title}"\nmay_send = true\n'
            for name, title in (("ct", "CT1"), ("us", "US1"))
        )
        (folder / "node.toml").write_text(f'[node]\ndata_dir = "{folder}/data"\n{peers}')
        self.node = Node(load(folder / "node.toml", catalogue()))
        self.node.ledger.migrate()

    def refused(self) -> dict[str, float]:
        figures = self.node.figures(NodeFacts(self.node))
        return {
            sample.labels["peer"]: sample.value
            for metric in figures.collect()
            for sample in metric.samples
            if sample.name == "pacs_node_peer_refused_total"
        }
