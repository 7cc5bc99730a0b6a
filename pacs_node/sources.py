"""The headers of a job's images, read while its models are at work in another process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from pydicom import Dataset

from dicom_sr.reading import read_header
from dicom_sr.source import EncodingError, plane

Sources = Callable[[], list[Dataset]]


@contextmanager
def read_meanwhile(files: Iterable[Path]) -> Iterator[Sources]:
    """What gives the headers, in the order of the files, once they are read; and raises what reading them raised.

    Whoever leaves without them waits for one image at most.
    """
    unwanted = threading.Event()
    with ThreadPoolExecutor(1, "headers") as reader:
        try:
            yield reader.submit(_headers, files, unwanted).result
        finally:
            unwanted.set()


def _headers(files: Iterable[Path], unwanted: threading.Event) -> list[Dataset]:
    headers: list[Dataset] = []
    for file in files:
        if unwanted.is_set():
            break
        headers.append(read_header(file))
        with suppress(EncodingError):  # said when it is asked for
            plane(headers[-1])  # a data set keeps what was decoded of it
    return headers
