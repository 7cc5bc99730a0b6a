"""Findings -> result files: built and checked by `dicom_sr`, written so that a power cut leaves all of one or none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pydicom

from dicom_sr import EncodingError, encode
from dicom_sr.findings import Findings
from pacs_node.errors import GiveUp, TryAgain
from pacs_node.records import Result


def encode_results(
    findings: Findings, files: Sequence[Path], folder: Path, *, when: datetime, revision: int
) -> list[Result]:
    """Write one job's SEG and SR into `folder`; in sending order. The same arguments write the same bytes.

    Raises GiveUp when an object does not pass the checks: it is not sent, and the reason names the check; TryAgain when
    the disk is full or gone.
    """
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    try:
        objects = encode(findings, sources, when=when, revision=revision)
    except EncodingError as error:
        raise GiveUp(f"results not sent, they fail their own checks: {error}") from error
    results = [
        Result(str(each.SOPInstanceUID), str(each.SOPClassUID), folder / f"{number:02d}-{each.Modality}.dcm")
        for number, each in enumerate(objects, start=1)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for dataset, result in zip(objects, results, strict=True):
            _write(dataset, result.path)
        for changed in (folder, folder.parent, folder.parent.parent):
            sync_folder(changed)
    except OSError as error:
        raise TryAgain(f"results cannot be written to {folder}: {error.strerror}; free or mount the disk") from error
    return results


def _write(dataset: pydicom.Dataset, path: Path) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        dataset.save_as(file, enforce_file_format=True)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the rename itself
    finally:
        os.close(descriptor)
