"""`shimlanctl validate`: problems with path and line, warnings, and the exit code."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.ctl import validate
from cni.ctl.netfile import merged
from cni.ctl.positions import locate
from cni.section import Problem
from tests.unit.configurations import DUAL_STACK, FULL, JSON, changed, places

GOOD_LIST = """{
  "cniVersion": "1.0.0",
  "name": "lan",
  "plugins": [
    {
      "type": "shimlan",
      "ipam": {
        "type": "shimlan-ipam",
        "ranges": [
          [
            {
              "subnet": "192.168.1.0/24",
              "gateway": "192.168.1.1"
            }
          ]
        ]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"""


def found(text: str) -> list[str]:
    """The problems as line, path and message."""
    return [f"{finding.line} {finding.path}: {finding.message}" for finding in validate.validate(text, "f").problems]


def warned(text: str) -> list[str]:
    return [f"{finding.line} {finding.path}: {finding.message}" for finding in validate.validate(text, "f").warnings]


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    validate.add_arguments(parser)
    return validate.run(parser.parse_args(words))


def test_a_good_list_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lan.conflist"
    file.write_text(GOOD_LIST)
    assert run(str(file)) == 0
    assert capsys.readouterr().out == f"{file}: ok\n"


def test_a_problem_has_file_line_and_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lan.conflist"
    file.write_text(GOOD_LIST.replace("192.168.1.1", "10.0.0.1"))
    assert run(str(file)) == 1
    place = "plugins[0].ipam.ranges[0][0].gateway"
    assert capsys.readouterr().out == f"{file}:13: {place}: 10.0.0.1 is not inside 192.168.1.0/24\n"


def test_tabs_and_escapes_do_not_confuse_the_lines() -> None:
    text = GOOD_LIST.replace("  ", "\t").replace('"gateway": "192.168.1.1"', '"gate\\u0077ay"\t:\n"\\u0031"')
    assert found(text) == ['13 plugins[0].ipam.ranges[0][0].gateway: "1" is not an IP address']


def test_standard_input_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD_LIST.replace('"lan"', '"l n"').encode())))
    assert run("-", "-o", "json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["file"] == "stdin"
    assert [(p["line"], p["path"]) for p in report["problems"]] == [(3, "name")]
    assert report["warnings"] == []


@pytest.mark.parametrize("content", [None, b"\xff{}"])
def test_an_unreadable_file_is_an_error_of_its_own(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lan.conf"
    if content is not None:
        file.write_bytes(content)
    assert run(str(file)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{file}: ")


def test_a_syntax_error_has_line_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lan.conf"
    file.write_text('{\n  "name": "lan",\n}')
    assert run(str(file)) == 1
    assert capsys.readouterr().out.startswith(f"{file}:3:1: not JSON: ")


def test_nesting_without_end_is_a_problem_not_a_crash() -> None:
    assert found("[" * 100_000)[0].startswith("1 : cannot be decoded: ")


def test_a_key_given_twice_is_a_problem() -> None:
    text = GOOD_LIST.replace('"type": "shimlan",', '"type": "shimlan",\n"type": "shimlan",')
    assert found(text) == ["7 plugins[0].type: this key is already on line 6; the last one wins"]


def test_numbers_that_json_does_not_have() -> None:
    assert "1 mtu: NaN is not a JSON number" in found(
        '{"cniVersion": "1.0.0", "name": "lan", "type": "shimlan", "mtu": NaN}'
    )


@pytest.mark.parametrize(
    ("old", "new", "problems"),
    [
        ('"name": "lan",', "", ["1 name: missing"]),
        ('"cniVersion": "1.0.0",', "", ["1 cniVersion: missing"]),
        ('"1.0.0"', '"2.0.0"', ['2 cniVersion: must be one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0, not "2.0.0"']),
        ('"type": "portmap"', '"kind": "portmap"', ["19 plugins[1].type: missing"]),
        ('"type": "portmap"', '"type": "./portmap"', ['19 plugins[1].type: "./portmap" must be the plain name']),
        ('{"type": "portmap"', '5, {"type": "portmap"', ["19 plugins[1]: must be an object, not 5"]),
        (
            '"type": "shimlan",',
            '"type": "shimlan", "mode": "hub", "mtu": true,',
            [
                '6 plugins[0].mode: must be one of bridge, private, vepa, passthru, source, not "hub"',
                "6 plugins[0].mtu: must be a whole number, not true",
            ],
        ),
        (
            '"type": "portmap"',
            '"type": "bridge", "mtu": "x", "ipam": {"type": "shimlan-ipam", "subnet": 5}',
            ["19 plugins[1].ipam.subnet: must be a string, not 5"],
        ),
        (
            '"type": "portmap"',
            '"type": "bridge", "mtu": "x", "ipam": {"type": "host-local", "subnet": 5}',
            [],
        ),
    ],
)
def test_each_problem_appears_once_where_it_is(old: str, new: str, problems: list[str]) -> None:
    lines = found(GOOD_LIST.replace(old, new, 1))
    assert len(lines) == len(problems)
    assert all(line.startswith(problem) for line, problem in zip(lines, problems, strict=True))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("5", "1 configuration: must be an object, not 5"),
        ('{"cniVersion": "1.0.0", "name": "lan"}', "1 type: missing"),
        ('{"cniVersion": "1.0.0", "name": "lan", "plugins": []}', "1 plugins: must be a list with at least one item"),
        ('{"cniVersion": "1.0.0", "name": "lan", "plugins": {}}', "1 plugins: must be a list, not an object"),
        ('{"cniVersion": "1.0.0", "name": "lan",\n"type": "shimlan", "mode": 5}', "2 mode: must be one of"),
    ],
)
def test_confs_and_things_that_are_none(text: str, problem: str) -> None:
    assert [line[: len(problem)] for line in found(text)] == [problem]


def test_the_schema_has_a_say_where_the_parser_is_silent() -> None:
    by_parser = [Problem(("shim", "routes", 0), "parser")]
    by_schema = [Problem(path, "schema") for path in (("shim",), ("shim", "routes", 0), ("shim", "snat"), ("mtu",))]
    assert merged(by_parser, by_schema) == [*by_parser, *by_schema[2:]]


def test_ranges_may_be_left_to_the_runtime() -> None:
    ours = {"cniVersion": "1.0.0", "name": "lan", "type": "shimlan", "ipam": {"type": "shimlan-ipam"}}
    assert len(found(json.dumps(ours))) == 1
    assert found(json.dumps({**ours, "capabilities": {"ipRanges": True}})) == []


@pytest.mark.parametrize(
    ("old", "new", "warnings"),
    [
        ('"1.0.0"', '"1.1.0"', ["2 cniVersion: containerd 1.6 and podman 4.3 accept 1.0.0 at most"]),
        (
            '"ranges": [',
            '"gateway": "10.0.0.1", "ranges": [',
            ["9 plugins[0].ipam.gateway: has no effect without a subnet beside it"],
        ),
        ('"ranges": [', '"subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "ranges": [', []),
    ],
)
def test_warnings_do_not_make_a_file_bad(old: str, new: str, warnings: list[str]) -> None:
    text = GOOD_LIST.replace(old, new, 1)
    assert warned(text) == warnings
    assert found(text) == []


def test_a_file_with_nothing_of_ours_is_worth_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lan.conf"
    file.write_text('{"cniVersion": "1.0.0", "name": "lan", "type": "bridge"}')
    assert run(str(file)) == 0
    warning = "warning: configuration: nothing here is of type shimlan or shimlan-ipam"
    assert capsys.readouterr().out == f"{file}:1: {warning}\n{file}: ok\n"


@given(JSON)
def test_every_value_has_a_line(document: Any) -> None:
    text = json.dumps(document, indent=2)
    positions = locate(text)
    assert set(positions.lines) == set(places(json.loads(text)))
    assert max(positions.lines.values()) <= text.count("\n") + 1


@given(st.sampled_from([FULL, DUAL_STACK]), st.data(), JSON, st.booleans())
def test_any_file_gets_a_report(base: dict[str, Any], data: st.DataObject, value: object, as_list: bool) -> None:
    document: Any = {"cniVersion": "1.0.0", "name": "lan", "plugins": [base]} if as_list else base
    place = data.draw(st.sampled_from(places(document)))
    report = validate.validate(json.dumps(changed(document, place, value)), "f")
    assert all(finding.line >= 1 and finding.message for finding in (*report.problems, *report.warnings))
