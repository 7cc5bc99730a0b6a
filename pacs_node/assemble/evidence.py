"""Asking the sender how many instances a series has: C-FIND at SERIES level, PS3.4 C.6.2."""

from __future__ import annotations

import structlog
from pydicom.dataset import Dataset
from pynetdicom import _config
from pynetdicom.presentation import build_context

from dicom_sr import attributes
from pacs_node.association import PENDING, SUCCESS, NoneAccepted, Peer, Rejected, association, matches
from pacs_node.errors import Unreachable

log = structlog.get_logger(__name__)

_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False  # a peer may answer with patient values

MOST_INSTANCES = (1 << 31) - 1  # VR IS: PS3.5 Table 6.2-1
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # PS3.4 Table C.6.2-1


def expected_count(peer: Peer, study_uid: str, series_uid: str) -> int | None:
    """NumberOfSeriesRelatedInstances as the peer tells it; None, with the reason in the log, when it does not."""
    answer = _ask(peer, study_uid, series_uid)
    if isinstance(answer, str):
        log.info("series.count-unknown", series_uid=series_uid, peer=peer.ae_title, reason=answer)
        return None
    return answer


def _ask(peer: Peer, study_uid: str, series_uid: str) -> int | str:
    """The count, or why there is none."""
    counts: list[int] = []
    try:
        with association(peer, [build_context(STUDY_ROOT_FIND)]) as opened:
            for status, match in matches(opened, _identifier(study_uid, series_uid), STUDY_ROOT_FIND, peer):
                if "Status" not in status:
                    return f"it broke off, or did not answer within {peer.timeout_s:g} s"
                if status.Status in PENDING and match is not None:
                    if attributes.text(match, "SeriesInstanceUID") == series_uid:
                        counts.append(attributes.whole_or(match, "NumberOfSeriesRelatedInstances", 0))
                elif status.Status != SUCCESS:
                    return f"it answered C-FIND with 0x{status.Status:04X}"
    except (Unreachable, Rejected, NoneAccepted) as why_not:
        return str(why_not)
    told = max(counts, default=0)
    return told if 0 < told <= MOST_INSTANCES else "it does not tell NumberOfSeriesRelatedInstances"


def _identifier(study_uid: str, series_uid: str) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID = study_uid
    identifier.SeriesInstanceUID = series_uid
    identifier.NumberOfSeriesRelatedInstances = None
    return identifier
