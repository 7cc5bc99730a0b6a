"""The licences of all that is installed with the node: `python -m tests.licences FILE` writes them as a table.

`python -m tests.licences --into build/sbom.cdx.json` adds to a bill of materials what comes with the node's own files.

From what each package says of itself (PEP 639, then the older fields); nothing is fetched.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
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
    return " and ".join(named) or ("" if free == "UNKNOWN" else free) or _by_its_text(package)


def _by_its_text(package: Distribution) -> str:
    """Of one that says no licence, and comes with one: by the title of that text."""
    for file in package.files or ():
        if re.match(r"(?i)licen[cs]e", file.name):
            title = file.read_text().strip().split("\n")[0].strip()
            return {"MIT License": "MIT", "The MIT License (MIT)": "MIT"}.get(title, "")
    return ""


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


def vendored() -> list[dict[str, object]]:
    """What others have made of the files of the pages, as components of CycloneDX 1.6."""
    [(name, version)] = json.loads((ROOT / "deploy/viewer/package.json").read_text())["dependencies"].items()
    group, _, plain = name.rpartition("/")
    purl = f"pkg:npm/{quote(group, safe='')}/{plain}@{version}"
    content = (ROOT / "pacs_node/web/static/vendor/niivue.js").read_bytes()
    return [
        {
            "type": "library",
            "bom-ref": purl,
            "group": group,
            "name": plain,
            "version": version,
            "purl": purl,
            "licenses": [{"license": {"id": "BSD-2-Clause"}}],
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
            "properties": [{"name": "file", "value": "pacs_node/web/static/vendor/niivue.js"}],
        }
    ]


def add_vendored(bill: Path) -> None:
    """Into the bill, and below the node."""
    told, added = json.loads(bill.read_text()), vendored()
    told["components"] = [*told["components"], *added]
    node = told["metadata"]["component"]["bom-ref"]
    of_node = next((each for each in told["dependencies"] if each["ref"] == node), None)
    if of_node is None:
        told["dependencies"].append(of_node := {"ref": node})
    of_node["dependsOn"] = sorted({*of_node.get("dependsOn", ()), *(str(each["bom-ref"]) for each in added)})
    told["dependencies"] += [{"ref": each["bom-ref"]} for each in added]
    bill.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--into":
        add_vendored(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
