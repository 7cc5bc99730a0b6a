"""The state of the machine: certificates by their dates, histograms as Prometheus reads them, models by their cards."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from config import load
from models import card_text, catalogue
from pacs_node.kinds import sizes as sizes_of
from pacs_node.observe import SystemCollector, registry
from pacs_node.records import DURATIONS, STEPS_S
from pacs_node.system import good_until, models
from tests.results import encoded

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def certificate(until: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(until - timedelta(days=90)).not_valid_after(until)
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_chain_is_good_until_the_first_of_it_ends_also_if_it_has(tmp_path: Path) -> None:
    file = tmp_path / "chain.pem"
    file.write_bytes(certificate(NOON + timedelta(days=3)) + certificate(NOON + timedelta(days=300)))
    assert good_until(file) == NOON + timedelta(days=3)
    file.write_bytes(certificate(NOON - timedelta(days=3)))
    assert good_until(file) == NOON - timedelta(days=3)


@pytest.mark.parametrize("content", [b"", b"no certificate", None])
def test_one_that_cannot_be_read_is_no_crash(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "it.pem").write_bytes(content)
    assert good_until(tmp_path / "it.pem") is None


STATE = {
    "version": "1.2.3",
    "python": "3.12",
    "database": "SQLite",
    "schema": "0023",
    "devices": [
        {"device": "cuda:0", "machine": "", "state": "idle", "held_mb": 7},
        {"device": "cuda:0", "machine": "gpu2", "state": "idle", "held_mb": 8},
    ],
    "backlog": [{"kind": "send", "oldest_s": 5.0}, {"kind": "send", "oldest_s": 90.5}],
    "peers": [{"name": "pacs", "received_at": None, "sent_at": NOON.isoformat(), "refused": 3}],
    "disk": {"full_in_days": None},
    "backup": None,
    "heartbeat": {"state": "arrived", "began_at": NOON.isoformat(), "seconds": 12.5},
    "certificates": [{"what": "web", "until": NOON.isoformat()}],
    "clock_ahead_s": 0.5,
}


def test_prometheus_reads_the_figures() -> None:
    took = {("infer", "lung-nodule"): ([0] * (len(STEPS_S) - 1) + [2, 3], 12345.5)}
    text = generate_latest(registry(SystemCollector(lambda: took, lambda: STATE, lambda: "degraded"))).decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    values = {(each.name, *sorted(each.labels.items())): each.value for each in samples}
    assert values["pacs_node_health", ("status", "degraded")] == 1
    assert values["pacs_node_health", ("status", "ok")] == 0
    assert values["pacs_node_oldest_job_age_seconds", ("kind", "send")] == 90.5
    assert values["pacs_node_oldest_job_age_seconds", ("kind", "infer")] == 0
    assert values["pacs_node_peer_sent_timestamp_seconds", ("peer", "pacs")] == NOON.timestamp()
    assert str(values["pacs_node_peer_received_timestamp_seconds", ("peer", "pacs")]) == "nan"
    assert values["pacs_node_device_held_bytes", ("device", "cuda:0@gpu2"), ("number", "1")] == 8 << 20
    assert values["pacs_node_certificate_expiry_timestamp_seconds", ("what", "web")] == NOON.timestamp()
    assert values[("pacs_node_heartbeat_arrived",)] == 1
    assert values[("pacs_node_heartbeat_seconds",)] == 12.5
    assert values[("pacs_node_heartbeat_timestamp_seconds",)] == NOON.timestamp()
    histogram = [each for each in samples if each.name.startswith("pacs_node_duration_seconds")]
    assert {each.labels["what"] for each in histogram} == DURATIONS.keys(), "none is a figure, too"
    of_it = [each for each in histogram if each.labels["name"] == "lung-nodule"]
    buckets = [each.value for each in of_it if each.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert [each.labels["le"] for each in of_it if "le" in each.labels][-1] == "+Inf"
    assert {each.name[27:]: each.value for each in of_it if "le" not in each.labels} == {"count": 3, "sum": 12345.5}


def test_models_are_those_of_the_routes_with_what_their_cards_say(tmp_path: Path) -> None:
    route = '[[route]]\nname = "{}"\nmatch = {{ Modality = "{}" }}\npipeline = "{}"\nsend_to = ["out"]\n'
    routes = (("a", "CT", "lung-nodule"), ("b", "CT", "lung-nodule"), ("c", "US", "breast-us"))
    text = "".join(route.format(*each) for each in routes) + '[[peer]]\nname = "out"\nfolder = "out"\n'
    (tmp_path / "node.toml").write_text(text)
    told = {each["pipeline"]: each for each in models(load(tmp_path / "node.toml", catalogue()))}
    assert told["lung-nodule"]["routes"] == ["a", "b"]
    for name, each in told.items():
        card = catalogue().card(name, {})
        assert (each["version"], each["trouble"]) == (card.algorithm.version, None)
        assert each["weights"] == [digest[:12] for digest in card.weights_sha256.values()]


def test_the_largest_finding_of_each_kind_is_among_the_figures_of_a_job() -> None:
    findings = encoded("ct_two")[0].findings
    sizes = sizes_of(findings)["largest_mm"]
    assert sizes.keys() == {finding.type.meaning for finding in findings.findings}
    assert all(0 < size < 500 for size in sizes.values())


@pytest.mark.parametrize("name", ["lung-nodule", "lymph-node", "breast-us"])
def test_each_network_of_ours_carries_its_card(name: str) -> None:
    text = card_text(catalogue().declared[name])
    assert text is not None
    assert name in text.partition("\n")[0]
    assert "Research use only" in text


def test_what_carries_no_card_has_none() -> None:
    declared = catalogue().declared["command"]
    assert card_text(declared) is None
    assert card_text(replace(declared, target="no_such.package:Pipeline")) is None
