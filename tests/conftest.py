"""Fixtures shared by every kind of test."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pacs_node.ledger import Ledger

# CI draws the same examples each time: a landing must not hang on luck. Elsewhere they are new each time.
# None has a deadline: a machine that is busy is no fault of what is tested.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of hundreds of processes would compile the node again
# monai asks for jsonschema, and that for the grammar of this one: five seconds of a core, for what no test wants
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
os.environ["TCP_NODELAY"] = "1"  # DCMTK's programs stall 40 ms per image without it

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FIRST = {"interop", "fault"}  # folders


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of large tables each n-th case, unless a test is named: see not_drawn.

    Files whose tests wait for other processes come first, then those of many tests: no long one is left for the end.

    Of use with `--no-loadscope-reorder`, which keeps this order.
    """
    if not os.environ.get("EVERY_CASE") and not config.option.keyword and not any("::" in each for each in config.args):
        left_out = not_drawn(items)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    of_file = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[bool, int, str]:
        return not FIRST & set(item.path.parts), -of_file[item.path], str(item.path)

    items.sort(key=place)


def not_drawn(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of a test marked one_in(n) all cases but each n-th, in the order of its table; `make tables` runs them all.

    Raises UsageError where a row or a column of a table would not be tried at all: n divides its length.
    """
    of_test: dict[tuple[Path, str], list[pytest.Function]] = {}
    for item in items:
        if item.get_closest_marker("one_in") is not None and isinstance(item, pytest.Function):
            of_test.setdefault((item.path, item.originalname), []).append(item)
    left_out: set[pytest.Item] = set()
    for (path, name), cases in of_test.items():
        [n] = cases[0].get_closest_marker("one_in").args  # type: ignore[union-attr]
        drawn = cases[::n]
        left_out |= set(cases) - set(drawn)
        axes = {tuple(case.callspec.indices[axis] for case in cases) for axis in cases[0].callspec.indices}
        for axis in axes if len(axes) > 1 else ():
            if set(axis) != set(axis[::n]):
                raise pytest.UsageError(f"{path}::{name}: one_in({n}) leaves out a whole row; take another number")
    return left_out


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images, when this checkout stands beside one."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no folder of real images at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Ledger], None]]:
    """An empty SQLite ledger is brought up by all its migrations once, and copied where a test asks for another.

    They take longer than most tests that need one, and leave the same each time. Yields what really migrates, for who
    looks at how it does.
    """
    migrate = Ledger.migrate
    made: list[Path] = []

    def copied(ledger: Ledger) -> None:
        file = Path(ledger.engine.url.database or "") if ledger.embedded else None
        if file is None or file.exists() or not file.parent.is_dir():
            migrate(ledger)
            return
        if not made:
            folder = tmp_path_factory.mktemp("ledger")
            first = Ledger(f"sqlite:///{folder}/node.sqlite", folder)
            migrate(first)
            first.close()
            made.append(folder / "node.sqlite")
        shutil.copyfile(made[0], file)
        migrate(ledger)

    Ledger.migrate = copied  # type: ignore[method-assign]
    yield migrate
    Ledger.migrate = migrate  # type: ignore[method-assign]
