"""Leases of the reference host-local plugin, so that pods from before a switch to shimlan keep their addresses.

host-local keeps one file per address, <dataDir>/<network>/<address>, with the container ID and, on a second line, the
interface name. Nothing is ever added here: those leases only go away, with the DELs of their containers.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from cni.errors import IOFailure
from cni.files import without_waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

    Address = IPv4Address | IPv6Address

DEFAULT_DIRECTORY = "/var/lib/cni/networks"


class HostLocal:
    """What host-local keeps of one network; looks for it below each of the directories, its possible `dataDir`s."""

    def __init__(self, network: str, directories: tuple[str, ...]) -> None:
        paths = (f"{directory}/{network}" for directory in dict.fromkeys(directories))
        # The spec allows no "/" in names, but DEL works with configurations that were never checked.
        self._paths = [] if "/" in network else [path for path in paths if os.path.isdir(path)]

    def holder(self, address: Address) -> str:
        """The ID of the container that holds an address; "" when nobody does. Raises IOFailure."""
        for path in self._paths:
            with _failures(path), suppress(FileNotFoundError):
                return _read(f"{path}/{address}").partition("\n")[0].strip() or "unknown"
        return ""

    def release(self, container_id: str, ifname: str) -> tuple[Address, ...]:
        """Remove the leases of one interface of a container; returns their addresses. Raises IOFailure.

        Reads every lease.
        """
        released: list[Address] = []
        for path in self._paths:
            with _failures(path):
                released += _release(path, ([container_id, ifname], [container_id]))
        return tuple(released)


def _release(path: str, owners: tuple[list[str], ...]) -> Iterator[Address]:
    for name in os.listdir(path):
        # Files of host-local before 0.9 have no second line; "lock" and "last_reserved_ip.N" are no leases.
        with suppress(FileNotFoundError, IsADirectoryError, ValueError):
            address = ip_address(name)
            if _read(f"{path}/{name}").split() in owners:
                os.unlink(f"{path}/{name}")
                yield address


@contextmanager
def _failures(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IOFailure(f"{error.filename or path}: a lease of host-local: {error.strerror}") from error


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace", opener=without_waiting) as file:
        return file.read()
