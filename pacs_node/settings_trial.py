"""What other routes would do, tried before they are taken up: on an image, on a series, on all that came of late.

Nothing is judged and nothing is run: headers are read, and the rules say what they say of them.
"""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.errors import InvalidDicomError

from config import Config
from dicom_sr import attributes
from dicom_sr.reading import TooMuch, read_header
from models.pipeline import Card
from pacs_node.assemble.geometry import outside
from pacs_node.errors import NodeError
from pacs_node.flow import with_fallbacks
from pacs_node.kinds import as_well
from pacs_node.ledger import Ledger
from pacs_node.ledger.found import variant
from pacs_node.privacy import identifies
from pacs_node.records import NOT_URGENT, PRIORITY_NAMES, Received, Stored, Work
from pacs_node.route import Rule, missing, priority_of, wishes
from pacs_node.route import route as asked
from pacs_node.stages import WiredStages, rules_of

MOST_TRIED = 10_000  # series of one replay, the newest
LONGEST_TRIED_S = 20.0  # and no more of them than in this time
MOST_DAYS = 365
MOST_LOOKED_AT = 40  # series whose headers give the values that a condition may be picked from
MOST_VALUES = 12  # of one attribute, the most frequent
LONGEST_VALUE = 64  # characters of one that is offered
MEASURED_DAYS, MOST_MEASURED = 90, 500  # inferences that a forecast goes by
NO_SUCH_ROUTE = "there is no such route"
# what reading a header of a stranger's may raise
UNREADABLE = (*attributes.UNREADABLE, attributes.BadAttribute, InvalidDicomError, TooMuch, NodeError, OSError)

CardOf = Callable[[str, Mapping[str, Any]], Card]
Seconds = Callable[[Work], float | None]


@dataclass(frozen=True)
class Outcome:
    """What a route says of a series now, and what it would say. None: it takes it."""

    route: str
    pipeline: str
    now: str | None
    then: str | None
    refused: str | None = None  # why the pipeline would not run for it, if the route takes it
    otherwise: tuple[str, ...] = ()  # where both take it: what of that would be another thing, in words
    terms: tuple[str, ...] = ()  # what else the route says of what it takes, in words
    waits: tuple[str, ...] = ()  # for these series of its study, if the route takes it: they are not here
    work_now: Work | None = None  # None: nothing is inferred
    work_then: Work | None = None

    @property
    def change(self) -> str:
        """What the change would make of this series: "more", "less", "other", or "": nothing."""
        if self.now is None and self.then is None:
            return "other" if self.otherwise else ""
        return "more" if self.then is None else "less" if self.now is None else ""


def outcomes(
    header: Dataset,
    now: Sequence[Rule],
    then: Sequence[Rule],
    card_of: CardOf,
    others: Callable[[], Sequence[Dataset]] = tuple,
    unfit: str | None = None,
) -> list[Outcome]:
    """Of each route that there is or would be, in their order.

    others   of the other series of its study, a header
    unfit    why the series was not fit when it came; None: it was, or it is not known
    """
    before, after = {rule.name: rule for rule in now}, {rule.name: rule for rule in then}
    said_now, said_then = _why_not(header, now), _why_not(header, then)
    former, others = _renamed(now, then), cache(others)
    taken = partial(_taken, header, card_of, others, unfit)
    found = []
    for name in dict.fromkeys((*after, *(each for each in before if each not in former.values()))):
        old, new = before.get(former.get(name, name)), after.get(name)
        rule = new or old
        assert rule is not None
        known_as = old.name if old is not None else name
        why_not_now, why_not = said_now.get(known_as, NO_SUCH_ROUTE), said_then.get(name, NO_SUCH_ROUTE)
        was = taken(old) if old is not None and why_not_now is None else None
        would = taken(new) if new is not None and why_not is None else None
        found.append(
            Outcome(
                name,
                rule.pipeline,
                why_not_now,
                why_not,
                would.refused if would is not None else None,
                _differs(was.effects, would.effects) if was is not None and would is not None else (),
                _terms(rule),
                would.lacks if would is not None else (),
                was.work(known_as) if was is not None else None,
                would.work(known_as) if would is not None else None,
            )
        )
    return found


def _renamed(now: Sequence[Rule], then: Sequence[Rule]) -> dict[str, str]:
    """New name -> former one: a route in the place of one that is gone is that route."""
    names, new_names = [rule.name for rule in now], [rule.name for rule in then]
    if len(names) != len(new_names):
        return {}
    pairs = zip(names, new_names, strict=True)
    return {new: old for old, new in pairs if old not in new_names and new not in names}


def _why_not(header: Dataset, rules: Sequence[Rule]) -> dict[str, str | None]:
    """Of each route: None, or why it does not take the series."""
    said = asked(rules, header)
    whys = with_fallbacks([(rule.name, rule.fallback, rule.shadow, why_not) for rule, why_not in said])
    return {rule.name: why_not for rule, why_not in zip(rules, whys, strict=True)}


@dataclass(frozen=True)
class _Taken:
    """A series that a route takes."""

    rule: Rule
    refused: str | None
    lacks: tuple[str, ...]
    effects: Mapping[str, str]  # field of the route -> what it makes of this series, in words

    def work(self, known_as: str) -> Work | None:
        skipped = bool(self.lacks) and self.rule.needs is not None and self.rule.needs.if_incomplete == "skip"
        if self.refused is not None or skipped:
            return None
        return known_as, self.rule.pipeline, variant(self.rule.options)


def _taken(
    header: Dataset, card_of: CardOf, others: Callable[[], Sequence[Dataset]], unfit: str | None, rule: Rule
) -> _Taken:
    refused = _refused(header, card_of(rule.pipeline, rule.options)) or unfit
    lacks = () if rule.needs is None else tuple(missing(rule.needs.series, others()))
    return _Taken(rule, refused, lacks, _effects(rule, header, runs=refused is None))


def _effects(rule: Rule, header: Dataset, *, runs: bool) -> dict[str, str]:
    """Field of a route -> what it makes of a series that it takes, in words; what makes nothing of it is left out."""
    priority = priority_of(rule, header)
    effects = {
        "name": rule.name,
        "pipeline": rule.pipeline,
        "options": ", ".join(f"{key} = {value}" for key, value in rule.options.items()),
        "shadow": "yes" if rule.shadow else "",
    }
    if runs:
        effects |= {
            "priority": PRIORITY_NAMES.get(priority, str(priority)),
            "hours": rule.hours if priority >= NOT_URGENT else "",
            "needs": _needed(rule),
            "priors": rule.priors or "",
        }
    elif not rule.shadow:
        effects["report_not_run"] = "yes" if rule.report_not_run else ""
    if not rule.shadow and (runs or rule.report_not_run):
        effects["send_to"] = " and ".join(sorted(rule.send_to))  # their order is nobody's business
    if not rule.shadow and runs:
        effects["also"] = "; ".join(_as_well(rule))
    return effects


def _differs(was: Mapping[str, str], then: Mapping[str, str]) -> tuple[str, ...]:
    """One effect beside the other, in words."""
    keys = dict.fromkeys((*then, *was))
    pairs = [(key, was.get(key, ""), then.get(key, "")) for key in keys]
    return tuple(f"{key}: {new or 'none'}, was {old or 'none'}" for key, old, new in pairs if old != new)


def _needed(rule: Rule) -> str:
    if rule.needs is None:
        return ""
    return (
        f"{' and '.join(map(wishes, rule.needs.series))}, {patience(rule.needs.wait_minutes, rule.needs.if_incomplete)}"
    )


def patience(wait_minutes: float, if_incomplete: str) -> str:
    """How long other series of a study are waited for, in words."""
    otherwise = "runs without" if if_incomplete == "run" else "does not run"
    return f"waits {wait_minutes:g} minutes for them, then {otherwise}"


def _terms(rule: Rule) -> tuple[str, ...]:
    shadow = ("as a shadow: nothing of it is sent",) if rule.shadow else ()
    fallback = ("no other route takes it, and this one is a fallback",) if rule.fallback else ()
    hours = (f"runs in its hours, {rule.hours}, unless it is urgent",) if rule.hours else ()
    return (*shadow, *fallback, *hours, *(() if rule.shadow else _as_well(rule)))


def _as_well(rule: Rule) -> tuple[str, ...]:
    return tuple(as_well(each.send_to, each) for each in rule.also)


def _refused(header: Dataset, card: Card) -> str | None:
    """None, or what the card of the pipeline keeps such an image from it for."""
    modality = attributes.text(header, "Modality")
    if modality not in card.modality:
        return f"Modality is {modality or 'missing'}, {card.name} takes {' or '.join(sorted(card.modality))}"
    return outside(header, card, modality)


@dataclass
class OfRoute:
    """A route, over many series."""

    route: str
    pipeline: str
    now: int = 0
    then: int = 0
    more: int = 0
    less: int = 0
    other: int = 0  # taken now and then, and something of it would be another thing
    refused: int = 0  # of those that it would take: outside of the card, or not fit when they came
    waits: int = 0  # of those that it would take: not all series that it needs of the study are here
    seconds: float | None = 0.0  # more of inference, as long as it took of late; None: of one that has not run here
    why_not: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Replay:
    """What came of late, under other routes."""

    days: int
    tried: int
    left_out: bool  # there is more than was tried
    unread: int  # series whose images are gone or cannot be read
    routes: list[OfRoute]
    changed: list[tuple[Received, list[Outcome]]]  # the series that something changes for

    @property
    def more_seconds(self) -> float | None:
        """Of inference, for what would run additionally, otherwise and no longer; None: of one that is not known."""
        known = [route.seconds for route in self.routes if route.seconds is not None]
        return sum(known) if len(known) == len(self.routes) else None


class Trial:
    """Tries routes on what the node has. now: the time."""

    def __init__(
        self,
        stages: WiredStages,
        ledger: Ledger,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stages, self.ledger, self.now, self.monotonic = stages, ledger, now, monotonic

    def on_file(self, path: Path, then: Config) -> list[Outcome]:
        """Raises UNREADABLE."""
        return self._outcomes(read_header(path), then)

    def on_series(self, series_uid: str, then: Config) -> tuple[Received, list[Outcome]] | None:
        """None: there is no such series, or no image of it. Raises UNREADABLE."""
        received = self.ledger.tried_on(series_uid)
        header = self._header(received) if received is not None else None
        return (
            (received, self._outcomes(header, then, received)) if received is not None and header is not None else None
        )

    def on_the_last(self, days: int, then: Config) -> Replay:
        since = self.now() - timedelta(days=days)
        found = self.ledger.tried_on_since(since, MOST_TRIED + 1)
        routes: dict[str, OfRoute] = {}
        took = self._seconds()
        changed, tried, unread, until = [], 0, 0, self.monotonic() + LONGEST_TRIED_S
        for received in found[:MOST_TRIED]:
            if tried and self.monotonic() > until:
                break
            tried += 1
            try:
                header = self._header(received)
            except UNREADABLE:
                header = None
            if header is None:
                unread += 1
                continue
            said = self._outcomes(header, then, received)
            for each in said:
                _count(routes.setdefault(each.route, OfRoute(each.route, each.pipeline)), each, took)
            if any(each.change for each in said):
                changed.append((received, said))
        return Replay(days, tried, tried < len(found), unread, list(routes.values()), changed)

    def seen(self) -> dict[str, list[str]]:
        """Keyword -> values of it in the headers of what came last, the most frequent first. None tells who a patient
        is."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for received in self.ledger.tried_on_since(self.now() - timedelta(days=MOST_DAYS), MOST_LOOKED_AT):
            try:
                header = self._header(received)
            except UNREADABLE:
                continue
            for keyword, value in _offered(header) if header is not None else ():
                counts[keyword][value] += 1
        return {key: [value for value, _ in of.most_common(MOST_VALUES)] for key, of in sorted(counts.items())}

    def _outcomes(self, header: Dataset, then: Config, received: Received | None = None) -> list[Outcome]:
        study, series = (attributes.text(header, f"{of}InstanceUID") for of in ("Study", "Series"))
        others = partial(self.stages.study, study, series)
        unfit = received.reason if received is not None and not received.fit else None
        return outcomes(header, self.stages.rules, rules_of(then), self.stages.known.card, others, unfit)

    def _header(self, received: Received) -> Dataset | None:
        image = self.ledger.an_image_of(received)
        return self._read(image.stored) if image is not None else None

    def _read(self, stored: Stored) -> Dataset:
        with self.stages.unpacked(f"{uuid.uuid4().hex[:16]}.look", [stored], whole=True) as files:
            return read_header(files[0])

    def _seconds(self) -> Seconds:
        """How long an inference took of late: of its route, else of all routes; None: it has not run here."""
        measured = self.ledger.inference_seconds(self.now() - timedelta(days=MEASURED_DAYS), MOST_MEASURED)
        of_route = _means((work, seconds) for work, seconds in measured)
        of_any = _means((work[1:], seconds) for work, seconds in measured)
        return lambda work: of_route.get(work, of_any.get(work[1:]))


def _count(route: OfRoute, said: Outcome, took: Seconds) -> None:
    route.now += said.now is None
    route.then += said.then is None
    route.more += said.change == "more"
    route.less += said.change == "less"
    route.other += said.change == "other"
    route.refused += said.then is None and said.refused is not None
    route.waits += bool(said.waits)
    if said.then is not None:
        route.why_not[said.then] += 1
    if route.seconds is not None and said.work_now != said.work_then:
        now, then = (0.0 if work is None else took(work) for work in (said.work_now, said.work_then))
        route.seconds = None if now is None or then is None else route.seconds + then - now


def _means(measured: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    of: dict[Any, list[float]] = defaultdict(list)
    for key, seconds in measured:
        of[key].append(seconds)
    return {key: sum(each) / len(each) for key, each in of.items()}


# besides what tells who a patient is: what names an order or a device of one's own, and free text of a study
NEVER_OFFERED = re.compile(r"(ID|UID|Comments|OrderNumber\w*|(?<!Series)Description)$")
NOT_OFFERED = {"DA", "TM", "DT", "OB", "OW", "OD", "OF", "OL", "OV", "UN", "SQ", "LT", "ST", "UT"}


def _offered(header: Dataset) -> Iterator[tuple[str, str]]:
    """Attributes of a header that a condition may ask for, each with its values."""
    for tag in sorted(header.keys()):
        keyword = keyword_for_tag(tag)
        if not keyword or tag.group <= 2 or identifies(tag) or dictionary_VR(tag) in NOT_OFFERED:
            continue
        if NEVER_OFFERED.search(keyword) and keyword != "SOPClassUID":
            continue
        try:
            values = {str(each).strip() for each in attributes.values(header, keyword)[:MOST_VALUES]}
        except UNREADABLE:
            continue
        yield from ((keyword, value) for value in sorted(values) if 0 < len(value) <= LONGEST_VALUE)
