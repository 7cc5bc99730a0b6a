"""The pages and the JSON say the same facts, load nothing from elsewhere and show nothing of the patient."""

from __future__ import annotations

import re
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from prometheus_client import CollectorRegistry, Counter
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from starlette.testclient import TestClient

from pacs_node.web.app import create_app
from tests.results import encoded


def summary(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "series_uid": f"1.2.826.{number}",
        "study_uid": "1.2.826",
        "modality": "CT",
        "description": "Thorax 1.0 B31f",
        "state": "closed",
        "instances": 85,
        "revision": 1,
        "closed_because": "85 images arrived, the sender released its association, and nothing came for 10 s",
        "first_arrival": f"2026-03-01T12:{number % 60:02}:00.123+00:00",
        "last_arrival": "2026-03-01T13:00:09.500+00:00",
        "jobs": [
            {"pipeline": "lung-nodule", "kind": "infer", "state": "done", "revision": 1},
            {"pipeline": "lung-nodule", "kind": "send", "state": "waiting", "revision": 1},
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
                    {"sop_instance_uid": "2.25.1", "sop_class_uid": SegmentationStorage, "path": "/r/1.dcm"},
                    {
                        "sop_instance_uid": "2.25.2",
                        "sop_class_uid": Comprehensive3DSRStorage,
                        "path": "/r/2.dcm",
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
        self.held_back: dict[str, Path] = {}

    def health(self) -> dict[str, Any]:
        return self.status

    def series_list(self, limit: int, before: datetime | None = None) -> list[dict[str, Any]]:
        latest = sorted(self.all, key=lambda s: s["first_arrival"], reverse=True)
        early = [s for s in latest if before is None or datetime.fromisoformat(s["first_arrival"]) < before]
        return [{key: s[key] for key in summary(0)} for s in early[:limit]]

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

    def refusals(self, limit: int) -> dict[str, Any]:
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
        return {"counts": {"kept aside": count}, "refusals": [refusal] * min(limit, 1000)}

    def retry(self, job_id: str) -> bool:
        self.retried.append(job_id)
        return job_id in {job["id"] for s in self.all for job in s["jobs"]}

    def rerun(self, series_uid: str) -> str | None:
        self.rerun_asked.append(series_uid)
        return None if self.series(series_uid) else "no such series"

    def rejected(self, job_id: str) -> dict[str, Path]:
        return self.held_back if job_id == "job-infer" else {}


@pytest.fixture
def facts() -> InMemory:
    return InMemory(*range(55))


@pytest.fixture
def web(facts: InMemory) -> TestClient:
    registry = CollectorRegistry()
    Counter("images", "Images received", registry=registry).inc(3)
    return TestClient(create_app(facts, registry))


def test_health_is_503_when_something_is_wrong(web: TestClient, facts: InMemory) -> None:
    assert (web.get("/health").status_code, web.get("/health").json()) == (200, facts.status)
    facts.status = {"status": "bad", "reasons": ["the disk is nearly full: 1.2 GB free"]}
    assert (web.get("/health").status_code, web.get("/health").json()) == (503, facts.status)
    assert "the disk is nearly full: 1.2 GB free" in web.get("/").text


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
        ("before=2026-03-01", "before needs a time zone"),
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
        "results a folder; Segmentation BINARY Takes everything.",
    ):
        assert words in page, words


def test_what_was_refused_at_receipt(web: TestClient, facts: InMemory) -> None:
    assert web.get("/api/refusals?limit=3").json() == facts.refusals(3)
    assert web.get("/api/refusals?limit=x").status_code == 400
    html = web.get("/refusals").text
    assert "<script>" not in html
    for words in (
        "kept aside 1700, last 2026-03-01 13:01:05 that one is used",
        "The newest 200",
        "10.0.0.9 1.2.826.5.1 series 1.2.826.5 other data is stored under this SOP Instance UID aside/ab.cd.dcm",
    ):
        assert words in visible(html), words
    facts.refusals = lambda limit: {"counts": {}, "refusals": []}  # type: ignore[method-assign]
    assert "Nothing was refused." in visible(web.get("/refusals").text)


def test_retry(web: TestClient, facts: InMemory) -> None:
    assert web.post("/api/jobs/job-send/retry").json() == {"retried": True}
    assert facts.retried == ["job-send"]
    assert web.post("/api/jobs/none/retry").status_code == 409
    assert web.get("/api/jobs/job-send/retry").status_code == 405


def test_the_button_comes_back_to_its_page(web: TestClient) -> None:
    page = "http://testserver/series/1.2.826.7"
    answer = web.post(
        "/api/jobs/job-send/retry", headers={"accept": "text/html", "referer": page}, follow_redirects=False
    )
    assert (answer.status_code, answer.headers["location"]) == (303, page)


def test_a_page_of_another_site_cannot_press_the_button(web: TestClient, facts: InMemory) -> None:
    assert web.post("/api/jobs/job-send/retry", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert facts.retried == []


def test_run_again(web: TestClient, facts: InMemory) -> None:
    assert web.post("/api/series/1.2.826.7/rerun").json() == {"rerun": True}
    answer = web.post("/api/series/none/rerun")
    assert (answer.status_code, answer.json()) == (409, {"error": "no such series"})
    assert web.post("/api/series/1.2.826.7/rerun", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert facts.rerun_asked == ["1.2.826.7", "none"]


def test_the_button_to_run_again_is_there_when_nothing_runs(web: TestClient, facts: InMemory) -> None:
    assert "/rerun" not in web.get("/series/1.2.826.7").text  # a job of it is running
    facts.all[7]["jobs"] = [job("infer")]
    assert 'action="/api/series/1.2.826.7/rerun"' in web.get("/series/1.2.826.7").text


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
        "lung-nodule · done",
        "send · waiting",
        "nothing came for 10 s",
    ):
        assert words in visible(html), words
    (earlier,) = re.findall(r'href="(/\?before=[^"]+)"', html)
    rest = web.get(earlier).text
    assert re.findall(r'href="/series/([\d.]+)"', rest) == [f"1.2.826.{n}" for n in (4, 3, 2, 1, 0)]
    assert "before=" not in rest


def test_the_list_page_before_anything_came() -> None:
    web = TestClient(create_app(InMemory(), CollectorRegistry()))
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
    assert re.findall(r'action="/api/jobs/([^/]+)/retry"', html) == ["job-send"]


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
    facts.all[54]["jobs"] = [{"pipeline": "lung-nodule", "kind": "confirm", "state": "done", "revision": 1}]
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


@pytest.mark.parametrize("address", ["/", "/series/1.2.826.7", "/series/9.9"])
def test_pages_load_nothing_from_elsewhere_and_say_what_they_are_for(web: TestClient, address: str) -> None:
    answer = web.get(address)
    assert "Research use only, not for diagnostic use." in answer.text
    assert not re.findall(r'(?:src|href)="(?!/)[^"]*"', answer.text)
    assert not re.search(r"<script|\sstyle=|\son\w+=", answer.text)
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    for path in re.findall(r'"(/static/[^"]+)"', answer.text):
        assert web.get(path).status_code == 200
    assert not re.search(r"url\(|@import|https?:", web.get("/static/style.css").text)


def test_text_from_the_network_is_text_on_the_page(web: TestClient, facts: InMemory) -> None:
    facts.all[54]["description"] = "<script>alert(1)</script>"
    for address in ("/", "/series/1.2.826.54"):
        assert "<script>" not in web.get(address).text
        assert "&lt;script&gt;" in web.get(address).text
