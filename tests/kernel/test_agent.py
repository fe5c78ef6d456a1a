"""The agent and its client in the place of the in-process plugin, and beside it: the same answers, the same network."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.lab import CniAnswer, Lab, Pod
from cni.ctl.runtime import PLUGIN_DIRECTORIES, Runtime, installed_shimlan
from cni.protocol import MAX_STDIN, VERSIONS
from tests.kernel import traces
from tests.kernel.agents import STOP_SECONDS, Agent
from tests.kernel.kubelet import Census, Kubelet
from tests.kernel.torture import inventory, launch, seeded, size, start

pytestmark = pytest.mark.without_agent("it has one of its own")

SERVICES = {"routes": ["10.96.0.0/16", "fd00:96::/112"]}
SOON = 5.0  # seconds in which everything happens that does not take its time


@pytest.fixture
def agent(lab: Lab, client: Path) -> Iterator[Agent]:
    with Agent(lab, client) as agent:
        yield agent


def in_process(lab: Lab) -> Runtime:
    """A runtime of the host that calls the in-process plugin, whatever the lab's plugin is."""
    return Runtime(None, lab.host.enter_words)


def eventually(question: Callable[[], bool], seconds: float = SOON) -> bool:
    """Whether the answer becomes yes in some seconds."""
    until = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < until:
        time.sleep(0.02)
    return answer


# --- the same answers ------------------------------------------------------------------------------------------------

OTHER_PLUGIN = {
    "interfaces": [{"name": "br0", "mac": "02:00:00:00:00:aa"}, {"name": "net0", "sandbox": "/run/netns/x"}],
    "ips": [{"address": "198.51.100.7/24", "gateway": "198.51.100.1", "interface": 1}],
    "routes": [{"dst": "198.51.100.0/24", "gw": "198.51.100.1"}],
    "dns": {"nameservers": ["198.51.100.53"]},
}
ONE_ADDRESS = [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.100"}]]
ROUTE = {"dst": "203.0.113.0/24", "gw": "192.0.2.1", "mtu": 1300, "advmss": 1200, "priority": 50, "table": 100}
STATIC = {"type": "static", "ranges": None, "addresses": [{"address": "192.0.2.90/24", "gateway": "192.0.2.1"}]}

# Changes to the lab's standard configuration.
NETWORKS: dict[str, dict[str, Any]] = {
    "standard": {},
    "dual stack": {"dual": True},
    **{f"cniVersion {version}": {"cniVersion": version, "dual": True, "mtu": 1400} for version in VERSIONS},
    "an unknown cniVersion": {"cniVersion": "9.9.9"},
    "services": {"dual": True, "shim": SERVICES},
    "no shim": {"shim": False},
    "a host's address that it has not": {"shim": {"hostAddresses": ["192.0.2.99"]}},
    "private": {"mode": "private"},
    "vepa with a shim": {"mode": "vepa", "shim": True},
    "passthru": {"mode": "passthru"},
    "layer 2 only": {"ipam": None},
    "host-local": {"ipam": {"type": "host-local"}},
    "static": {"ipam": STATIC},
    "a delegate that is missing": {"ipam": {"type": "nowhere", "ranges": None}},
    "after another plugin": {"prevResult": OTHER_PLUGIN},
    "after nonsense": {"prevResult": {"ips": [{"address": "nonsense"}]}},
    "MAC": {"mac": "02:00:5E:10:00:01", "bcqueuelen": 2000, "bclim": 50},
    "MAC by pod": {"macPolicy": "pod"},
    "requests of the runtime": {"runtimeConfig": {"ips": ["192.0.2.150/24"], "mac": "02:00:00:00:00:0A"}},
    "a request that cannot be granted": {"args": {"cni": {"ips": ["192.0.2.9"]}}},
    "routes": {"cniVersion": "1.1.0", "ipam": {"routes": [ROUTE]}},
    "a gateway out of reach": {"ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "203.0.113.1"}]}},
    "dns": {"dns": {"nameservers": ["192.0.2.53"], "domain": "example.org"}},
    "detection of conflicts": {"detectConflicts": {"timeoutMs": 10, "retries": 1}},
    "sticky": {"ipam": {"sticky": "pod"}},
    "exhausted": {"cniVersion": "1.1.0", "statusReportsExhaustion": True, "ipam": {"ranges": ONE_ADDRESS}},
    "no such parent": {"master": "nope"},
    "the parent of the default route": {"master": None},
    "wrong values": {"mtu": "much", "mode": "sideways", "shim": 7, "ipam": {"ranges": "none"}},
    "no name": {"name": None},
    "a data directory that cannot be": {"dataDir": "/proc/shimlan"},
}


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_a_network_is_the_same(lab: Lab, client: Path, changes: dict[str, Any]) -> None:
    compare(lab, client, lab.container("pod", lab.conf(**changes), container_id="pod", CNI_PATH=REFERENCE))


VARIABLES: dict[str, dict[str, str]] = {
    "a pod's name": {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=db-0"},
    "a request": {"CNI_ARGS": "IP=192.0.2.150;MAC=02-00-00-00-00-03"},
    "an unknown argument": {"CNI_ARGS": "X=Y"},
    "no argument at all": {"CNI_ARGS": ";;="},
    "another interface": {"CNI_IFNAME": "fifteen-letters"},
    "an interface of an impossible name": {"CNI_IFNAME": "a/b"},
    "no interface": {"CNI_IFNAME": ""},
    "no container": {"CNI_CONTAINERID": ""},
    "an impossible container": {"CNI_CONTAINERID": "../x"},
    "no namespace": {"CNI_NETNS": ""},
    "a namespace that is gone": {"CNI_NETNS": "/run/netns/gone"},
    "a file": {"CNI_NETNS": "/proc/self/status"},
    "another kind of namespace": {"CNI_NETNS": "/proc/self/ns/mnt"},
    "a path with a NUL's neighbours": {"CNI_NETNS": "/run/\x01\x7f\udcff"},
    "its own namespace": {"CNI_NETNS": "/proc/self/ns/net", "CNI_IFNAME": "own0"},
    "its own namespace on purpose": {
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_IFNAME": "own0",
        "CNI_NETNS_OVERRIDE": "1",
    },
    "no path for plugins": {"CNI_PATH": ""},
}


@pytest.mark.parametrize("variables", VARIABLES.values(), ids=VARIABLES)
def test_an_environment_means_the_same(lab: Lab, client: Path, variables: dict[str, str]) -> None:
    pod = lab.container("pod", lab.conf(), container_id="pod", CNI_PATH=REFERENCE)
    pod.variables |= variables
    compare(lab, client, pod)


def test_the_parent_in_the_pod_is_the_same(lab: Lab, client: Path) -> None:
    conf = lab.conf(linkInContainer=True, ipam={"routes": []})
    pod = lab.container("pod", conf, "net1", container_id="pod", CNI_PATH=REFERENCE)
    lab.switch.plug(pod)
    pod.ip("link", "set", "eth0", "up")
    compare(lab, client, pod)


REFERENCE = ":".join(PLUGIN_DIRECTORIES)


def compare(lab: Lab, client: Path, pod: Pod) -> None:
    """Have one story told by the in-process plugin, and then, from a clean start, by client and agent."""
    told = story(lab, pod)
    shutil.rmtree(lab.data_dir)
    os.mkdir(lab.data_dir)
    with Agent(lab, client):
        told_by_agent = story(lab, pod)
    assert told_by_agent == told


def story(lab: Lab, pod: Pod) -> list[str]:
    """What a runtime hears that calls every verb, some of them too early, too late or twice, and what there is then."""
    told: list[str] = []

    def call(command: str, **changes: Any) -> CniAnswer:
        flight = start(lab, command, json.dumps({**pod.conf, **changes}), pod.variables)
        answer = flight.land()
        told.append(f"{command} ends with {answer.status}: {answer.stdout}")
        return answer

    def look() -> None:
        # Each namespace numbers the links that it has ever had.
        told.extend(sorted(re.sub(r": \d+: ", ": ", line) for line in inventory(lab, pod)))

    call("VERSION")
    call("STATUS")
    call("CHECK")
    result = call("ADD").json
    look()
    call("CHECK", prevResult=result)
    call("STATUS")
    again = call("ADD").json
    look()
    call("CHECK", prevResult=again)
    call("GC", **{"cni.dev/valid-attachments": [{"containerID": "pod", "ifname": pod.variables["CNI_IFNAME"]}]})
    call("DEL", prevResult=again)
    look()
    call("DEL")
    call("CHECK", prevResult=again)
    call("ADD")
    call("GC", **{"cni.dev/valid-attachments": []})
    look()
    call("DEL")
    return told


TEXTS: dict[str, str] = {
    "nothing": "",
    "no JSON": "{",
    "no object": "[]",
    "no UTF-8": '{"name": "\udcff"}',
    "too deep": "[" * 10_000,
    "too much": " " * (MAX_STDIN + 1),
    "just enough": " " * (MAX_STDIN - 2) + "{}",
    "twice the same key": '{"cniVersion": "1.0.0", "cniVersion": "0.4.0", "name": "lan"}',
    "what is no number": '{"cniVersion": "1.0.0", "name": "lan", "mtu": NaN}',
}


def test_what_is_no_configuration_gets_the_same_error(lab: Lab, client: Path) -> None:
    pod = lab.container("pod", container_id="pod")

    def answers() -> dict[str, list[tuple[int, str]]]:
        flights = {name: [start(lab, verb, text, pod.variables) for verb in VERBS] for name, text in TEXTS.items()}
        landed = {name: [flight.land() for flight in each] for name, each in flights.items()}
        return {name: [(answer.status, answer.stdout) for answer in each] for name, each in landed.items()}

    told = answers()
    with Agent(lab, client):
        assert answers() == told


VERBS = ("VERSION", "STATUS", "ADD", "CHECK", "DEL", "GC", "add", "NOPE", "")


# --- beside the in-process plugin ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["agent", "in-process"])
@pytest.mark.parametrize("changes", [{"dual": True, "shim": SERVICES}, {"ipam": {"type": "host-local"}}])
def test_what_one_of_them_adds_the_other_checks_and_deletes(
    lab: Lab, agent: Agent, changes: dict[str, Any], first: str
) -> None:
    before = inventory(lab)
    a, b = (lab.container(name, lab.conf(**changes)) for name in "ab")
    runtimes = [lab.runtime(), in_process(lab)]
    one, other = runtimes if first == "agent" else reversed(runtimes)
    for pod in (a, b):
        pod.runtime = one
        pod.add()
        pod.runtime = other
        pod.check()
    assert lab.host.pings(a)
    a.add()
    a.check()
    for pod in (a, b):
        pod.delete()
        assert [link["ifname"] for link in pod.links()] == ["lo"]
        pod.runtime = one
        pod.delete()
    assert inventory(lab) == before


def test_both_at_once_under_load(lab: Lab, client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call goes to one of them by chance: no call fails, no address is given twice, and nothing is left."""
    chance = seeded("agent and in-process plugin")
    before = inventory(lab)
    with Agent(lab, client):
        runtimes = [lab.runtime(), in_process(lab)]
        monkeypatch.setattr(lab, "runtime", lambda _=None: chance.choice(runtimes))
        kubelet = Kubelet(lab, dual=True, shim=SERVICES)
        with Census(kubelet.sandboxes).going_on() as census, kubelet.load(6, chance) as load:
            time.sleep(size(4, 60))
        for pod in kubelet.sandboxes:
            pod.check()
            assert lab.host.pings(pod)
        for pod in list(kubelet.sandboxes):
            kubelet.remove(pod)
        assert inventory(lab) == before
    print(f"{load.rounds} pods came and went, {census.looks} looks at addresses")
    assert load.rounds > 6
    assert census.held_twice == []
    assert kubelet.failures == []


def test_it_goes_on_with_a_store_that_another_process_has_made_anew(lab: Lab, agent: Agent) -> None:
    """The agent had the damaged one open and has noticed nothing: what it needed of it was in memory."""
    pods = [lab.pod(f"pod{number}", lab.conf(dual=True)) for number in range(3)]
    Path(lab.data_dir, "shimlan.db").write_bytes(b"garbage" * 1000)
    stranger = lab.container("stranger", lab.conf(dual=True))
    stranger.runtime = in_process(lab)
    stranger.add()
    pods.append(lab.pod("late", lab.conf(dual=True)))
    assert len({pod.address for pod in (*pods, stranger)}) == 5
    for pod in (*pods, stranger):
        pod.check()
        pod.delete()
    assert traces.stored(lab) == []
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0"]


def test_a_store_that_is_damaged_with_its_log_is_made_anew(lab: Lab, agent: Agent) -> None:
    pods = [lab.pod(f"pod{number}", lab.conf(dual=True)) for number in range(3)]
    for file in ("shimlan.db", "shimlan.db-wal"):
        path = Path(lab.data_dir, file)
        path.write_bytes(b"\xa5" * path.stat().st_size)
    # Some of it is in memory, so it takes a while until the damage shows.
    for number in range(30):
        lab.pod(f"new{number}", lab.conf(dual=True)).delete()
    agent.stop()
    agent.start()
    pods += [lab.pod("late", lab.conf(dual=True))]
    assert len({pod.address for pod in pods}) == 4
    assert "was damaged: it is kept as" in agent.log
    for pod in pods:
        pod.check()
        pod.delete()
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0"]


# --- without an agent ------------------------------------------------------------------------------------------------


def test_without_an_agent_calls_are_to_be_repeated(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("pod")
    before = inventory(lab, pod)
    assert agent.stop() == 0
    for command in ("ADD", "CHECK", "DEL", "STATUS", "GC"):
        answer = launch(lab, pod, command).land()
        assert (answer.status, answer.json["code"]) == (1, 11)
        assert agent.socket in answer.json["msg"]
        assert "shimlanctl agent" in answer.json["msg"]
    assert launch(lab, pod, "VERSION").land().json["supportedVersions"] == list(VERSIONS)
    assert inventory(lab, pod) == before
    agent.start()
    pod.check()
    pod.delete()


def test_without_an_agent_the_in_process_plugin_stands_in(lab: Lab, client: Path) -> None:
    with Agent(lab, client, fallback=installed_shimlan() or "") as agent:
        pod = lab.pod("pod")
        agent.kill()
        pod.check()
        other = lab.pod("other")
        assert other.address != pod.address
        assert lab.host.pings(other)
        pod.delete()
        agent.start()
        other.check()
        other.delete()
    assert traces.stored(lab) == []


# --- a namespace that only the client can see ------------------------------------------------------------------------

# As in a container: a mount namespace of its own, in which no namespace of a pod is to be found.
BLIND = {
    "no directory": 'umount -l /run/netns; mount -t tmpfs none /run; exec "$@"',
    "an empty directory": 'mount -t tmpfs none /run/netns; exec "$@"',
    "files that stand for them": 'mount -t tmpfs none /run/netns; touch $PODS; exec "$@"',
}


OUT_OF_SIGHT: dict[str, dict[str, Any]] = {
    "bridge": {"dual": True},
    "plain": {"shim": False},
    "private": {"mode": "private"},
    "wire": {"ipam": None},
    "down": {"shim": False},
    "through": {"mode": "passthru", "master": "spare"},
    "inside": {"linkInContainer": True, "ipam": {"routes": []}},
}


@pytest.fixture(params=BLIND)
def blind(lab: Lab, client: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Agent]:
    """An agent that cannot see pods of these names, and does not wait long before it clears what is stale."""
    settings = tmp_path / "agent.yaml"
    settings.write_text("graceSeconds: 1\nresyncSeconds: 1\n")
    prefix = ("unshare", "--mount", "sh", "-c", f"mount --make-rprivate /; {BLIND[request.param]}", "sh")
    environ = {"PODS": " ".join(lab.host.netns.removesuffix("host") + name for name in OUT_OF_SIGHT)}
    with Agent(lab, client, "--config", str(settings), prefix=prefix, environ=environ) as agent:
        yield agent


def test_a_pod_is_attached_and_detached_by_its_descriptor(lab: Lab, blind: Agent) -> None:
    before = inventory(lab)
    pods = [lab.pod(name, lab.conf(dual=True)) for name in ("bridge", "plain")]
    assert pods[0].pings(pods[1])
    for pod in pods:
        assert lab.host.pings(pod)
        pod.check()
        pod.delete()
        assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert inventory(lab) == before


def test_living_pods_that_cannot_be_seen_are_not_taken_for_gone(lab: Lab, blind: Agent) -> None:
    """Not even those of which nothing on the host shows that they live."""
    lab.host.ip_batch("link add spare type veth peer name far", "link set far up", "link set spare up")
    pods = [lab.container(name, lab.conf(**changes), "net1") for name, changes in OUT_OF_SIGHT.items()]
    *_, down, _, inside = pods
    lab.switch.plug(inside)
    inside.ip("link", "set", "eth0", "up")
    for pod in pods:
        pod.add()
    down.ip("link", "set", "net1", "down")
    before = inventory(lab, *pods)
    time.sleep(3.5)  # three times the grace
    assert inventory(lab, *pods) == before
    for pod in pods:
        pod.delete()
        assert "net1" not in {link["ifname"] for link in pod.links()}


def test_del_without_a_namespace_clears_what_is_left_of_a_pod_that_is_gone(lab: Lab, blind: Agent) -> None:
    before = inventory(lab)
    pod = lab.pod("bridge")
    lab.host.ip("netns", "del", pod.name)
    pod.variables["CNI_NETNS"] = ""
    pod.delete()
    assert inventory(lab) == before


# --- many at once, and many one after the other ----------------------------------------------------------------------


def test_sixty_at_once(lab: Lab, agent: Agent) -> None:
    before = inventory(lab)
    pods = [lab.container(f"pod{number}", lab.conf(dual=True)) for number in range(60)]
    flights = [launch(lab, pod, "ADD") for pod in pods]
    for pod, flight in zip(pods, flights, strict=True):
        pod.result = flight.land().or_raise().json
    assert len({ip["address"] for pod in pods for ip in pod.result["ips"]}) == 120
    for command in ("CHECK", "DEL"):
        for flight in [launch(lab, pod, command) for pod in pods]:
            flight.land().or_raise()
    assert inventory(lab) == before


PAIRS = size(300, 2000)
REQUESTS = 4  # at the same time


def test_nothing_leaks(lab: Lab, agent: Agent) -> None:
    """What the agent has open after the first pods is as much as it has open after many, and after many errors."""
    pods = [lab.container(f"pod{number}", lab.conf(dual=True, shim=SERVICES)) for number in range(20)]

    def come_and_go(pod: Pod) -> None:
        pod.add()
        pod.check()
        pod.delete()

    def fail(pod: Pod) -> None:
        variables = {**pod.variables, "CNI_NETNS": "/run/netns/gone"}
        for conf in (pod.conf, {**pod.conf, "master": "nope"}, {**pod.conf, "dataDir": "/proc/shimlan"}):
            assert not pod.runtime.call("ADD", conf, variables).ok
            assert not pod.runtime.call("CHECK", conf, pod.variables).ok

    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(come_and_go, pods))
        list(pool.map(fail, pods[:REQUESTS]))
        assert eventually(lambda: at_rest(agent), 30)
        before = opened(agent)
        list(pool.map(come_and_go, pods * (PAIRS // len(pods))))
        list(pool.map(fail, pods))
    assert eventually(lambda: at_rest(agent) and opened(agent) <= before, 30), (before, opened(agent))


def test_namespaces_end_with_their_pods(lab: Lab, agent: Agent) -> None:
    """Each has one end of a cable, of which the other end goes when the namespace ends, and not before."""
    far = lab.netns("far")
    numbers = len(lab.host.ip("netns", "list-id").splitlines())
    pods = [lab.container(f"pod{number}") for number in range(20)]
    for pod in pods:
        far.ip("link", "add", pod.label, "type", "veth", "peer", "name", "cable", "netns", pod.name)
        pod.add()
    living, *dying = pods
    for pod in dying[::2]:
        pod.delete()
    for pod in dying:
        subprocess.run(["ip", "netns", "del", pod.name], check=True)
    assert eventually(lambda: [link["ifname"] for link in far.links()] == ["lo", living.label])
    assert len(lab.host.ip("netns", "list-id").splitlines()) == numbers + 1
    living.check()


def opened(agent: Agent) -> Counter[str]:
    """How many descriptors and threads the agent has."""
    return Counter({what: len(os.listdir(f"/proc/{agent.pid}/{what}")) for what in ("fd", "task")})


def at_rest(agent: Agent) -> bool:
    """Whether nobody waits for the kernel to finish a deletion any more, and threads without work have ended."""
    before = opened(agent)
    time.sleep(1.0)
    return opened(agent) == before


# --- the end ---------------------------------------------------------------------------------------------------------

SLOW = """#!/bin/sh
echo "$CNI_COMMAND" >> "$0.calls"
[ "$CNI_COMMAND" = ADD ] && { sleep "$(cat "$0.seconds")"; echo '{"ips": [{"address": "192.0.2.90/24"}]}'; }
exit 0
"""


def slow_pod(lab: Lab, directory: Path, seconds: float) -> Pod:
    """A pod whose IPAM plugin takes its time for ADD."""
    plugin = directory / "slow"
    plugin.write_text(SLOW)
    plugin.chmod(0o755)
    plugin.with_name("slow.seconds").write_text(str(seconds))
    conf = lab.conf(ipam={"type": "slow", "ranges": None, "routes": None})
    return lab.container("pod", conf, CNI_PATH=str(directory))


def is_called(directory: Path) -> bool:
    """Whether that plugin has been called."""
    return (directory / "slow.calls").exists()


def test_a_request_under_way_is_finished_before_the_end(lab: Lab, agent: Agent, tmp_path: Path) -> None:
    """However often it is told to stop."""
    pod = slow_pod(lab, tmp_path, 1.5)
    flight = launch(lab, pod, "ADD")
    assert eventually(lambda: is_called(tmp_path))
    for _ in range(3):
        os.kill(agent.pid, signal.SIGTERM)
        time.sleep(0.1)
    os.kill(agent.pid, signal.SIGINT)
    assert lab.cni("STATUS", lab.conf()).json["code"] == 11
    pod.result = flight.land().or_raise().json
    assert agent.stop() == 0
    agent.start()
    pod.check()
    pod.delete()


def test_a_request_that_takes_too_long_is_left_behind(lab: Lab, client: Path, tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("stopSeconds: 1\n")
    pod = slow_pod(lab, tmp_path, 60)
    before = inventory(lab, pod)
    with Agent(lab, client, "--config", str(tmp_path / "agent.yaml")) as agent:
        flight = launch(lab, pod, "ADD")
        assert eventually(lambda: is_called(tmp_path))
        assert agent.stop() == 1
        assert "stopped, with requests unfinished after 1 s" in agent.log
        assert flight.land().json["code"] == 11
        agent.start()
        pod.delete()
        assert inventory(lab, pod) == before


def test_who_cannot_wait_does_not_keep_it_from_ending(lab: Lab, agent: Agent) -> None:
    """Signals that come while others are being dealt with."""
    for _ in range(size(5, 40)):
        pid = agent.pid
        for _ in range(3000):
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        assert agent.stop() == 0
        agent.start()
    lab.pod("pod").check()


def test_it_ends_early_as_well(lab: Lab, agent: Agent) -> None:
    """Whatever it is doing when it is told to stop while it starts."""
    assert agent.stop() == 0
    chance = seeded("stop while starting")
    for _ in range(size(8, 60)):
        process = agent.launch()
        time.sleep(chance.uniform(0, 0.8))
        process.terminate()
        assert process.wait(STOP_SECONDS) in (0, -signal.SIGTERM)
    agent.start()
    lab.pod("pod").check()


# --- the beginning ---------------------------------------------------------------------------------------------------


def test_a_second_agent_does_not_start(lab: Lab, agent: Agent) -> None:
    second = agent.launch()
    assert second.wait(STOP_SECONDS) == 1
    assert agent.log.splitlines()[-1] == (
        f"shimlanctl: {agent.socket} is served by process {agent.pid}: stop that agent first (kill {agent.pid})"
    )
    lab.pod("pod").check()


WRONG: dict[str, tuple[str, int, str]] = {
    "no file": ("", 1, "cannot read the agent's configuration file"),
    "no YAML": ("a: [", 1, "is not YAML"),
    "an unknown key": ("resyncSecond: 7", 1, "there is no such setting; did you mean resyncSeconds?"),
    "wrong values": ("logLevel: loud\ngraceSeconds: 0", 1, "logLevel: must be one of error, warning"),
}


@pytest.mark.parametrize(("text", "status", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_told_in_one_line(lab: Lab, client: Path, text: str, status: int, words: str) -> None:
    with Agent(lab, client) as agent:
        assert agent.stop() == 0
        said = len(agent.log.splitlines())
        settings = agent.directory / "agent.yaml"
        if text:
            settings.write_text(text)
        assert agent.launch("--config", str(settings)).wait(STOP_SECONDS) == status
        (line,) = agent.log.splitlines()[said:]
        assert line.startswith("shimlanctl: ")
        assert words in line


IMPOSSIBLE: dict[str, tuple[tuple[str, str], str]] = {
    "a socket": (("--socket", "/proc/agent.sock"), "cannot listen at /proc/agent.sock: "),
    "metrics": (("--metrics", "192.0.2.77:9113"), "metrics: cannot listen on 192.0.2.77:9113: "),
}


@pytest.mark.parametrize(("option", "words"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_place_where_it_cannot_be_is_told_in_one_line(
    lab: Lab, agent: Agent, option: tuple[str, str], words: str
) -> None:
    said = len(agent.log.splitlines())
    process = agent.launch("--socket", f"{agent.directory}/elsewhere.sock", *option)
    assert process.wait(STOP_SECONDS) == 1
    (line,) = agent.log.splitlines()[said:]
    assert line.startswith(f"shimlanctl: {words}")


# systemd gives a service its sockets from descriptor 3 on, and says to which process.
PROGRAM = """
import os, sys
os.dup2(int(os.environ["PASSED"]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[1], sys.argv[1:])
"""
AS_SYSTEMD = (sys.executable, "-c", PROGRAM)


def test_a_socket_of_systemds_outlives_the_agent(lab: Lab, client: Path, tmp_path: Path) -> None:
    """Whoever calls while no agent runs waits for the next one."""
    path = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        passed = listener.fileno()
        environ = {"PASSED": str(passed)}
        with Agent(lab, client, prefix=AS_SYSTEMD, environ=environ, pass_fds=(passed,)) as agent:
            lab.environ["SHIMLAN_SOCKET"] = path
            pod = lab.pod("pod")
            assert agent.stop() == 0
            flight = launch(lab, pod, "CHECK")
            with pytest.raises(subprocess.TimeoutExpired):
                flight.process.wait(0.3)
            agent.start()
            flight.land().or_raise()
            pod.delete()
            assert not os.path.exists(agent.socket)
    assert os.path.exists(path)


def test_systemd_hears_of_its_beginning_and_its_end(lab: Lab, agent: Agent) -> None:
    assert agent.stop() == 0
    path = str(agent.directory / "systemd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(STOP_SECONDS)
        process = agent.launch(NOTIFY_SOCKET=path)
        assert systemd.recv(100) == b"READY=1"
        assert lab.cni("STATUS", lab.conf()).ok
        process.terminate()
        assert systemd.recv(100) == b"STOPPING=1"
        assert process.wait(STOP_SECONDS) == 0


# --- what it tells ---------------------------------------------------------------------------------------------------

WEB = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"


ADDRESSES = ["192.0.2.150", "2001:db8::150"]


def test_a_networks_log_file_has_the_lines_that_the_in_process_plugin_writes(lab: Lab, agent: Agent) -> None:
    """But that a pod is named; the agent's own log has them, too."""
    file = Path(lab.data_dir, "network.log")
    conf = lab.conf(dual=True, shim=SERVICES, logLevel="debug", logFile=str(file), args={"cni": {"ips": ADDRESSES}})
    pod = lab.container("pod", conf, CNI_ARGS=WEB)
    told = []
    for runtime in (in_process(lab), lab.runtime()):
        pod.runtime = runtime
        pod.add()
        pod.delete()
        # Without the time, which comes first.
        told.append([line.partition(" ")[2] for line in file.read_text().splitlines()])
        file.unlink()
    in_process_lines, agent_lines = told
    assert agent_lines[0].startswith(f"shimlan: debug: ADD lan {pod.container_id[:13]} eth0 default/web-0: ")
    assert [line.replace(" default/web-0:", ":") for line in agent_lines] == in_process_lines
    assert set(agent_lines) <= set(agent.log.splitlines())


def test_lines_of_json_say_whose_call_they_are_of(lab: Lab, client: Path) -> None:
    with Agent(lab, client, "--log-format", "json", "--log-level", "debug") as agent:
        pod = lab.pod("pod", CNI_ARGS=WEB)
        assert not pod.runtime.call("ADD", lab.conf(master="nope"), {**pod.variables, "CNI_CONTAINERID": "other"}).ok
        pod.delete()
        entries = [json.loads(line) for line in agent.log.splitlines()]
    whose = {"network": "lan", "container": pod.container_id, "ifname": "eth0", "pod": "default/web-0"}
    of_add = [entry for entry in entries if entry.get("command") == "ADD" and entry["level"] == "debug"]
    assert of_add
    for entry in of_add:
        assert entry.items() >= whose.items()
    (refusal,) = [entry for entry in entries if entry["level"] == "warning"]
    assert (refusal["container"], refusal["command"]) == ("other", "ADD")
    assert "there is no link nope" in refusal["message"]
    assert all(entry["time"] for entry in entries)


PORT = 9113


def test_metrics_and_health_by_http(lab: Lab, client: Path) -> None:
    with Agent(lab, client, "--metrics", f"127.0.0.1:{PORT}"):
        assert eventually(lambda: asked(lab, "/readyz") == (200, "ok\n"))
        assert asked(lab, "/healthz") == (200, "ok\n")
        assert asked(lab, "/nothing")[0] == 404
        pod = lab.pod("pod")
        other = {**pod.variables, "CNI_CONTAINERID": "other"}
        assert not pod.runtime.call("ADD", lab.conf(master="nope"), other).ok
        assert not pod.runtime.call("DEL", "no JSON", other).ok
        lab.host.ip("link", "del", "shim2")
        assert eventually(lambda: lab.host.pings(pod, wait=0.2))
        status, text = asked(lab, "/metrics")
        assert status == 200
        metrics = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert metrics['shimlan_requests_total{code="0",command="ADD",network="lan"}'] == "1.0"
        assert metrics['shimlan_requests_total{code="102",command="ADD",network="lan"}'] == "1.0"
        assert metrics['shimlan_requests_total{code="6",command="DEL",network=""}'] == "1.0"
        assert metrics['shimlan_attachments{network="lan"}'] == "1.0"
        used = 'shimlan_pool_addresses{network="lan",range="192.0.2.100-192.0.2.199",state="held"}'
        assert metrics[used] == "1.0"
        assert float(metrics['shimlan_repairs_total{kind="link"}']) >= 1
        assert float(metrics["shimlan_workers"]) >= 1


def asked(lab: Lab, path: str) -> tuple[int, str]:
    """What the agent answers by HTTP to somebody on its host."""

    def ask() -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", PORT, timeout=SOON)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()

    return lab.host.inside(ask)
