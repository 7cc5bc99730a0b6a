"""What the pages of findings show besides the findings, and to whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from pacs_node.accounts import READER
from pacs_node.records import FEEDBACK_KINDS, RETURNED_KINDS

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts


def shown_of(facts: Facts, request: Request, series: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates of findings need, besides the series."""
    said: dict[tuple[str, int | None], list[Any]] = {}
    for each in facts.feedback_of(series["series_uid"]):
        said.setdefault((each["job"], each["finding"]), []).append(each)
    return {
        "told": told,
        "said": said,
        "kinds": FEEDBACK_KINDS,
        "words": FEEDBACK_KINDS | RETURNED_KINDS,
        "may_say": may_see_all(request),
        "hidden": bool(told.get("identity_in_pixels")) and not may_see_all(request),
        "elsewhere": facts.viewer_address(series["study_uid"], series["series_uid"]),
    }


def may_see_all(request: Request) -> bool:
    """Who may see who the patient is may also say something of the findings."""
    who = getattr(request.state, "who", None)
    return who is None or bool(who.may(READER))


def pictured(told: Mapping[str, Any]) -> list[int]:
    """The images that are shown in full: those with a finding, else the first."""
    found = {f["key_image"] for result in told["results"] for f in result["findings"]}
    return sorted(found) or [0]


def is_cine(told: Mapping[str, Any]) -> bool:
    """Whether the images are frames that can be played."""
    return told.get("kind") == "images" and any(image["frame"] is not None for image in told["images"])
