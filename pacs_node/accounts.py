"""Who may use the pages: people with a password, programs with a token, and for how long each is believed.

Secrets are kept as digests alone: passwords by Argon2id (RFC 9106), session keys and tokens, which are random, by
SHA-256. What is compared is compared in the same time whether it fits or not.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from hmac import compare_digest
from typing import Protocol

import argon2

from pacs_node.errors import NodeError

VIEWER, READER, ADMIN = "viewer", "reader", "admin"
ROLES = (VIEWER, READER, ADMIN)  # each may what the one before it may: look; see who the patient is; change something
METRICS = "metrics"  # of programs alone: the figures, and no list
TOKEN_ROLES = (METRICS, *ROLES)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 256  # characters; no other rule: NIST SP 800-63B 5.1.1.2
WRONG_IN_A_ROW = 5  # passwords of one user; then it is locked
LOCKED_MIN = 15.0
MOST_AT_ONCE = 2  # passwords that are compared at one moment: each takes 64 MiB, as it has to
LONGEST_WAIT_S = 3.0  # for one's turn
MOST_AT_HOME = 1000  # users at addresses that they logged in from
FAILURES_OF_ONE = 20  # from one address, whoever they were for, in that time
BY_OTHERS = "single sign-on "  # in place of a password: it fits none. Whose user it is follows, as a digest
TOKEN_PREFIX = "pn_"  # noqa: S105  so that a leaked token is recognised as one
SEEN_EVERY_S = 30.0  # a session's last use is written down no more often


class NotLoggedIn(NodeError):
    """Nobody is let in, in words that tell a stranger nothing."""


class SignOnAway(NotLoggedIn):
    """The single sign-on does not answer, or not as it should."""


class BadAccount(NodeError):
    """No such user can be made or changed, in words."""


@dataclass(frozen=True)
class User:
    name: str
    role: str
    password: str  # Argon2id, in its own notation
    created_at: datetime
    wrong: int = 0  # passwords in a row
    locked_until: datetime | None = None


@dataclass(frozen=True)
class Session:
    key: str  # digest of what the browser holds
    user: str
    csrf: str
    began_at: datetime
    seen_at: datetime


@dataclass(frozen=True)
class Token:
    name: str
    digest: str
    role: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None


@dataclass(frozen=True)
class Who:
    """On whose behalf something is asked. csrf: what a form must send back; None of programs, and where there are no
    users."""

    name: str
    role: str
    csrf: str | None = None

    def may(self, least: str) -> bool:
        return TOKEN_ROLES.index(self.role) >= TOKEN_ROLES.index(least)


ANYBODY = Who("", ADMIN)  # where there are no users: the node answers on this machine alone


class Kept(Protocol):
    """What is kept of users, sessions and tokens: see ledger/accounts.py."""

    def users(self) -> list[User]: ...
    def user(self, name: str) -> User | None: ...
    def add_user(self, user: User) -> bool: ...
    def change_user(self, name: str, **values: object) -> bool: ...
    def remove_user(self, name: str) -> bool: ...
    def add_session(self, session: Session) -> None: ...
    def session(self, key: str) -> Session | None: ...
    def session_seen(self, key: str, at: datetime) -> None: ...
    def end_sessions(
        self, *, key: str | None = None, user: str | None = None, before: datetime | None = None
    ) -> int: ...
    def tokens(self) -> list[Token]: ...
    def token(self, digest: str) -> Token | None: ...
    def add_token(self, token: Token) -> bool: ...
    def token_used(self, digest: str, at: datetime) -> None: ...
    def remove_token(self, name: str) -> bool: ...


class Accounts:
    """idle_min, longest_h: after so long without use, and after so long in any case, a session ends."""

    def __init__(
        self,
        kept: Kept,
        now: Callable[[], datetime],
        *,
        idle_min: float = 30,
        longest_h: float = 12,
        audit: Callable[[str, Mapping[str, object]], None] = lambda event, facts: None,
        single_sign_on: bool = False,
    ) -> None:
        self.kept, self.now, self.audit, self.single_sign_on = kept, now, audit, single_sign_on
        self.idle, self.longest = timedelta(minutes=idle_min), timedelta(hours=longest_h)
        self._hasher = argon2.PasswordHasher()
        self._failures: dict[str, deque[datetime]] = {}  # by address
        self._at_home: dict[tuple[str, str], int] = {}  # (user, address it logged in from) -> wrong ones since
        self._lock = threading.Lock()
        self._logging_in = threading.BoundedSemaphore(MOST_AT_ONCE)

    @cached_property
    def _nobodys(self) -> str:
        """Compared where there is no such user. It takes as long as a login, which a process that serves none saves."""
        return self._hasher.hash(secrets.token_urlsafe())

    # ---- people

    def add(self, name: str, role: str, password: str) -> None:
        """Raises BadAccount."""
        if not NAME.fullmatch(name):
            raise BadAccount(f"{name[:64]!r} cannot be a user: letters, digits and . _ @ -, at most 64")
        must_be_role(role)
        must_be_fit(name, password)
        if not self.kept.add_user(User(name, role, self._hasher.hash(password), self.now())):
            raise BadAccount(f"there is a user {name!r} already")
        self._changed(f"user:{name}", f"a user with the role {role} was made")

    def change(self, name: str, *, role: str | None = None, password: str | None = None) -> None:
        """Whoever is logged in under this name is logged out. Raises BadAccount."""
        values: dict[str, object] = {"wrong": 0, "locked_until": None}
        known = self.kept.user(name)
        if known is not None and known.password.startswith(BY_OTHERS) and (role is not None or password is not None):
            raise BadAccount(f"{name!r} comes by single sign-on, which gives the role; there is no password here")
        if role is not None:
            must_be_role(role)
            self._must_leave_an_admin(name, becomes=role)
            values["role"] = role
        if password is not None:
            must_be_fit(name, password)
            values["password"] = self._hasher.hash(password)
        if not self.kept.change_user(name, **values):
            raise BadAccount(f"there is no user {name!r}")
        self.kept.end_sessions(user=name)
        self._leaves_home(name)
        given = [f"the role {role}"] * (role is not None) + ["another password"] * (password is not None)
        self._changed(f"user:{name}", f"the user was given {' and '.join(given)}" if given else "the user was unlocked")

    def remove(self, name: str) -> None:
        """Raises BadAccount."""
        self._must_leave_an_admin(name, becomes=None)
        if not self.kept.remove_user(name):
            raise BadAccount(f"there is no user {name!r}")
        self.kept.end_sessions(user=name)
        self._leaves_home(name)
        self._changed(f"user:{name}", "the user was removed")

    def _leaves_home(self, name: str) -> None:
        for known in [each for each in self._at_home if each[0] == name]:
            self._at_home.pop(known, None)

    def _changed(self, what: str, words: str) -> None:
        self.audit("user-changed", {"what": what, "words": words})

    def _must_leave_an_admin(self, name: str, becomes: str | None) -> None:
        """The last user may go, and the pages are open again; the last admin among others may not."""
        others = [user for user in self.kept.users() if user.name != name]
        if becomes != ADMIN and others and not any(user.role == ADMIN for user in others):
            raise BadAccount(f"{name!r} is the last admin; make another user admin first")

    def log_in(self, name: str, password: str, address: str) -> tuple[str, User]:
        """What the browser is to hold, and whose it is. Raises NotLoggedIn."""
        if self._too_many(address, self.now()):  # without waiting
            raise NotLoggedIn(f"too many attempts from here; try again in {LOCKED_MIN:g} minutes")
        if not self._logging_in.acquire(timeout=LONGEST_WAIT_S):
            raise NotLoggedIn("too many log in at this moment; try again")
        try:
            return self._log_in(name, password, address)
        finally:
            self._logging_in.release()

    def _log_in(self, name: str, password: str, address: str) -> tuple[str, User]:
        now = self.now()
        if self._too_many(address, now):
            raise NotLoggedIn(f"too many attempts from here; try again in {LOCKED_MIN:g} minutes")
        user, nobodys = self.kept.user(name) if NAME.fullmatch(name) else None, self._nobodys  # whoever asks
        right = self._fits(user.password if user else nobodys, password) and user is not None
        at_home = self._at_home.get((name, address))
        if user is not None and at_home is None and user.locked_until is not None and user.locked_until > now:
            self._failed(address, now)
            raise NotLoggedIn("name or password is wrong, or the user is locked for a while")
        if not right or user is None:
            self._failed(address, now)
            if at_home is not None and at_home + 1 < WRONG_IN_A_ROW:
                self._at_home[name, address] = at_home + 1
            elif user is not None:
                self._at_home.pop((name, address), None)
                locked = now + timedelta(minutes=LOCKED_MIN) if user.wrong + 1 >= WRONG_IN_A_ROW else None
                if locked is not None:
                    self._changed(f"user:{user.name}", f"the user is locked: {WRONG_IN_A_ROW} wrong passwords in a row")
                self.kept.change_user(user.name, wrong=0 if locked else user.wrong + 1, locked_until=locked)
            raise NotLoggedIn("name or password is wrong, or the user is locked for a while")
        changed: dict[str, object] = {"wrong": 0, "locked_until": None}
        if self._hasher.check_needs_rehash(user.password):
            changed["password"] = self._hasher.hash(password)
        self.kept.change_user(user.name, **changed)
        self._was_at_home(name, address)
        return self._session(user, now), user

    def _was_at_home(self, name: str, address: str) -> None:
        """Wrong passwords from elsewhere lock nobody out from where the right one came from: else any stranger could
        keep everybody out. Known until the node is started again."""
        self._at_home.pop((name, address), None)
        self._at_home[name, address] = 0
        for oldest in list(self._at_home)[:-MOST_AT_HOME]:
            del self._at_home[oldest]

    def _session(self, user: User, now: datetime) -> str:
        self.kept.end_sessions(before=now - self.longest)
        key = secrets.token_urlsafe(32)
        self.kept.add_session(Session(digest(key), user.name, secrets.token_urlsafe(32), now, now))
        return key

    def log_in_by(self, issuer: str, subject: str, name: str, role: str) -> tuple[str, User]:
        """As log_in, of somebody for whom a single sign-on answers; its word gives the role each time.

        Raises NotLoggedIn where the name is that of a user of the node's own, or of another person.
        """
        now, mark = self.now(), f"{BY_OTHERS}{digest(f'{issuer} {subject}')}"
        name = re.sub(r"[^A-Za-z0-9._@-]", "-", name)[:64]
        if not NAME.fullmatch(name):
            raise NotLoggedIn("the single sign-on gives no name that can be one here")
        user = User(name, role, mark, now)
        if not self.kept.add_user(user):
            known = self.kept.user(name)
            if known is None or not compare_digest(known.password, mark):
                raise NotLoggedIn(f"there is another user {name!r} here; an admin can remove that one")
            if known.role != role:
                self.kept.change_user(name, role=role)
                self.kept.end_sessions(user=name)
                self._changed(f"user:{name}", f"the single sign-on gives the role {role}")
        else:
            self._changed(f"user:{name}", f"came by single sign-on, with the role {role}")
        return self._session(user, now), user

    def log_out(self, key: str) -> None:
        self.kept.end_sessions(key=digest(key))

    def _fits(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password[: LONGEST_PASSWORD + 1])
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    # ---- who asks

    @property
    def open(self) -> bool:
        """There are no users and no single sign-on: whoever can reach the pages may do everything."""
        return not self.single_sign_on and not self.kept.users()

    def of_session(self, key: str) -> Who | None:
        now, session = self.now(), self.kept.session(digest(key))
        if session is None:
            return None
        if (
            now - session.seen_at > self.idle
            or now - session.began_at > self.longest
            or session.seen_at > now + self.idle
        ):
            self.kept.end_sessions(key=session.key)
            return None
        user = self.kept.user(session.user)
        if user is None:
            return None
        if (now - session.seen_at).total_seconds() > SEEN_EVERY_S:
            self.kept.session_seen(session.key, now)
        return Who(user.name, user.role, session.csrf)

    def of_token(self, secret: str, address: str) -> Who | None:
        """Raises NotLoggedIn when too many wrong ones came from there. They lock out neither who has a right one, which
        nobody guesses, nor people behind the same address, whose passwords are counted apart."""
        now, programs = self.now(), f"tokens from {address}"
        token = self.kept.token(digest(secret)) if secret.startswith(TOKEN_PREFIX) else None
        if token is None or token.expires_at <= now:
            if self._too_many(programs, now):
                raise NotLoggedIn(f"too many attempts from here; try again in {LOCKED_MIN:g} minutes")
            self._failed(programs, now)
            return None
        if token.used_at is None or (now - token.used_at).total_seconds() > SEEN_EVERY_S:
            self.kept.token_used(token.digest, now)
        return Who(f"token {token.name}", token.role)

    # ---- programs

    def add_token(self, name: str, role: str, days: float) -> str:
        """The secret, which is told once. Raises BadAccount."""
        if not NAME.fullmatch(name):
            raise BadAccount(f"{name[:64]!r} cannot name a token: letters, digits and . _ @ -, at most 64")
        must_be_role(role, TOKEN_ROLES)
        if not 0 < days <= 3660:
            raise BadAccount("a token is good for up to 3660 days")
        secret, now = TOKEN_PREFIX + secrets.token_urlsafe(32), self.now()
        if not self.kept.add_token(Token(name, digest(secret), role, now, now + timedelta(days=days))):
            raise BadAccount(f"there is a token {name!r} already; remove it first")
        self._changed(f"token:{name}", f"a token with the role {role} was made, for {days:g} days")
        return secret

    def remove_token(self, name: str) -> None:
        """Raises BadAccount."""
        if not self.kept.remove_token(name):
            raise BadAccount(f"there is no token {name!r}")
        self._changed(f"token:{name}", "the token was removed")

    # ---- attempts

    def _too_many(self, address: str, now: datetime) -> bool:
        with self._lock:
            tries = self._failures.get(address, deque())
            while tries and now - tries[0] > timedelta(minutes=LOCKED_MIN):
                tries.popleft()
            return len(tries) >= FAILURES_OF_ONE

    def _failed(self, address: str, now: datetime) -> None:
        with self._lock:
            self._failures.setdefault(address, deque(maxlen=FAILURES_OF_ONE)).append(now)
            if len(self._failures) > 10_000:  # addresses; those that tried longest ago are forgotten
                oldest = min(self._failures, key=lambda each: self._failures[each][-1])
                del self._failures[oldest]


def digest(secret: str) -> str:
    """Of what is random: no more is needed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def must_be_role(role: str, known: Sequence[str] = ROLES) -> None:
    """Raises BadAccount."""
    if role not in known:
        raise BadAccount(f"no role {role[:64]!r}; there are {', '.join(known)}")


def must_be_fit(name: str, password: str) -> None:
    """Raises BadAccount unless it can be somebody's password."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise BadAccount(f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    if name.lower() in password.lower() or len(set(password)) < 5:
        raise BadAccount("a password does not hold the user's name, and is more than a few characters repeated")
