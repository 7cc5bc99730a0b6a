"""`make demo`: a synthetic chest CT and a synthetic breast ultrasound go through the whole node, over real DICOM.

The node runs in a process of its own, exactly as a hospital would start it. Nothing here is shown that did not come
back from it: the table compares the SEG and SR files it wrote with the truth of the phantoms.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pydicom
from PIL import Image
from pydicom import Dataset
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from dicom_sr import codes
from dicom_sr.findings import Finding, ImageRef
from dicom_sr.read import findings
from models.phantoms import Lesion, Truth, breast_ultrasound, chest_ct

NOT_FOR_DIAGNOSIS = "Research use only, not for diagnostic use. Both patients are synthetic."
SEED = 7
PATIENCE_S = 600.0
LUNG_WINDOW_HU = (-1350.0, 150.0)

SETTINGS = """\
[node]
ae_title = "PACSNODE"
dicom_host = "127.0.0.1"
dicom_port = {dicom_port}
web_port = {web_port}
data_dir = "data"

[receive]
keep_free_gb = 0.5

[assemble]
quiet_s = 1.0

[[peer]]
name = "scanner"
ae_title = "SCANNER"
may_send = true

{destination}

[[route]]
name = "chest CT"
match = {{ Modality = "CT" }}
pipeline = "lung-nodule"
send_to = ["results"]

[[route]]
name = "breast ultrasound"
match = {{ Modality = "US", BodyPartExamined = "BREAST" }}
pipeline = "breast-us"
send_to = ["results"]
"""

FOLDER = """\
[[peer]]
name = "results"
folder = "results"
"""

ORTHANC = """\
[[peer]]
name = "results"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
may_send = true
"""


def run(folder: Path, console: Console, *, orthanc: bool = False) -> int:
    """0 when most of the phantoms' lesions came back as findings, else 1."""
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console.print(f"[bold]pacs-node demo[/bold]: {NOT_FOR_DIAGNOSIS}")

    console.print("1. Making a chest CT and a breast ultrasound with known truth ...")
    truths = {
        "chest CT": chest_ct(folder / "images" / "ct", seed=SEED),
        "breast ultrasound": breast_ultrasound(folder / "images" / "us", seed=SEED),
    }
    with contextlib.ExitStack() as stack:
        pacs = stack.enter_context(DemoOrthanc(folder / "orthanc")) if orthanc else None
        node = stack.enter_context(DemoNode(folder, pacs))
        if pacs is not None:
            pacs.register(node)
        console.print("2. Sending them to the node by C-STORE, as a scanner or PACS would ...")
        for truth in truths.values():
            node.send(truth.files)
        console.print(f"3. Waiting for the results; the same facts as a page: {node.url}/")
        for truth in truths.values():
            node.finish(_header(truth.files[0]).SeriesInstanceUID, console)
        results = pacs.results() if pacs is not None else sorted((folder / "results").rglob("*.dcm"))
    return _show(folder, console, truths, [pydicom.dcmread(path) for path in results], results)


class DemoNode:
    """`pacs-node serve` in a process of its own, on free ports."""

    def __init__(self, folder: Path, pacs: DemoOrthanc | None) -> None:
        self.folder = folder
        self.dicom_port, self.web_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{self.web_port}"
        self.settings = folder / "node.toml"
        destination = FOLDER if pacs is None else ORTHANC.format(port=pacs.dicom_port)
        self.settings.write_text(
            SETTINGS.format(dicom_port=self.dicom_port, web_port=self.web_port, destination=destination)
        )

    def __enter__(self) -> DemoNode:
        with (self.folder / "node.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pacs_node.cli", "serve", "--config", str(self.settings)], stdout=log, stderr=log
            )
        _until(lambda: _answers(f"{self.url}/health"), self.process, "the node to start")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def send(self, files: Sequence[Path]) -> None:
        """By our own `pacs-node send`, over the network."""
        receiver = f"PACSNODE@127.0.0.1:{self.dicom_port}"
        command = [sys.executable, "-m", "pacs_node.cli", "send", str(files[0].parent), "--to", receiver]
        subprocess.run([*command, "--aet", "SCANNER"], check=True)

    def finish(self, series_uid: str, console: Console) -> None:
        """Wait until every job of the series has ended, showing what it does."""
        with console.status("") as status:

            def ended() -> bool:
                answer = httpx.get(f"{self.url}/api/series/{series_uid}", timeout=20)
                if answer.status_code != 200:
                    return False
                facts = answer.json()
                running = [job for job in facts["jobs"] if job["state"] in ("queued", "waiting", "running")]
                for job in running[:1]:
                    status.update(f"   {job['kind']} {job['pipeline']}: {job['progress']:.0%} {job['progress_text']}")
                return facts["state"] == "closed" and not running

            _until(ended, self.process, "the results")
        facts = httpx.get(f"{self.url}/api/series/{series_uid}", timeout=20).json()
        console.print(f"   {facts['modality']}: closed because {facts['closed_because']}; {facts['verdict']['reason']}")
        if not facts["jobs"]:
            reasons = "; ".join(f"{rule['rule']}: {rule['why_not']}" for rule in facts["rules"])
            raise SystemExit(f"no route took the {facts['modality']} series: {reasons}")
        for job in facts["jobs"]:
            seconds = f" in {job['facts']['seconds']} s on {job['facts']['device']}" if job["facts"] else ""
            console.print(f"   {job['kind']} {job['pipeline']}: {job['state']}, {job['reason']}{seconds}")


class DemoOrthanc:
    """A real Orthanc (Debian package `orthanc`) as the PACS, on free ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dicom_port, self.http_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"

    def __enter__(self) -> DemoOrthanc:
        program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
        if program is None:
            raise SystemExit("Orthanc is not installed; install the Debian package `orthanc`, or run without ORTHANC=1")
        self.folder.mkdir(parents=True)
        settings = {
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "DicomAet": "ORTHANC",
            "DicomPort": self.dicom_port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        with (self.folder / "orthanc.log").open("wb") as log:
            self.process = subprocess.Popen([program, str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        _until(lambda: _answers(f"{self.url}/system"), self.process, "Orthanc to start")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def register(self, node: DemoNode) -> None:
        """Tell the PACS about the node, as its administrator would."""
        from orthanc_rest_client import Orthanc

        modality = {"AET": "PACSNODE", "Host": "127.0.0.1", "Port": node.dicom_port}
        pacs = Orthanc(self.url, warn_insecure=False)
        with contextlib.suppress(ValueError):  # Orthanc answers this call without the JSON that the client waits for
            pacs.update_modality("pacs-node", modality)
        if "pacs-node" not in pacs.get_modalities():
            raise SystemExit("Orthanc did not take the node as a modality; see orthanc.log")

    def results(self) -> list[Path]:
        """Fetch what the PACS now holds of ours."""
        from orthanc_rest_client import Orthanc

        pacs, files = Orthanc(self.url, warn_insecure=False), []
        for instance in pacs.get_instances():
            path = self.folder / f"{instance}.dcm"
            path.write_bytes(httpx.get(f"{self.url}/instances/{instance}/file", timeout=60).content)
            files.append(path)
        return files


# ---- what came back, beside the truth


def _show(
    folder: Path, console: Console, truths: dict[str, Truth], objects: Sequence[Dataset], paths: Sequence[Path]
) -> int:
    table = Table(title="Truth against what the returned SEG and SR say")
    for column in ("study", "true long axis", "found", "measured long axis", "overlap (Dice)", "certainty"):
        table.add_column(column)
    found_count = total = 0
    pictures: list[Path] = []
    for name, truth in truths.items():
        headers = [_header(file) for file in truth.files]
        mine = [each for each in objects if each.StudyInstanceUID == headers[0].StudyInstanceUID]
        images = [ImageRef(str(header.SOPClassUID), str(header.SOPInstanceUID)) for header in headers]
        report = next((each for each in mine if each.Modality == "SR"), None)
        if report is None:
            raise SystemExit(f"no report came back for the {name}; see {folder / 'node.log'}")
        said = findings(report, [each for each in mine if each.Modality == "SEG"], images).findings
        matched = set()
        for lesion in truth.lesions:
            total += 1
            best = max(said, key=lambda finding: dice(lesion, finding), default=None)
            if best is None or not dice(lesion, best):
                table.add_row(name, f"{lesion.long_axis_mm:.1f} mm", "[red]missed", "", "", "")
                continue
            found_count += 1
            matched.add(best.number)
            table.add_row(name, f"{lesion.long_axis_mm:.1f} mm", *_row(best), f"{dice(lesion, best):.2f}", _sure(best))
        extra = [finding for finding in said if finding.number not in matched]
        if extra:
            surest = max(extra, key=lambda finding: finding.certainty)
            table.add_row(name, "[yellow]nothing there", f"{len(extra)} false marks", "", "", f"up to {_sure(surest)}")
        pictures.append(_picture(folder / f"{name.replace(' ', '-')}.png", truth, said))
    console.print(table)
    for path in (*paths, *pictures):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]{found_count} of {total} lesions found.[/bold] {NOT_FOR_DIAGNOSIS}")
    return 0 if found_count * 2 > total else 1


def dice(lesion: Lesion, finding: Finding) -> float:
    """Overlap of truth and answer, 0..1; both masks lie on the source grid with an offset of their own."""
    true, said = _box(lesion), _box(finding)
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(true, said, strict=True))
    if any(part.stop <= part.start for part in both):
        return 0.0
    shared = np.logical_and(_part(lesion, both), _part(finding, both)).sum()
    return float(2 * shared / (lesion.mask.sum() + finding.mask.sum()))


def _box(thing: Lesion | Finding) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(thing.offset_zyx, thing.mask.shape, strict=True))


def _part(thing: Lesion | Finding, box: tuple[slice, ...]) -> np.ndarray:
    return thing.mask[tuple(slice(b.start - o, b.stop - o) for b, o in zip(box, thing.offset_zyx, strict=True))]


def _row(finding: Finding) -> tuple[str, str]:
    long_axis = next((m for m in finding.measurements if m.name == codes.LONG_AXIS), None)
    return finding.label, f"{long_axis.value:.1f} {long_axis.unit.value}" if long_axis else ""


def _sure(finding: Finding) -> str:
    return f"{finding.certainty:.0%}"


def _picture(path: Path, truth: Truth, said: Sequence[Finding]) -> Path:
    """The image of the largest lesion: the truth in green, what came back in red, both in yellow."""
    largest = max(truth.lesions, key=lambda lesion: lesion.mask.sum())
    z = largest.offset_zyx[0] + int(largest.mask.sum(axis=(1, 2)).argmax())
    dataset = pydicom.dcmread(truth.files[z])
    pixels = dataset.pixel_array.astype(float)
    if dataset.Modality == "CT":
        hu = pixels * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        pixels = (hu - LUNG_WINDOW_HU[0]) / (LUNG_WINDOW_HU[1] - LUNG_WINDOW_HU[0]) * 255
    grey = np.clip(pixels, 0, 255).astype(np.uint8)
    picture = np.stack([grey] * 3, axis=-1)
    for channel, things in ((1, truth.lesions), (0, said)):
        edge = np.zeros(grey.shape, bool)
        for thing in things:
            rows, columns = _box(thing)[1:]
            if thing.offset_zyx[0] <= z < thing.offset_zyx[0] + thing.mask.shape[0]:
                mask = np.zeros(grey.shape, bool)
                mask[rows, columns] = thing.mask[z - thing.offset_zyx[0]]
                edge |= mask & ~ndimage.binary_erosion(mask)
        if channel == 1:
            picture[edge] = 0
        picture[edge, channel] = 255
        picture[edge, 2] = 0
    Image.fromarray(picture).save(path)
    return path


# ---- small things


def _header(path: Path) -> Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True)


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _until(true: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if process.poll() is not None:
            raise SystemExit(f"waiting for {what}: the process ended with {process.returncode}; see the .log files")
        if time.monotonic() > deadline:
            raise SystemExit(f"waiting for {what}: nothing within {PATIENCE_S:g} s; see the .log files")
        time.sleep(0.2)
