"""The lease store as processes see it: many at once, killed, after a reboot, beside host-local, with many leases."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni.database import FILE, MIGRATIONS, Database
from cni.errors import AddressUnavailable, Exhausted, IOFailure
from ipam.allocate import Claim
from ipam.hostlocal import HostLocal
from ipam.ledger import Lease, Ledger
from ipam.pools import number_of, pools_of, span_of
from ipam.store import LeaseStore
from tests.unit.leases import Clock, a_conf, a_range, a_store, in_processes, ips, reserved

WIDE = a_conf((a_range("10.0.0.0/16"),))
DUAL = a_conf((a_range("10.0.0.0/24"),), (a_range("fd00::/64"),))


class TestManyProcesses:
    def test_100_that_allocate_at_once_get_100_addresses(self, tmp_path: Path) -> None:
        def work(number: int) -> str:
            return ips(LeaseStore(Database(str(tmp_path))), WIDE, f"c{number}")[0]

        expected = {str(ip_address("10.0.0.2") + number) for number in range(100)}
        assert set(in_processes(100, work)) == expected

        def undo(number: int) -> str:
            (released,) = LeaseStore(Database(str(tmp_path))).release("lan", f"c{number}", "eth0", 0)
            return str(released)

        assert set(in_processes(100, undo)) == expected
        assert LeaseStore(Database(str(tmp_path))).leases() == []

    def test_a_scramble_for_few_addresses_gives_none_twice(self, tmp_path: Path) -> None:
        """Each process checks that what it was given was nobody else's while it had it."""
        conf = a_conf((a_range("10.0.0.0/24", "10.0.0.10", "10.0.0.15"),))

        def work(number: int) -> str:
            store = LeaseStore(Database(str(tmp_path)))
            for turn in range(30):
                try:
                    (address,) = ips(store, conf, f"c{number}-{turn}")
                except Exhausted:
                    continue
                token = os.open(tmp_path / f"has-{address}", os.O_CREAT | os.O_EXCL)
                os.close(token)
                os.unlink(tmp_path / f"has-{address}")
                store.release("lan", f"c{number}-{turn}", "eth0", 0)
            return "fine"

        assert in_processes(12, work) == ["fine"] * 12


def test_a_kill_at_any_instant_leaves_whole_leases(tmp_path: Path) -> None:
    """All addresses of an interface or none, none twice, and a store that works on."""

    def work() -> None:
        store = LeaseStore(Database(str(tmp_path)), "boot-1")
        while True:
            container = f"c{random.randrange(8)}"
            store.allocate(DUAL, container, "eth0", pod=f"ns/{container}", parent="eth0")
            store.release("lan", f"c{random.randrange(8)}", "eth0", 0)

    for _ in range(25):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(1)
        time.sleep(random.uniform(0.005, 0.04))
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "it failed before it was killed"
        store = LeaseStore(Database(str(tmp_path)), "boot-1")
        held = [(lease.container_id, lease.address) for lease in store.leases()]
        assert sorted(container for container, _ in held) == sorted(2 * [*{container for container, _ in held}])
        assert len({address for _, address in held}) == len(held)
        with store._database.transaction() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        store._database.close()


class TestReboot:
    def test_leases_of_an_earlier_boot_are_free(self, tmp_path: Path, clock: Clock, store: LeaseStore) -> None:
        conf = a_conf()
        assert [ips(store, conf, name)[0][-2:] for name in "abcd"] == ["10", "11", "12", "13"]
        store.release("lan", "c", "eth0", 1e6)
        clock.now = 3.0
        again = a_store(tmp_path, clock, "boot-2")
        assert again.find("lan", "a", "eth0") == ()
        assert again.leases() == []
        assert [ips(again, conf, name)[0][-2:] for name in "efgh"] == ["12", "10", "11", "13"], "the oldest first"

    def test_sticky_addresses_outlive_it(self, tmp_path: Path, clock: Clock, store: LeaseStore) -> None:
        conf = a_conf(sticky="pod")
        for name in "abc":
            store.allocate(conf, name, "eth0", pod=f"ns/{name}")
        clock.now = 3.0
        again = a_store(tmp_path, clock, "boot-2")
        assert [ips(again, conf, f"{name}2", pod=f"ns/{name}")[0][-2:] for name in "cab"] == ["12", "10", "11"]

    def test_a_conflict_is_over_with_it(self, tmp_path: Path, clock: Clock, store: LeaseStore) -> None:
        for name in "abcd":
            store.allocate(a_conf(), name, "eth0")
        store.conflict("lan", ip_address("192.168.1.12"))
        clock.now = 3.0
        again = a_store(tmp_path, clock, "boot-2")
        assert [ips(again, a_conf(), name)[0][-2:] for name in "efgh"] == ["12", "10", "11", "13"]

    def test_ranges_that_nothing_is_left_of_are_forgotten(
        self, tmp_path: Path, clock: Clock, store: LeaseStore
    ) -> None:
        store.allocate(a_conf(), "a", "eth0", parent="eth0")
        with pytest.raises(Exhausted):
            store.allocate(a_conf((a_range("10.0.0.0/30", "10.0.0.1", "10.0.0.1"),)), "b", "eth0")
        with store._database.transaction() as connection:
            ledger = Ledger(connection, "old", clock())
            ledger.enter(pools_of(a_conf((a_range("10.0.0.0/24"),)), "", ""))
        again = a_store(tmp_path, clock, "boot-2")
        again.leases()
        with again._database.transaction() as connection:
            assert connection.execute("SELECT network FROM lease_ranges").fetchall() == [("lan",)]


class TestNetworksOnOneParent:
    other = a_conf((a_range("192.168.1.0/24", "192.168.1.12", "192.168.1.20"),), network="other")

    def test_an_address_is_given_once(self, store: LeaseStore) -> None:
        for name in "ab":
            store.allocate(a_conf(), name, "eth0", parent="eth0")
        assert str(store.allocate(a_conf(), "c", "eth0", parent="eth0").addresses[0].ip) == "192.168.1.12"
        assert str(store.allocate(self.other, "d", "eth0", parent="eth0").addresses[0].ip) == "192.168.1.13"
        with pytest.raises(Exhausted):
            store.allocate(a_conf(), "e", "eth0", parent="eth0")
        store.release("other", "d", "eth0", 0)
        assert str(store.allocate(a_conf(), "e", "eth0", parent="eth0").addresses[0].ip) == "192.168.1.13"

    def test_a_request_is_refused_with_the_holder(self, store: LeaseStore) -> None:
        store.allocate(self.other, "c", "eth0", parent="eth0")
        with pytest.raises(AddressUnavailable, match="container c of network other holds it on the same parent"):
            store.allocate(a_conf(requested=("192.168.1.12",)), "d", "eth0", parent="eth0")

    def test_released_and_remembered_ones_are_left_to_the_other_network(self, store: LeaseStore, clock: Clock) -> None:
        sticky = a_conf(sticky="pod")
        taken = a_conf((a_range("192.168.1.0/24", "192.168.1.10", "192.168.1.10"),), network="other")
        store.allocate(sticky, "a", "eth0", pod="ns/a", parent="eth0")
        store.release("lan", "a", "eth0", 0)
        store.allocate(taken, "b", "eth0", parent="eth0")
        clock.now += 1
        given = [store.allocate(sticky, name, "eth0", pod="ns/a", parent="eth0").addresses[0].ip for name in "cde"]
        assert [str(ip)[-2:] for ip in given] == ["11", "12", "13"]
        with pytest.raises(Exhausted):
            store.allocate(sticky, "f", "eth0", parent="eth0")

    def test_overlaps_are_told_once(self, store: LeaseStore) -> None:
        assert store.allocate(a_conf(), "a", "eth0", parent="eth0").warnings == ()
        assert store.allocate(self.other, "b", "eth0", parent="eth0").warnings == (
            "192.168.1.12-192.168.1.20 of network other overlaps 192.168.1.10-192.168.1.13 of network lan"
            " on the same parent eth0: each address goes to one of them only",
        )
        assert store.allocate(self.other, "c", "eth0", parent="eth0").warnings == ()
        assert store.allocate(a_conf(), "d", "eth0", parent="eth0").warnings == ()

    def test_a_range_that_grows_into_another_is_told(self, store: LeaseStore) -> None:
        apart = a_conf((a_range("192.168.1.0/24", "192.168.1.20", "192.168.1.30"),), network="other")
        store.allocate(a_conf(), "a", "eth0", parent="eth0")
        assert store.allocate(apart, "b", "eth0", parent="eth0").warnings == ()
        assert len(store.allocate(self.other, "c", "eth0", parent="eth0").warnings) == 1

    @pytest.mark.parametrize("parents", [("eth0", "eth1"), ("", "")])
    def test_other_parents_do_not_matter(self, store: LeaseStore, parents: tuple[str, str]) -> None:
        store.allocate(a_conf(), "a", "eth0", parent=parents[0])
        same = a_conf(network="other")
        allocation = store.allocate(same, "b", "eth0", parent=parents[1])
        assert str(allocation.addresses[0].ip) == "192.168.1.10"
        assert allocation.warnings == ()


class TestHostLocal:
    @pytest.fixture
    def leases(self, tmp_path: Path) -> Path:
        """As host-local leaves them: CRLF between container ID and interface."""
        directory = tmp_path / "lan"
        directory.mkdir()
        (directory / "192.168.1.10").write_bytes(b"old\r\neth0")
        (directory / "fd00::2").write_bytes(b"old\r\neth0")
        (directory / "192.168.1.12").write_bytes(b"other\r\neth0")
        (directory / "192.168.1.13").write_bytes(b"ancient")
        (directory / "lock").touch()
        (directory / "last_reserved_ip.0").write_bytes(b"192.168.1.12")
        return directory

    def test_its_leases_are_not_handed_out(self, store: LeaseStore, leases: Path) -> None:
        assert ips(store, a_conf(), "a") == ["192.168.1.11"]
        with pytest.raises(Exhausted):
            store.allocate(a_conf(), "b", "eth0")
        with pytest.raises(AddressUnavailable, match="container other holds it by host-local"):
            store.allocate(a_conf(requested=("192.168.1.12",)), "b", "eth0")
        assert ips(store, a_conf((a_range("fd00::/64"),)), "c") == ["fd00::3"]

    @pytest.mark.parametrize(
        ("container", "expected"),
        [
            ("old", {"192.168.1.10", "fd00::2"}),
            ("ancient", {"192.168.1.13"}),
            ("unknown", set()),
            ("192.168.1.12", set()),
        ],
    )
    def test_they_are_released_by_our_del(
        self, store: LeaseStore, leases: Path, container: str, expected: set[str]
    ) -> None:
        before = {file.name for file in leases.iterdir()}
        assert set(map(str, store.release("lan", container, "eth0", 60))) == expected
        assert before - {file.name for file in leases.iterdir()} == expected
        assert store.release("lan", container, "eth0", 60) == ()

    def test_another_interface_is_not_released(self, store: LeaseStore, leases: Path) -> None:
        assert store.release("lan", "old", "net1", 60) == ()

    def test_its_address_is_found_once_it_is_free(self, store: LeaseStore, leases: Path) -> None:
        ips(store, a_conf(), "a")
        store.release("lan", "other", "eth0", 60)
        assert ips(store, a_conf(), "b") == ["192.168.1.12"]

    def test_an_empty_file_is_held_by_an_unknown(self, leases: Path) -> None:
        (leases / "192.168.1.11").touch()
        assert HostLocal("lan", (str(leases.parent),)).holder(ip_address("192.168.1.11")) == "unknown"

    def test_what_is_no_lease_does_not_disturb(self, leases: Path) -> None:
        (leases / "192.168.1.14").mkdir()
        os.mkfifo(leases / "192.168.1.15")
        released = HostLocal("lan", (str(leases.parent),)).release("old", "eth0")
        assert set(map(str, released)) == {"192.168.1.10", "fd00::2"}

    def test_one_that_cannot_be_read_is_named(self, leases: Path) -> None:
        (leases / "192.168.1.16").symlink_to("192.168.1.16")
        with pytest.raises(IOFailure, match=r"192.168.1.16: a lease of host-local: Too many levels"):
            HostLocal("lan", (str(leases.parent),)).release("old", "eth0")

    @pytest.mark.parametrize("name", ["nothing", "../lan"])
    def test_a_network_without_leases(self, tmp_path: Path, leases: Path, name: str) -> None:
        (tmp_path / "sub").mkdir()
        host_local = HostLocal(name, (str(tmp_path / "sub"),))
        assert host_local.holder(ip_address("192.168.1.10")) == ""
        assert host_local.release("old", "eth0") == ()


class TestListing:
    def test_leases(self, store: LeaseStore, clock: Clock) -> None:
        for name in "abc":
            store.allocate(a_conf(), name, "eth0", pod=f"ns/{name}")
        store.allocate(a_conf(network="other"), "d", "net1")
        store.release("lan", "b", "eth0", 60)
        store.conflict("lan", ip_address("192.168.1.12"))
        lan = [
            Lease("lan", ip_address("192.168.1.10"), "a", "eth0", "held", "ns/a"),
            Lease("lan", ip_address("192.168.1.11"), "b", "eth0", "cooling", "ns/b"),
            Lease("lan", ip_address("192.168.1.12"), "", "", "conflict", ""),
        ]
        assert store.leases("lan") == lan
        assert store.leases() == [*lan, Lease("other", ip_address("192.168.1.10"), "d", "net1", "held", "")]
        clock.now += 60
        assert [lease.state for lease in store.leases("lan")] == ["held", "conflict"]

    def test_usage(self, store: LeaseStore) -> None:
        conf = a_conf(DUAL.pools[0], DUAL.pools[1], exclude=("10.0.0.128/25",))
        store.allocate(conf, "a", "eth0")
        store.allocate(conf, "b", "eth0")
        store.release("lan", "b", "eth0", 60)
        store.conflict("lan", ip_address("fd00::99"))
        four, six = store.usage(conf)
        assert (four.start, four.end, four.size) == ("10.0.0.1", "10.0.0.254", 254)
        assert (four.held, four.cooling, four.conflict, four.excluded, four.free) == (1, 1, 0, 128, 125)
        assert (six.held, six.cooling, six.conflict, six.excluded) == (1, 1, 1, 1)
        assert six.free == 2**64 - 2 - 3


class TestRanges:
    small = a_conf(
        (a_range("10.0.0.0/29"),),
        exclude=("10.0.0.6",),
        reservations=(reserved("10.0.0.5", pod="ns/db"), reserved("10.0.1.5", pod="ns/web")),
    )

    def test_what_is_not_for_everybody_is_remembered(self, store: LeaseStore) -> None:
        store.allocate(self.small, "a", "eth0", avoid=[ip_address("10.0.0.4"), ip_address("192.0.2.1")])
        (use,) = store.ranges()
        assert (use.size, use.held, use.excluded, use.free) == (6, 1, 4, 1)

    def test_a_reserved_address_that_is_held_counts_once(self, store: LeaseStore) -> None:
        store.allocate(self.small, "db", "eth0", pod="ns/db")
        for name in "ab":
            store.allocate(self.small, name, "eth0")
        assert [(use.held, use.excluded, use.free) for use in store.ranges()] == [(3, 2, 1)]
        store.allocate(self.small, "c", "eth0")
        assert [(use.held, use.excluded, use.free) for use in store.ranges()] == [(4, 2, 0)]
        store.release("lan", "db", "eth0", 60)
        assert [(use.held, use.excluded, use.free) for use in store.ranges()] == [(3, 3, 0)], "only its pod gets it"

    def test_one_in_conflict_counts_once(self, store: LeaseStore, clock: Clock) -> None:
        store.allocate(self.small, "a", "eth0")
        store.conflict("lan", ip_address("10.0.0.5"))
        (use,), (usage,) = store.ranges(), store.usage(self.small)
        assert (use.held, use.conflict, use.excluded, use.free) == (1, 1, 2, 2)
        assert (usage.held, usage.conflict, usage.excluded, usage.free) == (1, 1, 2, 2)
        clock.now += 600
        assert [(use.conflict, use.excluded, use.free) for use in store.ranges()] == [(0, 3, 2)]

    def test_of_a_huge_range_too(self, store: LeaseStore) -> None:
        store.allocate(a_conf((a_range("fd00::/64", "fd00::"),), exclude=("fd00::8000:0:0:0/65",)), "a", "eth0")
        (use,) = store.ranges()
        assert (use.size, use.excluded, use.free) == (2**64 - 1, 2**63 + 1, 2**63 - 3)

    def test_an_add_tells_that_it_has_changed(self, store: LeaseStore) -> None:
        store.allocate(self.small, "a", "eth0")
        store.allocate(a_conf(self.small.pools[0]), "b", "eth0")
        assert [use.excluded for use in store.ranges()] == [1]

    def test_one_that_finds_no_address_does_so_too(self, store: LeaseStore) -> None:
        narrow, other = a_conf(self.small.pools[0], exclude=("10.0.0.0/29",)), a_conf(exclude=("192.168.1.0/24",))
        store.allocate(self.small, "a", "eth0")
        for conf in (narrow, other):
            with pytest.raises(Exhausted):
                store.allocate(conf, "b", "eth0")
            store.remember_ranges(conf)
        assert [(use.held, use.excluded, use.free) for use in store.ranges()] == [(1, 5, 0), (0, 4, 0)]

    def test_it_is_written_only_when_it_is_new(self, store: LeaseStore) -> None:
        statements: list[str] = []
        store.allocate(DUAL, "a", "eth0")
        with store._database.transaction() as connection:
            connection.set_trace_callback(statements.append)
        store.allocate(DUAL, "b", "eth0")
        assert sum("lease_ranges" in statement for statement in statements) == 4, "to load, and how far it has come"
        assert not any("barred =" in statement for statement in statements)

    def test_of_a_range_that_an_older_version_entered_it_is_unknown_until_the_next_add(
        self, tmp_path: Path, clock: Clock
    ) -> None:
        with closing(sqlite3.connect(tmp_path / FILE)) as old:
            for script in ("PRAGMA journal_mode = WAL", *MIGRATIONS[:2], "PRAGMA user_version = 2"):
                old.executescript(script)
            ends = (b"\xff\xff\x0a\x00\x00".rjust(15, b"\0") + bytes([last]) for last in (1, 6))
            old.execute("INSERT INTO lease_ranges VALUES (1, 'lan', ?, ?, NULL, 0)", tuple(ends))
            old.execute("INSERT INTO lease_boot VALUES ('boot-1')")
            old.commit()
        store = a_store(tmp_path, clock)
        assert [(use.size, use.excluded, use.free) for use in store.ranges()] == [(6, None, 6)]
        store.allocate(self.small, "a", "eth0")
        assert [(use.size, use.excluded, use.free) for use in store.ranges()] == [(6, 3, 2)]

    def test_it_outlives_a_reboot(self, tmp_path: Path, clock: Clock, store: LeaseStore) -> None:
        store.allocate(self.small, "a", "eth0")
        assert [(use.held, use.excluded) for use in a_store(tmp_path, clock, "boot-2").ranges()] == [(0, 3)]


class TestAdopting:
    def test_a_lease_that_is_known_from_elsewhere(self, store: LeaseStore) -> None:
        address = ip_address("192.168.1.11")
        assert store.adopt("lan", address, "a", "eth0", pod="ns/a", parent="eth0")
        assert store.adopt("lan", address, "a", "eth0"), "again"
        assert store.find("lan", "a", "eth0") == (address,)
        assert [ips(store, a_conf(), name)[0][-2:] for name in "bcd"] == ["10", "12", "13"]
        store.release("lan", "a", "eth0", 0)
        assert ips(store, a_conf(), "e") == ["192.168.1.11"]

    def test_not_what_another_holds(self, store: LeaseStore) -> None:
        store.allocate(a_conf(), "a", "eth0")
        assert not store.adopt("lan", ip_address("192.168.1.10"), "b", "eth0")
        assert [lease.container_id for lease in store.leases()] == ["a"]


def test_release_is_idempotent(store: LeaseStore) -> None:
    store.allocate(DUAL, "a", "eth0")
    assert [str(ip) for ip in store.release("lan", "a", "eth0", 60)] == ["10.0.0.2", "fd00::2"]
    assert store.release("lan", "a", "eth0", 60) == ()
    assert store.release("no such network", "a", "eth0", 60) == ()


class Work:
    """Counts the steps of SQLite's machine, in tens: work done, whatever the machine is busy with."""

    def __init__(self, store: LeaseStore) -> None:
        self.count = 0
        with store._database.transaction() as connection:
            connection.set_progress_handler(self.step, 10)

    def step(self) -> int:
        self.count += 1
        return 0


def test_60000_leases_cost_as_much_as_none(store: LeaseStore, clock: Clock) -> None:
    """Fresh addresses, reused ones, the release; in order, after the end of the range, and with neighbours."""

    def cycle(name: str) -> int:
        work.count = 0
        for number in range(20):
            store.allocate(WIDE, f"{name}{number}", "eth0", pod="ns/pod", parent="eth0")
        for number in range(20):
            store.release("lan", f"{name}{number}", "eth0", 60)
        clock.now += 61
        return work.count

    store.allocate(WIDE, "first", "eth0", parent="eth0")
    work = Work(store)
    alone = cycle("few")
    _occupy(store, clock(), 60_000)
    assert cycle("many") <= alone * 1.2

    _occupy(store, clock(), 65_000)
    around = [cycle(f"end{number}") for number in range(60)]
    assert max(around[-20:]) <= alone * 2, "reuse asks for a little more"
    assert sorted(around)[30] <= alone * 2


def _occupy(store: LeaseStore, now: float, count: int) -> None:
    """As if that many containers had come before."""
    entry = WIDE.pools[0][0]
    with store._database.transaction() as connection:
        ledger = Ledger(connection, "lan", now, "eth0")
        ledger.enter(pools_of(WIDE, "", ""))
        first = number_of(ip_address("10.0.0.0"))
        for number in range(first + 1000, first + count):
            ledger.hold(number, span_of(entry), Claim(f"old{number}", "eth0"))
        ledger.advance(span_of(entry), first + count - 1)
