"""Who asks, and whether they may: the one place where an address meets a role."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import AsyncExitStack
from functools import wraps
from hmac import compare_digest
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from pacs_node.accounts import ADMIN, ANYBODY, METRICS, READER, VIEWER, Accounts, NotLoggedIn, SignOnAway, Who
from pacs_node.web import languages
from pacs_node.web.uploads import LONGEST_TEXT_FORM, is_multipart, parts_of
from pacs_node.web.views import LONGEST_FORM, Views, body_of, for_people, inside, once

if TYPE_CHECKING:
    from pacs_node.web.oidc import SingleSignOn

COOKIE = "pacs-node"
STATE = "pacs-node-oidc"
CSRF = "csrf"  # the field of a form that proves that one of our pages has made it

# address -> the least role that may ask for it; None: anybody
NEEDS: dict[str, str | None] = {
    "/": VIEWER,
    "/series/{uid}": VIEWER,
    "/series/{uid}/view": VIEWER,
    "/series/{uid}/patient": READER,
    "/feedback": VIEWER,
    "/pipelines/{name}": VIEWER,
    "/pipelines/{name}/card": VIEWER,
    "/rerun": ADMIN,
    "/destinations": VIEWER,
    "/refusals": VIEWER,
    "/queue": VIEWER,
    "/api/queue": VIEWER,
    "/api/pauses": VIEWER,
    "/api/pause": ADMIN,
    "/api/resume": ADMIN,
    "/api/jobs/{id}/priority": ADMIN,
    "/api/inference": VIEWER,
    "/health": None,  # for load balancers and watchers: it names no patient
    "/ready": None,
    "/metrics": METRICS,
    "/system": VIEWER,
    "/api/system": VIEWER,
    "/api/series": VIEWER,
    "/api/series.csv": VIEWER,
    "/api/bulk": ADMIN,
    "/api/export": READER,  # as they were sent, with the patient's name
    "/api/changes": VIEWER,
    "/api/series/{uid}": VIEWER,
    "/api/patient": READER,  # a search by it; the list of what it finds is asked by hashes, and for readers alone
    "/api/series/{uid}/patient": READER,
    "/api/series/{uid}/findings": VIEWER,
    "/api/series/{uid}/view": VIEWER,
    "/api/series/{uid}/earlier": VIEWER,
    "/api/series/{uid}/view/{name}": VIEWER,  # of images that may show a name: a reader, see web/viewer.py
    "/api/series/{uid}/feedback": READER,
    "/api/feedback": READER,  # it names who has said what
    "/api/series/{uid}/rerun": ADMIN,
    "/api/rerun": ADMIN,
    "/api/destinations": VIEWER,
    "/api/refusals": VIEWER,
    "/audit": ADMIN,
    "/api/audit": ADMIN,
    "/api/jobs/{id}/retry": ADMIN,
    "/api/jobs/{id}/dismiss": ADMIN,
    "/api/jobs/{id}/results/{name}": READER,  # as it was sent, with the patient's name
    "/api/jobs/{id}/rejected": VIEWER,
    "/api/jobs/{id}/rejected/{name}": READER,  # names may be burnt into its pixels
    "/peers": VIEWER,
    "/peers/edit": ADMIN,
    "/peers/delete": ADMIN,
    "/peers/test": ADMIN,
    "/routes": VIEWER,
    "/routes/edit": ADMIN,
    "/routes/delete": ADMIN,
    "/notices": ADMIN,
    "/notices/edit": ADMIN,
    "/notices/delete": ADMIN,
    "/notices/test": ADMIN,
    "/shadow": VIEWER,
    "/api/shadow": VIEWER,
    "/api/shadow.csv": VIEWER,
    "/settings": ADMIN,
    "/settings/undo": ADMIN,
    "/settings/reload": ADMIN,
    "/login": None,
    "/language": None,  # a wish of the browser that asks, and of nobody else
    "/logout": VIEWER,
    "/oidc/login": None,
    "/oidc/callback": None,
    "/oidc/logout": None,
}

# what a single sign-on sends a browser back with: RFC 6749 4.1.2, RFC 9207, OpenID Connect Session Management 3; and
# what some providers add
ANSWERED = (
    *("code", "state", "iss", "error", "error_description", "error_uri", "session_state"),
    *("scope", "authuser", "prompt", "hd"),
)
SEARCH = "/api/patient"  # an event of its own
LOGS = ("/audit", "/api/audit")  # whoever reads the audit trail stands in it
UPLOADS = {"/routes/edit"}  # addresses that take a file with a form, and a longer text

TOLD_AGAIN_S = 300.0  # who goes through the pictures of a series is told of once in that time, not with each
MOST_TOLD = 10_000  # of these that are known at one moment

View = Callable[[Request], Response]


class Door:
    """Lets in. accounts: None where nobody logs in. secure: the browser is to send its key over TLS alone. audit: told
    of who came in, who did not, who pressed what, and who saw what: every answer of an address that needs READER, and
    each study that a view names in request.state.studies, of one series or job once in TOLD_AGAIN_S; and of a search by
    a patient, that a view names in request.state.sought, as it is asked by hashes."""

    def __init__(
        self,
        accounts: Accounts | None,
        views: Views,
        audit: Callable[[str, Mapping[str, object]], None],
        *,
        secure: bool,
        single_sign_on: SingleSignOn | None = None,
    ) -> None:
        self.accounts, self.views, self.audit, self.secure = accounts, views, audit, secure
        self.single_sign_on = single_sign_on
        self._told: dict[Hashable, float] = {}  # who saw what -> when the audit trail was told, the oldest first
        self._telling = threading.Lock()

    def guarded(self, path: str, view: View) -> Callable[..., object]:
        """The view, for whom NEEDS lets have it; a form must show that it is ours."""
        least = NEEDS[path]

        @wraps(view)
        async def asked(request: Request) -> Response:
            who = None
            if least is not None:  # else nobody is asked for, and the ledger may be away: /health says so
                who = await run_in_threadpool(self._who, request)
                if who is None:
                    return self._log_in_first(request)
                if not who.may(least):
                    self._tell(request, who, "asked", {"what": request.url.path, "status": 403})
                    raise HTTPException(403, f"this needs the role {least}; you are {who.name!r}, {who.role}")
            request.state.who, request.state.form, request.state.studies = who, (), ()
            request.state.sought = ""
            request.state.file, request.state.said = None, ""  # what a button was about, for the audit trail
            async with AsyncExitStack() as stack:
                if request.method == "POST" and path in UPLOADS and is_multipart(request):
                    fields, request.state.file = await stack.enter_async_context(parts_of(request))
                    request.state.form = fields
                elif request.method == "POST":
                    longest = LONGEST_TEXT_FORM if path in UPLOADS else LONGEST_FORM
                    request.state.form = tuple(parse_qsl(await body_of(request, longest), keep_blank_values=True))
                if request.method == "POST":
                    self._must_be_ours(request, who)
                return await run_in_threadpool(self._answered, view, request, who, least)

        return asked

    def _answered(self, view: View, request: Request, who: Who | None, least: str | None) -> Response:
        """What the view says; and the audit trail is told who pressed what, and who saw what."""
        try:
            response = view(request)
        except HTTPException as refused:
            self._told_of(request, who, least, refused.status_code)
            raise
        self._told_of(request, who, least, response.status_code)
        return response

    def _told_of(self, request: Request, who: Who | None, least: str | None, status: int) -> None:
        what, seen = {"what": request.url.path, "status": status}, request.state.studies
        if who is None or request.url.path == "/logout":
            return
        sought = request.state.sought  # a list of it shows itself anew, and goes on for pages
        if sought and (request.url.path == SEARCH or self._not_told_lately(who.name, _address(request), sought)):
            self._tell(request, who, "patient-sought", {**what, "query": request.state.sought})
        if request.method == "POST" and not (request.state.sought and request.url.path == SEARCH):
            self._tell(request, who, "asked", {**what, "words": request.state.said} if request.state.said else what)
        elif request.url.path in LOGS and status < 400:
            self._tell(request, who, "audit-used", what)
        elif status == 403:  # who may look, and not see this
            self._tell(request, who, "asked", what)
        elif least == READER and not seen:
            self._tell(request, who, "identity-asked", what)
        for study in seen if status < 400 else ():
            # files of one series or job stand below one address
            name = request.path_params.get("name")
            place = request.url.path.removesuffix(f"/{name}")
            if name is None or self._not_told_lately(who.name, _address(request), study, place):
                self._tell(request, who, "instances-accessed", {**what, "study": study})

    def _not_told_lately(self, *what: str) -> bool:
        now = time.monotonic()
        with self._telling:
            if now - self._told.get(what, -TOLD_AGAIN_S) < TOLD_AGAIN_S:
                return False
            self._told.pop(what, None)
            self._told[what] = now
            if len(self._told) > MOST_TOLD:
                del self._told[next(iter(self._told))]
            return True

    def _tell(self, request: Request, who: Who, event: str, facts: Mapping[str, object]) -> None:
        self.audit(event, {"user": who.name or "anybody", "from": _address(request), **facts})

    def _who(self, request: Request) -> Who | None:
        if self.accounts is None:
            return ANYBODY
        address = _address(request)
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            try:
                who = self.accounts.of_token(secret.strip(), address)
            except NotLoggedIn as error:
                raise HTTPException(429, str(error)) from error
            if who is None:
                self.audit("token-refused", {"from": address})
            return who
        key = request.cookies.get(COOKIE)
        who = self.accounts.of_session(key) if key else None
        return who or (ANYBODY if self.accounts.open else None)

    def _must_be_ours(self, request: Request, who: Who | None) -> None:
        """Raises HTTPException 403: besides what the browser says of where it comes from, see app.SecurityHeaders."""
        if who is None or who.csrf is None:
            return
        said = dict(request.state.form).get(CSRF) or request.headers.get("x-csrf-token", "")
        if not compare_digest(said.encode("utf-8", "replace"), who.csrf.encode()):
            raise HTTPException(403, "this form is not of a page that you have open; load the page again")
        request.state.form = tuple(field for field in request.state.form if field[0] != CSRF)

    def _log_in_first(self, request: Request) -> Response:
        if for_people(request) and request.method == "GET":
            asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?next={quote(asked, safe='')}", status_code=303)
        words = "log in, or send a token: Authorization: Bearer ..."
        return JSONResponse({"error": words}, status_code=401, headers={"www-authenticate": "Bearer"})

    # ---- the addresses that are about this alone

    def login(self, request: Request) -> Response:
        form = dict(request.state.form or request.query_params)
        onward, address = inside(form.get("next", "/")), _address(request)
        if self.accounts is None or (request.method == "GET" and self.accounts.open):
            return RedirectResponse(onward, status_code=303)
        if request.method == "GET":
            return self._login_page(request, onward)
        name = form.get("name", "")
        try:
            key, user = self.accounts.log_in(name, form.get("password", ""), address)
        except NotLoggedIn as error:
            self.audit("login-refused", {"user": name[:64], "from": address, "words": str(error)})
            return self._login_page(request, onward, str(error), 401)
        return self._logged_in(request, onward, key, user.name)

    def _login_page(self, request: Request, onward: str, words: str | None = None, status: int = 200) -> Response:
        shown = {"next": onward, "words": words, "single_sign_on": self.single_sign_on is not None}
        return self.views.page(request, "login.html", shown, status)

    def _logged_in(self, request: Request, onward: str, key: str, name: str) -> Response:
        self.audit("login", {"user": name, "from": _address(request)})
        response = RedirectResponse(onward, status_code=303)
        response.set_cookie(COOKIE, key, httponly=True, samesite="lax", secure=self.secure, path="/")
        return response

    def language(self, request: Request) -> Response:
        """In which language this browser is shown the pages from now on."""
        language = once([*request.state.form], ("language",)).get("language", "")
        if language not in languages.LANGUAGES:
            raise HTTPException(400, f"language is one of {', '.join(languages.LANGUAGES)}, not {language[:20]!a}")
        response = RedirectResponse(inside(request.query_params.get("next", "/")), status_code=303)
        response.set_cookie(
            languages.COOKIE,
            language,
            max_age=languages.KEPT_S,
            httponly=True,
            samesite="lax",
            secure=self.secure,
            path="/",
        )
        return response

    def oidc_login(self, request: Request) -> Response:
        """To the single sign-on, which sends the browser back to oidc_callback."""
        sign_on, onward = self._sign_on(), inside(request.query_params.get("next", "/"))
        try:
            address, state = sign_on.begin(self._own(request, "/oidc/callback"), onward, _address(request))
        except SignOnAway as error:
            return self._login_page(request, onward, str(error), 503)
        response = RedirectResponse(address, status_code=303)
        # lax: the browser comes back from another site
        response.set_cookie(STATE, state, 600, httponly=True, samesite="lax", secure=self.secure, path="/oidc")
        return response

    def oidc_callback(self, request: Request) -> Response:
        sign_on, accounts = self._sign_on(), self.accounts
        assert accounts is not None
        try:
            person, onward = sign_on.end(request.query_params, request.cookies.get(STATE, ""))
            key, user = accounts.log_in_by(sign_on.provider.issuer, person.subject, person.name, person.role)
        except NotLoggedIn as error:
            self.audit("login-refused", {"user": "", "from": _address(request), "words": str(error)})
            response = self._login_page(request, "/", str(error), 503 if isinstance(error, SignOnAway) else 401)
        else:
            response = self._logged_in(request, onward, key, user.name)
        response.delete_cookie(STATE, path="/oidc")
        return response

    def oidc_logout(self, request: Request) -> Response:
        """To the page of the single sign-on that ends it for all that it is for."""
        try:
            address = self._sign_on().farewell(self._own(request, "/login"))
        except SignOnAway as error:
            return self._login_page(request, "/", str(error), 503)
        return RedirectResponse(address or "/login", status_code=303)

    def _sign_on(self) -> SingleSignOn:
        if self.single_sign_on is None or self.accounts is None:
            raise HTTPException(404, "there is no single sign-on; see [oidc] in the settings")
        return self.single_sign_on

    def _own(self, request: Request, path: str) -> str:
        """An address of ours as the browser knows it; the name it was asked under is one of ours, see app."""
        scheme = "https" if self.secure else request.url.scheme
        return f"{scheme}://{request.url.netloc}{path}"

    def logout(self, request: Request) -> Response:
        key = request.cookies.get(COOKIE)
        if key and self.accounts is not None:
            self.accounts.log_out(key)
            self.audit("logout", {"user": request.state.who.name, "from": _address(request)})
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(COOKIE, path="/")
        return response


def _address(request: Request) -> str:
    """Of who asks."""
    return request.client.host if request.client else ""
