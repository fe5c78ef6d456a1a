"""Netlink on the wire: messages, attributes, and a socket that sends a batch and collects every answer.

Knows how netlink frames its messages (man 7 netlink, include/uapi/linux/netlink.h), not what they mean: links, routes
and rules are the business of `cni.kernel` and `cni.nftables`. pyroute2 would do the same in a tenth of a second of
import time, which is ten times what an ADD may take (docs/decisions/0002-raw-netlink.md).
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
from contextlib import contextmanager

from cni.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_ACK_TLVS = 0x200
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
NLMSGERR_ATTR_MSG = 1

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_DROP_MEMBERSHIP = 2
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h
COOKIE = struct.Struct("=Q")

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
U32 = struct.Struct("=HHI")  # an attribute that holds a number
UNPACK_ATTRIBUTE = ATTRIBUTE.unpack_from
RECEIVE_BYTES = (
    1 << 16
)  # more than the kernel puts into one (netlink_dump in af_netlink.c); 128 KiB and more cost a mmap(2)
MOST_BUFFERS = 2  # that are kept; more threads than that seldom receive at the same time
# To take one for each datagram and shrink it would leave a process that stays with a heap full of holes.
_buffers: list[memoryview] = []  # those that nobody is receiving into
DUMP_ATTEMPTS = 5
MESSAGES_AT_ONCE = 64


class NetlinkError(OSError):
    """The kernel's refusal of one message: errno, and the extended-ack text where there is one."""


@frozen
class Message:
    """A request: message type, flags besides NLM_F_REQUEST, and the body behind the header."""

    kind: int
    flags: int
    body: bytes


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def u32(kind: int, value: int) -> bytes:
    """An attribute holding a 32-bit number in host order."""
    return U32.pack(U32.size, kind, value)


def text(kind: int, value: str) -> bytes:
    """An attribute holding a NUL-terminated string."""
    return attribute(kind, os.fsencode(value) + b"\0")


def nest(kind: int, *attributes: bytes) -> bytes:
    """An attribute holding attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """The (type, payload) pairs from `offset` on; stops at a malformed length."""
    found = []
    end = len(data) - 3
    while offset < end:
        length, kind = UNPACK_ATTRIBUTE(data, offset)
        if length < 4:
            break
        found.append((kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


def attribute_map(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from `offset` on by type; of a repeated type the last."""
    return dict(attributes(data, offset))


class Socket:
    """A netlink socket of the network namespace in which it was opened; it stays there whatever its owner enters."""

    def __init__(self, protocol: int = NETLINK_ROUTE, groups: int = 0) -> None:
        """Open and bind; `groups` is the bit mask of multicast groups to hear."""
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            if protocol == NETLINK_ROUTE:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
            self._socket.bind((0, groups))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._socket.fileno()

    def netns_cookie(self) -> int:
        """The number that no other namespace has had since the machine started; 0 from kernels before 5.14."""
        try:
            (cookie,) = COOKIE.unpack(self._socket.getsockopt(_socket.SOL_SOCKET, SO_NETNS_COOKIE, COOKIE.size))
        except OSError:
            return 0
        return int(cookie)

    @contextmanager
    def hearing(self, group: int) -> Iterator[None]:
        """Hear a multicast group for the time of a block; what was heard and not received by then is dropped.

        Raises NetlinkError when the kernel is short of memory.
        """
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            raise NetlinkError(error.errno, error.strerror) from error
        try:
            yield
        finally:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, group)
            self._drop()

    def _drop(self) -> None:
        while True:
            try:
                self._socket.recv(1, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # too much was heard
                    raise

    def request(self, messages: Sequence[Message]) -> list[NetlinkError | None]:
        """Send all, and wait until all are done; for each None, or the kernel's refusal.

        The kernel goes on with the rest of a batch after an error, so every answer counts. All answers to one datagram
        have to fit into the socket's buffer, hence several datagrams for many messages.
        """
        answers: list[NetlinkError | None] = []
        for start in range(0, len(messages), MESSAGES_AT_ONCE):
            answers += self._request(messages[start : start + MESSAGES_AT_ONCE])
        return answers

    def _request(self, messages: Sequence[Message]) -> list[NetlinkError | None]:
        # Refusals come anyway, and before the answer to the last message: nobody needs to be told of each success.
        last = messages[-1]
        first = self._send([*messages[:-1], _to_be_answered(last)])
        answers: list[NetlinkError | None] = [None] * len(messages)
        while True:
            for kind, flags, sequence, body in self.receive():
                number = sequence - first
                if kind == NLMSG_ERROR and 0 <= number < len(messages):
                    answers[number] = refusal_of(body, flags)
                    if number == len(messages) - 1:
                        return answers

    def batch(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        """An nfnetlink transaction (all or nothing) between its begin and end; raises the first refusal."""
        first = self._send([begin, *map(_to_be_answered, messages), end])
        waiting = len(messages)
        while waiting:
            for kind, flags, sequence, body in self.receive():
                if kind == NLMSG_ERROR and sequence >= first:
                    if refusal := refusal_of(body, flags):
                        raise refusal
                    waiting -= 1

    def get(self, message: Message) -> bytes:
        """The body of the one answer to a request; raises NetlinkError (ENODEV, ENOENT...) when there is none."""
        return self._answer(self._send([message]))[1]

    def change_and_get(self, change: Message, question: Message) -> tuple[NetlinkError | None, bytes]:
        """Send a change and a question at once; the refusal of the change, None if it is done, and the answer's body.

        Raises NetlinkError when there is no answer.
        """
        return self._answer(self._send([change, question]) + 1)

    def _answer(self, number: int) -> tuple[NetlinkError | None, bytes]:
        """The refusal of the message before that one, if any comes, and the body of the one answer to that one."""
        refusal = None
        while True:
            for kind, flags, sequence, body in self.receive():
                if sequence == number - 1 and kind == NLMSG_ERROR:
                    refusal = refusal_of(body, flags)
                elif sequence == number:
                    if kind == NLMSG_ERROR:
                        raise refusal_of(body, flags) or NetlinkError(0, "no answer")
                    return refusal, body

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """All (type, body) answers to a dump; repeated when the kernel says that it was interrupted by a change."""
        for _ in range(DUMP_ATTEMPTS):
            answers, interrupted = self._dump_once(message)
            if not interrupted:
                return answers
        raise NetlinkError(errno.EINTR, f"changes interrupted it {DUMP_ATTEMPTS} times")

    def _dump_once(self, message: Message) -> tuple[list[tuple[int, bytes]], bool]:
        first = self._send([Message(message.kind, message.flags | NLM_F_DUMP, message.body)])
        answers: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for kind, flags, sequence, body in self.receive():
                if sequence != first:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_DONE:
                    # With NETLINK_GET_STRICT_CHK what is wrong with the question is told here (netlink_dump_done).
                    if refusal := refusal_of(body, flags) if len(body) >= 4 else None:
                        raise refusal
                    return answers, interrupted
                if kind == NLMSG_ERROR:
                    raise refusal_of(body, flags) or NetlinkError(0, "no answer")
                answers.append((kind, body))

    def receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The (type, flags, sequence, body)s of the next datagram; waits for it."""
        data = self._datagram()
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            yield kind, flags, sequence, data[offset + HEADER.size : offset + length]
            offset += (length + 3) & ~3

    def _datagram(self) -> bytes:
        try:
            buffer = _buffers.pop()
        except IndexError:
            buffer = memoryview(bytearray(RECEIVE_BYTES))
        try:
            return bytes(buffer[: self._socket.recv_into(buffer)])
        except OSError as error:
            raise NetlinkError(error.errno, error.strerror) from error
        finally:
            if len(_buffers) < MOST_BUFFERS:
                _buffers.append(buffer)

    def frame(self, message: Message) -> tuple[int, bytes]:
        """A request that asks for an answer, for somebody else to send: its sequence number and its bytes."""
        packed = self._pack(_to_be_answered(message))
        return self._sequence, packed

    def _send(self, messages: Iterable[Message]) -> int:
        first = self._sequence + 1
        packed = b"".join([self._pack(message) for message in messages])
        try:
            self._socket.send(packed)
        except OSError as error:
            raise NetlinkError(error.errno, error.strerror) from error
        return first

    def _pack(self, message: Message) -> bytes:
        self._sequence += 1
        length = HEADER.size + len(message.body)
        header = HEADER.pack(length, message.kind, message.flags | NLM_F_REQUEST, self._sequence, 0)
        return header + message.body + bytes(-length % 4)


def _to_be_answered(message: Message) -> Message:
    return Message(message.kind, message.flags | NLM_F_ACK, message.body)


def refusal_of(body: bytes, flags: int) -> NetlinkError | None:
    """What an answer of type NLMSG_ERROR says of its request: None that it is done, else why it is not."""
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    # With NETLINK_CAP_ACK only the header of the refused message stands between the code and the attributes.
    extended = attribute_map(body, 4 + HEADER.size) if flags & NLM_F_ACK_TLVS else {}
    reason = extended.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    return NetlinkError(-code, reason or os.strerror(-code))
