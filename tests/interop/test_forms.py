"""The other forms of a result before other makers' programs: dciodvfy and dsrdump read them; DCMTK's storescp and
Orthanc refuse what they would have and get the next.

DCMTK's storescp refuses any class in the negotiation, by its association profile. Orthanc 1.10 cannot: it refuses only
the classes it does not know (Label Map Segmentation) and transfer syntaxes it is told not to take, and the answer of
its Lua filter for C-STORE has no effect in that version (tried: it calls the filter and stores all the same). For the
way through the whole node a front of pynetdicom negotiates for Orthanc and hands on what it accepted.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from dicom_sr import read
from dicom_sr.derived import Results
from dicom_sr.forms import ALL_FRAMES, CHAINS, FOR_OHIF, FOREMOST, KEY_OBJECTS, LABEL_MAP, SEGMENTATION, Form, Profile
from dicom_sr.source import EncodingError
from models.phantoms import breast_ultrasound
from pacs_node.deliver.destination import Deferred
from pacs_node.deliver.dimse import DimseDestination, Peer, echo
from pacs_node.encode import ResultForms
from tests.harness import NodeProcess, Orthanc, free_port, need, storescu, wait_for
from tests.interop.test_validators import complaints, run
from tests.results import CASES, encoded
from tests.unit.deliver.conftest import EXPLICIT_LE, IMPLICIT_LE, now
from tests.unit.deliver.test_forms import CAPTURE, COMPREHENSIVE, ENHANCED, GSPS, RTSTRUCT, SEG, THREE_D, ct_package
from tests.unit.deliver.test_forms import KEY_OBJECTS as KEY_OBJECTS_CLASS

OTHERS = [form for chain in CHAINS.values() for form in chain if form is not SEGMENTATION]
OTHERS += [LABEL_MAP, ALL_FRAMES, KEY_OBJECTS, FOREMOST, *FOR_OHIF.values()]
KNOWN_AS = {  # what dciodvfy calls the IOD it checked
    "RT Structure Set": "RTStructureSet",
    "Grayscale Softcopy Presentation State": "GrayscaleSoftcopyPresentationState",
    "Secondary Capture": "SCImage",
    "Secondary Capture of the foremost findings": "SCImage",
    "Comprehensive 3D SR": "Comprehensive3DSR",
    "Comprehensive SR": "ComprehensiveSR",
    "Enhanced SR": "EnhancedSR",
    "Basic Text SR": "BasicTextSR",
    "Key Object Selection": "KeyObjectSelectionDocument",
}


def made(name: str, form: Form) -> list[Dataset]:
    """The form of a case of tests/results; nothing where it cannot be."""
    case, objects = encoded(name)
    results = Results(tuple(objects[:-1]), objects[-1], {str(h.SOPInstanceUID): h for h in case.headers})
    shape = int(case.images[0].Rows), int(case.images[0].Columns)
    of_report = form in (*CHAINS[THREE_D], KEY_OBJECTS, *FOR_OHIF.values())
    original = [objects[-1]] if of_report else list(objects[:-1])
    found = []
    for each in original:
        try:
            found += form.make(each, results, lambda ref: np.full((*shape, 3), 90, np.uint8))
        except EncodingError:
            continue
    return found


def checked(dataset: Dataset, form: Form, folder: Path) -> tuple[Path, str]:
    path = folder / "object.dcm"
    implicit = form.transfer_syntaxes[0] == "1.2.840.10008.1.2"
    dataset.save_as(path, enforce_file_format=True, implicit_vr=implicit, little_endian=True)
    return path, run("dciodvfy", path)[1]


@pytest.mark.parametrize(
    "name", ["ct_two", "ct_nothing", "ct_oblique", "ct_enhanced", "us_one", "us_clip", "us_uncalibrated"]
)
def test_dciodvfy_has_nothing_to_say_about_any_form(name: str, tmp_path: Path) -> None:
    forms = 0
    for form in OTHERS:
        for dataset in made(name, form)[:2]:
            path, output = checked(dataset, form, tmp_path)
            assert KNOWN_AS.get(form.name.removesuffix(" for OHIF"), "Segmentation") in output, (
                "it knew what it looked at"
            )
            assert complaints("dciodvfy", output) == [], form.name
            forms += 1
            if dataset.Modality == "SR":
                code, printed = run("dsrdump", "+Pl", path)
                assert (code, complaints("dsrdump", printed)) == (0, [])
    assert forms >= (9 if name in ("ct_two", "ct_oblique") else 3)


def _no_contour_image(structures: Dataset) -> None:
    del structures.ROIContourSequence[0].ContourSequence[0].ContourGeometricType


def _no_conversion(capture: Dataset) -> None:
    del capture.ConversionType


def _no_layer(state: Dataset) -> None:
    del state.GraphicAnnotationSequence[0].GraphicLayer


def _number_in_basic_text(report: Dataset) -> None:
    report.ContentSequence[-1].ContentSequence[0].ValueType = "NUM"


BROKEN: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "RT Structure Set": (_no_contour_image, "ContourGeometricType"),
    "Secondary Capture": (_no_conversion, "ConversionType"),
    "Grayscale Softcopy Presentation State": (_no_layer, "GraphicLayer"),
    "Basic Text SR": (_number_in_basic_text, "NUM|Numeric|ValueType"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_dciodvfy_still_reports_real_faults_of_the_forms(name: str, tmp_path: Path) -> None:
    spoil, reason = BROKEN[name]
    form = next(each for each in OTHERS if each.name == name)
    broken = copy.deepcopy(made("ct_two", form)[0])
    spoil(broken)
    _, output = checked(broken, form, tmp_path)
    assert any(re.search(reason, line) for line in complaints("dciodvfy", output)), output


# --------------------------------------------------------------------------------------- DCMTK refuses in negotiation


def negotiating(*sop_classes: str) -> str:
    """A profile of storescp that accepts these classes and verification, in the two uncompressed syntaxes."""
    accepted = "".join(f"PresentationContext{n} = {uid}\\Plain\n" for n, uid in enumerate(sop_classes, start=1))
    return (
        "[[TransferSyntaxes]]\n[Plain]\nTransferSyntax1 = LocalEndianExplicit\nTransferSyntax2 = LittleEndianImplicit\n"
        f"[[PresentationContexts]]\n[Some]\nPresentationContext{len(sop_classes) + 1} = VerificationSOPClass\\Plain\n"
        f"{accepted}[[Profiles]]\n[Few]\nPresentationContexts = Some\n"
    )


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[Callable[..., tuple[Peer, Path]]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(*sop_classes: str) -> tuple[Peer, Path]:
        folder, port, config = tmp_path / f"pacs{len(running)}", free_port(), tmp_path / f"{len(running)}.cfg"
        folder.mkdir()
        config.write_text(negotiating(*sop_classes))
        command = [need("storescp"), "-xf", str(config), "Few", "-od", str(folder), str(port)]
        running.append(subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL))
        peer = Peer("pacs", "PACS", "127.0.0.1", port, "NODE", 10)

        def answers() -> bool:
            try:
                return bool(echo(peer))
            except Deferred:
                return False

        wait_for(answers, 10, "storescp")
        return peer, folder

    yield start
    for process in running:
        process.terminate()
        process.wait()


def test_dcmtk_refuses_one_class_after_the_other(storescp: Callable[..., tuple[Peer, Path]], tmp_path: Path) -> None:
    """Each time the best of what is left is taken, in the chain's order."""
    package = ct_package(tmp_path)
    chains = [[form.sop_class_uid for form in chain] for chain in CHAINS.values()]
    for step in range(4):
        left = [chain[step:] for chain in chains]
        peer, folder = storescp(*dict.fromkeys(uid for chain in left for uid in chain))
        receipts = DimseDestination(peer, ResultForms(Profile(key_images="none"))).deliver(package, now)
        assert list(dict.fromkeys(receipt.sop_class_uid for receipt in receipts)) == list(
            dict.fromkeys(chain[0] for chain in left)
        )
        assert all(receipt.stored for receipt in receipts)
        assert all((" in place of " in receipt.text) == (step > 0) for receipt in receipts)
        stored = wait_for(
            lambda f=folder, r=receipts: len(list(f.iterdir())) == len(r) and list(f.iterdir()), 5, "files"
        )
        assert sorted(pydicom.dcmread(path, force=True).SOPInstanceUID for path in stored) == sorted(
            receipt.sop_instance_uid for receipt in receipts
        )


# -------------------------------------------------------------------------------------------------------- Orthanc


class Front:
    """Accepts some SOP classes only, and stores what comes in Orthanc: its status is the answer."""

    def __init__(self, orthanc: Orthanc, accept: Collection[str]) -> None:
        self.orthanc = orthanc
        self.proposed: list[set[str]] = []
        ae = AE("ORTHANC")
        ae.supported_contexts = [build_context(uid, [EXPLICIT_LE, IMPLICIT_LE]) for uid in accept]
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_REQUESTED, self._requested)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def _requested(self, event: evt.Event) -> None:
        contexts = event.assoc.requestor.primitive.presentation_context_definition_list
        self.proposed.append({str(each.abstract_syntax) for each in contexts})

    def _store(self, event: evt.Event) -> int:
        context = build_context(event.context.abstract_syntax, [event.context.transfer_syntax])
        behind = AE("FRONT").associate("127.0.0.1", self.orthanc.dicom_port, [context], "ORTHANC")
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        status = behind.send_c_store(dataset)
        behind.release()
        return int(status.Status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()


TOML = """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 1.0
[[peer]]
name = "scanner"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
key_objects = true
[[route]]
name = "breast ultrasound"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["pacs"]
"""


def test_orthanc_without_segmentations_and_our_reports(tmp_path: Path) -> None:
    """Through the whole node. The second time the node knows: it proposes less, and shows why on its page."""
    taken = (GSPS, ENHANCED, KEY_OBJECTS_CLASS)
    pacs = Orthanc(tmp_path / "orthanc")
    with pacs, Front(pacs, taken) as front:
        node = NodeProcess(tmp_path / "node", TOML.format(port=front.port))
        with node.start():
            for seed in (3, 4):
                folder = tmp_path / f"us{seed}"
                breast_ultrasound(folder, seed=seed, patient_id=f"PHANTOM-US-{seed}")
                storescu(node, folder)
                uid = pydicom.dcmread(next(folder.rglob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID
                facts = wait_for(lambda u=uid: node.finished(u), 120, f"results\n{node.log()}")
                [job] = [job for job in facts["jobs"] if job["kind"] == "send"]
                assert (job["state"], job["reason"]) == ("done", "3 objects stored"), job
                assert [receipt["sop_class_uid"] for receipt in job["receipts"]] == list(taken)
                mark, report, selection = (receipt["text"] for receipt in job["receipts"])
                assert mark.startswith(
                    "0x0000 Success; Grayscale Softcopy Presentation State in place of Segmentation: "
                )
                assert report.startswith(
                    "0x0000 Success; Enhanced SR in place of Comprehensive 3D SR: the SOP class is not"
                )
                assert selection == "0x0000 Success"
                held = {d.SOPInstanceUID for modality in ("PR", "SR", "KO") for d in pacs.instances(modality)}
                assert {receipt["sop_instance_uid"] for receipt in job["receipts"]} <= held
            first, second = (proposed for proposed in front.proposed if GSPS in proposed)  # others ask what arrived
            assert {SEG, COMPREHENSIVE, CAPTURE} <= first
            assert second == set(taken) | ({RTSTRUCT} & second)
            [destination] = [d for d in node.api("/api/destinations") if d["name"] == "pacs"]
            refused = {answer["sop_class_uid"]: answer["refused"] for answer in destination["answers"]}
            assert refused[SEG] == refused[COMPREHENSIVE] == "the SOP class is not supported"
            assert refused[GSPS] is None
            page = httpx.get(f"http://127.0.0.1:{node.web_port}/destinations").text
            assert "Grayscale Softcopy Presentation State" in page
            assert "the SOP class is not supported" in page


def test_orthanc_refuses_label_maps_and_a_transfer_syntax(tmp_path: Path) -> None:
    """By itself: it does not know Label Map Segmentation, and is told to take Implicit VR Little Endian only."""
    package = ct_package(tmp_path)
    pacs = Orthanc(
        tmp_path / "orthanc", settings={"AcceptedTransferSyntaxes": [IMPLICIT_LE], "UnknownSopClassAccepted": False}
    )
    with pacs:
        peer = Peer("pacs", "ORTHANC", "127.0.0.1", pacs.dicom_port, "NODE", 10)
        mark, report = DimseDestination(peer, ResultForms(Profile(label_map=True, key_images="none"))).deliver(
            package, now
        )
        assert mark.text.startswith("0x0000 Success; Segmentation in place of Label Map Segmentation: ")
        assert report.text.startswith("0x0000 Success; in Implicit VR Little Endian: ")
        [segmentation], [sr] = pacs.instances("SEG"), pacs.instances("SR")
        own = [pydicom.dcmread(path) for path in package.paths]
        assert [segmentation.SOPInstanceUID, sr.SOPInstanceUID] == [each.SOPInstanceUID for each in own]
        assert sr.SOPClassUID == THREE_D
        assert {group.segment[0] for group in read.groups(sr) if group.segment} == {str(own[0].SOPInstanceUID)}
        assert segmentation.PixelData == own[0].PixelData


def test_every_case_has_a_capture_in_the_end() -> None:
    """Whatever a PACS refuses, something can be shown."""
    for name in CASES:
        assert made(name, CHAINS[THREE_D][-1])
        _, objects = encoded(name)
        assert bool(made(name, CHAINS[SEG][-1])) == bool(objects[:-1])
