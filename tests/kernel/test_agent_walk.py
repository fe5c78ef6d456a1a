"""A random walk over all that can happen to a host with an agent: at rest, kernel, store and model agree.

SHIMLAN_WALK_SECONDS says for how long in all, SHIMLAN_SEED which one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from cni.attachment import Link
from cni.ctl.lab import CniAnswer, Lab, Pod
from cni.ctl.runtime import installed_shimlan
from cni.kernel import Namespace
from tests.kernel import walk
from tests.kernel.agents import Agent
from tests.kernel.kubelet import Kubelet, note
from tests.kernel.torture import seeded
from tests.kernel.traces import held, records
from tests.kernel.walk import ADD, CHECK, DEL, GC, PREFIX, STATUS, Sandbox, Step, World, version

pytestmark = pytest.mark.without_agent("it has one of its own")

SECONDS = float(os.environ.get("SHIMLAN_WALK_SECONDS", "25"))
# The agent is left to its ears: what it does not hear is not put right by looking at everything.
SETTINGS = "graceSeconds: 1\nresyncSeconds: 86400\n"
PATIENCE_SECONDS = 60.0  # in which the agent may leave things as they are for a while that are undone again and again
LONGEST_PAUSE_SECONDS = 0.3


@pytest.mark.parametrize("substitute", [False, True], ids=["alone", "with-fallback"])
def test_at_rest_all_agree(lab: Lab, client: Path, tmp_path: Path, substitute: bool) -> None:
    settings = tmp_path / "agent.yaml"
    settings.write_text(SETTINGS)
    chance = seeded(f"walk, {substitute=}")
    fallback = installed_shimlan() or "" if substitute else ""
    with Agent(lab, client, "--config", str(settings), fallback=fallback) as agent:
        walker = Walker(lab, agent, World(substitute=substitute))
        until = time.monotonic() + SECONDS / 2
        while time.monotonic() < until:
            walker.take(walk.choose(walker.world, chance))
            time.sleep(chance.uniform(0, LONGEST_PAUSE_SECONDS))
        walker.take(Step(walk.LOOK))
        walker.remove_all()
    print(f"{walker.steps} steps; the longest way to rest took {walker.longest:.1f} s")


class Walker:
    """Takes the steps on a lab, and keeps the model up to date."""

    def __init__(self, lab: Lab, agent: Agent, world: World) -> None:
        self._lab = lab
        self._agent = agent
        self._kubelet = Kubelet(lab, dual=True, shim={"routes": [*walk.SERVICES.values()]}, ipam={"cooldownSeconds": 0})
        self._pods: dict[str, Pod] = {}
        self._numbers = count()
        self._begin = time.monotonic()
        self._doings: dict[str, Callable[[Step], None]] = {
            ADD: self._add,
            DEL: self._delete,
            CHECK: self._check,
            GC: self._collect,
            STATUS: self._ask,
            walk.LOSE: self._lose,
            walk.KILL: lambda _: agent.kill(),
            walk.STOP: self._stop,
            walk.START: lambda _: agent.start(),
            walk.PLUG: self._plug,
            walk.LOOK: self._look,
            **dict.fromkeys(CONFIGURING, self._configure),
            **dict.fromkeys(walk.ON_HOST, self._undo_on_host),
            **dict.fromkeys(walk.IN_POD, self._undo_in_pod),
        }
        self.world = world
        self.steps = 0
        self.longest = 0.0
        lab.host.sysctl("net.ipv4.conf.all.promote_secondaries", 1)

    def take(self, step: Step) -> None:
        """Do it, and go on from there."""
        print(f"{time.monotonic() - self._begin:7.2f} {step}")
        self.steps += 1
        self._doings[step.kind](step)
        self.world = walk.after(self.world, step)

    def remove_all(self) -> None:
        """Remove all pods; nothing is left of them."""
        for name in list(self._pods):
            self.take(Step(DEL, name))
        assert self.world.pods == ()
        self._come_to_rest()

    # --- what the runtime does ---------------------------------------------------------------------------------

    def _is_done(self, command: str, answer: CniAnswer) -> bool:
        """Whether a verb has succeeded, as it must unless there is a reason."""
        allowed = walk.may_fail_with(self.world, command)
        assert answer.ok or answer.json["code"] in allowed, f"{answer}, which may fail with {allowed or 'nothing'}"
        return answer.ok

    def _add(self, _: Step) -> None:
        name = f"pod{next(self._numbers)}"
        pod = self._pods[name] = self._kubelet.sandbox(name)
        sandbox = Sandbox(name)
        if self._is_done(ADD, answer := self._kubelet.call(ADD, pod)):
            note(pod, answer)
            mac = pod.result["interfaces"][0]["mac"]
            sandbox = Sandbox(name, (pod.address, pod.address6), mac, self.world.mtu)
        self.world = replace(self.world, pods=(*self.world.pods, sandbox))

    def _delete(self, step: Step) -> None:
        pod = self._pods[step.what]
        if self._is_done(DEL, self._kubelet.call(DEL, pod)):
            self._lose(step)
            self.world = self.world.without(step.what)

    def _lose(self, step: Step) -> None:
        self._kubelet.lose(self._pods.pop(step.what))

    def _check(self, step: Step) -> None:
        self._is_done(CHECK, self._kubelet.call(CHECK, self._pods[step.what]))

    def _collect(self, _: Step) -> None:
        living = [self._pods[pod.name] for pod in self.world.attached]
        valid = [{"containerID": pod.container_id, "ifname": pod.dev} for pod in living]
        self._is_done(GC, self._kubelet.ask(GC, **{"cni.dev/valid-attachments": valid}))

    def _ask(self, _: Step) -> None:
        self._is_done(STATUS, self._kubelet.ask(STATUS))

    # --- what happens to the host ------------------------------------------------------------------------------

    def _stop(self, _: Step) -> None:
        assert self._agent.stop() == 0

    def _plug(self, _: Step) -> None:
        host = self._lab.host
        self._lab.switch.plug(host)
        host.ip_batch("link set eth0 up", *(given(ip) for ip in sorted(walk.FIRST)))

    def _configure(self, step: Step) -> None:
        self._lab.host.ip(*CONFIGURING[step.kind](step.what).split())

    def _undo_on_host(self, step: Step) -> None:
        for command in walk.ON_HOST[step.kind]:
            self._lab.host.run(*command.format(shim=f"shim{self._parent_index()}").split(), check=False)

    def _undo_in_pod(self, step: Step) -> None:
        for command in walk.IN_POD[step.kind]:
            self._pods[step.what].run(*command.split(), check=False)

    def _parent_index(self) -> int:
        found = [row["ifindex"] for row in self._lab.host.links() if row["ifname"] == "eth0"]
        return int(found[0]) if found else 0

    # --- at rest -----------------------------------------------------------------------------------------------

    def _look(self, _: Step) -> None:
        """Let all be as it can be, and compare."""
        for step in walk.toward_rest(self.world):
            self.take(step)
        self._come_to_rest()
        for sandbox in self.world.attached:
            for family in (4, 6):
                assert self._lab.host.pings(self._pods[sandbox.name], family)

    def _come_to_rest(self) -> None:
        begin = time.monotonic()
        while trouble := self._trouble():
            assert time.monotonic() - begin < PATIENCE_SECONDS, trouble
            time.sleep(0.05)
        self.longest = max(self.longest, time.monotonic() - begin)

    def _trouble(self) -> str:
        """What is not as it should be, if anything is."""
        found, wanted = self._found(), walk.wanted(self.world)
        if found != wanted:
            return f"too much: {sorted(found - wanted)}, missing: {sorted(wanted - found)}"
        for pod in self.world.attached:
            answer = self._kubelet.call(CHECK, self._pods[pod.name])
            if not answer.ok:
                return f"CHECK of {pod.name}: {answer.stdout}"
        return ""

    def _found(self) -> set[str]:
        """What there is on the host, in pods and in the store, in the words of the model."""
        shim = f"shim{self._parent_index()}"
        words = dict.fromkeys(self.world.addresses, "the host")
        for row in self._lab.host.links():
            if row["ifname"] == shim:
                words[row["address"]] = "the shim"
        in_pods = (f"{name}: {line}" for name, pod in self._pods.items() for line in pod.inside(lambda: in_pod(words)))
        on_host = (f"host: {line}" for line in self._lab.host.inside(lambda: behind_shims(shim, words)))
        rules = self._lab.host.run("nft", "list", "ruleset", check=False).stdout
        nat = (source_nat(rule, shim, words) for rule in rules.splitlines() if "snat" in rule)
        return {*in_pods, *on_host, *nat, *in_store(self._lab)}


# --- doing -----------------------------------------------------------------------------------------------------------


def given(ip: str) -> str:
    """The command of `ip` by which the host gets an address."""
    return f"address add {ip}/{PREFIX[version(ip)]} dev eth0" + (" nodad" if version(ip) == 6 else "")


CONFIGURING: dict[str, Callable[[str], str]] = {
    walk.GIVE: given,
    walk.TAKE: lambda ip: f"address del {ip}/{PREFIX[version(ip)]} dev eth0",
    walk.SET_DOWN: lambda _: "link set eth0 down",
    walk.SET_UP: lambda _: "link set eth0 up",
    walk.UNPLUG: lambda _: "link del eth0",
    walk.SET_MTU: lambda mtu: f"link set eth0 mtu {mtu}",
}


# --- seeing ----------------------------------------------------------------------------------------------------------


def in_pod(words: Mapping[str, str]) -> list[str]:
    """What there is of the macvlans in this namespace; `words` are those of the model for addresses and MACs."""
    lines = []
    with closing(Namespace()) as namespace:
        for link in macvlans(namespace):
            lines.append(f"{link.name} {link.mac} mtu {link.mtu} {state(link)}")
            lines += [f"address {address.ip}" for _, address in namespace.addresses(link.index)]
            for route in namespace.routes(link.index):
                if not route.dst.is_link_local:
                    via = f" via {words.get(str(route.via), route.via)}" if route.via else ""
                    lines.append(f"route {route.dst}{via}")
            lines += [
                f"neighbour {entry.ip} at {words.get(entry.mac, entry.mac)}"
                for entry in namespace.neighbours(link.index)
            ]
    return lines


def behind_shims(shim: str, words: Mapping[str, str]) -> list[str]:
    """The same of the macvlans on the host, of which `shim` is the one that should be."""
    lines = []
    with closing(Namespace()) as namespace:
        for link in macvlans(namespace):
            lines.append(f"{'the shim' if link.name == shim else link.name} mtu {link.mtu} {state(link)}")
            for route in namespace.routes(link.index):
                lines.append(f"route {route.dst} from {words.get(str(route.src), route.src)}")
            lines += [f"neighbour {entry.ip} at {entry.mac}" for entry in namespace.neighbours(link.index)]
    return lines


def macvlans(namespace: Namespace) -> list[Link]:
    """The links that are ours."""
    return [link for link in namespace.links() if link.kind == "macvlan"]


def state(link: Link) -> str:
    """In a word."""
    return "up" if link.up else "down"


def source_nat(rule: str, shim: str, words: Mapping[str, str]) -> str:
    """A rule that translates sources."""
    address = rule.split()[-1]
    where = "" if f'"{shim}"' in rule else f" ({rule.strip()})"
    return f"host: source NAT to {words.get(address, address)}, IPv{version(address)}{where}"


def in_store(lab: Lab) -> list[str]:
    """Records and leases, by the names of pods."""
    lines = [f"store: record of {name(each.key.container_id)}" for each in records(lab)]
    return lines + [f"store: lease of {each.address} to {name(each.container_id)}" for each in held(lab)]


def name(container_id: str) -> str:
    """The name of the pod that has a container ID."""
    return container_id.rpartition("-")[0]
