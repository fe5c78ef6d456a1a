"""The agent's protocol: its bytes stay what they are, however they are cut, and nothing else gets through."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.agent import wire
from cni.agent.wire import Answer, AnswerDecoder, ProtocolError, Request, RequestDecoder

octets = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b""))
names = octets.map(lambda data: "CNI_" + os.fsdecode(data.replace(b"=", b"")))
variables = st.dictionaries(names, octets.map(os.fsdecode), max_size=6)
requests = st.builds(Request, variables, st.binary(max_size=300), st.none(), st.integers(0, 2**32 - 1))
answers = st.builds(Answer, st.integers(0, 2**32 - 1), st.binary(max_size=300))

REQUEST = Request({"CNI_COMMAND": "ADD", "CNI_ARGS": "A=B;C="}, b'{"name": "lan"}', netns_errno=2)
ANSWER = Answer(1, b'{"code": 4}\n')


def pack(number: int) -> bytes:
    return struct.pack("=I", number)


# What releases of either side say to each other; changing it takes another version in the magic.
REQUEST_BYTES = (
    b"shimlan\x01"
    + pack(2)
    + pack(0)
    + pack(32)
    + pack(15)
    + b"CNI_COMMAND=ADD\0CNI_ARGS=A=B;C=\0"
    + b'{"name": "lan"}'
)
ANSWER_BYTES = b"shimlan\x01" + pack(1) + pack(12) + b'{"code": 4}\n'


def test_the_bytes_stay_what_they_are() -> None:
    assert wire.encode_request(REQUEST) == REQUEST_BYTES
    assert wire.encode_answer(ANSWER) == ANSWER_BYTES


def read_request(*pieces: bytes, netns: int | None = None) -> Request:
    decoder = RequestDecoder()
    *first, last = pieces
    assert [decoder.feed(piece) for piece in first] == [False] * len(first)
    assert decoder.feed(last)
    assert decoder.held == sum(map(len, pieces))
    return decoder.request(netns)


def read_answer(*pieces: bytes) -> Answer:
    decoder = AnswerDecoder()
    *first, last = pieces
    assert [decoder.feed(piece) for piece in first] == [False] * len(first)
    assert decoder.feed(last)
    return decoder.answer()


@given(requests)
def test_a_request_is_read_as_it_was_written(request: Request) -> None:
    assert read_request(wire.encode_request(request)) == request


@given(answers)
def test_an_answer_is_read_as_it_was_written(answer: Answer) -> None:
    assert read_answer(wire.encode_answer(answer)) == answer


@pytest.mark.parametrize("cut", range(1, len(REQUEST_BYTES)))
def test_a_request_may_be_cut_anywhere(cut: int) -> None:
    assert read_request(REQUEST_BYTES[:cut], REQUEST_BYTES[cut:]) == REQUEST


@pytest.mark.parametrize("cut", range(1, len(ANSWER_BYTES)))
def test_an_answer_may_be_cut_anywhere(cut: int) -> None:
    assert read_answer(ANSWER_BYTES[:cut], ANSWER_BYTES[cut:]) == ANSWER


@given(requests)
def test_a_request_may_come_byte_by_byte(request: Request) -> None:
    data = wire.encode_request(request)
    assert read_request(*(data[i : i + 1] for i in range(len(data)))) == request


def test_the_descriptor_becomes_part_of_the_request() -> None:
    opened = Request({}, b"")
    assert read_request(wire.encode_request(opened), netns=7) == Request({}, b"", netns=7)


def test_of_a_variable_that_comes_twice_the_first_counts() -> None:
    assert read_request(request_with(b"CNI_IFNAME=eth0\0CNI_IFNAME=eth1\0")).environ == {"CNI_IFNAME": "eth0"}


def request_with(environ: bytes) -> bytes:
    return wire.REQUEST_HEADER.pack(wire.MAGIC, 0, 0, len(environ), 0) + environ


def header(magic: bytes = wire.MAGIC, *, reserved: int = 0, environ: int = 0, stdin: int = 0) -> bytes:
    return wire.REQUEST_HEADER.pack(magic, 0, reserved, environ, stdin)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "begins with b'GET / HT'"),
        (b"\0", "begins with"),
        (b"shimlan\x02", "version 2 of the protocol, and here is version 1"),
        (header(b"shimlan\xff"), "version 255"),
        (header(reserved=1), "reserved field is 1"),
        (header(environ=(128 << 10) + 1), "131073 bytes of environment"),
        (header(stdin=(4 << 20) + 2), "4194306 bytes of standard input"),
        (header(environ=2**32 - 1, stdin=2**32 - 1), "4294967295 bytes of environment"),
        (REQUEST_BYTES + b"x", "more than the 71 bytes"),
        (request_with(b"CNI_IFNAME=eth0"), "does not end with a NUL"),
        (request_with(b"CNI_IFNAME\0"), "'CNI_IFNAME', which is not of the form"),
        (request_with(b"PATH=/bin\0"), "'PATH=/bin', which is not of the form"),
        (request_with(b"CNI_IFNAME=eth0\0\0"), "'', which is not of the form"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        read_request(data)


def test_a_namespace_and_a_reason_for_having_none_exclude_each_other() -> None:
    with pytest.raises(ProtocolError, match="errno 2"):
        read_request(REQUEST_BYTES, netns=7)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.1 ", "begins with"),
        (wire.ANSWER_HEADER.pack(b"shimlan\x02", 0, 0), "version 2"),
        (wire.ANSWER_HEADER.pack(wire.MAGIC, 0, (16 << 20) + 1), "16777217 bytes of standard output"),
        (ANSWER_BYTES + b"x", "more than the 28 bytes"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        read_answer(data)


@pytest.mark.parametrize(("environ", "stdin"), [(128 << 10, 0), (0, (4 << 20) + 1)])
def test_the_largest_that_is_possible_is_taken(environ: int, stdin: int) -> None:
    value = "v" * (environ - len("CNI_X=\0"))
    request = Request({"CNI_X": value} if environ else {}, b" " * stdin)
    data = wire.encode_request(request)
    assert len(data) == 24 + environ + stdin
    assert read_request(data) == request


@given(st.binary(max_size=100), st.booleans())
def test_garbage_is_refused_or_awaits_more(data: bytes, starts_well: bool) -> None:
    decoder = RequestDecoder()
    try:
        if decoder.feed(wire.MAGIC + data if starts_well else data):
            decoder.request()
    except ProtocolError:
        pass
