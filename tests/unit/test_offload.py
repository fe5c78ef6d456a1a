"""Offload: the decisions, and what is remembered of NICs. What NICs do about it is tried in tests/vm."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni import config, offload, rtnetlink
from cni.attachment import Parent, may_offload
from cni.database import Database
from cni.ethtool import Forwarding
from cni.frozen import replace
from cni.netlink import attribute, nest
from cni.rtnetlink import IFLA_XDP, IFLA_XDP_ATTACHED, LINK_HEADER
from cni.state import Nic, Nics
from tests.unit.attachments import planned
from tests.unit.configurations import MINIMAL

FIXED, OFF, ON = Forwarding(), Forwarding(switchable=True), Forwarding(switchable=True, active=True)
ALWAYS_ON = Forwarding(active=True)


@pytest.mark.parametrize(
    ("asked", "kind", "may"),
    [
        ("auto", "", True),
        ("auto", "vlan", False),
        ("auto", "veth", False),
        ("on", "", True),
        ("on", "vlan", True),
        ("off", "", False),
    ],
)
def test_which_parents_are_asked(asked: str, kind: str, may: bool) -> None:
    conf = config.parse({**MINIMAL, "offload": asked}, {})
    assert may_offload(conf, Parent("eth0", 2, "02:00:00:00:00:01", 1500, kind=kind)) is may


@pytest.mark.parametrize(
    ("feature", "under_xdp", "obstacle"),
    [
        (FIXED, False, offload.WITHOUT),
        (FIXED, True, offload.WITHOUT),
        (OFF, False, ""),
        (OFF, True, offload.UNDER_XDP),
        (ON, False, ""),
        (ON, True, ""),
        (ALWAYS_ON, False, ""),
    ],
)
def test_what_stands_in_the_way(feature: Forwarding, under_xdp: bool, obstacle: str) -> None:
    assert offload.obstacle_in(feature, under_xdp) == obstacle


@pytest.mark.parametrize(("attached", "native"), [(0, False), (1, True), (2, False), (3, True), (4, True)])
def test_xdp_counts_where_the_driver_runs_it(attached: int, native: bool) -> None:
    xdp = nest(IFLA_XDP, attribute(IFLA_XDP_ATTACHED, bytes([attached])))
    assert rtnetlink.parse_native_xdp(LINK_HEADER.pack(0, 1, 2, 0, 0) + xdp) is native
    assert not rtnetlink.parse_native_xdp(LINK_HEADER.pack(0, 1, 2, 0, 0))


def test_who_forwards_is_told_by_what_the_nic_receives_for_others() -> None:
    pod = planned()
    assert offload.in_hardware(set(), pod)
    assert not offload.in_hardware({pod.mac}, pod)
    assert offload.is_child(pod, pod.parent_index)
    assert not offload.is_child(replace(pod, parent_in_pod=True), pod.parent_index)


class TestNics:
    @pytest.fixture
    def database(self, tmp_path: Path) -> Database:
        return Database(str(tmp_path))

    def test_nothing_is_known_at_first(self, database: Database) -> None:
        nics = Nics(database, "boot")
        assert not nics.is_fixed(2, "eth0")
        assert nics.switchable() == []

    def test_what_never_will_is_known_to_others_and_later(self, database: Database) -> None:
        Nics(database, "boot").note_fixed(2, "eth0")
        other = Nics(database, "boot")
        assert other.is_fixed(2, "eth0")
        assert other.switchable() == []
        database.close()
        assert other.is_fixed(2, "eth0")

    @pytest.mark.parametrize(("boot", "index", "name"), [("next", 2, "eth0"), ("boot", 3, "eth0"), ("boot", 2, "eth1")])
    def test_another_boot_or_another_link_is_asked_anew(
        self, database: Database, boot: str, index: int, name: str
    ) -> None:
        Nics(database, "boot").note_fixed(2, "eth0")
        assert not Nics(database, boot).is_fixed(index, name)

    def test_what_was_before_is_noted_once(self, database: Database) -> None:
        nics = Nics(database, "boot")
        nics.note_switchable(2, "eth0", was_on=False)
        nics.count_refused(2)
        nics.note_switchable(2, "eth0", was_on=True)
        assert nics.switchable() == [Nic(2, "eth0", was_on=False, refused=1)]
        assert Nics(database, "next").switchable() == []

    def test_a_nic_that_takes_the_place_of_another_is_a_new_one(self, database: Database) -> None:
        nics = Nics(database, "boot")
        nics.note_switchable(2, "eth0", was_on=False)
        nics.count_refused(2)
        nics.note_switchable(2, "eth1", was_on=True)
        assert nics.switchable() == [Nic(2, "eth1", was_on=True, refused=0)]

    def test_one_can_be_forgotten(self, database: Database) -> None:
        nics = Nics(database, "boot")
        nics.note_switchable(2, "eth0", was_on=False)
        nics.forget(2)
        assert nics.switchable() == []
