"""VLAN devices: what they are called, what they shall be, what tells ours from those of others."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni import vlan
from cni.attachment import Link, Parent, Vlan, vlan_view
from cni.frozen import replace
from cni.protocol import NAME_LENGTH, is_interface_name
from tests.unit.attachments import FACTS, PARENT, planned

DEVICE = Vlan("eth0.100", 100, "eth0", 2, 1500, ours=True)
WANTED = vlan_view(DEVICE).link
assert WANTED


@pytest.mark.parametrize(
    ("master", "vlan_id", "name"),
    [
        ("eth0", 100, "eth0.100"),
        ("enp129s0f0", 4094, "enp129s0f0.4094"),
        ("enp129s0f0n", 4094, "enp12-62fd.4094"),
        ("enp129s0f0np0", 100, "enp129-9309.100"),
        ("enp129s0f0np1", 100, "enp129-a39f.100"),
        ("wlx0123456789ab", 7, "wlx01234-68e1.7"),
    ],
)
def test_its_name_is_short_and_tells_the_master(master: str, vlan_id: int, name: str) -> None:
    assert vlan.name_for(master, vlan_id) == name


@given(st.text(min_size=1, max_size=15).filter(is_interface_name), st.integers(1, 4094))
@example("é" * 7, 4094)
def test_any_master_has_a_name_that_the_kernel_takes(master: str, vlan_id: int) -> None:
    name = vlan.name_for(master, vlan_id)
    assert is_interface_name(name)
    assert name.endswith(f".{vlan_id}")
    assert len(name.encode()) <= NAME_LENGTH


@pytest.mark.parametrize(("kind", "mtu"), [("", 1500), ("bond", 1500), ("macsec", 1496)])
def test_a_tag_takes_room_where_there_is_none_to_spare(kind: str, mtu: int) -> None:
    assert vlan.mtu_on(Parent("eth0", 2, PARENT.mac, 1500, kind=kind)) == mtu


def test_it_is_made_without_a_voice_of_its_own() -> None:
    told = [str(step) for step in vlan.steps(DEVICE, None)]
    assert told[0] == "ip link add eth0.100 link eth0 mtu 1500 type vlan id 100"
    assert "sysctl -w net.ipv6.conf.eth0.100.addr_gen_mode=1" in told
    assert told[-1] == "ip link set eth0.100 arp off multicast off up"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"mac": "02:00:00:00:00:09", "index": 7}, []),
        ({"mtu": 1400}, ["ip link set eth0.100 mtu 1500 (it is 1400)"]),
        ({"arp": True}, ["ip link set eth0.100 arp off (it is on)"]),
        ({"vlan": 7}, ["ip link set eth0.100 id 100 (it is 7)"]),
    ],
)
def test_what_is_not_as_it_shall_be(changes: dict[str, object], told: list[str]) -> None:
    assert WANTED
    assert [str(step) for step in vlan.steps(DEVICE, replace(WANTED, **changes))] == told


@pytest.mark.parametrize(
    ("changes", "ours"), [({}, True), ({"alias": ""}, False), ({"alias": "mine"}, False), ({"kind": "bridge"}, False)]
)
def test_the_alias_says_whose_it_is(changes: dict[str, object], ours: bool) -> None:
    assert WANTED
    link: Link = replace(WANTED, **changes)
    assert vlan.is_ours(link) == ours


def test_an_attachment_remembers_its_device() -> None:
    carrier = Parent("eth0.100", 9, PARENT.mac, 1500, kind="vlan")
    attachment = planned(replace(FACTS, parent=carrier, vlan=DEVICE), vlan=100)
    assert attachment.vlan == DEVICE
    assert (attachment.parent, attachment.parent_index) == ("eth0.100", 9)
    assert attachment.host.link
    assert attachment.host.link.name == "shim9"
