"""How fast does the listener take in a CT series, durably, beside DCMTK's storescp, which does not wait for the disk?

    python -m tests.bench.receive            300 images of 512 KiB over 1 and over 4 associations, three rounds

The sender is DCMTK's storescu each time. Ours runs in a process of its own and commits a row to SQLite for each image,
as the node does. "disk alone" is the same promise without any network: write, fsync, rename, fsync of the folder and
the row, one after the other. Every figure is the median of the rounds; one line of JSON is added to results.jsonl.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog
from pydicom.uid import UID
from rich.console import Console
from rich.table import Table

from pacs_node.receive.part10 import decode
from pacs_node.receive.scp import Listener, ListenerSettings
from pacs_node.receive.spool import ReceivedInstance, Spool
from pacs_node.records import Instance
from tests.bench.record import record
from tests.factories import ct_series

IMAGES, ROUNDS, ASSOCIATIONS = 300, 3, (1, 4)
PROGRAMS = "/usr/bin"  # DCMTK's; pynetdicom has programs of the same names
QUICK = {**os.environ, "TCP_NODELAY": "1"}


def make_images(folder: Path) -> list[Path]:
    """A CT series of 512 x 512 images in 16 bits; one folder for each of four senders."""
    (image,) = ct_series(shape=(1, 512, 512))
    prefix, series = image.SeriesInstanceUID[:50].rstrip("."), []
    for number in range(IMAGES):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(f"{prefix}.{number + 1}")
        image.InstanceNumber = number + 1
        path = folder / str(number % 4) / f"{number:03d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(path, enforce_file_format=True)
        series.append(path)
    return series


class Rows:
    """A table of instances, committed one by one."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("CREATE TABLE instance (uid TEXT PRIMARY KEY, series TEXT, path TEXT, sha256 TEXT)")
        self._one_at_a_time = threading.Lock()

    def commit(self, instance: Instance) -> None:
        row = (instance.sop_instance_uid, instance.series_uid, str(instance.path), instance.sha256)
        with self._one_at_a_time:
            self._database.execute("INSERT INTO instance VALUES (?, ?, ?, ?)", row)


def serve(folder: Path, told: Connection) -> None:
    """Our listener, until told to stop; then says what it cost."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=_silent())
    settings = ListenerSettings(
        "NODE",
        "127.0.0.1",
        0,
        frozenset({"STORESCU"}),
        max_associations=20,
        max_pdu=1 << 20,
        network_timeout_s=60,
        acse_timeout_s=30,
        dimse_timeout_s=30,
    )
    spool, rows = Spool(folder / "spool", keep_free_gb=0), Rows(folder / "rows.sqlite")
    listener = Listener(settings, spool, rows.commit, lambda end: None, lambda *event: None, lambda: datetime.now(UTC))
    listener.start()
    before = resource.getrusage(resource.RUSAGE_SELF)
    told.send(listener.port)
    told.recv()
    listener.stop(drain_s=5)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    (peak_kb,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    told.send({"stored": sum(1 for _ in spool.scan()), "cpu_s": cpu_s, "peak_mb": int(peak_kb) / 1024})


def _silent() -> Any:
    return structlog.make_filtering_bound_logger(50)


@contextmanager
def ours(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(port, what it cost: filled in at the end)."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, there))
    process.start()
    cost: dict[str, float] = {}
    yield here.recv(), cost
    here.send("stop")
    cost.update(here.recv())
    process.join()
    assert cost["stored"] == IMAGES, cost


@contextmanager
def storescp(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    process = subprocess.Popen([f"{PROGRAMS}/storescp", "--fork", "+B", "-od", str(folder), str(port)], env=QUICK)
    echo = [f"{PROGRAMS}/echoscu", "127.0.0.1", str(port)]
    while subprocess.run(echo, env=QUICK, capture_output=True, check=False).returncode:
        time.sleep(0.05)
    yield port, {}
    process.kill()
    process.wait()
    assert len(list(folder.iterdir())) == IMAGES


def seconds_to_send(source: Path, port: int, associations: int) -> float:
    """All images, by as many storescu at a time as there are associations."""
    folders = [[str(source)]] if associations == 1 else [[str(source / str(number))] for number in range(associations)]
    began = time.perf_counter()
    command = [f"{PROGRAMS}/storescu", "-R", "+sd", "+r", "-aec", "NODE", "127.0.0.1", str(port)]
    senders = [subprocess.Popen([*command, *each], env=QUICK) for each in folders]
    assert [sender.wait() for sender in senders] == [0] * associations
    return time.perf_counter() - began


def seconds_on_disk_alone(images: list[Path], folder: Path) -> float:
    spool, rows = Spool(folder / "spool", keep_free_gb=0), Rows(folder / "rows.sqlite")
    arrivals = []
    for path in images:
        content = path.read_bytes()
        head = decode(content[:4096])
        uids = head.sop_class_uid, head.sop_instance_uid, head.transfer_syntax_uid
        arrivals.append(ReceivedInstance(*uids, memoryview(content)[head.size :], "a", "STORESCU", datetime.now(UTC)))
    began = time.perf_counter()
    for arrival in arrivals:
        rows.commit(spool.keep(arrival).instance)
    return time.perf_counter() - began


def main() -> None:
    rates: dict[str, list[float]] = {}
    costs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        images = make_images(base / "images")

        def fresh(measure: Callable[[Path], float], what: str) -> None:
            folder = base / "fresh"
            folder.mkdir()
            rates.setdefault(what, []).append(IMAGES / measure(folder))
            shutil.rmtree(folder)

        for _ in range(ROUNDS):
            fresh(lambda folder: seconds_on_disk_alone(images, folder), "disk alone")
            for associations in ASSOCIATIONS:
                for server in (storescp, ours):

                    def send(folder: Path, server: Any = server, associations: int = associations) -> float:
                        with server(folder) as (port, cost):
                            seconds = seconds_to_send(base / "images", port, associations)
                        costs.extend([cost] if cost else [])
                        return seconds

                    fresh(send, f"{server.__name__} {associations}")
    report({what: statistics.median(each) for what, each in rates.items()}, costs)


def report(rate: dict[str, float], costs: list[dict[str, float]]) -> None:
    table = Table(title=f"{IMAGES} CT images of 512 KiB, images per second, median of {ROUNDS}")
    for column in ("associations", "storescp +B", "ours", "ours / storescp", "disk alone", "ours / disk alone"):
        table.add_column(column, justify="right")
    for associations in ASSOCIATIONS:
        theirs, mine, disk = rate[f"storescp {associations}"], rate[f"ours {associations}"], rate["disk alone"]
        row = (f"{theirs:.0f}", f"{mine:.0f}", f"{mine / theirs:.2f}", f"{disk:.0f}", f"{mine / disk:.2f}")
        table.add_row(str(associations), *row)
    cpu_ms = statistics.median(cost["cpu_s"] for cost in costs) / IMAGES * 1000
    peak_mb = max(cost["peak_mb"] for cost in costs)
    Console().print(table, f"ours: {cpu_ms:.1f} ms of CPU an image, {peak_mb:.0f} MB at most")
    figures: dict[str, Any] = {f"{what}, images per second": each for what, each in rate.items()}
    for associations in ASSOCIATIONS:
        mine = rate[f"ours {associations}"]
        figures[f"ours / storescp, {associations}"] = mine / rate[f"storescp {associations}"]
        figures[f"ours / disk alone, {associations}"] = mine / rate["disk alone"]
    load = os.getloadavg()[0]
    record("receive", {**figures, "CPU ms per image": cpu_ms, "peak MB": round(peak_mb), "load": load})


if __name__ == "__main__":
    main()
