"""A ledger as full as after years: instances, their series, jobs, results and what became of them.

Made row by row as the node would have left them, but written in bulk; of images that are not there.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger import MOST_REFUSALS, Ledger
from pacs_node.ledger.tables import metadata
from pacs_node.records import REFUSAL_KINDS

FROM = datetime(2024, 1, 1, tzinfo=UTC)
AT_ONCE = 20_000  # rows in one transaction
# modality -> its share of the series, and the images of one
KINDS = {"CT": (0.30, (60, 400)), "US": (0.35, (1, 40)), "MR": (0.20, (20, 200)), "CR": (0.15, (1, 3))}
SHARE_TAKEN = 0.4  # of the CT and ultrasound series: a route matches
SHARE_FAILED = 0.002  # of the jobs, for good
AXIAL, SEG, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"


def fill(ledger: Ledger, instances: int, seed: int = 1) -> int:
    """Add so many instances to a ledger, and all that goes with them; how many series they make."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    draw, left, series = random.Random(seed), instances, 0
    while left:
        number = _one_series(rows, draw, f"2.25.{seed}{series:08d}", FROM + timedelta(minutes=5 * series), left)
        left, series = left - number, series + 1
        if len(rows["instance"]) >= AT_ONCE or not left:
            _write(ledger, rows)
    for number in range(MOST_REFUSALS):
        rows["refusal"].append(_refusal(draw, FROM + timedelta(hours=number)))
    _write(ledger, rows)
    return series


def fill_series(ledger: Ledger, series: int, seed: int = 2) -> None:
    """Add so many series of one image each."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    draw = random.Random(seed)
    for number in range(series):
        _one_series(rows, draw, f"2.25.{seed}{number:08d}", FROM + timedelta(minutes=5 * number), 1)
        if len(rows["instance"]) >= AT_ONCE:
            _write(ledger, rows)
    _write(ledger, rows)


def _write(ledger: Ledger, rows: dict[str, list[dict[str, Any]]]) -> None:
    with ledger.engine.begin() as db:
        for table in metadata.sorted_tables:
            if rows[table.name]:
                db.execute(sa.insert(table), rows[table.name])
    rows.clear()


def _one_series(rows: dict[str, list[dict[str, Any]]], draw: random.Random, uid: str, at: datetime, most: int) -> int:
    modality = draw.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
    number = min(draw.randint(*KINDS[modality][1]), most)
    uids = [f"{uid}.{each + 1}" for each in range(number)]
    study, association, path = f"{uid}.0", f"{uid[-12:]}-a", f"/var/lib/pacs-node/spool/instances/{uid[-2:]}/{uid}.pack"
    for position, image in enumerate(uids):
        rows["instance"].append({
            "sop_instance_uid": image, "sop_class_uid": AXIAL, "series_uid": uid, "study_uid": study,
            "transfer_syntax_uid": "1.2.840.10008.1.2.1", "path": path, "offset": position * 526_000, "size": 525_000,
            "received_at": at + timedelta(milliseconds=10 * position), "association": association, "calling_ae": "CT1",
        })  # fmt: skip
    rows["association"].append({"association": association, "calling_ae": "CT1", "released": True, "ended_at": at})
    fit = modality in ("CT", "US") and draw.random() < SHARE_TAKEN
    verdict = {"fit": fit, "reason": f"{number} images", "use": uids if fit else [], "set_aside": {}, "facts": {},
               "remarks": []}  # fmt: skip
    rows["series"].append({
        "series_uid": uid, "study_uid": study, "state": "closed", "modality": modality, "description": "Thorax 1.0",
        "arrived": number, "revision": 1, "closed_because": "quiet for 5 s", "first_arrival": at,
        "last_arrival": at + timedelta(seconds=5), "verdict": verdict,
        "rules": [{"rule": "chest CT", "matched": fit, "why_not": None if fit else "modality is another"}],
    })  # fmt: skip
    said = ["closed", "judged", "routed"]
    if fit:
        said += _jobs(rows, draw, uid, study, at)
    rows["event"] += [{"series_uid": uid, "at": at, "event": each, "text": f"{each}: as it should be"} for each in said]
    return number


def _jobs(
    rows: dict[str, list[dict[str, Any]]], draw: random.Random, uid: str, study: str, at: datetime
) -> Iterator[str]:
    """An inference, its results sent to one PACS, and the proof that they arrived."""
    parent, made = None, [(f"{uid}.901", SEG), (f"{uid}.902", SR)]
    for kind in ("infer", "send", "confirm"):
        job, failed = f"{uid[5:]}-{kind}", draw.random() < SHARE_FAILED
        rows["job"].append({
            "id": job, "kind": kind, "series_uid": uid, "study_uid": study, "revision": 1, "pipeline": "lung-nodule",
            "route": "chest CT", "options": {}, "priors": None, "send_to": ["pacs"] if kind == "infer" else [],
            "destination": None if kind == "infer" else "pacs", "parent": parent, "priority": 5,
            "state": "failed" if failed else "done", "generation": 1, "attempt": 1, "crashes": 0, "executor": "local",
            "reason": "gave up after 3 attempts" if failed else "done", "progress": 1.0, "progress_text": "",
            "warnings": [], "facts": {}, "not_before": None, "created_at": at, "started_at": at, "finished_at": at,
        })  # fmt: skip
        yield "failed" if failed else "done"
        if failed:
            return
        of_job = {"job": job, "at": at, "text": ""}
        if kind == "infer":
            rows["found"] += _found(draw, uid)
            for position, (each, of) in enumerate(made):
                path = f"/var/lib/pacs-node/results/{job}/1/{position:02d}.dcm"
                row = {"job": job, "sop_instance_uid": each, "sop_class_uid": of, "path": path, "position": position}
                rows["result"].append(row)
            objects = [{"sop_instance_uid": each, "sop_class_uid": of, "path": "/results", "series_uid": f"{each}.1",
                        "sha256": "0" * 64} for each, of in made]  # fmt: skip
            rows["edition"].append({
                "job": job, "series_uid": uid, "pipeline": "lung-nodule", "options": {}, "number": 1, "revision": 1,
                "version": "1.0", "analysed": True, "dated": at, "replaces": [], "objects": objects,
            })  # fmt: skip
        for each, of in made:
            if kind == "send":
                stored = {"attempt": 1001, "stored": True, "status": 0, "sop_class_uid": of}
                rows["receipt"].append({**of_job, "sop_instance_uid": each, **stored})
            elif kind == "confirm":
                arrived = {"destination": "pacs", "arrived": True, "how": "query"}
                rows["arrival"].append({**of_job, "sop_instance_uid": each, **arrived})
        parent = job


def _found(draw: random.Random, uid: str) -> list[dict[str, Any]]:
    """What an inference found: two of three series have a nodule, few a large one."""
    number = draw.choice((0, 1, 3))
    of = {"series_uid": uid, "pipeline": "lung-nodule", "variant": "0" * 16, "number": number, "unsized": False}
    largest_mm = round(4 + draw.expovariate(0.25), 1) if number else None
    return [{**of, "kind": kind, "largest_mm": largest_mm} for kind in (("", "Nodule") if number else ("",))]


def _refusal(draw: random.Random, at: datetime) -> dict[str, Any]:
    kind = draw.choice(list(REFUSAL_KINDS))
    return {
        "at": at, "kind": kind, "calling_ae": "CT1", "address": "10.0.0.1", "sop_instance_uid": "", "series_uid": "",
        "reason": f"{kind}, and so on", "file": "",
    }  # fmt: skip
