"""No question that is asked again and again reads a table that grows: every statement of a run, as SQLite plans it.

And none that only reads waits for who writes.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pydicom
import pytest
import sqlalchemy as sa

from config import load
from dicom_sr.findings import Findings
from models import catalogue
from pacs_node.ledger import Ledger
from pacs_node.node import Node
from tests.bench.rows import fill_series
from tests.factories import us_image
from tests.harness import free_port, storescu, wait_for
from tests.results import us_findings
from tests.standins import NoInference

GROWING = ("instance", "series", "association", "job", "event", "result", "receipt", "arrival", "edition",
           "commitment", "commitment_request", "refusal", "feedback",
           "place", "found", "patient_hash")  # fmt: skip
MAY_SCAN = {  # what begins so -> why
    "UPDATE instance SET path=substr(": "once, when a ledger of an earlier version is taken over",
    "UPDATE result SET path=substr(": "as above",
    "SELECT edition.job, edition.replaces, edition.objects FROM edition": "as above",
    "SELECT commitment_request.calling_ae, commitment_request.wanted FROM commitment_request": "as above",
    'SELECT instance.path, max(instance."offset" + instance.size)': "once, when the node starts",
    "SELECT series.series_uid FROM series": "by the index of the list, as far as its LIMIT",
    "SELECT DISTINCT series.sender, series.modality": "by the index of the senders alone",
    "SELECT series.sender, max(series.first_arrival)": "as above, for /metrics and the system page",
    "SELECT count(*) AS count_1 FROM series": "by the shortest index alone",
    "SELECT count(series.first_arrival) AS count_1 FROM series": "by the index of the list alone",
    "UPDATE series SET sender = coalesce": "once, when a ledger of an earlier version is taken over",
    "SELECT refusal.calling_ae": "there are at most 1000",
    "SELECT refusal.id": "backwards by its key, as far as its LIMIT",
    "SELECT series.state, count(*)": "by the index of the states alone: a few bytes for each series",
    "SELECT job.kind, job.state, count(*)": "by the index of the queues alone",
    "SELECT feedback.pipeline, feedback.version, feedback.kind, count(*)": "as above, for /feedback",
    "SELECT arrival.destination, arrival.arrived, arrival.how, count(*)": "by an index of its own, for /metrics",
}
MAY_GROW = {  # as above
    "SELECT job.series_uid, job.pipeline, job.options, job.facts": "once, when an earlier ledger is taken over",
}
OF_FEW = "USING INDEX ix_job_shadow"  # an index of a few rows alone
TOML = """
[node]
data_dir = "data"
dicom_host = "127.0.0.1"
dicom_port = {dicom}
web_port = {web}
[assemble]
quiet_s = 0.2
[receive]
keep_free_gb = 0.1
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["results"]
[[route]]
name = "next"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["results"]
shadow = true
needs = {{ series = [{{ Modality = "MR" }}], wait_minutes = 0.02, if_incomplete = "run" }}
"""


class Inference(NoInference):
    def run(self, pipeline: str, options: Mapping[str, Any], files: Sequence[Path], progress: Any) -> Findings:
        progress(0.5, "half")
        return us_findings([pydicom.dcmread(file, stop_before_pixels=True) for file in files])


class Asking:
    """A destination that knows of everything."""

    commits, query = False, "C-FIND"

    def find(self, sent: Sequence[Any]) -> set[str]:
        return {each.sop_instance_uid for each in sent}


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, made_once: Callable[[Ledger], None]
) -> Iterator[tuple[list[list[str]], Path]]:
    """Every transaction of a node that starts, receives, infers, sends, asks, and shows its pages: its statements, with
    their values; and the ledger."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "migrate", made_once)  # its statements, too
        yield run_of_a_node(tmp_path_factory.mktemp("plans"))


def run_of_a_node(folder: Path) -> tuple[list[list[str]], Path]:
    ports = {"dicom": free_port(), "web": free_port()}
    (folder / "node.toml").write_text(TOML.format(**ports))
    node = Node(load(folder / "node.toml", catalogue()), file=folder / "node.toml")
    node.stages.inference = Inference()  # type: ignore[assignment]
    node.stages.arrival_check = lambda destination: Asking()  # type: ignore[method-assign,assignment,return-value]
    transactions = trace(node.ledger.engine)
    node.start()
    try:
        image = us_image()
        image.save_as(folder / "us.dcm", enforce_file_format=True)
        door = SimpleNamespace(aet=node.config.node.ae_title, dicom_port=ports["dicom"])
        storescu(door, folder / "us.dcm")  # type: ignore[arg-type]
        storescu(door, folder / "us.dcm")  # type: ignore[arg-type]
        uid = str(image.SeriesInstanceUID)
        with httpx.Client(base_url=f"http://127.0.0.1:{ports['web']}", timeout=20) as client:
            wait_for(lambda: ended(client, uid), 60, "the results to be sent and to have arrived")
            jobs = client.get(f"/api/series/{uid}").json()["jobs"]
            [infer] = [job for job in jobs if job["kind"] == "infer" and not job["shadow"]]
            wait_for(
                lambda: (client.get("/api/shadow").json()["compared"] or {}).get("series"), 60, "the shadow to end"
            )
            seen = f"/api/series/{uid}/findings"
            wait_for(lambda: client.get(seen, timeout=60).json()["state"] == "ready", 180, "the findings to be read")
            said = {"job": infer["id"], "kind": "missed", "image": "1", "column": "3", "row": "4"}
            assert client.post(f"/api/series/{uid}/feedback", data=said).status_code == 200
            listed = client.get("/api/series").json()[0]["first_arrival"].replace("+", "%2B")
            sought = client.post("/api/patient", data={"patient": "Test^Name"}).json()["patient"]
            lists = ("", f"before={listed}", f"after={uid}", f"after={uid}&sort=slowest", f"q=breast&after={uid}",
                     f"patient={sought}", f"patient={sought}&after={uid}",
                     "trouble=1", "findings=without", "kind=Mass&min_mm=8",
                     "q=breast", "q=1.2", "pipeline=breast-us", "job=failed", "sort=slowest")  # fmt: skip
            assert client.post("/api/export", data={"series": uid}).status_code == 200
            for page in (*(f"/?{each}" for each in lists), f"/series/{uid}", "/refusals", "/destinations", "/rerun",
                         "/health", "/metrics", "/system", "/ready", "/api/series", f"/api/series/{uid}",
                         "/api/refusals", "/api/queue", f"/series/{uid}/view",
                         f"/api/series/{uid}/view/image-0.png", "/feedback", "/api/feedback", "/shadow",
                         "/api/shadow.csv?route=next&live=breast&since=2026-01-01"):  # fmt: skip
                assert client.get(page).status_code == 200, page
        desk = node.desk()
        assert desk is not None
        text = '[[peer]]\nname = "new"\nae_title = "NEW"\nmay_send = true\n'
        desk.save("peer", None, text, desk.state()["digest"], "ana")
        desk.undo(desk.history()[0]["id"], desk.state()["digest"], "ana")
        desk.peers()
        assert desk.trial.seen()
        assert desk.trial.on_the_last(30, node.config).tried == 1
        assert desk.trial.on_series(uid, node.config)
    finally:
        node.stop()
    return transactions, folder / "data" / "node.sqlite"


def trace(engine: sa.Engine) -> list[list[str]]:
    transactions: list[list[str]] = []
    lock = threading.Lock()

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        mine: list[str] = []

        def told(statement: str) -> None:
            mine.append(statement)
            if statement in ("COMMIT", "ROLLBACK") or not mine[0].startswith("BEGIN"):
                with lock:
                    transactions.append(mine.copy())
                mine.clear()

        connection.set_trace_callback(told)

    return transactions


def ended(client: httpx.Client, uid: str) -> bool:
    answer = client.get(f"/api/series/{uid}")
    jobs = answer.json()["jobs"] if answer.status_code == 200 else []
    return [job["state"] for job in jobs if job["kind"] == "confirm"] == ["done"]


def test_no_scan_of_what_grows(traced: tuple[list[list[str]], Path]) -> None:
    transactions, ledger = traced
    asked = {shape(each): each for statements in transactions for each in statements if plain(each)}
    assert len(asked) > 40, "hardly anything was traced"
    scans, allowed = [], set()
    engine = sa.create_engine(f"sqlite:///{ledger}")
    with engine.connect() as db:
        for statement in asked.values():
            plan = [row[3] for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}".replace("%", "%%"))]
            if any(re.match(rf"SCAN ({'|'.join(GROWING)})\b(?! {OF_FEW})", step) for step in plan):
                reason = next((start for start in MAY_SCAN if " ".join(statement.split()).startswith(start)), None)
                scans += [] if reason else [f"{plan}: {statement}"]
                allowed |= {reason}
    engine.dispose()
    assert not scans, "\n".join(scans)
    assert allowed == set(MAY_SCAN), "one of them scans no more"


def test_no_question_costs_more_for_what_ended_long_ago(traced: tuple[list[list[str]], Path], tmp_path: Path) -> None:
    """An index, too, may be of nearly all rows: counted are the steps of SQLite's machine, beside 200 and 2000 series
    that ended years ago."""
    transactions, ledger = traced
    asked = {shape(each): each for statements in transactions for each in statements if plain(each)}
    asked = {short: each for short, each in asked.items() if each.startswith(("SELECT", "WITH"))}
    few, many = (steps(filled(ledger, tmp_path / f"{series}.sqlite", series), asked) for series in (200, 2000))
    grown = {short: (few[short], many[short]) for short in asked if many[short] > 2 * few[short] + 200}
    may = (*MAY_SCAN, *MAY_GROW)
    assert not [f"{grown[each]}: {asked[each]}" for each in grown if not " ".join(each.split()).startswith(may)]


def filled(ledger: Path, copy: Path, series: int) -> Path:
    with sqlite3.connect(ledger) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    full = Ledger(f"sqlite:///{copy}", copy.parent)
    fill_series(full, series)
    full.close()
    return copy


def steps(ledger: Path, asked: Mapping[str, str]) -> dict[str, int]:
    """Tens of steps that each of these takes."""
    counted = dict.fromkeys(asked, 0)
    db = sqlite3.connect(ledger)
    for short, statement in asked.items():

        def step(short: str = short) -> int:
            counted[short] += 1
            return 0

        db.set_progress_handler(step, 10)
        db.execute(statement).fetchall()
    db.close()
    return counted


def test_what_only_reads_takes_no_lock(traced: tuple[list[list[str]], Path]) -> None:
    locked = [
        statements for statements, _ in [(each, None) for each in traced[0]] if statements[0] == "BEGIN IMMEDIATE"
    ]
    assert locked
    writes = ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP")
    idle = [statements for statements in locked if not any(each.startswith(writes) for each in statements)]
    assert not idle, idle[:3]


def plain(statement: str) -> bool:
    return statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")) and "alembic" not in statement


def shape(statement: str) -> str:
    """The statement without its values."""
    return re.sub(r"'(?:[^']|'')*'|\b\d+(\.\d+)?\b", "?", statement)
