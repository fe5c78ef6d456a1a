"""Configurations and stores that the tests of the IPAM are made of."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from cni.database import Database
from ipam.config import IpamConf, Range, Reservation
from ipam.store import LeaseStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def a_range(subnet: str, start: str = "", end: str = "", gateway: str = "") -> Range:
    """A range with host-local's defaults."""
    network = ip_network(subnet)
    return Range(
        network,
        ip_address(start) if start else network[1],
        ip_address(end) if end else network[-2],
        ip_address(gateway) if gateway else network[1],
    )


def a_conf(
    *pools: tuple[Range, ...],
    network: str = "lan",
    requested: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    reservations: tuple[Reservation, ...] = (),
    sticky: str = "none",
) -> IpamConf:
    """A configuration; without pools 192.168.1.10-13."""
    return IpamConf(
        network=network,
        pools=pools or ((a_range("192.168.1.0/24", "192.168.1.10", "192.168.1.13"),),),
        requested=tuple(map(ip_address, requested)),
        exclude=tuple(map(ip_network, exclude)),
        reservations=reservations,
        sticky=sticky,
    )


def reserved(*ips: str, pod: str = "", mac: str = "") -> Reservation:
    """A reservation."""
    return Reservation(tuple(map(ip_address, ips)), pod, mac)


def a_store(directory: Path, clock: Callable[[], float], boot: str = "boot-1") -> LeaseStore:
    """A store that knows no lease of host-local but those below its own directory."""
    return LeaseStore(Database(str(directory)), boot, clock, (str(directory),))


def ips(store: LeaseStore, conf: IpamConf, container: str, ifname: str = "eth0", pod: str = "") -> list[str]:
    """Allocate; the addresses as text."""
    return [str(leased.ip) for leased in store.allocate(conf, container, ifname, pod=pod).addresses]


def in_processes(count: int, work: Callable[[int], str]) -> list[str]:
    """What `work(0)`, `work(1)`... return in processes of their own that all run at once; errors come as text too."""
    pipes = [_spawn(number, work) for number in range(count)]
    results = []
    for pid, reader in pipes:
        with open(reader, encoding="utf-8") as file:
            results.append(file.read())
        os.waitpid(pid, 0)
    return results


def _spawn(number: int, work: Callable[[int], str]) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work(number)
        except BaseException as error:  # noqa: BLE001  (nothing may reach the test runner's own code)
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    return pid, reader
