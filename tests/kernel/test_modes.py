"""The modes of macvlan: who reaches whom, with a plain switch and with one that sends frames back (VEPA)."""

from __future__ import annotations

import os
import re
import select
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cni.ctl.lab import CniFailed, Lab, Pod
from tests.kernel.test_rebuild import damaged
from tests.kernel.test_reconcile import Agent
from tests.kernel.traces import held, network, stored

FAMILIES = pytest.mark.parametrize("family", [4, 6])

# mode, hairpin switch: sibling, host -> pod, pod -> host, outside (and back)
REACH = {
    ("bridge", False): (True, True, True, True),
    ("bridge", True): (True, True, True, True),
    ("private", False): (False, False, False, True),
    ("private", True): (False, True, True, True),
    ("vepa", False): (False, False, False, True),
    ("vepa", True): (True, True, True, True),
}


@FAMILIES
@pytest.mark.parametrize(("mode", "hairpin"), REACH)
def test_who_reaches_whom(lab: Lab, mode: str, hairpin: bool, family: int) -> None:
    lab.switch.hairpin(lab.host, hairpin)
    a, b = (lab.pod(name, lab.conf(dual=True, mode=mode)) for name in "ab")
    assert a.link("eth0")["linkinfo"]["info_data"]["mode"] == mode
    assert lab.outside.pings(a, family)
    reached = (
        a.pings(b, family, wait=0.25),
        lab.host.pings(a, family, wait=0.25),
        a.pings(lab.host, family, wait=0.25),
        a.pings(lab.outside, family),
    )
    assert reached == REACH[mode, hairpin]
    a.check()


@pytest.mark.parametrize("mode", ["private", "vepa", "passthru", "source"])
def test_by_default_other_modes_go_without_a_shim(lab: Lab, mode: str) -> None:
    pod = lab.pod("a", lab.conf(dual=True, mode=mode))
    assert [entry["name"] for entry in pod.result["interfaces"]] == ["eth0"]
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0"]
    pod.check()
    pod.delete()


@pytest.mark.parametrize("mode", ["private", "vepa", "passthru", "source"])
@pytest.mark.parametrize("shim", [True, {}, {"routes": ["10.96.0.0/16"]}])
def test_a_shim_that_was_asked_for_is_refused_in_other_modes(lab: Lab, mode: str, shim: object) -> None:
    with pytest.raises(CniFailed, match="shim: a shim only works with mode bridge") as failure:
        lab.pod("a", lab.conf(mode=mode, shim=shim))
    assert failure.value.code == 7


def test_modes_can_be_mixed_on_one_parent(lab: Lab) -> None:
    bridge = lab.pod("a")
    private = lab.pod("b", lab.conf(mode="private"))
    assert lab.host.pings(bridge)
    assert bridge.pings(lab.outside)
    assert private.pings(lab.outside)
    assert not private.pings(bridge, wait=0.2)
    bridge.check()
    private.check()


@FAMILIES
def test_passthru_takes_the_parents_mac_and_all_of_its_traffic(lab: Lab, family: int) -> None:
    parent, before = lab.host.mac, network(lab.host)
    pod = lab.pod("a", lab.conf(dual=True, mode="passthru"))
    assert pod.mac == pod.result["interfaces"][0]["mac"] == parent
    assert pod.pings(lab.outside, family)
    pod.check()
    pod.delete()
    after = network(lab.host)
    assert after["routes"] == before["routes"]
    assert [link["ifname"] for link in after["links"]] == ["lo", "eth0"]
    assert lab.host.mac == parent
    assert lab.host.pings(lab.outside, family)


def test_passthru_refuses_a_mac_of_its_own(lab: Lab) -> None:
    with pytest.raises(CniFailed, match="mac: a child in mode passthru always has the MAC of eth0") as failure:
        lab.pod("a", lab.conf(mode="passthru", mac="02:00:00:00:00:01"))
    assert failure.value.code == 7
    assert stored(lab) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("passthru", "passthru"),
        ("passthru", "bridge"),
        ("passthru", "private"),
        ("bridge", "passthru"),
        ("private", "passthru"),
    ],
)
def test_passthru_and_others_exclude_each_other_in_words(lab: Lab, first: str, second: str) -> None:
    pod = lab.pod("a", lab.conf(mode=first))
    before = network(lab.host)
    with pytest.raises(CniFailed, match="passthru excludes all others") as failure:
        lab.pod("b", lab.conf(mode=second))
    assert failure.value.code == 102
    assert network(lab.host) == before
    assert [lease.container_id for lease in held(lab)] == [pod.container_id]
    pod.check()


def test_bcqueuelen_and_bclim_reach_the_kernel(lab: Lab) -> None:
    pod = lab.pod("a", lab.conf(bcqueuelen=123, bclim=-1, mode="private"))
    data: dict[str, Any] = pod.link("eth0")["linkinfo"]["info_data"]
    assert data["bcqueuelen"] == 123
    assert data.get("bclim", -1) == -1  # older versions of ip do not show it
    pod.check()


# --- mode source -----------------------------------------------------------------------------------------------------


def source_macs(pod: Pod) -> list[str]:
    """What `ip -d link` tells of the MACs that a pod listens to."""
    shown = re.search(r"remotes \(\d+\)((?: [0-9a-f:]{17})*)", pod.ip("-d", "link", "show", "dev", pod.dev))
    return sorted(shown[1].split()) if shown else []


@FAMILIES
def test_mode_source_hears_those_that_are_listed(lab: Lab, family: int) -> None:
    other = lab.machine("other", "192.0.2.20/24", "2001:db8::20/64")
    pod = lab.pod("a", lab.conf(dual=True, mode="source", sourceMacs=[lab.outside.mac, "02-00-00-00-00-01"]))
    assert source_macs(pod) == sorted([lab.outside.mac, "02:00:00:00:00:01"])
    assert pod.pings(lab.outside, family)
    assert lab.outside.pings(pod, family)
    assert not pod.pings(other, family, wait=0.25)
    assert not other.pings(pod, family, wait=0.25)
    pod.check()


def test_mode_source_hears_all_that_the_listed_ones_send(lab: Lab) -> None:
    pod = lab.pod("a", lab.conf(mode="source", sourceMacs=[lab.outside.mac]))
    with pod.sniff() as seen:
        assert lab.outside.pings(lab.host)
    assert {lab.host.mac} <= {frame.dst for frame in seen.frames if frame.src == lab.outside.mac}


def test_mode_source_without_a_list_hears_nothing(lab: Lab) -> None:
    pod = lab.pod("a", lab.conf(mode="source"))
    assert source_macs(pod) == []
    with pod.sniff() as seen:
        assert not pod.pings(lab.outside, wait=0.25)
        lab.outside.run("ping", "-b", "-c", "1", "-W", "0.25", "192.0.2.255", check=False)
    assert {frame.src for frame in seen.frames} == {pod.mac}
    pod.check()


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("flush", "macaddr set 02:00:00:00:00:01 02:00:00:00:00:02 (it is unset)"),
        ("add 02:00:00:00:00:03", "(it is 02:00:00:00:00:01 02:00:00:00:00:02 02:00:00:00:00:03)"),
        ("del 02:00:00:00:00:01", "(it is 02:00:00:00:00:02)"),
    ],
)
def test_a_list_that_was_changed_is_found(lab: Lab, change: str, differs: str) -> None:
    pod = lab.pod("a", lab.conf(mode="source", sourceMacs=["02:00:00:00:00:02", "02:00:00:00:00:01"]))
    pod.ip("link", "set", "eth0", "type", "macvlan", "macaddr", *change.split())
    with pytest.raises(CniFailed) as failure:
        pod.check()
    assert failure.value.code == 104
    assert differs in failure.value.details


@pytest.mark.without_agent("it keeps the host by itself")
@pytest.mark.parametrize("change", ["flush", "add 02:00:00:00:00:03", "set 02:00:00:00:00:04"])
def test_a_list_that_was_changed_is_mended(lab: Lab, change: str) -> None:
    agent = Agent(lab)
    pod = lab.pod("a", lab.conf(mode="source", sourceMacs=["02:00:00:00:00:01", lab.outside.mac]))
    pod.ip("link", "set", "eth0", "type", "macvlan", "macaddr", *change.split())
    (mended,) = agent.mends(everything=True)
    assert "ip link set eth0 type macvlan macaddr set" in mended
    pod.check()
    assert pod.pings(lab.outside)


@pytest.mark.without_agent("it keeps the host by itself")
@pytest.mark.parametrize(
    "changes", [{"linkType": "macvtap"}, {"mode": "source", "sourceMacs": ["02:00:00:00:00:01"]}], ids=["tap", "source"]
)
def test_links_of_other_kinds_are_made_anew(lab: Lab, changes: dict[str, Any]) -> None:
    agent = Agent(lab)
    pod = lab.pod("a", lab.conf(**changes))
    pod.ip("link", "del", "eth0")
    agent.mends(everything=True)
    pod.check()


@pytest.mark.parametrize(
    "changes", [{"linkType": "macvtap"}, {"mode": "source", "sourceMacs": ["02:00:00:00:00:01"]}], ids=["tap", "source"]
)
def test_a_rebuilt_store_knows_links_of_other_kinds(lab: Lab, changes: dict[str, Any]) -> None:
    pod = lab.pod("a", lab.conf(**changes))
    damaged(lab)
    pod.check()
    pod.delete()
    assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert stored(lab) == []


# --- macvtap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru", "source"])
def test_a_macvtap_is_a_link_with_a_device(lab: Lab, mode: str) -> None:
    before = network(lab.host)
    changes: dict[str, Any] = {"sourceMacs": [lab.outside.mac]} if mode == "source" else {}
    pod = lab.pod("a", lab.conf(linkType="macvtap", mode=mode, **changes))
    link = pod.link("eth0")
    assert (link["linkinfo"]["info_kind"], link["linkinfo"]["info_data"]["mode"]) == ("macvtap", mode)
    assert pod.result["interfaces"][0]["tap"] == link["ifindex"]
    assert taps(pod) == [f"tap{link['ifindex']}"]
    assert pod.pings(lab.outside)
    pod.check()
    pod.delete()
    assert network(lab.host) == before
    assert taps(pod) == []


def taps(pod: Pod) -> list[str]:
    """The devices that sysfs shows when it is mounted in the namespace, as a container's is."""
    words = ("unshare", "--mount", "sh", "-c", "mount -t sysfs sys /sys && ls /sys/class/macvtap")
    return pod.run(*words).stdout.split()


def test_who_reads_the_tap_has_the_pods_frames(lab: Lab) -> None:
    """As a virtual machine would: the frames for the pod's MAC come out of the device, the host's among them."""
    pod = lab.pod("a", lab.conf(linkType="macvtap"))
    with opened(pod) as tap:
        assert not lab.host.pings(pod, wait=0.25)
        frames = [os.read(tap, 2048) for _ in range(len(select.select([tap], [], [], 1)[0]))]
    (shim,) = (link["address"] for link in lab.host.links() if link["ifname"].startswith("shim"))
    header = 10  # struct virtio_net_hdr, include/uapi/linux/virtio_net.h
    macs = [(frame[header : header + 6].hex(":"), frame[header + 6 : header + 12].hex(":")) for frame in frames]
    assert (pod.mac, shim) in macs
    assert lab.host.pings(pod)  # nobody has the device open any more: the pod's own stack answers


@contextmanager
def opened(pod: Pod) -> Iterator[int]:
    """The tap's character device, by a node made for its number: a name in /dev is shared by all namespaces."""
    name = f"tap{pod.result['interfaces'][0]['tap']}"
    words = ("unshare", "--mount", "sh", "-c", f"mount -t sysfs sys /sys && cat /sys/class/macvtap/{name}/dev")
    major, minor = map(int, pod.run(*words).stdout.split(":"))
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/{name}"
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(major, minor))
            tap = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        except PermissionError as error:
            pytest.skip(f"no device may be made or opened here: {error}")
    try:
        yield tap
    finally:
        os.close(tap)


def test_macvtaps_and_macvlans_share_a_parent(lab: Lab) -> None:
    tap, lan = lab.pod("a", lab.conf(linkType="macvtap")), lab.pod("b")
    assert tap.pings(lan)
    assert lab.host.pings(tap)
    assert tap.pings(lab.host)
    tap.ip("link", "del", "eth0")
    with pytest.raises(CniFailed, match="type macvtap") as failure:
        tap.check()
    assert failure.value.code == 104
