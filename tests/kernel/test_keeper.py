"""The agent's keeper among requests: whose pods it listens to, what it holds on to, and what does not stop it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.lab import Lab, Pod
from cni.database import Database, boot_id
from cni.frozen import replace
from cni.state import Records
from tests.kernel.agents import SHIMLANCTL, Agent
from tests.kernel.traces import held, records

pytestmark = pytest.mark.without_agent("it has one of its own")

LIMIT_SECONDS = 2.0
REST_SECONDS = 1.0  # after which a pass that was due is done
SHORT_GRACE = "graceSeconds: 1\nresyncSeconds: 1\n"


@pytest.fixture
def agent(lab: Lab, client: Path) -> Iterator[Agent]:
    with Agent(lab, client) as agent:
        yield agent


def soon(question: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> bool:
    """Whether the answer becomes yes in some seconds."""
    until = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < until:
        time.sleep(0.02)
    return answer


def is_mended(pod: Pod, dev: str = "eth0") -> bool:
    """Whether a pod gets back the address that somebody takes from it."""
    (address,) = pod.addresses(dev)
    pod.ip("address", "del", address, "dev", dev)
    return soon(lambda: pod.addresses(dev) == [address])


# --- whom it listens to ----------------------------------------------------------------------------------------------


def second_interface(lab: Lab, pod: Pod) -> Pod:
    """The same pod as another network sees it, attached there."""
    conf = lab.conf(name="second", shim=False, ipam={"ranges": [[{"subnet": "198.51.100.0/24"}]], "routes": []})
    second = Pod(pod.name, pod.label, lab.runtime(), conf, {**pod.variables, "CNI_IFNAME": "net1"})
    second.add()
    return second


def test_a_pod_that_loses_one_of_two_interfaces_is_still_listened_to(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("pod", lab.conf(shim=False))
    second_interface(lab, pod).delete()
    time.sleep(REST_SECONDS)
    assert is_mended(pod)


def test_a_pod_of_an_earlier_agent_is_still_listened_to(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("pod", lab.conf(shim=False))
    second = second_interface(lab, pod)
    agent.stop()
    agent.start()
    time.sleep(REST_SECONDS)
    second.delete()
    assert is_mended(pod)


def test_a_pod_whose_del_fails_is_still_listened_to(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("pod", lab.conf(shim=False))
    refused = pod.runtime.call("DEL", {**pod.conf, "dataDir": "/proc/shimlan"}, pod.variables)
    assert refused.json["code"] == 5
    assert is_mended(pod)


def test_a_pod_that_the_in_process_plugin_attached_is_listened_to(lab: Lab, client: Path) -> None:
    pod = lab.pod("pod", lab.conf(shim=False))
    with Agent(lab, client):
        time.sleep(REST_SECONDS)
        assert is_mended(pod)


def test_another_data_directory_is_kept_as_well(lab: Lab, agent: Agent) -> None:
    elsewhere = f"{lab.data_dir}/elsewhere"
    pod = lab.pod("pod", lab.conf(dataDir=elsewhere, ipam={"dataDir": elsewhere}))
    assert is_mended(pod)
    lab.host.ip("link", "del", "shim2")
    assert soon(lambda: lab.host.pings(pod, wait=0.2))


# --- what it holds on to ---------------------------------------------------------------------------------------------


def test_a_namespace_that_ends_right_after_its_add_ends_at_once(lab: Lab, agent: Agent) -> None:
    """Nobody else holds it: its MAC is free for the next pod before anybody could miss it."""
    conf = lab.conf(mac="02:00:00:00:00:07", ipam={"cooldownSeconds": 0})
    for number in range(8):
        pod = lab.pod(f"pod{number}", conf)
        assert holders(agent.pid, os.stat(pod.netns).st_ino) == []
        subprocess.run(["ip", "netns", "del", pod.name], check=True)


def holders(pid: int, inode: int) -> list[str]:
    """The descriptors of a process that are of a namespace."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            status = os.stat(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # closed meanwhile
            continue
        if status.st_ino == inode and status.st_dev == os.stat("/proc/self/ns/net").st_dev:
            found.append(name)
    return found


# --- what does not stop it -------------------------------------------------------------------------------------------


def test_a_store_that_is_lost_is_made_anew_by_the_next_call(lab: Lab, agent: Agent) -> None:
    lab.pod("early").delete()
    for file in Path(lab.data_dir).iterdir():
        file.unlink()
    time.sleep(REST_SECONDS)
    pod = lab.pod("pod")
    assert is_mended(pod)
    pod.check()


def test_a_directory_that_is_lost_is_made_anew_by_the_next_call(lab: Lab, agent: Agent) -> None:
    while os.path.exists(lab.data_dir):  # the agent may be making its store
        shutil.rmtree(lab.data_dir, ignore_errors=True)
    time.sleep(REST_SECONDS)
    pod = lab.pod("pod")
    assert is_mended(pod)
    pod.delete()


def test_another_data_directory_is_kept_after_a_restart_though_no_call_comes(lab: Lab, client: Path) -> None:
    elsewhere = f"{lab.data_dir}/elsewhere"
    with Agent(lab, client):
        pod = lab.pod("pod", lab.conf(dataDir=elsewhere, ipam={"dataDir": elsewhere}))
    with Agent(lab, client):
        assert is_mended(pod)


@pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed")
@pytest.mark.parametrize("shim", [{}, {"routes": ["10.112.0.0/12"]}], ids=["without services", "with services"])
def test_the_pods_of_another_data_directory_leave_the_source_nat_alone(
    lab: Lab, agent: Agent, shim: dict[str, Any]
) -> None:
    elsewhere = f"{lab.data_dir}/elsewhere"
    ranges = [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.210"}]]
    pod = lab.pod("pod", lab.conf(shim={"routes": ["10.96.0.0/12"]}))
    other = lab.pod("other", lab.conf(dataDir=elsewhere, ipam={"dataDir": elsewhere, "ranges": ranges}, shim=shim))
    for _ in range(2):
        other.delete()  # as often as the runtime likes
        pod.check()
    lab.host.run(SHIMLANCTL, "gc", "--state-dir", elsewhere)
    pod.check()


def test_a_data_directory_that_is_gone_is_not_made_anew_by_the_next_agent(lab: Lab, client: Path) -> None:
    elsewhere = f"{lab.data_dir}/elsewhere"
    with Agent(lab, client):
        lab.pod("pod", lab.conf(dataDir=elsewhere, ipam={"dataDir": elsewhere})).delete()
    shutil.rmtree(elsewhere)
    with Agent(lab, client) as agent:
        assert agent.pid
        time.sleep(REST_SECONDS)
    assert not os.path.exists(elsewhere)


@pytest.mark.parametrize("noted", ["[", '{"a": 1}', '[1, "/nowhere", null]', ""])
def test_a_damaged_note_of_data_directories_does_no_harm(lab: Lab, client: Path, noted: str) -> None:
    os.makedirs(lab.data_dir, exist_ok=True)
    Path(lab.data_dir, "data-dirs").write_text(noted)
    with Agent(lab, client):
        assert is_mended(lab.pod("pod"))


def test_a_data_directory_that_cannot_be_kept_does_not_keep_it_from_others(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("pod")
    assert lab.cni("STATUS", lab.conf(dataDir="/proc/shimlan")).json["code"] == 50
    assert lab.cni("STATUS", lab.conf(dataDir="/dev/null/below")).json["code"] == 50
    assert is_mended(pod)


# --- namespaces that are others by now -------------------------------------------------------------------------------


def with_another_cookie(lab: Lab) -> None:
    """Have the only record tell of a namespace that had the path and inode number of the one which is there."""
    with closing(Database(lab.data_dir)) as database:
        store = Records(database, boot_id())
        (made,) = store.all()
        store.revise(replace(made, netns_cookie=made.netns_cookie + 1))


def test_a_later_namespace_with_the_same_path_and_inode_number_gets_no_link_and_what_was_is_cleared(
    lab: Lab, client: Path, tmp_path: Path
) -> None:
    (settings := tmp_path / "agent.yaml").write_text(SHORT_GRACE)
    pod = lab.pod("pod")
    pod.ip("link", "del", "eth0")
    with_another_cookie(lab)
    with Agent(lab, client, "--config", str(settings)):
        assert soon(lambda: records(lab) == [], seconds=10)
    assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert held(lab) == []


def test_a_del_that_comes_late_leaves_the_links_of_a_later_namespace_alone(lab: Lab) -> None:
    pod = lab.pod("pod")
    with_another_cookie(lab)
    pod.delete()
    assert [link["ifname"] for link in pod.links()] == ["lo", "eth0"]
    assert (records(lab), held(lab)) == ([], [])
