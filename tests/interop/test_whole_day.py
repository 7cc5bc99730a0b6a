"""A day of a hospital: every flow of the pages in a real Chromium, beside one really started node and a real Orthanc.

Images are phantoms; each inference runs, and each result is in Orthanc before a page is asked about it. The tests go
through the day in their order, and each leaves the node as well as it was.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import generate_uid

from config import load
from models import catalogue
from models.phantoms import Truth, breast_cine, breast_ultrasound, chest_ct
from models.phantoms.chest_anatomy import Ball
from pacs_node import __version__
from pacs_node import accounts as roles
from pacs_node.accounts import Accounts
from pacs_node.ledger import Ledger
from pacs_node.ledger.tables import series_table
from tests.certificates import Authority
from tests.follow_up import AFTER, BEFORE, DATES, SEED
from tests.harness import ROOT, NodeProcess, Orthanc, Receiver, free_port, storescu, wait_for
from tests.interop.test_at_work import Person
from tests.interop.test_returned import WHO, edited, erode_first, note, true_dice
from tests.interop.test_viewer import GIVE_UP_AFTER_S, READY, RECTANGLE, VIEWER, Page

pytestmark = pytest.mark.timeout(900)
PASSWORD = "a long enough secret"
PATIENCE_S = 240  # with a slow machine
ROOM_GB = 20.0  # that the node may fill: at a few MB a day it is full within the century
SILENT, MUTE = "CT2", "CT from CT2"  # a sender that was heard of each week until this one
TOML = """
[infer]
tune = false
[receive]
keep_free_gb = {keep_free_gb}
[assemble]
quiet_s = 1.0
quiet_unreleased_s = 2.0
[jobs]
send_backoff_s = 0.5
send_backoff_max_s = 1.0
max_attempts = 1000
sweep_s = 1.0
await_report_s = 3.0
[web]
viewer_url = "http://127.0.0.1:{orthanc_http}/app/explorer.html#series?study={{study}}&uid={{series}}"
[tls]
own_certificate = "{certificate}"
own_key = "{key}"
[heartbeat]
every_minutes = 60.0
route = "breast"
to = "pacs"
[[notify]]
name = "on call"
urls = ["json://127.0.0.1:{listener}/"]
down_min = 0.01
full_in_days = 36525.0
# who sends, and who is sent to
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {orthanc}
may_send = true
[[peer]]
name = "surgeon"
folder = "surgeon"
[[route]]
name = "chest"
match = {{ Modality = "CT" }}
pipeline = "lung-nodule"
options = {{ views = 1 }}
send_to = ["pacs"]
[[route]]
name = "breast"
match = {{ Modality = "US", SeriesDescription = "Breast" }}
pipeline = "breast-us"
send_to = ["pacs"]
"""


class Listener:
    """Keeps every message that it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        told = self.told

        class Take(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["message"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def lines(self) -> list[str]:
        return [line.removeprefix("- ") for message in self.told for line in message.splitlines()]

    def close(self) -> None:
        self._server.shutdown()


class Day:
    """The node, its Orthanc, who is told, and what was sent: by a name, its Series Instance UID."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.series = folder, dict[str, str]()
        self.lesions_lps_mm: list[Sequence[float]] = []  # of the chest, truly
        self.pacs = Orthanc(folder / "orthanc", settings={"DicomAlwaysAllowGet": True})
        self.listener = Listener()
        mine = Authority(folder).issue("node", days=(-80, 10.5))
        free_gb = shutil.disk_usage(folder).free / 1e9
        toml = TOML.format(
            keep_free_gb=max(0.1, round(free_gb - ROOM_GB, 1)),
            orthanc=self.pacs.dicom_port, orthanc_http=self.pacs.http_port, listener=self.listener.port,
            certificate=mine.certificate, key=mine.key,
        )  # fmt: skip
        self.node = NodeProcess(folder / "node", toml)
        config = load(self.node.config, catalogue())
        config.node.data_dir.mkdir(mode=0o700)
        ledger = Ledger(config.database.url, config.node.data_dir)
        ledger.migrate()
        accounts = Accounts(ledger, lambda: datetime.now(UTC))
        for name, role in (("ana", roles.ADMIN), ("ben", roles.ADMIN), ("rita", roles.READER), ("vera", roles.VIEWER)):
            accounts.add(name, role, PASSWORD)
        token = accounts.add_token("test", roles.ADMIN, 1)
        with ledger.engine.begin() as db:
            db.execute(sa.insert(series_table), list(earlier_weeks(datetime.now(UTC))))
        ledger.close()
        self.url = f"http://127.0.0.1:{self.node.web_port}"
        self.client = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {token}"}, timeout=60)

    def send(self, name: str, *files: Path) -> str:
        """By DCMTK; its Series Instance UID."""
        self.series[name] = str(pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)
        storescu(self.node, *files)
        return self.series[name]

    def facts(self, name: str) -> dict[str, Any]:
        answer = self.client.get(f"/api/series/{self.series[name]}")
        return dict(answer.json()) if answer.status_code == 200 else {"state": "", "jobs": []}

    def done(self, name: str) -> dict[str, Any]:
        """Once it is closed and every job of it has ended."""

        def ended() -> dict[str, Any] | None:
            facts = self.facts(name)
            still = {"queued", "running", "waiting"} & {job["state"] for job in facts["jobs"]}
            return facts if facts["state"] == "closed" and not still else None

        return dict(wait_for(ended, PATIENCE_S, f"{name}: {self.facts(name)}\n{self.node.log()}"))

    def in_pacs(self, name: str, modality: str) -> list[Dataset]:
        """The results of this series that Orthanc has."""
        uids = {each["sop_instance_uid"] for job in self.facts(name)["jobs"] for each in job["receipts"]}
        return [each for each in self.pacs.instances(modality) if each.SOPInstanceUID in uids]

    def close(self) -> None:
        self.client.close()
        self.listener.close()


def earlier_weeks(now: datetime) -> Iterator[dict[str, Any]]:
    """Rows of series that were deleted since: of each of five weeks before a morning of a sender, and its last series
    of some hours ago."""
    times = [now - timedelta(weeks=week, minutes=30 * n) for week in range(1, 6) for n in range(-4, 13)]
    for number, at in enumerate([*times, now - timedelta(hours=5)]):
        yield {
            "series_uid": f"2.25.77.{number}", "study_uid": "2.25.77", "state": "deleted", "sender": SILENT,
            "modality": "CT", "description": "Earlier", "first_arrival": at, "last_arrival": at, "arrived": 1,
            "revision": 1, "closed_because": "quiet", "deleted_at": at, "deleted_images": 1, "turnaround_s": 60.0,
        }  # fmt: skip


def ultrasound(folder: Path, seed: int, **attributes: str) -> Path:
    """One image of a breast with a lesion, of a patient and a study of its own unless these say otherwise."""
    breast_ultrasound(folder, seed=seed, patient_id=f"US-{seed}")
    [file] = folder.rglob("*.dcm")
    image = pydicom.dcmread(file)
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    image.SeriesInstanceUID, image.SOPInstanceUID = generate_uid(), generate_uid()
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.save_as(file, enforce_file_format=True)
    return file


def chest(folder: Path, balls: Sequence[Ball], date: str) -> Truth:
    """As coarse as the pipeline still takes it."""
    return chest_ct(folder, seed=SEED, balls=balls, study_date=date, slices=50, size=180, spacing_mm=(5.0, 2.0, 2.0))


class Somebody(Person):
    """At a browser, logged in. refused: statuses that she brings about by intent."""

    def __init__(self, day: Day, name: str, page: Page, **how: Any) -> None:
        self.page, self.day, self.address, self.refused = page, day, day.url, set[int]()
        assert page.do("open", url=f"{day.url}/login", **how) == 200
        self.gives(name, PASSWORD)
        assert self.path == "/"

    def at(self, name: str, onward: str = "") -> str:
        """On the page of a series."""
        return self.goes(f"/series/{self.day.series[name]}{onward}")

    def at_refused(self, name: str, onward: str, status: int) -> str:
        self.refused.add(status)
        return self.goes(f"/series/{self.day.series[name]}{onward}", status)

    def is_refused(self, status: int) -> bool:
        """Since she came, and from now on it is no mistake."""
        self.refused.add(status)
        return any(each.startswith(f"{status} ") for each in self.page.do("errors"))

    def waits_until_it_says(self, path: str, *words: str) -> str:
        def said() -> str | None:
            shown = self.goes(path)
            return shown if all(each in shown for each in words) else None

        return str(wait_for(said, PATIENCE_S, f"{path} to say {words}\n{self.day.node.log()}"))

    def mistakes(self) -> list[str]:
        of_intent = [str(status) for status in self.refused]
        return [each for each in self.page.do("errors") if not any(status in each for status in of_intent)]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    day = Day(tmp_path_factory.mktemp("day"))
    with day.pacs, day.node.start():
        day.pacs.register("pacs-node", day.node)
        yield day
        assert day.node.terminate() == 0
    day.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    page = Page()
    yield page
    page.close()


@pytest.fixture
def ana(day: Day, browser: Page) -> Iterator[Somebody]:
    somebody = Somebody(day, "ana", browser, width=1100, height=900)
    yield somebody
    assert somebody.mistakes() == []


@pytest.fixture
def ben(day: Day) -> Iterator[Somebody]:
    """Another administrator, at another browser."""
    page = Page()
    yield Somebody(day, "ben", page)
    page.close()


# What comes in -------------------------------------------------------------------------------------------------------


def test_a_series_comes_into_the_open_list_and_its_results_into_the_pacs(
    ana: Somebody, day: Day, tmp_path: Path
) -> None:
    ana.goes("/")
    ana.page.value("window.reloaded = false")
    file = ultrasound(
        tmp_path, 3, SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Eva", AccessionNumber="A-17",
        PatientBirthDate="19610203",
    )  # fmt: skip
    link = f"/series/{day.send('breast', file)}"
    row = f"document.querySelector('main a[href=\"{link}\"]')?.closest('tr').textContent ?? ''"
    for words in ("receiving", "breast-us · 1 finding", "confirm · done"):
        if words != "receiving":  # that may have passed
            wait_for(lambda words=words: words in ana.page.value(row), PATIENCE_S, f"{words}\n{day.node.log()}")
    assert ana.page.value("window.reloaded === false"), "by events, without a reload"
    assert [len(day.in_pacs("breast", each)) for each in ("SEG", "SR")] == [1, 1]


def test_a_breast_is_seen_with_its_outline_and_the_probabilities_of_its_report(ana: Somebody, day: Day) -> None:
    [segmentation], [report] = day.in_pacs("breast", "SEG"), day.in_pacs("breast", "SR")
    said = ana.waits_until_it_says(f"/series/{day.series['breast']}/view", "Lesion 1")
    across, down = (np.flatnonzero(segmentation.pixel_array.any(axis=axis)) for axis in (0, 1))
    x, y, wide, _ = ana.page.value(RECTANGLE.format(".picture image"))
    left, top, *size = ana.page.value(RECTANGLE.format(".picture .outline"))
    scale = wide / segmentation.Columns
    drawn = [(left - x) / scale, (top - y) / scale, *(each / scale for each in size)]
    assert drawn == pytest.approx([across[0], down[0], np.ptp(across) + 1, np.ptp(down) + 1], abs=1.5)
    percents = percents_of(report)
    assert len(percents) == 3
    for name, value in percents.items():
        assert f"{name} {value:g} %" in said
    likeliest = max(percents, key=lambda name: percents[name]).removeprefix("Probability of ")
    assert f"most likely {likeliest}" in said


def percents_of(report: Dataset) -> dict[str, float]:
    """What a report says of the whole image: probability of a class -> percent."""
    found = {}

    def look(item: Dataset) -> None:
        for each in item.get("ContentSequence", ()):
            name = each.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in each else ""
            if each.ValueType == "NUM" and name.startswith("Probability of "):
                found[name] = float(each.MeasuredValueSequence[0].NumericValue)
            look(each)

    look(report)
    return found


def test_a_clip_is_played_with_the_outline_of_the_segmentation(ana: Somebody, day: Day, tmp_path: Path) -> None:
    day.send("clip", *breast_cine(tmp_path, frames=6, shape=(200, 260)).files)
    day.done("clip")
    [segmentation] = day.in_pacs("clip", "SEG")
    frames = {
        int(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber) - 1: mask
        for group, mask in zip(segmentation.PerFrameFunctionalGroupsSequence, frames_of(segmentation), strict=True)
        if mask.any()
    }
    ana.waits_until_it_says(f"/series/{day.series['clip']}/view", "Lesion 1")
    clip, player = "document.getElementById('cine')", "document.getElementById('cine').player"
    wait_for(lambda: ana.page.value(f"{clip}.dataset.state") == "ready", GIVE_UP_AFTER_S, "the clip")
    ana.page.value("document.querySelector('.film canvas').focus()")
    ana.page.do("press", key="Home")
    for number in range(6):
        wait_for(lambda number=number: ana.page.value(f"{clip}.dataset.frame") == str(number), 20, f"frame {number}")
        drawn = ana.page.value(f"{player}.state.drawn.map(each => each.polygons.flat())")
        assert bool(drawn) == (number in frames), number
        if drawn:
            _, columns = np.nonzero(frames[number])
            points = np.array(drawn[0])
            assert (points[:, 0].min(), points[:, 0].max()) == pytest.approx((columns.min(), columns.max()), abs=1.1)
        ana.page.do("press", key="ArrowRight")
    ana.page.do("press", key="Space")
    wait_for(lambda: int(ana.page.value(f"{clip}.dataset.frame")) > 1, 60, "the clip to run")


def frames_of(segmentation: Dataset) -> np.ndarray:
    return np.asarray(segmentation.pixel_array).reshape(-1, segmentation.Rows, segmentation.Columns)


def test_whatever_the_pacs_has_taken_is_downloaded_as_it_was_sent(ana: Somebody, day: Day) -> None:
    """The Segmentation and the report by the job that made them, the capture by the one that sent it; and as ZIP."""
    stored = {each["sop_instance_uid"] for job in day.facts("clip")["jobs"] for each in job["receipts"]}
    taken = [each for modality in ("SEG", "SR", "OT", "US") for each in day.in_pacs("clip", modality)]
    assert {str(each.SOPInstanceUID) for each in taken} == stored
    assert "Secondary Capture" in " ".join(each.SOPClassUID.name for each in taken)
    ana.at("clip")
    for each in taken:
        got = ana.page.do("download", words=str(each.SOPInstanceUID))
        assert pydicom.dcmread(got["path"]) == each
    sent = day.client.post("/api/export", data={"series": day.series["clip"]})
    with zipfile.ZipFile(io.BytesIO(sent.content)) as archive:
        assert {Path(name).stem for name in archive.namelist() if name.endswith(".dcm")} == stored


def test_priors_and_also_of_a_route_do_what_they_say(ana: Somebody, day: Day, tmp_path: Path) -> None:
    """The earlier study runs as the route was; then it compares, and the surgeon gets what is large."""
    earlier = chest(tmp_path / "earlier", BEFORE, DATES[0]).files
    storescu(day.pacs, *earlier)  # who compares fetches its images
    day.send("earlier", *earlier)
    assert not [each for each in day.done("earlier")["jobs"] if each["facts"].get("also")]
    ana.goes("/routes/edit?name=chest")
    ana.page.do("fill", field="priors", value="pacs")
    ana.page.do("fill", field="also.send_to", value="surgeon")
    ana.page.do("fill", field="also.kinds", value="Nodule")
    ana.page.do("fill", field="also.min_size_mm", value="8")
    said = ana.presses("Activate", "form.entry")
    assert ana.path == "/routes"
    assert "surgeon" in said
    truth = chest(tmp_path / "present", AFTER, DATES[1])
    day.lesions_lps_mm = [lesion.centre_lps_mm for lesion in truth.lesions]
    day.send("chest", *truth.files)
    day.done("chest")
    said = ana.waits_until_it_says(f"/series/{day.series['chest']}", "also to surgeon")
    assert "no comparison" not in said
    received = [pydicom.dcmread(each) for each in (day.node.folder / "surgeon").rglob("*.dcm")]
    assert {each.Modality for each in received} >= {"SEG", "SR"}
    assert {each.StudyInstanceUID for each in received} == {day.facts("chest")["study_uid"]}
    [report] = day.in_pacs("chest", "SR")
    assert report.ContentSequence


def test_planes_and_the_earlier_study_are_seen_beside_each_other(ana: Somebody, day: Day) -> None:
    uid = day.series["chest"]
    for made in ("findings", "earlier"):
        wait_for(
            lambda made=made: day.client.get(f"/api/series/{uid}/{made}").json()["state"] == "ready", PATIENCE_S, made
        )
    said = ana.at("chest", "/view")
    assert "Nodule 1" in said
    wait_for(lambda: ana.page.value(READY) in ("ready", "failed", "refused"), GIVE_UP_AFTER_S, "the viewer")
    state = "document.getElementById('viewer').dataset"
    ana.page.value("document.querySelector('.stage canvas').focus()")
    views = []
    for _ in range(3):
        ana.page.do("press", key="v")
        views.append(ana.page.value(f"{state}.view"))
    assert views == ["Coronal", "Sagittal", "All"]
    assert {each["plane"] for each in ana.page.value(f"{VIEWER}.state.drawn")} == {0, 1, 2}, "outlined on each"
    ras = ana.page.value(f"{VIEWER}.millimetres({VIEWER}.nv.scene.crosshairPos)")
    here_lps_mm = np.array(ras) * [-1, -1, 1]
    assert min(np.linalg.norm(here_lps_mm - each) for each in day.lesions_lps_mm) < 8, "where the phantom has one"
    for _ in range(2):
        ana.page.do("press", key="v")
    assert ana.page.value(f"{state}.view") == "Axial"
    ana.page.do("press", key="e")
    wait_for(lambda: ana.page.value(f"{state}.earlier") == "shown", GIVE_UP_AFTER_S, "the earlier study")
    now, before = (ana.page.value(RECTANGLE.format(f".viewer .stage:nth-of-type({n})")) for n in (2, 3))
    assert now[1] == before[1], "beside each other"
    there = f"{VIEWER}.state.earlier"
    was = np.array(ana.page.value(f"{VIEWER}.millimetres({there}.nv.scene.crosshairPos, {there})")) * [-1, -1, 1]
    assert np.linalg.norm(was - here_lps_mm) < 8, "the patient lay the same"


# Who is looked for ---------------------------------------------------------------------------------------------------


def uids_shown(somebody: Somebody) -> list[str]:
    """In the order of the list."""
    return list(somebody.page.value("[...document.querySelectorAll('table.list .uid')].map(each => each.title)"))


@pytest.mark.parametrize("sought", ["müller", "Eva Muller", "US-3", "A-17"])
def test_a_patient_is_found_by_name_and_number_and_it_is_audited(ana: Somebody, day: Day, sought: str) -> None:
    ana.fills(patient=sought)
    ana.presses("Find")
    assert uids_shown(ana) == [day.series["breast"]]
    assert sought not in str(ana.page.do("where")), "the words stand in no address"
    assert "series of one patient" in ana.reads()


def test_a_patient_is_shown_to_who_may_see_it_and_each_time_is_audited(ana: Somebody, day: Day) -> None:
    ana.fills(patient="Nobody")
    ana.presses("Find")
    assert uids_shown(ana) == []
    assert "Müller" not in ana.at("breast")
    said = ana.presses("Show the patient")
    assert all(each in said for each in ("Müller^Eva", "US-3", "19610203", "A-17")), said
    study = day.facts("breast")["study_uid"]

    def audited(event: str) -> list[str]:
        ana.goes("/audit")
        ana.fills(event=event, who="ana")
        ana.presses("Show")
        return ana.lists("tbody tr")

    wait_for(lambda: [each for each in audited("DICOM Instances Accessed") if study in each], 30, "it is audited")
    wait_for(lambda: audited("Query"), 30, "the search is audited")
    assert not [each for each in audited("Query") if "Müller" in each or "Nobody" in each]


def test_who_may_not_see_patients_finds_none(day: Day, browser: Page) -> None:
    vera = Somebody(day, "vera", browser)
    assert vera.counts("[name=patient]") == 0
    assert "Show the patient" not in vera.at("breast")
    assert "needs the role reader" in vera.at_refused("breast", "/patient", 403)


def known(day: Day) -> list[dict[str, str]]:
    """Every series, in its order of the list, as the export of all tells them."""
    return list(csv.DictReader(day.client.get("/api/series.csv").text.splitlines()))


NARROWED: list[tuple[dict[str, str], Callable[[dict[str, str]], bool]]] = [
    ({"modality": "US"}, lambda row: row["modality"] == "US"),
    ({"sender": "SENDER"}, lambda row: row["sender"] == "SENDER"),
    ({"sender": "CT2"}, lambda row: row["sender"] == "CT2"),
    ({"pipeline": "lung-nodule"}, lambda row: "lung-nodule" in row["jobs"]),
    ({"findings": "with"}, lambda row: row["findings"] not in ("", "0")),
    ({"findings": "without", "modality": "US"}, lambda row: row["findings"] == "0" and row["modality"] == "US"),
    ({"kind": "Mass"}, lambda row: row["modality"] == "US" and row["findings"] not in ("", "0")),
    ({"kind": "Nodule"}, lambda row: row["modality"] == "CT" and row["findings"] not in ("", "0")),
    ({"min_mm": "12.5"}, lambda row: float(row["largest_mm"] or 0) >= 12.5),
    ({"state": "closed"}, lambda row: row["state"] == "closed"),
    ({"state": "deleted", "modality": "US"}, lambda row: False),
    ({"job": "failed"}, lambda row: "failed" in row["jobs"]),
    ({"since": "{today}", "sender": "SENDER"}, lambda row: row["sender"] == "SENDER"),
    ({"since": "{tomorrow}"}, lambda row: False),
    ({"before": "{a_week_ago}"}, lambda row: row["first_arrival"] < f"{datetime.now(UTC) - timedelta(7):%F}"),
]  # fmt: skip


def test_the_list_is_narrowed_by_each_of_its_fields(ana: Somebody, day: Day) -> None:
    now = datetime.now(UTC)
    days = {"today": f"{now:%F}", "tomorrow": f"{now + timedelta(1):%F}", "a_week_ago": f"{now - timedelta(7):%F}"}
    every = known(day)
    for asked, wanted in NARROWED:
        ana.goes("/")
        ana.fills(**{field: value.format(**days) for field, value in asked.items()})
        said = ana.presses("Show", "form[role=search]")
        rows = [each["series_uid"] for each in every if wanted(each)]
        assert len(rows) < len(every), asked
        assert uids_shown(ana) == rows[:50], asked
        if rows:
            assert f"{len(rows)} of {len(every)} series" in said, asked
            got = ana.page.do("download", words="As CSV")
            exported = list(csv.DictReader(Path(got["path"]).read_text().splitlines()))
            assert [each["series_uid"] for each in exported] == rows, asked


def test_the_list_is_put_in_each_order(ana: Somebody, day: Day) -> None:
    every = known(day)
    timed = [each for each in every if each["turnaround_s"]]
    slowest = sorted(timed, key=lambda row: (float(row["turnaround_s"]), row["series_uid"]), reverse=True)
    for order, rows in (("oldest", every[::-1]), ("slowest", slowest)):
        ana.goes("/")
        ana.fills(sort=order)
        ana.presses("Show", "form[role=search]")
        assert uids_shown(ana) == [each["series_uid"] for each in rows[:50]], order
        ana.presses("Next page")
        assert uids_shown(ana) == [each["series_uid"] for each in rows[50:100]], order


# What is set ---------------------------------------------------------------------------------------------------------

AS_FORM, AS_TOML = "form.entry", "form.entry:has([name=toml])"


def add_route(ana: Somebody, name: str, seen: str, how: str = "is", **fields: str) -> str:
    """By the form, for ultrasound of this Series Description, to the PACS; what the page says then."""
    ana.goes("/routes/edit")
    ana.fills(name=name, pipeline="breast-us", send_to="pacs", **fields)
    for number, (keyword, value) in enumerate((("Modality", "US"), ("SeriesDescription", seen))):
        ana.page.do("fill", field="condition.keyword", value=keyword, number=number)
        ana.page.do("fill", field="condition.value", value=value, number=number)
    if how != "is":
        ana.page.do("evaluate", code=f"document.querySelectorAll('[name=\"condition.how\"]')[1].value = {how!r}")
    said = ana.presses("Activate", AS_FORM)
    assert ana.path == "/routes", said
    return said


def delete_route(ana: Somebody, name: str) -> str:
    ana.goes("/routes")
    of_it = f"section.job:has(form input[name=name][value={name!r}])"
    ana.page.do("click", selector=f"{of_it} summary")
    said = ana.presses(f"Delete {name}", of_it)
    assert name not in ana.lists("section.job h2")
    return said


def test_a_route_with_hours_waits_for_them_unless_somebody_hurries_it(ana: Somebody, day: Day, tmp_path: Path) -> None:
    later = datetime.now() + timedelta(hours=3)
    hours = f"{later:%H}:30-{later + timedelta(hours=2):%H}:30"
    assert hours in add_route(ana, "night", "Night", hours=hours)
    day.send("night", ultrasound(tmp_path, 31, SeriesDescription="Night"))
    words = f"waits for the hours of its route, {hours}"
    ana.waits_until_it_says(f"/series/{day.series['night']}", "rests", words)
    assert words in ana.goes("/queue")
    ana.presses("Next", f"tr:has(a[href^='/series/{day.series['night']}'])")
    assert [each["state"] for each in day.done("night")["jobs"]] == ["done"] * 3
    assert len(day.in_pacs("night", "SR")) == 1
    delete_route(ana, "night")


def test_a_route_that_needs_another_series_waits_for_it(ana: Somebody, day: Day, tmp_path: Path) -> None:
    said = add_route(ana, "pair", "Pair", needs='series = [{ SeriesDescription = "Second" }]')
    wanted = "a series with SeriesDescription Second"
    assert f"with, in its study, {wanted}" in said
    study = generate_uid()
    day.send("pair", ultrasound(tmp_path / "pair", 32, SeriesDescription="Pair", StudyInstanceUID=study))
    ana.waits_until_it_says(f"/series/{day.series['pair']}", f"waits for {wanted} of the study")
    day.send("second", ultrasound(tmp_path / "second", 32, SeriesDescription="Second", StudyInstanceUID=study))
    assert [each["state"] for each in day.done("pair")["jobs"]] == ["done"] * 3
    assert day.done("second")["jobs"] == []
    delete_route(ana, "pair")


def test_a_fallback_takes_what_no_other_route_does(ana: Somebody, day: Day, tmp_path: Path) -> None:
    assert "fallback" in add_route(ana, "rest", ".", "regex", fallback="true")
    for name, description in (("left", "Left"), ("taken", "Breast")):
        day.send(name, ultrasound(tmp_path / name, 33 + len(name), SeriesDescription=description))
    assert [each["route"] for each in day.done("left")["jobs"]] == ["rest"] * 3
    assert [each["route"] for each in day.done("taken")["jobs"]] == ["breast"] * 3
    assert "is a fallback, and 'breast' takes the series" in ana.at("taken")
    delete_route(ana, "rest")


def test_a_route_as_toml_is_checked_tried_on_a_series_activated_and_deleted(
    ana: Somebody, day: Day, tmp_path: Path
) -> None:
    toml = """[[route]]
name = "second opinion"
match = { Modality = "US", SeriesDescription = { regex = "breast|opinion" } }
pipeline = "breast-us"
options = { threads = 1 }
send_to = ["surgeon"]  # by hand
"""
    ana.goes("/routes/edit")
    ana.fills(toml=toml.replace("pipeline", "pipelin"))
    assert "no setting 'pipelin' in" in ana.presses("Check", AS_TOML)
    ana.fills(toml=toml)
    assert "Good: this can be activated." in ana.presses("Check", AS_TOML)
    ana.page.do("fill", field="series_uid", value=day.series["breast"], number=1)
    tried = ana.presses("Try", AS_TOML)
    assert "runs second opinion additionally" in tried
    ana.page.do("fill", field="series_uid", value=day.series["chest"], number=1)
    tried = ana.presses("Try", AS_TOML)
    assert "does not second opinion Modality is CT, rule wants US" in tried
    assert "second opinion" not in ana.goes("/routes"), "nothing of it is in force yet"
    ana.goes("/routes/edit")
    ana.fills(toml=toml)
    assert "second opinion" in ana.presses("Activate", AS_TOML)
    assert toml.rstrip() in day.node.config.read_text(), "as it was typed"
    day.send("opinion", ultrasound(tmp_path, 41, SeriesDescription="Opinion"))
    assert {each["route"] for each in day.done("opinion")["jobs"]} == {"second opinion"}
    delete_route(ana, "second opinion")
    assert "second opinion" not in day.node.config.read_text()


def test_of_two_who_save_at_once_the_second_is_told_and_loses_nothing_that_she_typed(
    ana: Somebody, ben: Somebody, day: Day
) -> None:
    for each in (ana, ben):
        each.goes("/peers/edit?name=sender")
    ben.fills(calls_from="127.0.0.1")
    ben.presses("Save and use at once")
    assert ben.path == "/peers"
    ana.fills(calls_from="10.0.0.7")
    said = ana.presses("Save and use at once")
    assert ana.is_refused(409)
    assert "changed meanwhile" in said
    assert "ben" in said
    assert ana.page.value("document.querySelector('[name=calls_from]').value") == "10.0.0.7"
    assert "10.0.0.7" not in day.node.config.read_text()
    ana.goes("/routes")
    ben.goes("/peers/edit?name=sender")
    ben.fills(calls_from="")
    ben.presses("Save and use at once")
    of_it = "section.job:has(form input[name=name][value='breast'])"
    ana.page.do("click", selector=f"{of_it} summary")
    assert "changed meanwhile" in ana.presses("Delete breast", of_it)
    assert "breast" in ana.lists("section.job h2"), "a route is not deleted that may have become another"
    assert ben.page.do("errors") == []


def test_the_file_as_it_was_edited_is_taken_up_or_what_is_wrong_is_said(ana: Somebody, day: Day) -> None:
    text = day.node.config.read_text()
    edited = '\n[[peer]]\nname = "edited by hand"\nae_title = "BYHAND"\nmay_send = true\n'
    day.node.config.write_text(text + edited.replace("may_send", "may_sned"))
    ana.goes("/settings")
    said = ana.presses("Take up the file as it was edited")
    assert ana.is_refused(400)
    assert "may_sned" in said
    assert "BYHAND" not in ana.goes("/peers")
    day.node.config.write_text(text + edited)
    ana.goes("/settings")
    said = ana.presses("Take up the file as it was edited")
    assert "All of the settings file is in force." in said
    assert "as BYHAND" in ana.goes("/peers")
    day.node.config.write_text(text)
    ana.goes("/settings")
    ana.presses("Take up the file as it was edited")
    assert "BYHAND" not in ana.goes("/peers")


# What runs -----------------------------------------------------------------------------------------------------------


def resume(ana: Somebody, what: str) -> None:
    ana.goes("/queue")
    form = f"form[action='/api/resume']:has(input[value='{what}'])"
    ana.presses("Resume", form)
    ana.goes("/queue")
    assert ana.counts(form) == 0


def test_a_destination_is_paused_and_resumed(ana: Somebody, day: Day, tmp_path: Path) -> None:
    ana.goes("/queue")
    ana.fills(what="destination pacs", reason="it is being upgraded")
    ana.presses("Pause")
    day.send("held", ultrasound(tmp_path, 51))
    ana.waits_until_it_says(f"/series/{day.series['held']}", "1 finding", "It waits", "it is being upgraded")
    assert "it is being upgraded" in ana.goes("/")
    assert [each["state"] for each in day.facts("held")["jobs"]][1:] in (["queued"], ["waiting"])
    assert day.in_pacs("held", "SR") == []
    resume(ana, "destination pacs")
    assert [each["state"] for each in day.done("held")["jobs"]] == ["done"] * 3
    assert len(day.in_pacs("held", "SR")) == 1


def test_a_device_is_paused_and_resumed(ana: Somebody, day: Day, tmp_path: Path) -> None:
    ana.goes("/queue")
    ana.fills(what="device auto", reason="its fan is changed", hours="2")
    ana.presses("Pause")
    day.send("unbegun", ultrasound(tmp_path, 52))
    ana.waits_until_it_says(f"/series/{day.series['unbegun']}", "breast-us", "its fan is changed")
    queue = ana.goes("/queue")
    assert "auto paused" in queue
    [job] = day.facts("unbegun")["jobs"]
    assert job["state"] in ("queued", "waiting")
    resume(ana, "device auto")
    assert [each["state"] for each in day.done("unbegun")["jobs"]] == ["done"] * 3


def test_many_run_again_and_what_says_the_same_is_sent_to_nobody_anew(ana: Somebody, day: Day) -> None:
    ran = {name for name in day.series if {"breast"} == {job["route"] for job in day.facts(name)["jobs"]}}
    assert len(ran) > 3
    before = {name: {each.SOPInstanceUID for each in day.in_pacs(name, "SR")} for name in ran}
    ana.goes("/rerun")
    ana.fills(route="breast", since=f"{datetime.now(UTC):%F}")
    said = ana.presses("Run again")
    assert f"{len(ran)} series will run again" in said, said
    for name in ran:
        inferred = [each for each in day.done(name)["jobs"] if each["kind"] == "infer"]
        assert [each["state"] for each in inferred] == ["done", "done"], name
        assert {each.SOPInstanceUID for each in day.in_pacs(name, "SR")} == before[name]


# What the node says of itself ----------------------------------------------------------------------------------------


def test_the_system_page_says_what_the_machine_is(ana: Somebody, day: Day) -> None:
    said = ana.goes("/system")
    facts = day.client.get("/api/system").json()
    disk = shutil.disk_usage(day.node.folder)
    assert f"Version {__version__}, Python {platform.python_version()}, SQLite at schema {facts['schema']}" in said
    assert f"of {disk.total / 1e9:.1f} GB free" in said
    tables = {title: ana.page.value(TABLE_UNDER + f"({title!r})") for title in ("Devices", "Models", "Peers")}
    assert [row[0] for row in tables["Devices"]] == ["auto"]
    assert set(tables["Devices"][0][3].split(", ")) == {"breast-us", "lung-nodule"}, "loaded"
    models = {row[0].split()[0]: row for row in tables["Models"]}
    assert models.keys() == {"breast-us", "lung-nodule"}
    for name, row in models.items():
        assert row[4] == {"breast-us": "breast", "lung-nodule": "chest"}[name]
        [report, *_] = day.in_pacs({"breast-us": "breast", "lung-nodule": "chest"}[name], "SR")
        assert report.SoftwareVersions.startswith(row[2].split("+")[0]), "as its reports say"
    peers = {row[0]: row[1:] for row in tables["Peers"]}
    assert list(peers) == ["sender", "pacs", "surgeon"]
    assert bool(peers["sender"][0]) and bool(peers["pacs"][1]) and bool(peers["surgeon"][1])  # noqa: PT018
    assert re.search(r"Certificate: dicom good until \S+ \S+ 10 days", said)
    beat = facts["heartbeat"]
    assert beat["state"] == "arrived"
    assert re.search(rf"Heartbeat arrived [\d :-]+, in {beat['seconds']:.0f} s its series", said)
    assert "breast-us" in ana.presses("its series")
    assert ana.path == f"/series/{beat['series']}"
    assert "arrived: found by C-FIND" in ana.reads()


# rows of the table that follows a heading of these words
TABLE_UNDER = """(title => {
  const heading = [...document.querySelectorAll('main h2')].find(each => each.textContent === title);
  let below = heading.nextElementSibling;
  while (!below.matches('table, :has(table)')) below = below.nextElementSibling;
  return [...below.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.innerText.trim()));
})"""


def test_the_page_of_a_pipeline_says_what_it_did_and_its_card_what_it_is(ana: Somebody, day: Day) -> None:
    ana.goes("/system")
    said = ana.presses("breast-us")
    assert ana.path == "/pipelines/breast-us"
    ended = {name: [job for job in day.facts(name)["jobs"] if job["kind"] == "infer"] for name in day.series}
    ran = [name for name, jobs in ended.items() if ("breast-us", "done") in {(j["pipeline"], j["state"]) for j in jobs}]
    [by_sender] = ana.lists("tr:has(td[data-label=Sender])")
    assert re.match(rf"SENDER{len(ran)}{len(ran)} \(100 %\)", by_sender), by_sender
    assert f"The highest is {len(ran)}." in said
    assert "Not to be told yet: it needs 8 weeks of this version" in said, "drift"
    said = ana.presses("SENDER")
    assert "Of the series from SENDER alone." in said
    assert f"The highest is {len(ran)}." in said
    card = ana.presses("Model card")
    assert " ".join((ROOT / "models" / "breast_us" / "CARD.md").read_text().split()) in card


def test_the_hospitals_viewer_is_reached_with_the_study(ana: Somebody, day: Day) -> None:
    ana.at("breast")
    address = ana.page.value("document.querySelector('main a[rel=noreferrer]').href")
    facts = day.facts("breast")
    assert address.endswith(f"#series?study={facts['study_uid']}&uid={facts['series_uid']}")
    assert httpx.get(address, timeout=30).status_code == 200


# What comes back -----------------------------------------------------------------------------------------------------


def from_pacs(day: Day, made: Dataset) -> None:
    """A workstation stores it in Orthanc, and that forwards it to the node."""
    path = day.folder / f"{made.SOPInstanceUID}.dcm"
    made.save_as(path, enforce_file_format=True)
    storescu(day.pacs, path)
    query = {"Level": "Instance", "Query": {"SOPInstanceUID": str(made.SOPInstanceUID)}}
    ids = httpx.post(f"{day.pacs.url}/tools/find", json=query, timeout=30).json()
    httpx.post(f"{day.pacs.url}/modalities/pacs-node/store", json=ids, timeout=60).raise_for_status()


def test_an_edited_outline_comes_back_from_the_pacs_and_is_seen_and_counted(ana: Somebody, day: Day) -> None:
    [ours] = day.in_pacs("chest", "SEG")
    theirs = edited(ours, erode_first)
    from_pacs(day, theirs)
    dice = f"outline edited, Dice {true_dice(ours, theirs, 1):.2f}, {WHO}, by ORTHANC 2026-03-02 09:15"
    ana.waits_until_it_says(f"/series/{day.series['chest']}", dice)
    said = ana.goes("/feedback")
    rows = [row for row in ana.page.value(TABLE_UNDER + "('What came back')") if row[0] == "lung-nodule"]
    assert rows[0][2:4] == [str(len(ours.SegmentSequence) - 1), "1"], said
    assert rows[0][-1] == f"{true_dice(ours, theirs, 1):.2f}"


def test_a_rejection_comes_back_from_the_pacs_and_is_seen_and_counted(ana: Somebody, day: Day) -> None:
    [seg], [report] = day.in_pacs("chest", "SEG"), day.in_pacs("chest", "SR")
    from_pacs(day, note(SimpleNamespace(seg=seg, report=report), "113001"))  # type: ignore[arg-type]
    words = f"Inappropriate image processing, {WHO}, by ORTHANC 2026-03-02 10:15"
    said = ana.waits_until_it_says(f"/series/{day.series['chest']}", words)
    assert "Result rejected" in said
    ana.goes("/feedback")
    [row] = [row for row in ana.page.value(TABLE_UNDER + "('What came back')") if row[0] == "lung-nodule"]
    assert row[6] == "1"


# Who is told ---------------------------------------------------------------------------------------------------------


def is_told(day: Day, words: str) -> str:
    """The line that says so."""

    def told() -> str | None:
        return next((line for line in day.listener.lines() if re.search(words, line)), None)

    return str(wait_for(told, PATIENCE_S, f"to be told {words!r}: {day.listener.told}\n{day.node.log()}"))


def test_somebody_is_told_of_silence_certificate_and_disk(ana: Somebody, day: Day) -> None:
    assert "normally 2 an hour" in is_told(day, f"no {MUTE} since ")
    is_told(day, r"the dicom certificate of the node ends in 10 days")
    is_told(day, r"the disk of the node is full in [\d.]+ days")
    assert re.search(r"; full in [\d.]+ days if as much comes as in the last week", ana.goes("/system"))


def test_a_destination_that_is_down_is_told_of_and_that_it_is_well_again(
    ana: Somebody, day: Day, tmp_path: Path
) -> None:
    port = free_port()
    ana.goes("/peers/edit")
    ana.fills(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=str(port))
    ana.presses("Save and use at once")
    add_route(ana, "to the archive", "Archive")
    ana.goes("/routes/edit?name=to the archive")
    ana.page.do("evaluate", code="document.querySelector('[name=send_to][value=pacs]').checked = false")
    ana.fills(send_to="archive")
    ana.presses("Activate", AS_FORM)
    day.send("archived", ultrasound(tmp_path / "1", 61, SeriesDescription="Archive"))
    is_told(day, "^archive has taken nothing since")
    ana.goes("/")
    ana.fills(trouble="1")
    ana.presses("Show", "form[role=search]")
    assert uids_shown(ana) == [day.series["archived"]]
    with Receiver("ARCHIVE", port) as archive:
        is_told(day, "^well again: archive has taken nothing since")
        assert {each.Modality for each in archive.arrivals} >= {"SEG", "SR"}
        wait_for(lambda: "waiting" not in [each["state"] for each in day.facts("archived")["jobs"][:2]], 60, "sent")


def test_what_has_failed_for_good_is_dismissed(ana: Somebody, day: Day, tmp_path: Path) -> None:
    """The archive is taken out of service while results wait for it."""
    day.send("lost", ultrasound(tmp_path, 62, SeriesDescription="Archive"))
    wait_for(lambda: len(day.facts("lost")["jobs"]) > 1, PATIENCE_S, "a send")
    delete_route(ana, "to the archive")
    ana.goes("/peers")
    row = "tr:has(input[name='name'][value='archive'])"
    ana.page.do("click", selector=f"{row} summary")
    assert "still open for it will fail" in ana.page.value(f"document.querySelector({row!r}).textContent")
    ana.presses("Delete archive", row)
    said = ana.waits_until_it_says("/", "these jobs need you")
    assert day.series["lost"] in said
    is_told(day, "failed for good")
    page = ana.at("lost")
    assert "the settings have no peer 'archive'" in page
    for name in ("lost", "archived"):
        while "failed" in [each["state"] for each in day.facts(name)["jobs"]]:
            ana.at(name)
            ana.presses("Dismiss")
    assert "these jobs need you" not in ana.goes("/")
    assert day.client.get("/health").json()["status"] == "ok"


# Without JavaScript --------------------------------------------------------------------------------------------------


PICTURES = "[...document.querySelectorAll('main img.small-picture')].map(each => each.naturalWidth)"


def test_the_same_pages_without_javascript(day: Day, browser: Page) -> None:
    ana = Somebody(day, "ana", browser, javaScript=False)
    assert ana.counts("table.list tbody tr") == 50
    ana.fills(q="Chest")
    ana.presses("Show", "form[role=search]")
    assert set(uids_shown(ana)) == {day.series["chest"], day.series["earlier"]}
    ana.goes("/")
    ana.fills(patient="A-17")
    ana.presses("Find")
    assert uids_shown(ana) == [day.series["breast"]]
    ana.goes("/peers/edit?name=sender")
    ana.fills(calls_from="127.0.0.1")
    assert "from 127.0.0.1" in ana.presses("Save and use at once")
    for name, finding in (("chest", "Nodule 1"), ("breast", "Lesion 1")):
        said = ana.at(name, "/view")
        assert finding in said
        wait_for(lambda: (widths := ana.page.value(PICTURES)) and all(widths), 60, "each picture")
    assert "Turning the slices needs JavaScript" in ana.at("chest", "/view")
    assert ana.mistakes() == []
