"""Our messages as pyroute2 reads them, and pyroute2's as we read them: two readings of the same kernel headers."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cni import rtnetlink
from cni.attachment import MAIN_TABLE, PROTO_SHIMLAN, SCOPE_LINK, InterfaceAddress, Link, Neighbour, Route
from cni.diff import AddAddress, ReplaceNeighbour, SetLink, SetRoute, SetUp
from cni.frozen import replace
from cni.netlink import HEADER, Message, attribute, nest, text, u32

LINK = Link(
    name="eth0",
    mac="02:42:c0:00:02:64",
    mtu=1400,
    parent_index=7,
    mode="private",
    alias="shimlan lan/c/eth0",
    bcqueuelen=2000,
    bclim=-1,
    tx_queues=2,
)
ROUTES = [
    Route(ip_network("0.0.0.0/0"), via=ip_address("192.0.2.1"), metric=7, mtu=1300, advmss=1200, table=1000),
    Route(ip_network("192.0.2.10/32"), src=ip_address("192.0.2.9"), scope=SCOPE_LINK, protocol=PROTO_SHIMLAN),
    Route(ip_network("2001:db8::/48"), via=ip_address("2001:db8::1"), table=100),
]


def read(kind: type[Any], message: Message) -> Any:
    """The message as pyroute2 decodes it."""
    length = HEADER.size + len(message.body)
    decoded = kind(HEADER.pack(length, message.kind, message.flags, 1, 0) + message.body)
    decoded.decode()
    return decoded


def written(kind: type[Any], fields: dict[str, Any], attributes: list[tuple[str, Any]]) -> bytes:
    """The body of a message that pyroute2 encodes."""
    message = kind()
    message.update(fields)
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data[HEADER.size :])


def test_a_new_link() -> None:
    message = read(ifinfmsg, rtnetlink.new_link(LINK, "net1", 42))
    assert message.get_attr("IFLA_IFNAME") == "net1"
    assert message.get_attr("IFLA_LINK") == 7
    assert message.get_attr("IFLA_ADDRESS") == LINK.mac
    assert message.get_attr("IFLA_MTU") == 1400
    assert message.get_attr("IFLA_NET_NS_FD") == 42
    assert message.get_attr("IFLA_NUM_TX_QUEUES") == 2
    info = message.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "macvlan"
    data = info.get_attr("IFLA_INFO_DATA")
    assert data.get_attr("IFLA_MACVLAN_MODE") == "private"


def test_a_new_vlan_device_takes_what_the_kernel_gives() -> None:
    link = Link("eth0.100", "", 0, 7, kind="vlan", vlan=100)
    message = read(ifinfmsg, rtnetlink.new_link(link, link.name, None))
    assert message.get_attr("IFLA_LINK") == 7
    assert message.get_attr("IFLA_ADDRESS") is message.get_attr("IFLA_MTU") is None
    info = message.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "vlan"
    assert info.get_attr("IFLA_INFO_DATA").get_attr("IFLA_VLAN_ID") == 100


@pytest.mark.parametrize("macs", [(), ("02:00:00:00:00:01", "02:00:00:00:00:02")])
def test_the_macs_that_a_link_listens_to(macs: tuple[str, ...]) -> None:
    link = replace(LINK, mode="source", source_macs=macs)
    change = rtnetlink.encode(SetLink(link, "macaddr", "", ""), 9)
    new = rtnetlink.new_link(link, "net1", None)
    for message in (change, new) if macs else (change,):
        data = read(ifinfmsg, message).get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
        assert data.get_attr("IFLA_MACVLAN_MACADDR_MODE") == "set"
        listed = data.get_attr("IFLA_MACVLAN_MACADDR_DATA")
        assert tuple(listed.get_attrs("IFLA_MACVLAN_MACADDR") if listed else ()) == macs


def test_a_link_of_mode_source_is_read() -> None:
    macs = ["02:00:00:00:00:02", "02:00:00:00:00:01"]
    listed = {"attrs": [("IFLA_MACVLAN_MACADDR", mac) for mac in macs]}
    data = {"attrs": [("IFLA_MACVLAN_MODE", "source"), ("IFLA_MACVLAN_MACADDR_DATA", listed)]}
    info = {"attrs": [("IFLA_INFO_KIND", "macvlan"), ("IFLA_INFO_DATA", data)]}
    link = rtnetlink.parse_link(written(ifinfmsg, {"index": 5}, [("IFLA_LINKINFO", info)]))
    assert (link.kind, link.mode, link.source_macs) == ("macvlan", "source", tuple(sorted(macs)))


def test_a_vlan_device_is_read() -> None:
    info = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", {"attrs": [("IFLA_VLAN_ID", 4094)]})]}
    link = rtnetlink.parse_link(written(ifinfmsg, {"index": 5}, [("IFLA_LINK", 2), ("IFLA_LINKINFO", info)]))
    assert (link.kind, link.vlan, link.parent_index, link.mode) == ("vlan", 4094, 2, "")


def test_a_link_without_namespace_stays_where_the_socket_is() -> None:
    assert read(ifinfmsg, rtnetlink.new_link(LINK, "net1", None)).get_attr("IFLA_NET_NS_FD") is None


def test_up_with_alias() -> None:
    message = read(ifinfmsg, rtnetlink.encode(SetUp(LINK), 9))
    assert (message["index"], message["flags"] & rtnetlink.IFF_UP) == (9, rtnetlink.IFF_UP)
    assert message.get_attr("IFLA_IFALIAS") == LINK.alias


@pytest.mark.parametrize(
    ("text", "prefixlen", "broadcast", "flags"),
    [("192.0.2.5", 24, "192.0.2.255", 0), ("192.0.2.5", 31, None, 0), ("2001:db8::5", 64, None, rtnetlink.IFA_F_NODAD)],
)
def test_an_address(text: str, prefixlen: int, broadcast: str | None, flags: int) -> None:
    change = AddAddress("eth0", InterfaceAddress(ip_address(text), prefixlen))
    message = read(ifaddrmsg, rtnetlink.encode(change, 9))
    assert (message["index"], message["prefixlen"], message["flags"]) == (9, prefixlen, flags)
    assert message.get_attr("IFA_LOCAL") == message.get_attr("IFA_ADDRESS") == text
    assert message.get_attr("IFA_BROADCAST") == broadcast


@pytest.mark.parametrize("route", ROUTES)
def test_a_route(route: Route) -> None:
    message = read(rtmsg, rtnetlink.encode(SetRoute("eth0", route), 9))
    assert message["dst_len"] == route.dst.prefixlen
    assert (message["proto"], message["scope"]) == (route.protocol, route.scope)
    assert message.get_attr("RTA_DST") == str(route.dst.network_address)
    assert message.get_attr("RTA_OIF") == 9
    assert message.get_attr("RTA_GATEWAY") == (str(route.via) if route.via else None)
    assert message.get_attr("RTA_PREFSRC") == (str(route.src) if route.src else None)
    assert message.get_attr("RTA_TABLE") == (route.table or MAIN_TABLE)
    metrics = message.get_attr("RTA_METRICS")
    assert (metrics.get_attr("RTAX_MTU") if metrics else None) == (route.mtu or None)
    assert (metrics.get_attr("RTAX_ADVMSS") if metrics else None) == (route.advmss or None)


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_comes_back_as_it_went(route: Route) -> None:
    ((index, parsed),) = rtnetlink.parse_routes(rtnetlink.encode(SetRoute("eth0", route), 9).body)
    assert index == 9
    assert (parsed.dst, parsed.via, parsed.src, parsed.metric) == (route.dst, route.via, route.src, route.metric)


@pytest.mark.parametrize("text", ["192.0.2.5", "2001:db8::5"])
def test_a_neighbour(text: str) -> None:
    entry = Neighbour(ip_address(text), "02:00:00:00:00:01")
    message = read(ndmsg, rtnetlink.encode(ReplaceNeighbour("eth0", entry), 9))
    assert (message["ifindex"], message["state"]) == (9, rtnetlink.NUD_PERMANENT)
    assert message.get_attr("NDA_DST") == text
    assert message.get_attr("NDA_LLADDR") == entry.mac
    assert rtnetlink.parse_neighbour(rtnetlink.encode(ReplaceNeighbour("eth0", entry), 9).body) == (9, entry)


def test_each_next_hop_of_a_multipath_route_is_one_of_ours() -> None:
    hops = [{"oif": 5, "attrs": [("RTA_GATEWAY", "192.0.2.1")]}, {"oif": 6, "attrs": [("RTA_GATEWAY", "198.51.100.1")]}]
    body = written(rtmsg, {"family": 2, "type": 1, "table": 254}, [("RTA_MULTIPATH", hops)])
    found = dict(rtnetlink.parse_routes(body))
    assert found.keys() == {5, 6}
    assert {route.dst for route in found.values()} == {ip_network("0.0.0.0/0")}
    assert [str(found[index].via) for index in (5, 6)] == ["192.0.2.1", "198.51.100.1"]


def test_a_parent_that_is_a_port() -> None:
    body = written(
        ifinfmsg,
        {"index": 3, "ifi_type": 1, "flags": rtnetlink.IFF_UP},
        [("IFLA_IFNAME", "eth1"), ("IFLA_ADDRESS", "02:00:00:00:00:07"), ("IFLA_MTU", 9000), ("IFLA_MASTER", 11)],
    )
    parent, master = rtnetlink.parse_parent(body)
    assert (parent.name, parent.index, parent.mac, parent.mtu, parent.up) == (
        "eth1",
        3,
        "02:00:00:00:00:07",
        9000,
        True,
    )
    assert (parent.hardware, parent.loopback, master) == (1, False, 11)


MTUS, COUNTERS, KINDS = st.sampled_from([1400, 1500]), st.binary(min_size=8, max_size=8), st.sampled_from(["", "veth"])
MESSAGES = st.tuples(st.sampled_from([0, 1]), MTUS, st.sampled_from(["", "db"]), COUNTERS, KINDS, COUNTERS)


def told(message: tuple[int, int, str, bytes, str, bytes]) -> bytes:
    """A link as the kernel tells of it: what we mind, counters, the kind, and more counters."""
    flags, mtu, alias, counters, kind, more = message
    head = rtnetlink.LINK_HEADER.pack(0, 1, 2, flags, 0) + text(rtnetlink.IFLA_IFNAME, "eth0")
    head += u32(rtnetlink.IFLA_MTU, mtu) + (text(rtnetlink.IFLA_IFALIAS, alias) if alias else b"")
    info = nest(rtnetlink.IFLA_LINKINFO, text(rtnetlink.IFLA_INFO_KIND, kind)) if kind else b""
    return head + attribute(rtnetlink.IFLA_STATS64, counters) + info + attribute(26, more)  # IFLA_AF_SPEC


@given(MESSAGES, MESSAGES)
def test_who_has_the_essence_of_a_link_is_no_other_link(first: Any, second: Any) -> None:
    head, offset, info = rtnetlink.link_essence(told(first))
    resembles = told(second).startswith(head) and told(second).startswith(info, offset)
    if resembles and bool(first[4]) >= bool(second[4]):  # a link keeps its kind
        assert rtnetlink.link_fingerprint(told(second)) == rtnetlink.link_fingerprint(told(first))
    counted = (*first[:3], second[3], first[4], second[5])
    assert told(counted).startswith(head)
    assert told(counted).startswith(info, offset)
