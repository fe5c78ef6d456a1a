"""Many plugins at once: a crowd of pods, the last DEL against the next ADD, two verbs for one pod, GC among ADDs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cni.ctl.lab import CniAnswer, Lab, Pod
from tests.kernel import traces
from tests.kernel.torture import inventory, launch, seeded, size

CROWD = 100
SHIM = {"routes": ["10.96.0.0/12"]}


def all_at_once(lab: Lab, pods: Iterable[Pod], command: str) -> list[CniAnswer]:
    """One verb for each pod, all under way together."""
    flights = [launch(lab, pod, command) for pod in pods]
    return [flight.land().or_raise() for flight in flights]


def attached(lab: Lab, pod: Pod) -> bool:
    """Whether the pod has its interface; it is whole then, and else there is nothing of it."""
    own = [line for line in inventory(lab, pod) if pod.container_id in line]
    if not any(line.startswith("record") for line in own):
        assert own == []
        assert [link["ifname"] for link in pod.links()] == ["lo"]
        return False
    assert sum(line.startswith("lease") for line in own) == len(pod.conf["ipam"]["ranges"])
    assert [link["ifname"] for link in pod.links()] == ["lo", "eth0"]
    return True


def note(pod: Pod, answer: CniAnswer) -> None:
    """Remember the result of an ADD as a runtime does."""
    pod.result = answer.or_raise().json
    pod.address = pod.result["ips"][0]["address"].partition("/")[0]


def test_a_hundred_pods_come_and_go_at_once(lab: Lab) -> None:
    before = inventory(lab)
    pods = [lab.container(f"pod{number}", lab.conf(dual=True)) for number in range(CROWD)]
    for pod, answer in zip(pods, all_at_once(lab, pods, "ADD"), strict=True):
        note(pod, answer)
    addresses = {ip["address"] for pod in pods for ip in pod.result["ips"]}
    assert len(addresses) == 2 * CROWD
    for pod in seeded("a hundred pods").sample(pods, 5):
        pod.check()
        assert lab.host.pings(pod)
        assert pod.pings(lab.outside)
    all_at_once(lab, pods, "DEL")
    assert inventory(lab) == before
    assert [pod.label for pod in pods if [link["ifname"] for link in pod.links()] != ["lo"]] == []


@pytest.mark.parametrize("workers", [2, 4])
def test_the_last_pod_may_leave_while_the_next_one_arrives(lab: Lab, workers: int) -> None:
    """Each worker sees to its own pod; the shim comes and goes under them, and must be there while a pod lives."""
    before = inventory(lab)
    pods = [lab.container(f"pod{number}", lab.conf(shim=SHIM)) for number in range(workers)]
    end = time.monotonic() + size(3, 15)

    def come_and_go(pod: Pod) -> None:
        rounds = 0
        while True:
            note(pod, launch(lab, pod, "ADD").land())
            assert lab.host.pings(pod), f"{pod} cannot be reached in round {rounds}"
            launch(lab, pod, "CHECK").land().or_raise()
            if time.monotonic() > end and rounds >= 5:
                return
            launch(lab, pod, "DEL").land().or_raise()
            rounds += 1

    in_parallel(come_and_go, pods)
    for pod in pods:
        pod.check()
        assert lab.host.pings(pod)
    all_at_once(lab, pods, "DEL")
    assert inventory(lab) == before


def in_parallel(action: Callable[[Pod], None], pods: Iterable[Pod]) -> None:
    """Do something to each pod, in threads; the first failure counts."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(action, pods))


@pytest.mark.parametrize("rival", ["ADD", "DEL", "GC"])
def test_two_verbs_for_one_container_do_not_mix(lab: Lab, rival: str) -> None:
    """Whatever the order is that they get into: the container is attached as a whole, or there is nothing of it.

    A GC that does not list a container which is just being added takes it away again: runtimes must not do that, and
    ours to see is that nothing is done by halves and no address gets free that somebody uses.
    """
    chance = seeded(f"ADD against {rival}")
    before = inventory(lab)
    pod = lab.container("pod", lab.conf(dual=True))
    nobody: dict[str, Any] = {"cni.dev/valid-attachments": []} if rival == "GC" else {}
    for _ in range(size(15, 150)):
        adding = launch(lab, pod, "ADD")
        time.sleep(chance.uniform(0, 0.05))
        rivalling = launch(lab, pod, rival, **nobody)
        note(pod, adding.land())
        answer = rivalling.land().or_raise()
        if rival == "ADD":
            note(pod, answer)
        if attached(lab, pod):
            if rival != "ADD":
                pod.check()
        else:
            assert rival != "ADD"
        launch(lab, pod, "DEL").land().or_raise()
        assert inventory(lab) == before


def test_two_dels_of_one_container_at_once(lab: Lab) -> None:
    before = inventory(lab)
    pod = lab.container("pod", lab.conf(dual=True, shim=SHIM))
    for _ in range(size(5, 50)):
        pod.add()
        all_at_once(lab, [pod, pod, pod], "DEL")
        assert not attached(lab, pod)
        assert inventory(lab) == before


def test_gc_spares_what_is_being_added(lab: Lab) -> None:
    """As long as the runtime lists it, which it can: it has chosen the container ID before it calls ADD."""
    chance = seeded("GC during ADD")
    pods = [lab.container(f"pod{number}", lab.conf(dual=True)) for number in range(4)]
    valid = [{"containerID": pod.container_id, "ifname": pod.dev} for pod in pods]
    for _ in range(size(6, 60)):
        adding = [launch(lab, pod, "ADD") for pod in pods]
        for _ in range(3):
            time.sleep(chance.uniform(0, 0.03))
            launch(lab, pods[0], "GC", **{"cni.dev/valid-attachments": valid}).land().or_raise()
        for pod, flight in zip(pods, adding, strict=True):
            note(pod, flight.land())
        assert all(attached(lab, pod) for pod in pods)
        chance.choice(pods).check()
        all_at_once(lab, pods, "DEL")
    assert traces.held(lab) == []
