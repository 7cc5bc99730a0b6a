"""The pages of peers, routes, who is told, and the history of the settings. They ask the desk and show what it says."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node.accounts import ADMIN
from pacs_node.errors import SettingsChanged, SettingsRefused
from pacs_node.web.views import Views

MAKE_ONE = "pacs-node user add NAME --role admin --config node.toml"
DAYS = 7  # that a route is tried on, unless the page says another number
KEPT_S = 900.0  # what somebody has entered into a form that came back
MOST_KEPT = 100  # of these at one moment
LISTS = {"peer": "peers", "route": "routes", "notify": "notices"}  # kind of an entry -> the page of all


class Desk(Protocol):
    """The settings as pages show and change them. Plain values only."""

    def state(self) -> dict[str, Any]: ...
    def warnings(self) -> list[str]: ...
    def history(self) -> list[dict[str, Any]]: ...
    def peers(self) -> list[dict[str, Any]]: ...
    def routes(self) -> list[dict[str, Any]]: ...
    def notices(self) -> list[dict[str, Any]]: ...
    def entry(self, kind: str, name: str | None) -> str: ...
    def from_form(
        self, kind: str, name: str | None, form: Sequence[tuple[str, str]]
    ) -> tuple[str, str | None]: ...  # and what of the form could not be used
    def form(self, kind: str, text: str) -> dict[str, Any]: ...
    def offered(self) -> dict[str, Any]: ...
    def secret(self, kind: str) -> frozenset[str]: ...
    def problems(self, kind: str, name: str | None, text: str) -> list[str]: ...
    def save(self, kind: str, name: str | None, text: str, looked_at: str, who: str) -> None: ...
    def delete(self, kind: str, name: str, looked_at: str, who: str) -> None: ...
    def undo(self, number: int, looked_at: str, who: str) -> None: ...
    def reload(self, who: str) -> bool: ...
    def test(self, text: str | None, name: str | None) -> dict[str, Any]: ...
    def tell(self, text: str | None, name: str | None) -> dict[str, Any]: ...
    def try_route(
        self, name: str | None, text: str, *, days: int | None, series_uid: str | None, file: Path | None
    ) -> dict[str, Any]: ...


class Entered:
    """Secrets that somebody has entered into a form that comes back, tried or refused: no page shows them, and nobody
    wants to enter them again. In memory, for who entered them, for KEPT_S."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic, self._lock = monotonic, threading.Lock()
        self._kept: dict[str, tuple[str, float, dict[str, str]]] = {}

    def keep(self, who: str, secrets: dict[str, str]) -> str:
        """By what the form names them when it is sent again."""
        handle, now = token_urlsafe(), self._monotonic()
        with self._lock:
            kept = [(key, each) for key, each in self._kept.items() if now - each[1] < KEPT_S]
            self._kept = dict(kept[-(MOST_KEPT - 1) :]) | {handle: (who, now, secrets)}
        return handle

    def take(self, who: str, handle: str) -> dict[str, str]:
        """None of them for anybody else, or when it was long ago."""
        with self._lock:
            owner, since, secrets = self._kept.pop(handle, ("", -math.inf, {}))
        return secrets if owner == who and self._monotonic() - since < KEPT_S else {}


class SettingsViews:
    """desk: None where the node does not know its settings file."""

    def __init__(self, views: Views, desk: Desk | None) -> None:
        self.views, self._desk, self._entered = views, desk, Entered()

    @property
    def desk(self) -> Desk:
        if self._desk is None:
            raise HTTPException(503, "this node was started without a settings file that can be changed")
        return self._desk

    def _somebody(self, request: Request) -> Desk:
        """Settings are changed by somebody: where there are no users, whoever reaches the page could have results sent
        anywhere. Raises HTTPException 403."""
        desk = self.desk
        if not request.state.who.name:
            raise HTTPException(
                403,
                f"settings are changed by users only; make one: {MAKE_ONE}",
            )
        return desk

    # ---- what there is

    def peers(self, request: Request, tested: Mapping[str, Any] | None = None) -> Response:
        return self._page(request, "peers.html", {"peers": self.desk.peers(), "tested": tested})

    def routes(self, request: Request) -> Response:
        return self._page(request, "routes.html", {"routes": self.desk.routes()})

    def notices(self, request: Request, tested: Mapping[str, Any] | None = None) -> Response:
        return self._page(request, "notices.html", {"notices": self.desk.notices(), "tested": tested})

    def settings(self, request: Request, refused: str | None = None, status_code: int = 200) -> Response:
        desk = self._somebody(request)
        shown = {"history": desk.history(), "warnings": desk.warnings(), "refused": refused}
        return self._page(request, "settings.html", shown, status_code)

    def _page(self, request: Request, template: str, shown: Mapping[str, Any], status_code: int = 200) -> Response:
        who = request.state.who
        somebody = who is not None and bool(who.name)
        may_change = somebody and who.may(ADMIN)
        facts = {"state": self.desk.state(), "may_change": may_change, "somebody": somebody, **shown}
        return self.views.page(request, template, facts, status_code)

    # ---- one entry

    def edit_peer(self, request: Request) -> Response:
        return self._edit(request, "peer", "peer.html", {"test": self._test})

    def edit_route(self, request: Request) -> Response:
        return self._edit(request, "route", "route.html", {"try": self._try, "check": self._check})

    def edit_notice(self, request: Request) -> Response:
        return self._edit(request, "notify", "notice.html", {"test": self._tell})

    def _edit(
        self,
        request: Request,
        kind: str,
        template: str,
        others: Mapping[str, Callable[[Request, str | None, str], dict[str, Any]]],
    ) -> Response:
        """Shows an entry (GET), saves it, or does with it what `others` name."""
        self._somebody(request)
        if request.method == "GET":
            name = request.query_params.get("name")
            try:
                return self._entry(request, kind, template, name, self.desk.entry(kind, name))
            except SettingsRefused as refused:
                raise HTTPException(404, str(refused)) from refused
        form = self._with_secrets(request, kind)
        said = _first(form, ("name_before", "looked_at", "do", "source", "toml", "days", "series_uid"))
        name, do, looked_at = said.get("name_before") or None, said.get("do", "save"), said.get("looked_at", "")
        text, bad = said.get("toml", "").replace("\r\n", "\n"), None
        try:
            if said.get("source") != "toml":
                text, bad = self.desk.from_form(kind, name, form)
            if bad is not None:
                raise SettingsRefused(bad)
            if do in others:
                return self._entry(request, kind, template, name, text, others[do](request, name, text))
            self.desk.save(kind, name, text, looked_at, request.state.who.name)
        except SettingsChanged as changed:
            return self._entry(request, kind, template, name, text, {"refused": str(changed)}, 409)
        except SettingsRefused as refused:
            return self._entry(request, kind, template, name, text, {"refused": str(refused)}, 400)
        return RedirectResponse(f"/{LISTS[kind]}", status_code=303)

    def _with_secrets(self, request: Request, kind: str) -> list[tuple[str, str]]:
        """What the form says, with what was entered into it before it came back; also as `secrets` of the request."""
        form: list[tuple[str, str]] = list(request.state.form)
        who, names = request.state.who.name, self.desk.secret(kind)
        given = {name: value for name, value in reversed(form) if name in names and value.strip()}
        before = self._entered.take(who, _first(form, ("entered",)).get("entered", ""))
        removed = {name.removesuffix(".remove") for name, _ in form if name.endswith(".remove")}
        secrets = {name: value for name, value in before.items() if name not in removed} | given
        request.state.secrets = secrets
        return [*((name, value) for name, value in form if name not in secrets), *secrets.items()]

    def _entry(
        self,
        request: Request,
        kind: str,
        template: str,
        name: str | None,
        text: str,
        came_of_it: Mapping[str, Any] | None = None,
        status_code: int = 200,
    ) -> Response:
        """The page of one entry, and what came of what was asked of it."""
        try:
            form = self.desk.form(kind, text)
        except SettingsRefused as refused:  # a text that no form can show: what is in the file stands in its place
            form = self.desk.form(kind, self._original(kind, name))
            came_of_it = {"refused": str(refused), **(came_of_it or {})}
        shown = {"kind": kind, "name_before": name, "toml": text, "form": form, "days": DAYS}
        if secrets := getattr(request.state, "secrets", None):
            shown |= {"entered": self._entered.keep(request.state.who.name, secrets)}
        if kind == "route":
            shown |= {"offered": self.desk.offered()}
        return self._page(request, template, {**shown, **(came_of_it or {})}, status_code)

    def _original(self, kind: str, name: str | None) -> str:
        try:
            return self.desk.entry(kind, name)
        except SettingsRefused:  # it is gone
            return self.desk.entry(kind, None)

    def _test(self, request: Request, name: str | None, text: str) -> dict[str, Any]:
        return {"tested": self.desk.test(text, name)}

    def _tell(self, request: Request, name: str | None, text: str) -> dict[str, Any]:
        return {"tested": self.desk.tell(text, name)}

    def _check(self, request: Request, name: str | None, text: str) -> dict[str, Any]:
        problems = self.desk.problems("route", name, text)
        return {"refused": "\n".join(problems) or None, "good": not problems}

    def _try(self, request: Request, name: str | None, text: str) -> dict[str, Any]:
        said = dict(request.state.form)
        series_uid = said.get("series_uid", "").strip() or None
        days = said.get("days", "").strip() or str(DAYS)
        if not (days.isdigit() and 1 <= int(days) <= 365):
            raise SettingsRefused(f"days is a number from 1 to 365, not '{days[:20]}'")
        asked = {"days": int(days), "series_uid": series_uid, "file": request.state.file}
        return {"tried": self.desk.try_route(name, text, **asked), "days": int(days), "series_uid": series_uid}

    # ---- buttons

    def test_peer(self, request: Request) -> Response:
        said = _first(request.state.form, ("name",))
        return self.peers(request, self._somebody(request).test(None, said.get("name", "")))

    def test_notice(self, request: Request) -> Response:
        said = _first(request.state.form, ("name",))
        return self.notices(request, self._somebody(request).tell(None, said.get("name", "")))

    def delete_notice(self, request: Request) -> Response:
        return self._delete(request, "notify")

    def delete_peer(self, request: Request) -> Response:
        return self._delete(request, "peer")

    def delete_route(self, request: Request) -> Response:
        return self._delete(request, "route")

    def _delete(self, request: Request, kind: str) -> Response:
        said = _first(request.state.form, ("name", "looked_at"))
        name = said.get("name", "")
        try:
            self._somebody(request).delete(kind, name, said.get("looked_at", ""), request.state.who.name)
        except SettingsRefused as refused:
            every = LISTS[kind]
            shown = {every: getattr(self.desk, every)(), "refused": str(refused)}
            status_code = 409 if isinstance(refused, SettingsChanged) else 400
            return self._page(request, f"{every}.html", shown, status_code)
        return RedirectResponse(f"/{LISTS[kind]}", status_code=303)

    def undo(self, request: Request) -> Response:
        desk = self._somebody(request)
        said = _first(request.state.form, ("id", "looked_at"))
        if not said.get("id", "").isdigit():
            raise HTTPException(400, "id is the number of a version")
        try:
            desk.undo(int(said["id"]), said.get("looked_at", ""), request.state.who.name)
        except SettingsRefused as refused:
            return self.settings(request, str(refused), 409 if isinstance(refused, SettingsChanged) else 400)
        return RedirectResponse("/settings", status_code=303)

    def reload(self, request: Request) -> Response:
        try:
            self._somebody(request).reload(request.state.who.name)
        except SettingsRefused as refused:
            return self.settings(request, str(refused), 400)
        return RedirectResponse("/settings", status_code=303)


def _first(form: Sequence[tuple[str, str]], keys: Sequence[str]) -> dict[str, str]:
    """Of each of these fields the first value."""
    said: dict[str, str] = {}
    for key, value in form:
        if key in keys:
            said.setdefault(key, value)
    return said
