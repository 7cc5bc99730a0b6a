"""Several devices, each a real child process on the processor: who runs beside whom, and who waits for what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dicom_sr.findings import Findings
from models import PIPELINES, forms
from pacs_node.devices import SICK_AFTER, Devices, task_of
from pacs_node.errors import Interrupted, OutOfMemory, TryAgain
from pacs_node.memory import Peaks

HERE = "tests.unit.node.pipelines"
GB = 10**9


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """Two processes, and jobs in threads of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.peaks = folder, Clock(), Peaks()
        self.devices = Devices(
            ["cpu", "cpu"], 60, {"test": f"{HERE}:PIPELINE"}, memory_gb=8, peaks=self.peaks, monotonic=self.clock
        )
        self.threads = ThreadPoolExecutor(8)
        self.heard: list[str] = []

    def known(self, does: str, gb: float) -> None:
        self.peaks.note(f"{task_of('test', {'does': does})} on cpu", 1, int(gb * GB / 1.15))

    def ask(self, does: str, name: str = "a.dcm") -> Future[Findings]:
        file = self.folder / name
        if does == "hold":
            file.touch()
        said = lambda _, text: self.heard.append(f"{name}: {text}")  # noqa: E731
        return self.threads.submit(self.devices.run, "test", {"does": does}, [file], said)

    def holding(self) -> int:
        return len(list(self.folder.glob("held-*")))

    def let_go(self) -> None:
        for file in self.folder.glob("*.dcm"):
            file.unlink()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.let_go()
    bench.devices.close()
    bench.threads.shutdown()
    bench.devices.stop()


def soon(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (answer := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def test_two_jobs_run_side_by_side_where_their_memory_is_known(bench: Bench) -> None:
    bench.known("hold", 1)
    jobs = [bench.ask("hold", f"{n}.dcm") for n in range(2)]
    soon(lambda: bench.holding() == 2)
    assert [each["state"] for each in bench.devices.facts()] == ["running", "running"]
    bench.let_go()
    assert len({job.result(60).facts["pid"] for job in jobs}) == 2
    assert [each["state"] for each in bench.devices.facts()] == ["idle", "idle"]


def test_what_was_not_measured_yet_runs_alone_and_then_is_known(bench: Bench) -> None:
    bench.known("hold", 1)
    held = bench.ask("hold")
    soon(lambda: bench.holding() == 1)
    new = bench.ask("answer", "new.dcm")
    soon(lambda: any("new.dcm: waits: its memory has not been measured yet" in each for each in bench.heard))
    bench.let_go()
    assert new.result(60).facts["file"] == "new.dcm"
    held.result(60)
    expected = bench.peaks.expected(f"{task_of('test', {'does': 'answer'})} on cpu", 1)
    assert expected is not None
    assert expected.main > 1_000_000


def test_a_large_job_waits_for_memory_and_no_small_one_passes_it(bench: Bench) -> None:
    for does, gb in (("hold", 3), ("answer", 6), ("refuse", 0.1)):
        bench.known(does, gb)
    held = bench.ask("hold")
    soon(lambda: bench.holding() == 1)
    large = bench.ask("answer", "large.dcm")
    soon(lambda: any("9.0 GB would be needed, it may be 8.0 GB (memory_gb)" in each for each in bench.heard))
    small = bench.ask("refuse", "small.dcm")
    soon(lambda: "small.dcm: waits: other jobs asked before it" in bench.heard)
    assert not small.done()
    bench.let_go()
    assert large.result(60).facts["file"] == "large.dcm"
    assert "not axial" in str(small.exception(60))
    held.result(60)


def test_what_was_killed_for_memory_is_tried_again_alone_and_in_a_process_of_its_own(bench: Bench) -> None:
    bench.known("be killed", 1)
    bench.known("hold", 1)
    with pytest.raises(OutOfMemory):
        bench.ask("be killed").result(60)
    before = {device: dict(device.inference._children) for device in bench.devices.all}
    held = bench.ask("hold")
    soon(lambda: bench.holding() == 1)
    again = bench.ask("be killed", "again.dcm")
    soon(lambda: any("again.dcm: waits: there was too little memory for it before" in each for each in bench.heard))
    bench.let_go()
    assert isinstance(again.exception(60), OutOfMemory)
    held.result(60)
    assert before
    assert all(not each.inference._children for each in bench.devices.all), "what was warm for others has made room"


def test_a_device_that_fails_again_and_again_rests_and_holds_up_no_other(bench: Bench) -> None:
    for does in ("hold", "answer"):
        bench.known(does, 0.5)
    ill, well = bench.devices.all
    ill.inference.pipelines = {"test": f"{HERE}:DEAD"}
    well.failures = -1  # whoever has failed less is asked first
    held = bench.ask("hold")
    soon(lambda: bench.holding() == 1)
    for _ in range(SICK_AFTER):
        with pytest.raises(TryAgain, match="exit code 3"):
            bench.ask("answer").result(60)
    [words] = bench.devices.trouble()
    assert words.startswith(f"device cpu has failed {SICK_AFTER} times in a row and is left alone for 60 s; the last: ")
    waits = bench.ask("answer", "waits.dcm")
    soon(lambda: any("waits.dcm: waits: every device is at work" in each for each in bench.heard))
    bench.let_go()
    assert waits.result(60).facts["file"] == "waits.dcm"
    held.result(60)
    bench.clock.now = 61
    assert bench.devices.trouble() == []


def test_the_processor_is_shared_by_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    several = Devices(["cpu", "cpu", "cuda:0", "cuda"], 30, {})
    assert [each.inference.threads for each in several.all] == [4] * 4
    assert [each.name for each in several.all] == ["cpu", "cpu", "cuda:0", "cuda:0"]
    assert Devices(["cpu"], 30, {}).all[0].inference.threads is None


def test_a_stopping_node_interrupts_whoever_waits(bench: Bench) -> None:
    bench.known("hold", 1)
    jobs = [bench.ask("hold", f"{n}.dcm") for n in range(3)]
    soon(lambda: bench.holding() == 2)
    bench.devices.close()
    assert [type(job.exception(60)) for job in jobs] == [Interrupted] * 3


def test_forms_are_measured_once_and_are_the_same_in_every_process(tmp_path: Path) -> None:
    """At the first start; jobs wait for that. The second start, and every other process, finds them written down."""
    kept_at = tmp_path / "forms.json"
    table, seen = {"breast-us": PIPELINES["breast-us"]}, []
    for names in (["cpu"], ["cpu"]):
        devices = Devices(names, 120, table, forms_at=kept_at)
        try:
            devices.prepare([("breast-us", {"threads": 1})])
            assert devices._preparing
            card = devices.card("breast-us", {"threads": 1})  # waits
            assert not devices._preparing
            assert card.name == "breast-us"
            seen.append(list(forms.load(kept_at).values()))
            assert devices.tune(devices.all[0], "breast-us", {"threads": 1}) == seen[-1]
        finally:
            devices.close()
            devices.stop()
    [choice] = seen[0]
    assert seen[1] == [choice]
    assert choice.form in choice.seconds
    assert choice.network.startswith("Triple ")
    assert ", 1 threads; torch" in choice.on


def test_what_cannot_be_written_down_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    devices = Devices(["cpu"], 30, {}, forms_at=tmp_path / "file" / "forms.json")
    choice = forms.Choice("k", "Net 1", "bf16", "here", {"bf16": 1.0}, {}, "2026-01-01T00:00:00+00:00")
    ended = threading.Event()
    monkeypatch.setattr(devices.all[0].inference, "tune", lambda *_: (choice,))
    monkeypatch.setattr(devices.all[0].inference, "stop", ended.set)
    assert devices.tune(devices.all[0], "p", {}) == []
    assert ended.is_set()
