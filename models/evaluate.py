"""Write the figures a model card quotes, on data the network has not learned from.

python -m models.evaluate lung_nodule --data slices.zip
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

SYSTEMS = ("breast_us", "lung_nodule")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description="Measure one model system.")
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--data", type=Path, required=True, help="the zip that models.train was given")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    given = parser.parse_args(arguments)

    figures = import_module(f"models.{given.system}.evaluate").evaluate(given.data, given.device, given.split)
    table = Table(title=f"{given.system}, {given.split} split")
    table.add_column("figure")
    table.add_column("value (95 % interval)")
    for name, interval in figures.items():
        table.add_row(name, str(interval))
    Console().print(table)
    if given.out:
        rounded = {name: {key: round(v, 4) for key, v in asdict(one).items()} for name, one in figures.items()}
        given.out.write_text(json.dumps({"split": given.split, "figures": rounded}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
