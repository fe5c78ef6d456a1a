"""Parents of the kinds that every kernel has: which the parent is, and what is said of those that cannot be it."""

from __future__ import annotations

import pytest

from cni.ctl.lab import CniFailed, Lab
from tests.kernel.traces import network, stored

BRIDGED = ("link add br7 type bridge forward_delay 0", "link set br7 up", "link set eth0 master br7")
STACKED = (*BRIDGED, "link add up0 type veth peer name down0", "link set up0 up", "link set down0 master br7 up")


@pytest.mark.parametrize("master", ["auto", "", None])
def test_auto_goes_from_a_port_to_its_bridge(lab: Lab, master: str | None) -> None:
    """The host's address was left on the port, so its default route leads there."""
    lab.host.ip_batch(*BRIDGED)
    pod = lab.pod("a", lab.conf(master=master))
    assert pod.link("eth0")["link_index"] == lab.host.link("br7")["ifindex"]
    assert pod.pings(lab.outside)
    pod.check()
    assert lab.cni("STATUS", lab.conf(master=master)).ok


def test_a_port_that_is_named_is_refused_all_the_same(lab: Lab) -> None:
    lab.host.ip_batch(*BRIDGED)
    with pytest.raises(CniFailed, match='eth0 is a port of bridge br7: set "master": "br7"'):
        lab.pod("a", lab.conf(master="eth0"))


@pytest.mark.parametrize(
    ("lines", "master", "words"),
    [
        (("tuntap add tun0 mode tun", "link set tun0 up"), "tun0", "tun0 is no Ethernet device"),
        ((), "lo", 'lo is no Ethernet device: set "master" to the NIC of the LAN'),
        (("link set eth0 down",), "eth0", "eth0 is down: run `ip link set eth0 up` and have it set up at boot"),
        ((), "nope", r'there is no link nope: set "master" to one that exists \(eth0\)'),
        (BRIDGED, "eth0", 'eth0 is a port of bridge br7: set "master": "br7"'),
        (STACKED, "down0", 'down0 is a port of bridge br7: set "master": "br7"'),
    ],
    ids=["tunnel", "loopback", "down", "absent", "port", "veth that is a port"],
)
def test_status_says_what_add_would_say(lab: Lab, lines: tuple[str, ...], master: str, words: str) -> None:
    lab.host.ip_batch(*lines)
    before, conf = [link["ifname"] for link in lab.host.links()], lab.conf(master=master)
    with pytest.raises(CniFailed, match=words) as failure:
        lab.pod("a", conf)
    assert failure.value.code == 102
    with pytest.raises(CniFailed, match=words) as failure:
        lab.cni("STATUS", conf).or_raise()
    assert failure.value.code == 50
    assert [link["ifname"] for link in lab.host.links()] == before
    assert stored(lab) == []


@pytest.mark.parametrize("kind", ["macvlan", "macvtap"])
def test_a_child_can_be_the_parent_of_others(lab: Lab, kind: str) -> None:
    lab.host.ip_batch(f"link add mv0 link eth0 type {kind} mode bridge", "link set mv0 up")
    pod = lab.pod("a", lab.conf(master="mv0"))
    assert pod.pings(lab.outside)
    pod.check()


def test_a_kernel_without_vlans_says_so(lab: Lab) -> None:
    made = lab.host.run("ip", "link", "add", "link", "eth0", "name", "probe", "type", "vlan", "id", "7", check=False)
    if made.returncode == 0:
        pytest.skip("this kernel has VLANs; tests/vm/test_vlan.py tries them")
    before = network(lab.host)
    with pytest.raises(CniFailed, match="eth0 takes no VLANs, or this kernel has none: `modprobe 8021q`") as failure:
        lab.pod("a", lab.conf(vlan=100))
    assert failure.value.code == 102
    assert network(lab.host) == before
    assert stored(lab) == []
