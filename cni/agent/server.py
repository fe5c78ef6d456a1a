"""The agent's requests: threads that accept and serve them, and a waiting room for those that are not ready.

Threads wait in accept(2) itself, so that a request that comes whole costs no more than the few system calls it needs
(decision 0015). What cannot be had at once goes to the waiting room (`cni.agent.waiting`), where one thread looks after
all of it. What is asked and answered is the business of the handler.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
import traceback
from _socket import AF_UNIX, MSG_DONTWAIT, SO_RCVTIMEO, SOCK_STREAM, SOL_SOCKET, socket
from collections import deque
from collections.abc import Callable

from cni.agent import wire
from cni.agent.journal import Journal
from cni.agent.listener import Listener, peer
from cni.agent.metrics import Metrics
from cni.agent.waiting import REASONS, Incoming, Stranger, Unread, WaitingRoom
from cni.agent.wire import Answer, ProtocolError, Request

ACCEPT_SECONDS = 1  # without a connection, then a worker looks whether it is still needed
TIMEVAL = struct.Struct("@ll")

WORKERS = 2  # that should be ready to accept: more only fight for the GIL
MOST_WORKERS = 256
STACK_BYTES = 2 << 20  # Python 3.13 lets C code nest 10,000 calls: 1.5 MB of stack when JSON is read
STUCK_SECONDS = 0.1  # a request that takes longer waits for something, and leaves the processor to others
TICK_SECONDS = 0.05  # between two looks at the workers while all of them are busy

PATIENCE_SECONDS = 0.005  # of a worker with a request that is on its way
CROWD = 8  # so many in the waiting room, and workers have no patience
ANSWER_SECONDS = 10.0  # for the client to take its answer
GRACE_SECONDS = 1.0  # at the end, for requests that are on their way

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RECOVERY_SECONDS = 0.05
WARNING_SECONDS = 10.0  # between two lines about the same

FAILED = "failed"  # beside `REASONS`, for errors of the handler

Handler = Callable[[Request], Answer]


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
        self._most_workers = most_workers or MOST_WORKERS
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
            if self._workers >= self._most_workers or not (self._open or self._ready):
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
        # The watcher hires another one: a thread that we started would be born in the namespace in which we are left.
        with self._lock:
            self._workers -= 1
            self._strained = True
        self._room.ring()

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
            if peer(incoming.connection)[1] != self._allowed_uid:
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
            pid, uid = peer(incoming.connection)
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
            alive = self._workers
            if self._accepting and alive >= min(WORKERS, self._most_workers):
                self._strained = False
                return
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
