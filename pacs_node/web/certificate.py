"""The certificate of the pages, which is renewed while they are served."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from pacs_node.errors import CannotStart
from pacs_node.loop import Loop
from pacs_node.tls import in_words, state_of

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 30.0


class Certificate:
    """Raises CannotStart when certificate and key cannot be used."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate, self.key = certificate, key
        self.loop = Loop("certificate", self.look, LOOK_EVERY_S)
        self._served: ssl.SSLContext | None = None
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._seen = self._state()
        except (OSError, ssl.SSLError) as error:
            raise CannotStart(f"certificate and key in [web] cannot be used: {in_words(error)}") from error

    def serve(self, context: ssl.SSLContext) -> None:
        """Keep what a server hands out to new connections up to date."""
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._served = context
        self.loop.start()

    def look(self) -> None:
        """Take up renewed files. One that cannot be used is told, and the one before it stays."""
        state = self._state()
        if state == self._seen or self._served is None:
            return
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # both fit, before anything is changed
            self._load(self._served)
        except ssl.SSLError as error:  # perhaps one of the two is renewed, and the other is about to be
            log.warning("web.certificate-not-taken", error=in_words(error))
            return
        self._seen = state
        log.info("web.certificate-renewed")

    def _load(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self.certificate, self.key, password=lambda: "")

    def _state(self) -> tuple[int, ...]:
        return tuple(number for path in (self.certificate, self.key) for number in state_of(path))
