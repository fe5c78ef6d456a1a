"""What shimlan in-process and the executable shimlan-ipam do alike: results of allocations, room, collection."""

from __future__ import annotations

from cni.errors import CniError, IOFailure, NotAvailable
from cni.files import without_waiting
from cni.protocol import IpConfig, Result, RouteConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set
    from typing import Any

    from ipam.config import IpamConf
    from ipam.store import Allocation, LeaseStore


def result_of(conf: IpamConf, allocation: Allocation) -> Result:
    """The IPAM result of an allocation; raises IOFailure when `resolvConf` cannot be read."""
    return Result(
        ips=tuple(IpConfig(leased.ip, leased.prefixlen, leased.gateway) for leased in allocation.addresses),
        routes=tuple(
            RouteConfig(route.dst, route.gw, route.mtu, route.advmss, route.priority, route.table, route.scope)
            for route in conf.routes
        ),
        dns=dns_of(conf.resolv_conf) if conf.resolv_conf else None,
    )


def dns_of(path: str) -> dict[str, Any]:
    """The `dns` of a result from a file like /etc/resolv.conf (resolv.conf(5)); raises IOFailure."""
    try:
        with open(path, encoding="utf-8", errors="replace", opener=without_waiting) as file:
            lines = [line.split() for line in file if not line.startswith(("#", ";"))]
    except OSError as error:
        raise IOFailure(f"ipam.resolvConf: cannot read {path}: {error.strerror}") from error
    dns: dict[str, Any] = {}
    for keyword, *values in filter(None, lines):
        if keyword == "nameserver" and values:
            dns.setdefault("nameservers", []).append(values[0])
        elif keyword == "domain" and values:
            dns["domain"] = values[0]
        elif keyword in ("search", "options"):
            dns.setdefault(keyword, []).extend(values)
    return dns


def check_room(leases: LeaseStore, conf: IpamConf) -> None:
    """Raise NotAvailable when a pool has no address left, whether at once or after a cooldown."""
    usages = iter(leases.usage(conf))
    for pool in conf.pools:
        ranges = [next(usages) for _ in pool]
        if not any(usage.free for usage in ranges):
            names = ", ".join(f"{usage.start}-{usage.end}" for usage in ranges)
            raise NotAvailable(f"network {conf.network} has no free address in {names}")


def collect(leases: LeaseStore, conf: IpamConf, valid: Set[tuple[str, str]]) -> list[CniError]:
    """Release what interfaces hold that are not among the valid (containerID, ifname)s; the errors on the way."""
    held = {(lease.container_id, lease.ifname) for lease in leases.leases(conf.network) if lease.state == "held"}
    errors = []
    for container_id, ifname in sorted(held - valid):
        try:
            leases.release(conf.network, container_id, ifname, conf.cooldown_seconds)
        except CniError as error:
            errors.append(error)
    return errors
