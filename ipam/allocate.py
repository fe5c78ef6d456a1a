"""Which address a pod gets: the policy, and nothing else. Pure; who holds what is asked of a `Ledger`.

Next-fit with cooldown. No step looks at more than a few addresses, however many are held: a range remembers how far it
has been handed out, and what comes back is kept in the order in which it came. What falls out of both (an address that
was skipped because somebody else used it) is found again by going through the range anew, `REWIND_SECONDS` apart at
least for all but small ranges.
"""

from __future__ import annotations

from cni.errors import AddressUnavailable, Exhausted
from cni.frozen import frozen
from ipam.pools import Span, address_of, describe, runs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address
    from typing import Protocol

    from ipam.config import Range
    from ipam.pools import Pool

    class Ledger(Protocol):
        """What is known of the addresses of one network, at one time."""

        network: str

        def held_by(self, claim: Claim) -> tuple[int, ...]:
            """The addresses that the claimant holds already."""

        def blocker(self, number: int) -> str:
            """Who or what stands in the way of an address right now, for a message; "" when nobody does."""

        def used_elsewhere(self, number: int) -> str:
            """The same, of users that are outside of this ledger."""

        def remembered(self, claim: Claim) -> tuple[int, ...]:
            """Released addresses that the claimant's pod had, the last one first."""

        def reached(self, span: Span) -> int:
            """The highest address of the span that was handed out in order; the one before the span to begin with."""

        def advance(self, span: Span, number: int) -> None:
            """Set what `reached` answers."""

        def first_gap(self, span: Span, run: Span) -> int | None:
            """The first address of the run, which is a part of the span, of which the ledger knows nothing."""

        def since_rewind(self, span: Span) -> float:
            """Seconds since `rewind`."""

        def rewind(self, span: Span) -> None:
            """Begin again at the start of the span."""

        def longest_released(self, spans: tuple[Span, ...], sticky: bool, cooling: bool) -> int | None:
            """The address that was released first; still `cooling` ones count only when asked for."""

        def forget(self, number: int) -> None:
            """Drop a released address."""

        def hold(self, number: int, span: Span, claim: Claim) -> None:
            """Give an address to the claimant."""

        def prune(self, span: Span) -> None:
            """Drop a few addresses that were released long ago."""

        def usage(self, entry: Range, span: Span, barred: tuple[Span, ...]) -> Usage:
            """Count."""


REWIND_SECONDS = 60.0
SMALL = 256  # addresses; to go through as many is cheap
HUGE = 65536  # addresses; a table of as many released ones is large enough


@frozen
class Claim:
    """Who asks. `pod` ("namespace/name") may be empty; `sticky`: its address is kept for it as long as possible."""

    container_id: str
    ifname: str
    pod: str = ""
    sticky: bool = False


@frozen
class LeasedAddress:
    """An address of a pod, with the prefix length and gateway of its subnet."""

    ip: IPv4Address | IPv6Address
    prefixlen: int
    gateway: IPv4Address | IPv6Address


@frozen
class Usage:
    """How a range is used. `excluded` counts what is not for everybody: gateway, excluded, reserved, and not held."""

    start: str
    end: str
    size: int
    held: int
    cooling: int
    conflict: int
    excluded: int

    @property
    def free(self) -> int:
        """How many addresses can be handed out, those that cool down still included."""
        return self.size - self.held - self.conflict - self.excluded


def allocate(pools: tuple[Pool, ...], claim: Claim, ledger: Ledger) -> tuple[LeasedAddress, ...]:
    """One address of each pool, in the order of the pools; those that the claimant holds already stay its own.

    Raises Exhausted, and AddressUnavailable where only certain addresses would do; the caller then rolls back.
    """
    held = ledger.held_by(claim)
    return tuple(_leased(pool, _kept(pool, held) or _new(pool, claim, ledger)) for pool in pools)


def _leased(pool: Pool, number: int) -> LeasedAddress:
    entry, _ = pool.locate(number)
    return LeasedAddress(address_of(number), entry.subnet.prefixlen, entry.gateway)


def _kept(pool: Pool, held: tuple[int, ...]) -> int | None:
    kept = next((number for number in held if pool.offers(number)), None)
    if kept is not None and pool.requested is not None and pool.requested != kept:
        wanted, has = address_of(pool.requested), address_of(kept)
        raise AddressUnavailable(f"{wanted}: requested, but this interface holds {has} already: DEL it first")
    return kept


def _new(pool: Pool, claim: Claim, ledger: Ledger) -> int:
    if pool.requested is not None:
        number = _requested(pool.requested, ledger)
    elif pool.own:
        number = _reserved(pool.own, ledger)
    else:
        number = _remembered(pool, claim, ledger) or _free(pool, ledger)
    _, span = pool.locate(number)
    ledger.hold(number, span, claim)
    if span.size > HUGE:
        ledger.prune(span)
    return number


def _requested(number: int, ledger: Ledger) -> int:
    if blocker := ledger.blocker(number):
        raise AddressUnavailable(f"{address_of(number)}: requested, but {blocker}")
    return number


def _reserved(own: tuple[int, ...], ledger: Ledger) -> int:
    blockers = []
    for number in own:
        blocker = ledger.blocker(number)
        if not blocker:
            return number
        blockers.append(f"{address_of(number)}: {blocker}")
    raise AddressUnavailable(f"every address reserved for this pod is in use: {'; '.join(blockers)}")


def _remembered(pool: Pool, claim: Claim, ledger: Ledger) -> int | None:
    if not claim.sticky:
        return None
    last = (number for number in ledger.remembered(claim) if pool.permits(number))
    return next((number for number in last if not ledger.used_elsewhere(number)), None)


def _free(pool: Pool, ledger: Ledger) -> int:
    """The next address in order, then the one that was released first, then what cools down still."""
    number = _fresh_or_released(pool, ledger, cooling=False)
    if number is None and _rewind(pool, ledger, REWIND_SECONDS):
        number = _fresh_or_released(pool, ledger, cooling=False)
    if number is None:
        number = _fresh_or_released(pool, ledger, cooling=True)
    if number is None and _rewind(pool, ledger, 0):
        number = _fresh_or_released(pool, ledger, cooling=True)
    if number is None:
        raise Exhausted(_exhausted(pool, ledger))
    return number


def _fresh_or_released(pool: Pool, ledger: Ledger, cooling: bool) -> int | None:
    number = _fresh(pool, ledger)
    return _released(pool, ledger, cooling) if number is None else number


def _fresh(pool: Pool, ledger: Ledger) -> int | None:
    """The next address that nobody has had since the range was last rewound."""
    for span in pool.spans:
        reached = ledger.reached(span)
        for run in runs(span, pool.barred, reached + 1):
            number = ledger.first_gap(span, run)
            while number is not None and ledger.used_elsewhere(number):
                number = ledger.first_gap(span, Span(number + 1, run.last))
            if number is not None:
                ledger.advance(span, number)
                return number
        if reached < span.last:
            ledger.advance(span, span.last)
    return None


def _released(pool: Pool, ledger: Ledger, cooling: bool) -> int | None:
    for sticky in (False, True):
        while (number := ledger.longest_released(pool.spans, sticky, cooling)) is not None:
            if pool.permits(number) and not ledger.used_elsewhere(number):
                return number
            # Not for everybody any more. If that changes, the range's next rewind finds it.
            ledger.forget(number)
    return None


def _rewind(pool: Pool, ledger: Ledger, seconds: float) -> bool:
    """Begin the ranges again that have not been begun for some time; whether there was one."""
    old = [span for span in pool.spans if ledger.since_rewind(span) >= (0 if span.size <= SMALL else seconds)]
    for span in old:
        ledger.rewind(span)
    return bool(old)


def _exhausted(pool: Pool, ledger: Ledger) -> str:
    ranges = "; ".join(
        _describe_usage(describe(entry), ledger.usage(entry, span, pool.barred))
        for entry, span in zip(pool.ranges, pool.spans, strict=True)
    )
    return f"network {ledger.network} has no free address in {ranges}"


def _describe_usage(name: str, usage: Usage) -> str:
    return (
        f"{name}: {usage.held} held, {usage.cooling} cooling, {usage.conflict} in conflict, "
        f"{usage.excluded} excluded or reserved, of {usage.size}"
    )
