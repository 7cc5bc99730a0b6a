"""The pages in a browser: on a telephone nothing has to be scrolled sideways, whatever a series is called."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from pacs_node.web.app import create_app
from tests.harness import ROOT, free_port, missing, need, wait_for
from tests.unit.test_web import InMemory, job

BROWSER = Path(__file__).parent / "ohif"
LONG = "Thorax_1.0_B31f_" * 4  # Series Description holds 64 characters, and need not hold a space
WHY = f"no rule matches: chest: SeriesDescription is {LONG}, rule wants /^(lung|thorax|chest){'x' * 80}$/"


def pages(
    width: int, *addresses: str, dark: bool = False, picture: Path | None = None, language: str = "en"
) -> list[dict[str, Any]]:
    """What Chromium sees at a width in CSS pixels; `picture` is taken of the last page. language: what it reads."""
    if not (BROWSER / "node_modules").is_dir():
        missing(f"playwright-core is not installed; run `npm ci --ignore-scripts` in {BROWSER.relative_to(ROOT)}")
    asked = [part for address in addresses for part in (address, "-")]
    if picture is not None:
        asked[-1] = str(picture)
    command = [
        need("node"),
        str(BROWSER / "pages.mjs"),
        need("chromium"),
        str(width),
        "844",
        "dark" if dark else "light",
    ]
    done = subprocess.run(
        [*command, *asked],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "READS": language},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def busy() -> InMemory:
    """Everything that a page can show, as long as it can be."""
    facts = InMemory(*range(55))
    for series in facts.all[-3:]:
        series |= {"description": LONG, "series_uid": "1.2.826.0.1.3680043.8.498." + "1" * 38, "revision": 12}
        series["jobs"] = [
            job("infer", state="failed", reason="x" * 200, warnings=["w" * 120], facts={"detector" * 9: "v" * 90}),
            job("send", state="waiting", reason=WHY, receipts=series["jobs"][1]["receipts"], priority=1),
            job("confirm", destination="d" * 64, state="superseded"),
            *series["jobs"],
        ]
        series["rules"] = [{"rule": "r" * 64, "matched": False, "why_not": WHY}]
        series["timeline"] = [{"at": "2026-03-01T13:00:20.000+00:00", "event": "taken over", "text": "y" * 150}]
    need_one = {"job": "job-send", "kind": "send", "destination": "pacs", "state": "failed"}
    facts.status |= {
        "status": "degraded",
        "reasons": [WHY, "z" * 150],
        "attention": [{**need_one, "series_uid": facts.all[-1]["series_uid"]}],
    }
    facts.held_back = {f"01-{'SEG' * 30}.dcm": Path("none")}
    return facts


@pytest.fixture
def served(busy: InMemory) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(busy, CollectorRegistry()), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, 20, "the pages")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.mark.parametrize(
    ("width", "language"), [(390, "en"), (390, "de"), (320, "en"), (720, "en"), (768, "en"), (870, "en"), (1280, "en")]
)
def test_nothing_is_scrolled_sideways(served: str, busy: InMemory, width: int, language: str) -> None:
    uid = busy.all[-1]["series_uid"]
    busy.all[-2] = {**busy.all[-2], "series_uid": "1.2.3", "jobs": []}  # closed, and nothing runs: "Run again"
    paths = [
        "/",
        f"/series/{uid}",
        "/series/1.2.3",
        "/destinations",
        "/rerun",
        f"/series/{'9' * 60}",
        "/?before=2026-03-01T12:05:00Z",
        "/?q=Thorax&trouble=1&sort=slowest",
        "/system",
        "/refusals",
        "/queue",
    ]
    for seen in pages(width, *(served + path for path in paths), language=language):
        assert seen["lang"] == language
        assert seen["wide"] == [], seen["url"]
        assert all(left >= 0 and right <= width for _, left, right in seen["buttons"]), seen


def test_the_list_shows_what_comes_while_it_is_open_and_leaves_a_choice_alone(served: str, busy: InMemory) -> None:
    """Without a reload; the browser asks for events, and for the page when there is one."""
    if not (BROWSER / "node_modules").is_dir():
        missing(f"playwright-core is not installed; run `npm ci --ignore-scripts` in {BROWSER.relative_to(ROOT)}")
    command = [need("node"), str(BROWSER / "live.mjs"), need("chromium"), served + "/"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as browser:
        assert browser.stdout is not None
        assert browser.stdin is not None
        said = browser.stdout
        assert said.readline().strip() == "open"
        busy.all[-1]["description"] = "Came-meanwhile"
        busy.stamps = ["8-x"]
        assert said.readline().strip() == "seen, not reloaded"
        assert said.readline().strip() == "chosen"
        busy.all[-1]["description"] = "Came-later"
        busy.stamps = ["9-x"]
        browser.stdin.write("go on\n")
        browser.stdin.flush()
        assert said.readline().strip() == "the choice stands"
        assert browser.wait(60) == 0
