"""A shadow route: nothing of it leaves, whatever is done; it is in nobody's way; and it is compared with a live one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from config import load
from dicom_sr.findings import Findings
from models import catalogue
from models.breast_us.pipeline import probabilities
from pacs_node.errors import GiveUp, Refused, TryAgain
from pacs_node.facts import NodeFacts
from pacs_node.node import Node
from pacs_node.notify import Notifier, World
from pacs_node.records import NEXT, SHADOW, STAT, Evidence, Instance, Job, OpenSeries, Package, Receipt, Wanted
from pacs_node.settings_trial import Trial
from pacs_node.shadow import NEAR_MM, agreement, class_of, paired, places_of
from pacs_node.web.app import create_app
from tests import results
from tests.factories import point_lps_mm, us_image
from tests.results import mass, us_findings
from tests.standins import NoInference

PEERS = {  # every kind of place that results are sent to, each with all that is made for it
    "pacs": 'ae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\nreject_replaced = true\nviewer = "ohif"\n',
    "web": 'dicomweb_url = "http://127.0.0.1:1/dicom-web"\nsegmentation = "LABELMAP"\n',
    "files": 'folder = "out/files"\n',
}
TOML = (
    '[node]\ndata_dir = "data"\n[infer]\ntune = false\n'
    + "".join(
        f'[[peer]]\nname = "{name}"\nkey_objects = true\nkey_images = "all"\n{more}' for name, more in PEERS.items()
    )
    + """
[[notify]]
name = "on-call"
urls = ["json://127.0.0.1/"]
about = ["node", "jobs", "destination", "finding"]
[[route]]
name = "live"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["pacs", "web", "files"]
[[route]]
name = "next"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["pacs", "web", "files"]
report_not_run = true
shadow = true
"""
)


class Model(NoInference):
    """fails: how its next runs end; shift: where it finds something, in pixels."""

    def __init__(self) -> None:
        self.versions = 1
        self.fails: list[Exception] = []
        self.shift = 0

    def run(self, pipeline: str, options: Mapping[str, Any], files: Sequence[Path], progress: Any) -> Findings:
        if self.fails:
            raise self.fails.pop()
        images = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
        found = us_findings(images, mass(1, (0, 20 + self.shift, 30)))
        return replace(found, algorithm=replace(found.algorithm, version=self.version(pipeline, options)))

    def version(self, pipeline: str, options: Mapping[str, Any]) -> str:
        return f"0.{self.versions}"


class Sink:
    """In the place of a destination: what reaches it, it has."""

    def __init__(self) -> None:
        self.got: list[Package] = []
        self.away = False

    def deliver(self, package: Package, now: Callable[[], datetime]) -> list[Receipt]:
        if self.away:
            raise TryAgain("it is away")
        self.got.append(package)
        objects = [pydicom.dcmread(path, stop_before_pixels=True) for path in package.paths]
        return [Receipt(str(o.SOPInstanceUID), True, 0, "0x0000 Success", now(), str(o.SOPClassUID)) for o in objects]


class Story:
    """A node of one ultrasound series, moved by hand; all its jobs run in their order."""

    def __init__(self, folder: Path, toml: str = TOML) -> None:
        self.folder, self.time, self.images = folder, datetime(2026, 1, 2, 3, 4, tzinfo=UTC), 0
        (folder / "node.toml").write_text(toml)
        self.node = Node(load(folder / "node.toml", catalogue()), now=self.now, file=folder / "node.toml")
        self.node.ledger.migrate()
        self.ledger, self.facts, self.model = self.node.ledger, NodeFacts(self.node), Model()
        self.node.stages.inference = self.model  # type: ignore[assignment]
        self.sinks = {name: Sink() for name in PEERS}
        self.wired()
        self.told: list[str] = []
        self.notifier = Notifier(
            self.node.config.notices,
            self.ledger,
            self.world,
            "node",
            60,
            lambda urls, title, body: self.told.append(body),
        )
        self.app = TestClient(create_app(self.facts, CollectorRegistry()), base_url="http://localhost")
        self.ran: list[Job] = []

    def wired(self) -> None:
        self.node.stages.destinations = dict(self.sinks)  # type: ignore[arg-type]
        self.node.stages.arrival_checks = {}

    def world(self) -> World:
        return World(self.time, self.node.trouble(), self.facts.failed_tasks())

    def now(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time

    @property
    def uid(self) -> str:
        return str(us_image().SeriesInstanceUID)

    def receive(self) -> list[Job]:
        self.images += 1
        image = us_image()
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"2.25.{self.images}"
        path = self.folder / f"us{self.images}.dcm"
        image.save_as(path, enforce_file_format=True)
        uids = f"2.25.{self.images}", str(image.SOPClassUID), self.uid, str(image.StudyInstanceUID)
        syntax = str(image.file_meta.TransferSyntaxUID)
        size = path.stat().st_size
        self.ledger.take_in(Instance(*uids, syntax, path, size, self.now(), "a", "US1"))
        series = OpenSeries(self.uid, uids[3], Evidence(self.now(), self.images), ("US1",))
        return self.node.flow.close(series, "quiet")

    def set_shadow(self, route: str, shadow: bool) -> None:
        """The settings say so from now on."""
        config = self.node.config
        routes = tuple(
            each.model_copy(update={"shadow": shadow}) if each.name == route else each for each in config.routes
        )
        self.node.config = config.model_copy(update={"routes": routes})
        self.node.stages.wire(self.node.stages.wiring(self.node.config))
        self.wired()

    def work(self, most: int = 50) -> None:
        """All that is due runs, in the order of the queues."""
        for _ in range(most):
            due = self.ledger.due_jobs(self.now(), dict.fromkeys(("infer", "send", "confirm", "report"), 1), 3600)
            if not due:
                return
            self.ran.append(due[0])
            self.node.flow.run(due[0].id, due[0].generation, due[0].attempt)

    def jobs(self, route: str, kind: str = "infer") -> list[dict[str, Any]]:
        series = self.ledger.series(self.uid)
        return [job for job in (series or {"jobs": []})["jobs"] if (job["route"], job["kind"]) == (route, kind)]

    def objects_of(self, route: str) -> set[str]:
        return {result["sop_instance_uid"] for job in self.jobs(route) for result in job["results"]}

    def left(self) -> set[str]:
        """SOP Instance UIDs of all that reached any destination."""
        packages = [package for sink in self.sinks.values() for package in sink.got]
        return {str(pydicom.dcmread(path).SOPInstanceUID) for package in packages for path in package.paths}


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    yield story
    story.node.stop()


# ---- nothing leaves


def press(story: Story, path: str, **form: str) -> None:
    story.app.post(path, data=form)


def retry_all(story: Story) -> None:
    for job in (story.ledger.series(story.uid) or {"jobs": []})["jobs"]:
        press(story, f"/api/jobs/{job['id']}/retry")


def download(story: Story) -> None:
    for job in story.jobs("next"):
        for result in job["results"]:
            assert story.app.get(f"/api/jobs/{job['id']}/results/{result['sop_instance_uid']}.dcm").status_code == 404
        assert story.app.get(f"/api/jobs/{job['id']}/rejected").json() == []


def findings(story: Story) -> None:
    if story.ledger.series(story.uid) is None:
        return
    shadows = {job["id"] for job in story.jobs("next")}
    told = story.app.get(f"/api/series/{story.uid}/findings").json()
    assert not shadows & {result["job"] for result in told["results"]}
    assert not any(job in story.app.get(f"/api/series/{story.uid}/findings?form=csv").text for job in shadows)


def fail(error: Exception) -> Callable[[Story], object]:
    def happens(story: Story) -> None:
        story.model.fails.append(error)
        story.receive()

    return happens


def away(story: Story) -> None:
    for sink in story.sinks.values():
        sink.away = not sink.away


def later(story: Story) -> None:
    story.time += timedelta(hours=1)


def new_version(story: Story) -> None:
    story.model.versions += 1


def send_by_hand(story: Story) -> None:
    """A send job made in spite of it all does not come into the ledger."""
    for facts in story.jobs("next"):
        job = story.ledger.job(facts["id"])
        assert job is not None
        send = story.node.flow._send_job(replace(job, send_to=tuple(PEERS)), "pacs")
        with pytest.raises(ValueError, match="nothing of a shadow leaves"), story.ledger._begin() as db:
            story.ledger._add_job(db, send)


WAYS: dict[str, Callable[[Story], object]] = {  # whatever makes results leave a node
    "images come, or late ones": Story.receive,
    "it is refused, and says so": fail(Refused("no breast")),
    "the model fails for good": fail(GiveUp("out of order")),
    "the model fails once": fail(TryAgain("again")),
    "jobs run": Story.work,
    "time passes": later,
    "destinations go and come": away,
    "another version of the model": new_version,
    "every job retried": retry_all,
    "run again, by its page": lambda story: press(story, f"/api/series/{story.uid}/rerun"),
    "run again, by route": lambda story: press(story, "/api/rerun", route="next"),
    "run again, by time": lambda story: press(story, "/api/rerun", since="2026-01-01"),
    "run again, by command": lambda story: story.node.rerun(story.uid, "next"),
    "retried in bulk": lambda story: story.facts.bulk("retry", [story.uid], "ada"),
    "run again in bulk": lambda story: story.facts.bulk("rerun", [story.uid], "ada"),
    "its files downloaded": download,
    "its findings exported": findings,
    "somebody is told": lambda story: story.notifier.look(),
    "a send made by hand": send_by_hand,
}


@pytest.mark.parametrize("seed", range(4))
def test_nothing_of_a_shadow_leaves_whatever_is_done(tmp_path: Path, seed: int) -> None:
    story, dice = Story(tmp_path), random.Random(seed)
    story.notifier.look()
    story.receive()
    ways = [*WAYS, *dice.choices(list(WAYS), k=12)]
    dice.shuffle(ways)
    try:
        for name in ways:
            WAYS[name](story)
            assert not story.objects_of("next") & story.left(), name
        for sink in story.sinks.values():
            sink.away = False
        story.model.fails.clear()
        later(story)
        story.work()
        assert story.node.rerun(story.uid) is None
        story.work()
        story.notifier.look()
        shadows = {job["id"] for job in story.jobs("next")}
        assert story.objects_of("next"), "it has results"
        assert story.left(), "the live route sent its own"
        assert not story.objects_of("next") & story.left()
        assert not story.jobs("next", "send")
        assert not story.jobs("next", "confirm")
        objects = {pydicom.dcmread(path).SOPInstanceUID for path in (story.folder / "out").rglob("*.dcm")}
        assert not objects & story.objects_of("next")
        assert not any("next" in told or uid in told for told in story.told for uid in shadows)
    finally:
        story.node.stop()


def test_what_was_live_is_not_sent_once_its_route_is_a_shadow_and_again_when_it_is_live(story: Story) -> None:
    story.sinks["pacs"].away = True
    story.receive()
    story.work()
    assert [job["state"] for job in story.jobs("live", "send")].count("waiting") == 1
    story.sinks["pacs"].away = False
    story.set_shadow("live", shadow=True)
    later(story)
    story.work()
    [stopped] = [job for job in story.jobs("live", "send") if job["destination"] == "pacs"]
    assert (stopped["state"], story.sinks["pacs"].got) == ("refused", [])
    assert stopped["reason"] == "not sent: route 'live' is a shadow, and nothing of a shadow leaves the node"
    story.set_shadow("live", shadow=False)
    assert story.facts.retry(stopped["id"]) is None
    story.work()
    assert len(story.sinks["pacs"].got) == 1


def test_what_ran_as_a_shadow_stays_one_when_its_route_is_live(story: Story) -> None:
    story.receive()
    story.work()
    before = story.objects_of("next")
    story.set_shadow("next", shadow=False)
    retry_all(story)
    story.work()
    assert not before & story.left()
    assert story.facts.rerun(story.uid) is None
    story.work()
    assert len(story.jobs("next", "send")) == len(PEERS), "run again it is live"
    assert not before & story.left()


# ---- in nobody's way


def test_a_shadow_is_behind_every_live_job_however_long_it_waits(story: Story) -> None:
    story.receive()
    later(story)
    waiting = story.ledger.open_jobs()
    shadow = next(job for job in waiting if job.shadow)
    live = next(job for job in waiting if not job.shadow)
    with story.ledger._begin() as db:
        for number, priority in enumerate((7, 5, 3) * 4):
            story.ledger._add_job(db, replace(live, id=f"j{number}", series_uid=f"1.{number}", priority=priority))
    order = []
    for _ in range(14):
        [job] = story.ledger.due_jobs(story.now(), dict.fromkeys(("infer", "send", "confirm", "report"), 1), 1.0)
        assert story.ledger.begin(job, "w", story.now())
        order.append(job.id)
    assert order[-1] == shadow.id


@pytest.mark.parametrize("priority", [NEXT, STAT])
def test_nobody_makes_a_shadow_urgent(story: Story, priority: int) -> None:
    shadow = next(job for job in story.receive() if job.shadow)
    assert "shadow" in str(story.ledger.hurry(shadow.id, priority, "ana", story.now()))
    assert {job.priority for job in story.ledger.open_jobs() if job.shadow} == {SHADOW}


def test_a_shadow_that_fails_is_said_and_no_trouble(story: Story) -> None:
    story.receive()
    [shadow] = [job for job in story.ledger.open_jobs() if job.shadow]
    before = story.facts.health()["status"]
    assert story.ledger.begin(shadow, "w", story.now())
    assert story.ledger.finish(shadow, "failed", "out of order", story.now())
    health = story.facts.health()
    assert health["shadow_reasons"] == ["breast-us has failed for good (1 job): out of order"]
    assert (health["status"], health["attention"]) == (before, [])
    assert (health["infer"]["failed"], health["shadow"]["failed"]) == (0, 1)
    assert story.facts.failed_tasks() == {}
    assert story.facts.series_count(Wanted(trouble=True))[0] == 0


def test_a_live_result_waits_for_no_shadow_and_is_void_for_none(story: Story) -> None:
    """Late images that only the shadow can use leave the results of the first to be sent; an open shadow holds up no
    other run."""
    for sink in story.sinks.values():
        sink.away = True
    story.receive()
    story.work(4)
    waiting = len(story.jobs("live", "send"))
    match = story.node.stages.matches
    story.node.stages.matches = lambda header: [  # type: ignore[method-assign]
        replace(each, why_not="not now") if each.rule == "live" else each for each in match(header)
    ]
    story.receive()
    assert [job["state"] for job in story.jobs("live", "send")].count("superseded") == 0 < waiting
    story.node.stages.matches = match  # type: ignore[method-assign]
    assert story.node.rerun(story.uid) is None, "though a shadow waits"
    assert [job["state"] for job in story.jobs("next")].count("queued") == 1


def test_what_a_shadow_made_keeps_no_image_from_retention(story: Story) -> None:
    from pacs_node.retention import doubts

    story.receive()
    story.work()
    holding = story.ledger.holding(story.uid)
    assert holding is not None
    assert [why for _, why in doubts(holding, frozenset(PEERS))] == []
    assert any(job.shadow for job in holding.jobs)


# ---- seen, and compared


def test_what_a_shadow_says_is_marked_wherever_it_is_seen(story: Story) -> None:
    story.receive()
    story.work()
    told = story.facts.findings(story.uid, 60)
    assert told is not None
    assert [each["shadow"] for each in told["results"]] == [False, True]
    assert told["results"][1]["warnings"][0] == "shadow: seen by nobody but this page"
    assert [f["label"] for each in told["results"] for f in each["findings"]] == ["Mass 1", "Mass 1 (shadow)"]
    page = story.app.get(f"/series/{story.uid}").text
    assert page.count('class="pill calm">shadow: seen by nobody but this page') == 2, "its job and its findings"
    assert [
        len(story.app.get(f"/api/series/{story.uid}/findings{q}").json()["results"]) for q in ("", "?shadow=1")
    ] == [1, 2]


def test_both_are_compared_on_a_page_as_json_and_as_csv(story: Story) -> None:
    story.receive()
    story.work(1)
    story.model.shift = 17
    story.work()
    [told] = story.facts.shadows()
    assert (told["route"], told["beside"], told["states"]) == ("next", {"live": 1}, {"done": 1})
    answer = story.app.get("/api/shadow").json()["compared"]
    assert (answer["series"], answer["found"]) == (1, {"both": 0, "live_alone": 1, "shadow_alone": 1})
    [each] = answer["each"]
    assert each["differs"] == "1 found by the live route alone; 1 found by the shadow alone"
    page = story.app.get("/shadow?route=next&live=live").text
    assert each["differs"] in page
    assert f'href="/series/{story.uid}"' in page
    lines = story.app.get("/api/shadow.csv").text.splitlines()
    assert (len(lines), lines[1].split(",")[0]) == (2, story.uid)
    assert story.app.get("/api/shadow?before=2026-01-01").json()["compared"]["series"] == 0
    assert story.app.get("/api/shadow?route=no").status_code == 400


def finding(
    place: Sequence[float] | None, size: float = 6.0, of_class: str | None = None, **more: Any
) -> dict[str, Any]:
    return {"lps_mm": place, "size": size, "in_mm": True, "class": of_class, "image": "1.2", "frame": None, **more}


def said(found: Sequence[dict[str, Any]], of_class: str | None = None, state: str = "done") -> dict[str, Any]:
    places = {"class": of_class, "findings": list(found)}
    return {"state": state, "reason": "why", "seconds": 2.0, "places": places if state == "done" else None}


PLACES = st.lists(st.tuples(*[st.integers(-20, 20)] * 3), max_size=5)


@settings(deadline=None)
@given(some=PLACES, others=PLACES)
def test_findings_are_paired_at_most_once_and_only_where_they_lie_near(some: Any, others: Any) -> None:
    pair = paired("1", said([finding(each) for each in some]), said([finding(each) for each in others]))
    assert len({i for i, _ in pair.both}) == len({j for _, j in pair.both}) == len(pair.both)
    assert all(np.linalg.norm(np.subtract(some[i], others[j])) < NEAR_MM for i, j in pair.both)
    mirrored = paired("1", pair.shadow, pair.live)
    assert len(mirrored.both) == len(pair.both)
    assert pair.alone == (len(some) - len(pair.both), len(others) - len(pair.both))
    left = [i for i in range(len(some)) if i not in {i for i, _ in pair.both}]
    right = [j for j in range(len(others)) if j not in {j for _, j in pair.both}]
    assert all(np.linalg.norm(np.subtract(some[i], others[j])) >= NEAR_MM for i in left for j in right)


@settings(deadline=None)
@given(some=PLACES)
def test_a_route_agrees_with_itself(some: Any) -> None:
    apart = {tuple(each) for each in some}
    told = agreement([paired("1", said([finding(p) for p in apart]), said([finding(p) for p in apart]))])
    assert told["found"] == {"both": len(apart), "live_alone": 0, "shadow_alone": 0}
    assert told["sizes"]["mean_mm"] in (0.0, None)


def test_the_class_is_the_likeliest_of_several() -> None:
    assert class_of(probabilities(np.array([0.1, 0.2, 0.7]))) == "malignant"
    assert class_of(probabilities(np.array([0.3, 0.5, 0.2]))) == "benign"
    assert class_of(probabilities(np.array([0.2, 0.4, 0.4]))) == "malignant", "of two alike the graver"
    assert class_of(probabilities(np.array([0.1, 0.2, 0.7]))[-1:]) is None


@pytest.mark.parametrize(
    ("a", "b", "near"),
    [
        ({"box": [0, 0, 9, 9]}, {"box": [8, 0, 17, 9]}, True),
        ({"box": [0, 0, 9, 9]}, {"box": [13, 0, 22, 9]}, False),
        ({"box": [0, 0, 39, 9]}, {"box": [13, 0, 22, 9], "frame": 3}, True),
        ({"box": [0, 0, 9, 9]}, {"box": [0, 0, 9, 9], "image": "1.3"}, False),
        ({"box": None}, {"box": None}, True),
        ({"box": None}, {"box": None, "frame": 2}, False),
    ],
)
def test_without_millimetres_they_are_paired_on_their_image(a: Any, b: Any, near: bool) -> None:
    pair = paired("1", said([finding(None, **a)]), said([finding(None, **b)]))
    assert bool(pair.both) == near


def test_sizes_and_classes_agree_as_bland_altman_and_cohen_have_it() -> None:
    pairs = [
        paired("1", said([finding((0, 0, 0), 6.0, "benign")]), said([finding((0, 0, 1), 7.0, "benign")])),
        paired("2", said([finding((0, 0, 0), 8.0, "benign")]), said([finding((0, 0, 1), 11.0, "malignant")])),
        paired("3", said([], "malignant"), said([], "malignant")),
        paired("4", said([], "normal"), said([], state="refused")),
    ]
    told = agreement(pairs)
    assert (told["series"], told["not_both"]) == (3, 1)
    assert told["sizes"] == {"number": 2, "mean_mm": 2.0, "low_mm": -0.77, "high_mm": 4.77}  # 2 -+ 1.96 * sqrt(2)
    # observed 2/3; by chance (2 * 1 + 1 * 2) / 9 = 4/9
    assert (told["classes"]["agree"], told["classes"]["kappa"]) == (2, 0.4)
    assert [each.differs() for each in pairs] == [
        None,
        "8 mm, by the shadow 11 mm; benign, by the shadow malignant",
        None,
        "shadow refused: why",
    ]


@pytest.mark.parametrize("name", ["ct_two", "ct_oblique", "ct_enhanced", "us_one", "us_several", "ct_of_every_extent"])
def test_places_are_those_of_the_images(name: str) -> None:
    """Of slices however they lie: the middle of the mask by the header of its own slice, as the test reckons it."""
    case = getattr(results, name)()
    headers = {str(image.SOPInstanceUID): image for image in case.images}
    told = places_of(case.findings, lambda uid: headers[uid])
    assert len(told["findings"]) == len(case.findings.findings) > 0
    for found, place in zip(case.findings.findings, told["findings"], strict=True):
        if place["lps_mm"] is None:
            assert found.extent == "none" or case.findings.geometry == "image"
            continue
        z, row, column = np.argwhere(found.mask).mean(axis=0) + found.offset_zyx
        ref = case.findings.images[round(z)]
        if ref.frame is None:
            expected = point_lps_mm(headers[ref.sop_instance_uid], row, column)
            assert np.allclose(place["lps_mm"], expected, atol=0.01)


def test_the_trial_says_what_would_run_as_a_shadow(story: Story) -> None:
    story.receive()
    before = story.node.config
    live = before.model_copy(update={"routes": tuple(r.model_copy(update={"shadow": False}) for r in before.routes)})
    trial = Trial(story.node.stages, story.ledger, story.now)
    as_one = ("as a shadow: nothing of it is sent",)
    for then, terms, change in ((before, as_one, ""), (live, (), "other")):
        found = trial.on_series(story.uid, then)
        assert found is not None
        [said] = [each for each in found[1] if each.route == "next"]
        assert (said.then, said.terms, said.change) == (None, terms, change)
