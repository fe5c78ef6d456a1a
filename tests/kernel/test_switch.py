"""What becomes of pods of the reference plugins when their network is switched to shimlan."""

from __future__ import annotations

import os

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


def test_it_stays_as_it_was(lab: Lab, old: Pod) -> None:
    lab.pod("new")
    assert lab.outside.pings(old)
    assert not lab.host.pings(old, wait=0.3)


def test_made_anew_it_is_reached_by_its_host(lab: Lab, old: Pod) -> None:
    old.delete()
    old.add()
    assert lab.host.pings(old)
    old.check()
