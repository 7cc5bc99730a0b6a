"""Documents that are printed from the code are as the code is now."""

from __future__ import annotations

from pathlib import Path

from pacs_node.conformance import statement
from pacs_node.inputs import page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_what_is_taken_and_refused_is_printed_from_the_code() -> None:
    assert (DOCS / "inputs.md").read_text() == page(), "run: python -m pacs_node.inputs > docs/inputs.md"


def test_the_conformance_statement_is_printed_from_the_code() -> None:
    assert (DOCS / "conformance.md").read_text() == statement(), "run: pacs-node conformance > docs/conformance.md"
