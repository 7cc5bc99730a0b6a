"""Kills at random for as long as is asked, under a load that is replayed by a seed: `make soak SEED=1 KILLS=500`.

Two workers on PostgreSQL, one of them the listener as well, in two processes. Killed: either worker, a process that
receives, an inference process, the PostgreSQL server. One destination is down 40 % of the time, the other one lies.
What was lost, came twice or differs is said by books that ask the node nothing (`books.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.fault import results
from tests.fault.books import Books, Honest, Image, Lying, series_of
from tests.fault.cheap import installed
from tests.harness import ROOT, NodeProcess, Postgres, wait_for

TOML = """
[receive]
keep_free_gb = 0.1
processes = 2
[assemble]
quiet_s = 0.5
quiet_unreleased_s = 1.5
[jobs]
send_backoff_s = 0.3
send_backoff_max_s = 3.0
max_attempts = 100000
infer_attempts = 100000
confirm_attempts = 30
await_report_s = 20.0
poison_limit = 100000
sweep_s = 0.5
lease_s = 5.0
[infer]
device = "cpu"
[database]
url = "{database}"
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "honest"
ae_title = "HONEST"
host = "127.0.0.1"
port = {honest}
may_send = true
[[peer]]
name = "lying"
ae_title = "LYING"
host = "127.0.0.1"
port = {lying}
[[route]]
name = "cheap"
match = {{ Modality = "US" }}
pipeline = "cheap"
options = {{ takes_s = 0.3 }}
send_to = ["honest", "lying"]
"""
VICTIMS = {"serve": 30, "receiver": 20, "worker": 20, "inference": 15, "postgres": 15}  # out of a hundred kills
CHILDREN = {"receiver": "spawn_main", "inference": "inference_process"}  # of serve and worker, by their commands
DOWN = 0.4  # of the time
SENDERS = 2
STANDS_STILL_S = 240.0  # without another report: nothing will come any more


class Soak:
    """The node's processes, its senders and destinations, for one run."""

    def __init__(self, folder: Path, seed: int, postgres: Postgres) -> None:
        self.seed, self.postgres = seed, postgres
        self.books, self.honest, self.lying = Books(), Honest(), Lying(f"{seed} lying")
        self.over = threading.Event()
        self.killed: Counter[str] = Counter()
        self.up_s, self.down_s = 0.0, 0.0
        toml = TOML.format(database=postgres.database("soak"), honest=self.honest.port, lying=self.lying.port)
        self.serve = NodeProcess(folder / "node", toml, installed=installed(folder / "site"))
        self.worker: subprocess.Popen[bytes] | None = None
        self.folder = folder

    def start_worker(self) -> None:
        with (self.folder / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "pacs_node.cli", "worker", "--config", str(self.serve.config)],
                stdout=log, stderr=log, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(self.serve.paths)},
            )  # fmt: skip

    def sending(self, number: int) -> None:
        dice, serial = random.Random(f"{self.seed} sender {number}"), 0
        while not self.over.is_set():
            serial += 1
            name = f"{self.seed}-{number}-{serial}"
            images: list[Image] = series_of(name, range(1, dice.choice((2, 2, 3, 4))))
            if serial > 4 and dice.random() < 0.1:  # late: a second revision
                images += series_of(f"{self.seed}-{number}-{serial - 4}", range(9, 10))
            self.books.send(self.serve.dicom_port, images, tries=100, wait=self.over.wait)
            self.over.wait(dice.uniform(0.3, 2.5))

    def flapping(self) -> None:
        dice = random.Random(f"{self.seed} flapping")
        while not self.over.is_set():
            up_s, down_s = ((1 - DOWN) * (cycle_s := dice.uniform(3, 12)), DOWN * cycle_s)
            self.up_s += up_s
            if self.over.wait(up_s):
                break
            self.honest.stop()
            self.over.wait(down_s)
            self.down_s += down_s
            self.honest.start()

    def kill(self, victim: str) -> None:
        """And start it again, unless it comes again by itself."""
        self.killed[victim] += 1
        if victim == "serve":
            self.serve.kill()
            self.serve.start(wait=False)
        elif victim == "worker":
            assert self.worker is not None
            self.worker.kill()
            self.worker.wait()
            self.start_worker()
        elif victim in CHILDREN:
            for process in self.children(CHILDREN[victim])[:1]:
                with suppress(ProcessLookupError):
                    # SIGKILL is taken for a lack of memory of an inference, and tried but once more
                    os.kill(process, signal.SIGSEGV if victim == "inference" else signal.SIGKILL)
        else:
            self.postgres.kill()
            time.sleep(1)
            self.start_postgres()

    def start_postgres(self) -> None:
        def started() -> bool:
            with suppress(subprocess.SubprocessError):
                self.postgres.start()
                return True
            return False

        wait_for(started, 60, "PostgreSQL to start again")

    def children(self, word: str) -> list[int]:
        """Processes that the two have started, by a word of their command."""
        assert self.serve.process is not None
        assert self.worker is not None
        return [child for parent in (self.serve.process.pid, self.worker.pid) for child in children_of(parent, word)]

    def plan(self, kills: int) -> Iterator[tuple[str, float]]:
        """(whom to kill, seconds to wait before)."""
        dice = random.Random(f"{self.seed} kills")
        for _ in range(kills):
            [victim] = dice.choices(list(VICTIMS), list(VICTIMS.values()))
            yield victim, dice.choice((dice.uniform(0.1, 1.5), dice.uniform(1, 6), dice.uniform(3, 12)))

    def health(self) -> dict[str, Any]:
        with suppress(httpx.TransportError, ValueError):
            answer = httpx.get(f"http://127.0.0.1:{self.serve.web_port}/health", timeout=20).json()
            return {"status": answer["status"], "reasons": answer["reasons"][:5]}
        return {"status": "no answer"}

    def settled(self) -> bool:
        """Every image that was promised is in a report; False once nothing has come for long."""
        before, since = -1, time.monotonic()
        while self.books.missing(self.honest.reports):
            now = sum(each.times for each in self.honest.reports.values())
            if now != before:
                before, since = now, time.monotonic()
            if time.monotonic() - since > STANDS_STILL_S:
                return False
            time.sleep(0.5)
        return True


def children_of(pid: int, word: str) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in task.read_text().split() if word in command_of(child)]
    return found


def command_of(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def soak(folder: Path, seed: int, kills: int) -> dict[str, Any]:
    """What came of it, in figures."""
    with ExitStack() as stack:
        run = Soak(folder, seed, stack.enter_context(Postgres(folder)))
        stack.callback(lambda: run.worker and run.worker.kill())
        stack.enter_context(run.serve)
        stack.enter_context(run.honest)
        stack.enter_context(run.lying)
        began = time.monotonic()
        run.serve.start(wait=False)
        run.start_worker()
        wait_for(run.serve.healthy, 300, f"a node that is well:\n{run.serve.log()}")
        beside = [threading.Thread(target=run.sending, args=(number,)) for number in range(SENDERS)]
        beside.append(threading.Thread(target=run.flapping))
        for thread in beside:
            thread.start()
        try:
            for victim, wait_s in run.plan(kills):
                time.sleep(wait_s)
                run.kill(victim)
        finally:
            run.over.set()
            for thread in beside:
                thread.join(120)
        killing_s = time.monotonic() - began
        settled = run.settled()
        if settled:
            with suppress(AssertionError):  # what it says instead is a figure, too
                wait_for(lambda: run.health()["status"] == "ok", 60, "a node that is well")
        reports, books = run.honest.reports, run.books
        return {
            "seed": seed,
            "kills": sum(run.killed.values()),
            "killed": dict(run.killed),
            "acknowledged": len(books.told),
            "series": len({each.series_uid for each in books.told.values()}),
            "reports": len(reports),
            "lost": len(books.missing(reports)),
            "duplicate": len(books.duplicates(reports)),
            "differing": len(books.differing(reports)),
            "sent_again": sum(each.times - 1 for each in reports.values()),
            "refused": books.refused,
            "broken_associations": books.broken,
            "honest_down": round(run.down_s / max(1.0, run.up_s + run.down_s), 2),
            "lies": dict(run.lying.lies),
            "settled": settled,
            "minutes": round(killing_s / 60, 1),
            "health": run.health(),
            "wrong": {
                "lost": books.missing(reports)[:5],
                "duplicate": books.duplicates(reports)[:5],
                "differing": books.differing(reports)[:5],
            },
        }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--kills", type=int, default=500)
    asked.add_argument("--keep", type=Path, help="a folder for what the node leaves")
    given = asked.parse_args()
    with ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        figures = soak(folder, given.seed, given.kills)
    wrong = figures.pop("wrong")
    results.record(f"soak {given.seed}", figures)
    print(json.dumps({**figures, "wrong": wrong}, indent=1))
    sys.exit(any(figures[name] for name in ("lost", "duplicate", "differing")))


if __name__ == "__main__":
    main()
