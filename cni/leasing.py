"""The commands' dealings with our own IPAM: leasing addresses, probing them on the LAN, comparing."""

from __future__ import annotations

from cni import netns, teardown
from cni.errors import AddressUnavailable, Exhausted
from ipam.service import result_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from ipaddress import IPv4Address, IPv6Address

    from cni.attachment import Attachment
    from cni.commands import Request
    from cni.node import Node
    from cni.protocol import Result
    from ipam.config import IpamConf
    from ipam.store import Allocation

    Address = IPv4Address | IPv6Address

CONFLICTS_IN_A_ROW = 16  # then something is wrong with the LAN or the range, and trying on would only take time


def lease(node: Node, request: Request, ipam: IpamConf, undo: ExitStack) -> Result:
    """Lease what a pod needs; its release goes onto `undo`. Raises Exhausted or AddressUnavailable."""
    key, facts = request.key, request.facts
    leases = node.leases(ipam.data_dir)
    undo.callback(
        teardown.quietly,
        node.log,
        lambda: leases.release(key.network, key.container_id, key.ifname, ipam.cooldown_seconds),
    )
    avoid = [address.ip for address in (*facts.parent_addresses, *facts.host_addresses)]
    for _ in range(CONFLICTS_IN_A_ROW):
        try:
            allocation = leases.allocate(
                ipam,
                key.container_id,
                key.ifname,
                pod=request.conf.pod,
                mac=request.conf.mac,
                parent="" if request.conf.link_in_container else facts.parent.name,
                avoid=avoid,
            )
        except Exhausted:
            undo.callback(leases.remember_ranges, ipam, avoid)  # what is written now is still rolled back
            raise
        for warning in allocation.warnings:
            node.log.warning(warning)
        conflicts = dict(_conflicts(request, allocation))
        if not conflicts:
            return result_of(ipam, allocation)
        for address, mac in conflicts.items():
            node.log.warning(f"{address} is in use by {mac} on the LAN of {facts.parent.name}: set aside for a while")
            leases.conflict(key.network, address)
            if address in ipam.requested:
                raise AddressUnavailable(f"{address} was requested, but {mac} uses it on the LAN")
    raise AddressUnavailable(
        f"{CONFLICTS_IN_A_ROW} addresses in a row are in use on the LAN of {facts.parent.name}: "
        "have ipam.ranges and the LAN's DHCP server share it out"
    )


def _conflicts(request: Request, allocation: Allocation) -> Iterator[tuple[Address, str]]:
    """Those of the addresses that somebody on the LAN answers for, with who it is."""
    detection, parent = request.conf.detect_conflicts, request.facts.parent
    if detection is None:
        return
    from cni import probe  # only for networks that ask for it

    with netns.entered(request.pod.namespace.fd if request.conf.link_in_container else None):
        for address in allocation.addresses:
            mac = probe.who_has(parent.name, parent.mac, address.ip, detection.timeout_ms, detection.retries)
            if mac:
                yield address.ip, mac


def differences(node: Node, attachment: Attachment) -> Iterator[str]:
    """How the leases differ from the addresses of an attachment, for CHECK."""
    if attachment.leasing is None:
        return
    key = attachment.key
    leased = node.leases(attachment.leasing.data_dir).find(key.network, key.container_id, key.ifname)
    for ip in attachment.ips:
        if ip not in leased:
            yield f"ipam: no lease of {ip}"
