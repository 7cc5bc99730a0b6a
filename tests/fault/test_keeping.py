"""The node as its users start it: backed up while a result waits, lost, restored, and then deleted by retention."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pacs_node.cli import app
from tests.fault.test_kill import arrived_once, impatient
from tests.harness import NodeProcess, Receiver, storescu, wait_for
from tests.ultrasounds import ultrasound_study

FULL = "\n[retention]\nstart_used_percent = 0.0002\nstop_used_percent = 0.0001\n"  # any disk is fuller


def command(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.timeout(300)  # two inferences, three starts
def test_lost_restored_and_deleted(tmp_path: Path) -> None:
    pacs = Receiver(commits=True)
    node = NodeProcess(tmp_path / "node", impatient(pacs))
    file = ultrasound_study(tmp_path / "images", seed=70)

    def waiting() -> bool:
        facts = node.series(file.series_uid) or {"jobs": []}
        return [job["state"] for job in facts["jobs"]] == ["done", "waiting"]

    try:
        node.start()
        storescu(node, file.path)
        wait_for(waiting, 120, f"a result that waits for the PACS\n{node.log()}")
        command("backup", tmp_path / "copy", "--config", node.config)
        node.kill()
        shutil.rmtree(node.folder / "data")
        command("restore", tmp_path / "copy", "--config", node.config)
        assert "0 lost or damaged" in command("fsck", "--config", node.config)
        pacs.start()
        node.start()
        facts = wait_for(lambda: node.finished(file.series_uid), 120, f"its results\n{node.log()}")
        assert [job["state"] for job in facts["jobs"]] == ["done"] * 3
        arrived_once(pacs, facts)
        assert node.terminate() == 0

        node.config.write_text(node.config.read_text().replace("\n[[peer]]", f"{FULL}[[peer]]", 1))
        assert f"goes: {file.series_uid}" in command("retention", "--config", node.config)
        node.start()

        def gone() -> bool:
            return node.series(file.series_uid)["state"] == "deleted"

        wait_for(gone, 60, f"its deletion\n{node.log()}")
        wait_for(lambda: node.api("/health")["kept_bytes"]["images"] == 0, 60, "nothing kept")
        storescu(node, file.path)
        again = wait_for(lambda: node.finished(file.series_uid), 120, f"the results of what came again\n{node.log()}")
        assert (again["revision"], again["deleted_images"]) == (2, facts["instances"])
        reports = pacs.of("SR", facts["study_uid"])
        assert [len(report.get("PredecessorDocumentsSequence", [])) for report in reports] == [0, 1]
    finally:
        node.__exit__()
        pacs.stop()
