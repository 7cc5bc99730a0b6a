"""What stands between this node and each of its peers: asked step by step, as the node itself would ask, with the
setting to change on either side. Nothing is stored anywhere by it.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from config import Config, Peer
from config.certificates import Certificate, certificate_of
from config.check import unwritable
from dicom_sr.forms import CHAINS, KEY_OBJECTS, PICTURE, Form, Profile, forms_of
from pacs_node import priors
from pacs_node.association import (
    REJECTIONS,
    Context,
    NoneAccepted,
    Rejected,
    association,
    contexts_of,
    named,
    why_not_accepted,
    why_unreachable,
)
from pacs_node.association import Peer as DicomPeer
from pacs_node.commitment import PUSH_MODEL, TRANSFER_SYNTAXES
from pacs_node.deliver import dimse, stow
from pacs_node.deliver.arrival import DimseArrivalCheck
from pacs_node.deliver.destination import Deferred, Outcome, Undeliverable
from pacs_node.errors import NodeError, NotOffered, TryAgain, Unreachable
from pacs_node.peers import dicom_peer, profile_of, web_peer
from pacs_node.receive.address import number_of, resolved
from pacs_node.records import Sent

State = Literal["good", "remark", "bad", "not asked"]

PATIENCE_S = 10.0  # for a connection, and for each answer
SOON = timedelta(days=30)  # a certificate that ends within it is a remark
MOST_APART_S = 60.0  # two clocks: dates of results and of log lines are compared by people
LIMIT_S = 45.0  # for all steps together where a page waits: proxies give up after a minute
MOST_AT_ONCE = 4  # examinations that pages wait for
NOBODYS_UID = "2.25.1"  # asked for where any answer will do: nothing has it


@dataclass(frozen=True)
class Finding:
    """One step of the way to one peer."""

    peer: str
    step: str
    state: State
    text: str
    advice: str = ""  # what to change, and where


Say = Callable[..., Finding]  # (step, state, text, advice)


def examine(config: Config, now: Callable[[], datetime], only: str | None = None) -> Iterator[Finding]:
    """Each peer of the settings, or the one of this name, in their order; a peer's steps end where none can follow."""
    for peer in config.peers:
        if only in (None, peer.name):
            yield from _examined(config, peer, now)


def conclusion(found: Sequence[Finding]) -> str:
    bad = sum(each.state == "bad" for each in found)
    return f"{bad} of the steps are bad" if bad else "nothing is bad"


class Examiner:
    """Examines for pages that wait: not beyond `limit_s`, and not many at once. What still hangs then ends by its own
    patience, in a thread that nothing waits for."""

    def __init__(self, limit_s: float = LIMIT_S, most_at_once: int = MOST_AT_ONCE) -> None:
        self.limit_s, self._free = limit_s, threading.BoundedSemaphore(most_at_once)

    def examine(self, config: Config, now: Callable[[], datetime], name: str) -> tuple[list[Finding], dict[str, str]]:
        """The steps of one peer, and what it must know of this node where that is a DICOM peer. Raises TryAgain."""
        if not self._free.acquire(blocking=False):
            raise TryAgain("others are being tested: try again as soon as they have answered")
        found: list[Finding] = []
        told: dict[str, str] = {}
        failed: list[Exception] = []

        def ask() -> None:
            try:
                for each in examine(config, now, name):
                    found.append(each)  # noqa: PERF402 - one by one: who waits may go before the last
                told.update(for_the_other_side(config, config.peer(name)))
            except Exception as error:  # noqa: BLE001 - raised again by who waits
                failed.append(error)
            finally:
                self._free.release()

        asked = threading.Thread(target=ask, name=f"doctor {name}", daemon=True)
        asked.start()
        asked.join(self.limit_s)
        for error in failed:
            raise error
        if asked.is_alive():
            advice = f"`pacs-node doctor {name}` asks it to the end"
            late = Finding(name, "time", "bad", f"not done within {self.limit_s:g} s; the rest was not asked", advice)
            return [*found, late], dict(told)
        return found, told


def _examined(config: Config, peer: Peer, now: Callable[[], datetime]) -> Iterator[Finding]:
    say = partial(Finding, peer.name)
    if peer.folder is not None:
        yield _folder(peer.name, peer.folder, say)
        return
    if peer.host is not None:
        try:
            asked = dicom_peer(config, peer, PATIENCE_S)
        except NodeError as error:
            yield say("TLS", "bad", str(error), "pacs-node check says which of the files")
        else:
            yield from _dicom(config, peer, asked, now, say)
    if peer.dicomweb_url is not None:
        try:
            web = replace(web_peer(config, peer), timeout_s=PATIENCE_S)
            yield from _dicomweb(web, now, say)
        except (NodeError, OSError, ValueError) as error:  # OSError, ValueError: of the file dicomweb_ca
            yield say(
                "connection", "bad", str(error), "correct dicomweb_url, dicomweb_verify or dicomweb_ca of the peer"
            )
    if peer.host is None and peer.dicomweb_url is None:
        yield say("connection", "not asked", "it has no host and port: it only sends to this node")


def _folder(name: str, folder: Path, say: Say) -> Finding:
    if words := unwritable(folder):
        advice = f"let the node's user write there, or correct folder of [[peer]] '{name}'"
        return say("folder", "bad", words, advice)
    return say("folder", "good", f"{folder} can be written")


# A DICOM peer ----------------------------------------------------------------------------------------------------


def _dicom(config: Config, peer: Peer, asked: DicomPeer, now: Callable[[], datetime], say: Say) -> Iterator[Finding]:
    if number_of(asked.host) is None:
        addresses = resolved(asked.host)
        if not addresses:
            advice = f"correct host of [[peer]] '{peer.name}', or let this machine's DNS know the name"
            yield say("name", "bad", f"{asked.host} does not resolve", advice)
            return
        yield say("name", "good", f"{asked.host} is {', '.join(sorted(map(str, addresses)))}")
    try:
        with socket.create_connection((asked.host, asked.port), timeout=PATIENCE_S):
            pass
    except (OSError, UnicodeError) as error:
        advice = (
            f"is it running, does it listen at {asked.port} (Orthanc: DicomPort; dcm4chee: dicomPort of a connection), "
            f"and does a firewall let this machine through? Else correct host and port of [[peer]] '{peer.name}'"
        )
        yield say("connection", "bad", why_unreachable(error, PATIENCE_S), advice)
        return
    yield say("connection", "good", f"{asked.host}:{asked.port} is open")
    if asked.tls is not None:
        secured = _secured(peer, asked, now(), say)
        yield secured
        if secured.state == "bad":
            return
    try:
        yield say("C-ECHO", "good", dimse.echo(asked))
    except dimse.NoneAccepted:
        yield say("C-ECHO", "remark", "it does not offer Verification, which every DICOM system should")
    except NodeError as error:
        yield say("C-ECHO", "bad", _without_name(error, asked), _association_advice(config, peer, asked, str(error)))
        return
    yield from _results(config, peer, asked, say)
    queried = _query(config, peer, asked, say)
    yield queried
    yield from _earlier(config, peer, asked, say)
    yield _commitment(peer, asked, queried.state == "good", say)
    yield say("clock", "not asked", "DICOM has no question for it", "let both ask a time server")


def _secured(peer: Peer, asked: DicomPeer, now: datetime, say: Say) -> Finding:
    """The handshake; when it fails, what the peer shows all the same."""
    assert asked.tls is not None
    try:
        with (
            socket.create_connection((asked.host, asked.port), timeout=PATIENCE_S) as connected,
            asked.tls.secure(connected) as secured,
        ):
            theirs = certificate_of(secured.getpeercert(binary_form=True) or b"")
            text = f"{secured.version()}, certificate of {_told(theirs)}"
    except OSError as error:
        return say("TLS", "bad", why_unreachable(error, PATIENCE_S), _tls_advice(peer, asked))
    if words := theirs.why_not_valid(now):
        return say("TLS", "remark", f"{text}; it {words}", "it is believed by its fingerprint; let it be renewed")
    if theirs.ends < now + SOON:
        return say("TLS", "remark", f"{text}; it ends on {theirs.ends:%Y-%m-%d}", "let it be renewed over there")
    return say("TLS", "good", text)


def _told(certificate: Certificate) -> str:
    return f"{certificate.subject} until {certificate.ends:%Y-%m-%d}, SHA-256 {certificate.fingerprint}"


def _tls_advice(peer: Peer, asked: DicomPeer) -> str:
    where = f"[[peer]] '{peer.name}'"
    shown = _shown_to_anybody(asked)
    if isinstance(shown, Certificate):
        return (
            f"it shows the certificate of {_told(shown)}; if that is right: put it, or the CA that signed it, into the "
            f"file trusted in [tls], set tls_name of {where} to a name that it carries, or "
            f'tls_fingerprints = ["{shown.fingerprint}"] there'
        )
    if shown:  # it speaks TLS, and does not like us
        return (
            "have it trust own_certificate in [tls], or the CA that signed it (Orthanc: DicomTlsTrustedCertificates; "
            "DCMTK: +cf; dcm4chee: its trust store)"
        )
    if _speaks_without_tls(asked):
        return f"it speaks DICOM without TLS at port {asked.port}: correct port of {where}, or set tls = false there"
    return f"does it speak TLS at port {asked.port} (Orthanc: DicomTlsEnabled)? Else correct port or tls of {where}"


def _shown_to_anybody(asked: DicomPeer) -> Certificate | bool:
    """The certificate that it shows, whoever signed it; True: it speaks TLS, and shows none."""
    assert asked.tls is not None
    context = asked.tls.renewed.files.for_called(by_fingerprint=True)
    try:
        with (
            socket.create_connection((asked.host, asked.port), timeout=PATIENCE_S) as connected,
            context.wrap_socket(connected, server_hostname=asked.host) as secured,
        ):
            return certificate_of(secured.getpeercert(binary_form=True) or b"")
    except ssl.SSLError as error:
        return "ALERT" in str(getattr(error, "reason", ""))
    except (OSError, ValueError):
        return False


def _speaks_without_tls(asked: DicomPeer) -> bool:
    try:
        dimse.echo(replace(asked, tls=None))
    except Undeliverable:
        return True  # it has answered
    except NodeError:
        return False
    return True


def _speaks_tls(asked: DicomPeer) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((asked.host, asked.port), timeout=PATIENCE_S) as connected,
            context.wrap_socket(connected),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(getattr(error, "reason", ""))
    except OSError:
        return False


def _association_advice(config: Config, peer: Peer, asked: DicomPeer, words: str) -> str:
    ours, where = config.node.ae_title, f"[[peer]] '{peer.name}'"
    if words.endswith(REJECTIONS[1, 3]):
        return f"let it know {ours!r}: see below; or is ae_title in [node] another than it knows?"
    if words.endswith(REJECTIONS[1, 7]):
        return f"correct ae_title of {where}: it is not {asked.ae_title!r} (Orthanc: DicomAet)"
    if asked.tls is None and "aborted the association request" in words and _speaks_tls(asked):
        return f"it speaks TLS at this port: set tls = true of {where}, see docs/tls.md"
    if "aborted the association request" in words:
        return (
            f"is it DICOM that answers at {asked.host}:{asked.port}? Else correct port of {where}; its log may say more"
        )
    return "its log may say more"


def _results(config: Config, peer: Peer, asked: DicomPeer, say: Say) -> Iterator[Finding]:
    """In which form it would get each kind of result."""
    wanted = _kinds(peer, profile_of(peer))
    contexts = {
        (form.sop_class_uid, syntax) for forms in wanted.values() for form in forms for syntax in form.transfer_syntaxes
    }
    try:
        accepted, why_not = _negotiated(asked, contexts)
    except NodeError as error:
        yield say("results", "bad", _without_name(error, asked), "its log may say more")
        return
    for kind, forms in wanted.items():
        yield _result(config, kind, forms, accepted, why_not, say)


def _kinds(peer: Peer, profile: Profile) -> dict[str, tuple[Form, ...]]:
    """What may be sent to it -> its forms, the best first."""
    kinds = {forms[0].name: forms_of(sop_class, profile) for sop_class, forms in CHAINS.items()}
    if peer.key_images != "none":
        kinds[PICTURE.name] = (PICTURE,)
    if peer.key_objects or peer.reject_replaced:
        kinds[KEY_OBJECTS.name] = (KEY_OBJECTS,)
    return kinds


def _result(
    config: Config,
    kind: str,
    forms: tuple[Form, ...],
    accepted: set[Context],
    why_not: Mapping[Context, str],
    say: Say,
) -> Finding:
    refused: list[str] = []
    for form in forms:
        taken = [syntax for syntax in form.transfer_syntaxes if (form.sop_class_uid, syntax) in accepted]
        if taken:
            text = f"{kind} goes as {named(form.sop_class_uid, taken[0])}"
            if not refused:
                return say("results", "good", text)
            return say("results", "remark", f"{text}; {'; '.join(refused)}", _class_advice(config, forms[0]))
        reasons = {why_not.get((form.sop_class_uid, syntax), "no answer") for syntax in form.transfer_syntaxes}
        refused.append(f"{form.name}: {', '.join(sorted(reasons))}")
    return say("results", "bad", f"{kind} cannot be sent: {'; '.join(refused)}", _class_advice(config, forms[0]))


def _class_advice(config: Config, form: Form) -> str:
    return (
        f"have it accept {form.sop_class_uid} in Explicit or Implicit VR Little Endian from {config.node.ae_title!r} "
        "(dcm4chee: a Transfer Capability of its AE; Orthanc takes every class, unless its settings say otherwise)"
    )


def _negotiated(asked: DicomPeer, contexts: set[Context]) -> tuple[set[Context], Mapping[Context, str]]:
    """Accepted, and why the others are not. Raises Unreachable, Rejected."""
    try:
        with association(asked, contexts_of(contexts)) as opened:
            accepted = {(str(each.abstract_syntax), str(each.transfer_syntax[0])) for each in opened.accepted_contexts}
            return accepted, why_not_accepted(opened)
    except NoneAccepted as error:
        return set(), error.why


def _query(config: Config, peer: Peer, asked: DicomPeer, say: Say) -> Finding:
    users = [f"confirm = 'query' of [[peer]] '{peer.name}'"] if peer.confirm == "query" else []
    users += ["ask_peer in [assemble]"] if config.assemble.ask_peer and peer.may_send else []
    users += [f"priors of [[route]] '{route.name}'" for route in config.routes if route.priors == peer.name]
    nobody = Sent(NOBODYS_UID, NOBODYS_UID, NOBODYS_UID, NOBODYS_UID)
    try:
        DimseArrivalCheck(asked, commits=False).find([nobody])
    except NotOffered as error:
        text = f"not offered: {_without_name(error, asked)}"
        if not users:
            return say(
                "C-FIND", "remark", text, "without it an arrival is proven by storage commitment alone, or not at all"
            )
        return say(
            "C-FIND", "bad", text, f"{' and '.join(users)} needs it: let {config.node.ae_title!r} query, or remove it"
        )
    except NodeError as error:
        return say("C-FIND", "bad", _without_name(error, asked), "its log may say more")
    return say("C-FIND", "good", "it answers (Study Root)")


def _earlier(config: Config, peer: Peer, asked: DicomPeer, say: Say) -> Iterator[Finding]:
    """Whether it would send what a comparison needs of an earlier study, if a route asks it for that."""
    routes = [route.name for route in config.routes if route.priors == peer.name]
    if not routes:
        return
    users = " and ".join(f"priors of [[route]] '{name}'" for name in routes)
    advice = f"{users} needs it: have it serve C-GET to {config.node.ae_title!r} and send these, or remove it"
    try:
        lacks = priors.not_sent(asked)
    except NodeError as error:
        yield say("C-GET", "bad", _without_name(error, asked), advice)
        return
    if lacks:
        yield say("C-GET", "bad", "; ".join(lacks), advice)
    else:
        yield say("C-GET", "good", "it would send reports, Segmentations and CT images of earlier studies")


def _commitment(peer: Peer, asked: DicomPeer, finds: bool, say: Say) -> Finding:
    if peer.confirm in ("query", "none"):
        return say("storage commitment", "not asked", f"confirm = '{peer.confirm}' does without")
    try:
        accepted, why_not = _negotiated(asked, {(PUSH_MODEL, syntax) for syntax in TRANSFER_SYNTAXES})
    except (Unreachable, Rejected) as error:
        return say("storage commitment", "bad", _without_name(error, asked), "its log may say more")
    if accepted:
        advice = "it reports on an association of its own to this node, which it must know: "
        advice += f"Test on the page of peers, and `pacs-node doctor {peer.name}`, say how"
        return say("storage commitment", "good", "offered", advice)
    text = f"not offered: {', '.join(sorted(set(why_not.values()))) or 'no answer'}"
    if peer.confirm == "commitment":
        advice = f"have it offer {PUSH_MODEL}, or set confirm = 'query' of [[peer]] '{peer.name}'"
        return say("storage commitment", "bad", text, advice)
    if finds:
        return say("storage commitment", "remark", f"{text}; arrival is proven by C-FIND")
    advice = f"have it offer this or C-FIND; or set confirm = 'none' of [[peer]] '{peer.name}'"
    return say("storage commitment", "remark", f"{text}, nor is C-FIND: no arrival can be proven", advice)


def _without_name(error: Exception, asked: DicomPeer) -> str:
    return str(error).replace(f"{asked} ", "").removeprefix("cannot be reached: ")


# A DICOMweb server -----------------------------------------------------------------------------------------------


def _dicomweb(web: stow.WebPeer, now: Callable[[], datetime], say: Say) -> Iterator[Finding]:
    """A search for a series that nobody has, and an empty store."""
    advice = "correct dicomweb_url of the peer: the address of its /studies without that word"
    path = f"/studies/{NOBODYS_UID}/series/{NOBODYS_UID}/instances"
    try:
        answer = stow.ask(web, "GET", path)
    except Deferred as error:
        words = str(error).replace(f"{web} ", "").removeprefix("cannot be reached: ")
        yield say(
            "connection", "bad", words, f"is it running, and its certificate of a CA in dicomweb_ca? Else {advice}"
        )
        return
    yield say("connection", "good", f"{web.url} answers")
    if answer.status_code == 404:  # no such series, or no such service?
        answer = stow.ask(web, "GET", f"/studies?StudyInstanceUID={NOBODYS_UID}&limit=1")
    yield _searched(answer, advice, say)
    boundary = "nothing"
    headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'}
    stored = stow.ask(web, "POST", "/studies", headers=headers, content=f"--{boundary}--\r\n".encode())
    yield _stored(stored, advice, say)
    yield from _clock(answer.date, now(), say)


# besides success, what a STOW-RS service itself answers to a request that stores nothing: PS3.18 Table 10.5.3-1
REFUSALS_OF_STOW = {400, 409, 415}
GATEWAYS = {502, 503, 504}  # of whoever stands before a service, RFC 9110 15.6
PAGES = b"<!doctype html", b"<html"


def _searched(answer: stow.Answer, advice: str, say: Say) -> Finding:
    if answer.status_code == 200 and not isinstance(stow.json_of(answer), list):
        return say("QIDO-RS", "bad", "HTTP 200, and no list of what it found: it is no DICOMweb service", advice)
    return _http("QIDO-RS", answer.status_code, advice, say)


def _stored(answer: stow.Answer, advice: str, say: Say) -> Finding:
    status = answer.status_code
    if status < 300 and answer.body.lstrip()[:14].lower().startswith(PAGES):
        return say("STOW-RS", "bad", f"HTTP {status} with a web page: it is no DICOMweb service", advice)
    if status < 300 or status in REFUSALS_OF_STOW:
        return say("STOW-RS", "good", f"it is there (HTTP {status} to a request that stores nothing)")
    if status == 500:
        text = "HTTP 500: it failed at a request that stores nothing; it may store results all the same"
        return say("STOW-RS", "remark", text, "its log says at what it failed")
    return _http("STOW-RS", status, advice, say)


def _http(step: str, status: int, advice: str, say: Say) -> Finding:
    outcome, meaning = stow.meaning_of(status)
    if outcome is Outcome.STORED:
        return say(step, "good", f"it answers (HTTP {status})")
    if status in (401, 403):
        advice = "correct dicomweb_token, or dicomweb_user and dicomweb_password; or let this user in over there"
    if status in GATEWAYS:
        advice = "a proxy before it may have answered: does the service behind it run? Its log may say more"
    return say(step, "bad", f"HTTP {status}: {meaning}", advice)


def _clock(date: str, now: datetime, say: Say) -> Iterator[Finding]:
    """Of the peer, as its answer has it (RFC 9110 6.6.1); to the second."""
    try:
        ahead_s = (parsedate_to_datetime(date) - now).total_seconds()
    except (ValueError, TypeError):
        yield say("clock", "not asked", "it does not say what time it is")
        return
    which = "ahead of" if ahead_s > 0 else "behind"
    if abs(ahead_s) <= MOST_APART_S:
        yield say("clock", "good", "as here, to the minute")
    else:
        yield say("clock", "remark", f"{abs(ahead_s):.0f} s {which} this machine's", "let both ask a time server")


# What the other side must know -----------------------------------------------------------------------------------


def for_the_other_side(config: Config, peer: Peer) -> dict[str, str]:
    """Orthanc and dcm4chee -> what to write into its settings, so that it knows this node; nothing for what is no DICOM
    peer."""
    if peer.ae_title is None:
        return {}
    secured = peer.tls and bool(config.tls.dicom_tls_port)
    host, title = _our_address(config, peer), config.node.ae_title
    port = config.tls.dicom_tls_port if secured else config.node.dicom_port
    modality = {"AET": title, "Host": host, "Port": port, **({"UseDicomTls": True} if peer.tls else {})}
    orthanc = {
        **({"DicomTlsEnabled": True} if peer.tls else {}),
        "DicomModalities": {"pacs-node": modality},
    }
    device = {
        "dicomDeviceName": "pacs-node",
        "dicomInstalled": True,
        "dicomNetworkConnection": [
            {
                "cn": "dicom",
                "dicomHostname": host,
                "dicomPort": port,
                **({"dicomTLSCipherSuite": TLS_OF_DCM4CHEE} if secured else {}),
            }
        ],
        "dicomNetworkAE": [
            {
                "dicomAETitle": title,
                "dicomAssociationInitiator": True,
                "dicomAssociationAcceptor": True,
                "dicomNetworkConnectionReference": ["/dicomNetworkConnection/0"],
            }
        ],
    }
    return {
        "Orthanc, in its configuration file": json.dumps(orthanc, indent=2),
        "dcm4chee, as a device (POST /dcm4chee-arc/devices/pacs-node)": json.dumps(device, indent=2),
    }


TLS_OF_DCM4CHEE = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]


def _our_address(config: Config, peer: Peer) -> str:
    """At which the peer can reach us, as far as this machine knows."""
    host = config.node.dicom_host
    try:
        if not ip_address(host).is_unspecified:
            return host
    except ValueError:
        return host
    try:
        family, _, _, _, there = socket.getaddrinfo(peer.host or "192.0.2.1", peer.port or 104, type=socket.SOCK_DGRAM)[
            0
        ]
        with socket.socket(family, socket.SOCK_DGRAM) as asked:  # connecting sends nothing
            asked.connect(there)
            return str(asked.getsockname()[0])
    except (OSError, UnicodeError):
        return socket.gethostname()
