"""Findings of a command that have no mask: a box on one image or several, or the image alone that something is on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset

from dicom_sr.findings import Finding, ImageRef
from dicom_sr.slices import size_of
from models.command.results import NAME, Said, evaluations, measurements
from models.labels import Label
from models.pipeline import BadOutput


@dataclass(frozen=True, eq=False)
class Stack:
    """The images that findings speak of, by the names of the files that the command was given."""

    images: Sequence[ImageRef]
    names: Mapping[str, str]  # SOP Instance UID -> name of the file
    sizes: Mapping[str, tuple[int, int]]  # SOP Instance UID -> rows, columns

    @classmethod
    def of(cls, images: Sequence[ImageRef], names: Mapping[str, str], headers: Sequence[Dataset]) -> Stack:
        return cls(images, names, {str(header.SOPInstanceUID): size_of(header) for header in headers})

    def index(self, file: str, frame: int | None) -> int:
        """Raises BadOutput when there is no such image."""
        here = [k for k, ref in enumerate(self.images) if self.names.get(ref.sop_instance_uid) == file]
        if not here:
            raise BadOutput(f"{NAME} of the command names '{file}', which is no file that it was given")
        if self.images[here[0]].frame is None:
            if frame is not None:
                raise BadOutput(f"{NAME} of the command names frame {frame} of {file}, which has no frames")
            return here[0]
        place = next((k for k in here if self.images[k].frame == (frame or 1)), None)
        if place is None or (frame is None and len(here) > 1):
            raise BadOutput(f"{NAME} of the command must name a frame of {file}, 1 to {len(here)}")
        return place


def placed_findings(said: Sequence[Said], labels: Mapping[int, Label], stack: Stack, before: int) -> list[Finding]:
    """Those of `said` that name a file. before: how many findings there are already. Raises BadOutput."""
    alone = [one for one in said if one.file is not None]
    count, numbers = Counter(one.label for one in alone), Counter[int]()
    found: list[Finding] = []
    for one in alone:
        if (label := labels.get(one.label)) is None:
            raise BadOutput(f"{NAME} of the command speaks of label {one.label}, which no table names")
        numbers[one.label] += 1
        facts = {
            "number": before + len(found) + 1,
            "label": f"{label.name} {numbers[one.label]}" if count[one.label] > 1 else label.name,
            "category": label.category_code,
            "type": label.type_code,
            "site": label.site_code,
            "laterality": label.laterality_code,
            "certainty": one.certainty,
            "measurements": measurements(one.measurements),
            "evaluations": evaluations(one.evaluations),
            "colour": label.rgb,
        }
        found.append(_placed(one, stack, facts))
    return found


def _placed(one: Said, stack: Stack, facts: Mapping[str, Any]) -> Finding:
    assert one.file is not None
    first = stack.index(one.file, one.frame)
    if one.rows is None or one.columns is None:
        return Finding.on_image(first, **facts)
    last = stack.index(one.last_file or one.file, one.last_frame or one.frame)
    first, last = min(first, last), max(first, last)
    rows, columns = stack.sizes[stack.images[first].sop_instance_uid]
    for (_, end), count, what in ((one.rows, rows, "row"), (one.columns, columns, "column")):
        if end >= count:
            raise BadOutput(f"{NAME} of the command has a box to {what} {end} of {one.file}, whose last is {count - 1}")
    size = last - first + 1, one.rows[1] - one.rows[0] + 1, one.columns[1] - one.columns[0] + 1
    return Finding.boxed((first, one.rows[0], one.columns[0]), size, **facts)
