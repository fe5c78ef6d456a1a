"""Pages by HTTP: metrics and health. It knows paths and functions that yield pages, and nothing of what they tell.

Each connection has a thread, a few at most, and ends after some seconds whatever its client does or does not do.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cni import __version__
from cni.agent.journal import Journal
from cni.agent.settings import Endpoint
from cni.errors import IOFailure
from cni.frozen import frozen

MOST_CONNECTIONS = 16
SECONDS = 10.0  # that a connection has, from end to end
TEXT = "text/plain; charset=utf-8"


@frozen
class Page:
    """An answer."""

    status: int
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]


def health(check: Callable[[], tuple[bool, str]]) -> Page:
    """The page of a check, which tells whether all is well, and why or why not."""
    well, text = check()
    return Page(200 if well else 503, TEXT, f"{text}\n".encode())


class Web(ThreadingHTTPServer):
    """Serves pages from its making until `close`, on threads of its own."""

    def __init__(self, endpoint: Endpoint, pages: Pages, log: Journal, seconds: float = SECONDS) -> None:
        """Raises IOFailure when it cannot listen there. `seconds` is how long a connection may last."""
        super().__init__((endpoint.host, endpoint.port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = _listen(endpoint)
        self.pages = pages
        self._log = log
        self._seconds = seconds
        self._open: dict[Any, float] = {}  # connections, and when they have to end
        self._thread = threading.Thread(target=self.serve_forever, args=(seconds / 2,), name="web", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self.socket.getsockname()[1]
        return port

    def close(self) -> None:
        """Listen no more; connections under way are left to end by themselves, or with the process."""
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which would look for `shutdown` only now and then
        self.shutdown()
        self._thread.join()
        self.server_close()

    # What socketserver calls.

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= MOST_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic() + self._seconds
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Now and then: hang up on who takes too long, which wakes the thread that waits for him."""
        now = time.monotonic()
        for connection, end in list(self._open.items()):
            if end <= now:
                with suppress(OSError):  # it may have ended just now
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nothing to talk about; anything else is a bug."""
        error = sys.exception()
        if error and not isinstance(error, OSError):
            self._log.error(f"answering {client_address[0]}: {''.join(traceback.format_exception(error))}")


class _Handler(BaseHTTPRequestHandler):
    """One request: HTTP/1.0, so that the connection ends with the answer."""

    server: Web
    server_version = f"shimlan/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0], self._not_found)()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def _not_found(self) -> Page:
        return Page(404, TEXT, f"there are {', '.join(self.server.pages)}\n".encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line."""


def _listen(endpoint: Endpoint) -> socket.socket:
    everywhere = not endpoint.host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if everywhere or ":" in endpoint.host else socket.AF_INET
    address = endpoint.host, endpoint.port
    try:
        # An agent that takes over begins while its predecessor still listens.
        return socket.create_server(address, family=family, dualstack_ipv6=everywhere, reuse_port=True)
    except OSError as error:
        number = error.errno or 0
        other = ": another program has this port, choose another one" if number == errno.EADDRINUSE else ""
        raise IOFailure(f"metrics: cannot listen on {endpoint}: {os.strerror(number)}{other}") from error
