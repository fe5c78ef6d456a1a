"""Attachments to test with: facts of a host, a configuration, and what the plan makes of them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from cni.attachment import Attachment, Facts, InterfaceAddress, Key, Parent, plan
from cni.config import parse
from cni.protocol import IpConfig, Result, RouteConfig

KEY = Key("lan", "abc", "eth0")
MAC = "02:42:c0:00:02:64"
PARENT = Parent("eth0", 2, "62:7e:ca:df:73:d4", 1500)
HOST = InterfaceAddress(ip_address("192.0.2.10"), 24)
HOST6 = InterfaceAddress(ip_address("2001:db8::10"), 64)
FACTS = Facts(PARENT, (HOST, HOST6), (HOST, HOST6))
NETNS = ("/run/netns/abc", "4:1", 71)
IPAM = Result(
    ips=(
        IpConfig(ip_address("192.0.2.100"), 24, ip_address("192.0.2.1")),
        IpConfig(ip_address("2001:db8::100"), 64, ip_address("2001:db8::1")),
    ),
    routes=(RouteConfig(ip_network("0.0.0.0/0")), RouteConfig(ip_network("::/0"))),
)
V4 = Result(ips=IPAM.ips[:1], routes=IPAM.routes[:1])


def planned(facts: Facts = FACTS, ipam: Result = IPAM, **changes: Any) -> Attachment:
    """The attachment of a layer-2 configuration with some keys, and of what IPAM gave."""
    raw = {"cniVersion": "1.0.0", "name": "lan", "type": "shimlan", "dataDir": "/var/lib/x", **changes}
    return plan(KEY, parse(raw, {}), facts, MAC, ipam, NETNS)
