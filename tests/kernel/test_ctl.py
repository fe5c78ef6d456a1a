"""shimlanctl on a host with pods: what it sees, what it clears, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni.attachment import Delegation, Key
from cni.ctl.lab import Lab, Node, Pod
from cni.database import Database, boot_id
from cni.frozen import replace
from cni.locks import Locks
from cni.state import Records
from ipam.store import LeaseStore
from tests.kernel.test_rebuild import damaged

NAT = {"routes": ["10.96.0.0/12"]}


class Operator:
    """Somebody at the host's terminal."""

    def __init__(self, lab: Lab, host: Node | None = None, state_dir: str = "") -> None:
        self.host = host or lab.host
        self.state_dir = state_dir or lab.data_dir

    def try_(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        program = "import sys; from cni.ctl.main import main; sys.exit(main())"
        return self.host.run(sys.executable, "-c", program, *arguments, "--state-dir", self.state_dir, check=False)

    def run(self, *arguments: str) -> str:
        """Run a command that has to succeed; what it says."""
        done = self.try_(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, list[dict[str, Any]]]:
        """The listing."""
        listing: dict[str, list[dict[str, Any]]] = json.loads(self.run("status", "-o", "json"))
        return listing

    def states(self) -> dict[str, str]:
        """The states of attachments and shims by name."""
        listing = self.status()
        states = {row["containerID"].partition("-")[0]: row["state"] for row in listing["attachments"]}
        return states | {row["name"]: row["state"] for row in listing["shims"]}


@pytest.fixture
def operator(lab: Lab) -> Operator:
    return Operator(lab)


@contextmanager
def opened(lab: Lab) -> Iterator[Database]:
    with closing(Database(lab.data_dir)) as database:
        yield database


def kill(pod: Pod) -> None:
    """What a crash of the container leaves: nothing, and nobody has called DEL."""
    subprocess.run(["ip", "netns", "del", pod.name], check=True)


def shim_of(lab: Lab) -> str:
    (name,) = [link["ifname"] for link in lab.host.links() if link["ifname"].startswith("shim")]
    return str(name)


def ours(lab: Lab) -> list[str]:
    """What is on the host because of pods: links, routes, neighbours, tables, leases that are held."""
    with opened(lab) as database:
        leases = [str(lease.address) for lease in LeaseStore(database).leases() if lease.state == "held"]
    return [
        *(link["ifname"] for link in lab.host.links() if link["ifname"] not in ("lo", "eth0")),
        *(row["dst"] for row in lab.host.routes() if row.get("protocol") == "174"),
        *(row["dst"] for row in lab.host.ip_json("neigh", "show", "nud", "permanent")),
        *lab.host.run("nft", "list", "tables").stdout.splitlines(),
        *leases,
    ]


class TestStatus:
    def test_the_listing(self, lab: Lab, operator: Operator) -> None:
        pod = lab.pod("web", lab.conf(dual=True), CNI_ARGS="K8S_POD_NAMESPACE=default;K8S_POD_NAME=web")
        listing = operator.status()
        assert listing["attachments"] == [
            {
                "network": "lan",
                "containerID": pod.container_id,
                "ifname": "eth0",
                "pod": "default/web",
                "netns": pod.netns,
                "parent": "eth0",
                "mode": "bridge",
                "mac": pod.mac,
                "tap": 0,
                "ips": [f"{pod.address}/24", f"{pod.address6}/64"],
                "shim": shim_of(lab),
                "forwardedBy": "software",
                "state": "ok",
            }
        ]
        mac = lab.host.link(shim_of(lab))["address"]
        assert listing["shims"] == [
            {"name": shim_of(lab), "parent": "eth0", "mac": mac, "up": True, "pods": 1, "state": "ok"}
        ]
        assert listing["pools"][0] == {
            "network": "lan",
            "start": "192.0.2.100",
            "end": "192.0.2.199",
            "size": 100,
            "held": 1,
            "cooling": 0,
            "conflict": 0,
            "excluded": 0,
            "free": 99,
        }
        assert json.loads(operator.run("pool", "usage", "-o", "json", "--network", "lan")) == listing["pools"]
        assert json.loads(operator.run("pool", "usage", "-o", "json", "--network", "other")) == []

    def test_a_range_that_is_full(self, lab: Lab, operator: Operator) -> None:
        """One of its addresses is excluded, and one is the host's."""

        def conf(exclude: str) -> dict[str, Any]:
            entry = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.9", "rangeEnd": "192.0.2.12"}
            return lab.conf(ipam={"ranges": [[entry]], "exclude": [exclude]})

        def full() -> tuple[int, int, int, bool]:
            (row,) = operator.status()["pools"]
            text = operator.run("status")
            return row["held"], row["excluded"], row["free"], "! lan 192.0.2.9-192.0.2.12: no address left" in text

        pods = [lab.pod(f"pod{number}", conf("192.0.2.12")) for number in range(2)]
        assert full() == (2, 2, 0, True)
        pods[0].delete()
        assert full() == (1, 2, 1, False)

        refused = lab.runtime().call("ADD", conf("192.0.2.0/28"), {**pods[0].variables, "CNI_CONTAINERID": "other"})
        assert not refused.ok
        assert full() == (1, 3, 0, True), "an ADD that fails tells it, too"

    @pytest.mark.without_agent("it keeps the host by itself")
    def test_what_is_wrong(self, lab: Lab, operator: Operator) -> None:
        pods = {name: lab.pod(name) for name in ("dead", "moved", "changed", "well")}
        kill(pods["dead"])
        kill(pods["moved"])
        subprocess.run(["ip", "netns", "add", pods["moved"].name], check=True)
        pods["changed"].ip("address", "flush", "dev", "eth0")
        lab.host.ip("route", "add", "192.0.2.150", "dev", shim_of(lab), "proto", "174", "scope", "link")
        states = operator.states()
        assert states["dead"] == states["moved"] == "stale: namespace gone"
        assert states["changed"].startswith(f"differs: pod: ip addr add {pods['changed'].address}/24 dev eth0; pod: ")
        assert states["well"] == "ok"
        assert states[shim_of(lab)] == "leads to 192.0.2.150 of no attachment here"
        text = operator.run("status").splitlines()
        assert text[0] == "WHAT IS WRONG"
        assert sum(line.startswith("  !  lan ") for line in text) == 3

    def test_a_pod_of_another_data_directory_that_an_agent_looks_after_is_no_stranger(
        self, lab: Lab, operator: Operator
    ) -> None:
        elsewhere = f"{lab.data_dir}/elsewhere"
        lab.pod("a")
        ranges = [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.210"}]]
        lab.pod("b", lab.conf(dataDir=elsewhere, ipam={"dataDir": elsewhere, "ranges": ranges}))
        Path(lab.data_dir, "data-dirs").write_text(json.dumps([elsewhere]))
        (shim,) = operator.status()["shims"]
        assert (shim["pods"], shim["state"]) == (2, "ok")

    def test_a_shim_without_pods_and_one_that_is_none(self, lab: Lab, operator: Operator) -> None:
        lab.pod("pod", lab.conf(shim=False))
        (index,) = [link["ifindex"] for link in lab.host.links() if link["ifname"] == "eth0"]
        lab.host.ip("link", "add", f"shim{index}", "link", "eth0", "type", "macvlan")
        assert operator.states()[f"shim{index}"] == "foreign: not made by us"
        lab.host.ip("link", "set", f"shim{index}", "alias", "shimlan shim of eth0")
        assert operator.states()[f"shim{index}"] == "unused"


class TestRelease:
    def test_a_living_pod_keeps_its_address(self, lab: Lab, operator: Operator) -> None:
        pod = lab.pod("pod")
        release = ("pool", "release", pod.address, "--network", "lan", "--yes")
        refused = operator.try_(*release)
        assert refused.returncode == 1
        assert f"alive: eth0 in {pod.netns}" in refused.stdout
        assert refused.stderr.startswith(f"shimlanctl: {pod.address} is in use")
        assert ours(lab).count(pod.address) == 3  # route, neighbour, lease

        assert f"released {pod.address}" in operator.run(*release, "--force")
        assert ours(lab).count(pod.address) == 2

    def test_that_of_a_dead_one_is_free_at_once(self, lab: Lab, operator: Operator) -> None:
        pod = lab.pod("pod")
        kill(pod)
        said = operator.run("pool", "release", pod.address, "--network", "lan", "--yes")
        assert "no link has the address any more" in said
        with opened(lab) as database:
            assert LeaseStore(database).leases() == []


class TestGc:
    def test_attachments_whose_namespace_is_gone(self, lab: Lab, operator: Operator) -> None:
        conf = lab.conf(dual=True, shim=NAT)
        dead, living = lab.pod("dead", conf), lab.pod("living", conf)
        kill(dead)
        before = ours(lab)
        shim = shim_of(lab)
        said = operator.run("gc", "--dry-run").splitlines()
        assert said == [
            f"# eth0 of {dead.container_id} in network lan: namespace gone: {dead.netns} does not exist",
            f"ip route del {dead.address} dev {shim} proto 174",
            f"ip neigh del {dead.address} dev {shim}",
            f"ip route del {dead.address6} dev {shim} proto 174",
            f"ip neigh del {dead.address6} dev {shim}",
            f"shimlanctl pool release {dead.address} --network lan --state-dir {lab.data_dir} --yes",
            f"shimlanctl pool release {dead.address6} --network lan --state-dir {lab.data_dir} --yes",
            f"# forget the record of eth0 of {dead.container_id} in network lan",
        ]
        assert ours(lab) == before

        assert operator.run("gc").startswith(f"cleared: eth0 of {dead.container_id}")
        assert not {dead.address, dead.address6}.intersection(ours(lab))
        living.check()
        assert operator.run("gc") == "# nothing is stale\n"

    def test_the_last_one_takes_shim_and_table_along(self, lab: Lab, operator: Operator) -> None:
        pod = lab.pod("pod", lab.conf(shim=NAT))
        assert "table inet shimlan" in ours(lab)
        kill(pod)
        dry = operator.run("gc", "--dry-run").splitlines()
        assert f"ip link del {shim_of(lab)}" in dry
        assert "nft delete table inet shimlan" in dry
        operator.run("gc")
        assert ours(lab) == []

    def test_a_path_that_is_another_namespace_by_now(self, lab: Lab, operator: Operator) -> None:
        pod = lab.pod("pod")
        kill(pod)
        subprocess.run(["ip", "netns", "add", pod.name], check=True)
        pod.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        operator.run("gc")
        assert ours(lab) == []
        assert {link["ifname"] for link in pod.links()} == {"lo", "eth0", "eth1"}

    @pytest.mark.without_agent("it clears the host by itself")
    def test_what_a_killed_look_at_the_parent_has_left(self, lab: Lab, operator: Operator) -> None:
        pod = lab.pod("pod")
        left = "link add slprobe0123abcd link eth0 address 02:00:00:00:00:01 type macvlan mode private"
        lab.host.ip(*left.split())
        assert operator.run("gc", "--dry-run").splitlines()[-1] == "ip link del slprobe0123abcd"
        operator.run("gc")
        assert "slprobe0123abcd" not in [link["ifname"] for link in lab.host.links()]
        pod.check()

    def test_an_attachment_that_lost_its_link_is_the_runtimes_business(self, lab: Lab, operator: Operator) -> None:
        pod = lab.pod("pod")
        pod.ip("link", "del", "eth0")
        assert operator.run("gc") == "# nothing is stale\n"
        assert pod.address in ours(lab)

    def test_a_pod_whose_namespace_cannot_be_seen_from_here(self, lab: Lab, operator: Operator) -> None:
        pod = lab.pod("pod")
        descriptor = os.open(pod.netns, os.O_RDONLY)
        kill(pod)
        said = operator.run("gc")
        assert f"# left alone: eth0 of {pod.container_id}" in said
        assert "still has a child 02:42:c0:00:02:64" in said
        assert lab.host.pings(pod.address)
        os.close(descriptor)
        assert operator.run("gc").startswith("cleared: ")
        assert ours(lab) == []

    def test_a_namespace_that_somebody_still_lives_in(self, lab: Lab, operator: Operator) -> None:
        """Its path is gone, but the link is there, and a process is."""
        pod = lab.pod("pod")
        with subprocess.Popen([*pod.enter_words, "sleep", "60"]) as process:
            while os.stat(f"/proc/{process.pid}/ns/net").st_ino != os.stat(pod.netns).st_ino:
                os.sched_yield()
            kill(pod)
            assert f"its link is alive in /proc/{process.pid}/ns/net" in operator.run("gc")
            process.kill()
        assert operator.run("gc").startswith("cleared: ")

    def test_entries_of_nobody(self, lab: Lab, operator: Operator) -> None:
        pod, shim = lab.pod("pod"), shim_of(lab)
        lab.host.ip("route", "add", "192.0.2.150", "dev", shim, "proto", "174", "scope", "link")
        lab.host.ip("neigh", "add", "192.0.2.151", "lladdr", "02:00:00:00:00:01", "dev", shim, "nud", "permanent")
        lab.host.ip("route", "add", "192.0.2.152", "dev", shim, "scope", "link")  # somebody else's
        operator.run("gc")
        assert not {"192.0.2.150", "192.0.2.151"}.intersection(ours(lab))
        assert lab.host.ip_json("route", "show", "192.0.2.152")
        pod.check()

    def test_a_shim_of_nobody(self, lab: Lab, operator: Operator) -> None:
        lab.pod("pod").delete()
        lab.host.ip("link", "add", "shim9", "link", "eth0", "type", "macvlan", "mode", "bridge")
        operator.run("gc")
        assert lab.host.link("shim9")
        lab.host.ip("link", "set", "shim9", "alias", "shimlan shim of eth0")
        assert operator.run("gc") == "cleared: shim9: no attachment uses it\n"
        assert ours(lab) == []

    def test_what_another_data_directory_records(self, lab: Lab, operator: Operator) -> None:
        """It shares the shim; its pods are alive, so their entries stay."""
        elsewhere = f"{lab.data_dir}/other"
        other = lab.pod("other", lab.conf(name="other", dataDir=elsewhere, ipam={"dataDir": elsewhere}))
        pod = lab.pod("pod", lab.conf(mac="02:00:00:00:00:77", ipam={"exclude": [other.address]}))
        assert f"{other.address} behind {shim_of(lab)}: not recorded here, but its pod is alive" in operator.run("gc")
        other.check()
        pod.check()

    def test_the_source_nat_that_another_data_directory_needs(self, lab: Lab, operator: Operator) -> None:
        elsewhere = f"{lab.data_dir}/other"
        other = lab.pod("other", lab.conf(dataDir=elsewhere, ipam={"dataDir": elsewhere}, shim=NAT))
        lab.pod("pod", lab.conf(mac="02:00:00:00:00:77", ipam={"exclude": [other.address]}))
        operator.run("gc")
        assert "table inet shimlan" in ours(lab)
        other.check()

    def test_leases_of_an_add_that_was_killed_before_its_record(self, lab: Lab, operator: Operator) -> None:
        pod = lab.pod("pod")
        with opened(lab) as database:
            LeaseStore(database).adopt("lan", ip_address("192.0.2.120"), "killed", "eth0", parent="eth0")
        operator.run("gc")
        assert "192.0.2.120" not in ours(lab)
        pod.check()

    def test_but_not_while_it_is_under_way(self, lab: Lab, operator: Operator) -> None:
        lab.pod("pod")
        key = Key("lan", "busy", "eth0")
        with opened(lab) as database:
            LeaseStore(database).adopt("lan", ip_address("192.0.2.120"), "busy", "eth0", parent="eth0")
        program = "import sys; from cni.ctl.main import main; sys.exit(main())"
        command = [*lab.host.enter_words, sys.executable, "-c", program, "gc", "--state-dir", lab.data_dir]
        with Locks(lab.data_dir).attachment(key):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            assert "192.0.2.120" in ours(lab)
        assert process.communicate(timeout=10)[0].startswith("cleared: eth0 of busy")

    def test_leases_of_another_main_plugin_are_its_own(self, lab: Lab, operator: Operator) -> None:
        lab.pod("pod").delete()
        with opened(lab) as database:
            LeaseStore(database).adopt("bridged", ip_address("192.0.2.120"), "theirs", "eth0")
        assert operator.run("gc") == "# nothing is stale\n"
        assert "192.0.2.120" in ours(lab)

    def test_what_an_earlier_boot_left(self, lab: Lab, operator: Operator) -> None:
        """Of all that only a delegate's leases have survived: the delegate hears of it."""
        pod = lab.pod("pod")
        log = f"{lab.data_dir}/delegate.log"
        plugin = f"{lab.data_dir}/delegate"
        with open(plugin, "w") as file:
            file.write(f'#!/bin/sh\necho "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> {log}\n')
        os.chmod(plugin, 0o755)
        with opened(lab) as database:
            (attachment,) = Records(database, boot_id()).all()
            old = replace(
                attachment,
                key=Key("lan", "old", "eth0"),
                leasing=None,
                delegate=Delegation("delegate", "{}", lab.data_dir, ""),
            )
            Records(database, "earlier").put(old)
        assert operator.states()["old"] == "stale: of an earlier boot"
        assert "of an earlier boot" in operator.run("gc", "--dry-run")
        assert operator.run("gc") == "cleared: eth0 of old in network lan: of an earlier boot\n"
        with open(log) as file:
            assert file.read() == "DEL old eth0\n"
        assert list(operator.states()) == ["pod", shim_of(lab)]
        pod.check()

    def test_a_failure_does_not_stop_it(self, lab: Lab, operator: Operator) -> None:
        stuck, dead = lab.pod("stuck"), lab.pod("dead")
        with opened(lab) as database:
            records = Records(database, boot_id())
            (attachment,) = (each for each in records.all() if each.key.container_id == stuck.container_id)
            records.put(replace(attachment, delegate=Delegation("missing", "{}", lab.data_dir, "")))
        kill(stuck)
        kill(dead)
        done = operator.try_("gc")
        assert done.returncode == 1
        assert "there is no plugin missing" in done.stderr
        assert done.stdout.startswith(f"cleared: eth0 of {dead.container_id}")

    def test_a_damaged_store(self, lab: Lab, operator: Operator) -> None:
        living, dead = lab.pod("living"), lab.pod("dead")
        kill(dead)
        damaged(lab)
        done = operator.try_("gc")
        assert done.returncode == 0
        assert "was damaged: it is kept as" in done.stderr
        assert f"cleared: {dead.address} behind {shim_of(lab)}: of no attachment" in done.stdout
        assert operator.states() == {"living": "ok", shim_of(lab): "ok"}
        assert dead.address not in ours(lab)
        living.check()
