"""A day of an administrator in a real Chromium: over HTTPS, with a real Orthanc that takes TLS alone."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from pacs_node.accounts import ADMIN, WRONG_IN_A_ROW
from pacs_node.records import FEEDBACK_KINDS
from pacs_node.web.app import create_app
from pacs_node.web.oidc import SingleSignOn
from tests.certificates import Authority
from tests.everything import PASSWORD, TOML, Everything
from tests.harness import Orthanc, free_port, missing, wait_for
from tests.interop.test_oidc import HERE as PROVIDER
from tests.interop.test_oidc import provider
from tests.interop.test_viewer import Page
from tests.viewers import served

pytestmark = pytest.mark.timeout(600)
TLS = """
[tls]
own_certificate = "{folder}/node.crt"
own_key = "{folder}/node.key"
trusted = "{folder}/hospital-ca.pem"
"""
PACS = 'name = "pacs"\n'


class Place(Everything):
    """Everything that pages can show, with a PACS to talk to and somebody to ask who a person is."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        self.certificates = {name: authority.issue(name) for name in ("node", "pacs", "pages")}
        self.web_port, self.issuer_port = free_port(), free_port()
        toml = TOML.replace(PACS, PACS + "tls = true\n") + TLS.format(folder=folder)
        super().__init__(folder, toml=toml)
        self.accounts.add("leo", ADMIN, PASSWORD)
        self.accounts.single_sign_on = True
        self.accounts.audit = self.node.audit
        mine = self.certificates["pacs"]
        settings = {
            "DicomPort": self.pacs_port,
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(mine.certificate),
            "DicomTlsPrivateKey": str(mine.key),
            "DicomTlsTrustedCertificates": str(authority.certificate),
            "DicomTlsRemoteCertificateRequired": True,
        }
        self.orthanc = Orthanc(folder / "orthanc", aet="PACS", settings=settings)

    @property
    def number(self) -> int:
        return len(set(self.series.values()))

    def app(self, *_: Any) -> Starlette:
        sign_on = SingleSignOn(provider(f"http://127.0.0.1:{self.issuer_port}"))
        return create_app(
            self.facts, CollectorRegistry(), (), self.accounts, self.node.audit, secure=True, single_sign_on=sign_on,
            desk=self.node.desk(),
        )  # fmt: skip


PILLS = ".scroll:last-of-type tbody tr .pill"


class Person:
    """At a browser."""

    def __init__(self, page: Page, place: Place, address: str) -> None:
        self.page, self.place, self.address = page, place, address

    def comes(self, name: str = "ana", password: str = PASSWORD, onward: str = "/login") -> str:
        """With a browser of her own; what the page says then."""
        assert self.page.do("open", url=self.address + onward, trusts=True) == 200
        return self.gives(name, password)

    def gives(self, name: str, password: str) -> str:
        self.page.do("fill", field="name", value=name)
        self.page.do("fill", field="password", value=password)
        return self.presses("Log in")

    def goes(self, path: str, status: int = 200) -> str:
        assert self.page.do("go", url=self.address + path) == status
        return self.reads()

    def fills(self, **fields: str) -> None:
        for field, value in fields.items():
            self.page.do("fill", field=field, value=value)

    def presses(self, words: str, within: str = "main") -> str:
        self.page.do("follow", words=words, within=within)
        return self.reads()

    def reads(self) -> str:
        return " ".join(self.page.do("text").split())

    def counts(self, selector: str) -> int:
        return int(self.page.value(f"document.querySelectorAll({selector!r}).length"))

    def lists(self, selector: str) -> list[str]:
        """What stands in each of these."""
        words = f"[...document.querySelectorAll({selector!r})].map(each => each.textContent.trim())"
        return list(self.page.value(words))

    @property
    def path(self) -> str:
        return str(self.page.do("where")).removeprefix(self.address)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    place = Place(tmp_path_factory.mktemp("place"))
    pages = place.certificates["pages"]
    how = {"ssl_certfile": str(pages.certificate), "ssl_keyfile": str(pages.key)}
    with place.orthanc, served(place.app(), place.web_port, **how) as address:
        yield place, address
    place.close()


@pytest.fixture(scope="module")
def browser(place: tuple[Place, str]) -> Iterator[Page]:
    page = Page()
    page.do("open", url=f"{place[1]}/login", trusts=True)
    yield page
    page.close()


@pytest.fixture
def ana(place: tuple[Place, str], browser: Page) -> Iterator[Person]:
    person = Person(browser, *place)
    person.goes("/")
    if person.path.startswith("/login"):  # she was not here before
        person.gives("ana", PASSWORD)
    assert person.path == "/"
    yield person
    # a list that is left when somebody logs out may still ask what has changed
    assert [each for each in person.page.do("errors") if "401" not in each] == []


def test_who_logs_in_is_known_until_she_logs_out(ana: Person) -> None:
    assert ana.page.value("[location.protocol, document.cookie]") == ["https:", ""], "no script sees the key"
    with pytest.raises(httpx.TransportError):
        httpx.get(ana.address.replace("https", "http"), timeout=10)
    ana.goes("/queue")
    assert "ana" in ana.page.value("document.querySelector('form.who').textContent")
    ana.presses("Log out", "header")
    assert ana.path.startswith("/login")
    ana.goes("/settings")
    assert ana.path.startswith("/login?next=")
    said = ana.gives("ana", PASSWORD)
    assert ana.path == "/settings", "onward to where she wanted"
    assert "History" in said


def test_who_guesses_is_locked_out_and_nobody_else(place: tuple[Place, str], browser: Page) -> None:
    leo = Person(browser, *place)
    said = leo.comes("leo", "not his password")
    assert "name or password is wrong" in said
    for _ in range(WRONG_IN_A_ROW - 1):
        leo.gives("leo", "not his password")
    assert "locked for a while" in leo.gives("leo", PASSWORD), "the right one does not help now"
    assert leo.goes("/queue") and leo.path.startswith("/login")  # noqa: PT018
    leo.gives("rita", PASSWORD)
    assert leo.path == "/queue"
    assert leo.goes("/audit", 403)
    leo.comes()
    leo.place.node.audit.flush()
    assert "the user is locked" in leo.goes("/audit")


def test_a_pipeline_is_paused_and_what_waits_is_hurried(ana: Person) -> None:
    queue = ana.goes("/queue")
    assert "inference" in queue.lower()
    ana.fills(what="pipeline lung-nodule", reason="the card is under suspicion", hours="2")
    said = ana.presses("Pause")
    assert "the card is under suspicion" in said
    assert "paused" in ana.goes("/")
    ana.goes("/queue")
    waits = f"td a[href^='/series/{ana.place.series['queued CT']}']"
    of_it = f"tr:has({waits})"
    assert ana.counts(waits) == 1
    for button, priority in (("STAT", 1), ("Next", 0)):
        ana.goes("/queue")
        ana.presses(button, of_it)
        [job] = [each for each in ana.place.node.ledger.open_jobs() if each.series_uid == ana.place.series["queued CT"]]
        assert job.priority == priority
    ana.goes("/queue")
    pause = "form[action='/api/resume']:has(input[value='pipeline lung-nodule'])"
    ana.presses("Resume", pause)
    ana.goes("/queue")
    assert ana.counts(pause) == 0
    assert ana.counts("form[action='/api/resume']") == 1, "what another paused stays so"


def test_the_list_is_narrowed_to_what_is_searched_and_to_trouble(ana: Person) -> None:
    every = ana.counts("table.list tbody tr")
    assert every == ana.place.number
    ana.fills(q="US2")
    ana.presses("Show")
    assert ana.counts("table.list tbody tr") == 2, "of that sender"
    ana.goes("/")
    ana.fills(trouble="1")
    ana.presses("Show")
    assert "trouble=1" in ana.path
    uids = ana.page.value("[...document.querySelectorAll('table.list .uid')].map(each => each.title)")
    assert ana.place.series["failed CT"] in uids
    assert ana.place.series["breast ultrasound"] not in uids
    assert ana.presses("all")
    assert ana.counts("table.list tbody tr") == every


def test_many_are_retried_run_again_and_deleted_once_somebody_has_said_yes(ana: Person) -> None:
    series = ana.place.series

    def chosen(button: str, *names: str) -> str:
        ana.goes("/")
        for name in names:
            ana.fills(series=series[name])
        said = ana.presses(button, "fieldset.bulk:has(button)")
        assert f"{len(names)} series" in said
        return ana.presses(f"Yes, {len(names)} series")

    def states(name: str) -> list[str]:
        return [each["state"] for each in ana.place.facts.series(series[name])["jobs"] if each["kind"] == "infer"]  # type: ignore[index]

    assert states("failed CT")[-1] == "failed"
    assert "1 series" in chosen("Retry", "failed CT")
    assert "failed" not in states("failed CT")
    before = {name: ana.place.facts.series(series[name])["jobs"] for name in ("breast ultrasound", "chest CT")}  # type: ignore[index]
    chosen("Run again", *before)
    for name, jobs in before.items():
        assert ana.place.facts.series(series[name])["jobs"] != jobs, name  # type: ignore[index]
    said = chosen("Delete", "of no route")
    assert "Not 1" in said, "no result of it has arrived anywhere: it stays, and why is said"
    assert series["of no route"] in said
    assert ana.place.facts.series(series["of no route"])["state"] == "closed"  # type: ignore[index]


def test_a_peer_is_tested_over_tls_changed_and_deleted(ana: Person) -> None:
    ana.goes("/peers")
    row = "tr:has(input[name='name'][value='{}'])".format
    said = ana.presses("Test", row("pacs"))
    assert "pacs: nothing is bad" in said
    steps = ana.lists(".tested tbody .series")
    assert {"connection", "TLS", "C-ECHO", "results"} <= set(steps)
    ana.goes("/peers/edit?name=pacs")
    ana.fills(calls_from="127.0.0.1, 10.0.0.5")
    assert "10.0.0.5" in ana.presses("Save and use at once")
    peer = next(each for each in ana.place.node.config.peers if each.name == "pacs")
    assert peer.calls_from == ("127.0.0.1", "10.0.0.5")
    ana.goes("/peers/edit")
    ana.fills(name="passing", ae_title="PASSING", may_send="true")
    ana.presses("Save and use at once")
    assert "passing" in {each.name for each in ana.place.node.config.peers}
    ana.page.do("click", selector=f"{row('passing')} summary")
    ana.presses("Delete passing", row("passing"))
    assert "passing" not in {each.name for each in ana.place.node.config.peers}


def test_the_audit_trail_and_the_refusals_are_narrowed(ana: Person) -> None:
    ana.place.node.audit.flush()
    ana.goes("/audit")
    ana.fills(event="User Authentication", who="ana")
    ana.presses("Show", "main form")
    shown = ana.lists("tbody tr")
    assert shown
    assert all(re.search(r"Log(in|out)\b", each) and "ana" in each for each in shown), shown
    assert "There is no such event" in ana.goes("/audit?who=nobody-of-that-name")
    ana.goes("/refusals")
    kinds = ana.lists("dl.facts a")
    assert len(kinds) > 2
    ana.presses(kinds[0], "dl.facts")
    rows = ana.lists(PILLS)
    assert set(rows) == {kinds[0]}
    ana.presses("All refusals")
    ana.presses("CT9")
    assert ana.path == "/refusals?sender=CT9"
    assert set(ana.lists(PILLS)) == set(kinds)


def test_a_route_is_tried_on_the_series_of_the_last_days(ana: Person) -> None:
    ana.goes("/routes/edit?name=chest")
    ana.page.do("fill", field="condition.keyword", value="SliceThickness", number=1)
    ana.page.do("fill", field="condition.value", value="6", number=1)
    ana.fills(days="30")
    said = ana.presses("Try")
    assert f"{ana.place.number} series of the last 30 days" in said
    assert "no longer" in said
    ana.page.do("fill", field="condition.value", value="", number=1)
    ana.page.do("fill", field="condition.keyword", value="", number=1)
    assert "Nothing would change for any of them" in ana.presses("Try")


def test_what_was_found_is_judged_and_taken_home(ana: Person) -> None:
    """Feedback of every kind; each result as it was sent, all of several series, and the findings as a table."""
    uid, facts = ana.place.series["chest CT"], ana.place.facts
    wait_for(lambda: (facts.findings(uid, 1.0) or {}).get("state") == "ready", 120, "the findings")
    view = f"/series/{uid}/view"
    says = f"form.says[action='/api/series/{uid}/feedback']:has(select)"
    kinds = {kind: words for kind, words in FEEDBACK_KINDS.items() if kind != "missed"}
    for kind in kinds:
        ana.goes(view)
        ana.fills(kind=kind)
        ana.presses("Say", says)
    ana.goes(view)
    ana.page.do("click", selector="details:has(form.missed) summary")
    ana.fills(image="1", column="10", row="12")
    ana.presses("Say", "form.missed")
    said = [each for each in facts.feedback() if each["reader"] == "ana" and each["series_uid"] == uid]
    assert sorted(each["kind"] for each in said) == sorted(FEEDBACK_KINDS)
    assert all(words in ana.goes(view) for words in kinds.values())
    ana.goes("/feedback")
    assert "1" in ana.lists("td.number")
    got = ana.page.do("download", words="All of it as CSV")
    rows = list(csv.DictReader(Path(got["path"]).read_text().splitlines()))
    assert {row["kind"] for row in rows if row["reader"] == "ana"} == set(FEEDBACK_KINDS)

    ana.goes(f"/series/{uid}")
    for each in facts.results_of(uid):
        got = ana.page.do("download", words=each["sop_instance_uid"])
        assert got["name"] == f"{each['sop_instance_uid']}.dcm"
        assert Path(got["path"]).read_bytes() == facts.result_file(each["job"], got["name"])
    ana.goes(view)
    got = ana.page.do("download", words="as CSV")
    assert {row["series_uid"] for row in csv.DictReader(Path(got["path"]).read_text().splitlines())} == {uid}
    ana.goes("/")
    for name in ("chest CT", "breast ultrasound"):
        ana.fills(series=ana.place.series[name])
    got = ana.page.do("download", words="Results as ZIP")
    with zipfile.ZipFile(got["path"]) as archive:
        there = {name for name in archive.namelist() if name.endswith(".dcm")}
    chosen = [(ana.place.series[name], each) for name in ("chest CT", "breast ultrasound")
              for each in facts.results_of(ana.place.series[name])]  # fmt: skip
    assert there == {f"{series}/{each['pipeline']}/{each['sop_instance_uid']}.dcm" for series, each in chosen}


def test_a_shadow_is_held_against_what_is_live(ana: Person) -> None:
    ana.goes("/shadow")
    beside = [each for each in ana.lists("main section a") if each.startswith("Beside")]
    said = ana.presses(beside[0])
    query = dict(parse_qsl(ana.path.partition("?")[2]))
    told = ana.place.facts.compared(query["route"], query["live"])
    assert f"{told['series']} that both ran on" in said
    found = told["found"]
    assert f"{found['both']} found by both, {found['live_alone']} by the live route alone" in said
    got = ana.page.do("download", words="As CSV")
    rows = list(csv.DictReader(Path(got["path"]).read_text().splitlines()))
    assert [row["series_uid"] for row in rows] == [each["series_uid"] for each in told["each"]]
    assert ana.presses("Make it live, or stop it")
    assert ana.path == f"/routes/edit?name={quote(query['route'], safe='')}"


@pytest.fixture
def asked(place: tuple[Place, str], tmp_path: Path) -> Iterator[None]:
    """Somebody to ask who a person is."""
    program = shutil.which("node")
    if program is None or not (PROVIDER / "node_modules" / "oidc-provider").is_dir():
        missing("oidc-provider is not installed: npm ci --prefix tests/interop/oidc --ignore-scripts")
    command = [program, str(PROVIDER / "provider.mjs"), str(place[0].issuer_port), f"{place[1]}/oidc/callback"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=PROVIDER)
    wait_for(lambda: b"listening" in (tmp_path / "log").read_bytes() or process.poll() is not None, 90, "the provider")
    yield
    process.terminate()
    process.wait(30)


@pytest.mark.usefixtures("asked")
def test_a_person_comes_in_by_single_sign_on(place: tuple[Place, str], browser: Page) -> None:
    rae = Person(browser, *place)
    assert browser.do("open", url=f"{rae.address}/login?next=/queue", trusts=True) == 200
    browser.do("follow", words="Log in by single sign-on")
    assert str(browser.do("where")).startswith(f"http://127.0.0.1:{rae.place.issuer_port}/interaction/")
    rae.fills(login="rae", password="any")
    browser.do("follow", words="Sign-in")
    browser.do("follow", words="Continue")
    wait_for(lambda: rae.path == "/queue", 60, "to be back")
    assert "rae" in browser.value("document.querySelector('form.who').textContent")
    assert rae.goes("/settings", 403)
    rae.goes("/queue")
    rae.presses("Log out", "header")
    assert rae.path.startswith("/login")
