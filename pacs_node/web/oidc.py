"""Log in at the hospital's single sign-on: OpenID Connect, authorization code flow with PKCE (RFC 7636).

What a login needs (state, nonce, code verifier) stays here, bound to the browser by a cookie, until the browser comes
back with a code. Of what the provider says nothing is believed but an ID token that its own keys have signed, for us,
for this login.
"""

from __future__ import annotations

import secrets
import ssl
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import structlog
from authlib.common.errors import AuthlibBaseError
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from pacs_node.accounts import ADMIN, READER, VIEWER, NotLoggedIn, SignOnAway
from pacs_node.errors import CannotStart

with warnings.catch_warnings():
    warnings.showwarning = lambda *said, **more: None  # that a next httpx has another name
    from authlib.integrations.httpx_client import OAuth2Client

log = structlog.get_logger(__name__)

PATIENCE_S = 10.0  # with the provider
LONGEST_LOGIN_S = 600.0  # from the button to the return
MOST_LOGINS = 1000  # that are under way; of the address with most of them those that were begun first are forgotten
DISCOVERED_S = 3600.0  # how long what the provider says of itself, and its keys, are good for
KEYS_AGAIN_S = 30.0  # the least time between two questions for its keys
LEEWAY_S = 60  # between its clock and ours
SCOPE = "openid profile email"
# by keys of which we know the public half alone: RFC 7518 3.1, RFC 9864
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519"]


@dataclass(frozen=True)
class Provider:
    """Of whom we ask who somebody is. roles: role -> values of the claim that give it."""

    issuer: str
    client_id: str
    client_secret: str | None
    name_claim: str
    role_claim: str
    roles: Mapping[str, tuple[str, ...]]
    ca: Path | None = None


@dataclass(frozen=True)
class Begun:
    """A login that is under way."""

    nonce: str
    verifier: str
    callback: str
    onward: str
    at: float
    address: str  # of the browser


@dataclass(frozen=True)
class Person:
    """Who has logged in, as the provider says. subject: never given to another."""

    subject: str
    name: str
    role: str


class SingleSignOn:
    """Raises CannotStart for certificates that cannot be used."""

    def __init__(self, provider: Provider, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.provider, self._monotonic = provider, monotonic
        try:
            self._trust = ssl.create_default_context(cafile=provider.ca)
        except (OSError, ssl.SSLError) as error:
            raise CannotStart(f"issuer_ca in [oidc] cannot be used: {error.strerror or error}") from error
        self._begun: dict[str, Begun] = {}
        self._lock = threading.Lock()
        self._known: tuple[float, dict[str, Any], KeySet] | None = None

    def begin(self, callback: str, onward: str, browser: str = "") -> tuple[str, str]:
        """(the address that the browser is sent to, the state that its cookie is to hold). Raises SignOnAway."""
        known, _ = self._discovered()
        state, now = secrets.token_urlsafe(32), self._monotonic()
        begun = Begun(secrets.token_urlsafe(32), secrets.token_urlsafe(48), callback, onward, now, browser)
        with self._lock:
            self._begun = {key: each for key, each in self._begun.items() if now - each.at < LONGEST_LOGIN_S}
            if len(self._begun) >= MOST_LOGINS:
                [(most, _)] = Counter(each.address for each in self._begun.values()).most_common(1)
                del self._begun[next(key for key, each in self._begun.items() if each.address == most)]
            self._begun[state] = begun
        with self._client(callback) as client:
            address, _ = client.create_authorization_url(
                _endpoint(known, "authorization_endpoint"),
                state=state,
                nonce=begun.nonce,
                code_verifier=begun.verifier,
            )
        return str(address), state

    def end(self, asked: Mapping[str, str], cookie: str) -> tuple[Person, str]:
        """Who has logged in, and the page that was asked for. Raises NotLoggedIn: why not; SignOnAway."""
        state = asked.get("state", "")
        if not state or not compare_digest(state.encode(), cookie.encode("utf-8", "replace")):
            raise NotLoggedIn("this login was not begun in this browser; begin again")
        with self._lock:
            begun = self._begun.pop(state, None)  # a code is shown once
        if begun is None or self._monotonic() - begun.at > LONGEST_LOGIN_S:
            raise NotLoggedIn("the login took too long; begin again")
        if asked.get("iss", self.provider.issuer) != self.provider.issuer:  # RFC 9207
            raise NotLoggedIn("the answer is not of the provider that was asked")
        if "error" in asked or not asked.get("code"):
            log.warning("oidc.refused", error=asked.get("error", "no code")[:64])
            raise NotLoggedIn("the single sign-on did not let you in")
        return self._person(asked["code"], begun), begun.onward

    def farewell(self, back: str) -> str | None:
        """Where a browser logs out there, too; None where the provider has no such page. Raises SignOnAway."""
        known, _ = self._discovered()
        if not known.get("end_session_endpoint"):
            return None
        asked = urlencode({"client_id": self.provider.client_id, "post_logout_redirect_uri": back})
        return f"{_endpoint(known, 'end_session_endpoint')}?{asked}"

    def _person(self, code: str, begun: Begun) -> Person:
        known, keys = self._discovered()
        try:
            with self._client(begun.callback) as client:
                token = client.fetch_token(
                    _endpoint(known, "token_endpoint"),
                    code=code,
                    code_verifier=begun.verifier,
                    grant_type="authorization_code",
                )
                claims = self._claims(str(token.get("id_token", "")), keys, begun.nonce)
                lacking = {self.provider.name_claim, self.provider.role_claim.partition(".")[0]} - claims.keys()
                if lacking and known.get("userinfo_endpoint"):
                    more = client.get(_endpoint(known, "userinfo_endpoint")).raise_for_status().json()
                    if more.get("sub") != claims["sub"]:  # OpenID Connect Core 5.3.2
                        raise NotLoggedIn("the single sign-on speaks of two people")
                    claims = {**more, **claims}
        except (httpx.HTTPError, ValueError, AttributeError) as error:
            raise self._away(error) from error
        except AuthlibBaseError as error:
            log.warning("oidc.refused", error=str(error.error)[:64])
            raise NotLoggedIn("the single sign-on did not let you in") from error
        return self._known_as(claims)

    def _claims(self, id_token: str, keys: KeySet, nonce: str) -> dict[str, Any]:
        """What the ID token says: OpenID Connect Core 3.1.3.7. Raises NotLoggedIn."""
        of = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self.provider.issuer},
            aud={"essential": True, "value": self.provider.client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            try:
                claims = jwt.decode(id_token, keys, algorithms=ALGORITHMS).claims
            except (JoseError, ValueError):  # its keys may be new: OpenID Connect Core 10.1.1
                claims = jwt.decode(id_token, self._keys_again(keys), algorithms=ALGORITHMS).claims
            of.validate(claims)
        except (JoseError, ValueError) as error:
            log.warning("oidc.token-refused", error=type(error).__name__)
            raise NotLoggedIn("what the single sign-on says of you cannot be believed") from error
        audience = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        if claims.get("azp", self.provider.client_id) != self.provider.client_id or len(audience) > 1:
            raise NotLoggedIn("what the single sign-on says of you is not for this node")
        return claims

    def _known_as(self, claims: Mapping[str, Any]) -> Person:
        role = role_of(claims, self.provider.role_claim, self.provider.roles)
        name = str(claims.get(self.provider.name_claim) or claims["sub"])
        if role is None:
            log.warning("oidc.no-role", claim=self.provider.role_claim)
            raise NotLoggedIn("you may not use this node: the single sign-on gives you no role here")
        return Person(str(claims["sub"]), name, role)

    def _client(self, callback: str) -> OAuth2Client:
        provider = self.provider
        return OAuth2Client(
            provider.client_id,
            provider.client_secret,
            token_endpoint_auth_method="client_secret_basic" if provider.client_secret else "none",
            scope=SCOPE,
            redirect_uri=callback,
            code_challenge_method="S256",
            timeout=PATIENCE_S,
            verify=self._trust,
        )

    def _keys_again(self, keys: KeySet) -> KeySet:
        """Asked for again, but not for every token that is wrong. Raises SignOnAway."""
        if self._known is not None and self._monotonic() - self._known[0] >= KEYS_AGAIN_S:
            self._known = None
            return self._discovered()[1]
        return keys

    def _discovered(self) -> tuple[dict[str, Any], KeySet]:
        """What the provider says of itself (OpenID Connect Discovery 4), and its keys. Raises SignOnAway."""
        now = self._monotonic()
        if self._known is not None and now - self._known[0] < DISCOVERED_S:
            return self._known[1], self._known[2]
        issuer = self.provider.issuer
        try:
            with httpx.Client(timeout=PATIENCE_S, verify=self._trust) as client:
                place = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
                known = client.get(place).raise_for_status().json()
                if known.get("issuer") != issuer:
                    raise SignOnAway(f"{place} names another issuer than [oidc] does")
                keys = KeySet.import_key_set(client.get(_endpoint(known, "jwks_uri")).raise_for_status().json())
        except (httpx.HTTPError, httpx.InvalidURL, JoseError, ValueError, AttributeError, KeyError) as error:
            raise self._away(error) from error
        self._known = (now, known, keys)
        return known, keys

    def _away(self, error: Exception) -> SignOnAway:
        log.warning("oidc.away", issuer=self.provider.issuer, error=type(error).__name__)
        self._known = None  # it may have other keys by now
        return SignOnAway("the single sign-on does not answer; try again, or log in with a user of this node")


def _endpoint(known: Mapping[str, Any], name: str) -> str:
    """Raises SignOnAway for one that anybody on the way could read, or that is none."""
    address = known.get(name)
    parts = urlsplit(address) if isinstance(address, str) else urlsplit("")
    own = urlsplit(str(known.get("issuer"))).scheme
    if not parts.hostname or parts.scheme not in ("https", own):
        raise SignOnAway(f"the single sign-on has no {name} that can be used")
    return str(address)


def role_of(claims: Mapping[str, Any], claim: str, roles: Mapping[str, Iterable[str]]) -> str | None:
    """The highest role that a claim gives; None: none. claim: a name, or names within each other: realm_access.roles"""
    held: Any = claims
    for part in [claim] if claim in claims else claim.split("."):
        held = held.get(part) if isinstance(held, Mapping) else None
    values = {held} if isinstance(held, str) else {each for each in held or () if isinstance(each, str)}
    return next((role for role in (ADMIN, READER, VIEWER) if values & set(roles.get(role, ()))), None)
