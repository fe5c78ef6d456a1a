"""doctor on bad hosts that take a kernel with bonds and wireless NICs; the others: tests/kernel/test_doctor.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from cni.ctl.lab import Lab
from tests.kernel.test_doctor import Doctor
from tests.vm.conftest import OF_MACHINE, Nic


@pytest.fixture
def doctor(lab: Lab, tmp_path: Path) -> Doctor:
    return Doctor(lab, tmp_path)


def test_a_good_host(doctor: Doctor) -> None:
    assert doctor.troubles() == []
    assert doctor.evidence("kernel.vlan", "--no-probe") == "is there"


@pytest.mark.needs_links("bond")
def test_a_port_of_a_bond(lab: Lab, doctor: Doctor) -> None:
    lab.host.ip_batch(
        "link add bond0 type bond mode active-backup",
        "link set eth0 down",
        "link set eth0 master bond0",
        "link set bond0 up",
        "address add 192.0.2.10/24 dev bond0",
        "route add default via 192.0.2.1",
    )
    assert doctor.trouble() == ("parent.port", "failure", "eth0 is a port of bond bond0", 'set "master": "bond0"')
    doctor.asked_about(master="bond0")
    assert doctor.troubles() == []


@pytest.mark.needs_links("ipvlan")
def test_a_parent_of_an_ipvlan(lab: Lab, doctor: Doctor) -> None:
    lab.host.ip("link", "add", "other", "link", "eth0", "type", "ipvlan")
    id, level, evidence, _ = doctor.trouble()
    assert (id, level) == ("parent.child", "failure")
    assert evidence == "eth0 is used by a bridge, bond, Open vSwitch or ipvlan"


def test_a_wireless_nic(doctor: Doctor) -> None:
    """Of the machine itself: another namespace's it is only by the tools of wireless networks."""
    if subprocess.run(["modprobe", "mac80211_hwsim", "radios=1"], capture_output=True, check=False).returncode:
        pytest.skip("the kernel of this machine simulates no wireless NICs (mac80211_hwsim)")
    doctor.write(doctor.conf)
    command = [*OF_MACHINE, *doctor.command("-o", "json", "--master", "wlan0")]
    try:
        report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    finally:
        subprocess.run(["modprobe", "--remove", "mac80211_hwsim"], check=True)
    (finding,) = [finding for finding in report["findings"] if finding["level"] != "ok"]
    assert (finding["id"], finding["level"]) == ("parent", "failure")
    assert finding["evidence"] == "wlan0 is wireless, where a station has one MAC"
    assert finding["remedy"].startswith("use a wired NIC, ipvlan or routing")


def test_a_nic_that_forwards_in_hardware(nic: Nic, tmp_path: Path) -> None:
    doctor = Doctor(nic.lab, tmp_path)
    before = nic.lab.pod("a", doctor.conf | {"offload": "off"})
    assert doctor.troubles() == []
    assert doctor.evidence("offload", "--no-probe") == "eth0 has l2-fwd-offload off, until the next ADD"
    pod = nic.lab.pod("b", doctor.conf)
    assert doctor.evidence("offload").startswith("eth0 has l2-fwd-offload on; 1 pod(s) are in software")
    assert nic.stations == 1
    before.delete()
    pod.delete()
    assert nic.stations == 0
    nic.lab.clear()
