"""A shadow route beside a live one: what both found on the same series, as a page, JSON and CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pacs_node.web.viewer import csv_of
from pacs_node.web.views import Views, day_or_time

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts

KEYS = ("route", "live", "since", "before")
COLUMNS = (
    "series_uid", "modality", "description", "first_arrival", "live_state", "shadow_state", "both", "live_alone",
    "shadow_alone", "size_differences_mm", "classes", "live_seconds", "shadow_seconds", "differs", "live_job",
    "shadow_job",
)  # fmt: skip


class ShadowViews:
    """One function per address, as in `Views`."""

    def __init__(self, facts: Facts, views: Views) -> None:
        self.facts, self.views = facts, views

    def page(self, request: Request) -> Response:
        shadows = self.facts.shadows()
        return self.views.page(
            request,
            "shadow.html",
            {"shadows": shadows, "c": self._compared(request, shadows), "asked": dict(request.query_params)},
        )

    def compared(self, request: Request) -> Response:
        shadows = self.facts.shadows()
        return JSONResponse({"shadows": shadows, "compared": self._compared(request, shadows)})

    def export(self, request: Request) -> Response:
        """Each series that both routes have done with, a line."""
        told = self._compared(request, self.facts.shadows())
        return csv_of("shadow.csv", COLUMNS, [_line(each) for each in told["each"]] if told else [])

    def _compared(self, request: Request, shadows: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The routes that are asked for; else the first shadow, beside the live route that took most of its series.
        None: there is nothing to compare. Raises HTTPException 400."""
        asked = request.query_params
        since, before = (day_or_time(key, asked.get(key) or None) for key in KEYS[2:])
        of = {each["route"]: each for each in shadows}
        route = asked.get("route") or next((name for name, each in of.items() if each["beside"]), None)
        if route is None:
            return None
        if route not in of:
            raise HTTPException(400, f"no shadow route {route[:64]!a}; there are {', '.join(of) or 'none'}")
        beside = of[route]["beside"]
        live = asked.get("live") or max(beside, key=lambda name: (beside[name], name), default=None)
        return None if live is None else self.facts.compared(route, live, since, before)


def _line(each: dict[str, Any]) -> dict[str, Any]:
    sizes = "; ".join(f"{mm:g}" for mm in each["size_differences_mm"])
    classes = "; ".join(f"{one['live']}/{one['shadow']}" for one in each["classes"])
    return {**each, "size_differences_mm": sizes, "classes": classes}
