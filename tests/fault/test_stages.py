"""Every room raises every kind of error: the job ends at once in the error's own words, alone, and infers once."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pydicom
import pytest
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from structlog.testing import capture_logs

from config import load
from dicom_sr.findings import Findings
from dicom_sr.reading import Room, read_header
from models import catalogue
from pacs_node.errors import GiveUp, JobError, LedgerUnavailable, OutOfMemory, ProcessDied, Refused, StoreAway
from pacs_node.flow import RouteMatch, Stages
from pacs_node.node import Node
from pacs_node.records import CommitmentRequest, Evidence, Instance, Job, OpenSeries, Verdict
from tests.factories import us_image
from tests.results import us_findings
from tests.standins import NoInference

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TOML = """
[node]
data_dir = "data"
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["results"]
report_not_run = true
"""
BUGS: list[Exception] = [
    KeyError("DOE^JANE"),
    ValueError("could not convert string to float: 'DOE^JANE'"),
    AttributeError("'FileDataset' object has no attribute 'PixelSpacing'"),
    TypeError("unsupported operand type(s) for /: 'NoneType' and 'float'"),
    IndexError("list index out of range"),
    RuntimeError("the engine is cold"),
    AssertionError(),
    NotImplementedError("no such transfer syntax"),
    UnicodeDecodeError("ascii", b"\xe9", 0, 1, "ordinal not in range(128)"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    ZeroDivisionError("division by zero"),
    StopIteration("DOE^JANE"),
    InvalidDicomError("File is missing DICOM File Meta Information header"),
    FileNotFoundError(2, "No such file or directory", "/data/spool/abc.dcm"),
    PermissionError(13, "Permission denied"),
]
PASSING: list[OSError] = [  # these may be over the next time
    OSError(28, "No space left on device"),
    OSError(5, "Input/output error"),
    ConnectionResetError(104, "Connection reset by peer"),
    ConnectionRefusedError(111, "Connection refused"),
    TimeoutError("timed out"),
    socket.gaierror(-2, "Name or service not known"),
]
STEP_OF = {  # room -> the kind of job that meets it, and what its reason calls the step
    "unpacked": ("infer", "unpacking"),
    "sources": ("infer", "the infer job"),
    "infer": ("infer", "inference"),
    "compare": ("infer", "the comparison with an earlier study"),
    "places": ("infer", "the infer job"),
    "encode": ("infer", "encoding"),
    "is_shadow": ("send", "the send job"),
    "deliver": ("send", "sending"),
    "arrival_check": ("send", "the send job"),
    "sent": ("confirm", "asking whether the results arrived"),
    "judge_commitment": ("report", "the report of a storage commitment"),
    "report": ("report", "the report of a storage commitment"),
}
CLOSING = ("decide", "headers", "judge", "matches")  # before there is a job
STUDY = ("study", "missing")  # of a route that needs other series of the study
NOT_RUN = ("reports_not_run", "encode_not_run")  # met by a refusal


class CountedInference(NoInference):
    def __init__(self) -> None:
        self.runs: list[str] = []
        self.now = "0.1.0+a"

    def run(self, pipeline: str, options: Mapping[str, Any], files: Sequence[Path], progress: Any) -> Findings:
        self.runs.append(files[0].name)
        findings = us_findings([pydicom.dcmread(file, stop_before_pixels=True) for file in files])
        return replace(findings, algorithm=replace(findings.algorithm, version=self.now))

    def version(self, pipeline: str, options: Mapping[str, Any]) -> str:
        return self.now


class Saying:
    """A destination to ask, to whom nothing has come."""

    commits, query = False, "C-FIND"

    def find(self, sent: Sequence[Any]) -> set[str]:
        return {each.sop_instance_uid for each in sent}


class Bench:
    """A node without its threads: jobs are run one attempt after the other."""

    def __init__(self, folder: Path, toml: str = TOML, now: Callable[[], datetime] = lambda: NOW) -> None:
        (folder / "node.toml").write_text(toml)
        self.folder = folder
        self.node = Node(load(folder / "node.toml", catalogue()), now=now)
        self.node.ledger.migrate()
        self.inference = CountedInference()
        self.node.stages.inference = self.inference  # type: ignore[assignment]
        self.node.stages.arrival_check = lambda destination: Saying()  # type: ignore[method-assign,assignment,return-value]

    def take_in(
        self, name: str, spoil: Callable[[Dataset], Any] = lambda image: None, number: int = 1, **more: str
    ) -> OpenSeries:
        """An image; `spoil` changes its header after the listener has read the UIDs from it."""
        image = us_image(name=name, number=number, **more)
        known = us_image(name=name, number=number, **more)
        spoil(image)
        path = self.folder / f"{name}{number}.dcm"
        image.save_as(path, enforce_file_format=True)
        image = known
        uids = [str(image[k].value) for k in ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")]
        syntax, size = "1.2.840.10008.1.2.1", path.stat().st_size
        now = self.node.now()
        self.node.ledger.take_in(Instance(*uids, syntax, path, size, now, "a", "US1"))  # type: ignore[call-arg]
        return OpenSeries(uids[2], uids[3], Evidence(now, number), ("US1",))

    def close(self, series: OpenSeries) -> None:
        self.node.assembler._close(series, "quiet")

    def run_all(self, kinds: Sequence[str] = ("infer", "send", "confirm", "report"), attempts: int = 1) -> None:
        """Every open job of these kinds, and what follows from it."""
        for _ in range(attempts):
            for kind in kinds:
                for job in [job for job in self.node.ledger.open_jobs() if job.kind == kind]:
                    self.node.flow.run(job.id, job.generation, job.attempt)

    def jobs(self, series: OpenSeries) -> dict[str, dict[str, Any]]:
        facts = self.node.ledger.series(series.series_uid)
        assert facts is not None
        return {job["kind"]: job for job in facts["jobs"]}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.node.stop()


def raising(error: Exception) -> Callable[..., Any]:
    def room(*arguments: Any, **named: Any) -> Any:
        raise error

    return room


def test_every_room_is_tried() -> None:
    stages = {name for name in vars(Stages) if not name.startswith("_")}
    assert stages == {*STEP_OF, *CLOSING, *STUDY, *NOT_RUN, "share"}


@pytest.mark.one_in(5)
@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("room", STEP_OF)
def test_an_error_ends_its_job_at_once_and_no_other(bench: Bench, room: str, error: Exception) -> None:
    kind, step = STEP_OF[room]
    first, second = bench.take_in("first"), bench.take_in("second")
    bench.close(first)
    if kind == "report":
        request = CommitmentRequest("2.25.1", "US1", (("1.2", "1.3"),))
        bench.node.flow.commitment_asked(request)
    whole = getattr(bench.node.stages, room)
    setattr(bench.node.stages, room, raising(error))
    with capture_logs() as events:
        bench.run_all()
    setattr(bench.node.stages, room, whole)
    if kind == "report":
        states = {job.kind for job in bench.node.ledger.open_jobs()}
        assert "report" not in states
    else:
        job = bench.jobs(first)[kind]
        assert (job["state"], job["attempts"]) == ("failed", 1)
        assert job["reason"].startswith(f"{step} failed: {type(error).__name__}")
        assert ", at tests.fault.test_stages line " in job["reason"]
        assert "DOE" not in job["reason"]
        assert "died" not in job["reason"]
    [event] = [event for event in events if event.get("trace")]
    assert (event["event"], event["log_level"], event["step"]) == ("step failed", "error", step)
    assert "in room" in event["trace"]
    assert "JANE" not in event["trace"] + event["error"]
    bench.close(second)
    bench.run_all()
    assert {kind: job["state"] for kind, job in bench.jobs(second).items()} == dict.fromkeys(
        ("infer", "send", "confirm"), "done"
    )
    assert len(bench.inference.runs) == (1 if room in ("unpacked", "sources", "infer") else 2)


NEEDING = """
[route.needs]
series = [{ Modality = "US", SeriesDescription = "second" }]
wait_minutes = 60
if_incomplete = "skip"
"""


@pytest.fixture
def needing(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, TOML + NEEDING)
    yield bench
    bench.node.stop()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("room", STUDY)
def test_an_error_of_what_a_job_needs_of_a_study_ends_that_job_alone(
    needing: Bench, room: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = needing.take_in("first")
    with monkeypatch.context() as failing:
        failing.setattr(needing.node.stages, room, raising(error))
        needing.close(first)
        facts = needing.node.ledger.series(first.series_uid)
        assert (facts["state"], facts["verdict"]["fit"]) == ("closed", True)
        needing.run_all()
    job = needing.jobs(first)["infer"]
    assert (job["state"], job["attempts"]) == ("failed", 1)
    assert job["reason"].startswith(f"looking for the rest of the study failed: {type(error).__name__}")
    assert "DOE" not in job["reason"]
    assert needing.inference.runs == []


@pytest.mark.one_in(3)
@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("room", STUDY)
def test_a_series_closes_whatever_becomes_of_who_waits_for_it(
    needing: Bench, room: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = needing.take_in("first")
    needing.close(first)
    assert needing.jobs(first)["infer"]["reason"].startswith("waits for")
    second = needing.take_in("second", StudyInstanceUID=first.study_uid, SeriesDescription="second")
    with monkeypatch.context() as failing:
        failing.setattr(needing.node.stages, room, raising(error))
        needing.close(second)
    facts = needing.node.ledger.series(second.series_uid)
    assert (facts["state"], facts["verdict"]["fit"]) == ("closed", True)
    assert needing.jobs(first)["infer"]["reason"].startswith("waits for"), "it looks again when its time is over"


def test_who_waits_for_a_series_runs_when_it_closes(needing: Bench) -> None:
    first = needing.take_in("first")
    needing.close(first)
    needing.close(needing.take_in("second", StudyInstanceUID=first.study_uid, SeriesDescription="second"))
    needing.run_all()
    assert needing.jobs(first)["infer"]["state"] == "done"


@pytest.mark.parametrize(
    ("error", "attempts", "said"),
    [
        (GiveUp("breast-us gave no answer within 1800 s"), 1, "breast-us gave no answer within 1800 s"),
        (OutOfMemory("it took more than 8 GB"), 2, "gave up after 2 attempts: it took more than 8 GB"),
        (ProcessDied("exit code 3"), 3, "gave up after 3 attempts: exit code 3"),
    ],
)
def test_what_would_end_alike_is_not_tried_as_often_as_what_may_not(
    bench: Bench, error: JobError, attempts: int, said: str
) -> None:
    series = bench.take_in("first")
    bench.close(series)
    bench.inference.run = raising(error)  # type: ignore[method-assign]
    bench.run_all(("infer",), attempts=4)
    job = bench.jobs(series)["infer"]
    assert (job["state"], job["attempts"], job["reason"]) == ("failed", attempts, said)


@pytest.mark.parametrize("error", PASSING, ids=lambda error: f"{type(error).__name__}-{error.errno}")
@pytest.mark.parametrize("room", ["infer", "compare", "encode", "deliver", "sent"])
def test_what_may_pass_is_tried_again_and_infers_once(bench: Bench, room: str, error: OSError) -> None:
    series = bench.take_in("first")
    bench.close(series)
    whole = getattr(bench.node.stages, room)
    setattr(bench.node.stages, room, raising(error))
    bench.run_all(attempts=6)  # more often than an inference whose process dies
    job = bench.jobs(series)[STEP_OF[room][0]]
    assert (job["state"], job["attempts"]) == ("waiting", 7)
    assert job["reason"].startswith(STEP_OF[room][1] + ": ")
    assert "died" not in job["reason"]
    setattr(bench.node.stages, room, whole)
    bench.run_all(attempts=2)
    assert {job["state"] for job in bench.jobs(series).values()} == {"done"}
    assert len(bench.inference.runs) == 1


@pytest.mark.parametrize("room", ["unpacked", "infer", "compare", "encode", "deliver", "sent"])
def test_a_store_that_is_away_costs_no_attempt_and_infers_once(bench: Bench, room: str) -> None:
    series = bench.take_in("first")
    bench.close(series)
    whole = getattr(bench.node.stages, room)
    setattr(bench.node.stages, room, raising(StoreAway("the store s3://images does not answer")))
    bench.run_all(attempts=20)  # more than any job may make
    job = bench.jobs(series)[STEP_OF[room][0]]
    assert (job["state"], job["reason"]) == ("waiting", "the store s3://images does not answer")
    assert job["attempts"] == 1
    setattr(bench.node.stages, room, whole)
    bench.run_all(attempts=2)
    assert {job["state"] for job in bench.jobs(series).values()} == {"done"}
    assert len(bench.inference.runs) == 1


@pytest.mark.one_in(3)
@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("room", CLOSING)
def test_a_series_that_cannot_be_judged_holds_up_no_other(bench: Bench, room: str, error: Exception) -> None:
    first, second = bench.take_in("first"), bench.take_in("second")
    whole = getattr(bench.node.stages, room)
    setattr(bench.node.stages, room, raising(error))
    with capture_logs() as events:
        if room == "decide":
            assert bench.node.flow.complete(frozenset()) == []
        else:
            bench.close(first)
    setattr(bench.node.stages, room, whole)
    facts = bench.node.ledger.series(first.series_uid)
    assert facts["state"] == "closed"
    assert not facts["verdict"]["fit"]
    assert facts["verdict"]["reason"].startswith(f"could not be judged: {type(error).__name__}")
    assert "DOE" not in facts["verdict"]["reason"]
    assert [event["event"] for event in events if event.get("trace")] == (
        ["series undecided"] * 2 if room == "decide" else ["series could not be judged"]
    )
    if room != "decide":
        bench.close(second)
        bench.run_all()
        assert bench.jobs(second)["infer"]["state"] == "done"


@pytest.mark.parametrize("error", PASSING, ids=lambda error: f"{type(error).__name__}-{error.errno}")
@pytest.mark.parametrize("room", [*CLOSING[1:], "share"])
def test_a_series_that_cannot_be_judged_now_is_judged_later(
    bench: Bench, room: str, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up no other meanwhile, and is not unfit because a disk was full."""
    monkeypatch.setattr("pacs_node.assembler.RETRY_S", 0.0)
    first, second = bench.take_in("first"), bench.take_in("second")
    with monkeypatch.context() as failing:
        failing.setattr(bench.node.stages, room, raising(error))
        for _ in range(3):
            bench.close(first)
        assert bench.node.ledger.series(first.series_uid)["state"] == "receiving"
        [said] = bench.node.trouble()
        assert said.startswith(f"1 complete series cannot be closed: {type(error).__name__} at test_stages.py:")
    for series in (first, second):
        bench.close(series)
    bench.run_all()
    assert [bench.jobs(series)["infer"]["state"] for series in (first, second)] == ["done", "done"]
    assert bench.node.trouble() == []


def test_a_disk_that_fails_for_good_ends_in_words(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.assembler.RETRY_S", 0.0)
    series = bench.take_in("first")
    monkeypatch.setattr(bench.node.stages, "judge", raising(PASSING[1]))
    for _ in range(10):
        assert bench.node.ledger.series(series.series_uid)["state"] == "receiving"
        bench.close(series)
    facts = bench.node.ledger.series(series.series_uid)
    assert facts["state"] == "closed"
    assert facts["verdict"]["reason"].startswith("could not be judged: OSError: Input/output error")
    assert bench.node.trouble() == []


DAMAGE: dict[str, Callable[[Path], Any]] = {  # to a stored file, between receipt and closing -> what is said of it
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"I am not DICOM. " * 400),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "pixels cut": lambda path: path.write_bytes(path.read_bytes()[:-3000]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "the disk": lambda path: (path.unlink(), path.symlink_to(path)),  # any error of the system, each time it is read
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("good", [1, 3])
@pytest.mark.filterwarnings("ignore")
def test_an_image_that_cannot_be_read_any_more_is_set_aside_alone(bench: Bench, name: str, good: int) -> None:
    """With its reason; the others are judged and analysed, few or many."""
    series, bad = bench.take_in("first"), 4 - good
    for number in range(2, 5):
        bench.take_in("first", number=number)
    for number in range(1, bad + 1):
        DAMAGE[name](bench.folder / f"first{number}.dcm")
    bench.close(replace(series, evidence=Evidence(NOW, 4)))
    verdict = bench.node.ledger.series(series.series_uid)["verdict"]
    assert verdict["fit"], verdict
    assert len(verdict["set_aside"]) == bad
    why = "its stored file cannot be read: "
    assert all(reason.startswith(why) for reason in verdict["set_aside"].values()), verdict
    assert f"{bad} set aside: {why}" in verdict["reason"]
    bench.run_all()
    assert bench.jobs(series)["infer"]["state"] == "done"
    assert bench.node.ledger.verdict(series.series_uid).use, "what is used is known"


def test_an_image_that_cannot_be_read_for_a_while_is_not_set_aside(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.assembler.RETRY_S", 0.0)
    series = bench.take_in("first")
    bench.take_in("first", number=2)

    def busy(path: Path, room: Room | None = None) -> Dataset:
        if path.name in ("first2.dcm", "second2.dcm"):
            raise OSError(24, "Too many open files")
        return read_header(path, room)

    series = replace(series, evidence=Evidence(NOW, 2))
    with monkeypatch.context() as failing:
        failing.setattr("pacs_node.stages.read_header", busy)
        for _ in range(3):
            bench.close(series)
        assert bench.node.ledger.series(series.series_uid)["state"] == "receiving"
    bench.close(series)
    assert bench.node.ledger.series(series.series_uid)["verdict"]["set_aside"] == {}
    late = replace(bench.take_in("second"), evidence=Evidence(NOW, 2))
    bench.take_in("second", number=2)
    monkeypatch.setattr("pacs_node.stages.read_header", busy)
    for _ in range(6):
        bench.close(late)
    [reason] = bench.node.ledger.series(late.series_uid)["verdict"]["set_aside"].values()
    assert reason == "its stored file cannot be read: Too many open files", "in the end it is judged without it"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_a_report_of_what_was_not_run_that_cannot_be_made_leaves_a_refusal(bench: Bench, error: Exception) -> None:
    series = bench.take_in("first")
    bench.close(series)
    bench.node.stages.encode_not_run = raising(error)  # type: ignore[method-assign]
    bench.node.flow._input = refusing  # type: ignore[method-assign,assignment]
    bench.run_all()
    job = bench.jobs(series)["infer"]
    assert (job["state"], job["reason"]) == ("refused", "gantry tilt of 12.0 degrees")
    [warning] = job["warnings"]
    assert warning.startswith(f"no report says that it was not run: encoding failed: {type(error).__name__}")


def refusing(job: Job) -> NoReturn:
    raise Refused("gantry tilt of 12.0 degrees")


def unreadable(image: Dataset) -> None:
    image.preamble = None
    image.save_as = lambda path, **_: path.write_bytes(b"I am not DICOM. " * 40)  # type: ignore[method-assign]


def with_bytes(head: bytes, right: int, wrong: bytes) -> Callable[[Dataset], None]:
    """An element with a value that no library would write: `right` is the length of what was written."""

    def spoil(image: Dataset) -> None:
        write = image.save_as

        def save(path: Path, **_: Any) -> None:
            write(path, enforce_file_format=True)
            before, after = path.read_bytes().split(head + struct.pack("<H", right))
            path.write_bytes(before + head + struct.pack("<H", len(wrong)) + wrong + after[right:])

        image.save_as = save  # type: ignore[method-assign,assignment]

    return spoil


ODD_IMAGES: dict[str, tuple[Callable[[Dataset], Any], int]] = {  # of two images; how many reports are there?
    "as it should be": (lambda image: None, 1),
    "another study": (lambda image: setattr(image, "StudyInstanceUID", "1.2.3"), 2),
    "another patient": (lambda image: setattr(image, "PatientID", "another"), 2),
    "no rows": (lambda image: image.__delattr__("Rows"), 1),
    "no columns": (lambda image: image.__delattr__("Columns"), 1),
    "text in rows": (with_bytes(b"\x28\0\x10\0US", 2, b"abc"), 1),
    "no study": (lambda image: image.__delattr__("StudyInstanceUID"), 1),
    "no instance": (lambda image: image.__delattr__("SOPInstanceUID"), 1),
    "no class": (lambda image: image.__delattr__("SOPClassUID"), 1),
    "unreadable": (unreadable, 1),
    "leading zeros": (lambda image: setattr(image, "StudyInstanceUID", "1.2.003"), 2),
    "no modality": (lambda image: image.__delattr__("Modality"), 1),
    "text for a number": (with_bytes(b"\x20\0\x13\0IS", 2, b"1a"), 1),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ODD_IMAGES)
@pytest.mark.parametrize("step", ["the verdict", "the ledger", "the inference"])
@pytest.mark.filterwarnings("ignore")
def test_a_refusal_by_whichever_step_is_a_refusal_and_reported(bench: Bench, step: str, name: str) -> None:
    spoil, reports = ODD_IMAGES[name]
    series = bench.take_in("first")
    bench.take_in("first", spoil, number=2)
    reason = "the probe was upside down"
    if step == "the verdict":
        bench.node.stages.judge = lambda headers: Verdict(False, reason)  # type: ignore[method-assign]
    else:
        use = tuple(each.sop_instance_uid for each in bench.node.ledger.instances(series.series_uid))
        use = (*use, "1.2.3.4") if step == "the ledger" else use
        bench.node.stages.judge = lambda headers: Verdict(True, "fit", use)  # type: ignore[method-assign]
    bench.inference.run = raising(Refused(reason))  # type: ignore[method-assign]
    bench.node.stages.matches = lambda header: MATCHES  # type: ignore[method-assign]
    bench.close(replace(series, evidence=Evidence(NOW, 2)))
    bench.run_all()
    jobs = bench.jobs(series)
    assert jobs["infer"]["state"] == "refused"
    assert (
        jobs["infer"]["reason"]
        == {
            "the verdict": f"not run: {reason}",
            "the ledger": "not run: 1 of its images are not stored here, the first is 1.2.3.4",
            "the inference": reason,
        }[step]
    )
    delivered = [pydicom.dcmread(path) for path in (bench.folder / "results").rglob("*.dcm")]
    assert [document.Modality for document in delivered] == ["SR"] * reports, "one for each patient and study"
    assert len({(document.PatientID, document.StudyInstanceUID) for document in delivered}) == reports
    assert jobs["send"]["state"] == "done"
    assert not [text for text in jobs["infer"]["warnings"] if "no report" in text]


MATCHES = [RouteMatch("breast", None, "breast-us", ("results",), 5, {})]


@pytest.mark.parametrize("state", ["failed", "killed"])
def test_retry_now_infers_once(bench: Bench, state: str) -> None:
    """Failed in encoding, or killed between inference and encoding: what was found is there."""
    series = bench.take_in("first")
    bench.close(series)
    encode = bench.node.stages.encode
    if state == "failed":
        bench.node.stages.encode = raising(KeyError("x"))  # type: ignore[method-assign]
        bench.run_all(["infer"])
        bench.node.stages.encode = encode  # type: ignore[method-assign]
        assert bench.node.ledger.run_again(bench.jobs(series)["infer"]["id"], NOW)
    else:

        def die(step: str) -> None:
            if step == "inferred":
                raise SystemExit

        bench.node.flow.at = die
        with pytest.raises(SystemExit):
            bench.run_all(["infer"])
        bench.node.flow.at = lambda step: None
        [job] = bench.node.ledger.open_jobs()
        assert bench.node.ledger.take_over(job, "its worker is gone", NOW)
    bench.run_all()
    assert {job["state"] for job in bench.jobs(series).values()} == {"done"}
    assert len(bench.inference.runs) == 1


@pytest.mark.parametrize("change", ["algorithm", "damage"])
def test_kept_findings_are_never_stale(bench: Bench, change: str) -> None:
    series = bench.take_in("first")
    bench.close(series)
    whole, bench.node.stages.encode = bench.node.stages.encode, raising(KeyError("x"))  # type: ignore[method-assign]
    bench.run_all()
    if change == "algorithm":
        bench.inference.now = "0.2.0+b"
    else:
        [path] = (bench.folder / "data" / "results").rglob("findings-*.npz")
        path.write_bytes(path.read_bytes()[:100])
    bench.node.stages.encode = whole  # type: ignore[method-assign]
    assert bench.node.ledger.run_again(bench.jobs(series)["infer"]["id"], NOW)
    bench.run_all()
    assert len(bench.inference.runs) == 2
    assert bench.jobs(series)["infer"]["state"] == "done"


def test_a_full_disk_does_not_infer_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    series = bench.take_in("first")
    bench.close(series)
    with monkeypatch.context() as full:
        full.setattr("pacs_node.kept.keep", raising(OSError(28, "No space left on device")))
        full.setattr(bench.node.stages, "encode", raising(OSError(28, "No space left on device")))
        bench.run_all(attempts=2)
        assert bench.jobs(series)["infer"]["state"] == "waiting"
    bench.run_all()
    assert len(bench.inference.runs) == 1


def test_a_ledger_that_is_away_for_a_moment_is_no_death(bench: Bench) -> None:
    series = bench.take_in("first")
    bench.close(series)
    encode = bench.node.stages.encode
    bench.node.stages.encode = raising(LedgerUnavailable("the database does not answer"))  # type: ignore[method-assign]
    bench.run_all(["infer"])
    job = bench.jobs(series)["infer"]
    assert (job["state"], job["reason"]) == ("waiting", "the database does not answer")
    bench.node.stages.encode = encode  # type: ignore[method-assign]
    bench.run_all()
    assert {job["state"] for job in bench.jobs(series).values()} == {"done"}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_no_result_is_kept_back_because_it_cannot_be_counted(
    bench: Bench, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.flow.outcome", raising(error))
    series = bench.take_in("first")
    bench.close(series)
    with capture_logs() as events:
        bench.run_all()
    assert {job["state"] for job in bench.jobs(series).values()} == {"done"}
    [event] = [event for event in events if event.get("trace")]
    assert event["event"] == "series not counted"
