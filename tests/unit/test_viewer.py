"""Findings on pages, as JSON, as CSV and as files, for whoever may see them; and what readers say of them."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from pydicom.uid import ComprehensiveSRStorage
from starlette.testclient import TestClient

from config.schema import Web
from dicom_sr import codes
from dicom_sr.findings import ComparedWith, Evaluation
from models.breast_us.pipeline import BreastUltrasound
from models.phantoms.breast import breast_ultrasound
from pacs_node.accounts import ADMIN, READER, VIEWER, Accounts, User
from pacs_node.records import FEEDBACK_KINDS, Feedback
from pacs_node.viewer_facts import results_in_force
from pacs_node.viewing import folder_name
from pacs_node.web import access
from pacs_node.web.access import NEEDS
from pacs_node.web.app import create_app
from tests.factories import us_image
from tests.harness import ROOT, wait_for
from tests.results import ball, mass, us_findings
from tests.unit.test_documented import documented_fields, told_of
from tests.unit.test_web import visible
from tests.viewers import Seen, chest

HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("seen")
    truth, findings = chest(folder / "images", size=64, spacing_mm=(6.0, 5.6, 5.6))
    earlier = ComparedWith("1.2.3", "1.2.4", ComprehensiveSRStorage, "1.2.5", date(2025, 7, 1), 184, 1.9)
    seen = Seen(folder, truth.files, replace(findings, compared_with=earlier))
    yield seen
    seen.close()


@pytest.fixture(scope="module")
def breast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("breast")
    (folder / "images").mkdir()
    image = us_image(folder / "images", shape=(300, 400), PatientName="Wachtel^Zora", BurnedInAnnotation=None)
    rated = (Evaluation(codes.FINDING, codes.BENIGN),)
    seen = Seen(
        folder, sorted((folder / "images").iterdir()), us_findings([image], mass(1, (0, 112, 120)), evaluations=rated)
    )
    yield seen
    seen.close()


def client(seen: Seen, role: str | None = None) -> TestClient:
    """A program with a token of this role; without one there are no users."""
    if role is None:
        return TestClient(seen.app())
    accounts = Accounts(seen.node.ledger, lambda: datetime.now(UTC))
    for name in {token.name for token in seen.node.ledger.tokens()}:
        accounts.remove_token(name)
    if not seen.node.ledger.users():
        accounts.kept.add_user(user_nobody_is())
    secret = accounts.add_token(f"a-{role}", role, 1)
    return TestClient(seen.app(accounts), headers={"authorization": f"Bearer {secret}"})


def user_nobody_is() -> User:
    return User("nobody", ADMIN, "x", datetime(2026, 1, 1, tzinfo=UTC))


def findings(web: TestClient, uid: str) -> dict[str, object]:
    return wait_for(
        lambda: (told := web.get(f"/api/series/{uid}/findings").json())["state"] == "ready" and told, 120, "findings"
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("clip")
    (folder / "images").mkdir()
    image = us_image(folder / "images", shape=(60, 80), frames=6, BurnedInAnnotation=None)
    found = mass(1, (2, 20, 30), ball(3, 10, 14))
    seen = Seen(folder, sorted((folder / "images").iterdir()), us_findings([image], found))
    yield seen
    seen.close()


def test_a_clip_is_told_frame_by_frame_with_its_outlines(clip: Seen) -> None:
    web = client(clip)
    findings(web, clip.uid)
    told = wait_for(
        lambda: (about := web.get(f"/api/series/{clip.uid}/view").json())["state"] != "preparing" and about, 120, "clip"
    )
    assert (told["kind"], told["frame_ms"], len(told["frames"])) == ("cine", 40.0, 6)
    [lesion] = told["outlines"]
    assert [each["frame"] for each in lesion["on"]] == [2, 3, 4]
    film = web.get(f"/api/series/{clip.uid}/view/cine.bin")
    assert film.headers["content-type"] == "application/octet-stream"
    original = pydicom.dcmread(clip.files[0]).pixel_array
    for index, frame in enumerate(told["frames"]):
        with Image.open(io.BytesIO(film.content[frame["at"] : frame["at"] + frame["bytes"]])) as picture:
            shown = np.asarray(picture.convert("L"), float)
        assert np.abs(shown - original[index]).mean() < np.abs(shown - original[(index + 1) % 6]).mean() / 2
        for loop in next((each["polygons"] for each in lesion["on"] if each["frame"] == index), []):
            assert np.min(loop, axis=0) == pytest.approx([30, 20], abs=3)
    assert client(clip, READER).get(f"/api/series/{clip.uid}/view/cine.bin").status_code == 200
    assert client(clip, VIEWER).get(f"/api/series/{clip.uid}/view/cine.bin").status_code == 403, "names may be in it"
    page = client(clip, READER).get(f"/series/{clip.uid}/view").text
    assert "/static/cine.js" in page
    assert "/static/cine.js" not in client(clip, VIEWER).get(f"/series/{clip.uid}/view").text


def test_findings_as_json_are_what_the_document_says(
    seen: Seen, breast: Seen, clip: Seen, judged: dict[int, Seen]
) -> None:
    web = client(seen)
    told = findings(web, seen.uid)
    of_both = told_of([told, *(findings(client(each), each.uid) for each in (breast, *judged.values()))])
    assert of_both == documented_fields("GET /api/series/{uid}/findings")
    assert [each["label"] for each in told["results"][0]["findings"]] == ["Nodule 1", "Nodule 2"]
    clip_told = wait_for(
        lambda: (about := client(clip).get(f"/api/series/{clip.uid}/view").json())["state"] == "ready" and about,
        120,
        "a clip",
    )
    wait_for(lambda: web.get(f"/api/series/{seen.uid}/view").json()["state"] == "ready", 120, "the volume")
    about = web.get(f"/api/series/{seen.uid}/view").json()
    assert told_of([about, clip_told]) == documented_fields("GET /api/series/{uid}/view")
    assert about["size_xyz"] == [64, 64, 24]
    assert web.get("/api/series/9.9.9/findings").status_code == 404
    assert web.get(f"/api/series/{seen.uid}/findings?form=xml").status_code == 400


def test_an_earlier_study_that_is_not_here_is_said(seen: Seen, breast: Seen) -> None:
    for each, why in ((seen, "not kept here"), (breast, "compared with no earlier study")):
        findings(client(each), each.uid)
        told = client(each).get(f"/api/series/{each.uid}/earlier").json()
        assert told["state"] == "none"
        assert why in told["why"]
        assert client(each).get(f"/api/series/{each.uid}/view/earlier.nii.gz").status_code == 404
    assert client(seen).get("/api/series/9.9.9/earlier").status_code == 404


def test_findings_as_csv(seen: Seen) -> None:
    web = client(seen)
    findings(web, seen.uid)
    answer = web.get(f"/api/series/{seen.uid}/findings?form=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["label"] for row in rows] == ["Nodule 1", "Nodule 2"]
    assert rows[0]["version"] == "0.1.0+1a2b3c4d"
    assert "Long Axis" in rows[0]["measurements"]
    assert float(rows[0]["z_lps_mm"]) == findings(web, seen.uid)["results"][0]["findings"][0]["place_lps_mm"][2]


def test_the_page_works_without_javascript(seen: Seen) -> None:
    web = client(seen)
    findings(web, seen.uid)
    for path in (f"/series/{seen.uid}", f"/series/{seen.uid}/view"):
        page = web.get(path).text
        for words in ("Nodule 1", "87 %", "2 nodules found.", "lung"):
            assert words in visible(page), (path, words)
        assert f'href="https://ohif.example/viewer?StudyInstanceUIDs={seen.study_uid}"' in page
        for picture in ("finding-1-1.png", "finding-1-2.png"):
            assert f"/api/series/{seen.uid}/view/{picture}" in page
            answer = web.get(f"/api/series/{seen.uid}/view/{picture}")
            assert (answer.headers["content-type"], answer.content[:4]) == ("image/png", b"\x89PNG")
            assert answer.headers["cache-control"] == "no-store"
    assert web.get("/series/9.9.9/view").status_code == 404
    assert web.get(f"/api/series/{seen.uid}/view/findings.json").status_code == 404
    assert web.get(f"/api/series/{seen.uid}/view/nosuch.png").status_code == 404


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Seen]]:
    """What the networks that are served say of phantoms: of one image, of two in a series."""
    pipeline, judged = BreastUltrasound("cpu", {"threads": 1}), {}
    for images in (1, 2):
        folder = tmp_path_factory.mktemp("judged")
        (folder / "images").mkdir()
        files = breast_ultrasound(folder / "images", seed=3, images=images).files
        judged[images] = Seen(folder, files, pipeline.run(files, lambda fraction, doing: None))
    yield judged
    for seen in judged.values():
        seen.close()


@pytest.mark.parametrize("images", [1, 2])
def test_an_ultrasound_page_names_the_likeliest_class_and_how_sure_that_is(
    judged: dict[int, Seen], images: int
) -> None:
    """By what the fused networks said themselves; beside it the probability of each class."""
    seen = judged[images]
    web, said = client(seen), seen.findings
    told: Any = findings(web, seen.uid)["results"][0]  # type: ignore[index]
    assert said is not None
    assert said.findings, "a phantom with a lesion"
    page = visible(web.get(f"/series/{seen.uid}/view").text)
    several = len(said.images) > 1
    for number in range(1, len(said.images) + 1):
        shares = {name: float(said.facts[f"image {number} P({name})"]) for name in ("normal", "benign", "malignant")}
        likely = max(shares, key=lambda each: shares[each])
        of = next(f for f in told["findings"] if f["key_image"] == number - 1) if several else told
        assert of["class"]["name"] == likely
        assert float(of["class"]["text"].removesuffix(" %")) == pytest.approx(100 * shares[likely], abs=0.6)
        sure = "" if of["class"]["calibrated"] else " not calibrated"
        assert f"most likely {likely}, {of['class']['text']}{sure}" in page
        for name, words in (("normal", "normal"), ("benign", "benign"), ("malignant", "cancer")):
            [stated] = [each for each in of["measurements"] if each["name"] == f"Probability of {words}"]
            assert float(stated["text"].removesuffix(" %")) == pytest.approx(100 * shares[name], abs=0.6)
            assert f"Probability of {words} {stated['text']}" in page
    if several:
        assert told["class"] is None
        assert "Class" not in page
    else:
        assert [each["class"] for each in told["findings"]] == [None] * len(told["findings"])


def test_an_ultrasound_page_has_image_outline_and_class(breast: Seen) -> None:
    web = client(breast)
    findings(web, breast.uid)
    page = web.get(f"/series/{breast.uid}/view").text
    assert '<polygon class="outline"' in page
    assert "image-0.png" in page
    assert "Probability of cancer" in visible(page)
    assert "13 %" in visible(page)
    assert "niivue" not in page, "one image needs no viewer of slices"
    assert "Wachtel" not in page


@pytest.mark.parametrize(("role", "sees"), [(VIEWER, False), (READER, True), (ADMIN, True)])
def test_pixels_that_may_bear_a_name_are_for_readers(breast: Seen, seen: Seen, role: str, sees: bool) -> None:
    findings(client(breast, role), breast.uid)
    answer = client(breast, role).get(f"/api/series/{breast.uid}/view/image-0.png")
    assert answer.status_code == (200 if sees else 403)
    assert sees or "needs the role reader" in answer.text
    page = client(breast, role).get(f"/series/{breast.uid}/view", headers=HTML).text
    assert ("image-0.png" in page) is sees
    findings(client(seen, role), seen.uid)
    assert client(seen, role).get(f"/api/series/{seen.uid}/view/finding-1-1.png").status_code == 200, (
        "CT: whoever looks"
    )


Heard = list[tuple[str, Mapping[str, object]]]


def heard_by(seen: Seen, role: str) -> tuple[TestClient, Heard]:
    """As `client`, and what the audit trail is told meanwhile."""
    heard: Heard = []
    token = client(seen, role).headers["authorization"]
    accounts = Accounts(seen.node.ledger, lambda: datetime.now(UTC))
    app = create_app(
        seen.facts, CollectorRegistry(), ("testserver",), accounts, lambda *said: heard.append(said), desk=None
    )
    return TestClient(app, headers={"authorization": token}), heard


def everything_of(seen: Seen) -> list[str]:
    """Every address that is about this series, with every file that was made or kept for it."""
    assert seen.job is not None
    web = client(seen)
    for part in ("findings", "view"):
        wait_for(lambda: web.get(f"/api/series/{seen.uid}/{part}").json()["state"] != "preparing", 120, part)  # noqa: B023
    made = [each.name for each in (seen.node.config.node.data_dir / folder_name(seen.uid)).glob("*/*")]
    sent = [f"{each.sop_instance_uid}.dcm" for each in seen.results]
    names = {"/view/": made, "/results/": sent, "/rejected/": ["held.dcm"]}
    found = []
    for path in sorted(NEEDS):
        filled = path.replace("{uid}", seen.uid).replace("{id}", seen.job.id)
        of_it = next((some for part, some in names.items() if part in filled and "{name}" in filled), [""])
        found += [filled.replace("{name}", name) for name in of_it]
    return found


def test_every_answer_that_a_reader_alone_may_have_is_told(
    seen: Seen, breast: Seen, clip: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever address it has: pictures with names in them, results, what was held back, who said what."""
    told: set[str] = set()
    for each in (seen, breast, clip):
        monkeypatch.setattr(each.facts, "rejected", lambda job, each=each: {"held.dcm": each.results[0].path})
        addresses = everything_of(each)
        web, heard = heard_by(each, VIEWER)
        hidden = []
        for address in addresses:
            heard.clear()
            if web.get(address, follow_redirects=False).status_code == 403:
                hidden.append(address)
                assert [(event, facts["status"]) for event, facts in heard] == [("asked", 403)], address
        for address in hidden:
            web, heard = heard_by(each, READER)  # a new one: nobody has been told of anything
            if web.get(address, follow_redirects=False).status_code != 200:
                continue  # for admins
            [(event, facts)] = heard
            assert (facts["user"], facts["what"]) == (f"token a-{READER}", address)
            named = address.startswith(("/api/series/", "/api/jobs/")) or address.endswith("/patient")
            assert (event, facts.get("study")) == (
                ("instances-accessed", each.study_uid) if named else ("identity-asked", None)
            )
            told.add(address.rpartition("/")[2])
    assert {"image-0.png", "finding-1-1.png", "cine.bin", "held.dcm", "feedback"} <= told


def test_going_through_a_series_is_told_once_and_after_a_while_again(
    clip: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(access.time, "monotonic", lambda: now[0])
    web, heard = heard_by(clip, READER)
    files = [address for address in everything_of(clip) if "/view/" in address and not address.endswith(".json")]
    assert len(files) > 2
    for _ in range(2):
        heard.clear()
        for address in [*files, *files]:
            assert web.get(address).status_code == 200
        assert [event for event, _ in heard] == ["instances-accessed"]
        now[0] += access.TOLD_AGAIN_S
    assert clip.job is not None
    heard.clear()
    for each in clip.results:  # another address: the results, as they were sent
        assert web.get(f"/api/jobs/{clip.job.id}/results/{each.sop_instance_uid}.dcm").status_code == 200
    assert [event for event, _ in heard] == ["instances-accessed"]
    other, also_heard = heard_by(clip, ADMIN)
    assert other.get(files[0]).status_code == 200
    assert [facts["user"] for _, facts in also_heard] == [f"token a-{ADMIN}"]


@pytest.mark.parametrize(("role", "gets"), [(VIEWER, False), (READER, True), (ADMIN, True)])
def test_results_as_files_are_for_readers(seen: Seen, role: str, gets: bool) -> None:
    assert seen.job is not None
    for result in seen.results:
        answer = client(seen, role).get(f"/api/jobs/{seen.job.id}/results/{result.sop_instance_uid}.dcm")
        assert answer.status_code == (200 if gets else 403)
        if gets:
            assert answer.content == result.path.read_bytes()
            assert pydicom.dcmread(io.BytesIO(answer.content)).SOPInstanceUID == result.sop_instance_uid
    assert client(seen, ADMIN).get(f"/api/jobs/{seen.job.id}/results/1.2.3.dcm").status_code == 404
    assert client(seen, ADMIN).get("/api/jobs/1/results/..").status_code == 404


def exported(answer: httpx.Response) -> tuple[zipfile.ZipFile, list[dict[str, str]]]:
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    return archive, list(csv.DictReader(io.StringIO(archive.read("results.csv").decode())))


@pytest.mark.parametrize(("role", "gets"), [(VIEWER, False), (READER, True), (ADMIN, True)])
def test_the_results_of_the_chosen_series_are_one_file(seen: Seen, role: str, gets: bool) -> None:
    web, heard = heard_by(seen, role)
    answer = web.post("/api/export", data={"series": [seen.uid, "1.2.3"]})
    assert answer.status_code == (200 if gets else 403)
    assert ('formaction="/api/export"' in web.get("/", headers=HTML).text) is gets
    if not gets:
        return
    archive, rows = exported(answer)
    assert seen.job is not None
    wanted = {f"{seen.uid}/{seen.job.pipeline}/{each.sop_instance_uid}.dcm": each for each in seen.results}
    assert set(archive.namelist()) == {*wanted, "results.csv"}
    for name, result in wanted.items():
        assert archive.read(name) == result.path.read_bytes()
    assert [row["file"] for row in rows] == [*wanted, ""]
    assert {row["study_uid"] for row in rows[:-1]} == {seen.study_uid}
    assert (rows[-1]["series_uid"], rows[-1]["why_not"]) == ("1.2.3", "no such series")
    events = [(event, facts.get("study")) for event, facts in heard if facts["what"] == "/api/export"]
    assert ("instances-accessed", seen.study_uid) in events


def test_all_that_the_list_is_of_is_one_file_and_what_is_not_here_is_said(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = client(seen, READER)
    whole = exported(web.post("/api/export", data={"all": "1", "query": "modality=CT"}))[1]
    assert [row["series_uid"] for row in whole] == [seen.uid] * len(seen.results)
    monkeypatch.setattr(seen.facts, "result_file", lambda job, name: None)
    archive, rows = exported(web.post("/api/export", data={"all": "1", "query": ""}))
    assert archive.namelist() == ["results.csv"]
    assert {(row["file"], row["why_not"]) for row in rows} == {("", "it is not here any more")}
    for form, status in (({}, 400), ({"series": "a b"}, 400), ({"series": "1.2.3"}, 404), ({"do": "x"}, 400)):
        assert web.post("/api/export", data=form).status_code == status, form


def say(web: TestClient, seen: Seen, **fields: object) -> tuple[int, str]:
    assert seen.job is not None
    answer = web.post(f"/api/series/{seen.uid}/feedback", data={"job": seen.job.id, **fields})
    return answer.status_code, answer.text


def test_readers_say_something_and_it_is_kept_and_counted(seen: Seen) -> None:
    findings(client(seen, VIEWER), seen.uid)
    assert say(client(seen, VIEWER), seen, kind="agree", finding=1)[0] == 403
    reader = client(seen, READER)
    for kind in ("agree", "no-lesion", "wrong-size"):
        assert say(reader, seen, kind=kind, finding=2) == (200, '{"noted":true}')
    assert say(client(seen, ADMIN), seen, kind="missed", image=3, column=10.5, row=20)[0] == 200
    *_, missed = said = client(seen, READER).get("/api/feedback").json()
    assert told_of(said) == documented_fields("GET /api/feedback")
    assert [each["kind"] for each in said] == list(FEEDBACK_KINDS)
    assert {each["version"] for each in said} == {"0.1.0+1a2b3c4d"}
    assert (said[0]["reader"], said[0]["label"], said[0]["finding"]) == ("token a-reader", "Nodule 2", 2)
    known = findings(client(seen, READER), seen.uid)
    assert missed["place"]["sop_instance_uid"] == known["images"][2]["sop_instance_uid"]
    affine = known["affine_lps_mm"]
    true = [sum(a * b for a, b in zip(line, (2, 20, 10.5, 1), strict=True)) for line in affine[:3]]
    assert missed["place"]["lps_mm"] == pytest.approx(true, abs=0.06)
    rows = list(csv.DictReader(io.StringIO(client(seen, READER).get("/api/feedback?form=csv").text)))
    assert [row["kind"] for row in rows] == list(FEEDBACK_KINDS)
    assert (rows[-1]["column"], rows[-1]["z_lps_mm"]) == ("10.5", str(missed["place"]["lps_mm"][2]))
    page = client(seen, VIEWER).get("/feedback", headers=HTML).text
    assert "lung-nodule 0.1.0+1a2b3c4d 1 1 1 1" in visible(page)
    assert "a-reader" not in page
    assert client(seen, VIEWER).get("/api/feedback").status_code == 403
    assert "wrong size, token a-reader" in visible(client(seen, READER).get(f"/series/{seen.uid}", headers=HTML).text)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"kind": "liked", "finding": 1}, 400, "kind is one of agree, no-lesion, wrong-size, missed, not 'liked'"),
        ({"kind": "agree"}, 400, "finding is a whole number from 1, not ''"),
        ({"kind": "agree", "finding": "-1"}, 400, "finding is a whole number from 1"),
        ({"kind": "agree", "finding": 9}, 409, "no such finding; load the page again"),
        ({"kind": "agree", "finding": 1, "job": "other"}, 409, "no such result of this series"),
        ({"kind": "missed", "image": 25, "column": 1, "row": 1}, 409, "on which image the missed one is: 1 to 24"),
        ({"kind": "missed", "image": 1, "column": 64, "row": 1}, 409, "that place is not on the image"),
        ({"kind": "missed", "image": 1, "column": "1e3", "row": 1}, 400, "column is a number of pixels from 0"),
        ({"kind": "agree", "finding": 1, "comment": "Frau Wachtel"}, 400, "the fields are job, kind, finding"),
    ],
)
def test_what_cannot_be_said_is_refused_in_words(
    seen: Seen, fields: dict[str, object], status: int, words: str
) -> None:
    findings(client(seen, READER), seen.uid)
    before = list(seen.facts.feedback())
    answered, text = say(client(seen, READER), seen, **fields)
    assert answered == status
    assert words in text
    assert list(seen.facts.feedback()) == before


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_a_page_of_another_site_says_nothing(seen: Seen, headers: dict[str, str]) -> None:
    before = list(seen.facts.feedback())
    data = {"job": seen.job.id if seen.job else "", "kind": "agree", "finding": "1"}
    answer = client(seen, ADMIN).post(f"/api/series/{seen.uid}/feedback", data=data, headers=headers)
    assert (answer.status_code, list(seen.facts.feedback())) == (403, before)


def test_what_a_spreadsheet_would_run_is_text(seen: Seen) -> None:
    assert seen.job is not None
    note = Feedback(seen.now(), '=HYPERLINK("http://x")', seen.uid, seen.job.id, "agree", 1, "Nodule 1")
    assert seen.node.ledger.note_feedback(note)
    rows = list(csv.DictReader(io.StringIO(client(seen, READER).get("/api/feedback?form=csv").text)))
    assert rows[-1]["reader"] == '\'=HYPERLINK("http://x")'


def test_the_last_results_of_each_route_are_shown() -> None:
    jobs = [
        {"id": "0", "kind": "infer", "route": "c", "pipeline": "p", "state": "done", "results": [1]},
        {"id": "1", "kind": "infer", "route": "a", "pipeline": "p", "state": "done", "results": [1]},
        {"id": "2", "kind": "infer", "route": "a", "pipeline": "p", "state": "done", "results": [1]},
        {"id": "3", "kind": "infer", "route": "a", "pipeline": "p", "state": "running", "results": []},
        {
            "id": "4",
            "kind": "infer",
            "route": "b",
            "pipeline": "p",
            "state": "refused",
            "results": [1],
            "shadow": False,
        },
        {"id": "5", "kind": "send", "route": "b", "pipeline": "p", "state": "done", "results": []},
    ]
    assert [job["id"] for job in results_in_force([{**each, "shadow": each["id"] == "0"} for each in jobs])] == [
        "2",
        "4",
        "0",
    ], "what a shadow says behind all others"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", None),
        ("https://ohif.example/viewer?StudyInstanceUIDs={study}&SeriesInstanceUIDs={series}", None),
        ("https://ohif.example/viewer", "names no study"),
        ("https://ohif.example/{patient}", "knows {study} and {series} in braces, and not {patient}"),
        ("https://ohif.example/{study}{", "knows {study} and {series}"),
        ("ftp://ohif.example/{study}", "must start with http:// or https://"),
        ("javascript:alert(1)//{study}", "names no host"),
        ("https://{study}", "has a host that cannot be"),
    ],
)
def test_the_address_of_the_hospitals_viewer(url: str, words: str | None) -> None:
    if words is None:
        assert Web(viewer_url=url).viewer_url == url
        return
    with pytest.raises(ValidationError) as wrong:
        Web(viewer_url=url)
    assert words in str(wrong.value)


def test_the_one_file_of_others_is_the_one_that_is_pinned() -> None:
    """And has nothing in it that the policy of the pages would have to allow."""
    wanted = json.loads((ROOT / "deploy" / "viewer" / "package.json").read_text())["dependencies"]["@niivue/niivue"]
    locked = json.loads((ROOT / "deploy" / "viewer" / "package-lock.json").read_text())["packages"]
    assert locked["node_modules/@niivue/niivue"]["version"] == wanted
    code = (ROOT / "pacs_node" / "web" / "static" / "vendor" / "niivue.js").read_text()
    assert f'"{wanted}"' in code
    assert f"NiiVue {wanted}" in (ROOT / "NOTICE").read_text()
    assert [
        word for word in ("eval(", "new Function", "new Worker", "importScripts", "document.cookie") if word in code
    ] == []


def test_what_was_made_goes_with_its_series(seen: Seen) -> None:
    """Retention names the folder among what it deletes."""
    findings(client(seen, READER), seen.uid)
    [holding] = seen.node.ledger.holdings(None, 10)
    assert folder_name(seen.uid) in seen.node.retention._results(holding)
