"""[tls] and what peers say of it: each setting wrong once, each file as it may not be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import config
from tests.certificates import Authority
from tests.unit.test_config import GOOD, HOSTS, said, toml

TLS = """
[tls]
dicom_tls_port = 2762
own_certificate = "node.crt"
own_key = "node.key"
trusted = "hospital-ca.pem"
"""
PEER = '[[peer]]\nname = "a"\nae_title = "A"\nhost = "h"\nport = 104\nmay_send = true\ncalls_from = ["h"]\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates of every kind."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder)
    authority.issue("node")
    authority.issue("other")
    authority.issue("expired", days=(-9, -1))
    authority.issue("early", days=(1, 9))
    authority.issue("soon", days=(-9, 9))
    authority.issue("locked", password=b"hush-hush")
    (folder / "empty").touch(mode=0o600)
    (folder / "two").write_bytes((folder / "expired.crt").read_bytes() + authority.certificate.read_bytes())
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    for file in made.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def test_good_settings_say_nothing_and_give_whole_paths(here: Path) -> None:
    text = TLS + GOOD.replace("may_send = true", "may_send = true\ntls = true\ntls_name = '10.0.0.5'")
    assert said(here, text) == []
    assert said(here, text, "warning") == []
    settings = config.load(here / "node.toml")
    assert settings.tls.own_key == here / "node.key"
    assert settings.tls.trusted == here / "hospital-ca.pem"
    assert settings.peers[0].tls


def swap(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


# what stands in place of what, and what is said
WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "a key without a certificate": (
        lambda text: text.replace('own_certificate = "node.crt"\n', ""),
        "[tls]: own_certificate and own_key belong together",
    ),
    "a port without certificates": (
        lambda text: "[tls]\ndicom_tls_port = 2762",
        "dicom_tls_port needs own_certificate",
    ),
    "a port without whom to trust": (
        lambda text: text.replace('trusted = "hospital-ca.pem"\n', ""),
        "dicom_tls_port needs own_certificate, own_key and trusted",
    ),
    "only_tls without a port": (lambda text: "[tls]\nonly_tls = true", "only_tls needs a dicom_tls_port"),
    "the port of DICOM": (
        swap("2762", "11112"),
        "'dicom_tls_port' in [tls] is the same as 'dicom_port'",
    ),
    "the port of the pages": (
        swap("2762", "8080"),
        "is the same as 'web_port'; give each its own",
    ),
    "no such certificate": (swap("node.crt", "none.crt"), "none.crt cannot be read: No such file"),
    "no such key": (swap("node.key", "none.key"), "none.key cannot be read: No such file"),
    "nobody to trust": (
        swap("hospital-ca.pem", "none.pem"),
        "none.pem cannot be read: No such file",
    ),
    "an empty certificate": (swap("node.crt", "empty"), "empty holds no certificate in PEM"),
    "an empty key": (swap("node.key", "empty"), "empty holds no private key in PEM"),
    "nothing to trust": (swap("hospital-ca.pem", "empty"), "empty holds no certificate in PEM"),
    "a key as certificate": (swap("node.crt", "node.key"), "node.key holds no certificate in PEM"),
    "a certificate as key": (swap("node.key", "node.crt"), "node.crt holds no private key in PEM"),
    "the key of another": (
        swap("node.key", "other.key"),
        "other.key is not the key of the certificate of CN=node",
    ),
    "a key with a password": (
        lambda text: text.replace("node.key", "locked.key").replace("node.crt", "locked.crt"),
        "locked.key has a password, which nobody could type in at a start",
    ),
    "an expired one": (
        lambda text: text.replace("node.crt", "expired.crt").replace("node.key", "expired.key"),
        "own_certificate in [tls]: {here}/expired.crt has expired on ",
    ),
    "one of tomorrow": (
        lambda text: text.replace("node.crt", "early.crt").replace("node.key", "early.key"),
        "early.crt is not valid before ",
    ),
    "only expired ones to trust": (
        swap("hospital-ca.pem", "expired.crt"),
        "trusted in [tls]: of {here}/expired.crt the certificate of CN=expired has expired on ",
    ),
    "a port that is none": (
        swap("2762", "70000"),
        "must be 65535 or less",
    ),
    "a name without tls": (
        lambda text: f'{text}{PEER}tls_name = "pacs"',
        "tls_name and tls_fingerprints need tls = true",
    ),
    "a fingerprint without tls": (
        lambda text: f'{text}{PEER}tls_fingerprints = ["{"ab" * 32}"]',
        "tls_name and tls_fingerprints need tls = true",
    ),
    "a fingerprint that is none": (
        lambda text: f'{text}{PEER}tls = true\ntls_fingerprints = ["ab:cd"]',
        "'ab:cd' is no SHA-256 fingerprint, 64 hexadecimal digits; this prints that of a certificate: openssl x509",
    ),
    "tls of a folder": (
        lambda text: f'{text}[[peer]]\nname = "f"\nfolder = "out"\ntls = true',
        "tls needs an ae_title",
    ),
    "tls of DICOMweb": (
        lambda text: f'{text}[[peer]]\nname = "w"\ndicomweb_url = "https://a/b"\ntls = true',
        "tls needs an ae_title; a dicomweb_url has its own, https",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_an_error_in_words(here: Path, what: str) -> None:
    change, words = WRONG[what]
    lines = said(here, change(TLS))
    assert any(words.format(here=here) in line for line in lines), lines
    assert all(line.startswith("node.toml:") for line in lines)
    assert "hush-hush" not in str(lines)
    with pytest.raises(config.ConfigError):
        config.load(here / "node.toml")


def test_a_name_is_a_host(here: Path) -> None:
    for host, words in HOSTS:
        (line,) = said(here, f"{TLS}{PEER}tls = true\ntls_name = {toml(host)}")
        assert words in line


WARNED = {
    "one that ends soon": (
        lambda text: text.replace("node.crt", "soon.crt").replace("node.key", "soon.key"),
        "soon.crt ends on ",
    ),
    "an expired one among those to trust": (
        swap("hospital-ca.pem", "two"),
        "the certificate of CN=expired has expired on ",
    ),
    "a key that others can read": (
        swap("node.key", "open.key"),
        "other users can read it: chmod 600",
    ),
    "a sender with tls and no port for it": (
        lambda text: f"{PEER}tls = true",
        "may send and has tls, but there is no port for that: its images come unencrypted",
    ),
    "a title that any trusted certificate may use": (
        lambda text: f"{text}{PEER}tls = true".replace('calls_from = ["h"]\n', ""),
        "its AE title alone says who it is",
    ),
}


@pytest.mark.parametrize("what", WARNED)
def test_what_is_warned_of(here: Path, what: str) -> None:
    shutil.copy(here / "node.key", here / "open.key")
    (here / "open.key").chmod(0o644)
    change, words = WARNED[what]
    text = change(TLS)
    assert said(here, text) == []
    assert any(words in line for line in said(here, text, "warning")), said(here, text, "warning")


@pytest.mark.parametrize("known", ['tls_name = "pacs"', f'tls_fingerprints = ["{":".join(["AB"] * 32)}"]'])
def test_a_certificate_says_who_sends_as_an_address_does(here: Path, known: str) -> None:
    peer = f"{PEER}tls = true\n{known}".replace('calls_from = ["h"]\n', "")
    words = "its AE title alone says who it is"
    assert not [line for line in said(here, TLS + peer, "warning") if words in line]
    assert [line for line in said(here, peer, "warning") if words in line], "without a port for TLS it does not"
    if "fingerprints" in known:
        assert config.load(here / "node.toml").peers[0].tls_fingerprints == ("ab" * 32,)
