"""What the agent remembers of the host is never out of date, also when it has missed an event."""

from __future__ import annotations

from cni.agent.host import Host, Memory
from cni.ctl.lab import Lab
from cni.deletion import in_child


def test_a_change_back_is_seen_though_the_change_itself_was_missed(lab: Lab) -> None:
    memory = lab.host.inside(Memory)
    host = lab.host.inside(lambda: Host(memory, in_child))

    def mtu() -> int:
        parent = host.parent("eth0")
        assert parent
        return parent.mtu

    lab.host.ip_batch("link set eth0 mtu 1450", "link set eth0 mtu 1500")
    assert mtu() == 1500
    lab.host.ip_batch(*(f"link set lo alias {number}" for number in range(3000)), "link set eth0 mtu 1400")
    assert mtu() == 1400
    lab.host.ip("link", "set", "eth0", "mtu", "1500")
    assert mtu() == 1500
