"""Where the measuring happens: for each question and contender a LAN of its own, and pods that all of them attach."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from bench import agent
from bench.agent import Agent
from bench.contenders import Contender
from bench.leases import fill_ours, fill_reference
from bench.network import Network, Times
from bench.process import Json
from cni import netns
from cni.ctl.lab import Lab
from cni.frozen import frozen

T = TypeVar("T")
K = TypeVar("K")

# A benchmark's own prefix (RFC 2544), for it has room for 60,000 pods.
HOST, GATEWAY = "198.18.0.10", "198.18.0.1"
HOST6, GATEWAY6 = "2001:db8::10", "2001:db8::1"
RANGE4 = {"subnet": "198.18.0.0/16", "rangeStart": "198.18.1.0", "gateway": GATEWAY}
RANGE6 = {"subnet": "2001:db8::/64", "rangeStart": "2001:db8::1:0", "rangeEnd": "2001:db8::1:ffff", "gateway": GATEWAY6}

WARM_UP_ROUNDS = 3


@frozen
class Options:
    """How much is measured: rounds per row, whether in a hurry, ADD/DEL pairs that the agent's memory is tried on."""

    rounds: int
    quick: bool
    soak: int


class Stage:
    """What experiments need: who takes part, how often things are done, namespaces of pods, networks."""

    def __init__(self, lab: Lab, plugin: str, contenders: Sequence[Contender], options: Options) -> None:
        self.plugin = plugin
        self.contenders = contenders
        self.rounds = options.rounds
        self.quick = options.quick
        self.soak = options.soak
        self._lab = lab
        self._pods: list[str] = []

    @property
    def few_rounds(self) -> int:
        """Rounds for what takes long and varies little."""
        return min(self.rounds, max(3, self.rounds // 3))

    @property
    def ours(self) -> list[Contender]:
        """The contenders that are shimlans."""
        return [contender for contender in self.contenders if contender.is_ours]

    def pods(self, number: int) -> list[str]:
        """The namespaces of that many pods; the same ones each time."""
        while len(self._pods) < number:
            self._pods.append(self._lab.netns(f"pod{len(self._pods)}").netns)
        return self._pods[:number]

    @contextmanager
    def network(self, contender: Contender, *, leases: int = 0, dual: bool = False, **keys: Any) -> Iterator[Network]:
        """A network of a contender for the time of a block, on a host that holds so many leases already.

        `keys` are those of `Lab.conf`; the reference plugins know none of them.
        """
        host, outside = (f"{HOST}/16", f"{HOST6}/64"), (f"{GATEWAY}/16", f"{GATEWAY6}/64")
        with ExitStack() as undo:
            lab = undo.enter_context(Lab(self.plugin, host=host, outside=outside))
            state = f"{lab.data_dir}/state"
            os.mkdir(state)
            conf = _conf(lab, contender, {**_addresses(dual), "dataDir": state}, keys)
            if leases:
                fill = fill_ours if contender.is_ours else fill_reference
                fill(conf, leases)
            namespace = netns.open_netns(lab.host.netns)
            undo.callback(os.close, namespace)
            network = Network(contender, conf, namespace, f"{lab.data_dir}/agent.sock" if contender.agent else "")
            if contender.agent:
                network.agent = undo.enter_context(_start_agent(network, lab.data_dir))
            yield network

    @contextmanager
    def networks(self, contenders: Sequence[Contender] = (), **keys: Any) -> Iterator[dict[str, Network]]:
        """One network of each contender, or of those that are named, by its name; `keys` as for `network`."""
        with ExitStack() as undo:
            yield {each.name: undo.enter_context(self.network(each, **keys)) for each in contenders or self.contenders}

    def in_turns(self, actions: Mapping[K, Callable[[], T]], rounds: int = 0) -> dict[K, list[T]]:
        """What the actions return when they take turns; some rounds before only warm up."""
        rounds = rounds or self.rounds
        warm_up = min(WARM_UP_ROUNDS, rounds // 3)
        done = [{name: action() for name, action in actions.items()} for _ in range(warm_up + rounds)]
        return {name: [each[name] for each in done[warm_up:]] for name in actions}

    def cycles(self, networks: Mapping[K, Network], rounds: int = 0) -> dict[K, list[Times]]:
        """Lives of a pod in each network in turn; the times of each."""
        (pod,) = self.pods(1)
        return self.in_turns({name: partial(network.cycle, pod) for name, network in networks.items()}, rounds)


@contextmanager
def staged(plugin: str, contenders: Sequence[Contender], options: Options) -> Iterator[Stage]:
    """A stage for the time of a block."""
    with Lab(plugin) as lab:
        yield Stage(lab, plugin, contenders, options)


def tell(what: str) -> None:
    """What is being done, for whoever waits."""
    print(what, file=sys.stderr, flush=True)


def _start_agent(network: Network, directory: str) -> AbstractContextManager[Agent]:
    command = [*network.contender.agent, "--socket", network.socket, "--state-dir", network.conf["dataDir"]]
    return agent.running(command, network.host, f"{directory}/agent.log", network.answers)


def _addresses(dual: bool) -> Json:
    ranges, routes = [[RANGE4]], [{"dst": "0.0.0.0/0"}]
    if dual:
        ranges.append([RANGE6])
        routes.append({"dst": "::/0"})
    return {"ranges": ranges, "routes": routes}


def _conf(lab: Lab, contender: Contender, ipam: Json, keys: Json) -> Json:
    if contender.is_ours:
        return lab.conf(dataDir=ipam["dataDir"], ipam=ipam, **keys)
    return lab.reference_conf(ipam=ipam)
