"""The lab itself: a LAN behaves as one, the verbs tell the truth, and nothing remains."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cni.ctl.frames import ETH_P_ARP
from cni.ctl.lab import CniFailed, Lab, Node
from cni.ctl.node import CommandFailed
from tests.kernel.marks import needs_reference_plugins

pytestmark = pytest.mark.without_agent("of the lab alone")

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@FAMILIES
def test_machines_of_the_lan_reach_each_other(lab: Lab, family: int) -> None:
    neighbour = lab.machine("neighbour", "192.0.2.20/24", "2001:db8::20/64")
    assert lab.host.pings(lab.outside, family)
    assert lab.outside.pings(neighbour, family)
    assert neighbour.pings(lab.host, family, source=neighbour.where(family))


@FAMILIES
def test_an_address_that_nobody_has_does_not_answer(lab: Lab, family: int) -> None:
    assert not lab.host.pings({4: "192.0.2.77", 6: "2001:db8::77"}[family], wait=0.2)


def test_a_packet_above_the_mtu_does_not_pass(lab: Lab) -> None:
    small = lab.machine("small", "192.0.2.20/24", mtu=1400)
    assert small.pings(lab.outside, size=1400 - 28)
    assert not small.pings(lab.outside, size=1400 - 27, wait=0.2)


def test_the_host_has_the_default_routes_and_the_outside_machine_is_the_gateway(lab: Lab) -> None:
    gateways = {route["gateway"] for route in lab.host.routes() if route["dst"] == "default"}
    assert gateways == {lab.outside.address, lab.outside.address6}


def test_addresses_of_the_lan_can_be_chosen() -> None:
    with Lab(host=["198.51.100.9/28"], outside=["198.51.100.1/28"]) as lab:
        assert lab.host.addresses() == ["198.51.100.9/28"]
        assert lab.host.pings("198.51.100.1")


def test_a_server_names_itself_and_its_client(lab: Lab) -> None:
    with lab.outside.serve(80):
        assert lab.host.fetch(lab.outside.address, 80) == "outside sees 192.0.2.10"
        assert lab.host.fetch(lab.outside.address6, 80) == "outside sees 2001:db8::10"
        assert lab.host.connects(lab.outside.address, 80)
    assert not lab.host.connects(lab.outside.address, 80)


def test_a_server_may_listen_on_one_address_only(lab: Lab) -> None:
    with lab.outside.serve(80, lab.outside.address):
        assert lab.host.connects(lab.outside.address, 80)
        assert not lab.host.connects(lab.outside.address6, 80)


def test_a_capture_sees_what_passes_a_device(lab: Lab) -> None:
    with lab.outside.sniff(wanted=lambda frame: frame.ethertype == ETH_P_ARP) as seen:
        lab.host.pings(lab.outside)
    request, reply = seen.frames[:2]
    assert (request.src, request.dst, request.outgoing) == (lab.host.mac, "ff:ff:ff:ff:ff:ff", False)
    assert (reply.src, reply.dst, reply.outgoing) == (lab.outside.mac, lab.host.mac, True)
    assert lab.host.mac in {entry.get("lladdr") for entry in lab.outside.neighbours()}


def test_a_capture_at_a_port_holds_what_its_machine_sends(lab: Lab) -> None:
    with lab.switch.sniff_port(lab.host) as seen:
        lab.host.pings(lab.outside)
    assert {frame.src for frame in seen.frames} == {lab.host.mac}


def test_a_hairpin_port_gives_a_broadcast_back(lab: Lab) -> None:
    mac = lab.host.mac

    def echoes(nobody: str) -> int:
        with lab.host.sniff(wanted=lambda frame: frame.src == mac and not frame.outgoing) as seen:
            lab.host.pings(nobody, wait=0.1)
        return len(seen.frames)

    assert echoes("192.0.2.77") == 0
    lab.switch.hairpin(lab.host, True)
    assert echoes("192.0.2.78") > 0
    lab.switch.hairpin(lab.host, False)
    assert echoes("192.0.2.79") == 0


def test_sysctls_belong_to_one_machine(lab: Lab) -> None:
    before = lab.outside.sysctl("net.ipv4.conf.eth0.rp_filter")
    assert lab.host.sysctl("net.ipv4.conf.eth0.rp_filter", 2) == "2"
    assert lab.outside.sysctl("net.ipv4.conf.eth0.rp_filter") == before


def test_a_failed_command_tells_where_and_why(lab: Lab) -> None:
    with pytest.raises(CommandFailed, match=r"host: `ip link show nope` ends with 1: .*nope.* does not exist"):
        lab.host.ip("link", "show", "nope")
    assert lab.host.run("ip", "link", "show", "nope", check=False).returncode == 1


def test_a_bare_namespace_has_nothing_but_lo(lab: Lab) -> None:
    assert [link["ifname"] for link in lab.netns("bare").links()] == ["lo"]


@needs_reference_plugins
def test_a_pod_is_added_checked_and_deleted_as_a_runtime_would(lab: Lab) -> None:
    pod = lab.pod("a", lab.reference_conf(dual=True), ifname="net1")
    assert (pod.address, pod.address6) == ("192.0.2.100", "2001:db8::100")
    assert pod.result["interfaces"][0] == {"name": "net1", "mac": pod.mac, "sandbox": pod.netns}
    assert pod.pings(lab.outside)
    pod.check()
    pod.delete()
    assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert list(Path(lab.data_dir, "lan").glob("192.0.2.*")) == []


@needs_reference_plugins
def test_plugins_of_a_list_see_the_result_of_the_one_before(lab: Lab) -> None:
    plugin = lab.reference_conf()
    tuning = {"type": "tuning", "dataDir": f"{lab.data_dir}/tuning", "mac": "02:00:00:00:00:07"}
    pod = lab.pod("a", {"cniVersion": "1.0.0", "name": "lan", "plugins": [plugin, tuning]})
    assert pod.mac == "02:00:00:00:00:07"
    assert pod.result["ips"][0]["address"] == "192.0.2.100/24"


@needs_reference_plugins
def test_the_error_of_a_plugin_is_raised_with_its_words(lab: Lab) -> None:
    with pytest.raises(CniFailed, match=r"macvlan ADD \(code [1-9]\d*\): ") as failure:
        lab.pod("a", lab.reference_conf(master="nope"))
    assert failure.value.msg
    assert failure.value.msg == failure.value.answer.json["msg"]


@needs_reference_plugins
def test_a_plugin_can_be_called_once_with_any_environment(lab: Lab) -> None:
    answer = lab.cni("VERSION", {"type": "macvlan", "cniVersion": "1.0.0"})
    assert "1.0.0" in answer.json["supportedVersions"]
    assert not lab.cni("ADD", {"type": "macvlan"}).ok


def test_an_unknown_plugin_is_said_to_be_missing(lab: Lab) -> None:
    with pytest.raises(FileNotFoundError, match="the CNI plugin nope is not installed"):
        lab.cni("ADD", {"type": "nope"})


def test_the_standard_configuration_can_be_changed_key_by_key(lab: Lab) -> None:
    conf = lab.conf(mode="vepa", master=None, ipam={"sticky": "pod"})
    assert conf["mode"] == "vepa"
    assert "master" not in conf
    assert conf["ipam"]["sticky"] == "pod"
    assert conf["ipam"]["ranges"] == lab.conf()["ipam"]["ranges"]
    assert "ipam" not in lab.conf(ipam=None)


def test_the_dump_shows_every_machine(lab: Lab) -> None:
    dump = lab.dump()
    assert f"inet {lab.host.address}/24" in dump
    assert f"default via {lab.outside.address}" in dump
    assert "# outside: ip neigh" in dump


def test_nothing_remains_of_a_lab_that_failed() -> None:
    lab = Lab()
    namespaces: list[Node] = []

    def fail_inside() -> None:
        with lab:
            namespaces.extend([lab.switch, lab.host, lab.outside, lab.netns("pod")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert [node for node in namespaces if os.path.exists(node.netns)] == []
    assert not os.path.exists(lab.data_dir)


def test_nothing_remains_of_a_lab_that_could_not_be_built() -> None:
    before = sorted(os.listdir("/run/netns"))
    with pytest.raises(CommandFailed), Lab(host=["192.0.2.10/24"], outside=["198.51.100.1/24"]):
        pytest.fail("a gateway off the link should not be accepted")
    assert sorted(os.listdir("/run/netns")) == before


def test_a_sandbox_hides_the_namespaces_of_others_and_keeps_its_own(lab: Lab) -> None:
    program = """
        import os
        from cni.ctl import sandbox
        from cni.ctl.lab import Lab
        sandbox.enter()
        print(os.listdir("/run/netns"))
        with Lab(directory=sandbox.SCRATCH) as lab:
            print(lab.host.pings(lab.outside))
            os._exit(7)
    """
    before = os.listdir("/run/netns")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\nTrue\n", 7), done.stderr
    assert os.listdir("/run/netns") == before
