"""Has a sender fallen silent that is heard of at this hour in other weeks?

Learnt from what came, without a model of it: the silence is held against the same span of time in each of the weeks
before. Where more came in nearly all of them, now that nothing does, somebody should look.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pacs_node.records import moment

WEEKS = 6  # that are looked back
FEWEST_WEEKS = 3  # of them that must be known
FORGIVEN = 1  # of four or more: a week of holidays, or one in which the sender was repaired
LEAST = 4  # series that came in the same span of each of the others
WEEK, HOUR = timedelta(days=7), timedelta(hours=1)


@dataclass(frozen=True)
class Fallen:
    """A sender that is silent against its habit."""

    since: datetime  # when its last series began to come
    an_hour: float  # series, on average, in the same span of the weeks before


def fallen_silent(came: Sequence[datetime], now: datetime) -> Fallen | None:
    """came: when each series of one sender and modality began to come, ascending.

    All times are local and without a zone: an hour of the week stays what it is when the clocks change. Nothing is
    said at an hour at which nothing came in any week before.
    """
    if not came or came[-1] > now:
        return None
    begin = max(came[-1], now - WEEK)
    back = [number * WEEK for number in range(1, WEEKS + 1) if came[0] <= begin - number * WEEK]
    if len(back) < FEWEST_WEEKS or not any(_between(came, now - HOUR - ago, now - ago) for ago in back):
        return None
    counts = sorted(_between(came, begin - ago, now - ago) for ago in back)
    if counts[FORGIVEN if len(counts) > FEWEST_WEEKS else 0] < LEAST:
        return None
    return Fallen(came[-1], sum(counts) / len(counts) / ((now - begin) / HOUR))


def _between(came: Sequence[datetime], after: datetime, until: datetime) -> int:
    return bisect_right(came, until) - bisect_right(came, after)


def words(sender: str, modality: str, since: datetime, an_hour: float) -> str:
    """ "no CT from CT2 since 2026-03-14 09:40 UTC, normally 6 an hour" """
    often = f"{an_hour:.0f} an hour" if an_hour >= 1.5 else f"{an_hour * 24:.0f} a day"
    return f"no {modality} from {sender} since {moment(since)}, normally {often}"
