"""What the torture suites share: size and seed, plugins in flight, and the state that has to be the same again."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from cni.ctl.lab import CniAnswer, Lab, Node, Pod
from cni.ctl.node import enter
from cni.ctl.runtime import with_result
from cni.frozen import frozen
from tests.kernel import traces

FULL = os.environ.get("SHIMLAN_TORTURE") == "full"
HANG_SECONDS = 10.0

SHOW = "; ".join(
    (
        "ip -o link",
        "ip -o address show scope global",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip neigh show nud permanent",
        "nft list ruleset",
    )
)
# What the kernel adds by itself once it knows that a link-local address is unique.
BY_ITSELF = re.compile(r"\b(fe80|ff00)::|^anycast ")


def size(default: int, full: int) -> int:
    """How often to try something: a taste of it, or all when SHIMLAN_TORTURE=full."""
    return full if FULL else default


def seeded(story: str) -> random.Random:
    """The source of chance for one test; its seed is printed, and taken from SHIMLAN_SEED if that is set."""
    seed = os.environ.get("SHIMLAN_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"{story}: SHIMLAN_SEED={seed}")
    return random.Random(f"{seed} {story}")


# --- what is there -------------------------------------------------------------------------------------------------


def footprint(node: Node) -> list[str]:
    """Links, global addresses, routes, permanent neighbours and nftables of a namespace, a line each."""
    lines = node.run("sh", "-c", SHOW, check=False).stdout.splitlines()
    return sorted(f"{node.label}: {line.strip()}" for line in lines if not BY_ITSELF.search(line))


def inventory(lab: Lab, *nodes: Node) -> list[str]:
    """All that plugins can leave behind: on the host, in other namespaces, and in the store."""
    stored = [f"record: {attachment.key}" for attachment in traces.records(lab)]
    stored += [f"lease: {lease.address} of {lease.container_id} {lease.ifname}" for lease in traces.held(lab)]
    return [line for node in (lab.host, *nodes) for line in footprint(node)] + stored


def glance(node: Node) -> list[str]:
    """The same in short and at once, from /proc: links, addresses and routes."""
    return node.inside(lambda: [f"{node.label}: {line}" for line in _read_proc("/proc/thread-self/net")])


def _read_proc(directory: str) -> Iterator[str]:
    # Of each table the columns that do not count packets or users.
    for table, columns in (
        ("dev", (0,)),
        ("if_inet6", (0, 2, 5)),
        ("route", (0, 1, 2, 7)),
        ("ipv6_route", (0, 1, 4, 9)),
    ):
        with open(f"{directory}/{table}") as file:
            rows = [line.split() for line in file]
        kept = (" ".join(row[column] for column in columns if column < len(row)) for row in rows)
        yield from sorted(f"{table} {line}" for line in kept if not line.startswith(("fe80", "ff00")))


# --- plugins in flight -----------------------------------------------------------------------------------------------


@frozen
class Flight:
    """A plugin under way in a process group of its own."""

    command: str
    process: subprocess.Popen[str]

    def kill(self, group: bool = True) -> None:
        """SIGKILL: it and the child that waits for the kernel to delete a link, or it alone."""
        (os.killpg if group else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def land(self, patience: float = 3 * HANG_SECONDS) -> CniAnswer:
        """Its answer. Raises subprocess.TimeoutExpired, and ends it, when it hangs."""
        try:
            stdout, stderr = self.process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return CniAnswer("shimlan", self.command, self.process.returncode, stdout, stderr)


def launch(lab: Lab, pod: Pod, command: str, **changes: Any) -> Flight:
    """Start a verb for a pod without waiting for it; `changes` are made to its configuration."""
    conf = pod.conf if command == "ADD" else with_result(pod.conf, pod.result)
    return start(lab, command, json.dumps({**conf, **changes}), pod.variables)


def start(lab: Lab, command: str, stdin: str, variables: Mapping[str, str]) -> Flight:
    """Start the plugin on the lab's host, with a standard input and CNI_* variables."""
    process = subprocess.Popen(
        [*lab.host.enter_words, lab.runtime().executable("shimlan")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env={"PATH": os.environ.get("PATH", os.defpath), **lab.environ, "CNI_COMMAND": command, **variables},
        start_new_session=True,
    )
    assert process.stdin
    with suppress(BrokenPipeError), process.stdin:  # a plugin may have heard enough
        process.stdin.write(stdin)
    process.stdin = None  # so that communicate() leaves it alone
    return Flight(command, process)


def killed(lab: Lab, pod: Pod, command: str, seconds: float, group: bool = True) -> bool:
    """Start a verb and kill it so many seconds later; whether it was still under way."""
    deadline = time.monotonic() + seconds
    flight = launch(lab, pod, command)
    time.sleep(max(0.0, deadline - time.monotonic()))
    under_way = flight.process.poll() is None
    if under_way:
        flight.kill(group)
    else:
        flight.land()
    return under_way


def duration(lab: Lab, pod: Pod, command: str, times: int = 5) -> float:
    """How long an undisturbed ADD or DEL takes, in seconds: the longest of a few, its opposite between them."""
    opposite = {"ADD": "DEL", "DEL": "ADD"}[command]
    longest = 0.0
    for _ in range(times):
        if command == "DEL":
            launch(lab, pod, opposite).land().or_raise()
        begin = time.monotonic()
        launch(lab, pod, command).land().or_raise()
        longest = max(longest, time.monotonic() - begin)
        if command == "ADD":
            launch(lab, pod, opposite).land().or_raise()
    return longest


def forked(node: Node, action: Callable[[], None], directory: str = "/") -> int:
    """The wait status of an action in a child process inside of a namespace, killed when it hangs."""
    child = os.fork()
    if not child:
        status = 70
        try:
            enter(node.netns)
            os.chdir(directory)
            action()
            status = 0
        finally:
            os._exit(status)
    return _wait(child)


def _wait(child: int) -> int:
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"hangs for {HANG_SECONDS:g} s")
        time.sleep(0.0005)


@contextmanager
def read_only(directory: str) -> Iterator[None]:
    """A directory, made if need be, in which nobody can write for the time of a block."""
    os.makedirs(directory, exist_ok=True)
    subprocess.run(["mount", "--bind", "-o", "ro", directory, directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
