"""The list of series, held against a filter in Python; and how long their results took."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pacs_node.ledger import Ledger
from pacs_node.ledger.found import rows_of
from pacs_node.ledger.tables import found_table, job_table, series_table
from pacs_node.records import HEARTBEAT_AE, OPEN_JOB_STATES, ArrivalProof, Instance, Job, Receipt, Verdict, Wanted

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WORDS = ("Thorax 1.0 B31f", "Mamma_links", "100% dose", "", "THORAX lung", "back\\slash")


def found(dice: random.Random) -> dict[str, list[tuple[str, float | None]]]:
    """variant of the options -> (kind, mm) of each finding; nothing of what was not analysed."""
    kinds, sizes = ("Nodule", "Mass"), (None, 3.0, 8.0, 8.1, 31.0)
    return {
        each: [(dice.choice(kinds), dice.choice(sizes)) for _ in range(dice.randrange(3))]
        for each in ("a", "b")[: dice.randrange(3)]
    }


def made() -> list[dict[str, Any]]:
    """400 series with their jobs; many began to come in the same moment."""
    dice = random.Random(7)
    rows = []
    for number in range(400):
        state = dice.choice(["closed", "closed", "closed", "receiving", "deleted"])
        rows.append(
            {
                "series_uid": f"1.2.{dice.randrange(3)}.{number}",
                "study_uid": f"1.3.{number // 3}",
                "state": state,
                "modality": "" if state == "receiving" else dice.choice(["CT", "US", "MR"]),
                "description": dice.choice(WORDS),
                "sender": dice.choice(["CT1", "CT2", "US_1"]),
                "arrived": number,
                "revision": dice.choice([1, 1, 2]),
                "first_arrival": NOON + timedelta(minutes=dice.randrange(60)),
                "last_arrival": NOON + timedelta(hours=2),
                "turnaround_s": dice.choice([None, 12.5, 12.5, float(number)]),
                "deleted_images": 0,
                "jobs": [
                    {
                        "pipeline": dice.choice(["lung-nodule", "breast-us"]),
                        "kind": dice.choice(["infer", "infer", "send"]),
                        "state": dice.choice(["done", "done", "failed", "waiting", "running", "refused"]),
                        "attempt": dice.choice([1, 2]),
                        "revision": dice.choice([1, 1, 2]),
                    }
                    for _ in range(dice.randrange(3))
                ],
                "found": found(random.Random(number)),
            }
        )
    return rows


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return made()


@pytest.fixture(scope="module")
def ledger(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    folder = tmp_path_factory.mktemp("lists")
    ledger = Ledger(f"sqlite:///{folder}/node.sqlite", folder)
    ledger.migrate()
    fill(ledger, rows)
    yield ledger
    ledger.close()


def fill(ledger: Ledger, rows: list[dict[str, Any]]) -> None:
    with ledger.engine.begin() as db:
        db.execute(
            sa.insert(series_table), [{k: v for k, v in row.items() if k not in ("jobs", "found")} for row in rows]
        )
        every = [
            {"series_uid": row["series_uid"], "pipeline": "p", "variant": name, **each}
            for row in rows
            for name, said in row["found"].items()
            for each in rows_of(facts_of(said))
        ]
        db.execute(sa.insert(found_table), every)
        plain = {"study_uid": "1.3", "route": "r", "options": {}, "send_to": [], "priority": 5, "reason": ""}
        plain |= {"warnings": [], "facts": {}, "generation": 1, "crashes": 0, "progress": 0.0, "progress_text": ""}
        for row in rows:
            for number, job in enumerate(row["jobs"]):
                made = NOON + timedelta(seconds=number)
                own = {"id": f"{row['series_uid']}-{number}", "series_uid": row["series_uid"], "created_at": made}
                db.execute(sa.insert(job_table).values(**plain, **own, **job))


def is_trouble(row: dict[str, Any]) -> bool:
    """As /health has it, and what is tried again."""

    def overtaken(number: int, job: dict[str, Any]) -> bool:
        return any(later["kind"] == job["kind"] for later in row["jobs"][number + 1 :])

    return any(
        (job["state"] in OPEN_JOB_STATES and job["attempt"] > 1)
        or (
            job["state"] == "failed"
            and job["revision"] == row["revision"]
            and row["state"] != "deleted"
            and not overtaken(number, job)
        )
        for number, job in enumerate(row["jobs"])
    )


def facts_of(said: list[tuple[str, float | None]]) -> dict[str, Any]:
    """As kinds.sizes has them."""
    sized = sorted((kind, mm) for kind, mm in said if mm is not None)
    return {
        "number_of": Counter(kind for kind, _ in said),
        "largest_mm": dict(sized),  # the last of each is the largest
        "unsized": [kind for kind, mm in said if mm is None],
    }


def has(text: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: any(text.lower() in row[name].lower() for name in ("description", "modality", "sender"))


def has_found(kind: str = "", mm: float = 0.0) -> Callable[[dict[str, Any]], bool]:
    """Whether one of its findings is of this kind and size, or of a kind of which a size is not known."""

    def one(said: list[tuple[str, float | None]]) -> bool:
        of_it = [size for each, size in said if kind in ("", each)]
        return any(size is None or size >= mm for size in of_it)

    return lambda row: any(map(one, row["found"].values()))


def analysed_without(kind: str = "", mm: float = 0.0) -> Callable[[dict[str, Any]], bool]:
    return lambda row: bool(row["found"]) and not has_found(kind, mm)(row)


KINDS: list[tuple[Wanted, Callable[[dict[str, Any]], bool]]] = [
    (Wanted(), lambda row: True),
    (Wanted(text="thorax"), has("thorax")),
    (Wanted(text="%"), has("%")),
    (Wanted(text="_"), has("_")),
    (Wanted(text="\\"), has("\\")),
    (Wanted(text="us_"), has("us_")),
    (Wanted(text="nowhere"), has("nowhere")),
    (Wanted(text="1.2.1."), lambda row: row["series_uid"].startswith("1.2.1.")),
    (Wanted(text="1.3.7"), lambda row: row["study_uid"].startswith("1.3.7")),
    (Wanted(modality="CT"), lambda row: row["modality"] == "CT"),
    (Wanted(sender="CT2"), lambda row: row["sender"] == "CT2"),
    (Wanted(state="deleted"), lambda row: row["state"] == "deleted"),
    (Wanted(since=NOON + timedelta(minutes=30)), lambda row: row["first_arrival"] >= NOON + timedelta(minutes=30)),
    (Wanted(before=NOON + timedelta(minutes=30)), lambda row: row["first_arrival"] < NOON + timedelta(minutes=30)),
    (
        Wanted(pipeline="breast-us"),
        lambda row: any((job["kind"], job["pipeline"]) == ("infer", "breast-us") for job in row["jobs"]),
    ),
    (Wanted(job="refused"), lambda row: any(job["state"] == "refused" for job in row["jobs"])),
    (Wanted(trouble=True), is_trouble),
    (Wanted(findings="with"), has_found()),
    (Wanted(findings="without"), analysed_without()),
    (Wanted(kind="Mass"), has_found("Mass")),
    (Wanted(min_mm=8.1), has_found("", 8.1)),
    (Wanted(kind="Nodule", min_mm=8.1), has_found("Nodule", 8.1)),
    (Wanted(findings="without", kind="Nodule", min_mm=8.1), analysed_without("Nodule", 8.1)),
    (Wanted(findings="with", kind="nowhere"), lambda row: False),
    (
        Wanted(text="o", modality="CT", sender="CT1", state="closed"),
        lambda row: has("o")(row) and (row["modality"], row["sender"], row["state"]) == ("CT", "CT1", "closed"),
    ),
]


@pytest.mark.parametrize("sort", ["newest", "oldest", "slowest"])
@pytest.mark.parametrize(("wanted", "holds"), KINDS, ids=[str(n) for n in range(len(KINDS))])
def test_all_that_are_wanted_come_once_page_by_page_in_their_order(
    ledger: Ledger, rows: list[dict[str, Any]], wanted: Wanted, holds: Callable[[dict[str, Any]], bool], sort: str
) -> None:
    by = "turnaround_s" if sort == "slowest" else "first_arrival"
    chosen = [row for row in rows if holds(row)]
    assert ledger.series_count(wanted) == (len(chosen), len(rows))
    in_it = [row for row in chosen if sort != "slowest" or row[by] is not None]
    expected = sorted(in_it, key=lambda row: (row[by], row["series_uid"]), reverse=sort != "oldest")
    pages: list[str] = []
    while True:
        page = ledger.series_list(37, replace(wanted, sort=sort, after=pages[-1] if pages else ""))
        pages += [one["series_uid"] for one in page]
        if len(page) < 37:
            break
    assert pages == [row["series_uid"] for row in expected]


def test_what_it_is_after_must_be_there(ledger: Ledger) -> None:
    assert ledger.series_list(5, Wanted(after="9.9")) == []


def test_trouble_is_what_health_says_and_what_is_tried_again(ledger: Ledger) -> None:
    listed = {one["series_uid"] for one in ledger.series_list(999, Wanted(trouble=True))}
    assert {job["series_uid"] for job in ledger.unresolved()} <= listed


def test_the_list_says_how_many_findings_and_the_largest(ledger: Ledger, rows: list[dict[str, Any]]) -> None:
    """Of one pipeline with several options the most: they mark the same lesions."""
    listed = {one["series_uid"]: (one["findings"], one["largest_mm"]) for one in ledger.series_list(999)}
    for row in rows:
        sizes = [mm for said in row["found"].values() for _, mm in said if mm is not None]
        number = max(map(len, row["found"].values()), default=None)
        assert listed[row["series_uid"]] == (number, max(sizes, default=None))
    assert len({number for number, _ in listed.values()}) == 4
    assert ledger.kinds_found() == ["Mass", "Nodule"]


def test_what_can_be_chosen(ledger: Ledger, rows: list[dict[str, Any]]) -> None:
    assert ledger.senders_and_modalities() == sorted({(row["sender"], row["modality"]) for row in rows})


# How long it took ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path}/node.sqlite", tmp_path)
    ledger.migrate()
    yield ledger
    ledger.close()


def closed(ledger: Ledger, revision: int = 1, **job: Any) -> Job:
    """A series that came within 30 s, closed with a job."""
    for second in (0, 30):
        at = NOON + timedelta(seconds=second)
        image = f"2.25.{revision}{second}"
        ledger.take_in(Instance(image, "1.2", "1.2.3", "1.3", "1.2", ledger.root / image, 9, at, "a", "CT1"))
    made = {"id": f"i{revision}", "kind": "infer", "series_uid": "1.2.3", "study_uid": "1.3", "revision": revision}
    infer = Job(**{**made, "pipeline": "p", "route": "r", "priority": 5, "created_at": NOON, "sender": "CT1", **job})
    said = {"because": "quiet", "modality": "CT", "description": "d", "verdict": Verdict(True, "fine"), "rules": []}
    assert ledger.close_series("1.2.3", arrived=2 * revision, jobs=[infer], revision=revision, now=NOON, **said)
    return infer


def through(ledger: Ledger, job: Job, seconds: float, **ending: Any) -> None:
    began = NOON + timedelta(seconds=40)
    assert ledger.begin(job, "w", began)
    assert ledger.finish(job, "done", "well", began + timedelta(seconds=seconds), **ending)


def follow(job: Job, kind: str, place: str) -> Job:
    own = {"infer_job": "i1"} if kind == "send" else {"send_job": "s"}
    plain = {"series_uid": "1.2.3", "study_uid": "1.3", "revision": job.revision, "pipeline": "p", "route": "r"}
    return Job(
        f"{kind} {place}", kind, **plain, priority=5, created_at=NOON, destination=place, sender=job.sender, **own
    )


def proof(arrived: bool | None) -> ArrivalProof:
    return ArrivalProof("2.25.9", arrived, "C-FIND", "said", NOON)


def turnaround(ledger: Ledger) -> float | None:
    return ledger.series_list(1)[0]["turnaround_s"]


def test_turnaround_ends_where_the_last_results_have_arrived(fresh: Ledger) -> None:
    infer = closed(fresh)
    folder, archive = follow(infer, "send", "folder"), follow(infer, "send", "pacs")
    confirm = follow(infer, "confirm", "pacs")
    through(fresh, infer, 5, facts={"seconds": 4.0, "encode_seconds": 0.3}, follow_up=[folder, archive])
    assert turnaround(fresh) is None
    receipt = Receipt("2.25.9", True, 0, "0x0000 Success", NOON)
    through(fresh, folder, 10, receipts=[receipt])
    assert turnaround(fresh) == 20.0  # from the last image, at 30 s, to 50 s
    through(fresh, archive, 15, receipts=[receipt], follow_up=[confirm])
    assert turnaround(fresh) == 20.0, "sent is not arrived"
    through(fresh, confirm, 60, arrivals=[proof(True)])
    assert turnaround(fresh) == 70.0
    took = {key: (counts[-1], seconds) for key, (counts, seconds) in fresh.durations().items()}
    assert took == {
        ("receive", "CT"): (1, 30.0),
        ("wait", "p"): (1, 40.0),
        ("infer", "p"): (1, 4.0),
        ("encode", "p"): (1, 0.3),
        ("send", "folder"): (1, 10.0),
        ("send", "pacs"): (1, 15.0),
        ("turnaround", "p"): (2, 90.0),
    }
    counts, _ = fresh.durations()["infer", "p"]
    assert counts == [0, 0, 0, 0, *([1] * 12)], "4 s are no more than 5 s"


@pytest.mark.parametrize("arrived", [False, None])
def test_what_is_not_proven_has_not_arrived(fresh: Ledger, arrived: bool | None) -> None:
    infer = closed(fresh)
    confirm = follow(infer, "confirm", "pacs")
    through(fresh, infer, 5, follow_up=[confirm])
    through(fresh, confirm, 60, arrivals=[proof(arrived)])
    assert turnaround(fresh) is None


def test_what_a_person_had_run_again_does_not_count(fresh: Ledger) -> None:
    infer = closed(fresh, sender="")
    send = follow(infer, "send", "folder")
    through(fresh, infer, 5, follow_up=[send])
    through(fresh, send, 9000)
    assert turnaround(fresh) is None


def test_late_images_begin_a_turnaround_of_their_own(fresh: Ledger) -> None:
    infer = closed(fresh)
    send = follow(infer, "send", "folder")
    through(fresh, infer, 5, follow_up=[send])
    through(fresh, send, 10)
    assert turnaround(fresh) == 20.0
    closed(fresh, 2)
    assert turnaround(fresh) is None
    assert fresh.durations()["receive", "CT"][0][-1] == 1, "late images are not how long a series takes to come"


def test_marks_are_the_latest(fresh: Ledger) -> None:
    fresh.mark("backup", NOON, "one")
    fresh.mark("backup", NOON + timedelta(days=1), "two")
    assert fresh.marks() == {"backup": {"at": NOON + timedelta(days=1), "text": "two"}}


def test_a_series_says_who_sent_it_first(fresh: Ledger) -> None:
    closed(fresh)
    assert fresh.series_list(1)[0]["sender"] == "CT1"


# What was found ------------------------------------------------------------------------------------------------------


def say(ledger: Ledger, job: Job, **facts: Any) -> tuple[int | None, float | None]:
    through(ledger, job, 5, facts=facts)
    [one] = ledger.series_list(1)
    whole = ledger.series("1.2.3")
    assert whole is not None
    assert (one["findings"], one["largest_mm"]) == (whole["findings"], whole["largest_mm"])
    return one["findings"], one["largest_mm"]


def test_the_latest_result_of_a_pipeline_and_its_options_counts(fresh: Ledger) -> None:
    first = closed(fresh)
    assert fresh.series_list(1)[0]["findings"] is None, "not analysed is not: nothing found"
    assert fresh.series_count(Wanted(findings="without"))[0] == 0
    assert say(fresh, first, number_of={"Nodule": 2, "Mass": 1}, largest_mm={"Nodule": 9.5, "Mass": 31.0}) == (3, 31.0)
    assert say(fresh, closed(fresh, 2), number_of={"Nodule": 1}, largest_mm={"Nodule": 9.1}) == (1, 9.1)
    assert fresh.series_count(Wanted(kind="Mass"))[0] == 0, "it is not found any more"
    assert say(fresh, closed(fresh, 3, route="another"), number_of={}) == (0, None)
    assert fresh.series_count(Wanted(findings="without"))[0] == 1
    other = closed(fresh, 4, options={"threshold": 0.1})
    assert say(fresh, other, number_of={"Nodule": 4}, unsized=["Nodule"]) == (4, None)
    assert say(fresh, closed(fresh, 5, pipeline="q"), number_of={"Nodule": 3}, largest_mm={"Nodule": 5.0}) == (7, 5.0)
    assert fresh.series_count(Wanted(kind="Nodule", min_mm=50))[0] == 1, "not known to be smaller"


@pytest.mark.parametrize("of", [{"shadow": True}, {"sender": HEARTBEAT_AE}], ids=["shadow", "heartbeat"])
def test_what_counts_in_no_figure_is_not_in_the_list(fresh: Ledger, of: dict[str, Any]) -> None:
    assert say(fresh, closed(fresh, **of), number_of={"Nodule": 1}) == (None, None)
    assert fresh.kinds_found() == []


def test_what_cannot_be_analysed_any_more_leaves_what_was_found(fresh: Ledger) -> None:
    assert say(fresh, closed(fresh), number_of={"Nodule": 1}, largest_mm={"Nodule": 9.5}) == (1, 9.5)
    again = closed(fresh, 2)
    assert fresh.begin(again, "w", NOON)
    assert fresh.finish(again, "refused", "a slice is missing", NOON, facts={"encode_seconds": 1.0})
    assert fresh.series_list(1)[0]["findings"] == 1
