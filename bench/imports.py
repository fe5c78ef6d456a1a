"""What an ADD imports and how long each module takes by itself: `python -X importtime`, the medians of some runs."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict

from bench.contenders import Contender
from bench.plugin import Plugin
from bench.process import Call, run
from bench.samples import IN_PROCESS
from bench.stage import Stage
from cni import netns

TOP = 20
LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| +(\S+)")


def own_times(report: str) -> dict[str, int]:
    """Microseconds that each module takes itself, without those that it imports, of a -X importtime report."""
    return {name: int(own) for own, _, name in LINE.findall(report)}


def profile(stage: Stage, plugin: Plugin) -> list[tuple[str, float]]:
    """(module, microseconds) of all modules that an ADD imports, the slowest first."""
    (pod,) = stage.pods(1)
    words = (*plugin.interpreter, "-X", "importtime", plugin.path)
    times: dict[str, list[int]] = defaultdict(list)
    with stage.network(Contender(IN_PROCESS, plugin.path)) as network, netns.entered(network.host):
        for number in range(stage.rounds):
            add, delete = (network.call(verb, pod, f"imports{number}") for verb in ("ADD", "DEL"))
            for name, own in own_times(run(Call(words, add.env, add.stdin)).stderr.decode()).items():
                times[name].append(own)
            run(delete)
    medians = ((name, statistics.median(taken)) for name, taken in times.items())
    return sorted(medians, key=lambda pair: -pair[1])


def render(modules: list[tuple[str, float]]) -> str:
    """The slowest modules as text, and what all of them come to."""
    lines = [f"{own / 1000:8.2f} ms  {name}" for name, own in modules[:TOP]]
    total = sum(own for _, own in modules) / 1000
    return "\n".join([*lines, f"{total:8.2f} ms  all {len(modules)} modules, measuring included"])
