"""A machine in the lab: a network namespace and the verbs of somebody who sits in front of it.

It knows `ip` and `ping`, sockets and sysctls. Which machines there are, and how they are wired, is the lab's business.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cni.ctl import server
from cni.ctl.frames import ETH_P_ALL, Capture, Filter

T = TypeVar("T")
Rows = list[dict[str, Any]]

NETNS_DIRECTORY = "/run/netns"
CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h


class Node:
    """A named network namespace; `address` and `address6` are where others reach it, "" if nowhere."""

    def __init__(self, name: str, label: str, address: str = "", address6: str = "") -> None:
        self.name = name
        self.label = label
        self.address = address
        self.address6 = address6
        self.dev = "eth0"  # the device that its addresses are on
        self.netns = f"{NETNS_DIRECTORY}/{name}"

    def __repr__(self) -> str:
        return f"<{self.label} {self.address or 'no address'}>"

    def run(
        self, *argv: str, check: bool = True, input: str | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace and wait for it; `env` is added to ours.

        Raises subprocess.CalledProcessError when it fails and `check` is set.
        """
        # Not `ip netns exec`: it remounts /sys, which hides the cgroups from the program.
        done = subprocess.run(
            [*self.enter_words, *argv],
            input=input,
            env={**os.environ, **env} if env else None,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise CommandFailed(self.label, argv, done)
        return done

    @property
    def enter_words(self) -> tuple[str, ...]:
        """The words which, put before a command, run it in the namespace."""
        return ("nsenter", f"--net={self.netns}", "--")

    def ip(self, *args: str) -> str:
        """The output of `ip ARGS`."""
        return self.run("ip", *args).stdout

    def ip_batch(self, *lines: str) -> None:
        """Run several `ip` commands in one process, up to the first that fails."""
        self.run("ip", "-batch", "-", input="\n".join(lines) + "\n")

    def ip_json(self, *args: str) -> Rows:
        """The output of `ip -j ARGS`, read."""
        # iproute2 writes {} for each object that its filter left out
        rows: Rows = json.loads(self.ip("-j", *args) or "[]")
        return [row for row in rows if row]

    def links(self) -> Rows:
        """All links with their details, as `ip -j -d link`."""
        return self.ip_json("-d", "link")

    def link(self, dev: str) -> dict[str, Any]:
        """One link with its details. Raises KeyError when there is none."""
        for row in self.links():
            if row["ifname"] == dev:
                return row
        raise KeyError(f"{self.label} has no link {dev}")

    @property
    def mac(self) -> str:
        """The MAC of its device."""
        return str(self.link(self.dev)["address"])

    def addresses(self, dev: str = "") -> list[str]:
        """The global addresses of a link, by default its device, with prefix lengths: `192.0.2.100/24`."""
        (row,) = self.ip_json("address", "show", "dev", dev or self.dev)
        return [f"{info['local']}/{info['prefixlen']}" for info in row["addr_info"] if info["scope"] == "global"]

    def routes(self) -> Rows:
        """The routes of the main tables, IPv4 then IPv6, as `ip -j -d route` gives them."""
        return self.ip_json("-d", "route") + self.ip_json("-d", "-6", "route")

    def neighbours(self) -> Rows:
        """The neighbour entries of both families, as `ip -j neigh`."""
        return self.ip_json("neigh")

    def sysctl(self, name: str, value: object = None) -> str:
        """Read a sysctl such as `net.ipv4.ip_forward`, after setting it if a value is given."""
        path = Path("/proc/sys", *name.split("."))
        if value is not None:
            self.inside(lambda: path.write_text(f"{value}\n"))
        return self.inside(path.read_text).strip()

    def pings(
        self,
        target: Node | str,
        family: int = 4,
        *,
        source: str = "",
        size: int = 56,
        wait: float = 1.0,
    ) -> bool:
        """Whether an echo request is answered within `wait` seconds.

        `source`: the address or interface to send from; `size`: octets of payload, never fragmented.
        """
        host = target.where(family) if isinstance(target, Node) else target
        options = ["-n", "-q", "-c", "1", "-W", f"{wait:g}", "-s", str(size), "-M", "do"]
        options += ["-I", source] if source else []
        return self.run("ping", *options, host, check=False).returncode == 0

    def where(self, family: int = 4) -> str:
        """The address of family 4 or 6. Raises LookupError when there is none."""
        address = self.address if family == 4 else self.address6
        if not address:
            raise LookupError(f"{self.label} has no IPv{family} address")
        return address

    @contextmanager
    def serve(self, port: int, address: str = "") -> Iterator[None]:
        """Answer every TCP connection to a port, as an HTTP server would, with `LABEL sees CLIENT-ADDRESS`.

        `address`: listen on that address only, else on all of both families.
        """
        listener = self.inside(lambda: server.listen(address, port))
        with server.answering(listener, self.label):
            yield

    def fetch(self, address: str, port: int, wait: float = 1.0) -> str:
        """What a server says to `GET /`, without the HTTP header. Raises OSError when nobody answers."""
        with self._connected(address, port, wait) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        return answer.partition(b"\r\n\r\n")[2].decode()

    def connects(self, address: str, port: int, wait: float = 1.0) -> bool:
        """Whether a TCP connection is accepted within `wait` seconds."""
        try:
            self._connected(address, port, wait).close()
        except OSError:
            return False
        return True

    def sniff(self, dev: str = "", wanted: Filter = lambda _: True) -> Capture:
        """Capture the frames that a device, by default its own, sends or receives: `with node.sniff() as seen: ...`."""
        return Capture(self.inside(lambda: _packet_socket(dev or self.dev)), wanted)

    def inside(self, function: Callable[[], T]) -> T:
        """The value of a function called by a thread in the namespace; a socket made there stays there."""
        values: list[T] = []
        errors: list[BaseException] = []

        def enter_and_call() -> None:
            try:
                enter(self.netns)
                values.append(function())
            except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
                errors.append(error)

        thread = threading.Thread(target=enter_and_call)
        thread.start()
        thread.join()
        for error in errors:
            raise error
        return values[0]

    def dump(self) -> str:
        """All that one wants to see of a namespace when a test failed."""
        commands = ("ip -d address", "ip route show table all", "ip neigh", "nft list ruleset")
        shown = (f"# {self.label}: {command}\n{self.run(*command.split(), check=False).stdout}" for command in commands)
        return re.sub(r" (promiscuity|numtxqueues) \d.*", "", "\n".join(shown))

    def _connected(self, address: str, port: int, wait: float) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with ExitStack() as undo:
            connection = self.inside(lambda: socket.socket(family, socket.SOCK_STREAM))
            undo.callback(connection.close)
            connection.settimeout(wait)
            connection.connect((address, port))
            undo.pop_all()
        return connection


class CommandFailed(subprocess.CalledProcessError):
    """A program failed inside a node; tells which one, where, and what it wrote to stderr."""

    def __init__(self, where: str, argv: tuple[str, ...], done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(done.returncode, argv, done.stdout, done.stderr)
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: `{' '.join(self.cmd)}` ends with {self.returncode}: {self.stderr.strip()}"


def enter(netns: str) -> None:
    """Move the calling thread into a network namespace, given by its path (setns(2); in Python's os from 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(netns) as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {netns}")


def _packet_socket(dev: str) -> socket.socket:
    packet_socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # 0: nothing before bind names the device
    packet_socket.bind((dev, ETH_P_ALL))
    return packet_socket
