"""containerd, or any other runtime that speaks CRI (https://github.com/kubernetes/cri-api)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from cri_api.v1 import api_pb2 as api
from cri_api.v1 import api_pb2_grpc as services

from e2e.machine import SERVER, Done
from e2e.runtime import Pod, Refused, Runtime

CALL_SECONDS = 120  # fifty pods at once take their time
PULL_SECONDS = 300
LABELS = {"shimlan": "e2e"}  # tells our pods from those of others


class Absent(Refused):
    """It is about a sandbox that the runtime does not have."""


class Containerd(Runtime):
    """A runtime at an endpoint; it takes the first network of its directory."""

    def __init__(self, endpoint: str, image: str, bin_dir: Path, conf_dir: Path) -> None:
        self.bin_dir = bin_dir
        self.conf_dir = conf_dir
        self._image = api.ImageSpec(image=image)
        self._channel = grpc.insecure_channel(endpoint)
        self._runtime = services.RuntimeServiceStub(self._channel)
        self._images = services.ImageServiceStub(self._channel)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def call(self, method: str, **fields: Any) -> Any:
        """The answer to a method of CRI's RuntimeService. Raises Refused, Absent when there is no such sandbox."""
        request = getattr(api, f"{method}Request")(**fields)
        try:
            return getattr(self._runtime, method)(request, timeout=CALL_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            kind = Absent if error.code() is grpc.StatusCode.NOT_FOUND else Refused
            raise kind(f"{method}: {error.details()}") from error

    def pull(self) -> None:
        """Have the image of our pods there."""
        present = self._images.ImageStatus(api.ImageStatusRequest(image=self._image), timeout=CALL_SECONDS)
        if not present.image.id:
            self._images.PullImage(api.PullImageRequest(image=self._image), timeout=PULL_SECONDS)

    def start(self, name: str, *, ip: str = "", mac: str = "") -> CriPod:
        """A pod with one container. Raises Refused; then nothing is left of it."""
        assert not ip + mac, "CRI has no wishes"
        config = sandbox_config(name)
        pod = CriPod(self, self.sandbox(config), name)
        try:
            pod.run_server(config, self._image)
        except Refused:
            pod.remove()
            raise
        return pod

    def sandbox(self, config: Any) -> str:
        """The ID of a new sandbox, which has a network and no container. Raises Refused."""
        return str(self.call("RunPodSandbox", config=config).pod_sandbox_id)

    def remove(self, sandbox: str) -> None:
        """Stop a sandbox and remove it, unless it is gone. Raises Refused."""
        for method in ("StopPodSandbox", "RemovePodSandbox"):
            with suppress(Absent):
                self.call(method, pod_sandbox_id=sandbox)

    def sees(self, conflist: dict[str, Any]) -> bool:
        """Whether this is the network that the next pod gets."""
        status = self.call("Status", verbose=True)
        if not all(condition.status for condition in status.status.conditions):
            return False
        networks = json.loads(status.info["cniconfig"])["Networks"]
        sources = [each["Config"]["Source"] for each in networks]
        return any(json.loads(source)["plugins"] == conflist["plugins"] for source in sources if "plugins" in source)

    def pods(self) -> list[Pod]:
        """Those of these tests, stopped ones included."""
        selector = api.PodSandboxFilter(label_selector=LABELS)
        return [
            CriPod(self, item.id, item.metadata.name) for item in self.call("ListPodSandbox", filter=selector).items
        ]


class CriPod(Pod):
    """A sandbox with at most one container."""

    def __init__(self, runtime: Containerd, sandbox: str, name: str) -> None:
        known = runtime.call("PodSandboxStatus", pod_sandbox_id=sandbox, verbose=True)
        network = known.status.network
        found = [network.ip, *(each.ip for each in network.additional_ips)]
        super().__init__(name, (), [address for address in found if address])
        self.netns = _netns(json.loads(known.info["info"]))
        self._runtime = runtime
        self._sandbox = sandbox
        self._container = ""

    def run_server(self, config: Any, image: Any) -> None:
        """Start its container. Raises Refused."""
        own_pids = api.LinuxContainerSecurityContext(namespace_options=OWN_PIDS)
        container = api.ContainerConfig(
            metadata=api.ContainerMetadata(name="server"),
            image=image,
            command=SERVER,
            linux=api.LinuxContainerConfig(security_context=own_pids),
        )
        where = {"pod_sandbox_id": self._sandbox, "sandbox_config": config}
        self._container = self._runtime.call("CreateContainer", config=container, **where).container_id
        self._runtime.call("StartContainer", container_id=self._container)

    def execute(self, program: Sequence[str]) -> Done:
        """Run a program in the container."""
        done = self._runtime.call("ExecSync", container_id=self._container, cmd=program, timeout=CALL_SECONDS)
        return Done(done.exit_code, done.stdout.decode(), done.stderr.decode().strip())

    def stop(self) -> None:
        """StopPodSandbox."""
        self._runtime.call("StopPodSandbox", pod_sandbox_id=self._sandbox)

    def remove(self) -> None:
        """StopPodSandbox and RemovePodSandbox."""
        self._runtime.remove(self._sandbox)


def _netns(info: dict[str, Any]) -> str:
    """The path of a sandbox's network, from what the runtime knows beyond CRI."""
    namespaces = info["runtimeSpec"]["linux"]["namespaces"]
    return next((each["path"] for each in namespaces if each["type"] == "network"), "")


OWN_PIDS = api.NamespaceOption(pid=api.CONTAINER)


def sandbox_config(name: str) -> Any:
    """What kubelet would say of a pod, in short."""
    own_pids = api.LinuxSandboxSecurityContext(namespace_options=OWN_PIDS)
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=name, uid=str(uuid.uuid4()), namespace="default"),
        hostname=name,
        labels={**LABELS, "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default"},
        linux=api.LinuxPodSandboxConfig(security_context=own_pids),
    )
