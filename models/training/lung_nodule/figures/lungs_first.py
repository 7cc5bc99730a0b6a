"""CCFAM-FPN with and without the lungs segmented before, as its source has it: FROC on whole scans.

    python -m models.training.lung_nodule.figures.lungs_first --data FOLDER --split val --out docs/results

--data  what models.training.lung_nodule.data.scans.Scans reads. Figures of a semi-synthetic set are called so.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from models.lung_nodule.ccfam_fpn.detect import LungsFirst, SliceOptions, detect
from models.lung_nodule.detectors import CCFAMDetector
from models.lung_nodule.options import Options
from models.runtime import Runtime
from models.training.evaluation.metrics import rounded
from models.training.evaluation.provenance import write_figures
from models.training.evaluation.tables import cell, sheet
from models.training.files import write_text
from models.training.lung_nodule.data.scans import Scan, Scans
from models.training.lung_nodule.figures.detectors import searched
from models.training.lung_nodule.nodulenet.evaluate import Mark, curve

WAYS: Mapping[str, LungsFirst] = {
    "boxes outside the lungs dropped (served)": "boxes",
    "lungs alone shown, as the source": "image",
    "lungs not looked for": "no",
}


def look(detector: CCFAMDetector, name: str, scan: Scan) -> dict[str, list[Mark]]:
    found = detect(detector.net, scan.hu, scan.lungs, options=SliceOptions(lungs_first=WAYS[name]))
    return {name: [Mark(one.centre_zyx, one.score) for one in found]}


def measure(scans: Scans, split: str, detector: CCFAMDetector) -> dict[str, Any]:
    """FROC of each way, and what reaches the certainty that is reported. Raises ValueError for a split without scan."""
    if not scans.split[split]:
        raise ValueError(f"no scan of {split} in {scans.folder}")
    found, judged = searched(scans, split, [partial(look, detector, name) for name in WAYS])
    rows = {}
    for name, marks in found.items():
        froc = curve(marks, judged)
        sure = [[one for one in each if one.score >= detector.certainty] for each in marks]
        reached = froc.thresholds >= detector.certainty
        rows[name] = {
            "figures": rounded(froc.figures()),
            "marks reported": sum(map(len, sure)),
            "sensitivity of those": float(froc.sensitivity[reached][-1]) if reached.any() else 0.0,
            "false positives of those, per scan": float(froc.false_positives[reached][-1]) if reached.any() else 0.0,
        }
    return {
        "semi_synthetic": scans.semi_synthetic,
        "split": split,
        "split_sha256": scans.split_sha256,
        "scans": len(judged),
        "lesions": sum(len(scan.lesions) for scan in judged),
        "certainty": detector.certainty,
        "rows": rows,
    }


def page(made: Mapping[str, Any]) -> str:
    """The Markdown of what was measured."""
    kind = "semi-synthetic" if made["semi_synthetic"] else "real"
    drawn = "95 % intervals by 1000 bootstraps" if made["scans"] > 1 else "one scan has no interval, and shows no more"
    return "\n\n".join(
        [
            "# CCFAM-FPN with and without lungs segmented before",
            f"{made['scans']} {kind} {'scan' if made['scans'] == 1 else 'scans'} of the {made['split']} split, n ="
            f" {made['lesions']} nodules. The same weights each time: they learnt from images that show what lies"
            f" outside the lungs. Reported are marks of certainty {made['certainty']:g} or more; false positives per"
            f" scan; {drawn}.",
            sheet(
                ["", "CPM", "found of those reported", "false positives of those", "marks"],
                [
                    [
                        name,
                        cell(cpm, ".3f") if made["scans"] > 1 else f"{cpm['value']:.3f}",
                        f"{row['sensitivity of those']:.3f}",
                        f"{row['false positives of those, per scan']:.1f}",
                        str(row["marks reported"]),
                    ]
                    for name, row in made["rows"].items()
                    for cpm in [row["figures"]["CPM"]]
                ],
            ),
        ]
    ) + "\n"  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val", choices=("val", "test", "unseen"))
    parser.add_argument("--cache", type=Path, help="folder for scans of public collections at 1 mm")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args(arguments)
    scans = Scans(given.data, cache=given.cache)
    detector = CCFAMDetector(Options(detector="ccfam-fpn"), Runtime.choose("cpu"))
    try:
        made = measure(scans, given.split, detector)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "lungs_first.json"
    write_figures(path, made, {detector.loaded.name: detector.loaded.sha256}, {"scans": scans.digest})
    write_text(path.with_suffix(".md"), page(made))
    print(page(made))


if __name__ == "__main__":
    main()
