"""The leases of one data directory, for any number of processes and threads: each call is one transaction.

It brings together the database, the policy of `ipam.allocate`, the clock and what host-local left behind. A SIGKILL at
any instant leaves the store as it was before a call or as it is after it.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress

from cni.database import boot_id
from cni.errors import CniError
from cni.frozen import frozen
from ipam.allocate import Claim, LeasedAddress, allocate
from ipam.hostlocal import DEFAULT_DIRECTORY, HostLocal
from ipam.ledger import Lease, Ledger, RangeUse, read_leases, read_ranges, renew
from ipam.pools import address_of, common_pools, number_of, pools_of, span_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from cni.database import Database
    from ipam.allocate import Usage
    from ipam.config import IpamConf

    Address = IPv4Address | IPv6Address

CONFLICT_SECONDS = 600.0

# Holds what pods have whose network nobody can tell, after a store was rebuilt. No network can be called so.
RECOVERED = "_recovered"


def boot_time() -> float:
    """Seconds since boot: a clock that nobody sets, and that counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@frozen
class Allocation:
    """What `allocate` gave; the warnings are for the log."""

    addresses: tuple[LeasedAddress, ...]
    warnings: tuple[str, ...] = ()


class LeaseStore:
    """The leases in a database. Every method may raise what `Database.transaction` does."""

    def __init__(
        self,
        database: Database,
        boot: str = "",
        clock: Callable[[], float] = boot_time,
        host_local_directories: tuple[str, ...] | None = None,
    ) -> None:
        """`boot` is `boot_id()` when empty; host-local's leases are looked for in its default and our directory."""
        self._database = database
        self._boot = boot
        self._clock = clock
        self._directories = host_local_directories or (database.data_dir, DEFAULT_DIRECTORY)

    def allocate(
        self,
        conf: IpamConf,
        container_id: str,
        ifname: str,
        *,
        pod: str = "",
        mac: str = "",
        parent: str = "",
        avoid: Iterable[Address] = (),
    ) -> Allocation:
        """One address of each pool or none at all; an interface that holds leases already gets the same ones back.

        `pod` is "namespace/name", `mac` a MAC that was given by hand, `parent` tells the LAN apart ("" when unknown),
        `avoid` are addresses in use that no store knows, those of the host for a start. Raises Exhausted and
        AddressUnavailable.
        """
        pools = pools_of(conf, pod, mac, avoid)
        claim = Claim(container_id, ifname, pod, sticky=conf.sticky == "pod" and bool(pod))
        host_local = HostLocal(conf.network, self._directories)
        with self._transaction() as (connection, now):
            ledger = Ledger(connection, conf.network, now, parent, host_local)
            warnings = ledger.enter(pools)
            return Allocation(allocate(pools, claim, ledger), warnings)

    def remember_ranges(self, conf: IpamConf, avoid: Iterable[Address] = ()) -> None:
        """Have `ranges` show why `allocate` raised Exhausted, which took back what it had come to know of the ranges.

        To be called when the transaction that it was a part of is over; raises nothing of what the store reports.
        """
        with suppress(CniError), self._transaction() as (connection, now):
            Ledger(connection, conf.network, now).enter_ranges(common_pools(conf, tuple(avoid)))

    def conflict(self, network: str, address: Address) -> None:
        """Another machine on the LAN uses the address: whoever holds it loses it, and nobody gets it for 10 minutes."""
        with self._transaction() as (connection, now):
            Ledger(connection, network, now).put_aside(number_of(address), CONFLICT_SECONDS)

    def release(self, network: str, container_id: str, ifname: str, cooldown_seconds: float) -> tuple[Address, ...]:
        """Give back what an interface holds, here or else in the files of host-local; returns it, () for nothing."""
        with self._transaction() as (connection, now):
            released = Ledger(connection, network, now).release(Claim(container_id, ifname), cooldown_seconds)
        if released:
            return tuple(map(address_of, released))
        return HostLocal(network, self._directories).release(container_id, ifname)

    def find(self, network: str, container_id: str, ifname: str) -> tuple[Address, ...]:
        """The addresses that an interface holds, in their order."""
        with self._transaction() as (connection, now):
            return tuple(map(address_of, Ledger(connection, network, now).held_by(Claim(container_id, ifname))))

    def leases(self, network: str = "") -> list[Lease]:
        """All leases of a network, or of all networks: those held, cooling down, or in conflict."""
        with self._transaction() as (connection, now):
            return read_leases(connection, network, now)

    def usage(self, conf: IpamConf) -> tuple[Usage, ...]:
        """How each range of each pool is used."""
        pools = pools_of(conf, pod="", mac="")
        with self._transaction() as (connection, now):
            ledger = Ledger(connection, conf.network, now)
            return tuple(ledger.usage(entry, span_of(entry), pool.barred) for pool in pools for entry in pool.ranges)

    def adopt(
        self, network: str, address: Address, container_id: str, ifname: str, *, pod: str = "", parent: str = ""
    ) -> bool:
        """Enter a lease that is known from elsewhere, to rebuild a store; False when another one has the address."""
        claim, number = Claim(container_id, ifname, pod), number_of(address)
        with self._transaction() as (connection, now):
            ledger = Ledger(connection, network, now, parent)
            ledger.enter(())  # on a parent, all networks avoid what one of them holds
            if number not in ledger.held_by(claim):
                if ledger.blocker(number):
                    return False
                ledger.hold(number, None, claim)
            return True

    def free(self, network: str, address: Address) -> bool:
        """Make one address available at once, whether held, cooling or in conflict; False when it was so already."""
        with self._transaction() as (connection, now):
            return Ledger(connection, network, now).free(number_of(address))

    def free_recovered(self, addresses: Iterable[Address]) -> None:
        """Let go of addresses that `RECOVERED` holds; those that it does not hold are fine."""
        for address in addresses:
            self.free(RECOVERED, address)

    def ranges(self, network: str = "") -> list[RangeUse]:
        """How the ranges that were allocated from since the start are used, of a network or of all."""
        with self._transaction() as (connection, now):
            return read_ranges(connection, network, now)

    def check_writable(self) -> None:
        """Raise what an ADD would raise about the store."""
        self._database.check_writable()

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, float]]:
        """A transaction in which nobody of an earlier boot holds anything, and the time."""
        self._boot = self._boot or boot_id()
        with self._database.transaction() as connection:
            now = self._clock()
            if self._database.boot != self._boot and renew(connection, self._boot, now):
                self._database.boot = self._boot
            yield connection, now
