"""Files and folders are there whole or not at all, and what a killed process leaves is swept."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models.training.files import LOCK, filling, replacing, write_text

ROOT = Path(__file__).resolve().parents[4]


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / "log.csv"
    write_text(path, "former ü")

    def killed():
        with replacing(path) as new:
            new.write_text("half of")
            assert path.read_text("utf-8") == "former ü"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert path.read_text("utf-8") == "former ü"
    with replacing(path) as new:
        new.write_text("whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def names(cache):
    return sorted(path.name for path in cache.iterdir() if path.name != LOCK)


def test_a_folder_appears_at_the_end_or_not_at_all(tmp_path):
    cache = tmp_path / "cache"

    def fails():
        with filling(cache / "a") as new:
            (new / "half").touch()
            raise ValueError("no crop")

    with pytest.raises(ValueError, match="no crop"):
        fails()
    assert names(cache) == []
    with filling(cache / "a") as new:
        (new / "whole").touch()
        assert not (cache / "a").exists()
        shutil.copytree(new, cache / "b")
        with filling(cache / "b") as other:  # somebody else was faster
            (other / "second").touch()
    assert names(cache) == ["a", "b"]
    assert [path.name for path in (cache / "b").iterdir()] == ["whole"]


def fill_and_wait(cache):
    """A process that fills a folder and says when it has begun."""
    code = (
        "import sys, time, pathlib; from models.training.files import filling\n"
        "with filling(pathlib.Path(sys.argv[1])) as new:\n"
        "    (new / 'half').touch(); print(new.name, flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(cache / "theirs")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline().strip()


def test_what_a_killed_process_was_filling_is_swept_and_what_a_living_one_fills_is_not(tmp_path):
    killed, left = fill_and_wait(tmp_path)
    living, theirs = fill_and_wait(tmp_path)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    with filling(tmp_path / "a"):
        assert {left, theirs} < set(names(tmp_path))  # one of the two is being filled: neither is touched
    living.communicate("go on\n")
    assert living.returncode == 0
    assert names(tmp_path) == sorted([left, "a", "theirs"])
    with filling(tmp_path / "b"):
        assert left not in names(tmp_path)
    assert names(tmp_path) == ["a", "b", "theirs"]
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["half"]
