"""How fast does the node take in images, durably, beside DCMTK's storescp, which waits for no disk, and Orthanc?

    python -m tests.bench.receive            three rounds of every case
    python -m tests.bench.receive --quick    one round of the first two

The sender is DCMTK's storescu each time. Ours runs in a process of its own, with its ledger (SQLite) as in the node,
and counts as done when every image has its row. storescp forks and writes what it gets as it is (+B). Orthanc stores as
installed. "disk alone" is our promise without any network. Every figure is the median of the rounds; one line of JSON
is added to results.jsonl.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog
from pydicom.uid import UID
from rich.console import Console
from rich.table import Table

from pacs_node.intake import Intake
from pacs_node.ledger import Ledger
from pacs_node.receive.part10 import decode
from pacs_node.receive.scp import Listener, ListenerSettings
from pacs_node.receive.spool import Announced, Spool
from tests.bench.record import record
from tests.factories import ct_series
from tests.harness import Orthanc, free_port

ROUNDS = 3
PROGRAMS = "/usr/bin"  # DCMTK's; pynetdicom has programs of the same names
QUICK = {**os.environ, "TCP_NODELAY": "1"}


@dataclass(frozen=True)
class Case:
    name: str
    images: int
    pixels: int  # rows, and columns
    senders: int  # at the same time
    one_association_each: bool = False  # for every image, as many a PACS forwards


CASES = (
    Case("300 of 512 KiB, 1 association", 300, 512, 1),
    Case("300 of 512 KiB, 4 associations", 300, 512, 4),
    Case("300 of 512 KiB, 16 associations", 300, 512, 16),
    Case("5000 of 20 KiB, 1 association", 5000, 100, 1),
    Case("200 of 512 KiB, an association each", 200, 512, 1, one_association_each=True),
)


def make_images(folder: Path, case: Case) -> list[Path]:
    """A CT series in 16 bits; a folder for each sender."""
    (image,) = ct_series(shape=(1, case.pixels, case.pixels))
    prefix, series = image.SeriesInstanceUID[:50].rstrip("."), []
    for number in range(case.images):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(f"{prefix}.{number + 1}")
        image.InstanceNumber = number + 1
        path = folder / str(number % case.senders) / f"{number:04d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(path, enforce_file_format=True)
        series.append(path)
    return series


def serve(folder: Path, told: Connection, also: Callable[[], dict[str, float]] = dict) -> None:
    """Our listener, until told to stop; then says what it cost, and whatever else `also` says then."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(50),
    )
    settings = ListenerSettings(
        "NODE",
        "127.0.0.1",
        0,
        frozenset({"STORESCU"}),
        max_associations=40,
        max_pdu=1 << 17,
        network_timeout_s=60,
        acse_timeout_s=30,
        dimse_timeout_s=30,
    )
    ledger = Ledger(f"sqlite:///{folder}/node.sqlite", folder)
    ledger.migrate()
    spool = Spool(folder / "spool", 0, ledger.instance)
    intake = Intake(ledger, spool.indexed, lambda step: None)
    listener = Listener(settings, spool, intake.stored, intake.left, lambda *event: None, lambda: datetime.now(UTC))
    listener.start()
    intake.loop.start()
    before = resource.getrusage(resource.RUSAGE_SELF)
    told.send(listener.port)
    while (asked := told.recv()) == "all in?":
        intake.flush()
        told.send(sum(series.evidence.arrived for series in ledger.open_series(frozenset())))
    assert asked == "stop"
    listener.stop(drain_s=5)
    intake.loop.stop()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    (peak_kb,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    told.send({"cpu_s": cpu_s, "peak_mb": int(peak_kb) / 1024, **also()})


@dataclass
class Server:
    port: int
    settle: Callable[[], None] = lambda: None  # returns when all that was sent is indexed


@contextmanager
def ours(
    folder: Path, case: Case, costs: list[dict[str, float]], serve: Callable[[Path, Connection], None] = serve
) -> Iterator[Server]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(folder, there))
    process.start()

    def settle() -> None:
        here.send("all in?")
        assert here.recv() == case.images

    yield Server(here.recv(), settle)
    here.send("stop")
    costs.append(here.recv())
    process.join()


@contextmanager
def storescp(folder: Path, case: Case, costs: list[dict[str, float]]) -> Iterator[Server]:
    port = free_port()
    process = subprocess.Popen([f"{PROGRAMS}/storescp", "--fork", "+B", "-od", str(folder), str(port)], env=QUICK)
    echo = [f"{PROGRAMS}/echoscu", "127.0.0.1", str(port)]
    while subprocess.run(echo, env=QUICK, capture_output=True, check=False).returncode:
        time.sleep(0.05)
    yield Server(port)
    process.kill()
    process.wait()
    assert len(list(folder.iterdir())) == case.images


@contextmanager
def orthanc(folder: Path, case: Case, costs: list[dict[str, float]]) -> Iterator[Server]:
    with Orthanc(folder) as pacs:
        yield Server(pacs.dicom_port)


def seconds_to_send(source: Path, server: Server, case: Case) -> float:
    began = time.perf_counter()
    command = [f"{PROGRAMS}/storescu", "-R", "-aec", "NODE", "127.0.0.1", str(server.port)]
    if case.one_association_each:
        for path in sorted(source.rglob("*.dcm")):
            subprocess.run([*command, str(path)], env=QUICK, check=True)
    else:
        folders = [source / str(number) for number in range(case.senders)]
        senders = [subprocess.Popen([*command, "+sd", str(each)], env=QUICK) for each in folders]
        assert [sender.wait() for sender in senders] == [0] * case.senders
    server.settle()
    return time.perf_counter() - began


def seconds_on_disk_alone(images: list[Path], folder: Path) -> float:
    spool = Spool(folder / "spool", 0)
    arrivals = []
    for path in images:
        content = path.read_bytes()
        head = decode(content[:4096])
        announced = Announced(head.sop_class_uid, head.sop_instance_uid, head.transfer_syntax_uid, "a", "STORESCU")
        arrivals.append((announced, memoryview(content)[head.size :]))
    began = time.perf_counter()
    for announced, data_set in arrivals:
        incoming = spool.begin(announced)
        incoming.write(data_set)
        incoming.keep(lambda: datetime.now(UTC))
    return time.perf_counter() - began


def measure(case: Case, rounds: int) -> dict[str, float]:
    """Images per second of each server, and what ours cost."""
    rates: dict[str, list[float]] = {}
    costs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        images = make_images(base / "images", case)
        for _ in range(rounds):
            for server in (storescp, ours, orthanc):
                folder = base / "fresh"
                folder.mkdir()
                with server(folder, case, costs) as running:
                    seconds = seconds_to_send(base / "images", running, case)
                rates.setdefault(server.__name__, []).append(case.images / seconds)
                shutil.rmtree(folder)
            (base / "fresh").mkdir()
            rates.setdefault("disk alone", []).append(case.images / seconds_on_disk_alone(images, base / "fresh"))
            shutil.rmtree(base / "fresh")
    return {
        **{what: statistics.median(each) for what, each in rates.items()},
        "CPU ms an image": statistics.median(cost["cpu_s"] for cost in costs) / case.images * 1000,
        "peak MB": max(cost["peak_mb"] for cost in costs),
    }


def main(quick: bool) -> None:
    table = Table(title=f"images per second, median of {1 if quick else ROUNDS}")
    names = ("", "storescp +B", "Orthanc", "ours", "ours / storescp", "ours / Orthanc", "disk alone", "CPU ms", "MB")
    for column in names:
        table.add_column(column, justify="right")
    figures: dict[str, Any] = {"load": os.getloadavg()[0]}
    for case in CASES[:2] if quick else CASES:
        found = measure(case, 1 if quick else ROUNDS)
        mine, theirs, other = found["ours"], found["storescp"], found["orthanc"]
        row = (theirs, other, mine, mine / theirs, mine / other, found["disk alone"])
        cost = found["CPU ms an image"], found["peak MB"]
        table.add_row(
            case.name, *(f"{each:.{2 if each < 20 else 0}f}" for each in row), *(f"{each:.1f}" for each in cost)
        )
        figures |= {f"{case.name}: {what}": each for what, each in found.items()}
        figures |= {f"{case.name}: ours / storescp": mine / theirs, f"{case.name}: ours / Orthanc": mine / other}
    Console(width=160).print(table)
    if not quick:
        record("receive", figures)


if __name__ == "__main__":
    main("--quick" in sys.argv)
