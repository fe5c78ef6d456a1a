"""The words of the CNI spec: the environment, versions, results and how they are merged."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.errors import DecodingFailure, Exhausted, IncompatibleVersion, InvalidEnvironment
from cni.frozen import replace
from cni.protocol import (
    MAX_STDIN,
    NEWEST,
    REQUIRED,
    VERSIONS,
    Interface,
    IpConfig,
    Result,
    RouteConfig,
    decode,
    error_answer,
    merge,
    parse_cni_args,
    parse_environ,
    parse_result,
    render_result,
    version_answer,
    version_of,
)

COMPLETE = {"CNI_CONTAINERID": "abc", "CNI_NETNS": "/run/netns/abc", "CNI_IFNAME": "eth0"}


# --- environment -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", REQUIRED)
def test_a_complete_environment_is_accepted(command: str) -> None:
    variables = {"CNI_PATH": "/opt/cni/bin", "CNI_ARGS": "IP=192.0.2.7", "CNI_NETNS_OVERRIDE": "true"}
    call = parse_environ({**COMPLETE, **variables, "CNI_COMMAND": command})
    assert (call.command, call.container_id, call.netns, call.ifname) == (command, "abc", "/run/netns/abc", "eth0")
    assert (call.path, call.own_netns) == ("/opt/cni/bin", True)


@pytest.mark.parametrize(("command", "name"), [(command, name) for command in REQUIRED for name in REQUIRED[command]])
def test_each_required_variable_is_missed(command: str, name: str) -> None:
    for environ in ({**COMPLETE, name: ""}, {key: value for key, value in COMPLETE.items() if key != name}):
        with pytest.raises(InvalidEnvironment, match=f"{name} is missing"):
            parse_environ({**environ, "CNI_COMMAND": command})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidEnvironment) as failure:
        parse_environ({"CNI_COMMAND": "ADD", "CNI_IFNAME": "a/b"})
    assert failure.value.msg == (
        "CNI_CONTAINERID is missing; CNI_NETNS is missing; "
        "CNI_IFNAME: 'a/b' is no interface name: "
        "1 to 15 bytes, no '/', ':', '%' or white space, and none of . .. all default"
    )


def test_del_does_without_a_namespace() -> None:
    call = parse_environ({"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "abc", "CNI_IFNAME": "eth0"})
    assert call.netns == ""


@pytest.mark.parametrize("command", ["STATUS", "GC", "VERSION"])
def test_dummy_values_do_not_matter_where_nothing_is_required(command: str) -> None:
    # podman asks for the VERSION with "dummy" everywhere, and nothing keeps others from odd characters.
    assert parse_environ({"CNI_COMMAND": command, "CNI_IFNAME": "a/b", "CNI_ARGS": "nonsense"}).command == command


@pytest.mark.parametrize("command", ["", "add", "UPDATE", "ADD "])
def test_unknown_commands_are_refused(command: str) -> None:
    with pytest.raises(InvalidEnvironment, match=r"CNI_COMMAND: .* is none of ADD, DEL, CHECK, STATUS, GC, VERSION"):
        parse_environ({**COMPLETE, "CNI_COMMAND": command})


@pytest.mark.parametrize("container_id", ["-a", "_a", ".a", "a/b", "a b", "a;b", "ä", "a\n", "../a"])
def test_bad_container_ids_are_refused(container_id: str) -> None:
    with pytest.raises(InvalidEnvironment, match="CNI_CONTAINERID"):
        parse_environ({**COMPLETE, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": container_id})


@pytest.mark.parametrize("container_id", ["a", "0", "A-b_c.d", "f" * 300])
def test_good_container_ids_are_accepted(container_id: str) -> None:
    assert parse_environ({**COMPLETE, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": container_id})


@pytest.mark.parametrize("ifname", ["x" * 16, "ü" * 8, ".", "..", "a/b", "a:b", "a b", "a\tb", "a\x00b"])
def test_bad_interface_names_are_refused(ifname: str) -> None:
    with pytest.raises(InvalidEnvironment, match="CNI_IFNAME"):
        parse_environ({**COMPLETE, "CNI_COMMAND": "ADD", "CNI_IFNAME": ifname})


@pytest.mark.parametrize("ifname", ["x" * 15, "a.b", "a-b", "..."])
def test_good_interface_names_are_accepted(ifname: str) -> None:
    assert parse_environ({**COMPLETE, "CNI_COMMAND": "ADD", "CNI_IFNAME": ifname}).ifname == ifname


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(InvalidEnvironment, match="CNI_NETNS: contains a NUL"):
        parse_environ({**COMPLETE, "CNI_COMMAND": "ADD", "CNI_NETNS": "/run\0"})


@pytest.mark.parametrize(
    ("value", "meaning"), [("1", True), ("true", True), ("T", True), ("", False), ("0", False), ("yes", False)]
)
def test_the_override_is_a_boolean_as_go_reads_it(value: str, meaning: bool) -> None:
    assert parse_environ({**COMPLETE, "CNI_COMMAND": "ADD", "CNI_NETNS_OVERRIDE": value}).own_netns is meaning


ARGS: tuple[tuple[str, dict[str, str]], ...] = (
    ("", {}),
    (";;", {}),
    ("IP=192.0.2.7;MAC=02:00:00:00:00:01", {"IP": "192.0.2.7", "MAC": "02:00:00:00:00:01"}),
    ("K8S_POD_NAME=a;K8S_POD_NAMESPACE=b", {"K8S_POD_NAME": "a", "K8S_POD_NAMESPACE": "b"}),
    ("IgnoreUnknown=1;X=a=b", {"IgnoreUnknown": "1", "X": "a=b"}),
    ("X=y;IgnoreUnknown=true", {"X": "y", "IgnoreUnknown": "true"}),
)


@pytest.mark.parametrize(("text", "args"), ARGS)
def test_cni_args_are_pairs(text: str, args: dict[str, str]) -> None:
    assert parse_cni_args(text) == args


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("IP", "'IP' is not of the form KEY=VALUE"),
        ("=x", "'=x' is not of the form KEY=VALUE"),
        ("X=1;Y=2", "unknown X, Y; add IgnoreUnknown=1"),
        ("X=1;IgnoreUnknown=0", "unknown X"),
    ],
)
def test_bad_cni_args_are_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidEnvironment, match=words):
        parse_cni_args(text)


# --- stdin and versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"7", "must be a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b" " * (MAX_STDIN + 1), "more than 4194304 bytes"),
    ],
)
def test_what_is_no_json_object_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(DecodingFailure, match=words):
        decode(data)


def test_versions_that_we_speak_are_taken_and_others_refused() -> None:
    assert [version_of({"cniVersion": version}) for version in VERSIONS] == list(VERSIONS)
    others: tuple[dict[str, Any], ...] = ({"cniVersion": "0.2.0"}, {"cniVersion": "2.0.0"}, {"cniVersion": []}, {})
    for conf in others:
        with pytest.raises(IncompatibleVersion, match=r"is not supported; use one of 0\.3\.0"):
            version_of(conf)


def test_the_version_answer_keeps_to_the_asked_version() -> None:
    assert version_answer({"cniVersion": "0.4.0"}) == {"cniVersion": "0.4.0", "supportedVersions": list(VERSIONS)}
    others: tuple[dict[str, Any], ...] = ({}, {"cniVersion": "9.9.9"}, {"cniVersion": []})
    for odd in others:
        assert version_answer(odd)["cniVersion"] == NEWEST


def test_an_error_has_details_only_when_there_are_some() -> None:
    assert error_answer(Exhausted("no more"), "1.0.0") == {"cniVersion": "1.0.0", "code": 100, "msg": "no more"}
    assert error_answer(Exhausted("no more", "at all"), "1.0.0")["details"] == "at all"


# --- results ---------------------------------------------------------------------------------------------------------

RESULT = Result(
    interfaces=(Interface("eth0", "02:00:00:00:00:01", "/run/netns/a", 1500), Interface("shim2")),
    ips=(IpConfig(ip_address("192.0.2.7"), 24, ip_address("192.0.2.1"), 0), IpConfig(ip_address("2001:db8::7"), 64)),
    routes=(
        RouteConfig(ip_network("0.0.0.0/0")),
        RouteConfig(ip_network("198.51.100.0/24"), ip_address("192.0.2.1"), 1400, 1360, 5, 100, 0),
    ),
    dns={"nameservers": ["192.0.2.53"]},
)


def test_the_newest_result_tells_everything() -> None:
    assert render_result(RESULT, "1.1.0") == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/run/netns/a"},
            {"name": "shim2"},
        ],
        "ips": [
            {"interface": 0, "address": "192.0.2.7/24", "gateway": "192.0.2.1"},
            {"address": "2001:db8::7/64"},
        ],
        "routes": [
            {"dst": "0.0.0.0/0"},
            {
                "dst": "198.51.100.0/24",
                "gw": "192.0.2.1",
                "mtu": 1400,
                "advmss": 1360,
                "priority": 5,
                "table": 100,
                "scope": 0,
            },
        ],
        "dns": {"nameservers": ["192.0.2.53"]},
    }


def test_older_results_tell_the_family_and_no_more_than_they_may() -> None:
    rendered = render_result(RESULT, "0.4.0")
    assert [ip["version"] for ip in rendered["ips"]] == ["4", "6"]
    assert "mtu" not in rendered["interfaces"][0]
    assert rendered["routes"][1] == {"dst": "198.51.100.0/24", "gw": "192.0.2.1"}
    assert "version" not in render_result(RESULT, "1.0.0")["ips"][0]


def test_an_empty_result_has_its_dns_only() -> None:
    assert render_result(Result(), "1.0.0") == {"cniVersion": "1.0.0", "dns": {}}


def test_the_newest_result_is_read_as_it_was_written() -> None:
    assert parse_result(render_result(RESULT, "1.1.0")) == RESULT


@pytest.mark.parametrize(
    "value",
    [
        7,
        [],
        "text",
        {"ips": 7},
        {"ips": [{}]},
        {"ips": [{"address": "192.0.2.300/24"}]},
        {"ips": [{"address": []}]},
        {"ips": [{"address": "192.0.2.7/24", "interface": "x"}]},
        {"interfaces": [{}]},
        {"interfaces": ["eth0"]},
        {"routes": [{"dst": "x"}]},
        {"routes": [{"dst": "192.0.2.0/24", "mtu": "much"}]},
        {"dns": 7},
    ],
)
def test_what_is_no_result_is_refused(value: object) -> None:
    with pytest.raises(DecodingFailure, match="not a CNI result"):
        parse_result(value)


@pytest.mark.parametrize("value", [None, {}])
def test_nulls_and_absent_keys_are_empty(value: Any) -> None:
    assert parse_result({"ips": value, "interfaces": value, "routes": value, "dns": value}) == Result(dns={})


def test_our_part_of_a_chain_comes_behind_with_its_indices_moved() -> None:
    merged = merge(RESULT, replace(RESULT, dns=None))
    assert [entry.name for entry in merged.interfaces] == ["eth0", "shim2", "eth0", "shim2"]
    assert [ip.interface for ip in merged.ips] == [0, None, 2, None]
    assert merged.routes == RESULT.routes * 2
    assert merged.dns == RESULT.dns
    assert merge(RESULT, Result(dns={"domain": "b"})).dns == {"domain": "b"}


addresses = st.ip_addresses()
ips = st.builds(
    lambda address, gateway, index: IpConfig(address, address.max_prefixlen // 2, gateway, index),
    addresses,
    st.none() | addresses,
    st.none() | st.integers(0, 5),
)
routes = st.builds(lambda address, gateway: RouteConfig(ip_network(address), gateway), addresses, st.none() | addresses)
results = st.builds(
    lambda ips, routes: Result((Interface("eth0", sandbox="/x"),), tuple(ips), tuple(routes), {}),
    st.lists(ips, max_size=3),
    st.lists(routes, max_size=3),
)


@given(results, st.sampled_from(VERSIONS))
def test_results_survive_every_version(result: Result, version: str) -> None:
    assert parse_result(render_result(result, version)) == result


def test_what_other_plugins_tell_of_their_interfaces_is_passed_on() -> None:
    told = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "vhost0", "socketPath": "/run/vhost0", "pciID": "0000:01:00.1"}],
    }
    assert render_result(parse_result(told), "1.1.0")["interfaces"] == told["interfaces"]
    assert render_result(parse_result(told), "1.0.0")["interfaces"] == [{"name": "vhost0"}]


def test_the_number_of_a_tap_is_told_in_every_version() -> None:
    told = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "tap": 7}]}
    for version in VERSIONS:
        assert render_result(parse_result(told), version)["interfaces"] == told["interfaces"]
