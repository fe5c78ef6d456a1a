"""VLAN devices as parents: used where they are there, made where they are not, and ours removed with their last user.

Who uses them is what the records say; a lock per device keeps one process from removing what another is about to use.
A device is ours if its alias says so. Those of others are used as they are and never changed.
"""

from __future__ import annotations

import time
import zlib

from cni import kernel
from cni.attachment import VLAN_ALIAS, View, Vlan, check_parent, limited, vlan_view
from cni.diff import SetLink, SetSysctl, diff
from cni.errors import ParentUnusable
from cni.frozen import replace
from cni.protocol import NAME_LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni.attachment import Attachment, Link, Parent
    from cni.config import NetConf
    from cni.diff import Change
    from cni.kernel import Namespace
    from cni.node import Node

# How long children may linger on a device when their namespace goes away; mostly 0.05.
LINGER_SECONDS = 1.0
LINGER_PAUSE = 0.01
TAG_BYTES = 4  # VLAN_HLEN, include/linux/if_vlan.h


def name_for(master: str, vlan_id: int) -> str:
    """The name of a VLAN device: `<master>.<id>`, and where that is too long a part of the master's name for all of it.

    The part is followed by "-" and four digits of a checksum (CRC-32, hexadecimal), as NICs beside each other differ in
    their last letters only.
    """
    tail = f".{vlan_id}"
    if len(master.encode(errors="surrogateescape")) + len(tail) <= NAME_LENGTH:
        return master + tail
    data = master.encode(errors="surrogateescape")
    tail = f"-{zlib.crc32(data) & 0xFFFF:04x}{tail}"
    return data[: NAME_LENGTH - len(tail)].decode(errors="ignore") + tail


def find_master(conf: NetConf, namespace: Namespace) -> Parent:
    """The link that is to carry the tagged frames; raises ParentUnusable when it cannot."""
    master = kernel.find_parent(conf, namespace)
    check_parent(conf, master)
    if master.lower_index:
        raise ParentUnusable(
            f"{master.name} is a {master.kind}, which has one MAC for all of its VLANs: "
            'set "master" to the NIC below it'
        )
    return master


def check(conf: NetConf, namespace: Namespace) -> None:
    """For STATUS: whether the VLAN device is there, or could be made; raises ParentUnusable."""
    master = find_master(conf, namespace)
    present = namespace.link(_name(namespace, master, conf.vlan))
    if present is None:
        return
    _check_present(present, master, conf.vlan, ours=is_ours(present))
    carrier = None if is_ours(present) else namespace.parent(present.name)
    if carrier:
        check_parent(conf, carrier)


def use(node: Node, conf: NetConf, intent: Attachment) -> Vlan:
    """The VLAN device for an attachment, made if it is missing.

    The `intent` is recorded, with the device, before the kernel is touched: from then on nobody removes it. Raises
    ParentUnusable.
    """
    master = find_master(conf, node.host)
    name = _name(node.host, master, conf.vlan)
    with node.locks.vlan(name):
        present = node.host.link(name)
        ours = present is None or is_ours(present) or _is_half_made(node, present)
        if present:
            _check_present(present, master, conf.vlan, ours)
        vlan = Vlan(name, conf.vlan, master.name, master.index, mtu_on(master), ours)
        node.records.put(replace(intent, parent=name, parent_index=master.index, vlan=vlan))
        if ours:
            _put_right(node, vlan, present)
    return vlan


def mtu_on(master: Parent) -> int:
    """The largest MTU of a VLAN device; that of its master as a rule (netif_reduces_vlan_mtu, linux/netdevice.h)."""
    return master.mtu - (TAG_BYTES if master.kind == "macsec" else 0)


def _put_right(node: Node, vlan: Vlan, present: Link | None) -> None:
    wanted = [step for step in steps(vlan, present) if not isinstance(step, SetLink) or step.option == "mtu"]
    node.apply(node.host, wanted, node.host, present.index if present else 0)


def steps(vlan: Vlan, present: Link | None) -> tuple[Change, ...]:
    """What it takes for a device of ours to be what it shall be."""
    return diff(vlan_view(vlan), View(link=present))


def retire(node: Node, attachment: Attachment) -> None:
    """Remove the device of an attachment that is its last user, under its lock."""
    vlan = attachment.vlan
    if vlan is None or node.records.in_vlan(vlan.name, but=attachment.key):
        return
    present = node.host.link(vlan.name)
    if present and (is_ours(present) or (vlan.ours and _may_be_half_made(present))):
        _remove(node, present)


def remove_unused(node: Node, name: str) -> None:
    """Remove a device of ours that no recorded attachment uses; one that is gone already is fine."""
    with node.locks.vlan(name):
        present = node.host.link(name)
        if present and is_ours(present) and not node.records.in_vlan(name):
            _remove(node, present)


def _remove(node: Node, present: Link) -> None:
    deadline = time.monotonic() + LINGER_SECONDS
    while others := children(node, present):
        if time.monotonic() > deadline:
            node.log.warning(f"{present.name} stays: it still carries {', '.join(sorted(others))}")
            return
        time.sleep(LINGER_PAUSE)
    node.log.debug(f"ip link del {present.name}")
    node.host.delete_link(present.index)


def children(node: Node, device: Link) -> set[str]:
    """The MACs of the children of a device that are up, in whatever namespace: another dataDir may know of them."""
    return {mac for mac in node.host.received_macs(device.index) if not int(mac[:2], 16) & 1}


def is_ours(link: Link) -> bool:
    """Whether a link is a VLAN device that we made."""
    return link.kind == "vlan" and link.alias.startswith(VLAN_ALIAS)


def differences(node: Node, vlan: Vlan) -> Iterator[str]:
    """How a VLAN device differs from what was recorded, for CHECK."""
    present, master = node.host.link(vlan.name), node.host.link_at(vlan.master_index)
    wanted = limited(vlan_view(vlan), master.mtu) if master else vlan_view(vlan)
    for step in diff(wanted, View(link=present)) if vlan.ours else ():
        if not isinstance(step, SetSysctl):
            yield f"host: {step}"


def today(namespace: Namespace, vlan: Vlan, parent: Parent) -> Vlan | None:
    """A recorded device as it is by now, with its master; None when the link of its name is no such device (any more).

    It and its master may have other names, or other indices.
    """
    device = namespace.link(parent.name)
    master = namespace.link_at(device.parent_index) if device and device.vlan == vlan.id else None
    return replace(vlan, name=parent.name, master=master.name, master_index=master.index) if master else None


def observed(namespace: Namespace, device: Link) -> Vlan | None:
    """What can be told of a VLAN device that nothing is recorded of; None for other links."""
    master = namespace.link_at(device.parent_index) if device.kind == "vlan" else None
    return Vlan(device.name, device.vlan, master.name, master.index, device.mtu, is_ours(device)) if master else None


def _name(namespace: Namespace, master: Parent, vlan_id: int) -> str:
    """The name that the device has or gets: one of ours keeps its name when its master is renamed."""
    name = name_for(master.name, vlan_id)
    if namespace.link(name):
        return name
    ours = (link.name for link in namespace.links() if is_ours(link) and _is_of(link, master, vlan_id))
    return next(ours, name)


def _is_of(link: Link, master: Parent, vlan_id: int) -> bool:
    return (link.kind, link.vlan, link.parent_index) == ("vlan", vlan_id, master.index)


def _check_present(present: Link, master: Parent, vlan_id: int, ours: bool) -> None:
    name = present.name
    if not _is_of(present, master, vlan_id):
        raise ParentUnusable(f"{name} exists and is not VLAN {vlan_id} of {master.name}: rename or remove it")
    if not present.up and not ours:
        raise ParentUnusable(f"{name} is down: run `ip link set {name} up` and have it set up at boot")


def _is_half_made(node: Node, link: Link) -> bool:
    """Whether a link is one that somebody who was killed was about to make."""
    return _may_be_half_made(link) and any(user.vlan and user.vlan.ours for user in node.records.in_vlan(link.name))


def _may_be_half_made(link: Link) -> bool:
    return link.kind == "vlan" and not link.alias and not link.up
