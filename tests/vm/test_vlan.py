"""VLAN parents: made with the first pod, shared by networks, removed with the last; frames carry the right tags."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from cni.ctl.frames import ETH_P_ALL
from cni.ctl.lab import CniFailed, Lab, Pod
from cni.vlan import name_for
from tests.kernel import torture
from tests.kernel.test_crash import RECOVERIES, Site, kill_at_each_step
from tests.kernel.test_rebuild import garbage, store
from tests.kernel.test_reconcile import Agent
from tests.kernel.test_shim import shims
from tests.kernel.traces import network, records, stored

pytestmark = pytest.mark.needs_links("vlan")
without_agent = pytest.mark.without_agent("it takes part by itself")

SUBNETS = {100: "198.51.100", 200: "203.0.113"}  # documentation prefixes: RFC 5737


def conf(lab: Lab, vlan: int, name: str = "", first: int = 100, **changes: Any) -> dict[str, Any]:
    """A network in a VLAN whose addresses begin at .100, or elsewhere; the outside is its gateway."""
    subnet = SUBNETS[vlan]
    addresses = {"subnet": f"{subnet}.0/24", "rangeStart": f"{subnet}.{first}", "rangeEnd": f"{subnet}.{first + 9}"}
    ipam = {"ranges": [[{**addresses, "gateway": f"{subnet}.1"}]], **changes.pop("ipam", {})}
    return lab.conf(name=name or f"vlan{vlan}", vlan=vlan, ipam=ipam, **changes)


@pytest.fixture(autouse=True)
def _outside(lab: Lab) -> None:
    """The machine outside is in both VLANs."""
    for vlan, subnet in SUBNETS.items():
        lab.outside.ip_batch(
            f"link add link eth0 name eth0.{vlan} type vlan id {vlan}",
            f"link set eth0.{vlan} up",
            f"address add {subnet}.1/24 dev eth0.{vlan}",
        )


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated machine that has to share its processors may take long for a verb."""
    monkeypatch.setattr(torture, "HANG_SECONDS", 60.0)


def devices(lab: Lab) -> list[str]:
    """The VLAN devices of the host."""
    return [link["ifname"] for link in lab.host.links() if link.get("linkinfo", {}).get("info_kind") == "vlan"]


# --- what it is for --------------------------------------------------------------------------------------------------


def test_pods_talk_inside_a_vlan_and_not_across(lab: Lab) -> None:
    before = network(lab.host)
    a = lab.pod("a", conf(lab, 100, "one"))
    b = lab.pod("b", conf(lab, 100, "two", first=120))
    c = lab.pod("c", conf(lab, 200))
    # One that could reach the others if only it were in their VLAN.
    stranger = lab.pod("d", conf(lab, 200, "three", ipam={"ranges": [[{"subnet": "198.51.100.0/24"}]], "routes": []}))
    assert devices(lab) == ["eth0.100", "eth0.200"]
    assert a.pings(b)
    assert all(pod.pings(f"{SUBNETS[vlan]}.1") for pod, vlan in ((a, 100), (b, 100), (c, 200)))
    assert not stranger.pings(a, wait=0.5)
    assert not a.pings(stranger, wait=0.5)
    for pod in (a, b, c, stranger):
        assert lab.host.pings(pod)
        assert pod.pings(lab.host)
        pod.check()
    for pod in (a, c, stranger):
        pod.delete()
    assert devices(lab) == ["eth0.100"]
    assert b.pings("198.51.100.1")
    b.delete()
    assert network(lab.host) == before
    assert stored(lab) == []


def test_frames_on_the_wire_are_tagged(lab: Lab) -> None:
    pods = {vlan: lab.pod(f"pod{vlan}", conf(lab, vlan)) for vlan in SUBNETS}
    with tags_seen(lab) as seen:
        for vlan, pod in pods.items():
            assert pod.pings(f"{SUBNETS[vlan]}.1")
            assert pod.pings(lab.host)
            assert lab.host.pings(pod)
    for vlan, pod in pods.items():
        assert seen[pod.mac] == {vlan}
    assert not {link["address"] for link in lab.host.links() if link["ifname"] in shims(lab)} & seen.keys()


@contextmanager
def tags_seen(lab: Lab) -> Iterator[dict[str, set[int]]]:
    """The VLAN IDs, 0 for none, of what the host puts on the wire, by source MAC; complete when the block is left.

    The kernel has taken the tag out of the frame by then, and tells it beside (PACKET_AUXDATA, packet(7)).
    """
    seen: dict[str, set[int]] = {}
    with lab.switch.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))) as tap:
        tap.bind(("host", ETH_P_ALL))
        tap.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
        yield seen
        while select.select([tap], [], [], 0.5)[0]:
            frame, beside, _, (_, _, kind, _, _) = tap.recvmsg(2048, 256)
            status, *_, tag, _ = struct.unpack_from("=IIIHHHH", beside[0][2])
            if kind != socket.PACKET_OUTGOING:  # by the switch, that is
                seen.setdefault(frame[6:12].hex(":"), set()).add(tag & 0xFFF if status & 0x10 else 0)


def test_the_device_is_for_the_pods_alone(lab: Lab) -> None:
    pod = lab.pod("a", conf(lab, 100, dual=True))
    device = lab.host.link("eth0.100")
    assert device["linkinfo"]["info_data"]["id"] == 100
    assert (device["link"], device["mtu"], device["ifalias"]) == ("eth0", 1500, "shimlan vlan of eth0")
    assert {"UP", "NOARP"} <= set(device["flags"])
    assert "MULTICAST" not in device["flags"]
    # Who is in the VLAN does not find the host there.
    lab.outside.ip("route", "add", f"{lab.host.address}/32", "dev", "eth0.100", "src", "198.51.100.1")
    assert not lab.outside.pings(lab.host, source="eth0.100", wait=0.5)
    assert lab.host.ip_json("address", "show", "dev", "eth0.100")[0]["addr_info"] == []
    assert pod.pings(lab.host)


@pytest.mark.parametrize("mode", ["private", "vepa", "passthru", "source"])
def test_other_modes_use_it_as_well(lab: Lab, mode: str) -> None:
    (outside,) = (link["address"] for link in lab.outside.links() if link["ifname"] == "eth0.100")
    changes: dict[str, Any] = {"sourceMacs": [outside]} if mode == "source" else {}
    pod = lab.pod("a", conf(lab, 100, mode=mode, **changes))
    assert pod.pings("198.51.100.1")
    pod.check()
    pod.delete()
    assert devices(lab) == []


def test_the_mtu_is_that_of_the_master(lab: Lab) -> None:
    lab.host.ip("link", "set", "eth0", "mtu", "1450")
    small, large = lab.pod("a", conf(lab, 100, mtu=1300)), lab.pod("b", conf(lab, 100))
    assert [pod.link("eth0")["mtu"] for pod in (small, large)] == [1300, 1450]
    with pytest.raises(CniFailed, match="mtu: 1451 is above the 1450 of eth0"):
        lab.pod("c", conf(lab, 100, mtu=1451))


def test_a_lowered_mtu_of_the_master_is_no_difference_but_one_of_the_device_is(lab: Lab) -> None:
    pod = lab.pod("a", conf(lab, 100))
    lab.host.ip("link", "set", "eth0", "mtu", "1400")
    pod.check()
    lab.host.ip("link", "set", "eth0.100", "mtu", "1300")
    with pytest.raises(CniFailed) as failure:
        pod.check()
    assert failure.value.code == 104
    assert "host: ip link set eth0.100 mtu 1400 (it is 1300)" in failure.value.details


def test_a_long_name_is_shortened(lab: Lab) -> None:
    lab.host.ip_batch("link set eth0 down", "link set eth0 name enp129s0f0np1", "link set enp129s0f0np1 up")
    pod = lab.pod("a", conf(lab, 100, master="enp129s0f0np1"))
    assert devices(lab) == [name_for("enp129s0f0np1", 100)]
    assert pod.pings("198.51.100.1")
    pod.delete()
    assert devices(lab) == []


# --- devices of others -----------------------------------------------------------------------------------------------


def test_a_device_that_is_there_is_used_and_stays(lab: Lab) -> None:
    lab.host.ip_batch(
        "link add link eth0 name eth0.100 type vlan id 100",
        "link set eth0.100 up",
        "address add 198.51.100.10/24 dev eth0.100",
    )
    before = network(lab.host)
    pod = lab.pod("a", conf(lab, 100))
    assert pod.pings("198.51.100.10")
    assert pod.pings("198.51.100.1")
    pod.check()
    pod.delete()
    assert network(lab.host) == before


REFUSED: dict[str, tuple[list[str], str]] = {
    "another VLAN": (
        ["link add link eth0 name eth0.100 type vlan id 7"],
        "eth0.100 exists and is not VLAN 100 of eth0: rename or remove it",
    ),
    "another kind": (
        ["link add eth0.100 type bridge"],
        "eth0.100 exists and is not VLAN 100 of eth0: rename or remove it",
    ),
    "another name": (
        ["link add link eth0 name blue type vlan id 100"],
        'eth0 has VLAN 100 already, under another name .* set "master" to that, and leave out "vlan"',
    ),
    "device down": (["link add link eth0 name eth0.100 type vlan id 100"], "eth0.100 is down: run"),
    "master down": (["link set eth0 down"], "eth0 is down: run `ip link set eth0 up` and have it set up at boot"),
    "master is a port": (
        ["link add br7 type bridge", "link set eth0 master br7"],
        'eth0 is a port of bridge br7: set "master": "br7"',
    ),
    "device is a port": (
        [
            "link add br7 type bridge",
            "link add link eth0 name eth0.100 type vlan id 100",
            "link set eth0.100 master br7 up",
        ],
        'eth0.100 is a port of bridge br7: set "master": "br7" and leave out "vlan"',
    ),
    "master is gone": (["link set eth0 down", "link set eth0 name other"], "there is no link eth0"),
}


@pytest.mark.parametrize(("commands", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_in_words_and_leaves_nothing(lab: Lab, commands: list[str], words: str) -> None:
    lab.host.ip_batch(*commands)
    before = [link["ifname"] for link in lab.host.links()]
    with pytest.raises(CniFailed, match=words) as failure:
        lab.pod("a", conf(lab, 100))
    assert failure.value.code == 102
    assert [link["ifname"] for link in lab.host.links()] == before
    assert stored(lab) == []
    if "already" not in words:  # which only an attempt shows
        answer = lab.cni("STATUS", conf(lab, 100))
        assert answer.json["code"] == 50


def test_status_is_silent_before_there_is_a_device(lab: Lab) -> None:
    assert lab.cni("STATUS", conf(lab, 100)).ok
    assert devices(lab) == []


def test_a_failed_add_takes_the_device_back(lab: Lab) -> None:
    before = network(lab.host)
    with pytest.raises(CniFailed, match="gateway"):
        lab.pod("a", conf(lab, 100, ipam={"routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.250"}]}))
    assert network(lab.host) == before
    assert stored(lab) == []


# --- coming and going ------------------------------------------------------------------------------------------------


@without_agent
@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_kill_at_each_step_leaves_nothing(lab: Lab, command: str, neighbours: int) -> None:
    kill_at_each_step(Site(lab, neighbours, vlan=100), command)


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_whoever_comes_next_clears_it(lab: Lab, recovery: str) -> None:
    """As ADD leaves it that is killed right before it makes the link, and right after it has made the device."""
    site = Site(lab, 0, vlan=100)
    site.victim.add()
    site.victim.ip("link", "del", "eth0")
    RECOVERIES[recovery](site)
    site.check_clean(recovery)


def test_the_last_pod_may_leave_while_the_next_one_arrives(lab: Lab) -> None:
    here = lab.pod("a", conf(lab, 100))
    there = lab.container("b", conf(lab, 100))
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            for done in (pool.submit(here.delete), pool.submit(there.add)):
                done.result()
            there.check()
            assert there.pings("198.51.100.1")
            here, there = there, here
    here.delete()
    assert devices(lab) == []


def test_pods_whose_namespaces_went_take_it_with_them(lab: Lab) -> None:
    pods = [lab.pod(name, conf(lab, 100)) for name in "ab"]
    for pod in pods:
        lab.host.run("ip", "netns", "del", pod.name)
    for pod in pods:
        pod.delete()
    assert devices(lab) == []


def test_another_data_directory_may_use_it(lab: Lab) -> None:
    here = lab.pod("a", conf(lab, 100))
    there = lab.pod("b", conf(lab, 100, "two", first=120, dataDir=f"{lab.data_dir}/other"))
    here.delete()
    assert there.pings("198.51.100.1")
    there.delete()
    assert devices(lab) == []


@without_agent
def test_a_rebuilt_store_knows_the_device(lab: Lab) -> None:
    before = network(lab.host)
    pods = [lab.pod(name, conf(lab, 100)) for name in "ab"]
    known = [each.vlan for each in records(lab)]
    garbage(store(lab))
    pods[0].check()
    assert [each.vlan for each in records(lab)] == known
    for pod in pods:
        pod.delete()
    assert network(lab.host) == before


# --- what the agent mends --------------------------------------------------------------------------------------------

Undoing = Callable[[Lab], object]
UNDONE: dict[str, Undoing] = {
    "it is removed": lambda lab: lab.host.ip("link", "del", "eth0.100"),
    "it is set down": lambda lab: lab.host.ip("link", "set", "eth0.100", "down"),
    "it may answer": lambda lab: lab.host.ip("link", "set", "eth0.100", "arp", "on"),
    "it has another MTU": lambda lab: lab.host.ip("link", "set", "eth0.100", "mtu", "1280"),
    "the master's MTU was lowered": lambda lab: lab.host.ip_batch("link set eth0 mtu 1400", "link set eth0 mtu 1500"),
    "the master was down": lambda lab: lab.host.ip_batch(
        "link set eth0 down", "link set eth0 up", f"route add default via {lab.outside.address}"
    ),
}


@without_agent
@pytest.mark.parametrize("undo", UNDONE.values(), ids=UNDONE)
def test_the_agent_puts_it_right(lab: Lab, undo: Undoing) -> None:
    agent = Agent(lab)
    pods = [lab.pod(name, conf(lab, 100)) for name in "ab"]
    assert agent.finds_nothing()
    undo(lab)
    agent.mends(everything=True)
    well(lab, *pods)
    for pod in pods:
        pod.delete()
    assert devices(lab) == []


@without_agent
def test_the_agent_waits_for_the_master(lab: Lab) -> None:
    agent = Agent(lab)
    pod = lab.pod("a", conf(lab, 100))
    lab.host.ip("link", "del", "eth0")
    waiting = agent.passes(everything=True)
    assert (waiting.errors, waiting.repairs) == ((), ())
    assert any("eth0 is not there" in reason for reason in waiting.waiting)
    lab.switch.plug(lab.host)
    lab.host.ip_batch(
        "link set eth0 up",
        f"address add {lab.host.address}/24 dev eth0",
        f"route add default via {lab.outside.address}",
    )
    agent.mends(everything=True)
    well(lab, pod)


@without_agent
def test_the_agent_leaves_devices_of_others_alone(lab: Lab) -> None:
    lab.host.ip_batch("link add link eth0 name eth0.100 type vlan id 100", "link set eth0.100 up")
    agent = Agent(lab)
    lab.pod("a", conf(lab, 100))
    lab.host.ip("link", "set", "eth0.100", "mtu", "1400")
    agent.passes(everything=True)
    assert lab.host.link("eth0.100")["mtu"] == 1400
    lab.host.ip("link", "del", "eth0.100")
    agent.passes(everything=True)
    assert devices(lab) == []


@without_agent
def test_the_agent_puts_no_pod_into_another_vlan(lab: Lab) -> None:
    agent = Agent(lab)
    pod = lab.pod("a", conf(lab, 100))
    lab.host.ip_batch("link del eth0.100", "link add link eth0 name eth0.100 type vlan id 200", "link set eth0.100 up")
    done = agent.passes(everything=True)
    assert (done.errors, done.repairs) == ((), ())
    assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert any("eth0.100 is not there" in reason for reason in done.waiting)


def well(lab: Lab, *pods: Pod) -> None:
    """Each pod is as recorded, and reaches its gateway and its host."""
    for pod in pods:
        pod.check()
        assert pod.pings("198.51.100.1")
        assert lab.host.pings(pod)
        assert pod.pings(lab.host)
