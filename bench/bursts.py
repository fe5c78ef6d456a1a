"""Many pods at once, and what starting that many processes costs in itself."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial

from bench.network import SETTLE_SECONDS, Network
from bench.process import PATH, Call, run_at_once
from bench.samples import AGENT, HARNESS, IN_PROCESS, Limit, Limits, Row, compared, median_ms, percentile
from bench.stage import Stage
from cni import netns
from cni.frozen import frozen

SIZES, QUICK_SIZES = (1, 50, 100, 200), (1, 200)
MOST = SIZES[-1]
MOST_IN_PROCESS = 100  # which takes seconds as it is
NOT_PLOTTED = 100
BURST_SETTLE_SECONDS = 0.5  # after the largest
SLOW_ROUNDS = 5  # at most, of the larger ones

WALL: Limits = {AGENT: Limit(0.12)}
P99: Limits = {AGENT: Limit(0.1)}


@frozen
class Burst:
    """Many processes at once: when all were done, and how long each took; in seconds."""

    wall: float
    each: list[float]


def measure(stage: Stage) -> list[Row]:
    """Pods that come and go at once."""
    rows = []
    with stage.networks() as networks:
        for size in _sizes(stage):
            pods = stage.pods(size)
            actions = {
                who: partial(_come_and_go, network, pods)
                for who, network in networks.items()
                if who != IN_PROCESS or size <= MOST_IN_PROCESS
            }
            taken = stage.in_turns(actions, _rounds(stage, size))
            for index, verb in enumerate(("ADD", "DEL")):
                rows += _rows(verb, size, {who: [both[index] for both in bursts] for who, bursts in taken.items()})
    return rows


def starting(stage: Stage) -> list[Row]:
    """What the benchmark itself costs: as many processes that do nothing."""
    calls = {"/bin/true": Call(("/bin/true",), {"PATH": PATH}, b"")}
    for each in stage.contenders:
        if each.name == AGENT:  # its client answers by itself
            calls["the client's VERSION"] = Call(
                (each.executable,), {"CNI_COMMAND": "VERSION"}, b'{"cniVersion": "1.0.0"}'
            )
    actions = {(name, size): partial(_at_once, [call] * size) for name, call in calls.items() for size in _sizes(stage)}
    taken = stage.in_turns(actions, min(stage.rounds, SLOW_ROUNDS))
    return [
        Row(HARNESS, "START", f"{name}, {size} at once", median_ms([burst.wall for burst in bursts]))
        for (name, size), bursts in taken.items()
    ]


def _sizes(stage: Stage) -> tuple[int, ...]:
    return QUICK_SIZES if stage.quick else SIZES


def _rounds(stage: Stage, size: int) -> int:
    if size == 1:
        return stage.rounds
    return 1 if stage.quick else min(stage.rounds, SLOW_ROUNDS)


def _come_and_go(network: Network, pods: Sequence[str]) -> tuple[Burst, Burst]:
    """All pods attached at once, and detached at once."""
    containers = [(pod, secrets.token_hex(16)) for pod in pods]
    bursts = []
    for verb in ("ADD", "DEL"):
        calls = [network.call(verb, *each) for each in containers]
        with netns.entered(network.host):
            bursts.append(_at_once(calls))
        time.sleep(max(SETTLE_SECONDS, BURST_SETTLE_SECONDS * len(pods) / MOST))
    return bursts[0], bursts[1]


def _at_once(calls: Sequence[Call]) -> Burst:
    wall, answers = run_at_once(calls)
    return Burst(wall, [answer.seconds for answer in answers])


def _rows(verb: str, size: int, taken: Mapping[str, Sequence[Burst]]) -> list[Row]:
    what = f"{size} {verb}s at once" if size > 1 else f"{verb}, one at a time"
    short = f"{size}, {{}}" if verb == "ADD" and size != NOT_PLOTTED else ""
    limited = verb == "ADD" and size == MOST
    walls = {who: [burst.wall for burst in bursts] for who, bursts in taken.items()}
    rows = compared("BURST", f"{what}: until all are done", walls, WALL if limited else {}, short.format("all"))
    each = {who: _samples(bursts) for who, bursts in taken.items()}
    p50, p99 = ({who: _percentiles(samples, percent) for who, samples in each.items()} for percent in (50, 99))
    return [
        *(rows if size > 1 else []),
        *compared("BURST", f"{what}: each, p50", p50, short=short.format("p50")),
        *compared("BURST", f"{what}: each, p99", p99, P99 if limited else {}, short.format("p99")),
    ]


def _samples(bursts: Sequence[Burst]) -> list[list[float]]:
    """The times of which percentiles make sense: of each burst, or of all together when each is a single process."""
    alone = all(len(burst.each) == 1 for burst in bursts)
    return [[burst.each[0] for burst in bursts]] if alone else [burst.each for burst in bursts]


def _percentiles(samples: Sequence[Sequence[float]], percent: float) -> list[float]:
    return [percentile(times, percent) for times in samples]
