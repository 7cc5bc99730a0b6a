"""One function per address. They ask the facts and show them; they decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
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
REFUSALS_SHOWN = 200  # on their page; the JSON has all that are kept

TONES = {  # state of a series or job -> its colour on the page
    "receiving": "busy",
    "running": "busy",
    "closed": "good",
    "done": "good",
    "waiting": "warn",
    "refused": "warn",
    "failed": "bad",
}
PATIENT_GROUP = 0x0010
CLINICAL_TRIAL_GROUP = 0x0012
IDENTIFYING = {"AccessionNumber", "StudyID", "StudyDescription", "IssuerOfAccessionNumberSequence"}
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

    def refusals(self, request: Request) -> Response:
        return JSONResponse(self.facts.refusals(_limit(request, MOST)))

    def retry(self, request: Request) -> Response:
        if _asked_from_elsewhere(request):
            return JSONResponse({"error": "asked for by a page of another site"}, status_code=403)
        if not self.facts.retry(request.path_params["id"]):
            return JSONResponse({"error": "no such job, or it cannot be run again in its state"}, status_code=409)
        return _back(request) or JSONResponse({"retried": True})

    def rerun(self, request: Request) -> Response:
        if _asked_from_elsewhere(request):
            return JSONResponse({"error": "asked for by a page of another site"}, status_code=403)
        why_not = self.facts.rerun(request.path_params["uid"])
        if why_not is not None:
            return JSONResponse({"error": why_not}, status_code=409)
        return _back(request) or JSONResponse({"rerun": True})

    def rejected(self, request: Request) -> Response:
        return JSONResponse(sorted(self.facts.rejected(request.path_params["id"])))

    def rejected_object(self, request: Request) -> Response:
        path = self.facts.rejected(request.path_params["id"]).get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "no such object")
        named = {"content-disposition": f'attachment; filename="{path.name}"'}
        return Response(nameless(path), media_type="application/dicom", headers=named)

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
        held_back = {job["id"]: sorted(self.facts.rejected(job["id"])) for job in series["jobs"]}
        shown = {"s": series, "refresh": refresh, "held_back": held_back}
        return self.pages.TemplateResponse(request, "series.html", shown)

    def destinations_page(self, request: Request) -> Response:
        return self.pages.TemplateResponse(request, "destinations.html", {"destinations": self.facts.destinations()})

    def refusals_page(self, request: Request) -> Response:
        return self.pages.TemplateResponse(request, "refusals.html", self.facts.refusals(REFUSALS_SHOWN))

    def error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
        return self.pages.TemplateResponse(
            request, "error.html", {"text": error.detail}, status_code=error.status_code, headers=error.headers
        )


def nameless(path: Path) -> bytes:
    """A DICOM file without who the patient is: names, the Patient and trial modules, and what names study and order.
    Dates and UIDs stay."""
    dataset = pydicom.dcmread(path)
    for element in dataset.iterall():
        known = element.tag.group in (PATIENT_GROUP, CLINICAL_TRIAL_GROUP) or element.keyword in IDENTIFYING
        if known or element.VR == "PN":
            element.value = None
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def _asked_from_elsewhere(request: Request) -> bool:
    return request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def _back(request: Request) -> Response | None:
    """To the page whose button was pressed; None for a program."""
    if "text/html" in request.headers.get("accept", "") and "referer" in request.headers:
        return RedirectResponse(request.headers["referer"], status_code=303)
    return None


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
