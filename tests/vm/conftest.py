"""The labs of the kernel tests, inside of a virtual machine: what its kernel can do, and NICs that are no veth.

Emulated machines are slow, and the start of Python is what takes longest. So shimlan is not executed for each call:
a fork of the test serves it, which has all modules loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import NoReturn, TextIO

import pytest

from cni import plugin
from cni.ctl.lab import CniAnswer, Lab, Node, Pod
from cni.ctl.node import enter
from cni.ctl.runtime import Json, Runtime, installed_shimlan
from tests.kernel import conftest as of_kernel_tests
from tests.kernel.agents import Serve
from tests.kernel.conftest import FAILED, _sandboxed, client, pytest_runtest_makereport, pytest_runtest_setup, serve

__all__ = ["_sandboxed", "client", "pytest_runtest_makereport", "pytest_runtest_setup", "serve"]

OF_MACHINE = ("nsenter", "--net=/proc/1/ns/net", "--")  # where its NICs are
PATIENCE_SECONDS = 60.0
STATION = re.compile(r" (\S+): station \S+ (?:added|removed), now (\d+)")


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of our markers."""
    of_kernel_tests.pytest_configure(config)
    config.addinivalue_line("markers", "needs_links(*kinds): skipped where the kernel cannot make links of these kinds")


@pytest.fixture(scope="session", autouse=True)
def _in_machine() -> None:
    if not os.environ.get("SHIMLAN_IN_VM"):
        pytest.skip(
            "needs a virtual machine: set SHIMLAN_VM to the command that runs a program in one (`make test-vm`)"
        )


@pytest.fixture(scope="session", autouse=True)
def _without_fallback_tunnels(_in_machine: None) -> None:
    """New namespaces have a loopback and nothing else, whatever modules of tunnels have been loaded (ip-sysctl.rst)."""
    command = "echo 2 > /proc/sys/net/core/fb_tunnels_only_for_init_net"
    subprocess.run([*OF_MACHINE, "sh", "-c", command], check=True)


@pytest.fixture(autouse=True)
def _with_links(request: pytest.FixtureRequest, _in_machine: None, _sandboxed: None) -> None:
    """Skip what the kernel has no links for."""
    for marker in request.node.iter_markers("needs_links"):
        for kind in marker.args:
            if not _makes_links(kind):
                pytest.skip(f"the kernel of this machine has no links of type {kind}")


def _makes_links(kind: str) -> bool:
    """Whether the kernel knows a kind of link; what it lacks of options is no matter."""
    command = ["unshare", "--net", "ip", "link", "add", "probe", "type", kind]
    refusal = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    return "Unknown device type" not in refusal


# --- shimlan without starting Python -----------------------------------------------------------------------------


class Forked(Runtime):
    """Has shimlan's calls served by forks of this process; others, and an agent's client, it executes."""

    def __init__(self, plugin: str | None, host: Node, environ: Mapping[str, str]) -> None:
        super().__init__(plugin, host.enter_words, environ)
        self._netns = host.netns
        self._more = environ

    def call(self, command: str, conf: Json | str, variables: Mapping[str, str], executable: str = "") -> CniAnswer:
        """See `Runtime.call`."""
        plugin_type = "shimlan" if isinstance(conf, str) else str(conf.get("type", "shimlan"))
        if executable or plugin_type != "shimlan" or self.plugin != installed_shimlan():
            return super().call(command, conf, variables, executable)
        environ = {"CNI_PATH": ":".join(self.directories), "CNI_COMMAND": command, **self._more, **variables}
        stdin = conf if isinstance(conf, str) else json.dumps(conf)
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            status = _in_fork(lambda: self._serve({**os.environ, **environ}, stdin, stdout, stderr))
            stdout.seek(0)
            stderr.seek(0)
            return CniAnswer(plugin_type, command, status, stdout.read(), stderr.read())

    def _serve(self, environ: Mapping[str, str], stdin: str, stdout: TextIO, stderr: TextIO) -> int:
        enter(self._netns)
        os.environ.clear()
        os.environ.update(environ)
        status = plugin.main(environ, BytesIO(stdin.encode()), stdout, stderr)
        stdout.flush()
        stderr.flush()
        return status


def _in_fork(function: Callable[[], int]) -> int:
    """The exit status of a child that ends with a function's value."""
    child = os.fork()
    if not child:
        _end_with(function)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_with(function: Callable[[], int]) -> NoReturn:
    try:
        os._exit(function())
    except BaseException:  # noqa: BLE001  (whatever it is, the child must not go on with the tests)
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(70)


class VmLab(Lab):
    """A lab whose runtimes fork, and that can be used again."""

    @property
    def nodes(self) -> list[Node]:
        """All its machines."""
        return list(self._nodes)

    def runtime(self, host: Node | None = None) -> Runtime:
        """See `Lab.runtime`."""
        return Forked(self.plugin, host or self.host, self.environ)

    def clear(self) -> None:
        """Remove all pods, and the children that they leave; begin with an empty store."""
        for node in self.nodes:
            for link in node.links():
                if link.get("linkinfo", {}).get("info_kind") in ("macvlan", "macvtap"):
                    node.ip("link", "del", link["ifname"])
        for pod in [node for node in self.nodes if isinstance(node, Pod)]:
            subprocess.run(["ip", "netns", "del", pod.name], check=True)
            self._nodes.remove(pod)
        shutil.rmtree(self.data_dir)
        os.mkdir(self.data_dir)


@pytest.fixture
def lab(request: pytest.FixtureRequest, serve: Serve) -> Iterator[VmLab]:
    """A lab of its own for one test."""
    lab = VmLab()
    with lab, serve(lab):
        yield lab
        if request.node.stash.get(FAILED, False):
            print(lab.dump())


# --- NICs of the machine -----------------------------------------------------------------------------------------


class Nic:
    """A NIC of the machine whose l2-fwd-offload can be switched, as eth0 of the host of `lab`."""

    def __init__(self, lab: VmLab) -> None:
        self.lab = lab

    @property
    def offloads(self) -> bool:
        """Whether the feature is on."""
        return _feature(self.lab.host.run("ethtool", "-k", "eth0").stdout) == "on"

    def switch(self, state: str) -> None:
        """Switch the feature "on" or "off", as an administrator would."""
        self.lab.host.run("ethtool", "-K", "eth0", "l2-fwd-offload", state)

    @property
    def stations(self) -> int:
        """How many children the driver has in its hands."""
        log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
        counts = [int(count) for name, count in STATION.findall(log) if name == "eth0"]
        return counts[-1] if counts else 0

    def is_left_alone(self) -> bool:
        """Whether the driver has no child any more."""
        return self.stations == 0


@pytest.fixture(scope="session")
def nic(_sandboxed: None) -> Iterator[Nic]:
    """The NIC, in a lab for all tests that need it; its cable ends at the port "host" of the switch, as a veth's did.

    A machine that is emulated takes half a minute to make such a lab: `clear` it between the tests.
    """
    pair = _switchable_nics()
    if len(pair) < 2:
        pytest.skip("this machine has no two NICs with a cable between them whose l2-fwd-offload can be switched")
    lab = VmLab(dump_on_error=True)
    with lab, _moved_in(lab, pair):
        yield Nic(lab)


@contextmanager
def _moved_in(lab: VmLab, pair: list[str]) -> Iterator[None]:
    """Have the NICs in a lab for the time of a block."""
    lab.host.ip("link", "del", "eth0")
    homes = ((pair[0], lab.host, "eth0"), (pair[1], lab.switch, "host"))
    try:
        for name, node, called in homes:
            move = ["ip", "link", "set", name, "down", "netns", node.name, "name", called]
            subprocess.run([*OF_MACHINE, *move], check=True)
        lab.switch.ip_batch("link set host addrgenmode none", "link set host master br0 up")
        lab.host.ip_batch(
            "link set eth0 up",
            f"address add {lab.host.address}/24 dev eth0",
            f"address add {lab.host.address6}/64 dev eth0 nodad",
            f"route add default via {lab.outside.address}",
            f"route add default via {lab.outside.address6}",
        )
        yield
    finally:
        for name, node, called in homes:
            node.ip("link", "set", called, "down", "netns", "1", "name", name)


def _switchable_nics() -> list[str]:
    """The NICs of the machine that can switch the feature; at most two of them, by name."""
    if not shutil.which("ethtool"):
        pytest.skip("not installed: ethtool")
    run = subprocess.run([*OF_MACHINE, "ip", "-j", "link"], capture_output=True, text=True, check=True)
    names = sorted(link["ifname"] for link in json.loads(run.stdout))
    shown = {
        name: subprocess.run([*OF_MACHINE, "ethtool", "-k", name], capture_output=True, text=True, check=False).stdout
        for name in names
    }
    return [name for name in names if _feature(shown[name]) in ("on", "off")][:2]


def _feature(shown: str) -> str:
    """What `ethtool -k` says of l2-fwd-offload: "on", "off", "off [fixed]"."""
    found = re.search(r"^l2-fwd-offload: (.*)$", shown, re.MULTILINE)
    return found[1] if found else ""


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait, for no longer than the slowest machine needs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s"
        time.sleep(0.1)
