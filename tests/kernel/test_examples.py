"""The examples, attached as they stand: only the place of their data is another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.lab import Lab
from tests.kernel.agents import Serve

EXAMPLES = Path(__file__).parents[2] / "examples"
# dhcp.conflist needs the daemon of the reference plugin dhcp.
ON_THE_LAN = ("chained", "containerd", "dual-stack", "podman", "services")


@pytest.fixture
def lan(serve: Serve) -> Iterator[Lab]:
    lab = Lab(host=("192.168.1.10/24", "fd00:1::10/64"), outside=("192.168.1.1/24", "fd00:1::1/64"))
    with lab, serve(lab):
        lab.host.ip("address", "add", "169.254.20.10/32", "dev", "lo")
        yield lab


def example(name: str, lab: Lab) -> dict[str, Any]:
    conflist: dict[str, Any] = json.loads((EXAMPLES / f"{name}.conflist").read_text())
    for plugin in conflist["plugins"]:
        try:
            lab.runtime().executable(plugin["type"])
        except FileNotFoundError as missing:
            pytest.skip(str(missing))
        if plugin["type"] == "shimlan":
            plugin["dataDir"] = lab.data_dir
        if plugin.get("ipam", {}).get("type") == "shimlan-ipam":
            plugin["ipam"]["dataDir"] = lab.data_dir
    return conflist


@pytest.mark.parametrize("name", ON_THE_LAN)
def test_pods_host_and_lan_reach_each_other(lan: Lab, name: str) -> None:
    a, b = (lan.pod(label, example(name, lan)) for label in "ab")
    assert a.pings(b)
    assert a.pings(lan.outside)
    assert a.pings(lan.host)
    assert lan.host.pings(a)
    a.check()
    a.delete()
    b.delete()
    assert {link["ifname"] for link in lan.host.links()} == {"lo", "eth0"}


def test_without_ipam_there_is_a_wire(lan: Lab) -> None:
    pod = lan.pod("a", example("layer2", lan))
    pod.ip("address", "add", "192.168.1.77/24", "dev", "eth0")
    assert lan.outside.pings("192.168.1.77")
    assert pod.mac == "02:00:00:00:00:51"


def test_our_ipam_serves_the_reference_bridge(lan: Lab) -> None:
    a, b = (lan.pod(label, example("bridge", lan)) for label in "ab")
    assert a.address == "10.88.0.2"
    assert a.pings(b)
    a.delete()
    b.delete()
