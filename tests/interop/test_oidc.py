"""Single sign-on at an identity provider of another maker (oidc-provider), and at one that lies."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from pacs_node.accounts import ADMIN, READER, VIEWER, Accounts, BadAccount, NotLoggedIn, SignOnAway
from pacs_node.facts import NodeFacts
from pacs_node.web import oidc
from pacs_node.web.app import create_app
from pacs_node.web.oidc import Provider, SingleSignOn, role_of
from tests.harness import free_port, missing, wait_for
from tests.unit.test_accounts import GOOD, HTML, accounts, clock, token_of, told  # noqa: F401  fixtures
from tests.unit.test_documented import Told

# ruff: noqa: F811
HERE = Path(__file__).parent / "oidc"
NODE = "http://testserver"
ROLES = {ADMIN: ("node-admins",), READER: ("node-readers",), VIEWER: ("node-viewers",)}


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("node")
    if program is None or not (HERE / "node_modules" / "oidc-provider").is_dir():
        missing("oidc-provider is not installed: npm ci --prefix tests/interop/oidc --ignore-scripts")
    port = free_port()
    command = [program, str(HERE / "provider.mjs"), str(port), f"{NODE}/oidc/callback"]
    with (tmp_path_factory.mktemp("provider") / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE)
        issuer = f"http://127.0.0.1:{port}"

        def up() -> bool:
            try:
                return httpx.get(f"{issuer}/.well-known/openid-configuration", timeout=5).status_code == 200
            except httpx.TransportError:
                return process.poll() is not None

        wait_for(up, 90, "the provider")
        assert process.poll() is None, Path(log.name).read_text()
        yield issuer
        process.terminate()
        process.wait(30)


def provider(issuer: str, **other: Any) -> Provider:
    return Provider(issuer, "node", "a secret of the node", "preferred_username", "groups", ROLES, **other)


class Site:
    """The node's pages with single sign-on, and what the audit trail was told."""

    def __init__(self, told: Told, accounts: Accounts, issuer: str, asked: Provider | None = None) -> None:
        accounts.single_sign_on = True
        self.accounts, self.audit = accounts, list[tuple[str, Any]]()
        self.sign_on = SingleSignOn(asked or provider(issuer))
        self.app = create_app(
            NodeFacts(told.node), CollectorRegistry(), ["testserver"], accounts, lambda *said: self.audit.append(said),
            single_sign_on=self.sign_on,
        )  # fmt: skip

    def browser(self) -> TestClient:
        return TestClient(self.app, base_url=NODE, follow_redirects=False)


@pytest.fixture
def site(told: Told, accounts: Accounts, issuer: str) -> Site:
    return Site(told, accounts, issuer)


def at_the_provider(address: str, name: str) -> str:
    """What a person does there: name and password, consent; the address that the browser is sent back to."""
    with httpx.Client(timeout=60) as browser:
        for _ in range(12):
            answer = browser.get(address)
            while answer.is_redirect:
                address = urljoin(address, answer.headers["location"])
                if address.startswith(NODE):
                    return address
                answer = browser.get(address)
            prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
            action = re.search(r'<form[^>]*action="([^"]+)"', answer.text)
            assert prompt, answer.text
            assert action, answer.text
            form = {"prompt": prompt[1], "login": name, "password": "any"}
            answer = browser.post(urljoin(address, action[1]), data=form)
            address = urljoin(address, answer.headers["location"])
            if address.startswith(NODE):
                return address
    raise AssertionError("the provider never sent the browser back")


def log_in(browser: TestClient, name: str, onward: str = "/") -> Any:
    begun = browser.get("/oidc/login", params={"next": onward})
    assert begun.status_code == 303, begun.text
    return browser.get(at_the_provider(begun.headers["location"], name).removeprefix(NODE))


@pytest.mark.parametrize(("name", "role"), [("ana", ADMIN), ("rae", READER), ("vic", VIEWER)])
def test_a_person_comes_in_with_the_role_that_the_provider_gives(site: Site, name: str, role: str) -> None:
    browser = site.browser()
    assert "/oidc/login" in browser.get("/login", headers=HTML).text
    answer = log_in(browser, name, "/queue")
    assert (answer.status_code, answer.headers["location"]) == (303, "/queue"), answer.text
    assert browser.get("/api/series").status_code == 200
    known = site.accounts.kept.user(name)
    assert known is not None
    assert known.role == role
    assert [(event, facts["user"]) for event, facts in site.audit] == [("login", name)]
    assert browser.get("/audit").status_code == (200 if role == ADMIN else 403)
    assert browser.post("/logout", data={"csrf": token_of(browser)}).status_code == 303
    assert browser.get("/api/series").status_code == 401
    away = browser.get("/oidc/logout").headers["location"]
    assert away.startswith(f"{site.sign_on.provider.issuer}/session/end?")
    assert parse_qs(urlsplit(away).query)["post_logout_redirect_uri"] == [f"{NODE}/login"]
    with pytest.raises(BadAccount, match="single sign-on"):
        site.accounts.change(name, password="a long enough secret")
    assert browser.post("/login", data={"name": name, "password": known.password}).status_code == 401


def test_who_has_no_role_is_not_let_in(site: Site) -> None:
    answer = log_in(site.browser(), "nobody")
    assert answer.status_code == 401
    assert "gives you no role here" in answer.text
    assert site.accounts.kept.user("nobody") is None
    assert [event for event, _ in site.audit] == ["login-refused"]


def test_nobody_takes_the_name_of_a_user_of_the_node(site: Site) -> None:
    answer = log_in(site.browser(), "local")
    assert answer.status_code == 401
    assert "there is another user" in answer.text
    assert site.browser().post("/login", data={"name": "a-admin", "password": GOOD}).status_code == 303


def test_a_code_is_good_once_and_in_the_browser_that_asked(site: Site) -> None:
    browser, other = site.browser(), site.browser()
    begun = browser.get("/oidc/login")
    back = at_the_provider(begun.headers["location"], "ana").removeprefix(NODE)
    stolen = other.get(back)
    assert stolen.status_code == 401
    assert "not begun in this browser" in stolen.text
    other.get("/oidc/login")
    assert other.get(back).status_code == 401, "nor with a cookie of another login"
    assert browser.get(back).status_code == 303
    assert browser.get(back).status_code == 401


def test_without_single_sign_on_there_are_no_such_addresses(told: Told, accounts: Accounts) -> None:
    app = create_app(NodeFacts(told.node), CollectorRegistry(), ["testserver"], accounts)
    browser = TestClient(app, follow_redirects=False)
    for path in ("/oidc/login", "/oidc/callback", "/oidc/logout"):
        assert browser.get(path).status_code == 404
    assert "oidc" not in browser.get("/login", headers=HTML).text


def test_a_provider_that_is_away_is_said_and_users_of_the_node_come_in(told: Told, accounts: Accounts) -> None:
    site = Site(told, accounts, f"http://127.0.0.1:{free_port()}")
    browser = site.browser()
    answer = browser.get("/oidc/login")
    assert answer.status_code == 503
    assert "log in with a user of this node" in answer.text
    assert browser.post("/login", data={"name": "a-admin", "password": GOOD}).status_code == 303


def test_with_single_sign_on_nobody_comes_in_without_it_though_there_are_no_users(
    told: Told, accounts: Accounts
) -> None:
    for name in ("a-viewer", "a-reader", "a-admin"):
        accounts.remove(name)
    assert Site(told, accounts, "http://127.0.0.1:1").browser().get("/api/series").status_code == 401


# ---- a provider that lies -------------------------------------------------------------------------------------------

KEY, OTHER = RSAKey.generate_key(2048, parameters={"kid": "k"}), RSAKey.generate_key(2048, parameters={"kid": "k"})
ISSUER = "https://idp.example"
KNOWN = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/auth",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/keys",
}


def claims(nonce: str | None, **other: Any) -> dict[str, Any]:
    now = int(time.time())
    said = {"iss": ISSUER, "aud": "node", "sub": "1", "iat": now, "exp": now + 300, "nonce": nonce}
    said |= {"preferred_username": "ana", "groups": "node-admins", **other}
    return {key: value for key, value in said.items() if value is not None}


LIES: dict[str, Callable[[str], str]] = {
    "another's signature": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(nonce), OTHER),
    "another issuer": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(nonce, iss="https://x"), KEY),
    "another client": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(nonce, aud="x"), KEY),
    "several clients": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(nonce, aud=["node", "x"]), KEY),
    "authorized another": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(nonce, azp="x"), KEY),
    "another login": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims("x"), KEY),
    "no login": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(None), KEY),
    "long ago": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(nonce, exp=1), KEY),
    "for ever": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(nonce, exp=None), KEY),
    "no subject": lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(nonce, sub=None), KEY),
    "no signature": lambda nonce: "eyJhbGciOiJub25lIn0.e30.",
    "no token": lambda nonce: "",
    "no text": lambda nonce: "\0.\0.\0",
}


def lying(monkeypatch: pytest.MonkeyPatch, token: Callable[[str], str], known: dict[str, Any] = KNOWN) -> SingleSignOn:
    sign_on = SingleSignOn(provider(ISSUER))

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/token":
            [begun] = nonces
            return httpx.Response(200, json={"access_token": "a", "token_type": "Bearer", "id_token": token(begun)})
        told = {"/keys": {"keys": [KEY.as_dict(private=False)]}, "/.well-known/openid-configuration": known}
        return httpx.Response(200, json=told[path])

    nonces: list[str] = []
    begin = sign_on.begin

    def begun(callback: str, onward: str, browser: str = "") -> tuple[str, str]:
        address, state = begin(callback, onward, browser)
        nonces[:] = [sign_on._begun[state].nonce]
        return address, state

    sign_on.begin = begun  # type: ignore[method-assign]
    monkeypatch.setattr(httpx.Client, "_init_transport", lambda self, **how: httpx.MockTransport(answer))
    return sign_on


def test_a_token_that_is_right_lets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    right = lying(monkeypatch, lambda nonce: jwt.encode({"alg": "RS256", "kid": "k"}, claims(nonce), KEY))
    _, state = right.begin(f"{NODE}/oidc/callback", "/queue")
    person, onward = right.end({"state": state, "code": "c"}, state)
    assert (person.name, person.role, person.subject, onward) == ("ana", ADMIN, "1", "/queue")


def test_who_begins_without_end_makes_only_itself_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "MOST_LOGINS", 5)
    sign_on = lying(monkeypatch, lambda nonce: "")
    _, ours = sign_on.begin(f"{NODE}/oidc/callback", "/", "10.0.0.1")
    theirs = [sign_on.begin(f"{NODE}/oidc/callback", "/", "10.6.6.6")[1] for _ in range(20)]
    assert list(sign_on._begun) == [ours, *theirs[-4:]]


@pytest.mark.parametrize("lie", LIES)
def test_a_token_that_is_not_for_this_login_lets_nobody_in(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_on = lying(monkeypatch, LIES[lie])
    _, state = sign_on.begin(f"{NODE}/oidc/callback", "/")
    with pytest.raises(NotLoggedIn):
        sign_on.end({"state": state, "code": "c"}, state)


@pytest.mark.parametrize(
    "known",
    [
        {**KNOWN, "issuer": "https://another.example"},
        {**KNOWN, "authorization_endpoint": "http://idp.example/auth"},
        {**KNOWN, "authorization_endpoint": "javascript:1"},
        {**KNOWN, "jwks_uri": None},
        {"issuer": ISSUER},
        [],
    ],
)
def test_what_is_no_provider_is_away(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SignOnAway):
        lying(monkeypatch, lambda nonce: "", known).begin(f"{NODE}/oidc/callback", "/")


@pytest.mark.parametrize(
    ("said", "claim", "role"),
    [
        ({"groups": "node-admins"}, "groups", ADMIN),
        ({"groups": ["node-viewers", "node-admins"]}, "groups", ADMIN),
        ({"realm_access": {"roles": ["node-readers"]}}, "realm_access.roles", READER),
        ({"https://x.example/roles": ["node-viewers"]}, "https://x.example/roles", VIEWER),
        ({"groups": ["Node-Admins", 3, None]}, "groups", None),
        ({"groups": {"node-admins": 1}}, "groups.x", None),
        ({"groups": None}, "groups", None),
        ({}, "groups", None),
    ],
)
def test_roles_come_from_a_claim(said: dict[str, Any], claim: str, role: str | None) -> None:
    assert role_of(said, claim, ROLES) == role
