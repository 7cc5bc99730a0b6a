"""The pages and the JSON say the same facts, load nothing from elsewhere and show nothing of the patient."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pydicom
import pytest
from prometheus_client import CollectorRegistry, Counter
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from starlette.testclient import TestClient

from pacs_node.errors import LedgerUnavailable
from pacs_node.records import EVERY, Wanted
from pacs_node.web.app import create_app
from tests.results import encoded


def summary(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "series_uid": f"1.2.826.{number}",
        "study_uid": "1.2.826",
        "modality": "CT",
        "description": "Thorax 1.0 B31f",
        "sender": "CT1",
        "state": "closed",
        "instances": 85,
        "revision": 1,
        "closed_because": "85 images arrived, the sender released its association, and nothing came for 10 s",
        "first_arrival": f"2026-03-01T12:{number % 60:02}:00.123+00:00",
        "last_arrival": "2026-03-01T13:00:09.500+00:00",
        "turnaround_s": 75.3,
        "findings": 2,
        "largest_mm": 9.25,
        "jobs": [
            {
                "pipeline": "lung-nodule",
                "kind": "infer",
                "state": "done",
                "revision": 1,
                "reason": "2 findings",
                "shadow": False,
            },
            {
                "pipeline": "lung-nodule",
                "kind": "send",
                "state": "waiting",
                "revision": 1,
                "reason": "no answer",
                "shadow": False,
            },
        ],
        **changes,
    }


def job(kind: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"job-{kind}",
        "kind": kind,
        "pipeline": "lung-nodule",
        "route": "chest",
        "destination": "pacs" if kind == "send" else None,
        "revision": 1,
        "state": "done",
        "attempts": 1,
        "priority": 5,
        "shadow": False,
        "reason": "2 findings",
        "progress": 1.0,
        "progress_text": "done",
        "not_before": None,
        "created_at": "2026-03-01T13:00:20.000+00:00",
        "finished_at": "2026-03-01T13:01:00.000+00:00",
        "results": [],
        "receipts": [],
        "warnings": [],
        "facts": {},
        **changes,
    }


def whole(number: int, **changes: Any) -> dict[str, Any]:
    return {
        **summary(number),
        "calling_aes": ["ORTHANC"],
        "verdict": {
            "fit": True,
            "reason": "84 axial slices, 2.5 mm apart; 1 set aside: localizer",
            "set_aside": {"1.2.826.9.9": "localizer"},
        },
        "rules": [
            {"rule": "chest", "matched": True, "why_not": None},
            {"rule": "breast", "matched": False, "why_not": "Modality is CT, rule wants US"},
        ],
        "jobs": [
            job(
                "infer",
                warnings=["no lung found below slice 3"],
                facts={"seconds": 12.34567, "device": "cpu"},
                results=[
                    {"sop_instance_uid": "2.25.1", "sop_class_uid": SegmentationStorage},
                    {
                        "sop_instance_uid": "2.25.2",
                        "sop_class_uid": Comprehensive3DSRStorage,
                    },
                ],
            ),
            job(
                "send",
                state="waiting",
                attempts=3,
                priority=1,
                reason="pacs at 10.0.0.5:4242 does not answer",
                not_before="2026-03-01T13:05:00.000+00:00",
                finished_at=None,
                receipts=[
                    {
                        "sop_instance_uid": "2.25.1",
                        "stored": False,
                        "status": 0xA700,
                        "text": "0xA700 Out of Resources",
                        "at": "2026-03-01T13:01:05.000+00:00",
                    }
                ],
            ),
            job("infer", id="job-running", state="running", progress=0.42, progress_text="slice 36 of 85"),
        ],
        "timeline": [
            {"at": "2026-03-01T13:00:20.000+00:00", "event": "closed", "text": "revision 1: nothing came for 10 s"},
        ],
        **changes,
    }


class InMemory:
    """Facts kept in lists, for these tests only."""

    def __init__(self, *numbers: int) -> None:
        self.all = [whole(number) for number in numbers]
        self.status: dict[str, Any] = {"status": "ok", "ae_title": "AI", "dicom_port": 11112}
        self.retried: list[str] = []
        self.rerun_asked: list[str] = []
        self.wanted: list[Wanted] = []
        self.exported: list[str] = []
        self.bulk_asked: list[tuple[str, Sequence[str], str]] = []
        self.stamps = ["7-x"]
        self.readiness: dict[str, Any] = {"ready": True, "reasons": []}
        self.many_asked: list[tuple[str | None, datetime | None]] = []
        self.paused: list[dict[str, Any]] = []
        self.hurried: list[tuple[str, int]] = []
        self.dismissed: list[str] = []
        self.held_back: dict[str, Path] = {}
        self.found: dict[str, Any] = {}

    def health(self) -> dict[str, Any]:
        return self.status

    def series_list(self, limit: int, wanted: Wanted = EVERY) -> list[dict[str, Any]]:
        self.wanted.append(wanted)
        found = sorted(self._of(wanted), key=lambda s: s["first_arrival"], reverse=wanted.sort != "oldest")
        place = [s["series_uid"] for s in found].index(wanted.after) + 1 if wanted.after else 0
        return [{key: s[key] for key in summary(0)} for s in found[place : place + limit]]

    def series_count(self, wanted: Wanted) -> tuple[int, int]:
        return len(self._of(wanted)), len(self.all)

    def _of(self, wanted: Wanted) -> list[dict[str, Any]]:
        return [
            s
            for s in self.all
            if (wanted.before is None or datetime.fromisoformat(s["first_arrival"]) < wanted.before)
            and wanted.text in s["description"]
            and wanted.sender in ("", s["sender"])
        ]

    def sought(self, said: str) -> str:
        return "-".join(["0" * 32] * 3)

    def patient(self, series_uid: str) -> dict[str, str] | None:
        return {}

    def choices(self) -> dict[str, list[str]]:
        return {
            "modality": ["CT", "US"],
            "sender": ["CT1", "CT<script>"],
            "pipeline": ["lung-nodule"],
            "kind": ["Nodule"],
        }

    def series_uids(self, wanted: Wanted) -> list[str]:
        return [s["series_uid"] for s in self._of(wanted)][:1000]

    def bulk(self, do: str, series_uids: Sequence[str], by: str) -> dict[str, str | None]:
        self.bulk_asked.append((do, series_uids, by))
        return {"1.2.826.1": None, "1.2.826.2": "its results are not at pacs: no answer"}

    def stamp(self) -> str:
        return self.stamps.pop(0) if len(self.stamps) > 1 else self.stamps[0]

    def ready(self) -> dict[str, Any]:
        return self.readiness

    def system(self) -> dict[str, Any]:
        device = {"device": "cuda:1", "state": "resting", "does": "", "loaded": ["lung-nodule<script>"]}
        return {
            "version": "1.2.3",
            "python": "3.12.1",
            "database": "PostgreSQL",
            "schema": "0023",
            "started_at": "2026-03-01T13:01:05.000+00:00",
            "now": "2026-03-02T13:01:05.000+00:00",
            "clock_ahead_s": -7.25,
            "devices": [
                {**device, "held_mb": 1234, "memory_mb": 143771, "failures": 0, "failure": "", "machine": machine}
                for machine in ("", "gpu2<script>")
            ],
            "models": [
                {
                    "pipeline": "lung-nodule",
                    "algorithm": "pacs-node lung-nodule",
                    "version": "0.5.0+" + "a" * 40,
                    "weights": ["0123456789ab"] * 6,
                    "trouble": None,
                    "card": True,
                    "routes": ["chest", "r" * 64],
                }
            ],
            "disk": {
                "total_bytes": 2 * 10**12,
                "free_bytes": 15 * 10**8,
                "kept_bytes": {"images": 10**12, "aside": None},
                "full_in_days": 3.5,
            },
            "backlog": [
                {
                    "kind": "send",
                    "destination": "d" * 64,
                    "waiting": 7,
                    "running": 1,
                    "oldest_at": "x",
                    "oldest_s": 7300,
                }
            ],
            "backup": {"at": "2026-03-01T03:00:00.000+00:00", "text": "2345 files, monday"},
            "certificates": [{"what": "web", "until": "2026-03-07T13:01:05.000+00:00", "days": 5}],
            "peers": [
                {"name": "p" * 64, "received_at": None, "sent_at": "2026-03-01T13:01:05.000+00:00", "refused": 12}
            ],
        }

    def series(self, series_uid: str) -> dict[str, Any] | None:
        return next((s for s in self.all if s["series_uid"] == series_uid), None)

    def destinations(self) -> list[dict[str, Any]]:
        answer = {"transfer_syntax_uid": "1.2.840.10008.1.2.1", "at": "2026-03-01T13:01:05.000+00:00"}
        return [
            {
                "name": "pacs",
                "where": "ORTHANC at 10.0.0.5:4242",
                "segmentation": "LABELMAP",
                "omit_empty_frames": False,
                "key_objects": True,
                "key_images": "all",
                "answers": [
                    {**answer, "sop_class_uid": Comprehensive3DSRStorage, "refused": None, "asked_again_at": None},
                    {
                        **answer,
                        "sop_class_uid": SegmentationStorage,
                        "refused": "the SOP class is not supported",
                        "asked_again_at": "2026-03-02T13:01:05.000+00:00",
                    },
                ],
            },
            {
                "name": "results",
                "where": "a folder",
                "segmentation": "BINARY",
                "omit_empty_frames": True,
                "key_objects": False,
                "key_images": "none",
                "answers": [],
            },
        ]

    def audit(self, limit: int, before: str, wanted: Mapping[str, str]) -> dict[str, Any]:
        return {"kinds": [], "events": []}

    def refusals(self, limit: int, kind: str = "", sender: str = "") -> dict[str, Any]:
        refusal = {
            "at": "2026-03-01T13:01:05.000+00:00",
            "kind": "kept aside",
            "calling_ae": "CT1<script>",
            "address": "10.0.0.9",
            "sop_instance_uid": "1.2.826.5.1",
            "series_uid": "1.2.826.5",
            "reason": "other data is stored under this SOP Instance UID",
            "file": "aside/ab.cd.dcm",
        }
        count = {"number": 1700, "latest": refusal["at"], "means": "that one is used"}
        senders = [{"calling_ae": "CT1<script>", "address": "10.0.0.9", "kind": "kept aside", "number": 1700}]
        senders[0]["latest"] = refusal["at"]
        some = [] if kind not in ("", "kept aside") or sender not in ("", "CT1<script>") else [refusal]
        return {"counts": {"kept aside": count}, "senders": senders, "refusals": some * min(limit, 1000)}

    def queue(self, limit: int) -> list[dict[str, Any]]:
        plain = {"series_uid": "1.2.826.5", "pipeline": "lung-nodule", "route": "chest", "priority": 5, "turn": 3}
        job = {**plain, "job": "j", "sender": "CT1<script>", "since": "2026-03-01T13:01:05.000+00:00"}
        jobs = [
            {**job, "state": "running", "place": None, "why": "slice 36 of 85"},
            {**job, "state": "queued", "place": 1, "why": "routine, turn 3 of CT1"},
        ]
        return [{"what": "inference", "kind": "infer", "destination": None, "waiting": 7, "jobs": jobs[:limit]}]

    def pauses(self) -> list[dict[str, Any]]:
        return self.paused

    def can_pause(self) -> dict[str, list[str]]:
        return {"destination": ["pacs", "archive"], "pipeline": ["lung-nodule"], "device": ["cuda:1"]}

    def pause(self, kind: str, name: str, by: str, reason: str = "", hours: float | None = None) -> str | None:
        if name not in self.can_pause().get(kind, ()):
            return f"there is no {kind} '{name}'"
        words = f"sending to {name} is paused by {by}: {reason}"
        self.paused.append({"kind": kind, "name": name, "words": words, "hours": hours})
        return None

    def resume(self, kind: str, name: str, by: str) -> bool:
        before, self.paused = (
            self.paused,
            [each for each in self.paused if (each["kind"], each["name"]) != (kind, name)],
        )
        return len(before) != len(self.paused)

    def hurry(self, job_id: str, priority: int, by: str) -> str | None:
        self.hurried.append((job_id, priority))
        return None if job_id == "job-send" else "it does not wait: it is done"

    def inference(self) -> dict[str, Any]:
        device = {"device": "cuda:1", "state": "resting", "does": "", "held_mb": 1234, "failures": 3}
        form = {
            "network": "ResidualUNet 3f2a91bc",
            "form": "bf16 openvino",
            "on": "cpu: EPYC",
            "why_not": {"bf16": "off"},
        }
        form |= {"seconds": {"fp32": 1.5, "bf16 openvino": 0.25}, "measured_at": "2026-03-01T13:01:05+00:00"}
        return {"devices": [{**device, "failure": "the process ended<script>"}], "forms": [form]}

    def what_is(self, job_id: str) -> str:
        return f"job {job_id}"

    def retry(self, job_id: str) -> str | None:
        self.retried.append(job_id)
        return None if job_id in {job["id"] for s in self.all for job in s["jobs"]} else "no such job"

    def rerun(self, series_uid: str) -> str | None:
        self.rerun_asked.append(series_uid)
        return None if self.series(series_uid) else "no such series"

    def routes(self) -> list[str]:
        return ["chest", "breast"]

    def card(self, name: str) -> str | None:
        return "# lung-nodule <script>" if name == "lung-nodule" else None

    def pipeline(self, name: str, sender: str | None = None) -> dict[str, Any] | None:
        return None

    def earlier(self, uid: str) -> dict[str, Any]:
        raise AssertionError("there is no viewer")

    def shadows(self) -> list[dict[str, Any]]:
        return []

    def compared(
        self, route: str, live: str, since: datetime | None = None, before: datetime | None = None
    ) -> dict[str, Any]:
        raise AssertionError("there is no shadow")

    def dismiss(self, job_id: str) -> bool:
        self.dismissed.append(job_id)
        return job_id == "job-failed"

    def rerun_many(self, route: str | None, since: datetime | None) -> dict[str, str | None]:
        self.many_asked.append((route, since))
        return {"1.2.826.1": None, "1.2.826.2": "no rule matches: chest: Modality is MR, rule wants CT"}

    def rejected(self, job_id: str) -> dict[str, Path]:
        return self.held_back if job_id == "job-infer" else {}

    def findings(self, series_uid: str, wait_s: float = 0.0) -> dict[str, Any] | None:
        there = {"state": "none", "why": "there are no results yet", "results": []}
        return self.found or there if self.series(series_uid) else None

    def volume(self, series_uid: str, wait_s: float = 0.0) -> dict[str, Any] | None:
        return {"state": "refused", "why": "there is none"} if self.series(series_uid) else None

    def view_file(self, series_uid: str, name: str) -> Path | None:
        return None

    def results_of(self, series_uid: str) -> list[dict[str, str]]:
        self.exported.append(series_uid)
        return []

    def result_file(self, job_id: str, name: str) -> bytes | None:
        return None

    def viewer_address(self, study_uid: str, series_uid: str) -> str | None:
        return None

    def note_feedback(self, series_uid: str, reader: str, job: str, kind: str, *said: Any) -> str | None:
        return None if self.series(series_uid) else "no such series"

    def feedback_of(self, series_uid: str) -> list[dict[str, Any]]:
        return []

    def feedback(self) -> Iterator[dict[str, Any]]:
        yield from ()

    def feedback_counts(self) -> list[dict[str, Any]]:
        return []


@pytest.fixture
def facts() -> InMemory:
    return InMemory(*range(55))


@pytest.fixture
def web(facts: InMemory) -> TestClient:
    registry = CollectorRegistry()
    Counter("images", "Images received", registry=registry).inc(3)
    return TestClient(create_app(facts, registry, ("testserver",)))


def test_health_is_503_only_when_the_node_is_unfit(web: TestClient, facts: InMemory) -> None:
    assert (web.get("/health").status_code, web.get("/health").json()) == (200, facts.status)
    facts.status = {"status": "trouble", "reasons": ["the disk is nearly full: 1.2 GB free"]}
    assert (web.get("/health").status_code, web.get("/health").json()) == (503, facts.status)
    assert "the disk is nearly full: 1.2 GB free" in web.get("/").text
    need = {"job": "job-send", "kind": "send", "destination": "pacs", "state": "failed", "series_uid": "1.2.826.7"}
    facts.status = {"status": "degraded", "reasons": ["sending to pacs has failed for good"], "attention": [need]}
    assert (web.get("/health").status_code, web.get("/health").json()) == (200, facts.status)
    page = web.get("/").text
    assert "The node works; these jobs need you." in visible(page)
    assert 'href="/series/1.2.826.7#job-send"' in page


def test_metrics_are_what_prometheus_reads(web: TestClient) -> None:
    answer = web.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "images_total 3.0" in answer.text


def test_the_list_as_json_leads_to_older_series(web: TestClient, facts: InMemory) -> None:
    answer = web.get("/api/series", params={"limit": 20})
    seen = answer.json()
    while "next" in answer.links:
        answer = web.get(answer.links["next"]["url"])
        seen += answer.json()
    assert seen == facts.series_list(1000)
    assert len(web.get("/api/series").json()) == 50


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=0", "limit is a number from 1 to 1000, not '0'"),
        ("limit=many", "limit is a number from 1 to 1000, not 'many'"),
        ("before=noon", "before is a time such as"),
        ("before=2026-03-01T12:00:00", "before needs a time zone"),
        ("since=2026-03-32", "since is a time such as"),
        ("state=open", "state is one of receiving, closed, deleted, not 'open'"),
        ("job=done", "job is one of queued, running, waiting, refused, failed, not 'done'"),
        ("sort=size", "sort is one of newest, oldest, slowest, not 'size'"),
        ("trouble=yes", "trouble is one of 1, not 'yes'"),
        (f"q={'x' * 65}", "q is a text of at most 64 characters"),
        ("modality=C%00T", "modality is a text of at most 64 characters"),
    ],
)
def test_bad_queries_are_refused_in_words(web: TestClient, query: str, words: str) -> None:
    answer = web.get(f"/api/series?{query}")
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_zone_may_come_unescaped(web: TestClient) -> None:
    assert len(web.get("/api/series?before=2026-03-01T12:05:00+00:00").json()) == 5


def test_one_series_as_json(web: TestClient, facts: InMemory) -> None:
    assert web.get("/api/series/1.2.826.7").json() == facts.series("1.2.826.7")
    answer = web.get("/api/series/9.9.9")
    assert (answer.status_code, answer.json()) == (404, {"error": "no such series"})


def test_what_each_destination_accepted(web: TestClient, facts: InMemory) -> None:
    assert web.get("/api/destinations").json() == facts.destinations()
    page = visible(web.get("/destinations").text)
    for words in (
        "ORTHANC at 10.0.0.5:4242; Segmentation LABELMAP with empty frames; key images of all findings; Key Object",
        "Comprehensive 3D SR Explicit VR Little Endian accepted 2026-03-01 13:01:05",
        "Segmentation Explicit VR Little Endian refused the SOP class is not supported 2026-03-01 13:01:05 "
        "2026-03-02 13:01:05",
        "results a folder; Segmentation BINARY Accepts any object.",
    ):
        assert words in page, words


def test_a_pause_is_made_and_ended_by_buttons(web: TestClient, facts: InMemory) -> None:
    assert "pipeline lung-nodule" in web.get("/queue").text
    press = {"accept": "text/html", "referer": "http://testserver/queue", "origin": "http://testserver"}
    asked = {"what": "destination pacs", "reason": "<b>maintenance", "hours": " 2,5 "}
    answer = web.post("/api/pause", data=asked, headers=press, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/queue")
    assert facts.paused[0]["hours"] == 2.5
    assert facts.pauses() == web.get("/api/pauses").json()
    html = web.get("/queue").text
    assert "<b>" not in html
    assert "paused sending to pacs is paused by somebody: &lt;b&gt;maintenance Resume" in visible(html)
    assert web.post("/api/resume?what=destination+pacs").json() == {"resumed": True}
    assert web.post("/api/resume?what=destination+pacs").status_code == 409
    assert facts.paused == []


@pytest.mark.parametrize(
    "query",
    ["", "what=pacs", "what=destination+other", "what=destination+pacs&hours=long", "what=destination+pacs&by=me"],
)
def test_what_cannot_be_paused_is_not(web: TestClient, facts: InMemory, query: str) -> None:
    answer = web.post(f"/api/pause?{query}")
    assert (answer.status_code, facts.paused) == (400, [])
    assert answer.json()["error"]


def test_a_job_that_waits_is_made_more_urgent(web: TestClient, facts: InMemory) -> None:
    page = web.get("/series/1.2.826.7").text
    assert page.count('action="/api/jobs/job-send/priority"') == 1, "it is STAT already: it can be the next"
    assert "/api/jobs/job-infer/priority" not in page, "it has ended"
    assert "/api/jobs/job-running/priority" not in page
    assert web.get("/queue").text.count('action="/api/jobs/j/priority"') == 2, "next and STAT of the one that waits"
    assert web.post("/api/jobs/job-send/priority?to=next").json() == {"priority": 0}
    assert web.post("/api/jobs/job-infer/priority?to=stat").status_code == 409
    assert web.post("/api/jobs/job-send/priority?to=never").status_code == 400
    assert facts.hurried == [("job-send", 0), ("job-infer", 1)]


def test_what_was_refused_at_receipt(web: TestClient, facts: InMemory) -> None:
    assert web.get("/api/refusals?limit=3").json() == facts.refusals(3)
    assert web.get("/api/refusals?limit=x").status_code == 400
    html = web.get("/refusals").text
    assert "<script>" not in html
    for words in (
        "kept aside 1700, last 2026-03-01 13:01:05 that one is used",
        "CT1&lt;script&gt; 10.0.0.9 kept aside 1700 2026-03-01 13:01:05",
        "The newest 200",
        "10.0.0.9 1.2.826.5.1 series 1.2.826.5 other data is stored under this SOP Instance UID aside/ab.cd.dcm",
    ):
        assert words in visible(html), words
    assert web.get("/api/refusals?kind=damaged").json()["refusals"] == []
    assert len(web.get("/api/refusals?kind=kept+aside&sender=CT1%3Cscript%3E").json()["refusals"]) == 50
    for query, words in (("kind=others", "kind is one of"), ("sender=%00", "sender is an AE title")):
        assert words in web.get(f"/api/refusals?{query}").json()["error"]
    assert "from CT1&lt;script&gt;" in web.get("/refusals?sender=CT1%3Cscript%3E").text
    facts.refusals = lambda limit, kind, sender: {"counts": {}, "senders": [], "refusals": []}  # type: ignore[method-assign]
    assert "Nothing was refused." in visible(web.get("/refusals").text)


def test_who_waits_for_what(web: TestClient, facts: InMemory) -> None:
    assert web.get("/api/inference").json() == facts.inference()
    assert web.get("/api/queue?limit=1").json() == facts.queue(1)
    html = web.get("/queue").text
    assert "<script>" not in html
    assert 'href="/series/1.2.826.5#j"' in html
    for words in (
        "inference 7 waiting",
        "running lung-nodule chest CT1&lt;script&gt; 2026-03-01 13:01:05 slice 36 of 85",
        "1 lung-nodule chest CT1&lt;script&gt; 2026-03-01 13:01:05 routine, turn 3 of CT1",
        "cuda:1 resting 1234 MB 3 in a row: the process ended&lt;script&gt;",
        "ResidualUNet 3f2a91bc bf16 openvino fp32 1.5, bf16 openvino 0.25 not bf16: off 2026-03-01 13:01:05 cpu: EPYC",
    ):
        assert words in visible(html), visible(html)
    facts.queue = lambda limit: []  # type: ignore[method-assign]
    assert "Nothing runs, and nothing waits." in visible(web.get("/queue").text)


def test_retry(web: TestClient, facts: InMemory) -> None:
    assert web.post("/api/jobs/job-send/retry").json() == {"retried": True}
    assert facts.retried == ["job-send"]
    assert web.post("/api/jobs/none/retry").status_code == 409
    assert web.get("/api/jobs/job-send/retry").status_code == 405


@pytest.mark.parametrize(
    ("prefix", "origin"),
    [
        ("http://testserver", None),
        ("https://node.hospital.example/ai", None),
        ("https://node.hospital.example/ai", "https://node.hospital.example"),
        ("//evil.example", "http://testserver"),
        ("http://x", "http://testserver"),
    ],
)
def test_the_button_comes_back_to_its_page_and_never_to_another_site(
    facts: InMemory, prefix: str, origin: str | None
) -> None:
    web = TestClient(create_app(facts, CollectorRegistry(), ("testserver", "node.hospital.example")))
    headers = {"accept": "text/html,*/*", "referer": f"{prefix}/series/1.2.826.7?a=b"}
    headers |= {"origin": origin} if origin is not None else {}
    answer = web.post("/api/jobs/job-send/retry", headers=headers, follow_redirects=False)
    path = "/ai" if prefix.endswith("/ai") else ""
    assert (answer.status_code, answer.headers["location"]) == (303, f"{path}/series/1.2.826.7?a=b")


def test_a_browser_is_told_why_not_on_a_page(web: TestClient) -> None:
    answer = web.post("/api/series/none/rerun", headers={"accept": "text/html", "referer": "http://testserver/"})
    assert answer.status_code == 409
    assert "No such series" in visible(answer.text)
    assert answer.headers["content-type"].startswith("text/html")


POSTS = [
    "/api/jobs/job-send/retry",
    "/api/jobs/job-failed/dismiss",
    "/api/series/1.2.826.7/rerun",
    "/api/rerun?route=chest",
    "/api/bulk?do=retry&series=1.2.826.7&confirmed=yes",
    "/api/export?series=1.2.826.7",
    "/api/pause?what=destination+pacs",
    "/api/resume?what=destination+archive",
    "/api/jobs/job-send/priority?to=stat",
]
SENDERS = [  # headers of the one who asks -> whether the node does what is asked
    ({}, True),  # a program
    ({"origin": "http://testserver"}, True),
    ({"origin": "http://testserver", "sec-fetch-site": "same-origin"}, True),
    ({"origin": "https://node.hospital.example"}, True),  # a proxy's page, the Host put in its place by the proxy
    ({"origin": "https://node.hospital.example:8443"}, True),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "same-site"}, False),
    ({"origin": "http://evil.example"}, False),
    ({"origin": "http://testserver.evil.example"}, False),
    ({"origin": "http://testserver:81", "host": "localhost:8080"}, True),  # one of the names
    ({"origin": "http://localhost:3000", "host": "localhost:8080"}, False),  # another program's page on this machine
    ({"origin": "http://127.0.0.1:3000", "host": "127.0.0.1:8080"}, False),
    ({"origin": "null"}, False),  # of a page in a sandbox
    ({"origin": ""}, False),
    ({"origin": "http://"}, False),
    ({"origin": "http://testserver", "sec-fetch-site": "cross-site"}, False),
    ({"referer": "http://testserver/series/1.2.826.7?before=x"}, True),
    ({"referer": "https://node.hospital.example/rerun"}, True),  # a proxy's page
    ({"referer": "http://evil.example/"}, False),
    ({"referer": "http://evil.example/?http://testserver/"}, False),
    ({"referer": "http://testserver@evil.example/"}, False),
    ({"referer": "http://testserver:81/", "host": "10.0.0.9:80"}, True),
    ({"referer": "http://localhost:3000/", "host": "localhost:8080"}, False),
    ({"referer": "http://10.0.0.9:81/", "host": "10.0.0.9:80"}, False),
    ({"referer": "http://[::1"}, False),
    ({"referer": "/series/1.2.826.7"}, False),
    ({"referer": "about:blank"}, False),
    ({"referer": ""}, False),
    ({"origin": "http://testserver", "referer": "http://evil.example/"}, True),  # Origin cannot be left out by a page
    ({"origin": "http://evil.example", "referer": "http://testserver/"}, False),
]


SETTINGS = ("/peers", "/routes", "/notices", "/settings")


@pytest.mark.parametrize("address", POSTS)
@pytest.mark.parametrize(("headers", "done"), SENDERS)
def test_only_a_page_of_ours_presses_a_button(
    facts: InMemory, address: str, headers: dict[str, str], done: bool
) -> None:
    web = TestClient(create_app(facts, CollectorRegistry(), ("testserver", "node.hospital.example")))
    if address.startswith("/api/resume"):
        facts.pause("destination", "archive", "ada")
    assert web.post(address, headers=headers).status_code == (200 if done else 403)
    if address.startswith("/api/resume"):
        assert bool(facts.paused) is not done
        return
    asked = [
        *facts.paused,
        *facts.hurried,
        *facts.retried,
        *facts.rerun_asked,
        *facts.many_asked,
        *facts.dismissed,
        *facts.bulk_asked,
        *facts.exported,
    ]
    assert bool(asked) is done


def test_every_post_is_among_those_tried(web: TestClient) -> None:
    routes = [route for route in web.app.routes if "POST" in (getattr(route, "methods", None) or ())]
    # see test_accounts.py, test_viewer.py, test_languages.py and test_patients.py
    elsewhere = ("/api/patient", "/login", "/logout", "/language", "/api/series/{uid}/feedback")
    routes = [route for route in routes if route.path not in elsewhere]
    routes = [route for route in routes if not route.path.startswith(SETTINGS)]  # see test_settings_pages.py
    assert len(routes) == len(POSTS)
    assert all(any(route.path_regex.match(post.partition("?")[0]) for post in POSTS) for route in routes)


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("LOCALHOST:8080", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("10.0.0.9:8080", True),  # an address leads nowhere else: only a name can be bound anew
        ("node.hospital.example", True),
        ("Node.Hospital.Example.:8443", True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("localhost.evil.example", False),
        ("node.hospital.example.evil.example", False),
        ("127.0.0.1.nip.io:8080", False),
        ("127.1", False),
        ("localhost@evil.example", False),
        ("evil.example/localhost", False),
        ("evil.example#localhost", False),
        ("localhost:port", False),
        ("[::1", False),
        (":8080", False),
        ("", False),
    ],
)
def test_the_node_answers_to_its_own_names_only(facts: InMemory, host: str, served: bool) -> None:
    """DNS rebinding: a stranger's name that is made to lead to the node is, to a browser, the site of that stranger."""
    web = TestClient(create_app(facts, CollectorRegistry(), ("0.0.0.0", "Node.hospital.example")))
    for address in ("/", "/health", "/metrics", "/api/series", "/api/series/1.2.826.7", "/static/style.css"):
        answer = web.get(address, headers={"host": host})
        assert answer.status_code == (200 if served else 421), address
        assert served or "add it to web_names" in answer.json()["error"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert web.post("/api/series/1.2.826.7/rerun", headers={"host": host}).status_code == (200 if served else 421)


def addresses(web: TestClient) -> list[tuple[str, str]]:
    """Method and address of everything the application answers, with values that exist in the place of its names."""
    values = {"id": "job-infer", "name": "01-SEG.dcm"}
    found = []
    for route in web.app.routes:
        for method in getattr(route, "methods", None) or ():
            uid = {"uid": "1.2.826.7"}
            found.append((method, re.sub(r"{(\w+)}", lambda name, uid=uid: (values | uid)[name[1]], route.path)))
    assert len(found) > 15
    return found


@pytest.mark.parametrize("secure", [False, True])
def test_every_answer_has_the_headers_that_keep_a_browser_in(facts: InMemory, secure: bool) -> None:
    app = create_app(facts, CollectorRegistry(), ("testserver",), secure=secure)
    web = TestClient(app, follow_redirects=False, raise_server_exceptions=False)  # those that nobody foresaw, too
    strangers = {"host": "evil.example"}, {"origin": "https://evil.example"}, {}
    for method, address in [*addresses(web), ("GET", "/nosuch"), ("GET", "/static/style.css"), ("PUT", "/")]:
        for headers in strangers:
            said = web.request(method, address, headers=headers).headers
            assert said["content-security-policy"].startswith("default-src 'self'; frame-ancestors 'none'")
            assert said["x-content-type-options"] == "nosniff"
            assert said["referrer-policy"] == "same-origin"
            for each in ("camera", "microphone", "geolocation", "usb"):
                assert f"{each}=()" in said["permissions-policy"]
            assert said.get("strict-transport-security") == ("max-age=2592000" if secure else None), address


def test_unknown_and_repeated_query_keys_are_refused_everywhere(web: TestClient) -> None:
    for method, address in addresses(web):
        for query in ("nosuch=1", "Limit=3", "limit", "%00=1", "before%20=1", "%ff", "limit=1&limit=2", "=", "a[]=1"):
            if query == "limit" and address == "/api/series":
                continue  # an empty value of a key that parses as none
            answer = web.request(method, f"{address}?{query}")
            assert answer.status_code == 400 or query == "=", (method, address, query)
            if method != "HEAD" and answer.status_code == 400:
                words = answer.json()["error"] if address.startswith("/api/") else visible(answer.text)
                assert re.search("query key|given twice|limit is a number|Query key", words), words


ODD = [
    "", " ", "0", "-1", "00", "1e3", "1.5", "nan", "inf", "null", "true", "9" * 30, "9" * 5000, "²", "٣", "%00",
    "a%00b", "%ff%fe", "%F0%9F%92%A9", "..", "../..", "..%2f..%2fetc%2fpasswd", "%5c..%5c", "'", '"', "' OR 1=1 --",
    "<script>alert(1)</script>", "{{7*7}}", "%25s%25n", "%0d%0aX: y", "2026-13-01", "2026-02-30", "0000-01-01",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-03-01T12:00:00", "2026-W10-7T00:00Z",
    "2026-03-01T12:00:00+99:00", "2026-03-01T12:00:00.1234567890123+00:00", "20260301", "now", "-" * 300,
    "1.2.826.7" * 40,
]  # fmt: skip


def test_no_odd_value_brings_an_address_down(facts: InMemory) -> None:
    registry = CollectorRegistry()
    web = TestClient(create_app(facts, registry, ("testserver",)), raise_server_exceptions=False)
    for odd in ODD:
        for key in ("limit", "before"):
            assert web.get(f"/api/series?{key}={odd}").status_code in (200, 400), (key, odd)
        assert web.get(f"/?before={odd}").status_code in (200, 400), odd
        for address in (f"/api/rerun?since={odd}", f"/api/rerun?route={odd}"):
            assert web.post(address).status_code in (200, 400), odd
        assert web.post("/api/rerun", content=f"since={odd}").status_code in (200, 400), odd
        for path in (
            "/series/{}",
            "/api/series/{}",
            "/api/jobs/{}/rejected",
            "/api/jobs/job-infer/rejected/{}",
            "/static/{}",
        ):
            assert web.get(path.format(odd)).status_code in (200, 307, 400, 404, 405), (path, odd)
        for path in ("/api/series/{}/rerun", "/api/jobs/{}/retry", "/api/jobs/{}/dismiss"):
            assert web.post(path.format(odd)).status_code in (400, 404, 405, 409), (path, odd)
    assert facts.retried == [] or all(re.fullmatch(r"[!-~]+", asked) for asked in facts.retried)


def test_a_database_that_is_away_is_said(web: TestClient, facts: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Any:
        raise LedgerUnavailable("/var/lib/pacs-node/node.sqlite does not answer")

    for name in (
        "series",
        "series_list",
        "series_count",
        *("shadows", "compared", "pipeline", "earlier"),
        "choices",
        "bulk",
        "system",
        "destinations",
        "retry",
        "rerun",
        "rerun_many",
        "dismiss",
        "rejected",
        "refusals",
        *("queue", "pauses", "can_pause", "pause", "resume", "hurry"),
        "inference",
        "findings",
        "volume",
        "view_file",
        *("result_file", "results_of"),
        "feedback",
        "feedback_counts",
        "card",
    ):
        monkeypatch.setattr(facts, name, away)
    for method, address in addresses(web):
        if address in ("/health", "/ready", "/metrics", "/rerun", "/login", "/logout", "/language", "/api/patient"):
            continue
        queries = {
            "/api/rerun": "?route=chest",
            "/api/bulk": "?do=retry&series=1.2&confirmed=yes",
            "/api/export": "?series=1.2",
        }
        query = (queries | {"/api/jobs/job-infer/priority": "?to=stat"}).get(address, "")
        if address in ("/audit", "/api/audit") or address.startswith("/oidc/"):  # they ask it nothing
            continue
        if address in ("/api/series.csv", "/api/changes"):  # it has begun to answer when it asks
            continue
        answer = web.request(method, address + query)
        assert answer.status_code == 503, address
        assert "/var/lib" not in answer.text


def test_run_again(web: TestClient, facts: InMemory) -> None:
    assert web.post("/api/series/1.2.826.7/rerun").json() == {"rerun": True}
    answer = web.post("/api/series/none/rerun")
    assert (answer.status_code, answer.json()) == (409, {"error": "no such series"})
    assert facts.rerun_asked == ["1.2.826.7", "none"]


def test_run_many_again(web: TestClient, facts: InMemory) -> None:
    why_not = "no rule matches: chest: Modality is MR, rule wants CT"
    answer = web.post("/api/rerun", params={"since": "2026-03-01", "route": "chest"})
    assert answer.json() == {"rerun": ["1.2.826.1"], "not": {"1.2.826.2": why_not}}
    assert web.post("/api/rerun", params={"since": "2026-03-01T12:00:00+02:00"}).status_code == 200
    form = {"accept": "text/html", "content-type": "application/x-www-form-urlencoded"}
    page = visible(web.post("/api/rerun", content="route=breast&since=", headers=form).text)
    assert "1 series will run again" in page
    assert f"1.2.826.2 {why_not}" in page
    day, noon = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert facts.many_asked == [("chest", day), (None, noon), ("breast", None)]
    for query, words in (
        ("", "name a route, or since when"),
        ("route=chst", "no route 'chst'; there are chest, breast"),
        ("since=yesterday", "since is a time such as"),
        ("since=2026-03-01T12:00:00", "since needs a time zone"),
        ("until=2026-03-01", "no query key 'until' here; there are route, since"),
    ):
        answer = web.post(f"/api/rerun?{query}")
        assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text
    assert "<option>breast</option>" in web.get("/rerun").text


def test_a_failed_job_can_be_dismissed(web: TestClient, facts: InMemory) -> None:
    assert web.post("/api/jobs/job-failed/dismiss").json() == {"dismissed": True}
    assert web.post("/api/jobs/job-send/dismiss").status_code == 409
    facts.all[7]["jobs"] = [job("send", state="failed"), job("infer", state="refused")]
    assert re.findall(r'action="([^"]+/dismiss)"', web.get("/series/1.2.826.7").text) == ["/api/jobs/job-send/dismiss"]


def test_the_button_to_run_again_is_there_when_nothing_runs(web: TestClient, facts: InMemory) -> None:
    assert "/rerun" not in web.get("/series/1.2.826.7").text  # a job of it is running
    facts.all[7]["jobs"] = [job("infer")]
    assert 'action="/api/series/1.2.826.7/rerun"' in web.get("/series/1.2.826.7").text
    facts.all[7]["jobs"] = []  # no rule matched; the rules may be others now
    for rules in ([], [{"rule": "chest", "matched": False, "why_not": "Modality is MR, rule wants CT"}]):
        facts.all[7]["rules"] = rules
        assert 'action="/api/series/1.2.826.7/rerun"' in web.get("/series/1.2.826.7").text
    facts.all[7]["state"] = "receiving"
    assert "/rerun" not in web.get("/series/1.2.826.7").text


def test_a_held_back_object_can_be_had_without_the_patient(web: TestClient, facts: InMemory, tmp_path: Path) -> None:
    (segmentation, _) = encoded("ct_two")[1]
    segmentation.save_as(tmp_path / "01-SEG.dcm", enforce_file_format=True)
    facts.held_back = {"01-SEG.dcm": tmp_path / "01-SEG.dcm"}
    facts.all[7]["jobs"][0]["edition"] = {"revision": 2, "replaces": ["1.2.3", "1.2.4"]}
    assert "Revision 2 of the results, in place of 2 earlier objects" in visible(web.get("/series/1.2.826.7").text)
    assert "/api/jobs/job-infer/rejected/01-SEG.dcm" in web.get("/series/1.2.826.7").text
    assert web.get("/api/jobs/job-infer/rejected").json() == ["01-SEG.dcm"]
    answer = web.get("/api/jobs/job-infer/rejected/01-SEG.dcm")
    handed = pydicom.dcmread(BytesIO(answer.content))
    assert handed.PixelData == segmentation.PixelData
    assert handed.SOPInstanceUID == segmentation.SOPInstanceUID
    for secret in (segmentation.PatientName, segmentation.PatientID, segmentation.AccessionNumber):
        assert str(secret)
        assert str(secret).encode() not in answer.content
    assert web.get("/api/jobs/job-infer/rejected/02-SR.dcm").status_code == 404
    assert web.get("/api/jobs/other/rejected/01-SEG.dcm").status_code == 404


def visible(html: str) -> str:
    """What a reader sees, with single spaces."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_list_page(web: TestClient) -> None:
    html = web.get("/").text
    assert len(re.findall(r'href="/series/', html)) == 50
    assert 'href="/series/1.2.826.54"' in html
    for words in (
        "2026-03-01 12:54:00",
        "Thorax 1.0 B31f",
        "lung-nodule · 2 findings",
        "send · waiting",
        "nothing came for 10 s",
    ):
        assert words in visible(html), words
    (earlier,) = re.findall(r'href="(/\?after=[^"]+)"', html)
    rest = web.get(earlier).text
    assert re.findall(r'href="/series/([\d.]+)"', rest) == [f"1.2.826.{n}" for n in (4, 3, 2, 1, 0)]
    assert "after=" not in rest
    for words in ("55 series", "CT1", "1 min 15 s", "lung-nodule · 2 findings"):
        assert words in visible(html), words


def test_the_list_keeps_its_filter_from_page_to_page(web: TestClient, facts: InMemory) -> None:
    asked = "q=Thorax&modality=CT&sender=CT1&state=closed&job=failed&trouble=1&since=2026-01-01&before=2026-03-02"
    html = web.get(f"/?{asked}&sort=oldest&pipeline=lung-nodule&findings=with&kind=Nodule&min_mm=8.5").text
    day = datetime(2026, 3, 2, tzinfo=UTC)
    wanted = Wanted("Thorax", "CT", "CT1", "closed", "lung-nodule", "failed", True, day.replace(month=1, day=1), day)
    wanted = replace(wanted, sort="oldest", findings="with", kind="Nodule", min_mm=8.5)
    assert facts.wanted == [wanted]
    (onward,) = re.findall(r'href="(/\?[^"]*after=[^"]+)"', html)
    web.get(onward.replace("&amp;", "&"))
    assert facts.wanted[1] == replace(wanted, after="1.2.826.49")
    assert "55 of 55 series" in visible(html)
    for shown in ('value="Thorax"', "<option selected>CT</option>", "<option selected>closed</option>", "checked",
                  "<option selected>with</option>", "<option selected>Nodule</option>", 'value="8.5"'):  # fmt: skip
        assert shown in html, shown
    assert "CT&lt;script&gt;" in html
    assert 'http-equiv="refresh"' not in web.get(onward.replace("&amp;", "&")).text


def test_the_list_says_what_was_found_in_all_its_forms(web: TestClient, facts: InMemory) -> None:
    facts.all = [{**whole(1), "findings": 3, "largest_mm": 9.25}, {**whole(2), "findings": 0, "largest_mm": None}]
    facts.all.append({**whole(3), "findings": None, "largest_mm": None})
    cells = re.findall(r'data-label="Findings">(.*?)</td>', web.get("/?sort=oldest").text)
    assert [" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in cells] == ["3 9.2 mm", "0", ""]
    rows = list(csv.DictReader(StringIO(web.get("/api/series.csv?sort=oldest").text)))
    assert [(row["findings"], row["largest_mm"]) for row in rows] == [("3", "9.25"), ("0", ""), ("", "")]
    assert [each["findings"] for each in web.get("/api/series?sort=oldest").json()] == [3, 0, None]
    for wrong in ("min_mm=-1", "min_mm=nan", "min_mm=inf", "min_mm=large", "findings=some"):
        assert web.get(f"/api/series?{wrong}").status_code == 400, wrong


def test_the_card_of_a_model_is_shown_as_it_is_written(web: TestClient) -> None:
    assert 'href="/pipelines/lung-nodule/card"' in web.get("/system").text
    page = web.get("/pipelines/lung-nodule/card").text
    assert "# lung-nodule &lt;script&gt;" in page
    assert "<script>" not in page
    assert web.get("/pipelines/no-such/card").status_code == 404


def test_nothing_found_is_said(web: TestClient) -> None:
    page = visible(web.get("/?q=nowhere").text)
    assert "0 of 55 series" in page
    assert "None of the 55 series is one of these." in page


def test_many_series_are_chosen_confirmed_and_done(web: TestClient, facts: InMemory) -> None:
    browser = {"accept": "text/html", "content-type": "application/x-www-form-urlencoded"}
    query = "q=Thorax&trouble=1"
    chosen = "do=delete&series=1.2.826.1&series=1.2.826.2&query=" + quote(query)
    page = web.post("/api/bulk", content=chosen, headers=browser).text
    assert "2 series" in visible(page)
    assert "proven to have arrived" in visible(page)
    assert facts.bulk_asked == [], "not before it is confirmed"
    fields = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page)
    sent = urlencode([(name, unescape(value)) for name, value in fields])
    done = web.post("/api/bulk", content=sent, headers=browser).text
    assert "Delete images and results here: 1 series" in visible(done)
    assert "1.2.826.2 its results are not at pacs: no answer" in visible(done)
    assert f'href="/?{query.replace("&", "&amp;")}"' in done
    whole = web.post("/api/bulk", content=f"do=rerun&all=1&query={quote(query)}", headers=browser).text
    assert "55 series" in visible(whole)
    web.post("/api/bulk", params={"do": "rerun", "all": "1", "confirmed": "yes", "query": query})
    assert facts.bulk_asked[0] == ("delete", ["1.2.826.1", "1.2.826.2"], "somebody")
    assert facts.bulk_asked[1] == ("rerun", [s["series_uid"] for s in facts.all], "somebody")


@pytest.mark.parametrize("chosen", ["all=1&query=", "all=1&query=q%3DThorax", "all=1&query=before%3D2026-04-01"])
@pytest.mark.parametrize("do", ["retry", "rerun", "delete"])
@pytest.mark.parametrize("meanwhile", ["nothing", "one comes", "one goes", "one goes and another is found"])
def test_what_was_confirmed_is_done_and_nothing_else(
    web: TestClient, facts: InMemory, do: str, chosen: str, meanwhile: str
) -> None:
    browser = {"accept": "text/html", "content-type": "application/x-www-form-urlencoded"}
    facts.all = facts.all[:5]
    before = [s["series_uid"] for s in facts.all]

    def form(page: str) -> str:
        fields = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page)
        return urlencode([(name, unescape(value)) for name, value in fields])

    page = web.post("/api/bulk", content=f"do={do}&{chosen}", headers=browser).text
    assert "Yes, 5 series" in page
    if meanwhile == "one comes":
        now = (datetime.now(UTC) + timedelta(seconds=1)).isoformat(timespec="milliseconds")
        facts.all.append(whole(90, first_arrival=now))
    elif meanwhile != "nothing":
        facts.all.pop(2)
    if meanwhile.endswith("is found"):  # it was here, and has become one of those that the list is of
        facts.all.append(whole(91))
    answer = web.post("/api/bulk", content=form(page), headers=browser)
    if meanwhile in ("nothing", "one comes"):
        assert facts.bulk_asked == [(do, before, "somebody")]
        return
    number = len(facts.all)
    assert (answer.status_code, facts.bulk_asked) == (409, [])
    assert "Nothing was done" in answer.text
    assert f"Yes, {number} series" in answer.text
    assert web.post("/api/bulk", content=form(answer.text), headers=browser).status_code == 200
    assert facts.bulk_asked == [(do, [s["series_uid"] for s in facts.all], "somebody")]


def test_a_page_never_skips_its_question_and_a_program_may_bind_what_it_means(web: TestClient, facts: InMemory) -> None:
    confirmed = {"do": "rerun", "all": "1", "confirmed": "yes", "query": ""}
    page = web.post("/api/bulk", params=confirmed, headers={"accept": "text/html"})
    assert (page.status_code, facts.bulk_asked) == (200, [])
    answer = web.post("/api/bulk", params={**confirmed, "agreed": "0" * 32})
    assert (answer.status_code, facts.bulk_asked) == (409, [])
    assert "nothing was done" in answer.json()["error"]
    assert web.post("/api/bulk", params={**confirmed, "until": "soon"}).status_code == 400


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "do is one of retry, rerun, delete, not ''"),
        ("do=destroy", "do is one of retry, rerun, delete, not 'destroy'"),
        ("do=retry", "choose at least one series"),
        ("do=retry&series=a%20b", "series is a Series Instance UID"),
        ("do=retry&series=1.2", "say confirmed=yes"),
        ("do=retry&all=1&query=nosuch%3D1", "no query key 'nosuch' here"),
        ("do=retry&all=1&query=sort%3Dsize", "sort is one of"),
    ],
)
def test_what_cannot_be_done_with_many_is_said(web: TestClient, facts: InMemory, query: str, words: str) -> None:
    answer = web.post(f"/api/bulk?{query}")
    assert (answer.status_code, facts.bulk_asked) == (400, [])
    assert words in answer.json()["error"]


def test_the_list_as_a_table_is_whole_and_calculates_nothing(web: TestClient, facts: InMemory) -> None:
    facts.all[3]["description"] = '=HYPERLINK("http://evil.example")'
    facts.all[4]["description"] = 'Thorax, "1.0"'
    answer = web.get("/api/series.csv?sort=oldest")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(StringIO(answer.text)))
    assert [row["series_uid"] for row in rows] == [f"1.2.826.{number}" for number in range(55)]
    assert rows[3]["description"] == '\'=HYPERLINK("http://evil.example")'
    assert rows[4]["description"] == 'Thorax, "1.0"'
    assert rows[4]["turnaround_s"] == "75.3"
    assert rows[4]["jobs"] == "infer lung-nodule done; send lung-nodule waiting; infer lung-nodule running"


def test_the_system_page(web: TestClient, facts: InMemory) -> None:
    assert web.get("/api/system").json() == facts.system()
    html = web.get("/system").text
    assert "<script>" not in html
    for words in (
        "1.2.3, Python 3.12.1, PostgreSQL at schema 0023",
        "the database is 7.2 s behind synchronise the clocks",
        "1.5 GB of 2.0 TB free; full in 3.5 days",
        "images 1.0 TB, aside not measured yet",
        "2026-03-01 03:00:00 2345 files, monday",
        "good until 2026-03-07 13:01:05 5 days",
        "lung-nodule&lt;script&gt; 1234 MB 143771 MB",
        "pacs-node lung-nodule 0.5.0+",
        "7 1 2 h 1 min",
    ):
        assert words in visible(html), visible(html)


def test_a_browser_is_told_as_soon_as_something_changes(web: TestClient, facts: InMemory) -> None:
    answer = web.get("/api/changes")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == "retry: 1000\nid: 7-x\nevent: same\ndata: same\n\n"
    facts.stamps = ["7-x", "7-x", "8-x"]
    assert "id: 8-x\nevent: changed\n" in web.get("/api/changes", headers={"last-event-id": "7-x"}).text


def test_nothing_is_told_where_nothing_changes(
    web: TestClient, facts: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.web.live.ANSWERED_AFTER_S", 0.5)
    assert "event: same\n" in web.get("/api/changes", headers={"last-event-id": "7-x"}).text


def test_ready_is_503_until_it_is(web: TestClient, facts: InMemory) -> None:
    assert (web.get("/ready").status_code, web.get("/ready").json()) == (200, facts.readiness)
    facts.readiness = {"ready": False, "reasons": ["the node is stopping"]}
    assert (web.get("/ready").status_code, web.get("/ready").json()) == (503, facts.readiness)


def test_the_list_page_before_anything_came() -> None:
    web = TestClient(create_app(InMemory(), CollectorRegistry(), ("testserver",)))
    assert "No series has arrived yet. Send one with C-STORE to AI, port 11112." in visible(web.get("/").text)


def test_the_series_page_tells_the_whole_story(web: TestClient) -> None:
    html = web.get("/series/1.2.826.7").text
    for words in (
        "1.2.826.7",
        "ORTHANC",
        "85 images arrived, the sender released its association, and nothing came for 10 s",
        "84 axial slices, 2.5 mm apart; 1 set aside: localizer",
        "localizer 1.2.826.9.9",
        "matches chest",
        "no match breast Modality is CT, rule wants US",
        "2 findings",
        "no lung found below slice 3",
        "Segmentation 2.25.1",
        "Comprehensive 3D SR 2.25.2",
        "Send to pacs STAT",
        "pacs at 10.0.0.5:4242 does not answer",
        "3 attempts, created 2026-03-01 13:00:20, next try 2026-03-01 13:05:00",
        "not stored 0xA700 Out of Resources 2.25.1",
        "42 % slice 36 of 85",
        "seconds 12.35",
        "device cpu",
        "2026-03-01 13:00:20 closed revision 1: nothing came for 10 s",
    ):
        assert words in visible(html), words
    assert re.findall(r'action="/api/jobs/([^/]+)/retry"', html) == ["job-send", "job-running"]


def test_the_series_page_says_what_arrived_and_how(web: TestClient, facts: InMemory) -> None:
    words = {True: "arrived: storage commitment", False: "not there: C-FIND does not find it", None: "not proven: why"}
    arrivals = [
        {"sop_instance_uid": f"2.25.{n}", "arrived": arrived, "how": "", "text": text, "at": None}
        for n, (arrived, text) in enumerate(words.items())
    ]
    facts.all[7]["jobs"] = [
        job("confirm", destination="pacs", arrivals=arrivals),
        job("report", destination="CT1", pipeline="storage commitment"),
    ]
    facts.all[54]["jobs"] = [
        {
            "pipeline": "lung-nodule",
            "kind": "confirm",
            "state": "done",
            "revision": 1,
            "reason": "arrived",
            "shadow": False,
        }
    ]
    html = web.get("/series/1.2.826.7").text
    for text in (
        "Did it arrive at pacs?",
        "Storage commitment for CT1",
        "arrived storage commitment 2.25.0",
        "not there C-FIND does not find it 2.25.1",
        "not proven why 2.25.2",
    ):
        assert text in visible(html), text
    assert [*re.findall(r'pill (good|bad|warn)">(?:arrived|not)', html)] == ["good", "bad", "warn"]
    assert "confirm · done" in visible(web.get("/").text)


def test_pages_renew_themselves_while_something_happens(web: TestClient, facts: InMemory) -> None:
    assert 'http-equiv="refresh"' in web.get("/series/1.2.826.7").text
    facts.all[7]["jobs"] = [job("infer")]
    assert 'http-equiv="refresh"' not in web.get("/series/1.2.826.7").text


def test_a_series_that_has_just_begun(web: TestClient, facts: InMemory) -> None:
    facts.all[7] |= {
        "state": "receiving",
        "closed_because": None,
        "verdict": None,
        "rules": [],
        "jobs": [],
        "timeline": [],
    }
    facts.all[7] |= {"modality": None, "description": None}
    text = visible(web.get("/series/1.2.826.7").text)
    for words in (
        "without description",
        "still receiving",
        "not judged yet",
        "No rule has been asked yet.",
        "None yet.",
    ):
        assert words in text


def test_unknown_pages(web: TestClient) -> None:
    for address in ("/series/9.9", "/nowhere"):
        answer = web.get(address)
        assert answer.status_code == 404
        assert "All series" in answer.text


@pytest.mark.parametrize("address", ["/", "/series/1.2.826.7", "/series/9.9", "/system", "/refusals", "/queue"])
def test_pages_load_nothing_from_elsewhere_and_say_what_they_are_for(web: TestClient, address: str) -> None:
    answer = web.get(address)
    assert "Research use only, not for diagnostic use." in answer.text
    assert not re.findall(r'(?:src|href)="(?![/#])[^"]*"', answer.text)
    ours = '<script src="/static/live.js" defer></script>'  # pages do without it
    assert not re.search(r"<script|\sstyle=|\son\w+=", answer.text.replace(ours, ""))
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    for path in re.findall(r'"(/static/[^"]+)"', answer.text):
        assert web.get(path).status_code == 200
    for file in ("style.css", "live.js"):
        assert not re.search(r"url\(|@import|https?:", web.get(f"/static/{file}").text)


def test_text_from_the_network_is_text_on_the_page(web: TestClient, facts: InMemory) -> None:
    facts.all[54]["description"] = "<script>alert(1)</script>"
    for address in ("/", "/series/1.2.826.54"):
        assert "<script>" not in web.get(address).text
        assert "&lt;script&gt;" in web.get(address).text
