"""An event that cannot be written is lost; what it was about goes on."""

from __future__ import annotations

import errno
import io
import json
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
