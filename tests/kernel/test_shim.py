"""The shim: host and pods reach each other in every way that they need, and nobody on the LAN notices."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from cni.ctl.lab import CniFailed, Lab, Node, Pod
from tests.kernel.traces import network, stored, sysctls

FAMILIES = pytest.mark.parametrize("family", [4, 6])
# What kube-proxy (strictARP) and careful distributions set.
STRICT = {
    "net.ipv4.conf.all.rp_filter": 1,
    "net.ipv4.conf.all.arp_ignore": 1,
    "net.ipv4.conf.all.arp_announce": 2,
}
HOSTS = pytest.mark.parametrize("settings", [{}, STRICT], ids=["plain host", "strict host"])
NFT = pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed")

NODE_LOCAL = {4: "169.254.20.10", 6: "fd00:20::10"}
CLUSTER_IP = {4: "10.96.0.{}", 6: "fd00:96::{}"}
SERVICES = {"routes": ["10.96.0.0/16", "fd00:96::/112", "169.254.20.10", "fd00:20::10"]}


def shims(lab: Lab) -> list[str]:
    return [link["ifname"] for link in lab.host.links() if link["ifname"].startswith("shim")]


def settle(node: Node, settings: dict[str, int]) -> None:
    for name, value in settings.items():
        node.sysctl(name, value)


@contextmanager
def unseen(lab: Lab) -> Iterator[None]:
    """Nothing of the shim is on the wire, and the LAN knows the host by the MAC of its NIC only."""
    with lab.switch.sniff_port(lab.host) as seen:
        yield
        assert lab.host.pings(lab.outside)  # something has to be on the wire
        shim = bytes.fromhex(lab.host.link(shims(lab)[0])["address"].replace(":", ""))
    assert {frame.src for frame in seen.frames} >= {lab.host.mac}
    assert [frame.raw.hex() for frame in seen.frames if shim in frame.raw] == []
    learnt = {
        entry["lladdr"]
        for entry in lab.outside.neighbours()
        if entry["dst"] in (lab.host.address, lab.host.address6) and "lladdr" in entry
    }
    assert learnt <= {lab.host.mac}


# --- who reaches whom ------------------------------------------------------------------------------------------------


@HOSTS
@FAMILIES
def test_host_and_pods_reach_each_other_and_the_lan(lab: Lab, settings: dict[str, int], family: int) -> None:
    settle(lab.host, settings)
    a, b = (lab.pod(name, lab.conf(dual=True)) for name in "ab")
    with unseen(lab), ExitStack() as serving:
        for node in (lab.host, a, lab.outside):
            serving.enter_context(node.serve(80))
        assert lab.host.pings(a, family)
        assert a.pings(lab.host, family)
        assert a.pings(b, family)
        assert lab.outside.pings(lab.host, family)
        assert lab.outside.pings(a, family)
        assert a.pings(lab.outside, family)
        assert lab.host.pings(lab.outside, family)
        assert lab.host.fetch(a.where(family), 80) == f"a sees {lab.host.where(family)}"
        assert a.fetch(lab.host.where(family), 80) == f"host sees {a.where(family)}"
        assert a.fetch(lab.outside.where(family), 80) == f"outside sees {a.where(family)}"


@HOSTS
@FAMILIES
@pytest.mark.parametrize(
    "shim",
    [SERVICES, {"hostAddresses": ["auto", *NODE_LOCAL.values()]}],
    ids=["as a route", "as an address of the host"],
)
def test_pods_reach_a_node_local_service(lab: Lab, settings: dict[str, int], family: int, shim: dict[str, Any]) -> None:
    settle(lab.host, settings)
    node_local(lab)
    pod = lab.pod("a", lab.conf(dual=True, shim=shim))
    with unseen(lab), lab.host.serve(53, NODE_LOCAL[family]):
        assert pod.fetch(NODE_LOCAL[family], 53) == f"host sees {pod.where(family)}"
        assert lab.host.pings(pod, family)
    pod.check()


def node_local(lab: Lab) -> None:
    """A device of the host that carries the addresses of services on this node, as NodeLocal DNSCache makes it."""
    lab.host.ip_batch(
        "link add nodelocal type veth peer name unused",
        "link set nodelocal up",
        f"address add {NODE_LOCAL[4]}/32 dev nodelocal",
        f"address add {NODE_LOCAL[6]}/128 dev nodelocal nodad",
    )


@NFT
@HOSTS
@FAMILIES
def test_pods_reach_services_whatever_is_behind_them(lab: Lab, settings: dict[str, int], family: int) -> None:
    settle(lab.host, {**settings, "net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    a, b = (lab.pod(name, lab.conf(dual=True, shim=SERVICES)) for name in "ab")
    backends = [lab.host, b, a, lab.outside]
    translate(lab, family, backends)
    with unseen(lab), ExitStack() as serving:
        for node in backends:
            serving.enter_context(node.serve(8080))
        seen = [a.fetch(CLUSTER_IP[family].format(number), 80) for number in range(1, 5)]
    host = lab.host.where(family)
    assert seen[0] in (f"host sees {host}", f"host sees {a.where(family)}")
    assert seen[1:] == [f"{node.label} sees {host}" for node in (b, a, lab.outside)]
    a.check()


def translate(lab: Lab, family: int, backends: list[Node]) -> None:
    """What kube-proxy does: the n-th service address leads to port 8080 of the n-th backend."""
    ip, bracket = ("ip", "{}") if family == 4 else ("ip6", "[{}]")
    pairs = [
        (CLUSTER_IP[family].format(number), bracket.format(node.where(family)))
        for number, node in enumerate(backends, 1)
    ]
    rules = "".join(f"{ip} daddr {service} tcp dport 80 dnat to {backend}:8080\n" for service, backend in pairs)
    hook = "type nat hook prerouting priority dstnat;"
    lab.host.run("nft", "-f", "-", input=f"table {ip} services {{\nchain prerouting {{\n{hook}\n{rules}}}\n}}\n")


@NFT
def test_without_source_nat_only_the_host_answers_for_a_service(lab: Lab) -> None:
    settle(lab.host, {"net.ipv4.ip_forward": 1})
    pod = lab.pod("a", lab.conf(shim={**SERVICES, "snat": False}))
    translate(lab, 4, [lab.host, lab.outside])
    with lab.host.serve(8080), lab.outside.serve(8080):
        assert pod.fetch("10.96.0.1", 80) == f"host sees {pod.address}"
        assert not pod.connects("10.96.0.2", 80, wait=0.3)
    assert "shimlan" not in network(lab.host)["nftables"]


@FAMILIES
def test_without_the_shim_nothing_of_this_works(lab: Lab, family: int) -> None:
    pod = lab.pod("a", lab.conf(dual=True, shim=False))
    assert shims(lab) == []
    assert [entry["name"] for entry in pod.result["interfaces"]] == ["eth0"]
    assert not pod.pings(lab.host, family, wait=0.2)
    assert not lab.host.pings(pod, family, wait=0.2)
    assert pod.pings(lab.outside, family)


@FAMILIES
def test_a_pod_of_another_subnet_reaches_the_host(lab: Lab, family: int) -> None:
    settle(lab.host, STRICT)
    ranges = [[{"subnet": "198.51.100.0/24"}], [{"subnet": "2001:db8:1::/64"}]]
    lab.outside.ip_batch("address add 198.51.100.1/24 dev eth0", "address add 2001:db8:1::1/64 dev eth0 nodad")
    pod = lab.pod("a", lab.conf(dual=True, ipam={"ranges": ranges}))
    with unseen(lab):
        assert pod.pings(lab.host, family)
        assert lab.host.pings(pod, family)
        assert pod.pings(lab.outside, family)


@FAMILIES
def test_a_stopped_pods_address_serves_the_next_one_at_once(lab: Lab, family: int) -> None:
    conf = lab.conf(dual=True, macPolicy="random", ipam={"cooldownSeconds": 0})
    first = lab.pod("first", conf)
    assert lab.host.pings(first, family)
    assert lab.outside.pings(first, family)
    first.delete()
    second = lab.pod("second", conf, CNI_ARGS=f"IP={first.address},{first.address6}")
    assert second.where(family) == first.where(family)
    assert lab.host.pings(second, family)
    # The kernel sends its advertisement from a work queue, so the first packet may still go to the old MAC.
    assert any(lab.outside.pings(second, family, wait=0.3) for _ in range(5))


@FAMILIES
def test_it_is_silent_on_a_host_that_forwards(lab: Lab, family: int) -> None:
    """A router tells the LAN by MLD that it is one (RFC 3810): when a link comes up, when it becomes one."""
    settle(lab.host, {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    with unseen(lab):
        pod = lab.pod("a", lab.conf(dual=True))
        settle(lab.host, {"net.ipv6.conf.all.forwarding": 0})
        settle(lab.host, {"net.ipv6.conf.all.forwarding": 1})
        assert lab.host.pings(pod, family)
        time.sleep(1.2)  # a report waits for up to a second


@FAMILIES
def test_what_the_host_sends_to_a_pod_that_comes_and_goes_stays_inside(lab: Lab, family: int) -> None:
    keeper = lab.pod("keeper", lab.conf(dual=True))
    pod = lab.container("a", lab.conf(dual=True, ipam={"cooldownSeconds": 0}), CNI_ARGS="IP=192.0.2.150,2001:db8::150")
    with unseen(lab), sending(lab.host, "192.0.2.150" if family == 4 else "2001:db8::150"):
        for _ in range(4):
            pod.add()
            pod.delete()
    assert lab.host.pings(keeper, family)


@contextmanager
def sending(node: Node, address: str) -> Iterator[None]:
    """Send datagrams to an address all the time, whoever has it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    stop = threading.Event()

    def send(datagrams: socket.socket) -> None:
        while not stop.wait(0.0005):
            with suppress(OSError):
                datagrams.sendto(b"anybody there?", (address, 9))

    with node.inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as datagrams:
        sender = threading.Thread(target=send, args=(datagrams,))
        sender.start()
        yield
        stop.set()
        sender.join()


# --- which addresses of the host -------------------------------------------------------------------------------------


def test_all_addresses_of_the_parent_are_reached(lab: Lab) -> None:
    lab.host.ip_batch("address add 192.0.2.11/24 dev eth0", "address add 198.51.100.9/24 dev eth0")
    pod = lab.pod("a")
    for address in ("192.0.2.10", "192.0.2.11", "198.51.100.9"):
        assert pod.pings(address)
    pod.check()


def test_the_host_speaks_to_a_pod_from_the_pods_subnet(lab: Lab) -> None:
    lab.host.ip_batch(
        "address flush dev eth0", "address add 198.51.100.9/24 dev eth0", "address add 192.0.2.10/24 dev eth0"
    )
    pod = lab.pod("a")
    with pod.serve(80):
        assert lab.host.fetch(pod.address, 80) == "a sees 192.0.2.10"


def test_only_the_addresses_that_were_named_are_reached(lab: Lab) -> None:
    lab.host.ip("address", "add", "192.0.2.11/24", "dev", "eth0")
    pod = lab.pod("a", lab.conf(shim={"hostAddresses": ["192.0.2.11"]}))
    assert pod.pings("192.0.2.11")
    assert not pod.pings("192.0.2.10", wait=0.2)
    with pod.serve(80):
        assert lab.host.fetch(pod.address, 80) == "a sees 192.0.2.11"


def test_a_parent_without_address_serves_a_host_that_is_reached_elsewhere(lab: Lab) -> None:
    lab.host.ip_batch(
        "address flush dev eth0",
        "link add mgmt type veth peer name unused",
        "link set mgmt up",
        "link set unused up",
        "address add 203.0.113.5/24 dev mgmt",
        "route add default via 203.0.113.1",
    )
    pod = lab.pod("a")
    assert pod.pings("203.0.113.5")
    assert lab.host.pings(pod)
    with pod.serve(80):
        assert lab.host.fetch(pod.address, 80) == "a sees 203.0.113.5"
    pod.check()


def test_a_host_without_any_address_needs_no_shim(lab: Lab) -> None:
    lab.host.ip("address", "flush", "dev", "eth0")
    pod = lab.pod("a")
    assert shims(lab) == []
    assert pod.pings(lab.outside)
    pod.check()


def test_a_host_without_ipv6_leaves_the_pods_ipv6_alone(lab: Lab) -> None:
    lab.host.ip("-6", "address", "flush", "dev", "eth0", "scope", "global")
    pod = lab.pod("a", lab.conf(dual=True))
    assert pod.pings(lab.host)
    assert lab.host.pings(pod)
    assert pod.pings(lab.outside, 6)
    assert not any(route["dst"] == pod.address6 for route in lab.host.routes())
    pod.check()


def test_a_host_with_ipv6_switched_off_gets_its_shim(lab: Lab) -> None:
    settle(lab.host, {"net.ipv6.conf.all.disable_ipv6": 1, "net.ipv6.conf.default.disable_ipv6": 1})
    pod = lab.pod("a", lab.conf(dual=True))
    assert lab.host.pings(pod)
    assert pod.pings(lab.outside, 6)
    pod.check()
    pod.delete()
    assert shims(lab) == []


def test_a_service_of_a_family_that_the_host_lacks_is_refused(lab: Lab) -> None:
    lab.host.ip("-6", "address", "flush", "dev", "eth0", "scope", "global")
    with pytest.raises(CniFailed, match=r"shim\.routes: fd00:96::/112 needs an IPv6 address of the host") as failure:
        lab.pod("a", lab.conf(dual=True, shim={"routes": ["fd00:96::/112"]}))
    assert failure.value.code == 7
    assert shims(lab) == stored(lab) == []


# --- the shim's life -------------------------------------------------------------------------------------------------


def test_it_comes_with_the_first_pod_and_goes_with_the_last(lab: Lab) -> None:
    before = network(lab.host)
    a = lab.pod("a")
    (name,) = shims(lab)
    index = lab.host.link(name)["ifindex"]
    b = lab.pod(
        "b", lab.conf(name="second", ipam={"ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.200"}]]})
    )
    assert lab.host.link(name)["ifindex"] == index
    assert lab.host.pings(a)
    assert lab.host.pings(b)
    a.delete()
    assert lab.host.pings(b)
    assert not any(route["dst"] == a.address for route in lab.host.routes())
    b.delete()
    assert network(lab.host) == before


def test_it_is_what_it_promises_to_be(lab: Lab) -> None:
    parent = lab.host.link("eth0")
    lab.pod("a", lab.conf(dual=True))
    link = lab.host.link(f"shim{parent['ifindex']}")
    assert {"UP", "NOARP"} <= set(link["flags"])
    assert "MULTICAST" not in link["flags"]
    assert link["linkinfo"]["info_data"]["mode"] == "bridge"
    assert link["address"] == f"02:5e{parent['address'][5:]}"
    assert link["mtu"] == parent["mtu"]
    assert link["ifalias"] == "shimlan shim of eth0"
    (row,) = lab.host.ip_json("address", "show", "dev", link["ifname"])
    assert row["addr_info"] == []
    conf = f"conf.{link['ifname']}"
    assert [lab.host.sysctl(f"net.ipv6.{conf}.{key}") for key in ("accept_ra", "autoconf")] == ["0", "0"]
    assert [lab.host.sysctl(f"net.ipv4.{conf}.{key}") for key in ("rp_filter", "arp_filter")] == ["1", "1"]


@HOSTS
def test_nothing_else_on_the_host_changes(lab: Lab, settings: dict[str, int]) -> None:
    settle(lab.host, settings)
    lab.host.run("nft", "add", "table", "inet", "foreign", check=False)
    before, switches = network(lab.host), sysctls(lab.host, "eth0", "lo")
    pod = lab.pod("a", lab.conf(dual=True, shim=SERVICES))
    assert sysctls(lab.host, "eth0", "lo") == switches
    during, shim = network(lab.host), shims(lab)[0]
    assert [link for link in during["links"] if link["ifname"] != shim] == before["links"]
    assert [route for route in during["routes"] if route["dev"] != shim] == before["routes"]
    assert {entry["dev"] for entry in during["neighbours"]} == {shim}
    assert during["rules"] == before["rules"]
    pod.delete()
    assert network(lab.host) == before
    assert sysctls(lab.host, "eth0", "lo") == switches


@NFT
def test_the_nftables_table_goes_with_the_last_pod_that_needs_it(lab: Lab) -> None:
    lab.host.run("nft", "add", "table", "inet", "foreign")
    a, b = (lab.pod(name, lab.conf(dual=True, shim=SERVICES)) for name in "ab")
    lab.pod("c")
    rules = lab.host.run("nft", "list", "table", "inet", "shimlan").stdout
    assert rules.count("snat ip to 192.0.2.10") == rules.count("snat ip6 to 2001:db8::10") == 2
    a.delete()
    assert lab.host.run("nft", "list", "table", "inet", "shimlan").stdout == rules
    b.delete()
    assert lab.host.run("nft", "list", "tables").stdout.splitlines() == ["table inet foreign"]


def test_a_shim_that_was_deleted_comes_back_with_the_next_pod_for_all_of_them(lab: Lab) -> None:
    a = lab.pod("a", lab.conf(dual=True))
    lab.host.ip("link", "del", shims(lab)[0])
    b = lab.pod("b", lab.conf(dual=True))
    for pod in (a, b):
        assert lab.host.pings(pod)
        assert pod.pings(lab.host, 6)
        pod.check()


def test_a_shim_that_was_set_down_comes_back_with_the_next_pod_for_all_of_them(lab: Lab) -> None:
    a = lab.pod("a", lab.conf(dual=True))
    lab.host.ip("link", "set", shims(lab)[0], "down")
    lab.pod("b", lab.conf(dual=True))
    a.check()
    assert a.pings(lab.host)


def test_a_shim_that_was_not_finished_is_made_anew(lab: Lab) -> None:
    mac = f"02:5e{lab.host.mac[5:]}"
    lab.host.ip("link", "add", "shim2", "link", "eth0", "address", mac, "type", "macvlan", "mode", "bridge")
    pod = lab.pod("a", lab.conf(dual=True))
    assert lab.host.pings(pod)
    pod.check()
    pod.delete()
    assert shims(lab) == []


@pytest.mark.parametrize("kind", ["veth peer name unused", "bridge", "macvlan mode private"])
@pytest.mark.parametrize("alias", ["", "mine"])
def test_a_link_that_is_only_called_like_one_is_left_alone(lab: Lab, kind: str, alias: str) -> None:
    lab.host.ip_batch(f"link add shim2 link eth0 type {kind}", f"link set shim2 alias '{alias}'")
    before = network(lab.host)
    with pytest.raises(CniFailed, match="shim2 exists and is not ours: rename it") as failure:
        lab.pod("a")
    assert failure.value.code == 103
    assert network(lab.host) == before
    assert stored(lab) == []


def test_a_pod_is_not_stopped_by_routes_that_others_made(lab: Lab) -> None:
    lab.host.ip("route", "add", "192.0.2.100/32", "dev", "eth0")
    before = network(lab.host)
    pod = lab.pod("a")
    assert lab.host.pings(pod)
    pod.check()
    pod.delete()
    assert network(lab.host) == before


def test_large_packets_pass_between_host_and_pod(lab: Lab) -> None:
    pod: Pod = lab.pod("a", lab.conf(mtu=1400))
    assert lab.host.pings(pod, size=1400 - 28)
    assert pod.pings(lab.host, size=1400 - 28)


def test_it_follows_the_parents_mtu_in_both_directions(lab: Lab) -> None:
    """The kernel takes children down with their parent, and leaves them there (macvlan_device_event)."""
    first = lab.pod("first")
    lab.host.ip("link", "set", "eth0", "mtu", "1400")
    lab.host.ip("link", "set", "eth0", "mtu", "1500")
    (shim,) = shims(lab)
    assert lab.host.link(shim)["mtu"] == 1400
    second = lab.pod("second")
    assert lab.host.link(shim)["mtu"] == 1500
    assert lab.host.pings(first)
    second.check()
    lab.host.ip("link", "del", shim)
    third = lab.pod("third")
    assert all(lab.host.pings(pod) for pod in (first, second, third))
