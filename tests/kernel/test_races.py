"""The ground moves under ADD and DEL: namespaces, parents and shims that vanish, change or go down meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from cni.attachment import Key
from cni.ctl.lab import CniAnswer, Lab, Pod
from cni.locks import Locks
from tests.kernel.agents import said
from tests.kernel.torture import footprint, inventory, launch, seeded, size

SHIM = {"routes": ["10.96.0.0/12"]}


def answered(answer: CniAnswer) -> bool:
    """Whether the verb succeeded; an error is one of those that say what happened."""
    assert "Traceback" not in answer.stderr
    if answer.ok:
        return True
    assert answer.json["code"] not in (0, 199), answer.stdout
    assert answer.json["msg"]
    return False


def disturbed(lab: Lab, pod: Pod, command: str, chance: random.Random, disturb: Callable[[], None]) -> bool:
    """Start a verb, do something to it at a random instant, and hear what it says."""
    flight = launch(lab, pod, command)
    time.sleep(chance.uniform(0, 0.06))
    disturb()
    return answered(flight.land())


def delete_namespace(lab: Lab, pod: Pod) -> None:
    """The container ends without the runtime's asking for it."""
    lab.host.ip("netns", "del", pod.name)


def new_namespace(lab: Lab, pod: Pod) -> None:
    """What the runtime makes for the container's next life."""
    lab.host.ip("netns", "add", pod.name)
    pod.ip("link", "set", "lo", "up")


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_the_namespace_of_the_pod_goes_away(lab: Lab, command: str) -> None:
    chance = seeded(f"namespace gone during {command}")
    living, pod = lab.pod("living", lab.conf(dual=True, shim=SHIM)), lab.container("pod", lab.conf(dual=True))
    before = inventory(lab, living)
    for _ in range(size(8, 100)):
        if command == "DEL":
            pod.add()
        disturbed(lab, pod, command, chance, lambda: delete_namespace(lab, pod))
        launch(lab, pod, "DEL").land().or_raise()
        assert inventory(lab, living) == before
        new_namespace(lab, pod)
    living.check()


def parent_deleted(lab: Lab) -> None:
    """The NIC is pulled out."""
    lab.host.ip("link", "del", "eth0")


def parent_renamed(lab: Lab) -> None:
    """Somebody renames it; the kernel lets him do so while it is up."""
    lab.host.ip("link", "set", "eth0", "name", "eth7")


def parent_down(lab: Lab) -> None:
    """The NIC is switched off."""
    lab.host.ip("link", "set", "eth0", "down")


def shim_deleted(lab: Lab) -> None:
    """Somebody does not know what it is for."""
    lab.host.run("ip", "link", "del", "shim2", check=False)


def shim_down(lab: Lab) -> None:
    """The same, more cautious."""
    lab.host.run("ip", "link", "set", "shim2", "down", check=False)


def mended(lab: Lab) -> None:
    """A host with its NIC, up and under its name, and its addresses and routes."""
    names = {link["ifname"] for link in lab.host.links()}
    if "eth7" in names:
        lab.host.ip("link", "set", "eth7", "name", "eth0")
    elif "eth0" not in names:
        lab.switch.plug(lab.host)
    lab.host.ip_batch(
        "link set eth0 up",
        "address replace 192.0.2.10/24 dev eth0",
        "address replace 2001:db8::10/64 dev eth0 nodad",
        "route replace default via 192.0.2.1",
        "route replace default via 2001:db8::1",
    )


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("disturb", [parent_deleted, parent_renamed, parent_down, shim_deleted, shim_down])
def test_the_host_changes(lab: Lab, command: str, disturb: Callable[[Lab], None]) -> None:
    """Whatever the verb says: after DEL there is nothing of the pod, and the next ADD works."""
    chance = seeded(f"{disturb.__name__} during {command}")
    pod = lab.container("pod", lab.conf(dual=True, shim=SHIM))
    for _ in range(size(4, 60)):
        if command == "DEL":
            pod.add()
        disturbed(lab, pod, command, chance, lambda: disturb(lab))
        launch(lab, pod, "DEL").land().or_raise()
        assert [link["ifname"] for link in pod.links()] == ["lo"]
        assert [line for line in footprint(lab.host) if "shim" in line] == []
        assert [line for line in inventory(lab) if line.startswith(("lease", "record"))] == []
        mended(lab)
    pod.add()
    pod.check()
    assert lab.host.pings(pod)


def test_a_shim_made_anew_serves_those_who_were_there_before(lab: Lab) -> None:
    living, pod = lab.pod("living", lab.conf(dual=True)), lab.container("pod", lab.conf(dual=True))
    lab.host.ip("link", "del", "shim2")
    assert not lab.host.pings(living, wait=0.2)
    pod.add()
    for one in (living, pod):
        one.check()
        assert lab.host.pings(one)
        assert lab.host.pings(one, 6)


def test_a_pod_that_cannot_be_served_any_more_keeps_nobody_else_out(lab: Lab) -> None:
    """Its route names an address as source that the host has no more."""
    lab.pod("living")
    lab.host.ip_batch("link del shim2", "address del 192.0.2.10/24 dev eth0", "address add 192.0.2.11/24 dev eth0")
    answer = launch(lab, pod := lab.container("pod"), "ADD").land().or_raise()
    assert "out of reach" in said(lab, answer)
    pod.address = answer.json["ips"][0]["address"].partition("/")[0]
    assert lab.host.pings(pod)


def test_a_shim_made_anew_gets_no_entries_of_a_pod_that_is_leaving(lab: Lab) -> None:
    """Its DEL has removed them and forgets it next: nobody else would remove them again."""
    leaving = lab.pod("leaving")
    key = Key("lan", leaving.container_id, "eth0")
    lab.host.ip("link", "del", "shim2")
    with Locks(lab.data_dir).attachment(key):
        lab.pod("pod")
    assert not any(leaving.address in line for line in footprint(lab.host))
    leaving.delete()
