# ruff: noqa: F811  fixtures of another file
"""The audit trail: every kind of event against the Standard's schema and tables, the files, and who is told."""

from __future__ import annotations

import ast
import base64
import errno
import multiprocessing
import os
import stat
import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from config import load
from models import catalogue
from pacs_node import audit as module
from pacs_node.accounts import ADMIN, READER, ROLES, VIEWER, Accounts
from pacs_node.audit import EVENTS, KINDS, MOST_A_MINUTE, START, Audit, Source, Trail, Transfers, message
from pacs_node.audit import told as row_of
from pacs_node.errors import TryAgain
from pacs_node.facts import NodeFacts
from pacs_node.loop import Loop
from pacs_node.node import Node
from pacs_node.records import AssociationEnd, Instance, Package, Receipt
from pacs_node.syslog import framed
from pacs_node.web import access
from pacs_node.web.app import create_app
from tests.factories import us_image
from tests.harness import wait_for
from tests.unit.test_accounts import (  # noqa: F401  five of them fixtures
    GOOD,
    HTML,
    accounts,
    audit,
    browser,
    clock,
    token_of,
    told,
)
from tests.unit.test_documented import Told

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).with_name("audit_message.rng")))
NOON = datetime(2026, 3, 14, 12, 0, 0, 123456, tzinfo=UTC)
SOURCE = Source("PACSNODE", "node.example", "4711")
FACTS = {
    "user": "ana",
    "from": "10.0.0.7",
    "calling_ae": "CT1",
    "study": "1.2.3",
    "objects": {"1.2.840.10008.5.1.4.1.1.2": 2, "1.2.840.10008.5.1.4.1.1.7": 1},
    "what": "/api/rerun",
    "folder": "/srv/results",
    "words": "in words",
    "query": "patient=0f-1e-2d",
}

# PS3.15 A.5.3, PS3.16 CID 400 to 403, by hand: event -> EventID, EventTypeCode, action, failed, roles of the
# participants, who requests (index, or none), ParticipantObjectIDTypeCode
STANDARD: dict[str, tuple[str, str | None, str, str, list[str | None], int | None, str | None]] = {
    "application-started": ("110100", "110120", "E", "0", ["110150"], None, None),
    "application-stopped": ("110100", "110121", "E", "0", ["110150"], None, None),
    "login": ("110114", "110122", "E", "0", [None, None], 0, None),
    "login-refused": ("110114", "110122", "E", "4", [None, None], 0, None),
    "token-refused": ("110114", "110122", "E", "4", [None, None], 0, None),
    "logout": ("110114", "110123", "E", "0", [None, None], 0, None),
    "association-opened": ("110113", "110126", "E", "0", [None, None], None, "110182"),
    "association-rejected": ("110113", "110126", "E", "4", [None, None], None, "110182"),
    "tls-failed": ("110113", "110126", "E", "4", [None, None], None, "110182"),
    "transfer-begun": ("110102", None, "E", "0", ["110153", "110152"], 0, "110180"),
    "instances-received": ("110104", None, "C", "0", ["110153", "110152"], 0, "110180"),
    "instance-refused": ("110113", "110132", "E", "4", [None, None], None, "110182"),
    "instance-kept-aside": ("110113", "110132", "E", "4", [None, None], None, "110182"),
    "commitment-asked": ("110113", "110132", "E", "0", [None, None], None, "110182"),
    "commitment-reported": ("110113", "110132", "E", "0", [None, None], None, "110182"),
    "sending-begun": ("110102", None, "E", "0", ["110153", "110152"], 0, "110180"),
    "instances-sent": ("110104", None, "R", "0", ["110153", "110152"], 0, "110180"),
    "instances-not-sent": ("110104", None, "R", "4", ["110153", "110152"], 0, "110180"),
    "instances-exported": ("110106", None, "R", "0", ["110153", "110154"], 0, "110180"),
    "instances-not-exported": ("110106", None, "R", "4", ["110153", "110154"], 0, "110180"),
    "instances-accessed": ("110103", None, "R", "0", [None, None], 0, "110180"),
    "patient-sought": ("110112", None, "E", "0", ["110153", "110152"], 0, "12"),
    "instances-deleted": ("110103", None, "D", "0", [None], 0, "110180"),
    "refused-bytes-deleted": ("110113", "110132", "E", "0", [None], None, "12"),
    "asked": ("110113", "110132", "E", "0", [None, None], None, "12"),
    **dict.fromkeys(
        ("paused", "resumed", "priority-changed", "backed-up", "restored", "mended"),
        ("110113", "110132", "E", "0", [None, None], None, "12"),
    ),
    "identity-asked": ("110113", "110132", "E", "0", [None, None], None, "12"),
    "configuration-changed": ("110113", "110131", "E", "0", [None, None], None, "12"),
    "user-changed": ("110113", "110137", "E", "0", [None, None], None, "12"),
    "audit-used": ("110101", None, "R", "0", [None, None], 0, "12"),
}
MEANINGS = {  # PS3.16 Annex D
    "110100": "Application Activity",
    "110101": "Audit Log Used",
    "110102": "Begin Transferring DICOM Instances",
    "110103": "DICOM Instances Accessed",
    "110104": "DICOM Instances Transferred",
    "110106": "Export",
    "110112": "Query",
    "110113": "Security Alert",
    "110114": "User Authentication",
    "110120": "Application Start",
    "110121": "Application Stop",
    "110122": "Login",
    "110123": "Logout",
    "110126": "Node Authentication",
    "110131": "Software Configuration",
    "110132": "Use of Restricted Function",
    "110137": "User Security Attributes Changed",
    "110150": "Application",
    "110152": "Destination Role ID",
    "110153": "Source Role ID",
    "110154": "Destination Media",
    "110180": "Study Instance UID",
    "110182": "Node ID",
    "110037": "URI",
    "12": "URI",
}


def parsed(line: str) -> etree._Element:
    """A message that holds to the schema, and stands in one line."""
    assert "\n" not in line
    assert not any(ord(character) < 32 for character in line)
    root = etree.fromstring(line)
    assert SCHEMA.validate(root), f"{SCHEMA.error_log}\n{line}"
    return root


def test_the_schema_refuses_what_is_no_message() -> None:
    for bad in (
        "<AuditMessage/>",
        message("login", FACTS, SOURCE, NOON).replace('UserIsRequestor="true"', 'UserIsRequestor="perhaps"'),
        message("login", FACTS, SOURCE, NOON).replace("csd-code", "code"),
        message("asked", FACTS, SOURCE, NOON).replace("ParticipantObjectName", "ParticipantObjectTitle"),
    ):
        assert not SCHEMA.validate(etree.fromstring(bad))


def test_the_table_is_the_standards() -> None:
    assert STANDARD.keys() == EVENTS.keys()


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_is_as_the_standard_has_it(event: str) -> None:
    id_, kind, action, outcome, roles, requests, about = STANDARD[event]
    root = parsed(message(event, FACTS, SOURCE, NOON))
    said = root.find("EventIdentification")
    assert said.attrib == {
        "EventActionCode": action,
        "EventDateTime": "2026-03-14T12:00:00.123456+00:00",
        "EventOutcomeIndicator": outcome,
    }
    assert said.find("EventID").get("csd-code") == id_
    assert [each.get("csd-code") for each in said.findall("EventTypeCode")] == ([kind] if kind else [])
    parts = root.findall("ActiveParticipant")
    found = [part.find("RoleIDCode") for part in parts]
    assert [each.get("csd-code") if each is not None else None for each in found] == roles
    asked = [number for number, part in enumerate(parts) if part.get("UserIsRequestor") == "true"]
    assert asked == ([] if requests is None else [requests])
    objects = root.findall("ParticipantObjectIdentification")
    assert [each.find("ParticipantObjectIDTypeCode").get("csd-code") for each in objects] == ([about] if about else [])
    for coded in root.iter():
        if coded.get("originalText") is not None:
            assert coded.get("originalText") == MEANINGS[coded.get("csd-code")]
            assert coded.get("codeSystemName") == ("RFC-3881" if coded.get("csd-code") == "12" else "DCM")
    for each in objects:
        assert each.get("ParticipantObjectTypeCode") == "2"
        assert each.get("ParticipantObjectTypeCodeRole") == ("3" if about == "110180" or id_ == "110112" else "13")
        if about == "110180":
            assert each.get("ParticipantObjectID") == "1.2.3"
            counted = each.findall("ParticipantObjectDescription/SOPClass")
            assert {c.get("UID"): int(c.get("NumberOfInstances")) for c in counted} == FACTS["objects"]
        if id_ == "110113":  # Table A.5.3.11-1
            [detail] = each.findall("ParticipantObjectDetail")
            assert detail.get("type") == "Alert Description"
            assert base64.b64decode(detail.get("value")) == b"in words"
    if id_ == "110112":  # Table A.5.3.10-1
        assert base64.b64decode(objects[0].findtext("ParticipantObjectQuery")) == b"patient=0f-1e-2d"
    if id_ == "110101":  # Table A.5.3.2-1
        assert objects[0].findtext("ParticipantObjectName") == "Security Audit Log"
    if id_ == "110106":
        assert parts[1].get("UserID") == "file:///srv/results"
        assert parts[1].find("MediaIdentifier/MediaType").get("csd-code") == "110037"
    person = next((part for part in parts if part.get("UserName") == "ana"), None)
    if person is not None:  # A.5.2.1: loginName@domain-name
        assert person.get("UserID") == "ana@node.example"
        assert (person.get("NetworkAccessPointID"), person.get("NetworkAccessPointTypeCode")) == ("10.0.0.7", "2")
    for node in (part for part in parts if part.get("UserName") == "pacs-node"):
        assert (node.get("UserID"), node.get("AlternativeUserID")) == ("4711", "AETITLES=PACSNODE")
        assert (node.get("NetworkAccessPointID"), node.get("NetworkAccessPointTypeCode")) == ("node.example", "1")


@pytest.mark.parametrize(
    ("facts", "outcome"), [({"status": 303}, "0"), ({"status": 403}, "4"), ({"known": False}, "4")]
)
def test_what_failed_says_so(facts: dict[str, Any], outcome: str) -> None:
    root = parsed(message("asked", facts, SOURCE, NOON))
    assert root.find("EventIdentification").get("EventOutcomeIndicator") == outcome


@given(st.lists(st.text(max_size=300), max_size=60))
def test_settings_are_told_before_and_after_within_what_syslog_takes(changes: list[str]) -> None:
    """RFC 5424 6.1: what is longer than 8192 bytes may be cut off by who receives it."""
    facts = {"user": "ana", "what": "node.toml", "words": "x" * 900, "changes": changes}
    line = message("configuration-changed", facts, SOURCE, NOON)
    parsed(line)
    assert len(framed(line, SOURCE)) <= 8192
    row = row_of(line)
    assert row is not None
    said = row["changes"]
    whole = "\n".join(changes)
    assert said == whole if len(whole.encode()) < 3900 else whole.startswith(said.rpartition("\nand ")[0])


ODD = ["\ud800\x00\x1b", "x\r\n<a/>&\"'" * 900, "\u2028\x85\ufffe", " ", "Кто", "誰\U0001f600"]
ANY = st.binary(max_size=20).map(lambda some: some.decode("latin-1")) | st.sampled_from(ODD)


@given(st.sampled_from(sorted(EVENTS)), st.dictionaries(st.sampled_from([k for k in FACTS if k != "objects"]), ANY))
def test_whatever_a_stranger_calls_himself_the_message_stands(event: str, facts: dict[str, str]) -> None:
    """AE titles, names, paths and reasons come from outside."""
    line = message(event, facts, SOURCE, NOON)
    parsed(line)
    row = row_of(line)
    assert row is not None
    assert row["event"] in KINDS


def test_every_event_of_the_code_is_in_the_table() -> None:
    """The names in calls of audit(...) and its like; a log line alone would be missing from the trail."""
    said = set()
    for path in sorted((ROOT / "pacs_node").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("audit", "_audit", "_audited", "_tell", "_heard"):
                texts = [each for each in node.args[:3] if isinstance(each, ast.Constant | ast.JoinedStr)]
                for text in texts[:1]:
                    if isinstance(text, ast.Constant):
                        said.add(text.value)
                    else:
                        prefix = text.values[0].value  # type: ignore[union-attr, attr-defined]
                        said |= {f"{prefix}{done}" for done in ("sent", "exported")}
    said -= {event for event in said if not isinstance(event, str) or " " in event}  # log lines of observe._tell
    assert said == EVENTS.keys()


# ---- files ----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def now() -> Clock:
    return Clock()


@pytest.fixture
def trail(tmp_path: Path, now: Clock) -> Trail:
    return Trail(tmp_path / "audit", 200, now)


def names(trail: Trail) -> list[str]:
    return [path.name for path in trail.files()]


def test_a_new_file_each_day_and_when_one_is_full(trail: Trail, now: Clock) -> None:
    trail.append(["a" * 150])
    trail.append(["b" * 150])
    trail.append(["c" * 10])
    assert names(trail) == ["2026-03-14-0001.xml", "2026-03-14-0002.xml"]
    now.at += timedelta(days=1)
    trail.append(["d"])
    now.at -= timedelta(days=9)  # a clock that is set back
    trail.append(["e"])
    assert names(trail) == ["2026-03-14-0001.xml", "2026-03-14-0002.xml", "2026-03-15-0001.xml"]
    assert [line[0] for line in trail.backwards()] == ["e", "d", "c", "b", "a"]
    assert [line[0] for line, _ in trail.after(START, 99)] == ["a", "b", "c", "d", "e"]


def test_nobody_else_can_read_it_whatever_the_umask(trail: Trail) -> None:
    before = os.umask(0)
    try:
        trail.append(["one"])
    finally:
        os.umask(before)
    for path in (trail.folder, *trail.folder.iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_a_command_of_root_makes_is_the_nodes(trail: Trail) -> None:
    os.chown(trail.folder.parent, 12345, 12346)
    trail.append(["a line"])
    made = [trail.folder, *trail.folder.iterdir()]
    assert len(made) == 3, "the folder, its lock, a file"
    assert {(each.stat().st_uid, each.stat().st_gid) for each in made} == {(12345, 12346)}


def test_a_line_that_a_power_cut_left_is_passed_over(trail: Trail) -> None:
    whole = message("login", FACTS, SOURCE, NOON)
    trail.append([whole])
    with trail.files()[0].open("a") as file:
        file.write(whole[:99])
    assert [line for line, _ in trail.after(START, 9)] == [whole], "half a line is none yet"
    trail.append([whole])
    assert [row_of(line) is not None for line in trail.backwards()] == [True, False, True]


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
def test_the_newest_first_whatever_the_blocks(trail: Trail, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    lines = [f"{number} {'ü' * (number % 23)}" for number in range(60)]
    for line in lines:
        trail.append([line])
    assert list(trail.backwards()) == lines[::-1]


def test_a_position_goes_on_where_it_was(trail: Trail, now: Clock) -> None:
    at, lines = START, []
    for number in range(50):
        trail.append([f"{number}"] * 3)
        now.at += timedelta(hours=7)
        some = list(trail.after(at, 2))
        lines += [line for line, _ in some]
        at = some[-1][1]
    some = list(trail.after(at, 999))
    lines, at = [*lines, *(line for line, _ in some)], some[-1][1]
    assert lines == [f"{number}" for number in range(50) for _ in range(3)]
    assert trail.bytes_after(at) == 0
    assert trail.end() == at
    first, second = (path.read_text().splitlines()[0] for path in trail.files()[:2])
    trail.files()[0].unlink()  # an administrator moved it away
    assert next(trail.after(START, 1))[0] == second != first


def append_many(folder: Path, number: int) -> None:
    trail = Trail(folder, 4000, lambda: NOON)
    for each in range(150):
        trail.append([f"{number} {each} " + "x" * 40])


def test_several_processes_write_and_no_line_is_torn_or_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(tmp_path / "audit", number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    trail = Trail(tmp_path / "audit", 4000, lambda: NOON)
    lines = list(trail.backwards())
    assert sorted(lines) == sorted(f"{n} {each} " + "x" * 40 for n in range(3) for each in range(150))
    assert len(trail.files()) > 3


def test_while_the_disk_takes_nothing_messages_wait_and_then_are_counted(
    trail: Trail, now: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, wrote = Audit(SOURCE, trail, now), os.write
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    left = [40]

    def full(descriptor: int, data: Any) -> int:
        """A disk that has room for some bytes."""
        some = bytes(data)[: left[0]]
        if not some:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(some)
        return wrote(descriptor, some)

    monkeypatch.setattr(os, "write", full)
    for _ in range(5):
        audit("login", FACTS)
    with pytest.raises(OSError, match="No space"):
        audit.flush()
    assert list(trail.backwards()) == [""] or not list(trail.backwards()), "nothing of a message that is not whole"
    assert audit.lost == 2
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Loop, "trouble", property(lambda loop: "audit: No space left on device"))
        assert audit.trouble is not None
        assert "2 audit messages are lost" in audit.trouble
        assert audit.ailing is None, "it is said once"
    monkeypatch.setattr(os, "write", wrote)
    audit.flush()
    assert audit.trouble is None, "the node is well again"
    assert audit.ailing is not None
    assert "2 audit messages are lost" in audit.ailing
    assert [row_of(line) is not None for line in trail.backwards()] == [True] * 3


def test_a_stranger_does_not_fill_the_disk(trail: Trail, now: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the log; how many were passed over is said with the next one."""
    minute = [0.0]
    monkeypatch.setattr("pacs_node.audit.time.monotonic", lambda: minute[0])
    audit, logged = Audit(SOURCE, trail, now), list[str]()
    audit.log = lambda event, facts: logged.append(str(facts.get("words", "")))
    for _ in range(500):
        audit("login-refused", FACTS)
        audit("login", FACTS)
    assert len(logged) == 500 + MOST_A_MINUTE
    minute[0] = 60.0
    audit("login-refused", FACTS)
    audit("login-refused", FACTS)
    assert f"{500 - MOST_A_MINUTE} more of these within a minute are not written down" in logged[-2]
    assert "more of these" not in logged[-1]
    audit.flush()
    assert sum(1 for line in trail.backwards() if line) == 500 + MOST_A_MINUTE + 2


def test_nobody_waits_for_the_disk(trail: Trail, now: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    audit, go_on = Audit(SOURCE, trail, now), threading.Event()
    monkeypatch.setattr(os, "fsync", lambda descriptor: go_on.wait(30))
    audit.loop.start()
    audit("login", FACTS)
    audit("logout", FACTS)
    assert not go_on.is_set(), "who told it is back"
    go_on.set()
    wait_for(lambda: len(list(trail.backwards())) == 2, 20, "both messages")
    audit.stop()


def test_an_event_without_a_message_is_a_line_of_the_log_alone(trail: Trail, now: Clock) -> None:
    audit, lines = Audit(SOURCE, trail, now), []
    audit.log = lambda event, facts: lines.append(event)
    audit("nobody-knows-it", {})
    audit.flush()
    assert lines == ["nobody-knows-it"]
    assert trail.files() == []


# ---- what comes on an association -----------------------------------------------------------------------------------


def test_transfers_are_told_by_study_and_counted() -> None:
    events: list[tuple[str, Any]] = []
    transfers = Transfers(lambda *said: events.append(said))

    def image(study: str, sop_class: str, association: str = "a") -> Instance:
        return Instance("1", sop_class, "s", study, "t", Path("p"), 1, NOON, association, "CT1")

    transfers.opened("a", "CT2", "10.0.0.7")  # what it brings came from CT1 first
    for each in (
        image("1.1", "ct"),
        image("1.1", "ct"),
        image("1.2", "us"),
        image("1.1", "sc"),
        image("1.1", "x", "b"),
    ):
        transfers.stored(each)
    transfers.left(AssociationEnd("a", "CT1", True, NOON))
    transfers.left(AssociationEnd("b", "CT1", False, NOON))
    transfers.left(AssociationEnd("c", "CT1", True, NOON))
    told_of = [(event, facts["study"], facts["from"], facts.get("objects")) for event, facts in events]
    assert told_of == [
        ("transfer-begun", "1.1", "10.0.0.7", None),
        ("transfer-begun", "1.2", "10.0.0.7", None),
        ("transfer-begun", "1.1", "", None),
        ("instances-received", "1.1", "10.0.0.7", {"ct": 2, "sc": 1}),
        ("instances-received", "1.2", "10.0.0.7", {"us": 1}),
        ("instances-received", "1.1", "", {"x": 1}),
    ]
    assert [facts["calling_ae"] for event, facts in events if event == "transfer-begun"] == ["CT2", "CT2", "CT1"]
    assert "broken off" in events[-1][1]["words"]
    assert not transfers._held
    assert not transfers._from


# ---- the pages ------------------------------------------------------------------------------------------------------

Browser = Callable[[str | None], TestClient]


def events_of(heard: list[tuple[str, Any]]) -> list[tuple[str, str, str]]:
    return [(event, facts.get("user", ""), facts.get("what", "")) for event, facts in heard]


def test_who_pressed_what_is_told_whatever_came_of_it(
    told: Told, browser: Browser, audit: list[tuple[str, Any]]
) -> None:
    client = browser(ADMIN)
    csrf = token_of(client)
    audit.clear()
    for path, status in (("/api/rerun?route=nosuch", 400), ("/api/series/1.2/rerun", 409), ("/api/jobs/x/retry", 409)):
        assert client.post(path, data={"csrf": csrf}).status_code == status
    assert browser(VIEWER).post("/api/rerun?route=nosuch").status_code == 403
    said = [(event, facts["user"], facts["what"], facts["status"]) for event, facts in audit if event == "asked"]
    assert said == [
        ("asked", "a-admin", "/api/rerun", 400),
        ("asked", "a-admin", "/api/series/1.2/rerun", 409),
        ("asked", "a-admin", "/api/jobs/x/retry", 409),
        ("asked", "a-viewer", "/api/rerun", 403),
    ]
    assert {facts["from"] for _, facts in audit} == {"testclient"}


def test_what_a_button_was_about_is_told(told: Told, browser: Browser, audit: list[tuple[str, Any]]) -> None:
    client = browser(ADMIN)
    csrf = token_of(client)
    uid = told.node.ledger.series_uids()[0]
    job = told.node.ledger.series(uid)["jobs"][0]  # type: ignore[index]
    audit.clear()
    client.post(f"/api/jobs/{job['id']}/retry", data={"csrf": csrf})
    client.post("/api/bulk", data={"csrf": csrf, "do": "retry", "series": [uid, "9.9"], "confirmed": "yes"})
    asked = [facts for event, facts in audit if event == "asked"]
    assert asked[0]["words"].endswith(f"of series {uid}, which was {job['state']}")
    assert asked[1]["words"].startswith("retry: ")
    assert asked[1]["what"] == "/api/bulk"
    assert "series, " in asked[1]["words"]


def test_coming_and_going_is_told(browser: Browser, audit: list[tuple[str, Any]]) -> None:
    client = browser(READER)
    client.post("/login", data={"name": "a-reader", "password": "wrong"})
    client.get("/api/series", headers={"authorization": "Bearer pn_wrong"})
    client.post("/logout", data={"csrf": token_of(client)})
    assert [event for event, _ in audit] == ["login", "login-refused", "token-refused", "logout"]
    assert all(facts["from"] == "testclient" for _, facts in audit)


def test_every_answer_that_tells_who_the_patient_is_is_told(
    told: Told, browser: Browser, audit: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever address comes to need READER: whoever asks stands in the trail, with the studies if they are known."""
    for path in ("/api/series", "/api/series/{uid}"):
        monkeypatch.setitem(access.NEEDS, path, READER)
    app_browser = browser(READER)
    audit.clear()
    app = create_app(NodeFacts(told.node), CollectorRegistry(), ["testserver"], audit=lambda *said: audit.append(said))
    client = TestClient(app)
    assert client.get("/api/series").status_code == 200
    assert client.get("/api/series/9.9").status_code == 404
    assert events_of(audit) == [
        ("identity-asked", "anybody", "/api/series"),
        ("identity-asked", "anybody", "/api/series/9.9"),
    ]
    assert app_browser.get("/api/series").status_code == 200


def test_an_object_that_is_handed_out_is_told_with_its_study(
    told: Told, browser: Browser, audit: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = us_image()
    image.save_as(tmp_path / "01-SEG.dcm", enforce_file_format=True)
    monkeypatch.setattr(NodeFacts, "rejected", lambda self, job: {"01-SEG.dcm": tmp_path / "01-SEG.dcm"})
    client = browser(READER)
    audit.clear()
    assert client.get("/api/jobs/x/rejected/01-SEG.dcm").status_code == 200
    assert client.get("/api/jobs/x/rejected/02-SEG.dcm").status_code == 404
    [facts] = [facts for event, facts in audit if event == "instances-accessed"]
    assert (facts["user"], facts["study"]) == ("a-reader", str(image.StudyInstanceUID))


def test_the_page_shows_the_trail_to_admins_and_finds_in_it(
    told: Told, browser: Browser, audit: list[tuple[str, Any]]
) -> None:
    node = told.node
    node.audit.log = lambda event, facts: None
    node.audit("login", {"user": "ana", "from": "10.0.0.7"})
    node.audit("association-rejected", {"calling_ae": "STRANGER", "from": "10.9.9.9", "words": "<b>who?</b>"})
    node.audit("instances-received", {"calling_ae": "CT1", "study": "1.2.3", "objects": {"1.2": 7}})
    node.audit.flush()
    client = browser(ADMIN)
    audit.clear()
    page = client.get("/audit", headers=HTML).text
    assert "STRANGER" in page
    assert "&lt;b&gt;who?" in page
    assert "<b>who" not in page
    assert [event for event, _ in audit] == ["audit-used"]

    def found(**keys: str) -> list[str]:
        answer = client.get("/api/audit", params=keys)
        assert answer.status_code == 200, answer.text
        return [event["type"] or event["event"] for event in answer.json()]

    assert found(who="ANA") == ["Login"]
    assert found(who="10.9.9") == ["Node Authentication"]
    assert set(found(event="DICOM Instances Transferred")) == {"DICOM Instances Transferred"}
    assert found(study="1.2.3") == ["DICOM Instances Transferred"]
    assert found(event="User Authentication", study="1.2.3") == []
    assert len(found(limit="1")) == 1
    newest, *older = client.get("/api/audit").json()
    assert [event["at"] for event in client.get("/api/audit", params={"before": newest["at"]}).json()] == [
        event["at"] for event in older
    ]
    assert found(event="", who="", study="") == found()
    for role in ROLES:
        for path in access.LOGS:
            assert browser(role).get(path).status_code == (200 if role == ADMIN else 403)


def test_who_changes_users_is_told(accounts: Accounts, tmp_path: Path) -> None:
    events: list[tuple[str, Any]] = []
    accounts.audit = lambda *said: events.append(said)
    accounts.add("ben", VIEWER, GOOD)
    accounts.change("ben", role=READER, password="another long secret")
    accounts.change("ben")
    accounts.remove("ben")
    secret = accounts.add_token("prometheus", VIEWER, days=30)
    accounts.remove_token("prometheus")
    assert [(facts["what"], facts["words"]) for _, facts in events] == [
        ("user:ben", "a user with the role viewer was made"),
        ("user:ben", "the user was given the role reader and another password"),
        ("user:ben", "the user was unlocked"),
        ("user:ben", "the user was removed"),
        ("token:prometheus", "a token with the role viewer was made, for 30 days"),
        ("token:prometheus", "the token was removed"),
    ]
    assert {event for event, _ in events} == {"user-changed"}
    for each in (GOOD, "another long secret", secret):
        assert each not in repr(events)


# ---- what is sent ---------------------------------------------------------------------------------------------------

PEERS = """
[node]
data_dir = "store"
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "10.0.0.5"
port = 104
[[peer]]
name = "web"
dicomweb_url = "https://archive.example/dicom-web"
[[peer]]
name = "files"
folder = "out"
"""


def receipt(number: int, *, stored: bool = True) -> Receipt:
    return Receipt(f"2.25.{number}", stored, 0, "", NOON, "1.2.840.10008.5.1.4.1.1.66.4")


class Fake:
    """A destination that takes what it takes."""

    def __init__(self, receipts: list[Receipt], failure: str = "") -> None:
        self.receipts, self.failure = receipts, failure

    def deliver(self, package: Package, now: Callable[[], datetime]) -> list[Receipt]:
        if self.failure:
            raise TryAgain(self.failure, self.receipts)
        return self.receipts


@pytest.mark.parametrize(
    ("peer", "begun", "sent", "where"),
    [
        ("pacs", ["sending-begun"], "sent", "10.0.0.5"),
        ("web", ["sending-begun"], "sent", "archive.example"),
        ("files", [], "exported", None),
    ],
)
def test_what_is_sent_is_told_and_what_did_not_get_there(
    tmp_path: Path, peer: str, begun: list[str], sent: str, where: str | None
) -> None:
    (tmp_path / "node.toml").write_text(PEERS)
    node = Node(load(tmp_path / "node.toml", catalogue()))
    events: list[tuple[str, Any]] = []
    node.stages.audit = lambda *said: events.append(said)
    package = Package("job", (), study_uid="1.2.3")
    for fake, said in (
        (Fake([receipt(1), receipt(2)]), [f"instances-{sent}"]),
        (Fake([], "connection refused"), [f"instances-not-{sent}"]),
        (Fake([receipt(1), receipt(2, stored=False)], "full"), [f"instances-not-{sent}", f"instances-{sent}"]),
    ):
        events.clear()
        node.stages.destinations[peer] = fake
        with pytest.raises(TryAgain) if fake.failure else nullcontext():
            node.stages.deliver(peer, package)
        assert [event for event, _ in events] == [*begun, *said]
        assert {facts["study"] for _, facts in events} == {"1.2.3"}
        for event, facts in events:
            assert facts.get("host") == where
            assert ("words" in facts) == ("-not-" in event)
            parsed(message(event, facts, SOURCE, NOON))
        stored = sum(each.stored for each in fake.receipts)
        counted = [sum(facts["objects"].values()) for event, facts in events if event == f"instances-{sent}"]
        assert counted == ([stored] if stored else [])
    node.stop()


def test_changed_settings_are_told_at_the_next_start(tmp_path: Path) -> None:
    def start() -> list[str]:
        node = Node(load(tmp_path / "node.toml", catalogue()))
        node.audit.log = lambda event, facts: said.append(event)
        said: list[str] = []
        node.audit.trail.folder.mkdir(parents=True, exist_ok=True)
        node._tell_of_settings()
        node.stop()
        return said

    (tmp_path / "node.toml").write_text(PEERS)
    assert start() == [], "a first start has nothing before it"
    assert start() == []
    (tmp_path / "node.toml").write_text(PEERS.replace("104", "105"))
    assert start() == ["configuration-changed"]
    assert start() == []
