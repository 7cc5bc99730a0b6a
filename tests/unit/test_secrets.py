"""Secrets in files and in the environment: every setting that is one, in each way, once wrong in every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

import config
from config.check import LISTS, TABLES
from config.secrets import LONGEST, filled, names

PEER = '[[peer]]\nname = "w"\ndicomweb_url = "https://archive.example/dicom-web"\n'
AROUND = {  # what a secret needs beside it
    ("peer", "dicomweb_token"): PEER,
    ("peer", "dicomweb_password"): f'{PEER}dicomweb_user = "u"\n',
    ("oidc", "client_secret"): '[oidc]\nissuer = "https://idp.example"\nclient_id = "node"\nviewers = ["v"]\n',
    ("store", "secret_access_key"): '[store]\nkind = "s3"\nbucket = "images"\naccess_key_id = "node"\n',
    ("database", "url"): "[database]\n",
    ("traces", "headers"): '[traces]\nendpoint = "https://collector.example/v1/traces"\n',
    ("notify", "urls"): '[[notify]]\nname = "n"\n',
}
VALUES = {
    "headers": "Authorization=hush-hush",
    "urls": "json://node:hush-hush@hooks.example",
    "url": "postgresql+psycopg://node:hush-hush@db.example/node",
}
SECRET = "hush-hush-1"


def value_of(key: str) -> str:
    return VALUES.get(key, SECRET)


def all_secrets() -> list[tuple[str, str]]:
    return [(name, key) for name, model in (TABLES | LISTS).items() for key in names(model)]


EVERY = pytest.mark.parametrize(("table", "key"), all_secrets())


def written(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path


def loaded(path: Path, table: str, key: str) -> str:
    settings = config.load(path)
    held = {"peer": settings.peers, "notify": settings.notices}.get(table, [getattr(settings, table, None)])[0]
    value = getattr(held, key)
    if isinstance(value, tuple):
        [value] = value
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def said(path: Path) -> list[str]:
    return [str(problem) for problem in config.problems(path)]


def test_every_setting_that_is_secret_can_stand_elsewhere() -> None:
    """A new SecretStr without its `..._file` would be seen here, and so would one that this file does not try."""
    models: dict[str, type[BaseModel]] = TABLES | LISTS
    hidden = {
        (name, key)
        for name, model in models.items()
        for key, field in model.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    assert hidden | {("database", "url")} == set(all_secrets()) == AROUND.keys()


@EVERY
def test_it_may_stand_in_a_file(tmp_path: Path, table: str, key: str) -> None:
    file = tmp_path / "secret"
    for end in ("", "\n", "\r\n"):
        file.write_bytes((value_of(key) + end).encode())
        file.chmod(0o600)
        path = written(tmp_path, f'{AROUND[table, key]}{key}_file = "secret"')
        assert loaded(path, table, key) == value_of(key)
    assert not any("other users" in line for line in said(path)), "the settings file holds none itself"
    file.chmod(0o640)
    assert [line for line in said(path) if f"chmod 600 {file}" in line and f"{key}_file" in line]


@EVERY
def test_it_may_stand_in_the_environment(tmp_path: Path, table: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_SECRET", value_of(key))
    path = written(tmp_path, f'{AROUND[table, key]}{key} = "${{NODE_SECRET}}"')
    assert loaded(path, table, key) == value_of(key)
    assert not any("other users" in line for line in said(path))


def test_a_part_of_an_address_may_be_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "p@ss/w:rd?#%")
    path = written(tmp_path, '[database]\nurl = "postgresql+psycopg://node:${DB_PASSWORD}@db.example/node"')
    url = config.load(path).database.url
    assert url == "postgresql+psycopg://node:p%40ss%2Fw%3Ard%3F%23%25@db.example/node"
    assert not any("other users" in line for line in said(path))


WRONG: dict[str, tuple[str, str]] = {  # how -> (settings, what is said)
    "both": ('{key} = "{value}"\n{key}_file = "secret"', "{key} and {key}_file are both given; keep one of them"),
    "no file": ('{key}_file = "absent"', "absent cannot be read: No such file or directory"),
    "a folder": ('{key}_file = "."', "cannot be read: Is a directory"),
    "empty": ('{key}_file = "empty"', "is to hold the secret alone, in one line; it is empty, or holds more"),
    "lines": ('{key}_file = "lines"', "is to hold the secret alone, in one line"),
    "long": ('{key}_file = "long"', "is to hold the secret alone, in one line"),
    "bytes": ('{key}_file = "bytes"', "does not hold text in UTF-8"),
    "no variable": ('{key} = "${{NO_SUCH_VARIABLE}}"', "the environment has no variable NO_SUCH_VARIABLE"),
    "empty variable": ('{key} = "${{EMPTY_VARIABLE}}"', "no variable EMPTY_VARIABLE, or it is empty"),
}


@EVERY
@pytest.mark.parametrize("how", WRONG)
def test_what_is_wrong_is_one_error_that_quotes_nothing(
    tmp_path: Path, table: str, key: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    monkeypatch.setenv("EMPTY_VARIABLE", "")
    for name, content in {
        "secret": value_of(key).encode(),
        "empty": b"\n",
        "lines": b"one-hush-hush\ntwo",
        "long": b"x" * (LONGEST + 1),
        "bytes": b"\xff\xfe",
    }.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    text, words = (each.format(key=key, value=value_of(key)) for each in WRONG[how])
    path = written(tmp_path, AROUND[table, key] + text)
    errors = [str(problem) for problem in config.problems(path) if problem.severity == "error"]
    [line] = errors
    assert words in line
    assert f"'{key}" in line
    assert "hush" not in line
    assert line.startswith(f"node.toml:{path.read_text()[: path.read_text().rindex(key)].count(chr(10)) + 1}: ")
    with pytest.raises(config.ConfigError) as refused:
        config.load(path)
    assert "hush" not in str(refused.value)


@EVERY
def test_no_representation_of_the_settings_shows_it(tmp_path: Path, table: str, key: str) -> None:
    (tmp_path / "secret").write_text(value_of(key))
    settings = config.load(written(tmp_path, f'{AROUND[table, key]}{key}_file = "secret"'))
    if key != "url":  # an address of a database: what logs it leaves the password out, see the ledger's tests
        assert "hush" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_a_variable_elsewhere_is_taken_as_it_stands_and_said(tmp_path: Path) -> None:
    path = written(tmp_path, '[node]\nae_title = "${AE}"')
    [line] = [line for line in said(path) if "variable" in line]
    assert line.startswith("node.toml:2: warning: 'ae_title' is no secret: '${AE}' is taken as it stands")
    assert config.load(path).node.ae_title == "${AE}"


def test_the_settings_given_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", SECRET)
    raw: dict[str, Any] = {"peer": [{"name": "w", "dicomweb_token": "${A_TOKEN}"}, "no table"], "node": 3}
    got, wrong = filled(raw, TABLES | LISTS, tmp_path)
    assert (got["peer"][0]["dicomweb_token"], wrong) == (SECRET, [])
    assert raw["peer"][0]["dicomweb_token"] == "${A_TOKEN}"


def test_a_backup_holds_no_secret_that_the_settings_file_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models import catalogue
    from pacs_node.backup import Images, back_up
    from pacs_node.node import Node, utc_now

    monkeypatch.setenv("A_TOKEN", SECRET)
    (tmp_path / "secret").write_text(SECRET)
    other = PEER.replace('"w"', '"v"')
    path = written(tmp_path, f'{PEER}dicomweb_token = "${{A_TOKEN}}"\n{other}dicomweb_token_file = "secret"\n')
    node = Node(config.load(path, catalogue()))
    node.ledger.migrate()
    node.stop()
    back_up(node.config, path, tmp_path / "copy", Images.copy, utc_now())
    for file in (each for each in (tmp_path / "copy").rglob("*") if each.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file


def test_no_process_that_runs_a_network_or_draws_inherits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pacs_node import infer

    inherited: dict[str, str] = {}

    def start(*command: Any, env: dict[str, str], **settings: Any) -> Any:
        inherited.update(env)
        raise OSError("seen enough")

    for name in ("A_TOKEN", "AWS_SECRET_ACCESS_KEY", "NO_SECRET"):
        monkeypatch.setenv(name, SECRET)
    config.load(written(tmp_path, f'{PEER}dicomweb_token = "${{A_TOKEN}}"\n'))
    monkeypatch.setattr(infer.subprocess, "Popen", start)
    with pytest.raises(OSError, match="seen enough"):
        infer.Child("cpu", {}, confined=False, programs=False)
    assert [name for name, value in inherited.items() if value == SECRET] == ["NO_SECRET"]
