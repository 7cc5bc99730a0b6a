"""How the network is taken away from a command, with what this machine has; and processes of its own, where it can.

bubblewrap first: it also makes the folder of images read-only for a command that runs as root, and hides devices.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

Prefix = Callable[[Path, bool], list[str]]  # (folder of images, may it use the GPU) -> words before the command


@dataclass(frozen=True)
class Sandbox:
    name: str
    prefix: Prefix


def _bubblewrap(images: Path, device: bool) -> list[str]:
    devices = ["--dev-bind", "/dev", "/dev"] if device else ["--dev", "/dev"]
    folders = ["--bind", "/", "/", *devices, "--proc", "/proc", "--ro-bind", str(images), str(images)]
    return ["bwrap", *folders, "--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--"]


def _unshare(*who: str) -> Prefix:
    words = ["unshare", *who, "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]
    return lambda images, device: words


KNOWN = (
    Sandbox("bubblewrap", _bubblewrap),
    Sandbox("unshare", _unshare("--user", "--map-current-user")),
    Sandbox("unshare", _unshare("--user", "--map-root-user")),
    Sandbox("unshare", _unshare()),  # as root, where the kernel gives nobody a user namespace
)
NO_SANDBOX = (
    "the command ran with access to the network: neither bwrap nor unshare can take it away on this machine; install"
    " bubblewrap"
)


@cache
def sandbox() -> Sandbox | None:
    """The first that works here, tried once; None when none does."""
    for each in KNOWN:
        if why := why_not(each):
            log.info("%s cannot be used: %s", each.name, why)
        else:
            log.info("commands have no network: %s", each.name)
            return each
    log.warning(NO_SANDBOX)
    return None


def why_not(each: Sandbox) -> str | None:
    """None, or why it cannot be had here."""
    words = [*each.prefix(Path("/tmp"), False), "true"]
    if shutil.which(words[0]) is None:
        return f"{words[0]} is not installed"
    return _tried(words)


def _tried(words: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
