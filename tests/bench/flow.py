"""From the last image to the result accepted by Orthanc: seconds per CT and per ultrasound, what the node adds, memory.

What the node adds is everything but the quiet time (a setting) and the inference, in its parts:

    closing      from the end of the quiet time until the infer job begins: judging, routing, queueing
    queueing     from the end of the infer job until the send job begins
    encoding     what the infer job does besides inferring: unpacking, keeping the findings, SEG and SR and their checks
    sending      forms, association, and the destination's answers to all objects
"""

from __future__ import annotations

import os
import statistics
import tempfile
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pydicom

from models.phantoms import breast_ultrasound, chest_ct
from tests.bench.record import record
from tests.harness import NodeProcess, Orthanc, node_toml, storescu, wait_for

QUIET_S = 10.0  # the default
SLICES = 300
SPACING_MM = 1.0, 0.7, 0.7  # a chest of 30 cm
PARTS = (
    "last_image_to_accepted_s", "inference_s", "node_adds_s", "closing_s", "queueing_s", "encoding_s", "sending_s",
)  # fmt: skip


def run(repeats: int = 3) -> None:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, Orthanc(Path(folder) / "orthanc") as pacs:
        node = NodeProcess(Path(folder) / "node", node_toml(pacs.aet, pacs.dicom_port, assemble={"quiet_s": QUIET_S}))
        with node:
            node.start()
            pacs.register("ainode", node)  # else it reports to nobody that it keeps what it got
            chest = partial(chest_ct, slices=SLICES, spacing_mm=SPACING_MM)
            for name, make in (("ultrasound image", breast_ultrasound), ("chest CT", chest)):
                rounds = []
                for seed in range(repeats + 1):
                    images = Path(folder) / f"{name}-{seed}"
                    make(images, seed=300 + seed, patient_id=f"BENCH-{seed}")
                    rounds.append(_one(node, images))
                measured = rounds[1:]  # the first one waits for the models to load
                record(
                    f"flow: {name}",
                    {
                        "images": measured[0]["images"],
                        **{part: statistics.median(r[part] for r in measured) for part in PARTS},
                        "quiet_s": QUIET_S,
                        "repeats": repeats,
                        "load": load,
                    },
                )
            assert node.process is not None
            record(
                "flow: peak memory", {"node_mb": _peak_mb(node.process.pid), "inference_mb": _peak_mb_of_child(node)}
            )


def _one(node: NodeProcess, images: Path) -> dict[str, float]:
    uid = pydicom.dcmread(next(images.rglob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID
    storescu(node, images)
    facts = wait_for(lambda: node.finished(uid), 600, f"results\n{node.log()}")
    jobs = {job["kind"]: job for job in facts["jobs"]}
    assert jobs["send"]["state"] == "done", facts
    accepted = max(_time(receipt["at"]) for receipt in jobs["send"]["receipts"])
    times = {kind: [_time(jobs[kind][of]) for of in ("started_at", "finished_at")] for kind in ("infer", "send")}
    (infer_begun, infer_ended), (send_begun, _) = times["infer"], times["send"]
    inference_s = float(jobs["infer"]["facts"]["seconds"])
    parts = {
        "closing_s": (infer_begun - _time(facts["last_arrival"])).total_seconds() - QUIET_S,
        "queueing_s": (send_begun - infer_ended).total_seconds(),
        "encoding_s": (infer_ended - infer_begun).total_seconds() - inference_s,
        "sending_s": (accepted - send_begun).total_seconds(),
    }
    total_s = (accepted - _time(facts["last_arrival"])).total_seconds()
    adds_s = total_s - inference_s - QUIET_S
    return {
        "images": facts["instances"],
        "last_image_to_accepted_s": total_s,
        "inference_s": inference_s,
        "node_adds_s": adds_s,
        **parts,
    }


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _peak_mb(pid: int) -> float:
    """The highest resident memory a process ever had (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024, 1)


def _peak_mb_of_child(node: NodeProcess) -> float:
    assert node.process is not None
    children: list[Any] = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    tasks = Path(f"/proc/{node.process.pid}/task").iterdir()
    children += [child for task in tasks for child in (task / "children").read_text().split()]
    return max((_peak_mb(int(pid)) for pid in set(children)), default=0.0)


if __name__ == "__main__":
    run()
