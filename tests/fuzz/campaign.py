"""A node in a process of its own, what is said to it and what it asks for, and what must be true of it all along."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import sqlite3
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.factories import us_image
from tests.fuzz.conversations import CLOSE, RESET, STAY, Conversation, context, conversation, request
from tests.fuzz.data_sets import CLASSES, SECRET, SERIES_OF, DataSet, data_set
from tests.fuzz.liars import PeerLiar, WebLiar
from tests.fuzz.requests import Asked, Known, asked
from tests.harness import NodeProcess, wait_for
from tests.parrot import ASSOCIATE_AC, COMMAND, LAST, P_DATA, Parrot, c_store_rq, elements, pdata
from tests.unit.receive.conftest import encoded

NETWORK_S, ACSE_S, DIMSE_S = 4.0, 5.0, 4.0
PATIENCE_S = NETWORK_S + ACSE_S + DIMSE_S + 10  # after which a conversation hangs; generous: the machine is busy, too
US = "1.2.840.10008.5.1.4.1.1.6.1"
ANSWERED_S = 0.4  # for an answer that need not come
# addresses that are there to show whose it is, to readers; where nobody logs in, to whoever asks
SHOWS_IT = (b"/patient", b"/results/", b"/rejected/", b"/api/export")

SETTINGS = f"""
[receive]
keep_free_gb = 0.1
max_associations = 40
network_timeout_s = {NETWORK_S}
acse_timeout_s = {ACSE_S}
dimse_timeout_s = {DIMSE_S}
largest_mb = 64
[assemble]
quiet_s = 0.5
quiet_unreleased_s = 1.0
ask_peer = true
max_wait_s = 2.0
[jobs]
send_backoff_s = 0.1
send_backoff_max_s = 0.5
max_attempts = 30
confirm_attempts = 10
await_report_s = 0.5
sweep_s = 0.5
lease_s = 5.0
infer_timeout_s = 60.0
[priors]
timeout_s = 10.0
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "evil"
ae_title = "EVIL"
host = "127.0.0.1"
port = {{peer}}
may_send = true
[[peer]]
name = "lying pacs"
ae_title = "LIAR"
host = "127.0.0.1"
port = {{peer}}
[[peer]]
name = "lying web"
dicomweb_url = "http://127.0.0.1:{{web}}/dicom-web"
[[peer]]
name = "out"
folder = "out"
[[route]]
name = "look"
match = {{{{ SeriesDescription = {{{{ regex = "LOOK" }}}} }}}}
pipeline = "eye"
priors = "lying pacs"
send_to = ["lying pacs", "lying web", "out"]
report_not_run = true
[[route]]
name = "never"
match = {{{{ SeriesDescription = {{{{ regex = "^(a+)+$" }}}}, SliceThickness = {{{{ max = -1 }}}} }}}}
pipeline = "eye"
send_to = ["out"]
"""


def installed(folder: Path) -> Path:
    """The pipeline of `eye.py`, as pip would have installed it."""
    told = folder / "installed" / "eye-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: eye\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[pacs_node.pipelines]\neye = tests.fuzz.eye:PIPELINE\n")
    return told.parent


@dataclass
class Watch:
    """What was seen, and what must not be."""

    inputs: Counter[str] = field(default_factory=Counter)
    hangs: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # anything else that must not be, in words
    promised: set[str] = field(default_factory=set)  # SOP Instance UIDs answered with 0x0000
    statuses: Counter[str] = field(default_factory=Counter)
    honest_s: list[float] = field(default_factory=list)
    unserved: list[str] = field(default_factory=list)


class Campaign:
    """Inputs of one seed against one node."""

    def __init__(self, folder: Path, seed: object) -> None:
        self.seed, self.folder, self.watch = seed, folder, Watch()
        self.peer, self.web = PeerLiar(seed, PATIENCE_S), WebLiar(seed, PATIENCE_S)
        settings = SETTINGS.format(peer=self.peer.port, web=self.web.port)
        self.node = NodeProcess(folder / "node", settings, installed=installed(folder))
        self.known = Known()
        self._stop, self._prober = threading.Event(), threading.Thread(target=self._probe)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with self.node.start():
            self._prober.start()
            try:
                yield
            finally:
                self.rest()

    def rest(self) -> None:
        """Nobody says anything any more."""
        self._stop.set()
        self._prober.join()

    def rng(self, group: str, number: int) -> random.Random:
        return random.Random(f"{self.seed}/{group}/{number}")

    # ---- the three groups

    def converse(self, number: int) -> None:
        said = conversation(self.rng("conversations", number), number, self.seed)
        self.watch.inputs["conversations"] += 1
        self._have(said, f"conversations:{number} ({said.kind})")

    def store(self, first: int) -> None:
        """SERIES_OF data sets in a row, in as many associations as it takes."""
        left = [data_set(self.rng("data_sets", n), n, self.seed) for n in range(first, first + SERIES_OF)]
        numbers = iter(range(first, first + SERIES_OF))
        while left:
            classes = list(dict.fromkeys(each.sop_class for each in left if each.sop_class in CLASSES))
            syntaxes = list(dict.fromkeys(each.syntax for each in left))
            pairs = [(sop_class, syntax) for sop_class in classes for syntax in syntaxes][:128]
            where = {pair: 2 * at + 1 for at, pair in enumerate(pairs)}
            contexts = [context(at, sop.encode(), [ts.encode()]) for (sop, ts), at in where.items()]
            with self._connected() as parrot:
                if parrot is None:
                    return
                parrot.say(request(contexts=contexts or None))
                if parrot.hear()[0] != ASSOCIATE_AC:
                    self.watch.wrong.append(f"data_sets:{first}: no association")
                    return
                while left and self._stored(parrot, left.pop(0), next(numbers), where):
                    pass
                with contextlib.suppress(OSError):
                    parrot.release()

    def _stored(self, parrot: Parrot, each: DataSet, number: int, where: dict[tuple[str, str], int]) -> bool:
        """Whether the association goes on."""
        name = f"data_sets:{number} ({each.kind})"
        self.watch.inputs["data_sets"] += 1
        at = where.get((each.sop_class, each.syntax), 1)
        content = each.content
        step = 16_384 if number % 5 else 777 if len(content) < 50_000 else 60_000
        pieces = [pdata(at, COMMAND | LAST, c_store_rq(each.sop_class, each.instance_uid))]
        for start in range(0, max(1, len(content)), step):
            pieces.append(pdata(at, LAST if start + step >= len(content) else 0, content[start : start + step]))
        try:
            parrot.say(b"".join(pieces))
            kind, body = parrot.hear()
        except TimeoutError:
            self.watch.hangs.append(name)
            return False
        except OSError:
            kind, body = 0, b""
        if kind != P_DATA:
            self.watch.statuses["aborted"] += 1
            if "command" not in each.kind:
                self.watch.wrong.append(f"{name}: answered with a PDU of type {kind}")
            return False
        status = self._heard(body)
        self.watch.statuses[f"0x{status:04X}" if status is not None else "none"] += 1
        return True

    def ask(self, number: int) -> None:
        rng = self.rng("bodies", number)
        said = asked(rng, self.node.web_port, self.known)
        name = f"bodies:{number} ({said.kind})"
        self.watch.inputs["bodies"] += 1
        try:
            answer = self._answered(said)
        except TimeoutError:
            self.watch.hangs.append(name)
            return
        except OSError:
            return
        statuses = [line.split(b" ")[1][:3].decode() for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        self.watch.statuses.update(f"http {status}" for status in statuses)
        if any(status.startswith("5") for status in statuses) and not answer.startswith(
            b"HTTP/1.1 503 Service Unavail"
        ):
            self.watch.wrong.append(f"{name}: {answer[:200]!r}")
        if SECRET.encode() in answer and not any(each in said.content for each in SHOWS_IT):
            asked_for = said.content.partition(b"\r\n")[0][:120]
            self.watch.wrong.append(f"{name}: a patient's value is in the answer to {asked_for!r}")

    def _answered(self, said: Asked) -> bytes:
        with socket.create_connection(("127.0.0.1", self.node.web_port), timeout=PATIENCE_S) as connection:
            connection.sendall(said.content)
            answer = bytearray()
            connection.settimeout(ANSWERED_S)
            try:
                while piece := connection.recv(1 << 16):
                    answer += piece
            except TimeoutError:  # it waits for more, or for another request
                connection.settimeout(PATIENCE_S)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(1 << 16):
                    answer += piece
        return bytes(answer)

    # ---- one conversation

    def _have(self, said: Conversation, name: str) -> None:
        """Say it all, hear what is answered, and see that the node ends it."""
        with self._connected() as parrot:
            if parrot is None:
                return
            heard = bytearray()
            with contextlib.suppress(ConnectionError):
                try:
                    self._say(parrot, said, heard)
                except TimeoutError:
                    self.watch.hangs.append(name)
            for kind, body in _pdus(bytes(heard)):
                if kind == P_DATA:
                    self._heard(body)

    def _say(self, parrot: Parrot, said: Conversation, heard: bytearray) -> None:
        connection = parrot.connection
        if said.request is not None:
            connection.sendall(said.request)
            connection.settimeout(ANSWERED_S)
            with contextlib.suppress(TimeoutError):
                heard += connection.recv(65536)
            connection.settimeout(PATIENCE_S)
        for piece in said.pieces:
            connection.sendall(piece)
        if said.ending == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if said.ending == CLOSE:
            return
        if said.ending != STAY:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            heard += piece

    def _heard(self, body: bytes) -> int | None:
        """The status of a response; what it promises is noted."""
        try:
            told = elements(body[6:])
        except struct.error:
            return None
        status = struct.unpack("<H", told[0x0900])[0] if len(told.get(0x0900, b"")) == 2 else None
        if status == 0 and told.get(0x0100) == b"\1\x80":
            self.watch.promised.add(told.get(0x1000, b"").rstrip(b"\0 ").decode("latin-1"))
        return status

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Parrot | None]:
        try:
            parrot = Parrot(self.node.dicom_port, timeout_s=PATIENCE_S)
        except OSError as error:
            self.watch.wrong.append(f"no connection: {error}")
            yield None
            return
        with parrot:
            yield parrot

    # ---- who is honest

    def _probe(self) -> None:
        """An echo of a sender, its image, and a page: again and again."""
        for number in itertools.count():
            description = "LOOK" if number % 15 == 0 else "Breast"
            image = us_image(name=f"{self.seed}-{number}", SeriesDescription=description, PatientID=f"PID-{SECRET}")
            data = encoded(image)
            began = time.monotonic()
            try:
                with Parrot(self.node.dicom_port, timeout_s=30) as parrot:
                    kind, _ = parrot.associate("SENDER", "PACSNODE", US)
                    status = parrot.store(image.SOPInstanceUID, data, US) if kind == ASSOCIATE_AC else None
                    parrot.release()
                self.watch.honest_s.append(time.monotonic() - began)
                if status == 0:
                    self.watch.promised.add(str(image.SOPInstanceUID))
                else:
                    self.watch.unserved.append(f"image {number}: {status}")
                began = time.monotonic()
                httpx.get(f"http://127.0.0.1:{self.node.web_port}/series/{image.SeriesInstanceUID}", timeout=30)
                self.watch.honest_s.append(time.monotonic() - began)
                if number % 20 == 0:
                    self._look_up()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                self.watch.unserved.append(f"image {number}: {type(error).__name__} {error}")
            if self._stop.wait(0.25):
                return

    def _look_up(self) -> None:
        with contextlib.suppress(Exception):
            series = self.node.api("/api/series?limit=20")
            facts = [self.node.series(each["series_uid"]) for each in series[:5]]
            jobs = [job["id"] for each in facts if each for job in each["jobs"]]
            self.known = Known([each["series_uid"] for each in series], jobs)

    # ---- at the end

    def after(self) -> list[str]:
        """What is wrong with what was promised and logged; all is said and done."""
        found = list(self.watch.wrong)
        found += [f"no end: {each}" for each in self.watch.hangs]
        found += [f"an honest sender was not served: {each}" for each in self.watch.unserved]
        with contextlib.suppress(AssertionError):  # what is not there by then is said below, one by one
            wait_for(lambda: not self._not_kept(), 30, "what was promised to be in the ledger")
        found += [f"promised and not kept: {uid!r}" for uid in self._not_kept()]
        return found + self.logged()

    def _not_kept(self) -> list[str]:
        ledger = sqlite3.connect(f"file:{self.folder}/node/data/node.sqlite?mode=ro", uri=True, timeout=30)
        with contextlib.closing(ledger):
            kept = {row[0] for row in ledger.execute("select sop_instance_uid from instance")}
        return sorted(self.watch.promised - kept)

    def logged(self) -> list[str]:
        found: Counter[str] = Counter()
        with (self.folder / "node" / "node.log").open(errors="replace") as log:
            for line in log:
                if SECRET in line:
                    found[f"a patient's value in the log: {line[:300]}"] += 1
                try:
                    event = json.loads(line)
                    named = event["event"]
                except (ValueError, KeyError, TypeError):
                    found[f"no JSON object: {line[:200]}"] += 1
                    continue
                if event.get("level") in ("error", "critical") or "Traceback" in line:
                    words = event.get("error") or event.get("exception") or ""
                    found[f"an error in the log: {named}: {words}"] += 1
        return [f"{words} ({number} times)" for words, number in found.items()]


def _pdus(heard: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 6 <= len(heard):
        kind, length = struct.unpack_from(">BxL", heard, at)
        yield kind, heard[at + 6 : at + 6 + length]
        at += 6 + length


@dataclass(frozen=True)
class Use:
    """What the node's processes take."""

    rss_mb: float
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Use:
        rss, threads, descriptors = 0.0, 0, 0
        for each in (pid, *_children(pid)):
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{each}/status").read_text().splitlines()
                named = {line.split(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
                rss += int(named["VmRSS"]) / 1024
                threads += int(named["Threads"])
                descriptors += len(list(Path(f"/proc/{each}/fd").iterdir()))
        return cls(round(rss, 1), threads, descriptors)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def work(jobs: Iterator[tuple[Callable[[int], None], int]], hands: int, alive: Callable[[], bool]) -> None:
    """Every job once, by so many hands."""
    lock = threading.Lock()

    def one() -> None:
        while alive():
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            do, number = job
            do(number)

    with ThreadPoolExecutor(hands) as pool:
        for future in [pool.submit(one) for _ in range(hands)]:
            future.result()


def mixed(
    campaign: Campaign, conversations: int, data_sets: int, bodies: int, first: int = 0
) -> Iterator[tuple[Callable[[int], None], int]]:
    """The numbers of each group, evenly mixed."""
    groups = (
        (campaign.converse, range(first, first + conversations)),
        (campaign.store, range(first, first + data_sets, SERIES_OF)),
        (campaign.ask, range(first, first + bodies)),
    )
    queues = [(do, iter(numbers), max(1, len(numbers))) for do, numbers in groups]
    total = max(count for _, _, count in queues)
    for step in range(total):
        for do, numbers, count in queues:
            for _ in range((step + 1) * count // total - step * count // total):
                number = next(numbers, None)
                if number is not None:
                    yield do, number
