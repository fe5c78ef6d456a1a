"""The configuration of a shimlan network: what is accepted, what is refused and how that is said."""

from __future__ import annotations

import copy
import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni import config
from cni.config import ConflictDetection, NetConf, ShimConf
from cni.errors import InvalidConfig
from tests.unit.configurations import DUAL_STACK, FULL, JSON, MINIMAL, changed, places

MAC = "02:42:0a:00:00:05"


def conf(**keys: Any) -> dict[str, Any]:
    return {**MINIMAL, **keys}


def message(raw: object, environ_args: dict[str, str] | None = None) -> str:
    with pytest.raises(InvalidConfig) as refused:
        config.parse(raw, environ_args or {})
    assert refused.value.details.replace("\n", "; ") == refused.value.msg
    return refused.value.msg


def test_a_name_is_all_that_is_needed() -> None:
    parsed = config.parse({"cniVersion": "1.0.0", "name": "lan"}, {})
    assert parsed == NetConf(
        name="lan",
        raw={"cniVersion": "1.0.0", "name": "lan"},
        data_dir="/var/lib/cni/shimlan",
    )


def test_every_key_finds_its_field() -> None:
    parsed = config.parse(FULL, {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "db-0"})
    assert parsed.master == "eth0"
    assert parsed.mode == "bridge"
    assert (parsed.link_type, parsed.vlan, parsed.source_macs) == ("macvtap", 100, ())
    assert parsed.mtu == 1400
    assert parsed.mac == "02:42:0a:00:00:01"
    assert parsed.mac_policy == "pod"
    assert (parsed.bcqueuelen, parsed.bclim) == (2000, -1)
    assert parsed.shim == ShimConf(
        required=True,
        host_addresses=(ip_address("10.0.0.9"),),
        routes=(ip_network("10.96.0.0/12"), ip_network("169.254.20.10/32")),
        snat=False,
    )
    assert not parsed.announce
    assert parsed.detect_conflicts == ConflictDetection(timeout_ms=50, retries=3)
    assert (parsed.log_level, parsed.log_file) == ("warning", "/var/log/shimlan.log")
    assert parsed.status_reports_exhaustion
    assert parsed.dns == {"nameservers": ["10.0.0.1"], "search": ["lan"], "domain": "lan", "options": ["ndots:2"]}
    assert parsed.data_dir == "/var/lib/a"
    assert parsed.ipam
    assert parsed.ipam.data_dir == "/var/lib/b"
    assert parsed.pod == "default/db-0"
    assert parsed.prev_result == {"cniVersion": "1.0.0"}
    assert parsed.raw == FULL


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"name": None}, "name: missing"),
        ({"name": "-lan"}, 'name: "-lan" must begin with a letter or digit'),
        ({"name": "l n"}, 'name: "l n" must begin'),
        ({"name": ""}, 'name: "" must begin'),
        ({"name": 5}, "name: must be a string, not 5"),
        ({"cniVersion": 1.0}, "cniVersion: must be a string, not 1.0"),
        ({"type": []}, "type: must be a string, not a list"),
        ({"master": "sixteen-chars-xx"}, "master: "),
        ({"master": "a/b"}, 'master: "a/b" is not an interface name'),
        ({"master": "a b"}, 'master: "a b" is not an interface name'),
        ({"master": ".."}, 'master: ".." is not an interface name'),
        ({"master": "eth%d"}, 'master: "eth%d" is not an interface name'),
        ({"master": "default"}, 'master: "default" is not an interface name'),
        ({"master": "e\0"}, 'master: "e\\u0000" holds a character that no name can have'),
        ({"master": "\ud800"}, 'master: "\\ud800" holds a character that no name can have'),
        ({"linkInContainer": 1}, "linkInContainer: must be true or false, not 1"),
        ({"mode": "hairpin"}, 'mode: must be one of bridge, private, vepa, passthru, source, not "hairpin"'),
        ({"mode": {}}, "mode: must be one of bridge, private, vepa, passthru, source, not an object"),
        ({"sourceMacs": [MAC]}, 'sourceMacs: only has a meaning with "mode": "source", not bridge'),
        ({"mode": "source", "sourceMacs": [MAC, "x"]}, 'sourceMacs[1]: "x" is not a MAC address'),
        ({"mode": "source", "shim": True}, "shim: a shim only works with mode bridge"),
        ({"sourceMacs": MAC}, f'sourceMacs: must be a list, not "{MAC}"'),
        ({"linkType": "ipvlan"}, 'linkType: must be one of macvlan, macvtap, not "ipvlan"'),
        ({"vlan": 7, "linkInContainer": True}, "vlan: is only made on the host"),
        ({"vlan": 4095}, "vlan: must be between 0 and 4094, not 4095"),
        ({"offload": True}, "offload: must be one of auto, on, off, not true"),
        ({"offload": "on", "mode": "passthru"}, 'offload: "on" needs mode bridge, private or vepa'),
        (
            {"offload": "on", "linkInContainer": True},
            'offload: "on" needs mode bridge, private or vepa, and a master',
        ),
        ({"mtu": 67}, "mtu: must be 0 or between 68 and 65535, not 67"),
        ({"mtu": -1}, "mtu: must be 0 or between 68 and 65535, not -1"),
        ({"mtu": 1500.0}, "mtu: must be a whole number, not 1500.0"),
        ({"mtu": True}, "mtu: must be a whole number, not true"),
        ({"mac": "01:00:5e:00:00:01"}, "mac: 01:00:5e:00:00:01 is a multicast address"),
        ({"mac": "00-00-00-00-00-00"}, "mac: 00:00:00:00:00:00 is no address that an interface can have"),
        ({"mac": "02:42:0a:00:00"}, 'mac: "02:42:0a:00:00" is not a MAC address'),
        ({"mac": "02:42:0a:00:00:0g"}, "is not a MAC address"),
        ({"mac": "02:42:0a:00:00:005"}, "is not a MAC address"),
        ({"runtimeConfig": {"mac": "x"}}, 'runtimeConfig.mac: "x" is not a MAC address'),
        ({"runtimeConfig": 5}, "runtimeConfig: must be an object, not 5"),
        ({"args": {"cni": {"mac": 5}}}, "args.cni.mac: must be a string, not 5"),
        ({"args": {"cni": []}}, "args.cni: must be an object, not a list"),
        ({"macPolicy": "serial"}, 'macPolicy: must be one of ip, pod, random, not "serial"'),
        ({"bcqueuelen": 0}, "bcqueuelen: 0 would deliver no broadcast at all"),
        ({"bcqueuelen": 2**32}, "bcqueuelen: must be between 1 and 4294967295"),
        ({"bcqueuelen": False}, "bcqueuelen: must be a whole number, not false"),
        ({"bclim": -2}, "bclim: must be between -1 and 2147483647, not -2"),
        ({"shim": "yes"}, 'shim: must be true, false or an object, not "yes"'),
        ({"shim": {"hostAddresses": []}}, "shim.hostAddresses: must be a list with at least one item"),
        ({"shim": {"hostAddresses": ["all"]}}, 'shim.hostAddresses[0]: "all" is not an IP address'),
        (
            {"shim": {"routes": ["10.96.0.1/12"]}},
            "shim.routes[0]: 10.96.0.1/12 has host bits set; did you mean 10.96.0.0/12?",
        ),
        ({"shim": {"routes": ["10.0.0.0/33"]}}, "its prefix length must be 0 to 32"),
        ({"shim": {"routes": ["10.0.0.0/255.0.0.0"]}}, "its prefix length must be 0 to 32"),
        ({"shim": {"routes": [None]}}, "shim.routes[0]: missing"),
        ({"shim": {"snat": 0}}, "shim.snat: must be true or false, not 0"),
        ({"shim": True, "mode": "private"}, "shim: a shim only works with mode bridge"),
        ({"shim": {}, "linkInContainer": True}, "shim: a shim only works with mode bridge"),
        ({"announce": "no"}, 'announce: must be true or false, not "no"'),
        ({"detectConflicts": 1}, "detectConflicts: must be true, false or an object, not 1"),
        ({"detectConflicts": {"timeoutMs": 0}}, "detectConflicts.timeoutMs: must be between 1 and 10000, not 0"),
        ({"detectConflicts": {"retries": 11}}, "detectConflicts.retries: must be between 1 and 10, not 11"),
        ({"dataDir": "state"}, 'dataDir: "state" must be an absolute path'),
        ({"logLevel": "loud"}, "logLevel: must be one of error, warning, warn, info, debug"),
        ({"logFile": 5}, "logFile: must be a string, not 5"),
        ({"capabilities": {"ips": "yes"}}, 'capabilities.ips: must be true or false, not "yes"'),
        ({"statusReportsExhaustion": "x"}, "statusReportsExhaustion: must be true or false"),
        ({"dns": {"nameservers": ["10.0.0.1", 5]}}, "dns.nameservers[1]: must be a string, not 5"),
        ({"dns": {"domain": []}}, "dns.domain: must be a string, not a list"),
        ({"dns": []}, "dns: must be an object, not a list"),
        ({"ipam": "host-local"}, 'ipam: must be an object, not "host-local"'),
        ({"ipam": {"type": "../sh"}}, 'ipam.type: "../sh" must be the plain name of an executable'),
        ({"ipam": {"type": ".."}}, 'ipam.type: ".." must be the plain name of an executable'),
        ({"ipam": {"type": "shimlan-ipam"}}, "ipam.ranges: missing: at least one range of addresses is needed"),
        ({"prevResult": []}, "prevResult: must be an object, not a list"),
        ({"cni.dev/valid-attachments": {}}, "cni.dev/valid-attachments: must be a list, not an object"),
        ({"cni.dev/attachments": [{"containerID": "c"}]}, "cni.dev/attachments[0].ifname: missing"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(keys: dict[str, Any], problem: str) -> None:
    assert problem in message(conf(**keys))


@pytest.mark.parametrize("raw", [None, 5, "x", [], True, 1.5])
def test_a_configuration_is_an_object(raw: object) -> None:
    assert message(raw).startswith("configuration: must be an object, not ")


def test_all_problems_are_told_at_once() -> None:
    assert message(conf(linkType="tap", mtu="x", shim=[]), {"MAC": "x"}).split("; ") == [
        'linkType: must be one of macvlan, macvtap, not "tap"',
        'mtu: must be a whole number, not "x"',
        'CNI_ARGS.MAC: "x" is not a MAC address',
        "shim: must be true, false or an object, not a list",
    ]


def test_a_long_value_is_shortened() -> None:
    assert len(message(conf(mode="x" * 5000))) < 200


@pytest.mark.parametrize(
    "keys",
    [
        {"unknown": {"key": [1]}},
        {"master": None, "mode": None, "mtu": None, "shim": None, "ipam": None, "dns": None, "runtimeConfig": None},
        {"master": "", "mode": "", "mac": "", "dataDir": "", "logFile": "", "ipam": {"type": ""}},
        {"vlan": 0, "sourceMacs": [], "linkType": "macvlan", "offload": "auto"},
        {"master": "auto"},
        {"ipam": {}},
        {"detectConflicts": False},
        {"args": {"cni": None, "labels": []}},
    ],
)
def test_absent_null_and_unknown_keys_change_nothing(keys: dict[str, Any]) -> None:
    plain = config.parse(MINIMAL, {})
    assert {**vars(config.parse(conf(**keys), {})), "raw": None, "dns": None} == {**vars(plain), "raw": None}


@pytest.mark.parametrize(
    ("keys", "offload"),
    [
        ({}, "auto"),
        ({"offload": None}, "auto"),
        ({"offload": "on", "mode": "vepa"}, "on"),
        ({"offload": "off"}, "off"),
        ({"mode": "passthru"}, "off"),
        ({"mode": "source"}, "off"),
        ({"linkInContainer": True}, "off"),
    ],
)
def test_offload_is_off_where_no_nic_could_do_it(keys: dict[str, Any], offload: str) -> None:
    assert config.parse(conf(**keys), {}).offload == offload


@pytest.mark.parametrize(
    ("keys", "shim"),
    [
        ({}, ShimConf(enabled=True, required=False)),
        ({"shim": True}, ShimConf(enabled=True, required=True)),
        ({"shim": False}, ShimConf(enabled=False)),
        ({"shim": False, "mode": "vepa"}, ShimConf(enabled=False)),
        ({"mode": "private"}, ShimConf(enabled=False)),
        ({"linkInContainer": True}, ShimConf(enabled=False)),
        ({"shim": {}}, ShimConf(enabled=True, required=True)),
        (
            {"shim": {"hostAddresses": ["fd00::1"]}},
            ShimConf(required=True, host_addresses=(ip_address("fd00::1"),), auto_addresses=False),
        ),
        ({"shim": {"routes": ["fd00::1"]}}, ShimConf(required=True, routes=(ip_network("fd00::1/128"),))),
    ],
)
def test_the_shim_is_there_where_it_applies(keys: dict[str, Any], shim: ShimConf) -> None:
    assert config.parse(conf(**keys), {}).shim == shim


def test_source_macs_are_in_order_and_there_once() -> None:
    macs = ["02:00:00:00:00:02", "02-00-00-00-00-01", "02:00:00:00:00:02"]
    parsed = config.parse(conf(mode="source", sourceMacs=macs), {})
    assert parsed.source_macs == ("02:00:00:00:00:01", "02:00:00:00:00:02")
    assert not parsed.shim.enabled


def test_the_most_specific_mac_wins() -> None:
    sources = conf(
        runtimeConfig={"mac": "02-42-0A-00-00-01"},
        args={"cni": {"mac": "02:42:0a:00:00:02"}},
        mac="02:42:0a:00:00:04",
    )
    environ = {"MAC": "02:42:0A:00:00:03"}
    macs = []
    for key in ("runtimeConfig", "args", "MAC", "mac"):
        macs.append(config.parse(sources, environ).mac)
        sources.pop(key, None)
        environ.pop(key, None)
    assert macs == ["02:42:0a:00:00:01", "02:42:0a:00:00:02", "02:42:0a:00:00:03", "02:42:0a:00:00:04"]
    assert config.parse(sources, environ).mac == ""


def test_conflict_detection_has_defaults() -> None:
    assert config.parse(conf(detectConflicts=True), {}).detect_conflicts == ConflictDetection(100, 2)
    assert config.parse(conf(detectConflicts={"retries": 1}), {}).detect_conflicts == ConflictDetection(100, 1)


def test_a_foreign_ipam_is_left_to_itself() -> None:
    parsed = config.parse(
        conf(ipam={"type": "host-local", "ranges": 5, "dataDir": "x"}, runtimeConfig={"ips": 5}), {"IP": "x"}
    )
    assert parsed.delegate == "host-local"
    assert parsed.ipam is None
    assert parsed.data_dir == "/var/lib/cni/shimlan"


@pytest.mark.parametrize(
    ("top", "below", "state", "leases"),
    [
        (None, None, "/var/lib/cni/shimlan", "/var/lib/cni/shimlan"),
        ("/a", None, "/a", "/a"),
        (None, "/b", "/b", "/b"),
        ("/a", "/b", "/a", "/b"),
    ],
)
def test_each_data_dir_stands_in_for_the_other(top: str | None, below: str | None, state: str, leases: str) -> None:
    parsed = config.parse(changed(conf(dataDir=top, ipam=DUAL_STACK["ipam"]), ("ipam", "dataDir"), below), {})
    assert parsed.ipam
    assert (parsed.data_dir, parsed.ipam.data_dir) == (state, leases)


@pytest.mark.parametrize(
    "environ", [{}, {"K8S_POD_NAME": "db-0"}, {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": ""}]
)
def test_a_pod_has_both_names_or_none(environ: dict[str, str]) -> None:
    assert config.parse(MINIMAL, environ).pod == ""


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
@pytest.mark.parametrize(
    ("value", "attachments"),
    [(None, ()), ([], ()), ([{"containerID": "c", "ifname": "eth0"}], (("c", "eth0"),))],
)
def test_valid_attachments(key: str, value: object, attachments: object) -> None:
    assert config.parse(conf(**{key: value}), {}).valid_attachments == attachments


def test_valid_attachments_absent_is_not_empty() -> None:
    assert config.parse(MINIMAL, {}).valid_attachments is None


def test_the_preferred_key_of_valid_attachments_wins() -> None:
    both: dict[str, Any] = {"cni.dev/valid-attachments": [], "cni.dev/attachments": 5}
    assert config.parse(conf(**both), {}).valid_attachments == ()


def test_a_broken_list_of_attachments_never_counts_as_a_shorter_one() -> None:
    broken = conf(**{"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}, {}]})
    assert config.parse_for_delete(broken, {}).valid_attachments is None


def test_delete_takes_what_is_valid() -> None:
    wrong = {**FULL, "mode": "hub", "mtu": "x", "shim": 5, "mac": 5, "args": []}
    parsed = config.parse_for_delete(wrong, {"IP": "x"})
    assert (parsed.mode, parsed.mtu, parsed.mac, parsed.master) == ("bridge", 0, "", "eth0")
    assert parsed.ipam
    assert parsed.data_dir == "/var/lib/a"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"name": None}, "name: missing"),
        ({"name": "/"}, "name: "),
        ({"dataDir": 5}, "dataDir: must be a string, not 5"),
        ({"ipam": {"type": "shimlan-ipam", "dataDir": "x"}}, 'ipam.dataDir: "x" must be an absolute path'),
    ],
)
def test_delete_needs_to_know_where_to_look(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        config.parse_for_delete(conf(mode=5, **keys), {})
    assert refused.value.msg.startswith(problem)
    assert "mode" not in refused.value.msg


def test_delete_of_something_that_is_no_configuration() -> None:
    with pytest.raises(InvalidConfig):
        config.parse_for_delete([], {})


def test_check_lists_what_parse_refuses() -> None:
    assert [str(problem) for problem in config.check(conf(mode="hub"))] == [message(conf(mode="hub"))]
    assert config.check(FULL) == []


@given(st.sampled_from([FULL, DUAL_STACK]), st.data(), JSON, st.dictionaries(st.sampled_from(["IP", "MAC"]), st.text()))
@example(FULL, None, {"ipam": None}, {})
def test_any_value_at_any_place_is_taken_or_refused(
    base: dict[str, Any], data: st.DataObject | None, value: object, environ: dict[str, str]
) -> None:
    place = data.draw(st.sampled_from(places(base))) if data else ()
    raw = changed(base, place, value)
    before = copy.deepcopy(raw)
    told: list[bytes] = []
    for parse in (config.parse, config.parse_for_delete):
        try:
            assert isinstance(parse(raw, environ), NetConf)
        except InvalidConfig as refused:
            told.append(refused.msg.encode())
    assert all(told)
    assert json.dumps(raw) == json.dumps(before)
