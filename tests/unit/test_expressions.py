"""No regular expression of ours takes longer than its text is long, whoever wrote the text.

Python's engine goes back where it could have matched otherwise; one expression that can match the same letters in two
ways holds the whole process for hours. Those of the settings run on RE2 (tests/unit/test_route.py); these are ours.
"""

from __future__ import annotations

import ast
import itertools
import re
import string
from collections.abc import Iterator

import pytest

from tests.harness import ROOT

CALLS = {"compile", "search", "match", "fullmatch", "sub", "split", "findall", "finditer"}
LONG = 30_000  # letters; in quadratic time each takes half a minute
# Applied to texts that are short by then, or that the person at the desk has written: an answer is cut to 300 letters
# before (`errors.LONGEST`), settings and names of pipelines are nobody else's.
SHORT = {"pacs_node/errors.py", "config/check.py", "config/schema.py", "pacs_node/new_pipeline/__init__.py"}


def expressions() -> Iterator[tuple[str, str, str | bytes]]:
    """(file, how it is applied, expression) of each that is written out in the code."""
    for package in ("pacs_node", "dicom_sr", "models", "config"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if "training" in name or name in SHORT:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                    continue
                of_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
                first = node.args[0]
                if of_re and node.func.attr in CALLS and isinstance(first, ast.Constant):
                    yield name, node.func.attr, first.value


ALL = list(expressions())


def test_they_are_found() -> None:
    """Else the next test says nothing."""
    assert {"dicom_sr/attributes.py", "pacs_node/receive/header.py", "pacs_node/web/views.py"} <= {
        each[0] for each in ALL
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("file", "how", "expression"), ALL, ids=[f"{file}:{text!r}" for file, _, text in ALL])
def test_no_text_holds_an_expression_up(file: str, how: str, expression: str | bytes) -> None:
    """One letter again and again, or two in turn, and then one that fits nowhere: that is where an engine goes back."""
    text = expression if isinstance(expression, str) else expression.decode("latin-1")
    own = [letter for letter in dict.fromkeys(text) if letter.isalnum() or letter in " -_.,^"]
    letters = [*own, "a", "A", "0", " ", ".", "+"]
    pairs = [a + b for a, b in itertools.pairwise(letters)]
    compiled = re.compile(expression)
    ways = [getattr(compiled, how)] if how not in ("compile", "sub") else [compiled.fullmatch, compiled.search]
    for piece in dict.fromkeys([*letters, *pairs]):
        for end in ("\0", "!", string.whitespace):
            said = piece * (LONG // len(piece)) + end
            for way in ways:
                way(said.encode("latin-1", "replace") if isinstance(expression, bytes) else said)
