"""What the kernel's events say: which of them can undo something of ours, on the host or in a pod.

Pure: messages in, values out. A picture of what the events have told so far tells changes from repetitions, for the
kernel tells of a link whenever anything about it moves. `cni.agent.watch` does the listening.
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cni.attachment import PROTO_BOOT, PROTO_SHIMLAN, SCOPE_LINK, SHIM_ALIAS
from cni.frozen import frozen
from cni.netlink import ATTRIBUTE, NLM_F_REPLACE, attribute_map, u32
from cni.rtnetlink import (
    ADDRESS_HEADER,
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    IFA_ADDRESS,
    IFA_LOCAL,
    IFF_NOARP,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_EVENT,
    IFLA_EVENT_FEATURES,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_STATS64,
    LINK_HEADER,
    NDA_DST,
    NDA_LLADDR,
    NEIGHBOUR_HEADER,
    NUD_PERMANENT,
    ROUTE_HEADER,
    RTA_DST,
    RTA_OIF,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)

RTM_DELADDR = 21
# NUD_INCOMPLETE to NUD_PROBE and NUD_NOARP: entries go through them by themselves, but not those that are permanent.
ORDINARY_STATES = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x40
PROTO_KERNEL = 2  # RTPROT_KERNEL: what comes and goes with addresses
FULL_LENGTH = {AF_INET: 32, AF_INET6: 128}
OF_SHIM = SHIM_ALIAS.encode()
OF_CHILD = b"shimlan "  # as in `cni.attachment.Key.alias`
HOST = ""  # the origin of the host's own events; that of others is the identity of their namespace
REASONS_TOLD = 20


@frozen
class Dirty:
    """What has to be looked at again; false when there is nothing."""

    everything: bool = False  # events were lost, and with them what they were about
    host: bool = False
    pods: frozenset[str] = frozenset()  # identities of namespaces (`cni.netns.identity`)
    gone: frozenset[str] = frozenset()  # of namespaces that do not exist any more
    reasons: tuple[str, ...] = ()  # for the log

    def __bool__(self) -> bool:
        return self.everything or self.host or bool(self.pods) or bool(self.gone)

    def __or__(self, other: Dirty) -> Dirty:
        return Dirty(
            everything=self.everything or other.everything,
            host=self.host or other.host,
            pods=self.pods | other.pods,
            gone=self.gone | other.gone,
            reasons=_shortened([*self.reasons, *other.reasons]),
        )


CLEAN = Dirty()


def dirty_of(found: Iterable[tuple[str, str]]) -> Dirty:
    """What is dirty by (origin, reason)s."""
    pairs = list(found)
    origins = {origin for origin, _ in pairs}
    reasons = [f"{origin or 'host'}: {reason}" for origin, reason in pairs]
    return Dirty(host=HOST in origins, pods=frozenset(origins - {HOST}), reasons=_shortened(reasons))


def _shortened(reasons: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reasons))[:REASONS_TOLD]


MINDED = (IFLA_IFNAME, IFLA_MTU, IFLA_ADDRESS, IFLA_MASTER, IFLA_IFALIAS)


class Traits(NamedTuple):
    """What we mind about a link: the attributes as the kernel sends them, and the flags that somebody sets."""

    flags: int
    name: bytes
    mtu: bytes
    address: bytes
    master: bytes
    alias: bytes


OF_FEATURES = u32(IFLA_EVENT, IFLA_EVENT_FEATURES)  # an attribute by which the kernel says why it tells of a link
NOTHING = Traits(0, b"", b"", b"", b"", b"")
NOT_SEEN = b"\xff"  # no message begins like that


class Picture:
    """The links of the host and of pods and the neighbours behind shims, as far as messages have told.

    Of the host everything is to be told at first. Of pods nothing need be: what is not known of them counts as changed.
    """

    def __init__(self) -> None:
        self._links: defaultdict[str, dict[int, tuple[bytes, Traits]]] = defaultdict(dict)
        self._neighbours: dict[tuple[int, bytes], bytes] = {}
        self._readers: dict[int, Callable[[str, int, int, bytes], str]] = {
            RTM_NEWLINK: self._new_link,
            RTM_DELLINK: self._deleted_link,
            RTM_NEWADDR: self._new_address,
            RTM_DELADDR: self._deleted_address,
            RTM_NEWROUTE: self._new_route,
            RTM_DELROUTE: self._deleted_route,
            RTM_NEWNEIGH: self._new_neighbour,
        }

    def forget(self, origin: str) -> None:
        """Forget all about a namespace."""
        self._links.pop(origin, None)
        if origin == HOST:
            self._neighbours.clear()

    def reason(self, origin: str, kind: int, flags: int = 0, port: int = 0, body: bytes = b"") -> str:
        """Why a message makes its origin dirty, "" when it does not; the picture is up to date afterwards.

        `kind`, `flags` and `port` are those of the header: type, flags and the port of who asked for the change, 0 if
        nobody did. Answers to a dump complete the picture as events do. What cannot be read counts.
        """
        reader = self._readers.get(kind)
        if reader is None:
            return ""
        try:
            return reader(origin, flags, port, body)
        except struct.error:
            return f"a message of type {kind} that ends too early"

    # --- links -------------------------------------------------------------------------------------------------

    def _new_link(self, origin: str, _flags: int, _port: int, body: bytes) -> str:
        family, _, index, _, _ = LINK_HEADER.unpack_from(body)
        if family != AF_UNSPEC:  # bridges tell of their ports in messages of the same type
            return ""
        head, before = self._links[origin].get(index, (NOT_SEEN, NOTHING))
        if body.startswith(head):  # nothing but counters can have changed: with every child its parent tells that
            return ""
        head, traits = _traits(body)
        self._links[origin][index] = head, traits
        if origin == HOST and OF_FEATURES in head:  # offload, perhaps
            return f"features of link {_text(traits.name)} changed"
        if traits == before or (origin != HOST and not (_is_child(before) or _is_child(traits))):
            return ""
        differences = (field for field, old, new in zip(Traits._fields, before, traits, strict=True) if old != new)
        how = f"changed: {', '.join(differences)}" if before.name else "not seen before"
        return f"link {_text(traits.name)} {how}"

    def _deleted_link(self, origin: str, _flags: int, _port: int, body: bytes) -> str:
        family, _, index, _, _ = LINK_HEADER.unpack_from(body)
        if family != AF_UNSPEC:
            return ""
        self._links[origin].pop(index, None)
        if origin == HOST:
            self._neighbours = {key: mac for key, mac in self._neighbours.items() if key[0] != index}
        _, traits = _traits(body)
        return f"link {_text(traits.name)} deleted" if origin == HOST or _is_child(traits) else ""

    def _is_ours(self, origin: str, index: int) -> bool:
        """Whether a link is a shim on the host, or a child of ours in a pod; there, it may be one not heard of yet."""
        _, link = self._links[origin].get(index, (NOT_SEEN, NOTHING))
        if origin == HOST:
            return link.alias.startswith(OF_SHIM)
        return link is NOTHING or _is_child(link)

    # --- addresses ---------------------------------------------------------------------------------------------

    def _new_address(self, origin: str, _flags: int, _port: int, body: bytes) -> str:
        _, _, _, scope, _ = ADDRESS_HEADER.unpack_from(body)
        return f"address {_address(body)} added or changed" if origin == HOST and scope < SCOPE_LINK else ""

    def _deleted_address(self, origin: str, _flags: int, _port: int, body: bytes) -> str:
        _, _, _, scope, index = ADDRESS_HEADER.unpack_from(body)
        minded = scope < SCOPE_LINK and (origin == HOST or self._is_ours(origin, index))
        return f"address {_address(body)} deleted" if minded else ""

    # --- routes ------------------------------------------------------------------------------------------------

    def _new_route(self, origin: str, flags: int, _port: int, body: bytes) -> str:
        """A route beside others undoes nothing. One that replaces another does not say which: ours may be among them.

        On the host ours are all of full length.
        """
        if not flags & NLM_F_REPLACE:
            return ""
        family, prefixlen, *_ = ROUTE_HEADER.unpack_from(body)
        minded = origin != HOST or prefixlen == FULL_LENGTH.get(family)
        return f"route {_destination(body)} replaced" if minded else ""

    def _deleted_route(self, origin: str, _flags: int, _port: int, body: bytes) -> str:
        _, _, _, _, _, protocol, _, _, _ = ROUTE_HEADER.unpack_from(body)
        if origin == HOST:
            minded = protocol == PROTO_SHIMLAN
        else:
            minded = protocol in (PROTO_SHIMLAN, PROTO_BOOT) and self._is_ours(origin, _through(body))
        return f"route {_destination(body)} deleted" if minded else ""

    # --- neighbours --------------------------------------------------------------------------------------------

    def _new_neighbour(self, origin: str, _flags: int, port: int, body: bytes) -> str:
        family, index, state, _, _ = NEIGHBOUR_HEADER.unpack_from(body)
        if family not in FULL_LENGTH or not self._is_ours(origin, index):
            return ""
        if not port and state & ORDINARY_STATES:
            return ""
        attributes = attribute_map(body, NEIGHBOUR_HEADER.size)
        ip = attributes.get(NDA_DST, b"")
        if origin == HOST:
            minded = self._is_other_neighbour((index, ip), state, attributes.get(NDA_LLADDR, b""))
        else:
            # Which entries of a pod are permanent nobody told us. Somebody has to ask for a change of those, and to
            # delete one is to make it fail first (neigh_delete in net/core/neighbour.c).
            minded = port != 0
        return f"neighbour {_ip(ip)} changed" if minded else ""

    def _is_other_neighbour(self, key: tuple[int, bytes], state: int, mac: bytes) -> bool:
        """Whether an entry behind a shim is not what it was; a new one undoes nothing."""
        if state != NUD_PERMANENT:
            return self._neighbours.pop(key, None) is not None
        before = self._neighbours.get(key, mac)
        self._neighbours[key] = mac
        return before != mac


def _is_child(link: Traits) -> bool:
    return link.alias.startswith(OF_CHILD)


def _traits(body: bytes) -> tuple[bytes, Traits]:
    """What a message says of a link before it comes to counters, as it is and as we understand it.

    All that we mind comes before them (rtnl_fill_ifinfo in net/core/rtnetlink.c). Of forty attributes only those are
    cut out: with `cni.netlink.attributes` this would be most of the work on all events.
    """
    _, _, _, flags, _ = LINK_HEADER.unpack_from(body)
    found: dict[int, bytes] = {}
    offset, last, unpack = LINK_HEADER.size, len(body) - ATTRIBUTE.size, ATTRIBUTE.unpack_from
    while offset <= last:
        length, kind = unpack(body, offset)
        if kind == IFLA_STATS64 or length < ATTRIBUTE.size:
            break
        if kind in MINDED:
            found[kind] = body[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return body[:offset], Traits(flags & (IFF_UP | IFF_NOARP), *[found.get(kind, b"") for kind in MINDED])


def _through(body: bytes) -> int:
    """The index of the link that a route goes through, 0 for several or none."""
    (index,) = struct.unpack("=I", attribute_map(body, ROUTE_HEADER.size).get(RTA_OIF, bytes(4)))
    return int(index)


def _destination(body: bytes) -> str:
    prefixlen = ROUTE_HEADER.unpack_from(body)[1]
    packed = attribute_map(body, ROUTE_HEADER.size).get(RTA_DST)
    return f"{_ip(packed)}/{prefixlen}" if packed else "default"


def _address(body: bytes) -> str:
    attributes = attribute_map(body, ADDRESS_HEADER.size)
    return _ip(attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS, b""))


def _ip(packed: bytes) -> str:
    try:
        return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    except ValueError:
        return packed.hex() or "?"


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
