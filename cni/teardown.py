"""Taking an attachment back: after DEL and GC, after a failed ADD, and after one that was killed halfway.

Each step tolerates that its object is gone already. The order is what keeps addresses unique and the LAN quiet: the
host stops sending through the shim while the link is still there to receive it, a lease is released only when no link
can have the address any more, and a record is forgotten only when nothing is left that it describes.
"""

from __future__ import annotations

from contextlib import nullcontext

from cni import delegate, shim
from cni.errors import attempt
from cni.frozen import replace
from cni.protocol import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from ipaddress import IPv4Address, IPv6Address

    from cni.attachment import Attachment, Delegation, Key, Link
    from cni.config import NetConf
    from cni.log import Log
    from cni.node import Node
    from ipam.config import IpamConf

    Address = IPv4Address | IPv6Address


def take_back(node: Node, attachment: Attachment) -> None:
    """Remove all that a recorded attachment stands for; tries every step that is safe, then raises the first error."""
    errors = attempt(shim.detach, node, attachment) + attempt(_remove_link, node, attachment)
    if errors:
        raise errors[0]
    if attachment.delegate:
        _release_delegated(node, attachment, attachment.delegate)
    with _vlan_locked(node, attachment), shim.retired(node, attachment):
        _retire_vlan(node, attachment)
        _forget(node, attachment)


def take_back_locked(node: Node, key: Key, ipam: IpamConf | None = None) -> None:
    """`take_back` of whatever is recorded for a key by now, for those who do not hold its lock.

    `ipam`: where leases may be of which no record tells (any more). An ADD has them before it has a record: hence here,
    under the lock, and not before.
    """
    with node.locks.attachment(key):
        attachment = node.records.find_to_remove(key)
        if attachment:
            take_back(node, attachment)
        elif ipam:
            leases = node.leases(ipam.data_dir)
            leases.release(key.network, key.container_id, key.ifname, ipam.cooldown_seconds)


def take_back_unknown(node: Node, key: Key, conf: NetConf, call: Call, ips: Iterable[Address]) -> None:
    """Remove what may be left of an attachment without a record: the reference plugin made it, or the store was lost.

    `ips` are those that prevResult tells.
    """
    found = set(ips)
    with node.pod_if_there(call.netns, call.own_netns) as pod:
        link = pod.namespace.link(key.ifname) if pod else None
        if pod and link and _may_be_ours(link, key):
            found |= {address.ip for _, address in pod.namespace.addresses(link.index)}
            pod.namespace.delete_link(link.index)
    if conf.ipam:
        leases = node.leases(conf.ipam.data_dir)
        found |= set(leases.release(key.network, key.container_id, key.ifname, conf.ipam.cooldown_seconds))
        leases.free_recovered(found)
    shim.forget(node, found)
    if conf.delegate:
        delegate.delete(delegate.delegation(conf.delegate, conf.raw, call), call)


def _may_be_ours(link: Link, key: Key) -> bool:
    """Whether a link of the right name is this attachment's, or one that the reference plugin made."""
    return link.kind in ("macvlan", "macvtap") and (
        link.alias == key.alias or (link.kind, link.alias) == ("macvlan", "")
    )


def _remove_link(node: Node, attachment: Attachment) -> None:
    wanted = attachment.sandbox.link
    with node.pod_of(attachment) as pod:
        link = pod.namespace.child(wanted) if pod and wanted else None
        if pod and link:
            node.log.debug(f"ip link del {link.name}")
            pod.namespace.delete_link(link.index)


def _release_delegated(node: Node, attachment: Attachment, delegation: Delegation) -> None:
    """Have a delegate take back its addresses; from then on the record must not have an agent give them to a link."""
    key = attachment.key
    node.records.revise(replace(attachment, leaving=True))
    delegate.delete(delegation, Call("DEL", key.container_id, attachment.netns, key.ifname))


def _forget(node: Node, attachment: Attachment) -> None:
    """Forget the record and release its leases, both or neither: an agent mends what is recorded.

    Of two stores the one with the record is first: a lease without one is found by DEL and GC.
    """
    key, leasing = attachment.key, attachment.leasing
    together = leasing and leasing.data_dir == node.data_dir
    with node.database.transaction() if together else nullcontext():
        node.records.forget(key)
        if leasing:
            leases = node.leases(leasing.data_dir)
            leases.release(key.network, key.container_id, key.ifname, leasing.cooldown_seconds)


def _vlan_locked(node: Node, attachment: Attachment) -> AbstractContextManager[None]:
    return node.locks.vlan(attachment.vlan.name) if attachment.vlan else nullcontext()


def _retire_vlan(node: Node, attachment: Attachment) -> None:
    if attachment.vlan:
        from cni import vlan

        vlan.retire(node, attachment)


def quietly(log: Log, step: Callable[[], object]) -> None:
    """A step of undoing a failed ADD: what counts is the failure itself, and DEL or GC finish what remains recorded."""
    for error in attempt(step):
        log.error(f"undoing a failed ADD: {error.msg}; DEL or `shimlanctl gc` will finish it")
