"""Documents that are printed from the code are as the code is now."""

from __future__ import annotations

from pathlib import Path

from pacs_node.conformance import statement

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_conformance_statement_is_printed_from_the_code() -> None:
    assert (DOCS / "conformance.md").read_text() == statement(), "run: pacs-node conformance > docs/conformance.md"
