"""shimlan where a runtime finds it, for the time of a block: in-process, or the client with an agent."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bench.agent import running
from e2e.machine import eventually
from e2e.runtime import Runtime
from e2e.traces import SHIMLANCTL

SCRIPTS = Path(sys.executable).parent  # where pip has put ours
SOCKET = Path("/run/shimlan/agent.sock")  # where the client looks unless told otherwise
FILE = "00-e2e.conflist"  # containerd takes the first one


@contextmanager
def files(directory: Path, contents: Mapping[str, Path]) -> Iterator[None]:
    """Copies of files in a directory. Skips the test when it has files of these names: they are another one's."""
    if taken := [name for name in contents if (directory / name).exists()]:
        pytest.skip(f"{directory} has {', '.join(taken)} already: these tests are for a node without shimlan")
    try:
        for name, source in contents.items():
            shutil.copy(source, directory / name)
        yield
    finally:
        for name in contents:
            (directory / name).unlink(missing_ok=True)


@contextmanager
def in_process(runtime: Runtime) -> Iterator[None]:
    """The plugin as pip installs it."""
    with files(runtime.bin_dir, {name: SCRIPTS / name for name in ("shimlan", "shimlan-ipam")}):
        yield


@contextmanager
def client(runtime: Runtime, client: Path, *, fallback: bool = False) -> Iterator[None]:
    """The native client, with the plugin to fall back on where wanted."""
    beside = {"shimlan-inprocess": SCRIPTS / "shimlan"} if fallback else {}
    with files(runtime.bin_dir, {"shimlan": client, "shimlan-ipam": SCRIPTS / "shimlan-ipam", **beside}):
        yield


@contextmanager
def agent(directory: Path) -> Iterator[None]:
    """An agent where clients look for it; its log and its data are in a directory. Raises bench.process.Failed."""
    command = [SHIMLANCTL, "agent", "--state-dir", str(state_dir(directory))]
    with running(command, None, str(directory / "agent.log"), _answers):
        yield
    with suppress(OSError):  # others may have files there
        SOCKET.parent.rmdir()


def _answers() -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(SOCKET)) == 0


def state_dir(directory: Path) -> Path:
    """The `dataDir` of networks whose agent has its files in a directory."""
    return directory / "data"


@contextmanager
def network(runtime: Runtime, conflist: dict[str, Any]) -> Iterator[None]:
    """A network that the runtime uses; its pods go with it."""
    path = runtime.conf_dir / FILE
    if path.exists():
        pytest.skip(f"there is a {path} already")
    try:
        configure(runtime, conflist)
        yield
    finally:
        for pod in runtime.pods():
            pod.remove()
        path.unlink()


def configure(runtime: Runtime, conflist: dict[str, Any]) -> None:
    """Change the network; running pods keep what they have."""
    path = runtime.conf_dir / FILE
    path.write_text(json.dumps(conflist))
    eventually(lambda: runtime.sees(conflist), f"the runtime reads {path}")
