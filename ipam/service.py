"""What shimlan in-process and the executable shimlan-ipam do alike: results of allocations, and is there room?"""

from __future__ import annotations

from cni.errors import IOFailure, NotAvailable
from cni.files import without_waiting
from cni.protocol import IpConfig, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ipam.config import IpamConf
    from ipam.store import Allocation, LeaseStore


def result_of(conf: IpamConf, allocation: Allocation) -> Result:
    """The IPAM result of an allocation; raises IOFailure when `resolvConf` cannot be read."""
    return Result(
        ips=tuple(IpConfig(leased.ip, leased.prefixlen, leased.gateway) for leased in allocation.addresses),
        routes=conf.routes,
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
