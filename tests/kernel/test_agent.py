"""The agent and its client in the place of the in-process plugin."""

from __future__ import annotations

from pathlib import Path

from cni.ctl.lab import Lab
from tests.kernel.agents import Agent


def test_a_pod_lives_by_the_agent(lab: Lab, client: Path) -> None:
    with Agent(lab, client):
        pod = lab.pod("pod", lab.conf(dual=True))
        assert pod.pings(lab.outside)
        assert lab.host.pings(pod)
        pod.check()
        pod.delete()
        assert [link["ifname"] for link in pod.links()] == ["lo"]
