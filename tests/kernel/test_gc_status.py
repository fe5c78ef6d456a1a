"""GC keeps what is valid and takes the rest; STATUS tells whether an ADD could work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cni.ctl.lab import Lab, Pod
from tests.kernel.traces import held, network, records, stored


def attachments(*pods: Pod) -> list[dict[str, str]]:
    return [{"containerID": pod.container_id, "ifname": pod.dev} for pod in pods]


def collect(lab: Lab, **keys: Any) -> None:
    conf = {
        **lab.conf(cniVersion="1.1.0"),
        **{f"cni.dev/{key.replace('_', '-')}": value for key, value in keys.items()},
    }
    lab.cni("GC", conf).or_raise()


@pytest.mark.parametrize("key", ["valid_attachments", "attachments"])
def test_valid_attachments_are_kept_and_others_taken(lab: Lab, key: str) -> None:
    keep, lose, gone = (lab.pod(name, lab.conf(dual=True)) for name in ("keep", "lose", "gone"))
    lab.host.run("ip", "netns", "del", gone.name)
    collect(lab, **{key: attachments(keep)})
    assert {lease.container_id for lease in held(lab)} == {keep.container_id}
    assert [attachment.key.container_id for attachment in records(lab)] == [keep.container_id]
    assert [link["ifname"] for link in lose.links()] == ["lo"]
    assert {row["dst"] for row in lab.host.routes() if row["dev"] == "shim2"} == {keep.address, keep.address6}
    keep.check()
    assert lab.host.pings(keep)


@pytest.mark.parametrize("changes", [{"linkType": "macvtap"}, {"mode": "source"}], ids=["macvtap", "source"])
def test_links_of_other_kinds_are_kept_and_taken_as_well(lab: Lab, changes: dict[str, Any]) -> None:
    keep, lose = (lab.pod(name, lab.conf(**changes)) for name in ("keep", "lose"))
    collect(lab, valid_attachments=attachments(keep))
    assert {lease.container_id for lease in held(lab)} == {keep.container_id}
    assert [link["ifname"] for link in lose.links()] == ["lo"]
    keep.check()


@pytest.mark.parametrize("value", [[], None])
def test_an_empty_list_and_null_mean_that_nothing_is_valid(lab: Lab, value: object) -> None:
    before, pods = network(lab.host), [lab.pod(conf=lab.conf(dual=True)) for _ in range(2)]
    collect(lab, valid_attachments=value)
    assert network(lab.host) == before
    assert stored(lab) == []
    assert [link["ifname"] for pod in pods for link in pod.links()] == ["lo", "lo"]


def test_without_the_key_nothing_is_done(lab: Lab) -> None:
    pod = lab.pod("a")
    collect(lab)
    pod.check()


@pytest.mark.parametrize("value", [7, "all", [{"containerID": "a"}], [7], {}])
def test_a_list_that_cannot_be_read_takes_nothing(lab: Lab, value: object) -> None:
    pod = lab.pod("a")
    lab.cni("GC", {**lab.conf(cniVersion="1.1.0"), "cni.dev/valid-attachments": value})
    pod.check()


def test_another_interface_of_a_valid_container_is_taken(lab: Lab) -> None:
    pod = lab.pod("a")
    lab.runtime().add(lab.conf(), {**pod.variables, "CNI_IFNAME": "net1"})
    collect(lab, valid_attachments=attachments(pod))
    assert [link["ifname"] for link in pod.links()] == ["lo", "eth0"]
    pod.check()


def test_other_networks_are_left_alone(lab: Lab) -> None:
    other = lab.pod("a", lab.conf(name="other"))
    lab.pod("b")
    collect(lab, valid_attachments=[])
    other.check()
    assert lab.host.pings(other)


def test_gc_works_when_the_parent_is_gone(lab: Lab) -> None:
    lab.pod("a")
    lab.host.ip("link", "del", "eth0")
    collect(lab, valid_attachments=[])
    assert stored(lab) == []


# --- STATUS ----------------------------------------------------------------------------------------------------------


def status(lab: Lab, **changes: Any) -> tuple[int, str]:
    """Code and message, (0, "") when all is well."""
    answer = lab.cni("STATUS", lab.conf(cniVersion="1.1.0", **changes))
    assert answer.ok == (answer.stdout == "")
    return (0, "") if answer.ok else (answer.json["code"], answer.json["msg"])


def test_it_is_silent_when_all_is_well_and_changes_nothing(lab: Lab) -> None:
    before = network(lab.host)
    assert status(lab) == (0, "")
    assert status(lab, master=None) == (0, "")
    assert status(lab, ipam=None) == (0, "")
    assert status(lab, linkInContainer=True, master="nope") == (0, "")
    assert network(lab.host) == before


UNAVAILABLE: dict[str, tuple[Callable[[Lab], object], dict[str, Any], str]] = {
    "no such parent": (lambda lab: None, {"master": "nope"}, "there is no link nope"),
    "parent down": (lambda lab: lab.host.ip("link", "set", "eth0", "down"), {}, "eth0 is down"),
    "no default route": (
        lambda lab: lab.host.ip_batch("route del default", "route del default via 2001:db8::1"),
        {"master": None},
        "master",
    ),
    "parent in a bridge": (
        lambda lab: lab.host.ip_batch("link add br7 type bridge", "link set eth0 master br7"),
        {},
        "port of bridge br7",
    ),
}


@pytest.mark.parametrize(("spoil", "changes", "words"), UNAVAILABLE.values(), ids=UNAVAILABLE)
def test_what_would_make_add_fail_is_told(
    lab: Lab, spoil: Callable[[Lab], object], changes: dict[str, Any], words: str
) -> None:
    spoil(lab)
    code, message = status(lab, **changes)
    assert code == 50
    assert words in message


@pytest.mark.parametrize("directory", ["/proc/shimlan", "/sys/kernel"])
def test_a_store_that_cannot_be_written_is_told(lab: Lab, directory: str) -> None:
    assert status(lab, dataDir=directory)[0] == 50


def test_exhaustion_is_told_only_when_that_was_asked_for(lab: Lab) -> None:
    ipam = {"ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.101"}]]}
    pods = [lab.pod(conf=lab.conf(ipam=ipam)) for _ in range(2)]
    assert status(lab, ipam=ipam) == (0, "")
    code, message = status(lab, ipam=ipam, statusReportsExhaustion=True)
    assert code == 50
    assert "192.0.2.100-192.0.2.101" in message
    pods[0].delete()
    assert status(lab, ipam=ipam, statusReportsExhaustion=True) == (0, "")


def test_an_attachment_in_the_plugins_own_namespace_is_collected(lab: Lab) -> None:
    conf = lab.conf(cniVersion="1.1.0", shim=False)
    variables = {
        "CNI_CONTAINERID": "own",
        "CNI_NETNS": f"/run/netns/{lab.host.name}",
        "CNI_IFNAME": "own0",
        "CNI_NETNS_OVERRIDE": "1",
    }
    lab.runtime().call("ADD", conf, variables).or_raise()
    assert lab.host.link("own0")
    collect(lab, valid_attachments=[])
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0"]
    assert stored(lab) == []
