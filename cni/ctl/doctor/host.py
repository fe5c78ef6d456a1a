"""What doctor finds out about the host: its kernel, the parent, settings, and programs that have a say in its network.

Everything is asked of the kernel or read from files; nothing is changed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import IPv4Address

from cni import netns, nftables, offload, rtnetlink, vlan
from cni.attachment import Parent, SourceNat, Vlan, check_parent, shim_name
from cni.config import NetConf
from cni.ctl.doctor.facts import Kernel, ParentState, Reached, ServiceProxy, Sysctls
from cni.errors import CniError, InvalidConfig, KernelRefused
from cni.kernel import SYSCTLS, SYSCTLS_OF_HOST, Namespace, find_parent
from cni.netlink import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    Socket,
    attribute_map,
    nest,
    text,
)
from cni.shim import is_shim

KINDS = ("macvlan", "macvtap", "vlan")
ARP_SYSCTLS = ("rp_filter", "arp_ignore", "arp_announce")

IFLA_PROMISCUITY, IFLA_CARRIER = 30, 33  # include/uapi/linux/if_link.h
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}  # include/uapi/linux/capability.h

IPVS_DEVICE = "kube-ipvs0"
NFGENMSG_OF_ALL = bytes(4)
IPTABLES_CHAIN = "KUBE-SERVICES"
NFTABLES_TABLE = "kube-proxy"


def missing_rights() -> list[str]:
    """The capabilities that attaching a pod takes, and that this process lacks."""
    with open("/proc/thread-self/status", encoding="ascii") as status:
        effective = next(line for line in status if line.startswith("CapEff:"))
    held = int(effective.split()[1], 16)
    return [name for name, number in CAPABILITIES.items() if not held >> number & 1]


# --- kernel ------------------------------------------------------------------------------------------------------


def kernel(scratch: int) -> Kernel:
    """What the kernel can do, tried in a scratch namespace; it loads the modules that it needs, as it would at ADD."""
    with netns.entered(scratch):
        with closing(Socket()) as socket:
            kinds = {kind: _knows(socket, kind) for kind in KINDS}
        return Kernel(kinds, _no_source_nat())


def _knows(socket: Socket, kind: str) -> bool:
    """Whether it knows a kind of link. One without a parent is never made, but refused with a reason of its own."""
    info = nest(rtnetlink.IFLA_LINKINFO, text(rtnetlink.IFLA_INFO_KIND, kind))
    body = rtnetlink.LINK_HEADER.pack(rtnetlink.AF_UNSPEC, 0, 0, 0, 0) + info
    (error,) = socket.request([Message(rtnetlink.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)])
    return error is None or error.errno != errno.EOPNOTSUPP


def _no_source_nat() -> str:
    try:
        with closing(nftables.connect()) as socket:
            nftables.sync(socket, (SourceNat(shim_name(1), IPv4Address("192.0.2.1")),))
    except KernelRefused as error:
        return error.msg
    return ""


# --- parent ------------------------------------------------------------------------------------------------------


def parent(conf: NetConf, namespace: Namespace) -> ParentState:
    """The parent that an ADD would take, and its state."""
    try:
        master = find_parent(conf, namespace)
    except CniError as error:
        return ParentState(refusal=error.msg)
    if not conf.vlan:
        return _state(namespace, master)
    if refusal := _vlan_refusal(conf, namespace, master):
        return ParentState(refusal=refusal)
    name = vlan.name_for(master.name, conf.vlan)
    device = namespace.parent(name)
    return _state(namespace, device) if device else replace(_state(namespace, master), unmade=name)


def _vlan_refusal(conf: NetConf, namespace: Namespace, master: Parent) -> str:
    """Why the VLAN device can be neither used nor made, where that is not the fault of the link below."""
    try:
        check_parent(conf, master)
    except CniError:
        return ""
    try:
        vlan.check(conf, namespace)
    except CniError as error:
        return error.msg
    return ""


def _state(namespace: Namespace, found: Parent) -> ParentState:
    shim = namespace.link(shim_name(found.index))
    macs = {mac for mac in namespace.received_macs(found.index) if not int(mac[:2], 16) & 1}
    details, feature = _details(found.name), offload.feature_of(found.index)
    return ParentState(
        parent=found,
        carrier=details.get(IFLA_CARRIER, b"\1") != b"\0",
        promiscuity=int.from_bytes(details.get(IFLA_PROMISCUITY, b""), rtnetlink.BYTE_ORDER),
        macs=len(macs),
        foreign_shim=shim.name if shim and not is_shim(shim) else "",
        forwarding=feature,
        obstacle=offload.obstacle_in(feature, feature.switchable and namespace.runs_xdp(found.index)),
        in_software=len(macs - {shim.mac} if shim else macs),
    )


def reached(conf: NetConf, namespace: Namespace, parent: Parent) -> Reached:
    """The addresses of the host that an ADD on this parent would find; a VLAN device may be still to be made."""
    vlan = Vlan(parent.name, conf.vlan, "", 0, parent.mtu, ours=False) if conf.vlan else None
    try:
        found = namespace.facts(conf, vlan)
    except InvalidConfig as error:
        return Reached(refusal=error.msg)
    return Reached(tuple(address.ip for address in found.host_addresses))


def _details(name: str) -> dict[int, bytes]:
    """The attributes of a link; none when it is gone by now."""
    with closing(Socket()) as socket:
        try:
            return attribute_map(socket.get(rtnetlink.get_link(name)), rtnetlink.LINK_HEADER.size)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return {}
            raise


# --- settings ----------------------------------------------------------------------------------------------------


def sysctls(parent: str) -> Sysctls:
    """The settings that other programs like to change, and whether ADD can change those of its own links."""
    return Sysctls(
        parent={key: _larger(key, parent) for key in ARP_SYSCTLS},
        forwarding={
            4: _read(f"{SYSCTLS}/ipv4/ip_forward") == "1",
            6: _read(f"{SYSCTLS}/ipv6/conf/all/forwarding") == "1",
        },
        locked="" if os.path.isdir(SYSCTLS_OF_HOST) else _locked(f"{SYSCTLS}/ipv4/conf/default/arp_notify"),
    )


def _larger(key: str, link: str) -> str:
    """What counts for a link: the kernel takes the maximum of `all` and its own (ip-sysctl.rst)."""
    values = [_read(f"{SYSCTLS}/ipv4/conf/{each}/{key}") for each in ("all", link)]
    return max((value for value in values if value.isdecimal()), key=int, default="")


def _read(path: str) -> str:
    with suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().strip()
    return ""


def _locked(path: str) -> str:
    """Why a sysctl cannot be written; opening it changes nothing."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""


# --- kube-proxy --------------------------------------------------------------------------------------------------


def service_proxy(namespace: Namespace) -> ServiceProxy:
    """What kube-proxy has left in this namespace: its device of mode ipvs, its table, or its chains."""
    settings = [_read(f"{SYSCTLS}/ipv4/conf/all/{key}") for key in ("arp_ignore", "arp_announce")]
    return ServiceProxy(_proxy_mode(namespace), settings == ["1", "2"])


def _proxy_mode(namespace: Namespace) -> str:
    if namespace.link(IPVS_DEVICE):
        return "ipvs"
    with suppress(OSError), closing(Socket(NETLINK_NETFILTER)) as socket:
        if NFTABLES_TABLE in _names(socket, nftables.NFT_MSG_GETTABLE, nftables.NFTA_TABLE_NAME):
            return "nftables"
        if IPTABLES_CHAIN in _names(socket, nftables.NFT_MSG_GETCHAIN, nftables.NFTA_CHAIN_NAME):
            return "iptables"
    return ""


def _names(socket: Socket, kind: int, attribute: int) -> Iterator[str]:
    """The names of all tables or chains; those of iptables show where it is the one that works by nftables."""
    question = Message(nftables.NFNL_SUBSYS_NFTABLES << 8 | kind, 0, NFGENMSG_OF_ALL)
    for _, body in socket.dump(question):
        yield attribute_map(body, len(NFGENMSG_OF_ALL)).get(attribute, b"").rstrip(b"\0").decode(errors="replace")
