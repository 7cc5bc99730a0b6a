"""docs/limits.md says every limit, with the value that it has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
ROWS = re.findall(r"(?m)^\| .+ \| `([\w.]+)` \| `([^`]+)` \|", PAGE)
# where limits stand, of what comes from outside and of what an inference answers
MODULES = [
    *("dicom_sr.reading", "dicom_sr.attributes", "dicom_sr.frames", "dicom_sr.regions", "dicom_sr.slices"),
    *("models.frames", "models.palette", "models.pixels", "models.command.results"),
    *("pacs_node.audit", "pacs_node.messages", "pacs_node.confine", "pacs_node.route", "pacs_node.intake"),
    *("pacs_node.receive.upper_layer", "pacs_node.receive.transfer"),
    *("pacs_node.association", "pacs_node.deliver.stow", "pacs_node.priors"),
    *("pacs_node.web.connection", "pacs_node.web.uploads", "pacs_node.ledger.settings", "pacs_node.settings_trial"),
    *("pacs_node.viewing", "pacs_node.viewing_process"),
    "pacs_node.assemble.geometry",
]
LIMIT = re.compile(r"(MOST|LONGEST|FREELY)(_[A-Z]+)*|DEEPEST")
NO_LIMITS = {
    "dicom_sr.attributes.LONGEST_SHOWN",  # how much of a value a sentence quotes
    "pacs_node.intake.MOST_AT_ONCE",  # rows in one transaction
    "pacs_node.receive.transfer.LONGEST_COMMENT",  # what an answer has room for
    "pacs_node.messages.MOST_AXES",  # of an array: there is none of more
    "pacs_node.route.LONGEST",  # a table of the Standard
}
TABLES = Config.model_fields


def constants(module: ModuleType) -> Iterator[str]:
    """Limits that are set in the module itself."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    for name in (each for node in assigned for each in ast.walk(node)):
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store) and LIMIT.fullmatch(name.id):
            yield f"{module.__name__}.{name.id}"


def value(name: str) -> object:
    table, _, key = name.rpartition(".")
    if table in TABLES:
        return TABLES[table].annotation.model_fields[key].default  # type: ignore[union-attr]
    return getattr(import_module(table), key)


@pytest.mark.parametrize(("name", "said"), ROWS)
def test_each_limit_has_the_value_that_the_page_says(name: str, said: str) -> None:
    assert ast.literal_eval(said) == value(name)


def test_every_limit_is_on_the_page_once() -> None:
    there = {name for module in MODULES for name in constants(import_module(module))} - NO_LIMITS
    settings = {
        f"{table}.{key}"
        for table in ("receive", "priors", "infer")
        for key, field in TABLES[table].annotation.model_fields.items()  # type: ignore[union-attr]
        if type(field.default) in (int, float)
    }
    named = [name for name, _ in ROWS]
    assert len(named) == len(set(named))
    assert there | settings <= set(named), f"not in docs/limits.md: {sorted((there | settings) - set(named))}"
    assert len(there) > 20
