"""What a pipeline does is counted as it happens, each series once; and drift is told where it is more than chance."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest
from starlette.testclient import TestClient

from config import load
from models import catalogue
from pacs_node.drift import chi_squared_95, drift
from pacs_node.facts import NodeFacts
from pacs_node.ledger.tables import tally_table
from pacs_node.ledger.tallies import MOST_TEXTS, OTHERS, week_of
from pacs_node.node import Node
from pacs_node.outcomes import STEPS, Counted, in_words, outcome, step_of
from pacs_node.records import HEARTBEAT_AE, Edition, Evidence, Instance, Job, OpenSeries
from pacs_node.web.app import create_app
from tests.factories import ct_series, enhanced_ct
from tests.results import ct_findings, nodule
from tests.unit.test_web import visible

TOML = """
[node]
data_dir = "data"
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "chest"
match = { Modality = "CT" }
pipeline = "lung-nodule"
send_to = ["results"]
"""


# -------------------------------------------------------------------------------------------------------- the index


def kinds(number: int, chance: random.Random) -> list[float]:
    return [chance.random() + 0.05 for _ in range(number)]


@pytest.mark.parametrize("seed", range(5))
def test_what_has_not_changed_is_beyond_chance_one_time_in_twenty(seed: int) -> None:
    """By drawing twice from one population, as often as it takes: counts from 30 on, 3 to 9 steps."""
    chance, beyond, tries = random.Random(seed), 0, 400
    for _ in range(tries):
        weights = kinds(chance.randint(3, 9), chance)
        drawn = [Counter(chance.choices(range(len(weights)), weights, k=chance.randint(60, 400))) for _ in range(2)]
        found = drift(*({str(k): n for k, n in each.items()} for each in drawn))
        assert found is not None
        assert found.psi >= 0
        beyond += found.beyond(0.0)
    assert 0.02 < beyond / tries < 0.10


def test_a_shift_is_found_and_a_few_series_prove_none() -> None:
    early = {"0": 100, "1": 200, "2": 100}
    moved = drift(early, {"0": 10, "1": 60, "2": 130})
    assert moved is not None
    assert moved.beyond(0.25)
    few = drift({"0": 2, "1": 3}, {"1": 1, "2": 2})
    assert few is not None
    assert few.psi > 0.25
    assert not few.beyond(0.25), "three series against five say nothing"
    same = drift(early, {key: 3 * number for key, number in early.items()})
    assert same is not None
    assert same.psi == pytest.approx(0)
    assert drift(early, {}) is None
    assert drift({}, early) is None


def test_psi_by_hand() -> None:
    """0.5 -> 0.75 and 0.5 -> 0.25: 0.25 ln 1.5 - 0.25 ln 0.5."""
    found = drift({"a": 50, "b": 50}, {"a": 75, "b": 25})
    assert found is not None
    assert found.psi == pytest.approx(0.2746530722, abs=1e-9)
    assert found.by_chance == pytest.approx(0.02 * 3.841, rel=0.03)


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 3.841), (4, 9.488), (9, 16.919), (20, 31.410)])
def test_chi_squared_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert chi_squared_95(degrees) == pytest.approx(quantile, rel=0.03)


# ------------------------------------------------------------------------------------------------------ the counts


@pytest.mark.parametrize("what", list(STEPS))
def test_each_number_falls_into_the_step_that_names_it(what: str) -> None:
    for step, limit in enumerate(STEPS[what]):
        assert step_of(what, limit - 0.001) == str(step)
        assert step_of(what, limit) == str(step + 1)
    words = [in_words(what, str(step)) for step in range(len(STEPS[what]) + 1)]
    assert len(set(words)) == len(words)
    assert in_words("size", step_of("size", 6.0)) == "6 to 8 mm"
    assert in_words("findings", step_of("findings", 2)) == "2"
    assert in_words("findings", step_of("findings", 4)) == "3 to 4"


@pytest.mark.parametrize("multi_frame", [False, True], ids=["single", "enhanced"])
def test_what_is_counted_of_a_series(tmp_path: Path, multi_frame: bool) -> None:
    images = ct_series(Manufacturer="ACME", ConvolutionKernel="B60f", SliceThickness="2.5")
    images = [enhanced_ct(images)] if multi_frame else images
    first = tmp_path / "first.dcm"
    images[0].save_as(first, enforce_file_format=True)
    found = [nodule(1, (2, 3, 4)), replace(nodule(2, (6, 8, 9)), certainty=0.2)]
    told = outcome(replace(ct_findings(images, *found), facts={"seconds": 12.0}), first)
    assert told["findings"] == Counted("2", 2.0)
    assert told["positive"] == Counted("yes")
    assert told["certainty"] == Counted("8", pytest.approx(87.34))
    assert told["size"] == Counted("1", 4.1)  # the mean diameter, by which findings are ordered
    assert told["seconds"] == Counted("4", 12.0)
    assert told["manufacturer"] == Counted("ACME")
    assert told["thickness"] == Counted("4", 2.5)
    assert told["kernel"] == Counted("none" if multi_frame else "B60f")
    none = outcome(ct_findings(images), tmp_path / "gone.dcm")
    assert none == {"findings": Counted("0", 0.0), "positive": Counted("no")}


class Counting:
    """A node whose clock is ours, and to whose ledger inferences end as we like."""

    def __init__(self, folder: Path) -> None:
        (folder / "node.toml").write_text(TOML)
        self.time = datetime(2026, 1, 5, 12, tzinfo=UTC)  # a Monday
        self.node = Node(load(folder / "node.toml", catalogue()), now=lambda: self.time)
        self.ledger = self.node.ledger
        self.ledger.migrate()
        self.facts = NodeFacts(self.node)
        self.images = ct_series(folder / "images", shape=(16, 24, 24))
        self.path = next((folder / "images").iterdir())
        self.number = 0

    def ends(self, uid: str, counted: dict[str, Counted], version: str = "1", sender: str = "CT1") -> None:
        self.number += 1
        job = Job(f"job{self.number}", "infer", uid, uid, 1, "lung-nodule", "chest", 5, self.time, sender=sender)
        with self.ledger._begin() as db:
            self.ledger._add_job(db, job)
        assert self.ledger.begin(job, "w", self.time)
        edition = Edition(self.number, 1, version, True, self.time)
        assert self.ledger.finish(job, "done", "", self.time, edition=edition, counted=counted)

    def series(self, positive: bool, kernel: str = "B60f", **more: Any) -> None:
        told = {"positive": Counted("yes" if positive else "no"), "kernel": Counted(kernel)}
        self.ends(f"1.2.{self.number + 1}", told, **more)


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    counting = Counting(tmp_path)
    yield counting
    counting.node.viewing.close()
    counting.ledger.close()


def test_the_aggregates_are_those_of_the_series_one_by_one(counting: Counting) -> None:
    chance, all_of_it = random.Random(3), []
    for _ in range(60):
        counting.time += timedelta(days=chance.randint(0, 4))
        size, version, sender = chance.uniform(2, 40), chance.choice("ab"), chance.choice(["CT1", "CT2"])
        counted = {"size": Counted(step_of("size", size), size), "positive": Counted(chance.choice(["yes", "no"]))}
        counting.ends(f"1.{len(all_of_it) + 1}", counted, version, sender)
        all_of_it.append((version, week_of(counting.time), sender, size, counted["positive"].value))
    weeks = min(w for _, w, *_ in all_of_it) + 2, max(w for _, w, *_ in all_of_it) - 1
    rows = counting.ledger.tallies("lung-nodule", *weeks)
    within = [each for each in all_of_it if weeks[0] <= each[1] <= weeks[1]]
    assert Counter({(v, w): n for v, what, w, value, n, _ in rows if (what, value) == ("positive", "yes")}) == Counter(
        (v, w) for v, w, _, _, positive in within if positive == "yes"
    )
    assert sum(total for _, what, _, _, _, total in rows if what == "size") == pytest.approx(sum(e[3] for e in within))
    by_sender = counting.ledger.tallies_by_sender("lung-nodule", weeks[0])
    since = [each for each in all_of_it if each[1] >= weeks[0]]
    positive = {(s, v): n for s, what, v, n, _ in by_sender if what == "positive"}
    assert positive == Counter((e[2], e[4]) for e in since)
    for sender in ("CT1", "CT2"):
        mine = [each for each in within if each[2] == sender]
        rows = counting.ledger.tallies("lung-nodule", *weeks, sender=sender)
        assert Counter(row[2] for row in rows for _ in range(row[4]) if row[1] == "size") == Counter(e[1] for e in mine)
        sizes = [total for s, what, _, _, total in by_sender if (s, what) == (sender, "size")]
        assert sum(sizes) == pytest.approx(sum(each[3] for each in since if each[2] == sender))
    for version in "ab":
        values = counting.ledger.values_by_sender("lung-nodule", version, *weeks)
        assert {(s, value): n for s, what, value, n in values if what == "positive"} == Counter(
            (e[2], e[4]) for e in within if e[0] == version
        )


def test_what_is_run_again_counts_once_for_each_version(counting: Counting) -> None:
    for version in ("1", "1", "2", "1"):
        counting.ends("1.2.3", {"positive": Counted("yes")}, version)
    assert {row[0]: row[4] for row in counting.ledger.tallies("lung-nodule", 0, 10**6)} == {"1": 1, "2": 1}


def test_a_sender_that_writes_ever_new_texts_does_not_fill_the_ledger(counting: Counting) -> None:
    for number in range(MOST_TEXTS + 20):
        counting.series(True, kernel=f"kernel {number}")
    counting.series(True, kernel="kernel 3")
    rows = [row for row in counting.ledger.tallies("lung-nodule", 0, 10**6) if row[1] == "kernel"]
    assert len(rows) == MOST_TEXTS + 1
    assert {row[3]: row[4] for row in rows}[OTHERS] == 20
    assert {row[3]: row[4] for row in rows}["kernel 3"] == 2


def test_the_flow_itself_counts(counting: Counting) -> None:
    ledger, flow = counting.ledger, counting.node.flow
    of = counting.images[0]
    for image, path in zip(counting.images, sorted(counting.path.parent.iterdir()), strict=True):
        uids = str(image.SOPInstanceUID), str(image.SOPClassUID), str(of.SeriesInstanceUID), str(of.StudyInstanceUID)
        syntax = str(of.file_meta.TransferSyntaxUID)
        ledger.take_in(Instance(*uids, syntax, path, path.stat().st_size, counting.time, "a", "CT1"))
    evidence = Evidence(counting.time, len(counting.images))
    assert flow.close(OpenSeries(str(of.SeriesInstanceUID), str(of.StudyInstanceUID), evidence, ("CT1",)), "quiet")
    found = ct_findings(counting.images, nodule(1, (2, 3, 4)))
    flow.stages.infer = lambda job, images, files, progress: found  # type: ignore[method-assign]
    [job] = ledger.open_jobs()
    assert ledger.begin(job, "w", counting.time)
    flow._infer(job)
    assert ledger.job(job.id).state == "done", ledger.job(job.id)  # type: ignore[union-attr]
    told = {(what, value) for _, what, _, value, _, _ in ledger.tallies("lung-nodule", 0, 10**6)}
    assert {("positive", "yes"), ("findings", "1")} <= told
    assert ledger.tallies_by_sender("lung-nodule", 0)[1][:4] == ("CT1", "positive", "yes", 1)


# -------------------------------------------------------------------------------- the page, the metric, the notice


def drifted(counting: Counting, per_week: int = 20, weeks: int = 14) -> None:
    """From the tenth week on another kernel, and twice as many positives."""
    start = counting.time
    for week in range(weeks):
        counting.time = start + timedelta(weeks=week)
        late = week >= 10
        for number in range(per_week):
            counting.series(number % 10 < (8 if late else 3), kernel="B30f" if late and number % 2 else "B60f")


def test_drift_is_on_the_page_in_the_metrics_and_told(counting: Counting) -> None:
    drifted(counting)
    told = {each.what: each for each in counting.facts.drifting()}
    assert {what: each.beyond for what, each in told.items()} == {"positive": True, "kernel": True}
    assert told["positive"].drift.psi == pytest.approx(0.5 * 0.980829 + 0.5 * 1.252763, abs=1e-4)
    app = create_app(counting.facts, counting.node.figures(counting.facts), ("testserver",))
    page = TestClient(app).get("/pipelines/lung-nodule")
    assert "beyond 0.25" in visible(page.text)
    assert "20 series, 16 with a finding" in page.text
    assert "<script" not in page.text
    assert "style=" not in page.text
    assert TestClient(app).get("/pipelines/no-such").status_code == 404
    assert TestClient(app).get("/pipelines/breast-us").status_code == 200
    [line] = [
        each
        for each in generate_latest(counting.node.figures(counting.facts)).decode().splitlines()
        if each.startswith("pacs_node_pipeline_drift{") and 'what="positive"' in each
    ]
    assert float(line.rpartition(" ")[2]) == pytest.approx(told["positive"].drift.psi)
    drifts = counting.node._world(counting.facts).drifts
    assert set(drifts) == {"lung-nodule 1 positive", "lung-nodule 1 kernel"}
    assert "series with a finding drifts from its first weeks" in drifts["lung-nodule 1 positive"]


def test_each_sender_has_its_weeks_its_means_and_its_drift(counting: Counting) -> None:
    """CT2 changes, CT1 does not; CT3 came later: nobody knows how it was."""
    start = counting.time
    for week in range(14):
        counting.time = start + timedelta(weeks=week)
        for number in range(20):
            mm = 30.0 if week >= 10 else 5.0
            counting.ends(f"1.1.{week}.{number}", {"positive": Counted("yes"), "size": Counted("1", 5.0)})
            more = {"size": Counted(step_of("size", mm), mm), "seconds": Counted("3", week + 1.0)}
            counting.ends(f"1.2.{week}.{number}", {"positive": Counted("yes"), **more}, sender="CT2")
    counting.ends("1.3", {"positive": Counted("no")}, sender="CT3")
    told = counting.facts.pipeline("lung-nodule")
    assert told is not None
    of = {row["sender"]: row for row in told["senders"]}
    assert {name: (row["series"], row["positive"]) for name, row in of.items()} == {
        "CT1": (280, 280), "CT2": (280, 280), "CT3": (1, 0)}  # fmt: skip
    assert {name: [e.what for e in row["drift"] if e.beyond] for name, row in of.items()} == {
        "CT1": [], "CT2": ["size"], "CT3": []}  # fmt: skip
    assert of["CT2"]["size"] == pytest.approx((10 * 5 + 4 * 30) / 14)
    assert (of["CT1"]["seconds"], of["CT3"]["size"]) == (None, None)
    one = counting.facts.pipeline("lung-nodule", "CT2")
    assert one is not None
    [version] = one["versions"]
    weeks = version["weeks"][-14:]
    assert [(week["series"], week["size"], week["seconds"]) for week in weeks] == [
        (20, 30.0 if week >= 10 else 5.0, week + 1.0) for week in range(14)
    ]
    assert [each.what for each in version["drift"] if each.beyond] == ["size"]
    assert one["senders"] == []
    app = create_app(counting.facts, counting.node.figures(counting.facts), ("testserver",))
    page = TestClient(app).get("/pipelines/lung-nodule").text
    assert 'href="/pipelines/lung-nodule?sender=CT2"' in page
    shown = visible(TestClient(app).get("/pipelines/lung-nodule?sender=CT2").text)
    assert "Of the series from CT2 alone." in shown
    assert "beyond 0.25" in shown
    assert "beyond 0.25" not in visible(TestClient(app).get("/pipelines/lung-nodule?sender=CT1").text)
    assert TestClient(app).get("/pipelines/lung-nodule?sender=nobody").status_code == 200


def test_of_a_young_version_and_of_one_that_is_gone_nothing_is_told(counting: Counting) -> None:
    drifted(counting, weeks=9)
    assert counting.facts.drifting() == []
    counting.time += timedelta(weeks=30)
    assert counting.facts.drifting() == []
    assert (
        "Not to be told yet"
        in TestClient(create_app(counting.facts, counting.node.figures(counting.facts), ("testserver",)))
        .get("/pipelines/lung-nodule")
        .text
    )


def test_a_page_of_a_million_series_reads_indexes_alone(counting: Counting) -> None:
    """Two years of three senders: the rows grow with weeks and steps, never with the series."""
    steps = [(what, str(step)) for what in STEPS for step in range(len(STEPS[what]) + 1)]
    steps += [("positive", "yes"), ("positive", "no"), *(("kernel", f"k{n}") for n in range(MOST_TEXTS))]
    last = week_of(counting.time)
    rows = [
        {"pipeline": "lung-nodule", "version": "1", "what": what, "week": last - week, "value": value,
         "sender": f"CT{sender}", "number": 1603, "total": 1.0}
        for what, value in steps for week in range(104) for sender in range(3)
    ]  # fmt: skip
    asked: list[str] = []
    with counting.ledger._begin() as db:
        db.execute(sa.insert(tally_table), rows)

    @sa.event.listens_for(counting.ledger._reader, "before_cursor_execute")
    def heard(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if "FROM tally" in statement:
            asked.append((statement, parameters))  # type: ignore[arg-type]

    told = counting.facts.pipeline("lung-nodule")
    sa.event.remove(counting.ledger._reader, "before_cursor_execute", heard)
    assert told is not None
    assert sum(week["series"] for week in told["versions"][0]["weeks"]) == 2 * 3 * 52 * 1603
    assert sum(row["series"] for row in told["senders"]) + 2 * 3 * 52 * 1603 > 1_000_000 / 2
    assert len(asked) == 5, "versions, the year, senders, and two for what drifts, however many senders"
    with counting.ledger._reading() as db:
        for statement, parameters in asked:
            plan = [row[3] for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            assert any("COVERING INDEX" in step for step in plan), (statement, plan)
            if "min(" not in statement:  # which versions there are is asked of the whole key
                assert any(step.startswith("SEARCH tally USING COVERING INDEX") for step in plan), plan


def test_a_heartbeat_of_the_node_is_not_counted(counting: Counting) -> None:
    counting.ends("1.1", {"positive": Counted("yes")}, sender=HEARTBEAT_AE)
    assert counting.ledger.tallied() == []
    counting.ends("1.2", {"positive": Counted("yes")})
    assert len(counting.ledger.tallied()) == 1
