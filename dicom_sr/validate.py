"""The gate: what every object must pass before it leaves. A table of named rules; the rules are in `rules/`.

An object with a fault of severity "error" is not sent; a "warning" is shown beside the result. Rules run in stages, so
that one may read what an earlier one has found present.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_sr import modules
from dicom_sr.files import Files
from dicom_sr.findings import Findings
from dicom_sr.revision import Written
from dicom_sr.rules import every, report, segmentation
from dicom_sr.rules.subject import Fault, Rule, Subject
from dicom_sr.source import EncodingError

__all__ = ["RULES", "Fault", "Rejected", "Rule", "faults", "problems"]

SEG = frozenset({SegmentationStorage})
SR = frozenset({ComprehensiveSRStorage, Comprehensive3DSRStorage})
KO = frozenset({KeyObjectSelectionDocumentStorage})
SC = frozenset({SecondaryCaptureImageStorage})  # pictures that a pipeline draws
EVERY = SEG | SR | KO | SC


class Rejected(EncodingError):
    """Finished objects that must not leave."""

    def __init__(self, objects: Sequence[Dataset], faults: Sequence[Fault]) -> None:
        wrong = [str(fault) for fault in faults if fault.severity == "error"]
        super().__init__("; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""))
        self.objects, self.faults = tuple(objects), tuple(faults)


def faults(
    dataset: Dataset,
    sources: Sequence[Dataset],
    *,
    findings: Findings | None = None,
    segmentations: Sequence[Dataset] = (),
    replaces: Sequence[Written] = (),
    rules: Sequence[Rule] | None = None,
    files: Files | None = None,
) -> list[Fault]:
    """Everything that is wrong with a Segmentation or report of ours; no error if it may leave.

    sources         headers of the images it was made from
    findings        if given, the object must say the same when it is read back
    segmentations   those that belong to the same result
    replaces        the earlier objects that it replaces
    files           takes those that are made here
    """
    subject = Subject(dataset, sources, findings, segmentations, replaces, files or Files())
    found: list[Fault] = []
    for stage in STAGES:
        for rule in RULES if rules is None else rules:
            if rule.stage == stage and (stage == 0 or dataset.SOPClassUID in rule.objects):
                found += [Fault(rule.name, rule.severity, text) for text in rule.check(subject)]
        if any(fault.severity == "error" for fault in found):
            break  # what follows reads what was just missed
    return found


def problems(
    dataset: Dataset,
    sources: Sequence[Dataset],
    *,
    findings: Findings | None = None,
    segmentations: Sequence[Dataset] = (),
    replaces: Sequence[Written] = (),
) -> list[str]:
    """The errors among the faults, in words: an empty list is a pass."""
    found = faults(dataset, sources, findings=findings, segmentations=segmentations, replaces=replaces)
    return [str(fault) for fault in found if fault.severity == "error"]


def _module_rules() -> Iterator[Rule]:
    kinds: dict[str, set[str]] = {}
    for sop_class in sorted(EVERY):
        for module in filter(modules.demands, modules.mandatory(sop_class)):
            kinds.setdefault(module, set()).add(sop_class)
    for module, objects in kinds.items():
        yield Rule(f"module {module}", "PS3.3", frozenset(objects), partial(every.module, module), 1)


STAGES = range(5)
RULES: tuple[Rule, ...] = (
    Rule("sop class", "PS3.4 B.5", EVERY, partial(every.sop_class, EVERY), 0),
    *_module_rules(),
    Rule("module frame-of-reference", "PS3.3 C.7.4.1", SEG, every.frame_of_reference, 1),
    Rule("uids", "PS3.5 9.1", EVERY, every.uids, 1),
    Rule("uids of the images", "PS3.5 9.1", EVERY, every.uids_of_sources, 1, "warning"),
    Rule("values", "PS3.5 6.2", EVERY, every.values, 1),
    Rule("codes", "PS3.3 8.8", EVERY, every.code_items, 1),
    Rule("character set", "PS3.3 C.12.1.1.2", EVERY, every.character_set, 1),
    Rule("file meta information", "PS3.10 7.1", EVERY, every.file_meta, 1),
    Rule("functional groups", "PS3.3 C.7.6.16", SEG, segmentation.functional_groups, 1),
    Rule("content items", "PS3.3 C.17.3.2", SR | KO, report.content_items, 1),
    Rule("attributes of the object", "PS3.3 A.51, A.35.3", EVERY, every.only_known_attributes, 1, "warning"),
    Rule("same patient and study", "PS3.3 C.7.1, C.7.2", EVERY, every.identity, 2),
    Rule("references", "PS3.3 10.8", EVERY, every.references, 2),
    Rule("segment numbers", "PS3.3 C.8.20.2", SEG, segmentation.segments, 2),
    Rule("segments are tracked", "PS3.3 C.8.20.2", SEG, segmentation.tracked, 2),
    Rule("pixel data", "PS3.5 8.1.1", SEG, segmentation.pixel_data, 2),
    Rule("frames are of segments", "PS3.3 C.8.20.3.1", SEG, segmentation.described_segment, 2),
    Rule("dimensions", "PS3.3 C.7.6.17", SEG, segmentation.dimensions, 2),
    Rule("relationships", "PS3.3 A.35.3.3.1.2", SR | KO, report.relationships, 2),
    Rule("flags", "PS3.3 C.17.2", SR, report.complete, 2),
    Rule("research use only", "ours", SR, report.research_only, 2),
    Rule("predecessors", "PS3.3 C.17.2", SR, report.predecessors, 2),
    Rule("weasis: derivation of every frame", "Weasis, PS3.3 C.7.6.16.2.6", SEG, segmentation.derivation, 2),
    Rule("ohif: shared planes", "OHIF 3.13", SEG, segmentation.shared_planes, 2),
    Rule("ohif, slicer: binary", "OHIF 3.9, 3D Slicer 5", SEG, segmentation.binary, 2),
    Rule("ohif: a series of its own", "OHIF 3.13", SEG | SR, every.own_series, 2),
    Rule("ohif: title", "OHIF 3.13", SR, report.title, 2),
    Rule("common instance reference", "PS3.3 C.12.2", SEG, segmentation.common_instance_reference, 3),
    Rule("ohif: one referenced series", "OHIF 3.13", SEG, segmentation.one_series, 3, "warning"),
    Rule("ohif: on its image", "OHIF 3.13, PS3.3 C.7.6.2.1.1", SEG, segmentation.on_its_image, 3),
    Rule("evidence", "PS3.3 C.17.2", SR, report.evidence, 3),
    Rule("ohif: tracking", "OHIF 3.13, TID 1501", SR, report.tracking, 3),
    Rule("ohif: contour first", "OHIF 3.13", SR, report.contour_first, 3),
    Rule("ohif: coordinates", "OHIF 3.13", SR, report.coordinates, 3),
    Rule("ohif: no area on ultrasound", "OHIF 3.13", SR, report.no_area_on_ultrasound, 3),
    Rule("inside the image", "PS3.3 C.18.6.1.1", SR, report.inside, 3),
    Rule("tied to segments", "TID 1410, 1411", SR, report.tied_to_segments, 3),
    Rule("slicer: even planes", "3D Slicer 5", SEG, segmentation.even_planes, 3, "warning"),
    Rule("slicer: segment names", "3D Slicer 5", SEG, segmentation.segment_names, 3, "warning"),
    Rule("geometry round trip", "ours", SEG, segmentation.round_trip, 4),
    Rule("says the same", "ours", SR, report.reads_back, 4),
    Rule("volume as drawn", "ours", SR, report.volume, 4),
)
