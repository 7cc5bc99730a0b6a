"""docs/first-day.md as it is written: its commands in a shell, its steps in a real browser, against a real Orthanc.

Only the ports are others, and what installs is left out. What the document says that a page says is looked for there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import ROOT, free_port, need, wait_for
from tests.interop.test_viewer import GIVE_UP_AFTER_S, PIXELS, READY, SIZE, Page

pytestmark = pytest.mark.timeout(900)
PORTS = ("11112", "2762", "8080", "4242", "8042", "8099")
KINDS = ("console", "sh", "toml", "json", "lua", "python", "file", "field", "open", "press", "says")
PASSWORD = "the password of step 3"
FENCE = r"^```(?P<language>\w+)(?: title=\"(?P<window>[^\"]+)\")?\n(?P<text>.*?)^```$"
PART = re.compile(
    rf"{FENCE}|^ *\| `(?P<field>[\w.]+)` \| (?P<value>[^\n]+) \|$"
    r"|Open `(?P<open>http\S+)`|Press \*\*(?P<press>[^*]+)\*\*|[Tt]he page says \*(?P<says>[^*]+)\*"
    r"|(?:Save as|Add to) `(?P<file>[\w.]+)`",
    re.M | re.S,
)
SOON = "\n[infer]\ntune = false\n[assemble]\nquiet_s = 1.0\n"  # nothing is measured, and little waited for


# pixels of what WebGL has drawn that are not black, and that are red rather than blue
DEEP = f"""(rgba => {{
  const pixels = Array.from({{ length: rgba.length / 4 }}, (_, n) => rgba.slice(4 * n, 4 * n + 3));
  return [pixels.filter(([r, g, b]) => r + g + b > 60).length, pixels.filter(([r, , b]) => r - b > 60).length];
}})({PIXELS}(0, 0, ...{SIZE}))"""


@dataclass(frozen=True)
class Part:
    kind: str
    text: str
    more: str = ""


def parts(document: str) -> Iterator[Part]:
    """What is to be done, in its order; the fields of a table with a row each."""
    for found in PART.finditer(document):
        if found["language"]:
            yield Part(found["language"], found["text"], found["window"] or "")
        elif found["field"]:
            yield Part("field", found["field"], found["value"])
        else:
            [(kind, text)] = [(k, v) for k, v in found.groupdict().items() if v is not None]
            yield Part(kind, text)


class Reader:
    """Somebody who does what the document says."""

    def __init__(self, folder: Path, page: Page) -> None:
        self.start, self.folder, self.page = folder, folder / "first-day", page
        self.windows: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.done: set[str] = set()
        self.save_as, self.printed, self.opened, self.web_port = "", "", False, ""
        ours = folder / "bin"  # what the virtual environment has on its PATH
        ours.mkdir()
        for name, command in (("pacs-node", f"{sys.executable} -m pacs_node.cli"), ("python", sys.executable)):
            (ours / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (ours / name).chmod(0o755)
        paths = f"{ours}:/usr/sbin:{os.environ['PATH']}"
        self.surroundings = {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), "TCP_NODELAY": "1"}

    def does(self, part: Part) -> None:
        self.done.add(part.kind)
        getattr(self, part.kind)(part)

    def console(self, part: Part) -> None:
        """It installs."""

    def file(self, part: Part) -> None:
        self.save_as = part.text

    def _kept(self, part: Part) -> None:
        path = self.folder / self.save_as
        text = part.text
        if path.suffix == ".toml" and not path.exists():  # 8080 stands in no line of it
            text = text.replace("data_dir", f"web_port = {self.web_port}\ndata_dir") + SOON
        path.write_text((path.read_text() if path.exists() else "") + text)

    toml = json = lua = python = _kept

    def sh(self, part: Part) -> None:
        if part.more:
            self._window(part)
            return
        typed = f"{PASSWORD}\n" * 2
        here = self.folder if self.folder.exists() else self.start
        done = subprocess.run(
            [need("bash"), "-e", "-c", part.text], cwd=here, env=self.surroundings, input=typed, capture_output=True,
            text=True, timeout=300, start_new_session=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, part.text + done.stdout + done.stderr + self.said()
        self.printed = done.stdout

    def _window(self, part: Part) -> None:
        [command] = part.text.splitlines()
        log = self.folder / f"window-{len(self.windows)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command.split(), executable=need("Orthanc") if command.startswith("Orthanc") else None, cwd=self.folder,
                env=self.surroundings, stdout=out, stderr=out,
            )  # fmt: skip
        self.windows.append((log.name, process))

    def field(self, part: Part) -> None:
        value: str | None = part.more.strip("`")
        if part.more.startswith("tick"):
            value = part.more.partition("`")[2].rstrip("`") or None
        elif part.more.startswith("the file"):
            value = str(self.folder / part.more.split("`")[1])
        elif part.more.startswith("what was printed"):
            value = self.printed.partition("=")[2].strip()
        self.page.do("fill", field=part.text, value=value)

    def open(self, part: Part) -> None:
        self.is_there(part.text)
        assert self.page.do("go" if self.opened else "open", url=part.text, width=1000, height=800) == 200
        self.opened = True

    def press(self, part: Part) -> None:
        if part.text == "Show the images":  # nothing is loaded but the viewer
            self.page.do("click", selector=".viewer > button")
        else:
            self.page.do("follow", words=part.text)

    def says(self, part: Part) -> None:
        shown = " ".join(self.page.do("text").split())
        assert part.text in shown, shown + self.said()

    def is_there(self, address: str) -> None:
        def answers() -> bool:
            assert all(process.poll() is None for _, process in self.windows), self.said()
            try:
                return bool(httpx.get(address, timeout=5).status_code)
            except httpx.TransportError:
                return False

        wait_for(answers, 120, f"{address}\n{self.said()}")

    def said(self) -> str:
        return "\n".join((self.folder / name).read_text(errors="replace")[-4000:] for name, _ in self.windows)

    def end(self) -> None:
        for _, process in reversed(self.windows):
            process.terminate()
        for _, process in self.windows:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    page = Page()
    reader = Reader(tmp_path, page)
    yield reader
    reader.end()
    page.close()


def test_a_stranger_gets_from_nothing_to_a_nodule_in_3d_and_is_told(reader: Reader) -> None:
    document = (ROOT / "docs" / "first-day.md").read_text()
    assert all(re.search(rf"\b{port}\b", document) for port in PORTS)
    here = {port: str(free_port()) for port in PORTS}
    written = re.sub(rf"\b({'|'.join(PORTS)})\b", lambda port: here[port[0]], document)
    reader.web_port = here["8080"]
    pages, orthanc, listener = (f"http://127.0.0.1:{here[port]}/" for port in ("8080", "8042", "8099"))
    for part in parts(written):
        # by then a person sees that the windows have come up
        if part.kind == "sh" and f"{orthanc}instances" in part.text:
            reader.is_there(orthanc)
        if part == Part("open", f"{pages}notices/edit"):
            reader.is_there(listener)
        if part == Part("says", "Nodule 1"):  # "Follow the link to the series"
            sees_its_results(reader, pages)
        reader.does(part)
        if part == Part("press", "Show the images"):
            turns_to_three_dimensions(reader.page)
            wait_for(lambda: "lung-nodule found" in reader.said(), 120, f"to be told\n{reader.said()}")
    assert reader.done == set(KINDS), "nothing of the document was overlooked"
    assert "PACSNODE: a test" in reader.said()
    assert len(json.loads(reader.printed)) == 1, "Orthanc has the Segmentation"
    assert reader.page.do("errors") == []


def sees_its_results(reader: Reader, pages: str) -> None:
    def address() -> Any:
        reader.page.do("go", url=pages)
        return reader.page.value("document.querySelector('main a[href^=\"/series/\"]')?.href")

    def arrived() -> bool:
        reader.page.do("go", url=series)
        return "arrived: storage commitment" in reader.page.do("text")

    series = wait_for(address, 120, f"the series\n{reader.said()}")
    wait_for(arrived, 400, f"its results\n{reader.said()}")
    wait_for(lambda: reader.page.do("go", url=series) and "Nodule 1" in reader.page.do("text"), 120, "its findings")


def turns_to_three_dimensions(page: Page) -> None:
    wait_for(lambda: page.value(READY) in ("ready", "failed", "refused"), GIVE_UP_AFTER_S, "the viewer")
    assert page.value(READY) == "ready"
    page.value("document.querySelector('.stage canvas').focus()")
    page.do("press", key="v", times=4)
    assert page.value("document.getElementById('viewer').dataset.view") == "3-D"
    lungs, nodule = page.value(DEEP)
    assert lungs > 2000, "lungs in depth"
    assert nodule > 10, "and the nodule, in its colour"
