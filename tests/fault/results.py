"""What the fault runs found, in docs/results/reliability.json: one entry for each, with machine, load and commit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.bench.record import _commit, _cpu
from tests.harness import ROOT

RESULTS = ROOT / "docs" / "results" / "reliability.json"


def all_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def load() -> float:
    """Of the last minute: how many processes would run."""
    return round(os.getloadavg()[0], 1)


def measured_on() -> dict[str, Any]:
    """What a run ends on, as the machine says it."""
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "load": load(),
        "commit": _commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def record(name: str, figures: Mapping[str, Any]) -> None:
    """In the place of what was found there before."""
    entry = {**figures, **measured_on()}
    RESULTS.write_text(json.dumps({**all_results(), name: entry}, indent=1, sort_keys=True) + "\n")
