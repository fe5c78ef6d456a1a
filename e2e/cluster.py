"""A Kubernetes cluster by kubectl: objects in, pods out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from e2e.machine import Machine, execute

Object = dict[str, Any]

NAMESPACE = "shimlan-e2e"  # of whatever the tests make
WAIT = "--timeout=120s"


class Cluster:
    """What an administrator does."""

    def __init__(self, kubectl: Sequence[str]) -> None:
        self._kubectl = list(kubectl)

    def run(self, *words: str, given: str | None = None, namespace: str = NAMESPACE) -> str:
        """What a command of kubectl writes; "" leaves the namespace to the objects. Raises AssertionError."""
        where = ["--namespace", namespace] if namespace else []
        done = execute([*self._kubectl, *where, *words], given)
        assert done.status == 0, f"kubectl {' '.join(words)}: {done.complaint}"
        return done.output

    def get(self, *words: str, namespace: str = NAMESPACE) -> Any:
        """An object, or a list of them. Raises AssertionError when there is none of this name."""
        found = json.loads(self.run("get", *words, "--output", "json", namespace=namespace))
        return found["items"] if found["kind"] == "List" else found

    def apply(self, *objects: Object) -> None:
        """Have these objects."""
        self.run("apply", "--filename", "-", given=yaml.safe_dump_all(objects), namespace="")

    def delete(self, *words: str) -> None:
        """Have these objects no more, and wait until they and their pods are gone."""
        self.run("delete", "--ignore-not-found", "--cascade=foreground", "--wait", WAIT, *words)

    def rolled_out(self, what: str, namespace: str = NAMESPACE) -> None:
        """Wait until all pods of a Deployment, StatefulSet or DaemonSet are those that it wants, and ready."""
        self.run("rollout", "status", what, WAIT, namespace=namespace)

    def exec_words(self, pod: str, namespace: str = NAMESPACE) -> list[str]:
        """The words before a program that run it in a pod."""
        return [*self._kubectl, "--namespace", namespace, "exec", pod, "--"]

    def pods(self, app: str) -> list[ClusterPod]:
        """The pods of one of our workloads, by name."""
        items = self.get("pods", "--selector", f"app={app}")
        return [ClusterPod(self, item) for item in sorted(items, key=lambda item: item["metadata"]["name"])]

    def nodes(self) -> list[str]:
        """The names of the nodes that pods may run on."""
        items = self.get("nodes")
        taints = {item["metadata"]["name"]: item["spec"].get("taints", []) for item in items}
        return sorted(name for name, each in taints.items() if not any(taint["key"] in CONTROL_PLANE for taint in each))


CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")


class ClusterPod(Machine):
    """A pod, as it was when we looked."""

    def __init__(self, cluster: Cluster, item: Object) -> None:
        status = item["status"]
        name = item["metadata"]["name"]
        super().__init__(name, cluster.exec_words(name), [each["ip"] for each in status.get("podIPs", [])])
        self.node = item["spec"].get("nodeName", "")
        self.ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))
        self.restarts = sum(each["restartCount"] for each in status.get("containerStatuses", []))


# No volume that kubelet has to unmount before a pod is gone.
QUICK = {"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False}


def workload(kind: str, name: str, container: Object, *, replicas: int | None = None, **pod: Any) -> Object:
    """A Deployment, StatefulSet or DaemonSet of pods with the label `app: NAME`."""
    labels = {"app": name}
    spec = {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {**QUICK, "containers": [{"name": "c", **container}], **pod},
        },
        **({"serviceName": name, "podManagementPolicy": "Parallel"} if kind == "StatefulSet" else {}),
        **({} if replicas is None else {"replicas": replicas}),
    }
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def service(name: str, app: str, port: int, target: int, kind: str = "ClusterIP") -> Object:
    """A Service of pods with the label `app: APP`."""
    ports = [{"port": port, "targetPort": target}]
    spec: Mapping[str, Any] = {"type": kind, "selector": {"app": app}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}
