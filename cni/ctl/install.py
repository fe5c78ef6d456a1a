"""`shimlanctl install`: the executables into the CNI bin directory, then the conflist.

Everything is read and judged before the first file is touched. A conflist is what makes a runtime call the plugin, so
it comes last, and not before an agent answers. What stands in a file is the business of `cni.ctl.wares`, how it gets to
its place that of `cni.ctl.placing`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from functools import partial

from cni.agent.settings import DEFAULT_SOCKET
from cni.ctl import placing, wares
from cni.ctl.asking import agent_answers
from cni.ctl.wares import INPROCESS, IPAM, PLUGIN, Verdict, Ware
from cni.errors import IOFailure, TryAgainLater
from cni.protocol import VERSIONS

EXAMPLES = """examples:
  shimlanctl install --conflist lan.conflist              # client and conflist, where an agent runs
  shimlanctl install --in-process --conflist lan.conflist # without an agent: this Python's plugins
  shimlanctl install --root /host --no-conflist           # a node's files are below /host; its networks come otherwise
  shimlanctl install --conflist /etc/shimlan --node a     # all conflists in there, with what a.json says of node a

What is different on a node stands in a file NODE.json beside the conflist, a JSON merge patch of the shimlan plugin in
it, such as {"master": "eno1", "ipam": {"ranges": [[{"subnet": "192.0.2.0/25"}]]}}. Where a directory has several
networks, each has a file NODE.NETWORK.json, NETWORK being the conflist's "name".
"""
BIN_DIR, CONF_DIR = "/opt/cni/bin", "/etc/cni/net.d"
CONFLIST = ".conflist"
WAIT_SECONDS = 60.0
PAUSE_SECONDS = 0.1
ANSWER_SECONDS = 30.0  # for an executable to tell its version
EXECUTABLE, READABLE = 0o755, 0o644


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `install`."""
    parser.epilog = EXAMPLES
    add_places(parser)
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--conflist", metavar="FILE", help="the network to install, or a directory of such files")
    network.add_argument("--no-conflist", action="store_true", help="only executables; an older conflist stays")
    parser.add_argument(
        "--node",
        metavar="NAME",
        default=os.environ.get("NODE_NAME"),
        help="apply NAME.NETWORK.json or NAME.json beside the conflist, if there is one (default: $NODE_NAME)",
    )
    parser.add_argument("--conf-name", metavar="NAME", help="how the conflist is called there (default: as FILE is)")
    parser.add_argument("--client", metavar="PATH", help="the native client; default: that of this installation")
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="install the plugins of this Python as well: shimlan-ipam, and shimlan for calls that no agent serves",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_SECONDS,
        metavar="SECONDS",
        help="how long to wait for the agent (default: %(default)g)",
    )
    parser.add_argument("--force", action="store_true", help="replace newer versions, too")


def add_places(parser: argparse.ArgumentParser) -> None:
    """The options that `install` and `uninstall` have in common."""

    def option(name: str, metavar: str, default: str, purpose: str) -> None:
        parser.add_argument(name, metavar=metavar, default=default, help=f"{purpose} (default: %(default)s)")

    option("--root", "DIR", "/", "where the file system of the node is")
    option("--bin-dir", "DIR", BIN_DIR, "where the runtime looks for plugins")
    option("--conf-dir", "DIR", CONF_DIR, "where the runtime looks for networks")
    option("--socket", "PATH", DEFAULT_SOCKET, "where the agent is to be asked")


def run(args: argparse.Namespace) -> int:
    """Install what is not there yet. Raises CniError and OSError, and has spoiled nothing then."""
    networks = _networks(args)
    executables = _executables(args)
    _install(below(args.root, args.bin_dir), executables, args.force)
    if networks and not _without_agent(executables):
        wait_for_agent(args.socket, args.wait)
    conf_dir = below(args.root, args.conf_dir)
    _install(conf_dir, networks, args.force)
    if source := _source(args):
        _withdraw_gone(conf_dir, source, networks)
    return 0


def below(root: str, path: str) -> str:
    """A path of the node as it is seen from here."""
    return os.path.normpath(f"{root}/{path}")


def _networks(args: argparse.Namespace) -> list[Ware]:
    """The conflists to install, if there are to be any."""
    if args.conflist is None:
        if not args.no_conflist:
            raise IOFailure("name the network with --conflist FILE, or say --no-conflist")
        return []
    directory, files = _split(args.conflist)
    if args.conf_name and len(files) != 1:
        raise IOFailure(f"--conf-name names one conflist, and {directory} has {len(files)}")
    templates = {name: _content(os.path.join(directory, name)) for name in files}
    of_node = _of_node(directory, args.node, templates) if args.node else {}
    return [
        Ware(args.conf_name or name, _conflist(template, of_node.get(name, ""), _source(args)), READABLE)
        for name, template in templates.items()
    ]


def _source(args: argparse.Namespace) -> str:
    """The directory of which all conflists are to be installed, and no others are to stay; "" for a single file."""
    return os.path.abspath(args.conflist) if args.conflist and os.path.isdir(args.conflist) else ""


def _of_node(directory: str, node: str, templates: dict[str, bytes]) -> dict[str, str]:
    """The file with a node's own values for each of the networks, whether it exists or not.

    NODE.json is for a single network. Raises IOFailure where several would take their NIC and range from it.
    """
    networks = {name: network for name, template in templates.items() if (network := wares.network(template))}
    paths = {name: os.path.join(directory, f"{node}.{network}.json") for name, network in networks.items()}
    common = os.path.join(directory, f"{node}.json")
    rest = [name for name, path in paths.items() if not os.path.exists(path)]
    if len(rest) == 1:
        return {**paths, rest[0]: common}
    if rest and os.path.exists(common):
        wanted = ", ".join(os.path.basename(paths[name]) for name in rest)
        raise IOFailure(
            f"{common} cannot be for {len(rest)} networks ({', '.join(rest)}), which would share its values: remove "
            f"it, and make a file for each network that differs on this node ({wanted})"
        )
    return paths


def _conflist(template: bytes, of_node: str, source: str) -> bytes:
    """The conflist with the values in a node's file, if it exists."""
    with suppress(FileNotFoundError):
        return wares.conflist(template, _content(of_node), of_node, source)
    return wares.conflist(template, of=of_node, source=source)


def _split(path: str) -> tuple[str, list[str]]:
    """The directory and the names of the conflists that a path means."""
    if os.path.isdir(path):
        return path, sorted(name for name in os.listdir(path) if name.endswith(CONFLIST))
    return os.path.dirname(path), [os.path.basename(path)]


def _executables(args: argparse.Namespace) -> list[Ware]:
    client = args.client or _own_client()
    if client is None and not args.in_process:
        raise IOFailure(
            "this installation has no native client: make one (make client) and name it with --client, or say "
            "--in-process"
        )
    plugin = [Ware(PLUGIN, _content(client), EXECUTABLE)] if client else []
    if not args.in_process:
        return plugin
    return [
        Ware(IPAM, _content(script(IPAM)), EXECUTABLE),
        Ware(INPROCESS if client else PLUGIN, _content(script(PLUGIN)), EXECUTABLE),
        *plugin,
    ]


def _without_agent(executables: list[Ware]) -> bool:
    """Whether what is installed serves calls by itself."""
    return any(ware.name == IPAM for ware in executables)


def _own_client() -> str | None:
    """The native client for this machine that came with this installation, as the image has it."""
    path = os.path.join(sys.prefix, "share", "shimlan", platform.machine(), PLUGIN)
    return path if os.path.exists(path) else None


def script(name: str) -> str:
    """An executable of this installation."""
    return os.path.join(sysconfig.get_path("scripts"), name)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _install(directory: str, files: list[Ware], force: bool) -> None:
    if not files:
        return
    with placing.alone_in(directory):
        for ware in files:
            _install_one(os.path.join(directory, ware.name), ware, force)


def _install_one(path: str, ware: Ware, force: bool) -> None:
    """Do about a file what is to be done, and say so."""
    verdict = wares.judge(ware, content_at(path), force)
    if verdict is Verdict.KEEP:
        os.chmod(path, ware.mode)
    if verdict in (Verdict.KEEP, Verdict.RESPECT):
        print(f"{path} {verdict.value}")
        return
    if verdict is Verdict.SET_ASIDE:
        print(f"{path} {verdict.value}: kept as {placing.set_aside(path)}")
    verify = partial(_verify, ware.name) if ware.mode == EXECUTABLE else None
    placing.place(path, ware.content, ware.mode, verify)
    print(f"{path} {Verdict.PLACE.value}")


def _withdraw_gone(directory: str, source: str, networks: list[Ware]) -> None:
    """Remove the conflists that were installed from a directory which does not have them any more."""
    present = {ware.name for ware in networks}
    gone = [name for name in configurations(directory) if name not in present]
    if not gone:
        return
    with placing.alone_in(directory):
        for path in (os.path.join(directory, name) for name in gone):
            if wares.comes_from(content_at(path) or b"", source):
                print(f"{path} came from {source}, which does not have it any more")
                withdraw(path)


def configurations(directory: str) -> tuple[str, ...]:
    """The files of a directory that a runtime may load, in its order."""
    with suppress(FileNotFoundError):
        names = sorted(name for name in os.listdir(directory) if name.endswith(wares.CONFIGURATIONS))
        return tuple(name for name in names if os.path.isfile(os.path.join(directory, name)))
    return ()


def withdraw(path: str) -> None:
    """Remove a file of ours, or put back what had been in its place, and say so."""
    before = placing.put_back(path)
    if before:
        print(f"{path} is again what it was before: {before}")
    else:
        placing.remove(path)
        print(f"{path} removed")


def content_at(path: str) -> bytes | None:
    """What a file holds; nothing for a link that leads nowhere from here, None if there is none."""
    try:
        return _content(path)
    except FileNotFoundError:
        return b"" if os.path.islink(path) else None


def _verify(name: str, path: str) -> None:
    """See to it that an executable works here. Raises IOFailure."""
    question = json.dumps({"cniVersion": VERSIONS[0]})
    environ = {"PATH": os.defpath, "CNI_COMMAND": "VERSION"}
    try:
        done = subprocess.run(
            [path], input=question.encode(), env=environ, capture_output=True, timeout=ANSWER_SECONDS, check=True
        )
        versions = json.loads(done.stdout)["supportedVersions"]
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
        raise IOFailure(f"the new {name} does not work on this machine, and was not installed: {error}") from error
    if VERSIONS[0] not in versions:
        raise IOFailure(f"the new {name} does not speak version {VERSIONS[0]}, and was not installed")


def wait_for_agent(socket: str, seconds: float) -> None:
    """Return when an agent answers. Raises TryAgainLater."""
    deadline = time.monotonic() + seconds
    while not agent_answers(socket):
        if time.monotonic() > deadline:
            raise TryAgainLater(
                f"no agent answers at {socket}, so no conflist was installed: start the agent (shimlanctl agent), "
                "or say --in-process"
            )
        time.sleep(PAUSE_SECONDS)
