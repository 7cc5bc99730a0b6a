"""Figures are written down with the machine and the commit they were measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

RESULTS = Path(__file__).with_name("results.jsonl")


def record(name: str, figures: Mapping[str, Any]) -> None:
    """Print the figures and append them to results.jsonl."""
    line = {
        "bench": name,
        **{key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()},
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "commit": _commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    Console().print(line)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
