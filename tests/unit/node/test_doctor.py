"""`pacs-node doctor`: for each thing that may stand between node and peer, the step that says it, and what to do."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)
from typer.testing import CliRunner

from config import Config, load
from pacs_node.cli import app
from pacs_node.doctor import Examiner, Finding, examine, for_the_other_side
from pacs_node.errors import TryAgain
from tests.certificates import Authority, Identity
from tests.harness import free_port, wait_for

NOW = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
SEG, RTSTRUCT, SC = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.7"
SR_3D, SR_TEXT = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.11"
ALL = (SEG, SR_3D, SC)


@dataclass
class Site:
    folder: Path
    node: Identity
    pacs: Identity
    stranger: Identity
    ca: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder)
    stranger = Authority(folder, "elsewhere").issue("stranger")
    return Site(folder, authority.issue("node"), authority.issue("pacs"), stranger, authority.certificate)


@pytest.fixture
def pacs(site: Site) -> Iterator[Callable[..., int]]:
    """pacs(stores=..., finds=..., commits=..., knows=..., shows=...) -> its port."""
    servers: list[Any] = []

    def start(
        stores: tuple[str, ...] = ALL,
        finds: bool = True,
        commits: bool = True,
        echoes: bool = True,
        knows: str = "",
        shows: Identity | None = None,
        gets: tuple[str, ...] | None = None,
        roles: bool = True,
    ) -> int:
        ae = AE("PACS")
        ae.require_called_aet = True
        ae.require_calling_aet = [knows] if knows else []
        for sop_class in stores:
            ae.add_supported_context(sop_class)
        for service, there in (
            (Verification, echoes),
            (StudyRootQueryRetrieveInformationModelFind, finds),
            (StorageCommitmentPushModel, commits),
        ):
            if there:
                ae.add_supported_context(service)
        if gets is not None:
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
            for sop_class in gets:
                ae.add_supported_context(sop_class, scu_role=roles or None, scp_role=roles or None)
        context = None
        if shows is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(shows.certificate, shows.key)
            context.load_verify_locations(site.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        handlers = [(evt.EVT_C_FIND, lambda event: iter(()))]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context)
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        threading.Thread(target=server.shutdown).start()  # takes half a second: do not wait for it


def settings(site: Site, folder: Path, port: int, more: str = "", head: str = "", name: str = "PACS") -> Path:
    folder.mkdir(exist_ok=True)
    tls = f'[tls]\nown_certificate = "{site.node.certificate}"\nown_key = "{site.node.key}"\ntrusted = "{site.ca}"\n'
    peer = f'[[peer]]\nname = "pacs"\nae_title = "{name}"\nhost = "127.0.0.1"\nport = {port}\n{more}\n'
    (folder / "node.toml").write_text(f'{head}[node]\nae_title = "NODE"\ndata_dir = "{folder}/data"\n{tls}{peer}')
    return folder / "node.toml"


def found(file: Path) -> dict[str, Finding]:
    """The worst of each step."""
    order = ["bad", "remark", "not asked", "good"]
    steps: dict[str, Finding] = {}
    for each in examine(load(file), lambda: NOW):
        assert each.peer == "pacs"
        before = steps.get(each.step)
        if before is None or order.index(each.state) < order.index(before.state):
            steps[each.step] = each
    return steps


DICOM = ["connection", "C-ECHO", "results", "C-FIND", "storage commitment"]


def test_a_pacs_that_has_all_is_good_at_each_step(pacs: Callable[..., int], site: Site, tmp_path: Path) -> None:
    steps = found(settings(site, tmp_path, pacs()))
    assert {step: each.state for step, each in steps.items()} == {**dict.fromkeys(DICOM, "good"), "clock": "not asked"}
    assert steps["clock"].text == "DICOM has no question for it"


Start = Callable[..., int]
TLS = "tls = true\n"
# what is wrong -> (the PACS, settings of the peer), the step, its state, what it says and what is to be changed
WRONG: dict[str, tuple[Callable[[Start, Site], tuple[int, str]], str, str, str, str]] = {
    "nobody there": (lambda start, site: (free_port(), ""), "connection", "bad", "connection refused", "is it running"),
    "our title is not known": (
        lambda start, site: (start(knows="OTHER"), ""),
        "C-ECHO",
        "bad",
        "it does not know our AE title",
        "let it know 'NODE'",
    ),
    "no verification": (lambda start, site: (start(echoes=False), ""), "C-ECHO", "remark", "does not offer", ""),
    "no SEG, but a poorer form": (
        lambda start, site: (start(stores=(RTSTRUCT, SR_3D, SC)), ""),
        "results",
        "remark",
        "Segmentation goes as RT Structure Set Storage in Implicit VR Little Endian; Segmentation: the SOP class",
        f"have it accept {SEG} in Explicit or Implicit VR Little Endian from 'NODE'",
    ),
    "no report at all": (
        lambda start, site: (start(stores=(SEG,)), ""),
        "results",
        "bad",
        "Comprehensive 3D SR cannot be sent: Comprehensive 3D SR: the SOP class is not supported",
        f"have it accept {SR_3D}",
    ),
    "nothing at all": (
        lambda start, site: (start(stores=()), ""),
        "results",
        "bad",
        "Segmentation cannot be sent",
        SEG,
    ),
    "no query": (lambda start, site: (start(finds=False), ""), "C-FIND", "remark", "not offered", "storage commitment"),
    "no query, and it is needed": (
        lambda start, site: (start(finds=False), 'confirm = "query"'),
        "C-FIND",
        "bad",
        "not offered",
        "confirm = 'query' of [[peer]] 'pacs' needs it",
    ),
    "no commitment": (
        lambda start, site: (start(commits=False), ""),
        "storage commitment",
        "remark",
        "not offered: the SOP class is not supported; arrival is proven by C-FIND",
        "",
    ),
    "no commitment, and it is needed": (
        lambda start, site: (start(commits=False), 'confirm = "commitment"'),
        "storage commitment",
        "bad",
        "not offered",
        "set confirm = 'query' of [[peer]] 'pacs'",
    ),
    "TLS there, not here": (
        lambda start, site: (start(shows=site.pacs), ""),
        "C-ECHO",
        "bad",
        "aborted the association request",
        "set tls = true of [[peer]] 'pacs'",
    ),
    "TLS here, not there": (
        lambda start, site: (start(), TLS),
        "TLS",
        "bad",
        "TLS failed: ",
        "it speaks DICOM without TLS at port",
    ),
    "a certificate of whom we do not trust": (
        lambda start, site: (start(shows=site.stranger), TLS),
        "TLS",
        "bad",
        "certificate verify failed",
        "tls_fingerprints = [",
    ),
    "a certificate with another name": (
        lambda start, site: (start(shows=site.pacs), TLS + 'tls_name = "ris.example"'),
        "TLS",
        "bad",
        "Hostname mismatch",
        "set tls_name of [[peer]] 'pacs' to a name that it carries",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found_with_the_setting(pacs: Start, site: Site, what: str, tmp_path: Path) -> None:
    make, step, state, text, advice = WRONG[what]
    port, more = make(pacs, site)
    steps = found(settings(site, tmp_path, port, more))
    assert step in steps, steps
    assert steps[step].state == state, steps[step]
    assert text in steps[step].text
    assert advice in steps[step].advice
    assert {name for name, each in steps.items() if each.state == "bad"} <= {step}, steps


def test_another_title_than_its_own(pacs: Start, site: Site, tmp_path: Path) -> None:
    told = found(settings(site, tmp_path, pacs(), name="OTHER"))["C-ECHO"]
    assert told.state == "bad"
    assert "correct ae_title of [[peer]] 'pacs': it is not 'OTHER'" in told.advice


def test_a_name_that_does_not_resolve(site: Site, tmp_path: Path) -> None:
    file = settings(site, tmp_path, 104)
    file.write_text(file.read_text().replace("127.0.0.1", "no-such-host.invalid"))
    steps = found(file)
    assert list(steps) == ["name"]
    assert steps["name"].state == "bad"
    assert "correct host of [[peer]] 'pacs'" in steps["name"].advice


def test_with_tls_all_is_asked_over_it(pacs: Start, site: Site, tmp_path: Path) -> None:
    steps = found(settings(site, tmp_path, pacs(shows=site.pacs), TLS))
    assert {step: each.state for step, each in steps.items()} == dict.fromkeys([*DICOM, "TLS"], "good") | {
        "TLS": steps["TLS"].state,
        "clock": "not asked",
    }
    assert steps["TLS"].state in ("good", "remark")
    assert "certificate of CN=pacs until 20" in steps["TLS"].text
    assert site.pacs.fingerprint in steps["TLS"].text


def test_a_certificate_that_we_show_and_it_does_not_take(pacs: Start, site: Site, tmp_path: Path) -> None:
    file = settings(site, tmp_path, pacs(shows=site.pacs), TLS)
    theirs = site.stranger
    text = file.read_text().replace(str(site.node.certificate), str(theirs.certificate))
    file.write_text(text.replace(str(site.node.key), str(theirs.key)))
    steps = found(file)
    bad = [each for each in steps.values() if each.state == "bad"]
    assert bad, "with TLS 1.3 it is C-ECHO that hears so"
    assert "TLS failed" in bad[0].text or "aborted" in bad[0].text


# DICOMweb ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[Callable[..., str]]:
    """web(GET status, POST status, ahead_s, what it says with 200) -> its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(get: int = 204, post: int = 400, ahead_s: float = 0, says: bytes = b"[]") -> str:
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(get)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._say(post)

            def _say(self, status: int) -> None:
                self.send_response_only(status)
                self.send_header("Date", format_datetime(NOW + timedelta(seconds=ahead_s), usegmt=True))
                body = says if status == 200 else b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/dicom-web"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answers", "states"),
    [
        ({}, {}),
        ({"get": 200}, {}),
        ({"get": 200, "says": b"{}"}, {"QIDO-RS": "bad"}),
        ({"get": 200, "post": 200, "says": b"\n<!DOCTYPE html><html></html>"}, {"QIDO-RS": "bad", "STOW-RS": "bad"}),
        ({"get": 502, "post": 502}, {"QIDO-RS": "bad", "STOW-RS": "bad"}),
        ({"get": 404}, {"QIDO-RS": "bad"}),
        ({"get": 401, "post": 401}, {"QIDO-RS": "bad", "STOW-RS": "bad"}),
        ({"post": 403}, {"STOW-RS": "bad"}),
        ({"post": 404}, {"STOW-RS": "bad"}),
        ({"post": 405}, {"STOW-RS": "bad"}),
        ({"ahead_s": 300}, {"clock": "remark"}),
        ({"ahead_s": -300}, {"clock": "remark"}),
    ],
)
def test_a_dicomweb_server(
    web: Callable[..., str], answers: dict[str, Any], states: dict[str, str], tmp_path: Path
) -> None:
    user = 'dicomweb_user = "u"\ndicomweb_password = "s3cret"\n'
    peer = f'[[peer]]\nname = "pacs"\ndicomweb_url = "{web(**answers)}"\n{user}'
    (tmp_path / "node.toml").write_text(f'[node]\ndata_dir = "data"\n{peer}')
    steps = found(tmp_path / "node.toml")
    good = dict.fromkeys(["connection", "QIDO-RS", "STOW-RS", "clock"], "good")
    assert {step: each.state for step, each in steps.items()} == good | states
    assert "s3cret" not in str(steps)
    assert all(each.advice for each in steps.values() if each.state == "bad")


# PS3.18 Table 10.5.3-1; all else but success is of somebody else, or says that it does not work
ANSWERS_OF_STOW = {400: "good", 409: "good", 415: "good", 500: "remark"}


@pytest.mark.parametrize("status", [*(int(each) for each in HTTPStatus if each >= 200), 520, 599])
def test_stow_is_there_only_if_it_says_so_itself(web: Callable[..., str], status: int, tmp_path: Path) -> None:
    peer = f'[[peer]]\nname = "pacs"\ndicomweb_url = "{web(post=status)}"\n'
    (tmp_path / "node.toml").write_text(f'[node]\ndata_dir = "data"\n{peer}')
    said = found(tmp_path / "node.toml")["STOW-RS"]
    assert said.state == ("good" if status < 300 else ANSWERS_OF_STOW.get(status, "bad"))
    assert said.state == "good" or (said.advice and str(status) in said.text)


ROUTE = '[[route]]\nname = "chest"\nmatch = {}\npipeline = "lung-nodule"\nsend_to = ["pacs"]\npriors = "pacs"\n'
CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.mark.parametrize(
    ("serves", "state", "words"),
    [
        ({"gets": (SR_3D, SEG, CT)}, "good", ""),
        ({"gets": (SR_3D, SEG, CT), "roles": False}, "bad", "would not send reports by C-GET"),
        ({"gets": (SEG, CT)}, "bad", "would not send reports by C-GET"),
        ({"gets": (SR_3D, CT)}, "bad", "would not send Segmentations by C-GET"),
        ({"gets": (SR_3D, SEG)}, "bad", "would not send CT images by C-GET"),
        ({}, "bad", "does not serve C-GET"),
        ({"stores": ()}, "bad", "does not serve C-GET"),
    ],
)
def test_a_peer_that_is_asked_for_earlier_studies_must_send_them(
    pacs: Start, serves: dict[str, Any], state: str, words: str, site: Site, tmp_path: Path
) -> None:
    said = found(settings(site, tmp_path, pacs(**serves), ROUTE))["C-GET"]
    assert said.state == state
    assert words in said.text
    assert bool(said.advice) == (state == "bad")
    assert "C-GET" not in found(settings(site, tmp_path, pacs(**serves)))


def test_nobody_at_the_address_of_a_dicomweb_server(tmp_path: Path) -> None:
    peer = f'[[peer]]\nname = "pacs"\ndicomweb_url = "http://127.0.0.1:{free_port()}/dicom-web"\n'
    (tmp_path / "node.toml").write_text(f'[node]\ndata_dir = "data"\n{peer}')
    steps = found(tmp_path / "node.toml")
    assert {step: each.state for step, each in steps.items()} == {"connection": "bad"}
    assert "correct dicomweb_url" in steps["connection"].advice


@pytest.mark.parametrize("finds", [False, True])
def test_commitment_that_is_not_offered_leaves_it_to_queries_that_are(
    pacs: Start, finds: bool, site: Site, tmp_path: Path
) -> None:
    said = found(settings(site, tmp_path, pacs(commits=False, finds=finds)))["storage commitment"]
    assert ("proven by C-FIND" in said.text, "no arrival can be proven" in said.text) == (finds, not finds)
    assert bool(said.advice) is not finds


# The command -----------------------------------------------------------------------------------------------------


def test_the_command_says_so_and_what_the_other_side_must_know(pacs: Start, site: Site, tmp_path: Path) -> None:
    file = settings(site, tmp_path, pacs(knows="OTHER"))
    done = CliRunner().invoke(app, ["doctor", "--config", str(file)])
    assert done.exit_code == 1
    assert "BAD        pacs: C-ECHO: rejected 'NODE': it does not know our AE title" in done.output
    assert '"DicomModalities"' in done.output
    assert "1 of the steps are bad" in done.output
    fine = CliRunner().invoke(app, ["doctor", "pacs", "--config", str(settings(site, tmp_path, pacs()))])
    assert fine.exit_code == 0, fine.output
    assert "nothing is bad" in fine.output
    assert '"dicomDeviceName"' in fine.output, "of one that is named it is printed in any case"
    none = CliRunner().invoke(app, ["doctor", "nosuch", "--config", str(file)])
    assert none.exit_code == 1


@pytest.mark.parametrize("secured", [False, True])
def test_what_the_other_side_must_know_is_ours(site: Site, secured: bool, tmp_path: Path) -> None:
    file = settings(site, tmp_path, 104, TLS if secured else "")
    if secured:
        file.write_text(file.read_text().replace("[tls]\n", "[tls]\ndicom_tls_port = 2762\n"))
    config = load(file)
    told = for_the_other_side(config, config.peers[0])
    orthanc, dcm4chee = (json.loads(text) for text in told.values())
    port = 2762 if secured else 11112
    modality = {"AET": "NODE", "Host": "127.0.0.1", "Port": port} | ({"UseDicomTls": True} if secured else {})
    assert orthanc["DicomModalities"] == {"pacs-node": modality}
    assert orthanc.get("DicomTlsEnabled", False) is secured
    [connection] = dcm4chee["dicomNetworkConnection"]
    assert (connection["dicomHostname"], connection["dicomPort"]) == ("127.0.0.1", port)
    assert ("dicomTLSCipherSuite" in connection) is secured


def test_a_folder_and_who_only_sends(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        '[node]\ndata_dir = "data"\n[[peer]]\nname = "out"\nfolder = "out"\n'
        '[[peer]]\nname = "ct"\nae_title = "CT"\nmay_send = true\n'
    )
    told = {each.peer: each for each in examine(load(tmp_path / "node.toml"), lambda: NOW)}
    assert (told["out"].state, told["ct"].state) == ("good", "not asked")


def test_a_silent_port_is_waited_for_no_longer_than_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.doctor.PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as door:
        steps = found(settings(site, tmp_path, door.getsockname()[1]))
        assert steps["C-ECHO"].state == "bad"
        steps = found(settings(site, tmp_path, door.getsockname()[1], TLS))
        assert steps["TLS"].state == "bad"
        assert "no answer within" in steps["TLS"].text


def test_whoever_waits_at_a_page_waits_no_longer_than_told(site: Site, tmp_path: Path) -> None:
    """And as long as one hangs, no more are begun than told."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = load(settings(site, tmp_path, silent.getsockname()[1]))
        examiner = Examiner(limit_s=0.5, most_at_once=1)
        steps, told = examiner.examine(config, lambda: NOW, "pacs")
        assert [each.step for each in steps] == ["connection", "time"]
        assert (steps[-1].state, told) == ("bad", {})
        with pytest.raises(TryAgain, match="others are being tested"):
            examiner.examine(config, lambda: NOW, "pacs")
        silent.accept()[0].close()
        silent.accept()[0].close()  # C-ECHO: it ends
    steps, told = wait_for(lambda: free(examiner, config), 20, "the end of what hung")
    assert [each.state for each in steps] == ["bad"]
    assert told == for_the_other_side(config, config.peer("pacs"))


def free(examiner: Examiner, config: Config) -> tuple[list[Finding], dict[str, str]] | None:
    try:
        return examiner.examine(config, lambda: NOW, "pacs")
    except TryAgain:
        return None


def test_a_folder_that_is_none_any_more_is_bad(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[node]\ndata_dir = "data"\n[[peer]]\nname = "out"\nfolder = "out"\n')
    config = load(tmp_path / "node.toml")
    (tmp_path / "out").write_text("a file by now")
    [found] = examine(config, lambda: NOW)
    assert (found.state, found.text) == ("bad", f"{tmp_path / 'out'} is no folder")
    assert "folder of [[peer]] 'out'" in found.advice
