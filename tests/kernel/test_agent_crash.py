"""SIGKILL of the agent while pods come and go: no address is given twice, none is lost, and nothing is left."""

from __future__ import annotations

import fcntl
import random
import time
from pathlib import Path

import pytest

from cni.ctl.lab import Lab
from cni.ctl.runtime import installed_shimlan
from tests.kernel import traces
from tests.kernel.agents import Agent
from tests.kernel.kubelet import TRY_AGAIN_LATER, Census, Kubelet, addresses
from tests.kernel.torture import inventory, seeded, size

pytestmark = pytest.mark.without_agent("it has one of its own")

RUNTIMES = 6
SHIM = {"routes": ["10.96.0.0/12"]}
# So few that one which is lost is soon missed, and each is handed out again at once.
FEW = [
    [{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": f"192.0.2.{99 + RUNTIMES}"}],
    [{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::100", "rangeEnd": "2001:db8::1ff"}],
]
SETTLE_SECONDS = 10.0


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with-fallback"])
def test_a_kill_at_any_instant_harms_nobody(lab: Lab, client: Path, alone: bool) -> None:
    """Without the in-process plugin beside the client calls may fail for a while, with it none does."""
    chance = seeded(f"kill the agent, {alone=}")
    before = left_behind(lab)
    kubelet = Kubelet(lab, dual=True, shim=SHIM, ipam={"ranges": FEW, "cooldownSeconds": 0})
    fallback = "" if alone else installed_shimlan() or ""
    with Agent(lab, client, fallback=fallback) as agent, Census(kubelet.sandboxes).going_on() as census:
        with kubelet.load(RUNTIMES, chance) as load:
            for _ in range(size(8, 50)):
                kill_and_start(agent, chance)
        check_the_living(lab, kubelet)
        for pod in list(kubelet.sandboxes):
            kubelet.remove(pod)
        assert settled(lab, before) == before
    print(f"{load.rounds} pods came and went, {len(kubelet.failures)} calls failed, {census.looks} looks at addresses")
    assert census.held_twice == []
    assert {failure.json["code"] for failure in kubelet.failures} <= ({TRY_AGAIN_LATER} if alone else set())


def kill_and_start(agent: Agent, chance: random.Random) -> None:
    """Kill the agent at some instant, and start another one, at once or after a while."""
    time.sleep(chance.uniform(0, 1.0))
    agent.kill()
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0, 0.5))
    agent.start()


def check_the_living(lab: Lab, kubelet: Kubelet) -> None:
    """Each pod that a runtime believes in lives, with addresses that are leased to it and no other that are."""
    assert len(kubelet.sandboxes) == RUNTIMES
    for pod in kubelet.sandboxes:
        kubelet.repeat("CHECK", pod)
        assert addresses(pod) == {pod.address, pod.address6}
        assert lab.host.pings(pod)
        assert lab.host.pings(pod, 6)
        assert pod.pings(lab.outside)
    leased = sorted((str(lease.address), lease.container_id) for lease in traces.held(lab))
    told = [(address, pod.container_id) for pod in kubelet.sandboxes for address in (pod.address, pod.address6)]
    assert leased == sorted(told)
    assert {attachment.key.container_id for attachment in traces.records(lab)} == {
        pod.container_id for pod in kubelet.sandboxes
    }


def left_behind(lab: Lab) -> list[str]:
    """What there is on the host and in the store, and whether anybody holds a lock or keeps a namespace alive."""
    # The host numbers the namespaces of pods for the agent, and a number vanishes with its namespace.
    return [*inventory(lab), *locks(lab), *lab.host.ip("netns", "list-id").splitlines()]


def locks(lab: Lab) -> list[str]:
    """Whether anybody holds any of the locks."""
    with open(f"{lab.data_dir}/lock", "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ["a lock is held"]
    return []


def settled(lab: Lab, before: list[str]) -> list[str]:
    """What is left behind once it is the same as before, or does not become the same."""
    until = time.monotonic() + SETTLE_SECONDS
    while (now := left_behind(lab)) != before and time.monotonic() < until:
        time.sleep(0.05)
    return now
