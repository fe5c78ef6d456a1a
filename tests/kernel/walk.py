"""What can happen to a host with pods, step by step, and what is to be there when all has come to rest. Pure.

The model knows nothing of how anything is done or mended. Of a pod it knows what ADD told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

MOST_PODS = 6
PREFIX = {4: 24, 6: 64}
SUBNETS = {4: "192.0.2.0/24", 6: "2001:db8::/64"}
GATEWAYS = {4: "192.0.2.1", 6: "2001:db8::1"}
SERVICES = {4: "10.96.0.0/16", 6: "fd00:96::/112"}
ADDRESSES = ("192.0.2.10", "192.0.2.20", "2001:db8::10", "2001:db8::20")  # that the host may have
FIRST = frozenset({"192.0.2.10", "2001:db8::10"})  # that it begins with
MTUS = ("1500", "1400", "1300")
UP, DOWN, ABSENT = "up", "down", "absent"

# Codes of CNI errors.
INVALID_CONFIG, AGAIN_LATER, NOT_AVAILABLE, PARENT_UNUSABLE, DIFFERS = 7, 11, 50, 102, 104


@dataclass(frozen=True)
class Sandbox:
    """A pod as ADD told of it; without addresses if that has failed, and its DEL is still to come."""

    name: str
    addresses: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 0


@dataclass(frozen=True)
class World:
    """The host and its pods."""

    pods: tuple[Sandbox, ...] = ()
    agent: bool = True
    substitute: bool = False  # the in-process plugin stands in while there is no agent
    parent: str = UP
    mtu: int = 1500
    addresses: frozenset[str] = FIRST

    @property
    def attached(self) -> tuple[Sandbox, ...]:
        """The pods whose ADD has succeeded."""
        return tuple(pod for pod in self.pods if pod.addresses)

    def without(self, name: str) -> World:
        """The same without a pod."""
        return replace(self, pods=tuple(pod for pod in self.pods if pod.name != name))


@dataclass(frozen=True)
class Step:
    """Something that happens, to a pod, an address ... if there is anything to choose."""

    kind: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.what}".rstrip()


# --- what can happen -------------------------------------------------------------------------------------------------

ADD, DEL, CHECK, GC, STATUS = "ADD", "DEL", "CHECK", "GC", "STATUS"
LOSE = "lose"
KILL, STOP, START = "kill the agent", "stop the agent", "start the agent"
GIVE, TAKE = "give the address", "take the address"
SET_DOWN, SET_UP, UNPLUG, PLUG = "set the parent down", "set the parent up", "unplug the parent", "plug the parent"
SET_MTU = "set the parent's MTU to"
LOOK = "look"

# Commands of `ip` and `nft` by which others undo what we have made.
ON_HOST = {
    "delete the shim": ("ip link del {shim}",),
    "set the shim down": ("ip link set {shim} down",),
    "flush our routes": ("ip route flush proto 174", "ip -6 route flush proto 174"),
    "flush the host's neighbours": ("ip neigh flush nud permanent", "ip -6 neigh flush nud permanent"),
    "flush nftables": ("nft flush ruleset",),
}
IN_POD = {
    "flush the routes of": ("ip route flush table main", "ip -6 route flush table main"),
    "flush the neighbours of": ("ip neigh flush nud permanent", "ip -6 neigh flush nud permanent"),
    "flush the addresses of": ("ip address flush dev eth0 scope global",),
    "set down the link of": ("ip link set eth0 down",),
    "delete the link of": ("ip link del eth0",),
}

Choice = Callable[[World], Sequence[str]]
NO_CHOICE = ("",)


def _once(possible: Callable[[World], bool]) -> Choice:
    return lambda world: NO_CHOICE if possible(world) else ()


def _any_attached(world: World) -> Sequence[str]:
    return [pod.name for pod in world.attached]


# How often a step is taken in relation to others, and what there is to choose: nothing where it is not possible.
STEPS: dict[str, tuple[int, Choice]] = {
    ADD: (6, _once(lambda world: len(world.pods) < MOST_PODS)),
    DEL: (4, lambda world: [pod.name for pod in world.pods]),
    CHECK: (2, _any_attached),
    GC: (1, _once(lambda _: True)),
    STATUS: (1, _once(lambda _: True)),
    LOSE: (1, _any_attached),
    KILL: (1, _once(lambda world: world.agent)),
    STOP: (1, _once(lambda world: world.agent)),
    START: (6, _once(lambda world: not world.agent)),
    GIVE: (1, lambda world: sorted({*ADDRESSES} - world.addresses) if world.parent == UP else ()),
    TAKE: (1, lambda world: sorted(world.addresses)),
    SET_DOWN: (1, _once(lambda world: world.parent == UP)),
    SET_UP: (4, _once(lambda world: world.parent == DOWN)),
    UNPLUG: (1, _once(lambda world: world.parent != ABSENT)),
    PLUG: (4, _once(lambda world: world.parent == ABSENT)),
    SET_MTU: (1, lambda world: MTUS if world.parent != ABSENT else ()),
    LOOK: (2, _once(lambda _: True)),
    **dict.fromkeys(ON_HOST, (1, _once(lambda world: bool(world.attached)))),
    **dict.fromkeys(IN_POD, (1, _any_attached)),
}


def choose(world: World, chance: random.Random) -> Step:
    """What happens next."""
    possible = {kind: whats for kind, (_, choice) in STEPS.items() if (whats := choice(world))}
    (kind,) = chance.choices(list(possible), [STEPS[kind][0] for kind in possible])
    return Step(kind, chance.choice(possible[kind]))


AFTER: dict[str, Callable[[World, str], World]] = {
    LOSE: lambda world, name: world.without(name),
    KILL: lambda world, _: replace(world, agent=False),
    STOP: lambda world, _: replace(world, agent=False),
    START: lambda world, _: replace(world, agent=True),
    GIVE: lambda world, ip: replace(world, addresses=world.addresses | {ip}),
    TAKE: lambda world, ip: replace(world, addresses=world.addresses - {ip}),
    # The kernel removes the IPv6 addresses.
    SET_DOWN: lambda world, _: replace(
        world, parent=DOWN, addresses=frozenset(ip for ip in world.addresses if version(ip) == 4)
    ),
    SET_UP: lambda world, _: replace(world, parent=UP),
    UNPLUG: lambda world, _: replace(world, parent=ABSENT, addresses=frozenset()),
    PLUG: lambda world, _: replace(world, parent=UP, mtu=1500, addresses=FIRST),
    SET_MTU: lambda world, mtu: replace(world, mtu=int(mtu)),
}


def after(world: World, step: Step) -> World:
    """The world after a step, ADD and DEL aside, which may fail. What others undo is to come back."""
    return AFTER[step.kind](world, step.what) if step.kind in AFTER else world


def may_fail_with(world: World, command: str) -> set[int]:
    """The codes with which a verb may fail as things are; it has to succeed where there are none."""
    if not (world.agent or world.substitute):
        return {AGAIN_LATER}
    if world.parent != UP and command in (ADD, STATUS):
        return {PARENT_UNUSABLE if command == ADD else NOT_AVAILABLE}
    if command == ADD and missing_families(world.addresses):  # by which services are reached
        return {INVALID_CONFIG}
    return {DIFFERS} if command == CHECK else set()


def toward_rest(world: World) -> list[Step]:
    """What has to happen until all can be as it is wanted: the agent, the parent, addresses of both families."""
    steps = [] if world.agent else [Step(START)]
    steps += {UP: [], DOWN: [Step(SET_UP)], ABSENT: [Step(PLUG)]}[world.parent]
    missing = missing_families(FIRST if world.parent == ABSENT else world.addresses)
    return steps + [Step(GIVE, ip) for ip in sorted(FIRST) if version(ip) in missing]


# --- what is to be there ---------------------------------------------------------------------------------------------


def version(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def missing_families(addresses: Collection[str]) -> set[int]:
    """The IP versions of which there is no address."""
    return {4, 6} - set(map(version, addresses))


def wanted(world: World) -> set[str]:
    """What is to be there when all has come to rest, a line each."""
    lines = {line for pod in world.attached for line in (*_in_pod(world, pod), *_on_host(pod), *_stored(pod))}
    if world.attached:
        lines.add(f"host: the shim mtu {world.mtu} up")
        lines |= {f"host: source NAT to the host, IPv{family}" for family in (4, 6)}
    return lines


def _in_pod(world: World, pod: Sandbox) -> list[str]:
    lines = [f"eth0 {pod.mac} mtu {min(pod.mtu, world.mtu)} up", *(f"address {ip}" for ip in pod.addresses)]
    for family in map(version, pod.addresses):
        default = "0.0.0.0/0" if family == 4 else "::/0"
        lines += [f"route {SUBNETS[family]}", f"route {default} via {GATEWAYS[family]}"]
        lines.append(f"route {SERVICES[family]} via the host")
    for ip in world.addresses:
        lines += [f"route {ip}/{32 if version(ip) == 4 else 128}", f"neighbour {ip} at the shim"]
    return [f"{pod.name}: {line}" for line in lines]


def _on_host(pod: Sandbox) -> list[str]:
    lines = [f"neighbour {ip} at {pod.mac}" for ip in pod.addresses]
    lines += [f"route {ip}/{32 if version(ip) == 4 else 128} from the host" for ip in pod.addresses]
    return [f"host: {line}" for line in lines]


def _stored(pod: Sandbox) -> list[str]:
    return [f"store: record of {pod.name}", *(f"store: lease of {ip} to {pod.name}" for ip in pod.addresses)]
