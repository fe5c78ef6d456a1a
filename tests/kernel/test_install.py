"""`shimlanctl install` and `uninstall` on a host with pods: nobody is called too early, and no pod is stranded."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cni.ctl.lab import Lab, Pod
from cni.ctl.runtime import CniFailed
from tests.kernel.agents import SHIMLANCTL
from tests.kernel.test_reconcile import NFT

pytestmark = [pytest.mark.without_agent("it has one of its own"), NFT]

DEADLINE = 30.0  # seconds; generous, for what takes less than two
NETWORK = """
{"cniVersion": "1.0.0", "name": "lan", "plugins": [{
  "type": "shimlan", "master": "eth0", "ipam": {"type": "shimlan-ipam", "subnet": "192.0.2.0/24"}
}]}
"""


class Site:
    """A host whose runtime has directories of its own."""

    def __init__(self, lab: Lab, directory: Path, client: Path) -> None:
        self.lab = lab
        self.bin = directory / "bin"
        self.conf = directory / "net.d"
        self.socket = str(directory / "agent.sock")
        self._client = str(client)
        self._network = directory / "10-lan.conflist"
        self._network.write_text(NETWORK)

    @property
    def plugin(self) -> Path:
        """What a runtime executes."""
        return self.bin / "shimlan"

    @property
    def conflist(self) -> Path:
        """What makes a runtime do so."""
        return self.conf / "10-lan.conflist"

    def install(self) -> subprocess.Popen[bytes]:
        """Begin to install."""
        what = ("--client", self._client, "--conflist", str(self._network))
        return self._command("install", *what, "--wait", str(DEADLINE))

    def uninstall(self, *options: str) -> subprocess.Popen[bytes]:
        """Begin to uninstall."""
        return self._command("uninstall", "--state-dir", self.lab.data_dir, *options)

    def _command(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        places = ("--bin-dir", str(self.bin), "--conf-dir", str(self.conf), "--socket", self.socket)
        return subprocess.Popen([*self.lab.host.enter_words, SHIMLANCTL, name, *places, *options])

    @contextmanager
    def installed(self) -> Iterator[subprocess.Popen[bytes]]:
        """It is, with an agent, and the lab's runtime calls what was installed, for the time of a block."""
        lab, before = self.lab, self.lab.environ
        with agent_at(self) as agent:
            assert self.install().wait(DEADLINE) == 0
            lab.environ = {**before, "SHIMLAN_SOCKET": self.socket, "SHIMLAN_FALLBACK": ""}
            lab.plugin, plugin = str(self.plugin), lab.plugin
            try:
                yield agent
            finally:
                lab.environ, lab.plugin = before, plugin

    @property
    def is_clean(self) -> bool:
        """Whether nothing of shimlan is left."""
        left = [*self.bin.iterdir(), *self.conf.iterdir(), *Path(self.lab.data_dir).glob("*")]
        ruleset = self.lab.host.run("nft", "list", "ruleset").stdout
        return not left and "shimlan" not in ruleset and shims(self.lab) == []


@contextmanager
def agent_at(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """An agent at the site's socket, which may end before the block does."""
    where = ("--socket", site.socket, "--state-dir", site.lab.data_dir)
    with subprocess.Popen([*site.lab.host.enter_words, SHIMLANCTL, "agent", *where]) as agent:
        try:
            yield agent
        finally:
            agent.terminate()


def shims(lab: Lab) -> list[str]:
    return [link["ifname"] for link in lab.host.links() if link["ifname"].startswith("shim")]


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def site(lab: Lab, tmp_path: Path, client: Path) -> Site:
    return Site(lab, tmp_path, client)


# --- installing --------------------------------------------------------------------------------------------------


def test_no_runtime_calls_the_plugin_before_an_agent_answers(site: Site) -> None:
    installer = site.install()
    eventually(site.plugin.exists, "the client is there")
    time.sleep(1)
    assert not site.conf.exists()
    with agent_at(site):
        assert installer.wait(DEADLINE) == 0
    assert site.conflist.exists()


# --- taking it away ----------------------------------------------------------------------------------------------


def test_while_pods_live_only_the_conflist_goes(lab: Lab, site: Site) -> None:
    with site.installed() as agent:
        pod = served(lab)
        assert site.uninstall().wait(DEADLINE) == 1
        assert (site.conflist.exists(), site.plugin.exists()) == (False, True)
        assert reached_by(pod, lab) == {"host", "lan"}
        pod.delete()
        agent.terminate()  # it would make a store of its own anew
        agent.wait(DEADLINE)
        assert site.uninstall().wait(DEADLINE) == 0
    assert site.is_clean


def test_draining_serves_the_last_pods(lab: Lab, site: Site) -> None:
    with site.installed() as agent:
        pod = served(lab)
        agent.terminate()
        agent.wait(DEADLINE)
        drain = site.uninstall("--drain")
        eventually(lambda: not site.conflist.exists(), "the conflist goes")
        eventually(lambda: reached_by(pod, lab) == {"host", "lan"}, "the pod is reached")
        eventually(lambda: deleted(pod), "the pod is deleted, with the help of an agent")
        assert drain.wait(DEADLINE) == 0
    assert site.is_clean


def test_by_force_pods_lose_their_host_and_nothing_else(lab: Lab, site: Site) -> None:
    with site.installed() as agent:
        pod = served(lab)
        assert site.uninstall("--force").wait(DEADLINE) == 1, "an agent would put everything back"
        agent.terminate()
        agent.wait(DEADLINE)
        assert site.uninstall("--force").wait(DEADLINE) == 0
        assert site.is_clean
        assert reached_by(pod, lab) == {"lan"}


def served(lab: Lab) -> Pod:
    """A pod with everything that the host may have of it."""
    return lab.pod("a", lab.conf(shim={"routes": ["10.96.0.0/12"]}))


def reached_by(pod: Pod, lab: Lab) -> set[str]:
    return {name for name, node in (("host", lab.host), ("lan", lab.outside)) if node.pings(pod)}


def deleted(pod: Pod) -> bool:
    """Whether DEL succeeds, which a runtime tries again and again."""
    with suppress(CniFailed):
        pod.delete()
        return True
    return False
