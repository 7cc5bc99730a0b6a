"""What a training writes down of itself: log.csv, training.svg, TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from models.training.files import replacing, write_text
from models.training.plots import training_curves


class Log:
    """log.csv, training.svg and, if asked for, TensorBoard's files: one row an epoch, written anew with each."""

    def __init__(self, out: Path, first: int, tensorboard: bool) -> None:
        self.out, self.rows = out, list[Mapping[str, Any]]()
        if first and (out / "log.csv").exists():
            with (out / "log.csv").open(newline="") as file:  # a kill may have left the row of an unfinished epoch
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= first]
        self.board = board(out / "tensorboard", first) if tensorboard else None

    def add(self, row: Mapping[str, float]) -> None:
        self.rows.append(row)
        with replacing(self.out / "log.csv") as new, new.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row), restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
        write_text(self.out / "training.svg", training_curves(self.rows))
        if self.board is not None:
            for name, value in row.items():
                if name != "epoch":
                    self.board.add_scalar(name, value, int(row["epoch"]))
            self.board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()


def board(folder: Path, first: int) -> Any:
    """TensorBoard's writer; what it holds of epochs after `first` is struck out. Raises SystemExit if not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SystemExit(
            f"--tensorboard needs the package tensorboard ({error}): pip install -e .[train], or read log.csv"
        ) from error
    return SummaryWriter(str(folder), purge_step=first + 1)
