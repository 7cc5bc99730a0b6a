"""The ledger: what the node knows and must not forget. The only file that talks SQL.

SQLite in the embedded default, PostgreSQL when a site runs several workers; the same statements on both.
The spool folder is the truth about images, this is its index; about jobs and receipts the ledger is the truth.
Every job write carries `WHERE generation = :mine`, so a worker that was taken for dead cannot overwrite its successor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy.dialects import postgresql, sqlite

from pacs_node.editions import merged, replaced, same_objects
from pacs_node.errors import EditionChanged, LedgerTooOld, LedgerUnavailable
from pacs_node.flow import JOB_KINDS, JOB_STATES, OPEN_JOB_STATES, TRANSITIONS
from pacs_node.records import (
    Answer,
    Arrival,
    AssociationEnd,
    Commitment,
    CommitmentReport,
    CommitmentRequest,
    Edition,
    Evidence,
    Instance,
    Job,
    OpenSeries,
    Receipt,
    Refusal,
    Result,
    Verdict,
)

MOST_REFUSALS = 1000  # rows kept, the newest; the counts go on


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware UTC time, stored as ISO text on SQLite (which has no time zone) and natively on PostgreSQL."""

    impl = sa.String(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(sa.DateTime(timezone=True) if dialect.name == "postgresql" else sa.String(32))

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).isoformat(timespec="microseconds")  # one width, so that text order is time order

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)


metadata = sa.MetaData()

instance_table = sa.Table(
    "instance",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("association", sa.String(64), nullable=False),
    sa.Column("calling_ae", sa.String(16), nullable=False),
)

series_table = sa.Table(
    "series",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("modality", sa.String(16), nullable=False, default=""),
    sa.Column("description", sa.String(64), nullable=False, default=""),
    sa.Column("arrived", sa.Integer, nullable=False, default=0),
    sa.Column("revision", sa.Integer, nullable=False, default=0),  # 0 until it first closes
    sa.Column("closed_because", sa.Text),
    sa.Column("first_arrival", UtcDateTime, nullable=False, index=True),
    sa.Column("last_arrival", UtcDateTime, nullable=False),
    sa.Column("expected", sa.Integer),
    sa.Column("expected_from", sa.String(64)),
    sa.Column("verdict", sa.JSON),
    sa.Column("rules", sa.JSON),
)

association_table = sa.Table(
    "association",
    metadata,
    sa.Column("association", sa.String(64), primary_key=True),
    sa.Column("calling_ae", sa.String(16), nullable=False),
    sa.Column("released", sa.Boolean, nullable=False),
    sa.Column("ended_at", UtcDateTime, nullable=False),
)

event_table = sa.Table(
    "event",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

job_table = sa.Table(
    "job",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(8), nullable=False),  # infer | send | confirm | report
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("pipeline", sa.String(64), nullable=False),
    sa.Column("route", sa.String(64), nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("priors", sa.String(64)),  # the peer to ask for earlier studies of the patient
    sa.Column("send_to", sa.JSON, nullable=False),  # names of peers; an infer job's destinations
    sa.Column("destination", sa.String(64)),  # a send or confirm job's one; of a report the sender's AE title
    # a send job's infer job, a confirm job's send job, a report's Transaction UID
    sa.Column("parent", sa.String(64), index=True),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("generation", sa.Integer, nullable=False, default=1),
    sa.Column("attempt", sa.Integer, nullable=False, default=1),  # the one that runs or is next
    sa.Column("crashes", sa.Integer, nullable=False, default=0),  # attempts begun without an outcome, in a row
    sa.Column("executor", sa.String(128)),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("progress", sa.Float, nullable=False, default=0.0),
    sa.Column("progress_text", sa.Text, nullable=False, default=""),
    sa.Column("warnings", sa.JSON, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("not_before", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
)

result_table = sa.Table(
    "result",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),  # in sending order
)

receipt_table = sa.Table(
    "receipt",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("stored", sa.Boolean, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("sop_class_uid", sa.String(64), nullable=False, server_default=""),  # of what was sent
)

answer_table = sa.Table(  # what a destination accepted and refused when it was last asked
    "answer",
    metadata,
    sa.Column("destination", sa.String(64), primary_key=True),
    sa.Column("sop_class_uid", sa.String(64), primary_key=True),
    sa.Column("transfer_syntax_uid", sa.String(64), primary_key=True),
    sa.Column("settings", sa.String(64), nullable=False),  # a digest: asked under other settings, it says nothing
    sa.Column("refused", sa.Text),  # the reason; nothing: accepted
    sa.Column("at", UtcDateTime, nullable=False),
)

edition_table = sa.Table(
    "edition",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("pipeline", sa.String(64), nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),  # of the series
    sa.Column("version", sa.String(64), nullable=False),  # of the algorithm
    sa.Column("analysed", sa.Boolean, nullable=False),
    sa.Column("dated", UtcDateTime, nullable=False),
    sa.Column("replaces", sa.JSON, nullable=False),
    sa.Column("objects", sa.JSON, nullable=False),
)

commitment_table = sa.Table(
    "commitment",
    metadata,
    sa.Column("transaction_uid", sa.String(64), primary_key=True),  # written before the peer hears of it
    sa.Column("job", sa.String(64), nullable=False, index=True),  # the confirm job
    sa.Column("begun_at", UtcDateTime, nullable=False),
    sa.Column("accepted_at", UtcDateTime),
    sa.Column("over", sa.Text, nullable=False, default=""),
    sa.Column("again", sa.Boolean, nullable=False, default=False),
    sa.Column("reported_at", UtcDateTime),
    sa.Column("reported_by", sa.String(16), nullable=False, default=""),  # "": on the association of the request
    sa.Column("committed", sa.JSON, nullable=False),
    sa.Column("failed", sa.JSON, nullable=False),
    sa.Column("heeded", sa.Boolean, nullable=False, default=False),  # an attempt of the job knows the report
)

arrival_table = sa.Table(
    "arrival",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),  # the latest of an object is the valid one
    sa.Column("job", sa.String(64), nullable=False, index=True),
    sa.Column("destination", sa.String(64), nullable=False),
    sa.Column("sop_instance_uid", sa.String(64), nullable=False),
    sa.Column("arrived", sa.Boolean),  # NULL: not proven
    sa.Column("how", sa.String(32), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

commitment_request_table = sa.Table(
    "commitment_request",
    metadata,
    sa.Column("calling_ae", sa.String(16), primary_key=True),
    sa.Column("transaction_uid", sa.String(64), primary_key=True),
    sa.Column("wanted", sa.JSON, nullable=False),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("reported_at", UtcDateTime),
)

refusal_table = sa.Table(
    "refusal",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("calling_ae", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("sop_instance_uid", sa.Text, nullable=False),
    sa.Column("series_uid", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("file", sa.Text, nullable=False),
)

refusal_count_table = sa.Table(
    "refusal_count",
    metadata,
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("latest", UtcDateTime, nullable=False),
)

lease_table = sa.Table(
    "lease",
    metadata,
    sa.Column("executor", sa.String(128), primary_key=True),
    sa.Column("expires_at", UtcDateTime, nullable=False),
)


_JOB_FIELDS = tuple(Job.__dataclass_fields__)


def _job(row: Any) -> Job:
    values = {name: row[name] for name in _JOB_FIELDS}
    return Job(**{**values, "send_to": tuple(values["send_to"]), "options": dict(values["options"])})


class Ledger:
    """Every question and every change the node has about its rows. One transaction per method.

    Any of them raises LedgerUnavailable when the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.engine = _engine(url)
        except (sa.exc.ArgumentError, ImportError) as error:  # NoSuchModuleError is an ArgumentError
            raise LedgerUnavailable(
                "url in [database] names no database that can be used: it begins with sqlite:/// or postgresql+psycopg://"
            ) from error
        self.embedded = self.engine.dialect.name == "sqlite"

    def migrate(self) -> None:
        """Bring the schema up to date (Alembic). Raises LedgerTooOld when the database is newer than this node."""
        settings = AlembicConfig()
        settings.set_main_option("script_location", str(Path(__file__).with_name("ledger_migrations")))
        settings.attributes["engine"] = self.engine
        try:
            command.upgrade(settings, "head")
        except command.util.CommandError as error:
            raise LedgerTooOld(
                f"{self.engine.url.render_as_string()}: {error}; "
                "the database was written by a newer pacs-node: install that version or another database"
            ) from error
        except sa.exc.SQLAlchemyError as error:
            said = (
                str(error.orig).strip().splitlines()[0] if isinstance(error, sa.exc.DBAPIError) else "it gave an error"
            )
            raise LedgerUnavailable(
                f"{self.engine.url.render_as_string()} cannot be used ({said}): start the database, or correct url in "
                "[database]; without a database of your own, see that data_dir holds a whole node.sqlite"
            ) from error

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError, sa.exc.TimeoutError) as error:
            raise LedgerUnavailable(
                f"{self.engine.url.render_as_string()} does not answer; start the database or free its disk"
            ) from error

    def _insert(self, table: sa.Table) -> Any:
        return (sqlite if self.embedded else postgresql).insert(table)

    # ---------------------------------------------------------------- receive

    def take_in(self, instance: Instance) -> bool:
        """Index one durable instance. False when it was known already; a late one reopens its series."""
        with self._begin() as db:
            row = {name: getattr(instance, name) for name in Instance.__dataclass_fields__} | {
                "path": str(instance.path)
            }
            if not db.execute(self._insert(instance_table).values(row).on_conflict_do_nothing()).rowcount:
                return False
            arrival = self._insert(series_table).values(
                series_uid=instance.series_uid,
                study_uid=instance.study_uid,
                state="receiving",
                modality="",
                description="",
                arrived=1,
                revision=0,
                first_arrival=instance.received_at,
                last_arrival=instance.received_at,
            )
            arrival = arrival.on_conflict_do_update(
                index_elements=[series_table.c.series_uid],
                set_={
                    "state": "receiving",
                    "arrived": series_table.c.arrived + 1,
                    "last_arrival": instance.received_at,
                    "expected": None,  # what the peer said was said before this one came: ask again
                    "expected_from": None,
                },
            )
            db.execute(arrival)
            return True

    def known_paths(self) -> set[Path]:
        """Where every indexed instance lies; what the spool holds besides was stored without its row."""
        with self._begin() as db:
            return {Path(path) for path in db.scalars(sa.select(instance_table.c.path))}

    def association_ended(self, end: AssociationEnd) -> list[str]:
        """Remember how a sender left; the series it brought."""
        with self._begin() as db:
            brought = list(
                db.scalars(
                    sa.select(instance_table.c.series_uid)
                    .where(instance_table.c.association == end.association)
                    .distinct()
                )
            )
            if brought:
                db.execute(
                    self._insert(association_table)
                    .values(
                        association=end.association,
                        calling_ae=end.calling_ae,
                        released=end.released,
                        ended_at=end.at,
                    )
                    .on_conflict_do_nothing()
                )
            return brought

    def refused(self, refusal: Refusal) -> None:
        """Remember what was not taken in: the newest MOST_REFUSALS of them, and how many of each kind there were."""
        row = {  # what came from the network may hold anything; PostgreSQL takes no NUL
            name: each.replace("\0", "") if isinstance(each := getattr(refusal, name), str) else each
            for name in Refusal.__dataclass_fields__
        }
        with self._begin() as db:
            added = db.execute(sa.insert(refusal_table).values(row)).inserted_primary_key
            if added is not None:
                db.execute(sa.delete(refusal_table).where(refusal_table.c.id <= added[0] - MOST_REFUSALS))
            count = self._insert(refusal_count_table).values(kind=refusal.kind, number=1, latest=refusal.at)
            db.execute(
                count.on_conflict_do_update(
                    index_elements=[refusal_count_table.c.kind],
                    set_={"number": refusal_count_table.c.number + 1, "latest": refusal.at},
                )
            )

    def refusals(self, limit: int) -> list[dict[str, Any]]:
        """The newest first."""
        with self._begin() as db:
            rows = db.execute(sa.select(refusal_table).order_by(refusal_table.c.id.desc()).limit(limit)).mappings()
            return [{**row, "at": _iso(row["at"])} for row in rows]

    def refusal_counts(self) -> dict[str, dict[str, Any]]:
        """kind -> {"number": since the ledger began, "latest": when}"""
        with self._begin() as db:
            rows = db.execute(sa.select(refusal_count_table).order_by(refusal_count_table.c.kind)).mappings()
            return {row["kind"]: {"number": row["number"], "latest": _iso(row["latest"])} for row in rows}

    # ---------------------------------------------------------------- assemble

    def open_series(self, connected: frozenset[str]) -> list[OpenSeries]:
        """The series that still receive. `connected`: ids of the associations that are open now."""
        with self._begin() as db:
            rows = db.execute(sa.select(series_table).where(series_table.c.state == "receiving")).mappings().all()
            answer = []
            for row in rows:
                brought = db.execute(
                    sa.select(instance_table.c.association, instance_table.c.calling_ae)
                    .where(instance_table.c.series_uid == row["series_uid"])
                    .distinct()
                ).all()
                associations = {association for association, _ in brought}
                released = set(
                    db.scalars(
                        sa.select(association_table.c.association).where(
                            association_table.c.association.in_(associations), association_table.c.released
                        )
                    )
                )
                evidence = Evidence(
                    last_arrival=row["last_arrival"],
                    arrived=row["arrived"],
                    open_associations=frozenset(associations & connected),
                    released=associations <= released,
                    expected=row["expected"],
                    expected_from=row["expected_from"],
                )
                answer.append(
                    OpenSeries(row["series_uid"], row["study_uid"], evidence, tuple(sorted({ae for _, ae in brought})))
                )
            return answer

    def expect(self, series_uid: str, arrived: int, count: int, peer: str) -> None:
        """A peer says how many instances the series has; not noted if another one arrived since it was asked."""
        with self._begin() as db:
            db.execute(
                sa.update(series_table)
                .where(series_table.c.series_uid == series_uid, series_table.c.arrived == arrived)
                .values(expected=count, expected_from=peer)
            )

    def instances(self, series_uid: str) -> list[Instance]:
        with self._begin() as db:
            rows = db.execute(
                sa.select(instance_table)
                .where(instance_table.c.series_uid == series_uid)
                .order_by(instance_table.c.sop_instance_uid)
            ).mappings()
            return [Instance(**{**row, "path": Path(row["path"])}) for row in rows]

    def close_series(
        self,
        series_uid: str,
        *,
        arrived: int,
        because: str,
        modality: str,
        description: str,
        verdict: Verdict,
        rules: Sequence[Mapping[str, Any]],
        jobs: Sequence[Job],
        revision: int,
        now: datetime,
    ) -> bool:
        """Close a series and write down everything decided about it, jobs included, at once.

        False, and nothing written, when another instance arrived meanwhile.
        """
        with self._begin() as db:
            closed = db.execute(
                sa.update(series_table)
                .where(
                    series_table.c.series_uid == series_uid,
                    series_table.c.arrived == arrived,
                    series_table.c.state == "receiving",
                )
                .values(
                    state="closed",
                    revision=revision,
                    closed_because=because,
                    modality=modality[:16],
                    description=description[:64],
                    verdict=_verdict_row(verdict),
                    rules=list(rules),
                )
            ).rowcount
            if not closed:
                return False
            # Work on the former images is void; results made of them are still sent, unless better ones are coming.
            void = ("infer", "send") if jobs and verdict.fit else ("infer",)
            db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.series_uid == series_uid,
                    job_table.c.state.in_(OPEN_JOB_STATES),
                    job_table.c.kind.in_(void),
                )
                .values(state="superseded", finished_at=now, reason=f"late images made revision {revision}")
            )
            for job in jobs:
                self._add_job(db, job)
            self._note(db, series_uid, now, "closed", f"revision {revision}: {because}")
            self._note(db, series_uid, now, "judged", verdict.reason)
            for rule in rules:
                text = f"route {rule['rule']}: " + (rule["why_not"] or "matches")
                self._note(db, series_uid, now, "routed", text)
            return True

    def run_series_again(
        self,
        series_uid: str,
        *,
        arrived: int,
        revision: int,
        verdict: Verdict,
        rules: Sequence[Mapping[str, Any]],
        jobs: Sequence[Job],
        now: datetime,
    ) -> bool:
        """New jobs for a closed series. False, and nothing written, when it is being worked on or has changed."""
        with self._begin() as db:
            busy = db.scalar(
                sa.select(job_table.c.id).where(
                    job_table.c.series_uid == series_uid,
                    job_table.c.kind == "infer",
                    job_table.c.state.in_(OPEN_JOB_STATES),
                )
            )
            if busy is not None:
                return False
            closed = db.execute(
                sa.update(series_table)
                .where(
                    series_table.c.series_uid == series_uid,
                    series_table.c.arrived == arrived,
                    series_table.c.revision == revision,
                    series_table.c.state == "closed",
                )
                .values(verdict=_verdict_row(verdict), rules=list(rules))
            ).rowcount
            if not closed:
                return False
            for job in jobs:
                self._add_job(db, job)
            self._note(db, series_uid, now, "run again", ", ".join(job.route for job in jobs))
            return True

    def series_of_route(self, route: str) -> list[str]:
        """Series that a route has made a job for, the oldest first."""
        with self._begin() as db:
            return list(
                db.scalars(
                    sa.select(job_table.c.series_uid)
                    .where(job_table.c.route == route, job_table.c.kind == "infer")
                    .group_by(job_table.c.series_uid)
                    .order_by(sa.func.min(job_table.c.created_at))
                )
            )

    def series_since(self, since: datetime) -> list[str]:
        """Closed series whose last image came at that time or later, the oldest first."""
        with self._begin() as db:
            return list(
                db.scalars(
                    sa.select(series_table.c.series_uid)
                    .where(series_table.c.state == "closed", series_table.c.last_arrival >= since)
                    .order_by(series_table.c.last_arrival)
                )
            )

    def revision(self, series_uid: str) -> int:
        with self._begin() as db:
            return db.scalar(sa.select(series_table.c.revision).where(series_table.c.series_uid == series_uid)) or 0

    def verdict(self, series_uid: str) -> Verdict | None:
        """What the geometry gate said when the series last closed."""
        with self._begin() as db:
            said = db.scalar(sa.select(series_table.c.verdict).where(series_table.c.series_uid == series_uid))
            if said is None:
                return None
            several = {name: tuple(said.get(name, ())) for name in ("use", "remarks")}  # rows of 0.1.0 have no remarks
            return Verdict(**{**said, **several})

    # ---------------------------------------------------------------- jobs

    def _add_job(self, db: sa.Connection, job: Job) -> None:
        row = {name: getattr(job, name) for name in _JOB_FIELDS} | {
            "send_to": list(job.send_to),
            "options": dict(job.options),
            "warnings": [],
            "facts": {},
            "progress": 0.0,
            "progress_text": "",
        }
        db.execute(self._insert(job_table).values(row).on_conflict_do_nothing())

    def job(self, job_id: str) -> Job | None:
        with self._begin() as db:
            row = db.execute(sa.select(job_table).where(job_table.c.id == job_id)).mappings().first()
            return None if row is None else _job(row)

    def open_jobs(self) -> list[Job]:
        """Jobs that are not finished, the most urgent first."""
        with self._begin() as db:
            rows = db.execute(
                sa.select(job_table)
                .where(job_table.c.state.in_(OPEN_JOB_STATES))
                .order_by(job_table.c.priority, job_table.c.created_at)
            ).mappings()
            return [_job(row) for row in rows]

    def _move(self, db: sa.Connection, job: Job, state: str, **values: Any) -> bool:
        """Change a job's state if the table of transitions allows it and the job is still ours (fencing)."""
        before = [old for old, new in TRANSITIONS if new == state]
        moved = db.execute(
            sa.update(job_table)
            .where(
                job_table.c.id == job.id,
                job_table.c.generation == job.generation,
                job_table.c.attempt == job.attempt,
                job_table.c.state.in_(before),
            )
            .values(state=state, **values)
        ).rowcount
        return bool(moved)

    def begin(self, job: Job, executor: str, now: datetime) -> bool:
        """Start one attempt. False when the job is finished or another generation has taken it."""
        with self._begin() as db:
            return self._move(
                db,
                job,
                "running",
                executor=executor,
                crashes=job_table.c.crashes + 1,
                started_at=now,
                not_before=None,
                progress=0.0,
                progress_text="",
            )

    def progress(self, job: Job, fraction: float, text: str) -> None:
        with self._begin() as db:
            db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.id == job.id,
                    job_table.c.generation == job.generation,
                    job_table.c.state == "running",
                )
                .values(progress=fraction, progress_text=text)
            )

    def retry_later(
        self, job: Job, reason: str, not_before: datetime, receipts: Sequence[Receipt], now: datetime
    ) -> bool:
        """This attempt failed in a way that waiting may cure; the next attempt is a row, not a sleeping thread."""
        with self._begin() as db:
            moved = self._move(
                db, job, "waiting", reason=reason, crashes=0, not_before=not_before, attempt=job.attempt + 1
            )
            if moved:
                self._add_receipts(db, job, receipts)
                self._note(db, job.series_uid, now, "retry", f"{_name(job)}: {reason}")
                self._heed(db, job)
            else:
                self._late_outcome(db, job, receipts)
            return moved

    def finish(
        self,
        job: Job,
        state: str,
        reason: str,
        now: datetime,
        *,
        results: Sequence[Result] = (),
        receipts: Sequence[Receipt] = (),
        follow_up: Sequence[Job] = (),
        arrivals: Sequence[Arrival] = (),
        warnings: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        edition: Edition | None = None,
    ) -> bool:
        """End a job: its results, receipts and the jobs that follow, in one transaction. False: not ours any more.

        Raises EditionChanged, and writes nothing, when `edition` does not replace what stands at the destinations now.
        """
        with self._begin() as db:
            ended = self._move(
                db,
                job,
                state,
                reason=reason,
                crashes=0,
                finished_at=now,
                progress=1.0 if state == "done" else job_table.c.progress,
                warnings=list(warnings),
                facts=_plain(facts or {}),
            )
            if not ended:
                self._late_outcome(db, job, receipts)
                return False
            if edition is not None:
                self._add_edition(db, job, edition, now)
            for position, result in enumerate(results):
                db.execute(
                    self._insert(result_table)
                    .values(
                        job=job.id,
                        sop_instance_uid=result.sop_instance_uid,
                        sop_class_uid=result.sop_class_uid,
                        path=str(result.path),
                        position=position,
                    )
                    .on_conflict_do_nothing()
                )
            self._add_receipts(db, job, receipts)
            for next_job in follow_up:
                self._add_job(db, next_job)
            for arrival in arrivals:
                db.execute(
                    sa.insert(arrival_table).values(
                        job=job.id,
                        destination=job.destination,
                        sop_instance_uid=arrival.sop_instance_uid,
                        arrived=arrival.arrived,
                        how=arrival.how,
                        text=arrival.text,
                        at=arrival.at,
                    )
                )
            self._note(db, job.series_uid, now, state, f"{_name(job)}: {reason}")
            self._heed(db, job)
            return True

    def results(self, job_id: str) -> list[Result]:
        with self._begin() as db:
            rows = db.execute(
                sa.select(result_table).where(result_table.c.job == job_id).order_by(result_table.c.position)
            ).mappings()
            return [Result(row["sop_instance_uid"], row["sop_class_uid"], Path(row["path"])) for row in rows]

    def take_over(self, job: Job, reason: str, now: datetime) -> Job | None:
        """Give an unfinished job to a new generation: whatever the old one still writes is refused."""
        with self._begin() as db:
            if not self._move(db, job, "queued", generation=job.generation + 1, reason=reason):
                return None
            self._note(db, job.series_uid, now, "taken over", f"{_name(job)}: {reason}")
        return replace(job, generation=job.generation + 1, state="queued")

    def put_back(self, job: Job, reason: str, now: datetime) -> bool:
        """An attempt that was cut short on purpose does not count: neither as an attempt nor as a crash."""
        with self._begin() as db:
            moved = self._move(db, job, "queued", generation=job.generation + 1, crashes=0, reason=reason)
            if moved:
                self._note(db, job.series_uid, now, "put back", f"{_name(job)}: {reason}")
            return moved

    def give_up(self, job: Job, reason: str, now: datetime) -> bool:
        """End a job that must not run again, whichever worker holds it."""
        with self._begin() as db:
            ended = db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.id == job.id,
                    job_table.c.generation == job.generation,
                    job_table.c.state.in_(OPEN_JOB_STATES),
                )
                .values(state="failed", reason=reason, finished_at=now)
            ).rowcount
            if ended:
                self._note(db, job.series_uid, now, "failed", f"{_name(job)}: {reason}")
            return bool(ended)

    def run_again(self, job_id: str, now: datetime) -> bool:
        """An operator's "retry now": a waiting, failed or refused job starts afresh."""
        with self._begin() as db:
            row = db.execute(sa.select(job_table).where(job_table.c.id == job_id)).mappings().first()
            if row is None or row["state"] not in ("waiting", "failed", "refused"):
                return False
            revision = db.scalar(
                sa.select(series_table.c.revision).where(series_table.c.series_uid == row["series_uid"])
            )
            if row["revision"] != revision:  # late images have come since: their revision has jobs of its own
                return False
            if db.scalar(sa.select(edition_table.c.job).where(edition_table.c.job == job_id)) is not None:
                return False  # it has said why it was refused: the series is run again, with jobs of their own
            job = _job(row)
            db.execute(
                sa.update(job_table)
                .where(job_table.c.id == job_id, job_table.c.generation == job.generation)
                .values(
                    state="queued",
                    generation=job.generation + 1,
                    attempt=1,
                    crashes=0,
                    not_before=None,
                    finished_at=None,
                    reason="asked to run again",
                )
            )
            db.execute(sa.update(commitment_table).where(commitment_table.c.job == job_id).values(again=True))
            self._note(db, job.series_uid, now, "retry now", f"{_name(job)}: asked to run again")
            return True

    def dismiss(self, job_id: str, now: datetime) -> bool:
        """An operator's "leave it": a failed job is no trouble any more. False: it has not failed."""
        with self._begin() as db:
            row = db.execute(sa.select(job_table).where(job_table.c.id == job_id)).mappings().first()
            if row is None or row["state"] != "failed":
                return False
            job = _job(row)
            said = f"dismissed; it had failed: {job.reason}"
            dismissed = db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.id == job_id,
                    job_table.c.generation == job.generation,
                    job_table.c.state == "failed",
                )
                .values(state="superseded", reason=said)
            ).rowcount
            if dismissed:
                self._note(db, job.series_uid, now, "dismissed", f"{_name(job)}: {said}")
            return bool(dismissed)

    # ---------------------------------------------------------------- editions

    def editions(self, job: Job) -> list[Edition]:
        """What this job's pipeline, with its options, has said about its series so far, the oldest first."""
        with self._begin() as db:
            return self._editions(db, job)

    def _editions(self, db: sa.Connection, job: Job) -> list[Edition]:
        rows = db.execute(
            sa.select(edition_table).where(
                edition_table.c.series_uid == job.series_uid, edition_table.c.pipeline == job.pipeline
            )
        ).mappings()
        mine = [row for row in rows if row["options"] == job.asked]
        return merged(
            Edition(
                **{name: row[name] for name in ("number", "revision", "version", "analysed", "dated")},
                replaces=_objects(row["replaces"]),
                objects=_objects(row["objects"]),
                left_for=self._left_for(db, row["job"]),
            )
            for row in mine
        )

    def _left_for(self, db: sa.Connection, infer_job: str) -> frozenset[str]:
        """Destinations that stored something of these results, or were sent them in an attempt that never ended."""
        stored = sa.select(receipt_table.c.job).where(receipt_table.c.stored)
        return frozenset(
            db.scalars(
                sa.select(job_table.c.destination).where(
                    job_table.c.parent == infer_job,
                    job_table.c.kind == "send",
                    sa.or_(job_table.c.crashes > 0, job_table.c.id.in_(stored)),
                )
            )
        )

    def _add_edition(self, db: sa.Connection, job: Job, edition: Edition, now: datetime) -> None:
        known = self._editions(db, job)
        if all(edition.number != each.number for each in known):
            if edition.analysed:  # what waits to be sent is old now, and must not be sent after the new
                self._void_sends(db, job, f"replaced by revision {edition.number} of the results", now)
            current = replaced(self._editions(db, job), analysed=edition.analysed)
            if not same_objects(current, edition.replaces):
                raise EditionChanged(f"what revision {edition.number} replaces has changed while it was written")
        row = {name: getattr(edition, name) for name in ("number", "revision", "version", "analysed", "dated")}
        row |= {name: [_object_row(each) for each in getattr(edition, name)] for name in ("replaces", "objects")}
        row |= {"series_uid": job.series_uid, "pipeline": job.pipeline, "options": job.asked}
        again = self._insert(edition_table).values(job=job.id, **row)
        db.execute(again.on_conflict_do_update(index_elements=[edition_table.c.job], set_=row))

    def _void_sends(self, db: sa.Connection, job: Job, reason: str, now: datetime) -> None:
        """Sends of the earlier editions to the destinations that get the new one, and questions whether those arrived,
        end here unless they have ended well; a failed send may not be retried either."""
        rows = db.execute(
            sa.select(edition_table.c.job, edition_table.c.options).where(
                edition_table.c.series_uid == job.series_uid, edition_table.c.pipeline == job.pipeline
            )
        )
        earlier = [infer_job for infer_job, options in rows if options == job.asked]
        sends = sa.select(job_table.c.id).where(
            job_table.c.kind == "send", job_table.c.parent.in_(earlier), job_table.c.destination.in_(job.send_to)
        )
        over = db.scalars(sends).all()
        db.execute(
            sa.update(job_table)
            .where(
                sa.or_(
                    sa.and_(job_table.c.id.in_(over), job_table.c.state.in_((*OPEN_JOB_STATES, "failed"))),
                    sa.and_(
                        job_table.c.kind == "confirm",
                        job_table.c.parent.in_(over),
                        job_table.c.state.in_(OPEN_JOB_STATES),
                    ),
                )
            )
            .values(state="superseded", finished_at=now, reason=reason)
        )

    def _late_outcome(self, db: sa.Connection, job: Job, receipts: Sequence[Receipt]) -> None:
        """A send that was superseded while it ran has ended: what the destination stored, it holds."""
        self._add_receipts(db, job, receipts)
        db.execute(
            sa.update(job_table)
            .where(
                job_table.c.id == job.id,
                job_table.c.generation == job.generation,
                job_table.c.attempt == job.attempt,
                job_table.c.state == "superseded",
            )
            .values(crashes=0)
        )

    def _add_receipts(self, db: sa.Connection, job: Job, receipts: Iterable[Receipt]) -> None:
        for receipt in receipts:
            db.execute(
                self._insert(receipt_table)
                .values(
                    job=job.id,
                    sop_instance_uid=receipt.sop_instance_uid,
                    attempt=job.generation * 1000 + job.attempt,
                    stored=receipt.stored,
                    status=receipt.status,
                    text=receipt.text,
                    at=receipt.at,
                    sop_class_uid=receipt.sop_class_uid,
                )
                .on_conflict_do_nothing()
            )

    # ---------------------------------------------------------------- storage commitment, and what it proves

    def stored(self, job_id: str) -> frozenset[str]:
        """The SOP Instance UIDs that the destination of a send job says it has stored."""
        with self._begin() as db:
            rows = sa.select(receipt_table.c.sop_instance_uid).where(
                receipt_table.c.job == job_id, receipt_table.c.stored
            )
            return frozenset(db.scalars(rows))

    def heed_commitments(self, job_id: str) -> list[Commitment]:
        """The storage commitments this job asked for, the latest last. From now on the job knows of their reports."""
        with self._begin() as db:
            mine = commitment_table.c.job == job_id
            rows = db.execute(sa.select(commitment_table).where(mine).order_by(commitment_table.c.begun_at)).mappings()
            commitments = [_commitment(row) for row in rows]
            db.execute(
                sa.update(commitment_table).where(mine, commitment_table.c.reported_at.is_not(None)).values(heeded=True)
            )
            return commitments

    def begin_commitment(self, job: Job, transaction_uid: str, now: datetime) -> None:
        """Remember that this is going to be asked for; doing so twice is doing it once."""
        with self._begin() as db:
            db.execute(
                self._insert(commitment_table)
                .values(
                    transaction_uid=transaction_uid,
                    job=job.id,
                    begun_at=now,
                    over="",
                    again=False,
                    reported_by="",
                    committed=[],
                    failed=[],
                    heeded=False,
                )
                .on_conflict_do_nothing()
            )

    def commitment_accepted(self, transaction_uid: str, now: datetime) -> None:
        self._set_commitment(transaction_uid, accepted_at=now)

    def commitment_over(self, transaction_uid: str, why: str) -> None:
        self._set_commitment(transaction_uid, over=why)

    def _set_commitment(self, transaction_uid: str, **values: Any) -> None:
        with self._begin() as db:
            ours = commitment_table.c.transaction_uid == transaction_uid
            db.execute(sa.update(commitment_table).where(ours).values(**values))

    def commitment_reported(self, report: CommitmentReport, calling_ae: str, now: datetime) -> bool:
        """Keep a destination's report, and wake the job that waits for it. False: nobody asked for this one."""
        with self._begin() as db:
            ours = commitment_table.c.transaction_uid == report.transaction_uid
            row = db.execute(sa.select(commitment_table).where(ours)).mappings().first()
            if row is None:
                return False
            if row["reported_at"] is None:  # else it is told again
                values = {
                    "reported_at": now,
                    "reported_by": calling_ae,
                    "committed": [list(each) for each in report.committed],
                    "failed": [list(each) for each in report.failed],
                }
                db.execute(sa.update(commitment_table).where(ours).values(**values))
                job = _job(db.execute(sa.select(job_table).where(job_table.c.id == row["job"])).mappings().one())
                said = f"{len(report.committed)} objects committed, {len(report.failed)} not"
                self._note(db, job.series_uid, now, "committed", f"{_name(job)}: {said}")
                self._heed(db, job)
            return True

    def _heed(self, db: sa.Connection, job: Job) -> None:
        """A confirm job that a report has come for runs again, unless it runs now and looks for itself."""
        news = sa.exists().where(
            commitment_table.c.job == job.id,
            commitment_table.c.reported_at.is_not(None),
            commitment_table.c.heeded.is_(False),
        )
        db.execute(
            sa.update(job_table)
            .where(job_table.c.id == job.id, job_table.c.kind == "confirm", job_table.c.state != "running", news)
            .values(
                state="queued",
                generation=job_table.c.generation + 1,
                attempt=1,
                crashes=0,
                not_before=None,
                finished_at=None,
                reason="a storage commitment report has come",
            )
        )

    def commitment_asked(self, request: CommitmentRequest, job: Job, now: datetime) -> None:
        """A sender wants to know what we keep: its request, and the job that will report."""
        with self._begin() as db:
            values = {"wanted": [list(each) for each in request.wanted], "asked_at": now, "reported_at": None}
            db.execute(
                self._insert(commitment_request_table)
                .values(calling_ae=request.calling_ae, transaction_uid=request.transaction_uid, **values)
                .on_conflict_do_update(index_elements=["calling_ae", "transaction_uid"], set_=values)
            )
            self._add_job(db, job)
            text = f"{request.calling_ae} asked for storage commitment of {len(request.wanted)} instances"
            self._note(db, job.series_uid, now, "commitment asked", text)

    def unreported(self, calling_ae: str, transaction_uid: str) -> CommitmentRequest | None:
        """A sender's request that it has no report on yet."""
        with self._begin() as db:
            row = (
                db.execute(
                    sa.select(commitment_request_table).where(
                        commitment_request_table.c.calling_ae == calling_ae,
                        commitment_request_table.c.transaction_uid == transaction_uid,
                        commitment_request_table.c.reported_at.is_(None),
                    )
                )
                .mappings()
                .first()
            )
            if row is None:
                return None
            return CommitmentRequest(transaction_uid, calling_ae, tuple((c, i) for c, i in row["wanted"]))

    def reported(self, request: CommitmentRequest, now: datetime) -> None:
        """The sender has our report."""
        with self._begin() as db:
            db.execute(
                sa.update(commitment_request_table)
                .where(
                    commitment_request_table.c.calling_ae == request.calling_ae,
                    commitment_request_table.c.transaction_uid == request.transaction_uid,
                )
                .values(reported_at=now)
            )

    def kept(self, sop_instance_uids: Sequence[str]) -> list[Instance]:
        """Those of these instances that we took in."""
        kept: list[Instance] = []
        with self._begin() as db:
            for start in range(0, len(sop_instance_uids), 500):  # SQLite takes 999 parameters, if it is old
                rows = db.execute(
                    sa.select(instance_table).where(
                        instance_table.c.sop_instance_uid.in_(sop_instance_uids[start : start + 500])
                    )
                ).mappings()
                kept += [Instance(**{**row, "path": Path(row["path"])}) for row in rows]
        return kept

    def arrival_counts(self) -> list[tuple[str, str, str, int]]:
        """(destination, "yes" | "no" | "not proven", how, number) of what is known about arrivals, for /metrics."""
        words = {True: "yes", False: "no", None: "not proven"}
        kinds = arrival_table.c.destination, arrival_table.c.arrived, arrival_table.c.how
        with self._begin() as db:
            rows = db.execute(sa.select(*kinds, sa.func.count()).group_by(*kinds)).all()
            return [(destination, words[arrived], how, number) for destination, arrived, how, number in rows]

    # ---------------------------------------------------------------- what destinations accept

    def remember_answers(self, destination: str, settings: str, answers: Sequence[Answer]) -> None:
        """What a destination said, asked under these settings; the last answer counts."""
        with self._begin() as db:
            for answer in answers:
                said = {"settings": settings, "refused": answer.refused, "at": answer.at}
                db.execute(
                    self._insert(answer_table)
                    .values(
                        destination=destination,
                        sop_class_uid=answer.sop_class_uid,
                        transfer_syntax_uid=answer.transfer_syntax_uid,
                        **said,
                    )
                    .on_conflict_do_update(index_elements=list(answer_table.primary_key), set_=said)
                )

    def answers(self, destination: str, settings: str) -> list[Answer]:
        """What a destination said under these settings, by SOP class."""
        with self._begin() as db:
            rows = db.execute(
                sa.select(answer_table)
                .where(answer_table.c.destination == destination, answer_table.c.settings == settings)
                .order_by(answer_table.c.sop_class_uid, answer_table.c.transfer_syntax_uid)
            ).mappings()
            return [Answer(**{name: row[name] for name in Answer.__dataclass_fields__}) for row in rows]

    # ---------------------------------------------------------------- leases

    def renew_lease(self, executor: str, lease_s: float) -> None:
        """I am alive until the database's clock says otherwise."""
        with self._begin() as db:
            expires_at = self._clock(db) + timedelta(seconds=lease_s)
            db.execute(
                self._insert(lease_table)
                .values(executor=executor, expires_at=expires_at)
                .on_conflict_do_update(index_elements=[lease_table.c.executor], set_={"expires_at": expires_at})
            )

    def give_up_lease(self, executor: str) -> None:
        with self._begin() as db:
            db.execute(sa.delete(lease_table).where(lease_table.c.executor == executor))

    def living(self) -> set[str]:
        """Executors whose lease has not run out."""
        with self._begin() as db:
            return set(db.scalars(sa.select(lease_table.c.executor).where(lease_table.c.expires_at > self._clock(db))))

    def _clock(self, db: sa.Connection) -> datetime:
        """The database's clock, so that machines need not agree on the time."""
        if self.embedded:
            return datetime.now(UTC)
        return db.execute(sa.select(sa.func.now())).scalar_one().astimezone(UTC)

    # ---------------------------------------------------------------- facts for the web pages

    def _note(self, db: sa.Connection, series_uid: str, now: datetime, event: str, text: str) -> None:
        db.execute(sa.insert(event_table).values(series_uid=series_uid, at=now, event=event, text=text))

    def series_list(self, limit: int, before: datetime | None = None) -> list[dict[str, Any]]:
        """The latest series first, as plain values."""
        with self._begin() as db:
            query = sa.select(series_table).order_by(series_table.c.first_arrival.desc()).limit(limit)
            if before is not None:
                query = query.where(series_table.c.first_arrival < before)
            rows = db.execute(query).mappings().all()
            jobs = (
                db.execute(
                    sa.select(
                        job_table.c.series_uid,
                        job_table.c.pipeline,
                        job_table.c.kind,
                        job_table.c.state,
                        job_table.c.revision,
                    )
                    .where(job_table.c.series_uid.in_([row["series_uid"] for row in rows]))
                    .order_by(job_table.c.created_at)
                )
                .mappings()
                .all()
            )
            return [_summary(row, jobs) for row in rows]

    def series(self, series_uid: str) -> dict[str, Any] | None:
        """Everything about one series, as plain values."""
        with self._begin() as db:
            row = db.execute(sa.select(series_table).where(series_table.c.series_uid == series_uid)).mappings().first()
            if row is None:
                return None
            jobs = (
                db.execute(
                    sa.select(job_table)
                    .where(job_table.c.series_uid == series_uid)
                    .order_by(job_table.c.created_at, job_table.c.id)
                )
                .mappings()
                .all()
            )
            ids = [job["id"] for job in jobs]
            results = (
                db.execute(sa.select(result_table).where(result_table.c.job.in_(ids)).order_by(result_table.c.position))
                .mappings()
                .all()
            )
            receipts = (
                db.execute(sa.select(receipt_table).where(receipt_table.c.job.in_(ids)).order_by(receipt_table.c.at))
                .mappings()
                .all()
            )
            editions = {
                edition["job"]: {
                    "revision": edition["number"],
                    "replaces": [each["sop_instance_uid"] for each in edition["replaces"]],
                }
                for edition in db.execute(sa.select(edition_table).where(edition_table.c.job.in_(ids))).mappings()
            }
            arrivals = (
                db.execute(sa.select(arrival_table).where(arrival_table.c.job.in_(ids)).order_by(arrival_table.c.id))
                .mappings()
                .all()
            )
            events = (
                db.execute(
                    sa.select(event_table).where(event_table.c.series_uid == series_uid).order_by(event_table.c.id)
                )
                .mappings()
                .all()
            )
            calling = db.scalars(
                sa.select(instance_table.c.calling_ae).where(instance_table.c.series_uid == series_uid).distinct()
            ).all()
            verdict = row["verdict"] or {}
            return {
                **_summary(row, jobs),
                "calling_aes": sorted(calling),
                "expected": row["expected"],
                "verdict": {key: verdict.get(key) for key in ("fit", "reason", "set_aside", "facts", "remarks")}
                if verdict
                else None,
                "rules": row["rules"] or [],
                "jobs": [
                    {**_job_facts(job, results, receipts, arrivals), "edition": editions.get(job["id"])} for job in jobs
                ],
                "timeline": [
                    {"at": _iso(event["at"]), "event": event["event"], "text": event["text"]} for event in events
                ],
            }

    def unresolved(self) -> list[dict[str, Any]]:
        """Jobs that failed for good and that nobody has dealt with, the latest first, as plain values.

        Dealt with: retried, dismissed, run again with its series (a later job of its kind, route and destination), or
        overtaken by late images.
        """
        later = job_table.alias("later")
        place = sa.func.coalesce(job_table.c.destination, "")
        again = sa.exists().where(
            later.c.series_uid == job_table.c.series_uid,
            later.c.kind == job_table.c.kind,
            later.c.route == job_table.c.route,
            sa.func.coalesce(later.c.destination, "") == place,
            later.c.created_at > job_table.c.created_at,
        )
        current = sa.func.coalesce(series_table.c.revision, job_table.c.revision) == job_table.c.revision
        query = (
            sa.select(job_table)
            .outerjoin(series_table, series_table.c.series_uid == job_table.c.series_uid)
            .where(job_table.c.state == "failed", current, ~again)
            .order_by(job_table.c.finished_at.desc())
        )
        with self._begin() as db:
            return [_trouble(row) for row in db.execute(query).mappings()]

    def overdue(self, made_before: Mapping[str, datetime]) -> list[dict[str, Any]]:
        """Jobs that have not ended though they were made before the time of their kind, the oldest first."""
        old = [
            sa.and_(job_table.c.kind == kind, job_table.c.created_at < before) for kind, before in made_before.items()
        ]
        query = (
            sa.select(job_table)
            .where(job_table.c.state.in_(OPEN_JOB_STATES), sa.or_(*old))
            .order_by(job_table.c.created_at)
        )
        with self._begin() as db:
            return [_trouble(row) for row in db.execute(query).mappings()]

    def counts(self) -> dict[str, dict[str, int]]:
        """Series and jobs by state, for /health and /metrics."""
        with self._begin() as db:
            series = db.execute(sa.select(series_table.c.state, sa.func.count()).group_by(series_table.c.state)).all()
            jobs = db.execute(
                sa.select(job_table.c.kind, job_table.c.state, sa.func.count()).group_by(
                    job_table.c.kind, job_table.c.state
                )
            ).all()
            return {
                "series": dict(tuple(row) for row in series),
                **{
                    each: dict.fromkeys(JOB_STATES, 0) | {s: n for kind, s, n in jobs if kind == each}
                    for each in JOB_KINDS
                },
            }


def _engine(url: str) -> sa.Engine:
    if not url.startswith("sqlite"):
        keepalives = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "connect_timeout": 5}
        return sa.create_engine(url, pool_pre_ping=True, connect_args=keepalives)
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver starts no transaction of its own; `begin` below does
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns
        connection.execute("PRAGMA busy_timeout=30000")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # writers queue here instead of failing at COMMIT

    return engine


def engine_for_jobs(url: str) -> sa.Engine:
    """An engine for the job engine's own tables: a second SQLite file beside the ledger, or the same PostgreSQL."""
    if not url.startswith("sqlite"):
        return _engine(url)
    path = Path(sa.make_url(url).database or "node.sqlite")
    engine = sa.create_engine(f"sqlite:///{path.with_name(path.stem + '-jobs.sqlite')}")

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "fit": verdict.fit,
        "reason": verdict.reason,
        "use": list(verdict.use),
        "set_aside": verdict.set_aside,
        "facts": _plain(verdict.facts),
        "remarks": list(verdict.remarks),
    }


def _object_row(result: Result) -> dict[str, str]:
    return {
        "sop_instance_uid": result.sop_instance_uid,
        "sop_class_uid": result.sop_class_uid,
        "path": str(result.path),
        "series_uid": result.series_uid,
        "sha256": result.sha256,
    }


def _objects(rows: Iterable[Mapping[str, str]]) -> tuple[Result, ...]:
    return tuple(
        Result(row["sop_instance_uid"], row["sop_class_uid"], Path(row["path"]), row["series_uid"], row["sha256"])
        for row in rows
    )


def _commitment(row: Any) -> Commitment:
    report = None
    if row["reported_at"] is not None:
        committed, failed = ([tuple(each) for each in row[name]] for name in ("committed", "failed"))
        report = CommitmentReport(row["transaction_uid"], tuple(committed), tuple(failed))
    return Commitment(row["transaction_uid"], row["accepted_at"], row["over"], row["again"], report)


def _name(job: Job) -> str:
    return f"{job.kind} {job.pipeline}" + (f" to {job.destination}" if job.destination else "")


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Only what JSON can say; numbers from numpy become plain numbers."""
    return json.loads(
        json.dumps(dict(values), default=lambda value: value.item() if hasattr(value, "item") else str(value))
    )


def _summary(row: Any, jobs: Iterable[Any]) -> dict[str, Any]:
    own = [job for job in jobs if job["series_uid"] == row["series_uid"]]
    return {
        "series_uid": row["series_uid"],
        "study_uid": row["study_uid"],
        "modality": row["modality"],
        "description": row["description"],
        "state": row["state"],
        "instances": row["arrived"],
        "revision": row["revision"],
        "closed_because": row["closed_because"],
        "first_arrival": _iso(row["first_arrival"]),
        "last_arrival": _iso(row["last_arrival"]),
        "jobs": [
            {"pipeline": job["pipeline"], "kind": job["kind"], "state": job["state"], "revision": job["revision"]}
            for job in own
        ],
    }


def _trouble(job: Any) -> dict[str, Any]:
    plain = ("kind", "pipeline", "destination", "series_uid", "state", "reason")
    return {"job": job["id"], **{name: job[name] for name in plain}, "created_at": _iso(job["created_at"])}


def _job_facts(job: Any, results: Iterable[Any], receipts: Iterable[Any], arrivals: Iterable[Any]) -> dict[str, Any]:
    latest = {a["sop_instance_uid"]: a for a in arrivals if a["job"] == job["id"]}
    plain = (
        "id", "kind", "pipeline", "route", "destination", "revision", "state", "priority", "reason",
        "progress", "progress_text", "warnings", "facts",
    )  # fmt: skip
    return {
        **{name: job[name] for name in plain},
        "attempts": job["attempt"],
        **{name: _iso(job[name]) for name in ("not_before", "created_at", "started_at", "finished_at")},
        "results": [
            {"sop_instance_uid": r["sop_instance_uid"], "sop_class_uid": r["sop_class_uid"]}
            for r in results
            if r["job"] == job["id"]
        ],
        "receipts": [
            {
                "sop_instance_uid": r["sop_instance_uid"],
                "stored": r["stored"],
                "status": r["status"],
                "text": r["text"],
                "at": _iso(r["at"]),
                "sop_class_uid": r["sop_class_uid"],
            }
            for r in receipts
            if r["job"] == job["id"]
        ],
        "arrivals": [
            {**{name: a[name] for name in ("sop_instance_uid", "arrived", "how", "text")}, "at": _iso(a["at"])}
            for a in latest.values()
        ],
    }
