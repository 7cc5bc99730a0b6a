"""Places of the training scans that a detector takes for nodules and are none, for its next training to look at.

python -m models.training.lung_nodule.nodulenet.hard_negatives --data FOLDER \
    --weights runs/first/nodulenet_w12.safetensors --out hard.json
python -m models.training.train nodulenet --data FOLDER --init runs/first/nodulenet_w12.safetensors \
    --set hard_negatives=hard.json ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from models.lung_nodule.nodulenet.detect import DetectOptions, detect
from models.nets.nodulenet import RCNN, NoduleNet
from models.training.evaluation.froc import hitting
from models.training.files import write_text
from models.training.lung_nodule.data.scans import Scan, Scans
from models.training.lung_nodule.nodulenet.evaluate import load_net
from models.weights import WeightsError

LEAST = 0.2  # mean of both heads' probabilities
MOST = 20  # places of a scan, the most certain


def wrongly_marked(net: NoduleNet, scan: Scan) -> list[tuple[float, float, float]]:
    """What is marked with LEAST or more and hits neither a lesion nor an irrelevant finding; the most certain first."""
    found = [one for one in detect(net, scan.hu, scan.lungs, options=DetectOptions(stage=RCNN)) if one.score >= LEAST]
    wrong = ~hitting(found, [*scan.lesions, *scan.irrelevant]).any(axis=1)
    return [found[place].centre_zyx for place in np.flatnonzero(wrong)[:MOST]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="List what a detector wrongly marks in its training scans.")
    parser.add_argument("--data", type=Path, required=True, help="what models.training.train was given")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        scans = Scans(given.data)
        loaded, net = load_net(given.weights, scans.split_sha256)
    except (ValueError, WeightsError) as error:
        raise SystemExit(str(error)) from error
    places = {name: wrongly_marked(net, scans.load(name)) for name in track(scans.split["train"], "training scans")}
    made = {"scans_sha256": scans.digest, "weights_sha256": loaded.sha256, "places": places}
    write_text(given.out, json.dumps(made, indent=1) + "\n")
    print(f"{sum(map(len, places.values()))} places in {len(places)} scans")


if __name__ == "__main__":
    main()
