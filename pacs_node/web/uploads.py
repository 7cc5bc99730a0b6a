"""A form that brings a file along: multipart/form-data (RFC 7578), within limits."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

LONGEST_TEXT_FORM = 1 << 18  # bytes of a form that holds a piece of a settings file
LONGEST_UPLOAD = 1 << 27  # bytes of a form with a file
MOST_FIELDS = 400

Fields = tuple[tuple[str, str], ...]


def is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


@asynccontextmanager
async def parts_of(request: Request) -> AsyncIterator[tuple[Fields, Path | None]]:
    """The fields, and the file where there is one, which is gone afterwards. Raises HTTPException: 411 for a form that
    does not say how long it is, 413 for one that is too long, 400 for one that cannot be read."""
    length = request.headers.get("content-length", "")
    if not length.isdigit() or "transfer-encoding" in request.headers:  # RFC 9112 6.3: that one would count
        raise HTTPException(411, "a form with a file says how long it is: Content-Length")
    if int(length) > LONGEST_UPLOAD:
        raise HTTPException(413, f"a form with a file is at most {LONGEST_UPLOAD >> 20} MiB")
    try:
        form = await request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=LONGEST_TEXT_FORM)
    except (MultiPartException, HTTPException) as error:
        raise HTTPException(400, f"the form cannot be read: {getattr(error, 'message', '') or error}") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the request is cut off") from error
    try:
        fields = tuple((name, value) for name, value in form.multi_items() if isinstance(value, str))
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile) and value.size]
        with tempfile.TemporaryDirectory(prefix="pacs-node-") as folder:
            path = Path(folder) / "upload.dcm" if files else None
            if path is not None:
                await run_in_threadpool(_copy, files[0], path)
            yield fields, path
    finally:
        await form.close()


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as copy:
        shutil.copyfileobj(file.file, copy)
