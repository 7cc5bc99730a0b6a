"""Which edition of its results a job writes: the one that is there already, or the next, and what that one replaces.

An edition is what one analysis says of one series: a set of objects with UIDs and dates of their own. Late images or
another version of the algorithm make the next one; nothing new makes the same one again, byte for byte.

Pure decisions over what the ledger remembers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pacs_node.records import Edition, Job, Result


def unchanged(earlier: Sequence[Edition], job: Job, version: str, *, analysed: bool) -> Edition | None:
    """The latest edition, if this job can only say the same; whether it does, the bytes must show."""
    latest = max(earlier, key=lambda edition: edition.result_revision, default=None)
    if latest is None or (latest.series_revision, latest.version, latest.analysed) != (job.revision, version, analysed):
        return None
    return latest


def next_revision(earlier: Sequence[Edition], job: Job, version: str, *, analysed: bool) -> Edition:
    """The next edition: dated as its job, replacing what stands at the destinations."""
    last = max((edition.result_revision for edition in earlier), default=0)
    return Edition(
        result_revision=max(job.revision, last + 1),
        series_revision=job.revision,
        version=version,
        analysed=analysed,
        dated=job.created_at,
        replaces=superseded_objects(earlier, analysed=analysed),
    )


def superseded_objects(earlier: Iterable[Edition], *, analysed: bool) -> tuple[Result, ...]:
    """The objects that stand as current at some destination and would stand beside the new ones.

    A destination holds the latest edition that left for it; an edition that left for none is nobody's. What could not
    be analysed replaces only an older word of that kind: earlier findings remain what is known.
    """
    standing: dict[str, list[Edition]] = {}
    for edition in sorted(earlier, key=lambda each: each.result_revision):
        for destination in edition.released_to:
            beside = standing.setdefault(destination, [])
            standing[destination] = [one for one in beside if not edition.analysed and one.analysed] + [edition]
    current = {edition.result_revision: edition for editions in standing.values() for edition in editions}
    return tuple(
        {
            result.sop_instance_uid: result
            for _, edition in sorted(current.items())
            if analysed or not edition.analysed
            for result in edition.objects
        }.values()
    )


def merged(editions: Iterable[Edition]) -> list[Edition]:
    """One of each number: routes that ask for the same, and runs that changed nothing, wrote the same objects."""
    known: dict[int, Edition] = {}
    for edition in editions:
        before = known.get(edition.result_revision)
        released_to = edition.released_to | (before.released_to if before else frozenset())
        known[edition.result_revision] = replace(before or edition, released_to=released_to)
    return [known[number] for number in sorted(known)]


def same_objects(some: Iterable[Result], others: Iterable[Result]) -> bool:
    """The same instances, byte for byte, in the same order."""
    return [(one.sop_instance_uid, one.sha256) for one in some] == [
        (one.sop_instance_uid, one.sha256) for one in others
    ]
