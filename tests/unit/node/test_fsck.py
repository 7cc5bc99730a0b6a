"""fsck: what is sound is passed over in silence, and every way to lose or spoil something is said."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from pacs_node import fsck
from pacs_node.cli import app
from pacs_node.intake import Intake
from pacs_node.ledger import Ledger
from pacs_node.receive import part10
from pacs_node.receive.spool import Spool
from pacs_node.records import Instance
from tests.factories import ct_series
from tests.unit.node.test_editions import SR as COMPREHENSIVE_SR
from tests.unit.node.test_editions import Node
from tests.unit.receive.conftest import arrival, encoded


@dataclass
class Stored:
    folder: Path
    ledger: Ledger
    packed: list[Instance]
    alone: Instance  # as an earlier version kept it
    result: Path

    def faults(self) -> list[fsck.Fault]:
        return list(fsck.faults(self.folder, self.ledger))

    def forget(self, what: str = "UPDATE series SET state = 'deleted'") -> None:
        with self.ledger.engine.begin() as db:
            db.execute(sa.text(what))


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    folder = tmp_path / "data"
    folder.mkdir()
    node = Node(folder)  # a series with results of its own
    node.image()
    node.work()
    ledger = node.ledger
    images = ct_series(shape=(3, 16, 16)) + ct_series(shape=(2, 200, 200), name="other")
    [old] = ct_series(shape=(1, 8, 8), name="old")
    path = folder / "spool" / "instances" / _digest(old.SeriesInstanceUID) / f"{_digest(old.SOPInstanceUID)}.dcm"
    path.parent.mkdir(parents=True)
    head = part10.encode(old.SOPClassUID, old.SOPInstanceUID, old.file_meta.TransferSyntaxUID, "ME")
    path.write_bytes(head + encoded(old))
    spool = Spool(folder / "spool", 0, ledger.instance)
    intake = Intake(ledger, spool.indexed, lambda step: None)
    packed = [arrival(image, encoded(image)).brought_to(spool).instance for image in images]
    for instance in packed:
        intake.stored(instance)
    intake.flush()
    intake.take_in(list(spool.scan(ledger.indexed_up_to())))
    alone = ledger.instance(old.SOPInstanceUID)
    assert alone is not None
    [result] = [each.path for each in ledger.every_object() if each.sop_class_uid == COMPREHENSIVE_SR]
    return Stored(folder, ledger, packed, alone, result)


def _digest(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


FAULTS: dict[str, tuple[Callable[[Stored], object], list[str]]] = {
    "nothing": (lambda s: None, []),
    "a bit of an image": (lambda s: flip(s.packed[1].path, s.packed[1].offset + 900), [fsck.DAMAGED]),
    "a bit of a record's head": (lambda s: flip(s.packed[1].path, s.packed[1].offset - 100), [fsck.LOST]),
    "the end of a pack": (lambda s: cut(s.packed[2].path, s.packed[2].offset + 10), [fsck.LOST]),
    "a pack": (lambda s: s.packed[0].path.unlink(), [fsck.LOST] * 3),
    "a series": (lambda s: shutil.rmtree(s.packed[3].path.parent), [fsck.LOST] * 2),
    "a file of an earlier version": (lambda s: s.alone.path.unlink(), [fsck.LOST]),
    "its end": (lambda s: cut(s.alone.path, s.alone.size - 1), [fsck.DAMAGED]),
    "a result": (lambda s: s.result.unlink(), [fsck.LOST]),
    "a bit of a result": (lambda s: flip(s.result, 3), [fsck.DAMAGED]),
    "results of no job": (lambda s: (s.folder / "results" / "j" / "1").mkdir(parents=True), [fsck.NOT_INDEXED]),
    "rejected objects of no job": (lambda s: (s.folder / "rejected" / "j").mkdir(parents=True), [fsck.NOT_INDEXED]),
    "a file among results": (lambda s: (s.folder / "results" / "x.dcm").write_bytes(b"x"), [fsck.NOT_INDEXED]),
    "a series that a row calls deleted": (lambda s: s.forget(), [fsck.NOT_INDEXED]),
    "results without their jobs": (lambda s: s.forget("DELETE FROM job"), [fsck.NOT_INDEXED]),
    "what a killed job unpacked": (lambda s: (s.folder / "work" / "j.1").mkdir(parents=True), [fsck.LEFT_BEHIND]),
}


@pytest.mark.parametrize("what", FAULTS)
def test_each_fault_is_said(stored: Stored, what: str) -> None:
    spoil, kinds = FAULTS[what]
    spoil(stored)
    found = stored.faults()
    assert [fault.kind for fault in found] == kinds, found
    named = {fault.what for fault in found if fault.kind in fsck.HARM}
    uids = {instance.sop_instance_uid for instance in (*stored.packed, stored.alone)}
    assert named <= uids | {str(stored.result.relative_to(stored.folder))}


def test_what_has_no_row_is_said_and_mended(stored: Stored) -> None:
    with stored.ledger.engine.begin() as db:
        db.execute(sa.text("DELETE FROM instance"))
        db.execute(sa.text("DELETE FROM series"))
    (stored.folder / "work" / "j.1").mkdir(parents=True)
    found = stored.faults()
    assert sorted(fault.kind for fault in found) == [fsck.LEFT_BEHIND, *[fsck.NOT_INDEXED] * 6]
    assert fsck.mend(stored.folder, stored.ledger) == ["6 images indexed", "work/j.1 removed"]
    assert stored.faults() == []
    assert fsck.mend(stored.folder, stored.ledger) == []


def test_the_command_says_it_and_fails_for_harm(stored: Stored, tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('[node]\ndata_dir = "data"\n[[peer]]\nname = "a"\nae_title = "A"\nmay_send = true\n')
    sound = CliRunner().invoke(app, ["fsck", "--config", str(config), "--mend"])
    assert (sound.exit_code, sound.stdout) == (0, "0 lost or damaged, 0 other remarks\n"), sound.output
    uid = pydicom.dcmread(stored.result).SOPInstanceUID
    stored.result.unlink()
    harmed = CliRunner().invoke(app, ["fsck", "--config", str(config)])
    assert harmed.exit_code == 1
    assert harmed.stdout.splitlines() == [
        f"lost: {stored.result.relative_to(stored.folder)}: result {uid} is not there; run the series again",
        "1 lost or damaged, 0 other remarks",
    ]
