"""Revisions of results: what replaces what, what is the same again, and that nothing stands twice at any PACS.

The ledger, the flow, the encoder and its gate are the real ones; the model and the PACSs are scripted.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from dicom_sr import read
from dicom_sr.findings import Findings
from pacs_node import pack
from pacs_node.editions import merged, next_revision
from pacs_node.encode import REJECTION_NOTE, encode_not_run, encode_results
from pacs_node.errors import TryAgain
from pacs_node.flow import Flow, RetryPolicy, RouteMatch
from pacs_node.ledger import Ledger
from pacs_node.records import (
    AssociationEnd,
    Edition,
    Evidence,
    Instance,
    Job,
    OpenSeries,
    Package,
    Receipt,
    Result,
    Stored,
    Verdict,
)
from pacs_node.sources import Sources, read_meanwhile
from tests.factories import us_image
from tests.results import mass, us_findings

ROOT = Path(__file__).resolve().parents[3]
T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SR, SEG, KO = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.59"


class Scripted:
    """A model of one version; PACSs that keep what they are sent and insist that one UID means the same bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = "1.0+aaaaaaaa"
        self.send_to: tuple[str, ...] = ("pacs",)
        self.options: dict[str, object] = {}
        self.down: set[str] = set()
        self.breaks: set[str] = set()  # takes everything, and the worker dies before it can say so
        self.unfit = ""
        self.report_not_run = False
        self.notes: set[str] = set()
        self.pacs: dict[str, dict[str, bytes]] = {}
        self.sent = 0
        self.before_encode = lambda: None

    def headers(self, instances: Sequence[Instance], files: Sequence[Path]) -> list[Dataset]:
        return [pydicom.dcmread(path, stop_before_pixels=True) for path in files]

    def judge(self, headers: Sequence[Dataset]) -> Verdict:
        uids = tuple(str(header.SOPInstanceUID) for header in headers)
        return Verdict(not self.unfit, self.unfit or "fit", use=() if self.unfit else uids)

    def matches(self, header: Dataset) -> list[RouteMatch]:
        return [RouteMatch("r", None, "breast-us", self.send_to, 5, self.options)]

    def share(self, instances: Sequence[Instance]) -> None:
        pass

    def unpacked(
        self, name: str, images: Sequence[Stored], *, whole: bool = False
    ) -> AbstractContextManager[list[Path]]:
        return pack.unpacked(images, self.folder / "work")

    def infer(self, job: Job, stored: Sequence[Stored], files: Sequence[Path], progress: object) -> Findings:
        images = sorted((pydicom.dcmread(file) for file in files), key=lambda image: int(image.InstanceNumber))
        found = us_findings(images, mass(1, (0, 12, 20)))
        return replace(found, algorithm=replace(found.algorithm, version=self.version))

    def sources(self, files: Sequence[Path]) -> AbstractContextManager[Sources]:
        return read_meanwhile(files)

    def compare(self, job: Job, findings: Findings, files: list[Path]) -> Findings:
        return findings

    def encode(self, job: Job, findings: Findings, sources: Sequence[Dataset], edition: Edition) -> list[Result]:
        self.before_encode()
        return encode_results(
            findings, sources, self.folder / "results" / job.id / str(job.generation), when=edition.dated,
            revision=edition.result_revision, replaces=edition.replaces, note=bool(self.notes),
        )  # fmt: skip

    def arrival_check(self, destination: str) -> None:
        return None  # nobody is asked whether anything arrived: that is another story

    def is_shadow(self, route: str) -> bool:
        return False

    def places(self, findings: Findings, files: Mapping[str, Path]) -> None:
        return None

    def reports_not_run(self, job: Job) -> bool:
        return self.report_not_run

    def encode_not_run(self, job: Job, reason: str, instances: Sequence[Instance], edition: Edition) -> list[Result]:
        folder = self.folder / "results" / job.id / str(job.generation)
        return encode_not_run(job.pipeline, "", reason, instances, folder, version="0.1", edition=edition)

    def deliver(self, destination: str, package: Package) -> list[Receipt]:
        if destination in self.down:
            raise TryAgain(f"{destination} does not answer")
        self.sent += 1
        paths = [path for path in package.paths if REJECTION_NOTE not in path.name or destination in self.notes]
        receipts = []
        for path in paths:
            uid, content = str(pydicom.dcmread(path).SOPInstanceUID), path.read_bytes()
            assert self.pacs.setdefault(destination, {}).setdefault(uid, content) == content, "same UID, other bytes"
            receipts.append(Receipt(uid, True, 0, "0x0000 Success", T0))
        if destination in self.breaks:
            raise SystemExit("the worker dies")
        return receipts

    def held(self, destination: str, sop_class_uid: str = SR) -> list[Dataset]:
        """What a PACS holds, the earliest first."""
        read_back = [pydicom.dcmread(BytesIO(content)) for content in self.pacs.get(destination, {}).values()]
        return [dataset for dataset in read_back if dataset.SOPClassUID == sop_class_uid]


class Node:
    """One worker, one series; every call of `now` is a minute later."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, T0
        self.ledger = Ledger(f"sqlite:///{folder}/node.sqlite", folder)
        self.ledger.migrate()
        self.stages = Scripted(folder)
        self.step = lambda step: None
        quick = RetryPolicy(0.001, 0.001, 100)
        self.flow = Flow(self.ledger, self.stages, {"infer": quick, "send": quick}, poison_limit=50, now=self.now,
                         jitter=random.Random(1), executor="w1", at=lambda step: self.step(step))  # fmt: skip
        self.images = 0

    def now(self) -> datetime:
        self.clock += timedelta(minutes=1)
        return self.clock

    @property
    def series(self) -> str:
        return str(us_image(name="revised").SeriesInstanceUID)

    def image(self) -> None:
        """An image comes, and the series closes."""
        self.images += 1
        image = us_image(name="revised", number=self.images)
        path = self.folder / f"{self.images}.dcm"
        image.save_as(path, enforce_file_format=True)
        uid, study, size = str(image.SOPInstanceUID), str(image.StudyInstanceUID), path.stat().st_size
        self.ledger.take_in(
            Instance(uid, str(image.SOPClassUID), self.series, study, "t", path, size, self.clock, "a", "US1")
        )
        self.ledger.associations_ended([AssociationEnd("a", "US1", True, self.clock)])
        open_series = OpenSeries(self.series, study, Evidence(self.clock, self.images), ("US1",))
        assert self.flow.close(open_series, "quiet")

    def work(self) -> None:
        """Run every job once; a send that failed stays for the next call."""
        for kind in ("infer", "send"):
            for job in self.ledger.open_jobs():
                if job.kind == kind:
                    self.flow.run(job.id, job.generation, job.attempt)

    def facts(self, kind: str) -> list[dict]:
        return [job for job in self.ledger.series(self.series)["jobs"] if job["kind"] == kind]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def predecessors(report: Dataset) -> set[str]:
    return {
        str(item.ReferencedSOPInstanceUID)
        for study in report.get("PredecessorDocumentsSequence") or ()
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def current(reports: Sequence[Dataset]) -> list[Dataset]:
    named = set().union(*(predecessors(report) for report in reports))
    return [report for report in reports if report.SOPInstanceUID not in named]


def test_a_late_image_makes_a_report_that_names_the_one_it_replaces(node: Node) -> None:
    for _ in range(3):
        node.image()
        node.work()
    first, second, third = node.stages.held("pacs")
    assert predecessors(first) == set()
    assert predecessors(second) == {first.SOPInstanceUID}
    assert predecessors(third) == {second.SOPInstanceUID}
    study = third.PredecessorDocumentsSequence[0]
    assert study.StudyInstanceUID == second.StudyInstanceUID
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == second.SeriesInstanceUID
    assert current([first, second, third]) == [third]
    assert len({seg.SeriesInstanceUID for seg in node.stages.held("pacs", SEG)}) == 3
    shown = sorted((job["edition"] for job in node.facts("infer")), key=lambda edition: edition["revision"])
    assert [edition["revision"] for edition in shown] == [1, 2, 3]
    assert set(shown[2]["replaces"]) >= predecessors(third)
    assert len(shown[2]["replaces"]) == 2  # the Segmentation too


def test_what_never_left_is_no_predecessor(node: Node) -> None:
    node.stages.down = {"pacs"}
    node.image()
    node.work()
    node.image()
    node.work()
    node.stages.down = set()
    node.work()
    [report] = node.stages.held("pacs")
    assert predecessors(report) == set()
    assert report.InstanceNumber == 2


def test_every_destination_sees_one_current_report(node: Node) -> None:
    """One got revisions 1 and 2, the other 1 only: the third names both, and is the same object for both."""
    node.stages.send_to = ("pacs", "archive")
    for down in (set(), {"archive"}, set()):
        node.stages.down = down
        node.image()
        node.work()
    at_pacs, at_archive = node.stages.held("pacs"), node.stages.held("archive")
    assert [report.InstanceNumber for report in at_pacs] == [1, 2, 3]
    assert [report.InstanceNumber for report in at_archive] == [1, 3]
    assert predecessors(at_pacs[2]) == {at_pacs[0].SOPInstanceUID, at_pacs[1].SOPInstanceUID}
    assert [len(current(reports)) for reports in (at_pacs, at_archive)] == [1, 1]


def test_an_attempt_that_never_ended_may_have_arrived(node: Node) -> None:
    """The PACS took it, the worker died before the receipt: it is named, or it would stand beside the next one."""
    node.stages.breaks = {"pacs"}
    node.image()
    with pytest.raises(SystemExit):
        node.work()
    node.stages.breaks = set()
    node.image()
    node.work()
    first, second = node.stages.held("pacs")
    assert predecessors(second) == {first.SOPInstanceUID}


def test_a_send_that_was_overtaken_still_leaves_its_receipts(node: Node) -> None:
    node.image()
    node.work_infer = node.ledger.open_jobs()[0]
    node.flow.run(node.work_infer.id, 1, 1)
    [send] = node.ledger.open_jobs()
    deliver = node.stages.deliver

    def overtaken(destination: str, package: Package) -> list[Receipt]:
        receipts = deliver(destination, package)
        node.stages.deliver = deliver
        node.image()  # closes the series again while the old results are on their way
        return receipts

    node.stages.deliver = overtaken
    node.flow.run(send.id, 1, 1)
    assert node.ledger.job(send.id).state == "superseded"
    assert [r["stored"] for job in node.facts("send") for r in job["receipts"]] == [True, True]
    assert node.ledger.job(send.id).crashes == 0
    node.work()
    first, second = node.stages.held("pacs")
    assert predecessors(second) == {first.SOPInstanceUID}


def test_run_again_with_nothing_changed_is_the_same_to_the_last_byte(node: Node) -> None:
    node.image()
    node.work()
    node.image()
    node.work()
    before = dict(node.stages.pacs["pacs"])
    assert node.flow.rerun(node.series) is None
    node.work()
    assert node.stages.sent == 3  # it was sent again, and the PACS compared the bytes
    assert node.stages.pacs["pacs"] == before
    assert [job["state"] for job in node.facts("send")] == ["done"] * 3


def test_another_version_replaces_and_going_back_replaces_again(node: Node) -> None:
    node.image()
    node.work()
    for version in ("2.0+bbbbbbbb", "1.0+aaaaaaaa"):
        node.stages.version = version
        assert node.flow.rerun(node.series) is None
        node.work()
    reports = node.stages.held("pacs")
    assert [report.SoftwareVersions for report in reports] == ["1.0+aaaaaaaa", "2.0+bbbbbbbb", "1.0+aaaaaaaa"]
    assert len({report.SOPInstanceUID for report in reports}) == 3
    for older, newer in pairwise(reports):
        assert predecessors(newer) == {older.SOPInstanceUID}
    assert reports[1].ContentDate + reports[1].ContentTime > reports[0].ContentDate + reports[0].ContentTime


def test_new_results_void_the_sends_of_the_old(node: Node) -> None:
    """Else the old report would arrive after the new one, and stand beside it."""
    node.stages.down = {"pacs"}
    node.image()
    node.work()
    [old] = node.facts("send")
    node.stages.version = "2.0+bbbbbbbb"
    assert node.flow.rerun(node.series) is None
    node.work()
    node.stages.down = set()
    node.work()
    assert node.ledger.job(old["id"]).state == "superseded"
    assert not node.ledger.run_again(old["id"], T0)
    [report] = node.stages.held("pacs")
    assert (report.SoftwareVersions, predecessors(report)) == ("2.0+bbbbbbbb", set())


def test_what_leaves_while_the_new_is_written_is_replaced_too(node: Node) -> None:
    node.stages.down = {"pacs"}
    node.image()
    node.work()
    [send] = [job for job in node.ledger.open_jobs() if job.kind == "send"]
    node.stages.version = "2.0+bbbbbbbb"
    assert node.flow.rerun(node.series) is None

    def meanwhile() -> None:
        node.stages.before_encode = lambda: None
        node.stages.down = set()
        job = node.ledger.job(send.id)
        node.flow.run(job.id, job.generation, job.attempt)

    node.stages.before_encode = meanwhile
    node.work()
    first, second = node.stages.held("pacs")
    assert predecessors(second) == {first.SOPInstanceUID}


def test_other_options_are_other_results_and_replace_nothing(node: Node) -> None:
    node.image()
    node.work()
    before = {job["id"] for job in node.facts("infer")}
    node.stages.options = {"threads": 2}
    assert node.flow.rerun(node.series) is None
    [job] = [job for job in node.ledger.open_jobs() if job.id not in before]
    assert node.ledger.editions(job) == []


def test_a_route_that_compares_makes_results_of_its_own(node: Node) -> None:
    node.image()
    node.work()
    [job] = node.facts("infer")
    plain = node.ledger.job(job["id"])
    assert node.ledger.editions(plain) != []
    assert node.ledger.editions(replace(plain, priors="pacs")) == []


def test_sends_to_others_are_not_voided(node: Node) -> None:
    """Run again for one route, its results do not take away what another destination still waits for."""
    node.stages.down = {"pacs"}
    node.image()
    node.work()
    [old] = node.facts("send")
    job = node.ledger.job(node.facts("infer")[0]["id"])
    with node.ledger._begin() as db:
        node.ledger._void_sends(db, replace(job, send_to=("archive",)), "replaced", T0)
    assert node.ledger.job(old["id"]).state == "waiting"
    with node.ledger._begin() as db:
        node.ledger._void_sends(db, job, "replaced", T0)
    assert node.ledger.job(old["id"]).state == "superseded"


def test_why_a_series_is_not_run_again(node: Node) -> None:
    assert "no images" in node.flow.rerun("1.2.3")
    node.image()
    assert "being worked on" in node.flow.rerun(node.series)
    node.work()
    assert "'other' does not match" in node.flow.rerun(node.series, "other")
    assert node.flow.rerun(node.series, "r") is None
    assert node.ledger.series_of_route("r") == [node.series]


def test_a_series_that_is_not_run_is_reported_on_request(node: Node) -> None:
    node.stages.unfit = "gantry tilt of 12.0 degrees"
    node.image()
    node.work()
    assert node.stages.held("pacs") == []
    assert [job["state"] for job in node.facts("infer")] == ["refused"]

    node.stages.report_not_run = True
    node.image()
    node.work()
    [report] = node.stages.held("pacs")
    assert [job["state"] for job in node.facts("infer")] == ["refused", "refused"]
    assert read.not_analysed(report) == "not run: gantry tilt of 12.0 degrees"
    assert not any("found" in text for text in all_texts(report))

    node.stages.unfit = ""
    node.image()
    node.work()
    not_run, analysed = node.stages.held("pacs")
    assert predecessors(analysed) == {not_run.SOPInstanceUID}
    assert read.not_analysed(analysed) is None


def test_what_cannot_be_run_does_not_replace_what_was_found(node: Node) -> None:
    node.stages.report_not_run = True
    node.image()
    node.work()
    node.stages.unfit = "duplicate positions"
    node.image()
    node.work()
    found, not_run = node.stages.held("pacs")
    assert predecessors(not_run) == set()
    node.stages.unfit = ""
    node.image()
    node.work()
    *_, third = node.stages.held("pacs")
    assert predecessors(third) == {found.SOPInstanceUID, not_run.SOPInstanceUID}


def test_a_refused_job_that_has_said_so_is_not_retried_but_run_again(node: Node) -> None:
    node.stages.report_not_run, node.stages.unfit = True, "no lungs"
    node.image()
    node.work()
    [job] = node.facts("infer")
    assert not node.ledger.run_again(job["id"], T0)
    assert node.flow.rerun(node.series) is None
    node.work()
    assert len(node.stages.held("pacs")) == 1  # the same report again


def test_the_rejection_note_goes_only_where_it_is_wanted(node: Node) -> None:
    node.stages.send_to, node.stages.notes = ("pacs", "archive"), {"archive"}
    for _ in range(2):
        node.image()
        node.work()
    assert node.stages.held("pacs", KO) == []
    [note] = node.stages.held("archive", KO)
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    rejected = {str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in note.ContentSequence[1:]}
    first_sr, first_seg = node.stages.held("archive")[0], node.stages.held("archive", SEG)[0]
    assert rejected == {first_sr.SOPInstanceUID, first_seg.SOPInstanceUID}


def test_killed_after_encoding_the_next_run_writes_the_same_bytes(node: Node) -> None:
    node.image()
    node.work()
    node.image()
    [job] = node.ledger.open_jobs()

    def die(step: str) -> None:
        if step == "encoded":
            raise SystemExit

    node.step = die
    with pytest.raises(SystemExit):
        node.flow.run(job.id, job.generation, job.attempt)
    node.step = lambda step: None
    node.clock += timedelta(days=3)
    node.ledger.take_over(node.ledger.job(job.id), "the worker is gone", node.clock)
    node.work()
    folder = node.folder / "results" / job.id
    written = {path.name: path.read_bytes() for path in (folder / "1").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (folder / "2").iterdir()}
    assert written


IN_ANOTHER_PROCESS = """
import json, sys
from datetime import datetime
from pathlib import Path
from dicom_sr.reading import read_header
from pacs_node.encode import encode_results
from pacs_node.records import Result
import tests.unit.node.test_editions as here
folder, *files = map(Path, sys.argv[1:])
findings = here.Scripted(folder).infer(None, [], files, None)
before = Result("1.2.3.4", here.SR, Path("x"), "1.2.3")
headers = [read_header(file) for file in files]
results = encode_results(findings, headers, folder, when=here.T0, revision=2, replaces=[before], note=True)
print(json.dumps([(r.sop_instance_uid, r.sha256) for r in results]))
"""


def test_two_fresh_processes_with_files_in_another_order_write_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for number in range(1, 4):
        files.append(tmp_path / f"{number}.dcm")
        us_image(name="revised", number=number).save_as(files[-1], enforce_file_format=True)
    written = []
    for seed, zone, order in (("1", "UTC", files), ("2", "Asia/Tokyo", files[::-1])):
        done = subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / seed), *map(str, order)],
            capture_output=True, text=True, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "TZ": zone},
        )  # fmt: skip
        written.append(json.loads(done.stdout))
    assert written[0] == written[1]
    assert len(written[0]) == 3  # SEG, SR and the note


@given(st.lists(st.tuples(st.sets(st.sampled_from("ABC")), st.sampled_from(["found", "found", "not run"])), max_size=8))
def test_at_every_pacs_one_analysis_stands(history: list[tuple[set[str], str]]) -> None:
    """Whatever reached whom: where the latest analysis has arrived, nothing older is left standing beside it."""
    job = Job("j", "infer", "1.9", "1.8", 1, "p", "r", 5, T0)
    editions: list[Edition] = []
    for number, (reached, kind) in enumerate(history, 1):
        made = next_revision(editions, replace(job, revision=number), "v", analysed=kind == "found")
        own = Result(f"1.{number}", SR, Path("x"), f"2.{number}", f"{number}")
        editions = merged([*editions, replace(made, objects=(own,), released_to=frozenset(reached))])
        for destination in reached:
            there = [edition for edition in editions if destination in edition.released_to]
            void = {each.sop_instance_uid for edition in there for each in edition.replaces}
            standing = [e for e in there if e.objects[0].sop_instance_uid not in void]
            if kind == "found":
                assert [edition.result_revision for edition in standing] == [made.result_revision]
            else:
                assert [edition.result_revision for edition in standing if not edition.analysed] == [
                    made.result_revision
                ]
                assert sum(edition.analysed for edition in standing) <= 1


def all_texts(dataset: Dataset) -> list[str]:
    return [str(element.value) for element in dataset.iterall() if element.keyword == "TextValue"]
