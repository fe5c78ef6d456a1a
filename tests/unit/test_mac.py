"""The MACs that we make up."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from cni.attachment import Key
from cni.config import NetConf
from cni.mac import choose, of_address, of_pod

KEY = Key("lan", "abc", "eth0")
V4, V6 = ip_address("192.0.2.100"), ip_address("2001:db8::100")


def conf(**changes: Any) -> NetConf:
    return NetConf("lan", {}, **changes)


def test_a_mac_that_was_given_wins_over_every_policy() -> None:
    for policy in ("ip", "pod", "random"):
        assert choose(conf(mac="02:00:00:00:00:01", mac_policy=policy), KEY, [V4]) == "02:00:00:00:00:01"


@pytest.mark.parametrize(
    ("ips", "mac"),
    [
        ([V4], "02:42:c0:00:02:64"),
        ([V6, V4], "02:42:c0:00:02:64"),
        ([V6], "02:42:11:8e:b1:8f"),
    ],
)
def test_of_an_address_it_is_the_same_everywhere_and_for_ever(ips: list[Any], mac: str) -> None:
    assert of_address(ips) == choose(conf(), KEY, ips) == mac


def test_of_a_pod_it_is_the_same_everywhere_and_for_ever() -> None:
    assert of_pod("default/db-0", KEY) == choose(conf(mac_policy="pod", pod="default/db-0"), KEY, [V4])
    assert of_pod("default/db-0", KEY) == "02:e8:10:1d:eb:22"


def test_pods_networks_and_interfaces_differ() -> None:
    keys = (KEY, Key("other", "abc", "eth0"), Key("lan", "abc", "net1"))
    assert len({of_pod(pod, key) for pod in ("a/b", "a/c") for key in keys}) == 6


def test_without_a_name_the_container_stands_for_the_pod() -> None:
    assert choose(conf(mac_policy="pod"), KEY, [V4]) == of_pod("abc", KEY)


def test_without_an_address_its_policy_is_that_of_the_pod() -> None:
    assert choose(conf(), KEY, []) == of_pod("abc", KEY)


def test_chance_gives_another_one_each_time() -> None:
    macs = {choose(conf(mac_policy="random"), KEY, [V4]) for _ in range(20)}
    assert len(macs) == 20
    assert all(mac.startswith("02:") for mac in macs)
