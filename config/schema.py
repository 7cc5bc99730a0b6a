"""Every setting of the node: its name with its unit, its default, its meaning. docs/configuration.md says more.

The models are frozen and refuse what they do not know: a typo stops start-up, it never becomes a default.
"""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from math import isnan
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

import re2
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydicom.datadict import dictionary_VR, tag_for_keyword

from config.hours import Hours
from config.secrets import UNKNOWN


def _ae_title(title: str) -> str:
    """PS3.5 Table 6.2-1, VR AE: at most 16 bytes of the default repertoire, no backslash, no control character."""
    if len(title) > 16:
        raise ValueError(f"AE title '{title}' has {len(title)} characters; 16 are allowed")
    bad = sorted({c for c in title if not " " <= c <= "~" or c == "\\"})
    if bad:
        raise ValueError(
            f"AE title {title!r} holds {', '.join(map(repr, bad))}; only printable ASCII without backslash"
        )
    if title != title.strip() or not title:
        raise ValueError(
            f"AE title {title!r} is empty or has spaces at its ends, which the Standard ignores; remove them"
        )
    return title


HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")  # RFC 1123 2.1; container engines make names with _


def _host(host: str) -> str:
    """A host name or an IP address, and nothing around it."""
    try:
        ip_address(host)
        return host
    except ValueError:
        pass
    inner, _, port = host.rpartition(":")
    if not host:
        raise ValueError("is empty; give a host name or an address")
    if host != host.strip():
        raise ValueError(f"{host!r} has spaces at its ends; remove them")
    if "://" in host:
        raise ValueError(f"{host!r} is a URL; give the host name or address alone: {urlsplit(host).hostname!r}")
    if "@" in host:
        raise ValueError(f"{host!r} names a user or an AE title; give the host name or address alone")
    if inner and port.isdigit() and (":" not in inner or inner.endswith("]")):
        raise ValueError(f"{host!r} has a port; write {inner.strip('[]')!r}, and the port as a setting of its own")
    if host.startswith("[") and host.endswith("]"):
        raise ValueError(f"{host!r} has brackets, which only URLs need; write {host.strip('[]')!r}")
    if re.fullmatch(r"(.*\.)?[0-9]+\.?", host):
        raise ValueError(f"{host!r} is no IP address; one is 10.0.0.5, four numbers from 0 to 255")
    if len(host) > 253 or not all(HOST_LABEL.fullmatch(label) for label in host.removesuffix(".").split(".")):
        raise ValueError(f"{host!r} is neither a host name (letters, digits, hyphens, dots) nor an IP address")
    return host


def is_loopback(host: str) -> bool:
    """Does an address lead to this machine alone?"""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


YEAR_S = 31_536_000.0
HEADER_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 5.6.2
SYSLOG_FILES = ("syslog_ca", "syslog_certificate", "syslog_key")


def _fingerprint(text: str) -> str:
    """SHA-256 of a certificate as DER, as small hexadecimal digits."""
    digits = text.strip().lower().replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ValueError(
            f"{text!r} is no SHA-256 fingerprint, 64 hexadecimal digits; this prints that of a certificate: "
            "openssl x509 -noout -fingerprint -sha256 -in FILE"
        )
    return digits


def _proxy(address: str) -> str:
    try:
        network = ip_network(address)
    except ValueError:
        raise ValueError(f"{address!r} is no address or network; one is 10.0.0.5, or 10.0.0.0/24") from None
    if network.prefixlen == 0:
        raise ValueError(f"{address!r} is every address: anybody could say to be anybody; name the proxy alone")
    return address


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Proxy = Annotated[str, AfterValidator(_proxy)]
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=YEAR_S)]
Count = Annotated[int, Field(ge=1)]


def _path(path: object) -> object:
    """What a path may be made of, before it is one: an empty text would mean the folder of the settings file."""
    if isinstance(path, str):
        if not path.strip():
            raise ValueError("is empty; give a path")
        if "\0" in path or any(len(part.encode()) > 255 for part in path.split("/")):
            raise ValueError("cannot be a path: it holds a zero byte, or a name of more than 255 bytes")
    return path


# relative to the folder of the settings file
RelativePath = Annotated[Path, Field(strict=False), BeforeValidator(_path)]
OptionalPath = Annotated[
    Path | None, Field(strict=False), BeforeValidator(lambda path: _path(path) if path != "" else None)
]
# a secret has a setting `..._file` beside it, see secrets.py
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(lambda secret: secret if secret != "" else None)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


def _bad_place(url: str) -> str | None:
    """None, or what is wrong with the host and port of a URL. A password in it is never quoted."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "has a port that is no number from 1 to 65535, or brackets that do not fit"
    if not parts.hostname:
        return "names no host"
    if port == 0:
        return "has port 0"
    try:
        _host(parts.hostname)
    except ValueError as error:
        return f"has a host that cannot be: {error}"
    return None


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Node(Settings):
    """[node]: who this node is and where it listens."""

    ae_title: AeTitle = "PACSNODE"  # senders must call exactly this title
    dicom_host: Host = "0.0.0.0"  # noqa: S104  address the DICOM listener binds to; 0.0.0.0 is every interface
    dicom_port: Port = 11112  # registered for DICOM, PS3.8 9.1.2
    web_host: Host = "127.0.0.1"  # of the web pages; on another one they need users and TLS, see [web]
    web_port: Port = 8080
    # other names under which browsers reach the pages: a proxy's, the machine's
    web_names: Annotated[tuple[Host, ...], Field(strict=False)] = ()
    data_dir: RelativePath = Path("data")  # spool, results and the default database


class Receive(Settings):
    """[receive]: the DICOM listener."""

    processes: Annotated[int, Field(ge=1, le=64)] = 1  # that receive, behind the one port
    max_associations: Count = 10  # of all of them; more are rejected: transient, local limit exceeded
    # of these, under one AE title and from one address; 0: all, or where several peers may call, all but a fifth
    max_associations_per_peer: Annotated[int, Field(ge=0)] = 0
    network_timeout_s: Seconds = 60.0  # an idle association is aborted after this
    acse_timeout_s: Seconds = 30.0  # ARTIM: waiting for an association request or its release
    dimse_timeout_s: Seconds = 30.0  # waiting for the answer to a message of ours
    max_pdu: Annotated[int, Field(ge=0, le=2**32 - 1)] = 131072  # bytes; larger is faster; 0 is no limit (PS3.8 D.1)
    largest_mb: Annotated[int, Field(ge=1, le=2**22)] = 2048  # a longer data set is refused as it passes this
    keep_free_gb: Annotated[float, Field(ge=0)] = 2.0  # less free space: C-STORE answers 0xA700 before writing
    drain_s: Seconds = 30.0  # how long a stop waits for open associations and running jobs


VIEWER_NAMES = ("study", "series")  # in braces in `viewer_url`


class Tls(Settings):
    """[tls]: DICOM over TLS, PS3.15 B.12; both sides show a certificate."""

    # of the listener with TLS; 2762 is registered for it, PS3.15 B.12; 0: there is none
    dicom_tls_port: Annotated[int, Field(ge=0, le=65535)] = 0
    only_tls: bool = False  # dicom_port in [node] is not listened on
    own_certificate: OptionalPath = None  # PEM with its chain; shown to who calls us, and to whom we call
    own_key: OptionalPath = None  # PEM, without a password
    # PEM: who may have signed the certificates of others, or these themselves; default, of those we call: whom the
    trusted: OptionalPath = None  # machine trusts

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        if bool(self.own_certificate) != bool(self.own_key):
            raise ValueError("own_certificate and own_key belong together: give both, or neither")
        if self.dicom_tls_port and not (self.own_certificate and self.trusted):
            raise ValueError("dicom_tls_port needs own_certificate, own_key and trusted: both sides show a certificate")
        if self.only_tls and not self.dicom_tls_port:
            raise ValueError("only_tls needs a dicom_tls_port")
        return self


Language = Literal["en", "de"]  # those of pacs_node/web/languages.py


class Web(Settings):
    """[web]: who may use the pages, and how they are reached."""

    idle_min: Annotated[float, Field(gt=0, le=1440)] = 30.0  # without use: log in again
    longest_h: Annotated[float, Field(gt=0, le=720)] = 12.0  # after so long in any case
    certificate: OptionalPath = None  # PEM; with it the pages are served over TLS alone
    key: OptionalPath = None  # PEM, without a password
    behind_proxy: bool = False  # a proxy of the site brings the pages to browsers over TLS
    # addresses and networks of it: what they say of who asks is believed, and of nobody else
    proxies: Annotated[tuple[Proxy, ...], Field(strict=False, min_length=1)] = ("127.0.0.1", "::1")
    open_to_all: bool = False  # also others than this machine may use them without users and without TLS
    viewer_gb: Annotated[float, Field(ge=0, le=1000)] = 2.0  # what was made for who looks at a series takes on disk
    viewer_url: str = ""  # of the hospital's own viewer, with {study} and {series} in it
    language: Language = "en"  # of the pages, for whose browser asks for none that there is

    @field_validator("viewer_url")
    @classmethod
    def _viewer_address(cls, url: str) -> str:
        if not url:
            return url
        named = re.findall(r"\{([^{}]*)\}", url)
        odd = next((name for name in named if name not in VIEWER_NAMES), None)
        if odd is not None or re.search(r"[{}]", re.sub(r"\{(study|series)\}", "", url)):
            raise ValueError(f"viewer_url knows {{study}} and {{series}} in braces, and not {{{odd or ''}}}")
        if not named:
            raise ValueError("viewer_url names no study; write {study} where its Study Instance UID goes")
        if words := _bad_place(url.format(study="1", series="1")):
            raise ValueError(
                f"viewer_url {words}; it is such as https://ohif.example/viewer?StudyInstanceUIDs={{study}}"
            )
        if not url.startswith(("http://", "https://")):
            raise ValueError("viewer_url must start with http:// or https://")
        return url

    @model_validator(mode="after")
    def _both(self) -> Web:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together: give both, or neither")
        return self


class Drift(Settings):
    """[drift]: what a pipeline sees and says, held against its first weeks."""

    reference_weeks: Annotated[int, Field(ge=1, le=520)] = 8  # the first of a version of its algorithm
    recent_weeks: Annotated[int, Field(ge=1, le=52)] = 4  # the last, this one among them
    beyond: Annotated[float, Field(gt=0, le=10)] = 0.25  # population stability index; and beyond chance (95 %)


class Database(Settings):
    """[database]: where series, jobs and receipts are kept."""

    url: str = "sqlite:///{data_dir}/node.sqlite"  # or postgresql+psycopg://user:password@host/name
    url_file: OptionalPath = None  # a file that holds the url, password and all

    @field_validator("url")
    @classmethod
    def _known_database(cls, url: str) -> str:
        if not url.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise ValueError("url must start with sqlite:/// or postgresql+psycopg://")
        if url.startswith("sqlite"):
            if not url.removeprefix("sqlite:///").strip("/"):
                raise ValueError("url names no file; write sqlite:///node.sqlite")
        elif words := _bad_place(url):
            raise ValueError(f"url {words}; it is postgresql+psycopg://user:password@host/name")
        elif not urlsplit(url).path.strip("/"):
            raise ValueError("url names no database; it is postgresql+psycopg://user:password@host/name")
        return url


class Store(Settings):
    """[store]: how workers on other machines come by images and results."""

    kind: Literal["folder", "s3"] = "folder"  # data_dir is on shared storage, or the machine is alone; or a bucket
    bucket: str = ""
    endpoint: str = ""  # http(s)://host:port; none: the service of AWS in `region`
    region: Annotated[str, Field(min_length=1)] = "us-east-1"
    prefix: str = ""  # of every name in the bucket, where it has other users
    access_key_id: str = ""  # none: AWS_ACCESS_KEY_ID and its like in the environment, or the machine's role
    secret_access_key: OptionalSecret = None
    secret_access_key_file: OptionalPath = None  # a file that holds the secret key and nothing else
    ca: OptionalPath = None  # certificates that may have signed its own; default: whom the machine trusts

    @field_validator("bucket")
    @classmethod
    def _bucket_name(cls, bucket: str) -> str:
        if bucket and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise ValueError("is no name of a bucket: 3 to 63 small letters, digits, dots and hyphens")
        return bucket

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^/?#@\s]+", url):
            raise ValueError("needs http:// or https:// and a host, and neither user, path nor query")
        if url and (words := _bad_place(url)):
            raise ValueError(words)
        return url

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, prefix: str) -> str:
        if prefix and not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", prefix):
            raise ValueError("is names of letters, digits, dots, hyphens and _, with / between them alone")
        return prefix

    @model_validator(mode="after")
    def _fits(self) -> Store:
        given = [name for name, field in Store.model_fields.items() if getattr(self, name) != field.default]
        if self.kind == "folder" and given:
            raise ValueError(f"{given[0]} needs kind = 's3'")
        if self.kind == "s3" and not self.bucket:
            raise ValueError("kind = 's3' needs a bucket")
        if (not self.access_key_id) != (self.secret_access_key is None):
            raise ValueError("needs both access_key_id and secret_access_key (or secret_access_key_file), or neither")
        return self

    @property
    def certificates(self) -> bytes | None:
        """Raises OSError."""
        return self.ca.read_bytes() if self.ca is not None else None


class Oidc(Settings):
    """[oidc]: the hospital's single sign-on, by OpenID Connect."""

    issuer: str = ""  # as it names itself: https://idp.hospital.example/realms/main; none: users of the node alone
    client_id: str = ""  # under which the node is registered there
    client_secret: OptionalSecret = None  # none: a public client, PKCE alone
    client_secret_file: OptionalPath = None
    name_claim: Annotated[str, Field(min_length=1)] = "preferred_username"  # what a user is called; else its `sub`
    role_claim: Annotated[str, Field(min_length=1)] = "groups"  # what gives roles; within others: realm_access.roles
    viewers: Annotated[tuple[str, ...], Field(strict=False)] = ()  # values of it that give the role viewer
    readers: Annotated[tuple[str, ...], Field(strict=False)] = ()
    admins: Annotated[tuple[str, ...], Field(strict=False)] = ()
    issuer_ca: OptionalPath = None  # PEM; certificates that may have signed its own; default: whom the machine trusts

    @field_validator("issuer")
    @classmethod
    def _issuer(cls, url: str) -> str:
        if not url:
            return url
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", url):
            raise ValueError("needs https://, a host and perhaps a path, and neither user, query nor fragment")
        if words := _bad_place(url):
            raise ValueError(words)
        if url.startswith("http://") and not is_loopback(urlsplit(url).hostname or ""):
            raise ValueError("needs https://: over plain http anybody on the way could log in as anybody")
        return url

    @model_validator(mode="after")
    def _fits(self) -> Oidc:
        given = [name for name, field in Oidc.model_fields.items() if getattr(self, name) != field.default]
        if given and not self.issuer:
            raise ValueError(f"{given[0]} needs an issuer")
        if self.issuer and not self.client_id:
            raise ValueError("issuer needs a client_id")
        if self.issuer and not (self.viewers or self.readers or self.admins):
            raise ValueError("gives nobody a role: name values of role_claim in viewers, readers or admins")
        return self


class Audit(Settings):
    """[audit]: where the audit trail goes, besides the files below data_dir."""

    file_mb: Annotated[int, Field(ge=1, le=4096)] = 64  # of one file; a new one is begun then, and each day (UTC)
    syslog_host: Annotated[str, AfterValidator(lambda host: _host(host) if host else host)] = ""  # none: files alone
    syslog_port: Port = 6514  # registered for syslog over TLS, RFC 5425; UDP mostly has 514
    syslog_transport: Literal["tls", "udp"] = "tls"
    syslog_ca: OptionalPath = None  # PEM; certificates that may have signed its own; default: whom the machine trusts
    syslog_certificate: OptionalPath = None  # PEM; ours, for a server that asks for one
    syslog_key: OptionalPath = None  # PEM, without a password

    @model_validator(mode="after")
    def _fits(self) -> Audit:
        given = [name for name, field in Audit.model_fields.items() if getattr(self, name) != field.default]
        given = [name for name in given if name.startswith("syslog_")]
        if given and not self.syslog_host:
            raise ValueError(f"{given[0]} needs a syslog_host")
        if bool(self.syslog_certificate) != bool(self.syslog_key):
            raise ValueError("syslog_certificate and syslog_key belong together: give both, or neither")
        if self.syslog_transport == "udp" and (self.syslog_ca or self.syslog_certificate):
            raise ValueError("syslog_ca, syslog_certificate and syslog_key need syslog_transport = 'tls'")
        return self


class Traces(Settings):
    """[traces]: the life of each series as a trace of OpenTelemetry, told to a collector."""

    endpoint: str = ""  # http(s)://collector:4318/v1/traces, OTLP over HTTP; none: nothing is told
    headers: OptionalSecret = None  # name=value, several with commas between them; a value as in a URL
    headers_file: OptionalPath = None  # a file that holds them and nothing else
    ca: OptionalPath = None  # PEM; certificates that may have signed the collector's; default: whom the machine trusts
    service_name: Annotated[str, Field(min_length=1, max_length=255)] = "pacs-node"  # service.name
    instance: Annotated[str, Field(max_length=255)] = ""  # service.instance.id; none: the AE title of the node
    fraction: Annotated[float, Field(ge=0, le=1)] = 1.0  # of the traces that are told

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, url: str) -> str:
        if not url:
            return url
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", url):
            raise ValueError("needs http:// or https://, a host and a path, and neither user, query nor fragment")
        if words := _bad_place(url):
            raise ValueError(words)
        if not urlsplit(url).path.strip("/"):
            raise ValueError(f"names no path; most collectors have {url.rstrip('/')}/v1/traces")
        return url

    @field_validator("headers")
    @classmethod
    def _headers(cls, headers: SecretStr | None) -> SecretStr | None:
        text = headers.get_secret_value() if headers is not None else UNKNOWN
        for given in text.split(",") if text != UNKNOWN else ():
            name, equals, value = given.partition("=")
            if not (re.fullmatch(HEADER_NAME, name.strip()) and equals and re.fullmatch(r"[ -~]+", unquote(value))):
                raise ValueError("is name=value, with a comma between two; a value as in a URL: %20 for a space")
        return headers

    @model_validator(mode="after")
    def _fits(self) -> Traces:
        given = [name for name, field in Traces.model_fields.items() if getattr(self, name) != field.default]
        if given and not self.endpoint:
            raise ValueError(f"{given[0]} needs an endpoint")
        return self

    @property
    def header_values(self) -> dict[str, str]:
        given = self.headers.get_secret_value().split(",") if self.headers is not None else []
        pairs = (each.partition("=") for each in given)
        return {name.strip(): unquote(value).strip() for name, equals, value in pairs if equals}


class Assemble(Settings):
    """[assemble]: when a series is complete, and when it is fit for inference."""

    quiet_s: Seconds = 10.0  # silence after the sender released its association
    quiet_unreleased_s: Seconds = (
        60.0  # silence while it is still connected, or after it broke off; never less than quiet_s
    )
    ask_peer: bool = False  # ask the sending peer by C-FIND how many images the series has
    max_wait_s: Seconds = 900.0  # how long to wait for images the peer says exist
    # that a volume must have, in place of what the pipeline's card requires; 0: what the card requires
    min_slices: Annotated[int, Field(ge=0)] = 0


class Jobs(Settings):
    """[jobs]: the durable work."""

    infer_timeout_s: Seconds = 1800.0  # one inference; then its process is killed and the job failed
    infer_attempts: Count = 3  # of one inference whose process died; for want of memory 2 at most
    send_backoff_s: Seconds = 10.0  # wait after a first failed send or inference; doubles with every further one
    send_backoff_max_s: Seconds = 900.0  # the longest wait between two attempts
    max_attempts: Count = 100  # sends to one destination, or inferences without a disk; then failed until "retry now"
    await_report_s: Seconds = 900.0  # for the report of a storage commitment; then the destination is queried
    confirm_attempts: Count = 12  # to prove that a result arrived, at the waits of send_backoff_s
    poison_limit: Count = 5  # a job that took the process down this often is failed
    lease_s: Seconds = 30.0  # a worker silent for this long loses its jobs to another
    sweep_s: Seconds = 5.0  # how often rows without a running job are looked for
    overtaken_s: Seconds = 3600.0  # a job that more urgent ones overtake for this long gets one start of four
    follow: bool = True  # a worker of its own takes peers, routes and waits from the machine that receives
    time_zone: str = ""  # in which the hours of routes are told: "Europe/Berlin"; none: that of the machine

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            return name and ZoneInfo(name).key
        except (ValueError, KeyError, OSError) as error:  # OSError: of a name that is a folder of zones
            raise ValueError(f"no time zone {name!r} is known here; one is 'Europe/Berlin'") from error

    @model_validator(mode="after")
    def _in_proportion(self) -> Jobs:
        if self.send_backoff_max_s < self.send_backoff_s:
            raise ValueError("send_backoff_max_s must not be less than send_backoff_s")
        if self.lease_s < 2 * self.sweep_s:
            raise ValueError("lease_s must be at least twice sweep_s, or a busy worker loses its own jobs")
        return self


class Priors(Settings):
    """[priors]: earlier studies of the patient, for routes that name a peer in `priors`."""

    max_age_days: Annotated[int, Field(ge=1, le=36525)] = 1826  # five years; older studies are not looked for
    timeout_s: Seconds = 120.0  # finding and fetching, and again comparing; then the result goes out without


class Heartbeat(Settings):
    """[heartbeat]: a phantom that the node sends itself, to see whether its results arrive."""

    every_minutes: Annotated[float, Field(ge=0, le=10080)] = 0.0  # 0: never
    route: str = ""  # the name of the one whose way it goes: its pipeline, its options
    to: str = ""  # the name of the peer that its results go to, in place of those of the route
    late_minutes: Annotated[float, Field(gt=0, le=1440)] = 15.0  # it has failed if nothing is proven by then

    @model_validator(mode="after")
    def _has_a_way(self) -> Heartbeat:
        if self.every_minutes and not (self.route and self.to):
            raise ValueError("every_minutes needs a route and a peer to send to")
        return self


class Infer(Settings):
    """[infer]: where the models run."""

    device: Device = "auto"  # auto: the first CUDA device, else the CPU
    # several, a process each, in place of `device`; one that is named twice runs two at a time
    devices: Annotated[tuple[Device, ...], Field(strict=False)] = ()
    # that the inference processes together may take; 0: nine tenths of what the machine, or the container, has
    memory_gb: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    tune: bool = True  # measure at start which form of a network is the fastest here, where that is not known yet
    confine: bool = True  # no network; reads its images and weights, writes scratch files, where the system allows it

    @model_validator(mode="after")
    def _one_way(self) -> Infer:
        if self.devices and "device" in self.model_fields_set:
            raise ValueError("device and devices are both given; keep one of them")
        if len(self.devices) > 1 and "auto" in self.devices:
            raise ValueError("devices cannot hold 'auto' beside others; name each of them: 'cpu', 'cuda:0'")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of all devices, one for each process."""
        return self.devices or (self.device,)


WithoutProof = Literal["no results", "not proven", "failed", "committed"]


class Retention(Settings):
    """[retention]: what is deleted of what the node keeps. As it stands here, nothing of a series ever is."""

    keep_days: Annotated[int, Field(ge=0, le=36525)] = 0  # of a series, since its last image; 0: age deletes nothing
    # of the disk that data_dir is on, the oldest series first, until the other mark of the pair; 0: it deletes nothing
    start_used_percent: Annotated[float, Field(ge=0, lt=100)] = 0.0
    stop_used_percent: Annotated[float, Field(ge=0, lt=100)] = 0.0
    start_free_gb: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    stop_free_gb: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    # what may go though it is not proven that its results have arrived at every destination
    without_proof: Annotated[tuple[WithoutProof, ...], Field(strict=False)] = ()
    aside_days: Annotated[int, Field(ge=0, le=36525)] = 0  # of what was kept aside or is unreadable; 0: at no age
    timeline_days: Annotated[int, Field(ge=0, le=36525)] = 0  # events of series that were deleted; 0: they stay

    @model_validator(mode="after")
    def _marks_in_order(self) -> Retention:
        if (self.stop_used_percent and not self.start_used_percent) or (self.stop_free_gb and not self.start_free_gb):
            raise ValueError("a mark to stop at needs one to start at: start_used_percent, start_free_gb")
        if self.start_used_percent and not 0 < self.stop_used_percent < self.start_used_percent:
            raise ValueError("start_used_percent needs a lower stop_used_percent")
        if self.start_free_gb and self.stop_free_gb <= self.start_free_gb:
            raise ValueError("start_free_gb needs a higher stop_free_gb")
        return self


class Peer(Settings):
    """[[peer]]: another system: a DICOM peer (ae_title; host and port if we call it), a DICOMweb server or a folder."""

    name: str = Field(min_length=1)  # how routes call it
    ae_title: AeTitle | None = None
    host: Host | None = None  # needed to send to it, or to ask it
    port: Port | None = None
    may_send: bool = False  # may it send images to us? Others are rejected: calling AE title not recognized
    # host names and addresses that its AE title may be used at; none: at any
    calls_from: Annotated[tuple[Host, ...], Field(strict=False)] = ()
    tls: bool = False  # it is called over TLS, and where we have a port with TLS it calls us there alone
    tls_name: Host | None = None  # that its certificate must carry; default, where it is called: its host
    # SHA-256 of its certificate; then it counts neither which name that carries nor, where it is called, who signed it
    tls_fingerprints: Annotated[tuple[Annotated[str, AfterValidator(_fingerprint)], ...], Field(strict=False)] = ()
    confirm: Literal["auto", "commitment", "query", "none"] = "auto"  # how to prove that results arrived
    dicomweb_url: str | None = None  # results go here by STOW-RS: the address of its /studies without that word
    dicomweb_token: SecretStr | None = None  # sent as a bearer token; or a user and a password:
    dicomweb_token_file: RelativePath | None = None  # a file that holds it and nothing else
    dicomweb_user: str | None = None
    dicomweb_password: SecretStr | None = None
    dicomweb_password_file: RelativePath | None = None
    dicomweb_verify: bool = True  # check its TLS certificate
    dicomweb_ca: RelativePath | None = None  # certificates that may have signed it; default: whom the machine trusts
    folder: RelativePath | None = None  # results are written here as files; instead of all of the above
    readable_by: Literal["owner", "group", "everyone"] = "owner"  # who besides the node may read what it writes
    segmentation: Literal["BINARY", "LABELMAP"] = "BINARY"  # Segmentation Type it is sent, PS3.3 C.8.20.2
    omit_empty_frames: bool = True  # false: a frame for every image, for viewers that misplace a Segmentation with gaps
    # of which findings captures are sent beside the Segmentation; largest: of clips, and of the first three of a CT
    key_images: Literal["largest", "clips", "all", "none"] = "largest"
    viewer: Literal["none", "ohif"] = "none"  # ohif: reports that OHIF makes measurements of its own of
    key_objects: bool = False  # send a Key Object Selection of the images with findings, too
    ask_again_h: Annotated[float, Field(gt=0, le=YEAR_S / 3600)] = (
        24.0  # how long a refused SOP class is not proposed to it
    )
    reject_replaced: bool = False  # also send a Key Object Selection that rejects what new results replace (IHE IOCM)

    @field_validator("dicomweb_url")
    @classmethod
    def _web_address(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", url):
            raise ValueError("needs http:// or https://, a host and a path, and neither user, query nor fragment")
        if url is not None and (words := _bad_place(url)):
            raise ValueError(words)
        return url

    @model_validator(mode="after")
    def _one_kind(self) -> Peer:
        if self.folder is not None:
            if self.ae_title or self.host or self.port or self.may_send or self.calls_from or self.dicomweb_url:
                raise ValueError(
                    "a peer with a folder takes no ae_title, host, port, may_send, calls_from or dicomweb_url; "
                    "make two peers of it"
                )
        elif self.ae_title is None and self.dicomweb_url is None:
            raise ValueError("needs an ae_title (a DICOM peer), a dicomweb_url or a folder")
        elif self.ae_title is None and (self.host or self.port or self.may_send):
            raise ValueError("host, port and may_send need an ae_title")
        elif (self.host is None) != (self.port is None):
            raise ValueError("needs both host and port, or neither (a peer that only sends to us)")
        elif self.host is None and not self.may_send and self.dicomweb_url is None:
            raise ValueError("can neither be called (no host and port) nor may it send (may_send = false)")
        elif self.calls_from and self.ae_title is None:
            raise ValueError("calls_from needs an ae_title")
        elif self.confirm == "commitment" and (self.host is None or self.dicomweb_url is not None):
            raise ValueError("confirm = 'commitment' needs a peer that takes results by C-STORE: host and port")
        return self

    @model_validator(mode="after")
    def _tls_settings_fit(self) -> Peer:
        if self.tls and self.ae_title is None:
            raise ValueError("tls needs an ae_title; a dicomweb_url has its own, https")
        if not self.tls and (self.tls_name or self.tls_fingerprints):
            raise ValueError("tls_name and tls_fingerprints need tls = true")
        return self

    @model_validator(mode="after")
    def _web_settings_fit(self) -> Peer:
        if "readable_by" in self.model_fields_set and self.folder is None:
            raise ValueError("readable_by needs a folder")
        given = [name for name in Peer.model_fields if name.startswith("dicomweb_") and name in self.model_fields_set]
        if given and self.dicomweb_url is None:
            raise ValueError(f"{given[0]} needs a dicomweb_url")
        if self.dicomweb_token and (self.dicomweb_user or self.dicomweb_password):
            raise ValueError("dicomweb_token or dicomweb_user with dicomweb_password, not both")
        if (self.dicomweb_user is None) != (self.dicomweb_password is None):
            raise ValueError("needs both dicomweb_user and dicomweb_password, or neither")
        if self.dicomweb_ca and not self.dicomweb_verify:
            raise ValueError("dicomweb_ca is of no use with dicomweb_verify = false")
        return self

    @property
    def reachable(self) -> bool:
        """Can results be sent to it?"""
        return self.folder is not None or self.host is not None or self.dicomweb_url is not None


CONDITION_KEYS = ("regex", "min", "max", "absent", "present")


def bad_condition(keyword: str, condition: object) -> str | None:
    """None, or what is wrong with one condition of a route's `match`. The keyword itself is checked elsewhere."""
    match condition:
        case bool():
            return f"{keyword} = {str(condition).lower()}: write {{present = true}} or {{absent = true}}"
        case str() | int() | float():
            return _bad_value(keyword, condition)
        case []:
            return f"{keyword} = []: an empty list matches nothing"
        case list():
            odd = [item for item in condition if isinstance(item, bool) or not isinstance(item, str | int | float)]
            if odd:
                return f"{keyword}: a list holds texts and numbers only, not {odd[0]!r}"
            return next((words for item in condition if (words := _bad_value(keyword, item))), None)
        case dict():
            return _bad_table(keyword, condition)
        case _:
            return f"{keyword}: a condition is a text, a number, a list or a table, not {condition!r}"


NUMBER_VRS = {"DS", "IS", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"}  # PS3.5 Table 6.2-1
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
BOUNDS = {"<": "max", "<=": "max", "≤": "max", "=<": "max", ">": "min", ">=": "min", "≥": "min", "=>": "min"}


def _bad_value(keyword: str, value: str | float) -> str | None:
    """A text that no value can equal, because the attribute holds numbers; mostly a comparison was meant."""
    if not isinstance(value, str):
        return f"{keyword}: nan equals nothing" if isnan(value) else None
    text, vr = value.strip(), _vr(keyword)
    number = vr in NUMBER_VRS and not re.fullmatch(NUMBER, text)
    if not number and not (vr == "AS" and not re.fullmatch(rf"\d{{3}}[DWMY]|{NUMBER}", text)):
        return None
    holds = "an age such as 045Y" if vr == "AS" else "numbers"
    return f"{keyword} holds {holds}, and is never the text {value!r}; {_as_range(keyword, text)}"


def _as_range(keyword: str, text: str) -> str:
    """ "<3" -> what to write in its place."""
    if one := re.fullmatch(rf"(<=?|>=?|=<|=>|≤|≥)\s*({NUMBER})", text):
        return f"write {keyword} = {{ {BOUNDS[one[1]]} = {one[2]} }}"
    if two := re.fullmatch(rf"({NUMBER})\s*(?:-|–|\.\.\.?|to)\s*({NUMBER})", text):
        return f"write {keyword} = {{ min = {two[1]}, max = {two[2]} }}"
    return f"write a number, or {keyword} = {{ min = ..., max = ... }}"


def _vr(path: str) -> str | None:
    """The VR of the last keyword of a path; of those with two ("US or SS") the first. None: no such keyword."""
    tag = tag_for_keyword(path.rpartition(".")[2])
    return dictionary_VR(tag)[:2] if tag is not None else None


def _bad_table(keyword: str, table: dict[str, Any]) -> str | None:
    unknown = sorted(set(table) - set(CONDITION_KEYS))
    if unknown or not table:
        got = f"has no '{unknown[0]}'" if unknown else "is empty"
        return f"{keyword}: the condition {got}; use one of {', '.join(CONDITION_KEYS)}"
    kinds = {"range" if key in ("min", "max") else key for key in table}
    if len(kinds) > 1:
        return f"{keyword}: {' and '.join(sorted(kinds))} in one condition; use one of them"
    for bound in ("min", "max"):
        if bound in table and (isinstance(table[bound], bool) or not isinstance(table[bound], int | float)):
            return f"{keyword}: {bound} must be a number, not {table[bound]!r}"
        if bound in table and isnan(table[bound]):
            return f"{keyword}: {bound} must be a number, not nan"
    if table.get("min", float("-inf")) > table.get("max", float("inf")):
        return f"{keyword}: min {table['min']} is above max {table['max']}"
    for flag in ("absent", "present"):
        if flag in table and table[flag] is not True:
            other = "present" if flag == "absent" else "absent"
            return f"{keyword}: write {{{flag} = true}} or {{{other} = true}}"
    if "regex" in table:
        if not isinstance(table["regex"], str):
            return f"{keyword}: regex must be a text, not {table['regex']!r}"
        if why_not := why_no_expression(table["regex"]):
            return f"{keyword}: regex '{table['regex']}' is not valid: {why_not}"
    return None


def why_no_expression(pattern: str) -> str | None:
    """None, or why RE2 does not take it: an engine whose time grows with the text alone, whatever the pattern."""
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(f"(?i){pattern}", options)
    except re2.error as error:
        words = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        return f"{words}; look-ahead, look-behind and back references are not known"
    return None


PRIORITIES = {"stat": 1, "routine": 5}  # lower runs first


class OfKind(Settings):
    """A finding of a kind. One whose size in millimetres nobody knows is not known to be smaller."""

    kinds: Annotated[tuple[str, ...], Field(strict=False)] = ()  # as reports call them: "Nodule"; none: of any
    min_size_mm: Annotated[float, Field(ge=0, le=10000)] = 0.0  # of the largest; mean diameter, else long axis
    # what is suggested of it, or its class: "Lung-RADS 4A", "BI-RADS 4C", "malignant"; none: whatever is
    categories: Annotated[tuple[str, ...], Field(strict=False)] = ()


class Also(OfKind):
    """[[route.also]]: who gets the results of a route as well, if a finding of a kind is among them."""

    send_to: Names  # names of peers


class Needs(Settings):
    """[route.needs]: other series of the same study that a route waits for, once a series has matched it."""

    # of each such series what `match` is of the route's own; each must be another one
    series: Annotated[tuple[dict[str, Any], ...], Field(strict=False, min_length=1, max_length=16)]
    wait_minutes: Annotated[float, Field(gt=0, le=10080)] = 60.0  # from the closing of the series that matched
    if_incomplete: Literal["skip", "run"] = "skip"  # what is done when they have not come by then


class Route(Settings):
    """[[route]]: which series goes to which pipeline, and where its results go. Every matching route makes a job."""

    name: str = Field(min_length=1)
    match: dict[str, Any]  # DICOM keyword -> condition; all must hold
    pipeline: str  # "lung-nodule", "breast-us"
    send_to: Names  # names of peers
    hours: str = ""  # local times at which what is not urgent may run: "19:00-07:00"; none: at any
    also: Annotated[tuple[Also, ...], Field(strict=False)] = ()  # further ones, for results with a finding of a kind
    priority: Literal["routine", "stat"] = "routine"  # routine: unless the images name another one
    priors: str | None = None  # the peer to ask for earlier studies of the patient; none: nothing is compared
    options: dict[str, Any] = Field(default_factory=dict)  # handed to the pipeline as they are
    report_not_run: bool = False  # a series that is refused gets a report that says why
    # it runs behind all others and its results are kept, but nothing of it is sent to anybody, whatever send_to says
    shadow: bool = False
    needs: Needs | None = None
    fallback: bool = False  # only for a series that no other route takes

    @field_validator("hours")
    @classmethod
    def _are_hours(cls, text: str) -> str:
        if text:
            Hours.of(text)
        return text

    @model_validator(mode="after")
    def _stat_has_no_hours(self) -> Route:
        if self.hours and self.priority == "stat":
            raise ValueError(
                "hours are for what is not urgent, and priority = 'stat' waits for none; remove one of them"
            )
        return self

    @property
    def priority_number(self) -> int:
        return PRIORITIES[self.priority]

    @property
    def destinations(self) -> tuple[str, ...]:
        """Every peer that its results may go to."""
        return tuple(dict.fromkeys((*self.send_to, *(name for also in self.also for name in also.send_to))))


About = Literal[
    "node", "jobs", "destination", "disk", "certificate", "silence", "pause", "heartbeat", "drift", "finding"
]


def _no_url(url: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", url.get_secret_value()):
        raise ValueError("is no address for Apprise, such as mailtos://user:password@host?to=somebody@example.org")
    return url


class Notify(OfKind):
    """[[notify]]: who is told when something needs a person, and of what. Never of who a patient is."""

    name: str = Field(min_length=1, max_length=56)  # the ledger notes it with a word before
    # where to, as Apprise has it: mail, chat, pager, webhook; they hold secrets
    urls: Annotated[tuple[Annotated[SecretStr, AfterValidator(_no_url)], ...], Field(strict=False, min_length=1)]
    urls_file: RelativePath | None = None  # a file that holds one of them and nothing else
    about: Annotated[tuple[About, ...], Field(strict=False, min_length=1)] = (
        *("node", "jobs", "destination", "disk", "certificate", "silence", "pause", "heartbeat", "drift"),
    )
    again_h: Annotated[float, Field(gt=0, le=8760)] = 24.0  # what lasts is said again no more often
    down_min: Annotated[float, Field(gt=0, le=525600)] = 30.0  # a destination that takes nothing for so long
    full_in_days: Annotated[float, Field(ge=0, le=36525)] = 7.0  # the disk, by the forecast
    certificate_days: Annotated[int, Field(ge=0, le=36525)] = 14  # before a certificate of the node ends
    paused_h: Annotated[float, Field(ge=0, le=8760)] = 12.0  # something that is paused for so long may be forgotten
    # "finding" is told of these, and of the kinds of OfKind; none: of all
    pipelines: Annotated[tuple[str, ...], Field(strict=False)] = ()


class Config(Settings):
    """A settings file as a whole, checked, with its paths made absolute."""

    node: Node = Node()
    receive: Receive = Receive()
    tls: Tls = Tls()
    web: Web = Web()
    oidc: Oidc = Oidc()
    audit: Audit = Audit()
    traces: Traces = Traces()
    database: Database = Database()
    store: Store = Store()
    assemble: Assemble = Assemble()
    jobs: Jobs = Jobs()
    infer: Infer = Infer()
    priors: Priors = Priors()
    retention: Retention = Retention()
    heartbeat: Heartbeat = Heartbeat()
    drift: Drift = Drift()
    peers: tuple[Peer, ...] = Field((), alias="peer", strict=False)
    routes: tuple[Route, ...] = Field((), alias="route", strict=False)
    notices: tuple[Notify, ...] = Field((), alias="notify", strict=False)

    def peer(self, name: str) -> Peer:
        """Raises KeyError for a name that is not in the settings."""
        return {peer.name: peer for peer in self.peers}[name]

    @property
    def others_reach_the_pages(self) -> bool:
        """Programs of other machines, where nothing in between keeps them out."""
        return not is_loopback(self.node.web_host)

    def resolved(self, folder: Path) -> Config:
        """The same settings with every relative path taken from `folder`, and the place of the database filled in."""
        data_dir = (folder / self.node.data_dir.expanduser()).resolve()
        url = self.database.url.replace("{data_dir}", data_dir.as_posix())
        if url.startswith("sqlite:///"):
            url = f"sqlite:///{(folder / url.removeprefix('sqlite:///')).resolve().as_posix()}"
        return self.model_copy(
            update={
                "node": self.node.model_copy(update={"data_dir": data_dir}),
                "database": self.database.model_copy(update={"url": url}),
                "store": self.store.model_copy(update=_absolute(self.store, folder, ("secret_access_key_file", "ca"))),
                "tls": self.tls.model_copy(
                    update=_absolute(self.tls, folder, ("own_certificate", "own_key", "trusted"))
                ),
                "web": self.web.model_copy(update=_absolute(self.web, folder, ("certificate", "key"))),
                "oidc": self.oidc.model_copy(update=_absolute(self.oidc, folder, ("client_secret_file", "issuer_ca"))),
                "audit": self.audit.model_copy(update=_absolute(self.audit, folder, SYSLOG_FILES)),
                "traces": self.traces.model_copy(update=_absolute(self.traces, folder, ("headers_file", "ca"))),
                "peers": tuple(
                    peer.model_copy(update=_absolute(peer, folder, ("folder", "dicomweb_ca"))) for peer in self.peers
                ),
            }
        )


def _absolute(settings: Settings, folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    paths: dict[str, Path | None] = {name: getattr(settings, name) for name in names}
    return {name: (folder / path.expanduser()).resolve() for name, path in paths.items() if path is not None}


def is_keyword_path(path: str) -> bool:
    """Is it a DICOM keyword, or keywords of sequences and a last one joined by dots?"""
    return all(tag_for_keyword(part) is not None for part in path.split("."))
