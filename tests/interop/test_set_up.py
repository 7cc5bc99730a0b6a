"""What the documents tell an administrator to write is run as it stands: only addresses, ports and folders differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest

from models.phantoms import breast_ultrasound, chest_ct
from tests.harness import ROOT, NodeProcess, Orthanc, free_port, storescu, wait_for

DEPLOY = ROOT / "deploy"


def block(language: str) -> str:
    """The only block of README.md in this language, without the indent of its list."""
    [(indent, text)] = re.findall(rf"(?m)^( *)```{language}\n((?s:.*?))^ *```$", (ROOT / "README.md").read_text())
    return "\n".join(line.removeprefix(indent) for line in text.splitlines())


@dataclass(frozen=True)
class SetUp:
    """One set-up of the documents, and what stands in it for this machine's addresses, ports and folders."""

    settings: str
    orthanc: str
    lua: str
    in_settings: Mapping[str, str]  # text -> text, a {name} is one of this machine's
    in_orthanc: Mapping[str, str]
    user: tuple[str, str] | None = None


SET_UPS = {
    "README": SetUp(
        settings=block("toml"),
        orthanc="{" + block("json") + "}",
        lua=block("lua"),
        in_settings={
            "dicom_port = 11112": "dicom_port = {dicom}\nweb_port = {web}",
            '"/var/lib/pacs-node"': '"{folder}/data"',
            'host = "10.0.0.5"': 'host = "127.0.0.1"',
            'calls_from = ["10.0.0.5"]': 'calls_from = ["127.0.0.1"]',
            "port = 4242": "port = {pacs}",
        },
        in_orthanc={'"10.0.0.9", 11112': '"127.0.0.1", {dicom}', "/etc/orthanc/": "{folder}/"},
    ),
    "deploy": SetUp(
        settings=(DEPLOY / "node.toml").read_text(),
        orthanc=(DEPLOY / "orthanc.json").read_text(),
        lua=(DEPLOY / "route.lua").read_text(),
        in_settings={
            'ae_title = "PACSNODE"': 'ae_title = "PACSNODE"\ndicom_port = {dicom}\nweb_port = {web}',
            '"/var/lib/pacs-node"': '"{folder}/data"',
            'host = "orthanc"': 'host = "127.0.0.1"',
            'calls_from = ["orthanc"]': 'calls_from = ["127.0.0.1"]',
            "port = 4242": "port = {pacs}",
        },
        in_orthanc={
            '"node", 11112': '"127.0.0.1", {dicom}',
            "/etc/orthanc/": "{folder}/",
            '"DicomPort": 4242': '"DicomPort": {pacs}',
            '"HttpPort": 8042': '"HttpPort": {http}',
        },
        user=("trial", "trial"),
    ),
}


def here(text: str, stands: Mapping[str, str], machine: Mapping[str, Any]) -> str:
    """The text with this machine's addresses; each stands in it exactly once."""
    for theirs, ours in stands.items():
        assert text.count(theirs) == 1, theirs
        text = text.replace(theirs, ours.format(**machine))
    return text


@dataclass(frozen=True)
class Hospital:
    pacs: Orthanc
    node: NodeProcess


@pytest.fixture(scope="module", params=SET_UPS)
def hospital(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    set_up, folder = SET_UPS[request.param], tmp_path_factory.mktemp("hospital")
    machine = {"folder": folder, "dicom": free_port(), "web": free_port(), "pacs": free_port(), "http": free_port()}
    (folder / "route.lua").write_text(set_up.lua)
    written = json.loads(here(set_up.orthanc, set_up.in_orthanc, machine))
    # what README's lines stand in: an Orthanc that runs already; its waits are as short as they can be here
    around = {"DicomPort": machine["pacs"], "HttpPort": machine["http"]} | written | {"StableAge": 2}
    pacs = Orthanc(folder / "orthanc", settings=around, user=set_up.user)
    pacs.dicom_port, pacs.http_port, pacs.url = machine["pacs"], machine["http"], f"http://127.0.0.1:{machine['http']}"
    settings = here(set_up.settings, set_up.in_settings, machine)
    node = NodeProcess(folder / "node", "", aet="PACSNODE")
    node.dicom_port, node.web_port = machine["dicom"], machine["web"]
    node.config.write_text(settings + "\n[assemble]\nquiet_s = 2.0\n[receive]\nkeep_free_gb = 0.1\n")
    with pacs, node.start():
        yield Hospital(pacs, node)


def series_of(folder: Path) -> str:
    return str(pydicom.dcmread(next(folder.rglob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID)


def test_a_series_goes_to_the_node_and_its_results_come_back(hospital: Hospital, tmp_path: Path) -> None:
    truth = breast_ultrasound(tmp_path / "us", seed=3)
    storescu(hospital.pacs, tmp_path / "us")
    uid = series_of(tmp_path / "us")
    facts = wait_for(lambda: hospital.node.finished(uid), 120, f"results\n{hospital.node.log()}")
    assert facts["instances"] == len(truth.files)
    assert [job["state"] for job in facts["jobs"]] == ["done"] * 3, facts
    assert facts["jobs"][-1]["reason"] == "arrived: storage commitment"
    assert {d.StudyInstanceUID for d in hospital.pacs.instances("SR")} == {facts["study_uid"]}


def test_a_ct_that_does_not_say_what_it_shows_is_taken(hospital: Hospital, tmp_path: Path) -> None:
    chest_ct(tmp_path / "ct", seed=11, slices=24, size=64, spacing_mm=(8.0, 5.6, 5.6), nodules=1)
    for path in (tmp_path / "ct").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        del dataset.BodyPartExamined
        dataset.save_as(path)
    storescu(hospital.pacs, tmp_path / "ct")
    uid = series_of(tmp_path / "ct")
    facts = wait_for(lambda: hospital.node.finished(uid), 240, f"the series in the node\n{hospital.node.log()}")
    assert facts["instances"] == 24
    assert {rule["rule"]: rule["why_not"] for rule in facts["rules"]}["chest CT"] is None
    assert facts["jobs"][0]["pipeline"] == "lung-nodule"
    assert facts["jobs"][0]["state"] in ("done", "refused"), facts["jobs"][0]
