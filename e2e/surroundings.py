"""Where the tests run: all that they are told, by environment variables, of the machine, the runtime and the LAN.

A test that misses one of them is skipped, and says which one and what it means.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from e2e.containerd import Containerd
from e2e.machine import Machine

MEANINGS = {
    "CONTAINER_RUNTIME_ENDPOINT": "the socket of a runtime with CRI, such as unix:///run/containerd/containerd.sock",
    "SHIMLAN_E2E_CNI_BIN_DIR": "the directory where that runtime looks for CNI plugins; it has `loopback`",
    "SHIMLAN_E2E_CNI_CONF_DIR": "the directory where that runtime looks for networks",
    "SHIMLAN_E2E_RUNTIME_RESTART": "a command that restarts that runtime and returns when it answers",
    "SHIMLAN_E2E_PODMAN": "the command of a podman that knows the network back end `cni`",
    "SHIMLAN_E2E_PODMAN_IMAGE": "an image with busybox that podman has or can pull, e.g. docker-archive:/path/to.tar",
    "SHIMLAN_E2E_POD_IMAGE": "an image with busybox that the runtime, or each node, has or can pull",
    "SHIMLAN_E2E_MASTER": "the NIC of the node, or of each node, that pods are attached to",
    "SHIMLAN_E2E_RANGES": "addresses that pods may have, as JSON for the key `ipam.ranges`; ten for each node, or 60",
    "SHIMLAN_E2E_OUTSIDE": "words before a program of busybox that run it on another machine of the LAN",
    "SHIMLAN_E2E_OUTSIDE_ADDRESSES": "the addresses of that machine, separated by spaces",
    "KUBECONFIG": "administrator of a cluster that may be played with",
    "SHIMLAN_E2E_IMAGE": "the name of shimlan's image, which each node has or can pull",
}
DEFAULTS = {
    "SHIMLAN_E2E_HOST": "busybox",
    "SHIMLAN_E2E_KUBECTL": "kubectl",
    "SHIMLAN_E2E_KUSTOMIZE": "kubectl kustomize",
    "SHIMLAN_E2E_PEER_DIR": "/usr/lib/cni",
    "SHIMLAN_E2E_SERVICES": "10.96.0.0/12",
    "SHIMLAN_E2E_NETNS_DIR": "/run/netns",
}


def told(name: str) -> str:
    """The value of a variable. Skips the test when there is none, and no default."""
    value = os.environ.get(name) or DEFAULTS.get(name, "")
    if not value:
        pytest.skip(f"{name} is not set: {MEANINGS[name]}")
    return value


def directory(name: str) -> Path:
    """The directory that a variable names. Skips the test when it is not there."""
    path = Path(told(name))
    if not path.is_dir():
        pytest.skip(f"{name}={path} is no directory")
    return path


def words(name: str) -> list[str]:
    """The words of a command that a variable has."""
    return shlex.split(told(name))


def ranges() -> list[list[dict[str, str]]]:
    """The pools that pods get their addresses from: the value of `ipam.ranges`."""
    pools: list[list[dict[str, str]]] = json.loads(told("SHIMLAN_E2E_RANGES"))
    return pools


def outside() -> Machine:
    """Another machine of the LAN."""
    return Machine("outside", words("SHIMLAN_E2E_OUTSIDE"), told("SHIMLAN_E2E_OUTSIDE_ADDRESSES").split())


def host() -> Machine:
    """The node that the tests run on, with its addresses on the LAN."""
    node = Machine("host", words("SHIMLAN_E2E_HOST"))
    node.addresses = on_the_lan(node)
    return node


def on_the_lan(node: Machine) -> list[str]:
    """The addresses of a node on the LAN, of the families that pods have."""
    families = {":" in pool[0]["subnet"] for pool in ranges()}
    found = node.addresses_of(told("SHIMLAN_E2E_MASTER"))
    return [address for address in found if (":" in address) in families]


def reference_plugins(*names: str) -> Path:
    """The directory that has these plugins of others. Skips the test when one is missing."""
    path = directory("SHIMLAN_E2E_PEER_DIR")
    if missing := [name for name in names if not (path / name).exists()]:
        pytest.skip(f"{path} has no {', '.join(missing)}: install the reference plugins, or set SHIMLAN_E2E_PEER_DIR")
    return path


def conflist(*, main: str = "shimlan", ipam: str = "shimlan-ipam", **changes: Any) -> dict[str, Any]:
    """A network of the name `e2e` with these two plugins, on the LAN that we were told of."""
    network = {
        "type": main,
        "master": told("SHIMLAN_E2E_MASTER"),
        "mode": "bridge",
        "ipam": {"type": ipam, "ranges": ranges(), "routes": [{"dst": dst} for dst in _everywhere()]},
        **changes,
    }
    return {"cniVersion": "1.0.0", "name": "e2e", "plugins": [network]}


def containerd() -> Containerd:
    """The runtime of CONTAINER_RUNTIME_ENDPOINT, with the image of our pods."""
    runtime = Containerd(
        told("CONTAINER_RUNTIME_ENDPOINT"),
        told("SHIMLAN_E2E_POD_IMAGE"),
        directory("SHIMLAN_E2E_CNI_BIN_DIR"),
        directory("SHIMLAN_E2E_CNI_CONF_DIR"),
    )
    runtime.pull()
    return runtime


def _everywhere() -> list[str]:
    """The default routes of the families that pods have addresses of."""
    return ["::/0" if ":" in pool[0]["subnet"] else "0.0.0.0/0" for pool in ranges()]
