"""Every page in a browser: for who cannot see well, or uses no mouse; and as pictures, for the documents."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pynetdicom.sop_class import Verification

from pacs_node.accounts import ADMIN
from pacs_node.web.access import NEEDS
from tests.everything import PASSWORD, Everything
from tests.harness import ROOT, Receiver, missing, need
from tests.pictures import shows_the_page_as_it_is, with_words

pytestmark = pytest.mark.timeout(900)
BROWSER = Path(__file__).parent / "ohif"
# pages that come of a button, and of names that are not in their address
BESIDES: list[tuple[str, list[str]]] = [
    ("/peers", ["form[action='/peers/test'] button"]),
    ("/peers/edit?name=pacs", ["button[value=test]"]),
    ("/peers/edit", ["button[value=save]"]),
    ("/notices/edit", ["button[value=save]"]),
    ("/routes/edit?name=chest", ["button[value=try]"]),
    ("/routes/edit", ["button[value=check]"]),
    ("/?q=nothing", []),
    ("/nosuch", []),
]

GERMAN = ("/#de", "/queue#de", "/series/{chest}#de", "/routes/edit?name=chest#de")  # in the other language

VIEWED = ("chest CT", "breast ultrasound")  # each takes a browser without a graphics card seconds
SERIES = (*VIEWED, "CT of too few slices", "failed CT", "running CT", "of no route")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    everything = Everything(tmp_path_factory.mktemp("everything"), size=128)
    everything.ready()
    yield everything
    everything.close()


def addresses(everything: Everything, address: str) -> list[str]:
    """Of every page: what of the table answers with one, for every series."""
    token = everything.accounts.add_token("who-looks", ADMIN, 1)
    headers = {"authorization": f"Bearer {token}", "accept": "text/html"}
    found = []
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        for path in NEEDS:
            series = {"/series/{uid}/view": VIEWED, "/series/{uid}/patient": VIEWED[:1]}.get(path, SERIES)
            for uid in [everything.series[what] for what in series] if "{uid}" in path else [""]:
                asked = path.replace("{uid}", uid)
                if "{" in asked or asked == "/api/changes":  # an endless answer
                    continue
                answer = client.get(asked)
                if answer.status_code == 200 and answer.headers["content-type"].startswith("text/html"):
                    found.append(asked)
    return found


@pytest.fixture(scope="module")
def met(everything: Everything) -> dict[str, dict[str, Any]]:
    """What is met on each page, as a list of problems."""
    if not (BROWSER / "node_modules" / "axe-core").is_dir():
        missing(f"axe-core is not installed; run `npm ci --ignore-scripts` in {BROWSER.relative_to(ROOT)}")
    with everything.served() as address:
        of_the_table = addresses(everything, address)
        assert {"/", "/peers/edit", "/routes/edit", "/settings", "/system", "/audit", "/queue"} < set(of_the_table)
        pages = [("/login", []), ("/login", ["main button"]), *((path, []) for path in of_the_table), *BESIDES]
        german = [path.format(chest=everything.series["chest CT"]) for path in GERMAN]
        pages += [("/nosuch#de", ["button[value=de]"]), *((path, []) for path in german)]
        command = [need("node"), str(BROWSER / "axe.mjs"), need("chromium"), address, "ana", PASSWORD]
        done = subprocess.run([*command, json.dumps(pages)], capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(seen) == len(pages)
    return {f"{path} {' '.join(clicks)}".strip(): page for (path, clicks), page in zip(pages, seen, strict=True)}


def test_axe_finds_nothing(met: dict[str, dict[str, Any]]) -> None:
    assert {path: page["violations"] for path, page in met.items() if page["violations"]} == {}


def test_the_tab_key_comes_to_every_control_in_the_order_of_the_page_and_it_shows(
    met: dict[str, dict[str, Any]],
) -> None:
    problems = {
        path: {
            "missed": page["missed"],
            "focus not shown": [each["what"] for each in page["order"] if not each["outlined"]],
            "out of view": [each["what"] for each in page["order"] if not each["inView"]],
        }
        for path, page in met.items()
    }
    assert {path: each for path, each in problems.items() if any(each.values())} == {}
    for path, page in met.items():
        numbers = [each["number"] for each in page["order"]]
        assert numbers == sorted(numbers), path
        assert len(numbers) > 2, path
        german = "#de" in path
        assert page["lang"] == ("de" if german else "en"), path
        assert page["skipped"] == ["Zum Inhalt springen" if german else "Skip to the content", "main"], path
    viewers = [page for path, page in met.items() if path.endswith("/view")]
    assert any("<canvas" in each["what"] for page in viewers for each in page["order"]), "the viewer takes keys"


# Pictures for the documents ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    path: str  # {chest}: the UID of the chest CT
    press: str | None
    top: str  # what the picture begins with
    height: int
    fill: tuple[tuple[str, str], ...] = ()  # before that


ROW = "[name='condition.{}'] >> nth=1"
THICKNESS = ((ROW.format("keyword"), "SliceThickness"), (ROW.format("value"), "6"))
SHOTS = {
    "overview": Shot("/", None, "header", 760),
    "page": Shot("/series/{chest}", None, "header", 1000),
    "try": Shot("/routes/edit?name=chest", "button[value=try]", "h1", 900, THICKNESS),
    "peers": Shot("/peers", "form[action='/peers/test'] button", "h1", 640),
    "queue": Shot("/queue", None, "h1", 640),
    "system": Shot("/system", None, "h1", 760),
    "shadow": Shot("/shadow?route=breast%2C%20tried&live=breast", None, "h1", 640),
    "feedback": Shot("/feedback", None, "h1", 300),
}


@pytest.fixture(scope="module")
def taken(everything: Everything, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture of each."""
    folder = tmp_path_factory.mktemp("pictures")
    asked = [
        {
            **asdict(shot),
            "path": shot.path.format(chest=everything.series["chest CT"]),
            "file": str(folder / f"{name}.whole.png"),
        }
        for name, shot in SHOTS.items()
    ]
    pacs = Receiver("PACS", everything.pacs_port, commits=True)
    pacs._ae.add_supported_context(Verification)
    with pacs, everything.served() as address:
        command = [need("node"), str(BROWSER / "pictures.mjs"), need("chromium"), address, "ana", PASSWORD]
        done = subprocess.run([*command, json.dumps(asked)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for name, words in zip(SHOTS, done.stdout.splitlines(), strict=True):
        with_words(folder / f"{name}.whole.png", json.loads(words), folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in SHOTS}


@pytest.mark.parametrize("name", SHOTS)
def test_a_picture_in_the_documents_shows_the_page_as_it_is(taken: dict[str, Path], name: str) -> None:
    shows_the_page_as_it_is(taken[name])
