"""When is a series complete? DICOM has no message that says so; a series closes on evidence, and says on which.

    evidence                               closes                           why so
    the peer told N images, N are here     at once                          all that can be known
    the peer told N images, fewer are      max_wait_s after the last one    they exist, so they are worth waiting for
    the sender released its association    quiet_s after the last one       it said "I have sent what I had"
    the sender is still connected          quiet_unreleased_s after it      it may be still reconstructing
    the sender broke off                   quiet_unreleased_s after it      it usually comes back with the rest

An image that comes later reopens the series as a new revision, so closing early costs work, never images.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pacs_node.records import Evidence


@dataclass(frozen=True)
class Wait:
    """Not yet. Without further news the series closes at `until`."""

    until: datetime
    reason: str


@dataclass(frozen=True)
class Close:
    """Complete, as far as anyone can tell."""

    because: str


def decide(
    evidence: Evidence, now: datetime, *, quiet_s: float, quiet_unreleased_s: float, max_wait_s: float
) -> Wait | Close:
    """Close the series now, or wait until when. The table above, in its order; the result depends on nothing else.

    quiet_unreleased_s and max_wait_s count as at least quiet_s: weaker evidence never closes a series sooner.
    """
    images = _images(evidence.arrived)
    peer = evidence.expected_from or "the sending peer"
    if evidence.expected is not None and evidence.arrived >= evidence.expected:
        told = "" if evidence.arrived == evidence.expected else f", and {evidence.arrived - evidence.expected} more"
        return Close(f"all {_images(evidence.expected)} that {peer} announced arrived{told}")

    if evidence.expected is not None:
        silence_s = max(max_wait_s, quiet_s)
        known = f"{evidence.arrived} of {_images(evidence.expected)} that {peer} announced arrived"
    elif evidence.open_associations:
        silence_s = max(quiet_unreleased_s, quiet_s)
        known = f"{images} arrived, the sender is still connected"
    elif not evidence.released:
        silence_s = max(quiet_unreleased_s, quiet_s)
        known = f"{images} arrived, the sender broke off without releasing its association"
    else:
        silence_s = quiet_s
        known = f"{images} arrived, the sender released its association"

    until = evidence.last_arrival + timedelta(seconds=silence_s)
    if now >= until:
        return Close(f"{known}, and nothing came for {silence_s:g} s")
    return Wait(until, f"{known}; closes after {silence_s:g} s without another")


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"
