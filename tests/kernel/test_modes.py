"""The modes of macvlan: who reaches whom, with a plain switch and with one that sends frames back (VEPA)."""

from __future__ import annotations

from typing import Any

import pytest

from cni.ctl.lab import CniFailed, Lab
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


@pytest.mark.parametrize("mode", ["private", "vepa", "passthru"])
def test_by_default_other_modes_go_without_a_shim(lab: Lab, mode: str) -> None:
    pod = lab.pod("a", lab.conf(dual=True, mode=mode))
    assert [entry["name"] for entry in pod.result["interfaces"]] == ["eth0"]
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0"]
    pod.check()
    pod.delete()


@pytest.mark.parametrize("mode", ["private", "vepa", "passthru"])
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
