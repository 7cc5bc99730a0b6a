"""The n-th system call of one kind fails, once or for some seconds, while a series goes through a whole node.

A fault names calls that do one thing to one part of the node: `write` to the `ledger`. Every call before the n-th is
let go on, and so is every one once the fault is over. Then all that was answered with 0x0000 is delivered, once,
without a restart, and /health is "ok" again, which it is not while something that was promised cannot move.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import Self

import httpx
import pydicom

from tests.fault import results
from tests.fault.books import Arrived, Books, Honest, Image, series_of
from tests.fault.calls import Call, Calls
from tests.fault.cheap import installed
from tests.harness import NodeProcess

TOML = """
[receive]
keep_free_gb = 0.01
drain_s = 1.0
network_timeout_s = 5.0
acse_timeout_s = 5.0
dimse_timeout_s = 5.0
[assemble]
quiet_s = 0.2
quiet_unreleased_s = 0.5
[jobs]
send_backoff_s = 0.2
send_backoff_max_s = 1.0
sweep_s = 0.5
lease_s = 5.0
await_report_s = 3.0
[infer]
device = "cpu"
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "honest"
ae_title = "HONEST"
host = "127.0.0.1"
port = {port}
may_send = true
[[peer]]
name = "folder"
folder = "delivered"
[[route]]
name = "cheap"
match = {{ Modality = "US" }}
pipeline = "cheap"
send_to = ["honest", "folder"]
"""
# what is done -> by which calls, and how they may fail
DEEDS: dict[str, tuple[frozenset[str], tuple[int, ...]]] = {
    "write": (frozenset({"write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile"}), (errno.ENOSPC, errno.EIO)),
    "sync": (frozenset({"fsync", "fdatasync"}), (errno.EIO, errno.ENOSPC)),
    "name": (frozenset({"rename", "link", "unlink", "unlinkat", "mkdir", "rmdir"}), (errno.ENOSPC, errno.EIO)),
    "open": (frozenset({"openat"}), (errno.EMFILE, errno.ENOSPC, errno.EIO)),
    "truncate": (frozenset({"ftruncate"}), (errno.EIO,)),
    "read": (frozenset({"read", "readv", "pread64"}), (errno.EIO,)),
    "lock": (frozenset({"fcntl"}), (errno.EAGAIN,)),  # as SQLite hears that the database is locked
    "connect": (frozenset({"connect"}), (errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ENETUNREACH)),
    "send": (frozenset({"sendto", "sendmsg", "write"}), (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT)),
    "recv": (frozenset({"recvfrom", "recvmsg", "read"}), (errno.ECONNRESET, errno.ETIMEDOUT)),
    "accept": (frozenset({"accept4"}), (errno.EMFILE, errno.ECONNABORTED)),
    "thread": (frozenset({"clone3"}), (errno.EAGAIN,)),
}
TO_FILES = ("write", "sync", "name", "open", "truncate", "read", "lock")
TO_SOCKETS = ("connect", "send", "recv", "accept")
PLACES = {  # of a file below the node's folder -> the part of the node that it is
    "data/spool": "pack",
    "data/node.sqlite": "ledger",
    "data/node-jobs.sqlite": "engine",
    "data/results": "results",
    "data/work": "work",
    "delivered": "folder",
    "node.log": "log",
}
DISK = frozenset(("write", "sync", "name", "open"))
ON_THE_DISK = frozenset(("pack", "ledger", "engine", "results", "work"))
WITHIN_S, CROWDED_S = 120.0, 300.0  # everything is delivered after the end of a fault; in a run at the lowest priority
HELD_S = 4.0
TOLD_S = 2.0  # /health says what fails: a sweep, an attempt that is made again, and a look
TOLD_LATER_S = {  # where somebody else waits first
    ("lock", "ledger"): 8.0,  # SQLite: until two sweeps and 5 s have not come round (node.LATE_S)
    ("lock", "engine"): 8.0,
    ("", "engine"): 18.0,  # DBOS: until a job has stood still for two sweeps and 15 s (facts.STANDING_S)
}
NOBODY_WAITS = {("", "log"), ("recv", "sender"), ("send", "sender")}  # a line is lost; the sender's own connection
UNLOCK = fcntl.F_UNLCK.to_bytes(2, sys.byteorder)  # the type of a struct flock
Class = tuple[str, str]  # what is done, to which part


@dataclass(frozen=True)
class Fault:
    """The n-th call of these fails, and those after it for so many seconds."""

    of: frozenset[Class]
    n: int
    error: int
    for_s: float = 0.0

    @property
    def what(self) -> str:
        return " ".join(min(self.of)) if len(self.of) == 1 else "the disk"

    def __str__(self) -> str:
        lasts = f", and all others for {self.for_s:g} s" if self.for_s else ""
        return f"{self.what}: call {self.n} fails with {errno.errorcode[self.error]}{lasts}"

    @property
    def told_s(self) -> float | None:
        """/health says so after this time; None: nobody waits for what fails."""
        if any({(deed, part), ("", part)} & NOBODY_WAITS for deed, part in self.of) or self.error == errno.ECONNABORTED:
            return None
        return min(told_s(of) for of in self.of)


def told_s(of: Class) -> float:
    return TOLD_LATER_S.get(of, TOLD_LATER_S.get(("", of[1]), TOLD_S))


class Sockets:
    """Whose sockets they are, by the numbers that the kernel gives them."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def part(self, thread: int, path: str, ports: dict[int, str]) -> str:
        """ "sender", "web", "honest": by the port; "child": the inference process; "": any other."""
        inode = path[len("socket:[") : -1]
        if inode not in self._known:
            found = self._looked_up(thread, inode, ports)
            if found is None:
                return ""  # not connected yet
            self._known[inode] = found
        return self._known[inode]

    @staticmethod
    def _looked_up(thread: int, inode: str, ports: dict[int, str]) -> str | None:
        with suppress(OSError):
            for line in Path(f"/proc/{thread}/net/tcp").read_text().splitlines()[1:]:
                _, local, remote, _, _, _, _, _, _, of, *_ = line.split()
                if of == inode:
                    numbers = [int(each.rpartition(":")[2], 16) for each in (local, remote)]
                    return next((ports[number] for number in numbers if number in ports), "")
            for line in Path(f"/proc/{thread}/net/unix").read_text().splitlines()[1:]:
                if line.split()[6] == inode:
                    return "child"
        return None


class Failing:
    """Counts calls by class, and fails those that the faults of the moment name."""

    def __init__(self, folder: Path, ports: dict[int, str]) -> None:
        self.folder, self.ports, self._sockets = str(folder), ports, Sockets()
        self.counted: Counter[Class] = Counter()
        self.hits: dict[Fault, list[float]] = {}  # of each fault, when a call failed
        self._lock = threading.Lock()

    def arm(self, *faults: Fault) -> None:
        with self._lock:
            self.hits = {fault: [] for fault in faults}
            self.counted.clear()

    def judge(self, call: Call) -> int:
        of = self.class_of(call)
        if of is None:
            return 0
        with self._lock:
            self.counted[of] += 1
            now = time.monotonic()
            for fault, hits in self.hits.items():
                due = sum(self.counted[each] for each in fault.of) == fault.n
                holds = bool(hits) and now - hits[0] < fault.for_s
                if of in fault.of and (due or holds):
                    hits.append(now)
                    return fault.error
        return 0

    def class_of(self, call: Call) -> Class | None:
        if call.name == "clone3":
            return ("thread", "node")
        if call.name == "connect":
            family, port = call.memory(call.arguments[1], 2), int.from_bytes(call.memory(call.arguments[1] + 2, 2))
            part = self.ports.get(port, "") if family == b"\2\0" else ""
            return ("connect", part) if part else None
        if call.name == "fcntl" and call.memory(call.arguments[2], 2) == UNLOCK:
            return None  # no kernel says no to that
        if call.path.startswith("socket:"):
            part, deeds = self._sockets.part(call.thread, call.path, self.ports), TO_SOCKETS
        else:
            part, deeds = self._place(call.path), TO_FILES
        if not part or part == "web":
            return None
        return next(((deed, part) for deed in deeds if call.name in DEEDS[deed][0]), None)

    def _place(self, path: str) -> str:
        if not path.startswith(self.folder):
            return ""
        below = path[len(self.folder) + 1 :]
        return next((part for place, part in PLACES.items() if below.startswith(place)), "")


class Health:
    """What /health says, looked at all the time."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/health"
        self.said: list[tuple[float, float, str, list[str]]] = []  # when it was asked, and answered; what
        self.associations = 0  # that are open
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        with httpx.Client(timeout=20) as client:
            while not self._over.wait(0.2):
                asked = time.monotonic()
                try:
                    answer = client.get(self.url)
                    facts = answer.json()
                    good = answer.status_code == (503 if facts["status"] == "trouble" else 200)
                    status = facts["status"] if good else f"{facts['status']} with {answer.status_code}"
                    self.said.append((asked, time.monotonic(), status, facts["reasons"]))
                    self.associations = facts["open_associations"]
                except (httpx.TransportError, ValueError) as error:
                    self.said.append((asked, time.monotonic(), f"no answer: {type(error).__name__}", []))

    @property
    def now(self) -> tuple[str, list[str]]:
        return self.said[-1][2:] if self.said else ("not asked", [])

    def between(self, since: float, until: float) -> list[str]:
        """What it answered to whatever it was asked then."""
        return [status for asked, answered, status, _ in self.said if since <= asked and answered <= until]


class Bench:
    """A node whose calls can be made to fail, a sender and two destinations: a PACS and a folder."""

    def __init__(self, folder: Path, settings: str = "", within_s: float = WITHIN_S) -> None:
        self.within_s = within_s
        self.books, self.honest = Books(), Honest()
        self.stack = ExitStack()
        self.node = NodeProcess(
            folder / "node", settings + TOML.format(port=self.honest.port), installed=installed(folder / "site")
        )
        ports = {self.node.dicom_port: "sender", self.node.web_port: "web", self.honest.port: "honest"}
        self.failing = Failing(folder / "node", ports)
        self.calls = Calls(self.failing.judge)
        self.node.command = [*self.calls.before, sys.executable, "-m", "pacs_node.cli", "serve"]
        self.health = Health(self.node.web_port)
        self.serial = 0

    def __enter__(self) -> Self:
        for each in (self.honest, self.calls, self.node):
            self.stack.enter_context(each)  # type: ignore[arg-type]
        self.node.start()
        self.stack.enter_context(self.health)
        self.whole()  # the first series also waits for the inference process
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def whole(self) -> Counter[Class]:
        """A series without any fault: how many calls of each class it takes."""
        wrong = self.tried()
        assert wrong is None, wrong
        return Counter(self.failing.counted)

    def tried(self, *faults: Fault) -> str | None:
        """One series through the node with these faults; None, or what is wrong then."""
        self.serial += 1
        # long, so that it is written as it comes; and short
        images = series_of(f"nth {self.serial}", range(1, 2), size=300)
        images += series_of(f"nth {self.serial}", range(2, 3), size=40)
        self.failing.arm(*faults)
        told = self.books.send(self.node.dicom_port, images, tries=60, wait=time.sleep)
        if not self.node.alive:
            return f"the node ended: {self.node.log()[-1500:]}"
        if not told:
            return f"the images are refused for ever: {self.health.now}"
        deadline, moved_at = time.monotonic() + self.within_s, math.inf
        while True:
            why = self.not_moved(images)
            if why is None:
                moved_at = min(moved_at, time.monotonic())
                if self.health.now[0] == "ok":
                    break
                why = "all is delivered, and /health does not say so"
            if not self.node.alive:
                return f"the node ended: {self.node.log()[-1500:]}"
            if time.monotonic() > deadline:
                return f"{why}; /health says {self.health.now}"
            time.sleep(0.05)
        told = (self.not_told(fault, hits, moved_at) for fault, hits in self.failing.hits.items())
        return next((wrong for wrong in told if wrong is not None), None) or self.not_once(images)

    @property
    def reached(self) -> int:
        """How many of the faults have come to pass."""
        return sum(map(bool, self.failing.hits.values()))

    def not_moved(self, images: Sequence[Image]) -> str | None:
        """None once all is where it should be, and said to be; else what is not."""
        uids = frozenset(image.sop_instance_uid for image in images)
        for name, reports in (("PACS", dict(self.honest.reports)), ("folder", self.delivered(images))):
            if not uids <= frozenset[str]().union(*(each.images for each in reports.values())):
                return f"no report of {images[0].series_uid} in the {name}"
        try:
            facts = self.node.finished(images[0].series_uid)
        except httpx.HTTPError as error:
            return f"no answer about the series: {error!r}"
        if facts is None:
            return f"jobs of {images[0].series_uid} have not ended: {self.node.series(images[0].series_uid)}"
        # where a fault has parted the images, those that came late make a revision: it ends what is left of the former
        before = {job["id"] for job in facts["jobs"] if job["revision"] < facts["revision"]}
        ended = {job["id"] for job in facts["jobs"] if job["state"] == "done"}
        ended |= before & {job["id"] for job in facts["jobs"] if job["state"] == "superseded"}
        odd = [(job["kind"], job["state"], job["reason"]) for job in facts["jobs"] if job["id"] not in ended]
        if odd:
            return f"jobs of {images[0].series_uid} ended so: {odd}"
        if self.health.associations:
            return f"{self.health.associations} associations are open still"
        return None

    def delivered(self, images: Sequence[Image]) -> dict[str, Arrived]:
        """Reports in the folder about any of these."""
        uids, found = {image.sop_instance_uid for image in images}, {}
        for path in (self.node.folder / "delivered").glob("study-*/SR-*.dcm"):
            report = Arrived.of(pydicom.dcmread(path))
            if report.images & uids:
                found[report.uid] = replace(report, contents={"file"})
        return found

    def not_once(self, images: Sequence[Image]) -> str | None:
        uids = {image.sop_instance_uid for image in images}
        for name, known in (("PACS", dict(self.honest.reports)), ("folder", self.delivered(images))):
            reports = {uid: each for uid, each in known.items() if each.images & uids}
            for what in ("duplicates", "differing"):
                if wrong := getattr(self.books, what)(reports):
                    return f"{what} in the {name}: {wrong} among {sorted(reports)}"
        return None

    def not_told(self, fault: Fault, hits: Sequence[float], moved_at: float) -> str | None:
        """While something stood still because it failed again and again, /health did not say "ok"."""
        if (told_s := fault.told_s) is None or len(hits) < 2:
            return None
        gap_s = max(after - before for before, after in pairwise(hits))
        if hits[-1] - hits[0] < max(told_s, gap_s) or gap_s > told_s or moved_at < hits[-1]:
            return None  # it was tried too seldom to know, or nothing waited for it
        said = self.health.between(hits[0] + told_s, hits[-1])
        return f"/health said {said} while it failed {len(hits)} times" if "ok" in said else None


def faults(counted: Counter[Class]) -> Iterator[Fault]:
    """Every n of every class with every error, once; then each class for some seconds, and the whole disk."""
    for of, count in sorted(counted.items()):
        errors = DEEDS[of[0]][1]
        for error in errors:
            for n in range(1, count + 1):
                yield Fault(frozenset({of}), n, error)
        if of[0] == "thread":
            continue
        for number, error in enumerate(errors):
            for n in sorted({1 + number, 1 + count // 2, count}):
                yield Fault(frozenset({of}), n, error, max(HELD_S, told_s(of) + 4.0))
    disk = frozenset(of for of in counted if of[0] in DISK and of[1] in ON_THE_DISK)
    together = sum(counted[of] for of in disk)
    for n in range(1, together, max(1, together // 12)):
        yield Fault(disk, n, errno.ENOSPC, HELD_S)


def in_turn(found: Iterable[Fault], seed: int) -> list[Fault]:
    """The same, shuffled: of each class one, then of each another."""
    dice = random.Random(seed)
    by_class: dict[frozenset[Class], list[Fault]] = {}
    for fault in found:
        by_class.setdefault(fault.of, []).append(fault)
    groups = list(by_class.values())
    for group in (groups, *groups):
        dice.shuffle(group)
    return [fault for fault in chain.from_iterable(zip_longest(*groups)) if fault is not None]


def sample(counted: Counter[Class], seed: int) -> list[Fault]:
    """One call of each class, so that each deed fails with each of its errors."""
    dice = random.Random(seed)
    drawn = []
    for deed, (_, errors) in DEEDS.items():
        parts = sorted(part for at, part in counted if at == deed)
        first = dice.randrange(len(errors))
        for number in range(max(len(parts), len(errors)) if parts else 0):
            of = (deed, parts[number % len(parts)])
            error = errors[(first + number) % len(errors)]
            drawn.append(Fault(frozenset({of}), dice.randint(1, counted[of]), error))
    dice.shuffle(drawn)
    return drawn


def run(part: slice, seed: int, within_s: float) -> Iterator[tuple[Fault, str | None, bool]]:
    """Every fault of a part of all, as far as the time goes, what is wrong with it, and whether the node came to it. A
    node that was found to be wrong makes room for a new one."""
    todo: list[Fault] | None = None
    until = time.monotonic() + within_s
    while (todo is None or todo) and time.monotonic() < until:
        with tempfile.TemporaryDirectory(prefix="nth-") as folder, Bench(Path(folder), within_s=CROWDED_S) as bench:
            if todo is None:
                todo = in_turn(faults(bench.whole()), seed)[part]
            wrong = None
            while todo and wrong is None and time.monotonic() < until:
                fault = todo.pop(0)
                wrong = bench.tried(fault)
                yield fault, wrong, bool(bench.reached)


def main() -> None:
    """All of it, or a part, or as many as a time allows: python -m tests.fault.nth [FIRST:EVERY] [MINUTES] [SEED]."""
    part, minutes, seed, *_ = [*sys.argv[1:], *["0:1", "inf", "1"][len(sys.argv) - 1 :]]
    first, _, every = part.partition(":")
    began = time.monotonic()
    of, reached, wrong = Counter[str](), 0, 0
    for fault, said, came in run(slice(int(first), None, int(every)), int(seed), 60 * float(minutes)):
        of[fault.what] += 1
        reached += came
        wrong += said is not None
        if said is not None:
            print(f"{fault}: {said}", flush=True)
    figures = {"faults": of.total(), "reached": reached, "wrong": wrong, "of": dict(sorted(of.items()))}
    figures["minutes"] = round((time.monotonic() - began) / 60, 1)
    results.record("faults", {"part": part, "seed": int(seed), **figures})
    print(json.dumps(figures, indent=1))
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
