"""A store that is damaged: put aside, and made anew from what the kernel knows of the pods.

The links in the pods carry their attachments' names, so most of it comes back: records good enough for CHECK, DEL and
GC, and the leases. What is lost: pods' names, sticky addresses, cooldowns, reservations of conflicts, delegates.

The addresses of pods whose names cannot be told (one in a namespace that cannot be seen from here is known by its host
route alone) are held by the network `RECOVERED`: all networks on the same parent avoid them. A DEL whose prevResult
names such an address frees it, `shimlanctl gc` does so when nothing of the pod is left, and a reboot.
"""

from __future__ import annotations

import os
from contextlib import suppress

from cni import nftables, shim, survey, vlan
from cni.attachment import (
    PROTO_BOOT,
    PROTO_SHIMLAN,
    SILENT,
    Attachment,
    Key,
    Leasing,
    SourceNat,
    View,
    shim_link,
    shim_name,
)
from cni.database import COMPANIONS, Database, boot_id, put_aside
from cni.errors import CniError, KernelRefused
from cni.frozen import frozen, replace
from cni.node import Node
from cni.state import Records
from ipam.config import IpamConf
from ipam.store import RECOVERED, LeaseStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from cni.attachment import Link, Route
    from cni.log import Log
    from cni.survey import Sighting

    Address = IPv4Address | IPv6Address

WORKSHOP = "rebuild"  # directory below dataDir in which the new store is made
COOLDOWN_SECONDS = IpamConf.cooldown_seconds  # the configuration's own value is not known here


@frozen
class Orphan:
    """An address that the host still leads to a pod, without anybody knowing which."""

    ip: Address
    shim: str
    parent: str


@frozen
class Report:
    """What `recover` found; `aside` is where the damaged store went, "" when somebody else had dealt with it."""

    aside: str = ""
    attachments: tuple[Attachment, ...] = ()
    nameless: tuple[Sighting, ...] = ()
    orphans: tuple[Orphan, ...] = ()


def recover(data_dir: str, log: Log, *, lease_dir: str = "", attachments: bool = True) -> Report:
    """Replace the store of a data directory if it is damaged; says so in the log, as an error.

    `lease_dir` is where the leases of its attachments are, if elsewhere; `attachments` False is for a directory that
    holds nothing but leases. One process does the work while no command is under way; the others wait, and find it
    done. Raises IOFailure or TryAgainLater; then all is as it was.
    """
    node = Node(data_dir, log)
    found: list[Report] = []

    def successor() -> str:
        found.append(_observe(node, lease_dir or data_dir))
        return _build(node, found[0], with_attachments=attachments, with_leases=lease_dir in ("", data_dir))

    with node.locks.everything():
        aside = put_aside(data_dir, successor)
    if not aside:
        return Report()
    with suppress(OSError):
        os.rmdir(f"{data_dir}/{WORKSHOP}")
    report = replace(found[0], aside=aside)
    _tell(log, data_dir, report)
    _restore_source_nat(node)
    return report


# --- what is there -----------------------------------------------------------------------------------------------


def _observe(node: Node, lease_dir: str) -> Report:
    seen = survey.sightings(node)
    shims = dict(_shims(node))
    named = {sighting.key: sighting for sighting in reversed(seen) if sighting.key}
    known = {ip for sighting in seen for ip in sighting.ips}
    return Report(
        attachments=tuple(
            _attachment(node, key, sighting, shims.get(sighting.parent, View()), lease_dir)
            for key, sighting in named.items()
        ),
        nameless=tuple(each for each in seen if each.key is None or named[each.key] is not each),
        orphans=tuple(
            Orphan(ip, link.name, _parent_name(node, link))
            for link, ip, _ in survey.host_entries(node)
            if ip not in known
        ),
    )


def _shims(node: Node) -> Iterator[tuple[str, View]]:
    """Our shims with their entries of ours, by the names of their parents."""
    for link in node.host.links():
        parent = node.host.parent(_parent_name(node, link)) if shim.is_shim(link) else None
        if parent:
            routes = (route for route in node.host.routes(link.index) if route.protocol == PROTO_SHIMLAN)
            neighbours = tuple(node.host.neighbours(link.index))
            yield parent.name, View(shim_link(parent, link.mac), routes=tuple(routes), neighbours=neighbours)


def _parent_name(node: Node, link: Link) -> str:
    parent = node.host.link_at(link.parent_index)
    return parent.name if parent else ""


def _attachment(node: Node, key: Key, sighting: Sighting, shim_view: View, lease_dir: str) -> Attachment:
    # A limit for broadcasts belongs to the parent: whichever child was set up last has decided it for all.
    link = replace(sighting.link, name=key.ifname, index=0, bclim=None)
    asked = (PROTO_BOOT, PROTO_SHIMLAN)
    routes = tuple(route for route in sighting.view.routes if route.protocol in asked)
    parent = None if sighting.parent_in_pod else node.host.link(sighting.parent)
    carrier = vlan.observed(node.host, parent) if parent else None
    return Attachment(
        key=key,
        pod="",
        parent=sighting.parent,
        parent_index=link.parent_index,
        netns=sighting.netns,
        netns_id=sighting.netns_id,
        netns_cookie=sighting.netns_cookie,
        sandbox=replace(sighting.view, link=link, routes=routes),
        host=View() if sighting.parent_in_pod else _host_end(sighting.ips, shim_view),
        source_nat=tuple(_source_nat(link.parent_index, routes)),
        parent_in_pod=sighting.parent_in_pod,
        leasing=Leasing(lease_dir, COOLDOWN_SECONDS),
        rebuilt=True,
        vlan=carrier,
    )


def _host_end(ips: tuple[Address, ...], shim_view: View) -> View:
    routes = tuple(route for route in shim_view.routes if route.dst.network_address in ips)
    neighbours = tuple(entry for entry in shim_view.neighbours if entry.ip in ips)
    if not routes and not neighbours:
        return View()
    return replace(shim_view, routes=routes, neighbours=neighbours, sysctls=SILENT)


def _source_nat(parent_index: int, routes: Iterable[Route]) -> Iterator[SourceNat]:
    """What the pod's routes through the host ask for, where the host translates sources at all."""
    gateways = {route.via.version: route.via for route in routes if route.protocol == PROTO_SHIMLAN and route.via}
    if gateways and _translates():
        for gateway in gateways.values():
            yield SourceNat(shim_name(parent_index), gateway)


def _translates() -> bool:
    try:
        with nftables.connect() as socket:
            return not nftables.in_place(socket, ())
    except KernelRefused:
        return False


# --- making it anew ----------------------------------------------------------------------------------------------


def _build(node: Node, report: Report, with_attachments: bool, with_leases: bool) -> str:
    """A store with all of it in a place of its own; returns its path."""
    database = Database(f"{node.data_dir}/{WORKSHOP}")
    for suffix in COMPANIONS:
        with suppress(FileNotFoundError):
            os.unlink(database.path + suffix)
    records, leases = Records(database, boot_id()), LeaseStore(database)
    for attachment in report.attachments if with_attachments else ():
        records.put(attachment)
    if with_leases:
        _adopt(leases, node.log, report)
    with database.transaction():
        pass  # makes the store even if there is nothing to put into it
    database.close()
    return database.path


def _adopt(leases: LeaseStore, log: Log, report: Report) -> None:
    for attachment in report.attachments:
        key, parent = attachment.key, "" if attachment.parent_in_pod else attachment.parent
        for ip in attachment.ips:
            if not leases.adopt(key.network, ip, key.container_id, key.ifname, parent=parent):
                log.warning(f"{ip} of {key} is in use twice: another pod has it as well")
    for sighting in report.nameless:
        for ip in sighting.ips:
            leases.adopt(RECOVERED, ip, f"unknown, in {sighting.netns}", sighting.link.name, parent=sighting.parent)
    for orphan in report.orphans:
        leases.adopt(RECOVERED, orphan.ip, f"unknown, behind {orphan.shim}", orphan.shim, parent=orphan.parent)


def _tell(log: Log, data_dir: str, report: Report) -> None:
    log.error(f"the store in {data_dir} was damaged: it is kept as {report.aside}")
    log.error(f"a new store was made from the kernel's state: {len(report.attachments)} attachment(s) found")
    for attachment in report.attachments:
        log.warning(f"rebuilt {attachment.key}: {_listed(attachment.ips)}")
    for sighting in report.nameless:
        log.warning(f"{_listed(sighting.ips)} on {sighting.link.name} in {sighting.netns}: whose it is cannot be told")
    for orphan in report.orphans:
        log.warning(f"{orphan.ip} behind {orphan.shim}: its pod cannot be seen from here; the address is kept for it")


def _restore_source_nat(node: Node) -> None:
    """The new records may ask for other rules than the lost ones did."""
    if any(attachment.source_nat for attachment in node.records.all()):
        try:
            shim.sync_source_nat(node)
        except CniError as error:
            node.log.error(f"source NAT for shim.routes: {error.msg}")


def _listed(ips: Iterable[Address]) -> str:
    return ", ".join(map(str, ips)) or "no address"
