"""What the node accepts, and from whom: tables to be held against the Standard."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from pacs_node.receive.address import Address, resolved, why_elsewhere
from pacs_node.tls import Certified, Shown

VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 A.4

# PS3.4 Table B.5-1; the retired ones as in PS3.4 2004 Table B.6-1
STORAGE_SOP_CLASSES: dict[str, str] = {
    # images the pipelines read
    "1.2.840.10008.5.1.4.1.1.2": "CT Image",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image",
    "1.2.840.10008.5.1.4.1.1.6.1": "Ultrasound Image",
    "1.2.840.10008.5.1.4.1.1.3.1": "Ultrasound Multi-frame Image",
    "1.2.840.10008.5.1.4.1.1.6": "Ultrasound Image (retired)",
    "1.2.840.10008.5.1.4.1.1.3": "Ultrasound Multi-frame Image (retired)",
    "1.2.840.10008.5.1.4.1.1.6.2": "Enhanced US Volume",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.7.1": "Multi-frame Single Bit Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.7.2": "Multi-frame Grayscale Byte Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.7.3": "Multi-frame Grayscale Word Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.7.4": "Multi-frame True Color Secondary Capture Image",
    # what comes with them: earlier results, reports, and our own results when a PACS forwards them back
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT Structure Set",
    "1.2.840.10008.5.1.4.1.1.11.1": "Grayscale Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.88.11": "Basic Text SR",
    "1.2.840.10008.5.1.4.1.1.88.22": "Enhanced SR",
    "1.2.840.10008.5.1.4.1.1.88.33": "Comprehensive SR",
    "1.2.840.10008.5.1.4.1.1.88.34": "Comprehensive 3D SR",
    "1.2.840.10008.5.1.4.1.1.88.35": "Extensible SR",
    "1.2.840.10008.5.1.4.1.1.88.50": "Mammography CAD SR",
    "1.2.840.10008.5.1.4.1.1.88.65": "Chest CAD SR",
    "1.2.840.10008.5.1.4.1.1.88.67": "X-Ray Radiation Dose SR",
    "1.2.840.10008.5.1.4.1.1.88.59": "Key Object Selection Document",
    "1.2.840.10008.5.1.4.1.1.90.1": "Content Assessment Results",
}

# images of other modalities, accepted where a pipeline is there that reads them: Modality -> SOP classes
FURTHER_SOP_CLASSES: dict[str, dict[str, str]] = {
    "MR": {
        "1.2.840.10008.5.1.4.1.1.4": "MR Image",
        "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR Image",
        "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR Image",
    },
    "PT": {
        "1.2.840.10008.5.1.4.1.1.128": "Positron Emission Tomography Image",
        "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET Image",
        "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET Image",
    },
    "CR": {"1.2.840.10008.5.1.4.1.1.1": "Computed Radiography Image"},
    "DX": {
        "1.2.840.10008.5.1.4.1.1.1.1": "Digital X-Ray Image - For Presentation",
        "1.2.840.10008.5.1.4.1.1.1.1.1": "Digital X-Ray Image - For Processing",
    },
    "MG": {
        "1.2.840.10008.5.1.4.1.1.1.2": "Digital Mammography X-Ray Image - For Presentation",
        "1.2.840.10008.5.1.4.1.1.1.2.1": "Digital Mammography X-Ray Image - For Processing",
    },
}


def accepted_for(modalities: Iterable[str]) -> dict[str, str]:
    """The SOP classes that a node accepts whose pipelines read these modalities."""
    further = [FURTHER_SOP_CLASSES.get(modality, {}) for modality in sorted(modalities)]
    return STORAGE_SOP_CLASSES | {uid: name for classes in further for uid, name in classes.items()}


# Accepted, and decoded by pydicom, its decoder plugins or the node itself
DECODED: dict[str, str] = {
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",  # PS3.5 A.2
    "1.2.840.10008.1.2": "Implicit VR Little Endian",  # PS3.5 A.1
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",  # PS3.5 A.3, retired
    "1.2.840.10008.1.2.1.99": "Deflated Explicit VR Little Endian",  # PS3.5 A.5
    "1.2.840.10008.1.2.5": "RLE Lossless",  # PS3.5 A.4.2
    "1.2.840.10008.1.2.4.70": "JPEG Lossless, Process 14, Selection Value 1",  # PS3.5 A.4.1
    "1.2.840.10008.1.2.4.57": "JPEG Lossless, Process 14",  # PS3.5 A.4.1
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",  # PS3.5 A.4.3
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",  # PS3.5 A.4.4
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000 Lossless",  # PS3.5 10.18
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000 with RPCL, Lossless",  # PS3.5 10.18
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near-lossless",  # PS3.5 A.4.3
    "1.2.840.10008.1.2.4.91": "JPEG 2000",  # PS3.5 A.4.4
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",  # PS3.5 10.18
    "1.2.840.10008.1.2.4.50": "JPEG Baseline, Process 1",  # PS3.5 A.4.1
    "1.2.840.10008.1.2.4.51": "JPEG Extended, Process 2 and 4",  # PS3.5 A.4.1
    "1.2.840.10008.1.2.1.98": "Encapsulated Uncompressed Explicit VR Little Endian",  # PS3.5 A.4
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",  # PS3.5 A.4
}

# Accepted and kept as they come: no library that is small and looked after decodes them. The verdict says so.
KEPT_ONLY: dict[str, str] = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",  # PS3.5 A.4, this and the following two
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.100": "MPEG2 Main Profile / Main Level",  # PS3.5 A.4.5
    "1.2.840.10008.1.2.4.100.1": "Fragmentable MPEG2 Main Profile / Main Level",
    "1.2.840.10008.1.2.4.101": "MPEG2 Main Profile / High Level",  # PS3.5 A.4.5
    "1.2.840.10008.1.2.4.101.1": "Fragmentable MPEG2 Main Profile / High Level",
    "1.2.840.10008.1.2.4.102": "MPEG-4 AVC/H.264 High Profile / Level 4.1",  # PS3.5 A.4.6
    "1.2.840.10008.1.2.4.102.1": "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1",
    "1.2.840.10008.1.2.4.103": "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1",  # PS3.5 A.4.6
    "1.2.840.10008.1.2.4.103.1": "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1",
    "1.2.840.10008.1.2.4.104": "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video",  # PS3.5 A.4.7
    "1.2.840.10008.1.2.4.104.1": "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video",
    "1.2.840.10008.1.2.4.105": "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video",  # PS3.5 A.4.7
    "1.2.840.10008.1.2.4.105.1": "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video",
    "1.2.840.10008.1.2.4.106": "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2",  # PS3.5 A.4.8
    "1.2.840.10008.1.2.4.106.1": "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2",
    "1.2.840.10008.1.2.4.107": "HEVC/H.265 Main Profile / Level 5.1",  # PS3.5 A.4.9
    "1.2.840.10008.1.2.4.108": "HEVC/H.265 Main 10 Profile / Level 5.1",  # PS3.5 A.4
}

TRANSFER_SYNTAXES = DECODED | KEPT_ONLY

LOSSY = frozenset(
    {
        "1.2.840.10008.1.2.4.81",
        "1.2.840.10008.1.2.4.91",  # may be either, as HTJ2K below: PS3.5 10.6 and 10.18
        "1.2.840.10008.1.2.4.203",
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.51",
        *(KEPT_ONLY.keys() - {"1.2.840.10008.1.2.4.110"}),
    }
)


def preferred(proposed: Iterable[str]) -> list[str]:
    """The proposed transfer syntaxes that we accept, the one to choose first: the sender's own order, because senders
    name first what they hold; but lossless before lossy, so that nobody compresses an original for us, and what is only
    kept last."""
    accepted = [uid for uid in dict.fromkeys(proposed) if uid in TRANSFER_SYNTAXES]
    return sorted(accepted, key=lambda uid: (uid in KEPT_ONLY, uid in LOSSY))


@dataclass(frozen=True)
class Rejection:
    """An A-ASSOCIATE-RJ: PS3.8 Table 9-21."""

    result: int
    source: int
    reason: int
    words: str


PERMANENT, TRANSIENT = 1, 2
SERVICE_USER, PRESENTATION = 1, 3

# result, source, reason: PS3.8 Table 9-21
NO_REASON_GIVEN_NOW = (TRANSIENT, SERVICE_USER, 1)
CALLING_AE_TITLE_NOT_RECOGNIZED = (PERMANENT, SERVICE_USER, 3)
CALLED_AE_TITLE_NOT_RECOGNIZED = (PERMANENT, SERVICE_USER, 7)
TEMPORARY_CONGESTION = (TRANSIENT, PRESENTATION, 1)
LOCAL_LIMIT_EXCEEDED = (TRANSIENT, PRESENTATION, 2)


@dataclass(frozen=True)
class Callers:
    """Who may send to us: the AE title they must call, the AE titles they may call from, the hosts that a title may be
    used at (a title without: at any), and the certificates, one of which it must show (a title without: none)."""

    called_ae: str
    allowed: frozenset[str]
    calls_from: Mapping[str, Collection[str]] = field(default_factory=dict)
    resolve: Callable[[str], frozenset[Address]] = resolved
    certified: Mapping[str, Collection[Certified]] = field(default_factory=dict)

    def why_no_caller(self, calling: str, called: str) -> Rejection | None:
        """What the AE titles alone say: None, or the A-ASSOCIATE-RJ to answer. They are compared without surrounding
        spaces: PS3.5 6.2."""
        calling, called = calling.strip(), called.strip()
        if called != self.called_ae.strip():
            words = f"{calling!r} calls {called!r}; this node is {self.called_ae!r}"
            return Rejection(*CALLED_AE_TITLE_NOT_RECOGNIZED, words)
        if calling not in self.allowed:
            words = f"{calling!r} is no peer that may send"
            return Rejection(*CALLING_AE_TITLE_NOT_RECOGNIZED, words)
        return None

    def why_rejected(self, calling: str, called: str, address: str, shown: Shown | None = None) -> Rejection | None:
        """None, or the A-ASSOCIATE-RJ to answer.

        shown: the certificate of the caller; None: it came without TLS.

        May wait for a name to be resolved: hold no lock.
        """
        if (rejection := self.why_no_caller(calling, called)) is not None:
            return rejection
        calling = calling.strip()
        why_not = [each.why_not(shown) for each in self.certified.get(calling, ())]
        if why_not and None not in why_not:
            return Rejection(*CALLING_AE_TITLE_NOT_RECOGNIZED, f"{calling!r} calls {why_not[0]}")
        hosts = self.calls_from.get(calling)
        elsewhere = why_elsewhere(address, hosts, self.resolve) if hosts else None
        if elsewhere is None:
            return None
        codes = CALLING_AE_TITLE_NOT_RECOGNIZED if elsewhere.sure else NO_REASON_GIVEN_NOW
        return Rejection(*codes, f"{calling!r} calls {elsewhere.words} (calls_from)")


KEPT_FREE = 5  # of so many places one is kept from a peer that has taken all others


def most_per_peer(asked: int, max_associations: int, titles: Collection[str]) -> int:
    """How many associations one peer may hold open. asked: what the settings say; 0: all of them, or where several AE
    titles may call, all but a fifth."""
    if asked or len(titles) < 2:
        return min(asked or max_associations, max_associations)
    return max(1, max_associations - math.ceil(max_associations / KEPT_FREE))


def why_no_room(
    caller: tuple[str, str],
    held: Collection[tuple[str, str]],
    max_associations: int,
    most_per_peer: int,
    draining: bool,
) -> Rejection | None:
    """None, or the A-ASSOCIATE-RJ that asks the sender to come again later.

    caller: AE title and address. held: those of each association that is open.
    """
    if draining:
        return Rejection(*TEMPORARY_CONGESTION, "the node is stopping")
    calling, address = caller
    limits = (
        ("associations are open", len(held), max_associations),
        (f"associations of {calling!r} are open", sum(calling == each for each, _ in held), most_per_peer),
        (f"associations from {address} are open", sum(address == each for _, each in held), most_per_peer),
    )
    for what, count, most in limits:
        if count >= most:
            return Rejection(*LOCAL_LIMIT_EXCEEDED, f"{count} {what}, {most} are allowed")
    return None
