"""A power cut at any moment: what the disk holds then, by what was synced, and whether every promise is kept on it.

All calls that touch the node's files are recorded while series go through it. For a cut after the n-th of them a disk
is built that keeps what was synced: of a file what fsync or fdatasync was called for, of a folder the names it had when
fsync was called for the folder itself. What came later is dropped, kept, or torn: some of it, in any order, by pages.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pydicom

from pacs_node import fsck, pack
from pacs_node.intake import Intake
from pacs_node.ledger import Ledger
from pacs_node.receive.spool import Spool
from tests.fault import results
from tests.fault.books import Arrived, Books, Honest, Image, series_of
from tests.fault.calls import Call, Calls
from tests.fault.cheap import installed
from tests.fault.nth import TOML, Sockets
from tests.harness import NodeProcess, wait_for
from tests.parrot import elements

PAGE = 4096
SETTINGS = TOML.replace("[receive]", "[receive]\nlargest_mb = 64").replace("quiet_s = 0.2", "quiet_s = 0.4")
Unsynced = Literal["dropped", "kept", "torn"]


@dataclass
class File:
    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)  # written at; None: cut off there

    def write(self, at: int, data: bytes) -> None:
        self.since.append((at, data))
        _put(self.now, at, data)

    def cut_off(self, at: int) -> None:
        self.since.append((at, None))
        _cut(self.now, at)

    def sync(self) -> None:
        self.durable, self.since = bytes(self.now), []

    def left(self, unsynced: Unsynced, dice: random.Random) -> bytes:
        """What the disk has of it."""
        if unsynced != "torn":
            return bytes(self.now) if unsynced == "kept" else self.durable
        content = bytearray(self.durable)
        for at, data in self.since:
            if data is None:
                if dice.random() < 0.5:
                    _cut(content, at)
                continue
            fate = dice.random()
            start = at
            while start < at + len(data):
                end = min((start // PAGE + 1) * PAGE, at + len(data))
                if fate < 0.4 or (fate < 0.8 and dice.random() < 0.5):
                    _put(content, start, data[start - at : end - at])
                start = end
        return bytes(content)


@dataclass
class Folder:
    now: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)
    since: list[tuple[str, File | Folder | None]] = field(default_factory=list)

    def put(self, name: str, what: File | Folder | None) -> None:
        self.since.append((name, what))
        _name(self.now, name, what)

    def sync(self) -> None:
        self.durable, self.since = dict(self.now), []

    def left(self, unsynced: Unsynced, dice: random.Random) -> dict[str, File | Folder]:
        if unsynced != "torn":
            return self.now if unsynced == "kept" else self.durable
        entries = dict(self.durable)
        for name, what in self.since[: dice.randint(0, len(self.since))]:  # in their order, as journals keep it
            _name(entries, name, what)
        return entries


def _put(content: bytearray, at: int, data: bytes) -> None:
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(data)] = data


def _cut(content: bytearray, at: int) -> None:
    content.extend(bytes(max(0, at - len(content))))
    del content[at:]


def _name(entries: dict[str, File | Folder], name: str, what: File | Folder | None) -> None:
    if what is None:
        entries.pop(name, None)
    else:
        entries[name] = what


@dataclass(frozen=True)
class Act:
    """A call that changes the disk, or makes it durable; or a 0x0000 on its way to the sender."""

    name: str
    path: str = ""
    target: str = ""
    at: int = 0
    data: bytes = b""
    when: float = field(default_factory=time.monotonic)


class Recorder:
    """Hears every call, and keeps the acts among them, in their order."""

    def __init__(self, root: Path, dicom_port: int) -> None:
        self.root, self.acts = root, list[Act]()
        self._ports, self._sockets = {dicom_port: "sender"}, Sockets()

    def judge(self, call: Call) -> int:
        if call.name == "sendto":
            if self._sockets.part(call.thread, call.path, self._ports) == "sender":
                self.acts += acknowledged(call.data)
        elif call.name not in ("read", "pread64", "connect", "recvfrom", "fcntl", "accept4", "clone3", "sendmsg"):
            act = self._act(call)
            if act is not None:
                self.acts.append(act)
        return 0

    def _act(self, call: Call) -> Act | None:
        path = call.path
        if not f"{path}/".startswith(f"{self.root}/") or path.endswith(" (deleted)"):
            return None
        match call.name:
            case "openat":
                flags = call.arguments[2]
                if flags & os.O_TMPFILE == os.O_TMPFILE or not flags & (os.O_CREAT | os.O_TRUNC):
                    return None
                return Act("open", path, at=flags)
            case "write" | "writev":
                return Act("write", path, at=position(call), data=call.data)
            case "pwrite64" | "pwritev" | "pwritev2":
                return Act("write", path, at=call.arguments[3], data=call.data)
            case "ftruncate":
                return Act("truncate", path, at=call.arguments[1])
            case "fsync" | "fdatasync":
                return Act("sync", path)
            case "rename" | "link":
                return Act(call.name, path, target=call.target)
            case "unlink" | "unlinkat" | "rmdir":
                return Act("unlink", path)
            case "mkdir":
                return Act("mkdir", path)
        # copies for the inference, which nobody needs after a restart
        assert "/data/work/" in path or "/results/" in path, f"{call.name} of {path} is not known here"
        return None


def position(call: Call) -> int:
    """Where a plain write goes to."""
    about = Path(f"/proc/{call.thread}/fdinfo/{call.arguments[0]}").read_text().split()
    appends = int(about[about.index("flags:") + 1], 8) & os.O_APPEND
    return Path(call.path).stat().st_size if appends else int(about[about.index("pos:") + 1])


def acknowledged(sent: bytes) -> Iterator[Act]:
    """The C-STORE-RSPs with 0x0000 in what is sent: PS3.8 9.3.5, PS3.7 9.3.1.2."""
    while len(sent) > 12 and sent[0] == 4:
        (length,) = struct.unpack_from(">L", sent, 2)
        said = elements(sent[12 : 6 + length])
        if said.get(0x0100) == b"\x01\x80" and said.get(0x0900) == b"\0\0":
            yield Act("told", said[0x1000].rstrip(b"\0").decode())
        sent = sent[6 + length :]


class Disk:
    """What is written, and what of it is durable, after each act."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = str(root), Folder()
        self.told: list[str] = []

    def do(self, act: Act) -> None:
        if act.name == "told":
            self.told.append(act.path)
            return
        folder, name = self._place(act.path)
        if folder is None:
            return
        there = folder.now.get(name) if name else folder
        match act.name:
            case "open":
                if there is None and act.at & os.O_CREAT:
                    folder.put(name, File())
                elif isinstance(there, File) and act.at & os.O_TRUNC:
                    there.cut_off(0)
            case "mkdir":
                if there is None:
                    folder.put(name, Folder())
            case "unlink":
                folder.put(name, None)
            case "rename" | "link":
                into, other = self._place(act.target)
                if there is None or into is None or (act.name == "link" and other in into.now):
                    return
                into.put(other, there)
                if act.name == "rename":
                    folder.put(name, None)
            case "write" if isinstance(there, File):
                there.write(act.at, act.data)
            case "truncate" if isinstance(there, File):
                there.cut_off(act.at)
            case "sync" if there is not None:
                there.sync()

    def _place(self, path: str) -> tuple[Folder | None, str]:
        """The folder that it lies in, and its name there; no name for the top."""
        *above, name = path[len(self.root) :].strip("/").split("/")
        folder = self.top
        for each in above:
            below = folder.now.get(each)
            if not isinstance(below, Folder):
                return None, ""
            folder = below
        return folder, name

    def build(self, unsynced: Unsynced, dice: random.Random) -> None:
        """Put what is left on the real disk, in the place of what is there."""
        _build(self.top, Path(self.root), unsynced, dice)


def _build(folder: Folder, at: Path, unsynced: Unsynced, dice: random.Random) -> None:
    at.mkdir(exist_ok=True)
    for name, what in folder.left(unsynced, dice).items():
        if isinstance(what, Folder):
            _build(what, at / name, unsynced, dice)
        else:
            (at / name).write_bytes(what.left(unsynced, dice))


# ------------------------------------------------------------------------------------------------------- a whole node


class Recorded:
    """A node that has worked until it was killed: all that it did to its disk."""

    def __init__(self, folder: Path, series: int, seed: int) -> None:
        self.folder, self.books, self.seed = folder, Books(), seed
        self.root = folder / "node"
        self.honest = Honest()
        self.images: list[Image] = []
        toml = SETTINGS.format(port=self.honest.port)
        toml = toml.replace('folder = "delivered"', 'folder = "disk/delivered"')
        self.node = NodeProcess(self.root, toml, installed=installed(folder / "site"))
        self.node.config.write_text(self.node.config.read_text().replace('data_dir = "data"', 'data_dir = "disk/data"'))
        self.plain = self.node.command
        self.disk_root = self.root / "disk"
        self.disk_root.mkdir()
        self.recorder = Recorder(self.disk_root, self.node.dicom_port)
        with Calls(self.recorder.judge) as calls, self.honest, self.node:
            self.node.command = [*calls.before, *self.plain]
            self.node.start()
            for number in range(series):
                self._send(number)
            self._wait()
            self.node.kill()
        self.acts, self.reports = self.recorder.acts, self.honest.reports

    def _send(self, number: int) -> None:
        """Short and long images; some again, some late."""
        images = [*series_of(f"cut {self.seed} {number}", range(1, 3), size=(40, 300)[number % 2])]
        if number % 3 == 2:
            images += series_of(f"cut {self.seed} {number - 1}", range(8, 9))
        self.books.send(self.node.dicom_port, images, tries=20, wait=time.sleep)
        if number % 2:
            self.books.send(self.node.dicom_port, images[:1], tries=20, wait=time.sleep)
        self.images += images
        time.sleep(0.3)

    def _wait(self) -> None:
        for uid in {image.series_uid for image in self.images}:
            wait_for(lambda uid=uid: self.node.finished(uid), 180, f"the end of {uid}: {self.node.series(uid)}")

    def cuts(self, chosen: Sequence[tuple[int, Unsynced]]) -> Iterator[tuple[int, Unsynced, frozenset[str]]]:
        """The disk as it is after a cut behind so many acts, and the images that were promised by then."""
        disk, done = Disk(self.disk_root), 0
        for number, unsynced in sorted(chosen):
            for act in self.acts[done:number]:
                disk.do(act)
            done = number
            shutil.rmtree(self.disk_root)
            disk.build(unsynced, random.Random(f"{self.seed} {number} {unsynced}"))
            yield number, unsynced, frozenset(disk.told)

    def broken(self, told: frozenset[str]) -> list[str]:
        """What of the promises is not kept on this disk, once the node has taken up what it finds."""
        data = self.disk_root / "data"
        data.mkdir(exist_ok=True)
        ledger = Ledger(f"sqlite:///{data}/node.sqlite", data)
        try:
            ledger.migrate()
            damaged: list[str] = []
            spool = Spool(data / "spool", 0, ledger.instance)
            found = spool.scan(ledger.indexed_up_to(), lambda path, reason: damaged.append(f"{path.name}: {reason}"))
            Intake(ledger, spool.indexed, lambda step: None).take_in_found(found)
            wrong = [f"{fault.kind}: {fault.words}" for fault in fsck.faults(data, ledger) if fault.kind in fsck.HARM]
            for uid in sorted(told):
                wrong += self._of_image(ledger, self.books.told[uid])
            return wrong
        finally:
            ledger.close()

    def _of_image(self, ledger: Ledger, image: Image) -> list[str]:
        known = ledger.instance(image.sop_instance_uid)
        if known is None:
            return [f"image {image.sop_instance_uid} is lost"]
        if not pack.is_there(known.stored):
            return [f"image {image.sop_instance_uid} is lost; the database has a row of it"]
        if not pack.content(known.stored).endswith(image.data_set):
            return [f"image {image.sop_instance_uid} is not what was sent"]
        facts = ledger.series(image.series_uid)
        if facts is None:
            return [f"image {image.sop_instance_uid} is in no series"]
        return [] if facts["state"] == "receiving" else self._of_jobs(ledger, facts)

    def _of_jobs(self, ledger: Ledger, facts: dict[str, Any]) -> list[str]:
        """Of a closed series: each job is to be done, or was."""
        wrong = [f"{job['kind']} {job['state']}" for job in facts["jobs"] if job["state"] in ("failed", "refused")]
        for job in facts["jobs"]:
            if job["kind"] == "send" and job["state"] == "done" and job["destination"] == "folder":
                for result in ledger.results(ledger.job(job["id"]).infer_job):  # type: ignore[union-attr,arg-type]
                    copies = (self.disk_root / "delivered").glob("study-*/*.dcm")
                    if not any(copy.read_bytes() == result.path.read_bytes() for copy in copies):
                        wrong.append(f"result {result.sop_instance_uid} was delivered and is not there")
        if not any(job["kind"] == "infer" for job in facts["jobs"]):
            wrong.append("closed without a job")
        return wrong

    def delivered(self, told: frozenset[str], number: int) -> list[str]:
        """What a node that is started on this disk, of a cut behind so many acts, does not deliver, or twice."""
        before = {uid: each for uid, each in self.reports.items() if each.first <= self.acts[number - 1].when}
        self.honest.reports = {uid: replace(each, contents=set(each.contents)) for uid, each in before.items()}
        self.node.command = self.plain
        with self.honest, self.node:
            self.node.start()
            for uid in {self.books.told[each].series_uid for each in told}:
                wait_for(lambda uid=uid: self.node.finished(uid), 180, f"the end of {uid}\n{self.node.log()}")
            self.node.kill()
        paths = (self.disk_root / "delivered").glob("study-*/SR-*.dcm")
        inside = {each.uid: each for each in (Arrived.of(pydicom.dcmread(path)) for path in paths)}
        wrong = []
        for name, reports in (("PACS", self.honest.reports), ("folder", inside)):
            reported = frozenset[str]().union(*(each.images for each in reports.values()))
            wrong += [f"{uid} is in no report in the {name}" for uid in sorted(told - reported)]
            wrong += [f"{uid} is there twice in the {name}" for uid in self.books.duplicates(reports)]
            wrong += [f"{uid} differs in the {name}" for uid in self.books.differing(reports)]
        return wrong


def chosen(acts: Sequence[Act], number: int, seed: int) -> list[tuple[int, Unsynced]]:
    """So many cuts, most of them just behind a promise or a sync, where what is missing is missed."""
    dice = random.Random(seed)
    telling = [at + 1 for at, act in enumerate(acts) if act.name in ("told", "sync", "rename")]
    found: set[tuple[int, Unsynced]] = set()
    while len(found) < min(number, len(acts)):
        at = dice.choice(telling) if dice.random() < 0.7 else dice.randrange(1, len(acts) + 1)
        found.add((at, dice.choice(("dropped", "torn", "torn", "kept"))))
    return sorted(found)


def main() -> None:
    """Every cut, in two ways; every 40th with a node on it."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    began, wrong, cuts, starts = time.monotonic(), list[str](), 0, 0
    with ExitStack() as stack:
        recorded = Recorded(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="power-"))), 6, seed=1)
        every: list[tuple[int, Unsynced]] = [
            (at, how) for at in range(1, len(recorded.acts) + 1) for how in ("dropped", "torn")
        ]
        todo = chosen(recorded.acts, number, 1) if number else every
        print(len(recorded.acts), "acts,", len(todo), "cuts", flush=True)
        for at, how, told in recorded.cuts(todo):
            cuts += 1
            found = recorded.broken(told)
            if not found and cuts % 40 == 0:
                starts += 1
                found = recorded.delivered(told, at)
            if found:
                wrong.append(f"cut behind act {at}, the rest {how}: {len(found)} times, as {found[0]}")
                print(wrong[-1], flush=True)
    figures = {
        "acts": len(recorded.acts),
        "acknowledged": len(recorded.books.told),
        "cuts": cuts,
        "started": starts,
        "wrong": len(wrong),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    results.record("power", figures)
    print(json.dumps(figures, indent=1))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
