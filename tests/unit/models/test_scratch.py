"""A job's folder is gone when the job is, whatever became of its process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.scratch import JUST_MADE_S, PREFIX, remove, remove_abandoned, scratch_folder


def test_it_is_gone_afterwards_with_read_only_folders_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "input").mkdir()
        (folder / "input" / "a.dcm").write_bytes(b"images")
        (folder / "input").chmod(0o555)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_is_removed_and_no_living_one_is(tmp_path: Path) -> None:
    code = (
        "import time; from models.scratch import scratch_folder\n"
        "with scratch_folder() as folder: print(folder, flush=True); time.sleep(600)"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    living, killed = (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    )
    try:
        folders = [Path(process.stdout.readline().strip()) for process in (living, killed) if process.stdout]
        killed.kill()
        killed.wait()
        remove_abandoned(tmp_path, time.time())
        assert sorted(tmp_path.iterdir()) == sorted(folders)  # too young to be sure
        remove_abandoned(tmp_path, time.time() + JUST_MADE_S + 1)
        assert list(tmp_path.iterdir()) == folders[:1]
        assert folders[0].name.startswith(PREFIX)
    finally:
        living.kill()
        living.wait()


def test_what_cannot_be_removed_is_no_error_of_the_job_and_the_images_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A container of another user leaves folders that are not ours to open."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opens, removes = Path.chmod, os.rmdir

    def chmod(path: Path, mode: int, **how: bool) -> None:
        if path.name == "theirs":
            raise PermissionError(1, "Operation not permitted")
        opens(path, mode, **how)

    def rmdir(path: str, **how: int) -> None:
        if str(path).endswith("theirs"):
            raise PermissionError(1, "Operation not permitted")
        removes(path, **how)

    monkeypatch.setattr(Path, "chmod", chmod)
    monkeypatch.setattr(os, "rmdir", rmdir)
    with scratch_folder() as folder:
        (folder / "output" / "theirs").mkdir(parents=True)
        (folder / "input").mkdir()
        (folder / "input" / "a.dcm").write_bytes(b"images")
    assert not (folder / "input").exists()
    assert "cannot be removed" in caplog.text


@pytest.mark.parametrize("depth", [1, 3])
def test_folders_that_nobody_may_enter_are_removed(tmp_path: Path, depth: int) -> None:
    folder = tmp_path / "job"
    folder.joinpath(*["inner"] * depth).mkdir(parents=True)
    for level in range(depth, 0, -1):
        folder.joinpath(*["inner"] * level).chmod(0)
    remove(folder)
    assert not folder.exists()
