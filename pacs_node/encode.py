"""Findings -> result files: built and checked by `dicom_sr`, written so that a power cut leaves all of one or none.

And the forms a result is sent in to a destination that does not take it as it is, made of the stored files when needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import structlog
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_sr import EncodingError, Fault, Rejected, Written, check_objects, forms, read
from dicom_sr.attributes import UNREADABLE
from dicom_sr.derived import Results
from dicom_sr.files import Files
from dicom_sr.findings import Findings, ImageRef
from dicom_sr.labelmap import SEGMENT_CLASSES, retarget
from dicom_sr.not_run import not_run_reports
from dicom_sr.reading import read_header
from dicom_sr.report import BOXED
from models.pipeline import UnfitInput
from models.read import display
from pacs_node import pack
from pacs_node.durable import sync, write_whole
from pacs_node.errors import GiveUp, TryAgain
from pacs_node.records import FORMS, Edition, Form, Instance, Offer, Package, Prepared, Result, Stored, WhenAsked

log = structlog.get_logger()

REJECTION_NOTE = "rejection-note"  # in the file's name: it is sent only to peers that want one
REASONS = "reasons.txt"  # beside rejected objects
SYNTAX_NAMES: dict[str, str] = {ImplicitVRLittleEndian: "-implicit", RLELossless: "-rle"}  # in the names of folders
AS_STORED = {each.name for each in (forms.SEGMENTATION, forms.REPORT, forms.COMPREHENSIVE, forms.PICTURE)}
NOTE = Form("Rejection Note", KeyObjectSelectionDocumentStorage, ExplicitVRLittleEndian)


def variant_of(asked: Mapping[str, Any]) -> str:
    """What `Findings.variant` says of a pipeline's options: nothing where none are asked for."""
    return json.dumps(dict(asked), sort_keys=True) if asked else ""


def encode_results(
    findings: Findings,
    sources: Sequence[pydicom.Dataset],
    folder: Path,
    *,
    when: datetime,
    revision: int,
    replaces: Sequence[Result] = (),
    note: bool = False,
    rejected: Path | None = None,
) -> list[Result]:
    """Write one job's SEG and SR into `folder`; in sending order. The same arguments write the same bytes.

    sources     headers of the images, in any order
    replaces    objects of earlier results that are void now
    note        also write the Key Object Selection that rejects them
    rejected    where objects are kept that do not pass the checks

    Raises GiveUp when an object does not pass the checks: it is not sent, and the reason names the rule; TryAgain when
    the disk is full or gone.
    """
    before, made = _written(replaces), Files()
    try:
        objects, warnings = check_objects(
            findings, sources, when=when, revision=revision, replaces=before, note=note, files=made
        )
    except EncodingError as error:
        raise _held_back(error, rejected) from error
    return _written_down(objects, folder, warnings, made)


def encode_not_run(
    pipeline: str,
    variant: str,
    reason: str,
    instances: Sequence[Instance],
    folder: Path,
    *,
    version: str,
    edition: Edition,
    rejected: Path | None = None,
) -> list[Result]:
    """Write the report that says why a series was not run, of those of its images that a report can point at; of
    images of several patients or studies one for each.

    Raises GiveUp and TryAgain as `encode_results` does; GiveUp also when there is no image to say it of.
    """
    sources = [header for instance in instances if (header := _header(instance.stored, folder)) is not None]
    try:
        documents = not_run_reports(
            pipeline,
            variant,
            reason,
            sources,
            version=version,
            when=edition.dated,
            revision=edition.result_revision,
            replaces=_written(edition.replaces),
        )
    except Rejected as error:
        raise _held_back(error, rejected) from error
    except EncodingError as error:
        raise GiveUp(str(error)) from error
    return _written_down(documents, folder, (), Files())


@contextmanager
def _file_of(stored: Stored, folder: Path) -> Iterator[Path]:
    """An image as a file of its own. folder: for a copy of it meanwhile."""
    with pack.unpacked([stored], folder / f".image-{threading.get_ident()}") as [path]:
        yield path


def _read(stored: Stored, folder: Path) -> pydicom.Dataset:
    with _file_of(stored, folder) as path:
        return read_header(path)


def _header(stored: Stored, folder: Path) -> pydicom.Dataset | None:
    try:
        return _read(stored, folder)
    except (InvalidDicomError, OSError, *UNREADABLE):
        return None


def _written(results: Sequence[Result]) -> list[Written]:
    return [Written(each.sop_class_uid, each.sop_instance_uid, each.series_uid) for each in results]


def _held_back(error: EncodingError, rejected: Path | None) -> GiveUp:
    """The objects are kept for inspection, with the reasons beside them; the error that ends the job."""
    kept = ""
    if rejected is not None and isinstance(error, Rejected):
        kept = f"; they are kept in {rejected}"
        try:
            _written_down(error.objects, rejected, (), Files())
        except (ValueError, TypeError, AttributeError) as unwritable:
            kept += f" as far as they can be written: {unwritable}"
        (rejected / REASONS).write_text("".join(f"{fault.severity}: {fault}\n" for fault in error.faults))
    return GiveUp(f"results not sent, they fail their own checks: {error}{kept}")


def _written_down(
    objects: Sequence[pydicom.Dataset], folder: Path, warnings: Sequence[Fault], made: Files
) -> list[Result]:
    names = [REJECTION_NOTE if each.Modality == "KO" else str(each.Modality) for each in objects]
    paths = [folder / f"{number:02d}-{name}.dcm" for number, name in enumerate(names, start=1)]
    try:
        for dataset, path in zip(objects, paths, strict=True):
            write_whole(path, methodcaller("write", made.of(dataset)))
        sync(folder.parent.parent)
    except OSError as error:
        raise TryAgain(f"results cannot be written to {folder}: {error.strerror}; free or mount the disk") from error
    remarks = tuple(str(fault) for fault in warnings)
    return [
        Result(
            str(each.SOPInstanceUID),
            str(each.SOPClassUID),
            path,
            str(each.SeriesInstanceUID),
            hashlib.sha256(made.of(each)).hexdigest(),
            remarks if number == 0 else (),
        )
        for number, (each, path) in enumerate(zip(objects, paths, strict=True))
    ]


class ResultForms:
    """The forms of our results for one destination, the best first, and their files beside the results.

    A form is made once and kept in a folder of its own; its UIDs and dates derive from the result it is made of.
    """

    def __init__(self, profile: forms.Profile) -> None:
        self.profile = profile

    def offers(self, package: Package) -> Iterator[Offer]:
        """Each result, then the key images and key objects that are wanted, if there are findings. Raises GiveUp."""
        metas = {path: _meta(path) for path in package.paths}
        for path, meta in metas.items():
            if meta.MediaStorageSOPClassUID == NOTE.sop_class_uid:
                continue
            known = forms.forms_of(meta.MediaStorageSOPClassUID, self.profile)
            drawn = meta.MediaStorageSOPClassUID == SecondaryCaptureImageStorage
            yield Offer(path, meta.MediaStorageSOPInstanceUID, _encodings(known), optional=drawn)
        for path, meta in metas.items():
            captures = self._captures(path, meta.MediaStorageSOPClassUID)
            if captures is not None:
                yield Offer(path, meta.MediaStorageSOPInstanceUID, _encodings((captures,)), optional=True)
        found = any(meta.MediaStorageSOPClassUID == SegmentationStorage for meta in metas.values())
        for path, meta in metas.items():
            is_report = meta.MediaStorageSOPClassUID in forms.REPORTS
            if self.profile.key_objects and is_report and (found or _tells_of_findings(path)):
                yield Offer(path, meta.MediaStorageSOPInstanceUID, _encodings((forms.KEY_OBJECTS,)), optional=True)
        for path, meta in metas.items():  # last: what it rejects is replaced by then
            if meta.MediaStorageSOPClassUID == NOTE.sop_class_uid:
                yield Offer(path, meta.MediaStorageSOPInstanceUID, (NOTE,), optional=True)

    def _captures(self, path: Path, sop_class_uid: str) -> forms.Form | None:
        """The captures that come beside a Segmentation, or beside a report of boxes, if any."""
        if sop_class_uid in forms.REPORTS:
            return forms.BOXES if self.profile.key_images != "none" and _tells_of_boxes(path) else None
        if sop_class_uid != SegmentationStorage:
            return None
        if self.profile.key_images in ("all", "none"):
            return forms.KEY_IMAGES if self.profile.key_images == "all" else None
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "FrameOfReferenceUID" in header:  # of a volume, be it slices or frames of an enhanced image
            return forms.FOREMOST if self.profile.key_images == "largest" else None
        return forms.FOREMOST if read.is_of_clip(header) else None

    def prepare(self, package: Package, offer: Offer, form: Form, sent: Mapping[Path, Sequence[Path]]) -> Prepared:
        """Raises GiveUp with the reason when the result cannot be said so; TryAgain when the disk is full."""
        if form == NOTE:
            return Prepared((offer.path,))
        if form.name == forms.FOREMOST.name and _is_capture(sent.get(offer.path, ())):
            return Prepared(tuple(sent[offer.path]))  # more of them have gone out in place of the Segmentation
        segments = _replaced(sent) if form.sop_class_uid in forms.REFER_TO_SEGMENTS else {}
        own_class = form.sop_class_uid == _meta(offer.path).MediaStorageSOPClassUID
        own_name = form.name in AS_STORED
        as_it_is = own_class and own_name and not segments
        if as_it_is and form.transfer_syntax_uid == ExplicitVRLittleEndian:
            return Prepared((offer.path,))
        name = f"{offer.path.stem}-{form.name}".lower().replace(" ", "-")
        name += SYNTAX_NAMES.get(form.transfer_syntax_uid, "")
        if segments:
            uids = " ".join(str(each.SOPInstanceUID) for each in segments.values())
            name += f"-for-{hashlib.sha256(uids.encode()).hexdigest()[:16]}"
        folder = offer.path.parent / FORMS / name
        try:
            if not folder.is_dir():
                _keep(self._made(package, offer, form, segments), folder, form.transfer_syntax_uid)
        except OSError as error:
            raise TryAgain(f"{form.name} cannot be written to {folder}: {error.strerror}; free the disk") from error
        paths = tuple(sorted(folder.iterdir()))
        first = pydicom.dcmread(paths[0], stop_before_pixels=True, specific_tags=["ImageComments"])
        note = "" if form.name == forms.PICTURE.name else str(first.get("ImageComments", ""))  # of a picture: its title
        return Prepared(paths, note)

    def _made(
        self, package: Package, offer: Offer, form: Form, segments: Mapping[str, pydicom.Dataset]
    ) -> list[pydicom.Dataset]:
        every = {path: pydicom.dcmread(path) for path in package.paths}
        results = Results(
            segmentations=tuple(each for each in every.values() if each.SOPClassUID == SegmentationStorage),
            report=next(each for each in every.values() if each.SOPClassUID in forms.REPORTS),
            sources=WhenAsked(package.sources, lambda stored: _read(stored, offer.path.parent)),
        )

        def pixels(ref: ImageRef) -> np.ndarray:
            if ref.sop_instance_uid not in package.sources:
                raise EncodingError(f"image {ref.sop_instance_uid}, which the results speak of, is not stored here")
            with _file_of(package.sources[ref.sop_instance_uid], offer.path.parent) as path:
                return display(path, ref.frame)

        chain = forms.forms_of(every[offer.path].SOPClassUID, self.profile)
        known = (*chain, forms.FOREMOST, forms.BOXES, forms.KEY_OBJECTS)
        chosen = next(each for each in known if each.name == form.name)
        try:
            objects = chosen.make(every[offer.path], results, pixels)
        except (EncodingError, UnfitInput) as error:
            raise GiveUp(str(error)) from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # how highdicom says no to a header
            log.warning("form.not-made", form=form.name, result=offer.path.name, error=type(error).__name__)
            raise GiveUp(f"{form.name} cannot be made of this result ({type(error).__name__})") from error
        return [retarget(each, segments) for each in objects] if segments else objects


def _tells_of_boxes(report: Path) -> bool:
    if BOXED.encode() not in report.read_bytes():  # parsing one of six findings takes 0.15 s
        return False
    return any(map(read.is_boxed, read.groups(pydicom.dcmread(report))))


def _tells_of_findings(report: Path) -> bool:
    """Whether it is of findings that have no Segmentation."""
    groups = read.groups(pydicom.dcmread(report))
    return any(read.is_boxed(group) or (group.template == "1501" and read.is_finding(group)) for group in groups)


def _encodings(known: Sequence[forms.Form]) -> tuple[Form, ...]:
    return tuple(Form(each.name, each.sop_class_uid, syntax) for each in known for syntax in each.transfer_syntaxes)


def _is_capture(paths: Sequence[Path]) -> bool:
    return any(_meta(path).MediaStorageSOPClassUID == SecondaryCaptureImageStorage for path in paths)


def _replaced(sent: Mapping[Path, Sequence[Path]]) -> dict[str, pydicom.Dataset]:
    """SOP Instance UID of a Segmentation -> the header of another one with the same segments that was sent instead."""
    instead: dict[str, pydicom.Dataset] = {}
    for original, paths in sent.items():
        if tuple(paths) == (original,) or _meta(original).MediaStorageSOPClassUID != SegmentationStorage:
            continue
        other = pydicom.dcmread(paths[0], stop_before_pixels=True)
        own = _meta(original).MediaStorageSOPInstanceUID
        if other.SOPClassUID in SEGMENT_CLASSES and other.SOPInstanceUID != own:
            instead[str(own)] = other
    return instead


def _meta(path: Path) -> pydicom.dataset.FileMetaDataset:
    try:
        return pydicom.filereader.read_file_meta_info(path)
    except (InvalidDicomError, FileNotFoundError) as error:
        raise GiveUp(f"result {path.name} cannot be read: {error}") from error


def _keep(objects: Sequence[pydicom.Dataset], folder: Path, transfer_syntax_uid: str) -> None:
    """All files of a form or none: written beside, then renamed as a whole. Another worker's are as good."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}-{threading.get_ident()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number, dataset in enumerate(objects, start=1):
        if transfer_syntax_uid == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(transfer_syntax_uid)
        with (unfinished / f"{number:02d}-{dataset.Modality}.dcm").open("wb") as file:
            dataset.save_as(
                file,
                enforce_file_format=True,
                implicit_vr=transfer_syntax_uid == ImplicitVRLittleEndian,
                little_endian=True,
            )
            file.flush()
            os.fsync(file.fileno())
    sync(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished)
        if not folder.is_dir():
            raise
    for changed in (folder.parent, folder.parent.parent):
        sync(changed)
