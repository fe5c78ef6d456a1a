"""The agent's socket, with real clients of every kind: those who want something, and those who want to do harm."""

from __future__ import annotations

import array
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

import pytest

from cni.agent import server, waiting, wire
from cni.agent.journal import Journal
from cni.agent.listener import Listener, adopt, listen
from cni.agent.metrics import Metrics
from cni.agent.server import Server
from cni.agent.wire import Answer, AnswerDecoder, Request
from cni.errors import IOFailure

ROOT = Path(__file__).parents[2]
SECONDS = 20.0  # long enough for a busy machine
NOBODY = 65534

HELLO = Request({"CNI_COMMAND": "STATUS"}, b"{}")
WHOLE = wire.encode_request(HELLO)


def echo(request: Request) -> Answer:
    """A handler whose answer tells what was asked."""
    return Answer(len(request.environ), request.stdin)


def echo_after(event: threading.Event) -> server.Handler:
    """A handler that takes its time."""

    def handle(request: Request) -> Answer:
        event.wait(SECONDS)
        return echo(request)

    return handle


class Refusals(Metrics):
    """Why connections got no answer."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def refused(self, reason: str) -> None:
        self.reasons[reason] += 1


class Agent:
    """A server, and what it says."""

    def __init__(self, listener: Listener, handle: server.Handler, directory: Path) -> None:
        self.path = listener.path
        self.log = directory / "log"
        self._stream = self.log.open("a")
        self.refusals = Refusals()
        self.server = Server(listener, handle, Journal(self._stream, environ={}), self.refusals)
        self.server.start()

    def stop(self) -> None:
        """Stop, and everything must be finished; once is enough."""
        if not self._stream.closed:
            assert self.server.stop(SECONDS)
            self._stream.close()

    def gave(self, reason: str, times: int = 1) -> bool:
        """Whether so many connections were closed for this reason, now or soon."""
        return soon(lambda: self.refusals.reasons[reason] >= times)


Serve = Callable[..., Agent]


@pytest.fixture
def directory() -> Iterator[Path]:
    """For the socket, whose path must be short."""
    with tempfile.TemporaryDirectory(prefix="shimlan") as directory:
        yield Path(directory)


@pytest.fixture
def path(directory: Path) -> str:
    return str(directory / "agent.sock")


@pytest.fixture
def passed(path: str) -> Iterator[Callable[[], Listener]]:
    """Adopts a socket that listens before there is an agent, and after it."""
    with socket.socket(socket.AF_UNIX) as listener:

        def pass_on() -> Listener:
            if not Path(path).exists():
                listener.bind(path)
                listener.listen()
                listener.setblocking(False)
            return adopt(os.dup(listener.fileno()))

        yield pass_on


@pytest.fixture
def serve(directory: Path, path: str) -> Iterator[Serve]:
    """Starts agents that end with the test, and leave neither descriptors nor threads."""
    before = (open_descriptors(), threading.active_count())
    agents: list[Agent] = []

    def start(handle: server.Handler = echo, listener: Listener | None = None) -> Agent:
        agents.append(Agent(listener or listen(path), handle, directory))
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()
    assert soon(lambda: (open_descriptors(), threading.active_count()) == before)


def open_descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


def soon(happened: Callable[[], bool], seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# --- clients -----------------------------------------------------------------------------------------------------


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(path)
        yield client


def answer_to(client: socket.socket) -> Answer | None:
    """What comes back; None if the connection is closed instead."""
    decoder = AnswerDecoder()
    with suppress(ConnectionResetError):
        while data := client.recv(1 << 20):
            if decoder.feed(data):
                return decoder.answer()
    return None


def call(path: str, request: Request = HELLO, *descriptors: int) -> Answer | None:
    """Send a request as clients do, in one message."""
    with connected(path) as client:
        with suppress(BrokenPipeError):  # somebody may have closed the door by then
            send(client, wire.encode_request(request), *descriptors)
        return answer_to(client)


def send(client: socket.socket, data: bytes, *descriptors: int) -> None:
    """In one message, the descriptors with its first byte."""
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = client.sendmsg([data], passed)
    if sent < len(data):
        client.sendall(data[sent:])


def is_served(path: str) -> bool:
    return call(path) == echo(HELLO)


@contextmanager
def witness() -> Iterator[tuple[int, Callable[..., bool]]]:
    """A descriptor to pass along, and whether nobody has it open any more, now or within some seconds."""
    reader, writer = os.pipe()
    watch = select.poll()
    watch.register(reader, select.POLLHUP)

    held = [writer]

    def is_gone(seconds: float = SECONDS) -> bool:
        while held:
            os.close(held.pop())
        return bool(watch.poll(seconds * 1000))

    try:
        yield writer, is_gone
    finally:
        is_gone(0)
        os.close(reader)


@contextmanager
def in_parallel(count: int, action: Callable[[int], object]) -> Iterator[list[object]]:
    """Do something on so many threads; at the end of the block all results are there."""
    results: list[object] = []
    threads = [threading.Thread(target=lambda n=n: results.append(action(n))) for n in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        for thread in threads:
            thread.join()


# --- serving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        Request({}, b""),
        Request({"CNI_COMMAND": "ADD", "CNI_ARGS": "K8S_POD_NAME=\udcff\n;="}, b'{"name": "lan"}'),
        Request({"CNI_COMMAND": "DEL"}, b"\0\xff" * 3, netns_errno=2),
        Request({"CNI_ARGS": "a" * 100_000}, b" " * ((4 << 20) + 1)),
    ],
    ids=["empty", "text", "octets", "large"],
)
def test_the_handler_sees_what_was_sent(serve: Serve, request_: Request) -> None:
    seen: list[Request] = []

    def handle(request: Request) -> Answer:
        seen.append(request)
        return Answer(7, b"out")

    agent = serve(handle)
    assert call(agent.path, request_) == Answer(7, b"out")
    assert seen == [request_]


def test_the_handler_gets_the_namespace_until_it_returns(serve: Serve) -> None:
    seen: list[tuple[bool, bool]] = []

    def handle(request: Request) -> Answer:
        assert request.netns is not None
        seen.append((os.path.sameopenfile(request.netns, writer), os.get_inheritable(request.netns)))
        return echo(request)

    agent = serve(handle)
    with witness() as (writer, is_gone):
        assert call(agent.path, HELLO, writer)
        assert is_gone(0)
    assert seen == [(True, False)]


@pytest.mark.parametrize("cut", [1, 7, 8, 23, 24, 30, len(WHOLE) - 1])
def test_a_request_in_pieces_is_served(serve: Serve, cut: int) -> None:
    agent = serve()
    with connected(agent.path) as client:
        client.sendall(WHOLE[:cut])
        assert soon(lambda: agent.server.waiting == 1)
        client.sendall(WHOLE[cut:])
        assert answer_to(client) == echo(HELLO)
    assert agent.refusals.reasons == {}


def test_a_request_that_drips_but_in_time_is_served_with_its_namespace(serve: Serve) -> None:
    agent = serve(lambda request: Answer(0, b"open" if request.netns is not None else b"none"))
    with witness() as (writer, is_gone), connected(agent.path) as client:
        send(client, WHOLE[:1], writer)
        for octet in WHOLE[1:]:
            time.sleep(0.001)
            client.sendall(bytes([octet]))
        assert answer_to(client) == Answer(0, b"open")
        assert is_gone()


def test_an_answer_larger_than_any_buffer_is_delivered(serve: Serve) -> None:
    large = Answer(1, b"x" * (10 << 20))
    agent = serve(lambda _: large)
    assert call(agent.path) == large


def test_two_hundred_clients_at_once_get_their_own_answers(serve: Serve) -> None:
    agent = serve()
    requests = [Request({}, b"%d" % number) for number in range(200)]
    with in_parallel(200, lambda n: call(agent.path, requests[n])) as answers:
        pass
    assert sorted(answers, key=str) == sorted(map(echo, requests), key=str)
    assert soon(lambda: agent.server.in_flight == 0)


def test_a_handler_that_fails_costs_its_client_the_answer_and_nobody_else(serve: Serve) -> None:
    def handle(request: Request) -> Answer:
        if not request.environ:
            raise SystemExit("a namespace that cannot be left")
        return echo(request)

    agent = serve(handle)
    for _ in range(20):
        with witness() as (writer, is_gone):
            assert call(agent.path, Request({}, b""), writer) is None
            assert is_gone()
        assert soon(lambda: agent.server.workers == server.WORKERS)
    assert is_served(agent.path)
    assert agent.gave("failed", 20)
    assert agent.log.read_text().count("SystemExit: a namespace that cannot be left") == 1


def test_who_takes_over_after_a_failure_inherits_nothing_from_that_thread(serve: Serve) -> None:
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) == 1:
        pytest.skip("needs two processors: what a thread has of its own, and passes on, is where it may run")

    def handle(request: Request) -> Answer:
        if not request.environ:
            os.sched_setaffinity(0, {min(everywhere)})  # in place of a namespace that cannot be left
            raise SystemExit
        return Answer(0, repr(os.sched_getaffinity(0)).encode())

    agent = serve(handle)
    for _ in range(2 * server.WORKERS):
        assert call(agent.path, Request({}, b"")) is None
        assert soon(lambda: agent.server.workers == server.WORKERS)
    for _ in range(10):
        assert call(agent.path) == Answer(0, repr(everywhere).encode())


# --- many, and slow ----------------------------------------------------------------------------------------------


def test_slow_requests_do_not_delay_others(serve: Serve) -> None:
    end = threading.Event()
    slow = echo_after(end)
    agent = serve(lambda request: echo(request) if request.environ else slow(request))
    with in_parallel(60, lambda _: call(agent.path, Request({}, b""))) as answers:
        try:
            assert soon(lambda: agent.server.in_flight >= 60)
            started = time.monotonic()
            assert is_served(agent.path)
            assert time.monotonic() - started < 5
        finally:
            end.set()
    assert answers == [Answer(0, b"")] * 60
    assert soon(lambda: agent.server.workers == server.WORKERS)


def test_threads_are_bounded_and_who_comes_too_many_waits(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_WORKERS", server.WORKERS + 2)
    end = threading.Event()
    agent = serve(echo_after(end))
    with in_parallel(server.WORKERS + 20, lambda _: call(agent.path)) as answers:
        assert soon(lambda: agent.server.in_flight == server.WORKERS + 2)
        with connected(agent.path) as client:  # whole only by and by, so that it comes by way of the waiting room
            time.sleep(0.2)
            assert agent.server.workers == server.WORKERS + 2
            end.set()
            client.sendall(WHOLE)
            assert answer_to(client) == echo(HELLO)
    assert answers == [echo(HELLO)] * (server.WORKERS + 20)


@pytest.mark.parametrize("whose", ["ours", "systemd's"])
def test_at_rest_it_rests(serve: Serve, passed: Callable[[], Listener], path: str, whose: str) -> None:
    """After a crowd as before one, only the looks for surplus workers wake anybody."""
    agent = serve(listener=passed() if whose == "systemd's" else None)
    for _ in range(2):
        before = wake_ups()
        time.sleep(0.5)
        assert wake_ups() - before <= 4 * agent.server.workers
        with in_parallel(50, lambda _: call(path)):
            pass
        time.sleep(0.2)


def wake_ups() -> int:
    """How often the threads of agents have waited for something."""
    ours = [thread for thread in threading.enumerate() if thread.name in ("worker", "waiting-room")]
    texts = [Path(f"/proc/self/task/{thread.native_id}/status").read_text() for thread in ours]
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts)


# --- those who do harm -------------------------------------------------------------------------------------------


def announcing(environ: int, stdin: int) -> bytes:
    return wire.REQUEST_HEADER.pack(wire.MAGIC, 0, 0, environ, stdin)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 100_000,
        wire.MAGIC[:-1] + b"\x02" + b"\0" * 16,
        announcing(0, 2**32 - 1),
        announcing(2**32 - 1, 0),
        WHOLE + b"more",
        announcing(10, 0) + b"PATH=/bin\0",
    ],
    ids=["HTTP", "zeros", "next version", "huge stdin", "huge environment", "too long", "foreign variable"],
)
def test_garbage_is_shown_the_door(serve: Serve, data: bytes) -> None:
    agent = serve()
    with witness() as (writer, is_gone), connected(agent.path) as client:
        send(client, data, writer)
        assert answer_to(client) is None
        assert is_gone()
    assert agent.refusals.reasons == {"malformed": 1}
    assert f"closed the connection of process {os.getpid()} (user {os.getuid()}): it" in agent.log.read_text()
    assert is_served(agent.path)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_more_than_one_descriptor_is_refused_and_all_are_closed(serve: Serve, count: int) -> None:
    agent = serve()
    with witness() as (writer, is_gone):
        assert call(agent.path, HELLO, *[writer] * count) is None
        assert is_gone()
    assert agent.refusals.reasons == {"malformed": 1}


def test_descriptors_one_by_one_are_too_many_as_well(serve: Serve) -> None:
    agent = serve()
    with witness() as (writer, is_gone), connected(agent.path) as client:
        send(client, WHOLE[:1], writer)
        assert soon(lambda: agent.server.waiting == 1)
        send(client, WHOLE[1:2], writer)
        assert answer_to(client) is None
        assert is_gone()


@pytest.mark.parametrize("length", [1, 10, 24, len(WHOLE) - 1])
def test_half_a_request_and_then_the_end(serve: Serve, length: int) -> None:
    agent = serve()
    with witness() as (writer, is_gone), connected(agent.path) as client:
        send(client, WHOLE[:length], writer)
        client.shutdown(socket.SHUT_WR)
        assert answer_to(client) is None
        assert is_gone()
    assert agent.refusals.reasons == {"malformed": 1}
    assert f"it ends after {length} bytes" in agent.log.read_text()


def test_somebody_who_only_looks_in_is_not_worth_a_word(serve: Serve) -> None:
    agent = serve()
    with connected(agent.path):
        pass
    with connected(agent.path):
        assert soon(lambda: agent.server.waiting == 1)
    assert soon(lambda: agent.server.waiting == 0)
    assert is_served(agent.path)
    assert (agent.refusals.reasons, agent.log.read_text()) == ({}, "")


@pytest.mark.parametrize("pause", [SECONDS, 0.02], ids=["stalls", "drips"])
def test_a_request_that_is_not_whole_in_time(serve: Serve, monkeypatch: pytest.MonkeyPatch, pause: float) -> None:
    monkeypatch.setattr(waiting, "REQUEST_SECONDS", 0.5)
    agent = serve()
    with witness() as (writer, is_gone), connected(agent.path) as client:
        send(client, announcing(0, 4 << 20), writer)
        client.settimeout(pause)
        started = time.monotonic()
        closed = False
        while not closed and time.monotonic() - started < SECONDS:
            with suppress(TimeoutError):
                closed = answer_to(client) is None
            with suppress(BrokenPipeError):
                client.send(b" ")
        assert closed
        assert is_gone()
    assert time.monotonic() - started >= 0.4
    assert agent.refusals.reasons == {"overdue": 1}


def test_a_thousand_idle_connections_delay_nobody(serve: Serve) -> None:
    agent = serve()
    idle = []
    try:
        for number in range(1000):
            idle.append(socket.socket(socket.AF_UNIX))
            idle[-1].connect(agent.path)
            if number % 2:
                idle[-1].sendall(WHOLE[: number % 30])
        assert agent.gave("crowded", 1000 - waiting.MOST_WAITING)
        assert soon(lambda: agent.server.waiting == waiting.MOST_WAITING)
        started = time.monotonic()
        assert all(is_served(agent.path) for _ in range(100))
        assert time.monotonic() - started < 5
        assert idle[0].recv(1) == b""  # the oldest had to go
        idle[-1].sendall(WHOLE[999 % 30 :])
        assert answer_to(idle[-1]) == echo(HELLO)  # the latest need not
    finally:
        for client in idle:
            client.close()
    assert soon(lambda: agent.server.waiting == 0)


def test_what_all_that_wait_hold_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_BYTES", 300_000)
    agent = serve()
    clients = []
    try:
        for _ in range(5):
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].connect(agent.path)
            clients[-1].sendall(announcing(0, 4 << 20) + b" " * 100_000)
        assert agent.gave("crowded", 3)
        assert soon(lambda: agent.server.waiting == 2)
    finally:
        for client in clients:
            client.close()
    for _ in range(5):  # they have left nothing behind
        with connected(agent.path) as client:
            client.sendall(announcing(0, 250_000) + b" " * 100_000)
            assert soon(lambda: agent.server.waiting == 1)
            client.sendall(b" " * 150_000)
            assert answer_to(client)
    assert agent.refusals.reasons["crowded"] == 3


def test_a_client_that_does_not_read_its_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.3)
    agent = serve(lambda request: Answer(0, b"x" * (0 if request.environ else 5 << 20)))
    with connected(agent.path) as client:
        client.sendall(wire.encode_request(Request({}, b"")))
        assert call(agent.path) == Answer(0, b"")
        assert agent.gave("unread")


def test_a_client_that_is_gone_before_its_answer(serve: Serve) -> None:
    end = threading.Event()
    agent = serve(echo_after(end))
    with connected(agent.path) as client:
        client.sendall(WHOLE)
        assert soon(lambda: agent.server.in_flight == 1)
        time.sleep(0.1)  # for the handler to have it
    end.set()
    assert agent.gave("unread")
    assert is_served(agent.path)


def test_of_many_alike_one_is_logged(serve: Serve) -> None:
    agent = serve()
    for _ in range(50):
        with connected(agent.path) as client:
            client.sendall(b"nonsense")
            assert answer_to(client) is None
    assert agent.refusals.reasons == {"malformed": 50}
    assert agent.log.read_text().count("\n") == 1


# An agent with few descriptors, all of which it wastes when it is told to. It tells how many seconds of a processor it
# has taken, and at the end whether all is finished. A request may take some time.
POOR_AGENT = """
import os, resource, sys, time
from cni.agent.journal import Journal
from cni.agent.listener import listen
from cni.agent.server import Server
from cni.agent.wire import Answer
def handle(request):
    time.sleep(float(request.environ.get("CNI_ARGS", 0)))
    return Answer(0, request.stdin)
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
agent = Server(listen(sys.argv[1]), handle, Journal(sys.stderr))
agent.start()
wasted = []
for line in sys.stdin:
    try:
        while line == "waste\\n":
            wasted.append(os.dup(1))
    except OSError:
        pass
    while wasted and line == "free\\n":
        os.close(wasted.pop())
    print(time.process_time(), flush=True)
print(agent.stop(20))
"""

# More idle connections than it has descriptors, then somebody who wants to be served.
CROWD = """
import socket, sys
from cni.agent import wire
clients = []
for number in range(200):
    clients.append(socket.socket(socket.AF_UNIX))
    clients[-1].connect(sys.argv[1])
clients[-1].settimeout(20)
clients[-1].sendall(wire.encode_request(wire.Request({}, b"after the crowd")))
sys.stdout.buffer.write(clients[-1].recv(1000))
"""


def test_without_descriptors_it_goes_on_and_does_not_spin(path: str) -> None:
    with python(POOR_AGENT, path) as agent:

        def tell(what: bytes) -> float:
            assert agent.stdin
            assert agent.stdout
            agent.stdin.write(what + b"\n")
            agent.stdin.flush()
            return float(agent.stdout.readline())

        before = tell(b"waste")
        slow = Request({"CNI_ARGS": "1.5"}, b"")
        with in_parallel(server.WORKERS, lambda _: call(path, slow)):  # accept(2) has a descriptor for each in advance
            pass
        assert tell(b"waste") - before < 0.5
        with witness() as (writer, is_gone):
            assert call(path, HELLO, writer) is None
            assert is_gone()
        tell(b"free")
        with connected(path) as client:
            client.sendall(WHOLE[:5])
            time.sleep(0.1)
            client.sendall(WHOLE[5:])
            assert answer_to(client)
        with python(CROWD, path) as crowd:
            answer, _ = crowd.communicate(timeout=60)
        out, err = agent.communicate(timeout=60)
    assert answer == wire.encode_answer(Answer(0, b"after the crowd"))
    assert out == b"True\n"
    assert b"cannot accept connections: Too many open files" in err
    assert b"it passes a descriptor for which this process has no room" in err


def python(program: str, path: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, path],
        env={"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# --- who may -----------------------------------------------------------------------------------------------------


def as_nobody(action: Callable[[], object]) -> str:
    """What an unprivileged process gets: what the action returns, or the error's name."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            result = str(action())
        except OSError as error:
            result = type(error).__name__
        os.write(writer, result.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        result = stream.read()
    os.waitpid(child, 0)
    return result


def test_others_cannot_open_the_socket(serve: Serve, directory: Path) -> None:
    agent = serve()
    directory.chmod(0o755)
    assert as_nobody(lambda: call(agent.path)) == "PermissionError"


def test_others_are_sent_away_even_if_they_get_in(serve: Serve, directory: Path) -> None:
    agent = serve()
    directory.chmod(0o755)
    os.chmod(agent.path, 0o666)
    assert as_nobody(lambda: call(agent.path)) == "None"
    assert agent.refusals.reasons == {"user": 1}
    assert f"(user {NOBODY}): only user {os.getuid()} may use this socket" in agent.log.read_text()
    assert is_served(agent.path)


# --- the socket's file -------------------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_alone(serve: Serve, directory: Path) -> None:
    path = directory / "below" / "agent.sock"
    serve(listener=listen(str(path)))
    assert stat.filemode(path.stat().st_mode) == "srw-------"
    assert [entry.name for entry in path.parent.iterdir()] == ["agent.sock"]
    assert is_served(str(path))


def test_what_a_dead_agent_has_left_is_replaced(serve: Serve, path: str) -> None:
    for leftover in (path, f"{path}.new"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(leftover)
    serve()
    assert is_served(path)


def test_a_living_agents_socket_is_not_stolen(serve: Serve, path: str) -> None:
    agent = serve()
    with pytest.raises(IOFailure, match=f"is served by process {os.getpid()}: stop that agent first .kill "):
        listen(path)
    assert is_served(path)
    assert agent.refusals.reasons == {}


def test_an_agent_that_hangs_lives_too(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as hanging, socket.socket(socket.AF_UNIX) as client:
        hanging.bind(path)
        hanging.listen(0)
        client.connect(path)
        with pytest.raises(IOFailure, match="a process that cannot be seen from here"):
            listen(path)


def test_what_is_no_socket_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")
    for take_over in (False, True):
        with pytest.raises(IOFailure, match="not a socket: remove it"):
            listen(path, take_over)
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "reason"), [("x" * 100, "choose a shorter path"), ("file/agent.sock", "cannot listen at .*File exists")]
)
def test_where_a_socket_cannot_be(directory: Path, name: str, reason: str) -> None:
    (directory / "file").write_text("")
    with pytest.raises(IOFailure, match=reason):
        listen(str(directory / name))


def test_one_agent_takes_over_from_another_and_no_client_notices(serve: Serve, path: str) -> None:
    old = serve(lambda _: Answer(0, b"old"))
    end = threading.Event()

    def keep_calling(_: int) -> list[Answer | None]:
        answers = []
        while not end.is_set():
            answers.append(call(path))
        return answers

    with in_parallel(3, keep_calling) as all_answers:
        try:
            time.sleep(0.2)
            serve(lambda _: Answer(0, b"new"), listen(path, take_over=True))
            assert call(path) == Answer(0, b"new")
            old.stop()
            time.sleep(0.2)
        finally:
            end.set()
    assert call(path) == Answer(0, b"new")
    for answers in all_answers:
        assert isinstance(answers, list)
        assert [answer for answer, _ in groupby(answers)] == [Answer(0, b"old"), Answer(0, b"new")]


# --- a socket of systemd's ---------------------------------------------------------------------------------------


def test_a_socket_that_was_passed_is_served_and_left_to_the_next_agent(
    serve: Serve, passed: Callable[[], Listener], path: str
) -> None:
    first = serve(lambda _: Answer(0, b"first"), passed())
    assert call(path) == Answer(0, b"first")
    first.stop()
    with connected(path) as client:
        client.sendall(WHOLE)
        serve(lambda _: Answer(0, b"second"), passed())
        assert answer_to(client) == Answer(0, b"second")
    assert Path(path).is_socket()


@pytest.mark.parametrize("kind", ["a file", "a socket of another family", "a datagram socket", "one that is idle"])
def test_what_else_systemd_may_pass_is_refused(kind: str) -> None:
    kinds = {
        "a file": lambda: os.open(os.devnull, os.O_RDONLY),
        "a socket of another family": lambda: socket.create_server(("127.0.0.1", 0)).detach(),
        "a datagram socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
        "one that is idle": lambda: socket.socket(socket.AF_UNIX).detach(),
    }
    fd = kinds[kind]()
    with pytest.raises(IOFailure, match=f"descriptor {fd} .* must have one ListenStream="):
        adopt(fd)


# --- the end -----------------------------------------------------------------------------------------------------


def test_at_the_end_the_socket_is_gone_and_another_agent_can_begin(serve: Serve, path: str) -> None:
    for _ in range(3):
        agent = serve()
        assert is_served(path)
        agent.stop()
        assert not Path(path).exists()
        assert (agent.server.workers, agent.server.in_flight, agent.server.waiting) == (0, 0, 0)


def test_a_socket_that_is_not_ours_any_more_stays(serve: Serve, path: str) -> None:
    agent = serve()
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        agent.stop()
        assert Path(path).is_socket()


def test_who_was_let_in_is_served_to_the_end(serve: Serve, path: str) -> None:
    """Clients either cannot connect or get their answer, however many there are when the agent stops."""

    def handle(request: Request) -> Answer:
        time.sleep(0.002)
        return echo(request)

    def keep_calling(_: int) -> int:
        served = 0
        with suppress(ConnectionRefusedError, FileNotFoundError):
            while True:
                assert is_served(path)
                served += 1
        return served

    agent = serve(handle)
    with in_parallel(30, keep_calling) as served:
        time.sleep(0.3)
        agent.stop()
    assert len(served) == 30
    assert agent.refusals.reasons == {}


def test_the_backlog_is_served_to_the_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_WORKERS", server.WORKERS)
    end = threading.Event()
    agent = serve(echo_after(end))
    with in_parallel(server.WORKERS + 20, lambda _: call(agent.path)) as answers:
        assert soon(lambda: agent.server.in_flight == server.WORKERS)
        time.sleep(0.2)  # for the others to be in the backlog
        stopping = threading.Thread(target=agent.stop)
        stopping.start()
        assert soon(lambda: not Path(agent.path).exists())
        end.set()
        stopping.join()
    assert answers == [echo(HELLO)] * (server.WORKERS + 20)


def test_those_on_their_way_get_a_moment_and_the_idle_are_sent_away(serve: Serve) -> None:
    agent = serve()
    with connected(agent.path) as idle, connected(agent.path) as late:
        late.sendall(WHOLE[:30])
        assert soon(lambda: agent.server.waiting == 2)
        stopping = threading.Thread(target=agent.stop)
        stopping.start()
        assert soon(lambda: not Path(agent.path).exists())
        late.sendall(WHOLE[30:])
        assert answer_to(late) == echo(HELLO)
        assert idle.recv(1) == b""
        stopping.join()


def test_who_does_not_finish_in_time_is_told(serve: Serve) -> None:
    end = threading.Event()
    agent = serve(echo_after(end))
    with in_parallel(1, lambda _: call(agent.path)) as answers:
        assert soon(lambda: agent.server.in_flight == 1)
        assert not agent.server.stop(0.1)
        end.set()
    assert answers == [echo(HELLO)]
