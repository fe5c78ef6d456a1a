"""The door to the kernel: what is there (facts, views), and changes applied one by one.

With `cni.deletion` the only module that talks to rtnetlink, and the only one that writes sysctls. It decides nothing:
what is wanted comes from `cni.attachment`, what to change from `cni.diff`, and how to say it from `cni.rtnetlink`.
"""

from __future__ import annotations

import errno
import os
import time

from cni import deletion, netns, rtnetlink
from cni.attachment import MAIN_TABLE, SHIM_ALIAS, SILENT, Facts, Link, View, shim_name, wants_shim
from cni.diff import AddLink, SetRoute, SetSysctl, SetUp
from cni.errors import CniError, InvalidConfig, KernelRefused, ParentUnusable
from cni.frozen import replace
from cni.netlink import NetlinkError, Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from cni.attachment import InterfaceAddress, Neighbour, Parent, Route, Vlan
    from cni.config import NetConf
    from cni.deletion import Background
    from cni.diff import Change
    from cni.netlink import Message

# A namespace that goes away frees the MACs of its links only some 40 ms later.
MAC_RETRY_SECONDS = 0.25
MAC_RETRY_PAUSE = 0.005

PROBE_NAME = "slprobe"  # and eight digits, of a child that lives for milliseconds

SYSCTLS = "/proc/sys/net"
# In a container the former is read-only, and our manifest mounts the host's here. Either has the files of the namespace
# of whoever opens them (decision 0024).
SYSCTLS_OF_HOST = "/host/proc/sys/net"

GONE = (errno.ENODEV, errno.ENOENT)  # what was asked about


class Namespace:
    """A network namespace, the host's or a pod's, with a netlink socket in it. `fd` None is the current one."""

    def __init__(self, fd: int | None = None, background: Background = deletion.in_child) -> None:
        self.fd = fd
        self._background = background
        try:
            with netns.entered(fd):
                self._socket = Socket()
        except OSError as error:
            raise KernelRefused(f"cannot open a netlink socket: {error.strerror}") from error

    def close(self) -> None:
        """Close the socket; the descriptor is its owner's."""
        self._socket.close()

    def cookie(self) -> int:
        """What tells the namespace from all others of this boot (`cni.netlink.Socket.netns_cookie`)."""
        return self._socket.netns_cookie()

    # --- what is there -----------------------------------------------------------------------------------------

    def link(self, name: str) -> Link | None:
        """The link of that name."""
        body = self._get(rtnetlink.get_link(name))
        return rtnetlink.parse_link(body) if body else None

    def link_at(self, index: int) -> Link | None:
        """The link with that index."""
        body = self._get(rtnetlink.get_link(index=index))
        return rtnetlink.parse_link(body) if body else None

    def _get(self, question: Message) -> bytes | None:
        try:
            return self._socket.get(question)
        except NetlinkError as error:
            if error.errno in GONE:
                return None
            raise KernelRefused(f"cannot read links: {error.strerror}") from error

    def _request(self, messages: Sequence[Message]) -> list[NetlinkError | None]:
        try:
            return self._socket.request(messages)
        except NetlinkError as error:
            raise KernelRefused(f"cannot talk to the kernel: {error.strerror}") from error

    def _dump(self, question: Message) -> list[bytes]:
        try:
            return [body for _, body in self._socket.dump(question)]
        except NetlinkError as error:
            if error.errno in GONE:
                return []
            raise KernelRefused(f"cannot read the network's state: {error.strerror}") from error

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
        return [rtnetlink.parse_link(body) for body in self._dump(rtnetlink.dump_links())]

    def children_of(self, home: int) -> list[tuple[Link, bool]]:
        """The links whose parents are in the namespace of a descriptor, or in this one; True for the latter."""
        bodies = self._dump(rtnetlink.dump_links())
        # The kernel numbers the namespace of a parent when it tells of it for the first time.
        number = rtnetlink.parse_nsid(self._socket.get(rtnetlink.get_nsid(home)))
        found = ((rtnetlink.parse_link(body), rtnetlink.parse_parent_nsid(body)) for body in bodies)
        return [(link, nsid is None) for link, nsid in found if link.parent_index and nsid in (None, number)]

    def received_macs(self, index: int) -> set[str]:
        """The MACs that a link receives for besides its own: those of its children that are up, wherever they are."""
        if self.link_at(index) is None:
            return set()
        answers = self._dump(rtnetlink.dump_bridge_neighbours(index))
        return {mac for owner, mac in map(rtnetlink.parse_bridge_neighbour, answers) if owner == index}

    def is_taken(self, index: int, mac: str) -> bool:
        """Whether a link has a child that is up with that MAC, wherever it is: the kernel lets no second one come up.

        For what no list tells. Tried with a child that says nothing, which takes milliseconds. Raises KernelRefused.
        """
        parent = self.link_at(index)
        if parent is None:
            return False
        name = f"{PROBE_NAME}{os.urandom(4).hex()}"
        probe = Link(name, mac, parent.mtu, index, mode="private", arp=False, tx_queues=2, parent=parent.name)
        self._create(AddLink(probe), self)
        made = self._index(name)
        try:
            self._set_sysctls([SetSysctl(name, key, value) for key, value in SILENT if key.startswith("ipv6/")])
            (refusal,) = self._request([rtnetlink.encode(SetUp(probe), made)])
        finally:
            self.delete_link(made)
        # Without the link, which somebody took for one that was left, nothing is known: then nobody shall be disturbed.
        return refusal is not None and refusal.errno in (errno.EADDRINUSE, errno.ENODEV)

    def parent(self, name: str) -> Parent | None:
        """The link of that name as a parent of macvlans."""
        body = self._get(rtnetlink.get_link(name))
        if body is None:
            return None
        parent, master_index = rtnetlink.parse_parent(body)
        if not parent.kind and _is_wireless(parent):
            parent = replace(parent, wireless=True)
        master = self.link_at(master_index) if master_index else None
        if master is None:
            return parent
        return replace(parent, master=master.name, master_kind=master.kind)

    def runs_xdp(self, index: int) -> bool:
        """Whether an XDP program runs in the driver of a link."""
        body = self._get(rtnetlink.get_link(index=index))
        return bool(body) and rtnetlink.parse_native_xdp(body or b"")

    def addresses(self, index: int = 0, permanent: bool = False) -> list[tuple[int, InterfaceAddress]]:
        """(link index, address) of all usable addresses of global scope, in the kernel's order; of one link or all.

        `permanent`: without those that a router gave.
        """
        bodies = self._dump(rtnetlink.dump_addresses(index))
        wanted = [body for body in bodies if not permanent or rtnetlink.is_permanent_address(body)]
        found = (rtnetlink.parse_address(body) for body in wanted)
        return [(owner, address) for owner, address, usable in found if usable and index in (0, owner)]

    def routes(self, index: int) -> list[Route]:
        """The unicast routes through a link, of both families and all tables."""
        found = (self._routes(rtnetlink.dump_routes(version, index=index)) for version in (4, 6))
        return [route for routes in found for owner, route in routes if owner == index]

    def default_link(self) -> str:
        """The name of the link of the default route, of IPv4 before IPv6, of the lowest metric; "" without any."""
        for version in (4, 6):
            routes = self._routes(rtnetlink.dump_routes(version, table=MAIN_TABLE))
            defaults = [(route.metric, index) for index, route in routes if route.dst.prefixlen == 0 and index]
            if defaults:
                link = self.link_at(min(defaults)[1])
                return link.name if link else ""
        return ""

    def _routes(self, question: Message) -> list[tuple[int, Route]]:
        return [pair for body in self._dump(question) for pair in rtnetlink.parse_routes(body)]

    def neighbours(self, index: int) -> list[Neighbour]:
        """The permanent neighbour entries of a link."""
        found = map(rtnetlink.parse_neighbour, self._dump(rtnetlink.dump_neighbours(index)))
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

    def facts(self, conf: NetConf, vlan: Vlan | None = None) -> Facts:
        """What `facts` finds here."""
        return facts(conf, self, vlan)

    # --- making it so ------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change], parents: Namespace, index: int = 0) -> None:
        """Apply changes of one link in their order; `parents` is where its parent lives.

        `index` is that of the link, to be looked up by its name if it is not known. Raises ParentUnusable or
        KernelRefused at the first that the kernel refuses; those before it stay.
        """
        sysctls = []
        rest = []
        for change in changes:
            if isinstance(change, AddLink):
                self._create(change, parents)
            elif isinstance(change, SetSysctl) and change.name not in rtnetlink.DEVCONF:
                sysctls.append(change)
            else:
                rest.append(change)
        if sysctls:
            self._set_sysctls(sysctls)
        if rest:
            self._send(rest, index or self._index(_link_name(rest[0])))

    def _index(self, name: str) -> int:
        body = self._get(rtnetlink.get_link(name))
        if body is None:
            raise KernelRefused(f"{name} vanished while it was set up")
        return rtnetlink.parse_index(body)

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
            (error,) = self._request([rtnetlink.rename_link(self._index(temporary), name)])
        if error is not None:
            raise _explained(change, error)

    def _try_create(self, link: Link, name: str, parents: Namespace) -> NetlinkError | None:
        message = rtnetlink.new_link(link, name, None if parents is self else self.fd)
        (error,) = parents._request([message])
        return error

    def _set_sysctls(self, changes: Sequence[SetSysctl]) -> None:
        with netns.entered(self.fd):
            for change in changes:
                _write_sysctl(change)

    def _send(self, changes: Sequence[Change], index: int) -> None:
        messages = [rtnetlink.encode(change, index) for change in changes]
        start, deadline = 0, time.monotonic() + MAC_RETRY_SECONDS
        while True:
            refused = ((number, error) for number, error in enumerate(self._request(messages[start:]), start) if error)
            failed = next((each for each in refused if not _stands_already(changes[each[0]], each[1])), None)
            if failed is None:
                return
            start, error = failed
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise _explained(changes[start], error)
            time.sleep(MAC_RETRY_PAUSE)

    def remove_entries(self, view: View) -> None:
        """Remove the routes and neighbours of a view from its link; those that are gone already are fine."""
        if view.link is None or (link := self.link(view.link.name)) is None:
            return
        messages = [rtnetlink.delete_route(route, link.index) for route in view.routes]
        messages += [rtnetlink.delete_neighbour(entry, link.index) for entry in view.neighbours]
        for error in self._request(messages):
            if error and error.errno not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
                raise KernelRefused(f"cannot remove entries of {link.name}: {error.strerror}") from error

    def delete_link(self, index: int) -> None:
        """Delete a link; returns when it is gone. Raises KernelRefused."""
        try:
            deletion.delete_link(self._socket, index, self._background)
        except NetlinkError as error:
            raise KernelRefused(f"cannot talk to the kernel: {error.strerror}") from error


def _write_sysctl(change: SetSysctl) -> None:
    family, key = change.name.split("/")
    name = f"{family}/conf/{change.link}/{key}"
    try:
        fd = _open_sysctl(name)
        try:
            os.write(fd, change.value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError:
        # A kernel without IPv6 needs none of its sysctls; an IPv6 address is refused later, with a better reason.
        if family != "ipv6":
            raise KernelRefused(f"{change}: {SYSCTLS}/{name} does not exist") from None
    except OSError as error:
        raise KernelRefused(f"{change}: {error.strerror}; is /proc/sys mounted read-only?") from error


def _open_sysctl(name: str) -> int:
    try:
        return os.open(f"{SYSCTLS}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES) or not os.path.isdir(SYSCTLS_OF_HOST):
            raise
        return os.open(f"{SYSCTLS_OF_HOST}/{name}", os.O_WRONLY | os.O_CLOEXEC)


def _explained(change: Change, error: NetlinkError) -> CniError:
    from cni.refusals import explained  # as a rule nothing is refused

    return explained(change, error)


def _link_name(change: Change) -> str:
    return change.link if isinstance(change.link, str) else change.link.name


def _stands_already(change: Change, error: NetlinkError) -> bool:
    """Whether a change was refused because it is done: a route that stands there in every detail is as good as set."""
    return error.errno == errno.EEXIST and isinstance(change, SetRoute)


def _is_same(link: Link, wanted: Link) -> bool:
    if link.kind != wanted.kind:
        return False
    return link.alias == wanted.alias if link.alias else link.mac == wanted.mac


# --- facts -------------------------------------------------------------------------------------------------------


def _is_wireless(parent: Parent) -> bool:
    """Whether a NIC is a wireless one, as far as this mount of sysfs shows the namespace that it is in."""
    directory = f"/sys/class/net/{parent.name}"
    if not os.access(f"{directory}/phy80211", os.F_OK):
        return False
    with open(f"{directory}/ifindex", "rb", buffering=0) as file:
        return int(file.read()) == parent.index


def find_parent(conf: NetConf, namespace: Namespace) -> Parent:
    """The link that the configuration names, else that of the default route, or what that is a port of.

    Raises ParentUnusable.
    """
    name = conf.master or namespace.default_link()
    if not name:
        raise ParentUnusable('there is no default route to take the parent from: set "master" to the NIC of the LAN')
    parent = _existing(name, namespace)
    while not conf.master and parent.master_kind in ("bridge", "bond", "team"):
        parent = _existing(parent.master, namespace)
    return parent


def _existing(name: str, namespace: Namespace) -> Parent:
    parent = namespace.parent(name)
    if parent is None:
        there = ", ".join(link.name for link in namespace.links() if link.name != "lo") or "none"
        raise ParentUnusable(f'there is no link {name}: set "master" to one that exists ({there})')
    return parent


def facts(conf: NetConf, namespace: Namespace, vlan: Vlan | None = None) -> Facts:
    """The parent and the host's addresses; `namespace` is where the parent lives. Raises ParentUnusable.

    `vlan`: the parent, where the configuration asks for a VLAN.
    """
    parent = _existing(vlan.name, namespace) if vlan else find_parent(conf, namespace)
    own = tuple(address for _, address in namespace.addresses(parent.index))
    if not wants_shim(conf, parent):
        return Facts(parent, own, vlan=vlan)
    automatic = own + _elsewhere(namespace, own, _families(conf)) if conf.shim.auto_addresses else ()
    reached = automatic + _by_hand(conf, namespace, automatic)
    shim = namespace.link(shim_name(parent.index))
    shim_mac = shim.mac if shim and shim.alias.startswith(SHIM_ALIAS) else ""
    return Facts(parent, own, reached, shim_mac, vlan)


def question_of_facts(conf: NetConf, vlan: Vlan | None) -> tuple[Hashable, ...]:
    """All that the answer of `facts` depends on besides the kernel."""
    return "facts", conf.master, conf.shim, _families(conf), vlan


def _families(conf: NetConf) -> frozenset[int]:
    """The IP versions in which pods may get an address; what a delegate gives nobody knows before."""
    if conf.ipam:
        return frozenset(entry.subnet.version for pool in conf.ipam.pools for entry in pool)
    return frozenset({4, 6} if conf.delegate else ())


def _elsewhere(
    namespace: Namespace, own: Sequence[InterfaceAddress], families: frozenset[int]
) -> tuple[InterfaceAddress, ...]:
    """For each family in which the parent has no address: the first one of the link of the default route."""
    missing = families - {address.ip.version for address in own}
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
