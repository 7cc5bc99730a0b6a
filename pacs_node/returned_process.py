"""An edited Segmentation held against ours: a program of its own, which decodes what strangers have sent.

Started by `returned.py`: it reads its request as JSON from stdin and answers in JSON on stdout. It gives up first what
it does not need; its memory goes with it, and is bounded.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

MOST_BYTES = 8 << 30  # of its address space


def main() -> None:
    """Answers {"edits": {job: [...]}} for each of the results that it was given. An error ends in a trace, which the
    node's log does not get: it may quote."""
    asked = json.load(sys.stdin)
    sys.path[:] = asked["path"]
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    if asked["confine"]:
        from pacs_node.confine import confine

        confine(reads=[asked["theirs"], *asked["ours"].values()])
    import pydicom

    from dicom_sr.edits import edits
    from dicom_sr.reading import read_header

    theirs_at = Path(asked["theirs"])
    read_header(theirs_at)  # within its limits, before all of it is read
    theirs = pydicom.dcmread(theirs_at)
    told = {job: [asdict(each) for each in edits(pydicom.dcmread(path), theirs)] for job, path in asked["ours"].items()}
    json.dump({"edits": told}, sys.stdout)


if __name__ == "__main__":
    main()
