"""Who gets results only with a finding of a kind: what should go is not kept back, and nobody keeps what is void."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import starmap
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydicom.sr.coding import Code
from starlette.testclient import TestClient

from config import load
from dicom_sr import codes
from dicom_sr.classes import CLASSES
from dicom_sr.findings import Evaluation, Finding, Findings, Measurement
from models import build, catalogue
from models.breast_us.birads import CATEGORIES, SUGGESTED
from models.lung_nodule.categories import (
    CT_12_OPTIONAL,
    LOW_RISK,
    LUNG_RADS,
    LUNG_RADS_BY_DIAMETER,
    LUNG_RADS_BY_SOLID_PART,
)
from pacs_node.errors import EditionChanged
from pacs_node.facts import NodeFacts
from pacs_node.kinds import HELD, as_well, category_of, class_of, decided, of_kind, sizes, wish
from pacs_node.node import Node
from pacs_node.records import Also, Evidence, Instance, Job, OpenSeries
from pacs_node.web.app import create_app
from tests.factories import us_image
from tests.results import mass, us_findings

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("Nodule", "Mass", "Lymph Node")
MM = st.one_of(st.none(), st.floats(0.1, 200).map(lambda mm: round(mm, 1)))
FOUND = st.lists(st.tuples(st.sampled_from(KINDS), MM), max_size=6)
ALSO = st.builds(
    Also,
    st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True).map(tuple),
    st.lists(st.sampled_from((*KINDS, "nodule", "MASS")), max_size=2, unique=True).map(tuple),
    st.one_of(st.just(0.0), st.floats(0.1, 200).map(lambda mm: round(mm, 1))),
)


def facts_of(found: list[tuple[str, float | None]]) -> dict[str, Any]:
    """As `sizes` says them."""
    known = [(kind, mm) for kind, mm in found if mm is not None]
    largest = {kind: max(mm for each, mm in known if each == kind) for kind, _ in known}
    return {"largest_mm": largest, "unsized": sorted({kind for kind, mm in found if mm is None})}


def asked_for(also: Also, kind: str, mm: float | None) -> bool:
    """One finding: the same said in another way."""
    of_it = not also.kinds or kind.lower() in [each.lower() for each in also.kinds]
    return of_it and (mm is None or mm >= also.min_size_mm)


@given(FOUND, ALSO)
def test_something_is_of_a_kind_exactly_if_one_finding_is(found: list[tuple[str, float | None]], also: Also) -> None:
    said = of_kind(facts_of(found), also)
    assert bool(said) == any(asked_for(also, kind, mm) for kind, mm in found)
    assert len(said) == len({kind for kind, mm in found if asked_for(also, kind, mm)})


@given(FOUND, st.lists(ALSO, max_size=4), st.sets(st.sampled_from("abcd")))
def test_each_further_destination_is_decided_on_once(
    found: list[tuple[str, float | None]], also: list[Also], held_by: set[str]
) -> None:
    said = decided(also, facts_of(found), held_by)
    places = {place for each in also for place in each.send_to}
    assert sorted(each["to"] for each in said) == sorted(places)
    wanted = {place for each in also for place in each.send_to if any(asked_for(each, kind, mm) for kind, mm in found)}
    assert {each["to"] for each in said if each["sent"]} == wanted | (places & held_by)
    assert {each["to"] for each in said if HELD in each["why"]} == (places & held_by) - wanted
    assert all(each["why"] for each in said)


def test_it_is_said_in_words() -> None:
    facts = {"largest_mm": {"Nodule": 9.2, "Mass": 31.5}, "unsized": ["Mass", "Cyst"]}
    assert of_kind(facts, Also(())) == ["Cyst of unknown size", "Mass of 31.5 mm", "Nodule of 9.2 mm"]
    assert of_kind(facts, Also((), ("mass",), 40)) == ["Mass of unknown size"]
    assert (wish(Also(())), wish(Also((), ("Nodule", "Mass"), 8.0))) == ("finding", "Nodule or Mass of at least 8 mm")
    assert as_well(["surgeon"], Also((), ("Nodule",), 8.5)) == "to surgeon as well, if found: Nodule of at least 8.5 mm"
    two_grades = Also((), ("Nodule",), 8.0, ("Lung-RADS 4A", "Lung-RADS 4B"))
    assert wish(two_grades) == "Nodule of at least 8 mm, Lung-RADS 4A or Lung-RADS 4B"
    two = [Also(("x",), ("Nodule",), 20.0), Also(("x", "y"), ("Cyst",))]
    assert decided(two, facts, ()) == [
        {"to": "x", "sent": True, "why": "Cyst of unknown size"},
        {"to": "y", "sent": True, "why": "Cyst of unknown size"},
    ]
    none = decided([Also(("x",), ("Nodule",), 20.0), Also(("x",), ("Ulcer",))], facts, ())
    assert none == [{"to": "x", "sent": False, "why": "no Nodule of at least 20 mm; no Ulcer"}]


def test_a_size_in_pixels_is_none_in_millimetres() -> None:
    findings = us_findings([us_image()], mass(1, (0, 12, 20)), mass(2, (0, 40, 40)))
    sized, unsized = (replace(each, measurements=()) for each in findings.findings)
    long = Measurement(codes.LONG_AXIS, 7.96, codes.MM)
    both = replace(findings, findings=(replace(sized, measurements=(long,)), unsized))
    assert sizes(both) == {"number_of": {"Mass": 2}, "largest_mm": {"Mass": 8.0}, "unsized": ["Mass"]}
    assert sizes(replace(both, findings=())) == {"number_of": {}}


ONE = us_findings([us_image()], mass(1, (0, 12, 20)))
GRADES = ("Lung-RADS 3", "Lung-RADS 4A", None)


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(10, 300), st.sampled_from(GRADES)), max_size=6),
    st.lists(st.sampled_from((*KINDS, "nodule")), max_size=2, unique=True).map(tuple),
    st.integers(0, 300),
    st.lists(st.sampled_from(("Lung-RADS 3", "lung-rads 4a", "BI-RADS 3")), max_size=2, unique=True).map(tuple),
)
def test_one_finding_is_of_the_kind_the_size_and_the_category(
    found: list[tuple[str, int, str | None]], kinds: tuple[str, ...], least: int, categories: tuple[str, ...]
) -> None:
    """Never a large one of another category with a small one of this."""
    findings = replace(ONE, findings=tuple(starmap(graded, found)))
    wanted = Also((), kinds, least / 10, categories)
    asked = [each.lower() for each in categories]
    of_it = [grade for kind, mm, grade in found if asked_for(Also((), kinds, least / 10), kind, mm / 10)]
    such = [grade for grade in of_it if not asked or str(grade).lower() in asked]
    assert bool(of_kind(sizes(findings), wanted)) == bool(such)


def graded(kind: str, tenths: int, grade: str | None) -> Finding:
    [plain] = ONE.findings
    length = Measurement(codes.LONG_AXIS, tenths / 10, codes.MM)
    said = (Evaluation(LUNG_RADS, Code("x", "99PACSNODE", grade)),) if grade else ()
    return replace(plain, type=Code("x", "99", kind), measurements=(length,), evaluations=said)


def test_each_category_that_is_suggested_is_on_the_card() -> None:
    """Held against the tables that they are suggested by."""
    of_card = {name: {*catalogue().card(name, options).categories} for name, options in (
        ("lung-nodule", {"purpose": "screening"}), ("breast-us", {"suggest_birads": True}))}  # fmt: skip
    tables = (*LUNG_RADS_BY_DIAMETER.values(), LUNG_RADS_BY_SOLID_PART)
    lung = {category_of(Evaluation(LUNG_RADS, code)) for rows in tables for _, code in rows}
    breast = {category_of(Evaluation(SUGGESTED, code)) for _, code in CATEGORIES}
    assert of_card == {"lung-nodule": lung, "breast-us": breast | set(CLASSES)}
    assert category_of(Evaluation(LOW_RISK, CT_12_OPTIONAL)) is None, "a recommendation is no category"
    assert category_of(Evaluation(codes.NODULE_TYPE, codes.SOLID)) is None
    for name in of_card:
        assert not {each for each in catalogue().card(name, {}).categories if "RADS" in each}


@pytest.mark.parametrize(
    ("name", "options"), [("lung-nodule", {"purpose": "screening"}), ("breast-us", {"suggest_birads": True})]
)
def test_what_is_built_with_these_options_has_that_card(name: str, options: dict[str, Any]) -> None:
    """Else it is refused when a route first runs it."""
    known = catalogue()
    assert build(known.declared[name], "cpu", options).card.categories == known.card(name, options).categories


def share(name: str, percent: float) -> Measurement:
    return Measurement(CLASSES[name], percent, codes.PERCENT)


@pytest.mark.parametrize(
    ("own", "whole", "expected"),
    [
        ((20.0, 30.0, 50.0), (), "malignant"),
        ((20.0, 45.0, 35.0), (), "benign"),
        ((None, None, 35.0), (20.0, 45.0, 35.0), "benign"),  # of one view the whole says the others
        ((None, None, 30.0), (20.0, 25.0, 55.0), None),  # another lesion decided
        ((None, None, 51.0), (1.0, 2.0, 97.0), "malignant"),
        ((None, None, None), (), None),
    ],
)
def test_the_class_of_a_lesion(own: tuple[float | None, ...], whole: tuple[float, ...], expected: str | None) -> None:
    [plain] = us_findings([us_image()], mass(1, (0, 12, 20))).findings
    stated = [share(name, each) for name, each in zip(CLASSES, own, strict=True) if each is not None]
    finding = replace(plain, measurements=tuple(stated))
    said = tuple(map(share, CLASSES, whole)) if whole else ()
    findings = replace(us_findings([us_image()]), findings=(finding,), measurements=said)
    assert class_of(finding, findings) == expected
    assert list(sizes(findings).get("categories", ())) == ([expected] if expected else [])


@pytest.mark.parametrize("name", ["lung-nodule", "lymph-node", "breast-us"])
def test_a_card_names_the_kinds_that_its_pipeline_finds(name: str) -> None:
    tree = ast.parse((ROOT / "models" / name.replace("-", "_") / "pipeline.py").read_text())
    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call) and ast.unparse(each.func) == "Finding"]
    types = {ast.unparse(word.value) for call in calls for word in call.keywords if word.arg == "type"}
    options = {"experimental": True} if name == "lymph-node" else {}
    assert {getattr(codes, each.removeprefix("codes.")).meaning for each in types} == set(
        catalogue().card(name, options).finds
    )


# Over a whole node ----------------------------------------------------------------------------------------------------

TOML = """
[node]
data_dir = "data"
[[peer]]
name = "pacs"
folder = "pacs"
[[peer]]
name = "surgeon"
folder = "surgeon"
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["pacs"]
report_not_run = true
[[route.also]]
send_to = ["surgeon"]
kinds = ["Mass"]
min_size_mm = 10.0
"""


class Killed(BaseException):
    """The worker dies here."""


class Story:
    """A node, moved by hand, that gets images of one ultrasound series; the model is scripted, all else is real."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.time = folder, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        (folder / "node.toml").write_text(TOML)
        self.node = Node(load(folder / "node.toml", catalogue()), now=self.now)
        self.ledger, self.facts = self.node.ledger, NodeFacts(self.node)
        self.ledger.migrate()
        self.images: list[pydicom.Dataset] = []
        self.mm: float | None = 12.0
        self.inferred, self.version = 0, "0.1.0+5e6f7a8b"
        monkeypatch.setattr(self.node.stages.inference, "run", self.infer)
        monkeypatch.setattr(self.node.stages.inference, "version", lambda *_: self.algorithm.version)

    def now(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time

    @property
    def algorithm(self) -> Any:
        return replace(us_findings(self.images[:1]).algorithm, version=self.version)

    def infer(self, pipeline: str, options: Any, files: list[Path], progress: Any) -> Findings:
        self.inferred += 1
        found = us_findings(self.images, mass(1, (0, 12, 20)))
        return replace(found, algorithm=self.algorithm, findings=tuple(map(self.sized, found.findings)))

    def sized(self, finding: Finding) -> Finding:
        unit = codes.PIXELS if self.mm is None else codes.MM
        values = {codes.LONG_AXIS: self.mm or 40.0, codes.SHORT_AXIS: (self.mm or 40.0) / 2}
        changed = [
            replace(each, value=values[each.name], unit=unit) if each.name in values else each
            for each in finding.measurements
        ]
        return replace(finding, measurements=tuple(changed))

    def receive(self) -> Job:
        """One more image, and the series closes."""
        number = len(self.images) + 1
        image = us_image(name="one", number=number)
        self.images.append(image)
        path = self.folder / f"{number}.dcm"
        image.save_as(path, enforce_file_format=True)
        uids = (str(image.SOPInstanceUID), str(image.SOPClassUID), self.uid, str(image.StudyInstanceUID))
        syntax = str(image.file_meta.TransferSyntaxUID)
        self.ledger.take_in(Instance(*uids, syntax, path, path.stat().st_size, self.now(), "a", "US1"))
        [job] = self.node.flow.close(OpenSeries(self.uid, uids[3], Evidence(self.now(), number), ("US1",)), "quiet")
        return job

    @property
    def uid(self) -> str:
        return str(us_image(name="one").SeriesInstanceUID)

    def work(self, *kinds: str) -> None:
        for kind in kinds or ("infer", "send"):
            for job in self.ledger.open_jobs():
                if job.kind == kind:
                    self.node.flow.run(job.id, job.generation, job.attempt)

    def sent_to(self) -> list[str]:
        jobs = self.facts.series(self.uid)["jobs"]  # type: ignore[index]
        return sorted(job["destination"] for job in jobs if job["kind"] == "send" and job["state"] != "superseded")

    def said(self) -> list[dict[str, Any]]:
        """Of the latest inference, about further destinations."""
        jobs = self.facts.series(self.uid)["jobs"]  # type: ignore[index]
        latest: list[dict[str, Any]] = [job for job in jobs if job["kind"] == "infer"][-1]["facts"].get("also", [])
        return latest

    def reports_at(self, peer: str) -> list[pydicom.Dataset]:
        read = [pydicom.dcmread(path) for path in sorted((self.folder / peer).rglob("*.dcm"))]
        return sorted((each for each in read if each.Modality == "SR"), key=lambda each: str(each.ContentTime))


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    story = Story(tmp_path, monkeypatch)
    yield story
    story.node.stop()


@pytest.mark.parametrize(
    ("mm", "goes", "why"),
    [
        (12.0, True, "Mass of 12 mm"),
        (10.0, True, "Mass of 10 mm"),
        (9.9, False, "no Mass of at least 10 mm"),
        (None, True, "Mass of unknown size"),
    ],
)
def test_a_peer_gets_results_by_what_is_in_them(story: Story, mm: float | None, goes: bool, why: str) -> None:
    story.mm = mm
    story.receive()
    story.work()
    assert story.sent_to() == (["pacs", "surgeon"] if goes else ["pacs"])
    assert story.said() == [{"to": "surgeon", "sent": goes, "why": why}]
    assert [len(story.reports_at(peer)) for peer in ("pacs", "surgeon")] == [1, int(goes)]
    page = (
        TestClient(create_app(story.facts, CollectorRegistry(), ["testserver"], None))
        .get(f"/series/{story.uid}", headers={"accept": "text/html"})
        .text
    )
    assert f"{'also' if goes else 'not'} to surgeon</span> {why}" in page


def test_who_holds_what_is_void_now_gets_what_replaces_it(story: Story) -> None:
    """The late image makes it smaller: the surgeon must not keep the larger one as the last word."""
    story.receive()
    story.work()
    story.mm = 5.0
    story.receive()
    story.work()
    assert story.said() == [{"to": "surgeon", "sent": True, "why": f"no Mass of at least 10 mm, but {HELD}"}]
    first, second = story.reports_at("surgeon")
    [replaced] = {
        str(item.ReferencedSOPInstanceUID)
        for study in second.PredecessorDocumentsSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
        if item.ReferencedSOPClassUID == first.SOPClassUID
    }
    assert replaced == first.SOPInstanceUID


def test_what_waits_to_be_sent_is_not_sent_after_what_replaces_it(story: Story) -> None:
    story.receive()
    story.work("infer")
    [send] = [job for job in story.ledger.open_jobs() if job.destination == "surgeon"]
    assert story.ledger.begin(send, "w", story.now())
    assert story.ledger.finish(send, "failed", "0xA900", story.now())
    story.work("send")
    story.mm, story.version = 5.0, "0.2.0+5e6f7a8b"
    assert story.node.flow.rerun(story.uid) is None
    story.work()
    assert story.said() == [{"to": "surgeon", "sent": False, "why": "no Mass of at least 10 mm"}]
    assert not story.ledger.run_again(send.id, story.now()), "it says what is not so any more"


def test_a_send_that_gets_there_while_the_next_revision_is_written_is_followed_by_it(story: Story) -> None:
    story.receive()
    story.work("infer")
    first = [job for job in story.ledger.open_jobs() if job.destination == "surgeon"]
    story.work("send")  # to pacs, too: what is replaced is the same with and without the surgeon
    story.mm = 5.0
    second = story.receive()
    editions = story.ledger.editions
    story.ledger.editions = lambda job: [  # type: ignore[method-assign]
        replace(each, released_to=each.released_to - {"surgeon"}) for each in editions(job)
    ]
    finish, changed = story.ledger.finish, list[str]()

    def watched(*arguments: Any, **named: Any) -> bool:
        try:
            return finish(*arguments, **named)
        except EditionChanged as error:  # it is asked once more, and now knows
            changed.append(str(error))
            story.ledger.editions = editions  # type: ignore[method-assign]
            raise

    story.ledger.finish = watched  # type: ignore[method-assign]
    story.work()
    assert changed == ["surgeon got an earlier revision while this one was written"]
    assert len(first) == 1
    assert len(story.reports_at("surgeon")) == 2
    assert story.ledger.job(second.id).state == "done"  # type: ignore[union-attr]


@pytest.mark.parametrize("step", ["infer begun", "inferred", "compared", "encoded", "infer done", "sent", "send done"])
def test_a_kill_between_two_steps_loses_no_send_and_makes_none_twice(story: Story, step: str) -> None:
    killed: list[str] = []

    def at(here: str) -> None:
        if here == step and not killed:
            killed.append(here)
            raise Killed

    story.node.flow.at = at
    story.receive()
    while jobs := story.ledger.open_jobs():
        for job in jobs:
            again = story.ledger.take_over(job, "killed", story.now()) if job.state == "running" else job
            assert again is not None
            try:
                story.node.flow.run(again.id, again.generation, again.attempt)
            except Killed:
                continue
    assert killed == [step]
    assert story.sent_to() == ["pacs", "surgeon"]
    assert [len(story.reports_at(peer)) for peer in ("pacs", "surgeon")] == [1, 1]
    assert story.inferred == 1


def test_a_report_of_what_was_not_run_goes_to_who_holds_results(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    from pacs_node.errors import Refused

    def refuse(*_: Any) -> Findings:
        raise Refused("not run: of no use")

    run = story.infer
    monkeypatch.setattr(story.node.stages.inference, "run", refuse)
    story.receive()
    story.work()
    assert (story.sent_to(), story.said()) == (
        ["pacs"],
        [{"to": "surgeon", "sent": False, "why": "no Mass of at least 10 mm"}],
    )
    monkeypatch.setattr(story.node.stages.inference, "run", run)
    story.receive()
    story.work()
    monkeypatch.setattr(story.node.stages.inference, "run", refuse)
    story.receive()
    story.work()
    assert len(story.reports_at("surgeon")) == 2
    assert story.said()[0]["sent"] is True


def test_a_job_keeps_the_further_destinations_it_was_made_with(story: Story) -> None:
    job = story.receive()
    (story.folder / "node.toml").write_text(TOML.partition("[[route.also]]")[0])
    story.node.stages.wire(story.node.stages.wiring(load(story.folder / "node.toml", catalogue())))
    assert story.ledger.job(job.id).also == (Also(("surgeon",), ("Mass",), 10.0),)  # type: ignore[union-attr]
    story.work()
    assert story.sent_to() == ["pacs", "surgeon"]
