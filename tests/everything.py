"""A node that has everything that pages can show: made once for all who look at it in a browser.

Phantoms, received, judged and routed as they would be; findings are what the phantoms truly hold.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from dicom_sr.findings import Algorithm
from models.phantoms import chest_ct
from pacs_node.accounts import ADMIN, READER, Accounts
from pacs_node.records import REFUSAL_KINDS, Feedback, Job, Refusal
from tests.factories import us_image
from tests.harness import free_port, wait_for
from tests.results import mass, us_findings
from tests.viewers import Seen, chest, served

PASSWORD = "a long enough secret"
TOML = """
[node]
data_dir = "data"
[infer]
tune = false
[web]
viewer_url = "https://ohif.example/viewer?StudyInstanceUIDs={{study}}"
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
may_send = true
calls_from = ["127.0.0.1"]
[[peer]]
name = "archive"
dicomweb_url = "http://127.0.0.1:{port}/dicom-web"
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "chest"
match = {{ Modality = "CT" }}
pipeline = "lung-nodule"
send_to = ["results", "pacs"]
[[route]]
name = "breast"
match = {{ Modality = "US", Manufacturer = {{ regex = "." }} }}
pipeline = "breast-us"
send_to = ["results"]
priority = "stat"
[[route]]
name = "breast, tried"
match = {{ Modality = "US", Manufacturer = {{ regex = "." }} }}
pipeline = "breast-us"
send_to = ["results"]
shadow = true
[[route]]
name = "chest, tried"
match = {{ Modality = "CT", SliceThickness = {{ max = 1 }} }}
pipeline = "lung-nodule"
send_to = ["results"]
shadow = true
"""


class Everything(Seen):
    """`series`: what it is for -> its UID."""

    sends = True

    def __init__(self, folder: Path, *, size: int = 64, toml: str = TOML) -> None:
        # results go to a folder, and fail at a PACS that nobody has started
        truth, findings = chest(folder / "chest", size=size, spacing_mm=(6.0, 360 / size, 360 / size))
        self.pacs_port = free_port()
        super().__init__(folder, truth.files, findings, toml.format(port=self.pacs_port))
        assert self.node.settings is not None
        self.node.settings.started()
        self.series = {"chest CT": self.uid}
        self.accounts = Accounts(self.node.ledger, self.now)
        self.accounts.add("ana", ADMIN, PASSWORD)
        self.accounts.add("rita", READER, PASSWORD)
        self._of_breast(folder / "breast")
        self._unfit(folder / "few slices")
        self._failed(folder / "failed")
        self._waiting(folder / "waiting")
        self._of_no_route(folder / "dropped")
        self._refusals()
        self._history()
        assert self.facts.pause("destination", "archive", "ana", "it is being upgraded") is None

    def _took(self, what: str, files: list[Path], sender: str = "CT1") -> Job | None:
        self.files, self.sender = files, sender
        self._receive()
        self.series[what] = self.uid
        jobs = [each for each in self.node.ledger.open_jobs() if each.series_uid == self.uid and each.kind == "infer"]
        return jobs[0] if jobs else None

    def _of_breast(self, folder: Path) -> None:
        folder.mkdir()
        image = us_image(folder, shape=(300, 400))
        self._took("breast ultrasound", sorted(folder.iterdir()), "US2")
        job = self._work(us_findings([image], mass(1, (0, 112, 120))))
        newer = Algorithm("pacs-node breast-us", "0.2.0+9c0d1e2f")
        self._work(us_findings([image], mass(1, (0, 113, 121)), mass(2, (0, 40, 300)), algorithm=newer), shadow=True)
        assert self.facts.findings(self.uid, 60)["state"] == "ready"  # type: ignore[index]
        self.node.ledger.note_feedback(Feedback(self.now(), "rita", self.uid, job.id, "agree", 1, "Mass 1", None))
        self.node.ledger.note_feedback(Feedback(self.now(), "ana", self.uid, job.id, "wrong-size", 1, "Mass 1", None))

    def _unfit(self, folder: Path) -> None:
        job = self._took("CT of too few slices", _ct(folder, seed=7)[:3])
        assert job is not None
        self.node.flow.run(job.id, job.generation, job.attempt)

    def _failed(self, folder: Path) -> None:
        job = self._took("failed CT", _ct(folder))
        assert job is not None
        assert self.node.ledger.begin(job, "w", self.now())
        assert self.node.ledger.finish(job, "failed", "the inference process died (signal 9)", self.now())

    def _waiting(self, folder: Path) -> None:
        for name in ("running", "queued"):
            job = self._took(f"{name} CT", _ct(folder / name, seed=len(name)))
            assert job is not None
            if name == "running":
                assert self.node.ledger.begin(job, "w", self.now())
                self.node.ledger.progress(job, 0.4, "window 12 of 30")

    def _of_no_route(self, folder: Path) -> None:
        folder.mkdir()
        us_image(folder, name="other", Manufacturer=None)
        assert self._took("of no route", sorted(folder.iterdir()), "US2") is None

    def _refusals(self) -> None:
        for kind in REFUSAL_KINDS:
            self.node.ledger.note_refusal(Refusal(kind, self.now(), "CT9", "10.0.0.9", f"why: {kind}", "1.2.3", "1.2"))

    def _history(self) -> None:
        desk = self.node.desk()
        assert desk is not None
        text = desk.entry("peer", "pacs").replace("may_send = true", 'may_send = true\nconfirm = "query"')
        desk.save("peer", "pacs", text, desk.state()["digest"], "ana")

    def served(self) -> AbstractContextManager[str]:
        """To ana, an admin, and rita, a reader."""
        return served(self.app(self.accounts))

    def ready(self) -> None:
        """What is looked at has been made, and the audit trail written."""
        self.node.audit.flush()
        for uid in (self.series["chest CT"], self.series["breast ultrasound"]):
            for made in (self.facts.findings, self.facts.volume):
                wait_for(lambda made=made, uid=uid: made(uid, 1.0)["state"] != "preparing", 120, "what is looked at")


def _ct(folder: Path, seed: int = 4) -> list[Path]:
    return list(chest_ct(folder, seed=seed, slices=24, size=64, spacing_mm=(8.0, 5.6, 5.6), nodules=1).files)
