"""A damaged store under living pods: put aside, rebuilt from the kernel, and nobody's address is given away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from cni.ctl.lab import Lab, Pod
from cni.database import Database, boot_id
from cni.state import Records
from ipam.store import RECOVERED, LeaseStore
from tests.kernel.agents import interrupted, said

NAT = {"routes": ["10.96.0.0/12"]}


def store(lab: Lab, directory: str = "") -> Path:
    """The database of a directory, by default the lab's, with all in it that its log held."""
    with closing(Database(directory or lab.data_dir)) as database, database.transaction():
        return Path(database.path)


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def middle(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(os.urandom(size // 2))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES = [garbage, half, middle, emptied]


def damaged(lab: Lab, damage: Callable[[Path], None] = garbage, directory: str = "") -> None:
    """Damage the store while nobody has it open, for then it is what the next one reads."""
    with interrupted(lab):
        damage(store(lab, directory))


def aside(lab: Lab) -> list[str]:
    """The damaged stores that were put aside."""
    return [name for name in os.listdir(lab.data_dir) if re.fullmatch(r"shimlan\.db\.corrupt-\d+T\d+-\d+", name)]


def held(lab: Lab) -> dict[str, str]:
    """Addresses and who holds them."""
    with closing(Database(lab.data_dir)) as database:
        return {str(lease.address): lease.network for lease in LeaseStore(database).leases() if lease.state == "held"}


def recorded(lab: Lab) -> list[str]:
    """The container IDs of the records."""
    with closing(Database(lab.data_dir)) as database:
        return sorted(attachment.key.container_id for attachment in Records(database, boot_id()).all())


def shimlanctl(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the host."""
    program = "import sys; from cni.ctl.main import main; sys.exit(main())"
    return lab.host.run(sys.executable, "-c", program, *arguments, "--state-dir", lab.data_dir, check=False)


def nothing_left(lab: Lab) -> bool:
    """Whether the host is as it was before the first pod."""
    ours = [row for row in lab.host.routes() if row.get("protocol") == "174"]
    return {link["ifname"] for link in lab.host.links()} == {"lo", "eth0"} and not ours and not held(lab)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_next_add_works_and_the_pods_stay_whole(lab: Lab, damage: Callable[[Path], None]) -> None:
    conf = lab.conf(dual=True, shim=NAT)
    pods = [lab.pod(f"old{number}", conf) for number in range(3)]
    damaged(lab, damage)

    new = lab.container("new", conf)
    answer = new.runtime.call("ADD", conf, new.variables).or_raise()
    log = said(lab, answer)
    assert "shimlan: error: " in log
    assert f"{lab.data_dir}/{aside(lab)[0]}" in log
    assert "3 attachment(s) found" in log
    new.result = answer.json
    given = {ip["address"].partition("/")[0] for ip in new.result["ips"]}
    assert given.isdisjoint({pod.address for pod in pods} | {pod.address6 for pod in pods})

    for pod in [*pods, new]:
        pod.check()
    assert all(lab.host.pings(pod, family) for pod in pods for family in (4, 6))
    status = json.loads(shimlanctl(lab, "status", "-o", "json").stdout)
    assert [row["state"] for row in status["attachments"]] == ["ok"] * 4
    assert [(row["pods"], row["state"]) for row in status["shims"]] == [(4, "ok")]
    assert shimlanctl(lab, "gc", "--dry-run").stdout == "# nothing is stale\n"

    for pod in [*pods, new]:
        pod.delete()
    assert nothing_left(lab)
    assert "shimlan" not in lab.host.run("nft", "list", "tables").stdout
    assert len(aside(lab)) == 1


def test_pods_of_all_modes_and_without_a_shim(lab: Lab) -> None:
    confs = [
        lab.conf(mode="private"),
        lab.conf(shim=False, mtu=1400, ipam={"routes": [{"dst": "0.0.0.0/0", "priority": 77}]}),
        lab.conf(name="layer2", ipam=None),
        lab.conf(mac="02:00:00:00:00:99", bcqueuelen=500),
    ]
    pods = [lab.pod(f"pod{number}", conf) for number, conf in enumerate(confs)]
    damaged(lab)
    for pod in pods:
        pod.check()
    assert len(aside(lab)) == 1
    for pod in pods:
        pod.delete()
    assert nothing_left(lab)


@pytest.mark.parametrize("command", ["CHECK", "DEL", "STATUS", "GC"])
def test_whichever_command_comes_first(lab: Lab, command: str) -> None:
    pods = [lab.pod(f"pod{number}") for number in range(2)]
    damaged(lab)
    valid = [{"containerID": pod.container_id, "ifname": "eth0"} for pod in pods]
    conf = {**pods[0].conf, "cniVersion": "1.1.0", "prevResult": pods[0].result, "cni.dev/valid-attachments": valid}
    pods[0].runtime.call(command, conf, pods[0].variables).or_raise()
    assert len(aside(lab)) == 1
    survivors = pods[1:] if command == "DEL" else pods
    assert recorded(lab) == [pod.container_id for pod in survivors]
    for pod in survivors:
        pod.check()


def test_many_find_it_at_once_and_one_rebuilds(lab: Lab) -> None:
    living = [lab.pod(f"old{number}") for number in range(3)]
    new = [lab.container(f"new{number}") for number in range(12)]
    damaged(lab)
    with ThreadPoolExecutor(len(new)) as threads:
        list(threads.map(Pod.add, new))
    assert len(aside(lab)) == 1
    assert len({pod.address for pod in [*living, *new]}) == len(living) + len(new)
    for pod in [*living, *new]:
        pod.check()


@pytest.mark.without_agent("an agent serves one host")
def test_the_pods_of_another_host_are_none_of_ours(lab: Lab) -> None:
    """In the same kernel, as where nodes are containers themselves: the same network, and a parent of the same name."""
    ours = lab.pod("ours")
    other_host = lab.machine("host2", "192.0.2.11/24")
    theirs = lab.pod(
        "theirs", lab.conf(dataDir=f"{lab.data_dir}/2", ipam={"dataDir": f"{lab.data_dir}/2"}), host=other_host
    )
    damaged(lab)
    ours.check()
    assert recorded(lab) == [ours.container_id]
    theirs.check()


def test_an_address_that_a_router_gave_is_not_recorded(lab: Lab) -> None:
    pod = lab.pod("pod")
    pod.ip("address", "add", "2001:db8:5::7/64", "dev", "eth0", "nodad", "valid_lft", "600", "preferred_lft", "300")
    damaged(lab)
    pod.check()
    assert held(lab) == {pod.address: "lan"}


def test_leases_in_a_directory_of_their_own(lab: Lab) -> None:
    elsewhere = f"{lab.data_dir}/leases"
    conf = lab.conf(ipam={"dataDir": elsewhere})
    old = lab.pod("old", conf)
    damaged(lab, directory=elsewhere)
    new = lab.pod("new", conf)
    assert new.address != old.address
    old.check()
    damaged(lab)
    old.check()
    for pod in (old, new):
        pod.delete()
    with closing(Database(elsewhere)) as database:
        assert [lease.state for lease in LeaseStore(database).leases()] == ["cooling", "cooling"]


def hide(lab: Lab, pod: Pod) -> Callable[[], None]:
    """Take a pod's namespace out of sight; the function returned ends it, and with it what holds it open."""
    descriptor = os.open(pod.netns, os.O_RDONLY)
    subprocess.run(["ip", "netns", "del", pod.name], check=True)
    return lambda: os.close(descriptor)


def test_a_pod_out_of_sight_keeps_its_address_until_it_is_gone(lab: Lab) -> None:
    hidden = lab.pod("hidden")
    end = hide(lab, hidden)
    damaged(lab)

    new = lab.pod("new")
    assert new.address != hidden.address
    assert held(lab) == {new.address: "lan", hidden.address: RECOVERED}
    assert f"left alone: {hidden.address} behind" in shimlanctl(lab, "gc").stdout
    refused = shimlanctl(lab, "pool", "release", hidden.address, "--network", RECOVERED, "--yes")
    assert (refused.returncode, "alive: a child of the parent has its MAC" in refused.stdout) == (1, True)
    assert lab.host.pings(hidden.address)

    end()
    assert f"{hidden.address}: kept for a pod that is gone" in shimlanctl(lab, "gc").stdout
    assert held(lab) == {new.address: "lan"}
    assert not lab.host.ip_json("route", "show", hidden.address)
    new.check()


def test_del_with_its_result_clears_a_pod_that_died_before(lab: Lab) -> None:
    dead, living = lab.pod("dead"), lab.pod("living")
    hide(lab, dead)()
    damaged(lab)
    living.check()
    assert held(lab)[dead.address] == RECOVERED
    dead.delete()
    assert held(lab) == {living.address: "lan"}
    living.check()


def test_shimlan_ipam_rebuilds_as_well(lab: Lab) -> None:
    pod = lab.pod("pod")
    damaged(lab)
    executable = str(Path(sys.executable).parent / "shimlan-ipam")
    conf = lab.conf(type="bridge")
    answer = lab.cni(
        "ADD", conf, executable, CNI_CONTAINERID="standalone", CNI_IFNAME="eth0", CNI_NETNS="/run/netns/any"
    ).or_raise()
    assert answer.json["ips"][0]["address"] != f"{pod.address}/24"
    pod.check()
    pod.delete()


def test_a_store_that_cannot_be_replaced_stays_as_it_is(lab: Lab) -> None:
    pod = lab.pod("pod")
    damaged(lab)
    Path(lab.data_dir, "rebuild").write_text("in the way")
    new = lab.container("new")
    answer = new.runtime.call("ADD", new.conf, new.variables)
    assert answer.json["code"] == 5
    assert aside(lab) == []
    assert [link["ifname"] for link in new.links()] == ["lo"]
    Path(lab.data_dir, "rebuild").unlink()
    assert new.add()
    pod.check()
