"""What the facts mean: each check turns some of them into findings, with evidence and remedy. Pure.

A check is silent about what another one has found the cause of, so that each trouble shows once.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Network

from cni.attachment import RX_HANDLER_OWNERS, SCOPE_LINK, Parent, check_kind, check_parent, shim_name, wants_shim
from cni.config import NetConf
from cni.ctl.doctor.facts import (
    Agent,
    Configuration,
    Executables,
    Kernel,
    Lan,
    Manager,
    NetworkFile,
    ParentState,
    Reached,
    ServiceProxy,
    Store,
    Sysctls,
)
from cni.ctl.doctor.findings import Finding, failure, ok, refused, warning
from cni.errors import CniError, InvalidConfig
from cni.offload import ADVICE
from ipam.config import IpamConf

LINK_LOCAL = IPv6Network("fe80::/10")  # on every link

MULTUS = "multus"
CHOOSERS = (MULTUS, "multus-shim", "multus-cni", "genie", "danm")  # plugins that call those of other networks

# What to write into the settings of a hypervisor, by a word of the machine's maker (DMI).
HYPERVISORS = {
    "vmware": 'on its port group accept "Promiscuous mode", "MAC address changes" and "Forged transmits"',
    "microsoft": 'in Hyper-V allow "MAC address spoofing" for the adapter; in Azure macvlan cannot work',
    "amazon": "there macvlan cannot work: consider ipvlan with addresses assigned to the instance",
    "google": "there macvlan cannot work: consider ipvlan with alias addresses",
    "qemu": "remove the MAC filter of its interface (libvirt: `no-mac-spoofing`; Proxmox: the firewall's MAC filter)",
    "innotek": 'in VirtualBox set "Promiscuous Mode" of the adapter to "Allow All"',
}
ANY_SWITCH = (
    "let the switch port, virtual switch or access point accept more MACs than the NIC's (port security, MAC spoofing "
    "protection), or use ipvlan, which needs only one"
)

UNMANAGED = {
    "NetworkManager": "write `unmanaged-devices=interface-name:shim*` below `[keyfile]` in a file of "
    "/etc/NetworkManager/conf.d and run `nmcli general reload`",
    "systemd-networkd": "write a file 00-shim.network with `[Match]` `Name=shim*` and `[Link]` `Unmanaged=yes` into "
    "/etc/systemd/network, and `ManageForeignRoutes=no` below `[Network]` in networkd.conf",
}


# --- configuration -----------------------------------------------------------------------------------------------


def configuration(found: Configuration) -> Iterator[Finding]:
    """Is there one, is it right, and would a runtime find it?"""
    if not found.path:
        nothing = f"no network of type shimlan in {found.directory}"
        if found.expected:
            yield warning("configuration", nothing, "write one, or name the file, or the NIC with --master")
        else:
            yield ok("configuration", f"{nothing}: looked at with the defaults")
        return
    if found.problems:
        remedy = f"correct it; `shimlanctl validate {found.path}` tells the lines"
        yield failure("configuration", f"{found.path}: {'; '.join(found.problems)}", remedy)
        return
    yield ok("configuration", f"{found.path}: network {found.conf.name}")
    yield from _chain(found)
    yield from _order(found)


def _chain(found: Configuration) -> Iterator[Finding]:
    before = found.types[: found.types.index("shimlan")] if "shimlan" in found.types else ()
    if before:
        remedy = "move the plugin shimlan to the front: it makes the interface that the others work on"
        yield warning("configuration.chain", f"{', '.join(before)} comes before shimlan in the chain", remedy)
    elif len(found.types) > 1:
        yield ok("configuration.chain", f"shimlan comes first, then {', '.join(found.types[1:])}")


def _order(found: Configuration) -> Iterator[Finding]:
    """containerd and CRI-O take the first file of their directory as the network of all pods."""
    if not found.before:
        return
    first = found.before[0]
    if first.types[:1] and first.types[0] in CHOOSERS:
        yield ok("configuration.order", f"{first.name} comes first, and calls other networks by their names")
        return
    remedy = "give ours a name that sorts first, such as 05-lan.conflist, unless your runtime chooses networks by name"
    yield warning("configuration.order", f"{_described(first)} sorts before it in {found.directory}", remedy)


def _described(file: NetworkFile) -> str:
    return f"{file.name} ({file.unreadable or ', '.join(file.types) or 'without plugins'})"


# --- kernel ------------------------------------------------------------------------------------------------------


def kernel(conf: NetConf, found: Kernel) -> Iterator[Finding]:
    """Does it know the kinds of links that the configuration needs, and its source NAT?"""
    needed = {"macvlan": True, "macvtap": conf.link_type == "macvtap", "vlan": bool(conf.vlan)}
    modules = {"vlan": "8021q"}
    for kind, there in found.kinds.items():
        module = modules.get(kind, kind)
        if there or not needed[kind]:
            yield ok(f"kernel.{kind}", "is there" if there else "is not there, and not needed")
        else:
            yield failure(f"kernel.{kind}", f"this kernel has no {kind}", f"load it: `modprobe {module}`")
    if not found.no_source_nat:
        yield ok("kernel.nat", "source NAT by nftables works")
    elif conf.shim.routes and conf.shim.snat:
        yield refused("kernel.nat", found.no_source_nat)
    else:
        yield ok("kernel.nat", "source NAT by nftables does not work, and is not needed without shim.routes")


# --- parent ------------------------------------------------------------------------------------------------------


def parent(conf: NetConf, found: ParentState) -> Iterator[Finding]:
    """Can it carry pods? In the words of the ADD that it would refuse."""
    if found.parent is None:
        yield refused("parent", found.refusal)
        return
    trouble, refusal = _refusal(conf, found.parent)
    if refusal:
        yield _refused(trouble, refusal)
    if trouble != "parent":
        yield ok("parent", _portrait(found.parent))
    if trouble not in ("parent", "parent.port"):
        yield ok("parent.port", _port(found.parent))
        yield from _state(found) if trouble != "parent.state" else ()
    if trouble not in ("parent", "mtu"):
        yield ok("mtu", f"{conf.mtu or found.parent.mtu} for pods, {found.parent.mtu} of {found.parent.name}")
    if found.unmade:
        yield ok("parent.vlan", f"{found.unmade} does not exist yet; the first ADD makes it, and the LAN is not asked")


def can_carry(conf: NetConf, found: ParentState) -> bool:
    """Whether there is any use in asking the LAN."""
    return not found.unmade and is_sound(conf, found)


def is_sound(conf: NetConf, found: ParentState) -> bool:
    """Whether the parent can carry pods, of whatever MTU."""
    return found.parent is not None and found.carrier and _refusal(conf, found.parent)[0] in ("", "mtu")


def _refusal(conf: NetConf, parent: Parent) -> tuple[str, CniError | None]:
    """What ADD would refuse, and of what kind that is, by the id of the finding."""
    trouble = "parent"
    try:
        check_kind(parent)
        trouble = _aspect(conf, parent)
        check_parent(conf, parent)
    except CniError as error:
        return trouble, error
    return "", None


def _refused(id: str, refusal: CniError) -> Finding:
    if not isinstance(refusal, InvalidConfig):
        return refused(id, refusal.msg)
    return failure(id, refusal.msg, "correct the configuration, or the setting of the NIC")


def _aspect(conf: NetConf, parent: Parent) -> str:
    """The first aspect in which a parent of the right kind is not as it should be."""
    if parent.master_kind in RX_HANDLER_OWNERS:
        return "parent.port"
    if not parent.up:
        return "parent.state"
    return "mtu" if conf.mtu > parent.mtu else "parent"


def _portrait(parent: Parent) -> str:
    kind = f", a {parent.kind}" if parent.kind else ""
    return f"{parent.name}{kind}, MAC {parent.mac}"


def _port(parent: Parent) -> str:
    if not parent.master:
        return f"{parent.name} is a port of nothing"
    return f"{parent.name} belongs to {parent.master_kind} {parent.master}, which leaves it its frames"


def _state(found: ParentState) -> Iterator[Finding]:
    assert found.parent is not None
    name = found.parent.name
    if not found.carrier:
        remedy = "plug the cable in, or enable the port of the switch"
        yield failure("parent.state", f"{name} is up, but has no carrier", remedy)
    else:
        yield ok("parent.state", "up, with a carrier")
    promiscuous = "receives all frames (promiscuous)" if found.promiscuity else "receives by its unicast filter"
    yield ok("parent.filter", f"{promiscuous}; {found.macs} MAC(s) besides its own")


def offload(conf: NetConf, found: ParentState) -> Iterator[Finding]:
    """Can the NIC forward to pods by itself, and does it?"""
    if found.parent is None:
        return
    name, asked = found.parent.name, conf.raw.get("offload") or "auto"
    if found.obstacle and asked == "on":
        yield failure("offload", f"{name} cannot forward for pods in hardware: {found.obstacle}", ADVICE)
    elif found.obstacle:
        yield ok("offload", f"the kernel forwards, as {name} cannot: {found.obstacle}")
    elif found.forwarding.active:
        slow = f"; {found.in_software} pod(s) are in software: they gain when they are made anew, if there is room"
        yield ok("offload", f"{name} has l2-fwd-offload on{slow if found.in_software else ''}")
    else:
        yield ok(
            "offload", f"{name} has l2-fwd-offload off{', until the next ADD' if asked != 'off' else ', as asked'}"
        )


def shim(conf: NetConf, found: ParentState) -> Iterator[Finding]:
    """Is the shim's name free?"""
    if found.parent is None or not wants_shim(conf, found.parent):
        return
    if found.foreign_shim:
        remedy = f"rename it: shimlan needs this name for the shim on {found.parent.name}"
        yield failure("shim", f"there is a link {found.foreign_shim} that shimlan has not made", remedy)
    else:
        yield ok("shim", f"{shim_name(found.parent.index)} is, or will be, the shim of {found.parent.name}")


# --- addresses and routes ----------------------------------------------------------------------------------------


def reached(conf: NetConf, found: Reached) -> Iterator[Finding]:
    """Has the host the addresses that pods shall reach, and one of each family of shim.routes?"""
    if found.refusal:
        remedy = "give the host that address before pods come, or take it out of shim.hostAddresses"
        yield failure("shim.hostAddresses", found.refusal.removeprefix("shim.hostAddresses: "), remedy)
        return
    if conf.shim.host_addresses:
        yield ok("shim.hostAddresses", f"pods reach {', '.join(map(str, found.addresses))}")
    there = {address.version for address in found.addresses}
    for route in conf.shim.routes:
        if route.version not in there and route.version in _families(conf):
            evidence = f"{route} needs an IPv{route.version} address of the host, and none is found"
            yield failure("shim.routes", evidence, "give the parent one, or name one in shim.hostAddresses")


def _families(conf: NetConf) -> set[int]:
    """The IP versions in which every pod gets an address."""
    return {pool[0].subnet.version for pool in conf.ipam.pools} if conf.ipam else set()


def routes(conf: NetConf, found: Reached) -> Iterator[Finding]:
    """Are the gateways of ipam.routes where the pods are, whatever addresses those get?"""
    if conf.ipam is None or (conf.raw.get("capabilities") or {}).get("ipRanges"):  # who knows where they will be
        return
    on_link = [route.dst for route in conf.ipam.routes if route.gw is None and (route.scope or 0) >= SCOPE_LINK]
    around = [LINK_LOCAL, *on_link, *(entry.subnet for pool in conf.ipam.pools for entry in pool)]
    for route in conf.ipam.routes:
        gateway = route.gw
        if gateway and gateway not in found.addresses and not any(gateway in network for network in around):
            evidence = f"the gateway {gateway} of {route.dst} is in no subnet of the pods"
            yield failure("ipam.routes", evidence, 'correct it, or leave "gw" out for the gateway of the range')


def resolver(conf: IpamConf, trouble: str) -> Finding:
    """Can the file be read that becomes the pods' DNS?"""
    if not trouble:
        return ok("ipam.resolvConf", f"{conf.resolv_conf} can be read")
    remedy = "put the file there, or correct the path; for an agent in a container it has to be there as well"
    return failure("ipam.resolvConf", trouble.removeprefix("ipam.resolvConf: "), remedy)


# --- settings and programs of the host ---------------------------------------------------------------------------


def sysctls(conf: NetConf, found: Sysctls) -> Iterator[Finding]:
    """Most do not matter, and that is worth knowing; forwarding does for what the host passes on."""
    shown = ", ".join(f"{key}={value}" for key, value in found.parent.items() if value)
    yield ok("sysctls.arp", f"{shown or 'not known'}: the shim works under all values of these")
    if found.locked:
        remedy = "mount /proc/sys writable: ADD sets what its own links need, and nothing else"
        yield failure("sysctls.writable", f"settings of links cannot be written ({found.locked})", remedy)
    else:
        yield ok("sysctls.writable", "settings of links can be written")
    yield from _forwarding(conf, found)


def _forwarding(conf: NetConf, found: Sysctls) -> Iterator[Finding]:
    names = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
    families = sorted({route.version for route in conf.shim.routes})
    off = [names[family] for family in families if not found.forwarding.get(family)]
    if off:
        evidence = f"{' and '.join(off)} is 0: of shim.routes only what the host itself serves is reached"
        yield warning("sysctls.forwarding", evidence, "; ".join(f"`sysctl -w {name}=1`" for name in off))
    elif families:
        yield ok("sysctls.forwarding", "the host passes on what shim.routes lead to it")


def manager(found: Manager) -> Finding:
    """Does a program that configures networks spare the shims?"""
    id = f"manager.{found.name}"
    if found.hidden:
        return ok(id, "not seen: this container does not show the host's processes; does it leave shims alone there?")
    if not found.running:
        return ok(id, "does not run here")
    if found.spared_by:
        return ok(id, f"is told by {found.spared_by} to leave shims alone")
    if found.taken_by:
        return warning(id, f"runs here, and {found.taken_by} has it manage shims", UNMANAGED[found.name])
    if found.takes_by_itself:
        return warning(id, "runs here, and nothing tells it to leave shims alone", UNMANAGED[found.name])
    return ok(id, "runs here, and no file has it manage shims")


def service_proxy(conf: NetConf, found: ServiceProxy) -> Finding:
    """kube-proxy works with the shim in all its modes, if pods send to it what is its own."""
    if not found.mode:
        return ok("kube-proxy", "not seen here")
    strict = ", with strictARP" if found.strict_arp else ""
    reached = "shim.routes lead to it" if conf.shim.routes else "pods of this network reach it with shim.routes only"
    return ok("kube-proxy", f"mode {found.mode}{strict}; {reached}")


# --- LAN ---------------------------------------------------------------------------------------------------------


def lan(conf: NetConf, found: Lan, vendor: str = "") -> Iterator[Finding]:
    """Does it carry a pod's frames, do its gateways answer, and are the addresses of the range nobody's?"""
    yield from _stranger(conf, found, vendor)
    if found.stranger.refusal:  # whoever has taken the NIC has taken its frames
        return
    yield from (_dead_gateway(conf, gateway) for gateway in found.dead_gateways)
    if conf.ipam:
        yield from _conflicts(conf, found)


def _dead_gateway(conf: NetConf, gateway: str) -> Finding:
    if conf.mode == "passthru":
        return ok("lan.gateway", f"{gateway} does not answer this host, nor can it while a pod has the NIC for itself")
    remedy = 'correct "gateway" in ipam, or repair that machine: pods have a route through it'
    return warning("lan.gateway", f"{gateway} does not answer this host", remedy)


def _stranger(conf: NetConf, found: Lan, vendor: str) -> Iterator[Finding]:
    stranger = found.stranger
    if stranger.refusal:
        yield refused("parent.child", stranger.refusal)
        return
    if conf.mode == "passthru":
        yield ok("lan.mac", "not asked: in mode passthru the pod has the NIC's own MAC")
        return
    names = "under a temporary name first, as this kernel is from before 2025" if stranger.old_names else "at once"
    yield ok("parent.child", f"a macvlan can be made, in its namespace {names}")
    if not stranger.asked:
        yield ok("lan.mac", "not tried: nobody is known on the LAN who answers this host")
    elif stranger.answered:
        yield ok("lan.mac", f"{stranger.asked} answers a MAC that is not the NIC's")
    else:
        evidence = f"{stranger.asked} answers this host, but no other MAC on the same NIC: frames of pods are dropped"
        yield failure("lan.mac", evidence, mac_remedy(vendor))


def mac_remedy(vendor: str) -> str:
    """What to do about a LAN that drops foreign MACs, by the maker of this (virtual) machine."""
    special = next((advice for word, advice in HYPERVISORS.items() if word in vendor.lower()), "")
    return f"{vendor}: {special}; otherwise {ANY_SWITCH}" if special else ANY_SWITCH


def _conflicts(conf: NetConf, found: Lan) -> Iterator[Finding]:
    if not found.conflicts:
        yield ok("lan.addresses", f"nobody uses {found.asked_addresses} of {found.free_addresses} free addresses")
        return
    users = ", ".join(f"{address} ({mac})" for address, mac in found.conflicts)
    one = found.conflicts[0][0]
    evidence = f"other machines use addresses of the range: {users}"
    share = "take them out of the range, or of the hands of DHCP or of whoever gives them out"
    if conf.detect_conflicts:
        yield warning("lan.addresses", f"{evidence}; ADD passes them over", share)
    else:
        yield failure("lan.addresses", evidence, f'{share} (`"exclude": ["{one}"]`), or set "detectConflicts": true')


# --- state -------------------------------------------------------------------------------------------------------


def store(found: Store) -> Iterator[Finding]:
    """Can it be read and written, is it whole, and do we know its form?"""
    if found.damage:
        remedy = (
            "the next ADD, or `shimlanctl gc`, puts it aside and rebuilds it from the kernel's state; check the disk"
        )
        yield failure("store", found.damage, remedy)
    elif found.schema > found.known_schema:
        evidence = f"{found.path} was written by a newer shimlan (schema {found.schema}, known {found.known_schema})"
        yield failure("store", evidence, "upgrade shimlan")
    elif found.unusable:
        yield refused("store", found.unusable)
    elif found.busy:
        yield warning("store", found.busy, "look for a process that hangs: `fuser` names who has the file open")
    elif not found.exists:
        yield ok("store", f"{found.path} does not exist yet; the first ADD makes it")
    else:
        yield ok("store", f"{found.path} is whole and can be written; {len(found.held)} address(es) are held")


def pools(conf: NetConf, found: Store) -> Iterator[Finding]:
    """Is there an address left in each pool?"""
    for ranges in found.usages:
        names = ", ".join(f"{usage.start}-{usage.end}" for usage in ranges)
        held, conflict = (sum(getattr(usage, name) for usage in ranges) for name in ("held", "conflict"))
        free = sum(usage.free for usage in ranges)
        figures = f"{held} held, {conflict} in conflict, {free} free"
        if free:
            yield ok("pool", f"{names}: {figures}")
        else:
            remedy = (
                f"`shimlanctl gc` frees those of pods that are gone, `shimlanctl pool leases --network {conf.name}` "
                "tells who has the others; or widen the range"
            )
            yield failure("pool", f"no address is left in {names}: {figures}", remedy)


def agent(found: Agent, plugins: Executables) -> Finding:
    """Does it serve, or is nobody waiting for it?"""
    if found.trouble:
        remedy = "start the agent anew (`shimlanctl agent`, or its unit); its log tells why it went"
        return failure("agent", f"{found.socket}: {found.trouble}", remedy)
    if found.exists:
        return ok("agent", f"serves at {found.socket}")
    if plugins.is_client and not plugins.fallback:
        remedy = "start the agent (`shimlanctl agent`), or put the in-process plugin beside it as shimlan-inprocess"
        return failure("agent", f"{plugins.plugin} is the client, and no agent is at {found.socket}", remedy)
    return ok("agent", f"none at {found.socket}: the in-process plugin does the work")


def executables(found: Executables) -> Iterator[Finding]:
    """Would a runtime find the plugins? Without them no pod is attached; but they may be about to be installed."""
    places = ", ".join(found.directories) or "no directory"
    if not found.plugin:
        remedy = "`shimlanctl install` puts it there; if your runtime looks elsewhere, tell doctor with --bin-dir"
        yield warning("plugin", f"no shimlan in {places}", remedy)
    else:
        yield ok("plugin", f"{found.plugin}, {'the client' if found.is_client else 'the in-process plugin'}")
    for name in found.missing:
        remedy = "install it there, correct the configuration, or name another directory with --bin-dir"
        yield warning("plugin.others", f"the configuration names {name}, which is not in {places}", remedy)
