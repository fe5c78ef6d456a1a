"""What doctor asks the LAN: does it carry frames of a MAC that is not the NIC's, and does anybody use our addresses?

The questions are the probes of `cni.probe`, which nobody learns anything from. The one from a foreign MAC is sent by a
macvlan in a scratch namespace, as a pod would send it; nothing of it is left afterwards, whatever happens meanwhile.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from itertools import chain, islice

from cni import netns, refusals, rtnetlink
from cni.attachment import MAIN_TABLE, Link, Parent
from cni.config import NetConf
from cni.ctl.doctor.facts import Lan, Stranger
from cni.diff import AddLink, SetSysctl, SetUp
from cni.errors import CniError, KernelRefused, ParentUnusable
from cni.frozen import replace
from cni.inet import unpacked
from cni.kernel import Namespace
from cni.netlink import Socket, attribute_map
from cni.probe import who_has
from ipam.pools import Span, address_of, number_of, pools_of, runs

Address = IPv4Address | IPv6Address

TIMEOUT_MS, RETRIES = 300, 3  # of a question that somebody should answer
SCAN_TIMEOUT_MS, SCAN_RETRIES = 150, 2  # of those that nobody should answer
SCAN_ADDRESSES = 256
SCAN_SECONDS = 15.0
AT_ONCE = 32
NEIGHBOURS_TO_ASK = 3

ALIAS = "shimlanctl doctor"
CHILDREN = ("macvlan", "macvtap")
BESIDE_PASSTHRU = (
    "and a pod in mode passthru takes no other child beside it: remove the other pods, or take another NIC or mode"
)
SHIM_QUEUES = 2  # as the shim has: it takes no slot of the hardware that a pod could have
NUD_REACHABLE, NUD_STALE = 0x02, 0x04  # include/uapi/linux/neighbour.h


def lan(conf: NetConf, namespace: Namespace, parent: Parent, scratch: int, held: frozenset[Address]) -> Lan:
    """What the LAN of the parent says; `held` are addresses that our own pods have."""
    own = {entry.ip for _, entry in namespace.addresses()}
    ask = partial(who_has, parent.name, parent.mac, timeout_ms=TIMEOUT_MS, retries=RETRIES)
    needed = [gateway for gateway in _needed_gateways(conf) if gateway not in own]
    alive = [gateway for gateway in needed if ask(gateway)]
    others = (other for other in _others(namespace, parent) if other not in own and other not in held)
    answering = next(chain(alive, (other for other in others if other not in needed and ask(other))), None)
    free = _free(conf, held | own)
    first = _first(free)
    return Lan(
        stranger=_stranger(conf, namespace, parent, scratch, answering),
        dead_gateways=tuple(str(gateway) for gateway in needed if gateway not in alive),
        asked_addresses=len(first),
        free_addresses=sum(run.size for pool in free for run in pool),
        conflicts=tuple(_users(namespace, parent, first)),
    )


# --- whom to ask -------------------------------------------------------------------------------------------------


def _needed_gateways(conf: NetConf) -> list[Address]:
    """The gateways that routes of the pods lead through; those of IPv4 first, whose answers go to the asker alone."""
    if conf.ipam is None:
        return []
    families = {route.dst.version for route in conf.ipam.routes if route.gw is None}
    gateways = (entry.gateway for pool in conf.ipam.pools for entry in pool)
    return sorted((each for each in dict.fromkeys(gateways) if each.version in families), key=lambda each: each.version)


def _others(namespace: Namespace, parent: Parent) -> Iterator[Address]:
    """Others who should answer: the host's gateways through the parent, and who it has spoken with lately."""
    routes = namespace.routes(parent.index)
    yield from (route.via for route in routes if route.via and route.dst.prefixlen == 0 and route.table == MAIN_TABLE)
    yield from islice(_neighbours(parent), NEIGHBOURS_TO_ASK)


def _neighbours(parent: Parent) -> Iterator[Address]:
    with closing(Socket()) as socket:
        answers = socket.dump(rtnetlink.dump_neighbours(parent.index))
    for _, body in answers:
        _, index, state, _, _ = rtnetlink.NEIGHBOUR_HEADER.unpack_from(body)
        destination = attribute_map(body, rtnetlink.NEIGHBOUR_HEADER.size).get(rtnetlink.NDA_DST, b"")
        if index == parent.index and state & (NUD_REACHABLE | NUD_STALE) and destination:
            yield unpacked(destination)


# --- from a MAC that is not the NIC's ----------------------------------------------------------------------------


def _stranger(conf: NetConf, namespace: Namespace, parent: Parent, scratch: int, answering: Address | None) -> Stranger:
    """Ask somebody who has answered the host, as a pod would."""
    if conf.mode == "passthru":  # its pod has the NIC's own MAC, and the NIC for itself
        others = _others_on(namespace, parent, scratch)
        return Stranger(refusal=f"{parent.name} has {others}, {BESIDE_PASSTHRU}" if others else "")
    try:
        with _child(namespace, parent, scratch) as (child, old_names):
            if answering is None:
                return Stranger(old_names=old_names)
            with netns.entered(scratch):
                mac = who_has(child.name, child.mac, answering, TIMEOUT_MS, RETRIES)
            return Stranger(asked=str(answering), answered=bool(mac), old_names=old_names)
    except CniError as error:
        return Stranger(refusal=error.msg)


def _others_on(namespace: Namespace, parent: Parent, scratch: int) -> str:
    """What keeps a child in mode passthru from being made; another one in that mode has the NIC rightly.

    Made it would take the host's frames for a moment, so that is tried only where it looks as if it would be refused.
    """
    lower = parent.lower_index or parent.index
    links = [link for link in namespace.links() if link.parent_index == lower]
    seen = [link.name for link in links if link.kind in CHILDREN and link.mode != "passthru"]
    macs = namespace.received_macs(parent.index) - {link.mac for link in links}
    unicast = [mac for mac in sorted(macs) if not int(mac[:2], 16) & 1]
    if not (seen or unicast) or not _refuses(parent, "passthru", scratch) or _refuses(parent, "private", scratch):
        return ""
    pods = f"{len(unicast)} pod(s)" if unicast else ""
    return " and ".join(filter(None, (*seen, pods)))


def _refuses(parent: Parent, mode: str, scratch: int) -> bool:
    """Whether the kernel makes no such child, which says nothing and is gone at once."""
    link = Link("doctor", (b"\x02" + os.urandom(5)).hex(":"), parent.mtu, parent.index, mode=mode, parent=parent.name)
    try:
        _create(link, scratch)
    except ParentUnusable:
        return True
    with closing(Namespace(scratch)) as inside:
        found = inside.link(link.name)
        if found:
            inside.delete_link(found.index)
    return False


@contextmanager
def _child(namespace: Namespace, parent: Parent, scratch: int) -> Iterator[tuple[Link, bool]]:
    """A macvlan of the parent in the scratch namespace, and whether its name had to be changed to get there.

    It is silent: nothing is sent but what its user sends.
    """
    mac = (b"\x02" + os.urandom(5)).hex(":")
    # The parent's own name: kernels before early 2025 take it for a conflict.
    link = Link(
        parent.name,
        mac,
        parent.mtu,
        parent.index,
        mode="private",
        alias=ALIAS,
        tx_queues=SHIM_QUEUES,
        parent=parent.name,
    )
    old_names = _create(link, scratch)
    if old_names:
        link = replace(link, name="doctor")
        _create(link, scratch)
    with closing(Namespace(scratch)) as inside:
        try:
            with suppress(KernelRefused):  # where sysctls cannot be written, it asks for routers as it comes up
                inside.apply((SetSysctl(link.name, "ipv6/addr_gen_mode", "1"),), namespace)
            inside.apply((SetUp(link),), namespace)
            yield link, old_names
        finally:
            found = inside.link(link.name)
            if found:
                inside.delete_link(found.index)


def _create(link: Link, scratch: int) -> bool:
    """Make a link; False when it was made, True when its name is taken in the host's namespace. Raises CniError."""
    with closing(Socket()) as socket:
        (error,) = socket.request([rtnetlink.new_link(link, link.name, scratch)])
    if error is not None and error.errno != errno.EEXIST:
        raise refusals.explained(AddLink(link), error)
    return error is not None


# --- who uses our addresses --------------------------------------------------------------------------------------


def _free(conf: NetConf, taken: frozenset[Address]) -> list[list[Span]]:
    """What every pod could get, pool by pool."""
    if conf.ipam is None:
        return []
    pools = pools_of(conf.ipam, pod="", mac="", avoid=sorted(taken, key=number_of))
    return [[run for span in pool.spans for run in runs(span, pool.barred, span.first)] for pool in pools]


def _first(free: list[list[Span]]) -> list[Address]:
    """The first addresses of each pool, which are handed out first."""
    each = SCAN_ADDRESSES // max(1, len(free))
    numbers = (islice((n for run in pool for n in range(run.first, run.last + 1)), each) for pool in free)
    return [address_of(number) for pool in numbers for number in pool]


def _users(namespace: Namespace, parent: Parent, addresses: Sequence[Address]) -> Iterator[tuple[str, str]]:
    """Which of the addresses somebody uses, and his MAC; our own pods are heard where the switch sends frames back."""
    if not addresses:
        return
    deadline = time.monotonic() + SCAN_SECONDS
    own = namespace.received_macs(parent.index)

    def user(address: Address) -> str | None:
        if time.monotonic() > deadline:
            return None
        return who_has(parent.name, parent.mac, address, SCAN_TIMEOUT_MS, SCAN_RETRIES)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for address, mac in zip(addresses, pool.map(user, addresses), strict=True):
            if mac and mac not in own:
                yield str(address), mac
