"""Wanted against observed: applied to what is there, the changes make it what is wanted, and say themselves as `ip`."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.attachment import PROTO_SHIMLAN, SCOPE_LINK, InterfaceAddress, Link, Neighbour, Route, View
from cni.diff import AddAddress, AddLink, Change, ReplaceNeighbour, SetLink, SetRoute, SetSysctl, SetUp, diff, surplus
from cni.frozen import replace
from tests.unit.attachments import MAC, planned

ATTACHMENT = planned(shim={"routes": ["10.96.0.0/12"]}, mtu=1400, bcqueuelen=2000, bclim=-1)
POD, HOST = ATTACHMENT.sandbox, ATTACHMENT.host
assert POD.link


def told(wanted: View, observed: View) -> list[str]:
    return [str(change) for change in diff(wanted, observed)]


def test_from_nothing_the_pods_end_is_made_in_an_order_that_the_kernel_accepts() -> None:
    assert told(POD, View()) == [
        f"ip link add eth0 link eth0 address {MAC} mtu 1400 type macvlan mode bridge bcqueuelen 2000 bclim -1",
        "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0",
        "sysctl -w net.ipv4.conf.eth0.arp_notify=1",
        "sysctl -w net.ipv6.conf.eth0.ndisc_notify=1",
        "ip addr add 192.0.2.100/24 dev eth0",
        "ip addr add 2001:db8::100/64 dev eth0 nodad",
        "ip link set eth0 up",
        "ip neigh replace 192.0.2.10 lladdr 02:5e:ca:df:73:d4 dev eth0 nud permanent",
        "ip neigh replace 2001:db8::10 lladdr 02:5e:ca:df:73:d4 dev eth0 nud permanent",
        "ip route prepend 192.0.2.10/32 dev eth0 proto 174 scope link",
        "ip route prepend 2001:db8::10/128 dev eth0 proto 174",
        "ip route prepend default via 192.0.2.1 dev eth0",
        "ip route prepend default via 2001:db8::1 dev eth0",
        "ip route prepend 10.96.0.0/12 via 192.0.2.10 dev eth0 proto 174",
    ]


def test_from_nothing_the_hosts_end_is_made() -> None:
    assert told(replace(HOST, sysctls=()), View()) == [
        "ip link add shim2 link eth0 address 02:5e:ca:df:73:d4 mtu 1500 type macvlan mode bridge",
        "ip link set shim2 arp off multicast off up",
        "ip neigh replace 192.0.2.100 lladdr 02:42:c0:00:02:64 dev shim2 nud permanent",
        "ip neigh replace 2001:db8::100 lladdr 02:42:c0:00:02:64 dev shim2 nud permanent",
        "ip route prepend 192.0.2.100/32 dev shim2 proto 174 scope link src 192.0.2.10",
        "ip route prepend 2001:db8::100/128 dev shim2 proto 174 src 2001:db8::10",
    ]


def test_a_link_that_listens_to_some_macs_is_made_with_them() -> None:
    listening = planned(mode="source", sourceMacs=["02:00:00:00:00:02", MAC], linkType="macvtap", bclim=0).sandbox
    assert told(View(link=listening.link), View())[0] == (
        f"ip link add eth0 link eth0 address {MAC} mtu 1500 type macvtap mode source bclim 0 "
        f"macaddr set 02:00:00:00:00:02 {MAC}"
    )


@pytest.mark.parametrize(
    ("wanted", "found", "change"),
    [
        ((MAC,), (), f"ip link set eth0 type macvlan macaddr set {MAC} (it is unset)"),
        ((), (MAC,), f"ip link set eth0 type macvlan macaddr flush (it is {MAC})"),
        ((MAC,), (MAC,), ""),
    ],
)
def test_a_list_of_macs_is_set_as_a_whole(wanted: tuple[str, ...], found: tuple[str, ...], change: str) -> None:
    one = View(link=replace(POD.link, mode="source", source_macs=wanted))
    other = View(link=replace(POD.link, mode="source", source_macs=found))
    assert told(one, other) == ([change] if change else [])


@pytest.mark.parametrize("view", [POD, HOST])
def test_nothing_is_to_be_done_where_all_is_well(view: View) -> None:
    assert diff(view, view) == ()
    assert diff(View(), view) == ()


def test_what_others_added_is_no_difference() -> None:
    more = replace(
        POD,
        addresses=(*POD.addresses, InterfaceAddress(ip_address("192.0.2.200"), 24)),
        routes=(Route(ip_network("0.0.0.0/0"), ip_address("192.0.2.9")), *POD.routes, Route(ip_network("10.0.0.0/8"))),
        neighbours=(*POD.neighbours, Neighbour(ip_address("192.0.2.33"), MAC)),
    )
    assert diff(POD, more) == ()


def link(**changes: object) -> View:
    assert POD.link
    return replace(POD, link=replace(POD.link, **changes))


BROKEN: tuple[tuple[View, str], ...] = (
    (link(kind="veth"), "ip link set eth0 type macvlan (it is veth)"),
    (link(mode="private"), "ip link set eth0 mode bridge (it is private)"),
    (link(mac="02:00:00:00:00:01"), f"ip link set eth0 address {MAC} (it is 02:00:00:00:00:01)"),
    (link(mtu=1300), "ip link set eth0 mtu 1400 (it is 1300)"),
    (link(arp=False), "ip link set eth0 arp on (it is off)"),
    (link(bcqueuelen=1000), "ip link set eth0 bcqueuelen 2000 (it is 1000)"),
    (link(parent_index=9), "ip link set eth0 link if2 (it is if9)"),
    (
        replace(POD, neighbours=(Neighbour(ip_address("192.0.2.10"), MAC), *POD.neighbours[1:])),
        f"ip neigh replace 192.0.2.10 lladdr 02:5e:ca:df:73:d4 dev eth0 nud permanent (it is {MAC})",
    ),
    (
        replace(
            POD,
            routes=tuple(
                replace(route, via=ip_address("192.0.2.9")) if str(route.dst) == "0.0.0.0/0" else route
                for route in POD.routes
            ),
        ),
        "ip route replace default via 192.0.2.1 dev eth0 (it is default via 192.0.2.9 dev eth0)",
    ),
)


@pytest.mark.parametrize(("observed", "words"), BROKEN, ids=[words for _, words in BROKEN])
def test_what_differs_is_told_with_what_it_is_instead(observed: View, words: str) -> None:
    assert told(POD, observed) == [words]


def test_a_link_that_is_down_gets_its_sysctls_again_before_it_comes_up() -> None:
    changes = diff(POD, link(up=False))
    assert [type(change) for change in changes] == [SetSysctl, SetSysctl, SetSysctl, SetUp]


def test_bclim_belongs_to_the_parent_and_is_not_compared() -> None:
    assert diff(POD, link(bclim=5)) == ()


def test_a_child_of_a_macvlan_is_told_to_be_one_of_the_device_below() -> None:
    assert POD.link
    wanted = replace(POD, link=replace(POD.link, lower_index=7))
    assert diff(wanted, link(parent_index=7)) == ()
    assert told(wanted, POD) == ["ip link set eth0 link if7 (it is if2)"]


def test_what_is_there_of_ours_and_not_wanted_is_surplus() -> None:
    shim_mac = POD.neighbours[0].mac
    old_route = Route(ip_network("198.51.100.9/32"), scope=SCOPE_LINK, protocol=PROTO_SHIMLAN)
    old_entry = Neighbour(ip_address("198.51.100.9"), shim_mac)
    others = replace(
        POD,
        routes=(*POD.routes, Route(ip_network("198.51.100.8/32"), scope=SCOPE_LINK)),
        neighbours=(*POD.neighbours, Neighbour(ip_address("198.51.100.8"), MAC)),
    )
    assert surplus(POD, others) == surplus(POD, View(link=POD.link)) == surplus(View(), POD) == ()
    more = replace(others, routes=(*others.routes, old_route), neighbours=(*others.neighbours, old_entry))
    assert [str(removal) for removal in surplus(POD, more)] == [
        "ip route del 198.51.100.9/32 dev eth0 proto 174 scope link",
        "ip neigh del 198.51.100.9 dev eth0",
    ]


def test_a_route_of_ours_that_differs_is_corrected_and_not_surplus() -> None:
    altered = tuple(replace(r, via=ip_address("192.0.2.9")) if r.protocol == PROTO_SHIMLAN else r for r in POD.routes)
    assert surplus(POD, replace(POD, routes=altered)) == ()


ROUTES: tuple[tuple[Route, Route, bool], ...] = (
    (Route(ip_network("::/0")), Route(ip_network("::/0"), metric=1024), True),
    (Route(ip_network("::/0"), metric=5), Route(ip_network("::/0"), metric=1024), False),
    (Route(ip_network("0.0.0.0/0")), Route(ip_network("0.0.0.0/0"), table=254), True),
    (Route(ip_network("0.0.0.0/0"), table=100), Route(ip_network("0.0.0.0/0"), table=254), False),
    (Route(ip_network("10.0.0.0/8")), Route(ip_network("10.0.0.0/8"), src=ip_address("192.0.2.1")), True),
    (Route(ip_network("10.0.0.0/8"), src=ip_address("192.0.2.1")), Route(ip_network("10.0.0.0/8")), False),
    (Route(ip_network("10.0.0.0/8")), Route(ip_network("10.0.0.0/8"), mtu=1400, advmss=1360), True),
    (Route(ip_network("10.0.0.0/8"), mtu=1300), Route(ip_network("10.0.0.0/8"), mtu=1400), False),
    (Route(ip_network("10.0.0.0/8"), advmss=1300), Route(ip_network("10.0.0.0/8")), False),
)


@pytest.mark.parametrize(("wanted", "found", "same"), ROUTES)
def test_routes_are_compared_in_what_was_asked_for(wanted: Route, found: Route, same: bool) -> None:
    view = View(link=POD.link)
    assert (diff(replace(view, routes=(wanted,)), replace(view, routes=(found,))) == ()) is same


def test_a_route_is_told_with_all_of_its_options() -> None:
    route = Route(ip_network("10.0.0.0/8"), ip_address("192.0.2.1"), None, 200, 5, 100, 1400, 1360)
    assert str(SetRoute("eth0", route)) == (
        "ip route prepend 10.0.0.0/8 via 192.0.2.1 dev eth0 scope 200 metric 5 table 100 mtu 1400 advmss 1360"
    )


def test_what_is_not_set_is_told_as_unset() -> None:
    assert POD.link
    assert str(SetLink(POD.link, "bcqueuelen", "5", "")) == "ip link set eth0 bcqueuelen 5 (it is unset)"


# --- diff, then apply, leaves nothing to do --------------------------------------------------------------------------


def applied(view: View, change: Change) -> View:
    """What a kernel that does as it is told makes of a view."""
    match change:
        case AddLink(wanted):
            return View(link=replace(wanted, up=False))
        case SetUp(wanted):
            assert view.link
            return replace(view, link=replace(view.link, up=True, arp=wanted.arp))
        case SetLink(wanted, option, _, _):
            assert view.link
            field = {"link": "parent_index", "type": "kind", "address": "mac"}.get(option, option)
            return replace(view, link=replace(view.link, **{field: getattr(wanted, field)}))
        case AddAddress(_, address):
            return replace(view, addresses=(*view.addresses, address))
        case SetRoute(_, route, found):
            return replace(view, routes=(route, *(other for other in view.routes if other != found)))
        case ReplaceNeighbour(_, entry):
            kept = (other for other in view.neighbours if other.ip != entry.ip)
            return replace(view, neighbours=(*kept, entry))
    return view


ips = st.sampled_from([ip_address(f"192.0.2.{number}") for number in range(4)] + [ip_address("2001:db8::1")])
macs = st.sampled_from([MAC, "02:00:00:00:00:01"])
links = st.builds(
    lambda mac, mtu, mode, up, arp: Link("eth0", mac, mtu, 2, mode=mode, up=up, arp=arp),
    macs,
    st.sampled_from([1400, 1500]),
    st.sampled_from(["bridge", "vepa"]),
    st.booleans(),
    st.booleans(),
)
routes = st.builds(
    lambda ip, via, metric: Route(ip_network(ip), via, metric=metric), ips, st.none() | ips, st.sampled_from([0, 7])
)


def distinct(items: st.SearchStrategy[Route], key: object) -> st.SearchStrategy[list[Route]]:
    return st.lists(items, max_size=4, unique_by=key)  # type: ignore[arg-type]


views = st.builds(
    lambda link, addresses, routes, neighbours: View(link, tuple(addresses), tuple(routes), tuple(neighbours)),
    links,
    st.lists(st.builds(InterfaceAddress, ips, st.just(24)), max_size=3, unique=True),
    distinct(routes, lambda route: (route.dst, route.metric)),
    st.lists(st.builds(Neighbour, ips, macs), max_size=3, unique_by=lambda entry: entry.ip),
)


@given(views.map(lambda view: replace(view, link=replace(view.link, up=True))), st.just(View()) | views)
def test_what_was_changed_needs_no_change(wanted: View, observed: View) -> None:
    for change in diff(wanted, observed):
        observed = applied(observed, change)
    assert diff(wanted, observed) == ()
