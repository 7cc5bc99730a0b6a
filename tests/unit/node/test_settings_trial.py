"""A route tried before it is used: on an image, on a series, on what came of late; nothing is run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from config import Config, Needs, Route, load
from config.schema import Also
from models import catalogue
from pacs_node.ledger.found import variant
from pacs_node.node import Node
from pacs_node.records import Edition, Evidence, Instance, OpenSeries
from pacs_node.settings_trial import LONGEST_TRIED_S, NEVER_OFFERED, NO_SUCH_ROUTE, Trial, outcomes
from pacs_node.stages import rules_of
from tests.factories import ct_series, us_image

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
TOML = """
[node]
data_dir = "data"
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["results"]
{more}
"""
CHEST = """
[[route]]
name = "chest"
match = { Modality = "CT", Manufacturer = "no such maker" }
pipeline = "lung-nodule"
send_to = ["results"]
"""


class Told:
    """A node to which one ultrasound series came an hour ago, and one CT series ten days ago."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.time = folder, NOON - timedelta(days=10)
        self.node = Node(self.config(), now=lambda: self.time)
        self.node.ledger.migrate()
        self.trial = Trial(self.node.stages, self.node.ledger, lambda: self.time)
        self.ct = self.receive(ct_series(shape=(20, 16, 16)))
        self.time = NOON - timedelta(hours=1)
        self.us = self.receive([us_image()])
        self.time = NOON

    def config(self, more: str = "", before: str = "", after: str = "") -> Config:
        path = self.folder / "node.toml"
        path.write_text(TOML.format(more=more).replace(before, after) if before else TOML.format(more=more))
        return load(path, catalogue())

    def receive(self, images: list[Dataset]) -> str:
        first = images[0]
        for number, image in enumerate(images):
            path = self.folder / f"{first.Modality}{number}.dcm"
            image.save_as(path, enforce_file_format=True)
            uids = (str(image.SOPInstanceUID), str(image.SOPClassUID), str(first.SeriesInstanceUID))
            syntax = str(image.file_meta.TransferSyntaxUID)
            instance = Instance(
                *uids, str(image.StudyInstanceUID), syntax, path, path.stat().st_size, self.time, "a", "SENDER"
            )
            self.node.ledger.take_in(instance)
        evidence = Evidence(self.time, len(images))
        self.node.flow.close(OpenSeries(uids[2], str(first.StudyInstanceUID), evidence, ("SENDER",)), "quiet")
        return uids[2]

    def worked(self, minutes: float) -> None:
        """Each inference that waits has taken so long."""
        for job in self.node.ledger.open_jobs():
            assert self.node.ledger.begin(job, "w", self.time - timedelta(minutes=minutes))
            edition = Edition(1, 1, "1", True, self.time)
            assert self.node.ledger.finish(job, "done", "", self.time, edition=edition)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path)
    yield told
    told.node.stop()


def test_each_route_says_what_it_would_do_and_why_not(told: Told) -> None:
    said = {each.route: each for each in told.trial.on_file(told.folder / "CT0.dcm", told.config(CHEST))}
    assert said["breast"].then == "Modality is CT, rule wants US"
    assert (said["breast"].now, said["breast"].change) == (said["breast"].then, "")
    assert "rule wants no such maker" in (said["chest"].then or "")
    assert said["chest"].now == NO_SUCH_ROUTE


def test_a_series_says_what_would_run_additionally_and_no_longer(told: Told) -> None:
    then = told.config(CHEST.replace(', Manufacturer = "no such maker"', ""), '"US"', '"US", StationName = "nobody\'s"')
    found = told.trial.on_series(told.ct, then)
    assert found is not None
    assert {each.route: each.change for each in found[1]} == {"breast": "", "chest": "more"}
    found = told.trial.on_series(told.us, then)
    assert found is not None
    assert {each.route: each.change for each in found[1]} == {"breast": "less", "chest": ""}
    assert told.trial.on_series("1.2.3", then) is None


def test_another_pipeline_or_other_options_are_another_job(told: Told) -> None:
    then = told.config(before='pipeline = "breast-us"', after='pipeline = "breast-us"\noptions = { threads = 1 }')
    found = told.trial.on_series(told.us, then)
    assert found is not None
    assert [each.change for each in found[1]] == ["other"]


def test_what_the_pipeline_would_refuse_is_said(told: Told) -> None:
    then = rules_of(told.config(before='Modality = "US"', after="BodyPartExamined = { absent = true }"))
    header = ct_series(shape=(2, 8, 8))[0]
    header.BodyPartExamined = ""
    [said] = outcomes(header, told.node.stages.rules, then, told.node.stages.known.card)
    assert said.then is None
    assert said.refused == "Modality is CT, breast-us takes US"


def test_days_are_days_and_minutes_are_those_of_late(told: Told) -> None:
    told.worked(minutes=4)
    nothing = told.config(before='"US"', after='"US", Manufacturer = "nobody"')
    replay = told.trial.on_the_last(2, nothing)
    assert (replay.tried, replay.left_out, replay.unread) == (1, False, 0)
    [breast] = replay.routes
    assert (breast.now, breast.then, breast.more, breast.less) == (1, 0, 0, 1)
    assert replay.more_seconds == pytest.approx(-240)
    assert [received.series_uid for received, _ in replay.changed] == [told.us]
    [(why, number)] = breast.why_not.items()
    assert (why.startswith("Manufacturer is "), number) == (True, 1)
    replay = told.trial.on_the_last(30, told.config(CHEST.replace(', Manufacturer = "no such maker"', "")))
    assert replay.tried == 2
    chest = replay.routes[1]
    assert (chest.route, chest.more, chest.seconds) == ("chest", 1, None)
    assert replay.more_seconds is None, "lung-nodule has not run here yet"


# field of a route -> what is said of it where a route takes a series before and after: another value of it, in words
CHANGED: dict[str, tuple[Any, str | None]] = {
    "name": ("second look", "name: second look, was breast"),
    "match": ({"Modality": ["US", "CR"]}, None),  # it takes the series as before: nothing changes for it
    "pipeline": ("lung-nodule", "pipeline: lung-nodule, was breast-us"),
    "send_to": (("second",), "send_to: second, was results"),
    "hours": ("19:00-07:00", "hours: 19:00-07:00, was none"),
    "also": ((Also(send_to=("second",), kinds=("Lesion",)),), "also: to second as well, if found: Lesion, was none"),
    "priority": ("stat", "priority: STAT, was routine"),
    "priors": ("second", "priors: second, was none"),
    "options": ({"threads": 1}, "options: threads = 1, was none"),
    "report_not_run": (True, None),  # of what is refused alone; see below
    "shadow": (True, "shadow: yes, was none"),
    "needs": (
        Needs(series=({"Modality": "MG"},), wait_minutes=5.0),
        "needs: a series with Modality MG, waits 5 minutes for them, then does not run, was none",
    ),
    "fallback": (True, None),  # no other route takes it
}


def test_every_field_of_a_route_has_words() -> None:
    assert CHANGED.keys() == Route.model_fields.keys()


@pytest.mark.parametrize("field", CHANGED)
def test_whatever_changes_is_said_and_nothing_else(told: Told, field: str) -> None:
    value, words = CHANGED[field]
    replay = told.trial.on_the_last(2, with_route(told.config(), **{field: value}))
    [breast] = replay.routes
    said = [words for _, found in replay.changed for each in found for words in each.otherwise]
    assert (breast.now, breast.then, breast.more, breast.less) == (1, 1, 0, 0)
    assert breast.other == len(replay.changed) == (words is not None)
    assert words in said if words is not None else not said
    assert {each.partition(":")[0] for each in said} <= {field, *ALONG_WITH.get(field, ())}
    assert told.trial.on_the_last(2, told.config()).changed == []


# what another value of a field changes besides, of the series that came: a shadow is last and sends nothing; the other
# pipeline takes no ultrasound, so nothing of it is sent
ALONG_WITH = {"shadow": ("priority", "hours", "send_to"), "pipeline": ("send_to", "priority")}


def test_destinations_in_another_order_are_the_same(told: Told) -> None:
    """As the form of a route writes them."""
    two = with_route(told.config(), send_to=("results", "second"))
    told.node.stages.wire(told.node.stages.wiring(two))
    assert told.trial.on_the_last(2, with_route(told.config(), send_to=("second", "results"))).changed == []


def test_a_report_that_says_why_is_said_of_what_is_refused(told: Told) -> None:
    told.node.stages.wire(told.node.stages.wiring(with_route(told.config(), match={"Modality": "CT"})))
    replay = told.trial.on_the_last(
        30, with_route(told.config(), match={"Modality": "CT"}, report_not_run=True, send_to=("second",))
    )
    [breast] = replay.routes
    assert (breast.now, breast.then, breast.refused, breast.other) == (1, 1, 1, 1)
    [(_, [said])] = replay.changed
    assert said.refused == "Modality is CT, breast-us takes US"
    assert said.otherwise == ("report_not_run: yes, was none", "send_to: second, was none")
    assert replay.more_seconds == 0.0


BREAST, LUNG = ("breast-us", {}), ("lung-nodule", {})
LUNG_TWICE = ("lung-nodule", {"views": 2})


@pytest.mark.parametrize("then", [BREAST, LUNG, LUNG_TWICE, ("lung-nodule", {"views": 3}), None])
@pytest.mark.parametrize("now", [BREAST, LUNG, LUNG_TWICE, None])
@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("fit", [True, False])
def test_minutes_are_those_of_each_pipeline_and_its_options(
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    now: tuple[str, dict[str, int]] | None,
    then: tuple[str, dict[str, int]] | None,
    renamed: bool,
    fit: bool,
) -> None:
    """Of a CT series, which breast-us refuses."""

    def seconds(asks: tuple[str, dict[str, int]] | None) -> float | None:
        if asks is None or asks[0] == "breast-us" or not fit:
            return 0.0
        return {0: 600.0, 2: 1500.0}.get(asks[1].get("views", 0))

    def config(asks: tuple[str, dict[str, int]] | None, name: str) -> Config:
        match = {"Modality": "CT" if asks is not None else "MG"}
        pipeline, options = asks or LUNG
        return with_route(told.config(), name=name, match=match, pipeline=pipeline, options=options)

    measured = [("other", "breast-us", {}, 60.0), ("other", "lung-nodule", {}, 600.0)]
    measured += [("other", "lung-nodule", {"views": 2}, 1500.0)]
    works = [((route, pipeline, variant(options)), took) for route, pipeline, options, took in measured]
    monkeypatch.setattr(told.node.ledger, "inference_seconds", lambda since, most: works)
    received = told.node.ledger.tried_on(told.ct)
    assert received is not None
    ct = replace(received, fit=fit, reason="" if fit else "gantry tilt of 12 degrees")
    monkeypatch.setattr(told.node.ledger, "tried_on_since", lambda since, most: [ct])
    told.node.stages.wire(told.node.stages.wiring(config(now, "breast")))
    replay = told.trial.on_the_last(30, config(then, "renamed" if renamed else "breast"))
    was, would = seconds(now), seconds(then)
    assert was is not None
    assert replay.more_seconds == (None if would is None else pytest.approx(would - was))
    assert bool(replay.changed) == (now != then or (renamed and now is not None))


def with_route(config: Config, **changed: Any) -> Config:
    """With one more peer, and the first route another one."""
    second = config.peers[0].model_copy(update={"name": "second"})
    route = config.routes[0].model_copy(update=changed)
    return config.model_copy(update={"peers": (*config.peers, second), "routes": (route, *config.routes[1:])})


def test_a_series_that_was_not_fit_would_be_refused_again(told: Told) -> None:
    replay = told.trial.on_the_last(30, told.config(CHEST.replace(', Manufacturer = "no such maker"', "")))
    received = told.node.ledger.tried_on(told.ct)
    assert received is not None
    chest = next(each for each in replay.routes if each.route == "chest")
    assert chest.refused == (not received.fit)


def test_images_that_are_gone_are_counted_and_stop_nothing(told: Told) -> None:
    for path in told.folder.glob("CT*.dcm"):
        path.unlink()
    replay = told.trial.on_the_last(30, told.config())
    assert (replay.tried, replay.unread) == (2, 1)


@pytest.mark.parametrize(("seconds", "tried"), [(0.0, 2), (LONGEST_TRIED_S / 2, 2), (LONGEST_TRIED_S + 1, 1)])
def test_as_many_are_tried_as_there_is_time_for_and_the_rest_is_said(told: Told, seconds: float, tried: int) -> None:
    """seconds: that each takes. The first is tried however long it takes."""
    clock = itertools.count(0.0, seconds)
    told.trial.monotonic = lambda: next(clock)
    replay = told.trial.on_the_last(30, told.config())
    assert (replay.tried, replay.left_out, replay.unread) == (tried, tried < 2, 0)
    assert {route.now + sum(route.why_not.values()) for route in replay.routes} == {tried}


def test_values_to_pick_from_tell_no_patient(told: Told) -> None:
    seen = told.trial.seen()
    assert set(seen["Modality"]) == {"CT", "US"}
    image = us_image()
    assert image.PatientID, "else this says nothing"
    said = {value for values in seen.values() for value in values}
    assert not said & {str(image.PatientID), str(image.PatientName), str(image.StudyInstanceUID)}
    assert all(key in ("SOPClassUID", "SeriesDescription") or not NEVER_OFFERED.search(key) for key in seen)
    assert not {"PatientID", "PatientName", "AccessionNumber", "SOPInstanceUID"} & seen.keys()
    assert not list(told.node.stages.work.glob("*")), "what was unpacked to be read is gone"


def test_a_trial_makes_no_job(told: Told) -> None:
    before = told.node.ledger.open_jobs()
    told.trial.on_the_last(30, told.config(CHEST))
    assert told.node.ledger.open_jobs() == before
