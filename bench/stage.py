"""Where the measuring happens: a lab, the two plugins, the networks that they make and the pods that they attach."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from bench.process import Call, Json, run
from cni import netns
from cni.ctl.lab import Lab
from cni.frozen import frozen

T = TypeVar("T")

# A benchmark's own prefix (RFC 2544), for it has room for 60,000 pods.
HOST, GATEWAY = "198.18.0.10", "198.18.0.1"
HOST6, GATEWAY6 = "2001:db8::10", "2001:db8::1"
FIRST = "198.18.1.0"
RANGE4 = {"subnet": "198.18.0.0/16", "gateway": GATEWAY}
RANGE6 = {"subnet": "2001:db8::/64", "rangeStart": "2001:db8::1:0", "rangeEnd": "2001:db8::1:ffff", "gateway": GATEWAY6}

# The kernel goes on for ~20 ms after a link has gone; the next process that is timed shall not pay for it.
SETTLE_SECONDS = 0.03
WARM_UP_ROUNDS = 3
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@frozen
class Network:
    """A configuration, the plugin that serves it, and where that finds other plugins (CNI_PATH)."""

    executable: str
    conf: Json
    plugins: str

    def call(self, command: str, pod: str = "", container: str = "", result: Json | None = None) -> Call:
        """What a runtime runs for a verb: `pod` is a path of a namespace, `result` that of ADD where it has one."""
        variables = {"CNI_COMMAND": command, "CNI_PATH": self.plugins, "PATH": PATH}
        if container:
            variables |= {"CNI_CONTAINERID": container, "CNI_NETNS": pod, "CNI_IFNAME": "eth0"}
        conf = {**self.conf, "prevResult": result} if result else self.conf
        return Call((self.executable,), variables, json.dumps(conf).encode())


@frozen
class Times:
    """How long the two halves of a pod's life took, in seconds."""

    add: float
    delete: float


class Stage:
    """A lab whose host this process sits in. `peer` is the directory of the reference plugins, "" without them."""

    def __init__(self, lab: Lab, plugin: str, peer: str, rounds: int, quick: bool) -> None:
        self.plugin = plugin
        self.peer = peer
        self.rounds = rounds
        self.quick = quick
        self._lab = lab
        self._pods: list[str] = []

    def pods(self, number: int) -> list[str]:
        """The namespaces of that many pods; the same ones each time."""
        while len(self._pods) < number:
            self._pods.append(self._lab.netns(f"pod{len(self._pods)}").netns)
        return self._pods[:number]

    def ours(self, *, dual: bool = False, first: str = FIRST, **keys: Any) -> Network:
        """A network of shimlan's with a data directory of its own; `keys` as in `Lab.conf`, `first` the lowest address.

        Networks that have pods at the same time need different addresses: MACs are made of them.
        """
        directory = self._directory()
        ipam = {**_addresses(dual, first), "dataDir": directory}
        conf = self._lab.conf(name=_name(directory), dataDir=directory, ipam=ipam, **keys)
        return Network(self.plugin, conf, os.path.dirname(self.plugin))

    def reference(self, *, dual: bool = False) -> Network:
        """The same network for the reference plugins."""
        directory = self._directory()
        ipam = {**_addresses(dual, FIRST), "dataDir": directory}
        conf = self._lab.reference_conf(name=_name(directory), ipam=ipam)
        return Network(f"{self.peer}/macvlan", conf, self.peer)

    def in_turns(self, *actions: Callable[[], T]) -> list[list[T]]:
        """What the actions return when they take turns, a list for each; the first rounds only warm up."""
        rounds = [[action() for action in actions] for _ in range(WARM_UP_ROUNDS + self.rounds)]
        return [list(values) for values in zip(*rounds[WARM_UP_ROUNDS:], strict=True)]

    def cycles(self, *networks: Network) -> list[list[Times]]:
        """Lives of a pod in each network in turn; the times of each."""
        (pod,) = self.pods(1)
        return self.in_turns(*(partial(cycle, network, pod) for network in networks))

    @contextmanager
    def attached(self, network: Network, pods: list[str]) -> Iterator[list[tuple[str, str, Json]]]:
        """Pods that are attached for the time of a block: (namespace, container ID, result of ADD) of each."""
        with ExitStack() as undo:
            attached = []
            for pod in pods:
                container = secrets.token_hex(16)
                result = run(network.call("ADD", pod, container)).json
                undo.callback(run, network.call("DEL", pod, container, result))
                attached.append((pod, container, result))
            yield attached

    def _directory(self) -> str:
        directory = f"{self._lab.data_dir}/{secrets.token_hex(3)}"
        os.mkdir(directory)
        return directory


def cycle(network: Network, pod: str) -> Times:
    """One pod's life: ADD, DEL, and a pause that belongs to nobody."""
    container = secrets.token_hex(16)
    added = run(network.call("ADD", pod, container))
    deleted = run(network.call("DEL", pod, container, added.json))
    time.sleep(SETTLE_SECONDS)
    return Times(added.seconds, deleted.seconds)


@contextmanager
def staged(plugin: str, peer: str, rounds: int, quick: bool) -> Iterator[Stage]:
    """A stage for the time of a block, with this process in its host's namespace."""
    host, outside = (f"{HOST}/16", f"{HOST6}/64"), (f"{GATEWAY}/16", f"{GATEWAY6}/64")
    with ExitStack() as undo:
        lab = undo.enter_context(Lab(plugin, host=host, outside=outside))
        namespace = netns.open_netns(lab.host.netns)
        undo.callback(os.close, namespace)
        undo.enter_context(netns.entered(namespace))
        yield Stage(lab, plugin, peer, rounds, quick)


def find_peer() -> str:
    """The directory with the reference plugins: $CNI_PEER_DIR, or where Debian has them; "" when there are none."""
    directories = (os.environ.get("CNI_PEER_DIR", ""), "/usr/lib/cni", "/opt/cni/bin")
    complete = (
        each for each in directories if all(shutil.which(name, path=each) for name in ("macvlan", "host-local"))
    )
    return next(complete, "")


def find_plugin() -> str:
    """The shimlan beside this Python, else the one in PATH; "" when there is none."""
    beside = os.path.dirname(sys.executable)
    return shutil.which("shimlan", path=beside) or shutil.which("shimlan") or ""


def tell(what: str) -> None:
    """What is being done, for whoever waits."""
    print(what, file=sys.stderr, flush=True)


def _addresses(dual: bool, first: str) -> Json:
    ranges, routes = [[{**RANGE4, "rangeStart": first}]], [{"dst": "0.0.0.0/0"}]
    if dual:
        ranges.append([RANGE6])
        routes.append({"dst": "::/0"})
    return {"ranges": ranges, "routes": routes}


def _name(directory: str) -> str:
    return f"bench-{os.path.basename(directory)}"
