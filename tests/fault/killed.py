"""The real node, which kills itself (SIGKILL, as `kill -9`) when it reaches one step of its flow.

python -m tests.fault.killed --step NAME --config node.toml
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

from config import load
from models import catalogue
from pacs_node import observe
from pacs_node.flow import STEPS
from pacs_node.node import Node


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--step", choices=STEPS, required=True)
    arguments.add_argument("--config", type=Path, required=True)
    chosen = arguments.parse_args()
    observe.start_logging(plain=True)

    def at(step: str) -> None:
        if step == chosen.step:
            os.kill(os.getpid(), signal.SIGKILL)

    Node(load(chosen.config, catalogue()), at=at).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
