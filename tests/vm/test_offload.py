"""Offload on a NIC whose feature can be switched: what the driver has in its hands, and what shimlan tells of it."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from cni import offload
from cni.agent.backoff import FREE
from cni.agent.watch import Watch
from cni.attachment import Key
from cni.ctl import status
from cni.ctl.lab import CniFailed
from cni.log import Log
from cni.node import Node
from tests.kernel.test_reconcile import Agent
from tests.vm.conftest import Nic, VmLab, wait_until

HEARING_SECONDS = 30.0


@pytest.fixture
def lab(nic: Nic) -> Iterator[VmLab]:
    """The lab with the NIC, as it is at first."""
    assert not nic.offloads
    yield nic.lab
    nic.lab.clear()
    wait_until(nic.is_left_alone)
    nic.switch("off")


def test_the_nic_is_as_good_as_a_veth(lab: VmLab, nic: Nic) -> None:
    """What the other tests of this module rely on."""
    nic.switch("on")
    pod = lab.pod("a", lab.conf(dual=True, offload="off"))
    assert nic.stations == 2  # this driver takes shims as well
    for family in (4, 6):
        assert lab.outside.pings(pod, family)
        assert lab.host.pings(pod, family)


def test_each_pod_gets_a_slot_and_the_shim_none(lab: VmLab, nic: Nic) -> None:
    a, b = lab.pod("a"), lab.pod("b")
    assert nic.offloads
    assert nic.stations == 2
    assert lab.host.pings(a)
    assert a.pings(b)
    assert lab.outside.pings(b)
    a.check()
    a.delete()
    assert nic.stations == 1
    b.delete()
    assert nic.stations == 0
    assert nic.offloads
    again = lab.pod("c")
    assert nic.stations == 1
    assert lab.host.pings(again)


def test_off_leaves_the_nic_as_it_is(lab: VmLab, nic: Nic) -> None:
    lab.pod("a", lab.conf(offload="off"))
    assert not nic.offloads
    assert nic.stations == 0


def test_on_needs_a_nic_that_can(lab: VmLab, nic: Nic) -> None:
    lab.pod("a", lab.conf(offload="on"))
    assert nic.stations == 1
    lab.host.ip("link", "add", "eth1", "type", "bridge")
    lab.host.ip("link", "set", "eth1", "up")
    with pytest.raises(
        CniFailed, match="eth1 cannot forward for pods in hardware: it has no l2-fwd-offload"
    ) as failure:
        lab.pod("b", lab.conf(offload="on", master="eth1", name="other", ipam=None))
    assert failure.value.code == 102
    assert nic.stations == 1


def test_a_nic_that_takes_no_more_children_is_told_of(lab: VmLab, nic: Nic) -> None:
    """This driver has room for all; a child that came up before the feature was on looks as one that it declined."""
    early, late = lab.pod("early", lab.conf(offload="off")), lab.pod("late")
    assert nic.stations == 1
    said = io.StringIO()

    def decline() -> None:
        node = Node(lab.data_dir, Log(said))
        attachment = node.records.find(Key("lan", early.container_id, "eth0"))
        parent = node.host.parent("eth0")
        assert attachment
        assert parent
        with offload.offloading(node, attachment, parent, required=True):
            pass

    lab.host.inside(decline)
    assert "eth0 declines to forward for eth0 in hardware" in said.getvalue()
    told = lab.host.inside(lambda: status.observe(Node(lab.data_dir, Log(said))))
    assert {row["containerID"]: row["forwardedBy"] for row in told["attachments"]} == {
        early.container_id: "software",
        late.container_id: "hardware",
    }
    nic_row = {"name": "eth0", "offload": "on", "before": "off", "hardware": 1, "software": 1, "refused": 1}
    assert told["nics"] == [nic_row]


def test_the_agent_notices_that_the_feature_is_lost_and_switches_it_on(lab: VmLab, nic: Nic) -> None:
    lab.pod("a")
    agent, watch = Agent(lab), lab.host.inside(Watch)
    with watch:
        nic.switch("off")
        heard = watch.wait(HEARING_SECONDS)
    assert heard.host
    assert heard.reasons == ("host: features of link eth0 changed",)
    assert agent.mends(host=True) == ["host: ethtool -K eth0 l2-fwd-offload on"]
    assert nic.offloads
    for _ in range(FREE):
        nic.switch("off")
        last = agent.passes(host=True)
    assert last.backed_off == ("host: ethtool -K eth0 l2-fwd-offload on",)
    assert not nic.offloads


def test_in_the_end_the_nic_is_as_it_was(lab: VmLab, nic: Nic) -> None:
    def restore() -> tuple[str, ...]:
        return lab.host.inside(lambda: offload.restore(Node(lab.data_dir, Log(io.StringIO()))))

    pod = lab.pod("a")
    assert restore() == ()
    assert nic.offloads  # a pod needs it yet
    pod.delete()
    assert restore() == ("ethtool -K eth0 l2-fwd-offload off",)
    assert not nic.offloads
    nic.switch("on")
    lab.pod("b").delete()
    assert restore() == ()
    assert nic.offloads


def test_a_pod_in_hardware_shows_that_it_lives(lab: VmLab, nic: Nic) -> None:
    pod = lab.pod("a")
    assert nic.stations == 1
    index = lab.host.link("eth0")["ifindex"]

    def lives(mac: str) -> bool:
        return lab.host.inside(lambda: offload.has_child(Node(lab.data_dir, Log(io.StringIO())), index, mac))

    assert lives(pod.mac)
    assert not lives("02:42:c0:00:02:fe")
    assert nic.stations == 1
    pod.check()
