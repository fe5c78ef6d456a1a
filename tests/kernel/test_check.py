"""CHECK: it finds each thing that somebody broke and names it, and nothing that is not broken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any

import pytest

from cni import config
from cni.attachment import plan_nothing
from cni.ctl.lab import CniFailed, Lab, Pod
from cni.database import Database, boot_id
from cni.locks import Locks
from cni.state import Records
from ipam.store import LeaseStore

Breakage = Callable[[Lab, Pod], object]
CONF: dict[str, Any] = {"dual": True, "mtu": 1400, "shim": {"routes": ["10.96.0.0/16"]}}


def in_pod(*lines: str) -> Breakage:
    return lambda lab, pod: pod.ip_batch(*lines)


def on_host(*lines: str) -> Breakage:
    return lambda lab, pod: lab.host.ip_batch(*lines)


def unmended(lab: Lab) -> AbstractContextManager[None]:
    """A time in which an agent, if there is one, cannot mend what is broken."""
    return Locks(lab.data_dir).everything()


def lose_lease(lab: Lab, pod: Pod) -> None:
    database = Database(lab.data_dir)
    LeaseStore(database).release("lan", pod.container_id, pod.dev, 0)
    database.close()


BROKEN: dict[str, tuple[Breakage, tuple[str, ...]]] = {
    "address": (in_pod("address del 192.0.2.100/24 dev eth0"), ("pod: ip addr add 192.0.2.100/24 dev eth0",)),
    "IPv6 address": (
        in_pod("address del 2001:db8::100/64 dev eth0"),
        ("pod: ip addr add 2001:db8::100/64 dev eth0 nodad",),
    ),
    "prefix length": (
        in_pod("address del 192.0.2.100/24 dev eth0", "address add 192.0.2.100/25 dev eth0"),
        ("pod: ip addr add 192.0.2.100/24",),
    ),
    "default route": (in_pod("route del default"), ("pod: ip route prepend default via 192.0.2.1 dev eth0",)),
    "IPv6 default route": (
        in_pod("route del default via 2001:db8::1 dev eth0"),
        ("pod: ip route prepend default via 2001:db8::1 dev eth0",),
    ),
    "gateway": (
        in_pod("route replace default via 192.0.2.9 dev eth0"),
        ("default via 192.0.2.1 dev eth0 (it is default via 192.0.2.9",),
    ),
    "route to the host": (in_pod("route del 192.0.2.10/32"), ("pod: ip route prepend 192.0.2.10/32",)),
    "service route": (in_pod("route del 10.96.0.0/16"), ("pod: ip route prepend 10.96.0.0/16 via 192.0.2.10",)),
    "MTU": (in_pod("link set eth0 mtu 1300"), ("pod: ip link set eth0 mtu 1400 (it is 1300)",)),
    "MAC": (
        in_pod("link set eth0 address 02:00:00:00:00:66"),
        ("pod: ip link set eth0 address 02:42:c0:00:02:64 (it is 02:00:00:00:00:66)",),
    ),
    "mode": (in_pod("link set eth0 type macvlan mode private"), ("pod: ip link set eth0 mode bridge (it is private)",)),
    "link down": (in_pod("link set eth0 down"), ("pod: ip link set eth0 up",)),
    "link gone": (in_pod("link del eth0"), ("pod: ip link add eth0 link",)),
    "link of another kind": (
        in_pod("link del eth0", "link add eth0 type bridge"),
        ("pod: ip link set eth0 type macvlan (it is bridge)",),
    ),
    "neighbour in the pod": (
        in_pod("neigh del 192.0.2.10 dev eth0"),
        ("pod: ip neigh replace 192.0.2.10 lladdr 02:5e",),
    ),
    "neighbour that may age": (
        in_pod("neigh replace 192.0.2.10 lladdr 02:00:00:00:00:66 dev eth0 nud reachable"),
        ("pod: ip neigh replace 192.0.2.10 lladdr 02:5e",),
    ),
    "host route": (on_host("route del 192.0.2.100/32"), ("host: ip route prepend 192.0.2.100/32 dev shim2",)),
    "source of the host route": (
        on_host("route replace 192.0.2.100/32 dev shim2 proto 174 scope link"),
        ("src 192.0.2.10",),
    ),
    "IPv6 host route": (
        on_host("route del 2001:db8::100/128"),
        ("host: ip route prepend 2001:db8::100/128 dev shim2",),
    ),
    "host neighbour": (
        on_host("neigh del 192.0.2.100 dev shim2"),
        ("host: ip neigh replace 192.0.2.100 lladdr 02:42:c0:00:02:64 dev shim2",),
    ),
    "wrong host neighbour": (
        on_host("neigh replace 192.0.2.100 lladdr 02:00:00:00:00:66 dev shim2 nud permanent"),
        ("host: ip neigh replace 192.0.2.100 lladdr 02:42:c0:00:02:64 dev shim2",),
    ),
    "shim gone": (on_host("link del shim2"), ("host: ip link add shim2 link", "host: ip route prepend")),
    "shim down": (on_host("link set shim2 down"), ("host: ip link set shim2 arp off multicast off up",)),
    "shim with ARP": (on_host("link set shim2 arp on"), ("host: ip link set shim2 arp off (it is on)",)),
    "shim's MAC": (on_host("link set shim2 address 02:00:00:00:00:66"), ("host: ip link set shim2 address 02:5e",)),
    "host's address": (
        on_host("address del 192.0.2.10/24 dev eth0"),
        ("host: ip route prepend 192.0.2.100/32 dev shim2",),
    ),
    "lease": (lose_lease, ("ipam: no lease of 192.0.2.100", "ipam: no lease of 2001:db8::100")),
    "two things": (in_pod("route del default", "link set eth0 mtu 1300"), ("default via 192.0.2.1", "mtu 1400")),
}


@pytest.mark.parametrize(("breakage", "words"), BROKEN.values(), ids=BROKEN)
def test_what_was_broken_is_found_and_named(lab: Lab, breakage: Breakage, words: tuple[str, ...]) -> None:
    pod = lab.pod("a", lab.conf(**CONF))
    pod.check()
    with unmended(lab):
        breakage(lab, pod)
        with pytest.raises(CniFailed) as failure:
            pod.check()
    assert failure.value.code == 104
    assert [word for word in words if word not in failure.value.details] == []


def test_an_mtu_that_was_lowered_with_the_parents_is_no_difference(lab: Lab) -> None:
    pod = lab.pod("a", lab.conf(**CONF))
    with unmended(lab):
        lab.host.ip("link", "set", "eth0", "mtu", "1300")
        pod.check()
        lab.host.ip("link", "set", "eth0", "mtu", "1500")
        with pytest.raises(CniFailed) as failure:
            pod.check()
    assert "pod: ip link set eth0 mtu 1400 (it is 1300)" in failure.value.details


def test_an_add_that_was_killed_before_it_had_planned_anything_is_told(lab: Lab) -> None:
    """With a VLAN that is recorded: who is going to use the device, and nothing else."""
    pod = lab.pod("a")
    with unmended(lab), closing(Database(lab.data_dir)) as database:
        store = Records(database, boot_id())
        (made,) = store.all()
        store.put(plan_nothing(made.key, config.parse(pod.conf, {}), (made.netns, made.netns_id, made.netns_cookie)))
        with pytest.raises(CniFailed) as failure:
            pod.check()
        store.put(made)
    assert failure.value.code == 104
    assert "killed before it had made anything" in failure.value.details


@pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed")
@pytest.mark.parametrize(
    "command", ["flush ruleset", "delete table inet shimlan", "flush chain inet shimlan postrouting"]
)
def test_lost_source_nat_is_found(lab: Lab, command: str) -> None:
    pod = lab.pod("a", lab.conf(**CONF))
    with unmended(lab):
        lab.host.run("nft", *command.split())
        with pytest.raises(CniFailed) as failure:
            pod.check()
    assert "source NAT" in failure.value.details


# What containers, other plugins and operators do.
HARMLESS: dict[str, Breakage] = {
    "more addresses": in_pod("address add 192.0.2.222/24 dev eth0", "address add 2001:db8::222/64 dev eth0"),
    "more routes": in_pod("route add 203.0.113.0/24 via 192.0.2.1", "route add default via 192.0.2.9 metric 500"),
    "rival routes": in_pod("route append default via 192.0.2.9", "route append 192.0.2.10/32 dev lo"),
    "a second hop": in_pod("route append default via 2001:db8::9 dev eth0"),
    "more links": in_pod("link add net1 type veth peer name net2"),
    "more neighbours": in_pod("neigh add 192.0.2.33 lladdr 02:00:00:00:00:33 dev eth0"),
    "another alias": in_pod("link set eth0 alias mine"),
    "a queue": in_pod("link set eth0 txqueuelen 7"),
    "announcing no more": lambda lab, pod: pod.sysctl("net.ipv4.conf.eth0.arp_notify", 0),
    "another address of the host": on_host("address add 192.0.2.11/24 dev eth0"),
    "a renamed parent": on_host("link set eth0 down", "link set eth0 name lan0", "link set lan0 up"),
    "foreign nftables": lambda lab, pod: lab.host.run("nft", "add", "table", "inet", "foreign", check=False),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_others_add_is_no_difference(lab: Lab, change: Breakage) -> None:
    pod = lab.pod("a", lab.conf(**CONF))
    change(lab, pod)
    pod.check()


def test_another_network_on_the_parent_is_no_difference(lab: Lab) -> None:
    first = lab.pod("a", lab.conf(bclim=50, bcqueuelen=1200))
    second = lab.conf(name="second", bclim=60, bcqueuelen=2000, ipam={"ranges": [[{"subnet": "198.51.100.0/24"}]]})
    lab.pod("b", second)
    first.check()


def test_routes_with_their_options_are_compared(lab: Lab) -> None:
    routes = [
        {"dst": "203.0.113.0/24", "mtu": 1300, "advmss": 1200, "priority": 50, "table": 100, "scope": 0},
        {"dst": "198.51.100.0/24", "scope": 253},
        {"dst": "2001:db8:9::/48", "priority": 7},
    ]
    pod = lab.pod("a", lab.conf(dual=True, cniVersion="1.1.0", ipam={"routes": routes}))
    pod.check()
    change = "route replace 203.0.113.0/24 via 192.0.2.1 metric 50 table 100 mtu 1200"
    with unmended(lab):
        pod.ip(*change.split())
        with pytest.raises(CniFailed) as failure:
            pod.check()
    assert "metric 50 table 100 mtu 1300" in failure.value.details


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda result: {**result, "ips": result["ips"][1:]}, "prevResult: has no address 192.0.2.100/24"),
        (lambda result: {**result, "interfaces": []}, "prevResult: has no interface eth0"),
        (
            lambda result: {**result, "interfaces": [{"name": "net9", "sandbox": "/x"}]},
            "prevResult: has no interface eth0",
        ),
    ],
)
def test_a_result_that_tells_of_another_attachment_is_found(
    lab: Lab, change: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    pod = lab.pod("a", lab.conf(dual=True))
    pod.result = change(pod.result)
    with pytest.raises(CniFailed) as failure:
        pod.check()
    assert words in failure.value.details


def test_without_prev_result_it_is_refused(lab: Lab) -> None:
    pod = lab.pod("a")
    answer = lab.runtime().call("CHECK", pod.conf, pod.variables)
    assert answer.json["code"] == 7
    assert "prevResult" in answer.json["msg"]


def test_a_container_that_was_never_attached_is_found(lab: Lab) -> None:
    pod = lab.pod("a")
    pod.delete()
    with pytest.raises(CniFailed, match="nothing is recorded of it"):
        pod.check()


def test_a_namespace_that_is_gone_is_found(lab: Lab) -> None:
    pod = lab.pod("a")
    lab.host.run("ip", "netns", "del", pod.name)
    with pytest.raises(CniFailed) as failure:
        pod.check()
    assert failure.value.code == 106
