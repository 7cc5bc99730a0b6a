"""The documents know all that there is, and nothing that is gone: settings are in test_config.py, here is the rest.

Each table of a document is held against what the program itself says, both ways.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydicom.uid import SegmentationStorage
from starlette.routing import Mount
from starlette.routing import Route as Address
from starlette.testclient import TestClient

from config import Web, load
from models import catalogue
from models.forms import Choice, keep
from models.lung_nodule.options import OPTION_DETECTORS, DetectorName
from pacs_node import commitment, errors
from pacs_node.association import SUCCESS
from pacs_node.cli import app as commands
from pacs_node.deliver import destination, stow
from pacs_node.facts import NodeFacts
from pacs_node.node import Node
from pacs_node.peers import LedgerMemory
from pacs_node.receive import accept, scp
from pacs_node.receive import commitment as answers_for
from pacs_node.records import (
    Answer,
    ArrivalProof,
    Edition,
    Evidence,
    Instance,
    Job,
    OpenSeries,
    Receipt,
    Refusal,
    Result,
)
from pacs_node.run import Outcome
from pacs_node.web.app import create_app
from tests.factories import us_image

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@cache
def document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """What stands below a heading of a document, up to the next one that is not below it."""
    level = len(heading) - len(heading.lstrip("#"))
    found = re.search(rf"(?ms)^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", document(name))
    assert found, f"{name} has no heading {heading!r}"
    return found[1]


def rows(text: str, column: str) -> dict[str, list[str]]:
    """The rows of the one table whose first column is called so: first cell -> the other cells."""
    [table] = re.findall(rf"(?m)^\| {re.escape(column)} \|.*\n\|[- |]+\|\n((?:\|.*\n)+)", text)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    assert len({first for first, *_ in cells}) == len(cells), f"twice in the table of {column}"
    return {first: others for first, *others in cells}


def codes(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


# Options and commands -----------------------------------------------------------------------------------------------


OPTIONS_OF = {  # where they are documented, if not under a heading of their own in docs/configuration.md
    "monai-bundle": ("docs/foreign-models.md", "## A MONAI bundle"),
    "command": ("docs/foreign-models.md", "## A command"),
}
WITHOUT = {"", "none", "any", "all cores"}  # in the place of a default: nothing, or an empty list or table


@pytest.mark.parametrize("pipeline", catalogue().options)
def test_every_option_of_a_pipeline_is_documented_with_its_default(pipeline: str) -> None:
    name, heading = OPTIONS_OF.get(pipeline, ("docs/configuration.md", f"### Options of `{pipeline}`"))
    documented = rows(section(name, heading).partition("\n### ")[0], "option")
    fields = catalogue().options[pipeline].model_fields
    assert documented.keys() == {f"`{name}`" for name in fields}
    for name, field in fields.items():
        default = documented[f"`{name}`"][0]
        assert (default == "required") == field.is_required(), name
        if default in WITHOUT:
            assert not field.default, name
        elif default != "required":
            assert tomllib.loads(f"x = {default.strip('`')}")["x"] == field.default, name


def test_every_detector_is_documented_with_the_options_of_its_own() -> None:
    documented = rows(section("docs/configuration.md", "### Detectors of nodules"), "detector")
    own = {re.findall(r'"([a-z-]+)"', name)[0]: codes(options) for name, (_, options) in documented.items()}
    assert own == {
        detector: {option for option, having in OPTION_DETECTORS.items() if detector in having}
        for detector in get_args(DetectorName)
    }


def arguments(command: Any) -> set[str]:
    """As its user writes them: --config, SERIES..."""
    return {
        word
        for each in command.params
        for word in (
            [*each.opts, *each.secondary_opts]
            if each.param_type_name == "option"
            else [f"{each.name.upper()}{'...' if each.nargs != 1 else ''}"]
        )
    } - {"--help"}


COMMANDS = {  # of a group, such as `user`, each of its own
    f"{name} {each}".strip(): one
    for name, command in typer.main.get_command(commands).commands.items()  # type: ignore[attr-defined]
    for each, one in getattr(command, "commands", {"": command}).items()
}
GROUPS = {name.partition(" ")[0] for name in COMMANDS if " " in name}


def test_every_command_is_documented_and_no_other() -> None:
    assert re.findall(r"(?m)^## `pacs-node (.+)`$", document("docs/commands.md")) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_of_a_command_is_documented(name: str) -> None:
    text = document("docs/run.md") if name == "run" else section("docs/commands.md", f"## `pacs-node {name}`")
    asked = arguments(COMMANDS[name])
    documented = set[str]().union(*map(codes, rows(text, "argument"))) if asked else set()
    assert documented == asked
    assert asked or "| argument |" not in text


# Addresses, JSON and metrics ----------------------------------------------------------------------------------------

TOML = """
[node]
data_dir = "store"
[heartbeat]
every_minutes = 60
route = "breast"
to = "pacs"
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 4242
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["pacs"]
[[route]]
name = "chest"
match = { Modality = "CT" }
pipeline = "lung-nodule"
send_to = ["pacs"]
"""


class Told:
    """A node to which everything has happened once that its answers can tell of, and its pages."""

    def __init__(self, folder: Path) -> None:
        (folder / "node.toml").write_text(TOML)
        self.time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self.node = Node(load(folder / "node.toml", catalogue()), now=self.now)
        self.ledger = self.node.ledger
        self.ledger.migrate()
        self.folder = folder
        self.uid = str(us_image().SeriesInstanceUID)
        self._receive()
        self.failed = self._work()
        choice = Choice("k", "Net 1", "bf16", "cpu", {"bf16": 1.0}, {"fp32": "off"}, "2026-01-01T00:00:00+00:00")
        keep(self.node.config.node.data_dir / "inference" / "forms.json", [choice], Path.write_bytes)
        facts = NodeFacts(self.node)
        self.ledger.mark("backup", self.now(), "3 files, monday")
        self.node.heartbeat._ended("arrived", self.now(), "1.2.3", "C-FIND found it", 3.0)
        self.node.audit("instances-received", {"calling_ae": "US1", "study": "1.2", "objects": {"1.2": 3}})
        self.node.audit.flush()
        self.app = create_app(facts, self.node.figures(facts), ("testserver",))
        self.web = TestClient(self.app)

    def now(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time

    def _receive(self) -> None:
        """Three images; the last cannot be read any more when the series is judged."""
        image = us_image()
        for number in (1, 2, 3):
            path = self.folder / f"{number}.dcm"
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number}"
            image.save_as(path, enforce_file_format=True)
            uids = f"2.25.{number}", str(image.SOPClassUID), self.uid, str(image.StudyInstanceUID)
            syntax = str(image.file_meta.TransferSyntaxUID)
            self.ledger.take_in(Instance(*uids, syntax, path, 1, self.now(), "a", "US1"))
        path.write_bytes(b"")
        assert self.node.flow.close(OpenSeries(self.uid, uids[3], Evidence(self.now(), 3), ("US1",)), "quiet")
        self.ledger.note_refusal(Refusal("unreadable", self.now(), "US1", "127.0.0.1", "cut off"))

    def _work(self) -> Job:
        """An inference, its send, and the proof that it arrived, which fails."""
        [infer] = self.ledger.open_jobs()
        result = Result("2.25.9", SegmentationStorage, self.folder / "seg.dcm")
        edition = Edition(1, 1, "1", True, self.now(), objects=(result,))
        send = self.node.flow._send_job(infer, "pacs")
        assert self.ledger.begin(infer, "w", self.now())
        assert self.ledger.finish(
            infer, "done", "1 finding", self.now(), results=[result], follow_up=[send], edition=edition
        )
        confirm = self.node.flow._confirm_job(send)
        receipt = Receipt("2.25.9", True, 0, "0x0000 Success", self.now(), SegmentationStorage)
        assert self.ledger.begin(send, "w", self.now())
        assert self.ledger.finish(send, "done", "1 stored", self.now(), receipts=[receipt], follow_up=[confirm])
        arrival = ArrivalProof("2.25.9", False, "C-FIND", "not there", self.now())
        assert self.ledger.begin(confirm, "w", self.now())
        assert self.ledger.finish(confirm, "failed", "not there", self.now(), arrivals=[arrival])
        memory = LedgerMemory(self.ledger, self.node.config.peers[0], self.node.config.node.ae_title)
        memory.remember([Answer(SegmentationStorage, "1.2.840.10008.1.2", "not supported", self.now())])
        return confirm


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    told = Told(tmp_path_factory.mktemp("told"))
    yield told
    told.node.stop()


NEEDS_RESULTS = ("/api/series/{uid}/feedback",)  # see test_viewer.py
FREE = {"verdict.facts", "jobs[].facts"}  # as the modality and the pipeline have it
BY_NAME = {  # objects whose keys are no fields
    "verdict.set_aside": "{uid}",
    "not": "{uid}",
    "counts": "{kind}",
    **dict.fromkeys(("forms[].seconds", "forms[].why_not"), "{form}"),
    **dict.fromkeys(("kept_bytes", "disk.kept_bytes"), "{what}"),
    **dict.fromkeys(("series", "infer", "send", "confirm", "report", "shadow"), "{state}"),
}


def fields(value: Any, place: str = "") -> Iterator[str]:
    """The place of every field: jobs[].receipts[].status"""
    if isinstance(value, dict) and place not in FREE:
        for key, each in value.items():
            yield from fields(each, f"{place}.{BY_NAME.get(place, key)}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for each in value:
            yield from fields(each, f"{place}[]".removeprefix("[]"))
    elif place:
        yield place.lstrip(".")


def told_of(answer: Any) -> set[str]:
    """The fields of an answer; of one that is empty or null here and not there, what it holds there."""
    there = set(fields(answer))
    return {place for place in there if not any(other.startswith((f"{place}.", f"{place}[]")) for other in there)}


def documented_fields(heading: str) -> set[str]:
    return set[str]().union(*map(codes, rows(section("docs/api.md", f"## `{heading}`"), "field")))


def test_every_address_is_documented_and_no_other(told: Told) -> None:
    documented = rows(section("docs/api.md", "## Addresses"), "address")
    addresses = {
        route.path: {"GET"} if isinstance(route, Mount) else (route.methods or set()) - {"HEAD"}
        for route in told.app.routes
        if isinstance(route, Address | Mount)
    }
    assert len(addresses) == len(told.app.routes)
    assert {address.strip("`"): set(method.split(", ")) for address, (method, *_) in documented.items()} == addresses


def test_every_query_key_is_documented_and_no_other(told: Told) -> None:
    """The program itself says which keys an address has, when it is asked with one that it has not."""
    for address, (method, keys, _) in rows(section("docs/api.md", "## Addresses"), "address").items():
        if address == "`/static`":
            continue
        said = told.web.request(
            method.partition(",")[0], re.sub(r"\{\w+\}", "1", address.strip("`")), params={"no-such-key": "1"}
        )
        assert said.status_code == 400, address
        there = re.search(r"there are (\w+(, \w+)*)", said.text)
        assert there, said.text
        assert codes(keys) == set(there[1].split(", ")) - {"none"}, address


@pytest.mark.parametrize(
    "address",
    [
        "/health",
        "/api/series",
        "/api/series/{uid}",
        "/api/destinations",
        "/api/refusals",
        "/api/audit",
        "/api/queue",
        "/api/inference",
        "/api/system",
        "/ready",
    ],
)
def test_every_field_of_an_answer_is_documented_and_no_other(told: Told, address: str) -> None:
    if address in ("/api/queue", "/api/system"):
        told.web.post(f"/api/jobs/{told.failed.id}/retry")  # something waits
    if address == "/api/system":
        web = Web(certificate=told.folder / "none.pem", key=told.folder / "none.pem")
        told.node.config = told.node.config.model_copy(update={"web": web})
    answer = told.web.get(address.replace("{uid}", told.uid))
    assert answer.status_code == (503 if address == "/ready" else 200), answer.text  # nothing listens
    documented = documented_fields(f"GET {address}")
    if address == "/api/series/{uid}":
        documented |= documented_fields("GET /api/series")
    assert told_of(answer.json()) == documented


def test_every_field_of_what_is_asked_for_is_documented_and_no_other(told: Told) -> None:
    post = told.web.post
    asked = {
        "/api/jobs/{id}/retry": post(f"/api/jobs/{told.failed.id}/retry"),
        "/api/rerun": post("/api/rerun?since=2026-01-01&route=chest"),
        "/api/bulk": post(f"/api/bulk?do=delete&series={told.uid}&confirmed=yes"),
    }
    [confirm] = told.ledger.open_jobs()
    assert told.ledger.begin(confirm, "w", told.now())
    assert told.ledger.finish(confirm, "failed", "not there", told.now())
    asked["/api/jobs/{id}/dismiss"] = post(f"/api/jobs/{confirm.id}/dismiss")
    asked["/api/series/{uid}/rerun"] = post(f"/api/series/{told.uid}/rerun")
    for address, answer in asked.items():
        assert answer.status_code == 200, answer.text
        assert told_of(answer.json()) == documented_fields(f"POST {address}"), address
    posts = re.findall(r"(?m)^## `POST (\S+)`$", document("docs/api.md"))
    assert sorted(posts) == sorted([*asked, *NEEDS_RESULTS])
    assert told.web.get("/api/series/1").json().keys() == {"error"}


def http_statuses() -> set[int]:
    """Every status that the code of the pages names."""
    found = {200}
    for path in sorted((ROOT / "pacs_node" / "web").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = [keyword.value for keyword in node.keywords if keyword.arg == "status_code"]
            if isinstance(node.func, ast.Name) and node.func.id == "HTTPException":
                named += node.args[:1]
            constants = [each for value in named for each in ast.walk(value) if isinstance(each, ast.Constant)]
            found |= {each.value for each in constants if type(each.value) is int}
    return found


def test_every_http_status_is_documented_and_no_other(told: Told) -> None:
    by_itself = {told.web.put("/api/series").status_code}  # starlette's own: 405
    documented = rows(section("docs/api.md", "## Statuses"), "status")
    assert {int(status) for status in documented} == http_statuses() | by_itself


def test_every_metric_is_documented_with_its_labels_and_no_other(told: Told) -> None:
    job = told.ledger.job(told.failed.id)
    assert job is not None
    told.ledger.note_study(job, "skipped")
    lines = told.web.get("/metrics").text.splitlines()
    samples = [re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line) for line in lines if not line.startswith("#")]
    metrics = {found[1]: set(re.findall(r'(\w+)="', found[2] or "")) for found in samples if found}
    documented = rows(section("docs/api.md", "## Metrics"), "metric")
    assert {name.strip("`"): codes(labels) for name, (labels, _) in documented.items()} == metrics


def test_every_field_of_a_run_is_documented_and_no_other() -> None:
    text = section("docs/run.md", "## JSON")
    told = json.loads(Outcome("1.2.3", "done", "nothing found").to_json())
    whole, finding = re.split(r"(?m)^A finding:$", text)
    assert rows(whole, "key").keys() == {f"`{key}`" for key in told}
    documented = set[str]().union(*map(codes, rows(finding, "key")))
    said = {
        key.value
        for node in ast.walk(ast.parse((ROOT / "pacs_node" / "run.py").read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in ("_told", "_where")
        for each in ast.walk(node)
        if isinstance(each, ast.Dict)
        for key in each.keys
        if isinstance(key, ast.Constant)
    }
    assert documented == said


# DIMSE statuses -----------------------------------------------------------------------------------------------------


def statuses(column: str) -> set[str]:
    return set(rows(document("docs/conformance.md"), column))


def written(numbers: Iterable[int]) -> set[str]:
    return {f"0x{number:04X}" for number in numbers}


def raised(kind: type[errors.ReceiveError]) -> set[int]:
    return {kind.status}.union(*map(raised, kind.__subclasses__()))


def test_every_status_of_receipt_is_documented_and_no_other() -> None:
    assert statuses("status") == written({SUCCESS, scp.COERCION} | raised(errors.ReceiveError))
    refusals = re.findall(r"_failure\((\w+), ", Path(answers_for.__file__).read_text())
    assert refusals
    answered = {SUCCESS, *(getattr(answers_for, name) for name in refusals)}
    assert statuses("status of N-ACTION and N-EVENT-REPORT") == written(answered)
    assert statuses("failure reason of a storage commitment") == written(commitment.FAILURE_REASONS)


def test_every_rejection_is_documented_and_no_other() -> None:
    tables = {value for name, value in vars(accept).items() if name.isupper() and isinstance(value, tuple)}
    rejections = {", ".join(map(str, codes)) for codes in tables if len(codes) == 3}
    assert statuses("association rejected: result, source, reason (PS3.8 Table 9-21)") == rejections


def spans(ends: Iterable[tuple[str, str]]) -> set[str]:
    return {first if first == last else f"{first} to {last}" for first, last in ends}


def test_every_answer_of_a_destination_is_documented_and_no_other() -> None:
    dimse = [(f"0x{first:04X}", f"0x{last:04X}") for first, last, *_ in destination.STATUSES]
    assert statuses("answer") == spans(dimse)
    assert statuses("HTTP status") == spans((str(first), str(last)) for first, last, *_ in stow.STATUSES)


# Nothing that is gone -----------------------------------------------------------------------------------------------

# CHANGELOG.md and decisions.md tell of what was, and may name it
TOLD_NOW = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *DOCS.rglob("*.md"), *ROOT.glob("models/**/*.md")]
    if path.name not in ("CHANGELOG.md", "decisions.md")
)
ELSEWHERE = {  # names of files that are not ours
    "fsm.py": "of pynetdicom",
    "sr/templates.py": "of highdicom",
    "_exceptions.py": "of httpx",
    "class/n.png": "in BUSI, as its archive has it, and the following",
    "class/n_mask.png": "",
    "_mask.png": "",
    "_mask_1.png": "",
    "patient/nodule/file.png": "in a set of crops, and the following",
    "file_raters.png": "",
    "hard.json": "by an option's example",
    "listener.py": "what first-day.md has its reader make, and the following",
    "sent.json": "",
}
# settings and tables of PostgreSQL, nginx and Apache
NAMES_ELSEWHERE = {"max_connections", "pg_stat_activity", "client_max_body_size", "proxy_buffering", "proxy_http"}
# what a run or its user makes, and what lies elsewhere by its very path
MADE = re.compile(
    r"(data_dir|runs|results|rejected|demo-out|dist|(tests/test_)?bone_finder|/etc|/path|/var|/opt|key-image|\d\d-)\b.*"
    r"|.*[<{*…].*|(NAME|[A-Z])\.\w+"
)
SUFFIXES = r"(?:py|md|toml|txt|json|jsonl|csv|png|css|html|yaml|service|lua|safetensors|cfg|run)"


def spans_of_code(text: str) -> Iterator[str]:
    """What stands between backticks, and the lines of blocks."""
    blocks = re.findall(r"(?ms)^ *```\w*\n(.*?)^ *```$", text)
    text = re.sub(r"(?ms)^ *```\w*\n.*?^ *```$", "", text)
    for block in [*blocks, *re.findall(r"(?m)^    (?![-*|\d]).*$", text)]:
        yield from (line.strip() for line in block.splitlines())
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


@cache
def files() -> tuple[str, ...]:
    """Every file of the project, from the root on, with a slash before it."""
    top = [path for path in ROOT.iterdir() if path.name not in (".git", ".venv")]
    found = [each for path in top for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file()]
    return tuple(f"/{path.relative_to(ROOT).as_posix()}" for path in found if "__pycache__" not in path.parts)


@cache
def code() -> str:
    """All code, settings and pages; what is larger are tables."""
    kinds = (".py", ".toml", ".html", ".json", ".lua", ".yaml")
    paths = [ROOT / path[1:] for path in files() if path.endswith(kinds) and not path.startswith(("/docs", "/runs"))]
    here = Path(__file__)
    return "\n".join(p.read_text(encoding="utf-8") for p in paths if p != here and p.stat().st_size < 200_000)


@cache
def words() -> frozenset[str]:
    return frozenset(re.findall(r"\w+", code()))


def is_there(path: str) -> bool:
    """A file or folder, by its whole path or by the end of it; or a file whose name the code reads or writes."""
    path = path.rstrip("/")
    return (
        any(each.endswith(f"/{path}") or f"/{path}/" in each for each in files())
        or re.search(rf"""[\w/]*["'/}}]{re.escape(path)}["']""", code()) is not None
    )


@pytest.mark.parametrize("name", TOLD_NOW)
def test_no_document_names_what_is_gone(name: str) -> None:
    gone = sorted(set(missing_in(document(name), (ROOT / name).parent)))
    assert gone == []


def missing_in(text: str, beside: Path) -> Iterator[str]:
    """Every name of a document that stands for nothing any more, and what it would be."""
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        if not (beside / link).exists():
            yield f"link {link}"
    for span in spans_of_code(text):
        for path in re.findall(rf"(?<![\w/.:*-])(?:[\w.-]+/)*[\w.-]+\.{SUFFIXES}\b(?!\w|\()", span):
            if path not in ELSEWHERE and not MADE.fullmatch(path) and not is_there(path):
                yield f"file {path}"
        if re.fullmatch(r"(?:[\w.-]+/)+", span) and not MADE.fullmatch(span) and not is_there(span):
            yield f"folder {span}"
        for module in re.findall(r"python -m ([\w.]+)", span):
            if not module.startswith(("pip", "venv", "pytest", "http")) and not _is_module(module):
                yield f"module {module}"
        for goal in re.findall(r"^(?:\w+=\S+ )*make ((?:[a-z]+ ?)+)", span):
            yield from (f"make {each}" for each in goal.split() if each not in goals())
        yield from _of_the_command_line(span)
        yield from (f"metric {each}" for each in re.findall(r"\bpacs_node_[a-z_]+\b", span) if each not in metrics())
        if re.fullmatch(r"(?:(?:GET|POST) )?(/[\w{}/-]*)(?:\?\S*)?", span) and not _is_address(span):
            yield f"address {span}"
        if re.fullmatch(r"(?!pacs_node_)[a-z]+(?:_[a-z0-9]+)+", span) and span not in words() | NAMES_ELSEWHERE:
            yield f"name {span}"


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@cache
def goals() -> frozenset[str]:
    return frozenset(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))


@cache
def metrics() -> frozenset[str]:
    return frozenset(name.strip("`") for name in rows(section("docs/api.md", "## Metrics"), "metric"))


def _unnamed(address: str) -> str:
    return re.sub(r"\{\w+\}", "{}", address)


def _is_address(span: str) -> bool:
    path = _unnamed(span.split(" ")[-1].partition("?")[0])
    known = {_unnamed(row.strip("`")) for row in rows(section("docs/api.md", "## Addresses"), "address")}
    return path in known or path.startswith(("/etc", "/var", "/opt", "/path", "/usr", "/studies"))


def _of_the_command_line(span: str) -> Iterator[str]:
    for command, rest in re.findall(r"\bpacs-node ([a-z]+)(?![\w-])([^#|;&]*)", span):
        if command in GROUPS:
            one, _, rest = rest.strip().partition(" ")
            command = f"{command} {one}"
        if command not in COMMANDS:
            yield f"command {command}"
            continue
        known = arguments(COMMANDS[command]) | {"--help"}
        yield from (f"{command} {option}" for option in re.findall(r"--[a-z-]+", rest) if option not in known)


GONE = {
    "[the map](nowhere.md)": "link nowhere.md",
    "`pacs_node/scp.py`": "file pacs_node/scp.py",
    "`models/detect3d/`": "folder models/detect3d/",
    "`python -m models.nothing --data X`": "module models.nothing",
    "    make coffee": "make coffee",
    "`pacs-node brew`": "command brew",
    "`pacs-node check --config node.toml --fast`": "check --fast",
    "`pacs_node_cups_total`": "metric pacs_node_cups_total",
    "`GET /api/cups/{uid}`": "address GET /api/cups/{uid}",
    "`quiet_until_noon_s`": "name quiet_until_noon_s",
}


@pytest.mark.parametrize(("text", "gone"), GONE.items())
def test_a_name_that_is_gone_is_found(text: str, gone: str) -> None:
    assert list(missing_in(f"Before.\n\n{text}\n\nAfter.\n", ROOT)) == [gone]
