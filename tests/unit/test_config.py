"""Settings: what loads, what is refused, and in which words."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import config
from config.check import KEYWORDS, LISTS, TABLES, lines_of
from config.schema import NUMBER_VRS, _vr, bad_condition
from models import catalogue, comparison
from tests.certificates import Authority

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ROOT / "config" / "node.toml"

GOOD = """
[node]
ae_title = "AI"
data_dir = "store"

[[peer]]
name = "pacs"
ae_title = "ORTHANC"
host = "10.0.0.5"
port = 4242
may_send = true
calls_from = ["10.0.0.5"]

[[peer]]
name = "files"
folder = "out"

[[route]]
name = "chest"
match = { Modality = "CT", "SequenceOfUltrasoundRegions.PhysicalUnitsXDirection" = 3 }
pipeline = "lung-nodule"
send_to = ["pacs", "files"]
priority = "stat"
options = { threshold = 0.5 }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


def said(folder: Path, text: str, severity: str = "error") -> list[str]:
    found = config.problems(written(folder, text), catalogue())
    return [str(problem) for problem in found if problem.severity == severity]


def test_a_good_file_loads_with_paths_from_its_own_folder(tmp_path: Path) -> None:
    settings = config.load(written(tmp_path, GOOD), catalogue())
    assert settings.node.ae_title == "AI"
    assert settings.node.data_dir == tmp_path / "store"
    assert settings.database.url == f"sqlite:///{tmp_path}/store/node.sqlite"
    assert settings.peer("files").folder == tmp_path / "out"
    assert settings.peer("pacs").port == 4242
    assert settings.peers[0].may_send
    assert not settings.peers[1].may_send
    (route,) = settings.routes
    assert (route.send_to, route.priority_number, route.options) == (("pacs", "files"), 1, {"threshold": 0.5})
    assert config.problems(tmp_path / "node.toml", catalogue()) == []


def test_relative_and_absolute_databases(tmp_path: Path) -> None:
    def url(text: str) -> str:
        return config.load(written(tmp_path, f'[database]\nurl = "{text}"')).database.url

    assert url("sqlite:///mine.db") == f"sqlite:///{tmp_path}/mine.db"
    assert url("sqlite:////var/lib/mine.db") == "sqlite:////var/lib/mine.db"
    assert url("postgresql+psycopg://u:p@db/node") == "postgresql+psycopg://u:p@db/node"


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = config.load(written(tmp_path, GOOD))
    with pytest.raises(ValidationError, match="frozen"):
        settings.node.ae_title = "OTHER"  # type: ignore[misc]


WEB = '[[peer]]\nname = "w"\ndicomweb_url = "https://archive.example/dicom-web"\n'
PEER = '[[peer]]\nname = "a"\nae_title = "A"\nhost = "h"\nport = 104\nmay_send = true\n'
ROUTE = '[[route]]\nname = "r"\npipeline = "lung-nodule"\nsend_to = ["a"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node]\nprot = 1", "node.toml:2: no setting 'prot' in [node]; did you mean 'dicom_port' or 'web_port'?"),
        ('[node]\nae_titel = "A"', "node.toml:2: no setting 'ae_titel' in [node]; did you mean 'ae_title'?"),
        ("[node]\nquiet_s = 3.0", "node.toml:2: no setting 'quiet_s' in [node]; it belongs in [assemble]"),
        ("[infer]\nzzz = 1", "node.toml:2: no setting 'zzz' in [infer]; there are device"),
        ("[nod]\n", "node.toml:1: no table or setting 'nod'; did you mean 'node'?"),
        ("[[peers]]\n", "node.toml:1: no table or setting 'peers'; did you mean 'peer'?"),
        ('[node]\nweb_port = "x"', "node.toml:2: 'web_port' in [node] must be a whole number, not 'x'"),
        ("[node]\nweb_port = true", "node.toml:2: 'web_port' in [node] must be a whole number, not true"),
        ("[node]\nweb_port = 70000", "node.toml:2: 'web_port' in [node] must be 65535 or less, not 70000"),
        (
            "[node]\nweb_port = 11112",
            "node.toml:2: 'web_port' in [node] is the same as 'dicom_port'; give each its own",
        ),
        ("[assemble]\nquiet_s = 0.0", "node.toml:2: 'quiet_s' in [assemble] must be more than 0, not 0.0"),
        ("[retention]\nstart_free_gb = 5.0", "[retention]: start_free_gb needs a higher stop_free_gb"),
        ("[retention]\nstart_used_percent = 5.0\nstop_used_percent = 6.0", "needs a lower stop_used_percent"),
        ("[retention]\nstop_used_percent = 6.0", "a mark to stop at needs one to start at"),
        (
            '[retention]\nwithout_proof = ["all"]',
            "must be 'no results', 'not proven', 'failed' or 'committed', not 'all'",
        ),
        ("[assemble]\nask_peer = 1", "node.toml:2: 'ask_peer' in [assemble] must be true or false, not 1"),
        ("node = 3", "node.toml:1: [node] must be a table, not 3"),
        ("[node\n", "node.toml:1: is not TOML"),
        ("[node]\na = 1\na = 2", "node.toml:3: is not TOML"),
        ('[infer]\ndevice = "gpu"', "node.toml:2: 'device' in [infer] must match ^(auto|cpu|cuda(:\\d+)?)$, not 'gpu'"),
        ('[database]\nurl = "mysql://x"', "node.toml:2: 'url' in [database]: url must start with sqlite:/// or"),
        (
            '[node]\nae_title = "SEVENTEEN_LETTERS"',
            "node.toml:2: 'ae_title' in [node]: AE title 'SEVENTEEN_LETTERS' has 17 characters; 16 are allowed",
        ),
        ('[node]\nae_title = "A\\\\B"', "only printable ASCII without backslash"),
        ('[node]\nae_title = "A\\u0007"', "only printable ASCII without backslash"),
        ('[node]\nae_title = "МРТ"', "only printable ASCII without backslash"),
        ('[node]\nae_title = "  "', "is empty or has spaces at its ends"),
        ("[jobs]\nsend_backoff_max_s = 1.0", "node.toml:1: [jobs]: send_backoff_max_s must not be less than"),
        ("[jobs]\nlease_s = 6.0", "node.toml:1: [jobs]: lease_s must be at least twice sweep_s"),
        ('[[peer]]\nae_title = "A"', "node.toml:1: [[peer]] number 1 needs 'name'"),
        (
            '[[peer]]\nname = "a"',
            "node.toml:1: [[peer]] 'a': needs an ae_title (a DICOM peer), a dicomweb_url or a folder",
        ),
        ('[[peer]]\nname = "a"\nae_title = "A"\nhost = "h"', "[[peer]] 'a': needs both host and port, or neither"),
        ('[[peer]]\nname = "a"\nae_title = "A"', "[[peer]] 'a': can neither be called"),
        ('[[peer]]\nname = "a"\nfolder = "f"\nport = 3', "[[peer]] 'a': a peer with a folder takes no ae_title"),
        (PEER + '[[peer]]\nname = "a"\nfolder = "f"', "node.toml:8: name 'a' of [[peer]] is used twice"),
        (
            PEER + '[[peer]]\nname = "b"\nae_title = "A"\nmay_send = true',
            "node.toml:9: ae_title 'A' of [[peer]] is used twice",
        ),
        (PEER + ROUTE + "match = {}\n" + ROUTE + "match = {}", "name 'r' of [[route]] is used twice"),
        (PEER + ROUTE, "node.toml:7: [[route]] 'r' needs 'match'"),
        (
            PEER + ROUTE.replace("lung-nodule", "lungnodule") + "match={}",
            "no pipeline 'lungnodule'; did you mean 'lung-n",
        ),
        (
            PEER + ROUTE.replace('["a"]', '["aa"]') + "match={}",
            "node.toml:10: [[route]] 'r': no peer 'aa'; did you mean 'a'?",
        ),
        (PEER + ROUTE.replace('["a"]', "[]") + "match={}", "'send_to' in [[route]] 'r' must not be empty"),
        (PEER + ROUTE.replace('["a"]', '["a", "a"]') + "match={}", "peer 'a' is named twice in send_to"),
        (
            PEER.replace('host = "h"\nport = 104\n', "") + ROUTE + "match={}",
            "node.toml:8: [[route]] 'r': peer 'a' has no host and port, so nothing can be sent to it",
        ),
        (WEB.replace("https://", "ftp://"), "'dicomweb_url' in [[peer]] 'w': needs http:// or https://, a host and"),
        (WEB.replace("https://", "https://user:hush@"), "and neither user, query nor fragment"),
        (WEB + 'dicomweb_token = "t"\ndicomweb_user = "u"\ndicomweb_password = "p"', "not both"),
        (WEB + 'dicomweb_user = "u"', "needs both dicomweb_user and dicomweb_password, or neither"),
        (WEB + 'dicomweb_verify = false\ndicomweb_ca = "ca.pem"', "dicomweb_ca is of no use with dicomweb_verify"),
        (WEB + "may_send = true", "[[peer]] 'w': host, port and may_send need an ae_title"),
        (WEB + 'confirm = "commitment"', "confirm = 'commitment' needs a peer that takes results by C-STORE"),
        (WEB + 'folder = "f"', "a peer with a folder takes no ae_title, host, port, may_send, calls_from"),
        (WEB + 'calls_from = ["a"]', "calls_from needs an ae_title"),
        (WEB + 'readable_by = "group"', "readable_by needs a folder"),
        ('[[peer]]\nname = "a"\nae_title = "A"\nmay_send = true\ncalls_from = ["10.0.0"]', "is no IP address"),
        (PEER + 'dicomweb_token = "t"', "[[peer]] 'a': dicomweb_token needs a dicomweb_url"),
        (
            PEER + 'confirm = "yes"',
            "'confirm' in [[peer]] 'a' must be 'auto', 'commitment', 'query' or 'none', not 'yes'",
        ),
        (
            PEER + ROUTE + 'priors = "b"\nmatch={}',
            "node.toml:11: [[route]] 'r': no peer 'b'; there are a",
        ),
        (
            PEER.replace('host = "h"\nport = 104\n', "") + ROUTE + 'priors = "a"\nmatch={}',
            "node.toml:9: [[route]] 'r': peer 'a' has no host and port, so it cannot be asked for priors",
        ),
        (
            PEER + ROUTE.replace("lung-nodule", "breast-us") + 'priors = "a"\nmatch={}',
            "node.toml:11: [[route]] 'r': breast-us does not compare with earlier studies; remove 'priors'",
        ),
        (
            PEER + ROUTE + 'priority = "high"\nmatch={}',
            "'priority' in [[route]] 'r' must be 'routine' or 'stat', not 'high'",
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_line_and_key(tmp_path: Path, text: str, words: str) -> None:
    assert any(words in line for line in said(tmp_path, text)), said(tmp_path, text)
    with pytest.raises(config.ConfigError, match=re.escape(words)):
        config.load(tmp_path / "node.toml", catalogue())


def toml(value: object) -> str:
    """A text as TOML writes it, for tests with odd ones."""
    return json.dumps(value)


HOSTS = [  # what is given for a host, and what is said of it
    ("10.0.0.5:4242", "'10.0.0.5:4242' has a port; write '10.0.0.5', and the port as a setting of its own"),
    ("pacs:104", "'pacs:104' has a port; write 'pacs'"),
    ("[::1]:104", "'[::1]:104' has a port; write '::1'"),
    ("[::1]", "has brackets, which only URLs need; write '::1'"),
    ("http://10.0.0.5", "is a URL; give the host name or address alone: '10.0.0.5'"),
    ("dicom://pacs:104/", "is a URL; give the host name or address alone: 'pacs'"),
    ("ORTHANC@10.0.0.5", "names a user or an AE title"),
    ("10.0.0.256", "'10.0.0.256' is no IP address"),
    ("10.0.0", "is no IP address"),
    ("10", "is no IP address"),
    ("", "is empty; give a host name or an address"),
    (" pacs", "has spaces at its ends"),
    ("pacs ", "has spaces at its ends"),
    ("my pacs", "is neither a host name"),
    ("pacs/", "is neither a host name"),
    ("pacs,ris", "is neither a host name"),
    ("-pacs", "is neither a host name"),
    ("pacs..example", "is neither a host name"),
    ("*", "is neither a host name"),
    ("a" * 64, "is neither a host name"),
    (".".join(["a" * 60] * 5), "is neither a host name"),
    ("pacs\0", "is neither a host name"),
    ("kräk", "is neither a host name"),
]
HOST_SETTINGS = {
    "dicom_host": "[node]\ndicom_host = {}",
    "web_host": "[web]\nopen_to_all = true\n[node]\nweb_host = {}",
    "web_names": "[node]\nweb_names = [{}]",
    "host": PEER.replace('"h"', "{}"),
    "syslog_host": "[audit]\nsyslog_host = {}",
}
MAY_BE_EMPTY = ("syslog_host", "syslog_ca", "issuer_ca")  # that is: none


@pytest.mark.parametrize("setting", HOST_SETTINGS)
def test_what_is_no_host_is_said_wherever_a_host_is_meant(tmp_path: Path, setting: str) -> None:
    for host, words in HOSTS:
        if not host and setting in MAY_BE_EMPTY:
            continue
        (line,) = said(tmp_path, HOST_SETTINGS[setting].format(toml(host)))
        assert setting in line, line
        assert words in line, (host, line)
    for host in (
        "10.0.0.5",
        "::1",
        "fe80::1",
        "0.0.0.0",
        "pacs",
        "pacs.example.org",
        "pacs_1",
        "PACS-1.",
        "xn--krk-qla",
    ):
        assert said(tmp_path, HOST_SETTINGS[setting].format(toml(host))) == [], host


def test_every_setting_that_holds_a_host_or_a_path_is_tried() -> None:
    """A new setting of this kind without its check would be seen here."""
    hosts = {key for model in (TABLES | LISTS).values() for key in model.model_fields if re.search("host|names$", key)}
    assert hosts == HOST_SETTINGS.keys()
    paths = {
        key for model in (TABLES | LISTS).values() for key in model.model_fields if re.search("dir|folder|_ca$", key)
    }
    assert paths == PATH_SETTINGS.keys()
    assert {f"{key}" for _, key in NUMBERS} == {
        key
        for model in (TABLES | LISTS).values()
        for key, field in model.model_fields.items()
        if {int, float} & {field.annotation, *getattr(field.annotation, "__args__", ())}
        or "Port" in str(field.annotation)
    } - {"port"}


NOTIFY = '[[notify]]\nname = "n"\nurls = ["json://example.org/"]\n'

NUMBERS = [
    (name, key)
    for name, model in TABLES.items()
    for key, field in model.model_fields.items()
    if type(field.default) in (int, float)
] + [("peer", "ask_again_h")]
LISTS_WITH = {"peer": PEER, "notify": NOTIFY}
NUMBERS += [
    ("notify", key) for key in ("again_h", "down_min", "full_in_days", "certificate_days", "paused_h", "min_size_mm")
]


@pytest.mark.parametrize(("table", "key"), NUMBERS)
def test_numbers_are_finite_and_in_range(tmp_path: Path, table: str, key: str) -> None:
    for odd in ("nan", "inf", "-inf", "-1", "1e300", '"10"', "true", "[1]", '""', "2020-01-01"):
        text = f"{LISTS_WITH.get(table, f'[{table}]')}\n{key} = {odd}"
        assert any(key in line for line in said(tmp_path, text)), (odd, said(tmp_path, text))


def test_ports_are_ports(tmp_path: Path) -> None:
    for odd in ("0", "-1", "65536", "104.0", '"104"', "true", "nan"):
        assert said(tmp_path, PEER.replace("104", odd)), odd
        assert said(tmp_path, f"[node]\ndicom_port = {odd}"), odd
        assert said(tmp_path, f"[node]\nweb_port = {odd}"), odd


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://archive:99999/dicom-web", "has a port that is no number from 1 to 65535"),
        ("https://archive:abc/dicom-web", "has a port that is no number from 1 to 65535"),
        ("https://archive:0/dicom-web", "has port 0"),
        ("https://:443/dicom-web", "names no host"),
        ("https://10.0.0.256/dicom-web", "is no IP address"),
        ("https://my_archive./x y", "needs http:// or https://"),
        ("https://[::1/dicom-web", "brackets that do not fit"),
    ],
)
def test_what_is_wrong_with_a_web_address(tmp_path: Path, url: str, words: str) -> None:
    (line,) = said(tmp_path, WEB.replace("https://a/dicom-web", url).replace(re.search(r'"(http[^"]+)"', WEB)[1], url))
    assert "'dicomweb_url' in [[peer]] 'w'" in line
    assert words in line


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///", "names no file"),
        ("postgresql+psycopg://", "names no host"),
        ("postgresql+psycopg:///node", "names no host"),
        ("postgresql+psycopg://u:hush-hush@db", "names no database"),
        ("postgresql+psycopg://u:hush-hush@db:port/node", "has a port that is no number"),
        ("mysql://db/node", "must start with sqlite:/// or postgresql+psycopg://"),
    ],
)
def test_what_is_wrong_with_a_database(tmp_path: Path, url: str, words: str) -> None:
    (line,) = said(tmp_path, f'[database]\nurl = "{url}"')
    assert words in line
    assert "hush-hush" not in line


# What this machine does not grant ---------------------------------------------------------------------------------

PATH_SETTINGS = {
    "data_dir": "[node]\ndata_dir = {}",
    "folder": '[[peer]]\nname = "f"\nfolder = {}',
    "dicomweb_ca": WEB + "dicomweb_ca = {}",
    "issuer_ca": '[oidc]\nissuer = "https://i.example"\nclient_id = "n"\nviewers = ["v"]\nissuer_ca = {}',
    "syslog_ca": '[audit]\nsyslog_host = "h"\nsyslog_ca = {}',
}


@pytest.mark.parametrize("setting", PATH_SETTINGS)
def test_a_path_that_is_none_is_said(tmp_path: Path, setting: str) -> None:
    for odd, words in (("", "is empty; give a path"), ("  ", "is empty"), ("a\0b", "a zero byte"), ("a" * 300, "255")):
        if not odd and setting in MAY_BE_EMPTY:
            continue
        (line,) = said(tmp_path, PATH_SETTINGS[setting].format(toml(odd)))
        assert setting in line
        assert words in line, line
    for odd in ("3", "true", "[]"):
        assert said(tmp_path, PATH_SETTINGS[setting].format(odd)), odd


def unwritable(folder: Path) -> list[Path]:
    """Folders that cannot be made or written into, for whoever runs the tests."""
    (folder / "file").write_text("")
    (folder / "dangling").symlink_to(folder / "file" / "nothing")
    places = [folder / "file", folder / "file" / "below" / "it", Path("/proc/pacs-node/data"), folder / "dangling"]
    if os.geteuid() != 0:  # root may write everywhere
        (folder / "closed").mkdir(mode=0o555)
        places += [folder / "closed", folder / "closed" / "below"]
    return places


@pytest.mark.parametrize("setting", ["data_dir", "folder", "url"])
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, setting: str) -> None:
    text = (PATH_SETTINGS | {"url": "[database]\nurl = {}"})[setting]
    for place in unwritable(tmp_path):
        value = f"sqlite:///{place}/node.sqlite" if setting == "url" else str(place)
        (line,) = said(tmp_path, text.format(toml(value)))
        assert setting in line
        assert re.search("is no folder|nothing can be written into", line), line
        with pytest.raises(config.ConfigError, match=r"no folder|nothing can be"):
            config.load(tmp_path / "node.toml")
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "there", tmp_path / "there" / "a" / "b"):
        value = f"sqlite:///{place}/node.sqlite" if setting == "url" else str(place)
        before = sorted(tmp_path.rglob("*"))
        assert said(tmp_path, text.format(toml(value))) == []
        assert sorted(tmp_path.rglob("*")) == before, "checking leaves nothing behind"


def test_files_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    (line,) = said(tmp_path, PATH_SETTINGS["dicomweb_ca"].format('"ca.pem"'))
    assert "ca.pem cannot be read: No such file or directory" in line
    text = GOOD.replace("{ threshold = 0.5 }", f"{{ checkpoint = {toml(str(tmp_path / 'w.safetensors'))} }}")
    (line,) = said(tmp_path, text)
    assert "w.safetensors cannot be read: No such file or directory" in line
    (tmp_path / "w.safetensors").write_bytes(b"")
    assert said(tmp_path, text) == []


SECRETS = {  # settings -> do they hold a secret?
    "token": ('[[peer]]\nname = "a"\ndicomweb_url = "https://a/b"\ndicomweb_token = "t"', True),
    "password": (
        '[[peer]]\nname = "a"\ndicomweb_url = "https://a/b"\ndicomweb_user = "u"\ndicomweb_password = "p"',
        True,
    ),
    "database": ('[database]\nurl = "postgresql+psycopg://node:secret@db/node"', True),
    "database, in its query": ('[database]\nurl = "postgresql+psycopg://db/node?user=node&password=secret"', True),
    "database without one": ('[database]\nurl = "postgresql+psycopg://node@db/node"', False),
    "none": ("", False),
}


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o644, 0o604, 0o666])
@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_a_settings_file_with_secrets_that_others_can_read_is_warned_of(
    tmp_path: Path, text: str, secret: bool, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, text).chmod(mode)
    file = tmp_path / "node.toml"
    for group, foreign in ((file.stat().st_gid, False), (file.stat().st_gid + 1, True)):
        monkeypatch.setattr(os, "getegid", lambda group=group: group)  # its own group: root:pacs-node 0640 is good
        lines = [str(each) for each in config.problems(file, catalogue()) if "holds a secret" in each.text]
        assert bool(lines) is (secret and bool(mode & 0o004 or (foreign and mode & 0o040)))
        assert all(f"chmod 600 {file}" in line for line in lines)


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o700, False), (0o750, True), (0o701, True), (0o755, True), (0o777, True)]
)
def test_folders_that_are_open_to_others_are_warned_of(tmp_path: Path, mode: int, warned: bool) -> None:
    for name in ("store", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    (tmp_path / "asked").mkdir(mode=0o755)
    asked = '[[peer]]\nname = "asked"\nfolder = "asked"\nreadable_by = "owner"\n'
    lines = [line for line in said(tmp_path, GOOD + asked, "warning") if "open to other" in line]
    assert len(lines) == 2 * warned
    if warned:
        assert f"chmod -R go= {tmp_path / 'store'}" in lines[0]
        assert "set readable_by" in lines[1]


def test_a_folder_that_cannot_be_looked_at_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, status = written(tmp_path, GOOD), Path.stat

    def forbidden(path: Path, **how: Any) -> os.stat_result:
        if path in (tmp_path / "store", tmp_path / "out"):
            raise PermissionError(13, "Permission denied")
        return status(path, **how)

    monkeypatch.setattr(Path, "stat", forbidden)
    assert not [each for each in config.problems(file, catalogue()) if "open to" in each.text]


def test_more_free_space_than_the_disk_has_is_an_error(tmp_path: Path) -> None:
    (line,) = said(tmp_path, "[receive]\nkeep_free_gb = 1e9")
    assert "more than the disk of data_dir has in all: every image would be refused" in line


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        *((host, True) for host in ("0.0.0.0", "::", "10.0.0.9", "node.example")),
        *((host, False) for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost")),
    ],
)
def test_web_pages_that_others_can_reach_need_tls(tmp_path: Path, host: str, warned: bool) -> None:
    def of(settings: str, severity: str = "error") -> list[str]:
        return [
            line for line in said(tmp_path, f'[node]\nweb_host = "{host}"\n{settings}', severity) if "web_host" in line
        ]

    (tmp_path / "node.crt").write_text("")
    lines = of("")
    assert bool(lines) is warned
    assert all("without TLS" in line and line.startswith("node.toml:2: ") for line in lines)
    assert not of("[web]\nbehind_proxy = true")
    assert not of('[web]\ncertificate = "node.crt"\nkey = "node.crt"')
    assert not of("[web]\nopen_to_all = true")
    assert bool(of("[web]\nopen_to_all = true", "warning")) is warned


@pytest.mark.parametrize(
    ("proxies", "words"),
    [
        ('["10.0.0.5", "10.0.1.0/24", "::1", "fd00::/8"]', None),
        ('["proxy.example"]', "'proxy.example' is no address or network"),
        ('["10.0.0.5/24"]', "'10.0.0.5/24' is no address or network"),
        ('["*"]', "'*' is no address or network"),
        ('["0.0.0.0/0"]', "is every address"),
        ('["::/0"]', "is every address"),
        ("[]", "must not be empty"),
    ],
)
def test_who_may_be_a_proxy(tmp_path: Path, proxies: str, words: str | None) -> None:
    lines = said(tmp_path, f"[web]\nbehind_proxy = true\nproxies = {proxies}")
    assert not lines if words is None else any(words in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('[node]\nweb_host = "0.0.0.0"\n[web]\nbehind_proxy = true', "lock each other out"),
        ('[node]\nweb_host = "0.0.0.0"\n[web]\nbehind_proxy = true\nproxies = ["127.0.0.0/8"]', "lock each other out"),
        ('[node]\nweb_host = "0.0.0.0"\n[web]\nbehind_proxy = true\nproxies = ["10.0.0.5"]', None),
        ("[web]\nbehind_proxy = true", None),
        ('[web]\nproxies = ["10.0.0.5"]', "heard only with behind_proxy"),
    ],
)
def test_a_proxy_that_is_not_believed_is_said(tmp_path: Path, settings: str, words: str | None) -> None:
    lines = [line for line in said(tmp_path, settings, "warning") if "prox" in line]
    assert not lines if words is None else [line for line in lines if words in line]


@pytest.mark.parametrize(
    ("condition", "write"),
    [
        ('SliceThickness = "<3"', "SliceThickness = { max = 3 }"),
        ('SliceThickness = "<= 2.5"', "SliceThickness = { max = 2.5 }"),
        ('SliceThickness = "≤3"', "SliceThickness = { max = 3 }"),
        ('SliceThickness = ">0.5"', "SliceThickness = { min = 0.5 }"),
        ('KVP = ">=80"', "KVP = { min = 80 }"),
        ('SliceThickness = "1-3"', "SliceThickness = { min = 1, max = 3 }"),
        ('SliceThickness = "1..3"', "SliceThickness = { min = 1, max = 3 }"),
        ('SliceThickness = "1 to 3"', "SliceThickness = { min = 1, max = 3 }"),
        ('SliceThickness = ["1.0", "<3"]', "SliceThickness = { max = 3 }"),
        ('SliceThickness = "3 mm"', "write a number, or SliceThickness = { min = ..., max = ... }"),
        ('SliceThickness = "1,5"', "write a number"),
        ('SliceThickness = ""', "write a number"),
        ('Rows = "512x512"', "write a number"),
        ('PatientAge = ">50"', "PatientAge = { min = 50 }"),
        ('"SequenceOfUltrasoundRegions.PhysicalUnitsXDirection" = "cm"', "write a number"),
    ],
)
def test_a_text_that_a_number_can_never_be_is_an_error(tmp_path: Path, condition: str, write: str) -> None:
    (line,) = said(tmp_path, f"{PEER}{ROUTE}match = {{ {condition} }}")
    assert line.startswith("node.toml:11: [[route]] 'r': ")
    assert write in line, line


@given(
    st.sampled_from(sorted(k for k in KEYWORDS if _vr(k) in NUMBER_VRS)),
    st.one_of(st.integers(-999, 999), st.floats(-999, 999, allow_nan=False)),
    st.booleans(),
)
def test_numbers_written_as_text_stay_good(keyword: str, number: float, spaced: bool) -> None:
    assert bad_condition(keyword, f" {number} " if spaced else str(number)) is None
    assert bad_condition(keyword, number) is None
    assert bad_condition(keyword, f"<{number}") is not None


def test_texts_with_signs_stay_good_where_texts_are_held(tmp_path: Path) -> None:
    match = 'SeriesDescription = "<3 mm", PatientAge = "045Y", ConvolutionKernel = "B31f", StudyDate = "20200101"'
    assert said(tmp_path, f"{PEER}{ROUTE}match = {{ {match} }}") == []


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    for key in ("dicomweb_token", "dicomweb_password"):
        shown = said(tmp_path, WEB + f"{key} = 774411")
        assert any(f"'{key}' in [[peer]] 'w' must be a text in quotes, not what it is" in line for line in shown)
        assert not any("774411" in line for line in shown)
    for urls in ("774411", "[774411]", '["774411"]', '["json://ok/", 774411]'):
        shown = said(tmp_path, f'[[notify]]\nname = "n"\nurls = {urls}\n')
        assert any("'urls' in [[notify]] 'n'" in line for line in shown), shown
        assert not any("774411" in line for line in shown)
    (tmp_path / "ca.pem").write_text("")
    text = WEB + 'dicomweb_user = "u"\ndicomweb_password = "hush-hush"\ndicomweb_ca = "ca.pem"'
    (peer,) = config.load(written(tmp_path, text)).peers
    assert "hush-hush" not in repr(peer)
    assert peer.dicomweb_password is not None
    assert peer.dicomweb_password.get_secret_value() == "hush-hush"
    assert (peer.reachable, peer.dicomweb_ca) == (True, tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NOTIFY + NOTIFY, "name 'n' of [[notify]] is used twice; each needs its own"),
        (NOTIFY.replace("json:", "json"), "is no address for Apprise, such as mailtos://"),
        ('[[notify]]\nname = "n"', "[[notify]] 'n' needs 'urls'"),
        ('[[notify]]\nname = "n"\nurls = []', "'urls' in [[notify]] 'n' must not be empty"),
        (NOTIFY + 'about = ["fire"]', "'about' in [[notify]] 'n' must be 'node', 'jobs', 'destination', 'disk'"),
        (NOTIFY + "again_h = 0", "'again_h' in [[notify]] 'n' must be more than 0, not 0"),
        (NOTIFY + "down_min = -1", "'down_min' in [[notify]] 'n' must be more than 0, not -1"),
        (NOTIFY + "full_in_days = -1", "'full_in_days' in [[notify]] 'n' must be 0.0 or more, not -1"),
        (NOTIFY + "certificate_days = 1.5", "'certificate_days' in [[notify]] 'n' must be a whole number, not 1.5"),
        (NOTIFY + "min_size_mm = 5", "[[notify]] 'n': 'min_size_mm' needs \"finding\" in 'about'"),
        (NOTIFY + 'categories = ["malignant"]', "[[notify]] 'n': 'categories' needs \"finding\" in 'about'"),
        (NOTIFY + 'kinds = ["Nodule"]', "[[notify]] 'n': 'kinds' needs \"finding\" in 'about'"),
        (NOTIFY + 'pipelines = ["lung-nodule"]', "[[notify]] 'n': 'pipelines' needs \"finding\" in 'about'"),
        (NOTIFY + "urlss = 1", "no setting 'urlss' in [[notify]]; did you mean 'urls' or 'urls_file'?"),
    ],
)
def test_what_is_wrong_with_who_is_told(tmp_path: Path, text: str, words: str) -> None:
    assert any(words in line for line in said(tmp_path, text)), said(tmp_path, text)


FINDINGS = NOTIFY + 'about = ["finding"]\n'
SHADOW = "shadow = true\n"


def told(text: str, routes: str = "") -> str:
    """Somebody is told of findings, and there is a route of lung-nodule, and what `routes` says."""
    return f"{PEER}{ROUTE}match = {{}}\n{routes}{FINDINGS}{text}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('pipelines = ["lung-nodul"]', "[[notify]] 'n': no pipeline 'lung-nodul'; did you mean 'lung-nodule'?"),
        ('kinds = ["Nodul"]', "[[notify]] 'n': what the routes run never finds 'Nodul'; did you mean 'Nodule'?"),
        ('categories = ["Lung-RADS 4A"]', "[[notify]] 'n': what the routes run with its options never gives"),
        ('kinds = ["Mass"]', "[[notify]] 'n': what the routes run never finds 'Mass'"),
        ('kinds = ["Mass"]\npipelines = ["lung-nodule"]', "[[notify]] 'n': lung-nodule never finds 'Mass'"),
    ],
)
def test_a_notice_of_what_is_never_found_is_warned_of(tmp_path: Path, text: str, words: str) -> None:
    [line] = never(tmp_path, told(text))
    assert words in line
    assert said(tmp_path, told(text)) == [], "images are taken all the same"


def never(folder: Path, text: str) -> list[str]:
    return [line for line in said(folder, text, "warning") if "never " in line or "no pipeline" in line]


def test_a_notice_of_what_one_of_the_routes_finds_is_good(tmp_path: Path) -> None:
    breast = ROUTE.replace("lung-nodule", "breast-us").replace('"r"', '"b"') + "match = {}\n"
    for text in ('kinds = ["nodule"]', "min_size_mm = 3", 'pipelines = ["lung-nodule"]\nkinds = ["Nodule"]'):
        assert said(tmp_path, told(text)) == never(tmp_path, told(text)) == []
    both = told('kinds = ["Mass"]', breast)
    assert said(tmp_path, both) == never(tmp_path, both) == []
    [line] = never(tmp_path, told('kinds = ["Mass"]', breast + SHADOW))
    assert "what the routes run never finds 'Mass'" in line, "nobody is told of what a shadow finds"


def test_a_notice_of_a_pipeline_that_no_route_runs_is_warned_of(tmp_path: Path) -> None:
    warned = said(tmp_path, told('pipelines = ["breast-us"]'), "warning")
    assert any("[[notify]] 'n': no route that sends results runs 'breast-us'" in line for line in warned)
    assert not any(
        "no route that sends" in line for line in said(tmp_path, told('pipelines = ["lung-nodule"]'), "warning")
    )


@pytest.mark.parametrize("table", ["web", "audit"])
@pytest.mark.parametrize("days", [200, 20, -1])
def test_a_certificate_that_ends_is_warned_of(tmp_path: Path, table: str, days: float) -> None:
    """Of the pages, and of what is shown to the syslog server."""
    issued, of = Authority(tmp_path).issue("node", days=(-2, days)), "syslog_" if table == "audit" else ""
    text = f'[{table}]\n{of}certificate = "{issued.certificate}"\n{of}key = "{issued.key}"\n'
    text += 'syslog_host = "localhost"\n' if of else ""
    warned = [line for line in said(tmp_path, text, "warning") if f"{of}certificate in [{table}]" in line]
    assert len(warned) == (days < 30)
    assert said(tmp_path, text) == [], "images are taken all the same"


NTH = "[[route.also]] number {} of [[route]] 'r'"


def also(text: str, pipeline: str = "lung-nodule") -> str:
    """A route that sends to `a`, and as this says further."""
    two = '[[peer]]\nname = "b"\nfolder = "b"\n[[peer]]\nname = "mute"\nae_title = "M"\nmay_send = true\n'
    route = ROUTE.replace("lung-nodule", pipeline) + "match = {}\n"
    return f"{PEER}{two}{route}[[route.also]]\n{text}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", f"node.toml:19: {NTH.format(1)} needs 'send_to'"),
        ("send_to = []", f"node.toml:20: 'send_to' in {NTH.format(1)} must not be empty"),
        ('send_to = ["x"]', f"node.toml:20: {NTH.format(1)}: no peer 'x'; there are a, b, mute"),
        ('send_to = ["mute"]', "peer 'mute' has no host and port, so nothing can be sent to it"),
        ('send_to = ["b", "b"]', "peer 'b' is named twice in send_to"),
        ('send_to = ["b", "a"]', "peer 'a' gets every result of the route already; remove it here"),
        ('send_to = ["b"]\nkind = 1', "no setting 'kind' in [[route.also]]; did you mean 'kinds'?"),
        ('send_to = ["b"]\nkinds = ["Nodul"]', f"{NTH.format(1)}: lung-nodule never finds 'Nodul'; did you mean"),
        ('send_to = ["b"]\ncategories = ["Lung-RADS 4A"]', "lung-nodule with its options never gives the category"),
        ('send_to = ["b"]\ncategories = 4', f"'categories' in {NTH.format(1)} must be a list"),
        ('send_to = ["b"]\nmin_size_mm = -1', f"'min_size_mm' in {NTH.format(1)} must be 0.0 or more, not -1"),
        ('send_to = ["b"]\n[[route.also]]\nkinds = 3\nsend_to = ["b"]', f"'kinds' in {NTH.format(2)} must be a list"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_further_destinations(tmp_path: Path, text: str, words: str) -> None:
    assert any(words in line for line in said(tmp_path, also(text))), said(tmp_path, also(text))


def test_further_destinations_load_and_count_as_used(tmp_path: Path) -> None:
    text = also('send_to = ["b"]\nkinds = ["nodule"]\nmin_size_mm = 8').replace("may_send = true", "")
    text = text.replace('[[peer]]\nname = "mute"\nae_title = "M"\n', "")
    assert said(tmp_path, text) == []
    [route] = config.load(tmp_path / "node.toml", catalogue()).routes
    assert route.destinations == ("a", "b")
    assert not [line for line in said(tmp_path, text, "warning") if "peer 'b'" in line]


@pytest.mark.parametrize("grade", ["lung-rads 4a", "Lung-RADS 5", "BI-RADS 3"])
def test_a_category_that_the_options_of_a_pipeline_give_is_good(tmp_path: Path, grade: str) -> None:
    text = also(f'send_to = ["b"]\ncategories = ["{grade}"]\nmin_size_mm = 6')
    text = text.replace("[[route.also]]", 'options = { purpose = "screening" }\n[[route.also]]')
    words = "lung-nodule with its options never gives the category"
    assert [words in line for line in said(tmp_path, text)] == ([] if grade == "lung-rads 4a" else [True])


def test_a_size_is_wanted_of_nothing_that_is_not_measured(tmp_path: Path) -> None:
    """A network for organs, of which one has diameters."""
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    label = '{{ name = "{0}", type = ["{0}", "99X", "{0}"], measure = ["{1}"] }}'
    labels = f"labels = {{ 1 = {label.format('Spleen', 'volume')}, 2 = {label.format('Node', 'diameters')} }}"
    options = f'options = {{ bundle = "{tmp_path}/bundle", {labels} }}\n'

    def of(kinds: str, least: float = 8) -> list[str]:
        text = also(f'send_to = ["b"]\nkinds = {kinds}\nmin_size_mm = {least}', "monai-bundle")
        return said(tmp_path, text.replace("[[route.also]]", f"{options}[[route.also]]"))

    words = "[[route.also]] number 1 of [[route]] 'r': monai-bundle does not measure Spleen in millimetres"
    assert of('["Spleen"]') == [f"node.toml:23: {words}; remove 'min_size_mm'"]
    assert of('["Spleen"]', 0) == of('["Node"]') == of('["Spleen", "Node"]') == of("[]") == []


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ('Modalty = "CT"', "no DICOM keyword 'Modalty'; did you mean 'Modality'?"),
        ('"SequenceOfUltrasoundRegions.PhysicalUnits" = 1', "no DICOM keyword 'PhysicalUnits'"),
        ("Rows = true", "Rows = true: write {present = true} or {absent = true}"),
        ("Rows = []", "Rows = []: an empty list matches nothing"),
        ("Rows = [1, true]", "Rows: a list holds texts and numbers only, not True"),
        ("Rows = {}", "Rows: the condition is empty; use one of regex, min, max, absent, present"),
        ("Rows = { minimum = 1 }", "Rows: the condition has no 'minimum'; use one of"),
        ('Rows = { min = 1, regex = "a" }', "Rows: range and regex in one condition"),
        ("Rows = { min = 3, max = 2 }", "Rows: min 3 is above max 2"),
        ('Rows = { min = "3" }', "Rows: min must be a number, not '3'"),
        ("Rows = { absent = false }", "Rows: write {absent = true} or {present = true}"),
        ('Modality = { regex = "(" }', "Modality: regex '(' is not valid"),
        (
            'Modality = { regex = "(?=C)T" }',
            "Modality: regex '(?=C)T' is not valid: invalid perl operator: (?=; look-ahead,",
        ),
        ("Modality = { regex = '(C)\\1' }", "Modality: regex '(C)\\1' is not valid: invalid escape sequence"),
        ("Modality = 2020-01-01", "Modality: a condition is a text, a number, a list or a table"),
    ],
)
def test_what_is_wrong_with_a_condition(tmp_path: Path, condition: str, words: str) -> None:
    (line,) = said(tmp_path, f"{PEER}{ROUTE}match = {{ {condition} }}")
    assert line.startswith("node.toml:11: [[route]] 'r': " + words)


@pytest.mark.parametrize(
    ("pipeline", "options", "words"),
    [
        ("lung-nodule", "treshold = 0.5", "option 'treshold' of lung-nodule does not exist; did you mean 'threshold'?"),
        ("lung-nodule", "threshold = 2", "option 'threshold' of lung-nodule must be less than 1, not 2"),
        ("lung-nodule", "at_most = 'all'", "option 'at_most' of lung-nodule must be a whole number, not 'all'"),
        ("lung-nodule", "peak = 0.9", "peak is no option of detector nodulenet, only of sliding-unet"),
        ("lung-nodule", "window = 32", "option 'window' of lung-nodule must be 0 or at least 64, not 32"),
        (
            "breast-us",
            "colour = 1",
            "option 'colour' of breast-us does not exist; there are checkpoint, suggest_birads, threads",
        ),
    ],
)
def test_options_are_the_pipelines_own(tmp_path: Path, pipeline: str, options: str, words: str) -> None:
    text = GOOD.replace('"lung-nodule"', f'"{pipeline}"').replace("{ threshold = 0.5 }", f"{{ {options} }}")
    assert said(tmp_path, text) == [
        f"node.toml:{text[: text.index('options =')].count(chr(10)) + 1}: [[route]] 'chest': {words}"
    ]


def test_routes_may_ask_for_priors_of_the_pipelines_that_compare() -> None:
    declared = catalogue().declared
    assert {name for name, each in declared.items() if each.options.compares} == {"lung-nodule"}
    assert all(each.options.compares == (comparison(each) is not None) for each in declared.values())


def test_a_sub_table_of_a_route_is_found_by_its_own_line(tmp_path: Path) -> None:
    second = ROUTE.replace('"r"', '"s"')
    text = PEER + ROUTE + "[route.match]\nModality = 'CT'\n" + second + "[route.match]\nRows = 1\nModalty = 'CT'"
    assert said(tmp_path, text) == ["node.toml:19: [[route]] 's': no DICOM keyword 'Modalty'; did you mean 'Modality'?"]


def test_all_problems_come_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = '[node]\nprot = 1\n[jobs]\nlease_s = "x"\n' + PEER + ROUTE.replace('["a"]', '["b"]') + "match={Modalty=1}"
    errors = said(tmp_path, text)
    assert [int(line.split(":")[1]) for line in errors] == [2, 4, 14, 15]


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"absent\.toml: cannot be read: No such file or directory"):
        config.load(tmp_path / "absent.toml")
    (tmp_path / "node.toml").write_bytes(b"# \xff\n")
    with pytest.raises(config.ConfigError, match="is not UTF-8 text"):
        config.load(tmp_path / "node.toml")


def test_an_empty_file_loads_and_warns(tmp_path: Path) -> None:
    assert config.load(written(tmp_path, "")).routes == ()
    warnings = said(tmp_path, "", "warning")
    assert any("no [[route]]" in line for line in warnings)
    assert any("every sender is rejected" in line for line in warnings)
    anywhere = '[[peer]]\nname = "ct"\nae_title = "CT1"\nmay_send = true\n'
    [line] = [line for line in said(tmp_path, anywhere, "warning") if "calls_from" in line]
    assert line.startswith("node.toml:4: warning: [[peer]] 'ct' may send, and its AE title alone says who it is")
    assert not any("calls_from" in line for line in said(tmp_path, anywhere + 'calls_from = ["a"]', "warning"))
    late = "[retention]\nstart_free_gb = 2.0\nstop_free_gb = 3.0\n"
    assert any(
        "start_free_gb in [retention] is 2, not above keep_free_gb" in w for w in said(tmp_path, late, "warning")
    )
    assert not any("keep_free_gb" in w for w in said(tmp_path, late.replace("2.0", "2.5"), "warning"))
    idle = PEER.replace("true", "false") + '[[peer]]\nname = "b"\nfolder = "f"'
    assert "node.toml:8: warning: peer 'b' may not send and no route sends to it" in said(tmp_path, idle, "warning")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('device = "cpu"\ndevices = ["cpu"]', "device and devices are both given; keep one of them"),
        ('devices = ["cuda:0", "auto"]', "devices cannot hold 'auto' beside others"),
        ('devices = ["gpu0"]', "devices"),
    ],
)
def test_devices_that_cannot_be_are_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    [line] = said(tmp_path, f"[infer]\n{text}\n")
    assert words in line


def test_a_device_may_be_named_more_than_once(tmp_path: Path) -> None:
    several = config.load(written(tmp_path, '[infer]\ndevices = ["cuda:0", "cuda:0", "cpu"]\n')).infer
    assert several.names == ("cuda:0", "cuda:0", "cpu")
    assert config.Infer().names == ("auto",)


# node.toml shows every setting, each with its default ------------------------------------------------------------


def shown() -> dict[str, Any]:
    """config/node.toml with the # before every setting taken away."""
    return tomllib.loads(re.sub(r"(?m)^#(?=\w+ = |\[\[)", "", SHOWN.read_text(encoding="utf-8")))


def test_node_toml_shows_every_setting_and_no_other() -> None:
    tables = shown()
    assert tables.keys() == TABLES.keys() | LISTS.keys()
    for name, model in TABLES.items():
        assert tables[name].keys() == model.model_fields.keys(), name
    for name, model in LISTS.items():
        # a secret stands in one of its two ways
        either = {each.removesuffix("_file") for each in model.model_fields if each.endswith("_file")}
        there = set().union(*tables[name])
        assert {each.removesuffix("_file") if each.removesuffix("_file") in either else each for each in there} == (
            model.model_fields.keys() - {f"{each}_file" for each in either}
        ), name


@pytest.mark.parametrize("name", TABLES)
def test_node_toml_shows_the_defaults(name: str) -> None:
    assert TABLES[name].model_validate(shown()[name]) == TABLES[name]()


def test_each_setting_is_shown_once() -> None:
    tables = re.split(r"(?m)^\[", SHOWN.read_text(encoding="utf-8").partition("#[[peer]]")[0])
    for keys in (re.findall(r"(?m)^#(\w+) = ", table) for table in tables):
        assert len(keys) == len(set(keys))
    assert len(tables) > 10


def test_node_toml_is_valid_as_it_stands_and_with_its_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_TOKEN", "t")
    (tmp_path / "archive.password").touch(mode=0o600)
    (tmp_path / "archive.password").write_text("p")
    assert config.load(SHOWN).peers == ()
    text = re.sub(r"(?m)^#(?=\w+ = |\[\[)", "", SHOWN.read_text(encoding="utf-8"))
    (tmp_path / "hospital-ca.pem").write_text("")
    (tmp_path / "node.toml").touch(mode=0o600)
    assert said(tmp_path, text) == []
    assert said(tmp_path, text, "warning") == []


def test_every_setting_is_documented_with_its_default() -> None:
    documented = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"(?ms)^## `\[+(\w+)\]+`.*?\n(.*?)(?=^##+ |\Z)", documented))
    assert sections.keys() == TABLES.keys() | LISTS.keys()
    for name, model in (TABLES | LISTS).items():
        rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*?) \|", sections[name]))
        assert rows.keys() == model.model_fields.keys(), name
        for key, field in model.model_fields.items():
            if name in TABLES:
                assert tomllib.loads(f"x = {rows[key].strip('`')}")["x"] == shown()[name][key], key
            else:
                assert (rows[key] == "required") == field.is_required(), key


# Lines -----------------------------------------------------------------------------------------------------------

NAMES = st.text("abcdef_", min_size=1, max_size=4)


@given(st.lists(st.tuples(NAMES, st.booleans(), st.lists(NAMES, unique=True, max_size=4)), max_size=8))
def test_every_key_is_found_on_its_line(tables: list[tuple[str, bool, list[str]]]) -> None:
    lines: list[str] = []
    expected: dict[tuple[str | int, ...], int] = {}
    seen: dict[str, int] = {}
    for name, is_list, keys in tables:
        if name in seen and (not is_list or not seen[name]):
            continue  # would not be valid TOML
        place: tuple[str | int, ...] = (name, seen.get(name, 0)) if is_list else (name,)
        seen[name] = seen.get(name, 0) + 1 if is_list else 0
        lines.append(f"[[{name}]]" if is_list else f"[{name}]")
        expected[place] = len(lines)
        for key in keys:
            lines.append(f'{key} = """two\nx = 1\n""" # lines' if key.startswith("a") else f"  {key} = 1")
            expected[(*place, key)] = len("\n".join(lines[:-1]).splitlines()) + 1
            lines = "\n".join(lines).split("\n")
    text = "\n".join(lines)
    tomllib.loads(text)
    found = lines_of(text)
    assert {place: found[place] for place in expected} == expected
