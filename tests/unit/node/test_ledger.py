"""The ledger on a real SQLite file: what is committed, what is refused, what survives."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.operations import Operations

from pacs_node.errors import LedgerUnavailable
from pacs_node.ledger import Ledger
from pacs_node.ledger.engine import MIGRATIONS
from pacs_node.ledger.found import variant
from pacs_node.ledger.tables import metadata
from pacs_node.records import (
    HEARTBEAT_AE,
    JOB_KINDS,
    OPEN_JOB_STATES,
    TRANSITIONS,
    Answer,
    AssociationEnd,
    Edition,
    Instance,
    Job,
    Receipt,
    Result,
    Verdict,
)

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FIT = Verdict(
    True, "2 axial slices", use=("1.2.1", "1.2.2"), set_aside={"1.2.9": "localizer"}, facts={"tilt_degrees": 0.0}
)


def instance(uid: str, *, series: str = "1.9", association: str = "a1", at: datetime = T0) -> Instance:
    return Instance(uid, "1.2.840.10008.5.1.4.1.1.2", series, "1.8", "1.2.840.10008.1.2.1", Path(f"/spool/{uid}"),
                    10, at, association, "CT1")  # fmt: skip


def job(**changes: object) -> Job:
    values = {"id": "j1", "kind": "infer", "series_uid": "1.9", "study_uid": "1.8", "revision": 1,
              "pipeline": "lung-nodule", "route": "chest", "priority": 5, "created_at": T0,
              "send_to": ("pacs",)} | changes  # fmt: skip
    return Job(**values)


def close(ledger: Ledger, arrived: int, jobs: list[Job], revision: int = 1) -> bool:
    return ledger.close_series("1.9", arrived=arrived, because="quiet", modality="CT", description="Chest", verdict=FIT,
                               rules=[{"rule": "chest", "matched": True, "why_not": None}], jobs=jobs,
                               revision=revision, now=T0)  # fmt: skip


def test_the_migrations_build_the_schema_the_code_uses(ledger: Ledger) -> None:
    there = sa.inspect(ledger.engine)
    for table in metadata.tables.values():
        assert {c["name"] for c in there.get_columns(table.name)} == {c.name for c in table.columns}
        assert there.get_pk_constraint(table.name)["constrained_columns"] == [c.name for c in table.primary_key]


def test_the_last_answer_of_a_destination_under_the_same_settings_counts(ledger: Ledger) -> None:
    refused = Answer("1.2.3", "1.2.840.10008.1.2.1", "the SOP class is not supported", T0)
    accepted = Answer("1.2.3", "1.2.840.10008.1.2", None, T0)
    ledger.remember_answers("pacs", "digest", [refused, accepted])
    ledger.remember_answers("other", "digest", [accepted])
    assert ledger.answers("pacs", "digest") == [accepted, refused]
    later = Answer("1.2.3", "1.2.840.10008.1.2.1", None, T0 + timedelta(hours=1))
    ledger.remember_answers("pacs", "digest", [later])
    assert ledger.answers("pacs", "digest") == [accepted, later]
    assert ledger.answers("pacs", "other settings") == []
    ledger.remember_answers("pacs", "other settings", [refused])
    assert ledger.answers("pacs", "digest") == [accepted], "the row is one: it says under which settings it was asked"


OLD_SERIES = (
    "INSERT INTO series (series_uid, study_uid, state, modality, description, arrived, revision, first_arrival,"
    " last_arrival) VALUES ('{uid}', '1.8', 'closed', 'CT', '', 1, 1, '" + T0.isoformat().replace(":", "\\:") + "', '')"
)
OLD_INSTANCE = (
    "INSERT INTO instance (sop_instance_uid, sop_class_uid, series_uid, study_uid, transfer_syntax_uid, path, size,"
    " received_at, association, calling_ae) VALUES ('{uid}', '1.2', '{series}', '1.8', '1.2', 'p', 1, '', 'a', 'CT1')"
)


def as_of(folder: Path, revision: str) -> Ledger:
    """A ledger as an earlier version has left it."""
    ledger = Ledger(f"sqlite:///{folder}/older.sqlite", folder)
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(MIGRATIONS))
    settings.attributes["engine"], settings.attributes["root"] = ledger.engine, folder
    command.upgrade(settings, revision)
    return ledger


def test_a_list_knows_the_senders_of_older_ledgers(tmp_path: Path) -> None:
    ledger = as_of(tmp_path, "0015")
    with ledger.engine.begin() as db:
        db.execute(sa.text(OLD_SERIES.format(uid="1.9")))
        db.execute(sa.text(OLD_SERIES.format(uid="1.10")))
        db.execute(sa.text(OLD_INSTANCE.format(uid="1.2.3", series="1.9")))
    ledger.migrate()
    assert ledger.senders_and_modalities() == [("", "CT"), ("CT1", "CT")]
    ledger.close()


def test_what_older_ledgers_have_found_is_known(tmp_path: Path) -> None:
    """The latest of each pipeline and its options, as jobs have said it."""
    ledger = as_of(tmp_path, "0026")
    plain = ("study_uid, revision, route, send_to, priority, generation, attempt, crashes, progress, progress_text,"
             " warnings, created_at")  # fmt: skip
    row = (
        "INSERT INTO job (id, kind, series_uid, pipeline, options, state, shadow, sender, reason, facts, finished_at,"
        f" {plain}) VALUES (?, ?, ?, 'p', ?, ?, ?, ?, ?, ?, ?, '1.8', 1, 'r', '[]', 5, 1, 1, 0, 1, '', '[]', '')"
    )
    jobs = [
        ("1", "infer", "1.9", "{}", "done", 0, "CT1", "3 findings", '{"largest_mm": {"Nodule": 30.5}}', "2026-01-01"),
        ("2", "infer", "1.9", "{}", "done", 0, "", "2 findings", '{"largest_mm": {"Nodule": 9.5}}', "2026-01-02"),
        ("3", "infer", "1.9", "{}", "failed", 0, "CT1", "gave up", "{}", "2026-01-03"),
        ("4", "infer", "1.9", "{}", "done", 1, "CT1", "7 findings", '{"largest_mm": {"Ghost": 9}}', "2026-01-04"),
        ("5", "infer", "1.10", "{}", "done", 0, HEARTBEAT_AE, "1 finding", '{"unsized": ["Beat"]}', "2026-01-04"),
        ("6", "infer", "1.11", "{}", "done", 0, "CT1", "0 findings", "{}", "2026-01-05"),
        ("7", "send", "1.11", "{}", "done", 0, "CT1", "sent", "{}", "2026-01-06"),
        ("8", "infer", "1.12", "{}", "done", 0, "CT1", "5 findings",
         '{"largest_mm": {"Mass": 7.5}, "unsized": ["Mass", "Cyst"]}', "2026-01-06"),
    ]  # fmt: skip
    with ledger.engine.begin() as db:
        for job in jobs:
            db.exec_driver_sql(row, job)
    ledger.migrate()
    with ledger.engine.begin() as db:
        names = "series_uid, kind, number, largest_mm, unsized"
        found = [tuple(each) for each in db.execute(sa.text(f"SELECT {names} FROM found ORDER BY series_uid, kind"))]
    assert found == [
        *(("1.11", "", 0, None, 0), ("1.12", "", 5, 7.5, 1), ("1.12", "Cyst", 1, None, 1), ("1.12", "Mass", 1, 7.5, 1)),
        *(("1.9", "", 2, 9.5, 0), ("1.9", "Nodule", 2, 9.5, 0)),
    ]
    options = {"threshold": 0.5, "views": 2}
    frozen = import_module("pacs_node.ledger.migrations.versions.0028_found")
    assert frozen.variant_of(options) == variant(dict(reversed(options.items()))), "what comes next takes their place"
    ledger.close()


def test_whom_images_are_kept_for_is_known_of_older_ledgers_too(tmp_path: Path) -> None:
    ledger = as_of(tmp_path, "0014")
    with ledger.engine.begin() as db:
        for number in (1, 2):
            db.execute(sa.text(OLD_SERIES.format(uid=f"1.9{number}")))
            db.execute(sa.text(OLD_INSTANCE.format(uid=f"1.2.{number}", series=f"1.9{number}")))
        wanted = '[["1.2", "1.2.2"], ["1.2", "1.2.9"]]'
        request = f"INSERT INTO commitment_request VALUES ('CT1', '2.25.7', '{wanted}', '{T0.isoformat()}', NULL)"
        db.exec_driver_sql(request)
    ledger.migrate()
    with ledger.engine.begin() as db:
        kept = dict(db.execute(sa.text("SELECT series_uid, committed_to FROM series")).tuples().all())
    assert kept == {"1.91": None, "1.92": "CT1"}
    ledger.close()


def test_an_instance_is_taken_in_once(ledger: Ledger) -> None:
    assert ledger.take_in(instance("1.2.1"))
    assert not ledger.take_in(instance("1.2.1"))
    [open_series] = ledger.open_series(frozenset())
    assert open_series.evidence.arrived == 1


def test_evidence_knows_who_left_in_order(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1", association="a1"))
    ledger.take_in(instance("1.2.2", association="a2", at=T0 + timedelta(seconds=3)))
    assert ledger.associations_ended(
        [AssociationEnd("a1", "CT1", True, T0), AssociationEnd("a0", "CT1", True, T0)]
    ) == {"a1"}
    [one] = ledger.open_series(frozenset({"a2"}))
    assert (one.evidence.released, one.evidence.open_associations) == (False, frozenset({"a2"}))
    ledger.associations_ended([AssociationEnd("a2", "CT1", True, T0)])
    [one] = ledger.open_series(frozenset())
    assert one.evidence.released
    assert one.evidence.last_arrival == T0 + timedelta(seconds=3)


def test_however_many_series_are_open_two_questions_are_asked(ledger: Ledger) -> None:
    """And who brought which, and how he left, is told apart: some by two associations, some by one of two series."""
    for number in range(40):
        uids = {"series": f"1.9.{number}", "association": f"a{number // 2}"}
        ledger.take_in(instance(f"1.2.{number}", **uids))
    ledger.take_in(instance("1.2.99", series="1.9.7", association="b"))
    ends = [AssociationEnd(f"a{number}", "CT1", number % 3 > 0, T0) for number in range(10)]
    assert len(ledger.associations_ended(ends)) == 10
    asked: list[str] = []

    @sa.event.listens_for(ledger._reader, "before_cursor_execute")
    def heard(_: Any, __: Any, statement: str, *___: Any) -> None:
        asked.append(statement)

    told = {each.series_uid: each.evidence for each in ledger.open_series(frozenset({"a11", "b"}))}
    sa.event.remove(ledger._reader, "before_cursor_execute", heard)
    assert len(asked) <= 3, asked
    assert len(told) == 40
    for number in range(40):
        whose, evidence = number // 2, told[f"1.9.{number}"]
        assert evidence.released is (whose < 10 and whose % 3 > 0 and number != 7)
        assert evidence.open_associations == ({"a11"} if whose == 11 else {"b"} if number == 7 else set())


def test_an_aborted_association_is_no_release(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1"))
    ledger.associations_ended([AssociationEnd("a1", "CT1", False, T0)])
    assert not ledger.open_series(frozenset())[0].evidence.released


def test_closing_fails_when_another_image_came_meanwhile(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1"))
    ledger.take_in(instance("1.2.2"))
    assert not close(ledger, arrived=1, jobs=[job()])
    assert ledger.open_jobs() == []
    assert close(ledger, arrived=2, jobs=[job()])
    assert [j.id for j in ledger.open_jobs()] == ["j1"]
    assert ledger.verdict("1.9") == FIT


def test_a_late_image_reopens_and_supersedes(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1"))
    close(ledger, 1, [job()])
    running = ledger.job("j1")
    assert ledger.begin(running, "w1", T0)
    ledger.take_in(instance("1.2.2"))
    assert close(ledger, 2, [job(id="j2", revision=2)], revision=2)
    assert [j.id for j in ledger.open_jobs()] == ["j2"]
    assert not ledger.finish(running, "done", "late answer", T0)  # revision 1 must not be sent any more
    assert ledger.job("j1").state == "superseded"


def test_a_late_worker_is_fenced_off(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1"))
    close(ledger, 1, [job()])
    old = ledger.job("j1")
    assert ledger.begin(old, "w1", T0)
    new = ledger.take_over(old, "w1 is gone", T0)
    assert ledger.begin(new, "w2", T0)
    assert not ledger.finish(old, "done", "ghost", T0, results=[Result("2.1", "c", Path("x"))])
    assert ledger.results("j1") == []
    assert ledger.finish(
        new, "done", "fine", T0, results=[Result("2.2", "c", Path("y"))], follow_up=[job(id="s1", kind="send")]
    )
    assert [r.sop_instance_uid for r in ledger.results("j1")] == ["2.2"]
    assert [j.id for j in ledger.open_jobs()] == ["s1"]


@pytest.mark.parametrize("end", ["done", "refused", "failed"])
def test_a_finished_job_stays_finished(ledger: Ledger, end: str) -> None:
    ledger.take_in(instance("1.2.1"))
    close(ledger, 1, [job()])
    mine = ledger.job("j1")
    ledger.begin(mine, "w1", T0)
    assert ledger.finish(mine, end, "so", T0)
    assert not ledger.begin(mine, "w1", T0)
    assert ledger.take_over(mine, "x", T0) is None
    assert ledger.run_again("j1", T0) is (end != "done")


@pytest.mark.parametrize("kind", JOB_KINDS)
@pytest.mark.parametrize("state", OPEN_JOB_STATES)
def test_any_open_job_may_be_retried(ledger: Ledger, kind: str, state: str) -> None:
    """Whatever holds it, and whatever has come since; what still runs of it counts no more."""
    ledger.take_in(instance("1.2.1"))
    ledger.take_in(instance("1.2.2"))
    close(ledger, 2, [job(kind=kind, destination="pacs" if kind != "infer" else None)], revision=2)
    mine = ledger.job("j1")
    if state != "queued":
        assert ledger.begin(mine, "w1", T0)
    if state == "waiting":
        assert ledger.retry_later(mine, "down", T0 + timedelta(hours=9), [], T0)
    held = ledger.job("j1")
    assert held.state == state
    assert ledger.run_again("j1", T0)
    again = ledger.job("j1")
    assert (again.state, again.generation, again.attempt, again.not_before) == ("queued", 2, 1, None)
    assert again in ledger.due_jobs(T0, dict.fromkeys(JOB_KINDS, 1), 3600)
    assert not ledger.finish(held, "done", "too late", T0)
    assert not ledger.begin(held, "w1", T0)
    assert ledger.begin(again, "w2", T0)


def test_a_send_that_may_have_arrived_is_remembered_when_it_is_retried_or_put_back(ledger: Ledger) -> None:
    """Or later results would not replace it there."""
    ledger.take_in(instance("1.2.1"))
    close(ledger, 1, [job(id="i1")])
    infer = ledger.job("i1")
    ledger.begin(infer, "w1", T0)
    send = job(id="s1", kind="send", destination="pacs", send_to=(), infer_job="i1")
    edition = Edition(1, 1, "v", True, T0, objects=(Result("2.1", "c", Path("x")),))
    assert ledger.finish(infer, "done", "so", T0, results=edition.objects, follow_up=[send], edition=edition)
    assert ledger.editions(infer)[0].released_to == frozenset()
    assert ledger.begin(ledger.job("s1"), "w1", T0)
    assert ledger.put_back(ledger.job("s1"), "its outcome could not be written", T0)
    assert ledger.editions(infer)[0].released_to == {"pacs"}
    assert ledger.run_again("s1", T0)
    assert ledger.editions(infer)[0].released_to == {"pacs"}


def test_retry_keeps_the_receipts_of_a_partial_success(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1"))
    close(ledger, 1, [job(kind="send", destination="pacs")])
    mine = ledger.job("j1")
    ledger.begin(mine, "w1", T0)
    receipt = Receipt("2.1", True, 0, "0x0000 Success", T0)
    assert ledger.retry_later(mine, "connection lost", T0 + timedelta(seconds=9), [receipt], T0)
    waiting = ledger.job("j1")
    assert (waiting.state, waiting.attempt, waiting.not_before, waiting.crashes) == (
        "waiting",
        2,
        T0 + timedelta(seconds=9),
        0,
    )
    facts = ledger.series("1.9")
    assert facts["jobs"][0]["receipts"][0]["text"] == "0x0000 Success"


def test_crashes_are_counted_only_without_an_outcome(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1"))
    close(ledger, 1, [job()])
    for expected in (1, 2, 3):
        ledger.begin(ledger.job("j1"), "w1", T0)
        assert ledger.job("j1").crashes == expected


def test_leases_run_out(ledger: Ledger) -> None:
    ledger.renew_lease("w1", 60)
    ledger.renew_lease("w2", -1)
    assert ledger.living().keys() == {"w1"}
    ledger.give_up_lease("w1")
    assert ledger.living() == {}


def test_one_data_folder_receives_for_a_database(ledger: Ledger) -> None:
    assert ledger.receive_alone("a", 60)
    assert not ledger.receive_alone("b", 60)
    assert ledger.receive_alone("a", -1), "again, and it runs out"
    assert ledger.receive_alone("b", 60)
    assert not ledger.receive_alone("a", 60)
    ledger.receive_no_more("b")
    assert ledger.receive_alone("a", 60)
    assert ledger.living() == {}, "it is no worker"


def test_only_open_states_can_be_left() -> None:
    """By hand: what is finished never starts again without an operator."""
    assert {old for old, _ in TRANSITIONS} == set(OPEN_JOB_STATES)
    assert {new for _, new in TRANSITIONS} == {
        "queued",
        "running",
        "waiting",
        "done",
        "refused",
        "failed",
        "superseded",
    }


def test_a_database_that_does_not_answer_makes_the_sender_try_again(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/gone/node.sqlite", tmp_path)
    with pytest.raises(LedgerUnavailable) as failure:
        ledger.take_in(instance("1.2.1"))
    assert failure.value.status == 0xA700  # Out of Resources: the sender keeps its copy


def test_an_old_revision_is_not_run_again(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1"))
    close(ledger, 1, [job()])
    ledger.begin(ledger.job("j1"), "w1", T0)
    ledger.finish(ledger.job("j1"), "failed", "so", T0)
    ledger.take_in(instance("1.2.2"))
    close(ledger, 2, [job(id="j2", revision=2)], revision=2)
    assert not ledger.run_again("j1", T0)


def test_results_on_their_way_still_arrive_when_nothing_better_comes(ledger: Ledger) -> None:
    """A stray late image starts no job: what was found before it is sent all the same."""
    ledger.take_in(instance("1.2.1"))
    close(ledger, 1, [job(id="s1", kind="send", destination="pacs")])
    ledger.take_in(instance("1.2.2"))
    close(ledger, 2, [], revision=2)
    assert [j.id for j in ledger.open_jobs()] == ["s1"]
    ledger.take_in(instance("1.2.3"))
    close(ledger, 3, [job(id="j3", revision=3)], revision=3)
    assert [j.id for j in ledger.open_jobs()] == ["j3"]


def test_a_late_image_makes_the_count_of_the_peer_old(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1"))
    ledger.expect("1.9", 1, 40, "pacs")
    assert ledger.open_series(frozenset())[0].evidence.expected == 40
    ledger.take_in(instance("1.2.2"))
    assert ledger.open_series(frozenset())[0].evidence.expected is None
    ledger.expect("1.9", 1, 40, "pacs")  # the answer to a question asked before the second one came
    assert ledger.open_series(frozenset())[0].evidence.expected is None


def test_backoff_survives_a_take_over(ledger: Ledger) -> None:
    ledger.take_in(instance("1.2.1"))
    close(ledger, 1, [job(kind="send", destination="pacs")])
    first = ledger.job("j1")
    ledger.begin(first, "w1", T0)
    ledger.retry_later(first, "down", T0 + timedelta(seconds=9), [], T0)
    assert ledger.take_over(first, "seen before it waited", T0) is None  # attempt 1 is over
    assert ledger.job("j1").not_before == T0 + timedelta(seconds=9)


def test_files_of_an_earlier_ledger_are_named_by_their_place_and_found_on_another_machine(ledger: Ledger) -> None:
    pack = replace(instance("1.2.1"), path=Path("/one/data/spool/instances/a/0.pack"), offset=128)
    beside = replace(instance("1.2.2"), path=Path("/one/database/0.pack"))
    for each in (pack, beside):
        ledger.take_in(each)
    close(ledger, 2, [job()])
    begun = ledger.job("j1")
    assert ledger.begin(begun, "w1", T0)
    result = Result("1.5", "1.6", Path("/one/data/results/j1/1/01-SR.dcm"), "1.7", "00")
    edition = Edition(1, 1, "0.1.0", True, T0, objects=(result,), replaces=())
    assert ledger.finish(begun, "done", "one", T0, results=[result], edition=edition)
    places = import_module("pacs_node.ledger.migrations.versions.0012_places")
    settings = AlembicConfig()
    settings.attributes["root"] = Path("/one/data")
    environment: Any = SimpleNamespace(config=settings)
    with ledger.engine.begin() as db:
        context = MigrationContext.configure(db, environment_context=environment)
        with Operations.context(context):
            places.upgrade()
    for root in ("/one/data", "/two/elsewhere"):
        moved = Ledger(ledger.url, Path(root))
        moved.migrate()
        assert moved.instance("1.2.1") == replace(pack, path=Path(root) / "spool/instances/a/0.pack")
        assert moved.instance("1.2.2") == beside, "it lies elsewhere"
        assert moved.indexed_up_to() == {Path(root) / "spool/instances/a/0.pack": 138, beside.path: 10}
        there = Path(root) / "results/j1/1/01-SR.dcm"
        assert [each.path for each in moved.results("j1")] == [there]
        assert moved.every_object() == [replace(result, path=there)]
        moved.close()


def test_what_is_written_on_one_machine_is_found_on_another(ledger: Ledger) -> None:
    here, there = Ledger(ledger.url, Path("/one/data")), Ledger(ledger.url, Path("/two"))
    pack = replace(instance("1.2.1"), path=Path("/one/data/spool/instances/a/0.pack"))
    assert here.take_in(pack)
    assert there.instance("1.2.1").path == Path("/two/spool/instances/a/0.pack")
    assert there.kept_instances(["1.2.1"]) == there.instances("1.9")
    again = replace(pack, path=Path("/two/spool/instances/b/1.pack"))
    assert there.take_in_all([again], lambda stored: False)
    assert here.instance("1.2.1").path == Path("/one/data/spool/instances/b/1.pack"), "it has come again"
    for each in (here, there):
        each.close()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (sa.exc.DatabaseError, LedgerUnavailable),  # "database disk image is malformed", after a read that failed
        (sa.exc.OperationalError, LedgerUnavailable),
        (sa.exc.IntegrityError, sa.exc.IntegrityError),
        (sa.exc.ProgrammingError, sa.exc.ProgrammingError),
    ],
)
def test_a_database_that_cannot_be_read_is_no_error_of_a_job(
    ledger: Ledger, error: type[sa.exc.DatabaseError], raised: type[Exception]
) -> None:
    with pytest.raises(raised), ledger._reading():
        raise error("SELECT", {}, Exception("of the driver"))
