"""Several processes on one PostgreSQL, while workers die or stand still and the database goes away and comes back."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import pydicom
import pytest
import sqlalchemy as sa
from pynetdicom import AE, evt

from models.phantoms import breast_ultrasound
from pacs_node.ledger import Ledger
from pacs_node.ledger.tables import job_table
from pacs_node.pack import is_there
from tests.harness import (
    ROOT,
    SENDER_AND_SERVER,
    NodeProcess,
    ObjectServer,
    Postgres,
    Receiver,
    free_port,
    storescu,
    wait_for,
)

SERIES = int(os.environ.get("MACHINES_SERIES", "6"))  # `make machines`: 40
AWAY_S = float(os.environ.get("MACHINES_AWAY_S", "3"))  # ... 10
PATIENCE_S = 240  # with a slow machine
pytestmark = pytest.mark.timeout(900)
LEASE_S = 3.0
SETTINGS = (
    SENDER_AND_SERVER
    + """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 1.0
[jobs]
send_backoff_s = 0.5
send_backoff_max_s = 2.0
lease_s = {lease_s}
sweep_s = 0.5
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
confirm = "none"
key_images = "all"
[[route]]
name = "breast ultrasound"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["pacs"]
"""
)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("server")) as server:
        yield server


class Worker:
    """`pacs-node worker` in a process of its own."""

    def __init__(self, config: Path, log: Path) -> None:
        self.log_file = log
        command = [sys.executable, "-m", "pacs_node.cli", "worker", "--config", str(config)]
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)

    def is_named(self, executor: str | None) -> bool:
        """Whether this is the worker that a job's row names."""
        return executor is not None and f"-{self.process.pid}-" in executor

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        return self.log_file.read_text()[-3000:]


class Sender:
    """A modality that sends each image until it is stored, and remembers what it was told meanwhile."""

    def __init__(self, node: NodeProcess, series: list[list[Path]]) -> None:
        self.node, self.series = node, series
        self.stored: set[str] = set()
        self.refusals: list[tuple[int, str]] = []  # status and Error Comment
        self.thread = threading.Thread(target=self.send)

    def send(self) -> None:
        for files in self.series:
            left = [pydicom.dcmread(file) for file in files]
            while left:
                left = self._send(left)
                time.sleep(0.2)

    def _send(self, images: list[pydicom.Dataset]) -> list[pydicom.Dataset]:
        ae = AE("SENDER")
        ae.add_requested_context(images[0].SOPClassUID, images[0].file_meta.TransferSyntaxUID)
        to = ae.associate("127.0.0.1", self.node.dicom_port, ae_title=self.node.aet)
        left = []
        for image in images:
            answer = to.send_c_store(image) if to.is_established else pydicom.Dataset()
            if answer.get("Status") == 0:
                self.stored.add(str(image.SOPInstanceUID))
            else:
                left.append(image)
                if "Status" in answer:
                    self.refusals.append((answer.Status, answer.get("ErrorComment", "")))
        to.release()
        return left


class Machines:
    """A listener without work, two workers and a PACS, around one database."""

    def __init__(self, folder: Path, url: str, pacs: Receiver | None = None) -> None:
        self.folder, self.pacs = folder, pacs or Receiver()
        self.node = NodeProcess(folder / "node", SETTINGS.format(url=url, port=self.pacs.port, lease_s=LEASE_S))
        self.workers: list[Worker] = []
        self.ledger = Ledger(url, folder.resolve() / "node" / "data")
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        """All at once, on an empty database."""
        self._ends.enter_context(self.pacs)
        self._ends.enter_context(self.node.start("--no-work", wait=False))
        for _ in range(2):
            self.start_worker()
        wait_for(self.node.healthy, PATIENCE_S, f"the listener:\n{self.node.log()}")
        wait_for(lambda: len(self.ledger.living()) == 2, PATIENCE_S, f"two workers:\n{self.said()}")
        return self

    def start_worker(self) -> None:
        log = self.folder / f"worker{len(self.workers)}.log"
        self.workers.append(self._ends.enter_context(Worker(self.node.config, log)))

    def __exit__(self, *_: object) -> None:
        self._ends.close()
        self.ledger.close()

    def said(self) -> str:
        return "\n".join([self.node.log(), *(worker.log() for worker in self.workers)])

    def running(self, kind: str) -> list[tuple[str, str, int]]:
        """Jobs that run now: id, executor, generation."""
        return [(job.id, job.executor or "", job.generation) for job in self.ledger.running_jobs() if job.kind == kind]

    def at_work(self) -> tuple[Worker, str] | None:
        """A worker that has an inference in hand, and which."""
        pairs = [(each, job) for job, name, _ in self.running("infer") for each in self.workers if each.is_named(name)]
        return pairs[0] if pairs else None

    def state(self, job_id: str) -> str:
        job = self.ledger.job(job_id)
        return job.state if job is not None else ""

    def jobs(self) -> list[dict[str, Any]]:
        with self.ledger.engine.begin() as db:
            return [dict(row) for row in db.execute(sa.select(job_table)).mappings()]

    def all_ended(self, series: int) -> bool:
        jobs = self.jobs()
        sends = [job for job in jobs if job["kind"] == "send"]
        return len(sends) == series and all(job["state"] not in ("queued", "running", "waiting") for job in jobs)


def phantoms(folder: Path, first: int, number: int) -> list[list[Path]]:
    """Series of two images each."""
    return [
        breast_ultrasound(folder / f"us{each}", seed=each, images=2, patient_id=f"PHANTOM-PG-{each}").files
        for each in range(first, first + number)
    ]


def test_every_series_is_delivered_once_while_workers_and_the_database_go_and_come(
    postgres: Postgres, tmp_path: Path
) -> None:
    half = SERIES // 2
    early, late = phantoms(tmp_path, 0, half), phantoms(tmp_path, half, SERIES - half)
    with Machines(tmp_path, postgres.database("machines")) as machines:
        before, meanwhile = Sender(machines.node, early), Sender(machines.node, late)

        # one stands still for longer than its lease, with a job in hand, and goes on later
        before.thread.start()
        stopped, held = wait_for(machines.at_work, PATIENCE_S, "an inference")
        stopped.signal(signal.SIGSTOP)
        wait_for(lambda: machines.state(held) == "done", PATIENCE_S, f"its job, taken over:\n{machines.said()}")
        stopped.signal(signal.SIGCONT)

        # the database goes away, while images come, and comes back
        postgres.stop()
        meanwhile.thread.start()
        time.sleep(AWAY_S)
        postgres.start()

        # one dies with a job in hand
        killed, _ = wait_for(machines.at_work, PATIENCE_S, "another inference")
        killed.signal(signal.SIGKILL)
        for sender in (before, meanwhile):
            sender.thread.join(PATIENCE_S)
            assert not sender.thread.is_alive(), machines.said()
        wait_for(
            lambda: machines.all_ended(SERIES), PATIENCE_S, f"the end of all:\n{machines.jobs()}\n{machines.said()}"
        )

        # no sender was refused; what was acknowledged is there
        assert meanwhile.refusals == []
        acknowledged = before.stored | meanwhile.stored
        kept = machines.ledger.kept_instances(sorted(acknowledged))
        assert {each.sop_instance_uid for each in kept} == acknowledged
        assert len(acknowledged) == 2 * SERIES
        assert all(is_there(each.stored) for each in kept)

        # every series was worked on and delivered once
        jobs = machines.jobs()
        assert {job["state"] for job in jobs} == {"done"}, jobs
        assert Counter(job["kind"] for job in jobs) == {"infer": SERIES, "send": SERIES}
        sent = {job["parent"]: job for job in jobs if job["kind"] == "send"}
        reports = Counter(str(image.StudyInstanceUID) for image in machines.pacs.of("SR"))
        assert len(reports) == SERIES
        again = {job["study_uid"] for job in sent.values() if job["generation"] > 1 or job["attempt"] > 1}
        assert {study for study, number in reports.items() if number > 1} <= again, "only an attempt cut short repeats"
        assert len({str(image.SOPInstanceUID) for image in machines.pacs.of("SR")}) == SERIES, "with one object"
        wait_for(machines.node.healthy, PATIENCE_S, f"no trouble left:\n{machines.node.log()}")
        devices = httpx.get(f"http://127.0.0.1:{machines.node.web_port}/api/system", timeout=30).json()["devices"]
        assert socket.gethostname() in {each["machine"] for each in devices}, "the page has those of the workers"


class Holding(Receiver):
    """A PACS that answers its first C-STORE when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.answer = threading.Event(), threading.Event()

    def _store(self, event: evt.Event) -> int:
        status = super()._store(event)
        if not self.reached.is_set():
            self.reached.set()
            assert self.answer.wait(PATIENCE_S)
        return status


def test_a_worker_that_stood_still_sends_nothing_that_another_has_taken_over(
    postgres: Postgres, tmp_path: Path
) -> None:
    """In the middle of a package, with its association open."""
    with Machines(tmp_path, postgres.database("stopped"), pacs := Holding()) as machines:
        Sender(machines.node, phantoms(tmp_path, 0, 1)).send()
        assert pacs.reached.wait(PATIENCE_S), machines.said()
        [(job, executor, _)] = machines.running("send")
        [stopped] = [worker for worker in machines.workers if worker.is_named(executor)]
        stopped.signal(signal.SIGSTOP)
        pacs.answer.set()
        wait_for(lambda: machines.state(job) == "done", PATIENCE_S, f"its job, taken over:\n{machines.said()}")
        assert machines.ledger.job(job).generation == 2
        before = Counter(str(image.SOPInstanceUID) for image in pacs.arrivals)
        assert len(before) > 1
        assert sorted(before.values())[-2:] == [1, 2], "the first object was stored before it stood still"
        stopped.signal(signal.SIGCONT)
        wait_for(lambda: "taken over while it was sent" in stopped.log(), PATIENCE_S, f"its end:\n{machines.said()}")
        assert Counter(str(image.SOPInstanceUID) for image in pacs.arrivals) == before


def test_a_second_machine_that_receives_into_the_same_database_is_told_so(postgres: Postgres, tmp_path: Path) -> None:
    """It would close series whose images it does not have."""
    settings = SETTINGS.format(url=postgres.database("two"), port=free_port(), lease_s=LEASE_S)
    with NodeProcess(tmp_path / "one", settings) as one, NodeProcess(tmp_path / "two", settings) as two:
        one.start("--no-work", wait=False)
        wait_for(one.healthy, PATIENCE_S, one.log())
        two.start("--no-work", wait=False)
        assert two.process.wait(PATIENCE_S) == 1
        said = "another data folder receives into this database: give this one a database of its own"
        assert said in two.log()
        assert one.terminate(PATIENCE_S) == 0
        two.start("--no-work", wait=False)  # it has said that it is gone
        wait_for(two.healthy, PATIENCE_S, two.log())


def test_without_its_database_nothing_starts_and_it_is_said_why(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.database("away").replace("node@", "node:secret@")
    node = NodeProcess(tmp_path / "node", SETTINGS.format(url=url, port=free_port(), lease_s=LEASE_S))
    postgres.stop()
    try:
        with node.start(wait=False), Worker(node.config, tmp_path / "worker.log") as worker:
            assert node.process.wait(PATIENCE_S) == 1
            assert worker.process.wait(PATIENCE_S) == 1
    finally:
        postgres.start()
    for said in (node.log(), worker.log()):
        assert "start the database, or correct url in [database]" in said
        assert "Traceback" not in said
        assert "secret" not in said


# ---------------------------------------------------------------------- docs/scale.md, with a bucket between machines

DOCUMENT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
QUICK = """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 1.0
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", DOCUMENT)


class Machine:
    """A folder with the document's settings, and one of its commands."""

    def __init__(self, folder: Path, settings: str, secret: str) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700)
        for name, text in (("node.toml", settings), ("store.key", f"{secret}\n")):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(text)

    def start(self, command: str) -> subprocess.Popen[bytes]:
        words = command.split()
        assert words[0] == "pacs-node"
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "pacs_node.cli", *words[1:]],
                cwd=self.folder, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def log(self) -> str:
        return (self.folder / "log").read_text()[-4000:]

    def files(self) -> list[str]:
        data = self.folder / "data"
        return sorted(str(file.relative_to(data)) for file in data.rglob("*") if file.is_file())


def test_the_document_brings_up_machines_that_share_nothing_but_a_bucket(postgres: Postgres, tmp_path: Path) -> None:
    [settings], [check, serve, work] = blocks("toml"), [command.strip() for command in blocks("sh")]
    ports = free_port(), free_port()
    with ObjectServer(tmp_path) as store, Receiver("ORTHANC", commits=True) as pacs, ExitStack() as ends:
        for said, here in (
            ("postgresql+psycopg://node:secret@db.example/node", url := postgres.database("scale")),
            ("https://store.example:8333", store.url),
            ('host = "10.0.0.5"\nport = 4242', f'host = "127.0.0.1"\nport = {pacs.port}'),
            ('calls_from = ["10.0.0.5"]', 'calls_from = ["127.0.0.1"]'),
            ('data_dir = "data"\n', f'data_dir = "data"\ndicom_port = {ports[0]}\nweb_port = {ports[1]}\n'),
        ):
            assert settings.count(said) == 1, said
            settings = settings.replace(said, here)
        names = ("receiver", "worker1", "worker2")
        receiver, *workers = [Machine(tmp_path / name, settings + QUICK, store.SECRET) for name in names]
        checked = receiver.start(check)
        assert checked.wait(PATIENCE_S) == 0, receiver.log()
        assert "good" in receiver.log()

        for machine, command in ((receiver, serve), *((worker, work) for worker in workers)):
            process = machine.start(command)
            ends.callback(process.wait)
            ends.callback(process.kill)
        node = NodeProcess(tmp_path / "pages", "", aet="PACSNODE")  # whom to ask
        node.dicom_port, node.web_port = ports
        wait_for(node.healthy, PATIENCE_S, receiver.log())
        ledger = Ledger(url, tmp_path)
        ends.callback(ledger.close)
        wait_for(lambda: len(ledger.living()) == 2, PATIENCE_S, "\n".join(worker.log() for worker in workers))

        def sent(number: int) -> str:
            [files] = phantoms(tmp_path, number, 1)
            storescu(node, files[0].parent, calling="ORTHANC")
            return str(pydicom.dcmread(files[0]).SeriesInstanceUID)

        def delivered(uid: str) -> None:
            facts = wait_for(lambda: node.finished(uid), PATIENCE_S, f"the results of {uid}\n{receiver.log()}")
            assert {job["kind"]: job["state"] for job in facts["jobs"]} == dict.fromkeys(
                ("infer", "send", "confirm"), "done"
            ), facts["jobs"]

        for uid in [sent(0), sent(1)]:
            delivered(uid)
        store.stop()  # images are taken in all the same
        waits = sent(2)
        health = f"http://127.0.0.1:{ports[1]}/health"
        wait_for(lambda: "the store s3://images" in httpx.get(health).text, PATIENCE_S, "its trouble is said")
        assert node.series(waits)["state"] == "receiving"
        store.start()
        delivered(waits)
        reports = Counter(str(image.SOPInstanceUID) for image in pacs.of("SR"))
        assert (len(reports), set(reports.values())) == (3, {1})
        kept = {name.partition("/")[0] for worker in workers for name in worker.files()}
        assert kept <= {"inference", "audit"}, "nothing but what they measured of themselves, and who did what there"
        assert not [name for name in receiver.files() if name.startswith("results/")]
        assert not httpx.get(health).json()["reasons"]
