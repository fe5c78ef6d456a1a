"""shimlanctl doctor on good and bad hosts: it names the cause that was prepared, with its remedy, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.frames import ETH_P_ARP
from cni.ctl.lab import Lab
from cni.ctl.runtime import CniFailed
from cni.database import FILE, SCHEMA_VERSION
from tests.kernel.agents import Agent
from tests.kernel.test_rebuild import DAMAGES, damaged
from tests.kernel.traces import network

pytestmark = pytest.mark.without_agent("doctor calls no plugin")

BIN = str(Path(sys.executable).parent)
PROGRAM = "import sys; from cni.ctl.main import main; sys.exit(main())"
OK, WARNING, FAILURE = 0, 1, 2

FEW = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.145", "rangeEnd": "192.0.2.154", "gateway": "192.0.2.1"}

Finding = dict[str, str]


class Doctor:
    """Somebody who runs doctor on a host of the lab, with a configuration that lies where runtimes look."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory / "net.d"
        self.directory.mkdir()
        self.socket = str(directory / "agent.sock")
        self.bin_dir = BIN
        self.conf: dict[str, Any] = {}
        self.asked_about()

    def asked_about(self, **changes: Any) -> None:
        """Take the lab's configuration with some changes, and few addresses, for each of them is asked for."""
        self.conf = self.lab.conf(**{**changes, "ipam": {"ranges": [[FEW]], **changes.get("ipam", {})}})

    def write(self, conf: dict[str, Any], name: str = "10-lan.conf") -> None:
        """Put a configuration where runtimes look."""
        (self.directory / name).write_text(json.dumps(conf))

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        where = ["--conf-dir", str(self.directory), "--socket", self.socket, "--bin-dir", self.bin_dir]
        return [sys.executable, "-c", PROGRAM, "doctor", *where, *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it on the lab's host."""
        if self.conf:
            self.write(self.conf)
        done = self.lab.host.run(*self.command(*arguments), check=False)
        assert done.stderr == ""
        return done

    def findings(self, *arguments: str) -> list[Finding]:
        """All that it finds."""
        done = self.run("-o", "json", *arguments)
        report = json.loads(done.stdout)
        levels = {finding["level"] for finding in report["findings"]}
        assert done.returncode == (FAILURE if "failure" in levels else WARNING if "warning" in levels else OK)
        findings: list[Finding] = report["findings"]
        return findings

    def troubles(self, *arguments: str) -> list[Finding]:
        """Its warnings and failures."""
        return [finding for finding in self.findings(*arguments) if finding["level"] != "ok"]

    def trouble(self, *arguments: str) -> tuple[str, str, str, str]:
        """The one finding that is not ok: id, level, evidence, remedy."""
        (finding,) = self.troubles(*arguments)
        return finding["id"], finding["level"], finding["evidence"], finding["remedy"]

    def evidence(self, id: str, *arguments: str) -> str:
        """What it says of one thing, which is ok."""
        (finding,) = [finding for finding in self.findings(*arguments) if finding["id"] == id]
        assert finding["level"] == "ok"
        return finding["evidence"]


@pytest.fixture
def doctor(lab: Lab, tmp_path: Path) -> Doctor:
    return Doctor(lab, tmp_path)


# --- good hosts --------------------------------------------------------------------------------------------------


def test_a_good_host(lab: Lab, doctor: Doctor) -> None:
    doctor.conf = lab.conf(dual=True, shim={"routes": ["10.96.0.0/16"]})
    lab.host.sysctl("net.ipv4.ip_forward", 1)
    assert doctor.troubles() == []
    assert doctor.run().stdout.splitlines()[-1].startswith("ok: 0 failure(s), 0 warning(s), ")
    assert doctor.evidence("lan.mac") == "192.0.2.1 answers a MAC that is not the NIC's"
    assert doctor.evidence("lan.addresses") == "nobody uses 228 of 356 free addresses"


def test_a_good_host_with_pods(lab: Lab, doctor: Doctor) -> None:
    lab.pod("a", doctor.conf), lab.pod("b", doctor.conf)
    assert doctor.troubles() == []
    assert doctor.evidence("pool") == "192.0.2.145-192.0.2.154: 2 held, 0 in conflict, 8 free"
    assert doctor.evidence("lan.addresses") == "nobody uses 8 of 8 free addresses"


@pytest.mark.parametrize("mode", ["private", "vepa", "passthru", "source"])
def test_a_good_host_of_another_mode(lab: Lab, doctor: Doctor, mode: str) -> None:
    doctor.asked_about(mode=mode)
    assert doctor.troubles() == []


def test_a_good_host_whose_nic_belongs_to_a_pod(lab: Lab, doctor: Doctor) -> None:
    doctor.asked_about(mode="passthru")
    lab.pod("a", doctor.conf)
    assert doctor.troubles() == []


def test_settings_of_strict_arp_and_reverse_paths_do_not_matter(lab: Lab, doctor: Doctor) -> None:
    for key, value in {"rp_filter": 1, "arp_ignore": 1, "arp_announce": 2}.items():
        lab.host.sysctl(f"net.ipv4.conf.all.{key}", value)
    assert doctor.troubles() == []
    assert doctor.evidence("sysctls.arp").startswith("rp_filter=1, arp_ignore=1, arp_announce=2: the shim works")


def test_own_pods_that_are_heard_on_the_lan_are_no_conflicts(lab: Lab, doctor: Doctor) -> None:
    """The store does not know them, but the NIC receives for them."""
    lab.switch.hairpin(lab.host, True)
    other = f"{lab.data_dir}/other"
    ipam = {"dataDir": other, "ranges": [[FEW]]}
    lab.pod("a", lab.conf(name="other", mode="vepa", dataDir=other, ipam=ipam))
    assert doctor.troubles() == []


def test_leases_of_an_earlier_boot_are_free(lab: Lab, doctor: Doctor) -> None:
    lab.pod("a", doctor.conf)
    assert doctor.evidence("pool").endswith(": 1 held, 0 in conflict, 9 free")
    with sqlite3.connect(f"{lab.data_dir}/{FILE}") as connection:
        connection.execute("UPDATE lease_boot SET id = 'before'")
    connection.close()
    assert doctor.evidence("pool").endswith(": 0 held, 0 in conflict, 10 free")
    with sqlite3.connect(f"{lab.data_dir}/{FILE}") as connection:
        assert connection.execute("SELECT id FROM lease_boot").fetchone() == ("before",)
    connection.close()


def test_nothing_is_changed(lab: Lab, doctor: Doctor) -> None:
    pod, store = lab.pod("a"), Path(lab.data_dir) / FILE
    known, before, content = {lab.host.mac, pod.mac}, network(lab.host), store.read_bytes()
    with lab.host.sniff(wanted=lambda frame: frame.outgoing and frame.src not in known) as sent:
        doctor.run()
    assert network(lab.host) == before
    assert store.read_bytes() == content
    # One has sent something besides host and pod, and nothing but questions.
    assert {frame.ethertype for frame in sent.frames} == {ETH_P_ARP}
    assert len({frame.src for frame in sent.frames}) == 1


def test_a_directory_without_a_store_stays_without_one(lab: Lab, doctor: Doctor) -> None:
    missing = f"{lab.data_dir}/not/there"
    doctor.conf = lab.conf(dataDir=missing, ipam={"dataDir": missing})
    assert "does not exist yet" in doctor.evidence("store")
    assert not os.path.exists(f"{lab.data_dir}/not")


def test_a_quiet_one_sends_nothing(lab: Lab, doctor: Doctor) -> None:
    own = lab.host.mac
    with lab.host.sniff(
        wanted=lambda frame: frame.outgoing and (frame.src != own or frame.ethertype == ETH_P_ARP)
    ) as sent:
        assert doctor.troubles("--no-probe") == []
    assert sent.frames == []


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_leaves_nothing(lab: Lab, doctor: Doctor, with_signal: signal.Signals) -> None:
    filter_on_switch(
        lab, PORT_SECURITY.format(mac=lab.host.mac)
    )  # nobody answers the child, so that it stays for a while
    before = network(lab.host)
    doctor.write(doctor.conf)
    with subprocess.Popen([*lab.host.enter_words, *doctor.command()], stderr=subprocess.DEVNULL) as process:
        until(lambda: strangers(lab) != set())
        process.send_signal(with_signal)
    until(lambda: strangers(lab) == set())
    assert network(lab.host) == before


def strangers(lab: Lab) -> set[str]:
    """The unicast MACs that the host's NIC receives for besides its own."""
    rows = lab.host.run("bridge", "-j", "fdb", "show", "dev", "eth0").stdout
    return {row["mac"] for row in json.loads(rows) if not int(row["mac"][:2], 16) & 1}


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- ten bad hosts (two of them need other kernels: tests/vm/test_doctor.py) --------------------------------------


def test_a_port_of_a_bridge(lab: Lab, doctor: Doctor) -> None:
    lab.host.ip_batch(
        "link add br0 type bridge",
        "link set eth0 master br0",
        "address flush dev eth0",
        "address add 192.0.2.10/24 dev br0",
        "link set br0 up",
        "route add default via 192.0.2.1",
    )
    assert doctor.trouble() == ("parent.port", "failure", "eth0 is a port of bridge br0", 'set "master": "br0"')


def test_the_parent_is_down(lab: Lab, doctor: Doctor) -> None:
    lab.host.ip("link", "set", "eth0", "down")
    remedy = "run `ip link set eth0 up` and have it set up at boot"
    assert doctor.trouble() == ("parent.state", "failure", "eth0 is down", remedy)


def test_the_parent_has_no_carrier(lab: Lab, doctor: Doctor) -> None:
    lab.switch.ip("link", "set", "host", "down")
    remedy = "plug the cable in, or enable the port of the switch"
    assert doctor.trouble() == ("parent.state", "failure", "eth0 is up, but has no carrier", remedy)


def test_the_mtu_is_too_large(lab: Lab, doctor: Doctor) -> None:
    doctor.asked_about(mtu=9000)
    evidence = "mtu: 9000 is above the 1500 of eth0"
    assert doctor.trouble() == ("mtu", "failure", evidence, "correct the configuration, or the setting of the NIC")


# Switches that let the host's own MAC pass, and no other: on its way in, or back (frames to groups go everywhere).
PORT_SECURITY = 'iifname "host" ether saddr != {mac} drop'
NO_FLOODING = 'oifname "host" ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 ether daddr != {mac} drop'


def filter_on_switch(lab: Lab, rule: str) -> None:
    """Have the switch drop what a rule says."""
    chain = "{ type filter hook forward priority 0; }"
    lab.switch.run("nft", f"add table bridge t; add chain bridge t f {chain}; add rule bridge t f {rule}")


@pytest.mark.parametrize("rule", [PORT_SECURITY, NO_FLOODING])
def test_the_switch_drops_other_macs(lab: Lab, doctor: Doctor, rule: str) -> None:
    filter_on_switch(lab, rule.format(mac=lab.host.mac))
    id, level, evidence, remedy = doctor.trouble()
    assert (id, level) == ("lan.mac", "failure")
    assert evidence == "192.0.2.1 answers this host, but no other MAC on the same NIC: frames of pods are dropped"
    assert "let the switch port, virtual switch or access point accept more MACs" in remedy


def test_an_address_is_in_use(lab: Lab, doctor: Doctor) -> None:
    lab.outside.ip("address", "add", "192.0.2.150/24", "dev", "eth0")
    id, level, evidence, remedy = doctor.trouble()
    assert (id, level) == ("lan.addresses", "failure")
    assert evidence == f"other machines use addresses of the range: 192.0.2.150 ({lab.outside.mac})"
    assert '`"exclude": ["192.0.2.150"]`' in remedy

    doctor.asked_about(detectConflicts=True)
    assert doctor.trouble()[:2] == ("lan.addresses", "warning")
    doctor.asked_about(ipam={"exclude": ["192.0.2.150"]})
    assert doctor.troubles() == []


def test_an_address_of_ipv6_is_in_use(lab: Lab, doctor: Doctor) -> None:
    lab.outside.ip("address", "add", "2001:db8::110/64", "dev", "eth0", "nodad")
    doctor.conf = lab.conf(dual=True)
    assert doctor.trouble()[0] == "lan.addresses"


def test_the_pool_is_full(lab: Lab, doctor: Doctor) -> None:
    doctor.conf = lab.conf(
        ipam={"ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.9", "rangeEnd": "192.0.2.11"}]]}
    )
    lab.pod("a", doctor.conf), lab.pod("b", doctor.conf)
    id, level, evidence, remedy = doctor.trouble()
    assert (id, level) == ("pool", "failure")
    assert evidence == "no address is left in 192.0.2.9-192.0.2.11: 2 held, 0 in conflict, 0 free"
    assert "`shimlanctl gc`" in remedy


def test_a_dead_agent(lab: Lab, doctor: Doctor, client: Path) -> None:
    with Agent(lab, client) as agent:
        doctor.socket = agent.socket
        assert doctor.evidence("agent") == f"serves at {agent.socket}"
        agent.kill()
        id, level, evidence, remedy = doctor.trouble()
        assert (id, level) == ("agent", "failure")
        assert evidence == f"{agent.socket}: nobody answers (Connection refused)"
        assert remedy.startswith("start the agent anew")
        agent.start()
        assert doctor.troubles() == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store(lab: Lab, doctor: Doctor, damage: Callable[[Path], None]) -> None:
    lab.pod("a")
    damaged(lab, damage)
    content = (Path(lab.data_dir) / FILE).read_bytes()
    id, level, evidence, remedy = doctor.trouble()
    assert (id, level) == ("store", "failure")
    assert evidence.startswith(f"{lab.data_dir}/{FILE}: the store is damaged")
    assert remedy.startswith("the next ADD, or `shimlanctl gc`, puts it aside")
    assert (Path(lab.data_dir) / FILE).read_bytes() == content


# --- more that can be wrong --------------------------------------------------------------------------------------


def test_the_gateway_is_dead(lab: Lab, doctor: Doctor) -> None:
    doctor.asked_about(ipam={"ranges": [[{**FEW, "gateway": "192.0.2.77"}]]})
    assert doctor.trouble()[:3] == ("lan.gateway", "warning", "192.0.2.77 does not answer this host")


def test_nobody_is_there(lab: Lab, doctor: Doctor) -> None:
    lab.outside.ip("link", "set", "eth0", "down")
    doctor.asked_about(ipam={"routes": []})
    lab.host.ip("neigh", "flush", "all")
    assert doctor.troubles() == []
    assert doctor.evidence("lan.mac").startswith("not tried")


def test_a_child_in_mode_passthru_excludes_others(lab: Lab, doctor: Doctor) -> None:
    lab.pod("a", lab.conf(mode="passthru"))
    id, level, evidence, _ = doctor.trouble()
    assert (id, level, evidence) == ("parent.child", "failure", "eth0 refuses another child")


def add_fails(lab: Lab, doctor: Doctor) -> int:
    """The code with which an ADD of the same configuration fails."""
    with pytest.raises(CniFailed) as failed:
        lab.pod(conf=doctor.conf)
    code: int = failed.value.code
    return code


def test_a_pod_in_mode_passthru_takes_no_other_child_beside_it(lab: Lab, doctor: Doctor) -> None:
    pod = lab.pod("a")
    shim = f"shim{lab.host.link('eth0')['ifindex']}"
    doctor.asked_about(mode="passthru")
    id, level, evidence, _ = doctor.trouble()
    assert (id, level) == ("parent.child", "failure")
    assert evidence.startswith(f"eth0 has {shim} and 1 pod(s), and a pod in mode passthru takes no other child")
    assert add_fails(lab, doctor) == 102
    pod.delete()
    pod = lab.pod("b", lab.conf(mode="private"))  # no shim shows it
    assert doctor.trouble()[2].startswith("eth0 has 1 pod(s), ")
    assert add_fails(lab, doctor) == 102
    pod.delete()
    assert doctor.troubles() == []
    lab.pod(conf=doctor.conf)


def test_a_mac_that_the_nic_receives_for_is_no_child_by_itself(lab: Lab, doctor: Doctor) -> None:
    lab.host.run("bridge", "fdb", "add", "02:00:00:00:00:77", "dev", "eth0", "self")
    doctor.asked_about(mode="passthru")
    before = network(lab.host)
    assert doctor.troubles() == []
    assert network(lab.host) == before


def test_an_address_of_the_host_is_missing(lab: Lab, doctor: Doctor) -> None:
    doctor.asked_about(shim={"hostAddresses": ["auto", "169.254.20.10"]})
    id, level, evidence, remedy = doctor.trouble()
    assert (id, level, evidence) == ("shim.hostAddresses", "failure", "169.254.20.10 is no address of this host")
    assert remedy.startswith("give the host that address")
    assert add_fails(lab, doctor) == 7
    lab.host.ip("address", "add", "169.254.20.10/32", "dev", "eth0")
    assert doctor.troubles() == []
    lab.pod("a", doctor.conf)


def test_a_family_of_services_that_the_host_lacks(lab: Lab, doctor: Doctor) -> None:
    lab.host.ip("-6", "address", "flush", "dev", "eth0", "scope", "global")
    lab.host.sysctl("net.ipv6.conf.all.forwarding", 1)
    doctor.conf = lab.conf(dual=True, shim={"routes": ["fd00:96::/112"]})
    assert [finding["id"] for finding in doctor.troubles("--no-probe")] == ["shim.routes"]
    assert add_fails(lab, doctor) == 7


def test_a_resolv_conf_that_is_missing(lab: Lab, doctor: Doctor) -> None:
    missing = Path(lab.data_dir) / "resolv.conf"
    doctor.asked_about(ipam={"resolvConf": str(missing)})
    assert doctor.trouble()[:2] == ("ipam.resolvConf", "failure")
    assert add_fails(lab, doctor) == 5
    missing.write_text("nameserver 192.0.2.53\n")
    assert doctor.troubles() == []


def test_a_route_through_a_gateway_elsewhere(lab: Lab, doctor: Doctor) -> None:
    doctor.asked_about(ipam={"routes": [{"dst": "10.0.0.0/8", "gw": "192.0.3.1"}]})
    id, level, evidence, _ = doctor.trouble()
    assert (id, level) == ("ipam.routes", "failure")
    assert evidence == "the gateway 192.0.3.1 of 10.0.0.0/8 is in no subnet of the pods"
    assert add_fails(lab, doctor) == 103
    doctor.asked_about(ipam={"routes": [{"dst": "192.0.3.1/32", "scope": 253}, *doctor.conf["ipam"]["routes"]]})
    assert doctor.troubles() == []
    lab.pod("a", doctor.conf)


def test_an_ipam_plugin_that_is_not_installed(lab: Lab, doctor: Doctor) -> None:
    doctor.conf = lab.conf(ipam={"type": "not-there"})
    assert doctor.trouble()[:2] == ("plugin.others", "warning")
    assert add_fails(lab, doctor) == 105


def test_no_plugin_is_installed(doctor: Doctor, tmp_path: Path) -> None:
    doctor.bin_dir = str(tmp_path)
    id, level, evidence, remedy = doctor.trouble("--no-probe")
    assert (id, level, evidence) == ("plugin", "warning", f"no shimlan in {tmp_path}")
    assert "`shimlanctl install`" in remedy


def test_the_parent_is_missing(lab: Lab, doctor: Doctor) -> None:
    id, level, evidence, remedy = doctor.trouble("--master", "eth7")
    assert (id, level, evidence) == ("parent", "failure", "there is no link eth7")
    assert remedy.startswith('set "master" to one that exists (eth0')


def test_the_parent_is_no_nic(doctor: Doctor) -> None:
    assert doctor.trouble("--master", "lo")[:3] == ("parent", "failure", "lo is no Ethernet device")


def test_the_name_of_the_shim_is_taken(lab: Lab, doctor: Doctor) -> None:
    lab.host.ip("link", "add", f"shim{lab.host.link('eth0')['ifindex']}", "type", "bridge")
    assert doctor.trouble()[:2] == ("shim", "failure")


def test_the_host_does_not_forward(lab: Lab, doctor: Doctor) -> None:
    lab.host.sysctl("net.ipv4.ip_forward", 0)
    doctor.asked_about(shim={"routes": ["10.96.0.0/16"]})
    id, level, _, remedy = doctor.trouble()
    assert (id, level, remedy) == ("sysctls.forwarding", "warning", "`sysctl -w net.ipv4.ip_forward=1`")


def troubles_where_read_only(doctor: Doctor, directory: str) -> list[str]:
    """What is not ok where a directory is mounted read-only."""
    doctor.write(doctor.conf)
    mounted = f'mount -o bind,ro {directory} {directory} && exec "$@"'
    done = doctor.lab.host.run("unshare", "-m", "sh", "-c", mounted, "sh", *doctor.command("-o", "json"), check=False)
    assert done.returncode == FAILURE
    return [finding["id"] for finding in json.loads(done.stdout)["findings"] if finding["level"] != "ok"]


def test_settings_cannot_be_written(doctor: Doctor) -> None:
    assert troubles_where_read_only(doctor, "/proc/sys") == ["sysctls.writable"]


def test_the_store_cannot_be_written(lab: Lab, doctor: Doctor) -> None:
    assert troubles_where_read_only(doctor, lab.data_dir) == ["store"]
    lab.pod("a")
    assert troubles_where_read_only(doctor, lab.data_dir) == ["store"]


def test_a_store_of_a_newer_shimlan(lab: Lab, doctor: Doctor) -> None:
    lab.pod("a")
    with closing(sqlite3.connect(f"{lab.data_dir}/{FILE}")) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    assert doctor.trouble()[0] == "store"
    assert doctor.trouble()[3] == "upgrade shimlan"


def test_an_agent_that_hangs(doctor: Doctor) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(doctor.socket)
        listener.listen()
        id, level, evidence, _ = doctor.trouble("--no-probe")
    assert (id, level) == ("agent", "failure")
    assert "it does not answer within" in evidence


def test_somebody_else_in_the_place_of_the_agent(doctor: Doctor) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(doctor.socket)
        listener.listen()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        id, level, evidence, _ = doctor.trouble("--no-probe")
        thread.join()
    assert (id, level) == ("agent", "failure")
    assert "what answers there is no agent for this client" in evidence


def test_a_client_without_an_agent(lab: Lab, doctor: Doctor, client: Path) -> None:
    doctor.bin_dir = str(client.parent)
    id, level, evidence, _ = doctor.trouble("--no-probe")
    assert (id, level, evidence) == ("agent", "failure", f"{client} is the client, and no agent is at {doctor.socket}")


def test_another_network_comes_first(lab: Lab, doctor: Doctor) -> None:
    doctor.write({"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]}, "05-other.conflist")
    id, level, evidence, _ = doctor.trouble("--no-probe")
    assert (id, level) == ("configuration.order", "warning")
    assert evidence == f"05-other.conflist (bridge) sorts before it in {doctor.directory}"
    doctor.write({"cniVersion": "1.0.0", "name": "all", "type": "multus-shim"}, "00-multus.conf")
    assert doctor.troubles("--no-probe") == []


def test_kube_proxy_is_seen(lab: Lab, doctor: Doctor) -> None:
    lab.host.run("nft", "add table ip kube-proxy")
    assert doctor.evidence("kube-proxy", "--no-probe").startswith("mode nftables; pods of this network reach it with")
    lab.host.run("nft", "delete table ip kube-proxy; add table ip nat; add chain ip nat KUBE-SERVICES")
    assert doctor.evidence("kube-proxy", "--no-probe").startswith("mode iptables; ")
    lab.host.ip("link", "add", "kube-ipvs0", "type", "bridge")
    lab.host.sysctl("net.ipv4.conf.all.arp_ignore", 1)
    lab.host.sysctl("net.ipv4.conf.all.arp_announce", 2)
    assert doctor.evidence("kube-proxy", "--no-probe").startswith("mode ipvs, with strictARP; ")


def test_without_a_configuration(lab: Lab, doctor: Doctor) -> None:
    doctor.conf = {}
    assert doctor.trouble("--state-dir", lab.data_dir)[:2] == ("configuration", "warning")
    assert doctor.troubles("--state-dir", lab.data_dir, "--master", "eth0") == []


def test_a_configuration_that_is_wrong(lab: Lab, doctor: Doctor) -> None:
    doctor.asked_about(mtu="large")
    id, level, evidence, remedy = doctor.trouble("--master", "eth0", "--state-dir", lab.data_dir)
    assert (id, level) == ("configuration", "failure")
    assert 'mtu: must be a whole number, not "large"' in evidence
    assert "shimlanctl validate" in remedy


@pytest.mark.parametrize("right", ["net_admin", "net_raw", "sys_admin"])
def test_it_needs_the_rights_of_add(lab: Lab, doctor: Doctor, right: str) -> None:
    few = ("setpriv", f"--bounding-set=-{right}", f"--inh-caps=-{right}")
    done = lab.host.run(*few, *doctor.command(), check=False)
    assert (done.returncode, done.stderr) == (FAILURE, "")
    assert done.stdout.startswith("failure  privileges")
    assert f"CAP_{right.upper()}" in done.stdout
