"""The heartbeat of a node, to a real Orthanc: it arrives, fails when that is away, and never shows among patients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pacs_node.records import HEARTBEAT_ID
from tests.harness import NodeProcess, Orthanc, node_toml, storescu, wait_for
from tests.ultrasounds import ultrasound_study

pytestmark = pytest.mark.timeout(900)
PATIENCE_S = 240  # with a slow machine

EVERY_S = 6.0


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("pacs")) as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc) -> Iterator[NodeProcess]:
    beats = {"every_minutes": EVERY_S / 60, "route": "breast ultrasound", "to": "pacs", "late_minutes": 5.0}
    waits = {"quiet_s": 0.5, "quiet_unreleased_s": 1.0}
    jobs = {"send_backoff_s": 0.5, "send_backoff_max_s": 1.0, "max_attempts": 3, "sweep_s": 1.0, "await_report_s": 2.0}
    toml = node_toml(pacs.aet, pacs.dicom_port, heartbeat=beats, assemble=waits, jobs=jobs)
    with NodeProcess(tmp_path_factory.mktemp("node"), toml).start() as node:
        yield node


def beat(node: NodeProcess) -> dict[str, Any]:
    return node.api("/api/system")["heartbeat"] or {"state": "none", "series": ""}


def ended(node: NodeProcess, state: str, after: str = "") -> dict[str, Any]:
    """A later heartbeat that has ended so."""
    found = wait_for(
        lambda: last if (last := beat(node))["state"] == state and last["series"] != after else None,
        PATIENCE_S,
        f"a heartbeat that {state}: {beat(node)}\n{node.log()}",
    )
    assert isinstance(found, dict)
    return found


def test_a_heartbeat_goes_all_the_way_and_is_in_no_list(node: NodeProcess, pacs: Orthanc) -> None:
    first = ended(node, "arrived")
    assert first["why"].startswith("arrived: ")
    assert 0 < first["seconds"] < PATIENCE_S
    reports = pacs.instances("SR")
    assert {str(report.PatientID) for report in reports} == {HEARTBEAT_ID}
    series = node.series(first["series"])
    assert series is not None
    assert [job["kind"] for job in series["jobs"]] == ["infer", "send", "confirm"]

    assert node.api("/api/series") == []
    health = node.api("/health")
    assert (health["status"], health["reasons"]) == ("ok", [])
    assert (health["series"], sum(health["infer"].values()), sum(health["send"].values())) == ({}, 0, 0)
    metrics = httpx.get(f"http://127.0.0.1:{node.web_port}/metrics", timeout=30).text
    assert "pacs_node_heartbeat_arrived 1.0" in metrics
    counted = [line for line in metrics.splitlines() if line.startswith("pacs_node_duration_seconds_count")]
    assert {line.rpartition(" ")[2] for line in counted} == {"0.0"}, "no histogram counts it"
    assert "pacs_node_arrivals" not in metrics or not [
        line for line in metrics.splitlines() if line.startswith("pacs_node_arrivals") and not line.endswith(" 0.0")
    ]
    page = httpx.get(f"http://127.0.0.1:{node.web_port}/system", timeout=30).text
    assert f"/series/{first['series']}" in page

    second = ended(node, "arrived", first["series"])
    gone = node.series(first["series"])
    assert gone is not None
    assert gone["state"] == "deleted", "the one before goes"
    assert second["series"] != first["series"]


def test_a_patients_image_beside_a_heartbeat_goes_its_own_way(node: NodeProcess, pacs: Orthanc, tmp_path: Path) -> None:
    study = ultrasound_study(tmp_path, seed=5)
    storescu(node, study.path)
    done = wait_for(lambda: node.finished(study.series_uid), PATIENCE_S, node.log())
    assert [job["state"] for job in done["jobs"]] == ["done", "done", "done"]
    assert [each["series_uid"] for each in node.api("/api/series")] == [study.series_uid]


def test_nobody_else_sends_a_heartbeat(node: NodeProcess, tmp_path: Path) -> None:
    """What bears its Patient ID is kept, and no route takes it."""
    from models.phantoms import breast_ultrasound

    breast_ultrasound(tmp_path, seed=9, patient_id=HEARTBEAT_ID.lower())
    storescu(node, tmp_path)
    found = wait_for(
        lambda: [each for each in node.api("/api/series") if each["state"] == "closed" and not each["jobs"]],
        PATIENCE_S,
        node.log(),
    )
    series = node.series(found[0]["series_uid"])
    assert series is not None
    assert {rule["matched"] for rule in series["rules"]} == {False}
    assert "reserved for the heartbeat" in series["rules"][0]["why_not"]


def test_a_heartbeat_that_does_not_arrive_is_said_until_one_does(node: NodeProcess, pacs: Orthanc) -> None:
    last = beat(node)["series"]
    pacs.stop()
    failed = ended(node, "failed", last)
    assert "send: " in failed["why"]
    health = node.api("/health")
    assert health["status"] == "degraded"
    assert [reason for reason in health["reasons"] if reason.startswith("the heartbeat of ")]
    assert health["attention"] == [], "it is no job that a person has to see to"
    pacs.start()
    ended(node, "arrived", failed["series"])
    assert node.api("/health")["status"] == "ok"
