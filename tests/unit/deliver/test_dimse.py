"""C-STORE to a PACS on a real socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from pacs_node.deliver.destination import Deferred, Undeliverable
from pacs_node.deliver.dimse import MOST_CONTEXTS, DimseDestination, Outgoing, Peer, _batches, echo, send
from pacs_node.records import Package, Receipt
from tests.parrot import Parrot
from tests.unit.deliver.conftest import CT, EXPLICIT_LE, IMPLICIT_LE, NOON, US, Pacs, now

Start = Callable[..., Pacs]


def deliver(pacs: Pacs, paths: list[Path]) -> list[Receipt]:
    return DimseDestination(pacs.peer).deliver(Package("job", tuple(paths)), now)


def data_set(path: Path) -> bytes:
    """The bytes after the file meta information."""
    with path.open("rb") as file:
        length = pydicom.filereader.read_file_meta_info(path).FileMetaInformationGroupLength
        file.seek(132 + 12 + length)
        return file.read()


def test_everything_arrives_as_it_is(pacs: Start, images: list[Path]) -> None:
    there = pacs()
    receipts = deliver(there, images)
    assert [(each.stored, each.status, each.text, each.at) for each in receipts] == [
        (True, 0, "0x0000 Success", NOON)
    ] * 3
    assert there.received == {pydicom.dcmread(path).SOPInstanceUID: data_set(path) for path in images}
    assert [each.sop_instance_uid for each in receipts] == list(there.received)


def test_nothing_is_encoded_anew(pacs: Start, images: list[Path]) -> None:
    """Group lengths, long retired, are what every library drops when it writes."""
    plain = data_set(images[0])
    with_group_length = b"\x08\0\0\0UL\4\0\1\2\3\4" + plain
    images[0].write_bytes(images[0].read_bytes().removesuffix(plain) + with_group_length)
    there = pacs()
    deliver(there, images[:1])
    assert list(there.received.values()) == [with_group_length]


def test_only_what_is_sent_is_proposed_in_one_association(pacs: Start, images: list[Path]) -> None:
    there = pacs()
    deliver(there, images)
    there.done.wait(5)
    assert there.proposed == [[(CT, (EXPLICIT_LE,)), (US, (EXPLICIT_LE,))]]
    assert there.released == 1


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_stored_with_a_change_is_stored_and_recorded(pacs: Start, images: list[Path], status: int) -> None:
    def answer(number: int) -> Dataset:
        said = Dataset()
        said.Status, said.ErrorComment = status, "patient id coerced"
        return said

    (receipt,) = deliver(pacs(answer=answer), images[:1])
    assert (receipt.stored, receipt.status) == (True, status)
    assert receipt.text.startswith(f"0x{status:04X} stored with a change: ")
    assert receipt.text.endswith(" (patient id coerced)")


@pytest.mark.parametrize(
    ("status", "error"),
    [(0xA700, Deferred), (0xA7AA, Deferred), (0x0110, Deferred), (0xA900, Undeliverable), (0xC123, Undeliverable)],
)
def test_a_refusal_of_one_does_not_keep_the_others(
    pacs: Start, images: list[Path], status: int, error: type[Deferred | Undeliverable]
) -> None:
    there = pacs(answer=lambda number: status if number == 2 else 0x0000)
    with pytest.raises(error, match=f"0x{status:04X}") as raised:
        deliver(there, images)
    assert [(each.stored, each.status) for each in raised.value.receipts] == [(True, 0), (False, status), (True, 0)]


def test_what_may_go_better_later_outweighs_what_never_will(pacs: Start, images: list[Path]) -> None:
    with pytest.raises(Deferred):
        deliver(pacs(answer=lambda number: [0x0000, 0xA900, 0xA700][number - 1]), images)


def test_a_sop_class_that_is_not_accepted(pacs: Start, images: list[Path]) -> None:
    words = "Ultrasound Image Storage in Explicit VR Little Endian not accepted: the SOP class is not supported"
    with pytest.raises(Undeliverable, match=words) as raised:
        deliver(pacs(accepts={CT: [EXPLICIT_LE]}), images)
    assert [each.stored for each in raised.value.receipts] == [True, True, False]
    assert raised.value.receipts[2].status is None


def test_a_transfer_syntax_that_is_not_accepted(pacs: Start, images: list[Path]) -> None:
    there = pacs(accepts={CT: [IMPLICIT_LE], US: [EXPLICIT_LE]})
    with pytest.raises(Undeliverable, match="CT Image Storage in Explicit VR Little Endian not accepted: the transfer"):
        deliver(there, images)
    assert len(there.received) == 1


def test_nothing_is_accepted(pacs: Start, images: list[Path]) -> None:
    with pytest.raises(Undeliverable, match="accepts none of what is to be sent: CT Image Storage in Explicit"):
        deliver(pacs(accepts={US: [EXPLICIT_LE]}), images[:2])


def test_rejected_for_good(pacs: Start, images: list[Path]) -> None:
    there = pacs(knows="SOMEONE_ELSE")
    with pytest.raises(Undeliverable, match="rejected 'NODE': it does not know our AE title"):
        deliver(there, images)
    there = pacs()
    there.peer = replace(there.peer, ae_title="PAKS")
    with pytest.raises(Undeliverable, match=r"PAKS .*: it does not call itself so"):
        deliver(there, images)


def test_rejected_for_now(pacs: Start, images: list[Path]) -> None:
    there = pacs(limit=1)
    with closing(_open_association(there.peer)), pytest.raises(Deferred, match="its limit of associations is reached"):
        deliver(there, images)


def test_nobody_there(images: list[Path]) -> None:
    with closing(socket.socket()) as door:
        door.bind(("127.0.0.1", 0))
        peer = Peer("pacs", "PACS", "127.0.0.1", door.getsockname()[1], "NODE", 2)
        with pytest.raises(Deferred, match=r"pacs \(PACS at 127.0.0.1:\d+\) cannot be reached"):
            DimseDestination(peer).deliver(Package("job", tuple(images)), now)


def test_a_port_that_never_answers(images: list[Path]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as door:
        peer = Peer("pacs", "PACS", "127.0.0.1", door.getsockname()[1], "NODE", 0.5)
        began = time.monotonic()
        with pytest.raises(Deferred, match=r"aborted the association request, or did not answer it within 0.5 s"):
            DimseDestination(peer).deliver(Package("job", tuple(images)), now)
        assert time.monotonic() - began < 5


def test_no_answer_to_the_second(pacs: Start, images: list[Path]) -> None:
    over = threading.Event()

    def answer(number: int) -> int:
        if number == 2:
            over.wait(3)
        return 0x0000

    with pytest.raises(Deferred, match=r"broke off after 1 of 3 objects, or did not answer within 0.5 s") as raised:
        deliver(pacs(answer=answer, timeout_s=0.5), images)
    over.set()
    assert [each.stored for each in raised.value.receipts] == [True]


def test_not_dicom(pacs: Start, tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(b"%PDF-1.7" + bytes(200))
    with pytest.raises(Undeliverable, match=r"report\.pdf is no DICOM file"):
        deliver(pacs(), [path])


def test_delivering_twice_does_no_harm(pacs: Start, images: list[Path]) -> None:
    there = pacs()
    assert deliver(there, images) == deliver(there, images)
    assert deliver(pacs(answer=lambda number: 0x0111), images[:1])[0].stored


def test_echo(pacs: Start, images: list[Path]) -> None:
    there = pacs()
    assert echo(there.peer).startswith("answered in ")
    with pytest.raises(Undeliverable, match="it does not call itself so"):
        echo(replace(there.peer, ae_title="PAKS"))


def test_send_walks_folders_and_passes_over_the_rest(pacs: Start, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not DICOM")
    there = pacs()
    told: list[tuple[str, int, int]] = []
    receipts = send(
        [tmp_path],
        "127.0.0.1",
        there.peer.port,
        "ME",
        "PACS",
        now,
        progress=lambda receipt, done, of: told.append((receipt.sop_instance_uid, done, of)),
    )
    assert all(each.stored for each in receipts)
    assert told == [(each.sop_instance_uid, number, 3) for number, each in enumerate(receipts, 1)]


def test_send_says_what_went_before_it_broke_off(pacs: Start, images: list[Path]) -> None:
    there = pacs()
    with pytest.raises(Undeliverable, match="it does not call itself so") as raised:
        send(images, "127.0.0.1", there.peer.port, "ME", "PAKS", now)
    assert raised.value.receipts == ()

    def answer(number: int) -> int:
        if number == 3:
            there.server.shutdown()
            for association in there.server.active_associations:
                association.abort()
        return 0x0000

    there = pacs(answer=answer)
    with pytest.raises(Deferred, match="broke off after 2 of 3 objects") as deferred:
        send(images, "127.0.0.1", there.peer.port, "ME", "PACS", now)
    assert [each.stored for each in deferred.value.receipts] == [True, True]


def test_at_most_128_contexts_to_an_association() -> None:
    """PS3.8 9.3.2.2: ids are the odd numbers from 1 to 255."""
    many = [Outgoing(Path(f"{n}.dcm"), f"1.2.{n % 150}", f"1.3.{n}", EXPLICIT_LE) for n in range(400)]
    batches = list(_batches(many))
    assert [each for batch in batches for each in batch] == many
    assert max(len({each.context for each in batch}) for batch in batches) == MOST_CONTEXTS == 128
    assert len(batches) == 4


def _open_association(peer: Peer) -> socket.socket:
    parrot = Parrot(peer.port)
    parrot.associate(calling="OTHER", called="PACS")
    return parrot.connection
