"""Offload where no NIC can do it, as on most hosts. Those that can are in tests/vm."""

from __future__ import annotations

import io

import pytest

from cni.ctl.lab import CniFailed, Lab
from cni.kernel import Namespace
from cni.log import Log
from cni.node import Node
from tests.kernel.traces import network, stored

REASON = "eth0 cannot forward for pods in hardware: it has no l2-fwd-offload"


def node(lab: Lab) -> Node:
    return lab.host.inside(lambda: Node(lab.data_dir, Log(io.StringIO())))


@pytest.mark.parametrize("asked", ["auto", "off"])
def test_a_link_of_software_is_not_asked(lab: Lab, asked: str) -> None:
    pod = lab.pod("a", lab.conf(offload=asked))
    assert not node(lab).nics.is_fixed(lab.host.link("eth0")["ifindex"], "eth0")
    assert node(lab).nics.switchable() == []
    pod.check()


@pytest.mark.parametrize("ipam", [{}, {"type": "host-local"}])
def test_on_is_refused_with_the_reason_and_leaves_nothing(lab: Lab, ipam: dict[str, str]) -> None:
    before = network(lab.host)
    with pytest.raises(CniFailed, match=REASON) as failure:
        lab.pod("a", lab.conf(offload="on", ipam=ipam))
    assert failure.value.code == 102
    assert network(lab.host) == before
    assert stored(lab) == []


def test_status_says_that_on_cannot_be(lab: Lab) -> None:
    answer = lab.cni("STATUS", lab.conf(cniVersion="1.1.0", offload="on"))
    assert answer.json["code"] == 50
    assert REASON in answer.json["msg"]
    assert lab.cni("STATUS", lab.conf(cniVersion="1.1.0")).ok


def test_a_child_is_found_by_its_mac_alone(lab: Lab) -> None:
    pod = lab.pod("a")
    before = network(lab.host)
    index = lab.host.link("eth0")["ifindex"]

    def is_taken(mac: str) -> bool:
        return lab.host.inside(lambda: Namespace().is_taken(index, mac))

    with lab.switch.sniff_port(lab.host) as seen:
        assert is_taken(pod.mac)
        assert not is_taken("02:42:c0:00:02:fe")
    assert [frame for frame in seen.frames if frame.src == "02:42:c0:00:02:fe"] == []
    assert network(lab.host) == before
    pod.check()
