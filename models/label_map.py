"""Label maps and masks of models that are not ours -> findings, on the grid of the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.sr.coding import Code
from scipy import ndimage

from dicom_sr import codes
from dicom_sr.findings import Evaluation, Finding, Measurement
from models.labels import Label
from models.measure import axes, axial, contour, mesh, tenths
from models.pipeline import BadOutput
from models.read import Volume

MOST_PARTS = 100  # of one label that are findings of their own; a noisy map has thousands, which nobody can read
MOST_CORNERS = 5000  # of a contour that is measured: time and memory grow with its square
NEAR_WHOLE = 1e-3  # how far a label may be from a whole number, after interpolation and in float32


@dataclass(frozen=True, eq=False)
class Marked:
    """One mask, bool (z, y, x), cut to its box on the grid of a volume, and what the model says of it."""

    number: int  # of the label or segment
    label: Label
    mask: np.ndarray
    offset_zyx: tuple[int, int, int]
    certainty: float | None = None
    measurements: tuple[Measurement, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()

    @classmethod
    def cut(cls, number: int, label: Label, whole: np.ndarray) -> Marked:
        """From a mask on the whole grid; a copy of its box, so that many labels do not hold the grid many times."""
        boxes = ndimage.find_objects(whole.astype(np.uint8))
        z, y, x = boxes[0] if boxes else (slice(0, 0),) * 3
        return cls(number, label, whole[z, y, x].copy(), (z.start, y.start, x.start))


def marked_labels(label_map: np.ndarray, labels: Mapping[int, Label], called: str) -> list[Marked]:
    """What a label map (z, y, x) marks; 0 is background. In the order of the labels.

    called   the map, in words: "the bundle's label map"

    Raises BadOutput when a value is no label of the table.
    """
    values = np.unique(label_map)
    if not np.isfinite(values).all() or np.abs(values - np.rint(values)).max(initial=0) > NEAR_WHOLE:
        raise BadOutput(f"{called} holds {values.min():.3g} to {values.max():.3g}, which are no whole numbers")
    present = {int(value) for value in np.rint(values)} - {0}
    _known(present, labels, called)
    whole = np.rint(label_map).astype(np.int32)
    return [Marked.cut(number, label, whole == number) for number, label in labels.items() if number in present]


def marked_channels(channels: np.ndarray, labels: Mapping[int, Label], called: str) -> list[Marked]:
    """What masks (c, z, y, x) mark, one for each label. Channel 0 is background unless the table names it.

    Raises BadOutput when they are no masks, or a channel that marks something is not in the table.
    """
    if not np.isin(np.unique(channels), (0, 1)).all():
        raise BadOutput(
            f"{called} has {len(channels)} channels, and their values are not 0 and 1: probabilities, no masks"
        )
    present = {number for number, channel in enumerate(channels) if channel.any()}
    _known(present - {0}, labels, called)
    return [Marked.cut(number, label, channels[number] > 0) for number, label in labels.items() if number in present]


def _known(present: set[int], labels: Mapping[int, Label], called: str) -> None:
    if unknown := sorted(present - labels.keys()):
        some = ", ".join(map(str, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise BadOutput(
            f"{called} holds label {some}; the table of the route names {', '.join(map(str, labels)) or 'none'}."
            " Name each in [route.options.labels]"
        )


def findings_of(marked: Sequence[Marked], volume: Volume, modality: str) -> tuple[list[Finding], list[str]]:
    """Findings in the order of `marked`, the parts of one label by their size; and remarks in words."""
    found: list[Finding] = []
    remarks: list[str] = []
    for one in marked:
        for name, mask, offset in _parts(one, remarks):
            found.append(_finding(len(found) + 1, name, one, mask, offset, volume, modality, remarks))
    return found, remarks


def sought_of(labels: Sequence[Label]) -> tuple[Code, Code | None]:
    """What "nothing found" is said of, and where it was looked for: as far as the labels agree."""
    types = {label.type_code for label in labels}
    categories = {label.category_code for label in labels}
    sites = {label.site_code for label in labels}
    what = types.pop() if len(types) == 1 else categories.pop() if len(categories) == 1 else codes.LESION
    return what, sites.pop() if len(sites) == 1 and what not in sites else None


def not_found(labels: Sequence[Label], found: Sequence[str]) -> list[str]:
    """That labels of the table were not found, where others were. found: the labels of the findings."""
    lacking = [one.name for one in labels if one.name not in found and f"{one.name} 1" not in found]
    if not found or not lacking:
        return []
    return [f"not found: {', '.join(lacking[:10])}" + (f" and {len(lacking) - 10} more" if len(lacking) > 10 else "")]


def _parts(one: Marked, remarks: list[str]) -> Iterator[tuple[str, np.ndarray, tuple[int, int, int]]]:
    """(name, mask in its smallest box, where the box begins) of each finding."""
    if not one.label.separate:
        if one.mask.any():
            yield one.label.name, one.mask, one.offset_zyx
        return
    numbered, count = ndimage.label(one.mask, np.ones((3, 3, 3)))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    largest = np.argsort(-sizes, kind="stable")[:MOST_PARTS]
    if count > MOST_PARTS:
        remarks.append(f"{one.label.name}: {count} separate parts; only the {MOST_PARTS} largest are reported")
    boxes = ndimage.find_objects(numbered)
    for number, place in enumerate(largest.tolist(), start=1):
        box = boxes[place]
        z, y, x = (part.start + offset for part, offset in zip(box, one.offset_zyx, strict=True))
        yield f"{one.label.name} {number}", numbered[box] == place + 1, (z, y, x)


def _finding(
    number: int,
    name: str,
    one: Marked,
    mask: np.ndarray,
    offset: tuple[int, int, int],
    volume: Volume,
    modality: str,
    remarks: list[str],
) -> Finding:
    measured: list[Measurement] = []
    key, lines = int(mask.sum(axis=(1, 2)).argmax()), None
    if "diameters" in one.label.measure:
        if max(len(contour(part)) for part in mask[mask.sum(axis=(1, 2)) == mask[key].sum()]) > MOST_CORNERS:
            remarks.append(f"{name}: no diameters, its outline is too ragged to be measured")
        else:
            key, lines = axial(mask, volume.spacing_mm)
            measured += [
                Measurement(codes.LONG_AXIS, tenths(lines.long_mm), codes.MM),
                Measurement(codes.SHORT_AXIS, tenths(lines.short_mm), codes.MM),
                Measurement(codes.MEAN_DIAMETER, lines.mean_mm, codes.MM, codes.MEAN),
                Measurement(codes.MAX_3D_DIAMETER, tenths(mesh(mask, volume.affine)[1]), codes.MM),
            ]
    if "volume" in one.label.measure:
        measured.append(Measurement(codes.VOXEL_VOLUME, float(round(mask.sum() * volume.voxel_mm3)), codes.MM3))
    if "intensity" in one.label.measure:
        measured += _intensity(volume.values[_at(offset, mask)][mask].astype(np.float64), modality)
    image = offset[0] + key
    long_axis, short_axis = (None, None) if lines is None else axes(lines, image, offset[1:])
    return Finding(
        number=number,
        label=name,
        category=one.label.category_code,
        type=one.label.type_code,
        site=one.label.site_code,
        laterality=one.label.laterality_code,
        mask=mask,
        offset_zyx=offset,
        key_image=image,
        certainty=one.certainty,
        long_axis=long_axis,
        short_axis=short_axis,
        measurements=(*measured, *one.measurements),
        evaluations=one.evaluations,
        colour=one.label.rgb,
    )


def _at(offset: tuple[int, int, int], mask: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(offset, mask.shape, strict=True))


def _intensity(values: np.ndarray, modality: str) -> list[Measurement]:
    """Over all voxels of the mask: Hounsfield units of a CT, the signal of an MR."""
    if modality == "CT":
        return [
            Measurement(codes.MEAN_HU, round(float(values.mean()), 1), codes.HU),
            Measurement(codes.SD_HU, round(float(values.std()), 1), codes.HU),
            Measurement(codes.MIN_HU, float(values.min()), codes.HU),
            Measurement(codes.MAX_HU, float(values.max()), codes.HU),
        ]
    return [
        Measurement(codes.MR_SIGNAL, round(float(values.mean()), 1), codes.NO_UNITS, codes.MEAN),
        Measurement(codes.MR_SIGNAL, round(float(values.std()), 1), codes.NO_UNITS, codes.STANDARD_DEVIATION),
    ]
