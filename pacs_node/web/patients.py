"""Whose a series is: for who may see it, each time told to the audit trail, and in no list."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from pacs_node.web.lists import FILTER
from pacs_node.web.views import Views, for_people, once

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts

MOST_A_MINUTE = 30  # searches, and patients shown, of one user
MINUTE_S = 60.0
NO_CACHE = {"cache-control": "no-store"}  # RFC 9111 5.2.2.5


class PatientViews:
    """One function per address, as in `Views`."""

    def __init__(self, facts: Facts, views: Views, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.facts, self.views, self.monotonic = facts, views, monotonic
        self._asked: dict[str, deque[float]] = defaultdict(deque)
        self._one_at_a_time = threading.Lock()

    def search(self, request: Request) -> Response:
        """To the list of the series of a patient. The words stand in no address: proxies and browsers keep these."""
        asked = once([*request.state.form], ("patient", "query"))
        self._not_too_often(request)
        try:
            sought = self.facts.sought(asked.get("patient", ""))
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        request.state.sought = f"patient={sought}"
        if not for_people(request):
            return JSONResponse({"patient": sought}, headers=NO_CACHE)
        kept = once(parse_qsl(asked.get("query", "")), FILTER)
        return RedirectResponse(f"/?{urlencode({**kept, 'patient': sought})}", status_code=303)

    def patient(self, request: Request) -> Response:
        return JSONResponse(self._shown(request), headers=NO_CACHE)

    def page(self, request: Request) -> Response:
        shown = {"uid": request.path_params["uid"], "patient": self._shown(request)}
        return self.views.page(request, "patient.html", shown, headers=NO_CACHE)

    def _shown(self, request: Request) -> dict[str, str]:
        """Raises HTTPException 404, and 429."""
        self._not_too_often(request)
        series = self.facts.series(request.path_params["uid"])
        if series is None:
            raise HTTPException(404, "no such series")
        patient = self.facts.patient(series["series_uid"])
        if patient is None:
            raise HTTPException(404, "its images are not here, or cannot be read now")
        request.state.studies = (series["study_uid"],)
        return patient

    def _not_too_often(self, request: Request) -> None:
        """Raises HTTPException 429: who tries names one by one is slowed down, and stands in the audit trail."""
        who = request.state.who.name if request.state.who is not None else ""
        with self._one_at_a_time:
            asked, now = self._asked[who], self.monotonic()
            while asked and asked[0] <= now - MINUTE_S:
                asked.popleft()
            if len(asked) >= MOST_A_MINUTE:
                raise HTTPException(429, f"at most {MOST_A_MINUTE} patients a minute; try again in a while")
            asked.append(now)
