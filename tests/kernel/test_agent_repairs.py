"""What others undo while the agent runs is put right within two seconds, and what it took is printed."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cni.ctl.lab import Lab, Node, Pod
from cni.kernel import Namespace
from tests.kernel.agents import Agent
from tests.kernel.kubelet import Kubelet
from tests.kernel.test_reconcile import (
    ADD_OTHER,
    DEFAULT,
    FAMILIES,
    IN_POD,
    NFT,
    ON_HOST,
    OTHER,
    REMOVE,
    RETURN,
    SERVICES,
    Undoing,
    all_is_well,
    kill,
    on_host,
    plug,
    unplug,
)
from tests.kernel.torture import FULL, launch, seeded, size
from tests.kernel.traces import held, records, stored

pytestmark = [pytest.mark.without_agent("it has one of its own"), pytest.mark.undisturbed, NFT]

LIMIT_SECONDS = 2.0
BUSY_LIMIT_SECONDS = 4.0  # where pods come and go at the same time
REST_SECONDS = 1.0
PATIENCE_SECONDS = 20.0  # to tell how long it took when that was too long
GRACE_SECONDS = 1  # of the agent that clears what is stale
CLEARING_SECONDS = 10.0  # in which it does, for all namespaces are looked at

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def agent(lab: Lab, client: Path) -> Iterator[Agent]:
    with Agent(lab, client) as agent:
        yield agent


@pytest.fixture
def pods(lab: Lab, agent: Agent) -> list[Pod]:
    """Two of them, and the agent has come to rest."""
    pods = [lab.pod(name, lab.conf(dual=True, shim=SERVICES)) for name in "ab"]
    time.sleep(REST_SECONDS)
    return pods


Measure = Callable[..., None]


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measure:
    """Do something and wait until a question about it has the right answer, which must be so within a time."""

    def measure(
        damage: Callable[[], object], ask: Callable[[], object], right: object, limit: float = LIMIT_SECONDS
    ) -> None:
        begin = time.monotonic()
        damage()
        seconds = seconds_until(ask, right, begin)
        record_property("seconds", round(seconds, 2))
        print(f"all was well again after {seconds:.2f} s")
        assert seconds < limit

    return measure


def seconds_until(ask: Callable[[], object], right: object, begin: float) -> float:
    """How long it takes from then until a question has the right answer."""
    while (answer := ask()) != right:
        assert answer == right or time.monotonic() - begin < PATIENCE_SECONDS
        time.sleep(0.01)
    return time.monotonic() - begin


def picture(lab: Lab, *pods: Pod) -> list[str]:
    """What we have made on the host and in pods, a line each, whatever number the parent has."""
    lines = [f"{node.label}: {line}" for node in (lab.host, *pods) for line in node.inside(links_of_ours)]
    lines += lab.host.run("nft", "list", "ruleset", check=False).stdout.splitlines()
    return sorted(re.sub(r"\bshim\d+", "shim", line) for line in lines if "comment" not in line)


def links_of_ours() -> list[str]:
    """The macvlans of this namespace with addresses, routes and neighbours, but for what the kernel adds late."""
    lines = []
    with closing(Namespace()) as namespace:
        for link in namespace.links():
            if link.kind == "macvlan":
                state = f"{link.mac} mtu {link.mtu} mode {link.mode} up {link.up} arp {link.arp} alias {link.alias}"
                own = [address for _, address in namespace.addresses(link.index)]
                found = (state, *own, *namespace.routes(link.index), *namespace.neighbours(link.index))
                lines += [f"{link.name}: {each}" for each in found if "fe80::" not in str(each)]
    return lines


# --- what is undone on the host or in a pod --------------------------------------------------------------------------


def replug(lab: Lab, _: Pod) -> None:
    """The NIC goes and comes back at once."""
    unplug(lab)
    plug(lab)


def by_nft(*words: str) -> Undoing:
    """A command of `nft` on the host."""

    def undo(lab: Lab, _: Pod) -> None:
        lab.host.run("nft", *words)

    return undo


UNDONE: dict[str, Undoing] = {
    **{name: undo for name, undo in ON_HOST.items() if "another source" not in name},  # that takes two addresses
    **IN_POD,
    "a route has no source": on_host("route replace {pod}/32 dev {shim} scope link proto 174"),
    "an address of the host goes and comes back": on_host(REMOVE[4], RETURN[4], DEFAULT[4]),
    "an IPv6 address of the host goes and comes back": on_host(REMOVE[6], RETURN[6], DEFAULT[6]),
    "the parent is set down and up": on_host("link set eth0 down", "link set eth0 up", RETURN[6], *DEFAULT.values()),
    "the parent's MTU is lowered and raised": on_host("link set eth0 mtu 1400", "link set eth0 mtu 1500"),
    "the parent goes and comes back": replug,
    "the table of source NAT is deleted": by_nft("delete", "table", "inet", "shimlan"),
    "nftables are flushed": by_nft("flush", "ruleset"),
}
# The others differ from these only in which event there is to be heard.
TYPICAL = (
    "the shim is deleted",
    "the shim is set down",
    "the shim is set down and up",
    "all routes of ours are flushed",
    "all permanent neighbours are flushed",
    "a route leads elsewhere",
    "its link is set down",
    "its link is set down and up",
    "its link is deleted",
    "its link gets another MTU",
    "its routes are flushed",
    "its permanent neighbours are flushed",
    "its addresses are removed",
    *list(UNDONE)[-8:],
)


@pytest.mark.parametrize("undone", UNDONE if FULL else TYPICAL)
def test_all_is_as_before(lab: Lab, pods: list[Pod], measured: Measure, undone: str) -> None:
    before = picture(lab, *pods)
    measured(lambda: UNDONE[undone](lab, pods[0]), lambda: picture(lab, *pods), before)
    assert all_is_well(lab, *pods)


@pytest.mark.parametrize("undone", ["the shim is deleted", "its routes are flushed", "nftables are flushed"])
def test_right_after_an_add_as_well(lab: Lab, agent: Agent, measured: Measure, undone: str) -> None:
    """The agent leaves alone what a command may just be making, and comes back to it."""
    pod = lab.pod("a", lab.conf(dual=True, shim=SERVICES))
    before = picture(lab, pod)
    measured(lambda: UNDONE[undone](lab, pod), lambda: picture(lab, pod), before, BUSY_LIMIT_SECONDS)
    assert all_is_well(lab, pod)


def test_the_parents_carrier_undoes_nothing(lab: Lab, pods: list[Pod]) -> None:
    before = picture(lab, *pods)
    for state in ("down", "up"):
        lab.switch.ip("link", "set", "host", state)
        assert picture(lab, *pods) == before
    assert all_is_well(lab, *pods)


# --- what is to be as the host is by now -----------------------------------------------------------------------------


@FAMILIES
def test_another_address_of_the_host(lab: Lab, pods: list[Pod], measured: Measure, family: int) -> None:
    before, wanted = picture(lab, *pods), lab.host.where(family)
    renumber = (REMOVE[family], ADD_OTHER[family], DEFAULT[family])
    measured(
        lambda: lab.host.ip_batch(*renumber),
        lambda: picture(lab, *pods),
        renamed(before, wanted, OTHER[family]),
    )
    lab.host.address, lab.host.address6 = (OTHER[4], lab.host.address6) if family == 4 else (lab.host.address, OTHER[6])
    assert all_is_well(lab, *pods)


def renamed(lines: list[str], before: str, after: str) -> list[str]:
    """Lines with another word in the place of one."""
    return sorted(re.sub(rf"(?<![\w.:]){re.escape(before)}(?![\w.:])", after, line) for line in lines)


@FAMILIES
def test_one_more_address_of_the_host(lab: Lab, pods: list[Pod], measured: Measure, family: int) -> None:
    before = picture(lab, *pods)
    measured(
        lambda: lab.host.ip_batch(ADD_OTHER[family]),
        lambda: [pod.label for pod in pods if pod.pings(OTHER[family], wait=0.1)],
        ["a", "b"],
    )
    assert all_is_well(lab, *pods)
    less = ADD_OTHER[family].replace("address add", "address del").removesuffix(" nodad")
    measured(lambda: lab.host.ip_batch(less), lambda: picture(lab, *pods), before)
    assert all_is_well(lab, *pods)


def test_the_parent_gets_another_name(lab: Lab, pods: list[Pod], measured: Measure) -> None:
    before = picture(lab, *pods)
    rename = ("link set eth0 down", "link set eth0 name lan0", "link set lan0 up")
    again = (words.replace("eth0", "lan0") for words in (RETURN[6], *DEFAULT.values()))
    wanted = [line.replace("shimlan shim of eth0", "shimlan shim of lan0") for line in before]
    measured(lambda: lab.host.ip_batch(*rename, *again), lambda: picture(lab, *pods), wanted)
    assert all_is_well(lab, *pods)


# --- what is stale ---------------------------------------------------------------------------------------------------


@pytest.fixture
def strict_agent(lab: Lab, client: Path, tmp_path: Path) -> Iterator[Agent]:
    """One that does not wait for long until it clears what is stale."""
    settings = tmp_path / "agent.yaml"
    settings.write_text(f"graceSeconds: {GRACE_SECONDS}\n")
    with Agent(lab, client, "--config", str(settings)) as agent:
        yield agent


def test_a_pod_that_went_without_a_del_is_cleared(lab: Lab, strict_agent: Agent, measured: Measure) -> None:
    living = lab.pod("living", lab.conf(dual=True, shim=SERVICES))
    before = [*picture(lab, living), *map(str, stored(lab))]
    dead = lab.pod("dead", lab.conf(dual=True, shim=SERVICES))
    time.sleep(REST_SECONDS)
    measured(
        lambda: kill(dead),
        lambda: [*picture(lab, living), *map(str, stored(lab))],
        before,
        CLEARING_SECONDS,
    )
    assert all_is_well(lab, living)


PATIENT = """#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
until [ -e "$(dirname "$0")/go" ]; do sleep 0.02; done
echo '{"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.90/24"}]}'
"""


@pytest.mark.parametrize("stays", [True, False], ids=["its namespace stays", "its namespace goes"])
def test_one_that_is_being_added_is_spared(lab: Lab, strict_agent: Agent, tmp_path: Path, stays: bool) -> None:
    patient = tmp_path / "patient"
    patient.write_text(PATIENT)
    patient.chmod(0o755)
    dead = lab.pod("dead", lab.conf(dual=True, shim=SERVICES))
    conf = lab.conf(ipam={"type": "patient", "ranges": None, "routes": None})
    pod = lab.container("coming", conf, CNI_PATH=str(tmp_path))
    flight = launch(lab, pod, "ADD")
    seconds_until(lambda: len(records(lab)), 2, time.monotonic())
    for victim in (dead,) if stays else (dead, pod):
        kill(victim)
    seconds_until(lambda: [each.key.container_id for each in records(lab)], [pod.container_id], time.monotonic())
    time.sleep(GRACE_SECONDS + 0.5)
    assert len(records(lab)) == 1
    (tmp_path / "go").touch()
    answer = flight.land()
    if stays:
        pod.result = answer.or_raise().json
        pod.check()
    launch(lab, pod, "DEL").land().or_raise()
    assert stored(lab) == []


PROBE = {"timeoutMs": 2000, "retries": 3}  # several times as long as it takes to clear what is stale


def test_a_lease_that_waits_for_its_record_is_spared(lab: Lab, strict_agent: Agent) -> None:
    """While the LAN is asked whether anybody has the address, there is a lease and nothing else."""
    dead = lab.pod("dead", lab.conf(dual=True))
    time.sleep(REST_SECONDS)
    pod = lab.container("coming", lab.conf(detectConflicts=PROBE))
    flight = launch(lab, pod, "ADD")
    kill(dead)
    while records(lab):
        time.sleep(0.01)
        assert flight.process.poll() is None, "it was not cleared while the other one was added"
    pod.result = flight.land().or_raise().json
    assert [lease.container_id for lease in held(lab)] == [pod.container_id]
    pod.check()


def test_what_is_of_an_earlier_boot_is_cleared(lab: Lab, strict_agent: Agent, measured: Measure) -> None:
    before = picture(lab)
    pods = [lab.pod(name, lab.conf(dual=True, shim=SERVICES)) for name in "ab"]
    strict_agent.stop()
    for pod in pods:
        kill(pod)
    with closing(sqlite3.connect(f"{lab.data_dir}/shimlan.db")) as store, store:
        store.execute("UPDATE attachments SET boot_id = 'earlier'")
        store.execute("UPDATE lease_boot SET id = 'earlier'")

    def left() -> list[object]:
        with closing(sqlite3.connect(f"{lab.data_dir}/shimlan.db")) as store:
            recorded = [name for (name,) in store.execute("SELECT container_id FROM attachments")]
        return [*recorded, *stored(lab), *picture(lab)]

    measured(strict_agent.start, left, before, CLEARING_SECONDS)
    assert all_is_well(lab, lab.pod("c", lab.conf(dual=True, shim=SERVICES)))


# --- beside others ---------------------------------------------------------------------------------------------------

FIGHT_SECONDS = 6.0


@contextmanager
def fighting(node: Node, command: str) -> Iterator[None]:
    """Somebody who does the same again and again."""
    words = ("sh", "-c", f"while :; do {command} 2> /dev/null; sleep 0.02; done")
    process = subprocess.Popen([*node.enter_words, *words], start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime, proc_pid_stat(5)


def test_somebody_who_undoes_every_repair_is_told_once(
    lab: Lab, agent: Agent, pods: list[Pod], measured: Measure
) -> None:
    before, kubelet = picture(lab, *pods), Kubelet(lab)
    (shim,) = (link["ifname"] for link in lab.host.links() if link["ifname"].startswith("shim"))
    used = cpu_seconds(agent.pid)
    with fighting(lab.host, f"ip route del {pods[0].address}/32 dev {shim}"):
        time.sleep(FIGHT_SECONDS)
        used = cpu_seconds(agent.pid) - used
        measured(lambda: on_host("route del {pod}/32 dev {shim}")(lab, pods[1]), lambda: lab.host.pings(pods[1]), True)
        kubelet.remove(kubelet.make())
    print(f"the agent used {used:.2f} s of the processor in {FIGHT_SECONDS:g} s of fighting")
    assert used < FIGHT_SECONDS / 10
    assert kubelet.failures == []
    assert kubelet.slowest < 1.0
    (told,) = [line for line in agent.log.splitlines() if "somebody keeps undoing" in line]
    assert f"{pods[0].address}/32" in told
    repairs = [line for line in agent.log.splitlines() if "repaired" in line and f" {pods[0].address}/32 " in line]
    assert len(repairs) <= 6
    assert seconds_until(lambda: picture(lab, *pods), before, time.monotonic()) < 2 * FIGHT_SECONDS


@pytest.mark.parametrize("undone", ["the shim is deleted", "a route is removed", "its addresses are removed"])
def test_repairs_while_pods_come_and_go(
    lab: Lab, agent: Agent, pods: list[Pod], measured: Measure, undone: str
) -> None:
    chance, kubelet = seeded(undone), Kubelet(lab, dual=True, shim=SERVICES, passing={11, 103, 104})
    with kubelet.load(3, chance) as load:
        for _ in range(size(2, 3)):  # a fourth one would have to wait
            measured(lambda: UNDONE[undone](lab, pods[0]), lambda: well(lab, pods), True, BUSY_LIMIT_SECONDS)
            time.sleep(chance.uniform(0, 1.0))
    assert load.rounds > 0
    for pod in kubelet.sandboxes:
        kubelet.repeat("CHECK", pod)
    assert all_is_well(lab, *pods)


def well(lab: Lab, pods: list[Pod]) -> bool:
    """Whether the host reaches all pods, and they it."""
    return all(lab.host.pings(pod, family, wait=0.2) for pod in pods for family in (4, 6)) and all(
        pod.pings(lab.host, family, wait=0.2) for pod in pods for family in (4, 6)
    )
