"""The ledger on a real PostgreSQL: every promise of tests/unit/node/test_ledger.py, and several processes at once."""

from __future__ import annotations

import ctypes
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa

from config import load
from models import catalogue
from models.phantoms import breast_ultrasound
from pacs_node import jobs, settings_file
from pacs_node.backup import Images, back_up, restore
from pacs_node.errors import Await, CannotStart, GiveUp, SettingsRefused
from pacs_node.ledger import Ledger, engine
from pacs_node.ledger.tables import metadata
from pacs_node.node import Node
from pacs_node.records import Job, Package
from tests.collector import Collector
from tests.fault.test_standing import Watched, every_job_ends
from tests.harness import ROOT, SENDER_AND_SERVER, NodeProcess, Postgres, free_port, storescu, wait_for
from tests.unit.node import test_lists as lists
from tests.unit.node.test_ledger import *  # noqa: F403  the same tests, on the ledger below
from tests.unit.node.test_lists import (  # noqa: F401  and these
    KINDS,
    fill,
    made,
    test_turnaround_ends_where_the_last_results_have_arrived,
)
from tests.unit.node.test_notify import KEYS, WRONG
from tests.unit.node.test_notify import Watched as Told
from tests.unit.node.test_retention import Story
from tests.unit.node.test_traces import TOML, Traced, facts, is_whole, root
from tests.unit.node.test_turns import (  # noqa: F401  and these
    test_a_single_series_does_not_wait_for_the_thousands_of_another,
    test_several_workers_begin_every_job,
    test_the_ledger_keeps_the_same_order,
    test_turns_that_nobody_takes_are_given_again,
)
from tests.unit.receive.conftest import data_set_of

NUMBER = count(1)
PROCESSES = 3


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def migrated(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with all tables and no rows: copied in a fraction of the time of its migrations."""
    ledger = Ledger(postgres.database("migrated"), tmp_path_factory.mktemp("migrated"))
    ledger.migrate()
    ledger.close()
    return "migrated"


@pytest.fixture
def ledger(postgres: Postgres, migrated: str, tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(postgres.database(f"ledger{next(NUMBER)}", like=migrated), tmp_path)
    ledger.migrate()
    yield ledger
    ledger.close()


@pytest.fixture
def fresh(ledger: Ledger) -> Ledger:
    return ledger


def test_a_list_is_searched_and_counted_there_too(ledger: Ledger) -> None:
    rows = made()
    fill(ledger, rows)
    for wanted, holds in KINDS:
        for sort in ("newest", "oldest", "slowest"):
            lists.test_all_that_are_wanted_come_once_page_by_page_in_their_order(ledger, rows, wanted, holds, sort)
    assert {each["kind"] for each in ledger.backlog()} == {"infer", "send"}
    assert ledger.last_received().keys() == {"CT1", "CT2", "US_1"}
    assert sum(map(len, ledger.came_since(rows[0]["first_arrival"].replace(year=2000)).values())) == len(rows)
    assert ledger.stamp() == ledger.stamp()
    assert ledger.refused_of_peers() == {}
    assert ledger.refusals_by_sender(5) == []
    assert abs(ledger.clock_ahead_s() or 0.0) < 60, "it is the clock of this machine"


def test_what_was_told_is_noted_there_too(ledger: Ledger) -> None:
    told = Told(ledger)
    [(title, _)] = told.look(replace(WRONG, silent={}))
    assert title == f"pacs-node AI: {len(KEYS) - 1} things to see to"
    told.start()
    assert told.look(replace(WRONG, silent={})) == []
    assert ledger.failing_sends(WRONG.now) == []
    assert ledger.inferred_since(WRONG.now, WRONG.now) == []


def test_three_processes_start_at_once_on_an_empty_database(postgres: Postgres, tmp_path: Path) -> None:
    """All of them have the schema then, and none has seen it half made."""
    url = postgres.database("empty")
    gate = tmp_path / "go"
    code = (
        "import alembic.command, pathlib, time\n"
        "from pacs_node.ledger import Ledger\n"
        f"gate = pathlib.Path({str(gate)!r})\n"
        f"ledger = Ledger({url!r}, gate.parent)\n"
        "ledger.engine.connect().close()\n"
        "while not gate.exists(): time.sleep(0.001)\n"
        "ledger.migrate(); print(ledger.counts())"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) for _ in range(PROCESSES)]
    time.sleep(4)  # until all of them wait there
    gate.touch()
    ended = [one.communicate(timeout=120) for one in started]
    assert [one.returncode for one in started] == [0] * PROCESSES, ended
    engine = sa.create_engine(url)
    there = sa.inspect(engine)
    assert set(metadata.tables) <= set(there.get_table_names())
    engine.dispose()


SETTINGS = (
    SENDER_AND_SERVER
    + """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 1.0
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast ultrasound"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["results"]
"""
)


def test_two_workers_share_the_jobs_and_one_alone_ends_them(postgres: Postgres, tmp_path: Path) -> None:
    """A listener without work, two workers, one of which is killed: every series has its result, and each image sent
    twice is one image."""
    node = NodeProcess(tmp_path / "node", SETTINGS.format(url=postgres.database("shared")))
    command = [sys.executable, "-m", "pacs_node.cli", "worker", "--config", str(node.config)]
    workers = []
    try:
        with node.start("--no-work"), (tmp_path / "workers.log").open("wb") as log:
            workers += [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for _ in range(2)]

            def answered(number: int) -> str:
                folder = tmp_path / f"us{number}"
                sent = breast_ultrasound(folder, seed=number, images=2, patient_id=f"PHANTOM-PG-{number}")
                for _ in range(2):
                    storescu(node, tmp_path / f"us{number}")
                uid = str(pydicom.dcmread(sent.files[0], stop_before_pixels=True).SeriesInstanceUID)
                why = f"a result of series {number}\n{node.log()}\n{(tmp_path / 'workers.log').read_text()[-3000:]}"
                facts = wait_for(lambda: node.finished(uid), 180, why)
                assert [job["state"] for job in facts["jobs"]] == ["done"] * len(facts["jobs"]), facts["jobs"]
                assert facts["instances"] == 2
                return uid

            first = [answered(1), answered(2)]
            workers[0].kill()
            workers[0].wait()
            first.append(answered(3))
            studies = {str(pydicom.dcmread(path).StudyInstanceUID) for path in (tmp_path / "node").rglob("*SR*.dcm")}
            assert len(studies) == len(first)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_no_job_stands_still_there_either(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least of all one whose worker was killed between the engine's row and ours."""
    monkeypatch.setattr(jobs, "BEGIN_WITHIN_S", 0.5)
    watched = Watched(tmp_path, postgres.database("standing"))
    try:
        every_job_ends(watched)
    finally:
        watched.stop()


@pytest.fixture
def kept(postgres: Postgres, tmp_path: Path) -> Iterator[Story]:
    """A node whose ledger is on the server: one series has arrived."""
    database = f'[database]\nurl = "{postgres.database(f"kept{next(NUMBER)}")}"'
    story = Story(tmp_path, settings=f'without_proof = ["failed"]\n{database}')
    story.image()
    story.image()
    story.arrive()
    yield story
    story.node.stop()


def test_retention_deletes_there_too_and_what_comes_again_is_new(kept: Story) -> None:
    kept.later()
    assert len(kept.run()) == 1
    assert kept.kept_files() == []
    assert kept.series()["state"] == "deleted"
    assert kept.faults() == kept.node.ledger.deletions() == []
    kept.image()
    [job] = kept.close()
    assert job.revision == 2


def test_a_retry_and_a_deletion_at_the_same_time_are_never_both(kept: Story) -> None:
    """The series waits for whoever has its row: then the job is open, and it stays."""
    with kept.node.ledger._begin() as db:
        db.execute(sa.text("UPDATE job SET state = 'failed' WHERE kind = 'send'"))
    send = next(job["id"] for job in kept.series()["jobs"] if job["kind"] == "send")
    kept.later()
    gone: list[object] = []
    with kept.node.ledger.engine.begin() as db:
        db.execute(sa.text("SELECT state FROM series FOR UPDATE"))
        deleting = threading.Thread(target=lambda: gone.extend(kept.run()))
        deleting.start()
        time.sleep(0.5)
        db.execute(sa.text("UPDATE job SET state = 'queued' WHERE id = :id"), {"id": send})
    deleting.join()
    assert gone == []
    assert kept.series()["state"] == "closed"


def test_a_backup_and_a_restore_go_by_its_own_programs(postgres: Postgres, kept: Story, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    back_up(kept.node.config, kept.file, copy, Images.copy, kept.now())
    assert (copy / "database" / "ledger.pgdump").stat().st_size > 1000
    (tmp_path / "second").mkdir()
    text = kept.file.read_text().replace(kept.node.config.database.url, postgres.database("second"))
    (tmp_path / "second" / "node.toml").write_text(text)
    settings = load(tmp_path / "second" / "node.toml", catalogue())
    restore(settings, copy, kept.now())
    node = Node(settings, now=kept.now)
    assert node.ledger.series(kept.uid) == kept.node.ledger.series(kept.uid)
    there, here = (ledger.instances(kept.uid) for ledger in (node.ledger, kept.node.ledger))
    assert [data_set_of(each) for each in there] == [data_set_of(each) for each in here]
    assert all(each.path.is_relative_to(tmp_path / "second") for each in there)
    node.stop()
    shutil.rmtree(settings.node.data_dir)
    with pytest.raises(CannotStart, match="holds a node's tables: name an empty one"):
        restore(settings, copy, kept.now())


def test_without_pg_dump_the_command_is_told_and_its_file_is_taken(
    kept: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        with pytest.raises(CannotStart, match=r"no program 'pg_dump' here") as told:
            back_up(kept.node.config, kept.file, tmp_path / "copy", Images.copy, kept.now())
    command = str(told.value).splitlines()[-1]
    subprocess.run(["env", *command.split()], check=True, timeout=60)
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        back_up(kept.node.config, kept.file, tmp_path / "copy", Images.copy, kept.now())
    assert (tmp_path / "copy" / "manifest.json").exists()


def test_the_life_of_a_series_is_told_as_sqlite_tells_it(postgres: Postgres, tmp_path: Path) -> None:
    database = f'[database]\nurl = "{postgres.database("traces")}"\n'
    with Collector() as collector:
        bench = Traced(tmp_path, collector.url, TOML.replace("[[peer]]", f"{database}[[peer]]", 1))
        series = bench.ended("us", 2)
        for _ in range(2):
            bench.look_later()
        assert bench.node.flow.rerun(series.series_uid) is None
        bench.run_all()
        bench.look_later()
        bench.node.stop()
        told = list(collector.traces().values())
    assert len(told) == len(collector.bodies) == 2
    assert all(is_whole(spans) for spans in told)
    assert [facts(root(spans))["images"] for spans in told] == [2, 0]
    assert facts(root(told[0]))["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("us*.dcm"))


FOLLOWED = (
    SENDER_AND_SERVER
    + """
[node]
data_dir = "data"
dicom_host = "127.0.0.1"
dicom_port = {port}
[receive]
keep_free_gb = 0.0
"""
)


@pytest.fixture(scope="module")
def machines(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """One that receives, a worker that follows it, and one that goes by its own file."""
    url = postgres.database("followed")
    nodes = []
    for name, own in (("receives", ""), ("follows", ""), ("stays", "[jobs]\nfollow = false\n")):
        folder = tmp_path_factory.mktemp(name)
        file = folder / "node.toml"
        file.write_text(own + FOLLOWED.format(url=url, port=free_port()))
        nodes.append(Node(load(file, catalogue()), file=file))
        nodes[-1].start(listen=name == "receives", work=False, web=False)
    yield nodes
    for node in nodes:
        node.stop()


def test_workers_follow_what_changes_where_images_come_in(machines: list[Node]) -> None:
    receives, follows, stays = machines
    nothing = Package("job", (), {}, lambda: True, "1.2")
    with pytest.raises(GiveUp, match="have no peer 'archive'"):
        follows.stages.deliver("archive", nothing)
    live, worker = receives.settings, follows.settings
    assert live is not None
    assert worker is not None
    archive = {"name": "archive", "folder": "out"}
    route = {"name": "new", "match": {"Modality": "US"}, "pipeline": "breast-us", "send_to": ["archive"]}
    live.path.write_text(settings_file.with_entry(live.text(), "peer", None, archive))
    live.path.write_text(settings_file.with_entry(live.text(), "route", None, route))
    assert live.reload("ana")
    assert follows.stages.deliver("archive", nothing) == [], "asked for, and so it looks"
    assert [each.name for each in follows.config.routes] == ["new"]
    assert follows.config.node == load(worker.path, catalogue()).node, "the rest is its own"
    assert follows.config.node.data_dir != receives.config.node.data_dir
    # its own file is as it was, and taken up again changes nothing of what it follows
    assert "archive" not in worker.text()
    assert not worker.reload()
    assert "archive" in follows.stages.destinations
    # who goes by his own file lets the job wait for a machine that knows
    with pytest.raises(Await, match=r"waits for a machine that knows the peer 'archive': .* has settings of its own"):
        stays.stages.deliver("archive", nothing)
    assert not stays.config.routes
    # by itself, too, and what is deleted there fails here, as there
    live.path.write_text(settings_file.without_entry(live.text(), "route", "new"))
    live.path.write_text(settings_file.with_entry(live.text(), "peer", "archive", {**archive, "name": "second"}))
    with pytest.raises(SettingsRefused):
        live.reload("ana")  # no route is left: that may be a file cut off
    live.path.write_text(settings_file.with_entry(live.text(), "route", None, {**route, "send_to": ["second"]}))
    assert live.reload("ana")
    wait_for(lambda: "second" in follows.stages.destinations, 60, "the worker to follow")
    with pytest.raises(GiveUp, match="have no peer 'archive'"):
        follows.stages.deliver("archive", nothing)


def test_what_a_worker_cannot_have_leaves_it_as_it_is_and_its_jobs_wait(machines: list[Node], tmp_path: Path) -> None:
    receives, follows, _ = machines
    live, worker = receives.settings, follows.settings
    assert live is not None
    assert worker is not None
    url = "https://pacs.example/dicom-web"
    secured = {"name": "secured", "dicomweb_url": url, "dicomweb_token": "${FOLLOWED_TOKEN}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLLOWED_TOKEN", "of this machine alone")
        live.path.write_text(settings_file.with_entry(live.text(), "peer", None, secured))
        with worker._one_at_a_time:  # the loop: this process has the environment of both
            assert live.reload("ana")
            patch.delenv("FOLLOWED_TOKEN")
    why = worker.follow()
    assert why is not None
    assert "FOLLOWED_TOKEN" in why
    assert worker.not_followed == why
    with pytest.raises(Await, match="knows the peer 'secured'"):
        follows.stages.deliver("secured", Package("job", (), {}, lambda: True, "1.2"))
    job = Job("1", "infer", "1.2.3", "1.2", 1, "not-installed", "new", 5, datetime.now(UTC))
    with pytest.raises(Await, match="waits for a machine that has the pipeline 'not-installed'"):
        follows.stages.infer(job, [], [], lambda fraction, text: None)


class Vanishing:
    """The way to a server that stands in a machine of its own. When that loses power, nothing is acknowledged any more,
    and nobody says that a connection has ended: a filter of the kernel drops whatever comes."""

    DROP = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET, no byte of it: socket(7), SO_ATTACH_FILTER

    def __init__(self, port: int) -> None:
        self.server = port
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = self.door.getsockname()[1]
        self.connected: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.door.accept()
                server = socket.create_connection(("127.0.0.1", self.server))
                self.connected.append(client)
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass_on(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError), other:
            while some := one.recv(1 << 16):
                other.sendall(some)

    def vanish(self) -> None:
        program = ctypes.create_string_buffer(self.DROP)
        for each in (*self.connected, self.door):
            with suppress(OSError):  # it has been closed
                each.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", 1, ctypes.addressof(program)))

    def come_back(self) -> None:
        """Started again: it knows nothing of its former connections."""
        self.door.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER
        for each in self.connected:
            each.close()
        self.connected.clear()


# Of the ledger and of the job engine: asked anew, while it waits for its rows, at the end of a transaction
MOMENTS = {
    "idle": lambda db, vanish: None,
    "in a transaction": lambda db, vanish: db.execute(sa.text("CREATE TABLE one (two int)")),
    "while it computes": lambda db, vanish: (
        threading.Timer(0.5, vanish).start(),
        db.execute(sa.text("SELECT pg_sleep(600)")),
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("make", [engine._engine, engine.engine_for_jobs])
def test_nobody_waits_long_for_a_database_whose_machine_is_gone(
    postgres: Postgres, make: Callable[[str], sa.Engine], moment: str
) -> None:
    """TCP alone goes on for a quarter of an hour (tcp_retries2), and senders wait with it. There again, it is used."""
    way = Vanishing(postgres.port)
    name = postgres.database(f"vanished{next(NUMBER)}").rpartition("/")[2]
    database = make(f"postgresql+psycopg://node@127.0.0.1:{way.port}/{name}")
    ended: list[str] = []

    def ask() -> None:
        try:
            with database.begin() as db:
                MOMENTS[moment](db, way.vanish)
                way.vanish()
                db.execute(sa.text("SELECT 1"))
        except sa.exc.OperationalError as error:
            ended.append(type(error).__name__)

    with database.begin() as db:
        db.execute(sa.text("SELECT 1"))
    asks = threading.Thread(target=ask, daemon=True)
    asks.start()
    asks.join(60)  # of the 924 s that Linux would take
    assert ended == ["OperationalError"]
    with pytest.raises(sa.exc.OperationalError), database.begin():
        pass
    way.come_back()
    with database.begin() as db:
        assert db.scalar(sa.text("SELECT 1")) == 1
    database.dispose()
    way.door.close()
