"""What the tests of all tiers share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e import installed, surroundings, traces
from e2e.containerd import Containerd
from e2e.machine import Machine
from e2e.podman import Podman
from e2e.runtime import Runtime
from tests.client import compile_client


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native client."""
    return compile_client(tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="session")
def containerd() -> Iterator[Containerd]:
    """The runtime of CONTAINER_RUNTIME_ENDPOINT."""
    _must_be_root()
    runtime = surroundings.containerd()
    yield runtime
    runtime.close()


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """A podman with nothing in it."""
    _must_be_root()
    command, image = surroundings.words("SHIMLAN_E2E_PODMAN"), surroundings.told("SHIMLAN_E2E_PODMAN_IMAGE")
    podman = Podman(command, image, tmp_path_factory.mktemp("podman"))
    podman.pull()
    yield podman
    podman.unmount()


def _must_be_root() -> None:
    if os.geteuid():
        pytest.skip("runtimes are root's: run it as root")


@pytest.fixture(params=["containerd", "podman"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Each runtime that there is."""
    runtime: Runtime = request.getfixturevalue(request.param)
    return runtime


@pytest.fixture(params=["agent", "in-process"])
def attached(request: pytest.FixtureRequest, runtime: Runtime, tmp_path: Path) -> Iterator[None]:
    """Pods are attached through client and agent, and through the in-process plugin; nothing is left of it."""
    with traces.nothing_left(installed.state_dir(tmp_path)):
        if request.param == "in-process":
            with installed.in_process(runtime):
                yield
        else:
            with installed.client(runtime, request.getfixturevalue("client")), installed.agent(tmp_path):
                yield


@pytest.fixture
def network(runtime: Runtime, attached: None, tmp_path: Path) -> Iterator[None]:
    """The network `e2e`, which the runtime uses."""
    with installed.network(runtime, surroundings.conflist(dataDir=str(installed.state_dir(tmp_path)))):
        yield


@pytest.fixture
def host() -> Machine:
    """This node."""
    return surroundings.host()


@pytest.fixture
def outside() -> Machine:
    """Another machine of the LAN."""
    return surroundings.outside()
