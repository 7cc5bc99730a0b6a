"""A PACS is paused while two workers on one PostgreSQL are killed: nothing comes until it is resumed, then all once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.harness import ROOT, Postgres, storescu, wait_for
from tests.interop.test_machines import PATIENCE_S, Machines
from tests.ultrasounds import ultrasound_study

pytestmark = pytest.mark.timeout(900)


def pacs_node(command: str, machines: Machines, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pacs_node.cli", command, *words, "--config", str(machines.node.config)],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_paused_pacs_gets_nothing_until_it_is_resumed_and_then_all_once(tmp_path: Path) -> None:
    studies = [ultrasound_study(tmp_path, seed=seed) for seed in (1, 2)]
    with Postgres(tmp_path) as server, Machines(tmp_path / "nodes", server.database("node")) as machines:
        said = pacs_node("pause", machines, "destination", "pacs", "--reason", "a new disk")
        assert "sending to pacs is paused by" in said
        storescu(machines.node, *(study.path for study in studies))

        def held() -> list[str]:
            series = [machines.node.series(study.series_uid) for study in studies]
            jobs = [job for one in series if one is not None for job in one["jobs"]]
            assert all(job["state"] == "queued" for job in jobs if job["kind"] == "send"), machines.said()
            return [job["id"] for job in jobs if job["kind"] == "send" and "a new disk" in job["paused"]]

        waiting = wait_for(lambda: held() if len(held()) == 2 else None, PATIENCE_S, f"two sends:\n{machines.said()}")
        for worker in machines.workers:
            worker.process.kill()
            worker.process.wait()
        machines.node.kill()
        machines.node.start("--no-work")
        machines.start_worker()
        wait_for(lambda: machines.node.api("/health")["status"] == "ok", PATIENCE_S, "a worker that lives")
        assert len(machines.node.api("/health")["paused"]) == 1
        assert held() == waiting
        assert machines.pacs.arrivals == []

        page = f"http://127.0.0.1:{machines.node.web_port}"
        buttons = {"accept": "text/html", "referer": f"{page}/queue"}
        assert httpx.post(f"{page}/api/resume", data={"what": "destination pacs"}, headers=buttons).status_code == 303
        for study in studies:
            wait_for(lambda uid=study.series_uid: machines.node.finished(uid), PATIENCE_S, machines.said())
        assert machines.node.api("/health")["paused"] == []
        objects = Counter(arrival.SOPInstanceUID for arrival in machines.pacs.arrivals)
        assert set(objects.values()) == {1}, "nothing came twice"
        for study in studies:
            assert len(machines.pacs.of("SR", study.study_uid)) == 1
