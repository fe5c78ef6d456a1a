"""rtnetlink: our values as messages, and the kernel's answers as our values. Pure; `cni.kernel` does the talking.

Numbers and layouts are those of include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,if}.h.
"""

from __future__ import annotations

import os
import struct

from cni.attachment import MAIN_TABLE, SCOPE_LINK, InterfaceAddress, Link, Neighbour, Parent, Route
from cni.diff import AddAddress, ReplaceNeighbour, SetLink, SetRoute, SetSysctl, SetUp
from cni.errors import KernelRefused
from cni.inet import subnet, unpacked
from cni.netlink import (
    ATTRIBUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    attribute,
    attribute_map,
    attributes,
    nest,
    text,
    u32,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address
    from typing import Literal

    from cni.diff import Change

    Address = IPv4Address | IPv6Address

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETNSID = 90
RTNLGRP_LINK = 1
RTN_UNICAST = 1
RT_TABLE_UNSPEC = 0
AF_UNSPEC, AF_INET, AF_BRIDGE, AF_INET6 = 0, 2, 7, 10
FAMILY = {4: AF_INET, 6: AF_INET6}
BYTE_ORDER: Literal["little", "big"] = "little" if struct.pack("=H", 1) == b"\1\0" else "big"

IFF_UP, IFF_LOOPBACK, IFF_NOARP, IFF_MULTICAST = 0x1, 0x8, 0x80, 0x1000
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD, IFLA_NUM_TX_QUEUES, IFLA_LINK_NETNSID = 18, 20, 28, 31, 37
IFLA_STATS64 = 23
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
FINGERPRINT = (IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS)
IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS = 29, 1 << 3
WITHOUT_STATISTICS = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)  # half of an answer, and most of the work
IFLA_XDP, IFLA_XDP_ATTACHED, IFLA_EVENT, IFLA_EVENT_FEATURES = 43, 2, 44, 2
XDP_ATTACHED_NONE, XDP_ATTACHED_SKB = 0, 2
IFLA_MACVLAN_MODE, IFLA_MACVLAN_BC_QUEUE_LEN, IFLA_MACVLAN_BC_CUTOFF = 1, 7, 9
IFLA_MACVLAN_MACADDR_MODE, IFLA_MACVLAN_MACADDR, IFLA_MACVLAN_MACADDR_DATA, MACVLAN_MACADDR_SET = 3, 4, 5, 3
IFLA_VLAN_ID = 1
MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16}
MODE_NAMES = {number: name for name, number in MODES.items()}

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_TEMPORARY, IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x01, 0x02, 0x08, 0x20, 0x40
IFA_F_PERMANENT = 0x80
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_TABLE = 9, 15
RTAX_MTU, RTAX_ADVMSS = 2, 8
NDA_DST, NDA_LLADDR, NDA_IFINDEX = 1, 2, 8
NUD_PERMANENT = 0x80
IFLA_AF_SPEC, IFLA_INET_CONF = 26, 1
# Sysctls that a message can set, which takes a tenth of the time; those of IPv6 are files only (inet6_set_link_af).
# The numbers are IPV4_DEVCONF_* of include/uapi/linux/ip.h.
DEVCONF = {"ipv4/rp_filter": 8, "ipv4/arp_filter": 13, "ipv4/arp_notify": 22}
NETNSA_NSID, NETNSA_FD = 1, 3  # include/uapi/linux/net_namespace.h

LINK_HEADER = struct.Struct("=BxHiII")
ADDRESS_HEADER = struct.Struct("=BBBBi")
ROUTE_HEADER = struct.Struct("=BBBBBBBBI")
NEIGHBOUR_HEADER = struct.Struct("=BxxxiHBB")
NEXTHOP_HEADER = struct.Struct("=HBBi")
NSID_HEADER = struct.Struct("=Bxxx")


# --- questions ---------------------------------------------------------------------------------------------------


def get_link(name: str = "", index: int = 0) -> Message:
    """Ask for one link, by name or by index."""
    selector = text(IFLA_IFNAME, name) if name else b""
    return Message(RTM_GETLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, index, 0, 0) + selector + WITHOUT_STATISTICS)


def dump_links() -> Message:
    """Ask for all links."""
    return Message(RTM_GETLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, 0, 0, 0) + WITHOUT_STATISTICS)


def dump_addresses(index: int) -> Message:
    """Ask for the addresses of one link, or of all for index 0."""
    return Message(RTM_GETADDR, 0, ADDRESS_HEADER.pack(AF_UNSPEC, 0, 0, 0, index))


def dump_routes(version: int, index: int = 0, table: int = 0) -> Message:
    """Ask for the routes of one IP version, through one link or of one table where they are given."""
    header = ROUTE_HEADER.pack(FAMILY[version], 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, 0, 0)
    selector = (u32(RTA_OIF, index) if index else b"") + (u32(RTA_TABLE, table) if table else b"")
    return Message(RTM_GETROUTE, 0, header + selector)


def dump_neighbours(index: int) -> Message:
    """Ask for the neighbours of one link."""
    return Message(RTM_GETNEIGH, 0, NEIGHBOUR_HEADER.pack(AF_UNSPEC, 0, 0, 0, 0) + u32(NDA_IFINDEX, index))


def dump_bridge_neighbours(index: int) -> Message:
    """Ask for the MACs that a link receives for besides its own, as `bridge fdb show dev LINK self` does."""
    return Message(RTM_GETNEIGH, 0, NEIGHBOUR_HEADER.pack(AF_BRIDGE, index, 0, 0, 0))


def get_nsid(fd: int) -> Message:
    """Ask for the number by which the socket's namespace knows that of a descriptor."""
    return Message(RTM_GETNSID, 0, NSID_HEADER.pack(AF_UNSPEC) + u32(NETNSA_FD, fd))


# --- changes -----------------------------------------------------------------------------------------------------


def new_link(link: Link, name: str, netns_fd: int | None) -> Message:
    """Create a link, under a name, in the namespace of a descriptor or else in that of the socket."""
    data = attribute(IFLA_VLAN_ID, struct.pack("=H", link.vlan)) if link.vlan else _macvlan(link)
    body = LINK_HEADER.pack(AF_UNSPEC, 0, 0, 0, 0)
    body += text(IFLA_IFNAME, name) + u32(IFLA_LINK, link.parent_index)
    if link.mtu:
        body += u32(IFLA_MTU, link.mtu)
    if link.mac:
        body += attribute(IFLA_ADDRESS, _packed(link.mac))
    if link.tx_queues:
        body += u32(IFLA_NUM_TX_QUEUES, link.tx_queues)
    if netns_fd is not None:
        body += u32(IFLA_NET_NS_FD, netns_fd)
    body += nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, link.kind), nest(IFLA_INFO_DATA, data))
    # Without EXCL a link that has the name already is changed instead, and nobody notices.
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _macvlan(link: Link) -> bytes:
    data = u32(IFLA_MACVLAN_MODE, MODES[link.mode])
    if link.bcqueuelen is not None:
        data += u32(IFLA_MACVLAN_BC_QUEUE_LEN, link.bcqueuelen)
    if link.bclim is not None:
        data += attribute(IFLA_MACVLAN_BC_CUTOFF, struct.pack("=i", link.bclim))
    return data + (_sources(link) if link.source_macs else b"")


def _sources(link: Link) -> bytes:
    """The MACs that a link of mode source listens to, in place of those that it has."""
    macs = (attribute(IFLA_MACVLAN_MACADDR, _packed(mac)) for mac in link.source_macs)
    return u32(IFLA_MACVLAN_MACADDR_MODE, MACVLAN_MACADDR_SET) + nest(IFLA_MACVLAN_MACADDR_DATA, *macs)


def rename_link(index: int, name: str) -> Message:
    """Rename a link that is down."""
    return Message(RTM_SETLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, index, 0, 0) + text(IFLA_IFNAME, name))


def delete_link(index: int) -> Message:
    """Delete a link."""
    return Message(RTM_DELLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, index, 0, 0))


def is_deletion(kind: int, body: bytes, index: int) -> bool:
    """Whether a notification says that the link is gone; a bridge says the same of its ports, with its own family."""
    family, _, which, _, _ = LINK_HEADER.unpack_from(body) if kind == RTM_DELLINK else (0, 0, 0, 0, 0)
    return bool(kind == RTM_DELLINK and family == AF_UNSPEC and which == index)


def delete_route(route: Route, index: int) -> Message:
    """Delete a route through a link."""
    return _route_message(RTM_DELROUTE, 0, route, index)


def delete_neighbour(entry: Neighbour, index: int) -> Message:
    """Delete a neighbour entry of a link."""
    return _neighbour_message(RTM_DELNEIGH, 0, entry, index)


def encode(change: Change, index: int) -> Message:
    """A change to the existing link with that index; raises KernelRefused for what only a new link can have."""
    match change:
        case SetLink(_, "mtu", value):
            return Message(RTM_SETLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, index, 0, 0) + u32(IFLA_MTU, int(value)))
        case SetLink(_, "address", value):
            address = attribute(IFLA_ADDRESS, _packed(value))
            return Message(RTM_SETLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, index, 0, 0) + address)
        case SetLink(link, "macaddr"):
            info = nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, link.kind), nest(IFLA_INFO_DATA, _sources(link)))
            return Message(RTM_NEWLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, index, 0, 0) + info)
        case SetUp(link):
            # Without multicast nothing joins a group through a silent link, and no membership is reported.
            flags = IFF_UP | (IFF_MULTICAST if link.arp else IFF_NOARP)
            header = LINK_HEADER.pack(AF_UNSPEC, 0, index, flags, IFF_UP | IFF_NOARP | IFF_MULTICAST)
            return Message(RTM_SETLINK, 0, header + text(IFLA_IFALIAS, link.alias))
        case SetSysctl(_, name, value):
            key = u32(DEVCONF[name], int(value))
            inet = nest(IFLA_AF_SPEC, nest(AF_INET, nest(IFLA_INET_CONF, key)))
            return Message(RTM_SETLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, index, 0, 0) + inet)
        case AddAddress(_, address):
            return _address_message(address, index)
        case SetRoute(_, route, found):
            # Neither NLM_F_EXCL nor, for a new one, NLM_F_REPLACE: routes of other links to the same destination stay.
            return _route_message(RTM_NEWROUTE, NLM_F_CREATE | (NLM_F_REPLACE if found else 0), route, index)
        case ReplaceNeighbour(_, neighbour):
            return _neighbour_message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, neighbour, index)
    raise KernelRefused(f"{change}: a link that exists cannot be changed in this; remove it")


def _address_message(address: InterfaceAddress, index: int) -> Message:
    ip, prefixlen = address.ip, address.prefixlen
    flags = IFA_F_NODAD if ip.version == 6 else 0
    body = ADDRESS_HEADER.pack(FAMILY[ip.version], prefixlen, flags, 0, index)
    body += attribute(IFA_LOCAL, ip.packed) + attribute(IFA_ADDRESS, ip.packed)
    if ip.version == 4 and prefixlen < 31:
        broadcast = int(ip) | (1 << (32 - prefixlen)) - 1
        body += attribute(IFA_BROADCAST, broadcast.to_bytes(4, "big"))
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)


def _route_message(kind: int, flags: int, route: Route, index: int) -> Message:
    dst = route.dst
    table = route.table or MAIN_TABLE
    header = ROUTE_HEADER.pack(
        FAMILY[dst.version],
        dst.prefixlen,
        0,
        0,
        table if table < 256 else 0,
        route.protocol,
        route.scope,
        RTN_UNICAST,
        0,
    )
    body = header + attribute(RTA_DST, dst.network_address.packed) + u32(RTA_OIF, index) + u32(RTA_TABLE, table)
    if route.via is not None:
        body += attribute(RTA_GATEWAY, route.via.packed)
    if route.src is not None:
        body += attribute(RTA_PREFSRC, route.src.packed)
    if route.metric:
        body += u32(RTA_PRIORITY, route.metric)
    metrics = [u32(kind, value) for kind, value in ((RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)) if value]
    if metrics:
        body += nest(RTA_METRICS, *metrics)
    return Message(kind, flags, body)


def _neighbour_message(kind: int, flags: int, neighbour: Neighbour, index: int) -> Message:
    header = NEIGHBOUR_HEADER.pack(FAMILY[neighbour.ip.version], index, NUD_PERMANENT, 0, 0)
    body = header + attribute(NDA_DST, neighbour.ip.packed)
    return Message(kind, flags, body + attribute(NDA_LLADDR, _packed(neighbour.mac)))


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


# --- answers -----------------------------------------------------------------------------------------------------


def parse_link(body: bytes) -> Link:
    """A link; one that is no macvlan has no mode."""
    _, _, index, flags, _ = LINK_HEADER.unpack_from(body)
    attributes = attribute_map(body, LINK_HEADER.size)
    info = attribute_map(attributes.get(IFLA_LINKINFO, b""))
    kind = _string(info.get(IFLA_INFO_KIND))
    own = info.get(IFLA_INFO_DATA, b"")
    data = attribute_map(own) if kind in ("macvlan", "macvtap") else {}
    limit = data.get(IFLA_MACVLAN_BC_CUTOFF)
    return Link(
        name=_string(attributes.get(IFLA_IFNAME)),
        mac=_mac(attributes.get(IFLA_ADDRESS)),
        mtu=_u32(attributes.get(IFLA_MTU)),
        parent_index=_u32(attributes.get(IFLA_LINK)),
        kind=kind,
        mode=MODE_NAMES.get(_u32(data.get(IFLA_MACVLAN_MODE)), ""),
        up=bool(flags & IFF_UP),
        arp=not flags & IFF_NOARP,
        alias=_string(attributes.get(IFLA_IFALIAS)),
        bcqueuelen=_u32(data.get(IFLA_MACVLAN_BC_QUEUE_LEN)) if IFLA_MACVLAN_BC_QUEUE_LEN in data else None,
        bclim=struct.unpack("=i", limit)[0] if limit else None,
        index=index,
        source_macs=_macs(data.get(IFLA_MACVLAN_MACADDR_DATA)),
        vlan=struct.unpack("=H", attribute_map(own)[IFLA_VLAN_ID])[0] if kind == "vlan" else 0,
    )


def parse_index(body: bytes) -> int:
    """The index of a link."""
    index: int = LINK_HEADER.unpack_from(body)[2]
    return index


def link_fingerprint(body: bytes) -> tuple[object, ...]:
    """What `parse_link` and `parse_parent` would make of a link, to tell whether it has changed."""
    attributes = attribute_map(body, LINK_HEADER.size)
    return LINK_HEADER.unpack_from(body)[:4], *map(attributes.get, FINGERPRINT)


def link_essence(body: bytes) -> tuple[bytes, int, bytes]:
    """All of a link's message as far as its counters, and IFLA_LINKINFO behind them: where it is, and its bytes.

    A message with the same in the same places tells of no change that `link_fingerprint` would see, and to look for
    that takes a tenth of the time (rtnl_fill_ifinfo in net/core/rtnetlink.c has the order).
    """
    offset, counters, start, end = LINK_HEADER.size, len(body), 0, 0
    for kind, value in attributes(body, offset):
        after = offset + ((ATTRIBUTE.size + len(value) + 3) & ~3)
        if kind == IFLA_STATS64:
            counters = offset + ATTRIBUTE.size  # with its header, so that nothing can have come in between
        elif kind == IFLA_LINKINFO and offset > counters:
            start, end = offset, after
        offset = after
    return body[:counters], start, body[start:end]


def parse_parent(body: bytes) -> tuple[Parent, int]:
    """A link as a parent of macvlans, and the index of the link it is a port of, or 0."""
    _, hardware, index, flags, _ = LINK_HEADER.unpack_from(body)
    attributes = attribute_map(body, LINK_HEADER.size)
    info = attribute_map(attributes.get(IFLA_LINKINFO, b""))
    kind = _string(info.get(IFLA_INFO_KIND))
    parent = Parent(
        name=_string(attributes.get(IFLA_IFNAME)),
        index=index,
        mac=_mac(attributes.get(IFLA_ADDRESS)),
        mtu=_u32(attributes.get(IFLA_MTU)),
        up=bool(flags & IFF_UP),
        kind=kind,
        lower_index=_u32(attributes.get(IFLA_LINK)) if kind in ("macvlan", "macvtap") else 0,
        hardware=hardware,
        loopback=bool(flags & IFF_LOOPBACK),
    )
    return parent, _u32(attributes.get(IFLA_MASTER))


def parse_native_xdp(body: bytes) -> bool:
    """Whether an XDP program runs in the driver of a link, or in its hardware."""
    xdp = attribute_map(attribute_map(body, LINK_HEADER.size).get(IFLA_XDP, b""))
    return xdp.get(IFLA_XDP_ATTACHED, b"\0")[0] not in (XDP_ATTACHED_NONE, XDP_ATTACHED_SKB)


def parse_address(body: bytes) -> tuple[int, InterfaceAddress, bool]:
    """The index of the link, the address, and whether others can use it to reach this machine."""
    _, prefixlen, _, scope, index = ADDRESS_HEADER.unpack_from(body)
    attributes = attribute_map(body, ADDRESS_HEADER.size)
    ip = unpacked(attributes.get(IFA_LOCAL) or attributes[IFA_ADDRESS])
    flags = _u32(attributes.get(IFA_FLAGS))
    unusable = IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE
    if ip.version == 6:  # the same bit means "secondary" for IPv4, and such an address is as good as the first
        unusable |= IFA_F_TEMPORARY
    # Host-wide services on 169.254.20.10 (node-local DNS) have scope global as well, unless somebody says otherwise.
    usable = scope < SCOPE_LINK and not flags & unusable and not ip.is_loopback
    return index, InterfaceAddress(ip, prefixlen), usable


def parse_routes(body: bytes) -> Iterator[tuple[int, Route]]:
    """The index of the link and the route, for each next hop; nothing for what is no unicast route."""
    family, prefixlen, _, _, table, protocol, scope, kind, _ = ROUTE_HEADER.unpack_from(body)
    if kind != RTN_UNICAST or family not in (AF_INET, AF_INET6):
        return
    attributes = attribute_map(body, ROUTE_HEADER.size)
    metrics = attribute_map(attributes.get(RTA_METRICS, b""))
    for index, gateway in _next_hops(attributes):
        yield (
            index,
            Route(
                dst=subnet(unpacked(attributes.get(RTA_DST, bytes(4 if family == AF_INET else 16))), prefixlen),
                via=_ip(gateway),
                src=_ip(attributes.get(RTA_PREFSRC)),
                scope=scope,
                metric=_u32(attributes.get(RTA_PRIORITY)),
                table=_u32(attributes.get(RTA_TABLE)) or table,
                mtu=_u32(metrics.get(RTAX_MTU)),
                advmss=_u32(metrics.get(RTAX_ADVMSS)),
                protocol=protocol,
            ),
        )


def _next_hops(attributes: dict[int, bytes]) -> Iterator[tuple[int, bytes | None]]:
    """(link index, gateway) of one or of several (struct rtnexthop, include/uapi/linux/rtnetlink.h) next hops."""
    hops = attributes.get(RTA_MULTIPATH)
    if hops is None:
        yield _u32(attributes.get(RTA_OIF)), attributes.get(RTA_GATEWAY)
        return
    offset = 0
    while offset + NEXTHOP_HEADER.size <= len(hops):
        length, _, _, index = NEXTHOP_HEADER.unpack_from(hops, offset)
        yield index, attribute_map(hops[offset : offset + length], NEXTHOP_HEADER.size).get(RTA_GATEWAY)
        offset += max((length + 3) & ~3, NEXTHOP_HEADER.size)


def parse_parent_nsid(body: bytes) -> int | None:
    """The number of the namespace that the parent of a link is in; None when that is the link's own."""
    number = attribute_map(body, LINK_HEADER.size).get(IFLA_LINK_NETNSID)
    return struct.unpack("=i", number)[0] if number else None


def parse_nsid(body: bytes) -> int:
    """The answer to `get_nsid`, -1 for a namespace that has no number."""
    return int(struct.unpack("=i", attribute_map(body, NSID_HEADER.size)[NETNSA_NSID])[0])


def is_permanent_address(body: bytes) -> bool:
    """Whether an address was given by somebody for good, and not by a router for some time (RFC 4862)."""
    return bool(_u32(attribute_map(body, ADDRESS_HEADER.size).get(IFA_FLAGS)) & IFA_F_PERMANENT)


def parse_bridge_neighbour(body: bytes) -> tuple[int, str]:
    """The index of the link and a MAC that it receives for."""
    _, index, _, _, _ = NEIGHBOUR_HEADER.unpack_from(body)
    return index, _mac(attribute_map(body, NEIGHBOUR_HEADER.size).get(NDA_LLADDR))


def parse_neighbour(body: bytes) -> tuple[int, Neighbour | None]:
    """The index of the link and the entry, None unless it is permanent."""
    _, index, state, _, _ = NEIGHBOUR_HEADER.unpack_from(body)
    attributes = attribute_map(body, NEIGHBOUR_HEADER.size)
    if state != NUD_PERMANENT or NDA_LLADDR not in attributes or NDA_DST not in attributes:
        return index, None
    return index, Neighbour(unpacked(attributes[NDA_DST]), _mac(attributes[NDA_LLADDR]))


def _string(value: bytes | None) -> str:
    return os.fsdecode((value or b"").rstrip(b"\0"))


def _u32(value: bytes | None) -> int:
    return int.from_bytes(value[:4], BYTE_ORDER) if value else 0


def _ip(value: bytes | None) -> Address | None:
    return unpacked(value) if value else None


def _macs(value: bytes | None) -> tuple[str, ...]:
    return tuple(sorted(_mac(mac) for _, mac in attributes(value or b"")))


def _mac(value: bytes | None) -> str:
    return (value or b"").hex(":")
