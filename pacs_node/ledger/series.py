"""Instances and the series they make: taken in, closed with a verdict and jobs, run again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import portions
from pacs_node.ledger.jobs import Jobs, as_json
from pacs_node.ledger.patients import PatientRows
from pacs_node.ledger.queues import in_order_of_queues
from pacs_node.ledger.returned import ReturnedRows
from pacs_node.ledger.tables import (
    association_table,
    instance_table,
    job_table,
    no_heartbeat,
    series_table,
)
from pacs_node.records import (
    BEGINNABLE,
    HEARTBEAT_AE,
    OPEN_JOB_STATES,
    AssociationEnd,
    Evidence,
    Instance,
    Job,
    OpenSeries,
    Stored,
    Verdict,
)

IS_KNOWN = "SELECT 1 FROM instance WHERE sop_instance_uid = "
ONE_INSTANCE = sa.select(instance_table).where(instance_table.c.sop_instance_uid == sa.bindparam("uid"))


class SeriesRows(Jobs, ReturnedRows, PatientRows):
    """Instances and series."""

    def take_in(self, instance: Instance) -> bool:
        """Index one durable instance. False when it was known already; a late one reopens its series."""
        return not self.take_in_all([instance])

    def take_in_all(
        self, instances: Sequence[Instance], is_there: Callable[[Stored], bool] = lambda stored: True
    ) -> list[tuple[Instance, Instance]]:
        """Index durable instances, all or none. Of each that was known already: what stands in the ledger, and itself.
        One that is known and not there any more, because its file was cleared away, lies where it lies now."""
        rows = [self._row(instance) for instance in instances]
        with self._begin() as db:
            # RETURNING, not rowcount: on PostgreSQL that says nothing of an INSERT, and each duplicate would count
            once = self._insert(instance_table).on_conflict_do_nothing()
            new = set(db.scalars(once.returning(instance_table.c.sop_instance_uid), rows))
            arrived: dict[str, list[Instance]] = {}
            known = []
            for instance in instances:
                if instance.sop_instance_uid in new:
                    new.discard(instance.sop_instance_uid)  # the same may be told twice
                    arrived.setdefault(instance.series_uid, []).append(instance)
                else:
                    known.append((self._known(db, instance, is_there, arrived), instance))
            for some in arrived.values():
                self._arrived(db, some)
            return known

    def _arrived(self, db: sa.Connection, instances: Sequence[Instance]) -> None:
        """New instances of one series."""
        came = [instance.received_at for instance in instances]
        arrival = self._insert(series_table).values(
            series_uid=instances[0].series_uid,
            study_uid=instances[0].study_uid,
            state="receiving",
            modality="",
            description="",
            arrived=len(instances),
            sender=instances[0].calling_ae,
            revision=0,
            first_arrival=min(came),
            last_arrival=max(came),
        )
        arrival = arrival.on_conflict_do_update(
            index_elements=[series_table.c.series_uid],
            set_={
                "state": "receiving",
                "arrived": series_table.c.arrived + len(instances),
                "last_arrival": max(came),
                "expected": None,  # what the peer said was said before these came: ask again
                "expected_from": None,
            },
        )
        db.execute(arrival)

    def _known(
        self,
        db: sa.Connection,
        instance: Instance,
        is_there: Callable[[Stored], bool],
        arrived: dict[str, list[Instance]],
    ) -> Instance:
        """What the ledger has under its UID from now on. In the same transaction: of each file all is indexed up to
        some byte, and nothing behind it."""
        row = db.execute(ONE_INSTANCE, {"uid": instance.sop_instance_uid}).mappings().one()
        earlier = self._instance(row)
        if earlier.stored == instance.stored or is_there(earlier.stored):
            return earlier
        uid = instance_table.c.sop_instance_uid
        db.execute(sa.update(instance_table).where(uid == instance.sop_instance_uid).values(**self._row(instance)))
        if earlier.series_uid != instance.series_uid:
            arrived.setdefault(instance.series_uid, []).append(instance)
        return instance

    def instance(self, sop_instance_uid: str) -> Instance | None:
        if not self._has(IS_KNOWN, sop_instance_uid):  # asked of every image that comes, and nearly always so
            return None
        with self._reading() as db:
            row = db.execute(ONE_INSTANCE, {"uid": sop_instance_uid}).mappings().first()
            return self._instance(row) if row is not None else None

    def series_uids(self) -> list[str]:
        with self._reading() as db:
            return list(db.scalars(sa.select(series_table.c.series_uid).order_by(series_table.c.series_uid)))

    def indexed_up_to(self) -> dict[Path, int]:
        """Of every file that holds instances, the byte at which the last indexed one ends."""
        end = sa.func.max(instance_table.c.offset + instance_table.c.size)
        with self._reading() as db:
            rows = db.execute(sa.select(instance_table.c.path, end).group_by(instance_table.c.path))
            return {self._path(path): int(end) for path, end in rows}

    def associations_ended(self, ends: Sequence[AssociationEnd]) -> frozenset[str]:
        """Remember how senders left, all in one transaction; of whom there is something. Its rows are there: they were
        told before."""
        of = instance_table.c.association
        brought: set[str] = set()
        with self._reading() as db:
            for some in portions([end.association for end in ends]):
                brought.update(db.scalars(sa.select(of).where(of.in_(some)).distinct()))
        rows = [
            {"association": e.association, "calling_ae": e.calling_ae, "released": e.released, "ended_at": e.at}
            for e in ends
            if e.association in brought
        ]
        if rows:
            with self._begin() as db:
                db.execute(self._insert(association_table).on_conflict_do_nothing(), rows)
        return frozenset(brought)

    def open_series(self, connected: frozenset[str]) -> list[OpenSeries]:
        """The series that still receive. `connected`: ids of the associations that are open now. Two questions, however
        many there are."""
        c, i, a = series_table.c, instance_table.c, association_table.c
        who = (
            sa.select(i.series_uid, i.association, i.calling_ae, a.released)
            .select_from(
                series_table.join(instance_table, i.series_uid == c.series_uid).outerjoin(
                    association_table, a.association == i.association
                )
            )
            .where(c.state == "receiving")
            .distinct()
        )
        with self._reading() as db:
            rows = db.execute(sa.select(series_table).where(c.state == "receiving")).mappings().all()
            brought: dict[str, list[Any]] = {}
            for row in db.execute(who) if rows else ():
                brought.setdefault(row.series_uid, []).append(row)
        answer = []
        for series in rows:
            mine = brought.get(series["series_uid"], [])
            evidence = Evidence(
                last_arrival=series["last_arrival"],
                arrived=series["arrived"],
                open_associations=connected.intersection(each.association for each in mine),
                released=all(each.released for each in mine),
                expected=series["expected"],
                expected_from=series["expected_from"],
            )
            senders = tuple(sorted({each.calling_ae for each in mine}))
            answer.append(OpenSeries(series["series_uid"], series["study_uid"], evidence, senders))
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
        with self._reading() as db:
            rows = db.execute(
                sa.select(instance_table)
                .where(instance_table.c.series_uid == series_uid)
                .order_by(instance_table.c.sop_instance_uid)
            ).mappings()
            return [self._instance(row) for row in rows]

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
        decided_at: datetime | None = None,
        complete: Sequence[Job] = (),
        returned: bool = False,
        patient: Collection[str] | None = None,
    ) -> bool:
        """Close a series and write down everything decided about it, jobs included, at once.

        complete: jobs of the study that need no more than this series. Those that wait for it run now; where one has
        waited in vain, it is said. returned: it may say something of our results, and is looked at for that.
        decided_at: when it was found complete, before it was judged. patient: hashes of whose it is; None: not known.

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
                    turnaround_s=None,
                    revision=revision,
                    closed_because=because,
                    modality=modality[:16],
                    description=description[:64],
                    verdict=_verdict_row(verdict),
                    rules=list(rules),
                )
                .returning(series_table.c.first_arrival, series_table.c.last_arrival, series_table.c.sender)
            ).first()
            if closed is None:
                return False
            if patient is not None:
                self._set_patient(db, series_uid, patient)
            # Work on the former images is void; results made of them are still sent, unless better ones are coming.
            better = any(verdict.of(job.route).fit for job in jobs if not job.shadow)
            void = ("infer", "send") if better else ("infer",)
            db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.series_uid == series_uid,
                    job_table.c.state.in_(OPEN_JOB_STATES),
                    job_table.c.kind.in_(void),
                )
                .values(state="superseded", finished_at=now, reason=f"late images made revision {revision}")
            )
            for job in in_order_of_queues(jobs):
                self._add_job(db, job)
            for job in complete:
                self._study_complete(db, job, series_uid, now)
            self._note(db, series_uid, decided_at or now, "closed", f"revision {revision}: {because}")
            self._note(db, series_uid, now, "judged", verdict.reason)
            for rule in rules:
                text = f"route {rule['rule']}: " + (rule["why_not"] or "matches")
                self._note(db, series_uid, now, "routed", text)
            if returned:
                self._may_be_of_ours(db, series_uid, now)
            if revision == 1 and closed.sender != HEARTBEAT_AE:
                self._took(db, "receive", modality[:16], (closed.last_arrival - closed.first_arrival).total_seconds())
            return True

    def _study_complete(self, db: sa.Connection, job: Job, series_uid: str, now: datetime) -> None:
        """A series has come that a job has waited for."""
        if job.study == "waiting":
            waits = job_table.c.id == job.id, job_table.c.study == "waiting", job_table.c.state.in_(BEGINNABLE)
            values = {"not_before": None, "study": "complete", "reason": "its study is complete"}
            db.execute(sa.update(job_table).where(*waits).values(**values))
            said = f"route {job.route}: its study is complete since series {series_uid} is here"
        else:
            said = f"route {job.route}: series {series_uid} came after the wait had ended; run it again to have both"
        self._note(db, job.series_uid, now, "study", said)

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
        """New jobs for a closed series. False, and nothing written, when it is being worked on or has changed. Shadows
        hold up nobody: what waits or runs of one is void."""
        with self._begin() as db:
            busy = db.scalar(
                sa.select(job_table.c.id).where(
                    job_table.c.series_uid == series_uid,
                    job_table.c.kind == "infer",
                    job_table.c.state.in_(OPEN_JOB_STATES),
                    job_table.c.shadow.is_(False),
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
            db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.series_uid == series_uid,
                    job_table.c.shadow,
                    job_table.c.state.in_(OPEN_JOB_STATES),
                    job_table.c.route.in_([job.route for job in jobs]),
                )
                .values(state="superseded", finished_at=now, reason="run again")
            )
            for job in in_order_of_queues(jobs):
                self._add_job(db, job)
            self._note(db, series_uid, now, "run again", ", ".join(job.route for job in jobs))
            return True

    def series_of_route(self, route: str) -> list[str]:
        """Series that a route has made a job for, the oldest first."""
        with self._reading() as db:
            return list(
                db.scalars(
                    sa.select(job_table.c.series_uid)
                    .where(job_table.c.route == route, job_table.c.kind == "infer", no_heartbeat(job_table))
                    .group_by(job_table.c.series_uid)
                    .order_by(sa.func.min(job_table.c.created_at))
                )
            )

    def series_since(self, since: datetime) -> list[str]:
        """Closed series whose last image came at that time or later, the oldest first."""
        with self._reading() as db:
            return list(
                db.scalars(
                    sa.select(series_table.c.series_uid)
                    .where(
                        series_table.c.state == "closed",
                        series_table.c.last_arrival >= since,
                        no_heartbeat(series_table),
                    )
                    .order_by(series_table.c.last_arrival)
                )
            )

    def deleted(self, series_uid: str) -> tuple[datetime, int] | None:
        """When images of a series were deleted here, the last time, and how many there were then."""
        with self._reading() as db:
            columns = series_table.c.deleted_at, series_table.c.deleted_images
            row = db.execute(sa.select(*columns).where(series_table.c.series_uid == series_uid)).first()
            return None if row is None or row[0] is None else (row[0], row[1])

    def why_gone(self, series_uid: str) -> str | None:
        """None, or in words that the images of a series are not here any more."""
        with self._reading() as db:
            columns = series_table.c.state, series_table.c.deleted_at
            row = db.execute(sa.select(*columns).where(series_table.c.series_uid == series_uid)).first()
        if row is None or row[0] != "deleted":
            return None
        return f"its images were deleted here on {row[1]:%Y-%m-%d}; send them again to have them analysed again"

    def revision(self, series_uid: str) -> int:
        with self._reading() as db:
            return db.scalar(sa.select(series_table.c.revision).where(series_table.c.series_uid == series_uid)) or 0

    def verdict(self, series_uid: str, route: str = "") -> Verdict | None:
        """What the geometry gate said, for a route if it said another thing to it, when the series last closed."""
        with self._reading() as db:
            said = db.scalar(sa.select(series_table.c.verdict).where(series_table.c.series_uid == series_uid))
            if said is None:
                return None
            said = said.get("of_routes", {}).get(route, said)
            several = {name: tuple(said.get(name, ())) for name in ("use", "remarks")}  # rows of 0.1.0 have no remarks
            return Verdict(**{**said, **several, "of_routes": {}})

    def kept_instances(self, sop_instance_uids: Sequence[str]) -> list[Instance]:
        """Those of these instances that we took in."""
        kept: list[Instance] = []
        with self._reading() as db:
            for some in portions(sop_instance_uids):
                mine = instance_table.c.sop_instance_uid.in_(some)
                rows = db.execute(sa.select(instance_table).where(mine)).mappings()
                kept += [self._instance(row) for row in rows]
        return kept

    def _instance(self, row: Mapping[Any, Any]) -> Instance:
        return Instance(**{**row, "path": self._path(row["path"])})

    def _row(self, instance: Instance) -> dict[str, Any]:
        row = {name: getattr(instance, name) for name in Instance.__dataclass_fields__}
        return row | {"path": self._place(instance.path)}


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "fit": verdict.fit,
        "reason": verdict.reason,
        "use": list(verdict.use),
        "set_aside": verdict.set_aside,
        "facts": as_json(verdict.facts),
        "remarks": list(verdict.remarks),
        **({"of_routes": {route: _verdict_row(own) for route, own in of.items()}} if (of := verdict.of_routes) else {}),
    }
