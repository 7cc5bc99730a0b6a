"""The audit trail: who did what, from where, to which study, as the messages of PS3.15 A.5.

Each event of the node that has a row in EVENTS becomes one message, which stands in one line of a file that only grows.
It names studies by their UID, never a patient: that is in the archive, for who may see it.
"""

from __future__ import annotations

import base64
import fcntl
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import structlog

from pacs_node import observe
from pacs_node.durable import make_folder, sync
from pacs_node.loop import Loop
from pacs_node.records import AssociationEnd, Instance

log = structlog.get_logger()

Facts = Mapping[str, Any]

MOST_A_MINUTE = 120  # of a kind of event that is a failure, as strangers cause them; the others are counted
MOST_WAITING = 10_000  # messages that are not written yet, because the disk takes none
LONGEST_VALUE = 1024  # characters of one: callers choose their names
LONGEST_CHANGES = 4000  # bytes of what was changed: with Base64 the message stays within the 8192 of RFC 5424 6.1
WRITE_EVERY_S = 60.0  # again, where the disk took nothing; else at once


@dataclass(frozen=True)
class Code:
    """A coded value; of PS3.16 unless its scheme is another."""

    value: str
    meaning: str
    scheme: str = "DCM"


# Audit Event ID: PS3.16 CID 400
ACTIVITY = Code("110100", "Application Activity")
LOG_USED = Code("110101", "Audit Log Used")
BEGUN = Code("110102", "Begin Transferring DICOM Instances")
ACCESSED = Code("110103", "DICOM Instances Accessed")
TRANSFERRED = Code("110104", "DICOM Instances Transferred")
EXPORT = Code("110106", "Export")
QUERY = Code("110112", "Query")
ALERT = Code("110113", "Security Alert")
AUTHENTICATION = Code("110114", "User Authentication")
# Audit Event Type: CID 401 to 403
STARTED = Code("110120", "Application Start")
STOPPED = Code("110121", "Application Stop")
LOGIN = Code("110122", "Login")
LOGOUT = Code("110123", "Logout")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
CONFIGURATION = Code("110131", "Software Configuration")
RESTRICTED = Code("110132", "Use of Restricted Function")
USER_CHANGED = Code("110137", "User Security Attributes Changed")
# Audit Active Participant Role ID: CID 402
APPLICATION = Code("110150", "Application")
DESTINATION = Code("110152", "Destination Role ID")
SOURCE = Code("110153", "Source Role ID")
DESTINATION_MEDIA = Code("110154", "Destination Media")
# Participant Object ID Type: PS3.15 A.5.1.2.4, PS3.16 CID 404
URI = Code("12", "URI", "RFC-3881")
STUDY = Code("110180", "Study Instance UID")
NODE_ID = Code("110182", "Node ID")
# Media Type: CID 405
MEDIA = Code("110037", "URI")

CHANGES = "Changes"  # type of a ParticipantObjectDetail: settings, before and after

SUCCESS, MINOR_FAILURE = 0, 4  # EventOutcomeIndicator: PS3.15 Table A.5.2-1
ERASURE = "15"  # ParticipantObjectDataLifeCycle: PS3.15 A.5.1.2.3


@dataclass(frozen=True)
class Part:
    """Who takes part in an event. who: "node", "person", "peer" (another AE), "place" (a folder)."""

    who: str
    role: Code | None = None
    requests: bool = False


@dataclass(frozen=True)
class Kind:
    """How an event is told. about: "study", "log", "node" (a machine), "resource" (an address, a name), "query", or
    nothing."""

    event: Code
    type: Code | None
    action: str  # Create, Read, Update, Delete, Execute
    parts: tuple[Part, ...]
    about: str = ""
    fails: bool | None = None  # None: as the facts say


NODE, PERSON = Part("node"), Part("person")
ASKER = Part("person", requests=True)
ITSELF = (Part("node", APPLICATION),)
RECEIVES = (Part("peer", SOURCE, requests=True), Part("node", DESTINATION))
SENDS = (Part("node", SOURCE, requests=True), Part("peer", DESTINATION))
ASKS = (Part("person", SOURCE, requests=True), Part("node", DESTINATION))
WRITES = (Part("node", SOURCE, requests=True), Part("place", DESTINATION_MEDIA))

# Which parts and objects each has: PS3.15 Tables A.5.3.1-1 to A.5.3.12-1. In an alert nobody but the node, which
# reports it, may be the requestor.
EVENTS: dict[str, Kind] = {
    "application-started": Kind(ACTIVITY, STARTED, "E", ITSELF),
    "application-stopped": Kind(ACTIVITY, STOPPED, "E", ITSELF),
    "login": Kind(AUTHENTICATION, LOGIN, "E", (ASKER, NODE)),
    "login-refused": Kind(AUTHENTICATION, LOGIN, "E", (ASKER, NODE), fails=True),
    "token-refused": Kind(AUTHENTICATION, LOGIN, "E", (ASKER, NODE), fails=True),
    "logout": Kind(AUTHENTICATION, LOGOUT, "E", (ASKER, NODE)),
    "association-opened": Kind(ALERT, NODE_AUTHENTICATION, "E", (NODE, Part("peer")), "node"),
    "association-rejected": Kind(ALERT, NODE_AUTHENTICATION, "E", (NODE, Part("peer")), "node", fails=True),
    "tls-failed": Kind(ALERT, NODE_AUTHENTICATION, "E", (NODE, Part("peer")), "node", fails=True),
    "transfer-begun": Kind(BEGUN, None, "E", RECEIVES, "study"),
    "instances-received": Kind(TRANSFERRED, None, "C", RECEIVES, "study"),
    "instance-refused": Kind(ALERT, RESTRICTED, "E", (NODE, Part("peer")), "node", fails=True),
    "instance-kept-aside": Kind(ALERT, RESTRICTED, "E", (NODE, Part("peer")), "node", fails=True),
    "commitment-asked": Kind(ALERT, RESTRICTED, "E", (NODE, Part("peer")), "node"),
    "commitment-reported": Kind(ALERT, RESTRICTED, "E", (NODE, Part("peer")), "node"),
    "sending-begun": Kind(BEGUN, None, "E", SENDS, "study"),
    "instances-sent": Kind(TRANSFERRED, None, "R", SENDS, "study"),
    "instances-not-sent": Kind(TRANSFERRED, None, "R", SENDS, "study", fails=True),
    "instances-exported": Kind(EXPORT, None, "R", WRITES, "study"),
    "instances-not-exported": Kind(EXPORT, None, "R", WRITES, "study", fails=True),
    "instances-accessed": Kind(ACCESSED, None, "R", (ASKER, NODE), "study"),
    "patient-sought": Kind(QUERY, None, "E", ASKS, "query"),
    "instances-deleted": Kind(ACCESSED, None, "D", (Part("node", requests=True),), "study"),
    "refused-bytes-deleted": Kind(ALERT, RESTRICTED, "E", (NODE,), "resource"),
    "asked": Kind(ALERT, RESTRICTED, "E", (NODE, PERSON), "resource"),
    "paused": Kind(ALERT, RESTRICTED, "E", (NODE, PERSON), "resource"),
    "resumed": Kind(ALERT, RESTRICTED, "E", (NODE, PERSON), "resource"),
    "priority-changed": Kind(ALERT, RESTRICTED, "E", (NODE, PERSON), "resource"),
    "backed-up": Kind(ALERT, RESTRICTED, "E", (NODE, PERSON), "resource"),
    "restored": Kind(ALERT, RESTRICTED, "E", (NODE, PERSON), "resource"),
    "mended": Kind(ALERT, RESTRICTED, "E", (NODE, PERSON), "resource"),
    "identity-asked": Kind(ALERT, RESTRICTED, "E", (NODE, PERSON), "resource"),
    "configuration-changed": Kind(ALERT, CONFIGURATION, "E", (NODE, PERSON), "resource"),
    "user-changed": Kind(ALERT, USER_CHANGED, "E", (NODE, PERSON), "resource"),
    "audit-used": Kind(LOG_USED, None, "R", (ASKER, NODE), "log"),
}
KINDS = tuple(dict.fromkeys(kind.event.meaning for kind in EVENTS.values()))


@dataclass(frozen=True)
class Source:
    """The node, as its messages name it. process: its id, as the system's logs have it (PS3.15 A.5.2.1)."""

    ae_title: str
    host: str
    process: str


# ---- an event as a message ------------------------------------------------------------------------------------------


def message(event: str, facts: Facts, source: Source, at: datetime) -> str:
    """The AuditMessage of PS3.15 A.5.1, in one line. Raises KeyError for an event that has no row in EVENTS.

    facts   any of: user, from (address of who asks), calling_ae, to_ae, host, folder, study, objects ({SOP class UID:
            number}), what, words, changes (lines: a setting before and after), query
    """
    kind = EVENTS[event]
    root = ElementTree.Element("AuditMessage")
    outcome = MINOR_FAILURE if _failed(kind, facts) else SUCCESS
    about = ElementTree.SubElement(
        root,
        "EventIdentification",
        EventActionCode=kind.action,
        EventDateTime=at.isoformat(timespec="microseconds"),
        EventOutcomeIndicator=str(outcome),
    )
    _coded(about, "EventID", kind.event)
    if kind.type is not None:
        _coded(about, "EventTypeCode", kind.type)
    if words := _text(facts.get("words") or facts.get("why") or ""):
        ElementTree.SubElement(about, "EventOutcomeDescription").text = words
    for part in kind.parts:
        if part.who != "person" or kind.event is not ALERT or facts.get("user"):
            _add_part(root, part, facts, source)
    said_by = ElementTree.SubElement(
        root, "AuditSourceIdentification", AuditSourceID=f"{source.ae_title}@{source.host}"
    )
    ElementTree.SubElement(said_by, "AuditSourceTypeCode", {"csd-code": "4"})  # Application Server process
    _add_object(root, kind, facts, words or event)
    return ElementTree.tostring(root, encoding="unicode")


def _failed(kind: Kind, facts: Facts) -> bool:
    if kind.fails is not None:
        return kind.fails
    status = facts.get("status")
    return bool(facts.get("known") is False or (isinstance(status, int) and status >= 400))


def _add_part(root: ElementTree.Element, part: Part, facts: Facts, source: Source) -> None:
    said: dict[str, str] = {"UserIsRequestor": "true" if part.requests else "false"}
    place = ""
    if part.who == "node":
        said |= {"UserID": source.process, "AlternativeUserID": f"AETITLES={source.ae_title}", "UserName": "pacs-node"}
        place = source.host
    elif part.who == "person":
        name = _text(facts.get("user") or "") or "unknown"
        said |= {"UserID": name if "@" in name else f"{name}@{source.host}", "UserName": name}
        place = str(facts.get("from") or "")
    elif part.who == "peer":
        title = _text(facts.get("calling_ae") or facts.get("to_ae") or "") or "unknown"
        said |= {"UserID": title, "AlternativeUserID": f"AETITLES={title}"}
        place = str(facts.get("from") or facts.get("host") or "")
    else:
        said |= {"UserID": _text(f"file://{facts.get('folder') or ''}")}
    if _text(place):
        said |= {"NetworkAccessPointID": _text(place), "NetworkAccessPointTypeCode": "2" if _is_address(place) else "1"}
    element = ElementTree.SubElement(root, "ActiveParticipant", said)
    if part.role is not None:
        _coded(element, "RoleIDCode", part.role)
    if part.who == "place":
        _coded(ElementTree.SubElement(element, "MediaIdentifier"), "MediaType", MEDIA)


def _add_object(root: ElementTree.Element, kind: Kind, facts: Facts, words: str) -> None:
    if not kind.about:
        return
    role = "3" if kind.about in ("study", "query") else "13"
    said = {"ParticipantObjectTypeCode": "2", "ParticipantObjectTypeCodeRole": role}
    if kind.action == "D":
        said["ParticipantObjectDataLifeCycle"] = ERASURE
    code, name, of = {
        "study": (STUDY, "Study", facts.get("study")),
        "log": (URI, "Security Audit Log", "/audit"),
        "node": (NODE_ID, "Node", facts.get("from") or facts.get("calling_ae")),
        "resource": (URI, "Resource", facts.get("what") or facts.get("file")),
        "query": (URI, "Query", facts.get("what")),
    }[kind.about]
    element = ElementTree.SubElement(
        root, "ParticipantObjectIdentification", said, ParticipantObjectID=_text(of) or "unknown"
    )
    _coded(element, "ParticipantObjectIDTypeCode", code)
    if kind.about == "query":  # as it is asked, by hashes: PS3.15 Table A.5.3.10-1
        asked = base64.b64encode(_text(facts.get("query")).encode()).decode()
        ElementTree.SubElement(element, "ParticipantObjectQuery").text = asked
    else:
        ElementTree.SubElement(element, "ParticipantObjectName").text = name
    if kind.event is ALERT:  # PS3.15 Table A.5.3.11-1
        value = base64.b64encode(words.encode()).decode()
        ElementTree.SubElement(element, "ParticipantObjectDetail", type="Alert Description", value=value)
        if changes := _within(facts.get("changes") or ()):
            value = base64.b64encode(changes.encode()).decode()
            ElementTree.SubElement(element, "ParticipantObjectDetail", type=CHANGES, value=value)
    if kind.about == "study" and facts.get("objects"):
        held = ElementTree.SubElement(element, "ParticipantObjectDescription")
        for sop_class, number in sorted(facts["objects"].items()):
            ElementTree.SubElement(held, "SOPClass", UID=_text(sop_class), NumberOfInstances=str(number))


def _within(lines: Sequence[str]) -> str:
    """As many lines as there is room for, and how many more there are."""
    kept: list[str] = []
    for number, line in enumerate(lines):
        more = f"and {len(lines) - number} more"
        if sum(len(each.encode()) + 1 for each in (*kept, line, more)) > LONGEST_CHANGES:
            return "\n".join([*kept, more])
        kept.append(line)
    return "\n".join(kept)


def _coded(parent: ElementTree.Element, name: str, code: Code) -> None:
    said = {"csd-code": code.value, "codeSystemName": code.scheme, "displayName": code.meaning}
    ElementTree.SubElement(parent, name, said | {"originalText": code.meaning})


NOT_XML = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 2.2, and no line may end


def _text(value: object) -> str:
    """What a message may hold: whoever calls chooses the name that he gives."""
    return NOT_XML.sub("?", str(value if value is not None else ""))[:LONGEST_VALUE].strip()


def _is_address(place: str) -> bool:
    try:
        ip_address(place)
    except ValueError:
        return False
    return True


# ---- a message as a row of the page ---------------------------------------------------------------------------------


def told(line: str) -> dict[str, Any] | None:
    """A message as the page shows it; None of a line that is none, as a power cut leaves one."""
    try:
        root = ElementTree.fromstring(line)  # noqa: S314  a file of our own
        about = root.find("EventIdentification")
        assert about is not None
        kind = about.find("EventTypeCode")
        parts = [part for part in root.findall("ActiveParticipant") if part.get("UserName") != "pacs-node"]
        objects = root.findall("ParticipantObjectIdentification")
        counted = [int(each.attrib["NumberOfInstances"]) for each in root.iter("SOPClass")]
        return {
            "at": about.attrib["EventDateTime"],
            "event": about[0].attrib["originalText"],
            "type": kind.attrib["originalText"] if kind is not None else "",
            "failed": about.attrib["EventOutcomeIndicator"] != str(SUCCESS),
            "who": [part.get("UserName") or part.attrib["UserID"] for part in parts],
            "from": [part.attrib["NetworkAccessPointID"] for part in parts if part.get("NetworkAccessPointID")],
            "about": [each.attrib["ParticipantObjectID"] for each in objects],
            "instances": sum(counted) if counted else None,
            "words": about.findtext("EventOutcomeDescription", ""),
            "changes": "".join(map(_detail, root.iterfind(f".//ParticipantObjectDetail[@type='{CHANGES}']"))),
        }
    except (ElementTree.ParseError, KeyError, IndexError, ValueError, AssertionError):
        return None


def _detail(element: ElementTree.Element) -> str:
    return base64.b64decode(element.attrib["value"]).decode("utf-8", "replace")


# ---- where messages stand -------------------------------------------------------------------------------------------

Position = tuple[str, int]  # name of a file, and the offset in it
START: Position = ("", 0)
BLOCK = 1 << 16


class Trail:
    """Files of messages, one a line: a new one each day (UTC), and when one has `largest` bytes. Several processes
    append to them; nothing in them is ever changed, and none is renamed."""

    def __init__(self, folder: Path, largest: int, now: Callable[[], datetime]) -> None:
        self.folder, self.largest, self.now = folder, largest, now

    def files(self) -> list[Path]:
        """The oldest first."""
        return sorted(self.folder.glob("????-??-??-????.xml"))

    def append(self, lines: Sequence[str]) -> None:
        """All of them are on the disk when this returns, or none. Raises OSError."""
        if not lines:
            return
        make_folder(self.folder, 0o700)
        self._give(self.folder)
        with self._alone():
            path = self._current()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                self._give(descriptor)
                size = os.fstat(descriptor).st_size
                broken = size and not _ends_line(path)  # a power cut
                _write_all(descriptor, size, ("\n" if broken else "") + "".join(f"{line}\n" for line in lines))
            finally:
                os.close(descriptor)
            if not size:
                sync(self.folder)  # its name

    def _current(self) -> Path:
        today = f"{self.now().astimezone(UTC):%Y-%m-%d}"
        latest = next(iter(self.files()[-1:]), None)
        if latest is None or latest.name[:10] < today:  # a clock that was set back goes on in the latest
            return self.folder / f"{today}-0001.xml"
        if latest.stat().st_size < self.largest:
            return latest
        return self.folder / f"{latest.name[:10]}-{int(latest.stem[11:]) + 1:04d}.xml"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._give(lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _give(self, made: Path | int) -> None:
        """What root makes, by a command, is the node's, whose folder it lies in: else it could not append to it."""
        owner = self.folder.parent.stat()
        own = made.stat() if isinstance(made, Path) else os.fstat(made)
        if os.geteuid() == 0 and (own.st_uid, own.st_gid) != (owner.st_uid, owner.st_gid):
            os.chown(made, owner.st_uid, owner.st_gid)

    def backwards(self) -> Iterator[str]:
        """Every line, the newest first."""
        for path in reversed(self.files()):
            with suppress(FileNotFoundError), path.open("rb") as file:
                yield from (line.decode("utf-8", "replace") for line in _backwards(file) if line)

    def end(self) -> Position:
        latest = next(iter(self.files()[-1:]), None)
        return (latest.name, latest.stat().st_size) if latest is not None else START

    def after(self, position: Position, most: int) -> Iterator[tuple[str, Position]]:
        """The next lines after a position, each with the position behind it. Half a line is none yet."""
        for path in self.files():
            if path.name < position[0]:
                continue
            with path.open("rb") as file:
                file.seek(position[1] if path.name == position[0] else 0)
                while most and (line := file.readline()).endswith(b"\n"):
                    yield line.decode("utf-8", "replace").rstrip("\n"), (path.name, file.tell())
                    most -= 1

    def bytes_after(self, position: Position) -> int:
        files = [path for path in self.files() if path.name >= position[0]]
        return sum(path.stat().st_size - (position[1] if path.name == position[0] else 0) for path in files)


def _write_all(descriptor: int, size: int, text: str) -> None:
    """Raises OSError, and leaves nothing of it behind as far as the disk lets us."""
    left = memoryview(text.encode())
    try:
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _backwards(file: Any) -> Iterator[bytes]:
    at, rest = file.seek(0, os.SEEK_END), b""
    while at > 0:
        step = min(BLOCK, at)
        at = file.seek(at - step)
        first, *others = (file.read(step) + rest).split(b"\n")
        yield from reversed(others)
        rest = first
    yield rest


# ---- who is told of events ------------------------------------------------------------------------------------------


class Audit:
    """Told of every event. It never raises, and nobody waits for it: a thread of its own writes, many at once."""

    def __init__(self, source: Source, trail: Trail, now: Callable[[], datetime]) -> None:
        self.source, self.trail, self.now = source, trail, now
        self.log: Callable[[str, Facts], None] = observe.audit  # the line of the log beside the message
        self.lost = 0  # messages, while the disk took none
        self.loop = Loop("audit", self.flush, WRITE_EVERY_S)
        self.on_written: Callable[[], None] = lambda: None
        self._waiting: deque[str] = deque()
        self._one_at_a_time = threading.Lock()
        self._in_a_minute: dict[str, tuple[int, int, int]] = {}  # event -> the minute, how many, how many passed over
        self._counting = threading.Lock()

    def __call__(self, event: str, facts: Facts) -> None:
        kind = EVENTS.get(event)
        if kind is not None and kind.fails:
            over = self._passed_over(event)
            if over is None:
                return
            if over:
                words = f"{over} more of these within a minute are not written down"
                facts = {**facts, "words": "; ".join(filter(None, (str(facts.get("words", "")), words)))}
        self.log(event, facts)
        if kind is None:
            return  # a line of the log alone
        if len(self._waiting) >= MOST_WAITING:
            self.lost += 1
            return
        self._waiting.append(message(event, facts, self.source, self.now()))
        self.loop.wake()

    def _passed_over(self, event: str) -> int | None:
        """None: there were MOST_A_MINUTE of these in this minute already, and a stranger must not fill the disk. Else
        how many were passed over in the minute before."""
        minute = int(time.monotonic() // 60)
        with self._counting:
            began, number, over = self._in_a_minute.get(event, (minute, 0, 0))
            if began == minute:
                self._in_a_minute[event] = minute, number + 1, over + (number >= MOST_A_MINUTE)
                return 0 if number < MOST_A_MINUTE else None
            self._in_a_minute[event] = minute, 1, 0
            return over

    def flush(self) -> None:
        """All that has been told by now is on the disk when this returns. Raises OSError, and tries again later."""
        with self._one_at_a_time:
            while some := [self._waiting[number] for number in range(min(len(self._waiting), 1000))]:
                self.trail.append(some)
                for _ in some:
                    self._waiting.popleft()
                self.on_written()

    def stop(self) -> None:
        self.loop.stop()
        try:
            self.flush()
        except OSError as error:
            log.error("audit messages lost", number=len(self._waiting), error=error.strerror or str(error))

    @property
    def trouble(self) -> str | None:
        """None, or why nothing is written now, in words, for /health."""
        lost = f"; {self.lost} audit messages are lost: free some space" if self.lost else ""
        return f"{self.loop.trouble}{lost}" if self.loop.trouble is not None else None

    @property
    def ailing(self) -> str | None:
        """None, or what was lost since the start while the disk took nothing."""
        if not self.lost or self.loop.trouble is not None:
            return None
        return f"{self.lost} audit messages are lost: the disk of data_dir took none for a while"


class Transfers:
    """What comes on each association: told with its first image of a study, and counted at its end."""

    def __init__(self, audit: Callable[[str, Facts], None]) -> None:
        self._audit = audit
        self._from: dict[str, tuple[str, str]] = {}  # association -> who calls, and from where
        self._held: dict[str, dict[str, Counter[str]]] = {}  # association -> study -> SOP class -> images

    def opened(self, association: str, calling_ae: str, address: str) -> None:
        self._from[association] = calling_ae, address

    def stored(self, instance: Instance) -> None:
        studies = self._held.setdefault(instance.association, {})
        if instance.study_uid not in studies:
            studies[instance.study_uid] = Counter()
            # who brings it now; the instance names who brought it first
            calling_ae, _ = self._from.get(instance.association, (instance.calling_ae, ""))
            self._audit("transfer-begun", self._facts(instance.association, calling_ae, instance.study_uid))
        studies[instance.study_uid][instance.sop_class_uid] += 1

    def left(self, end: AssociationEnd) -> None:
        words = {} if end.released else {"words": "the association was broken off; this is what had come by then"}
        for study, objects in self._held.pop(end.association, {}).items():
            facts = self._facts(end.association, end.calling_ae, study)
            self._audit("instances-received", {**facts, "objects": dict(objects), **words})
        self._from.pop(end.association, None)

    def _facts(self, association: str, calling_ae: str, study: str) -> dict[str, Any]:
        return {"calling_ae": calling_ae, "from": self._from.get(association, ("", ""))[1], "study": study}
