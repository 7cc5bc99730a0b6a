"""docs/performance.md, written from what was measured last: python -m tests.bench.page"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.bench.receive import CASES
from tests.bench.record import RESULTS
from tests.bench.where import CASES as SPENT
from tests.harness import ROOT

PAGE = ROOT / "docs" / "performance.md"
HEAD = """# Performance

Written by `python -m tests.bench.page` from `tests/bench/results.jsonl`, which `make bench` adds to; do not edit it.
Figures are of the machine that is named. What carries over to another one is the ratio against a peer in the same run.
"""
ABOUT_RECEIVING = """Images per second that DCMTK's `storescu` gets rid of, medians of three rounds. Ours are durable
(one sync each) and have their rows in the ledger when the clock stops; `storescp +B` waits for no disk and indexes
nothing. "Disk alone" is our promise without a network. CPU is of the receiving process, all threads, in ms an image."""

ABOUT_SPENDING = """In the thread that receives, over one association; each part under a stopwatch
(`tests/bench/where.py`), medians of three rounds. "Whole" is by the sender's clock, its start and end included,
storescp's in the same run."""

ABOUT_FLOW = """Into a real Orthanc; medians in seconds. "Node adds" is all but the quiet time and the inference.
Closing is judging, routing and queueing, less what was done of it in the quiet time; encoding is all of the infer job
but the inference; sending ends with the answer to the last object."""
ABOUT_PAGES = """Over HTTP, of a node that is doing nothing else, one page after the other."""


def last(name: str) -> dict[str, Any] | None:
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return next((line for line in reversed(lines) if line["bench"] == name), None)


def measured_on(line: Mapping[str, Any]) -> str:
    load = f", load {line['load']:.1f} when it began" if "load" in line else ""
    return f"*{line['machine']}{load}; commit {line['commit']}, {line['at'][:10]}.*"


def receiving(line: Mapping[str, Any]) -> Iterator[str]:
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


def spending(line: Mapping[str, Any]) -> Iterator[str]:
    names = [case.name for case in SPENT]
    keys = [key.removeprefix(f"{names[0]}: ").removesuffix(", ms") for key in line if key.startswith(names[0])]
    yield f"| ms of an image | {' | '.join(names)} |"
    yield f"| --- |{' ---: |' * len(names)}"
    for what in keys:
        found = [line.get(f"{name}: {what}, ms", 0.0) for name in names]
        yield f"| {what} | {' | '.join(f'{ms:.2f}' for ms in found)} |"
    yield ""


def chest(line: Mapping[str, Any]) -> Iterator[str]:
    cost = f"{line['s']:.1f} s, {line['CPU s']:.1f} s of processor"
    yield f"`lung-nodule`, {line['threads']} threads, {line['form']}: {cost}."
    yield ""
    yield "| step | s | most memory of the process meanwhile, MB |"
    yield "| --- | ---: | ---: |"
    for what in [key.removesuffix(", peak MB") for key in line if key.endswith(", peak MB")]:
        yield f"| {what} | {line[f'{what}, s']:.2f} | {line[f'{what}, peak MB']} |"
    yield ""


def flowing(chest_ct: Mapping[str, Any]) -> Iterator[str]:
    lines = [chest_ct, *filter(None, [last("flow: ultrasound image")])]
    yield "| series | images | node adds, s | closing | queueing | encoding | sending | inference, s |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for line in lines:
        parts = ("node_adds_s", "closing_s", "queueing_s", "encoding_s", "sending_s", "inference_s")
        cells = (
            line["bench"].removeprefix("flow: "),
            f"{line['images']:.0f}",
            *(f"{line[part]:.2f}" for part in parts),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    memory = last("flow: peak memory")
    if memory is not None:
        held = f"{memory['node_mb']:.0f} MB meanwhile, that of the inference {memory['inference_mb']:.0f} MB"
        yield f"The main process held at most {held}."
        yield ""


def pages(line: Mapping[str, Any]) -> Iterator[str]:
    yield f"{line['rows']} instances of {line['series']} series, {line['ledger MB']:.0f} MB:"
    yield ""
    yield "| page | median, ms | 95th percentile, ms |"
    yield "| --- | ---: | ---: |"
    for what in [key.removesuffix(": p50 ms") for key in line if key.endswith(": p50 ms")]:
        yield f"| {what} | {line[f'{what}: p50 ms']:.0f} | {line[f'{what}: p95 ms']:.0f} |"
    yield ""
    full = f"receiving, {line['rows']} rows"
    yield (
        f"Start-up: {line['start: s']:.1f} s, of an empty ledger {line['start, empty: s']:.1f} s. Receiving (300 of "
        f"512 KiB): {line[full]:.0f} images a second, into an empty ledger {line['receiving, empty ledger']:.0f}; "
        f"the ratio of pairs is {line['receiving, ratio']:.2f}."
    )
    yield ""


def idling(line: Mapping[str, Any]) -> Iterator[str]:
    cost = f"{line['cpu %']:.2f} % of a core over a minute and {line['resident MB']:.0f} MB"
    yield f"The main process takes {cost}; the models are in a process of their own."
    yield ""


# what it is about -> which figures, and how they are told
SECTIONS: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], Iterator[str]]]] = {
    "Receiving": (ABOUT_RECEIVING, "receive", receiving),
    "Where the time of one image goes": (ABOUT_SPENDING, "where", spending),
    "From the last image to the result accepted": (ABOUT_FLOW, "flow: chest CT", flowing),
    "A chest CT of 300 slices": ("", "chest: 300 slices, nodulenet", chest),
    "Pages of a full ledger": (ABOUT_PAGES, "pages", pages),
    "A node that nobody sends anything": ("", "idle", idling),
}


def page() -> str:
    lines = [HEAD]
    for title, (about, name, told) in SECTIONS.items():
        lines += [f"## {title}", "", *([about, ""] if about else [])]
        line = last(name)
        lines += ["Not measured yet."] if line is None else [*told(line), measured_on(line)]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
