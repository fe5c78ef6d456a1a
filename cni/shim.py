"""The host's side: a shim per parent while somebody needs it, one nftables table while somebody needs that.

Who needs them is what the records say; a lock per parent keeps one process from removing what another relies on.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager, suppress

from cni.attachment import PROTO_SHIMLAN, SHIM_ALIAS, View
from cni.diff import SetLink, diff
from cni.errors import KernelRefused
from cni.frozen import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from cni.attachment import Attachment, Key, Link, SourceNat
    from cni.node import Node

    Address = IPv4Address | IPv6Address


def attach(node: Node, attachment: Attachment) -> None:
    """Make the host's end of a recorded attachment: the shim if it is missing, the pod's entries, the source NAT."""
    if attachment.host.link is None:
        return
    standing = ensure(node, attachment)
    _apply_entries(node, attachment.host, standing)
    if attachment.source_nat:
        sync_source_nat(node)


def ensure(node: Node, attachment: Attachment) -> Link | None:
    """Make the shim of a recorded attachment if it is missing; the shim if it stood already."""
    if attachment.host.link is None:
        return None
    with node.locks.shim(attachment.parent_index):
        standing = _standing(node, attachment.host)
        if not standing:
            make_anew(node, attachment.host)
    if not standing:
        _restore(node, attachment)
    return standing


def detach(node: Node, attachment: Attachment) -> None:
    """Remove the pod's entries on the host."""
    node.host.remove_entries(attachment.host)


@contextmanager
def retired(node: Node, attachment: Attachment) -> Iterator[None]:
    """Remove shim and source NAT if an attachment is the last to need them; the body of the `with` block forgets it.

    Under the locks, and the record last: whoever is killed in between leaves it to the next DEL, and of two who leave
    at once the second sees that nobody is left.
    """
    shim = attachment.host.link
    if shim is None:
        yield
        return
    with ExitStack() as locked:
        locked.enter_context(node.locks.shim(attachment.parent_index))
        if not node.records.is_needed(shim.name, but=attachment.key):
            _remove(node, shim)
        if attachment.source_nat:
            locked.enter_context(node.locks.source_nat())
            _retire_source_nat(node, attachment.key)
        yield


def _retire_source_nat(node: Node, key: Key) -> None:
    from cni import nftables  # here and below: only for networks with shim.routes

    try:
        socket = nftables.connect()
    except KernelRefused:  # a kernel without nftables has no table to look after
        return
    with closing(socket):
        nftables.sync(socket, _source_nat(node, but=key))


def remove_unused(node: Node, shim: Link, parent_index: int) -> None:
    """Remove a shim that no recorded attachment uses; one that is gone already is fine."""
    if node.records.is_needed(shim.name):
        return
    with node.locks.shim(parent_index):
        if not node.records.is_needed(shim.name):
            _remove(node, shim)


def _remove(node: Node, shim: Link) -> None:
    present = node.host.link(shim.name)
    if present is None or not (is_shim(present) or _is_half_made(present, shim)):
        return
    # Routes that are still there are of pods that another dataDir knows, or none any more.
    if not any(route.protocol == PROTO_SHIMLAN for route in node.host.routes(present.index)):
        node.log.debug(f"ip link del {shim.name}")
        node.host.delete_link(present.index)


def forget(node: Node, ips: Iterable[Address]) -> None:
    """Remove what the host's side still has of addresses, unless a recorded attachment uses them by now."""
    used = {ip for attachment in node.records.all() for ip in attachment.ips}
    orphans = set(ips) - used
    if not orphans:
        return
    for link in node.host.links():
        if is_shim(link):
            _forget_behind(node, link, orphans)


def _forget_behind(node: Node, shim: Link, orphans: set[Address]) -> None:
    routes, neighbours = node.host.routes(shim.index), node.host.neighbours(shim.index)
    lost = View(
        link=shim,
        routes=tuple(route for route in routes if route.dst.network_address in orphans),
        neighbours=tuple(entry for entry in neighbours if entry.ip in orphans),
    )
    node.host.remove_entries(lost)
    # Other entries are of pods whose records were lost as well: they still live by the shim, and by its source NAT.
    if len(lost.routes) == len(routes):
        remove_unused(node, shim, shim.parent_index)
        with suppress(KernelRefused):  # a kernel without nftables has no table to look after
            sync_source_nat(node)


def is_shim(link: Link) -> bool:
    """Whether a link of the host is a shim of ours, and not just called like one."""
    return link.kind == "macvlan" and link.alias.startswith(SHIM_ALIAS)


def sync_source_nat(node: Node) -> None:
    """Make the nftables table hold what the recorded attachments need, and nothing else.

    Called only for attachments that need it or did, so that a kernel without nftables serves all others.
    """
    from cni import nftables

    with nftables.connect() as socket:
        if nftables.in_place(socket, _source_nat(node)):
            return
        with node.locks.source_nat():
            nftables.sync(socket, _source_nat(node))


def source_nat_in_place(node: Node) -> bool:
    """Whether the nftables table holds what the recorded attachments need."""
    from cni import nftables

    with nftables.connect() as socket:
        return nftables.in_place(socket, _source_nat(node))


def _source_nat(node: Node, but: Key | None = None) -> list[SourceNat]:
    return source_nat(node, [attachment for attachment in node.records.all() if attachment.key != but])


def source_nat(node: Node, recorded: Sequence[Attachment]) -> list[SourceNat]:
    """What attachments need, and those in other data directories, as there is one table for all.

    Newest attachment first: after a change of the host's address the present one decides.
    """
    groups = (recorded, *(each.all() for each in node.siblings()))
    return [rule for group in groups for attachment in reversed(group) for rule in attachment.source_nat]


def _standing(node: Node, wanted: View) -> Link | None:
    """The shim if it is there and up. Its MAC is what it is: the pods know it."""
    assert wanted.link is not None
    link, present = wanted.link, node.host.link(wanted.link.name)
    if present is None or not (present.up and is_shim(present)):
        return None
    if present.mtu != link.mtu:  # the parent's has changed: children follow it down, but not up
        node.apply(node.host, (SetLink(link, "mtu", str(link.mtu), str(present.mtu)),), node.host, present.index)
    return present


def make_anew(node: Node, wanted: View) -> None:
    """Make a shim, in place of one that stands already; its lock is held."""
    assert wanted.link is not None
    link, present = wanted.link, node.host.link(wanted.link.name)
    if present and not is_shim(present) and not _is_half_made(present, link):
        raise KernelRefused(f"{present.name} exists and is not ours: rename it, shimlan needs the name for its shim")
    if present:
        # Somebody set it down, which took all of its entries, or we were killed while making it.
        link = replace(link, mac=present.mac)
        node.host.delete_link(present.index)
    node.apply(node.host, diff(View(link=link, sysctls=wanted.sysctls), View()), node.host)


def _is_half_made(link: Link, wanted: Link) -> bool:
    """Whether a link is a shim of ours that did not get as far as its alias."""
    return link.kind == wanted.kind and not link.alias and link.mac == wanted.mac


def _restore(node: Node, but: Attachment) -> None:
    """A shim that had to be made anew lost the entries of the pods that were there before.

    Those that somebody else works on are left to him: he adds his entries himself, or has removed them for good.
    """
    assert but.host.link is not None
    for attachment in node.records.behind(but.host.link.name):
        if attachment.key == but.key:
            continue
        with node.locks.attachment_if_free(attachment.key) as free:
            present = node.records.find(attachment.key) if free else None
            if present and not present.leaving:
                _restore_one(node, present)


def _restore_one(node: Node, attachment: Attachment) -> None:
    try:
        _apply_entries(node, attachment.host)
    except KernelRefused as error:  # a pod that cannot be helped is no reason to refuse another one
        node.log.warning(f"{attachment.key.container_id} stays out of reach of the host: {error.msg}")


def _apply_entries(node: Node, host: View, standing: Link | None = None) -> None:
    assert host.link is not None
    present = standing or node.host.link(host.link.name)
    if present is None:
        raise KernelRefused(f"{host.link.name} vanished while it was set up: somebody removed it, or its parent")
    # The link itself is compared with itself: it is as it is, and other pods live by it.
    entries = View(link=present, routes=host.routes, neighbours=host.neighbours)
    node.apply(node.host, diff(entries, View(link=present)), node.host, present.index)
