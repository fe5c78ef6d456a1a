"""Probes on a real LAN: real neighbours answer, others forge."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from cni.ctl.lab import Lab
from cni.ctl.node import Node
from cni.errors import ParentUnusable
from cni.probe import claims, interest, probe, who_has

pytestmark = pytest.mark.without_agent("no plugin is called")

FREE = ("192.0.2.77", "2001:db8::77")
NO_CAPABILITY = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")


def probed(node: Node, address: str, timeout_ms: int = 100, retries: int = 2, dev: str = "eth0") -> str | None:
    """The answer to a probe that a machine of the lab sends."""
    mac = node.link(dev)["address"]
    return node.inside(lambda: who_has(dev, mac, ip_address(address), timeout_ms, retries))


def octets(node: Node) -> bytes:
    """The MAC of a machine."""
    return bytes.fromhex(node.mac.replace(":", ""))


@contextmanager
def sending(node: Node, frame: bytes) -> Iterator[None]:
    """A machine sends one frame again and again."""
    done = threading.Event()
    wire = node.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    wire.bind(("eth0", 0))

    def send() -> None:
        while not done.wait(0.005):
            wire.send(frame)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        done.set()
        sender.join()
        wire.close()


@pytest.mark.parametrize("family", [4, 6])
def test_an_address_in_use_is_answered_at_once(lab: Lab, family: int) -> None:
    before = time.monotonic()
    assert probed(lab.host, lab.outside.where(family), timeout_ms=5000) == lab.outside.mac
    assert time.monotonic() - before < 4


@pytest.mark.parametrize("family", [4, 6])
def test_nobody_learns_anything_from_a_probe(lab: Lab, family: int) -> None:
    lab.host.ip("neigh", "flush", "all")
    lab.outside.ip("neigh", "flush", "all")
    probed(lab.host, lab.outside.where(family))
    assert lab.outside.neighbours() == lab.host.neighbours() == []


@pytest.mark.parametrize("address", FREE)
def test_a_free_address_is_asked_for_so_many_times(lab: Lab, address: str) -> None:
    before = time.monotonic()
    asked = probe(octets(lab.host), ip_address(address))
    with lab.outside.sniff(wanted=lambda frame: frame.raw == asked) as seen:
        assert probed(lab.host, address, timeout_ms=50, retries=3) is None
    assert len(seen.frames) == 3
    assert time.monotonic() - before >= 0.15


@pytest.mark.parametrize("address", FREE)
def test_somebody_else_probing_for_it_counts(lab: Lab, address: str) -> None:
    with sending(lab.outside, probe(octets(lab.outside), ip_address(address))):
        assert probed(lab.host, address, timeout_ms=1000) == lab.outside.mac


@pytest.mark.parametrize("address", FREE)
def test_our_own_probe_back_from_the_lan_does_not_count(lab: Lab, address: str) -> None:
    with sending(lab.outside, probe(octets(lab.host), ip_address(address))):
        assert probed(lab.host, address) is None


def test_who_has_not_finished_detecting_duplicates_gives_the_address_up(lab: Lab) -> None:
    # RFC 4862, section 5.4.3: two that want the same address, and neither may have it.
    lab.outside.sysctl("net.ipv6.conf.eth0.dad_transmits", 3)
    lab.outside.ip("address", "add", f"{FREE[1]}/64", "dev", "eth0")
    assert probed(lab.host, FREE[1]) is None
    assert FREE[1] in lab.outside.ip("-6", "address", "show", "dev", "eth0", "dadfailed")


def test_frames_of_another_vlan_do_not_count(lab: Lab) -> None:
    claim = probe(octets(lab.outside), ip_address(FREE[0]))
    assert claims(claim, octets(lab.host), ip_address(FREE[0]))
    with sending(lab.outside, claim[:12] + b"\x81\x00\x00\x05" + claim[12:]):
        assert probed(lab.host, FREE[0]) is None


def test_a_filter_for_multicast_lets_other_probes_pass(lab: Lab) -> None:
    # A macvlan filters multicast as a NIC does; a veth does not.
    lab.host.ip("link", "add", "strict", "link", "eth0", "type", "macvlan", "mode", "private")
    lab.host.ip("link", "set", "strict", "up")
    with sending(lab.outside, probe(octets(lab.outside), ip_address(FREE[1]))):
        assert probed(lab.host, FREE[1], timeout_ms=1000, dev="strict") == lab.outside.mac


@pytest.mark.parametrize("address", FREE)
def test_the_kernel_filters_a_busy_lan(lab: Lab, address: str) -> None:
    with ThreadPoolExecutor() as pool:
        probing = pool.submit(probed, lab.host, address, 500, 1)
        filters: list[str] = []
        while not filters and not probing.done():
            filters = re.findall(r"bpf filter \((\d+)\)", lab.host.run("ss", "-0", "-b").stdout)
    assert filters == [str(len(interest(ip_address(address))) // 8)]


@pytest.mark.parametrize("address", FREE)
def test_an_interface_that_is_down_is_an_error(lab: Lab, address: str) -> None:
    lab.host.ip("link", "set", "eth0", "down")
    with pytest.raises(ParentUnusable, match="eth0 is down"):
        probed(lab.host, address)


@pytest.mark.parametrize("address", FREE)
def test_a_missing_interface_is_an_error(lab: Lab, address: str) -> None:
    with pytest.raises(ParentUnusable, match="no interface eth7"):
        lab.host.inside(lambda: who_has("eth7", "02:00:00:00:00:01", ip_address(address), 50, 1))


def test_a_missing_capability_is_named(lab: Lab) -> None:
    script = (
        "from ipaddress import ip_address; from cni.probe import who_has;"
        f"who_has('eth0', '{lab.host.mac}', ip_address('{FREE[0]}'), 50, 1)"
    )
    done = lab.host.run(*NO_CAPABILITY, sys.executable, "-c", script, check=False)
    assert "KernelRefused: detectConflicts needs CAP_NET_RAW" in done.stderr
