"""The results of many series as one ZIP file, made while it is sent; results.csv says what is in it, and what not."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from pacs_node.records import Wanted
from pacs_node.web.lists import ListViews
from pacs_node.web.views import MOST, csv_line

if TYPE_CHECKING:
    from pacs_node.web.facts import Facts

WHEN = (1980, 1, 1, 0, 0, 0)  # the least a ZIP can say: the objects name their own time
OF_SERIES = ("study_uid", "modality", "description")
COLUMNS = (
    "series_uid", *OF_SERIES, "job", "pipeline", "sop_class_uid", "sop_instance_uid", "file", "why_not",
)  # fmt: skip


class ExportViews:
    """One function per address, as in `Views`."""

    def __init__(self, facts: Facts, lists: ListViews) -> None:
        self.facts, self.lists = facts, lists

    def results(self, request: Request) -> Response:
        """Of the series that a form chose of the list. The audit trail is told of each study."""
        form = [*request.query_params.multi_items(), *request.state.form]
        chosen, _ = self.lists.chosen(request, form, ("all", "query"))
        known = self._known(chosen)
        studies = dict.fromkeys(about["study_uid"] for about in known.values() if about is not None)
        if not studies:
            raise HTTPException(404, "no such series")
        request.state.studies = tuple(studies)
        named = {"content-disposition": 'attachment; filename="results.zip"', "cache-control": "no-store"}
        return StreamingResponse(self._zip(known), media_type="application/zip", headers=named)

    def _known(self, chosen: Wanted | Sequence[str]) -> dict[str, dict[str, str] | None]:
        """Series UID -> what is said of it; None: there is no such series."""
        if isinstance(chosen, Wanted):
            return {one["series_uid"]: _about(one) for one in self.facts.series_list(MOST, chosen)}
        return {uid: one and _about(one) for uid in chosen[:MOST] for one in [self.facts.series(uid)]}

    def _zip(self, known: Mapping[str, dict[str, str] | None]) -> Iterator[bytes]:
        out, rows = _Outlet(), [csv_line(COLUMNS)]
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for uid, about in known.items():
                for row in self._rows(uid, about):
                    if not row["why_not"]:
                        content = self.facts.result_file(row["job"], f"{row['sop_instance_uid']}.dcm")
                        if content is None:
                            row["why_not"], row["file"] = "it is not here any more", ""
                        else:
                            archive.writestr(_entry(row["file"]), content)
                            yield out.taken()
                    rows.append(csv_line([row[column] for column in COLUMNS]))
            archive.writestr(_entry("results.csv"), "".join(rows))
        yield out.taken()

    def _rows(self, uid: str, about: dict[str, str] | None) -> Iterator[dict[str, str]]:
        row = {**dict.fromkeys(COLUMNS, ""), "series_uid": uid, **(about or {})}
        results = self.facts.results_of(uid) if about is not None else []
        for each in results:
            yield {**row, **each, "file": f"{uid}/{each['pipeline']}/{each['sop_instance_uid']}.dcm"}
        if not results:
            yield {**row, "why_not": "there are no results" if about is not None else "no such series"}


def _about(series: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(series.get(key) or "") for key in OF_SERIES}


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, WHEN)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


class _Outlet(io.RawIOBase):
    """What is written, until it is taken. Nobody can seek in it: the ZIP is sent as it grows."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._written.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        written, self._written = self._written, []
        return b"".join(written)
