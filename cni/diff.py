"""Wanted view against observed view: the ordered changes between them, each able to say itself in `ip` syntax.

Pure. ADD applies the changes, CHECK lists them, and so nobody needs a second notion of what "right" is. Only what is
wanted and missing or different counts: what others added to a pod is none of our business. What we added and want no
longer is (`surplus`).
"""

from __future__ import annotations

from cni.attachment import MAIN_TABLE, PROTO_BOOT, PROTO_SHIMLAN, SCOPE_LINK, SCOPE_UNIVERSE, View
from cni.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni.attachment import InterfaceAddress, Link, Neighbour, Route


# The fields of a link that have another name than the option of `ip`.
FIELDS = {"address": "mac", "type": "kind", "id": "vlan"}


@frozen
class AddLink:
    """Create the link, down, with its final name in its namespace."""

    link: Link

    def __str__(self) -> str:
        link = self.link
        words = ["ip link add", link.name, "link", link.parent]
        for option in ("address", "mtu", "type", "id", "mode", "bcqueuelen", "bclim"):
            value = getattr(link, FIELDS.get(option, option))
            words += [option, str(value)] if value or (value == 0 and option == "bclim") else []
        words += ["macaddr", _macs(link.source_macs)] if link.source_macs else []
        return " ".join(words)


@frozen
class SetLink:
    """Correct one property of an existing link; `found` is what it is instead."""

    link: Link
    option: str
    value: str
    found: str

    def __str__(self) -> str:
        option = f"type {self.link.kind} macaddr" if self.option == "macaddr" else self.option
        return f"ip link set {self.link.name} {option} {self.value} (it is {self.found or 'unset'})"


@frozen
class SetSysctl:
    """Set a sysctl of one link."""

    link: str
    name: str
    value: str

    def __str__(self) -> str:
        family, key = self.name.split("/")
        return f"sysctl -w net.{family}.conf.{self.link}.{key}={self.value}"


@frozen
class AddAddress:
    """Add an address; IPv6 without duplicate address detection, which would cost ADD a second or two."""

    link: str
    address: InterfaceAddress

    def __str__(self) -> str:
        nodad = " nodad" if self.address.ip.version == 6 else ""
        return f"ip addr add {self.address} dev {self.link}{nodad}"


@frozen
class SetUp:
    """Bring the link up, with its alias, and with or without ARP and multicast."""

    link: Link

    def __str__(self) -> str:
        return f"ip link set {self.link.name} {'' if self.link.arp else 'arp off multicast off '}up"


@frozen
class SetRoute:
    """Add a route before those of other links to the same destination, or correct our own; `found` is what it is."""

    link: str
    route: Route
    found: Route | None = None

    def __str__(self) -> str:
        words = _route_words(self.route, self.link)
        if self.found is None:
            return f"ip route prepend {words}"
        return f"ip route replace {words} (it is {_route_words(self.found, self.link)})"


@frozen
class ReplaceNeighbour:
    """Add or correct a permanent neighbour entry."""

    link: str
    neighbour: Neighbour
    found: str = ""

    def __str__(self) -> str:
        instead = f" (it is {self.found})" if self.found else ""
        entry = self.neighbour
        return f"ip neigh replace {entry.ip} lladdr {entry.mac} dev {self.link} nud permanent{instead}"


@frozen
class RemoveRoute:
    """Remove a route of ours."""

    link: str
    route: Route

    def __str__(self) -> str:
        return f"ip route del {_route_words(self.route, self.link)}"


@frozen
class RemoveNeighbour:
    """Remove a neighbour entry of ours."""

    link: str
    neighbour: Neighbour

    def __str__(self) -> str:
        return f"ip neigh del {self.neighbour.ip} dev {self.link}"


Change = AddLink | SetLink | SetSysctl | AddAddress | SetUp | SetRoute | ReplaceNeighbour
Removal = RemoveRoute | RemoveNeighbour


def diff(wanted: View, observed: View) -> tuple[Change, ...]:
    """The changes that make `observed` what is wanted, in an order in which the kernel accepts them.

    Addresses come before the link is set up: only then does the kernel announce them (arp_notify, ndisc_notify).
    Neighbours come before the routes that lead to them, so that no packet asks the LAN.
    """
    if wanted.link is None:
        return ()
    return (
        *_link_changes(wanted.link, observed.link),
        *_sysctl_changes(wanted, observed.link),
        *(AddAddress(wanted.link.name, a) for a in wanted.addresses if a not in observed.addresses),
        *_up_changes(wanted.link, observed.link),
        *_neighbour_changes(wanted, observed),
        *_route_changes(wanted, observed),
    )


def surplus(wanted: View, observed: View) -> tuple[Removal, ...]:
    """What there is of ours in a pod and is not wanted: routes of our protocol, and entries that lead to the shim."""
    if wanted.link is None:
        return ()
    routes, ips = {route_key(route) for route in wanted.routes}, {entry.ip for entry in wanted.neighbours}
    shims = {entry.mac for entry in wanted.neighbours}
    return (
        *(
            RemoveRoute(wanted.link.name, route)
            for route in observed.routes
            if route.protocol == PROTO_SHIMLAN and route_key(route) not in routes
        ),
        *(
            RemoveNeighbour(wanted.link.name, entry)
            for entry in observed.neighbours
            if entry.mac in shims and entry.ip not in ips
        ),
    )


def _link_changes(link: Link, observed: Link | None) -> Iterator[Change]:
    if observed is None:
        yield AddLink(link)
        return
    compared = (
        ("type", link.kind, observed.kind),
        ("link", f"if{link.lower_index or link.parent_index}", f"if{observed.parent_index}"),
        ("mode", link.mode, observed.mode),
        ("address", link.mac, observed.mac),
        ("id", str(link.vlan or ""), str(observed.vlan)),
        ("mtu", str(link.mtu or ""), str(observed.mtu)),
        ("arp", _switch(link.arp), _switch(observed.arp)),
        ("bcqueuelen", _number(link.bcqueuelen), _number(observed.bcqueuelen)),
    )
    # Not bclim: a parent has one for all of its children, the last that was given (macvlan_changelink).
    for option, value, found in compared:
        if value and value != found:
            yield SetLink(link, option, value, found)
    if link.mode == observed.mode == "source" and link.source_macs != observed.source_macs:
        yield SetLink(link, "macaddr", _macs(link.source_macs), " ".join(observed.source_macs))


def _sysctl_changes(wanted: View, observed: Link | None) -> Iterator[Change]:
    # They matter when the link comes up, and are a pod's own business afterwards.
    if wanted.link and (observed is None or not observed.up):
        for name, value in wanted.sysctls:
            yield SetSysctl(wanted.link.name, name, value)


def _up_changes(link: Link, observed: Link | None) -> Iterator[Change]:
    if observed is None or not observed.up:
        yield SetUp(link)


def _neighbour_changes(wanted: View, observed: View) -> Iterator[Change]:
    assert wanted.link is not None
    present = {entry.ip: entry.mac for entry in observed.neighbours}
    for entry in wanted.neighbours:
        if present.get(entry.ip) != entry.mac:
            yield ReplaceNeighbour(wanted.link.name, entry, present.get(entry.ip, ""))


def _route_changes(wanted: View, observed: View) -> Iterator[Change]:
    assert wanted.link is not None
    for route in wanted.routes:
        found = [other for other in observed.routes if route_key(other) == route_key(route)]
        if not any(_same_route(route, other) for other in found):
            yield SetRoute(wanted.link.name, route, found[0] if found else None)


def route_key(route: Route) -> tuple[object, ...]:
    """What tells a route from others through the same link."""
    # A metric of 0 is 1024 for IPv6 (IP6_RT_PRIO_USER, include/uapi/linux/ipv6_route.h).
    metric = route.metric or (1024 if route.dst.version == 6 else 0)
    return route.dst, metric, route.table or MAIN_TABLE


def _same_route(wanted: Route, found: Route) -> bool:
    return (
        wanted.via == found.via
        and (wanted.src is None or wanted.src == found.src)
        and (not wanted.mtu or wanted.mtu == found.mtu)
        and (not wanted.advmss or wanted.advmss == found.advmss)
    )


def _route_words(route: Route, link: str) -> str:
    words = ["default" if route.dst.prefixlen == 0 else str(route.dst)]
    words += ["via", str(route.via)] if route.via else []
    words += ["dev", link]
    words += ["proto", str(route.protocol)] if route.protocol != PROTO_BOOT else []
    words += (
        ["scope", "link" if route.scope == SCOPE_LINK else str(route.scope)] if route.scope != SCOPE_UNIVERSE else []
    )
    words += ["src", str(route.src)] if route.src else []
    for option in ("metric", "table", "mtu", "advmss"):
        value = getattr(route, option)
        words += [option, str(value)] if value else []
    return " ".join(words)


def _macs(macs: tuple[str, ...]) -> str:
    """How `ip` sets a list of source MACs."""
    return f"set {' '.join(macs)}" if macs else "flush"


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
