"""The page of the node itself, and what load balancers ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pacs_node.web.views import Views

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts


class SystemViews:
    """One function per address, as in `Views`."""

    def __init__(self, facts: Facts, views: Views) -> None:
        self.facts, self.views = facts, views

    def page(self, request: Request) -> Response:
        shown = {"s": self.facts.system(), "health": self.facts.health()}
        return self.views.page(request, "system.html", shown)

    def state(self, request: Request) -> Response:
        return JSONResponse(self.facts.system())

    def ready(self, request: Request) -> Response:
        ready = self.facts.ready()
        return JSONResponse(ready, status_code=200 if ready["ready"] else 503)
