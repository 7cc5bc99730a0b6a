"""The settings file as a text: one entry changes, everything else stays as it was written."""

from __future__ import annotations

import os
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from config import secrets
from config.check import LISTS, TABLES
from pacs_node import settings_file
from pacs_node.errors import SettingsRefused
from pacs_node.route import identifying
from pacs_node.settings_file import difference, with_entry, with_entry_text, without_entry, without_secrets

ROOT = Path(__file__).resolve().parents[2]
TEXT = """# ours
[node]
ae_title = "AI"   # what the PACS calls

# the archive
[[peer]]
name = "pacs"
ae_title = "ORTHANC" # as it says itself
host = "10.0.0.5"
port = 4242
#may_send = true

[[peer]]
name = "web"
dicomweb_url = "https://archive.example/dicom-web"
dicomweb_token = "s3cret \\" quoted"
# what follows are the routes

# Which series goes where.
[[route]]
name = "chest"
match = { Modality = "CT", BodyPartExamined = ["CHEST", "LUNG"] } # both
pipeline = "lung-nodule"
send_to = ["pacs"]
[route.options]
views = 1 # quick

[retention]
keep_days = 30
"""
PEER = {"name": "new", "ae_title": "NEW", "may_send": True}


def named(text: str, kind: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in tomllib.loads(text)[kind]}


def test_one_value_is_one_line() -> None:
    pacs = {**named(TEXT, "peer")["pacs"], "port": 4343}
    assert with_entry(TEXT, "peer", "pacs", pacs) == TEXT.replace("4242", "4343")


def test_a_value_within_a_table_is_one_line() -> None:
    chest = {**named(TEXT, "route")["chest"], "options": {"views": 3}}
    assert with_entry(TEXT, "route", "chest", chest) == TEXT.replace("views = 1 # quick", "views = 3 # quick")


def test_nothing_changed_is_the_same_text() -> None:
    for kind in ("peer", "route"):
        for name, values in named(TEXT, kind).items():
            assert with_entry(TEXT, kind, name, values) == TEXT


def test_a_new_peer_stands_behind_the_others_and_before_what_is_said_of_the_routes() -> None:
    text = with_entry(TEXT, "peer", None, PEER)
    assert list(named(text, "peer")) == ["pacs", "web", "new"]
    new, routes = text.index('name = "new"'), text.index("# Which series goes where.\n[[route]]")
    assert text.index("dicomweb_token") < new < routes
    assert without_entry(text, "peer", "new") == TEXT


def test_what_is_deleted_takes_no_comment_of_another_with_it() -> None:
    text = without_entry(TEXT, "peer", "pacs")
    assert list(named(text, "peer")) == ["web"]
    assert "#may_send" not in text, "a setting of its own that is switched off goes with it"
    text = without_entry(TEXT, "peer", "web")
    assert "# Which series goes where.\n[[route]]" in text
    text = without_entry(TEXT, "route", "chest")
    assert tomllib.loads(text)["retention"] == {"keep_days": 30}
    assert "views" not in text


def test_the_first_of_a_kind_is_put_at_the_end() -> None:
    text = with_entry("[node]\nae_title = 'AI'", "peer", None, PEER)
    assert tomllib.loads(text) == {"node": {"ae_title": "AI"}, "peer": [PEER]}
    assert tomllib.loads(with_entry("", "peer", None, PEER)) == {"peer": [PEER]}


def test_the_file_that_shows_every_setting_can_be_begun_with() -> None:
    shown = (ROOT / "config" / "node.toml").read_text()
    text = with_entry(with_entry(shown, "peer", None, PEER), "peer", None, {**PEER, "name": "second"})
    assert text.startswith(shown)
    assert without_entry(without_entry(text, "peer", "second"), "peer", "new").rstrip() == shown.rstrip()


@pytest.mark.parametrize(
    "text",
    [
        'peer = [{ name = "pacs", ae_title = "A" }]\n',  # on one line
        '[node]\nx = """\n[[peer]]\n"""\n[[peer]]\nname = "pacs"\n',  # a header in a text
        '[[peer]]\nname = "pacs"\n[other]\nx = 1\n[[ "peer" ]]\nname = "third"\n[peer.x]\ny = 1\n',
    ],
)
def test_what_is_not_understood_is_refused_and_never_damaged(text: str) -> None:
    expected = tomllib.loads(text)
    expected["peer"] = [{**each, "ae_title": "B"} if each["name"] == "pacs" else each for each in expected["peer"]]
    with suppress(SettingsRefused):
        assert tomllib.loads(with_entry(text, "peer", "pacs", {"name": "pacs", "ae_title": "B"})) == expected


VALUES = st.one_of(
    st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
)  # fmt: skip
ENTRY = st.dictionaries(
    st.sampled_from(["host", "port", "match", "options", "a b", "x"]),
    st.one_of(VALUES, st.lists(VALUES, max_size=3), st.dictionaries(st.sampled_from(["A", "B.c", "d e"]), VALUES)),
)


@settings(deadline=None, max_examples=40)
@given(ENTRY, ENTRY)
def test_whatever_is_written_is_what_was_meant(first: dict[str, Any], second: dict[str, Any]) -> None:
    before = tomllib.loads(TEXT)
    text = with_entry(TEXT, "route", None, {"name": "new", **first})
    text = with_entry(text, "route", "new", {"name": "new", **second})
    now = tomllib.loads(text)
    assert now["route"][-1] == {"name": "new", **second}
    assert {**now, "route": now["route"][:-1]} == before
    assert without_entry(text, "route", "new") == TEXT


def test_lines_of_ones_own_are_taken_as_they_are() -> None:
    block = '[[peer]] # mine\nname = "pacs"\nae_title = "ORTHANC"\nmay_send = true # now\n'
    text = with_entry_text(TEXT, "peer", "pacs", block)
    assert block in text
    assert settings_file.entry_text(text, "peer", "pacs") == block


@pytest.mark.parametrize(
    "block", ["", "[node]\n", "[[peer]]\nname = 1\n[[peer]]\nname = 2\n", "[[peer]]\n[node]\nx = 1\n"]
)
def test_lines_that_say_anything_else_are_refused(block: str) -> None:
    with pytest.raises(SettingsRefused, match=r"write one \[\[peer\]\], and nothing else"):
        with_entry_text(TEXT, "peer", "pacs", block)


SECRETS = [
    'dicomweb_token = "s3cret \\" quoted"',
    "dicomweb_password = 's3cret'",
    "dicomweb_password = '''s3cret\nof two lines'''",
    '"dicomweb_token" = """s3cret"""',
    '#dicomweb_password = "s3cret"',
    'url = "postgresql+psycopg://node:s3cret@host/name"',
    'url = "postgresql+psycopg://host/name?user=node&password=s3cret"',
    'urls = ["https://x/s3cret",\n  "mailto://s3cret@x"]',
    'peer = [{ name = "x", dicomweb_token = "s3cret" }]',
    'urls = "slack://A/B/s3cret"',
    '"urls" = ["slack://A/s3cret"]',
    'urls = ["json://[fe80::1]/a/s3cret?x=1", "slack://A/B/s3cret"]',
    "urls = [\n  'json://[::1]/s3cret',\n]",
    '[[notify]]\nname = "n"\nurls = [\n  "json://a/",  # see [wiki]\n  "json://b/s3cret",\n]',
    '[[peer]]\nname = "p"\n"dicomweb_token" = "s3cret"',
    'url = "postgresql+psycopg://host/name?sslpassword=s3cret"',
    'url = "postgresql+psycopg://node:p@s3cret@host/name"',
]


@pytest.mark.parametrize("line", SECRETS)
def test_no_difference_shows_a_secret(line: str) -> None:
    for former, text in ((line, ""), ("", line), (line, line.replace("s3cret", "0ther-s3cret"))):
        shown = settings_file.difference(former, text)
        assert "s3cret" not in shown
        assert "not shown" in shown or "a secret was changed" in shown


def test_the_ends_of_lines_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    settings_file.write(path, settings_file.read(path))
    assert path.read_bytes() == TEXT.replace("\n", "\r\n").encode()


WEB = '[[peer]]\nname = "web"\ndicomweb_url = "https://ours/"\n'


@pytest.mark.parametrize("named", ['dicomweb_token_file = "token"', 'dicomweb_password = "${PASSWORD}"'])
def test_a_secret_that_nobody_entered_is_brought_nowhere_else(named: str) -> None:
    """Nor is another file, or another variable, named in a page."""
    former = f"{WEB}{named}\n"
    for text in (former, WEB, former.replace("[[peer]]", "[[peer]]\nmay_send = false"), f"{former}{WEB}"):
        settings_file.must_bring_no_secret_elsewhere(former, text)
    for text in (
        former.replace("https://ours/", "https://theirs/"),
        former.replace('"token"', '"passwd"').replace("${PASSWORD}", "${HOME}"),
        former + former.replace("ours", "theirs").replace('"web"', '"other"'),
    ):
        with pytest.raises(SettingsRefused, match="said in the settings file alone"):
            settings_file.must_bring_no_secret_elsewhere(former, text)
    with pytest.raises(SettingsRefused, match="said in the settings file alone"):
        settings_file.must_bring_no_secret_elsewhere(WEB, former)


def test_the_file_is_replaced_whole_with_its_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(TEXT)
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 1234, 4321)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    before = path.stat()
    settings_file.write(link, "[node]\n")
    after = path.stat()
    assert link.is_symlink()
    assert path.read_text() == "[node]\n"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino, "whoever reads it has the old one or the new one"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link.toml", "node.toml"]


def test_a_file_that_cannot_be_written_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.toml"
    path.write_text(TEXT)

    def full(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        SettingsRefused, match=r"node.toml: cannot be written by the node's user \(read-only file system"
    ):
        settings_file.write(path, "")
    assert path.read_text() == TEXT
    assert [each.name for each in tmp_path.iterdir()] == ["node.toml"]


SECRETS = [(table, name) for table, model in (TABLES | LISTS).items() for name in secrets.names(model)]


@pytest.mark.parametrize("form", ["#{} = {}", "# {}={}", "{} = {}\n[[broken", "#x = {{ {} = {} }}"])
@pytest.mark.parametrize(("table", "name"), SECRETS)
def test_no_secret_is_shown_where_it_is_no_setting(table: str, name: str, form: str) -> None:
    """In a comment, or in a file that is no TOML."""
    value = {"url": "postgresql://node:hush@db/node", "urls": "json://node:hush@host"}.get(name, "hush")
    text = f"[{table}]\n" + form.format(name, f'"{value}"') + "\n"
    assert "hush" not in without_secrets(text)
    assert "hush" not in difference("", text)
    assert "a secret was changed" in difference(text.replace("hush", "other"), text)


# ---- before and after, for the audit trail


def nobody(keyword: str) -> bool:
    return False


LEAVES = st.booleans() | st.integers(0, 9) | st.sampled_from(["CT", "US", 'a "b"']) | st.lists(st.integers(0, 3))
TABLE = st.dictionaries(st.sampled_from(["name", "port", "match", "x"]), LEAVES, max_size=3)
FILE = st.fixed_dictionaries({}, optional={"node": TABLE, "peer": st.lists(TABLE, max_size=2), "web": TABLE})


@given(FILE, FILE)
def test_each_setting_that_changed_is_told_and_no_other(former: dict[str, Any], text: dict[str, Any]) -> None:
    """Held against a walk of its own through lists by their numbers."""

    def leaves(value: Any, place: str = "") -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return {k: v for key, each in value.items() for k, v in leaves(each, f"{place}/{key}").items()}
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            names = [str(each.get("name", n)) for n, each in enumerate(value, 1)]
            return leaves(dict(zip(names, value, strict=True)), place)
        return {place: repr(value)} if place else {}

    old, new = leaves(former), leaves(text)
    said = settings_file.changes(tomlkit.dumps(former), tomlkit.dumps(text), nobody)
    assert len(said) == sum(old.get(each) != new.get(each) for each in old.keys() | new.keys())
    assert settings_file.changes(tomlkit.dumps(former), "# nothing else\n" + tomlkit.dumps(former), nobody) == []


def test_a_change_is_told_before_and_after_with_its_place() -> None:
    text = TEXT.replace("port = 4242", "port = 104").replace('["CHEST", "LUNG"]', '["CHEST"]')
    text = text.replace("keep_days = 30", "keep_days = 30\nkeep_aside_days = 7")
    assert settings_file.changes(TEXT, text, nobody) == [
        "peer.pacs.port: 4242 -> 104",
        'route.chest.match.BodyPartExamined: ["CHEST", "LUNG"] -> ["CHEST"]',
        "retention.keep_aside_days: not set -> 7",
    ]
    assert settings_file.changes("[[broken", TEXT, nobody) == ["what it said before cannot be read"]


@pytest.mark.parametrize(("table", "name"), SECRETS)
def test_no_change_tells_a_secret(table: str, name: str) -> None:
    value = {"url": "postgresql://node:hush@db/node", "urls": "json://node:hush@host"}.get(name, "hush")
    for written in (f'"{value}"', f'["{value}"]'):
        text = f'{f"[[{table}]]" if table in LISTS else f"[{table}]"}\nname = "n"\n{name} = {written}\n'
        for former, latter in ((text, ""), ("", text), (text, text.replace("hush", "other"))):
            said = settings_file.changes(former, latter, nobody)
            assert any(name in each for each in said), "that it changed is told"
            assert not any("hush" in each or "other" in each for each in said)


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "AccessionNumber", "X.PatientID", "StudyDescription"])
@pytest.mark.parametrize("form", ['match = {{ "{}" = "hush" }}', 'needs = {{ series = [{{ "{}" = ["hush"] }}] }}'])
def test_no_change_tells_who_a_patient_is(keyword: str, form: str) -> None:
    text = f'[[route]]\nname = "r"\n{form.format(keyword)}\n'
    for former, latter in ((text, ""), ("", text), (text, text.replace("hush", "other"))):
        said = "\n".join(settings_file.changes(former, latter, identifying))
        assert keyword in said
        assert "hush" not in said
        assert "other" not in said


# ---- what others may read: backups, the history


def in_file(table: str, name: str, value: str) -> str:
    head = f'[[{table}]]\nname = "n"' if table in LISTS else f"[{table}]"
    return f"{head}\n{name} = {value}  # as they gave it\n"


def value_of(name: str, secret: str = "hush") -> str:
    return {"url": f"postgresql://node:{secret}@db/node", "urls": f"json://node:{secret}@host"}.get(name, secret)


@pytest.mark.parametrize("form", ['"{}"', "'{}'", '["{}"]', '["${{OWN}}", "{}"]', '"""{}"""'])
@pytest.mark.parametrize(("table", "name"), SECRETS)
def test_no_secret_is_kept_and_every_one_comes_back(table: str, name: str, form: str) -> None:
    text = "# first\n[node]\nweb_port = 80\n" + in_file(table, name, form.format(value_of(name)))
    said, found = settings_file.kept(text)
    assert "hush" not in said
    assert len(found) == 1
    assert said.count("\n") == text.count("\n")
    assert "# as they gave it" in said
    assert "[node]\nweb_port = 80" in said
    assert tomllib.loads(settings_file.filled(said, found)) == tomllib.loads(text)
    assert settings_file.kept(said) == (said, {}), "what has none is as it was"
    with pytest.raises(SettingsRefused, match="secrets are not kept"):
        settings_file.filled(said, {})


def test_options_are_left_as_they_are() -> None:
    """A variable in them would reach the pipeline as it is; and what is a secret there nobody knows."""
    text = '[[route]]\nname = "r"\noptions = { tokenizer = "bert", label_key = "label", api_token = "hush" }\n'
    assert settings_file.kept(text) == (text, {})


@pytest.mark.parametrize("reference", ['token_file = "hush.token"', 'token = "${{HUSH}}"', 'password = "${{HUSH}}"'])
def test_what_only_refers_to_a_secret_is_kept_as_it_is(reference: str) -> None:
    text = f'[tls]\nown_key = "hush.key"\n[[peer]]\nname = "n"\ndicomweb_{reference.format()}\n'
    assert settings_file.kept(text) == (text, {})


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_of_a_whole_file_all_else_is_kept_as_it_is(end: str) -> None:
    """Also what is commented out, where secrets are examples."""
    for text in (TEXT, (ROOT / "config" / "node.toml").read_text()):
        text = text.replace("\n", end)
        said, found = settings_file.kept(text)
        assert "s3cret" not in said
        pairs = zip(text.splitlines(), said.splitlines(), strict=True)
        changed = [(before, after) for before, after in pairs if before != after]
        assert len(changed) == len(found) + sum("not shown" in after for _, after in changed)
        assert tomllib.loads(settings_file.filled(said, found)) == tomllib.loads(text)


def test_a_secret_comes_back_to_nobody_else() -> None:
    """To the entry that it is of, at the address that it is for."""
    former = f"""{WEB}dicomweb_token = "hush-1"
[[peer]]
name = "web_2"
dicomweb_url = "https://ours/"
dicomweb_token = "hush-2"
"""
    said, _ = settings_file.kept(former)
    assert "hush" not in said
    for now in (
        former.replace("https://ours/", "https://theirs/"),
        former.replace('"web"', '"web-2"'),
        former.replace('"web_2"', '"web 2"'),
        former.replace('dicomweb_token = "hush-1"', 'dicomweb_password = "hush-1"'),
        "",
    ):
        with pytest.raises(SettingsRefused, match="secrets are not kept"):
            settings_file.filled(said, settings_file.kept(now)[1])
    assert settings_file.filled(said, settings_file.kept(former)[1]) == former
