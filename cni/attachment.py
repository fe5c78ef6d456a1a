"""The wanted state of one attachment, and the plan that leads from configuration, lease and facts to it.

Pure: values in, values out. The same types describe what is wanted and what was observed, so that CHECK is a
comparison (`cni.diff`) and DEL is "want nothing". The recipe behind `plan_crossing` is the one of docs/host-shim.md.
"""

from __future__ import annotations

from cni.errors import InvalidConfig, ParentUnusable
from cni.frozen import frozen, replace
from cni.inet import single, subnet
from cni.protocol import Interface, IpConfig, Result, RouteConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
    from typing import Any

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
VLAN_ALIAS = "shimlan vlan of "
ETHERNET = 1  # ARPHRD_ETHER, include/uapi/linux/if_arp.h

# Masters that take the rx_handler of their ports, which macvlan needs as well.
RX_HANDLER_OWNERS = ("bridge", "bond", "team", "openvswitch")
# Links on which only frames for their own MAC arrive, whatever is put onto them.
ONE_MAC = ("ipvlan", "ipvtap")


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
    wireless: bool = False
    master: str = ""
    master_kind: str = ""


@frozen
class Vlan:
    """A VLAN device that is a parent: how it was found or made. `master` is the link that carries its tagged frames."""

    name: str
    id: int
    master: str
    master_index: int
    mtu: int
    ours: bool  # made by us, and so to be removed by us


@frozen
class InterfaceAddress:
    """An address on a link."""

    ip: Address
    prefixlen: int

    def __str__(self) -> str:
        return f"{self.ip}/{self.prefixlen}"


@frozen
class Link:
    """A macvlan, a macvtap or a VLAN device. `parent` is only known of wanted links, `index` only of observed ones.

    "" and 0 leave it to the kernel.
    """

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
    source_macs: tuple[str, ...] = ()  # mode source: those that it listens to; sorted
    vlan: int = 0  # of a VLAN device: its ID


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
class Reach:
    """Which addresses of the host a pod shall reach, and what through them: what the host's end is planned from."""

    automatic: bool  # all of the parent, and for a family that it lacks the first one where the default route leads
    by_hand: tuple[Address, ...] = ()
    routes: tuple[Network, ...] = ()
    snat: bool = True


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
    reach: Reach | None = None  # None: there is no shim, or what its entries were planned from is not known
    leaving: bool = False  # others may get the addresses by now: what is missing of it must not be made anew
    vlan: Vlan | None = None  # the parent, where that is a VLAN of the master
    netns_cookie: int = 0  # what tells the namespace from a later one with the same path and identity; 0: not known

    @property
    def ips(self) -> tuple[Address, ...]:
        """The pod's addresses."""
        return tuple(address.ip for address in self.sandbox.addresses)

    @property
    def mac(self) -> str:
        """The MAC of the pod's link."""
        return self.sandbox.link.mac if self.sandbox.link else ""


@frozen
class Facts:
    """What the plan needs to know: the parent, its addresses, those that pods shall reach, the shim if there."""

    parent: Parent
    parent_addresses: tuple[InterfaceAddress, ...] = ()
    host_addresses: tuple[InterfaceAddress, ...] = ()
    shim_mac: str = ""  # of the shim that stands already
    vlan: Vlan | None = None  # what the parent is, where it is a VLAN of the master


def limited(wanted: View, parent_mtu: int) -> View:
    """A view as it can be: a child follows its parent's MTU down (drivers/net/macvlan.c, NETDEV_CHANGEMTU)."""
    link = wanted.link
    return replace(wanted, link=replace(link, mtu=parent_mtu)) if link and link.mtu > parent_mtu else wanted


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
    check_kind(parent)
    if parent.master_kind in RX_HANDLER_OWNERS:
        instead = _instead_of_port(parent) + (' and leave out "vlan"' if conf.vlan and parent.kind == "vlan" else "")
        raise ParentUnusable(f"{name} is a port of {parent.master_kind} {parent.master}: {instead}")
    if not parent.up:
        raise ParentUnusable(f"{name} is down: run `ip link set {name} up` and have it set up at boot")
    if conf.mtu > parent.mtu:
        raise InvalidConfig(f"mtu: {conf.mtu} is above the {parent.mtu} of {name}")
    if conf.mode == "passthru" and conf.mac:
        raise InvalidConfig(f"mac: a child in mode passthru always has the MAC of {name}")


def check_kind(parent: Parent) -> None:
    """Refuse what by its kind carries no frames of other MACs than its own; raises ParentUnusable."""
    name = parent.name
    if parent.loopback or parent.hardware != ETHERNET:
        raise ParentUnusable(f'{name} is no Ethernet device: set "master" to the NIC of the LAN')
    if parent.wireless:
        raise ParentUnusable(
            f"{name} is wireless, where a station has one MAC: use a wired NIC, ipvlan or routing, or, if it is an "
            'access point or a station in 4-address mode, make it a port of a bridge and set "master" to the bridge'
        )
    if parent.kind in ONE_MAC:
        raise ParentUnusable(f'{name} is an {parent.kind}, which has one MAC: set "master" to another NIC')


def _instead_of_port(parent: Parent) -> str:
    if parent.master_kind == "openvswitch":  # its ports are enslaved to the datapath, which carries nothing itself
        return 'set "master" to the internal port of its bridge (`ovs-vsctl list-br` names it)'
    return f'set "master": "{parent.master}"'


def wants_shim(conf: NetConf, parent: Parent) -> bool:
    """Whether a shim applies: children of a macvlan hang on the real device below and reach the macvlan itself."""
    return conf.shim.enabled and not parent.lower_index


def may_offload(conf: NetConf, parent: Parent) -> bool:
    """Whether to ask the parent to forward in hardware: links with a kind are software, and never do."""
    return conf.offload == "on" or (conf.offload == "auto" and not parent.kind)


def plan_link(key: Key, conf: NetConf, parent: Parent, mac: str) -> Link:
    """The pod's link."""
    return Link(
        name=key.ifname,
        mac=parent.mac if conf.mode == "passthru" else mac,
        mtu=conf.mtu or parent.mtu,
        parent_index=parent.index,
        lower_index=parent.lower_index,
        kind=conf.link_type,
        mode=conf.mode,
        source_macs=conf.source_macs,
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
    netns: tuple[str, str, int],
    delegate: Delegation | None = None,
) -> Attachment:
    """The attachment that a checked configuration, the facts and IPAM's result ask for.

    `mac` is the MAC of the pod's link, `netns` the path, identity and cookie of its namespace. Raises InvalidConfig
    when `shim.routes` asks for a family in which the host has no address.
    """
    parent = facts.parent
    link = plan_link(key, conf, parent, mac)
    pods = tuple(InterfaceAddress(ip.address, ip.prefixlen) for ip in ipam.ips)
    reach = _reach(conf, facts, pods) if pods and wants_shim(conf, parent) else None
    shim = shim_link(parent, facts.shim_mac or shim_mac(parent))
    crossing = plan_crossing(shim, reach, facts.host_addresses, pods, link.mac) if reach else Crossing()
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
            routes=_pod_routes(crossing, _asked_routes(ipam)),
            neighbours=crossing.hosts,
            sysctls=_pod_sysctls(conf, pods),
        ),
        host=_host_end(shim, crossing),
        source_nat=crossing.source_nat,
        parent_in_pod=conf.link_in_container,
        leasing=_leasing(conf),
        delegate=delegate,
        reach=reach,
        vlan=facts.vlan,
        netns_cookie=netns[2],
    )


def plan_nothing(key: Key, conf: NetConf, netns: tuple[str, str, int]) -> Attachment:
    """An attachment of which nothing is planned yet: who holds leases by now, or uses a VLAN device, is recorded."""
    return Attachment(
        key=key,
        pod=conf.pod,
        parent="",
        parent_index=0,
        netns=netns[0],
        netns_id=netns[1],
        sandbox=View(),
        leasing=_leasing(conf),
        leaving=True,
        netns_cookie=netns[2],
    )


def _leasing(conf: NetConf) -> Leasing | None:
    return Leasing(conf.ipam.data_dir, conf.ipam.cooldown_seconds) if conf.ipam else None


def replan(attachment: Attachment, facts: Facts) -> Attachment:
    """The attachment as the facts of today ask for it: its parent, the shim, the host's addresses may be others by now.

    What configuration and IPAM gave stays. In a family in which the host has no address at the moment everything stays
    as it was planned, and so do addresses named by hand that the host lacks: they may come back. Without a `reach` all
    of it stays, behind the shim of today.
    """
    parent, sandbox, reach = facts.parent, attachment.sandbox, attachment.reach
    assert sandbox.link is not None
    mac = parent.mac if sandbox.link.mode == "passthru" else sandbox.link.mac
    shim = shim_link(parent, facts.shim_mac or shim_mac(parent))
    fresh = plan_crossing(shim, reach, facts.host_addresses, sandbox.addresses, mac) if reach else Crossing()
    crossing = _completed(fresh, _recorded_crossing(attachment, shim))
    link = replace(sandbox.link, mac=mac, parent=parent.name, parent_index=parent.index, lower_index=parent.lower_index)
    asked = tuple(route for route in sandbox.routes if route.protocol != PROTO_SHIMLAN)
    return replace(
        attachment,
        parent=parent.name,
        parent_index=parent.index,
        sandbox=replace(sandbox, link=link, routes=_pod_routes(crossing, asked), neighbours=crossing.hosts),
        host=_host_end(shim, crossing),
        source_nat=crossing.source_nat,
        vlan=facts.vlan,
    )


@frozen
class Crossing:
    """All that leads from a pod to its host and back, through the shim; IPv4 before IPv6."""

    to_host: tuple[Route, ...] = ()  # in the pod
    via_host: tuple[Route, ...] = ()
    hosts: tuple[Neighbour, ...] = ()
    to_pod: tuple[Route, ...] = ()  # on the host
    pods: tuple[Neighbour, ...] = ()
    source_nat: tuple[SourceNat, ...] = ()


def plan_crossing(
    shim: Link,
    reach: Reach,
    host_addresses: Sequence[InterfaceAddress],
    pod_addresses: Sequence[InterfaceAddress],
    pod_mac: str,
) -> Crossing:
    """The crossing, in the families in which both the pod and the host have an address."""
    reached = sorted(_of_families(host_addresses, pod_addresses), key=_family)
    pods = sorted(_of_families(pod_addresses, reached), key=_family)
    there = {host.ip.version for host in reached}
    named = [ip for ip in reach.by_hand if ip.version in there]
    ips = sorted([host.ip for host in reached if host.ip not in named] + named, key=_family)
    services = sorted((route for route in reach.routes if route.version in there), key=_family)
    translated = sorted({route.version for route in services}) if reach.snat else ()
    return Crossing(
        to_host=tuple(_on_link(ip) for ip in ips),
        via_host=tuple(Route(route, _gateway_for(route, pods, reached), protocol=PROTO_SHIMLAN) for route in services),
        hosts=tuple(Neighbour(ip, shim.mac) for ip in ips),
        to_pod=tuple(_on_link(pod.ip, source_for(pod, reached)) for pod in pods),
        pods=tuple(Neighbour(pod.ip, pod_mac) for pod in pods),
        source_nat=tuple(
            SourceNat(shim.name, next(host.ip for host in reached if host.ip.version == family))
            for family in translated
        ),
    )


def _recorded_crossing(attachment: Attachment, shim: Link) -> Crossing:
    """The crossing that was planned before, behind the shim of today."""
    sandbox, host = attachment.sandbox, attachment.host
    ours = [route for route in sandbox.routes if route.protocol == PROTO_SHIMLAN]
    return Crossing(
        to_host=tuple(route for route in ours if not route.via),
        via_host=tuple(route for route in ours if route.via),
        hosts=tuple(replace(entry, mac=shim.mac) for entry in sandbox.neighbours),
        to_pod=host.routes,
        pods=host.neighbours,
        source_nat=tuple(replace(rule, shim=shim.name) for rule in attachment.source_nat),
    )


def _completed(fresh: Crossing, before: Crossing) -> Crossing:
    """A crossing with the families that it lacks as they were before."""
    there = {_family(route) for route in fresh.to_pod}

    def merged(name: str) -> tuple[Any, ...]:
        kept = (item for item in getattr(before, name) if _family(item) not in there)
        return tuple(sorted((*getattr(fresh, name), *kept), key=_family))

    return Crossing(**{name: merged(name) for name in Crossing.__match_args__})


def _host_end(shim: Link, crossing: Crossing) -> View:
    if not crossing.to_pod and not crossing.pods:
        return View()
    return View(link=shim, routes=crossing.to_pod, neighbours=crossing.pods, sysctls=SILENT)


def _on_link(ip: Address, source: Address | None = None) -> Route:
    scope = SCOPE_LINK if ip.version == 4 else SCOPE_UNIVERSE
    return Route(dst=single(ip), src=source, scope=scope, protocol=PROTO_SHIMLAN)


def _family(item: Any) -> int:
    """The IP version of an address, or of what is about one."""
    match item:
        case Route(dst):
            return int(dst.version)
        case InterfaceAddress(ip) | Neighbour(ip) | SourceNat(_, ip):
            return int(ip.version)
    return int(item.version)


# A shim must neither answer nor ask, nor get an address by itself: everything it needs is told to it. Likewise a VLAN
# device of ours: it is there for the pods, and shall not open the host to whoever is in that VLAN. rp_filter=1
# keeps broadcasts of the LAN from reaching the host's sockets a second time. On a host that forwards, the kernel has
# every new link join the group of all routers; forwarding=0 has it leave, and by MLDv1 it does so without a report to
# the LAN (igmp6_leave_group in net/ipv6/mcast.c). Whether IPv6 is forwarded depends on `all` alone (ip6_forward).
SILENT = (
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


def vlan_view(vlan: Vlan) -> View:
    """A VLAN device of ours as it shall be: like a shim without a voice of its own."""
    link = Link(
        name=vlan.name,
        mac="",
        mtu=vlan.mtu,
        parent_index=vlan.master_index,
        kind="vlan",
        mode="",
        arp=False,
        alias=f"{VLAN_ALIAS}{vlan.master}",
        parent=vlan.master,
        vlan=vlan.id,
    )
    return View(link=link, sysctls=SILENT)


def source_for(pod: InterfaceAddress, reached: Sequence[InterfaceAddress]) -> Address:
    """The host's address towards a pod: one of the pod's own subnet if there is, else the first of the family."""
    around = subnet(pod.ip, pod.prefixlen)
    candidates = [host.ip for host in reached if host.ip.version == pod.ip.version]
    return next((ip for ip in candidates if ip in around), candidates[0])


def _of_families(
    addresses: Sequence[InterfaceAddress], others: Sequence[InterfaceAddress]
) -> tuple[InterfaceAddress, ...]:
    families = {other.ip.version for other in others}
    return tuple(address for address in addresses if address.ip.version in families)


def _reach(conf: NetConf, facts: Facts, pods: Sequence[InterfaceAddress]) -> Reach:
    shim, available = conf.shim, {host.ip.version for host in facts.host_addresses}
    for route in shim.routes:
        if route.version not in available and any(pod.ip.version == route.version for pod in pods):
            raise InvalidConfig(
                f"shim.routes: {route} needs an IPv{route.version} address of the host, and {facts.parent.name} has "
                "none: name one in shim.hostAddresses"
            )
    return Reach(shim.auto_addresses, shim.host_addresses, shim.routes, shim.snat)


def _pod_routes(crossing: Crossing, asked: tuple[Route, ...]) -> tuple[Route, ...]:
    """The pod's routes: the host's addresses on-link first, as gateways of the others may be among them."""
    return crossing.to_host + asked + crossing.via_host


def _asked_routes(ipam: Result) -> tuple[Route, ...]:
    gateways: dict[int, Address] = {ip.address.version: ip.gateway for ip in reversed(ipam.ips) if ip.gateway}
    return tuple(_asked_route(route, gateways) for route in ipam.routes)


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


def report(attachment: Attachment, ipam: Result, dns: dict[str, object] | None = None, tap: int = 0) -> Result:
    """What ADD tells the runtime: the pod's link, the shim if there is one, and what IPAM gave.

    `tap`: the number of the link's character device, 0 for none.
    """
    link = attachment.sandbox.link
    assert link is not None
    pod = Interface(name=link.name, mac=link.mac, sandbox=attachment.netns, mtu=link.mtu, tap=tap)
    shim = attachment.host.link
    host = (Interface(name=shim.name, mac=shim.mac, mtu=shim.mtu),) if shim else ()
    ips = tuple(IpConfig(ip.address, ip.prefixlen, ip.gateway, interface=0) for ip in ipam.ips)
    return Result(interfaces=(pod, *host), ips=ips, routes=ipam.routes, dns=dns or ipam.dns)
