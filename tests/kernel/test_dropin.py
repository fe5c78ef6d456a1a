"""Beside the reference plugins: the same configuration gives the same pod, and the shim on top of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cni.attachment import PROTO_SHIMLAN
from cni.ctl.lab import Lab, Node, Pod
from cni.ctl.runtime import PLUGIN_DIRECTORIES, Json
from tests.kernel.agents import Serve
from tests.kernel.marks import needs_reference_plugins

pytestmark = needs_reference_plugins

MAC = "02:00:5e:10:20:30"
SUBNET, SUBNET6 = {"subnet": "192.0.2.0/24"}, {"subnet": "2001:db8::/64"}
PART = {**SUBNET, "rangeStart": "192.0.2.40", "rangeEnd": "192.0.2.49"}
DEFAULT, DEFAULT6 = {"dst": "0.0.0.0/0"}, {"dst": "::/0"}


def network(ipam: Json | None, **keys: Any) -> Json:
    """A configuration of the reference plugins; the MAC is given so that both pods have the same one."""
    conf = {"cniVersion": "0.4.0", "name": "lan", "type": "macvlan", "master": "eth0", "mac": MAC, **keys}
    conf = conf if ipam is None else {**conf, "ipam": {"type": "host-local", **ipam}}
    return {key: value for key, value in conf.items() if value is not None}


NETWORKS: dict[str, Json] = {
    "short form": network(SUBNET),
    "short form with its options": network({**PART, "gateway": "192.0.2.254", "routes": [DEFAULT]}),
    "a range": network({"ranges": [[PART]], "routes": [DEFAULT]}),
    "from start": network({"ranges": [[{**SUBNET, "rangeStart": "192.0.2.40"}]]}),
    "to end": network({"ranges": [[{**SUBNET, "rangeEnd": "192.0.2.49"}]]}),
    "two ranges of a pool": network({"ranges": [[PART, {"subnet": "198.51.100.0/24"}]]}),
    "two pools of a family": network({"ranges": [[PART], [{"subnet": "198.51.100.0/24"}]]}),
    "short form and ranges": network({**SUBNET6, "ranges": [[PART]]}),
    "a small subnet": network({"subnet": "192.0.2.128/30"}),
    "IPv6": network({"ranges": [[SUBNET6]], "routes": [DEFAULT6]}),
    "dual stack": network({"ranges": [[PART], [SUBNET6]], "routes": [DEFAULT, DEFAULT6]}),
    "routes": network({**SUBNET, "routes": [DEFAULT, {"dst": "198.51.100.0/24", "gw": "192.0.2.9"}]}),
    "a route of IPv6": network({"ranges": [[SUBNET6]], "routes": [{"dst": "2001:db8:9::/48", "gw": "2001:db8::9"}]}),
    "dns": network(SUBNET, dns={"nameservers": ["192.0.2.53"], "domain": "example.org", "search": ["a", "b"]}),
    "MTU": network(SUBNET, mtu=1400),
    "private": network(SUBNET, mode="private"),
    "vepa": network(SUBNET, mode="vepa"),
    "passthru": network(SUBNET, mode="passthru", mac=None),
    "MAC in capitals": network(SUBNET, mac=MAC.upper()),
    "master from the default route": network(SUBNET, master=None),
    "an empty master": network(SUBNET, master=""),
    "layer 2 only": network(None),
    "an empty ipam": {**network(None), "ipam": {}},
    "cniVersion 0.3.1": network(SUBNET, cniVersion="0.3.1"),
    "cniVersion 1.0.0": network({"ranges": [[PART], [SUBNET6]]}, cniVersion="1.0.0"),
    "runtimeConfig.mac": network(SUBNET, mac=None, runtimeConfig={"mac": MAC}),
    "runtimeConfig.ips": network(SUBNET, runtimeConfig={"ips": ["192.0.2.77/24"]}),
    "args.cni.ips": network(SUBNET, args={"cni": {"ips": ["192.0.2.78"]}}),
    "runtimeConfig.ipRanges": network({}, runtimeConfig={"ipRanges": [[PART]]}),
    "ipRanges before ranges": network({"ranges": [[SUBNET6]]}, runtimeConfig={"ipRanges": [[PART]]}),
}


@pytest.mark.parametrize("conf", NETWORKS.values(), ids=NETWORKS)
def test_a_configuration_gives_the_same_pod(serve: Serve, conf: Json) -> None:
    compare(serve, conf)


ARGUMENTS: dict[str, tuple[str, Json]] = {
    "MAC": (f"IgnoreUnknown=1;MAC={MAC}", network(SUBNET, mac=None)),
    "IP": ("IgnoreUnknown=1;IP=192.0.2.77", network(SUBNET)),
    "of Kubernetes": ("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;X=y", network(SUBNET)),
}


@pytest.mark.parametrize(("arguments", "conf"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_cni_args_give_the_same_pod(serve: Serve, arguments: str, conf: Json) -> None:
    compare(serve, conf, CNI_ARGS=arguments)


def test_the_parent_in_the_pod_gives_the_same_pod(serve: Serve) -> None:
    if not reference_knows("linkInContainer"):
        pytest.skip("the reference macvlan is older than linkInContainer")
    compare(serve, network(SUBNET, linkInContainer=True, master="eth0"), parent_inside=True, ifname="net1")


@pytest.mark.parametrize("kind", ["host-local", "static"])
def test_other_ipam_plugins_work_under_shimlan_as_under_macvlan(serve: Serve, kind: str) -> None:
    static = {"addresses": [{"address": "192.0.2.90/24", "gateway": "192.0.2.1"}], "routes": [DEFAULT]}
    compare(serve, network({"type": kind, **(static if kind == "static" else PART)}), ours_delegates=True)


def reference_knows(word: str) -> bool:
    binary = next(path for path in (Path(directory, "macvlan") for directory in PLUGIN_DIRECTORIES) if path.exists())
    return word.encode() in binary.read_bytes()


def compare(
    serve: Serve,
    conf: Json,
    *,
    ours_delegates: bool = False,
    parent_inside: bool = False,
    ifname: str = "eth0",
    **variables: Any,
) -> None:
    """Attach a pod in one lab by the reference plugins and in another by ours, and find them equal."""
    with Lab() as there, Lab() as here, serve(here):
        theirs = attach(there, keeping_its_data_in(there, conf), parent_inside, ifname, variables)
        ours = attach(here, switched(here, conf, ours_delegates), parent_inside, ifname, variables)
        assert told(ours) == told(theirs)
        assert seen(ours) == seen(theirs)
        ours.check()
        for pod in (ours, theirs):
            pod.delete()
        assert seen(ours) == seen(theirs)


def attach(lab: Lab, conf: Json, parent_inside: bool, ifname: str, variables: dict[str, Any]) -> Pod:
    pod = lab.container("pod", conf, ifname, **variables)
    # The reference plugin waits for IPv6 duplicate address detection, which takes two seconds.
    pod.sysctl("net.ipv6.conf.default.accept_dad", 0)
    if parent_inside:
        lab.switch.plug(pod)
        pod.ip("link", "set", "eth0", "up")
    pod.add()
    return pod


def keeping_its_data_in(lab: Lab, conf: Json) -> Json:
    kept = {"dataDir": lab.data_dir} if conf.get("ipam", {}).get("type") == "host-local" else {}
    return {**conf, **({"ipam": {**conf["ipam"], **kept}} if kept else {})}


def switched(lab: Lab, conf: Json, delegates: bool) -> Json:
    """The same configuration with the two words changed, and its data in the lab."""
    conf = {**keeping_its_data_in(lab, conf), "type": "shimlan", "dataDir": lab.data_dir}
    if conf.get("ipam") and not delegates:
        conf["ipam"] = {**conf["ipam"], "type": "shimlan-ipam"}
    return conf


def told(pod: Pod) -> Json:
    """The result, without the shim and the name of the lab's namespace."""
    interfaces = [{**entry, "sandbox": ""} for entry in pod.result["interfaces"] if entry.get("sandbox")]
    return {**pod.result, "interfaces": [without_random_mac(pod, entry) for entry in interfaces]}


def without_random_mac(pod: Pod, entry: Json) -> Json:
    return {**entry, "mac": ""} if pod.conf.get("mode") == "passthru" else entry


def seen(node: Node) -> Json:
    """What `ip` shows of a pod, without that which is there for the shim, and without marks of how it was made."""
    routes = [row for row in node.routes() if row.get("protocol") != str(PROTO_SHIMLAN)]
    return {
        "links": [plain(link) for link in node.links() if link["ifname"] != "lo"],
        "addresses": [
            {key: info.get(key) for key in ("family", "local", "prefixlen", "broadcast", "scope", "valid_life_time")}
            for row in node.ip_json("address")
            for info in row["addr_info"]
            if info["scope"] == "global"
        ],
        "routes": [
            {key: value for key, value in row.items() if key != "flags"}
            for row in routes
            if not row["dst"].startswith("fe80")
        ],
    }


def plain(link: Json) -> Json:
    return {
        "name": link["ifname"],
        "mtu": link["mtu"],
        "flags": link["flags"],
        "group": link["group"],
        "mac": link["address"] if link["address"] == MAC else "",
        "kind": link["linkinfo"],
    }
