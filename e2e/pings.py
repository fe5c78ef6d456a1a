"""Machines of any kind that ping each other while something else happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from e2e.machine import Machine
from tests.pings import all_answered, unanswered

INTERVAL_SECONDS = 0.2
CALM_SECONDS = 2.0  # before and after


class Pinger:
    """Pings at short intervals from one machine to an address of another, until it is told to stop."""

    def __init__(self, source: Machine, target: Machine, address: str) -> None:
        self._source = source
        self._story = f"{source.name} to {target.name}, {address}"
        self._file = f"/tmp/e2e-ping-{source.name}-{address}"
        ping = f"ping -i {INTERVAL_SECONDS:g} {address} > {self._file} 2>&1 & echo $!"
        self._pid = source.run("sh", "-c", ping).strip()

    def stop(self) -> list[str]:
        """End it; which pings were lost."""
        self._source.run("kill", "-INT", self._pid)
        output = self._source.run("cat", self._file)
        self._source.run("rm", self._file)
        return unanswered(self._story, output, first=0, least=CALM_SECONDS / INTERVAL_SECONDS)


@contextmanager
def none_lost(ways: Sequence[tuple[Machine, Machine]]) -> Iterator[None]:
    """Each of these machines pings the other one all the time, and each ping is answered."""
    silent = [f"{source.name} to {target.name}" for source, target in ways if not source.pings(target)]
    assert not silent, silent
    pingers = (Pinger(source, target, address) for source, target in ways for address in target.addresses)
    with all_answered(pingers, CALM_SECONDS):
        yield
