"""Peers, routes and history as pages: who sees, who changes, what a form means, and what no page shows."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from html import escape, unescape
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from config import Config, Notify, Peer, Route, load
from models import catalogue
from pacs_node.accounts import ADMIN, READER, VIEWER, Accounts
from pacs_node.doctor import examine, for_the_other_side
from pacs_node.facts import NodeFacts
from pacs_node.node import Node
from pacs_node.settings_desk import IN_THE_FILE_ALONE, _has_field
from pacs_node.web.app import create_app
from pacs_node.web.settings_views import KEPT_S, MOST_KEPT, Entered
from pacs_node.web.uploads import LONGEST_UPLOAD
from tests.certificates import Authority
from tests.factories import us_image
from tests.harness import Receiver, free_port
from tests.viewers import Seen, served

SECRET = "a-token-that-is-secret"
TOML = f"""
[node]
data_dir = "data"
[[notify]]
name = "night"
urls = ["mailtos://me:{SECRET}@mail.example?to=a@example.org"]
again_h = 12.0 # half a day
# our PACS
[[peer]]
name = "pacs & <co>"
ae_title = "PACS"
host = "127.0.0.1"
port = 4242
may_send = true
[[peer]]
name = "web"
dicomweb_url = "https://archive.example/dicom-web"
dicomweb_token = "{SECRET}"
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = {{ Modality = "US", Manufacturer = {{ regex = "^A.*, Inc" }}, KVP = {{ absent = true }} }} # ours
pipeline = "breast-us"
send_to = ["results"]
"""
HTML = {"accept": "text/html"}
POSTS = ("/peers/edit", "/peers/delete", "/peers/test", "/routes/edit", "/routes/delete",
         "/notices/edit", "/notices/delete", "/notices/test",
         "/settings/undo", "/settings/reload")  # fmt: skip


class Pages:
    """A node on a settings file, and a browser for each role."""

    def __init__(self, folder: Path, toml: str = TOML) -> None:
        self.file = folder / "node.toml"
        self.file.write_text(toml)
        self.node = Node(load(self.file, catalogue()), file=self.file)
        self.node.ledger.migrate()
        assert self.node.settings is not None
        self.node.settings.started()
        self.tokens: dict[str, str] = {}
        accounts = self.accounts = Accounts(self.node.ledger, lambda: datetime.now(UTC))
        for role in (VIEWER, READER, ADMIN):
            self.tokens[role] = accounts.add_token(f"a-{role}", role, 1)
        self.app = create_app(
            NodeFacts(self.node), CollectorRegistry(), ["testserver"], accounts, desk=self.node.desk()
        )
        self.admin = self.browser(ADMIN)

    def browser(self, role: str) -> TestClient:
        headers = {**HTML, "authorization": f"Bearer {self.tokens[role]}"}
        return TestClient(self.app, follow_redirects=False, headers=headers)

    @property
    def config(self) -> Config:
        return self.node.config

    def form(self, address: str, source: str = "form") -> list[tuple[str, str]]:
        """What a browser sends of the form of a page that nothing was changed in."""
        page = self.admin.get(address)
        assert page.status_code == 200, page.text
        return form_of(page.text, source)

    def post(self, address: str, form: list[tuple[str, str]], client: TestClient | None = None, **files: Any) -> Any:
        data: dict[str, list[str]] = {}
        for name, value in form:
            data.setdefault(name, []).append(value)
        return (client or self.admin).post(address, data=data, files=files or None)


def form_of(page: str, source: str) -> list[tuple[str, str]]:
    """What a browser sends of a form of a page that nothing was changed in."""
    [form] = [each for each in re.findall(r"(?s)<form class=\"entry\".*?</form>", page)
              if f'name="source" value="{source}"' in each]  # fmt: skip
    said = []
    for tag in re.finditer(r"(?s)<input ([^>]*)>|<select name=\"([^\"]+)\"[^>]*>(.*?)</select>|"
                           r"<textarea name=\"([^\"]+)\"[^>]*>(.*?)</textarea>", form):  # fmt: skip
        attributes, select, options, area, text = tag.groups()
        if select:
            chosen = re.search(r"<option(?: value=\"([^\"]*)\")? selected>([^<]*)", options)
            first = re.search(r"<option(?: value=\"([^\"]*)\")?>([^<]*)", options)
            found = chosen or first
            assert found, select
            said.append((select, found[1] if found[1] is not None else found[2]))
        elif area:
            said.append((area, text))
        else:
            of = dict(re.findall(r'([\w-]+)="([^"]*)"', attributes))
            if of.get("type") == "file" or (of.get("type") == "checkbox" and " checked" not in attributes):
                continue
            said.append((of["name"], of.get("value", "")))
    return [(name, unescape(value)) for name, value in said]


def changed(form: list[tuple[str, str]], **values: str) -> list[tuple[str, str]]:
    there = {name for name, _ in form}
    return [(name, values.get(name, value)) for name, value in form] + [
        each for each in values.items() if each[0] not in there
    ]


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    pages = Pages(tmp_path)
    yield pages
    pages.node.stop()


def test_who_may_see_sees_and_who_may_change_changes(pages: Pages) -> None:
    for role in (VIEWER, READER):
        client = pages.browser(role)
        for address in ("/peers", "/routes"):
            page = client.get(address).text
            assert "breast" in page
            assert "<form" not in page.partition("<footer>")[0], "nothing that he may not press"
            assert "/edit" not in page
        for address in ("/settings", "/peers/edit", "/routes/edit", "/notices", "/notices/edit"):
            assert client.get(address).status_code == 403
        for address in POSTS:
            assert pages.post(address, [("name", "web")], client).status_code == 403, address
    assert pages.file.read_text() == TOML
    assert "/peers/edit?name=pacs%20%26%20%3Cco%3E" in pages.admin.get("/peers").text


def test_where_there_are_no_users_nobody_changes_settings(pages: Pages) -> None:
    app = create_app(NodeFacts(pages.node), CollectorRegistry(), ["testserver"], None, desk=pages.node.desk())
    client = TestClient(app, follow_redirects=False, headers=HTML)
    assert "Settings are changed here by users only" in text_of(client.get("/routes").text)
    for address in POSTS:
        answer = pages.post(address, [("name", "web"), ("id", "1")], client)
        assert answer.status_code == 403
        assert "pacs-node user add" in answer.text
    assert client.get("/settings").status_code == 403


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_no_page_of_another_site_presses_a_button(pages: Pages, headers: dict[str, str]) -> None:
    posts = {route.path for route in pages.app.routes if "POST" in (getattr(route, "methods", None) or ())}
    assert {path for path in posts if path.startswith(("/peers", "/routes", "/notices", "/settings"))} == set(POSTS)
    for address in POSTS:
        assert pages.admin.post(address, data={"name": "web"}, headers=headers).status_code == 403


def test_a_form_without_the_secret_of_the_session_is_refused(pages: Pages) -> None:
    pages.accounts.add("ana", ADMIN, "a long enough secret")
    client = TestClient(pages.app, follow_redirects=False, headers=HTML)
    client.post("/login", data={"name": "ana", "password": "a long enough secret"})
    csrf = re.findall(r'name="csrf" value="([^"]+)"', client.get("/routes/edit?name=breast").text)
    assert len(csrf) == 3, "log out, and a form on either side"
    form = changed(pages.form("/routes/edit?name=breast"), options="threads = 3")
    refused = pages.post("/routes/edit", form, client)
    assert "load the page again" in refused.text
    assert pages.post("/routes/edit", form, client, file=b"x").status_code == 403, "a form with a file, too"
    assert pages.post("/routes/edit", [*form, ("csrf", csrf[0])], client, file=b"x").status_code == 303
    assert pages.config.routes[0].options == {"threads": 3}
    assert pages.node.desk().history()[0]["who"] == "ana"  # type: ignore[union-attr]


def test_a_node_without_a_file_says_so(pages: Pages) -> None:
    app = create_app(NodeFacts(pages.node), CollectorRegistry(), ["testserver"], None)
    answer = TestClient(app).get("/peers", headers=HTML)
    assert answer.status_code == 503
    assert "without a settings file" in answer.text


@pytest.mark.parametrize("address", ["/peers/edit?name=pacs%20%26%20%3Cco%3E", "/peers/edit?name=web",
                                     "/peers/edit?name=results", "/routes/edit?name=breast",
                                     "/notices/edit?name=night"])  # fmt: skip
def test_a_form_that_nothing_was_changed_in_changes_nothing(pages: Pages, address: str) -> None:
    """Every field of every kind means what the file says: also secrets, which the page does not have."""
    answer = pages.post(address.partition("?")[0], changed(pages.form(address), do="save"))
    assert answer.status_code == 400
    assert "nothing is different" in answer.text
    assert pages.file.read_text() == TOML


NEEDS_OF_STUDY = """[route.needs]
series = [{ Modality = "US", SeriesDescription = "right" }]
wait_minutes = 45.0  # at night, too
"""


def test_what_a_route_needs_of_a_study_is_in_its_form(pages: Pages) -> None:
    pages.file.write_text(TOML + NEEDS_OF_STUDY)
    pages.node.reload()
    form = pages.form("/routes/edit?name=breast")
    unchanged = pages.post("/routes/edit", changed(form, do="save"))
    assert "nothing is different" in unchanged.text
    assert pages.file.read_text() == TOML + NEEDS_OF_STUDY
    shorter = dict(form)["needs"].replace("45.0", "5.0")
    assert pages.post("/routes/edit", changed(form, needs=shorter, do="save")).status_code == 303
    needs = pages.config.routes[0].needs
    assert needs is not None
    assert (needs.wait_minutes, [dict(each) for each in needs.series]) == (
        5.0,
        [{"Modality": "US", "SeriesDescription": "right"}],
    )
    form = pages.form("/routes/edit?name=breast")
    assert pages.post("/routes/edit", changed(form, needs="", do="save")).status_code == 303
    assert pages.config.routes[0].needs is None


ALSO = """# the surgeon
[[route.also]]
min_size_mm = 8 # or more
send_to = ["web"]
"""


def test_further_destinations_are_rows_of_the_form(pages: Pages) -> None:
    pages.file.write_text(TOML + ALSO)
    form = pages.form("/routes/edit?name=breast")
    answer = pages.post("/routes/edit", changed(form, do="save"))
    assert "nothing is different" in answer.text
    assert pages.post("/routes/edit", [("also.send_to", "pacs & <co>"), ("also.kinds", "Mass, mass"),
                                       ("also.min_size_mm", ""), ("also.categories", "malignant"),
                                       *form]).status_code == 303  # fmt: skip
    first, second = pages.config.routes[0].also
    assert (first.send_to, first.kinds, first.min_size_mm) == (("pacs & <co>",), ("Mass", "mass"), 0)
    assert (first.categories, second.categories) == (("malignant",), ())
    assert (second.send_to, second.kinds, second.min_size_mm) == (("web",), (), 8)
    page = unescape(pages.admin.get("/routes").text)
    assert "to pacs & <co> as well, if found: Mass or mass, malignant" in page
    assert "to web as well, if found: finding of at least 8 mm" in page
    assert pages.post("/routes/edit", changed(pages.form("/routes/edit?name=breast"), **{"also.send_to": ""})
                      ).status_code == 303  # fmt: skip
    assert pages.config.routes[0].also == ()


@pytest.mark.parametrize(("kind", "model"), [("peer", Peer), ("route", Route), ("notify", Notify)])
def test_every_setting_has_its_field(kind: str, model: type[Peer | Route | Notify]) -> None:
    without = {key for key, field in model.model_fields.items() if not _has_field(kind, key)}
    assert without == {key for of, key in IN_THE_FILE_ALONE if of == kind}


def test_a_peer_is_added_changed_and_deleted(pages: Pages) -> None:
    form = pages.form("/peers/edit")
    answer = pages.post(
        "/peers/edit", changed(form, name="new", ae_title="NEW", may_send="true", calls_from="10.0.0.7, ct")
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/peers")
    lines = '[[peer]]\nname = "new"\nae_title = "NEW"\nmay_send = true\ncalls_from = ["10.0.0.7", "ct"]\n'
    assert pages.file.read_text() == TOML.replace("[[route]]", f"\n{lines}[[route]]")
    new = pages.config.peer("new")
    assert (new.may_send, new.calls_from) == (True, ("10.0.0.7", "ct"))
    form = pages.form("/peers/edit?name=new")
    pages.post(
        "/peers/edit", changed([each for each in form if each[0] != "calls_from"], port="104", host="ct.example")
    )
    assert (pages.config.peer("new").port, pages.config.peer("new").calls_from) == (104, ())
    digest = dict(pages.form("/peers/edit"))["looked_at"]
    assert pages.post("/peers/delete", [("name", "new"), ("looked_at", digest)]).status_code == 303
    assert pages.file.read_text() == TOML


def test_what_check_would_say_is_said_and_what_was_entered_is_kept(pages: Pages) -> None:
    answer = pages.post("/peers/edit", changed(pages.form("/peers/edit"), name="new", ae_title="A" * 17, port="many"))
    assert answer.status_code == 400
    said = text_of(answer.text)
    assert "AE title 'AAAAAAAAAAAAAAAAA' has 17 characters; 16 are allowed" in said
    assert "'port' in [[peer]] 'new' must be a whole number, not 'many'" in said
    assert 'value="many"' in answer.text
    assert pages.file.read_text() == TOML


def test_a_peer_that_a_route_needs_is_not_deleted(pages: Pages) -> None:
    digest = dict(pages.form("/peers/edit"))["looked_at"]
    answer = pages.post("/peers/delete", [("name", "results"), ("looked_at", digest)])
    assert answer.status_code == 400
    assert "[[route]] 'breast': no peer 'results'" in text_of(answer.text)


PAGES = ("/peers", "/peers/edit?name=web", "/settings", "/routes", "/notices", "/notices/edit?name=night")


class Hook(BaseHTTPRequestHandler):
    """A program that is told."""

    heard: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def hook() -> Iterator[str]:
    """Its address, as Apprise has it."""
    Hook.heard.clear()
    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"json://127.0.0.1:{server.server_address[1]}/{SECRET}"
        server.shutdown()


def test_somebody_is_told_and_no_longer(pages: Pages, hook: str) -> None:
    """Tried before it is saved, saved, in force at once, tried by the button of the list, deleted."""
    form = changed(pages.form("/notices/edit"), name="chat", urls=f"{hook}\n", pipelines="breast-us", kinds="Mass")
    form = [each for each in form if each[0] != "about"] + [("about", "finding"), ("about", "jobs")]
    tried = pages.post("/notices/edit", changed(form, do="test"))
    assert "chat: the message was taken" in text_of(tried.text)
    assert pages.file.read_text() == TOML
    saved = pages.post("/notices/edit", changed(form, do="save"))
    assert (saved.status_code, saved.headers["location"]) == (303, "/notices")
    [_, chat] = pages.config.notices
    assert (chat.about, chat.pipelines, chat.kinds) == (("finding", "jobs"), ("breast-us",), ("Mass",))
    shown = text_of(pages.admin.get("/notices").text)
    assert "chat json finding, jobs Mass" in shown
    assert "the message was taken" in text_of(pages.post("/notices/test", [("name", "chat")]).text)
    assert len(Hook.heard) == 2
    assert not any(SECRET in pages.admin.get(address).text for address in PAGES)
    kept = changed(pages.form("/notices/edit?name=chat"), again_h="48", do="save")
    assert pages.post("/notices/edit", kept).status_code == 303
    assert pages.config.notices[1].urls == chat.urls, "an empty field keeps what the page does not show"
    digest = dict(pages.form("/notices/edit"))["looked_at"]
    assert pages.post("/notices/delete", [("name", "chat"), ("looked_at", digest)]).status_code == 303
    assert pages.file.read_text() == TOML


def back(answer: Any) -> list[tuple[str, str]]:
    """The form of a page that came back, as a browser sends it."""
    return form_of(answer.text, "form")


OF_SECRETS = {
    "notify": ("/notices/edit", {"name": "chat", "urls": "json://127.0.0.1:1/s3cret"}, lambda c: c.notices[-1].urls[0]),
    "peer": (
        "/peers/edit",
        {"name": "new", "dicomweb_url": "http://127.0.0.1:1/", "dicomweb_token": "s3cret"},
        lambda c: c.peer("new").dicomweb_token,
    ),
}


@pytest.mark.parametrize("came_back", ["test", "refused", "test, refused and test"])
@pytest.mark.parametrize("kind", OF_SECRETS)
def test_a_secret_that_was_entered_is_still_there_when_the_form_comes_back(
    pages: Pages, kind: str, came_back: str
) -> None:
    address, values, secret_of = OF_SECRETS[kind]
    form = changed(pages.form(address), **values)
    for why in came_back.replace(" and", ",").split(", "):
        asked = changed(form, **({"do": "test"} if why == "test" else {"do": "save", "name": ""}))
        answer = pages.post(address, asked)
        assert answer.status_code == (200 if why == "test" else 400)
        assert "s3cret" not in answer.text
        assert "kept as it is" in answer.text
        form = changed(back(answer), name=values["name"])
    assert pages.post(address, changed(form, do="save")).status_code == 303
    assert "s3cret" in secret_of(pages.config).get_secret_value()


def test_what_was_entered_is_there_for_who_entered_it_alone_and_not_for_long() -> None:
    seconds = [0.0]
    entered = Entered(lambda: seconds[0])
    assert entered.take("eve", entered.keep("ana", {"urls": SECRET})) == {}
    old = entered.keep("ana", {"urls": SECRET})
    seconds[0] += KEPT_S
    assert entered.take("ana", old) == {}
    handles = [entered.keep("ana", {"urls": str(number)}) for number in range(MOST_KEPT + 1)]
    assert entered.take("ana", handles[0]) == {}
    assert entered.take("ana", handles[1]) == {"urls": "1"}
    assert entered.take("ana", "") == {}


@pytest.mark.parametrize(
    ("urls", "about", "why"),
    [
        ("", "jobs", "'urls'"),
        ("nonsense", "jobs", "is no address for Apprise"),
        ("unheardof://somewhere/", "jobs", "is none that Apprise knows"),
        ("json://evil.example/?said=${HOME}", "jobs", "said in the settings file alone"),
        ("json://127.0.0.1/", "", "'about'"),
    ],
)
@pytest.mark.parametrize("do", ["save", "test"])
def test_who_cannot_be_told_is_refused_in_words(pages: Pages, do: str, urls: str, about: str, why: str) -> None:
    form = [each for each in pages.form("/notices/edit") if each[0] != "about"] + [("about", about)] * bool(about)
    answer = pages.post("/notices/edit", changed(form, name="new", urls=urls, do=do))
    assert why in text_of(answer.text)
    assert "evil.example" not in answer.text
    assert pages.file.read_text() == TOML


def test_who_does_not_take_the_message_is_said(pages: Pages) -> None:
    form = changed(pages.form("/notices/edit"), name="new", urls=f"json://127.0.0.1:{free_port()}/{SECRET}", do="test")
    answer = pages.post("/notices/edit", form)
    assert "address 1 of urls did not take the message" in text_of(answer.text)
    assert SECRET not in answer.text


def test_no_page_shows_a_secret_and_no_form_brings_it_elsewhere(pages: Pages) -> None:
    form = pages.form("/peers/edit?name=web")
    answer = pages.post("/peers/edit", changed(form, dicomweb_url="https://evil.example"))
    assert answer.status_code == 400
    assert "enter its dicomweb_token again" in text_of(answer.text)
    tested = pages.post("/peers/edit", changed(form, dicomweb_url="https://evil.example", do="test"))
    assert "enter its dicomweb_token again" in text_of(tested.text)
    assert pages.post("/peers/edit", changed(form, key_objects="true")).status_code == 303
    token = pages.config.peer("web").dicomweb_token
    assert token is not None
    assert token.get_secret_value() == SECRET
    removed = pages.post(
        "/peers/edit", changed(pages.form("/peers/edit?name=web"), **{"dicomweb_token.remove": "true"})
    )
    assert removed.status_code == 303
    assert pages.config.peer("web").dicomweb_token is None
    shown = [answer, tested, *(pages.admin.get(a) for a in PAGES)]
    assert not any(SECRET in page.text for page in shown)
    assert "(not shown)" in pages.admin.get("/settings").text


def test_the_second_of_two_is_told_and_keeps_what_was_entered(pages: Pages) -> None:
    form = changed(pages.form("/peers/edit?name=results"), name="theirs", readable_by="group")
    assert pages.post("/peers/edit", changed(pages.form("/peers/edit"), name="new", ae_title="NEW", may_send="true")
                      ).status_code == 303  # fmt: skip
    answer = pages.post("/peers/edit", form)
    assert answer.status_code == 409
    assert "changed meanwhile by token a-admin (peer 'new' added)" in text_of(answer.text)
    assert 'value="theirs"' in answer.text


def test_a_route_is_changed_by_its_form(pages: Pages) -> None:
    form = pages.form("/routes/edit?name=breast")
    assert [value for name, value in form if name == "condition.keyword"][:3] == ["Modality", "Manufacturer", "KVP"]
    rows = iter(["US, OT", "^A", ""])
    form = [(name, next(rows, value) if name == "condition.value" else value) for name, value in form]
    answer = pages.post("/routes/edit", changed(form, options="threads = 2", priority="stat"))
    assert answer.status_code == 303, text_of(answer.text)
    [route] = pages.config.routes
    assert route.match == {"Modality": ["US", "OT"], "Manufacturer": {"regex": "^A"}, "KVP": {"absent": True}}
    assert (route.options, route.priority) == ({"threads": 2}, "stat")
    assert "# ours" in pages.file.read_text()
    assert pages.node.stages.rules[0].match == route.match


CONDITIONS = [
    ("Modality", "is", "US", "", "US"),
    ("SliceThickness", "is", "1, 2.5", "", [1, 2.5]),
    ("SliceThickness", "range", "", "3", {"max": 3}),
    ("SliceThickness", "range", "0.5", "3", {"min": 0.5, "max": 3}),
    ("SeriesDescription", "is", '"Thorax, 1.0", 5', "", ["Thorax, 1.0", "5"]),
    ("SeriesDescription", "regex", "lung|chest", "", {"regex": "lung|chest"}),
    ("ContrastBolusAgent", "present", "", "", {"present": True}),
]


@pytest.mark.parametrize(("keyword", "how", "value", "upto", "meant"), CONDITIONS)
def test_each_condition_means_what_its_row_says_and_back(
    pages: Pages, keyword: str, how: str, value: str, upto: str, meant: Any
) -> None:
    form = [each for each in pages.form("/routes/edit?name=breast") if not each[0].startswith("condition.")]
    row = zip(("keyword", "how", "value", "upto"), (keyword, how, value, upto), strict=True)
    form += [(f"condition.{part}", said) for part, said in row]
    assert pages.post("/routes/edit", form).status_code == 303
    assert pages.config.routes[0].match == {keyword: meant}
    assert pages.post("/routes/edit", pages.form("/routes/edit?name=breast")).status_code == 400, "nothing is different"


def test_a_route_is_changed_by_its_text(pages: Pages) -> None:
    form = pages.form("/routes/edit?name=breast", "toml")
    text = dict(form)["toml"].replace('"US"', '["US", "OT"]').replace("\n", "\r\n")  # as browsers send it
    assert pages.post("/routes/edit", changed(form, toml=text)).status_code == 303
    assert pages.file.read_text() == TOML.replace('Modality = "US"', 'Modality = ["US", "OT"]')
    wrong = pages.post("/routes/edit", changed(pages.form("/routes/edit?name=breast", "toml"), toml="[[route]\nname ="))
    assert wrong.status_code == 400
    assert "[[route]\nname =" in unescape(wrong.text), "what was written is still there"


def test_a_route_is_tried_on_a_file_and_nothing_is_changed(pages: Pages, tmp_path: Path) -> None:
    us_image().save_as(tmp_path / "us.dcm", enforce_file_format=True)
    form = changed(pages.form("/routes/edit?name=breast", "toml"), do="try")
    form = changed(form, toml=dict(form)["toml"].replace('"US"', '"US", StationName = "nobody"'))
    with (tmp_path / "us.dcm").open("rb") as file:
        answer = pages.post("/routes/edit", form, file=file)
    assert answer.status_code == 200
    assert "rule wants nobody" in text_of(answer.text)
    assert "Test^Patient" not in answer.text
    broken = pages.post("/routes/edit", form, file=b"no DICOM at all")
    assert "its header cannot be read" in text_of(broken.text)
    assert pages.file.read_text() == TOML
    for days in ("0", "366", "x"):
        assert pages.post("/routes/edit", changed(form, days=days)).status_code == 400
    replay = text_of(pages.post("/routes/edit", changed(form, days="30")).text)
    assert "0 series of the last 30 days" in replay


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "multipart/form-data"}, 400),
        ({"content-type": "multipart/form-data; boundary=x"}, 400),
        ({"content-type": "multipart/form-data; boundary=x", "content-length": str(LONGEST_UPLOAD + 1)}, 413),
    ],
)
def test_what_is_no_form_is_refused(pages: Pages, headers: dict[str, str], status: int) -> None:
    answer = pages.admin.post("/routes/edit", content=b"--y\r\n\r\nx", headers=headers)
    assert answer.status_code == status


def test_a_form_with_a_file_says_how_long_it_is(pages: Pages) -> None:
    answer = pages.admin.post(
        "/routes/edit", content=iter([b"x"]), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 411


def test_a_peer_is_asked_before_it_is_saved(pages: Pages) -> None:
    there = Receiver("THERE")
    there._ae.add_supported_context("1.2.840.10008.1.1")
    with there:
        peer = {"name": "new", "ae_title": "THERE", "host": "127.0.0.1", "may_send": "true", "do": "test"}

        def asked(port: int) -> str:
            form = changed(pages.form("/peers/edit"), **peer, port=str(port))
            return text_of(pages.post("/peers/edit", form).text)

        said = asked(there.port)
        assert "new: nothing is bad" in said
        assert "C-ECHO good" in said
        assert f'"Port": {pages.config.node.dicom_port}' in said, "what an Orthanc must know of this node"
        assert "connection bad" in asked(free_port())
    answer = pages.post("/peers/test", [("name", "results")])
    assert "results: nothing is bad" in text_of(answer.text)
    assert f"{pages.config.peer('results').folder} can be written" in text_of(answer.text)
    assert "the settings have no peer 'nobody'" in text_of(pages.post("/peers/test", [("name", "nobody")]).text)
    assert pages.file.read_text() == TOML


def test_the_button_says_what_the_doctor_says(pages: Pages) -> None:
    with Receiver("PACS") as there:
        form = changed(pages.form("/peers/edit?name=pacs%20%26%20%3Cco%3E"), port=str(there.port), confirm="commitment")
        tested = text_of(pages.post("/peers/edit", changed(form, do="test")).text)
        assert pages.post("/peers/edit", form).status_code == 303
        saved = text_of(pages.post("/peers/test", [("name", "pacs & <co>")]).text)
        found = list(examine(pages.config, lambda: datetime.now(UTC), "pacs & <co>"))
    assert {each.state for each in found} >= {"good", "bad"}
    for page in (tested, saved):
        for each in found:
            assert text_of(f"{each.step} {each.state} {escape(each.text)} {escape(each.advice)}") in page
        for text in for_the_other_side(pages.config, pages.config.peer("pacs & <co>")).values():
            assert " ".join(text.split()) in page


def test_a_peer_that_hangs_while_it_is_tested_holds_up_nobody(pages: Pages) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, served(pages.app) as url:
        form = changed(pages.form("/peers/edit"), name="new", ae_title="NEW", host="127.0.0.1", may_send="true")
        form = changed(form, do="test", port=str(silent.getsockname()[1]))
        headers = {**HTML, "authorization": f"Bearer {pages.tokens[ADMIN]}"}
        with ThreadPoolExecutor() as pool, httpx.Client(headers=headers, timeout=60) as client:
            answer = pool.submit(client.post, f"{url}/peers/edit", data=dict(form))
            silent.accept()[0].close()  # was the port open?
            asked, _ = silent.accept()  # C-ECHO, which nobody answers
            assert client.get(f"{url}/peers").status_code == 200
            assert not answer.done()
            silent.close()  # nobody waits for what else would be asked
            asked.close()
            assert "C-ECHO bad" in text_of(answer.result().text)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('ae_title = "A"\nmay_send = true', ["DICOM: no TLS"]),
        ('ae_title = "A"\nhost = "pacs.example"\nport = 104\ntls = true', ["DICOM: TLS, named pacs.example"]),
        ('ae_title = "A"\nmay_send = true\ntls = true', ["DICOM: TLS, any name; what it sends comes without"]),
        ('dicomweb_url = "http://pacs.example/web"', ["DICOMweb: no TLS"]),
        ('dicomweb_url = "https://pacs.example/web"', ["DICOMweb: TLS"]),
        (
            'dicomweb_url = "https://pacs.example/web"\ndicomweb_verify = false',
            ["DICOMweb: TLS, whoever signed its certificate"],
        ),
        (
            f'dicomweb_url = "https://pacs.example/web"\nae_title = "A"\nmay_send = true\ntls = true\n'
            f'tls_fingerprints = ["{"ab" * 32}"]',
            ["DICOM: TLS, known by its fingerprint; what it sends comes without", "DICOMweb: TLS"],
        ),
        ('folder = "out"', []),
    ],
)
def test_the_list_says_how_each_peer_is_secured(toml: str, said: list[str], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours = authority.issue("node")
    tls = f'own_certificate = "{ours.certificate}"\nown_key = "{ours.key}"\ntrusted = "{authority.certificate}"\n'
    pages = Pages(tmp_path, TOML.replace("[[route]]", f'[[peer]]\nname = "x"\n{toml}\n[tls]\n{tls}[[route]]'))
    row = pages.browser(VIEWER).get("/peers").text.partition('<td class="series">x</td>')[2].partition("</tr>")[0]
    assert re.findall(r'<span class="pill (?:good|warn)">(DICOM.*?)</span>', row) == said
    green = [words for words in said if f'<span class="pill good">{words}' in row]
    assert green == [words for words in said if "TLS, named" in words or words == "DICOMweb: TLS"]
    pages.node.stop()


def test_a_new_route_has_nothing_chosen_that_nobody_chose(pages: Pages) -> None:
    form = pages.form("/routes/edit")
    chosen = {name: value for name, value in form if value and name not in ("looked_at", "source", "condition.how")}
    assert chosen == {"condition.keyword": "Modality", "priority": "routine", "days": "7"}
    said = text_of(pages.post("/routes/edit", changed(form, do="check")).text)
    for wanted in ("needs 'name'", "Modality = []: an empty list matches nothing", "no pipeline ''", "'send_to'"):
        assert wanted in said
    assert pages.file.read_text() == TOML


def test_every_row_of_conditions_offers_what_has_really_come(tmp_path: Path) -> None:
    """Also one that no keyword has been saved for, and without any script."""
    (tmp_path / "images").mkdir()
    us_image(tmp_path / "images")
    seen = Seen(tmp_path, sorted((tmp_path / "images").iterdir()), None)
    try:
        accounts = Accounts(seen.node.ledger, lambda: datetime.now(UTC))
        headers = {**HTML, "authorization": f"Bearer {accounts.add_token('ana', ADMIN, 1)}"}
        browser, desk = TestClient(seen.app(accounts), headers=headers), seen.node.desk()
        assert desk is not None
        came = desk.offered()["seen"]
        assert came["Modality"] == ["US"]
        for address in ("/routes/edit", "/routes/edit?name=breast"):
            page = browser.get(address).text
            lists = dict(re.findall(r'(?s)<datalist id="([^"]+)">(.*?)</datalist>', page))
            rows = re.findall(r'name="condition.keyword" value="([^"]*)".*?name="condition.value"([^>]*)>', page, re.S)
            assert [keyword for keyword, _ in rows if not keyword], "rows for new conditions"
            for keyword, value in rows:
                [name] = re.findall(r'list="([^"]+)"', value)
                options = dict.fromkeys(map(unescape, re.findall(r'<option value="([^"]*)"', lists[name])))
                assert list(options) == (
                    came[keyword] if keyword else list(dict.fromkeys(each for of in came.values() for each in of))
                )
    finally:
        seen.close()


def test_history_is_shown_and_undone(pages: Pages) -> None:
    pages.post("/peers/edit", changed(pages.form("/peers/edit"), name="new", ae_title="NEW", may_send="true"))
    page = pages.admin.get("/settings").text
    assert '+ae_title = "NEW"' in unescape(page)
    assert "peer 'new' added" in unescape(page)
    undo = dict(re.findall(r'name="(looked_at|id)" value="([^"]+)"', page))
    assert pages.post("/settings/undo", list(undo.items())).status_code == 303
    assert pages.file.read_text() == TOML
    assert pages.post("/settings/undo", list(undo.items())).status_code == 409, "it was looked at before"
    assert pages.post("/settings/undo", [("id", "x")]).status_code == 400


def test_a_file_edited_by_hand_is_taken_up_by_a_button(pages: Pages) -> None:
    pages.file.write_text(TOML.replace("port = 4242", "port = 4343"))
    assert pages.post("/settings/reload", []).status_code == 303
    assert pages.config.peers[0].port == 4343
    pages.file.write_text(TOML.replace("port = 4242", "prot = 4343"))
    answer = pages.post("/settings/reload", [])
    assert answer.status_code == 400
    assert "no setting 'prot' in [[peer]]; did you mean 'port'?" in text_of(answer.text)
    assert "no setting 'prot'" in text_of(pages.admin.get("/peers").text), "until it is right"
    assert pages.config.peers[0].port == 4343
