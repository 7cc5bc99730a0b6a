"""What a node writes names patients: nobody but its own user can read it, whatever umask it is started under."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pydicom

from tests.fault.test_kill import impatient
from tests.harness import NodeProcess, Receiver, storescu, wait_for
from tests.ultrasounds import ultrasound_study

FOLDERS = """
[[peer]]
name = "files"
folder = "files"
[[peer]]
name = "shared"
folder = "shared"
readable_by = "group"
"""


def open_to_others(root: Path, bits: int) -> list[str]:
    """Every file and folder there whose mode has one of these bits."""
    there = [root, *root.rglob("*")]
    assert len(there) > 1
    return [f"{each} {stat.filemode(each.lstat().st_mode)}" for each in there if each.lstat().st_mode & bits]


def test_nothing_that_a_node_writes_can_be_read_by_others(tmp_path: Path) -> None:
    """Images, one kept aside, findings, results, both databases with their logs: while it runs, and after."""
    with Receiver(commits=True) as pacs:
        toml = impatient(pacs).replace('send_to = ["pacs"]', 'send_to = ["pacs", "files", "shared"]') + FOLDERS
        node = NodeProcess(tmp_path / "node", toml)
        with node.start(umask=0):
            study = ultrasound_study(tmp_path / "images", seed=77)
            storescu(node, study.path)
            other = pydicom.dcmread(study.path)
            other.ImageComments = "other bytes under the same UID"
            other.save_as(tmp_path / "other.dcm", enforce_file_format=True)
            storescu(node, tmp_path / "other.dcm")
            wait_for(lambda: node.finished(study.series_uid), 120, f"results\n{node.log()}")
            data = tmp_path / "node" / "data"
            written = {each.name for each in data.rglob("*")}
            assert {"node.sqlite", "node.sqlite-wal", "node.sqlite-shm", "worker.lock", "aside", "results"} <= written
            assert open_to_others(data, 0o077) == []
            assert node.terminate() == 0
    assert open_to_others(data, 0o077) == []
    assert open_to_others(tmp_path / "node" / "files", 0o077) == []
    shared = tmp_path / "node" / "shared"
    assert open_to_others(shared, 0o027) == [], "nobody may write but the node, and others nothing at all"
    modes = {stat.filemode(each.stat().st_mode) for each in shared.rglob("*")}
    assert modes == {"drwxr-x---", "-rw-r-----"}


def test_a_command_that_opens_the_ledger_leaves_nothing_open(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, FOLDERS)
    node.command = [sys.executable, "-m", "pacs_node.cli", "rerun"]
    node.start("1.2.3", wait=False, umask=0o022)
    wait_for(lambda: not node.alive, 60, "the command to end")
    assert (tmp_path / "data" / "node.sqlite").is_file()
    assert open_to_others(tmp_path / "data", 0o077) == []
