"""The agent's socket in bad company: other users, garbage, requests that never end, a thousand idle connections.

Pods come and go meanwhile, and notice nothing of it.
"""

from __future__ import annotations

import array
import os
import random
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from cni.agent import wire
from cni.agent.wire import MAX_ENVIRON, MAX_STDIN, Request
from cni.ctl.lab import Lab
from tests.kernel.agents import Agent
from tests.kernel.kubelet import Kubelet
from tests.kernel.torture import forked, inventory, seeded, size

pytestmark = pytest.mark.without_agent("it has one of its own")

NOBODY = 65534
RUNTIMES = 3
IDLE = 1000
SECONDS = size(3, 30)
CALL_SECONDS = 1.0  # that a call may take in bad company
SETTLE_SECONDS = 20.0


@pytest.fixture
def agent(lab: Lab, client: Path) -> Iterator[Agent]:
    with Agent(lab, client) as agent:
        yield agent


# --- other users -----------------------------------------------------------------------------------------------------


def as_nobody(action: Callable[[], None]) -> Callable[[], None]:
    """An action of a user without any rights."""

    def act() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        action()

    return act


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_nobody_but_root_gets_in(lab: Lab, agent: Agent) -> None:
    agent.directory.chmod(0o755)

    def knock() -> None:
        with socket.socket(socket.AF_UNIX) as stranger, pytest.raises(PermissionError):
            stranger.connect(agent.socket)

    assert forked(lab.host, as_nobody(knock)) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_gets_in_all_the_same_gets_nothing(lab: Lab, agent: Agent) -> None:
    """Somebody has changed the mode of the socket."""
    agent.directory.chmod(0o755)
    os.chmod(agent.socket, 0o666)
    pod = lab.container("pod")
    before = inventory(lab, pod)
    request = wire.encode_request(Request({**pod.variables, "CNI_COMMAND": "ADD"}, b"{}"))

    def ask() -> None:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(agent.socket)
            with suppress(BrokenPipeError):
                stranger.sendall(request)
            assert received(stranger) == b""

    assert forked(lab.host, as_nobody(ask)) == 0
    assert f"(user {NOBODY}): only user 0 may use this socket" in agent.log
    assert inventory(lab, pod) == before


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    with suppress(ConnectionResetError):
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return b""


# --- bad company -----------------------------------------------------------------------------------------------------

HEADER = wire.REQUEST_HEADER
WHOLE = wire.encode_request(Request({"CNI_COMMAND": "STATUS"}, b"{}"))


def garbage(connection: socket.socket, chance: random.Random) -> None:
    """Another protocol."""
    connection.sendall(chance.randbytes(chance.randrange(1, 100_000)))
    received(connection)


def half_a_request(connection: socket.socket, chance: random.Random) -> None:
    """A client that is killed."""
    connection.sendall(WHOLE[: chance.randrange(len(WHOLE))])


def too_much(connection: socket.socket, chance: random.Random) -> None:
    """More than anybody has to say."""
    lengths = chance.choice([(MAX_ENVIRON + 1, 0), (0, MAX_STDIN + 1), (2**32 - 1, 2**32 - 1)])
    connection.sendall(HEADER.pack(wire.MAGIC, 0, 0, *lengths))
    received(connection)


def as_much_as_possible(connection: socket.socket, chance: random.Random) -> None:
    """The longest request that there is, which is answered with an error."""
    connection.sendall(wire.encode_request(Request({"CNI_COMMAND": "STATUS"}, b" " * MAX_STDIN)))
    assert b'"code"' in received(connection)


def descriptors(connection: socket.socket, chance: random.Random) -> None:
    """Files instead of a namespace, one or many."""
    passed = array.array("i", [connection.fileno()] * chance.choice([1, 2, 200]))
    connection.sendmsg([WHOLE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
    received(connection)


def a_request_that_drips(connection: socket.socket, chance: random.Random) -> None:
    """A byte at a time."""
    for byte in WHOLE[:40]:
        connection.sendall(bytes([byte]))
        time.sleep(0.005)


COMPANY = (garbage, half_a_request, too_much, as_much_as_possible, descriptors, a_request_that_drips)


@contextmanager
def company(path: str, chance: random.Random) -> Iterator[None]:
    """All of these, one after the other, on a thread each for the time of a block."""
    over = threading.Event()

    def keep(misbehave: Callable[[socket.socket, random.Random], None], chance: random.Random) -> None:
        while not over.wait(0.02):
            with socket.socket(socket.AF_UNIX) as connection, suppress(BrokenPipeError, ConnectionResetError):
                connection.connect(path)
                misbehave(connection, chance)

    with ThreadPoolExecutor(len(COMPANY)) as pool:
        kept = [pool.submit(keep, misbehave, random.Random(chance.random())) for misbehave in COMPANY]
        try:
            yield
        finally:
            over.set()
    for each in kept:
        each.result()


@contextmanager
def idle(path: str, count: int) -> Iterator[None]:
    """Connections that say nothing, or not all, for the time of a block."""
    with ExitStack() as opened:
        for number in range(count):
            connection = opened.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(path)
            with suppress(BrokenPipeError):
                connection.sendall(WHOLE[: number % len(WHOLE)])
        yield


@pytest.mark.parametrize("bad", ["company", "idle"])
def test_pods_come_and_go_in_bad_company(lab: Lab, agent: Agent, bad: str) -> None:
    allow_many_descriptors()
    chance, before = seeded(bad), inventory(lab)
    kubelet = Kubelet(lab, dual=True)
    with kubelet.load(RUNTIMES, chance):
        time.sleep(1.0)
    calm = occupied(agent.pid)
    kubelet.slowest = 0.0
    around = company(agent.socket, chance) if bad == "company" else idle(agent.socket, IDLE)
    with around, kubelet.load(RUNTIMES, chance) as load:
        time.sleep(SECONDS)
    print(f"{load.rounds} pods came and went; the slowest call took {kubelet.slowest:.2f} s")
    assert load.rounds >= RUNTIMES
    assert kubelet.failures == []
    assert kubelet.slowest < CALL_SECONDS
    for pod in list(kubelet.sandboxes):
        kubelet.remove(pod)
    assert inventory(lab) == before
    assert settled(agent.pid, calm) <= calm


def allow_many_descriptors() -> None:
    """As many as we may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def occupied(pid: int) -> Counter[str]:
    """The descriptors and threads of a process."""
    return Counter({what: len(os.listdir(f"/proc/{pid}/{what}")) for what in ("fd", "task")})


def settled(pid: int, calm: Counter[str]) -> Counter[str]:
    """The same once it is no more than it was, or does not become so; threads wait for work for a while."""
    until = time.monotonic() + SETTLE_SECONDS
    while not (now := occupied(pid)) <= calm and time.monotonic() < until:
        time.sleep(0.1)
    return now
