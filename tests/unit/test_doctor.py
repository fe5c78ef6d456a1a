"""doctor's judgement: facts in, findings out; and how files of others are read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

import cni.config
from cni import survey
from cni.attachment import Parent
from cni.ctl.doctor import checks, configuration, managers, state
from cni.ctl.doctor.facts import (
    Agent,
    Configuration,
    Executables,
    Kernel,
    Lan,
    Manager,
    NetworkFile,
    ParentState,
    Reached,
    ServiceProxy,
    Store,
    Stranger,
    Sysctls,
)
from cni.ctl.doctor.findings import Finding, as_json, as_text, exit_status, failure, ok, refused, warning
from cni.ethtool import Forwarding
from cni.frozen import replace
from cni.offload import WITHOUT
from ipam.allocate import Usage

ETH0 = Parent("eth0", index=2, mac="02:00:00:00:00:01", mtu=1500)


def conf(**keys: Any) -> cni.config.NetConf:
    return cni.config.parse({"name": "lan", "type": "shimlan", **keys}, {})


def levels(findings: Iterable[Finding]) -> dict[str, str]:
    """What was found, by id; of several findings of one thing the last."""
    return {finding.id: finding.level for finding in findings}


def troubles(findings: Iterable[Finding]) -> dict[str, str]:
    return {id: level for id, level in levels(findings).items() if level != "ok"}


PLAIN = conf()
SERVICES = conf(shim={"routes": ["10.96.0.0/12", "fd00:96::/112"]})
IPAM = conf(ipam={"type": "shimlan-ipam", "subnet": "192.0.2.0/24"})


class TestReport:
    FINDINGS = (ok("a", "fine"), warning("b", "hm", "look"), failure("c.d", "broken " * 30, "mend it"), ok("e", "fine"))

    def test_the_worst_comes_first_and_the_rest_as_it_was_looked_at(self) -> None:
        lines = as_text(self.FINDINGS)
        heads = [line.split()[:2] for line in lines[:-2] if not line.startswith(" ")]
        assert heads == [["failure", "c.d"], ["warning", "b"], ["ok", "a"], ["ok", "e"]]
        assert lines[-1] == "failure: 1 failure(s), 1 warning(s), 2 ok"
        assert max(map(len, lines)) <= 120

    def test_the_remedy_stands_below_its_evidence(self) -> None:
        assert as_text([warning("b", "hm", "look")]) == [
            "warning  b  hm",
            "            -> look",
            "",
            "warning: 0 failure(s), 1 warning(s), 0 ok",
        ]

    @pytest.mark.parametrize(("count", "status"), [(0, 0), (1, 0), (2, 1), (3, 2)])
    def test_the_worst_is_the_exit_status(self, count: int, status: int) -> None:
        assert exit_status(self.FINDINGS[:count]) == status

    def test_json(self) -> None:
        assert as_json({"parent": "eth0"}, self.FINDINGS[1:2]) == {
            "parent": "eth0",
            "worst": "warning",
            "findings": [{"id": "b", "level": "warning", "evidence": "hm", "remedy": "look"}],
        }

    def test_the_plugins_own_words_are_evidence_and_remedy(self) -> None:
        assert refused("x", 'eth0 is bad: set "master": "br0"') == failure("x", "eth0 is bad", 'set "master": "br0"')


FILE = Configuration(PLAIN, "/etc/cni/net.d/10-lan.conflist", "/etc/cni/net.d", types=("shimlan",))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (FILE, {}),
        (Configuration(PLAIN, "x", types=("shimlan", "portmap", "tuning")), {}),
        (Configuration(PLAIN, "x", types=("bridge", "shimlan")), {"configuration.chain": "warning"}),
        (Configuration(PLAIN, "x", problems=("mtu: is odd",)), {"configuration": "failure"}),
        (Configuration(PLAIN), {"configuration": "warning"}),
        (Configuration(PLAIN, expected=False), {}),
        (Configuration(PLAIN, "x", before=(NetworkFile("1", ("bridge",)),)), {"configuration.order": "warning"}),
        (Configuration(PLAIN, "x", before=(NetworkFile("1", unreadable="no"),)), {"configuration.order": "warning"}),
        (Configuration(PLAIN, "x", before=(NetworkFile("1", ("multus",)),)), {}),
    ],
)
def test_configuration(found: Configuration, expected: dict[str, str]) -> None:
    assert troubles(checks.configuration(found)) == expected


ALL_KINDS = {"macvlan": True, "macvtap": True, "vlan": True}


@pytest.mark.parametrize(
    ("conf", "found", "expected"),
    [
        (PLAIN, Kernel(ALL_KINDS), {}),
        (PLAIN, Kernel({**ALL_KINDS, "macvtap": False, "vlan": False}, "none: load it"), {}),
        (PLAIN, Kernel({**ALL_KINDS, "macvlan": False}), {"kernel.macvlan": "failure"}),
        (conf(linkType="macvtap"), Kernel({**ALL_KINDS, "macvtap": False}), {"kernel.macvtap": "failure"}),
        (conf(vlan=5), Kernel({**ALL_KINDS, "vlan": False}), {"kernel.vlan": "failure"}),
        (SERVICES, Kernel(ALL_KINDS, "none: load it"), {"kernel.nat": "failure"}),
    ],
)
def test_kernel(conf: cni.config.NetConf, found: Kernel, expected: dict[str, str]) -> None:
    assert troubles(checks.kernel(conf, found)) == expected


@pytest.mark.parametrize(
    ("conf", "found", "expected"),
    [
        (PLAIN, ParentState(ETH0), {}),
        (PLAIN, ParentState(replace(ETH0, master="vrf0", master_kind="vrf")), {}),
        (PLAIN, ParentState(refusal="there is no link eth0: correct it"), {"parent": "failure"}),
        (PLAIN, ParentState(replace(ETH0, loopback=True)), {"parent": "failure"}),
        (PLAIN, ParentState(replace(ETH0, wireless=True, up=False)), {"parent": "failure"}),
        (PLAIN, ParentState(replace(ETH0, master="br0", master_kind="bridge")), {"parent.port": "failure"}),
        (PLAIN, ParentState(replace(ETH0, master="bond0", master_kind="bond")), {"parent.port": "failure"}),
        (PLAIN, ParentState(replace(ETH0, master="t", master_kind="team")), {"parent.port": "failure"}),
        (PLAIN, ParentState(replace(ETH0, master="o", master_kind="openvswitch")), {"parent.port": "failure"}),
        (PLAIN, ParentState(replace(ETH0, up=False), carrier=False), {"parent.state": "failure"}),
        (PLAIN, ParentState(ETH0, carrier=False), {"parent.state": "failure"}),
        (conf(mtu=1500), ParentState(ETH0), {}),
        (conf(mtu=1501), ParentState(ETH0), {"mtu": "failure"}),
        (PLAIN, ParentState(ETH0, foreign_shim="shim2"), {"shim": "failure"}),
        (conf(shim=False), ParentState(ETH0, foreign_shim="shim2"), {}),
    ],
)
def test_parent(conf: cni.config.NetConf, found: ParentState, expected: dict[str, str]) -> None:
    findings = [*checks.parent(conf, found), *checks.shim(conf, found)]
    assert troubles(findings) == expected
    assert len(levels(findings)) == len(findings)
    assert checks.can_carry(conf, found) is (expected in ({}, {"mtu": "failure"}, {"shim": "failure"}))


ON, OFF = Forwarding(switchable=True, active=True), Forwarding(switchable=True)


@pytest.mark.parametrize(
    ("asked", "forwarding", "obstacle", "level", "words"),
    [
        ("auto", ON, "", "ok", "on; 2 pod(s) are in software"),
        ("on", ON, "", "ok", "on; 2 pod(s) are in software"),
        ("auto", OFF, "", "ok", "off, until the next ADD"),
        ("off", OFF, "", "ok", "off, as asked"),
        ("auto", Forwarding(), WITHOUT, "ok", "the kernel forwards, as eth0 cannot"),
        ("on", Forwarding(), WITHOUT, "failure", "eth0 cannot forward for pods in hardware: it has no l2-fwd-offload"),
    ],
)
def test_offload(asked: str, forwarding: Forwarding, obstacle: str, level: str, words: str) -> None:
    asking = replace(PLAIN, raw={"offload": asked})
    found = ParentState(ETH0, forwarding=forwarding, obstacle=obstacle, in_software=2)
    (finding,) = checks.offload(asking, found)
    assert (finding.id, finding.level) == ("offload", level)
    assert words in finding.evidence


def test_a_vlan_that_is_not_there_yet_is_no_trouble_and_no_lan_to_ask() -> None:
    found = ParentState(ETH0, unmade="eth0.5")
    assert troubles(checks.parent(conf(vlan=5), found)) == {}
    assert "parent.vlan" in levels(checks.parent(conf(vlan=5), found))
    assert not checks.can_carry(conf(vlan=5), found)


@pytest.mark.parametrize(
    ("conf", "found", "expected"),
    [
        (PLAIN, Sysctls({"arp_ignore": "8"}, {4: False, 6: False}), {}),
        (SERVICES, Sysctls({}, {4: True, 6: True}), {}),
        (SERVICES, Sysctls({}, {4: True, 6: False}), {"sysctls.forwarding": "warning"}),
        (PLAIN, Sysctls({}, {}, locked="Read-only file system"), {"sysctls.writable": "failure"}),
    ],
)
def test_sysctls(conf: cni.config.NetConf, found: Sysctls, expected: dict[str, str]) -> None:
    assert troubles(checks.sysctls(conf, found)) == expected


def test_the_sysctls_to_set_are_named() -> None:
    found = list(checks.sysctls(SERVICES, Sysctls({}, {4: False, 6: False})))
    assert found[-1].remedy == "`sysctl -w net.ipv4.ip_forward=1`; `sysctl -w net.ipv6.conf.all.forwarding=1`"


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (Manager("NetworkManager", running=False, takes_by_itself=True), "ok"),
        (Manager("NetworkManager", running=True, takes_by_itself=True), "warning"),
        (Manager("NetworkManager", running=True, spared_by="a file", takes_by_itself=True), "ok"),
        (Manager("systemd-networkd", running=True), "ok"),
        (Manager("systemd-networkd", running=True, taken_by="a file"), "warning"),
        (Manager("systemd-networkd", running=False, taken_by="a file"), "ok"),
        (Manager("systemd-networkd", running=False, hidden=True), "ok"),
    ],
)
def test_managers(found: Manager, level: str) -> None:
    finding = checks.manager(found)
    assert finding.level == level
    assert ("shim*" in finding.remedy) is (level == "warning")


@pytest.mark.parametrize("mode", ["", "iptables", "ipvs", "nftables"])
@pytest.mark.parametrize("conf", [PLAIN, SERVICES])
def test_kube_proxy_is_no_trouble(conf: cni.config.NetConf, mode: str) -> None:
    finding = checks.service_proxy(conf, ServiceProxy(mode, strict_arp=True))
    assert finding.level == "ok"
    assert (mode or "not seen") in finding.evidence


ANSWERED = Stranger(asked="192.0.2.1", answered=True)
CONFLICT = (("192.0.2.9", "02:00:00:00:00:09"),)


@pytest.mark.parametrize(
    ("conf", "found", "expected"),
    [
        (IPAM, Lan(ANSWERED), {}),
        (IPAM, Lan(Stranger()), {}),
        (IPAM, Lan(Stranger(asked="192.0.2.1")), {"lan.mac": "failure"}),
        (conf(mode="passthru"), Lan(Stranger(), dead_gateways=("192.0.2.1",)), {}),
        (conf(mode="passthru"), Lan(Stranger(refusal="eth0 has others: remove them")), {"parent.child": "failure"}),
        (IPAM, Lan(Stranger(), dead_gateways=("192.0.2.1",)), {"lan.gateway": "warning"}),
        (IPAM, Lan(Stranger(refusal="taken: use br0"), ("192.0.2.1",)), {"parent.child": "failure"}),
        (IPAM, Lan(ANSWERED, conflicts=CONFLICT), {"lan.addresses": "failure"}),
        (
            replace(IPAM, detect_conflicts=cni.config.ConflictDetection()),
            Lan(ANSWERED, conflicts=CONFLICT),
            {"lan.addresses": "warning"},
        ),
    ],
)
def test_lan(conf: cni.config.NetConf, found: Lan, expected: dict[str, str]) -> None:
    assert troubles(checks.lan(conf, found)) == expected


@pytest.mark.parametrize(
    ("vendor", "word"),
    [
        ("VMware, Inc.", "Forged transmits"),
        ("Microsoft Corporation", "MAC address spoofing"),
        ("QEMU", "no-mac-spoofing"),
        ("Amazon EC2", "ipvlan"),
        ("innotek GmbH", "Allow All"),
        ("", "let the switch port"),
        ("Dell Inc.", "let the switch port"),
    ],
)
def test_the_remedy_for_dropped_macs_knows_the_machine(vendor: str, word: str) -> None:
    assert word in checks.mac_remedy(vendor)
    assert "switch port" in checks.mac_remedy(vendor)


SOUND = Store("db", exists=True, schema=1, known_schema=1)


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (SOUND, "ok"),
        (Store("db"), "ok"),
        (Store("db", exists=True, damage="it is damaged"), "failure"),
        (Store("db", exists=True, schema=2, known_schema=1), "failure"),
        (
            Store("db", exists=True, unusable="dir: the store is read-only: remount it", schema=1, known_schema=1),
            "failure",
        ),
        (Store("db", exists=True, busy="it is locked"), "warning"),
    ],
)
def test_store(found: Store, level: str) -> None:
    (finding,) = checks.store(found)
    assert (finding.id, finding.level) == ("store", level)
    assert bool(finding.remedy) is (level != "ok")


def usage(held: int, conflict: int = 0, excluded: int = 0, cooling: int = 0) -> Usage:
    return Usage("192.0.2.1", "192.0.2.10", 10, held, cooling, conflict, excluded)


@pytest.mark.parametrize(
    ("ranges", "level"),
    [
        ([usage(0)], "ok"),
        ([usage(9)], "ok"),
        ([usage(0, cooling=10)], "ok"),
        ([usage(10)], "failure"),
        ([usage(7, conflict=1, excluded=2)], "failure"),
        ([usage(10), usage(9)], "ok"),
    ],
)
def test_pools(ranges: list[Usage], level: str) -> None:
    (finding,) = checks.pools(IPAM, Store("db", exists=True, usages=(tuple(ranges),)))
    assert (finding.id, finding.level) == ("pool", level)


NOTHING = Executables(("/opt/cni/bin",))
PLUGIN = Executables(("/opt/cni/bin",), "/opt/cni/bin/shimlan")
CLIENT = Executables(("/opt/cni/bin",), "/opt/cni/bin/shimlan", is_client=True)
BOTH = Executables(("/opt/cni/bin",), "/opt/cni/bin/shimlan", is_client=True, fallback="/opt/cni/bin/shimlan-inprocess")


@pytest.mark.parametrize(
    ("found", "plugins", "level"),
    [
        (Agent("s"), PLUGIN, "ok"),
        (Agent("s"), BOTH, "ok"),
        (Agent("s"), NOTHING, "ok"),
        (Agent("s"), CLIENT, "failure"),
        (Agent("s", exists=True), CLIENT, "ok"),
        (Agent("s", exists=True, trouble="nobody answers"), PLUGIN, "failure"),
    ],
)
def test_agent(found: Agent, plugins: Executables, level: str) -> None:
    assert checks.agent(found, plugins).level == level


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (PLUGIN, {}),
        (CLIENT, {}),
        (NOTHING, {"plugin": "warning"}),
        (Executables(("d",), "d/shimlan", missing=("portmap",)), {"plugin.others": "warning"}),
    ],
)
def test_executables(found: Executables, expected: dict[str, str]) -> None:
    assert troubles(checks.executables(found)) == expected


NODE_LOCAL = conf(shim={"hostAddresses": ["auto", "169.254.20.10"]})


def leased(**keys: Any) -> cni.config.NetConf:
    return conf(**{**keys, "ipam": {"type": "shimlan-ipam", "subnet": "192.0.2.0/24", **keys.get("ipam", {})}})


@pytest.mark.parametrize(
    ("conf", "found", "expected"),
    [
        (PLAIN, Reached(), {}),
        (NODE_LOCAL, Reached((ip_address("192.0.2.10"), ip_address("169.254.20.10"))), {}),
        (NODE_LOCAL, Reached(refusal="shim.hostAddresses: it is no address"), {"shim.hostAddresses": "failure"}),
        (leased(shim={"routes": ["10.96.0.0/12"]}), Reached((ip_address("192.0.2.10"),)), {}),
        (leased(shim={"routes": ["fd00:96::/112"]}), Reached((ip_address("192.0.2.10"),)), {}),
        (leased(shim={"routes": ["10.96.0.0/12"]}), Reached((ip_address("fd00::1"),)), {"shim.routes": "failure"}),
        (conf(shim={"routes": ["10.96.0.0/12"]}), Reached(), {}),
    ],
)
def test_addresses_of_the_host(conf: cni.config.NetConf, found: Reached, expected: dict[str, str]) -> None:
    assert troubles(checks.reached(conf, found)) == expected


def test_what_is_wrong_with_an_address_of_the_host_stands_without_the_key() -> None:
    (finding,) = checks.reached(NODE_LOCAL, Reached(refusal="shim.hostAddresses: it is no address"))
    assert finding.evidence == "it is no address"


@pytest.mark.parametrize(
    ("routes", "keys", "right"),
    [
        ([{"dst": "0.0.0.0/0"}], {}, True),
        ([{"dst": "10.0.0.0/8", "gw": "192.0.2.7"}], {}, True),
        ([{"dst": "10.0.0.0/8", "gw": "192.0.3.7"}], {}, False),
        ([{"dst": "10.0.0.0/8", "gw": "198.51.100.10"}], {}, True),  # the host, through the shim
        ([{"dst": "10.0.0.0/8", "gw": "192.0.3.7"}, {"dst": "192.0.3.7/32", "scope": 253}], {}, True),
        ([{"dst": "10.0.0.0/8", "gw": "192.0.3.7"}, {"dst": "192.0.3.0/24"}], {}, False),
        ([{"dst": "10.0.0.0/8", "gw": "192.0.3.7"}], {"capabilities": {"ipRanges": True}}, True),
        ([{"dst": "::/0", "gw": "fe80::1"}], {}, True),
        ([{"dst": "::/0", "gw": "fd00::1"}], {}, False),
    ],
)
def test_gateways_of_routes(routes: list[dict[str, Any]], keys: dict[str, Any], right: bool) -> None:
    found = troubles(checks.routes(leased(**keys, ipam={"routes": routes}), Reached((ip_address("198.51.100.10"),))))
    assert found == ({} if right else {"ipam.routes": "failure"})


def test_the_file_of_resolv_conf(tmp_path: Path) -> None:
    write(tmp_path, "resolv.conf", "nameserver 192.0.2.53\n")
    for name, level in {"resolv.conf": "ok", "missing": "failure"}.items():
        ipam = leased(ipam={"resolvConf": f"{tmp_path}/{name}"}).ipam
        assert ipam is not None
        finding = checks.resolver(ipam, state.resolver(ipam))
        assert (finding.id, finding.level) == ("ipam.resolvConf", level)
    assert finding.evidence == f"cannot read {tmp_path}/missing: No such file or directory"


# --- files of others ---------------------------------------------------------------------------------------------


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("text", "spared"),
    [
        ("", False),
        ("[keyfile]\nunmanaged-devices=interface-name:shim*\n", True),
        ("[keyfile]\nunmanaged-devices=interface-name:cali*;interface-name:shim*\n", True),
        ("[keyfile]\nunmanaged-devices=interface-name:cali*\n", False),
        ("[keyfile]\nunmanaged-devices=type:macvlan\n", True),
        ("[keyfile]\nunmanaged-devices=*\n", True),
        ("[device-shim]\nmatch-device=interface-name:shim*\nmanaged=0\n", True),
        ("[device-shim]\nmatch-device=interface-name:shim*\nmanaged=1\n", False),
        ("[main]\nplugins=keyfile\n", False),
        ("this is no INI file", False),
    ],
)
@pytest.mark.parametrize("path", ["etc/NetworkManager/NetworkManager.conf", "usr/lib/NetworkManager/conf.d/10-x.conf"])
def test_what_network_manager_is_told(tmp_path: Path, path: str, text: str, spared: bool) -> None:
    write(tmp_path, path, text)
    found = managers.network_manager("shim2", running=True, root=str(tmp_path))
    assert found.spared_by == (f"{tmp_path}/{path}" if spared else "")


def with_process(proc: Path, pid: int, comm: str, net: str = "/proc/self/ns/net", root: str = "/") -> None:
    """A process as /proc shows it."""
    write(proc, f"{pid}/comm", f"{comm}\n")
    (proc / f"{pid}/ns").mkdir()
    (proc / f"{pid}/ns/net").symlink_to(net)
    (proc / f"{pid}/root").symlink_to(root)


def of_network_manager(proc: Path) -> Manager:
    (found, _) = managers.managers("shim2", str(proc))
    return found


def own_pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes of the host show here."""
    monkeypatch.setattr(survey, "INITIAL_PID_NAMESPACE", own_pid_namespace())


@pytest.fixture
def in_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only processes of a container show here."""
    monkeypatch.setattr(survey, "INITIAL_PID_NAMESPACE", own_pid_namespace() + 1)


@pytest.mark.usefixtures("on_host")
def test_on_a_host_all_processes_show(tmp_path: Path) -> None:
    with_process(tmp_path, 1, "systemd")
    assert checks.manager(of_network_manager(tmp_path)).evidence == "does not run here"
    with_process(tmp_path, 7, "NetworkManager", net="/proc/self/ns/uts")
    assert checks.manager(of_network_manager(tmp_path)).evidence == "does not run here"
    with_process(tmp_path, 8, "NetworkManager")
    assert of_network_manager(tmp_path).running


@pytest.mark.usefixtures("in_container")
def test_in_a_container_the_hosts_processes_are_not_seen(tmp_path: Path) -> None:
    with_process(tmp_path, 1, "shimlanctl")
    assert checks.manager(of_network_manager(tmp_path)).evidence.startswith("not seen: ")
    with_process(tmp_path, 7, "NetworkManager")  # of a node that is a container itself
    assert checks.manager(of_network_manager(tmp_path)).evidence.startswith("runs here, ")


@pytest.mark.usefixtures("on_host")
def test_with_the_hosts_processes_in_a_container_their_own_files_count(tmp_path: Path) -> None:
    proc, host = tmp_path / "proc", tmp_path / "host"
    with_process(proc, 7, "NetworkManager", root=str(host))
    write(host, "etc/NetworkManager/conf.d/90-shimlan.conf", "[keyfile]\nunmanaged-devices=interface-name:shim*\n")
    assert of_network_manager(proc).spared_by == f"{proc}/7/root/etc/NetworkManager/conf.d/90-shimlan.conf"


@pytest.mark.usefixtures("on_host")
def test_a_process_that_may_not_be_looked_at_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> bool:
        raise PermissionError

    with_process(tmp_path, 7, "NetworkManager")
    monkeypatch.setattr("os.path.samefile", refuse)
    assert of_network_manager(tmp_path) == Manager("NetworkManager", running=False, hidden=True)


UNMANAGED = "[Match]\nName=shim*\n\n[Link]\nUnmanaged=yes\n"


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        ("Name=*", True),
        ("Name=eth* shim*", True),
        ("Name=!shim*", False),
        ("Name=en*", False),
        ("Type=ether", True),
        ("Type=ether\nKind=!*", False),
        ("Kind=macvlan", True),
        ("Type=wlan", False),
        ("Driver=virtio_net", False),
        ("Name=*\nMACAddress=02:00:00:00:00:01", False),
        ("", False),
    ],
)
def test_what_networkd_would_manage(tmp_path: Path, match: str, matches: bool) -> None:
    path = "etc/systemd/network/50-all.network"
    write(tmp_path, path, f"[Match]\n{match}\n\n[Network]\nDHCP=yes\n")
    assert managers.networkd("shim2", running=True, root=str(tmp_path)).taken_by == (
        f"{tmp_path}/{path}" if matches else ""
    )


def test_of_networkds_files_the_first_by_name_counts(tmp_path: Path) -> None:
    write(tmp_path, "etc/systemd/network/50-all.network", "[Match]\nName=*\n")
    assert managers.networkd("shim2", running=True, root=str(tmp_path)).taken_by
    write(tmp_path, "usr/lib/systemd/network/00-shim.network", UNMANAGED)
    found = managers.networkd("shim2", running=True, root=str(tmp_path))
    assert (found.taken_by, found.spared_by) == ("", f"{tmp_path}/usr/lib/systemd/network/00-shim.network")
    write(tmp_path, "etc/systemd/network/00-shim.network", "[Match]\nName=shim*\n")  # it masks that of /usr/lib
    assert managers.networkd("shim2", running=True, root=str(tmp_path)).taken_by.endswith(
        "etc/systemd/network/00-shim.network"
    )


# --- which configuration -----------------------------------------------------------------------------------------

LIST = {"cniVersion": "1.0.0", "name": "lan", "plugins": [{"type": "shimlan", "master": "eth0"}, {"type": "tuning"}]}
OTHER = {"cniVersion": "1.0.0", "name": "other", "type": "bridge"}


def put(directory: Path, **files: object) -> str:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name.replace("_", "-", 1).replace("_", ".")).write_text(text)
    return str(directory)


def test_the_first_network_of_ours_is_taken(tmp_path: Path) -> None:
    directory = put(tmp_path, a1_x_conf=OTHER, b2_x_conflist=LIST, c3_x_conf={**LIST, "name": "third"}, d_note_txt="{")
    found = configuration.find(None, directory, "")
    assert (found.path, found.conf.name, found.types) == (f"{directory}/b2-x.conflist", "lan", ("shimlan", "tuning"))
    assert found.before == (NetworkFile("a1-x.conf", ("bridge",)),)
    assert found.problems == ()


def test_the_master_can_be_another(tmp_path: Path) -> None:
    assert configuration.find(None, put(tmp_path, a_x_conflist=LIST), "eth1").conf.master == "eth1"


def test_a_file_elsewhere_has_no_order(tmp_path: Path) -> None:
    directory = tmp_path / "net.d"
    directory.mkdir()
    put(directory, a_x_conf=OTHER)
    path = f"{put(tmp_path, z_x_conflist=LIST)}/z-x.conflist"
    assert configuration.find(path, str(directory), "").before == ()


def test_a_file_that_cannot_be_read_is_in_the_way_all_the_same(tmp_path: Path) -> None:
    found = configuration.find(None, put(tmp_path, a_x_conf="{", b_x_conflist=LIST), "")
    assert [file.name for file in found.before] == ["a-x.conf"]
    assert "not JSON" in found.before[0].unreadable


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON: "),
        ([], "configuration: must be an object"),
        (OTHER, "nothing in it is of type shimlan"),
        ({**LIST, "plugins": [{"type": "shimlan", "mtu": -1}]}, "plugins[0].mtu: must be"),
    ],
)
def test_a_file_that_is_wrong_is_judged_by_defaults(tmp_path: Path, content: object, problem: str) -> None:
    found = configuration.find(f"{put(tmp_path, a_x_conf=content)}/a-x.conf", "/nowhere", "eth9")
    assert found.problems[0].startswith(problem)
    assert found.conf.master == "eth9"


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    assert configuration.find(f"{tmp_path}/no.conf", "/nowhere", "").problems == ("No such file or directory",)


def test_ranges_may_come_from_the_runtime_and_requests_are_one_pods(tmp_path: Path) -> None:
    ours = {"type": "shimlan", "capabilities": {"ipRanges": True}, "ipam": {"type": "shimlan-ipam"}}
    found = configuration.find(f"{put(tmp_path, a_x_conf={**LIST, 'plugins': [ours]})}/a-x.conf", "/nowhere", "")
    assert (found.problems, found.conf.ipam and found.conf.ipam.pools) == ((), ())
    asked = {
        "type": "shimlan",
        "args": {"cni": {"ips": ["192.0.2.7"]}},
        "ipam": {"type": "shimlan-ipam", "subnet": "192.0.2.0/24"},
    }
    found = configuration.find(f"{put(tmp_path, a_x_conf={**LIST, 'plugins': [asked]})}/a-x.conf", "/nowhere", "")
    assert found.conf.ipam is not None
    assert found.conf.ipam.requested == ()
    assert ip_address("192.0.2.7") in found.conf.ipam.pools[0][0].subnet
