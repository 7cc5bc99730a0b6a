"""What every destination promises, whether it is a folder, a PACS by C-STORE or one by STOW-RS."""

from __future__ import annotations

import email
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest

from pacs_node.deliver.destination import Deferred, Destination, Undeliverable
from pacs_node.deliver.dimse import DimseDestination
from pacs_node.deliver.folder import FolderDestination
from pacs_node.deliver.stow import StowDestination, WebPeer
from pacs_node.errors import GiveUp, TryAgain
from pacs_node.records import Package
from tests.harness import free_port
from tests.unit.deliver.conftest import NOON, Pacs, now


@dataclass
class There:
    """A destination that is there, what it holds (SOP Instance UID -> data set), and the same one when it is gone."""

    destination: Destination
    holds: Callable[[], dict[str, pydicom.Dataset]]
    gone: Destination


def folder(tmp_path: Path) -> There:
    root = tmp_path / "results"
    (tmp_path / "a-file").touch()

    def holds() -> dict[str, pydicom.Dataset]:
        return {str(each.SOPInstanceUID): each for each in map(pydicom.dcmread, root.rglob("*.dcm"))}

    return There(FolderDestination("results", root), holds, FolderDestination("results", tmp_path / "a-file" / "below"))


def c_store(pacs: Callable[..., Pacs]) -> There:
    us = pacs()

    def holds() -> dict[str, pydicom.Dataset]:
        read = [pydicom.dcmread(BytesIO(data), force=True) for data in us.received.values()]
        return {str(each.SOPInstanceUID): each for each in read}

    gone = DimseDestination(replace(us.peer, port=free_port(), timeout_s=2))
    return There(DimseDestination(us.peer), holds, gone)


def stow(server: ThreadingHTTPServer) -> There:
    url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    gone = WebPeer("web", f"http://127.0.0.1:{free_port()}/dicom-web", 2)
    return There(StowDestination(WebPeer("web", url, 5)), lambda: dict(server.held), StowDestination(gone))  # type: ignore[attr-defined]


@pytest.fixture
def web() -> Iterator[ThreadingHTTPServer]:
    """A DICOMweb server that keeps what it is given and says so: PS3.18 10.5."""
    held: dict[str, pydicom.Dataset] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            message = email.message_from_bytes(
                b"Content-Type: " + self.headers["Content-Type"].encode() + b"\n\n" + body
            )
            stored = []
            for part in message.walk():
                if part.get_content_type() == "application/dicom":
                    dataset = pydicom.dcmread(BytesIO(part.get_payload(decode=True)))
                    held[str(dataset.SOPInstanceUID)] = dataset
                    uids = (("00081150", dataset.SOPClassUID), ("00081155", dataset.SOPInstanceUID))
                    stored.append({tag: {"vr": "UI", "Value": [str(uid)]} for tag, uid in uids})
            content = json.dumps({"00081199": {"vr": "SQ", "Value": stored}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.held = held  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["folder", "C-STORE", "STOW-RS"])
def there(request: pytest.FixtureRequest, tmp_path: Path, pacs: Callable[..., Pacs], web: Any) -> There:
    makers = {"folder": lambda: folder(tmp_path), "C-STORE": lambda: c_store(pacs), "STOW-RS": lambda: stow(web)}
    return makers[request.param]()


def test_every_object_gets_a_receipt_and_arrives_as_it_is(there: There, images: list[Path]) -> None:
    before = [path.read_bytes() for path in images]
    receipts = there.destination.deliver(Package("job", tuple(images)), now)
    sent = {str(each.SOPInstanceUID): each for each in map(pydicom.dcmread, images)}
    assert [receipt.sop_instance_uid for receipt in receipts] == list(sent), "one each, in the order of the package"
    assert all(receipt.stored and receipt.text and receipt.at == NOON for receipt in receipts)
    assert {receipt.sop_class_uid for receipt in receipts} == {str(each.SOPClassUID) for each in sent.values()}
    assert there.holds() == sent
    assert [path.read_bytes() for path in images] == before, "the results themselves stay as they are"


def test_the_same_again_does_no_harm(there: There, images: list[Path]) -> None:
    package = Package("job", tuple(images))
    there.destination.deliver(package, now)
    held = there.holds()
    again = there.destination.deliver(package, now)
    assert [receipt.stored for receipt in again] == [True] * len(images)
    assert there.holds() == held


def test_one_that_is_not_there_is_tried_again_later(there: There, images: list[Path]) -> None:
    with pytest.raises(Deferred) as later:
        there.gone.deliver(Package("job", tuple(images)), now)
    assert isinstance(later.value, TryAgain)
    assert str(later.value)
    assert not any(receipt.stored for receipt in later.value.receipts)


@pytest.mark.parametrize("damage", ["gone", "text"])
def test_a_result_that_is_no_dicom_file_is_given_up_by_name(there: There, images: list[Path], damage: str) -> None:
    bad = images[1].with_name("bad.dcm")
    if damage == "text":
        bad.write_text("not DICOM")
    package = Package("job", (images[0], bad))
    with pytest.raises(Undeliverable, match=r"bad\.dcm") as never:
        there.destination.deliver(package, now)
    assert isinstance(never.value, GiveUp)
    shutil.copy(images[1], bad)
    assert all(receipt.stored for receipt in there.destination.deliver(package, now)), "and goes once it is whole"


def test_a_destination_has_a_name(there: There) -> None:
    assert there.destination.name
