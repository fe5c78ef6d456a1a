"""The nodes of a cluster from inside: each has a pod of ours in its network, and a service on a node-local address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from e2e.cluster import Cluster, workload
from e2e.machine import PAGE, Machine
from e2e.surroundings import conflist, on_the_lan, ranges, told

LOCAL, LOCAL_PORT = "169.254.20.10", 8053  # where a node-local DNS would listen
BIN_DIR, CONF_DIR, STATE_DIR = "/opt/cni/bin", "/etc/cni/net.d", "/var/lib/cni"
REFERENCE = f"{CONF_DIR}/00-e2e-reference.conflist"
REFERENCE_DATA = f"{STATE_DIR}/e2e-reference"


class Node(Machine):
    """A node; `addresses` are those that it has on the LAN."""

    def __init__(self, cluster: Cluster, name: str, pod: str) -> None:
        super().__init__(name, cluster.exec_words(pod))
        self.pod = pod
        self.addresses = on_the_lan(self)

    def traces(self) -> list[str]:
        """What shimlan has made on this node: links, files; empty when it was never here."""
        links = [line for line in self.run("ip", "link").splitlines() if "shim" in line]
        files = self.run("find", BIN_DIR, CONF_DIR, STATE_DIR, "-name", "*shimlan*").split()
        return links + files


def helper() -> dict[str, Any]:
    """The DaemonSet of such pods."""
    directories = {"bin": BIN_DIR, "conf": CONF_DIR, "state": STATE_DIR}
    container = {
        "image": told("SHIMLAN_E2E_POD_IMAGE"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", f"ip addr add {LOCAL}/32 dev lo; exec httpd -f -p {LOCAL}:{LOCAL_PORT} -h /etc"],
        "lifecycle": {"preStop": {"exec": {"command": ["ip", "addr", "del", f"{LOCAL}/32", "dev", "lo"]}}},
        "readinessProbe": {"exec": {"command": ["wget", "-q", "-O", "-", f"http://{LOCAL}:{LOCAL_PORT}/{PAGE}"]}},
        "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}},
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in directories.items()],
    }
    volumes = [{"name": name, "hostPath": {"path": path}} for name, path in directories.items()]
    return workload("DaemonSet", "node", container, hostNetwork=True, volumes=volumes, tolerations=ANY_TAINT)


ANY_TAINT = [{"operator": "Exists"}]


def watched(cluster: Cluster) -> dict[str, Node]:
    """The nodes that pods may run on, by name."""
    cluster.apply(helper())
    cluster.rolled_out("daemonset/node")
    names = cluster.nodes()
    pods = cluster.pods("node")
    return {pod.node: Node(cluster, pod.node, pod.name) for pod in pods if pod.node in names}


def share(number: int, of: int) -> list[list[dict[str, str]]]:
    """The ranges of one of several nodes: an equal part of those that we were told."""
    return [[_part(each, number, of) for each in pool] for pool in ranges()]


def _part(whole: dict[str, str], number: int, of: int) -> dict[str, str]:
    first, last = ip_address(whole["rangeStart"]), ip_address(whole["rangeEnd"])
    size = (int(last) - int(first) + 1) // of
    start = first + number * size
    return {**whole, "rangeStart": str(start), "rangeEnd": str(start + size - 1)}


@contextmanager
def reference_network(nodes: dict[str, Node]) -> Iterator[None]:
    """Pods get the reference plugins' network for the time of a block."""
    for number, node in enumerate(nodes.values()):
        network = conflist(main="macvlan", ipam="host-local")
        network["plugins"][0]["ipam"].update(dataDir=REFERENCE_DATA, ranges=share(number, len(nodes)))
        node.run("sh", "-c", f"echo '{json.dumps(network)}' > {REFERENCE}")
    try:
        yield
    finally:
        for node in nodes.values():
            node.run("rm", "-rf", REFERENCE, REFERENCE_DATA)
