"""command: a folder of DICOM files in, what a program of another maker writes out, checked, as results of ours.

The command reads copies, sees no network where the machine can take that away, and ends with its job: by itself, by its
limits, or with the node.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.misc import is_dicom

from dicom_sr import attributes
from dicom_sr.findings import Algorithm, Findings, ImageRef
from models.command import child
from models.command.boxes import Stack, placed_findings
from models.command.card import card
from models.command.masks import is_segmentation, nifti_marks, read_dicom, segmentation_marks
from models.command.options import INPUT, OUTPUT, Options
from models.command.results import NAME, Results, Said, evaluations, measurements, read_results
from models.command.sandbox import NO_SANDBOX, Sandbox, sandbox
from models.label_map import Marked, findings_of, not_found, sought_of
from models.labels import Label, by_number
from models.pipeline import BadOutput, Progress
from models.read import Volume, header_of, read_ct, read_volume
from models.scratch import scratch_folder

NIFTI = (".nii", ".nii.gz")
HANDED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "XDG_RUNTIME_DIR")  # of the node's environment
LEAST_SECRET = 3  # characters: shorter ones would be found in every word


class Command:
    """Pipeline "command". Research use only, not for diagnostic use."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.options = Options.read(options)
        self.device = device
        declared = card(self.options)
        version = f"{self.options.version}+{digest(self.options.command)[:8]}"
        self.card = replace(declared, algorithm=Algorithm(self.options.name, version))

    def warm(self) -> None:
        """The sandbox is tried, so that the log of the start says what commands run in."""
        self.sandbox()

    def sandbox(self) -> Sandbox | None:
        return sandbox() if self.options.network == "none" else None

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        started = time.monotonic()
        progress(0.0, "reading the images")
        headers = [header_of(file) for file in files]
        modality = attributes.text(headers[0], "Modality")
        volume = self.volume(files)
        progress(0.05, f"running {self.options.name}")
        with scratch_folder() as folder:
            self.execute(files, headers, folder)
            progress(0.9, f"reading what {self.options.name} wrote")
            answer = read_answer(folder / "output", volume, self.options.by_number)
        images = volume.images if volume is not None else _images(headers)
        found, remarks = ([], []) if volume is None else findings_of(answer.marked, volume, modality)
        stack = Stack.of(images, names_of(headers), headers)
        found += placed_findings(answer.results.findings, answer.table, stack, len(found))
        told = found or answer.results.measurements or answer.results.evaluations
        sought, sought_site = sought_of(answer.labels) if answer.labels or not told else (None, None)
        progress(1.0, "done")
        return Findings(
            pipeline=self.card.name,
            geometry="volume" if volume is not None else "image",
            images=images,
            findings=tuple(found),
            algorithm=self.card.algorithm,
            measurements=measurements(answer.results.measurements),
            evaluations=evaluations(answer.results.evaluations),
            warnings=(
                *(volume.remarks if volume is not None else ()),
                *(() if self.options.network == "own" or self.sandbox() is not None else (NO_SANDBOX,)),
                *answer.remarks,
                *remarks,
                *not_found(answer.labels, [finding.label for finding in found]),
                *answer.results.warnings,
            ),
            sought=sought,
            sought_site=sought_site,
            facts={"seconds": round(time.monotonic() - started, 1), "tool": self.options.name, "images": len(files)},
        )

    def volume(self, files: Sequence[Path]) -> Volume | None:
        if not self.options.volume:
            return None
        return read_ct(files) if self.card.requires.hounsfield else read_volume(files)

    def execute(self, files: Sequence[Path], headers: Sequence[Dataset], folder: Path) -> None:
        """The command in `folder`, with input/ and output/. Raises BadOutput when it fails."""
        images, output, scratch = folder / "input", folder / "output", folder / "tmp"
        for each in (images, output, scratch):
            each.mkdir()
        hand_over(files, names_of(headers), images)
        words = [word.replace(INPUT, str(images)).replace(OUTPUT, str(output)) for word in self.options.command]
        around = self.sandbox()
        prefix = [] if around is None else around.prefix(images, self.options.device)
        memory_gb = self.options.memory_gb
        limits = child.Limits(self.options.timeout_s, None if memory_gb is None else int(memory_gb * 1e9))
        child.run([*prefix, *words], folder, self.environment(scratch), limits, secrets_of(headers))

    def environment(self, scratch: Path) -> dict[str, str]:
        """What a program needs to start; nothing else of the node's own environment, which may hold passwords."""
        index = int(self.device.partition(":")[2] or 0) if self.device.startswith("cuda") else 0
        ours = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]  # the node's own
        gpu = ours[index] if index < len(ours) else str(index)
        threads = {} if self.options.threads is None else {"OMP_NUM_THREADS": str(self.options.threads)}
        return {
            **{name: os.environ[name] for name in HANDED_ON if name in os.environ},
            "TMPDIR": str(scratch),
            "CUDA_VISIBLE_DEVICES": gpu if self.options.device else "",
            **threads,
            **self.options.environment,
        }


def digest(command: Sequence[str]) -> str:
    """SHA-256 over the words of a command, and over the content of every file that one of them names."""
    total = hashlib.sha256()
    for place, word in enumerate(command):
        total.update(f"{word}\0".encode())
        path = Path((shutil.which(word) if place == 0 else None) or word)
        if path.is_absolute() and path.is_file():
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def names_of(headers: Sequence[Dataset]) -> dict[str, str]:
    """SOP Instance UID -> what the file is called that a command is given: 00012.dcm is Instance Number 12."""
    names: dict[str, str] = {}
    taken: Counter[int] = Counter()
    for header in sorted(headers, key=lambda one: (_number(one), attributes.text(one, "SOPInstanceUID"))):
        number = _number(header)
        taken[number] += 1
        again = f"-{taken[number]}" if taken[number] > 1 else ""
        names[attributes.text(header, "SOPInstanceUID")] = f"{number:05d}{again}.dcm"
    return names


def hand_over(files: Sequence[Path], names: Mapping[str, str], folder: Path) -> None:
    """Copies, so that nothing that is done to them is done to the node's files."""
    for file in files:
        copy = folder / names[attributes.text(header_of(file), "SOPInstanceUID")]
        shutil.copyfile(file, copy)
        copy.chmod(0o444)
    folder.chmod(0o555)


def _number(header: Dataset) -> int:
    return max(0, attributes.whole_or(header, "InstanceNumber", 0))


def _images(headers: Sequence[Dataset]) -> tuple[ImageRef, ...]:
    """Of images that are no volume: each, or each of its frames, by Instance Number."""
    refs = []
    for header in sorted(headers, key=lambda one: (_number(one), attributes.text(one, "SOPInstanceUID"))):
        frames = attributes.whole_or(header, "NumberOfFrames", 0)
        uids = attributes.text(header, "SOPClassUID"), attributes.text(header, "SOPInstanceUID")
        refs += [ImageRef(*uids, frame) for frame in range(1, frames + 1)] or [ImageRef(*uids)]
    return tuple(refs)


def secrets_of(headers: Sequence[Dataset]) -> list[str]:
    """What must not be quoted: all that the patient module says, and names of persons, whole and in their parts."""
    found: set[str] = set()
    for element in attributes.elements(headers[0]):
        if element.tag.group == 0x0010 or element.VR == "PN" or element.keyword == "AccessionNumber":
            text = str(element.value)
            found |= {text, *text.replace("^", " ").replace("=", " ").split()}
    return [text for text in found if len(text) >= LEAST_SECRET]


@dataclass
class Answer:
    """What a command wrote, read and checked."""

    results: Results
    table: Mapping[int, Label]
    marked: list[Marked] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[Label]:
        return [*self.table.values()]


def read_answer(folder: Path, volume: Volume | None, table: Mapping[int, Label]) -> Answer:
    """Raises BadOutput, with the name of the file and what is wrong with it."""
    written = read_results(folder)
    results = written or Results()
    labels = {**by_number(results.labels), **table}
    answer = Answer(results, labels)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    masks = [path for path in paths if path.name.endswith(NIFTI) or is_dicom(path)]
    if not masks and written is None:
        raise BadOutput(f"the command ended well and wrote no result: no DICOM file, no NIfTI file, no {NAME}")
    for path in masks:
        _add(path, volume, labels, answer)
    answer.marked = _with_what_is_said(answer.marked, labels, results)
    return answer


def _add(path: Path, volume: Volume | None, labels: Mapping[int, Label], answer: Answer) -> None:
    dataset = None if path.name.endswith(NIFTI) else read_dicom(path)
    if dataset is not None and not is_segmentation(dataset):
        kind = getattr(dataset.get("SOPClassUID"), "name", "DICOM object")
        answer.remarks.append(f"{path.name} is a {kind}, which is not taken over")
        return
    if volume is None:
        raise BadOutput(f"{path.name} is a mask; masks need volume = true among the options")
    if dataset is None:
        answer.marked += nifti_marks(path, volume, labels)
        return
    marked, remarks = segmentation_marks(dataset, path.name, volume, labels)
    answer.marked += marked
    answer.remarks += remarks


def _with_what_is_said(marked: Sequence[Marked], labels: Mapping[int, Label], results: Results) -> list[Marked]:
    said: dict[int, Said] = {}
    for one in results.findings:
        if one.file is not None:
            continue
        named = [each for each in marked if each.number == one.label]
        if not named and one.label not in labels:
            raise BadOutput(f"{NAME} of the command speaks of label {one.label}, which nothing marks or names")
        if any(each.label.separate for each in named):
            raise BadOutput(f"{NAME} of the command speaks of label {one.label}, whose parts are findings of their own")
        said[one.label] = one  # of a label whose mask is empty nothing is reported: it was not found
    return [_told(each, said[each.number]) if each.number in said else each for each in marked]


def _told(marked: Marked, said: Said) -> Marked:
    numbers, statements = measurements(said.measurements), evaluations(said.evaluations)
    return replace(marked, certainty=said.certainty, measurements=numbers, evaluations=statements)
