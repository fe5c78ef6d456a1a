"""ADD and DEL through the executable: what the runtime is told, what stands in the kernel, what remains."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.lab import CniFailed, Lab, Pod
from cni.protocol import VERSIONS
from tests.kernel.agents import interrupted
from tests.kernel.marks import needs_reference_plugins
from tests.kernel.traces import held, network, records, stored, sysctls

ROOT = Path(__file__).parents[2]
OTHER_PLUGIN = {
    "interfaces": [{"name": "br0", "mac": "02:00:00:00:00:aa"}, {"name": "net0", "sandbox": "/run/netns/x"}],
    "ips": [{"version": "4", "address": "198.51.100.7/24", "gateway": "198.51.100.1", "interface": 1}],
    "routes": [{"dst": "198.51.100.0/24", "gw": "198.51.100.1"}],
    "dns": {"nameservers": ["198.51.100.53"]},
}


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_has_the_shape_of_its_version(lab: Lab, version: str) -> None:
    pod = lab.pod("a", lab.conf(dual=True, cniVersion=version, mtu=1400, dns={"domain": "example.org"}))
    shim = lab.host.link(f"shim{lab.host.link('eth0')['ifindex']}")

    def mtu(value: int) -> dict[str, int]:
        return {"mtu": value} if version == "1.1.0" else {}

    def family(number: str) -> dict[str, str]:
        return {"version": number} if version.startswith("0.") else {}

    assert pod.result == {
        "cniVersion": version,
        "interfaces": [
            {"name": "eth0", "mac": pod.mac, "sandbox": pod.netns, **mtu(1400)},
            {"name": shim["ifname"], "mac": shim["address"], **mtu(1500)},
        ],
        "ips": [
            {**family("4"), "interface": 0, "address": "192.0.2.100/24", "gateway": "192.0.2.1"},
            {**family("6"), "interface": 0, "address": "2001:db8::100/64", "gateway": "2001:db8::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"domain": "example.org"},
    }
    pod.check()
    pod.delete()
    assert stored(lab) == []


def test_routes_tell_their_options_in_the_newest_version_only(lab: Lab) -> None:
    route = {"dst": "203.0.113.0/24", "gw": "192.0.2.1", "mtu": 1300, "advmss": 1200, "priority": 50, "table": 100}
    ipam = {"routes": [{**route, "scope": 0}]}
    newest = lab.pod("a", lab.conf(cniVersion="1.1.0", ipam=ipam))
    older = lab.pod("b", lab.conf(ipam=ipam))
    assert newest.result["routes"] == [{**route, "scope": 0}]
    assert older.result["routes"] == [{"dst": "203.0.113.0/24", "gw": "192.0.2.1"}]
    for pod in (newest, older):
        (row,) = pod.ip_json("-d", "route", "show", "table", "100")
        assert (row["dst"], row["gateway"], row["metric"]) == ("203.0.113.0/24", "192.0.2.1", 50)
        assert row["metrics"] == [{"mtu": 1300, "advmss": 1200}]
        pod.check()


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_what_plugins_before_us_did_comes_first(lab: Lab, version: str) -> None:
    pod = lab.pod("a", {**lab.conf(cniVersion=version), "prevResult": {"cniVersion": version, **OTHER_PLUGIN}})
    result = pod.result
    assert [entry["name"] for entry in result["interfaces"]][:3] == ["br0", "net0", "eth0"]
    assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [
        ("198.51.100.7/24", 1),
        ("192.0.2.100/24", 2),
    ]
    assert [route["dst"] for route in result["routes"]] == ["198.51.100.0/24", "0.0.0.0/0"]
    assert result["dns"] == OTHER_PLUGIN["dns"]
    pod.check()


@needs_reference_plugins
def test_a_chain_is_added_checked_and_deleted(lab: Lab) -> None:
    sysctl = {"net.ipv4.conf.eth0.log_martians": "1"}
    tuning = {"type": "tuning", "dataDir": f"{lab.data_dir}/tuning", "sysctl": sysctl}
    pod = lab.pod("a", {"cniVersion": "1.0.0", "name": "lan", "plugins": [lab.conf(), tuning]})
    assert [entry["name"] for entry in pod.result["interfaces"]] == ["eth0", "shim2"]
    assert pod.sysctl("net.ipv4.conf.eth0.log_martians") == "1"
    pod.check()
    pod.delete()
    assert [link["ifname"] for link in pod.links()] == ["lo"]


def test_a_prev_result_that_is_none_is_refused_and_nothing_is_left(lab: Lab) -> None:
    before = network(lab.host)
    with pytest.raises(CniFailed) as failure:
        lab.pod("a", {**lab.conf(), "prevResult": {"ips": [{"address": "nonsense"}]}})
    assert failure.value.code == 6
    assert network(lab.host) == before
    assert stored(lab) == []


# --- the link --------------------------------------------------------------------------------------------------------


def test_the_link_is_a_child_of_the_parent_with_all_that_was_asked(lab: Lab) -> None:
    pod = lab.pod("a", lab.conf(mtu=1280, mac="02:00:5E:10:00:01", bcqueuelen=2000, bclim=50), ifname="fifteen-letters")
    link = pod.link("fifteen-letters")
    assert (link["mtu"], link["address"], link["operstate"]) == (1280, "02:00:5e:10:00:01", "UP")
    assert link["link_index"] == lab.host.link("eth0")["ifindex"]
    assert (link["linkinfo"]["info_kind"], link["linkinfo"]["info_data"]["mode"]) == ("macvlan", "bridge")
    assert link["linkinfo"]["info_data"]["bcqueuelen"] == 2000
    assert link["linkinfo"]["info_data"].get("bclim", 50) == 50
    pod.check()


@pytest.mark.parametrize("family", [4, 6])
def test_the_parent_is_that_of_the_default_route(lab: Lab, family: int) -> None:
    lab.host.ip_batch("link add other type veth peer name peer", "link set other up", "link set peer up")
    if family == 6:
        lab.host.ip("route", "del", "default")
    pod = lab.pod("a", lab.conf(master=None))
    assert pod.link("eth0")["link_index"] == lab.host.link("eth0")["ifindex"]


def test_the_default_route_with_the_lowest_metric_decides(lab: Lab) -> None:
    lab.host.ip_batch(
        "link add other type veth peer name peer",
        "link set other up",
        "link set peer up",
        "address add 198.51.100.2/24 dev other",
        "route del default",
        "route add default via 192.0.2.1 metric 200",
        "route add default via 198.51.100.1 metric 100",
    )
    pod = lab.pod("a", lab.conf(master=None))
    assert pod.link("eth0")["link_index"] == lab.host.link("other")["ifindex"]


def test_without_default_route_a_master_has_to_be_named(lab: Lab) -> None:
    lab.host.ip_batch("route del default", "route del default via 2001:db8::1")
    with pytest.raises(CniFailed, match="master") as failure:
        lab.pod("a", lab.conf(master=None))
    assert failure.value.code in (7, 102)


def test_the_parent_may_live_in_the_pod(lab: Lab) -> None:
    lab.host.ip_batch("route del default", "route del default via 2001:db8::1")  # nothing on the host may be needed
    pod = lab.container("inside", lab.conf(master="eth0", linkInContainer=True, ipam={"routes": []}), ifname="net1")
    lab.switch.plug(pod)
    pod.ip("link", "set", "eth0", "up")
    before = network(lab.host)
    pod.add()
    pod.dev = "net1"
    assert network(lab.host) == before
    assert pod.link("net1")["link"] == "eth0"
    assert [entry["name"] for entry in pod.result["interfaces"]] == ["net1"]
    assert pod.pings(lab.outside)
    pod.check()
    pod.delete()
    assert [link["ifname"] for link in pod.links()] == ["lo", "eth0"]


@pytest.mark.parametrize("ipam", [None, {}])
def test_without_ipam_there_is_a_link_and_nothing_else(lab: Lab, ipam: dict[str, Any] | None) -> None:
    conf = lab.conf(ipam=None)
    pod = lab.pod("a", conf if ipam is None else {**conf, "ipam": ipam})
    assert pod.addresses() == []
    assert [entry["name"] for entry in pod.result["interfaces"]] == ["eth0"]
    assert "ips" not in pod.result
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0"]
    pod.ip("address", "add", "192.0.2.77/24", "dev", "eth0")
    assert pod.pings(lab.outside)
    pod.check()
    pod.delete()


def test_two_interfaces_of_one_container_are_two_attachments(lab: Lab) -> None:
    pod = lab.pod("a", lab.conf(dual=True))
    before = network(pod)
    second = {**pod.variables, "CNI_IFNAME": "net1"}
    result = lab.runtime().add(lab.conf(dual=True), second)
    assert result["ips"][0]["address"] == "192.0.2.101/24"
    pod.check()  # none of its routes was taken away
    lab.runtime().check(lab.conf(), second, result)
    lab.runtime().delete(lab.conf(), second, result)
    assert network(pod) == before
    pod.check()
    assert pod.pings(lab.host)
    pod.delete()
    assert held(lab) == []


def test_an_address_is_there_when_add_returns(lab: Lab) -> None:
    pod = lab.pod("a", lab.conf(dual=True))
    (row,) = pod.ip_json("address", "show", "dev", "eth0")
    addresses = {info["local"]: info for info in row["addr_info"]}
    assert addresses["192.0.2.100"]["broadcast"] == "192.0.2.255"
    assert "tentative" not in addresses["2001:db8::100"]
    assert pod.pings(lab.outside, 6)


def test_a_pod_without_ipv6_gets_it_switched_on_by_an_ipv6_address(lab: Lab) -> None:
    pod = lab.container("a", lab.conf(dual=True))
    pod.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    pod.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    pod.add()
    assert "2001:db8::100/64" in pod.addresses()
    assert pod.pings(lab.outside, 6)


def test_an_add_that_is_repeated_starts_anew(lab: Lab) -> None:
    pod = lab.pod("a")
    pod.add()
    assert [link["ifname"] for link in pod.links()] == ["lo", "eth0"]
    assert len(held(lab)) == len(records(lab)) == 1
    assert pod.addresses() == [f"{held(lab)[0].address}/24"]
    assert lab.host.pings(pod)
    pod.check()


# --- refusals --------------------------------------------------------------------------------------------------------

NOT_USABLE: tuple[tuple[str, tuple[str, ...], dict[str, Any], int, str], ...] = (
    ("missing", (), {"master": "nope"}, 102, r'no link nope: set "master" to one that exists \(eth0'),
    ("down", ("link set eth0 down",), {}, 102, "eth0 is down: run `ip link set eth0 up`"),
    ("loopback", (), {"master": "lo"}, 102, "lo is no Ethernet device"),
    (
        "port of a bridge",
        ("link add br7 type bridge", "link set eth0 master br7"),
        {},
        102,
        'eth0 is a port of bridge br7: set "master": "br7"',
    ),
    ("MTU above the parent's", (), {"mtu": 9000}, 7, "mtu: 9000 is above the 1500 of eth0"),
    (
        "address that is none of the host",
        (),
        {"shim": {"hostAddresses": ["192.0.2.99"]}},
        7,
        "shim.hostAddresses: 192.0.2.99 is no address of this host",
    ),
    ("shim beside another mode", (), {"mode": "vepa", "shim": True}, 7, "shim: a shim only works with mode bridge"),
    (
        "gateway that nobody can reach",
        (),
        {"ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "203.0.113.1"}]}},
        103,
        "the gateway is in no subnet of the pod",
    ),
    (
        "MAC of the parent's other child",
        ("link add taken link eth0 address 02:00:00:00:00:09 type macvlan mode bridge", "link set taken up"),
        {"mac": "02:00:00:00:00:09"},
        103,
        "has this MAC",
    ),
)


@pytest.mark.parametrize(
    ("lines", "changes", "code", "words"), [row[1:] for row in NOT_USABLE], ids=[row[0] for row in NOT_USABLE]
)
def test_what_cannot_work_is_refused_in_words_and_leaves_nothing(
    lab: Lab, lines: tuple[str, ...], changes: dict[str, Any], code: int, words: str
) -> None:
    lab.host.ip_batch(*lines)
    before = network(lab.host)
    pod = lab.container("a", lab.conf(**changes))
    with pytest.raises(CniFailed, match=words) as failure:
        pod.add()
    assert failure.value.code == code
    assert network(lab.host) == before
    assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert stored(lab) == []


def test_a_link_of_that_name_in_the_pod_is_left_alone(lab: Lab) -> None:
    pod = lab.container("a")
    pod.ip("link", "add", "eth0", "type", "veth", "peer", "name", "peer")
    before = network(pod)
    with pytest.raises(CniFailed, match="eth0 already exists in the container's namespace") as failure:
        pod.add()
    assert failure.value.code == 103
    pod.delete()
    assert network(pod) == before
    assert stored(lab) == []


def test_a_bridge_can_be_the_parent(lab: Lab) -> None:
    lab.host.ip_batch(
        "address flush dev eth0",
        "link add br7 type bridge forward_delay 0",
        "link set br7 up",
        "link set eth0 master br7",
        "address add 192.0.2.10/24 dev br7",
    )
    pod = lab.pod("a", lab.conf(master="br7"))
    assert pod.pings(lab.outside)
    assert pod.pings("192.0.2.10")
    assert lab.host.pings(pod)
    pod.check()


def test_children_of_a_macvlan_need_no_shim(lab: Lab) -> None:
    lab.host.ip_batch(
        "address flush dev eth0",
        "link add mv0 link eth0 type macvlan mode bridge",
        "link set mv0 up",
        "address add 192.0.2.10/24 dev mv0",
    )
    pod = lab.pod("a", lab.conf(master="mv0"))
    assert [entry["name"] for entry in pod.result["interfaces"]] == ["eth0"]
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0", "mv0"]
    assert pod.pings("192.0.2.10")
    assert lab.host.pings(pod)
    assert pod.pings(lab.outside)
    pod.check()
    pod.delete()


@pytest.mark.parametrize("netns", ["/nonexistent", "/proc/self/status", "/proc/self/ns/mnt"])
def test_what_is_no_network_namespace_is_refused(lab: Lab, netns: str) -> None:
    before = network(lab.host)
    answer = lab.cni("ADD", lab.conf(), CNI_CONTAINERID="a", CNI_IFNAME="eth0", CNI_NETNS=netns)
    assert (answer.status, answer.json["code"]) == (1, 106)
    assert netns in answer.json["msg"] or "must be a network namespace" in answer.json["msg"]
    assert network(lab.host) == before
    assert stored(lab) == []


def test_its_own_namespace_is_refused_unless_that_is_meant(lab: Lab) -> None:
    variables = {"CNI_CONTAINERID": "a", "CNI_IFNAME": "net7", "CNI_NETNS": lab.host.netns}
    refused = lab.runtime().call("ADD", lab.conf(), variables)
    assert refused.json["code"] == 4
    assert "CNI_NETNS_OVERRIDE" in refused.json["msg"]
    meant = {**variables, "CNI_NETNS_OVERRIDE": "1"}
    assert lab.runtime().call("ADD", lab.conf(), meant).or_raise().json["ips"]
    assert lab.host.link("net7")["linkinfo"]["info_kind"] == "macvlan"
    assert lab.runtime().call("DEL", lab.conf(), meant).ok
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0"]


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC"])
def test_a_data_directory_that_cannot_be_made_is_an_error_in_words(lab: Lab, command: str) -> None:
    before, pod = network(lab.host), lab.container("a")
    conf = {**lab.conf(dataDir="/proc/shimlan"), "prevResult": {}, "cni.dev/valid-attachments": []}
    answer = lab.runtime().call(command, conf, pod.variables)
    assert (answer.status, answer.json["code"]) == (1, 5)
    assert "/proc/shimlan" in answer.json["msg"]
    assert network(lab.host) == before


# --- DEL -------------------------------------------------------------------------------------------------------------


@contextmanager
def nothing_changes(lab: Lab) -> Iterator[None]:
    before = network(lab.host), sysctls(lab.host, "eth0", "lo")
    yield
    assert (network(lab.host), sysctls(lab.host, "eth0", "lo")) == before
    assert stored(lab) == []


def delete(lab: Lab, pod: Pod, conf: dict[str, Any] | None = None, **variables: str) -> None:
    """DEL as a runtime sends it when it remembers next to nothing: no prevResult."""
    lab.runtime().call("DEL", conf or pod.conf, {**pod.variables, **variables}).or_raise()


def test_del_leaves_the_host_as_it_was(lab: Lab) -> None:
    with nothing_changes(lab):
        pod = lab.pod("a", lab.conf(dual=True, shim={"routes": ["10.96.0.0/16"]}))
        assert lab.host.pings(pod)
        pod.delete()


def test_del_may_come_again_and_again(lab: Lab) -> None:
    with nothing_changes(lab):
        pod = lab.pod("a")
        for _ in range(2):
            pod.delete()
        delete(lab, pod, CNI_NETNS="")
        delete(lab, pod, CNI_CONTAINERID="never-seen")


def test_the_name_and_mac_are_free_when_del_returns(lab: Lab) -> None:
    pod = lab.pod("a", lab.conf(mac="02:00:00:00:00:07"))
    for _ in range(5):
        pod.delete()
        pod.add()
    pod.check()


@pytest.mark.parametrize("netns", ["", "/nonexistent"])
def test_del_without_the_namespace_clears_the_host(lab: Lab, netns: str) -> None:
    with nothing_changes(lab):
        pod = lab.pod("a", lab.conf(dual=True))
        lab.host.run("ip", "netns", "del", pod.name)
        delete(lab, pod, CNI_NETNS=netns)


def test_del_without_a_namespace_path_still_removes_the_link(lab: Lab) -> None:
    with nothing_changes(lab):
        pod = lab.pod("a")
        delete(lab, pod, CNI_NETNS="")
        assert [link["ifname"] for link in pod.links()] == ["lo"]


def test_del_spares_another_container_in_a_namespace_of_the_same_path(lab: Lab) -> None:
    first = lab.pod("a")
    lab.host.run("ip", "netns", "del", first.name)
    second = Pod(first.name, "second", lab.runtime(), lab.conf(), {**first.variables, "CNI_CONTAINERID": "second"})
    lab.host.run("ip", "netns", "add", second.name)
    second.add()
    first.delete()
    assert [link["ifname"] for link in second.links()] == ["lo", "eth0"]
    assert [lease.container_id for lease in held(lab)] == ["second"]
    second.check()
    assert lab.host.pings(second)


def test_del_when_the_parent_is_gone(lab: Lab) -> None:
    pod = lab.pod("a")
    lab.host.ip("link", "del", "eth0")
    pod.delete()
    assert stored(lab) == []


CHANGED: dict[str, dict[str, Any]] = {
    "another master": {"master": "nope"},
    "another mode": {"mode": "private"},
    "no ipam": {"ipam": None},
    "another ipam": {"ipam": {"type": "host-local", "ranges": None}},
    "other ranges": {"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}]]}},
    "wrong values": {"mtu": "much", "mode": "sideways", "shim": 7, "ipam": {"ranges": "none"}},
    "no shim": {"shim": False},
    "another version": {"cniVersion": "0.3.1"},
}


@pytest.mark.parametrize("changes", CHANGED.values(), ids=CHANGED)
def test_del_works_with_a_configuration_that_was_changed(lab: Lab, changes: dict[str, Any]) -> None:
    with nothing_changes(lab):
        pod = lab.pod("a", lab.conf(dual=True))
        delete(lab, pod, lab.conf(**changes))
        assert [link["ifname"] for link in pod.links()] == ["lo"]


@pytest.mark.parametrize("result", [{"ips": 7}, {"cniVersion": "9.9.9"}, {"ips": [{"address": "x"}]}, []])
def test_del_works_with_a_result_that_nobody_can_read(lab: Lab, result: object) -> None:
    with nothing_changes(lab):
        pod = lab.pod("a")
        delete(lab, pod, {**pod.conf, "prevResult": result})
        delete(lab, pod, {**pod.conf, "prevResult": result})


def test_del_finds_a_link_that_was_renamed(lab: Lab) -> None:
    with nothing_changes(lab):
        pod = lab.pod("a")
        pod.ip_batch("link set eth0 down", "link set eth0 name lan0", "link set lan0 up")
        pod.delete()
        assert [link["ifname"] for link in pod.links()] == ["lo"]


def test_del_spares_a_link_that_took_the_place_of_ours(lab: Lab) -> None:
    pod = lab.pod("a")
    pod.ip_batch("link del eth0", "link add eth0 type veth peer name peer")
    pod.delete()
    assert {"eth0", "peer"} < {link["ifname"] for link in pod.links()}


def test_pods_of_an_earlier_boot_do_not_disturb_those_of_this_one(lab: Lab) -> None:
    old = lab.pod("old", lab.conf(ipam={"cooldownSeconds": 0}))
    lab.host.run("ip", "netns", "del", old.name)
    lab.host.ip("link", "del", "shim2")
    another_boot(lab)
    new = lab.pod("new", lab.conf(ipam={"cooldownSeconds": 0}), CNI_ARGS=f"IP={old.address}")
    assert new.address == old.address
    old.delete()
    delete(lab, old, CNI_NETNS="")
    new.check()
    assert lab.host.pings(new)
    assert [lease.container_id for lease in held(lab)] == [new.container_id]


def another_boot(lab: Lab) -> None:
    """Make all that the store holds be of another boot."""
    with interrupted(lab), closing(sqlite3.connect(f"{lab.data_dir}/shimlan.db", isolation_level=None)) as connection:
        connection.execute("UPDATE attachments SET boot_id = 'another'")
        connection.execute("UPDATE lease_boot SET id = 'another'")


def test_a_lost_store_is_no_reason_to_leave_a_pod_attached(lab: Lab) -> None:
    with nothing_changes(lab):
        pod = lab.pod("a", lab.conf(dual=True))
        for file in Path(lab.data_dir).glob("shimlan.db*"):
            file.unlink()
        pod.delete()
        assert [link["ifname"] for link in pod.links()] == ["lo"]


@pytest.mark.without_agent("an agent serves one host")
def test_two_hosts_of_one_lan_reach_each_others_pods(lab: Lab) -> None:
    other = lab.machine("other", "192.0.2.11/24", "2001:db8::11/64", gateways=["192.0.2.1", "2001:db8::1"])
    mine = lab.pod("mine", lab.conf(dual=True))
    elsewhere = lab.conf(
        dual=True,
        dataDir=f"{lab.data_dir}/other",
        ipam={
            "dataDir": f"{lab.data_dir}/other",
            "ranges": [
                [{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.200"}],
                [{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::200"}],
            ],
        },
    )
    theirs = lab.pod("theirs", elsewhere, host=other)
    for family in (4, 6):
        assert mine.pings(theirs, family)
        assert lab.host.pings(theirs, family)
        assert other.pings(mine, family)
        assert other.pings(theirs, family)


def test_adds_at_once_share_one_shim_and_no_address(lab: Lab) -> None:
    pods = [lab.container(f"p{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pod: pod.add(), pods))
        assert len({pod.address for pod in pods}) == 8
        assert all(pool.map(lab.host.pings, pods))
        list(pool.map(lambda pod: pod.delete(), pods))
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0"]
    assert stored(lab) == []


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.without_agent("of the process that a call is")
@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC"])
def test_no_call_loads_what_is_slow(lab: Lab, command: str) -> None:
    pod = lab.container("a", lab.conf(dual=True)) if command == "ADD" else lab.pod("a", lab.conf(dual=True))
    conf = {**pod.conf, "prevResult": pod.result, "cni.dev/valid-attachments": []}
    # Without `site`, whose .pth files load what they like.
    program = (sys.executable, "-S", "-X", "importtime", str(ROOT / "bin" / "shimlan"))
    environ = {"PYTHONPATH": str(ROOT), "CNI_COMMAND": command, **pod.variables}
    done = lab.host.run(*program, input=json.dumps(conf), env=environ)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "cni.commands" in loaded
    assert (
        loaded & {"typing", "dataclasses", "enum", "socket", "subprocess", "logging", "pyroute2", "jsonschema"} == set()
    )
