"""docs/new-model.md, as it is written: its commands in an empty folder, one after the other, with no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.phantoms import chest_ct
from tests.harness import ROOT

PAGE = (ROOT / "docs" / "new-model.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (\S.*)$", PAGE, re.M)
PROGRAMS = {  # what a reader has on the PATH; here of this Python, and installing into a folder
    "pacs-node": '"{python}" -m pacs_node.cli "$@"',
    "pip": '"{python}" -m pip "$@" -q --no-deps --no-build-isolation --no-index --target "{site}"',
    "pytest": '"{python}" -m pytest -q -p no:cacheprovider "$@"',
}
SERVES = "pacs-node serve"  # it does not end: the end-to-end test of installed pipelines runs it


@pytest.mark.timeout(600)
def test_the_page_works_as_it_is_written(tmp_path: Path) -> None:
    programs, site, empty = (tmp_path / name for name in ("bin", "site", "empty"))
    for folder in (programs, site, empty):
        folder.mkdir()
    for name, line in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\nexec {line.format(python=sys.executable, site=site)}\n")
        (programs / name).chmod(0o755)
    chest_ct(empty / "scan", slices=24, size=128, spacing_mm=(5.0, 2.8, 2.8), nodules=0)
    [settings] = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    (empty / "node.toml").write_text(f"[receive]\nkeep_free_gb = 0.1\n{settings}")
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]),
    }
    ran = [command for command in COMMANDS if not command.startswith(SERVES)]
    assert len(ran) >= 7
    said = {}
    for command in ran:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=empty,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=400,
        )
        said[command] = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}:\n{said[command]}"
    assert "bone-finder" in said["pacs-node pipelines"]
    assert "every check passed" in said["pacs-node check-pipeline bone-finder"]
    assert (empty / "results" / "01-SEG.dcm").is_file()
    assert (empty / "results" / "02-SR.dcm").is_file()
    (empty / "node.toml").write_text((empty / "node.toml").read_text().replace('Modality = "CT"', 'Modality = "US"'))
    wrong = subprocess.run(
        ["pacs-node", "check", "--config", "node.toml"],
        cwd=empty,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (wrong.returncode, "bone-finder takes Modality CT only" in wrong.stdout) == (1, True), "as the page says"


def test_every_file_that_the_page_lists_is_written(tmp_path: Path) -> None:
    from pacs_node.new_pipeline import write

    folder = write("bone-finder", tmp_path)
    [table] = re.findall(r"\| file \|.*?\n\n", PAGE, re.S)
    listed = set(re.findall(r"^\| `([\w/.]+)` \|", table, re.M))
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert listed == written - {"bone_finder/__init__.py"}
