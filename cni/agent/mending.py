"""What it takes to mend one end of an attachment, and what cannot be mended, or not now. Pure.

`cni.diff` knows what differs. Here stands what the agent does about it in places where others live: what a pod has
chosen for itself is left alone, a route waits for the address that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Address, IPv6Address

from cni.attachment import (
    PROTO_SHIMLAN,
    SCOPE_LINK,
    SCOPE_UNIVERSE,
    InterfaceAddress,
    Link,
    Route,
    View,
    limited,
)
from cni.diff import (
    AddAddress,
    Change,
    Removal,
    RemoveNeighbour,
    RemoveRoute,
    ReplaceNeighbour,
    SetLink,
    SetRoute,
    SetUp,
    diff,
    route_key,
    surplus,
)
from cni.frozen import frozen, replace
from cni.inet import subnet

Address = IPv4Address | IPv6Address
Step = Change | Removal

PROTO_KERNEL = 2  # RTPROT_KERNEL: of the routes that the kernel makes for addresses
CONNECTED_METRIC_6 = 256  # IP6_RT_PRIO_ADDRCONF, include/uapi/linux/ipv6_route.h
SETTABLE = ("address", "mtu", "arp", "alias", "macaddr")  # while a link exists


@frozen
class Mending:
    """The steps to take, and why others are not taken."""

    steps: tuple[Step, ...] = ()
    waiting: tuple[str, ...] = ()


# --- what is wrong -----------------------------------------------------------------------------------------------


def pod_steps(wanted: View, observed: View, parent_mtu: int) -> tuple[Step, ...]:
    """All that differs at the pod's end. A link that was renamed in the pod is mended under the name that it has."""
    wanted = limited(wanted, parent_mtu)
    assert wanted.link is not None
    if observed.link is None:
        return diff(wanted, observed)
    here = replace(wanted, link=replace(wanted.link, name=observed.link.name))
    complete = replace(here, routes=(*_lost_connected(here, observed), *here.routes))
    return *_alias(here.link, observed.link), *diff(complete, observed), *surplus(here, observed)


def shim_steps(wanted: View, observed: Link | None) -> tuple[Change, ...]:
    """All that differs of the shim itself."""
    assert wanted.link is not None
    link_alone = View(link=wanted.link, sysctls=wanted.sysctls)
    return *_alias(wanted.link, observed), *diff(link_alone, View(link=observed))


def entry_steps(wanted: View, entries: View) -> tuple[Change, ...]:
    """All that differs of a pod's entries on the shim that stands."""
    return diff(replace(wanted, link=entries.link, sysctls=()), entries) if entries.link else ()


def _alias(wanted: Link | None, observed: Link | None) -> tuple[SetLink, ...]:
    # A link that is down gets its alias when it is set up.
    if wanted is None or observed is None or not observed.up or observed.alias == wanted.alias:
        return ()
    return (SetLink(wanted, "alias", f"'{wanted.alias}'", observed.alias),)


def _lost_connected(wanted: View, observed: View) -> Iterable[Route]:
    """The routes to the subnets of addresses, which the kernel makes with the address and never again."""
    there = {route.dst for route in observed.routes}
    for address in wanted.addresses:
        route = _connected(address)
        if address in observed.addresses and route.dst not in there and route.dst.num_addresses > 1:
            yield route


def _connected(address: InterfaceAddress) -> Route:
    around = subnet(address.ip, address.prefixlen)
    if around.version == 4:
        return Route(around, src=address.ip, scope=SCOPE_LINK, protocol=PROTO_KERNEL)
    return Route(around, scope=SCOPE_UNIVERSE, metric=CONNECTED_METRIC_6, protocol=PROTO_KERNEL)


# --- what is done about it ---------------------------------------------------------------------------------------


def for_pod(steps: Iterable[Step], elsewhere: Iterable[Route] = ()) -> Mending:
    """What to do in a pod; `elsewhere` are the routes through its other links.

    A MAC that others have changed is theirs. A route that IPAM asked for is not put back where another one has its
    place: somebody in the pod wanted it so.
    """
    taken = {route_key(route) for route in elsewhere}

    def objection(step: Step) -> str:
        match step:
            case SetLink(_, "address"):
                return "left alone: somebody has changed it since, as the plugin tuning does"
            case SetLink(_, option) if option not in SETTABLE:
                return "cannot be changed any more: have the runtime make the pod anew"
            case SetRoute(_, route, found) if is_asked(route) and (found or route_key(route) in taken):
                return "left alone: the pod has chosen another route to there"
        return ""

    return _sorted_out(steps, objection)


def for_host(steps: Iterable[Step], sources: Collection[Address]) -> Mending:
    """What to do on the host, which has the addresses `sources` at the moment."""

    def objection(step: Step) -> str:
        match step:
            case SetRoute(_, route) if route.src and route.src not in sources:
                return f"waits until the host has {route.src} (again)"
        return ""

    return _sorted_out(steps, objection)


def _sorted_out(steps: Iterable[Step], objection: Callable[[Step], str]) -> Mending:
    objections = [(step, objection(step)) for step in steps]
    return Mending(
        tuple(step for step, why in objections if not why),
        tuple(f"{step}: {why}" for step, why in objections if why),
    )


def is_asked(route: Route) -> bool:
    """Whether it was IPAM that asked for a route."""
    return route.protocol not in (PROTO_SHIMLAN, PROTO_KERNEL)


# --- how it is done ----------------------------------------------------------------------------------------------


def removed(steps: Iterable[Step], link: Link) -> View:
    """What to take away first. A route is never changed in place: the kernel might take another link's for it."""
    routes, neighbours = [], []
    for step in steps:
        match step:
            case RemoveRoute(_, route) | SetRoute(_, _, Route() as route):
                routes.append(route)
            case RemoveNeighbour(_, entry):
                neighbours.append(entry)
    return View(link=link, routes=tuple(routes), neighbours=tuple(neighbours))


def changed(steps: Iterable[Step]) -> tuple[Change, ...]:
    """What to change then."""
    return tuple(_applicable(step) for step in steps if not isinstance(step, Removal))


def _applicable(change: Change) -> Change:
    match change:
        case SetRoute():
            return replace(change, found=None)
        case SetLink(link, "arp" | "alias"):
            return SetUp(link)  # which sets both
    return change


def subject(step: Step) -> str:
    """What a step is about, whatever is there instead."""
    match step:
        case SetRoute():
            return str(replace(step, found=None))
        case SetLink() | ReplaceNeighbour():
            return str(replace(step, found=""))
    return str(step)


KINDS = ("link", "address", "route", "neighbour", "nat", "offload")


def kind(step: Step) -> str:
    """The kind of thing that a step mends, in a word."""
    match step:
        case SetRoute() | RemoveRoute():
            return "route"
        case ReplaceNeighbour() | RemoveNeighbour():
            return "neighbour"
        case AddAddress():
            return "address"
    return "link"
