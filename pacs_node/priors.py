"""Earlier studies of the same patient at a peer: found by C-FIND, our report and its CT fetched by C-GET.

What is fetched goes into a folder of its own, never into the spool: it starts no pipeline. C-GET and not C-MOVE,
because a C-MOVE comes back through the listener, like any image to be analysed.

Whose study it is: Patient ID and its issuer must be equal; a birth date or sex that differs anywhere under that ID
means that the ID cannot be trusted, and nothing is compared. Reasons never hold a patient's values.

What came of it is kept with the job, and used again when the job runs again: the same job writes the same bytes, though
the archive may have more to give, or nothing, by then.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import cast

import numpy as np
import structlog
from pydantic import TypeAdapter
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import _config, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context

from dicom_sr import attributes
from dicom_sr.changes import Comparison, with_comparison
from dicom_sr.findings import Findings
from dicom_sr.hierarchy import named_in
from dicom_sr.reading import read_header
from models.pipeline import Prior
from pacs_node.association import PENDING, SUCCESS, NoneAccepted, Peer, Rejected, association
from pacs_node.durable import write_whole
from pacs_node.errors import NodeError, TryAgain, Unreachable

log = structlog.get_logger(__name__)

_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False  # they hold patient values

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # PS3.4 Table C.6.2-1
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
REPORTS = ("1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.34")  # Comprehensive SR, Comprehensive 3D SR
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", LABEL_MAP)
IMAGES = (  # CT, Enhanced CT, Legacy Converted Enhanced CT
    *("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"),
)
# Each class and syntax in a context of its own, so that the peer sends what it has and decodes nothing
PLAIN = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1.99",  # Deflated
)
RLE = "1.2.840.10008.1.2.5"
COMPRESSED = (  # of images only: a BINARY Segmentation is read bit by bit
    RLE,
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, SV1
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91",
)
OUT_OF_RESOURCES = 0xA700
CONNECT_S = 10.0  # a peer that is down must not hold up every result
MOST_STUDIES = 20  # the nearest ones are looked into
MOST_ANSWERS = 4096  # to one query: studies of a patient, or series of one
MOST_OBJECTS = 4000  # of one C-GET: more are no CT series, and the disk is not endless


def _syntaxes(sop_class: str) -> tuple[str, ...]:
    return (*COMPRESSED, *PLAIN) if sop_class in IMAGES else (RLE, *PLAIN) if sop_class == LABEL_MAP else PLAIN


class NoComparison(NodeError):
    """Why this result is not compared with an earlier one; the result itself is none the worse for it."""


@dataclass(frozen=True)
class Outcome:
    """What came of a comparison: it, or why there is none."""

    comparison: Comparison | None = None
    why_not: str = ""
    of: str = ""  # digest of the findings that were compared: their numbers mean nothing to others

    def told(self, findings: Findings) -> Findings:
        """The findings with what became of them, or with a warning."""
        if self.comparison is not None:
            return with_comparison(findings, self.comparison)
        return replace(findings, warnings=(*findings.warnings, f"no comparison: {self.why_not}"))


@dataclass(frozen=True)
class Patient:
    """Whose study it is, PS3.3 C.7.1.1."""

    patient_id: str
    issuer: str
    birth_date: str
    sex: str

    @classmethod
    def of(cls, header: Dataset) -> Patient:
        keywords = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
        return cls(*(attributes.text(header, keyword) for keyword in keywords))

    def contradicts(self, other: Patient) -> str | None:
        """None, or what is recorded differently under the same ID, though both say it."""
        pairs = {"date of birth": (self.birth_date, other.birth_date), "sex": (self.sex, other.sex)}
        return next((name for name, (mine, its) in pairs.items() if mine and its and mine != its), None)


@dataclass(frozen=True)
class Study:
    study_uid: str
    study_date: date


def fetch(archive: Peer, header: Dataset, pipeline: str, folder: Path, *, max_age_days: int, timeout_s: float) -> Prior:
    """The nearest earlier study with a report of `pipeline`, fetched into `folder`. Raises NoComparison.

    header      of an image of the present study
    timeout_s   for everything together
    """
    patient = Patient.of(header)
    if not patient.patient_id:
        raise NoComparison("the study has no Patient ID")
    today = _date(header)
    if today is None:
        raise NoComparison("the study has no Study Date")
    ask = _Peer(archive, folder, time.monotonic() + timeout_s)
    try:
        return _nearest(ask, patient, header, today, pipeline, max_age_days)
    except attributes.UNREADABLE as error:  # it may send anything under the name of a report
        raise NoComparison(f"{archive.name} sent what cannot be read ({type(error).__name__})") from error


def _nearest(ask: _Peer, patient: Patient, header: Dataset, today: date, pipeline: str, max_age_days: int) -> Prior:
    studies = earlier_studies(patient, str(header.StudyInstanceUID), today, ask.studies(patient, today, max_age_days))
    for study in studies[:MOST_STUDIES]:
        series = ask.series(study)
        written = [uid for uid, each in series.items() if attributes.text(each, "Modality") == "SR"]
        reports = [report for uid in written for report in ask.get(study, uid, REPORTS, some=True)]
        ours = [report for report in reports if is_ours(report, pipeline)]
        if ours:
            counts = {
                uid: attributes.whole_or(each, "NumberOfSeriesRelatedInstances", 0) for uid, each in series.items()
            }
            return _prior(ask, patient, study, ours, counts, (today - study.study_date).days)
    refused = f" (it answered C-GET with 0x{ask.refused:04X})" if ask.refused else ""
    raise NoComparison(f"{ask.archive.name} has no report of {pipeline} in an earlier study of the patient{refused}")


def earlier_studies(patient: Patient, study_uid: str, today: date, answers: Iterable[Dataset]) -> list[Study]:
    """The patient's studies of days before, the nearest first; one of the same day would show measurement error only.

    Raises NoComparison when the Patient ID is not one person's.
    """
    found: dict[str, Study] = {}
    for answer in answers:
        other = Patient.of(answer)
        if other.patient_id != patient.patient_id:  # a peer may match by wildcard, or without regard to case
            continue
        if other.issuer and patient.issuer and other.issuer != patient.issuer:
            continue  # the same number, given by another institution to another person
        if differs := patient.contradicts(other):
            raise NoComparison(
                f"the Patient ID also belongs to a study with another {differs}; it may not be one person's"
            )
        day, uid = _date(answer), attributes.text(answer, "StudyInstanceUID")
        if uid and uid != study_uid and day is not None and day < today:
            found[uid] = Study(uid, day)
    return sorted(found.values(), key=lambda study: (-study.study_date.toordinal(), study.study_uid))


def latest(reports: Sequence[Dataset]) -> list[Dataset]:
    """The report of each source series that no other supersedes; of several the highest revision."""
    superseded = {
        each.sop_instance_uid for report in reports for each in named_in(report, "PredecessorDocumentsSequence")
    }

    def rank(report: Dataset) -> tuple[int, str, str]:
        when = f"{report.get('ContentDate')}{report.get('ContentTime')}"
        return int(report.get("InstanceNumber") or 0), when, str(report.SOPInstanceUID)

    by_source: dict[str, Dataset] = {}
    for report in sorted(reports, key=rank):
        if str(report.SOPInstanceUID) not in superseded:
            by_source[_source_series(report)] = report
    return list(by_source.values())


def _prior(
    ask: _Peer, patient: Patient, study: Study, reports: Sequence[Dataset], counts: dict[str, int], days: int
) -> Prior:
    """Fetch what the report of the series with most images was made of."""
    of_series = {_source_series(report): report for report in latest(reports)}
    of_series.pop("", None)
    if not of_series:
        raise NoComparison("the earlier report does not say which CT series it is of")
    series_uid, report = max(of_series.items(), key=lambda item: (counts.get(item[0], 0), item[0]))
    _confirm(patient, study, [report])
    if series_uid not in counts:
        raise NoComparison(f"{ask.archive.name} does not have the CT of the earlier report any more")
    segmentations = [
        dataset
        for seg_series, instance_uid in _evidence(report, SEGMENTATIONS)
        for dataset in ask.get(study, seg_series, SEGMENTATIONS, instance_uid=instance_uid)
    ]
    images = ask.get(study, series_uid, IMAGES)
    if not images or len(images) < counts.get(series_uid, 0):
        raise NoComparison(f"{len(images)} of {counts.get(series_uid, 0)} images of the earlier CT could be fetched")
    if len(segmentations) < len(_evidence(report, SEGMENTATIONS)):
        raise NoComparison("the Segmentation of the earlier report could not be fetched")
    _confirm(patient, study, [*segmentations, *images])
    return Prior(_path(report), tuple(map(_path, segmentations)), tuple(map(_path, images)), days)


def _confirm(patient: Patient, study: Study, fetched: Iterable[Dataset]) -> None:
    """The objects themselves say whose they are: what a peer answered to a query may come from its database."""
    for dataset in fetched:
        its = Patient.of(dataset)
        where = str(dataset.get("StudyInstanceUID")), _date(dataset)
        if its.patient_id != patient.patient_id or where != (study.study_uid, study.study_date):
            raise NoComparison("the peer sent an object of another patient or study than it was asked for")
        if its.issuer != patient.issuer:
            raise NoComparison("the issuer of the Patient ID is not the same in both studies; they may be two persons'")
        if differs := patient.contradicts(its):
            raise NoComparison(f"the earlier study has another {differs} under the same Patient ID")


def is_ours(report: Dataset, pipeline: str) -> bool:
    """A whole report that this node's software made with this pipeline."""
    from dicom_sr import read  # 50 MB, for who compares

    return (
        report.get("Manufacturer") == "pacs-node"
        and report.get("CompletionFlag") == "COMPLETE"
        and read.observer(report) == pipeline
        and read.not_analysed(report) is None  # or "not run" would read as "nothing found"
    )


def _evidence(report: Dataset, sop_classes: Sequence[str]) -> list[tuple[str, str]]:
    """(Series, SOP Instance UID) of the objects of these classes that a report was made of."""
    return [
        (each.series_uid, each.sop_instance_uid)
        for each in named_in(report, "CurrentRequestedProcedureEvidenceSequence")
        if each.sop_class_uid in sop_classes
    ]


def _source_series(report: Dataset) -> str:
    return next((series for series, _ in _evidence(report, IMAGES)), "")


def _date(header: Dataset) -> date | None:
    try:
        return date.fromisoformat(attributes.text(header, "StudyDate"))
    except ValueError:
        return None


def _path(dataset: Dataset) -> Path:
    return Path(str(dataset.filename))


def digest(findings: Findings) -> str:
    """Equal for findings that are numbered alike at the same places by the same algorithm."""
    told = hashlib.sha256(findings.algorithm.version.encode())
    for finding in findings.findings:
        told.update(repr((finding.number, finding.offset_zyx, finding.mask.shape)).encode())
        told.update(np.packbits(finding.mask).tobytes())
    return told.hexdigest()


def load_outcome(path: Path, of: str) -> Outcome | None:
    """What came of it when the job ran before with the same findings; None if it never got so far."""
    if not path.exists():
        return None
    outcome = OUTCOME.validate_json(path.read_bytes())
    return outcome if outcome.of == of else None


def keep(path: Path, outcome: Outcome) -> Outcome:
    """Write it down durably; the outcome of whoever was first counts. Raises TryAgain when the disk is full or gone."""
    try:
        write_whole(path, lambda file: file.write(OUTCOME.dump_json(outcome, indent=1)), replace=False)
    except OSError as error:
        raise TryAgain(f"{path} cannot be written: {error.strerror}; free or mount the disk") from error
    return OUTCOME.validate_json(path.read_bytes())


OUTCOME = TypeAdapter(Outcome)


# --------------------------------------------------------------------------------------------------- C-FIND and C-GET


def not_sent(archive: Peer) -> list[str]:
    """What a comparison needs of an earlier study and the archive would not send, in words. Nothing is fetched.

    Raises Unreachable or Rejected.
    """
    kinds = {"reports": REPORTS, "Segmentations": SEGMENTATIONS, "CT images": IMAGES}
    classes = [sop_class for each in kinds.values() for sop_class in each]
    try:
        with association(archive, _contexts(classes), ext_neg=_as_receiver(classes)) as opened:
            serves = _serves_get(opened)
            sends = {str(context.abstract_syntax) for context in opened.accepted_contexts if context.as_scp}
    except NoneAccepted:
        serves = False
    if not serves:
        return ["it does not serve C-GET (Study Root)"]
    return [f"it would not send {kind} by C-GET" for kind, of in kinds.items() if sends.isdisjoint(of)]


def _as_receiver(sop_classes: Sequence[str]) -> list[SCP_SCU_RoleSelectionNegotiation]:
    return [build_role(sop_class, scp_role=True) for sop_class in sop_classes]


def _contexts(sop_classes: Sequence[str]) -> list[PresentationContext]:
    return [
        build_context(STUDY_ROOT_GET),
        *(build_context(sop_class, [syntax]) for sop_class in sop_classes for syntax in _syntaxes(sop_class)),
    ]


def _serves_get(opened: Association) -> bool:
    return any(context.abstract_syntax == STUDY_ROOT_GET for context in opened.accepted_contexts)


class _Peer:
    """One archive, a folder for what it sends, and the moment at which it has taken too long."""

    def __init__(self, archive: Peer, folder: Path, deadline: float) -> None:
        self.archive, self.folder, self.deadline = archive, folder, deadline
        self.refused = 0  # a status with which it would not send something that could be done without

    def studies(self, patient: Patient, today: date, max_age_days: int) -> list[Dataset]:
        first, last = today - timedelta(days=max_age_days), today - timedelta(days=1)
        query = Dataset()
        query.SpecificCharacterSet = "ISO_IR 192"
        query.QueryRetrieveLevel = "STUDY"
        query.PatientID = patient.patient_id
        query.StudyDate = f"{first:%Y%m%d}-{last:%Y%m%d}"
        for keyword in ("IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"):
            setattr(query, keyword, None)
        return self._find(query)

    def series(self, study: Study) -> dict[str, Dataset]:
        query = Dataset()
        query.QueryRetrieveLevel = "SERIES"
        query.StudyInstanceUID = study.study_uid
        for keyword in ("SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances"):
            setattr(query, keyword, None)
        found = {attributes.text(answer, "SeriesInstanceUID"): answer for answer in self._find(query)}
        return {uid: answer for uid, answer in found.items() if uid}

    def get(
        self,
        study: Study,
        series_uid: str,
        sop_classes: Sequence[str],
        *,
        instance_uid: str | None = None,
        some: bool = False,
    ) -> list[Dataset]:
        """Headers of the objects of these classes in a series, or of one of them; `filename` says where each lies.

        some   a failure is no reason to give up: a report of another class (radiation dose) cannot be sent to us
        """
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE" if instance_uid else "SERIES"
        query.StudyInstanceUID = study.study_uid
        query.SeriesInstanceUID = series_uid
        if instance_uid:
            query.SOPInstanceUID = instance_uid
        arrived: dict[str, Path] = {}

        def store(event: evt.Event) -> int:
            uid = str(cast(C_STORE, event.request).AffectedSOPInstanceUID)
            if self._left_s() <= 0 or len(arrived) >= MOST_OBJECTS:
                return OUT_OF_RESOURCES
            path = self.folder / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.dcm"  # a UID may hold anything
            try:
                path.write_bytes(event.encoded_dataset())
            except OSError:
                return OUT_OF_RESOURCES
            arrived[uid] = path
            return SUCCESS

        with self._association(_contexts(sop_classes), sop_classes, store) as opened:
            if not _serves_get(opened):
                raise NoComparison(f"{self.archive.name} does not serve C-GET")
            for status, _ in opened.send_c_get(query, STUDY_ROOT_GET):
                if some and status.get("Status", SUCCESS) not in PENDING | {SUCCESS}:
                    self.refused = int(status.Status)
                else:
                    self._go_on(status, "C-GET")
        headers = [_header(path) for path in arrived.values()]
        return sorted(
            (each for each in headers if each is not None and each.SOPClassUID in sop_classes),
            key=lambda header: str(header.SOPInstanceUID),
        )

    def _find(self, query: Dataset) -> list[Dataset]:
        answers = []
        with self._association([build_context(STUDY_ROOT_FIND)]) as opened:
            for status, answer in opened.send_c_find(query, STUDY_ROOT_FIND):
                if self._go_on(status, "C-FIND") and answer is not None:
                    answers.append(answer)
                if len(answers) > MOST_ANSWERS:
                    raise NoComparison(f"{self.archive.name} answered C-FIND with more than {MOST_ANSWERS} matches")
        return answers

    def _go_on(self, status: Dataset, what: str) -> bool:
        """True while answers are pending. Raises NoComparison for a failure, or when time is up."""
        if "Status" not in status:
            raise NoComparison(f"{self.archive.name} broke off during {what}, or did not answer in time")
        if self._left_s() <= 0:
            raise NoComparison(f"{self.archive.name} took too long to answer {what}")
        if status.Status in PENDING:
            return True
        if status.Status != SUCCESS:
            raise NoComparison(f"{self.archive.name} answered {what} with 0x{status.Status:04X}")
        return False

    def _left_s(self) -> float:
        return self.deadline - time.monotonic()

    @contextmanager
    def _association(
        self,
        contexts: list[PresentationContext],
        received: Sequence[str] = (),
        store: Callable[[evt.Event], int] | None = None,
    ) -> Iterator[Association]:
        """An association; given up, not released, when what is done with it fails."""
        left_s = self._left_s()
        if left_s <= 0:
            raise NoComparison(f"{self.archive.name} took too long")
        peer = replace(self.archive, timeout_s=left_s)
        try:
            with association(
                peer,
                contexts,
                handlers=[(evt.EVT_C_STORE, store)] if store is not None else [],
                ext_neg=_as_receiver(received),
                connect_s=CONNECT_S,
            ) as opened:
                yield opened
        except (Unreachable, Rejected, NoneAccepted) as why_not:
            # said in a report, which goes elsewhere: without the peer's address
            raise NoComparison(str(why_not).replace(str(peer), peer.name)) from why_not


def _header(path: Path) -> Dataset | None:
    """None, with a line in the log, when it cannot be read: it is then missing, and counted so."""
    try:
        return read_header(path)
    except (InvalidDicomError, EOFError, ValueError, NotImplementedError) as error:
        log.warning("prior unreadable", file=path.name, error=type(error).__name__)
        return None
