"""`make fuzz`: 100 000 wrong inputs against a running node, all of them drawn from SEED.

python -m tests.fuzz --seed 1 --inputs 100000 --json docs/results/fuzz.json
python -m tests.fuzz --seed 1 --replay conversations:1234    one input again, on a node of its own
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.fault.results import load, measured_on
from tests.fuzz.campaign import Campaign, Use, mixed, work
from tests.fuzz.data_sets import SERIES_OF
from tests.harness import wait_for

WARM_UP = 0.1  # of all inputs, until everything that is kept once is there
GROWTH_MB, SLOWEST_S = 50, 1.0


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--seed", default="1")
    words.add_argument("--inputs", type=int, default=100_000)
    words.add_argument("--hands", type=int, default=6, help="who say them at the same time")
    words.add_argument("--minutes", type=float, default=float("inf"), help="begin no further input after so long")
    words.add_argument("--replay", help="one input: conversations:N, data_sets:N or bodies:N")
    words.add_argument("--json", type=Path, help="a file for the figures")
    words.add_argument("--keep", type=Path, help="a folder for the node, which is kept")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return replay(folder, asked) if asked.replay else run(folder, asked)


def run(folder: Path, asked: argparse.Namespace) -> int:
    load_began = load()
    campaign = Campaign(folder, asked.seed)
    conversations, data_sets = int(asked.inputs * 0.35), int(asked.inputs * 0.35) // SERIES_OF * SERIES_OF
    bodies = max(0, asked.inputs - conversations - data_sets)
    warm = int(WARM_UP * asked.inputs) // SERIES_OF * SERIES_OF // 3 // SERIES_OF * SERIES_OF
    began = time.monotonic()

    def goes_on() -> bool:
        return campaign.node.alive and time.monotonic() < began + 60 * asked.minutes

    with campaign.running():
        process = campaign.node.process
        assert process is not None
        work(mixed(campaign, warm, warm, warm), asked.hands, goes_on)
        before = Use.of(process.pid)
        told(campaign, "warm", before, began)
        parts = 20
        for part in range(parts):
            share = [
                -(-(count - warm) // parts // SERIES_OF) * SERIES_OF for count in (conversations, data_sets, bodies)
            ]
            first = warm + part * max(share)
            work(mixed(campaign, *share, first=first), asked.hands, goes_on)
            told(campaign, f"part {part + 1} of {parts}", Use.of(process.pid), began)
            if not goes_on():
                break
        campaign.rest()
        found = settled(campaign, before)
        after, crashes = Use.of(process.pid), int(not campaign.node.alive)
        if not crashes and campaign.node.terminate() != 0:
            found.append("it did not end with 0")
    answers = campaign.peer.said + campaign.web.said
    slowest = max(campaign.watch.honest_s)
    growth = round(after.rss_mb - before.rss_mb, 1) if not crashes else None
    figures = {
        "seed": asked.seed,
        "conversations": campaign.watch.inputs["conversations"],
        "data_sets": campaign.watch.inputs["data_sets"],
        "bodies": campaign.watch.inputs["bodies"] + answers.total(),
        "answers": dict(answers),
        "crashes": crashes,
        "hangs": len(campaign.watch.hangs),
        "growth_mb": growth,
        "slowest_honest_s": round(slowest, 3),
        "honest": len(campaign.watch.honest_s),
        "statuses": dict(sorted(campaign.watch.statuses.items())),
        "seconds": round(time.monotonic() - began),
        "load_began": load_began,
        **measured_on(),
    }
    if growth is not None and growth > GROWTH_MB:
        found.append(f"its memory grew by {growth:.0f} MB")
    if slowest > SLOWEST_S:
        found.append(f"an honest sender waited for {slowest:.2f} s")
    print(json.dumps(figures, indent=1))
    print("\n".join(found) or "nothing found", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({**figures, "found": found[:50]}, indent=1) + "\n")
    return bool(found)


def told(campaign: Campaign, what: str, use: Use, began: float) -> None:
    watch, answers = campaign.watch, campaign.peer.said + campaign.web.said
    print(
        f"{time.monotonic() - began:6.0f} s {what}: {dict(watch.inputs)}, {answers.total()} answers, {use}, "
        f"slowest honest {max(watch.honest_s, default=0):.2f} s, wrong {len(watch.wrong)}, hangs {len(watch.hangs)}, "
        f"unserved {len(watch.unserved)}",
        flush=True,
    )


def settled(campaign: Campaign, before: Use) -> list[str]:
    """What is wrong once all is said and what was opened is closed."""
    process = campaign.node.process
    assert process is not None
    if not campaign.node.alive:
        return ["the node ended", campaign.node.log()]
    with suppress(AssertionError):
        wait_for(lambda: left_behind(before, Use.of(process.pid)) is None, 60, "descriptors closed")
    left = left_behind(before, Use.of(process.pid))
    return [*campaign.after(), *([left] if left else [])]


def left_behind(before: Use, now: Use) -> str | None:
    if now.threads <= before.threads + 10 and now.descriptors <= before.descriptors + 100:  # packs and pools
        return None
    return f"left behind: {before} -> {now}"


def replay(folder: Path, asked: argparse.Namespace) -> int:
    group, number = asked.replay.split(":")
    campaign = Campaign(folder, asked.seed)
    do = {"conversations": campaign.converse, "data_sets": campaign.store, "bodies": campaign.ask}[group]
    with campaign.running():
        do(int(number) // SERIES_OF * SERIES_OF if group == "data_sets" else int(number))
        time.sleep(3)
        campaign.rest()
        found = campaign.after() if campaign.node.alive else ["the node ended", campaign.node.log()]
    print("\n".join(found) or "nothing found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
