"""The leases of one network as SQL, within one transaction: what `ipam.allocate` asks, and the changes to a lease."""

from __future__ import annotations

from cni.frozen import frozen
from ipam.allocate import Usage
from ipam.pools import Span, address_of, outlined, overlap, span_of, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from ipaddress import IPv4Address, IPv6Address

    from ipam.allocate import Claim
    from ipam.config import Range
    from ipam.hostlocal import HostLocal
    from ipam.pools import Pool

    Address = IPv4Address | IPv6Address

REMEMBER_SECONDS = 30 * 86400.0  # how long a huge range remembers the last addresses of pods
PRUNE_AT_ONCE = 2  # more than one allocation adds, so that the table shrinks

NO_RANGE = 0  # of a lease whose range is not known yet; its range takes it over when it comes across


@frozen
class Lease:
    """An address and who has it (or had it last); `state` is held, cooling or conflict, `parent` "" when unknown."""

    network: str
    address: Address
    container_id: str
    ifname: str
    state: str
    pod: str
    parent: str = ""


@frozen
class RangeUse:
    """How a range is used that was allocated from: see `Usage`.

    What is not for everybody is told by ADDs. `excluded` is None before the first one after an update from a version
    that did not remember it; `free` is then what is left at most.
    """

    network: str
    start: Address
    end: Address
    size: int
    held: int
    cooling: int
    conflict: int
    excluded: int | None

    @property
    def free(self) -> int:
        """How many addresses can be handed out, those that cool down still included."""
        return self.size - self.held - self.conflict - (self.excluded or 0)


class Ledger:
    """What `ipam.allocate.Ledger` promises, and more.

    Statements name their index: left to itself, SQLite may find reading a whole network cheaper than a lookup.
    `now` is CLOCK_BOOTTIME in seconds, `parent` "" when unknown.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        network: str,
        now: float,
        parent: str = "",
        host_local: HostLocal | None = None,
    ) -> None:
        self.network = network
        self._connection = connection
        self._now = now
        self._parent = parent
        self._host_local = host_local
        self._neighbours: tuple[str, ...] = ()
        self._ranges: dict[Span, tuple[int, int]] = {}  # id and reached

    # Where the network stands.

    def enter(self, pools: tuple[Pool, ...]) -> tuple[str, ...]:
        """Get to know the ranges and the networks on the same parent; must come before any allocation.

        Returns a warning per overlap with another network on the parent, when it shows for the first time.
        """
        entered = self.enter_ranges(pools)
        joined = self._join_parent()
        return self._overlaps(tuple(entry for pool in pools for entry in pool.ranges) if joined else entered)

    def enter_ranges(self, pools: tuple[Pool, ...]) -> tuple[Range, ...]:
        """Get to know the ranges alone; returns the new ones."""
        return tuple(
            entry
            for pool in pools
            for entry, span, barred in zip(pool.ranges, pool.spans, pool.outlines, strict=True)
            if self._enter_range(span, barred)
        )

    def _enter_range(self, span: Span, barred: str) -> bool:
        """Load what is stored of a range, and have it know what of it is barred; whether it is a new one."""
        found = self._connection.execute(
            "SELECT id, reached, barred FROM lease_ranges WHERE network = ? AND first = ? AND last = ?",
            (self.network, _key(span.first), _key(span.last)),
        ).fetchone()
        if found is not None:
            identifier, reached, known = found
            self._ranges[span] = (identifier, span.first - 1 if reached is None else _number(reached))
            if known != barred:
                self._connection.execute("UPDATE lease_ranges SET barred = ? WHERE id = ?", (barred, identifier))
            return False
        row = self._connection.execute(
            "INSERT INTO lease_ranges(network, first, last, rewound, barred) VALUES (?, ?, ?, ?, ?)",
            (self.network, _key(span.first), _key(span.last), self._now, barred),
        ).lastrowid
        assert row is not None
        self._ranges[span] = (row, span.first - 1)
        return True

    def _join_parent(self) -> bool:
        """Find the other networks on the parent; whether this network is new there."""
        if not self._parent:
            return False
        networks = {
            network
            for (network,) in self._connection.execute(
                "SELECT network FROM lease_networks WHERE parent = ?", (self._parent,)
            )
        }
        self._neighbours = tuple(sorted(networks - {self.network}))
        if self.network in networks:
            return False
        self._connection.execute("INSERT INTO lease_networks VALUES (?, ?)", (self._parent, self.network))
        return True

    def _overlaps(self, ranges: tuple[Range, ...]) -> tuple[str, ...]:
        return tuple(
            f"{entry.start}-{entry.end} of network {self.network} overlaps "
            f"{address_of(other.first)}-{address_of(other.last)} of network {neighbour} on the same parent "
            f"{self._parent}: each address goes to one of them only"
            for neighbour in self._neighbours
            for other in (self._spans_of(neighbour) if ranges else ())
            for entry in ranges
            if overlap(span_of(entry), other)
        )

    def _spans_of(self, network: str) -> list[Span]:
        rows = self._connection.execute("SELECT first, last FROM lease_ranges WHERE network = ?", (network,))
        return [Span(_number(first), _number(last)) for first, last in rows]

    # What the policy asks.

    def held_by(self, claim: Claim) -> tuple[int, ...]:
        """The addresses that the claimant holds already."""
        rows = self._connection.execute(
            "SELECT address FROM leases INDEXED BY leases_by_holder"
            " WHERE network = ? AND container_id = ? AND ifname = ? AND state = 'held'"
            " ORDER BY address",
            (self.network, claim.container_id, claim.ifname),
        )
        return tuple(_number(address) for (address,) in rows)

    def blocker(self, number: int) -> str:
        """Who or what stands in the way of an address right now, for a message; "" when nobody does."""
        found = self._connection.execute(
            "SELECT state, container_id, ifname, pod, free_at FROM leases WHERE network = ? AND address = ?",
            (self.network, _key(number)),
        ).fetchone()
        if found is not None:
            state, container_id, ifname, pod, free_at = found
            if state == "held":
                return f"container {container_id} ({ifname}{pod and f' of pod {pod}'}) holds it"
            if state == "conflict" and free_at > self._now:
                return f"another machine on the LAN uses it; it is tried again in {free_at - self._now:.0f} s"
        return self.used_elsewhere(number)

    def used_elsewhere(self, number: int) -> str:
        """Who else uses an address: another network on the same parent, or a container of host-local."""
        for network in self._neighbours:
            found = self._connection.execute(
                "SELECT container_id FROM leases WHERE network = ? AND address = ? AND parent = ? AND state = 'held'",
                (network, _key(number), self._parent),
            ).fetchone()
            if found is not None:
                return f"container {found[0]} of network {network} holds it on the same parent"
        holder = self._host_local.holder(address_of(number)) if self._host_local else ""
        return holder and f"container {holder} holds it by host-local"

    def remembered(self, claim: Claim) -> tuple[int, ...]:
        """Released addresses that the claimant's pod had, those of the same interface and the last one first."""
        rows = self._connection.execute(
            "SELECT address FROM leases INDEXED BY leases_remembered"
            " WHERE network = ? AND pod = ? AND state = 'released' AND sticky = 1"
            " ORDER BY ifname <> ?, free_at DESC, address",
            (self.network, claim.pod, claim.ifname),
        )
        return tuple(_number(address) for (address,) in rows)

    def reached(self, span: Span) -> int:
        """The highest address of the span that was handed out in order; the one before the span to begin with."""
        return self._ranges[span][1]

    def advance(self, span: Span, number: int) -> None:
        """Set what `reached` answers."""
        identifier, _ = self._ranges[span]
        self._connection.execute("UPDATE lease_ranges SET reached = ? WHERE id = ?", (_key(number), identifier))
        self._ranges[span] = (identifier, number)

    def first_gap(self, span: Span, run: Span) -> int | None:
        """The first address of the run without a lease. The leases on the way become those of this range."""
        identifier, _ = self._ranges[span]
        number, strangers = run.first, False
        for address, range_id in self._connection.execute(
            "SELECT address, range_id FROM leases WHERE network = ? AND address BETWEEN ? AND ? ORDER BY address",
            (self.network, _key(run.first), _key(run.last)),
        ):
            if _number(address) != number:
                break
            number += 1
            strangers = strangers or range_id != identifier
        if strangers:
            self._connection.execute(
                "UPDATE leases SET range_id = ? WHERE network = ? AND address BETWEEN ? AND ? AND range_id <> ?",
                (identifier, self.network, _key(run.first), _key(number - 1), identifier),
            )
        return number if number <= run.last else None

    def since_rewind(self, span: Span) -> float:
        """Seconds since `rewind`."""
        (rewound,) = self._connection.execute(
            "SELECT rewound FROM lease_ranges WHERE id = ?", (self._ranges[span][0],)
        ).fetchone()
        return self._now - float(rewound)

    def rewind(self, span: Span) -> None:
        """Begin again at the start of the span."""
        identifier, _ = self._ranges[span]
        self._connection.execute(
            "UPDATE lease_ranges SET reached = NULL, rewound = ? WHERE id = ?", (self._now, identifier)
        )
        self._ranges[span] = (identifier, span.first - 1)

    def longest_released(self, spans: tuple[Span, ...], sticky: bool, cooling: bool) -> int | None:
        """The address that was released first; a past conflict counts as released when it was over."""
        until = float("inf") if cooling else self._now
        candidates = []
        for span in spans:
            identifier, _ = self._ranges[span]
            candidates += self._connection.execute(
                "SELECT free_at, address FROM leases INDEXED BY leases_released"
                " WHERE range_id = ? AND state = 'released' AND sticky = ? AND free_at <= ?"
                " ORDER BY free_at, address LIMIT 1",
                (identifier, sticky, until),
            ).fetchall()
            candidates += self._connection.execute(
                "SELECT free_at, address FROM leases INDEXED BY leases_in_conflict"
                " WHERE range_id = ? AND state = 'conflict' AND free_at <= ? ORDER BY free_at, address LIMIT 1",
                (identifier, self._now),
            ).fetchall()
        return _number(min(candidates)[1]) if candidates else None

    def usage(self, entry: Range, span: Span, barred: tuple[Span, ...]) -> Usage:
        """Count the leases of a range; looks at all of them."""
        counts = self.counts(span)
        return Usage(
            start=str(entry.start),
            end=str(entry.end),
            size=span.size,
            held=counts.get("held", 0),
            cooling=counts.get("released", 0),
            conflict=counts.get("conflict", 0),
            excluded=self.excluded(within(span, barred)),
        )

    def counts(self, span: Span) -> dict[str, int]:
        """The number of leases by what they are: held, released (and cooling down), conflict, free."""
        return dict(
            self._connection.execute(
                "SELECT CASE WHEN state = 'held' THEN 'held' WHEN free_at <= :now THEN 'free' ELSE state END AS use,"
                " count(*) FROM leases WHERE network = :network AND address BETWEEN :first AND :last GROUP BY use",
                {"now": self._now, "network": self.network, "first": _key(span.first), "last": _key(span.last)},
            ).fetchall()
        )

    def excluded(self, barred: tuple[Span, ...]) -> int:
        """How many addresses of these parts of a range count as nothing else: they are neither held nor in conflict."""
        return sum(part.size - self._taken_in(part) for part in barred)

    def _taken_in(self, part: Span) -> int:
        (count,) = self._connection.execute(
            "SELECT count(*) FROM leases WHERE network = ? AND address BETWEEN ? AND ?"
            " AND (state = 'held' OR state = 'conflict' AND free_at > ?)",
            (self.network, _key(part.first), _key(part.last), self._now),
        ).fetchone()
        return int(count)

    # What changes a lease.

    def hold(self, number: int, span: Span | None, claim: Claim) -> None:
        """Give an address to the claimant; without a span, its range is found later."""
        range_id = NO_RANGE if span is None else self._ranges[span][0]
        self._connection.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, 'held', ?, ?, ?, ?, ?, ?, 0)",
            (
                self.network,
                _key(number),
                range_id,
                claim.container_id,
                claim.ifname,
                claim.pod,
                claim.sticky,
                self._parent,
            ),
        )

    def release(self, claim: Claim, cooldown: float) -> tuple[int, ...]:
        """Let the claimant's addresses cool down; returns them."""
        if held := self.held_by(claim):
            self._connection.execute(
                "UPDATE leases INDEXED BY leases_by_holder SET state = 'released', free_at = ?"
                " WHERE network = ? AND container_id = ? AND ifname = ? AND state = 'held'",
                (self._now + cooldown, self.network, claim.container_id, claim.ifname),
            )
        return held

    def free(self, number: int) -> bool:
        """Let anybody have an address at once, whatever keeps it; whether there was anything to let go."""
        changed = self._connection.execute(
            "UPDATE leases SET state = 'released', free_at = ? WHERE network = ? AND address = ?",
            (self._now, self.network, _key(number)),
        )
        return changed.rowcount > 0

    def put_aside(self, number: int, seconds: float) -> None:
        """Take an address away from whoever holds it, because another machine on the LAN answers for it."""
        changed = self._connection.execute(
            "UPDATE leases SET state = 'conflict', container_id = '', ifname = '', pod = '', sticky = 0, free_at = ?"
            " WHERE network = ? AND address = ?",
            (self._now + seconds, self.network, _key(number)),
        )
        if changed.rowcount == 0:
            self._connection.execute(
                "INSERT INTO leases VALUES (?, ?, 'conflict', ?, '', '', '', 0, ?, ?)",
                (self.network, _key(number), NO_RANGE, self._parent, self._now + seconds),
            )

    def forget(self, number: int) -> None:
        """Drop a released address."""
        self._connection.execute("DELETE FROM leases WHERE network = ? AND address = ?", (self.network, _key(number)))

    def prune(self, span: Span) -> None:
        """Drop a few addresses that were released long ago."""
        identifier, _ = self._ranges[span]
        for sticky, until in ((False, self._now), (True, self._now - REMEMBER_SECONDS)):
            rows = self._connection.execute(
                "SELECT address FROM leases INDEXED BY leases_released"
                " WHERE range_id = ? AND state = 'released' AND sticky = ? AND free_at <= ?"
                " ORDER BY free_at LIMIT ?",
                (identifier, sticky, until, PRUNE_AT_ONCE),
            ).fetchall()
            for (address,) in rows:
                self.forget(_number(address))


def renew(connection: sqlite3.Connection, boot: str, now: float) -> bool:
    """Whether the leases are of this boot already; if not, they become so.

    After a reboot every holder is gone: release what is held, and bring times of the old clock before the new ones.
    Nothing needs to cool down, no conflict is still known; addresses that were released before stay so in their order.
    """
    found = connection.execute("SELECT id FROM lease_boot").fetchone()
    if found == (boot,):
        return True
    (latest,) = connection.execute("SELECT coalesce(max(free_at), 0) FROM leases WHERE state <> 'held'").fetchone()
    connection.execute("UPDATE leases SET free_at = free_at - ? WHERE state <> 'held'", (latest,))
    connection.execute("UPDATE leases SET state = 'released', free_at = ? WHERE state = 'held'", (now,))
    # Ranges and networks that are configured no more must not stay for ever; the others enter again.
    connection.execute("DELETE FROM lease_ranges WHERE id NOT IN (SELECT range_id FROM leases)")
    connection.execute("UPDATE lease_ranges SET rewound = 0")
    connection.execute("DELETE FROM lease_networks")
    connection.execute("DELETE FROM lease_boot")
    connection.execute("INSERT INTO lease_boot VALUES (?)", (boot,))
    return False


def read_leases(connection: sqlite3.Connection, network: str, now: float) -> list[Lease]:
    """The leases of a network, or of all for "", by network and address; released ones only while they cool down."""
    rows = connection.execute(
        "SELECT network, address, container_id, ifname, CASE state WHEN 'released' THEN 'cooling' ELSE state END, pod,"
        " parent"
        " FROM leases WHERE (network = :network OR :network = '') AND (state = 'held' OR free_at > :now)"
        " ORDER BY network, address",
        {"network": network, "now": now},
    )
    return [Lease(network, address_of(_number(address)), *rest) for network, address, *rest in rows]


def read_ranges(connection: sqlite3.Connection, network: str, now: float) -> list[RangeUse]:
    """How the ranges of a network are used, or those of all for ""."""
    rows = connection.execute(
        "SELECT network, first, last, barred FROM lease_ranges WHERE network = :network OR :network = ''"
        " ORDER BY network, first",
        {"network": network},
    ).fetchall()
    return [
        _range_use(Ledger(connection, name, now), Span(_number(first), _number(last)), barred)
        for name, first, last, barred in rows
    ]


def _range_use(ledger: Ledger, span: Span, barred: str | None) -> RangeUse:
    counts = ledger.counts(span)
    return RangeUse(
        network=ledger.network,
        start=address_of(span.first),
        end=address_of(span.last),
        size=span.size,
        held=counts.get("held", 0),
        cooling=counts.get("released", 0),
        conflict=counts.get("conflict", 0),
        excluded=None if barred is None else ledger.excluded(outlined(span, barred)),
    )


def _key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")
