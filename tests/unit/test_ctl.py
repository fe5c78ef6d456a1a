"""shimlanctl as far as it needs no network: usage, errors, an empty directory, leases in a store, the tables."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni import __version__
from cni.attachment import Key
from cni.ctl import main as ctl
from cni.ctl import status, tables
from cni.database import FILE, Database
from cni.survey import parse_alias
from ipam.store import LeaseStore
from tests.unit.leases import a_conf, a_range

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command on a data directory of its own; status, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = ctl.main([*arguments, "--state-dir", str(tmp_path)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def leases(tmp_path: Path) -> LeaseStore:
    """The leases of that directory: one of ours, one of another plugin."""
    store = LeaseStore(Database(str(tmp_path)))
    store.adopt("lan", ip_address("192.0.2.100"), "c1", "eth0", pod="default/web", parent="eth0")
    store.adopt("other", ip_address("2001:db8::7"), "c2", "net1")
    return store


class TestUsage:
    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            ctl.main(["--version"])
        assert end.value.code == 0
        assert capsys.readouterr().out == f"shimlanctl {__version__}\n"

    def test_help_names_the_commands_of_this_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            ctl.main(["--help"])
        out = capsys.readouterr().out
        assert end.value.code == 0
        assert all(f"\n    {name}" in out for name in ctl.COMMANDS)
        assert "examples:" in out

    @pytest.mark.parametrize("command", ctl.COMMANDS)
    def test_each_command_explains_itself(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            ctl.main([command, "--help"])
        assert end.value.code == 0
        assert f"usage: shimlanctl {command}" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["diagnose"],
            ["status", "--unknown"],
            ["status", "-o", "yaml"],
            ["pool"],
            ["pool", "release", "192.0.2.1"],
            ["pool", "release", "no-address", "--network", "lan"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            ctl.main(arguments)
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith("usage: shimlanctl")

    def test_a_command_that_is_broken_leaves_the_others_alone(
        self, call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "cni.ctl.demo", None)
        assert ctl.main(["demo"]) == 1
        assert capsys.readouterr().err.startswith("shimlanctl: import of cni.ctl.demo halted")
        assert call("status")[0] == 0

    def test_a_reader_that_has_seen_enough(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        class Closed(io.TextIOWrapper):
            def flush(self) -> None:
                raise BrokenPipeError

        with (tmp_path / "out").open("wb") as file:
            monkeypatch.setattr(sys, "stdout", Closed(file))
            assert ctl.main(["status", "--state-dir", str(tmp_path)]) == 1
            monkeypatch.undo()


class TestWithoutAStore:
    @pytest.mark.parametrize("command", [["status"], ["gc"], ["pool", "usage"], ["pool", "leases"]])
    def test_it_says_so_and_makes_none(self, call: Call, tmp_path: Path, command: list[str]) -> None:
        code, out, err = call(*command)
        assert (code, err) == (0, "")
        assert out == f"no state in {tmp_path}: no pod was ever attached with this dataDir\n"
        assert list(tmp_path.iterdir()) == []

    def test_json_is_empty(self, call: Call) -> None:
        assert json.loads(call("status", "-o", "json")[1]) == {"attachments": [], "shims": [], "nics": [], "pools": []}
        assert json.loads(call("pool", "leases", "-o", "json")[1]) == []

    def test_nothing_can_be_released(self, call: Call) -> None:
        code, _, err = call("pool", "release", "192.0.2.1", "--network", "lan", "--yes")
        assert code == 1
        assert err.startswith("shimlanctl: no state in")


class TestDamage:
    @pytest.mark.parametrize("command", [["status"], ["pool", "leases"], ["gc", "--dry-run"]])
    def test_one_line_that_says_what_to_do(self, call: Call, tmp_path: Path, command: list[str]) -> None:
        (tmp_path / FILE).write_bytes(b"garbage" * 1000)
        code, out, err = call(*command)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        assert "the store is damaged" in err
        assert "shimlanctl gc" in err

    def test_a_directory_that_cannot_be_read(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / FILE).symlink_to(FILE)
        code, _, err = call("status")
        assert code == 1
        assert err.startswith(f"shimlanctl: cannot read {tmp_path}: Too many levels")


@pytest.mark.usefixtures("leases")
class TestPool:
    def test_leases(self, call: Call) -> None:
        expected = [
            {
                "network": "lan",
                "address": "192.0.2.100",
                "containerID": "c1",
                "ifname": "eth0",
                "state": "held",
                "pod": "default/web",
            },
            {
                "network": "other",
                "address": "2001:db8::7",
                "containerID": "c2",
                "ifname": "net1",
                "state": "held",
                "pod": "",
            },
        ]
        assert json.loads(call("pool", "leases", "-o", "json")[1]) == expected
        assert json.loads(call("pool", "leases", "-o", "json", "--network", "other")[1]) == expected[1:]

    def test_leases_for_people(self, call: Call) -> None:
        assert call("pool", "leases")[1].splitlines() == [
            "NETWORK  ADDRESS      CONTAINERID  IFNAME  STATE  POD",
            "lan      192.0.2.100  c1           eth0    held   default/web",
            "other    2001:db8::7  c2           net1    held   -",
        ]

    def test_without_a_terminal_release_wants_a_yes(self, call: Call, leases: LeaseStore) -> None:
        code, _, err = call("pool", "release", "2001:db8::7", "--network", "other")
        assert code == 1
        assert err == "shimlanctl: not on a terminal: say --yes to release it\n"
        assert len(leases.leases()) == 2

    def test_release_tells_whose_it_was(self, call: Call, leases: LeaseStore) -> None:
        code, out, _ = call("pool", "release", "2001:db8::7", "--network", "other", "--yes")
        assert code == 0
        assert out.splitlines() == [
            "2001:db8::7 in network other: held by net1 of container c2",
            "another plugin leased it by shimlan-ipam: whether its container still exists cannot be told",
            "released 2001:db8::7",
        ]
        assert [lease.container_id for lease in leases.leases()] == ["c1"]

    @pytest.mark.parametrize(("answer", "held"), [("y\n", 1), ("n\n", 2), ("\n", 2)])
    def test_on_a_terminal_it_asks(
        self, call: Call, leases: LeaseStore, monkeypatch: pytest.MonkeyPatch, answer: str, held: int
    ) -> None:
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        assert call("pool", "release", "192.0.2.100", "--network", "lan")[0] == held - 1
        assert len(leases.leases()) == held

    def test_what_is_set_aside_can_be_released_too(self, call: Call, leases: LeaseStore) -> None:
        leases.conflict("lan", ip_address("192.0.2.101"))
        code, out, _ = call("pool", "release", "192.0.2.101", "--network", "lan", "--yes")
        assert code == 0
        assert "set aside: another machine on the LAN used it" in out
        assert [str(lease.address) for lease in leases.leases("lan")] == ["192.0.2.100"]

    def test_what_is_free_cannot(self, call: Call) -> None:
        code, _, err = call("pool", "release", "192.0.2.101", "--network", "lan", "--yes")
        assert code == 1
        assert err.startswith("shimlanctl: 192.0.2.101 is free in network lan")


def attachment(state: str) -> dict[str, Any]:
    """A row of the listing."""
    names = ("network", "containerID", "ifname", "pod", "netns", "parent", "mode", "mac", "shim")
    return {
        **dict.fromkeys(names, "x"),
        "ips": ["192.0.2.1/24", "2001:db8::1/64"],
        "tap": 0,
        "forwardedBy": "software",
        "state": state,
    }


class TestStatus:
    def test_an_empty_one_says_so(self) -> None:
        text = status.as_text({"attachments": [], "shims": [], "nics": [], "pools": []})
        assert [line for line in text if line] == [
            "no attachments",
            "no shims",
            "no pools: no address was leased since the start of the machine",
        ]

    def test_what_is_wrong_comes_first(self) -> None:
        pool = {"network": "lan", "start": "a", "end": "b", "size": 6, "held": 4, "cooling": 0, "conflict": 1}
        pool |= {"excluded": 1, "free": 0}
        shim = {"name": "shim2", "parent": "eth0", "mac": "m", "up": False, "pods": 0, "state": "unused"}
        states = ("ok", "stale: namespace gone", "differs: pod: ip a; host: ip b")
        text = status.as_text(
            {"attachments": list(map(attachment, states)), "shims": [shim], "nics": [], "pools": [pool]}
        )
        assert text[: text.index("")] == [
            "WHAT IS WRONG",
            "  ! x x x: stale: namespace gone",
            "      -> `shimlanctl gc` clears it",
            "  ! x x x: differs from what is recorded",
            "      pod: ip a",
            "      host: ip b",
            "      -> have the runtime recreate the pod",
            "  ! shim2: unused",
            "      -> `shimlanctl gc` removes it",
            "  ! lan a-b: no address left",
            "      -> widen the range, or see `shimlanctl pool leases` for who has them",
        ]

    @pytest.mark.parametrize(("pods", "wrong"), [(4, False), (5, True)])
    def test_a_range_is_full_when_all_are_held_that_anybody_may_have(
        self, tmp_path: Path, pods: int, wrong: bool
    ) -> None:
        store = LeaseStore(Database(str(tmp_path)))
        for number in range(pods):
            store.allocate(a_conf((a_range("192.0.2.0/29"),)), f"c{number}", "eth0")
        listing = {"attachments": [], "shims": [], "nics": [], "pools": list(map(status.pool, store.ranges()))}
        text = status.as_text(listing)
        assert ("  ! lan 192.0.2.1-192.0.2.6: no address left" in text) is wrong
        assert [line.split() for line in text[text.index("POOLS") + 1 :][:2]] == [
            ["NETWORK", "START", "END", "SIZE", "HELD", "COOLING", "CONFLICT", "EXCLUDED", "FREE"],
            ["lan", "192.0.2.1", "192.0.2.6", "6", str(pods), "0", "0", "1", str(5 - pods)],
        ]

    def test_all_well(self) -> None:
        text = status.as_text({"attachments": [attachment("ok")], "shims": [], "nics": [], "pools": []})
        assert text[0] == "ATTACHMENTS"
        assert not any("!" in line for line in text)

    def test_a_nic_that_forwards_in_hardware(self) -> None:
        nic = {"name": "eth0", "offload": "on", "before": "off", "hardware": 1, "software": 0, "refused": 2}
        rows = [{**attachment("ok"), "mode": "bridge", "forwardedBy": "hardware"}]
        text = status.as_text({"attachments": rows, "shims": [], "nics": [nic], "pools": []})
        assert "bridge (hardware)" in text[2]
        assert [line.split() for line in text[text.index("NICS") + 1 :][:2]] == [
            ["NAME", "OFFLOAD", "BEFORE", "HARDWARE", "SOFTWARE", "REFUSED"],
            ["eth0", "on", "off", "1", "0", "2"],
        ]


def test_a_table_lines_up() -> None:
    assert tables.table(("A", "LONG"), [("xyz", 1), ("", None)]) == ["A    LONG", "xyz  1", "-    -"]


@pytest.mark.parametrize(
    ("alias", "key"),
    [
        (Key("lan", "c1", "eth0").alias, Key("lan", "c1", "eth0")),
        (Key("lan", "c" * 240, "eth0").alias, None),  # cut off, and nobody can tell what is missing
        ("shimlan shim of eth0", None),
        ("somebody's lan/c1/eth0", None),
        ("", None),
    ],
)
def test_the_key_in_an_alias(alias: str, key: Key | None) -> None:
    assert parse_alias(alias) == key
