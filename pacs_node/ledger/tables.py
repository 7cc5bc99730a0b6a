"""The tables of the ledger, as SQLAlchemy sees them. Their history is in migrations/."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.records import HEARTBEAT_AE


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


def no_heartbeat(table: sa.Table) -> sa.ColumnElement[bool]:
    """Of series and jobs: those of patients. What the node sends to itself is in no figure and in no list."""
    return table.c.sender != HEARTBEAT_AE


instance_table = sa.Table(
    "instance",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("association", sa.String(64), nullable=False, index=True),
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
    sa.Column("first_arrival", UtcDateTime, nullable=False),
    sa.Column("last_arrival", UtcDateTime, nullable=False),
    sa.Column("expected", sa.Integer),
    sa.Column("expected_from", sa.String(64)),
    sa.Column("verdict", sa.JSON),
    sa.Column("rules", sa.JSON),
    sa.Column("deleted_at", UtcDateTime),  # when its images and results were deleted here, the last time
    sa.Column("deleted_images", sa.Integer, nullable=False, server_default="0"),  # how many were then
    sa.Column("committed_to", sa.String(16)),  # AE title of a sender that asked for storage commitment of its images
    sa.Column("sender", sa.String(16), nullable=False, server_default=""),  # AE title that brought its first images
    sa.Column("turnaround_s", sa.Float),  # from the last image until all results had arrived, of the revision in force
    sa.Index("ix_series_state_last_arrival", "state", "last_arrival"),  # the oldest that are closed
    # what a list is filtered and counted by, in its order: rows hold a verdict of many kilobytes, and are not read
    sa.Index(
        "ix_series_list", "first_arrival", "series_uid", "study_uid", "modality", "description", "sender", "state"
    ),
    sa.Index("ix_series_study", "study_uid", "state"),
    sa.Index("ix_series_turnaround", "turnaround_s", "series_uid"),
    sa.Index("ix_series_sender", "sender", "modality", "first_arrival"),  # who sends what, and when
)


patient_hash_table = sa.Table(  # whose each series is, as keyed hashes: see identity.py
    "patient_hash",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("hash", sa.String(32), primary_key=True),  # "": of every series that has been looked at
    sa.Index("ix_patient_hash", "hash", "series_uid"),
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
    sa.Column("shadow", sa.Boolean, nullable=False, server_default=sa.false()),  # its results go nowhere
    sa.Column("needs", sa.JSON),  # other series of the study that it waits for: see records.Needs
    sa.Column("waits_until", UtcDateTime),
    sa.Column("study", sa.String(16)),  # of a job with needs, one of records.STUDIES
    sa.Column("send_to", sa.JSON, nullable=False),  # names of peers; an infer job's destinations
    sa.Column("also", sa.JSON, nullable=False, server_default="[]"),  # its further ones, and for which findings
    sa.Column("destination", sa.String(64)),  # a send or confirm job's one; of a report the sender's AE title
    # a send job's infer job, a confirm job's send job, a report's Transaction UID
    sa.Column("parent", sa.String(64), index=True),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("sender", sa.String(16), nullable=False, server_default=""),  # AE title; "": run again by a person
    sa.Column("turn", sa.Integer, nullable=False, server_default="0"),  # see turns.py
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("generation", sa.Integer, nullable=False, default=1),
    sa.Column("attempt", sa.Integer, nullable=False, default=1),  # the one that runs or is next
    sa.Column("crashes", sa.Integer, nullable=False, default=0),  # attempts begun without an outcome, in a row
    sa.Column("executor", sa.String(128)),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("error", sa.String(64)),  # class of the error that it, or its last attempt, failed by
    sa.Column("rested_s", sa.Float),  # of its wait, while the hours of its route were not
    sa.Column("progress", sa.Float, nullable=False, default=0.0),
    sa.Column("progress_text", sa.Text, nullable=False, default=""),
    sa.Column("warnings", sa.JSON, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("not_before", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    # the most urgent of each queue, jobs whose time lies ahead, and whether a queue moves: however many jobs there are
    sa.Index("ix_job_queue", "state", "kind", "destination", "priority", "turn", "created_at"),
    sa.Index("ix_job_sender", "kind", "destination", "priority", "sender", "turn", "state"),
    sa.Index("ix_job_not_before", "not_before"),
    sa.Index("ix_job_started", "kind", "destination", "started_at"),
    sa.Index("ix_job_pipeline", "kind", "pipeline", "series_uid"),
    sa.Index("ix_job_study", "study", "route"),  # few have needs
    sa.Index("ix_job_study_uid", "study_uid", "study"),
    # what shadows ask for, which is little of all; an index of all would be taken for whatever asks for the others
    sa.Index(
        "ix_job_shadow",
        "route",
        "state",
        "created_at",
        sqlite_where=sa.text("shadow = 1"),
        postgresql_where=sa.text("shadow"),
    ),
)


place_table = sa.Table(  # where a job found what, in figures: what a shadow and a live route are compared by
    "place",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("said", sa.JSON, nullable=False),  # see shadow.py
)


found_table = sa.Table(  # what the latest result of a pipeline, asked the same, found: a list is narrowed by it
    "found",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(64), primary_key=True),  # as reports call it; "": of all kinds together
    sa.Column("pipeline", sa.String(64), primary_key=True),
    sa.Column("variant", sa.String(16), primary_key=True),  # a digest of its options
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("largest_mm", sa.Float),  # NULL: of none is the size known
    sa.Column("unsized", sa.Boolean, nullable=False),  # of some it is not
    sa.Index("ix_found_kind", "kind"),  # which there are
)


queue_table = sa.Table(  # one row for each class of priority in each queue
    "queue",
    metadata,
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("destination", sa.String(64), primary_key=True),  # "": none, as of an infer job
    sa.Column("priority", sa.Integer, primary_key=True),
    sa.Column("turn", sa.Integer, nullable=False),  # the latest that has begun
    sa.Column("overtaken", sa.Integer, nullable=False),  # by more urgent jobs that began since one of this class did
)


pause_table = sa.Table(  # the latest of each: what does not begin because a person wants it so
    "pause",
    metadata,
    sa.Column("kind", sa.String(16), primary_key=True),  # records.PAUSES
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("since", UtcDateTime, nullable=False),
    sa.Column("who", sa.String(80), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("until", UtcDateTime),  # NULL: somebody has to end it; when somebody has, the time of that
)


result_table = sa.Table(
    "result",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),  # in sending order
    sa.Index("ix_result_object", "sop_instance_uid"),  # whose is an object that came back?
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
    sa.Index("ix_receipt_object", "sop_instance_uid"),  # as of result
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
    sa.Column("deleted_at", UtcDateTime),  # when their files were deleted
)


deletion_table = sa.Table(  # the rows say that these files are gone; they may be there still
    "deletion",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("series_uid", sa.String(64), nullable=False),
    sa.Column("files", sa.JSON, nullable=False),  # and folders, below data_dir
    sa.Column("at", UtcDateTime, nullable=False),
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
    sa.Column("disputed", sa.JSON, nullable=False, server_default="[]"),  # SOP Instance UIDs a later report denies
    sa.Column("heeded", sa.Boolean, nullable=False, default=False),  # an attempt of the job knows the reports
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
    sa.Index("ix_arrival_counts", "destination", "arrived", "how"),
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


refused_peer_table = sa.Table(  # how often, of AE titles that the settings named at the time: strangers add none
    "refused_peer",
    metadata,
    sa.Column("ae_title", sa.String(64), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
)


refusal_count_table = sa.Table(
    "refusal_count",
    metadata,
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("latest", UtcDateTime, nullable=False),
)


duration_table = sa.Table(  # how often something took so long: one row for each step of a histogram
    "duration",
    metadata,
    sa.Column("what", sa.String(16), primary_key=True),  # one of DURATIONS
    sa.Column("name", sa.String(64), primary_key=True),  # the pipeline, destination or modality; "": all
    sa.Column("step", sa.Integer, primary_key=True),  # index into STEPS_S; behind its end: longer
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),  # together
)


notice_table = sa.Table(  # of what somebody was told, so that a restart does not tell it again
    "notice",
    metadata,
    sa.Column("receiver", sa.String(64), primary_key=True),  # name of a [[notify]]
    sa.Column("key", sa.String(255), primary_key=True),  # what it is about
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("since", UtcDateTime, nullable=False),
    sa.Column("told_at", UtcDateTime),  # NULL: not yet
)


trace_table = sa.Table(  # what a collector of traces has been told of each series
    "trace",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(32), nullable=False),  # at random: no id of a trace is made of a UID
    sa.Column("number", sa.Integer, nullable=False),  # traces that it has been told
    sa.Column("event", sa.Integer, nullable=False),  # id of the latest event that they are about
)


mark_table = sa.Table(  # when something was done last, by whichever process
    "mark",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)


lease_table = sa.Table(
    "lease",
    metadata,
    sa.Column("executor", sa.String(128), primary_key=True),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("devices", sa.JSON),  # of a worker, as its process says them, with its machine
)


user_table = sa.Table(
    "web_user",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("wrong", sa.Integer, nullable=False),
    sa.Column("locked_until", UtcDateTime),
)


session_table = sa.Table(
    "web_session",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("user", sa.String(64), nullable=False, index=True),
    sa.Column("csrf", sa.String(64), nullable=False),
    sa.Column("began_at", UtcDateTime, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
)


token_table = sa.Table(
    "web_token",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("used_at", UtcDateTime),
)


feedback_table = sa.Table(  # what readers say of the findings
    "feedback",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("reader", sa.String(80), nullable=False),  # a user, or "token " and its name; "": there are no users
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("job", sa.String(64), nullable=False),  # the inference whose results it is about
    sa.Column("pipeline", sa.String(64), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),  # of the algorithm
    sa.Column("kind", sa.String(16), nullable=False),  # records.FEEDBACK_KINDS or RETURNED_KINDS
    sa.Column("finding", sa.Integer),  # its number; none of one that was missed
    sa.Column("label", sa.String(64), nullable=False),
    sa.Column("place", sa.JSON),  # of one that was missed
    sa.Column("object", sa.String(64), nullable=False, server_default=""),  # SOP Instance UID of what came back
    sa.Column("sender", sa.String(16), nullable=False, server_default=""),  # AE title that brought it
    sa.Column("dice", sa.Float),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("made", sa.String(32), nullable=False, server_default=""),  # by its maker's clock
    sa.Index("ix_feedback_counts", "pipeline", "version", "kind", "dice"),
    sa.Index("ix_feedback_object", "object"),
)


returned_table = sa.Table(  # series of segmentations and key objects: do they say something of our results?
    "returned",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("waits_since", UtcDateTime, index=True),  # NULL: it was looked at
    sa.Column("said", sa.Text, nullable=False),  # what came of it
)


tally_table = sa.Table(  # how many series of a week came to what: it grows with the weeks, not with the series
    "tally",
    metadata,
    sa.Column("pipeline", sa.String(64), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),  # of the algorithm
    sa.Column("what", sa.String(16), primary_key=True),  # outcomes.WORDS
    sa.Column("week", sa.Integer, primary_key=True, autoincrement=False),  # days since 0001-01-01 // 7
    sa.Column("value", sa.String(32), primary_key=True),  # a step of outcomes.STEPS, or a text
    sa.Column("sender", sa.String(16), primary_key=True),  # AE title; "": run again by a person
    sa.Column("number", sa.BigInteger, nullable=False),  # series
    sa.Column("total", sa.Float, nullable=False),  # of their numbers
    sa.Index("ix_tally_week", "pipeline", "week", "version", "what", "value", "sender", "number", "total"),
    sa.Index("ix_tally_sender", "pipeline", "sender", "week", "version", "what", "value", "number", "total"),
)


settings_version_table = sa.Table(  # of the settings file of a machine: what it was from then on
    "settings_version",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("place", sa.Text, nullable=False),  # machine and path
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("who", sa.Text, nullable=False),  # a user of the pages; "": whoever edited the file
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("difference", sa.Text, nullable=False),  # to the one before, without secrets
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("text", sa.Text, nullable=False),  # all of it, without secrets
    sa.Index("ix_settings_version_place", "place", "id"),
)
