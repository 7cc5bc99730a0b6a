"""Several processes behind one port: what is promised by any of them is kept, counted and decided on as by one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from config import load
from models import catalogue
from pacs_node import fsck, pack
from pacs_node.node import Node
from pacs_node.receivers import SLOTS, Callers, Receivers, note, noted
from pacs_node.records import Instance, Refusal
from pacs_node.start_up import hold
from tests.factories import ct_series
from tests.harness import free_port, wait_for
from tests.parrot import ASSOCIATE_AC, ASSOCIATE_RJ, Parrot
from tests.unit.receive.conftest import encoded


@pytest.fixture
def more() -> str:
    """Further settings."""
    return ""


@pytest.fixture
def node(tmp_path: Path, more: str) -> Iterator[Node]:
    """A node that listens in two processes, and does nothing else."""
    (tmp_path / "node.toml").write_text(f"""
[node]
ae_title = "NODE"
data_dir = "data"
dicom_host = "127.0.0.1"
dicom_port = {free_port()}
[receive]
processes = 2
max_associations = 4
keep_free_gb = 0.0
drain_s = 1.0
[assemble]
quiet_s = 0.5
[[peer]]
name = "scanner"
ae_title = "ME"
may_send = true
{more}""")
    node = Node(load(tmp_path / "node.toml", catalogue()))
    node.start(work=False, web=False)
    yield node
    node.stop()


def receivers(node: Node) -> Receivers:
    assert node.receivers is not None
    return node.receivers


def writers(node: Node) -> set[int]:
    """The processes that have written packs."""
    return {int(path.name.split("-")[1]) for path in (node.spool.root / "instances").rglob("*.pack")}


def test_all_that_any_of_them_takes_in_is_one_series(node: Node) -> None:
    images = ct_series(shape=(40, 16, 16))
    statuses: list[int] = []

    def send(some: list[Dataset]) -> None:
        for image in some:  # an association each: now this process is free, now that
            with Parrot(node.config.node.dicom_port) as parrot:
                assert parrot.associate()[0] == ASSOCIATE_AC
                statuses.append(parrot.store(image.SOPInstanceUID, encoded(image)))
                parrot.release()

    senders = [threading.Thread(target=send, args=(images[number::4],)) for number in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert statuses == [0x0000] * 40
    node.settle()
    held = node.ledger.instances(images[0].SeriesInstanceUID)
    assert {each.sop_instance_uid for each in held} == {image.SOPInstanceUID for image in images}
    assert writers(node) == set(receivers(node).pids), "both took part"
    wait_for(lambda: not node.connected(), 5, "the end of all associations")
    wait_for(lambda: not node.ledger.open_series(frozenset()), 20, "the verdict on the series")
    assert node.trouble() == []


def test_their_associations_are_counted_together(node: Node) -> None:
    callers = [Parrot(node.config.node.dicom_port) for _ in range(4)]
    assert [caller.associate()[0] for caller in callers] == [ASSOCIATE_AC] * 4
    assert len(node.connected()) == 4
    with Parrot(node.config.node.dicom_port) as fifth:
        assert fifth.associate()[0] == ASSOCIATE_RJ
    for caller in callers:
        caller.release()
        caller.connection.close()
    wait_for(lambda: not node.connected(), 5, "the end of all associations")
    with Parrot(node.config.node.dicom_port) as again:
        assert again.associate()[0] == ASSOCIATE_AC


@pytest.mark.parametrize("more", ['[[peer]]\nname = "another"\nae_title = "YOU"\nmay_send = true\n'])
def test_one_peer_leaves_room_for_another_in_all_of_them(node: Node) -> None:
    """Of four associations one peer has three, whichever process took them; also after one of them was killed."""
    port = node.config.node.dicom_port

    def hold() -> list[Parrot]:
        callers = [Parrot(port, at="127.0.0.2") for _ in range(3)]
        assert [caller.associate()[0] for caller in callers] == [ASSOCIATE_AC] * 3
        for at in ("127.0.0.2", "127.0.0.3"):
            with Parrot(port, at=at) as fourth:
                assert fourth.associate()[0] == ASSOCIATE_RJ
        with Parrot(port, at="127.0.0.3") as other:
            assert other.associate("YOU")[0] == ASSOCIATE_AC
        return callers

    for caller in hold():
        caller.connection.close()
    wait_for(lambda: not node.connected(), 5, "the end of all associations")
    callers, before = hold(), receivers(node).pids
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: before[0] not in receivers(node).pids and not node.trouble(), 30, "another process")
    for caller in callers:
        caller.connection.close()
    wait_for(lambda: not node.connected(), 5, "the end of all associations")
    for caller in hold():
        caller.connection.close()


def test_whose_associations_a_process_holds_is_read_as_it_was_noted() -> None:
    """Any number of them, shorter lists after longer ones; beyond the slots, and of what is no text, the number."""
    callers = Callers()
    for count in (0, 3, 1, SLOTS, SLOTS + 2, 2):
        held = [(f"AE{number}", f"fe80::{number}%eth0") for number in range(count)]
        note(callers, held)
        assert list(noted(callers)) == [*held[:SLOTS], *[("", "")] * (count - SLOTS)]
    note(callers, [("\u00e9" * 300, "1.2.3.4")])
    assert len(list(noted(callers))) == 1


def test_what_a_killed_one_promised_is_there_and_another_takes_its_place(node: Node) -> None:
    images, promised = ct_series(shape=(60, 16, 16)), []
    before = receivers(node).pids
    done = threading.Event()

    def send(some: list[Dataset]) -> None:
        for image in some:
            try:
                with Parrot(node.config.node.dicom_port, timeout_s=2) as parrot:
                    accepted = parrot.associate()[0] == ASSOCIATE_AC
                    if accepted and parrot.store(image.SOPInstanceUID, encoded(image)) == 0x0000:
                        promised.append(image.SOPInstanceUID)
            except (OSError, AssertionError):
                continue  # it was not answered: nothing was promised
            if len(promised) >= 12:
                done.set()

    senders = [threading.Thread(target=send, args=(images[number::3],)) for number in range(3)]
    for sender in senders:
        sender.start()
    assert done.wait(20)
    os.kill(before[0], signal.SIGKILL)
    for sender in senders:
        sender.join()
    wait_for(lambda: before[0] not in receivers(node).pids and not node.trouble(), 30, "another process")
    wait_for(lambda: kept(node, images[0]) >= set(promised), 10, "all rows")
    with Parrot(node.config.node.dicom_port) as parrot:
        assert parrot.associate()[0] == ASSOCIATE_AC


def kept(node: Node, image: Dataset) -> set[str]:
    node.settle()
    held = node.ledger.instances(image.SeriesInstanceUID)
    return {each.sop_instance_uid for each in held if pack.is_there(each.stored)}


def test_two_images_under_one_uid_that_come_at_once_are_told_apart(node: Node, tmp_path: Path) -> None:
    """As if two processes had kept them before either had its row."""
    image = ct_series(shape=(1, 16, 16))[0]
    with Parrot(node.config.node.dicom_port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, encoded(image)) == 0x0000
        parrot.release()
    node.settle()
    [first] = node.ledger.instances(image.SeriesInstanceUID)
    other = tmp_path / "other.dcm"
    for pixels, words in ((image.PixelData, set()), (bytes(len(image.PixelData)), {"kept aside"})):
        image.PixelData = pixels
        image.save_as(other, enforce_file_format=True)
        facts = {**vars(first), "path": other, "offset": 0, "size": other.stat().st_size}
        node.intake.take_in([Instance(**facts)])
        assert {refusal.kind for refusal in told(node)} == words
    [aside] = (node.spool.root / "aside").iterdir()
    assert aside.read_bytes().endswith(bytes(100))
    assert node.ledger.instances(image.SeriesInstanceUID) == [first]


def told(node: Node) -> list[Refusal]:
    return [*node._not_noted, *(Refusal(each["kind"], each["at"], "", "", "") for each in node.ledger.refusals(9))]


def test_the_spool_is_theirs_until_the_last_has_ended(node: Node) -> None:
    assert node._receiving is not None
    node._receiving.close()  # as when the parent alone is killed
    with pytest.raises(Exception, match="in use by another worker"):
        hold(node.config.node.data_dir / "spool.lock")
    node._receiving = None
    node.stop()
    hold(node.config.node.data_dir / "spool.lock").close()


def test_what_retention_deletes_is_named_by_none_of_them(node: Node) -> None:
    """Senders bring the same images again and again, and each time they are deleted: of what any process has answered
    with 0x0000 the ledger names a file that is there, or it was deleted as a whole."""
    settings = node.config.retention.model_copy(update={"keep_days": 30, "without_proof": ("no results",)})
    node.retention.settings, node.retention.now = settings, lambda: node.now() + timedelta(days=31)
    images, stop, statuses = ct_series(shape=(6, 16, 16)), threading.Event(), set[int]()
    uid = str(images[0].SeriesInstanceUID)

    def send(some: list[Dataset]) -> None:
        while not stop.is_set():
            for image in some:
                with Parrot(node.config.node.dicom_port) as parrot:
                    assert parrot.associate()[0] == ASSOCIATE_AC
                    statuses.add(parrot.store(image.SOPInstanceUID, encoded(image)))
                    parrot.release()

    senders = [threading.Thread(target=send, args=(some,)) for some in (images, images[::-1])]
    for sender in senders:
        sender.start()
    gone = 0

    def deleted_often() -> bool:
        nonlocal gone
        node.settle()
        for open_series in node.ledger.open_series(frozenset()):
            node.flow.close(open_series, "quiet")
        gone += sum(each is not None for each in node.retention.a_pass())
        with node.let_go(uid):  # nobody writes now
            node.settle()
            faults = list(fsck.faults(node.config.node.data_dir, node.ledger))
        assert [fault for fault in faults if fault.kind == fsck.LOST] == []
        return gone > 4

    try:
        wait_for(deleted_often, 60, "deletions")
    finally:
        stop.set()
        for sender in senders:
            sender.join()
    assert statuses == {0x0000}
    assert node.trouble() == []
