"""What runs and what waits; what is paused, and the buttons that pause it or make a job more urgent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pacs_node.records import NEXT, STAT
from pacs_node.web.views import MOST, PAGE, Views, back, limit_of, once

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts

TO = {"next": NEXT, "stat": STAT}  # what a button makes of a job -> its priority


class QueueViews:
    """One function per address, as in `Views`."""

    def __init__(self, facts: Facts, views: Views) -> None:
        self.facts, self.views = facts, views

    def page(self, request: Request) -> Response:
        shown = {
            "queues": self.facts.queue(PAGE),
            **self.facts.inference(),
            "pauses": self.facts.pauses(),
            "can_pause": self.facts.can_pause(),
            "refresh": True,
        }
        return self.views.page(request, "queue.html", shown)

    def queue(self, request: Request) -> Response:
        return JSONResponse(self.facts.queue(limit_of(request, MOST)))

    def pauses(self, request: Request) -> Response:
        return JSONResponse(self.facts.pauses())

    def pause(self, request: Request) -> Response:
        asked = asked_of(request, "what", "reason", "hours")
        kind, _, name = asked.get("what", "").partition(" ")
        why_not = self.facts.pause(kind, name, somebody(request), asked.get("reason", "").strip(), hours_of(asked))
        if why_not is not None:
            raise HTTPException(400, why_not)
        return back(request) or JSONResponse({"paused": True})

    def resume(self, request: Request) -> Response:
        kind, _, name = asked_of(request, "what").get("what", "").partition(" ")
        if not self.facts.resume(kind, name, somebody(request)):
            raise HTTPException(409, f"it is not paused: {kind} {name}"[:200])
        return back(request) or JSONResponse({"resumed": True})

    def priority(self, request: Request) -> Response:
        to = asked_of(request, "to").get("to", "")
        if to not in TO:
            raise HTTPException(400, f"to is one of {', '.join(TO)}, not {to[:20]!a}")
        why_not = self.facts.hurry(request.path_params["id"], TO[to], somebody(request))
        if why_not is not None:
            raise HTTPException(409, why_not)
        return back(request) or JSONResponse({"priority": TO[to]})


def asked_of(request: Request, *keys: str) -> dict[str, str]:
    """By the query (programs) or by a form (a page)."""
    return once([*request.query_params.multi_items(), *request.state.form], keys)


def hours_of(asked: dict[str, str]) -> float | None:
    """Raises HTTPException 400."""
    text = asked.get("hours", "").strip().replace(",", ".")
    try:
        return float(text) if text else None
    except ValueError as error:
        raise HTTPException(400, f"hours is a number, not {text[:20]!a}") from error


def somebody(request: Request) -> str:
    who = request.state.who
    return (who.name if who is not None else "") or "somebody"
