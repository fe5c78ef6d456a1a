"""`shimlanctl demo`: what macvlan cannot do, what shimlan does about it, and the proof, on a LAN made of namespaces.

It only tells and checks: the LAN is `cni.ctl.lab`'s, the pods are attached by the installed plugin, and all of it
happens in a sandbox that the kernel clears away with this process.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from cni.ctl import sandbox
from cni.ctl.frames import Frame
from cni.ctl.lab import CniFailed, Lab, Node, missing_tools
from cni.ctl.narrator import Cell, Narrator
from cni.ctl.node import CommandFailed
from cni.ctl.runtime import Json
from cni.database import Database, boot_id
from cni.frozen import frozen
from cni.state import Records
from ipam.store import LeaseStore

PATIENCE = 3.0  # seconds for an answer that is claimed to come; it takes 1 ms
SILENCE = 0.4  # seconds without an answer that are taken for "never"
PORT = 8080
SERVICE = "10.96.0.10"  # a ClusterIP
SERVICES = "10.96.0.0/12"  # the usual service network of Kubernetes
KUBE_PROXY = f"""
table ip proxy {{
  chain prerouting {{
    type nat hook prerouting priority dstnat
    ip daddr {SERVICE} tcp dport 80 dnat to %s
  }}
}}"""


@frozen
class Way:
    """From one machine to another, and whether it is claimed to be open; None: there is no such way."""

    name: str
    source: Node
    target: Node
    open: bool | None = True

    def walk(self, family: int = 4) -> Cell:
        """Try it."""
        if self.open is None:
            return Cell(None, None)
        return Cell(self.source.pings(self.target, family, wait=PATIENCE if self.open else SILENCE), self.open)


@frozen
class Mode:
    """A row of the table of modes: the keys that make it, and what is claimed of it.

    `siblings`: pods reach each other, None where there cannot be two; `host`: they reach their host, and it them;
    `hairpin`: the switch sends frames back through the port that they came from.
    """

    name: str
    keys: Json
    siblings: bool | None
    host: bool
    hairpin: bool = False
    remark: str = ""


MODES = (
    Mode("private", {"mode": "private"}, siblings=False, host=False),
    Mode("vepa", {"mode": "vepa"}, siblings=False, host=False),
    Mode("vepa, hairpin switch", {"mode": "vepa"}, siblings=True, host=True, hairpin=True),
    Mode("passthru", {"mode": "passthru"}, siblings=None, host=False, remark="(has the NIC for itself)"),
    Mode("bridge, shim: false", {"mode": "bridge", "shim": False}, siblings=True, host=False),
    Mode("bridge", {"mode": "bridge"}, siblings=True, host=True, remark="← the default"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shimlanctl demo`."""
    parser.add_argument("--plugin", metavar="PATH", help="the shimlan executable to show (default: the installed one)")


def run(args: argparse.Namespace) -> int:
    """Tell the story; the exit status is 0 when every claim turned out to be so."""
    narrator, started = Narrator(sys.stdout), time.monotonic()
    try:
        _require_tools()
        sandbox.enter()
        with Lab(args.plugin, directory=sandbox.SCRATCH) as lab:
            Demo(lab, narrator).tell()
    except (sandbox.NotAllowed, FileNotFoundError, CommandFailed, CniFailed) as error:
        narrator.fail(str(error))
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    return _conclude(narrator, time.monotonic() - started)


class Demo:
    """The story in its parts; the same two pods play in all of them."""

    def __init__(self, lab: Lab, narrator: Narrator) -> None:
        self.lab = lab
        self.narrator = narrator
        self.host, self.outside = lab.host, lab.outside
        self.a, self.b = lab.container("pod-a"), lab.container("pod-b")
        self.pod_macs: set[str] = set()
        self.shim = {"name": "shim", "mac": "no MAC"}  # as the CNI result has it

    def tell(self) -> None:
        """All of it, in order."""
        self.the_lan()
        before = self.state_of_host()
        with self.lab.switch.sniff_port(self.host) as wire:
            self.without_the_shim()
            self.with_the_shim()
            self.behind_the_scenes()
            self.a_service()
            self.the_modes()
            self.attach(self.conflist())
            self.what_the_outside_machine_knows()
        self.what_the_lan_saw(wire.frames)
        self.check()
        self.delete(before)

    def the_lan(self) -> None:
        """The three machines, without any pod."""
        self.narrator.heading("A LAN, in namespaces of its own: your network is not touched")
        self.narrator.say(
            "outside ──────────── switch ──────────── eth0 host",
            f"{self.outside.address:<41}{self.host.address}",
            f"{self.outside.address6:<41}{self.host.address6}",
            "",
        )
        self.show_ways("ping", [Way("host → outside", self.host, self.outside)])

    def without_the_shim(self) -> None:
        """What everybody knows."""
        self.narrator.heading('Two pods on macvlans of eth0, the usual way ("shim": false)')
        self.attach(self.conflist(shim=False))
        self.show_ways("without the shim", self.ways(siblings=True, host=False))
        self.narrator.say("The host and its own pods cannot talk: that is macvlan as it comes.")
        self.detach()

    def with_the_shim(self) -> None:
        """The same pods again, attached with the shim."""
        self.narrator.heading("The same two pods with the shim, which is the default")
        conflist = self.conflist()
        self.narrator.quote("/etc/cni/net.d/10-lan.conflist")
        self.narrator.json(_shown(conflist))
        self.attach(conflist)
        self.narrator.say("", "shimlan ADD answers for pod-a, and likewise for pod-b:")
        self.narrator.json(self.a.result)
        self.narrator.say("")
        self.show_ways("with the shim", self.ways(siblings=True, host=True))

    def behind_the_scenes(self) -> None:
        """How it is done."""
        self.narrator.heading("How: a macvlan for the host, without address and ARP; a route and a neighbour per pod")
        shim = self.shim["name"]
        for node, command in (
            (self.host, f"ip -br link show {shim}"),
            (self.host, f"ip route show dev {shim}"),
            (self.host, f"ip neigh show dev {shim}"),
            (self.a, "ip neigh show nud permanent"),
        ):
            self.quote(node, command)
        answer = self.fetched(self.host, self.a, self.a.address, PORT)
        self.narrator.command("host", f"curl http://{self.a.address}:{PORT}/     (as a kubelet's probe would)")
        self.narrator.quote(answer)
        self.narrator.claim("the host asks with its own address: no NAT", answer == f"pod-a sees {self.host.address}")

    def a_service(self) -> None:
        """A ClusterIP, which kube-proxy on the host would translate; here nft plays its part."""
        if not shutil.which("nft"):
            return
        self.narrator.heading(f'A service behind a ClusterIP ("shim": {{"routes": ["{SERVICES}"]}})')
        self.detach()
        self.attach(self.conflist(shim={"routes": [SERVICES]}))
        self.host.sysctl("net.ipv4.ip_forward", 1)
        self.host.run("nft", KUBE_PROXY % f"{self.b.address}:{PORT}")
        answer = self.fetched(self.a, self.b, SERVICE, 80)
        self.narrator.command("pod-a", f"curl http://{SERVICE}/     (the host sends it to pod-b, port {PORT})")
        self.narrator.quote(answer)
        self.narrator.claim("the answer comes back through the host", answer == f"pod-b sees {self.host.address}")
        self.quote(self.host, "nft list table inet shimlan")
        self.host.run("nft", "delete table ip proxy")

    def fetched(self, client: Node, server: Node, address: str, port: int) -> str:
        """What a client gets at an address behind which a server listens on PORT."""
        with server.serve(PORT):
            try:
                return client.fetch(address, port, PATIENCE)
            except OSError as error:
                return f"no answer: {error}"

    def the_modes(self) -> None:
        """Who reaches whom in each mode of macvlan."""
        self.narrator.heading("Who reaches whom, mode by mode")
        self.detach()
        columns = ("→ pod", "→ outside", "← outside", "→ host", "← host")
        self.narrator.table("a pod in mode", columns, [(mode.name, self.try_mode(mode), mode.remark) for mode in MODES])
        self.a_second_pod_beside_passthru()

    def a_second_pod_beside_passthru(self) -> None:
        """It cannot be, and the plugin says why."""
        conflist = self.conflist(mode="passthru")
        self.attach(conflist, alone=True)
        refusal = _refusal(lambda: self.b.add(conflist))
        self.narrator.claim("a second pod beside passthru is refused:", bool(refusal))
        self.narrator.quote(refusal)
        self.detach()

    def try_mode(self, mode: Mode) -> list[Cell]:
        """Attach the pods in a mode, try all ways, detach them."""
        self.lab.switch.hairpin(self.host, mode.hairpin)
        self.attach(self.conflist(**mode.keys), alone=mode.siblings is None)
        cells = _walk(self.ways(mode.siblings, mode.host), [4])
        self.detach()
        self.lab.switch.hairpin(self.host, False)
        return cells

    def what_the_outside_machine_knows(self) -> None:
        """The neighbour entries for the host, after having talked to it."""
        self.narrator.heading("What the LAN saw of it")
        for family in (4, 6):
            self.outside.pings(self.host, family, wait=PATIENCE)
        ours, eth0 = (self.host.address, self.host.address6), self.host.mac
        known = {entry["lladdr"] for entry in self.outside.neighbours() if entry["dst"] in ours}
        self.narrator.claim(f"the outside machine knows the host by the MAC of its eth0, {eth0}", known == {eth0})

    def what_the_lan_saw(self, frames: Sequence[Frame]) -> None:
        """The frames that left the host while all this went on."""
        shim, host = self.shim["mac"], self.host.mac
        sources = [frame.src for frame in frames]
        self.narrator.claim(
            f"of {len(frames)} frames that left the host so far, none came from the shim ({shim})",
            shim not in sources and host in sources,
        )
        self.narrator.claim("all the others came from eth0 or from a pod", set(sources) <= {host, *self.pod_macs})

    def check(self) -> None:
        """CHECK, before and after something was broken by hand."""
        self.narrator.heading("CHECK knows what should be there")
        self.narrator.claim("CHECK of pod-a finds nothing to mend", not self.differences())
        self.quote(self.host, f"ip route del {self.a.address}/32 dev {self.shim['name']}")
        self.quote(self.a, "ip route del default")
        found = self.differences()
        self.narrator.say("CHECK of pod-a finds:")
        self.narrator.quote("\n".join(found))
        named = all(any(what in line for line in found) for what in (self.a.address, self.outside.address))
        self.narrator.claim("it names both, and says how to mend them", named)

    def differences(self) -> list[str]:
        """What CHECK of pod-a has to say, by lines."""
        try:
            self.a.check()
        except CniFailed as error:
            return error.details.splitlines() or [error.msg]
        return []

    def delete(self, before: Json) -> None:
        """DEL, and what remains."""
        self.narrator.heading("DEL, and nothing is left")
        self.detach()
        self.narrator.claim("the pods have no interface any more", all(map(_only_lo, (self.a, self.b))))
        self.narrator.claim("DEL of a pod that is gone already is no error", not _refusal(self.a.delete))
        for what, now in self.state_of_host().items():
            shown = ", ".join(now) if len(now) < 3 else f"{len(now)} of them"
            self.narrator.claim(f"the host has the {what} of before: {shown or 'none'}", now == before[what])

    def quote(self, node: Node, command: str) -> None:
        """Run a command somewhere, and show what it says."""
        self.narrator.command(node.label, command)
        self.narrator.quote(node.run(*command.split()).stdout)

    def attach(self, conf: Json, alone: bool = False) -> None:
        """ADD of both pods, or of pod-a alone."""
        for pod in (self.a,) if alone else (self.a, self.b):
            result = pod.add(conf)
            self.pod_macs.add(pod.mac)
            self.shim = next((link for link in result["interfaces"] if not link.get("sandbox")), self.shim)

    def detach(self) -> None:
        """DEL of both pods."""
        for pod in (self.a, self.b):
            pod.delete()

    def ways(self, siblings: bool | None, host: bool) -> list[Way]:
        """The ways of a pod to the others and back, claimed to be open or not."""
        return [
            Way("pod → pod", self.a, self.b, siblings),
            Way("pod → outside", self.a, self.outside),
            Way("outside → pod", self.outside, self.a),
            Way("pod → host", self.a, self.host, host),
            Way("host → pod", self.host, self.a, host),
        ]

    def show_ways(self, title: str, ways: Sequence[Way]) -> None:
        """A table of ways, tried with both families."""
        cells = iter(_walk(ways, [4, 6]))
        self.narrator.table(title, ("IPv4", "IPv6"), [(way.name, (next(cells), next(cells)), "") for way in ways])

    def conflist(self, **keys: Any) -> Json:
        """The pods' network, as a file for a runtime."""
        range4 = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100"}
        range6 = {"subnet": "2001:db8::/64", "rangeStart": "2001:db8::100"}
        conf = self.lab.conf(dual=True, ipam={"ranges": [[range4], [range6]]}, **keys)
        plugin = {key: value for key, value in conf.items() if key not in ("cniVersion", "name")}
        return {"cniVersion": conf["cniVersion"], "name": conf["name"], "plugins": [plugin]}

    def state_of_host(self) -> dict[str, list[str]]:
        """What plugins are apt to leave behind, in words."""
        neighbours = self.host.ip_json("neigh", "show", "nud", "permanent")
        return {
            "links": [link["ifname"] for link in self.host.links()],
            "routes": [f"{route['dst']} dev {route['dev']}" for route in self.host.routes()],
            "permanent neighbours": [entry["dst"] for entry in neighbours],
            **self.tables(),
            **self.records(),
        }

    def tables(self) -> dict[str, list[str]]:
        """The tables of nftables, where there is an nft to ask."""
        if not shutil.which("nft"):
            return {}
        return {"tables of nftables": self.host.run("nft", "list", "tables").stdout.splitlines()}

    def records(self) -> dict[str, list[str]]:
        """What shimlan's store holds."""
        with closing(Database(self.lab.data_dir)) as database:
            leases = LeaseStore(database).leases()
            attachments = Records(database, boot_id()).all()
        return {
            "leases": [str(lease.address) for lease in leases if lease.state == "held"],
            "attachments": [attachment.key.container_id for attachment in attachments],
        }


def _walk(ways: Sequence[Way], families: Sequence[int]) -> list[Cell]:
    """All ways with all families at the same time; the cells of one way stand side by side."""
    with ThreadPoolExecutor(len(ways) * len(families)) as pool:
        return list(pool.map(Way.walk, (way for way in ways for _ in families), list(families) * len(ways)))


def _shown(conflist: Any) -> Any:
    """A conflist without what is of the demo alone: where its data are."""
    if isinstance(conflist, dict):
        return {key: _shown(value) for key, value in conflist.items() if key != "dataDir"}
    return [_shown(value) for value in conflist] if isinstance(conflist, list) else conflist


def _refusal(verb: Callable[[], object]) -> str:
    """What a plugin has against a call; "" if it is fine."""
    try:
        verb()
    except CniFailed as error:
        return error.msg
    return ""


def _only_lo(node: Node) -> bool:
    return [link["ifname"] for link in node.links()] == ["lo"]


def _require_tools() -> None:
    if missing := missing_tools():
        raise FileNotFoundError(f"it needs {', '.join(missing)}: install iproute2, iputils-ping and util-linux")


def _conclude(narrator: Narrator, seconds: float) -> int:
    narrator.say("")
    if narrator.broken:
        narrator.say(f"{len(narrator.broken)} of {narrator.claims} claims are not so:", *narrator.broken)
        return 1
    narrator.say(f"{narrator.claims} claims, all of them so, in {seconds:.1f} s.")
    return 0
