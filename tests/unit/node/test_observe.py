"""An event that cannot be written is lost; what it was about goes on."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from pacs_node.observe import start_logging


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
def configured() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


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
