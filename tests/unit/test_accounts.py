"""Who gets in: every role at every address, every way to be nobody, and what time and attempts do to it."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.routing import Route
from starlette.testclient import TestClient

from pacs_node import accounts as module
from pacs_node.accounts import (
    ADMIN,
    FAILURES_OF_ONE,
    LOCKED_MIN,
    METRICS,
    MOST_AT_ONCE,
    READER,
    ROLES,
    TOKEN_ROLES,
    VIEWER,
    WRONG_IN_A_ROW,
    Accounts,
    BadAccount,
    NotLoggedIn,
)
from pacs_node.errors import CannotStart, LedgerUnavailable
from pacs_node.facts import NodeFacts
from pacs_node.ledger import Ledger
from pacs_node.web.access import COOKIE, NEEDS
from pacs_node.web.app import create_app
from pacs_node.web.certificate import Certificate
from tests.harness import need, wait_for
from tests.unit.test_documented import Told

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
GOOD = "a long enough secret"
HTML = {"accept": "text/html"}


class Clock:
    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at

    def on(self, **time: float) -> None:
        self.at += timedelta(**time)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    told = Told(tmp_path_factory.mktemp("told"))
    yield told
    told.node.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Accounts:
    """One user of each role, each with the same password."""
    ledger = Ledger(f"sqlite:///{tmp_path}/node.sqlite", tmp_path)
    ledger.migrate()
    accounts = Accounts(ledger, clock)
    # a test has no time for the real one
    accounts._hasher = module.argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    accounts._nobodys = accounts._hasher.hash("nobody's")
    for role in ROLES:
        accounts.add(f"a-{role}", role, GOOD)
    return accounts


Browser = Callable[[str | None], TestClient]


@pytest.fixture
def audit() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def browser(told: Told, accounts: Accounts, audit: list[tuple[str, Any]]) -> Browser:
    """browser(role): of somebody of that role, logged in; browser(None): of nobody."""
    app = create_app(
        NodeFacts(told.node), CollectorRegistry(), ["testserver"], accounts, lambda *said: audit.append(said)
    )

    def of(role: str | None) -> TestClient:
        client = TestClient(app, follow_redirects=False)
        if role is not None:
            answer = client.post("/login", data={"name": f"a-{role}", "password": GOOD, "next": "/"})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
        return client

    return of


def addresses(told: Told) -> list[tuple[str, str]]:
    """(method, path in braces) of every address of the application as it is."""
    found = [route for route in told.app.routes if isinstance(route, Route)]
    assert {route.path for route in found} == set(NEEDS), (
        "every address has its row in NEEDS, and every row its address"
    )
    return [(method, route.path) for route in found for method in sorted((route.methods or set()) - {"HEAD"})]


def filled(told: Told, path: str) -> str:
    there = {"uid": told.uid, "id": told.failed.id, "name": "01-SEG.dcm"}
    return re.sub(r"{(\w+)}", lambda name: there[name[1]], path)


def test_a_token_for_metrics_reads_figures_and_no_list(told: Told, browser: Browser, accounts: Accounts) -> None:
    """What Prometheus has to be given says nothing of any series."""
    bearer = {"authorization": f"Bearer {accounts.add_token('prometheus', METRICS, days=1)}"}
    client, open_to_it = browser(None), set()
    for method, path in addresses(told):
        answer = client.request(method, filled(told, path), headers=bearer)
        if NEEDS[path] is None or answer.status_code not in (401, 403):
            open_to_it.add(path)
        else:
            assert "prometheus" in answer.text, "it is known, and may not"
    assert open_to_it == {"/metrics", *(path for path, least in NEEDS.items() if least is None)}
    assert client.get("/metrics").status_code == 401
    for making in (lambda: accounts.add("eve", METRICS, GOOD), lambda: accounts.change("a-viewer", role=METRICS)):
        with pytest.raises(BadAccount, match="no role 'metrics'; there are viewer, reader, admin"):
            making()


def test_every_role_at_every_address(told: Told, browser: Browser) -> None:
    """Nobody is sent to log in, who has too little hears so, and who has enough is let in."""
    for role in (None, *ROLES):
        for method, path in addresses(told):
            if path in ("/login", "/logout"):
                continue
            client, least = browser(role), NEEDS[path]
            csrf = token_of(client) if role else None
            data = {"csrf": csrf} if method == "POST" and csrf else None
            answer = client.request(method, filled(told, path), data=data)
            enough = least is None or (role is not None and TOKEN_ROLES.index(role) >= TOKEN_ROLES.index(least))
            if enough:
                assert answer.status_code not in (401, 403), (role, method, path, answer.text)
            else:
                assert answer.status_code == (401 if role is None else 403), (role, method, path)
                assert ("log in" if role is None else f"needs the role {least}") in answer.text


def token_of(client: TestClient) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/", headers=HTML).text)
    assert found, "a page of somebody who is logged in has a form to log out"
    return found[1]


def test_health_is_told_while_the_ledger_is_away(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what says so, in its own words: who asks does not matter, so the ledger is not asked."""
    client = browser(VIEWER)
    well = client.get("/health").json()

    def away(self: Ledger, *asked: object) -> None:
        raise LedgerUnavailable("the database does not answer")

    for name in ("users", "user", "session", "token"):
        monkeypatch.setattr(Ledger, name, away)
    for headers in ({}, {"authorization": "Bearer pn_x"}):
        assert client.get("/health", headers=headers).json().keys() == well.keys()
    assert client.get("/api/series").status_code == 503


def test_a_person_is_sent_to_log_in_and_comes_back(browser: Browser) -> None:
    client = browser(None)
    answer = client.get("/series/1.2?x=1", headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fseries%2F1.2%3Fx%3D1")
    page = client.get(answer.headers["location"], headers=HTML)
    assert 'name="next" value="/series/1.2?x=1"' in page.text
    wrong = client.post("/login", data={"name": "a-admin", "password": "wrong", "next": "/series/1.2"}, headers=HTML)
    assert wrong.status_code == 401
    assert "name or password is wrong" in wrong.text
    right = client.post("/login", data={"name": "a-admin", "password": GOOD, "next": "/series/1.2"}, headers=HTML)
    assert (right.status_code, right.headers["location"]) == (303, "/series/1.2")
    said = right.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=lax" in said


@pytest.mark.parametrize(
    "onward", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:1", "/a b", ""]
)
def test_nobody_is_sent_to_another_site(browser: Browser, onward: str) -> None:
    answer = browser(None).post("/login", data={"name": "a-viewer", "password": GOOD, "next": onward})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_the_cookie_goes_over_tls_alone_where_browsers_come_by_tls(told: Told, accounts: Accounts) -> None:
    app = create_app(NodeFacts(told.node), CollectorRegistry(), ["testserver"], accounts, secure=True)
    answer = TestClient(app, follow_redirects=False).post("/login", data={"name": "a-viewer", "password": GOOD})
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("form", [{}, {"csrf": ""}, {"csrf": "x" * 43}, {"csrf": "\udcff"}])
def test_a_form_that_no_page_of_ours_has_made_is_refused(told: Told, browser: Browser, form: dict[str, str]) -> None:
    client = browser(ADMIN)
    sent = {key: value.encode("utf-8", "surrogateescape") for key, value in form.items()}
    for path in ("/api/rerun", f"/api/series/{told.uid}/rerun", "/logout"):
        answer = client.post(path, data=sent)
        assert answer.status_code == 403, path
        assert "load the page again" in answer.text
    other = token_of(browser(ADMIN))  # of another session of the same user
    assert client.post("/logout", data={"csrf": other}).status_code == 403


def test_logging_out_ends_it_for_good(browser: Browser) -> None:
    client = browser(VIEWER)
    kept = client.cookies[COOKIE]
    assert client.post("/logout", data={"csrf": token_of(client)}).status_code == 303
    client.cookies.set(COOKIE, kept)
    assert client.get("/api/series").status_code == 401


def test_time_ends_a_session(browser: Browser, clock: Clock, accounts: Accounts) -> None:
    client = browser(VIEWER)
    for _ in range(23):  # used every half hour less a little, until the longest time is over
        clock.on(minutes=29.9)
        assert client.get("/api/series").status_code == 200
    clock.on(minutes=29.9)
    assert client.get("/api/series").status_code == 200
    clock.on(minutes=29.9)
    assert client.get("/api/series").status_code == 401
    client = browser(VIEWER)
    clock.on(minutes=30.1)
    assert client.get("/api/series").status_code == 401
    client = browser(VIEWER)
    clock.on(hours=-5)
    assert client.get("/api/series").status_code == 401, "a clock set back makes no session last longer"


@pytest.mark.parametrize(
    "change",
    [
        lambda accounts: accounts.change("a-reader", role=VIEWER),
        lambda accounts: accounts.change("a-reader", password="another long secret"),
        lambda accounts: accounts.remove("a-reader"),
    ],
)
def test_who_is_changed_or_removed_is_logged_out(
    browser: Browser, accounts: Accounts, change: Callable[[Accounts], None]
) -> None:
    client, other = browser(READER), browser(VIEWER)
    change(accounts)
    assert client.get("/api/series").status_code == 401
    assert other.get("/api/series").status_code == 200


def test_wrong_passwords_lock_a_user_for_a_while(accounts: Accounts, clock: Clock) -> None:
    for number in range(WRONG_IN_A_ROW):
        with pytest.raises(NotLoggedIn):
            accounts.log_in("a-admin", "wrong", f"10.0.0.{number}")
    with pytest.raises(NotLoggedIn, match="locked for a while"):
        accounts.log_in("a-admin", GOOD, "10.0.1.1")
    clock.on(minutes=LOCKED_MIN + 0.1)
    assert accounts.log_in("a-admin", GOOD, "10.0.1.1")[1].name == "a-admin"
    accounts.log_in("a-viewer", GOOD, "10.0.1.1")


def test_who_logged_in_from_here_is_not_locked_out_from_elsewhere(accounts: Accounts, clock: Clock) -> None:
    accounts.add("ana", ADMIN, GOOD)
    accounts.log_in("ana", GOOD, "10.0.0.1")
    for _ in range(WRONG_IN_A_ROW):
        with pytest.raises(NotLoggedIn):
            accounts.log_in("ana", "a wrong one, guessed", "10.6.6.6")
    with pytest.raises(NotLoggedIn, match="locked for a while"):
        accounts.log_in("ana", GOOD, "10.0.0.2")
    accounts.log_in("ana", GOOD, "10.0.0.1")


def test_from_where_it_logged_in_a_user_has_no_more_attempts_than_from_elsewhere(accounts: Accounts) -> None:
    accounts.add("ana", ADMIN, GOOD)
    accounts.log_in("ana", GOOD, "10.0.0.1")
    for _ in range(2 * WRONG_IN_A_ROW):
        with pytest.raises(NotLoggedIn):
            accounts.log_in("ana", "a wrong one, guessed", "10.0.0.1")
    with pytest.raises(NotLoggedIn, match="locked for a while"):
        accounts.log_in("ana", GOOD, "10.0.0.1")


def test_another_password_is_another_beginning(accounts: Accounts) -> None:
    accounts.add("ana", ADMIN, GOOD)
    accounts.log_in("ana", GOOD, "10.0.0.1")
    accounts.change("ana", password="another long secret")
    for _ in range(WRONG_IN_A_ROW):
        with pytest.raises(NotLoggedIn):
            accounts.log_in("ana", GOOD, "10.0.0.3")
    with pytest.raises(NotLoggedIn, match="locked for a while"):
        accounts.log_in("ana", "another long secret", "10.0.0.1")


def test_one_address_has_only_so_many_attempts(accounts: Accounts, clock: Clock) -> None:
    for number in range(FAILURES_OF_ONE):
        with pytest.raises(NotLoggedIn, match="wrong"):
            accounts.log_in(f"nobody-{number}", "wrong", "10.0.0.9")
    with pytest.raises(NotLoggedIn, match="too many"):
        accounts.log_in("a-admin", GOOD, "10.0.0.9")
    accounts.log_in("a-admin", GOOD, "10.0.0.8")
    clock.on(minutes=LOCKED_MIN + 0.1)
    accounts.log_in("a-admin", GOOD, "10.0.0.9")


def test_wrong_tokens_lock_out_neither_people_nor_who_has_a_right_one(accounts: Accounts) -> None:
    """A program whose token has expired goes on asking, from the address that all others have."""
    secret = accounts.add_token("scraper", "viewer", days=1)
    for _ in range(FAILURES_OF_ONE):
        assert accounts.of_token("pn_x", "10.0.0.9") is None
    with pytest.raises(NotLoggedIn, match="too many"):
        accounts.of_token("pn_x", "10.0.0.9")
    assert accounts.of_token(secret, "10.0.0.9") is not None
    accounts.log_in("a-admin", GOOD, "10.0.0.9")


def test_no_more_passwords_are_compared_at_once_than_memory_is_for(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparing, most, go_on = [0], [0], threading.Event()

    def slow(password: str, said: str) -> bool:
        comparing[0] += 1
        most[0] = max(most[0], comparing[0])
        go_on.wait(20)
        comparing[0] -= 1
        return False

    monkeypatch.setattr("pacs_node.accounts.LONGEST_WAIT_S", 0.2)
    monkeypatch.setattr(accounts, "_fits", slow)
    said: list[str] = []

    def log_in(number: int) -> None:
        try:
            accounts.log_in("nobody", "wrong", f"10.0.0.{number}")
        except NotLoggedIn as error:
            said.append(str(error))

    threads = [threading.Thread(target=log_in, args=(number,)) for number in range(MOST_AT_ONCE + 5)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(said) == 5, 20, "the others are sent away")
    go_on.set()
    for thread in threads:
        thread.join()
    assert most[0] == MOST_AT_ONCE
    assert sum("at this moment" in words for words in said) == 5


def test_nobody_learns_which_users_there_are(accounts: Accounts) -> None:
    said = set()
    for name in ("a-admin", "nobody", "", "\0", "a" * 9999, "'; --"):
        with pytest.raises(NotLoggedIn) as refused:
            accounts.log_in(name, "wrong", name[:9])
        said.add(str(refused.value))
    assert len(said) == 1


def test_a_token_lets_a_program_in_until_it_expires(browser: Browser, accounts: Accounts, clock: Clock) -> None:
    client = browser(None)
    for role in TOKEN_ROLES:
        secret = accounts.add_token(f"for-{role}", role, days=1)
        bearer = {"authorization": f"Bearer {secret}"}
        assert client.get("/metrics", headers=bearer).status_code == 200
        answer = client.post("/api/rerun?route=nosuch", headers=bearer)  # no form, and none is asked for
        assert answer.status_code == (400 if role == ADMIN else 403)
    clock.on(days=1.1)
    assert client.get("/metrics", headers=bearer).status_code == 401
    secret = accounts.add_token("another", VIEWER, days=1)
    accounts.remove_token("another")
    assert client.get("/metrics", headers={"authorization": f"Bearer {secret}"}).status_code == 401


@pytest.mark.parametrize(
    "said", ["Bearer", "Bearer ", "Bearer pn_", "bearer x", "Basic YTpi", "Bearer pn_\xff", "pn_x"]
)
def test_what_is_no_token_lets_nobody_in(browser: Browser, said: str) -> None:
    answer = browser(None).get("/api/series", headers={"authorization": said.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code == 401


def test_without_users_the_pages_are_open_and_say_so(told: Told, accounts: Accounts) -> None:
    for name in ("a-viewer", "a-reader", "a-admin"):
        accounts.remove(name)
    app = create_app(NodeFacts(told.node), CollectorRegistry(), ["testserver"], accounts)
    page = TestClient(app).get("/", headers=HTML)
    assert page.status_code == 200
    assert "There are no users" in page.text


def test_the_last_admin_stays(accounts: Accounts) -> None:
    with pytest.raises(BadAccount, match="last admin"):
        accounts.remove("a-admin")
    with pytest.raises(BadAccount, match="last admin"):
        accounts.change("a-admin", role=VIEWER)
    accounts.change("a-admin", password="quite another secret")
    accounts.change("a-viewer", role=ADMIN)
    accounts.remove("a-admin")


@pytest.mark.parametrize(
    ("name", "role", "password", "words"),
    [
        ("", VIEWER, GOOD, "cannot be a user"),
        ("a b", VIEWER, GOOD, "cannot be a user"),
        ("x" * 65, VIEWER, GOOD, "cannot be a user"),
        ("b", "root", GOOD, "no role"),
        ("b", VIEWER, "short", "12 to 256"),
        ("b", VIEWER, "x" * 300, "12 to 256"),
        ("somebody", VIEWER, "Somebody-2026!", "the user's name"),
        ("b", VIEWER, "abababababab", "repeated"),
        ("a-admin", VIEWER, GOOD, "already"),
    ],
)
def test_what_cannot_be_a_user(accounts: Accounts, name: str, role: str, password: str, words: str) -> None:
    with pytest.raises(BadAccount, match=words):
        accounts.add(name, role, password)


def test_nothing_that_lets_in_is_kept_or_told(accounts: Accounts, browser: Browser, audit: list[Any]) -> None:
    client = browser(ADMIN)
    secret = accounts.add_token("one", ADMIN, days=1)
    client.post("/login", data={"name": "a-admin", "password": "a wrong secret"})
    client.post("/api/rerun?route=nosuch", data={"csrf": token_of(client)})
    kept = repr(
        [accounts.kept.users(), accounts.kept.tokens(), accounts.kept.session(module.digest(client.cookies[COOKIE]))]
    )
    for each in (GOOD, secret, client.cookies[COOKIE], "a wrong secret"):
        assert each not in kept
        assert each not in repr(audit)
    assert {event for event, _ in audit} >= {"login", "login-refused"}


def test_a_renewed_certificate_is_taken_up_and_a_bad_one_is_not(tmp_path: Path) -> None:
    certificate, key = tmp_path / "node.crt", tmp_path / "node.key"
    with pytest.raises(CannotStart, match="no such file"):
        Certificate(certificate, key)
    make(certificate, key, "first")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    renewed = Certificate(certificate, key)
    renewed._load(served)
    renewed._served = served
    assert handed_out(served) == certificate.read_text()
    first = certificate.read_text()
    key.write_text("no key")
    renewed.look()
    assert handed_out(served) == first
    make(certificate, key, "second")
    renewed.look()
    assert handed_out(served) == certificate.read_text() != first


def make(certificate: Path, key: Path, name: str) -> None:
    command = [need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subprocess.run([*command, "-subj", f"/CN={name}", "-days", "2"], check=True, capture_output=True)


def handed_out(context: ssl.SSLContext) -> str:
    """The certificate that a browser sees."""
    ours, theirs = socket.socketpair()
    server = threading.Thread(target=lambda: context.wrap_socket(ours, server_side=True).close())
    server.start()
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with trusting.wrap_socket(theirs) as browser:
        seen = browser.getpeercert(binary_form=True)
    server.join()
    return ssl.DER_cert_to_PEM_cert(seen or b"")
