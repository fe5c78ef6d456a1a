"""From macvlan and host-local to shimlan and shimlan-ipam, while pods of the reference plugins are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cni.ctl.lab import Lab, Pod
from cni.ctl.runtime import PLUGIN_DIRECTORIES

pytestmark = pytest.mark.skipif(
    not any(os.path.exists(f"{directory}/macvlan") for directory in PLUGIN_DIRECTORIES),
    reason="the reference plugins are not installed (Debian: containernetworking-plugins)",
)


@pytest.fixture
def old(lab: Lab) -> Pod:
    """A pod of the reference plugins, whose network has become one of ours since."""
    pod = lab.pod("old", lab.reference_conf())
    pod.conf = lab.conf()
    return pod


def leases_of_host_local(lab: Lab) -> list[str]:
    return sorted(path.name for path in Path(lab.data_dir, "lan").iterdir() if path.name[0].isdigit())


def test_its_address_is_not_given_to_another(lab: Lab, old: Pod) -> None:
    assert old.address == "192.0.2.100"
    new = lab.pod("new")
    assert new.address == "192.0.2.101"
    assert new.pings(old)
    assert lab.host.pings(new)


def test_it_stays_as_it_was(lab: Lab, old: Pod) -> None:
    lab.pod("new")
    assert lab.outside.pings(old)
    assert not lab.host.pings(old, wait=0.3)


def test_our_del_takes_it_away(lab: Lab, old: Pod) -> None:
    assert leases_of_host_local(lab) == ["192.0.2.100"]
    old.delete()
    assert [link["ifname"] for link in old.links()] == ["lo"]
    assert leases_of_host_local(lab) == []


def test_made_anew_it_is_reached_by_its_host(lab: Lab, old: Pod) -> None:
    old.delete()
    old.add()
    assert lab.host.pings(old)
    old.check()
