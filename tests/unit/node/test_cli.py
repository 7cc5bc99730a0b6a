"""The command line says what is wrong in a sentence that names the setting, and exits 1 when nothing was done."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from typer.testing import CliRunner

from config import load
from pacs_node.cli import app
from pacs_node.errors import CannotStart
from pacs_node.ledger import Ledger
from pacs_node.ledger.engine import MIGRATIONS
from pacs_node.start_up import must_not_be_open
from tests.factories import us_image
from tests.harness import ROOT, free_port


def pacs_node(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and everything printed. A process that hangs fails the test."""
    done = subprocess.run(
        [sys.executable, "-m", "pacs_node.cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert "[Errno" not in said, said
    return done.returncode, said


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        yield door.getsockname()[1]


def settings(folder: Path, *, database: str = "", peer: str = "", **node: object) -> Path:
    told = {"data_dir": "data", "dicom_host": "127.0.0.1", "dicom_port": free_port(), "web_port": free_port(), **node}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in told.items())
    path = folder / "node.toml"
    peers = '[[peer]]\nname = "results"\nfolder = "results"\n' + peer
    route = '[[route]]\nname = "breast"\nmatch = { Modality = "US" }\npipeline = "breast-us"\nsend_to = ["results"]\n'
    path.write_text(f"[node]\n{lines}\n[web]\nopen_to_all = true\n{database}\n{peers}{route}")
    return path


@pytest.mark.parametrize("key", ["dicom_port", "web_port"])
def test_a_port_that_is_taken_is_named_with_its_setting(tmp_path: Path, taken: int, key: str) -> None:
    code, said = pacs_node("serve", "--config", settings(tmp_path, **{key: taken}))
    assert code == 1
    assert f"port {taken} of 127.0.0.1 is taken by another program: stop that one, or change {key} in [node]" in said


@pytest.mark.parametrize("key", ["dicom_host", "web_host"])
@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_named_with_its_setting(tmp_path: Path, key: str, host: str) -> None:
    code, said = pacs_node("serve", "--config", settings(tmp_path, **{key: host}))
    assert code == 1
    assert f"{key} '{host}' in [node] is no address of this machine" in said


def reachable(folder: Path, web: str = "behind_proxy = true") -> Path:
    """Settings of a node whose pages others reach."""
    path = settings(folder, web_host="0.0.0.0")
    path.write_text(path.read_text().replace("open_to_all = true", web))
    return path


SIGN_ON = '[oidc]\nissuer = "https://idp.example"\nclient_id = "node"\nviewers = ["v"]'


def here(*arguments: str | Path) -> tuple[int, str]:
    """As `pacs_node`, in this process."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    return done.exit_code, done.output


def test_pages_that_others_reach_need_users_and_check_and_start_say_so(tmp_path: Path) -> None:
    path = reachable(tmp_path)
    code, said = here("check", "--config", path)
    assert (code, "warning: there are no users" in said) == (0, True), "before the first start nobody can be there"
    assert not (tmp_path / "data").exists(), "check makes nothing"
    code, said = pacs_node("serve", "--config", path)
    assert (code, "there are no users, and web_host in [node]" in said, "user add" in said) == (1, True, True)
    code, said = here("check", "--config", path)
    assert (code, "there are no users, and web_host" in said, "warning: there" in said) == (1, True, False)
    with socket.socket() as door:
        door.settimeout(1)
        assert door.connect_ex(("127.0.0.1", load(path).node.web_port)) != 0, "nobody got in meanwhile"
    for web in ("open_to_all = true", f"behind_proxy = true\n{SIGN_ON}"):
        reachable(tmp_path, web)
        assert "there are no users" not in here("check", "--config", path)[1]
    path = reachable(tmp_path)
    (tmp_path / "password").write_text("a long enough secret")
    added = here("user", "add", "ana", "--role", "admin", "--password-file", tmp_path / "password", "--config", path)
    assert added[0] == 0
    code, said = here("check", "--config", path)
    assert (code, "users" in said) == (0, False)


@pytest.mark.parametrize(
    ("host", "open_to_all", "has_users", "starts"),
    [
        ("127.0.0.1", False, False, True),
        ("0.0.0.0", False, False, False),
        ("0.0.0.0", True, False, True),
        ("0.0.0.0", False, True, True),
        ("node.example", False, False, False),
    ],
)
def test_a_node_does_not_start_open_to_the_network(
    tmp_path: Path, host: str, open_to_all: bool, has_users: bool, starts: bool
) -> None:
    path = settings(tmp_path, web_host=host)
    path.write_text(
        path.read_text().replace("open_to_all = true", f"open_to_all = {str(open_to_all).lower()}\nbehind_proxy = true")
    )
    with nullcontext() if starts else pytest.raises(CannotStart, match="there are no users"):
        must_not_be_open(load(path), has_users=has_users)


@pytest.mark.parametrize("command", ["serve", "worker", "rerun"])
def test_a_data_dir_that_cannot_be_written(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    arguments = ["1.2.3"] if command == "rerun" else []
    code, said = pacs_node(command, *arguments, "--config", settings(tmp_path, data_dir="file/data"))
    assert code == 1
    assert "data_dir" in said
    assert "is no folder" in said
    assert "data" in said


@pytest.mark.parametrize("command", ["serve", "worker", "rerun", "check"])
@pytest.mark.parametrize("kind", ["missing", "folder", "binary", "no TOML", "unknown key"])
def test_settings_that_cannot_be_read(tmp_path: Path, command: str, kind: str) -> None:
    path = tmp_path / "node.toml"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(
            {"binary": b"\xff\xfe\0", "no TOML": b"[node", "unknown key": b"[node]\ndicom_prot = 1\n"}[kind]
        )
    code, said = pacs_node(command, *(["1.2.3"] if command == "rerun" else []), "--config", path)
    assert code == 1
    assert "node.toml" in said
    words = {
        "missing": "cannot be read",
        "folder": "cannot be read",
        "binary": "is not UTF-8",
        "no TOML": "is not TOML",
    }
    assert words.get(kind, "did you mean 'dicom_port'?") in said


@pytest.mark.parametrize("command", ["serve", "rerun"])
@pytest.mark.parametrize("kind", ["damaged", "down", "no such"])
def test_a_database_that_cannot_be_used(tmp_path: Path, command: str, kind: str) -> None:
    if kind == "damaged":
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "node.sqlite").write_bytes(b"this is no database " * 500)
        database = ""
    else:
        port = free_port()
        url = {"down": f"postgresql+psycopg://a:s3cret@127.0.0.1:{port}/x", "no such": "oracle://x"}[kind]
        database = f'[database]\nurl = "{url}"'
    path = settings(tmp_path, database=database)
    code, said = pacs_node(command, *(["1.2.3"] if command == "rerun" else []), "--config", path)
    assert code == 1
    assert "database" in said
    assert "s3cret" not in said


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    peer = '[[peer]]\nname = "web"\ndicomweb_url = "https://127.0.0.1/x"\ndicomweb_ca = "none.pem"\n'
    code, said = pacs_node("serve", "--config", settings(tmp_path, peer=peer))
    assert code == 1
    assert "none.pem" in said


def test_nothing_done_is_no_success(tmp_path: Path) -> None:
    path = settings(tmp_path)
    code, said = pacs_node("rerun", "--route", "nosuch", "--config", path)
    assert (code, "the settings have no route 'nosuch'; there are breast" in said) == (1, True), said
    code, said = pacs_node("rerun", "--route", "breast", "--config", path)
    assert (code, "there is no series to run again (route 'breast')" in said) == (1, True), said
    code, said = pacs_node("rerun", "--since", "2026-03-01", "--config", path)
    assert (code, "there is no series to run again (since 2026-03-01)" in said) == (1, True), said
    code, said = pacs_node("rerun", "--since", "yesterday", "--config", path)
    assert (code, "--since is a day or a time such as 2026-03-01" in said) == (1, True), said
    code, said = pacs_node("rerun", "--config", path)
    assert (code, "name series, or ask for many" in said) == (1, True), said
    (tmp_path / "README.md").write_text("hello")
    where = f"PACS@127.0.0.1:{free_port()}"
    code, said = pacs_node("send", tmp_path / "README.md", "--to", where)
    assert (code, "nothing sent: there is no DICOM file in" in said) == (1, True), said
    (tmp_path / "empty").mkdir()
    code, said = pacs_node("send", tmp_path / "empty", "--to", where)
    assert (code, "nothing sent: there is no DICOM file in" in said) == (1, True), said


@pytest.mark.parametrize("address", ["PACS", "PACS@host", "@host:104", "PACS@host:x", "PACS@host:0", "PACS@host:99999"])
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    us_image(tmp_path)
    for arguments in (["echo", address], ["send", str(tmp_path), "--to", address]):
        code, said = pacs_node(*arguments)
        assert code == 1
        assert f"'{address}' is not TITLE@host:port" in said


def test_users_and_tokens(tmp_path: Path) -> None:
    config = settings(tmp_path)
    (tmp_path / "password").write_text("a long enough secret\n")
    secret = ("--password-file", tmp_path / "password")
    assert pacs_node("user", "add", "ana", "--role", "admin", *secret, "--config", config) == (
        0,
        "ana, admin: may log in\n",
    )
    assert pacs_node("user", "list", "--config", config) == (0, "ana  admin\n")
    code, said = pacs_node("user", "change", "ana", "--role", "king", "--config", config)
    assert (code, "no role 'king'" in said) == (1, True)
    code, said = pacs_node("token", "add", "prometheus", "--days", "30", "--config", config)
    assert (code, said.startswith("pn_")) == (0, True)
    code, listed = pacs_node("token", "list", "--config", config)
    assert listed.startswith("prometheus  viewer  until ")
    assert said.strip() not in listed
    assert pacs_node("token", "remove", "prometheus", "--config", config) == (0, "prometheus: removed\n")
    assert pacs_node("user", "remove", "ana", "--config", config) == (0, "ana: removed\n")
    code, said = pacs_node("user", "remove", "ana", "--config", config)
    assert (code, "there is no user 'ana'" in said) == (1, True)


def test_a_command_that_migrates_an_earlier_ledger_names_files_by_their_place(tmp_path: Path) -> None:
    """Whichever command is the first after an upgrade: what it leaves is what a node finds on another machine."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    ledger = Ledger(f"sqlite:///{data_dir}/node.sqlite", data_dir)
    alembic = AlembicConfig()
    alembic.set_main_option("script_location", str(MIGRATIONS))
    alembic.attributes["engine"] = ledger.engine
    command.upgrade(alembic, "0011")
    columns = ("sop_instance_uid", "sop_class_uid", "series_uid", "study_uid", "transfer_syntax_uid", "path", "size")
    row = dict.fromkeys((*columns, "received_at", "association", "calling_ae"), "1") | {"path": f"{data_dir}/spool/a"}
    with ledger.engine.begin() as db:
        names = ", ".join(row)
        db.execute(sa.text(f"INSERT INTO instance ({names}) VALUES (:{', :'.join(row)})"), row)
    ledger.close()
    assert pacs_node("user", "list", "--config", settings(tmp_path)) == (0, "")
    with sqlite3.connect(data_dir / "node.sqlite") as db:
        assert db.execute("SELECT path FROM instance").fetchall() == [("spool/a",)]


def test_the_history_of_an_older_node_loses_its_secrets(tmp_path: Path) -> None:
    """Also from the pages of the file that are free, which a backup copies."""
    ledger = Ledger(f"sqlite:///{tmp_path}/node.sqlite", tmp_path)
    alembic = AlembicConfig()
    alembic.set_main_option("script_location", str(MIGRATIONS))
    alembic.attributes["engine"] = ledger.engine
    command.upgrade(alembic, "0026")
    texts = [
        f'# {"x" * length}\n[[peer]]\nname = "n{number}"\ndicomweb_url = "https://a/"\ndicomweb_token = "hush"\n'
        for number, length in enumerate((1, 900, 5000, 20000))
    ]
    columns = ("place", "at", "who", "what", "difference", "digest", "text")
    with ledger.engine.begin() as db:
        for text in [*texts, "[[broken\ntoken = 'hush'", "[node]\n"]:
            row = dict.fromkeys(columns, "x") | {"at": "2026-03-01 12:00:00.000000", "text": text}
            db.execute(sa.text(f"INSERT INTO settings_version ({', '.join(row)}) VALUES (:{', :'.join(row)})"), row)
    ledger.migrate()
    with ledger.engine.begin() as db:
        kept = list(db.execute(sa.text("SELECT text FROM settings_version ORDER BY id")).scalars())
    assert [len(each) > len(text) for each, text in zip(kept, texts, strict=False)] == [True] * 4
    assert kept[-1] == "[node]\n"
    ledger.close()
    with sqlite3.connect(tmp_path / "node.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"hush" not in (tmp_path / "node.sqlite").read_bytes()
