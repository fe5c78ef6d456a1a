"""The capabilities that the DaemonSet gives to the agent: they are enough, and none is superfluous."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from cni.ctl.lab import Lab
from cni.ctl.runtime import CniFailed
from tests.kernel.agents import Agent
from tests.kernel.test_reconcile import NFT

pytestmark = [
    pytest.mark.without_agent("it has one of its own"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed (util-linux)"),
    NFT,
]

DAEMONSET = Path(__file__).parents[2] / "manifests/base/daemonset.yaml"
REPAIR_SECONDS = 15.0
SETTINGS = "resyncSeconds: 3600"  # what is repaired was heard of


def of_the_daemonset() -> tuple[str, ...]:
    """What the manifest adds, in the words of setpriv(1)."""
    (container,) = yaml.safe_load(DAEMONSET.read_text())["spec"]["template"]["spec"]["containers"]
    return tuple(name.lower() for name in container["securityContext"]["capabilities"]["add"])


CAPABILITIES = of_the_daemonset()
# What fails without them.
NEEDED_FOR = {
    "net_admin": "creating links needs root",
    "sys_admin": "cannot enter",
    "net_broadcast": "the routes in the pod come back",
    "net_raw": "detectConflicts needs CAP_NET_RAW",
}


With = Callable[..., Agent]


@pytest.fixture
def agent_with(lab: Lab, client: Path, tmp_path: Path) -> With:
    """An agent that has these capabilities, and can never have others."""
    settings = tmp_path / "agent.yaml"
    settings.write_text(SETTINGS)

    def agent_with(*capabilities: str) -> Agent:
        bounds = ",".join(["-all", *(f"+{name}" for name in capabilities)])
        prefix = ("setpriv", "--bounding-set", bounds, "--inh-caps", "-all", "--no-new-privs")
        return Agent(lab, client, "--config", str(settings), prefix=prefix)

    return agent_with


def life(lab: Lab) -> None:
    """What an agent does for a pod, from ADD to DEL; raises where something of it fails."""
    pod = lab.pod("a", lab.conf(dual=True, detectConflicts=True, shim={"routes": ["10.96.0.0/12"]}))
    pod.check()
    lab.host.ip("link", "del", shim_of(lab))
    eventually(lambda: is_well(pod.check), "the shim comes back")
    lab.host.run("nft", "delete", "table", "inet", "shimlan")
    eventually(lambda: is_well(pod.check), "the source NAT comes back")
    pod.ip("link", "set", "eth0", "down")
    pod.ip("link", "set", "eth0", "up")
    eventually(lambda: is_well(pod.check), "the routes in the pod come back")
    assert lab.host.pings(pod)
    assert lab.host.pings(pod, family=6)
    pod.delete()
    assert "shimlan" not in lab.host.run("nft", "list", "ruleset").stdout


def shim_of(lab: Lab) -> str:
    (name,) = (link["ifname"] for link in lab.host.links() if link["ifname"].startswith("shim"))
    return str(name)


def is_well(check: Callable[[], None]) -> bool:
    with suppress(CniFailed):
        check()
        return True
    return False


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + REPAIR_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_they_are_enough(lab: Lab, agent_with: With) -> None:
    with agent_with(*CAPABILITIES) as agent:
        assert bounding_set(agent.pid) == len(CAPABILITIES)
        life(lab)
        assert "grant CAP_" not in agent.log


@pytest.mark.parametrize("missing", CAPABILITIES)
def test_none_is_superfluous(lab: Lab, agent_with: With, missing: str) -> None:
    others = (name for name in CAPABILITIES if name != missing)
    with pytest.raises((AssertionError, CniFailed), match=NEEDED_FOR[missing]), agent_with(*others):
        life(lab)


def bounding_set(pid: int) -> int:
    """How many capabilities a process may have at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapBnd"))
    return int(mask, 16).bit_count()


WRITE_SYSCTL = """
import os, sys
from cni import kernel
from cni.attachment import Link
from cni.diff import SetSysctl
kernel.SYSCTLS_OF_HOST = sys.argv[1]
kernel._write_sysctl(SetSysctl(sys.argv[2], "ipv6/accept_ra", "0"))
"""


def test_sysctls_are_written_through_a_second_mount_where_the_first_is_read_only(lab: Lab, tmp_path: Path) -> None:
    """A container's /proc/sys is read-only; that of the host, mounted elsewhere, shows the namespace of who looks."""
    second = tmp_path / "net"
    second.mkdir()
    mounts = (
        f"mount --bind /proc/sys/net {second} && mount --bind /proc/sys /proc/sys && "
        'mount -o remount,bind,ro /proc/sys && exec "$@"'
    )
    assert lab.host.sysctl("net.ipv6.conf.eth0.accept_ra") != "0"
    inside = ("unshare", "--mount", "sh", "-c", mounts, "sh", sys.executable, "-c", WRITE_SYSCTL)
    lab.host.run(*inside, str(second), "eth0")
    assert lab.host.sysctl("net.ipv6.conf.eth0.accept_ra") == "0"
    with pytest.raises(subprocess.CalledProcessError, match="read-only"):
        lab.host.run(*inside, str(tmp_path / "absent"), "eth0")
