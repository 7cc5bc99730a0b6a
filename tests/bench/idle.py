"""What a node costs that nobody sends anything: memory of its main process, and its share of a core over a minute.

python -m tests.bench.idle
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tests.bench.record import record
from tests.harness import NodeProcess, free_port, node_toml

SETTLED_S = 20.0  # its models are loaded
WATCHED_S = 60.0


def cpu_s(pid: int) -> float:
    """Of all threads, since it began."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    (kb,) = (line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line)
    return int(kb) / 1024


def run() -> None:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        node = NodeProcess(Path(folder) / "node", node_toml("PACS", free_port()))
        with node:
            node.start()
            node.terminate()  # the first start makes the ledger
            node.start()
            assert node.process is not None
            pid = node.process.pid
            time.sleep(SETTLED_S)
            before = cpu_s(pid)
            time.sleep(WATCHED_S)
            figures = {"cpu %": 100 * (cpu_s(pid) - before) / WATCHED_S, "resident MB": resident_mb(pid), "load": load}
    record("idle", figures)


if __name__ == "__main__":
    run()
