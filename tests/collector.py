"""A collector of OpenTelemetry, small and real: OTLP over HTTP, decoded from protobuf; and all it can do wrong."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.certificates import Identity

Answer = Callable[[BaseHTTPRequestHandler], Any]


def answering(status: int, body: bytes = b"", kind: str = "application/x-protobuf", **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def trickling(request: BaseHTTPRequestHandler) -> None:
    """An answer that has no end."""
    with suppress(OSError):
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            request.wfile.write(b"X-More: 1\r\n")
            time.sleep(0.05)


def hanging(request: BaseHTTPRequestHandler) -> None:
    """No answer, until whoever asks hangs up."""
    with suppress(OSError):
        request.connection.recv(1)


def hanging_up(request: BaseHTTPRequestHandler) -> None:
    request.connection.close()


TAKEN = answering(200, ExportTraceServiceResponse().SerializeToString())
IN_PART = ExportTraceServiceResponse()
IN_PART.partial_success.rejected_spans = 3
WRONG: dict[str, Answer] = {  # what a collector that is not well does
    "failing": answering(500, b"<html>sorry</html>", "text/html"),
    "busy": answering(429, b"", **{"Retry-After": "3600"}),
    "not there": answering(404, b"404 page not found", "text/plain"),
    "not for us": answering(401),
    "refuses all": answering(400, b"Client sent an HTTP request to an HTTPS server.", "text/plain"),
    "elsewhere": answering(307, Location="http://127.0.0.1:9/v1/traces"),
    "a page": answering(200, b"<!doctype html><title>Log in</title>", "text/html"),
    "garbage": answering(200, bytes(range(255, 0, -1))),
    "without end": answering(200, b"\x0a" * (1 << 20)),
    "silent": hanging,
    "trickling": trickling,
    "hanging up": hanging_up,
}


class Collector:
    """As a context it takes requests. `answer` is how; of what was taken, `spans`."""

    def __init__(self, port: int = 0, identity: Identity | None = None) -> None:
        self.answer: Answer = TAKEN
        self.bodies: list[bytes] = []  # everything that came, taken or not
        self.taken: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        if identity is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(identity.certificate, identity.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.scheme = "http" if identity is None else "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}/v1/traces"

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.taken]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def traces(self) -> dict[bytes, list[Span]]:
        """Trace id -> its spans; what came twice is there once, as a store of traces would have it."""
        found: dict[bytes, dict[bytes, Span]] = {}
        for span in self.spans:
            found.setdefault(span.trace_id, {})[span.span_id] = span
        return {trace: list(spans.values()) for trace, spans in found.items()}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.close_connection = True
                assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.bodies.append(body)
                collector.headers.append(dict(self.headers))
                if collector.answer is TAKEN:
                    collector.taken.append(body)
                with suppress(OSError):
                    collector.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def facts(span: Span) -> dict[str, Any]:
    """The attributes of a span, without what all of ours begin with."""
    return {
        each.key.removeprefix("pacs_node."): getattr(each.value, str(each.value.WhichOneof("value")))
        for each in span.attributes
    }
