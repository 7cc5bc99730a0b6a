"""One function per address. They ask the facts and show them; they decide nothing."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial, wraps
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import pydicom
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydicom.uid import UID
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.templating import Jinja2Templates

from pacs_node.errors import Told
from pacs_node.privacy import identifies
from pacs_node.records import REFUSAL_KINDS
from pacs_node.web.found import is_cine, pictured, shown_of
from pacs_node.web.languages import COOKIE, LANGUAGES, catalogue_of, in_language, language_of, script_words

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts

log = structlog.get_logger(__name__)

PAGE = 50  # series on one page
MOST = 1000  # series in one answer
NAMED = 10  # series by their UID in one message of the audit trail
LONGEST_FORM = 8192  # bytes
AUDIT_KEYS = ("before", "event", "who", "study")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # begins what a spreadsheet would calculate
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
UNFINISHED = {"receiving", "queued", "running", "waiting"}
WAITS = {"queued", "waiting"}  # jobs that can be made more urgent
AGAIN = {"queued", "running", "waiting", "failed", "refused"}  # jobs with a "Retry now" button


class Views:
    """language: of the pages, for whose browser asks for none that is known."""

    def __init__(self, facts: Facts, registry: CollectorRegistry, templates: Path, language: str = "en") -> None:
        self.facts, self.registry, self.default = facts, registry, language
        self.pages = {each: _pages_in(each, templates) for each in LANGUAGES}

    def page(
        self,
        request: Request,
        template: str,
        facts: Mapping[str, Any],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """With who asks, in its head and in its forms."""
        shown = {**facts, "who": getattr(request.state, "who", None)}
        return self._in_words(request, template, shown, status_code, headers)

    def _in_words(
        self,
        request: Request,
        template: str,
        shown: Mapping[str, Any],
        status_code: int,
        headers: Mapping[str, str] | None,
    ) -> Response:
        """In the language of who asks; a cache between us must not show it to somebody who reads another."""
        chosen, wanted = request.cookies.get(COOKIE), request.headers.get("accept-language", "")
        language = language_of(chosen, wanted, self.default)
        said = {**(headers or {}), "content-language": language, "vary": "Accept-Language, Cookie"}
        context = {**shown, "here": here(request)}
        return self.pages[language].TemplateResponse(request, template, context, status_code=status_code, headers=said)

    # ---- for programs

    def health(self, request: Request) -> Response:
        health = self.facts.health()
        return JSONResponse(health, status_code=503 if health["status"] == "trouble" else 200)

    def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    def series(self, request: Request) -> Response:
        series = self.facts.series(request.path_params["uid"])
        if series is None:
            raise HTTPException(404, "no such series")
        return JSONResponse(series)

    def destinations(self, request: Request) -> Response:
        return JSONResponse(self.facts.destinations())

    def refusals(self, request: Request) -> Response:
        return JSONResponse(self.facts.refusals(limit_of(request, MOST), *_of_whom(request)))

    def inference(self, request: Request) -> Response:
        return JSONResponse(self.facts.inference())

    def audit(self, request: Request) -> Response:
        return JSONResponse(self._audited(request, limit_of(request, MOST))["events"])

    def _audited(self, request: Request, limit: int) -> dict[str, Any]:
        before = day_or_time("before", request.query_params.get("before"))
        wanted = {key: request.query_params[key] for key in AUDIT_KEYS[1:] if request.query_params.get(key)}
        text = before.isoformat(timespec="microseconds") if before is not None else ""
        return {**self.facts.audit(limit, text, wanted), "wanted": wanted}

    def retry(self, request: Request) -> Response:
        request.state.said = self.facts.what_is(request.path_params["id"])
        why_not = self.facts.retry(request.path_params["id"])
        if why_not is not None:
            raise HTTPException(409, why_not)
        return back(request) or JSONResponse({"retried": True})

    def dismiss(self, request: Request) -> Response:
        request.state.said = self.facts.what_is(request.path_params["id"])
        if not self.facts.dismiss(request.path_params["id"]):
            raise HTTPException(409, "no such job, or it has not failed")
        return back(request) or JSONResponse({"dismissed": True})

    def rerun(self, request: Request) -> Response:
        why_not = self.facts.rerun(request.path_params["uid"])
        if why_not is not None:
            raise HTTPException(409, why_not)
        return back(request) or JSONResponse({"rerun": True})

    def rerun_many(self, request: Request) -> Response:
        """Asked by the query (programs) or by a form (the page)."""
        asked = once([*request.query_params.multi_items(), *request.state.form], ("route", "since"))
        route, since = asked.get("route") or None, day_or_time("since", asked.get("since") or None)
        if route is None and since is None:
            raise HTTPException(400, "name a route, or since when: ?since=2026-03-01")
        routes = self.facts.routes()
        if route is not None and route not in routes:
            raise HTTPException(400, f"no route {route[:64]!r}; there are {', '.join(routes) or 'none'}")
        said = self.facts.rerun_many(route, since)
        request.state.said = done_with("rerun", said)
        answer = {
            "rerun": [uid for uid, why_not in said.items() if why_not is None],
            "not": {uid: why_not for uid, why_not in said.items() if why_not is not None},
        }
        if for_people(request):
            left = {"rerun": answer["rerun"], "left": answer["not"]}
            return self.page(request, "rerun.html", left)
        return JSONResponse(answer)

    def rejected(self, request: Request) -> Response:
        return JSONResponse(sorted(self.facts.rejected(request.path_params["id"])))

    def rejected_object(self, request: Request) -> Response:
        path = self.facts.rejected(request.path_params["id"]).get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "no such object")
        request.state.studies = (study_of(path),)
        named = {"content-disposition": f'attachment; filename="{path.name}"'}
        return Response(deidentified(path), media_type="application/dicom", headers=named)

    # ---- for people

    def series_page(self, request: Request) -> Response:
        series = self.facts.series(request.path_params["uid"])
        if series is None:
            raise HTTPException(404, "no such series")
        told = self.facts.findings(series["series_uid"]) or {"state": "none", "why": "", "results": []}
        refresh = series["state"] in UNFINISHED or any(job["state"] in UNFINISHED for job in series["jobs"])
        refresh = refresh or told["state"] == "preparing"
        held_back = {job["id"]: sorted(self.facts.rejected(job["id"])) for job in series["jobs"]}
        found = shown_of(self.facts, request, series, told)
        shown = {"s": series, "refresh": refresh, "held_back": held_back, **found}
        return self.page(request, "series.html", shown)

    def rerun_page(self, request: Request) -> Response:
        return self.page(request, "rerun.html", {"rerun": None, "routes": self.facts.routes()})

    def destinations_page(self, request: Request) -> Response:
        return self.page(request, "destinations.html", {"destinations": self.facts.destinations()})

    def refusals_page(self, request: Request) -> Response:
        kind, sender = _of_whom(request)
        shown = {**self.facts.refusals(REFUSALS_SHOWN, kind, sender), "chosen": {"kind": kind, "sender": sender}}
        return self.page(request, "refusals.html", shown)

    def audit_page(self, request: Request) -> Response:
        shown = self._audited(request, REFUSALS_SHOWN)
        older = shown["events"][-1]["at"] if len(shown["events"]) == REFUSALS_SHOWN else None
        keys = urlencode({**shown["wanted"], "before": older}) if older else ""
        return self.page(request, "audit.html", {**shown, "older": keys})

    def error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if request.url.path.startswith("/api/") and not for_people(request):
            return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
        return self._in_words(request, "error.html", {"text": error.detail}, error.status_code, error.headers)

    def no_ledger(self, request: Request, error: Exception) -> Response:
        """Nothing can be said while the database does not answer; /health says so, too."""
        return self.error(request, HTTPException(503, "the database of the node does not answer; see /health"))

    def unforeseen(self, request: Request, error: Exception) -> Response:
        """An error of ours: told in the log, with its place, and to who asked without."""
        told = Told.of(error)
        log.error(
            "page failed",
            path=request.scope["route"].path if "route" in request.scope else "",
            error=told.words,
            trace=told.trace,
        )
        return self.error(request, HTTPException(500, "the node could not answer this; its log says why"))


View = Callable[[Request], Response]
PLAIN = re.compile(r"[\x21-\x7e]{1,128}")  # what UIDs, ids and names of files are made of


def knowing(view: View, *keys: str) -> View:
    """The view, asked only with query keys that it knows, each once, and for names that can be one."""

    @wraps(view)
    def asked(request: Request) -> Response:
        once(request.query_params.multi_items(), keys)
        for name, value in request.path_params.items():
            if not PLAIN.fullmatch(value):
                raise HTTPException(400, f"no {name} holds what {value[:64]!a} does")
        return view(request)

    return asked


async def body_of(request: Request, longest: int = LONGEST_FORM) -> str:
    """What a form sends. Raises HTTPException: 413 for more than any of ours can say, 400 for one that is cut off."""
    body = b""
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > longest:
                raise HTTPException(413, f"a form is at most {longest} bytes")
    except ClientDisconnect as error:
        raise HTTPException(400, "the request is cut off") from error
    return body.decode("utf-8", "replace")


def once(items: list[tuple[str, str]], known: tuple[str, ...]) -> dict[str, str]:
    """Raises HTTPException 400 for a key that is not known or comes twice."""
    asked: dict[str, str] = {}
    for key, value in items:
        if key not in known:
            raise HTTPException(400, f"no query key {key[:64]!a} here; there are {', '.join(known) or 'none'}")
        if key in asked:
            raise HTTPException(400, f"query key '{key}' is given twice")
        asked[key] = value
    return asked


def csv_line(values: Sequence[object]) -> str:
    """RFC 4180. What a sender wrote is shown by a spreadsheet, never calculated: OWASP, CSV Injection."""
    line = StringIO(newline="")
    csv.writer(line).writerow(
        [f"'{each}" if isinstance(each, str) and each.startswith(FORMULA) else each for each in values]
    )
    return line.getvalue()


def deidentified(path: Path) -> bytes:
    """A DICOM file without who the patient is: names, the Patient and trial modules, and what names study and order.
    Dates and UIDs stay."""
    dataset = pydicom.dcmread(path)
    for element in dataset.iterall():
        if identifies(element.tag) or element.VR == "PN":
            element.value = None
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def study_of(file: Path | BytesIO) -> str:
    """The Study Instance UID of a DICOM file."""
    return str(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)


def for_people(request: Request) -> bool:
    """Was a button of a page pressed? A program does not ask for HTML."""
    return "text/html" in request.headers.get("accept", "")


def done_with(do: str, said: Mapping[str, str | None]) -> str:
    """What was done with which series, and with how many not, for the audit trail."""
    done = [uid for uid, why_not in said.items() if why_not is None]
    more = f" and {len(done) - NAMED} more" if len(done) > NAMED else ""
    return f"{do}: {len(done)} series, {len(said) - len(done)} not: {', '.join(done[:NAMED]) or 'none'}{more}"


def back(request: Request) -> Response | None:
    """To the page whose button was pressed; None for a program."""
    if for_people(request) and "referer" in request.headers:
        onward = _came_from(request)
        return RedirectResponse(onward, status_code=303) if inside(onward) == onward else None
    return None


def _came_from(request: Request) -> str:
    page = urlsplit(request.headers["referer"])  # the application has seen that it is an address
    return page.path + (f"?{page.query}" if page.query else "")  # never to another site


def here(request: Request) -> str:
    """Where this page can be asked for again: what a form has brought about, where the form stood."""
    if request.method in ("GET", "HEAD"):
        return inside(request.url.path + (f"?{request.url.query}" if request.url.query else ""))
    return inside(_came_from(request)) if "referer" in request.headers else "/"


def inside(path: str) -> str:
    """A path of this site; the front page instead of what would lead to another one."""
    return path if re.fullmatch(r"/(?![/\\])[\x21-\x7e]{0,2000}", path) else "/"


def limit_of(request: Request, most: int) -> int:
    """Raises HTTPException 400 for anything but a number from 1 to `most`."""
    text = request.query_params.get("limit", str(PAGE))
    if not (re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= most):
        raise HTTPException(400, f"limit is a number from 1 to {most}, not {text[:20]!a}")
    return int(text)


def _of_whom(request: Request) -> tuple[str, str]:
    """Kind and AE title that refusals are asked for. Raises HTTPException 400."""
    kind, sender = request.query_params.get("kind", ""), request.query_params.get("sender", "")
    if kind and kind not in REFUSAL_KINDS:
        raise HTTPException(400, f"kind is one of {', '.join(REFUSAL_KINDS)}, not {kind[:20]!a}")
    if "\0" in sender:
        raise HTTPException(400, "sender is an AE title")
    return kind, sender


def day_or_time(name: str, text: str | None) -> datetime | None:
    """A day (its beginning in UTC), or a time with a zone. Raises HTTPException 400."""
    if text is not None and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        text += "T00:00:00+00:00"
    return None if text is None else _time(name, text)


def _time(name: str, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text.replace(" ", "+"))  # an unescaped + of a zone arrives as a space
        if time.tzinfo is None:
            raise HTTPException(400, f"{name} needs a time zone, such as +00:00")
        return time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise HTTPException(400, f"{name} is a time such as 2026-03-01T12:00:00+00:00, not {text[:40]!a}") from error


def _pages_in(language: str, templates: Path) -> Jinja2Templates:
    """The templates, whose every word is in this language."""
    pages, catalogue = Jinja2Templates(directory=templates), catalogue_of(language)
    translated = partial(in_language, catalogue)
    pages.env.filters |= {
        "when": when,
        "purpose": partial(purpose, translated),
        "class_name": class_name,
        "syntax_name": syntax_name,
        "tone": tone,
        "duration": duration,
        "size": partial(size, translated),
        "word": translated,
        "sentence": sentence,
    }
    pages.env.globals |= {"AGAIN": AGAIN, "pictured": pictured, "is_cine": is_cine, "WAITS": WAITS}
    pages.env.globals |= {"language": language, "languages": LANGUAGES, "script_words": partial(script_words, language)}
    pages.env.add_extension("jinja2.ext.i18n")
    pages.env.install_gettext_translations(catalogue, newstyle=True)  # type: ignore[attr-defined]
    return pages


Translated = Callable[[str], str]
NOT_MEASURED = "not measured yet"
PURPOSES = {"send": "Send to {}", "confirm": "Did it arrive at {}?", "report": "Storage commitment for {}"}


def purpose(translated: Translated, job: Mapping[str, Any]) -> str:
    """What a job does: the pipeline's name, "Send to pacs"."""
    words = PURPOSES.get(job["kind"])
    return str(job["pipeline"]) if words is None else translated(words).format(job["destination"])


def sentence(words: str) -> str:
    """Its first letter large, and no other one small: "no CT" -> "No CT"."""
    return words[:1].upper() + words[1:]


def tone(state: str) -> str:
    return TONES.get(state, "calm")


def when(text: str | None) -> str:
    """2026-03-01T12:00:05.123+00:00 -> 2026-03-01 12:00:05"""
    return text[:19].replace("T", " ") if text else ""


def duration(seconds: float | None) -> str:
    """75.3 -> "1 min 15 s" """
    if seconds is None:
        return ""
    whole = round(seconds)
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    said = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(said[:2]) or f"{seconds:.1f} s"


def size(translated: Translated, number: float | None) -> str:
    """1500000000 -> "1.5 GB" """
    if number is None:
        return translated(NOT_MEASURED)
    for unit, much in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= much:
            return f"{number / much:.1f} {unit}"
    return f"{number / 1e3:.0f} kB"


def class_name(result: Mapping[str, Any]) -> str:
    """The short name of a result's SOP Class: "Segmentation", "Comprehensive 3D SR"."""
    uid = result.get("sop_class_uid") or result.get("sop_class") or ""
    return UID(uid).name.removesuffix(" Storage")


def syntax_name(uid: str) -> str:
    """The short name of a transfer syntax: "Explicit VR Little Endian"."""
    return UID(uid).name
