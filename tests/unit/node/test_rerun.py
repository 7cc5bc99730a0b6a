"""`pacs-node rerun`: new jobs for a running node to take up, and what it says when there is nothing to do."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from config import load
from models import catalogue
from pacs_node.cli import app
from pacs_node.facts import NodeFacts
from pacs_node.node import Node
from pacs_node.records import Evidence, Instance, OpenSeries
from tests.factories import us_image

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TOML = """
[node]
data_dir = "data"
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["results"]
[[route]]
name = "stat"
match = { Modality = "US", StudyDescription = "stat" }
pipeline = "breast-us"
send_to = ["results"]
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node that has run one ultrasound image, and does nothing now."""
    (tmp_path / "node.toml").write_text(TOML)
    node = Node(load(tmp_path / "node.toml", catalogue()))
    node.ledger.migrate()
    image = us_image()
    image.save_as(tmp_path / "us.dcm", enforce_file_format=True)
    uids = str(image.SOPInstanceUID), str(image.SOPClassUID), str(image.SeriesInstanceUID), str(image.StudyInstanceUID)
    node.ledger.take_in(Instance(*uids, "1.2.840.10008.1.2.1", tmp_path / "us.dcm", 1, NOW, "a", "US1"))
    [job] = node.flow.close(OpenSeries(uids[2], uids[3], Evidence(NOW, 1), ("US1",)), "quiet")
    assert node.ledger.begin(job, "w1", NOW)
    assert node.ledger.finish(job, "done", "1 finding", NOW)
    return node


def rerun(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["rerun", "--config", str(tmp_path / "node.toml"), *arguments])
    return done.exit_code, done.output


def test_a_series_and_all_series_of_a_route(node: Node, tmp_path: Path) -> None:
    uid = str(us_image().SeriesInstanceUID)
    code, output = rerun(tmp_path, uid)
    assert (code, "1 of 1 series will run again" in output) == (0, True), output
    [job] = node.ledger.open_jobs()
    assert (job.route, job.revision) == ("breast", 1)
    code, output = rerun(tmp_path, "--route", "breast")
    assert code == 1
    assert "being worked on" in output
    assert node.ledger.begin(job, "w1", NOW)
    assert node.ledger.finish(job, "done", "1 finding", NOW)
    assert rerun(tmp_path, "--route", "breast")[0] == 0
    assert len(node.ledger.open_jobs()) == 1
    events = [event["event"] for event in node.ledger.series(uid)["timeline"]]
    assert events.count("run again") == 2


def test_what_cannot_be_run_again_is_said(node: Node, tmp_path: Path) -> None:
    code, output = rerun(tmp_path, "1.2.3")
    assert (code, "there are no images of series 1.2.3" in output) == (1, True)
    code, output = rerun(tmp_path, str(us_image().SeriesInstanceUID), "--route", "stat")
    assert (code, "route 'stat' does not match" in output) == (1, True)
    assert rerun(tmp_path)[0] == 1
    assert node.ledger.open_jobs() == []


def test_held_back_objects_are_shown_for_a_failed_job_only(node: Node, tmp_path: Path) -> None:
    facts, uid = NodeFacts(node), str(us_image().SeriesInstanceUID)
    assert facts.rerun(uid) is None
    [job] = node.ledger.open_jobs()
    folder = tmp_path / "data" / "rejected" / job.id
    folder.mkdir(parents=True)
    for name in ("01-SEG.dcm", "reasons.txt"):
        (folder / name).write_bytes(b"x")
    assert facts.rejected(job.id) == {}
    assert node.ledger.begin(job, "w1", NOW)
    assert node.ledger.finish(job, "failed", "results not sent", NOW)
    assert facts.rejected(job.id) == {"01-SEG.dcm": folder / "01-SEG.dcm"}
    assert facts.rejected("..") == {}
