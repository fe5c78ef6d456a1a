"""The door to the kernel: what is there (facts, views), and changes applied one by one.

The only module that speaks rtnetlink and writes sysctls. It decides nothing: what is wanted comes from
`cni.attachment`, what to change from `cni.diff`.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import time
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network

from cni import netns
from cni.attachment import (
    MAIN_TABLE,
    SCOPE_LINK,
    SHIM_ALIAS,
    Facts,
    InterfaceAddress,
    Link,
    Neighbour,
    Parent,
    Route,
    View,
    shim_name,
    wants_shim,
)
from cni.diff import AddAddress, AddLink, ReplaceNeighbour, ReplaceRoute, SetSysctl, SetUp
from cni.errors import InvalidConfig, KernelRefused, ParentUnusable
from cni.frozen import replace
from cni.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    NetlinkError,
    Socket,
    attribute,
    attribute_map,
    nest,
    text,
    u32,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from cni.config import NetConf
    from cni.diff import Change

    Address = IPv4Address | IPv6Address

# include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,if}.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTMGRP_LINK = 1
RTN_UNICAST = 1
RT_TABLE_UNSPEC = 0
AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
FAMILY = {4: AF_INET, 6: AF_INET6}

IFF_UP, IFF_LOOPBACK, IFF_NOARP = 0x1, 0x8, 0x80
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD, IFLA_NUM_TX_QUEUES = 18, 20, 28, 31
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_MACVLAN_MODE, IFLA_MACVLAN_BC_QUEUE_LEN, IFLA_MACVLAN_BC_CUTOFF = 1, 7, 9
MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16}
MODE_NAMES = {number: name for name, number in MODES.items()}

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_TEMPORARY, IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x01, 0x02, 0x08, 0x20, 0x40
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_TABLE = 9, 15
RTAX_MTU, RTAX_ADVMSS = 2, 8
NDA_DST, NDA_LLADDR, NDA_IFINDEX = 1, 2, 8
NUD_PERMANENT = 0x80

LINK_HEADER = struct.Struct("=BxHiII")
ADDRESS_HEADER = struct.Struct("=BBBBi")
ROUTE_HEADER = struct.Struct("=BBBBBBBBI")
NEIGHBOUR_HEADER = struct.Struct("=BxxxiHBB")
NEXTHOP_HEADER = struct.Struct("=HBBi")

# A namespace that goes away frees the MACs of its links only some 40 ms later.
MAC_RETRY_SECONDS = 0.25
MAC_RETRY_PAUSE = 0.005
DELETE_SECONDS = 20.0


class Namespace:
    """A network namespace, the host's or a pod's, with a netlink socket in it. `fd` None is the current one."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = fd
        self._socket = self._open_socket()

    def _open_socket(self, groups: int = 0) -> Socket:
        with netns.entered(self.fd):
            return Socket(groups=groups)

    def close(self) -> None:
        """Close the socket; the descriptor is its owner's."""
        self._socket.close()

    # --- what is there -----------------------------------------------------------------------------------------

    def link(self, name: str) -> Link | None:
        """The link of that name."""
        return self._get_link(LINK_HEADER.pack(AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name))

    def _get_link(self, body: bytes) -> Link | None:
        try:
            return _parse_link(self._socket.get(Message(RTM_GETLINK, 0, body)))
        except NetlinkError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT):
                return None
            raise KernelRefused(f"cannot read links: {error.strerror}") from error

    def child(self, wanted: Link) -> Link | None:
        """Our child, wherever a pod has renamed it to; never a link that only happens to have its name.

        The alias says whose a link is. A link without one may be ours if we were killed while setting it up: then it
        has the MAC that was recorded for it.
        """
        named = self.link(wanted.name)
        candidates = [named] if named is not None and _is_same(named, wanted) else self.links()
        return next((link for link in candidates if _is_same(link, wanted)), None)

    def links(self) -> list[Link]:
        """All links; those that are no macvlan have no mode."""
        message = Message(RTM_GETLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, 0, 0, 0))
        return [_parse_link(body) for _, body in self._socket.dump(message)]

    def parent(self, name: str) -> Parent | None:
        """The link of that name as a parent of macvlans."""
        body = LINK_HEADER.pack(AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
        try:
            answer = self._socket.get(Message(RTM_GETLINK, 0, body))
        except NetlinkError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT):
                return None
            raise KernelRefused(f"cannot read link {name}: {error.strerror}") from error
        return self._with_master(*_parse_parent(answer))

    def _with_master(self, parent: Parent, master_index: int) -> Parent:
        if not master_index:
            return parent
        master = self._get_link(LINK_HEADER.pack(AF_UNSPEC, 0, master_index, 0, 0))
        if master is None:
            return parent
        # Open vSwitch's datapath link carries no kind; its name is always ovs-system.
        kind = "openvswitch" if master.name == "ovs-system" else master.kind
        return replace(parent, master=master.name, master_kind=kind)

    def addresses(self, index: int = 0) -> list[tuple[int, InterfaceAddress]]:
        """(link index, address) of all usable addresses of global scope, in the kernel's order; of one link or all."""
        message = Message(RTM_GETADDR, 0, ADDRESS_HEADER.pack(AF_UNSPEC, 0, 0, 0, index))
        found = (_parse_address(body) for _, body in self._socket.dump(message))
        return [(owner, address) for owner, address, usable in found if usable and index in (0, owner)]

    def routes(self, index: int) -> list[Route]:
        """The unicast routes through a link, of both families and all tables."""
        return [route for _, route in self._dump_routes(u32(RTA_OIF, index)) if route]

    def default_link(self) -> str:
        """The name of the link of the default route, of IPv4 before IPv6, of the lowest metric; "" without any."""
        for family in (AF_INET, AF_INET6):
            defaults = [
                (route.metric, index)
                for index, route in self._dump_routes(u32(RTA_TABLE, MAIN_TABLE), (family,))
                if route.dst.prefixlen == 0 and index
            ]
            if defaults:
                link = self._get_link(LINK_HEADER.pack(AF_UNSPEC, 0, min(defaults)[1], 0, 0))
                return link.name if link else ""
        return ""

    def _dump_routes(
        self, selector: bytes, families: Iterable[int] = (AF_INET, AF_INET6)
    ) -> Iterator[tuple[int, Route]]:
        for family in families:
            header = ROUTE_HEADER.pack(family, 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, 0, 0)
            for _, body in self._socket.dump(Message(RTM_GETROUTE, 0, header + selector)):
                parsed = _parse_route(body)
                if parsed is not None:
                    yield parsed

    def neighbours(self, index: int) -> list[Neighbour]:
        """The permanent neighbour entries of a link."""
        header = NEIGHBOUR_HEADER.pack(AF_UNSPEC, 0, 0, 0, 0)
        message = Message(RTM_GETNEIGH, 0, header + u32(NDA_IFINDEX, index))
        found = (_parse_neighbour(body) for _, body in self._socket.dump(message))
        return [entry for owner, entry in found if entry is not None and owner == index]

    def view(self, name: str) -> View:
        """What is there of a link, its addresses, routes and permanent neighbours."""
        link = self.link(name)
        if link is None:
            return View()
        return View(
            link=link,
            addresses=tuple(address for _, address in self.addresses(link.index)),
            routes=tuple(self.routes(link.index)),
            neighbours=tuple(self.neighbours(link.index)),
        )

    # --- making it so ------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change], parents: Namespace) -> None:
        """Apply changes of one link in their order; `parents` is where its parent lives.

        Raises ParentUnusable or KernelRefused at the first that the kernel refuses; those before it stay.
        """
        index = 0
        rest = []
        for change in changes:
            if isinstance(change, AddLink):
                self._create(change, parents)
                index = self._index(change.link.name)
            elif isinstance(change, SetSysctl):
                self._set_sysctl(change)
            else:
                rest.append(change)
        if rest:
            self._send(rest, index or self._index(_link_name(rest[0])))

    def _index(self, name: str) -> int:
        link = self.link(name)
        if link is None:
            raise KernelRefused(f"{name} vanished while it was set up")
        return link.index

    def _create(self, change: AddLink, parents: Namespace) -> None:
        """One message that puts the link into its namespace under its final name.

        Kernels before early 2025 look the name up in the parent's namespace; there a temporary name and a rename help.
        """
        name = change.link.name
        error = self._try_create(change.link, name, parents)
        if error is None:
            return
        if error.errno != errno.EEXIST or parents is self:
            raise _explained(change, error)
        if self.link(name) is not None:
            raise KernelRefused(f"{name} already exists in the container's namespace: choose another CNI_IFNAME")
        temporary = f"sl{os.urandom(5).hex()}"
        error = self._try_create(change.link, temporary, parents)
        if error is None:
            body = LINK_HEADER.pack(AF_UNSPEC, 0, self._index(temporary), 0, 0) + text(IFLA_IFNAME, name)
            (error,) = self._socket.request([Message(RTM_SETLINK, 0, body)])
        if error is not None:
            raise _explained(change, error)

    def _try_create(self, link: Link, name: str, parents: Namespace) -> NetlinkError | None:
        message = _new_link(link, name, None if parents is self else self.fd)
        (error,) = parents._socket.request([message])
        return error

    def _set_sysctl(self, change: SetSysctl) -> None:
        family, key = change.name.split("/")
        path = f"/proc/sys/net/{family}/conf/{change.link}/{key}"
        try:
            with netns.entered(self.fd):
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, change.value.encode())
                finally:
                    os.close(fd)
        except FileNotFoundError:
            # A kernel without IPv6 needs none of its sysctls; an IPv6 address is refused later, with a better reason.
            if family != "ipv6":
                raise KernelRefused(f"{change}: {path} does not exist") from None
        except OSError as error:
            raise KernelRefused(f"{change}: {error.strerror}; is /proc/sys mounted read-only?") from error

    def _send(self, changes: Sequence[Change], index: int) -> None:
        messages = [_encode(change, index) for change in changes]
        start, deadline = 0, time.monotonic() + MAC_RETRY_SECONDS
        while True:
            answers = self._socket.request(messages[start:])
            failed = next((number for number, answer in enumerate(answers) if answer), None)
            if failed is None:
                return
            start += failed
            error = answers[failed]
            assert error is not None
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise _explained(changes[start], error)
            time.sleep(MAC_RETRY_PAUSE)

    def remove_host_entries(self, view: View) -> None:
        """Remove the routes and neighbours of a view from its link; those that are gone already are fine."""
        if view.link is None or (link := self.link(view.link.name)) is None:
            return
        messages = [_route_message(RTM_DELROUTE, 0, route, link.index) for route in view.routes]
        messages += [_neighbour_message(RTM_DELNEIGH, 0, entry, link.index) for entry in view.neighbours]
        for error in self._socket.request(messages):
            if error and error.errno not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
                raise KernelRefused(f"cannot remove entries of {link.name}: {error.strerror}") from error

    def delete_link(self, index: int) -> None:
        """Delete a link; returns when the kernel says that it is gone, which is well before it answers.

        The answer to RTM_DELLINK comes after some 17 ms of RCU waits (netdev_run_todo in net/core/dev.c), the
        notification at once, and then name and MAC are free. A child process sits out the wait.
        """
        with _closing(self._open_socket(RTMGRP_LINK)) as watch, _closing(self._open_socket()) as sender:
            done = _in_child(lambda: _delete(sender, index))
            try:
                _wait_until_gone(watch, done, index)
            finally:
                os.close(done)


def _is_same(link: Link, wanted: Link) -> bool:
    if link.kind != wanted.kind:
        return False
    return link.alias == wanted.alias if link.alias else link.mac == wanted.mac


@contextmanager
def _closing(socket: Socket) -> Iterator[Socket]:
    try:
        yield socket
    finally:
        socket.close()


def _delete(socket: Socket, index: int) -> int:
    (error,) = socket.request([Message(RTM_DELLINK, 0, LINK_HEADER.pack(AF_UNSPEC, 0, index, 0, 0))])
    return error.errno or 0 if error else 0


def _in_child(action: Callable[[], int]) -> int:
    """Run `action` in a child process; the descriptor returned yields its number as one byte.

    The child lets go of the standard streams at once: a runtime reads ours until the last holder has closed them.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return reader
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(reader)
        os.write(writer, bytes([action() & 0xFF]))
    finally:
        os._exit(0)


def _wait_until_gone(watch: Socket, done: int, index: int) -> None:
    poller = select.poll()
    poller.register(watch.fileno(), select.POLLIN)
    poller.register(done, select.POLLIN)
    deadline = time.monotonic() + DELETE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(left * 1000):
            if fd == done:
                _raise_unless_gone(os.read(done, 1))
                return
            with suppress(OSError):  # ENOBUFS: too many notifications; the child's answer will do
                if any(_is_deletion(kind, body, index) for kind, _, _, body in watch.receive()):
                    return
    raise KernelRefused(f"the kernel did not remove the link within {DELETE_SECONDS:.0f} s")


def _raise_unless_gone(answer: bytes) -> None:
    code = answer[0] if answer else errno.EIO
    if code not in (0, errno.ENODEV):
        raise KernelRefused(f"cannot remove the link: {os.strerror(code)}")


def _is_deletion(kind: int, body: bytes, index: int) -> bool:
    return kind == RTM_DELLINK and bool(LINK_HEADER.unpack_from(body)[2] == index)


# --- facts -------------------------------------------------------------------------------------------------------


def find_parent(conf: NetConf, namespace: Namespace) -> Parent:
    """The parent that the configuration names, else the link of the default route; raises ParentUnusable."""
    name = conf.master or namespace.default_link()
    if not name:
        raise ParentUnusable('there is no default route to take the parent from: set "master" to the NIC of the LAN')
    parent = namespace.parent(name)
    if parent is None:
        there = ", ".join(link.name for link in namespace.links() if link.name != "lo") or "none"
        raise ParentUnusable(f'there is no link {name}: set "master" to one that exists ({there})')
    return parent


def facts(conf: NetConf, namespace: Namespace) -> Facts:
    """The parent and the host's addresses; `namespace` is where the parent lives. Raises ParentUnusable."""
    parent = find_parent(conf, namespace)
    own = tuple(address for _, address in namespace.addresses(parent.index))
    if not wants_shim(conf, parent):
        return Facts(parent, own)
    automatic = own + _elsewhere(namespace, own) if conf.shim.auto_addresses else ()
    reached = automatic + _by_hand(conf, namespace, automatic)
    shim = namespace.link(shim_name(parent.index))
    return Facts(parent, own, reached, shim.mac if shim and shim.alias.startswith(SHIM_ALIAS) else "")


def _elsewhere(namespace: Namespace, own: Sequence[InterfaceAddress]) -> tuple[InterfaceAddress, ...]:
    """For each family in which the parent has no address: the first one of the link of the default route."""
    missing = {4, 6} - {address.ip.version for address in own}
    if not missing or not (name := namespace.default_link()):
        return ()
    link = namespace.link(name)
    if link is None:
        return ()
    there = [address for _, address in namespace.addresses(link.index)]
    firsts = (next((a for a in there if a.ip.version == family), None) for family in sorted(missing))
    return tuple(address for address in firsts if address)


def _by_hand(
    conf: NetConf, namespace: Namespace, automatic: Sequence[InterfaceAddress]
) -> tuple[InterfaceAddress, ...]:
    wanted = [ip for ip in conf.shim.host_addresses if ip not in {address.ip for address in automatic}]
    if not wanted:
        return ()
    there = {address.ip: address for _, address in namespace.addresses()}
    for ip in wanted:
        if ip not in there:
            raise InvalidConfig(f"shim.hostAddresses: {ip} is no address of this host")
    return tuple(there[ip] for ip in wanted)


# --- messages ----------------------------------------------------------------------------------------------------


def _new_link(link: Link, name: str, netns_fd: int | None) -> Message:
    data = u32(IFLA_MACVLAN_MODE, MODES[link.mode])
    if link.bcqueuelen is not None:
        data += u32(IFLA_MACVLAN_BC_QUEUE_LEN, link.bcqueuelen)
    if link.bclim is not None:
        data += attribute(IFLA_MACVLAN_BC_CUTOFF, struct.pack("=i", link.bclim))
    body = LINK_HEADER.pack(AF_UNSPEC, 0, 0, 0, 0)
    body += text(IFLA_IFNAME, name) + u32(IFLA_LINK, link.parent_index) + u32(IFLA_MTU, link.mtu)
    body += attribute(IFLA_ADDRESS, bytes.fromhex(link.mac.replace(":", "")))
    if link.tx_queues:
        body += u32(IFLA_NUM_TX_QUEUES, link.tx_queues)
    if netns_fd is not None:
        body += u32(IFLA_NET_NS_FD, netns_fd)
    body += nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, link.kind), nest(IFLA_INFO_DATA, data))
    # Without EXCL a link that has the name already is changed instead, and nobody notices.
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _encode(change: Change, index: int) -> Message:
    match change:
        case SetUp(link):
            flags = IFF_UP | (0 if link.arp else IFF_NOARP)
            header = LINK_HEADER.pack(AF_UNSPEC, 0, index, flags, IFF_UP | IFF_NOARP)
            return Message(RTM_SETLINK, 0, header + text(IFLA_IFALIAS, link.alias))
        case AddAddress(_, address):
            return _address_message(address, index)
        case ReplaceRoute(_, route):
            return _route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route, index)
        case ReplaceNeighbour(_, neighbour):
            return _neighbour_message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, neighbour, index)
    raise KernelRefused(f"{change}: only a new link can have this")


def _address_message(address: InterfaceAddress, index: int) -> Message:
    ip, prefixlen = address.ip, address.prefixlen
    flags = IFA_F_NODAD if ip.version == 6 else 0
    body = ADDRESS_HEADER.pack(FAMILY[ip.version], prefixlen, flags, 0, index)
    body += attribute(IFA_LOCAL, ip.packed) + attribute(IFA_ADDRESS, ip.packed)
    if ip.version == 4 and prefixlen < 31:
        broadcast = ip_network((ip, prefixlen), strict=False).broadcast_address
        body += attribute(IFA_BROADCAST, broadcast.packed)
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
    return Message(kind, flags, body + attribute(NDA_LLADDR, bytes.fromhex(neighbour.mac.replace(":", ""))))


def _link_name(change: Change) -> str:
    match change:
        case AddLink(link) | SetUp(link):
            return link.name
    return str(getattr(change.link, "name", change.link))


# --- answers -----------------------------------------------------------------------------------------------------


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = LINK_HEADER.unpack_from(body)
    attributes = attribute_map(body, LINK_HEADER.size)
    info = attribute_map(attributes.get(IFLA_LINKINFO, b""))
    kind = _string(info.get(IFLA_INFO_KIND))
    data = attribute_map(info.get(IFLA_INFO_DATA, b"")) if kind in ("macvlan", "macvtap") else {}
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
    )


def _parse_parent(body: bytes) -> tuple[Parent, int]:
    _, hardware, index, flags, _ = LINK_HEADER.unpack_from(body)
    attributes = attribute_map(body, LINK_HEADER.size)
    info = attribute_map(attributes.get(IFLA_LINKINFO, b""))
    parent = Parent(
        name=_string(attributes.get(IFLA_IFNAME)),
        index=index,
        mac=_mac(attributes.get(IFLA_ADDRESS)),
        mtu=_u32(attributes.get(IFLA_MTU)),
        up=bool(flags & IFF_UP),
        kind=_string(info.get(IFLA_INFO_KIND)),
        hardware=hardware,
        loopback=bool(flags & IFF_LOOPBACK),
    )
    return parent, _u32(attributes.get(IFLA_MASTER))


def _parse_address(body: bytes) -> tuple[int, InterfaceAddress, bool]:
    _, prefixlen, _, scope, index = ADDRESS_HEADER.unpack_from(body)
    attributes = attribute_map(body, ADDRESS_HEADER.size)
    ip = ip_address(attributes.get(IFA_LOCAL) or attributes[IFA_ADDRESS])
    flags = _u32(attributes.get(IFA_FLAGS))
    unusable = IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE
    if ip.version == 6:  # the same bit means "secondary" for IPv4, and such an address is as good as the first
        unusable |= IFA_F_TEMPORARY
    # Host-wide services on 169.254.20.10 (node-local DNS) have scope global as well, unless somebody says otherwise.
    usable = scope < SCOPE_LINK and not flags & unusable and not ip.is_loopback
    return index, InterfaceAddress(ip, prefixlen), usable


def _parse_route(body: bytes) -> tuple[int, Route] | None:
    family, prefixlen, _, _, table, protocol, scope, kind, _ = ROUTE_HEADER.unpack_from(body)
    if kind != RTN_UNICAST or family not in (AF_INET, AF_INET6):
        return None
    attributes = attribute_map(body, ROUTE_HEADER.size)
    dst = attributes.get(RTA_DST, bytes(4 if family == AF_INET else 16))
    metrics = attribute_map(attributes.get(RTA_METRICS, b""))
    index = _u32(attributes.get(RTA_OIF))
    if not index and (hops := attributes.get(RTA_MULTIPATH)):
        index = NEXTHOP_HEADER.unpack_from(hops)[3]
    return index, Route(
        dst=ip_network((dst, prefixlen)),
        via=_ip(attributes.get(RTA_GATEWAY)),
        src=_ip(attributes.get(RTA_PREFSRC)),
        scope=scope,
        metric=_u32(attributes.get(RTA_PRIORITY)),
        table=_u32(attributes.get(RTA_TABLE)) or table,
        mtu=_u32(metrics.get(RTAX_MTU)),
        advmss=_u32(metrics.get(RTAX_ADVMSS)),
        protocol=protocol,
    )


def _parse_neighbour(body: bytes) -> tuple[int, Neighbour | None]:
    _, index, state, _, _ = NEIGHBOUR_HEADER.unpack_from(body)
    attributes = attribute_map(body, NEIGHBOUR_HEADER.size)
    if state != NUD_PERMANENT or NDA_LLADDR not in attributes or NDA_DST not in attributes:
        return index, None
    return index, Neighbour(ip_address(attributes[NDA_DST]), _mac(attributes[NDA_LLADDR]))


def _string(value: bytes | None) -> str:
    return os.fsdecode((value or b"").rstrip(b"\0"))


def _u32(value: bytes | None) -> int:
    return int.from_bytes(value[:4], "little" if struct.pack("=H", 1) == b"\1\0" else "big") if value else 0


def _ip(value: bytes | None) -> Address | None:
    return ip_address(value) if value else None


def _mac(value: bytes | None) -> str:
    return (value or b"").hex(":")


# --- refusals ----------------------------------------------------------------------------------------------------


def _explained(change: Change, error: NetlinkError) -> KernelRefused | ParentUnusable:
    """The kernel's refusal in words that say what to do; macvlan itself gives none (drivers/net/macvlan.c)."""
    code = error.errno
    if isinstance(change, AddLink) and (reason := _refused_link(change.link, code)):
        return ParentUnusable(reason, f"{change}: {error.strerror}")
    unreachable = "the gateway is in no subnet of the pod: correct ipam.routes or the gateway of the range"
    reason = {
        errno.EPERM: "run it as root (CAP_NET_ADMIN in the namespaces concerned)",
        errno.EADDRINUSE: "another link on the same parent has this MAC: choose another, or macPolicy random",
        errno.ENETUNREACH: unreachable,
        errno.EHOSTUNREACH: unreachable,
    }.get(code or 0, "")
    return KernelRefused(f"{change}: {error.strerror}" + (f"; {reason}" if reason else ""))


def _refused_link(link: Link, code: int | None) -> str:
    parent = f"the parent (if{link.parent_index})"
    return {
        errno.EBUSY: f"{parent} is used by a bridge, bond, Open vSwitch or ipvlan: use that device as master instead",
        errno.EINVAL: f"{parent} refuses another child: one in mode passthru excludes all others, the shim included",
        errno.ENODEV: f"{parent} is gone: is the NIC still there?",
        errno.EADDRNOTAVAIL: f"{link.mac} is no unicast MAC",
        errno.EOPNOTSUPP: "this kernel has no macvlan: load it with `modprobe macvlan`",
        errno.EPERM: "creating links needs root (CAP_NET_ADMIN in the host's and the pod's namespace)",
    }.get(code or 0, "")
