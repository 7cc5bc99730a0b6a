"""Programs of our own that look at what strangers have sent: a process each, told once, which answers once and is gone.

It gets no secrets; what it complains of is not read, for a trace may quote the patient.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from config.secrets import environment_without_secrets


def started(program: Path, **environment: str) -> subprocess.Popen[str]:
    """A Python file of ours, which waits to be told by stdin and answers on stdout."""
    return subprocess.Popen(
        [sys.executable, "-P", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**environment_without_secrets(), "OMP_NUM_THREADS": "1", **environment},
    )


def answer_of(process: subprocess.Popen[str], told: str, seconds: float) -> str:
    """What it says until it ends. Raises TimeoutExpired; then it is gone."""
    try:
        return process.communicate(told, timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
