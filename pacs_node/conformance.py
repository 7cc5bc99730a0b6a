"""The DICOM Conformance Statement's tables (PS3.2), printed from the code that negotiates: they cannot drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom.uid import UID

from dicom_sr.forms import CHAINS, KEY_OBJECTS, LABEL_MAP, PICTURE, SEGMENTATION
from dicom_sr.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node import __version__, priors
from pacs_node.association import SUCCESS
from pacs_node.audit import EVENTS
from pacs_node.commitment import FAILURE_REASONS, PUSH_MODEL
from pacs_node.deliver.arrival import STUDY_ROOT_FIND
from pacs_node.deliver.destination import STATUSES
from pacs_node.deliver.stow import STATUSES as HTTP_STATUSES
from pacs_node.intake import MOST_WAITING
from pacs_node.receive import commitment
from pacs_node.receive.accept import (
    CALLED_AE_TITLE_NOT_RECOGNIZED,
    CALLING_AE_TITLE_NOT_RECOGNIZED,
    DECODED,
    FURTHER_SOP_CLASSES,
    LOCAL_LIMIT_EXCEEDED,
    NO_REASON_GIVEN_NOW,
    STORAGE_SOP_CLASSES,
    TEMPORARY_CONGESTION,
    TRANSFER_SYNTAXES,
    VERIFICATION,
)
from pacs_node.tls import SUITES

REJECTIONS = {
    CALLED_AE_TITLE_NOT_RECOGNIZED: "another AE title is called than the node's",
    CALLING_AE_TITLE_NOT_RECOGNIZED: "the calling AE title is no peer with `may_send`, calls from no host of its "
    "`calls_from`, or has `tls` and calls without, or with a certificate that its settings do not name",
    NO_REASON_GIVEN_NOW: "a host name in `calls_from` cannot be resolved: come again",
    TEMPORARY_CONGESTION: "the node is stopping: come again",
    LOCAL_LIMIT_EXCEEDED: "`max_associations` are open, or `max_associations_per_peer` of this AE title or address: "
    "come again",
}
COMMITMENT_STATUSES = {
    SUCCESS: "the request is durable and a report follows; the report is durable",
    commitment.NO_SUCH_INSTANCE: "the action is asked of another instance than the Standard's one",
    commitment.INVALID_ARGUMENT: "the data set is not what the Standard wants, or names a Transaction UID "
    "that this peer was not asked for",
    commitment.NO_SUCH_ACTION: "an action other than the request",
    commitment.RESOURCE_LIMITATION: "the database does not answer, or the peer's host cannot be resolved: again later",
}


def statement() -> str:
    """docs/conformance.md, whole."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# DICOM Conformance Statement"
    yield ""
    yield "Printed by `pacs-node conformance`; do not edit. Research use only, not for diagnostic use."
    yield ""
    yield from _table(
        ("item", "value"),
        [
            ("version", __version__),
            ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
            ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
        ],
    )
    yield "## Receives (SCP)"
    yield ""
    yield (
        "An association is accepted when the called AE title is the node's and the calling one a peer with `may_send`, "
        "from one of the hosts in its `calls_from` if it has any, and, if it has `tls`, with the certificate that its "
        "settings name (see Security). "
        "Success (0x0000) is answered when the object is durable: it is synchronised to disk, and so is its folder. "
        "Objects are kept in the transfer syntax they were sent in; nothing is decoded or converted."
    )
    yield ""
    classes = [
        ("Verification", VERIFICATION),
        ("Storage Commitment Push Model", PUSH_MODEL),
        *((name, uid) for uid, name in STORAGE_SOP_CLASSES.items()),
    ]
    yield from _table(("SOP Class", "UID"), classes)
    yield "Only where a pipeline is installed, or named in a route, that reads the modality:"
    yield ""
    further = [(name, uid, each) for each, classes in FURTHER_SOP_CLASSES.items() for uid, name in classes.items()]
    yield from _table(("SOP Class", "UID", "modality"), further)
    yield from _table(
        ("transfer syntax", "UID", "pixels"),
        [
            (name, uid, "decoded" if uid in DECODED else "kept only; the verdict refuses the image in words")
            for uid, name in TRANSFER_SYNTAXES.items()
        ],
    )
    yield from _table(
        ("status", "when"),
        [
            ("0x0000", "stored, or identical bytes of a known instance came again"),
            ("0xB000", "another object under a known SOP Instance UID: the first is used, this one is kept aside"),
            (
                "0xA700",
                "less free disk space than `keep_free_gb`, or "
                f"{MOST_WAITING} images wait for a database that does not answer: "
                "send it again",
            ),
            ("0xA900", "the SOP class in the data set is not the one of the command"),
            ("0xC001", "the data set is longer than `largest_mb`"),
            (
                "0xC000",
                "the data set is cut off, or neither the node nor pydicom can read it; its bytes are kept aside",
            ),
        ],
    )
    yield from _table(
        ("association rejected: result, source, reason (PS3.8 Table 9-21)", "when"),
        [(", ".join(map(str, codes)), when) for codes, when in REJECTIONS.items()],
    )
    yield (
        "Storage commitment (N-ACTION) is answered by N-EVENT-REPORT on the same association while it is open, else on "
        "a new one to the sender's `host` and `port`, as SCP by role selection. An instance is committed when it is "
        "durable here; of the failure reasons 0x0112 (not here) and 0x0119 (of another SOP class) are used. Images "
        "stay until `[retention]` of the settings deletes them, by default never; those of a series of which a sender "
        'asked for storage commitment only if `without_proof` there says `"committed"`.'
    )
    yield ""
    yield from _table(
        ("status of N-ACTION and N-EVENT-REPORT", "when"),
        [(f"0x{status:04X}", when) for status, when in COMMITMENT_STATUSES.items()],
    )
    yield "## Sends (SCU)"
    yield ""
    yield (
        "One association for the results of one analysis, with one presentation context for each form and transfer "
        "syntax that a result may be sent in; the best that is accepted is sent, a less good one in its place with the "
        "reason on the receipt. What a peer refused is not proposed to it again for `ask_again_h`. Verification by "
        "`pacs-node echo`; C-FIND at series level (Study Root) when `ask_peer` is set; C-FIND at study and series "
        "level and C-GET (Study Root, in the SCP role for the classes listed) for routes with `priors`. After each "
        "send the peer is asked for storage commitment, else by C-FIND at image level, as `confirm` says; "
        "N-EVENT-REPORT is taken on the same association for two seconds, and on any later one, with or without role "
        "selection, from the AE title that was asked, at its `calls_from` or else its `host`."
    )
    yield ""
    yield from _table(("result", "sent as", "SOP Class UID", "transfer syntaxes"), list(_sent()))
    fetched = [*priors.REPORTS, *priors.SEGMENTATIONS, *priors.IMAGES]
    yield from _table(("fetched by C-GET", "UID"), [(UID(uid).name, uid) for uid in fetched])
    asked = [
        ("Storage Commitment Push Model", PUSH_MODEL),
        ("Study Root Query/Retrieve Information Model - FIND", STUDY_ROOT_FIND),
    ]
    yield from _table(("asked whether it arrived", "SOP Class UID"), asked)
    yield from _table(
        ("answer", "meaning", "what the node does"),
        [
            (f"0x{first:04X}" + (f" to 0x{last:04X}" if last != first else ""), meaning, outcome.value)
            for first, last, outcome, meaning in STATUSES
        ],
    )
    yield from _table(
        ("failure reason of a storage commitment", "meaning"),
        [(f"0x{reason:04X}", meaning) for reason, meaning in FAILURE_REASONS.items()],
    )
    yield from _security()
    yield "## DICOMweb (user agent)"
    yield ""
    yield (
        "A peer with `dicomweb_url` gets results by STOW-RS: one POST to `/studies` per analysis, `multipart/related; "
        'type="application/dicom"`, the files as they are, the answer asked for as `application/dicom+json`. Of 200, '
        "202, 400 and 409 the answer is read instance by instance (Failed and Referenced SOP Sequence, by the table "
        "above); what 200 does not name is not stored. Arrival is proven by QIDO-RS, "
        "`/studies/{study}/series/{series}/instances`."
    )
    yield ""
    yield from _table(
        ("HTTP status", "meaning", "what the node does"),
        [
            (str(first) if first == last else f"{first} to {last}", meaning, outcome.value)
            for first, last, outcome, meaning in HTTP_STATUSES
        ],
    )


def _security() -> Iterator[str]:
    yield "## Security"
    yield ""
    yield (
        "Secure transport by the BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 B.12): TLS 1.2 "
        "and 1.3, of TLS 1.2 the cipher suites below. Connections with TLS are accepted at a port of their own "
        "(`dicom_tls_port` in `[tls]`; 2762 is the registered one), beside the port without or in its place "
        "(`only_tls`); whoever calls there must show a certificate. Connections to a peer with `tls` are opened with "
        "TLS, for every service above, and show the node's certificate. Certificates and keys are PEM files that are "
        "renewed without a restart. A peer's certificate is checked against those in `trusted`, with its dates; for "
        "the name `tls_name`, or `host` where it is called; or it is one of `tls_fingerprints`. There is no "
        "renegotiation, resumption or compression, and certificate revocation lists are not read. An AE title whose "
        "peer has `tls` is not accepted at the port without."
    )
    yield ""
    yield from _table(("cipher suite of TLS 1.2 (RFC 9325 4.2)", "in OpenSSL"), list(SUITES.items()))
    yield (
        "Audit trail by PS3.15 A.5, in files and, where `[audit]` names a server, by syslog (RFC 5424) over UDP (RFC "
        "5426) or TLS (RFC 5425). Messages name studies by their UID and, unlike those of A.5.3, never a patient."
    )
    yield ""
    of_event: dict[str, list[str]] = {}
    for name, kind in EVENTS.items():
        of_event.setdefault(f"{kind.event.meaning} ({kind.event.scheme} {kind.event.value})", []).append(name)
    yield from _table(("audit event", "of"), [(event, ", ".join(names)) for event, names in of_event.items()])


def _sent() -> Iterator[tuple[str, str, str, str]]:
    for result, chain in CHAINS.items():
        known = (LABEL_MAP, *chain) if result == SEGMENTATION.sop_class_uid else chain
        for form in known:
            syntaxes = ", ".join(TRANSFER_SYNTAXES[uid] for uid in form.transfer_syntaxes)
            yield chain[0].name, form.name, form.sop_class_uid, syntaxes
    both = "Explicit VR Little Endian, Implicit VR Little Endian"
    yield "key objects", KEY_OBJECTS.name, KEY_OBJECTS.sop_class_uid, both
    yield "what a model drew", PICTURE.name, PICTURE.sop_class_uid, both


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
