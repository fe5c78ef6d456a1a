"""`shimlanctl install` and `uninstall` on a host with pods: nobody is called too early, and no pod is stranded."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.lab import Lab, Pod
from cni.ctl.runtime import CniFailed, Json
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

    def install(self) -> subprocess.Popen[str]:
        """Begin to install."""
        what = ("--client", self._client, "--conflist", str(self._network))
        return self._command("install", *what, "--wait", str(DEADLINE))

    def uninstall(self, *options: str) -> subprocess.Popen[str]:
        """Begin to uninstall."""
        return self._command("uninstall", "--state-dir", self.lab.data_dir, *options)

    def uninstalled(self, *options: str) -> tuple[int, str]:
        """Uninstall; the exit status, and what was said."""
        command = self.uninstall(*options)
        said, _ = command.communicate(timeout=DEADLINE)
        return command.returncode, said

    def _command(self, name: str, *options: str) -> subprocess.Popen[str]:
        places = ("--bin-dir", str(self.bin), "--conf-dir", str(self.conf), "--socket", self.socket)
        words = [*self.lab.host.enter_words, SHIMLANCTL, name, *places, *options]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def has_network(self, **changes: Any) -> Json:
        """Have another network installed than the usual one: the lab's, with some keys changed. It is returned."""
        conf = self.lab.conf(**changes)
        plugin = {key: value for key, value in conf.items() if key not in ("name", "cniVersion")}
        self._network.write_text(json.dumps({"cniVersion": conf["cniVersion"], "name": "lan", "plugins": [plugin]}))
        return conf

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
        status, said = site.uninstalled("--force")
        assert status == 1, "an agent would put everything back"
        assert "systemctl disable --now shimlan.socket shimlan.service" in said
        agent.terminate()
        agent.wait(DEADLINE)
        assert site.uninstall("--force").wait(DEADLINE) == 0
        assert site.is_clean
        assert reached_by(pod, lab) == {"lan"}


# --- data directories of networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("shim", [pytest.param(True, id="with a shim"), pytest.param(False, id="without a shim")])
def test_pods_of_a_network_with_a_data_directory_of_its_own_are_not_forgotten(
    lab: Lab, site: Site, tmp_path: Path, shim: bool
) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    conf = site.has_network(dataDir=elsewhere, ipam={"dataDir": elsewhere}, shim=shim)
    with site.installed() as agent:
        pod = lab.pod("a", conf)
        for _ in range(2):  # the second time, no conflist tells of the directory
            status, said = site.uninstalled()
            assert status == 1
            assert f"1 attachments are left (1 in {elsewhere})" in said
            assert site.plugin.exists()
        pod.delete()
        agent.terminate()
        agent.wait(DEADLINE)
        assert site.uninstalled()[0] == 0
    assert site.is_clean
    assert not Path(elsewhere).exists()


def test_draining_waits_for_pods_of_all_data_directories(lab: Lab, site: Site, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    conf = site.has_network(dataDir=elsewhere, ipam={"dataDir": elsewhere})
    with site.installed() as agent:
        pod, other = served(lab), lab.pod("b", {**conf, "mac": "02:00:00:00:00:77"}, CNI_ARGS="IP=192.0.2.190")
        agent.terminate()
        agent.wait(DEADLINE)
        drain = site.uninstall("--drain")
        eventually(lambda: deleted(pod), "the pod is deleted, with the help of an agent")
        with pytest.raises(subprocess.TimeoutExpired):
            drain.wait(5)
        assert reached_by(other, lab) == {"host", "lan"}
        eventually(lambda: deleted(other), "the other pod is deleted")
        assert drain.wait(DEADLINE) == 0
    assert site.is_clean


@pytest.mark.parametrize("shim", [pytest.param(True, id="with a shim"), pytest.param(False, id="without a shim")])
def test_pods_whose_records_are_nowhere_to_be_found_keep_the_plugin(
    lab: Lab, site: Site, tmp_path: Path, shim: bool
) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    pod = lab.pod("a", lab.conf(dataDir=elsewhere, ipam={"dataDir": elsewhere}, shim=shim))
    with site.installed():
        status, said = site.uninstalled()
        assert status == 1
        assert "1 of which no record is known here" in said
        assert pod.container_id in said
        assert site.plugin.exists()


def test_no_force_takes_the_shim_from_pods_of_another_data_directory(lab: Lab, site: Site, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    other = lab.pod("b", lab.conf(dataDir=elsewhere, ipam={"dataDir": elsewhere}), CNI_ARGS="IP=192.0.2.190")
    with site.installed() as agent:
        pod = served(lab)
        agent.terminate()
        agent.wait(DEADLINE)
        status, said = site.uninstalled("--force")
        (shim,) = shims(lab)
        assert status == 1
        assert f"link {shim} stays, for it leads to pods of which no record is known here ({other.address})" in said
        assert (reached_by(pod, lab), reached_by(other, lab)) == ({"lan"}, {"host", "lan"})
        assert site.uninstalled("--force", "--state-dir", elsewhere)[0] == 0
        assert reached_by(other, lab) == {"lan"}
    assert site.is_clean


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
