"""The ipam section: pools, reservations, routes and wishes, under shimlan and under other main plugins."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.errors import InvalidConfig
from cni.protocol import RouteConfig
from ipam import config
from ipam.config import IpamConf, Range, Reservation
from tests.unit.configurations import DUAL_STACK, FULL, JSON, changed, places

LAN = {"subnet": "10.0.0.0/24"}


def conf(**keys: Any) -> dict[str, Any]:
    """A configuration of a foreign main plugin with one pool, unless `ranges` says otherwise."""
    return {"cniVersion": "1.0.0", "name": "lan", "type": "bridge", "ipam": {"ranges": [[LAN]], **keys}}


def message(raw: object, environ_args: dict[str, str] | None = None) -> str:
    with pytest.raises(InvalidConfig) as refused:
        config.parse(raw, environ_args or {})
    return refused.value.msg


def pool_of(subnet: str, start: str, end: str, gateway: str) -> Range:
    return Range(ip_network(subnet), ip_address(start), ip_address(end), ip_address(gateway))


def test_a_pool_is_all_that_is_needed() -> None:
    pools = ((pool_of("10.0.0.0/24", "10.0.0.1", "10.0.0.254", "10.0.0.1"),),)
    assert config.parse(conf(), {}) == IpamConf(network="lan", pools=pools)


def test_every_key_finds_its_field() -> None:
    parsed = config.parse(FULL, {"IP": "10.0.0.9, 10.0.0.8/24,"})
    assert parsed == IpamConf(
        network="lan",
        pools=(
            (pool_of("172.16.0.0/24", "172.16.0.1", "172.16.0.254", "172.16.0.1"),),
            (pool_of("10.1.0.0/24", "10.1.0.10", "10.1.0.20", "10.1.0.254"),),
            (
                pool_of("10.0.0.0/24", "10.0.0.10", "10.0.0.99", "10.0.0.1"),
                pool_of("10.0.0.0/24", "10.0.0.110", "10.0.0.199", "10.0.0.1"),
            ),
            (pool_of("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::1"),),
        ),
        requested=tuple(map(ip_address, ("10.0.0.7", "10.0.0.8", "10.0.0.9"))),
        exclude=(ip_network("10.0.0.16/28"), ip_network("10.0.0.77/32")),
        reservations=(
            Reservation(ips=(ip_address("10.0.0.50"), ip_address("fd00::50")), pod="default/db-0"),
            Reservation(ips=(ip_address("10.0.0.7"),), mac="02:00:00:00:00:07"),
        ),
        sticky="pod",
        cooldown_seconds=30,
        routes=(
            RouteConfig(ip_network("10.9.0.0/16"), ip_address("10.0.0.2"), 1300, 1200, 5, 100, 0),
            RouteConfig(ip_network("::/0")),
        ),
        resolv_conf="/etc/resolv.conf",
        data_dir="/var/lib/b",
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"subnet": "10.0.0.0/30"}, pool_of("10.0.0.0/30", "10.0.0.1", "10.0.0.2", "10.0.0.1")),
        ({"subnet": "fd00::/126"}, pool_of("fd00::/126", "fd00::1", "fd00::3", "fd00::1")),
        (
            {**LAN, "rangeStart": "", "rangeEnd": None, "gateway": "10.0.0.254"},
            pool_of("10.0.0.0/24", "10.0.0.1", "10.0.0.254", "10.0.0.254"),
        ),
        (
            {**LAN, "rangeStart": "10.0.0.5", "rangeEnd": "10.0.0.5"},
            pool_of("10.0.0.0/24", "10.0.0.5", "10.0.0.5", "10.0.0.1"),
        ),
    ],
)
def test_a_range_has_the_defaults_of_host_local(entry: dict[str, Any], expected: Range) -> None:
    assert config.parse(conf(ranges=[[entry]]), {}).pools == ((expected,),)


@pytest.mark.parametrize(
    ("ranges", "problem"),
    [
        ([[{}]], "ipam.ranges[0][0].subnet: missing"),
        ([[None]], "ipam.ranges[0][0].subnet: missing"),
        ([[5]], "ipam.ranges[0][0]: must be an object, not 5"),
        ([[]], "ipam.ranges[0]: must be a list with at least one item"),
        ([None], "ipam.ranges[0]: must be a list with at least one item"),
        ([LAN], "ipam.ranges[0]: must be a list, not an object"),
        (LAN, "ipam.ranges: must be a list, not an object"),
        ([], "ipam.ranges: missing: at least one range of addresses is needed"),
        ([[{"subnet": "10.0.0.5/24"}]], "subnet: 10.0.0.5/24 has host bits set; did you mean 10.0.0.0/24?"),
        ([[{"subnet": "10.0.0.0"}]], 'subnet: "10.0.0.0" is not a CIDR'),
        ([[{"subnet": "ten/8"}]], 'subnet: "ten/8" is not a CIDR such as 192.168.1.0/24'),
        ([[{"subnet": "fe80::%1/64"}]], 'subnet: "fe80::%1/64" is not a CIDR'),
        ([[{"subnet": "10.0.0.0/31"}]], "subnet: 10.0.0.0/31 is too small to hand out addresses from"),
        ([[{"subnet": "fd00::/127"}]], "subnet: fd00::/127 is too small to hand out addresses from"),
        ([[{**LAN, "gateway": "10.0.1.1"}]], "ipam.ranges[0][0].gateway: 10.0.1.1 is not inside 10.0.0.0/24"),
        ([[{**LAN, "gateway": "fd00::1"}]], "ipam.ranges[0][0].gateway: fd00::1 is not inside 10.0.0.0/24"),
        ([[{**LAN, "rangeStart": "10.0.1.1"}]], "ipam.ranges[0][0].rangeStart: 10.0.1.1 is not inside 10.0.0.0/24"),
        ([[{**LAN, "rangeEnd": "10.0.1.1"}]], "ipam.ranges[0][0].rangeEnd: 10.0.1.1 is not inside 10.0.0.0/24"),
        ([[{**LAN, "rangeEnd": "10.0.0.300"}]], 'ipam.ranges[0][0].rangeEnd: "10.0.0.300" is not an IP address'),
        ([[{**LAN, "gateway": "fe80::1%eth0"}]], "must be an IP address without a zone"),
        (
            [[{**LAN, "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}]],
            "ipam.ranges[0][0].rangeEnd: 10.0.0.8 is before the range's start 10.0.0.9",
        ),
        (
            [[{**LAN, "rangeStart": "10.0.0.255"}]],
            "ipam.ranges[0][0].rangeStart: 10.0.0.254 is before the range's start 10.0.0.255",
        ),
        (
            [[LAN, {"subnet": "fd00::/64"}]],
            "ipam.ranges[0][1].subnet: fd00::/64 and 10.0.0.0/24 are of two families: make it two pools",
        ),
        (
            [[LAN, LAN]],
            "ipam.ranges[0][1]: 10.0.0.1-10.0.0.254 overlaps with 10.0.0.1-10.0.0.254 of ipam.ranges[0][0]",
        ),
        ([[LAN], [{"subnet": "10.0.0.64/26"}]], "ipam.ranges[1][0]: 10.0.0.65-10.0.0.126 overlaps with"),
    ],
)
def test_a_wrong_range_is_named_with_its_path(ranges: object, problem: str) -> None:
    assert problem in message(conf(ranges=ranges))


def test_every_overlap_is_told() -> None:
    inner = [{**LAN, "rangeStart": f"10.0.0.{n}", "rangeEnd": f"10.0.0.{n}"} for n in (3, 9)]
    text = message(conf(ranges=[[LAN], [inner[0]], [inner[1]], [{"subnet": "::/96"}]]))
    assert "ipam.ranges[1][0]: 10.0.0.3" in text
    assert "ipam.ranges[2][0]: 10.0.0.9" in text
    assert text.count("overlaps") == 2


def test_the_runtime_can_give_all_ranges() -> None:
    raw = {"name": "lan", "runtimeConfig": {"ipRanges": [[LAN]]}, "ipam": {"type": "shimlan-ipam"}}
    assert len(config.parse(raw, {}).pools) == 1
    raw["runtimeConfig"] = {"ipRanges": [[{"subnet": "x"}]]}
    assert message(raw).startswith("runtimeConfig.ipRanges[0][0].subnet: ")


def test_the_short_form_overlaps_like_any_other_range() -> None:
    text = message(conf(subnet="10.0.1.0/24", ranges=[[{"subnet": "10.0.0.0/23"}]]))
    assert text.startswith("ipam: 10.0.1.1-10.0.1.254 overlaps with 10.0.0.1-10.0.1.254 of ipam.ranges[0][0]")


def test_the_short_form_without_a_subnet_is_ignored_but_checked() -> None:
    assert config.parse(conf(gateway="192.168.0.1"), {}) == config.parse(conf(), {})
    assert message(conf(gateway=5)) == "ipam.gateway: must be a string, not 5"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"exclude": ["10.0.0.5/24"]}, "ipam.exclude[0]: 10.0.0.5/24 has host bits set"),
        ({"exclude": ["x"]}, 'ipam.exclude[0]: "x" is not an IP address'),
        ({"exclude": "10.0.0.5"}, 'ipam.exclude: must be a list, not "10.0.0.5"'),
        ({"sticky": "node"}, 'ipam.sticky: must be one of none, pod, not "node"'),
        ({"store": "kubernetes"}, 'ipam.store: "kubernetes" is not supported by this version'),
        ({"store": "etcd"}, 'ipam.store: must be one of node, not "etcd"'),
        ({"cooldownSeconds": -1}, "ipam.cooldownSeconds: must be between 0 and 2592000, not -1"),
        ({"cooldownSeconds": 2592001}, "ipam.cooldownSeconds: must be between 0 and 2592000"),
        ({"resolvConf": 5}, "ipam.resolvConf: must be a string, not 5"),
        ({"dataDir": "x"}, 'ipam.dataDir: "x" must be an absolute path'),
        ({"routes": {}}, "ipam.routes: must be a list, not an object"),
        ({"routes": [{}]}, "ipam.routes[0].dst: missing"),
        ({"routes": [{"dst": "default"}]}, 'ipam.routes[0].dst: "default" is not a CIDR'),
        (
            {"routes": [{"dst": "::/0", "gw": "10.0.0.1"}]},
            "ipam.routes[0].gw: 10.0.0.1 is not of the same family as ::/0",
        ),
        ({"routes": [{"dst": "::/0", "mtu": 10}]}, "ipam.routes[0].mtu: must be 0 or between 68 and 65535, not 10"),
        ({"routes": [{"dst": "::/0", "advmss": -1}]}, "ipam.routes[0].advmss: must be between 0 and 4294967295"),
        ({"routes": [{"dst": "::/0", "priority": 2**32}]}, "ipam.routes[0].priority: must be between"),
        ({"routes": [{"dst": "::/0", "table": "main"}]}, 'ipam.routes[0].table: must be a whole number, not "main"'),
        ({"routes": [{"dst": "::/0", "scope": 256}]}, "ipam.routes[0].scope: must be between 0 and 255, not 256"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(keys: dict[str, Any], problem: str) -> None:
    assert problem in message(conf(**keys))


@pytest.mark.parametrize(
    ("reservation", "problem"),
    [
        ({"ips": ["10.0.0.5"]}, 'ipam.reservations[0]: needs either "pod" or "mac"'),
        ({"pod": "a/b", "mac": "02:00:00:00:00:01", "ips": ["10.0.0.5"]}, 'needs either "pod" or "mac"'),
        ({"pod": "db-0", "ips": ["10.0.0.5"]}, 'ipam.reservations[0].pod: "db-0" must be "namespace/name"'),
        ({"pod": "a/b/c", "ips": ["10.0.0.5"]}, 'ipam.reservations[0].pod: "a/b/c" must be "namespace/name"'),
        ({"mac": "x", "ips": ["10.0.0.5"]}, 'ipam.reservations[0].mac: "x" is not a MAC address'),
        ({"pod": "a/b"}, "ipam.reservations[0].ips: must be a list with at least one item"),
        ({"pod": "a/b", "ips": []}, "ipam.reservations[0].ips: must be a list with at least one item"),
        (
            {"pod": "a/b", "ips": ["10.0.1.5"]},
            "ipam.reservations[0].ips: 10.0.1.5 is not inside the subnet of any range",
        ),
        ({"pod": "a/b", "ips": ["10.0.0.1"]}, "ipam.reservations[0].ips: 10.0.0.1 is a gateway"),
        ({"pod": "a/b", "ips": ["10.0.0.5", "10.0.0.5"]}, "ipam.reservations[0].ips: 10.0.0.5 is reserved twice"),
    ],
)
def test_a_wrong_reservation_is_named_with_its_path(reservation: object, problem: str) -> None:
    assert problem in message(conf(reservations=[reservation]))


def test_no_two_reservations_share_an_address() -> None:
    entries = [{"pod": "a/b", "ips": ["10.0.0.5"]}, {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.5"]}]
    assert message(conf(reservations=entries)) == "ipam.reservations[1].ips: 10.0.0.5 is reserved twice"


def test_reservations_are_not_blamed_for_wrong_ranges() -> None:
    entries = [{"pod": "a/b", "ips": ["10.0.0.5"]}]
    assert message(conf(ranges=[[{"subnet": "x"}]], reservations=entries)).startswith("ipam.ranges[0][0].subnet: ")
    assert "reservations" not in message(conf(ranges=[[{"subnet": "x"}]], reservations=entries))


@pytest.mark.parametrize(
    ("keys", "environ", "problem"),
    [
        ({"runtimeConfig": {"ips": "10.0.0.5"}}, {}, 'runtimeConfig.ips: must be a list, not "10.0.0.5"'),
        ({"runtimeConfig": {"ips": ["10.0.0.5/x"]}}, {}, 'runtimeConfig.ips[0]: "10.0.0.5/x" is not a CIDR'),
        ({"args": {"cni": {"ips": [5]}}}, {}, "args.cni.ips[0]: must be a string, not 5"),
        ({}, {"IP": "10.0.0.5,x"}, 'CNI_ARGS.IP: "x" is not an IP address'),
        ({"name": None}, {}, "name: missing"),
        ({"ipam": None}, {}, "ipam: missing"),
        ({"ipam": "x"}, {}, 'ipam: must be an object, not "x"'),
    ],
)
def test_what_the_runtime_adds_is_checked(keys: dict[str, Any], environ: dict[str, str], problem: str) -> None:
    assert message({**conf(), **keys}, environ).startswith(problem)


def test_of_other_main_plugins_nothing_else_matters() -> None:
    other = {**conf(), "mode": 5, "mtu": "x", "dataDir": 5, "shim": []}
    assert config.parse(other, {}) == config.parse(conf(), {})


def test_delete_takes_what_is_valid() -> None:
    wrong = conf(ranges=[[{"subnet": "x"}], [LAN]], routes=[{"dst": 5}], exclude=[5, "10.0.0.9"], dataDir="/d")
    parsed = config.parse_for_delete(wrong, {"IP": "x"})
    assert len(parsed.pools) == 1
    assert parsed.exclude == (ip_network("10.0.0.9/32"),)
    assert (parsed.routes, parsed.data_dir) == ((), "/d")


@pytest.mark.parametrize("raw", [[], {"ipam": {}}, {**conf(dataDir="x")}, {**conf(), "name": ""}])
def test_delete_needs_to_know_where_to_look(raw: object) -> None:
    with pytest.raises(InvalidConfig):
        config.parse_for_delete(raw, {})


def test_check_lists_what_parse_refuses() -> None:
    assert [str(problem) for problem in config.check(conf(sticky=5))] == [message(conf(sticky=5))]
    assert config.check(conf()) == []


@given(st.sampled_from([FULL, DUAL_STACK]), st.data(), JSON, st.dictionaries(st.just("IP"), st.text()))
def test_any_value_at_any_place_is_taken_or_refused(
    base: dict[str, Any], data: st.DataObject, value: object, environ: dict[str, str]
) -> None:
    raw = changed(base, data.draw(st.sampled_from(places(base))), value)
    for parse in (config.parse, config.parse_for_delete):
        try:
            pools = parse(raw, environ).pools
        except InvalidConfig:
            continue
        assert all(int(part.start) <= int(part.end) for pool in pools for part in pool)
