"""Results seen in a real viewer: OHIF over Orthanc's DICOMweb shows every segment in its place and every number.

What is expected comes from the phantom, not from the objects. Pictures of all of it: tests/interop/out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.color import CIELabColor
from pydicom import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes, encode, read
from dicom_sr.derived import Results
from dicom_sr.findings import Algorithm, Finding, Findings
from dicom_sr.hydratable import hydratable
from dicom_sr.report import CALIPERS, CONTOUR
from dicom_sr.seg import plane_mask
from dicom_sr.source import headers_by_uid
from models.measure import Sizes, measure_lesion, measure_nodule
from models.phantoms import Lesion, chest_ct, lymph_node_ct
from models.phantoms.breast import Ellipse, breast_picture, breast_ultrasound
from models.read import read_ct
from tests.factories import enhanced_ct, header, us_image
from tests.harness import Orthanc, storescu, wait_for
from tests.interop.ohif.viewer import OUT, Sight, Viewer, as_shown, overlap, tinted, which_image
from tests.results import WHEN, ct_findings, mass, nodule, refs, us_findings

pytestmark = pytest.mark.timeout(600)
GIVE_UP_AFTER_S = 120  # a browser without a graphics card on a machine that does other things too
OPEN_ANEW_AFTER_S = 40
SAME = 0.9  # overlap of what is seen with what is true; 1.0 was seen, half a pixel along the border must be allowed


@dataclass(frozen=True, eq=False)
class Study:
    name: str
    pictures: list[np.ndarray]  # grey values as the viewer's window shows them, one per image or frame
    spacing_mm: tuple[float, float]
    findings: Findings
    objects: list[Dataset]

    @property
    def uid(self) -> str:
        return str(self.objects[-1].StudyInstanceUID)

    def colour(self, finding: Finding) -> tuple[int, ...]:
        segment = self.objects[0].SegmentSequence[finding.number - 1]
        return CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb()

    def shown(self, sight: Sight) -> int | None:
        """Which image is on the screen; None if it is none of the study's. Text and tools over it take some away."""
        index, agreement = which_image(sight, self.pictures, self.spacing_mm)
        return index if agreement > 0.8 else None

    def overlaps(self, sight: Sight) -> dict[str, float]:
        """For each finding that is, or seems to be, on the image shown: how well what is seen agrees with what is."""
        image, viewport = self.shown(sight), sight.pixels.shape[:2]
        assert image is not None
        both = {}
        for finding in self.findings.findings:
            mask = plane_mask(finding, image, *self.pictures[image].shape)
            there = as_shown(mask, viewport, self.spacing_mm) == 1
            seen = tinted(sight, self.colour(finding))
            if there.any() or seen.any():
                both[finding.label] = overlap(seen, there)
        return both


def sized(finding: Finding, sizes: Sizes) -> Finding:
    return replace(
        finding,
        key_image=sizes.key_image,
        long_axis=sizes.long_axis,
        short_axis=sizes.short_axis,
        measurements=sizes.measurements,
    )


def side_of(lesion: Lesion) -> Code:
    """LPS: x grows to the patient's left, PS3.3 C.7.6.2.1.1."""
    assert lesion.centre_lps_mm is not None
    return codes.LEFT if lesion.centre_lps_mm[0] > 0 else codes.RIGHT


def ct_study(folder: Path, seed: int = 11, *, enhanced: bool = False) -> Study:
    """Two nodules in a chest, as slices or as the frames of one Enhanced CT Image."""
    spacing_mm = (2.5, 0.7, 0.7)
    truth = chest_ct(folder, seed=seed, slices=24, spacing_mm=spacing_mm, nodules=2)
    images = [pydicom.dcmread(file) for file in truth.files]
    volume = read_ct(truth.files)
    found = [
        sized(
            nodule(n, lesion.offset_zyx, lesion.mask, laterality=side_of(lesion)),
            measure_nodule(lesion.mask, lesion.offset_zyx, volume),
        )
        for n, lesion in enumerate(truth.lesions, 1)
    ]
    centre, width = float(images[0].WindowCenter), float(images[0].WindowWidth)
    window = list(np.clip(volume.hu, centre - width / 2, centre + width / 2))
    findings = ct_findings(images, *found)
    if enhanced:
        for file in truth.files:
            file.unlink()
        images = [enhanced_ct(images, folder)]
        findings = replace(findings, images=refs(images))
    return written("ct", folder, images, window, spacing_mm[1:], findings)


def lymph_node_study(folder: Path) -> Study:
    """Two lymph nodes of a contrast-enhanced mediastinum: anatomical structures, in a soft tissue window."""
    spacing_mm = (2.5, 1.2, 1.2)
    truth = lymph_node_ct(folder, seed=4, slices=36, size=300, spacing_mm=spacing_mm, nodes=2)
    images, volume = [pydicom.dcmread(file) for file in truth.files], read_ct(truth.files)
    kind = {"category": codes.ANATOMICAL_STRUCTURE, "type": codes.LYMPH_NODE, "site": codes.MEDIASTINUM}
    found = [
        sized(
            replace(nodule(n, lesion.offset_zyx, lesion.mask, laterality=None), label=f"Lymph node {n}", **kind),
            measure_nodule(lesion.mask, lesion.offset_zyx, volume),
        )
        for n, lesion in enumerate(truth.lesions, 1)
    ]
    window = list(np.clip(volume.hu, 40 - 200, 40 + 200))
    algorithm = Algorithm("pacs-node lymph-node", "0.1.0+1a2b3c4d")
    said = {"pipeline": "lymph-node", "algorithm": algorithm, "sought": codes.LYMPH_NODE}
    findings = replace(ct_findings(images, *found), sought_site=codes.MEDIASTINUM, **said)
    return written("nodes", folder, images, window, spacing_mm[1:], findings)


def ultrasound_study(folder: Path, patient_id: str = "PHANTOM-US-VIEWER") -> Study:
    truth = breast_ultrasound(folder, seed=3, patient_id=patient_id)
    image = pydicom.dcmread(truth.files[0])
    spacing_mm = (0.085, 0.085)
    [lesion] = truth.lesions
    sizes = measure_lesion(lesion.mask[0], lesion.offset_zyx[1:], 0, spacing_mm)
    found = sized(mass(1, lesion.offset_zyx, lesion.mask), sizes)
    return written("us", folder, [image], [image.pixel_array], spacing_mm, us_findings([image], found))


def clip_study(folder: Path) -> Study:
    """A lesion that drifts to the right, on frames 3 to 5 of six."""
    shape, spacing_mm = (300, 400), 0.085
    y, x = (np.indices(shape) + 0.5) * spacing_mm
    drifting = {frame: Ellipse(12 + 1.5 * frame, 15, (5, 3.5), tilt_deg=20) for frame in (2, 3, 4)}
    pictures = [
        breast_picture(np.random.default_rng((9, frame)), shape, (spacing_mm, spacing_mm), drifting.get(frame), 6.0)
        for frame in range(6)
    ]
    voxels = np.stack(pictures)
    clip = us_image(folder, frames=6, voxels=voxels, spacing_mm=(spacing_mm, spacing_mm), name="clip in the viewer")
    lesion = np.stack([ellipse.radius(x, y) <= 1 for ellipse in drifting.values()])
    sizes = measure_lesion(lesion[1], (0, 0), 3, (spacing_mm, spacing_mm))
    found = sized(mass(1, (2, 0, 0), lesion), sizes)
    return written("clip", folder, [clip], pictures, (spacing_mm, spacing_mm), us_findings([clip], found))


def written(
    name: str,
    folder: Path,
    images: list[Dataset],
    pictures: list[np.ndarray],
    spacing_mm: tuple[float, float],
    findings: Findings,
) -> Study:
    objects = encode(findings, [header(image) for image in images], when=WHEN)
    for result in objects:
        result.save_as(folder / f"{result.Modality}.dcm", enforce_file_format=True)
    return Study(name, pictures, spacing_mm, findings, objects)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


@pytest.fixture(scope="module")
def viewer(pacs: Orthanc) -> Iterator[Viewer]:
    with Viewer(pacs) as viewer:
        yield viewer


def opened(make: Callable[[Path], Study], folder: Path, pacs: Orthanc, viewer: Viewer) -> Study:
    study = make(folder)
    storescu(pacs, folder)
    open_segmentation(viewer, study)
    return study


def open_segmentation(viewer: Viewer, study: Study) -> None:
    viewer.open(study.uid)
    viewer.load(str(study.objects[0].SeriesDescription))


def sight_of(viewer: Viewer, name: str, what: str, true: Callable[[Sight], bool]) -> Sight:
    """The page as soon as something is true of it."""

    def look() -> Sight | None:
        sight = viewer.look(name)
        return sight if true(sight) else None

    return wait_for(look, GIVE_UP_AFTER_S, f"{what}; see {OUT / name}.png")


def sight_of_a_segment(viewer: Viewer, study: Study, name: str) -> Sight:
    """OHIF turns to the first one by itself. Where it does not, a reader loads the page again."""
    colours = [study.colour(finding) for finding in study.findings.findings]
    opened_at = time.monotonic()

    def there(sight: Sight) -> bool:
        nonlocal opened_at
        if study.shown(sight) is not None and any(tinted(sight, colour).any() for colour in colours):
            return True
        if time.monotonic() - opened_at > OPEN_ANEW_AFTER_S:
            open_segmentation(viewer, study)
            opened_at = time.monotonic()
        return False

    return sight_of(viewer, name, f"a segment of {study.name} in its colour", there)


def sight_of_numbers(viewer: Viewer, study: Study, image: int, name: str) -> Sight:
    """An image of the study with numbers drawn on it."""

    def look() -> Sight | None:
        sight = viewer.look(name)
        if not sight.written and len(study.pictures) > 1:
            # now and then OHIF draws what belongs to a clip's frame only when the frame is turned to anew
            turned_to(viewer, study, image - 1, name)
            turned_to(viewer, study, image, name)
        # numbers may be there before the pixels that they are drawn on
        return sight if sight.written and study.shown(sight) is not None else None

    return wait_for(look, GIVE_UP_AFTER_S, f"numbers drawn on image {image} of {study.name}; see {OUT / name}.png")


def turned_to(viewer: Viewer, study: Study, image: int, name: str) -> Sight:
    """The sight of one image. A CT begins at the head, a clip with its first frame, the frames of a CT with either."""
    down = -1 if study.findings.geometry == "volume" else 1
    before: int | None = None

    def there(sight: Sight) -> bool:
        nonlocal down, before
        at = study.shown(sight)
        if at not in (None, image) and study.shown(viewer.look(name)) == at:  # it stands still, keys may get lost
            if before is not None and abs(at - image) >= abs(before - image):
                down = -down
            before = at
            viewer.turn(down * (image - at))
        return at == image

    return sight_of(viewer, name, f"image {image} of {study.name}", there)


def sent_as(
    make: Callable[[Dataset, Results], Dataset], seed: int, *, enhanced: bool = False
) -> Callable[[Path], Study]:
    """A study of a CT whose report is in the folder in the form that a destination gets."""

    def study(folder: Path) -> Study:
        study = ct_study(folder, seed, enhanced=enhanced)
        *segmentations, report = study.objects
        headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.glob("*.dcm")]
        sent = make(report, Results(tuple(segmentations), report, headers_by_uid(headers)))
        sent.save_as(folder / "SR.dcm", enforce_file_format=True)
        return replace(study, objects=[*segmentations, sent])

    return study


def as_stored(report: Dataset, results: Results) -> Dataset:
    return report


@pytest.mark.parametrize("enhanced", [False, True])
def test_the_report_of_a_ct_is_shown_with_its_own_numbers(
    enhanced: bool, tmp_path: Path, pacs: Orthanc, viewer: Viewer
) -> None:
    """One group for each nodule, as Comprehensive 3D SR: opened without an error, and nothing measured again."""
    name = f"ct-own-{'enhanced' if enhanced else 'slices'}"
    study = opened(sent_as(as_stored, 13 + enhanced, enhanced=enhanced), tmp_path, pacs, viewer)
    sight_of_a_segment(viewer, study, f"{name}-seg")
    viewer.load("nodules SR", hydrate=False)
    groups = read.groups(study.objects[-1])
    assert [group.template for group in groups] == ["1411"] * len(study.findings.findings)
    first = study.findings.findings[0]
    sight = sight_of_numbers(viewer, study, first.key_image, name)
    assert study.shown(sight) == first.key_image
    named = {codes.LONG_AXIS: "L: ", codes.SHORT_AXIS: "W: ", codes.VOXEL_VOLUME: codes.VOXEL_VOLUME.meaning}
    for measurement in groups[0].measurements:
        if measurement.name in named:
            pattern = f"{named[measurement.name]}: {measurement.value:.2f} {measurement.unit.value}"
            assert any(pattern in text for text in sight.written), (pattern, sight.written)


def test_nodules_of_a_ct_are_seen_and_measured(tmp_path: Path, pacs: Orthanc, viewer: Viewer) -> None:
    study = opened(sent_as(hydratable, 11), tmp_path, pacs, viewer)
    sight_of_a_segment(viewer, study, "ct-seg")
    for finding in study.findings.findings:
        overlaps = study.overlaps(turned_to(viewer, study, finding.key_image, f"ct-seg-{finding.number}"))
        assert finding.label in overlaps
        assert min(overlaps.values()) > SAME
    beyond = turned_to(viewer, study, finding.offset_zyx[0] - 1, "ct-seg-none")
    assert study.overlaps(beyond) == {}

    viewer.load("nodules SR")
    viewer.show_measurements()
    for row, (label, group) in enumerate(drawn(study, CONTOUR)):
        told(viewer, "ct-sr", rf"{label}\n[\d.]+ ")
        viewer.jump_to_measurement(row)  # OHIF gives the unit of an area once its image has been shown
        [area] = group.measurements
        shown_mm2 = float(told(viewer, f"ct-sr-{row + 1}", rf"{label}\n([\d.]+) mm²")[1])
        assert shown_mm2 == pytest.approx(area.value, abs=0.5)
    for label, group in drawn(study, CALIPERS):
        long_mm, short_mm = (measurement.value for measurement in group.measurements)
        told(viewer, "ct-sr", rf"{label}\nL: {long_mm:.1f} mm\nW: {short_mm:.1f} mm")


def test_lymph_nodes_are_seen_where_they_are(tmp_path: Path, pacs: Orthanc, viewer: Viewer) -> None:
    study = opened(lymph_node_study, tmp_path, pacs, viewer)
    sight_of_a_segment(viewer, study, "nodes-seg")
    for finding in study.findings.findings:
        overlaps = study.overlaps(turned_to(viewer, study, finding.key_image, f"nodes-seg-{finding.number}"))
        assert finding.label in overlaps
        assert min(overlaps.values()) > SAME


def drawn(study: Study, tool: str) -> list[tuple[str, read.Group]]:
    """The report's groups that OHIF makes measurements of with a tool, and the labels of their findings."""
    groups = read.groups(study.objects[-1])
    return [(g.tracking_id.removeprefix(f"{tool}:"), g) for g in groups if g.tracking_id.startswith(tool)]


def told(viewer: Viewer, name: str, pattern: str) -> re.Match[str]:
    """What the panel of measurements says."""
    return wait_for(
        lambda: re.search(pattern, "\n".join(viewer.look(name).rows)), GIVE_UP_AFTER_S, f"measurements with '{pattern}'"
    )


@pytest.mark.parametrize("make", [ultrasound_study, clip_study])
def test_a_mass_on_ultrasound_is_seen_and_measured(
    make: Callable[[Path], Study], tmp_path: Path, pacs: Orthanc, viewer: Viewer
) -> None:
    study = opened(make, tmp_path, pacs, viewer)
    sight_of_a_segment(viewer, study, f"{study.name}-seg")
    [finding] = study.findings.findings
    first, count = finding.offset_zyx[0], len(finding.mask)
    for image in range(len(study.pictures)):
        overlaps = study.overlaps(turned_to(viewer, study, image, f"{study.name}-seg-{image + 1}"))
        assert set(overlaps) == ({finding.label} if first <= image < first + count else set())
        assert min(overlaps.values(), default=1) > SAME

    viewer.load("lesions SR", hydrate=False)

    sight = sight_of_numbers(viewer, study, finding.key_image, f"{study.name}-sr")
    assert study.shown(sight) == finding.key_image
    [group] = [group for group in read.groups(study.objects[-1]) if group.tracking_id == finding.label]
    assert {codes.LONG_AXIS, codes.SHORT_AXIS, codes.AREA} <= {measurement.name for measurement in group.measurements}
    for measurement in group.measurements:
        assert any(f": {measurement.value:.2f} {measurement.unit.value}" in text for text in sight.written), measurement


def mirrored(mask: np.ndarray) -> np.ndarray:
    return mask[:, ::-1]


def shifted(mask: np.ndarray) -> np.ndarray:
    """Three millimetres to the right."""
    return np.roll(mask, 35, axis=1)


@pytest.mark.parametrize("displaced", [mirrored, shifted])
def test_a_mask_in_the_wrong_place_would_be_noticed(
    displaced: Callable[[np.ndarray], np.ndarray], tmp_path: Path, pacs: Orthanc, viewer: Viewer
) -> None:
    """The control: it reaches the screen, and does not pass."""
    name = displaced.__name__

    def spoilt(folder: Path) -> Study:
        study = ultrasound_study(folder, patient_id=f"PHANTOM-US-{name}")
        segmentation = study.objects[0]
        bits = np.unpackbits(np.frombuffer(segmentation.PixelData, np.uint8), bitorder="little")
        cells = segmentation.Rows * segmentation.Columns
        mask = displaced(bits[:cells].reshape(segmentation.Rows, segmentation.Columns))
        segmentation.PixelData = np.packbits(mask.ravel(), bitorder="little").tobytes()
        segmentation.save_as(folder / "SEG.dcm", enforce_file_format=True)
        return study

    study = opened(spoilt, tmp_path, pacs, viewer)
    overlaps = study.overlaps(sight_of_a_segment(viewer, study, f"us-{name}"))
    assert max(overlaps.values()) < SAME
