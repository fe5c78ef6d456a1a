"""An attachment planned anew: what the host's present addresses and the present parent change, and what they do not."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.attachment import (
    PROTO_SHIMLAN,
    Attachment,
    Facts,
    InterfaceAddress,
    Reach,
    Route,
    SourceNat,
    View,
    replan,
)
from cni.frozen import replace
from cni.protocol import Result
from cni.state import decode, encode
from tests.unit.attachments import FACTS, HOST, HOST6, IPAM, MAC, PARENT, V4, planned

NAT = {"routes": ["10.96.0.0/12", "fd00::/112"]}
SECOND = InterfaceAddress(ip_address("192.0.2.20"), 24)
SECOND6 = InterfaceAddress(ip_address("2001:db8::20"), 64)
LOCAL = ip_address("169.254.20.10")


def on_host(*addresses: InterfaceAddress) -> Facts:
    return replace(FACTS, parent_addresses=addresses, host_addresses=addresses)


def sources(attachment: Attachment) -> list[str]:
    """The host's addresses towards the pod's."""
    return [str(route.src) for route in attachment.host.routes]


def reached(attachment: Attachment) -> list[str]:
    """What the pod has entries for."""
    to_host = [route for route in attachment.sandbox.routes if route.protocol == PROTO_SHIMLAN and not route.via]
    assert [route.dst for route in to_host] == [ip_network(entry.ip) for entry in attachment.sandbox.neighbours]
    return [str(entry.ip) for entry in attachment.sandbox.neighbours]


def test_what_it_is_planned_from_is_recorded() -> None:
    assert planned(shim={"hostAddresses": ["auto", str(LOCAL)], **NAT, "snat": False}).reach == Reach(
        True, (LOCAL,), (ip_network("10.96.0.0/12"), ip_network("fd00::/112")), False
    )
    assert planned(shim={"hostAddresses": [str(HOST.ip)]}).reach == Reach(False, (HOST.ip,))


@pytest.mark.parametrize("attachment", [planned(shim=False), planned(mode="private"), planned(ipam=Result())])
def test_without_a_shim_there_is_nothing_to_reach(attachment: Attachment) -> None:
    assert attachment.reach is None
    assert replan(attachment, FACTS) == attachment


@pytest.mark.parametrize("attachment", [planned(), planned(shim=NAT), planned(ipam=V4, mtu=1400), planned(shim=False)])
def test_by_the_same_facts_it_is_the_same(attachment: Attachment) -> None:
    assert replan(attachment, FACTS) == attachment


# --- addresses -------------------------------------------------------------------------------------------------------


def test_another_address_takes_the_place_of_the_one_before() -> None:
    moved = replan(planned(shim=NAT), on_host(SECOND, HOST6))
    assert sources(moved) == ["192.0.2.20", "2001:db8::10"]
    assert reached(moved) == ["192.0.2.20", "2001:db8::10"]
    assert moved.source_nat == (SourceNat("shim2", SECOND.ip), SourceNat("shim2", HOST6.ip))
    assert [str(route.via) for route in moved.sandbox.routes[-2:]] == ["192.0.2.20", "2001:db8::10"]


def test_one_more_address_is_one_more_to_reach() -> None:
    more = replan(planned(), on_host(HOST, SECOND, HOST6, SECOND6))
    assert reached(more) == ["192.0.2.10", "192.0.2.20", "2001:db8::10", "2001:db8::20"]
    assert sources(more) == sources(planned())
    assert replan(more, FACTS) == planned()


@pytest.mark.parametrize("there", [(), (HOST,), (HOST6,)])
def test_a_family_without_an_address_stays_as_it_was(there: tuple[InterfaceAddress, ...]) -> None:
    attachment = planned(shim=NAT)
    assert replan(attachment, on_host(*there)) == attachment


def test_while_one_family_changes_and_the_other_is_missing() -> None:
    half = replan(planned(shim=NAT), on_host(SECOND6))
    assert sources(half) == ["192.0.2.10", "2001:db8::20"]
    assert half.source_nat == (SourceNat("shim2", HOST.ip), SourceNat("shim2", SECOND6.ip))


def test_an_address_that_was_named_stays_to_be_reached_but_is_no_source() -> None:
    local = InterfaceAddress(LOCAL, 32)
    attachment = planned(on_host(HOST, local), V4, shim={"hostAddresses": ["auto", str(LOCAL)]})
    assert reached(attachment) == ["192.0.2.10", str(LOCAL)]
    assert replan(attachment, on_host(HOST)) == attachment
    named = planned(on_host(HOST, local), V4, shim={"hostAddresses": [str(LOCAL), str(HOST.ip)]})
    assert reached(replan(named, on_host(SECOND))) == ["192.0.2.20", str(LOCAL), "192.0.2.10"]
    assert sources(replan(named, on_host(SECOND))) == ["192.0.2.20"]


def test_the_first_address_of_a_host_gives_it_a_shim() -> None:
    without = planned(Facts(PARENT), shim={"hostAddresses": ["auto"]})
    assert without.host == View()
    assert replan(without, FACTS) == planned(shim={"hostAddresses": ["auto"]})


def test_what_others_asked_for_is_kept() -> None:
    attachment = planned(shim=NAT)
    extra = Route(ip_network("203.0.113.0/24"), ip_address("192.0.2.9"), metric=7)
    sandbox = replace(attachment.sandbox, routes=(*attachment.sandbox.routes, extra))
    moved = replan(replace(attachment, sandbox=sandbox), on_host(SECOND, HOST6))
    assert extra in moved.sandbox.routes
    assert {str(route.dst) for route in moved.sandbox.routes} >= {"0.0.0.0/0", "::/0", "203.0.113.0/24"}


def test_without_knowing_what_it_was_planned_from_all_addresses_stay() -> None:
    attachment = replace(planned(shim=NAT), reach=None)
    assert replan(attachment, on_host(SECOND, SECOND6)) == attachment


# --- the parent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attachment", [planned(shim=NAT), replace(planned(shim=NAT), reach=None)])
def test_another_index_means_another_shim(attachment: Attachment) -> None:
    moved = replan(attachment, replace(FACTS, parent=replace(PARENT, index=7)))
    assert moved.host.link
    assert moved.sandbox.link
    assert (moved.parent_index, moved.sandbox.link.parent_index, moved.host.link.parent_index) == (7, 7, 7)
    assert moved.host.link.name == "shim7"
    assert {rule.shim for rule in moved.source_nat} == {"shim7"}
    assert (moved.sandbox.link.mac, moved.sandbox.addresses) == (MAC, attachment.sandbox.addresses)


def test_another_name_is_followed() -> None:
    moved = replan(planned(), replace(FACTS, parent=replace(PARENT, name="lan0")))
    assert moved.host.link
    assert moved.sandbox.link
    assert (moved.parent, moved.sandbox.link.parent, moved.host.link.parent) == ("lan0", "lan0", "lan0")
    assert moved.host.link.alias == "shimlan shim of lan0"


def test_the_shim_that_stands_keeps_its_mac_and_pods_learn_it() -> None:
    moved = replan(planned(), replace(FACTS, shim_mac="02:00:00:00:00:99"))
    assert moved.host.link
    assert moved.host.link.mac == "02:00:00:00:00:99"
    assert {entry.mac for entry in moved.sandbox.neighbours} == {"02:00:00:00:00:99"}


def test_the_shim_follows_the_parents_mtu_and_the_pod_keeps_what_is_recorded() -> None:
    lower = replan(planned(), replace(FACTS, parent=replace(PARENT, mtu=1400)))
    assert lower.host.link
    assert lower.sandbox.link
    assert (lower.host.link.mtu, lower.sandbox.link.mtu) == (1400, 1500)
    assert replan(lower, FACTS) == planned()


def test_in_mode_passthru_the_mac_is_that_of_the_present_parent() -> None:
    moved = replan(planned(mode="passthru"), replace(FACTS, parent=replace(PARENT, mac="02:00:00:00:00:77")))
    assert moved.mac == "02:00:00:00:00:77"
    assert replan(planned(), replace(FACTS, parent=replace(PARENT, mac="02:00:00:00:00:77"))).mac == MAC


# --- whatever happens ------------------------------------------------------------------------------------------------

host_facts = st.builds(
    lambda addresses, index, shim_mac: Facts(replace(PARENT, index=index), (), tuple(addresses), shim_mac),
    st.lists(st.sampled_from([HOST, HOST6, SECOND, SECOND6, InterfaceAddress(LOCAL, 32)]), unique=True),
    st.sampled_from([2, 7]),
    st.sampled_from(["", "02:5e:00:00:00:01"]),
)
attachments = st.sampled_from(
    [
        planned(shim=NAT),
        planned(ipam=V4),
        planned(ipam=IPAM, shim={"hostAddresses": ["auto", str(HOST.ip), str(LOCAL)], "snat": False}),
        planned(shim=False),
        replace(planned(shim=NAT), reach=None),
    ]
)


@given(attachments, st.lists(host_facts, min_size=1, max_size=5))
def test_it_depends_on_where_the_host_is_and_settles_there(attachment: Attachment, history: list[Facts]) -> None:
    for facts in history:
        attachment = replan(attachment, facts)
        assert replan(attachment, facts) == attachment
        assert decode(encode(attachment)) == attachment


@given(attachments, st.lists(host_facts, max_size=5))
def test_when_all_is_as_it_was_so_is_the_plan(attachment: Attachment, history: list[Facts]) -> None:
    planned_first = replan(attachment, FACTS)
    for facts in history:
        attachment = replan(attachment, facts)
    assert replan(attachment, FACTS) == planned_first
