"""`python -m e2e.pod_start`: how long containerd takes for RunPodSandbox with shimlan and with the reference plugins.

A program, not a test. It uses the variables of the tests with containerd (docs/testing.md); `e2e/run pod-start` sets
them where there is a toolbox. The contenders take turns, and another pod of shimlan is on the host all the time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bench.contenders import find_client
from bench.report import render_tables
from bench.samples import AGENT, IN_PROCESS, PEER, Limit, compared
from e2e import installed, surroundings
from e2e.containerd import Containerd, sandbox_config

ROUNDS, BURST, BURST_ROUNDS, WARM_UP = 30, 50, 3, 2
NO_SLOWER = {AGENT: Limit(1.0)}
BESIDE = "shimlan-inprocess"  # the name of the plugin beside the client
_numbers = count()


def main() -> int:
    """Measure and print the tables; 2 when something is missing."""
    parser = argparse.ArgumentParser("python -m e2e.pod_start", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="sandboxes of each one (default: %(default)s)")
    parser.add_argument("--burst", type=int, default=BURST, help="sandboxes at once (default: %(default)s)")
    parser.add_argument(
        "--pools", type=int, default=1, help="from how many of the ranges each gets an address (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        with (
            tempfile.TemporaryDirectory() as directory,
            prepared(Path(directory), options.pools) as (runtime, networks),
        ):
            print(render_tables(measure(runtime, networks, options.rounds, options.burst)))
    except pytest.skip.Exception as reason:
        print(f"pod_start: {reason}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def prepared(directory: Path, pools: int) -> Iterator[tuple[Containerd, dict[str, Any]]]:
    """A runtime that has all contenders' plugins, and the network of each contender."""
    runtime = surroundings.containerd()
    peers = surroundings.reference_plugins("macvlan", "host-local")
    data = str(installed.state_dir(directory))
    reference = surroundings.conflist(main="macvlan", ipam="host-local")
    reference["plugins"][0]["ipam"]["dataDir"] = str(directory)
    networks = {
        PEER: reference,
        AGENT: surroundings.conflist(dataDir=data),
        IN_PROCESS: surroundings.conflist(main=BESIDE, dataDir=data),
    }
    for network in networks.values():
        ipam = network["plugins"][0]["ipam"]
        ipam.update(ranges=ipam["ranges"][:pools], routes=ipam["routes"][:pools])
    with (
        installed.files(runtime.bin_dir, {name: peers / name for name in ("macvlan", "host-local")}),
        installed.client(runtime, Path(find_client()), fallback=True),
        installed.agent(directory),
        installed.network(runtime, networks[AGENT]),
    ):
        runtime.sandbox(sandbox_config("resident"))
        yield runtime, networks


def measure(runtime: Containerd, networks: dict[str, Any], rounds: int, burst: int) -> list[Any]:
    """The rows of the table."""
    single: dict[str, list[float]] = {name: [] for name in networks}
    crowd: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(WARM_UP + rounds):
        for name, network in networks.items():
            taken = sandboxes(runtime, network, 1)
            if number >= WARM_UP:
                single[name].append(taken)
    for _ in range(BURST_ROUNDS):
        for name, network in networks.items():
            crowd[name].append(sandboxes(runtime, network, burst))
    return [
        *compared("POD", f"RunPodSandbox, {rounds} of each in turns", single, NO_SLOWER),
        *compared("POD", f"{burst} at once, until all are there", crowd, NO_SLOWER),
    ]


def sandboxes(runtime: Containerd, network: dict[str, Any], number: int) -> float:
    """How long that many sandboxes take in a network, in seconds; they are removed afterwards."""
    installed.configure(runtime, network)
    configs = [sandbox_config(f"start{next(_numbers)}") for _ in range(number)]
    with ThreadPoolExecutor(number) as callers:
        began = time.perf_counter()
        made = list(callers.map(runtime.sandbox, configs))
        taken = time.perf_counter() - began
        list(callers.map(runtime.remove, made))
    return taken


if __name__ == "__main__":
    sys.exit(main())
