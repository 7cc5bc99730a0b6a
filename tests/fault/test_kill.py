"""kill -9 at every step of the flow, and at random: after a restart everything arrives, and nothing is new twice."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

from pydicom import Dataset

from pacs_node.flow import STEPS
from tests.harness import NodeProcess, Receiver, need, node_toml, storescu, wait_for
from tests.ultrasounds import ultrasound_study


def impatient(pacs: Receiver, drain_s: float = 5) -> str:
    """Settings with short waits, that let a job take the process down as often as it likes."""
    return node_toml(
        pacs.aet,
        pacs.port,
        receive={"drain_s": drain_s},
        assemble={"quiet_s": 0.5, "quiet_unreleased_s": 1.5},
        jobs={"send_backoff_s": 0.3, "send_backoff_max_s": 1, "sweep_s": 0.5, "poison_limit": 50},
    )


def test_killed_at_every_step_in_turn(tmp_path: Path) -> None:
    """The node dies at one step while it works, is started again to die at the next, and so on: a dozen in a row."""
    with Receiver(commits=True) as pacs:
        node = NodeProcess(tmp_path / "node", impatient(pacs))
        studies = [ultrasound_study(tmp_path / "images", seed=100 + number) for number in range(len(STEPS))]
        for step, file in zip(STEPS, studies, strict=True):
            node.command = [sys.executable, "-m", "tests.fault.killed", "--step", step]
            node.start(wait=False)
            wait_for(lambda: not node.alive or node.healthy(), 60, f"starting to die at '{step}':\n{node.log()}")
            if node.alive:  # else it died on what the step before had left
                send_to_a_dying_node(node, file.path)
            wait_for(lambda: not node.alive, 120, f"dying at '{step}':\n{node.log()}")
            assert node.process.returncode == -9, f"{step}: {node.log()}"
        node.command = [sys.executable, "-m", "pacs_node.cli", "serve"]
        with node.start():
            for file in studies:  # a sender that never heard 0x0000 sends again, as every PACS does
                storescu(node, file.path)
            for step, file in zip(STEPS, studies, strict=True):
                facts = wait_for(lambda uid=file.series_uid: node.finished(uid), 120, f"'{step}' to end\n{node.log()}")
                assert [job["state"] for job in facts["jobs"]] == ["done"] * 3, step
                assert facts["jobs"][-1]["reason"] == "arrived: storage commitment"
                arrived_once(pacs, facts)
        # one request for each study, under one UID; asked again only where the node died before it knew it had asked
        assert len(set(pacs.asked)) == len(STEPS)
        assert len(pacs.asked) <= 2 * len(STEPS)


def test_stopped_while_it_works(tmp_path: Path) -> None:
    """SIGTERM in the middle of an inference: exit 0, and the next start finishes the job as if nothing had been."""
    with Receiver(commits=True) as pacs:
        node = NodeProcess(tmp_path / "node", impatient(pacs, drain_s=0.2))
        file = ultrasound_study(tmp_path / "images", seed=90)
        node.start()
        storescu(node, file.path)

        def running() -> bool:
            facts = node.series(file.series_uid) or {"jobs": []}
            return any(job["state"] == "running" for job in facts["jobs"])

        wait_for(running, 60, f"the inference to begin\n{node.log()}")
        assert node.terminate() == 0
        with node.start():
            facts = wait_for(lambda: node.finished(file.series_uid), 120, f"results\n{node.log()}")
            assert [job["state"] for job in facts["jobs"]] == ["done"] * 3
            assert [job["attempts"] for job in facts["jobs"]] == [1] * 3
            arrived_once(pacs, facts)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_at_random(tmp_path, kills=4, seed=7)


def kill_at_random(tmp_path: Path, *, kills: int, seed: int) -> None:
    """The destination is down for the first half of the run."""
    dice = random.Random(seed)
    pacs = Receiver()
    node = NodeProcess(tmp_path / "node", impatient(pacs))
    studies = []
    try:
        for number in range(kills):
            if number == kills // 2:
                pacs.start()
            node.start()
            studies.append(ultrasound_study(tmp_path / "images", seed=200 + number))
            storescu(node, studies[-1].path)
            time.sleep(dice.uniform(0.0, 6.0))
            node.kill()
        node.start()
        for file in studies:  # not sent again: each one was answered 0x0000
            facts = wait_for(lambda uid=file.series_uid: node.finished(uid), 120, f"a study to end:\n{node.log()}")
            arrived_once(pacs, facts)
    finally:
        node.__exit__()
        pacs.stop()


def send_to_a_dying_node(node: NodeProcess, path: Path) -> None:
    """The sender may see the connection break: then it has no promise from the node."""
    with contextlib.suppress(AssertionError):
        storescu(node, path)


def arrived_once(pacs: Receiver, facts: dict) -> None:
    """What the node says it made is what arrived, no more and no less; an object sent twice is the same object."""
    made = {result["sop_instance_uid"] for job in facts["jobs"] for result in job["results"]}
    arrivals = [d for modality in ("SEG", "SR") for d in pacs.of(modality, facts["study_uid"])]
    assert {d.SOPInstanceUID for d in arrivals} == made
    assert any(d.Modality == "SR" for d in arrivals)
    for uid in made:
        first, *others = (d for d in arrivals if d.SOPInstanceUID == uid)
        assert all(same(first, other) for other in others)


def same(one: Dataset, other: Dataset) -> bool:
    return one.to_json_dict() == other.to_json_dict()


def test_dcmtk_is_the_sender_of_these_tests() -> None:
    version = subprocess.run([need("storescu"), "--version"], capture_output=True, text=True, check=False).stdout
    assert "dcmtk" in version.lower()
