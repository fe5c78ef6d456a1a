"""The agent ends, is killed or makes way for another version while everybody pings everybody: no ping is lost."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import cni
import ipam
from cni.ctl.lab import Lab, Node
from tests.kernel.agents import START_SECONDS, STOP_SECONDS, Agent
from tests.kernel.kubelet import Kubelet
from tests.kernel.torture import seeded, size
from tests.pings import all_answered, unanswered

pytestmark = [pytest.mark.without_agent("it has one of its own"), pytest.mark.undisturbed]

SERVICES = {"routes": ["10.96.0.0/16", "fd00:96::/112"]}
INTERVAL_SECONDS = 0.01
CALM_SECONDS = 0.3  # before and after each restart
OTHER_VERSION = "99.0.0"


class Pinger:
    """Pings at short intervals from one machine to an address of another."""

    def __init__(self, source: Node, target: Node, family: int) -> None:
        self._story = f"{source.label} to {target.label}, IPv{family}"
        words = ("ping", "-n", "-i", f"{INTERVAL_SECONDS:g}", target.where(family))
        self._process = subprocess.Popen([*source.enter_words, *words], stdout=subprocess.PIPE, text=True)

    def stop(self) -> list[str]:
        """End it; which pings were lost."""
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=30)
        return unanswered(self._story, output, first=1, least=CALM_SECONDS / INTERVAL_SECONDS / 10)


@contextmanager
def none_lost(*nodes: Node) -> Iterator[None]:
    """All of these ping each other, over IPv4 and IPv6, and each ping is answered."""
    ways = [(a, b, family) for a in nodes for b in nodes if a is not b for family in (4, 6)]
    assert all(source.pings(target, family) for source, target, family in ways)  # so that they know each other's MACs
    with all_answered((Pinger(*way) for way in ways), CALM_SECONDS):
        yield


def stopped_and_started(agent: Agent) -> None:
    """As systemd restarts it."""
    assert agent.stop() == 0
    time.sleep(CALM_SECONDS)
    agent.start()


def killed_and_started(agent: Agent) -> None:
    """As the kernel does it when memory is short."""
    agent.kill()
    time.sleep(CALM_SECONDS)
    agent.start()


@pytest.mark.parametrize("restart", [stopped_and_started, killed_and_started])
def test_nobody_notices_a_restart(lab: Lab, client: Path, restart: Callable[[Agent], None]) -> None:
    with Agent(lab, client) as agent:
        pods = [lab.pod(name, lab.conf(dual=True, shim=SERVICES)) for name in "ab"]
        with none_lost(*pods, lab.host, lab.outside):
            for _ in range(size(3, 20)):
                restart(agent)
        for pod in pods:
            pod.check()


def test_nobody_notices_another_version(lab: Lab, client: Path, tmp_path: Path) -> None:
    """A newer one takes over and is taken over from again; no call fails meanwhile."""
    newer = {"PYTHONPATH": str(copy_of_another_version(tmp_path))}
    with Agent(lab, client) as agent, ExitStack() as ending:
        pods = [lab.pod(name, lab.conf(dual=True, shim=SERVICES)) for name in "ab"]
        kubelet = Kubelet(lab, dual=True, shim=SERVICES)
        with none_lost(*pods, lab.host, lab.outside), kubelet.load(2, seeded("another version")) as load:
            for number in range(size(2, 10)):
                successor = agent.launch("--take-over", **newer)
                ending.callback(successor.kill)
                await_log(agent, f"shimlan {OTHER_VERSION} serves", number + 1)
                assert agent.stop() == 0
                time.sleep(CALM_SECONDS)
                agent.start("--take-over")
                successor.terminate()
                assert successor.wait(STOP_SECONDS) == 0
        assert kubelet.failures == []
        assert load.rounds > 0
        for pod in (*pods, *kubelet.sandboxes):
            pod.check()


def copy_of_another_version(directory: Path) -> Path:
    """A directory with our packages, which believe to be of another version."""
    for package in (cni, ipam):
        source = Path(package.__file__ or "").parent
        shutil.copytree(source, directory / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    module = directory / "cni/__init__.py"
    module.write_text(module.read_text().replace(cni.__version__, OTHER_VERSION))
    return directory


def await_log(agent: Agent, words: str, times: int) -> None:
    """Wait until the agent, or another one with the same log, has said something so many times."""
    until = time.monotonic() + START_SECONDS
    while agent.log.count(words) < times:
        assert time.monotonic() < until, agent.log
        time.sleep(0.02)
