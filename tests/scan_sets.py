"""Small sets of scans in a folder, as models.training.lung_nodule.data.semisynthetic writes them; readers' XML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from models.phantoms import Lesion as PhantomLesion
from models.read import Volume
from models.training.lung_nodule.data.scans import FORMAT, INDEX, Scan, index_digest, store


def scan_set(folder: Path, scans: Mapping[str, tuple[str, Scan]], split_sha256: str = "5" * 64) -> Path:
    """The folder, with each scan under its name in a part: {"a": ("train", scan)}."""
    folder.mkdir(exist_ok=True)
    for name, (_, scan) in scans.items():
        store(folder / f"{name}.npz", scan)
    listed = [
        {
            "name": name,
            "file": f"{name}.npz",
            "part": part,
            "lesions": [{"patient": f"donor {number} of {name}"} for number in range(len(scan.lesions))],
        }
        for name, (part, scan) in scans.items()
    ]
    index = {"format": FORMAT, "semi_synthetic": True, "split_sha256": split_sha256, "scans": listed}
    (folder / INDEX).write_text(json.dumps(index | {"sha256": index_digest(index)}))
    return folder


POINT = (9, 90, 57)  # z, y, x in the right lung, or the left one of a patient who lies the other way


def outline(mask: np.ndarray) -> list[tuple[int, int]]:
    """The first pixels outside of a star-shaped mask (y, x), in order round it, as (x, y)."""
    points = np.argwhere(ndimage.binary_dilation(mask) & ~mask)
    order = np.argsort(np.arctan2(*(points - np.argwhere(mask).mean(axis=0)).T))
    return [(int(x), int(y)) for y, x in points[order]]


def write_xml(path: Path, volume: Volume, series_uid: str, drawn: list[list[np.ndarray]], sop_uids: bool) -> None:
    """drawn: for each reader the masks (z, y, x) of what it outlined; the first also marks POINT."""

    def roi(z: int, points: list[tuple[int, int]]) -> str:
        edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
        uid = volume.images[z].sop_instance_uid if sop_uids else ""
        z_mm = volume.position_lps_mm((z, 0, 0))[2]
        return (
            f"<roi><imageZposition>{z_mm:.6f}</imageZposition><imageSOP_UID>{uid}</imageSOP_UID>"
            f"<inclusion>TRUE</inclusion>{edges}</roi>"
        )

    def nodule(rois: str) -> str:
        return f"<unblindedReadNodule><noduleID>n</noduleID>{rois}</unblindedReadNodule>"

    sessions = ""
    for reader, masks in enumerate(drawn):
        read = "".join(nodule("".join(roi(int(z), outline(m[z])) for z in np.unique(np.nonzero(m)[0]))) for m in masks)
        point = nodule(roi(POINT[0], [(POINT[2], POINT[1])])) if reader == 0 else ""
        sessions += f"<readingSession>{read}{point}</readingSession>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage uid="1" xmlns="http://www.nih.gov"><ResponseHeader>'
        f"<SeriesInstanceUid>{series_uid}</SeriesInstanceUid></ResponseHeader>{sessions}</LidcReadMessage>"
    )


def whole(lesion: PhantomLesion, shape: tuple[int, ...]) -> np.ndarray:
    """Its mask on the volume's grid, each slice one piece without holes."""
    out = np.zeros(shape, bool)
    out[tuple(slice(o, o + n) for o, n in zip(lesion.offset_zyx, lesion.mask.shape, strict=True))] = lesion.mask
    return out
