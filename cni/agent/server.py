"""The agent's socket: who may connect, threads that accept and serve, and a waiting room for those that are not ready.

Threads wait in accept(2) itself, so that a request that comes whole costs no more than the few system calls it needs
(decision 0015). What cannot be had at once goes to the waiting room, where one thread looks after all of it. What is
asked and answered is the business of the handler.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
import threading
import time
import traceback
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    SHUT_RD,
    SO_ACCEPTCONN,
    SO_PEERCRED,
    SO_RCVTIMEO,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cni.agent import wire
from cni.agent.journal import Journal
from cni.agent.metrics import Metrics
from cni.agent.wire import Answer, ProtocolError, Request, RequestDecoder
from cni.errors import IOFailure

BACKLOG = 1024  # connections that nobody has accepted yet; net.core.somaxconn may allow fewer
MODE = 0o600
LONGEST_PATH = 107 - len(".new")  # bytes; sun_path with its NUL has 108, unix(7)

WORKERS = min(8, 1 + len(os.sched_getaffinity(0)))  # that should be ready to accept: more only fight for the GIL
MOST_WORKERS = 256
STACK_BYTES = 2 << 20  # Python 3.13 lets C code nest 10,000 calls: 1.5 MB of stack when JSON is read
ACCEPT_SECONDS = 1  # without a connection, then a worker looks whether it is still needed
STUCK_SECONDS = 0.25  # a request that takes longer waits for something, and leaves the processor to others
TICK_SECONDS = 0.05  # between two looks at the workers while all of them are busy

PATIENCE_SECONDS = 0.005  # of a worker with a request that is on its way
CROWD = 8  # so many in the waiting room, and workers have no patience
REQUEST_SECONDS = 10.0  # from the connection to the whole request
ANSWER_SECONDS = 10.0  # for the client to take its answer
MOST_WAITING = 512  # connections
MOST_BYTES = 64 << 20  # held for all that wait
GRACE_SECONDS = 1.0  # at the end, for requests that are on their way

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RECOVERY_SECONDS = 0.05
WARNING_SECONDS = 10.0  # between two lines about the same

CREDENTIALS = struct.Struct("iII")  # struct ucred, unix(7): process, user, group
TIMEVAL = struct.Struct("@ll")
CHUNK = 16 << 10  # bytes to receive at once; a request has some 2,000
DESCRIPTORS = CMSG_SPACE(4)  # for one; due to alignment there is room for a second
RECEIVING = MSG_CMSG_CLOEXEC | MSG_DONTWAIT

Handler = Callable[[Request], Answer]


# --- the listening socket ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens. With `path` it is ours and `inode` its file's; without, systemd's, and outlives us."""

    socket: socket
    path: str = ""
    inode: tuple[int, int] = (0, 0)

    def withdraw(self) -> None:
        """Let nobody else in, but those who wait to be accepted; a socket of systemd's is left to the next agent."""
        if not self.path:
            return
        try:
            with suppress(OSError), _alone_in(self.path):
                if _inode(self.path) == self.inode:
                    os.unlink(self.path)
        finally:
            self.socket.shutdown(SHUT_RD)


def listen(path: str, take_over: bool = False) -> Listener:
    """Listen at a path that root alone may use; a socket that a dead agent has left there is replaced.

    So is a living agent's if `take_over`: it goes on with whom it has accepted, and new clients come to us, without a
    moment between. Raises IOFailure.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise IOFailure(f"{path} has more than the {LONGEST_PATH} bytes that are possible: choose a shorter path")
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        with _alone_in(path):
            _check_place(path, take_over)
            return _bind(path)
    except OSError as error:
        raise IOFailure(f"cannot listen at {path}: {error.strerror}; be root, or choose another path") from error


def adopt(fd: int) -> Listener:
    """The listening socket that systemd has passed. Raises IOFailure if it is something else."""
    try:
        passed = socket(fileno=fd)
        fits = (passed.family, passed.type) == (AF_UNIX, SOCK_STREAM) and passed.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)
    except OSError:
        fits = False
    if not fits:
        raise IOFailure(
            f"descriptor {fd} is no Unix socket that listens: the .socket unit must have one ListenStream= with a "
            "path, and Accept=no"
        )
    passed.setblocking(True)
    return Listener(passed)


def _bind(path: str) -> Listener:
    """Nobody can connect before listen(2), and then the mode is right; rename(2) leaves no moment without a socket."""
    new = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)
    listener = socket(AF_UNIX, SOCK_STREAM)
    try:
        listener.bind(new)
        os.chmod(new, MODE)
        listener.listen(BACKLOG)
        inode = _inode(new)
        os.rename(new, path)
    except BaseException:
        listener.close()
        raise
    return Listener(listener, path, inode)


def _check_place(path: str, take_over: bool) -> None:
    """Raises IOFailure unless the path is free, or what is there may be replaced."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise IOFailure(f"{path} is there, and not a socket: remove it, or choose another path")
    pid = None if take_over else _served_by(path)
    if pid is not None:
        who = f"process {pid}" if pid else "a process that cannot be seen from here"
        how = f"kill {pid}" if pid else "its container, or whatever `ss -xlp` shows"
        raise IOFailure(f"{path} is served by {who}: stop that agent first ({how})")


def _served_by(path: str) -> int | None:
    """The process that listens at a socket, 0 if it cannot be seen from here; None if there is none any more."""
    probe = socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
        return _peer(probe)[0]
    except BlockingIOError:  # so many wait that there is no room for us
        return 0
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    finally:
        probe.close()


def _peer(connection: socket) -> tuple[int, int]:
    """Process and user at the other end, as of connect(2) or listen(2); 0 and 65534 if out of our namespaces."""
    pid, uid, _ = CREDENTIALS.unpack(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, CREDENTIALS.size))
    return pid, uid


def _inode(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


@contextmanager
def _alone_in(path: str) -> Iterator[None]:
    """No other agent makes or removes a socket in this directory meanwhile."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


# --- connections -------------------------------------------------------------------------------------------------


class Stranger(ProtocolError):
    """Somebody whose requests are not served."""


class Overdue(ProtocolError):
    """A request that was not whole in time."""


class Crowded(ProtocolError):
    """A request that was not whole, where too many of them wait."""


class Unread(ProtocolError):
    """An answer that was not taken."""


# Of connections that get no answer, for `Metrics.refused`; FAILED is for errors of the handler.
REASONS: dict[type[ProtocolError], str] = {
    Stranger: "user",
    ProtocolError: "malformed",
    Overdue: "overdue",
    Crowded: "crowded",
    Unread: "unread",
}
FAILED = "failed"


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


# --- the server --------------------------------------------------------------------------------------------------


class Server:
    """Serves whoever may connect, on as many threads as it takes that somebody is always ready to accept."""

    def __init__(
        self,
        listener: Listener,
        handle: Handler,
        journal: Journal,
        metrics: Metrics | None = None,
        allowed_uid: int | None = None,
        most_workers: int = 0,
    ) -> None:
        """`handle` should not raise: its client would get no answer. The namespace in a request is closed after it.

        `allowed_uid`: whose requests are served, by default those of this process's own user. `most_workers`: how many
        requests at a time, MOST_WORKERS for 0.
        """
        self._listener = listener
        self._handle = handle
        self._journal = journal
        self._metrics = metrics or Metrics()
        self._allowed_uid = os.geteuid() if allowed_uid is None else allowed_uid
        self._most_workers = most_workers
        self._room = WaitingRoom(self._take, self._give_up)
        self._watcher = threading.Thread(target=self._watch, name="waiting-room", daemon=True)
        self._busy: set[Incoming] = set()  # what workers attend to
        self._open = True  # connections are accepted
        self._over = False
        self._lock = threading.Lock()  # for what follows
        self._ready: deque[Incoming] = deque()  # whole requests that had to wait
        self._workers = 0
        self._accepting = 0  # of them
        self._strained = False  # nobody was left to accept, and the watcher knows

    @property
    def workers(self) -> int:
        """Threads that serve requests, idle ones included."""
        return self._workers

    @property
    def in_flight(self) -> int:
        """Connections that workers attend to."""
        return len(self._busy)

    @property
    def waiting(self) -> int:
        """Connections whose request is not whole."""
        return len(self._room)

    def start(self) -> None:
        """Begin to serve; returns at once. Sets the stack size of all threads that are made from now on."""
        threading.stack_size(STACK_BYTES)
        self._listener.socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, TIMEVAL.pack(ACCEPT_SECONDS, 0))
        self._watcher.start()
        for _ in range(WORKERS):
            self._hire()

    def stop(self, timeout: float) -> bool:
        """Let nobody else in, and finish what has begun, in so many seconds; whether all of it is finished."""
        deadline = time.monotonic() + timeout
        self._listener.withdraw()
        if not self._listener.path:
            self._open = False
        _wait_until(lambda: not (self.workers or self.waiting), min(deadline, time.monotonic() + GRACE_SECONDS))
        self._room.send_away()
        _wait_until(lambda: not self.workers, deadline)
        self._over = True
        self._room.ring()
        self._watcher.join()
        finished = _wait_until(lambda: not self.workers, deadline)  # the watcher may have hired one for a last request
        if finished:
            self._room.close()
            self._listener.socket.close()
        return finished

    # Workers.

    def _hire(self) -> bool:
        """Start another worker, if there may be one more; whether that went well."""
        with self._lock:
            if self._workers >= (self._most_workers or MOST_WORKERS) or not (self._open or self._ready):
                return False
            self._workers += 1
        try:
            threading.Thread(target=self._work, name="worker", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._workers -= 1
                self._strained = True  # so that the watcher tries again
            self._room.ring()
            self._warn("threads", f"cannot start another thread: {error}; raise the limit of tasks or processes")
            return False
        return True

    def _work(self) -> None:
        while (incoming := self._next()) is not None:
            self._busy.add(incoming)
            try:
                self._attend(incoming)
            except BaseException:  # noqa: BLE001  (whatever it is, the others go on)
                self._retire(incoming, traceback.format_exc())
                return
            self._busy.discard(incoming)

    def _retire(self, incoming: Incoming, trace: str) -> None:
        """End a worker whose handler has failed: in which namespace, for one, has that left its thread?"""
        self._metrics.refused(FAILED)
        if self._may_say(FAILED):
            self._journal.error(f"a request failed, and its client got no answer; please report this:\n{trace}")
        incoming.close()
        self._busy.discard(incoming)
        with self._lock:
            self._workers -= 1
        self._hire()

    def _next(self) -> Incoming | None:
        """What to attend to next; None if this worker is not needed any more."""
        needed = True
        while True:
            with self._lock:
                if self._ready:
                    return self._ready.popleft()
                if not (needed and self._open):
                    self._workers -= 1
                    return None
                self._accepting += 1
            connection = self._accept()
            with self._lock:
                self._accepting -= 1
                if connection is None:
                    needed = self._accepting < WORKERS
                    continue
                if not (self._accepting or self._strained):
                    self._strained = True
                    self._room.ring()
            return Incoming(connection)

    def _accept(self) -> socket | None:
        try:
            fd, _ = self._listener.socket._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
        except BlockingIOError:  # nobody came within ACCEPT_SECONDS
            return None
        except OSError as error:
            self._cannot_accept(error)
            return None
        return socket(AF_UNIX, SOCK_STREAM, 0, fd)

    def _cannot_accept(self, error: OSError) -> None:
        if error.errno == errno.EINVAL:  # shut down, and nobody waits any more
            self._open = False
            return
        if error.errno in OUT_OF_DESCRIPTORS:
            self._room.drop_oldest()
        self._warn("accept", f"cannot accept connections: {error.strerror}; the next attempt follows")
        time.sleep(RECOVERY_SECONDS)

    def _attend(self, incoming: Incoming) -> None:
        """Serve a connection, or let it wait, or close it."""
        request = incoming.request or self._receive(incoming)
        if request is not None:
            self._serve(incoming, request)

    def _receive(self, incoming: Incoming) -> Request | None:
        """The request, if it comes at once; if not, the connection waits elsewhere or is closed."""
        try:
            if _peer(incoming.connection)[1] != self._allowed_uid:
                raise Stranger(f"only user {self._allowed_uid} may use this socket")
            request = incoming.receive() or self._be_patient(incoming)
        except (ProtocolError, EOFError) as error:
            self._give_up(incoming, error)
            return None
        if request is None:
            self._room.add(incoming)
        return request

    def _be_patient(self, incoming: Incoming) -> Request | None:
        """Give a request that is on its way another moment, unless too many try this."""
        if len(self._room) < CROWD and incoming.comes_within(PATIENCE_SECONDS):
            return incoming.receive()
        return None

    def _serve(self, incoming: Incoming, request: Request) -> None:
        try:
            answer = wire.encode_answer(self._handle(request))
        finally:
            incoming.let_go()  # before the runtime goes on, and may want to be the namespace's last user
        try:
            self._send(incoming.connection, answer)
        except OSError as error:
            self._give_up(incoming, Unread(f"its answer could not be delivered: {error}"))
        else:
            incoming.close()

    def _send(self, connection: socket, answer: bytes) -> None:
        sent = connection.send(answer, MSG_DONTWAIT)
        if sent < len(answer):  # more than the socket buffers
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(answer[sent:])

    def _give_up(self, incoming: Incoming, reason: Exception) -> None:
        """Close a connection without an answer."""
        if isinstance(reason, ProtocolError):
            kind = REASONS[type(reason)]
            self._metrics.refused(kind)
            pid, uid = _peer(incoming.connection)
            self._warn(kind, f"closed the connection of process {pid} (user {uid}): {reason}")
        incoming.close()

    def _warn(self, kind: str, text: str) -> None:
        if self._may_say(kind):
            self._journal.warning(text)

    def _may_say(self, kind: str) -> bool:
        """Whether it is not too soon for another line of this kind: whoever connects could fill the disk with them."""
        return self._journal.once_per(WARNING_SECONDS, ("connections", kind))

    # The thread of the waiting room, which also sees to it that there are workers enough.

    def _watch(self) -> None:
        while not self._over:
            strained = self._strained  # for a tick from now on, as it may pass by itself
            self._room.turn(TICK_SECONDS if strained else None)
            if strained:
                self._relieve()

    def _take(self, incoming: Incoming) -> None:
        """Have a request served that is whole by now."""
        incoming.since = time.monotonic()
        with self._lock:
            self._ready.append(incoming)
        self._hire()

    def _relieve(self) -> None:
        """Hire workers for those that are stuck, and as many again, for who comes next may get stuck as well."""
        with self._lock:
            if self._accepting:
                self._strained = False
                return
            alive = self._workers
        since = time.monotonic() - STUCK_SECONDS
        stuck = sum(incoming.since < since for incoming in self._busy.copy())
        for _ in range(WORKERS + 2 * stuck - alive):
            if not self._hire():
                return


def _wait_until(done: Callable[[], bool], deadline: float) -> bool:
    """Whether it happened in time; for the end alone, so looking again and again will do."""
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True
