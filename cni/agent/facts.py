"""What one pass finds on the host: parents, addresses, shims with their entries. Each is asked for once, when needed.

Nothing is changed here, and nothing is kept for the next pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence, Set
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address

from cni import vlan
from cni.attachment import (
    Attachment,
    Facts,
    InterfaceAddress,
    Link,
    Neighbour,
    Parent,
    Reach,
    Route,
    View,
    Vlan,
    shim_name,
)
from cni.kernel import Namespace
from cni.shim import is_shim

Address = IPv4Address | IPv6Address
Owned = tuple[int, InterfaceAddress]  # an address and the index of its link


class HostFacts:
    """The host's namespace as one pass finds it; `recorded` are the attachments on record, the newest last."""

    def __init__(self, namespace: Namespace, recorded: Sequence[Attachment]) -> None:
        self.namespace = namespace
        self._recorded = recorded
        self._parents: dict[tuple[int, str], Parent | None] = {}
        self._facts: dict[tuple[int, Reach | None, frozenset[int], Vlan | None], Facts | None] = {}
        self._shims: dict[str, ShimSide] = {}
        self._received: dict[int, set[str]] = {}

    def facts(self, attachment: Attachment) -> Facts | None:
        """What an attachment is to be planned from today; None while its parent is gone, or where it is in the pod."""
        parent = None if attachment.parent_in_pod else self.parent(attachment)
        if parent is None:
            return None
        families = frozenset(ip.version for ip in attachment.ips)
        key = parent.index, attachment.reach, families, attachment.vlan
        if key not in self._facts:
            self._facts[key] = self._gathered(attachment, parent, families)
        return self._facts[key]

    def _gathered(self, attachment: Attachment, parent: Parent, families: frozenset[int]) -> Facts | None:
        device = vlan.today(self.namespace, attachment.vlan, parent) if attachment.vlan else None
        if attachment.vlan and device is None:  # a link that is not in the VLAN has the name by now
            return None
        return Facts(
            parent,
            host_addresses=self._reached(attachment.reach, parent, families),
            shim_mac=self._shim_mac(parent),
            vlan=device,
        )

    def parent(self, attachment: Attachment) -> Parent | None:
        """The link that carries an attachment: it may have another name by now, or another index."""
        key = attachment.parent_index, attachment.parent
        if key not in self._parents:
            siblings = (each for each in self._recorded if not each.parent_in_pod and each.parent_index == key[0])
            self._parents[key] = find_parent(self.namespace, *key, {each.mac for each in siblings})
        return self._parents[key]

    @cached_property
    def addresses(self) -> list[Owned]:
        """All addresses that others can use to reach this host."""
        return self.namespace.addresses()

    @cached_property
    def sources(self) -> frozenset[Address]:
        """What a route can have as its source."""
        return frozenset(address.ip for _, address in self.addresses)

    @cached_property
    def _default_index(self) -> int:
        name = self.namespace.default_link()
        link = self.namespace.link(name) if name else None
        return link.index if link else 0

    def _reached(self, reach: Reach | None, parent: Parent, families: Collection[int]) -> tuple[InterfaceAddress, ...]:
        if reach is None:
            return ()
        own = of_link(self.addresses, parent.index)
        elsewhere: Sequence[InterfaceAddress] = ()
        if reach.automatic and missing(families, own):
            elsewhere = of_link(self.addresses, self._default_index)
        return reached(reach, families, own, elsewhere, (address for _, address in self.addresses))

    def _shim_mac(self, parent: Parent) -> str:
        """That of the shim that stands, else the one that pods know."""
        link = self.shim(shim_name(parent.index)).link
        if link and is_shim(link):
            return link.mac
        known = (
            each.host.link.mac for each in reversed(self._recorded) if each.host.link and self._is_on(each, parent)
        )
        return next(known, "")

    def _is_on(self, attachment: Attachment, parent: Parent) -> bool:
        found = self.parent(attachment)
        return found is not None and found.index == parent.index

    def shim(self, name: str) -> ShimSide:
        """The shim of that name."""
        return self._shims.setdefault(name, ShimSide(self.namespace, name))

    def receives(self, parent_index: int, mac: str) -> bool:
        """Whether a child with that MAC is up, wherever it is. Of children in the NIC's own hands nothing is known."""
        if parent_index not in self._received:
            self._received[parent_index] = self.namespace.received_macs(parent_index)
        return mac in self._received[parent_index]


class ShimSide:
    """A shim and what leads through it, by the addresses of pods."""

    def __init__(self, namespace: Namespace, name: str) -> None:
        self._namespace = namespace
        self._name = name
        self.refusal = ""  # why it could not be mended in this pass

    @cached_property
    def link(self) -> Link | None:
        """The link, whosever it is."""
        return self._namespace.link(self._name)

    @cached_property
    def _routes(self) -> dict[Address, list[Route]]:
        found: defaultdict[Address, list[Route]] = defaultdict(list)
        for route in self._namespace.routes(self.link.index) if self.link else ():
            found[route.dst.network_address].append(route)
        return found

    @cached_property
    def _neighbours(self) -> dict[Address, Neighbour]:
        return {entry.ip: entry for entry in self._namespace.neighbours(self.link.index)} if self.link else {}

    def entries(self, ips: Iterable[Address]) -> View:
        """What there is for some addresses."""
        ips = tuple(ips)
        return View(
            link=self.link,
            routes=tuple(route for ip in ips for route in self._routes.get(ip, ())),
            neighbours=tuple(self._neighbours[ip] for ip in ips if ip in self._neighbours),
        )

    def look_again(self) -> None:
        """Forget what was found, as it was changed."""
        for name in ("link", "_routes", "_neighbours"):
            self.__dict__.pop(name, None)


def find_parent(namespace: Namespace, index: int, name: str, macs: Set[str]) -> Parent | None:
    """The parent of links with some MACs, by the index and the name that it had.

    Indices of links that are gone are used again (a NIC that is moved between namespaces keeps its own where that is
    free). So a link of another name is taken for the parent only if it carries one of the children: it was renamed.
    """
    link = namespace.link_at(index)
    if link and (link.name == name or macs & {link.mac, *namespace.received_macs(index)}):
        return namespace.parent(link.name)
    return namespace.parent(name)


def of_link(addresses: Iterable[Owned], index: int) -> tuple[InterfaceAddress, ...]:
    """The addresses of one link."""
    return tuple(address for owner, address in addresses if owner == index)


def missing(families: Collection[int], own: Iterable[InterfaceAddress]) -> set[int]:
    """The IP versions of which there is no address."""
    return set(families) - {address.ip.version for address in own}


def reached(
    reach: Reach,
    families: Collection[int],
    own: Sequence[InterfaceAddress],
    elsewhere: Iterable[InterfaceAddress],
    everywhere: Iterable[InterfaceAddress],
) -> tuple[InterfaceAddress, ...]:
    """The addresses of the host that a pod with addresses of these families shall reach, as far as they are there.

    `own` are those of the parent, `elsewhere` those where the default route leads, `everywhere` all of the host.
    """
    automatic: tuple[InterfaceAddress, ...] = ()
    if reach.automatic:
        firsts = {address.ip.version: address for address in reversed(list(elsewhere))}
        automatic = (*own, *(firsts[family] for family in sorted(missing(families, own)) if family in firsts))
    there = {address.ip: address for address in everywhere}
    known = {address.ip for address in automatic}
    return (*automatic, *(there[ip] for ip in reach.by_hand if ip in there and ip not in known))
