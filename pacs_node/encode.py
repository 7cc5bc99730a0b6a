"""Findings -> result files: built and checked by `dicom_sr`, written so that a power cut leaves all of one or none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pydicom

from dicom_sr import EncodingError, encode
from dicom_sr.findings import Findings
from pacs_node.errors import GiveUp
from pacs_node.records import Result


def encode_results(
    findings: Findings, files: Sequence[Path], folder: Path, *, when: datetime, revision: int
) -> list[Result]:
    """Write one job's SEG and SR into `folder`; in sending order. The same arguments write the same bytes.

    Raises GiveUp when an object does not pass the checks: it is not sent, and the reason names the check.
    """
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    try:
        objects = encode(findings, sources, when=when, revision=revision)
    except EncodingError as error:
        raise GiveUp(f"results not sent, they fail their own checks: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for number, dataset in enumerate(objects, start=1):
        path = folder / f"{number:02d}-{dataset.Modality}.dcm"
        _write(dataset, path)
        results.append(Result(str(dataset.SOPInstanceUID), str(dataset.SOPClassUID), path))
    sync_folder(folder)
    sync_folder(folder.parent)
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
