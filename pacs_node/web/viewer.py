"""What was found, seen: findings as pages, JSON and CSV, with pictures; the viewer; and what readers say of them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from pacs_node.accounts import READER
from pacs_node.records import FEEDBACK_KINDS, RETURNED_KINDS
from pacs_node.web.found import may_see_all, shown_of
from pacs_node.web.views import Views, back, csv_line, study_of

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts

PERSON_WAITS_S = 5.0  # until the page is there, with the findings or without
PROGRAM_WAITS_S = 20.0  # until the findings are read
FORMS = ("json", "csv")
WHOLE = (".nii.gz", ".bin")  # how files end that hold all images of a series
KINDS = {".png": "image/png", ".bin": "application/octet-stream"}
# they name no patient, and still are about one; what is made anew has the same name
HEADERS = {"cache-control": "no-store"}
FINDING_COLUMNS = (
    "series_uid", "job", "pipeline", "algorithm", "version", "number", "label", "type", "where", "size",
    "certainty_percent", "image", "x_lps_mm", "y_lps_mm", "z_lps_mm", "measurements", "evaluations", "change",
)  # fmt: skip
FEEDBACK_COLUMNS = (
    "id", "at", "reader", "series_uid", "job", "pipeline", "version", "kind", "finding", "label",
    "sop_instance_uid", "frame", "column", "row", "x_lps_mm", "y_lps_mm", "z_lps_mm",
    "object", "sender", "dice", "reason", "made",
)  # fmt: skip
BURNT_IN = (
    "these images may show the patient's name in their pixels, as ultrasound machines write it there; seeing them needs"
    f" the role {READER}"
)


class ViewerViews:
    """One function per address, as in `views.py`."""

    def __init__(self, facts: Facts, views: Views) -> None:
        self.facts, self.views = facts, views

    # ---- for people

    def page(self, request: Request) -> Response:
        uid = request.path_params["uid"]
        series, told = self.facts.series(uid), self.facts.findings(uid, PERSON_WAITS_S)
        if series is None or told is None:
            raise HTTPException(404, "no such series")
        shown = {
            "s": series,
            **shown_of(self.facts, request, series, told),
            "refresh": told["state"] == "preparing",
            "looked_at": True,
        }
        return self.views.page(request, "view.html", shown)

    def feedback_page(self, request: Request) -> Response:
        shown = {"rows": self.facts.feedback_counts(), "kinds": FEEDBACK_KINDS, "returned": RETURNED_KINDS}
        return self.views.page(request, "feedback.html", {**shown, "refresh": False})

    def pipeline_page(self, request: Request) -> Response:
        told = self.facts.pipeline(request.path_params["name"], request.query_params.get("sender") or None)
        if told is None:
            raise HTTPException(404, "no such pipeline")
        return self.views.page(request, "pipeline.html", {**told, "refresh": False})

    def card_page(self, request: Request) -> Response:
        name = request.path_params["name"]
        text = self.facts.card(name)
        if text is None:
            raise HTTPException(404, "no such pipeline, or its package carries no CARD.md")
        return self.views.page(request, "card.html", {"name": name, "text": text, "refresh": False})

    # ---- for programs, and for the viewer

    def findings(self, request: Request) -> Response:
        uid, form = request.path_params["uid"], _form(request)
        told = self._known(self.facts.findings(uid, PROGRAM_WAITS_S))
        shadows = "shadow" in request.query_params  # what a shadow says is no result, for who does not ask for it
        told = {**told, "results": [each for each in told["results"] if shadows or not each["shadow"]]}
        if form == "json":
            return JSONResponse(told, headers=HEADERS)
        if told["state"] == "refused":
            raise HTTPException(409, told["why"])
        return csv_of(f"findings-{uid}.csv", FINDING_COLUMNS, finding_rows(uid, told["results"]))

    def volume(self, request: Request) -> Response:
        return JSONResponse(self._known(self.facts.volume(request.path_params["uid"])), headers=HEADERS)

    def earlier(self, request: Request) -> Response:
        return JSONResponse(self._known(self.facts.earlier(request.path_params["uid"])), headers=HEADERS)

    def file(self, request: Request) -> Response:
        """A picture, the volume or the masks."""
        uid, name = request.path_params["uid"], request.path_params["name"]
        path = self.facts.view_file(uid, name)
        if path is None:
            raise HTTPException(404, "no such picture or volume; it may be in preparation")
        named = self._may_name(uid, name)
        if named and not may_see_all(request):
            raise HTTPException(403, BURNT_IN)
        if named or name.endswith(WHOLE):
            request.state.studies = self._study_of(uid, name)  # the images themselves: the audit trail is told
        kind = KINDS.get(path.suffix, "application/gzip")
        return FileResponse(path, media_type=kind, headers=HEADERS)

    def result(self, request: Request) -> Response:
        name = request.path_params["name"]
        content = self.facts.result_file(request.path_params["id"], name)
        if content is None:
            raise HTTPException(404, "no such result, or it is not here any more")
        request.state.studies = (study_of(io.BytesIO(content)),)
        named = {"content-disposition": f'attachment; filename="{name}"', **HEADERS}
        return Response(content, media_type="application/dicom", headers=named)

    def feedback(self, request: Request) -> Response:
        said = self.facts.feedback()
        if _form(request) == "csv":
            return csv_of("feedback.csv", FEEDBACK_COLUMNS, feedback_rows(said))
        return JSONResponse(list(said), headers=HEADERS)

    def note_feedback(self, request: Request) -> Response:
        """Asked by a form: job, kind, and the number of a finding, or where one was missed."""
        uid = request.path_params["uid"]
        if self.facts.series(uid) is None:
            raise HTTPException(404, "no such series")
        form = _form_once(request.state.form)
        kind = form.get("kind", "")
        if kind not in FEEDBACK_KINDS:
            raise HTTPException(400, f"kind is one of {', '.join(FEEDBACK_KINDS)}, not {kind[:20]!a}")
        finding, place = None, None
        if kind == "missed":
            image = _whole(form, "image")
            place = (image - 1, _number(form, "column"), _number(form, "row"))
        else:
            finding = _whole(form, "finding")
        who = request.state.who
        why_not = self.facts.note_feedback(uid, who.name if who else "", form.get("job", ""), kind, finding, place)
        if why_not is not None:
            raise HTTPException(409, why_not)
        return back(request) or JSONResponse({"noted": True})

    def _known(self, told: dict[str, Any] | None) -> dict[str, Any]:
        if told is None:
            raise HTTPException(404, "no such series")
        return told

    def _study_of(self, uid: str, name: str) -> tuple[str, ...]:
        earlier = self.facts.earlier(uid) if name.startswith("earlier") else None
        about = earlier if earlier is not None and "study_uid" in earlier else self.facts.series(uid)
        return () if about is None else (about["study_uid"],)

    def _may_name(self, uid: str, name: str) -> bool:
        """May the patient's name stand in the pixels of this file?"""
        of_part = self.facts.volume if name.endswith(WHOLE) else self.facts.findings
        told = (self.facts.earlier if name.startswith("earlier") else of_part)(uid)
        return told is None or bool(told.get("identity_in_pixels", True))


def finding_rows(series_uid: str, results: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for result in results:
        of = {name: result[name] for name in ("job", "pipeline", "algorithm", "version")}
        for finding in result["findings"]:
            yield {
                "series_uid": series_uid,
                **of,
                **finding,
                **_place(finding["place_lps_mm"]),
                "measurements": "; ".join(f"{each['name']} {each['text']}" for each in finding["measurements"]),
                "evaluations": "; ".join(f"{each['name']}: {each['value']}" for each in finding["evaluations"]),
            }


def feedback_rows(said: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for each in said:
        place = each["place"] or {}
        yield {**place, **each, **_place(place.get("lps_mm"))}


def _place(lps_mm: Sequence[float] | None) -> dict[str, float]:
    return dict(zip(("x_lps_mm", "y_lps_mm", "z_lps_mm"), lps_mm or (), strict=False))


def csv_of(name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Response:
    lines = [csv_line(columns), *(csv_line([row.get(column) for column in columns]) for row in rows)]
    named = {"content-disposition": f'attachment; filename="{Path(name).name}"', **HEADERS}
    return Response("".join(lines), media_type="text/csv; charset=utf-8", headers=named)


def _form(request: Request) -> str:
    form = request.query_params.get("form", "json")
    if form not in FORMS:
        raise HTTPException(400, f"form is {' or '.join(FORMS)}, not {form[:20]!a}")
    return form


FIELDS = ("job", "kind", "finding", "image", "column", "row")


def _form_once(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Raises HTTPException 400 for a field that is not known or comes twice."""
    form: dict[str, str] = {}
    for name, value in items:
        if name not in FIELDS or name in form:
            raise HTTPException(400, f"the fields are {', '.join(FIELDS)}, each once, not {name[:20]!a}")
        form[name] = value
    return form


def _whole(form: Mapping[str, str], name: str) -> int:
    text = form.get(name, "")
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        raise HTTPException(400, f"{name} is a whole number from 1, not {text[:20]!a}")
    return int(text)


def _number(form: Mapping[str, str], name: str) -> float:
    text = form.get(name, "")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise HTTPException(400, f"{name} is a number of pixels from 0, not {text[:20]!a}")
    return float(text)
