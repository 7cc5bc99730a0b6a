"""Tables of many small trainings under one budget, written beside the figures of a paper; a killed run goes on.

A system's `tables.py` says what the rows are, how one is trained and how it is judged (Study); this file keeps the
results, asks for those that are missing, and writes the Markdown. A row is known by the digest of all its settings: the
same settings are never trained twice, changed ones always are.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table as ScreenTable

from models.training.evaluation.metrics import Interval, rounded
from models.training.evaluation.provenance import NOT_RECORDED, of_trainings
from models.training.files import write_text

Figures = Mapping[str, Mapping[str, float]]  # of a row as the JSON keeps them: figure -> value, low, high


@dataclass(frozen=True)
class Row:
    """One training of a table. `why_not`: the reason in words why it cannot be made here; the paper's figures stay."""

    name: str
    changes: Mapping[str, str] = field(default_factory=dict)  # hyper-parameters, as after --set
    paper: Mapping[str, float] = field(default_factory=dict)  # figure -> what the paper states
    why_not: str = ""


@dataclass(frozen=True)
class Table:
    title: str
    rows: Sequence[Row]
    note: str = ""  # a paragraph below the title
    verdict: Callable[[Mapping[str, Figures]], str] | None = None  # what follows from the made rows, below the table


@dataclass(frozen=True)
class Result:
    figures: Mapping[str, Interval]
    facts: Mapping[str, Any]  # what else is told of a row: parameters, epochs


def with_reasons(tables: Sequence[Table], why_not: Callable[[Row], str]) -> tuple[Table, ...]:
    """The tables, each row with the reason why it cannot be made here; "" when it can."""
    return tuple(
        replace(table, rows=tuple(replace(row, why_not=why_not(row)) for row in table.rows)) for table in tables
    )


class Study(Protocol):
    """All tables of one system under one budget."""

    name: str  # of the files: residual_unet.md, residual_unet.json
    title: str
    about: str  # a paragraph: data, split, budget
    figures: Mapping[str, str]  # columns: figure -> its format, ".3f" or ".0f"
    tables: Sequence[Table]

    def settings(self, row: Row) -> Mapping[str, Any]:
        """Everything that decides the row's result, as JSON can hold it."""

    def result(self, row: Row, folder: Path) -> Result:
        """Train the row in `folder`, or go on with what is there, and judge it."""

    def illustrate(self, folders: Mapping[str, Path], out: Path) -> Sequence[Path]:
        """Write pictures of what the trained rows (name -> folder) answer to phantoms; their paths. May be none."""


def show(title: str, figures: Mapping[str, Interval]) -> None:
    """Figures with their intervals on the screen."""
    sheet = ScreenTable(title=title)
    sheet.add_column("figure")
    sheet.add_column("value (95 % interval)")
    for name, interval in figures.items():
        sheet.add_row(name, str(interval))
    Console().print(sheet)


def digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def trained_s(folder: Path) -> float:
    """Seconds of every epoch of the trainings below a folder, those from before a kill too. 0 without a training."""
    rows = (row for log in folder.rglob("log.csv") for row in csv.DictReader(log.read_text("utf-8").splitlines()))
    return sum(float(row["seconds"]) for row in rows)


def run(
    study: Study, out: Path, runs: Path, console: Console | None = None, data: Mapping[str, str] | None = None
) -> Path:
    """Make every row that has no result yet and write `<name>.json` and `<name>.md` after each; the Markdown's path.

    out    folder of the results
    runs   folder for the trainings, one below it for each row
    data   name -> SHA-256 of what the rows learn from
    """
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{study.name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    folders: dict[str, Path] = {}
    for table in study.tables:
        for row in table.rows:
            if row.why_not:
                continue
            settings = study.settings(row)
            key = digest(settings)
            folder = runs / key[:12]
            if key not in results:
                console.print(f"{table.title}: {row.name}")
                made = study.result(row, folder)
                results[key] = {
                    "row": row.name,
                    "figures": rounded(made.figures, 5),
                    "facts": dict(made.facts),
                    "seconds": round(trained_s(folder)),
                    "settings": dict(settings),
                    "provenance": of_trainings(folder, data or NOT_RECORDED),
                }
                write_text(path, json.dumps(results, indent=1) + "\n")
                write_text(path.with_suffix(".md"), markdown(study, results))
            if folder.exists():
                folders[row.name] = folder
    # without the folder of every row, as in a fresh checkout, the pictures of the run that made the results stay
    wanted = {row.name for table in study.tables for row in table.rows if not row.why_not}
    pictures: Sequence[Path] = drawn_before(study.name, out)
    if folders and (not pictures or wanted <= folders.keys()):
        pictures = study.illustrate(folders, out)
    write_text(path.with_suffix(".md"), markdown(study, results, pictures))
    return path.with_suffix(".md")


def drawn_before(name: str, out: Path) -> list[Path]:
    """The pictures of this study in the folder, not those of another one whose name goes on: lines_x.png, .svg."""
    return sorted(path for path in out.iterdir() if re.fullmatch(rf"{re.escape(name)}_[a-z]+\.(png|svg)", path.name))


def markdown(study: Study, results: Mapping[str, Any], pictures: Sequence[Path] = ()) -> str:
    """Every table of the study: each figure of the paper beside ours with its interval, rows without a result too."""
    parts = [f"# {study.title}", study.about]
    for table in study.tables:
        parts += _section(study, table, results)
    parts += [f"![{picture.stem}]({picture.name})" for picture in pictures]
    return "\n\n".join(parts) + "\n"


def _section(study: Study, table: Table, results: Mapping[str, Any]) -> list[str]:
    """The paragraphs of one table: its heading, note, sheet and verdict."""
    shown = {
        name: form
        for name, form in study.figures.items()
        if any(name in row.paper for row in table.rows)
        or any(name in results[key]["figures"] for key in _keys(study, table) if key in results)
    }
    stated = {name for row in table.rows for name in row.paper}
    columns = [[f"{name}, paper", f"{name}, here"] if name in stated else [name] for name in shown]
    head = ["", *(each for pair in columns for each in pair), "parameters", "seconds"]
    made = {row.name: results[key] for row in table.rows if (key := _key(study, row)) in results}
    lines = [_line(row, made.get(row.name), shown, stated) for row in table.rows]
    parts = [f"## {table.title}", *([table.note] if table.note else []), sheet(head, lines)]
    if table.verdict and made:
        parts.append(table.verdict({name: each["figures"] for name, each in made.items()}))
    return parts


def _line(row: Row, made: Mapping[str, Any] | None, shown: Mapping[str, str], stated: set[str]) -> list[str]:
    """The cells of one row: its name, each figure (the paper's before ours where the table has any), what it cost."""
    cells = [row.name]
    for name, form in shown.items():
        if name in stated:
            cells.append(format(row.paper[name], form) if name in row.paper else "")
        cells.append(cell(made["figures"].get(name), form) if made else row.why_not or "not run yet")
    facts = made["facts"] if made else {}
    cells.append(f"{facts['parameters']:,}".replace(",", " ") if "parameters" in facts else "")
    return [*cells, str(made["seconds"]) if made else ""]


def _keys(study: Study, table: Table) -> list[str]:
    return [_key(study, row) for row in table.rows if not row.why_not]


def _key(study: Study, row: Row) -> str:
    return "" if row.why_not else digest(study.settings(row))


def sheet(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def cell(figure: Mapping[str, float] | None, form: str) -> str:
    """A figure with its interval, in the format; empty when there is none."""
    if figure is None:
        return ""
    return f"{figure['value']:{form}} ({figure['low']:{form}} to {figure['high']:{form}})"
