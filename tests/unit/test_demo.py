"""The demo deletes only what a demo has made, and its pictures show every lesion."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from models.phantoms import breast_ultrasound
from pacs_node import demo
from pacs_node.cli import app
from tests.harness import ROOT


def everything(folder: Path) -> dict[str, bytes | str]:
    """What is below a folder, links as links."""
    return {
        path.relative_to(folder).as_posix(): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def a_file(place: Path) -> None:
    place.write_text("mine")


def a_folder_of_mine(place: Path) -> None:
    (place / "data").mkdir(parents=True)  # named as the demo's own
    (place / "data" / "thesis.tex").write_text("mine")


def a_folder_with_one_hidden_file(place: Path) -> None:
    place.mkdir()
    (place / ".profile").write_text("mine")


def a_link_to_a_folder(place: Path) -> None:
    a_folder_of_mine(place.with_name("target"))
    place.symlink_to(place.with_name("target"))


def a_link_to_nothing(place: Path) -> None:
    place.symlink_to(place.with_name("nothing"))


def a_folder_with_a_link_for_a_marker(place: Path) -> None:
    a_folder_of_mine(place)
    (place / demo.MARKER).symlink_to(place / "data" / "thesis.tex")


def a_folder_with_a_folder_for_a_marker(place: Path) -> None:
    a_folder_of_mine(place)
    (place / demo.MARKER).mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_file, "is a file"),
        (a_folder_of_mine, "holds data, and no demo made it: nothing was deleted"),
        (a_folder_with_one_hidden_file, "holds .profile, and no demo made it"),
        (a_link_to_a_folder, "is a link"),
        (a_link_to_nothing, "is a link"),
        (a_folder_with_a_link_for_a_marker, "no demo made it"),
        (a_folder_with_a_folder_for_a_marker, "no demo made it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_a_demos_own_is_refused_and_left(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / "x")
    before = everything(tmp_path)
    done = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path / "x")])
    assert done.exit_code == 1
    assert words in " ".join(done.output.split())
    assert "--folder" in done.output
    assert everything(tmp_path) == before


@pytest.mark.parametrize("place", ["/", "~", "HOME"])
def test_home_and_root_are_refused_even_if_they_are_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        pytest.raises(SystemExit, match="is no folder for a demo"),
        demo.own_folder(tmp_path if place == "HOME" else Path(place)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_own_earlier_demo_is_made_anew_and_what_lies_beside_it_stays(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "demo"
    with demo.own_folder(place) as folder:
        assert folder == place
        for name in ("images/ct/1.dcm", "data/spool/1.dcm", "results/1.dcm", "orthanc/db", "node.toml", "chest-CT.png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("old")
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(SystemExit, match="a demo is running in"), demo.own_folder(place):
            pass
        assert (folder / "images/ct/1.dcm").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    (place / "node.log").symlink_to(tmp_path / "mine" / "a.txt")
    (place / "breast-ultrasound.png").symlink_to(tmp_path / "mine")
    with demo.own_folder(place):
        assert everything(place) == {demo.MARKER: b"", "notes.txt": b"mine"}
    assert everything(tmp_path / "mine") == {"a.txt": b"mine"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with demo.own_folder(tmp_path / "empty"):
        assert (tmp_path / "empty" / demo.MARKER).is_file()


def test_what_the_demo_makes_is_what_it_deletes(tmp_path: Path) -> None:
    """Whatever the module writes into its folder is in the list of what the next demo may delete."""
    source = Path(demo.__file__).read_text()
    named = {name for name in demo.MADE if f'"{name}"' in source.replace(str(demo.MADE), "")}
    assert {"images", "results", "orthanc", "node.toml", "node.log"} <= named
    assert 'data_dir = "data"' in demo.SETTINGS
    assert 'folder = "results"' in demo.FOLDER


def test_the_picture_shows_every_lesion_with_a_legend(tmp_path: Path) -> None:
    truth = breast_ultrasound(tmp_path / "us", seed=7)
    first = truth.lesions[0]
    found = SimpleNamespace(mask=first.mask, offset_zyx=first.offset_zyx, number=1, certainty=0.93, measurements=())
    far = (first.offset_zyx[0], 4, 4)
    false = SimpleNamespace(mask=np.ones((1, 9, 9), bool), offset_zyx=far, number=2, certainty=0.4, measurements=())
    rows = demo._rows(truth, [found, false])
    assert [(row.lesion is not None, row.found is not None) for row in rows][-1] == (False, True)
    assert len(rows) == len(truth.lesions) + 1
    assert rows[0].overlap == 1.0
    missed = [row for row in rows if row.found is None]
    assert all(demo._caption(row)[1] == "missed" for row in missed)
    assert demo._caption(rows[0]) == (
        f"1: {first.long_axis_mm:.1f} mm long",
        "found: overlap 1.00, certainty 93%",
    )
    assert demo._caption(rows[-1])[0].endswith("nothing there")
    with Image.open(demo._picture(tmp_path / "p.png", "breast ultrasound", truth, rows)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    tiles = -(-len(rows) // demo.COLUMNS)
    assert pixels.shape[0] > tiles * demo.TILE
    assert pixels.shape[1] >= min(demo.COLUMNS, len(rows)) * demo.TILE
    for colour in (demo.TRUE, demo.FOUND):
        assert (pixels == colour).all(axis=-1).sum() > 200


STAYS = """
import subprocess, sys
from pathlib import Path
from rich.console import Console
from pacs_node.demo import DemoNode
node = DemoNode(Path(sys.argv[1]), None)
node.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
try:
    node.stay(Console(width=40), None)
    print(node.url)
finally:
    node.process.kill()
"""


def test_the_pages_stay_until_ctrl_c_and_their_address_is_the_last_line(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-uc", STAYS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as demo_:
        assert demo_.stdout is not None
        lines = [demo_.stdout.readline()]
        while not lines[-1].startswith("http"):
            assert lines[-1], lines
            lines.append(demo_.stdout.readline())
        demo_.send_signal(signal.SIGINT)  # once the last line is there, and not before
        url = demo_.stdout.read().splitlines()[-1]
        assert demo_.wait(60) == 0
    assert lines[-1] == f"{url}/\n"


def test_a_demo_whose_node_ends_says_so(tmp_path: Path) -> None:
    node = demo.DemoNode(tmp_path, None)
    node.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    node.process.kill()
    node.process.wait()
    with pytest.raises(SystemExit, match="the node has ended with -9"):
        node.stay(Console(file=StringIO()), None)
    node.process = subprocess.Popen([sys.executable, "-c", ""])
    node.stay(Console(file=StringIO()), None)  # told to stop by the same Ctrl-C


def test_nobody_is_waited_for_where_nobody_is() -> None:
    code = "from pacs_node.demo import at_a_terminal; print(at_a_terminal())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "False\n"
