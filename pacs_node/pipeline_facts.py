"""What a pipeline did, week by week, and whether it drifts from its first weeks: for its page, metrics, notices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import product
from typing import Any, Protocol

from config import Config
from models import card_text, catalogue
from pacs_node.drift import Drift, drift
from pacs_node.ledger import Ledger
from pacs_node.ledger.tallies import BY_SENDER, week_of
from pacs_node.outcomes import DRIFTS, STEPS, WORDS, in_words
from pacs_node.records import FEEDBACK_KINDS, RETURNED_KINDS

WEEKS_SHOWN = 52
SENDERS_SHOWN = 20  # those with most series


class Tallied(Protocol):
    """The node whose pipelines these are."""

    config: Config
    ledger: Ledger
    now: Callable[[], datetime]


@dataclass(frozen=True)
class Drifting:
    pipeline: str
    version: str
    what: str  # one of outcomes.DRIFTS
    drift: Drift
    beyond: bool

    @property
    def words(self) -> str:
        return (
            f"{self.pipeline} {self.version}: {WORDS[self.what]} drifts from its first weeks, PSI"
            f" {self.drift.psi:.2f} ({self.drift.recent} series against {self.drift.reference}; chance alone stays"
            f" below {self.drift.by_chance:.2f})"
        )


class PipelineFacts:
    """Of one node."""

    node: Tallied

    def pipeline(self, name: str, sender: str | None = None) -> dict[str, Any] | None:
        """sender: an AE title; of its series alone. None: there is no pipeline of this name, and never was."""
        versions = [each for each in self.node.ledger.tallied() if each[0] == name]
        if not versions and name not in catalogue().options:
            return None
        this_week = week_of(self.node.now())
        since = this_week - WEEKS_SHOWN + 1
        rows = self.node.ledger.tallies(name, since, this_week, sender=sender)
        of_version = {version: [row for row in rows if row[0] == version] for _, version, _, _ in versions}
        senders = _senders(self.node.ledger.tallies_by_sender(name, since))[:SENDERS_SHOWN] if sender is None else []
        drifting = self._drifting(name, versions, [sender, *(row["sender"] for row in senders if row["sender"])])
        for row in senders:
            row["drift"] = drifting.get(row["sender"], [])
        return {
            "name": name,
            "sender": sender,
            "card": self.card(name) is not None,
            "weeks": WEEKS_SHOWN,
            "settings": self.node.config.drift,
            "versions": [
                {
                    "version": version,
                    "first": _monday(first),
                    "last": _monday(last),
                    "weeks": _weeks(of_version[version], since, this_week),
                    "told": [_told(of_version[version], what) for what in STEPS],
                    "drift": [each for each in drifting[sender] if each.version == version],
                    "feedback": self._feedback(name, version) if sender is None else {},
                }
                for _, version, first, last in reversed(versions)
                if sender is None or of_version[version]
            ],
            "senders": senders,
            "words": WORDS,
            "kinds": FEEDBACK_KINDS | RETURNED_KINDS,
        }

    def card(self, name: str) -> str | None:
        """The model card that the package of a pipeline carries; None: there is no such pipeline, or it has none."""
        declared = catalogue().declared.get(name)
        return None if declared is None else card_text(declared)

    def drifting(self) -> list[Drifting]:
        """Of every pipeline that was at work in the last weeks, whatever can be compared."""
        of: dict[str, list[tuple[str, str, int, int]]] = {}
        for each in self.node.ledger.tallied():
            of.setdefault(each[0], []).append(each)
        return [found for name, versions in of.items() for found in self._drifting(name, versions)[None]]

    def _drifting(
        self, name: str, versions: list[tuple[str, str, int, int]], senders: Sequence[str | None] = (None,)
    ) -> dict[str | None, list[Drifting]]:
        """Of all series of these versions (None), and of a sender's alone: its own against its own of the same weeks.
        Two questions for each version, however many senders."""
        settings, this_week = self.node.config.drift, week_of(self.node.now())
        recent_from = this_week - settings.recent_weeks + 1
        drifting: dict[str | None, list[Drifting]] = {sender: [] for sender in senders}
        for _, version, first, last in versions:
            until = first + settings.reference_weeks - 1
            if last < recent_from or until >= recent_from:
                continue  # it is at work no more, or not long enough
            early = self.node.ledger.values_by_sender(name, version, first, until)
            late = self.node.ledger.values_by_sender(name, version, recent_from, this_week)
            for sender, what in product(senders, DRIFTS):
                found = drift(_counts(_sent_by(early, sender), what), _counts(_sent_by(late, sender), what))
                if found is not None:
                    drifting[sender].append(Drifting(name, version, what, found, found.beyond(settings.beyond)))
        return drifting

    def _feedback(self, name: str, version: str) -> dict[str, int]:
        rows = self.node.ledger.feedback_counts(name, version)
        return {kind: number for _, _, kind, number, _ in rows}


Rows = list[tuple[str, str, int, str, int, float]]


def _counts(rows: Iterable[tuple[str, str, int]], what: str) -> dict[str, int]:
    """Of (what, value, how many series): value -> how many."""
    counts: dict[str, int] = {}
    for each, value, number in rows:
        if each == what:
            counts[value] = counts.get(value, 0) + number
    return counts


def _sent_by(rows: list[tuple[str, str, str, int]], sender: str | None) -> list[tuple[str, str, int]]:
    """None: whoever has sent them."""
    return [row[1:] for row in rows if sender in (None, row[0])]


def _weeks(rows: Rows, since: int, last: int) -> list[dict[str, Any]]:
    """Of each week how many series, how many with a finding, and the means of BY_SENDER."""
    counts = {(week, value): number for _, what, week, value, number, _ in rows if what == "positive"}
    weeks = []
    for week in range(since, last + 1):
        positive, negative = (counts.get((week, value), 0) for value in ("yes", "no"))
        of_it = [(what, number, total) for _, what, each, _, number, total in rows if each == week]
        count = {"monday": _monday(week), "series": positive + negative, "positive": positive}
        weeks.append({**count, **{what: _mean(of_it, what) for what in BY_SENDER}})
    return weeks


def _told(rows: Rows, what: str) -> dict[str, Any]:
    counts = _counts(((each, value, number) for _, each, _, value, number, _ in rows), what)
    number, total = sum(counts.values()), sum(row[5] for row in rows if row[1] == what)
    return {
        "what": what,
        "number": number,
        "mean": total / number if number else None,
        "steps": [
            {"words": in_words(what, str(step)), "number": counts.get(str(step), 0)}
            for step in range(len(STEPS[what]) + 1)
        ],
    }


def _senders(rows: list[tuple[str, str, str, int, float]]) -> list[dict[str, Any]]:
    """Whoever sent most first."""
    found = []
    for sender in {row[0] for row in rows}:
        counts = {value: number for each, what, value, number, _ in rows if (each, what) == (sender, "positive")}
        of_it = [(what, number, total) for each, what, _, number, total in rows if each == sender]
        means = {what: _mean(of_it, what) for what in BY_SENDER}
        found.append({"sender": sender, "series": sum(counts.values()), "positive": counts.get("yes", 0), **means})
    return sorted(found, key=lambda row: (-row["series"], row["sender"]))


def _mean(rows: list[tuple[str, int, float]], what: str) -> float | None:
    """Of (what, how many series, their sum); None: of none it is known."""
    mine = [(number, total) for each, number, total in rows if each == what]
    number = sum(number for number, _ in mine)
    return sum(total for _, total in mine) / number if number else None


def _monday(week: int) -> str:
    return date.fromordinal(7 * week + 1).isoformat()
