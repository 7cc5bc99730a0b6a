"""The web application: the same facts as JSON and as two plain pages. Nothing is loaded from elsewhere.

    GET  /                        the latest series; searched, filtered, sorted
    GET  /series/{uid}            one series: why it closed, what each rule said, its jobs, its timeline
    GET  /series/{uid}/patient    who the patient is, for readers
    GET  /series/{uid}/view       the images of a series, and what was found on them
    GET  /feedback                what readers say of the findings: counts of each pipeline and version
    GET  /pipelines/{name}        what a pipeline did, week by week, and whether it drifts
    GET  /refusals                what was refused or kept aside at receipt: when, from whom, why
    GET  /queue                   what runs and what waits, in its order, and why; what is paused
    GET  /rerun                   a form: run many series again
    GET  /audit                   who did what: the audit trail
    GET  /destinations            where results go, and what each destination accepted and refused
    GET  /peers                   the systems around; /edit, /test, /delete change and ask them
    GET  /routes                  which series goes where; /edit tries a route before it is taken up, /delete
    GET  /shadow                  a shadow route beside a live one, on the same series
    GET  /settings                what was changed, when, by whom; /undo, /reload
    GET  /login                   name and password; POST logs in, and POST /logout out
    POST /language                the language of the pages, kept in a cookie of the browser
    GET  /system                  versions, devices, disk, backlog, backup, certificates, peers
    GET  /ready                   200 while senders and people should be led here, else 503; with the reasons
    GET  /oidc/login              to the single sign-on; /callback is where it sends back to, /logout its own log out
    GET  /health                  ok and degraded: 200; trouble: 503; with the reasons
    GET  /metrics                 Prometheus
    GET  /api/series              a list; the Link header leads to older ones
    GET  /api/series.csv          the same as a table
    GET  /api/changes             a server-sent event as soon as a page would show something else
    POST /api/patient             the series of a patient, for readers
    POST /api/bulk                retry, run again or delete what was chosen of the list
    POST /api/export              the results of what was chosen of the list, as one ZIP file
    GET  /api/series/{uid}
    GET  /api/series/{uid}/patient  the same as /series/{uid}/patient
    GET  /api/series/{uid}/findings  what the results say, as JSON or CSV
    GET  /api/series/{uid}/view   the series as one volume; /{name} is one of its files, or a picture
    GET  /api/series/{uid}/earlier  the study that its results were compared with, registered
    POST /api/series/{uid}/feedback  what a reader says of a finding, or where one was missed
    GET  /api/feedback            all that was said, as JSON or CSV
    GET  /api/jobs/{id}/results/{name}  a result, as it was sent
    GET  /api/shadow              the same as /shadow; /api/shadow.csv is a line for each series
    GET  /api/destinations
    GET  /api/queue               the same as /queue
    GET  /api/system              the same as /system
    GET  /api/inference           the devices, and the forms in which networks are served
    GET  /api/audit               the same as /audit
    GET  /api/refusals            {"counts": of each kind, "refusals": the newest}
    POST /api/jobs/{id}/retry     run an open, failed or refused job now, afresh
    POST /api/jobs/{id}/dismiss   a job that failed for good is no trouble any more
    POST /api/series/{uid}/rerun  run a closed series again, with today's models and rules
    POST /api/rerun               the same for many: ?since=2026-03-01, ?route=..., or both
    GET  /api/jobs/{id}/rejected  objects held back because they fail the checks; /{name} is one of them

A query key that an address does not know, or a value that it cannot use, is a 400 in words.

No page and no answer carries a patient's name or number, but /patient, and results as they were sent;
rejected objects are handed out without them. Where there are users, each address asks for a role: see
access.NEEDS. What is asked for under a name that is not the node's is refused, and so is a POST that a page of
another site sends: the browser of somebody who may reach the node must not lend this to a stranger's page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from h11 import LocalProtocolError
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pacs_node.accounts import Accounts
from pacs_node.errors import LedgerUnavailable
from pacs_node.web.access import ANSWERED, Door
from pacs_node.web.export import ExportViews
from pacs_node.web.facts import Facts
from pacs_node.web.lists import FILTER, WHERE, ListViews
from pacs_node.web.live import LiveViews
from pacs_node.web.patients import PatientViews
from pacs_node.web.queue import QueueViews
from pacs_node.web.settings_views import Desk, SettingsViews
from pacs_node.web.shadow import KEYS as SHADOW_KEYS
from pacs_node.web.shadow import ShadowViews
from pacs_node.web.system import SystemViews
from pacs_node.web.viewer import ViewerViews
from pacs_node.web.views import AUDIT_KEYS, View, Views, knowing

if TYPE_CHECKING:
    from pacs_node.web.oidc import SingleSignOn

HERE = Path(__file__).parent


def create_app(
    facts: Facts,
    registry: CollectorRegistry,
    names: Iterable[str] = (),
    accounts: Accounts | None = None,
    audit: Callable[[str, Mapping[str, object]], None] = lambda event, facts: None,
    *,
    secure: bool = False,
    single_sign_on: SingleSignOn | None = None,
    desk: Desk | None = None,
    language: str = "en",
) -> Starlette:
    """The whole application; `facts` may block, it is called from worker threads.

    names     host names, without port, under which the node may be asked; localhost and addresses always may
    accounts  None: nobody logs in
    secure    browsers reach it over TLS alone
    single_sign_on  None: people log in with users of the node alone
    desk      the settings, where they can be changed
    language  of the pages, for whose browser asks for none that is known
    """
    views = Views(facts, registry, HERE / "templates", language)
    viewer = ViewerViews(facts, views)
    queue = QueueViews(facts, views)
    patients = PatientViews(facts, views)
    lists, system = ListViews(facts, views), SystemViews(facts, views)
    door = Door(accounts, views, audit, secure=secure, single_sign_on=single_sign_on)
    of_settings, shadow = SettingsViews(views, desk), ShadowViews(facts, views)
    post, both = ["POST"], ["GET", "POST"]

    def at(path: str, view: View, *keys: str, methods: list[str] | None = None) -> Route:
        return Route(path, door.guarded(path, knowing(view, *keys)), methods=methods)

    def unforeseen(request: Request, error: Exception) -> Response:
        response = views.unforeseen(request, error)
        response.raw_headers.extend(headers_of(secure=secure))  # it is answered from without the middleware
        return response

    return Starlette(
        routes=[
            at("/", lists.page, *WHERE),
            at("/series/{uid}", views.series_page),
            at("/series/{uid}/patient", patients.page),
            at("/series/{uid}/view", viewer.page),
            at("/feedback", viewer.feedback_page),
            at("/pipelines/{name}", viewer.pipeline_page, "sender"),
            at("/pipelines/{name}/card", viewer.card_page),
            at("/rerun", views.rerun_page),
            at("/destinations", views.destinations_page),
            at("/refusals", views.refusals_page, "kind", "sender"),
            at("/queue", queue.page),
            at("/system", system.page),
            at("/audit", views.audit_page, *AUDIT_KEYS),
            at("/health", views.health),
            at("/ready", system.ready),
            at("/metrics", views.metrics),
            at("/api/series", lists.series_list, "limit", *WHERE),
            at("/api/series.csv", lists.export, *FILTER),
            at("/api/changes", LiveViews(facts).changes),
            at("/api/bulk", lists.bulk, "do", "series", "all", "query", "confirmed", "until", "agreed", methods=post),
            at("/api/export", ExportViews(facts, lists).results, "series", "all", "query", methods=post),
            at("/api/patient", patients.search, methods=post),
            at("/api/series/{uid}", views.series),
            at("/api/series/{uid}/patient", patients.patient),
            at("/api/series/{uid}/findings", viewer.findings, "form", "shadow"),
            at("/api/series/{uid}/view", viewer.volume),
            at("/api/series/{uid}/earlier", viewer.earlier),
            at("/api/series/{uid}/view/{name}", viewer.file),
            at("/api/series/{uid}/feedback", viewer.note_feedback, methods=post),
            at("/api/feedback", viewer.feedback, "form"),
            at("/api/jobs/{id}/results/{name}", viewer.result),
            at("/api/destinations", views.destinations),
            at("/api/refusals", views.refusals, "limit", "kind", "sender"),
            at("/api/audit", views.audit, "limit", *AUDIT_KEYS),
            at("/api/inference", views.inference),
            at("/api/system", system.state),
            at("/api/queue", queue.queue, "limit"),
            at("/api/pauses", queue.pauses),
            at("/api/pause", queue.pause, "what", "reason", "hours", methods=post),
            at("/api/resume", queue.resume, "what", methods=post),
            at("/api/jobs/{id}/priority", queue.priority, "to", methods=post),
            at("/api/series/{uid}/rerun", views.rerun, methods=post),
            at("/api/rerun", views.rerun_many, "route", "since", methods=post),
            at("/api/jobs/{id}/retry", views.retry, methods=post),
            at("/api/jobs/{id}/dismiss", views.dismiss, methods=post),
            at("/api/jobs/{id}/rejected", views.rejected),
            at("/api/jobs/{id}/rejected/{name}", views.rejected_object),
            at("/peers", of_settings.peers),
            at("/peers/edit", of_settings.edit_peer, "name", methods=both),
            at("/peers/delete", of_settings.delete_peer, methods=post),
            at("/peers/test", of_settings.test_peer, methods=post),
            at("/routes", of_settings.routes),
            at("/routes/edit", of_settings.edit_route, "name", methods=both),
            at("/routes/delete", of_settings.delete_route, methods=post),
            at("/notices", of_settings.notices),
            at("/notices/edit", of_settings.edit_notice, "name", methods=both),
            at("/notices/delete", of_settings.delete_notice, methods=post),
            at("/notices/test", of_settings.test_notice, methods=post),
            at("/shadow", shadow.page, *SHADOW_KEYS),
            at("/api/shadow", shadow.compared, *SHADOW_KEYS),
            at("/api/shadow.csv", shadow.export, *SHADOW_KEYS),
            at("/settings", of_settings.settings),
            at("/settings/undo", of_settings.undo, methods=post),
            at("/settings/reload", of_settings.reload, methods=post),
            at("/login", door.login, "next", methods=["GET", "POST"]),
            at("/logout", door.logout, methods=post),
            at("/language", door.language, "next", methods=post),
            at("/oidc/login", door.oidc_login, "next"),
            at("/oidc/callback", door.oidc_callback, *ANSWERED),
            at("/oidc/logout", door.oidc_logout),
            Mount("/static", StaticFiles(directory=HERE / "static"), name="static"),
        ],
        exception_handlers={
            HTTPException: views.error,
            LedgerUnavailable: views.no_ledger,
            Exception: unforeseen,
        },
        middleware=[
            Middleware(SecurityHeaders, names=frozenset(name.lower() for name in ("localhost", *names)), secure=secure)
        ],
    )


NOT_USED = (  # of what a browser could give a page
    *("accelerometer", "camera", "display-capture", "geolocation", "gyroscope", "magnetometer", "microphone"),
    *("midi", "payment", "usb"),
)
HSTS_DAYS = 30  # each answer begins them anew; a site that gives TLS up is reached again after so many
OVER_TLS = ((b"strict-transport-security", f"max-age={HSTS_DAYS * 86400}".encode()),)  # RFC 6797
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"permissions-policy", ", ".join(f"{each}=()" for each in NOT_USED).encode()),
)


def headers_of(*, secure: bool) -> tuple[tuple[bytes, bytes], ...]:
    return (*HEADERS, *(OVER_TLS if secure else ()))


class SecurityHeaders:
    """Answers only what was asked under a name of the node, and no page of another site; and adds to every answer the
    headers that keep a browser from loading, framing or guessing anything else; secure: and from asking without TLS."""

    def __init__(self, app: ASGIApp, names: frozenset[str], *, secure: bool) -> None:
        self.app, self.names = app, names
        self.headers = headers_of(secure=secure)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else None
        with suppress(LocalProtocolError):  # what was asked breaks HTTP before its end: there is nobody to answer
            await (refusal or self.app)(scope, receive, guarded)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        """None, or the answer to what a browser may have been tricked into asking."""
        host = headers.get("host")
        if host is not None and not self._ours(host):  # DNS rebinding: a stranger's name that leads to us
            text = f"the node is asked under the name {host[:80]!r}; if it is one of its names, add it to web_names"
            return JSONResponse({"error": text}, status_code=421)  # Misdirected Request: RFC 9110 15.5.20
        if method in ("GET", "HEAD"):
            return None
        # not every browser says all of them, and of plain http some say the Referer alone
        site, asker = headers.get("sec-fetch-site", "none"), headers.get("origin", _origin(headers.get("referer")))
        if site not in ("same-origin", "none") or (asker is not None and not self._same(asker, host or "")):
            return JSONResponse({"error": "asked for by a page of another site"}, status_code=403)
        return None

    def _ours(self, host: str) -> bool:
        """Is this Host header one of our names, or an address? Only a name can be made to lead somewhere else."""
        name = _host_name(f"//{host}")
        if name is None:
            return False
        try:
            ip_address(name)
        except ValueError:
            return name in self.names
        return True

    def _same(self, origin: str, host: str) -> bool:
        """Did a page of ours ask? A proxy may have put another Host in place of the name that the browser knows."""
        _, known, place = origin.partition("://")  # "null": of a page that has none
        return (bool(known) and place.lower() == host.lower()) or _host_name(origin) in self.names - {"localhost"}


def _origin(referer: str | None) -> str | None:
    """The origin of a page; None where no page is named, "null" where what is named is none."""
    if referer is None:
        return None
    try:
        page = urlsplit(referer)
    except ValueError:
        return "null"
    return f"{page.scheme}://{page.netloc}" if page.scheme and page.netloc else "null"


def _host_name(address: str) -> str | None:
    """The host of an address, lower case, without port and brackets; None if it has none or is malformed."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises on a port that is none
    except ValueError:
        return None
    whole = not (parts.path or parts.query or parts.fragment or parts.username)
    return parts.hostname.rstrip(".") if parts.hostname and whole else None
