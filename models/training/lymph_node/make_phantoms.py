"""Make candidates of phantoms to train and judge on: semi-synthetic, and called so in every figure.

python -m models.training.lymph_node.make_phantoms --region mediastinum --out FOLDER --count 30
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from models.training.lymph_node.sources import make_phantoms, read_made
from models.training.lymph_node.tcia import REGIONS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make candidates of phantoms with lymph nodes.")
    parser.add_argument("--region", choices=sorted(REGIONS.values()), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=30, help="of phantoms")
    parser.add_argument("--first-seed", type=int, default=1000)
    given = parser.parse_args(arguments)
    made = read_made(make_phantoms(given.out, given.region, given.count, given.first_seed))
    found = {(place.scan, place.node) for place in made.places if place.node is not None}
    print(
        f"{len(made.places)} candidates of {len(made.nodes)} phantoms, {int(made.candidates.labels.sum())} of"
        f" them positive; {len(found)} of {sum(made.nodes.values())} nodes are proposed"
    )


if __name__ == "__main__":
    main()
