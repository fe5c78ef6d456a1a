"""The allocation policy, on real SQLite with a clock that stands still, and against a model of dictionaries."""

from __future__ import annotations

import tempfile
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cni.errors import AddressUnavailable, Exhausted
from ipam.allocate import LeasedAddress
from ipam.store import LeaseStore
from tests.unit.leases import Clock, a_conf, a_range, a_store, ips, reserved

COOLDOWN = 60.0


def last(addresses: list[str]) -> int:
    """The last number of a single IPv4 address."""
    (address,) = addresses
    return int(address.rpartition(".")[2])


def fill(store: LeaseStore, count: int = 4) -> None:
    """Let containers 10, 11... hold 192.168.1.10, .11..."""
    for number in range(10, 10 + count):
        assert last(ips(store, a_conf(), str(number))) == number


def release(store: LeaseStore, *numbers: int, clock: Clock | None = None) -> None:
    for number in numbers:
        assert store.release("lan", str(number), "eth0", COOLDOWN)
        if clock:
            clock.now += 1


def test_addresses_come_with_prefix_and_gateway(store: LeaseStore) -> None:
    conf = a_conf((a_range("10.0.0.0/24"),), (a_range("fd00::/64", gateway="fd00::ff"),))
    assert store.allocate(conf, "c", "eth0").addresses == (
        LeasedAddress(ip_address("10.0.0.2"), 24, ip_address("10.0.0.1")),
        LeasedAddress(ip_address("fd00::1"), 64, ip_address("fd00::ff")),
    )


def test_fresh_addresses_come_first_and_in_order(store: LeaseStore, clock: Clock) -> None:
    fill(store, 2)
    release(store, 10, 11)
    clock.now += COOLDOWN
    assert [last(ips(store, a_conf(), name)) for name in "abcd"] == [12, 13, 10, 11]


def test_the_longest_released_address_is_reused_first(store: LeaseStore, clock: Clock) -> None:
    fill(store)
    release(store, 12, 10, 13, clock=clock)
    clock.now += COOLDOWN
    assert [last(ips(store, a_conf(), name)) for name in "abc"] == [12, 10, 13]


def test_what_cools_down_is_given_when_nothing_else_is_left(store: LeaseStore, clock: Clock) -> None:
    fill(store)
    release(store, 11, 10, clock=clock)
    assert [last(ips(store, a_conf(), name)) for name in "ab"] == [11, 10]


def test_ranges_of_a_pool_follow_each_other(store: LeaseStore, clock: Clock) -> None:
    conf = a_conf((a_range("10.0.0.0/24", "10.0.0.10", "10.0.0.10"), a_range("10.1.0.0/24", "10.1.0.5", "10.1.0.6")))
    assert [ips(store, conf, name) for name in "abc"] == [["10.0.0.10"], ["10.1.0.5"], ["10.1.0.6"]]
    store.release("lan", "b", "eth0", 0)
    clock.now += 1
    store.release("lan", "a", "eth0", 0)
    assert [ips(store, conf, name) for name in "de"] == [["10.1.0.5"], ["10.0.0.10"]]


def test_the_same_interface_gets_the_same_addresses(store: LeaseStore) -> None:
    conf = a_conf((a_range("10.0.0.0/24"),), (a_range("fd00::/64"),))
    first = ips(store, conf, "c")
    assert ips(store, conf, "c") == first
    assert set(ips(store, conf, "c", "net1")).isdisjoint(first)


def test_another_address_is_not_given_to_who_holds_one(store: LeaseStore) -> None:
    assert ips(store, a_conf(), "a") == ["192.168.1.10"]
    assert ips(store, a_conf(requested=("192.168.1.10",)), "a") == ["192.168.1.10"]
    with pytest.raises(AddressUnavailable, match=r"this interface holds 192.168.1.10 already: DEL it first"):
        ips(store, a_conf(requested=("192.168.1.12",)), "a")


def test_a_pool_that_is_new_or_lost_its_address_is_added_to_those_held(store: LeaseStore) -> None:
    one, other = (a_range("10.0.0.0/24"),), (a_range("fd00::/64", "fd00::5"),)
    assert ips(store, a_conf(one), "c") == ["10.0.0.2"]
    assert ips(store, a_conf(one, other), "c") == ["10.0.0.2", "fd00::5"]
    store.conflict("lan", ip_address("10.0.0.2"))
    assert ips(store, a_conf(one, other), "c") == ["10.0.0.3", "fd00::5"]


def test_all_pools_or_none(store: LeaseStore) -> None:
    conf = a_conf((a_range("10.0.0.0/24"),), (a_range("10.1.0.0/30"),))
    assert ips(store, conf, "a") == ["10.0.0.2", "10.1.0.2"]
    with pytest.raises(Exhausted):
        store.allocate(conf, "b", "eth0")
    assert [lease.container_id for lease in store.leases()] == ["a", "a"]
    assert ips(store, a_conf(conf.pools[0]), "c") == ["10.0.0.3"]


def test_exhaustion_says_what_became_of_the_addresses(store: LeaseStore) -> None:
    conf = a_conf(
        (a_range("10.0.0.0/29"), a_range("10.1.0.0/30", "10.1.0.2")),
        exclude=("10.0.0.6",),
        reservations=(reserved("10.0.0.5", pod="a/b"), reserved("10.0.0.4", pod="c/d")),
    )
    assert [ips(store, conf, name) for name in "ab"] == [["10.0.0.2"], ["10.0.0.3"]]
    assert ips(store, conf, "c", pod="c/d") == ["10.0.0.4"]
    store.conflict("lan", ip_address("10.0.0.3"))
    assert ips(store, conf, "d") == ["10.1.0.2"]
    with pytest.raises(Exhausted) as caught:
        store.allocate(conf, "e", "eth0")
    assert caught.value.code == 100
    assert caught.value.msg == (
        "network lan has no free address in "
        "10.0.0.1-10.0.0.6: 2 held, 0 cooling, 1 in conflict, 3 excluded or reserved, of 6; "
        "10.1.0.2-10.1.0.2: 1 held, 0 cooling, 0 in conflict, 0 excluded or reserved, of 1"
    )


def test_a_conflict_lasts_ten_minutes(store: LeaseStore, clock: Clock) -> None:
    fill(store)
    store.conflict("lan", ip_address("192.168.1.11"))
    assert store.find("lan", "11", "eth0") == ()
    with pytest.raises(Exhausted):
        store.allocate(a_conf(), "x", "eth0")
    with pytest.raises(AddressUnavailable, match="another machine on the LAN uses it; it is tried again in 600 s"):
        store.allocate(a_conf(requested=("192.168.1.11",)), "x", "eth0")
    clock.now += 600
    assert last(ips(store, a_conf(), "x")) == 11


def test_a_conflict_about_a_fresh_address_is_skipped(store: LeaseStore, clock: Clock) -> None:
    store.conflict("lan", ip_address("192.168.1.10"))
    assert [last(ips(store, a_conf(), name)) for name in "abc"] == [11, 12, 13]
    clock.now += 600
    assert last(ips(store, a_conf(), "d")) == 10


class TestRequested:
    def test_a_free_one_is_given(self, store: LeaseStore) -> None:
        assert last(ips(store, a_conf(requested=("192.168.1.12",)), "a")) == 12
        assert [last(ips(store, a_conf(), name)) for name in "bcd"] == [10, 11, 13]

    def test_one_that_cools_down_is_given(self, store: LeaseStore) -> None:
        fill(store)
        release(store, 10, 12)
        assert last(ips(store, a_conf(requested=("192.168.1.12",)), "a")) == 12

    def test_one_that_is_held_is_refused_with_its_holder(self, store: LeaseStore) -> None:
        ips(store, a_conf(), "holder", pod="default/web")
        with pytest.raises(
            AddressUnavailable, match=r"container holder \(eth0 of pod default/web\) holds it"
        ) as caught:
            store.allocate(a_conf(requested=("192.168.1.10",)), "a", "eth0")
        assert caught.value.code == 101


class TestReserved:
    conf = a_conf(reservations=(reserved("192.168.1.200", "192.168.1.11", pod="default/db"),))

    def test_the_pod_gets_the_first_that_is_not_held(self, store: LeaseStore) -> None:
        assert last(ips(store, self.conf, "a", pod="default/db")) == 200
        assert last(ips(store, self.conf, "b", pod="default/db")) == 11

    def test_nobody_else_gets_them(self, store: LeaseStore) -> None:
        assert [last(ips(store, self.conf, name)) for name in "abc"] == [10, 12, 13]
        with pytest.raises(Exhausted):
            store.allocate(self.conf, "d", "eth0", pod="default/other")

    def test_all_held_names_the_holders(self, store: LeaseStore) -> None:
        for name in "ab":
            store.allocate(self.conf, name, "eth0", pod="default/db")
        with pytest.raises(AddressUnavailable, match=r"192\.168\.1\.200: container a .*; 192\.168\.1\.11: container b"):
            store.allocate(self.conf, "c", "eth0", pod="default/db")

    def test_they_come_back_at_once_to_their_pod_only(self, store: LeaseStore, clock: Clock) -> None:
        store.allocate(self.conf, "a", "eth0", pod="default/db")
        store.release("lan", "a", "eth0", COOLDOWN)
        assert last(ips(store, self.conf, "b", pod="default/db")) == 200
        store.release("lan", "b", "eth0", 0)
        clock.now += 1
        assert [last(ips(store, self.conf, name)) for name in "cde"] == [10, 12, 13]

    def test_one_that_was_reserved_later_is_not_reused_by_others(self, store: LeaseStore, clock: Clock) -> None:
        fill(store)
        release(store, 11, 12, clock=clock)
        clock.now += COOLDOWN
        assert last(ips(store, self.conf, "a")) == 12
        with pytest.raises(Exhausted):
            store.allocate(self.conf, "b", "eth0")
        assert last(ips(store, a_conf(), "b")) == 11, "free again with the old configuration"


class TestSticky:
    conf = a_conf(sticky="pod")

    def test_a_pod_gets_its_last_address_back(self, store: LeaseStore) -> None:
        assert last(ips(store, self.conf, "a", pod="ns/a")) == 10
        assert last(ips(store, self.conf, "b", pod="ns/b")) == 11
        for container in "ab":
            store.release("lan", container, "eth0", COOLDOWN)
        assert last(ips(store, self.conf, "b2", pod="ns/b")) == 11
        assert last(ips(store, self.conf, "a2", pod="ns/a")) == 10

    def test_not_while_its_old_container_holds_it(self, store: LeaseStore) -> None:
        assert last(ips(store, self.conf, "old", pod="ns/a")) == 10
        assert last(ips(store, self.conf, "new", pod="ns/a")) == 11

    def test_the_last_one_of_the_same_interface_counts(self, store: LeaseStore, clock: Clock) -> None:
        assert [last(ips(store, self.conf, "a", ifname, "ns/a")) for ifname in ("eth0", "net1")] == [10, 11]
        for ifname in ("eth0", "net1"):
            store.release("lan", "a", ifname, COOLDOWN)
            clock.now += 1
        assert [last(ips(store, self.conf, "b", ifname, "ns/a")) for ifname in ("eth0", "net1")] == [10, 11]

    def test_remembered_addresses_are_the_last_to_go_to_others(self, store: LeaseStore, clock: Clock) -> None:
        assert last(ips(store, self.conf, "a", pod="ns/a")) == 10
        store.release("lan", "a", "eth0", COOLDOWN)
        clock.now += 1
        assert [last(ips(store, self.conf, name)) for name in "bcd"] == [11, 12, 13]
        store.release("lan", "b", "eth0", COOLDOWN)
        clock.now += COOLDOWN
        assert [last(ips(store, self.conf, name)) for name in "ef"] == [11, 10]

    def test_an_address_that_went_to_another_is_forgotten(self, store: LeaseStore) -> None:
        assert last(ips(store, self.conf, "a", pod="ns/a")) == 10
        store.release("lan", "a", "eth0", 0)
        store.allocate(a_conf(sticky="pod", requested=("192.168.1.10",)), "b", "eth0", pod="ns/b")
        assert last(ips(store, self.conf, "a2", pod="ns/a")) == 11

    def test_an_excluded_address_does_not_come_back(self, store: LeaseStore) -> None:
        store.allocate(self.conf, "a", "eth0", pod="ns/a")
        store.release("lan", "a", "eth0", 0)
        conf = a_conf(sticky="pod", exclude=("192.168.1.10",))
        assert last(ips(store, conf, "a2", pod="ns/a")) == 11

    def test_without_a_pod_name_nothing_is_remembered(self, store: LeaseStore, clock: Clock) -> None:
        assert last(ips(store, self.conf, "a")) == 10
        store.release("lan", "a", "eth0", 0)
        clock.now += 1
        assert last(ips(store, self.conf, "b")) == 11


class TestRewind:
    def test_an_address_that_is_no_longer_excluded_is_found(self, store: LeaseStore) -> None:
        excluding = a_conf(exclude=("192.168.1.11",))
        assert [last(ips(store, excluding, name)) for name in "abc"] == [10, 12, 13]
        store.release("lan", "a", "eth0", COOLDOWN)
        assert last(ips(store, a_conf(), "d")) == 11, "before the one that cools down"

    def test_a_large_range_is_gone_through_once_a_minute(self, store: LeaseStore, clock: Clock) -> None:
        """What cools down comes first until then."""
        pool = (a_range("10.0.0.0/23", "10.0.0.4"),)
        excluding = a_conf(
            pool, exclude=("10.0.0.8/29", "10.0.0.16/28", "10.0.0.32/27", "10.0.0.64/26", "10.0.0.128/25")
        )
        whole = a_conf(pool, exclude=("10.0.1.0/24",))
        assert [last(ips(store, excluding, name)) for name in "abcd"] == [4, 5, 6, 7]
        for number in range(255):
            store.allocate(excluding, f"x{number}", "eth0")
        store.release("lan", "a", "eth0", COOLDOWN)
        store.release("lan", "b", "eth0", COOLDOWN)
        assert ips(store, a_conf(pool, exclude=("10.0.0.8",)), "e") == ["10.0.0.4"]
        clock.now += 59
        assert ips(store, whole, "f") == ["10.0.0.5"]
        assert ips(store, whole, "g") == ["10.0.0.8"], "nothing else was left"
        store.release("lan", "c", "eth0", 120)
        clock.now += 61
        assert ips(store, whole, "h") == ["10.0.0.9"]

    def test_a_changed_range_takes_over_the_leases_inside(self, store: LeaseStore, clock: Clock) -> None:
        """Addresses that were released under the old range are reused under the new one, in their order."""
        fill(store)
        wide = a_conf((a_range("192.168.1.0/24", "192.168.1.9", "192.168.1.13"),))
        release(store, 12, 11, clock=clock)
        clock.now += COOLDOWN
        assert [last(ips(store, wide, name)) for name in "abc"] == [9, 12, 11]
        release(store, 10)
        assert last(ips(store, wide, "d")) == 10

    def test_a_huge_range_forgets_what_was_released_long_ago(self, store: LeaseStore, clock: Clock) -> None:
        conf = a_conf((a_range("fd00::/64"),))
        for number in range(40):
            store.allocate(conf, str(number), "eth0")
            store.release("lan", str(number), "eth0", COOLDOWN)
        clock.now += COOLDOWN
        seen = {ips(store, conf, f"new{number}")[0] for number in range(20)}
        assert seen == {f"fd00::{number:x}" for number in range(42, 62)}
        assert _rows(store) == 20

    def test_a_huge_range_remembers_pods_for_a_month(self, store: LeaseStore, clock: Clock) -> None:
        conf = a_conf((a_range("fd00::/64"),), sticky="pod")
        store.allocate(conf, "a", "eth0", pod="ns/a")
        store.release("lan", "a", "eth0", 0)
        clock.now += 29 * 86400
        store.allocate(conf, "b", "eth0")
        assert _rows(store) == 2
        clock.now += 86400
        store.allocate(conf, "c", "eth0")
        assert _rows(store) == 2, "one left, one came"


def _rows(store: LeaseStore) -> int:
    with store._database.transaction() as connection:
        return int(connection.execute("SELECT count(*) FROM leases").fetchone()[0])


CONTAINERS = st.integers(0, 9)
FIRST, LAST = 10, 15


class LeasesAsDictionaries(RuleBasedStateMachine):
    """Whatever happens in whatever order, the store gives exactly the address that this simple model expects."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.boots = 0
        self.held: dict[int, tuple[int, str]] = {}  # address: container, pod
        self.free: dict[int, tuple[float, str, bool]] = {}  # address: since when, whose before, was it a conflict
        self.fresh = list(range(FIRST, LAST + 1))
        self.conf = a_conf((a_range("192.168.1.0/24", f"192.168.1.{FIRST}", f"192.168.1.{LAST}"),), sticky="pod")
        self.open()

    def open(self) -> None:
        self.store = a_store(Path(self.directory.name), self.clock, f"boot-{self.boots}")

    def teardown(self) -> None:
        self.store._database.close()
        self.directory.cleanup()

    def expected(self, container: int, pod: str) -> int | None:
        now = self.clock.now
        kept = [address for address, (holder, _) in self.held.items() if holder == container]
        own = sorted((-since, a) for a, (since, whose, conflict) in self.free.items() if whose == pod and not conflict)
        released = sorted((bool(pod), since, a) for a, (since, pod, conflict) in self.free.items() if not conflict)
        over = sorted((False, since, a) for a, (since, _, conflict) in self.free.items() if conflict and since <= now)
        due = sorted(entry for entry in released + over if entry[1] <= now)
        cooling = sorted(released + over)
        if kept:
            return kept[0]
        if pod and own:
            return own[0][1]
        if self.fresh:
            return self.fresh[0]
        return next((address for *_, address in due + cooling), None)

    @rule(container=CONTAINERS)
    def add(self, container: int) -> None:
        pod = f"ns/{container % 3}" if container % 2 else ""
        address = self.expected(container, pod)
        if address is None:
            with pytest.raises(Exhausted):
                self.store.allocate(self.conf, str(container), "eth0", pod=pod)
            return
        assert last(ips(self.store, self.conf, str(container), pod=pod)) == address
        self.free.pop(address, None)
        self.fresh = [other for other in self.fresh if other != address]
        self.held[address] = (container, pod)

    @rule(container=CONTAINERS, cooldown=st.sampled_from([0.0, 60.0]))
    def delete(self, container: int, cooldown: float) -> None:
        mine = [address for address, (holder, _) in self.held.items() if holder == container]
        released = self.store.release("lan", str(container), "eth0", cooldown)
        assert [str(ip) for ip in released] == [f"192.168.1.{address}" for address in mine]
        for address in mine:
            self.free[address] = (self.clock.now + cooldown, self.held.pop(address)[1], False)

    @rule(address=st.integers(FIRST, LAST))
    def conflict(self, address: int) -> None:
        if address in self.fresh:
            return
        self.store.conflict("lan", ip_address(f"192.168.1.{address}"))
        self.held.pop(address, None)
        self.free[address] = (self.clock.now + 600, "", True)

    @rule(seconds=st.sampled_from([1.0, 30.0, 60.0, 600.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def reboot(self) -> None:
        shift = max((since for since, *_ in self.free.values()), default=0.0)
        self.boots += 1
        self.clock.now = 5.0
        self.store._database.close()
        self.open()
        self.free = {address: (since - shift, *rest) for address, (since, *rest) in self.free.items()}  # type: ignore[misc]
        self.free |= {address: (self.clock.now, pod, False) for address, (_, pod) in self.held.items()}
        self.held = {}

    @invariant()
    def the_listing_is_right(self) -> None:
        listed = {(int(str(lease.address).rpartition(".")[2]), lease.state) for lease in self.store.leases("lan")}
        waiting = {a: conflict for a, (since, _, conflict) in self.free.items() if since > self.clock.now}
        held = {(address, "held") for address in self.held}
        assert listed == held | {(a, "conflict" if conflict else "cooling") for a, conflict in waiting.items()}


LeasesAsDictionaries.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLeasesAsDictionaries = LeasesAsDictionaries.TestCase
