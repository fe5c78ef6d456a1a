"""What events mean: tables of messages as the kernel sends them, and what must never happen with any message."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.agent import sieve
from cni.agent.events import CLEAN, HOST, ORDINARY_STATES, REASONS_TOLD, RTM_DELADDR, Dirty, Picture, dirty_of
from cni.attachment import PROTO_BOOT, PROTO_SHIMLAN, SCOPE_LINK, SHIM_ALIAS
from cni.netlink import HEADER, NLM_F_CREATE, NLM_F_REPLACE, attribute, text, u32
from cni.rtnetlink import (
    ADDRESS_HEADER,
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    IFA_ADDRESS,
    IFF_NOARP,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_EVENT,
    IFLA_EVENT_FEATURES,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_MASTER,
    IFLA_MTU,
    LINK_HEADER,
    NDA_DST,
    NDA_LLADDR,
    NEIGHBOUR_HEADER,
    NUD_PERMANENT,
    ROUTE_HEADER,
    RTA_DST,
    RTA_OIF,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)

POD = "4:4026532001"
ETH0, SHIM, VETH = 2, 3, 9  # indexes on the host; in the pod, ETH0 is the child of ours
RUNNING = 0x40
REACHABLE, FAILED, NOARP = 0x02, 0x20, 0x40  # states of neighbours, include/uapi/linux/neighbour.h
RTM_DELNEIGH = 29
IFLA_STATS64 = 23
PROTO_KERNEL, PROTO_BIRD = 2, 12
NOTIFY_PEERS = 4  # IFLA_EVENT_NOTIFY_PEERS
SOMEBODY = 4711  # the port of a socket that asked for the change


class Event(NamedTuple):
    """A message as `Picture.reason` takes it, behind the origin."""

    kind: int
    flags: int
    port: int
    body: bytes

    def packed(self) -> bytes:
        """As it is on the wire."""
        return HEADER.pack(HEADER.size + len(self.body), self.kind, self.flags, 0, self.port) + self.body


def link(
    index: int = ETH0,
    name: str = "eth0",
    alias: str = "",
    kind: int = RTM_NEWLINK,
    family: int = AF_UNSPEC,
    flags: int = IFF_UP,
    mtu: int = 1500,
    mac: str = "02:00:00:00:00:01",
    master: int = 0,
    packets: int = 0,
    event: int = 0,
) -> Event:
    body = LINK_HEADER.pack(family, 1, index, flags, 0) + text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu)
    body += u32(IFLA_MASTER, master) if master else b""
    body += text(IFLA_IFALIAS, alias) if alias else b""
    body += u32(IFLA_EVENT, event) if event else b""
    body += attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    return Event(kind, 0, 0, body + attribute(IFLA_STATS64, struct.pack("=24Q", *[packets] * 24)))


def shim(**changes: Any) -> Event:
    usual = {"index": SHIM, "name": "shim2", "alias": f"{SHIM_ALIAS}eth0", "flags": IFF_UP | IFF_NOARP}
    return link(**{**usual, **changes})


def child(**changes: Any) -> Event:
    return link(**{"alias": "shimlan lan/c/eth0", **changes})


def address(ip: str, index: int = ETH0, kind: int = RTM_NEWADDR, scope: int = 0) -> Event:
    packed = ip_address(ip).packed
    return Event(kind, 0, 0, ADDRESS_HEADER.pack(family(packed), 24, 0, scope, index) + attribute(IFA_ADDRESS, packed))


def route(
    dst: str, prefixlen: int, protocol: int, kind: int = RTM_NEWROUTE, flags: int = NLM_F_CREATE, index: int = ETH0
) -> Event:
    packed = ip_address(dst).packed
    header = ROUTE_HEADER.pack(family(packed), prefixlen, 0, 0, 254, protocol, 0, 1, 0)
    return Event(kind, flags, SOMEBODY, header + attribute(RTA_DST, packed) + u32(RTA_OIF, index))


def neighbour(
    ip: str, state: int, index: int = SHIM, mac: str = "02:42:c0:00:02:64", kind: int = RTM_NEWNEIGH, port: int = 0
) -> Event:
    packed = ip_address(ip).packed
    body = NEIGHBOUR_HEADER.pack(family(packed), index, state, 0, 0) + attribute(NDA_DST, packed)
    body += attribute(NDA_LLADDR, bytes.fromhex(mac.replace(":", ""))) if mac else b""
    return Event(kind, 0, port, body)


def family(packed: bytes) -> int:
    return AF_INET if len(packed) == 4 else AF_INET6


def replaced(dst: str, prefixlen: int, protocol: int) -> Event:
    return route(dst, prefixlen, protocol, flags=NLM_F_REPLACE)


def deleted(dst: str, prefixlen: int, protocol: int, index: int = ETH0) -> Event:
    return route(dst, prefixlen, protocol, RTM_DELROUTE, flags=0, index=index)


def picture() -> Picture:
    """A host with a parent, its shim and a pod behind it that has one interface of ours and one of somebody else."""
    known = Picture()
    for event in (link(), shim(), link(VETH, "veth1"), neighbour("192.0.2.100", NUD_PERMANENT)):
        known.reason(HOST, *event)
    known.reason(POD, *child())
    known.reason(POD, *link(VETH, "docker0"))
    return known


ON_THE_HOST = [
    (link(packets=7), ""),
    (link(flags=IFF_UP | RUNNING), ""),
    (link(flags=0), "link eth0 changed: flags"),
    (link(mtu=1400), "link eth0 changed: mtu"),
    (link(name="lan0"), "link lan0 changed: name"),
    (link(master=5), "link eth0 changed: master"),
    (link(family=AF_BRIDGE, master=5), ""),
    (link(kind=RTM_DELLINK), "link eth0 deleted"),
    (link(kind=RTM_DELLINK, family=AF_BRIDGE), ""),
    (link(event=IFLA_EVENT_FEATURES), "features of link eth0 changed"),
    (link(event=NOTIFY_PEERS), ""),
    (link(7, "eth1"), "link eth1 not seen before"),
    (shim(flags=IFF_NOARP), "link shim2 changed: flags"),
    (shim(flags=IFF_UP), "link shim2 changed: flags"),
    (shim(mac="02:00:00:00:00:02"), "link shim2 changed: address"),
    (shim(alias=""), "link shim2 changed: alias"),
    (shim(kind=RTM_DELLINK), "link shim2 deleted"),
    (address("192.0.2.10"), "address 192.0.2.10 added or changed"),
    (address("192.0.2.10", kind=RTM_DELADDR), "address 192.0.2.10 deleted"),
    (address("2001:db8::10", VETH), "address 2001:db8::10 added or changed"),
    (address("fe80::1", scope=SCOPE_LINK), ""),
    (address("fe80::1", scope=SCOPE_LINK, kind=RTM_DELADDR), ""),
    (route("192.0.2.101", 32, PROTO_SHIMLAN), ""),
    (deleted("192.0.2.100", 32, PROTO_SHIMLAN), "route 192.0.2.100/32 deleted"),
    (deleted("2001:db8::100", 128, PROTO_SHIMLAN), "route 2001:db8::100/128 deleted"),
    (deleted("192.0.2.0", 24, PROTO_KERNEL), ""),
    (deleted("192.0.2.100", 32, PROTO_BIRD), ""),
    (replaced("192.0.2.100", 32, PROTO_BIRD), "route 192.0.2.100/32 replaced"),
    (replaced("2001:db8::100", 128, PROTO_BOOT), "route 2001:db8::100/128 replaced"),
    (replaced("198.51.100.0", 24, PROTO_BIRD), ""),
    (neighbour("192.0.2.101", NUD_PERMANENT, port=SOMEBODY), ""),
    (neighbour("192.0.2.100", NUD_PERMANENT, port=SOMEBODY), ""),
    (neighbour("192.0.2.100", NUD_PERMANENT, mac="02:00:00:00:00:02", port=SOMEBODY), "neighbour 192.0.2.100 changed"),
    (neighbour("192.0.2.100", REACHABLE, port=SOMEBODY), "neighbour 192.0.2.100 changed"),
    (neighbour("192.0.2.100", REACHABLE), ""),
    (neighbour("192.0.2.100", FAILED, mac=""), "neighbour 192.0.2.100 changed"),
    (neighbour("192.0.2.100", FAILED, mac="", kind=RTM_DELNEIGH), ""),
    (neighbour("192.0.2.102", FAILED, mac=""), ""),
    (neighbour("ff02::1", NOARP), ""),
    (neighbour("192.0.2.1", REACHABLE, index=ETH0), ""),
    (neighbour("192.0.2.1", FAILED, index=ETH0, mac="", port=SOMEBODY), ""),
]

IN_A_POD = [
    (child(packets=7), ""),
    (child(flags=IFF_UP | RUNNING), ""),
    (child(flags=0), "link eth0 changed: flags"),
    (child(event=IFLA_EVENT_FEATURES), ""),
    (child(mtu=1400), "link eth0 changed: mtu"),
    (child(name="net0"), "link net0 changed: name"),
    (child(alias=""), "link eth0 changed: alias"),
    (child(kind=RTM_DELLINK), "link eth0 deleted"),
    (child(index=7, name="net1"), "link net1 not seen before"),
    (link(VETH, "docker0", mtu=1400), ""),
    (link(VETH, "docker0", kind=RTM_DELLINK), ""),
    (link(7, "veth1"), ""),
    (address("192.0.2.100"), ""),
    (address("192.0.2.100", kind=RTM_DELADDR), "address 192.0.2.100 deleted"),
    (address("172.17.0.1", VETH, kind=RTM_DELADDR), ""),
    (address("fe80::1", kind=RTM_DELADDR, scope=SCOPE_LINK), ""),
    (route("192.0.2.77", 32, PROTO_BOOT), ""),
    (deleted("192.0.2.10", 32, PROTO_SHIMLAN), "route 192.0.2.10/32 deleted"),
    (deleted("198.51.100.0", 24, PROTO_BOOT), "route 198.51.100.0/24 deleted"),
    (deleted("192.0.2.0", 24, PROTO_KERNEL), ""),
    (deleted("172.17.0.0", 16, PROTO_BOOT, index=VETH), ""),
    (replaced("198.51.100.0", 24, PROTO_BOOT), "route 198.51.100.0/24 replaced"),
    (neighbour("192.0.2.1", REACHABLE, index=ETH0), ""),
    (neighbour("192.0.2.77", FAILED, index=ETH0, mac=""), ""),
    (neighbour("192.0.2.10", FAILED, index=ETH0, mac="", port=SOMEBODY), "neighbour 192.0.2.10 changed"),
    (neighbour("192.0.2.10", NUD_PERMANENT, index=ETH0, port=SOMEBODY), "neighbour 192.0.2.10 changed"),
    (neighbour("172.17.0.2", FAILED, index=VETH, mac="", port=SOMEBODY), ""),
]


@pytest.mark.parametrize(("event", "reason"), ON_THE_HOST)
def test_what_an_event_of_the_host_means(event: Event, reason: str) -> None:
    assert picture().reason(HOST, *event) == reason


@pytest.mark.parametrize(("event", "reason"), IN_A_POD)
def test_what_an_event_of_a_pod_means(event: Event, reason: str) -> None:
    assert picture().reason(POD, *event) == reason


@pytest.mark.parametrize("origin", [HOST, POD])
@pytest.mark.parametrize("event", [child(mtu=1400), child(flags=0), child(index=7, name="net1")])
def test_what_was_told_is_known(origin: str, event: Event) -> None:
    known = picture()
    assert known.reason(origin, *event)
    assert not known.reason(origin, *event)


def test_every_change_back_and_forth_counts() -> None:
    known = picture()
    assert all(known.reason(HOST, *shim(flags=flags)) for flags in (0, IFF_UP, 0, IFF_UP))


def test_of_a_pod_that_was_not_heard_before_anything_may_be_ours() -> None:
    known = Picture()
    assert known.reason(POD, *address("192.0.2.100", kind=RTM_DELADDR))
    assert known.reason(POD, *child())
    assert not known.reason(POD, *link(VETH, "docker0"))


def test_what_is_forgotten_is_new_again() -> None:
    known = picture()
    known.forget(POD)
    assert known.reason(POD, *child())
    known.forget(HOST)
    assert known.reason(HOST, *link())
    assert not known.reason(HOST, *neighbour("192.0.2.100", FAILED, mac=""))


def test_a_shim_takes_its_neighbours_along() -> None:
    known = picture()
    known.reason(HOST, *shim(kind=RTM_DELLINK))
    known.reason(HOST, *shim())
    assert not known.reason(HOST, *neighbour("192.0.2.100", NUD_PERMANENT, mac="02:00:00:00:00:02"))


# --- any message ---------------------------------------------------------------------------------------------------

KINDS = [RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEIGH, RTM_DELNEIGH]


@given(st.sampled_from([HOST, POD]), st.sampled_from([*KINDS, 0, 90]), st.integers(0, 0xFFFF), st.binary(max_size=80))
def test_garbage_does_no_harm(origin: str, kind: int, flags: int, body: bytes) -> None:
    known = picture()
    known.reason(origin, kind, flags, 0, body)
    assert known.reason(origin, *child(mtu=1234)).startswith("link eth0 ")


@given(st.sampled_from([HOST, POD]), st.sampled_from([event for event, _ in ON_THE_HOST + IN_A_POD]), st.data())
def test_a_message_cut_short_does_no_harm(origin: str, event: Event, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(event.body)))
    assert isinstance(picture().reason(origin, event.kind, event.flags, event.port, event.body[:cut]), str)


def test_what_ends_within_its_header_counts() -> None:
    for kind in set(KINDS) - {RTM_DELNEIGH}:
        assert picture().reason(HOST, kind, NLM_F_REPLACE, 0, b"\0") == f"a message of type {kind} that ends too early"


# --- what the kernel keeps back --------------------------------------------------------------------------------------


class Sieve:
    """A pair of sockets with the filter between them."""

    def __init__(self) -> None:
        self._sender, self._receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._receiver.setblocking(False)
        sieve.attach(self._receiver)

    def keeps(self, event: Event) -> bool:
        """Whether an event comes through, and whole."""
        self._sender.send(event.packed())
        try:
            return self._receiver.recv(1 << 16) == event.packed()
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Sieve]:
    pair = Sieve()
    yield pair
    pair.close()


NOT_WORTH_WAKING = [
    route("192.0.2.100", 32, PROTO_SHIMLAN),
    deleted("192.0.2.0", 24, PROTO_KERNEL),
    address("fe80::1", scope=SCOPE_LINK),
    address("fe80::1", scope=SCOPE_LINK, kind=RTM_DELADDR),
    *(neighbour("192.0.2.1", 1 << bit, index=ETH0) for bit in range(8) if 1 << bit & ORDINARY_STATES),
    neighbour("192.0.2.1", REACHABLE, index=ETH0, kind=RTM_DELNEIGH),
]


@pytest.mark.parametrize("event", NOT_WORTH_WAKING)
def test_ordinary_events_are_kept_back(kernel: Sieve, event: Event) -> None:
    assert not kernel.keeps(event)


@pytest.mark.parametrize(
    ("origin", "event"),
    [(HOST, event) for event, reason in ON_THE_HOST if reason] + [(POD, event) for event, reason in IN_A_POD if reason],
)
def test_what_counts_comes_through(kernel: Sieve, origin: str, event: Event) -> None:
    assert kernel.keeps(event)


ADDRESSES = st.sampled_from(["192.0.2.100", "192.0.2.1", "2001:db8::100"])
INDEXES = st.sampled_from([ETH0, SHIM, VETH, 7])
EVENTS = st.one_of(
    st.builds(address, ADDRESSES, INDEXES, st.sampled_from([RTM_NEWADDR, RTM_DELADDR]), st.sampled_from([0, 253, 254])),
    st.builds(
        route,
        ADDRESSES,
        st.sampled_from([0, 24, 32, 128]),
        st.sampled_from([PROTO_KERNEL, PROTO_BOOT, PROTO_BIRD, PROTO_SHIMLAN]),
        st.sampled_from([RTM_NEWROUTE, RTM_DELROUTE]),
        st.integers(0, 0xFFFF),
        INDEXES,
    ),
    st.builds(
        neighbour,
        ADDRESSES,
        st.integers(0, 0xFF),
        INDEXES,
        st.sampled_from(["", "02:42:c0:00:02:64", "02:00:00:00:00:02"]),
        st.sampled_from([RTM_NEWNEIGH, RTM_DELNEIGH]),
        st.sampled_from([0, SOMEBODY]),
    ),
    st.builds(child, flags=st.integers(0, 0xFFFF), kind=st.sampled_from([RTM_NEWLINK, RTM_DELLINK])),
)


@settings(max_examples=500)
@given(event=EVENTS, origin=st.sampled_from([HOST, POD]))
def test_what_is_kept_back_has_no_reason(kernel: Sieve, event: Event, origin: str) -> None:
    if picture().reason(origin, *event):
        assert kernel.keeps(event)


# --- what is dirty ---------------------------------------------------------------------------------------------------


def test_reasons_become_what_is_dirty() -> None:
    dirty = dirty_of([(HOST, "link shim2 deleted"), (POD, "route default deleted"), (HOST, "address deleted")])
    assert dirty == Dirty(
        host=True,
        pods=frozenset({POD}),
        reasons=("host: link shim2 deleted", f"{POD}: route default deleted", "host: address deleted"),
    )
    assert dirty_of([]) == CLEAN


def test_two_become_one() -> None:
    one = Dirty(host=True, pods=frozenset({"1:1"}), reasons=("a", "b"))
    other = Dirty(everything=True, pods=frozenset({"1:2"}), gone=frozenset({"1:3"}), reasons=("b", "c"))
    assert one | other == Dirty(True, True, frozenset({"1:1", "1:2"}), frozenset({"1:3"}), ("a", "b", "c"))
    assert one | CLEAN == CLEAN | one == one


@pytest.mark.parametrize(
    "dirty", [Dirty(everything=True), Dirty(host=True), Dirty(pods=frozenset({POD})), Dirty(gone=frozenset({POD}))]
)
def test_it_is_true_when_there_is_anything(dirty: Dirty) -> None:
    assert dirty
    assert not CLEAN


def test_not_every_reason_is_told() -> None:
    many = dirty_of((HOST, f"route {number} deleted") for number in range(1000))
    assert len(many.reasons) == len((many | many).reasons) == REASONS_TOLD
