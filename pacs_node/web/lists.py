"""The list of series: searched, filtered and sorted; what is chosen of it retried, run again, deleted, or exported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pacs_node.accounts import READER
from pacs_node.records import EVERY, JOB_STATES, SORTS, Wanted
from pacs_node.web.found import may_see_all
from pacs_node.web.views import MOST, PAGE, PLAIN, Views, csv_line, day_or_time, done_with, for_people, limit_of, once

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts

FILTER = (
    *("q", "patient", "modality", "sender", "state", "pipeline", "job", "findings", "kind", "min_mm", "trouble"),
    *("since", "before", "sort"),
)
PLAIN_WORDS = ("patient", "modality", "sender", "state", "pipeline", "job", "findings", "kind", "after")
WHERE = (*FILTER, "after")  # in the list
STATES = ("receiving", "closed", "deleted")
JOBS = tuple(state for state in JOB_STATES if state not in ("done", "superseded"))  # what somebody looks for
FINDINGS = ("with", "without")
ONE_OF = {"state": STATES, "job": JOBS, "findings": FINDINGS, "sort": tuple(SORTS), "trouble": ("1",)}
MOST_MM = 10_000  # as min_size_mm of the settings
HASHES = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{32}){2,9}")  # of a patient, as POST /api/patient gives them
LONGEST_HASHES = 33 * 10
LONGEST_TEXT = 64  # characters of what is sought: no description holds more
DO = {  # what can be done with many series -> in words
    "retry": "Retry what has failed, was refused or waits",
    "rerun": "Run again with today's models and rules",
    "delete": "Delete images and results here",
}
COLUMNS = (
    "series_uid", "study_uid", "modality", "description", "sender", "state", "instances", "revision", "first_arrival",
    "last_arrival", "turnaround_s", "findings", "largest_mm", "closed_because",
)  # fmt: skip


class ListViews:
    """One function per address, as in `Views`."""

    def __init__(self, facts: Facts, views: Views) -> None:
        self.facts, self.views = facts, views

    def page(self, request: Request) -> Response:
        asked = {key: value for key, value in request.query_params.multi_items() if value}
        wanted = self._wanted(request, asked)
        series = self.facts.series_list(PAGE, wanted)
        all_here = not wanted.after and len(series) < PAGE and wanted.sort != "slowest"  # which leaves some out
        number, there = self.facts.series_count(EVERY if all_here else wanted)
        number = len(series) if all_here else number
        narrowed = {key: value for key, value in asked.items() if key != "after"}
        more = {**narrowed, "after": series[-1]["series_uid"]} if len(series) == PAGE else None
        shown = {
            "series": series,
            "number": number,
            "there": there,
            "asked": asked,
            "narrowed": wanted.narrowed,
            "query": urlencode(narrowed),
            "more": urlencode(more) if more else None,
            "first_page": not wanted.after,
            "refresh": not wanted.after,
            "health": self.facts.health(),
            "choices": {**self.facts.choices(), "state": STATES, "job": JOBS, "findings": FINDINGS},
            "sorts": SORTS,
            "do": DO,
            "most": MOST,
        }
        return self.views.page(request, "list.html", shown)

    def series_list(self, request: Request) -> Response:
        limit = limit_of(request, MOST)
        series = self.facts.series_list(limit, self._wanted(request, request.query_params))
        next_ = request.url.include_query_params(after=series[-1]["series_uid"]) if len(series) == limit else None
        return JSONResponse(series, headers={"link": f'<{next_}>; rel="next"'} if next_ else None)

    def export(self, request: Request) -> Response:
        """All that are wanted, however many, as they are read."""
        wanted = self._wanted(request, request.query_params)
        named = {"content-disposition": 'attachment; filename="series.csv"'}
        return StreamingResponse(self._rows(wanted), media_type="text/csv; charset=utf-8", headers=named)

    def _wanted(self, request: Request, asked: Mapping[str, str]) -> Wanted:
        """Raises HTTPException: 400 for a value that cannot be, 403 for who may not ask whose series they are."""
        if asked.get("patient"):
            request.state.sought = f"patient={asked['patient'][:LONGEST_HASHES]}"
            if not may_see_all(request):
                raise HTTPException(403, f"to look for a patient needs the role {READER}")
        return wanted_of(asked)

    def _rows(self, wanted: Wanted) -> Iterator[str]:
        yield csv_line([*COLUMNS, "jobs"])
        while series := self.facts.series_list(MOST, wanted):
            for each in series:
                jobs = "; ".join(map(_job, each["jobs"]))
                yield csv_line([*(each[column] for column in COLUMNS), jobs])
            if len(series) < MOST:
                return
            wanted = replace(wanted, after=series[-1]["series_uid"])

    def chosen(
        self, request: Request, form: Sequence[tuple[str, str]], keys: tuple[str, ...]
    ) -> tuple[Wanted | list[str], dict[str, str]]:
        """The series that a form of the list is about, and what else it says: of `keys`. Raises HTTPException."""
        uids = [value for key, value in form if key == "series"]
        asked = once([field for field in form if field[0] != "series"], keys)
        if any(not PLAIN.fullmatch(uid) for uid in uids):
            raise HTTPException(400, "series is a Series Instance UID")
        query = asked.get("query", "")
        all_of_it = self._wanted(request, once(parse_qsl(query), FILTER)) if asked.get("all") else None
        chosen = all_of_it or list(dict.fromkeys(uids))
        if not chosen:
            raise HTTPException(400, "choose at least one series")
        return chosen, asked

    def bulk(self, request: Request) -> Response:
        """Asked by a page it asks once more, and then does it."""
        form = [*request.query_params.multi_items(), *request.state.form]
        if (do := dict(form).get("do", "")) not in DO:
            raise HTTPException(400, f"do is one of {', '.join(DO)}, not {do[:20]!a}")
        chosen, asked = self.chosen(request, form, ("do", "all", "query", "confirmed", "until", "agreed"))
        query = asked.get("query", "")
        until = day_or_time("until", asked.get("until") or None) or datetime.now(UTC)
        uids = self._until(chosen, until) if isinstance(chosen, Wanted) else chosen
        confirmed, agreed = asked.get("confirmed") == "yes", digest_of(uids)
        # a page asks for a list before it does something with it; a program may
        changed = confirmed and bool(asked.get("all")) and asked.get("agreed", agreed) != agreed
        unasked = for_people(request) and bool(asked.get("all")) and "agreed" not in asked
        if not for_people(request) and not confirmed:
            raise HTTPException(400, "say confirmed=yes: it is done at once")
        if not for_people(request) and changed:
            raise HTTPException(409, f"the list is of other series now, {len(uids)} of them; nothing was done")
        if not confirmed or changed or unasked:
            shown = {"do": do, "words": DO[do], "number": len(uids), "query": query, "all": asked.get("all")}
            shown |= {"uids": [] if isinstance(chosen, Wanted) else uids, "most": MOST, "done": None}
            shown |= {"until": until.isoformat(), "agreed": agreed, "changed": changed}
            return self.views.page(request, "bulk.html", shown, 409 if changed else 200)
        who = request.state.who.name if request.state.who is not None else ""
        said = self.facts.bulk(do, uids, who or "somebody")
        request.state.said = done_with(do, said)
        done = [uid for uid, why_not in said.items() if why_not is None]
        left = {uid: why_not for uid, why_not in said.items() if why_not is not None}
        if for_people(request):
            return self.views.page(request, "bulk.html", {"words": DO[do], "done": done, "left": left, "query": query})
        return JSONResponse({"done": done, "not": left})

    def _until(self, wanted: Wanted, until: datetime) -> list[str]:
        """Those of a list whose first image came before then: what comes while somebody reads is not meant."""
        before = until if wanted.before is None else min(wanted.before, until)
        return self.facts.series_uids(replace(wanted, before=before))


def digest_of(uids: Sequence[str]) -> str:
    """Another one for other series, whatever their order."""
    return sha256("\\".join(sorted(uids)).encode()).hexdigest()[:32]


def _job(job: Mapping[str, Any]) -> str:
    whose = "shadow " if job["shadow"] else ""
    return f"{whose}{job['kind']} {job['pipeline']} {job['state']}"


def wanted_of(asked: Mapping[str, str]) -> Wanted:
    """Raises HTTPException 400 in words for a value that cannot be."""
    given = {key: value for key in WHERE if (value := asked.get(key))}
    for key, value in given.items():
        if key in ONE_OF and value not in ONE_OF[key]:
            raise HTTPException(400, f"{key} is one of {', '.join(ONE_OF[key])}, not {value[:20]!a}")
        if key == "patient":
            if not HASHES.fullmatch(value):
                raise HTTPException(400, "patient is what POST /api/patient answers: no name, and no number")
        elif len(value) > LONGEST_TEXT or not value.isprintable():
            raise HTTPException(400, f"{key} is a text of at most {LONGEST_TEXT} characters")
    return Wanted(
        text=given.get("q", "").strip(),
        **{key: given.get(key, "") for key in PLAIN_WORDS},
        min_mm=_mm(given.get("min_mm", "0")),
        trouble="trouble" in given,
        since=day_or_time("since", given.get("since")),
        before=day_or_time("before", given.get("before")),
        sort=given.get("sort", "newest"),
    )


def _mm(text: str) -> float:
    try:
        mm = float(text)
    except ValueError:
        mm = -1.0
    if not 0 <= mm <= MOST_MM:
        raise HTTPException(400, f"min_mm is a size from 0 to {MOST_MM}, in mm, not {text[:20]!a}")
    return mm
