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


def record(name: str, figures: Mapping[str, Any]) -> None:
    """In the place of what was found there before."""
    entry = {
        **figures,
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "commit": _commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.write_text(json.dumps({**all_results(), name: entry}, indent=1, sort_keys=True) + "\n")
