"""Connections to the agent, and the room where those wait whose request is not whole."""

from __future__ import annotations

import os
import select
import time
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, socket
from collections import deque
from collections.abc import Callable

from cni.agent.wire import ProtocolError, Request, RequestDecoder

REQUEST_SECONDS = 10.0  # from the connection to the whole request
MOST_WAITING = 512  # connections
MOST_BYTES = 64 << 20  # held for all that wait

CHUNK = 16 << 10  # bytes to receive at once; a request has some 2,000
DESCRIPTORS = CMSG_SPACE(4)  # for one; due to alignment there is room for a second
RECEIVING = MSG_CMSG_CLOEXEC | MSG_DONTWAIT


class Stranger(ProtocolError):
    """Somebody whose requests are not served."""


class Overdue(ProtocolError):
    """A request that was not whole in time."""


class Crowded(ProtocolError):
    """A request that was not whole, where too many of them wait."""


class Unread(ProtocolError):
    """An answer that was not taken."""


# Of connections that get no answer, for `Metrics.refused`.
REASONS: dict[type[ProtocolError], str] = {
    Stranger: "user",
    ProtocolError: "malformed",
    Overdue: "overdue",
    Crowded: "crowded",
    Unread: "unread",
}


class Incoming:
    """A connection, what has come through it so far, and the request once that is whole."""

    __slots__ = ("_decoder", "_descriptors", "connection", "request", "since")

    def __init__(self, connection: socket) -> None:
        self.connection = connection
        self.request: Request | None = None
        self.since = time.monotonic()  # it was accepted, or taken from the waiting room
        self._decoder = RequestDecoder()
        self._descriptors: list[int] = []

    @property
    def held(self) -> int:
        """How many bytes have come."""
        return self._decoder.held

    def receive(self) -> Request | None:
        """Take what has arrived, without waiting; the request, if it is whole.

        Raises ProtocolError, and EOFError if somebody has only looked in.
        """
        while True:
            try:
                data, ancillary, flags, _ = self.connection.recvmsg(CHUNK, DESCRIPTORS, RECEIVING)
            except BlockingIOError:
                return None
            except OSError as error:
                raise ProtocolError(f"it cannot be read: {error.strerror}") from error
            if ancillary or flags & MSG_CTRUNC:
                self._keep(ancillary, flags)
            if not data:
                raise ProtocolError(f"it ends after {self.held} bytes") if self.held else EOFError
            if self._decoder.feed(data):
                self.request = self._decoder.request(*self._descriptors)
                return self.request

    def _keep(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        for _, _, data in ancillary:
            self._descriptors += memoryview(data).cast("i")
        if len(self._descriptors) > 1:
            raise ProtocolError("it passes more than one descriptor")
        if flags & MSG_CTRUNC:
            raise ProtocolError("it passes a descriptor for which this process has no room")

    def comes_within(self, seconds: float) -> bool:
        """Wait for more; whether it comes in time."""
        arrival = select.poll()
        arrival.register(self.connection.fileno(), select.POLLIN)
        return bool(arrival.poll(seconds * 1000))

    def let_go(self) -> None:
        """Close the descriptor that has come."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def close(self) -> None:
        """Close everything."""
        self.let_go()
        self.connection.close()


class WaitingRoom:
    """Connections whose request is not whole. One thread takes turns here; the others only send something in."""

    def __init__(self, deliver: Callable[[Incoming], None], give_up: Callable[[Incoming, Exception], None]) -> None:
        self._deliver = deliver
        self._give_up = give_up
        self._arrivals: deque[Incoming] = deque()
        self._waiting: dict[int, Incoming] = {}  # by descriptor, the oldest first
        self._held = 0  # bytes
        self._one_too_many = False
        self._closed = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._bell, select.EPOLLIN)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._arrivals)

    def add(self, incoming: Incoming) -> None:
        """Let a connection wait."""
        self._arrivals.append(incoming)
        self.ring()

    def drop_oldest(self) -> None:
        """Close a connection, because its descriptor is needed."""
        self._one_too_many = True
        self.ring()

    def send_away(self) -> None:
        """Close all connections, and those that come later."""
        self._closed = True
        self.ring()

    def ring(self) -> None:
        """End the turn that is being taken."""
        os.eventfd_write(self._bell, 1)

    def turn(self, longest: float | None) -> None:
        """Wait until something happens, for so many seconds at most, and deal with it."""
        for fd, _ in self._poll.poll(self._until_deadline(longest)):
            if fd == self._bell:
                os.eventfd_read(self._bell)
            else:
                self._receive(fd)
        while self._arrivals:
            self._admit(self._arrivals.popleft())
        self._dismiss()

    def close(self) -> None:
        """To be called when nobody takes turns or sends something in any more."""
        self._poll.close()
        os.close(self._bell)

    def _until_deadline(self, longest: float | None) -> float | None:
        oldest = next(iter(self._waiting.values()), None)
        if oldest is None:
            return longest
        left = max(0.0, oldest.since + REQUEST_SECONDS - time.monotonic())
        return left if longest is None else min(left, longest)

    def _receive(self, fd: int) -> None:
        incoming = self._waiting[fd]
        self._held -= incoming.held
        try:
            request = incoming.receive()
        except (ProtocolError, EOFError) as error:
            self._held += incoming.held
            self._give_up(self._leaving(fd), error)
            return
        self._held += incoming.held
        if request is not None:
            self._deliver(self._leaving(fd))

    def _admit(self, incoming: Incoming) -> None:
        fd = incoming.connection.fileno()
        try:
            self._poll.register(fd, select.EPOLLIN)
        except OSError as error:  # the user's limit of epoll(7)
            self._give_up(incoming, Crowded(f"it cannot be waited for: {error.strerror}"))
            return
        self._waiting[fd] = incoming
        self._held += incoming.held

    def _dismiss(self) -> None:
        """Close connections that must not wait any longer; the oldest first, as they had most time."""
        one_too_many, self._one_too_many = self._one_too_many, False
        for fd, incoming in list(self._waiting.items()):
            reason = self._reason_to_leave(incoming, one_too_many)
            if reason is None:
                return
            one_too_many = False
            self._give_up(self._leaving(fd), reason)

    def _reason_to_leave(self, oldest: Incoming, one_too_many: bool) -> ProtocolError | None:
        if self._closed:
            return Overdue("its request was not whole when the agent ended")
        if oldest.since + REQUEST_SECONDS <= time.monotonic():
            return Overdue(f"its request was not whole after {REQUEST_SECONDS:.0f} s")
        if one_too_many or len(self._waiting) > MOST_WAITING or self._held > MOST_BYTES:
            return Crowded("its request was not whole, and others need the room")
        return None

    def _leaving(self, fd: int) -> Incoming:
        self._poll.unregister(fd)
        incoming = self._waiting.pop(fd)
        self._held -= incoming.held
        return incoming
