"""What becomes of pods of the reference plugins when their network is switched to shimlan."""

from __future__ import annotations

import pytest

from cni.ctl.lab import Lab, Pod
from tests.kernel.marks import needs_reference_plugins

pytestmark = needs_reference_plugins


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
