"""What the pages offer, to each role: no link and no button leads to "this needs the role ..."."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.testclient import TestClient

from pacs_node.accounts import ADMIN, READER, VIEWER, Accounts
from pacs_node.web.access import NEEDS
from pacs_node.web.app import create_app
from tests.factories import us_image
from tests.harness import wait_for
from tests.results import ball, encoded, mass, us_findings
from tests.unit.test_settings_pages import Pages
from tests.unit.test_web import InMemory, job
from tests.viewers import Seen

PASSWORD = "a long enough secret"
NOBODY = "nobody: there are no users"
TOML = """
[node]
data_dir = "data"
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["results"]
"""
NOT_ASKED = ("/logout", "/oidc/login", "/oidc/logout")  # which end the session, or lead to a sign-on that is not there
# pages that a person comes to by a link that is there only sometimes, or by a button
FURTHER = ("/login", "/pipelines/lung-nodule", "/pipelines/lung-nodule/card", "/routes/edit", "/peers/edit", "/rerun")


@dataclass
class Form:
    action: str
    method: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    buttons: list[tuple[str, tuple[str, str] | None]] = field(default_factory=list)  # where it leads, what it says
    written_in: bool = False  # a line of text can be entered: Enter sends the form, button or not


class Offered(HTMLParser):
    """Whatever a person can press on a page: `links`, with what it shows by itself, and `forms`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.forms: list[Form] = []
        self._form: Form | None = None
        self._select: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {key: value or "" for key, value in attrs}
        self.links += [of[key] for key in ("href", "src", "poster") if key in of and tag != "link"]
        if tag == "form":
            self._form = Form(of["action"], of["method"])
            self.forms.append(self._form)
        if self._form is None:
            return
        kind = of.get("type", "submit" if tag == "button" else "text")
        if tag == "button" and kind == "submit":
            said = (of["name"], of["value"]) if "name" in of else None
            self._form.buttons.append((of.get("formaction", self._form.action), said))
        elif tag == "select":
            self._select = of["name"]
        elif tag == "option" and self._select is not None:
            self._form.fields.append((self._select, of.get("value", "")))
            self._select = None
        elif tag == "input":
            self._form.written_in |= kind not in ("hidden", "checkbox", "file", "radio")
            if kind != "file":
                self._form.fields.append((of["name"], of.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None


class Everything(InMemory):
    """Series in all the states that a page offers something of, and what else there may be."""

    def __init__(self, folder: Path) -> None:
        super().__init__(1, 2, 3, 4)
        at_rest, failed, deleted = self.all[1:]
        at_rest["jobs"] = [job("infer", state="refused", reason="gantry tilt")]
        failed["jobs"] = [job("send", id="job-failed", state="failed"), job("infer")]
        failed["jobs"][1]["results"] = self.all[0]["jobs"][0]["results"]
        deleted["state"] = "deleted"
        (segmentation, _) = encoded("ct_two")[1]
        segmentation.save_as(folder / "01-SEG.dcm", enforce_file_format=True)
        self.held_back = {"01-SEG.dcm": folder / "01-SEG.dcm"}
        self.status = {"status": "degraded", "ae_title": "AI", "dicom_port": 11112, "attention": []}
        self.pause("destination", "pacs", "ana")

    def bulk(self, do: str, series_uids: Any, by: str) -> dict[str, str | None]:
        return {"1.2.826.1": None}

    def shadows(self) -> list[dict[str, Any]]:
        shadow = {"route": "breast", "pipeline": "breast-us", "in_force": True, "states": {"done": 1}, "beside": {}}
        return [shadow]

    def viewer_address(self, study_uid: str, series_uid: str) -> str | None:
        return "https://ohif.example/viewer"


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    pages = Pages(tmp_path, TOML)
    for role in (VIEWER, READER, ADMIN):
        pages.accounts.add(f"the-{role}", role, PASSWORD)
    yield pages
    pages.node.stop()


@pytest.fixture
def browser(pages: Pages, request: pytest.FixtureRequest, tmp_path: Path) -> TestClient:
    role = request.param
    accounts = None if role == NOBODY else pages.accounts
    app = create_app(Everything(tmp_path), CollectorRegistry(), ["testserver"], accounts, desk=pages.node.desk())
    return _browser(app, f"the-{role}" if accounts is not None else None)


@pytest.mark.parametrize("browser", [VIEWER, READER, ADMIN, NOBODY], indirect=True)
def test_nothing_is_offered_that_is_refused(browser: TestClient) -> None:
    assert "POST /language" in _all_offered(browser), "what anybody may press"


@pytest.mark.parametrize("browser", [ADMIN], indirect=True)
def test_what_an_admin_may_is_offered_somewhere(browser: TestClient) -> None:
    """Else the test above would find nothing because nothing is shown."""
    offered = _all_offered(browser)
    buttons = {"/api/series/{uid}/rerun", "/api/jobs/{id}/retry", "/api/jobs/{id}/dismiss", "/api/jobs/{id}/priority"}
    buttons |= {"/api/bulk", "/api/export", "/api/patient", "/api/pause", "/api/resume", "/api/rerun"}
    buttons |= {"/peers/edit", "/peers/test", "/peers/delete", "/routes/edit", "/routes/delete"}
    assert {f"POST {each}" for each in buttons} <= offered
    assert {"GET /api/jobs/{id}/rejected/{name}", "GET /rerun", "GET /audit", "GET /settings"} <= offered


@pytest.mark.parametrize("role", [VIEWER, READER, ADMIN, NOBODY])
@pytest.mark.parametrize("frames", [1, 6])
def test_nothing_is_offered_beside_findings_that_is_refused(role: str, frames: int, tmp_path: Path) -> None:
    """Of a real node: images that may show a name, which a viewer does not get."""
    (tmp_path / "images").mkdir()
    shape, place = ((60, 80), (2, 20, 30)) if frames > 1 else ((300, 400), (0, 112, 120))
    image = us_image(tmp_path / "images", shape=shape, frames=frames, BurnedInAnnotation=None)
    found = mass(1, place, ball(3, 10, 14)) if frames > 1 else mass(1, place)
    seen = Seen(tmp_path, sorted((tmp_path / "images").iterdir()), us_findings([image], found))
    try:
        accounts = None
        if role != NOBODY:
            accounts = Accounts(seen.node.ledger, lambda: datetime.now(UTC))
            accounts.add("somebody", role, PASSWORD)
        browser = _browser(seen.app(accounts), "somebody" if accounts is not None else None)
        for made in (seen.facts.findings, seen.facts.volume):
            wait_for(lambda made=made: made(seen.uid, 1.0)["state"] != "preparing", 120, "what is looked at")
        offered = _all_offered(browser)
        assert ("POST /api/series/{uid}/feedback" in offered) is (role != VIEWER)
        assert ("GET /api/series/{uid}/view/{name}" in offered) is (role != VIEWER)
    finally:
        seen.close()


def _browser(app: Starlette, name: str | None) -> TestClient:
    browser = TestClient(app, follow_redirects=False, headers={"accept": "text/html"})
    if name is not None:
        assert browser.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
    return browser


def _all_offered(browser: TestClient) -> set[str]:
    """Every address of NEEDS that is reached from the first page on, each asked as a person would; none is refused."""
    to_ask = ["/", *(each for each in FURTHER if browser.get(each).status_code == 200)]
    to_press: list[tuple[str, str]] = []  # where, and what the form says, as a browser would send it
    done, offered = set[str](), set[str]()
    while to_ask or to_press:  # looked at first: what is pressed may change what there is
        if to_ask:
            address = said = to_ask.pop()
            answer = browser.get(address) if address not in done else None
        else:
            address, form = to_press.pop(0)
            said = f"{address} {form}"
            headers = {"content-type": "application/x-www-form-urlencoded"}
            answer = browser.post(address, content=form, headers=headers) if said not in done else None
        if answer is None:
            continue
        done.add(said)
        assert answer.status_code != 403, f"{said}: {answer.text}"
        if not answer.headers.get("content-type", "").startswith("text/html"):
            continue
        found = Offered(answer.text)
        for link in found.links:
            where = urljoin(f"http://testserver{address}", link)
            path = where.removeprefix("http://testserver").partition("#")[0]
            if path.startswith("/") and not path.startswith("/static/") and urlsplit(path).path not in NOT_ASKED:
                offered.add(f"GET {_pattern(urlsplit(path).path)}")
                to_ask.append(path)
        for each in found.forms:
            for where, own in each.buttons or ([(each.action, None)] if each.written_in else []):
                if urlsplit(where).path not in NOT_ASKED:
                    offered.add(f"{each.method.upper()} {_pattern(urlsplit(where).path)}")
                    if each.method == "post":
                        to_press.append((where, urlencode([*each.fields, *([own] if own else [])])))
    return offered


def _pattern(path: str) -> str:
    """The address of NEEDS that a path is one of."""
    parts = path.split("/")
    for pattern in NEEDS:
        of = pattern.split("/")
        if len(of) == len(parts) and all(a == b or a.startswith("{") for a, b in zip(of, parts, strict=True)):
            return pattern
    raise AssertionError(f"{path} is no address of the node")
