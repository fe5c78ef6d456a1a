"""What clients and the agent say to each other, as bytes: one request and one answer per connection.

Pure: bytes in, values out, and the other way round. Numbers are in the machine's byte order, for nothing of this leaves
the machine. The descriptor of the pod's network namespace travels beside the bytes (SCM_RIGHTS, unix(7)); clients and
agents of different releases meet, so the bytes are pinned by a test, and whoever changes them counts up the version.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from cni import protocol

MAGIC = b"shimlan\x01"  # the last byte is the version

# magic, why CNI_NETNS could not be opened (errno), reserved, octets of the environment, octets of standard input
REQUEST_HEADER = struct.Struct("=8s4I")
# magic, exit status, octets for standard output
ANSWER_HEADER = struct.Struct("=8s2I")

MAX_ENVIRON = 128 << 10  # bytes, as all limits
MAX_STDIN = protocol.MAX_STDIN + 1  # one too many, so that the agent says what is wrong with it
MAX_STDOUT = 16 << 20  # a result holds that of the plugins before us, which came in through stdin

PREFIX = "CNI_"


class ProtocolError(Exception):
    """The other side does not speak this protocol; the text says where."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call of the plugin: CNI_* variables, standard input, the opened CNI_NETNS or the errno of opening it."""

    environ: dict[str, str]
    stdin: bytes
    netns: int | None = None
    netns_errno: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the plugin would have said: its exit status and standard output."""

    status: int
    stdout: bytes


def encode_request(request: Request) -> bytes:
    """The bytes of a request; `netns` is the sender's to pass along."""
    environ = b"".join(os.fsencode(f"{name}={value}\0") for name, value in request.environ.items())
    header = REQUEST_HEADER.pack(MAGIC, request.netns_errno, 0, len(environ), len(request.stdin))
    return header + environ + request.stdin


def encode_answer(answer: Answer) -> bytes:
    """The bytes of an answer."""
    return ANSWER_HEADER.pack(MAGIC, answer.status, len(answer.stdout)) + answer.stdout


class RequestDecoder:
    """Collects the bytes of a request, however they are cut."""

    __slots__ = ("_data", "_size")

    def __init__(self) -> None:
        self._data = bytearray()
        self._size = 0  # of the whole request; unknown until its header is there

    @property
    def held(self) -> int:
        """How many bytes have come."""
        return len(self._data)

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; whether the request is whole. Raises ProtocolError, and is of no use afterwards."""
        self._data += data
        if not self._size:
            self._size = _request_size(self._data)
        return _is_whole(len(self._data), self._size)

    def request(self, netns: int | None = None) -> Request:
        """The request, once it is whole, with the descriptor that came along. Raises ProtocolError."""
        _, netns_errno, _, environ, _ = REQUEST_HEADER.unpack_from(self._data)
        if netns is not None and netns_errno:
            raise ProtocolError(f"it passes a network namespace and says that it has none (errno {netns_errno})")
        data = bytes(self._data)
        end = REQUEST_HEADER.size + environ
        return Request(_environ(data[REQUEST_HEADER.size : end]), data[end:], netns, netns_errno)


class AnswerDecoder:
    """Collects the bytes of an answer, however they are cut."""

    __slots__ = ("_data", "_size")

    def __init__(self) -> None:
        self._data = bytearray()
        self._size = 0

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; whether the answer is whole. Raises ProtocolError, and is of no use afterwards."""
        self._data += data
        if not self._size:
            self._size = _answer_size(self._data)
        return _is_whole(len(self._data), self._size)

    def answer(self) -> Answer:
        """The answer, once it is whole."""
        _, status, _ = ANSWER_HEADER.unpack_from(self._data)
        return Answer(status, bytes(self._data[ANSWER_HEADER.size :]))


def _request_size(data: bytearray) -> int:
    """How many bytes the request has that begins so; 0 as long as that cannot be said."""
    if len(data) < REQUEST_HEADER.size:
        return _check_magic(bytes(data[: len(MAGIC)]))
    magic, _, reserved, environ, stdin = REQUEST_HEADER.unpack_from(data)
    if magic != MAGIC:
        _check_magic(magic)
    if reserved:
        raise ProtocolError(f"its reserved field is {reserved} instead of 0")
    if environ > MAX_ENVIRON:
        raise ProtocolError(f"it announces {environ} bytes of environment, and {MAX_ENVIRON} are the limit")
    if stdin > MAX_STDIN:
        raise ProtocolError(f"it announces {stdin} bytes of standard input, and {MAX_STDIN} are the limit")
    size: int = REQUEST_HEADER.size + environ + stdin
    return size


def _answer_size(data: bytearray) -> int:
    """How many bytes the answer has that begins so; 0 as long as that cannot be said."""
    if len(data) < ANSWER_HEADER.size:
        return _check_magic(bytes(data[: len(MAGIC)]))
    magic, _, stdout = ANSWER_HEADER.unpack_from(data)
    _check_magic(magic)
    if stdout > MAX_STDOUT:
        raise ProtocolError(f"it announces {stdout} bytes of standard output, and {MAX_STDOUT} are the limit")
    size: int = ANSWER_HEADER.size + stdout
    return size


def _check_magic(start: bytes) -> int:
    """Refuse what does not begin as our messages do, as early as that can be seen; else 0, for an unknown size."""
    if MAGIC.startswith(start):
        return 0
    if start[:-1] == MAGIC[:-1]:
        raise ProtocolError(f"it speaks version {start[-1]} of the protocol, and here is version {MAGIC[-1]}")
    raise ProtocolError(f"it begins with {start!r} instead of {MAGIC!r}")


def _is_whole(held: int, size: int) -> bool:
    if held > size > 0:
        raise ProtocolError(f"it has more than the {size} bytes that it announced")
    return held == size > 0


def _environ(block: bytes) -> dict[str, str]:
    """`NAME=VALUE\\0` of each variable; of a name that comes twice the first counts, as with getenv(3)."""
    *variables, rest = os.fsdecode(block).split("\0")
    if rest:
        raise ProtocolError("its environment does not end with a NUL")
    environ: dict[str, str] = {}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not equals or not name.startswith(PREFIX):
            raise ProtocolError(f"its environment has {variable[:40]!r}, which is not of the form {PREFIX}NAME=VALUE")
        environ.setdefault(name, value)
    return environ
