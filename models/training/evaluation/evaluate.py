"""Write the figures a model card quotes, on data the network has not learned from, or a paper's tables.

    python -m models.training.evaluation.evaluate residual_unet --data slices.zip
    python -m models.training.evaluation.evaluate residual_unet --data slices.zip \
        --weights a.safetensors b.safetensors --flips --out runs/x
    python -m models.training.evaluation.evaluate residual_unet --data slices.zip --table --budget small

A table trains each of its rows under one budget; what is in its JSON already is not trained again.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from models.training.evaluation import tables
from models.training.evaluation.provenance import digests, write_figures
from models.training.train import changes_of
from models.weights import WeightsError

SYSTEMS = {  # name -> where its evaluate.py is
    "breast_us": "models.training.breast_us",
    "ccfam_fpn": "models.training.lung_nodule.ccfam_fpn",
    "nodulenet": "models.training.lung_nodule.nodulenet",
    "residual_unet": "models.training.lung_nodule.residual_unet",
}
RESULTS, RUNS = Path("docs/results"), Path("runs/tables")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.training.evaluation.evaluate", description="Measure one model system."
    )
    parser.add_argument("system", choices=sorted(SYSTEMS))
    parser.add_argument("--data", type=Path, required=True, help="what models.training.train was given")
    parser.add_argument(
        "--split", default="test", choices=("val", "test", "unseen"), help="unseen: patients no stored split knows"
    )
    parser.add_argument("--strategy", choices=("stored", "fresh"), help="of the split; as the weights were trained")
    parser.add_argument("--cache", type=Path, help="folder for the crops of whole scans")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path, nargs="+", help="instead of the shipped ones; several: their mean")
    parser.add_argument("--flips", action="store_true", help="show each image turned and mirrored too")
    parser.add_argument("--out", type=Path, help=f"folder for figures.json and more; of --table {RESULTS}")
    parser.add_argument("--table", action="store_true", help="train and measure the rows of the paper's tables")
    parser.add_argument("--budget", default="small", choices=("small", "full", "short"), help="of each row of --table")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of every row of --table")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder for the trainings of --table")
    given = parser.parse_args(arguments)

    package = SYSTEMS[given.system]
    try:
        if given.table:
            if given.weights or given.flips:
                parser.error("--table trains its own weights and judges them as they are: no --weights, no --flips")
            if given.budget == "short" and given.system != "ccfam_fpn":
                parser.error("--budget short is ccfam_fpn's")
            changes = changes_of(given.set)
            study = import_module(f"{package}.tables").study(given.data, given.budget, changes, given.device)
            print(tables.run(study, given.out or RESULTS, given.runs, data=digests([given.data])))
            return
        judgement = import_module(f"{package}.evaluate").evaluate(
            given.data,
            given.device,
            given.split,
            paths=given.weights,
            flips=given.flips,
            out=given.out,
            strategy=given.strategy,
            cache=given.cache,
        )
    except (ValueError, WeightsError) as error:
        raise SystemExit(str(error)) from error
    tables.show(f"{given.system}, {given.split} split", judgement.figures)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        weights = {name: sha256 for sha256, name in judgement.weights.items()}
        write_figures(given.out / "figures.json", judgement.document(), weights, digests([given.data]))


if __name__ == "__main__":
    main(sys.argv[1:])
