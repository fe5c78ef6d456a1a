"""`shimlanctl install` and `uninstall` as far as they are about files: whole or not at all, ours or not ours."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import cni
from cni import __version__
from cni.ctl import placing, uninstall, wares
from cni.ctl.main import main
from cni.ctl.wares import Verdict, Ware, judge, merged
from cni.errors import CniError
from tests.client import compile_client

FOREIGN = b"#!/bin/sh\nexit 0\n"
NATIVE = b"\x7fELF ... CNI plugin shimlan %s: pods on the LAN"
NETWORK: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "lan",
    "plugins": [
        {
            "type": "shimlan",
            "ipam": {"type": "shimlan-ipam", "subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100"},
        },
        {"type": "tuning"},
    ],
}


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_client(tmp_path_factory.mktemp("client"))


class Host:
    """A node's files below a directory, and a conflist to install there."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "host"
        self.bin = self.root / "opt/cni/bin"
        self.conf = self.root / "etc/cni/net.d"
        self.network = directory / "10-lan.conflist"
        self.network.write_text(json.dumps(NETWORK))

    def install(self, *options: str) -> int:
        """Its exit status."""
        return main(["install", "--root", str(self.root), "--wait", "0", *options])

    def install_network(self, *options: str) -> int:
        return self.install("--in-process", "--conflist", str(self.network), *options)

    def uninstall(self, *options: str) -> int:
        return main(["uninstall", "--root", str(self.root), *options])

    @property
    def files(self) -> set[str]:
        """All files, by their names without directories."""
        return {path.name for path in self.root.rglob("*") if not path.is_dir()}

    def conflist(self, name: str = "10-lan.conflist") -> dict[str, Any]:
        conflist: dict[str, Any] = json.loads((self.conf / name).read_text())
        return conflist


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# --- what to do about a file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "verdict", "forced"),
    [
        pytest.param(None, Verdict.PLACE, Verdict.PLACE, id="nothing"),
        pytest.param(b"new", Verdict.KEEP, Verdict.KEEP, id="the same"),
        pytest.param(NATIVE % b"0.0.9", Verdict.PLACE, Verdict.PLACE, id="an older client"),
        pytest.param(NATIVE % __version__.encode(), Verdict.PLACE, Verdict.PLACE, id="another build"),
        pytest.param(NATIVE % b"99.0.0", Verdict.RESPECT, Verdict.PLACE, id="a newer client"),
        pytest.param(b"#!x\nfrom cni.plugin import run\n\nrun()", Verdict.PLACE, Verdict.PLACE, id="in-process plugin"),
        pytest.param(FOREIGN, Verdict.SET_ASIDE, Verdict.SET_ASIDE, id="of somebody else"),
        pytest.param(b"", Verdict.SET_ASIDE, Verdict.SET_ASIDE, id="empty"),
    ],
)
def test_what_is_done_about_an_executable(present: bytes | None, verdict: Verdict, forced: Verdict) -> None:
    ware = Ware("shimlan", b"new", 0o755)
    assert judge(ware, present) is verdict
    assert judge(ware, present, force=True) is forced


def test_versions_are_compared_as_numbers() -> None:
    assert wares._version(NATIVE % b"0.10.0") > wares._version(NATIVE % b"0.9.9")


@pytest.mark.parametrize(
    ("present", "verdict"),
    [
        pytest.param(wares.conflist(json.dumps({**NETWORK, "name": "old"})), Verdict.PLACE, id="installed before"),
        pytest.param(json.dumps(NETWORK).encode(), Verdict.SET_ASIDE, id="written by hand"),
        pytest.param(b'{"name": "other", "plugins": []}', Verdict.SET_ASIDE, id="of another plugin"),
        pytest.param(b"{", Verdict.SET_ASIDE, id="no JSON"),
        pytest.param(b"[]", Verdict.SET_ASIDE, id="no object"),
    ],
)
def test_what_is_done_about_a_conflist(present: bytes, verdict: Verdict) -> None:
    assert judge(Ware("10-lan.conflist", wares.conflist(json.dumps(NETWORK)), 0o644), present) is verdict


# --- the conflist of a node --------------------------------------------------------------------------------------


@pytest.mark.parametrize(  # RFC 7396, appendix A
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_patches_are_merged(target: Any, patch: Any, result: Any) -> None:
    assert merged(target, patch) == result


def test_a_node_may_have_values_of_its_own(host: Host) -> None:
    host.network.with_name("a.json").write_text('{"master": "eno1", "ipam": {"rangeStart": null}}')
    assert host.install_network("--node", "a") == 0
    shimlan, tuning = host.conflist()["plugins"]
    assert shimlan["master"] == "eno1"
    assert shimlan["ipam"] == {"type": "shimlan-ipam", "subnet": "192.0.2.0/24"}
    assert tuning == {"type": "tuning"}


def test_a_node_without_values_of_its_own_has_those_of_all(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_NAME", "b")
    assert host.install_network() == 0
    assert host.conflist()["plugins"] == NETWORK["plugins"]


class TestTwoNetworks:
    """A directory with two networks, and what files of a node are for which of them."""

    @pytest.fixture(autouse=True)
    def more(self, host: Host) -> None:
        """The other network, called more; the first is called lan."""
        host.network.with_name("20-more.conflist").write_text(json.dumps({**NETWORK, "name": "more"}))

    def install(self, host: Host, **masters: str) -> int:
        """Install both, with files of the node that name a master; the exit status."""
        for name, master in masters.items():
            host.network.with_name(f"{name.replace('_', '.')}.json").write_text(json.dumps({"master": master}))
        return host.install("--in-process", "--conflist", str(host.network.parent), "--node", "a")

    def masters(self, host: Host) -> list[str | None]:
        """What was installed."""
        return [host.conflist(name)["plugins"][0].get("master") for name in ("10-lan.conflist", "20-more.conflist")]

    def test_each_may_have_values_of_its_own(self, host: Host) -> None:
        assert self.install(host, a_lan="eno1", a_more="eno2", b_lan="eno3") == 0
        assert self.masters(host) == ["eno1", "eno2"]

    def test_none_needs_to(self, host: Host) -> None:
        assert self.install(host, a_more="eno2") == 0
        assert self.masters(host) == [None, "eno2"]

    def test_a_file_for_all_is_that_of_the_one_that_has_no_other(self, host: Host) -> None:
        assert self.install(host, a_lan="eno1", a="eno2") == 0
        assert self.masters(host) == ["eno1", "eno2"]

    def test_a_file_for_all_is_refused_where_two_would_share_it(
        self, host: Host, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.install(host, a="eno1") == 1
        said = capsys.readouterr().err
        assert "a.json cannot be for 2 networks (10-lan.conflist, 20-more.conflist)" in said
        assert "(a.lan.json, a.more.json)" in said
        assert not host.root.exists()

    def test_networks_without_the_plugin_do_not_count(self, host: Host) -> None:
        bridge = {**NETWORK, "name": "more", "plugins": [{"type": "bridge"}]}
        host.network.with_name("20-more.conflist").write_text(json.dumps(bridge))
        assert self.install(host, a="eno1") == 0
        assert self.masters(host) == ["eno1", None]

    def test_a_single_file_that_is_named_takes_its_own(self, host: Host) -> None:
        host.network.with_name("a.json").write_text('{"master": "eno1"}')
        assert host.install_network("--node", "a") == 0
        assert host.conflist()["plugins"][0]["master"] == "eno1"

    def test_the_file_that_is_missing_is_named(self, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
        for path in host.network.parent.glob("*.conflist"):
            template = json.loads(path.read_text())
            del template["plugins"][0]["ipam"]["subnet"]
            path.write_text(json.dumps(template))
        assert self.install(host) == 1
        assert "a.lan.json" in capsys.readouterr().err


def test_all_conflists_of_a_directory_are_installed(host: Host, tmp_path: Path) -> None:
    (tmp_path / "20-more.conflist").write_text(json.dumps({**NETWORK, "name": "more"}))
    (tmp_path / "agent.yaml").write_text("logLevel: info")
    assert host.install("--in-process", "--conflist", str(tmp_path)) == 0
    assert {path.name for path in host.conf.iterdir()} == {"10-lan.conflist", "20-more.conflist"}


class TestADirectoryThatHasChanged:
    """Conflists that were installed, and that the directory does not have any more."""

    def install(self, host: Host, *options: str) -> int:
        """Install all conflists of the directory."""
        return host.install("--in-process", "--conflist", str(host.network.parent), *options)

    def networks(self, host: Host) -> set[str]:
        """What a runtime may find."""
        return {path.name for path in host.conf.iterdir()}

    def test_one_that_was_renamed_leaves_nothing_behind(self, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
        self.install(host)
        host.network.rename(host.network.with_name("20-lan.conflist"))
        assert self.install(host) == 0
        assert self.networks(host) == {"20-lan.conflist"}
        assert f"{host.conf}/10-lan.conflist removed" in capsys.readouterr().out

    def test_one_that_gets_another_name_leaves_nothing_behind(self, host: Host) -> None:
        self.install(host)
        assert self.install(host, "--conf-name", "00-lan.conflist") == 0
        assert self.networks(host) == {"00-lan.conflist"}

    def test_the_last_one_goes_as_well(self, host: Host) -> None:
        self.install(host)
        host.network.unlink()
        assert self.install(host) == 0
        assert self.networks(host) == set()

    def test_what_it_had_replaced_comes_back(self, host: Host) -> None:
        host.conf.mkdir(parents=True)
        (host.conf / "10-lan.conflist").write_text("{}")
        self.install(host)
        host.network.unlink()
        assert self.install(host) == 0
        assert {path.name: path.read_text() for path in host.conf.iterdir()} == {"10-lan.conflist": "{}"}

    def test_what_came_from_elsewhere_stays(self, host: Host, tmp_path: Path) -> None:
        others = tmp_path / "others"
        others.mkdir()
        (others / "30-other.conflist").write_text(json.dumps({**NETWORK, "name": "other"}))
        host.install("--in-process", "--conflist", str(others))
        host.install_network("--conf-name", "40-file.conflist")
        (host.conf / "50-own.conflist").write_text(json.dumps(NETWORK))
        (host.conf / "60-directory.conf").mkdir()
        before = self.networks(host)
        assert self.install(host) == 0
        assert self.networks(host) == before | {"10-lan.conflist"}

    def test_what_goes_wrong_removes_nothing(self, host: Host) -> None:
        self.install(host)
        host.network.rename(host.network.with_name("20-lan.conflist"))
        host.network.with_name("a.json").write_text("{")
        assert self.install(host, "--node", "a") == 1
        assert self.networks(host) == {"10-lan.conflist"}


def test_a_directory_may_have_none(host: Host, tmp_path: Path) -> None:
    host.network.unlink()
    assert host.install("--in-process", "--conflist", str(tmp_path)) == 0
    assert not host.conf.exists()


def test_a_node_whose_values_are_missing_is_told_so(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    template = json.loads(json.dumps(NETWORK))
    del template["plugins"][0]["ipam"]["subnet"], template["plugins"][0]["ipam"]["rangeStart"]
    host.network.write_text(json.dumps(template))
    assert host.install_network("--node", "c") == 1
    assert "c.json: plugins[0].ipam.ranges: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("network", "node", "said"),
    [
        ("{", "{}", "the conflist is not JSON"),
        ("[]", "{}", "must be an object"),
        ("\xe4", "{}", "the conflist is not JSON"),
        (json.dumps(NETWORK["plugins"][0]), "{}", "wrap the plugin"),
        (json.dumps({**NETWORK, "plugins": 1}), "{}", "plugins"),
        (json.dumps(NETWORK), "{", "a.json is not JSON"),
        (json.dumps(NETWORK), '{"mode": "none", "mtu": -1}', "a.json: plugins[0].mode"),
        (json.dumps(NETWORK), '{"ipam": {"subnet": null}}', "ipam"),
    ],
)
def test_what_is_wrong_touches_nothing(
    network: str, node: str, said: str, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.network.write_text(network, "latin-1")
    host.network.with_name("a.json").write_text(node)
    assert host.install_network("--node", "a") == 1
    assert said in capsys.readouterr().err
    assert not host.root.exists()


# --- files -------------------------------------------------------------------------------------------------------


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    """Two installers that take turns, and somebody who reads all the time."""
    path = tmp_path / "file"
    contents = [bytes([letter]) * 300_000 for letter in b"ab"]
    path.write_bytes(contents[0])
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    def write(content: bytes) -> None:
        for _ in range(30):
            with placing.alone_in(str(tmp_path)):
                placing.place(str(path), content, 0o644)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen <= set(contents)
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_no_good_does_not_take_its_place(tmp_path: Path) -> None:
    def refuse(path: str) -> None:
        assert Path(path).read_bytes() == b"new"
        raise CniError("no good")

    (tmp_path / "file").write_bytes(b"old")
    with placing.alone_in(str(tmp_path)), pytest.raises(CniError):
        placing.place(str(tmp_path / "file"), b"new", 0o644, refuse)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_what_a_killed_installer_left_is_cleared(host: Host) -> None:
    host.bin.mkdir(parents=True)
    (host.bin / f"{placing.UNFINISHED}abc").write_bytes(b"half")
    assert host.install("--in-process", "--no-conflist") == 0
    assert host.files == {"shimlan", "shimlan-ipam"}


def test_one_installer_waits_for_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "WAIT_SECONDS", 0.0)
    with (
        placing.alone_in(str(tmp_path)),
        pytest.raises(CniError, match="another installer"),
        placing.alone_in(str(tmp_path)),
    ):
        pass


def test_two_installers_at_once_do_no_harm(host: Host) -> None:
    host.bin.mkdir(parents=True)
    (host.bin / "shimlan").write_bytes(FOREIGN)
    program = "import sys; from cni.ctl.main import main; sys.exit(main())"
    words = ("install", "--root", host.root, "--in-process", "--conflist", host.network)
    installers = [subprocess.Popen([sys.executable, "-c", program, *words]) for _ in range(3)]
    assert [installer.wait() for installer in installers] == [0, 0, 0]
    (aside,) = host.bin.glob("shimlan.bak-*")
    assert aside.read_bytes() == FOREIGN
    assert len(host.files) == 4


# --- executables -------------------------------------------------------------------------------------------------


def test_the_in_process_plugin_needs_nothing_else(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.install_network() == 0
    assert host.files == {"shimlan", "shimlan-ipam", "10-lan.conflist"}
    assert stat.S_IMODE((host.bin / "shimlan").stat().st_mode) == 0o755
    assert stat.S_IMODE((host.conf / "10-lan.conflist").stat().st_mode) == 0o644
    assert capsys.readouterr().out.count("installed") == 3
    environ = {"PATH": os.defpath, "CNI_COMMAND": "VERSION"}
    done = subprocess.run([host.bin / "shimlan-ipam"], env=environ, input=b"", capture_output=True, check=True)
    assert "supportedVersions" in json.loads(done.stdout)


def test_the_client_comes_with_the_plugin_beside_it_if_that_is_wanted(host: Host, client: Path) -> None:
    assert host.install("--client", str(client), "--in-process", "--no-conflist") == 0
    assert host.files == {"shimlan", "shimlan-ipam", "shimlan-inprocess"}
    assert (host.bin / "shimlan").read_bytes() == client.read_bytes()


def test_a_second_time_changes_nothing(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.install_network()
    before = {path: path.stat().st_ino for path in host.root.rglob("*")}
    capsys.readouterr()
    assert host.install_network() == 0
    assert capsys.readouterr().out.count("up to date") == 3
    assert {path: path.stat().st_ino for path in host.root.rglob("*")} == before


def test_permissions_are_corrected(host: Host) -> None:
    host.install_network()
    (host.bin / "shimlan").chmod(0o600)
    host.install_network()
    assert stat.S_IMODE((host.bin / "shimlan").stat().st_mode) == 0o755


def test_a_link_is_replaced_and_not_what_it_leads_to(host: Host, tmp_path: Path) -> None:
    host.bin.mkdir(parents=True)
    elsewhere = tmp_path / "plugin"
    elsewhere.write_bytes(FOREIGN)
    (host.bin / "shimlan").symlink_to(elsewhere)
    (host.bin / "shimlan-ipam").symlink_to("nowhere")
    assert host.install("--in-process", "--no-conflist") == 0
    assert elsewhere.read_bytes() == FOREIGN
    assert not (host.bin / "shimlan").is_symlink()
    assert not (host.bin / "shimlan-ipam").is_symlink()


def test_a_newer_client_stays(host: Host, client: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host.bin.mkdir(parents=True)
    newer = client.read_bytes().replace(f"shimlan {__version__}".encode(), b"shimlan 9.9.9")
    (host.bin / "shimlan").write_bytes(newer)
    assert host.install("--client", str(client), "--no-conflist") == 0
    assert "newer version" in capsys.readouterr().out
    assert (host.bin / "shimlan").read_bytes() == newer
    assert host.install("--client", str(client), "--no-conflist", "--force") == 0
    assert (host.bin / "shimlan").read_bytes() == client.read_bytes()


@pytest.mark.parametrize("content", [b"\x7fELFx", b"#!/bin/sh\nexit 1\n", b"#!/bin/sh\necho '{}'\n", FOREIGN])
def test_a_client_that_does_not_work_here_is_not_installed(
    content: bytes, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "client").write_bytes(content)
    assert host.install("--client", str(tmp_path / "client"), "--no-conflist") == 1
    assert "not installed" in capsys.readouterr().err
    assert host.files == set()


def test_without_an_agent_the_client_is_installed_and_the_network_is_not(
    host: Host, client: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = str(tmp_path / "agent.sock")
    assert host.install("--client", str(client), "--conflist", str(host.network), "--socket", nobody) == 1
    assert "no agent answers" in capsys.readouterr().err
    assert host.files == {"shimlan"}


@pytest.mark.parametrize("options", [(), ("--no-conflist",), ("--conflist", "absent", "--in-process")])
def test_what_is_missing_is_told(options: tuple[str, ...], host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.install(*options) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not host.root.exists()


# --- taking it away ----------------------------------------------------------------------------------------------


def test_what_was_installed_goes_and_what_was_there_comes_back(host: Host) -> None:
    host.bin.mkdir(parents=True)
    host.conf.mkdir(parents=True)
    (host.bin / "shimlan").write_bytes(FOREIGN)
    (host.bin / "macvlan").write_bytes(FOREIGN)
    (host.conf / "10-lan.conflist").write_text(json.dumps(NETWORK))
    (host.conf / "20-other.conf").write_text("{}")
    (host.conf / "whereabouts.d").mkdir()
    before = snapshot(host)
    assert host.install_network() == 0
    assert host.uninstall() == 0
    assert snapshot(host) == before


def snapshot(host: Host) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in host.root.rglob("*") if path.is_file()}


def test_networks_of_others_are_named_and_stay(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.install_network()
    (host.conf / "99-own.conf").write_text(json.dumps(NETWORK["plugins"][0]))
    assert host.uninstall() == 0
    assert "99-own.conf uses shimlan as well" in capsys.readouterr().out
    assert host.files == {"99-own.conf"}


@pytest.mark.parametrize(
    ("plugin", "directories"),
    [
        ({}, ("/var/lib/cni/shimlan", "/var/lib/cni/shimlan")),
        ({"dataDir": "/a"}, ("/a", "/a")),
        ({"ipam": {"type": "shimlan-ipam", "dataDir": "/b"}}, ("/b", "/b")),
        ({"dataDir": "/a", "ipam": {"type": "shimlan-ipam", "dataDir": "/b"}}, ("/a", "/b")),
        ({"dataDir": "/a", "ipam": {"type": "dhcp"}}, ("/a",)),
        ({"dataDir": "/a", "mtu": "wrong"}, ("/a", "/a")),
        ({"dataDir": "relative"}, ()),
        ({"type": "bridge", "dataDir": "/a"}, ()),
    ],
)
def test_the_data_directories_of_a_network_are_those_that_a_call_would_use(
    plugin: dict[str, Any], directories: tuple[str, ...]
) -> None:
    conf = {"name": "lan", **NETWORK["plugins"][0], **plugin}
    assert wares.data_dirs(json.dumps(conf).encode()) == directories
    assert wares.data_dirs(json.dumps({"name": "lan", "plugins": [{"type": "x"}, conf]}).encode()) == directories
    assert wares.data_dirs(b"{") == ()


def test_uninstalling_twice_or_nothing_is_fine(host: Host) -> None:
    assert host.uninstall() == 0
    host.install_network()
    assert [host.uninstall(), host.uninstall()] == [0, 0]
    assert host.files == set()


def test_an_agent_that_is_running_is_to_be_stopped_with_its_socket(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the names of the units in docs/agent.md; a socket that stays starts the agent that was stopped."""
    monkeypatch.setattr(uninstall, "agent_answers", lambda socket: True)
    assert host.uninstall() == 0
    (command,) = re.findall("systemctl .* shimlan.socket shimlan.service", capsys.readouterr().out)
    assert command in Path(cni.__file__).parents[1].joinpath("docs/agent.md").read_text()


@pytest.mark.parametrize("step", ["place", "set_aside"])
def test_an_installation_that_breaks_off_can_be_repeated(
    step: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each number of calls of a step."""
    host.bin.mkdir(parents=True)
    (host.bin / "shimlan").write_bytes(FOREIGN)
    for calls in range(4):
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(placing, step, breaking_after(calls, getattr(placing, step)))
            host.install_network()
    assert host.install_network() == 0
    assert host.uninstall() == 0
    assert snapshot(host) == {str(host.bin / "shimlan"): FOREIGN}


def breaking_after(calls: int, function: Callable[..., object]) -> Callable[..., object]:
    left = calls

    def call(*arguments: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return function(*arguments)

    return call
