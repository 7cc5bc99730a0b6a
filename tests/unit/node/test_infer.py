"""The inference process: its answers, its deaths, and that no job ever gets another job's answer."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from dicom_sr.findings import Findings
from models import PIPELINES
from models.pipeline import Prior
from pacs_node import confine, infer
from pacs_node.cli import app
from pacs_node.errors import (
    DISK_ERRORS,
    GiveUp,
    Interrupted,
    LedgerUnavailable,
    OutOfMemory,
    Refused,
    TryAgain,
    Unforeseen,
)
from pacs_node.infer import Inference
from pacs_node.messages import Messages
from tests.unit.node.pipelines import Pipeline

HERE = "tests.unit.node.pipelines:PIPELINE"
TABLE = {**PIPELINES, **dict.fromkeys(("test", "warm", "card", "compare"), HERE)}


@pytest.fixture(scope="module")
def inference() -> Iterator[Inference]:
    inference = Inference("cpu", 30, TABLE)
    yield inference
    inference.stop()


def ask(inference: Inference, does: str, file: str = "a.dcm", heard: list[float] | None = None) -> Findings:
    told = [] if heard is None else heard
    return inference.run("test", {"does": does}, [Path(file)], lambda fraction, _: told.append(fraction))


def test_it_answers_and_tells_its_progress(inference: Inference) -> None:
    heard: list[float] = []
    findings = ask(inference, "answer", "one.dcm", heard)
    assert findings.facts["file"] == "one.dcm"
    assert findings.facts["device"] == "cpu"
    assert heard == [0.5]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="another C library")
def test_its_large_blocks_of_memory_are_the_systems_own(inference: Inference) -> None:
    assert ask(inference, "borrow").facts["borrowed"] >= 8 << 20


def test_models_stay_warm_between_jobs(inference: Inference) -> None:
    assert ask(inference, "answer").facts["pid"] == ask(inference, "answer").facts["pid"]


@pytest.mark.parametrize("name", ["warm", "card", "compare"])
def test_a_pipeline_may_be_called_as_what_is_asked_of_it(inference: Inference, name: str) -> None:
    assert inference.run(name, {}, [Path("one.dcm")], lambda *_: None).facts["file"] == "one.dcm"


def test_unfit_input_is_a_refusal_in_words(inference: Inference) -> None:
    before = ask(inference, "answer").facts["pid"]
    with pytest.raises(Refused, match="the slices are not axial"):
        ask(inference, "refuse")
    assert ask(inference, "answer").facts["pid"] == before


@pytest.mark.parametrize("number", sorted(DISK_ERRORS))
def test_a_disk_that_does_not_give_an_image_is_waited_for(inference: Inference, number: int) -> None:
    with pytest.raises(TryAgain, match=f"test: .*{os.strerror(number)}"):
        ask(inference, f"fail with {number}")
    assert ask(inference, "answer").facts["file"] == "a.dcm"


def test_a_file_that_is_not_there_is_not_waited_for(inference: Inference) -> None:
    with pytest.raises(Unforeseen, match="No such file"):
        ask(inference, f"fail with {errno.ENOENT}")


def test_options_that_a_pipeline_does_not_take_fail_the_job_in_words() -> None:
    """Settings are checked at start-up; a job that waited since before an upgrade is not."""
    inference = Inference("cpu", 60)
    try:
        inference.warm([("breast-us", {"colour": "red"})])
        for _ in range(2):
            with pytest.raises(GiveUp, match="'colour'"):
                inference.run("breast-us", {"colour": "red"}, [Path("a.dcm")], lambda *_: None)
    finally:
        inference.stop()


def test_out_of_memory_gives_the_memory_back(inference: Inference) -> None:
    before = ask(inference, "answer").facts["pid"]
    with pytest.raises(OutOfMemory, match=r"out of memory on cpu: 8 GB wanted"):
        ask(inference, "eat")
    assert ask(inference, "answer").facts["pid"] != before


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (
            "break",
            r"test failed: KeyError: .*, at tests.unit.node.pipelines line \d+, called by pacs_node.infer",
        ),
        ("quote", r"test failed: ValueError: PatientName is '\.\.\.', at tests.unit.node.pipelines line \d+"),
        ("not begin", r"test failed: ZeroDivisionError: division by zero, at tests.unit.node.pipelines line \d+"),
        ("not warm", r"test failed: RuntimeError: the engine is cold, at tests.unit.node.pipelines line \d+"),
        ("unpicklable", r"test failed: \w*Error: .*pacs_node.infer line \d+"),
    ],
)
def test_an_error_in_the_process_is_told_in_its_own_words(inference: Inference, does: str, said: str) -> None:
    """It does not end the process, so nobody has to say that it died; the next job finds it warm."""
    before = ask(inference, "answer").facts["pid"]
    for _ in range(2):
        with pytest.raises(Unforeseen, match=said) as told:
            ask(inference, does)
        assert "DOE" not in str(told.value)
        assert "ended" not in str(told.value)
        assert "pipelines.py" in told.value.trace or does == "unpicklable"
    assert ask(inference, "answer").facts["pid"] == before


@pytest.mark.parametrize("does", ["not begin", "not warm"])
def test_what_cannot_be_warmed_is_told_to_the_job_that_needs_it(does: str) -> None:
    inference = Inference("cpu", 30, TABLE)
    try:
        inference.warm([("test", {"does": does}), ("test", {"does": "answer"}), ("nosuch", {})])
        assert ask(inference, "answer", "one.dcm").facts["file"] == "one.dcm"
        with pytest.raises(Unforeseen):
            ask(inference, does)
        with pytest.raises(
            GiveUp, match=r"there is no pipeline 'nosuch'; there are breast-us, card, command, .*, warm"
        ):
            inference.run("nosuch", {}, [Path("a.dcm")], lambda *_: None)
    finally:
        inference.stop()


def test_a_process_that_cannot_begin_says_why() -> None:
    inference = Inference("cpu", 30, {"test": "tests.unit.node.nowhere:Pipeline"})
    try:
        with pytest.raises(Unforeseen, match=r"ModuleNotFoundError: No module named 'tests\.unit\.node\.nowhere'"):
            ask(inference, "answer")
    finally:
        inference.stop()


def test_the_version_is_that_of_the_algorithm(inference: Inference) -> None:
    assert inference.version("test", {"does": "answer"}) == "1"


@pytest.mark.parametrize(("does", "said"), [("die", "exit code 3"), ("exit", "exit code 4")])
def test_a_process_that_dies_is_replaced(inference: Inference, does: str, said: str) -> None:
    with pytest.raises(TryAgain, match=f"the inference process ended.*{said}"):
        ask(inference, does)
    assert ask(inference, "answer", "next.dcm").facts["file"] == "next.dcm"


def test_a_process_that_is_killed_for_memory_is_told_apart(inference: Inference) -> None:
    with pytest.raises(OutOfMemory, match=r"signal SIGKILL; out of memory\?"):
        ask(inference, "be killed")
    assert ask(inference, "answer", "next.dcm").facts["file"] == "next.dcm"


def test_a_job_that_hangs_is_ended(inference: Inference) -> None:
    ask(inference, "answer")
    inference.timeout_s = 1
    try:
        with pytest.raises(GiveUp, match="no answer within 1 s"):
            ask(inference, "hang")
    finally:
        inference.timeout_s = 30
    assert ask(inference, "answer", "next.dcm").facts["file"] == "next.dcm"


def test_no_job_gets_the_answer_of_another(inference: Inference) -> None:
    """The listener to the progress fails while the child still works on "first": its answer must never be read."""

    def fail(fraction: float, text: str) -> None:
        raise LedgerUnavailable("the disk is full")

    with pytest.raises(LedgerUnavailable):
        inference.run("test", {"does": "answer"}, [Path("first.dcm")], fail)
    assert ask(inference, "answer", "second.dcm").facts["file"] == "second.dcm"


def test_a_comparison_answers_as_an_inference_does(inference: Inference, tmp_path: Path) -> None:
    """A prior that cannot be read is a reason in words; one that takes too long costs the child, not the node."""
    findings = ask(inference, "answer")
    (tmp_path / "report.dcm").touch()
    prior = Prior(tmp_path / "report.dcm", (), (), 184)
    with pytest.raises(Refused, match=r"report\.dcm cannot be read"):
        inference.compare("lung-nodule", findings, [], prior, 30)
    with pytest.raises(GiveUp, match="breast-us does not compare with earlier studies"):
        inference.compare("breast-us", findings, [], prior, 30)
    assert ask(inference, "answer").facts["pid"] == findings.facts["pid"]
    os.mkfifo(tmp_path / "slow.dcm")  # whoever opens it waits for a writer, and there is none
    with pytest.raises(GiveUp, match="the comparison of lung-nodule gave no answer"):
        inference.compare("lung-nodule", findings, [], Prior(tmp_path / "slow.dcm", (), (), 184), 0.5)
    assert ask(inference, "answer", "next.dcm").facts["file"] == "next.dcm"


def test_what_the_process_says_is_not_believed(inference: Inference) -> None:
    with pytest.raises(GiveUp, match=r"test failed: what its process answered cannot be used: .+; it was ended"):
        ask(inference, "speak a pickle")
    assert ask(inference, "answer", "next.dcm").facts["file"] == "next.dcm"


def test_a_process_that_says_it_works_on_is_ended_in_time_all_the_same(inference: Inference) -> None:
    ask(inference, "answer")
    heard: list[float] = []
    inference.timeout_s = 1.5
    try:
        with pytest.raises(GiveUp, match=r"no answer within 1\.5 s"):
            ask(inference, "flood", heard=heard)
    finally:
        inference.timeout_s = 30
    assert len(heard) < 20, "a row of the ledger is written for each"


def test_a_process_that_closes_its_end_is_ended(inference: Inference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "ENDS_WITHIN_S", 0.2)
    with pytest.raises(TryAgain, match="it closed its end and stayed"):
        ask(inference, "close and stay")
    assert ask(inference, "answer", "next.dcm").facts["file"] == "next.dcm"


def test_a_process_that_takes_more_than_it_may_is_ended(inference: Inference) -> None:
    ask(inference, "answer")
    whole, inference.memory_bytes = inference.memory_bytes, 900_000_000
    try:
        with pytest.raises(OutOfMemory, match=r"test took [\d.]+ GB of memory, more than 0\.9 GB \(memory_gb in"):
            ask(inference, "grow")
    finally:
        inference.memory_bytes = whole
    assert ask(inference, "answer", "next.dcm").facts["file"] == "next.dcm"


LET = {"connect": "done", "write_beside": "done", "remove": "done", "change": "done"}


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder where nothing of a library's belongs."""
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix=".pacs-node-test-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("confined", [True, False])
def test_the_process_reaches_neither_the_network_nor_the_files_of_the_node(elsewhere: Path, confined: bool) -> None:
    if confined and confine.tried():
        pytest.skip(f"this machine does not let it be confined: {'; '.join(confine.tried())}")
    inference = Inference("cpu", 30, TABLE, confined=confined)
    file = elsewhere / "image.dcm"
    with socket.create_server(("127.0.0.1", 0)) as node:
        file.write_text(str(node.getsockname()[1]))
        try:
            facts = ask(inference, "reach", str(file)).facts
        finally:
            inference.stop()
    assert (facts["no_new_privileges"], facts["core"]) == ((1, 0) if confined else (0, facts["core"]))
    if confined:
        assert {facts[what] for what in ("write_beside", "remove", "change")} == {"PermissionError"}
        assert facts["connect"] == "OSError"  # the network is unreachable
        assert [each.name for each in elsewhere.iterdir()] == ["image.dcm"]
    else:
        assert {what: facts[what] for what in LET} == LET


NOT_ITS_OWN = (
    *("node.toml", "password.txt", "key.pem", "data/node.sqlite", "data/node.sqlite-wal", "data/node-jobs.sqlite"),
    *("data/identity.key", "data/audit/audit.xml", "data/spool/instances/a/1.pack", "data/results/1/1/SR.dcm"),
    *("data/rejected/1/SR.dcm", "data/viewing/1/volume.bin", "backups/node.sqlite", "results/study-1/SR.dcm"),
)
ITS_OWN = ("data/work/1.1/00000.dcm", "data/priors/1.1/a.dcm", "data/inference/forms.json")


@pytest.mark.parametrize("confined", [True, False])
@pytest.mark.parametrize("here", [True, False], ids=["in the working folder", "elsewhere"])
def test_the_process_reads_nothing_but_its_images_and_libraries(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, confined: bool, here: bool
) -> None:
    """Also where the folder of the settings is one that modules are looked for in, as `python -m` has it."""
    if confined and confine.READING in "".join(confine.tried()):
        pytest.skip("this kernel has no Landlock")
    monkeypatch.setattr(sys, "path", [str(elsewhere), "", *sys.path] if here else sys.path)
    monkeypatch.chdir(elsewhere if here else "/")
    asked = elsewhere / "data" / "work" / "1.1" / "asked.json"
    for path in (elsewhere / name for name in (*NOT_ITS_OWN, *ITS_OWN)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    environ = f"/proc/{os.getpid()}/environ"
    root = f"/proc/{os.getpid()}/root{elsewhere}/node.toml"
    asked.write_text(json.dumps([*(str(elsewhere / name) for name in (*NOT_ITS_OWN, *ITS_OWN)), environ, root]))
    reads = [elsewhere / "data" / name for name in ("work", "priors")]
    forms_at = elsewhere / "data" / "inference" / "forms.json"
    inference = Inference("cpu", 30, TABLE, confined=confined, reads=reads, forms_at=forms_at)
    try:
        found = ask(inference, "peek", str(asked)).facts
    finally:
        inference.stop()
    assert {found[str(elsewhere / name)] for name in ITS_OWN} == {"read"}
    theirs = {found[each] for each in (*(str(elsewhere / name) for name in NOT_ITS_OWN), environ, root)}
    assert theirs == ({"PermissionError"} if confined else {"read"})


def test_weights_that_options_name_can_be_read_also_by_a_process_that_runs_already(elsewhere: Path) -> None:
    """Of a route that was added, or of a folder that was replaced. As long as nothing new is named it is kept."""
    if confine.READING in "".join(confine.tried()):
        pytest.skip("this kernel has no Landlock")
    weights, asked = elsewhere / "bundle" / "weights", elsewhere / "work" / "asked.json"
    for path in (weights, asked):
        path.parent.mkdir()
        path.write_text("x")
    asked.write_text(json.dumps([str(weights)]))
    inference = Inference("cpu", 30, TABLE, reads=[asked.parent])

    def peek(**options: Any) -> tuple[str, int]:
        facts = inference.run("test", {"does": "peek", **options}, [asked], lambda *_: None).facts
        return facts[str(weights)], facts["pid"]

    try:
        assert peek()[0] == "PermissionError"
        found, first = peek(nested={"of": [str(weights.parent)]})
        assert found == "read"
        assert peek() == ("read", first), "it is loaded for other jobs, too"
        weights.parent.rename(elsewhere / "old")
        weights.parent.mkdir()
        weights.write_text("y")
        assert peek()[0] == "read"
    finally:
        inference.stop()


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({}, []),
        ({"bundle": "/weights/lung", "labels": {"1": {"name": "lung"}}}, ["/weights/lung"]),
        ({"many": ["/a/b", ["/c"]], "number": 3, "none": None}, ["/a/b", "/c"]),
        ({"all": "/", "relative": "data", "up": "../data"}, []),
    ],
)
def test_the_places_that_options_name(options: dict[str, Any], places: list[str]) -> None:
    assert [str(each) for each in infer.places_in(options)] == places


@pytest.mark.parametrize("name", confine.UNLESS_PROGRAMS | confine.ALWAYS)
def test_what_cannot_be_given_up_is_told_and_is_no_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fails() -> None:
        raise confine.Unavailable("Operation not permitted")

    every = dict.fromkeys(confine.UNLESS_PROGRAMS, lambda: None)
    monkeypatch.setattr(confine, "UNLESS_PROGRAMS", {each: fails if each == name else do for each, do in every.items()})
    every = dict.fromkeys(confine.ALWAYS, lambda: None)
    monkeypatch.setattr(confine, "ALWAYS", {each: fails if each == name else do for each, do in every.items()})
    assert confine.confine() == [f"{name}: Operation not permitted"]
    assert confine.confine(programs=True) == ([f"{name}: Operation not permitted"] if name in confine.ALWAYS else [])


def test_that_it_can_read_all_is_told_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(needed: object) -> None:
        raise confine.Unavailable("the kernel has no Landlock")

    monkeypatch.setattr(confine, "UNLESS_PROGRAMS", {})
    monkeypatch.setattr(confine, "ALWAYS", {})
    monkeypatch.setattr(confine, "_reads_only", fails)
    assert confine.confine(reads=[]) == ["it can read what the node can read: the kernel has no Landlock"]
    assert confine.confine(programs=True, reads=[]) == confine.confine() == []


@pytest.mark.parametrize(("asked", "told"), [("true", True), ("false", False)])
def test_check_says_what_this_machine_does_not_let_it_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, told: bool
) -> None:
    monkeypatch.setattr(confine, "tried", lambda: ("it can reach the network: Operation not permitted",))
    settings = tmp_path / "node.toml"
    settings.write_text(f'[node]\ndata_dir = "data"\n[infer]\nconfine = {asked}\n')
    done = CliRunner().invoke(app, ["check", "--config", str(settings)])
    assert done.exit_code == 0
    words = "warning: the inference process is not confined as it should be: it can reach the network"
    assert (words in done.output) == told


def test_a_machine_that_confines_nothing_still_infers(inference: Inference) -> None:
    """The process says so as the first thing; the node logs it and goes on."""
    ours, theirs = socket.socketpair()
    with capture_logs() as events, ours, theirs:
        child = inference._ready("test")
        monkey, child.messages = child.messages, Messages(ours)
        child.begun = False
        try:
            infer._say(Messages(theirs), infer.Begun(("it can reach the network: Operation not permitted",)))
            infer._say(Messages(theirs), Pipeline.card)
            request = infer.Describe("test", {})
            assert inference._answer(child, request, time.monotonic() + 20, lambda *_: None) == Pipeline.card
        finally:
            child.messages = monkey
    [event] = [each for each in events if each["log_level"] == "warning"]
    assert event["event"] == "inference process not confined"
    assert event["lacking"] == ["it can reach the network: Operation not permitted"]


def test_a_pipeline_that_starts_programs_has_a_process_of_its_own() -> None:
    inference = Inference("cpu", 30)
    try:
        assert [inference._starts_programs(name) for name in ("command", "breast-us", "nosuch")] == [True, False, False]
        first, second = inference._ready("breast-us"), inference._ready("command")
        assert (inference._ready("lung-nodule"), inference._ready("command")) == (first, second)
        assert first.process.pid != second.process.pid
    finally:
        inference.stop()


def test_a_stopping_node_interrupts() -> None:
    inference = Inference("cpu", 30, TABLE)
    inference.close()
    with pytest.raises(Interrupted):
        ask(inference, "answer")
