"""docs/performance.md, written from what was measured last: python -m tests.bench.page"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.bench.receive import CASES
from tests.bench.record import RESULTS
from tests.harness import ROOT

PAGE = ROOT / "docs" / "performance.md"
HEAD = """# Performance

Written by `python -m tests.bench.page` from `tests/bench/results.jsonl`, which `make bench` adds to; do not edit it.
Figures are of the machine that is named. What carries over to another one is the ratio against a peer in the same run.
"""
ABOUT_RECEIVING = """Images per second that DCMTK's `storescu` gets rid of, medians of three rounds. Ours are durable
(one sync each) and have their rows in the ledger when the clock stops; `storescp +B` waits for no disk and indexes
nothing. "Disk alone" is our promise without a network. CPU is of the receiving process, all threads, in ms an image."""


def last(name: str) -> dict[str, Any] | None:
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return next((line for line in reversed(lines) if line["bench"] == name), None)


def measured_on(line: Mapping[str, Any]) -> str:
    load = f", load {line['load']:.1f} when it began" if "load" in line else ""
    return f"*{line['machine']}{load}; commit {line['commit']}, {line['at'][:10]}.*"


def receiving() -> Iterator[str]:
    yield "## Receiving"
    yield ""
    yield ABOUT_RECEIVING
    yield ""
    line = last("receive")
    if line is None or f"{CASES[0].name}: ours" not in line:
        yield "Not measured yet."
        return
    yield "| images | storescp | Orthanc | ours | ours / storescp | ours / Orthanc | disk alone | CPU, ms | peak MB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for case in CASES:
        found = {what: line.get(f"{case.name}: {what}") for what in ("storescp", "orthanc", "ours", "disk alone")}
        ratios = [line[f"{case.name}: ours / {peer}"] for peer in ("storescp", "Orthanc")]
        rates = [f"{found[what]:.0f}" for what in ("storescp", "orthanc", "ours")]
        cost = f"{line[f'{case.name}: CPU ms an image']:.2f}", f"{line[f'{case.name}: peak MB']:.0f}"
        cells = (case.name, *rates, *(f"{ratio:.2f}" for ratio in ratios), f"{found['disk alone']:.0f}", *cost)
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield measured_on(line)


def page() -> str:
    return "\n".join([HEAD, *receiving(), ""])


if __name__ == "__main__":
    PAGE.write_text(page())
