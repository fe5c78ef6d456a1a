"""A LAN to try plugins on: a switch, a host, a machine outside of it, and pods, each a network namespace.

    with Lab() as lab:
        pod = lab.pod("a")
        assert pod.pings(lab.outside)
        assert lab.host.pings(pod)

Needs the rights of root over networks: real ones, or those that `cni.ctl.sandbox` gives. All of it is gone on exit.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from types import TracebackType
from typing import Any, TypeVar

from cni.ctl.frames import Capture
from cni.ctl.node import Node
from cni.ctl.runtime import CniAnswer, CniFailed, Json, Runtime

__all__ = ["CniAnswer", "CniFailed", "Lab", "Node", "Pod", "Switch"]

HOST = ("192.0.2.10/24", "2001:db8::10/64")  # documentation prefixes: RFC 5737, RFC 3849
OUTSIDE = ("192.0.2.1/24", "2001:db8::1/64")

TOOLS = ("ip", "nsenter", "ping")

Interface = IPv4Interface | IPv6Interface
AnyNode = TypeVar("AnyNode", bound=Node)


def missing_tools() -> list[str]:
    """The programs that a lab needs and that are not installed."""
    return [tool for tool in TOOLS if not shutil.which(tool)]


class Switch(Node):
    """A bridge whose ports are named after the machines at their other ends; it has no address and is silent."""

    def power_on(self) -> None:
        """Make the bridge; it forwards at once and everywhere (no STP, no multicast snooping)."""
        self.ip_batch(
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            "link set br0 addrgenmode none",
            "link set br0 up",
        )

    def plug(self, node: Node, mtu: int = 1500) -> None:
        """Give a machine an eth0 that ends in a port of ours."""
        port = _port(node)
        self.ip_batch(
            f"link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {node.name}",
            f"link set {port} addrgenmode none",
            f"link set {port} master br0 up",
        )

    def hairpin(self, node: Node, enabled: bool) -> None:
        """Whether frames may leave by the port they came from, as on an 802.1Qbg (VEPA) switch."""
        self.ip("link", "set", "dev", _port(node), "type", "bridge_slave", "hairpin", "on" if enabled else "off")

    def sniff_port(self, node: Node) -> Capture:
        """Capture what a machine puts on the wire and nothing of what it gets."""
        return self.sniff(_port(node), lambda frame: not frame.outgoing)


class Pod(Node):
    """A container's namespace and the interface that the plugins of its conf made in it; see `Lab.pod`."""

    def __init__(self, name: str, label: str, runtime: Runtime, conf: Json, variables: dict[str, str]) -> None:
        super().__init__(name, label)
        self.runtime = runtime
        self.conf = conf
        self.dev = variables["CNI_IFNAME"]
        self.container_id = variables["CNI_CONTAINERID"]
        self.variables = {**variables, "CNI_NETNS": self.netns}
        self.result: Json = {}

    def add(self, conf: Json | None = None) -> Json:
        """ADD, with another conf than before if one is given; the result, also kept in `result`. Raises CniFailed."""
        self.conf = conf or self.conf
        self.result = self.runtime.add(self.conf, self.variables)
        addresses = [ip_interface(ip["address"]) for ip in self.result.get("ips", [])]
        self.address, self.address6 = _first_of_each_family(addresses)
        return self.result

    def check(self) -> None:
        """CHECK. Raises CniFailed when something is not as ADD left it."""
        self.runtime.check(self.conf, self.variables, self.result)

    def delete(self) -> None:
        """DEL; the namespace stays. Raises CniFailed."""
        self.runtime.delete(self.conf, self.variables, self.result)


class Lab:
    """The LAN and its machines; `host` runs the pods, `outside` is their gateway and anybody else.

    `plugin`: the shimlan executable to try, else see `runtime.installed_shimlan`. `host`, `outside`: their addresses
    with prefix length. `directory`: where the lab keeps its data, else where temporary files go. `dump_on_error`:
    print every namespace's state when the block ends with an exception.
    """

    def __init__(
        self,
        plugin: str | None = None,
        *,
        host: Iterable[str] = HOST,
        outside: Iterable[str] = OUTSIDE,
        directory: str | None = None,
        dump_on_error: bool = False,
    ) -> None:
        self.plugin = plugin
        self.environ: dict[str, str] = {}  # of the runtimes
        self._host_addresses = tuple(map(ip_interface, host))
        self._outside_addresses = tuple(map(ip_interface, outside))
        self._directory = directory
        self._dump_on_error = dump_on_error
        self._prefix = f"lab-{secrets.token_hex(3)}"
        self._undo = ExitStack()
        self._nodes: list[Node] = []

    def __enter__(self) -> Lab:
        with ExitStack() as undo:
            self._undo = undo
            self.data_dir = undo.enter_context(tempfile.TemporaryDirectory("", "shimlan-lab-", self._directory))
            self.switch = self._switch()
            self.outside = self.machine("outside", *self._outside_addresses)
            self.host = self.machine("host", *self._host_addresses, gateways=self._outside_addresses)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._undo:
            if error and self._dump_on_error:
                print(self.dump(), file=sys.stderr)

    def machine(
        self, label: str, *addresses: Interface | str, gateways: Iterable[Interface | str] = (), mtu: int = 1500
    ) -> Node:
        """One more machine on the LAN: eth0 with these addresses, default routes through the gateways."""
        interfaces = [ip_interface(address) for address in addresses]
        node = self._own(Node(f"{self._prefix}-{label}", label, *_first_of_each_family(interfaces)))
        self.switch.plug(node, mtu)
        flags = {4: "", 6: " nodad"}
        node.ip_batch(
            "link set eth0 up",
            *(f"address add {each} dev eth0{flags[each.version]}" for each in interfaces),
            *(f"route add default via {gateway.ip}" for gateway in map(ip_interface, gateways)),
        )
        return node

    def netns(self, label: str) -> Node:
        """A bare namespace, as a runtime makes it for a pod: nothing but `lo`, which is up."""
        return self._own(Node(f"{self._prefix}-{label}", label))

    def pod(
        self,
        label: str | None = None,
        conf: Json | None = None,
        ifname: str = "eth0",
        container_id: str | None = None,
        host: Node | None = None,
        **variables: str,
    ) -> Pod:
        """A pod on a host, its interface made by the plugins of a conf or conflist. Raises CniFailed.

        `variables` are added to the plugins' environment, such as `CNI_ARGS="IP=192.0.2.7"`.
        """
        pod = self.container(label, conf, ifname, container_id, host, **variables)
        pod.add()
        return pod

    def container(
        self,
        label: str | None = None,
        conf: Json | None = None,
        ifname: str = "eth0",
        container_id: str | None = None,
        host: Node | None = None,
        **variables: str,
    ) -> Pod:
        """A pod that is not attached yet: its `add` is still to be called. The arguments are those of `pod`."""
        label = label or f"pod{len(self._nodes)}"
        names = {"CNI_CONTAINERID": container_id or f"{label}-{secrets.token_hex(8)}", "CNI_IFNAME": ifname}
        name = f"{self._prefix}-{label}"
        return self._own(Pod(name, label, self.runtime(host), conf or self.conf(), {**names, **variables}))

    def conf(self, *, dual: bool = False, **changes: Any) -> Json:
        """The lab's standard configuration with some keys changed, or removed by None; `ipam` is changed key by key.

        Addresses are 192.0.2.100 to .199 and, with `dual`, those of 2001:db8::100 to 2001:db8::1ff.
        """
        changed_ipam = changes.pop("ipam", {})
        ipam = None if changed_ipam is None else _without_none({**self._ipam(dual), **changed_ipam})
        conf = {"cniVersion": "1.0.0", "name": "lan", "type": "shimlan", "master": "eth0", "mode": "bridge"}
        return _without_none({**conf, "dataDir": self.data_dir, "ipam": ipam, **changes})

    def reference_conf(self, **changes: Any) -> Json:
        """The same network for the reference plugins, macvlan and host-local."""
        ipam = {"type": "host-local", **changes.pop("ipam", {})}
        return self.conf(**{"type": "macvlan", "dataDir": None, **changes}, ipam=ipam)

    def cni(
        self, command: str, conf: Json | str, executable: str = "", host: Node | None = None, **env: str
    ) -> CniAnswer:
        """Call one plugin once in the namespace of a host, by its path or the type in `conf`.

        `env` holds all CNI_* variables but CNI_COMMAND and CNI_PATH. Text as `conf` goes to stdin as it is.
        """
        return self.runtime(host).call(command, conf, env, executable)

    def runtime(self, host: Node | None = None) -> Runtime:
        """The runtime of a host, by default of `host`."""
        return Runtime(self.plugin, (host or self.host).enter_words, self.environ)

    def dump(self) -> str:
        """The state of every namespace but the switch's, for the reader of a failed test."""
        return "\n".join(node.dump() for node in self._nodes if node is not self.switch)

    def _switch(self) -> Switch:
        switch = self._own(Switch(f"{self._prefix}-switch", "switch"))
        switch.power_on()
        return switch

    def _own(self, node: AnyNode) -> AnyNode:
        """Create a node's namespace, and see to its end."""
        self._undo.callback(_delete_namespace, node)
        subprocess.run(["ip", "netns", "add", node.name], check=True)
        node.ip_batch("link set lo up")
        self._nodes.append(node)
        return node

    def _ipam(self, dual: bool) -> Json:
        range4 = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.199"}
        range6 = {"subnet": "2001:db8::/64", "rangeStart": "2001:db8::100", "rangeEnd": "2001:db8::1ff"}
        ranges = [[{**range4, "gateway": "192.0.2.1"}]]
        routes = [{"dst": "0.0.0.0/0"}]
        if dual:
            ranges.append([{**range6, "gateway": "2001:db8::1"}])
            routes.append({"dst": "::/0"})
        return {"type": "shimlan-ipam", "ranges": ranges, "routes": routes, "dataDir": self.data_dir}


def _port(node: Node) -> str:
    return node.label[:15]


def _first_of_each_family(interfaces: Iterable[Interface]) -> tuple[str, str]:
    """The first IPv4 and the first IPv6 address, "" where there is none."""
    by_version = {interface.version: str(interface.ip) for interface in reversed(list(interfaces))}
    return by_version.get(4, ""), by_version.get(6, "")


def _without_none(mapping: Json) -> Json:
    return {key: value for key, value in mapping.items() if value is not None}


def _delete_namespace(node: Node) -> None:
    if os.path.exists(node.netns):
        subprocess.run(["ip", "netns", "del", node.name], check=True)
