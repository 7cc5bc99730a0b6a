"""The audit trail of a node as its users start it: what stands in its files, and what a syslog server is sent."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

from tests.factories import us_image
from tests.harness import NodeProcess, need, storescu, wait_for
from tests.unit.test_audit import parsed
from tests.unit.test_syslog import RFC5424

SETTINGS = """
[receive]
keep_free_gb = 0.1
[infer]
tune = false
[audit]
syslog_host = "127.0.0.1"
syslog_transport = "udp"
syslog_port = {port}
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
"""


def kind(line: str) -> str:
    event = parsed(line).find("EventIdentification")
    code = event.find("EventTypeCode")
    return (event[0] if code is None else code).get("originalText") + "!" * (event.get("EventOutcomeIndicator") != "0")


def test_what_happens_to_a_node_stands_in_its_trail_and_is_sent(tmp_path: Path) -> None:
    image = us_image()
    image.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind(("127.0.0.1", 0))
        door.settimeout(60)
        node = NodeProcess(tmp_path / "node", SETTINGS.format(port=door.getsockname()[1]))
        with node.start("--no-work"):
            storescu(node, tmp_path / "one.dcm")
            place = ["127.0.0.1", str(node.dicom_port)]
            subprocess.run([need("echoscu"), "-aet", "STRANGER", "-aec", node.aet, *place], check=False, timeout=60)
            wait_for(lambda: "STRANGER" in trail(node), 60, f"the stranger in the trail\n{node.log()}")
            assert node.terminate() == 0
        lines = trail(node).splitlines()
        sent = [RFC5424.fullmatch(door.recv(65536)) for _ in lines]
    assert [kind(line) for line in lines] == [
        "Application Start",
        "Node Authentication",
        "Begin Transferring DICOM Instances",
        "DICOM Instances Transferred",
        "Node Authentication!",
        "Application Stop",
    ]
    assert [each[7].decode() for each in sent if each] == lines
    received = parsed(lines[3])
    [study] = received.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == image.StudyInstanceUID
    [counted] = study.iter("SOPClass")
    assert (counted.get("UID"), counted.get("NumberOfInstances")) == (image.SOPClassUID, "1")
    source, destination = received.findall("ActiveParticipant")
    assert (source.get("UserID"), source.get("NetworkAccessPointID")) == ("SENDER", "127.0.0.1")
    assert destination.get("AlternativeUserID") == f"AETITLES={node.aet}"
    told = trail(node) + node.log()
    for element in ("PatientName", "PatientID"):
        value = str(image[element].value)
        assert not value or not re.search(re.escape(value), told)


def trail(node: NodeProcess) -> str:
    return "".join(path.read_text() for path in sorted((node.folder / "data" / "audit").glob("*.xml")))
