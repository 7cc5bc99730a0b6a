"""The web application: the same facts as JSON and as two plain pages. Nothing is loaded from elsewhere.

    GET  /                        the latest series
    GET  /series/{uid}            one series: why it closed, what each rule said, its jobs, its timeline
    GET  /refusals                what was refused or kept aside at receipt: when, from whom, why
    GET  /destinations            where results go, and what each destination accepted and refused
    GET  /health                  200 or 503, with the reasons
    GET  /metrics                 Prometheus
    GET  /api/series              a list; the Link header leads to older ones
    GET  /api/series/{uid}
    GET  /api/destinations
    GET  /api/refusals            {"counts": of each kind, "refusals": the newest}
    POST /api/jobs/{id}/retry     run a waiting or ended job now
    POST /api/series/{uid}/rerun  run a closed series again, with today's models and rules
    GET  /api/jobs/{id}/rejected  objects held back because they fail the checks; /{name} is one of them

No page and no answer carries a patient's name or number; rejected objects are handed out without
them. There is no login: bind to localhost, or use a proxy.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pacs_node.web.views import Views

HERE = Path(__file__).parent


class Facts(Protocol):
    """What the pages show. Plain values only: what JSON can say, times as ISO 8601 text."""

    def health(self) -> dict[str, Any]:
        """{"status": "ok", ...}; any other status answers 503, and its "reasons" (a list of sentences) are shown."""

    def series_list(self, limit: int, before: datetime | None = None) -> list[dict[str, Any]]:
        """The latest series first; with `before` those whose first image came earlier."""

    def series(self, series_uid: str) -> dict[str, Any] | None:
        """Everything about one series, or None."""

    def destinations(self) -> list[dict[str, Any]]:
        """Where results go, and what each destination answered to each SOP class and transfer syntax."""

    def refusals(self, limit: int) -> dict[str, Any]:
        """What was refused or kept aside at receipt, the newest first, and how often there was one of each kind:
        {"counts": {kind: {"number", "latest", "means"}}, "refusals": [...]}"""

    def retry(self, job_id: str) -> bool:
        """Run this job now. False: there is no such job, or it is not in a state that can be run again."""

    def rerun(self, series_uid: str) -> str | None:
        """Run this series again. None, or why not."""

    def rejected(self, job_id: str) -> dict[str, Path]:
        """The objects of a job that were held back: name -> file."""


def create_app(facts: Facts, registry: CollectorRegistry) -> Starlette:
    """The whole application; `facts` may block, it is called from worker threads."""
    views = Views(facts, registry, HERE / "templates")
    return Starlette(
        routes=[
            Route("/", views.list_page),
            Route("/series/{uid}", views.series_page, name="series"),
            Route("/destinations", views.destinations_page),
            Route("/refusals", views.refusals_page),
            Route("/health", views.health),
            Route("/metrics", views.metrics),
            Route("/api/series", views.series_list),
            Route("/api/series/{uid}", views.series),
            Route("/api/destinations", views.destinations),
            Route("/api/refusals", views.refusals),
            Route("/api/series/{uid}/rerun", views.rerun, methods=["POST"]),
            Route("/api/jobs/{id}/retry", views.retry, methods=["POST"]),
            Route("/api/jobs/{id}/rejected", views.rejected),
            Route("/api/jobs/{id}/rejected/{name}", views.rejected_object),
            Mount("/static", StaticFiles(directory=HERE / "static"), name="static"),
        ],
        exception_handlers={HTTPException: views.error},
        middleware=[Middleware(Guarded)],
    )


HEADERS = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Guarded:
    """Adds to every answer the headers that keep a browser from loading, framing or guessing anything else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, guarded)
