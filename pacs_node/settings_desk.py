"""The settings as the pages show and change them: peers, routes and who is told as forms, tried before.

An entry on its way is the TOML text of one [[peer]], [[route]] or [[notify]]; a form is a view of it. Secrets are never
shown: a form that leaves one empty keeps it.
"""

from __future__ import annotations

import csv
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import tomlkit
from pydantic import BaseModel, SecretStr
from pydicom.datadict import dictionary_VR, tag_for_keyword
from tomlkit.exceptions import TOMLKitError

from config import Config, Notify, Peer, Route
from config.check import KEYWORDS, SECRETS
from config.schema import NUMBER, NUMBER_VRS
from pacs_node import settings_file
from pacs_node.errors import NodeError, SettingsRefused
from pacs_node.kinds import as_well
from pacs_node.kinds import wish as of_kinds
from pacs_node.ledger.lists import iso
from pacs_node.route import identifying, wish, wishes
from pacs_node.settings import LiveSettings, in_force
from pacs_node.settings_trial import MOST_DAYS, UNREADABLE, OfRoute, Outcome, Replay, Trial, patience

if TYPE_CHECKING:
    from pacs_node.doctor import Examiner

KINDS: dict[str, type[BaseModel]] = {"peer": Peer, "route": Route, "notify": Notify}
# of a route, with fields of their own
OWN_WIDGETS = {"match", "options", "pipeline", "send_to", "also", "priors", "needs"}
IN_THE_FILE_ALONE = {("notify", "urls_file")}
HELP = {  # what the page says beside a field
    "name": "how routes call it",
    "ae_title": "AE title of a DICOM peer",
    "host": "host name or address, if we send to it or ask it",
    "may_send": "it may send images to us; all others are rejected",
    "calls_from": "hosts that its AE title may be used at, with commas; empty: any",
    "confirm": "how to prove that results arrived",
    "dicomweb_url": "results go here by STOW-RS: the address of its /studies without that word",
    "dicomweb_ca": "PEM file of certificates that may have signed its own",
    "folder": "results are written here as files, in place of all of the above; set in the settings file alone",
    "readable_by": "who besides the node may read the files in the folder",
    "segmentation": "Segmentation Type that it is sent",
    "omit_empty_frames": "no frames for images without a finding",
    "key_images": "of which findings captures are sent, too",
    "viewer": "ohif: reports that OHIF makes measurements of its own of",
    "key_objects": "send a Key Object Selection of the images with findings, too",
    "ask_again_h": "hours that a refused SOP class is not proposed to it",
    "reject_replaced": "also send a note that has it hide what new results replace (IHE IOCM)",
    "priority": "stat is run first",
    "hours": "local times at which what is not urgent may run: 19:00-07:00, or Mon-Fri 19:00-07:00, Sat-Sun",
    "fallback": "only for a series that no other route takes",
    "report_not_run": "a series that is refused gets a report that says why",
    "shadow": "runs behind all others, keeps its results, and sends nothing to anybody",
    "urls": "addresses as Apprise has them, a line each; not shown, and what is entered replaces them all",
    "about": "of what it is told",
    "again_h": "hours after which what lasts is said again",
    "down_min": "minutes that a destination takes nothing",
    "full_in_days": "days until the disk is full, by the forecast",
    "certificate_days": "days before a certificate of the node ends",
    "paused_h": "hours that something is paused",
    "pipelines": "findings of these alone, with commas; empty: of all",
    "kinds": "findings of these kinds alone, as in Nodule, Mass; empty: of all",
    "min_size_mm": "findings of this size at least, in mm",
    "categories": "findings of these categories alone, as in Lung-RADS 4A, malignant; empty: of all",
}
HOWS = {  # how a condition is put -> in words
    "is": "is",
    "regex": "contains (expression)",
    "range": "is from ... to",
    "present": "is present",
    "absent": "is absent",
}
MORE_ROWS = 3  # empty conditions at the end of the form
HISTORY = 50


class SettingsDesk:
    """What the pages ask of a node's settings. config: those in force."""

    def __init__(self, live: LiveSettings, trial: Trial, config: Callable[[], Config]) -> None:
        self.live, self.trial, self.config = live, trial, config

    @cached_property
    def _examiner(self) -> Examiner:
        from pacs_node.doctor import Examiner  # with the forms of results: not before somebody asks

        return Examiner()

    # ---- what there is

    def state(self) -> dict[str, Any]:
        """{"digest": of the file as it is, "problem", "waiting": for the next start, "warnings"}"""
        try:
            digest, problem = settings_file.digest(self.live.text()), self.live.problem
        except SettingsRefused as error:
            digest, problem = "", str(error)
        return {"digest": digest, "problem": problem, "waiting": list(self.live.waiting)}

    def warnings(self) -> list[str]:
        return self.live.warnings()

    def history(self) -> list[dict[str, Any]]:
        """The newest version of the file first."""
        versions = self.live.versions(HISTORY)
        return [
            {
                "id": each.id,
                "at": each.at.isoformat(timespec="milliseconds"),
                "who": each.who,
                "what": each.what,
                "difference": each.difference,
                "undo": number + 1 < len(versions),  # there is one before it
            }
            for number, each in enumerate(versions)
        ]

    def peers(self) -> list[dict[str, Any]]:
        """As they are in force. No path of this machine, and no secret."""
        waiting, routes = self.live.ledger.open_sends(), self.config().routes
        return [
            {
                "name": peer.name,
                "ae_title": peer.ae_title,
                "where": _where(peer),
                "tls": _tls_of(peer, self.config()),
                "may_send": peer.may_send,
                "calls_from": list(peer.calls_from),
                "reachable": peer.reachable,
                "routes": [route.name for route in routes if peer.name in (*route.destinations, route.priors)],
                "open_jobs": waiting.get(peer.name, 0),
            }
            for peer in self.config().peers
        ]

    def notices(self) -> list[dict[str, Any]]:
        """Who is told, as it is in force; of an address the service alone."""
        return [
            {
                "name": about.name,
                "services": [url.get_secret_value().partition("://")[0] for url in about.urls],
                "about": list(about.about),
                "findings": of_kinds(about) if "finding" in about.about else "",
                "lasts": [
                    {"text": notice.text, "since": iso(notice.since)}
                    for notice in self.live.ledger.notices(about.name).values()
                ],
            }
            for about in self.config().notices
        ]

    def routes(self) -> list[dict[str, Any]]:
        """As they are in force."""
        return [
            {
                "name": route.name,
                "pipeline": route.pipeline,
                "send_to": list(route.send_to),
                "also": [as_well(each.send_to, each) for each in route.also],
                "priority": route.priority,
                "shadow": route.shadow,
                "hours": route.hours,
                "fallback": route.fallback,
                # a value that would tell who a patient is stands in the form of the route alone, which is for admins
                "toml": "" if any(map(identifying, _asked_of(route))) else self._text_in_force("route", route.name),
                "conditions": [
                    f"{key} {'is wanted (not shown)' if identifying(key) else _said(condition)}"
                    for key, condition in route.match.items()
                ],
                "needs": [] if route.needs is None else list(map(wishes, route.needs.series)),
                "waits": "" if (needs := route.needs) is None else patience(needs.wait_minutes, needs.if_incomplete),
            }
            for route in self.config().routes
        ]

    def _text_in_force(self, kind: str, name: str) -> str:
        try:
            return settings_file.entry_text(self.live.text(), kind, name)
        except SettingsRefused:  # the file says something else by now
            return ""

    # ---- an entry on its way

    def entry(self, kind: str, name: str | None) -> str:
        """The text of an entry of the file; of a new one what is always needed. Raises SettingsRefused."""
        if name is not None:
            return settings_file.entry_text(self.live.text(), kind, name)
        new: dict[str, Any] = {"name": ""}
        if kind == "notify":
            new |= {"urls": []}
        if kind == "route":  # the first condition that nearly every route has; as it is, it matches nothing
            new |= {"match": {"Modality": []}, "pipeline": "", "send_to": []}
        return settings_file.as_text(kind, new)

    def from_form(self, kind: str, name: str | None, form: Sequence[tuple[str, str]]) -> tuple[str, str | None]:
        """The text of the entry with what a form says, and what of that could not be used, in words. What no field is
        for stays as it is. Raises SettingsRefused."""
        block = self.entry(kind, name)
        before = settings_file.entries(block, kind)[0]
        values = {key: value for key, value in before.items() if not _has_field(kind, key)}
        said = _Form(form)
        kept = {key for key in SECRETS if not said.text(key)}
        for field in self.fields(kind, before):
            value = _value_of(field, said, before)
            if value is not None:
                values[field["key"]] = value
        bad = _token_for_another(before, values, kept) if kind == "peer" else None
        if kind == "route":
            values, bad = _with_route(values, before, said)
        order = {key: number for number, key in enumerate(KINDS[kind].model_fields)}
        values = dict(sorted(values.items(), key=lambda each: order.get(each[0], len(order))))
        return settings_file.changed(block, kind, values), bad

    def fields(self, kind: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The fields of a form, of which none shows a secret."""
        return [
            field
            for key, info in KINDS[kind].model_fields.items()
            if _has_field(kind, key) and (field := _field(key, info.annotation, info.default, values)) is not None
        ]

    def form(self, kind: str, text: str) -> dict[str, Any]:
        """What the page of an entry shows. Raises SettingsRefused."""
        values = settings_file.entries(text, kind)
        if len(values) != 1:
            raise SettingsRefused(f"write one [[{kind}]], and nothing else")
        shown: dict[str, Any] = {"fields": self.fields(kind, values[0]), "name": values[0].get("name", "")}
        if kind == "route":
            shown |= self._route_form(values[0])
        return shown

    def _route_form(self, route: Mapping[str, Any]) -> dict[str, Any]:
        config, match, options = self.config(), route.get("match"), route.get("options")
        send_to = route.get("send_to")
        known = self.live.known
        return {
            "pipeline": str(route.get("pipeline", "")),
            "pipelines": sorted(known.options),
            "options": tomlkit.dumps(options) if isinstance(options, dict) else "",
            "needs": tomlkit.dumps(needs) if isinstance(needs := route.get("needs"), dict) else "",
            "options_known": {name: sorted(model.model_fields) for name, model in sorted(known.options.items())},
            "send_to": list(map(str, send_to)) if isinstance(send_to, list) else [],
            "destinations": [peer.name for peer in config.peers if peer.reachable],
            "also": [_also_row(each) for each in _tables(route.get("also"))],
            "priors": str(route.get("priors", "")),
            "archives": [peer.name for peer in config.peers if peer.host is not None],
            "conditions": [_row(key, condition) for key, condition in match.items()]
            if isinstance(match, Mapping)
            else [],
            "more_rows": MORE_ROWS,
            "hows": HOWS,
        }

    def secret(self, kind: str) -> frozenset[str]:
        """The fields of a form that no page shows the content of."""
        return frozenset(field["key"] for field in self.fields(kind, {}) if field["kind"] in ("secret", "secrets"))

    def offered(self) -> dict[str, Any]:
        """{"seen": keyword -> values of what came last, "keywords": all others of the dictionary}"""
        seen = self.trial.seen()
        return {"seen": seen, "keywords": [keyword for keyword in KEYWORDS if keyword not in seen]}

    def problems(self, kind: str, name: str | None, text: str) -> list[str]:
        """What `check` would say of the file with this entry, and why it could not be saved."""
        try:
            self._with(kind, name, text)
        except SettingsRefused as error:
            return str(error).splitlines()
        return []

    def _with(self, kind: str, name: str | None, text: str) -> Config:
        """Raises SettingsRefused."""
        former = self.live.text()
        return self.live.allowed(former, settings_file.with_entry_text(former, kind, name, text))

    # ---- changes

    def save(self, kind: str, name: str | None, text: str, looked_at: str, who: str) -> None:
        """Raises SettingsRefused, SettingsChanged, LedgerUnavailable; then nothing has changed."""
        called = settings_file.entries(text, kind)[:1]
        new = str(called[0].get("name", "")) if called else ""
        if kind == "notify":
            self._receiver(name, text)
        what = f"{kind} '{new}' added" if name is None else f"{kind} '{name}' changed"
        if name is not None and new != name:
            what += f", and is called '{new}' now"
        self.live.change(lambda file: settings_file.with_entry_text(file, kind, name, text), looked_at, who, what)

    def delete(self, kind: str, name: str, looked_at: str, who: str) -> None:
        """Raises as `save` does."""
        what = f"{kind} '{name}' deleted"
        self.live.change(lambda file: settings_file.without_entry(file, kind, name), looked_at, who, what)

    def undo(self, number: int, looked_at: str, who: str) -> None:
        self.live.undo(number, looked_at, who)

    def reload(self, who: str) -> bool:
        return self.live.reload(who)

    # ---- tried

    def _receiver(self, name: str | None, text: str) -> Notify:
        """As it is to be. Raises SettingsRefused, also for addresses that Apprise does not know."""
        from pacs_node.notify import unknown_addresses

        called = settings_file.entries(text, "notify")[0].get("name")
        [about] = [each for each in self._with("notify", name, text).notices if each.name == called]
        if unknown := unknown_addresses(about):
            raise SettingsRefused("\n".join(unknown))
        return about

    def tell(self, text: str | None, name: str | None) -> dict[str, Any]:
        """Whether a message for trial reaches a receiver: {"ok", "words", "steps": none, "for_them": nothing}. text: as
        it is to be; None: as it is in force."""
        from pacs_node.notify import trial

        said: dict[str, Any] = {"ok": False, "steps": [], "for_them": {}}
        try:
            known = {each.name: each for each in self.config().notices}
            about = known.get(str(name)) if text is None else self._receiver(name, text)
            if about is None:
                return {**said, "words": f"the settings have no receiver '{name}'"}
            trial(about, self.config().node.ae_title)
        except NodeError as error:
            return {**said, "words": f"not reached: {error}"}
        return {**said, "ok": True, "words": f"{about.name}: the message was taken; look whether it came"}

    def test(self, text: str | None, name: str | None) -> dict[str, Any]:
        """What `pacs-node doctor` says of a peer: {"ok", "words", "steps", "for_them": what it must know of this node}.
        text: as it is to be; None: as it is in force."""
        from pacs_node.doctor import conclusion

        nothing: dict[str, Any] = {"ok": False, "steps": [], "for_them": {}}
        try:
            config, called = self.config(), str(name)
            if text is not None:
                config, _ = in_force(config, self._with("peer", name, text))
                called = str(settings_file.entries(text, "peer")[0].get("name"))
            if called not in {each.name for each in config.peers}:
                return {**nothing, "words": f"the settings have no peer '{called}'"}
            found, for_them = self._examiner.examine(config, self.live.now, called)
        except NodeError as error:
            return {**nothing, "words": str(error)}
        bad = any(each.state == "bad" for each in found)
        steps = [asdict(each) for each in found]
        return {"ok": not bad, "words": f"{called}: {conclusion(found)}", "steps": steps, "for_them": for_them}

    def try_route(
        self, name: str | None, text: str, *, days: int | None, series_uid: str | None, file: Path | None
    ) -> dict[str, Any]:
        """What the routes would do with this one among them. Raises SettingsRefused."""
        then = self._with("route", name, text)
        try:
            if file is not None:
                return {"file": [_shown(each) for each in self.trial.on_file(file, then)]}
            if series_uid is not None:
                found = self.trial.on_series(series_uid, then)
                if found is None:
                    return {"words": f"there are no images of series {series_uid} here"}
                received, said = found
                return {"series": {**_of_series(received), "said": [_shown(each) for each in said]}}
        except UNREADABLE as error:
            return {"words": f"its header cannot be read: {error}"}
        return {"replay": _replayed(self.trial.on_the_last(min(days or 1, MOST_DAYS), then))}


# ---- in words


def _where(peer: Peer) -> str:
    if peer.folder is not None:
        return "a folder"
    dicom = f"{peer.ae_title} at {peer.host}:{peer.port}" if peer.host is not None else ""
    return "; ".join(filter(None, (dicom, peer.dicomweb_url or ""))) or "only sends to us"


def _asked_of(route: Route) -> list[str]:
    """Every keyword that a route asks for, of the series and of others of its study."""
    others = () if route.needs is None else route.needs.series
    return [keyword for match in (route.match, *others) for keyword in match]


def _tls_of(peer: Peer, config: Config) -> list[dict[str, Any]]:
    """How what goes to a peer and comes from it is secured: {"way", "good", "words"}."""
    ways: list[tuple[str, bool, str]] = []
    if peer.ae_title is not None and not peer.tls:
        ways.append(("DICOM", False, "no TLS"))
    elif peer.ae_title is not None:
        name = peer.tls_name or peer.host
        words = "TLS, " + (
            "known by its fingerprint" if peer.tls_fingerprints else f"named {name}" if name else "any name"
        )
        comes_without = peer.may_send and not config.tls.dicom_tls_port
        ways.append(("DICOM", not comes_without, words + ("; what it sends comes without" if comes_without else "")))
    if peer.dicomweb_url is not None:
        secured = peer.dicomweb_url.startswith("https:")
        words = "TLS" if secured else "no TLS"
        words += ", whoever signed its certificate" if secured and not peer.dicomweb_verify else ""
        ways.append(("DICOMweb", words == "TLS", words))
    return [{"way": way, "good": good, "words": words} for way, good, words in ways]


def _said(condition: Any) -> str:
    match condition:
        case {"present": True} | {"absent": True}:
            return f"is {next(iter(condition))}"
        case {"regex": _}:
            return f"contains {wish(condition)}"
        case {"min": _, "max": _}:
            return f"is from {wish(condition)}"
        case _:
            return f"is {wish(condition)}"


def _shown(said: Outcome) -> dict[str, Any]:
    return {**asdict(said), "change": said.change}


def _of_series(received: Any) -> dict[str, Any]:
    shown = {name: getattr(received, name) for name in ("series_uid", "modality", "description", "arrived", "fit")}
    return {**shown, "at": received.last_arrival.isoformat(timespec="milliseconds"), "reason": received.reason}


def _replayed(replay: Replay) -> dict[str, Any]:
    return {
        "days": replay.days,
        "tried": replay.tried,
        "most": replay.tried if replay.left_out else None,
        "unread": replay.unread,
        "routes": [_of_route(each) for each in replay.routes],
        "changed": [
            {**_of_series(received), "said": [_shown(each) for each in said if each.change]}
            for received, said in replay.changed
        ],
        "minutes": None if replay.more_seconds is None else replay.more_seconds / 60,
    }


def _of_route(route: OfRoute) -> dict[str, Any]:
    names = ("route", "pipeline", "now", "then", "more", "less", "other", "refused", "waits")
    shown = {name: getattr(route, name) for name in names}
    minutes = None if route.seconds is None else route.seconds / 60
    return {**shown, "minutes": minutes, "why_not": route.why_not.most_common(3)}


# ---- forms


class _Form:
    """What a form says: fields by their names."""

    def __init__(self, said: Sequence[tuple[str, str]]) -> None:
        self._said = said

    def text(self, key: str) -> str:
        return next((value for name, value in self._said if name == key), "").strip()

    def all(self, key: str) -> list[str]:
        return [value for name, value in self._said if name == key and value]

    def raw(self, key: str) -> list[str]:
        """Of each row, empty ones too."""
        return [value.strip() for name, value in self._said if name == key]


def _has_field(kind: str, key: str) -> bool:
    if (kind, key) in IN_THE_FILE_ALONE:
        return False
    own = kind == "route" and key in OWN_WIDGETS
    return own or (key in KINDS[kind].model_fields and _kind_of(KINDS[kind].model_fields[key].annotation) is not None)


def _kind_of(annotation: Any) -> str | None:
    """The kind of field that a setting of this type has; None: the form has none, the file keeps what it says."""
    given = [each for each in get_args(annotation) if each is not type(None)]
    if get_origin(annotation) in (Union, types.UnionType):
        return _kind_of(given[0])
    if get_origin(annotation) is Literal:
        return "choice"
    if get_origin(annotation) is tuple:
        of_each = _kind_of(given[0])
        return {"choice": "choices", "secret": "secrets"}.get(of_each or "", "list")
    if hasattr(annotation, "__metadata__"):
        return _kind_of(given[0])
    simple = {bool: "bool", int: "number", float: "number", str: "text", Path: "text", SecretStr: "secret"}
    return simple.get(annotation)


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(each) for each in get_args(annotation)]
    return [choice for each in get_args(annotation) for choice in _choices(each)]


def _field(key: str, annotation: Any, default: Any, values: Mapping[str, Any]) -> dict[str, Any] | None:
    if key in OWN_WIDGETS:
        return None
    kind = _kind_of(annotation)
    value, default = values.get(key), None if repr(default) == "PydanticUndefined" else default
    shown: Any = default if value is None else value
    if kind == "list":
        shown = ", ".join(map(str, shown or ()))
    elif kind == "choices":
        shown = list(map(str, shown or ()))
    elif kind in ("secret", "secrets"):
        shown = ""
    elif kind != "bool":
        shown = "" if shown is None else str(shown)
    field = {"key": key, "kind": kind, "value": shown, "default": default, "help": HELP.get(key, "")}
    return {**field, "choices": _choices(annotation), "kept": kind in ("secret", "secrets") and bool(value)}


def _value_of(field: Mapping[str, Any], said: _Form, before: Mapping[str, Any]) -> Any:
    """What the file is to say; None: nothing, which is the default."""
    key, kind, default = field["key"], field["kind"], field["default"]
    text = said.text(key)
    value: Any
    if kind == "secret":
        return text or (None if said.text(f"{key}.remove") else before.get(key))
    if kind == "secrets":
        return [line.strip() for line in text.splitlines() if line.strip()] or before.get(key)
    if kind == "choices":
        chosen = said.all(key)
        return None if key not in before and chosen == list(default) else chosen
    if kind == "bool":
        value = bool(text)
    elif kind == "list":
        value = _listed(text)
    elif not text:
        value = None
    else:
        value = _number(text) if kind == "number" else text
    unsaid = value is None or (
        key not in before and value == (list(default) if isinstance(default, tuple) else default)
    )
    return None if unsaid or (kind == "list" and not value) else value


def _number(text: str) -> int | float | str:
    """A number, or the text, of which `check` says what it should be."""
    if not re.fullmatch(NUMBER, text):
        return text
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _token_for_another(before: Mapping[str, Any], values: Mapping[str, Any], kept: Collection[str]) -> str | None:
    """None, or what a form would do that nobody should: bring a secret, which it does not show, to another server."""
    sent = sorted(key for key in kept if values.get(key))
    if sent and values.get("dicomweb_url") != before.get("dicomweb_url"):
        return f"dicomweb_url is another one: enter its {sent[0]} again, or remove it"
    return None


def _with_route(values: dict[str, Any], before: Mapping[str, Any], said: _Form) -> tuple[dict[str, Any], str | None]:
    """With what a route has besides simple fields, and what of it could not be used."""
    match, bad = _match_of(said)
    values |= {"match": match, "pipeline": said.text("pipeline"), "send_to": said.all("send_to")}
    if also := _also_of(said):
        values["also"] = before["also"] if also == before.get("also") else also
    if said.text("priors"):
        values["priors"] = said.text("priors")
    for key, example in (("options", "views = 3"), ("needs", "wait_minutes = 30.0")):
        try:
            table = tomlkit.parse(said.text(key)).unwrap()
        except (TOMLKitError, ValueError) as error:
            table, bad = before.get(key, {}), f"{key}: a line is KEY = VALUE, as in {example}: {error}"
        if table:
            values[key] = table
    return values, bad


def _also_of(said: _Form) -> list[dict[str, Any]]:
    """The further destinations of the rows of a form; a row without a peer is none."""
    rows = zip(*(said.raw(f"also.{part}") for part in ("send_to", "kinds", "min_size_mm", "categories")), strict=False)
    return [
        {"send_to": _listed(send_to)}
        | ({"kinds": _listed(kinds)} if _listed(kinds) else {})
        | ({"min_size_mm": _number(size)} if size else {})
        | ({"categories": _listed(categories)} if _listed(categories) else {})
        for send_to, kinds, size, categories in rows
        if _listed(send_to)
    ]


def _also_row(also: Mapping[str, Any]) -> dict[str, str]:
    lists = {key: ", ".join(map(str, also.get(key) or ())) for key in ("send_to", "kinds", "categories")}
    return {**lists, "min_size_mm": str(also.get("min_size_mm", ""))}


def _listed(text: str) -> list[str]:
    return [each for each in (part.strip() for part in text.split(",")) if each]


def _tables(listed: Any) -> list[Mapping[str, Any]]:
    return [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []


def _match_of(said: _Form) -> tuple[dict[str, Any], str | None]:
    """The conditions of the rows of a form; a row without a keyword is none."""
    match: dict[str, Any] = {}
    bad = None
    rows = zip(*(said.raw(f"condition.{part}") for part in ("keyword", "how", "value", "upto")), strict=False)
    for keyword, how, value, upto in rows:
        if keyword in match:
            bad = f"{keyword} has two conditions; write several values into one, with commas between"
        elif keyword:
            match[keyword] = _condition(keyword, how, value, upto)
    return match, bad


def _condition(keyword: str, how: str, value: str, upto: str) -> Any:
    if how in ("present", "absent"):
        return {how: True}
    if how == "regex":
        return {"regex": value}
    if how == "range":
        return {name: _number(text) for name, text in (("min", value), ("max", upto)) if text}
    several = [_value(keyword, part.strip()) for part in next(csv.reader([value], skipinitialspace=True), [""])]
    return several[0] if len(several) == 1 else several


def _value(keyword: str, text: str) -> Any:
    """A number where the attribute holds numbers."""
    tag = tag_for_keyword(keyword.rpartition(".")[2])
    return _number(text) if tag is not None and dictionary_VR(tag)[:2] in NUMBER_VRS else text


def _row(keyword: str, condition: Any) -> dict[str, str]:
    """A condition as a row of the form; one that no row can say is left to the TOML beside it."""
    row = {"keyword": keyword, "how": "is", "value": "", "upto": ""}
    match condition:
        case {"regex": pattern}:
            return {**row, "how": "regex", "value": str(pattern)}
        case {"present": True} | {"absent": True}:
            return {**row, "how": next(iter(condition))}
        case dict():
            return {
                **row,
                "how": "range",
                "value": str(condition.get("min", "")),
                "upto": str(condition.get("max", "")),
            }
        case list():
            return {**row, "value": _with_commas(condition)}
        case _:
            return {**row, "value": _with_commas([condition])}


def _with_commas(values: Sequence[Any]) -> str:
    """As `_condition` reads them: one that holds a comma stands in quotes."""
    line = StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()
