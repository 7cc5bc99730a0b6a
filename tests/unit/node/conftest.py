"""What the tests of the node have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pacs_node.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty one, as the embedded default has it."""
    ledger = Ledger(f"sqlite:///{tmp_path}/node.sqlite", tmp_path)
    ledger.migrate()
    yield ledger
    ledger.close()
