"""The plan: from configuration, lease and facts to the links, addresses, routes and neighbours that shall be."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cni.attachment import (
    PROTO_SHIMLAN,
    SCOPE_LINK,
    Facts,
    InterfaceAddress,
    Key,
    Neighbour,
    Parent,
    Route,
    SourceNat,
    View,
    check_parent,
    plan_link,
    report,
    shim_mac,
    shim_name,
    wants_shim,
)
from cni.config import NetConf, parse
from cni.errors import CniError, InvalidConfig, ParentUnusable
from cni.frozen import replace
from cni.protocol import IpConfig, Result, RouteConfig
from tests.unit.attachments import FACTS, HOST, HOST6, IPAM, KEY, MAC, PARENT, V4, planned

SHIM_MAC = "02:5e:ca:df:73:d4"


def conf(**changes: Any) -> NetConf:
    return parse({"cniVersion": "1.0.0", "name": "lan", **changes}, {})


def words(route: Route) -> tuple[str, str | None, str | None]:
    """Destination, gateway and source of a route."""
    return str(route.dst), str(route.via) if route.via else None, str(route.src) if route.src else None


# --- the pod's end ---------------------------------------------------------------------------------------------------


def test_the_link_has_what_was_asked_for_or_what_the_parent_has() -> None:
    plain = plan_link(KEY, conf(), PARENT, MAC)
    assert (plain.name, plain.mac, plain.mtu, plain.mode, plain.parent_index) == ("eth0", MAC, 1500, "bridge", 2)
    assert (plain.alias, plain.bcqueuelen, plain.bclim) == ("shimlan lan/abc/eth0", None, None)
    asked = plan_link(KEY, conf(mtu=1400, mode="vepa", bcqueuelen=9, bclim=-1), PARENT, MAC)
    assert (asked.mtu, asked.mode, asked.bcqueuelen, asked.bclim) == (1400, "vepa", 9, -1)


def test_in_mode_passthru_the_mac_is_the_parents() -> None:
    assert plan_link(KEY, conf(mode="passthru"), PARENT, MAC).mac == PARENT.mac


def test_the_alias_fits_into_the_kernels_limit() -> None:
    assert len(Key("n" * 200, "c" * 200, "eth0").alias) == 255


def test_addresses_and_routes_are_those_of_ipam_and_the_host() -> None:
    sandbox = planned().sandbox
    assert list(map(str, sandbox.addresses)) == ["192.0.2.100/24", "2001:db8::100/64"]
    assert [words(route) for route in sandbox.routes] == [
        ("192.0.2.10/32", None, None),
        ("2001:db8::10/128", None, None),
        ("0.0.0.0/0", "192.0.2.1", None),
        ("::/0", "2001:db8::1", None),
    ]
    assert sandbox.neighbours == (Neighbour(HOST.ip, SHIM_MAC), Neighbour(HOST6.ip, SHIM_MAC))
    assert (sandbox.routes[0].scope, sandbox.routes[0].protocol) == (SCOPE_LINK, PROTO_SHIMLAN)


ROUTES: tuple[tuple[RouteConfig, str | None, int], ...] = (
    (RouteConfig(ip_network("203.0.113.0/24")), "192.0.2.1", 0),
    (RouteConfig(ip_network("203.0.113.0/24"), ip_address("192.0.2.9")), "192.0.2.9", 0),
    (RouteConfig(ip_network("203.0.113.0/24"), scope=0), "192.0.2.1", 0),
    (RouteConfig(ip_network("203.0.113.0/24"), scope=253), None, 253),
    (RouteConfig(ip_network("2001:db8:9::/48")), "2001:db8::1", 0),
)


@pytest.mark.parametrize(("route", "via", "scope"), ROUTES)
def test_a_route_without_gateway_takes_that_of_the_address_of_its_family(
    route: RouteConfig, via: str | None, scope: int
) -> None:
    (found,) = planned(ipam=replace(IPAM, routes=(route,)), shim=False).sandbox.routes
    assert (found.via and str(found.via), found.scope) == (via, scope)


def test_the_gateway_of_the_first_address_of_a_family_counts() -> None:
    second = IpConfig(ip_address("198.51.100.7"), 24, ip_address("198.51.100.1"))
    (route,) = planned(ipam=Result((), (*V4.ips, second), V4.routes), shim=False).sandbox.routes
    assert str(route.via) == "192.0.2.1"


def test_options_of_a_route_are_kept() -> None:
    asked = RouteConfig(ip_network("203.0.113.0/24"), None, 1400, 1360, 5, 100)
    (route,) = planned(ipam=replace(V4, routes=(asked,)), shim=False).sandbox.routes
    assert (route.mtu, route.advmss, route.metric, route.table) == (1400, 1360, 5, 100)


@pytest.mark.parametrize(
    ("ipam", "announce", "sysctls"),
    [
        (V4, True, [("ipv4/arp_notify", "1")]),
        (IPAM, True, [("ipv6/disable_ipv6", "0"), ("ipv4/arp_notify", "1"), ("ipv6/ndisc_notify", "1")]),
        (IPAM, False, [("ipv6/disable_ipv6", "0")]),
        (Result(), True, []),
    ],
)
def test_the_kernel_announces_the_families_that_there_are(
    ipam: Result, announce: bool, sysctls: list[tuple[str, str]]
) -> None:
    assert list(planned(ipam=ipam, announce=announce).sandbox.sysctls) == sysctls


# --- the host's end --------------------------------------------------------------------------------------------------


def test_the_host_gets_a_route_and_a_neighbour_for_each_address_of_the_pod() -> None:
    host = planned().host
    assert host.link
    assert (host.link.name, host.link.mac, host.link.arp, host.link.mode) == ("shim2", SHIM_MAC, False, "bridge")
    assert [words(route) for route in host.routes] == [
        ("192.0.2.100/32", None, "192.0.2.10"),
        ("2001:db8::100/128", None, "2001:db8::10"),
    ]
    assert [str(entry.ip) for entry in host.neighbours] == ["192.0.2.100", "2001:db8::100"]
    assert {entry.mac for entry in host.neighbours} == {MAC}


def test_a_shim_that_stands_already_keeps_its_mac() -> None:
    there = replace(FACTS, shim_mac="02:00:00:00:00:99")
    attachment = planned(there)
    assert attachment.host.link
    assert attachment.host.link.mac == "02:00:00:00:00:99"
    assert {entry.mac for entry in attachment.sandbox.neighbours} == {"02:00:00:00:00:99"}


@pytest.mark.parametrize(
    ("changes", "ipam"),
    [
        ({"shim": False}, IPAM),
        ({"mode": "private"}, IPAM),
        ({"linkInContainer": True}, IPAM),
        ({}, Result()),
    ],
)
def test_without_a_shim_there_is_no_hosts_end(changes: dict[str, Any], ipam: Result) -> None:
    attachment = planned(ipam=ipam, **changes)
    assert attachment.host == View()
    assert attachment.sandbox.neighbours == ()
    assert not any(route.protocol == PROTO_SHIMLAN for route in attachment.sandbox.routes)


def test_a_host_without_addresses_has_no_shim() -> None:
    assert planned(Facts(PARENT)).host == View()


def test_only_families_that_both_have_are_connected() -> None:
    attachment = planned(Facts(PARENT, (HOST,), (HOST,)))
    assert [str(route.dst) for route in attachment.host.routes] == ["192.0.2.100/32"]
    assert [entry.ip for entry in attachment.sandbox.neighbours] == [HOST.ip]
    assert planned(Facts(PARENT, (HOST6,), (HOST6,)), V4).host == View()


def test_the_host_speaks_from_the_pods_subnet_or_else_from_its_first_address() -> None:
    elsewhere = InterfaceAddress(ip_address("198.51.100.9"), 24)
    near = planned(replace(FACTS, host_addresses=(elsewhere, HOST)), V4)
    far = planned(replace(FACTS, host_addresses=(elsewhere,)), V4)
    assert [str(each.host.routes[0].src) for each in (near, far)] == ["192.0.2.10", "198.51.100.9"]


def test_services_lead_to_the_host_and_have_their_source_translated() -> None:
    attachment = planned(shim={"routes": ["10.96.0.0/12", "fd00::/112"]})
    assert [words(route)[:2] for route in attachment.sandbox.routes[-2:]] == [
        ("10.96.0.0/12", "192.0.2.10"),
        ("fd00::/112", "2001:db8::10"),
    ]
    assert attachment.source_nat == (SourceNat("shim2", HOST.ip), SourceNat("shim2", HOST6.ip))


def test_services_of_a_family_that_the_pod_lacks_are_left_out() -> None:
    attachment = planned(ipam=V4, shim={"routes": ["10.96.0.0/12", "fd00::/112"]})
    assert attachment.source_nat == (SourceNat("shim2", HOST.ip),)
    assert "fd00::/112" not in [str(route.dst) for route in attachment.sandbox.routes]


def test_source_nat_is_left_out_when_it_is_not_wanted() -> None:
    assert planned(shim={"routes": ["10.96.0.0/12"], "snat": False}).source_nat == ()
    assert planned().source_nat == ()


def test_services_need_an_address_of_the_host() -> None:
    with pytest.raises(InvalidConfig, match=r"shim.routes: fd00::/112 needs an IPv6 address of the host, and eth0 has"):
        planned(Facts(PARENT, (HOST,), (HOST,)), shim={"routes": ["fd00::/112"]})


def test_names_and_macs_of_shims_fit_the_kernel() -> None:
    assert len(shim_name(2**31 - 1)) <= 15
    assert int(shim_mac(PARENT)[:2], 16) & 3 == 2  # locally administered, unicast


# --- parents ---------------------------------------------------------------------------------------------------------

UNUSABLE: tuple[tuple[dict[str, Any], dict[str, Any], type[CniError], str], ...] = (
    ({"loopback": True}, {}, ParentUnusable, "eth0 is no Ethernet device"),
    ({"hardware": 778}, {}, ParentUnusable, "eth0 is no Ethernet device"),
    ({"master": "br0", "master_kind": "bridge"}, {}, ParentUnusable, 'is a port of bridge br0: set "master": "br0"'),
    ({"master": "bond0", "master_kind": "bond"}, {}, ParentUnusable, "is a port of bond bond0"),
    ({"master": "team0", "master_kind": "team"}, {}, ParentUnusable, 'is a port of team team0: set "master": "team0"$'),
    (
        {"master": "ovs-system", "master_kind": "openvswitch"},
        {},
        ParentUnusable,
        "is a port of openvswitch ovs-system: .* internal port of its bridge",
    ),
    (
        {"kind": "vlan", "master": "br0", "master_kind": "bridge"},
        {"vlan": 7},
        ParentUnusable,
        'set "master": "br0" and leave out "vlan"$',
    ),
    ({"wireless": True}, {}, ParentUnusable, "eth0 is wireless, where a station has one MAC: use a wired NIC, ipvlan"),
    ({"wireless": True, "up": False}, {}, ParentUnusable, "eth0 is wireless"),
    ({"kind": "ipvlan"}, {}, ParentUnusable, "eth0 is an ipvlan, which has one MAC"),
    ({"up": False}, {}, ParentUnusable, "eth0 is down: run `ip link set eth0 up`"),
    ({}, {"mtu": 9000}, InvalidConfig, "mtu: 9000 is above the 1500 of eth0"),
    ({}, {"mode": "passthru", "mac": MAC}, InvalidConfig, "mac: a child in mode passthru always has the MAC of eth0"),
)


@pytest.mark.parametrize(("parent", "changes", "kind", "message"), UNUSABLE)
def test_parents_that_cannot_carry_the_link_are_refused(
    parent: dict[str, Any], changes: dict[str, Any], kind: type[CniError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        check_parent(conf(**changes), replace(PARENT, **parent))


@pytest.mark.parametrize(
    "parent",
    [
        PARENT,
        replace(PARENT, master="vrf0", master_kind="vrf"),
        replace(PARENT, kind="macvlan", lower_index=1),
        *(replace(PARENT, kind=kind) for kind in ("bridge", "bond", "team", "vlan", "veth", "openvswitch")),
        replace(PARENT, mtu=9000),
    ],
)
def test_others_are_accepted(parent: Parent) -> None:
    check_parent(conf(), parent)


def test_children_of_a_macvlan_hang_on_the_device_below_and_need_no_shim() -> None:
    parent = replace(PARENT, kind="macvlan", lower_index=7)
    assert not wants_shim(conf(), parent)
    link = plan_link(KEY, conf(), parent, MAC)
    assert (link.parent_index, link.lower_index) == (2, 7)


# --- the result ------------------------------------------------------------------------------------------------------


def test_the_runtime_is_told_of_link_shim_and_addresses() -> None:
    result = report(planned(mtu=1400), IPAM, {"domain": "example.org"})
    pod, shim = result.interfaces
    assert (pod.name, pod.mac, pod.sandbox, pod.mtu) == ("eth0", MAC, "/run/netns/abc", 1400)
    assert (shim.name, shim.mac, shim.sandbox, shim.mtu) == ("shim2", SHIM_MAC, "", 1500)
    assert [ip.interface for ip in result.ips] == [0, 0]
    assert (result.routes, result.dns) == (IPAM.routes, {"domain": "example.org"})


def test_the_runtime_is_told_of_the_tap() -> None:
    tapped = planned(linkType="macvtap")
    assert tapped.sandbox.link
    assert tapped.sandbox.link.kind == "macvtap"
    assert [interface.tap for interface in report(tapped, IPAM, tap=7).interfaces] == [7, 0]


def test_the_dns_of_ipam_is_told_when_the_network_has_none() -> None:
    ipam = replace(V4, dns={"domain": "ipam"})
    assert report(planned(), ipam).dns == report(planned(), ipam, {}).dns == {"domain": "ipam"}
    assert len(report(planned(shim=False), ipam).interfaces) == 1
