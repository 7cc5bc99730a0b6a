"""Packs, ledger and results held against each other: is everything that was promised still there, and as it was?"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from pacs_node import pack
from pacs_node.intake import Intake
from pacs_node.ledger import Ledger
from pacs_node.receive.spool import Spool
from pacs_node.records import Instance, Result
from pacs_node.retention import finish_elsewhere, finish_here
from pacs_node.store import SharedFolder, Store

LOST, DAMAGED, NOT_INDEXED, LEFT_BEHIND = "lost", "damaged", "not indexed", "left behind"
HARM = frozenset({LOST, DAMAGED})  # nothing here can mend it: the image, or the result, has to come again


@dataclass(frozen=True)
class Fault:
    kind: str
    what: str  # a file below data_dir, or an image by its SOP Instance UID
    words: str


def faults(data_dir: Path, ledger: Ledger, store: Store | None = None) -> Iterator[Fault]:
    """All that is wrong. Reads every byte that is stored; changes nothing. A node may run meanwhile.

    Raises StoreAway.
    """
    spool, store = data_dir / "spool", store or SharedFolder()
    going = {data_dir / name for deletion in ledger.deletions() for name in deletion.files}
    for path in sorted(each for each in going if store.apart or each.exists()):
        words = "was deleted by retention, and goes at the next start, from a store within the hour after it"
        yield Fault(LEFT_BEHIND, _name(path, data_dir), words)
    yield from _of_images(spool / "instances", ledger, going)
    yield from _of_results(data_dir, ledger.every_object(), store)
    for kind in ("results", "rejected"):
        yield from _of_no_job(data_dir / kind, ledger, going)
    for folder in (spool / "unfinished", data_dir / "work", data_dir / "priors"):
        for each in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield Fault(LEFT_BEHIND, _name(each, data_dir), "belongs to nothing, unless a node is at work")


def _of_results(data_dir: Path, results: Sequence[Result], store: Store) -> Iterator[Fault]:
    """Job by job: in a bucket or a folder, the results of one are together."""
    of_job: dict[Path, list[Result]] = {}
    for result in results:
        below = result.path.is_relative_to(data_dir / "results")
        parts = result.path.relative_to(data_dir / "results").parts if below else ()
        home = data_dir / "results" / parts[0] if len(parts) > 1 else result.path.parent
        of_job.setdefault(home, []).append(result)
    for home, some in of_job.items():
        with store.folder(home, data_dir / "work") if home.is_relative_to(data_dir) else nullcontext(home) as folder:
            for result in some:
                file, name = folder / result.path.relative_to(home), _name(result.path, data_dir)
                if not file.is_file():
                    yield Fault(LOST, name, f"result {result.sop_instance_uid} is not there; run the series again")
                elif hashlib.sha256(file.read_bytes()).hexdigest() != result.sha256:
                    words = f"result {result.sop_instance_uid} is not what was written; run the series again"
                    yield Fault(DAMAGED, name, words)


def _of_no_job(folder: Path, ledger: Ledger, going: Collection[Path]) -> Iterator[Fault]:
    """What lies among results, and no row leads to it. Said alone: of a database that was restored it may be the only
    copy of what was sent since."""
    there = sorted(set(folder.iterdir()).difference(going)) if folder.is_dir() else []
    kept = ledger.jobs_kept([each.name for each in there])  # asked after the look: a job has its row before its folder
    for each in there:
        if each.name not in kept:
            words = "no job of a series that is here made it, and nothing uses it; see what it is, then move it away"
            yield Fault(NOT_INDEXED, _name(each, folder.parent), words)


def _of_images(folder: Path, ledger: Ledger, going: Collection[Path]) -> Iterator[Fault]:
    """Series by series: a million images do not lie in memory at once."""
    known = set()
    for series_uid in ledger.series_uids():
        of_series = folder / hashlib.sha256(series_uid.encode()).hexdigest()
        known.add(of_series)
        yield from _of_series(of_series, ledger.instances(series_uid), going)
    for other in sorted(set(folder.iterdir()) - known) if folder.is_dir() else ():
        yield from _of_series(other, [], going)


def _of_series(folder: Path, instances: Sequence[Instance], going: Collection[Path]) -> Iterator[Fault]:
    rows = {(instance.path, instance.offset): instance for instance in instances}
    for path in sorted(set(folder.glob(f"*{pack.SUFFIX}")).difference(going)):
        for record in pack.records(path):
            row = rows.pop((path, record.offset), None)
            if not record.whole:
                uid = row.sop_instance_uid if row is not None else path.name
                yield Fault(DAMAGED, uid, f"the record at byte {record.offset} of {path.name} is not what was written")
            elif row is None:
                words = f"the image at byte {record.offset} has no row; taken in at the next start, or sent twice"
                yield Fault(NOT_INDEXED, path.name, words)
    for path in sorted(set(folder.glob("*.dcm")).difference(going)):
        if (path, 0) not in rows:
            yield Fault(NOT_INDEXED, path.name, "has no row; taken in at the next start")
    for row in rows.values():
        if row.path.suffix == pack.SUFFIX or not row.path.is_file():
            where = f"{row.path.name} has no record at byte {row.offset}" if row.path.is_file() else "its file is gone"
            yield Fault(LOST, row.sop_instance_uid, f"{where}; send it again")
        elif (size := row.path.stat().st_size) != row.size:
            words = f"{row.path.name} has {size} bytes instead of {row.size}; send it again"
            yield Fault(DAMAGED, row.sop_instance_uid, words)


def mend(data_dir: Path, ledger: Ledger, store: Store | None = None) -> list[str]:
    """Index what has no row, and clear away what was left behind. No node may be at work. What was done, in words.

    Raises StoreAway.
    """
    spool, store = Spool(data_dir / "spool", 0, ledger.instance), store or SharedFolder()
    finish_here(data_dir, ledger, store, spool.drop_folder)
    aside: list[Path] = []

    def kept_twice(first: Instance, second: Instance) -> None:
        kept = spool.compare(first, second)
        if kept.aside is not None:
            aside.append(kept.aside)

    intake = Intake(ledger, spool.indexed, lambda step: None, kept_twice)
    found = intake.take_in_found(spool.scan(ledger.indexed_up_to()))
    done = [f"{found} images indexed"] if found else []
    done += [f"{_name(path, data_dir)}: other data under a UID that is taken" for path in dict.fromkeys(aside)]
    for folder in (data_dir / "work", data_dir / "priors"):
        for each in sorted(folder.iterdir()) if folder.is_dir() else ():
            shutil.rmtree(each, ignore_errors=True)
            done.append(f"{_name(each, data_dir)} removed")
    for _ in finish_elsewhere(data_dir, ledger, store):
        pass
    return done


def _name(path: Path, data_dir: Path) -> str:
    return str(path.relative_to(data_dir)) if path.is_relative_to(data_dir) else path.name
