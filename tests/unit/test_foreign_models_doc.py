"""docs/foreign-models.md as written: every table is read, every program is run, every name is one that exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from config.schema import Config
from models.command.options import Options as CommandOptions
from models.command.pipeline import Command
from models.command.results import Number, Results, Said, Statement
from models.labels import Label
from models.monai_bundle.options import Options as BundleOptions
from models.monai_bundle.pipeline import MonaiBundle
from tests.bundles import threshold_bundle
from tests.factories import ct_series

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "foreign-models.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def rows(heading: str) -> set[str]:
    """The names in the first column of the table below a heading."""
    section = TEXT.split(f"\n{heading}\n", 1)[1].split("\n## ")[0].split("\n### ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.M))


def bright_block() -> np.ndarray:
    hu = np.full((20, 48, 40), -1000, np.int16)
    hu[5:11, 10:22, 20:31] = 200
    return hu


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("## The table of labels", Label),
        ("## A MONAI bundle", BundleOptions),
        ("## A command", CommandOptions),
    ],
)
def test_every_option_has_a_row_and_every_row_an_option(heading: str, model: type[BaseModel]) -> None:
    assert rows(heading) == set(model.model_fields)


def test_every_part_of_results_json_is_named() -> None:
    section = TEXT.split("### results.json")[1].split("\n### ")[0]
    for model in (Results, Said, Number, Statement):
        assert [name for name in model.model_fields if f"`{name}`" not in section] == []


def options_of(block: str, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """(pipeline, options) of a table, with programs and folders of this machine in the place of those it names."""
    route = tomllib.loads(block)["route"]
    route = route[0] if isinstance(route, list) else route
    options = route["options"]
    if "bundle" in options:
        options["bundle"] = str(threshold_bundle(tmp_path / Path(options["bundle"]).name))
    if "command" in options:
        options["command"][0] = sys.executable
    return route.get("pipeline", "command"), options


@pytest.mark.parametrize("block", [each for each in blocks("toml") if "[route.options]" in each])
def test_every_table_is_one_that_the_pipeline_takes(block: str, tmp_path: Path) -> None:
    pipeline, options = options_of(block, tmp_path)
    {"monai-bundle": MonaiBundle, "command": Command}[pipeline]("cpu", options)


def test_the_routes_are_whole(tmp_path: Path) -> None:
    whole = [each for each in blocks("toml") if each.startswith("[[route]]")]
    assert len(whole) == 2
    for block in whole:
        Config.model_validate(tomllib.loads('[[peer]]\nname = "pacs"\nae_title = "P"\nhost = "h"\nport = 1\n' + block))


def test_the_table_of_labels_is_read() -> None:
    [block] = [each for each in blocks("toml") if "[route.options]" not in each]
    labels = tomllib.loads(block)["route"]["options"]["labels"]
    assert [Label.model_validate(label).name for label in labels.values()] == ["Spleen", "Liver lesion"]


def test_the_program_marks_what_it_says(tmp_path: Path) -> None:
    [code] = blocks("python")
    (tmp_path / "program.py").write_text(code)
    series = ct_series(tmp_path / "ct", voxels=bright_block(), spacing_mm=(2.5, 0.8, 0.7), orientation="oblique")
    pipeline = Command(
        "cpu",
        {
            "command": [sys.executable, str(tmp_path / "program.py"), "{input}", "{output}"],
            "name": "Threshold",
            "version": "1",
            "labels": {"1": {"name": "Bright", "type": ["78961009", "SCT", "Spleen"]}},
        },
    )
    findings = pipeline.run([Path(str(image.filename)) for image in series], lambda *_: None)
    assert findings.findings[0].mask.sum() == (bright_block() == 200).sum()


def test_the_json_becomes_findings(tmp_path: Path) -> None:
    [said] = blocks("json")
    assert set(Results.model_fields) == set(json.loads(said))
    (tmp_path / "said.json").write_text(said)
    series = ct_series(tmp_path / "ct", voxels=bright_block())
    [code] = blocks("python")
    program = (
        code + '\nmask[mask == 1] = 2\nnibabel.save(nibabel.Nifti1Image(mask, affine), sys.argv[2] + "/mask.nii.gz")'
    )
    program += f'\nPath(sys.argv[2], "results.json").write_text(Path({str(tmp_path / "said.json")!r}).read_text())\n'
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py"), "{input}", "{output}"]
    pipeline = Command("cpu", {"command": command, "name": "Threshold", "version": "1"})
    findings = pipeline.run([Path(str(image.filename)) for image in series], lambda *_: None)
    assert [(f.label, f.extent, f.certainty) for f in findings.findings] == [
        ("Left lung", "mask", 0.99),
        ("Nodule 1", "box", 0.91),
        ("Nodule 2", "none", 0.4),
    ]
    assert findings.warnings == ("the upper lobes were cut off",)


# What the script calls, as far as it matters to it: dcm2niix writes one file of that name, nnU-Net one of each case.
DCM2NIIX = """#!{python}
import shutil, sys
from pathlib import Path
given = sys.argv[1:]
out, name = given[given.index("-o") + 1], given[given.index("-f") + 1]
assert any(Path(given[-1]).glob("*.dcm"))
sys.argv = ["", given[-1], out]
exec(compile({code!r}, "program", "exec"))
shutil.move(out + "/mask.nii.gz", f"{{out}}/{{name}}.nii.gz")
"""
PREDICT = """#!{python}
import os, shutil, sys
from pathlib import Path
given = sys.argv[1:]
assert os.environ["nnUNet_results"] == "/opt/nnunet/results"
for path in Path(given[given.index("-i") + 1]).glob("*_0000.nii.gz"):
    shutil.copy(path, Path(given[given.index("-o") + 1]) / path.name.replace("_0000", ""))
Path(given[given.index("-o") + 1], "plans.json").write_text("{{}}")
"""


def test_the_nnunet_script_hands_the_series_on_and_the_label_map_back(tmp_path: Path) -> None:
    """nnU-Net itself is not here: two programs stand for it and for dcm2niix, called as the script calls them."""
    [script] = blocks("bash")
    [code] = blocks("python")
    (tmp_path / "bin").mkdir()
    for name, text in (("run", script), ("dcm2niix", DCM2NIIX), ("nnUNetv2_predict", PREDICT)):
        text = text if name == "run" else text.format(python=sys.executable, code=code)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    assert subprocess.run(["bash", "-n", str(tmp_path / "bin" / "run")], check=False).returncode == 0
    [block] = [each for each in blocks("toml") if "nnUNet_results" in each]
    options = tomllib.loads(block)["route"]["options"]
    options["command"][0] = str(tmp_path / "bin" / "run")
    options["environment"]["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    series = ct_series(tmp_path / "ct", voxels=bright_block())
    findings = Command("cpu", options).run([Path(str(image.filename)) for image in series], lambda *_: None)
    [finding] = findings.findings
    assert (finding.label, finding.mask.sum()) == ("Spleen", (bright_block() == 200).sum())
