"""What is compared: a function per question, each with the rows that answer it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from bench.leases import fill_ours, fill_reference
from bench.process import Call, run, run_at_once
from bench.samples import PEER, Row, compared, median_ms, percentile_ms
from bench.stage import HOST, Network, Stage, Times, tell
from cni.frozen import frozen

AT_ONCE = 100
BURSTS = 5  # at most; each is 400 processes
BURST_SETTLE_SECONDS = 0.5
BESIDE = 100
FEW_LEASES, MANY_LEASES, ALL_LEASES = 2_000, 20_000, 60_000
SHIM_ROUTES = {"routes": ["10.96.0.0/12"], "snat": True}


def single(stage: Stage) -> list[Row]:
    """The configuration as a user of the reference plugins has it, with the two types changed."""
    ours, peer = _lives_beside_a_resident(stage, stage.ours())
    return [
        compared("ADD", "ADD, single IPv4", _adds(ours), _adds(peer), limit=6, aim=3),
        compared("DEL", "DEL, single IPv4", _deletes(ours), _deletes(peer), limit=2, aim=1),
    ]


def without_shim(stage: Stage) -> list[Row]:
    """Only what the reference plugins do as well."""
    ours, peer = _lives(stage, stage.ours(shim=False))
    return [
        compared("BARE", "ADD without a shim", _adds(ours), _adds(peer), limit=6, aim=3),
        compared("BARE", "DEL without a shim", _deletes(ours), _deletes(peer), limit=2, aim=1),
    ]


def first_and_last(stage: Stage) -> list[Row]:
    """A pod that is alone on its host: the shim comes and goes with it."""
    ours, peer = _lives(stage, stage.ours())
    return [
        compared("FIRST", "ADD of the first pod, which makes the shim", _adds(ours), _adds(peer)),
        compared("FIRST", "DEL of the last pod, which removes the shim", _deletes(ours), _deletes(peer)),
    ]


def dual_stack(stage: Stage) -> list[Row]:
    """IPv4 and IPv6; the reference plugin waits for duplicate address detection."""
    ours, peer = _lives_beside_a_resident(stage, stage.ours(dual=True), dual=True)
    return [
        compared("DUAL", "ADD, dual stack", _adds(ours), _adds(peer), limit=0.05),
        compared("DUAL", "DEL, dual stack", _deletes(ours), _deletes(peer)),
    ]


def shim_with_routes(stage: Stage) -> list[Row]:
    """Everything the shim can do: routes to the host, and their source NAT."""
    ours, peer = _lives_beside_a_resident(stage, stage.ours(shim={"hostAddresses": [HOST], **SHIM_ROUTES}))
    return [
        compared("SHIM", "ADD with shim.routes and source NAT", _adds(ours), _adds(peer)),
        compared("SHIM", "DEL with shim.routes and source NAT", _deletes(ours), _deletes(peer)),
    ]


def check(stage: Stage) -> list[Row]:
    """CHECK of pods that stay."""
    with ExitStack() as stack:
        calls = []
        for network, pod in zip((stage.ours(), *_references(stage)), stage.pods(2), strict=False):
            [(_, container, result)] = stack.enter_context(stage.attached(network, [pod]))
            calls.append(network.call("CHECK", pod, container, result))
        ours, peer = _in_turns(stage, *calls)
    return [compared("CHECK", "CHECK", ours, peer)]


def version(stage: Stage) -> list[Row]:
    """VERSION: starting the process, mostly."""
    ours, peer = _in_turns(stage, *(network.call("VERSION") for network in (stage.ours(), *_references(stage))))
    return [compared("VERSION", "VERSION", ours, peer)]


def status(stage: Stage) -> list[Row]:
    """STATUS, which the reference plugins of CNI 1.0 do not know."""
    ours, _ = _in_turns(stage, stage.ours(cniVersion="1.1.0").call("STATUS"))
    return [compared("STATUS", "STATUS", ours, ())]


def leases_held(stage: Stage) -> list[Row]:
    """ADD with leases held, beside ADD with none."""
    numbers = [MANY_LEASES] if stage.quick else [MANY_LEASES, ALL_LEASES]
    none, *held = (stage.ours(shim=False) for _ in range(len(numbers) + 1))
    for network, number in zip(held, numbers, strict=True):
        fill_ours(network.conf, number)
    without, *times = stage.cycles(none, *held)
    rows = [
        _own_row("LEASES", f"ADD with {number:,} leases held", _adds(taken), _adds(without), "with none", limit=1.2)
        for number, taken in zip(numbers, times, strict=True)
    ]
    return [*rows, *_leases_of_the_peer(stage)]


def crowd(stage: Stage) -> list[Row]:
    """A pod that comes and goes beside many others on the same host."""
    alone, beside = stage.ours(), stage.ours(first="198.18.128.0")
    pods = stage.pods(BESIDE + 2)
    with stage.attached(alone, pods[1:2]), stage.attached(beside, pods[2:]):
        few, many = stage.cycles(alone, beside)
    return [
        _own_row("CROWD", f"ADD beside {BESIDE} pods", _adds(many), _adds(few), "beside 1"),
        _own_row("CROWD", f"DEL beside {BESIDE} pods", _deletes(many), _deletes(few), "beside 1"),
    ]


def burst(stage: Stage) -> list[Row]:
    """Many pods at once."""
    networks = (*_references(stage), stage.ours())
    bursts = [[_burst(stage, network) for network in networks] for _ in range(min(stage.rounds, BURSTS))]
    *peer, ours = (list(taken) for taken in zip(*bursts, strict=True))
    return [
        *_burst_rows("ADD", [taken[0] for taken in ours], [taken[0] for each in peer for taken in each]),
        *_burst_rows("DEL", [taken[1] for taken in ours], [taken[1] for each in peer for taken in each]),
    ]


# What `--only` calls them, in the order of the table.
EXPERIMENTS: tuple[tuple[tuple[str, ...], Callable[[Stage], list[Row]]], ...] = (
    (("ADD", "DEL"), single),
    (("BARE",), without_shim),
    (("FIRST",), first_and_last),
    (("DUAL",), dual_stack),
    (("SHIM",), shim_with_routes),
    (("CHECK",), check),
    (("VERSION",), version),
    (("STATUS",), status),
    (("LEASES",), leases_held),
    (("CROWD",), crowd),
    (("BURST",), burst),
)
KEYS = tuple(key for keys, _ in EXPERIMENTS for key in keys)


def measure(stage: Stage, wanted: Sequence[str]) -> list[Row]:
    """The rows of the wanted keys. Raises Failed when a plugin does not do its work."""
    rows = []
    for keys, experiment in EXPERIMENTS:
        if set(keys) & set(wanted):
            tell(f"{', '.join(keys)}: {(experiment.__doc__ or '').strip()}")
            rows += [row for row in experiment(stage) if row.key in wanted]
    return rows


def _references(stage: Stage, dual: bool = False) -> tuple[Network, ...]:
    return (stage.reference(dual=dual),) if stage.peer else ()


def _lives(stage: Stage, ours: Network, dual: bool = False) -> tuple[list[Times], list[Times]]:
    *peer, own = stage.cycles(*_references(stage, dual), ours)
    return own, peer[0] if peer else []


def _lives_beside_a_resident(stage: Stage, ours: Network, dual: bool = False) -> tuple[list[Times], list[Times]]:
    """Some other pod is there all the time, as on most hosts, so that there is a shim already."""
    with stage.attached(ours, stage.pods(2)[1:]):
        return _lives(stage, ours, dual)


def _in_turns(stage: Stage, ours: Call, *peer: Call) -> tuple[list[float], list[float]]:
    *others, own = stage.in_turns(*(partial(_seconds, call) for call in (*peer, ours)))
    return own, others[0] if others else []


def _seconds(call: Call) -> float:
    return run(call).seconds


def _leases_of_the_peer(stage: Stage) -> list[Row]:
    if not stage.peer:
        return []
    none, some = stage.reference(), stage.reference()
    fill_reference(some.conf, FEW_LEASES)
    without, taken = stage.cycles(none, some)
    what = f"the reference plugins' own ADD with {FEW_LEASES:,} leases held"
    return [_own_row("LEASES", what, _adds(taken), _adds(without), "theirs with none")]


@frozen
class Burst:
    """Many processes at once: when all were done, and how long each took; in seconds."""

    wall: float
    each: list[float]


def _burst(stage: Stage, network: Network) -> tuple[Burst, Burst]:
    """All pods attached at once, and detached at once."""
    pods = [(pod, secrets.token_hex(16)) for pod in stage.pods(AT_ONCE)]
    added = _at_once([network.call("ADD", pod, container) for pod, container in pods])
    time.sleep(BURST_SETTLE_SECONDS)
    deleted = _at_once([network.call("DEL", pod, container) for pod, container in pods])
    time.sleep(BURST_SETTLE_SECONDS)
    return added, deleted


def _at_once(calls: list[Call]) -> Burst:
    wall, answers = run_at_once(calls)
    return Burst(wall, [answer.seconds for answer in answers])


def _burst_rows(verb: str, ours: list[Burst], peer: list[Burst]) -> list[Row]:
    what = f"{AT_ONCE} {verb}s at once"
    each, others = ([seconds for burst in bursts for seconds in burst.each] for bursts in (ours, peer))
    return [
        compared("BURST", f"{what}: until all are done", [b.wall for b in ours], [b.wall for b in peer]),
        compared("BURST", f"{what}: each, p50", each, others),
        Row(
            key="BURST",
            what=f"{what}: each, p99",
            ours=percentile_ms(each, 99),
            other=percentile_ms(others, 99) if others else None,
            against=PEER if others else "",
        ),
    ]


def _own_row(key: str, what: str, ours: list[float], other: list[float], against: str, limit: float = 0) -> Row:
    return Row(key, what, median_ms(ours), median_ms(other), against, limit)


def _adds(times: list[Times]) -> list[float]:
    return [each.add for each in times]


def _deletes(times: list[Times]) -> list[float]:
    return [each.delete for each in times]
