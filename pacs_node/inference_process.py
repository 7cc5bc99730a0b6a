"""The inference process: gives up what it does not need, then answers one request after the other.

A program of its own, started by `infer.py` with one argument, JSON: which file descriptors are its end of the messages
and of the life line, and what else it must know. Nothing is loaded before it is confined.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

LARGE = 1 << 23  # bytes: each page of such a block is a page fault, and maps of 2 MB are made again and again


def main() -> None:
    told = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains
    sys.path[:] = told["path"]
    from pacs_node.confine import confine

    lacking = confine(programs=told["programs"], reads=told["reads"]) if told["confine"] else []
    from pacs_node.start_up import give_memory_back

    give_memory_back(LARGE)
    threading.Thread(target=_end_with_parent, args=(told["life_line"],), daemon=True).start()
    from pacs_node import observe
    from pacs_node.infer import serve

    # what a library warns of quotes the element: it goes to the log without its words, as in the parent
    observe.start_logging(plain=sys.stderr.isatty())
    observe.hear_everything()
    serve(told["messages"], told["device"], told["pipelines"], lacking, told["forms"])


def _end_with_parent(life_line: int) -> None:
    """The parent holds the other end and never writes: it can only close, for whatever reason the parent ends."""
    os.read(life_line, 1)
    os._exit(1)  # whatever is running: nobody waits for the answer any more


if __name__ == "__main__":
    main()
