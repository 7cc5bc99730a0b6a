"""The detectors side by side: FROC on whole scans, Dice of their outlines, findings in real CTs, seconds.

    python -m models.training.lung_nodule.figures.detectors --set FOLDER --volumes lidc_voi3d.zip --scan A.zip \
        --scan B.zip \\
        --out docs/results

--set      what models.training.lung_nodule.data.scans.Scans reads. Figures of a semi-synthetic set are called so.
--volumes  nodule volumes of LIDC-IDRI: outlines of NoduleNet, and of the refinement of them, against the readers'
--slices-mm  the whole scans are shown as slices of so many mm would show them
--scan     real CTs without nodules pasted: how much each detector finds there, for a human to judge; --pictures FOLDER
           shows each finding. Nothing of that folder belongs into a repository.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openpyxl import load_workbook
from rich.progress import track

from models.grid import box_at, isotropic
from models.lung_nodule.ccfam_fpn import detect as slices
from models.lung_nodule.detections import Detection3D
from models.lung_nodule.detectors import DETECTORS, CCFAMDetector, Detector, NoduleNetDetector, candidate
from models.lung_nodule.lungs import Lungs
from models.lung_nodule.nodulenet import detect as volumes
from models.lung_nodule.nodulenet.detect import DetectOptions
from models.lung_nodule.options import DetectorName, Options
from models.lung_nodule.pipeline import LungNodule
from models.lung_nodule.refine import refine
from models.lung_nodule.sliding_unet import SlidingUNet
from models.read import Volume, read_ct
from models.runtime import Runtime
from models.training.evaluation.froc import RATES, Froc
from models.training.evaluation.metrics import Interval, dice, interval, rounded
from models.training.evaluation.provenance import digests, write_figures
from models.training.evaluation.tables import cell, sheet
from models.training.files import write_text
from models.training.lung_nodule.data.nodule_volumes import BEYOND_MM, on_its_pixels, small_scan
from models.training.lung_nodule.data.scans import Scan, Scans
from models.training.lung_nodule.data.semisynthetic import PHANTOM, Donor, donor_names, read_donor, why_not_donor
from models.training.lung_nodule.data.slices import stored_split
from models.training.lung_nodule.nodulenet.data import thicker
from models.training.lung_nodule.nodulenet.evaluate import Mark, curve, marks, without_voxels
from models.training.plots import save_grid

NEAR: dict[str, Any] = {"within_mm": NoduleNetDetector.within_mm}
MIXED = NEAR | {"mix": NoduleNetDetector.mix}  # as served
SECOND_LOOKS: Mapping[str, dict[str, Any]] = {
    "second look alone": {},
    f"second look alone within {NoduleNetDetector.within_mm:g} mm": NEAR,
    "second look": MIXED,
    "second look with mirror images": MIXED | {"flips": True},
}
ANYWHERE: dict[str, Any] = {"smallest_mm": 0.0, "largest_mm": 1000.0, "in_lung": 0.0}
STRICT = "marks on the backgrounds' own opacities counted as mistakes"
PHANTOMS = "phantoms only"
REAL = "real backgrounds only"
REAL_STRICT = "real backgrounds only, marks on their own opacities counted as mistakes"
SHOWN_PX = 64  # of a finding's picture


# ------------------------------------------------------------------------------------------------------- whole scans


def ccfam_marks(detector: CCFAMDetector, scan: Scan) -> dict[str, list[Mark]]:
    found = slices.detect(detector.net, scan.hu, scan.lungs)
    return {"CCFAM-FPN": [Mark(one.centre_zyx, one.score) for one in found]}


def sliding_marks(detector: SlidingUNet, scan: Scan) -> dict[str, list[Mark]]:
    volume = Volume(scan.hu, (), (1.0, 1.0, 1.0), np.eye(4), ())
    marked = detector(volume, Lungs(scan.lungs, float(scan.lungs.sum()) / 1000, None), silent)
    return {
        "sliding residual U-Net": [Mark(middle(one.mask, one.offset_zyx), one.certainty) for one in marked.candidates]
    }


def middle(mask: np.ndarray, offset_zyx: Sequence[int]) -> tuple[float, float, float]:
    z, y, x = (float(o) for o in np.argwhere(mask).mean(axis=0) + offset_zyx)
    return z, y, x


def marks_of(detector: Detector, scan: Scan) -> dict[str, list[Mark]]:
    """By the name of what gave them."""
    if isinstance(detector, NoduleNetDetector):
        return {
            f"NoduleNet, {head}": found for head, found in marks(detector.net, scan, detector.options.views).items()
        }
    if isinstance(detector, CCFAMDetector):
        return ccfam_marks(detector, scan)
    assert isinstance(detector, SlidingUNet)
    return sliding_marks(detector, scan)


def silent(_share: float, _what: str) -> None:
    pass


def searched(
    scans: Scans, split: str, looks: Sequence[Callable[[Scan], dict[str, list[Mark]]]], slices_mm: int = 1
) -> tuple[dict[str, list[list[Mark]]], list[Scan]]:
    """Marks of each detector on each scan of a split, before any rule of size or place; the scans without voxels."""
    all_marks: dict[str, list[list[Mark]]] = {}
    judged: list[Scan] = []
    for name in track(scans.split[split], f"scans of {split}"):
        scan = scans.load(name)
        scan = replace(scan, hu=in_slices_of(slices_mm, scan.hu))
        for look in looks:
            for kind, one in look(scan).items():
                all_marks.setdefault(kind, []).append(one)
        judged.append(without_voxels(scan))
    return all_marks, judged


def in_slices_of(mm: int, hu: np.ndarray) -> np.ndarray:
    """int16 (z, y, x) on voxels of 1 mm, as thick slices without gap show it, each the mean of what it holds."""
    if mm == 1:
        return hu
    return thicker(torch.from_numpy(hu)[None].float(), mm)[0].round().to(torch.int16).numpy()


def working_point(one: Froc, rate: float) -> float:
    """The lowest certainty with no more false positives per chest than the rate."""
    allowed = one.thresholds[one.false_positives <= rate]
    return float(allowed[-1]) if len(allowed) else 1.0


# ---------------------------------------------------------------------------------------------------------- outlines


def readers(archive: zipfile.ZipFile) -> dict[str, int]:
    """Name of each nodule volume -> how many readers described the nodule: 3 or 4."""
    sheet = load_workbook(BytesIO(archive.read("metadata.xlsx")), read_only=True).active
    assert sheet is not None
    head, *rows = sheet.iter_rows(values_only=True)
    column = {name: place for place, name in enumerate(head)}
    return {
        f"{row[column['patient_id']]}_{row[column['nodule_id']]}": int(str(row[column["len_mal_details"]]))
        for row in rows
        if row[column["patient_id"]]
    }


def outlined(detector: NoduleNetDetector, donor: Donor) -> Detection3D | None:
    """The most certain detection that lies on the nodule of a volume, on its voxels of 1 mm; see small_scan."""
    scan = small_scan(donor)
    truth = np.pad(isotropic(donor.mask, donor.spacing_mm), BEYOND_MM)
    options = DetectOptions(views=detector.options.views, closer=0.0)  # a mask, however certain
    found = volumes.detect(detector.net, scan.hu, scan.lungs, options=options)
    last = np.array(truth.shape) - 1  # the middle of a box may lie beyond the volume
    on = [one for one in found if truth[tuple(np.clip(np.rint(one.centre_zyx).astype(int), 0, last))]]
    best = max(on, key=lambda one: one.score, default=None)
    return None if best is None else volumes.move(best, [-BEYOND_MM] * 3)


def outline_figures(path: Path, patients: Sequence[str]) -> dict[str, Interval]:
    """Dice on the source grid of NoduleNet's outlines and of the refinement of them; intervals over patients."""
    pipeline = LungNodule("cpu", {"detector": "nodulenet"})
    detector, look = pipeline.detector, pipeline.refiner
    assert isinstance(detector, NoduleNetDetector)
    assert look is not None
    kept: dict[str, list[tuple[str, float]]] = {}
    with zipfile.ZipFile(path) as archive:
        counts = readers(archive)
        for name in track(donor_names(archive, patients), "nodule volumes"):
            donor = read_donor(archive, name)
            if why_not_donor(donor) is not None:
                continue
            number = f"{donor.patient}_{donor.name.rsplit('_', 1)[-1]}"
            groups = ["all nodules", f"nodules of {counts[number]} readers"] if number in counts else ["all nodules"]
            found = outlined(detector, donor)
            for group in groups:
                kept.setdefault(f"found, {group}", []).append((donor.patient, float(found is not None)))
            if found is None:
                continue
            volume = on_its_pixels(donor)
            first = candidate(found, (0, 0, 0), volume)
            if first is None:
                continue
            outlines = {"NoduleNet": first}
            for said, settings in SECOND_LOOKS.items():
                (again,) = refine(volume, [first], look, side=look.side, **settings)
                outlines[said] = again.candidate
            for what, one in outlines.items():
                drawn = np.zeros(donor.mask.shape, bool)
                drawn[one.box] = one.mask
                for group in groups:
                    kept.setdefault(f"Dice, {what}, {group}", []).append((donor.patient, dice(drawn, donor.mask)))
    figures = {}
    for name, pairs in sorted(kept.items()):
        owners, values = zip(*pairs, strict=True)
        figures[name] = interval(values, owners)
    return figures


# ---------------------------------------------------------------------------------------------------------- real CTs


def in_real(path: Path, name: DetectorName, pictures: Path | None) -> dict[str, Any]:
    """What the whole pipeline reports in a real CT, its seconds, and where each finding lies."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        files = sorted(Path(folder).rglob("*.dcm"))
        pipeline = LungNodule("cpu", {"detector": name})
        pipeline.warm()
        found = pipeline.run(files, silent)
        volume = read_ct(files) if pictures else None
    places = [
        {"slice": one.key_image, "row": row, "column": column, "certainty": round(one.certainty or 0.0, 3)}
        for one in found.findings
        for row, column in [[round(c) for c in middle(one.mask, one.offset_zyx)[1:]]]
    ]
    if pictures is not None and volume is not None and places:
        pictures.mkdir(parents=True, exist_ok=True)
        rows = []
        for place, one in zip(places, found.findings, strict=True):
            drawn = np.zeros(volume.hu.shape, bool)
            drawn[box_at(one.offset_zyx, one.mask.shape)] = one.mask
            y, x = (int(max(0, place[axis] - SHOWN_PX // 2)) for axis in ("row", "column"))
            part = one.key_image, slice(y, y + SHOWN_PX), slice(x, x + SHOWN_PX)
            rows.append([np.clip((volume.hu[part] + 1000) / 1400, 0, 1), drawn[part]])
        save_grid(pictures / f"{path.stem}_{name}.png", ["image", "outline"], rows)
    return {"findings": len(places), "seconds": found.facts["seconds"], "places": places}


# ------------------------------------------------------------------------------------------------------------ report


ABOUT_OWN = (
    "The two persons whose lungs are the backgrounds have opacities of their own: a mass, round nodules, and what looks"
    " like one. Nobody annotated them; they were listed from pictures, not read by a radiologist"
    " (annotations_excluded.csv). As with LUNA16's list of that name, a mark on one counts neither way in the first"
    " table. In the second it is a mistake, in each scan that shows it again: of a lung that is 15 % of a chest, 6.7"
    " times per chest."
)


def report(made: Mapping[str, Any]) -> str:
    """The Markdown of what was measured."""
    kind = "semi-synthetic" if made["semi_synthetic"] else "real"
    thick = f", as slices of {made['slices_mm']} mm show them" if made["slices_mm"] > 1 else ""
    parts = [
        "# Detectors of lung-nodule side by side",
        f"{made['scans']} {kind} scans of the {made['split']} split, {made['lesions']} {kind} nodules{thick}. Rule and"
        f" rates of LUNA16, false positives per whole chest; 95 % intervals by 1000 bootstraps over {made['drawn']}."
        " Marks before any rule of size and place; of the sliding U-Net after its own rules of shape, without which it"
        " marks every vessel.",
        rates(made["froc"], kind),
        *(
            part
            for what, figures in made["variants"].items()
            for part in (f"The same, {what} ({kind}):", rates(figures, kind))
        ),
        *([ABOUT_OWN, about_backgrounds(made["backgrounds"])] if made["variants"] else []),
        f"Least certainty with at most 1, 2 and 4 false positives per chest on val ({kind}), and CPM there:",
        sheet(
            ["", "1", "2", "4", "CPM, val"],
            [[name, *map(str, points), f"{made['val'][name]:.3f}"] for name, points in made["working_points"].items()],
        ),
    ]
    if made.get("outlines"):
        parts += [
            "## Outlines of real nodules",
            "Nodule volumes of LIDC-IDRI, real, of the same split's patients, on their own pixels. Dice is the mean of"
            " those found, with 95 % intervals over patients.",
            sheet(["", ""], [[name, cell(one, ".3f")] for name, one in made["outlines"].items()]),
        ]
    if made.get("real"):
        parts += [
            "## Real CTs, nothing pasted",
            "Nobody read these scans: how many of the findings are nodules is not known. Default options.",
            sheet(
                ["scan", "detector", "findings", "seconds"],
                [
                    [scan, name, str(one["findings"]), str(one["seconds"])]
                    for scan, by_detector in made["real"].items()
                    for name, one in by_detector.items()
                ],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def about_backgrounds(counts: Mapping[str, int]) -> str:
    """How few are drawn from, and what an interval over them is worth."""
    return (
        f"The backgrounds are {counts['persons']} persons and {counts['phantoms']} phantoms. Where two persons are all"
        " there are, half of the draws hold but one of them: such an interval shows how far the two are apart, and"
        " nothing of a third."
    )


def rates(froc_: Mapping[str, Mapping[str, Mapping[str, float]]], kind: str) -> str:
    return sheet(
        [f"sensitivity ({kind}) at FP/chest", *(f"{rate:g}" for rate in RATES), "CPM"],
        [
            [
                name,
                *(f"{figures[f'sensitivity at {rate:g} FP/scan']['value']:.3f}" for rate in RATES),
                cell(figures["CPM"], ".3f"),
            ]
            for name, figures in froc_.items()
        ],
    )


def main() -> None:
    given = arguments()
    names: Sequence[DetectorName] = given.detector or list(DETECTORS)
    runtime, scans = Runtime.choose("cpu"), Scans(given.set)
    made_of = {name: DETECTORS[name](Options(detector=name, **ANYWHERE), runtime) for name in names}
    for detector in made_of.values():
        if given.split != "unseen" and detector.loaded.about.get("split_sha256") != scans.split_sha256:
            raise SystemExit(f"{detector.loaded.name} learnt on another split of the patients than that of these scans")
    made = measure(scans, given.split, given.slices_mm, made_of)
    weights = {detector.loaded.name: detector.loaded.sha256 for detector in made_of.values()}
    if given.volumes and "nodulenet" in names:
        patients = stored_split()[0]["test" if given.split == "unseen" else given.split]
        made["outlines"] = rounded(outline_figures(given.volumes, patients))
        weights |= LungNodule("cpu").card.weights_sha256  # refinement's too
    if given.scan:
        made["real"] = {path.stem: {name: in_real(path, name, given.pictures) for name in names} for path in given.scan}
    given.out.mkdir(parents=True, exist_ok=True)
    data = {"scans": scans.digest, **digests([path for path in (given.volumes, *given.scan) if path])}
    write_figures(given.out / "lung_detectors.json", made, weights, data)
    write_text(given.out / "lung_detectors.md", report(made))
    print(report(made))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the detectors side by side.")
    parser.add_argument("--set", type=Path, required=True, help="folder of whole scans")
    parser.add_argument("--split", default="test", choices=("val", "test", "unseen"))
    parser.add_argument("--slices-mm", type=int, default=1, choices=range(1, 11), metavar="1..10")
    parser.add_argument("--volumes", type=Path, help="lidc_voi3d.zip")
    parser.add_argument("--scan", type=Path, action="append", default=[], help="zip of one real CT; repeat it")
    parser.add_argument("--detector", action="append", choices=list(DETECTORS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=Path)
    return parser.parse_args()


def measure(scans: Scans, split: str, slices_mm: int, detectors: Mapping[DetectorName, Detector]) -> dict[str, Any]:
    """Curves on a split of whole scans, as JSON; working points are chosen on val."""
    looks = [partial(marks_of, detector) for detector in detectors.values()]
    found, judged = searched(scans, split, looks, slices_mm)
    val_found, val_scans = (found, judged) if split == "val" else searched(scans, "val", looks, slices_mm)
    donors = [scans.donors[scan.name] for scan in judged] if scans.semi_synthetic else None
    curves = {name: curve(each, judged, donors=donors) for name, each in found.items()}
    val = {name: curve(each, val_scans, rounds=1) for name, each in val_found.items()}
    synthetic = all(scan.semi_synthetic for scan in judged)
    variants = variants_of(found, judged, donors) if split == "test" and donors else {}
    return {
        "semi_synthetic": synthetic,
        "drawn": "backgrounds and the patients of the nodules, crossed" if synthetic else "patients",
        "backgrounds": {kind: len(names) for kind, names in backgrounds(judged).items()},
        "split": split,
        "slices_mm": slices_mm,
        "split_sha256": scans.split_sha256,
        "scans": len(judged),
        "lesions": sum(len(scan.lesions) for scan in judged),
        "froc": {name: rounded(one.figures()) for name, one in curves.items()},
        "variants": {what: {name: rounded(one.figures()) for name, one in by.items()} for what, by in variants.items()},
        "val": {name: round(one.cpm.value, 4) for name, one in val.items()},
        "working_points": {name: [round(working_point(one, r), 3) for r in (1, 2, 4)] for name, one in val.items()},
    }


def backgrounds(judged: Sequence[Scan]) -> dict[str, set[str]]:
    """Whose chests the scans are: of persons, and of phantoms."""
    names = {scan.patient for scan in judged}
    phantoms = {name for name in names if name.startswith(PHANTOM)}
    return {"persons": names - phantoms, "phantoms": phantoms}


def variants_of(
    found: Mapping[str, list[list[Mark]]], judged: Sequence[Scan], donors: Sequence[Sequence[str]] | None = None
) -> dict[str, dict[str, Froc]]:
    """The same marks judged strictly, and on each kind of background by itself; without a kind that is not there."""
    on_phantom = [scan.patient.startswith(PHANTOM) for scan in judged]
    asked = ((STRICT, None, True), (PHANTOMS, True, False), (REAL, False, False), (REAL_STRICT, False, True))
    made = {}
    for what, kind, strict in asked:
        places = [place for place, phantom in enumerate(on_phantom) if kind in (None, phantom)]
        if places:
            scans = [judged[place] for place in places]
            owners = None if donors is None else [donors[place] for place in places]
            made[what] = {
                name: curve([each[place] for place in places], scans, strict=strict, donors=owners)
                for name, each in found.items()
            }
    return made


if __name__ == "__main__":
    main()
