"""Pods attached by real runtimes: each test with each runtime, through client and agent and in-process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path

import pytest

from e2e import installed, surroundings, traces
from e2e.containerd import Containerd
from e2e.machine import Machine, all_reach_each_other, eventually, execute
from e2e.podman import Podman
from e2e.runtime import Refused, Runtime

MANY = 50


@pytest.mark.usefixtures("network")
def test_pods_host_and_lan_reach_each_other(runtime: Runtime, host: Machine, outside: Machine) -> None:
    pods = [runtime.start(name) for name in ("a", "b")]
    assert [len(pod.addresses) for pod in pods] == 2 * [len(surroundings.ranges())]
    assert all_reach_each_other(pods, host, outside) == []


@pytest.mark.usefixtures("network")
def test_a_pod_has_what_it_was_told_to_have(runtime: Runtime) -> None:
    pod = runtime.start("a")
    assert pod.addresses_of("eth0") == pod.addresses


@pytest.mark.usefixtures("network")
def test_a_pod_that_was_stopped_and_removed_twice_has_left_nothing(
    runtime: Runtime, host: Machine, tmp_path: Path
) -> None:
    before = traces.of_node()
    pod = runtime.start("a")
    assert host.pings(pod)
    for end in (pod.stop, pod.stop, pod.remove, pod.remove):
        end()
    eventually(lambda: traces.of_node() == before, "the node is as it was")
    assert not os.path.exists(pod.netns)
    assert traces.of_store(installed.state_dir(tmp_path)) == []


@pytest.mark.usefixtures("network")
def test_fifty_pods_at_once(runtime: Runtime, host: Machine) -> None:
    with ThreadPoolExecutor(MANY) as callers:
        pods = list(callers.map(runtime.start, (f"p{number}" for number in range(MANY))))
        addresses = list(chain.from_iterable(pod.addresses for pod in pods))
        assert len(set(addresses)) == MANY * len(surroundings.ranges())
        assert [pod.name for pod, answers in zip(pods, callers.map(host.pings, pods), strict=True) if not answers] == []
        list(callers.map(lambda pod: pod.remove(), pods))


@pytest.mark.usefixtures("attached")
def test_two_words_are_changed_in_a_network_of_the_reference_plugins(
    runtime: Runtime, host: Machine, outside: Machine, tmp_path: Path
) -> None:
    """With macvlan and host-local the host does not reach its pod, afterwards it does; the one of before goes well."""
    data = str(installed.state_dir(tmp_path))
    reference = surroundings.conflist(main="macvlan", ipam="host-local", dataDir=data)
    reference["plugins"][0]["ipam"]["dataDir"] = data
    with reference_plugins(runtime), installed.network(runtime, reference):
        before = runtime.start("before")
        # It does not announce itself as ours do: who knew its address goes on with a stale entry until it speaks.
        eventually(lambda: before.pings(outside) and outside.pings(before), "a pod of the reference plugins is known")
        assert all_reach_each_other([before], outside) == []
        assert not host.pings(before)
        text = json.dumps(reference).replace('"macvlan"', '"shimlan"').replace('"host-local"', '"shimlan-ipam"')
        installed.configure(runtime, json.loads(text))
        assert all_reach_each_other([runtime.start(name) for name in ("after", "more")], host, outside) == []
        assert all_reach_each_other([before], outside) == []
        before.remove()
        assert not os.path.exists(before.netns)


def reference_plugins(runtime: Runtime) -> AbstractContextManager[None]:
    """macvlan and host-local where the runtime finds them, if it did not before."""
    source = surroundings.reference_plugins("macvlan", "host-local")
    missing = [name for name in ("macvlan", "host-local") if not (runtime.bin_dir / name).exists()]
    return installed.files(runtime.bin_dir, {name: source / name for name in missing})


@pytest.mark.parametrize("runtime", ["containerd"], indirect=True)
@pytest.mark.usefixtures("network")
def test_pods_outlive_a_restart_of_the_runtime(containerd: Containerd, host: Machine, outside: Machine) -> None:
    pods = [containerd.start(name) for name in ("a", "b")]
    done = execute(surroundings.words("SHIMLAN_E2E_RUNTIME_RESTART"))
    assert done.status == 0, done.complaint
    assert all_reach_each_other([*pods, containerd.start("c")], host, outside) == []


@pytest.mark.parametrize("runtime", ["podman"], indirect=True)
@pytest.mark.usefixtures("network")
def test_podman_asks_for_an_address_and_a_mac(podman: Podman, host: Machine) -> None:
    wanted = surroundings.ranges()[0][0]["rangeEnd"]
    pod = podman.start("a", ip=wanted, mac="02:00:00:00:00:22")
    assert wanted in pod.addresses
    assert "02:00:00:00:00:22" in pod.run("ip", "link", "show", "eth0")
    assert host.pings(pod)


def test_a_client_without_agent_has_the_plugin_beside_it_do_the_work(
    runtime: Runtime, client: Path, host: Machine, tmp_path: Path
) -> None:
    with a_network_of_the_client(runtime, client, tmp_path, fallback=True):
        pod = runtime.start("a")
        assert host.pings(pod)


def test_a_client_without_agent_and_plugin_has_the_runtime_try_again(
    runtime: Runtime, client: Path, host: Machine, tmp_path: Path
) -> None:
    with a_network_of_the_client(runtime, client, tmp_path, fallback=False):
        with pytest.raises(Refused, match="start the agent"):
            runtime.start("early")
        with installed.agent(tmp_path):
            for pod in runtime.pods():
                pod.remove()
            pod = runtime.start("late")
            assert host.pings(pod)
            pod.remove()


@contextmanager
def a_network_of_the_client(runtime: Runtime, client: Path, directory: Path, *, fallback: bool) -> Iterator[None]:
    """A network that the client serves; nothing is left of it."""
    conflist = surroundings.conflist(dataDir=str(installed.state_dir(directory)))
    with (
        traces.nothing_left(installed.state_dir(directory)),
        installed.client(runtime, client, fallback=fallback),
        installed.network(runtime, conflist),
    ):
        yield
