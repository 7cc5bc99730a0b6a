"""What pages, start-up and receiving cost with 1 000 000 rows of instances, beside a ledger that is empty.

    python -m tests.bench.pages                 and a line of JSON in results.jsonl
    python -m tests.bench.pages ROWS            of so many rows, printed only

The node is one in a process of its own, asked over HTTP one page after the other. The receiving rates are of the same
run, in pairs: an empty ledger, then the full one.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from rich.console import Console

from pacs_node.ledger import Ledger
from pacs_node.ledger.tables import instance_table, series_table
from tests.bench.receive import Case, make_images, ours, seconds_to_send
from tests.bench.record import record
from tests.bench.rows import fill, fill_series
from tests.harness import NodeProcess, free_port, node_toml

ROWS = 1_000_000
SERIES = 50_000  # in the list: those of these rows, and others of one image each
ASKED = 60  # times each page is asked for
PAIRS = 3
SENT = Case("300 of 512 KiB, 1 association", 300, 512, 1)
GOAL_MS = 50.0


def addresses(series: list[str], middle: str) -> dict[str, str]:
    """The pages of the node, and the JSON behind them; a series with many images, the middle of the list."""
    return {
        "list": "/",
        "list, searched": "/?q=thorax",
        "list, only trouble": "/?trouble=1",
        "list, slowest": "/?sort=slowest",
        "list, with findings": "/?findings=with",
        "list, large nodules": "/?kind=Nodule&min_mm=20",
        "older list": f"/?before={middle}",
        "series": f"/series/{series[0]}",
        "refusals": "/refusals",
        "destinations": "/destinations",
        "health": "/health",
        "metrics": "/metrics",
        "api: series": "/api/series",
        "api: 1000 series": "/api/series?limit=1000",
        "api: one series": f"/api/series/{series[0]}",
    }


def measure_pages(node: NodeProcess, of: dict[str, str]) -> Iterator[tuple[str, float]]:
    """(what, ms): the median and the 95th percentile of each page, all pages asked in turn."""
    times: dict[str, list[float]] = {name: [] for name in of}
    with httpx.Client(base_url=f"http://127.0.0.1:{node.web_port}", timeout=60) as client:
        for round_ in range(ASKED + 3):
            for name, address in of.items():
                began = time.perf_counter()
                client.get(address).raise_for_status()
                if round_ >= 3:  # the first ones fill caches
                    times[name].append((time.perf_counter() - began) * 1000)
    for name, each in times.items():
        yield f"{name}: p50 ms", statistics.median(each)
        yield f"{name}: p95 ms", statistics.quantiles(each, n=20)[-1]


def seconds_to_start(folder: Path) -> float:
    """Until it answers that it is well."""
    began = time.perf_counter()
    with NodeProcess(folder, node_toml("PACS", free_port())) as node:
        node.start()
        seconds = time.perf_counter() - began
        node.terminate()
    return seconds


def receiving(base: Path, full: Path, rows: int) -> dict[str, float]:
    """Images a second into an empty ledger and into the full one, medians, and of each pair the ratio."""
    make_images(base / "images", SENT)
    rates: dict[str, list[float]] = {"empty": [], "full": []}
    for number in range(PAIRS):
        for name in rates:
            folder = full if name == "full" else base / f"empty-{number}"
            folder.mkdir(exist_ok=True)
            with ours(folder, SENT, []) as server:
                rates[name].append(SENT.images / seconds_to_send(base / "images", server, SENT))
            if name == "full":
                forget(folder)
    return {
        "receiving, empty ledger": statistics.median(rates["empty"]),
        f"receiving, {rows} rows": statistics.median(rates["full"]),
        "receiving, ratio": statistics.median(f / e for e, f in zip(rates["empty"], rates["full"], strict=True)),
    }


def forget(folder: Path) -> None:
    """What was sent last: it will be sent again."""
    shutil.rmtree(folder / "spool")
    ledger = Ledger(f"sqlite:///{folder}/node.sqlite", folder)
    with ledger.engine.begin() as db:
        sent = sa.select(series_table.c.series_uid).where(series_table.c.state == "receiving")
        db.execute(sa.delete(instance_table).where(instance_table.c.series_uid.in_(sent)))
        db.execute(sa.delete(series_table).where(series_table.c.state == "receiving"))
    ledger.close()


def measure(rows: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"load": os.getloadavg()[0], "rows": rows}
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        figures["start, empty: s"] = seconds_to_start(base / "empty")
        node_folder = base / "node"
        data = node_folder / "data"
        data.mkdir(parents=True)
        ledger = Ledger(f"sqlite:///{data}/node.sqlite", data)
        ledger.migrate()
        began = time.perf_counter()
        series = fill(ledger, rows)
        fill_series(ledger, SERIES - series)
        figures["series"] = SERIES
        figures["made in s"] = time.perf_counter() - began
        listed = ledger.series_list(1000)
        longest = sorted(listed, key=lambda each: -each["instances"] * len(each["jobs"]))
        middle = listed[-1]["first_arrival"].replace("+", "%2B")
        ledger.close()
        figures["ledger MB"] = (data / "node.sqlite").stat().st_size / 1e6
        figures["start: s"] = seconds_to_start(node_folder)
        with NodeProcess(node_folder, node_toml("PACS", free_port())) as node:
            node.start()
            time.sleep(10)  # its models are loaded
            figures |= measure_pages(node, addresses([each["series_uid"] for each in longest], middle))
            node.terminate()
        figures |= receiving(base, data, rows)
    return figures


def run() -> None:
    record("pages", measure(ROWS))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Console().print(measure(int(sys.argv[1])))
    else:
        run()
