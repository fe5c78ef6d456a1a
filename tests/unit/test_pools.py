"""Pool arithmetic, in tables and against sets."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.errors import AddressUnavailable
from ipam.config import IpamConf
from ipam.pools import (
    Span,
    address_of,
    is_barred,
    merged,
    number_of,
    outline,
    outlined,
    overlap,
    pools_of,
    runs,
    within,
)
from tests.unit.leases import a_conf, a_range, reserved

SPANS = st.lists(st.builds(lambda first, size: Span(first, first + size), st.integers(0, 60), st.integers(0, 9)))


def numbers(spans: tuple[Span, ...] | list[Span]) -> set[int]:
    return {number for span in spans for number in range(span.first, span.last + 1)}


@given(st.ip_addresses().filter(lambda ip: not (isinstance(ip, IPv6Address) and ip.ipv4_mapped)))
def test_an_address_survives_being_a_number(ip: object) -> None:
    assert address_of(number_of(ip)) == ip  # type: ignore[arg-type]


@given(SPANS)
def test_merged_spans_are_sorted_apart_and_hold_the_same(spans: list[Span]) -> None:
    result = merged(spans)
    assert numbers(result) == numbers(spans)
    assert all(one.last + 1 < other.first for one, other in pairwise(result))


@given(SPANS, st.integers(-1, 80))
def test_barred_means_inside_of_a_span(spans: list[Span], number: int) -> None:
    assert is_barred(merged(spans), number) == (number in numbers(spans))


@given(SPANS, st.integers(0, 60), st.integers(0, 20), st.integers(0, 90))
def test_runs_are_what_is_not_barred(spans: list[Span], first: int, size: int, start: int) -> None:
    span = Span(first, first + size)
    found = list(runs(span, merged(spans), start))
    assert numbers(found) == {n for n in numbers([span]) if n >= start} - numbers(spans)
    assert all(run.size for run in found)
    assert [run.first for run in found] == sorted(run.first for run in found)


@given(SPANS, st.integers(0, 60), st.integers(0, 20))
def test_what_is_barred_of_a_span_survives_being_a_line(spans: list[Span], first: int, size: int) -> None:
    span, barred = Span(first, first + size), merged(spans)
    assert numbers(within(span, barred)) == numbers([span]) & numbers(spans)
    assert outlined(span, outline(span, barred)) == within(span, barred)


def test_the_line_of_a_huge_range_is_short() -> None:
    (pool,) = pools_of(a_conf((a_range("fd00::/64", "fd00::"),), exclude=("fd00::8000:0:0:0/65",)), "", "")
    assert pool.outlines == ("0-1 9223372036854775808-18446744073709551614",)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Span(1, 3), Span(3, 5), True),
        (Span(3, 5), Span(1, 3), True),
        (Span(1, 9), Span(4, 5), True),
        (Span(1, 2), Span(3, 5), False),
    ],
)
def test_overlap(one: Span, other: Span, expected: bool) -> None:
    assert overlap(one, other) is expected


def permitted(conf: IpamConf, pod: str = "", avoid: tuple[str, ...] = ()) -> list[str]:
    """What anybody may have of the first pool."""
    pool = pools_of(conf, pod, "", tuple(map(ip_address, avoid)))[0]
    found = [str(address_of(number)) for number in sorted(numbers(pool.spans)) if pool.permits(number)]
    assert set(found) <= {str(address_of(number)) for number in numbers(pool.spans) if pool.offers(number)}
    return found


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        # Gateway, network and broadcast are nobody's, even if a range was made to contain them.
        (a_conf((a_range("10.0.0.0/29", "10.0.0.0", "10.0.0.7"),)), "2 3 4 5 6"),
        (a_conf((a_range("10.0.0.0/29", gateway="10.0.0.4"),)), "1 2 3 5 6"),
        # A gateway of one pool is not given by another.
        (a_conf((a_range("10.0.0.0/29"),), (a_range("10.0.0.0/28", "10.0.0.9", gateway="10.0.0.3"),)), "2 4 5 6"),
        # RFC 3021: both addresses of a /31 are usable.
        (a_conf((a_range("10.0.0.2/31", "10.0.0.2", "10.0.0.3", gateway="10.0.0.2"),)), "3"),
        (a_conf((a_range("10.0.0.0/29"),), exclude=("10.0.0.4/30", "10.0.0.2/32", "fd00::/64")), "3"),
        (a_conf((a_range("10.0.0.0/29"),), reservations=(reserved("10.0.0.3", pod="a/b"),)), "2 4 5 6"),
        (a_conf((a_range("10.0.0.0/29", end="10.0.0.2"), a_range("10.0.0.0/29", "10.0.0.5"))), "2 5 6"),
    ],
)
def test_what_anybody_may_have(conf: IpamConf, expected: str) -> None:
    assert permitted(conf) == [f"10.0.0.{last}" for last in expected.split()]


def test_the_subnet_router_anycast_address_is_nobodys() -> None:
    conf = a_conf((a_range("fd00::/126", "fd00::", "fd00::3"),))
    assert permitted(conf) == ["fd00::2", "fd00::3"]


def test_addresses_of_the_host_are_avoided() -> None:
    assert permitted(a_conf(), avoid=("192.168.1.10", "192.168.1.13", "fd00::1")) == ["192.168.1.11", "192.168.1.12"]


@pytest.mark.parametrize(
    ("pod", "mac", "expected"),
    [
        ("default/db-0", "", ["192.168.1.12", "192.168.1.200"]),
        ("default/db-1", "", []),
        ("", "", []),
        ("", "02:00:00:00:00:AA", ["192.168.1.13"]),
        ("default/db-0", "02:00:00:00:00:aa", ["192.168.1.12", "192.168.1.200", "192.168.1.13"]),
    ],
)
def test_reservations_are_for_their_pod_or_mac(pod: str, mac: str, expected: list[str]) -> None:
    """They may lie beside the range, inside of its subnet; those of other pools are none of this one's business."""
    conf = a_conf(
        reservations=(
            reserved("192.168.1.12", "192.168.1.200", "fd00::5", pod="default/db-0"),
            reserved("192.168.1.13", mac="02:00:00:00:00:aa"),
        )
    )
    (pool,) = pools_of(conf, pod, mac)
    assert [str(address_of(number)) for number in pool.own] == expected
    assert all(pool.offers(number) and not pool.permits(number) for number in pool.own)
    assert all(pool.locate(number)[0] == conf.pools[0][0] for number in pool.own)


def test_an_address_is_located_in_its_range_before_its_subnet() -> None:
    low, high = a_range("10.0.0.0/24", "10.0.0.10", "10.0.0.19"), a_range("10.0.0.0/24", "10.0.0.20", "10.0.0.29")
    (pool,) = pools_of(a_conf((low, high)), "", "")
    assert pool.locate(number_of(ip_address("10.0.0.25"))) == (high, pool.spans[1])
    assert pool.locate(number_of(ip_address("10.0.0.200"))) == (low, pool.spans[0])


def test_each_pool_gets_its_requested_address() -> None:
    conf = a_conf(
        (a_range("10.0.0.0/24"),), (a_range("fd00::/64"),), (a_range("10.1.0.0/24"),), requested=("fd00::7", "10.0.0.9")
    )
    pools = pools_of(conf, "", "")
    assert [pool.requested and str(address_of(pool.requested)) for pool in pools] == ["10.0.0.9", "fd00::7", None]


@pytest.mark.parametrize(
    ("requested", "pod", "message"),
    [
        (("10.9.0.1",), "", "10.9.0.1: requested, but network lan has only 10.0.0.1-10.0.0.14, fd00::1-fd00::e"),
        (("fd00::7", "fd00::8"), "", "fd00::8: requested, but fd00::7 is of the same pool"),
        (("10.0.0.1",), "", "it is the gateway of 10.0.0.0/28"),
        (("fd00::1",), "", "it is the gateway of fd00::/124"),
        (("10.0.0.4",), "", "10.0.0.4/31 is excluded"),
        (("10.0.0.7",), "", "it is reserved for a/b"),
        (("10.0.0.8",), "a/b", "it is reserved for 02:00:00:00:00:aa"),
        (("10.0.0.9",), "", "this host uses it"),
    ],
)
def test_requests_that_cannot_be_met(requested: tuple[str, ...], pod: str, message: str) -> None:
    conf = a_conf(
        (a_range("10.0.0.0/28"),),
        (a_range("fd00::/124"),),
        requested=requested,
        exclude=("10.0.0.4/31",),
        reservations=(reserved("10.0.0.7", pod="a/b"), reserved("10.0.0.8", mac="02:00:00:00:00:aa")),
    )
    with pytest.raises(AddressUnavailable, match=message):
        pools_of(conf, pod, "", (ip_address("10.0.0.9"),))


def test_the_broadcast_address_cannot_be_requested() -> None:
    conf = a_conf((a_range("10.0.0.0/29", end="10.0.0.7"),), requested=("10.0.0.7",))
    with pytest.raises(AddressUnavailable, match="network or broadcast address"):
        pools_of(conf, "", "")


def test_a_pod_may_request_what_is_reserved_for_it() -> None:
    """Even beside the range, and where everybody else is excluded."""
    conf = a_conf(
        requested=("192.168.1.200",), exclude=("192.168.1.200",), reservations=(reserved("192.168.1.200", pod="a/b"),)
    )
    (pool,) = pools_of(conf, "a/b", "")
    assert pool.requested == number_of(ip_address("192.168.1.200"))
