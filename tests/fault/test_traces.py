"""Traces of a whole node that is killed in the middle, while the collector is away for some of the time."""

from __future__ import annotations

from pathlib import Path

from tests.collector import TAKEN, WRONG, Collector, facts
from tests.fault.test_kill import impatient
from tests.harness import NodeProcess, Receiver, free_port, storescu, wait_for
from tests.ultrasounds import ultrasound_study


def of_collector(node: NodeProcess) -> list[str]:
    return [reason for reason in node.api("/health")["reasons"] if "collector of traces" in reason]


def test_a_node_that_is_killed_tells_every_series_once_the_collector_is_back(tmp_path: Path) -> None:
    port = free_port()
    with Receiver(commits=True) as pacs:
        traces = f'\n[traces]\nendpoint = "http://127.0.0.1:{port}/v1/traces"\n[[peer]]'
        node = NodeProcess(tmp_path / "node", impatient(pacs).replace("\n[[peer]]", traces, 1))
        studies = [ultrasound_study(tmp_path / "images", seed=400 + number) for number in range(2)]
        node.start()
        storescu(node, studies[0].path)
        wait_for(lambda: node.finished(studies[0].series_uid), 120, f"results\n{node.log()}")
        away = wait_for(lambda: of_collector(node), 60, f"the collector to be missed\n{node.log()}")
        assert "connection refused" in away[0]
        storescu(node, studies[1].path)
        node.kill()
        with Collector(port) as collector:
            collector.answer = WRONG["failing"]
            with node.start():
                wait_for(lambda: node.finished(studies[1].series_uid), 120, f"results\n{node.log()}")
                wait_for(lambda: collector.bodies, 60, "the collector to be asked")
                collector.answer = TAKEN
                wait_for(lambda: len(collector.traces()) == len(studies), 90, f"both to be told\n{node.log()}")
                wait_for(lambda: not of_collector(node), 60, "the collector to be well again")
                roots = [span for span in collector.spans if not span.parent_span_id]
                assert [facts(root)["outcome"] for root in roots] == ["arrived", "arrived"]
                assert node.terminate() == 0
    assert node.log().count("collector of traces away") == 2, "once by each process"
