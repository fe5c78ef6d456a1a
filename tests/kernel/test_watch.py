"""What is heard of a host and its pods, and how soon; what is not worth hearing; how the end of a namespace is told."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cni import netns
from cni.agent import watch as watch_module
from cni.agent.events import CLEAN, Dirty
from cni.agent.watch import DEBOUNCE_SECONDS, Watch
from cni.ctl.lab import Lab, Node, Pod

pytestmark = pytest.mark.without_agent("it listens by itself")

SOON = 2.0  # seconds in which anything is heard, even where others keep the machine busy
QUIET = 0.4  # seconds after which nothing will be heard any more


class Bystander:
    """Somebody who waits for news of a host."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def follow(self, *pods: Node) -> None:
        """Hear of these, too."""
        for pod in pods:
            with opened(pod) as fd:
                self.watch.follow(netns.identity(fd), fd)

    def settle(self) -> None:
        """Hear out what has been going on."""
        while self.watch.wait(QUIET):
            pass

    def hears(self) -> Dirty:
        """What is heard at once; that nothing is heard is an error."""
        start = time.monotonic()
        dirty = self.watch.wait(SOON)
        assert dirty, "nothing was heard"
        assert time.monotonic() - start < SOON
        return dirty

    def hears_until(self, done: Callable[[Dirty], bool]) -> list[Dirty]:
        """All that is heard until that is true of it together."""
        heard, together = [], CLEAN
        while not done(together):
            heard.append(self.hears())
            together |= heard[-1]
        return heard

    def hears_nothing(self) -> bool:
        """Whether all is quiet; says what is not."""
        dirty = self.watch.wait(QUIET)
        assert dirty == CLEAN
        return True


@contextmanager
def opened(node: Node) -> Iterator[int]:
    fd = os.open(node.netns, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def identity(node: Node) -> str:
    with opened(node) as fd:
        return netns.identity(fd)


def of(node: Node) -> frozenset[str]:
    return frozenset({identity(node)})


def delete_namespace(node: Node) -> None:
    subprocess.run(["ip", "netns", "del", node.name], check=True)


def shim_of(lab: Lab) -> str:
    (name,) = [link["ifname"] for link in lab.host.links() if link["ifname"].startswith("shim")]
    return str(name)


@pytest.fixture
def pod(lab: Lab) -> Pod:
    return lab.pod("pod", lab.conf(dual=True))


@pytest.fixture
def bystander(lab: Lab, pod: Pod) -> Iterator[Bystander]:
    """Somebody who follows one pod, after all has become quiet."""
    with lab.host.inside(Watch) as watch:
        bystander = Bystander(watch)
        bystander.follow(pod)
        bystander.settle()
        yield bystander


# --- what is heard ---------------------------------------------------------------------------------------------------

ON_THE_HOST = [
    "link set {shim} down",
    "link del {shim}",
    "link set {shim} mtu 1400",
    "link set {shim} arp on",
    "link set {shim} address 02:00:00:00:00:01",
    "link set {shim} alias nobodys",
    "link set eth0 down",
    "link set eth0 mtu 1400",
    "link del eth0",
    "link add br1 type bridge",
    "address del 192.0.2.10/24 dev eth0",
    "address del 2001:db8::10/64 dev eth0",
    "address add 192.0.2.11/24 dev eth0",
    "address add 2001:db8::11/64 dev eth0 nodad",
    "address add 198.51.100.1/32 dev lo",
    "route del {ip}/32 dev {shim}",
    "route del {ip6}/128 dev {shim}",
    "route flush proto 174",
    "route replace {ip}/32 dev eth0",
    "route replace {ip}/32 dev {shim} proto 174",
    "neigh del {ip} dev {shim}",
    "neigh del {ip6} dev {shim}",
    "neigh flush dev {shim} nud permanent",
    "neigh replace {ip} dev {shim} lladdr 02:00:00:00:00:01 nud permanent",
    "neigh change {ip} dev {shim} nud stale",
]

IN_THE_POD = [
    "link set eth0 down",
    "link set eth0 mtu 1400",
    "link set eth0 address 02:00:00:00:00:01",
    "link del eth0",
    "address del {ip}/24 dev eth0",
    "address del {ip6}/64 dev eth0",
    "address flush dev eth0",
    "route del default",
    "route del 192.0.2.10/32",
    "route del 2001:db8::10/128",
    "-6 route del default",
    "route replace default via 192.0.2.77",
    "neigh del 192.0.2.10 dev eth0",
    "neigh del 2001:db8::10 dev eth0",
    "neigh flush dev eth0 nud permanent",
    "neigh replace 192.0.2.10 dev eth0 lladdr 02:00:00:00:00:01 nud permanent",
]


@pytest.mark.parametrize("command", ON_THE_HOST)
def test_a_change_on_the_host(lab: Lab, pod: Pod, bystander: Bystander, command: str) -> None:
    words = command.format(shim=shim_of(lab), ip=pod.address, ip6=pod.address6)
    lab.host.ip(*words.split())
    dirty = bystander.hears()
    assert dirty.host, dirty
    assert not dirty.everything


@pytest.mark.parametrize("command", IN_THE_POD)
def test_a_change_in_a_pod(pod: Pod, bystander: Bystander, command: str) -> None:
    pod.ip(*command.format(ip=pod.address, ip6=pod.address6).split())
    dirty = bystander.hears()
    assert (dirty.pods, dirty.host, dirty.everything) == (of(pod), False, False)
    assert all(reason.startswith(identity(pod)) for reason in dirty.reasons)


def test_down_and_up_at_once(lab: Lab, pod: Pod, bystander: Bystander) -> None:
    pod.ip_batch("link set eth0 down", "link set eth0 up")
    assert bystander.hears().pods == of(pod)
    lab.host.ip_batch(f"link set {shim_of(lab)} down", f"link set {shim_of(lab)} up")
    assert bystander.hears().host


def test_a_parent_that_is_renamed_vanishes_or_comes_back(lab: Lab, pod: Pod, bystander: Bystander) -> None:
    lab.host.ip_batch("link set eth0 down", "link set eth0 name lan0")
    assert bystander.hears().host
    lab.host.ip("link", "del", "lan0")
    vanished = bystander.hears()
    assert vanished.host
    assert vanished.pods == of(pod)
    bystander.settle()
    lab.switch.plug(lab.host)
    assert bystander.hears().host


@pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed")
def test_only_our_table_of_nftables_counts(lab: Lab, bystander: Bystander) -> None:
    lab.host.run("nft", "add table inet theirs; add chain inet theirs shimlan; add table inet shimlan")
    assert bystander.hears() == Dirty(host=True, reasons=("host: nftables table shimlan changed",))
    lab.host.run("nft", "add chain inet theirs another; delete chain inet theirs shimlan")
    assert bystander.hears_nothing()
    lab.host.run("nft", "add chain inet shimlan ours")
    assert bystander.hears().host
    lab.host.run("nft", "flush ruleset")
    assert bystander.hears().host


# --- what is not worth hearing ---------------------------------------------------------------------------------------


def test_ordinary_traffic_is_quiet(lab: Lab, pod: Pod, bystander: Bystander) -> None:
    for family in (4, 6):
        assert pod.pings(lab.outside, family)
        assert pod.pings(lab.host, family)
        assert lab.host.pings(pod, family)
        assert lab.host.pings(lab.outside, family)
    assert not pod.pings("192.0.2.77", wait=0.2)
    assert not lab.host.pings("192.0.2.77", wait=0.2)
    assert bystander.hears_nothing()


def test_what_undoes_nothing_is_quiet(lab: Lab, pod: Pod, bystander: Bystander) -> None:
    lab.host.ip_batch(
        "link set eth0 promisc on",
        "link set eth0 txqueuelen 500",
        "neigh add 192.0.2.77 dev eth0 lladdr 02:00:00:00:00:01 nud permanent",
        "neigh del 192.0.2.77 dev eth0",
        "route add 198.51.100.0/24 via 192.0.2.1",
        "route replace 198.51.100.0/24 via 192.0.2.77",
        "route del 198.51.100.0/24",
    )
    pod.ip_batch(
        "address add 192.0.2.200/32 dev eth0",
        "route add 198.51.100.0/24 via 192.0.2.1",
        "link add br0 type bridge",
        "link set br0 up",
        "address add 172.17.0.1/16 dev br0",
        "address del 172.17.0.1/16 dev br0",
        "link del br0",
    )
    assert bystander.hears_nothing()


def test_the_parents_carrier_is_quiet(lab: Lab, pod: Pod, bystander: Bystander) -> None:
    pod.ip("link", "set", "eth0", "mtu", "1400")  # its link is told of for the first time, which counts
    bystander.settle()
    for state in ("down", "up"):
        lab.switch.ip("link", "set", "host", state)
        assert bystander.hears_nothing()


def test_pods_that_are_not_followed_are_quiet(lab: Lab, bystander: Bystander) -> None:
    stranger = lab.pod("stranger")
    with opened(stranger) as fd:  # it has a number, be it for somebody else
        bystander.watch.follow(identity(stranger), fd)
    bystander.watch.forget(identity(stranger))
    stranger.ip_batch("route del default", "link set eth0 down", "link del eth0")
    assert bystander.hears_nothing()
    delete_namespace(stranger)
    assert bystander.hears_nothing()


def test_another_pods_add_is_quiet_and_its_del_is_not(lab: Lab, bystander: Bystander) -> None:
    other = lab.pod("other")
    assert bystander.hears_nothing()
    other.delete()
    assert bystander.hears().host


# --- the end of a namespace ------------------------------------------------------------------------------------------


def test_a_namespace_that_vanishes_is_gone(pod: Pod, bystander: Bystander) -> None:
    """The kernel tells its end when nobody holds it any more: nor does whoever hears of it."""
    was = of(pod)
    delete_namespace(pod)
    heard = bystander.hears_until(lambda dirty: bool(dirty.gone))
    assert heard == [Dirty(gone=was, reasons=heard[0].reasons)]
    assert bystander.hears_nothing()


def test_many_vanish_at_once(lab: Lab, bystander: Bystander) -> None:
    nodes = [lab.netns(f"n{number}") for number in range(20)]
    bystander.follow(*nodes)
    identities = frozenset(map(identity, nodes))
    lab.host.ip_batch(*(f"netns del {node.name}" for node in nodes))
    bystander.hears_until(lambda dirty: dirty.gone >= identities)


def test_a_number_that_goes_to_another_pod(lab: Lab, bystander: Bystander) -> None:
    """Nothing is read in between: the end of the first is heard after the second has got its number."""
    first, second = lab.netns("first"), lab.pod("second")
    bystander.follow(first)
    number, was = number_of(lab, first), identity(first)
    delete_namespace(first)
    eventually(lambda: is_free(lab, number))
    lab.host.ip("netns", "set", second.name, str(number))
    bystander.follow(second)
    heard = bystander.hears()
    assert was in heard.gone
    assert identity(second) not in heard.gone
    bystander.settle()
    second.ip("route", "del", "default")
    assert bystander.hears().pods == of(second)


def test_numbers_are_not_given_again(lab: Lab, bystander: Bystander) -> None:
    first, second = lab.netns("first"), lab.netns("second")
    bystander.follow(first)
    number = number_of(lab, first)
    delete_namespace(first)
    eventually(lambda: is_free(lab, number))
    bystander.follow(second)
    assert number_of(lab, second) not in (number, -1)


def test_a_number_that_goes_to_a_stranger(lab: Lab, bystander: Bystander) -> None:
    first, stranger = lab.netns("first"), lab.pod("stranger")
    bystander.follow(first)
    number, was = number_of(lab, first), identity(first)
    delete_namespace(first)
    eventually(lambda: is_free(lab, number))
    lab.host.ip("netns", "set", stranger.name, str(number))
    assert was in bystander.hears().pods
    bystander.watch.forget(was)
    stranger.ip("route", "del", "default")
    assert bystander.hears_nothing()


def number_of(lab: Lab, node: Node) -> int:
    """Its number on the host, -1 if it has none."""
    ids = {row["name"]: row["nsid"] for row in lab.host.ip_json("netns", "list-id") if "name" in row}
    return int(ids.get(node.name, -1))


def is_free(lab: Lab, number: int) -> bool:
    return all(row["nsid"] != number for row in lab.host.ip_json("netns", "list-id"))


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_hosts_own_namespace_is_not_a_pod(lab: Lab, bystander: Bystander) -> None:
    bystander.follow(lab.host)
    assert number_of(lab, lab.host) == -1
    lab.host.ip("netns", "set", lab.host.name, "auto")  # older kernels tell the host's events with that number
    assert bystander.hears_nothing()
    lab.host.ip("address", "add", "192.0.2.11/24", "dev", "eth0")
    assert bystander.hears().host


# --- many events -----------------------------------------------------------------------------------------------------


def addresses(count: int) -> list[str]:
    return [f"10.{number >> 8}.{number & 255}.1/32" for number in range(count)]


def burst(lab: Lab) -> None:
    """5,000 routes of ours that come, and go again; each deletion counts."""
    routes = [f"{address} dev eth0 proto 174" for address in addresses(5000)]
    lab.host.ip_batch(*(f"route add {route}" for route in routes), *(f"route del {route}" for route in routes))


def test_a_burst_is_heard_a_few_times(lab: Lab, pod: Pod, bystander: Bystander) -> None:
    start = time.monotonic()
    thread = threading.Thread(target=burst, args=[lab])
    thread.start()
    heard = [bystander.hears()]
    while thread.is_alive() or heard[-1]:
        heard.append(bystander.watch.wait(QUIET))
    assert all(dirty.host or dirty.everything for dirty in heard[:-1])
    assert len(heard) < 2 + (time.monotonic() - start) / DEBOUNCE_SECONDS
    pod.ip("route", "del", "default")
    assert bystander.hears().pods == of(pod)


def test_when_events_are_lost_everything_is_dirty(lab: Lab, pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "BUFFER_BYTES", 1 << 15)
    dying = lab.netns("dying")
    with lab.host.inside(Watch) as watch:
        bystander = Bystander(watch)
        bystander.follow(pod, dying)
        bystander.settle()
        number, was = number_of(lab, dying), identity(dying)
        burst(lab)
        delete_namespace(dying)
        eventually(lambda: is_free(lab, number))
        heard = bystander.hears()
        assert heard.everything
        assert heard.gone == {was}
        bystander.settle()
        pod.ip("route", "del", "default")
        assert bystander.hears().pods == of(pod)
        lab.host.ip("link", "set", shim_of(lab), "down")
        assert bystander.hears().host


def test_all_that_is_read_after_a_loss_is_doubted_until_nothing_is_left(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "BUFFER_BYTES", 1 << 19)
    monkeypatch.setattr(watch_module, "READING_SECONDS", 0.001)
    with lab.host.inside(Watch) as watch:
        Bystander(watch).settle()
        burst(lab)
        heard = [watch.wait(QUIET)]
        while heard[-1]:
            heard.append(watch.wait(QUIET))
        assert len(heard) > 3
        assert all(dirty.everything for dirty in heard[:-1])


@pytest.mark.parametrize("what", ["link set eth0 promisc {}", "address {} 198.51.100.1/32 dev lo"])
def test_a_stream_of_events_delays_nothing(lab: Lab, pod: Pod, bystander: Bystander, what: str) -> None:
    over = threading.Event()
    changes = [what.format(word) for word in (("on", "off") if "promisc" in what else ("add", "del"))] * 200

    def stream() -> None:
        while not over.is_set():
            lab.host.ip_batch(*changes)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        for state in ("down", "up", "down"):
            bystander.watch.wait(0.3)
            pod.ip("link", "set", "eth0", state)
            start = time.monotonic()
            bystander.hears_until(lambda dirty: dirty.everything or dirty.pods == of(pod))
            assert time.monotonic() - start < SOON
    finally:
        over.set()
        thread.join()


def test_two_hear_the_same(lab: Lab, pod: Pod, bystander: Bystander) -> None:
    with lab.host.inside(Watch) as watch:
        other = Bystander(watch)
        other.follow(pod)
        pod.ip("route", "del", "default")
        assert bystander.hears().pods == other.hears().pods == of(pod)
        lab.host.ip("link", "set", shim_of(lab), "down")
        assert bystander.hears().host
        assert other.hears().host
        was = of(pod)
        delete_namespace(pod)
        assert bystander.hears().gone == other.hears().gone == was


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_waiting_ends_with_the_time(bystander: Bystander) -> None:
    start = time.monotonic()
    assert bystander.watch.wait(0.1) == bystander.watch.wait(0) == CLEAN
    assert 0.1 <= time.monotonic() - start < SOON


@pytest.mark.parametrize("dirty", [CLEAN, Dirty(everything=True, reasons=("somebody says so",))])
def test_waiting_ends_when_it_is_woken(bystander: Bystander, dirty: Dirty) -> None:
    timer = threading.Timer(0.1, bystander.watch.wake, [dirty])
    timer.start()
    start = time.monotonic()
    assert bystander.watch.wait() == dirty
    assert time.monotonic() - start < SOON
    assert bystander.hears_nothing()


def test_a_socket_that_fails_is_an_error(lab: Lab) -> None:
    watch = lab.host.inside(Watch)
    watch.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        watch.wait(SOON)


WITHOUT_BROADCAST = """
import os, sys
from cni import netns
from cni.agent.watch import DEBOUNCE_SECONDS, Watch

fd = os.open(sys.argv[1], os.O_RDONLY)
with Watch() as watch:
    watch.follow(netns.identity(fd), fd)
    os.close(fd)
    print(watch.hears_pods, flush=True)
    for line in sys.stdin:
        dirty = watch.wait(1)
        print("host" if dirty.host else "", "pods" if dirty.pods else "", "gone" if dirty.gone else "", flush=True)
"""


def test_without_the_capability_pods_are_not_heard_but_their_end_is(lab: Lab, pod: Pod) -> None:
    less = ("setpriv", "--bounding-set=-net_broadcast", "--inh-caps=-net_broadcast")
    words = [*lab.host.enter_words, *less, sys.executable, "-c", WITHOUT_BROADCAST, pod.netns]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        questions, answers = process.stdin, process.stdout
        assert questions
        assert answers

        def heard() -> list[str]:
            questions.write("\n")
            return answers.readline().split()

        assert answers.readline().split() == ["False"]
        pod.ip("route", "del", "default")
        assert heard() == []
        lab.host.ip("address", "add", "192.0.2.11/24", "dev", "eth0")
        assert heard() == ["host"]
        delete_namespace(pod)
        assert heard() == ["gone"]
        questions.close()


def test_a_kernel_without_nftables_is_watched_all_the_same(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "NETLINK_NETFILTER", 31)  # a protocol that no kernel has
    with pytest.raises(OSError, match="Protocol not supported"):
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 31)
    with lab.host.inside(Watch) as watch:
        lab.host.ip("address", "add", "192.0.2.11/24", "dev", "eth0")
        assert Bystander(watch).hears().host
