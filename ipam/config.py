"""The `ipam` section of a network configuration: JSON to frozen dataclasses, every problem reported with its path.

Pure. The keys and rules are those of host-local plus our own; which address a pod gets is decided elsewhere.
`cni.config` reads the section of a shimlan network with `read`; `parse` and `parse_for_delete` are for the executable
shimlan-ipam, which stands under main plugins that it knows nothing about.
"""

from __future__ import annotations

from cni.frozen import frozen
from cni.protocol import RouteConfig
from cni.section import Problem, checked, open_sources, path_text
from cni.values import (
    absolute_path,
    address,
    address_list,
    integer,
    mac,
    masked_network,
    mtu,
    network_name,
    network_or_address,
    one_of,
    pod_name,
    pool_subnet,
    requested_address,
    string,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from cni.section import Section, Sources

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

TYPE = "shimlan-ipam"
DEFAULT_DATA_DIR = "/var/lib/cni/shimlan"
HIGHEST_U32 = 2**32 - 1

# Without these DEL cannot find what it is to release; all else in a configuration may have become wrong since ADD.
ESSENTIAL = frozenset({(), ("name",), ("dataDir",), ("ipam", "dataDir")})

NO_RANGES = Problem(("ipam", "ranges"), "missing: at least one range of addresses is needed")

ADVMSS = PRIORITY = TABLE = integer(0, HIGHEST_U32)
SCOPE = integer(0, 255)
COOLDOWN = integer(0, 30 * 86400)
STICKY = one_of("none", "pod")
STORE = one_of("node", unsupported=("kubernetes",))


@frozen
class Range:
    """Addresses `start`..`end` (both included) of `subnet`; `gateway` is never handed out."""

    subnet: Network
    start: Address
    end: Address
    gateway: Address


@frozen
class Reservation:
    """Addresses kept for one pod ("namespace/name") or for one MAC; exactly one of the two is set."""

    ips: tuple[Address, ...]
    pod: str = ""
    mac: str = ""


@frozen
class IpamConf:
    """What `shimlan-ipam` is asked to do. Each entry of `pools` gives the pod one address."""

    network: str
    pools: tuple[tuple[Range, ...], ...]
    requested: tuple[Address, ...] = ()
    exclude: tuple[Network, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    sticky: str = "none"
    cooldown_seconds: int = 60
    routes: tuple[RouteConfig, ...] = ()
    resolv_conf: str = ""
    data_dir: str = DEFAULT_DATA_DIR


def parse(raw: object, environ_args: Mapping[str, str]) -> IpamConf:
    """The ipam section of any main plugin's configuration; raises InvalidConfig that lists every problem.

    `raw` is the decoded standard input, `environ_args` the parsed CNI_ARGS. Of the rest of the configuration only
    name, runtimeConfig and args matter.
    """
    return checked(open_sources(raw, environ_args), _standalone)


def parse_for_delete(raw: object, environ_args: Mapping[str, str]) -> IpamConf:
    """Like `parse`, but fails only without a usable name and dataDir; what else is wrong is left at its default."""
    return checked(open_sources(raw, environ_args), _standalone, essential=ESSENTIAL)


def check(raw: object) -> list[Problem]:
    """Every problem of the ipam section of any main plugin's configuration."""
    sources = open_sources(raw, {})
    _standalone(sources)
    return sources.problems


def _standalone(sources: Sources) -> IpamConf:
    network = sources.conf.required("name", network_name) or ""
    if not sources.conf.has("ipam"):
        sources.conf.problem("ipam", "missing")
    return read(sources.conf.section("ipam"), sources, network, DEFAULT_DATA_DIR)


def read(ipam: Section, sources: Sources, network: str, data_dir: str) -> IpamConf:
    """The section `ipam` of the network; `data_dir` is for a section that names none. Problems go to the sections."""
    ipam.read("store", STORE, "node")
    before = len(ipam.problems)
    pools = _pools(ipam, sources.runtime)
    sound = len(ipam.problems) == before
    return IpamConf(
        network=network,
        pools=pools,
        requested=_requested(sources),
        exclude=ipam.each("exclude", network_or_address),
        reservations=_reservations(ipam, pools if sound else None),
        sticky=ipam.read("sticky", STICKY, "none"),
        cooldown_seconds=ipam.read("cooldownSeconds", COOLDOWN, 60),
        routes=_routes(ipam),
        resolv_conf=ipam.text("resolvConf", string, ""),
        data_dir=ipam.text("dataDir", absolute_path, data_dir),
    )


def _requested(sources: Sources) -> tuple[Address, ...]:
    """All addresses asked for, each once; the runtime's own wish comes first."""
    nothing: tuple[Address, ...] = ()
    wishes = (
        *sources.runtime.each("ips", requested_address),
        *sources.cni_args.each("ips", requested_address),
        *sources.environ.read("IP", address_list, nothing),
    )
    return tuple(dict.fromkeys(wishes))


def _pools(ipam: Section, runtime: Section) -> tuple[tuple[Range, ...], ...]:
    """All pools in the order of host-local: the runtime's ranges, the short form, `ranges`."""
    before = len(ipam.problems)
    short = _range(ipam, ipam.read("subnet", pool_subnet, None))
    located = [
        *_range_sets(runtime.items("ipRanges")),
        *([[(ipam, short)]] if short else []),
        *_range_sets(ipam.items("ranges")),
    ]
    if not located and len(ipam.problems) == before:
        ipam.problems.append(NO_RANGES)
    _check_overlaps(entry for pool in located for entry in pool)
    return tuple(tuple(entry for _, entry in pool) for pool in located)


def _range_sets(sets: Section) -> list[list[tuple[Section, Range]]]:
    """The pools of a list of lists of ranges, each range with the section that it was read from."""
    pools = [_pool(sets.items(index, needed=True)) for index in sets]
    return [pool for pool in pools if pool]


def _pool(entries: Section) -> list[tuple[Section, Range]]:
    pool: list[tuple[Section, Range]] = []
    for index in entries:
        entry = entries.section(index)
        found = _range(entry, entry.required("subnet", pool_subnet))
        if found and pool and found.subnet.version != pool[0][1].subnet.version:
            entry.problem("subnet", f"{found.subnet} and {pool[0][1].subnet} are of two families: make it two pools")
        elif found:
            pool.append((entry, found))
    return pool


def _range(entry: Section, subnet: Network | None) -> Range | None:
    """A range with host-local's defaults: gateway the first host, end the last address that is no broadcast."""
    given = {key: entry.text(key, address, None) for key in ("rangeStart", "rangeEnd", "gateway")}
    if subnet is None:
        return None
    for key, value in given.items():
        if value is not None and value not in subnet:
            entry.problem(key, f"{value} is not inside {subnet}")
            given[key] = None
    start = given["rangeStart"] or subnet[1]
    end = given["rangeEnd"] or subnet[-2 if subnet.version == 4 else -1]
    if int(start) > int(end):
        entry.problem("rangeEnd" if given["rangeEnd"] else "rangeStart", f"{end} is before the range's start {start}")
        return None
    return Range(subnet=subnet, start=start, end=end, gateway=given["gateway"] or subnet[1])


def _check_overlaps(entries: Iterable[tuple[Section, Range]]) -> None:
    """No address may belong to two ranges, or it could be handed out twice."""
    furthest: tuple[Section, Range] | None = None
    for section, part in sorted(entries, key=lambda entry: _order(entry[1].start)):
        if furthest and _order(part.start) <= _order(furthest[1].end):
            other, low = furthest
            section.complain(f"{part.start}-{part.end} overlaps with {low.start}-{low.end} of {path_text(other.path)}")
        if not furthest or _order(part.end) > _order(furthest[1].end):
            furthest = section, part


def _order(ip: Address) -> tuple[int, int]:
    """What to sort addresses of both families by."""
    return ip.version, int(ip)


def _reservations(ipam: Section, pools: tuple[tuple[Range, ...], ...] | None) -> tuple[Reservation, ...]:
    """The reservations; their addresses are held against the pools unless those are wrong themselves (None)."""
    entries = ipam.items("reservations")
    reserved: set[Address] = set()
    reservations = []
    for index in entries:
        entry = entries.section(index)
        reservation = _reservation(entry)
        for ip in reservation.ips:
            _check_reserved(entry, ip, pools, reserved)
            reserved.add(ip)
        reservations.append(reservation)
    return tuple(entry for entry in reservations if entry.ips and (entry.pod or entry.mac))


def _reservation(entry: Section) -> Reservation:
    if entry.has("pod") == entry.has("mac"):
        entry.complain('needs either "pod" or "mac"')
    ips = entry.each("ips", address, needed=True)
    return Reservation(ips=ips, pod=entry.read("pod", pod_name, ""), mac=entry.read("mac", mac, ""))


def _check_reserved(
    entry: Section, ip: Address, pools: tuple[tuple[Range, ...], ...] | None, reserved: set[Address]
) -> None:
    if ip in reserved:
        entry.problem("ips", f"{ip} is reserved twice")
    if pools is None:
        return
    around = [part for pool in pools for part in pool if ip in part.subnet]
    if not around:
        entry.problem("ips", f"{ip} is not inside the subnet of any range")
    if any(ip == part.gateway for part in around):
        entry.problem("ips", f"{ip} is a gateway")


def _routes(ipam: Section) -> tuple[RouteConfig, ...]:
    entries = ipam.items("routes")
    routes = (_route(entries.section(index)) for index in entries)
    return tuple(route for route in routes if route)


def _route(entry: Section) -> RouteConfig | None:
    dst = entry.required("dst", masked_network)
    gw = entry.text("gw", address, None)
    if dst and gw and dst.version != gw.version:
        entry.problem("gw", f"{gw} is not of the same family as {dst}")
        gw = None
    options = {
        "mtu": entry.read("mtu", mtu, 0),
        "advmss": entry.read("advmss", ADVMSS, 0),
        "priority": entry.read("priority", PRIORITY, 0),
        "table": entry.read("table", TABLE, 0),
    }
    scope = entry.read("scope", SCOPE, None)
    return RouteConfig(dst=dst, gw=gw, scope=scope, **options) if dst else None
