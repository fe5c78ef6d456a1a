"""Pings that go on while something else happens."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

from e2e.machine import Machine

INTERVAL_SECONDS = 0.2
CALM_SECONDS = 2.0  # before and after
REPLY = re.compile(r"seq=(\d+) ttl=")


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
        answered = {int(number) for number in REPLY.findall(output)}
        assert len(answered) > CALM_SECONDS / INTERVAL_SECONDS, f"{self._story}: {output}"
        # The last one may be on its way.
        return [f"{self._story}: {number}" for number in range(max(answered)) if number not in answered]


@contextmanager
def none_lost(ways: Sequence[tuple[Machine, Machine]]) -> Iterator[None]:
    """Each of these machines pings the other one all the time, and each ping is answered."""
    silent = [f"{source.name} to {target.name}" for source, target in ways if not source.pings(target)]
    assert not silent, silent
    with ExitStack() as ending:
        pingers = [Pinger(source, target, address) for source, target in ways for address in target.addresses]
        for pinger in pingers:
            ending.callback(pinger.stop)
        time.sleep(CALM_SECONDS)
        yield
        time.sleep(CALM_SECONDS)
        ending.pop_all()
        lost = list(chain.from_iterable(pinger.stop() for pinger in pingers))
        assert not lost, lost
