"""A machine as somebody in front of it sees it: a host, a pod, something on the LAN. All of them have busybox."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

PORT = 8080  # of the server in each pod
SERVER = ("httpd", "-f", "-p", str(PORT), "-h", "/etc")
PAGE = "passwd"  # which every image with busybox has
PATIENCE_SECONDS = 60.0
AT_ONCE = 8  # programs
GLOBAL = re.compile(r"inet6? (\S+)/\d+ .*scope global")


@dataclass(frozen=True)
class Done:
    """How a program ended, and what it wrote to its standard output and error."""

    status: int
    output: str
    complaint: str


def execute(command: Sequence[str], given: str | None = None) -> Done:
    """Run a command here to its end; `given` is its standard input."""
    ended = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    return Done(ended.returncode, ended.stdout, ended.stderr.strip())


@dataclass
class Machine:
    """Words before a program of busybox run it there; `addresses` are where others reach it."""

    name: str
    enter: Sequence[str]
    addresses: list[str] = field(default_factory=list)

    def execute(self, program: Sequence[str]) -> Done:
        """Run a program to its end."""
        return execute([*self.enter, *program])

    def run(self, *program: str) -> str:
        """What a program writes. Raises AssertionError when it fails."""
        done = self.execute(program)
        assert done.status == 0, f"{self.name}: `{' '.join(program)}` ends with {done.status}: {done.complaint}"
        return done.output

    def succeeds(self, *program: str) -> bool:
        """Whether a program ends with 0."""
        return self.execute(program).status == 0

    def pings(self, other: Machine) -> bool:
        """Whether each address of the other one answers, in three seconds."""
        return all(self.succeeds("ping", "-c", "1", "-W", "3", address) for address in other.addresses)

    def fetches(self, other: Machine) -> bool:
        """Whether the server of a pod answers on each of its addresses."""
        return all(self.fetches_from(address) for address in other.addresses)

    def fetches_from(self, address: str, port: int = PORT) -> bool:
        """Whether a server answers with the page that pods have."""
        # Not `wget -T`: that of a static busybox crashes.
        url = f"http://{_in_url(address)}:{port}/{PAGE}"
        return self.succeeds("timeout", "3", "wget", "-q", "-O", "/dev/null", url)

    def addresses_of(self, link: str) -> list[str]:
        """The global addresses of a link, IPv4 first."""
        return sorted(GLOBAL.findall(self.run("ip", "address", "show", "dev", link)), key=lambda each: ":" in each)


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def eventually(true: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something is true. Raises AssertionError with `what` when it takes too long."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what}: not after {seconds:g} s"
        time.sleep(0.1)


def all_reach_each_other(pods: Sequence[Machine], *others: Machine) -> list[str]:
    """Who does not reach whom: everybody pings everybody and fetches a page of each pod; empty when all is well."""
    everybody = [*pods, *others]
    ways = [(a, b) for a in everybody for b in everybody if a is not b and not (a in others and b in others)]
    with ThreadPoolExecutor(AT_ONCE) as callers:
        told = callers.map(lambda way: _complaints(*way, web=way[1] in pods), ways)
        return list(chain.from_iterable(told))


def _complaints(source: Machine, target: Machine, *, web: bool) -> list[str]:
    silent = [] if source.pings(target) else [f"{source.name} does not ping {target.name}"]
    mute = [] if not web or source.fetches(target) else [f"{source.name} gets no page of {target.name}"]
    return silent + mute
