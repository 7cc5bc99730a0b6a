"""`make demo`: two synthetic CTs and a synthetic breast ultrasound go through the whole node, over real DICOM.

The node runs in a process of its own, exactly as a hospital would start it. Nothing here is shown that did not come
back from it: the table compares the SEG and SR files it wrote with the truth of the phantoms. On a terminal its pages
stay until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from rich.console import Console
from rich.table import Table

from dicom_sr import codes
from dicom_sr.findings import Finding, ImageRef
from dicom_sr.outline import outlines
from dicom_sr.read import findings
from models.grid import in_common
from models.phantoms import Lesion, Truth, breast_ultrasound, chest_ct, lymph_node_ct
from models.read import LUNG_WINDOW_HU

NOT_FOR_DIAGNOSIS = "Research use only, not for diagnostic use. All patients are synthetic."
SEED = 7
GIVE_UP_AFTER_S = 1800.0

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

[infer]
tune = false

[[peer]]
name = "scanner"
ae_title = "SCANNER"
may_send = true
calls_from = ["127.0.0.1"]

{destination}

[[route]]
name = "chest CT"
match = {{ Modality = "CT", ContrastBolusAgent = {{ absent = true }} }}
pipeline = "lung-nodule"
send_to = ["results"]

[[route]]
name = "lymph nodes"
match = {{ Modality = "CT", ContrastBolusAgent = {{ present = true }} }}
pipeline = "lymph-node"
send_to = ["results"]
options = {{ experimental = true }}

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
viewer = "ohif"
"""

ORTHANC = """\
[[peer]]
name = "results"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
may_send = true
calls_from = ["127.0.0.1"]
viewer = "ohif"
"""


MARKER = ".pacs-node-demo"  # in a folder that a demo has made
PICTURES = ("chest-CT.png", "mediastinum-CT.png", "breast-ultrasound.png")
MADE = ("data", "images", "results", "orthanc", "node.toml", "node.log", *PICTURES)


def run(folder: Path, console: Console, *, orthanc: bool = False, stay: bool = False) -> int:
    """0 when most of the phantoms' lesions came back as findings, else 1.

    stay   leave the node and its pages running until Ctrl-C, and say their address last
    """
    with _unwound_when_terminated(), own_folder(folder) as folder:
        console.print(f"[bold]pacs-node demo[/bold]: {NOT_FOR_DIAGNOSIS}")

        console.print("1. Making a chest CT, a CT with lymph nodes and a breast ultrasound with known truth ...")
        truths = {
            "chest CT": chest_ct(folder / "images" / "ct", seed=SEED),
            "mediastinum CT": lymph_node_ct(folder / "images" / "nodes", seed=SEED),
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
            outcome = _show(folder, console, truths, [pydicom.dcmread(path) for path in results], results)
            if stay:
                node.stay(console, pacs)
    return outcome


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """The folder, made or emptied for a demo. Only an empty one is taken, or a demo's own, of which only what a demo
    makes is deleted. Raises SystemExit, in words."""
    place = folder.expanduser()
    kind = "a link" if place.is_symlink() else "a file" if place.exists() and not place.is_dir() else None
    if kind is not None:
        raise SystemExit(f"{folder} is {kind}; the demo needs a folder of its own: name another with --folder")
    place = place.resolve()
    if place in (Path.home().resolve(), Path(place.anchor)):
        raise SystemExit(f"{folder} is no folder for a demo: name one that is not there yet with --folder")
    marker = place / MARKER
    try:
        holds = sorted(path.name for path in place.iterdir()) if place.exists() else []
        if holds and not (marker.is_file() and not marker.is_symlink()):
            raise SystemExit(
                f"{folder} holds {holds[0]}{' and more' * (len(holds) > 1)}, and no demo made it: nothing was deleted. "
                "Remove it yourself, or name another folder with --folder"
            )
        place.mkdir(parents=True, exist_ok=True)
        with marker.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in (place / name for name in MADE):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            yield place
    except BlockingIOError:
        raise SystemExit(f"a demo is running in {folder}; end it with Ctrl-C, or name another with --folder") from None


@contextlib.contextmanager
def _unwound_when_terminated() -> Iterator[None]:
    """SIGTERM leaves by the same way as Ctrl-C: no node and no PACS is left running."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def at_a_terminal() -> bool:
    """Does somebody sit before it, who can press Ctrl-C?"""
    return sys.stdout.isatty() and sys.stdin.isatty() and not os.environ.get("CI")


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

    def __enter__(self) -> Self:
        with (self.folder / "node.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pacs_node.cli", "serve", "--config", str(self.settings)], stdout=log, stderr=log
            )
        _until(lambda: _answers(f"{self.url}/health"), self.process, "the node to start")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def stay(self, console: Console, pacs: DemoOrthanc | None) -> None:
        """Until Ctrl-C. The address is the last line."""
        with contextlib.suppress(KeyboardInterrupt):
            if pacs is not None:
                console.print(f"The PACS: {pacs.url}/", soft_wrap=True)
            console.print("The node goes on until Ctrl-C. What it did, and why, is at", soft_wrap=True)
            console.print(f"{self.url}/", soft_wrap=True)
            code = self.process.wait()
            if code:  # 0: it was told to stop, mostly by the same Ctrl-C
                raise SystemExit(f"the node has ended with {code}; see {self.folder / 'node.log'}")

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

    def __enter__(self) -> Self:
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


@dataclass(frozen=True)
class Row:
    """A lesion of the phantom beside what was found there, or a mark where there is nothing."""

    number: int
    lesion: Lesion | None
    found: Finding | None

    @property
    def overlap(self) -> float:
        return dice(self.lesion, self.found) if self.lesion is not None and self.found is not None else 0.0


def _rows(truth: Truth, said: Sequence[Finding]) -> list[Row]:
    """Every lesion with the finding that overlaps it most, then the marks where there is nothing, the surest first."""
    rows = []
    for number, lesion in enumerate(truth.lesions, start=1):
        best = max(said, key=lambda finding: dice(lesion, finding), default=None)
        rows.append(Row(number, lesion, best if best is not None and dice(lesion, best) else None))
    matched = {row.found.number for row in rows if row.found is not None}
    extra = sorted((f for f in said if f.number not in matched), key=lambda f: -(f.certainty or 0.0))
    return rows + [Row(number, None, finding) for number, finding in enumerate(extra, start=len(rows) + 1)]


def _show(
    folder: Path, console: Console, truths: dict[str, Truth], objects: Sequence[Dataset], paths: Sequence[Path]
) -> int:
    table = Table(title="Truth against what the returned SEG and SR say")
    for column in ("study", "lesion", "true long axis", "found", "measured long axis", "overlap (Dice)", "certainty"):
        table.add_column(column)
    found_count = total = 0
    longer: list[float] = []
    pictures: list[Path] = []
    for name, truth in truths.items():
        headers = [_header(file) for file in truth.files]
        mine = [each for each in objects if each.StudyInstanceUID == headers[0].StudyInstanceUID]
        images = [ImageRef(str(header.SOPClassUID), str(header.SOPInstanceUID)) for header in headers]
        report = next((each for each in mine if each.Modality == "SR"), None)
        if report is None:
            raise SystemExit(f"no report came back for the {name}; see {folder / 'node.log'}")
        rows = _rows(truth, findings(report, [each for each in mine if each.Modality == "SEG"], images).findings)
        for row in (row for row in rows if row.lesion is not None):
            assert row.lesion is not None
            total += 1
            true = f"{row.lesion.long_axis_mm:.1f} mm"
            if row.found is None:
                table.add_row(name, str(row.number), true, "[red]missed", "", "", "")
                continue
            found_count += 1
            long_mm = _long_axis(row.found)
            if name == "chest CT" and long_mm is not None:
                longer.append(long_mm - row.lesion.long_axis_mm)
            overlap = f"{row.overlap:.2f}"
            table.add_row(name, str(row.number), true, row.found.label, _mm(row.found), overlap, _sure(row.found))
        extra = [row.found for row in rows if row.lesion is None and row.found is not None]
        if extra:
            marks = f"{len(extra)} false mark{'' if len(extra) == 1 else 's'}"
            table.add_row(name, "", "[yellow]nothing there", marks, "", "", f"up to {_sure(extra[0])}")
        pictures.append(_picture(folder / f"{name.replace(' ', '-')}.png", name, truth, rows))
    console.print(table)
    if longer:
        console.print(
            f"Nodules measure {min(longer):+.1f} to {max(longer):+.1f} mm against the phantom: its borders are sharp, "
            "and the outlines were learnt from readers, who perhaps draw on the outer side of a border "
            "(models/lung_nodule/CARD.md)."
        )
    for path in (*paths, *pictures):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]{found_count} of {total} lesions found.[/bold] {NOT_FOR_DIAGNOSIS}")
    return 0 if found_count * 2 > total else 1


def dice(lesion: Lesion, finding: Finding) -> float:
    """Overlap of truth and answer, 0..1; both masks lie on the source grid with an offset of their own."""
    shared = in_common(lesion.mask, lesion.offset_zyx, finding.mask, finding.offset_zyx)
    return float(2 * shared / (lesion.mask.sum() + finding.mask.sum()))


def _long_axis(finding: Finding) -> float | None:
    return next((m.value for m in finding.measurements if m.name == codes.LONG_AXIS), None)


def _mm(finding: Finding) -> str:
    long_mm = _long_axis(finding)
    return "" if long_mm is None else f"{long_mm:.1f} mm"


def _sure(finding: Finding) -> str:
    return f"{finding.certainty:.0%}"


# ---- a picture of every lesion

TRUE, FOUND = (0, 220, 255), (255, 150, 0)  # told apart by colour-blind readers too
TILE, LINE, EDGE, COLUMNS = 300, 20, 10, 3  # pixels, pixels, pixels, tiles
FALSE_MARKS = 3  # pictured, the surest
LARGE, SMALL = ImageFont.load_default(18), ImageFont.load_default(14)


def _picture(path: Path, name: str, truth: Truth, rows: Sequence[Row]) -> Path:
    """One tile for each lesion, and for the surest marks where there is nothing, with sizes and a legend."""
    shown = [row for row in rows if row.lesion is not None]
    shown += [row for row in rows if row.lesion is None][:FALSE_MARKS]
    columns = min(COLUMNS, len(shown))
    top, high = 2 * EDGE + 4 * LINE, TILE + 3 * LINE + EDGE
    size = (max(columns, 2) * (TILE + EDGE) + EDGE, top + -(-len(shown) // max(columns, 1)) * high)
    canvas = Image.new("RGB", size, (16, 22, 26))
    pen = ImageDraw.Draw(canvas)
    pen.text((EDGE, EDGE), f"{name}, synthetic: truth against found", fill="white", font=LARGE)
    for place, (colour, words) in enumerate(((TRUE, "truth of the phantom"), (FOUND, "found by the node"))):
        left, middle = EDGE + place * 220, EDGE + LINE * 2
        pen.line([(left, middle), (left + 26, middle)], fill=colour, width=3)
        pen.text((left + 34, middle - 9), words, fill=colour, font=SMALL)
    pen.text((EDGE, EDGE + 3 * LINE - 8), NOT_FOR_DIAGNOSIS, fill=(170, 180, 185), font=SMALL)
    for place, row in enumerate(shown):
        left, upper = EDGE + place % columns * (TILE + EDGE), top + place // columns * high
        canvas.paste(_tile(truth, row), (left, upper))
        for line, words in enumerate(_caption(row)):
            pen.text((left, upper + TILE + 2 + line * LINE), words, fill=(TRUE, FOUND)[line], font=SMALL)
    canvas.save(path, optimize=True)
    return path


def _caption(row: Row) -> tuple[str, str]:
    true = "nothing there" if row.lesion is None else f"{row.lesion.long_axis_mm:.1f} mm long"
    if row.found is None:
        return f"{row.number}: {true}", "missed"
    overlap = "" if row.lesion is None else f"overlap {row.overlap:.2f}"
    said = (_mm(row.found), overlap, f"certainty {_sure(row.found)}")
    return f"{row.number}: {true}", f"found: {', '.join(filter(None, said))}"


def _tile(truth: Truth, row: Row) -> Image.Image:
    """TILE x TILE: the surroundings of a lesion, or of a mark, on its largest slice, with both outlines."""
    thing = row.lesion or row.found
    assert thing is not None
    z = thing.offset_zyx[0] + int(thing.mask.sum(axis=(1, 2)).argmax())
    middle = [offset + size / 2 for offset, size in zip(thing.offset_zyx[1:], thing.mask.shape[1:], strict=True)]
    side = 2 * max(24, round(0.9 * max(thing.mask.shape[1:])))  # pixels of the image
    corner = [round(m - side / 2) for m in middle]
    grey = _grey(truth.files[z])
    cut = Image.fromarray(grey).crop((corner[1], corner[0], corner[1] + side, corner[0] + side))
    tile = cut.resize((TILE, TILE), Image.Resampling.BICUBIC).convert("RGB")
    pen = ImageDraw.Draw(tile)
    for colour, one in ((TRUE, row.lesion), (FOUND, row.found)):
        if one is None or not one.offset_zyx[0] <= z < one.offset_zyx[0] + one.mask.shape[0]:
            continue
        shift = np.array([one.offset_zyx[2] - corner[1], one.offset_zyx[1] - corner[0]])
        for loop in chain.from_iterable(outlines(one.mask[z - one.offset_zyx[0]])):
            points = (loop + shift) * (TILE / side) - 0.5  # Pillow's (0, 0) is the centre of the first pixel
            pen.line([(x, y) for x, y in points.tolist()], fill=colour, width=2)
    return tile


def _grey(file: Path) -> np.ndarray:
    """uint8 (rows, columns); a CT in its own window, where it is one of soft tissue, else in that of the lung"""
    dataset = pydicom.dcmread(file)
    pixels = dataset.pixel_array.astype(float)
    if dataset.Modality == "CT":
        hu = pixels * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        own = float(dataset.WindowCenter), float(dataset.WindowWidth)
        centre, width = own if own[0] > 0 else LUNG_WINDOW_HU
        pixels = ((hu - centre) / width + 0.5) * 255
    return np.clip(pixels, 0, 255).astype(np.uint8)


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
    deadline = time.monotonic() + GIVE_UP_AFTER_S
    while not true():
        if process.poll() is not None:
            raise SystemExit(f"waiting for {what}: the process ended with {process.returncode}; see the .log files")
        if time.monotonic() > deadline:
            raise SystemExit(f"waiting for {what}: nothing within {GIVE_UP_AFTER_S:g} s; see the .log files")
        time.sleep(0.5)
