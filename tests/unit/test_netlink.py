"""Netlink's framing: what is packed can be unpacked, and what is damaged does no harm."""

from __future__ import annotations

import errno
import struct
from concurrent.futures import ThreadPoolExecutor
from socket import if_nameindex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import netlink
from cni.netlink import (
    Message,
    NetlinkError,
    Socket,
    attribute,
    attribute_map,
    attributes,
    nest,
    text,
    u32,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, NO_SUCH_REQUEST = 16, 17, 18, 4000
IFLA_IFNAME = 3
LINK = struct.Struct("=BxHiII")

pairs = st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), max_size=6)


@given(pairs, st.binary(max_size=16).filter(lambda data: len(data) % 4 == 0))
def test_attributes_are_read_as_they_were_packed(pairs: list[tuple[int, bytes]], header: bytes) -> None:
    packed = header + b"".join(attribute(kind, payload) for kind, payload in pairs)
    assert len(packed) % 4 == 0
    assert list(attributes(packed, len(header))) == pairs
    assert attribute_map(packed, len(header)) == dict(pairs)


@given(st.binary(max_size=200))
def test_damaged_attributes_end_the_reading(data: bytes) -> None:
    assert sum(len(payload) + 4 for _, payload in attributes(data)) <= len(data) + 3


def test_nests_numbers_and_texts() -> None:
    nested = nest(5, u32(1, 7), text(2, "eth0"))
    ((kind, payload),) = attributes(nested)
    assert kind == 5
    assert attribute_map(payload) == {1: struct.pack("=I", 7), 2: b"eth0\0"}


def link(name: str) -> Message:
    return Message(RTM_GETLINK, 0, LINK.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name))


def test_a_question_is_answered() -> None:
    with Socket() as socket:
        assert attribute_map(socket.get(link("lo")), LINK.size)[IFLA_IFNAME] == b"lo\0"


def test_a_question_without_an_answer_raises() -> None:
    with Socket() as socket, pytest.raises(NetlinkError) as refusal:
        socket.get(link("nosuchlink"))
    assert refusal.value.errno == errno.ENODEV


def test_a_dump_gives_all_answers() -> None:
    with Socket() as socket:
        answers = socket.dump(Message(RTM_GETLINK, 0, LINK.pack(0, 0, 0, 0, 0)))
    names = [attribute_map(body, LINK.size)[IFLA_IFNAME] for _, body in answers]
    assert b"lo\0" in names
    assert {kind for kind, _ in answers} == {RTM_NEWLINK}


def test_a_dump_that_is_refused_raises() -> None:
    with Socket() as socket, pytest.raises(NetlinkError) as refusal:
        socket.dump(Message(NO_SUCH_REQUEST, 0, LINK.pack(0, 0, 0, 0, 0)))
    assert refusal.value.errno == errno.EOPNOTSUPP


def test_of_a_batch_every_answer_counts() -> None:
    nobody = Message(RTM_DELLINK, 0, LINK.pack(0, 0, 0x7FFFFFFF, 0, 0))
    broken = Message(NO_SUCH_REQUEST, 0, LINK.pack(0, 0, 0, 0, 0))
    with Socket() as socket:
        assert socket.request([]) == []
        answers = socket.request([nobody, broken, nobody])
        after = socket.get(link("lo"))
    codes = [answer.errno for answer in answers if answer]
    assert codes in ([errno.ENODEV, errno.EOPNOTSUPP, errno.ENODEV], [errno.EPERM] * 3)  # the latter for non-root
    assert after


def test_a_change_and_a_question_about_it_go_together() -> None:
    nobody = Message(RTM_DELLINK, 0, LINK.pack(0, 0, 0x7FFFFFFF, 0, 0))
    with Socket() as socket:
        refusal, body = socket.change_and_get(nobody, link("lo"))
        assert refusal
        assert refusal.errno in (errno.ENODEV, errno.EPERM)  # the latter for non-root
        assert attribute_map(body, LINK.size)[IFLA_IFNAME] == b"lo\0"
        with pytest.raises(NetlinkError) as unanswered:
            socket.change_and_get(nobody, link("nosuchlink"))
        assert unanswered.value.errno == errno.ENODEV
        assert socket.get(link("lo"))


def test_threads_do_not_read_what_others_have_received() -> None:
    def asked(name: str) -> set[bytes]:
        with Socket() as socket:
            return {
                attribute_map(body, LINK.size)[IFLA_IFNAME] for body in (socket.get(link(name)) for _ in range(200))
            }

    names = [name for _, name in if_nameindex()]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(asked, names * 8)) == [{name.encode() + b"\0"} for name in names * 8]
    assert 0 < len(netlink._buffers) <= netlink.MOST_BUFFERS
