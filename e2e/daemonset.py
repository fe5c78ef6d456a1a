"""shimlan in a cluster: from the image and the manifests, with the NIC, the addresses and the services of this one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import Cluster, Object
from e2e.machine import execute
from e2e.nodes import LOCAL, share
from e2e.surroundings import conflist, told, words

MANIFESTS = Path(__file__).parents[1] / "manifests"
OVERLAY = MANIFESTS / "overlays/default-network"
NAMESPACE, NAME = "shimlan", "daemonset/shimlan"
CONFLIST = "10-shimlan.conflist"
NETNS_DIR = "/run/netns"


class DaemonSet:
    """shimlan as the network of all pods of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        nodes = cluster.nodes()
        self._objects = [_adapted(each, nodes) for each in yaml.safe_load_all(_rendered()) if each]

    def install(self) -> None:
        """As `kubectl apply -k` does it; wait until it works."""
        self._cluster.apply(*self._objects)
        self.rolled_out()

    def rolled_out(self) -> None:
        """Wait until the agents are those of the latest manifest, and ready."""
        self._cluster.rolled_out(NAME, NAMESPACE)

    def restart(self) -> None:
        """A rolling update: each agent makes way for a new one."""
        self._cluster.run("rollout", "restart", NAME, namespace=NAMESPACE)
        self.rolled_out()

    def agents(self) -> list[str]:
        """The names of the agents' pods."""
        pods = self._cluster.get("pods", "--selector", "app.kubernetes.io/name=shimlan", namespace=NAMESPACE)
        return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def kill(self) -> None:
        """End all agents without giving them time, and wait for those that take their place."""
        self._cluster.run("delete", "pods", "--grace-period=0", "--force", *self.agents(), namespace=NAMESPACE)
        self.rolled_out()

    def held(self) -> set[str]:
        """The addresses that are held, on all nodes."""
        return set(chain.from_iterable(self._held(agent) for agent in self.agents()))

    def _held(self, agent: str) -> Iterable[str]:
        question = ("exec", agent, "--", "shimlanctl", "pool", "leases", "--output", "json")
        leases = json.loads(self._cluster.run(*question, namespace=NAMESPACE))
        return (lease["address"] for lease in leases if lease["state"] == "held")

    def start_uninstall(self) -> None:
        """Have it take shimlan away from the nodes, as soon as no pod needs it."""
        patch = (MANIFESTS / "uninstall.yaml").read_text()
        self._cluster.run("patch", NAME, "--patch", patch, namespace=NAMESPACE)

    def delete(self) -> None:
        """As `kubectl delete -k` does it."""
        given = yaml.safe_dump_all(self._objects)
        self._cluster.run("delete", "--ignore-not-found", "--wait", "--filename", "-", given=given, namespace="")


def _rendered() -> str:
    """The manifests in one piece. Raises AssertionError."""
    done = execute([*words("SHIMLAN_E2E_KUSTOMIZE"), str(OVERLAY)])
    assert done.status == 0, done.complaint
    return done.output


def _adapted(each: Object, nodes: list[str]) -> Object:
    """An object of the manifests for this cluster."""
    if each["kind"] == "ConfigMap":
        each["data"] = _configuration(each["data"], nodes)
    if each["kind"] == "DaemonSet":
        _adapt(each["spec"]["template"]["spec"])
    return each


def _configuration(data: dict[str, str], nodes: list[str]) -> dict[str, str]:
    """The network with the services of this cluster, and for each node its NIC and its part of the addresses."""
    network = json.loads(data[CONFLIST])
    (plugin,) = network["plugins"]
    plugin["shim"] = {"hostAddresses": ["auto", LOCAL], "routes": [told("SHIMLAN_E2E_SERVICES")]}
    plugin["ipam"]["routes"] = conflist()["plugins"][0]["ipam"]["routes"]
    master = told("SHIMLAN_E2E_MASTER")
    of_nodes = {
        f"{node}.json": json.dumps({"master": master, "ipam": {"ranges": share(number, len(nodes))}})
        for number, node in enumerate(nodes)
    }
    return {"agent.yaml": data["agent.yaml"], CONFLIST: json.dumps(network), **of_nodes}


def _adapt(pod: dict[str, Any]) -> None:
    """The image of this cluster; its directory of network namespaces, if that is an unusual one."""
    (container,) = pod["containers"]
    container["image"] = told("SHIMLAN_E2E_IMAGE")
    directory = told("SHIMLAN_E2E_NETNS_DIR")
    if directory != NETNS_DIR:
        mount = {"name": "e2e-netns", "mountPath": directory, "mountPropagation": "HostToContainer"}
        container["volumeMounts"].append(mount)
        pod["volumes"].append({"name": "e2e-netns", "hostPath": {"path": directory}})
