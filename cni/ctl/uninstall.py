"""`shimlanctl uninstall`: the conflist first, then what is left on the host, the executables last.

While pods live on shimlan only the conflist goes: their host's end has to stay, or they lose their host, and so has
the plugin, or the runtime cannot delete them. With --drain it waits until the last of them is gone, and sees to it that
an agent serves them meanwhile. With --force it does not care; the pods keep their links and addresses all the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cni import nftables, offload, shim, vlan
from cni.attachment import Link
from cni.ctl import placing, wares
from cni.ctl.asking import agent_answers
from cni.ctl.install import add_places, below, content_at, script, wait_for_agent
from cni.ctl.store import add_state_dir, open_existing
from cni.database import FILE
from cni.errors import IOFailure, KernelRefused
from cni.log import Log
from cni.node import Node
from cni.sweep import sweep

EXAMPLES = """examples:
  shimlanctl uninstall
  shimlanctl uninstall --drain   # waits for the last pod, and serves the others meanwhile
  shimlanctl uninstall --root /host --drain
"""
OF_STATE = (FILE, "lock")  # names of files in the data directory begin so
DRAIN_SECONDS = 2.0  # between two looks
START_SECONDS, STOP_SECONDS = 30.0, 60.0

DONE, UNFINISHED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `uninstall`."""
    parser.epilog = EXAMPLES
    add_places(parser)
    add_state_dir(parser)
    living = parser.add_mutually_exclusive_group()
    living.add_argument("--drain", action="store_true", help="wait until no pod is left, and serve them meanwhile")
    living.add_argument("--force", action="store_true", help="remove everything, although there are pods")


def run(args: argparse.Namespace) -> int:
    """Uninstall as far as that can be done now; 1 if pods stand in the way."""
    state_dir = below(args.root, args.state_dir)
    _remove_conflists(args)
    if args.drain:
        with _served(args.socket, state_dir):
            _drain(state_dir)
    _clear_stale(state_dir)
    living = _living(state_dir)
    if living and not args.force:
        print(
            f"{living} attachments are left: plugin, shims and state stay. Remove these pods and run it again, or let "
            "it wait for them (--drain)",
            file=sys.stderr,
        )
        return UNFINISHED
    if living and agent_answers(args.socket):
        raise IOFailure("an agent is running, which would put everything back for the pods that are left: stop it")
    if args.force:
        _clear_host(state_dir)
    _restore_nics(state_dir)
    _remove_state(state_dir)
    _remove_executables(args)
    if agent_answers(args.socket):
        print("an agent is still running, and may make a new store: stop it, and run this again")
    return DONE


def _remove_conflists(args: argparse.Namespace) -> None:
    directory = below(args.root, args.conf_dir)
    _remove(directory, _configurations(directory))
    for name in _configurations(directory):
        path = os.path.join(directory, name)
        if wares.needs_us(content_at(path) or b""):
            print(f"{path} uses shimlan as well, and stays: it was not installed by shimlanctl")


def _configurations(directory: str) -> tuple[str, ...]:
    with suppress(FileNotFoundError):
        return tuple(sorted(name for name in os.listdir(directory) if name.endswith(wares.CONFIGURATIONS)))
    return ()


def _remove_executables(args: argparse.Namespace) -> None:
    _remove(below(args.root, args.bin_dir), wares.EXECUTABLES)


def _remove(directory: str, names: tuple[str, ...]) -> None:
    """Remove what is ours of these files, and put back what had been in their place."""
    if not os.path.isdir(directory):
        return
    with placing.alone_in(directory):
        for name in names:
            path = os.path.join(directory, name)
            content = content_at(path)
            if content is None or not wares.belongs_to_us(name, content):
                continue
            before = placing.put_back(path)
            if before:
                print(f"{path} is again what it was before: {before}")
            else:
                placing.remove(path)
                print(f"{path} removed")


# --- pods that are left ------------------------------------------------------------------------------------------


@contextmanager
def _served(socket: str, state_dir: str) -> Iterator[None]:
    """An agent serves the pods for the time of a block: the one that is running, or one of our own."""
    if agent_answers(socket):
        yield
        return
    command = [script("shimlanctl"), "agent", "--socket", socket, "--state-dir", state_dir]
    with subprocess.Popen(command) as agent:
        try:
            wait_for_agent(socket, START_SECONDS)
            yield
        finally:
            agent.terminate()
            agent.wait(STOP_SECONDS)


def _drain(state_dir: str) -> None:
    """Wait until no attachment is left."""
    told = 0
    while living := _living(state_dir):
        if living != told:
            print(f"waiting for {living} attachments to go", flush=True)
        told = living
        time.sleep(DRAIN_SECONDS)
        _clear_stale(state_dir)


def _living(state_dir: str) -> int:
    node = open_existing(state_dir)
    return len(node.records.all()) if node else 0


def _clear_stale(state_dir: str) -> None:
    node = open_existing(state_dir)
    if node is None:
        return
    for error in sweep(node).errors:
        print(f"shimlanctl: {error}", file=sys.stderr)


# --- what is left on the host ------------------------------------------------------------------------------------


def _clear_host(state_dir: str) -> None:
    """Remove all shims, and with them their routes and neighbours, VLAN devices of ours without pods, the source NAT.

    The links of pods are theirs, and so is what carries them.
    """
    node = Node(state_dir, Log(sys.stderr, "warning"))
    for link in filter(shim.is_shim, node.host.links()):
        _delete(node, link)
    for link in filter(vlan.is_ours, node.host.links()):
        if vlan.children(node, link):
            print(f"link {link.name} stays, for it carries pods: ip link del {link.name}, when they are gone")
        else:
            _delete(node, link)
    with suppress(KernelRefused), nftables.connect() as socket:  # no nftables, no table
        nftables.sync(socket, [])


def _restore_nics(state_dir: str) -> None:
    """Give NICs back the settings that they had before, unless they carry pods."""
    node = open_existing(state_dir)
    for command in offload.restore(node) if node else ():
        print(command)


def _delete(node: Node, link: Link) -> None:
    node.host.delete_link(link.index)
    print(f"link {link.name} removed")


def _remove_state(state_dir: str) -> None:
    with suppress(FileNotFoundError):
        for name in os.listdir(state_dir):
            if name.startswith(OF_STATE):
                placing.remove(os.path.join(state_dir, name))
        if not os.listdir(state_dir):
            os.rmdir(state_dir)
            print(f"{state_dir} removed")
