"""What a pod's life takes of the machine: processor time, and what the agent occupies after many of them."""

from __future__ import annotations

import resource
import secrets
import time
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice

from bench.agent import Footprint
from bench.network import Network
from bench.samples import AGENT, NO_LIMIT, Limit, Limits, Row, compared
from bench.stage import Stage
from cni.frozen import frozen

SLOW_ROUNDS = 3
PODS, QUICK_PODS = 50, 30
AFTERMATH_SECONDS = 0.5  # for what the agent does because of an ADD, after it has answered
CPU: Limits = {AGENT: Limit(0.2)}

MEGABYTES = 40.0
FULL_SOAK, QUICK_SOAK = 10_000, 200  # pairs of ADD and DEL
MIDDLE = 5  # memory is looked at after a fifth of them, too
WARM_PAIRS = 20
SOAK_PODS = 8
REST_SECONDS, QUICK_REST_SECONDS = 12, 1  # idle threads of the agent stay for a while
MEMORY = Limit(1)
GROWTH = Limit(1.02)  # of a full soak; some pages more or less are no growth
NO_GROWTH = Limit(1)


def processor_time(stage: Stage) -> list[Row]:
    """Processor time of an ADD: of all its processes, and of the agent until it rests again."""
    pods = stage.pods(QUICK_PODS if stage.quick else PODS)
    with stage.networks() as networks:
        actions = {who: partial(_seconds_per_add, network, pods) for who, network in networks.items()}
        taken = stage.in_turns(actions, 1 if stage.quick else min(stage.rounds, SLOW_ROUNDS))
    return compared("CPU", f"CPU time of an ADD, mean of {len(pods)} in sequence", taken, CPU, short="CPU of an ADD")


def memory(stage: Stage) -> list[Row]:
    """What the agent occupies after many lives of pods."""
    rows: list[Row] = []
    for contender in stage.contenders:
        if contender.agent:
            with stage.network(contender) as network:
                rows += _soaked(network, stage.pods(SOAK_PODS), stage.soak)
    return rows


@frozen
class Look:
    """What an agent occupies at a time; `nsids` are the numbers that its host has for other namespaces."""

    footprint: Footprint
    nsids: int


def _seconds_per_add(network: Network, pods: Sequence[str]) -> float:
    before = _cpu_seconds(network)
    with network.attached(pods):
        time.sleep(AFTERMATH_SECONDS)
        after = _cpu_seconds(network)
    time.sleep(AFTERMATH_SECONDS)
    return (after - before) / len(pods)


def _cpu_seconds(network: Network) -> float:
    """Of all processes that have ended so far, and of the agent."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    agent = network.agent.cpu_seconds() if network.agent else 0
    return children.ru_utime + children.ru_stime + agent


def _soaked(network: Network, pods: Sequence[str], pairs: int) -> list[Row]:
    full = pairs >= FULL_SOAK
    rest = REST_SECONDS if full else QUICK_REST_SECONDS
    middle = max(WARM_PAIRS, pairs // MIDDLE)
    start = _look(network)
    warm = _look_after(network, pods, WARM_PAIRS, rest)
    some = _look_after(network, pods, middle - WARM_PAIRS)
    end = _look_after(network, pods, pairs - middle, rest)
    return [*_memory_rows(start, some, end, middle, pairs, full), *_leak_rows(warm, end, pairs, full)]


def _look_after(network: Network, pods: Sequence[str], pairs: int, rest: float = 0) -> Look:
    for pod in islice(cycle(pods), pairs):
        container = secrets.token_hex(16)
        network.run("DEL", pod, container, network.run("ADD", pod, container).json)
    time.sleep(rest)
    return _look(network)


def _look(network: Network) -> Look:
    assert network.agent is not None
    return Look(network.agent.footprint(), network.nsids())


def _memory_rows(start: Look, some: Look, end: Look, middle: int, pairs: int, full: bool) -> list[Row]:
    def row(what: str, look: Look, other: float | None, against: str, limit: Limit) -> Row:
        return Row(AGENT, "MEMORY", f"RSS {what}", look.footprint.megabytes, other, against, limit, unit="MB")

    first, last = f"after {middle:,} ADD/DEL pairs", f"after {pairs:,} ADD/DEL pairs"
    growth = GROWTH if full else NO_LIMIT
    return [
        row("after the start", start, None, "", NO_LIMIT),
        row(first, some, MEGABYTES, "what is allowed", MEMORY),
        row(last, end, some.footprint.megabytes, first, growth),
    ]


def _leak_rows(warm: Look, end: Look, pairs: int, full: bool) -> list[Row]:
    limit = NO_GROWTH if full else NO_LIMIT
    counts = (
        ("descriptors", end.footprint.descriptors, warm.footprint.descriptors),
        ("threads", end.footprint.threads, warm.footprint.threads),
        ("namespace numbers of the host", end.nsids, warm.nsids),
    )
    after, against = f"after {pairs:,} ADD/DEL pairs", f"after {WARM_PAIRS}"
    return [Row(AGENT, "MEMORY", f"{what} {after}", now, then, against, limit, unit="") for what, now, then in counts]
