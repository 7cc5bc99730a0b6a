"""An event that cannot be written is lost; what it was about goes on."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
import structlog

from pacs_node.observe import hear_everything, start_logging


class Broken(io.StringIO):
    """A stream on a full disk, or one that is closed."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name in HOOKS:
        monkeypatch.setattr(module, name, getattr(module, name))
    before = structlog.get_config()
    yield
    structlog.configure(**before)


HOOKS = ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"), (warnings, "showwarning"))


ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_no_event_raises_whatever_its_stream_does(
    error: Exception, plain: bool, configured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_logging(plain=plain)
    log = structlog.get_logger()
    monkeypatch.setattr(sys, "stderr", Broken(error))
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)("disk.full", series="1.2.3")
    good = io.StringIO()
    monkeypatch.setattr(sys, "stderr", good)
    log.info("disk.free", series="1.2.3")
    assert "disk.free" in good.getvalue(), "it writes again as soon as it can"
    if not plain:
        assert json.loads(good.getvalue())["series"] == "1.2.3"


def test_a_library_that_logs_a_traceback_breaks_no_line_of_json(
    configured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    start_logging(plain=False)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        raise RuntimeError("several\nlines")
    except RuntimeError:
        logging.getLogger("some.library").exception("it failed:\nbadly")
    logging.getLogger("some.library").warning("a warning of %d", 7)
    structlog.get_logger().info("ours")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["it failed:\nbadly", "a warning of 7", "ours"]
    assert "RuntimeError: several" in lines[0]["exception"]
    assert {line["level"] for line in lines} == {"error", "warning", "info"}
    assert lines[0]["logger"] == "some.library"


def test_a_library_may_log_to_a_full_disk(configured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    start_logging(plain=False)
    monkeypatch.setattr(sys, "stderr", Broken(ERRORS[0]))
    logging.getLogger("some.library").error("nobody reads it")


PATIENT, BORN = "Doe^Jane".upper(), 1955_02_03  # as no line of code has them


class Falls:
    """Its end raises, which Python can only print."""

    def __del__(self) -> None:
        fail()


def fail() -> None:
    raise ValueError(f"PatientName is '{PATIENT}', born {BORN}")


def in_a_thread() -> None:
    thread = threading.Thread(target=fail, name="assembler")
    thread.start()
    thread.join()


def at_the_top() -> None:
    try:
        fail()
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)  # as Python does when nobody catches it


def logged() -> None:
    try:
        fail()
    except ValueError:
        logging.getLogger("some.library").exception("it failed")


def fallen() -> None:
    Falls()


def warned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"Invalid value for VR PN: '{PATIENT}'", UserWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("happens", "event"),
    [
        (in_a_thread, "thread ended"),
        (at_the_top, "node ended"),
        (fallen, "error passed over"),
        (logged, "it failed"),
        (warned, "a library warned"),
    ],
)
def test_what_nobody_catches_is_one_line_that_quotes_no_patient(
    happens: Callable[[], None], event: str, configured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    start_logging(plain=False)
    hear_everything()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    happens()
    [line] = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["event"] == event
    assert "test_observe.py" in line, "where it was"
    assert not any(word in line for word in (*PATIENT.split("^"), str(BORN)))
    assert event == "a library warned" or "ValueError: PatientName is" in line


def test_lines_stay_whole_when_all_log_at_once(configured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours go by structlog, which writes a line in two pieces, and those of libraries by logging."""

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            time.sleep(0)  # another thread's turn
            return written

    heard = Slow()
    monkeypatch.setattr(sys, "stderr", heard)
    monkeypatch.setattr(logging.root, "handlers", [])
    start_logging(plain=False)

    def talk(number: int) -> None:
        for k in range(200):
            structlog.get_logger().warning("ours", number=number, k=k)
            logging.getLogger("library").warning("theirs %d %d", number, k)

    talkers = [threading.Thread(target=talk, args=(number,)) for number in range(6)]
    for each in talkers:
        each.start()
    for each in talkers:
        each.join()
    lines = [json.loads(line) for line in heard.getvalue().splitlines()]
    assert len(lines) == 2 * 6 * 200
