"""Arithmetic of address pools: what a pool offers, and to whom. Pure; who holds what is not known here.

Addresses are numbers of 128 bits, IPv4 mapped into ::ffff:0:0/96 (RFC 4291, 2.5.5.2): one kind of number for both
families, that counts and sorts as addresses do.
"""

from __future__ import annotations

from bisect import bisect_right
from ipaddress import IPv4Address, IPv6Address

from cni.errors import AddressUnavailable
from cni.frozen import frozen, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Network, IPv6Network

    from ipam.config import IpamConf, Range, Reservation

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

V4_MAPPED = 0xFFFF << 32
LAST = 7  # configurations besides the last one; a node has some ten networks


@frozen
class Span:
    """A run of addresses, both ends included; empty when `last` is before `first`."""

    first: int
    last: int

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    @property
    def size(self) -> int:
        """How many addresses that is."""
        return max(0, self.last - self.first + 1)


@frozen
class Pool:
    """One entry of `IpamConf.pools` as seen by one pod, which gets one address of it."""

    ranges: tuple[Range, ...]
    spans: tuple[Span, ...]  # of the ranges, in their order
    barred: tuple[Span, ...]  # sorted, disjoint: what is not for everybody
    outlines: tuple[str, ...]  # of what is barred in each of the ranges
    own: tuple[int, ...] = ()  # reserved for this pod or MAC
    requested: int | None = None

    def permits(self, number: int) -> bool:
        """Whether anybody may have the address."""
        return any(number in span for span in self.spans) and not is_barred(self.barred, number)

    def offers(self, number: int) -> bool:
        """Whether the address is one of this pool, for this pod or for another."""
        return number in self.own or any(number in span for span in self.spans)

    def locate(self, number: int) -> tuple[Range, Span]:
        """The range that the address belongs to; a reserved one may lie beside it in its subnet."""
        pairs = tuple(zip(self.ranges, self.spans, strict=True))
        inside = (pair for pair in pairs if number in pair[1])
        return next(inside, None) or next(pair for pair in pairs if address_of(number) in pair[0].subnet)


def number_of(address: Address) -> int:
    """The number of an address."""
    return int(address) | V4_MAPPED if address.version == 4 else int(address)


def address_of(number: int) -> Address:
    """The address of a number."""
    return IPv4Address(number & 0xFFFFFFFF) if number >> 32 == 0xFFFF else IPv6Address(number)


def pools_of(conf: IpamConf, pod: str, mac: str, avoid: Iterable[Address] = ()) -> tuple[Pool, ...]:
    """The pools of a configuration for one pod ("namespace/name") with one MAC ("" where unknown).

    `avoid` are addresses that are known to be in use, those of the host for a start. Raises AddressUnavailable when a
    requested address is in no pool, shares its pool with another one, or may not be handed out to this pod.
    """
    avoid = tuple(avoid)
    pools = common_pools(conf, avoid)
    own = tuple(number_of(ip) for entry in conf.reservations if _is_for(entry, pod, mac) for ip in entry.ips)
    if own:
        pools = tuple(replace(pool, own=_inside(pool.ranges, own)) for pool in pools)
    return _with_requested(pools, conf, avoid) if conf.requested else pools


def span_of(entry: Range) -> Span:
    """The addresses of a range."""
    return Span(number_of(entry.start), number_of(entry.end))


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same addresses as sorted, disjoint spans with gaps between them."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda span: span.first):
        if result and span.first <= result[-1].last + 1:
            result[-1] = Span(result[-1].first, max(result[-1].last, span.last))
        else:
            result.append(span)
    return tuple(result)


def is_barred(barred: tuple[Span, ...], number: int) -> bool:
    """Whether one of the sorted spans holds the address."""
    index = bisect_right(barred, number, key=lambda span: span.first)
    return index > 0 and number in barred[index - 1]


def runs(span: Span, barred: tuple[Span, ...], first: int) -> Iterator[Span]:
    """What is left of `span` from `first` on without the barred addresses, in order."""
    first = max(first, span.first)
    index = max(0, bisect_right(barred, first, key=lambda entry: entry.first) - 1)
    for entry in barred[index:]:
        if entry.first > span.last:
            break
        if first < entry.first:
            yield Span(first, entry.first - 1)
        first = max(first, entry.last + 1)
    if first <= span.last:
        yield Span(first, span.last)


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans share an address."""
    return one.first <= other.last and other.first <= one.last


def within(span: Span, barred: tuple[Span, ...]) -> tuple[Span, ...]:
    """The barred addresses of `span`."""
    return tuple(
        Span(max(span.first, entry.first), min(span.last, entry.last)) for entry in barred if overlap(span, entry)
    )


def outline(span: Span, barred: tuple[Span, ...]) -> str:
    """The same in a line to keep and to compare: how far the ends of each part are from the start, "0-0 4-9"."""
    return " ".join(f"{part.first - span.first}-{part.last - span.first}" for part in within(span, barred))


def outlined(span: Span, line: str) -> tuple[Span, ...]:
    """What `outline` made the line of."""
    ends = (part.split("-") for part in line.split())
    return tuple(Span(span.first + int(first), span.first + int(last)) for first, last in ends)


# The last configurations with their pools: resident processes ask for the same one again and again.
_last: list[tuple[IpamConf, tuple[Address, ...], tuple[Pool, ...]]] = []


def common_pools(conf: IpamConf, avoid: tuple[Address, ...]) -> tuple[Pool, ...]:
    """The pools as a pod sees them that nothing is reserved for, and that asks for nothing."""
    for known, avoided, pools in _last:
        if known is conf and avoided == avoid:
            return pools
    barred = merged(_bars(conf, avoid))
    pools = tuple(_pool(ranges, barred) for ranges in conf.pools)
    _last[:] = [(conf, avoid, pools), *_last[:LAST]]
    return pools


def _pool(ranges: tuple[Range, ...], barred: tuple[Span, ...]) -> Pool:
    spans = tuple(map(span_of, ranges))
    return Pool(ranges, spans, barred, tuple(outline(span, barred) for span in spans))


def _inside(ranges: tuple[Range, ...], own: tuple[int, ...]) -> tuple[int, ...]:
    """Those addresses that are of the ranges' subnets."""
    return tuple(number for number in own if any(address_of(number) in entry.subnet for entry in ranges))


def _bars(conf: IpamConf, avoid: Iterable[Address]) -> Iterator[Span]:
    for entry in (entry for ranges in conf.pools for entry in ranges):
        yield from _unusable(entry.subnet)
        yield _single(entry.gateway)
    for network in conf.exclude:
        yield Span(number_of(network[0]), number_of(network[-1]))
    for reservation in conf.reservations:
        yield from map(_single, reservation.ips)
    yield from map(_single, avoid)


def _unusable(subnet: Network) -> Iterator[Span]:
    """The network and broadcast addresses; of IPv6 the subnet-router anycast address (RFC 4291, 2.6.1).

    Subnets of two or one addresses have neither (RFC 3021, RFC 6164).
    """
    if subnet.prefixlen < subnet.max_prefixlen - 1:
        yield _single(subnet[0])
        if subnet.version == 4:
            yield _single(subnet[-1])


def _single(address: Address) -> Span:
    number = number_of(address)
    return Span(number, number)


def _is_for(reservation: Reservation, pod: str, mac: str) -> bool:
    return bool(pod and reservation.pod == pod) or bool(mac and reservation.mac.lower() == mac.lower())


def _with_requested(pools: tuple[Pool, ...], conf: IpamConf, avoid: tuple[Address, ...]) -> tuple[Pool, ...]:
    """The pools, each with the requested address that it is to give."""
    wanted: dict[int, int] = {}
    for address in conf.requested:
        number = number_of(address)
        index = next((index for index, pool in enumerate(pools) if pool.offers(number)), None)
        if index is None:
            ranges = ", ".join(describe(entry) for pool in pools for entry in pool.ranges)
            raise AddressUnavailable(f"{address}: requested, but network {conf.network} has only {ranges}")
        if wanted.setdefault(index, number) != number:
            other = address_of(wanted[index])
            raise AddressUnavailable(f"{address}: requested, but {other} is of the same pool, which gives one address")
        if number not in pools[index].own and (why := _obstacle(conf, address, avoid)):
            raise AddressUnavailable(f"{address}: requested, but {why}")
    return tuple(replace(pool, requested=wanted.get(index)) for index, pool in enumerate(pools))


def describe(entry: Range) -> str:
    """A range for messages."""
    return f"{entry.start}-{entry.end}"


def _obstacle(conf: IpamConf, address: Address, avoid: tuple[Address, ...]) -> str:
    """Why a pod that has no reservation for it may not have an address; "" when it may."""
    for entry in (entry for ranges in conf.pools for entry in ranges):
        if address == entry.gateway:
            return f"it is the gateway of {entry.subnet}"
        if any(number_of(address) in span for span in _unusable(entry.subnet)):
            return f"it is the network or broadcast address of {entry.subnet}"
    for network in conf.exclude:
        if address in network:
            return f"{network} is excluded"
    for reservation in conf.reservations:
        if address in reservation.ips:
            return f"it is reserved for {reservation.pod or reservation.mac}"
    return "this host uses it" if address in avoid else ""
