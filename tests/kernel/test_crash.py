"""SIGKILL at any instant of ADD and DEL: whoever comes next clears all of it, and the neighbours notice nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from cni import plugin
from cni.ctl.lab import Lab
from cni.ctl.runtime import PLUGIN_DIRECTORIES
from tests.kernel import traces
from tests.kernel.agents import interrupted
from tests.kernel.marks import needs_reference_plugins
from tests.kernel.torture import duration, forked, inventory, killed, launch, seeded, size

SHIM = {"routes": ["10.96.0.0/12", "fd00:96::/108"]}


class Site:
    """A host with a victim, and perhaps with pods that live on while the victim's ADDs and DELs are killed."""

    def __init__(self, lab: Lab, neighbours: int, **changes: Any) -> None:
        self.lab = lab
        conf = lab.conf(**{"dual": True, "shim": SHIM, "ipam": {"cooldownSeconds": 0}, **changes})
        self.neighbours = [lab.pod(f"neighbour{number}", conf) for number in range(neighbours)]
        self.victim = lab.container("victim", conf)
        self.before = self.inventory()

    def inventory(self) -> list[str]:
        """Everything there is."""
        return inventory(self.lab, self.victim, *self.neighbours)

    def check_clean(self, story: str) -> None:
        """The victim is gone without a trace, and the neighbours are as they were."""
        now = self.inventory()
        more, less = sorted(set(now) - set(self.before)), sorted(set(self.before) - set(now))
        assert (more, less) == ([], []), story

    def check_neighbours(self) -> None:
        """The runtime finds them in order."""
        for pod in self.neighbours:
            pod.check()
            assert self.lab.host.pings(pod)

    def call(self, command: str, **changes: Any) -> dict[str, Any]:
        """A verb of the victim that has to succeed; its answer."""
        return launch(self.lab, self.victim, command, **changes).land().or_raise().json

    def let_it_end(self) -> None:
        """Wait for a verb whose caller was killed: with its process it has ended, but an agent finishes it."""
        with interrupted(self.lab):
            pass

    def valid(self) -> list[dict[str, str]]:
        """GC's list of those that live."""
        return [{"containerID": pod.container_id, "ifname": pod.dev} for pod in self.neighbours]


def by_del(site: Site) -> None:
    """The runtime removes the container, as after every failed ADD."""
    site.call("DEL")


def by_del_knowing_nothing(site: Site) -> None:
    """The runtime calls DEL as containerd does the second time: no namespace, no prevResult."""
    known, site.victim.variables = site.victim.variables, {**site.victim.variables, "CNI_NETNS": ""}
    site.victim.result = {}
    site.call("DEL")
    site.victim.variables = known


def by_add(site: Site) -> None:
    """The runtime tries again; what it gets is whole, and the only one of its kind."""
    site.victim.add()
    site.victim.check()
    assert [link["ifname"] for link in site.victim.links()] == ["lo", "eth0"]
    leases = [line.split()[1] for line in site.inventory() if line.startswith("lease:") and "victim" in line]
    assert leases == [site.victim.address, site.victim.address6]
    site.call("DEL")


def by_gc(site: Site) -> None:
    """The runtime lists who lives."""
    site.let_it_end()
    site.call("GC", **{"cni.dev/valid-attachments": site.valid()})
    site.victim.result = {}


def by_operator(site: Site) -> None:
    """The container went away without a DEL, and the operator cleans up."""
    site.let_it_end()
    site.lab.host.run("ip", "netns", "del", site.victim.name)
    ctl = Path(sys.executable).with_name("shimlanctl")
    site.lab.host.run(str(ctl), "gc", "--state-dir", site.lab.data_dir)
    site.lab.host.run("ip", "netns", "add", site.victim.name)
    site.victim.ip("link", "set", "lo", "up")


RECOVERIES = {
    "DEL": by_del,
    "blind-DEL": by_del_knowing_nothing,
    "ADD": by_add,
    "GC": by_gc,
    "shimlanctl-gc": by_operator,
}


@pytest.fixture(params=[0, 2], ids=["alone", "with-neighbours"])
def site(lab: Lab, request: pytest.FixtureRequest) -> Site:
    """The site."""
    return Site(lab, request.param)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("recovery", RECOVERIES)
def test_a_kill_at_any_instant_leaves_nothing(site: Site, command: str, recovery: str) -> None:
    """300 kills in the full size."""
    chance = seeded(f"kill {command}, then {recovery}")
    longest = duration(site.lab, site.victim, command)
    kills = 0
    while kills < size(3, 15):
        if command == "DEL":
            site.victim.add()
        instant, group = chance.uniform(0, longest), chance.random() < 0.7
        kills += killed(site.lab, site.victim, command, instant, group)
        RECOVERIES[recovery](site)
        site.check_clean(f"kill {kills} after {instant * 1000:.1f} ms")
        site.victim.result = {}
    site.check_neighbours()


# --- one kill at every step ------------------------------------------------------------------------------------------

# Functions in C through which everything happens that outlives a process: files, locks, netlink, SQLite, children.
DOORS = frozenset({"open", "mkdir", "write", "fcntl", "flock", "send", "execute", "fork"})


class Step:
    """A profile function (sys.setprofile) that ends the process at the n-th passage through a door."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.passed = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Count a call from Python into C."""
        if event == "c_call" and getattr(argument, "__name__", "") in DOORS:
            self.passed += 1
            if self.passed == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def in_process(site: Site, command: str, profile: Step | None = None) -> Callable[[], None]:
    """The plugin's main function as an action for a child process; fails it when the verb fails."""
    pod = site.victim
    environ = {**pod.variables, "CNI_COMMAND": command, "CNI_PATH": ":".join(PLUGIN_DIRECTORIES)}

    def action() -> None:
        sys.setprofile(profile)
        answer = io.StringIO()
        status = plugin.main(environ, io.BytesIO(json.dumps(pod.conf).encode()), answer, io.StringIO())
        sys.setprofile(None)
        if status:
            raise AssertionError(answer.getvalue())

    return action


@pytest.mark.without_agent("the process that a call is gets killed")
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_kill_at_each_step_leaves_nothing(site: Site, command: str) -> None:
    kill_at_each_step(site, command)


@pytest.mark.without_agent("the process that a call is gets killed")
@pytest.mark.parametrize(
    "changes",
    [{"linkType": "macvtap"}, {"mode": "source", "sourceMacs": ["02:00:00:00:00:01"], "shim": None}],
    ids=["macvtap", "source"],
)
def test_a_kill_leaves_nothing_of_other_kinds_of_links(lab: Lab, changes: dict[str, Any]) -> None:
    kill_at_each_step(Site(lab, 0, **changes), "ADD")


def kill_at_each_step(site: Site, command: str) -> None:
    """Kill a verb at every step in the full size, else at every third from a random one on."""
    stride = size(3, 1)
    step = seeded(f"steps of {command}").randint(1, stride)
    under_way = True
    while under_way:
        if command == "DEL":
            assert forked(site.lab.host, in_process(site, "ADD")) == 0
        # The child that waits for a deletion counts on by itself; where it dies alone, the verb does its work for it.
        under_way = forked(site.lab.host, in_process(site, command, Step(step))) != 0
        assert unleased(site) == []
        assert forked(site.lab.host, in_process(site, "DEL")) == 0
        site.check_clean(f"kill at step {step}")
        step += stride
    assert step > 20
    site.check_neighbours()


@pytest.mark.without_agent("the process that a call is gets killed")
@needs_reference_plugins
def test_a_kill_at_each_step_of_a_delegates_del_leaves_no_record_to_be_mended(lab: Lab) -> None:
    site = Site(lab, 0)
    leases = Path(lab.data_dir, "leases")
    ipam = {"type": "host-local", "subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "dataDir": str(leases)}
    site.victim.conf = {**lab.conf(shim=SHIM), "ipam": ipam}
    stride = size(3, 1)
    step = seeded("steps of DEL with a delegate").randint(1, stride)
    under_way = True
    while under_way:
        assert forked(lab.host, in_process(site, "ADD")) == 0
        under_way = forked(lab.host, in_process(site, "DEL", Step(step))) != 0
        if not list(leases.glob("*/192.*")):
            assert [attachment for attachment in traces.records(lab) if not attachment.leaving] == []
        assert forked(lab.host, in_process(site, "DEL")) == 0
        site.check_clean(f"kill at step {step}")
        step += stride
    assert step > 20


def unleased(site: Site) -> list[str]:
    """Attachments that an agent would mend, with addresses that others may get."""
    leased = {(lease.container_id, str(lease.address)) for lease in traces.held(site.lab)}
    mended = [attachment for attachment in traces.records(site.lab) if not attachment.leaving]
    told = {(attachment.key.container_id, str(ip)) for attachment in mended for ip in attachment.ips}
    return [f"{container_id} {ip}" for container_id, ip in sorted(told - leased)]
