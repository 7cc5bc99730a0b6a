"""Models that are not ours, through the whole node: one series in by C-STORE, the results of two of them out, and the
reasons of one that fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from pydicom import Dataset

from dicom_sr import read
from dicom_sr.report import referenced
from dicom_sr.validate import problems
from tests.bundles import threshold_bundle
from tests.factories import ct_series
from tests.harness import NodeProcess, Receiver, storescu, wait_for

ROUTES = """
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}

[[route]]
name = "bundle"
match = {{ Modality = "CT" }}
pipeline = "monai-bundle"
send_to = ["pacs"]
[route.options]
bundle = {bundle}
[route.options.labels.1]
name = "Bright"
type = ["78961009", "SCT", "Spleen"]
colour = "#9d6ca2"
measure = ["volume", "diameters", "intensity"]

[[route]]
name = "command"
match = {{ Modality = "CT" }}
pipeline = "command"
send_to = ["pacs"]
[route.options]
command = {command}
name = "Theirs"
version = "2.1"
[route.options.labels.1]
name = "Liver"
type = ["10200004", "SCT", "Liver"]

[[route]]
name = "broken"
match = {{ Modality = "CT" }}
pipeline = "command"
send_to = ["pacs"]
options = {{ command = {broken}, name = "Broken", version = "0" }}
"""

# the least that a program must do: it finds the slices' places in the headers, and writes NIfTI
PROGRAM = """
import sys
from pathlib import Path
import nibabel, numpy as np, pydicom

images = [pydicom.dcmread(path) for path in Path(sys.argv[1]).glob("*.dcm")]
images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
hu = np.stack([image.pixel_array + float(image.RescaleIntercept) for image in images])
down, across = map(float, images[0].PixelSpacing)
step = float(images[1].ImagePositionPatient[2]) - float(images[0].ImagePositionPatient[2])
x, y, z = map(float, images[0].ImagePositionPatient)
row, column = np.array(images[0].ImageOrientationPatient, float).reshape(2, 3)
affine = np.array([[-row[0] * across, 0, 0, -x], [0, -column[1] * down, 0, -y], [0, 0, step, z], [0, 0, 0, 1]])
nibabel.save(nibabel.Nifti1Image((hu > 100).astype("uint8").transpose(2, 1, 0), affine), sys.argv[2] + "/out.nii.gz")
"""
BROKEN = "import sys; sys.exit('no licence for ' + sys.argv[1][:1] + sys.argv[2][:1])"


def test_two_models_of_other_makers_answer_for_one_series(tmp_path: Path) -> None:
    hu = np.full((20, 48, 40), -1000, np.int16)
    hu[2:18, 6:42, 5:35] = 40
    hu[5:11, 10:22, 20:31] = 200
    series = ct_series(tmp_path / "ct", voxels=hu, spacing_mm=(2.5, 0.8, 0.7), orientation="FFS", descending=True)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with Receiver() as pacs:
        routes = ROUTES.format(
            port=pacs.port,
            bundle=json.dumps(str(threshold_bundle(tmp_path / "threshold", pixdim=None))),
            command=json.dumps([sys.executable, str(program), "{input}", "{output}"]),
            broken=json.dumps([sys.executable, "-c", BROKEN, "{input}", "{output}"]),
        )
        with NodeProcess(tmp_path / "node", f"[assemble]\nquiet_s = 1.0\n{routes}").start() as node:
            storescu(node, *(Path(str(image.filename)) for image in series))
            uid = str(series[0].SeriesInstanceUID)
            facts = wait_for(lambda: node.finished(uid), 120, f"three jobs ended:\n{node.log()}")
            jobs = {job["route"]: job for job in facts["jobs"]}
            wait_for(lambda: len(pacs.of("SEG")) == 2 and len(pacs.of("SR")) == 2, 30, "two SEG and two SR at the PACS")
            assert node.terminate() == 0
    assert {name: job["state"] for name, job in jobs.items()} == {
        "bundle": "done",
        "command": "done",
        "broken": "failed",
    }
    assert "the command ended with exit code 1: no licence for //" in jobs["broken"]["reason"]
    truth = {str(image.SOPInstanceUID): plane == 200 for image, plane in zip(series, hu, strict=True)}
    for name, label in [("MONAI bundle Threshold", "Bright"), ("Theirs", "Liver")]:
        segmentation, report = results_of(name, pacs)
        for each in (segmentation, report):
            assert problems(each, series, segmentations=[segmentation]) == []
        [segment] = read.segments(segmentation)
        assert segment.label == label
        drawn = {ref.sop_instance_uid: mask for ref, mask in segment.masks.items()}
        assert drawn.keys() == {uid for uid, mask in truth.items() if mask.any()}
        assert all(np.array_equal(mask, truth[uid]) for uid, mask in drawn.items())
        [group] = [group for group in read.groups(report) if group.segment is not None]
        assert group.measurements


def results_of(name: str, pacs: Receiver) -> tuple[Dataset, Dataset]:
    segmentation = next(each for each in pacs.of("SEG") if each.SegmentSequence[0].SegmentAlgorithmName == name)
    named = (each for each in pacs.of("SR") if segmentation.SOPInstanceUID in {uid for _, uid in referenced(each)})
    return segmentation, next(named)
