"""What deploy/ ships is what the code understands. (No container engine runs here: the images are not built.)"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import promql_parser
import pytest
import yaml

from config import Receive, load, problems
from models import catalogue
from pacs_node.node import AFTER_CUT_S

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def said(text: str, folder: Path) -> list[str]:
    """What `pacs-node check` says of these settings, on a machine that grants them their data_dir."""
    (folder / "node.toml").write_text(text.replace('"/var/lib/pacs-node"', f'"{folder}"'))
    return [str(problem) for problem in problems(folder / "node.toml", catalogue())]


def test_the_settings_are_good(tmp_path: Path) -> None:
    (warning,) = said((DEPLOY / "node.toml").read_text(), tmp_path)
    assert "web_host" in warning, "0.0.0.0 is the container's; compose.yaml publishes the pages to 127.0.0.1 alone"
    assert 'ports: ["127.0.0.1:8080:8080"]' in (DEPLOY / "compose.yaml").read_text()


def test_node_and_orthanc_know_each_other() -> None:
    settings = load(DEPLOY / "node.toml", catalogue())
    orthanc = json.loads((DEPLOY / "orthanc.json").read_text())
    title, _, port = orthanc["DicomModalities"]["pacs-node"]
    assert (title, port) == (settings.node.ae_title, settings.node.dicom_port)
    peer = settings.peer("pacs")
    assert (peer.ae_title, peer.port) == (orthanc["DicomAet"], orthanc["DicomPort"])
    assert "/modalities/pacs-node/store" in (DEPLOY / "route.lua").read_text()


def test_the_settings_of_the_readme_are_good(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block
    lines = [line.removeprefix("   ") for line in block.group(1).splitlines()]
    assert said("\n".join(lines), tmp_path) == []


def test_every_package_of_the_distribution_is_in_the_image() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = (DEPLOY / "Dockerfile").read_text()
    for package in packages:
        assert f"COPY {package.rstrip('*')} " in copied


UNIT = DEPLOY / "node.service"
SHUT = {  # what the unit must say, read by hand from systemd.exec(5) and systemd.resource-control(5)
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "UMask": "0077",
    "StateDirectoryMode": "0700",
    "LimitCORE": "0",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "OOMPolicy": "continue",
}


def service(file: Path) -> dict[str, str]:
    """The [Service] settings of a unit; each key stands once, but for what is said of ExecStart."""
    text = file.read_text().partition("[Service]\n")[2].partition("\n[")[0]
    pairs = [line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#")]
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_the_unit_shuts_the_node_in_and_sets_limits() -> None:
    unit = service(UNIT)
    assert SHUT.items() <= unit.items()
    assert int(unit["LimitNOFILE"]) >= 4096
    assert {"MemoryMax", "TasksMax"} <= unit.keys()
    assert "MemoryDenyWriteExecute" not in unit, "OpenVINO writes the code that it runs"
    assert float(unit["TimeoutStopSec"]) > Receive().drain_s + AFTER_CUT_S + 30


@pytest.mark.parametrize("with_command", [False, True])
def test_systemd_takes_the_unit(tmp_path: Path, with_command: bool) -> None:
    """As it stands, with a program and a user that are there; `verify` says every key that it does not know."""
    analyze = systemd_analyze()
    text = UNIT.read_text().replace("/opt/pacs-node/venv/bin/pacs-node", "/bin/true")
    (tmp_path / "node.service").write_text(text.replace("User=pacs-node", "User=root"))
    if with_command:
        (tmp_path / "node.service.d").mkdir()
        shutil.copy(DEPLOY / "command.conf", tmp_path / "node.service.d")
    done = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / "node.service"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_exposes_little() -> None:
    """2.2 of 10 with systemd 252; a unit that says nothing has 9.6."""
    done = subprocess.run(
        [systemd_analyze(), "security", "--offline=yes", "--no-pager", "--threshold=25", str(UNIT)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Overall exposure level" in done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


def systemd_analyze() -> str:
    """Skips where it is missing, or older than what is asked of it: it is no part of what a node needs."""
    path = shutil.which("systemd-analyze")
    if path is None:
        pytest.skip("systemd-analyze is not installed")
    told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    if int(told.split()[1]) < 250:
        pytest.skip(f"{told.splitlines()[0]} knows no --offline")
    return path


# What Prometheus and Grafana are given -------------------------------------------------------------------------------

RULES, DASHBOARD = DEPLOY / "prometheus-rules.yaml", DEPLOY / "grafana-dashboard.json"
METRIC = re.compile(r"\bpacs_node_[a-z_]+\b")
WITH_LABELS = re.compile(r"\b(pacs_node_[a-z_]+)(?:\{([^}]*)\})?")


def documented_metrics() -> dict[str, set[str]]:
    """Those of docs/api.md with their labels, which test_documented.py holds against /metrics."""
    table = (ROOT / "docs" / "api.md").read_text().partition("## Metrics")[2]
    found = re.findall(r"(?m)^\| `(pacs_node_\w+)` \| (.*?) \|", table)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in found}


def expressions() -> list[str]:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]


def test_rules_and_dashboard_name_only_metrics_and_labels_that_there_are() -> None:
    known = documented_metrics()
    assert len(known) > 20
    for expression in expressions():
        for name, inner in WITH_LABELS.findall(expression):
            assert name in known, expression
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inner or ""))
            assert asked <= known[name] | {"instance", "job"}, expression


def calls(expression: promql_parser.Expr) -> list[promql_parser.Call]:
    """Every call of a function within."""
    found: list[promql_parser.Call] = []

    def seen(each: promql_parser.Expr) -> bool:
        if isinstance(each, promql_parser.Call):
            found.append(each)
        return True

    promql_parser.walk(expression, seen)
    return found


OF_COUNTERS, OF_GAUGES = {"increase", "rate", "irate"}, {"delta", "idelta", "deriv", "predict_linear"}


def test_every_expression_is_promql_that_suits_its_metrics() -> None:
    """A gauge that falls is no counter that began anew: of one, increase() counts what somebody has dismissed."""
    asked = set()
    for expression in expressions():
        parsed = promql_parser.parse(expression.replace("$__rate_interval", "5m"))
        for call in calls(parsed):
            of = call.args[0] if call.args else None
            if isinstance(of, promql_parser.MatrixSelector) and call.func.name in OF_COUNTERS | OF_GAUGES:
                counts = str(of.vector_selector.name).endswith(("_total", "_bucket", "_count", "_sum"))
                assert counts is (call.func.name in OF_COUNTERS), expression
                asked.add(call.func.name)
    assert asked >= {"increase", "rate", "delta"}


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set(METRIC.findall(DASHBOARD.read_text()))
    assert documented_metrics().keys() - shown == set()


def test_every_alert_says_what_and_what_now() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "what_now"}
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}


def test_the_panels_have_numbers_titles_and_places_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
