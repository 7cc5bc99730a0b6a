"""What is looked at, made into files: the findings with pictures, or a series as one volume and the masks in it.

A program of its own, started by `viewing.py`: it reads its request as JSON from stdin and answers in JSON on stdout. It
decodes what strangers have sent, so it gives up first what it does not need; its memory goes with it.

Images stay on their own pixel grid, as everywhere (`dicom_sr/findings.py`). What the browser gets is NIfTI: voxel
(i, j, k) is column i, row j of image k, and the affine leads to millimetres of RAS+ (NIfTI-1, "sform"), which are those
of DICOM (LPS+, PS3.3 C.7.6.2.1.1) with the first two turned round. Nothing is resampled, flipped or sorted again.
Nothing that is written names a patient.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from pydicom import Dataset

    from dicom_sr.findings import Axis, Finding, Findings, ImageRef, Measurement

MOST_SHOWN = (
    1 << 27
)  # voxels: 512 slices of 512 x 512; a browser holds each in 8 bytes of its graphics memory, and more
BYTES_A_VOXEL = 8  # of this process while it writes them
MOST_PICTURES = 64  # findings with a picture, and images in full
MOST_MASKS = 254  # labels that a byte has room for, beside nothing
SMALL = 160  # pixels, the side of a picture of a finding
ROUND_IT = 2.5  # how much more than the finding it shows
LEAST_SIDE = 64  # pixels of the image on it
JPEG_QUALITY = 90  # of the frames of a clip; outlines are not drawn into them
FASTEST_MS, SLOWEST_MS, UNSAID_MS = 10.0, 2000.0, 100.0  # a frame is shown
MASKS = "masks.nii.gz"
NICE = 10  # receiving and inference come first

# By number: far from grey, from each other, and from each other for who sees no red or green (Okabe, Ito 2008)
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#4d8ff0")

# (name, centre, width) in HU; centre and width of the lung as radiologists use them, and as models.read has them
CT_WINDOWS = (("Lung", -600.0, 1500.0), ("Mediastinum", 40.0, 400.0), ("Bone", 400.0, 1800.0))


class NotShown(Exception):
    """Why a series cannot be shown, in words."""


@dataclass(frozen=True, eq=False)
class Images:
    """What is known of the images of a series without their pixels.

    refs      in the order in which results count them: of slices along their normal
    files     of each
    headers   of each
    affine    4x4, (z, y, x, 1) -> LPS mm; None of images that are no stack
    """

    modality: str
    refs: tuple[ImageRef, ...]
    files: tuple[Path, ...]
    headers: tuple[Dataset, ...]
    size_yx: tuple[int, int]
    affine: np.ndarray | None = None
    spacing_mm: tuple[float, float, float] | None = None


def main() -> None:
    """Answers {} or {"why": ...}. An error of ours ends in a trace, which the node's log does not get: it may quote."""
    asked = json.load(sys.stdin)
    sys.path[:] = asked["path"]
    os.nice(NICE)
    if asked["confine"]:
        from pacs_node.confine import confine

        results_at = [path for paths in asked["results"].values() for path in paths]
        confine(reads=[*asked["files"], *asked["beside"], *results_at, asked["folder"]])
    from models.pipeline import UnfitInput

    folder = Path(asked["folder"])
    files = [Path(each) for each in asked["files"]]
    results = {job: [Path(each) for each in paths] for job, paths in asked["results"].items()}
    try:
        images = images_of(files)
        told = findings_of(images, results)
        if asked["part"] == "findings":
            draw_all(images, told, folder)
            write_json(folder / "findings.json", as_plain(images, told))
        elif asked["part"] == "earlier":
            write_earlier(images, files, [Path(each) for each in asked["beside"]], told, folder)
        elif images.affine is None and any(ref.frame is not None for ref in images.refs):
            write_cine(images, told, folder)
        else:
            write_volume(images, files, told, folder)
        answer = {}
    except (NotShown, UnfitInput) as why:
        answer = {"why": str(why)}
    json.dump(answer, sys.stdout)


# ------------------------------------------------------------------------------------------------------------ reading


def images_of(files: Sequence[Path]) -> Images:
    """Raises NotShown; UnfitInput of what can be read as neither slices nor pictures."""
    from dicom_sr import attributes
    from dicom_sr.modalities import VOLUME_CLASSES
    from models.read import geometry, header_of, path_of, read_image, slices_in, sort_slices

    if not files:
        raise NotShown("the images of the series are not here any more")
    modality = attributes.text(header_of(files[0]), "Modality")
    if modality in VOLUME_CLASSES:
        slices = sort_slices([one for path in files for one in slices_in(path, hounsfield=modality == "CT")])
        affine, spacing_mm = geometry(slices)
        headers = tuple(one.header for one in slices)
        paths = tuple(path_of(header) for header in headers)
        refs = tuple(one.ref for one in slices)
        return Images(modality, refs, paths, headers, slices[0].shape, affine, spacing_mm)
    clips = [read_image(path) for path in files]
    each = [(ref, clip) for clip in clips for ref in clip.images]
    return Images(
        modality,
        tuple(ref for ref, _ in each),
        tuple(clip.path for _, clip in each),
        tuple(clip.header for _, clip in each),
        clips[0].shape,
    )


@dataclass(frozen=True, eq=False)
class Told:
    """What the results of one job say."""

    job: str
    findings: Findings | None = None
    summary: str = ""
    why_not: str = ""  # there are no findings to show


def findings_of(images: Images, results: Mapping[str, Sequence[Path]]) -> list[Told]:
    """Out of the files that the destinations got, not of what stands behind them."""
    import pydicom

    told = []
    for job, paths in results.items():
        datasets = [pydicom.dcmread(path) for path in paths]
        reports = [each for each in datasets if each.Modality == "SR"]
        segmentations = [each for each in datasets if each.Modality == "SEG"]
        told += [_told(job, report, segmentations, images) for report in reports[:1]]
    return told


def _told(job: str, report: Dataset, segmentations: Sequence[Dataset], images: Images) -> Told:
    from dicom_sr import read

    why_not = read.not_analysed(report)
    if why_not is not None:
        return Told(job, why_not=f"not analysed: {why_not}")
    try:
        return Told(job, read.findings(report, segmentations, images.refs), read.summary(report))
    except KeyError:
        return Told(job, why_not="its results speak of images that the series has no longer")


# ------------------------------------------------------------------------------------------------------- in plain words


def as_plain(images: Images, told: Sequence[Told]) -> dict[str, Any]:
    """What a page or a program is told. Of LPS millimetres, unless a name says otherwise."""
    masks = mask_values(told)
    return {
        "kind": "images" if images.affine is None else "volume",
        "modality": images.modality,
        "identity_in_pixels": may_name_the_patient(images),
        "number_of_images": len(images.refs),
        "images": [_image(images, index) for index in range(len(images.refs))],
        "affine_lps_mm": None if images.affine is None else images.affine.tolist(),
        "results": [_result(images, each, place, masks) for place, each in enumerate(told, start=1)],
    }


def may_name_the_patient(images: Images) -> bool:
    """In its pixels. Slices are what a scanner has measured; pictures bear what the machine writes on them, unless they
    say that it did not (PS3.3 C.7.6.1: Burned In Annotation)."""
    from dicom_sr import attributes

    said = {attributes.text(header, "BurnedInAnnotation") for header in images.headers}
    return said != {"NO"} if images.affine is None else "YES" in said


def _image(images: Images, index: int) -> dict[str, Any]:
    from dicom_sr.summary import image_name

    ref, header = images.refs[index], images.headers[index]
    return {
        "sop_instance_uid": ref.sop_instance_uid,
        "frame": ref.frame,
        "name": image_name(header, ref),
        "rows": int(header.Rows),
        "columns": int(header.Columns),
    }


def _result(images: Images, told: Told, place: int, masks: Mapping[tuple[str, int], int]) -> dict[str, Any]:
    said = told.findings
    return {
        "job": told.job,
        "pipeline": said.pipeline if said else "",
        "algorithm": said.algorithm.name if said else "",
        "version": said.algorithm.version if said else "",
        "summary": told.summary,
        "why_not": told.why_not,
        "warnings": list(said.warnings) if said else [],
        "compared_with": _compared_with(said),
        "class": _class(said.measurements, said) if said else None,
        "measurements": [_measurement(each, said) for each in said.measurements] if said else [],
        "evaluations": [_evaluation(each) for each in said.evaluations] if said else [],
        "findings": [
            {
                **_finding(images, said, each),
                "mask": masks.get((told.job, each.number), 0),
                "picture": picture_name(place, each),
                "picture_in_full": full_name(each.key_image),
            }
            for each in said.findings
        ]
        if said
        else [],
    }


def _compared_with(said: Findings | None) -> dict[str, Any] | None:
    """The report of an earlier study, by its UIDs."""
    if said is None or said.compared_with is None:
        return None
    earlier = said.compared_with
    return {
        "study_uid": earlier.study_uid,
        "sop_instance_uid": earlier.sop_instance_uid,
        "days": earlier.days,
        "residual_mm": earlier.residual_mm,
    }


def _measurement(measurement: Any, said: Findings) -> dict[str, Any]:
    from dicom_sr.rounding import in_words, rounded

    how = f" ({measurement.derivation.meaning.lower()})" if measurement.derivation else ""
    return {
        "name": measurement.name.meaning + how,
        "value": rounded(measurement.value, measurement.unit),
        "unit": measurement.unit.value,
        "text": in_words(measurement.value, measurement.unit),
        "calibrated": measurement.name not in said.not_calibrated,
    }


def _class(measurements: Sequence[Measurement], said: Findings) -> dict[str, Any] | None:
    """The likeliest one, by the probabilities that the report states."""
    from dicom_sr.classes import likeliest

    found = likeliest(measurements)
    if found is None:
        return None
    name, share = found
    told = _measurement(share, said)
    return {"name": name, "text": told["text"], "calibrated": told["calibrated"]}


def _evaluation(evaluation: Any) -> dict[str, str]:
    return {"name": evaluation.name.meaning, "value": evaluation.value.meaning}


def _finding(images: Images, said: Findings, finding: Finding) -> dict[str, Any]:
    from dicom_sr import codes
    from dicom_sr.summary import sizes, where

    first = list(finding.offset_zyx)
    last = [start + length - 1 for start, length in zip(first, finding.mask.shape, strict=True)]
    there = finding.extent != "none"
    percent = None if finding.certainty is None else round(100 * finding.certainty)
    return {
        "number": finding.number,
        "label": finding.label,
        "type": finding.type.meaning,
        "where": where(finding),
        "size": sizes(finding),
        "certainty_percent": percent,
        "certainty_calibrated": codes.CERTAINTY not in said.not_calibrated,
        "extent": finding.extent,
        "colour": colour_of(finding),
        "image": _image(images, finding.key_image)["name"],
        "key_image": finding.key_image,
        "first_zyx": first if there else None,
        "last_zyx": last if there else None,
        "place_lps_mm": _place(images, finding),
        "corners_ras_mm": corners_ras_mm(images.affine, first, last) if there and images.affine is not None else None,
        "class": _class(finding.measurements, said),
        "measurements": [_measurement(each, said) for each in finding.measurements],
        "evaluations": [_evaluation(each) for each in finding.evaluations],
        "change": finding.change,
        "outline": outline_of(finding),
        "axes": axes_of(images, finding),
    }


def colour_of(finding: Finding) -> str:
    return COLOURS[(finding.number - 1) % len(COLOURS)]


def _place(images: Images, finding: Finding) -> list[float] | None:
    """The middle of what is marked, mm LPS."""
    import numpy as np

    if images.affine is None or finding.extent == "none":
        return None
    middle = np.argwhere(finding.mask).mean(axis=0) + finding.offset_zyx
    return [round(float(mm), 1) for mm in (images.affine @ [*middle, 1.0])[:3]]


def corners_ras_mm(affine: np.ndarray, first: Sequence[int], last: Sequence[int]) -> list[list[float]]:
    """Two opposite outer corners of the voxels from first to last (z, y, x), in mm RAS+."""
    import numpy as np

    corners = np.array([[*(np.array(first) - 0.5), 1.0], [*(np.array(last) + 0.5), 1.0]]) @ affine.T
    return [[-float(x), -float(y), float(z)] for x, y, z, _ in corners]


def axes_of(images: Images, finding: Finding) -> list[dict[str, Any]]:
    """The lines that its long and short axis were measured along, as the report has them. Nothing is measured here."""
    from dicom_sr import codes

    lines = ((codes.LONG_AXIS, finding.long_axis), (codes.SHORT_AXIS, finding.short_axis))
    return [
        {
            "name": name.meaning,
            "image": axis.image,
            "ends_xy": [list(axis.start_xy), list(axis.end_xy)],
            "ends_ras_mm": None if images.affine is None else ends_ras_mm(images.affine, axis),
        }
        for name, axis in lines
        if axis is not None
    ]


def ends_ras_mm(affine: np.ndarray, axis: Axis) -> list[list[float]]:
    """(column, row) counted from the outer corner of the first pixel, whose middle is (0.5, 0.5), in mm RAS+."""
    import numpy as np

    ends = np.array([[axis.image, y - 0.5, x - 0.5, 1.0] for x, y in (axis.start_xy, axis.end_xy)]) @ affine.T
    return [[-float(x), -float(y), float(z)] for x, y, z, _ in ends]


def outline_of(finding: Finding) -> list[list[list[float]]]:
    """On its key image: see outline_on."""
    return outline_on(finding, finding.key_image)


def outline_on(finding: Finding, index: int) -> list[list[list[float]]]:
    """On one image: closed polygons of (column, row), outlines and holes. (0, 0) is the first pixel's corner."""
    from dicom_sr.outline import outlines

    plane = index - finding.offset_zyx[0]
    if not 0 <= plane < len(finding.mask) or not finding.mask[plane].any():
        return []
    corner = [finding.offset_zyx[2], finding.offset_zyx[1]]
    return [(loop + corner).tolist() for part in outlines(finding.mask[plane]) for loop in part]


def mask_values(told: Sequence[Told]) -> dict[tuple[str, int], int]:
    """(job, number of the finding) -> its label in the volume of masks, from 1."""
    every = [(each.job, finding) for each in told if each.findings for finding in each.findings.findings]
    masked = [(job, finding.number) for job, finding in every if finding.extent == "mask"]
    return {key: value for value, key in enumerate(masked[:MOST_MASKS], start=1)}


# ------------------------------------------------------------------------------------------------------------- pictures


def picture_name(result: int, finding: Finding) -> str:
    return f"finding-{result}-{finding.number}.png"


def full_name(index: int) -> str:
    return f"image-{index}.png"


def draw_all(images: Images, told: Sequence[Told], folder: Path) -> None:
    """Of each finding a small picture with outline and axes, and its key image in full; of none the first image."""
    from PIL import Image

    full: dict[int, np.ndarray] = {}
    every = [
        (place, each.findings, finding)
        for place, each in enumerate(told, start=1)
        for finding in (each.findings.findings if each.findings else ())
    ]
    for place, said, finding in every[:MOST_PICTURES]:
        index = finding.key_image
        if index not in full:
            full[index] = seen(images, index, said)
            Image.fromarray(full[index]).save(folder / full_name(index))
        _small(full[index], finding).save(folder / picture_name(place, finding))
    if not full and images.affine is None:
        Image.fromarray(seen(images, 0, None)).save(folder / full_name(0))


def seen(images: Images, index: int, said: Findings | None) -> np.ndarray:
    """uint8 (rows, columns, 3), in a window in which the finding can be seen: of lungs that for lungs."""
    from dicom_sr import codes
    from models.read import LUNG_WINDOW_HU, display

    lungs = {codes.LUNG, codes.UPPER_LOBE, codes.MIDDLE_LOBE, codes.LOWER_LOBE}
    in_lungs = said is not None and not lungs.isdisjoint(each.site for each in said.findings)
    window = LUNG_WINDOW_HU if images.modality == "CT" and in_lungs else None
    return display(images.files[index], images.refs[index].frame, window=window)


def _small(image: np.ndarray, finding: Finding) -> Any:
    from PIL import Image, ImageDraw

    from dicom_sr.capture import CALIPER

    rows, columns = image.shape[:2]
    middle_y, middle_x, side = rows / 2, columns / 2, max(rows, columns)
    if finding.extent != "none":
        _, y, x = finding.offset_zyx
        _, tall, wide = finding.mask.shape
        middle_y, middle_x = y + tall / 2, x + wide / 2
        side = min(max(LEAST_SIDE, int(ROUND_IT * max(tall, wide))), side)
    left, top = round(middle_x - side / 2), round(middle_y - side / 2)
    cut = Image.fromarray(image).crop((left, top, left + side, top + side))
    small, scale = cut.resize((SMALL, SMALL), Image.Resampling.BICUBIC), SMALL / side
    pen = ImageDraw.Draw(small)

    def draw(points: Sequence[Sequence[float]], **how: Any) -> None:
        # Pillow's (0, 0) is the centre of the first pixel
        pen.line([((column - left) * scale - 0.5, (row - top) * scale - 0.5) for column, row in points], **how)

    for loop in outline_of(finding):
        draw(loop, fill=colour_of(finding), width=2)
    for axis in (finding.long_axis, finding.short_axis):
        if axis is not None and axis.image == finding.key_image:
            draw((axis.start_xy, axis.end_xy), fill=CALIPER, width=1)
    return small


# --------------------------------------------------------------------------------------------------------------- volume


def write_volume(images: Images, files: Sequence[Path], told: Sequence[Told], folder: Path) -> None:
    """`volume.nii.gz` (int16 HU; float32 of other modalities), `masks.nii.gz` (uint8, 0: nothing) and `volume.json`."""
    write_json(folder / "volume.json", _volume_files(images, files, told, folder / "volume.nii.gz", folder / MASKS))


def _volume_files(
    images: Images, files: Sequence[Path], told: Sequence[Told], volume_at: Path, masks_at: Path
) -> dict[str, Any]:
    """Both files written, and what is to be told of them."""
    import numpy as np

    from models.read import read_ct, read_volume

    if images.affine is None:
        raise NotShown("these images are no stack of slices; they are shown one by one")
    must_have_room(len(images.refs), images.size_yx, free_bytes())
    volume = (read_ct if images.modality == "CT" else read_volume)(files)
    if volume.images != images.refs:
        raise NotShown("; ".join(volume.remarks) or "some of its images cannot be decoded")
    _nifti(volume.values, volume.affine, volume_at)
    masks = np.zeros(volume.values.shape, np.uint8)
    labels: dict[int, dict[str, Any]] = {}
    values = mask_values(told)
    # the most important last: where findings overlap it is the one that is seen
    for job, finding in reversed([(t.job, f) for t in told if t.findings for f in t.findings.findings]):
        value = values.get((job, finding.number))
        if value is not None:
            box = tuple(slice(at, at + n) for at, n in zip(finding.offset_zyx, finding.mask.shape, strict=True))
            masks[box][finding.mask] = value
            labels[value] = {"value": value, "label": finding.label, "colour": colour_of(finding)}
    _nifti(masks, volume.affine, masks_at)
    return {
        "size_xyz": list(volume.values.shape[::-1]),
        "spacing_mm_xyz": [round(mm, 4) for mm in volume.spacing_mm[::-1]],
        "affine_ras_mm": ras_affine(volume.affine).tolist(),
        "voxel_of_ras_mm": np.linalg.inv(ras_affine(volume.affine)).tolist(),
        "unit": "HU" if images.modality == "CT" else "",
        "identity_in_pixels": may_name_the_patient(images),
        "windows": [{"name": name, "centre": c, "width": w} for name, c, w in windows(images, volume.values)],
        "labels": [labels[value] for value in sorted(labels)],
        "remarks": list(volume.remarks),
    }


def write_earlier(
    images: Images, files: Sequence[Path], beside: Sequence[Path], told: Sequence[Told], folder: Path
) -> None:
    """The earlier study as one volume, on its own grid, and the way to it from the present one: nothing is resampled.
    Raises UnfitInput where the two do not fit together."""
    import numpy as np

    from models.lung_nodule.lungs import find_lungs
    from models.lung_nodule.register import chest, register
    from models.read import read_ct

    if images.modality != "CT" or images.affine is None:
        raise NotShown("the earlier study is no stack of CT slices")
    present = read_ct(beside)
    here = chest(present, find_lungs(present))
    del present  # two whole CT at a time would take twice the memory
    former = read_ct(files)
    rigid = register(here, chest(former, find_lungs(former)))
    del former
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS, and back
    about = _volume_files(images, files, told, folder / "earlier.nii.gz", folder / "earlier-masks.nii.gz")
    masks = mask_values(told)
    about |= {
        "to_earlier_ras": (turned @ rigid.matrix @ turned).tolist(),
        "residual_mm": round(rigid.residual_mm, 1),
        "findings": [
            {
                **_finding(images, each.findings, finding),
                "job": each.job,
                "mask": masks.get((each.job, finding.number), 0),
            }
            for each in told
            if each.findings
            for finding in each.findings.findings
        ],
    }
    write_json(folder / "earlier.json", about)


# ----------------------------------------------------------------------------------------------------------------- cine


def write_cine(images: Images, told: Sequence[Told], folder: Path) -> None:
    """`cine.bin`, the frames as JPEG one behind the other, and `volume.json`: where each begins, and what is outlined
    on it. Frames are as the machine shows them; outlines are told beside them, not drawn into them."""
    from PIL import Image

    rows, columns = images.size_yx
    if len(images.refs) * rows * columns > MOST_SHOWN:
        raise NotShown(
            f"{len(images.refs)} frames of {columns} x {rows} pixels are more than a browser is given; the pictures of"
            " the findings are below"
        )
    frames: list[dict[str, Any]] = []
    with (folder / "cine.bin").open("wb") as film:
        for index, seen_ in enumerate(_frames_of(images)):
            at = film.tell()
            Image.fromarray(seen_).save(film, "JPEG", quality=JPEG_QUALITY)
            frames.append({"at": at, "bytes": film.tell() - at, **_image(images, index)})
    told_of_it = {
        "kind": "cine",
        "frame_ms": frame_ms(images.headers[0]),
        "identity_in_pixels": may_name_the_patient(images),
        "frames": frames,
        "outlines": [
            _outlines(images, each.job, finding) for each in told if each.findings for finding in each.findings.findings
        ],
        "remarks": [],
    }
    write_json(folder / "volume.json", told_of_it)


def _frames_of(images: Images) -> Iterator[np.ndarray]:
    """uint8 (rows, columns, 3) of each image, in the order in which results count them."""
    import numpy as np

    from models.read import read_image

    for path in dict.fromkeys(images.files):
        for frame in read_image(path).frames():
            yield frame.rgb if frame.rgb is not None else np.repeat(frame.grey[..., np.newaxis], 3, axis=2)


def frame_ms(header: Dataset) -> float:
    """How long a frame is shown: PS3.3 C.7.6.5 (Cine), then C.12.1.1's recommended rate; of one that says none 100."""
    from dicom_sr import attributes

    says = {"FrameTime": lambda ms: ms, "RecommendedDisplayFrameRate": _ms_of, "CineRate": _ms_of}
    for keyword, ms_of in says.items():
        try:
            value = attributes.number(header, keyword)
        except attributes.BadAttribute:
            continue
        if value > 0:
            return float(min(max(ms_of(value), FASTEST_MS), SLOWEST_MS))
    return UNSAID_MS


def _ms_of(per_second: float) -> float:
    return 1000 / per_second


def _outlines(images: Images, job: str, finding: Finding) -> dict[str, Any]:
    """Frame by frame, where the finding is on it; and its axes, on the frame that it was measured on."""
    first = finding.offset_zyx[0]
    there = [first + plane for plane in range(len(finding.mask)) if finding.mask[plane].any()]
    return {
        "job": job,
        "number": finding.number,
        "label": finding.label,
        "colour": colour_of(finding),
        "key_image": finding.key_image,
        "on": [{"frame": index, "polygons": outline_on(finding, index)} for index in there],
        "axes": axes_of(images, finding),
    }


def must_have_room(slices: int, size_yx: tuple[int, int], free: int) -> None:
    """Raises NotShown, before anything is decoded."""
    voxels = slices * size_yx[0] * size_yx[1]
    if voxels > MOST_SHOWN:
        raise NotShown(
            f"{slices} slices of {size_yx[0]} x {size_yx[1]} pixels are {voxels / 1e6:.0f} million voxels, and a"
            f" browser is given at most {MOST_SHOWN / 1e6:.0f} million; the pictures of the findings are below, and a"
            " viewer of the hospital shows the whole series"
        )
    if voxels * BYTES_A_VOXEL > free:
        raise NotShown(
            f"its {voxels / 1e6:.0f} million voxels need {voxels * BYTES_A_VOXEL / 1e9:.1f} GB of memory, and"
            f" {free / 1e9:.1f} GB are free; try again when less is running"
        )


def free_bytes() -> int:
    from pacs_node.memory import free_bytes as free

    return free()


def ras_affine(affine_lps: np.ndarray) -> np.ndarray:
    """(z, y, x, 1) -> LPS mm becomes (x, y, z, 1) -> RAS mm."""
    import numpy as np

    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps[:, [2, 1, 0, 3]]


def windows(images: Images, values: np.ndarray) -> Iterator[tuple[str, float, float]]:
    """(name, centre, width), the one to begin with first."""
    import numpy as np

    from dicom_sr.frames import frames
    from models.read import window_of

    own = window_of(next(iter(frames(images.headers[len(images.headers) // 2]))))
    if images.modality == "CT":
        yield from CT_WINDOWS
    if own is not None:
        yield "Image", *own
    elif images.modality != "CT":
        low, high = np.percentile(values[:: max(1, len(values) // 16)], (1, 99))
        yield "Image", float(low + high) / 2, float(max(high - low, 1e-6))


def _nifti(values: np.ndarray, affine_lps: np.ndarray, path: Path) -> None:
    """(z, y, x) becomes (x, y, z) of the file: the same bytes in the same order."""
    import nibabel

    image: Any = nibabel.Nifti1Image(values.T, ras_affine(affine_lps))  # type: ignore[no-untyped-call]
    image.header.set_sform(image.affine, code=1)  # scanner coordinates
    image.header.set_qform(None, code=0)  # a stack of a tilted gantry is sheared, which quaternions cannot say
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def write_json(path: Path, told: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
