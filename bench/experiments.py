"""What is compared: a function per question, each with the rows that answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from bench import bursts, datapath, resources
from bench.contenders import Contender
from bench.network import Network, Times
from bench.samples import AGENT, IN_PROCESS, NO_LIMIT, Limit, Limits, Row, compared, median_ms
from bench.stage import HOST, Stage, tell

K = TypeVar("K")

BESIDE, QUICK_BESIDE = 100, 10
LEASES_HELD = {True: (0, 2_000, 20_000, 60_000), False: (0, 2_000, 20_000)}  # ours, and theirs, which get too slow
QUICK_LEASES_HELD = {True: (0, 20_000), False: (0, 2_000)}
FASTER = 3  # as many rounds with an agent: a tenth more of a millisecond or two is easily lost in the noise
SHIM_ROUTES = {"routes": ["10.96.0.0/12"], "snat": True}

ADD: Limits = {AGENT: Limit(0.2, aim=0.15), IN_PROCESS: Limit(6, aim=3)}
DEL: Limits = {AGENT: Limit(0.08), IN_PROCESS: Limit(2, aim=1)}
BARE_ADD: Limits = {IN_PROCESS: ADD[IN_PROCESS]}
BARE_DEL: Limits = {IN_PROCESS: DEL[IN_PROCESS]}
DUAL_ADD: Limits = {AGENT: Limit(0.01), IN_PROCESS: Limit(0.05)}
ADD_WITH_LEASES: Limits = {AGENT: Limit(1.1), IN_PROCESS: Limit(1.2)}


def single(stage: Stage) -> list[Row]:
    """The configuration as a user of the reference plugins has it, with the two types changed."""
    lives = _lives_beside_a_resident(stage)
    return [
        *compared("ADD", "ADD, single IPv4", _adds(lives), ADD, short="ADD"),
        *compared("DEL", "DEL, single IPv4", _deletes(lives), DEL, short="DEL"),
    ]


def without_shim(stage: Stage) -> list[Row]:
    """Only what the reference plugins do as well."""
    lives = _lives(stage, shim=False)
    return [
        *compared("BARE", "ADD without a shim", _adds(lives), BARE_ADD),
        *compared("BARE", "DEL without a shim", _deletes(lives), BARE_DEL),
    ]


def first_and_last(stage: Stage) -> list[Row]:
    """A pod that is alone on its host: the shim comes and goes with it."""
    lives = _lives(stage)
    return [
        *compared("FIRST", "ADD of the first pod, which makes the shim", _adds(lives)),
        *compared("FIRST", "DEL of the last pod, which removes the shim", _deletes(lives)),
    ]


def dual_stack(stage: Stage) -> list[Row]:
    """IPv4 and IPv6; the reference plugin waits for duplicate address detection."""
    lives = _lives_beside_a_resident(stage, rounds=stage.few_rounds, dual=True)
    return [
        *compared("DUAL", "ADD, dual stack", _adds(lives), DUAL_ADD, short="ADD, dual stack"),
        *compared("DUAL", "DEL, dual stack", _deletes(lives)),
    ]


def shim_with_routes(stage: Stage) -> list[Row]:
    """Everything the shim can do: routes to the host, and their source NAT."""
    lives = _lives_beside_a_resident(stage, shim={"hostAddresses": [HOST], **SHIM_ROUTES})
    return [
        *compared("SHIM", "ADD with shim.routes and source NAT", _adds(lives)),
        *compared("SHIM", "DEL with shim.routes and source NAT", _deletes(lives)),
    ]


def check(stage: Stage) -> list[Row]:
    """CHECK of pods that stay."""
    with stage.networks() as networks, ExitStack() as stack:
        actions = {}
        for (name, network), home in zip(networks.items(), stage.pods(len(networks)), strict=True):
            [(pod, container, result)] = stack.enter_context(network.attached([home]))
            actions[name] = partial(_seconds, network, "CHECK", pod, container, result)
        return compared("CHECK", "CHECK", stage.in_turns(actions), short="CHECK")


def version(stage: Stage) -> list[Row]:
    """VERSION: starting the process, mostly."""
    with stage.networks() as networks:
        actions = {name: partial(_seconds, network, "VERSION") for name, network in networks.items()}
        return compared("VERSION", "VERSION", stage.in_turns(actions), short="VERSION")


def status(stage: Stage) -> list[Row]:
    """STATUS, which the reference plugins of CNI 1.0 do not know."""
    with stage.networks(stage.ours, cniVersion="1.1.0") as networks:
        actions = {name: partial(_seconds, network, "STATUS") for name, network in networks.items()}
        return compared("STATUS", "STATUS", stage.in_turns(actions))


def leases_held(stage: Stage) -> list[Row]:
    """ADD with leases held, beside ADD with none."""
    return [row for each in stage.contenders for row in _with_leases(stage, each)]


def _with_leases(stage: Stage, contender: Contender) -> list[Row]:
    numbers = (QUICK_LEASES_HELD if stage.quick else LEASES_HELD)[contender.is_ours]
    rounds = (stage.rounds if contender.is_ours else stage.few_rounds) * (FASTER if contender.agent else 1)
    with ExitStack() as stack:
        times = stage.cycles(
            {number: stack.enter_context(stage.network(contender, leases=number, shim=False)) for number in numbers},
            rounds,
        )
    adds = {number: median_ms(taken) for number, taken in _adds(times).items()}
    return [
        Row(
            who=contender.name,
            key="LEASES",
            what=f"ADD with {number:,} leases held",
            ours=taken,
            other=adds[0] if number else None,
            against="with none" if number else "",
            limit=ADD_WITH_LEASES.get(contender.name, NO_LIMIT) if number else NO_LIMIT,
            short=f"{number:,}",
        )
        for number, taken in adds.items()
    ]


def crowd(stage: Stage) -> list[Row]:
    """A pod that comes and goes beside many others on the same host."""
    many = QUICK_BESIDE if stage.quick else BESIDE
    pods = iter(stage.pods(1 + len(stage.ours) * (1 + many))[1:])
    with ExitStack() as stack:
        networks = {}
        for each in stage.ours:
            for number in (1, many):
                network = stack.enter_context(stage.network(each))
                stack.enter_context(network.attached([next(pods) for _ in range(number)]))
                networks[each.name, number] = network
        times = stage.cycles(networks)
    return [
        Row(
            who=each.name,
            key="CROWD",
            what=f"{verb} beside {many} pods",
            ours=median_ms(taken[each.name, many]),
            other=median_ms(taken[each.name, 1]),
            against="beside 1",
        )
        for verb, taken in (("ADD", _adds(times)), ("DEL", _deletes(times)))
        for each in stage.ours
    ]


def _lives(stage: Stage, **keys: Any) -> dict[str, list[Times]]:
    with stage.networks(**keys) as networks:
        return stage.cycles(networks)


def _lives_beside_a_resident(stage: Stage, rounds: int = 0, **keys: Any) -> dict[str, list[Times]]:
    """Some other pod is there all the time, as on most hosts, so that there is a shim already."""
    with stage.networks(**keys) as networks, ExitStack() as stack:
        for network, home in zip(networks.values(), stage.pods(1 + len(networks))[1:], strict=True):
            stack.enter_context(network.attached([home]))
        return stage.cycles(networks, rounds)


def _seconds(network: Network, command: str, *where: Any) -> float:
    return network.run(command, *where).seconds


def _adds(times: Mapping[K, Sequence[Times]]) -> dict[K, list[float]]:
    return {key: [each.add for each in taken] for key, taken in times.items()}


def _deletes(times: Mapping[K, Sequence[Times]]) -> dict[K, list[float]]:
    return {key: [each.delete for each in taken] for key, taken in times.items()}


# What `--only` calls them, in the order of the tables.
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
    (("BURST",), bursts.measure),
    (("CPU",), resources.processor_time),
    (("MEMORY",), resources.memory),
    (("PATH",), datapath.measure),
    (("START",), bursts.starting),
)
KEYS = tuple(key for keys, _ in EXPERIMENTS for key in keys)


def measure(stage: Stage, wanted: Sequence[str]) -> list[Row]:
    """The rows of the wanted keys. Raises Failed when a plugin does not do its work."""
    rows = []
    for keys, experiment in EXPERIMENTS:
        if set(keys) & set(wanted):
            tell(f"{', '.join(keys)}: {(experiment.__doc__ or '').strip().partition(chr(10))[0]}")
            rows += [row for row in experiment(stage) if row.key in wanted]
    return rows
