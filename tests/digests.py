"""A fingerprint of every object that is made: what a move or a rename must not change.

`python -m tests.digests` prints those of the test matrix (every case of findings x every form); `--write` keeps them
in digests.json, which a test holds against what is made today. `--phantoms` prints those of the phantoms, `--of FOLDER`
those of the DICOM files in a folder, such as the results of `make demo`, to be compared before and after a change on
one machine: a phantom and what a network finds in it differ in last digits from processor to processor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset

from dicom_sr.findings import ImageRef
from dicom_sr.forms import (
    ALL_FRAMES,
    CHAINS,
    FOR_OHIF,
    FOREMOST,
    KEY_OBJECTS,
    LABEL_MAP,
    LABEL_MAP_ALL_FRAMES,
    REPORT,
    SEGMENTATION,
    Form,
    Results,
)
from dicom_sr.source import EncodingError
from models.phantoms import breast_cine, breast_ultrasound, chest_ct
from tests.results import CASES, encoded

KEPT = Path(__file__).with_name("digests.json")
TIMES = ("DA", "TM", "DT")


def digest(dataset: Dataset) -> str:
    """SHA-256 of all but dates and times (those of a result are its job's), the File Meta Information included."""
    whole = hashlib.sha256()
    for part in (getattr(dataset, "file_meta", None), dataset):
        for element in part.iterall() if part is not None else ():
            if element.VR not in TIMES and element.VR != "SQ":
                value = element.value if isinstance(element.value, bytes) else str(element.value).encode()
                whole.update(f"{element.tag} {element.VR} {len(value)} ".encode() + value)
    return whole.hexdigest()


def matrix() -> dict[str, str]:
    """Case, form, number -> digest, or the reason for which that form cannot be made of it."""
    found = {}
    for name in CASES:
        case, objects = encoded(name)
        results = Results(objects[:-1], objects[-1], {str(h.SOPInstanceUID): h for h in case.headers})
        shape = (int(case.images[0].Rows), int(case.images[0].Columns), 3)
        for form, original, number in _forms(results):
            key = f"{name} / {form.name} of {number}"
            try:
                made = form.make(original, results, lambda ref, shape=shape: _grey(ref, shape))
            except EncodingError as error:
                found[key] = str(error)
                continue
            found |= {f"{key} / {n}": digest(each) for n, each in enumerate(made, start=1)}
    return found


def _forms(results: Results) -> list[tuple[Form, Dataset, int]]:
    """Each form with the result that it is made of, and which of the results of that class this is."""
    of_segmentation = (*CHAINS[SEGMENTATION.sop_class_uid], LABEL_MAP, ALL_FRAMES, LABEL_MAP_ALL_FRAMES, FOREMOST)
    of_report = (*CHAINS[REPORT.sop_class_uid], KEY_OBJECTS, *FOR_OHIF.values())
    return [
        *((form, each, n) for n, each in enumerate(results.segmentations, start=1) for form in of_segmentation),
        *((form, results.report, 1) for form in of_report),
    ]


def _grey(ref: ImageRef, shape: tuple[int, int, int]) -> np.ndarray:
    return np.full(shape, 90, np.uint8)


def phantoms() -> dict[str, str]:
    """The images that demo and tests are made of, in the order of their files."""
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "chest CT": chest_ct(Path(folder) / "ct", seed=7, slices=24, size=128, spacing_mm=(5.0, 2.8, 2.8)),
            "breast ultrasound": breast_ultrasound(Path(folder) / "us", seed=7),
            "breast cine": breast_cine(Path(folder) / "cine", seed=7),
        }
        return {name: _together([pydicom.dcmread(file) for file in truth.files]) for name, truth in made.items()}


def _together(datasets: list[Dataset]) -> str:
    return hashlib.sha256("".join(map(digest, datasets)).encode()).hexdigest()


def of_folder(folder: Path) -> dict[str, str]:
    """Kind and digest of every DICOM file below a folder, whatever it is called."""
    made = [pydicom.dcmread(file) for file in sorted(folder.rglob("*.dcm"))]
    return {f"{each.SOPClassUID.name} {each.SOPInstanceUID}": digest(each) for each in made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--phantoms", action="store_true")
    parser.add_argument("--of", type=Path)
    given = parser.parse_args()
    made = of_folder(given.of) if given.of else phantoms() if given.phantoms else matrix()
    text = json.dumps(made, indent=1, sort_keys=True) + "\n"
    if given.write:
        KEPT.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
