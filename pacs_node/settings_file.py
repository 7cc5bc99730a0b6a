"""The settings file as a text: one entry of it changed, and every comment where it was.

What is written back is what was read, but for the lines of the one entry; a text that would say anything else is
refused. `write` leaves the file whole, and as whose it was.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import tomlkit
from tomlkit.container import Container
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, InlineTable, Item, Null, SingleKey, Table, Whitespace

from config import Peer, secrets
from config.check import LISTS, SECRETS, TABLES
from pacs_node.durable import write_whole
from pacs_node.errors import SettingsRefused

# what no page and no difference shows, where it is not found as the value of a setting: in a comment, in options
OWN = "|".join(sorted({name for model in (TABLES | LISTS).values() for name in secrets.names(model)} - {"url", "urls"}))
SECRET = re.compile(
    rf"""(?P<key>\b(?:\w*(?:token|password|secret|_key)|{OWN})["']?\s*=\s*)"""
    r"""(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\])*"|'[^']*')"""
    # of [[notify]]: a list of texts, or one without brackets
    r"""|(?P<list>\burls["']?\s*=\s*)(?:\[(?:"{3}.*?"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\])*"|'[^']*'|[^\]"'])*\]"""
    r"""|"{3}.*?"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\])*"|'[^']*')""",
    re.DOTALL | re.IGNORECASE,
)
PASSWORD_OF_URL = re.compile(
    r"(?P<before>://[^\s:/@\"']*:)[^\s\"']+(?=@)|(?P<word>(?:password|token|secret|key)=)[^\s&\"']+", re.IGNORECASE
)
NOT_SHOWN = "(not shown)"
LONGEST_TOLD = 200  # characters of a value before or after

BY_HAND = "it is written in a way that cannot be changed here: change the file by hand, then `pacs-node reload`"


def read(path: Path) -> str:
    """Raises SettingsRefused."""
    try:
        return path.read_bytes().decode("utf-8")  # with the ends of lines that it has
    except OSError as error:
        raise SettingsRefused(f"{path.name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsRefused(f"{path.name}: is not UTF-8 text: {error.reason} at byte {error.start}") from error


def write(path: Path, text: str) -> None:
    """The whole text or nothing of it, with the mode and the owner that the file has. Raises SettingsRefused."""
    path = path.resolve()  # of a link the file that it leads to
    try:
        there = path.stat()

        def put(file: BinaryIO) -> None:
            made = os.fstat(file.fileno())
            if (made.st_uid, made.st_gid) != (there.st_uid, there.st_gid):
                os.fchown(file.fileno(), there.st_uid, there.st_gid)
            file.write(text.encode())

        write_whole(path, put, mode=there.st_mode & 0o7777)
    except OSError as error:
        raise SettingsRefused(
            f"{path.name}: cannot be written by the node's user ({(error.strerror or '').lower()}): let that user "
            "write the file and its folder, or change it by hand and then `pacs-node reload`"
        ) from error


def digest(text: str) -> str:
    """Says whether the file is still what somebody has looked at."""
    return hashlib.sha256(text.encode()).hexdigest()


def following(own: str, theirs: str, tables: Sequence[str]) -> str:
    """Our text, with these tables as another text has them. Raises SettingsRefused."""
    try:
        ours, others = tomlkit.parse(own), tomlkit.parse(theirs)
    except TOMLKitError as error:
        raise SettingsRefused(f"is no TOML: {error}") from error
    plain = ours.unwrap() | dict.fromkeys(tables) | {name: others.unwrap().get(name) for name in tables}
    return tomlkit.dumps({name: value for name, value in plain.items() if value is not None})


def difference(former: str, text: str) -> str:
    """The lines that changed, as `diff -u` shows them, without secrets."""
    old, new = without_secrets(former), without_secrets(text)
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "before", "after", lineterm="", n=2)
    shown = [line for line in lines if not line.startswith(("---", "+++"))]
    if _secrets(former) != _secrets(text):
        shown.append("(a secret was changed)")
    return "\n".join(shown)


def changes(former: str, text: str, hidden: Callable[[str], bool]) -> list[str]:
    """Each setting that is another one, before and after, for who reads the audit trail: no comment, no secret, and no
    value of a keyword that is hidden.

    >>> changes("[node]\\nweb_port = 80", "[node]\\nweb_port = 81", lambda keyword: False)
    ['node.web_port: 80 -> 81']
    """
    try:
        old, new = dict(_settings_of(_parsed(former))), dict(_settings_of(_parsed(text)))
    except SettingsRefused:
        return ["what it said before cannot be read"]
    return [
        f"{'.'.join(place)}: {_told(place, old, hidden)} -> {_told(place, new, hidden)}"
        for place in dict.fromkeys([*old, *new])
        if repr(old.get(place)) != repr(new.get(place))  # 1 is not true, nor 1.0
    ]


def _settings_of(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value and where it stands: ("peer", "pacs", "port")."""
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        value = {
            str(each.get("name", n)) if isinstance(each, Mapping) else str(n): each for n, each in enumerate(value, 1)
        }
    if not isinstance(value, Mapping) or (place and not value):
        yield place, value
        return
    for key, each in value.items():
        yield from _settings_of(each, (*place, key))


def _told(place: tuple[str, ...], settings: Mapping[tuple[str, ...], Any], hidden: Callable[[str], bool]) -> str:
    if place not in settings:
        return "not set"
    key, value = place[-1], json.dumps(settings[place], ensure_ascii=False, default=str)
    if any(map(hidden, place)) or key in SECRETS - {"url"}:
        return NOT_SHOWN
    shown = without_secrets(f"{key} = {value}").partition(" = ")[2]
    return shown if len(shown) <= LONGEST_TOLD else f"{shown[:LONGEST_TOLD]}..."


def _secrets(text: str) -> list[str]:
    found = [value for _, value in _of_settings(text)]
    return found + [each[0] for pattern in (SECRET, PASSWORD_OF_URL) for each in pattern.finditer(text)]


def _of_settings(text: str) -> Iterator[tuple[str, str]]:
    """(setting, its value as it is written) of each that is secret; nothing of what is no TOML."""
    try:
        document = tomlkit.parse(text)
    except (TOMLKitError, ValueError):
        return
    for _, table, model in secrets.places(document, TABLES | LISTS):
        for name in secrets.names(model):
            if isinstance(item := table.get(name), Item) and "SecretStr" in str(model.model_fields[name].annotation):
                yield name, item.as_string()


def without_secrets(text: str) -> str:
    for name, value in _of_settings(text):
        written = rf"(\b{name}[\"']?\s*=\s*){re.escape(value)}"
        text = re.sub(written, lambda found: f'{found[1]}"{NOT_SHOWN}"', text)
    text = SECRET.sub(lambda found: f'{found["key"] or found["list"]}"{NOT_SHOWN}"', text)
    return PASSWORD_OF_URL.sub(lambda found: f"{found['before'] or found['word']}{NOT_SHOWN}", text)


# ---- without the secrets, for what others may read: a backup, the history


def kept(text: str) -> tuple[str, dict[str, str]]:
    """The text with `${NAME}` in place of each secret that stands in it, and which these are: NAME -> the secret.

    `check` asks for the variables, so that nobody starts a node with a secret that is none. What refers to a file or to
    the environment stays as it is; in comments of settings nothing is left that looks like a secret. Options of routes
    are left as they are: each job holds them.
    """
    try:
        document = tomlkit.parse(text)
    except (TOMLKitError, ValueError):
        return without_secrets(text), {}
    found: dict[str, str] = {}
    for where, table, key in _secret_places(document):
        table[key] = _each(table[key], where, lambda value, name: _with_names(value, name, found))
    masked = _without_comments(document)
    return (tomlkit.dumps(document) if found or masked else text), found


def filled(text: str, found: Mapping[str, str]) -> str:
    """A text of `kept` with the secrets in their places again. Raises SettingsRefused for those that are not found."""
    document, lacking = tomlkit.parse(text), list[str]()

    def fill(name: re.Match[str]) -> str:
        if name[1].startswith(PREFIX) and name[1] not in found and name[1] not in os.environ:
            lacking.append(name[1])
        return found.get(name[1], name[0])

    for where, table, key in _secret_places(document):
        table[key] = _each(table[key], where, lambda value, _: secrets.VARIABLE.sub(fill, value))
    if lacking:
        raise SettingsRefused(
            f"secrets are not kept in the history ({', '.join(lacking)}): write the entry with its secret into the "
            "settings file of this machine by hand"
        )
    return tomlkit.dumps(document)


PREFIX = "PACS_NODE_"  # of the names that stand in place of secrets


def _secret_places(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(a name for it, its table, key) of each setting that is secret."""
    for place, table, model in secrets.places(document, TABLES | LISTS):
        named = [key for key in secrets.names(model) if key in table]
        yield from ((_name_of(place, table, key), table, key) for key in named)


def _name_of(place: secrets.Place, table: Mapping[str, Any], key: str) -> str:
    """Another one for another entry, and where the same entry has another address: a secret goes where it is for."""
    entry = str(table.get("name", ""))
    addresses = [PASSWORD_OF_URL.sub("", each) for each in map(str, table.values()) if "://" in each]
    own = hashlib.sha256(repr((place[0], entry, key, addresses)).encode()).hexdigest()[:6]
    return re.sub(r"[^A-Z0-9]+", "_", f"{PREFIX}{place[0]}_{entry}_{key}_{own}".upper())


def _each(value: Any, name: str, change: Callable[[str, str], str]) -> Any:
    """A text, or each of a list of them, changed; and as it was where nothing changes."""
    if isinstance(value, list):
        new: Any = [_each(each, f"{name}_{n}", change) for n, each in enumerate(value, 1)]
    else:
        new = change(str(value), name) if isinstance(value, str) else value
    return value if new == value else new


def _with_names(value: str, name: str, found: dict[str, str]) -> str:
    """Of the address of a database the password alone, so that the rest can still be read."""

    def put(secret: str) -> str:
        if not secret or secrets.VARIABLE.fullmatch(secret):
            return secret
        found[name] = secret
        return f"${{{name}}}"

    def of_address(part: re.Match[str]) -> str:
        before = part["before"] or part["word"]
        return f"{before}{put(part[0][len(before) :])}"

    return PASSWORD_OF_URL.sub(of_address, value) if name.startswith(f"{PREFIX}DATABASE_") else put(value)


def _without_comments(container: Container) -> bool:
    """What looks like a secret is masked in every comment. Was there one?"""
    masked = False
    for _, item in container.body:
        if isinstance(item, Whitespace | Null):
            continue
        if (new := without_secrets(item.trivia.comment)) != item.trivia.comment:
            item.trivia.comment, masked = new, True
        for table in item.body if isinstance(item, AoT) else [item] if isinstance(item, Table) else []:
            masked = _comments_of(table) or masked
    return masked


def _comments_of(table: Table) -> bool:
    comment = table.trivia.comment
    table.trivia.comment = without_secrets(comment)
    return _without_comments(table.value) or table.trivia.comment != comment


OF_SECRETS = secrets.names(Peer)


def must_bring_no_secret_elsewhere(former: str, text: str) -> None:
    """Raises SettingsRefused where an entry has a secret that nobody has entered, out of a file or the environment, and
    did not have it before at the same address: who may use the pages would have any file brought anywhere. And where
    it is another folder of this machine, which would be written to."""
    for kind, reference in (("peer", _reference), ("notify", _reference_of_addresses)):
        known = {reference(each) for each in entries(former, kind)}
        for entry in entries(text, kind):
            if any(each is not None for each in reference(entry)[1:]) and reference(entry) not in known:
                raise SettingsRefused(
                    f"{kind} '{entry.get('name')}': a folder, a secret in a file or in the environment, and the "
                    "address that it is for, are said in the settings file alone: write them there, then `pacs-node "
                    "reload`"
                )


def _reference(peer: Mapping[str, Any]) -> tuple[str | None, ...]:
    """An address, and what is named of its secrets and stands elsewhere."""
    named = [peer.get("folder"), *(peer.get(f"{key}_file") for key in OF_SECRETS)]
    named += [peer.get(key) if "${" in str(peer.get(key)) else None for key in OF_SECRETS]
    return tuple(None if each is None else str(each) for each in (peer.get("dicomweb_url"), *named))


def _reference_of_addresses(about: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Of whom messages go to: the addresses that stand elsewhere, in a file or, in part, in the environment."""
    urls = about.get("urls", [])
    named = [each for each in (urls if isinstance(urls, list) else [urls]) if "${" in str(each)]
    return (None, *(None if each is None else str(each) for each in (about.get("urls_file"), *named)))


# ---- entries: the peers, the routes, and who is told


def entries(text: str, kind: str) -> list[dict[str, Any]]:
    """All [[peer]], [[route]] or [[notify]] of a text, in its order. Raises SettingsRefused for what is no TOML."""
    listed = _parsed(text).get(kind, [])
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def entry_text(text: str, kind: str, name: str) -> str:
    """The lines of one of them, as they stand. Raises SettingsRefused."""
    start, end = _lines_of(text, kind, _number(text, kind, name))
    return "".join(text.splitlines(keepends=True)[start:end])


def as_text(kind: str, values: Mapping[str, Any]) -> str:
    """An entry as a settings file says it."""
    return changed(f"[[{kind}]]\n", kind, values)


def with_entry(text: str, kind: str, name: str | None, values: Mapping[str, Any]) -> str:
    """The text with new values of the entry that has this name; None: with another entry. Raises SettingsRefused."""
    if name is None:
        return _with_block(text, kind, None, as_text(kind, values), dict(values))
    number = _number(text, kind, name)
    start, end = _lines_of(text, kind, number)
    block = "".join(text.splitlines(keepends=True)[start:end])
    return _with_block(text, kind, number, changed(block, kind, values), dict(values))


def with_entry_text(text: str, kind: str, name: str | None, block: str) -> str:
    """The same, from the lines of one entry. Raises SettingsRefused."""
    given = _parsed(block)
    if given.keys() != {kind} or not isinstance(given[kind], list) or len(given[kind]) != 1:
        raise SettingsRefused(f"write one [[{kind}]], and nothing else")
    number = None if name is None else _number(text, kind, name)
    return _with_block(text, kind, number, block if block.endswith("\n") else f"{block}\n", given[kind][0])


def without_entry(text: str, kind: str, name: str) -> str:
    """Raises SettingsRefused."""
    return _with_block(text, kind, _number(text, kind, name), "", None)


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomlkit.parse(text).unwrap()
    except (TOMLKitError, ValueError) as error:  # ValueError: a date or a number that cannot be
        raise SettingsRefused(f"is not TOML: {error}") from error


def _number(text: str, kind: str, name: str) -> int:
    numbers = [n for n, each in enumerate(entries(text, kind)) if each.get("name") == name]
    if not numbers:
        raise SettingsRefused(f"the settings have no {kind} '{name}' any more; load the page again")
    return numbers[0]


def _with_block(text: str, kind: str, number: int | None, block: str, values: dict[str, Any] | None) -> str:
    """The text with other lines in place of those of one entry (None: after all of them), if it then says just that."""
    lines = text.splitlines(keepends=True)
    count = len(entries(text, kind))
    if number is not None:
        start, end = _lines_of(text, kind, number)
        if not block:  # and the empty line before it
            start -= start > 0 and not lines[start - 1].strip()
    elif count:
        start = end = _lines_of(text, kind, count - 1)[1]
        block = f"\n{block}"
    else:
        start = end = len(lines)
        block = f"\n{block}" if text.strip() else block
    if start and not lines[start - 1].endswith("\n"):
        block = f"\n{block}"
    new = "".join([*lines[:start], block, *lines[end:]])
    expected = _parsed(text)
    listed = expected.setdefault(kind, [])
    if values is None:
        del listed[number]
    elif number is None:
        listed.append(values)
    else:
        listed[number] = values
    if not listed:
        del expected[kind]
    if _parsed(new) != expected:
        raise SettingsRefused(BY_HAND)
    return new


def _lines_of(text: str, kind: str, number: int) -> tuple[int, int]:
    """First and last line (not included) of an entry; comments at its end belong to what follows.

    An entry ends where both it and what stands before are TOML by themselves.
    """
    lines = text.splitlines(keepends=True)
    begins = re.compile(rf"""^\s*\[\[\s*(["']?){kind}\1\s*\]\]""")
    starts = [n for n, line in enumerate(lines) if begins.match(line)]
    if len(starts) != len(entries(text, kind)):
        raise SettingsRefused(BY_HAND)
    start = starts[number]
    for end in _ends(lines, start, kind):
        if _is_toml("".join(lines[start:end])) and _is_toml("".join(lines[end:])):
            while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
                end -= 1
            return start, _with_own_comments(lines, end)
    raise SettingsRefused(BY_HAND)


def _with_own_comments(lines: Sequence[str], end: int) -> int:
    """Comments that follow without an empty line are the entry's own, such as a setting that is switched off; unless a
    table follows them likewise, which they are about."""
    own = end
    while own < len(lines) and lines[own].lstrip().startswith("#"):
        own += 1
    return own if own == len(lines) or not lines[own].strip() else end


def _ends(lines: Sequence[str], start: int, kind: str) -> Iterator[int]:
    """Where an entry may end: before each header that is not of a table within it."""
    within = re.compile(rf"""^\s*\[\[?\s*(["']?){kind}\1\s*\.""")
    for number in range(start + 1, len(lines)):
        if re.match(r"^\s*\[", lines[number]) and not within.match(lines[number]):
            yield number
    yield len(lines)


def _is_toml(text: str) -> bool:
    try:
        tomlkit.parse(text)
    except (TOMLKitError, ValueError):
        return False
    return True


def changed(block: str, kind: str, values: Mapping[str, Any]) -> str:
    """The lines of an entry with these values and no others. Raises SettingsRefused."""
    document = tomlkit.parse(block)
    listed = document[kind]
    if not isinstance(listed, AoT):
        raise SettingsRefused(BY_HAND)
    _bring(listed[0], values)
    return document.as_string()


def _bring(table: Table | InlineTable, values: Mapping[str, Any]) -> None:
    """These values and no others; what stays the same stays as it is written."""
    for key in [key for key in table if key not in values]:
        table.remove(key)
    for key, value in values.items():
        there = table.get(key)
        if key in table and repr(there.unwrap() if isinstance(there, Item) else there) == repr(value):
            continue  # repr: 1 is not true, nor 1.0
        fewer = isinstance(there, InlineTable) and isinstance(value, Mapping) and not there.keys() <= value.keys()
        if isinstance(there, Table | InlineTable) and isinstance(value, Mapping) and value and not fewer:
            _bring(there, value)
        else:
            table[key] = _item(value)


def _item(value: Any) -> Any:
    tables = isinstance(value, list) and any(isinstance(each, Mapping) for each in value)
    return tomlkit.value(_inline(value)) if isinstance(value, Mapping) or tables else tomlkit.item(value)


def _inline(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if not isinstance(value, Mapping):
        return str(tomlkit.item(value).as_string())
    pairs = ", ".join(f"{SingleKey(key).as_string()} = {_inline(each)}" for key, each in value.items())
    return f"{{ {pairs} }}" if pairs else "{}"
