"""What is wrong with a settings file: file, line, key, and the nearest thing that would be right."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import SequenceMatcher, get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import re2
from pydantic import BaseModel, ValidationError
from pydicom.datadict import DicomDictionary

from config import secrets
from config.certificates import Certificate, Unusable, certificates, why_key_does_not_fit
from config.schema import (
    SYSLOG_FILES,
    Also,
    Config,
    Needs,
    Notify,
    Peer,
    Route,
    bad_condition,
    is_keyword_path,
    is_loopback,
)

HEARTBEAT_AE = "PACSNODE-BEAT"  # as pacs_node/records.py has it
Place = tuple[str | int, ...]  # ("peer", 0, "host"): the key `host` of the first [[peer]]

TABLES: dict[str, type[BaseModel]] = {
    name: field.annotation  # type: ignore[misc]
    for name, field in Config.model_fields.items()
    if field.alias is None
}
LISTS: dict[str, type[BaseModel]] = {"peer": Peer, "route": Route, "notify": Notify}
WITHIN: dict[tuple[str, str], type[BaseModel]] = {("route", "also"): Also}  # lists of tables within those


Found = tuple[Place, str, Literal["error", "warning"]]


@dataclass(frozen=True)
class Problem:
    """One thing to change in a settings file."""

    file: Path
    line: int | None  # 1-based; None when it concerns the file as a whole
    text: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = f"{self.file.name}:{self.line}" if self.line else self.file.name
        return f"{place}: {'warning: ' if self.severity == 'warning' else ''}{self.text}"


class Takes(Protocol):
    """What a pipeline may be given: of its card what a route's `match` can contradict."""

    @property
    def modality(self) -> frozenset[str]: ...
    @property
    def sop_classes(self) -> frozenset[str]: ...  # empty: any
    @property
    def body_part(self) -> frozenset[str]: ...  # empty: any
    @property
    def finds(self) -> Mapping[str, bool]: ...  # kind of finding -> has it a size in mm; empty: not known
    @property
    def categories(self) -> Collection[str]: ...  # that it may suggest, and classes


class Known(Protocol):
    """The pipelines that a route may name, as `models.catalogue()` tells of them."""

    @property
    def options(self) -> Mapping[str, type[BaseModel]]: ...  # name -> what a route may tell it
    @property
    def broken(self) -> Mapping[str, str]: ...  # name -> why it cannot be used, and of which package it is
    def takes(self, name: str, options: Mapping[str, Any]) -> Takes | str:
        """... with these options; or why it cannot have them."""


def check(path: Path, pipelines: Known | None, instead: str | None = None) -> tuple[Config | None, list[Problem]]:
    """The settings, or None, and everything there is to say about the file, in the order of its lines.

    instead: what the file is to hold, in place of what it holds
    """
    text = instead or ""
    try:
        text = path.read_text(encoding="utf-8") if instead is None else instead
        raw = tomllib.loads(text)
    except OSError as error:
        return None, [Problem(path, None, f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        return None, [Problem(path, None, f"is not UTF-8 text: {error.reason} at byte {error.start}")]
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+), column \d+\)", str(error))
        return None, [Problem(path, int(at[1]) if at else text.count("\n") + 1, f"is not TOML: {error}")]

    lines = lines_of(text)
    found: list[Found] = []
    config = None
    given = raw
    raw, missing = secrets.filled(given, TABLES | LISTS, path.resolve().parent)
    found += [(place, f"{_name(place, raw)}: {words}", "error") for place, words in missing]
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        found += [(place, words, "error") for place, words in _schema_problems(error, raw)]
    found += [(place, words, "error") for place, words in _cross_problems(raw, pipelines)]
    found += [(place, words, "warning") for place, words in _warnings(raw, pipelines)]
    config = config.resolved(path.resolve().parent) if config else None
    found += [*_place_problems(config, raw), *_marks(config)] if config else []
    found += _open_to_others(path, config, given) if config else []
    found += [(place, words, "warning") for place, words in secrets.taken_literally(given, TABLES | LISTS)]
    result = [Problem(path, _line(lines, place), words, severity) for place, words, severity in found]
    result.sort(key=lambda problem: problem.line or 0)
    return config, result


# Where a key stands: tomllib does not tell -----------------------------------------------------------------------

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"^\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ASSIGNMENT = re.compile(rf"^\s*({_DOTTED})\s*=")


def lines_of(text: str) -> dict[Place, int]:
    """The line of every table header and key of valid TOML text; keys of inline tables share their table's line."""
    lines: dict[Place, int] = {}
    lists: Counter[Place] = Counter()  # how many [[...]] of this name so far
    table: Place = ()
    quotes = ""  # the delimiter of the multi-line string we are in
    for number, line in enumerate(text.splitlines(), 1):
        if quotes:
            quotes = "" if line.count(quotes) % 2 else quotes
            continue
        if header := _HEADER.match(line):
            table = _placed(_split(header[2]), lists, opens=header[1] == "[[")
            lines.setdefault(table, number)
            lines.setdefault(table[:1], number)
        elif key := _ASSIGNMENT.match(line):
            lines.setdefault((*table, *_split(key[1])), number)
            quotes = next((q for q in ('"""', "'''") if line.count(q) % 2), "")
    return lines


def _split(dotted: str) -> list[str]:
    return [key.strip("\"'") for key in re.findall(_KEY, dotted)]


def _placed(names: list[str], lists: Counter[Place], opens: bool) -> Place:
    """The place of a header: a name that is a list of tables means its latest one."""
    place: Place = ()
    for depth, name in enumerate(names, 1):
        place = (*place, name)
        if opens and depth == len(names):
            lists[place] += 1
        if place in lists:
            place = (*place, lists[place] - 1)
    return place


def _line(lines: dict[Place, int], place: Place) -> int | None:
    """The line of a place, or of the nearest table around it."""
    return next((lines[place[:depth]] for depth in range(len(place), 0, -1) if place[:depth] in lines), None)


# What the schema says, in words ----------------------------------------------------------------------------------

WORDS = {  # pydantic's error type -> what the value must be
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a text in quotes",
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "tuple_type": "must be a list",
    "path_type": "must be a path in quotes",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must match {pattern}",
}


# never shown, not even when wrong
SECRETS = {name for model in (TABLES | LISTS).values() for name in secrets.names(model)}


def _schema_problems(error: ValidationError, raw: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    for item in error.errors():
        place: Place = item["loc"]
        if item["type"] == "extra_forbidden":
            yield place, _unknown(place)
        elif item["type"] == "missing":
            yield place[:-1], f"{_name(place[:-1], raw)} needs '{place[-1]}'"
        elif item["type"] == "value_error":
            yield place, f"{_name(place, raw)}: {item['ctx']['error']}"
        elif item["type"] in WORDS:
            words = WORDS[item["type"]].format(**item.get("ctx", {}))
            shown = "what it is" if any(part in SECRETS for part in place) else _shown(item["input"])
            yield place, f"{_name(place, raw)} {words}, not {shown}"
        else:
            yield place, f"{_name(place, raw)}: {item['msg']}"


def _shown(value: object) -> str:
    return (
        "a table"
        if isinstance(value, dict | BaseModel)
        else str(value).lower()
        if isinstance(value, bool)
        else repr(value)
    )


def _name(place: Place, raw: dict[str, Any]) -> str:
    """How a reader of the file calls this place: "dicom_port in [node]", "[[peer]] 'pacs'"."""
    if len(place) == 1 or (len(place) == 2 and isinstance(place[1], int)) or (len(place) == 4 and _within(place)):
        return _table_name(place, raw)
    start = 4 if _within(place) else 2 if isinstance(place[1], int) else 1
    keys = [str(part) for part in place[start:] if isinstance(part, str)]
    return f"'{'.'.join(keys)}' in {_table_name(place[: -len(keys)] if keys else place, raw)}"


def _within(place: Place) -> type[BaseModel] | None:
    """The model of the table that a place is in, where that is one of a list within another."""
    in_it = len(place) > 3 and isinstance(place[1], int) and isinstance(place[3], int)
    return WITHIN.get((str(place[0]), str(place[2]))) if in_it else None


def _table_name(place: Place, raw: dict[str, Any] | None = None) -> str:
    if _within(place) is not None:
        return f"[[{place[0]}.{place[2]}]] number {int(place[3]) + 1} of {_table_name(place[:2], raw)}"
    if len(place) > 1 and isinstance(place[1], int):
        entry = raw[str(place[0])][place[1]] if raw else None
        name = entry.get("name") if isinstance(entry, dict) else None
        return f"[[{place[0]}]] {name!r}" if isinstance(name, str) else f"[[{place[0]}]] number {place[1] + 1}"
    return f"[[{place[0]}]]" if place[0] in LISTS else f"[{place[0]}]"


def _unknown(place: Place) -> str:
    """No such setting: the nearest one, or the table it belongs to, or the list of what there is."""
    if len(place) == 1:
        tables = [*TABLES, *LISTS]
        hint = did_you_mean(str(place[0]), tables) or f"there are {', '.join(_table_name((t,)) for t in tables)}"
        return f"no table or setting '{place[0]}'; {hint}"
    key, table = str(place[-1]), str(place[0])
    if len(place) > 3 and place[2] == "needs":
        near = did_you_mean(key, Needs.model_fields) or f"there are {', '.join(Needs.model_fields)}"
        return f"no setting '{key}' in 'needs' of a [[route]]; {near}"
    within = _within(place)
    known = list((within or (TABLES | LISTS)[table]).model_fields)
    home = [name for name, model in TABLES.items() if not within and key in model.model_fields]
    belongs = f"it belongs in [{home[0]}]" if home else None
    hint = belongs or did_you_mean(key, known) or f"there are {', '.join(known)}"
    return f"no setting '{key}' in {f'[[{table}.{place[2]}]]' if within else _table_name((table,))}; {hint}"


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known names most like `word`, also by one of their parts: prot -> dicom_port or web_port. Else None."""

    def likeness(name: str) -> float:
        return max(
            SequenceMatcher(None, word.lower(), part).ratio() for part in {name.lower(), *name.lower().split("_")}
        )

    likely = {name: likeness(name) for name in known}
    best = max(likely.values(), default=0.0)
    names = [f"'{name}'" for name, value in likely.items() if value == best]
    return f"did you mean {' or '.join(names)}?" if best >= 0.6 else None


# What no single setting can know ---------------------------------------------------------------------------------


def _tables(raw: dict[str, Any], name: str) -> list[tuple[int, dict[str, Any]]]:
    """The well-formed [[name]] tables with their index; the others have been reported by the schema."""
    tables = raw.get(name, [])
    return [(i, t) for i, t in enumerate(tables) if isinstance(t, dict)] if isinstance(tables, list) else []


def _cross_problems(raw: dict[str, Any], pipelines: Known | None) -> Iterator[tuple[Place, str]]:
    yield from _duplicates(raw, "peer", "name")
    yield from _duplicates(raw, "peer", "ae_title", among=lambda peer: peer.get("may_send") is True)
    yield from _duplicates(raw, "route", "name")
    yield from _duplicates(raw, "notify", "name")
    for i, notify in _tables(raw, "notify"):
        about = notify.get("about")
        given = [key for key in ("pipelines", "kinds", "min_size_mm", "categories") if key in notify]
        if given and not (isinstance(about, list) and "finding" in about):
            yield (
                ("notify", i, given[0]),
                f"{_table_name(('notify', i), raw)}: '{given[0]}' needs \"finding\" in 'about'",
            )
    node = raw.get("node", {})
    if isinstance(node, dict):
        dicom, web = node.get("dicom_port", 11112), node.get("web_port", 8080)
        if dicom == web:
            yield ("node", "web_port"), "'web_port' in [node] is the same as 'dicom_port'; give each its own"
        tls = raw.get("tls", {})
        secured = tls.get("dicom_tls_port") if isinstance(tls, dict) else None
        if secured == web or (secured == dicom and tls.get("only_tls") is not True):
            name = "web_port" if secured == web else "dicom_port"
            yield ("tls", "dicom_tls_port"), f"'dicom_tls_port' in [tls] is the same as '{name}'; give each its own"
    peers = {peer["name"]: peer for _, peer in _tables(raw, "peer") if isinstance(peer.get("name"), str)}
    yield from _heartbeat(raw, peers)
    for i, route in _tables(raw, "route"):
        where = _table_name(("route", i), raw)
        yield from _destinations(("route", i), route, where, peers)
        yield from _also(i, route, raw, peers, pipelines)
        yield from _priors(i, route, where, peers, pipelines)
        if route.get("shadow") is True and "priors" in route:
            words = "a shadow sends nothing to anybody, not even a question about earlier studies; remove 'priors'"
            yield ("route", i, "priors"), f"{where}: {words}"
        if pipelines is not None and isinstance(route.get("pipeline"), str):
            yield from _pipeline(i, route, where, pipelines)
        if isinstance(route.get("match"), dict):
            for place, words in _conditions(route["match"]):
                yield ("route", i, "match", *place), f"{where}: {words}"
        yield from _needs(i, route, where)


def _needs(i: int, route: dict[str, Any], where: str) -> Iterator[tuple[Place, str]]:
    """What could never be, or be read, of the other series that a route needs."""
    needs = route.get("needs")
    series = needs.get("series") if isinstance(needs, dict) else None
    for number, match in enumerate(series if isinstance(series, list) else ()):
        if isinstance(match, dict):
            for place, words in _conditions(match):
                yield ("route", i, "needs", "series", *place), f"{where}: needs: series {number + 1}: {words}"


def _pipeline(i: int, route: dict[str, Any], where: str, pipelines: Known) -> Iterator[tuple[Place, str]]:
    """The pipeline is there, takes these options, and could ever be given what the route matches."""
    name, options, match = route["pipeline"], route.get("options", {}), route.get("match", {})
    if name in pipelines.broken:
        yield ("route", i, "pipeline"), f"{where}: {pipelines.broken[name]}"
    elif name not in pipelines.options:
        yield ("route", i, "pipeline"), f"{where}: no pipeline '{name}'; {hint(name, pipelines.options)}"
    elif isinstance(options, dict):
        bad = list(option_problems(options, pipelines.options[name]))
        for key, words in bad:
            if key:
                yield ("route", i, "options", key), f"{where}: option '{key}' of {name} {words}"
            else:
                yield ("route", i, "options"), f"{where}: {words}"
        takes = None if bad else pipelines.takes(name, options)
        if isinstance(takes, str):
            yield ("route", i, "options" if options else "pipeline"), f"{where}: {name}: {takes}"
        elif takes is not None and isinstance(match, dict):
            for keyword, words in _never(match, name, takes):
                yield ("route", i, "match", keyword), f"{where}: {words}"


def _never(match: dict[str, Any], name: str, takes: Takes) -> Iterator[tuple[str, str]]:
    """The conditions that keep everything from the pipeline that it may be given."""
    of = {"Modality": takes.modality, "SOPClassUID": takes.sop_classes, "BodyPartExamined": takes.body_part}
    for keyword, taken in of.items():
        if keyword not in match or not taken or bad_condition(keyword, match[keyword]):
            continue
        if keyword == "BodyPartExamined" and match[keyword] == {"absent": True}:
            continue  # an image that does not say its body part is not refused for it
        if not any(could_equal(match[keyword], value) for value in taken):
            yield keyword, f"nothing will ever be run: {name} takes {keyword} {' or '.join(sorted(taken))} only"


def could_equal(condition: object, value: str) -> bool:
    """Does a (valid) condition of a route hold for an attribute of this value?"""
    match condition:
        case {"present": True}:
            return True
        case {"regex": str(pattern)}:
            return bool(re2.search(f"(?i){pattern}", value))
        case list():
            return any(could_equal(each, value) for each in condition)
        case str():
            return condition.strip().casefold() == value.casefold()
        case _:
            return False  # absent, or a number


def option_problems(given: dict[str, Any], model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """The pipeline's own opinion of its options, in the words used for the other settings; "" for all of them."""
    try:
        model.model_validate(given)
    except ValidationError as error:
        for item in error.errors():
            key = str(item["loc"][0]) if item["loc"] else ""
            if not key:
                yield key, item["msg"].removeprefix("Value error, ")
            elif item["type"] == "extra_forbidden":
                yield key, f"does not exist; {hint(key, model.model_fields)}"
            else:
                known = WORDS.get(item["type"])
                words = known.format(**item.get("ctx", {})) if known else item["msg"].removeprefix("Value error, ")
                yield key, f"{words}, not {_shown(item['input'])}"


def _heartbeat(raw: dict[str, Any], peers: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    beats, tls = raw.get("heartbeat"), raw.get("tls", {})
    if not isinstance(beats, dict) or not beats.get("every_minutes"):
        return
    routes = {route["name"]: route for _, route in _tables(raw, "route") if isinstance(route.get("name"), str)}
    route, to = beats.get("route"), beats.get("to")
    if isinstance(route, str) and route and route not in routes:
        yield ("heartbeat", "route"), f"'route' in [heartbeat]: no route '{route}'; {hint(route, routes)}"
    elif isinstance(route, str) and route and routes[route].get("shadow") is True:
        yield ("heartbeat", "route"), f"'route' in [heartbeat]: '{route}' is a shadow, of which nothing is sent"
    elif isinstance(route, str) and route and routes[route].get("hours"):
        yield ("heartbeat", "route"), f"'route' in [heartbeat]: '{route}' has hours, and the heartbeat beats at any"
    if isinstance(to, str) and to and to not in peers:
        yield ("heartbeat", "to"), f"'to' in [heartbeat]: no peer '{to}'; {hint(to, peers)}"
    elif isinstance(to, str) and to and not {"folder", "host", "dicomweb_url"} & peers[to].keys():
        yield (
            ("heartbeat", "to"),
            f"'to' in [heartbeat]: peer '{to}' has no host and port, so nothing can be sent to it",
        )
    if isinstance(tls, dict) and tls.get("only_tls") is True:
        yield ("heartbeat", "every_minutes"), "the heartbeat calls dicom_port, which only_tls in [tls] closes"
    if any(peer.get("ae_title") == HEARTBEAT_AE for peer in peers.values()):
        yield ("heartbeat", "every_minutes"), f"a peer has the AE title {HEARTBEAT_AE}, which is the heartbeat's"


def _destinations(
    place: Place, table: dict[str, Any], where: str, peers: dict[str, Any]
) -> Iterator[tuple[Place, str]]:
    at, names = (*place, "send_to"), _names(table.get("send_to"))
    for name in names:
        if name not in peers:
            yield at, f"{where}: no peer '{name}'; {hint(name, peers)}"
        elif not {"folder", "host", "dicomweb_url"} & peers[name].keys():
            yield at, f"{where}: peer '{name}' has no host and port, so nothing can be sent to it"
        if names.count(name) > 1 and name:
            yield at, f"{where}: peer '{name}' is named twice in send_to"
            break


def _names(listed: object) -> list[str]:
    """The texts of a list; what else it holds has been reported by the schema."""
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []


def _also(
    i: int, route: dict[str, Any], raw: dict[str, Any], peers: dict[str, Any], pipelines: Known | None
) -> Iterator[tuple[Place, str]]:
    """Further destinations: they do not get every result already, and what they wait for can be found."""
    finds, gives = _finds(route, pipelines)
    for number, also in _tables(route, "also"):
        place: Place = ("route", i, "also", number)
        where = _table_name(place, raw)
        yield from _destinations(place, also, where, peers)
        for name in set(_names(also.get("send_to"))) & set(_names(route.get("send_to"))):
            yield (*place, "send_to"), f"{where}: peer '{name}' gets every result of the route already; remove it here"
        for key, words in _never_found(also, str(route.get("pipeline")), finds, gives):
            yield (*place, key), f"{where}: {words}"


def _finds(route: dict[str, Any], pipelines: Known | None) -> tuple[Mapping[str, bool], Collection[str]]:
    """What the pipeline of a route finds, and the categories that it gives; nothing where that is not known."""
    name, options = route.get("pipeline"), route.get("options", {})
    if pipelines is None or not isinstance(name, str) or name not in pipelines.options or not isinstance(options, dict):
        return {}, ()
    takes = pipelines.takes(name, options)
    return ({}, ()) if isinstance(takes, str) else (takes.finds, takes.categories)


def _never_found(
    of_kind: dict[str, Any], pipeline: str, finds: Mapping[str, bool], gives: Collection[str]
) -> Iterator[tuple[str, str]]:
    """What keeps every finding of a pipeline from being of this kind."""
    kinds, known = _names(of_kind.get("kinds")), {kind.casefold(): kind for kind in finds}
    if not finds:
        return
    for kind in kinds:
        if kind.casefold() not in known:
            yield "kinds", f"{pipeline} never finds '{kind}'; {hint(kind, finds)}"
    wanted = [known[kind.casefold()] for kind in kinds if kind.casefold() in known] or ([] if kinds else [*finds])
    least = of_kind.get("min_size_mm")
    if isinstance(least, int | float) and least > 0 and wanted and not any(finds[kind] for kind in wanted):
        yield "min_size_mm", f"{pipeline} does not measure {' or '.join(wanted)} in millimetres; remove 'min_size_mm'"
    for category in _names(of_kind.get("categories")):
        if category.casefold() not in {each.casefold() for each in gives}:
            yield (
                "categories",
                f"{pipeline} with its options never gives the category '{category}'; {hint(category, gives)}",
            )


def _never_told(i: int, notify: dict[str, Any], raw: dict[str, Any], pipelines: Known) -> Iterator[tuple[Place, str]]:
    """What keeps findings from being told: pipelines that are not there or not run, kinds that no live route finds."""
    where, named = _table_name(("notify", i), raw), _names(notify.get("pipelines"))
    live = [route for _, route in _tables(raw, "route") if route.get("shadow") is not True]
    for name in named:
        if name not in pipelines.options:
            known = pipelines.broken.get(name) or f"no pipeline '{name}'; {hint(name, pipelines.options)}"
            yield ("notify", i, "pipelines"), f"{where}: {known}"
        elif all(route.get("pipeline") != name for route in live):
            words = f"no route that sends results runs '{name}': nobody is told of its findings"
            yield ("notify", i, "pipelines"), f"{where}: {words}"
    found = [_finds(route, pipelines) for route in live if not named or route.get("pipeline") in named]
    if not all(finds for finds, _ in found):
        return  # one of them may find anything
    sized: dict[str, bool] = {}
    gives = {category for _, each in found for category in each}
    for finds, _ in found:
        sized |= {kind: is_sized or sized.get(kind, False) for kind, is_sized in finds.items()}
    for key, words in _never_found(notify, " or ".join(named) or "what the routes run", sized, gives):
        yield ("notify", i, key), f"{where}: {words}"


def _priors(
    i: int,
    route: dict[str, Any],
    where: str,
    peers: dict[str, Any],
    pipelines: Known | None,
) -> Iterator[tuple[Place, str]]:
    name, pipeline = route.get("priors"), route.get("pipeline")
    if not isinstance(name, str):
        return
    if name not in peers:
        yield ("route", i, "priors"), f"{where}: no peer '{name}'; {hint(name, peers)}"
    elif "host" not in peers[name]:
        yield ("route", i, "priors"), f"{where}: peer '{name}' has no host and port, so it cannot be asked for priors"
    model = pipelines.options.get(pipeline) if pipelines is not None and isinstance(pipeline, str) else None
    if model is not None and not getattr(model, "compares", False):
        yield ("route", i, "priors"), f"{where}: {pipeline} does not compare with earlier studies; remove 'priors'"


def _conditions(match: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    for keyword, condition in match.items():
        if not is_keyword_path(keyword):
            part = next(part for part in keyword.split(".") if not is_keyword_path(part))
            near = get_close_matches(part, KEYWORDS, n=1, cutoff=0.7)
            yield (keyword,), f"no DICOM keyword '{part}'" + (f"; did you mean '{near[0]}'?" if near else "")
        elif words := bad_condition(keyword, condition):
            yield (keyword,), words


KEYWORDS = sorted({entry[4] for entry in DicomDictionary.values() if entry[4]})


def hint(word: str, known: Collection[str]) -> str:
    return did_you_mean(word, known) or f"there are {', '.join(sorted(known)) or 'none'}"


def _duplicates(raw: dict[str, Any], table: str, key: str, among: Any = lambda _: True) -> Iterator[tuple[Place, str]]:
    seen: dict[str, int] = {}
    for i, entry in _tables(raw, table):
        value = entry.get(key)
        if not isinstance(value, str) or not among(entry):
            continue
        if value in seen:
            yield (table, i, key), f"{key} '{value}' of [[{table}]] is used twice; each needs its own"
        seen.setdefault(value, i)


def _page_problems(config: Config) -> Iterator[Found]:
    """Of the pages, and who can reach them."""
    for name, path in (("certificate", config.web.certificate), ("key", config.web.key)):
        if path is not None and (words := _unreadable(path)):
            yield ("web", name), f"{name} in [web]: {words}", "error"
    if config.web.certificate is not None and (words := _why_not_for_long(config.web.certificate)):
        # no error: images are taken whether or not somebody can look at the pages
        yield ("web", "certificate"), f"certificate in [web]: {config.web.certificate} {words}", "warning"
    yield from _proxy_problems(config)
    if config.others_reach_the_pages:
        place, host = ("node", "web_host"), f"web_host in [node] is '{config.node.web_host}'"
        if config.web.open_to_all:
            text = f"{host}, and open_to_all in [web] is set: who reaches this machine may use the pages"
            yield place, text, "warning"
        elif not config.web.certificate and not config.web.behind_proxy:
            text = f"{host}, and without TLS anybody on the way can read passwords: give certificate and key in [web]"
            yield place, f"{text}, or set behind_proxy where a proxy of yours brings the pages over TLS", "error"


def _proxy_problems(config: Config) -> Iterator[Found]:
    web, here_alone = config.web, all(ip_network(each).is_loopback for each in config.web.proxies)
    if not web.behind_proxy and web.proxies != type(web).model_fields["proxies"].default:
        yield ("web", "proxies"), "proxies in [web] are heard only with behind_proxy = true", "warning"
    elif web.behind_proxy and config.others_reach_the_pages and here_alone:
        text = "web_host in [node] lets other machines in, and proxies in [web] names none: behind a proxy there"
        yield ("web", "behind_proxy"), f"{text} all browsers have one address, and lock each other out", "warning"


def _place_problems(config: Config, raw: dict[str, Any]) -> Iterator[Found]:
    """What the settings are right to ask for, and this machine does not grant."""
    data_dir = config.node.data_dir
    if words := unwritable(data_dir):
        yield ("node", "data_dir"), f"data_dir in [node]: {words}", "error"
    elif shutil.disk_usage(_existing(data_dir)).total < config.receive.keep_free_gb * 1e9:
        text = (
            f"keep_free_gb in [receive] is {config.receive.keep_free_gb:g}, more than the disk of data_dir has in all"
        )
        yield ("receive", "keep_free_gb"), f"{text}: every image would be refused", "error"
    if config.database.url.startswith("sqlite:///"):
        file = Path(config.database.url.removeprefix("sqlite:///"))
        words = f"{file} is a folder" if file.is_dir() else unwritable(file.parent)
        if words and file.parent != data_dir:
            yield ("database", "url"), f"url in [database]: {words}", "error"
    yield from _unreadable_files(config, raw)
    yield from _tls_problems(config, raw)
    for i, peer in enumerate(config.peers):
        where = _table_name(("peer", i), raw)
        if peer.folder is not None and (words := unwritable(peer.folder)):
            yield ("peer", i, "folder"), f"'folder' in {where}: {words}", "error"
    yield from _page_problems(config)


def _unreadable_files(config: Config, raw: dict[str, Any]) -> Iterator[Found]:
    if config.store.ca is not None and (words := _unreadable(config.store.ca)):
        yield ("store", "ca"), f"ca in [store]: {words}", "error"
    if config.oidc.issuer_ca is not None and (words := _unreadable(config.oidc.issuer_ca)):
        yield ("oidc", "issuer_ca"), f"issuer_ca in [oidc]: {words}", "error"
    if config.traces.ca is not None and (words := _unreadable(config.traces.ca)):
        yield ("traces", "ca"), f"ca in [traces]: {words}", "error"
    for key in SYSLOG_FILES:
        if (file := getattr(config.audit, key)) is not None and (words := _unreadable(file)):
            yield ("audit", key), f"{key} in [audit]: {words}", "error"
    shown = config.audit.syslog_certificate
    if shown is not None and (words := _why_not_for_long(shown)):  # no error: what is audited is kept here, too
        yield ("audit", "syslog_certificate"), f"syslog_certificate in [audit]: {shown} {words}", "warning"
    for i, peer in enumerate(config.peers):
        if peer.dicomweb_ca is not None and (words := _unreadable(peer.dicomweb_ca)):
            yield ("peer", i, "dicomweb_ca"), f"'dicomweb_ca' in {_table_name(('peer', i), raw)}: {words}", "error"
    for i, route in enumerate(config.routes):
        for key, value in route.options.items():
            weights = key.endswith("checkpoint") and isinstance(value, str) and Path(value).is_absolute()
            if weights and (words := _unreadable(Path(value))):
                yield ("route", i, "options", key), f"{_table_name(('route', i), raw)}: {key}: {words}", "error"


SOON = timedelta(days=30)  # a certificate that ends within it is warned of


def _why_not_for_long(file: Path) -> str | None:
    """None, or in words that a certificate is not good now, or soon; one that cannot be read is no matter of this."""
    now = datetime.now(UTC)
    try:
        [own, *_] = certificates(file)
    except Unusable:
        return None
    return own.why_not_valid(now) or own.why_renew(now, SOON)


def _tls_problems(config: Config, raw: dict[str, Any]) -> Iterator[Found]:
    """Of the certificates of [tls], as they are now; and of the peers that need them."""
    tls, now = config.tls, datetime.now(UTC)
    try:
        for file in (tls.own_certificate,) if tls.own_certificate is not None else ():
            [own, *_] = certificates(file)
            if words := own.why_not_valid(now):
                yield ("tls", "own_certificate"), f"own_certificate in [tls]: {file} {words}", "error"
            elif words := own.why_renew(now, SOON):
                yield ("tls", "own_certificate"), f"own_certificate in [tls]: {file} {words}", "warning"
            if tls.own_key is not None and (words := why_key_does_not_fit(tls.own_key, own)):
                yield ("tls", "own_key"), f"own_key in [tls]: {words}", "error"
    except Unusable as error:
        yield ("tls", "own_certificate"), f"own_certificate in [tls]: {error}", "error"
    if tls.own_key is not None and _bits(tls.own_key, 0o077):
        yield ("tls", "own_key"), f"own_key in [tls]: other users can read it: chmod 600 {tls.own_key}", "warning"
    yield from _trust_problems(tls.trusted, now)
    for i, peer in enumerate(config.peers):
        place, where = ("peer", i, "tls"), _table_name(("peer", i), raw)
        if peer.tls and peer.may_send and not tls.dicom_tls_port:
            text = f"{where} may send and has tls, but there is no port for that: its images come unencrypted; give"
            yield place, f"{text} dicom_tls_port in [tls]", "warning"


def _trust_problems(trusted: Path | None, now: datetime) -> Iterator[Found]:
    if trusted is None:
        return
    try:
        found: list[Certificate] = certificates(trusted)
    except Unusable as error:
        yield ("tls", "trusted"), f"trusted in [tls]: {error}", "error"
        return
    ended = [(each, words) for each in found if (words := each.why_not_valid(now))]
    for each, words in ended:
        text = f"trusted in [tls]: of {trusted} the certificate of {each.subject} {words}"
        yield ("tls", "trusted"), text, "error" if len(ended) == len(found) else "warning"


def _marks(config: Config) -> Iterator[Found]:
    """Room is made before it is needed, or too late."""
    start_gb = config.retention.start_free_gb
    if 0 < start_gb <= config.receive.keep_free_gb:
        text = f"start_free_gb in [retention] is {start_gb:g}, not above keep_free_gb in [receive]"
        yield ("retention", "start_free_gb"), f"{text}: senders are refused before anything is deleted", "warning"


def _open_to_others(path: Path, config: Config, raw: dict[str, Any]) -> Iterator[Found]:
    """What other users can read though it holds secrets or patients; what they cannot, and may want to."""
    secret = any(_holds_a_secret(table, model) for _, table, model in secrets.places(raw, TABLES | LISTS))
    if secret and (_bits(path, 0o004) or (_bits(path, 0o040) and path.stat().st_gid != os.getegid())):
        words = f"holds a secret, and other users can read it: make it the node's own user's, and chmod 600 {path}"
        yield (), words, "warning"
    for place, table, model in secrets.places(raw, TABLES | LISTS):
        for name in secrets.names(model):
            file = table.get(f"{name}_file")
            if file and _bits(key := path.resolve().parent / Path(file).expanduser(), 0o077):
                words = f"{_name((*place, f'{name}_file'), raw)}: other users can read it: chmod 600 {key}"
                yield (*place, f"{name}_file"), words, "warning"
    endpoint = urlsplit(config.store.endpoint)
    if endpoint.scheme == "http" and not is_loopback(endpoint.hostname or ""):
        words = f"endpoint in [store] is {config.store.endpoint}: images and results cross the network for all to read;"
        yield ("store", "endpoint"), f"{words} use https", "warning"
    collector = urlsplit(config.traces.endpoint)
    if config.traces.headers is not None and collector.scheme == "http" and not is_loopback(collector.hostname or ""):
        words = "endpoint in [traces] is http: what headers holds crosses the network for all to read; use https"
        yield ("traces", "endpoint"), words, "warning"
    if config.audit.syslog_host and config.audit.syslog_transport == "udp":
        words = "syslog_transport in [audit] is udp: what of the audit trail is lost on the way nobody notices, and all"
        yield ("audit", "syslog_transport"), f"{words} on the way can read it; use tls where the server can", "warning"
    data_dir = config.node.data_dir
    if _bits(data_dir, 0o077):
        words = f"data_dir in [node]: {data_dir} holds images and names of patients, and is open to other users of this"
        yield ("node", "data_dir"), f"{words} machine: chmod -R go= {data_dir}", "warning"
    for i, peer in enumerate(config.peers):
        folder, undecided = peer.folder, "readable_by" not in peer.model_fields_set
        if undecided and folder is not None and _bits(folder, 0o077):
            words = f"'folder' in {_table_name(('peer', i), raw)}: {folder} is open to others, what the node writes"
            yield (
                ("peer", i, "folder"),
                f"{words} into it is not; if they are to read it, set readable_by",
                "warning",
            )


def _holds_a_secret(table: dict[str, Any], model: type[BaseModel]) -> bool:
    """In the settings file itself, and not where it names."""
    named = [table.get(name) for name in secrets.names(model)]
    for given in named:
        if isinstance(given, list) and any(secrets.VARIABLE.sub("", str(each)) for each in given):
            return True  # an address may be one as a whole
    for value in named:
        if isinstance(value, str) and value:
            parts = secrets.VARIABLE.sub("", value)
            if ("://" not in value and parts) or _password_in(value):
                return True
    return False


def _password_in(url: str) -> bool:
    found = re.search(r"[?&]password=([^&]*)", url)
    password = found[1] if found else (urlsplit(url).password if "://" in url else "")
    return bool(secrets.VARIABLE.sub("", password or ""))


def _bits(path: Path, bits: int) -> int:
    """Those of its permission bits; none of what is not there, or cannot be looked at."""
    try:
        return path.stat().st_mode & bits
    except OSError:
        return 0


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    above = (folder, *folder.parents)  # Path.exists raises where a folder on the way may not be read
    return next(place for place in above if os.path.exists(place) or place == place.parent)  # noqa: PTH110


def unwritable(folder: Path) -> str | None:
    """None, or why no file can be made in this folder, or the folder itself not be made. Leaves nothing behind."""
    place = _existing(folder)
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"nothing can be written into {place}: {error.strerror}"


def _unreadable(file: Path) -> str | None:
    try:
        with file.open("rb"):
            return None
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"


def _shows_who_it_is(peer: dict[str, Any]) -> bool:
    """By its certificate."""
    return bool(peer.get("tls_name") or peer.get("tls_fingerprints"))


def _warnings(raw: dict[str, Any], pipelines: Known | None) -> Iterator[tuple[Place, str]]:
    routed = {route.get("pipeline") for _, route in _tables(raw, "route")}
    for name, why in sorted(pipelines.broken.items() if pipelines is not None else ()):
        if name not in routed:
            yield (), f"no route uses it, but {why}"
    for i, notify in _tables(raw, "notify"):
        if pipelines is not None and "finding" in _names(notify.get("about")):
            yield from _never_told(i, notify, raw, pipelines)
    if not raw.get("route"):
        yield (), "no [[route]]: series are received and kept, but nothing is inferred"
    if not any(peer.get("may_send") is True for _, peer in _tables(raw, "peer")):
        yield (), "no [[peer]] with may_send = true: every sender is rejected"
    tls = raw.get("tls", {})
    has_port = isinstance(tls, dict) and bool(tls.get("dicom_tls_port"))
    for i, peer in _tables(raw, "peer"):
        known = peer.get("calls_from") or (has_port and peer.get("tls") is True and _shows_who_it_is(peer))
        if peer.get("may_send") is True and isinstance(peer.get("ae_title"), str) and not known:
            text = f"{_table_name(('peer', i), raw)} may send, and its AE title alone says who it is: whoever knows the"
            yield ("peer", i, "may_send"), f"{text} title gets in from any address; name its hosts in calls_from"
    yield from _never_falls_back(raw)
    routes = [route for _, route in _tables(raw, "route")]
    tables = [*routes, *(also for route in routes for _, also in _tables(route, "also"))]
    used: set[Any] = {name for table in tables for name in _names(table.get("send_to"))}
    used |= {route.get("priors") for route in routes}
    for i, peer in _tables(raw, "peer"):
        if isinstance(peer.get("name"), str) and peer.get("may_send") is not True and peer["name"] not in used:
            yield ("peer", i, "name"), f"peer '{peer['name']}' may not send and no route sends to it"


def _never_falls_back(raw: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Fallbacks beside a route that takes every series."""
    live = [r for _, r in _tables(raw, "route") if not r.get("fallback") and not r.get("shadow")]
    all_of_it = [r.get("name") for r in live if r.get("match") == {}]
    for i, route in _tables(raw, "route"):
        if route.get("fallback") is True and all_of_it:
            words = f"is a fallback and never runs: [[route]] '{all_of_it[0]}' takes every series"
            yield ("route", i, "fallback"), f"{_table_name(('route', i), raw)} {words}"
