"""One run of a command, under a supervisor that ends with this process: what it wrote, or why it wrote nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.pipeline import BadOutput

SUPERVISOR = Path(__file__).with_name("supervise.py")
LAST_LINES, MOST_CHARACTERS = 3, 300  # of what a command complains of, in a reason
TAIL_BYTES = 8192


@dataclass(frozen=True)
class Limits:
    timeout_s: float
    memory_bytes: int | None


def run(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    limits: Limits,
    secrets: Sequence[str] = (),
) -> None:
    """Run it in `folder`, to its end. Raises BadOutput when it fails, with the last lines of what it complains of.

    secrets   words that must not stand in the reason: what the images say of the patient
    """
    stderr = folder / "stderr.txt"
    task = {
        "command": list(command),
        "folder": str(folder),
        "environment": dict(environment),
        "stderr": str(stderr),
        "timeout_s": limits.timeout_s,
        "memory_bytes": limits.memory_bytes,
    }
    with subprocess.Popen(
        [sys.executable, "-I", str(SUPERVISOR)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        supervisor.stdin.write(json.dumps(task).encode() + b"\n")
        supervisor.stdin.flush()
        said = supervisor.stdout.readline()  # the pipe to it stays open until it has answered
    end = json.loads(said) if said else {"end": "lost"}
    if words := _failure(end, limits):
        raise BadOutput(words + _complaint(stderr, secrets))


def _failure(end: Mapping[str, object], limits: Limits) -> str | None:
    """None, or how it failed."""
    kind, code = end["end"], end.get("code")
    if kind == "exit":
        if code == 0:
            return None
        assert isinstance(code, int)
        return f"the command ended with {f'exit code {code}' if code > 0 else f'signal {-code}'}"
    reasons = {
        "timeout": f"the command was ended after {limits.timeout_s:g} s (timeout_s), with all that it started",
        "memory": f"the command was ended: it took more than {(limits.memory_bytes or 0) / 1e9:g} GB (memory_gb)",
        "not started": f"the command cannot be started: {end.get('words')}",
        "stopped": "the command was stopped with the node",
        "lost": "the command was ended from outside",
    }
    return reasons[str(kind)]


def _complaint(stderr: Path, secrets: Sequence[str]) -> str:
    """': ' and the last lines of it; nothing where there is none."""
    try:
        with stderr.open("rb") as file:
            file.seek(max(0, stderr.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(re.escape(secret), "...", text, flags=re.IGNORECASE)
    lines = ["".join(c for c in line if c.isprintable()).strip() for line in text.splitlines()]
    last = " / ".join([line for line in lines if line][-LAST_LINES:])
    return f": {last[-MOST_CHARACTERS:]}" if last else ""
