"""The pure parts of keeping a host as it is wanted: what is mended, what is left, how often, after which time."""

from __future__ import annotations

import itertools
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.agent import mending
from cni.agent.backoff import FIRST_SECONDS, FREE, LONGEST_SECONDS, WINDOW_SECONDS, Backoff
from cni.agent.facts import reached
from cni.agent.mending import Step
from cni.attachment import PROTO_SHIMLAN, InterfaceAddress, Link, Neighbour, Reach, Route, View
from cni.diff import RemoveNeighbour, RemoveRoute, SetLink, SetRoute, SetUp
from cni.frozen import replace
from cni.sweep import Grace
from tests.unit.attachments import HOST, HOST6, MAC, planned

ATTACHMENT = planned(shim={"routes": ["10.96.0.0/12"]})
POD, HOST_END = ATTACHMENT.sandbox, ATTACHMENT.host
FOREIGN = "02:00:00:00:00:99"
CONNECTED = (
    Route(ip_network("192.0.2.0/24"), src=ip_address("192.0.2.100"), scope=253, protocol=2),
    Route(ip_network("2001:db8::/64"), metric=256, protocol=2),
)
WHOLE = replace(POD, routes=(*CONNECTED, *POD.routes))


def link(view: View) -> Link:
    assert view.link
    return view.link


def told(steps: tuple[Step, ...]) -> list[str]:
    return [str(step) for step in steps]


def without(view: View, dst: str) -> View:
    return replace(view, routes=tuple(route for route in view.routes if str(route.dst) != dst))


# --- a pod's end -----------------------------------------------------------------------------------------------------


def test_where_all_is_well_nothing_is_done() -> None:
    assert mending.pod_steps(POD, WHOLE, 1500) == ()
    assert mending.shim_steps(HOST_END, HOST_END.link) == ()
    assert mending.entry_steps(HOST_END, HOST_END) == ()


@pytest.mark.parametrize(("parent", "found", "steps"), [(9000, 1500, []), (1400, 1400, []), (1450, 1400, ["mtu 1450"])])
def test_the_mtu_is_what_was_recorded_or_the_parents_if_that_is_less(parent: int, found: int, steps: list[str]) -> None:
    observed = replace(WHOLE, link=replace(link(POD), mtu=found))
    assert told(mending.pod_steps(POD, observed, parent)) == [
        f"ip link set eth0 {step} (it is {found})" for step in steps
    ]


def test_a_link_that_is_made_anew_fits_the_parent() -> None:
    steps = mending.pod_steps(POD, View(), 1400)
    assert str(steps[0]).startswith(f"ip link add eth0 link eth0 address {MAC} mtu 1400 ")


def test_a_link_is_mended_under_the_name_that_it_has() -> None:
    observed = replace(without(WHOLE, "10.96.0.0/12"), link=replace(link(POD), name="lan0"))
    assert told(mending.pod_steps(POD, observed, 1500)) == [
        "ip route prepend 10.96.0.0/12 via 192.0.2.10 dev lan0 proto 174"
    ]


@pytest.mark.parametrize("up", [True, False])
def test_an_alias_is_set_together_with_up(up: bool) -> None:
    observed = replace(WHOLE, link=replace(link(POD), alias="mine", up=up))
    steps = mending.pod_steps(POD, observed, 1500)
    changes = mending.changed(steps)
    assert any(isinstance(change, SetUp) and change.link.alias == link(POD).alias for change in changes)
    assert any("alias" in step for step in told(steps)) == up


def test_routes_to_subnets_come_back_before_those_that_lead_through_them() -> None:
    steps = mending.pod_steps(POD, replace(POD, routes=()), 1500)
    assert told(steps)[:2] == [
        "ip route prepend 192.0.2.0/24 dev eth0 proto 2 scope link src 192.0.2.100",
        "ip route prepend 2001:db8::/64 dev eth0 proto 2 metric 256",
    ]
    assert mending.for_pod(steps).steps == steps


def test_addresses_bring_their_routes_to_subnets_along() -> None:
    steps = mending.pod_steps(POD, View(link=POD.link), 1500)
    assert not any("192.0.2.0/24" in step for step in told(steps) if "route" in step)


def test_what_of_ours_is_no_longer_wanted_is_taken_away() -> None:
    mac = POD.neighbours[0].mac
    old = Route(ip_network("192.0.2.20/32"), scope=253, protocol=PROTO_SHIMLAN)
    theirs = Route(ip_network("192.0.2.21/32"), scope=253)
    observed = replace(
        WHOLE,
        routes=(*WHOLE.routes, old, theirs),
        neighbours=(
            *WHOLE.neighbours,
            Neighbour(ip_address("192.0.2.20"), mac),
            Neighbour(ip_address("192.0.2.21"), FOREIGN),
        ),
    )
    steps = mending.pod_steps(POD, observed, 1500)
    assert told(steps) == [
        "ip route del 192.0.2.20/32 dev eth0 proto 174 scope link",
        "ip neigh del 192.0.2.20 dev eth0",
    ]
    assert mending.changed(steps) == ()
    assert mending.removed(steps, link(POD)).routes == (old,)


def test_what_ipam_asked_for_comes_back_unless_the_pod_has_something_else_there() -> None:
    lost = mending.pod_steps(POD, without(WHOLE, "0.0.0.0/0"), 1500)
    assert mending.for_pod(lost).steps == lost
    elsewhere = Route(ip_network("0.0.0.0/0"), ip_address("198.51.100.1"))
    assert mending.for_pod(lost, [replace(elsewhere, metric=50)]).steps == lost
    assert mending.for_pod(lost, [elsewhere]).steps == ()
    replaced = without(WHOLE, "0.0.0.0/0")
    replaced = replace(replaced, routes=(*replaced.routes, elsewhere))
    work = mending.for_pod(mending.pod_steps(POD, replaced, 1500))
    assert work.steps == ()
    assert [text.rpartition(": ")[2] for text in work.waiting] == ["the pod has chosen another route to there"]


def test_our_own_routes_come_back_whatever_else_there_is() -> None:
    lost = mending.pod_steps(POD, without(WHOLE, "10.96.0.0/12"), 1500)
    assert mending.for_pod(lost, [Route(ip_network("10.96.0.0/12"))]).steps == lost


def test_what_cannot_be_changed_is_only_told() -> None:
    observed = replace(WHOLE, link=replace(link(POD), mode="private"))
    work = mending.for_pod(mending.pod_steps(POD, observed, 1500))
    assert work.steps == ()
    assert work.waiting == (
        "ip link set eth0 mode bridge (it is private): cannot be changed any more: have the runtime make the pod anew",
    )


# --- the host's end --------------------------------------------------------------------------------------------------


def test_a_route_waits_for_its_source_and_its_neighbour_does_not() -> None:
    steps = mending.entry_steps(HOST_END, View(link=HOST_END.link))
    work = mending.for_host(steps, {HOST6.ip})
    assert [mending.kind(step) for step in work.steps] == ["neighbour", "neighbour", "route"]
    assert len(work.waiting) == 1
    assert work.waiting[0].endswith(": waits until the host has 192.0.2.10 (again)")
    assert mending.for_host(steps, {HOST.ip, HOST6.ip}).waiting == ()


def test_a_route_is_never_changed_in_place() -> None:
    wrong = replace(HOST_END.routes[0], src=ip_address("192.0.2.11"))
    steps = mending.entry_steps(HOST_END, replace(HOST_END, routes=(wrong, *HOST_END.routes[1:])))
    assert mending.removed(steps, link(HOST_END)).routes == (wrong,)
    (change,) = mending.changed(steps)
    assert isinstance(change, SetRoute)
    assert (change.route, change.found) == (HOST_END.routes[0], None)


@pytest.mark.parametrize("found", ["", FOREIGN])
def test_what_a_step_is_about_does_not_depend_on_what_is_there(found: str) -> None:
    entries = (Neighbour(entry.ip, found) for entry in HOST_END.neighbours) if found else ()
    steps = mending.entry_steps(HOST_END, replace(HOST_END, neighbours=tuple(entries)))
    assert [mending.subject(step) for step in steps] == [
        f"ip neigh replace {entry.ip} lladdr {MAC} dev shim2 nud permanent" for entry in HOST_END.neighbours
    ]


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (SetLink(link(POD), "mtu", "1500", "1400"), "link"),
        (SetUp(link(POD)), "link"),
        (RemoveRoute("eth0", CONNECTED[0]), "route"),
        (SetRoute("eth0", CONNECTED[0]), "route"),
        (RemoveNeighbour("eth0", Neighbour(HOST.ip, MAC)), "neighbour"),
    ],
)
def test_repairs_are_counted_by_kind(step: Step, kind: str) -> None:
    assert mending.kind(step) == kind


# --- which addresses of the host -------------------------------------------------------------------------------------

ELSEWHERE = (InterfaceAddress(ip_address("203.0.113.5"), 24), InterfaceAddress(ip_address("203.0.113.6"), 24))
LOCAL = InterfaceAddress(ip_address("169.254.20.10"), 32)
EVERYWHERE = (HOST, HOST6, *ELSEWHERE, LOCAL)
ALL, NAMED = Reach(True), Reach(False, (LOCAL.ip, HOST.ip))

REACHED: tuple[tuple[Reach, tuple[int, ...], tuple[InterfaceAddress, ...], tuple[InterfaceAddress, ...]], ...] = (
    (ALL, (4, 6), (HOST, HOST6), (HOST, HOST6)),
    (ALL, (4, 6), (HOST6,), (HOST6, ELSEWHERE[0])),
    (ALL, (6,), (HOST6,), (HOST6,)),
    (ALL, (4, 6), (), (ELSEWHERE[0],)),
    (NAMED, (4, 6), (HOST, HOST6), (LOCAL, HOST)),
    (Reach(True, (HOST.ip, LOCAL.ip)), (4,), (HOST,), (HOST, LOCAL)),
    (Reach(False, (ip_address("192.0.2.77"),)), (4,), (HOST,), ()),
)


@pytest.mark.parametrize(("reach", "families", "own", "expected"), REACHED)
def test_the_addresses_to_be_reached_are_chosen_as_for_a_new_pod(
    reach: Reach,
    families: tuple[int, ...],
    own: tuple[InterfaceAddress, ...],
    expected: tuple[InterfaceAddress, ...],
) -> None:
    assert reached(reach, families, own, ELSEWHERE, EVERYWHERE) == expected


# --- how often -------------------------------------------------------------------------------------------------------


def repairs(undone_every: float, seconds: float) -> list[float]:
    """When something is repaired that somebody undoes at once, or so many seconds after each repair."""
    backoff, times, now = Backoff(), [], 0.0
    while now <= seconds:
        if not backoff.wait("it", now):
            backoff.note("it", now)
            times.append(now)
            now += undone_every
        else:
            now += backoff.wait("it", now)
    return times


def test_the_first_repairs_come_at_once_and_then_ever_more_rarely() -> None:
    times = repairs(undone_every=0.5, seconds=2000)
    assert times[:FREE] == [0.0, 0.5, 1.0]
    waits = [later - earlier for earlier, later in itertools.pairwise(times[FREE - 1 :])]
    assert waits[:5] == [2.0, 4.0, 8.0, 16.0, 32.0]
    assert waits[-1] == LONGEST_SECONDS


def test_what_happens_rarely_never_waits() -> None:
    assert repairs(undone_every=31.0, seconds=3100) == [31.0 * number for number in range(101)]


def test_after_a_quiet_time_it_is_as_the_first_time() -> None:
    backoff = Backoff()
    for now in range(FREE):
        backoff.note("it", now)
    last = FREE - 1.0
    assert backoff.wait("it", last) == FIRST_SECONDS
    assert backoff.note("it", last + WINDOW_SECONDS + 1) is False
    assert backoff.wait("it", last + WINDOW_SECONDS + 1) == 0.0


def test_that_it_looks_like_a_fight_is_told_once() -> None:
    backoff = Backoff()
    assert [backoff.note("it", now) for now in (0.0, 1.0, 2.0, 4.0, 8.0)] == [False, False, True, False, False]
    assert [backoff.note("other", 8.0), backoff.wait("other", 8.0)] == [False, 0.0]


def test_what_is_old_is_let_go() -> None:
    backoff = Backoff()
    for now in range(FREE):
        backoff.note("it", now)
    backoff.forget_old(WINDOW_SECONDS)
    assert backoff.wait("it", FREE) > 0
    backoff.forget_old(10 * WINDOW_SECONDS)
    assert backoff.wait("it", FREE) == 0.0


@given(st.floats(0.001, 20.0))
def test_a_fight_costs_few_repairs_and_never_ends_them(undone_every: float) -> None:
    hour = repairs(undone_every, 3600)
    assert len(hour) <= FREE + 8 + 3600 / LONGEST_SECONDS
    assert all(later - earlier <= LONGEST_SECONDS + 20.0 for earlier, later in itertools.pairwise(hour))


# --- after which time ------------------------------------------------------------------------------------------------


class Time:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def grace(time: Time) -> Grace:
    return Grace(60.0, time)


def test_it_takes_two_looks_that_are_far_enough_apart(grace: Grace, time: Time) -> None:
    assert not grace.is_over("it")
    time.now += 59.0
    assert not grace.is_over("it")
    assert grace.next_end() == 1060.0
    time.now += 1.0
    assert grace.is_over("it")
    assert not grace.is_over("other")


def test_what_was_well_meanwhile_begins_anew(grace: Grace, time: Time) -> None:
    grace.is_over("it")
    grace.spare("it")
    assert grace.next_end() == float("inf")
    time.now += 60.0
    assert not grace.is_over("it")


def test_what_a_look_at_everything_did_not_find_is_well(grace: Grace, time: Time) -> None:
    grace.is_over("seen before")
    time.now += 30.0
    began = time.now
    grace.is_over("seen now")
    grace.looked(began)
    time.now += 60.0
    assert not grace.is_over("seen before")
    assert grace.is_over("seen now")


def test_what_could_not_be_cleared_has_another_such_time(grace: Grace, time: Time) -> None:
    grace.is_over("it")
    time.now += 60.0
    assert grace.is_over("it")
    grace.looked(time.now)
    assert grace.next_end() == time.now + 60.0
    assert not grace.is_over("it")
