"""Pings that go on while something else happens, whoever sends them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

REPLY = re.compile(r"\b(?:icmp_)?seq=(\d+) ttl=")  # of iputils' ping and of busybox's


class Pinger(Protocol):
    """Pings at short intervals, from its making on."""

    def stop(self) -> list[str]:
        """End it; which pings were lost."""


def unanswered(story: str, output: str, first: int, least: float) -> list[str]:
    """The pings without an answer in what ping(8) has said, by number; `first` is that of the first one.

    Fails when fewer than `least` were answered.
    """
    answered = {int(number) for number in REPLY.findall(output)}
    assert len(answered) > least, f"{story}: {output}"
    # The last one may be on its way.
    return [f"{story}: {number}" for number in range(first, max(answered)) if number not in answered]


@contextmanager
def all_answered(pingers: Iterable[Pinger], calm_seconds: float) -> Iterator[None]:
    """All of these ping for the time of a block, and a while before and after it, and no ping is lost."""
    with ExitStack() as ending:
        started = []
        for pinger in pingers:
            ending.callback(pinger.stop)
            started.append(pinger)
        time.sleep(calm_seconds)
        yield
        time.sleep(calm_seconds)
        ending.pop_all()
        lost = [number for pinger in started for number in pinger.stop()]
        assert not lost, lost
