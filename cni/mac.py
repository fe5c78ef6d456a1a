"""The MAC of a pod's link (`mac`, `macPolicy`). All that we make up begin with 02: locally administered, unicast."""

from __future__ import annotations

import os
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address

    from cni.attachment import Key
    from cni.config import NetConf

    Address = IPv4Address | IPv6Address


def choose(conf: NetConf, key: Key, ips: Sequence[Address]) -> str:
    """The MAC that was asked for, else the one of the policy; without an address policy `ip` means `pod`."""
    if conf.mac:
        return conf.mac
    if conf.mac_policy == "random":
        return _local(os.urandom(5))
    if conf.mac_policy == "ip" and ips:
        return of_address(ips)
    return of_pod(conf.pod or key.container_id, key)


def of_address(ips: Sequence[Address]) -> str:
    """02:42 and the IPv4 address, as Docker has it; without one a checksum of the IPv6 address."""
    for ip in ips:
        if ip.version == 4:
            return _local(b"\x42" + ip.packed)
    return _local(b"\x42" + zlib.crc32(ips[0].packed).to_bytes(4, "big"))


def of_pod(pod: str, key: Key) -> str:
    """A hash of network, pod and interface name: the same pod has the same MAC wherever and whenever it runs."""
    import hashlib  # 4 ms, which the other policies need not pay

    return _local(hashlib.sha256(f"{key.network}/{pod}/{key.ifname}".encode()).digest()[:5])


def _local(rest: bytes) -> str:
    return (b"\x02" + rest).hex(":")
