"""Somebody is told when something needs a person: by mail, chat, pager or webhook, through Apprise.

    what is wrong now -> what of it is new, lasts or is over -> one message to each receiver -> what was told is noted

Nothing waits for it: it has a loop of its own, and what could not be told is told later. What was told is in the
ledger, so that a restart repeats nothing. No message says who a patient is; the ledger, which it is made of, does not
know.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, get_args

import structlog

from config import Notify
from config.schema import About
from pacs_node.errors import LedgerUnavailable, NodeError
from pacs_node.kinds import of_kind
from pacs_node.ledger import Ledger
from pacs_node.loop import Loop
from pacs_node.records import Notice, Pause, moment
from pacs_node.silence_alarm import WEEK, WEEKS, fallen_silent, words

log = structlog.get_logger()

LOOK_EVERY_S = 60.0
LEARN_EVERY_S = 300.0  # who is silent is asked of some thousand rows
LONGEST_S = 60.0  # that one message may take
OVERLAP = timedelta(minutes=10)  # between two looks at what was found: clocks of workers differ
FORGOTTEN_AFTER = timedelta(days=7)  # a finding that was told: one that runs again meanwhile is no news
SHOWN = 20  # lines of one message
TOPICS: tuple[str, ...] = get_args(About)
SILENCE, FINDING = "silence ", "finding "  # how what they are about begins


class NotTold(NodeError):
    """A message was not taken, in words that hold no address: addresses hold secrets."""


@dataclass(frozen=True)
class World:
    """What there is to be told of, at one moment."""

    now: datetime
    trouble: Sequence[str] = ()  # why the node cannot receive or work
    failed: Mapping[str, str] = field(default_factory=dict)  # task -> that jobs of it failed for good, in words
    down: Sequence[tuple[str, datetime, str]] = ()  # destination, since when sends to it fail, why
    full_in_days: float | None = None
    certificates: Sequence[tuple[str, int | None]] = ()  # what for, days until it ends
    drifts: Mapping[str, str] = field(default_factory=dict)  # pipeline, version and what -> that it drifts, in words
    silent: Mapping[str, str] = field(default_factory=dict)  # sender and modality -> that it fell silent, in words
    heard: Mapping[str, datetime] = field(default_factory=dict)  # sender and modality -> when last
    paused: Sequence[Pause] = ()
    heartbeat: str | None = None  # what is wrong with it, in words


def wrong_now(about: Notify, world: World, told: Mapping[str, Notice]) -> dict[str, str]:
    """What it is about -> in words, of what this receiver is to hear of. told: what is open already."""
    found: dict[str, str] = {}
    if world.trouble:
        found["node"] = "; ".join(world.trouble)
    found |= {f"jobs {task}": sentence for task, sentence in world.failed.items()}
    found |= {
        f"destination {name}": f"{name} has taken nothing since {moment(since)}: {why}"
        for name, since, why in world.down
        if world.now - since >= timedelta(minutes=about.down_min)
    }
    found |= {
        f"pause {each.kind} {each.name}": each.words
        for each in world.paused
        if world.now - each.since >= timedelta(hours=about.paused_h)
    }
    if world.heartbeat is not None:
        found["heartbeat"] = world.heartbeat
    if world.full_in_days is not None and world.full_in_days <= about.full_in_days:
        found["disk"] = f"the disk of the node is full in {world.full_in_days:.1f} days"
    for what, days in world.certificates:
        if days is not None and days <= about.certificate_days:
            end = f"ends in {days} days" if days >= 0 else "has ended"
            found[f"certificate {what}"] = f"the {what} certificate of the node {end}"
    found |= {f"drift {what}": text for what, text in world.drifts.items()}
    found |= {f"{SILENCE}{who}": text for who, text in world.silent.items()}
    for key, notice in told.items():  # it lasts until something comes, also into hours at which nothing ever does
        heard = world.heard.get(key.removeprefix(SILENCE))
        if key.startswith(SILENCE) and (heard is None or heard <= notice.since):
            found.setdefault(key, notice.text)
    return {key: text for key, text in found.items() if key.partition(" ")[0] in about.about}


@dataclass(frozen=True)
class Plan:
    """What is to be said now, and what is to be noted of it."""

    lines: tuple[str, ...] = ()
    wrong: int = 0  # lines that are no good news
    noted: tuple[tuple[str, Notice], ...] = ()
    over: tuple[str, ...] = ()


def planned(
    told: Mapping[str, Notice],
    wrong: Mapping[str, str],
    again: timedelta,
    now: datetime,
    wanted: Sequence[str] = TOPICS,
) -> Plan:
    """New things at once, what lasts once in `again`, and once that it is well again. wanted: what it is about; of what
    is not wanted any more nobody knows if it is well."""
    new = {key: Notice(text, now, now) for key, text in wrong.items() if key not in told}
    due = {
        key: replace(told[key], text=text, told_at=now)
        for key, text in wrong.items()
        if key in told and now - (told[key].told_at or told[key].since) >= again
    }
    over = [key for key in told if key not in wrong and not key.startswith(FINDING)]
    bad = [
        *(notice.text for notice in new.values()),
        *(f"still, since {moment(notice.since)}: {notice.text}" for notice in due.values()),
    ]
    good = [f"well again: {told[key].text}" for key in over if key.partition(" ")[0] in wanted]
    return Plan((*bad, *good), len(bad), tuple((new | due).items()), tuple(over))


def found(about: Notify, jobs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Of these inferences those with a finding that this receiver is to hear of: key -> in words."""
    told = {}
    for job in jobs:
        wanted = of_kind(job["facts"], about)
        if wanted and (not about.pipelines or job["pipeline"] in about.pipelines):
            told[f"{FINDING}{job['id']}"] = f"{job['pipeline']} found: {', '.join(wanted)}; series {job['series_uid']}"
    return told


# ---- effects


class Notifier:
    """Looks, and tells. world: asked at each look, without who is silent.

    longest_s: that an inference may take, from its begin.
    """

    def __init__(
        self,
        receivers: Sequence[Notify],
        ledger: Ledger,
        world: Callable[[], World],
        name: str,
        longest_s: float,
        send: Callable[[Sequence[str], str, str], None] | None = None,
    ) -> None:
        self.receivers, self.ledger, self.world, self.name = receivers, ledger, world, name
        self.longest = timedelta(seconds=longest_s)
        self.send = send or deliver
        self.loop = Loop("notices", self.look, LOOK_EVERY_S)
        self.troubles: dict[str, str] = {}  # receiver -> why it could not be told
        # receiver -> what it was told, or of what it was told that it is over (None), while the ledger takes no writes
        self._unnoted: dict[str, dict[str, Notice | None]] = {}
        self._learnt: tuple[float, Mapping[str, str], Mapping[str, datetime]] | None = None
        self._stopping = threading.Event()

    def take_up(self, receivers: Sequence[Notify]) -> None:
        """From the next look on."""
        self.receivers = receivers
        names = {about.name for about in receivers}
        self.troubles = {name: why for name, why in self.troubles.items() if name in names}

    def stop(self) -> None:
        """A message on its way is not waited for: it is told again, if it was not taken."""
        self._stopping.set()
        self.loop.stop()

    def trouble(self) -> list[str]:
        """Who could not be told, and why nobody is."""
        return [*self.troubles.values(), *([self.loop.trouble] if self.loop.trouble is not None else [])]

    def look(self) -> None:
        """Raises LedgerUnavailable; what is wrong then is told once it is back."""
        world = self.world()
        if any("silence" in about.about for about in self.receivers):
            silent, heard = self._silence(world.now)
            world = replace(world, silent=silent, heard=heard)
        away: LedgerUnavailable | None = None
        for about in self.receivers:
            try:
                self._tell(about, world)
            except LedgerUnavailable as error:  # one that takes no writes; the others are told all the same
                away = error
        if away is not None:
            raise away

    def _tell(self, about: Notify, world: World) -> None:
        unnoted = self._unnoted.setdefault(about.name, {})
        known = {**self.ledger.notices(about.name), **unnoted}
        told = {key: notice for key, notice in known.items() if notice is not None}
        plan = planned(told, wrong_now(about, world, told), timedelta(hours=about.again_h), world.now, about.about)
        if "finding" in about.about:
            plan = self._with_findings(about, told, plan, world.now)
        if plan.lines:
            try:
                self._send(about, plan)
            except NotTold as error:
                self.troubles[about.name] = f"{about.name} could not be told: {error}"
                log.warning("notice not told", receiver=about.name, error=str(error))
                return
            self.troubles.pop(about.name, None)
            log.info("notice told", receiver=about.name, lines=len(plan.lines))
        unnoted.update({**dict(plan.noted), **dict.fromkeys(plan.over)})
        if unnoted:
            noted = [(key, notice) for key, notice in unnoted.items() if notice is not None]
            self.ledger.told(about.name, noted, [key for key, notice in unnoted.items() if notice is None])
            unnoted.clear()
        if "finding" in about.about:
            self.ledger.mark(f"notify {about.name}", world.now, "")

    def _with_findings(self, about: Notify, told: Mapping[str, Notice], plan: Plan, now: datetime) -> Plan:
        looked = self.ledger.marks().get(f"notify {about.name}")
        if looked is None:
            return plan  # the first look: what was found before is no news
        since = looked["at"] - OVERLAP
        inferred = self.ledger.inferred_since(since, since - self.longest)
        events = {self._result_of(job): said for job, said in found(about, inferred).items()}
        new = {key: Notice(text, now, now) for key, text in events.items() if key not in told}
        old = [key for key, notice in told.items() if key.startswith(FINDING) and now - notice.since > FORGOTTEN_AFTER]
        lines = [notice.text for notice in new.values()]
        return Plan((*lines, *plan.lines), len(lines) + plan.wrong, (*plan.noted, *new.items()), (*plan.over, *old))

    def _result_of(self, key: str) -> str:
        """Of a job that found something: run again with the same outcome, it has the same result, and is no news."""
        results = self.ledger.results(key.removeprefix(FINDING))
        return f"{FINDING}{min(each.sop_instance_uid for each in results)}" if results else key

    def _silence(self, now: datetime) -> tuple[Mapping[str, str], Mapping[str, datetime]]:
        if self._learnt is not None and time.monotonic() - self._learnt[0] < LEARN_EVERY_S:
            return self._learnt[1:]
        came = self.ledger.came_since(now - (WEEKS + 1) * WEEK)
        here, silent, heard = now.astimezone().replace(tzinfo=None), dict[str, str](), dict[str, datetime]()
        for (sender, modality), times in came.items():
            if not modality:
                continue
            all_of_it = sorted([*times, *came.get((sender, ""), ())])  # what is open may be of this modality
            heard[f"{modality} from {sender}"] = all_of_it[-1]
            local = [time.astimezone().replace(tzinfo=None) for time in all_of_it]
            fallen = fallen_silent(sorted(local), here)
            if fallen is not None:
                silent[f"{modality} from {sender}"] = words(sender, modality, all_of_it[-1], fallen.an_hour)
        self._learnt = time.monotonic(), silent, heard
        return silent, heard

    def _send(self, about: Notify, plan: Plan) -> None:
        """Raises NotTold, after LONGEST_S at the latest."""
        lines = [f"- {line}" for line in plan.lines[:SHOWN]]
        lines += [f"... and {len(plan.lines) - SHOWN} more"] if len(plan.lines) > SHOWN else []
        number = plan.wrong
        title = f"{self.name}: " + (f"{number} thing{'' if number == 1 else 's'} to see to" if number else "well again")
        reach(about, title, "\n".join(lines), self.send, self._stopping.is_set)


def trial(about: Notify, node: str) -> None:
    """Send a message for trial, by which a receiver learns of what it is told. Raises NotTold."""
    reach(about, f"pacs-node {node}: a test", f"- {about.name} is told of {', '.join(about.about)}", deliver)


def reach(
    about: Notify,
    title: str,
    body: str,
    send: Callable[[Sequence[str], str, str], None],
    given_up: Callable[[], bool] = lambda: False,
) -> None:
    """`send`, for LONGEST_S at the most. Raises NotTold, and nothing else that a service may raise."""
    urls = [url.get_secret_value() for url in about.urls]
    failure: list[str] = ["it took too long"]

    def tell() -> None:
        try:
            send(urls, title, body)
        except NotTold as error:
            failure[:] = [str(error)]
        except Exception as error:  # noqa: BLE001  the edge of Apprise's plugins: their words may hold addresses
            failure[:] = [type(error).__name__]
        else:
            failure.clear()

    thread = threading.Thread(target=tell, name="notice", daemon=True)
    thread.start()
    until = time.monotonic() + LONGEST_S
    while thread.is_alive() and time.monotonic() < until and not given_up():
        thread.join(0.2)
    if failure:
        raise NotTold(failure[0])


def deliver(urls: Sequence[str], title: str, body: str) -> None:
    """To each address. Raises NotTold when none took it; of one among several that did not, the log tells."""
    refused = [why for number, url in enumerate(urls, start=1) if (why := _refusal(number, url, title, body))]
    if len(refused) == len(urls):
        raise NotTold("; ".join(refused))
    for why in refused:
        log.warning("notice not taken", error=why)


def _refusal(number: int, url: str, title: str, body: str) -> str | None:
    """None: it was taken."""
    import apprise  # 20 MB, for nodes that tell somebody

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its words hold addresses
    one = apprise.Apprise()
    if not one.add(url):
        return f"address {number} of urls is none that Apprise knows"
    taken = one.notify(body=body, title=title, notify_type=apprise.NotifyType.WARNING)
    return None if taken else f"address {number} of urls did not take the message"


def unknown_addresses(about: Notify) -> list[str]:
    """What Apprise does not know of the addresses of a receiver, in words that hold none of them."""
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    return [
        f"[[notify]] '{about.name}': address {number} of urls is none that Apprise knows; see its list of services"
        for number, url in enumerate(about.urls, start=1)
        if not apprise.Apprise().add(url.get_secret_value())
    ]
