"""The licences of all that is installed with the node: `python -m tests.licences FILE` writes them as a table.

From what each package says of itself (PEP 639, then the older fields); nothing is fetched.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

COPYLEFT = re.compile(r"GPL|General Public|Mozilla|MPL|EUPL|CDDL|Eclipse", re.I)


@dataclass(frozen=True)
class Licence:
    package: str
    version: str
    licence: str  # as the package says it, "" where it does not
    needed: bool  # by a node that is installed without extras
    texts: int  # licence files that come with it

    @property
    def copyleft(self) -> bool:
        """Do its terms also ask something of what it is part of?"""
        return COPYLEFT.search(self.licence) is not None


def licence_of(package: Distribution) -> str:
    said = package.metadata
    if expression := said.get("License-Expression"):
        return expression
    classes = [each.rpartition("::")[2].strip() for each in said.get_all("Classifier") or [] if "License ::" in each]
    free = (said.get("License") or "").strip().split("\n")[0][:60]
    named = [each for each in classes if each not in ("OSI Approved", "Other/Proprietary License")]
    return " and ".join(named) or ("" if free == "UNKNOWN" else free)


def closure(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Names of a package and of all that it needs, as far as they are installed."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(canonicalize_name(name), extras)]
    while todo:
        each, wanted = todo.pop()
        if (each, wanted) in seen:
            continue
        seen.add((each, wanted))
        try:
            package = distribution(each)
        except PackageNotFoundError:
            continue  # for another system
        found.add(each)
        for text in package.requires or ():
            needs = Requirement(text)
            fits = needs.marker is None or any(needs.marker.evaluate({"extra": extra}) for extra in ("", *wanted))
            if fits and (needs.extras or canonicalize_name(needs.name) not in found):
                todo.append((canonicalize_name(needs.name), frozenset(needs.extras)))
    return found


def licences(extras: frozenset[str] = frozenset({"dev", "openvino", "s3"})) -> Iterator[Licence]:
    """Of the node's dependencies, and of those with which it is developed."""
    needed = closure("pacs-node")
    for name in sorted(closure("pacs-node", extras) - {"pacs-node"}):
        package = distribution(name)
        texts = [f for f in package.files or () if re.match(r"(?i)(licen[cs]e|copying|notice)", f.name)]
        yield Licence(package.name, package.version, licence_of(package), name in needed, len(texts))


def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = list(licences())
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["package", "version", "licence", "needed by a node", "copyleft", "licence files"])
        table.writerows(
            [each.package, each.version, each.licence, each.needed, each.copyleft, each.texts] for each in found
        )
    print(f"{path}: {len(found)} packages; copyleft: {', '.join(each.package for each in found if each.copyleft)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
