"""`pacs-node run`: files in, results out, in one go. No network and no settings file.

Each series goes through what it would meet in the node: the verdict on its geometry, the inference process, the encoder
with its checks, and the forms that a destination may be sent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pydicom
import structlog
from PIL import Image
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from dicom_sr import attributes, codes
from dicom_sr.findings import Finding, Findings
from dicom_sr.forms import BOXES, KEY_IMAGES, Profile
from dicom_sr.reading import read_header
from dicom_sr.source import headers_by_uid, plane
from models import catalogue
from models.pipeline import Card
from models.pixels import faults
from pacs_node.assemble.geometry import judge
from pacs_node.encode import ResultForms, encode_results, variant_of
from pacs_node.errors import GiveUp, JobError, NodeError, Refused, Told, Unforeseen
from pacs_node.records import Package, Stored, Verdict

log = structlog.get_logger()

DONE, REFUSED, FAILED = 0, 3, 1  # exit codes: a result was written; every series was refused; anything went wrong
KEY_IMAGE = "key-image"
OURS = re.compile(rf"\d\d-[\w-]+\.dcm|{KEY_IMAGE}-\d\d\.(dcm|png)|rejected")  # names that this command writes
MODALITY = re.compile(r"[A-Z]{2,16}")  # that can stand in a folder's name


class NothingToDo(NodeError):
    """There is no series to run, or no place for its results."""


class Runs(Protocol):
    """The inference process."""

    def run(
        self, pipeline: str, options: Mapping[str, Any], files: Sequence[Path], progress: Callable[[float, str], None]
    ) -> Findings: ...


@dataclass(frozen=True)
class Found:
    """The series among some files, and how many files are none of them."""

    series: Mapping[str, tuple[Dataset, ...]]  # Series Instance UID -> headers; `filename` says where each lies
    passed_over: int = 0  # no DICOM, or without the UIDs that say what it is
    again: int = 0  # another copy of an image that is there already


@dataclass(frozen=True)
class Outcome:
    """What became of one series."""

    series_uid: str
    state: str  # "done", "refused", "failed"
    reason: str
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    findings: tuple[dict[str, Any], ...] = ()
    files: tuple[Path, ...] = ()

    def to_json(self) -> str:
        """One line; numbers that are none are null."""
        verdict = None if self.verdict is None else {"fit": self.verdict.fit, "reason": self.verdict.reason}
        told = {
            "series_uid": self.series_uid,
            "state": self.state,
            "reason": self.reason,
            "verdict": verdict,
            "warnings": list(self.warnings),
            "findings": list(self.findings),
            "files": [str(path) for path in self.files],
        }
        return json.dumps(told, ensure_ascii=False, allow_nan=False)


def run(
    found: Found,
    pipeline: str,
    options: Mapping[str, Any],
    out: Path,
    inference: Runs,
    *,
    card: Card | None = None,
    progress: Callable[[str, float, str], None] = lambda series_uid, fraction, text: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Outcome]:
    """What became of each series, one after the other. One that fails stops no other.

    out   where results are written; of several series each has a folder of its own in it
    card  of the pipeline with these options; when not given, as it is declared

    Raises, before anything is run, BadOptions and BadPipeline; NothingToDo if there is no series, or if results could
    meet files that are there.
    """
    if not found.series:
        raise NothingToDo(f"no DICOM image among the files ({found.passed_over} passed over)")
    card = card or catalogue().card(pipeline, options)
    folders = {uid: out / _name(uid, headers[0]) for uid, headers in found.series.items()}
    if len(folders) == 1:
        folders = dict.fromkeys(folders, out)
    for folder in folders.values():
        _refuse_to_overwrite(folder)

    def outcomes() -> Iterator[Outcome]:
        for uid, headers in found.series.items():
            analysis = _Analysis(uid, headers, pipeline, card, dict(options), folders[uid], inference)
            yield analysis.outcome(partial(progress, uid), now())

    return outcomes()


def exit_code(outcomes: Iterable[Outcome]) -> int:
    states = {outcome.state for outcome in outcomes}
    if "failed" in states or not states:
        return FAILED
    return DONE if "done" in states else REFUSED


def find_series(paths: Iterable[Path], out: Path | None = None) -> Found:
    """The series in files and in folders below these; nothing below `out`, where earlier results may lie."""
    series: dict[str, dict[str, Dataset]] = {}
    passed_over = again = 0
    for path in _files(paths, out):
        header = _header(path)
        if header is None:
            passed_over += 1
            continue
        images = series.setdefault(attributes.text(header, "SeriesInstanceUID"), {})
        if (uid := attributes.text(header, "SOPInstanceUID")) in images:
            again += 1
            continue
        images[uid] = header
    return Found({uid: tuple(images.values()) for uid, images in series.items()}, passed_over, again)


def _files(paths: Iterable[Path], out: Path | None) -> Iterator[Path]:
    seen: set[Path] = set()
    ours = out.resolve() if out is not None else None
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            place = file.resolve()
            inside = path.is_dir() and ours is not None and place.is_relative_to(ours)
            if file.is_file() and place not in seen and not inside:
                seen.add(place)
                yield file


def _header(path: Path) -> Dataset | None:
    try:
        header = read_header(path)
        needed = (attributes.text(header, name) for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"))
        return header if all(needed) else None
    except (InvalidDicomError, OSError, *attributes.UNREADABLE):
        return None


def _name(series_uid: str, header: Dataset) -> str:
    """The name of a series' folder: "CT-1a2b3c4d"; a UID may hold anything."""
    modality = attributes.text(header, "Modality")
    kind = modality if MODALITY.fullmatch(modality) else "series"
    return f"{kind}-{hashlib.sha256(series_uid.encode()).hexdigest()[:8]}"


def _refuse_to_overwrite(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NothingToDo(f"{folder} is a file; name a folder for the results with --out")
    there = sorted(path.name for path in folder.iterdir() if OURS.fullmatch(path.name)) if folder.exists() else []
    if there:
        raise NothingToDo(
            f"{folder} holds {there[0]}{f' and {len(there) - 1} more' if len(there) > 1 else ''} already; nothing is "
            "overwritten: remove them, or name another folder with --out"
        )


@dataclass
class _Analysis:
    """One series on its way to results."""

    series_uid: str
    headers: Sequence[Dataset]
    pipeline: str
    card: Card
    options: Mapping[str, Any]
    folder: Path
    inference: Runs
    verdict: Verdict | None = field(default=None, init=False)

    def outcome(self, progress: Callable[[float, str], None], when: datetime) -> Outcome:
        try:
            return self._done(progress, when)
        except Refused as refusal:
            return Outcome(self.series_uid, "refused", str(refusal), self.verdict)
        except Unforeseen as failure:
            log.error("run failed", series=self.series_uid, error=str(failure), trace=failure.trace)
            return Outcome(self.series_uid, "failed", str(failure), self.verdict)
        except JobError as failure:
            return Outcome(self.series_uid, "failed", str(failure), self.verdict)
        except OSError as error:
            told = Told.of(error)
            log.error("run failed", series=self.series_uid, error=told.words, trace=told.trace)
            reason = f"results cannot be written to {self.folder}: {error.strerror or told.words}"
            return Outcome(self.series_uid, "failed", reason, self.verdict)
        except Exception as error:  # noqa: BLE001  one series must not stop the others: its error is its own
            told = Told.of(error)
            log.error("run failed", series=self.series_uid, error=told.words, trace=told.trace)
            return Outcome(self.series_uid, "failed", told.words, self.verdict)

    def _done(self, progress: Callable[[float, str], None], when: datetime) -> Outcome:
        self.verdict = judge(self.headers, [self.card], faults=faults(self.headers))
        if not self.verdict.fit:
            raise Refused(self.verdict.reason)
        of = {attributes.text(header, "SOPInstanceUID"): Path(str(header.filename)) for header in self.headers}
        files, known = [of[uid] for uid in self.verdict.use], headers_by_uid(self.headers)
        sources = [known[uid] for uid in self.verdict.use]
        findings = self.verdict.told(self.inference.run(self.pipeline, self.options, files, progress))
        said = replace(findings, variant=variant_of(self.options))
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".unfinished-") as name:
            made, warnings = self._made(said, sources, of, Path(name), when)
            written = [_moved(path, self.folder / target) for path, target in made]
        count = len(findings.findings)
        return Outcome(
            self.series_uid,
            "done",
            f"{count} finding{'' if count == 1 else 's'}" if count else "nothing found",
            self.verdict,
            (*findings.warnings, *warnings),
            tuple(_told(finding, findings, self.headers) for finding in findings.findings),
            tuple(written),
        )

    def _made(
        self, findings: Findings, sources: Sequence[Dataset], of: Mapping[str, Path], folder: Path, when: datetime
    ) -> tuple[list[tuple[Path, str]], list[str]]:
        """(file, its name among the results) of the SEG, SR, captures and pictures; and warnings."""
        rejected = self.folder / "rejected"
        results = encode_results(findings, sources, folder / "results", when=when, revision=1, rejected=rejected)
        made = [(result.path, result.path.name) for result in results]
        warnings = [remark for result in results for remark in result.remarks]
        package = Package(
            "run", tuple(result.path for result in results), {uid: Stored(path) for uid, path in of.items()}
        )
        try:
            captures = _captures(package)
        except GiveUp as failure:
            captures, warnings = [], [*warnings, f"no key images: {failure}"]
        for number, capture in enumerate(captures, start=1):
            picture = folder / f"{number:02d}.png"
            Image.fromarray(pydicom.dcmread(capture).pixel_array).save(picture)
            made += [(capture, f"{KEY_IMAGE}-{number:02d}.dcm"), (picture, f"{KEY_IMAGE}-{number:02d}.png")]
        return made, warnings


def _captures(package: Package) -> list[Path]:
    """The key images of the findings, with their outlines; none if nothing was found. Raises GiveUp."""
    forms = ResultForms(Profile(key_images="all"))
    wanted = [
        (offer, form)
        for offer in forms.offers(package)
        for form in offer.forms
        if offer.optional and form.name in (KEY_IMAGES.name, BOXES.name)
    ]
    first = {offer.path: (offer, form) for offer, form in reversed(wanted)}  # in one transfer syntax
    return [path for offer, form in first.values() for path in forms.prepare(package, offer, form, {}).paths]


def _moved(path: Path, target: Path) -> Path:
    """Raises FileExistsError: nothing is overwritten."""
    try:
        os.link(path, target)  # not a rename, which would replace
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        with path.open("rb") as source, target.open("xb") as copy:  # a file system without links
            shutil.copyfileobj(source, copy)
    return target.resolve()


def _told(finding: Finding, findings: Findings, headers: Sequence[Dataset]) -> dict[str, Any]:
    """One finding in numbers: where it is, how large and how certain."""
    sizes = {m.name: m.value for m in finding.measurements if m.unit == codes.MM and m.derivation is None}
    return {
        "label": finding.label,
        **_where(finding, findings, headers_by_uid(headers)),
        "long_axis_mm": _number(sizes.get(codes.LONG_AXIS)),
        "short_axis_mm": _number(sizes.get(codes.SHORT_AXIS)),
        "certainty": _number(finding.certainty),
    }


def _where(finding: Finding, findings: Findings, headers: Mapping[str, Dataset]) -> dict[str, Any]:
    """The centre of mass: in the patient, where the images have a place there; else on the key image.

    centre_lps_mm   x, y, z
    frame, pixel    number of the frame from 1; (column, row) of a pixel, (0, 0) being the first one's centre
    """
    z0, y0, x0 = finding.offset_zyx
    image = findings.images[finding.key_image]
    if finding.extent == "none":
        return {"image": image.sop_instance_uid, "frame": image.frame or 1}
    if findings.geometry == "volume":
        planes = [plane(headers[ref.sop_instance_uid], ref.frame) for ref in findings.images[z0:][: len(finding.mask)]]
        if all(each.is_in_space for each in planes):
            cut = [(each, np.argwhere(part)) for each, part in zip(planes, finding.mask, strict=True) if part.any()]
            middles = [
                each.point_lps_mm(y0 + float(pixels[:, 0].mean()), x0 + float(pixels[:, 1].mean()))
                for each, pixels in cut
            ]
            centre = np.average(middles, axis=0, weights=[len(pixels) for _, pixels in cut])
            return {"centre_lps_mm": [_number(value) for value in centre]}
    on_key = finding.mask[finding.key_image - z0]
    row, column = np.argwhere(on_key if on_key.any() else finding.mask.any(axis=0)).mean(axis=0)
    return {
        "image": image.sop_instance_uid,
        "frame": image.frame or 1,
        "pixel": [_number(x0 + column), _number(y0 + row)],
    }


def _number(value: float | None) -> float | None:
    return round(float(value), 3) if value is not None and math.isfinite(value) else None
