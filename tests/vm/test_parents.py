"""Kinds of parents that this machine may lack: those that work, and those that are refused with what to do instead."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cni.ctl.lab import CniFailed, Lab
from cni.ctl.runtime import installed_shimlan
from tests.kernel.traces import network, stored
from tests.vm.conftest import OF_MACHINE

BOND = ("link add bond0 type bond mode active-backup", "link set eth0 down", "link set eth0 master bond0")
TEAM = ("link add team0 type team", "link set eth0 down", "link set eth0 master team0", "link set eth0 up")
UPPER = {"bond": (BOND, "bond0"), "team": (TEAM, "team0")}


def below(lab: Lab, kind: str, *more: str) -> str:
    """Put eth0 of the host below a bond or a team, which gets the host's address; its name."""
    lines, upper = UPPER[kind]
    lab.host.ip_batch(
        "address flush dev eth0",
        *lines,
        f"link set {upper} up",
        f"address add {lab.host.address}/24 dev {upper}",
        f"route add default via {lab.outside.address} dev {upper}",
        *more,
    )
    return upper


@pytest.fixture
def _teamed(lab: Lab) -> None:
    """A team does nothing until somebody has told it how to share out frames."""
    if not shutil.which("teamnl"):
        pytest.skip("not installed: teamnl")


@pytest.mark.parametrize("kind", [pytest.param("bond", marks=pytest.mark.needs_links("bond"))])
def test_a_bond_can_be_the_parent(lab: Lab, kind: str) -> None:
    pod = lab.pod("a", lab.conf(master=below(lab, kind)))
    assert pod.pings(lab.outside)
    assert pod.pings(lab.host)
    assert lab.host.pings(pod)
    pod.check()


@pytest.mark.needs_links("bond", "vlan")
def test_a_vlan_on_a_bond_can_be_the_parent(lab: Lab) -> None:
    pod = lab.pod("a", lab.conf(master=below(lab, "bond"), vlan=100))
    assert lab.host.link("bond0.100")["link"] == "bond0"
    assert lab.host.pings(pod)
    pod.delete()


@pytest.mark.needs_links("team")
@pytest.mark.usefixtures("_teamed")
def test_a_team_can_be_the_parent(lab: Lab) -> None:
    upper = below(lab, "team")
    lab.host.ip("link", "set", "eth0", "nomaster")  # the mode of a team that has ports stays as it is
    lab.host.run("teamnl", upper, "setoption", "mode", "roundrobin")
    lab.host.ip_batch("link set eth0 down", f"link set eth0 master {upper}", "link set eth0 up")
    pod = lab.pod("a", lab.conf(master=upper))
    assert lab.host.pings(pod)
    assert pod.pings(lab.outside)
    pod.check()


@pytest.mark.needs_links("vlan")
def test_a_vlan_device_can_be_named_as_the_parent(lab: Lab) -> None:
    lab.outside.ip_batch(
        "link add link eth0 name blue type vlan id 7", "link set blue up", "address add 198.51.100.1/24 dev blue"
    )
    lab.host.ip_batch("link add link eth0 name blue type vlan id 7", "link set blue up")
    ipam = {"ranges": [[{"subnet": "198.51.100.0/24", "gateway": "198.51.100.1"}]]}
    pod = lab.pod("a", lab.conf(master="blue", ipam=ipam))
    assert pod.pings("198.51.100.1")
    assert lab.host.pings(pod)
    pod.delete()
    assert lab.host.link("blue")["linkinfo"]["info_data"]["id"] == 7


@pytest.mark.parametrize("master", ["auto", None])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("bond", marks=pytest.mark.needs_links("bond")),
        pytest.param("team", marks=pytest.mark.needs_links("team")),
    ],
)
def test_auto_goes_from_a_port_to_what_it_is_a_port_of(lab: Lab, kind: str, master: str | None) -> None:
    """The host's address is left on the port, as happens while somebody changes over to a bond."""
    lines, upper = UPPER[kind]
    lab.host.ip_batch(
        *lines, f"link set {upper} up", "link set eth0 up", "route replace default via 192.0.2.1 dev eth0 onlink"
    )
    pod = lab.pod("a", lab.conf(master=master))
    assert pod.link("eth0")["link_index"] == lab.host.link(upper)["ifindex"]


REFUSED = {
    "bond port": (BOND, "eth0", 'eth0 is a port of bond bond0: set "master": "bond0"', ("bond",)),
    "team port": (TEAM, "eth0", 'eth0 is a port of team team0: set "master": "team0"', ("team",)),
    "no Ethernet, tunnel": (
        ("link add tunnel type ipip local 192.0.2.10 remote 192.0.2.1", "link set tunnel up"),
        "tunnel",
        'tunnel is no Ethernet device: set "master" to the NIC of the LAN',
        ("ipip",),
    ),
    "no Ethernet, WireGuard": (
        ("link add wg0 type wireguard", "link set wg0 up"),
        "wg0",
        "wg0 is no Ethernet device",
        ("wireguard",),
    ),
    "one MAC": (
        ("link add ipv0 link eth0 type ipvlan mode l2", "link set ipv0 up"),
        "ipv0",
        'ipv0 is an ipvlan, which has one MAC: set "master" to another NIC',
        ("ipvlan",),
    ),
    "below an ipvlan": (
        ("link add ipv0 link eth0 type ipvlan mode l2",),
        "eth0",
        "eth0 is used by a bridge, bond, Open vSwitch or ipvlan",
        ("ipvlan",),
    ),
}


@pytest.mark.parametrize(
    ("lines", "master", "words"),
    [
        pytest.param(lines, master, words, id=name, marks=pytest.mark.needs_links(*kinds))
        for name, (lines, master, words, kinds) in REFUSED.items()
    ],
)
def test_what_cannot_work_is_refused_in_words(lab: Lab, lines: tuple[str, ...], master: str, words: str) -> None:
    lab.host.ip_batch(*lines)
    before = network(lab.host)
    with pytest.raises(CniFailed, match=words) as failure:
        lab.pod("a", lab.conf(master=master))
    assert failure.value.code == 102
    assert network(lab.host) == before
    assert stored(lab) == []


@pytest.mark.needs_links("vlan")
def test_a_vlan_of_a_macvlan_is_refused(lab: Lab) -> None:
    lab.host.ip_batch("link add mv0 link eth0 type macvlan mode bridge", "link set mv0 up")
    with pytest.raises(CniFailed, match="mv0 is a macvlan, which has one MAC for all of its VLANs"):
        lab.pod("a", lab.conf(master="mv0", vlan=100))
    assert stored(lab) == []


@pytest.mark.skipif(not shutil.which("ovs-dpctl"), reason="not installed: ovs-dpctl")
def test_a_port_of_open_vswitch_is_refused_and_its_bridge_is_not(lab: Lab) -> None:
    made = lab.host.run("ovs-dpctl", "add-dp", "ovs0", check=False)
    if made.returncode:
        pytest.skip(f"the kernel of this machine has no Open vSwitch: {made.stderr}")
    try:
        lab.host.run("ovs-dpctl", "add-if", "ovs0", "eth0")
        with pytest.raises(CniFailed, match=r"eth0 is a port of openvswitch .* internal port of its bridge") as failure:
            lab.pod("a")
        assert failure.value.code == 102
        lab.host.ip_batch("link set ovs0 up", "address add 198.51.100.10/24 dev ovs0")
        pod = lab.pod("b", lab.conf(master="ovs0"))
        assert lab.host.pings(pod)
        pod.delete()
    finally:
        lab.host.run("ovs-dpctl", "del-dp", "ovs0", check=False)


def test_a_wireless_nic_is_refused(tmp_path: Path) -> None:
    """In the namespace of the machine: a radio cannot be moved without its tools."""
    if subprocess.run(["modprobe", "mac80211_hwsim", "radios=1"], check=False).returncode:
        pytest.skip("the kernel of this machine cannot simulate a wireless NIC (mac80211_hwsim)")
    try:
        (radio,) = Path("/sys/class/net").glob("*/phy80211")
        name = radio.parent.name
        conf = {"cniVersion": "1.1.0", "name": "lan", "type": "shimlan", "master": name, "dataDir": str(tmp_path)}
        done = subprocess.run(
            [*OF_MACHINE, str(installed_shimlan())],
            input=json.dumps(conf),
            env={"CNI_COMMAND": "STATUS", "CNI_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        answer = json.loads(done.stdout)
    finally:
        subprocess.run(["modprobe", "--remove", "mac80211_hwsim"], check=True)
    assert answer["code"] == 50
    assert f"{name} is wireless, where a station has one MAC: use a wired NIC, ipvlan or routing" in answer["msg"]
