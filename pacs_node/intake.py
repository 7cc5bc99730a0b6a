"""From the spool into the ledger: what is durable gets its row, many at once, and no sender waits for it.

The spool is the truth: what has no row when the node ends is found in its pack at the next start.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import structlog

from pacs_node import pack
from pacs_node.errors import LedgerUnavailable
from pacs_node.ledger import Ledger
from pacs_node.loop import Loop
from pacs_node.records import AssociationEnd, Instance

log = structlog.get_logger()

LOOK_EVERY_S = 0.1  # while images come
DOZE_S = 5.0  # while none do
MOST_AT_ONCE = 500  # rows in one transaction
MOST_WAITING = 20_000  # rows; a ledger that is away for longer holds senders up


class Intake:
    """Tells the ledger what the listener tells it, in that order.

    indexed: called with what the ledger has from now on. at: called at each step. twice: called with what the ledger
    has under a UID, and with what was kept under it as well, by another process or while the ledger was away; after a
    kill it may be called again for the same two. rest: called now and then while nothing comes.
    """

    def __init__(
        self,
        ledger: Ledger,
        indexed: Callable[[Sequence[Instance]], None],
        at: Callable[[str], None],
        twice: Callable[[Instance, Instance], None] = lambda first, second: None,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = Loop("intake", self._look, DOZE_S)
        self._ledger, self._indexed, self._at, self._twice, self._rest = ledger, indexed, at, twice, rest
        self._waiting: deque[Instance | AssociationEnd] = deque()
        self._one_at_a_time = threading.Lock()
        self._dozes = False
        self._away = False  # the ledger, when it was asked last: some of what waits was kept unasked

    def find(self, sop_instance_uid: str) -> Instance | None:
        """What the ledger has; None also while it is away: what it has then is found out with the row (`twice`), and no
        sender waits for a database that does not answer. Raises LedgerUnavailable when too many wait for their rows:
        before another is kept."""
        if len(self._waiting) >= MOST_WAITING:
            raise LedgerUnavailable(f"{MOST_WAITING} images wait for the ledger; start the database or free its disk")
        if self._away and self._waiting:  # the loop is asking
            return None
        try:
            return self._ledger.instance(sop_instance_uid)
        except LedgerUnavailable:
            self._away = True
            return None

    def stored(self, instance: Instance) -> None:
        """Durable in the spool."""
        self._tell(instance)
        self._at("instance stored")

    def left(self, end: AssociationEnd) -> None:
        self._tell(end)

    def _tell(self, told: Instance | AssociationEnd) -> None:
        self._waiting.append(told)
        if self._dozes:  # else the loop comes round soon, and takes many at once
            self._dozes = False
            self.loop.wake()

    def _look(self) -> float | None:
        """The seconds until the next look, if it is to come soon."""
        self._dozes = not self._waiting
        if self._dozes and not self._waiting:  # asked again: one that came in between has woken nobody
            self._rest()
            return None
        self._dozes = False
        self.flush()
        return LOOK_EVERY_S

    def flush(self) -> None:
        """All that has been told by now is in the ledger when this returns. Raises LedgerUnavailable."""
        with self._one_at_a_time:
            while self._waiting:
                # others append meanwhile. An end is told behind all that its association brought: rows first, then ends
                some = [self._waiting[number] for number in range(min(len(self._waiting), MOST_AT_ONCE))]
                self.take_in([each for each in some if isinstance(each, Instance)], unasked=self._away)
                if ends := [each for each in some if isinstance(each, AssociationEnd)]:
                    self._ledger.associations_ended(ends)
                for _ in some:
                    self._waiting.popleft()
                self._away = self._away and bool(self._waiting)

    def take_in_found(self, instances: Iterable[Instance]) -> int:
        """Rows for what lies in the spool since before; how many instances there were."""
        count, some = 0, []
        for instance in instances:
            some.append(instance)
            if len(some) == MOST_AT_ONCE:
                self.take_in(some, unasked=True)
                count, some = count + len(some), []
        self.take_in(some, unasked=True)
        return count + len(some)

    def take_in(self, instances: Sequence[Instance], *, unasked: bool = False) -> None:
        """Rows for instances that are durable in the spool. unasked: some may be there already: they are settled before
        the rows behind them in their pack say that all is indexed, or a kill in between would have them forgotten."""
        if not instances:
            return
        settled = set()
        for first, second in self._there_already(instances) if unasked else ():
            self._twice(first, second)
            settled.add(second.stored)
        for first, second in self._ledger.take_in_all(instances, pack.is_there):
            if first.stored != second.stored and second.stored not in settled:
                self._twice(first, second)
        self._indexed(instances)
        self._at("instance indexed")

    def _there_already(self, instances: Sequence[Instance]) -> list[tuple[Instance, Instance]]:
        """What the ledger has under a UID, whose file is there, and what was kept under it as well."""
        uids = sorted({each.sop_instance_uid for each in instances})
        known = {each.sop_instance_uid: each for each in self._ledger.kept_instances(uids)}
        pairs = [(known[each.sop_instance_uid], each) for each in instances if each.sop_instance_uid in known]
        return [(one, other) for one, other in pairs if one.stored != other.stored and pack.is_there(one.stored)]
