"""shimlan as the network of a Kubernetes cluster. The tests build on each other: from the installation to its end."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, permutations, product
from typing import Any

import pytest

from e2e import surroundings
from e2e.cluster import NAMESPACE, Cluster, ClusterPod, service, workload
from e2e.daemonset import DaemonSet
from e2e.machine import PAGE, PORT, SERVER, Machine, all_reach_each_other, eventually
from e2e.nodes import BIN_DIR, LOCAL, LOCAL_PORT, Node, reference_network, watched
from e2e.pings import none_lost

PROBES_SECONDS = 10  # of watching pods whose probes come each second
CHURNED = 3  # pods that are replaced all the time
KILLS = 3
ARPS = 3
ANSWER = re.compile(r"reply from \S+ \[(\S+)\]")  # of busybox's arping
HTTP = {"httpGet": {"path": f"/{PAGE}", "port": PORT}, "periodSeconds": 1, "timeoutSeconds": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster of KUBECONFIG, with a namespace of ours."""
    surroundings.told("KUBECONFIG")
    cluster = Cluster(surroundings.words("SHIMLAN_E2E_KUBECTL"))
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    yield cluster
    cluster.delete("namespace", NAMESPACE)


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> dict[str, Node]:
    """The nodes that pods may run on."""
    return watched(cluster)


@pytest.fixture(scope="module")
def daemonset(cluster: Cluster, nodes: dict[str, Node]) -> Iterator[DaemonSet]:
    """shimlan, installed."""
    daemonset = DaemonSet(cluster)
    daemonset.install()
    yield daemonset
    remove_workloads(cluster)
    daemonset.delete()


@pytest.fixture(scope="module")
def web(cluster: Cluster, daemonset: DaemonSet) -> list[ClusterPod]:
    """A pod for each node, and at least two, that the kubelet probes by HTTP."""
    probed = server(readinessProbe=HTTP, livenessProbe={**HTTP, "failureThreshold": 2})
    return started(cluster, "Deployment", "web", probed, max(2, len(cluster.nodes())))


@pytest.fixture(scope="module")
def everybody(web: list[ClusterPod], nodes: dict[str, Node]) -> list[Machine]:
    """The pods, their nodes and, where we were told of one, another machine on the LAN."""
    try:
        return [*web, *nodes.values(), surroundings.outside()]
    except pytest.skip.Exception:
        return [*web, *nodes.values()]


def server(**more: Any) -> dict[str, Any]:
    """A container with a web server."""
    image = {"image": surroundings.told("SHIMLAN_E2E_POD_IMAGE"), "imagePullPolicy": "IfNotPresent"}
    return {**image, "command": list(SERVER), **more}


def started(cluster: Cluster, kind: str, name: str, container: dict[str, Any], replicas: int) -> list[ClusterPod]:
    """The pods of a new workload, which are ready."""
    cluster.apply(workload(kind, name, container, replicas=replicas))
    cluster.rolled_out(f"{kind.lower()}/{name}")
    return cluster.pods(name)


def remove_workloads(cluster: Cluster) -> None:
    """Delete all pods of the tests that shimlan serves."""
    for kind in ("deployments", "statefulsets"):
        cluster.delete(kind, "--all")


def test_with_the_reference_plugins_a_pod_never_becomes_ready(cluster: Cluster, nodes: dict[str, Node]) -> None:
    if not all(node.succeeds("ls", f"{BIN_DIR}/macvlan", f"{BIN_DIR}/host-local") for node in nodes.values()):
        pytest.skip(f"the nodes have no macvlan and host-local in {BIN_DIR}")
    with reference_network(nodes):
        cluster.apply(workload("Deployment", "reference", server(readinessProbe=HTTP), replicas=1))
        eventually(lambda: any(pod.addresses for pod in cluster.pods("reference")), "the pod has an address")
        time.sleep(PROBES_SECONDS)
        (pod,) = cluster.pods("reference")
        assert pod.fetches(pod)
        assert not pod.ready
        cluster.delete("deployment", "reference")


def test_probes_by_http_succeed_again_and_again(cluster: Cluster, web: list[ClusterPod]) -> None:
    until = time.monotonic() + PROBES_SECONDS
    while time.monotonic() < until:
        assert [pod.name for pod in cluster.pods("web") if not pod.ready or pod.restarts] == []
        time.sleep(1)


def test_pods_nodes_and_lan_reach_each_other(web: list[ClusterPod], everybody: list[Machine]) -> None:
    others = [machine for machine in everybody if machine not in web]
    assert all_reach_each_other(web, *others) == []


def test_pods_and_nodes_reach_services(cluster: Cluster, web: list[ClusterPod], nodes: dict[str, Node]) -> None:
    cluster.apply(service("web", "web", 80, PORT))
    address = cluster.get("service", "web")["spec"]["clusterIP"]
    for machine in [*web, *nodes.values()]:
        eventually(partial(machine.fetches_from, address, 80), f"{machine.name} reaches the ClusterIP")
        assert all(machine.fetches_from(address, 80) for _ in range(2 * len(web)))


def test_everybody_reaches_a_port_of_the_nodes(
    cluster: Cluster, everybody: list[Machine], nodes: dict[str, Node]
) -> None:
    cluster.apply(service("port", "web", 80, PORT, "NodePort"))
    port = cluster.get("service", "port")["spec"]["ports"][0]["nodePort"]
    for machine, node in product(everybody, nodes.values()):
        fetches = partial(machine.fetches_from, node.addresses[0], port)
        eventually(fetches, f"{machine.name} reaches port {port} of {node.name}")


def test_pods_reach_a_node_local_address(web: list[ClusterPod]) -> None:
    assert [pod.name for pod in web if not pod.fetches_from(LOCAL, LOCAL_PORT)] == []


def test_the_lan_hears_one_answer_for_each_address(web: list[ClusterPod], nodes: dict[str, Node]) -> None:
    """Neither the shim nor the other end of anything answers for a node or a pod."""
    outside = surroundings.outside()
    for machine in [*nodes.values(), *web]:
        for address in filter(is_ipv4, machine.addresses):
            link = outside.run("ip", "route", "get", address).split(" dev ")[1].split()[0]
            told = outside.run("arping", "-c", str(ARPS), "-w", "10", "-I", link, address)
            assert len(ANSWER.findall(told)) == ARPS, told
            assert len(set(ANSWER.findall(told))) == 1, told


def test_the_lan_hears_of_a_pod_before_it_asks(cluster: Cluster, daemonset: DaemonSet) -> None:
    """Gratuitous ARP fills the neighbour table of who accepts it."""
    outside = surroundings.outside()
    accept = "/proc/sys/net/ipv4/conf/all/arp_accept"
    before = outside.run("cat", accept).strip()
    outside.run("sh", "-c", f"echo 1 > {accept}")
    try:
        (pod,) = started(cluster, "Deployment", "announced", server(), 1)
        mac = pod.run("cat", "/sys/class/net/eth0/address").strip()
        known = outside.run("ip", "neigh").splitlines()
        assert any(line.startswith(f"{pod.addresses[0]} ") and mac in line for line in known), known
    finally:
        outside.run("sh", "-c", f"echo {before} > {accept}")
    cluster.delete("deployment", "announced")


def is_ipv4(address: str) -> bool:
    """Whether it is one that ARP asks for."""
    return ":" not in address


def test_a_stateful_set_keeps_its_addresses(cluster: Cluster, daemonset: DaemonSet, nodes: dict[str, Node]) -> None:
    """On a cluster of several nodes a pod may come back on another one, with an address of that one."""
    before = started(cluster, "StatefulSet", "db", server(readinessProbe=HTTP), 2)
    cluster.delete("pods", "--selector", "app=db")
    cluster.rolled_out("statefulset/db")
    after = cluster.pods("db")
    kept = [(old.addresses, new.addresses) for old, new in zip(before, after, strict=True) if old.node == new.node]
    assert [old for old, _ in kept] == [new for _, new in kept]
    assert kept or len(nodes) > 1
    assert all_reach_each_other(after, *nodes.values()) == []


def test_the_addresses_of_deleted_pods_are_free(cluster: Cluster, daemonset: DaemonSet) -> None:
    held = daemonset.held()
    taken = addresses(started(cluster, "Deployment", "short-lived", server(), 3))
    assert daemonset.held() == held | taken
    cluster.delete("deployment", "short-lived")
    eventually(lambda: daemonset.held() == held, "the addresses are free")


def addresses(pods: list[ClusterPod]) -> set[str]:
    """All addresses of these pods."""
    return set(chain.from_iterable(pod.addresses for pod in pods))


@contextmanager
def churn(cluster: Cluster) -> Iterator[None]:
    """Pods are deleted and come back all the time."""
    started(cluster, "Deployment", "churn", server(readinessProbe=HTTP), CHURNED)
    over = threading.Event()
    rounds: list[int] = []

    def replace() -> None:
        while not over.is_set():
            cluster.delete("pods", "--selector", "app=churn")
            cluster.rolled_out("deployment/churn")
            rounds.append(1)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert rounds
    assert [pod.name for pod in cluster.pods("churn") if not pod.ready] == []
    cluster.delete("deployment", "churn")


def test_a_rolling_update_loses_no_ping_and_no_address(
    cluster: Cluster, daemonset: DaemonSet, web: list[ClusterPod], everybody: list[Machine]
) -> None:
    held = daemonset.held()
    with churn(cluster), none_lost(ways_of(web, everybody)):
        daemonset.restart()
    eventually(lambda: daemonset.held() == held, "what the churned pods had is free, and nothing else")
    assert cluster.pods("web") == web


def test_agents_that_are_killed_lose_no_ping_and_no_address(
    cluster: Cluster, daemonset: DaemonSet, web: list[ClusterPod], everybody: list[Machine]
) -> None:
    held = daemonset.held()
    with churn(cluster), none_lost(ways_of(web, everybody)):
        for _ in range(KILLS):
            daemonset.kill()
    eventually(lambda: daemonset.held() == held, "what the churned pods had is free, and nothing else")
    assert cluster.pods("web") == web


def ways_of(web: list[ClusterPod], everybody: list[Machine]) -> list[tuple[Machine, Machine]]:
    """Everybody to and from the first two pods."""
    return [(a, b) for a, b in permutations(everybody, 2) if a in web[:2] or b in web[:2]]


def test_it_is_uninstalled_under_living_pods(
    cluster: Cluster, daemonset: DaemonSet, nodes: dict[str, Node], web: list[ClusterPod], everybody: list[Machine]
) -> None:
    with none_lost(ways_of(web, everybody)):
        daemonset.start_uninstall()
        eventually(
            lambda: not any(node.succeeds("ls", *CONFLISTS) for node in nodes.values()), "the conflists are gone"
        )
    remove_workloads(cluster)
    daemonset.rolled_out()
    daemonset.delete()
    assert {node.name: node.traces() for node in nodes.values()} == {name: [] for name in nodes}


CONFLISTS = ("/etc/cni/net.d/10-shimlan.conflist",)
