"""A node whose data lie in no scratch folder, as in a hospital: what its confined processes need they can read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest

from models.phantoms import breast_ultrasound, chest_ct
from pacs_node import confine
from tests.harness import NodeProcess, storescu, wait_for

TOML = """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 0.5
[infer]
tune = false
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "folder"
folder = "delivered"
[[route]]
name = "chest CT"
match = { Modality = "CT" }
pipeline = "lung-nodule"
options = { views = 1 }
send_to = ["folder"]
[[route]]
name = "breast ultrasound"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["folder"]
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder where nothing of a library's belongs."""
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix=".pacs-node-test-") as folder:
        yield Path(folder)


def prepared(address: str) -> dict[str, Any] | None:
    told: dict[str, Any] = httpx.get(address, timeout=60).json()
    return None if told["state"] == "preparing" else told


@pytest.mark.timeout(900)
def test_both_pipelines_and_the_viewer_work(home: Path, tmp_path: Path) -> None:
    if confine.tried():
        pytest.skip(f"this machine does not let it be confined: {'; '.join(confine.tried())}")
    breast_ultrasound(tmp_path / "us", seed=1)
    chest_ct(tmp_path / "ct", seed=1)
    with NodeProcess(home, TOML) as node:
        node.start()
        for folder, parts in ((tmp_path / "us", ("findings",)), (tmp_path / "ct", ("findings", "view"))):
            storescu(node, folder)
            uid = str(pydicom.dcmread(next(folder.glob("*.dcm"))).SeriesInstanceUID)
            jobs = wait_for(partial(node.finished, uid), 600, "its jobs to end")["jobs"]
            assert {job["kind"]: job["state"] for job in jobs} == {"infer": "done", "send": "done"}, jobs
            for part in parts:
                address = f"http://127.0.0.1:{node.web_port}/api/series/{uid}/{part}"
                told = wait_for(partial(prepared, address), 300, f"{part} for the viewer")
                assert told["state"] == "ready", told
        assert "not confined" not in node.log()
