"""Pipelines of installed packages: found, checked against their cards, and never in the way of the others."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import problems
from models import PIPELINES, Catalogue, build, catalogue
from models.options import BadOptions, WeightsError
from models.pipeline import BadPipeline, Declaration, Requirements

CARD = """
from dicom_sr.findings import Algorithm
from models.pipeline import Card, Declaration
CARD = Card("{name}", frozenset({{"MR"}}), Algorithm("a", "1"), "Research use only, not for diagnostic use.", {weights})
PIPELINE = Declaration(CARD, "{module}:Pipeline")
class Pipeline:
    def __init__(self, device, options=None):
        self.card = CARD
"""
ROUTE = """
[[peer]]
name = "pacs"
folder = "results"
[[route]]
name = "heads"
match = {{ {match} }}
pipeline = "{pipeline}"
send_to = ["pacs"]
"""


class Installed:
    """A folder of packages that Python finds, each with its metadata as pip would write it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def package(self, module: str, code: str, name: str = "heads", target: str = "PIPELINE") -> Path:
        (self.folder / module).mkdir()
        (self.folder / module / "__init__.py").write_text(code)
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[pacs_node.pipelines]\n{name} = {module}:{target}\n")
        return self.folder / module

    def pipeline(self, module: str, name: str = "heads", weights: str = "{}") -> Path:
        return self.package(module, CARD.format(name=name, module=module, weights=weights), name)

    def found(self) -> Catalogue:
        catalogue.cache_clear()
        return catalogue()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield Installed(folder)
    catalogue.cache_clear()
    for name in [name for name in sys.modules if name.startswith("door_")]:
        del sys.modules[name]


def said(known: Catalogue, folder: Path, pipeline: str = "heads", match: str = "Modality = 'MR'") -> list[str]:
    (folder / "node.toml").write_text(ROUTE.format(pipeline=pipeline, match=match))
    found = problems(folder / "node.toml", known)
    return [problem.text for problem in found if "may_send" not in problem.text]


def test_an_installed_pipeline_stands_beside_ours(installed: Installed, tmp_path: Path) -> None:
    installed.pipeline("door_fine")
    known = installed.found()
    assert set(known.declared) == {*PIPELINES, "heads"}
    assert said(known, tmp_path) == []
    assert build(known.declared["heads"], "cpu").card.name == "heads"


def test_two_packages_of_one_name_are_an_error_that_names_both(installed: Installed, tmp_path: Path) -> None:
    installed.pipeline("door_one")
    installed.pipeline("door_two")
    installed.pipeline("door_three", name="lung-nodule")
    known = installed.found()
    assert set(known.declared) == set(PIPELINES) - {"lung-nodule"}
    [mine, theirs] = said(known, tmp_path)
    assert "no route uses it, but pipeline 'lung-nodule' is declared by pacs-node and package door_three 1.0" in mine
    assert theirs.startswith("[[route]] 'heads': pipeline 'heads' is declared by package door_")


@pytest.mark.parametrize(
    ("code", "target", "words"),
    [
        ("import a_module_that_is_not_there", "PIPELINE", "ModuleNotFoundError"),
        ("raise SystemError('broken')", "PIPELINE", "SystemError: broken"),
        ("PIPELINE = 3", "PIPELINE", "is a int, not a models.pipeline.Declaration"),
        ("", "PIPELINE", "AttributeError"),
        (CARD.format(name="legs", module="door_broken", weights="{}"), "PIPELINE", "its entry point says 'heads'"),
    ],
)
def test_a_broken_package_breaks_its_own_pipeline_only(
    installed: Installed, tmp_path: Path, code: str, target: str, words: str
) -> None:
    installed.package("door_broken", code, target=target)
    known = installed.found()
    assert set(known.declared) == set(PIPELINES)
    [problem] = said(known, tmp_path)
    assert "pipeline 'heads' of package door_broken 1.0 cannot be loaded" in problem
    assert words in problem
    [warning] = said(known, tmp_path, "breast-us", "Modality = 'US'")
    assert warning.startswith("no route uses it, but pipeline 'heads'")


def test_a_name_that_cannot_name_results_is_an_error(installed: Installed, tmp_path: Path) -> None:
    installed.pipeline("door_name", name="My Heads")
    known = installed.found()
    assert known.broken.keys() == {"My Heads"}
    assert "small letters, digits and hyphens" in said(known, tmp_path, "My Heads")[0]


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("Modality = 'MR'", None),
        ("Modality = ['CT', 'mr ']", None),
        ("Modality = { regex = '^M' }", None),
        ("Modality = { present = true }", None),
        ("PatientID = 'x'", None),
        ("BodyPartExamined = 'FOOT'", None),  # the card says nothing of it
        ("Modality = 'CT'", "takes Modality MR only"),
        ("Modality = { regex = 'T$' }", "takes Modality MR only"),
        ("Modality = { absent = true }", "takes Modality MR only"),
        ("Modality = 3", "takes Modality MR only"),
    ],
)
def test_a_route_that_could_never_run_is_an_error(
    installed: Installed, tmp_path: Path, match: str, words: str | None
) -> None:
    installed.pipeline("door_route")
    found = said(installed.found(), tmp_path, match=match)
    assert [words in text for text in found] == ([True] if words else []), found


def test_weights_that_are_not_those_of_the_card_are_not_used(installed: Installed) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    folder = installed.pipeline("door_weights", weights=f"{{'w.safetensors': '{digest}'}}")
    declaration = installed.found().declared["heads"]
    with pytest.raises(WeightsError, match=r"w\.safetensors cannot be read"):
        build(declaration, "cpu")
    (folder / "w.safetensors").write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"has SHA-256 .*, the card says .*: do not use it"):
        build(declaration, "cpu")
    (folder / "w.safetensors").write_bytes(b"weights")
    assert build(declaration, "cpu").card.weights_sha256 == {"w.safetensors": digest}


def test_what_is_built_must_be_what_is_declared(installed: Installed) -> None:
    code = CARD.format(name="heads", module="door_other", weights="{}")
    installed.package("door_other", code + "        object.__setattr__(self, 'card', _other())\n" + OTHER)
    with pytest.raises(BadPipeline, match="is not the declared one of heads"):
        build(installed.found().declared["heads"], "cpu")


OTHER = """
def _other():
    from dataclasses import replace
    return replace(CARD, modality=frozenset({"CT"}))
"""


def test_a_card_may_depend_on_the_options(installed: Installed, tmp_path: Path) -> None:
    code = """
from dataclasses import replace
from models.options import BadOptions, PipelineOptions
class Options(PipelineOptions):
    of: str = ""
def card(options):
    if not options.of:
        raise BadOptions("say of which modality")
    return replace(CARD, modality=frozenset({options.of}))
PIPELINE = Declaration(card, PIPELINE.target, Options)
"""
    installed.package("door_options", CARD.format(name="heads", module="door_options", weights="{}") + code)
    known = installed.found()
    assert said(known, tmp_path) == ["[[route]] 'heads': heads: say of which modality"]
    assert known.card("heads", {"of": "PT"}).modality == {"PT"}
    with pytest.raises(BadOptions, match="say of which modality"):
        known.card("heads", {})
    ours = ["lung-nodule", "lymph-node", "breast-us"]
    assert [card.name for card in known.cards] == ours, "it cannot say what it takes"


def test_requirements_and_declarations_that_contradict_themselves_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="say volume=True"):
        Requirements(axial=True)
    ours = catalogue().declared["lung-nodule"]
    with pytest.raises(ValueError, match="need a `comparison`"):
        Declaration(ours.card, ours.target, ours.options)
