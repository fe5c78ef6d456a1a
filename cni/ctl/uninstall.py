"""`shimlanctl uninstall`: the conflist first, then what is left on the host, the executables last.

While pods live on shimlan only the conflist goes: their host's end has to stay, or they lose their host, and so has
the plugin, or the runtime cannot delete them. With --drain it waits until the last of them is gone, and sees to it that
an agent serves them meanwhile. With --force it does not care; the pods keep their links and addresses all the same.

Networks may have data directories of their own. Those of the conflists count beside the one that is named, and pods of
which no record is known here, as of networks that stand elsewhere, count as far as they can be seen.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cni import directories, nftables, offload, shim, survey, vlan
from cni.attachment import Attachment, Link
from cni.ctl import placing, wares
from cni.ctl.asking import agent_answers
from cni.ctl.install import add_places, below, configurations, content_at, script, wait_for_agent, withdraw
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
LOCK = "lock"
DRAIN_SECONDS = 2.0  # between two looks
START_SECONDS, STOP_SECONDS = 30.0, 60.0
# A socket of systemd starts the agent anew when somebody calls, and be it to ask whether it is there: docs/agent.md.
STOP_IT = "stop it (where systemd runs it: systemctl disable --now shimlan.socket shimlan.service)"

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
    state_dirs = _state_dirs(args)
    _note(state_dirs)
    _remove_conflists(args)
    if args.drain:
        with _served(args.socket, state_dirs[0]):
            _drain(state_dirs)
    _clear_stale(state_dirs)
    left = _left(state_dirs)
    if left and not args.force:
        print(
            f"{left}: plugin, shims and state stay. Remove these pods and run it again, or let it wait for them "
            "(--drain)",
            file=sys.stderr,
        )
        return UNFINISHED
    if left and agent_answers(args.socket):
        raise IOFailure(
            "an agent is running, which would put everything back for the pods that are left: "
            f"{STOP_IT}, and run this again"
        )
    if args.force:
        _clear_host(state_dirs, left.shims)
    for each in state_dirs:
        _restore_nics(each)
        _remove_state(each)
    _remove_executables(args)
    if agent_answers(args.socket):
        print(f"an agent is still running, and may make a new store: {STOP_IT}, and run this again")
    return UNFINISHED if left.shims else DONE


def _remove_conflists(args: argparse.Namespace) -> None:
    directory = below(args.root, args.conf_dir)
    _remove(directory, configurations(directory))
    for name in configurations(directory):
        path = os.path.join(directory, name)
        if wares.needs_us(content_at(path) or b""):
            print(f"{path} uses shimlan as well, and stays: it was not installed by shimlanctl")


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
            if content is not None and wares.belongs_to_us(name, content):
                withdraw(path)


# --- data directories --------------------------------------------------------------------------------------------


def _state_dirs(args: argparse.Namespace) -> list[str]:
    """Where records may be: the directory that is named, those of the networks, and those noted beside its store."""
    conf_dir = below(args.root, args.conf_dir)
    files = (content_at(os.path.join(conf_dir, name)) or b"" for name in configurations(conf_dir))
    networks = (below(args.root, named) for file in files for named in wares.data_dirs(file))
    state_dir = below(args.root, args.state_dir)
    return list(dict.fromkeys(map(os.path.realpath, (state_dir, *networks, *directories.others(state_dir)))))


def _note(state_dirs: list[str]) -> None:
    """Have them know of each other, as an agent does: the next run finds no conflist that tells of them."""
    state_dir, *others = state_dirs
    if others:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        for each in (state_dir, *filter(open_existing, others)):
            directories.note(each, state_dirs)


# --- pods that are left ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """What is left of pods; false when nothing is."""

    recorded: Mapping[str, int]  # attachments, by their data directory
    strangers: tuple[str, ...]  # living pods of which no record is known here
    shims: Mapping[str, str]  # which of these pods they lead to

    def __bool__(self) -> bool:
        return bool(self.strangers) or any(self.recorded.values())

    def __str__(self) -> str:
        places = [f"{count} in {directory}" for directory, count in self.recorded.items() if count]
        if self.strangers:
            places.append(
                f"{len(self.strangers)} of which no record is known here, so name their dataDir with --state-dir: "
                + ", ".join(self.strangers)
            )
        return f"{sum(self.recorded.values()) + len(self.strangers)} attachments are left ({'; '.join(places)})"


def _left(state_dirs: list[str]) -> Left:
    recorded = {each: _recorded(each) for each in state_dirs}
    known = [attachment for attachments in recorded.values() for attachment in attachments]
    node = Node(state_dirs[0], Log(sys.stderr, "warning"))
    pods = [pod for pod in survey.sightings(node) if not _is_known(pod, known)]
    alive = survey.living_addresses(node, pods)
    behind = {
        name: [ip for ip in ips if ip in alive]
        for name, ips in survey.unrecorded(node, (ip for each in known for ip in each.ips)).items()
    }
    seen = {ip for pod in pods for ip in pod.ips}
    return Left(
        recorded={each: len(attachments) for each, attachments in recorded.items()},
        strangers=(
            *(str(pod.key or pod.netns) for pod in pods),
            *(f"{ip} behind {name}" for name, ips in behind.items() for ip in ips if ip not in seen),
        ),
        shims={name: ", ".join(map(str, ips)) for name, ips in behind.items() if ips},
    )


def _is_known(pod: survey.Sighting, known: Iterable[Attachment]) -> bool:
    """Whether a link is of one of these attachments, or perhaps of another machine that we see into."""
    if pod.parent_in_pod:
        return True
    return any(pod.key == each.key or not set(pod.ips).isdisjoint(each.ips) for each in known)


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


def _drain(state_dirs: list[str]) -> None:
    """Wait until no attachment is left."""
    told = None
    while left := _left(state_dirs):
        if left != told:
            print(f"{left}: waiting for them to go", flush=True)
        told = left
        time.sleep(DRAIN_SECONDS)
        _clear_stale(state_dirs)


def _recorded(state_dir: str) -> list[Attachment]:
    node = open_existing(state_dir)
    return node.records.all() if node else []


def _clear_stale(state_dirs: list[str]) -> None:
    for node in filter(None, map(open_existing, state_dirs)):
        for error in sweep(node).errors:
            print(f"shimlanctl: {error}", file=sys.stderr)


# --- what is left on the host ------------------------------------------------------------------------------------


def _clear_host(state_dirs: list[str], of_strangers: Mapping[str, str]) -> None:
    """Remove all shims, and with them their routes and neighbours, VLAN devices of ours without pods, the source NAT.

    The links of pods are theirs, and so is what carries them. Shims `of_strangers` stay with what strangers have there,
    and the source NAT with them: who forces this knows of the pods in the records, and not of these.
    """
    node = Node(state_dirs[0], Log(sys.stderr, "warning"))
    for attachment in (attachment for each in state_dirs for attachment in _recorded(each)):
        if attachment.host.link and attachment.host.link.name in of_strangers:
            shim.detach(node, attachment)
    for link in filter(shim.is_shim, node.host.links()):
        if link.name in of_strangers:
            print(
                f"link {link.name} stays, for it leads to pods of which no record is known here "
                f"({of_strangers[link.name]}): run this again with their dataDir as --state-dir"
            )
        else:
            _delete(node, link)
    for link in filter(vlan.is_ours, node.host.links()):
        if vlan.children(node, link):
            print(f"link {link.name} stays, for it carries pods: ip link del {link.name}, when they are gone")
        else:
            _delete(node, link)
    if of_strangers:
        return
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
        ours = [name for name in os.listdir(state_dir) if name.startswith(FILE) or name in (LOCK, directories.NOTE)]
        for name in ours:
            placing.remove(os.path.join(state_dir, name))
        if not os.listdir(state_dir):
            os.rmdir(state_dir)
            if ours:  # it may have been made by looking
                print(f"{state_dir} removed")
