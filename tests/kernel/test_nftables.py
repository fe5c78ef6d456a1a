"""The NAT table in a real kernel: what nft says of it, and that services reach every kind of backend through a shim."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest

from cni import nftables
from cni.attachment import SourceNat
from cni.ctl.lab import Lab
from cni.ctl.node import Node
from cni.netlink import Socket
from cni.nftables import in_place, sync

pytestmark = [
    pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed"),
    pytest.mark.without_agent("no plugin is called"),
]

SHIM = "shim2"
SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
RULES = [SourceNat(SHIM, ip_address("192.0.2.10")), SourceNat(SHIM, ip_address("2001:db8::10"))]
HOST, OUTSIDE, POD_ITSELF, OTHER_POD, UNSERVED = 8001, 8002, 8003, 8004, 8005  # the service's ports
SOCKETS = {4: socket.AF_INET, 6: socket.AF_INET6}
DNAT_HOOKS = ("prerouting", "output")

NO_CAPABILITY = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
SOMEBODY_ELSES = """\
table inet theirs {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ct status dnat masquerade
	}
}
"""

RENDERED = """\
table inet shimlan {
	chain postrouting {
		comment "managed by shimlan, rules afe46a07"
		type nat hook postrouting priority srcnat - 1; policy accept;
		iifname "shim2" ct status dnat meta nfproto ipv4 snat ip to 192.0.2.10
		oifname "shim2" ct status dnat meta nfproto ipv4 snat ip to 192.0.2.10
		iifname "shim2" ct status dnat meta nfproto ipv6 snat ip6 to 2001:db8::10
		oifname "shim2" ct status dnat meta nfproto ipv6 snat ip6 to 2001:db8::10
	}
}
"""


@pytest.fixture
def nft(lab: Lab) -> Iterator[Socket]:
    """A socket to nftables of the lab's host."""
    with lab.host.inside(nftables.connect) as connection:
        yield connection


def shown(node: Node) -> str:
    """Our table as nft prints it, "" if there is none."""
    return node.run("nft", "list", "table", "inet", "shimlan", check=False).stdout


def test_nft_shows_the_rules_as_a_person_would_write_them(lab: Lab, nft: Socket) -> None:
    assert sync(nft, RULES)
    assert shown(lab.host) == RENDERED


def test_what_nft_shows_can_be_loaded_again(lab: Lab, nft: Socket) -> None:
    sync(nft, RULES)
    lab.host.run("nft", "-f", "-", input="flush ruleset\n" + RENDERED)
    assert in_place(nft, RULES)
    assert shown(lab.host) == RENDERED


def test_a_table_in_place_is_left_alone(lab: Lab, nft: Socket) -> None:
    sync(nft, RULES)
    handles = lab.host.run("nft", "-a", "list", "ruleset").stdout
    assert in_place(nft, reversed(RULES))
    assert not sync(nft, reversed(RULES + RULES))
    assert lab.host.run("nft", "-a", "list", "ruleset").stdout == handles


def test_other_rules_replace_the_table(lab: Lab, nft: Socket) -> None:
    sync(nft, RULES)
    other = [SourceNat("shim7", RULES[0].address)]
    assert not in_place(nft, other)
    assert sync(nft, other)
    assert in_place(nft, other)
    assert shown(lab.host).count("shim7") == shown(lab.host).count("shim") - shown(lab.host).count("shimlan") == 2


def test_without_rules_there_is_no_table(lab: Lab, nft: Socket) -> None:
    assert in_place(nft, [])
    assert not sync(nft, [])
    sync(nft, RULES)
    assert not in_place(nft, [])
    assert sync(nft, [])
    assert lab.host.run("nft", "list", "ruleset").stdout == ""


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "flush table inet shimlan",
        "delete rule inet shimlan postrouting handle 3",
        'add rule inet shimlan postrouting iifname "shim7" accept',
    ],
)
def test_damage_by_hand_is_noticed_and_repaired(lab: Lab, nft: Socket, damage: str) -> None:
    sync(nft, RULES)
    lab.host.run("nft", damage)
    assert not in_place(nft, RULES)
    assert sync(nft, RULES)
    assert shown(lab.host) == RENDERED


def test_nothing_else_in_the_ruleset_is_touched(lab: Lab, nft: Socket) -> None:
    lab.host.run("nft", "-f", "-", input=SOMEBODY_ELSES)
    before = lab.host.run("nft", "-a", "list", "ruleset").stdout
    for rules in (RULES, RULES[:1], []):
        assert sync(nft, rules)
    assert lab.host.run("nft", "-a", "list", "ruleset").stdout == before


def test_many_at_once_end_with_the_right_table(lab: Lab) -> None:
    everyones = [RULES, RULES[:1], [], RULES[1:]]

    def hurry(first: int) -> None:
        with lab.host.inside(nftables.connect) as nft:
            for turn in range(40):
                sync(nft, everyones[(first + turn) % len(everyones)])
            sync(nft, RULES)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hurry, range(4)))
    assert shown(lab.host) == RENDERED


def test_a_missing_capability_is_named(lab: Lab) -> None:
    script = "from cni.nftables import connect, sync; sync(connect(), [])"
    done = lab.host.run(*NO_CAPABILITY, sys.executable, "-c", script, check=False)
    assert (
        'KernelRefused: source NAT for shim.routes needs CAP_NET_ADMIN: grant it, or set "snat": false' in done.stderr
    )


class Services:
    """A host with a shim, as the plugin makes it, two pods behind it, and a service with four backends.

    The service has a port for each backend; the same ports of the host's own addresses lead there too.
    """

    def __init__(self, lab: Lab, undo: ExitStack) -> None:
        self.lab = lab
        self.host = lab.host
        self._shim()
        self.pod = self._pod("pod", "192.0.2.100", "2001:db8::100")
        self.other = self._pod("other", "192.0.2.101", "2001:db8::101")
        backends = {HOST: self.host, OUTSIDE: lab.outside, POD_ITSELF: self.pod, OTHER_POD: self.other}
        for port, backend in backends.items():
            undo.enter_context(backend.serve(port))
        self.host.run("nft", "-f", "-", input=self._translations({**backends, UNSERVED: self.other}))

    @contextmanager
    def masquerading(self) -> Iterator[None]:
        """Somebody masquerades as kube-proxy does, on a host with an address that pods know nothing of."""
        unknown = ("address", "169.254.20.10/32", "dev", "lo")
        self.host.ip(unknown[0], "add", *unknown[1:])
        self.host.run("nft", "-f", "-", input=SOMEBODY_ELSES)
        yield
        self.host.run("nft", "delete", "table", "inet", "theirs")
        self.host.ip(unknown[0], "del", *unknown[1:])

    def _shim(self) -> None:
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.host.sysctl(name, 1)
        self.host.ip("link", "add", SHIM, "link", "eth0", "type", "macvlan", "mode", "bridge")
        self.host.ip("link", "set", SHIM, "addrgenmode", "none")
        self.host.sysctl(f"net.ipv4.conf.{SHIM}.rp_filter", 1)
        self.host.ip("link", "set", SHIM, "arp", "off", "up")

    def _pod(self, label: str, *addresses: str) -> Node:
        pod = self.lab.netns(label)
        pod.address, pod.address6 = addresses
        self.host.ip("link", "add", "eth0", "netns", pod.name, "link", "eth0", "type", "macvlan", "mode", "bridge")
        pod.ip_batch(
            f"address add {pod.address}/24 dev eth0",
            f"address add {pod.address6}/64 dev eth0 nodad",
            "link set eth0 up",
        )
        for family, length in ((4, 32), (6, 128)):
            self._introduce(pod, family, length)
        return pod

    def _introduce(self, pod: Node, family: int, length: int) -> None:
        host, address = self.host.where(family), pod.where(family)
        self.host.ip_batch(
            f"neigh replace {address} lladdr {pod.mac} dev {SHIM} nud permanent",
            f"route replace {address}/{length} dev {SHIM} src {host}",
        )
        pod.ip_batch(
            f"route add {host}/{length} dev eth0",
            f"neigh replace {host} lladdr {self.host.link(SHIM)['address']} dev eth0 nud permanent",
            f"route add {SERVICE[family]}/{length} via {host}",
        )

    def _translations(self, backends: dict[int, Node]) -> str:
        rules = ""
        for port, backend in backends.items():
            for family, proto in ((4, "ip"), (6, "ip6")):
                called = f"{SERVICE[family]}, {self.host.where(family)}"
                rules += f"{proto} daddr {{ {called} }} tcp dport {port} dnat {proto} to {backend.where(family)}\n"
        chains = (f"chain {hook} {{\ntype nat hook {hook} priority -100;\n{rules}}}\n" for hook in DNAT_HOOKS)
        return f"table inet services {{\n{''.join(chains)}}}\n"


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    """The services, and no rules of ours."""
    with Lab() as lab, ExitStack() as undo:
        yield Services(lab, undo)


@pytest.fixture
def translated(services: Services) -> Iterator[Socket]:
    """The services with our rules in place, and the socket to change them."""
    with services.host.inside(nftables.connect) as nft:
        sync(nft, RULES)
        yield nft
        sync(nft, [])


FROM_PODS = [(OUTSIDE, "outside"), (POD_ITSELF, "pod"), (OTHER_POD, "other")]
FROM_LAN = [(POD_ITSELF, "pod"), (OTHER_POD, "other")]
families = pytest.mark.parametrize("family", [4, 6])


@families
@pytest.mark.parametrize(("port", "backend"), FROM_PODS)
def test_a_pod_reaches_a_service(services: Services, translated: Socket, family: int, port: int, backend: str) -> None:
    seen = services.pod.fetch(SERVICE[family], port)
    assert seen == f"{backend} sees {services.host.where(family)}"


@families
@pytest.mark.parametrize(("port", "backend"), FROM_PODS)
def test_without_our_rules_the_answer_is_lost(services: Services, family: int, port: int, backend: str) -> None:
    assert not services.pod.connects(SERVICE[family], port, wait=0.3)


@families
def test_a_service_of_the_host_sees_the_pods_own_address(services: Services, translated: Socket, family: int) -> None:
    assert services.pod.fetch(SERVICE[family], HOST) == f"host sees {services.pod.where(family)}"


@families
@pytest.mark.parametrize(("port", "backend"), FROM_LAN)
def test_the_lan_reaches_a_pod_through_a_port_of_the_host(
    services: Services, translated: Socket, family: int, port: int, backend: str
) -> None:
    seen = services.lab.outside.fetch(services.host.where(family), port)
    assert seen == f"{backend} sees {services.host.where(family)}"


@families
@pytest.mark.parametrize("port", [POD_ITSELF, OTHER_POD])
def test_without_our_rules_the_lan_does_not(services: Services, family: int, port: int) -> None:
    assert not services.lab.outside.connects(services.host.where(family), port, wait=0.3)


@families
@pytest.mark.parametrize(("port", "backend"), FROM_PODS)
def test_the_hosts_own_connections_to_a_service(
    services: Services, translated: Socket, family: int, port: int, backend: str
) -> None:
    assert services.host.fetch(SERVICE[family], port) == f"{backend} sees {services.host.where(family)}"


@families
def test_what_is_not_from_or_to_a_pod_through_dnat_keeps_its_source(
    services: Services, translated: Socket, family: int
) -> None:
    sync(translated, [SourceNat(SHIM, ip_address("198.51.100.1")), SourceNat(SHIM, ip_address("2001:db8:1::1"))])
    host = services.host.where(family)
    assert services.host.fetch(services.pod.where(family), POD_ITSELF) == f"pod sees {host}"
    assert services.host.fetch(SERVICE[family], OUTSIDE) == f"outside sees {host}"


@families
@pytest.mark.parametrize(("port", "backend"), FROM_PODS)
def test_we_translate_before_a_masquerade(
    services: Services, translated: Socket, family: int, port: int, backend: str
) -> None:
    # For the shim, which has no address, masquerade takes the first of the host: here one that pods cannot answer.
    with services.masquerading():
        assert services.pod.fetch(SERVICE[family], port) == f"{backend} sees {services.host.where(family)}"


@families
def test_open_connections_survive_a_replacement(services: Services, translated: Socket, family: int) -> None:
    backend = (services.other.where(family), UNSERVED)
    service = (SERVICE[family], UNSERVED)
    with (
        services.other.inside(lambda: socket.create_server(backend, family=SOCKETS[family])) as listener,
        services.pod.inside(lambda: socket.create_connection(service, timeout=2)) as client,
        listener.accept()[0] as server,
    ):
        for rules in ([*RULES, SourceNat("shim7", RULES[0].address)], RULES[:1], [], RULES):
            assert sync(translated, rules)
            assert echoed(client, server)
            assert echoed(server, client)


def echoed(sender: socket.socket, receiver: socket.socket) -> bool:
    """Whether what one end of a connection says is heard at the other."""
    receiver.settimeout(2)
    sender.sendall(b"hello")
    return receiver.recv(5) == b"hello"
