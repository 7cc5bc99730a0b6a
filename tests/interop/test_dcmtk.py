"""DCMTK's programs send to our listener, and our sender sends to DCMTK's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from pacs_node import pack
from pacs_node.assemble.evidence import expected_count
from pacs_node.deliver.destination import Deferred, Undeliverable
from pacs_node.deliver.dimse import DimseDestination, Peer, echo, send
from pacs_node.receive.part10 import decode
from pacs_node.receive.scp import Listener, ListenerSettings
from pacs_node.receive.spool import Spool
from pacs_node.records import AssociationEnd, Instance, Package
from tests.factories import ct_series, us_image
from tests.harness import Orthanc, free_port, need, wait_for

QUICK = {**os.environ, "TCP_NODELAY": "1"}  # else 40 ms are lost with each image


Node = tuple[Listener, list[Instance], list[AssociationEnd]]


def now() -> datetime:
    return datetime.now(UTC)


# name -> the program that makes it of an Explicit VR Little Endian file, and storescu's option that proposes it
ENCODINGS: dict[str, tuple[list[str], str]] = {
    "1.2.840.10008.1.2": (["dcmconv", "+ti"], "-xi"),
    "1.2.840.10008.1.2.1": (["dcmconv", "+te"], "-xe"),
    "1.2.840.10008.1.2.2": (["dcmconv", "+tb"], "-xb"),
    "1.2.840.10008.1.2.1.99": (["dcmconv", "+td"], "-xd"),
    "1.2.840.10008.1.2.5": (["dcmcrle"], "-xr"),
    "1.2.840.10008.1.2.4.70": (["dcmcjpeg", "+e1"], "-xs"),
    "1.2.840.10008.1.2.4.57": (["dcmcjpeg", "+el"], ""),
    "1.2.840.10008.1.2.4.50": (["dcmcjpeg", "+eb"], "-xy"),
    "1.2.840.10008.1.2.4.51": (["dcmcjpeg", "+ee"], "-xx"),
    "1.2.840.10008.1.2.4.80": (["dcmcjpls", "+el"], "-xt"),
    "1.2.840.10008.1.2.4.81": (["dcmcjpls", "+en"], "-xu"),
}
# ... and those DCMTK cannot make, by pydicom
BY_PYDICOM = ["1.2.840.10008.1.2.4.90"]


UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [need(words[0]), *words[1:]]
    return subprocess.run(command, env=QUICK, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    stored: list[Instance] = []
    ends: list[AssociationEnd] = []
    settings = ListenerSettings(
        "NODE",
        "127.0.0.1",
        0,
        frozenset({"MODALITY"}),
        max_associations=20,
        max_pdu=1 << 20,
        network_timeout_s=60,
        acse_timeout_s=30,
        dimse_timeout_s=30,
    )
    listener = Listener(
        settings, Spool(tmp_path / "spool", 0), stored.append, ends.append, lambda event, facts: None, now
    )
    listener.start()
    yield listener, stored, ends
    listener.stop(drain_s=0)


def data_set(path: Path) -> bytes:
    content = path.read_bytes()
    return content[decode(content[:4096]).size :]


def content(path: Path) -> bytes:
    """The data set; a deflated one inflated, because every program deflates anew in its own way."""
    encoded = data_set(path)
    deflated = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID.is_deflated
    return zlib.decompress(encoded, -zlib.MAX_WBITS) if deflated else encoded


def alone(stored: Sequence[Instance], folder: Path) -> list[Path]:
    """Each stored image as a file."""
    files = []
    for instance in stored:
        files.append(folder / f"stored-{instance.sop_instance_uid}.dcm")
        files[-1].write_bytes(pack.content(instance.stored))
    return files


def make(folder: Path, syntax: str) -> list[Path]:
    """A CT series of three images in a transfer syntax; the lossy ones want unsigned pixels, so ultrasound there."""
    plain = folder / "plain"
    if syntax in BY_PYDICOM:
        images = ct_series(plain, shape=(3, 64, 64), transfer_syntax=syntax)
    elif syntax in LOSSY:
        images = [us_image(plain, shape=(64, 64), number=number, name=f"us {number}") for number in (1, 2, 3)]
    else:
        images = ct_series(plain, shape=(3, 64, 64))
    paths = [Path(image.filename) for image in images]
    if syntax in BY_PYDICOM:
        return paths
    made = []
    for path in paths:
        target = folder / f"{path.stem}-{syntax}.dcm"
        program, *options = ENCODINGS[syntax][0]
        done = run(program, *options, str(path), str(target))
        assert done.returncode == 0, done.stderr
        assert pydicom.filereader.read_file_meta_info(target).TransferSyntaxUID == syntax
        made.append(target)
    return made


@pytest.mark.parametrize("syntax", [*ENCODINGS, *BY_PYDICOM])
def test_bytes_on_disk_are_bytes_sent(node: Node, tmp_path: Path, syntax: str) -> None:
    """dcmsend leaves compressed files as they are and makes Explicit VR Little Endian of others; storescu does not."""
    listener, stored, ends = node
    paths = make(tmp_path / "made", syntax)
    program = ["storescu", ENCODINGS[syntax][1]] if syntax in UNCOMPRESSED else ["dcmsend"]
    sent = run(*program, "-aet", "MODALITY", "-aec", "NODE", "127.0.0.1", str(listener.port), *map(str, paths))
    assert sent.returncode == 0, sent.stderr
    assert {instance.transfer_syntax_uid for instance in stored} == {syntax}
    assert sorted(map(content, alone(stored, tmp_path))) == sorted(map(content, paths))
    wait_for(lambda: ends, 5, "the end of the association")
    assert all(end.released for end in ends)
    pixels = {image.SOPInstanceUID: image.pixel_array for image in map(pydicom.dcmread, paths)}
    for instance in stored:
        read = pydicom.dcmread(BytesIO(pack.content(instance.stored)))
        assert (read.pixel_array == pixels[instance.sop_instance_uid]).all()


@pytest.mark.parametrize("syntax", [*ENCODINGS, *BY_PYDICOM])
def test_from_file_to_file_by_our_own_sender(node: Node, tmp_path: Path, syntax: str) -> None:
    """Not a bit changes, deflated data sets included."""
    listener, stored, _ = node
    paths = make(tmp_path / "made", syntax)
    send(paths, "127.0.0.1", listener.port, "MODALITY", "NODE", now)
    assert sorted(map(data_set, alone(stored, tmp_path))) == sorted(map(data_set, paths))


@pytest.mark.parametrize("syntax", [syntax for syntax, (_, option) in ENCODINGS.items() if option])
def test_storescu(node: Node, tmp_path: Path, syntax: str) -> None:
    """storescu proposes the syntax it is told; a file in another it converts, never in ours."""
    listener, stored, _ = node
    paths = make(tmp_path / "made", syntax)
    option = ENCODINGS[syntax][1]
    sent = run(
        "storescu", option, "-aet", "MODALITY", "-aec", "NODE", "127.0.0.1", str(listener.port), *map(str, paths)
    )
    assert sent.returncode == 0, sent.stderr
    assert {instance.transfer_syntax_uid for instance in stored} == {syntax}
    assert len(stored) == 3


def test_echoscu_and_wrong_titles(node: Node) -> None:
    listener, _, _ = node

    def said(calling: str, called: str) -> tuple[int, str]:
        done = run("echoscu", "-aet", calling, "-aec", called, "127.0.0.1", str(listener.port))
        return done.returncode, done.stderr

    assert said("MODALITY", "NODE")[0] == 0
    code, words = said("STRANGER", "NODE")
    assert code != 0
    assert "Calling AE Title Not Recognized" in words
    code, words = said("MODALITY", "NOBODY")
    assert code != 0
    assert "Called AE Title Not Recognized" in words


def test_storescu_in_halves_of_a_series_at_the_same_time(node: Node, tmp_path: Path) -> None:
    listener, stored, ends = node
    paths = [Path(image.filename) for image in ct_series(tmp_path / "ct", shape=(20, 64, 64))]
    to_us = [need("storescu"), "-aet", "MODALITY", "-aec", "NODE", "127.0.0.1", str(listener.port)]
    senders = [subprocess.Popen([*to_us, *map(str, half)], env=QUICK) for half in (paths[::2], paths[1::2])]
    assert [sender.wait(30) for sender in senders] == [0, 0]
    assert sorted(map(data_set, alone(stored, tmp_path))) == sorted(map(data_set, paths))
    wait_for(lambda: len(ends) == 2, 5, "the end of both associations")
    assert len({instance.association for instance in stored}) == 2


def test_a_sender_killed_in_the_middle_is_no_release(node: Node, tmp_path: Path) -> None:
    listener, stored, ends = node
    paths = [Path(image.filename) for image in ct_series(tmp_path / "ct", shape=(400, 256, 256))]
    to_us = [need("storescu"), "-aet", "MODALITY", "-aec", "NODE", "127.0.0.1", str(listener.port)]
    sender = subprocess.Popen([*to_us, *map(str, paths)], env=QUICK)
    wait_for(lambda: len(stored) >= 3, 10, "three images")
    sender.send_signal(signal.SIGKILL)
    sender.wait()
    wait_for(lambda: ends, 5, "the end of the association")
    assert not ends[0].released
    assert len(stored) < len(paths)
    assert subprocess.run([*to_us, *map(str, paths)], env=QUICK, timeout=60, check=False).returncode == 0
    assert {instance.sop_instance_uid for instance in stored} == {
        pydicom.dcmread(path).SOPInstanceUID for path in paths
    }


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[Callable[..., tuple[Peer, Path]]]:
    """storescp(options) -> (the peer, the folder it writes to)."""
    running = []

    def start(*options: str) -> tuple[Peer, Path]:
        folder, port = tmp_path / "pacs", free_port()
        folder.mkdir()
        command = [need("storescp"), *options, "-od", str(folder), str(port)]
        running.append(subprocess.Popen(command, env=QUICK, stderr=subprocess.DEVNULL))
        peer = Peer("pacs", "PACS", "127.0.0.1", port, "NODE", 10)

        def answers() -> bool:
            try:
                return bool(echo(peer))
            except Deferred:
                return False

        wait_for(answers, 10, "storescp")
        return peer, folder

    yield start
    for process in running:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.70"])
def test_our_sender_sends_the_bytes_as_they_are(
    storescp: Callable[..., tuple[Peer, Path]], tmp_path: Path, syntax: str
) -> None:
    peer, folder = storescp("+xa", "+B")  # every syntax; write what came, bit by bit
    paths = make(tmp_path / "made", syntax)
    receipts = DimseDestination(peer).deliver(Package("job", tuple(paths)), now)
    assert all(receipt.stored and receipt.status == 0 for receipt in receipts)
    wait_for(lambda: len(list(folder.iterdir())) == 3, 5, "three files")
    assert sorted(map(data_set, folder.iterdir())) == sorted(map(data_set, paths))


def test_a_pacs_that_takes_no_compression(storescp: Callable[..., tuple[Peer, Path]], tmp_path: Path) -> None:
    peer, folder = storescp("+xi")
    with pytest.raises(Undeliverable, match=r"accepts none of what is to be sent: CT Image Storage in RLE Lossless"):
        DimseDestination(peer).deliver(Package("job", tuple(make(tmp_path / "made", "1.2.840.10008.1.2.5"))), now)
    assert list(folder.iterdir()) == []


def test_send_to_ourselves(node: Node, tmp_path: Path) -> None:
    listener, stored, _ = node
    ct_series(tmp_path / "study" / "ct", shape=(4, 32, 32))
    us_image(tmp_path / "study" / "us")
    receipts = send([tmp_path / "study"], "127.0.0.1", listener.port, "MODALITY", "NODE", now)
    assert [receipt.text for receipt in receipts] == ["0x0000 Success"] * 5
    assert len(stored) == 5


def test_an_archive_that_does_not_count(tmp_path: Path) -> None:
    """dcmqrscp answers C-FIND but does not know NumberOfSeriesRelatedInstances."""
    images = ct_series(tmp_path / "ct", shape=(5, 32, 32))
    archive, port = tmp_path / "archive", free_port()
    archive.mkdir()
    config = tmp_path / "dcmqrscp.cfg"
    config.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        "HostTable BEGIN\nnode = (NODE, localhost, 104)\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nPACS {archive} RW (10, 1024mb) ANY\nAETable END\n"
    )
    process = subprocess.Popen([need("dcmqrscp"), "-c", str(config)], env=QUICK, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        send([tmp_path / "ct"], "127.0.0.1", port, "NODE", "PACS", now)
        study, series = images[0].StudyInstanceUID, images[0].SeriesInstanceUID
        assert expected_count(Peer("pacs", "PACS", "127.0.0.1", port, "NODE", 5), study, series) is None
    finally:
        process.terminate()
        process.wait()


def test_an_archive_that_counts(tmp_path: Path) -> None:
    """Orthanc does."""
    images = ct_series(tmp_path / "ct", shape=(5, 32, 32))
    with Orthanc(tmp_path / "orthanc", settings={"DicomWeb": {"Enable": False}}) as orthanc:
        send([tmp_path / "ct"], "127.0.0.1", orthanc.dicom_port, "NODE", orthanc.aet, now)
        study, series = images[0].StudyInstanceUID, images[0].SeriesInstanceUID
        peer = Peer("pacs", orthanc.aet, "127.0.0.1", orthanc.dicom_port, "NODE", 5)
        assert expected_count(peer, study, series) == 5
        assert expected_count(peer, study, "1.2.3") is None
