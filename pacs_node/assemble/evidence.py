"""Asking the sender how many instances a series has: C-FIND at SERIES level, PS3.4 C.6.2."""

from __future__ import annotations

import structlog
from pydicom.dataset import Dataset
from pynetdicom import _config
from pynetdicom.presentation import build_context

from pacs_node.association import PENDING, SUCCESS, NoneAccepted, Peer, Rejected, association
from pacs_node.errors import Unreachable

log = structlog.get_logger(__name__)

_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False  # a peer may answer with patient values

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # PS3.4 Table C.6.2-1


def expected_count(
    host: str, port: int, our_ae: str, their_ae: str, study_uid: str, series_uid: str, timeout_s: float
) -> int | None:
    """NumberOfSeriesRelatedInstances as the peer tells it; None, with the reason in the log, when it does not."""
    answer = _ask(host, port, our_ae, their_ae, study_uid, series_uid, timeout_s)
    if isinstance(answer, str):
        log.info("series.count-unknown", series_uid=series_uid, peer=their_ae, reason=answer)
        return None
    return answer


def _ask(
    host: str, port: int, our_ae: str, their_ae: str, study_uid: str, series_uid: str, timeout_s: float
) -> int | str:
    """The count, or why there is none."""
    peer = Peer(their_ae, their_ae, host, port, our_ae, timeout_s)
    counts: list[int] = []
    try:
        with association(peer, [build_context(STUDY_ROOT_FIND)]) as opened:
            for status, match in opened.send_c_find(_identifier(study_uid, series_uid), STUDY_ROOT_FIND):
                if "Status" not in status:
                    return f"it broke off, or did not answer within {timeout_s:g} s"
                if status.Status in PENDING and match is not None:
                    if match.get("SeriesInstanceUID") == series_uid:
                        counts += _count(match)
                elif status.Status != SUCCESS:
                    return f"it answered C-FIND with 0x{status.Status:04X}"
    except (Unreachable, Rejected, NoneAccepted) as why_not:
        return str(why_not)
    return max(counts) if counts else "it does not tell NumberOfSeriesRelatedInstances"


def _identifier(study_uid: str, series_uid: str) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID = study_uid
    identifier.SeriesInstanceUID = series_uid
    identifier.NumberOfSeriesRelatedInstances = None
    return identifier


def _count(match: Dataset) -> list[int]:
    """The number in a response, if it has one."""
    try:
        count = int(match.NumberOfSeriesRelatedInstances)
    except (AttributeError, TypeError, ValueError):
        return []
    return [count] if count > 0 else []
