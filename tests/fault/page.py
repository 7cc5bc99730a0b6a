"""docs/reliability.md, written from what the fault runs found last: python -m tests.fault.page"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.fault.results import all_results
from tests.harness import ROOT

PAGE = ROOT / "docs" / "reliability.md"
FUZZ = ROOT / "docs" / "results" / "fuzz.json"
HEAD = """# Reliability

Written by `python -m tests.fault.page` from `docs/results/reliability.json` and `docs/results/fuzz.json`, where the
runs below put their figures; do not edit it. Figures are of the machine and the commit that are named.
"""
PROMISES = (  # what is promised, what keeps it, which of the sections below try it
    (
        "An image that was answered with 0x0000 is never lost.",
        "One sync of its pack, whose name and folder are synced before; the database need not know of it.",
        "kills, failing calls, power cuts",
    ),
    (
        "Its results are delivered to every destination of its route, without a restart, once what failed is well.",
        "The job row; a sweeper that believes nothing else.",
        "kills, failing calls, power cuts",
    ),
    (
        "No result is there twice: the same work has the same UIDs and the same bytes.",
        "UIDs that derive from what a result is about; revisions that name their predecessor.",
        "kills, failing calls, power cuts",
    ),
    ("`/health` says what fails and what stands still.", "Loops that tell of their errors.", "failing calls"),
    ("What a stranger sends harms nobody else.", "Limits before parsing; limits on processes.", "fuzzing"),
)
AFTER_A_CUT = """
A power cut is survived by the pack alone: rows that it takes away are made again from the packs at the next start. The
databases are SQLite with `synchronous = FULL` (a commit is on the disk when it returns), so a receipt that was noted is
not forgotten either; on PostgreSQL that is `synchronous_commit = on`, its default.
"""
KILLS = """## Kills

`make soak SEED=1 KILLS=500` (`tests/fault/soak.py`): `serve` and a second worker on PostgreSQL, two senders that send
again what was not answered with 0x0000, one destination that is down 40 % of the time and one that lies: says 0x0000
and keeps nothing, answers twice, half, late or not at all. Killed at random, as the seed says: `serve`, one of the two
processes that receive, the worker, an inference process, the PostgreSQL server, all with SIGKILL but the inference
(SIGSEGV: a SIGKILL there is taken for a lack of memory, and tried but once more). Books that ask the node nothing
compare what senders were told with what the honest destination has: every image is in a report, no report is there
beside one that says the same or that nothing has replaced, and each says the figure that its images' pixels make."""
CALLS = """## Failing calls

`make faults` (`tests/fault/nth.py`; `PART=0:5` for every fifth, `MINUTES=60` for as many as that allows): a series goes
from C-STORE to a PACS and to a folder, and the n-th write, sync, rename, open, truncation, read, lock, connect, send,
receive, accept or start of a thread of one part of the node fails, for every n and with every error that such a call
may give: received images, both databases, results, copies for the inference, the folder, the log, the sender's
connection, the PACS's, the inference process's. Then the same for seconds, and a disk that is full for seconds. The
kernel refuses the real call (seccomp's user notification), of Python and of SQLite alike.

While something that was promised cannot move, `/health` must never say "ok", from two seconds after the first failure
on (eight while SQLite waits for a lock; eighteen for the job engine's own file, where nothing but a job that stands
still may show it), and must say "ok" again afterwards, without a restart. The tests try one call of every class, and
every error (`FAULT_SEED`). A run takes the classes in turn; one that was given minutes has tried what its figure says,
of some 4000 faults.

Besides (`tests/fault/test_cut_off.py`): another program locks a SQLite file for longer than the node waits for it; on
PostgreSQL the connection is lost at the n-th statement, before the server has it, and after it has done what it says
but before the node hears so."""
POWER = """## Power cuts

`make powercuts` (`tests/fault/power.py`; `CUTS=500` for so many of them): every call that touches the node's files is
recorded while series go through it. For a cut behind any of them a disk is built of what had been synced by then; what
came later is dropped, kept, or torn by pages in any order, names of files in the order of their folder. The node takes
up what is there: every image that had been promised by then is there with its bytes, every job is to be done or was,
every copy that was noted is in the folder. On some of these disks a node is started, and delivers everything once."""
FUZZING = """## Fuzzing

`make fuzz SEED=1` (`tests/fuzz`): conversations, data sets and bodies that no honest sender would send, while honest
ones go on. Found is what is wrong in the log or in an answer, memory that grew by more than 50 MB, and an honest sender
that waited for more than a second."""


def measured_on(entry: Mapping[str, Any]) -> str:
    began = f"{entry['load_began']:.1f} when it began, " if "load_began" in entry else ""
    load = f", load {began}{entry['load']:.1f} when it ended" if "load" in entry else ""
    return f"*{entry['machine']}{load}; commit {entry['commit']}{', ' + entry['at'][:10] if 'at' in entry else ''}.*"


def table(rows: Mapping[str, Any]) -> Iterator[str]:
    yield f"| {' | '.join(rows)} |"
    yield f"|{' ---: |' * len(rows)}"
    yield f"| {' | '.join(str(value) for value in rows.values())} |"


def section(about: str, rows: Mapping[str, str], *entries: Mapping[str, Any] | None) -> Iterator[str]:
    """rows: what a column is called -> the key of its figure."""
    yield about
    yield ""
    measured = [entry for entry in entries if entry is not None]
    if not measured:
        yield "Not measured yet."
        yield ""
    for entry in measured:
        yield from table({name: entry.get(key, "") for name, key in rows.items()})
        yield ""
        yield from more(entry)
        yield measured_on(entry)
        yield ""


def more(entry: Mapping[str, Any]) -> Iterator[str]:
    said = {"killed": "Killed", "lies": "Lies told", "of": "Faults by what failed where"}
    for key, words in said.items():
        if key in entry:
            yield f"{words}: {', '.join(f'{name} {number}' for name, number in entry[key].items())}."
            yield ""
    if "found" in entry:
        yield "Found at that commit:" if entry["found"] else "Nothing was found."
        yield ""
        yield from (f"- {each}" for each in entry["found"])
        yield from [""] if entry["found"] else []


def page() -> str:
    known = all_results()
    fuzz = json.loads(FUZZ.read_text()) if FUZZ.exists() else None
    kills = {"kills": "kills", "seed": "seed", "images promised": "acknowledged", "reports": "reports", "lost": "lost"}
    kills |= {"twice": "duplicate", "differing": "differing", "sent again": "sent_again", "minutes": "minutes"}
    calls = {
        "part": "part",
        "seed": "seed",
        "faults": "faults",
        "that came to pass": "reached",
        "wrong": "wrong",
        "minutes": "minutes",
    }
    power = {"calls": "acts", "images promised": "acknowledged", "cuts": "cuts", "nodes started": "started"}
    power |= {"wrong": "wrong", "minutes": "minutes"}
    fuzzed = {name: name for name in ("conversations", "bodies", "crashes", "hangs")}
    fuzzed |= {"data sets": "data_sets", "growth, MB": "growth_mb", "slowest honest, s": "slowest_honest_s"}
    lines = [HEAD, "| promise | kept by | tried by |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in PROMISES]
    lines.append(AFTER_A_CUT)
    lines += section(KILLS, kills, *(known[name] for name in sorted(known) if name.startswith("soak ")))
    lines += section(CALLS, calls, known.get("faults"))
    lines += section(POWER, power, known.get("power"))
    lines += section(FUZZING, fuzzed, fuzz)
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
