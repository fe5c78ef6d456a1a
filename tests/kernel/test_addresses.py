"""Addresses of pods, IP and MAC: requested, made up, announced to the LAN, and probed for on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.frames import ETH_P_ARP, Capture, Frame
from cni.ctl.lab import CniFailed, Lab, Node
from tests.kernel.marks import needs_reference_plugins
from tests.kernel.traces import held, network, records, stored

ETH_P_IPV6 = 0x86DD
NEIGHBOUR_ADVERTISEMENT = 136
OVERRIDE = 0x20  # of an advertisement's flags (RFC 4861, section 4.4)
WANTED, WANTED6 = "192.0.2.150", "2001:db8::150"


# --- requested addresses ---------------------------------------------------------------------------------------------

REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "CNI_ARGS": ({}, {"CNI_ARGS": f"IP={WANTED},{WANTED6}"}),
    "runtimeConfig": ({"runtimeConfig": {"ips": [WANTED, WANTED6]}}, {}),
    "runtimeConfig with prefix lengths": ({"runtimeConfig": {"ips": [f"{WANTED}/24", f"{WANTED6}/64"]}}, {}),
    "args.cni": ({"args": {"cni": {"ips": [WANTED, WANTED6]}}}, {}),
    "two sources": ({"args": {"cni": {"ips": [WANTED]}}}, {"CNI_ARGS": f"IP={WANTED6}"}),
}


@pytest.mark.parametrize(("changes", "variables"), REQUESTS.values(), ids=REQUESTS)
def test_a_requested_address_is_given(lab: Lab, changes: dict[str, Any], variables: dict[str, Any]) -> None:
    pod = lab.pod("a", lab.conf(dual=True, **changes), **variables)
    assert pod.addresses() == [f"{WANTED}/24", f"{WANTED6}/64"]
    assert pod.pings(lab.host)


REFUSED: dict[str, tuple[str, str]] = {
    "held": ("192.0.2.100", "192.0.2.100: requested, but container first"),
    "outside of the ranges": ("192.0.2.9", "192.0.2.9: requested, but network lan has only"),
    "of another network": ("203.0.113.1", "203.0.113.1: requested, but network lan has only"),
    "two of one pool": ("192.0.2.150,192.0.2.151", "which gives one address"),
}


@pytest.mark.parametrize(("address", "words"), REFUSED.values(), ids=REFUSED)
def test_a_request_that_cannot_be_granted_is_an_error(lab: Lab, address: str, words: str) -> None:
    first = lab.pod("first", container_id="first")
    before = network(lab.host)
    with pytest.raises(CniFailed, match=words) as failure:
        lab.pod("a", CNI_ARGS=f"IP={address}")
    assert failure.value.code == 101
    assert network(lab.host) == before
    assert len(held(lab)) == len(records(lab)) == 1
    first.check()


def test_the_hosts_own_address_and_the_gateway_are_never_given(lab: Lab) -> None:
    ranges = [[{"subnet": "192.0.2.0/28", "gateway": "192.0.2.1"}]]
    lab.host.ip_batch(
        "address flush dev eth0", "address add 192.0.2.2/28 dev eth0", "address add 192.0.2.4/28 dev eth0"
    )
    given = [lab.pod(conf=lab.conf(ipam={"ranges": ranges})).address for _ in range(3)]
    assert given == ["192.0.2.3", "192.0.2.5", "192.0.2.6"]


def test_when_all_are_taken_it_says_of_what(lab: Lab) -> None:
    ranges = [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.101"}]]
    conf = lab.conf(ipam={"ranges": ranges})
    pods = [lab.pod(conf=conf) for _ in range(2)]
    with pytest.raises(
        CniFailed, match=r"network lan has no free address in 192.0.2.100-192.0.2.101: 2 held"
    ) as failure:
        lab.pod("a", conf)
    assert failure.value.code == 100
    pods[0].delete()
    assert lab.pod("b", conf).address == pods[0].address  # while it cools down: there is no other


def test_two_networks_of_one_lan_share_no_address(lab: Lab) -> None:
    first = lab.pod("a")
    second = lab.pod("b", lab.conf(name="second"))
    assert (first.address, second.address) == ("192.0.2.100", "192.0.2.101")


def test_leases_of_the_reference_plugin_are_kept_and_released(lab: Lab) -> None:
    leases = Path(lab.data_dir, "lan")
    leases.mkdir()
    Path(leases, "192.0.2.100").write_text("old-container\r\neth0")
    new = lab.pod("new")
    assert new.address == "192.0.2.101"
    lab.cni("DEL", new.conf, CNI_CONTAINERID="old-container", CNI_IFNAME="eth0").or_raise()
    assert list(leases.glob("192.*")) == []
    new.check()


@needs_reference_plugins
def test_pods_of_the_reference_plugin_can_be_deleted_after_the_switch(lab: Lab) -> None:
    old = lab.pod("old", lab.reference_conf(ipam={"dataDir": lab.data_dir}))
    new = lab.pod("new")
    assert (old.address, new.address) == ("192.0.2.100", "192.0.2.101")
    old.conf = lab.conf()
    old.delete()
    assert [link["ifname"] for link in old.links()] == ["lo"]
    assert list(Path(lab.data_dir, "lan").glob("192.*")) == []
    new.check()


# --- MAC -------------------------------------------------------------------------------------------------------------

SOURCES: tuple[tuple[dict[str, Any], dict[str, str], str], ...] = (
    ({"mac": "02:00:00:00:00:04"}, {}, "02:00:00:00:00:04"),
    ({"mac": "02:00:00:00:00:04"}, {"CNI_ARGS": "MAC=02-00-00-00-00-03"}, "02:00:00:00:00:03"),
    (
        {"mac": "02:00:00:00:00:04", "args": {"cni": {"mac": "02:00:00:00:00:02"}}},
        {"CNI_ARGS": "MAC=02:00:00:00:00:03"},
        "02:00:00:00:00:02",
    ),
    (
        {
            "mac": "02:00:00:00:00:04",
            "args": {"cni": {"mac": "02:00:00:00:00:02"}},
            "runtimeConfig": {"mac": "02:00:00:00:00:0A"},
        },
        {"CNI_ARGS": "MAC=02:00:00:00:00:03"},
        "02:00:00:00:00:0a",
    ),
)


@pytest.mark.parametrize(("changes", "variables", "mac"), SOURCES)
def test_the_nearest_source_of_a_mac_wins(
    lab: Lab, changes: dict[str, Any], variables: dict[str, Any], mac: str
) -> None:
    pod = lab.pod("a", lab.conf(**changes), **variables)
    assert pod.mac == pod.result["interfaces"][0]["mac"] == mac
    assert lab.host.pings(pod)


def test_the_policies_make_a_mac_from_address_pod_or_chance(lab: Lab) -> None:
    name = "K8S_POD_NAMESPACE=default;K8S_POD_NAME={}"
    by_address = lab.pod("a")
    assert by_address.mac == "02:42:c0:00:02:64"
    by_pod = lab.pod("b", lab.conf(macPolicy="pod"), CNI_ARGS=name.format("db-0"))
    before = by_pod.mac
    by_pod.delete()
    again = lab.pod("c", lab.conf(macPolicy="pod"), CNI_ARGS=name.format("db-0"))
    other = lab.pod("d", lab.conf(macPolicy="pod"), CNI_ARGS=name.format("db-1"))
    by_chance = lab.pod("e", lab.conf(macPolicy="random"))
    assert again.mac == before
    macs = {by_address.mac, again.mac, other.mac, by_chance.mac}
    assert len(macs) == 4
    assert all(mac.startswith("02:") for mac in macs)
    assert again.address != by_pod.address


# --- announcements ---------------------------------------------------------------------------------------------------


def announced(frame: Frame) -> tuple[str, str]:
    """The address and MAC that a gratuitous ARP or an unsolicited advertisement tells the LAN; empty for others."""
    packet = frame.payload
    if frame.ethertype == ETH_P_ARP and packet[14:18] == packet[24:28]:
        return ".".join(map(str, packet[14:18])), packet[8:14].hex(":")
    if frame.ethertype == ETH_P_IPV6 and packet[40] == NEIGHBOUR_ADVERTISEMENT and packet[44] & OVERRIDE:
        return packet[48:64].hex(), packet[66:72].hex(":")
    return "", ""


@contextmanager
def listening(lab: Lab) -> Iterator[Capture]:
    with lab.outside.sniff(wanted=lambda frame: frame.ethertype in (ETH_P_ARP, ETH_P_IPV6)) as seen:
        yield seen
        lab.host.pings(lab.outside, 6)  # by then the kernel's work queue has sent what it will send


def test_a_pod_announces_its_addresses(lab: Lab) -> None:
    with listening(lab) as seen:
        pod = lab.pod("a", lab.conf(dual=True))
    told = {announced(frame) for frame in seen.frames}
    assert ("192.0.2.100", pod.mac) in told
    assert ("20010db8000000000000000000000100", pod.mac) in told


def test_neighbours_learn_a_new_mac_at_once(lab: Lab) -> None:
    conf = lab.conf(macPolicy="random")
    first = lab.pod("a", conf)
    old = first.mac
    assert lab.outside.pings(first)
    first.delete()
    second = lab.pod("b", conf, CNI_ARGS=f"IP={first.address}")
    assert second.mac != old
    assert second.mac in {entry.get("lladdr") for entry in lab.outside.neighbours()}


def test_no_announcement_when_it_is_not_wanted(lab: Lab) -> None:
    with listening(lab) as seen:
        pod = lab.pod("a", lab.conf(dual=True, announce=False, shim=False))
    assert pod.mac not in {mac for _, mac in map(announced, seen.frames)}


# --- conflicts -------------------------------------------------------------------------------------------------------

DETECT = {"timeoutMs": 200, "retries": 1}


def intruder(lab: Lab) -> Node:
    """A machine that took two addresses of our ranges without asking."""
    machine = lab.machine("intruder", "192.0.2.100/24", "2001:db8::100/64")
    assert lab.host.pings(machine)  # its port forwards
    return machine


def test_an_address_in_use_on_the_lan_is_passed_over_and_put_aside(lab: Lab) -> None:
    machine, conf = intruder(lab), lab.conf(dual=True, detectConflicts=DETECT)
    pod = lab.pod("a", conf)
    assert pod.addresses() == ["192.0.2.101/24", "2001:db8::101/64"]
    assert lab.outside.pings(machine)
    machine.ip("link", "set", "eth0", "down")
    assert lab.pod("b", conf).address == "192.0.2.102"
    pod.check()


@pytest.mark.parametrize("address", ["192.0.2.100", "2001:db8::100"])
def test_a_requested_address_in_use_on_the_lan_is_an_error(lab: Lab, address: str) -> None:
    machine = intruder(lab)
    before = network(lab.host)
    with pytest.raises(CniFailed, match=f"{address} was requested, but {machine.mac} uses it on the LAN") as failure:
        lab.pod("a", lab.conf(dual=True, detectConflicts=DETECT), CNI_ARGS=f"IP={address}")
    assert failure.value.code == 101
    assert network(lab.host)["links"] == before["links"]
    assert stored(lab) == []


def test_without_detection_nobody_is_asked(lab: Lab) -> None:
    with lab.outside.sniff(wanted=lambda frame: frame.ethertype == ETH_P_ARP) as seen:
        lab.pod("a", lab.conf(announce=False, shim=False))
    assert seen.frames == []


def test_our_own_pods_are_no_conflict(lab: Lab) -> None:
    conf = lab.conf(dual=True, detectConflicts=DETECT, ipam={"cooldownSeconds": 0})
    pods = [lab.pod(conf=conf) for _ in range(3)]
    assert [pod.address for pod in pods] == ["192.0.2.100", "192.0.2.101", "192.0.2.102"]
    assert all(lab.host.pings(pod) for pod in pods)


def test_no_pod_gets_an_address_that_its_host_has_elsewhere(lab: Lab) -> None:
    lab.host.ip("address", "add", "192.0.2.100/32", "dev", "lo")
    pod = lab.pod("a", lab.conf(shim={"hostAddresses": ["auto", "192.0.2.100"]}))
    assert pod.address == "192.0.2.101"
    assert pod.pings("192.0.2.100")


def test_a_pod_may_have_many_routes(lab: Lab) -> None:
    routes = [{"dst": f"10.{number // 256}.{number % 256}.0/24"} for number in range(1000)]
    pod = lab.pod("a", lab.conf(ipam={"routes": routes}))
    assert len([row for row in pod.routes() if row["dst"].startswith("10.")]) == len(routes)
    pod.check()
