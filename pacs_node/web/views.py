"""One function per address. They ask the facts and show them; they decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydicom.uid import UID
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.templating import Jinja2Templates

if TYPE_CHECKING:
    from pacs_node.web.app import Facts

PAGE = 50  # series on one page
MOST = 1000  # series in one answer

TONES = {  # state of a series or job -> its colour on the page
    "receiving": "busy",
    "running": "busy",
    "closed": "good",
    "done": "good",
    "waiting": "warn",
    "refused": "warn",
    "failed": "bad",
}
UNFINISHED = {"receiving", "queued", "running", "waiting"}
AGAIN = {"waiting", "failed", "refused"}  # jobs with a "Retry now" button


class Views:
    def __init__(self, facts: Facts, registry: CollectorRegistry, templates: Path) -> None:
        self.facts, self.registry = facts, registry
        self.pages = Jinja2Templates(directory=templates)
        self.pages.env.filters |= {
            "when": when,
            "purpose": purpose,
            "class_name": class_name,
            "syntax_name": syntax_name,
            "tone": tone,
        }
        self.pages.env.globals |= {"AGAIN": AGAIN}

    # ---- for programs

    def health(self, request: Request) -> Response:
        health = self.facts.health()
        return JSONResponse(health, status_code=200 if health["status"] == "ok" else 503)

    def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    def series_list(self, request: Request) -> Response:
        limit = _limit(request, MOST)
        series = self.facts.series_list(limit, _before(request))
        older = request.url.include_query_params(before=series[-1]["first_arrival"]) if len(series) == limit else None
        return JSONResponse(series, headers={"link": f'<{older}>; rel="next"'} if older else None)

    def series(self, request: Request) -> Response:
        series = self.facts.series(request.path_params["uid"])
        if series is None:
            raise HTTPException(404, "no such series")
        return JSONResponse(series)

    def destinations(self, request: Request) -> Response:
        return JSONResponse(self.facts.destinations())

    def retry(self, request: Request) -> Response:
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return JSONResponse({"error": "asked for by a page of another site"}, status_code=403)
        if not self.facts.retry(request.path_params["id"]):
            return JSONResponse({"error": "no such job, or it cannot be run again in its state"}, status_code=409)
        if "text/html" in request.headers.get("accept", "") and "referer" in request.headers:
            return RedirectResponse(request.headers["referer"], status_code=303)
        return JSONResponse({"retried": True})

    # ---- for people

    def list_page(self, request: Request) -> Response:
        before = _before(request)
        series = self.facts.series_list(PAGE, before)
        health = self.facts.health()
        older = series[-1]["first_arrival"] if len(series) == PAGE else None
        facts = {
            "series": series,
            "health": health,
            "older": older,
            "newest": before is None,
            "refresh": before is None,
        }
        return self.pages.TemplateResponse(request, "list.html", facts)

    def series_page(self, request: Request) -> Response:
        series = self.facts.series(request.path_params["uid"])
        if series is None:
            raise HTTPException(404, "no such series")
        refresh = series["state"] in UNFINISHED or any(job["state"] in UNFINISHED for job in series["jobs"])
        return self.pages.TemplateResponse(request, "series.html", {"s": series, "refresh": refresh})

    def destinations_page(self, request: Request) -> Response:
        return self.pages.TemplateResponse(request, "destinations.html", {"destinations": self.facts.destinations()})

    def error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
        return self.pages.TemplateResponse(
            request, "error.html", {"text": error.detail}, status_code=error.status_code, headers=error.headers
        )


def _limit(request: Request, most: int) -> int:
    """Raises HTTPException 400 for anything but a number from 1 to `most`."""
    text = request.query_params.get("limit", str(PAGE))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise HTTPException(400, f"limit is a number from 1 to {most}, not {text[:20]!r}")
    return int(text)


def _before(request: Request) -> datetime | None:
    """Raises HTTPException 400 for anything but an ISO 8601 time with a zone."""
    text = request.query_params.get("before")
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text.replace(" ", "+"))  # an unescaped + of a zone arrives as a space
    except ValueError as error:
        raise HTTPException(400, f"before is a time such as 2026-03-01T12:00:00+00:00, not {text[:40]!r}") from error
    if time.tzinfo is None:
        raise HTTPException(400, "before needs a time zone, such as +00:00")
    return time


PURPOSES = {"send": "Send to {}", "confirm": "Did it arrive at {}?", "report": "Storage commitment for {}"}


def purpose(job: Mapping[str, Any]) -> str:
    """What a job does: the pipeline's name, "Send to pacs"."""
    return PURPOSES[job["kind"]].format(job["destination"]) if job["kind"] in PURPOSES else str(job["pipeline"])


def tone(state: str) -> str:
    return TONES.get(state, "calm")


def when(text: str | None) -> str:
    """2026-03-01T12:00:05.123+00:00 -> 2026-03-01 12:00:05"""
    return text[:19].replace("T", " ") if text else ""


def class_name(result: Mapping[str, Any]) -> str:
    """Of the SOP Class of a result: "Segmentation", "Comprehensive 3D SR"."""
    uid = result.get("sop_class_uid") or result.get("sop_class") or ""
    return UID(uid).name.removesuffix(" Storage")


def syntax_name(uid: str) -> str:
    """Of a transfer syntax: "Explicit VR Little Endian"."""
    return UID(uid).name
