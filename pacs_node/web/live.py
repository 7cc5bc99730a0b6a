"""Pages that show what changes as it does: server-sent events, which a browser without JavaScript never asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts

LOOK_EVERY_S = 1.0
ANSWERED_AFTER_S = 20.0  # at the latest; the browser asks again, and who asks is looked at again


class LiveViews:
    """One function per address, as in `Views`."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def changes(self, request: Request) -> Response:
        """One event: at once where the browser knows none yet, else as soon as a page would show something else."""
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # of nginx: it must not collect it
        return StreamingResponse(self._event(request), media_type="text/event-stream", headers=headers)

    async def _event(self, request: Request) -> AsyncIterator[str]:
        known, waited_s = request.headers.get("last-event-id", ""), 0.0
        stamp = await run_in_threadpool(self.facts.stamp)
        while stamp == known and waited_s < ANSWERED_AFTER_S and not await request.is_disconnected():
            await asyncio.sleep(LOOK_EVERY_S)
            waited_s += LOOK_EVERY_S
            stamp = await run_in_threadpool(self.facts.stamp)
        event = "changed" if known and stamp != known else "same"
        yield f"retry: 1000\nid: {stamp}\nevent: {event}\ndata: {event}\n\n"
