"""What is checked before a commit is what `make lint` and CI check."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.harness import missing

ROOT = Path(__file__).resolve().parents[2]


def lint() -> list[str]:
    """The commands of `make lint`, as make itself reads them."""
    if (program := shutil.which("make")) is None:
        missing("make is not installed")
    command = [program, "--no-print-directory", "-n", "-o", "dev", "lint"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_hooks_run_what_make_lint_runs() -> None:
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = repository["hooks"]
    assert repository["repo"] == "local", "nothing is fetched: the tools are those of constraints.txt"
    assert len(lint()) > 1
    assert [hook["entry"] for hook in hooks] == lint()
    assert {(hook["language"], hook["pass_filenames"]) for hook in hooks} == {("system", False)}


def test_ci_runs_what_a_person_runs() -> None:
    assert re.findall(r"make (\w+)$", (ROOT / ".ci" / "run").read_text(), re.M) == ["lint", "test"]
