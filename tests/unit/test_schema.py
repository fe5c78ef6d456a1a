"""The published schema and the parser say the same.

Structural problems (kind, words, bounds, patterns, required keys) are told by both. Semantic ones, which need more than
one value or arithmetic to be seen, are told by the parser alone; SEMANTIC is the list of them. What else a schema
cannot say well is kept out of the values tried here: that 1.0 is no whole number, what an IPv6 address may be that ends
like an IPv4 one, how many bytes an interface name has that is not ASCII.
"""

from __future__ import annotations

import json
import os
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cni
from cni import config
from cni.section import Problem
from tests.unit.configurations import DUAL_STACK, FULL, JSON, MINIMAL, Place, changed, places

with open(os.path.join(os.path.dirname(cni.__file__), "schema.json"), encoding="utf-8") as file:
    SCHEMA: dict[str, Any] = json.load(file)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

SEMANTIC = (
    "is not inside",
    "overlaps with",
    "is before the range's start",
    "has host bits set",
    "are of two families",
    "is not of the same family",
    "only works with mode bridge",
    "only has a meaning with",
    "is only made on the host",
    "at least one range of addresses is needed",
    "is reserved twice",
    "is a gateway",
    "holds a character that no name can have",
)

LISTENING = {**MINIMAL, "mode": "source", "sourceMacs": ["02:00:00:00:00:01"]}
BASES = st.sampled_from([FULL, DUAL_STACK, MINIMAL, LISTENING, {**FULL, "ipam": {"type": "host-local", "ranges": 5}}])
SIMPLE = [
    None,
    True,
    False,
    -2,
    -1,
    0,
    1,
    5,
    67,
    68,
    255,
    256,
    4095,
    65535,
    65536,
    2**31,
    2**32,
    1.5,
    "",
    "x",
    "/a",
    "a/b",
]
WORDS = [
    *(
        "bridge",
        "private",
        "vepa",
        "passthru",
        "source",
        "macvlan",
        "macvtap",
        "auto",
        "on",
        "off",
        "ip",
        "pod",
        "none",
    ),
    *("random", "info", "warn", "loud", "node", "kubernetes", "shimlan-ipam", "..", "a b", "-a", "sixteen-letters-"),
]
ADDRESSES = [
    *("10.0.0.3", "10.0.0.300", "10.0.0.03", "10.0.0", "10.0.0.0/24", "10.0.0.0/33", "10.0.0.0/024", "10.0.0.0/"),
    *(
        "1:2:3:4:5:6:7:8",
        "1:2:3:4:5:6:7::",
        "::2:3:4:5:6:7:8",
        "1:2:3::5:6:7:8:9",
        "1::2::3",
        "1:::3",
        ":1",
        "12345::",
        "::",
    ),
    *("fd00::3", "fd00::/64", "fd00::/129", "10.0.0.0/31", "fd00::/127", "0.0.0.0/0", "10.0.0.5/32"),
    *("02:00:00:00:00:01", "02-AA-bb-00-00-01", "01:00:00:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00", "0g:0"),
]
CONTAINERS: list[Any] = [{}, [], [[]], [{}], [None], {"x": 1}, ["x"], [5], {"type": "shimlan-ipam"}, {"snat": 5}]
VALUES = st.sampled_from([*SIMPLE, *WORDS, *ADDRESSES, *CONTAINERS])


def is_semantic(problem: Problem) -> bool:
    return any(phrase in problem.text for phrase in SEMANTIC)


@settings(max_examples=600)
@given(BASES, st.data(), VALUES)
def test_structural_problems_are_told_by_both(base: dict[str, Any], data: st.DataObject, value: object) -> None:
    raw = changed(base, data.draw(st.sampled_from(places(base))), value)
    structural = [str(problem) for problem in config.check(raw) if not is_semantic(problem)]
    by_schema = [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(raw)]
    assert bool(structural) == bool(by_schema), (structural, by_schema)


@settings(max_examples=300)
@given(BASES, st.data(), JSON)
def test_what_the_parser_takes_the_schema_takes(base: dict[str, Any], data: st.DataObject, value: object) -> None:
    raw = changed(base, data.draw(st.sampled_from(places(base))), value)
    assert config.check(raw) or VALIDATOR.is_valid(raw)


@settings(max_examples=300)
@given(BASES, st.data())
def test_a_key_left_out(base: dict[str, Any], data: st.DataObject) -> None:
    place = data.draw(st.sampled_from([place for place in places(base) if place and isinstance(place[-1], str)]))
    raw = changed(base, place, None)
    holder = raw
    for step in place[:-1]:
        holder = holder[step]
    del holder[place[-1]]
    structural = [str(problem) for problem in config.check(raw) if not is_semantic(problem)]
    assert bool(structural) != VALIDATOR.is_valid(raw), structural


@pytest.mark.parametrize(
    ("place", "lowest", "highest"),
    [
        (("mtu",), 68, 65535),
        (("bcqueuelen",), 1, 2**32 - 1),
        (("bclim",), -1, 2**31 - 1),
        (("vlan",), 0, 4094),
        (("detectConflicts", "timeoutMs"), 1, 10_000),
        (("detectConflicts", "retries"), 1, 10),
        (("ipam", "cooldownSeconds"), 0, 30 * 86400),
        (("ipam", "routes", 0, "mtu"), 68, 65535),
        (("ipam", "routes", 0, "advmss"), 0, 2**32 - 1),
        (("ipam", "routes", 0, "priority"), 0, 2**32 - 1),
        (("ipam", "routes", 0, "table"), 0, 2**32 - 1),
        (("ipam", "routes", 0, "scope"), 0, 255),
    ],
)
def test_both_draw_the_same_bounds(place: Place, lowest: int, highest: int) -> None:
    for number, good in ((lowest - 1, False), (lowest, True), (highest, True), (highest + 1, False)):
        raw = changed(FULL, place, number)
        assert (config.check(raw) == [], VALIDATOR.is_valid(raw)) == (good, good), number


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("base", [FULL, DUAL_STACK, MINIMAL, LISTENING])
def test_both_take_a_good_configuration(base: dict[str, Any]) -> None:
    assert config.check(base) == []
    VALIDATOR.validate(base)


def test_every_key_is_described() -> None:
    def properties(schema: object) -> list[dict[str, Any]]:
        inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []
        own = list(schema.get("properties", {}).values()) if isinstance(schema, dict) and "type" in schema else []
        return [*own, *(found for value in inner for found in properties(value))]

    assert FULL.keys() <= SCHEMA["properties"].keys()
    assert FULL["ipam"].keys() - {"type"} == SCHEMA["$defs"]["shimlanIpam"]["properties"].keys()
    assert all("description" in entry for entry in properties(SCHEMA["properties"]["shim"]))
