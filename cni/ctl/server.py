"""A server to be reached: it tells every client who it is and whom it sees, in HTTP/1.0.

Where it listens is its caller's business: sockets belong to the network namespace that they were made in.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def listen(address: str, port: int) -> socket.socket:
    """A TCP socket that listens on an address, or on all of both families for ""."""
    if not address:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


@contextmanager
def answering(listener: socket.socket, label: str) -> Iterator[None]:
    """Answer whoever connects with `LABEL sees CLIENT-ADDRESS`, one after the other; close the listener at the end."""
    thread = threading.Thread(target=_serve, args=(listener, label), daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _serve(listener: socket.socket, label: str) -> None:
    while True:
        try:
            connection, client = listener.accept()
        except OSError:  # the listener was shut down
            return
        with connection, suppress(OSError):  # a client may hang up at any time
            _answer(connection, f"{label} sees {client[0].removeprefix('::ffff:')}")


def _answer(connection: socket.socket, text: str) -> None:
    connection.settimeout(1)
    connection.sendall(f"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n{text}".encode())
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(4096):  # until the client closes: doing so first would reset the connection
        pass
