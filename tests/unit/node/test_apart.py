"""A series on machines that share nothing but the ledger and a bucket: each step of each job on another one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest

from config import load
from models import catalogue
from pacs_node.errors import GiveUp, Refused, StoreAway
from pacs_node.fsck import faults
from pacs_node.node import Node
from pacs_node.pack import Pack
from pacs_node.records import CommitmentRequest, Evidence, Instance, OpenSeries
from tests.factories import us_image
from tests.fault.test_stages import CountedInference, Saying, raising
from tests.harness import ObjectServer

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TOML = """
[node]
data_dir = "data"
[database]
url = "sqlite:///../node.sqlite"
[store]
kind = "s3"
bucket = "images"
endpoint = "{url}"
prefix = "{prefix}"
access_key_id = "node"
secret_access_key_file = "../key"
[[peer]]
name = "results"
folder = "../delivered"
[[route]]
name = "breast"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["results"]
report_not_run = true
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with ObjectServer(tmp_path_factory.mktemp("store")) as server:
        yield server


class Apart:
    """One that receives, and for every attempt of a job a worker with an empty disk."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        (folder / "key").write_text("secret-of-the-node\n")
        self.inference = CountedInference()
        self.receiver = self.machine("receiver")
        self.receiver.ledger.migrate()
        self.machines = [self.receiver]
        self.left: list[str] = []  # files that workers kept

    def machine(self, name: str) -> Node:
        home = self.folder / name
        home.mkdir()
        (home / "node.toml").write_text(TOML.format(url=self.url, prefix=self.folder.name))
        node = Node(load(home / "node.toml", catalogue()), now=lambda: NOW)
        node.stages.inference = self.inference  # type: ignore[assignment]
        node.stages.arrival_check = lambda destination: Saying()  # type: ignore[method-assign,assignment,return-value]
        node.stages.receives = name == "receiver"
        return node

    def take_in(self, images: int = 2) -> OpenSeries:
        digest = hashlib.sha256(str(us_image(name="first").SeriesInstanceUID).encode()).hexdigest()
        folder = self.receiver.config.node.data_dir / "spool" / "instances" / digest
        folder.mkdir()
        pack = Pack(folder / "0.pack")
        for number in range(1, images + 1):
            image = us_image(name="first", number=number)
            image.save_as(self.folder / "image.dcm", enforce_file_format=True)
            record = pack.begin()
            record.write((self.folder / "image.dcm").read_bytes())
            record.keep(NOW, "a")
            uids = [str(image[key].value) for key in UIDS]
            known = Instance(*uids, "1.2.840.10008.1.2.1", pack.path, record.size, NOW, "a", "US1", record.offset)  # type: ignore[call-arg]
            self.receiver.ledger.take_in(known)
        pack.close()
        return OpenSeries(uids[2], uids[3], Evidence(NOW, images), ("US1",))

    def close(self, series: OpenSeries) -> None:
        self.receiver.assembler._close(series, "quiet")

    def run(self, change: Any = lambda worker: None) -> dict[str, Any]:
        """Every open job, each attempt on a machine of its own. change: something about each of them."""
        for number in range(20):
            jobs = self.receiver.ledger.open_jobs()
            if not jobs:
                break
            worker = self.machine(f"worker{number}")
            change(worker)
            worker.flow.run(jobs[0].id, jobs[0].generation, jobs[0].attempt)
            data = worker.config.node.data_dir
            self.left += [str(file.relative_to(data)) for file in data.rglob("*") if file.is_file()]
            worker.stop()
            shutil.rmtree(self.folder / f"worker{number}")
        [uid] = self.receiver.ledger.series_uids()
        return {job["kind"]: job for job in self.receiver.ledger.series(uid)["jobs"]}


UIDS = "SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID"


@pytest.fixture
def apart(server: ObjectServer, tmp_path: Path) -> Iterator[Apart]:
    apart = Apart(tmp_path, server.url)
    yield apart
    apart.receiver.stop()


def test_every_step_of_a_series_may_be_on_another_machine(apart: Apart) -> None:
    apart.close(apart.take_in())
    jobs = apart.run()
    assert {kind: job["state"] for kind, job in jobs.items()} == dict.fromkeys(("infer", "send", "confirm"), "done")
    delivered = [pydicom.dcmread(file) for file in (apart.folder / "delivered").rglob("*.dcm")]
    assert [each.Modality for each in delivered] == ["SR"], "nothing was found"
    assert apart.left == []
    config = apart.receiver.config
    assert list(faults(config.node.data_dir, apart.receiver.ledger, apart.receiver.stages.store)) == []
    [*_, result] = apart.receiver.ledger.every_object()
    apart.receiver.stages.store.delete(result.path)
    [lost] = faults(config.node.data_dir, apart.receiver.ledger, apart.receiver.stages.store)
    assert (lost.kind, result.sop_instance_uid in lost.words) == ("lost", True)


def test_what_was_inferred_on_one_is_not_inferred_again_on_another(apart: Apart) -> None:
    apart.close(apart.take_in())
    [job] = apart.receiver.ledger.open_jobs()
    first = apart.machine("first")
    first.stages.encode = raising(ConnectionResetError(104, "reset"))  # type: ignore[method-assign]
    first.flow.run(job.id, job.generation, job.attempt)
    first.stop()
    assert apart.run()["confirm"]["state"] == "done"
    assert len(apart.inference.runs) == 1


def test_a_series_that_is_not_fit_is_reported_from_another_machine(apart: Apart) -> None:
    apart.close(apart.take_in())

    def unfit(worker: Node) -> None:
        worker.flow._input = raising(Refused("gantry tilt of 12.0 degrees"))  # type: ignore[method-assign]

    jobs = apart.run(unfit)
    assert {kind: job["state"] for kind, job in jobs.items()} == {"infer": "refused", "send": "done", "confirm": "done"}
    [report] = [pydicom.dcmread(file) for file in (apart.folder / "delivered").rglob("*.dcm")]
    assert report.Modality == "SR"
    assert apart.left == []


def test_objects_that_another_machine_held_back_are_shown(apart: Apart) -> None:
    apart.close(apart.take_in())

    def spoilt(worker: Node) -> None:
        def encode(job: Any, *_: Any) -> Any:
            with worker.stages._rejects(job) as folder:
                folder.mkdir(parents=True)
                (folder / "01-SR.dcm").write_bytes(b"a report that is none")
                raise GiveUp("it fails its own checks")

        worker.stages.encode = encode  # type: ignore[method-assign]

    job = apart.run(spoilt)["infer"]
    assert (job["state"], job["reason"]) == ("failed", "it fails its own checks")
    folder = apart.receiver.rejected(job["id"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"01-SR.dcm": b"a report that is none"}


def test_a_commitment_is_judged_where_the_images_are_or_waits_for_them(apart: Apart) -> None:
    series = apart.take_in()
    wanted = tuple(
        (each.sop_class_uid, each.sop_instance_uid) for each in apart.receiver.ledger.instances(series.series_uid)
    )
    request = CommitmentRequest("2.25.1", "US1", wanted)
    worker = apart.machine("elsewhere")
    assert apart.receiver.stages.judge_commitment(request).committed == wanted
    with pytest.raises(StoreAway, match="2 of the images are not shared yet"):
        worker.stages.judge_commitment(request)
    apart.close(series)
    assert worker.stages.judge_commitment(request).committed == wanted
    worker.stop()
