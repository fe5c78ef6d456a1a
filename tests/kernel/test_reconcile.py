"""What is undone on a host or in a pod, for real, is put right by one pass; the next one finds nothing to do."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from cni import netns
from cni.agent.events import Dirty
from cni.agent.reconcile import GRACE_SECONDS, SWEEP_SECONDS, TROUBLE_SECONDS, Pass, Reconciler
from cni.attachment import Key
from cni.ctl.lab import CniFailed, Lab, Pod
from cni.database import Database, boot_id
from cni.frozen import replace
from cni.locks import Locks
from cni.log import Log
from cni.node import Node
from cni.node import Pod as OpenedPod
from cni.state import Records
from cni.sweep import Outcome, sweep
from tests.kernel.test_rebuild import garbage, store
from tests.kernel.test_shim import sending, shims, unseen
from tests.kernel.torture import launch, seeded, size
from tests.kernel.traces import held, network, records, stored

pytestmark = pytest.mark.without_agent("it keeps the host by itself")

NFT = pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed")
FAMILIES = pytest.mark.parametrize("family", [4, 6])
SERVICES = {"routes": ["10.96.0.0/16", "fd00:96::/112"]}
FOREIGN_MAC = "02:00:00:00:00:99"
Undoing = Callable[[Lab, Pod], None]


class Agent:
    """The part of an agent that keeps a host as it is wanted, with a clock of its own."""

    def __init__(self, lab: Lab, visit: Callable[[OpenedPod], None] = lambda _: None) -> None:
        self.now = 1000.0
        self.said = io.StringIO()
        self._host = lab.host
        log = Log(self.said)
        node = lab.host.inside(lambda: Node(lab.data_dir, log))
        self._reconciler = Reconciler(node, log, lambda: self.now, visit=visit)

    def passes(self, *pods: Pod, everything: bool = False, host: bool = False, after: float = 1.0) -> Pass:
        """One pass, some seconds after the last one, over what is dirty."""
        self.now += after
        dirty = Dirty(everything, host, frozenset(netns.identity_of(os.stat(pod.netns)) for pod in pods))
        return self._host.inside(lambda: self._reconciler.run(dirty))

    def mends(self, *pods: Pod, everything: bool = False, host: bool = False) -> list[str]:
        """The repairs of one pass without errors, after which all is well."""
        done = self.passes(*pods, everything=everything, host=host)
        assert (done.errors, done.backed_off) == ((), ())
        assert self.finds_nothing()
        return [str(repair) for repair in done.repairs]

    def finds_nothing(self) -> bool:
        """Whether a pass over everything has nothing to do."""
        done = self.passes(everything=True)
        assert (done.repairs, done.errors, done.backed_off) == ((), (), ())
        return True


@pytest.fixture
def agent(lab: Lab) -> Agent:
    return Agent(lab)


def all_is_well(lab: Lab, *pods: Pod, families: tuple[int, ...] = (4, 6)) -> bool:
    """Whether each pod is as recorded, and host, pods and LAN reach each other."""
    for pod in pods:
        pod.check()
        for family in families:
            assert lab.host.pings(pod, family)
            assert pod.pings(lab.host, family)
            assert pod.pings(lab.outside, family)
    return True


def on_host(*commands: str) -> Undoing:
    """Commands of `ip` on the host; {pod}, {pod6} and {mac} are the pod's, {shim} is the shim."""

    def undo(lab: Lab, pod: Pod) -> None:
        words = {"pod": pod.address, "pod6": pod.address6, "mac": pod.mac, "shim": shims(lab)[0]}
        for command in commands:
            lab.host.ip(*command.format(**words).split())

    return undo


def in_pod(*commands: str) -> Undoing:
    """Commands of `ip` in the pod."""

    def undo(_: Lab, pod: Pod) -> None:
        for command in commands:
            pod.ip(*command.split())

    return undo


# --- what is undone on the host --------------------------------------------------------------------------------------

ON_HOST: dict[str, Undoing] = {
    "the shim is deleted": on_host("link del {shim}"),
    "the shim is set down": on_host("link set {shim} down"),
    "the shim is set down and up": on_host("link set {shim} down", "link set {shim} up"),
    "the shim gets another MTU": on_host("link set {shim} mtu 1280"),
    "the shim gets another mode": on_host("link set {shim} type macvlan mode private"),
    "the shim may ask and answer": on_host("link set {shim} arp on"),
    "a route is removed": on_host("route del {pod}/32 dev {shim}"),
    "an IPv6 route is removed": on_host("-6 route del {pod6}/128 dev {shim}"),
    "a neighbour is removed": on_host("neigh del {pod} dev {shim}"),
    "an IPv6 neighbour is removed": on_host("-6 neigh del {pod6} dev {shim}"),
    "all routes of ours are flushed": on_host("route flush proto 174", "-6 route flush proto 174"),
    "all permanent neighbours are flushed": on_host("neigh flush nud permanent"),
    "a neighbour has another MAC": on_host(f"neigh replace {{pod}} lladdr {FOREIGN_MAC} dev {{shim}} nud permanent"),
    "a route has another source": on_host("route replace {pod}/32 dev {shim} scope link proto 174 src 192.0.2.11"),
    "an IPv6 route has another source": on_host("-6 route replace {pod6}/128 dev {shim} proto 174 src 2001:db8::10"),
    "a route leads elsewhere": on_host("route replace {pod}/32 via 192.0.2.1"),
}


@pytest.mark.parametrize("undo", ON_HOST.values(), ids=ON_HOST)
def test_what_is_undone_on_the_host(lab: Lab, agent: Agent, undo: Undoing) -> None:
    lab.host.ip_batch("address add 192.0.2.11/24 dev eth0", "address add 2001:db8::11/64 dev eth0 nodad")
    pods = [lab.pod(name, lab.conf(dual=True)) for name in "ab"]
    assert agent.finds_nothing()
    undo(lab, pods[0])
    with pytest.raises(CniFailed, match="difference"):
        pods[0].check()
    assert agent.mends(host=True)
    assert all_is_well(lab, *pods)


def test_the_repairs_are_told_as_ip_has_them(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("a", lab.conf(dual=True))
    shim = shims(lab)[0]
    on_host("neigh del {pod} dev {shim}", "route replace {pod}/32 dev {shim} scope link proto 174")(lab, pod)
    assert agent.mends(host=True) == [
        f"host: ip neigh replace {pod.address} lladdr {pod.mac} dev {shim} nud permanent",
        f"host: ip route replace {pod.address}/32 dev {shim} proto 174 scope link src {lab.host.address} "
        f"(it is {pod.address}/32 dev {shim} proto 174 scope link table 254)",
    ]


def test_pods_follow_a_shim_that_was_given_another_mac(lab: Lab, agent: Agent) -> None:
    pods = [lab.pod(name, lab.conf(dual=True)) for name in "ab"]
    lab.host.ip("link", "set", shims(lab)[0], "address", FOREIGN_MAC)
    assert agent.mends(host=True)
    assert all_is_well(lab, *pods)
    assert all_is_well(lab, lab.pod("c", lab.conf(dual=True)))


@pytest.mark.parametrize("alias", ["''", "mine"])
def test_the_shim_gets_its_alias_back(lab: Lab, agent: Agent, alias: str) -> None:
    lab.pod("a")
    (shim,) = shims(lab)
    lab.host.ip("link", "set", shim, "alias", alias)
    assert len(agent.mends(host=True)) == 1
    assert lab.host.link(shim)["ifalias"] == "shimlan shim of eth0"
    lab.pod("b").check()


def test_a_link_that_is_only_called_like_the_shim_is_left_alone(lab: Lab, agent: Agent) -> None:
    pods = [lab.pod(name) for name in "ab"]
    (shim,) = shims(lab)
    lab.host.ip_batch(f"link del {shim}", f"link add {shim} link eth0 type macvlan mode bridge")
    before = network(lab.host)
    done = agent.passes(host=True)
    assert done.errors == (f"host: {shim} exists and is not ours: rename it, shimlan needs the name for its shim",)
    assert network(lab.host) == before
    lab.host.ip("link", "set", shim, "name", "theirs")
    assert agent.mends(host=True)
    assert all_is_well(lab, *pods, families=(4,))


def test_routes_of_others_to_the_same_pod_stay(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("a", lab.conf(dual=True))
    theirs = ["route", "append", f"{pod.address}/32", "dev", "eth0"], ["-6", "route", "append", f"{pod.address6}/128"]
    lab.host.ip(*theirs[0])
    lab.host.ip(*theirs[1], "dev", "eth0", "metric", "1024")
    before = network(lab.host)["routes"]
    on_host(
        "route change {pod}/32 dev {shim} scope link proto 174",
        "-6 route del {pod6}/128 dev {shim}",
    )(lab, pod)
    assert agent.mends(host=True)
    assert sorted(map(str, network(lab.host)["routes"])) == sorted(map(str, before))
    assert lab.host.pings(pod)


@FAMILIES
def test_frames_stay_inside_while_a_lost_shim_is_made_anew(lab: Lab, agent: Agent, family: int) -> None:
    pods = [lab.pod(name, lab.conf(dual=True)) for name in "abc"]
    with unseen(lab), ExitStack() as traffic:
        for pod in pods:
            traffic.enter_context(sending(lab.host, pod.where(family)))
        for _ in range(3):
            lab.host.ip("link", "del", shims(lab)[0])
            assert agent.passes(host=True, after=100.0).repairs
    assert all_is_well(lab, *pods)


@FAMILIES
def test_a_pod_whose_link_is_down_gets_no_entries_before_it_is_up(lab: Lab, agent: Agent, family: int) -> None:
    whole, fallen = (lab.pod(name, lab.conf(dual=True)) for name in "ab")
    lab.host.ip("link", "del", shims(lab)[0])
    with sending(lab.host, fallen.where(family)):
        fallen.ip("link", "set", "eth0", "down")
        with lab.switch.sniff_port(lab.host) as seen:
            assert agent.mends(host=True)
        shim = lab.host.link(shims(lab)[0])["address"]
    assert not [frame for frame in seen.frames if frame.src == shim]
    assert all_is_well(lab, whole, fallen)


# --- what is undone in a pod -----------------------------------------------------------------------------------------

IN_POD: dict[str, Undoing] = {
    "its link is set down": in_pod("link set eth0 down"),
    "its link is set down and up": in_pod("link set eth0 down", "link set eth0 up"),
    "its link is deleted": in_pod("link del eth0"),
    "its link gets another MTU": in_pod("link set eth0 mtu 1280"),
    "its routes are flushed": in_pod("route flush table main", "-6 route flush table main proto boot"),
    "all of its IPv6 routes are flushed": in_pod("-6 route flush table main"),
    "the route to the host is removed": in_pod("route del 192.0.2.10/32 dev eth0"),
    "the IPv6 route to the host is removed": in_pod("-6 route del 2001:db8::10/128 dev eth0"),
    "the default route is removed": in_pod("route del default"),
    "the IPv6 default route is removed": in_pod("-6 route del default"),
    "the route of services is removed": in_pod("route del 10.96.0.0/16"),
    "the route of services leads elsewhere": in_pod("route replace 10.96.0.0/16 via 192.0.2.1 proto 174"),
    "the IPv6 route of services leads elsewhere": in_pod("-6 route replace fd00:96::/112 via 2001:db8::1 proto 174"),
    "its permanent neighbours are flushed": in_pod("neigh flush nud permanent"),
    "the host's entry has another MAC": in_pod(f"neigh replace 192.0.2.10 lladdr {FOREIGN_MAC} dev eth0 nud permanent"),
    "its addresses are removed": in_pod("address flush dev eth0 scope global"),
    "its IPv6 address is removed": in_pod("-6 address flush dev eth0 scope global"),
}


@pytest.mark.parametrize("undo", IN_POD.values(), ids=IN_POD)
def test_what_is_undone_in_a_pod(lab: Lab, agent: Agent, undo: Undoing) -> None:
    pods = [lab.pod(name, lab.conf(dual=True, shim=SERVICES)) for name in "ab"]
    assert agent.finds_nothing()
    undo(lab, pods[0])
    with pytest.raises(CniFailed, match="difference"):
        pods[0].check()
    assert agent.mends(pods[0])
    assert all_is_well(lab, *pods)


def test_a_link_that_was_renamed_in_the_pod_keeps_its_new_name(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("a", lab.conf(dual=True))
    in_pod("link set eth0 down", "link set eth0 name lan0")(lab, pod)
    assert agent.mends(pod)
    assert lab.host.pings(pod)
    assert pod.pings(lab.outside, 6)
    assert [link["ifname"] for link in pod.links()] == ["lo", "lan0"]


def test_a_pod_keeps_what_it_or_others_have_made_there(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("a", lab.conf(dual=True))
    pod.ip_batch(
        "address add 192.0.2.201/24 dev eth0",
        "address add 2001:db8::201/64 dev eth0 nodad",
        "route add 203.0.113.0/24 via 192.0.2.1",
        "route add 2001:db8:9::/64 via 2001:db8::1",
        f"neigh add 192.0.2.202 lladdr {FOREIGN_MAC} dev eth0 nud permanent",
        "link add dummy0 type veth peer name dummy1",
        "link set dummy0 up",
        "route add 192.0.2.10/32 dev dummy0 metric 5",
    )
    before = network(pod)
    assert agent.finds_nothing()
    in_pod("route del 192.0.2.10/32 dev eth0", "-6 neigh del 2001:db8::10 dev eth0")(lab, pod)
    assert len(agent.mends(pod)) == 2
    after = network(pod)
    assert {part: sorted(map(str, after[part])) for part in after} == {
        part: sorted(map(str, before[part])) for part in before
    }


@pytest.mark.parametrize(
    "choice",
    [
        in_pod("route replace default via 192.0.2.10"),
        in_pod("link add vpn type veth peer name far", "link set vpn up", "route replace default dev vpn"),
    ],
    ids=["another gateway", "another link"],
)
def test_a_pod_may_choose_another_default_route(lab: Lab, agent: Agent, choice: Undoing) -> None:
    pod = lab.pod("a")
    choice(lab, pod)
    before = network(pod)
    done = agent.passes(pod)
    assert done.repairs == ()
    assert [text for text in done.waiting if "ip route" in text and "left alone: the pod has chosen another" in text]
    assert network(pod) == before


def test_of_a_chain_only_our_own_part_comes_back(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("a")
    pod.ip("link", "del", "eth0")
    assert agent.passes(pod).repairs
    assert "what other plugins of a chain had set on it (tuning, bandwidth, sbr ...)" in agent.said.getvalue()


# --- the host's addresses --------------------------------------------------------------------------------------------


@pytest.fixture
def pods(lab: Lab) -> list[Pod]:
    return [lab.pod(name, lab.conf(dual=True, shim=SERVICES)) for name in "ab"]


REMOVE = {4: "address del 192.0.2.10/24 dev eth0", 6: "address del 2001:db8::10/64 dev eth0"}
RETURN = {4: "address add 192.0.2.10/24 dev eth0", 6: "address add 2001:db8::10/64 dev eth0 nodad"}
OTHER = {4: "192.0.2.20", 6: "2001:db8::20"}
ADD_OTHER = {4: "address add 192.0.2.20/24 dev eth0", 6: "address add 2001:db8::20/64 dev eth0 nodad"}
DEFAULT = {4: "route replace default via 192.0.2.1", 6: "route replace default via 2001:db8::1 dev eth0"}


@FAMILIES
def test_an_address_of_the_host_is_removed_and_added_again(
    lab: Lab, agent: Agent, pods: list[Pod], family: int
) -> None:
    lab.host.ip_batch(REMOVE[family], RETURN[family], DEFAULT[family])
    with pytest.raises(CniFailed):
        pods[0].check()
    assert len(agent.mends(host=True)) == 2
    assert all_is_well(lab, *pods)


@FAMILIES
def test_without_an_address_of_the_host_all_waits_for_its_return(
    lab: Lab, agent: Agent, pods: list[Pod], family: int
) -> None:
    recorded = records(lab)
    lab.host.ip_batch(REMOVE[family])
    for _ in range(5):
        done = agent.passes(everything=True)
        assert (done.repairs, done.errors, done.backed_off) == ((), (), ())
        gone = lab.host.where(family)
        assert [text for text in done.waiting if f"waits until the host has {gone} (again)" in text]
    assert records(lab) == recorded
    lab.host.ip_batch(RETURN[family], DEFAULT[family])
    assert len(agent.mends(host=True)) == 2
    assert all_is_well(lab, *pods)


@NFT
@FAMILIES
def test_an_address_of_the_host_changes(lab: Lab, agent: Agent, pods: list[Pod], family: int) -> None:
    before = lab.host.where(family)
    lab.host.ip_batch(REMOVE[family], ADD_OTHER[family], DEFAULT[family])
    assert agent.mends(host=True)
    lab.host.address, lab.host.address6 = (OTHER[4], lab.host.address6) if family == 4 else (lab.host.address, OTHER[6])
    assert all_is_well(lab, *pods)
    for pod in pods:
        found = network(pod)
        ours = [row for row in found["routes"] + found["neighbours"] if row["dst"] != f"{pod.where(family)}"]
        assert not {before, f"{before}/32"}.intersection(word for row in ours for word in map(str, row.values()))
    rules = lab.host.run("nft", "list", "table", "inet", "shimlan").stdout
    assert f"to {before}\n" not in rules
    assert rules.count(f"to {OTHER[family]}\n") == 2
    with pods[0].serve(80):
        assert lab.host.fetch(pods[0].where(family), 80) == f"a sees {OTHER[family]}"


@FAMILIES
def test_an_address_of_the_host_is_added(lab: Lab, agent: Agent, pods: list[Pod], family: int) -> None:
    lab.host.ip_batch(ADD_OTHER[family])
    assert agent.mends(host=True)
    assert all(pod.pings(OTHER[family]) for pod in pods)
    assert all_is_well(lab, *pods)
    lab.host.ip("address", "del", f"{OTHER[family]}/{24 if family == 4 else 64}", "dev", "eth0")
    assert agent.mends(host=True)
    assert OTHER[family] not in str([network(pod) for pod in pods])
    assert all_is_well(lab, *pods)


@FAMILIES
def test_a_host_that_had_no_address_gets_its_shim_with_the_first(lab: Lab, agent: Agent, family: int) -> None:
    lab.host.ip_batch(*REMOVE.values())
    pods = [lab.pod(name, lab.conf(dual=True)) for name in "ab"]
    assert shims(lab) == []
    lab.host.ip_batch(RETURN[family], DEFAULT[family])
    assert agent.mends(host=True)
    assert all_is_well(lab, *pods, families=(family,))
    for pod in pods:
        pod.delete()
    assert shims(lab) == stored(lab) == []


def test_addresses_named_by_hand_stay_named(lab: Lab, agent: Agent) -> None:
    local = "169.254.20.10"
    lab.host.ip_batch(
        "link add local type veth peer name unused", "link set local up", f"address add {local}/32 dev local"
    )
    pod = lab.pod("a", lab.conf(shim={"hostAddresses": [lab.host.address, local]}))
    lab.host.ip_batch(ADD_OTHER[4], f"address del {local}/32 dev local")
    assert agent.finds_nothing()
    assert not pod.pings(OTHER[4], wait=0.2)
    lab.host.ip("address", "add", f"{local}/32", "dev", "local")
    assert agent.finds_nothing()
    assert pod.pings(local)
    assert pod.pings(lab.host)


def test_attachments_that_do_not_say_what_they_were_planned_from_stay_as_recorded(
    lab: Lab, agent: Agent, pods: list[Pod]
) -> None:
    """Those of an earlier version, and those that were rebuilt."""
    with closing(Database(lab.data_dir)) as database:
        for attachment in (store := Records(database, boot_id())).all():
            store.revise(replace(attachment, reach=None))
    before = records(lab)
    lab.host.ip_batch(ADD_OTHER[4], ADD_OTHER[6])
    assert agent.finds_nothing()
    assert records(lab) == before
    lab.host.ip("link", "del", shims(lab)[0])
    assert agent.mends(host=True)
    assert all_is_well(lab, *pods)


# --- the parent ------------------------------------------------------------------------------------------------------


def unplug(lab: Lab) -> None:
    """What happens when the NIC or its driver goes away."""
    lab.host.ip("link", "del", "eth0")


def plug(lab: Lab) -> None:
    """The NIC is back: another link of the same name, and whoever configures the host does so again."""
    lab.switch.plug(lab.host)
    lab.host.ip_batch("link set eth0 up", *RETURN.values(), *DEFAULT.values())


@FAMILIES
def test_the_parent_goes_and_comes_back(lab: Lab, agent: Agent, pods: list[Pod], family: int) -> None:
    before, index = [network(pod) for pod in pods], lab.host.link("eth0")["ifindex"]
    unplug(lab)
    assert [link["ifname"] for link in pods[0].links()] == ["lo"]
    done = agent.passes(everything=True)
    assert (done.repairs, done.errors, done.waiting) == ((), (), ("eth0 is not there: its pods wait for it",))
    plug(lab)
    with ExitStack() as traffic:
        for pod in pods:
            traffic.enter_context(sending(lab.host, pod.where(family)))
        with lab.switch.sniff_port(lab.host) as seen:
            assert agent.mends(host=True)
    shim = lab.host.link(shims(lab)[0])
    assert lab.host.link("eth0")["ifindex"] != index
    assert shim["ifname"] == f"shim{lab.host.link('eth0')['ifindex']}"
    assert not [frame for frame in seen.frames if frame.src == shim["address"]]
    assert all_is_well(lab, *pods)
    assert [[row["dst"] for row in network(pod)["routes"]] for pod in pods] == [
        [row["dst"] for row in view["routes"]] for view in before
    ]
    for pod in pods:
        assert pod.sysctl("net.ipv4.conf.eth0.arp_notify") == "1"
        pod.delete()
    assert shims(lab) == stored(lab) == []


def test_its_pods_wait_while_the_parent_is_down(lab: Lab, agent: Agent, pods: list[Pod]) -> None:
    unplug(lab)
    lab.switch.plug(lab.host)
    done = agent.passes(host=True)
    assert [repair for repair in done.repairs if repair.kind != "nat"] == []
    assert [text for text in done.waiting if "eth0 is down, and the link is to be made on it" in text]
    lab.host.ip_batch("link set eth0 up", *RETURN.values(), *DEFAULT.values())
    assert agent.mends(host=True)
    assert all_is_well(lab, *pods)


def test_the_parent_is_renamed(lab: Lab, agent: Agent, pods: list[Pod]) -> None:
    lab.host.ip_batch("link set eth0 down", "link set eth0 name lan0", "link set lan0 up")
    lab.host.ip_batch(*(words.replace("eth0", "lan0") for words in (*RETURN.values(), *DEFAULT.values())[1:]))
    agent.mends(host=True)
    assert {attachment.parent for attachment in records(lab)} == {"lan0"}
    assert lab.host.link(shims(lab)[0])["ifalias"] == "shimlan shim of lan0"
    assert all_is_well(lab, *pods)


def test_the_parent_was_in_another_namespace_for_a_while(lab: Lab, agent: Agent, pods: list[Pod]) -> None:
    lab.host.ip("link", "set", "eth0", "netns", lab.outside.name, "name", "borrowed")
    assert agent.passes(host=True).waiting == ("eth0 is not there: its pods wait for it",)
    lab.outside.ip("link", "set", "borrowed", "name", "eth0", "netns", lab.host.name)
    lab.host.ip_batch("link set eth0 up", *RETURN.values(), *DEFAULT.values())
    assert agent.mends(host=True)
    assert all_is_well(lab, *pods)


def test_its_index_is_taken_when_it_comes_back(lab: Lab, agent: Agent, pods: list[Pod]) -> None:
    """Then the old shim, which went with it, has the MAC that the new one is to have."""
    index = lab.host.link("eth0")["ifindex"]
    lab.host.ip("link", "set", "eth0", "netns", lab.outside.name, "name", "borrowed")
    lab.host.ip("link", "add", "usurper", "index", str(index), "type", "veth", "peer", "name", "other")
    assert agent.passes(everything=True).waiting == ("eth0 is not there: its pods wait for it",)
    lab.outside.ip("link", "set", "borrowed", "name", "eth0", "netns", lab.host.name)
    lab.host.ip_batch("link set eth0 up", *RETURN.values(), *DEFAULT.values())
    assert agent.mends(host=True)
    assert all_is_well(lab, *pods)
    assert shims(lab) == [f"shim{lab.host.link('eth0')['ifindex']}"] != [f"shim{index}"]


def test_a_parent_in_the_pod_goes_and_comes_back(lab: Lab, agent: Agent) -> None:
    pod = lab.container("a", lab.conf(linkInContainer=True, master="inner"), ifname="net1")
    inner = "link add inner type veth peer name far"
    pod.ip_batch(inner, "link set inner up", "link set far up")
    pod.add()
    before = [link["ifname"] for link in pod.links()]
    pod.ip("link", "del", "inner")
    assert [text for text in agent.passes(pod).waiting if "there is no inner in the pod" in text]
    pod.ip_batch(inner, "link set inner up", "link set far up")
    assert agent.mends(pod)
    assert sorted(link["ifname"] for link in pod.links()) == sorted(before)
    pod.check()


def test_mtus_come_back_with_the_parents(lab: Lab, agent: Agent) -> None:
    large, small = lab.pod("a", lab.conf(dual=True)), lab.pod("b", lab.conf(dual=True, mtu=1300))
    lab.host.ip("link", "set", "eth0", "mtu", "1400")
    agent.passes(host=True)
    assert agent.finds_nothing()
    assert [node.link("eth0")["mtu"] for node in (large, small)] == [1400, 1300]
    lab.host.ip("link", "set", "eth0", "mtu", "1280")
    lab.host.ip("link", "set", "eth0", "mtu", "1500")
    assert agent.mends(host=True)
    assert [node.link("eth0")["mtu"] for node in (large, small)] == [1500, 1300]
    assert lab.host.link(shims(lab)[0])["mtu"] == 1500
    assert lab.host.pings(large, size=1500 - 28)
    assert all_is_well(lab, large, small)


# --- source NAT ------------------------------------------------------------------------------------------------------


@NFT
@pytest.mark.parametrize("undo", ["delete table inet shimlan", "flush chain inet shimlan postrouting"])
def test_the_source_nat_comes_back(lab: Lab, agent: Agent, pods: list[Pod], undo: str) -> None:
    before = network(lab.host)["nftables"]
    lab.host.run("nft", *undo.split())
    assert agent.mends(host=True) == ["host: rewrite table inet shimlan"]
    assert network(lab.host)["nftables"] == before
    assert all_is_well(lab, *pods)


@NFT
def test_no_table_appears_where_nobody_needs_one(lab: Lab, agent: Agent) -> None:
    lab.pod("a")
    assert agent.finds_nothing()
    assert network(lab.host)["nftables"] == ""


# --- what is stale ---------------------------------------------------------------------------------------------------


def kill(pod: Pod) -> None:
    """What a crash of the container leaves: nothing, and nobody has called DEL."""
    subprocess.run(["ip", "netns", "del", pod.name], check=True)


def await_end_of_links(lab: Lab) -> None:
    """The kernel takes down what was in a namespace some time after it was deleted."""
    macs = {attachment.mac for attachment in records(lab) if not os.path.exists(attachment.netns)}
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        if not any(mac in lab.host.run("bridge", "fdb", "show", "dev", "eth0").stdout for mac in macs):
            return
        time.sleep(0.01)
    pytest.fail(f"links of pods that are gone are still there: {macs}")


def move(lab: Lab, netns: str) -> None:
    """Have the one record tell another path of its namespace."""
    with closing(Database(lab.data_dir)) as database:
        Records(database, boot_id()).revise(replace(records(lab)[0], netns=netns))


def test_a_pod_that_is_gone_is_cleared_after_the_grace_time(lab: Lab, agent: Agent) -> None:
    dead, living = (lab.pod(name, lab.conf(dual=True, shim=SERVICES)) for name in ("dead", "living"))
    assert agent.finds_nothing()
    kill(dead)
    await_end_of_links(lab)
    for after in (1.0, GRACE_SECONDS - 5.0):
        done = agent.passes(after=after)
        assert (done.repairs, done.cleared, done.errors) == ((), (), ())
        assert f"eth0 of {dead.container_id} in network lan: namespace gone: it is cleared" in done.waiting[0]
        assert len(records(lab)) == 2
    assert 4.0 < done.next_seconds <= 5.0
    done = agent.passes(after=done.next_seconds + 0.01)
    assert [finding.key.container_id for finding in done.cleared if finding.key] == [dead.container_id]
    assert [lease.container_id for lease in held(lab)] == [living.container_id] * 2
    assert not {dead.address, dead.address6}.intersection(row["dst"] for row in lab.host.routes())
    assert agent.finds_nothing()
    assert all_is_well(lab, living)


def test_the_last_one_takes_shim_and_table_along(lab: Lab, agent: Agent) -> None:
    before = network(lab.host)
    pod = lab.pod("a", lab.conf(dual=True, shim=SERVICES))
    kill(pod)
    await_end_of_links(lab)
    agent.passes()
    assert agent.passes(after=GRACE_SECONDS).cleared
    assert network(lab.host) == before
    assert stored(lab) == []


def test_the_grace_time_begins_anew_for_one_that_was_seen_again(lab: Lab, agent: Agent) -> None:
    pod, hidden = lab.pod("a"), f"{lab.data_dir}/hidden"
    move(lab, hidden)
    agent.passes()
    os.symlink(pod.netns, hidden)
    agent.passes(after=GRACE_SECONDS)
    os.unlink(hidden)
    assert agent.passes().cleared == ()
    assert agent.passes(after=GRACE_SECONDS - 1).cleared == ()
    assert len(records(lab)) == 1


def test_one_that_a_runtime_is_just_creating_is_spared(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("a")
    kill(pod)
    await_end_of_links(lab)
    agent.passes()
    with Locks(lab.data_dir).attachment(records(lab)[0].key):
        done = agent.passes(after=GRACE_SECONDS)
        assert (done.cleared, done.errors) == ((), ())
        assert [text for text in done.waiting if "a command is under way" in text]
    assert agent.passes(after=GRACE_SECONDS).cleared
    assert stored(lab) == []


def test_one_in_a_directory_that_is_not_there_for_us_is_spared(lab: Lab, agent: Agent) -> None:
    """An agent's container may not see where the runtime keeps its namespaces. Its host's end is looked after."""
    pod = lab.pod("a", lab.conf(dual=True))
    move(lab, "/run/elsewhere/a")
    pod.ip("link", "set", "eth0", "down")
    for _ in range(3):
        done = agent.passes(everything=True, after=GRACE_SECONDS)
        assert (done.repairs, done.cleared, done.errors) == ((), (), ())
    lab.host.ip("link", "del", shims(lab)[0])
    done = agent.passes(host=True)
    assert done.repairs == ()
    assert [text for text in done.waiting if "its namespace cannot be entered, and no link of it is up" in text]
    move(lab, pod.netns)
    assert agent.mends(pod)
    assert all_is_well(lab, pod)
    move(lab, "/run/elsewhere/a")
    lab.host.ip("link", "del", shims(lab)[0])
    assert agent.mends(host=True)
    assert lab.host.pings(pod)


def test_one_that_lives_on_out_of_sight_is_spared(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("a")
    descriptor = os.open(pod.netns, os.O_RDONLY)
    kill(pod)
    lab.host.ip("link", "del", shims(lab)[0])
    assert agent.passes(host=True).repairs
    for _ in range(3):
        done = agent.passes(after=GRACE_SECONDS)
        assert (done.cleared, done.errors) == ((), ())
    assert lab.host.pings(pod.address)
    os.close(descriptor)
    await_end_of_links(lab)
    assert agent.passes(after=GRACE_SECONDS).cleared
    assert stored(lab) == []


def test_what_nobody_has_recorded_is_cleared_after_the_grace_time(lab: Lab, agent: Agent) -> None:
    pod, shim = lab.pod("a"), shims(lab)[0]
    before = network(lab.host)
    lab.host.ip_batch(
        f"route add 192.0.2.150 dev {shim} proto 174 scope link",
        f"neigh add 192.0.2.151 lladdr {FOREIGN_MAC} dev {shim} nud permanent",
        "link add shim99 link eth0 type macvlan mode bridge",
        "link set shim99 alias 'shimlan shim of eth9'",
    )
    with closing(Database(lab.data_dir)) as database:
        Records(database, "earlier").put(replace(records(lab)[0], key=Key("lan", "old", "eth0")))
    done = agent.passes(everything=True)
    assert (done.cleared, done.errors) == ((), ())
    assert len([text for text in done.waiting if text.endswith("not for 60 s yet")]) == 4
    assert agent.passes(after=GRACE_SECONDS).cleared
    assert network(lab.host) == before
    with closing(Database(lab.data_dir)) as database:
        assert Records(database, boot_id()).of_earlier_boots() == []
    pod.check()


def test_all_namespaces_are_looked_at_rarely(lab: Lab, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    times = []

    def counted(*arguments: Any, **named: Any) -> Outcome:
        times.append(agent.now)
        return sweep(*arguments, **named)

    monkeypatch.setattr("cni.agent.reconcile.sweep", counted)
    pod = lab.pod("a")
    for _ in range(10):
        agent.passes(everything=True)
    assert times == [1001.0]
    kill(pod)
    for _ in range(10):
        agent.passes(after=10.0)
    assert times == [1001.0, 1080.0]
    agent.passes(after=SWEEP_SECONDS)
    assert len(times) == 3


# --- a fight ---------------------------------------------------------------------------------------------------------


def test_what_somebody_keeps_undoing_is_left_for_a_while(lab: Lab, agent: Agent) -> None:
    a, b = (lab.pod(name) for name in "ab")
    undo = on_host("route del {pod}/32 dev {shim}")
    repaired = []
    for _ in range(30):
        if any(row["dst"] == a.address for row in lab.host.routes()):
            undo(lab, a)
        done = agent.passes(host=True, after=1.0)
        repaired.append(len(done.repairs))
        if not done.repairs:
            (what,) = done.backed_off
            assert what.startswith(f"host: ip route prepend {a.address}/32 ")
    assert [number for number, repairs in enumerate(repaired) if repairs] == [0, 1, 2, 4, 8, 16]
    (told,) = [line for line in agent.said.getvalue().splitlines() if "warning" in line]
    assert f"somebody keeps undoing `host: ip route prepend {a.address}/32 dev" in told
    assert "NetworkManager or systemd-networkd" in told

    on_host("route del {pod}/32 dev {shim}", "neigh del {pod} dev {shim}")(lab, b)
    assert len(agent.passes(host=True).repairs) == 2
    assert lab.host.pings(b)
    assert agent.passes(after=300.0).repairs
    assert all_is_well(lab, a, b, families=(4,))


# --- one that cannot be helped ---------------------------------------------------------------------------------------


def test_one_that_cannot_be_helped_does_not_stop_the_others(lab: Lab, agent: Agent) -> None:
    hopeless, other = (lab.pod(name) for name in "ab")
    for pod in (hopeless, other):
        pod.ip("link", "del", "eth0")
    hopeless.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far")
    done = agent.passes(hopeless, other)
    assert done.repairs
    (error,) = done.errors
    assert error.startswith(f"eth0 of {hopeless.container_id} in network lan: eth0 already exists in the container's")
    assert lab.host.pings(other)
    other.check()
    for _ in range(9):
        done = agent.passes(everything=True)
    assert (len(done.backed_off) > 0, done.errors) == (True, ())
    hopeless.ip("link", "del", "eth0")
    assert agent.passes(after=60.0).repairs
    assert all_is_well(lab, hopeless, other, families=(4,))


@pytest.mark.parametrize("event", [kill, Pod.delete], ids=["its namespace goes away", "it is deleted"])
def test_a_pod_that_goes_in_the_middle_of_a_pass_is_left_alone(
    lab: Lab, event: Callable[[Pod], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    going, other = (lab.pod(name) for name in "ab")
    id = netns.identity_of(os.stat(going.netns))
    agent = Agent(lab, lambda pod: event(going) if pod.id == id and os.path.exists(going.netns) else None)
    for pod in (going, other):
        pod.ip("route", "flush", "table", "main")
    done = agent.passes(everything=True)
    assert done.errors == ()
    assert all_is_well(lab, other, families=(4,))
    going.delete()
    assert [attachment.key.container_id for attachment in records(lab)] == [other.container_id]


# --- beside commands -------------------------------------------------------------------------------------------------


def test_a_command_that_is_under_way_is_not_disturbed(lab: Lab, agent: Agent) -> None:
    busy, other = (lab.pod(name) for name in "ab")
    key = next(each.key for each in records(lab) if each.key.container_id == busy.container_id)
    for pod in (busy, other):
        pod.ip("route", "flush", "table", "main")
    with Locks(lab.data_dir).attachment(key):
        done = agent.passes(busy, other)
        assert {repair.where.split()[2] for repair in done.repairs} == {other.container_id}
        assert done.errors == ()
        assert done.next_seconds < 1.0
    assert agent.mends()  # of what the last pass did not finish
    assert all_is_well(lab, busy, other, families=(4,))


def test_passes_beside_commands_of_others(lab: Lab, agent: Agent) -> None:
    """Pods come and go, and the host's entries are undone, while one pass follows the other."""
    before = network(lab.host)
    pods = [lab.container(f"pod{number}", lab.conf(dual=True)) for number in range(8)]
    chance = seeded("passes beside commands")
    stop = threading.Event()

    def keep_passing() -> list[str]:
        errors: list[str] = []
        while not stop.is_set():
            errors += agent.passes(everything=True, after=0.1).errors
        return errors

    with ThreadPoolExecutor(1) as background:
        passing = background.submit(keep_passing)
        for _ in range(size(4, 20)):
            flights = [launch(lab, pod, "ADD") for pod in pods]
            for pod, flight in zip(pods, flights, strict=True):
                pod.result = flight.land().or_raise().json
            undo = chance.choice(["route flush proto 174", "-6 route flush proto 174", "neigh flush nud permanent"])
            lab.host.run("ip", *undo.split(), check=False)
            pods[0].address = pods[0].result["ips"][0]["address"].partition("/")[0]
            flights = [launch(lab, pod, "DEL") for pod in pods]
            for flight in flights:
                flight.land().or_raise()
        stop.set()
        assert passing.result() == []
    assert network(lab.host) == before
    assert stored(lab) == []


# --- the store -------------------------------------------------------------------------------------------------------


def test_a_damaged_store_is_told_and_left_to_the_next_command(lab: Lab, agent: Agent) -> None:
    pod = lab.pod("a", lab.conf(dual=True))
    garbage(store(lab))
    before = network(lab.host)
    done = agent.passes(everything=True)
    (error,) = done.errors
    assert error.startswith("this pass could not be finished: ")
    assert "the store is damaged" in error
    assert network(lab.host) == before
    other = lab.pod("b", lab.conf(dual=True))
    lab.host.ip("link", "del", shims(lab)[0])
    assert agent.mends(host=True)
    assert all_is_well(lab, pod, other)


def test_a_locked_store_delays_it(lab: Lab, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cni.database.BUSY_SECONDS", 0.2)
    agent = Agent(lab)
    pod = lab.pod("a", lab.conf(dual=True))
    lab.host.ip_batch(ADD_OTHER[4])
    with closing(Database(lab.data_dir)) as database, database.transaction():
        done = agent.passes(everything=True)
        assert done.repairs == ()
        assert "the store has been locked by another process" in done.errors[0]
        assert done.next_seconds <= TROUBLE_SECONDS
    on_host("route del {pod}/32 dev {shim}")(lab, pod)  # of which an event told while the store was locked
    assert agent.mends()
    assert pod.pings(OTHER[4])
    assert all_is_well(lab, pod)


def test_what_another_data_directory_records_is_its_own(lab: Lab, agent: Agent) -> None:
    elsewhere = f"{lab.data_dir}/other"
    other = lab.pod("other", lab.conf(name="other", dataDir=elsewhere, ipam={"dataDir": elsewhere}))
    pod = lab.pod("pod", lab.conf(mac="02:00:00:00:00:77", ipam={"exclude": [other.address]}))
    for _ in range(2):
        assert agent.passes(everything=True, after=GRACE_SECONDS).cleared == ()
    lab.host.ip("address", "add", "192.0.2.20/24", "dev", "eth0")
    assert agent.mends(host=True)
    other.pings("192.0.2.10")
    assert all_is_well(lab, pod, other, families=(4,))


def test_a_mac_that_others_have_changed_is_theirs(lab: Lab, agent: Agent) -> None:
    """The plugin tuning does so behind us in a chain."""
    pod = lab.pod("a")
    pod.ip("link", "set", "eth0", "address", FOREIGN_MAC)
    done = agent.passes(pod)
    assert [repair.kind for repair in done.repairs] == ["neighbour"], "the kernel forgets neighbours with the MAC"
    assert [text for text in done.waiting if "left alone" in text]
    assert pod.ip_json("link", "show", "eth0")[0]["address"] == FOREIGN_MAC


def test_what_a_command_is_just_making_is_not_mended(lab: Lab, agent: Agent) -> None:
    """An attachment that is new since the last pass is looked at by the next one."""
    agent.passes(everything=True)
    pod = lab.pod("a")
    lab.host.ip("route", "flush", "proto", "174")
    assert agent.passes(host=True).repairs == ()
    assert agent.passes(host=True).repairs
    assert lab.host.pings(pod)
