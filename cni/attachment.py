"""The wanted state of one attachment, and the plan that leads from configuration, lease and facts to it.

Pure: values in, values out. The same types describe what is wanted and what was observed, so that CHECK is a
comparison (`cni.diff`) and DEL is "want nothing". The recipe behind `plan_host` and the routes of the pod is the one of
docs/host-shim.md.
"""

from __future__ import annotations

from ipaddress import ip_network

from cni.errors import InvalidConfig, ParentUnusable
from cni.frozen import frozen
from cni.protocol import Interface, IpConfig, Result, RouteConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from cni.config import NetConf

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

# Of routes that IPAM asked for, as the reference plugins set it; and of everything that only exists for the shim.
PROTO_BOOT = 3
PROTO_SHIMLAN = 174
SCOPE_UNIVERSE = 0
SCOPE_LINK = 253
MAIN_TABLE = 254
SHIM_ALIAS = "shimlan shim of "  # with blanks, which no network name has
ETHERNET = 1  # ARPHRD_ETHER, include/uapi/linux/if_arp.h

# Masters that take the rx_handler of their ports, which macvlan needs as well.
RX_HANDLER_OWNERS = ("bridge", "bond", "team", "openvswitch")


@frozen
class Key:
    """What identifies an attachment (spec, section "CNI operations": network name, container ID, interface name)."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.ifname} of {self.container_id} in network {self.network}"

    @property
    def alias(self) -> str:
        """The text that marks our link in the pod as this attachment's; the kernel allows 255 bytes."""
        return f"shimlan {self.network}/{self.container_id}/{self.ifname}"[:255]


@frozen
class Parent:
    """The link that carries the macvlans, as observed. `master` is the link it is a port of, if any."""

    name: str
    index: int
    mac: str
    mtu: int
    up: bool = True
    kind: str = ""
    lower_index: int = 0  # of a macvlan: the real device, on which the kernel puts its children as well
    hardware: int = ETHERNET
    loopback: bool = False
    master: str = ""
    master_kind: str = ""


@frozen
class InterfaceAddress:
    """An address on a link."""

    ip: Address
    prefixlen: int

    def __str__(self) -> str:
        return f"{self.ip}/{self.prefixlen}"


@frozen
class Link:
    """A macvlan child. `parent` is only known of wanted links, `index` only of observed ones."""

    name: str
    mac: str
    mtu: int
    parent_index: int
    kind: str = "macvlan"
    mode: str = "bridge"
    up: bool = True
    arp: bool = True
    alias: str = ""
    bcqueuelen: int | None = None
    bclim: int | None = None
    tx_queues: int = 0  # 0: the kernel's choice
    parent: str = ""
    index: int = 0
    lower_index: int = 0  # what the kernel tells as the parent, where that is not the one asked for


@frozen
class Route:
    """A route through the link of its view; `metric` and `table` 0 mean the kernel's default."""

    dst: Network
    via: Address | None = None
    src: Address | None = None
    scope: int = SCOPE_UNIVERSE
    metric: int = 0
    table: int = 0
    mtu: int = 0
    advmss: int = 0
    protocol: int = PROTO_BOOT


@frozen
class Neighbour:
    """A permanent neighbour entry."""

    ip: Address
    mac: str


@frozen
class View:
    """One end of an attachment: a link in a namespace with what belongs to it. Without a link there is nothing."""

    link: Link | None = None
    addresses: tuple[InterfaceAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()  # ("ipv4/arp_notify", "1"): below net/.../conf/<link>/, set at creation


@frozen
class SourceNat:
    """DNATed traffic from or to the pods behind a shim gets this source, so that replies come back to the host.

    Of several addresses of one family for one shim, the first decides.
    """

    shim: str
    address: Address


@frozen
class Delegation:
    """What it takes to call a delegated IPAM plugin again: its type, its stdin, the runtime's variables."""

    type: str
    conf: str
    path: str
    args: str


@frozen
class Leasing:
    """Where the leases of our own IPAM are, and how long an address cools down when it is released."""

    data_dir: str
    cooldown_seconds: int


@frozen
class Attachment:
    """One interface of one container as it shall be: the pod's end, the host's end."""

    key: Key
    pod: str  # "namespace/name" where the runtime told it
    parent: str
    parent_index: int
    netns: str
    netns_id: str
    sandbox: View
    host: View = View()
    source_nat: tuple[SourceNat, ...] = ()
    parent_in_pod: bool = False
    leasing: Leasing | None = None
    delegate: Delegation | None = None
    rebuilt: bool = False  # from the kernel, after the store was lost: who gave the addresses is not known

    @property
    def ips(self) -> tuple[Address, ...]:
        """The pod's addresses."""
        return tuple(address.ip for address in self.sandbox.addresses)


@frozen
class Facts:
    """What the plan needs to know: the parent, its addresses, those that pods shall reach, the shim if there."""

    parent: Parent
    parent_addresses: tuple[InterfaceAddress, ...] = ()
    host_addresses: tuple[InterfaceAddress, ...] = ()
    shim_mac: str = ""  # of the shim that stands already


def shim_name(parent_index: int) -> str:
    """The name of the shim on the parent with this index; at most 14 characters, as an index has 31 bits."""
    return f"shim{parent_index}"


def shim_mac(parent: Parent) -> str:
    """The MAC of a new shim: locally administered, from the parent's, so that pods of an earlier shim find it."""
    return "02:5e" + parent.mac[5:]


def check_parent(conf: NetConf, parent: Parent) -> None:
    """Refuse parents that cannot carry the child; raises ParentUnusable or InvalidConfig saying what to do.

    The kernel's own answers are bare numbers without text (drivers/net/macvlan.c, macvlan_common_newlink).
    """
    name = parent.name
    if parent.loopback or parent.hardware != ETHERNET:
        raise ParentUnusable(f'{name} is no Ethernet device: set "master" to the NIC of the LAN')
    if parent.master_kind in RX_HANDLER_OWNERS:
        raise ParentUnusable(f"{name} is a port of {parent.master_kind} {parent.master}: {_instead_of_port(parent)}")
    if not parent.up:
        raise ParentUnusable(f"{name} is down: run `ip link set {name} up` and have it set up at boot")
    if conf.mtu > parent.mtu:
        raise InvalidConfig(f"mtu: {conf.mtu} is above the {parent.mtu} of {name}")
    if conf.mode == "passthru" and conf.mac:
        raise InvalidConfig(f"mac: a child in mode passthru always has the MAC of {name}")


def _instead_of_port(parent: Parent) -> str:
    if parent.master_kind == "openvswitch":  # its ports are enslaved to the datapath, which carries nothing itself
        return 'set "master" to the internal port of its bridge (`ovs-vsctl list-br` names it)'
    return f'set "master": "{parent.master}"'


def wants_shim(conf: NetConf, parent: Parent) -> bool:
    """Whether a shim applies: children of a macvlan hang on the real device below and reach the macvlan itself."""
    return conf.shim.enabled and not parent.lower_index


def plan_link(key: Key, conf: NetConf, parent: Parent, mac: str) -> Link:
    """The pod's link."""
    return Link(
        name=key.ifname,
        mac=parent.mac if conf.mode == "passthru" else mac,
        mtu=conf.mtu or parent.mtu,
        parent_index=parent.index,
        lower_index=parent.lower_index,
        mode=conf.mode,
        alias=key.alias,
        bcqueuelen=conf.bcqueuelen,
        bclim=conf.bclim,
        parent=parent.name,
    )


def plan(
    key: Key,
    conf: NetConf,
    facts: Facts,
    mac: str,
    ipam: Result,
    netns: tuple[str, str],
    delegate: Delegation | None = None,
) -> Attachment:
    """The attachment that a checked configuration, the facts and IPAM's result ask for.

    `mac` is the MAC of the pod's link, `netns` the path and identity of its namespace. Raises InvalidConfig when
    `shim.routes` asks for a family in which the host has no address.
    """
    parent = facts.parent
    link = plan_link(key, conf, parent, mac)
    host_addresses = facts.host_addresses if wants_shim(conf, parent) and ipam.ips else ()
    pods = tuple(InterfaceAddress(ip.address, ip.prefixlen) for ip in ipam.ips)
    reached = _of_families(host_addresses, pods)
    shim_routes = _shim_routes(conf, parent, reached, pods)
    shim = shim_link(parent, facts.shim_mac or shim_mac(parent))
    return Attachment(
        key=key,
        pod=conf.pod,
        parent=parent.name,
        parent_index=parent.index,
        netns=netns[0],
        netns_id=netns[1],
        sandbox=View(
            link=link,
            addresses=pods,
            routes=_pod_routes(ipam, pods, reached, shim_routes),
            neighbours=tuple(Neighbour(host.ip, shim.mac) for host in reached),
            sysctls=_pod_sysctls(conf, pods),
        ),
        host=plan_host(shim, reached, pods, link.mac),
        source_nat=_source_nat(conf, parent, reached, shim_routes),
        parent_in_pod=conf.link_in_container,
        leasing=Leasing(conf.ipam.data_dir, conf.ipam.cooldown_seconds) if conf.ipam else None,
        delegate=delegate,
    )


def plan_host(shim: Link, reached: Sequence[InterfaceAddress], pods: Sequence[InterfaceAddress], pod_mac: str) -> View:
    """The host's end: the shim, and for each address of the pod a neighbour and a route with the host's source."""
    if not reached:
        return View()
    return View(
        link=shim,
        routes=tuple(
            Route(
                dst=_single(pod.ip),
                src=source_for(pod, reached),
                scope=SCOPE_LINK if pod.ip.version == 4 else SCOPE_UNIVERSE,
                protocol=PROTO_SHIMLAN,
            )
            for pod in _of_families(pods, reached)
        ),
        neighbours=tuple(Neighbour(pod.ip, pod_mac) for pod in _of_families(pods, reached)),
        sysctls=SHIM_SYSCTLS,
    )


# A shim must neither answer nor ask, nor get an address by itself: everything it needs is told to it. rp_filter=1
# keeps broadcasts of the LAN from reaching the host's sockets a second time. On a host that forwards, the kernel has
# every new link join the group of all routers; forwarding=0 has it leave, and by MLDv1 it does so without a report to
# the LAN (igmp6_leave_group in net/ipv6/mcast.c). Whether IPv6 is forwarded depends on `all` alone (ip6_forward).
SHIM_SYSCTLS = (
    ("ipv6/addr_gen_mode", "1"),
    ("ipv6/accept_ra", "0"),
    ("ipv6/autoconf", "0"),
    ("ipv6/force_mld_version", "1"),
    ("ipv6/forwarding", "0"),
    ("ipv4/rp_filter", "1"),
    ("ipv4/arp_filter", "1"),
)


def shim_link(parent: Parent, mac: str) -> Link:
    """The shim of a parent. Two queues keep it out of the hardware's forwarding slots (i40e, ixgbe)."""
    return Link(
        name=shim_name(parent.index),
        mac=mac,
        mtu=parent.mtu,
        parent_index=parent.index,
        arp=False,
        alias=f"{SHIM_ALIAS}{parent.name}",
        tx_queues=2,
        parent=parent.name,
    )


def source_for(pod: InterfaceAddress, reached: Sequence[InterfaceAddress]) -> Address:
    """The host's address towards a pod: one of the pod's own subnet if there is, else the first of the family."""
    subnet = ip_network((pod.ip, pod.prefixlen), strict=False)
    candidates = [host.ip for host in reached if host.ip.version == pod.ip.version]
    return next((ip for ip in candidates if ip in subnet), candidates[0])


def _of_families(
    addresses: Sequence[InterfaceAddress], others: Sequence[InterfaceAddress]
) -> tuple[InterfaceAddress, ...]:
    families = {other.ip.version for other in others}
    return tuple(address for address in addresses if address.ip.version in families)


def _shim_routes(
    conf: NetConf, parent: Parent, reached: Sequence[InterfaceAddress], pods: Sequence[InterfaceAddress]
) -> tuple[Network, ...]:
    if not wants_shim(conf, parent):
        return ()
    families, available = {pod.ip.version for pod in pods}, {host.ip.version for host in reached}
    wanted = tuple(route for route in conf.shim.routes if route.version in families)
    for route in wanted:
        if route.version not in available:
            raise InvalidConfig(
                f"shim.routes: {route} needs an IPv{route.version} address of the host, and {parent.name} has none: "
                "name one in shim.hostAddresses"
            )
    return wanted


def _pod_routes(
    ipam: Result,
    pods: Sequence[InterfaceAddress],
    reached: Sequence[InterfaceAddress],
    shim_routes: Sequence[Network],
) -> tuple[Route, ...]:
    """The pod's routes: the host's addresses on-link first, as gateways of the others may be among them."""
    to_host = tuple(
        Route(
            dst=_single(host.ip),
            scope=SCOPE_LINK if host.ip.version == 4 else SCOPE_UNIVERSE,
            protocol=PROTO_SHIMLAN,
        )
        for host in reached
    )
    via_host = tuple(
        Route(dst=route, via=_gateway_for(route, pods, reached), protocol=PROTO_SHIMLAN) for route in shim_routes
    )
    gateways: dict[int, Address] = {ip.address.version: ip.gateway for ip in reversed(ipam.ips) if ip.gateway}
    return to_host + tuple(_asked_route(route, gateways) for route in ipam.routes) + via_host


def _gateway_for(route: Network, pods: Sequence[InterfaceAddress], reached: Sequence[InterfaceAddress]) -> Address:
    pod = next(pod for pod in pods if pod.ip.version == route.version)
    return source_for(pod, reached)


def _asked_route(route: RouteConfig, gateways: dict[int, Address]) -> Route:
    scope = route.scope or SCOPE_UNIVERSE
    # A route of scope link has no gateway by definition (ip-route(8)), so none is assumed for it.
    gateway = None if scope >= SCOPE_LINK else gateways.get(route.dst.version)
    return Route(
        dst=route.dst,
        via=route.gw or gateway,
        scope=scope,
        metric=route.priority,
        table=route.table,
        mtu=route.mtu,
        advmss=route.advmss,
    )


def _pod_sysctls(conf: NetConf, pods: Sequence[InterfaceAddress]) -> tuple[tuple[str, str], ...]:
    families = {pod.ip.version for pod in pods}
    # Runtimes switch IPv6 off in new namespaces; a network that assigns such an address wants it on.
    enable = (("ipv6/disable_ipv6", "0"),) if 6 in families else ()
    if not conf.announce:
        return enable
    # The kernel announces by itself when the link comes up: nothing to send, no packet socket to close (12 ms of RCU).
    notify = {4: ("ipv4/arp_notify", "1"), 6: ("ipv6/ndisc_notify", "1")}
    return enable + tuple(notify[family] for family in sorted(families))


def _source_nat(
    conf: NetConf, parent: Parent, reached: Sequence[InterfaceAddress], shim_routes: Sequence[Network]
) -> tuple[SourceNat, ...]:
    if not conf.shim.snat:
        return ()
    families = sorted({route.version for route in shim_routes})
    return tuple(
        SourceNat(shim_name(parent.index), next(host.ip for host in reached if host.ip.version == family))
        for family in families
    )


def _single(ip: Address) -> Network:
    return ip_network(ip)


def report(attachment: Attachment, ipam: Result, dns: dict[str, object] | None = None) -> Result:
    """What ADD tells the runtime: the pod's link, the shim if there is one, and what IPAM gave."""
    link = attachment.sandbox.link
    assert link is not None
    pod = Interface(name=link.name, mac=link.mac, sandbox=attachment.netns, mtu=link.mtu)
    shim = attachment.host.link
    host = (Interface(name=shim.name, mac=shim.mac, mtu=shim.mtu),) if shim else ()
    ips = tuple(IpConfig(ip.address, ip.prefixlen, ip.gateway, interface=0) for ip in ipam.ips)
    return Result(interfaces=(pod, *host), ips=ips, routes=ipam.routes, dns=dns or ipam.dns)
