"""HTTP on one port: reads requests and writes answers, with or without faults."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.hub_server.faults import Fault
from tests.support.hub_server.store import StoreError

BLOCK = 1 << 16


class Server(ThreadingHTTPServer):
    """One origin of the Hub ``hub``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler], hub: Any) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """The origin."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: clients that give up are part of the tests."""


Route = tuple[str, re.Pattern[str], str]
"""(Methods, path pattern, function name)."""


class Handler(BaseHTTPRequestHandler):
    """A request handler that looks its routes up in a table: (method, pattern, function name)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    origin = ""
    routes: tuple[Route, ...] = ()
    server: Any

    def handle_request(self) -> None:
        """Answer one request."""
        parts = urlsplit(self.path)
        self.url_path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.body = (
            self.rfile.read(int(self.headers.get("Content-Length") or 0)) if not self.is_chunked() else self.chunks()
        )
        authorization = self.headers.get("Authorization", "")
        self.token = authorization.removeprefix("Bearer ") or None
        hub = self.server.hub
        hub.log.append((self.origin, self.command, self.url_path, bool(authorization)))
        self.fault = hub.faults.take(self.origin, self.command, self.url_path, self.range_start())
        time.sleep(self.fault.wait)
        if self.fault.status:
            self.reply(self.fault.status, b"", dict(self.fault.headers))
            return
        try:
            self.route()
        except StoreError as error:
            headers = {"X-Error-Code": error.code} if error.code else {}
            self.reply(
                error.status, json.dumps({"error": str(error)}).encode(), headers | {"X-Error-Message": str(error)}
            )

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def route(self) -> None:
        """Call the function of the first route that matches."""
        for method, pattern, name in self.routes:
            match = pattern.fullmatch(self.url_path)
            if match and self.command in method.split():
                getattr(self, name)(**match.groupdict())
                return
        raise StoreError(404, "", f"no route for {self.command} {self.url_path}")

    def is_chunked(self) -> bool:
        """Tell whether the request's body comes in chunks."""
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def chunks(self) -> bytes:
        """Return a chunked request's body."""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def range_start(self) -> int:
        """Return the first byte of a Range header."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0] or 0)

    def reply_json(self, value: object, status: int = 200) -> None:
        """Answer with JSON."""
        self.reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply_file(self, content: bytes, headers: dict[str, str]) -> None:
        """Answer with a file or its requested range."""
        asked = self.headers.get("Range")
        if asked is None:
            self.reply(200, content, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
        part = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        self.reply(206, content[start : end + 1], headers | part)

    def reply(self, status: int, content: bytes = b"", headers: Mapping[str, object] | None = None) -> None:
        """Answer, through this request's fault."""
        fault: Fault = self.fault
        if fault.lost_reply:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault.flip is not None and content:
            flipped = bytearray(content)
            flipped[fault.flip] ^= 1
            content = bytes(flipped)
        content = content if fault.truncate is None else content[: fault.truncate]
        self.send_response(status)
        hidden = {name.lower() for name in fault.hide}
        for name, value in {"Content-Length": len(content), **(headers or {}), **dict(fault.replace)}.items():
            if name.lower() not in hidden:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(content, fault)

    def send_body(self, content: bytes, fault: Fault) -> None:
        """Send the body up to the fault."""
        limits = [limit for limit in (fault.drop, fault.reset, fault.stall) if limit is not None]
        limit = limits[0] if limits else len(content)
        for start in range(0, min(limit, len(content)), BLOCK):
            self.wfile.write(content[start : min(start + BLOCK, limit)])
            self.server.hub.progress.set()
        if limit >= len(content):
            return
        if fault.stall is not None:
            self.server.hub.released.wait(30)
        self.close_connection = True
        if fault.reset is not None:  # SO_LINGER of 0 seconds makes close() send a reset
            time.sleep(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        """Stay silent."""
