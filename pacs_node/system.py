"""The state of the machine that the node is, as plain values: versions, devices, disk, backlog, certificates, peers."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from config import Config
from config.certificates import Unusable
from config.certificates import certificates as certificates_in
from models import card_text, catalogue
from models.pipeline import Card
from pacs_node import __version__
from pacs_node.heartbeat import Heartbeat
from pacs_node.ledger import Ledger
from pacs_node.ledger.lists import iso
from pacs_node.off_peak import OffPeak
from pacs_node.retention import Retention

BACKUP = "backup"  # the mark of the last one


class Running(Protocol):
    """The node whose state this is."""

    config: Config
    ledger: Ledger
    now: Callable[[], datetime]
    retention: Retention
    off_peak: OffPeak
    started_at: datetime
    heartbeat: Heartbeat
    executor: str

    def devices(self) -> list[dict[str, Any]]: ...


RESTED = timedelta(hours=1)  # a job that waited for the hours of its route has no age for the first of them


def state_of(node: Running) -> dict[str, Any]:
    """Raises LedgerUnavailable."""
    config, ledger, now = node.config, node.ledger, node.now()
    disk = shutil.disk_usage(config.node.data_dir)
    backup = ledger.marks().get(BACKUP)
    heartbeat = node.heartbeat.state()
    ahead_s = ledger.clock_ahead_s()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "database": "SQLite" if ledger.embedded else "PostgreSQL",
        "schema": ledger.schema_revision(),
        "started_at": iso(node.started_at),
        "now": iso(now),
        "clock_ahead_s": None if ahead_s is None else round(ahead_s, 3),
        "devices": [*({**each, "machine": ""} for each in node.devices()), *ledger.devices_of_others(node.executor)],
        "models": list(models(config)),
        "disk": {
            "total_bytes": disk.total,
            "free_bytes": disk.free,
            "kept_bytes": dict(node.retention.sizes),
            "full_in_days": node.retention.full_in_days,
        },
        "backlog": [
            {**queue, "oldest_at": iso(queue["oldest_at"]), "oldest_s": age_s(queue["oldest_at"] or now, now)}
            for queue in ledger.backlog(node.off_peak.not_open_since(now - RESTED))
        ],
        "backup": None if backup is None else {"at": iso(backup["at"]), "text": backup["text"]},
        "heartbeat": heartbeat and {**heartbeat, "began_at": iso(heartbeat["began_at"])},
        "certificates": [
            {"what": what, "until": iso(until), "days": None if until is None else (until - now).days}
            for what, until in certificates(config)
        ],
        "peers": list(peers(config, ledger)),
    }


def age_s(since: datetime, now: datetime) -> float:
    return round(max(0.0, (now - since).total_seconds()), 1)


def models(config: Config) -> Iterator[dict[str, Any]]:
    """What the routes run: name and version of the algorithm, its weights, and for which routes."""
    for name in sorted({route.pipeline for route in config.routes}):
        routes = [route for route in config.routes if route.pipeline == name]
        card = catalogue().takes(name, routes[0].options)
        known = isinstance(card, Card)
        yield {
            "pipeline": name,
            "algorithm": card.algorithm.name if isinstance(card, Card) else "",
            "version": card.algorithm.version if isinstance(card, Card) else "",
            "weights": [digest[:12] for digest in card.weights_sha256.values()] if isinstance(card, Card) else [],
            "trouble": None if known else str(card),
            "card": name in catalogue().declared and card_text(catalogue().declared[name]) is not None,
            "routes": [route.name for route in routes],
        }


def peers(config: Config, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """When each peer last sent something that was taken, and last took something that was sent to it."""
    received = ledger.last_received()
    refused = ledger.refused_of_peers()
    for peer in config.peers:
        title = peer.ae_title or ""
        yield {
            "name": peer.name,
            "received_at": iso(received.get(title)) if peer.may_send else None,
            "sent_at": iso(ledger.last_sent(peer.name)) if peer.reachable else None,
            "refused": refused.get(title, 0) if title else 0,
        }


def certificates(config: Config) -> Iterator[tuple[str, datetime | None]]:
    """What each certificate of ours is for, and until when it is good: of a chain, the first that ends."""
    if config.web.certificate is not None:
        yield "web", good_until(config.web.certificate)
    if config.tls.own_certificate is not None:
        yield "dicom", good_until(config.tls.own_certificate)
    if config.audit.syslog_certificate is not None:
        yield "syslog", good_until(config.audit.syslog_certificate)


def good_until(path: Path) -> datetime | None:
    """None: it cannot be read now."""
    try:
        return min(each.ends for each in certificates_in(path))
    except Unusable:
        return None
