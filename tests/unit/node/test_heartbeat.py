"""What a heartbeat is, and that it is in no figure; whatever pretends to be one makes no result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import problems
from config.check import HEARTBEAT_AE as RESERVED
from models import catalogue
from pacs_node.flow import Flow, RouteMatch
from pacs_node.heartbeat import MARK, Heartbeat, how_far, phantom
from pacs_node.ledger.tables import job_table, series_table
from pacs_node.pulse import Way, is_marked, why_none
from pacs_node.records import EVERY, HEARTBEAT_AE, HEARTBEAT_ID, Also, Evidence, Instance, OpenSeries, Pause, Wanted
from pacs_node.retention import Retention
from tests.factories import us_image
from tests.unit.node.test_facts import Story

SENDERS = st.sets(st.sampled_from([HEARTBEAT_AE, "CT1", "PACS"]), min_size=1)
PATIENTS = st.sets(st.sampled_from([HEARTBEAT_ID, HEARTBEAT_ID.lower(), f" {HEARTBEAT_ID}", "4711", ""]), min_size=1)


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    yield story
    story.node.stop()


@given(SENDERS, PATIENTS)
def test_nothing_but_a_whole_heartbeat_is_one(senders: set[str], patients: set[str]) -> None:
    whole = senders == {HEARTBEAT_AE} and patients == {HEARTBEAT_ID}
    of_patients = HEARTBEAT_AE not in senders and not {p.strip().upper() for p in patients} & {HEARTBEAT_ID}
    assert is_marked(senders, patients) is not of_patients
    if is_marked(senders, patients):
        assert (why_none(senders, patients) is None) is whole


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    story = Story(tmp_path_factory.mktemp("node"))
    yield story.node.flow
    story.node.stop()


@pytest.mark.parametrize("way", [None, Way("breast", "archive"), Way("gone", "archive")], ids=["off", "on", "gone"])
@settings(deadline=None)
@given(senders=SENDERS, patients=PATIENTS, why_not=st.sampled_from([None, "Modality is CT, rule wants US"]))
def test_a_phantom_goes_one_way_to_one_place_and_a_patient_as_ever(
    flow: Flow, way: Way | None, senders: set[str], patients: set[str], why_not: str | None
) -> None:
    flow.heartbeat = lambda: way
    headers = [pydicom.Dataset() for _ in patients]
    for header, patient in zip(headers, sorted(patients), strict=True):
        header.PatientID = patient
    matches = [
        RouteMatch("breast", why_not, "breast-us", ("pacs",), 5, {}, "pacs", (Also(("ris",)),)),
        RouteMatch("other", why_not, "breast-us", ("pacs", "archive"), 5, {}),
    ]
    said = flow._of_heartbeat(senders, headers, matches)
    assert [match.rule for match in said] == ["breast", "other"]
    if not is_marked(senders, patients):
        assert said == matches
        return
    taken = [(match.rule, match.send_to, match.also, match.priors) for match in said if match.why_not is None]
    # spaces around a value of VR LO do not count: PS3.5 Table 6.2-1
    a_beat = senders == {HEARTBEAT_AE} and {patient.strip() for patient in patients} == {HEARTBEAT_ID}
    goes = a_beat and why_not is None and way is not None and way.route == "breast"
    assert taken == ([("breast", ("archive",), (), None)] if goes else [])


def receive(story: Story, name: str, sender: str) -> str:
    """A series closed, analysed, sent and proven to have arrived."""
    image = us_image(name=name)
    image.PatientID = HEARTBEAT_ID if sender == HEARTBEAT_AE else "4711"
    path = story.folder / f"{name}.dcm"
    image.save_as(path, enforce_file_format=True)
    uids = [str(image[k].value) for k in ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")]
    story.ledger.take_in(Instance(*uids, "1.2.840.10008.1.2.1", path, 1, story.now(), "a", sender))  # type: ignore[call-arg]
    series = OpenSeries(uids[2], uids[3], Evidence(story.now(), 1), (sender,))
    assert story.node.flow.close(series, "quiet")
    infer, flow = story.one("infer"), story.node.flow
    send = flow._send_job(infer, "results")
    story.begin(infer)
    found = {"seconds": 3.0, "encode_seconds": 1.0, "largest_mm": {"Mass": 30.0}}
    assert story.ledger.finish(infer, "done", "1 finding", story.now(), facts=found, follow_up=[send])
    confirm = flow._confirm_job(send)
    story.end(send, "done", "1 objects stored", confirm)
    story.end(confirm, "done", "arrived")
    return uids[2]


def figures(story: Story) -> dict[str, Any]:
    """Everything that lists, counts, measures or alarms."""
    ledger, long_ago = story.ledger, story.now() - timedelta(days=30)
    return {
        "counts": ledger.counts(),
        "durations": ledger.durations(),
        "arrivals": ledger.arrival_counts(),
        "backlog": ledger.backlog(),
        "came": ledger.came_since(long_ago),
        "found": [job["id"] for job in ledger.inferred_since(long_ago, long_ago)],
        "list": [each["series_uid"] for each in ledger.series_list(99)],
        "by uid": ledger.series_uids_of(99, Wanted(sender=HEARTBEAT_AE)),
        "slowest": ledger.series_uids_of(99, Wanted(sort="slowest")),
        "count": ledger.series_count(EVERY),
        "narrowed": ledger.series_count(Wanted(modality="US")),
        "choices": ledger.senders_and_modalities(),
        "rerun": (ledger.series_since(long_ago), ledger.series_of_route("breast")),
        "tried on": [each.series_uid for each in ledger.tried_on_since(long_ago, 99)],
        "seconds": ledger.inference_seconds(long_ago, 99),
        "failed": ledger.unresolved(),
    }


def test_a_heartbeat_changes_no_figure(story: Story) -> None:
    story.node.flow.heartbeat = lambda: Way("breast", "results")
    patient = receive(story, "patient", "US1")
    before = figures(story)
    assert before["list"] == [patient]
    beat = receive(story, "beat", HEARTBEAT_AE)
    assert story.ledger.series(beat) is not None, "it can be looked at"
    after = figures(story)
    assert after == before
    assert story.node.flow.rerun(beat) == "it is a heartbeat of the node: the next one comes by itself"
    receive(story, "second patient", "US1")
    changed = figures(story)
    same = {"arrivals", "backlog", "by uid", "choices", "failed"}
    assert {name for name in before if changed[name] != before[name]} == before.keys() - same, "each is one that counts"


def test_a_failed_heartbeat_is_no_job_for_a_person_and_can_be_deleted(story: Story) -> None:
    story.node.flow.heartbeat = lambda: Way("breast", "results")
    uid = receive(story, "beat", HEARTBEAT_AE)
    with story.ledger._begin() as db:
        db.execute(job_table.update().where(job_table.c.kind == "send").values(state="failed"))
    assert (story.ledger.unresolved(), story.status) == ([], "ok")
    retention: Retention = story.node.retention
    assert retention.delete_asked(uid, "ada"), "nothing proves that its results arrived: for a person it stays"
    with story.ledger._begin() as db:
        db.execute(job_table.update().where(job_table.c.kind == "confirm").values(state="waiting"))
    assert retention.delete_asked(uid, "the heartbeat", phantom=True), "it is still worked on"
    story.node.heartbeat._give_up(uid, "late")
    assert retention.delete_asked(uid, "the heartbeat", phantom=True) is None
    with story.ledger._begin() as db:
        assert db.scalar(series_table.select().with_only_columns(series_table.c.state)) == "deleted"


class Beats:
    """A heartbeat whose clock and listener a test has in hand."""

    def __init__(self, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        hourly = {"every_minutes": 60.0, "route": "breast", "to": "results", "late_minutes": 15.0}
        settled = story.node.config.heartbeat.model_copy(update=hourly)
        story.node.config = story.node.config.model_copy(update={"heartbeat": settled})
        self.sent: list[str] = []
        self.refused = ""
        self.now = story.now
        self.heart = Heartbeat(
            story.node.config, story.ledger, story.now, lambda route: frozenset({"US"}), lambda uid: None
        )
        monkeypatch.setattr("pacs_node.heartbeat.send", self.send)

    def send(self, paths: list[Path], *to: Any) -> list[Any]:
        [file] = [file for path in paths for file in path.rglob("*.dcm")]
        self.sent.append(str(pydicom.dcmread(file).SeriesInstanceUID))
        return [type("Receipt", (), {"stored": not self.refused, "text": self.refused})]

    def after(self, **times: float) -> dict[str, Any]:
        self.now.time += timedelta(**times)
        self.heart.look()
        state = self.heart.state()
        assert state is not None
        return state


@pytest.fixture
def beats(story: Story, monkeypatch: pytest.MonkeyPatch) -> Beats:
    return Beats(story, monkeypatch)


def test_one_comes_each_hour_and_is_late_after_its_time(beats: Beats, story: Story) -> None:
    assert beats.after()["state"] == "under way"
    assert beats.after(minutes=14)["state"] == "under way"
    late = beats.after(minutes=2)
    assert (late["state"], late["why"]) == ("failed", "it is late: the series is not closed yet")
    assert "it is late" in (beats.heart.trouble() or "")
    assert len(beats.sent) == 1
    assert beats.after(minutes=43)["state"] == "failed"
    assert len(beats.sent) == 1
    assert beats.after(minutes=2)["state"] == "under way"
    assert len(set(beats.sent)) == 2, "under UIDs of its own"
    assert beats.heart.trouble() is None


def test_what_is_paused_is_not_asked(beats: Beats, story: Story) -> None:
    beats.after()
    story.ledger.pause(Pause("destination", "results", story.now(), "ada"))
    assert beats.after(minutes=16)["state"] == "paused"
    assert beats.heart.trouble() is None
    assert beats.after(hours=9)["state"] == "paused"
    assert len(beats.sent) == 1
    story.ledger.resume("destination", "results", story.now())
    assert beats.after(minutes=1)["state"] == "under way"


def test_a_listener_that_does_not_take_it_is_a_failure(beats: Beats) -> None:
    beats.refused = "0xA700 the disk is full"
    failed = beats.after()
    assert (failed["state"], failed["why"]) == ("failed", "the listener does not take it: 0xA700 the disk is full")


def test_a_heartbeat_that_stops_coming_is_said(beats: Beats, story: Story) -> None:
    beats.after()
    mark = story.ledger.marks()[MARK]
    story.ledger.mark(MARK, mark["at"], json.dumps({**json.loads(mark["text"]), "state": "arrived"}))
    beats.now.time += timedelta(hours=3)
    assert beats.heart.trouble() is None
    beats.now.time += timedelta(hours=1)
    assert "no heartbeat since" in (beats.heart.trouble() or "")


JOBS = {"infer": "done", "send": "done", "confirm": "done"}


@pytest.mark.parametrize(
    ("changed", "proof", "state"),
    [
        ({}, "arrived: C-FIND", "arrived"),
        ({}, "", "arrived"),
        ({"confirm": "waiting"}, "", "under way"),
        ({"send": "waiting"}, "", "under way"),
        ({"infer": "running"}, "", "under way"),
        ({"infer": "refused"}, "", "failed"),
        ({"send": "failed"}, "", "failed"),
        ({"confirm": "failed"}, "", "failed"),
        ({"infer": "superseded"}, "", "failed"),
    ],
)
def test_how_far_it_is(changed: dict[str, str], proof: str, state: str) -> None:
    of = {**JOBS, **changed}
    arrivals = [{"text": proof}] if proof else []
    jobs = [{"kind": kind, "state": of[kind], "reason": "so", "arrivals": arrivals} for kind in of]
    assert how_far({"state": "closed", "jobs": jobs, "rules": []})[0] == state
    assert how_far({"state": "closed", "jobs": jobs[:1], "rules": []})[0] != "arrived", "nothing was sent"
    assert how_far({"state": "closed", "jobs": [], "rules": []})[0] == "failed"
    assert how_far({"state": "receiving", "jobs": [], "rules": []})[0] == how_far(None)[0] == "under way"


@pytest.mark.parametrize("modality", ["US", "CT"])
def test_a_phantom_bears_the_reserved_number_and_uids_of_its_own(tmp_path: Path, modality: str) -> None:
    uids = [phantom(tmp_path / name, frozenset({modality})) for name in "ab"]
    assert len(set(uids)) == 2
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in tmp_path.rglob("*.dcm")]
    assert {image.PatientID for image in images} == {HEARTBEAT_ID}
    assert {image.Modality for image in images} == {modality}
    assert len({image.SOPInstanceUID for image in images}) == len(images)
    assert {image.SeriesInstanceUID for image in images} == set(uids)


SETTINGS = """
[[peer]]
name = "pacs"
folder = "results"
[[peer]]
name = "sender"
ae_title = "CT1"
may_send = true
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["pacs"]
[heartbeat]
every_minutes = 60
"""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('route = "breast"\nto = "pacs"', ""),
        ('route = "brest"\nto = "pacs"', "no route 'brest'; did you mean 'breast'?"),
        ('route = "breast"\nto = "pcs"', "no peer 'pcs'; did you mean 'pacs'?"),
        ('route = "breast"\nto = "sender"', "nothing can be sent to it"),
        ('to = "pacs"', "every_minutes needs a route"),
    ],
)
def test_settings_that_cannot_be_are_said(tmp_path: Path, more: str, words: str) -> None:
    (tmp_path / "node.toml").write_text(SETTINGS + more)
    found = [str(each) for each in problems(tmp_path / "node.toml", catalogue()) if each.severity == "error"]
    assert words in " ".join(found)
    assert bool(found) is bool(words)


def test_the_settings_reserve_the_title_that_the_node_calls_itself_by() -> None:
    assert RESERVED == HEARTBEAT_AE
