"""The executable shimlan-ipam: environment and JSON in, JSON and exit status out."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni.database import Database
from ipam import plugin
from ipam.service import dns_of
from ipam.store import LeaseStore

RANGES = [[{"subnet": "10.0.0.0/29"}], [{"subnet": "fd00::/64"}]]


class Runtime:
    """Calls the plugin as a main plugin would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conf: dict[str, Any] = {
            "cniVersion": "1.0.0",
            "name": "lan",
            "type": "bridge",
            "mode": "a key of another plugin",
            "ipam": {"type": "shimlan-ipam", "dataDir": str(directory / "data"), "ranges": RANGES},
        }

    def __call__(self, command: str, container: str = "c1", conf: object = None, **environ: str) -> tuple[int, Any]:
        """Exit status and decoded standard output (None when there is none)."""
        stdout, stderr = io.StringIO(), io.StringIO()
        variables = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_NETNS": "/ns"}
        data = json.dumps(self.conf if conf is None else conf).encode()
        status = plugin.main(variables | environ, io.BytesIO(data), stdout, stderr)
        return status, json.loads(stdout.getvalue()) if stdout.getvalue() else None

    def with_ipam(self, **keys: object) -> dict[str, Any]:
        return self.conf | {"ipam": self.conf["ipam"] | keys}


@pytest.fixture
def call(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path)


def addresses(answer: dict[str, Any]) -> list[str]:
    return [ip["address"] for ip in answer["ips"]]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_add_answers_in_the_asked_version(call: Runtime, version: str, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 10.0.0.53\n")
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.3", "mtu": 1400}]
    conf = call.with_ipam(routes=routes, resolvConf=str(tmp_path / "resolv.conf")) | {"cniVersion": version}
    family = [{"version": "4"}, {"version": "6"}] if version.startswith("0.") else [{}, {}]
    assert call("ADD", conf=conf) == (
        0,
        {
            "cniVersion": version,
            "ips": [
                family[0] | {"address": "10.0.0.2/29", "gateway": "10.0.0.1"},
                family[1] | {"address": "fd00::2/64", "gateway": "fd00::1"},
            ],
            "routes": [
                {"dst": "0.0.0.0/0"},
                {"dst": "10.9.0.0/16", "gw": "10.0.0.3"} | ({"mtu": 1400} if version == "1.1.0" else {}),
            ],
            "dns": {"nameservers": ["10.0.0.53"]},
        },
    )


def test_the_life_of_a_lease(call: Runtime) -> None:
    status, result = call("ADD")
    assert status == 0
    assert call("ADD")[1] == result, "again"
    assert call("CHECK", conf=call.conf | {"prevResult": result}) == (0, None)
    assert call("CHECK") == (0, None)
    assert call("DEL") == (0, None)
    assert call("DEL") == (0, None), "again"
    status, answer = call("CHECK", conf=call.conf | {"prevResult": result})
    assert (status, answer["code"]) == (1, 104)
    assert answer["msg"] == "c1 (eth0) holds no address of network lan"


def test_check_compares_with_the_result(call: Runtime) -> None:
    _, result = call("ADD")
    result["ips"][1]["address"] = "fd00::99/64"
    status, answer = call("CHECK", conf=call.conf | {"prevResult": result})
    assert (status, answer["code"]) == (1, 104)
    assert answer["msg"] == "prevResult: lacks fd00::2, held by c1 (eth0)"


def test_requests_and_reservations_reach_the_store(call: Runtime) -> None:
    conf = call.with_ipam(reservations=[{"pod": "ns/db", "ips": ["10.0.0.5"]}])
    environ = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=db"}
    assert addresses(call("ADD", conf=conf, **environ)[1])[0] == "10.0.0.5/29"
    assert addresses(call("ADD", "c2", CNI_ARGS="IP=10.0.0.4")[1])[0] == "10.0.0.4/29"
    status, answer = call("ADD", "c3", CNI_ARGS="IP=10.0.0.4")
    assert (status, answer["code"]) == (1, 101)


def test_exhaustion(call: Runtime) -> None:
    for number in range(5):
        assert call("ADD", f"c{number}")[0] == 0
    status, answer = call("ADD", "c5")
    assert (status, answer["code"]) == (1, 100)
    assert call("STATUS") == (0, None), "no reason to evict the pods of a whole node"
    status, answer = call("STATUS", conf=call.conf | {"statusReportsExhaustion": True})
    assert (status, answer["code"]) == (1, 50)
    assert answer["msg"] == "network lan has no free address in 10.0.0.1-10.0.0.6"
    call("DEL", "c0")
    assert call("STATUS", conf=call.conf | {"statusReportsExhaustion": True}) == (0, None)


def test_an_add_that_finds_no_address_has_the_store_know_why(call: Runtime) -> None:
    assert call("ADD", conf=call.with_ipam(exclude=["10.0.0.0/29"]))[1]["code"] == 100
    four, six = LeaseStore(Database(call.conf["ipam"]["dataDir"])).ranges("lan")
    assert (four.held, four.excluded, four.free) == (0, 6, 0)
    assert six.held == 0


def test_status_needs_a_store_that_can_be_written(call: Runtime, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    status, answer = call("STATUS")
    assert (status, answer["code"]) == (1, 50)
    assert "Not a directory" in answer["msg"]


def test_del_works_with_a_configuration_that_became_wrong(call: Runtime) -> None:
    call("ADD")
    assert call("DEL", conf=call.with_ipam(ranges="broken", cooldownSeconds=-1)) == (0, None)
    assert call("CHECK")[0] == 1


def test_add_does_not(call: Runtime) -> None:
    status, answer = call("ADD", conf=call.with_ipam(ranges="broken"))
    assert (status, answer["code"]) == (1, 7)


def test_a_resolv_conf_that_cannot_be_read_leaves_no_lease(call: Runtime) -> None:
    status, answer = call("ADD", conf=call.with_ipam(resolvConf="/does/not/exist"))
    assert (status, answer["code"]) == (1, 5)
    assert call("CHECK")[0] == 1


@pytest.mark.parametrize(
    ("valid", "left"),
    [
        ({}, "abc"),
        ({"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]}, "a"),
        ({"cni.dev/attachments": [{"containerID": "b", "ifname": "eth0"}, {"containerID": "c", "ifname": "x"}]}, "b"),
        ({"cni.dev/valid-attachments": []}, ""),
        ({"cni.dev/valid-attachments": None}, ""),
    ],
)
def test_gc_keeps_what_is_valid(call: Runtime, valid: dict[str, object], left: str) -> None:
    for container in "abc":
        call("ADD", container)
    assert call("GC", conf=call.conf | {"cniVersion": "1.1.0"} | valid) == (0, None)
    assert "".join(container for container in "abc" if call("CHECK", container)[0] == 0) == left


def test_gc_reports_what_it_could_not_release(call: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody locks the store whenever a lease is to be released."""
    monkeypatch.setattr("cni.database.BUSY_SECONDS", 0.01)
    call("ADD")
    release = LeaseStore.release

    def locked(self: LeaseStore, *arguments: Any) -> object:
        with Database(str(call.directory / "data")).transaction():
            return release(self, *arguments)

    monkeypatch.setattr(LeaseStore, "release", locked)
    status, answer = call("GC", conf=call.conf | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []})
    assert (status, answer["code"]) == (1, 11)
    assert "locked by another process" in answer["details"]


def test_version_and_about() -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    assert plugin.main({}, io.BytesIO(), stdout, stderr) == 0
    assert stderr.getvalue().startswith("CNI IPAM plugin shimlan-ipam")
    assert plugin.main({"CNI_COMMAND": "VERSION"}, io.BytesIO(b'{"cniVersion": "1.0.0"}'), stdout, stderr) == 0
    assert json.loads(stdout.getvalue())["supportedVersions"][-1] == "1.1.0"


def test_as_a_process(call: Runtime) -> None:
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/ns"}
    program = [sys.executable, "-c", "import ipam.plugin; ipam.plugin.run()"]
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        program, input=json.dumps(call.conf), env=environ, cwd=repository, capture_output=True, text=True, check=True
    )
    assert addresses(json.loads(done.stdout)) == ["10.0.0.2/29", "fd00::2/64"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# nameserver 10.0.0.1\n; search a\n\nunknown word\nnameserver\n", {}),
        ("nameserver 10.0.0.1\nnameserver fd00::1 # second\n", {"nameservers": ["10.0.0.1", "fd00::1"]}),
        (
            "domain a.example\nsearch b.example c.example\n",
            {"domain": "a.example", "search": ["b.example", "c.example"]},
        ),
        ("options ndots:5\n options edns0 trust-ad\n", {"options": ["ndots:5", "edns0", "trust-ad"]}),
    ],
)
def test_dns_of_resolv_conf(tmp_path: Path, text: str, expected: dict[str, object]) -> None:
    (tmp_path / "resolv.conf").write_text(text)
    assert dns_of(str(tmp_path / "resolv.conf")) == expected
