"""Configurations for the tests of the parsers, and means to change one value in them."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

Place = tuple[str | int, ...]

MINIMAL: dict[str, Any] = {"cniVersion": "1.0.0", "name": "lan", "type": "shimlan"}

DUAL_STACK: dict[str, Any] = {
    **MINIMAL,
    "ipam": {
        "type": "shimlan-ipam",
        "ranges": [[{"subnet": "192.168.1.0/24"}], [{"subnet": "fd00::/64", "gateway": "fd00::ff"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}

FULL: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "lan",
    "type": "shimlan",
    "master": "eth0",
    "linkInContainer": False,
    "mode": "bridge",
    "sourceMacs": [],
    "linkType": "macvtap",
    "vlan": 100,
    "mtu": 1400,
    "mac": "02:42:0A:00:00:01",
    "macPolicy": "pod",
    "bcqueuelen": 2000,
    "bclim": -1,
    "shim": {
        "hostAddresses": ["auto", "10.0.0.9"],
        "routes": ["10.96.0.0/12", "169.254.20.10"],
        "snat": False,
    },
    "offload": "auto",
    "announce": False,
    "detectConflicts": {"timeoutMs": 50, "retries": 3},
    "dataDir": "/var/lib/a",
    "logLevel": "warn",
    "logFile": "/var/log/shimlan.log",
    "capabilities": {"ips": True, "mac": True},
    "statusReportsExhaustion": True,
    "dns": {"nameservers": ["10.0.0.1"], "search": ["lan"], "domain": "lan", "options": ["ndots:2"]},
    "runtimeConfig": {
        "ips": ["10.0.0.7/24"],
        "mac": "",
        "ipRanges": [[{"subnet": "172.16.0.0/24"}]],
    },
    "args": {"cni": {"ips": ["10.0.0.8"], "mac": ""}},
    "prevResult": {"cniVersion": "1.0.0"},
    "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}],
    "ipam": {
        "type": "shimlan-ipam",
        "subnet": "10.1.0.0/24",
        "rangeStart": "10.1.0.10",
        "rangeEnd": "10.1.0.20",
        "gateway": "10.1.0.254",
        "ranges": [
            [
                {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.10", "rangeEnd": "10.0.0.99", "gateway": "10.0.0.1"},
                {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.110", "rangeEnd": "10.0.0.199"},
            ],
            [{"subnet": "fd00::/64"}],
        ],
        "exclude": ["10.0.0.16/28", "10.0.0.77"],
        "reservations": [
            {"pod": "default/db-0", "ips": ["10.0.0.50", "fd00::50"]},
            {"mac": "02:00:00:00:00:07", "ips": ["10.0.0.7"]},
        ],
        "sticky": "pod",
        "cooldownSeconds": 30,
        "routes": [
            {
                "dst": "10.9.0.1/16",
                "gw": "10.0.0.2",
                "mtu": 1300,
                "advmss": 1200,
                "priority": 5,
                "table": 100,
                "scope": 0,
            },
            {"dst": "::/0"},
        ],
        "resolvConf": "/etc/resolv.conf",
        "dataDir": "/var/lib/b",
        "store": "node",
    },
}

WORDS = st.sampled_from(["", "x", "auto", "source", "vepa", "10.0.0.0/8", "10.0.0.3", "::1", "fd00::/64", "/a", "a/b"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)


def places(value: object) -> list[Place]:
    """The paths of all values in a configuration, its own first."""
    if isinstance(value, dict):
        items: list[tuple[str | int, object]] = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    return [(), *((key, *rest) for key, inner in items for rest in places(inner))]


def changed(base: dict[str, Any], place: Place, value: object) -> Any:
    """A copy of a configuration with another value at one place."""
    if not place:
        return value
    copied: Any = copy.deepcopy(base)
    inner = copied
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return copied
