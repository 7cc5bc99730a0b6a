"""From the last image to the result accepted: seconds per CT and per ultrasound, what the node adds, peak memory.

What the node adds is everything but the quiet time (a setting) and the inference: closing, judging, routing, queueing,
encoding, sending and the destination's answer.
"""

from __future__ import annotations

import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pydicom

from models.phantoms import breast_ultrasound, chest_ct
from tests.bench.record import record
from tests.harness import NodeProcess, Receiver, node_toml, storescu, wait_for

QUIET_S = 1.0


def run(repeats: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder, Receiver() as pacs:
        node = NodeProcess(Path(folder) / "node", node_toml(pacs.aet, pacs.port, assemble={"quiet_s": QUIET_S}))
        with node:
            node.start()
            for name, make in (("ultrasound image", breast_ultrasound), ("chest CT", chest_ct)):
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
                        "inference_s": statistics.median(r["inference_s"] for r in measured),
                        "node_adds_s": statistics.median(r["node_adds_s"] for r in measured),
                        "last_image_to_accepted_s": statistics.median(r["total_s"] for r in measured),
                        "quiet_s": QUIET_S,
                        "repeats": repeats,
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
    total_s = (accepted - _time(facts["last_arrival"])).total_seconds()
    inference_s = float(jobs["infer"]["facts"]["seconds"])
    return {
        "images": facts["instances"],
        "total_s": total_s,
        "inference_s": inference_s,
        "node_adds_s": total_s - inference_s - QUIET_S,
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
