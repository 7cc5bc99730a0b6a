"""What NoduleNet finds at the certainty that is served: real nodules by their density, and a whole scan as reported.

    python -m models.training.lung_nodule.figures.found --volumes lidc_voi3d.zip --scan ct_LIDC-IDRI-0003.zip

--volumes  nodule volumes of LIDC-IDRI, of the patients of --split: the detector alone, searched as it serves; of what
           is found the outline as reported, beside those that the source of NoduleNet prints
--scan     the zip of a whole scan of LIDC-IDRI, DICOM and the readers' XML: the pipeline with default options

A nodule is found when a reported mark has its centre on the readers' mask (volumes), or a finding's mask overlaps it
(scan). Density is the median HU of the readers' mask. Of a scan the nodules are those of MIN_READERS readers or more;
what fewer marked is neither a nodule nor a mistake. Writes lung_found.json and lung_found.md into --out.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from openpyxl import load_workbook
from rich.progress import track

from dicom_sr import codes
from dicom_sr.findings import Finding
from models.grid import in_common, isotropic
from models.lung_nodule.detections import Detection3D
from models.lung_nodule.detectors import NoduleNetDetector, candidate
from models.lung_nodule.nodulenet import detect as volumes
from models.lung_nodule.pipeline import LungNodule
from models.lung_nodule.refine import refine
from models.lung_nodule.texture import SOLID_ABOVE_HU
from models.measure import calipers
from models.training.evaluation.metrics import dice, interval, iou, rounded
from models.training.evaluation.provenance import digests, write_figures
from models.training.evaluation.tables import cell, sheet
from models.training.files import write_text
from models.training.lung_nodule.data import lidc
from models.training.lung_nodule.data.nodule_volumes import BEYOND_MM, on_its_pixels, small_scan
from models.training.lung_nodule.data.semisynthetic import Donor, donor_names, read_donor, why_not_donor
from models.training.lung_nodule.data.slices import MAJORITY, stored_split
from models.training.lung_nodule.figures.detectors import readers

GROUND_GLASS_HU = -500.0  # median below it; the independent check's border, too
TEXTURES = {1: "non-solid (1, 2)", 2: "non-solid (1, 2)", 3: "part-solid (3)", 4: "solid (4, 5)", 5: "solid (4, 5)"}


# mean and standard deviation of IoU and Dice, percent, as the source of NoduleNet prints them: its own and its peers'
PUBLISHED = (
    ("NoduleNet, nodules of 3 readers", "69.98 ± 10.80", "81.80 ± 8.65"),
    ("NoduleNet, nodules of 4 readers", "71.85 ± 10.48", "83.10 ± 8.85"),
    ("Central Focused Network", "71.16 ± 12.22", "82.15 ± 10.76"),
    ("DeepLung", "", "73.89 ± 3.87"),
    ("iW-Net", "55.00 ± 14.00", ""),
)


@dataclass(frozen=True)
class Sought:
    """A nodule volume: how certain the detector is of the surest mark on it (0: none), and what the nodule is like."""

    patient: str
    certainty: float
    median_hu: float
    texture: str  # as the table in the zip has it; empty where it has none
    readers: int = 0  # who described it: 3 or 4; 0 where the table does not say
    iou: float | None = None  # of the outline as reported; None for a nodule that is not reported
    dice: float | None = None

    @property
    def density(self) -> str:
        if self.median_hu < GROUND_GLASS_HU:
            return f"median below {GROUND_GLASS_HU:g} HU"
        if self.median_hu < SOLID_ABOVE_HU:
            return f"median {GROUND_GLASS_HU:g} to {SOLID_ABOVE_HU} HU"
        return f"median from {SOLID_ABOVE_HU} HU on"


# ------------------------------------------------------------------------------------------------------------ volumes


def textures(archive: zipfile.ZipFile) -> dict[str, str]:
    """Name of each nodule volume -> the readers' texture, one of TEXTURES; without those that the table leaves out."""
    page = load_workbook(BytesIO(archive.read("metadata.xlsx")), read_only=True).active
    assert page is not None
    head, *rows = page.iter_rows(values_only=True)
    column = {name: place for place, name in enumerate(head)}
    found = {}
    for row in rows:
        if row[column["patient_id"]] and row[column["Texture_value"]] is not None:
            rating = round(float(str(row[column["Texture_value"]])))
            found[f"{row[column['patient_id']]}_{row[column['nodule_id']]}"] = TEXTURES[rating]
    return found


def surest_on(detector: NoduleNetDetector, donor: Donor) -> Detection3D | None:
    """The surest mark with its centre on the nodule, searched as the detector serves, on the donor's voxels of 1 mm."""
    scan = small_scan(donor)
    truth = np.pad(isotropic(donor.mask, donor.spacing_mm), BEYOND_MM)
    last = np.array(truth.shape) - 1  # the middle of a box may lie beyond the volume
    found = detector.look(lambda: scan.hu, scan.lungs, lambda _share, _what: None)
    on = [one for one in found if truth[tuple(np.clip(np.rint(one.centre_zyx).astype(int), 0, last))]]
    best = max(on, key=lambda one: one.score, default=None)
    return None if best is None else volumes.move(best, [-BEYOND_MM] * 3)


def outline(pipeline: LungNodule, donor: Donor, mark: Detection3D) -> np.ndarray | None:
    """bool like the donor's mask: what the pipeline would report of a mark; None for one that misses the volume."""
    assert pipeline.refiner is not None
    volume = on_its_pixels(donor)
    first = candidate(mark, (0, 0, 0), volume)
    if first is None:
        return None
    within_mm, mix = pipeline.detector.within_mm, pipeline.mix()
    (again,) = refine(volume, [first], pipeline.refiner, side=pipeline.refiner.side, within_mm=within_mm, mix=mix)
    drawn = np.zeros(donor.mask.shape, bool)
    drawn[again.candidate.box] = again.candidate.mask
    return drawn


def sought(path: Path, patients: Sequence[str], pipeline: LungNodule) -> list[Sought]:
    detector, found = pipeline.detector, []
    assert isinstance(detector, NoduleNetDetector)
    with zipfile.ZipFile(path) as archive:
        rated, described = textures(archive), readers(archive)
        for name in track(donor_names(archive, patients), "nodule volumes"):
            donor = read_donor(archive, name)
            if why_not_donor(donor) is not None:
                continue
            number = f"{donor.patient}_{donor.name.rsplit('_', 1)[-1]}"
            best = surest_on(detector, donor)
            reported = best is not None and best.score >= detector.certainty
            drawn = outline(pipeline, donor, best) if best is not None and reported else None
            found.append(
                Sought(
                    donor.patient,
                    0.0 if best is None else float(best.score),
                    float(np.median(donor.hu[donor.mask])),
                    rated.get(number, ""),
                    described.get(number, 0),
                    None if drawn is None else iou(drawn, donor.mask),
                    None if drawn is None else dice(drawn, donor.mask),
                )
            )
    return found


def outlines(found: Sequence[Sought]) -> dict[str, Any]:
    """Mean with its interval over patients, and standard deviation, of IoU and Dice of what is reported."""
    drawn = [one for one in found if one.dice is not None]
    groups = {"all": drawn} | {f"{n} readers": [one for one in drawn if one.readers == n] for n in (3, 4)}
    made: dict[str, Any] = {}
    for name, some in groups.items():
        if some:
            made[name] = {"nodules": len(some)}
            for what, values in (("IoU", [one.iou for one in some]), ("Dice", [one.dice for one in some])):
                made[name] |= rounded({what: interval(np.array(values, float), [one.patient for one in some])})
                made[name][f"{what}, standard deviation"] = round(float(np.std(np.array(values, float))), 4)
    return made


def shares(found: Sequence[Sought], certainty: float) -> dict[str, Any]:
    """Of all and of each group: how many nodules, and the share found with its interval over patients."""
    groups = {"all": [*found]}
    for kind in ("density", "texture"):
        names = sorted({getattr(one, kind) for one in found} - {""})
        groups |= {f"{kind}, {name}": [one for one in found if getattr(one, kind) == name] for name in names}
    return {
        name: {
            "nodules": len(some),
            "patients": len({one.patient for one in some}),
            **rounded(
                {"found": interval([float(one.certainty >= certainty) for one in some], [one.patient for one in some])}
            ),
        }
        for name, some in groups.items()
    }


# --------------------------------------------------------------------------------------------------------------- scan


def in_scan(path: Path) -> dict[str, Any]:
    """A whole scan through the pipeline with default options, held against what its readers outlined."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        dicom, xml = (sorted(Path(folder).rglob(kind)) for kind in ("*.dcm", "*.xml"))
        (scan,) = lidc.dicom_with_xml(dicom, xml)
        volume, readings, tolerance_mm = lidc.read_scan(scan)
        outlined = lidc.nodules(volume, readings, tolerance_mm)
        reported = LungNodule("cpu").run(scan.files, lambda _share, _what: None).findings
    rows, taken = [], set()
    for nodule in outlined:
        truth = nodule.votes >= min(MAJORITY, int(nodule.votes.max()))
        shared = [in_common(truth, nodule.offset_zyx, one.mask, one.offset_zyx) for one in reported]
        hits = [number for number, voxels in enumerate(shared) if voxels]
        taken |= set(hits)
        if nodule.readers < lidc.MIN_READERS:
            continue
        best = max(hits, key=lambda number: shared[number], default=None)
        z = int(truth.sum(axis=(1, 2)).argmax())
        row: dict[str, Any] = {
            "readers": nodule.readers,
            "readers' long axis, mm": round(calipers(truth[z], volume.spacing_mm[1:]).long_mm, 1),
            "found": best is not None,
        }
        if best is not None:
            one = reported[best]
            row |= {
                "certainty": round(float(one.certainty or 0), 3),
                "long axis, mm": round(long_axis_mm(one), 1),
                "Dice": round(2 * int(shared[best]) / float(truth.sum() + one.mask.sum()), 3),
            }
        rows.append(row)
    return {
        "scans": 1,
        "nodules": rows,
        "found": sum(row["found"] for row in rows),
        "outlined by fewer readers": len(outlined) - len(rows),
        "findings": len(reported),
        "findings on nothing that a reader outlined": len(reported) - len(taken),
    }


def long_axis_mm(finding: Finding) -> float:
    """As reported."""
    return float(next(one.value for one in finding.measurements if one.name == codes.LONG_AXIS))


# ------------------------------------------------------------------------------------------------------------- report


def page(made: Mapping[str, Any]) -> str:
    """The Markdown of what was measured."""
    parts = ["# What NoduleNet finds at the served certainty"]
    if "volumes" in made:
        parts += [
            f"Nodule volumes of LIDC-IDRI, real, of the {made['split']} patients. Found: a mark of certainty"
            f" {made['certainty']:g} or more, as reported, has its centre on the readers' mask; before the rules of"
            " size and place. 95 % intervals by 1000 bootstraps over patients. Density: of the readers'"
            " mask; readers draw beyond the border, so small solid nodules have a low median, too. Texture: the"
            " readers' own rating, as the table of the volumes has it.",
            sheet(
                ["", "nodules", "patients", "found"],
                [
                    [name, str(one["nodules"]), str(one["patients"]), cell(one["found"], ".3f")]
                    for name, one in made["volumes"].items()
                ],
            ),
        ]
        percent = [
            [f"here, {name}", *(spread(one, what) for what in ("IoU", "Dice")), str(one["nodules"])]
            for name, one in made["outlines"].items()
        ]
        parts += [
            "## Outlines of those, beside the source's table",
            "As reported, refined, on their own pixels; mean ± standard deviation over nodules, percent. The source's"
            " rows are as printed, of other nodules and folds of LIDC-IDRI; ours are those found at that certainty.",
            sheet(["", "IoU", "Dice", "nodules"], [*percent, *([*row, ""] for row in PUBLISHED)]),
        ]
    for name, one in made.get("scans", {}).items():
        parts += [
            f"## {name}, as reported",
            f"One real scan (n = 1) with default options: {one['found']} of {len(one['nodules'])} nodules that"
            f" {lidc.MIN_READERS} or more readers outlined were found;"
            f" {one['findings on nothing that a reader outlined']} of the {one['findings']} findings lie on nothing"
            f" that any reader outlined (nodules of fewer readers here: {one['outlined by fewer readers']}). One scan"
            " has no interval, and shows no more.",
            sheet(
                ["readers", "long axis, readers, mm", "long axis, reported, mm", "certainty", "Dice"],
                [
                    [
                        str(row["readers"]),
                        format(row["readers' long axis, mm"], ".1f"),
                        *(
                            format(row[what], form) if row["found"] else "not found"
                            for what, form in (("long axis, mm", ".1f"), ("certainty", ".3f"), ("Dice", ".3f"))
                        ),
                    ]
                    for row in one["nodules"]
                ],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def spread(one: Mapping[str, Any], what: str) -> str:
    return f"{100 * one[what]['value']:.2f} ± {100 * one[f'{what}, standard deviation']:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=Path)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--scan", type=Path, action="append", default=[], help="repeat it for more")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args(arguments)
    if not given.volumes and not given.scan:
        parser.error("name --volumes or --scan")
    pipeline = LungNodule("cpu", {"detector": "nodulenet"})
    assert isinstance(pipeline.detector, NoduleNetDetector)
    patients, split_sha256 = stored_split()
    certainty = pipeline.detector.certainty
    made: dict[str, Any] = {"split": given.split, "split_sha256": split_sha256, "certainty": certainty}
    if given.volumes:
        found = sought(given.volumes, patients[given.split], pipeline)
        made |= {"volumes": shares(found, certainty), "outlines": outlines(found)}
    if given.scan:
        made["scans"] = {path.stem: in_scan(path) for path in given.scan}
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "lung_found.json"
    write_figures(
        path, made, pipeline.card.weights_sha256, digests([one for one in (given.volumes, *given.scan) if one])
    )
    write_text(path.with_suffix(".md"), page(made))
    print(page(made))


if __name__ == "__main__":
    main()
