"""A folder as destination: for trying out, and for PACS that watch one."""

from __future__ import annotations

import filecmp
import hashlib
import re
import shutil
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from pacs_node.deliver.destination import (
    Choice,
    Deferred,
    Forms,
    Now,
    Undeliverable,
    Verbatim,
    first_possible,
    must_be_ours,
)
from pacs_node.durable import make_folder, sync_name, write_whole
from pacs_node.records import Package, Receipt

NEEDED = ["SOPInstanceUID", "StudyInstanceUID", "Modality"]
READABLE_BY = {"owner": 0o700, "group": 0o750, "everyone": 0o755}  # a folder's permission bits
CODE = re.compile(r"[A-Z]{2,16}")  # a Modality that can stand in a file name


class FolderDestination:
    """Copies each object to <root>/<study>/<modality>-<instance>.dcm, <study> and <instance> being digests of UIDs.

    A copy appears under its name only when it is whole and on the disk; an older one of the same instance is replaced.

    readable_by: a key of READABLE_BY, whatever the process's umask; the folders that it makes, and their files.
    """

    def __init__(self, name: str, root: Path, forms: Forms | None = None, readable_by: str = "owner") -> None:
        self.name = name
        self.root = root
        self.forms: Forms = forms or Verbatim()
        self.folder_mode = READABLE_BY[readable_by]
        self._lasts = False  # the root's own name: a process that made it may have been killed before it was synced

    def deliver(self, package: Package, now: Now) -> list[Receipt]:
        """See Destination."""
        receipts: list[Receipt] = []
        sent: dict[Path, tuple[Path, ...]] = {}
        try:
            for offer in self.forms.offers(package):
                paths, instead = first_possible(self.forms, package, Choice(offer), sent)
                sent[offer.path] = paths
                for path in paths:
                    must_be_ours(package, receipts)
                    receipts.append(self._copy(path, instead, now))
        except Undeliverable as error:
            raise Undeliverable(str(error), receipts) from error
        except OSError as error:
            raise Deferred(f"cannot write to {self.root}: {error.strerror}", receipts) from error
        return receipts

    def _copy(self, path: Path, instead: str, now: Now) -> Receipt:
        """Raises Undeliverable, OSError."""
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=NEEDED)
            sop_instance_uid, study_uid = str(header.SOPInstanceUID), str(header.StudyInstanceUID)
        except (InvalidDicomError, AttributeError, EOFError, FileNotFoundError) as error:
            raise Undeliverable(f"{path.name} is no DICOM file: {error}") from error
        modality = str(header.get("Modality", ""))
        kind = modality if CODE.fullmatch(modality) else "OT"
        target = self.root / f"study-{_short(study_uid)}" / f"{kind}-{_short(sop_instance_uid)}.dcm"
        self._make_durable(target.parent)
        _copy_durably(path, target, self.folder_mode & 0o666)
        words = f"written to {target}{instead}"
        return Receipt(sop_instance_uid, True, None, words, now(), str(header.file_meta.MediaStorageSOPClassUID))

    def _make_durable(self, folder: Path) -> None:
        make_folder(folder, self.folder_mode)
        if not self._lasts:
            sync_name(self.root)
            self._lasts = True


def _copy_durably(source: Path, target: Path, mode: int) -> None:
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    with source.open("rb") as read:
        write_whole(target, lambda file: shutil.copyfileobj(read, file), mode=mode)


def _short(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:16]
