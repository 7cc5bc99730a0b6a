"""A node with one series and its results, as if both had come by the usual way, for tests of what is looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from config import load
from dicom_sr.findings import Findings
from dicom_sr.reading import read_header
from models import catalogue
from models.measure import measure_nodule
from models.phantoms import chest_ct
from models.phantoms.truth import Truth
from models.read import read_ct
from pacs_node.accounts import Accounts
from pacs_node.encode import encode_results
from pacs_node.facts import NodeFacts
from pacs_node.node import Node
from pacs_node.records import Edition, Evidence, Instance, Job, OpenSeries, Result
from pacs_node.web.app import create_app
from tests.harness import free_port, wait_for
from tests.results import ct_findings, nodule

TOML = """
[node]
data_dir = "data"
[infer]
tune = false
[web]
viewer_url = "https://ohif.example/viewer?StudyInstanceUIDs={study}"
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "chest"
match = { Modality = "CT" }
pipeline = "lung-nodule"
send_to = ["results"]
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["results"]
"""


class Seen:
    """files: of one series. findings: None while it waits for its inference."""

    sender = "CT1"
    sends = False  # do results go on to their destinations?

    def __init__(self, folder: Path, files: Sequence[Path], findings: Findings | None, toml: str = TOML) -> None:
        (folder / "node.toml").write_text(toml)
        self.time = datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC)
        self.folder, self.files, self.findings = folder, list(files), findings
        self.node = Node(load(folder / "node.toml", catalogue()), now=self.now, file=folder / "node.toml")
        self.node.ledger.migrate()
        self.facts = NodeFacts(self.node)
        self._receive()
        self.job = self._work(findings) if findings is not None else None

    def now(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time

    def _receive(self) -> None:
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in self.files]
        self.uid, self.study_uid = str(headers[0].SeriesInstanceUID), str(headers[0].StudyInstanceUID)
        for path, header in zip(self.files, headers, strict=True):
            uids = str(header.SOPInstanceUID), str(header.SOPClassUID), self.uid, self.study_uid
            syntax = str(header.file_meta.TransferSyntaxUID)
            self.node.ledger.take_in(Instance(*uids, syntax, path, path.stat().st_size, self.now(), "a", self.sender))
        self._close(len(headers))

    def _close(self, arrived: int) -> None:
        series = OpenSeries(self.uid, self.study_uid, Evidence(self.now(), arrived), (self.sender,))
        self.node.flow.close(series, "quiet")

    def _work(self, findings: Findings, *, shadow: bool = False) -> Job:
        ledger = self.node.ledger
        [job] = [each for each in ledger.open_jobs() if each.kind == "infer" and each.shadow == shadow]
        self.results = self._encoded(job, findings)
        edition = Edition(1, 1, findings.algorithm.version, True, self.now(), objects=tuple(self.results))
        assert ledger.begin(job, "w", self.now())
        count = f"{len(findings.findings)} finding{'' if len(findings.findings) == 1 else 's'}"
        follow_up = [self.node.flow._send_job(job, name) for name in job.send_to if self.sends]
        files = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in self.files}
        said = {"results": self.results, "edition": edition, "places": self.node.stages.places(findings, files)}
        assert ledger.finish(job, "done", count, self.now(), **said, follow_up=follow_up)
        for send in follow_up:
            self.node.flow.run(send.id, send.generation, send.attempt)
        return job

    def _encoded(self, job: Job, findings: Findings) -> list[Result]:
        folder = self.node.config.node.data_dir / "results" / job.id / "1"
        headers = [read_header(file) for file in self.files]
        return encode_results(findings, headers, folder, when=self.now(), revision=1)

    def app(self, accounts: Accounts | None = None) -> Starlette:
        return create_app(
            self.facts, CollectorRegistry(), ("testserver",), accounts, self.node.audit, desk=self.node.desk()
        )

    def served(self) -> AbstractContextManager[str]:
        """Its pages, at this address."""
        return served(self.app())

    def close(self) -> None:
        self.node.viewing.close()
        self.node.ledger.close()


@contextmanager
def served(app: Starlette, port: int = 0, **how: Any) -> Iterator[str]:
    """An application as browsers have it, at this address. how: of uvicorn.Config, such as a certificate."""
    port = port or free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", **how))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, 60, "the pages")
        yield f"{'https' if 'ssl_certfile' in how else 'http'}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def chest(
    folder: Path, *, orientation: str = "HFS", nodules: int = 2, seed: int = 11, **more: object
) -> tuple[Truth, Findings]:
    """A small chest CT, and the findings that it truly holds."""
    settings = {"slices": 24, "size": 200, "spacing_mm": (6.0, 1.8, 1.8), **more}
    truth = chest_ct(folder, seed=seed, orientation=orientation, order="shuffled", nodules=nodules, **settings)  # type: ignore[arg-type]
    volume = read_ct(truth.files)
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in truth.files]
    found = []
    for number, lesion in enumerate(truth.lesions, 1):
        sizes = measure_nodule(lesion.mask, lesion.offset_zyx, volume)
        found.append(
            replace(
                nodule(number, lesion.offset_zyx, lesion.mask, laterality=None),
                key_image=sizes.key_image,
                long_axis=sizes.long_axis,
                short_axis=sizes.short_axis,
                measurements=sizes.measurements,
            )
        )
    return truth, ct_findings(images, *found)
