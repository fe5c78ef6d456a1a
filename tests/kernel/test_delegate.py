"""IPAM by other plugins: called as the spec says, rolled back, and never trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.lab import CniFailed, Lab, Pod
from cni.ctl.runtime import Json
from tests.kernel.marks import needs_reference_plugins
from tests.kernel.traces import network, records

RESULT = {
    "cniVersion": "1.0.0",
    "ips": [{"address": "192.0.2.90/24", "gateway": "192.0.2.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["192.0.2.53"]},
}
VERSIONS = {"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}

# An IPAM plugin that writes down how it was called and what it saw, and answers what a file beside it says.
WITNESS = """#!/bin/sh
here=$(dirname "$0")
{ echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME ${CNI_NETNS:--} $CNI_ARGS"; } >> "$here/calls"
cat > "$here/stdin.$CNI_COMMAND"
[ "$CNI_COMMAND" = ADD ] && nsenter --net="$CNI_NETNS" ip -o link show "$CNI_IFNAME" > "$here/link"
[ -f "$here/answer.$CNI_COMMAND" ] && cat "$here/answer.$CNI_COMMAND"
[ -f "$here/status.$CNI_COMMAND" ] && exit "$(cat "$here/status.$CNI_COMMAND")"
exit 0
"""


class Witness:
    """The plugin `witness` in a directory of its own."""

    def __init__(self, lab: Lab) -> None:
        self.directory = Path(lab.data_dir, "bin")
        self.directory.mkdir()
        plugin = self.directory / "witness"
        plugin.write_text(WITNESS)
        plugin.chmod(0o755)
        self.answers(ADD=RESULT, VERSION=VERSIONS)

    def answers(self, status: int = 0, **answers: object) -> None:
        """Let it answer verbs with JSON, or with text as it is."""
        for command, answer in answers.items():
            text = answer if isinstance(answer, str) else json.dumps(answer)
            (self.directory / f"answer.{command}").write_text(text)
            (self.directory / f"status.{command}").write_text(str(status))

    def calls(self) -> list[str]:
        """The verbs that it was called with."""
        file = self.directory / "calls"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def stdin(self, command: str) -> Json:
        """What it was given at the last call of a verb."""
        given: Json = json.loads((self.directory / f"stdin.{command}").read_text())
        return given


@pytest.fixture
def witness(lab: Lab) -> Witness:
    return Witness(lab)


def conf(lab: Lab, **changes: Any) -> Json:
    return lab.conf(**{"ipam": {"type": "witness", "ranges": None, "routes": None}, **changes})


def container(lab: Lab, witness: Witness, network_conf: Json | None = None, **variables: Any) -> Pod:
    return lab.container("a", network_conf or conf(lab), container_id="a", CNI_PATH=str(witness.directory), **variables)


def test_it_finds_the_link_and_gets_all_that_the_runtime_gave(lab: Lab, witness: Witness) -> None:
    pod = container(lab, witness, conf(lab, cniVersion="0.4.0", extra={"key": 1}), CNI_ARGS="IgnoreUnknown=1;X=y")
    pod.add()
    assert "eth0" in (witness.directory / "link").read_text()
    (line,) = (witness.directory / "calls").read_text().splitlines()
    assert line == f"ADD a eth0 {pod.netns} IgnoreUnknown=1;X=y"
    given = witness.stdin("ADD")
    assert (given["extra"], given["ipam"]["type"], given["cniVersion"]) == ({"key": 1}, "witness", "0.4.0")
    assert pod.addresses() == ["192.0.2.90/24"]
    assert pod.result["dns"] == {"nameservers": ["192.0.2.53"]}
    assert [entry["name"] for entry in pod.result["interfaces"]] == ["eth0", "shim2"]
    assert pod.pings(lab.outside)
    assert lab.host.pings(pod)


def test_its_mac_depends_on_the_pod_and_not_on_the_address(lab: Lab, witness: Witness) -> None:
    pod = container(lab, witness)
    pod.add()
    assert pod.mac.startswith("02:")
    assert pod.mac != "02:42:c0:00:02:5a"
    assert pod.result["interfaces"][0]["mac"] == pod.mac


def test_check_and_del_are_passed_on(lab: Lab, witness: Witness) -> None:
    pod = container(lab, witness)
    pod.add()
    pod.check()
    pod.delete()
    assert witness.calls() == ["ADD", "CHECK", "DEL"]
    assert witness.stdin("CHECK")["prevResult"] == pod.result
    assert [link["ifname"] for link in lab.host.links()] == ["lo", "eth0"]


def test_del_of_an_unknown_container_is_passed_on(lab: Lab, witness: Witness) -> None:
    container(lab, witness).delete()
    assert witness.calls() == ["DEL"]


def test_its_error_is_passed_on_as_it_is(lab: Lab, witness: Witness) -> None:
    before = network(lab.host)
    witness.answers(status=1, ADD={"cniVersion": "1.0.0", "code": 142, "msg": "no more", "details": "at all"})
    pod = container(lab, witness)
    with pytest.raises(CniFailed) as failure:
        pod.add()
    assert (failure.value.code, failure.value.msg, failure.value.details) == (142, "no more", "at all")
    assert witness.calls() == ["ADD", "DEL"]
    assert network(lab.host) == before
    assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert records(lab) == []


NONSENSE: dict[str, tuple[int, str, int]] = {
    "no JSON": (0, "oops", 6),
    "no object": (0, "[]", 6),
    "no text": (0, "\xff\xfe", 6),
    "wrong address": (0, '{"ips": [{"address": "192.0.2.300/24"}]}', 6),
    "crash": (3, "", 105),
    "crash with words": (3, "segmentation fault", 105),
    "error without code": (1, '{"msg": "no"}', 105),
}


@pytest.mark.parametrize(("status", "answer", "code"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_an_error_and_leaves_nothing(
    lab: Lab, witness: Witness, status: int, answer: str, code: int
) -> None:
    before = network(lab.host)
    witness.answers(status=status, ADD=answer)
    pod = container(lab, witness)
    with pytest.raises(CniFailed) as failure:
        pod.add()
    assert failure.value.code == code
    assert "Traceback" not in failure.value.answer.stderr
    assert witness.calls() == ["ADD", "DEL"]
    assert network(lab.host) == before
    assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert records(lab) == []


def test_a_missing_plugin_is_named_and_leaves_nothing(lab: Lab, witness: Witness) -> None:
    pod = container(lab, witness, conf(lab, ipam={"type": "nowhere", "ranges": None}))
    with pytest.raises(CniFailed, match=f"there is no plugin nowhere in {witness.directory}") as failure:
        pod.add()
    assert failure.value.code == 105
    assert [link["ifname"] for link in pod.links()] == ["lo"]


def test_a_del_that_it_refuses_stays_to_be_repeated(lab: Lab, witness: Witness) -> None:
    pod = container(lab, witness)
    pod.add()
    witness.answers(status=1, DEL={"code": 11, "msg": "busy"})
    with pytest.raises(CniFailed, match="busy"):
        pod.delete()
    assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert len(records(lab)) == 1
    witness.answers(DEL="")
    pod.delete()
    assert records(lab) == []


@pytest.mark.parametrize("command", ["STATUS", "GC"])
def test_status_and_gc_are_passed_on_to_those_who_know_them(lab: Lab, witness: Witness, command: str) -> None:
    asked = {**conf(lab, cniVersion="1.1.0"), "cni.dev/valid-attachments": []}
    lab.cni(command, asked, CNI_PATH=str(witness.directory)).or_raise()
    assert witness.calls()[-1] == command
    witness.answers(VERSION={**VERSIONS, "supportedVersions": ["1.0.0"]})
    lab.cni(command, asked, CNI_PATH=str(witness.directory)).or_raise()
    assert witness.calls()[-1] == "VERSION"


def test_its_status_is_ours(lab: Lab, witness: Witness) -> None:
    witness.answers(status=1, STATUS={"code": 51, "msg": "limited"})
    answer = lab.cni("STATUS", conf(lab, cniVersion="1.1.0"), CNI_PATH=str(witness.directory))
    assert (answer.json["code"], answer.json["msg"]) == (51, "limited")


def test_addresses_of_both_families_and_no_shim(lab: Lab, witness: Witness) -> None:
    ips = [{"address": "192.0.2.90/24"}, {"address": "2001:db8::90/64", "gateway": "2001:db8::1"}]
    witness.answers(ADD={"cniVersion": "1.0.0", "ips": ips, "routes": [{"dst": "::/0"}]})
    pod = container(lab, witness, conf(lab, shim=False, mode="private"))
    pod.add()
    assert pod.addresses() == ["192.0.2.90/24", "2001:db8::90/64"]
    assert pod.pings(lab.outside, 6)


def test_a_result_without_addresses_is_passed_on(lab: Lab, witness: Witness) -> None:
    witness.answers(ADD={"cniVersion": "1.0.0"})
    pod = container(lab, witness)
    pod.add()
    assert pod.addresses() == []
    assert pod.link("eth0")["operstate"] == "UP"
    pod.check()


@needs_reference_plugins
@pytest.mark.parametrize("mode", ["bridge", "private", "passthru"])
def test_host_local_serves_every_mode(lab: Lab, mode: str) -> None:
    pod = lab.pod("a", lab.conf(dual=True, mode=mode, bcqueuelen=2000, bclim=1, ipam={"type": "host-local"}))
    assert pod.addresses() == ["192.0.2.100/24", "2001:db8::100/64"]
    assert pod.pings(lab.outside)
    pod.check()
    pod.delete()
    assert records(lab) == []
    assert list(Path(lab.data_dir, "lan").glob("192.*")) == []


def test_a_delegate_may_have_set_the_link_up_and_changed_it(lab: Lab, witness: Witness) -> None:
    plugin = witness.directory / "witness"
    script = plugin.read_text()
    meddle = 'nsenter --net="$CNI_NETNS" ip link set "$CNI_IFNAME" mtu 1400 up'
    plugin.write_text(script.replace("exit 0", f'[ "$CNI_COMMAND" = ADD ] && {meddle}\nexit 0'))
    witness.answers(VERSION=VERSIONS)
    (witness.directory / "status.ADD").unlink()
    pod = container(lab, witness)
    pod.add()
    assert pod.link("eth0")["mtu"] == 1500
    pod.check()
    assert lab.host.pings(pod)
