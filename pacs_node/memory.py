"""How much memory an inference will take, from what others of its pipeline took, and how much there is.

Kept in a file. The most that was measured counts; between two sizes of series it is taken to grow with
the number of files and no faster, so what is expected is at least what comes.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from pacs_node.durable import write_whole

log = structlog.get_logger()

MARGIN = 1.15  # over what was measured: it is looked at now and then only
LEAST = 64 << 20  # bytes


@dataclass(frozen=True)
class Peak:
    """The most bytes that inferences of up to so many files have taken."""

    files: int
    main: int = 0  # of the process; 0: not known
    device: int = 0  # of the memory of a CUDA device
    ran_out: str = ""  # "main" or "device": there was not enough of this, and none has ended well since


class Peaks:
    """What was measured of each task, a pipeline with its options on one kind of device. Not thread-safe."""

    def __init__(self, path: Path | None = None) -> None:
        """path: where it is kept; None: nowhere."""
        self.path = path
        self._of: dict[str, dict[int, Peak]] = {}  # task -> size class -> peak
        try:
            told = json.loads(path.read_text()) if path is not None else {}
            self._of = {task: {int(size): Peak(**peak) for size, peak in peaks.items()} for task, peaks in told.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:  # it is measured again
            log.warning("measured memory cannot be read", path=str(path), error=type(error).__name__)

    def expected(self, task: str, files: int) -> Peak | None:
        """None: nothing is known of it. `ran_out` is said of larger series, too."""
        peaks = self._of.get(task, {})
        if short := next((p for size, p in peaks.items() if p.ran_out and size <= size_class(files)), None):
            return replace(short, files=files)
        known = [peak for peak in peaks.values() if peak.main]
        if not known:
            return None
        grown = [max(1.0, files / peak.files) * MARGIN for peak in known]
        return Peak(
            files,
            main=max(LEAST, min(int(peak.main * factor) for peak, factor in zip(known, grown, strict=True))),
            device=min(int(peak.device * factor) for peak, factor in zip(known, grown, strict=True)),
        )

    def note(self, task: str, files: int, main: int, device: int = 0) -> None:
        """One has ended well."""
        before = self._of.get(task, {}).get(size_class(files), Peak(0))
        self._keep(task, Peak(max(files, before.files), main=max(main, before.main), device=max(device, before.device)))

    def note_ran_out(self, task: str, files: int, what: str) -> None:
        before = self._of.get(task, {}).get(size_class(files), Peak(0))
        self._keep(task, replace(before, files=max(files, before.files), ran_out=what))

    def _keep(self, task: str, peak: Peak) -> None:
        peaks = self._of.setdefault(task, {})
        if peaks.get(size_class(peak.files)) == peak:
            return
        peaks[size_class(peak.files)] = peak
        if self.path is None:
            return
        text = json.dumps(
            {task: {str(size): asdict(peak) for size, peak in peaks.items()} for task, peaks in self._of.items()},
            indent=1,
            sort_keys=True,
        )
        try:
            write_whole(self.path, lambda file: file.write(text.encode()))
        except OSError as error:  # it is known as long as the process runs
            log.warning("measured memory not kept", error=error.strerror)


def size_class(files: int) -> int:
    """The power of two that holds so many files: what is alike in size."""
    return max(1, files - 1).bit_length() if files > 1 else 0


def machine_bytes() -> int:
    """The memory of this machine, or of the container that we are in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def free_bytes() -> int:
    """What can be had now, as the kernel reckons."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return machine_bytes()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else machine_bytes()
